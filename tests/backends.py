"""Redis, PostgreSQL and a Redis Cluster for tests: private ones, started when the first test asks for them.

    def test_keeps_sessions(store_url: str) -> None: ...           # once for each store that processes can share
    def test_waits(redis_server: RedisServer) -> None: ...         # pause() and resume(), stop() and start(), crash()
    def test_is_full(make_redis: MakeRedis) -> None:               # a server of the test's own
        server = make_redis(maxmemory="3mb")

Each listens on a loopback port of its own, keeps its files in a temporary directory, and is gone after the tests, even
if these are killed. What is not installed is skipped, or fails where REQUIRE_SERVERS=1. This module is a pytest plugin.
"""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple, NoReturn, Protocol, Self, TypeVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PATIENCE = 60.0
HOST = "127.0.0.1"
SHARED_STORES = ["sqlite", "postgresql", "redis", "cluster"]
STEADY_PORTS = range(15_000, 32_000)
LAST_LOG_LINES = 15

# Reads "+ pid" and "- pid", and ends who is left when the tests are over, however they ended.
GUARD = """
import os, shutil, signal, sys
running = set()
for sign, pid in map(str.split, sys.stdin):
    (running.add if sign == "+" else running.discard)(int(pid))
for pid in running:
    for number in (signal.SIGQUIT, signal.SIGCONT):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


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

    It is a process in a session of its own, which no Ctrl-C reaches, and knows that the tests are over by the end of
    its standard input.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="otpless-"))
        self.directory.chmod(0o711)  # PostgreSQL's account has to come through
        command = [sys.executable, "-I", "-S", "-c", GUARD, str(self.directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603
        self._names = itertools.count(1)

    def room(self, name: str) -> Path:
        """Make a directory. Its name is short: a Unix socket's path must not be longer than 107 bytes."""
        room = self.directory / f"{name}{next(self._names)}"
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

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


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
        self._paused = [self.pid, *children(self.pid)]
        for pid in self._paused:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on as if nothing had been. Not an error where nothing is paused."""
        paused, self._paused = self._paused, []
        for pid in paused:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def make_ready(self) -> None:
        """Undo what an earlier test did: paused servers go on, stopped ones start."""
        self.resume()
        if self._process is None:
            self.start()


class RedisServer(Server):
    """A Redis server. Options are those of redis.conf, with `_` for `-`; nothing is kept unless they say so."""

    crash_signal = signal.SIGKILL

    def __init__(self, binary: str, guard: Guard, **options: str) -> None:
        super().__init__(guard, guard.room("redis"))
        self.socket = self.room / "s"
        self._binary = binary
        defaults = {
            "bind": HOST,
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self.room),
            "save": '""',
            "appendonly": "no",
            "maxmemory_policy": "noeviction",
            "repl_diskless_sync_delay": "0",  # a replica need not wait for others to join
        }
        self._configuration = self.room / "redis.conf"
        lines = (f"{name.replace('_', '-')} {value}\n" for name, value in {**defaults, **options}.items())
        self._configuration.write_text("".join(lines))

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.socket}"

    def _command(self) -> list[str]:
        return [self._binary, str(self._configuration)]

    def _answers(self) -> bool:
        try:
            return bool(self.execute("PING"))
        except redis.ConnectionError:  # also while it loads its files
            return False

    def execute(self, *words: str | float) -> Any:
        """Send one command on a connection of its own, and return the answer as redis-py gives it."""
        once = Retry(NoBackoff(), 0)
        with redis.Redis(HOST, self.port, retry=once, decode_responses=True, socket_timeout=PATIENCE) as client:
            return client.execute_command(*words)

    def follows_its_primary(self) -> bool:
        return bool(self.execute("INFO", "replication").get("master_link_status") == "up")

    def empty(self) -> None:
        """Be as new: no keys, no scripts."""
        for command in ("FLUSHALL", "SCRIPT FLUSH"):
            self.execute(*command.split())


class MakeRedis(Protocol):
    def __call__(self, *, replica_of: RedisServer | None = None, **options: str) -> RedisServer: ...


class RedisCluster:
    """Three primaries on one machine, each with a third of the slots. `nodes` can be stopped and paused one by one."""

    SIZE = 3
    SLOTS = 16_384

    def __init__(self, binary: str, guard: Guard) -> None:
        self._bus_ports = [steady_port() for _ in range(self.SIZE)]
        self.nodes = [RedisServer(binary, guard, **self._options(port)) for port in self._bus_ports]

    @staticmethod
    def _options(bus_port: int) -> dict[str, str]:
        return {"cluster_enabled": "yes", "cluster_port": str(bus_port), "cluster_node_timeout": "2000"}

    @property
    def url(self) -> str:
        return "redis://" + ",".join(f"{HOST}:{node.port}" for node in self.nodes)

    @property
    def port(self) -> int:
        """The first node's: enough to find the others."""
        return self.nodes[0].port

    def start(self) -> None:
        """Start the nodes that do not run, and return when each of them knows who has which slot."""
        for node in self.nodes:
            node.make_ready()
        for number in range(self.SIZE):
            self._join(number)
        wait_until(self._is_whole, "for the cluster's nodes to find each other")

    def _join(self, number: int) -> None:
        node = self.nodes[number]
        if int(node.execute("CLUSTER INFO")["cluster_slots_assigned"]):
            return  # it was part of it before
        low, high = (self.SLOTS * place // self.SIZE for place in (number, number + 1))
        node.execute("CLUSTER SET-CONFIG-EPOCH", number + 1)
        node.execute("CLUSTER ADDSLOTSRANGE", low, high - 1)
        if number:
            self.nodes[0].execute("CLUSTER MEET", HOST, node.port, self._bus_ports[number])

    def _is_whole(self) -> bool:
        whole = {"cluster_state": "ok", "cluster_slots_ok": str(self.SLOTS), "cluster_size": str(self.SIZE)}
        return all(whole.items() <= node.execute("CLUSTER INFO").items() for node in self.nodes)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def pause(self) -> None:
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        for node in self.nodes:
            node.resume()

    def make_ready(self) -> None:
        """Undo what an earlier test did to the nodes."""
        self.start()

    def empty(self) -> None:
        for node in self.nodes:
            node.empty()


class PostgresServer(Server):
    """A PostgreSQL server with an account `tests` that may do everything and needs no password."""

    USER = "tests"
    SETTINGS: ClassVar[dict[str, str]] = {
        "listen_addresses": HOST,
        "max_connections": "300",
        "shared_buffers": "16MB",
        "fsync": "off",  # outlives a crash of the server, though not of the machine
        "full_page_writes": "off",
        "jit": "off",
    }
    crash_signal = signal.SIGQUIT  # its "immediate" end: no checkpoint, recovery on the next start

    def __init__(self, binaries: Path, guard: Guard) -> None:
        super().__init__(guard, guard.room("postgres"), Account.of_postgres())
        self.data = self.room / "data"
        self._binaries = binaries
        self._names = itertools.count(1)
        if self._account is not None:
            os.chown(self.room, self._account.uid, self._account.gid)
        self._initialise()

    def _initialise(self) -> None:
        command = [str(self._binaries / "initdb"), "--pgdata", str(self.data), "--username", self.USER]
        options = ["--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        with (self.room / "log").open("ab") as log:
            process = spawn([*command, *options], self.room, self._account, log)
        if process.wait(PATIENCE):
            raise RuntimeError((self.room / "log").read_text(errors="replace"))

    @property
    def url(self) -> str:
        return self._url("postgres")

    @property
    def socket_url(self) -> str:
        return f"postgresql://{self.USER}@/postgres?host={self.room}&port={self.port}"

    def _url(self, database: str) -> str:
        return f"postgresql://{self.USER}@{HOST}:{self.port}/{database}"

    def _command(self) -> list[str]:
        settings = {**self.SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.room)}
        options = itertools.chain.from_iterable(("-c", f"{name}={value}") for name, value in settings.items())
        return [str(self._binaries / "postgres"), "-D", str(self.data), *options]

    def _answers(self) -> bool:
        try:
            return self.execute("SELECT 1") == "1"
        except subprocess.CalledProcessError:
            return False

    def execute(self, statement: str, url: str | None = None) -> str:
        """Run SQL in the database of a URL, on a connection of its own; return the rows, with `|` between columns."""
        command = [*self.psql(url), "-c", statement]
        answer = subprocess.run(command, env=environment(), capture_output=True, check=True, text=True)  # noqa: S603
        return answer.stdout.rstrip("\n")

    def psql(self, url: str | None = None) -> list[str]:
        """Return the command that runs SQL: plain rows, `|` between columns, an error ends it."""
        return [str(self._binaries / "psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qAt", "-d", url or self.url]

    @contextmanager
    def database(self) -> Iterator[str]:
        """Create an empty database and give its URL; whoever is still connected in the end is thrown out."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        yield self._url(name)
        self.make_ready()
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


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
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        **as_whom,
    )


def environment() -> dict[str, str]:
    """Ours, without what would lead PostgreSQL's programs elsewhere (PGHOST, PGOPTIONS, …)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def children(pid: int) -> list[int]:
    """Return the processes that one has started: PostgreSQL has one for each connection."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = path.read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid:
                found.append(int(path.parent.name))
    return found


# What is installed


def find_redis() -> str:
    """Return the path of Redis, or of Valkey, which is the same for us."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    return found or do_without("redis-server")


def find_postgres() -> Path:
    """Return the directory of PostgreSQL's programs, the newest of several. Debian keeps them off the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent, *debian] if on_path else debian
    whole = (place for place in places if all((place / name).exists() for name in ("postgres", "initdb", "psql")))
    return next(whole, None) or do_without("postgres", package="postgresql")


def do_without(binary: str, package: str | None = None) -> NoReturn:
    reason = f"{binary} is not installed (Debian: apt-get install {package or binary})"
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(f"REQUIRE_SERVERS=1, but {reason}", pytrace=False)
    NOT_INSTALLED.add(reason)
    pytest.skip(reason)


NOT_INSTALLED: set[str] = set()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for reason in sorted(NOT_INSTALLED):
        terminalreporter.write_line(f"Tests were skipped: {reason}", yellow=True)


# Fixtures

ServerT = TypeVar("ServerT", Server, RedisServer, RedisCluster, PostgresServer)


@pytest.fixture(scope="session")
def server_guard() -> Iterator[Guard]:
    guard = Guard()
    yield guard
    guard.close()


def _running(server: ServerT) -> Iterator[ServerT]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _one_redis_server(server_guard: Guard) -> Iterator[RedisServer]:
    yield from _running(RedisServer(find_redis(), server_guard))


@pytest.fixture(scope="session")
def _one_redis_cluster(server_guard: Guard) -> Iterator[RedisCluster]:
    yield from _running(RedisCluster(find_redis(), server_guard))


@pytest.fixture(scope="session")
def _one_postgres_server(server_guard: Guard) -> Iterator[PostgresServer]:
    yield from _running(PostgresServer(find_postgres(), server_guard))


@pytest.fixture
def redis_server(_one_redis_server: RedisServer) -> RedisServer:
    """The Redis server of all tests: running and empty, whatever the test before did to it."""
    _one_redis_server.make_ready()
    _one_redis_server.empty()
    return _one_redis_server


@pytest.fixture
def redis_cluster(_one_redis_cluster: RedisCluster) -> RedisCluster:
    """The cluster of all tests: whole and empty, whatever the test before did to it."""
    _one_redis_cluster.make_ready()
    _one_redis_cluster.empty()
    return _one_redis_cluster


@pytest.fixture
def postgres_server(_one_postgres_server: PostgresServer) -> PostgresServer:
    """The PostgreSQL server of all tests: running, whatever the test before did to it."""
    _one_postgres_server.make_ready()
    return _one_postgres_server


@pytest.fixture
def make_redis(server_guard: Guard) -> Iterator[MakeRedis]:
    """Start Redis servers with options of redis.conf, or as replicas, for one test."""
    with ExitStack() as stack:

        def make(*, replica_of: RedisServer | None = None, **options: str) -> RedisServer:
            if replica_of is not None:
                options["replicaof"] = f"{HOST} {replica_of.port}"
            server = RedisServer(find_redis(), server_guard, **options)
            stack.callback(server.stop)
            server.start()
            if replica_of is not None:
                wait_until(server.follows_its_primary, "for the replica to have its primary's data")
            return server

        yield make


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database of the test's own, empty."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture(params=SHARED_STORES)
def store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store: one test for each store that several processes can share."""
    return _store_url(request)


@pytest.fixture(params=["memory", *SHARED_STORES])
def any_store_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty store: one test for each store that there is."""
    return _store_url(request)


def _store_url(request: pytest.FixtureRequest) -> str:
    """Only the server that the test needs is started."""
    match request.param:
        case "memory":
            return "memory://"
        case "sqlite":
            return f"sqlite:///{request.getfixturevalue('tmp_path') / 's.db'}"
        case "postgresql":
            return str(request.getfixturevalue("postgres_url"))
        case name:
            return str(request.getfixturevalue({"redis": "redis_server", "cluster": "redis_cluster"}[name]).url)
