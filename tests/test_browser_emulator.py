"""The emulator's page in a real browser: what it shows as it happens, its buttons and their curl lines, its looks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

import httpx
import pytest
from browser import DESKTOP, PHONE, PICTURES, Browser, Scheme

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.varied]
CREDENTIALS = {"clientId": "demo-client", "clientSecret": "demo-secret"}
SIZES = {"desk": DESKTOP, "phone": PHONE}
AXE = (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
REFRESH = "/v1/sessions/get-new-session-token"


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def url(emulator: Emulator) -> Iterator[str]:
    with serve(emulator) as base_url:
        yield base_url


def button(place: Page | Locator, name: str) -> Locator:
    return place.get_by_role("button", name=name, exact=True)


def sent(line: str) -> httpx.Response:
    """Do what a curl line says."""
    match shlex.split(line):
        case ["curl", "-X", method, url]:
            return httpx.request(method, url)
        case ["curl", url, "-d", body]:
            return httpx.post(url, content=body)
        case _:
            raise AssertionError(line)


def test_what_happens_shows_without_a_reload(emulator: Emulator, url: str, browser: Browser) -> None:
    page = browser.window().tab(url)
    page.get_by_text("Nobody is signed in.").wait_for()
    user = emulator.sign_in(name="Asha")
    session_id = user["sessionInfo"]["sessionId"]
    card = page.locator("#sessions li")
    card.get_by_text("live", exact=True).wait_for()
    httpx.post(url + REFRESH, json={"refreshToken": user["sessionInfo"]["refreshToken"]}, headers=CREDENTIALS)
    card.get_by_text("generation 2").wait_for()
    page.locator("#calls").get_by_text("new session token").wait_for()
    emulator.revoke(session_id)
    page.get_by_text("Nobody is signed in.").wait_for()
    page.get_by_text("1 ended").click()
    page.locator("#ended li").get_by_text("revoked", exact=True).wait_for()
    httpx.post(url + "/_emulator/sdk/initiate", json={"appId": "DEMOAPP", "email": "asha@example.com"})
    page.locator("#messages").get_by_text(emulator.inbox[0].otp, exact=True).wait_for()


def test_the_keyboard_alone_signs_somebody_in_and_lets_the_token_expire(
    emulator: Emulator, url: str, browser: Browser
) -> None:
    page = browser.window().tab(url)
    page.get_by_text("Sign in a made-up user").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Name", exact=True).fill("Asha O'Brien")
    page.keyboard.press("Enter")
    card = page.locator("#sessions li")
    card.get_by_text("Asha O'Brien").wait_for()
    (session,) = emulator.sessions()
    expire = button(card, f"Expire, session {session.session_id[:8]}… of Asha O'Brien")
    expire.focus()
    page.keyboard.press("Enter")
    card.get_by_text("expired, can be renewed").wait_for()
    page.get_by_text("Expire: done.").wait_for()
    assert emulator.session(session.session_id).session_tokens == 0


def test_a_buttons_curl_line_does_what_the_button_does(url: str, browser: Browser) -> None:
    window = browser.window(permissions=["clipboard-read", "clipboard-write"])
    page = window.tab(url)
    page.get_by_text("Sign in a made-up user").click()
    page.get_by_label("Name", exact=True).fill("""Asha "O'Brien" \\ $HOME""")

    def copied(name: str) -> str:
        button(page, f"Copy the curl line of {name}").click()
        page.get_by_text("The curl line copied.").wait_for()
        return str(page.evaluate("navigator.clipboard.readText()"))

    user = sent(copied("Sign in")).json()
    assert user["identities"][0]["name"] == """Asha "O'Brien" \\ $HOME"""
    page.get_by_label("How many").select_option("the next 2")
    page.get_by_label("Which calls").select_option("revoke-session")
    assert sent(copied("Fail, kind act_then_hang")).status_code == 200
    page.get_by_text("act_then_hang: revoke-session, 2 left").wait_for()
    assert sent(copied("Slow down")).json() == {"success": True}
    page.get_by_text("slower by 2 s: revoke-session").wait_for()
    assert sent(copied("Clear the faults")).json() == {"success": True}
    assert sent(copied("Full speed, revoke-session")).json() == {"success": True}
    page.locator("#now").wait_for(state="hidden")
    assert sent(copied("Rotate key")).json() == {"kid": "pk0184"}
    page.locator("#kid").get_by_text("pk0184").wait_for()


def test_a_change_of_a_session_leaves_the_focus_where_it_was(emulator: Emulator, url: str, browser: Browser) -> None:
    user = emulator.sign_in(name="Asha")
    page = browser.window().tab(url)
    card = page.locator("#sessions li").filter(has_text="Asha")
    revoke = card.get_by_role("button", name="Revoke, session")
    revoke.first.focus()
    httpx.post(url + REFRESH, json={"refreshToken": user["sessionInfo"]["refreshToken"]}, headers=CREDENTIALS)
    emulator.sign_in(name="Ravi")
    card.get_by_text("generation 2").wait_for()
    page.locator("#sessions").get_by_text("Ravi").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Revoke"


def test_sessions_that_have_ended_are_out_of_the_way_and_leave_the_focus_with_their_number(
    emulator: Emulator, url: str, browser: Browser
) -> None:
    for number in range(12):
        session_id = emulator.sign_in(name=f"Person {number}")["sessionInfo"]["sessionId"]
        if number % 2:
            emulator.revoke(session_id)
        else:
            emulator.expire(session_id)
            emulator.kill_refresh(session_id)
    user = emulator.sign_in(name="Asha")
    emulator.expire(user["sessionInfo"]["sessionId"])
    page = browser.window(PHONE).tab(url)
    page.get_by_text("12 ended").wait_for()
    assert page.get_by_text("Person 3").is_hidden()
    card = page.locator("#sessions li")
    card.get_by_text("expired, can be renewed").wait_for()
    button(card, f"Revoke, session {user['sessionInfo']['sessionId'][:8]}… of Asha").press("Enter")
    page.get_by_text("13 ended").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "13 ended"
    page.keyboard.press("Enter")
    page.get_by_text("Person 3").wait_for()


def test_how_an_application_finds_it_shows_until_one_has_and_can_be_looked_up_afterwards(browser: Browser) -> None:
    emulator = Emulator(EmulatorSettings(app_id="<b>", client_id="mine"))
    window = browser.window(permissions=["clipboard-read", "clipboard-write"])
    with serve(emulator) as url:
        page = window.tab(url)
        for text in ("OTPLESS_CLIENT_ID=mine", f"OTPLESS_BASE_URL={url}", 'data-appid="&lt;b&gt;"></script>'):
            page.locator("#connection").get_by_text(text).wait_for()
        button(page, "Copy the list of settings").click()
        page.get_by_text("The list of settings copied.").wait_for()
        told = httpx.get(f"{url}/_emulator/settings").json()
        assert page.evaluate("navigator.clipboard.readText()") == told["settings"]
        assert httpx.get(f"{url}/.well-known/jwks").status_code == 200
        page.get_by_text("OTPLESS_CLIENT_ID=mine").wait_for(state="hidden")
        page.reload()
        page.locator("#calls li").wait_for()
        assert page.get_by_text("OTPLESS_CLIENT_ID=mine").is_hidden()
        page.get_by_text("How an application finds the emulator").click()
        assert httpx.get(f"{url}/.well-known/jwks").status_code == 200
        page.get_by_text("jwks 2").wait_for()
        page.get_by_text("OTPLESS_CLIENT_ID=mine").wait_for()
        page.close()


def test_on_a_phone_the_line_that_explains_the_buttons_is_whole(url: str, browser: Browser) -> None:
    page = browser.window(PHONE).tab(url)
    page.get_by_text("Nobody is signed in.").wait_for()
    hint = page.locator("#command")
    assert hint.evaluate("line => [line.scrollWidth - line.clientWidth, line.scrollHeight - line.clientHeight]") == [
        0,
        0,
    ]


def test_the_page_finds_a_restarted_emulator_again(browser: Browser) -> None:
    chromium = browser.window().context.browser
    assert chromium
    first, second = Emulator(), Emulator()
    first.sign_in(name="Asha")
    second.sign_in(name="Ravi")
    # In a window of its own, for Chromium writes lost connections to the console.
    with chromium.new_context() as context:
        page = context.new_page()
        with serve(first) as url:
            page.goto(url)
            page.locator("#sessions").get_by_text("Asha").wait_for()
        page.get_by_text("The emulator does not answer.").wait_for()
        with serve(second, port=int(url.rpartition(":")[2])):
            page.locator("#sessions").get_by_text("Ravi").wait_for()
            page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_use_it_on_a_phone_and_a_desk_light_and_dark(
    emulator: Emulator, url: str, browser: Browser, scheme: Scheme, size: str
) -> None:
    users = [emulator.sign_in(name=name, session_lifetime=600) for name in ("Asha", "Ravi", "Meera of Gurugram")]
    emulator.foreign_sign_in(mobile=None, email="leela@example.com")
    for user, act in zip(users, (emulator.expire, emulator.revoke), strict=False):
        act(user["sessionInfo"]["sessionId"])
    for user in users:
        body = {"sessionToken": user["sessionInfo"]["sessionToken"]}
        httpx.post(f"{url}/v1/sessions/get-session-details", json=body, headers=CREDENTIALS)
    httpx.post(url + "/_emulator/sdk/initiate", json={"appId": "DEMOAPP", "phone": "9999988888", "countryCode": "+91"})
    emulator.set_latency("revoke-session", 2)
    # The page's policy lets no script in but its own: axe-core is put in past it.
    page = browser.window(SIZES[size], scheme, bypass_csp=True).tab(f"{url}/_emulator/")
    page.get_by_text("Sign in a made-up user").click()
    page.locator("#kinds li").last.wait_for()
    page.locator("#calls li").last.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("Promise.all(document.getAnimations().map(each => each.finished))")  # what fades in has no contrast
    page.evaluate(AXE)
    found = page.evaluate("rules => axe.run(rules)", RULES)
    assert "color-contrast" in {each["id"] for each in found["passes"]}
    assert [(each["id"], [node["target"] for node in each["nodes"]][:3]) for each in found["violations"]] == []
    PICTURES.mkdir(exist_ok=True)
    page.screenshot(path=PICTURES / f"emulator-{size}-{scheme}.png", full_page=True)
