"""What the examples in the README and in `docs/` promise, they do; and their tables are the code's.

What holds for every page alike is in `test_docs.py`. A section is found by its heading, on whichever page it stands.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from pages import Block, blocks, tables
from processes import PATIENCE
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

import fastapi_otpless_session
from fastapi_otpless_session import (
    BodyRefusedError,
    ChannelUnreadError,
    CookieTooLargeError,
    CurrentSession,
    OtplessSessionMiddleware,
    OtplessSettings,
    RefusalError,
    SessionNotFoundError,
    SessionReason,
    SignInRefusedError,
    create_session_router,
    current_session,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.errors import refusal

pytestmark = pytest.mark.varied

NODE = shutil.which("node")
SHOP = "https://shop.example"


def _python(section: str) -> Block:
    return _only(section, "python")


def _only(section: str, language: str) -> Block:
    """Return the one block of a section; where it stands on two pages, it must be the same."""
    found = blocks(language, section=section)
    assert len({block.text for block in found}) == 1, f"{section}: {[str(block) for block in found]}"
    return found[0]


def _app(section: str) -> FastAPI:
    app = _python(section).run()["app"]
    assert isinstance(app, FastAPI)
    return app


def _client(app: FastAPI, **options: Any) -> TestClient:
    return TestClient(app, base_url=SHOP, **options)


def _rows(*head: str) -> list[list[str]]:
    """Return the rows of the tables with this head."""
    found = [row for _, table in tables(*head) for row in table.rows]
    assert found, f"no table {head}"
    return found


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[Emulator, str]]:
    emulator = Emulator()
    with serve(emulator) as url:
        yield emulator, url


@pytest.fixture(autouse=True)
def emulator(address: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """What a reader would have in the environment, but for an OTPLESS of our own."""
    running, url = address
    monkeypatch.setenv("OTPLESS_CLIENT_ID", running.settings.client_id)
    monkeypatch.setenv("OTPLESS_CLIENT_SECRET", running.settings.client_secret)
    monkeypatch.setenv("OTPLESS_BASE_URL", url)
    monkeypatch.setenv("OTPLESS_JWKS_URL", f"{url}/.well-known/jwks")
    monkeypatch.setenv("OTPLESS_STORE_URL", "memory://")
    yield running
    running.clear_faults()


def _sign_in(client: TestClient, emulator: Emulator) -> str:
    """Sign in through the router and return the user's id."""
    user = emulator.sign_in()
    answer = client.post("/auth/login", json=user)
    assert answer.status_code == 200, answer.text
    return str(user["userId"])


def _refused_preflights(client: TestClient, *headers: str) -> list[tuple[str, str]]:
    """Return what of our routes a browser would not send for the client's page."""
    routes = [(route.methods, route.path) for route in create_session_router().routes if isinstance(route, APIRoute)]
    asked = {"Access-Control-Request-Headers": ", ".join(headers)}
    return [
        (method, path)
        for methods, path in routes
        for method in methods or ()
        if client.options(f"/auth{path}", headers={"Access-Control-Request-Method": method, **asked}).is_error
    ]


class TestRoutes:
    def test_the_three_lines_sign_in_and_out(self, emulator: Emulator) -> None:
        with _client(_app("fastapi-otpless-session")) as client:
            assert client.get("/orders").status_code == 401
            user_id = _sign_in(client, emulator)
            assert client.get("/orders").json() == {"user": user_id}
            assert client.get("/auth/session").json()["details"]["user_id"] == user_id
            assert client.post("/auth/logout").status_code == 204
            assert client.get("/orders").status_code == 401

    def test_the_three_lines_swap_a_dead_token(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTPLESS_VALIDATION_TTL", "0")
        with _client(_app("fastapi-otpless-session")) as client:
            _sign_in(client, emulator)
            before = client.cookies["__Host-otpless_session"]
            emulator.expire(emulator.sessions()[-1].session_id)
            assert client.get("/orders").status_code == 200
            assert client.cookies["__Host-otpless_session"] != before

    def test_a_page_of_another_origin_works_on_the_header_channel(self, emulator: Emulator) -> None:
        page = {"Origin": SHOP, "Sec-Fetch-Site": "cross-site"}
        with TestClient(_app("a-page-of-another-origin"), base_url="https://api.example", headers=page) as client:
            assert _refused_preflights(client, "Content-Type", "X-Session-Token") == []
            signed_in = client.post("/auth/login?channel=header", json=emulator.sign_in())
            assert signed_in.headers["access-control-expose-headers"] == "X-Session-Token"
            assert signed_in.headers["access-control-allow-origin"] == SHOP
            token = signed_in.headers["x-session-token"]
            assert client.get("/auth/session", headers={"X-Session-Token": token}).status_code == 200
            elsewhere = {"Origin": "https://elsewhere.example"}
            assert client.post("/auth/login", json=emulator.sign_in(), headers=elsewhere).status_code == 403

    def test_the_dependencies_give_what_the_table_says(self, emulator: Emulator) -> None:
        with _client(_app("in-your-routes")) as client:
            assert client.get("/").json() == "Hello"
            assert client.get("/anywhere").json() == {"user": None, "reason": "missing"}
            assert client.post("/payments").status_code == 401
            user_id = _sign_in(client, emulator)
            assert client.get("/").json() == f"Hello {user_id}"
            assert client.get("/contact").json() == ["919999999999"]
            assert client.get("/anywhere").json() == {"user": user_id, "reason": None}
            emulator.reset_calls()
            assert client.post("/nickname").json() == f"Renamed {user_id}"
            assert emulator.count("validate-session") == 0
            assert client.post("/payments").json() == f"Paid by {user_id}"
            assert emulator.count("validate-session") == 1
            assert client.delete("/everywhere").json() == 1
            assert client.get("/").json() == "Hello"

    def test_a_fault_is_no_verdict(self, emulator: Emulator) -> None:
        with _client(_app("in-your-routes")) as client:
            user_id = _sign_in(client, emulator)
            emulator.add_fault(Fault(path="validate-session", kind="status", status=500))
            answer = client.post("/payments")
            assert (answer.status_code, answer.json()["detail"]["code"]) == (503, "session_unavailable")
            assert "retry-after" in answer.headers
            assert "set-cookie" not in answer.headers
            assert client.get("/").json() == f"Hello {user_id}"

    def test_the_websocket_needs_a_session(self, emulator: Emulator) -> None:
        with _client(_app("in-your-routes")) as client:
            address = SHOP.replace("https", "wss") + "/updates"
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(address):
                pass
            user_id = _sign_in(client, emulator)
            with client.websocket_connect(address) as websocket:
                assert websocket.receive_text() == f"Hello {user_id}"
                websocket.send_text("again")
                assert websocket.receive_text() == "again"

    def test_a_websocket_takes_the_token_as_a_subprotocol(self, emulator: Emulator) -> None:
        with _client(_app("in-your-routes")) as client:
            user = emulator.sign_in()
            token = client.post("/auth/login?channel=header", json=user).headers["x-session-token"]
            address = SHOP.replace("https", "wss") + "/updates"
            with client.websocket_connect(address, subprotocols=["otpless-session", token]) as websocket:
                assert str(websocket.accepted_subprotocol) == "otpless-session"
                assert websocket.receive_text() == f"Hello {user['userId']}"

    def test_folders_can_need_a_session(self) -> None:
        with _client(_app("whole-paths"), follow_redirects=False) as client:
            answer = client.get("/account/orders")
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
            assert client.get("/account/help").json() == "help"

    def test_refusals_can_be_restyled(self) -> None:
        app = _app("your-own-error-responses")

        @app.websocket("/updates")
        async def updates(session: CurrentSession) -> None: ...

        with _client(app, follow_redirects=False) as client:
            answer = client.get("/orders")
            assert answer.headers["location"] == "/sign-in?because=session_missing"
            with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/updates"):
                pass
            assert denied.value.headers["location"] == "/sign-in?because=session_missing"

    def test_a_script_signs_a_user_out(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("OTPLESS_STORE_URL", f"sqlite:///{tmp_path}/sessions.db")
        lock_out = _python("jobs-and-scripts").run()["lock_out"]
        with _client(_app("fastapi-otpless-session")) as client:
            user_id = _sign_in(client, emulator)
            assert asyncio.run(lock_out(user_id)) == 1
            assert client.get("/orders").json()["detail"]["code"] == "session_revoked"


class TestQuestions:
    """The examples in `docs/faq.md`."""

    def test_a_page_of_another_origin_and_the_same_site_works_with_the_cookie(self, emulator: Emulator) -> None:
        app = _app("our-frontend-is-on-another-site-safari-keeps-no-cookie")
        page = {"Origin": "https://app.example", "Sec-Fetch-Site": "same-site"}
        with TestClient(app, base_url="https://api.app.example", headers=page) as client:
            assert _refused_preflights(client, "Content-Type") == []
            signed_in = client.post("/auth/login", json=emulator.sign_in())
            assert signed_in.headers["access-control-allow-credentials"] == "true"
            assert client.get("/auth/session").status_code == 200
            assert client.post("/auth/logout").status_code == 204
            assert client.get("/auth/session").status_code == 401

    def test_an_administrator_signs_somebody_out(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("OTPLESS_STORE_URL", f"sqlite:///{tmp_path}/sessions.db")
        shop = _client(_app("fastapi-otpless-session"))
        admin = _client(_app("how-do-we-sign-somebody-out-from-elsewhere"))
        with shop, admin:
            user_id = _sign_in(shop, emulator)
            admin.cookies.update(shop.cookies)
            assert admin.delete(f"/users/{user_id}/sessions").json() == 1
            assert shop.get("/orders").json()["detail"]["code"] == "session_revoked"

    def test_what_is_mounted_has_the_outer_applications_session(self, emulator: Emulator) -> None:
        app = _app("sub-applications")
        app.include_router(create_session_router(), prefix="/auth")
        with _client(app) as client:
            assert client.get("/admin/users").json()["detail"]["code"] == "session_missing"
            user_id = _sign_in(client, emulator)
            assert client.get("/admin/users").json() == user_id

    def test_middleware_inside_ours_sees_what_the_route_was_told(self, emulator: Emulator) -> None:
        app = _app("our-own-middleware-needs-the-session")
        app.include_router(create_session_router(), prefix="/auth")
        with _client(app) as client:
            assert client.get("/orders").headers["x-user"] == "nobody"
            user_id = _sign_in(client, emulator)
            assert client.get("/orders").headers["x-user"] == user_id
            assert client.get("/openapi.json").headers["x-user"] == "nobody"

    def test_a_router_s_routes_all_need_a_session_and_one_can_sign_in(self, emulator: Emulator) -> None:
        with _client(_app("all-our-routes-need-a-session")) as client:
            assert client.get("/orders").json()["detail"]["code"] == "session_missing"
            _sign_in(client, emulator)
            assert client.get("/orders").status_code == 200

    def test_of_an_application_that_needs_a_session_nobody_could_get_one(self, emulator: Emulator) -> None:
        app = FastAPI(dependencies=[Depends(current_session)])
        app.add_middleware(OtplessSessionMiddleware)
        app.include_router(create_session_router(), prefix="/auth")
        with _client(app) as client:
            assert client.post("/auth/login", json=emulator.sign_in()).status_code == 401

    def test_the_documentation_names_cookie_and_header_as_the_settings_do(self) -> None:
        app = _app("docs-and-openapijson-give-another-name-for-the-cookie")
        schemes = _client(app).get("/openapi.json").json()["components"]["securitySchemes"]
        names = {scheme: schemes[scheme]["name"] for scheme in ("OtplessCookie", "OtplessHeader")}
        assert names == {"OtplessCookie": "otpless_session", "OtplessHeader": "X-Shop-Token"}

    def test_another_http_client_is_used(self) -> None:
        app = _app("our-servers-reach-the-internet-through-a-proxy-only")
        app.include_router(create_session_router(), prefix="/auth")
        with _client(app) as client:  # there is no such proxy
            answer = client.post("/auth/login", json=Emulator().sign_in())
            assert answer.json()["detail"]["code"] == "session_unavailable"


PAGE = """
const [answers, calls] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const asked = [];
let verified = 0;
globalThis.fetch = async (url, { headers }) => {
  asked.push([url.replace("https://api.example", ""), new Headers(headers).get("X-Session-Token")]);
  const [status, token] = answers.shift();
  return new Response("", { status, headers: token ? { "X-Session-Token": token } : {} });
};
globalThis.OTPlessVerifySession = async () => ({ success: true, sessionToken: `sdk-${++verified}` });
(async () => {
  if (typeof otpless === "function") await otpless({});
  for (let n = 0; n < calls; n++) await call("/orders");
  console.log(JSON.stringify(asked));
})();
"""


def _browse(section: str, *, answers: list[list[Any]], calls: int) -> Any:
    """Run a section's frontend code on answers (status, token); return what it requested (path, token)."""
    if NODE is None:
        pytest.skip("runs the frontend's code with Node.js")
    ran = subprocess.run(  # noqa: S603 - our own README
        [NODE, "-e", _only(section, "js").text + PAGE],
        input=json.dumps([answers, calls]),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return json.loads(ran.stdout)


class TestFrontend:
    def test_the_header_channel_replaces_its_token(self) -> None:
        asked = _browse("the-header-channel", answers=[[200, "one"], [200, None], [200, "two"], [200, None]], calls=3)
        assert asked == [
            ["/auth/login?channel=header", None],
            ["/orders", "one"],
            ["/orders", "one"],
            ["/orders", "two"],
        ]

    def test_the_sdk_takes_over_after_a_401(self) -> None:
        asked = _browse("frontend-driven", answers=[[200, None], [401, None], [200, None]], calls=2)
        assert asked == [["/orders", "sdk-1"], ["/orders", "sdk-1"], ["/orders", "sdk-2"]]


def test_what_to_set_for_the_emulator_is_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [block.text for block in blocks("ini") if "OTPLESS_BASE_URL" in block.text]
    assert found
    for text in found:
        for line in text.splitlines():
            monkeypatch.setenv(*line.split("=", 1))
        settings, emulator = OtplessSettings(), EmulatorSettings()
        assert settings.client_id == emulator.client_id
        assert settings.client_secret.get_secret_value() == emulator.client_secret
        assert settings.jwks_url == f"{settings.base_url}/.well-known/jwks"
        assert settings.cookie == "otpless_session"


def _refusals() -> Iterator[RefusalError]:
    """Everything that the package answers with: built where that takes no arguments, else read from its source."""
    yield from (refusal(reason) for reason in SessionReason)
    yield from (SignInRefusedError(), SessionNotFoundError(), CookieTooLargeError(5000), ChannelUnreadError(""))
    for file in Path(fastapi_otpless_session.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BodyRefusedError":
                status, code, *_ = (ast.literal_eval(each) for each in node.args[:2])
                yield BodyRefusedError(status, code, "")


class TestFailures:
    def test_the_table_has_every_status_and_code(self) -> None:
        table = {row[2].strip("`"): int(row[1]) for row in _rows("case", "status", "code")}
        assert table == {error.code: error.status_code for error in _refusals()}

    def test_no_kind_of_refusal_is_forgotten(self) -> None:
        assert {type(error) for error in _refusals()} == set(RefusalError.__subclasses__())


class TestRouter:
    def test_the_routes_are_the_router_s(self) -> None:
        named = re.findall(r"(GET|POST|DELETE) (/[\w/{}.-]+)", " ".join(row[0] for row in _rows("route", "does")))
        paths = create_session_router().routes
        there = {
            (method, re.sub("session_id", "id", getattr(route, "path", "")))
            for route in paths
            for method in getattr(route, "methods", ())
        }
        assert set(named) == there


class TestEmulator:
    def test_its_control_api_is_what_the_table_says(self) -> None:
        rows = _rows("under `/_emulator/`", "does")
        named = re.findall(r"(GET|POST|DELETE) ([\w/.-]+)", " ".join(row[0] for row in rows))
        assert named
        with serve(Emulator()) as url:
            for method, path in named:
                body: dict[str, str] | None = {} if method == "POST" else None
                with httpx.stream(method, f"{url}/_emulator/{path}", json=body) as answer:  # one of them has no end
                    assert answer.status_code not in {404, 405}, (method, path)
