"""The pytest plugin's fixtures: in this very session, and in projects of their own."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from conftest import add_routes, make_settings
from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.testclient import TestClient
from pydantic import Field, SecretStr, model_validator
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastapi_otpless_session import (
    ConfigurationError,
    CurrentSession,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    RefusalError,
    Session,
    SessionEvent,
    SignInRefusedError,
    UpstreamError,
    create_session_router,
)
from fastapi_otpless_session.emulator import EmulatorSettings
from fastapi_otpless_session.testing import Channel, EmulatedOtpless, SignIn, use_emulator

pytest_plugins = ["pytester"]
DAY = 86_400.0
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:schemathesis")

# One application for all tests, as a module of an application has it; nothing is set in the environment.
APP = add_routes(FastAPI())
APP.add_middleware(OtplessSessionMiddleware)
APP.include_router(create_session_router(), prefix="/auth")


@APP.websocket("/ws")
async def ws(websocket: WebSocket, session: CurrentSession) -> None:
    await websocket.accept()
    await websocket.send_text(session.user_id)
    await websocket.close()


@APP.websocket("/open")
async def stay_open(websocket: WebSocket, session: CurrentSession) -> None:
    await websocket.accept()
    await websocket.send_text(session.user_id)
    async for _ in websocket.iter_text():
        pass


@pytest.fixture
def otpless_app() -> FastAPI:
    return APP


@pytest.fixture
def client(otpless_emulator: EmulatedOtpless) -> Iterator[TestClient]:
    assert otpless_emulator.emulator.sessions() == []
    with TestClient(APP) as client:
        yield client


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


# Clients


def test_a_user_is_signed_in_on_a_client_that_speaks_http(client: TestClient, sign_in: SignIn) -> None:
    assert code(client.get("/orders")) == "session_missing"
    user = sign_in(client, user_id="MO-7")
    answer = client.get("/orders").json()
    assert (answer["user"], answer["id"]) == ("MO-7", user.session_id)
    assert client.post("/orders").json() == {"user": "MO-7"}


def test_a_client_without_a_lifespan_is_signed_in_too(sign_in: SignIn) -> None:
    client = TestClient(APP)
    sign_in(client, expires_in=-1)
    assert client.get("/orders").json()["refreshed"]
    assert not client.get("/orders").json()["refreshed"]


@pytest.mark.parametrize(
    "base_url", ["http://testserver", "https://testserver", "http://127.0.0.1:8000", "https://a.b"]
)
@pytest.mark.parametrize("channel", ["cookie", "header", "authorization"])
def test_swapped_tokens_are_followed_on_every_channel_and_host(
    otpless_emulator: EmulatedOtpless, base_url: str, channel: Channel
) -> None:
    client = TestClient(APP, base_url=base_url)
    user = otpless_emulator.sign_in(client, expires_in=-1, channel=channel)
    for _ in range(3):
        assert client.get("/orders").json()["refreshed"]
        assert not client.get("/orders").json()["refreshed"]
        otpless_emulator.expire(user)
        otpless_emulator.advance(31)  # past the grace of the token before
    assert len([cookie for cookie in client.cookies.jar if "otpless" in cookie.name]) == (channel == "cookie")


async def test_an_asynchronous_client_in_an_asynchronous_test(
    sign_in: SignIn, otpless_emulator: EmulatedOtpless
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=APP), base_url="http://test") as client:
        user = sign_in(client, user_id="MO-7", channel="header", expires_in=-1)
        assert (await client.get("/orders")).json()["refreshed"]
        assert not (await client.get("/orders")).json()["refreshed"]
        otpless_emulator.revoke(user)
        assert code(await client.get("/orders")) == "session_expired"
        sign_in(client, user_id="MO-8")
        answers = await asyncio.gather(*(client.get("/orders") for _ in range(5)))
        assert [answer.json()["user"] for answer in answers] == ["MO-8"] * 5


def test_a_websocket_has_the_session(client: TestClient, sign_in: SignIn) -> None:
    sign_in(client, user_id="MO-7")
    with client.websocket_connect("/ws") as websocket:
        assert websocket.receive_text() == "MO-7"


def test_without_a_client_there_is_the_token_alone(client: TestClient, sign_in: SignIn) -> None:
    user = sign_in(user_id="MO-7")
    assert user.token not in repr(user)
    assert client.get("/orders", headers={"X-Session-Token": user.token}).json()["user"] == "MO-7"
    assert code(client.get("/orders")) == "session_missing"


# Users


def test_several_users_and_devices_do_not_meet(sign_in: SignIn) -> None:
    clients = [TestClient(APP) for _ in range(3)]
    for client, user_id in zip(clients, ["MO-7", "MO-8", "MO-7"], strict=True):
        sign_in(client, user_id=user_id)
    assert [client.get("/orders").json()["user"] for client in clients] == ["MO-7", "MO-8", "MO-7"]
    assert len({client.get("/orders").json()["id"] for client in clients}) == 3
    assert len(clients[0].get("/auth/sessions").json()) == 2


def test_signing_in_again_ends_the_session_before(client: TestClient, sign_in: SignIn) -> None:
    first = sign_in(client, user_id="MO-7")
    second = sign_in(client, user_id="MO-8", channel="header")
    assert client.get("/orders").json()["id"] == second.session_id
    assert sign_in(client, user_id="MO-9").user_id == client.get("/orders").json()["user"]
    client.cookies.clear()
    assert code(client.get("/orders", headers={"X-Session-Token": first.token})) == "session_revoked"


@pytest.mark.parametrize("channel", ["cookie", "header", "authorization"])
@pytest.mark.parametrize("next_channel", ["cookie", "header", "authorization"])
def test_signing_in_again_ends_the_session_before_on_whatever_channel_it_was(
    client: TestClient, sign_in: SignIn, channel: Channel, next_channel: Channel
) -> None:
    first = sign_in(client, channel=channel)
    second = sign_in(client, channel=next_channel)
    assert [device["id"] for device in client.get("/auth/sessions").json()] == [second.session_id]
    assert code(TestClient(APP).get("/orders", headers={"X-Session-Token": first.token})) == "session_revoked"


def test_all_the_sessions_that_a_client_carries_are_ended(client: TestClient, sign_in: SignIn) -> None:
    carried = [sign_in(user_id="MO-7"), sign_in(user_id="MO-8")]
    client.headers.update({"X-Session-Token": carried[0].token, "Authorization": f"bearer {carried[1].token}"})
    sign_in(client, user_id="MO-9")
    assert client.get("/orders").json()["user"] == "MO-9"
    for user in carried:
        answer = TestClient(APP).get("/orders", headers={"X-Session-Token": user.token})
        assert code(answer) == "session_revoked"


@pytest.mark.parametrize("channel", ["cookie", "header"])
@pytest.mark.parametrize("key", ["Bearer sk-live-123", "Basic dXNlcjpwYXNz", "Bearer "])
def test_a_key_of_another_api_stays_on_the_client(
    client: TestClient, sign_in: SignIn, channel: Channel, key: str
) -> None:
    client.headers["Authorization"] = key
    for user_id in ("MO-7", "MO-8"):
        sign_in(client, user_id=user_id, channel=channel)
        assert client.headers["Authorization"] == key
        assert client.get("/orders").json()["user"] == user_id


def test_a_token_in_a_header_that_is_not_looked_at_is_another_apis() -> None:
    with use_emulator(APP, token_sources="cookie") as otpless:
        client = TestClient(APP, headers={"Authorization": "Bearer a.b.c"})
        otpless.sign_in(client)
        assert client.headers["Authorization"] == "Bearer a.b.c"
        assert client.get("/orders").status_code == 200


def test_the_routers_own_sign_out_signs_the_client_out(client: TestClient, sign_in: SignIn) -> None:
    sign_in(client)
    assert client.post("/auth/logout").status_code == 204
    assert code(client.get("/orders")) == "session_missing"


def test_details_are_the_tests(client: TestClient, sign_in: SignIn) -> None:
    sign_in(client, user_id="MO-7", name="Asha Rao", email="asha@shop.example", mobile="911234567890")
    details = client.get("/details").json()
    assert details["user_id"] == "MO-7"
    assert [each["identity_value"] for each in details["identities"]] == ["911234567890", "asha@shop.example"]
    assert {each["name"] for each in details["identities"]} == {"Asha Rao"}


@pytest.mark.parametrize("user_id", ["1", "user with spaces", "a" * 256, "'; DROP TABLE sessions; --"])
def test_unusual_user_ids_come_through(client: TestClient, sign_in: SignIn, user_id: str) -> None:
    sign_in(client, user_id=user_id, name="Zoë 💚", email="z@ë.example", mobile=None)
    assert client.get("/orders").json()["user"] == user_id
    assert client.get("/details").json()["identities"][0]["name"] == "Zoë 💚"


@pytest.mark.parametrize("user_id", ["", "a" * 257, "Zoë", "line\nbreak", 7, None])
def test_what_can_be_no_user_id_is_said_so(sign_in: SignIn, user_id: Any) -> None:
    with pytest.raises(ValueError, match="user_id must be 1 to 256 printable ASCII characters"):
        sign_in(user_id=user_id)


# Time


@pytest.mark.parametrize("expires_in", [0, -0.5, -1, -59, -3 * DAY, -400 * DAY, -1e9])
def test_a_token_that_has_expired_is_swapped(client: TestClient, sign_in: SignIn, expires_in: float) -> None:
    sign_in(client, expires_in=expires_in)
    assert client.get("/orders").json()["refreshed"]
    assert not client.get("/orders").json()["refreshed"]


@pytest.mark.parametrize("expires_in", [1, 59.5, 60, 3600, 30 * DAY, 3650 * DAY])
def test_a_token_lives_as_long_as_the_test_says(
    client: TestClient, sign_in: SignIn, otpless_emulator: EmulatedOtpless, expires_in: float
) -> None:
    sign_in(client, expires_in=expires_in)
    otpless_emulator.advance(expires_in * 0.5)
    assert not client.get("/orders").json()["refreshed"]
    otpless_emulator.advance(expires_in * 0.5 + 1)
    assert client.get("/orders").json()["refreshed"]


@pytest.mark.parametrize("expires_in", [math.inf, -math.inf, math.nan, 1e12, -1e10])
def test_a_time_that_no_calendar_holds_is_said_so(sign_in: SignIn, expires_in: float) -> None:
    with pytest.raises(ValueError, match="expires_in must"):
        sign_in(expires_in=expires_in)


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_time_does_not_go_back(otpless_emulator: EmulatedOtpless, seconds: float) -> None:
    with pytest.raises(ValueError, match="time does not go back"):
        otpless_emulator.advance(seconds)


def test_when_all_tokens_have_expired_the_user_is_signed_out(
    client: TestClient, sign_in: SignIn, otpless_emulator: EmulatedOtpless
) -> None:
    sign_in(client)
    otpless_emulator.advance(30 * DAY)
    assert code(client.get("/orders")) == "session_expired"


def test_time_passes_for_what_a_worker_remembers_too() -> None:
    with use_emulator(APP, store_ttl=7 * DAY, validation_ttl=7 * DAY, refresh_ahead=0) as otpless:
        client = TestClient(APP)
        otpless.sign_in(client, expires_in=DAY)
        assert not client.get("/orders").json()["refreshed"]
        with otpless.down():
            otpless.advance(DAY - 20)
        assert not client.get("/orders").json()["refreshed"]
        otpless.advance(21)
        assert client.get("/orders").json()["refreshed"]


# Trouble


def test_an_expired_token_is_swapped_at_the_next_request(
    client: TestClient, sign_in: SignIn, otpless_emulator: EmulatedOtpless
) -> None:
    user = sign_in(client)
    assert not client.get("/orders").json()["refreshed"]
    otpless_emulator.expire(user)
    assert client.get("/orders").json()["refreshed"]


def test_a_revoked_and_a_signed_out_session_are_told_apart(
    client: TestClient, sign_in: SignIn, otpless_emulator: EmulatedOtpless
) -> None:
    otpless_emulator.revoke(sign_in(client))
    assert code(client.get("/orders")) == "session_expired"
    otpless_emulator.sign_out(sign_in(client))
    assert code(client.get("/orders")) == "session_revoked"


def test_an_open_websocket_is_closed_after_the_recheck_that_the_test_sets() -> None:
    with use_emulator(APP, websocket_recheck=0.05) as otpless, TestClient(APP) as client:
        user = otpless.sign_in(client)
        with client.websocket_connect("/open") as websocket:
            assert websocket.receive_text() == "MO-1"
            otpless.revoke(user)
            assert websocket.receive() == {"type": "websocket.close", "code": 1008, "reason": "session_expired"}


def test_while_otpless_is_down_sessions_go_stale_then_unavailable_and_are_back_at_once(
    client: TestClient, sign_in: SignIn, otpless_emulator: EmulatedOtpless
) -> None:
    sign_in(client)
    with otpless_emulator.down():
        for _ in range(7):  # the client stops asking after five
            assert client.get("/orders").json()["stale"]
        assert client.get("/fresh").status_code == 503
        otpless_emulator.advance(301)
        assert code(client.get("/orders")) == "session_unavailable"
        with pytest.raises(UpstreamError):
            sign_in(client)
    assert client.get("/orders").json()["stale"] is False
    otpless_emulator.down()
    assert client.get("/orders").json()["stale"]
    otpless_emulator.up()
    assert client.get("/fresh").status_code == 200


def test_what_otpless_leaves_open_can_be_chosen() -> None:
    with use_emulator(APP, emulator_settings=EmulatorSettings(rotation="strict")) as otpless:
        client = TestClient(APP)
        user = otpless.sign_in(client)
        for _ in range(3):
            otpless.expire(user)
            assert client.get("/orders").json()["refreshed"]


# Isolation


@pytest.mark.parametrize("run", [1, 2])
def test_each_test_starts_with_nobody_signed_in(
    client: TestClient, otpless_emulator: EmulatedOtpless, run: int
) -> None:
    assert otpless_emulator.emulator.sessions() == []
    assert client.get("/orders").status_code == 401
    otpless_emulator.sign_in(client, user_id=f"MO-{run}")
    assert len(client.get("/auth/sessions").json()) == 1


def test_a_session_of_the_test_before_is_nobodys(otpless_emulator: EmulatedOtpless) -> None:
    with use_emulator(APP) as before:
        user = before.sign_in()
    with pytest.raises(ConfigurationError, match="MO-1 was not signed in here"):
        otpless_emulator.revoke(user)
    with pytest.raises(TypeError, match="what sign_in returned is wanted"):
        otpless_emulator.revoke(user.session_id)  # type: ignore[arg-type]


def test_afterwards_the_application_is_what_it_was() -> None:
    app = add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware)
    before = app.user_middleware, list(app.user_middleware), app.middleware_stack
    with use_emulator(app):
        assert TestClient(app).get("/orders").status_code == 401
    assert before == (app.user_middleware, list(app.user_middleware), app.middleware_stack)
    with pytest.raises(ConfigurationError, match="OTPLESS_CLIENT_ID"):
        TestClient(app).get("/orders")


def test_the_applications_hooks_are_called() -> None:
    told: list[tuple[str, str]] = []

    def note(event: SessionEvent) -> None:
        told.append((event.name, event.user_id))

    async def note_too(event: SessionEvent) -> None:
        note(event)

    app = add_routes(FastAPI())
    app.add_middleware(
        OtplessSessionMiddleware, sessions=OtplessSessions(make_settings(), on_sign_in=note, on_sign_out=note_too)
    )
    with use_emulator(app) as otpless:
        otpless.sign_out(otpless.sign_in(TestClient(app)))
    assert told == [("sign_in", "MO-1"), ("sign_out", "MO-1")]


def test_users_outlive_a_lifespan_within_a_test(otpless_emulator: EmulatedOtpless) -> None:
    client = TestClient(APP)
    otpless_emulator.sign_in(client)
    for _ in range(2):
        with client:
            assert client.get("/orders").status_code == 200
    assert client.get("/orders").status_code == 200


def test_no_socket_is_opened_and_no_name_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "bind", "listen"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with use_emulator(APP) as otpless, TestClient(APP) as client:
        otpless.expire(otpless.sign_in(client))
        assert client.get("/details").status_code == 200


class OwnSessions(OtplessSessions):
    """Sessions of an application's own, which let not everybody in, and nobody in twice."""

    def __init__(self, banned: str, store: Path | None = None) -> None:
        super().__init__(make_settings(store_url=f"sqlite:///{store}" if store else "memory://"), on_sign_in=self.once)
        self.banned = banned

    async def once(self, event: SessionEvent) -> None:
        await self.end_others(event.user_id, event.session_id)

    async def sign_in(self, user: Any, *, fits: Callable[[str, float], None] | None = None) -> Session:
        session = await super().sign_in(user, fits=fits)
        if session.user_id == self.banned:
            await self.end(session.id)
            raise SignInRefusedError
        return session


def test_sessions_of_an_applications_own_class_are_so_in_tests() -> None:
    app = bare_app()
    app.add_middleware(OtplessSessionMiddleware, sessions=OwnSessions("MO-7"))
    with use_emulator(app) as otpless, TestClient(app) as client:
        otpless.sign_in(client, user_id="MO-1")
        assert client.get("/orders").status_code == 200
        with pytest.raises(SignInRefusedError):
            otpless.sign_in(client, user_id="MO-7")


def test_hooks_of_such_a_class_see_the_sessions_of_the_test(tmp_path: Path) -> None:
    app, store = bare_app(), tmp_path / "production.db"
    app.add_middleware(OtplessSessionMiddleware, sessions=OwnSessions("MO-7", store))
    with use_emulator(app) as otpless, TestClient(app) as first, TestClient(app) as second:
        otpless.sign_in(first)
        otpless.sign_in(second)
        assert (first.get("/orders").status_code, second.get("/orders").status_code) == (401, 200)
    assert not store.exists()


def test_where_such_a_class_cannot_be_made_for_a_test_it_is_told() -> None:
    class Frozen(OtplessSessions):
        def __setattr__(self, name: str, value: object) -> None:
            if "settings" in vars(self) and name == "settings":
                raise AttributeError("frozen")
            super().__setattr__(name, value)

    app = bare_app()
    app.add_middleware(OtplessSessionMiddleware, sessions=Frozen(make_settings()))
    with ExitStack() as stack:
        with pytest.warns(UserWarning, match="Frozen cannot be made for a test .frozen.: plain OtplessSessions"):
            otpless = stack.enter_context(use_emulator(app))
        client = TestClient(app)
        otpless.sign_in(client)
        assert client.get("/orders").status_code == 200


# Where the middleware is


def on_refusal(_: HTTPConnection, error: RefusalError) -> Response:
    return JSONResponse({"please": "sign in"}, error.status_code)


def bare_app(**options: Any) -> FastAPI:
    return add_routes(FastAPI(**options))


def added() -> Any:
    app = bare_app()
    app.add_middleware(OtplessSessionMiddleware, on_refusal=on_refusal)
    return app


def listed() -> Any:
    return bare_app(middleware=[Middleware(OtplessSessionMiddleware, on_refusal=on_refusal)])


def wrapping() -> Any:
    return OtplessSessionMiddleware(bare_app(), on_refusal=on_refusal)


def wrapped() -> Any:
    return CORSMiddleware(wrapping(), allow_origins=["*"])


def mounted() -> Any:
    outer = Starlette()
    outer.mount("/", added())
    return outer


def by_host() -> Any:
    outer = Starlette()
    outer.host("testserver", added())
    return outer


def included() -> Any:
    outer, router = FastAPI(), APIRouter()
    router.host("testserver", added())
    outer.include_router(router)
    return outer


def on_a_route() -> Any:
    async def orders(request: Request) -> Response:
        return JSONResponse({"user": (await request.state.otpless.require()).user_id})

    ours = Middleware(OtplessSessionMiddleware, on_refusal=on_refusal)
    return Starlette(routes=[Route("/orders", orders, middleware=[ours])])


def subclassed() -> Any:
    class Ours(OtplessSessionMiddleware):
        pass

    app = bare_app()
    app.add_middleware(Ours, on_refusal=on_refusal)
    return app


@pytest.mark.parametrize("make", [added, listed, wrapping, wrapped, mounted, by_host, included, on_a_route, subclassed])
def test_the_middleware_is_found_wherever_it_is_and_keeps_what_else_it_was_given(make: Any) -> None:
    app = make()
    for user_id in ("MO-7", "MO-8"):
        with use_emulator(app, required_paths=["/orders"]) as otpless, TestClient(app) as client:
            assert client.get("/orders").json() == {"please": "sign in"}
            otpless.sign_in(client, user_id=user_id)
            assert client.get("/orders").json()["user"] == user_id
    with pytest.raises(ConfigurationError, match="OTPLESS_CLIENT_ID"):
        TestClient(app).get("/orders")


@pytest.mark.parametrize("around", [False, True])
def test_middleware_that_gives_itself_settings_gets_the_emulators_nonetheless(around: bool) -> None:
    class Ours(OtplessSessionMiddleware):
        def __init__(self, app: Any, **values: Any) -> None:
            settings = OtplessSettings(client_id="real", client_secret="real", required_paths=["/orders"])
            super().__init__(app, settings=settings, **values)

    app: Any = bare_app()
    if around:
        app = Ours(app)
    else:
        app.add_middleware(Ours)
    with use_emulator(app, required_paths=["/orders"]) as otpless, TestClient(app) as client:
        assert client.get("/orders").status_code == 401
        otpless.sign_in(client)
        assert client.get("/orders").status_code == 200


def test_settings_in_code_are_kept_but_for_what_would_leave_the_process() -> None:
    settings = OtplessSettings(
        client_id="real",
        client_secret="real",
        store_url="postgresql://production/sessions",
        header_name="X-Shop",
        cookie_domain="shop.example",
        cookie_samesite="none",
        token_sources="header",
        jwks_url="",
    )
    app = bare_app()
    app.add_middleware(OtplessSessionMiddleware, settings=settings)
    with use_emulator(app) as otpless:
        client = TestClient(app)
        otpless.sign_in(client, expires_in=-1)
        assert "X-Shop" in client.headers
        assert client.get("/orders").json()["refreshed"]
        assert otpless.settings.client_id != "real"
        with pytest.raises(ValueError, match="token_sources \\(header\\), not 'cookie'"):
            otpless.sign_in(client, channel="cookie")


class ShopSettings(OtplessSettings):
    """An application's settings in one: ours, and fields of its own, checked and named in its own way."""

    admins: tuple[str, ...] = ("nobody",)
    key: str = Field(default="none", validation_alias="SHOP_KEY")

    @model_validator(mode="after")
    def _as_deployed(self) -> Self:
        if not self.cookie_secure:
            raise ValueError("the shop's cookies are for https")
        return self


def shop_app() -> tuple[FastAPI, ShopSettings]:
    settings = ShopSettings(client_id="real", client_secret=SecretStr("real"), header_name="X-Shop", admins=("asha",))
    app = bare_app()
    app.add_middleware(OtplessSessionMiddleware, settings=settings)
    return app, settings


def test_settings_with_fields_of_the_applications_own_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_KEY", "of the deployment")
    app, settings = shop_app()
    monkeypatch.setenv("SHOP_KEY", "another")
    with use_emulator(app, validation_ttl=7, admins=("ravi",)) as otpless:
        client = TestClient(app)
        otpless.sign_in(client, channel="header")
        assert "X-Shop" in client.headers
        assert client.get("/orders").status_code == 200
        found = otpless.settings
    assert isinstance(found, ShopSettings)
    assert (found.key, found.admins, found.validation_ttl) == ("of the deployment", ("ravi",), 7)
    assert (found.client_id, found.cookie_secure) == (EmulatorSettings().client_id, False)
    assert (settings.client_id, settings.admins) == ("real", ("asha",))


def test_a_wrong_setting_beside_fields_of_the_applications_own_is_said_so() -> None:
    app, _ = shop_app()
    with pytest.raises(ConfigurationError, match=r"no such setting: admin$"), use_emulator(app, admin=("ravi",)):
        pass
    with pytest.raises(ConfigurationError, match="OTPLESS_VALIDATION_TTL"), use_emulator(app, validation_ttl=-1):
        pass


# Wrong use


def test_an_application_without_the_middleware_is_said_so() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"no OtplessSessionMiddleware on this application.*add_middleware"),
        use_emulator(bare_app()),
    ):
        pass


def test_a_client_of_another_application_is_said_so(sign_in: SignIn) -> None:
    with pytest.raises(ConfigurationError, match="override otpless_app"):
        sign_in(TestClient(added()))
    with pytest.raises(ConfigurationError, match="no OtplessSessionMiddleware"):
        sign_in(TestClient(bare_app()))
    with pytest.raises(TypeError, match=r"wants a client .*, not FastAPI"):
        sign_in(APP)  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [added, listed, wrapping, wrapped, subclassed])
def test_an_application_that_was_started_before_is_told_how_to_start_with_the_emulator(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTPLESS_CLIENT_ID", "a-developers")
    monkeypatch.setenv("OTPLESS_CLIENT_SECRET", "own")
    monkeypatch.setenv("OTPLESS_STORE_URL", "memory://")
    app = make()
    early = r"was started before the emulator .* \(memory://\).* ask for otpless_emulator before the client is made"
    with TestClient(app) as client, pytest.warns(UserWarning, match=early), use_emulator(app) as otpless:
        otpless.sign_in(client)  # all the same
    with use_emulator(app) as otpless, TestClient(app) as client:
        otpless.sign_in(client)


def test_who_was_not_started_or_is_over_may_have_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTPLESS_CLIENT_ID", "a-developers")
    monkeypatch.setenv("OTPLESS_CLIENT_SECRET", "own")
    monkeypatch.setenv("OTPLESS_STORE_URL", "memory://")
    app = added()
    early = TestClient(app)
    early.get("/")  # without a lifespan nothing is open but for this request
    with TestClient(app):
        pass
    with use_emulator(app) as otpless:
        otpless.sign_in(early)
        with TestClient(app) as client, use_emulator(app) as another:
            another.sign_in(client)


def test_a_wrong_setting_is_said_so() -> None:
    with pytest.raises(ConfigurationError, match="no such setting: valdation_ttl"), use_emulator(APP, valdation_ttl=3):
        pass


def test_a_cookie_that_the_client_would_not_send_is_said_so() -> None:
    with use_emulator(APP, cookie_secure=True) as otpless:
        with pytest.raises(ConfigurationError, match="never sends a Secure cookie"):
            otpless.sign_in(TestClient(APP))
        client = TestClient(APP, base_url="https://testserver")
        otpless.sign_in(client, expires_in=-1)
        assert client.get("/orders").json()["refreshed"]
        assert not client.get("/orders").json()["refreshed"]
    with use_emulator(APP, cookie_domain="shop.example") as otpless:
        with pytest.raises(ConfigurationError, match=r"The cookie of shop\.example is not for http://testserver"):
            otpless.sign_in(TestClient(APP))
        client = TestClient(APP, base_url="http://www.shop.example")
        otpless.sign_in(client, expires_in=-1)
        assert client.get("/orders").json()["refreshed"]
        assert not client.get("/orders").json()["refreshed"]


def test_a_client_without_an_address_is_told_of_the_header(sign_in: SignIn) -> None:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=APP))
    with pytest.raises(ConfigurationError, match='or sign in with channel="header"'):
        sign_in(client)


# In projects of their own


def test_a_project_that_gives_no_application_has_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from fastapi_otpless_session.testing import SignedInApp

        def test_session(otpless_session: SignedInApp) -> None:
            found = otpless_session.client.get("/auth/session").json()
            assert found["user_id"] == otpless_session.user_id
            assert found["id"] == otpless_session.session_id
        """
    )
    pytester.runpytest_inprocess(*WITHOUT).assert_outcomes(passed=1)


@pytest.mark.parametrize("secure", [True, False])
def test_a_signed_in_client_speaks_what_its_cookie_needs(pytester: pytest.Pytester, secure: bool) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from fastapi_otpless_session.testing import SignedInApp

        @pytest.fixture
        def otpless_settings():
            return {{"cookie_secure": {secure}}}

        def test_session(otpless_session: SignedInApp) -> None:
            client = otpless_session.client
            assert client.base_url.scheme == {"https" if secure else "http"!r}
            assert client.get("/auth/session").json()["user_id"] == otpless_session.user_id
            assert client.post("/auth/logout").status_code == 204
            assert client.get("/auth/session").status_code == 401
        """
    )
    pytester.runpytest_inprocess(*WITHOUT).assert_outcomes(passed=1)


def test_a_test_that_does_not_ask_for_the_emulator_is_told_that_settings_are_missing(
    pytester: pytest.Pytester,
) -> None:
    """The symptom that docs/testing.md explains."""
    pytester.makepyfile(
        """
        import pytest
        from fastapi import FastAPI
        from fastapi.testclient import TestClient
        from fastapi_otpless_session import OtplessSessionMiddleware

        app = FastAPI()
        app.add_middleware(OtplessSessionMiddleware)

        @pytest.fixture
        def otpless_app():
            return app

        @pytest.fixture
        def client():
            with TestClient(app) as client:
                yield client

        def test_without(client): ...
        def test_too_late(client, otpless_emulator): ...
        def test_in_time(otpless_emulator, client): ...
        """
    )
    result = pytester.runpytest_inprocess(*WITHOUT)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*OTPLESS_CLIENT_ID: is required; copy it from the OTPLESS dashboard*"])


def test_an_application_that_is_not_given_has_the_router_and_no_other_route(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from fastapi.testclient import TestClient

        def test_routes(otpless_app, otpless_emulator) -> None:
            client = TestClient(otpless_app)
            assert client.get("/orders").status_code == 404
            assert client.get("/auth/session").status_code == 401
        """
    )
    pytester.runpytest_inprocess(*WITHOUT).assert_outcomes(passed=1)


def test_asynchronous_fixtures_and_tests_of_anyio_work_without_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import httpx
        import pytest
        from fastapi import FastAPI
        from fastapi_otpless_session import OtplessSessionMiddleware, OtplessSessions

        pytestmark = pytest.mark.anyio

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        async def otpless_app():
            app = FastAPI()
            app.add_middleware(OtplessSessionMiddleware)
            return app

        async def test_sign_in(otpless_app, sign_in, otpless_emulator):
            transport = httpx.ASGITransport(app=otpless_app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                sign_in(client)
                assert (await client.get("/")).status_code == 404
        """
    )
    pytester.runpytest_inprocess(*WITHOUT).assert_outcomes(passed=1)


def test_who_asks_for_no_fixture_does_not_import_the_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing() -> None:
            assert "pytest_otpless_session" in sys.modules
            assert "fastapi_otpless_session" not in sys.modules
        """
    )
    pytester.runpytest_subprocess(*WITHOUT).assert_outcomes(passed=1)


def test_the_plugin_can_be_switched_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(otpless_emulator): ...")
    result = pytester.runpytest_inprocess("-p", "no:otpless", *WITHOUT)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'otpless_emulator' not found*"])
