"""Real servers for tests: uvicorn with workers, in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import PATIENCE, steady_port

HERE = Path(__file__).parent
STARTED = b"Application startup complete."
KEEP_ALIVE = "60"
"""How many seconds uvicorn leaves idle connections open: longer than any test makes one wait."""


def environment(emulator_url: str, store: Path | str, **more: str) -> dict[str, str]:
    """What a deployment would set. `store` is a store's URL, or the path of a SQLite file."""
    return {
        "OTPLESS_CLIENT_ID": "demo-client",
        "OTPLESS_CLIENT_SECRET": "demo-secret",
        "OTPLESS_BASE_URL": emulator_url,
        "OTPLESS_JWKS_URL": f"{emulator_url}/.well-known/jwks",
        "OTPLESS_STORE_URL": store if isinstance(store, str) else f"sqlite:///{store}",
        "OTPLESS_COOKIE_SECURE": "false",
        **more,
    }


@contextmanager
def uvicorn(variables: dict[str, str], *, workers: int = 1, log: Path | None = None) -> Iterator[str]:
    """Run `worker_app` and yield its URL once all workers serve; stopped with SIGTERM, and expected to stop cleanly."""
    port = steady_port()
    application = ["worker_app:create_app", "--factory", "--timeout-keep-alive", KEEP_ALIVE, "--log-level", "debug"]
    command = [sys.executable, "-m", "uvicorn", *application, "--port", str(port), "--workers", str(workers)]
    environ = {**os.environ, **variables, "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)  # noqa: S603
        try:
            wait_for(workers, log, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def wait_for(workers: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until all workers say that they serve. They are other processes: there is no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while log.read_bytes().count(STARTED) < workers:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)
