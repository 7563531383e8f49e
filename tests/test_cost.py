"""What a request costs is guarded by counts, which are the same on each machine: calls, reads, calls to OTPLESS.

`make bench` measures seconds. Here a call is one that Python's profiler sees, of Python or of C; what the same request
costs without the package is taken off. The bounds leave a fifth for other versions of Python and of what we use.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from asgi import http_scope
from conftest import Clock, World
from fastapi import FastAPI
from made_up import KINDS, Kind, MadeUp
from starlette.types import ASGIApp, Message

from fastapi_otpless_session.connection import RequestSession
from fastapi_otpless_session.stores.sqlite import SqliteStore

pytestmark = pytest.mark.varied

WARM = 3
"""How often a request is sent before one counts: what the first ones remember is not to be counted."""


@contextmanager
def counted() -> Iterator[list[str]]:
    """Note the calls that are made meanwhile, but for OpenTelemetry's own: a test before may have set up its SDK.

    Nothing is collected meanwhile: what other tests left behind may have calls to make when it goes.
    """
    made: list[str] = []
    within: FrameType | None = None

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal within
        if within is not None:
            within = None if event == "return" and frame is within else within
        elif event == "call":
            made.append(frame.f_code.co_qualname)
            within = frame if frame.f_globals["__name__"].startswith("opentelemetry.") else None
        elif event == "c_call":
            made.append(getattr(argument, "__qualname__", repr(argument)))

    before = sys.getprofile()
    gc.collect()
    gc.disable()
    sys.setprofile(note)
    try:
        yield made
    finally:
        sys.setprofile(before)
        gc.enable()


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    """Take what comes."""


async def calls_of(app: ASGIApp, path: str, token: str | None) -> list[str]:
    return await calls_of_last(app, path, [token] * (WARM + 1))


async def calls_of_last(app: ASGIApp, path: str, tokens: Sequence[str | None]) -> list[str]:
    """Send a request with each of the tokens, and return the calls of the last."""
    *first, last = [
        {**http_scope(path), "headers": [(b"host", b"shop.example"), *header]}
        for header in ([(b"x-session-token", token.encode())] if token else [] for token in tokens)
    ]
    for scope in first:
        await app(scope, receive, send)
    with counted() as made:
        await app(last, receive, send)
    return made[:-2]  # the two that stop counting


def bare() -> FastAPI:
    app = FastAPI()

    @app.get("/public")
    async def public() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/orders")
    async def orders() -> dict[str, Any]:
        return {"id": "s", "user": "u", "refreshed": False, "stale": False}

    return app


def added(world: World, path: str, token: str | None) -> list[str]:
    """Return the calls of a request, without as many as the bare application makes of it."""
    ours: list[str] = world.call(calls_of, world.app, path, token)
    theirs = asyncio.run(calls_of(bare(), path, token))
    return ours[: len(ours) - len(theirs)]


@pytest.mark.parametrize(
    ("values", "path", "bound"),
    [
        pytest.param({}, "/public", 12, id="unused"),
        pytest.param({"store_ttl": 60, "required_paths": ["/public"]}, "/public", 48, id="believed"),
        pytest.param({"required_paths": ["/public"]}, "/public", 65, id="looked at in SQLite"),
        pytest.param({"store_ttl": 60}, "/orders", 340, id="believed, with the dependency"),
        pytest.param({}, "/orders", 360, id="looked at in SQLite, with the dependency"),
    ],
)
def test_a_request_of_somebody_known_adds_so_many_calls_at_most(
    make_world: Callable[..., World], values: dict[str, Any], path: str, bound: int
) -> None:
    world = make_world(**values)
    user = world.sign_in(channel="header")
    more = added(world, path, world.token(user))
    assert 0 < len(more) <= bound
    assert len(world.emulator.calls) == SIGN_IN_CALLS


SIGN_IN_CALLS = 3
"""Two to bind the sign-in, and one for the keys; no request of somebody known adds any."""


def test_a_refusal_makes_fewer_calls_than_a_route(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths=["/public"])
    refused = world.call(calls_of, world.app, "/public", None)
    route = asyncio.run(calls_of(bare(), "/public", None))
    assert len(refused) < len(route) / 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_made_up_token_costs_as_two_requests_of_somebody_known_at_most_and_otpless_hears_of_none(
    make_world: Callable[..., World], kind: Kind
) -> None:
    """So a flood of them is to the others as so many people would be. None is like another, and none is remembered."""
    world = make_world()
    served = world.call(calls_of, world.app, "/orders", world.token(world.sign_in(channel="header")))
    made_up = MadeUp(world.emulator)
    assert world.get("/orders", made_up.one(kind)).status_code == 401  # an unknown key: they are fetched once again
    asked = len(world.emulator.calls)
    refused = world.call(calls_of_last, world.app, "/orders", [made_up.one(kind) for _ in range(WARM + 1)])
    assert len(refused) <= 2 * len(served)
    assert refused.count("Connection.execute") == kind.has_token_shape  # looked up: it could be known
    assert refused.count("RSAPublicKey.verify") == kind.names_known_key
    assert len(world.emulator.calls) == asked


@pytest.mark.parametrize(("is_known", "look"), [(True, "unchanged_at"), (False, "unknown_at")])
def test_a_session_is_looked_at_once_a_request_and_not_read(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch, is_known: bool, look: str
) -> None:
    world = make_world()
    token = world.token(world.sign_in(channel="header") if is_known else world.emulator.sign_in())
    assert world.get("/orders", token).status_code == 200
    asked: list[str] = []
    for name in ("find", "get", "unchanged_at", "unknown_at", "now"):
        _note(monkeypatch, name, asked)
    assert world.get("/orders", token).status_code == 200
    assert asked == [look]


def _note(monkeypatch: pytest.MonkeyPatch, name: str, asked: list[str]) -> None:
    """Note each use of a store's method, which does what it did."""
    method = getattr(SqliteStore, name)

    def noting(self: SqliteStore, *arguments: Any) -> Any:
        asked.append(name)
        return method(self, *arguments)

    monkeypatch.setattr(SqliteStore, name, noting)


def test_a_request_leaves_nothing_for_the_garbage_collector(make_world: Callable[..., World]) -> None:
    """A scope that its own session leads back to would stay until the collector comes, with all that it holds."""
    world = make_world(store_ttl=60, required_paths=["/public"])
    token = world.token(world.sign_in(channel="header"))
    world.call(calls_of, world.app, "/public", token)
    gc.collect()
    gc.disable()
    try:
        world.call(calls_of, world.app, "/public", token)
        assert [each for each in gc.get_objects() if isinstance(each, RequestSession)] == []
    finally:
        gc.enable()


def test_of_a_user_who_clicks_on_nobody_waits_for_otpless(make_world: Callable[..., World], clock: Clock) -> None:
    world = make_world()
    token = world.token(world.sign_in(channel="header"))
    world.get("/orders", token)
    asked = len(world.emulator.calls)
    for _ in range(10):
        clock.advance(20)
        answer = world.get("/orders", token)
        assert (answer.status_code, answer.json()["stale"]) == (200, False)
    assert len(world.emulator.calls) - asked <= 10
