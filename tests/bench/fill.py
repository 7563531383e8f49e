"""Fills stores with many sessions fast: the rows that a store would write, by the quickest way in."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any

import asyncpg  # type: ignore[import-untyped]
from redis.asyncio import Redis

from fastapi_otpless_session.stores import lua
from fastapi_otpless_session.stores import redis as redis_store
from fastapi_otpless_session.stores.base import FIRST_GENERATION, REFRESH_TOKEN, SessionRow
from fastapi_otpless_session.stores.records import COLUMNS, record_of

SESSIONS_OF_A_USER = 3
SEALED = 640
"""Bytes of a sealed token: a JWT of about 600."""
DAY = 86_400.0
BATCH = 10_000

Fill = Callable[[str, list[SessionRow]], Awaitable[None]]


def session_id(number: int) -> str:
    return hashlib.blake2s(f"session {number}".encode(), digest_size=16).hexdigest()


def user_id(number: int) -> str:
    return f"MO-{number // SESSIONS_OF_A_USER:032x}"


def digest(number: int, kind: str = "token") -> bytes:
    return hashlib.sha256(f"{kind} {number}".encode()).digest()


def row(number: int, now: float, life: float = 7 * DAY) -> SessionRow:
    """Return the row of a session that was signed in lately."""
    chance = random.Random(number)  # noqa: S311 - the same rows in each run
    created_at = now - chance.uniform(0, DAY)
    return SessionRow(
        session_id=session_id(number),
        user_id=user_id(number),
        confirmations=((FIRST_GENERATION, created_at),),
        rotated_at=created_at,
        session_token=chance.randbytes(SEALED),
        token_expires_at=created_at + DAY,
        refresh_token=chance.randbytes(SEALED),
        validated_at=now,
        created_at=created_at,
        last_seen_at=now,
        expires_at=now + life * chance.uniform(0.5, 1),
        summary='{"browser": "Firefox", "platform": "Linux", "city": "Bengaluru", "country": "India"}',
    )


def batches(first: int, last: int, make: Callable[[int], SessionRow]) -> Iterator[list[tuple[int, SessionRow]]]:
    for start in range(first, last, BATCH):
        yield [(number, make(number)) for number in range(start, min(last, start + BATCH))]


def _digests(
    numbered: list[tuple[int, SessionRow]], of_token: Callable[[int], bytes] = digest
) -> Iterator[tuple[bytes, str, int, float]]:
    for number, each in numbered:
        yield of_token(number), each.session_id, FIRST_GENERATION, each.expires_at
        yield digest(number, "refresh"), each.session_id, REFRESH_TOKEN, each.expires_at


async def into_sqlite(
    url: str, numbered: list[tuple[int, SessionRow]], of_token: Callable[[int], bytes] = digest
) -> None:
    """Put sessions in. `of_token` gives the digests of their tokens, where there are tokens."""
    marks = ", ".join("?" * len(COLUMNS))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
        records = (tuple(record_of(each).values()) for _, each in numbered)
        db.executemany(f"INSERT INTO sessions ({', '.join(COLUMNS)}) VALUES ({marks})", records)  # noqa: S608
        db.executemany("INSERT INTO tokens VALUES (?, ?, ?, ?)", _digests(numbered, of_token))


async def into_postgresql(url: str, numbered: list[tuple[int, SessionRow]]) -> None:
    connection = await asyncpg.connect(url)
    try:
        records = [tuple(record_of(each).values()) for _, each in numbered]
        await connection.copy_records_to_table("otpless_sessions", records=records, columns=COLUMNS)
        columns = ("digest", "session_id", "generation", "expires_at")
        await connection.copy_records_to_table("otpless_tokens", records=list(_digests(numbered)), columns=columns)
    finally:
        await connection.close()


async def into_redis(url: str, numbered: list[tuple[int, SessionRow]]) -> None:
    store = redis_store.RedisStore(url)
    async with Redis.from_url(url.partition("?")[0], protocol=2) as client:
        await client.script_load(lua.CREATE.text)
        await client.script_load(lua.REMEMBER.text)
        for start in range(0, len(numbered), 1_000):
            pipeline = client.pipeline(transaction=False)
            for number, each in numbered[start : start + 1_000]:
                _add(pipeline, store, number, each)
            await pipeline.execute()


def _add(pipeline: Any, store: redis_store.RedisStore, number: int, each: SessionRow) -> None:
    token, refresh = digest(number), digest(number, "refresh")
    ends = store._collected_at(each)
    first = redis_store._Generation(FIRST_GENERATION, token.hex(), refresh.hex())
    for own, entry in first.entries(each.session_id):
        pipeline.set(store._key("token", own), entry.text(own), pxat=ends)
    user_key = store._key("user", each.user_id)
    pipeline.evalsha(lua.REMEMBER.sha, 1, user_key, "0", each.session_id, repr(each.expires_at))
    flat = redis_store._flat(each, (first,))
    pipeline.evalsha(lua.CREATE.sha, 1, store._row_key(each.session_id), "0", *flat)


FILLS = {"sqlite": into_sqlite, "postgresql": into_postgresql, "redis": into_redis}


async def fill(url: str, first: int, last: int, make: Callable[[int], SessionRow]) -> None:
    """Put sessions `first` to `last` into an empty or growing store."""
    into = FILLS[url.partition(":")[0]]
    for numbered in batches(first, last, make):
        await into(url, numbered)
        await asyncio.sleep(0)
