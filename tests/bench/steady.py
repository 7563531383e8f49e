"""The rows that compare slices of requests: each of a worker's application, × the bare FastAPI route."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import apps
import measure
from apps import BELIEVED, REQUIRED, Pair, bearer, cookie, with_cookie, worker
from fastapi import FastAPI
from measure import Batch, Slice, scope
from rows import Open, Row
from upstream import DAY, claims, signed, unsigned

FIRST_SEEN = 120
REFRESHED_AT_ONCE = 12
LIFE = 3600.0


@asynccontextmanager
async def believed(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, **BELIEVED, **REQUIRED) as each:
        pair = await each.sign_in()
        yield each.sends(cookie(pair.token))


@asynccontextmanager
async def believed_bearer(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, **BELIEVED, **REQUIRED) as each:
        pair = await each.sign_in()
        yield each.sends(bearer(pair.token))


@asynccontextmanager
async def believed_depends(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, apps.depending, **BELIEVED) as each:
        pair = await each.sign_in()
        yield each.sends(cookie(pair.token))


@asynccontextmanager
async def stranger(folder: Path) -> AsyncIterator[Slice]:
    """The frontend's SDK keeps the session: OTPLESS vouched for its token a moment ago, and there is no row."""
    async with worker(folder, **REQUIRED) as each:
        token = signed(claims("0" * 32, each.clock(), DAY))
        yield each.sends(bearer(token))


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, apps.depending) as each:
        pair = await each.sign_in()
        yield each.sends(cookie(pair.token))


@asynccontextmanager
async def starlette_session(_: Path) -> AsyncIterator[Slice]:
    app, header = apps.starlette_session()
    yield apps.repeated(app, header)


@asynccontextmanager
async def validated_each_time(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, validation_ttl=0, **BELIEVED, **REQUIRED) as each:
        pair = await each.sign_in()
        yield each.sends(cookie(pair.token))
        if each.upstream.calls["validate-session"] < measure.FIRST_CALLS:
            raise RuntimeError("OTPLESS was not asked on every request")


@asynccontextmanager
async def no_token(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder, **REQUIRED) as each:
        yield each.sends(status=401)


@asynccontextmanager
async def bad_signature(folder: Path) -> AsyncIterator[Slice]:
    """Each request brings another token: what a worker remembers of the last one is no help."""
    async with worker(folder, **REQUIRED) as each:

        async def prepare(calls: int) -> Batch:
            forged = [unsigned(claims(f"{number:032x}", each.clock(), DAY)) for number in range(calls)]
            return await each.batch([scope("/", bearer(token)) for token in forged], 401)

        yield measure.requests(prepare)


@asynccontextmanager
async def unused_without(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder) as each:
        yield each.sends()


@asynccontextmanager
async def unused_with(folder: Path) -> AsyncIterator[Slice]:
    async with worker(folder) as each:
        pair = await each.sign_in()
        yield each.sends(cookie(pair.token))


def first_sight_known(inner: Callable[[], FastAPI], **values: Any) -> Open:
    """Each slice is a new worker's, over the store that another one signed people in to."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Slice]:
        async with worker(folder) as other:
            pairs = [await other.sign_in() for _ in range(FIRST_SEEN)]
            headers = [with_cookie(pair.token)["headers"] for pair in pairs]
            yield _new_worker(folder, headers, inner, values)

    return opened


def first_sight_stranger(inner: Callable[[], FastAPI], **values: Any) -> Open:
    """Each slice is a new worker's, and nobody signed in here: the signature is verified, and OTPLESS asked."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Slice]:
        async with worker(folder) as other:
            made = [signed(claims(f"{number:032x}", other.clock(), DAY)) for number in range(FIRST_SEEN)]
            yield _new_worker(folder, [scope("/", bearer(token))["headers"] for token in made], inner, values)

    return opened


def _new_worker(
    folder: Path, headers: list[list[tuple[bytes, bytes]]], inner: Callable[[], FastAPI], values: dict[str, Any]
) -> Slice:
    async def prepare(calls: int) -> Batch:
        stack = AsyncExitStack()
        new = await stack.enter_async_context(worker(folder, inner, **values))
        await measure.requests(lambda _: new.batch([scope("/", bearer(signed(claims("warm", new.clock(), DAY))))]))(1)
        chosen = headers[: min(calls, len(headers))]
        return Batch(new.app, [{**scope(), "headers": list(each)} for each in chosen], after=stack.aclose)

    return measure.requests(prepare)


@asynccontextmanager
async def refresh(folder: Path) -> AsyncIterator[Slice]:
    """Each request brings its session's newest token, which has expired: confirmed, leased, committed.

    Between slices an hour passes, so that the same sessions have to be refreshed again.
    """
    clock = apps.Clock()
    async with worker(folder, clock=clock, **REQUIRED) as each:
        pairs = [await each.sign_in(LIFE) for _ in range(4 * REFRESHED_AT_ONCE)]

        async def prepare(calls: int) -> Batch:
            clock.now += 2 * LIFE
            scopes = []
            for place in range(min(calls, len(pairs))):
                old = pairs[place]
                scopes.append(with_cookie(old.token))
                new = each.upstream.will_refresh(old.refresh_token, old.session_id, clock.now, LIFE)
                pairs[place] = Pair(old.session_id, *new)
            return await each.batch(scopes)

        yield measure.requests(prepare)


@asynccontextmanager
async def bare_cookie(_: Path) -> AsyncIterator[Slice]:
    yield apps.repeated(apps.bare(), cookie(unsigned(claims("0" * 32, 0, DAY))))


@asynccontextmanager
async def bare_bearer(_: Path) -> AsyncIterator[Slice]:
    yield apps.repeated(apps.bare(), bearer(unsigned(claims("0" * 32, 0, DAY))))


@asynccontextmanager
async def bare_starlette(_: Path) -> AsyncIterator[Slice]:
    yield apps.repeated(apps.bare(), apps.starlette_session()[1])


ROWS = (
    Row("believed", "steady state, row believed, REQUIRED_PATHS", 1.15, believed, beside=bare_cookie),
    Row("sqlite", "steady state, row read from SQLite, Depends(current_session)", 2.0, sqlite, beside=bare_cookie),
    Row(
        "first-stranger",
        "first sight of a token, OTPLESS asked",
        3.5,
        first_sight_stranger(apps.bare, **REQUIRED),
        "upstream instant",
        beside=bare_bearer,
    ),
    Row(
        "first-known",
        "first sight of a token, signed in on another worker",
        3.5,
        first_sight_known(apps.bare, **REQUIRED),
        beside=bare_cookie,
    ),
    Row("validated", "VALIDATION_TTL=0, row believed, no-op for http.py", 1.4, validated_each_time, beside=bare_cookie),
    Row("refresh", "refresh, no-op for http.py, SQLite", 15, refresh, "one wait for the disk", beside=bare_cookie),
    Row("no-token", "refusal without a token", 0.25, no_token),
    Row("bad-signature", "refusal of a bad signature", 1.7, bad_signature, beside=bare_bearer),
    Row("unused", "session not used, no credential sent", 1.05, unused_without),
    Row("unused-sent", "session not used, credential sent", 1.07, unused_with, beside=bare_cookie),
    Row("believed-bearer", "as the first, the token in Authorization", None, believed_bearer, beside=bare_bearer),
    Row(
        "stranger",
        "a token that the frontend's SDK keeps fresh, looked at in SQLite",
        None,
        stranger,
        beside=bare_bearer,
    ),
    Row(
        "first-stranger-depends",
        "first sight, OTPLESS asked, Depends(current_session)",
        None,
        first_sight_stranger(apps.depending),
        beside=bare_bearer,
    ),
    Row(
        "first-known-depends",
        "first sight, signed in on another worker, Depends(current_session)",
        None,
        first_sight_known(apps.depending),
        beside=bare_cookie,
    ),
    Row("believed-depends", "row believed, Depends(current_session)", None, believed_depends, beside=bare_cookie),
    Row("starlette", "Starlette's SessionMiddleware, its session read", None, starlette_session, beside=bare_starlette),
)
