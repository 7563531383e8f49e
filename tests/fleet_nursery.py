"""A process that has everything imported and forks workers on request: a start takes 0.1 s instead of 2.

It reads requests from standard input, a line of JSON each, and answers each with a line. When there is no more to read,
the tests are over, however they ended, and the workers that are left go with them.

    {"start": {"OTPLESS_CLIENT_ID": …}, "log": path}   a worker with these variables   {"pid": …, "port": …}
    {"wait": pid}                                      until it has ended              {"status": as subprocess has it}
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

import uvicorn
import worker_app
from processes import HOST, PATIENCE, send

KEEP_ALIVE = 60
STORES = ["sqlite", "redis", "sql"]

running: set[int] = set()


def start(variables: dict[str, str], log: str) -> dict[str, int]:
    """Fork a worker. Its socket listens already, so that requests wait for it and nobody has to."""
    with socket.create_server((HOST, 0)) as listener:
        pid = os.fork()
        if pid == 0:
            become_worker(listener, variables, log)
        running.add(pid)
        return {"pid": pid, "port": listener.getsockname()[1]}


def become_worker(listener: socket.socket, variables: dict[str, str], log: str) -> None:
    """Serve, and never come back."""
    status = 1
    try:
        os.environ.update(variables)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, source in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
            os.dup2(source, number)
        config = uvicorn.Config(worker_app.create_app(), log_level="warning", timeout_keep_alive=KEEP_ALIVE)
        server = uvicorn.Server(config)
        server.run(sockets=[listener])
        status = 0 if server.started else 1
    except BaseException:  # noqa: BLE001 - the parent's loop is no place for it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> dict[str, int]:
    """Wait until a worker has ended; one that does not is killed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            running.discard(pid)
            return {"status": os.waitstatus_to_exitcode(status)}
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def answer(request: dict[str, Any]) -> dict[str, int]:
    return wait(request["wait"]) if "wait" in request else start(request["start"], request["log"])


def main() -> None:
    for name in STORES:
        importlib.import_module(f"fastapi_otpless_session.stores.{name}")
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)  # noqa: T201 - it is the answer
    send([*running], signal.SIGKILL)


if __name__ == "__main__":
    main()
