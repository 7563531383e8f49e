"""The emulator's page: what it is told as it happens, what its buttons do, and who else may press them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import httpx
import pytest
from asgi import exchange, http_scope
from processes import PATIENCE
from starlette.types import Message

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, FaultKind, serve
from fastapi_otpless_session.emulator.calls import KEPT, CallLog
from fastapi_otpless_session.emulator.live import MOST_CALLS, MOST_SESSIONS

CREDENTIALS = {"clientId": "demo-client", "clientSecret": "demo-secret"}
VALIDATE = "/v1/sessions/validate-session"
REFRESH = "/v1/sessions/get-new-session-token"
HERE = "http://127.0.0.1:8701"
CONTROL = ["state", "calls", "faults", "events", "settings", "openapi.json"]


def validate(base_url: str, token: str, *, timeout: httpx.Timeout | None = None, **headers: str) -> httpx.Response:
    with httpx.Client(timeout=timeout or PATIENCE, headers={**CREDENTIALS, **headers}) as client:
        return client.post(base_url + VALIDATE, json={"sessionToken": token})


class Viewer:
    """An open page: the newest of each kind of event that it was told."""

    def __init__(self, response: httpx.Response) -> None:
        self.content_type = response.headers["content-type"]
        self.caching = response.headers["cache-control"]
        self._lines = response.iter_lines()
        self.told: dict[str, Any] = {}
        self.text = ""

    def wait_until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on until what was told is right."""
        deadline = time.monotonic() + PATIENCE
        name = ""
        while not ({"state", "calls"} <= self.told.keys() and holds(self.told)):
            assert time.monotonic() < deadline, self.told
            line = next(self._lines)
            self.text += line
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                self.told[name] = json.loads(line.removeprefix("data: "))
        return self.told

    def read_to_the_end(self) -> None:
        """Read on until the stream is over. Raises `httpx.HTTPError` where it broke off."""
        for line in self._lines:
            self.text += line


@contextmanager
def looking_at(base_url: str) -> Iterator[Viewer]:
    with httpx.stream("GET", base_url + "/_emulator/events", timeout=PATIENCE) as response:
        yield Viewer(response)


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def url(emulator: Emulator) -> Iterator[str]:
    with serve(emulator) as base_url:
        yield base_url


def the_session(told: dict[str, Any]) -> dict[str, Any]:
    (session,) = told["state"]["sessions"]
    assert isinstance(session, dict)
    return session


class TestStream:
    def test_it_begins_with_what_is_there(self, emulator: Emulator, url: str) -> None:
        user = emulator.sign_in(name="Asha", session_lifetime=60)
        validate(url, user["sessionInfo"]["sessionToken"])
        with looking_at(url) as viewer:
            told = viewer.wait_until(lambda told: told["calls"]["calls"] != [])
        assert viewer.content_type.startswith("text/event-stream")
        assert viewer.caching == "no-store"
        session = the_session(told)
        assert (session["knownAs"], session["userId"], session["generation"]) == ("Asha", user["userId"], 1)
        assert session["sessionToken"]["lifetime"] == 60
        assert 0 < session["sessionToken"]["expiresAt"] - told["state"]["now"] <= 60
        (call,) = told["calls"]["calls"]
        assert (call["path"], call["status"], call["outcome"], call["fault"]) == (VALIDATE, 200, "valid", None)
        assert call["sessionId"] == session["sessionId"]
        assert call["took"] > 0
        assert told["calls"]["counts"] == {VALIDATE: 1}

    def test_tokens_are_only_shown_shortened(self, emulator: Emulator, url: str) -> None:
        user = emulator.sign_in()
        tokens = user["sessionInfo"]
        validate(url, tokens["sessionToken"])
        httpx.post(url + REFRESH, json={"refreshToken": tokens["refreshToken"]}, headers=CREDENTIALS)
        with looking_at(url) as viewer:
            told = viewer.wait_until(lambda told: len(told["calls"]["calls"]) == 2)
        session = the_session(told)
        assert session["refreshToken"]["shortened"] == "…" + tokens["refreshToken"][-6:]
        assert session["generation"] == 2
        for secret in (tokens["sessionToken"], tokens["refreshToken"], user["token"], "demo-secret", "eyJ"):
            assert secret not in viewer.text

    def test_what_happens_is_told_as_it_happens(self, emulator: Emulator, url: str) -> None:
        with looking_at(url) as viewer:
            viewer.wait_until(lambda told: told["state"]["sessions"] == [])
            user = emulator.sign_in()
            session_id = user["sessionInfo"]["sessionId"]
            viewer.wait_until(lambda told: told["state"]["sessionCount"] == 1)
            emulator.expire(session_id)
            viewer.wait_until(lambda told: the_session(told)["sessionToken"] is None)
            emulator.kill_refresh(session_id)
            viewer.wait_until(lambda told: the_session(told)["refreshToken"] is None)
            emulator.revoke(session_id)
            viewer.wait_until(lambda told: the_session(told)["revoked"] is True)
            emulator.rotate_key()
            viewer.wait_until(lambda told: told["state"]["kid"] == "pk0184")
            emulator.set_latency("revoke-session", 3)
            viewer.wait_until(lambda told: told["state"]["latency"] == {"revoke-session": 3})
            httpx.post(url + "/_emulator/sdk/initiate", json={"appId": "DEMOAPP", "email": "asha@example.com"})
            told = viewer.wait_until(lambda told: told["state"]["inbox"] != [])
        assert told["state"]["inbox"][0]["otp"] == emulator.inbox[0].otp

    def test_a_fault_is_told_with_how_many_calls_it_still_fails(self, emulator: Emulator, url: str) -> None:
        with looking_at(url) as viewer:
            emulator.add_fault(Fault("garbage", times=2, skip=1))
            armed = {"kind": "garbage", "path": None, "status": 503, "skip": 1, "left": 2}
            viewer.wait_until(lambda told: told["state"]["faults"] == [armed])
            validate(url, "x")
            validate(url, "x")
            viewer.wait_until(lambda told: told["state"]["faults"] == [{**armed, "skip": 0, "left": 1}])
            told = viewer.wait_until(lambda told: len(told["calls"]["calls"]) == 2)
        assert [call["fault"] for call in told["calls"]["calls"]] == ["garbage", None]

    def test_a_call_is_told_before_it_is_answered(self, emulator: Emulator, url: str) -> None:
        emulator.add_fault(Fault("hang"))
        with looking_at(url) as viewer:
            with pytest.raises(httpx.ReadTimeout):
                validate(url, "x", timeout=httpx.Timeout(PATIENCE, read=0.1))
            told = viewer.wait_until(lambda told: told["calls"]["calls"] != [])
        (call,) = told["calls"]["calls"]
        assert (call["status"], call["took"], call["fault"]) == (0, None, "hang")

    @pytest.mark.parametrize(
        ("settings", "outcome"),
        [
            ({}, "success: false"),
            ({"dead_token_answer": "error"}, "7414 session not present"),
            ({"client_secret": "other"}, "wrong credentials"),
        ],
    )
    def test_an_answer_is_told_in_a_few_words(self, settings: dict[str, Any], outcome: str) -> None:
        with serve(Emulator(EmulatorSettings(**settings))) as url, looking_at(url) as viewer:
            validate(url, "unknown")
            told = viewer.wait_until(lambda told: told["calls"]["calls"] != [])
        assert told["calls"]["calls"][0]["outcome"] == outcome

    def test_of_many_only_the_newest_are_told(self, emulator: Emulator, url: str) -> None:
        for number in range(MOST_SESSIONS + 5):
            emulator.sign_in(name=f"Person {number}")
        with httpx.Client(base_url=url) as client:
            for _ in range(MOST_CALLS + 5):
                client.get("/.well-known/jwks")
        with looking_at(url) as viewer:
            told = viewer.wait_until(lambda told: told["state"]["sessionCount"] == MOST_SESSIONS + 5)
        assert [session["knownAs"] for session in told["state"]["sessions"][:2]] == ["Person 104", "Person 103"]
        assert len(told["state"]["sessions"]) == MOST_SESSIONS
        assert [call["number"] for call in told["calls"]["calls"]] == list(range(MOST_CALLS + 5, 5, -1))
        assert told["calls"]["counts"] == {"/.well-known/jwks": MOST_CALLS + 5}

    def test_it_goes_on_when_the_emulator_is_served_again(self, emulator: Emulator, url: str) -> None:
        with serve(emulator) as other_url, looking_at(other_url) as viewer:
            viewer.wait_until(lambda told: told["state"]["sessions"] == [])
        with looking_at(url) as viewer:
            viewer.wait_until(lambda told: told["state"]["sessions"] == [])
            emulator.sign_in()
            viewer.wait_until(lambda told: len(told["state"]["sessions"]) == 1)

    def test_it_ends_with_the_emulator_while_pages_are_open(self, emulator: Emulator) -> None:
        with serve(emulator) as url:
            stream = httpx.stream("GET", url + "/_emulator/events", timeout=PATIENCE)
            response = stream.__enter__()
            viewer = Viewer(response)
            viewer.wait_until(lambda told: told["state"]["sessions"] == [])
        viewer.read_to_the_end()  # which is no broken connection
        stream.__exit__(None, None, None)


class SlowPage:
    """A page whose connection takes nothing until it is told to: `send` waits, as a server's does."""

    def __init__(self, emulator: Emulator) -> None:
        self.sent: list[str] = []
        self.takes = asyncio.Event()
        self.waits = asyncio.Event()
        self.told = asyncio.Event()
        headers = [(b"host", b"127.0.0.1:8701")]
        scope = http_scope("/_emulator/events", headers=headers)
        self.task = asyncio.create_task(self._run(emulator, scope))

    async def _run(self, emulator: Emulator, scope: dict[str, Any]) -> None:
        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            self.waits.set()
            await self.takes.wait()
            self.sent.append(message.get("body", b"").decode())
            if "event: calls" in self.sent[-1]:
                self.told.set()

        await emulator.app(scope, receive, send)


@pytest.fixture
async def slow_page(emulator: Emulator) -> AsyncIterator[SlowPage]:
    page = SlowPage(emulator)
    yield page
    page.task.cancel()
    await asyncio.gather(page.task, return_exceptions=True)


class TestMemory:
    async def test_nothing_is_queued_for_a_slow_page(self, emulator: Emulator, slow_page: SlowPage) -> None:
        await slow_page.waits.wait()
        jwks = http_scope("/.well-known/jwks")
        for _ in range(500):
            assert (await exchange(emulator.app, jwks)).status == 200
        slow_page.takes.set()
        async with asyncio.timeout(PATIENCE):
            await slow_page.told.wait()
        events = [text for text in slow_page.sent if "event: calls" in text]
        assert len(events) == 1  # as things are when it can be told, not as they were 500 times
        assert '"/.well-known/jwks": 500' in events[0]
        assert events[0].count('"number"') == MOST_CALLS

    def test_old_calls_are_counted_but_not_remembered(self) -> None:
        log = CallLog()
        for _ in range(KEPT + 10):
            log.open("/x/validate-session", 0.0)
        assert len(log.calls()) == KEPT
        assert log.count("validate-session") == KEPT + 10
        assert log.newest(1)[0].number == KEPT + 10
        log.reset()
        assert (log.calls(), log.by_path()) == ([], {})


class Browser:
    """Requests as a browser makes them for pages of various sites."""

    def __init__(self, **settings: Any) -> None:
        self.emulator = Emulator(EmulatorSettings(**settings))
        transport = httpx.ASGITransport(self.emulator.app)
        self.http = httpx.AsyncClient(transport=transport, base_url=HERE)

    async def revoke(self, headers: dict[str, str]) -> tuple[int, bool]:
        """Try to revoke a session; return the status, and whether it is revoked."""
        session_id = self.emulator.sign_in()["sessionInfo"]["sessionId"]
        body = json.dumps({"sessionId": session_id})
        answer = await self.http.post("/_emulator/revoke", content=body, headers=headers)
        assert answer.json()["success" if answer.status_code == 200 else "message"]
        return answer.status_code, self.emulator.session(session_id).revoked


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    made = Browser()
    async with made.http:
        yield made


class TestOtherSites:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Sec-Fetch-Site": "same-origin", "Origin": HERE},
            {"Sec-Fetch-Site": "none"},
            {"Origin": HERE},
            {"Host": "localhost:8701", "Origin": "http://localhost:8701"},
            {"Host": "LOCALHOST.:8701"},
            {"Host": "otpless.localhost"},
            {"Host": "otpless.test"},
            {"Host": "emulator:8701"},
            {"Host": "host.docker.internal:8701"},
            {"Host": "[::1]:8701", "Origin": "http://[::1]:8701"},
            {"Host": "192.168.0.7:8701", "Origin": "http://192.168.0.7:8701"},
        ],
        ids=str,
    )
    async def test_programs_and_its_own_page_may_steer(self, browser: Browser, headers: dict[str, str]) -> None:
        assert await browser.revoke(headers) == (200, True)

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:8000"},
            {"Sec-Fetch-Site": "cross-site", "Origin": HERE},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
            {"Origin": "https://evil.example"},
            {"Origin": "http://127.0.0.1:8000"},
            {"Origin": "null"},
            {"Origin": ""},
        ],
        ids=str,
    )
    async def test_another_sites_page_may_not(self, browser: Browser, headers: dict[str, str]) -> None:
        assert await browser.revoke(headers) == (403, False)

    @pytest.mark.parametrize(
        "host", ["evil.com", "evil.com:8701", "127.0.0.1.evil.com", "localhost.evil.com", "[evil.com"]
    )
    @pytest.mark.parametrize("site", ["same-origin", None])
    async def test_a_domain_that_was_rebound_to_loopback_is_refused(
        self, browser: Browser, host: str, site: str | None
    ) -> None:
        headers = {"Host": host, "Origin": f"http://{host}"} | ({"Sec-Fetch-Site": site} if site else {})
        assert await browser.revoke(headers) == (403, False)
        for name in CONTROL:
            read = await browser.http.get(f"/_emulator/{name}", headers={"Host": host})
            assert read.status_code == 403

    async def test_a_domain_can_be_trusted(self) -> None:
        browser = Browser(control_hosts=("Emulator.shop.com",))
        assert await browser.revoke({"Host": "emulator.shop.com:8701"}) == (200, True)
        assert await browser.revoke({"Host": "evil.com"}) == (403, False)
        assert await browser.revoke({"Host": "emulator.shop.com", "Origin": "http://evil.com"}) == (403, False)

    @pytest.mark.parametrize("name", CONTROL)
    async def test_another_sites_page_reads_nothing(self, browser: Browser, name: str) -> None:
        headers = {"Origin": "https://evil.com", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
        answer = await browser.http.get(f"/_emulator/{name}", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers

    async def test_another_sites_page_gets_no_leave_to_ask(self, browser: Browser) -> None:
        headers = {"Origin": "https://evil.com", "Access-Control-Request-Method": "DELETE"}
        answer = await browser.http.options("/_emulator/calls", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers

    async def test_a_link_from_another_site_opens_the_page(self, browser: Browser) -> None:
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert (await browser.http.get("/_emulator/", headers=headers)).status_code == 200
        framed = {**headers, "Sec-Fetch-Dest": "iframe"}
        assert (await browser.http.get("/_emulator/", headers=framed)).status_code == 403

    async def test_what_an_applications_pages_call_stays_open_to_them(self, browser: Browser) -> None:
        headers = {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "cross-site"}
        body = {"appId": "DEMOAPP", "email": "asha@example.com"}
        answer = await browser.http.post("/_emulator/sdk/initiate", json=body, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"


class TestDocument:
    @pytest.mark.parametrize("path", ["/", "/_emulator/"])
    async def test_the_page_holds_all_that_it_needs(self, browser: Browser, path: str) -> None:
        answer = await browser.http.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        for tag in ("style", "script"):
            (source,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert not re.findall(r'\b(?:src|href)="(?!#|data:|/_emulator/)', answer.text)
        assert not re.findall(r"\son\w+=|style=|innerHTML|insertAdjacentHTML|\beval\b", answer.text)

    async def test_each_fault_is_explained_in_a_sentence(self, browser: Browser) -> None:
        found = (await browser.http.get("/_emulator/faults")).json()
        assert set(found["kinds"]) == set(get_args(FaultKind))
        assert all(sentence.endswith(".") for sentence in found["kinds"].values())
        assert VALIDATE in found["paths"]
        for kind in found["kinds"]:
            answer = await browser.http.post("/_emulator/faults", json={"kind": kind, "times": 1})
            assert answer.status_code == 200
        armed = (await browser.http.get("/_emulator/faults")).json()["armed"]
        assert [fault["kind"] for fault in armed] == list(found["kinds"])

    async def test_what_its_buttons_send_is_what_a_shell_would(self, browser: Browser) -> None:
        """The page sends JSON as plain text, curl as a form: the control API takes a body for what it is."""
        for kind in ("text/plain;charset=UTF-8", "application/x-www-form-urlencoded"):
            assert await browser.revoke({"Content-Type": kind}) == (200, True)

    async def test_the_description_of_the_api_is_served(self, browser: Browser) -> None:
        answer = await browser.http.get("/_emulator/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["openapi"].startswith("3.1.")
