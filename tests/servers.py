"""Real servers for tests: uvicorn with workers, in processes of their own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from processes import HOST, PATIENCE, steady_port

HERE = Path(__file__).parent
STARTED = b"Application startup complete."
LISTENS = b"Uvicorn running on"
"""What uvicorn says of each worker, and once of its socket: for one worker that comes later, for several earlier."""
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
def uvicorn(
    variables: dict[str, str], *, workers: int = 1, log: Path | None = None, ends_by: int = signal.SIGTERM
) -> Iterator[str]:
    """Run `worker_app` and yield its URL once all workers serve; stopped by a signal, and expected to stop cleanly."""
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
            process.send_signal(ends_by)
            process.wait(PATIENCE)


def wait_for(workers: int, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until all workers say that they serve. They are other processes: there is no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while (said := log.read_bytes()).count(STARTED) < workers or LISTENS not in said:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Worker:
    """A uvicorn process with one worker on a port of its own."""

    url: str
    pid: int
    log: Path

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def said(self) -> str:
        """Return what it logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Nursery:
    """Starts workers in 0.1 s each, by forking a process that has everything imported; see `fleet_nursery`."""

    def __init__(self, room: Path) -> None:
        self._room = room
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("OTPLESS_")}
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(HERE / "fleet_nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self._room,
            env=environ,
            text=True,
            start_new_session=True,  # no Ctrl-C reaches it: it ends when its input does
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=PATIENCE)

    def start(self, variables: dict[str, str]) -> Worker:
        """Start a worker. Requests to it may be sent at once."""
        log = self._room / f"worker{next(self._numbers)}.log"
        started = self._ask({"start": variables, "log": str(log)})
        return Worker(f"http://{HOST}:{started['port']}", started["pid"], log)

    def wait(self, worker: Worker) -> int:
        """Wait until a worker has ended, and return its status: minus the signal that killed it, if one did."""
        return self._ask({"wait": worker.pid})["status"]

    def _ask(self, request: dict[str, Any]) -> dict[str, int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer
