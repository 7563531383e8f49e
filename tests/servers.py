"""Real servers for tests: uvicorn with workers, in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

HERE = Path(__file__).parent
PATIENCE = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def environment(emulator_url: str, store: Path, **more: str) -> dict[str, str]:
    """What a deployment would set."""
    return {
        "OTPLESS_CLIENT_ID": "demo-client",
        "OTPLESS_CLIENT_SECRET": "demo-secret",
        "OTPLESS_BASE_URL": emulator_url,
        "OTPLESS_JWKS_URL": f"{emulator_url}/.well-known/jwks",
        "OTPLESS_STORE_URL": f"sqlite:///{store}",
        "OTPLESS_COOKIE_SECURE": "false",
        **more,
    }


@contextmanager
def uvicorn(variables: dict[str, str], *, workers: int = 1, log: Path | None = None) -> Iterator[str]:
    """Run `worker_app` and yield its URL; stopped with SIGTERM, and expected to stop cleanly."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "worker_app:app", "--port", str(port), "--workers", str(workers)]
    environ = {**os.environ, **variables, "PYTHONPATH": str(HERE)}
    output = log.open("wb") if log else subprocess.DEVNULL
    process = subprocess.Popen([*command, "--log-level", "debug"], env=environ, stdout=output, stderr=output)  # noqa: S603
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url + "/public", process)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
        if log:
            output.close()  # type: ignore[union-attr]


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers. It is another process: there is no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            httpx.get(url, timeout=5)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("the server did not start")
