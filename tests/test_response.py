"""What a swapped token may touch: the response's headers on its own channel, no cache, and no byte of any body."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from asgi import Exchange, HeaderList, exchange, http_scope
from conftest import World
from fastapi import Depends, FastAPI, Response
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_otpless_session import (
    CurrentSession,
    CurrentSessionDetails,
    FreshSession,
    OtplessSessionMiddleware,
    Sessions,
    create_session_router,
    optional_session,
)
from fastapi_otpless_session.emulator import EmulatorSettings, Fault

pytestmark = pytest.mark.varied

DAY = 86_400
COOKIE = b"__Host-otpless_session="
OURS = {b"set-cookie", b"cache-control", b"vary", b"x-session-token", b"access-control-expose-headers"}


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def directives(answer: Any) -> set[str]:
    return {part.strip() for part in answer.headers.get("cache-control", "").split(",")}


@pytest.fixture
def swapping(world: World) -> World:
    """A browser whose cookie is swapped by its next request."""
    world.sign_in()
    world.clock.advance(DAY + 1)
    return world


def swapped_token(answer: Any) -> str:
    return str(answer.headers["set-cookie"]).partition("=")[2].partition(";")[0]


# Caches


CACHE_HEADERS = [
    {"Cache-Control": "public, max-age=31536000, immutable"},
    {"Cache-Control": "Public,S-MaxAge=60 , s-maxage = 60"},
    {"Cache-Control": "max-age=60, stale-while-revalidate=60, stale-if-error=60"},
    {"Cache-Control": 'public, private="x-other", no-transform'},
    {"Cache-Control": "no-cache"},
    {"CDN-Cache-Control": "max-age=60"},
    {"Cloudflare-CDN-Cache-Control": "public, max-age=60"},
    {"Surrogate-Control": "max-age=60"},
    {"Expires": "Thu, 01 Dec 2033 16:00:00 GMT"},
    {"Vary": "Accept-Encoding"},
    {"Vary": "*"},
    {},
]


@pytest.mark.parametrize("channel", ["cookie", "header"])
@pytest.mark.parametrize("headers", CACHE_HEADERS, ids=str)
def test_no_cache_may_keep_a_response_with_a_token_whatever_the_application_says(
    world: World, headers: dict[str, str], channel: str
) -> None:
    @world.app.get("/cached")
    async def cached(_: CurrentSession) -> Response:
        return PlainTextResponse("for all", headers=headers)

    user = world.sign_in(channel=channel)
    world.clock.advance(DAY + 1)
    answer = world.get("/cached", world.token(user) if channel == "header" else None)
    assert ("set-cookie" if channel == "cookie" else "x-session-token") in answer.headers
    assert "no-store" in directives(answer)
    assert {part.partition("=")[0].strip().lower() for part in directives(answer)}.isdisjoint(
        {"public", "s-maxage", "max-age", "immutable", "stale-while-revalidate", "stale-if-error"}
    )
    others = {name for name in answer.headers if name == "expires" or name.endswith(("-cdn-cache-control", "control"))}
    assert others <= {"cache-control"}
    varies = {name.strip() for name in answer.headers["vary"].split(",")}
    assert varies == {"*"} or varies >= {"Authorization", "X-Session-Token", "Cookie"}
    assert ("no-transform" in directives(answer)) == ("no-transform" in headers.get("Cache-Control", ""))


def test_two_cache_control_headers_are_both_heeded(world: World) -> None:
    @world.app.get("/cached")
    async def cached(_: CurrentSession) -> Response:
        response = PlainTextResponse("for all", headers={"Cache-Control": "public"})
        response.headers.append("Cache-Control", "must-understand, max-age=60")
        return response

    world.sign_in()
    world.clock.advance(DAY + 1)
    assert world.get("/cached").headers.get_list("cache-control") == ["no-store, must-understand"]


def test_without_a_token_the_applications_own_caching_stays(world: World) -> None:
    @world.app.get("/cached")
    async def cached(_: CurrentSession) -> Response:
        return PlainTextResponse("for one", headers={"Cache-Control": "private, max-age=60", "Expires": "0"})

    world.sign_in()
    answer = world.get("/cached")
    assert (answer.headers["cache-control"], answer.headers["expires"]) == ("private, max-age=60", "0")
    assert answer.headers["vary"] == "Authorization, X-Session-Token, Cookie"


def test_vary_names_what_was_looked_at(make_world: Callable[..., World]) -> None:
    world = make_world(token_sources="header,cookie", header_name="X-Shop")
    assert world.get("/orders").headers["vary"] == "X-Shop, Cookie"


@pytest.mark.parametrize("channel", ["cookie", "header"])
def test_a_sign_in_may_not_be_kept_either(world: World, channel: str) -> None:
    answer = world.client.post("/auth/login", params={"channel": channel}, json=world.emulator.sign_in())
    assert directives(answer) == {"no-store"}


# Bodies and channels


PATHS = ["/orders", "/maybe", "/fresh", "/details", "/auth/session", "/auth/sessions", "/me"]


@pytest.mark.parametrize("path", PATHS)
def test_a_token_is_in_no_body_and_in_no_header_of_a_cookie_client(swapping: World, path: str) -> None:
    @swapping.app.get("/me")
    async def me(session: CurrentSession) -> str:
        return repr(session) + str(session.token) + json.dumps(dict(session.claims))

    old = swapping.client.cookies["__Host-otpless_session"]
    answer = swapping.get(path)
    new = swapped_token(answer)
    assert answer.status_code == 200
    assert new not in {"", old}
    assert [token for token in (old, new) if token in answer.text] == []
    carriers = {name for name, value in answer.headers.items() if new in value or old in value}
    assert carriers == {"set-cookie"}


def test_a_header_client_gets_no_cookie_and_an_authorization_client_its_token_in_our_header(world: World) -> None:
    for name, value in (("X-Session-Token", "{}"), ("Authorization", "Bearer {}")):
        user = world.sign_in(channel="header")
        world.clock.advance(DAY + 1)
        answer = world.client.get("/orders", headers={name: value.format(world.token(user))})
        assert answer.headers["x-session-token"] not in {world.token(user), ""}
        assert "set-cookie" not in answer.headers
        assert answer.headers["access-control-expose-headers"] == "X-Session-Token"


def test_a_client_of_both_channels_gets_the_token_on_both(world: World) -> None:
    user = world.sign_in()
    world.clock.advance(DAY + 1)
    answer = world.get("/orders", world.token(user))
    assert swapped_token(answer) == answer.headers["x-session-token"]


@pytest.mark.parametrize("path", ["/shown-and-fresh", "/shown-and-details"])
@pytest.mark.parametrize("required_paths", [[], ["/**"]], ids=["open", "required"])
def test_a_session_that_was_served_and_then_asked_about_anew_goes_out_with_its_new_token(
    make_world: Callable[..., World], path: str, required_paths: list[str]
) -> None:
    world = make_world(required_paths=required_paths)

    @world.app.get("/shown-and-fresh")
    async def shown_and_fresh(shown: CurrentSession, fresh: FreshSession) -> list[bool]:
        return [shown.refreshed, fresh.refreshed]

    @world.app.get("/shown-and-details")
    async def shown_and_details(request: Request, shown: CurrentSession, _: CurrentSessionDetails) -> list[bool]:
        return [shown.refreshed, (await request.state.otpless.require()).refreshed]

    user = world.sign_in(channel="header")
    assert world.get("/orders", world.token(user)).json()["refreshed"] is False  # from here on a copy will do
    world.emulator.expire(world.session_id(user))
    answer = world.get(path, world.token(user))
    assert answer.json() == [False, True]
    assert world.get("/orders", answer.headers["x-session-token"]).json()["refreshed"] is False


@pytest.mark.parametrize("channel", ["cookie", "header"])
def test_under_two_middlewares_the_new_token_is_in_the_response_once(
    make_world: Callable[..., World], channel: str
) -> None:
    world = make_world(required_paths="/shop/**")  # the outer middleware asks, then the mounted application's own
    shop = FastAPI()
    shop.add_middleware(OtplessSessionMiddleware, sessions=world.sessions)

    @shop.get("/orders")
    async def orders(session: CurrentSession) -> str:
        return session.user_id

    world.app.mount("/shop", shop)
    user = world.sign_in(channel=channel)
    world.clock.advance(DAY + 1)
    answer = world.get("/shop/orders", world.token(user) if channel == "header" else None)
    name = "set-cookie" if channel == "cookie" else "x-session-token"
    assert len(answer.headers.get_list(name)) == 1
    assert world.token(user) not in answer.headers[name]


def test_a_sign_in_whose_session_was_looked_at_before_answers_with_one_token(make_world: Callable[..., World]) -> None:
    world = make_world(EmulatorSettings(one_time_token_reusable=True))
    user = world.sign_in(channel="header")
    old = world.token(user)
    world.emulator.expire(world.session_id(user))
    current = world.get("/fresh", old).headers["x-session-token"]
    world.app.include_router(create_session_router(), prefix="/looked", dependencies=[Depends(optional_session)])
    user["sessionInfo"]["sessionToken"] = current
    answer = world.client.post("/looked/login?channel=header", json=user, headers={"X-Session-Token": old})
    assert (answer.status_code, answer.headers.get_list("x-session-token")) == (200, [current])


# Byte for byte


async def _numbers() -> AsyncIterator[bytes]:
    for number in range(5):
        yield b"%d," % number


def _app(folder: Path, done: list[str]) -> ASGIApp:
    """An application of raw responses. It asks for its session wherever there is one to be had."""

    def file(**values: Any) -> Response:
        return FileResponse(folder / "large.bin", media_type="application/octet-stream", **values)

    responses: dict[str, Callable[[], Response]] = {
        "/json": lambda: JSONResponse({"é": "ü"}),
        "/stream": lambda: StreamingResponse(_numbers(), media_type="text/event-stream"),
        "/empty": lambda: Response(status_code=204),
        "/304": lambda: Response(status_code=304, headers={"ETag": '"x"', "Cache-Control": "public, max-age=60"}),
        "/redirect": lambda: RedirectResponse("/json"),
        "/error": lambda: PlainTextResponse("broken", 500),
        "/file": file,
        "/download": lambda: file(filename="é.bin"),
        "/background": lambda: PlainTextResponse("ok", background=BackgroundTask(done.append, "done")),
    }

    async def raw(send: Send) -> None:
        headers = [(b"trailer", b"x-sum"), (b"Content-Type", b"text/plain")]
        await send({"type": "http.response.push", "path": "/style.css", "headers": []})
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers), "trailers": True})
        await send({"type": "http.response.body", "body": memoryview(b"one"), "more_body": True})
        await send({"type": "http.response.zerocopysend", "file": 7, "offset": 1, "count": 2, "more_body": True})
        await send({"type": "http.response.pathsend", "path": str(folder / "large.bin")})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        session = scope.get("state", {}).get("otpless")
        if session is not None:
            assert await session.session() is not None
        if scope["path"] == "/raw":
            await raw(send)
        else:
            await responses[scope["path"]]()(scope, receive, send)

    return app


def split(answer: Exchange) -> tuple[list[Any], HeaderList]:
    """Return what must be the same, with and without us, and what the headers are that we may touch."""
    same: list[Any] = []
    for message in answer.messages:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if name.lower() not in OURS]
            same.append({**message, "headers": kept})
        else:
            same.append(message)
    start = next(message for message in answer.messages if message["type"] == "http.response.start")
    return same, [(name, value) for name, value in start["headers"] if name.lower() in OURS]


EXTENSIONS: dict[str, dict[str, Any]] = {"none": {}, "pathsend": {"http.response.pathsend": {}}}


@pytest.mark.parametrize("extension", list(EXTENSIONS))
@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/json", []),
        ("/stream", []),
        ("/empty", []),
        ("/304", []),
        ("/redirect", []),
        ("/error", []),
        ("/file", []),
        ("/file", [(b"range", b"bytes=10-20")]),
        ("/file", [(b"range", b"bytes=0-1,5-6")]),
        ("/file", [(b"range", b"bytes=999999999-")]),
        ("/download", []),
        ("/background", []),
        ("/raw", []),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_kind_of_response_is_byte_identical_with_and_without_the_middleware(  # noqa: PLR0917 - a table
    swapping: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    more: HeaderList,
    method: str,
    extension: str,
) -> None:
    monkeypatch.setattr("starlette.responses.token_hex", lambda _: "boundary")  # of multipart ranges
    (tmp_path / "large.bin").write_bytes(bytes(range(256)) * 1000)
    done: list[str] = []
    app = _app(tmp_path, done)
    cookie = (b"cookie", COOKIE + swapping.client.cookies["__Host-otpless_session"].encode())
    scope = http_scope(path, method, [cookie, *more], extensions=EXTENSIONS[extension])
    ours = OtplessSessionMiddleware(app, sessions=swapping.sessions)
    with_us, touched = split(swapping.call(exchange, ours, {**scope}))
    without_us, _ = split(swapping.call(exchange, app, {**scope}))
    assert with_us == without_us
    assert next(value for name, value in touched if name == b"set-cookie").startswith(COOKIE)
    assert (b"cache-control", b"no-store") in touched
    assert done == (["done", "done"] if path == "/background" else [])


def test_a_request_that_asks_for_no_session_is_passed_on_as_it_is(swapping: World, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"x")
    inner = _app(tmp_path, [])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "state": {}}, receive, send)

    cookie = (b"cookie", COOKIE + swapping.client.cookies["__Host-otpless_session"].encode())
    for path in ("/json", "/stream", "/304", "/file"):
        scope = http_scope(path, headers=[cookie])
        ours = OtplessSessionMiddleware(app, sessions=swapping.sessions)
        without_us: Exchange = swapping.call(exchange, app, {**scope})
        assert swapping.call(exchange, ours, {**scope}).messages == without_us.messages


# Messages that are sent again

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def test_what_is_sent_to_everybody_brings_nobody_the_token_of_another(swapping: World) -> None:
    async def constant(scope: Scope, _: Receive, send: Send) -> None:
        await scope["state"]["otpless"].session()
        await send(START)
        await send({"type": "http.response.body", "body": b"hello"})

    swapping.app.mount("/constant", constant)
    assert "set-cookie" in swapping.get("/constant/").headers
    swapping.client.cookies.clear()
    assert {"set-cookie", "cache-control"}.isdisjoint(swapping.get("/constant/").headers)
    assert START["headers"] == [(b"content-type", b"text/plain")]


# Handlers that raise


@pytest.mark.parametrize("channel", ["cookie", "header"])
@pytest.mark.parametrize("rotation", ["fixed", "strict"])
def test_after_a_handler_that_raises_the_next_request_carries_the_swap_without_a_second_refresh(
    make_world: Callable[..., World], channel: str, rotation: Any
) -> None:
    world = make_world(EmulatorSettings(rotation=rotation))

    @world.app.get("/bug")
    async def bug(_: CurrentSession) -> None:
        raise ZeroDivisionError

    user = world.sign_in(channel=channel)
    token = world.token(user) if channel == "header" else None
    world.clock.advance(DAY + 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            world.get("/bug", token)
    answer = world.get("/orders", token)
    assert answer.json()["refreshed"] is True
    assert ("set-cookie" if channel == "cookie" else "x-session-token") in answer.headers
    assert world.emulator.count("get-new-session-token") == 1


# One more look


@pytest.mark.parametrize("channel", ["cookie", "header"])
@pytest.mark.parametrize("how", ["end", "end_all", "sign_out"])
def test_a_session_that_was_ended_while_the_request_ran_gets_no_new_token(
    make_world: Callable[..., World], how: str, channel: str
) -> None:
    world = make_world(store_ttl=60)  # a worker's own copy does not do for this look

    @world.app.get("/ends")
    async def ends(session: CurrentSession, sessions: Sessions) -> bool:
        if how == "end":
            await sessions.end(session.id)
        elif how == "end_all":
            await sessions.end_all(session.user_id)
        else:
            await sessions.sign_out(session.token.get_secret_value())
        return session.refreshed

    user = world.sign_in(channel=channel)
    world.clock.advance(DAY + 1)
    answer = world.get("/ends", world.token(user) if channel == "header" else None)
    assert answer.json() is True
    assert "set-cookie" not in answer.headers
    assert "x-session-token" not in answer.headers
    assert world.emulator.session(world.session_id(user)).revoked


def test_a_session_that_ends_after_the_first_bytes_were_made_gets_no_new_token(world: World) -> None:
    @world.app.get("/slow")
    async def slow(request: Request, session: CurrentSession, sessions: Sessions) -> Response:
        response = StreamingResponse(_numbers())
        assert await request.state.otpless.session() is session
        await sessions.end(session.id)
        return response

    world.sign_in()
    world.clock.advance(DAY + 1)
    answer = world.get("/slow")
    assert (answer.text, "set-cookie" in answer.headers) == ("0,1,2,3,4,", False)


# Denials clear nothing


def _missing(world: World) -> None:
    world.client.cookies.clear()


def _unknown(world: World) -> None:
    world.client.cookies.clear()
    world.client.cookies.set("__Host-otpless_session", "a.b.c", domain="shop.example")


def _expired(world: World) -> None:
    world.clock.advance(8 * DAY)


def _killed(world: World) -> None:
    world.emulator.revoke(world.emulator.sessions()[0].session_id)
    world.clock.advance(3600)


def _ended(world: World) -> None:
    world.call(world.sessions.end_all, world.emulator.sessions()[0].user_id)


def _reused(world: World) -> None:
    old = world.client.cookies["__Host-otpless_session"]
    world.clock.advance(DAY + 1)
    world.get("/orders")
    world.get("/orders")
    world.clock.advance(31)
    world.client.cookies.clear()
    world.client.cookies.set("__Host-otpless_session", old, domain="shop.example")


def _outage(world: World) -> None:
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(3600)


def _conflict(world: World) -> None:
    world.client.headers["X-Session-Token"] = "a.b.c"


def _cross_site(world: World) -> None:
    world.client.headers["Sec-Fetch-Site"] = "cross-site"


@pytest.mark.parametrize("required", ["", "/orders,/auth/sessions"])
@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (_missing, "session_missing"),
        (_unknown, "session_invalid"),
        (_expired, "session_expired"),
        (_killed, "session_expired"),
        (_ended, "session_revoked"),
        (_reused, "session_reused"),
        (_outage, "session_unavailable"),
        (_conflict, "conflicting_credentials"),
        (_cross_site, "cross_site_request"),
    ],
)
def test_a_refusal_never_clears_or_sets_a_cookie(
    make_world: Callable[..., World], happens: Callable[[World], None], expected: str, required: str
) -> None:
    world = make_world(required_paths=required)
    world.sign_in()
    happens(world)
    answer = world.client.post("/orders")
    assert code(answer) == expected
    assert {"set-cookie", "x-session-token", "clear-site-data"}.isdisjoint(answer.headers)
    if expected != "cross_site_request":
        later = world.get("/auth/sessions")
        assert later.status_code == answer.status_code or expected == "session_reused"
        assert {"set-cookie", "x-session-token", "clear-site-data"}.isdisjoint(later.headers)


def test_a_refused_sign_in_clears_nothing(world: World) -> None:
    world.sign_in()
    before = world.client.cookies["__Host-otpless_session"]
    for body in ({}, {"token": "x"}, {**world.emulator.sign_in(), "token": "made-up"}):
        answer = world.client.post("/auth/login", json=body)
        assert answer.status_code in {401, 422}
        assert "set-cookie" not in answer.headers
    assert world.client.cookies["__Host-otpless_session"] == before
    assert world.get("/orders").status_code == 200
