"""The example shop in a real browser: the whole story, in each of its three frontends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from browser import MILLISECONDS, Browser, Held, Shop, Window, signed_in
from playwright.sync_api import expect
from processes import PATIENCE, wait_until

pytestmark = pytest.mark.varied

if TYPE_CHECKING:
    from playwright.sync_api import Page

SWAPPED = "Your session token was swapped just now"
LOCAL_TOKEN = "Object.entries(localStorage).find(([key]) => key.startsWith('otpless-session-token'))?.[1]"


def expect_path(page: Page, path: str) -> None:
    """Look again and again: `wait_for_url` fails where one navigation takes over from another."""
    expect(page).to_have_url(re.compile(rf"https?://[^/]+{re.escape(path)}"), timeout=PATIENCE * MILLISECONDS)


def order(page: Page, tea: str = "Masala Chai") -> None:
    page.get_by_role("button", name=f"Order {tea}").click()


class TestCookie:
    def test_signing_in_with_the_prebuilt_form_ordering_and_signing_out(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        page = window.tab(f"{shop.url}/orders")
        expect_path(page, "/sign-in?next=/orders")
        shop.sign_in_prebuilt(page, number := shop.number())
        expect_path(page, "/orders")
        assert f"Signed in as +91{number}" in page.inner_text(".bar")
        assert "ordered anything yet" in page.inner_text("main")
        page.get_by_role("link", name="Order more tea").click()
        order(page)
        expect_path(page, "/orders")
        assert page.locator("tbody tr").count() == 1
        assert "Masala Chai" in page.inner_text("tbody")
        signed_in(page).click()
        page.get_by_role("link", name="Sign in").wait_for()
        page.goto(f"{shop.url}/orders")
        expect_path(page, "/sign-in?next=/orders")

    def test_the_shops_own_form_sends_nothing_before_its_script_is_there(self, shop: Shop, browser: Browser) -> None:
        page = browser.window().tab(f"{shop.url}/sign-in?next=/account")
        held = Held()
        page.route("**/static/headless.js*", held.add)
        with page.expect_request("**/static/headless.js*"):
            page.get_by_role("link", name="Use the shop's own form").click()
        page.get_by_label("Phone number").fill(number := shop.number())
        page.get_by_label("Phone number").press("Enter")
        expect(page.get_by_role("button", name="Send me a code")).to_be_disabled()
        expect(page.get_by_label("Phone number")).to_have_value(number)
        held.next(page).continue_()
        page.get_by_role("button", name="Send me a code").click()
        page.get_by_label("6-digit code").wait_for()

    def test_a_wrong_code_is_said_and_the_right_one_still_signs_in_headless(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        window.refusals = {"400"}
        page = window.tab(f"{shop.url}/sign-in?next=/account")
        page.get_by_role("link", name="Use the shop's own form").click()
        shop.ask_headless(page, number := shop.number())
        code = shop.code(number)
        page.get_by_label("6-digit code").fill(f"{(int(code) + 1) % 10**6:06d}")
        page.get_by_role("button", name="Sign in").click()
        alert = page.get_by_role("alert").filter(has_text="Wrong code. Try again.")
        alert.wait_for()
        assert page.evaluate("document.activeElement.id") == "code"
        page.get_by_label("6-digit code").fill(code)
        page.get_by_role("button", name="Sign in").click()
        expect_path(page, "/account")
        assert f"+91{number}" in page.inner_text("main")

    def test_a_wrong_code_in_the_prebuilt_form_is_said_too(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        window.refusals = {"400"}
        page = window.tab(f"{shop.url}/sign-in")
        shop.ask_prebuilt(page, number := shop.number())
        page.get_by_label("6-digit code").fill(f"{(int(shop.code(number)) + 1) % 10**6:06d}")
        page.get_by_role("button", name="Verify").click()
        page.get_by_role("alert").filter(has_text="Wrong code. Try again.").wait_for()
        assert signed_in(page).count() == 0

    def test_a_code_that_is_right_is_not_called_a_sign_in_before_the_shop_has_answered(
        self, shop: Shop, browser: Browser
    ) -> None:
        page = browser.window().tab(f"{shop.url}/sign-in")
        held = Held()
        page.route("**/auth/login", held.add)
        shop.ask_prebuilt(page, number := shop.number())
        page.get_by_label("6-digit code").fill(shop.code(number))
        page.get_by_role("button", name="Verify").click()
        page.get_by_text("Code accepted. The page signs you in now.").wait_for()
        held.next(page).continue_()
        signed_in(page).wait_for()

    @pytest.mark.parametrize("form", ["prebuilt", "headless"])
    def test_a_sign_in_that_fails_says_so_and_offers_the_form_again(
        self, shop: Shop, browser: Browser, form: str
    ) -> None:
        window = browser.window()
        window.refusals = {"503"}
        page = window.tab(f"{shop.url}/sign-in?form={form}&next=/account")
        ask, sign_in, verify = {
            "prebuilt": (shop.ask_prebuilt, shop.sign_in_prebuilt, "Verify"),
            "headless": (shop.ask_headless, shop.sign_in_headless, "Sign in"),
        }[form]
        with shop.outage("validate-session"), shop.outage("validate/token"):
            ask(page, number := shop.number())
            page.get_by_label("6-digit code").fill(shop.code(number))
            page.get_by_role("button", name=verify).click()
            page.get_by_label("Phone number").wait_for()
            assert page.get_by_role("alert").filter(has_text=re.compile(".")).count() == 1
            assert page.get_by_label("6-digit code").is_hidden()
        sign_in(page, number)
        expect_path(page, "/account")

    def test_an_order_before_signing_in_is_asked_for_again_once(self, shop: Shop, browser: Browser) -> None:
        page = browser.window().tab(shop.url)
        order(page)
        expect_path(page, "/sign-in")
        shop.sign_in_prebuilt(page, shop.number())
        page.locator("#flashes").get_by_text("You are signed in. Order again.").wait_for()
        page.reload()
        signed_in(page).wait_for()
        assert page.inner_text("#flashes") == ""

    def test_an_expired_token_is_swapped_and_nobody_notices(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        page = window.tab(f"{shop.url}/sign-in")
        shop.sign_in_prebuilt(page, shop.number())
        before = window.cookie()
        page.get_by_role("button", name="Expire my token").click()
        page.get_by_text("Your token is dead at OTPLESS").wait_for()
        order(page)
        expect_path(page, "/orders")
        assert "Masala Chai" in page.inner_text("tbody")
        assert SWAPPED in page.inner_text("#flashes")
        assert window.cookie() != before
        page.reload()
        assert SWAPPED not in page.inner_text("#flashes")

    def test_two_tabs_at_once_with_an_expired_token_both_go_on_and_refresh_once(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        one = window.tab(f"{shop.url}/sign-in")
        shop.sign_in_prebuilt(one, shop.number())
        two = window.tab(f"{shop.url}/account")
        refreshes = shop.calls("new-session-token")
        shop.expire(window.cookie())
        for page in (one, two):  # neither waits for the other
            page.evaluate("setTimeout(() => location.assign('/orders'))")
        for page in (one, two):
            expect_path(page, "/orders")
            signed_in(page).wait_for()
        assert shop.calls("new-session-token") == refreshes + 1

    def test_signing_out_in_one_tab_sends_the_other_to_sign_in(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        one = window.tab(f"{shop.url}/sign-in")
        shop.sign_in_prebuilt(one, shop.number())
        two = window.tab(f"{shop.url}/orders")
        signed_in(one).click()
        expect_path(two, "/sign-in")
        assert "You are signed out." in two.inner_text("main")
        two.get_by_label("Phone number or e-mail").wait_for()

    def test_another_device_is_listed_and_can_be_ended(self, shop: Shop, browser: Browser) -> None:
        number = shop.number()
        lost, kept = browser.window(), browser.window()
        there = lost.tab(f"{shop.url}/sign-in?next=/live")
        shop.sign_in_prebuilt(there, number)
        there.get_by_text("Live. New orders appear by themselves.").wait_for()
        here = kept.tab(f"{shop.url}/sign-in?next=/account")
        shop.sign_in_prebuilt(here, number)
        devices = here.get_by_role("region", name="Devices").get_by_role("listitem")
        assert devices.count() == 2
        own = here.get_by_role("region", name="Devices").get_by_role("button", name="Sign out here")
        assert own.count() == 1  # told from the other device's
        devices.get_by_role("button", name="Sign out").click()
        lost.refusals = {"401"}
        expect_path(there, "/sign-in?next=%2Flive&why=session_revoked")  # its websocket was closed
        assert "You were signed out." in there.inner_text("main")
        here.wait_for_function("document.querySelectorAll('.rows > li').length === 1")
        signed_in(here).wait_for()

    def test_a_websocket_survives_a_swap_and_hears_of_an_order_in_another_tab(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        page = window.tab(shop.url)
        sockets: list[str] = []
        page.on("websocket", lambda socket: sockets.append(socket.url))
        page.get_by_role("link", name="Sign in").click()
        shop.sign_in_prebuilt(page, shop.number())
        page.get_by_role("link", name="Live").click()
        page.get_by_text("No orders yet.").wait_for()
        shop.expire(before := window.cookie())
        other = window.tab(shop.url)
        assert SWAPPED in other.inner_text("#flashes")
        order(other, "Rose & Hibiscus")
        page.get_by_text("Rose & Hibiscus").wait_for()
        assert window.cookie() != before
        order(window.tab(shop.url), "Assam Breakfast")
        page.get_by_text("Assam Breakfast").wait_for()
        assert len(sockets) == 1

    def test_when_otpless_is_down_the_page_says_so_and_the_session_is_there_afterwards(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        window.refusals = {"503"}
        page = window.tab(f"{shop.url}/sign-in")
        user = shop.control("sign_in", mobile=f"91{shop.number()}")
        assert window.context.request.post(f"{shop.url}/auth/login", data=user).ok  # no page has asked for details yet
        cookie = window.cookie()
        with shop.outage():
            page.goto(f"{shop.url}/account")
            assert "You haven't been signed out" in page.inner_text("main")
            page.goto(f"{shop.url}/orders")
            assert "OTPLESS can't be reached at the moment. You stay signed in." in page.inner_text("#flashes")
            page.goto(f"{shop.url}/account")
        page.get_by_role("heading", name="Your account").wait_for()  # it has tried again by itself
        assert window.cookie() == cookie

    def test_the_keyboard_alone_signs_in(self, shop: Shop, browser: Browser) -> None:
        page = browser.window().tab(f"{shop.url}/sign-in?form=headless&next=/orders")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        reach(page, "phone")
        page.keyboard.type(number := shop.number())
        page.keyboard.press("Enter")
        page.get_by_label("6-digit code").wait_for()
        page.keyboard.type(shop.code(number))  # the field has the focus
        page.keyboard.press("Enter")
        expect_path(page, "/orders")


def reach(page: Page, name: str) -> None:
    """Press Tab until an element has the focus, which must be seen on each on the way."""
    for _ in range(20):
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if page.evaluate("document.activeElement.id") == name:
            return
    pytest.fail(f"the keyboard does not reach {name}")


class TestHeaderChannel:
    def test_the_whole_story(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        page = window.tab(f"{shop.url}/header")
        shop.sign_in_prebuilt(page, number := shop.number())
        page.get_by_text(f"Signed in as +91{number}").wait_for()
        assert window.context.cookies() == []
        page.get_by_text("No orders yet.").wait_for()  # over the websocket
        before = page.evaluate(LOCAL_TOKEN)
        page.get_by_role("button", name="Expire my token").click()
        page.get_by_text("Your token is dead at OTPLESS. Now order something.").wait_for()
        order(page)
        page.locator("#flashes").get_by_text("Ordered: Masala Chai.").wait_for()
        assert SWAPPED in page.inner_text("#flashes")
        assert "Your token is dead" not in page.inner_text("#flashes")
        order(page, "Rose & Hibiscus")
        page.locator("#flashes").get_by_text("Ordered: Rose & Hibiscus.").wait_for()
        assert page.locator("#flashes p").count() == 1
        page.locator("#order-list").get_by_text("Masala Chai").wait_for()
        wait_until(lambda: page.evaluate(LOCAL_TOKEN) != before, "for the swapped token")
        page.reload()
        page.get_by_text(f"Signed in as +91{number}").wait_for()
        signed_in(page).click()
        expect_path(page, "/header?why=signed_out")
        assert page.evaluate(LOCAL_TOKEN) is None
        page.get_by_label("Phone number or e-mail").wait_for()

    def test_a_sign_in_that_fails_says_so_and_offers_the_form_again(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        window.refusals = {"503"}
        page = window.tab(f"{shop.url}/header")
        with shop.outage("validate-session"), shop.outage("validate/token"):
            shop.ask_prebuilt(page, number := shop.number())
            page.get_by_label("6-digit code").fill(shop.code(number))
            page.get_by_role("button", name="Verify").click()
            page.locator("#flashes .bad").wait_for()
            page.get_by_label("Phone number or e-mail").wait_for()
        shop.sign_in_prebuilt(page, number)
        page.get_by_text(f"Signed in as +91{number}").wait_for()
        assert page.inner_text("#flashes") == ""

    def test_tabs_share_one_session_and_end_it_together(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        waiting = window.tab(f"{shop.url}/header")
        page = window.tab(f"{shop.url}/header")
        shop.sign_in_prebuilt(page, shop.number())
        signed_in(waiting).wait_for()  # in the other tab, too
        order(page, "Rose & Hibiscus")
        waiting.get_by_text("Rose & Hibiscus").last.wait_for()
        shop.expire(page.evaluate(LOCAL_TOKEN))
        for each in (page, waiting):
            each.evaluate("void otplessSession.fetch('/auth/session')")
        for each in (page, waiting):
            assert each.evaluate("otplessSession.fetch('/auth/session').then(({ status }) => status)") == 200
        signed_in(page).click()
        expect_path(waiting, "/header?why=")  # the other tab's word or the websocket's end: whichever comes first

    def test_ending_the_session_elsewhere_closes_the_websocket_and_signs_out(
        self, shop: Shop, browser: Browser
    ) -> None:
        number = shop.number()
        lost, kept = browser.window(), browser.window()
        there, here = lost.tab(f"{shop.url}/header"), kept.tab(f"{shop.url}/header")
        shop.sign_in_prebuilt(there, number)
        there.get_by_text("No orders yet.").wait_for()
        shop.sign_in_prebuilt(here, number)
        lost.refusals = {"401"}
        here.get_by_role("region", name="Devices").get_by_role("button", name="Sign out Chrome").click()
        expect_path(there, "/header?why=session_revoked")
        here.get_by_text("That device is signed out.").wait_for()
        assert here.get_by_role("region", name="Devices").get_by_role("listitem").count() == 1

    def test_an_outage_signs_nobody_out(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        window.refusals = {"503"}
        page = window.tab(f"{shop.url}/header")
        shop.sign_in_prebuilt(page, shop.number())
        page.get_by_text("No orders yet.").wait_for()
        token = page.evaluate(LOCAL_TOKEN)
        with shop.outage():
            page.reload()
            page.get_by_text("OTPLESS can't be reached at the moment. You stay signed in.").wait_for()
            page.get_by_role("region", name="Devices").wait_for()
            assert page.evaluate(LOCAL_TOKEN) == token
        page.reload()
        page.get_by_role("region", name="Devices").wait_for()

    def test_a_browser_that_is_signed_in_with_the_cookie_is_asked_which_way(self, shop: Shop, browser: Browser) -> None:
        page = browser.window().tab(f"{shop.url}/sign-in")
        shop.sign_in_prebuilt(page, shop.number())
        page.goto(f"{shop.url}/header")
        page.get_by_role("button", name="Sign out and go on here").click()
        page.get_by_label("Phone number or e-mail").wait_for()


class TestFrontendDriven:
    def test_the_sdk_signs_in_renews_and_signs_out_in_all_tabs(self, shop: Shop, browser: Browser) -> None:
        window = browser.window()
        page = window.tab(f"{shop.url}/frontend")
        shop.sign_in_headless(page, number := shop.number())
        page.get_by_text(f"Signed in as +91{number}").wait_for()
        page.get_by_text("No orders yet.").wait_for()
        assert window.context.cookies() == []
        other = window.tab(f"{shop.url}/frontend")
        signed_in(other).wait_for()
        window.refusals = {"401"}
        shop.expire(page.evaluate("token"))
        order(page)
        page.locator("#order-list").get_by_text("Masala Chai").wait_for()
        signed_in(page).click()
        expect_path(page, "/frontend?why=signed_out")
        expect_path(other, "/frontend?why=")  # the other tab's word or the websocket's end: whichever comes first
        other.get_by_label("Phone number").wait_for()

    def test_a_renewed_token_is_told_beside_the_order_that_it_was_renewed_for(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        window.refusals = {"401"}
        # Without its websocket, at whose end the SDK would renew the token, too.
        window.context.route_web_socket("**/live/orders", lambda _: None)
        page = window.tab(f"{shop.url}/frontend")
        shop.sign_in_headless(page, shop.number())
        page.get_by_role("button", name="Expire my token").click()
        page.get_by_text("Your token is dead at OTPLESS. Now order something.").wait_for()
        order(page)
        page.locator("#flashes").get_by_text("Ordered: Masala Chai.").wait_for()
        assert "The SDK renewed your token just now" in page.inner_text("#flashes")

    def test_a_sign_in_whose_session_the_sdk_cannot_find_says_so_and_offers_the_form_again(
        self, shop: Shop, browser: Browser
    ) -> None:
        page = browser.window().tab(f"{shop.url}/frontend")
        page.route("**/_emulator/sdk/session", lambda route: route.fulfill(json={"success": False}))
        shop.ask_headless(page, number := shop.number())
        page.get_by_label("6-digit code").fill(shop.code(number))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("You could not be signed in. Try again.").wait_for()
        assert page.get_by_label("6-digit code").is_hidden()
        page.unroute("**/_emulator/sdk/session")
        shop.sign_in_headless(page, number)

    @staticmethod
    def _live_page(shop: Shop, window: Window) -> Page:
        page = window.tab(f"{shop.url}/frontend")
        shop.sign_in_headless(page, shop.number())
        page.get_by_text("Live. New orders appear by themselves.").wait_for()
        return page

    def test_who_signs_out_is_told_so_though_the_websocket_ends_before_the_next_page_comes(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        page = self._live_page(shop, window)
        # The next page is not there. Without the 0 the function itself would be called: what is evaluated to one is.
        page.evaluate("app.way.signOut = () => send('/auth/logout', { method: 'POST' }); 0")
        window.refusals = {"401"}
        signed_in(page).click()
        page.get_by_text("Your session is over.").wait_for()
        assert page.url == f"{shop.url}/frontend"

    def test_a_session_that_ended_here_is_over_though_otpless_has_yet_to_hear_of_it(
        self, shop: Shop, browser: Browser
    ) -> None:
        window = browser.window()
        page = self._live_page(shop, window)
        window.refusals = {"401"}
        with shop.outage("revoke-session"):
            page.evaluate("send('/auth/logout', { method: 'POST' }).then(() => 0)")
            expect_path(page, "/frontend?why=session_revoked")

    def test_a_number_that_a_message_cannot_reach_and_one_whose_code_is_read_by_itself(
        self, shop: Shop, browser: Browser
    ) -> None:
        page = browser.window().tab(f"{shop.url}/frontend")
        shop.ask_headless(page, "9000000000")
        page.get_by_text("we sent it by SMS").wait_for()
        page.get_by_role("button", name="Change number").click()
        shop.ask_headless(page, "9000001111")
        assert page.get_by_label("6-digit code").input_value() == shop.code("9000001111")
