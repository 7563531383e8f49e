"""What the refresh protocol promises while the store fails, proven on real applications, stores and networks.

Nobody is signed out, nobody is let in, nothing is deleted, OTPLESS is not asked for what could not be kept; and once
the store is back, everything is as before.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from backends import MakeRedis, PostgresServer, RedisCluster, RedisServer
from conftest import Clock, World, make_app, make_settings
from fastapi.testclient import TestClient
from processes import HOST, wait_until
from proxy import REQUEST, Proxy
from starlette.types import Receive, Scope, Send

from fastapi_otpless_session import (
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    SessionStore,
    open_store,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault
from fastapi_otpless_session.stores import lua, redis_link, sql_link
from fastapi_otpless_session.stores.base import EndReason, Found, Lease, Rotation, SessionRow
from fastapi_otpless_session.testing.store_contract import new_row, refresh_digest, token_digest
from fastapi_otpless_session.vault import Vault

pytestmark = pytest.mark.varied

DAY = 86_400
LEASE = 15
VALIDATION_TTL = 30
DELAY = 0.01
LITTLE_PATIENCE = 0.5
PEOPLE = 30
LOOKS = 150
REFRESH = "get-new-session-token"
REVOKE = "revoke-session"

Step = Literal["find", "create", "take_lease", "commit", "end"]
Moment = Literal["cut_before", "cut_after"]
MOMENTS = [pytest.param("cut_before", id="before_it_arrived"), pytest.param("cut_after", id="after_it_was_done")]


# The application and OTPLESS


def _nothing() -> None:
    pass


class Otpless:
    """The emulator, with a door: `while_refreshing` is what happens, once, while it is asked for a new pair."""

    def __init__(self, settings: EmulatorSettings, clock: Clock) -> None:
        self.emulator = Emulator(settings, clock=clock)
        self.while_refreshing = _nothing

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith(REFRESH):
            happening, self.while_refreshing = self.while_refreshing, _nothing
            happening()
        await self.emulator.app(scope, receive, send)


@dataclass(kw_only=True)
class Worker(World):
    """One worker of an application: middleware, router and routes, and a store of its own on the shared server."""

    store: SessionStore

    @property
    def refreshes(self) -> int:
        return self.emulator.count(REFRESH)

    def row(self, user: dict[str, Any]) -> SessionRow | None:
        row: SessionRow | None = self.call(self.store.get, self.session_id(user))
        return row

    def generation(self, user: dict[str, Any]) -> int:
        row = self.row(user)
        assert row is not None
        return row.generation

    def someone(self, mobile: str) -> tuple[dict[str, Any], str]:
        """Sign somebody in who keeps the token itself; return the SDK's user and the token."""
        user = self.sign_in(channel="header", mobile=mobile)
        return user, self.token(user)

    def post(self, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """Post with a token on the header channel, or with the cookie jar where there is none."""
        return self.client.post(path, json=body, headers={} if token is None else {"X-Session-Token": token})

    def ask(self, token: str, path: str = "/orders") -> httpx.Response:
        """Ask as a client that has a token and no cookie."""
        [answer] = self.together([token], path)
        return answer

    def together(self, tokens: Sequence[str], path: str = "/orders") -> list[httpx.Response]:
        """Ask with all of these tokens at once."""

        async def send() -> list[httpx.Response]:
            return await asyncio.gather(*(self._get(token, path) for token in tokens))

        answers: list[httpx.Response] = self.call(send)
        return answers

    def impatient(self, tokens: Sequence[str], chance: random.Random) -> list[httpx.Response | None]:
        """Ask with all of these tokens at once; every other one leaves at some point: its request is cancelled then."""

        async def send() -> list[httpx.Response | None]:
            requests = [asyncio.create_task(self._get(token)) for token in tokens]
            for request in requests[::2]:
                asyncio.get_running_loop().call_later(chance.uniform(0, 1), request.cancel)
            answers = await asyncio.gather(*requests, return_exceptions=True)
            assert {type(answer) for answer in answers} <= {httpx.Response, asyncio.CancelledError}, answers
            return [answer if isinstance(answer, httpx.Response) else None for answer in answers]

        answers: list[httpx.Response | None] = self.call(send)
        return answers

    async def _get(self, token: str, path: str = "/orders") -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="https://shop.example") as client:
            return await client.get(path, headers={"X-Session-Token": token})


MakeWorker = Callable[..., Worker]


@pytest.fixture
def strict(clock: Clock) -> Otpless:
    """An OTPLESS that takes each refresh token once: whoever asks twice has signed the user out."""
    return Otpless(EmulatorSettings(rotation="strict", one_time_token_reusable=True), clock)


@pytest.fixture
def make_worker(clock: Clock) -> Iterator[MakeWorker]:
    """Start workers. The store's clock is the test's, whichever store it is."""
    with ExitStack() as stack:

        def make(url: str, otpless: Otpless, **values: Any) -> Worker:
            settings = make_settings(store_url=url, **values)
            store = open_store(url, offset=lambda: clock.now - time.time())
            stack.callback(lambda: asyncio.run(store.close()))
            http = httpx.AsyncClient(transport=httpx.ASGITransport(app=otpless.app))
            client = OtplessClient(settings, http=http, monotonic=clock)
            sessions = OtplessSessions(settings, store=store, client=client, clock=clock)
            app = make_app()
            app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
            browser = stack.enter_context(TestClient(app, base_url="https://shop.example"))
            return Worker(clock, otpless.emulator, settings, sessions, app, browser, store=store)

        yield make


def code(answer: httpx.Response) -> str:
    return str(answer.json()["detail"]["code"])


def assert_no_verdict(answer: httpx.Response) -> None:
    """Come again later: nothing is said about the session, and nothing is done to it."""
    assert (answer.status_code, code(answer)) == (503, "session_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert_nothing_new(answer)


def assert_nothing_new(answer: httpx.Response) -> None:
    assert "set-cookie" not in answer.headers
    assert "x-session-token" not in answer.headers


def assert_served(answer: httpx.Response, user: dict[str, Any], **expected: bool) -> None:
    assert answer.status_code == 200, answer.text
    served = answer.json()
    assert served["user"] == user["userId"]
    assert {name: served[name] for name in expected} == expected


# Stores, and what can befall them


class Backend(ABC):
    """A store. Each trouble begins at once, and lasts until `recover`."""

    url: str

    def __init__(self) -> None:
        self._undo = ExitStack()

    @abstractmethod
    def lost(self) -> None:
        """Nothing can be read or written."""

    @abstractmethod
    def full(self) -> None:
        """There is no room for what is to be written."""

    @abstractmethod
    def slow(self) -> None:
        """Answers take long."""

    def recover(self) -> None:
        """All is well again. Harmless where all was."""
        self._undo.close()


class SqliteBackend(Backend):
    """A file whose pages go missing, on a disk that fills up, with somebody who locks it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.url = f"sqlite:///{path}"
        self._path = path

    def lost(self) -> None:
        with self._connected() as db:
            wait_until(lambda: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0, "for readers to go")
            self._undo.callback(self._put_back, self._path.read_bytes())
            self._path.write_bytes(b"")
            self._invalidate_caches(db)

    def full(self) -> None:
        """The system gives no file more room than the write-ahead log has now."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        log = self._path.with_name(f"{self._path.name}-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, limits[1]))

    def slow(self) -> None:
        """Reads are too fast to be interrupted; but lists and writes are answered by a thread, and waited for."""

    def locked(self) -> None:
        """Somebody else writes, and takes long."""
        db = self._undo.enter_context(self._connected())
        db.execute("BEGIN IMMEDIATE")

    def _put_back(self, pages: bytes) -> None:
        with self._path.open("r+b") as file:
            file.write(pages)
        with self._connected() as db:
            self._invalidate_caches(db)

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)) as db:
            yield db

    @staticmethod
    def _invalidate_caches(db: sqlite3.Connection) -> None:
        """Whatever is written makes all connections read their pages anew."""
        [version] = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version = {version}")


class Networked(Backend):
    """A store with servers, behind a network that a test can break."""

    def __init__(self, proxies: Sequence[Proxy]) -> None:
        super().__init__()
        self.proxies = proxies

    @abstractmethod
    def read_only(self) -> None:
        """Servers answer, and refuse to write."""

    @abstractmethod
    def silent(self) -> None:
        """Servers take everything and answer nothing. What they took they do when they are back."""

    @abstractmethod
    def open_connections(self) -> int:
        """How many clients the servers have."""

    @abstractmethod
    def _marker(self, step: Step) -> Callable[[bytes], bool]:
        """Return what knows the request by which a step is taken."""

    def lost(self) -> None:
        self._undo.callback(self._restore)
        for proxy in self.proxies:
            proxy.cut()

    def slow(self) -> None:
        self._undo.callback(self._restore)
        for proxy in self.proxies:
            proxy.delay(DELAY)

    @property
    def opened_connections(self) -> int:
        """How many connections there were so far."""
        return sum(proxy.counts.connections for proxy in self.proxies)

    @contextmanager
    def cut_off(self, step: Step, moment: Moment) -> Iterator[None]:
        """Reset the connection once, when a step's request comes by: before it arrives, or in place of its answer."""
        before, marker = self._cuts(), self._marker(step)
        self._undo.callback(self._restore)
        for proxy in self.proxies:
            cut = proxy.cut_before if moment == "cut_before" else proxy.cut_after
            cut(marker, REQUEST)
        yield
        assert self._cuts() == before + 1, "the step was never taken"
        self.recover()

    def _cuts(self) -> int:
        return sum(proxy.counts.cuts for proxy in self.proxies)

    def _restore(self) -> None:
        for proxy in self.proxies:
            proxy.restore()


NO_ROOM = """
CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
END
$$;
CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON otpless_sessions FOR EACH ROW EXECUTE FUNCTION no_room();
CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON otpless_tokens FOR EACH ROW EXECUTE FUNCTION no_room();
"""


class Statements:
    """Knows from what a client sends to PostgreSQL which statement it runs.

    A connection is sent a statement once, with a name ("Parse"), which is then enough to run it ("Bind"):
    https://www.postgresql.org/docs/current/protocol-message-formats.html
    """

    STEPS: Mapping[Step, bytes] = {
        "find": b"FROM otpless_tokens t JOIN otpless_sessions s",
        "create": b"DO NOTHING",
        "take_lease": b"fence = fence + 1",
        "commit": b"SET generation = s.generation + 1",
        "end": b"SET state = 'ended'",
    }

    def __init__(self) -> None:
        self._texts: dict[bytes, bytes] = {}
        self.wanted: Step | None = None

    def __call__(self, chunk: bytes) -> bool:
        kind, fields = chunk[:1], chunk[5:].split(b"\0", 2)
        if kind == b"P":
            self._texts[fields[0]] = fields[1]
        if kind != b"B" or self.wanted is None:
            return False
        return self.STEPS[self.wanted] in self._texts.get(fields[1], b"")


class PostgresBackend(Networked):
    """A database that becomes read-only, whose disk is full, and whose server freezes."""

    def __init__(self, server: PostgresServer, url: str, proxy: Proxy) -> None:
        super().__init__([proxy])
        self.url = proxy.through(url)
        self._server = server
        self._own_url = url
        self._name = url.rpartition("/")[2]
        self._statements = Statements()
        self._listen()

    def read_only(self) -> None:
        """As after a failover to a standby: connections are new, and none of them may write."""
        self._alter("SET default_transaction_read_only = on")
        self._undo.callback(self._alter, "RESET default_transaction_read_only")

    def full(self) -> None:
        """What PostgreSQL says when a file cannot grow; making a disk full is not for tests."""
        self._server.execute(NO_ROOM, self._own_url)
        self._undo.callback(self._server.execute, "DROP FUNCTION no_room CASCADE", self._own_url)

    def silent(self) -> None:
        self._undo.callback(self._server.resume)
        self._server.pause()

    def crashed(self) -> None:
        """The server is killed; to be started again, it recovers first."""
        self._undo.callback(self._server.start)
        self._server.crash()

    def open_connections(self) -> int:
        mine = f"FROM pg_stat_activity WHERE datname = '{self._name}'"
        return int(self._server.execute(f"SELECT count(*) {mine}"))

    def _marker(self, step: Step) -> Callable[[bytes], bool]:
        self._statements.wanted = step
        return self._statements

    def _restore(self) -> None:
        super()._restore()
        self._listen()

    def _listen(self) -> None:
        """Learn the statements' names, from the first connection on."""
        self._statements.wanted = None
        self.proxies[0].cut_before(self._statements, REQUEST)

    def _alter(self, what: str) -> None:
        mine = f"FROM pg_stat_activity WHERE datname = '{self._name}'"
        self._server.execute(f"ALTER DATABASE {self._name} {what}")
        self._server.execute(f"SELECT pg_terminate_backend(pid) {mine}")


SCRIPTS: Mapping[Step, lua.Script] = {
    "create": lua.CREATE,
    "take_lease": lua.TAKE_LEASE,
    "commit": lua.COMMIT,
    "end": lua.END,
}


class RedisBackend(Networked):
    """Redis servers that are demoted, run out of memory, and freeze."""

    def __init__(self, url: str, servers: Sequence[RedisServer], proxies: Sequence[Proxy]) -> None:
        super().__init__(proxies)
        self.url = url
        self._servers = servers
        for server in servers:
            for script in SCRIPTS.values():  # known by name, so that one request is one step
                server.execute("SCRIPT LOAD", script.text)

    def read_only(self) -> None:
        """As where a failover made it a replica; the primary that it is told of is not there."""
        self._undo.callback(self._each, "REPLICAOF", "NO", "ONE")
        self._each("REPLICAOF", HOST, 1)

    def full(self) -> None:
        self._undo.callback(self._each, "CONFIG SET", "maxmemory", 0)
        self._each("CONFIG SET", "maxmemory", "100kb")

    def silent(self) -> None:
        for server in self._servers:
            self._undo.callback(server.resume)
            server.pause()

    def crashed(self) -> None:
        """Servers are killed; to be started again, they read what they had written to their logs."""
        for server in self._servers:
            self._undo.callback(server.start)
            server.crash()

    def open_connections(self) -> int:
        return sum(len(server.execute("CLIENT LIST")) - 1 for server in self._servers)

    def _marker(self, step: Step) -> Callable[[bytes], bool]:
        script = SCRIPTS.get(step)
        wanted = b":token:" if script is None else script.sha.encode()
        return lambda chunk: wanted in chunk

    def _each(self, *words: str | float) -> None:
        for server in self._servers:
            server.execute(*words)


class ClusterBackend(RedisBackend):
    """A Cluster, whose nodes cannot be demoted one by one: they refuse to write where they have too few replicas."""

    def read_only(self) -> None:
        self._undo.callback(self._each, "CONFIG SET", "min-replicas-to-write", 0)
        self._each("CONFIG SET", "min-replicas-to-write", 1)


@pytest.fixture
def sqlite_backend(tmp_path: Path) -> Iterator[Backend]:
    backend = SqliteBackend(tmp_path / "s.db")
    yield backend
    backend.recover()


@pytest.fixture
def postgresql_backend(postgres_server: PostgresServer, postgres_url: str) -> Iterator[Backend]:
    with Proxy(postgres_server.port) as proxy:
        backend = PostgresBackend(postgres_server, postgres_url, proxy)
        yield backend
        backend.recover()


@pytest.fixture
def redis_backend(redis_server: RedisServer) -> Iterator[Backend]:
    with Proxy(redis_server.port) as proxy:
        backend = RedisBackend(proxy.through(redis_server.url), [redis_server], [proxy])
        yield backend
        backend.recover()


@pytest.fixture
def durable_backend(make_redis: MakeRedis) -> Iterator[Backend]:
    """A Redis that has written down what it says that it has done."""
    server = make_redis(appendonly="yes", appendfsync="always")
    with Proxy(server.port) as proxy:
        backend = RedisBackend(proxy.through(server.url), [server], [proxy])
        yield backend
        backend.recover()


@pytest.fixture(scope="module")
def cluster_proxies(_one_redis_cluster: RedisCluster) -> Iterator[Sequence[Proxy]]:
    """A proxy before each node, which the nodes call their own address: clients of a Cluster go where nodes say."""
    nodes = _one_redis_cluster.nodes
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(node.port)) for node in nodes]
        announce(nodes, [proxy.port for proxy in proxies])
        yield proxies
        announce(nodes, [node.port for node in nodes])


def announce(nodes: Sequence[RedisServer], ports: Sequence[int]) -> None:
    for node, port in zip(nodes, ports, strict=True):
        node.execute("CONFIG SET", "cluster-announce-port", port)
    wait_until(lambda: all(known_ports(node) == set(ports) for node in nodes), "for all nodes to hear of it")


def known_ports(node: RedisServer) -> set[int]:
    return {int(primary[1]) for _start, _end, primary, *_ in node.execute("CLUSTER SLOTS")}


@pytest.fixture
def cluster_backend(redis_cluster: RedisCluster, cluster_proxies: Sequence[Proxy]) -> Iterator[Backend]:
    url = "redis://" + ",".join(f"{HOST}:{proxy.port}" for proxy in cluster_proxies)
    backend = ClusterBackend(url, redis_cluster.nodes, cluster_proxies)
    yield backend
    backend.recover()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Any:
    """One of the stores, by its name."""
    return request.getfixturevalue(f"{request.param}_backend")


@dataclass(frozen=True)
class Trouble:
    """A store, and something that can befall it."""

    backend: Backend
    begin: Callable[[], None]

    @property
    def url(self) -> str:
        return self.backend.url

    def end(self) -> None:
        self.backend.recover()


@pytest.fixture
def trouble(request: pytest.FixtureRequest) -> Trouble:
    """A store's name, and the name of its trouble."""
    name, what = request.param.split("-")
    backend = request.getfixturevalue(f"{name}_backend")
    return Trouble(backend, getattr(backend, what))


LOST = ["sqlite-lost", "postgresql-lost", "redis-lost", "cluster-lost"]
UNWRITABLE = [
    *("sqlite-full", "postgresql-full", "redis-full", "cluster-full"),
    *("postgresql-read_only", "redis-read_only", "cluster-read_only"),
]
CRASHED = ["postgresql-crashed", "durable-crashed"]
CANNOT_END = [*LOST, *(each for each in UNWRITABLE if each not in {"redis-full", "cluster-full"})]
SILENT = ["postgresql-silent", "redis-silent", "cluster-silent"]
NETWORKED = ["postgresql", "redis", "cluster"]


# A store that is lost


@pytest.mark.parametrize("trouble", LOST, indirect=True)
def test_without_the_store_only_who_was_just_seen_is_served_and_afterwards_all_is_as_before(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    seen = worker.sign_in()
    worker.get("/orders")
    unseen, unseen_token = other.someone("922")
    _, ended_token = other.someone("933")
    assert other.post("/auth/logout", token=ended_token).status_code == 204
    stranger = strict.emulator.sign_in(mobile="944")
    forged = strict.emulator.forge({"sub": unseen["sessionInfo"]["sessionId"], "exp": worker.clock.now + 60})
    rows = [worker.row(user) for user in (seen, unseen)]

    trouble.begin()
    assert_served(worker.get("/orders"), seen, stale=True, refreshed=False)
    for token in (unseen_token, ended_token, worker.token(stranger), forged):
        assert_no_verdict(worker.ask(token))
        assert worker.ask(token, "/maybe").json() == {"user": None}
    for path in ("/fresh", "/auth/sessions"):
        assert_no_verdict(worker.get(path))
    assert_no_verdict(worker.post("/auth/logout-all"))
    assert_no_verdict(worker.post("/auth/login", stranger))
    assert worker.get("/public").status_code == 200

    trouble.end()
    assert_served(worker.get("/orders"), seen, stale=False, refreshed=False)
    assert_served(worker.ask(unseen_token), unseen, stale=False, refreshed=False)
    assert_served(worker.ask(worker.token(stranger)), stranger)
    assert code(worker.ask(ended_token)) == "session_revoked"
    assert code(worker.ask(forged)) == "session_invalid"
    assert [worker.row(user) for user in (seen, unseen)] == rows
    assert worker.refreshes == 0


@pytest.mark.parametrize("trouble", LOST, indirect=True)
def test_a_token_that_expires_while_the_store_is_lost_is_not_served_any_longer(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker, clock: Clock
) -> None:
    worker = make_worker(trouble.url, strict, refresh_ahead=0)
    clock.advance(0.7)
    user = worker.sign_in(session_lifetime=1)  # tokens end with whole seconds
    assert_served(worker.get("/orders"), user, stale=False)
    trouble.begin()
    wait_until(lambda: worker.get("/orders").status_code != 200, "for the token to expire")
    assert_no_verdict(worker.get("/orders"))
    trouble.end()
    clock.advance(1)
    assert_served(worker.get("/orders"), user, refreshed=True, stale=False)
    assert worker.refreshes == 1


@pytest.mark.parametrize("trouble", [*LOST, *CRASHED, *UNWRITABLE], indirect=True)
def test_an_expired_session_waits_for_the_store_and_is_refreshed_once_when_it_is_back(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(trouble.url, strict)
    user = worker.sign_in()
    worker.clock.advance(DAY + 1)
    row = worker.row(user)
    trouble.begin()
    for _ in range(3):
        assert_no_verdict(worker.get("/orders"))
    assert worker.get("/maybe").json() == {"user": None}
    assert worker.refreshes == 0
    trouble.end()
    there = worker.row(user)
    assert row is not None
    assert there is not None
    # That somebody was here is noted behind the last request, as soon as it can be.
    assert replace(there, last_seen_at=row.last_seen_at) == row
    assert_served(worker.get("/orders"), user, refreshed=True, stale=False)
    assert_served(worker.get("/orders"), user, refreshed=False, stale=False)
    assert worker.refreshes == 1


@pytest.mark.parametrize("trouble", [*LOST, *CRASHED, *UNWRITABLE], indirect=True)
def test_a_pair_that_the_store_cannot_take_is_kept_for_it_and_written_once(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    strict.while_refreshing = trouble.begin
    served = worker.ask(token)
    assert_served(served, user, refreshed=False, stale=False)
    assert_nothing_new(served)
    trouble.end()
    assert_one_generation_more(worker, user)
    assert_one_refresh(other, user, token)


def assert_one_generation_more(worker: Worker, user: dict[str, Any]) -> None:
    """The new pair gets into the store, without anybody asking for it, and does so once."""
    wait_until(lambda: worker.generation(user) > 1, "for the commit behind the request")
    assert worker.generation(user) == 2


def assert_one_refresh(worker: Worker, user: dict[str, Any], token: str) -> None:
    """The one pair is handed out, and its refresh token is the one that works next."""
    swapped = worker.ask(token)
    assert_served(swapped, user, refreshed=True, stale=False)
    assert worker.generation(user) == 2
    assert worker.refreshes == 1
    worker.clock.advance(DAY + 1)
    assert_served(worker.ask(swapped.headers["x-session-token"]), user, refreshed=True)
    assert worker.refreshes == 2


def someone_whose_pair_is_put_off(worker: Worker, trouble: Trouble, strict: Otpless) -> tuple[dict[str, Any], str]:
    """Have a session refreshed, and its new pair wait for the store. Return the SDK's user and the old token."""
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    strict.while_refreshing = trouble.begin
    assert_served(worker.ask(token), user, refreshed=False)
    return user, token


def assert_refreshed_anew(worker: Worker, user: dict[str, Any], token: str) -> None:
    """The pair that waited is not handed out: it is used to get another."""
    assert_served(worker.ask(token), user, refreshed=True, stale=False)
    assert worker.refreshes == 2
    assert worker.generation(user) == 3


@pytest.mark.parametrize("trouble", [*LOST, *UNWRITABLE], indirect=True)
def test_a_pair_that_expired_while_it_waited_for_the_store_is_not_served(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(trouble.url, strict)
    user, token = someone_whose_pair_is_put_off(worker, trouble, strict)
    worker.clock.advance(DAY + 1)
    trouble.end()
    assert_refreshed_anew(worker, user, token)


@pytest.mark.parametrize("trouble", LOST, indirect=True)
def test_a_pair_that_expired_and_is_kept_while_somebody_looks_is_not_served_either(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request reads the row, and before it can refresh it the commit that was put off comes through."""
    worker = make_worker(trouble.url, strict)
    user, token = someone_whose_pair_is_put_off(worker, trouble, strict)
    is_kept, store_find, store_commit = asyncio.Event(), worker.store.find, worker.store.commit

    async def find(digest: bytes) -> Found | None:
        found = await store_find(digest)
        await is_kept.wait()
        return found

    async def commit(lease: Lease, rotation: Rotation) -> SessionRow | None:
        row = await store_commit(lease, rotation)
        is_kept.set()
        return row

    monkeypatch.setattr(worker.store, "find", find)
    monkeypatch.setattr(worker.store, "commit", commit)
    worker.clock.advance(DAY + 1)
    trouble.end()
    assert_refreshed_anew(worker, user, token)


# A store that cannot be written


@pytest.mark.parametrize("trouble", UNWRITABLE, indirect=True)
def test_where_nothing_can_be_written_sessions_go_on_and_nobody_can_sign_in(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    seen = worker.sign_in()
    unseen, unseen_token = other.someone("922")
    newcomer = strict.emulator.sign_in(mobile="933")
    rows = [worker.row(user) for user in (seen, unseen)]

    trouble.begin()
    assert_served(worker.get("/orders"), seen, stale=False, refreshed=False)
    assert_served(worker.ask(unseen_token), unseen, stale=False, refreshed=False)
    worker.clock.advance(2 * VALIDATION_TTL + 1)  # OTPLESS is asked, and its answer cannot be noted
    assert_served(worker.get("/orders"), seen, stale=False, refreshed=False)
    assert worker.get("/fresh").status_code == 200
    assert [each["id"] for each in worker.get("/auth/sessions").json()] == [worker.session_id(seen)]
    assert_no_verdict(worker.post("/auth/login", newcomer))

    trouble.end()
    assert [worker.row(user) for user in (seen, unseen)] == rows
    assert worker.row(newcomer) is None
    assert worker.post("/auth/login", newcomer).status_code == 200
    assert_served(worker.get("/orders"), newcomer, stale=False, refreshed=False)
    assert_served(other.ask(unseen_token), unseen, stale=False, refreshed=False)
    assert worker.refreshes == 0


# Signing out


@pytest.mark.parametrize("trouble", CANNOT_END, indirect=True)
def test_a_sign_out_that_the_store_cannot_take_is_told_to_otpless_and_holds(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    user = worker.sign_in()
    bystander, bystanders_token = other.someone("922")
    token = worker.token(user)
    trouble.begin()
    signed_out = worker.post("/auth/logout")
    assert signed_out.status_code == 204
    assert "Max-Age=0" in signed_out.headers["set-cookie"]
    assert strict.emulator.session(worker.session_id(user)).revoked
    assert code(worker.ask(token)) == "session_revoked"
    trouble.end()
    assert code(worker.ask(token)) == "session_revoked"
    worker.clock.advance(2 * VALIDATION_TTL + 1)
    assert other.ask(token).status_code == 401
    assert_served(other.ask(bystanders_token), bystander, stale=False)


@pytest.mark.parametrize("trouble", CANNOT_END, indirect=True)
def test_a_sign_out_that_neither_the_store_nor_otpless_takes_is_503_and_clears_nothing(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    user = worker.sign_in()
    worker.get("/orders")
    strict.emulator.add_fault(Fault("status", path=REVOKE))
    trouble.begin()
    assert_no_verdict(worker.post("/auth/logout"))
    trouble.end()
    assert_served(worker.get("/orders"), user, stale=False, refreshed=False)
    strict.emulator.clear_faults()
    assert worker.post("/auth/logout").status_code == 204
    assert code(other.ask(worker.token(user))) == "session_revoked"
    assert worker.refreshes == 0


@pytest.mark.parametrize("trouble", LOST, indirect=True)
def test_a_sign_out_with_a_dead_token_waits_for_the_store_because_its_refresh_token_lives(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(trouble.url, strict)
    user = worker.sign_in()
    worker.get("/orders")
    strict.emulator.expire(worker.session_id(user))
    trouble.begin()
    assert_no_verdict(worker.post("/auth/logout"))
    trouble.end()
    assert worker.post("/auth/logout").status_code == 204
    assert strict.emulator.session(worker.session_id(user)).revoked


@pytest.mark.parametrize("trouble", ["redis-full", "cluster-full"], indirect=True)
def test_a_sign_out_takes_no_room_in_a_full_redis_and_holds_for_every_worker_at_once(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    _, token = worker.someone("911")
    strict.emulator.add_fault(Fault("status", path=REVOKE))
    trouble.begin()
    assert worker.post("/auth/logout", token=token).status_code == 204
    assert code(other.ask(token)) == "session_revoked"


# Connections that are gone when the store is back


@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_connections_that_were_reset_while_nobody_used_them_cost_nothing(
    backend: Networked, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(backend.url, strict), make_worker(backend.url, strict)
    tokens = [worker.someone(f"91{number}")[1] for number in range(10)]
    backend.slow()
    worker.together(tokens)  # on a connection each
    backend.lost()
    backend.recover()
    for token in tokens:
        assert worker.post("/auth/logout", token=token).status_code == 204
    assert [code(answer) for answer in other.together(tokens)] == ["session_revoked"] * len(tokens)


# A connection that is cut off in the middle of a transition


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_lease_that_was_cut_off_costs_a_503_and_no_refresh(
    backend: Networked, moment: Moment, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(backend.url, strict)
    user = worker.sign_in()
    worker.clock.advance(DAY + 1)
    with backend.cut_off("take_lease", moment):
        assert_no_verdict(worker.get("/orders"))
    assert worker.refreshes == 0
    # If it was taken, nobody knows that it was; and the store's clock had gone on while it was.
    worker.clock.advance(LEASE + 1)
    assert_served(worker.get("/orders"), user, refreshed=True, stale=False)
    assert worker.refreshes == 1


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_commit_that_was_cut_off_is_tried_again_and_happens_once(
    backend: Networked, moment: Moment, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(backend.url, strict), make_worker(backend.url, strict)
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    with backend.cut_off("commit", moment):
        served = worker.ask(token)
    assert_served(served, user, refreshed=False, stale=False)
    assert_nothing_new(served)
    assert_one_generation_more(worker, user)
    assert_one_refresh(other, user, token)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_sign_out_that_was_cut_off_holds(
    backend: Networked, moment: Moment, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(backend.url, strict), make_worker(backend.url, strict)
    user = worker.sign_in()
    token = worker.token(user)
    with backend.cut_off("end", moment):
        assert worker.post("/auth/logout").status_code == 204
    assert strict.emulator.session(worker.session_id(user)).revoked
    assert code(worker.ask(token)) == "session_revoked"
    worker.clock.advance(2 * VALIDATION_TTL + 1)
    assert other.ask(token).status_code == 401


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_sign_in_that_was_cut_off_can_be_sent_again(
    backend: Networked, moment: Moment, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(backend.url, strict)
    user = strict.emulator.sign_in()
    with backend.cut_off("create", moment):
        assert_no_verdict(worker.post("/auth/login", user))
    assert worker.get("/orders").status_code == 401  # the browser was given nothing
    assert worker.post("/auth/login", user).status_code == 200
    assert_served(worker.get("/orders"), user, refreshed=False, stale=False)
    assert [each["id"] for each in worker.get("/auth/sessions").json()] == [worker.session_id(user)]
    assert worker.refreshes == 0


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_look_that_was_cut_off_is_taken_again_without_anybody_noticing(
    backend: Networked, moment: Moment, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(backend.url, strict)
    user = worker.sign_in()
    worker.get("/orders")
    with backend.cut_off("find", moment):
        assert_served(worker.get("/orders"), user, refreshed=False, stale=False)


# A store that is slow, or does not answer


@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_slow_store_makes_requests_slow_and_nothing_else(
    backend: Networked, strict: Otpless, make_worker: MakeWorker
) -> None:
    workers = [make_worker(backend.url, strict, refresh_timeout=30) for _ in range(2)]
    user, token = workers[0].someone("922")
    workers[0].clock.advance(DAY + 1)
    backend.slow()
    with ThreadPoolExecutor(len(workers)) as threads:
        crowds = list(threads.map(lambda worker: worker.together([token] * 8), workers))
    answers = [answer for crowd in crowds for answer in crowd]
    for answer in answers:
        assert_served(answer, user, refreshed=True, stale=False)
    assert len({answer.headers["x-session-token"] for answer in answers}) == 1
    assert workers[0].refreshes == 1


@pytest.mark.parametrize("trouble", SILENT, indirect=True)
def test_a_store_that_falls_silent_is_waited_for_briefly_and_what_it_had_taken_is_done_once(
    trouble: Trouble, strict: Otpless, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, other = make_worker(trouble.url, strict), make_worker(trouble.url, strict)
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    seen, seen_token = other.someone("922")
    unseen, unseen_token = worker.someone("933")
    other.together([seen_token])

    def fall_silent() -> None:
        trouble.begin()
        for link in (sql_link, redis_link):
            monkeypatch.setattr(link, "PATIENCE", LITTLE_PATIENCE)

    strict.while_refreshing = fall_silent
    with ThreadPoolExecutor(1) as thread:
        refreshing = thread.submit(worker.together, [token])
        wait_until(lambda: worker.refreshes == 1, "for the refresh to begin")
        stale, no_verdict = other.together([seen_token, unseen_token])
        [served] = refreshing.result()
    assert_served(served, user, refreshed=False, stale=False)
    assert_nothing_new(served)
    assert_served(stale, seen, refreshed=False, stale=True)
    assert_no_verdict(no_verdict)
    monkeypatch.undo()
    trouble.end()
    assert_one_generation_more(worker, user)
    assert_served(other.ask(unseen_token), unseen, stale=False)
    assert_one_refresh(other, user, token)


def test_a_file_that_somebody_else_locks_is_waited_for_briefly_and_written_when_it_is_free(
    sqlite_backend: SqliteBackend, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker, other = make_worker(sqlite_backend.url, strict), make_worker(sqlite_backend.url, strict)
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    seen, seen_token = other.someone("922")
    strict.while_refreshing = sqlite_backend.locked
    with ThreadPoolExecutor(1) as thread:
        refreshing = thread.submit(worker.together, [token])
        wait_until(lambda: worker.refreshes == 1, "for the refresh to begin")
        assert_served(other.ask(seen_token), seen, stale=False)  # readers do not wait for writers
        [served] = refreshing.result()
    assert_served(served, user, refreshed=False, stale=False)
    assert_nothing_new(served)
    sqlite_backend.recover()
    assert_one_generation_more(worker, user)
    assert_one_refresh(other, user, token)


# A Redis that throws rows away, or loses the last writes


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_what_redis_evicted_is_unknown_and_everybody_else_stays_signed_in(
    policy: str, strict: Otpless, make_worker: MakeWorker, make_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis(maxmemory_policy=policy)
    worker = make_worker(server.url, strict, accept_unknown_tokens=False)
    assert f"maxmemory-policy {policy}" in caplog.text
    people = {token: user for user, token in (worker.someone(f"91{number}") for number in range(PEOPLE))}
    evict_some(server)
    whole = [token for token in people if is_whole(server, worker, people[token])]
    answers = worker.together([*people])
    for token, answer in zip(people, answers, strict=True):
        if token in whole:
            assert_served(answer, people[token], stale=False)
        else:
            assert (answer.status_code, code(answer)) == (401, "session_invalid")
            assert_nothing_new(answer)
    assert 0 < len(whole) < PEOPLE
    for token in people:  # lists have lost entries too
        listed = worker.ask(token, "/auth/sessions")
        assert listed.status_code == (200 if token in whole else 401)
    lost = next(token for token in people if token not in whole)
    assert worker.post("/auth/logout", token=lost).status_code == 204
    newcomer, token = worker.someone("922")
    assert_served(worker.ask(token), newcomer)


def evict_some(server: RedisServer) -> None:
    """Let memory become scarce until rows are gone, and then no scarcer."""
    memory = int(server.execute("INFO", "memory")["used_memory"])
    while len(server.execute("KEYS", "otpless:session:*")) > PEOPLE * 2 / 3:
        memory -= 4_000
        server.execute("CONFIG SET", "maxmemory", memory)
    server.execute("CONFIG SET", "maxmemory", 0)


def is_whole(server: RedisServer, worker: Worker, user: dict[str, Any]) -> bool:
    """Whether Redis still has a session's row and the index entry of its token."""
    digest = Vault(worker.settings).digest(worker.token(user)).hex()
    keys = (f"otpless:session:{worker.session_id(user)}", f"otpless:token:{digest}")
    return bool(server.execute("EXISTS", *keys) == len(keys))


def test_a_node_of_a_cluster_that_is_away_costs_nobody_a_new_pair(
    cluster_backend: ClusterBackend, strict: Otpless, make_worker: MakeWorker
) -> None:
    """Who is refreshed meanwhile goes on with the token before, until the new one would be found."""
    worker = make_worker(cluster_backend.url, strict)
    people = [worker.someone(f"+9198765432{number:02}") for number in range(PEOPLE)]
    worker.clock.advance(DAY + 1)
    away = cluster_backend.proxies[0]
    away.cut()
    answers = {token: worker.ask(token) for _, token in people}
    served = {token: answer for token, answer in answers.items() if answer.status_code == 200}
    have = {token: answer.headers.get("x-session-token", token) for token, answer in served.items()}
    assert {worker.ask(token).status_code for token in have.values()} == {200}
    away.restore()
    another = make_worker(cluster_backend.url, strict)  # the first has nothing in its memory that is needed
    users = {token: user for user, token in people}
    for old, newest in have.items():
        answer = another.ask(newest)
        assert_served(answer, users[old], refreshed=newest == old)
        assert answer.headers.get("x-session-token", newest) != old
    assert worker.refreshes == len(served)
    assert any(old == newest for old, newest in have.items())


class Failover:
    """A primary, and a replica that takes its place and has not heard of the last writes."""

    def __init__(self, make_redis: MakeRedis, proxy: Callable[[int], Proxy]) -> None:
        self.primary = make_redis()
        self.replica = make_redis(replica_of=self.primary)
        self._proxy = proxy(self.primary.port)
        self.url = self._proxy.through(self.primary.url)

    def hear_no_more(self) -> None:
        """Whatever is written from now on does not reach the replica."""
        wait_until(lambda: self._offset(self.replica) == self._offset(self.primary), "for the replica to catch up")
        self.replica.execute("REPLICAOF", "NO", "ONE")

    def take_over(self) -> None:
        """The primary dies, and its address leads to the replica."""
        self.primary.crash()
        self._proxy.cut()
        self._lead_to_replica()
        self._proxy.restore()

    def demote(self) -> None:
        """The primary lives on as a replica of its successor, connections and all; new ones are led to that."""
        self.hear_no_more()
        self.primary.execute("REPLICAOF", HOST, self.replica.port)
        self._lead_to_replica()

    def _lead_to_replica(self) -> None:
        self._proxy._target = (HOST, self.replica.port)

    @staticmethod
    def _offset(server: RedisServer) -> int:
        return int(server.execute("INFO", "replication")["master_repl_offset"])


@pytest.fixture
def failover(make_redis: MakeRedis) -> Iterator[Failover]:
    with ExitStack() as stack:
        yield Failover(make_redis, lambda port: stack.enter_context(Proxy(port)))


@pytest.mark.parametrize("rotation", ["fixed", "rotating"])
def test_a_refresh_that_a_failover_lost_is_made_again_with_the_older_pair(
    rotation: Any, failover: Failover, clock: Clock, make_worker: MakeWorker
) -> None:
    worker = make_worker(failover.url, Otpless(EmulatorSettings(rotation=rotation), clock))
    user, token = worker.someone("911")
    bystander, bystanders_token = worker.someone("922")
    clock.advance(DAY + 1)
    failover.hear_no_more()
    assert_served(worker.ask(token), user, refreshed=True)
    failover.take_over()
    assert worker.generation(user) == 1
    assert_served(worker.ask(token), user, refreshed=True, stale=False)
    assert worker.generation(user) == 2
    assert_served(worker.ask(bystanders_token), bystander, refreshed=True, stale=False)
    assert worker.refreshes == 3


def test_a_refresh_that_a_failover_lost_signs_one_session_out_where_refresh_tokens_work_once(
    failover: Failover, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(failover.url, strict)
    _, token = worker.someone("911")
    bystander, bystanders_token = worker.someone("922")
    worker.clock.advance(DAY + 1)
    failover.hear_no_more()
    swapped = worker.ask(token).headers["x-session-token"]
    failover.take_over()
    for late in (token, swapped):
        answer = worker.ask(late)
        assert (answer.status_code, code(answer)) == (401, "session_expired")
        assert_nothing_new(answer)
    assert_served(worker.ask(bystanders_token), bystander, refreshed=True, stale=False)


def test_a_token_whose_refresh_a_failover_lost_is_as_good_as_otpless_says(
    failover: Failover, clock: Clock, make_worker: MakeWorker
) -> None:
    worker = make_worker(failover.url, Otpless(EmulatorSettings(rotation="rotating"), clock))
    user, token = worker.someone("911")
    clock.advance(DAY + 1)
    failover.hear_no_more()
    swapped = worker.ask(token).headers["x-session-token"]
    failover.take_over()
    assert_served(worker.ask(swapped), user, refreshed=False, stale=False)
    worker.client.cookies.set("__Host-otpless_session", swapped, domain="shop.example")
    assert code(worker.get("/orders")) == "session_invalid"  # cookies are admitted on the store's word only


def test_a_sign_out_that_a_failover_lost_holds_at_otpless(
    failover: Failover, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(failover.url, strict)
    _, token = worker.someone("911")
    failover.hear_no_more()
    assert worker.post("/auth/logout", token=token).status_code == 204
    failover.take_over()
    worker.clock.advance(2 * VALIDATION_TTL + 1)
    assert worker.ask(token).status_code == 401


def test_a_primary_that_was_demoted_is_left_for_its_successor(
    failover: Failover, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(failover.url, strict)
    user, token = worker.someone("911")
    worker.clock.advance(DAY + 1)
    failover.demote()
    answers = [worker.ask(token) for _ in range(3)]
    assert_served(answers[-1], user, stale=False)
    assert worker.refreshes == 1


# Calls that are cancelled while their answers are on the way


class Crowd:
    """Rows of many users in one store, and looks at them that are cancelled at any point."""

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self.names = [f"s-{number}" for number in range(PEOPLE)]
        self._random = random.Random(20_300_317)  # noqa: S311 - the same each time

    async def sign_in(self) -> None:
        now = await self.store.now()
        for name in self.names:
            row = new_row(now, name, user_id=f"user of {name}")
            assert await self.store.create(row, token_digest(name), refresh_digest(name)) is None

    async def find(self, name: str) -> str:
        found = await self.store.find(token_digest(name))
        assert found is not None
        return f"{found.row.session_id} {found.row.user_id}"

    async def get(self, name: str) -> str:
        row = await self.store.get(name)
        assert row is not None
        return f"{row.session_id} {row.user_id}"

    async def list(self, name: str) -> str:
        [row] = await self.store.list_user(f"user of {name}")
        return f"{row.session_id} {row.user_id}"

    async def end_again(self, name: str) -> str:
        """A write that changes nothing, and answers with the row."""
        row = await self.store.end(new_row(0.0, name), EndReason.REVOKED, revoke_in=None, fence=-1)
        return f"{row.session_id} {row.user_id}"

    async def look(self, *, impatience: float | None = None) -> tuple[int, int]:
        """Look many times at once, every other time for up to `impatience` seconds only.

        Return how many looks came through, and how many were cancelled.
        """
        asked = [self._random.choice(self.names) for _ in range(LOOKS)]
        looks = (self.find, self.get, self.list, self.end_again)
        tasks = [asyncio.create_task(self._random.choice(looks)(name)) for name in asked]
        for task in () if impatience is None else tasks[::2]:
            asyncio.get_running_loop().call_later(self._random.uniform(0, impatience or 0), task.cancel)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        whole = [(name, answer) for name, answer in zip(asked, answers, strict=True) if isinstance(answer, str)]
        assert [answer for _, answer in whole] == [f"{name} user of {name}" for name, _ in whole]
        cancelled = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
        assert len(whole) + cancelled == LOOKS, answers
        return len(whole), cancelled


@pytest.mark.parametrize("backend", ["sqlite", *NETWORKED], indirect=True)
async def test_a_cancelled_look_never_gives_one_user_anothers_row(backend: Backend) -> None:
    store = open_store(backend.url)
    crowd, outcomes = Crowd(store), []
    await crowd.sign_in()
    backend.slow()
    for impatience in (0.01, 0.1, 0.5):
        outcomes.append(await crowd.look(impatience=impatience))
        assert await crowd.look() == (LOOKS, 0)
    assert all(sum(each) > 0 for each in zip(*outcomes, strict=True)), outcomes
    await store.close()


@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
async def test_cancelled_calls_leave_no_connection_behind(backend: Networked) -> None:
    before = backend.open_connections()
    store = open_store(backend.url)
    crowd = Crowd(store)
    await crowd.sign_in()
    backend.slow()
    for _ in range(3):
        await crowd.look(impatience=0.2)
    backend.recover()
    assert await crowd.look() == (LOOKS, 0)
    opened = backend.opened_connections
    for name in crowd.names:
        await crowd.find(name)
    assert backend.opened_connections == opened
    await store.close()
    wait_until(lambda: backend.open_connections() == before, "for the servers to see the connections closed")


@pytest.mark.parametrize("backend", NETWORKED, indirect=True)
def test_a_client_that_leaves_never_gives_its_answer_to_another(
    backend: Networked, strict: Otpless, make_worker: MakeWorker
) -> None:
    worker = make_worker(backend.url, strict)
    people = [worker.someone(f"91{number}") for number in range(20)]
    backend.slow()
    asked = people * 8
    answers = worker.impatient([token for _, token in asked], random.Random(7))  # noqa: S311 - the same each time
    whole = [(user, answer) for (user, _), answer in zip(asked, answers, strict=True) if answer is not None]
    for user, answer in whole:
        assert_served(answer, user, stale=False)
    assert 0 < len(whole) < len(asked)
    for (user, _), answer in zip(people, worker.together([token for _, token in people]), strict=True):
        assert_served(answer, user, stale=False)
