"""Rows of the stores: a row read from SQLite beside SQLAlchemy's asyncio, a transition in Redis beside a GET."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import backends
import fill
import measure
from measure import Slice
from processes import Guard
from redis.asyncio import Redis
from rows import NotHereError, Row
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_otpless_session.stores import open_store

SESSIONS = 1_000
LEASE_SECONDS = 15.0
READ = text("SELECT s.*, t.generation AS g FROM tokens t JOIN sessions s USING (session_id) WHERE t.digest = :digest")


async def _filled(folder: Path) -> str:
    url = f"sqlite:///{folder}/filled.db"
    store = open_store(url)
    await store.open()
    await fill.fill(url, 0, SESSIONS, lambda number: fill.row(number, time.time()))
    await store.close()
    return url


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Slice]:
    store = open_store(await _filled(folder))
    await store.open()
    turns = itertools.count()

    async def look_up() -> None:
        if await store.find(fill.digest(next(turns) % SESSIONS)) is None:
            raise RuntimeError("a session is missing")

    yield measure.calls(look_up)
    await store.close()


@asynccontextmanager
async def sqlalchemy(folder: Path) -> AsyncIterator[Slice]:
    url = await _filled(folder)
    engine = create_async_engine(url.replace("sqlite:", "sqlite+aiosqlite:"))
    turns = itertools.count()

    async def look_up() -> None:
        async with engine.connect() as connection:
            found = await connection.execute(READ, {"digest": fill.digest(next(turns) % SESSIONS)})
            if found.one_or_none() is None:
                raise RuntimeError("a session is missing")

    yield measure.calls(look_up)
    await engine.dispose()


@asynccontextmanager
async def _redis_server() -> AsyncIterator[str]:
    binary = backends.find_redis()
    if binary is None:
        raise NotHereError(backends.NO_REDIS)
    with Guard() as guard:
        server = backends.RedisServer(binary, guard)
        server.start()
        yield server.url
        server.stop()


@asynccontextmanager
async def redis_transition(_: Path) -> AsyncIterator[Slice]:
    """Take a lease and release it, in turns: each is a compare-and-swap of one row."""
    async with _redis_server() as url:
        store = open_store(url)
        await store.open()
        await fill.fill(url, 0, SESSIONS, lambda number: fill.row(number, time.time()))
        turns = itertools.count()

        async def lease_and_release() -> None:
            session_id = fill.session_id(next(turns) % SESSIONS)
            lease = await store.take_lease(session_id, 1, "bench", LEASE_SECONDS)
            if lease is None:
                raise RuntimeError("a lease was refused")
            await store.release_lease(lease, answer_lost=False)

        yield _halved(measure.calls(lease_and_release))
        await store.close()


def _halved(run: Slice) -> Slice:
    async def half(calls: int) -> float:
        return await run(max(1, calls // 2)) / 2

    return half


@asynccontextmanager
async def redis_get(_: Path) -> AsyncIterator[Slice]:
    async with _redis_server() as url, Redis.from_url(url) as client:
        await client.set("row", b"x" * 2 * fill.SEALED)
        yield measure.calls(lambda: client.get("row"))


ROWS = (
    Row("sqlite-read", "a row read from SQLite", 0.35, sqlite, "", sqlalchemy, "SQLAlchemy asyncio, aiosqlite"),
    Row("redis", "a transition in Redis", 1.5, redis_transition, "", redis_get, "a GET"),
)
