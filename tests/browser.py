"""A real browser for tests: Chromium, driven by Playwright, before the demo as its own process.

    def test_shows(shop: Shop, browser: Browser) -> None:
        window = browser.window()            # cookies and storage of its own, as another device would have
        page = window.tab(shop.url)
        shop.sign_in_prebuilt(page, number := shop.number())

`TEST_CHROMIUM` says where the browser is, if it is not on the PATH. Without one the tests are skipped, or fail
where REQUIRE_SERVERS=1. A window complains of errors on its pages' consoles. This is a pytest plugin, which says where
the pictures are.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import pytest
from backends import NO_CHROMIUM, find_chromium, required
from demos import run_demo
from processes import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Route

PICTURES = Path(__file__).parent / "screenshots"
ARGUMENTS = (
    "--no-sandbox",  # it refuses to run as root otherwise, which is who tests are in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MILLISECONDS = 1000
DESKTOP = {"width": 1200, "height": 800}
PHONE = {"width": 360, "height": 740}
REFUSED = re.compile(r"Failed to load resource: (?:the server responded with a status of |net::)(\w+)")
REFUSED_HANDSHAKE = re.compile(r"WebSocket connection to .* failed: HTTP Authentication failed")
Scheme = Literal["light", "dark"]


@dataclass(frozen=True)
class Shop:
    """The demo: the shop and its emulator."""

    url: str
    emulator: str
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(7_000_000_000))

    def number(self) -> str:
        """Return a phone number that nobody else in the tests has, without its country code (91)."""
        return str(next(self._numbers))

    def code(self, number: str) -> str:
        """Return the newest one-time password that the number got."""
        return next(str(one["otp"]) for one in self.state()["inbox"] if one["to"] == f"91{number}")

    def expire(self, token: str) -> None:
        """Let the session tokens expire that the session of this one has so far."""
        self.control("expire", sessionId=claims(token)["sessionId"])

    def control(self, command: str, **body: Any) -> Any:
        """Call the emulator's control API."""
        return httpx.post(f"{self.emulator}/_emulator/{command}", json=body).raise_for_status().json()

    def state(self) -> Any:
        """Return all that the emulator has."""
        return httpx.get(f"{self.emulator}/_emulator/state").raise_for_status().json()

    def calls(self, name: str) -> int:
        """Return how many calls to OTPLESS had a path with this end."""
        return sum(count for path, count in self.state()["calls"].items() if path.endswith(name))

    @contextmanager
    def outage(self, path: str | None = None) -> Iterator[None]:
        """OTPLESS answers nothing but 503, to calls whose path has this end or to all."""
        self.control("faults", kind="status", status=503, **({"path": path} if path else {}))
        try:
            yield
        finally:
            httpx.delete(f"{self.emulator}/_emulator/faults").raise_for_status()

    # What a person does

    def ask_prebuilt(self, page: Page, number: str) -> None:
        """Ask for a code with OTPLESS's form."""
        page.get_by_label("Phone number or e-mail").fill(number)
        page.get_by_role("button", name="Continue").click()
        page.get_by_label("6-digit code").wait_for()

    def sign_in_prebuilt(self, page: Page, number: str) -> None:
        """Sign in with OTPLESS's form, which the page shows."""
        self.ask_prebuilt(page, number)
        page.get_by_label("6-digit code").fill(self.code(number))
        page.get_by_role("button", name="Verify").click()
        signed_in(page).wait_for()

    def ask_headless(self, page: Page, number: str) -> None:
        """Ask for a code with the shop's own form."""
        page.get_by_label("Phone number").fill(number)
        page.get_by_role("button", name="Send me a code").click()
        page.get_by_label("6-digit code").wait_for()

    def sign_in_headless(self, page: Page, number: str) -> None:
        """Sign in with the shop's own form, which the page shows."""
        self.ask_headless(page, number)
        page.get_by_label("6-digit code").fill(self.code(number))
        page.get_by_role("button", name="Sign in").click()
        signed_in(page).wait_for()


def claims(token: str) -> dict[str, Any]:
    """Return what a token says."""
    payload = token.split(".")[1]
    found: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def signed_in(page: Page) -> Locator:
    """Return what a page shows to whoever is signed in."""
    return page.locator(".bar").get_by_role("button", name="Sign out")


class Held:
    """Requests of pages that wait until the test answers them: `page.route("**/slow", held.add)`."""

    def __init__(self) -> None:
        self._routes: list[Route] = []

    def add(self, route: Route) -> None:
        """Let a request wait."""
        self._routes.append(route)

    def wait(self, page: Page, count: int = 1) -> None:
        """Wait until so many are here. A page shows what it did before Playwright tells of its request."""
        deadline = time.monotonic() + PATIENCE
        while len(self._routes) < count:
            assert time.monotonic() < deadline, "the request does not come"
            page.wait_for_timeout(10)  # only this lets Playwright tell of it

    def next(self, page: Page) -> Route:
        """Return the one that has waited longest, as soon as there is one, to be answered."""
        self.wait(page)
        return self._routes.pop(0)

    def __len__(self) -> int:
        return len(self._routes)


class Window:
    """A browser's window with tabs: they share cookies and storage with each other and with no other window."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.refusals: set[str] = set()
        """The statuses and network errors that the test expects: Chromium writes them to the console as errors."""
        self._complaints: list[str] = []
        context.set_default_timeout(PATIENCE * MILLISECONDS)
        context.on("console", self._heard)
        context.on("weberror", lambda error: self._complaints.append(str(error.error)))

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self._complaints.append(message.text)

    def tab(self, url: str) -> Page:
        """Open a tab."""
        page = self.context.new_page()
        page.goto(url)
        return page

    def cookie(self) -> str:
        """Return the session cookie's value."""
        (found,) = [one for one in self.context.cookies() if one.get("name") == "otpless_session"]
        return str(found.get("value"))

    def complaints(self) -> list[str]:
        """Return the errors on consoles, but for the refusals that the test expects."""
        return [text for text in self._complaints if not self._is_expected(text)]

    def _is_expected(self, text: str) -> bool:
        if REFUSED_HANDSHAKE.match(text):
            return "401" in self.refusals
        found = REFUSED.match(text)
        return found is not None and found.group(1) in self.refusals


class Browser:
    """Chromium."""

    def __init__(self, chromium: Chromium) -> None:
        self._chromium = chromium
        self._windows: list[Window] = []

    def window(self, viewport: Mapping[str, int] = DESKTOP, scheme: Scheme = "light", **options: Any) -> Window:
        """Open a window that has no cookies yet."""
        context = self._chromium.new_context(
            viewport={"width": viewport["width"], "height": viewport["height"]},
            color_scheme=scheme,
            locale="en-GB",
            timezone_id="Asia/Kolkata",
            **options,
        )
        window = Window(context)
        self._windows.append(window)
        return window

    def close(self) -> Sequence[str]:
        """Close all windows; return what was to complain of."""
        found = [text for window in self._windows for text in window.complaints()]
        for window in self._windows:
            window.context.close()
        self._windows = []
        return found


# Fixtures. Playwright's event loop runs in the tests' thread, where asynchronous tests want theirs: it is a module's.


@pytest.fixture(scope="module")
def _chromium() -> Iterator[Chromium]:
    path = required(find_chromium(), NO_CHROMIUM)
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not for all the tests without a browser

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS])
        yield chromium
        chromium.close()


@pytest.fixture
def browser(_chromium: Chromium) -> Iterator[Browser]:
    """Chromium without a window. After the test no page may have complained."""
    made = Browser(_chromium)
    yield made
    assert made.close() == []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The demo, as its own process on ports of its own; websockets are looked at every half second."""
    required(find_chromium(), NO_CHROMIUM)
    with run_demo(
        tmp_path_factory.mktemp("demo"), PORT="0", EMULATOR_PORT="0", OTPLESS_WEBSOCKET_RECHECK="0.5"
    ) as demo:
        url, emulator = demo.wait_until_ready()
        yield Shop(url, emulator)
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait_until_over() == 0, demo.printed


_started = time.time()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the pictures are, if there are new ones."""
    new = [path for path in PICTURES.glob("*.png") if path.stat().st_mtime >= _started]
    if new:
        terminalreporter.write_line(f"{len(new)} pictures of pages, to be looked at: {PICTURES}")
