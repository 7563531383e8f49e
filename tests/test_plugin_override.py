"""`override_session`: a session for routes alone, and undone afterwards."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pytest
from conftest import add_routes, make_settings
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.testclient import WebSocketDenialResponse

from fastapi_otpless_session import (
    ConfigurationError,
    CurrentSession,
    CurrentSessionDetails,
    Identity,
    MiddlewareMissingError,
    OtplessSessionMiddleware,
    OtplessSettings,
    Session,
    SessionDetails,
    SessionReason,
    Sessions,
    create_session_router,
    current_session,
    fresh_within,
)
from fastapi_otpless_session.testing import override_session, use_emulator


def somebody_elses() -> Session:
    raise NotImplementedError


@pytest.fixture(params=["bare", "with middleware"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    app = add_routes(FastAPI())
    if request.param == "with middleware":
        app.add_middleware(OtplessSessionMiddleware)
    router = APIRouter()

    @router.get("/recent")
    async def recent(session: Annotated[Session, Depends(fresh_within(60))]) -> str:
        return session.user_id

    @router.websocket("/ws")
    async def ws(websocket: WebSocket, session: CurrentSession) -> None:
        await websocket.accept()
        await websocket.send_text(session.user_id)
        await websocket.close()

    app.include_router(router, prefix="/more")
    return app


def test_every_dependency_gives_the_session(app: FastAPI) -> None:
    client = TestClient(app)
    with override_session(app, user_id="MO-7", session_id="s-1", email="a@shop.example", mobile="91") as session:
        assert session is not None
        assert client.get("/orders").json() == {"id": "s-1", "user": "MO-7", "refreshed": False, "stale": False}
        assert [client.get(path).json() for path in ("/maybe", "/fresh")] == [{"user": "MO-7"}] * 2
        assert client.get("/more/recent").json() == "MO-7"
        details = client.get("/details").json()
        with client.websocket_connect("/more/ws") as websocket:
            assert websocket.receive_text() == "MO-7"
    assert [each["identity_value"] for each in details["identities"]] == ["91", "a@shop.example"]
    assert (details["session_id"], details["user_id"]) == ("s-1", "MO-7")


def test_nobody_is_signed_in_for_the_reason_that_is_given(app: FastAPI) -> None:
    client = TestClient(app)
    with override_session(app, None):
        assert client.get("/orders").json()["detail"]["code"] == "session_missing"
        assert client.get("/details").status_code == 401
        assert client.get("/maybe").json() == {"user": None}
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect("/more/ws"):
            pass
        assert refused.value.status_code == 401
    with override_session(app, None, reason=SessionReason.UNAVAILABLE):
        assert client.get("/more/recent").status_code == 503
        assert client.get("/maybe").json() == {"user": None}
    with override_session(app, None, reason=SessionReason.CONFLICT):
        assert client.get("/maybe").status_code == 400


def test_a_reason_may_be_its_name_and_what_is_none_is_an_error(app: FastAPI) -> None:
    with override_session(app, None, reason="expired"):
        assert TestClient(app).get("/orders").json()["detail"]["code"] == "session_expired"
    with pytest.raises(ValueError, match="'gone' is not a valid SessionReason"), override_session(app, reason="gone"):
        pass


def test_what_was_there_is_back_also_after_an_error_and_in_turn(app: FastAPI) -> None:
    app.dependency_overrides[current_session] = somebody_elses
    before = dict(app.dependency_overrides), list(app.user_middleware)
    client = TestClient(app)
    with override_session(app, "MO-1"):
        with pytest.raises(ZeroDivisionError), override_session(app, "MO-2"):
            _ = client.get("/orders").json()["user"] == "MO-2" and 1 / 0
        assert client.get("/orders").json()["user"] == "MO-1"
    assert (dict(app.dependency_overrides), list(app.user_middleware)) == before


def test_it_decorates_a_test_too(app: FastAPI) -> None:
    @override_session(app, user_id="MO-7")
    def orders() -> Any:
        return TestClient(app).get("/orders").json()

    assert orders()["user"] == orders()["user"] == "MO-7"


def test_without_it_a_bare_application_says_that_the_middleware_is_missing() -> None:
    app = add_routes(FastAPI())
    with override_session(app):
        assert TestClient(app).get("/orders").status_code == 200
    with pytest.raises(MiddlewareMissingError):
        TestClient(app).get("/orders")


def test_the_session_is_what_the_test_says() -> None:
    app = FastAPI()
    seen: list[Any] = []

    @app.get("/")
    async def look(session: CurrentSession, details: CurrentSessionDetails) -> None:
        seen.extend([session, details])

    details = SessionDetails(session_id="x", user_id="y", identities=(Identity(identity_value="z"),))
    with override_session(
        app, name="Asha", claims={"role": "admin"}, expires_in=-5, stale=True, details=details
    ) as made:
        TestClient(app).get("/")
    session = seen[0]
    assert session == made
    assert seen[1] == details
    assert (session.user_id, session.name, session.claims["role"], session.stale) == ("MO-1", "Asha", "admin", True)
    assert session.issued_at <= session.expires_at < session.validated_at
    assert session.token.get_secret_value()


def test_a_stale_session_is_none_where_otpless_has_to_have_said_so_just_now(app: FastAPI) -> None:
    client = TestClient(app)
    fresh = ("/fresh", "/more/recent")
    with override_session(app, stale=True):
        for path in fresh:
            answer = client.get(path)
            assert (answer.status_code, answer.json()["detail"]["code"]) == (503, "session_unavailable")
            assert "Retry-After" in answer.headers
        assert client.get("/orders").json()["stale"]
    with override_session(app):
        assert [client.get(path).status_code for path in fresh] == [200, 200]


def test_a_stale_session_is_judged_as_the_emulators_is() -> None:
    app = add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware)
    client = TestClient(app)

    def statuses() -> list[int]:
        return [client.get(path).status_code for path in ("/orders", "/maybe", "/fresh")]

    with use_emulator(app) as otpless:
        otpless.sign_in(client)
        with otpless.down():
            real = statuses()
    with override_session(app, stale=True):
        assert statuses() == real == [200, 200, 503]


def routed(app: FastAPI) -> TestClient:
    app.include_router(create_session_router(), prefix="/auth")
    return TestClient(app)


def test_the_routers_routes_show_the_session(app: FastAPI) -> None:
    client = routed(app)
    with override_session(app, "MO-7", session_id="s-1", name="Asha", mobile="91"):
        shown = client.get("/auth/session").json()
        devices = client.get("/auth/sessions").json()
    assert (shown["id"], shown["user_id"], shown["name"]) == ("s-1", "MO-7", "Asha")
    assert shown["details"]["identities"][0]["identity_value"] == "91"
    assert [(device["id"], device["current"]) for device in devices] == [("s-1", True)]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/logout"), ("POST", "/logout-all"), ("DELETE", "/sessions/test-session")]
)
def test_who_signs_out_is_signed_out_until_the_block_ends(app: FastAPI, method: str, path: str) -> None:
    client = routed(app)
    with override_session(app):
        answer = client.request(method, f"/auth{path}")
        assert answer.status_code == 204
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert client.get("/orders").json()["detail"]["code"] == "session_revoked"
        assert client.get("/maybe").json() == {"user": None}
        assert client.get("/auth/sessions").status_code == 401
        assert client.post("/auth/logout").status_code == 204
    with override_session(app):
        assert client.get("/orders").status_code == 200


def test_nobody_can_sign_out_and_see_nothing(app: FastAPI) -> None:
    client = routed(app)
    with override_session(app, None):
        assert client.post("/auth/logout").status_code == 204
        assert client.get("/auth/session").json()["detail"]["code"] == "session_missing"
        assert client.get("/auth/sessions").status_code == 401
    with override_session(app):
        assert client.delete("/auth/sessions/another").status_code == 404
        assert client.get("/auth/client.js").status_code == 200
        assert client.post("/auth/logout", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.get("/orders").status_code == 200


def test_a_sign_in_says_what_to_use_instead(app: FastAPI) -> None:
    client = routed(app)
    user = {"token": "t", "sessionInfo": {"sessionToken": "a.b.c", "refreshToken": "d.e.f"}}
    with override_session(app), pytest.raises(ConfigurationError, match=r"use_emulator\(app\)"):
        client.post("/auth/login", json=user)


def test_whoever_signs_in_meanwhile_is_told_that_the_session_is_there_already() -> None:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    with use_emulator(app) as otpless, override_session(app), TestClient(app) as client:
        with pytest.raises(ConfigurationError, match="override_session has taken OtplessSessionMiddleware's place"):
            otpless.sign_in(client)
        with pytest.raises(ConfigurationError, match=r"sign_in .* outside of its block"), use_emulator(app):
            pass


def test_sessions_and_the_requests_state_are_the_overridden_ones(app: FastAPI) -> None:
    @app.delete("/everywhere/{user_id}")
    async def everywhere(user_id: str, sessions: Sessions) -> int:
        return await sessions.end_all(user_id)

    @app.get("/anywhere")
    async def anywhere(request: Request) -> list[str | None]:
        session = await request.state.otpless.session()
        return [session and session.user_id, request.state.otpless.reason]

    client = TestClient(app)
    with override_session(app, "MO-7"):
        assert client.get("/anywhere").json() == ["MO-7", None]
        assert client.delete("/everywhere/MO-8").json() == 0
        assert client.get("/anywhere").json() == ["MO-7", None]
        assert client.delete("/everywhere/MO-7").json() == 1
        assert client.get("/anywhere").json() == [None, "revoked"]


def test_what_is_mounted_in_the_application_has_the_session_too(app: FastAPI) -> None:
    app.mount("/inner", add_routes(FastAPI()))
    with override_session(app, "MO-7"):
        assert TestClient(app).get("/inner/orders").json()["user"] == "MO-7"


def plain(inner: FastAPI) -> Any:
    return inner


def wrapped(inner: FastAPI) -> Any:
    return OtplessSessionMiddleware(inner)


def added(inner: FastAPI) -> Any:
    inner.add_middleware(OtplessSessionMiddleware)
    return inner


def twice(inner: FastAPI) -> Any:
    return CORSMiddleware(wrapped(added(inner)), allow_origins=["*"])


@pytest.mark.parametrize("make", [plain, added, wrapped, twice])
def test_what_is_mounted_has_the_session_wherever_its_middleware_is(app: FastAPI, make: Any) -> None:
    inner = add_routes(FastAPI())
    mounted = make(inner)
    app.mount("/inner", mounted)
    app.mount("/again", mounted)
    inner.dependency_overrides[current_session] = somebody_elses
    before = [(list(one.user_middleware), dict(one.dependency_overrides)) for one in (app, inner)]
    client = TestClient(app)

    def users() -> list[Any]:
        return [client.get(f"{folder}/orders").json().get("user") for folder in ("", "/inner", "/again")]

    def fail() -> None:
        with override_session(app, "MO-8"):
            assert users() == ["MO-8"] * 3
            raise ZeroDivisionError

    for _ in range(2):
        with override_session(app, "MO-7"):
            assert users() == ["MO-7"] * 3
            with pytest.raises(ZeroDivisionError):
                fail()
            assert users() == ["MO-7"] * 3
            with override_session(app, None):
                assert users() == [None] * 3
            assert users() == ["MO-7"] * 3
        assert [(list(one.user_middleware), dict(one.dependency_overrides)) for one in (app, inner)] == before
    inner.dependency_overrides.clear()
    for path in ("/inner/orders", "/again/orders"):
        with pytest.raises((ConfigurationError, MiddlewareMissingError)):
            client.get(path)


def test_a_sign_out_in_what_is_mounted_holds_everywhere() -> None:
    app, inner = add_routes(FastAPI()), FastAPI()
    for one in (app, inner):
        one.add_middleware(OtplessSessionMiddleware)
    app.mount("/inner", inner)
    routed(inner)
    client = TestClient(app)
    with override_session(app):
        assert client.get("/inner/auth/session").json()["user_id"] == "MO-1"
        assert client.post("/inner/auth/logout").status_code == 204
        assert client.get("/orders").json()["detail"]["code"] == "session_revoked"


def test_a_mounted_applications_required_paths_let_all_through() -> None:
    app, inner = FastAPI(), add_routes(FastAPI())
    settings = make_settings(required_paths=["/**"], header_name="X-Shop")
    app.mount("/inner", OtplessSessionMiddleware(inner, settings=settings))
    routed(inner)
    client = TestClient(app)
    with override_session(app, None):
        assert client.get("/inner/public").status_code == 200
        with override_session(app):
            assert "X-Shop" in client.get("/inner/auth/client.js").text
    with use_emulator(app):
        assert client.get("/inner/public").status_code == 401


def test_the_emulator_is_back_after_an_override_and_the_application_after_both() -> None:
    app, inner = add_routes(FastAPI()), add_routes(FastAPI())
    app.add_middleware(OtplessSessionMiddleware)
    app.mount("/inner", OtplessSessionMiddleware(inner))
    client = TestClient(app)
    paths = ("/orders", "/inner/orders")

    def fail() -> None:
        with use_emulator(app) as otpless:
            otpless.sign_in(client, user_id="MO-7")
            with override_session(app, "MO-8"):
                assert [client.get(path).json()["user"] for path in paths] == ["MO-8"] * 2
            assert [client.get(path).json()["user"] for path in paths] == ["MO-7"] * 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    for path in paths:
        with pytest.raises(ConfigurationError, match="OTPLESS_CLIENT_ID"):
            client.get(path)


def test_the_names_that_the_code_gives_to_cookie_and_header_hold() -> None:
    app = FastAPI()
    settings = make_settings(cookie_name="shop", header_name="X-Shop")
    app.add_middleware(OtplessSessionMiddleware, settings=settings)
    client = routed(app)
    with override_session(app):
        assert client.post("/auth/logout").headers["set-cookie"].startswith("shop=;")
        assert "X-Shop" in client.get("/auth/client.js").text


def test_settings_with_fields_of_the_applications_own_keep_them() -> None:
    class ShopSettings(OtplessSettings):
        admins: tuple[str, ...] = ()

    app = FastAPI()
    settings = ShopSettings(client_id="real", client_secret=SecretStr("real"), header_name="X-Shop", admins=("asha",))
    app.add_middleware(OtplessSessionMiddleware, settings=settings)

    @app.get("/admins")
    async def admins(sessions: Sessions) -> Any:
        return sessions.settings.admins if isinstance(sessions.settings, ShopSettings) else None

    client = routed(app)
    with override_session(app):
        assert "X-Shop" in client.get("/auth/client.js").text
        assert client.get("/admins").json() == ["asha"]


@pytest.mark.parametrize("expires_in", [math.inf, math.nan, 1e20, -1e20])
def test_a_time_that_no_calendar_holds_is_said_so(expires_in: float) -> None:
    with (
        pytest.raises(ValueError, match="expires_in must lead to a time"),
        override_session(FastAPI(), expires_in=expires_in),
    ):
        pass


def test_wrong_use_is_said_so() -> None:
    with pytest.raises(TypeError, match="the FastAPI application itself, not Starlette"):
        override_session(Starlette()).__enter__()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="None: nobody is signed in"):
        override_session(FastAPI(), "").__enter__()
