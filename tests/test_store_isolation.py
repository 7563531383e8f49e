"""A row that is damaged, or has another's values, is one unknown session: no fault, and nobody else notices.

Damage is done by hand, past the package, as a disk, an operator or a thief with the database would do it.
"""

# ruff: noqa: S608 - what is put into statements is the tests' own

from __future__ import annotations

import asyncio
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import redis
from backends import PostgresServer, RedisCluster, RedisServer
from conftest import Clock, World, make_settings
from processes import HOST, wait_until

from fastapi_otpless_session import open_store
from fastapi_otpless_session.emulator import EmulatorSettings
from fastapi_otpless_session.stores.base import EndReason, SessionRow, SessionStore
from fastapi_otpless_session.stores.lua import KEPT_LONGER
from fastapi_otpless_session.testing.store_contract import (
    LIFE,
    SLACK,
    ContractClock,
    Subject,
    new_row,
    refresh_digest,
    token_digest,
)
from fastapi_otpless_session.vault import Vault

pytestmark = pytest.mark.varied

STRICT = EmulatorSettings(rotation="strict")
REFRESH = "get-new-session-token"
DEEP = "[" * 100_000


class WallClock(Clock):
    """The time that servers have too."""

    def __call__(self) -> float:
        return time.time()


@pytest.fixture
def clock() -> Clock:
    return WallClock()


# What is done to stores by hand


class Surgeon(ABC):
    """Reads and changes what a store holds of a session."""

    url: str

    @abstractmethod
    def read(self, session_id: str, column: str) -> bytes:
        """Return a sealed value."""

    @abstractmethod
    def write(self, session_id: str, column: str, value: bytes) -> None:
        """Put a sealed value into a row."""

    @abstractmethod
    def describe(self, session_id: str, summary: str) -> None:
        """Say something else of a session's device."""

    @abstractmethod
    def damage(self, how: str, session_id: str) -> None:
        """Change a row in a way that only this kind of store knows."""

    @abstractmethod
    def damage_entry(self, how: str, digest: bytes) -> None:
        """Change a token's entry in the index."""

    @abstractmethod
    def lead(self, digest: bytes, session_id: str) -> None:
        """Let a token's entry in the index lead to another session."""

    def sealed(self, session_id: str) -> list[bytes]:
        return [self.read(session_id, column) for column in ("session_token", "refresh_token")]


class SqliteSurgeon(Surgeon):
    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def read(self, session_id: str, column: str) -> bytes:
        [[value]] = self._execute(f"SELECT {column} FROM sessions WHERE session_id = ?", session_id)
        return bytes(value)

    def write(self, session_id: str, column: str, value: bytes) -> None:
        self._execute(f"UPDATE sessions SET {column} = ? WHERE session_id = ?", value, session_id)

    def describe(self, session_id: str, summary: str) -> None:
        self._execute("UPDATE sessions SET summary = ? WHERE session_id = ?", summary, session_id)

    def damage(self, how: str, session_id: str) -> None:
        self._execute(f"UPDATE sessions SET {how} WHERE session_id = ?", session_id)

    def damage_entry(self, how: str, digest: bytes) -> None:
        self._execute(f"UPDATE tokens SET {how} WHERE digest = ?", digest)

    def lead(self, digest: bytes, session_id: str) -> None:
        self._execute("UPDATE tokens SET session_id = ? WHERE digest = ?", session_id, digest)

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as db:
            return db.execute(statement, values).fetchall()


class PostgresSurgeon(Surgeon):
    def __init__(self, server: PostgresServer, url: str) -> None:
        self.url = url
        self._server = server

    def read(self, session_id: str, column: str) -> bytes:
        column = f"encode({column}, 'hex')"
        return bytes.fromhex(self._execute(f"SELECT {column} FROM otpless_sessions WHERE session_id = '{session_id}'"))

    def write(self, session_id: str, column: str, value: bytes) -> None:
        self.damage(rf"{column} = '\x{value.hex()}'", session_id)

    def describe(self, session_id: str, summary: str) -> None:
        self.damage(f"summary = '{summary}'", session_id)

    def damage(self, how: str, session_id: str) -> None:
        self._execute(f"UPDATE otpless_sessions SET {how} WHERE session_id = '{session_id}'")

    def damage_entry(self, how: str, digest: bytes) -> None:
        self._execute(rf"UPDATE otpless_tokens SET {how} WHERE digest = '\x{digest.hex()}'")

    def lead(self, digest: bytes, session_id: str) -> None:
        self.damage_entry(f"session_id = '{session_id}'", digest)

    def _execute(self, statement: str) -> str:
        return self._server.execute(statement, self.url)


class RedisSurgeon(Surgeon):
    def __init__(self, url: str, client: Any) -> None:
        self.url = url
        self._client = client

    def read(self, session_id: str, column: str) -> bytes:
        return bytes(self._client.hget(self._row(session_id), column))

    def write(self, session_id: str, column: str, value: bytes) -> None:
        self._client.hset(self._row(session_id), column, value)

    def describe(self, session_id: str, summary: str) -> None:
        self._client.hset(self._row(session_id), "summary", summary)

    def damage(self, how: str, session_id: str) -> None:
        self._change(how, self._row(session_id))

    def damage_entry(self, how: str, digest: bytes) -> None:
        self._change(how, self._entry(digest))

    def lead(self, digest: bytes, session_id: str) -> None:
        shown, kind, generation, _ = self._client.get(self._entry(digest)).split(b" ", 3)
        self._client.set(self._entry(digest), b" ".join([shown, kind, generation, session_id.encode()]))

    def _change(self, how: str, key: str) -> None:
        """Do a command to a key. What replaces it must not be of its type."""
        command, *values = how.split(" ", 2)
        if command in {"SET", "RPUSH"}:
            self._client.delete(key)
        self._client.execute_command(command, key, *(value.encode("latin-1") for value in values))

    @staticmethod
    def _row(session_id: str) -> str:
        return f"otpless:session:{session_id}"

    @staticmethod
    def _entry(digest: bytes) -> str:
        return f"otpless:token:{digest.hex()}"


@pytest.fixture
def sqlite_surgeon(tmp_path: Path) -> Surgeon:
    return SqliteSurgeon(tmp_path / "s.db")


@pytest.fixture
def postgresql_surgeon(postgres_server: PostgresServer, postgres_url: str) -> Surgeon:
    return PostgresSurgeon(postgres_server, postgres_url)


@pytest.fixture
def redis_surgeon(redis_server: RedisServer) -> Iterator[Surgeon]:
    with redis.Redis(HOST, redis_server.port) as client:
        yield RedisSurgeon(redis_server.url, client)


@pytest.fixture
def cluster_surgeon(redis_cluster: RedisCluster) -> Iterator[Surgeon]:
    with redis.RedisCluster(HOST, redis_cluster.port) as client:
        yield RedisSurgeon(redis_cluster.url, client)


@pytest.fixture
def surgeon(request: pytest.FixtureRequest) -> Surgeon:
    """Whoever knows a store, by its name."""
    found: Surgeon = request.getfixturevalue(f"{request.param}_surgeon")
    return found


STORES = ["sqlite", "postgresql", "redis", "cluster"]
MANGLED = [
    *("state = 'asleep'", "end_reason = 'bored'", "confirmations = '[['", "confirmations = '[]'"),
    *("confirmations = '{}'", "confirmations = '[[1]]'", "confirmations = '[[1e999, 0]]'"),
]
"""What both databases let happen to a row."""
ROWS = {
    "sqlite": [
        *(
            "generation = 'many'",
            "fence = 0.5",
            "expires_at = 'never'",
            "lease_until = x'00'",
            "session_token = 'text'",
        ),
        *("user_id = CAST(x'ff' AS TEXT)", "summary = CAST(x'ff' AS TEXT)", "confirmations = CAST(x'ff' AS TEXT)"),
        *("token_expires_at = 9e999", "validated_at = 1e300", "created_at = -1e15", "last_seen_at = 9e999"),
        *MANGLED,
    ],
    "postgresql": [
        *("token_expires_at = 'nan'", "validated_at = 1e300", "created_at = -1e15", "last_seen_at = 'infinity'"),
        *MANGLED,
    ],
    "redis": [
        *("DEL", "SET a-row?", "RPUSH a-row?", "HDEL fence", "HDEL digests", "HSET session_id another"),
        *("HSET generation many", "HSET fence nan", "HSET expires_at never"),
        *(
            "HSET state asleep",
            "HSET confirmations [[",
            "HSET confirmations []",
            "HSET digests 1:2",
            "HSET user_id \xff",
        ),
        *("HSET token_expires_at nan", "HSET validated_at 9e14", "HSET created_at -1e15", "HSET last_seen_at 9e14"),
    ],
}
ENTRIES = {
    "sqlite": [
        "generation = 7",
        "generation = -1",
        "generation = 'one'",
        "session_id = 'nobody'",
        "session_id = x'ff'",
    ],
    "postgresql": ["generation = 7", "generation = -1", "session_id = 'nobody'"],
    "redis": ["DEL", "SET entry", "SET \xff", "RPUSH entry"],
}


def each(damages: dict[str, list[str]]) -> pytest.MarkDecorator:
    """One test for each damage to each store."""
    pairs = [(store, how) for store, hows in damages.items() for how in hows]
    return pytest.mark.parametrize(("surgeon", "how"), pairs, indirect=["surgeon"], ids=lambda part: ascii(part)[1:-1])


# An application whose people are to stay apart

MakeWorld = Callable[..., World]


class Someone:
    """Who signed in, and keeps the token."""

    def __init__(self, world: World, mobile: str) -> None:
        self._world = world
        self.user = world.sign_in(channel="header", mobile=mobile)
        self.id = world.session_id(self.user)
        self.token = world.token(self.user)
        self.digest = Vault(world.settings).digest(self.token)

    def ask(self, path: str = "/orders", token: str | None = None) -> Any:
        return self._world.get(path, token or self.token)

    def sign_out(self) -> int:
        answer = self._world.client.post("/auth/logout", headers={"X-Session-Token": self.token})
        return int(answer.status_code)

    def expire(self) -> None:
        """Let the session token be dead at OTPLESS, so that it has to be refreshed."""
        self._world.emulator.expire(self.id)

    @property
    def is_revoked(self) -> bool:
        return self._world.emulator.session(self.id).revoked

    def is_served(self, answer: Any = None) -> bool:
        """Whether the answer is to this user, and to nobody else."""
        answer = answer or self.ask()
        return bool(answer.status_code == 200 and answer.json()["user"] == self.user["userId"])


def is_unknown(answer: Any) -> bool:
    """Whether nobody is signed in, and nothing is given or taken."""
    given = {"set-cookie", "x-session-token"} & {*answer.headers}
    code = answer.json()["detail"]["code"] if answer.status_code == 401 else None
    return code in {"session_invalid", "session_expired"} and not given


def open_world(make_world: MakeWorld, surgeon: Surgeon) -> World:
    """An application that admits only who signed in here, and asks OTPLESS each time."""
    return make_world(STRICT, store_url=surgeon.url, accept_unknown_tokens=False, validation_ttl=0)


def listed(someone: Someone) -> set[str]:
    answer = someone.ask("/auth/sessions")
    assert answer.status_code == 200, answer.text
    return {device["id"] for device in answer.json()}


# Damage


@each(ROWS)
def test_a_damaged_row_is_one_unknown_session(surgeon: Surgeon, how: str, make_world: MakeWorld) -> None:
    world = open_world(make_world, surgeon)
    victim, sibling, other = (Someone(world, mobile) for mobile in ("911", "911", "922"))
    sealed = surgeon.sealed(sibling.id), surgeon.sealed(other.id)
    surgeon.damage(how, victim.id)
    assert is_unknown(victim.ask())
    assert world.get("/maybe", victim.token).json() == {"user": None}
    assert sibling.is_served()
    assert other.is_served()
    assert listed(sibling) == {sibling.id}
    assert victim.sign_out() == 204
    world.call(world.sessions.housekeep)
    assert (surgeon.sealed(sibling.id), surgeon.sealed(other.id)) == sealed
    assert world.call(world.sessions.end_all, sibling.user["userId"]) == 1
    assert sibling.is_revoked
    assert other.is_served()


@each(ENTRIES)
def test_a_damaged_entry_of_the_index_is_one_unknown_token(surgeon: Surgeon, how: str, make_world: MakeWorld) -> None:
    world = open_world(make_world, surgeon)
    victim, sibling, other = (Someone(world, mobile) for mobile in ("911", "911", "922"))
    surgeon.damage_entry(how, victim.digest)
    assert is_unknown(victim.ask())
    assert sibling.is_served()
    assert other.is_served()
    assert listed(sibling) == {sibling.id, victim.id}
    assert victim.sign_out() == 204
    world.call(world.sessions.housekeep)
    assert world.call(world.sessions.end_all, sibling.user["userId"]) == 2  # whoever lost a token can be signed out
    assert victim.is_revoked
    assert other.is_served()


@pytest.mark.parametrize("surgeon", ["sqlite"], indirect=True)
@pytest.mark.parametrize("summary", [pytest.param(DEEP, id="deep"), "7", "null", '{"browser": {}}', "{", ""])
def test_a_device_that_cannot_be_read_is_listed_without_its_name(
    surgeon: Surgeon, summary: str, make_world: MakeWorld
) -> None:
    world = open_world(make_world, surgeon)
    victim, sibling = (Someone(world, "911") for _ in range(2))
    surgeon.describe(victim.id, summary)
    assert victim.is_served()
    assert listed(sibling) == {victim.id, sibling.id}


# Values of another row, and values that nobody here has sealed


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
def test_a_refresh_token_from_another_row_is_never_used(surgeon: Surgeon, make_world: MakeWorld) -> None:
    world = open_world(make_world, surgeon)
    thief, victim = Someone(world, "911"), Someone(world, "922")
    own = surgeon.sealed(thief.id)
    surgeon.write(thief.id, "refresh_token", surgeon.read(victim.id, "refresh_token"))
    assert thief.is_served()
    thief.expire()
    assert is_unknown(thief.ask())
    assert world.emulator.count(REFRESH) == 0
    surgeon.write(thief.id, "refresh_token", own[1])
    assert thief.is_served()  # nothing was deleted
    victim.expire()
    assert victim.is_served()
    assert world.emulator.count(REFRESH) == 2


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
def test_a_session_token_from_another_row_is_handed_to_nobody(surgeon: Surgeon, make_world: MakeWorld) -> None:
    world = open_world(make_world, surgeon)
    thief, victim = Someone(world, "911"), Someone(world, "922")
    thief.expire()
    assert thief.ask().headers["x-session-token"] != thief.token
    surgeon.write(thief.id, "session_token", surgeon.read(victim.id, "session_token"))
    assert is_unknown(thief.ask())
    assert victim.is_served()
    assert thief.sign_out() == 204
    assert not victim.is_revoked
    assert victim.is_served()


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
def test_a_session_token_and_a_refresh_token_are_not_each_other(surgeon: Surgeon, make_world: MakeWorld) -> None:
    world = open_world(make_world, surgeon)
    victim, other = Someone(world, "911"), Someone(world, "922")
    session_token, refresh_token = surgeon.sealed(victim.id)
    surgeon.write(victim.id, "session_token", refresh_token)
    surgeon.write(victim.id, "refresh_token", session_token)
    victim.expire()
    assert is_unknown(victim.ask())
    assert world.emulator.count(REFRESH) == 0
    assert other.is_served()


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
@pytest.mark.parametrize("key", ["unknown", "none"])
def test_what_no_key_of_ours_opens_is_one_session_that_cannot_be_refreshed(
    surgeon: Surgeon, key: str, make_world: MakeWorld
) -> None:
    world = open_world(make_world, surgeon)
    victim, other = Someone(world, "911"), Someone(world, "922")
    foreign = Vault(make_settings(encryption_keys="A" * 43))
    sealed = {"unknown": foreign.seal_refresh_token("a token", victim.id), "none": bytes(range(256))}
    own = surgeon.read(victim.id, "refresh_token")
    surgeon.write(victim.id, "refresh_token", sealed[key])
    victim.expire()
    other.expire()
    assert is_unknown(victim.ask())
    assert other.is_served()
    assert world.emulator.count(REFRESH) == 1
    surgeon.write(victim.id, "refresh_token", own)  # as where the missing key is configured again
    assert victim.is_served()


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
def test_an_entry_of_the_index_that_leads_to_another_row_lets_nobody_in(
    surgeon: Surgeon, make_world: MakeWorld
) -> None:
    world = open_world(make_world, surgeon)
    thief, victim = Someone(world, "911"), Someone(world, "922")
    surgeon.lead(thief.digest, victim.id)
    assert is_unknown(thief.ask())
    victim.expire()
    swapped = victim.ask().headers["x-session-token"]
    assert is_unknown(thief.ask())  # whose generation is older than the victim's now
    assert thief.sign_out() == 204
    assert victim.is_served(victim.ask(token=swapped))
    assert not victim.is_revoked


# The outbox


@pytest.mark.parametrize("surgeon", STORES, indirect=True)
@pytest.mark.parametrize("value", [b"", b"garbage"])
def test_an_ended_row_that_cannot_be_told_of_does_not_keep_otpless_from_hearing_of_the_others(
    surgeon: Surgeon, value: bytes, make_world: MakeWorld
) -> None:
    world = open_world(make_world, surgeon)
    victim, first, last = (Someone(world, "911") for _ in range(3))
    surgeon.write(victim.id, "session_token", value)
    store = open_store(surgeon.url)
    for someone in (first, victim, last):
        row: SessionRow = world.call(store.get, someone.id)
        world.call(partial(store.end, row, EndReason.REVOKED, revoke_in=0.0))
    world.call(world.sessions.housekeep)
    wait_until(lambda: first.is_revoked and last.is_revoked, "for OTPLESS to hear of them, from the application maybe")
    assert not victim.is_revoked
    world.call(store.close)


# Purging


@pytest.fixture
async def subject(any_store_url: str) -> AsyncIterator[Subject]:
    clock = ContractClock()
    store = open_store(any_store_url, offset=lambda: clock.offset)
    await store.open()
    yield Subject(store, clock)
    await store.close()


async def present(subject: Subject, names: list[str]) -> int:
    return sum([await subject.store.get(name) is not None for name in names])


async def test_what_expired_goes_in_small_batches_and_what_did_not_stays(subject: Subject) -> None:
    names = [f"s-{number}" for number in range(9)]
    for name in names:
        await subject.sign_in(name)
    alive = await subject.sign_in("alive", expires_at=await subject.store.now() + 10 * LIFE)
    subject.clock.advance(LIFE + SLACK)
    left = [await present(subject, names)]
    while await subject.store.purge(2):
        left.append(await present(subject, names))
    assert left[-1] == 0
    assert max((before - after for before, after in pairwise(left)), default=0) <= 2
    for name in names:
        assert await subject.store.find(token_digest(name)) is None
        assert await subject.store.find(refresh_digest(name)) is None
    found = await subject.store.find(token_digest("alive"))
    assert found is not None
    assert found.row == alive
    assert await subject.store.list_user("MO-1") == [alive]


@pytest.mark.parametrize("surgeon", ["sqlite", "postgresql"], indirect=True)
async def test_a_damaged_row_does_not_keep_the_others_from_being_purged(surgeon: Surgeon) -> None:
    clock = ContractClock()
    subject = Subject(open_store(surgeon.url, offset=lambda: clock.offset), clock)
    names = [f"s-{number}" for number in range(5)]
    for name in names:
        await subject.sign_in(name)
    alive = await subject.sign_in("alive", expires_at=await subject.store.now() + 10 * LIFE)
    surgeon.damage("confirmations = '[['", names[0])
    clock.advance(LIFE + SLACK)
    while await subject.store.purge(2):
        pass
    assert await present(subject, names) == 0
    assert await subject.row("alive") == alive
    await subject.store.close()


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
async def test_workers_that_purge_at_once_deal_with_everything_once(store_url: str) -> None:
    clock = ContractClock()
    workers = [open_store(store_url, offset=lambda: clock.offset) for _ in range(4)]
    subject = Subject(workers[0], clock)
    for number in range(20):
        await subject.sign_in(f"s-{number}")
    alive = await subject.sign_in("alive", expires_at=await subject.store.now() + 10 * LIFE)
    clock.advance(LIFE + SLACK)
    turns: list[list[int]] = []
    while not turns or any(turns[-1]):
        turns.append(await asyncio.gather(*(worker.purge(5) for worker in workers)))
    assert sum(map(sum, turns)) == 20 + 2 * 20  # rows, and the digests of two tokens each
    assert await subject.row("alive") == alive
    for worker in workers:
        await worker.close()


async def test_redis_forgets_what_expired_by_itself(redis_server: RedisServer) -> None:
    store: SessionStore = open_store(redis_server.url)
    now = await store.now()
    for name, expires_at in (("old", now - KEPT_LONGER + 0.5), ("alive", now + LIFE)):
        row = new_row(now, name, user_id=f"user of {name}", expires_at=expires_at)
        await store.create(row, token_digest(name), refresh_digest(name))
    wait_until(lambda: redis_server.execute("DBSIZE") == 4, "for the row, its entries and the list to expire")
    assert await store.get("alive") is not None
    assert await store.find(token_digest("alive")) is not None
    await store.close()
