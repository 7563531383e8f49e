"""The middleware: lifespan, required paths, and what it writes into responses."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import httpx
import pytest
from asgi import exchange, http_scope
from conftest import World, add_routes, make_app, make_settings
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection
from starlette.testclient import WebSocketDenialResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import fastapi_otpless_session as package
from fastapi_otpless_session import (
    ConfigurationError,
    CurrentSession,
    MiddlewareMissingError,
    OtplessClient,
    OtplessSessionError,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    RefusalError,
    Sessions,
    SessionUnavailableError,
    create_session_router,
    fresh_within,
)
from fastapi_otpless_session.emulator import Emulator, Fault

DAY = 86_400


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def test_the_public_names_are_these() -> None:
    promised = {
        *("OtplessSessionMiddleware", "OtplessSettings", "OtplessSessions", "Session", "SessionDetails", "Identity"),
        *("DeviceInfo", "NetworkInfo", "SessionReason", "current_session", "optional_session", "fresh_session"),
        *("current_session_details", "otpless_sessions", "CurrentSession", "OptionalSession", "FreshSession"),
        *("CurrentSessionDetails", "Sessions", "fresh_within", "create_session_router", "OtplessClient"),
        *("SessionStore", "open_store", "SessionEvent", "SignOutReason"),
    }
    errors = {name for name in package.__all__ if name.endswith("Error")}
    assert set(package.__all__) == promised | errors
    assert all(hasattr(package, name) for name in package.__all__)


# Lifespan


async def _lifespan(app: FastAPI) -> list[Message]:
    """Play a server: start, and stop if it started; return what the application said. After a failure it may raise."""
    told: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    said: list[Message] = []

    async def receive() -> Message:
        return told.pop(0)

    async def send(message: Message) -> None:
        said.append(message)

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except OtplessSessionError:
        assert said, "servers take an error alone to mean that there is no lifespan"
    return said


def test_wrong_settings_keep_the_server_from_starting_and_say_what_to_write(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    (failed,) = asyncio.run(_lifespan(app))
    assert failed["type"] == "lifespan.startup.failed"
    assert "OTPLESS_CLIENT_ID" in failed["message"]
    assert "OTPLESS_CLIENT_SECRET" in caplog.text


def test_an_unusable_store_keeps_the_server_from_starting() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(store_url="sqlite:///no/such/folder.db"))
    (failed,) = asyncio.run(_lifespan(app))
    assert failed["type"] == "lifespan.startup.failed"
    assert "does not exist" in failed["message"]


def test_a_store_that_cannot_be_reached_at_the_start_is_told_with_the_setting_that_names_it() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(store_url="redis://127.0.0.1:1/0"))
    (failed,) = asyncio.run(_lifespan(app))
    assert failed["type"] == "lifespan.startup.failed"
    assert "OTPLESS_STORE_URL" in failed["message"]


def test_settings_beside_sessions_that_have_others_keep_the_server_from_starting() -> None:
    """Nobody would heed the first, and a path that they require a session for would be open."""
    sessions = OtplessSessions(make_settings())
    app = FastAPI()
    app.add_middleware(
        OtplessSessionMiddleware, settings=make_settings(required_paths="/account/**"), sessions=sessions
    )
    (failed,) = asyncio.run(_lifespan(app))
    assert failed["type"] == "lifespan.startup.failed"
    assert "OtplessSessions(settings" in failed["message"]
    with pytest.raises(ConfigurationError, match="settings and sessions"):
        TestClient(app).get("/account/cards")


def test_the_same_settings_beside_sessions_are_no_error() -> None:
    settings = make_settings(required_paths="/account/**")
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=settings, sessions=OtplessSessions(settings))
    assert TestClient(app, base_url="https://shop.example").get("/account/cards").status_code == 401


@pytest.mark.parametrize("wrong", [{"client_id": "shop"}, OtplessSettings])
def test_settings_that_are_none_are_named(wrong: Any) -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=wrong)
    (failed,) = asyncio.run(_lifespan(app))
    assert "OtplessSettings(…)" in failed["message"]


def test_a_double_of_the_client_will_do() -> None:
    OtplessSessions(make_settings(), client=create_autospec(OtplessClient, instance=True))


@pytest.mark.parametrize("name", ["sign_in", "sign_out", "resolve", "details", "list", "end", "end_all", "end_others"])
def test_what_sessions_are_awaited_for_a_double_of_theirs_is_awaited_for_too(name: str) -> None:
    double = create_autospec(OtplessSessions, instance=True)
    assert isinstance(getattr(double, name), AsyncMock)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param({"store": "redis://:hunter2@cache"}, "store: .*open_store", id="an address"),
        pytest.param({"on_sign_in": "audit"}, "on_sign_in: a function is expected, and not a str", id="a name"),
        pytest.param({"client": OtplessClient(make_settings(client_id="other"))}, "client: .*client_id", id="another"),
    ],
)
def test_what_sessions_cannot_be_made_of_is_named(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        OtplessSessions(make_settings(), **wrong)
    assert "hunter2" not in str(caught.value)


def test_a_test_client_whose_application_cannot_start_gets_the_error() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    client = TestClient(app)
    with pytest.raises(ConfigurationError, match="OTPLESS_CLIENT_ID"):  # or else it would wait for ever in the end
        client.__enter__()


def test_the_applications_own_lifespan_runs_inside_ours(tmp_path: Path) -> None:
    seen: list[str] = []

    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("start")
        yield
        seen.append("stop")

    from contextlib import asynccontextmanager  # noqa: PLC0415 - FastAPI wants a context manager

    app = FastAPI(lifespan=asynccontextmanager(lifespan))
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(store_url=f"sqlite:///{tmp_path}/s.db"))
    said = asyncio.run(_lifespan(app))
    assert [message["type"] for message in said] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert seen == ["start", "stop"]


async def test_once_a_server_knows_that_all_is_closed_nothing_is_left_to_wait_for(tmp_path: Path) -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(store_url=f"sqlite:///{tmp_path}/s.db"))
    told: list[Message] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    knows = asyncio.Event()

    async def receive() -> Message:
        return told.pop(0)

    async def send(message: Message) -> None:
        if message["type"] == "lifespan.shutdown.complete":
            knows.set()

    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
    await knows.wait()
    assert task.done(), "uvicorn ends its event loop now, and takes a lifespan that it has to cancel for none"


def test_a_lifespan_that_fails_closes_what_was_opened() -> None:
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for name in ("database",):
            raise RuntimeError(f"no {name}")
        yield

    from contextlib import asynccontextmanager  # noqa: PLC0415 - as above

    app = FastAPI(lifespan=asynccontextmanager(lifespan))
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())

    async def run() -> int:
        with pytest.raises(RuntimeError, match="no database"):
            await _lifespan(app)
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def in_process(emulator: Emulator, **values: Any) -> FastAPI:
    settings = make_settings(**values)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
    app = make_app()
    sessions = OtplessSessions(settings, client=OtplessClient(settings, http=http))
    app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
    return app


def test_without_a_lifespan_the_first_use_opens_and_every_event_loop_works() -> None:
    emulator = Emulator()
    client = TestClient(in_process(emulator, validation_ttl=0), base_url="https://shop.example")
    user = emulator.sign_in()
    assert client.post("/auth/login", json=user).status_code == 200  # each request has an event loop of its own
    assert client.get("/orders").status_code == 200
    emulator.expire(user["sessionInfo"]["sessionId"])
    assert client.get("/orders").json()["refreshed"] is True
    assert client.post("/auth/logout").status_code == 204
    assert client.get("/orders").status_code == 401


@pytest.mark.parametrize("path", ["/orders", "/required"])
async def test_headers_that_can_be_read_once_are_read_by_all(path: str) -> None:
    """ASGI: any iterable."""
    emulator = Emulator()
    app = in_process(emulator, required_paths="/required")

    @app.get("/required")
    async def required(request: Request) -> dict[str, str]:
        return dict(request.headers)

    scope = http_scope(path)
    user = emulator.sign_in()
    scope["headers"] = iter([(b"x-session-token", user["sessionInfo"]["sessionToken"].encode()), (b"x-other", b"1")])
    answer = await exchange(app, scope)
    assert answer.status == 200
    if path == "/required":
        assert json.loads(answer.body).keys() == {"x-session-token", "x-other"}


async def test_headers_need_not_be_tuples() -> None:
    """ASGI: two-item iterables. Applications write their own likewise."""
    emulator = Emulator()

    async def lists(scope: Scope, _: Receive, send: Send) -> None:
        await scope["state"]["otpless"].session()
        headers = [[b"vary", b"accept"], [b"x-name", b"1"], [b"cache-control", b"public"]]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    app = in_process(emulator, required_paths="/required", validation_ttl=0)
    app.mount("/lists", lists)
    user = emulator.sign_in()
    await exchange(
        app, http_scope("/auth/login", "POST", [(b"content-type", b"application/json")]), [json.dumps(user).encode()]
    )
    emulator.expire(user["sessionInfo"]["sessionId"])
    cookie = [b"cookie", b"__Host-otpless_session=" + user["sessionInfo"]["sessionToken"].encode()]
    answer = await exchange(app, {**http_scope("/lists/"), "headers": [cookie, [b"x-other", b"1"]]})
    assert answer.status == 200
    assert answer.values(b"vary") == [b"accept, Authorization, X-Session-Token, Cookie"]
    assert answer.values(b"cache-control") == [b"no-store"]
    assert len(answer.values(b"set-cookie")) == 1
    asked = [[b"origin", b"https://shop.example"], [b"access-control-request-method", b"GET"]]
    assert (await exchange(app, {**http_scope("/required", "OPTIONS"), "headers": asked})).status == 404
    posted = {
        **http_scope("/required", "POST"),
        "scheme": None,
        "headers": [cookie, [b"origin", b"https://evil.example"]],
    }
    assert (await exchange(app, posted)).status == 403


def test_a_mounted_application_works_on_its_own() -> None:
    emulator = Emulator()
    outer = FastAPI()
    outer.mount("/shop", in_process(emulator, required_paths="/orders"))
    with TestClient(outer, base_url="https://shop.example") as client:
        assert client.get("/shop/orders").status_code == 401
        assert client.post("/shop/auth/login", json=emulator.sign_in()).status_code == 200
        assert client.get("/shop/orders").status_code == 200


async def test_a_state_that_requests_share_shows_nobody_the_session_of_another() -> None:
    emulator = Emulator()
    app, is_there, may_go = in_process(emulator), asyncio.Event(), asyncio.Event()

    async def waits() -> None:
        is_there.set()
        await may_go.wait()

    @app.get("/slow", dependencies=[Depends(waits)])
    async def slow(session: CurrentSession, request: Request) -> list[str]:
        return [session.user_id, request.state.own]

    users = [emulator.sign_in(user_id) for user_id in ("MO-1", "MO-2")]
    tokens = [[(b"x-session-token", user["sessionInfo"]["sessionToken"].encode())] for user in users]
    state: dict[str, Any] = {"own": "the lifespan's"}  # as asgi-lifespan's manager hands it out
    await exchange(app, http_scope("/orders", headers=tokens[1], state=state))
    waiting = asyncio.create_task(exchange(app, http_scope("/slow", headers=tokens[0], state=state)))
    await is_there.wait()
    other = await exchange(app, http_scope("/orders", headers=tokens[1], state=state))
    assert json.loads(other.body)["user"] == "MO-2"
    may_go.set()
    assert json.loads((await waiting).body) == ["MO-1", "the lifespan's"]


async def test_a_state_that_requests_share_opens_nothing_beside_the_middleware() -> None:
    emulator = Emulator()
    outer = add_routes(FastAPI())
    outer.mount("/shop", in_process(emulator))
    token = emulator.sign_in()["sessionInfo"]["sessionToken"].encode()
    state: dict[str, Any] = {}
    shop = http_scope("/shop/orders", headers=[(b"x-session-token", token)], state=state)
    assert (await exchange(outer, shop)).status == 200
    with pytest.raises(MiddlewareMissingError):
        await exchange(outer, http_scope("/orders", state=state))


def test_wrong_settings_without_a_lifespan_are_an_error_not_an_open_door() -> None:
    app = add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware)
    with pytest.raises(ConfigurationError, match="OTPLESS_CLIENT_ID"):
        TestClient(app).get("/orders")


@pytest.mark.parametrize("kind", ["http", "lifespan", "sessions"])
def test_on_another_event_loop_than_asyncios_it_is_said_what_is_wrong(kind: str) -> None:
    sessions = OtplessSessions(make_settings())
    app = OtplessSessionMiddleware(add_routes(FastAPI()), sessions=sessions)

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        assert message["type"] == "lifespan.startup.failed"

    by_hand = {"http": http_scope("/orders"), "lifespan": {"type": "lifespan"}}
    beginning = sessions.open() if kind == "sessions" else app(by_hand[kind], receive, send)
    with pytest.raises(ConfigurationError, match="asyncio only"):
        beginning.send(None)  # as trio does


def test_without_the_middleware_a_dependency_says_how_to_add_it() -> None:
    with pytest.raises(MiddlewareMissingError, match="add_middleware"):
        TestClient(add_routes(FastAPI())).get("/orders")


def test_the_error_of_a_missing_middleware_may_go_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(MiddlewareMissingError()))  # noqa: S301 - as test runners do
    assert "add_middleware" in str(error)


def test_foreign_scopes_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope)

    async def nothing(*_: Any) -> Any:
        return None

    asyncio.run(OtplessSessionMiddleware(app)({"type": "radio"}, nothing, nothing))
    assert seen == [{"type": "radio"}]


# Required paths


@pytest.mark.parametrize(
    ("required", "exempt", "path", "status"),
    [
        ("/orders", "", "/orders", 401),
        ("/orders", "", "/orders/", 401),
        ("/orders", "", "https://shop.example//orders", 401),
        ("/orders", "", "/public", 200),
        ("/**", "", "/public", 401),
        ("/**", "/public", "/public", 200),
        ("/**", "/public", "/public/", 401),
        ("/a/**", "", "/a", 401),
        ("/a/**", "", "/a/b%2Fc", 401),
        ("/a/**", "", "/a%2Fb", 401),
        ("/a/**", "", "/a/%0Ab", 401),
        ("/a/**", "", "/a%0A", 401),
        ("/a/*/c", "", "/a/b/c%0A", 401),
        ("/**", "/public", "/public%0A", 401),
        ("/a/**", "", "/ab", 404),
        ("/a/*/c", "", "/a/b/c", 401),
        ("/a/*/c", "", "/a/b/b/c", 404),
        ("/a/*.html", "", "/a/b.html", 401),
        ('["/x", "/y"]', "", "/y", 401),
    ],
)
def test_required_paths_are_matched_on_what_the_router_matches(
    make_world: Callable[..., World], required: str, exempt: str, path: str, status: int
) -> None:
    world = make_world(required_paths=required, exempt_paths=exempt)
    assert world.client.get(path, follow_redirects=False).status_code == status


def test_the_host_header_does_not_change_what_is_required(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/orders")
    assert world.get("/orders", host="shop.example/public?").status_code == 401


def test_preflights_and_the_sign_in_route_are_always_exempt(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/**")
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert world.client.options("/orders", headers=preflight).status_code == 405
    assert world.client.options("/orders").status_code == 401
    assert world.client.get("/auth/login").status_code == 401
    assert world.client.post("/orders").status_code == 401
    world.sign_in()
    assert world.get("/orders").status_code == 200


@pytest.mark.parametrize("token", [None, "a.b.c"])
def test_what_of_the_router_needs_no_session_elsewhere_needs_none_on_a_required_path(
    make_world: Callable[..., World], token: str | None
) -> None:
    guarded, elsewhere = make_world(required_paths="/**"), make_world()
    headers = {"X-Session-Token": token} if token else {}
    asked = [
        *(("POST", "/auth/logout"), ("GET", "/auth/client.js"), ("POST", "/auth/login"), ("POST", "/auth/logout-all")),
        *(("GET", "/auth/session"), ("GET", "/auth/sessions"), ("DELETE", "/auth/sessions/x")),
    ]
    for method, path in asked:
        answers = [world.client.request(method, path, headers=headers) for world in (guarded, elsewhere)]
        assert answers[0].status_code == answers[1].status_code, path
        assert answers[0].content == answers[1].content, path
    assert guarded.client.get("/public/client.js", headers=headers).status_code == 401
    assert guarded.client.get("/auth/logout", headers=headers).status_code == 401


@pytest.mark.parametrize(("exempt", "status"), [("/help", 401), ("/auth/login", 422)])
def test_that_a_wrapper_hides_the_sign_in_route_is_told_once(
    caplog: pytest.LogCaptureFixture, exempt: str, status: int
) -> None:
    shop = FastAPI()
    shop.include_router(create_session_router(), prefix="/auth")

    async def wrapper(scope: Scope, receive: Receive, send: Send) -> None:
        await shop(scope, receive, send)

    app = OtplessSessionMiddleware(wrapper, settings=make_settings(required_paths="/**", exempt_paths=exempt))
    client = TestClient(app, base_url="https://shop.example")
    assert [client.post("/auth/login", json={}).status_code for _ in range(2)] == [status] * 2
    told = [record for record in caplog.records if record.levelname == "WARNING" and "EXEMPT_PATHS" in record.message]
    assert len(told) == (status == 401)


def test_a_sign_out_on_a_required_path_does_not_wait_for_a_verdict(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/**")
    user = world.sign_in()
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("status", status=500))
    assert world.get("/orders").status_code == 503
    assert world.client.post("/auth/logout").status_code == 204
    assert world.get("/orders", world.token(user)).json()["detail"]["code"] == "session_revoked"


def test_a_page_of_another_site_cannot_sign_out_on_a_required_path_either(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/**")
    world.sign_in()
    assert world.client.post("/auth/logout", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert world.get("/orders").status_code == 200


def test_the_sign_in_route_is_found_under_nested_routers_and_mounts(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/**")
    inner, middle, sub = APIRouter(), APIRouter(), FastAPI()
    inner.include_router(create_session_router(), prefix="/deep")
    middle.include_router(inner, prefix="/very")
    world.app.include_router(middle, prefix="/api")
    sub.include_router(create_session_router())
    world.app.mount("/sub", sub)
    for place in ("/api/very/deep", "/sub"):
        assert world.client.get(f"{place}/client.js").status_code == 200
        assert world.client.post(f"{place}/login", json=world.emulator.sign_in()).status_code == 200
        assert world.client.post(f"{place}/logout").status_code == 204
        assert world.client.post(f"{place}/logout").status_code == 204
    assert world.client.post("/sub/nothing").status_code == 401


def test_a_required_path_is_open_to_who_is_signed_in_and_503_in_an_outage(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths="/public")
    world.sign_in()
    answer = world.get("/public")
    assert answer.status_code == 200
    assert answer.headers["vary"] == "Authorization, X-Session-Token, Cookie"
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("status", status=500))
    assert world.get("/public").status_code == 503


@pytest.mark.parametrize("is_async", [False, True])
def test_on_refusal_restyles_what_required_paths_refuse(make_world: Callable[..., World], is_async: bool) -> None:
    def restyle(connection: HTTPConnection, error: RefusalError) -> Response:
        return JSONResponse({"oops": error.code, "at": connection.url.path}, 418)

    async def restyle_slowly(connection: HTTPConnection, error: RefusalError) -> Response:
        return restyle(connection, error)

    world = make_world(required_paths="/public", middleware={"on_refusal": restyle_slowly if is_async else restyle})
    answer = world.get("/public")
    assert (answer.status_code, answer.json()) == (418, {"oops": "session_missing", "at": "/public"})


@pytest.mark.parametrize(
    ("status", "own", "challenge"),
    [
        (401, None, 'Bearer realm="otpless"'),
        (401, 'Basic realm="shop"', 'Basic realm="shop"'),
        (418, None, None),
    ],
    ids=["none", "its-own", "no-401"],
)
def test_a_401_of_on_refusal_says_whose_it_is(
    make_world: Callable[..., World], status: int, own: str | None, challenge: str | None
) -> None:
    def restyle(_: HTTPConnection, __: RefusalError) -> Response:
        return HTMLResponse("Please sign in", status, {"WWW-Authenticate": own} if own else None)

    answer = make_world(required_paths="/public", middleware={"on_refusal": restyle}).get("/public")
    assert (answer.status_code, answer.headers.get("www-authenticate")) == (status, challenge)


def test_an_http_exception_of_on_refusal_is_answered_as_fastapi_answers_it(make_world: Callable[..., World]) -> None:
    def members_only(_: HTTPConnection, __: RefusalError) -> Response:
        raise HTTPException(401, "Members only", {"X-Sign-In": "/sign-in"})

    def nothing_to_see(_: HTTPConnection, __: RefusalError) -> Response:
        raise HTTPException(204)

    empty = make_world(required_paths="/public", middleware={"on_refusal": nothing_to_see}).get("/public")
    assert (empty.status_code, empty.content) == (204, b"")
    answer = make_world(required_paths="/public", middleware={"on_refusal": members_only}).get("/public")
    assert (answer.status_code, answer.headers["x-sign-in"]) == (401, "/sign-in")
    assert answer.json() == {"detail": "Members only"}
    assert "otpless" in answer.headers["www-authenticate"]


def test_an_answer_of_on_refusal_keeps_what_it_says_of_itself_when_it_is_sent(
    make_world: Callable[..., World], tmp_path: Path
) -> None:
    page = tmp_path / "login.html"
    page.write_text("Please sign in")
    on_refusal = {"on_refusal": lambda *_: FileResponse(page, 401)}
    answer = make_world(required_paths="/public", middleware=on_refusal).get("/public")
    assert (answer.status_code, answer.text) == (401, "Please sign in")
    assert {"www-authenticate", "content-length", "etag", "last-modified"} <= answer.headers.keys()


def test_a_fault_that_on_refusal_makes_a_401_does_not_look_like_the_end_of_a_session(
    make_world: Callable[..., World],
) -> None:
    page = HTMLResponse("Please sign in", 401)
    world = make_world(required_paths="/public", middleware={"on_refusal": lambda *_: page})
    assert "otpless" in world.get("/public").headers["www-authenticate"]
    world.sign_in()
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("status", status=500))
    answer = world.get("/public")
    assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, None)


@pytest.mark.parametrize("kind", ["nothing", "nothing, slowly", "raises", "raises, slowly"])
def test_on_refusal_lets_nobody_through_that_it_has_no_answer_for(make_world: Callable[..., World], kind: str) -> None:
    def none_of_its_own(_: HTTPConnection, error: RefusalError) -> Response | None:
        if kind.startswith("raises"):
            raise error
        return None

    async def slowly(connection: HTTPConnection, error: RefusalError) -> Response | None:
        return none_of_its_own(connection, error)

    on_refusal = slowly if kind.endswith("slowly") else none_of_its_own
    world = make_world(required_paths=["/public", "/ws"], middleware={"on_refusal": on_refusal})

    @world.app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()

    answer = world.get("/public")
    assert (answer.status_code, code(answer)) == (401, "session_missing")
    assert "X-Session-Token" in answer.headers["vary"]
    with pytest.raises(WebSocketDenialResponse) as caught, world.client.websocket_connect("wss://shop.example/ws"):
        pass
    assert (caught.value.status_code, code(caught.value)) == (401, "session_missing")


# Responses


@pytest.fixture
def swapping(make_world: Callable[..., World], tmp_path: Path) -> World:
    """Somebody whose token is swapped by the next request, and routes with every kind of response."""
    world = make_world()
    (tmp_path / "file.txt").write_text("from a file")

    @world.app.get("/json")
    async def json_(_: CurrentSession) -> Response:
        headers = {"Cache-Control": "public, max-age=60, no-transform", "Vary": "Accept", "Set-Cookie": "own=1"}
        return JSONResponse({"a": 1}, headers=headers)

    @world.app.get("/stream")
    async def stream(_: CurrentSession) -> Response:
        return StreamingResponse(iter([b"one", b"two"]))

    @world.app.get("/file")
    async def file(_: CurrentSession) -> Response:
        return FileResponse(tmp_path / "file.txt")

    @world.app.get("/304")
    async def not_modified(_: CurrentSession) -> Response:
        return Response(status_code=304)

    @world.app.get("/error")
    async def error(_: CurrentSession) -> None:
        raise HTTPException(418, "teapot")

    @world.app.get("/background")
    async def background(_: CurrentSession, tasks: BackgroundTasks) -> dict[str, int]:
        tasks.add_task(lambda: None)
        return {"a": 1}

    @world.app.get("/bug")
    async def bug(_: CurrentSession) -> None:
        raise ZeroDivisionError

    world.sign_in()
    world.clock.advance(DAY + 1)
    return world


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/json", 200, b'{"a":1}'),
        ("/stream", 200, b"onetwo"),
        ("/file", 200, b"from a file"),
        ("/304", 304, b""),
        ("/error", 418, b'{"detail":"teapot"}'),
        ("/background", 200, b'{"a":1}'),
    ],
)
def test_a_swap_survives_every_kind_of_response(swapping: World, path: str, status: int, body: bytes) -> None:
    answer = swapping.get(path)
    assert (answer.status_code, answer.content) == (status, body)
    assert "__Host-otpless_session=" in answer.headers["set-cookie"]
    assert "no-store" in answer.headers["cache-control"]
    assert "x-session-token" not in answer.headers


def test_the_applications_own_headers_and_cookies_stay(swapping: World) -> None:
    answer = swapping.get("/json")
    assert answer.headers["cache-control"] == "no-store, no-transform"
    assert answer.headers["vary"] == "Accept, Authorization, X-Session-Token, Cookie"
    cookies = answer.headers.get_list("set-cookie")
    assert cookies[0] == "own=1"
    assert len(cookies) == 2


def test_after_an_unhandled_error_the_next_request_carries_the_swap(swapping: World) -> None:
    with pytest.raises(ZeroDivisionError):
        swapping.get("/bug")
    assert "set-cookie" in swapping.get("/orders").headers
    assert swapping.emulator.count("get-new-session-token") == 1


def test_a_session_that_ends_while_the_request_runs_gets_no_new_token(swapping: World) -> None:
    @swapping.app.get("/admin")
    async def admin(session: CurrentSession, sessions: Sessions) -> None:
        await sessions.end_all(session.user_id)

    answer = swapping.get("/admin")
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert code(swapping.get("/orders")) == "session_revoked"


def test_everything_in_a_request_shares_one_answer(world: World) -> None:
    @world.app.get("/shared", dependencies=[Depends(fresh_within(60))])
    async def shared(request: Request, session: CurrentSession) -> bool:
        handle = request.state.otpless
        both = await asyncio.gather(handle.session(), handle.session())
        return all(one is session for one in both) and handle.reason is None

    user = world.emulator.sign_in()
    assert world.get("/shared", world.token(user)).json() is True
    assert world.emulator.count("validate-session") == 1


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "60", None])
def test_a_freshness_that_no_session_can_have_is_refused_where_it_is_declared(seconds: Any) -> None:
    with pytest.raises(ValueError, match="fresh_within takes a number of seconds"):
        fresh_within(seconds)


class AsksForTheSession:
    """Middleware of the application's, inside ours and outside its exception handlers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await scope["state"]["otpless"].session()
        await self.app(scope, receive, send)


def test_a_refusal_that_other_middleware_meets_is_an_answer_too() -> None:
    app = add_routes(FastAPI())
    app.add_middleware(AsksForTheSession)
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings())
    client = TestClient(app, base_url="https://shop.example")
    answer = client.get("/public", headers={"X-Session-Token": "a.b.c", "Authorization": "Bearer d.e.f"})
    assert (answer.status_code, code(answer)) == (400, "conflicting_credentials")
    assert "X-Session-Token" in answer.headers["vary"]
    assert client.get("/public").status_code == 200


class RefusesTooLate:
    """Middleware of the application's that refuses what was answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)
        raise SessionUnavailableError


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    app = OtplessSessionMiddleware(RefusesTooLate(add_routes(FastAPI())), settings=make_settings())
    with pytest.raises(SessionUnavailableError):
        TestClient(app).get("/public")


def test_what_others_write_into_one_refusal_is_not_in_the_next() -> None:
    app = add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware, settings=make_settings(required_paths=["/orders"]))
    app.add_middleware(CORSMiddleware, allow_origins=["https://a.example"])
    client = TestClient(app, base_url="https://shop.example")
    first = client.get("/orders", headers={"Origin": "https://a.example"})
    second = client.get("/orders")
    assert first.status_code == second.status_code == 401
    assert "access-control-allow-origin" in first.headers
    assert "access-control-allow-origin" not in second.headers
    assert second.headers["vary"].count("Origin") <= 1


def test_optional_sessions_name_their_reason(world: World) -> None:
    @world.app.get("/reason")
    async def reason(request: Request) -> str | None:
        assert await request.state.otpless.session() is None
        return str(request.state.otpless.reason)

    assert world.get("/reason").json() == "missing"
    world.emulator.add_fault(Fault("status", status=500))
    assert world.get("/reason", world.token(world.emulator.sign_in())).json() == "unavailable"


def test_the_documentation_offers_three_security_schemes(world: World) -> None:
    schema = world.get("/openapi.json").json()
    schemes = schema["components"]["securitySchemes"]
    assert schemes["OtplessBearer"]["scheme"] == "bearer"
    assert schemes["OtplessHeader"] | {"description": None} == {
        "type": "apiKey",
        "in": "header",
        "name": "X-Session-Token",
        "description": None,
    }
    assert {name for entry in schema["paths"]["/orders"]["get"]["security"] for name in entry} == set(schemes)
    assert "security" not in schema["paths"]["/public"]["get"]
    for path, method in (("/auth/session", "get"), ("/auth/sessions", "get"), ("/auth/logout-all", "post")):
        assert {name for entry in schema["paths"][path][method]["security"] for name in entry} == set(schemes)
    assert "security" not in schema["paths"]["/auth/login"]["post"]
    assert {} in schema["paths"]["/auth/logout"]["post"]["security"]  # none is needed
    assert world.get("/docs").status_code == 200
    body = schema["paths"]["/auth/login"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "sessionInfo" in body["properties"]


@pytest.mark.parametrize(("secure", "said_in"), [(True, "name"), (False, "description")])
def test_the_documentation_says_what_cookie_and_header_are_called_with_other_settings(
    make_world: Callable[..., World], secure: bool, said_in: str
) -> None:
    world = make_world(cookie_secure=secure)
    schemes = world.get("/openapi.json").json()["components"]["securitySchemes"]
    assert world.settings.cookie in schemes["OtplessCookie"][said_in].replace("`", " ").split()
    assert "`OTPLESS_COOKIE_SECURE=false`" in schemes["OtplessCookie"]["description"]
    assert "`OTPLESS_COOKIE_NAME`" in schemes["OtplessCookie"]["description"]
    assert "`OTPLESS_HEADER_NAME`" in schemes["OtplessHeader"]["description"]


def test_no_log_line_repr_or_error_holds_a_secret(
    make_world: Callable[..., World], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world = make_world()
    user = world.sign_in()
    answers = [world.get("/orders"), world.get("/auth/session")]
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("status", status=500, times=2))
    answers += [world.get("/orders"), world.get("/orders"), world.get("/orders")]
    fresh = world.client.cookies["__Host-otpless_session"]
    answers += [world.client.post("/auth/login", json=user), world.client.post("/auth/logout")]
    secrets = [*user["sessionInfo"].values(), user["token"], fresh, "demo-secret"]
    secrets.remove(world.session_id(user))
    shown = caplog.text + repr(world.sessions) + repr(world.settings) + "".join(a.text for a in answers)
    assert [secret for secret in secrets if secret in shown] == []
    assert world.session_id(user) not in caplog.text
