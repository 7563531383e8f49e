"""Redis, PostgreSQL and a Redis Cluster for tests: private ones, started when the first test asks for them.

    def test_keeps_sessions(store_url: str) -> None: ...  # once for each store that processes can share
    def test_waits(redis_server: RedisServer) -> None: ...  # pause() and resume(), stop() and start(), crash()
    def test_is_full(make_redis: MakeRedis) -> None:
        server = make_redis(maxmemory="3mb")  # a server of the test's own

Each listens on a loopback port of its own, keeps its files in a temporary directory, and is gone after the tests, even
if these are killed. What is not installed is skipped, or fails where REQUIRE_SERVERS=1. This is a pytest plugin; as a
program it says what is missing.
"""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import redis
from patience import NAMES, be_patient
from processes import HOST, PATIENCE, Account, Guard, Server, clean_environment, spawn, steady_port, wait_until
from redis.backoff import NoBackoff
from redis.retry import Retry

# Ten times as fast as another CREATE DATABASE.
EMPTY_DATABASE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid();
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END
$$;
CREATE SCHEMA public;
"""
SHARED_STORES = ["sqlite", "postgresql", "redis", "cluster"]


class RedisServer(Server):
    """A Redis server. It keeps nothing over a stop, unless its options say so.

    `options` are those of redis.conf, with `_` for `-`; what a test changes there is in force from the next start.
    """

    crash_signal = signal.SIGKILL

    def __init__(self, binary: str, guard: Guard, **options: str) -> None:
        super().__init__(guard, guard.room("redis"))
        self.socket = self.room / "s"
        self._binary = binary
        self.options = {
            "bind": HOST,
            "port": str(self.port),
            "unixsocket": str(self.socket),
            "dir": str(self.room),
            "save": '""',
            "appendonly": "no",
            "maxmemory_policy": "noeviction",
            "repl_diskless_sync_delay": "0",  # a replica need not wait for others to join
            **options,
        }

    def start(self) -> None:
        lines = (f"{name.replace('_', '-')} {value}\n" for name, value in self.options.items())
        self._configuration.write_text("".join(lines))
        super().start()

    @property
    def _configuration(self) -> Path:
        return self.room / "redis.conf"

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

    def has_handed_over(self) -> bool:
        """Whether the system has all of the log. With `everysec` Redis keeps lines back while the disk is busy."""
        return bool(self.execute("INFO", "persistence").get("aof_buffer_length") == 0)

    def empty(self) -> None:
        """Be as new: no keys, no scripts."""
        self.execute("FLUSHALL")
        self.execute("SCRIPT FLUSH")


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
    """A PostgreSQL server with an account `tests` that may do everything and needs no password.

    `options` are those of postgresql.conf; what a test changes there is in force from the next start.
    """

    USER = "tests"
    crash_signal = signal.SIGQUIT  # its "immediate" end: no checkpoint, recovery on the next start

    def __init__(self, binaries: Path, guard: Guard, **options: str) -> None:
        super().__init__(guard, guard.room("postgres"), Account.of_postgres())
        self.data = self.room / "data"
        self._binaries = binaries
        self._names = itertools.count(1)
        self._empty_databases: list[str] = []
        self.options = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self.room),
            "max_connections": "300",
            "shared_buffers": "16MB",
            "fsync": "off",  # what is committed outlives a crash of the server, though not of the machine
            "full_page_writes": "off",
            "jit": "off",
            **options,
        }

    def start(self) -> None:
        if not self.data.exists():
            self._initialise()
        super().start()

    def _initialise(self) -> None:
        if self._account is not None:
            os.chown(self.room, self._account.uid, self._account.gid)
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
        options = itertools.chain.from_iterable(("-c", f"{name}={value}") for name, value in self.options.items())
        return [str(self._binaries / "postgres"), "-D", str(self.data), *options]

    def _answers(self) -> bool:
        try:
            return self.execute("SELECT 1") == "1"
        except subprocess.CalledProcessError:
            return False

    def execute(self, statement: str, url: str | None = None) -> str:
        """Run SQL in the database of a URL, on a connection of its own; return the rows, with `|` between columns."""
        command = [*self.psql(url), "-c", statement]
        answer = subprocess.run(command, env=clean_environment(), capture_output=True, check=True, text=True)  # noqa: S603
        return answer.stdout.rstrip("\n")

    def psql(self, url: str | None = None) -> list[str]:
        """Return the command that runs SQL: plain rows, `|` between columns, an error ends it."""
        return [str(self._binaries / "psql"), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qAt", "-d", url or self.url]

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of an empty database of one's own; whoever is still connected in the end is thrown out."""
        url = self._empty_databases.pop() if self._empty_databases else self._create_database()
        try:
            yield url
        finally:
            self.make_ready()
            self.execute(EMPTY_DATABASE, url)
            self._empty_databases.append(url)

    def _create_database(self) -> str:
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        return self._url(name)


# What is installed


def find_redis() -> str | None:
    """Return the path of Redis, or of Valkey, which is the same for us."""
    return shutil.which("redis-server") or shutil.which("valkey-server")


def find_postgres() -> Path | None:
    """Return the directory of PostgreSQL's programs, the newest of several. Debian keeps them off the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent, *debian] if on_path else debian
    whole = (place for place in places if all((place / name).exists() for name in ("postgres", "initdb", "psql")))
    return next(whole, None)


def find_chromium() -> str | None:
    """Return the path of Chromium, for the tests in a browser: `TEST_CHROMIUM`, or the one on the PATH."""
    return os.environ.get("TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def find_promtool() -> str | None:
    """Return the path of the program that checks Prometheus's rules."""
    return shutil.which("promtool")


NO_REDIS = "redis-server is not installed (Debian: apt-get install redis-server)"
NO_POSTGRES = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
NO_CHROMIUM = "Chromium is not installed (Debian: apt-get install chromium)"
NO_PROMTOOL = "promtool is not installed (Debian: apt-get install --no-install-recommends prometheus)"

FoundT = TypeVar("FoundT", str, Path)


def required(found: FoundT | None, otherwise: str) -> FoundT:
    """Return what was found. Where it was not, skip the test, or fail it if nothing may be missing."""
    if found is not None:
        return found
    if os.environ.get("REQUIRE_SERVERS") == "1":
        pytest.fail(f"REQUIRE_SERVERS=1, but {otherwise}", pytrace=False)
    pytest.skip(otherwise)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in one line of the summary, not in one for each test, that a server is missing."""
    report = yield
    if isinstance(report.longrepr, tuple):
        _, _, message = report.longrepr
        if message.removeprefix("Skipped: ") in (NO_REDIS, NO_POSTGRES, NO_CHROMIUM, NO_PROMTOOL):
            report.longrepr = (__file__, required.__code__.co_firstlineno, message)
    return report


def missing() -> list[str]:
    """Return a sentence for each server that cannot be tested with."""
    found = {
        NO_REDIS: find_redis(),
        NO_POSTGRES: find_postgres(),
        NO_CHROMIUM: find_chromium(),
        NO_PROMTOOL: find_promtool(),
    }
    return [otherwise for otherwise, place in found.items() if place is None]


# Fixtures

ServerT = TypeVar("ServerT", Server, RedisServer, RedisCluster, PostgresServer)


@pytest.fixture(scope="session")
def _patient_stores() -> Iterator[None]:
    """Stores wait for their servers as long as the tests do. A test of a store's patience takes some of it away."""
    for module in NAMES:
        importlib.import_module(module)
    with pytest.MonkeyPatch.context() as patch:
        be_patient(patch.setattr)
        yield


@pytest.fixture(scope="session")
def server_guard(_patient_stores: None) -> Iterator[Guard]:
    with Guard() as guard:
        yield guard


def _running(server: ServerT) -> Iterator[ServerT]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def _one_redis_server(server_guard: Guard) -> Iterator[RedisServer]:
    yield from _running(RedisServer(required(find_redis(), NO_REDIS), server_guard))


@pytest.fixture(scope="session")
def _one_redis_cluster(server_guard: Guard) -> Iterator[RedisCluster]:
    yield from _running(RedisCluster(required(find_redis(), NO_REDIS), server_guard))


@pytest.fixture(scope="session")
def _one_postgres_server(server_guard: Guard) -> Iterator[PostgresServer]:
    yield from _running(PostgresServer(required(find_postgres(), NO_POSTGRES), server_guard))


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
            server = RedisServer(required(find_redis(), NO_REDIS), server_guard, **options)
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


if __name__ == "__main__":
    sys.stdout.writelines(f"{sentence}\n" for sentence in missing())
