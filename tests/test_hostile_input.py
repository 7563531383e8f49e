"""Hostile requests: what is no token, what is presented twice, ways around a required path, and bodies of a sign-in."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import httpx
import pytest
from asgi import Exchange, exchange, http_scope, serving
from conftest import Clock, World, add_routes, interpreted_only, make_settings
from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_otpless_session import (
    OptionalSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    SessionReason,
    SessionStore,
    create_session_router,
    open_store,
)
from fastapi_otpless_session.doctor.application import view
from fastapi_otpless_session.emulator import Emulator, Fault

pytestmark = pytest.mark.varied

COOKIE = "__Host-otpless_session"
JSON = {"Content-Type": "application/json"}


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def ask(world: World, path: str, method: str = "GET", headers: Any = (), **more: Any) -> Exchange:
    """Send a request that no HTTP library would send."""
    found: Exchange = world.call(exchange, world.app, http_scope(path, method, headers, **more))
    return found


# What is no token


NO_TOKENS = {
    "nothing": "",
    "one part": "abc",
    "two parts": "a.b",
    "four parts": "a.b.c.d",
    "an empty part": "a..c",
    "over 8 KiB": "a.b." + "c" * 8189,
    "padding": "a.b.c=",
    "base64, not base64url": "a+b.c/d.e",
    "not ASCII": "é.é.é",
    "digits of another script": "a.b.\u0661",
    "a full-width letter": "a.b.\uff41",
    "NUL": "a.b.c\0",
    "NUL inside": "a\0.b.c",
    "a lone surrogate": "a.b.\ud800",
    "a line's end": "a.b.c\n",
    "a space": "a.b. c",
}


class WatchedStore:
    """A store, and what it was asked."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._store, name)


class Watched:
    """Sessions whose store and whose OTPLESS write down what they are asked."""

    def __init__(self, sessions: OtplessSessions, store: WatchedStore, emulator: Emulator) -> None:
        self.sessions = sessions
        self.store = store
        self.emulator = emulator

    def forget(self) -> None:
        self.store.asked.clear()
        self.emulator.reset_calls()


@pytest.fixture
async def watched() -> AsyncIterator[Watched]:
    clock, settings = Clock(), make_settings()
    emulator = Emulator(clock=clock)
    real = open_store("memory://", clock=clock)
    store = WatchedStore(real)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        async with OtplessSessions(settings, store=cast("SessionStore", store), client=client, clock=clock) as sessions:
            yield Watched(sessions, store, emulator)
        await real.close()


@contextmanager
def called_modules() -> Iterator[set[str]]:
    """Note of which modules this thread calls a function, compiled ones included."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            seen.add(str(getattr(function, "__module__", "")))
        elif event == "call":
            seen.add(str(frame.f_globals.get("__name__")))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(before)


HASHING = {"_hashlib", "_sha2", "_sha256"}
PARSING = {"json.decoder", "binascii", "jwt.api_jws"}


@pytest.mark.parametrize("token", NO_TOKENS.values(), ids=NO_TOKENS.keys())
async def test_what_is_no_token_is_refused_before_any_hashing_parsing_or_call(watched: Watched, token: str) -> None:
    watched.forget()
    with called_modules() as called:
        outcome = await watched.sessions.resolve(token)
    assert outcome is SessionReason.INVALID
    assert not called & (HASHING | PARSING)
    assert watched.store.asked == []
    assert watched.emulator.calls == []


@interpreted_only
async def test_what_could_be_a_token_is_hashed_looked_up_and_parsed(watched: Watched) -> None:
    watched.forget()
    with called_modules() as called:
        assert await watched.sessions.resolve("e30.e30.e30") is SessionReason.INVALID
    assert called & HASHING
    assert called >= PARSING
    assert "find" in watched.store.asked


@pytest.mark.parametrize("token", NO_TOKENS.values(), ids=NO_TOKENS.keys())
async def test_a_sign_out_with_what_is_no_token_asks_nobody(watched: Watched, token: str) -> None:
    watched.forget()
    await watched.sessions.sign_out(token)
    assert (watched.store.asked, watched.emulator.calls) == ([], [])


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", ["X-Session-Token", "Cookie", "Authorization"])
def test_what_is_no_token_is_a_401_on_every_channel(world: World, name: str) -> None:
    for token in NO_TOKENS.values():
        value = {"Cookie": f"{COOKIE}={token}", "Authorization": f"Bearer {token}"}.get(name, token)
        answer = ask(world, "/orders", headers=[(name.lower().encode(), raw(value))])
        assert answer.status == 401, token
    assert world.emulator.calls == []


@pytest.mark.parametrize("around", [b"", b" ", b"\t ", b"\xa0", b"\x0b", b"\x85", b"\0"])
@pytest.mark.parametrize(("name", "before"), [(b"x-session-token", b""), (b"authorization", b"Bearer ")])
def test_only_spaces_and_tabs_are_trimmed_off_a_token(world: World, name: bytes, before: bytes, around: bytes) -> None:
    token = world.token(world.sign_in(channel="header")).encode()
    answer = ask(world, "/orders", headers=[(name, before + around + token + around)])
    assert answer.status == (200 if not around.strip(b" \t") else 401)


# What is presented twice


CONFLICTS: dict[str, Callable[[str, str], list[tuple[str, str]]]] = {
    "two tokens on two channels": lambda one, two: [("X-Session-Token", one), ("Authorization", f"Bearer {two}")],
    "a header and another cookie": lambda one, two: [("X-Session-Token", one), ("Cookie", f"{COOKIE}={two}")],
    "a header twice": lambda one, _: [("X-Session-Token", one), ("X-Session-Token", one)],
    "a header twice, once empty": lambda one, _: [("X-Session-Token", ""), ("X-Session-Token", one)],
    "two bearers": lambda one, two: [("Authorization", f"Bearer {one}"), ("Authorization", f"Bearer {two}")],
    "a bearer twice": lambda one, _: [("Authorization", f"Bearer {one}"), ("Authorization", f"bearer {one}")],
    "a bearer and an API key": lambda one, _: [("Authorization", f"Bearer {one}"), ("Authorization", "Basic YTpi")],
    "a cookie twice": lambda one, _: [("Cookie", f"{COOKIE}={one}; {COOKIE}={one}")],
    "a cookie twice, once empty": lambda one, _: [("Cookie", f"{COOKIE}=; {COOKIE}={one}")],
    "a cookie in two headers": lambda one, _: [("Cookie", f"{COOKIE}={one}"), ("Cookie", f"{COOKIE}={one}")],
    "a good and a bad token": lambda one, _: [("X-Session-Token", one), ("Cookie", f"{COOKIE}=x")],
}


@pytest.mark.parametrize("conflict", CONFLICTS.values(), ids=CONFLICTS.keys())
def test_credentials_that_disagree_are_a_400_only_where_a_session_is_asked_for(
    world: World, conflict: Callable[[str, str], list[tuple[str, str]]]
) -> None:
    one, two = (world.token(world.sign_in(channel="header", mobile=number)) for number in ("911", "922"))
    headers = conflict(one, two)
    for path in ("/orders", "/maybe", "/fresh", "/details", "/auth/session", "/auth/sessions"):
        answer = world.client.get(path, headers=headers)
        assert (answer.status_code, code(answer)) == (400, "conflicting_credentials")
        assert 'error="invalid_request"' in answer.headers["www-authenticate"]
    assert world.client.get("/public", headers=headers).status_code == 200
    assert world.client.post("/auth/login", headers=headers, json=world.emulator.sign_in()).status_code == 200
    assert world.client.post("/auth/logout", headers=headers).status_code == 204


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Basic YTpi"), ("Authorization", "Bearer sk_live")],
        [("Cookie", "a=1"), ("Cookie", "b=2"), ("Cookie", "a=1; a=1")],
        [("X-Other", "1"), ("X-Other", "2")],
    ],
    ids=["API keys", "other cookies, split as HTTP/2 does", "other headers"],
)
def test_other_names_may_occur_as_often_as_they_like(world: World, headers: list[tuple[str, str]]) -> None:
    token = world.token(world.sign_in(channel="header"))
    assert world.client.get("/orders", headers=[*headers, ("X-Session-Token", token)]).status_code == 200


def test_required_paths_refuse_a_conflict_too(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/public")
    token = world.token(world.sign_in(channel="header"))
    twice = [("X-Session-Token", token), ("X-Session-Token", token)]
    assert code(world.client.get("/public", headers=twice)) == "conflicting_credentials"


def test_a_heap_of_made_up_tokens_costs_a_few_calls_at_most(make_world: Callable[..., World]) -> None:
    world = make_world(jwks_url="")
    claims = {"sub": "s-1", "exp": int(world.clock.now) + 60}
    heap = [("X-Session-Token", world.emulator.forge({**claims, "number": number})) for number in range(40)]
    assert world.client.post("/auth/logout", headers=heap).status_code == 204
    assert len(world.emulator.calls) == 8
    assert code(world.client.get("/orders", headers=heap)) == "conflicting_credentials"


# The Cookie header


@pytest.mark.parametrize(
    ("written", "status"),
    [
        (b"%(name)s=%(token)s", 200),
        (b"a=1;%(name)s=%(token)s;b=2", 200),
        (b" \t%(name)s\t =\t %(token)s \t", 200),
        (b"a=1,%(name)s=%(token)s", 401),
        (b"\xa0%(name)s=%(token)s", 401),
        (b"%(name)s\xa0=%(token)s", 401),
        (b"\xe2\x80\x80%(name)s=%(token)s", 401),
        (b"\x0b%(name)s=%(token)s", 401),
        (b"\x00%(name)s=%(token)s", 401),
        (b"%(name)s=\xa0%(token)s", 401),
        (b'%(name)s="%(token)s"', 401),
        (b"%(name)s%%3D%(token)s", 401),
        (b"__host-otpless_session=%(token)s", 401),
        (b"otpless_session=%(token)s", 401),
        (b"x%(name)s=%(token)s", 401),
        (b"%(token)s", 401),
        (b"=%(token)s", 401),
        (b"%(name)s=%(token)s; %(name)s=", 400),
        (b"%(name)s=%(token)s; %(name)s", 200),
        (b"%(name)s=%(token)s; \xa0%(name)s=x", 200),
        (b"%(name)s=%(token)s;\t%(name)s\t=%(token)s", 400),
    ],
)
def test_the_cookie_header_is_read_strictly(world: World, written: bytes, status: int) -> None:
    token = world.token(world.sign_in(channel="header"))
    value = written % {b"name": COOKIE.encode(), b"token": token.encode()}
    assert ask(world, "/orders", headers=[(b"cookie", value)]).status == status


# What is no credential


def test_a_token_anywhere_but_in_its_places_is_no_credential(world: World) -> None:
    @world.app.post("/form")
    async def form(request: Request, session: OptionalSession) -> str | None:
        assert token.encode() in await request.body()
        return session.user_id if session else None

    token = world.token(world.sign_in(channel="header"))
    for name in ("X_Session_Token", "X-Session_Token", "Session-Token", "Token", "X-Authorization", "Cookie2"):
        assert code(world.client.get("/orders", headers={name: token})) == "session_missing"
    for name in ("X-Session-Token", "access_token", "token", "session_token", COOKIE):
        assert code(world.client.get("/orders", params={name: token})) == "session_missing"
    assert world.client.post("/form", data={"X-Session-Token": token}).json() is None
    assert world.emulator.count("validate-session") == 0


@pytest.mark.parametrize("source", ["authorization", "header", "cookie"])
def test_a_source_that_is_switched_off_is_not_looked_at(make_world: Callable[..., World], source: str) -> None:
    others = [name for name in ("authorization", "header", "cookie") if name != source]
    world = make_world(token_sources=",".join(others))
    token = world.token(world.sign_in(channel="header"))
    headers = {
        "authorization": {"Authorization": f"Bearer {token}"},
        "header": {"X-Session-Token": token},
        "cookie": {"Cookie": f"{COOKIE}={token}"},
    }
    assert code(world.client.get("/orders", headers=headers[source])) == "session_missing"
    assert [world.client.get("/orders", headers=headers[name]).status_code for name in others] == [200, 200]


# Preflights


PREFLIGHT = [
    (b"origin", b"https://app.example"),
    (b"access-control-request-method", b"GET"),
    (b"access-control-request-headers", b"x-session-token"),
]


def cors_app(*, with_sessions: bool) -> FastAPI:
    app = FastAPI()
    app.add_middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_headers=["X-Session-Token"])
    if with_sessions:
        app.add_middleware(OtplessSessionMiddleware, settings=make_settings(required_paths="/**"))

    @app.get("/orders")
    async def orders() -> None:
        """Be there."""

    return app


def test_a_preflight_passes_untouched() -> None:
    def preflight(*, with_sessions: bool) -> list[Any]:
        headers = [*PREFLIGHT, (b"cookie", f"{COOKIE}=x; {COOKIE}=y".encode()), (b"sec-fetch-site", b"cross-site")]
        scope = http_scope("/orders", "OPTIONS", headers)
        return asyncio.run(exchange(cors_app(with_sessions=with_sessions), scope)).messages

    answer = preflight(with_sessions=True)
    assert answer[0]["status"] == 200
    assert answer == preflight(with_sessions=False)


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_only_options_is_a_preflight(make_world: Callable[..., World], method: str) -> None:
    world = make_world(required_paths="/**")
    assert ask(world, "/public", method, PREFLIGHT).status == 401


async def heedless(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer whatever the method, as `prometheus_client` does."""
    await PlainTextResponse("secret", headers={"Location": "/secret", "X-Total": "secret"})(scope, receive, send)


class Answering:
    """Middleware that answers by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (heedless if scope["path"] == "/metrics" else self.app)(scope, receive, send)


async def heedless_file(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})  # ASGI lets it have no headers
    await send({"type": "http.response.pathsend", "path": "secret"})


@pytest.mark.parametrize("mounted", [heedless, heedless_file])
def test_a_preflight_shows_nothing_of_what_answers_any_method(
    make_world: Callable[..., World], mounted: ASGIApp
) -> None:
    world = make_world(required_paths="/mounted/**")
    world.app.mount("/mounted", mounted)
    assert ask(world, "/mounted/x", "OPTIONS").status == 401
    answer = ask(world, "/mounted/x", "OPTIONS", PREFLIGHT)
    assert answer.status == 200
    assert b"secret" not in b"".join(value for _, value in answer.headers)
    assert answer.values(b"content-length") == []
    assert answer.messages[1:] == [{"type": "http.response.body", "body": b"", "more_body": False}]


def test_a_preflight_shows_nothing_of_middleware_that_answers_before_cors_either() -> None:
    cors = CORSMiddleware(FastAPI(), allow_origins=["*"])
    app = OtplessSessionMiddleware(Answering(cors), settings=make_settings(required_paths="/**"))
    answer = asyncio.run(exchange(app, http_scope("/metrics", "OPTIONS", PREFLIGHT)))
    assert (answer.status, answer.body) == (200, b"")


# Required paths


@pytest.fixture
def guarded(make_world: Callable[..., World], tmp_path: Path) -> World:
    """Secrets behind every kind of route, and something public beside each."""
    for folder in ("private", "private/open", "public"):
        (tmp_path / "uploads" / folder).mkdir(parents=True)
        (tmp_path / "uploads" / folder / "x").write_text("secret" if folder == "private" else "for all")
    world = make_world(
        required_paths="/account/**,/files/private/**,/sub/private/**,/exact,/sub/*/slash/",
        exempt_paths="/account/help,/files/private/open/**",
    )

    def add(app: APIRouter | FastAPI, path: str, text: str) -> None:
        app.add_api_route(path, lambda: text)

    add(world.app, "/account/help", "for all")
    add(world.app, "/account", "secret")
    add(world.app, "/account/{page:path}", "secret")
    add(world.app, "/exact", "secret")
    sub = FastAPI()
    add(sub, "/private/{page}", "secret")
    add(sub, "/a/slash/", "secret")
    add(sub, "/public", "for all")
    world.app.mount("/sub", sub)
    world.app.mount("/files", StaticFiles(directory=tmp_path / "uploads"))
    return world


@pytest.mark.parametrize(
    "path",
    [
        "/account/orders",
        "/account/",
        "/account//",
        "//account/orders",
        "/account//help",  # as the router sees it, another page
        "/account/help/",
        "/account/./help/..",
        "/account/help/../orders",
        "/account/x\ny",
        "/account/x\0y",
        "/account/é",
        "/exact",
        "/exact/",
        "//exact",
        "/exact\n",
        "/account\n",
        "/account/help\n",
        "/sub/private/x\n",
        "/sub//private/x\n",
        "/sub/a/slash/\n",
        "/sub/private/x",
        "/sub//private/x",
        "/sub/private//x",
        "/sub/a/slash",
        "/sub/a/slash/",
        "/files/private/x",
        "/files//private/x",
        "/files/./private/x",
        "/files/public/../private/x",
        "/files/public//../private/x",
        "/files/private/open/../x",
        "/files/private/open/./..//x",
        "/files/x/../../files/private/x",
        "/files/../uploads/private/x",
        "/files/..\\uploads/private/x",
        "/files/x/../../uploads/private/x",
        "/files/public/..\\private\\x",
        "/x/../files/private/x",
    ],
)
def test_no_spelling_of_a_path_gets_around_what_is_required(guarded: World, path: str) -> None:
    answer = ask(guarded, path)
    assert (answer.status, b"secret" in answer.body) == (401, False)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_a_route_cannot_read_of_a_path_is_refused_like_any_other(
    make_world: Callable[..., World], method: str
) -> None:
    world = make_world(required_paths="/account/**")
    world.app.add_api_route("/account/{number:int}", lambda number: number, methods=["GET", "POST"])
    assert ask(world, f"/account/{'9' * 5_000}", method).status == 401


@pytest.mark.parametrize("path", ["/account/help", "/files/public/x", "/files/private/open/x", "/sub/public"])
def test_what_is_exempt_or_not_required_is_open(guarded: World, path: str) -> None:
    assert ask(guarded, path).status == 200


@pytest.mark.parametrize("path", ["/Exact", "/EXACT", "/Account/orders", "/accountx", "/account.html", "/exact/x"])
def test_a_path_that_the_router_does_not_take_for_a_required_one_leads_nowhere(guarded: World, path: str) -> None:
    assert ask(guarded, path).status == 404


@pytest.mark.parametrize(
    ("required", "target", "status"),
    [
        ("/a/b", "/a%2fb", 401),
        ("/a/b", "/%61/b", 401),
        ("/a/b", "/a/b?x=/../public", 401),
        ("/a/b", "/a/b%3Fx", 404),
    ],
)
def test_percent_signs_are_read_as_the_server_reads_them(
    make_world: Callable[..., World], required: str, target: str, status: int
) -> None:
    world = make_world(required_paths=required)
    assert world.client.get(target).status_code == status


@pytest.mark.parametrize(
    "host", ["shop.example/public?", "evil.example", "shop.example/public", "", "[", "shop.example@public#", "\xff"]
)
def test_no_host_header_changes_what_is_required(guarded: World, host: str) -> None:
    scope = {**http_scope("/exact"), "headers": [(b"host", host.encode("latin-1")), (b"x-forwarded-host", b"/public")]}
    answer: Exchange = guarded.call(exchange, guarded.app, scope)
    assert answer.status == 401


class Between:
    """Some other middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize("wrapped", ["by add_middleware", "around", "around others"])
@pytest.mark.parametrize("path", ["/orders", "/api/orders", "/api//orders", "/api/orders/"])
def test_a_root_path_does_not_hide_a_required_path(wrapped: str, path: str) -> None:
    settings = make_settings(required_paths="/orders")
    app = add_routes(FastAPI())
    app.root_path = "/api"  # as the parameter, which FastAPI deprecates
    outer: ASGIApp = app
    if wrapped == "by add_middleware":
        app.add_middleware(OtplessSessionMiddleware, settings=settings)
    else:
        outer = OtplessSessionMiddleware(Between(app) if wrapped == "around others" else app, settings=settings)
    app.add_api_route("/here", lambda: None)

    async def statuses() -> tuple[int, int]:
        required = await exchange(outer, http_scope(path))
        return required.status, (await exchange(outer, http_scope("/api/here"))).status

    assert asyncio.run(statuses()) == (401, 200)


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("path", ["/auth/logout", "/api/auth/logout"])
def test_a_root_path_does_not_hide_what_is_always_exempt(around: bool, path: str) -> None:
    app = FastAPI()
    app.root_path = "/api"
    app.include_router(create_session_router(), prefix="/auth")
    settings, outer = make_settings(required_paths="/**"), cast("ASGIApp", app)
    if around:
        outer = OtplessSessionMiddleware(app, settings=settings)
    else:
        app.add_middleware(OtplessSessionMiddleware, settings=settings)
    assert asyncio.run(exchange(outer, http_scope(path, "POST"))).status == 204


@pytest.mark.parametrize("wrapped", ["plain", "around", "by Mount"])
def test_what_is_always_exempt_is_found_in_a_mounted_application_with_middleware_around(wrapped: str) -> None:
    inner, app = FastAPI(), FastAPI()
    inner.include_router(create_session_router(), prefix="/auth")
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(required_paths="/api/**"))
    around = [Middleware(Between)] if wrapped == "by Mount" else []
    app.router.routes.append(Mount("/api", Between(inner) if wrapped == "around" else inner, middleware=around))
    asked = (("POST", "/api/auth/logout"), ("GET", "/api/auth/client.js"), ("GET", "/api/auth/session"))
    answers = [asyncio.run(exchange(app, http_scope(path, method))).status for method, path in asked]
    assert answers == [204, 200, 401]
    assert view(app).sign_in == "/api/auth/login"


@pytest.mark.parametrize("mounted", [False, True])
def test_the_sign_in_route_is_found_through_other_middleware_and_mounts(mounted: bool) -> None:
    inner = FastAPI()
    inner.include_router(create_session_router(), prefix="/auth")
    ours: ASGIApp = OtplessSessionMiddleware(Between(inner), settings=make_settings(required_paths="/**"))
    outer = FastAPI()
    outer.mount("/shop", ours)
    scope = http_scope("/shop/auth/login" if mounted else "/auth/login", "POST", [(b"content-type", b"text/plain")])
    answer = asyncio.run(exchange(outer if mounted else ours, scope))
    assert (answer.status, b"media_type_unsupported" in answer.body) == (415, True)


async def test_what_a_glob_costs_grows_with_the_path_and_no_faster() -> None:
    app = OtplessSessionMiddleware(add_routes(FastAPI()), settings=make_settings(required_paths="/files/*-*.pdf"))

    async def cost(length: int) -> float:
        before = time.thread_time()
        assert (await exchange(app, http_scope("/files/" + "-" * length))).status == 404
        return time.thread_time() - before

    short, long = [min([await cost(length) for _ in range(3)]) for length in (1_000, 16_000)]
    assert long < 64 * short  # of 16 times the length; trying every place for every star takes its square


# A server in between


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (b"/files/private/x", b"", 401),
        (b"/files/./private/x", b"", 401),
        (b"/files/public/%2e%2e/private/x", b"", 401),
        (b"/files%2fprivate%2fx", b"", 401),
        (b"//files//private/x", b"", 401),
        (b"/files/public/x", b"", 200),
        (b"/public", b"X-Session-Token: a.b.c\r\nX-Session-Token: a.b.c\r\n", 200),
        (b"/orders", b"X-Session-Token: a.b.c\r\nX-Session-Token: a.b.c\r\n", 400),
        (b"/orders", b"X-Session-Token: a.b.c\r\nx_session_token: a.b.d\r\n", 401),
        (b"/orders", b"Cookie: __Host-otpless_session=a.b.c\r\nCookie: __Host-otpless_session=a.b.c\r\n", 400),
        (b"/orders", b"X-Session-Token: \xff\xed\xa0\x80\r\n", 401),
        (b"/orders", b"X-Session-Token: " + b"a.b." + b"c" * 9_000 + b"\r\n", 401),
    ],
)
def test_a_real_server_hands_all_of_this_over_as_it_came(
    tmp_path: Path, target: bytes, headers: bytes, status: int
) -> None:
    app = add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(required_paths="/files/private/**"))
    for folder in ("private", "public"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    app.mount("/files", StaticFiles(directory=tmp_path))
    with serving(app) as address, socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
        client.sendall(
            b"GET " + target + b" HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n" + headers + b"\r\n"
        )
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 %d " % status)


# Bodies of a sign-in


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "text/plain; application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "application/jsonp",
        "application/json-seq",
        "application/json, text/plain",
        "text/json",
        "*/*",
        "",
    ],
)
def test_a_sign_in_that_is_not_sent_as_json_is_not_read(world: World, media_type: str) -> None:
    body = json.dumps(world.emulator.sign_in())
    answer = world.client.post("/auth/login", content=body, headers={"Content-Type": media_type})
    assert (answer.status_code, code(answer)) == (415, "media_type_unsupported")
    assert world.emulator.calls == []


@pytest.mark.parametrize("media_type", ["application/json", "Application/JSON ; charset=utf-8"])
def test_json_is_json_however_it_is_written(world: World, media_type: str) -> None:
    body = json.dumps(world.emulator.sign_in())
    assert world.client.post("/auth/login", content=body, headers={"Content-Type": media_type}).status_code == 200


def padded(world: World, size: int) -> bytes:
    body = json.dumps(world.emulator.sign_in()).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize(("size", "status"), [(16_384, 200), (16_385, 413)])
@pytest.mark.parametrize("chunk", [1_000, 16_384])
@pytest.mark.parametrize("declared", ["the truth", "too little", "nothing", "9" * 5000])
def test_a_body_of_16_kib_is_counted_while_it_comes(
    world: World, size: int, status: int, chunk: int, declared: str
) -> None:
    body = padded(world, size)
    lengths = {"the truth": str(size), "too little": "1", "nothing": "", "9" * 5000: "9" * 5000}
    headers = [(b"content-type", b"application/json")]
    if lengths[declared]:
        headers.append((b"content-length", lengths[declared].encode()))
    taken: list[bytes] = []

    def chunks() -> Iterator[bytes]:
        for start in range(0, size * 4, chunk):  # more than there is need to read
            part = body[start : start + chunk] if start < size else b""
            taken.append(part)
            yield part

    answer: Exchange = world.call(exchange, world.app, http_scope("/auth/login", "POST", headers), chunks())
    assert answer.status == (413 if declared == "9" * 5000 else status)


def test_a_body_without_an_end_is_given_up_after_16_kib(world: World) -> None:
    read = 0
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal read
        read += 1024
        assert read < 64 * 1024
        return {"type": "http.request", "body": b" " * 1024, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        await world.app(http_scope("/auth/login", "POST", [(b"content-type", b"application/json")]), receive, send)

    world.call(run)
    assert sent[0]["status"] == 413
    assert read <= 18 * 1024


DEEP = {
    "lists": b"[" * 16_000,
    "closed lists": b"[" * 8_000 + b"]" * 8_000,
    "objects": b'{"token":' * 1_700,
    "closed objects": b'{"a":' * 2_600 + b"1" + b"}" * 2_600,
}


@pytest.mark.parametrize(
    "body",
    [
        *DEEP.values(),
        b'{"token": "a", "token": "b", "sessionInfo": {"sessionToken": "a.b.c", "refreshToken": "a.b.d"}}',
        b'{"token": "a", "sessionInfo": {"sessionToken": "a.b.c", "sessionToken": "a.b.e", "refreshToken": "a.b.d"}}',
        b'{"token": "a", "x": NaN}',
        b'{"token": "a", "x": -Infinity}',
        b'{"token": "a", "x": ' + b"9" * 5_000 + b"}",
        b'{"token": 1e999}',
        b'{"token": "a"} {}',
        b'\xef\xbb\xbf{"token": "a"}',
        '{"token": "a"}'.encode("utf-16"),
        b'{"token": "\xed\xa0\x80"}',
        b'{"token": "\\u0000"}',
        b'{"token": "' + b"a" * 8_193 + b'"}',
        b"null",
        b'"otplessUser"',
        b"\0" * 100,
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_cannot_be_trusted_is_a_422_and_asks_nobody(world: World, body: bytes) -> None:
    answer = world.client.post("/auth/login", content=body, headers=JSON)
    assert (answer.status_code, code(answer)) == (422, "body_invalid")
    assert world.emulator.calls == []


@pytest.mark.parametrize("field", ["userId", "sessionInfo.sessionId", "sessionInfo.sessionToken", "other"])
@pytest.mark.parametrize("text", ["\ud800", "\0", "x" * 9_000, "\u202e", "\U0010ffff"], ids=ascii)
def test_odd_text_in_a_sign_in_is_refused_or_ignored_but_breaks_nothing(world: World, field: str, text: str) -> None:
    user = world.emulator.sign_in()
    place = user["sessionInfo"] if "." in field else user
    place[field.rpartition(".")[2]] = text
    answer = world.client.post("/auth/login", content=json.dumps(user), headers=JSON)
    assert answer.status_code in ({200} if field == "other" else {401, 422})


def test_details_from_otpless_never_bring_a_token_to_the_browser(world: World) -> None:
    user = world.sign_in()
    tokens = {**user["sessionInfo"], "sessionInfo": user["sessionInfo"], "idToken": user["idToken"], "token": "canary"}
    details = {"sessionId": world.session_id(user), "userId": user["userId"], "plan": "gold", **tokens}
    world.emulator.add_fault(Fault("status", path="get-session-details", status=200, body=json.dumps(details).encode()))
    answer = world.get("/auth/session")
    assert answer.json()["details"]["plan"] == "gold"
    secrets = [world.token(user), user["sessionInfo"]["refreshToken"], user["idToken"], "canary"]
    assert [secret for secret in secrets if secret in answer.text] == []
