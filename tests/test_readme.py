"""The README holds: its code runs and does what it says, its tables are the code's, its links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import fastapi_otpless_session
from example_app.settings import ShopSettings
from fastapi_otpless_session import (
    BodyRefusedError,
    CookieTooLargeError,
    OtplessSettings,
    RefusalError,
    SessionNotFoundError,
    SessionReason,
    SignInRefusedError,
    open_store,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.errors import refusal
from fastapi_otpless_session.settings import STORE_SCHEMES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = ROOT / "Makefile"
NODE = shutil.which("node")
NONE = "none"
SHOP = "https://shop.example"


class Block(NamedTuple):
    """A fenced block: its language, the heading that it stands under, its first line and its text."""

    language: str
    section: str
    line: int
    text: str


def _slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def _parse() -> tuple[list[Block], str]:
    """Return the README's fenced blocks, and its text without them."""
    blocks: list[Block] = []
    prose: list[str] = []
    section, language, start = "", None, 0
    lines = README.splitlines()
    for number, line in enumerate(lines, 1):
        if language is None and line.startswith("```"):
            language, start = line[3:].strip(), number
        elif language is None:
            section = _slug(line.lstrip("#")) if re.match("#+ ", line) else section
            prose.append(line)
        elif line == "```":
            blocks.append(Block(language, section, start + 1, "\n".join(lines[start : number - 1]) + "\n"))
            language = None
    assert language is None, f"the block at line {start} has no end"
    return blocks, "\n".join(prose)


BLOCKS, PROSE = _parse()
PYTHON: Final = [block for block in BLOCKS if block.language == "python"]


def _python(section: str, number: int = 0) -> Block:
    return [block for block in PYTHON if block.section == section][number]


def _run(block: Block) -> dict[str, Any]:
    """Execute a block by itself, with the README's line numbers, and return its names."""
    names: dict[str, Any] = {"__name__": f"readme_{block.line}"}
    exec(compile("\n" * (block.line - 1) + block.text, "README.md", "exec"), names)  # noqa: S102 - our own README
    return names


def _app(section: str, number: int = 0) -> FastAPI:
    app = _run(_python(section, number))["app"]
    assert isinstance(app, FastAPI)
    return app


def _client(app: FastAPI, **options: Any) -> TestClient:
    return TestClient(app, base_url=SHOP, **options)


def _rows(*head: str) -> list[list[str]]:
    """Return the rows of the table with this head."""
    lines = iter(PROSE.splitlines())
    for line in lines:
        if _cells(line) == list(head):
            next(lines)
            return [_cells(row) for row in iter(lambda: next(lines, ""), "")]
    pytest.fail(f"no table {head}")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


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


class TestPython:
    @pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.section}:{block.line}")
    def test_each_block_runs_by_itself(self, block: Block) -> None:
        assert _run(block)

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
        with TestClient(_app("server-driven"), base_url="https://api.example", headers=page) as client:
            asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "X-Session-Token"}
            assert client.options("/auth/session", headers=asked).status_code == 200
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
        with _client(_app("whole-folders"), follow_redirects=False) as client:
            answer = client.get("/account/orders")
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
            assert client.get("/account/help").json() == "help"

    def test_refusals_can_be_restyled(self) -> None:
        with _client(_app("your-own-answers"), follow_redirects=False) as client:
            answer = client.get("/orders")
            assert answer.headers["location"] == "/sign-in?because=session_missing"

    def test_a_script_signs_a_user_out(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("OTPLESS_STORE_URL", f"sqlite:///{tmp_path}/sessions.db")
        lock_out = _run(_python("jobs-and-scripts"))["lock_out"]
        with _client(_app("fastapi-otpless-session")) as client:
            user_id = _sign_in(client, emulator)
            assert asyncio.run(lock_out(user_id)) == 1
            assert client.get("/orders").json()["detail"]["code"] == "session_revoked"

    @pytest.mark.parametrize("number", [0, 1])
    def test_the_examples_of_tests_pass(self, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("CLIENT_ID", "CLIENT_SECRET", "BASE_URL", "JWKS_URL", "STORE_URL"):
            monkeypatch.delenv(f"OTPLESS_{name}")
        names = _run(_python("test-your-application", number))
        (example,) = [value for name, value in names.items() if name.startswith("test_")]
        example()


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
    (code,) = [block.text for block in BLOCKS if (block.section, block.language) == (section, "js")]
    ran = subprocess.run(  # noqa: S603 - our own README
        [NODE, "-e", code + PAGE],
        input=json.dumps([answers, calls]),
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return json.loads(ran.stdout)


class TestFrontend:
    @pytest.mark.skipif(NODE is None, reason="reads the frontend's code with Node.js")
    @pytest.mark.parametrize("language", ["js", "html"])
    def test_its_code_is_javascript(self, language: str, tmp_path: Path) -> None:
        assert NODE is not None
        for block in [block for block in BLOCKS if block.language == language]:
            found = re.findall(r"<script>(.*?)</script>", block.text, re.DOTALL) if language == "html" else [block.text]
            file = tmp_path / "snippet.js"
            file.write_text("\n".join(found), encoding="utf-8")
            subprocess.run([NODE, "--check", file], check=True, timeout=30)  # noqa: S603 - our own README

    def test_the_header_channel_replaces_its_token(self) -> None:
        asked = _browse("server-driven", answers=[[200, "one"], [200, None], [200, "two"], [200, None]], calls=3)
        assert asked == [
            ["/auth/login?channel=header", None],
            ["/orders", "one"],
            ["/orders", "one"],
            ["/orders", "two"],
        ]

    def test_the_sdk_takes_over_after_a_401(self) -> None:
        asked = _browse("frontend-driven", answers=[[200, None], [401, None], [200, None]], calls=2)
        assert asked == [["/orders", "sdk-1"], ["/orders", "sdk-1"], ["/orders", "sdk-2"]]


class TestSettings:
    ROWS = _rows("name", "default", "meaning")

    def test_the_table_has_every_setting_in_order(self) -> None:
        assert [row[0].strip("`").lower() for row in self.ROWS] == list(OtplessSettings.model_fields)

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("`"))
    def test_the_defaults_are_the_code_s(self, row: list[str]) -> None:
        name, default = row[0].strip("`").lower(), row[1].strip("`")
        field = OtplessSettings.model_fields[name]
        assert row[2]
        if field.is_required():
            assert default == "required"
        elif field.default in {None, ()}:
            assert row[1] == NONE
        else:
            written = OtplessSettings(**{"client_id": "id", "client_secret": "secret", name: default})
            assert getattr(written, name) == field.default

    def test_every_setting_that_is_named_exists(self) -> None:
        variables = re.findall(r"OTPLESS_([A-Z_]*[A-Z])", README)
        bare = re.findall(r"`([A-Z]+_[A-Z_]+)`", PROSE)
        names = [name.removeprefix("OTPLESS_") for name in variables + bare]
        assert names
        known = {*OtplessSettings.model_fields, *(f"shop_{name}" for name in ShopSettings.model_fields)}
        assert {name.lower() for name in names} <= known

    def test_the_stores_are_those_that_there_are(self) -> None:
        section = PROSE.partition("## Where sessions are kept")[2].partition("\n## ")[0]
        named = re.findall(r"`((\w+)://[^`…]*)`", section)
        assert {scheme for _, scheme in named} == set(STORE_SCHEMES) - {"rediss"}
        for url, _ in named:
            assert open_store(url) is not None

    def test_the_environment_blocks_are_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        quick, development = [block.text for block in BLOCKS if block.language == "ini"]
        _set_all(quick, monkeypatch)
        assert OtplessSettings().client_id == "your-client-id"
        _set_all(development, monkeypatch)
        settings, emulator = OtplessSettings(), EmulatorSettings()
        assert settings.client_id == emulator.client_id
        assert settings.client_secret.get_secret_value() == emulator.client_secret
        assert settings.jwks_url == f"{settings.base_url}/.well-known/jwks"
        assert settings.cookie == "otpless_session"


def _set_all(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in text.splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)


def _refusals() -> Iterator[RefusalError]:
    """Everything that the package answers with: built where that takes no arguments, else read from its source."""
    yield from (refusal(reason) for reason in SessionReason)
    yield from (SignInRefusedError(), SessionNotFoundError(), CookieTooLargeError(5000))
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


class TestText:
    def test_the_routes_are_the_router_s(self) -> None:
        named = re.findall(r"(GET|POST|DELETE) (/[\w/{}.-]+)", " ".join(row[0] for row in _rows("route", "does")))
        paths = fastapi_otpless_session.create_session_router().routes
        there = {
            (method, re.sub("session_id", "id", getattr(route, "path", "")))
            for route in paths
            for method in getattr(route, "methods", ())
        }
        assert set(named) == there

    def test_links_lead_somewhere(self) -> None:
        anchors = {_slug(heading) for heading in re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)}
        for target in re.findall(r"\]\(([^)]+)\)", PROSE):
            if target.startswith("#"):
                assert target[1:] in anchors
            elif not target.startswith("https://"):
                assert (ROOT / target).is_file(), target

    @pytest.mark.skipif(not MAKEFILE.exists(), reason="there is no Makefile")
    def test_the_commands_are_the_makefile_s(self) -> None:
        targets = set(re.findall(r"^([\w-]+):", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE))
        assert set(re.findall(r"`make ([\w-]+)`", PROSE)) <= targets

    def test_every_code_name_in_prose_exists(self) -> None:
        names = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w+)`", PROSE))
        foreign = {"CORSMiddleware"}
        assert names - foreign <= set(fastapi_otpless_session.__all__)
