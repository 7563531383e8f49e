"""The example shop's pages as people see them: on a phone and on a desk, light and dark; pictures of all are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from browser import DESKTOP, PHONE, PICTURES, Browser, Scheme, Shop, Window, signed_in

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, pytest.mark.varied]
SIZES = {"desk": DESKTOP, "phone": PHONE}
AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
"""axe-core's, contrast among them."""


def visits(shop: Shop, window: Window) -> Iterator[tuple[str, Page]]:
    """Go through the shop as somebody new would; yield each page with a name."""
    page = window.tab(shop.url)
    yield "front", page
    page.goto(f"{shop.url}/sign-in?next=/account&why=session_expired")
    page.get_by_label("Phone number or e-mail").wait_for()
    yield "sign-in", page
    page.get_by_role("link", name="Use the shop's own form").click()
    yield "sign-in-headless", page
    number = shop.number()
    shop.ask_headless(page, number)
    yield "sign-in-code", page
    page.get_by_label("6-digit code").fill(shop.code(number))
    page.get_by_role("button", name="Sign in").click()
    signed_in(page).wait_for()
    yield "account", page
    for tea in ("Masala Chai", "Rose & Hibiscus"):
        page.goto(shop.url)
        page.get_by_role("button", name=f"Order {tea}").click()
    shop.expire(window.cookie())
    page.goto(f"{shop.url}/orders")
    yield "orders", page
    page.goto(f"{shop.url}/live")
    page.get_by_text("Live. New orders").wait_for()
    yield "live", page
    with shop.outage():
        page.goto(f"{shop.url}/account")
        yield "outage", page
    page.close()  # it would try again by itself
    page = window.tab(f"{shop.url}/header")
    yield "one-way", page
    page.get_by_role("button", name="Sign out and go on here").click()
    shop.sign_in_prebuilt(page, number)
    page.get_by_role("button", name="Order Masala Chai").click()
    page.get_by_text("Ordered: Masala Chai").wait_for()
    yield "header", page
    signed_in(page).click()
    page.get_by_label("Phone number or e-mail").wait_for()
    page = window.tab(f"{shop.url}/frontend")
    shop.sign_in_headless(page, number)
    page.get_by_text("Live. New orders").wait_for()
    yield "frontend", page


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    found: Scheme = request.param
    return found


@pytest.mark.parametrize("size", SIZES)
def test_pages_fit_their_screen_are_accessible_and_have_their_picture_taken(
    shop: Shop, browser: Browser, scheme: Scheme, size: str
) -> None:
    window = browser.window(SIZES[size], scheme)
    window.refusals = {"503"}
    PICTURES.mkdir(exist_ok=True)
    problems: dict[str, list[str]] = {}
    for name, page in visits(shop, window):
        page.wait_for_load_state("load")
        page.screenshot(path=PICTURES / f"{name}-{size}-{scheme}.png", full_page=True)
        found = [*too_wide(page), *inaccessible(page)]
        if found:
            problems[name] = found
    assert problems == {}, json.dumps(problems, indent=2)


def too_wide(page: Page) -> list[str]:
    width: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return [f"{width} px wider than the screen"] if width > 0 else []


def inaccessible(page: Page) -> list[str]:
    page.evaluate(AXE)
    return [
        f"{violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in page.evaluate("rules => axe.run(rules).then(({ violations }) => violations)", RULES)
        for node in violation["nodes"]
    ]
