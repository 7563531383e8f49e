"""`client.js` in a real browser: against answers that the test gives, and against an API of another origin."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from asgi import serving
from browser import Browser, Held, Window
from conftest import make_settings
from fastapi import FastAPI, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse
from pages import Block, blocks
from processes import wait_until

from fastapi_otpless_session import (
    CurrentSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    create_session_router,
)
from fastapi_otpless_session.emulator import Emulator, serve
from fastapi_otpless_session.script import client_script

pytestmark = pytest.mark.varied

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route, WebSocketRoute

SITE = "https://shop.example"
HEADER = "X-Session-Token"
SLOW = "/slow"
STORED = "Object.entries(localStorage).find(([key]) => key.startsWith('otpless-session-token'))?.[1] ?? null"
PAGE = """<!doctype html><title>Shop</title><link rel="icon" href="data:,">
<script>window.events = []; window.before = window.otpless;</script>
{before}<script src="{script}" {attributes}></script>
<script>
  for (const name of ["signed-in", "signed-out", "sign-in-failed"]) {{
    window.otplessSession && otplessSession.on(name, (detail) => events.push([name, detail && detail.code]));
  }}
</script>"""
EXAMPLES = [block for block in blocks("html") if "client.js" in block.text]
EXPIRED = {"detail": {"code": "session_expired", "message": "The session has expired."}}
CLOSED = """path => new Promise((done) => {
  const socket = otplessSession.socket(path, "chat");
  socket.onopen = () => socket.send("go on");
  socket.onclose = ({ reason }) => done(reason);
})"""
SIGN_IN = "otplessSession.signIn({ token: 'once' })"
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('denied'); } });"
FULL_STORAGE = "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); };"


def token(issued_at: int, session: str = "session-1") -> str:
    """A token as OTPLESS writes them; to a browser a signature is only letters."""
    payload = {"sub": session, "iat": issued_at, "exp": issued_at + 600, "name": "Åsa"}
    parts = ({"alg": "RS256"}, payload)
    return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), "c2ln"])


OLD, NEW, NEWEST = token(100), token(200), token(300)


class Site:
    """https://shop.example, with `client.js`. What it answers to requests is what the test says."""

    def __init__(self, window: Window, *, header: str = HEADER, before: str = "", attributes: str = "") -> None:
        self.window = window
        self.header = header
        self.held = Held()
        self.seen: list[tuple[str, str | None]] = []
        self._page = PAGE.format(script="/auth/client.js?v=1", before=before, attributes=attributes)
        self._answers: dict[str, dict[str, Any]] = {}
        window.context.route("**/*", self._route)

    def answers(self, path: str, status: int = 200, body: Any = None, swap: str | None = None, **headers: str) -> None:
        """Answer requests to a path from now on."""
        if swap is not None:
            headers[self.header] = swap
        self._answers[path] = {"status": status, "json": {} if body is None else body, "headers": headers}

    def hold(self, page: Page) -> None:
        """Let a page request something, `last`, and leave it without an answer."""
        count = len(self.held) + 1
        page.evaluate(f"window.last = otplessSession.fetch('{SLOW}'); 0")
        self.held.wait(page, count)

    def release(self, page: Page, **answer: Any) -> None:
        """Answer the request that has waited longest."""
        swap = answer.pop("swap", None)
        headers = {self.header: swap} if swap else {}
        self.held.next(page).fulfill(status=200, json={}, headers=headers, **answer)

    def _route(self, route: Route) -> None:
        path = route.request.url.removeprefix(SITE)
        if path == "/":
            route.fulfill(content_type="text/html", body=self._page)
        elif path.startswith(("/auth/client.js", "/bundle.js")):
            route.fulfill(content_type="text/javascript", body=client_script(self.header).body.decode())
        else:
            self.seen.append((path, route.request.headers.get(self.header.lower())))
            if path == SLOW:
                self.held.add(route)
            else:
                route.fulfill(**self._answers.get(path, {"status": 404}))

    def tab(self) -> Page:
        return self.window.tab(f"{SITE}/")

    def signed_in_tab(self, swap: str = OLD) -> Page:
        page = self.tab()
        self.answers("/auth/login?channel=header", body={"id": "session-1"}, swap=swap)
        assert page.evaluate(SIGN_IN) == {"id": "session-1"}
        return page


def fetched(page: Page, path: str) -> int:
    return int(page.evaluate("path => otplessSession.fetch(path).then(({ status }) => status)", path))


def stored(page: Page) -> str | None:
    found: str | None = page.evaluate(STORED)
    return found


def is_signed_in(page: Page) -> bool:
    return bool(page.evaluate("otplessSession.signedIn"))


def events(page: Page) -> list[list[str | None]]:
    found: list[list[str | None]] = page.evaluate("events.splice(0)")
    return found


@pytest.fixture
def site(browser: Browser) -> Site:
    return Site(browser.window())


class TestToken:
    def test_it_is_stored_sent_and_replaced_when_the_server_swaps_it(self, site: Site) -> None:
        page = site.signed_in_tab(OLD)
        assert (stored(page), is_signed_in(page), events(page)) == (OLD, True, [["signed-in", None]])
        site.answers("/orders", swap=NEW)
        assert fetched(page, "/orders") == 200
        site.answers("/orders")
        assert fetched(page, f"{SITE}/orders") == 200
        assert site.seen == [("/auth/login?channel=header", None), ("/orders", OLD), ("/orders", NEW)]
        assert events(page) == []  # a swap is nobody's business

    def test_the_header_is_the_one_that_the_server_named(self, browser: Browser) -> None:
        site = Site(browser.window(), header="X-Chai")
        page = site.signed_in_tab()
        site.answers("/orders", swap=NEW)
        fetched(page, "/orders")
        assert (site.seen[-1], stored(page)) == (("/orders", OLD), NEW)

    def test_an_older_token_that_comes_late_does_not_replace_a_newer_one(self, site: Site) -> None:
        page = site.signed_in_tab(OLD)
        site.hold(page)
        site.answers("/quick", swap=NEWEST)
        fetched(page, "/quick")
        site.release(page, swap=NEW)
        assert page.evaluate("last.then(({ status }) => status)") == 200
        assert stored(page) == NEWEST

    def test_a_newer_token_that_comes_late_replaces_an_older_one(self, site: Site) -> None:
        slow, quick = site.signed_in_tab(OLD), site.tab()
        site.hold(slow)
        site.answers("/quick", swap=NEW)
        fetched(quick, "/quick")
        site.release(slow, swap=NEWEST)
        slow.evaluate("last.then(({ status }) => status)")
        assert {stored(slow), stored(quick)} == {NEWEST}

    @pytest.mark.parametrize("meanwhile", [None, token(50, "session-2")], ids=["signed-out", "somebody-else"])
    def test_a_late_token_brings_no_session_back(self, site: Site, meanwhile: str | None) -> None:
        page, other = site.signed_in_tab(OLD), site.tab()
        site.hold(page)
        site.answers("/auth/logout", 204)
        other.evaluate("otplessSession.signOut()")
        if meanwhile is not None:
            site.answers("/auth/login?channel=header", swap=meanwhile)
            other.evaluate(SIGN_IN)
        page.wait_for_function(f"token => ({STORED}) === token", arg=meanwhile)  # tabs hear of it a little later
        site.release(page, swap=NEWEST)
        page.evaluate("last.then(({ status }) => status)")
        assert stored(page) == meanwhile

    @pytest.mark.parametrize("old", [OLD, token(400, "session-2")], ids=["older", "somebody-else's"])
    def test_a_token_out_of_a_cache_replaces_nothing(self, site: Site, old: str) -> None:
        page = site.signed_in_tab(NEW)
        site.answers("/orders", swap=old)
        fetched(page, "/orders")
        assert (stored(page), events(page)) == (NEW, [["signed-in", None]])

    def test_a_token_out_of_a_cache_signs_nobody_in(self, site: Site) -> None:
        page = site.tab()
        site.answers("/orders", swap=OLD)
        fetched(page, "/orders")
        assert (stored(page), is_signed_in(page), events(page)) == (None, False, [])

    def test_two_tabs_that_write_at_once_end_with_the_newer_token(self, site: Site) -> None:
        page, other = site.signed_in_tab(NEW), site.tab()
        key = page.evaluate("Object.keys(localStorage).find((key) => key.startsWith('otpless-session-token'))")
        other.evaluate("([key, token]) => localStorage.setItem(key, token)", [key, OLD])
        page.wait_for_function("([key, token]) => localStorage.getItem(key) === token", arg=[key, NEW])
        assert events(page) == [["signed-in", None]]

    def test_a_cookie_stays_at_home(self, site: Site) -> None:
        site.window.context.add_cookies([{"name": "otpless_session", "value": OLD, "url": SITE}])
        page = site.signed_in_tab()
        site.answers("/orders")
        with page.expect_request("**/orders") as sent:
            fetched(page, "/orders")
        assert "cookie" not in sent.value.all_headers()
        with page.expect_request("**/orders") as sent:
            page.evaluate("otplessSession.fetch('/orders', { credentials: 'include' }).then(() => 0)")
        assert "cookie" in sent.value.all_headers()

    def test_requests_keep_what_they_have(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.answers("/orders")
        made = "new Request('/orders', { method: 'PUT', body: 'x', headers: { 'X-Own': '1' } })"
        with page.expect_request("**/orders") as sent:
            page.evaluate(f"otplessSession.fetch({made}).then(() => 0)")
        assert (sent.value.method, sent.value.post_data) == ("PUT", "x")
        assert sent.value.headers["x-own"] == "1"
        assert sent.value.headers[HEADER.lower()] == OLD

    @pytest.mark.parametrize(
        "asked", ["'/orders', {{ {} }}", "new Request('/orders', {{ {} }})"], ids=["path", "Request"]
    )
    @pytest.mark.parametrize(
        ("said", "header", "value"),
        [
            ("credentials: 'include'", "cookie", f"otpless_session={OLD}"),
            ("referrer: '/from'", "referer", f"{SITE}/from"),
            ("referrerPolicy: 'no-referrer'", "referer", None),
        ],
    )
    def test_what_a_request_says_of_itself_holds(
        self, site: Site, asked: str, said: str, header: str, value: str | None
    ) -> None:
        site.window.context.add_cookies([{"name": "otpless_session", "value": OLD, "url": SITE}])
        page = site.signed_in_tab()
        site.answers("/orders")
        with page.expect_request("**/orders") as sent:
            page.evaluate(f"otplessSession.fetch({asked.format(said)}).then(() => 0)")
        headers = sent.value.all_headers()
        assert (headers.get(header), headers[HEADER.lower()]) == (value, OLD)

    def test_a_request_that_says_nothing_is_as_careful_as_a_path(self, site: Site) -> None:
        site.window.context.add_cookies([{"name": "otpless_session", "value": OLD, "url": SITE}])
        page = site.signed_in_tab()
        site.answers("/orders")
        with page.expect_request("**/orders") as sent:
            page.evaluate("otplessSession.fetch(new Request('/orders')).then(() => 0)")
        assert "cookie" not in sent.value.all_headers()

    @pytest.mark.parametrize("asked", ["'/slow', {{ {} }}", "new Request('/slow', {{ {} }})"], ids=["path", "Request"])
    def test_whoever_asks_may_give_up(self, site: Site, asked: str) -> None:
        page = site.signed_in_tab()
        page.evaluate("window.patience = new AbortController(); 0")
        with page.expect_request("**/slow"):
            asked = asked.format("signal: patience.signal")
            page.evaluate(f"window.last = otplessSession.fetch({asked}).catch(({{ name }}) => name); 0")
        page.evaluate("patience.abort()")
        assert page.evaluate("last") == "AbortError"

    @pytest.mark.parametrize(
        "asked", ["'/moved', {{ {} }}", "new Request('/moved', {{ {} }})"], ids=["path", "Request"]
    )
    @pytest.mark.parametrize(("redirect", "outcome"), [("error", "TypeError"), ("manual", "opaqueredirect")])
    def test_whoever_says_what_a_redirect_is_to_be_has_it_so(
        self, site: Site, asked: str, redirect: str, outcome: str
    ) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"ERR_FAILED"}
        site.answers("/moved", 307, Location="/orders")
        asked = asked.format(f"redirect: '{redirect}'")
        seen = f"otplessSession.fetch({asked}).then(({{ type }}) => type, ({{ name }}) => name)"
        assert page.evaluate(seen) == outcome

    @pytest.mark.parametrize(
        "asked",
        ["'/orders', { mode: 'no-cors' }", "new Request('/orders', { mode: 'no-cors' })"],
        ids=["path", "Request"],
    )
    def test_what_can_bring_no_token_is_left_alone_and_says_nothing_of_the_session(
        self, site: Site, asked: str
    ) -> None:
        site.window.context.add_cookies([{"name": "otpless_session", "value": OLD, "url": SITE}])
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        site.answers("/orders", 401, EXPIRED)
        with page.expect_request("**/orders") as sent:
            assert page.evaluate(f"otplessSession.fetch({asked}).then(({{ status }}) => status)") == 401
        headers = sent.value.all_headers()
        assert (headers.get(HEADER.lower()), headers.get("cookie")) == (None, f"otpless_session={OLD}")
        assert (stored(page), events(page)) == (OLD, [["signed-in", None]])

    @pytest.mark.parametrize("call", ["fetch", "socket"])
    @pytest.mark.parametrize(
        "address",
        ["https://elsewhere.example/x", "//elsewhere.example/x", "https://shop.example:1/", "http://shop.example/x"],
    )
    def test_no_other_site_gets_it(self, site: Site, call: str, address: str) -> None:
        page = site.signed_in_tab()
        attempt = f"(async () => otplessSession.{call}({json.dumps(address)}))().catch((error) => error.name)"
        assert page.evaluate(attempt) == "TypeError"
        assert [path for path, _ in site.seen] == ["/auth/login?channel=header"]

    @pytest.mark.parametrize(
        "asked",
        ["'/moved'", "new Request('/moved')", "'/moved', { method: 'POST' }", "'/moved', { redirect: undefined }"],
    )
    def test_it_does_not_go_along_with_a_redirect(self, site: Site, asked: str) -> None:
        page = site.signed_in_tab()
        site.answers("/moved", 307, Location="https://elsewhere.example/x")
        message = page.evaluate(f"otplessSession.fetch({asked}).catch(({{ message }}) => message)")
        assert message.startswith(f"{SITE}/moved answered with a redirect, which is not followed")
        assert [path for path, _ in site.seen] == ["/auth/login?channel=header", "/moved"]

    def test_its_socket_may_be_named_in_full(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.context.route_web_socket("wss://shop.example/ws", lambda ws: ws.send("hello"))
        heard = "new Promise((resolve) => { otplessSession.socket(address).onmessage = ({ data }) => resolve(data); })"
        for address in ("/ws", "https://shop.example/ws", "wss://shop.example/ws"):
            assert page.evaluate(f"(address) => {heard}", address) == "hello"


class TestEnd:
    def test_a_401_of_ours_signs_all_tabs_out_and_says_why(self, site: Site) -> None:
        page, other = site.signed_in_tab(), site.tab()
        events(page)
        site.window.refusals = {"401"}
        site.answers("/orders", 401, EXPIRED)
        assert fetched(page, "/orders") == 401
        assert (stored(page), events(page)) == (None, [["signed-out", "session_expired"]])
        other.wait_for_function("events.length")
        assert (is_signed_in(other), events(other)) == (False, [["signed-out", None]])

    def test_a_401_that_the_application_restyled_is_told_by_its_realm(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        site.answers("/orders", 401, "Please sign in", **{"WWW-Authenticate": 'Bearer realm="otpless"'})
        fetched(page, "/orders")
        assert not is_signed_in(page)

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ("<p>Please sign in", "session_invalid"),
            ("null", "session_invalid"),
            ("[]", "session_invalid"),
            ('{"oops": "session_expired"}', "session_invalid"),
            ('{"detail": {"code": 7}}', "session_invalid"),
            ('{"detail": {"code": "please_sign_in"}}', "please_sign_in"),
            (json.dumps(EXPIRED), "session_expired"),
        ],
        ids=["html", "null", "list", "other-keys", "number", "its-own-code", "ours"],
    )
    def test_why_a_session_ended_is_said_though_the_body_is_the_application_s(
        self, site: Site, body: str, told: str
    ) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        challenge = {"WWW-Authenticate": 'Bearer realm="otpless", error="invalid_token"'}
        page.route("**/orders", lambda route: route.fulfill(status=401, headers=challenge, body=body))
        assert fetched(page, "/orders") == 401
        assert (stored(page), events(page)[1:]) == (None, [["signed-out", told]])

    @pytest.mark.parametrize(
        ("status", "body"),
        [
            (401, {"detail": "Wrong PIN"}),
            (401, {"detail": {"code": "wrong_pin"}}),
            (403, EXPIRED),
            (503, {"detail": {"code": "session_unavailable"}}),
        ],
        ids=["its-own", "its-own-code", "forbidden", "outage"],
    )
    def test_other_refusals_sign_nobody_out(self, site: Site, status: int, body: Any) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {str(status)}
        site.answers("/orders", status, body)
        assert fetched(page, "/orders") == status
        assert (stored(page), events(page)) == (OLD, [["signed-in", None]])

    def test_a_401_about_an_older_token_is_not_about_the_one_that_there_is(self, site: Site) -> None:
        page, other = site.signed_in_tab(OLD), site.tab()
        site.window.refusals = {"401"}
        site.hold(page)
        site.answers("/orders", swap=NEW)
        fetched(other, "/orders")
        site.held.next(page).fulfill(status=401, json=EXPIRED)
        assert page.evaluate("last.then(({ status }) => status)") == 401
        assert stored(page) == NEW

    def test_signing_out_ends_the_session_in_every_tab(self, site: Site) -> None:
        page, other = site.signed_in_tab(), site.tab()
        site.answers("/auth/logout", 204)
        page.evaluate("otplessSession.signOut()")
        assert (site.seen[-1], stored(page)) == (("/auth/logout", OLD), None)
        assert events(page) == [["signed-in", None], ["signed-out", None]]
        other.wait_for_function("events.length")
        assert events(other) == [["signed-out", None]]
        page.evaluate("otplessSession.signOut()")
        assert site.seen[-2:] == [("/auth/login?channel=header", None), ("/auth/logout", OLD)]  # not asked again

    def test_everywhere_is_the_route_for_all_sessions(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.answers("/auth/logout-all", 204)
        page.evaluate("otplessSession.signOut({ everywhere: true })")
        assert (site.seen[-1][0], is_signed_in(page)) == ("/auth/logout-all", False)

    def test_a_sign_out_that_failed_does_not_look_like_one(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"503"}
        site.answers("/auth/logout", 503, {"detail": {"code": "session_unavailable", "message": "Try again."}})
        failure = "otplessSession.signOut().catch(({ message, code, status }) => [message, code, status])"
        assert page.evaluate(failure) == ["Try again.", "session_unavailable", 503]
        assert is_signed_in(page)

    def test_a_401_of_a_proxy_s_is_no_sign_out(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        site.answers("/auth/logout", 401, "Who are you?", **{"WWW-Authenticate": 'Basic realm="proxy"'})
        assert page.evaluate("otplessSession.signOut().catch(({ status }) => status)") == 401
        assert (is_signed_in(page), events(page)) == (True, [["signed-in", None]])

    def test_a_sign_out_whose_session_is_over_already_is_one(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        site.answers("/auth/logout", 401, EXPIRED)
        page.evaluate("otplessSession.signOut()")
        assert (is_signed_in(page), events(page)) == (False, [["signed-in", None], ["signed-out", None]])

    def test_a_sign_out_that_failed_while_another_tab_had_a_swap_does_not_look_like_one(self, site: Site) -> None:
        page, other = site.signed_in_tab(OLD), site.tab()
        site.window.refusals = {"503"}
        page.route("**/auth/logout", site.held.add)
        page.evaluate("window.leaving = otplessSession.signOut().catch(({ status }) => status); 0")
        site.held.wait(page)
        site.answers("/orders", swap=NEW)
        fetched(other, "/orders")
        page.wait_for_function(f"{STORED} === {json.dumps(NEW)}")
        site.held.next(page).fulfill(status=503, json={})
        assert page.evaluate("leaving") == 503
        assert is_signed_in(page)

    @pytest.mark.parametrize(("reason", "ends"), [("session_revoked", True), ("kitchen_closed", False)])
    def test_a_websocket_that_is_closed_for_its_session_signs_out(self, site: Site, reason: str, ends: bool) -> None:
        page = site.signed_in_tab()
        page.route_web_socket("**/live", lambda ws: ws.on_message(lambda _: ws.close(code=1008, reason=reason)))
        page.evaluate(CLOSED, "/live")
        assert is_signed_in(page) is not ends
        assert events(page)[1:] == ([["signed-out", reason]] if ends else [])

    @pytest.mark.parametrize(
        ("status", "body", "ends"),
        [(401, EXPIRED, True), (401, {"detail": "Wrong PIN"}, False), (503, {}, False), (200, {}, False)],
        ids=["over", "its-own", "outage", "another-cause"],
    )
    def test_a_websocket_that_never_opened_has_the_session_asked_for_once(
        self, site: Site, status: int, body: Any, ends: bool
    ) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {str(status)}
        site.answers("/auth/session", status, body)
        page.route_web_socket("**/live", lambda ws: ws.close(code=1006))
        with page.expect_response("**/auth/session"):
            page.evaluate("otplessSession.socket('/live'); 0")
        site.answers("/orders")
        fetched(page, "/orders")  # what came before it has been dealt with
        page.wait_for_function("signedIn => otplessSession.signedIn === signedIn", arg=not ends)
        assert events(page)[1:] == ([["signed-out", "session_expired"]] if ends else [])
        assert [path for path, _ in site.seen].count("/auth/session") == 1

    def test_a_websocket_that_breaks_later_or_has_no_session_asks_for_nothing(self, site: Site) -> None:
        page = site.tab()
        page.route_web_socket("**/refused", lambda ws: ws.close(code=1006))
        page.route_web_socket("**/live", lambda ws: ws.on_message(lambda _: ws.close(code=1006)))
        page.evaluate(CLOSED, "/refused")
        site.answers("/auth/login?channel=header", swap=OLD)
        page.evaluate(SIGN_IN)
        page.evaluate(CLOSED, "/live")
        site.answers("/orders")
        fetched(page, "/orders")
        assert "/auth/session" not in [path for path, _ in site.seen]

    def test_a_websocket_that_ends_before_the_sign_out_is_answered_does_not_tell_of_a_revocation(
        self, site: Site
    ) -> None:
        page = site.signed_in_tab()
        page.route_web_socket("**/live", lambda socket: socket.on_message(lambda _: end(socket)))
        opened = (
            "new Promise((done) => (window.socket = otplessSession.socket('/live')).addEventListener('open', done))"
        )
        page.evaluate(f"{opened}.then(() => 0)")
        page.route("**/auth/logout", site.held.add)
        page.evaluate("window.leaving = otplessSession.signOut(); 0")
        page.evaluate("socket.send('the session is over')")
        page.wait_for_function("!otplessSession.signedIn")
        site.held.next(page).fulfill(status=204)
        page.evaluate("leaving")
        assert events(page)[1:] == [["signed-out", None]]


def end(socket: WebSocketRoute) -> None:
    socket.close(code=1008, reason="session_revoked")


class TestTabs:
    def test_a_tab_learns_of_a_sign_in_and_of_somebody_else_s_but_not_of_a_swap(self, site: Site) -> None:
        waiting = site.tab()
        page = site.signed_in_tab()
        waiting.wait_for_function("events.length")
        assert events(waiting) == [["signed-in", None]]
        site.answers("/orders", swap=NEW)
        fetched(page, "/orders")
        waiting.wait_for_function(f"{STORED} === {json.dumps(NEW)}")
        site.answers("/auth/login?channel=header", swap=token(400, "session-2"))
        page.evaluate(SIGN_IN)
        waiting.wait_for_function("events.length")
        assert events(waiting) == [["signed-in", None]]

    @pytest.mark.parametrize("storage", [NO_STORAGE, FULL_STORAGE], ids=["none", "full"])
    def test_without_storage_a_tab_keeps_its_own_token(self, site: Site, storage: str) -> None:
        site.window.context.add_init_script(storage)
        page = site.signed_in_tab()
        site.answers("/orders", swap=NEW)
        fetched(page, "/orders")
        fetched(page, "/orders")
        assert site.seen[-1] == ("/orders", NEW)
        site.answers("/auth/logout", 204)
        page.evaluate("otplessSession.signOut()")
        assert (is_signed_in(page), events(page)) == (False, [["signed-in", None], ["signed-out", None]])

    def test_storage_that_fills_up_later_leaves_the_tab_with_its_own(self, site: Site) -> None:
        page = site.signed_in_tab()
        page.evaluate(f"() => {{ {FULL_STORAGE} }}")
        site.answers("/orders", swap=NEW)
        fetched(page, "/orders")
        fetched(page, "/orders")
        assert site.seen[-1] == ("/orders", NEW)

    def test_storage_that_fills_up_keeps_no_old_token_for_other_tabs(self, site: Site) -> None:
        page, other = site.signed_in_tab(OLD), site.tab()
        page.evaluate(f"() => {{ {FULL_STORAGE} }}")
        site.answers("/orders", swap=NEW)
        fetched(page, "/orders")
        assert (is_signed_in(page), stored(page)) == (True, None)
        other.wait_for_function("!otplessSession.signedIn")

    def test_whoever_is_signed_in_stays_so_where_storage_is_full(self, site: Site) -> None:
        site.signed_in_tab(OLD)
        site.window.context.add_init_script(FULL_STORAGE)
        page = site.tab()
        assert is_signed_in(page)
        site.answers("/orders")
        fetched(page, "/orders")
        assert site.seen[-1] == ("/orders", OLD)


class TestPage:
    def test_the_sdk_s_callback_signs_in_and_tells_of_a_failure(self, site: Site) -> None:
        page = site.tab()
        site.window.refusals = {"401"}
        refused = {"detail": {"code": "sign_in_refused", "message": "The sign-in could not be verified."}}
        site.answers("/auth/login?channel=header", 401, refused)
        page.evaluate("otpless({ token: 'once' })")
        page.wait_for_function("events.length")
        assert events(page) == [["sign-in-failed", "sign_in_refused"]]
        site.answers("/auth/login?channel=header", swap=OLD)
        page.evaluate("otpless({ token: 'once' })")
        page.wait_for_function("events.length")
        assert events(page) == [["signed-in", None]]

    def test_a_sign_in_that_is_refused_leaves_the_session_that_there_is(self, site: Site) -> None:
        page = site.signed_in_tab()
        events(page)
        site.window.refusals = {"401"}
        refused = {"detail": {"code": "sign_in_refused", "message": "Sign in again."}}
        site.answers("/auth/login?channel=header", 401, refused, **{"WWW-Authenticate": 'Bearer realm="otpless"'})
        page.evaluate("otpless({ token: 'once' })")  # as the SDK may call back twice, with a token that is used up
        page.wait_for_function("events.flat().includes('sign-in-failed')")
        assert events(page) == [["sign-in-failed", "sign_in_refused"]]
        assert stored(page) == OLD

    def test_a_refused_sign_in_leaves_the_session_though_the_body_is_the_application_s(self, site: Site) -> None:
        page = site.signed_in_tab()
        site.window.refusals = {"401"}
        challenge = {"WWW-Authenticate": 'Bearer realm="otpless"'}
        site.answers("/auth/login?channel=header", 401, "Please try again", **challenge)
        assert page.evaluate(f"{SIGN_IN}.catch(({{ code, status }}) => [code, status])") == [None, 401]
        assert (stored(page), events(page)) == (OLD, [["signed-in", None]])

    def test_a_second_copy_of_the_script_changes_nothing(self, browser: Browser) -> None:
        first = '<script src="/auth/client.js"></script><script>window.first = otplessSession;</script>'
        site = Site(browser.window(), before=first)
        page = site.tab()
        assert page.evaluate("first === otplessSession")
        site.answers("/auth/login?channel=header", swap=OLD)
        page.evaluate("otpless({ token: 'once' })")
        page.wait_for_function("otplessSession.signedIn")
        assert events(page) == [["signed-in", None]]

    def test_a_copy_in_a_bundle_changes_nothing_beside_the_router_s_and_says_what_it_is_without(
        self, site: Site
    ) -> None:
        page = site.tab()
        page.evaluate("window.first = otplessSession; 0")
        page.add_script_tag(url="/bundle.js")
        assert page.evaluate("first === otplessSession")
        page.evaluate("delete window.otplessSession")
        failure = "source => { try { (0, eval)(source); } catch ({ message }) { return message; } }"
        assert "not in a bundle" in page.evaluate(failure, client_script(HEADER).body.decode())

    def test_a_callback_of_the_page_s_own_stays(self, browser: Browser) -> None:
        site = Site(browser.window(), before="<script>function otpless() { return 'mine'; }</script>")
        assert site.tab().evaluate("otpless()") == "mine"

    def test_a_header_that_cors_hides_is_said(self, site: Site) -> None:
        page = site.tab()
        site.answers("/auth/login?channel=header")
        assert "expose_headers" in page.evaluate(f"{SIGN_IN}.catch(({{ message }}) => message)")

    def test_a_listener_can_go_and_an_event_that_there_is_not_is_said(self, site: Site) -> None:
        page = site.tab()
        page.evaluate("otplessSession.on('signed-in', () => events.push(['mine', null]))()")
        assert page.evaluate("(() => { try { otplessSession.on('x', 1); } catch ({ name }) { return name; } })()")
        site.answers("/auth/login?channel=header", swap=OLD)
        page.evaluate(SIGN_IN)
        assert events(page) == [["signed-in", None]]


@pytest.fixture
def api() -> Iterator[tuple[str, str, Emulator]]:
    """The page's origin, the API's, and its OTPLESS."""
    emulator, shop = Emulator(), FastAPI()
    addresses: list[str] = []

    @shop.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.format(script=f"{addresses[0]}/auth/client.js", before="", attributes="")

    with serving(shop) as origin:
        settings = make_settings(trusted_origins=[origin], validation_ttl=0)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
        app = FastAPI()
        app.add_middleware(
            OtplessSessionMiddleware, sessions=OtplessSessions(settings, client=OtplessClient(settings, http=http))
        )
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin],
            allow_methods=["*"],
            allow_headers=["Content-Type", HEADER],
            expose_headers=[HEADER],
        )
        app.include_router(create_session_router(), prefix="/auth")

        @app.get("/orders")
        async def orders(session: CurrentSession) -> str:
            return session.user_id

        @app.websocket("/updates")
        async def updates(websocket: WebSocket, session: CurrentSession) -> None:
            await websocket.accept("chat")
            await websocket.close(reason=session.user_id)

        with serving(app, websockets=True) as address:
            addresses.append(address)
            yield origin, address, emulator


def test_a_page_of_another_origin_signs_in_swaps_and_signs_out(
    api: tuple[str, str, Emulator], browser: Browser
) -> None:
    origin, address, emulator = api
    window = browser.window()
    page = window.tab(origin)
    user = emulator.sign_in(name="Asha")
    assert page.evaluate("user => otplessSession.signIn(user)", user)["name"] == "Asha"
    before = stored(page)
    emulator.expire(user["sessionInfo"]["sessionId"])
    assert page.evaluate("otplessSession.fetch('/orders').then((answer) => answer.json())") == user["userId"]
    assert stored(page) not in {None, before}
    followed = "otplessSession.fetch('/orders/', { redirect: 'follow' }).then((answer) => answer.json())"
    assert page.evaluate(followed) == user["userId"]
    window.refusals = {"401"}
    assert page.evaluate("otplessSession.fetch('/orders', { mode: 'no-cors' }).then(({ type }) => type)") == "opaque"
    page.evaluate("otplessSession.signOut()")
    assert fetched(page, f"{address}/orders") == 401
    assert not is_signed_in(page)
    assert emulator.session(user["sessionInfo"]["sessionId"]).revoked


def test_a_websocket_whose_handshake_is_refused_for_its_session_signs_out(
    api: tuple[str, str, Emulator], browser: Browser
) -> None:
    origin, _, emulator = api
    window = browser.window()
    page = window.tab(origin)
    user = emulator.sign_in()
    page.evaluate("user => otplessSession.signIn(user)", user)
    assert page.evaluate(CLOSED, "/updates") == user["userId"]
    emulator.revoke(user["sessionInfo"]["sessionId"])
    window.refusals = {"401"}
    assert page.evaluate(CLOSED, "/updates") == ""  # a browser keeps the answer to itself
    page.wait_for_function("!otplessSession.signedIn")
    assert [name for name, _ in events(page)] == ["signed-in", "signed-out"]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_example_in_the_documentation_works(example: Block, browser: Browser) -> None:
    emulator = Emulator()
    with serve(emulator) as otpless:
        page = example.text.replace("https://otpless.com", otpless).replace("YOUR_APP_ID", emulator.settings.app_id)
        settings = make_settings(base_url=otpless, jwks_url=f"{otpless}/.well-known/jwks", validation_ttl=0)
        app = FastAPI()
        app.add_middleware(OtplessSessionMiddleware, settings=settings)
        app.include_router(create_session_router(), prefix="/auth")
        app.get("/", response_class=HTMLResponse)(lambda: f'<link rel="icon" href="data:,">{page}')

        @app.get("/orders")
        async def orders(session: CurrentSession) -> str:
            return f"{session.user_id} has none"

        with serving(app) as address:
            tab = browser.window().tab(address)
            tab.get_by_label("Phone number or e-mail").fill("9999999999")
            tab.get_by_role("button", name="Continue").click()
            code = tab.get_by_label("6-digit code")
            code.wait_for()
            code.fill(emulator.inbox[0].otp)
            tab.get_by_role("button", name="Verify").click()
            tab.get_by_text("has none").wait_for()
            emulator.expire(emulator.sessions()[0].session_id)
            tab.reload()
            tab.get_by_text(f"{emulator.sessions()[0].user_id} has none").wait_for()
            tab.get_by_role("button", name="Sign out").click()
            tab.get_by_label("Phone number or e-mail").wait_for()
            wait_until(lambda: emulator.sessions()[0].revoked, "OTPLESS to be told")


def test_there_is_an_example() -> None:
    assert EXAMPLES
