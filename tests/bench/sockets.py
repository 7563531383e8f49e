"""The second table, for information: uvicorn and wrk on one machine, with real sockets. Sockets are noisy."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import HOST, PATIENCE, steady_port

import fastapi_otpless_session

NO_WRK = "Over sockets nothing is measured: wrk is not installed (Debian: apt-get install wrk)"
SECONDS = 2
TRIES = 4
"""The best one counts: now and then one worker takes all connections, because it was awake when they came."""
CONNECTIONS = 32
WORKERS = (1, 2)
KINDS = ("bare", "believed", "sqlite", "starlette")


@dataclass(frozen=True)
class Served:
    """What wrk saw of an application, and what its workers spent."""

    kind: str
    workers: int
    requests_per_second: float
    p99_milliseconds: float
    cpu_microseconds: float
    """Of all workers, for a request."""


def measured() -> list[Served]:
    """Return one line for each application and number of workers; none without wrk."""
    if shutil.which("wrk") is None:
        return []
    return [_served(kind, workers) for kind in KINDS for workers in WORKERS]


def table(served: Sequence[Served]) -> list[str]:
    """Return the lines to print."""
    if not served:
        return [NO_WRK] if shutil.which("wrk") is None else []
    lines = [f"uvicorn and wrk, {CONNECTIONS} connections: for information, sockets are noisy"]
    one = {each.kind: each.cpu_microseconds for each in served if each.workers == 1}
    for each in served:
        step = f"× {each.cpu_microseconds / one[each.kind]:.2f} of one worker" if each.workers > 1 else ""
        lines.append(
            f"  {each.kind:10} {each.workers} worker{'s' if each.workers > 1 else ' '}"
            f" {each.requests_per_second:9,.0f} requests/s   p99 {each.p99_milliseconds:6.1f} ms"
            f"   CPU {each.cpu_microseconds:6.0f} µs a request {step}"
        )
    return lines


def _served(kind: str, workers: int) -> Served:
    with tempfile.TemporaryDirectory() as folder, _uvicorn(kind, workers, Path(folder)) as (url, pids, cookie):
        _wrk(url, cookie, 1)
        tries = [_tried(kind, workers, url, pids, cookie) for _ in range(TRIES)]
    return max(tries, key=lambda each: each.requests_per_second)


def _tried(kind: str, workers: int, url: str, pids: Sequence[int], cookie: str) -> Served:
    before = sum(map(_cpu_seconds, pids))
    said = _wrk(url, cookie, SECONDS)
    return read(kind, workers, said, sum(map(_cpu_seconds, pids)) - before)


def read(kind: str, workers: int, said: str, spent: float) -> Served:
    """Read what wrk printed. Raises `RuntimeError` where requests failed."""
    rate, total = re.search(r"Requests/sec:\s+([\d.]+)", said), re.search(r"(\d+) requests in", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)", said)
    if rate is None or total is None or p99 is None or "Non-2xx" in said:
        raise RuntimeError(f"wrk: {said}")
    milliseconds = float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return Served(kind, workers, float(rate[1]), milliseconds, spent / int(total[1]) * 1e6)


def _wrk(url: str, cookie: str, seconds: int) -> str:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-H", f"Cookie: {cookie}", url]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout  # noqa: S603 - found on PATH


@contextmanager
def _uvicorn(kind: str, workers: int, folder: Path) -> Iterator[tuple[str, list[int], str]]:
    """Serve an application; give its URL, the processes that serve, and the cookie to send."""
    port = steady_port()
    here = Path(__file__).parent
    package = Path(fastapi_otpless_session.__file__).parents[1]  # the one that is measured
    path = f"{here}:{here.parent}:{package}"
    environ = {**os.environ, "PYTHONPATH": path, "BENCH_KIND": kind, "BENCH_FOLDER": str(folder)}
    command = [sys.executable, "-m", "uvicorn", "served:create_app", "--factory", "--no-access-log"]
    options = ["--log-level", "warning", "--loop", "uvloop", "--port", str(port), "--workers", str(workers)]
    prepared = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, str(here / "served.py")], env=environ, capture_output=True, check=True, text=True
    )
    server = subprocess.Popen([*command, *options], env=environ, cwd=here)  # noqa: S603 - this Python
    try:
        pids = _wait_for(workers, port, server, folder)
        yield f"http://{HOST}:{port}/", pids, json.loads(prepared.stdout)
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _wait_for(workers: int, port: int, server: subprocess.Popen[bytes], folder: Path) -> list[int]:
    """Wait until each worker has left its process id in the folder, and one of them takes connections."""
    deadline = time.monotonic() + PATIENCE
    while len(left := sorted(folder.glob("*.pid"))) < workers or not _listens(port):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("uvicorn did not start")
        time.sleep(0.05)
    return [int(path.stem) for path in left]


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port)).close()
    except OSError:
        return False
    return True


def _cpu_seconds(pid: int) -> float:
    """Return what a process has spent; Linux only, as wrk's package is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
