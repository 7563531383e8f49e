"""Servers of the tests' own, as processes: started, paused, crashed, and gone when the tests are."""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, Self

PATIENCE = 60.0
HOST = "127.0.0.1"
STEADY_PORTS = range(15_000, 32_000)
LAST_LOG_LINES = 15

# Reads "+ pid" and "- pid"; when there is no more to read, ends who is left, and removes the files.
GUARD = """
import os, shutil, signal, sys, time

def send(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass

running = set()
for sign, pid in map(str.split, sys.stdin):
    (running.add if sign == "+" else running.discard)(int(pid))
for pid in running:
    send(pid, signal.SIGQUIT)
    send(pid, signal.SIGCONT)
for _ in range(100):  # who is about to end may still write
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)
"""


def is_running(pid: int) -> bool:
    """Whether there is such a process, anybody's."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def steady_port() -> int:
    """Return a free port that stays free while its server is down.

    It is not one of those that the system gives to outgoing connections: among these, a client that keeps trying to
    reach a stopped server will sooner or later be given the server's own port.
    """
    while True:
        port = secrets.choice(STEADY_PORTS)
        with suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is true. It is about another process: there is no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:.0f} s in vain: {what}")
        time.sleep(0.01)


class Guard:
    """Whoever stays when the tests are killed: ends their servers and removes their files.

    It is a process in a session of its own, which no Ctrl-C reaches, and knows by the end of its standard input that
    the tests are over. A context manager.
    """

    directory: Path
    _process: subprocess.Popen[bytes]

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="otpless-"))
        self.directory.chmod(0o711)  # PostgreSQL's account has to come through
        command = [sys.executable, "-I", "-S", "-c", GUARD, str(self.directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)

    def room(self, name: str) -> Path:
        """Make a directory. Its name is short: a Unix socket's path must not be longer than 107 bytes."""
        room = self.directory / f"{name}{next(self._numbers)}"
        room.mkdir(mode=0o700)
        return room

    def watch(self, pid: int) -> None:
        self._tell(f"+ {pid}\n")

    def forget(self, pid: int) -> None:
        self._tell(f"- {pid}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()


class Server(ABC):
    """One server process, which can be stopped, crashed and paused, and keeps its port."""

    crash_signal: ClassVar[int]

    def __init__(self, guard: Guard, room: Path, account: Account | None = None) -> None:
        self.room = room
        self.port = steady_port()
        self._guard = guard
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    def start(self) -> None:
        """Start, on the same port and with the same files as before, and return when it answers."""
        assert self._process is None, "the server runs already"
        with (self.room / "log").open("ab") as log:
            self._process = spawn(self._command(), self.room, self._account, log)
        self._guard.watch(self.pid)
        wait_until(self._is_ready, f"for the server on port {self.port}")

    def _is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            log = (self.room / "log").read_text(errors="replace").splitlines()[-LAST_LOG_LINES:]
            raise RuntimeError("\n".join([f"ended with {self._process.returncode}: {self._command()}", *log]))
        return self._answers()

    def stop(self) -> None:
        """End in good order; clients lose their connections, files are complete."""
        self._end(signal.SIGINT)  # PostgreSQL's SIGTERM waits for its clients to go

    def crash(self) -> None:
        """End as a crash would."""
        self._end(self.crash_signal)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        self.resume()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
            raise
        finally:
            self._guard.forget(process.pid)

    def pause(self) -> None:
        """Freeze with all connections open: the system still accepts new ones, but nothing is answered."""
        send([self.pid], signal.SIGSTOP)  # first, so that it has no more children
        self._paused = [self.pid, *children(self.pid)]
        send(self._paused, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on as if nothing had been. Not an error where nothing is paused."""
        paused, self._paused = self._paused, []
        send(paused, signal.SIGCONT)

    def make_ready(self) -> None:
        """Undo what an earlier test did: paused servers go on, stopped ones start."""
        self.resume()
        if self._process is None:
            self.start()


class Account(NamedTuple):
    """Whom to run a server as."""

    uid: int
    gid: int

    @classmethod
    def of_postgres(cls) -> Self | None:
        """PostgreSQL refuses to run as root: another account then, else our own."""
        if os.geteuid() != 0:
            return None
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise RuntimeError("PostgreSQL does not run as root, and there is no account postgres or nobody")


def spawn(command: list[str], room: Path, account: Account | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a process that hears no Ctrl-C: it is told when to end."""
    as_whom: dict[str, Any] = {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
    return subprocess.Popen(  # noqa: S603
        command,
        cwd=room,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **as_whom,
    )


def clean_environment() -> dict[str, str]:
    """Ours, without what would lead PostgreSQL's programs elsewhere (PGHOST, PGOPTIONS, …)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def are_kept_alive(port: int) -> list[bool]:
    """Say of each connection to a port whether the system asks for its other end while it is idle."""
    fields = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [each[5].startswith("02") for each in fields if int(each[2].split(":")[1], 16) == port and each[3] == "01"]


def children(pid: int) -> list[int]:
    """Return the processes that one has started: PostgreSQL has one for each connection."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.append(int(path.parent.name))
    return found
