"""The example shop, driven as a browser would, against an emulator on a real socket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi.testclient import TestClient

from example_app.layout import local_path
from example_app.main import create_app
from example_app.settings import ShopSettings
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve

pytestmark = pytest.mark.varied

SWAPPED = "Your session token was swapped just now — you didn&#x27;t notice."
SWAPPED_AS_TYPED = "Your session token was swapped just now — you didn't notice."


@dataclass
class Shop:
    """The shop, a browser that doesn't follow redirects, and the emulator."""

    browser: TestClient
    emulator: Emulator

    def sign_in(self, **values: Any) -> str:
        """Sign in as the page's script does and return the session's id."""
        user = self.emulator.sign_in(**values)
        answer = self.browser.post("/auth/login", json=user)
        assert answer.status_code == 200, answer.text
        return str(user["sessionInfo"]["sessionId"])

    def get(self, path: str) -> httpx2.Response:
        return self.browser.get(path)

    def leads_to(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 303, answer.text
        return answer.headers["location"]


def is_swapped(answer: httpx2.Response) -> bool:
    return SWAPPED in answer.text or SWAPPED_AS_TYPED in answer.text


@pytest.fixture
def emulator() -> Iterator[tuple[Emulator, str]]:
    emulator = Emulator()
    with serve(emulator) as url:
        yield emulator, url


@pytest.fixture
def shop(emulator: tuple[Emulator, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    otpless, url = emulator
    for name in list(os.environ):
        if name.startswith("SHOP_"):
            monkeypatch.delenv(name)
    variables = {
        "OTPLESS_CLIENT_ID": EmulatorSettings().client_id,
        "OTPLESS_CLIENT_SECRET": EmulatorSettings().client_secret,
        "OTPLESS_BASE_URL": url,
        "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
        "OTPLESS_COOKIE_SECURE": "false",
        "OTPLESS_STORE_URL": "memory://",
        "OTPLESS_VALIDATION_TTL": "0",
        "SHOP_APP_ID": "DEMOAPP",
        "SHOP_SDK_URL": f"{url}/v4/auth.js",
        "SHOP_HEADLESS_URL": f"{url}/v4/headless.js",
        "SHOP_EMULATOR_URL": url,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    headers = {"Accept": "text/html,application/xhtml+xml"}
    with TestClient(create_app(), "http://localhost:8000", headers=headers, follow_redirects=False) as browser:
        yield Shop(browser, otpless)


def test_signing_in_ordering_expiring_and_signing_out(shop: Shop) -> None:
    assert shop.leads_to("/orders") == "/sign-in?next=/orders"
    shop.sign_in(name="Asha")
    page = shop.get("/orders")
    assert page.status_code == 200
    assert "Signed in as <strong>Asha</strong>" in page.text
    assert "Expire my token" in page.text
    assert not is_swapped(page)

    assert shop.browser.post("/demo/expire").status_code == 204
    page = shop.get("/orders")
    assert page.status_code == 200
    assert is_swapped(page)
    assert not is_swapped(shop.get("/orders"))

    assert shop.browser.post("/auth/logout").status_code == 204
    assert shop.leads_to("/orders") == "/sign-in?next=/orders"


def test_an_order_as_the_first_click_after_an_expiry_is_placed_and_says_so(shop: Shop) -> None:
    shop.sign_in()
    shop.browser.post("/demo/expire")
    answer = shop.browser.post("/orders/assam")
    assert answer.status_code == 303
    page = shop.get(answer.headers["location"])
    assert is_swapped(page)
    assert "Assam Breakfast" in page.text
    assert shop.browser.post("/orders/coffee").status_code == 404


def test_orders_are_each_customer_s_own(shop: Shop) -> None:
    shop.sign_in()
    shop.browser.post("/orders/rose")
    assert "Rose &amp; Hibiscus" in shop.get("/orders").text
    shop.sign_in(mobile="918888888888")
    assert "ordered anything yet" in shop.get("/orders").text


def test_whoever_isn_t_signed_in_sees_the_shop_but_cannot_order(shop: Shop) -> None:
    page = shop.get("/")
    assert page.status_code == 200
    assert "Masala Chai" in page.text
    assert "Expire my token" not in page.text
    answer = shop.browser.post("/orders/assam")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/%3Fagain")
    assert 'data-next="/?again"' in shop.get(answer.headers["location"]).text
    assert "Order again." not in shop.get("/?again").text
    shop.sign_in()
    assert "You are signed in. Order again." in shop.get(shop.leads_to(answer.headers["location"])).text


def test_programs_get_json_instead_of_a_redirect(shop: Shop) -> None:
    answer = shop.browser.get("/orders", headers={"Accept": "application/json"})
    assert answer.status_code == 401
    assert answer.json()["detail"]["code"] == "session_missing"


def test_the_sign_in_page_loads_the_sdk(shop: Shop, emulator: tuple[Emulator, str]) -> None:
    page = shop.get("/sign-in?next=/account").text
    assert f'<script id="otpless-sdk" src="{emulator[1]}/v4/auth.js" data-appid="DEMOAPP">' in page
    assert 'data-next="/account"' in page
    assert f'<a href="{emulator[1]}"' in page
    for name in ("shop.css", "shop.js", "sign-in.js", "leaf.svg"):
        assert shop.get(f"/static/{name}").status_code == 200
    shop.sign_in()
    assert shop.leads_to("/sign-in?next=/account") == "/account"


def test_against_the_real_otpless_nothing_of_the_emulator_shows(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_EMULATOR_URL")
    monkeypatch.delenv("SHOP_SDK_URL")
    user = shop.emulator.sign_in()
    headers = {"Accept": "text/html"}
    with TestClient(create_app(), "http://localhost:8000", headers=headers) as browser:
        page = browser.get("/sign-in").text
        assert 'src="https://otpless.com/v4/auth.js" data-appid="DEMOAPP"' in page
        assert browser.post("/auth/login", json=user).status_code == 200
        assert "Expire my token" not in browser.get("/account").text
        assert browser.post("/demo/expire").status_code == 404
    with TestClient(create_app(ShopSettings(app_id="")), "http://localhost:8000", headers=headers) as browser:
        assert "SHOP_APP_ID" in browser.get("/sign-in").text


@pytest.mark.parametrize(
    "wanted",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example/",
        "/\t/evil.example/",
        "/\n/evil.example/",
        "\x00//evil.example/",
        " //evil.example/",
        "javascript:alert(1)",
        "evil.example",
        "///evil.example",
        "/é",
        "",
    ],
)
def test_after_signing_in_nobody_is_sent_to_another_site(shop: Shop, wanted: str) -> None:
    assert local_path(wanted) == "/"
    page = shop.browser.get("/sign-in", params={"next": wanted})
    assert 'data-next="/"' in page.text
    shop.sign_in()
    answer = shop.browser.get("/sign-in", params={"next": wanted})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_after_signing_in_people_are_where_they_wanted_to_be(shop: Shop) -> None:
    where = shop.leads_to("/orders?year=2026&q=//x")
    assert urlsplit(where).path == "/sign-in"
    assert 'data-next="/orders?year=2026&amp;q=//x"' in shop.get(where).text
    shop.sign_in()
    assert shop.leads_to(where) == "/orders?year=2026&q=//x"


def test_without_a_verdict_there_is_a_friendly_page_and_the_session_lives_on(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTPLESS_STALE_IF_ERROR", "0")
    headers = {"Accept": "text/html"}
    with TestClient(create_app(), "http://localhost:8000", headers=headers, follow_redirects=False) as browser:
        patient = Shop(browser, shop.emulator)
        patient.sign_in()
        shop.emulator.add_fault(Fault("reset"))
        answer = patient.get("/account")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0
        assert "been signed out" in answer.text
        assert 'href="/account"' in answer.text
        assert "set-cookie" not in answer.headers
        assert browser.get("/orders", headers={"Accept": "application/json"}).status_code == 503
        shop.emulator.clear_faults()
        assert patient.get("/account").status_code == 200


def test_in_a_short_outage_nobody_notices_but_the_page_says_so(shop: Shop) -> None:
    shop.sign_in()
    shop.emulator.add_fault(Fault("reset"))
    page = shop.get("/orders")
    assert page.status_code == 200
    assert "OTPLESS can&#x27;t be reached" in page.text


def test_the_account_page_shows_session_details_and_devices(shop: Shop) -> None:
    shop.sign_in()
    here = shop.sign_in()
    page = shop.get("/account").text
    assert here in page
    assert "+919999999999" in page
    assert "Signed in as <strong>+919999999999</strong>" in page
    assert "Gurugram, India" in page
    assert "this one" in page


@pytest.mark.parametrize(
    ("path", "promise"),
    [
        ("/account", "Then click anything: you stay signed in, and the page says that the token was swapped."),
        ("/header", "Then order something: you stay signed in, and the page says that the token was swapped."),
        ("/frontend", "Then order something: you stay signed in, and the page says that the SDK renewed it."),
    ],
)
def test_each_frontend_promises_what_it_does_after_an_expiry(shop: Shop, path: str, promise: str) -> None:
    if path == "/account":
        shop.sign_in()
    assert promise in shop.get(path).text


def test_another_device_can_be_signed_out(shop: Shop) -> None:
    elsewhere = shop.sign_in()
    shop.browser.cookies.clear()
    shop.sign_in()
    assert f'data-url="/auth/sessions/{elsewhere}"' in shop.get("/account").text
    assert shop.browser.delete(f"/auth/sessions/{elsewhere}").status_code == 204
    assert elsewhere not in shop.get("/account").text
    assert shop.browser.post("/auth/logout-all").status_code == 204
    assert shop.leads_to("/account") == "/sign-in?next=/account"


def test_a_session_that_was_ended_elsewhere_says_why_it_is_over(shop: Shop) -> None:
    session_id = shop.sign_in()
    shop.emulator.revoke(session_id)
    where = shop.leads_to("/orders")
    assert where == "/sign-in?next=/orders&why=session_expired"
    assert "Your session has ended." in shop.get(where).text
    assert "<script>alert" not in shop.browser.get("/sign-in", params={"why": "<script>alert(1)"}).text


def test_a_hostile_name_is_only_text(shop: Shop) -> None:
    hostile = '"><script>alert(1)</script>$body'
    shop.sign_in(name=hostile)
    for path in ("/", "/orders", "/account"):
        page = shop.get(path).text
        assert "<script>alert" not in page
        assert "&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;$body" in page
    answer = shop.browser.post("/auth/logout")
    assert answer.status_code == 204
    page = shop.browser.get("/sign-in", params={"next": '/"><script>alert(1)</script>'}).text
    assert 'data-next="/&quot;&gt;&lt;script&gt;' in page
    assert "<script>alert" not in page


def test_another_site_s_form_orders_nothing(shop: Shop) -> None:
    shop.sign_in()
    answer = shop.browser.post(
        "/orders/assam", headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    )
    assert answer.status_code == 403
    assert "The request comes from another site." in answer.text
    assert "ordered anything yet" in shop.get("/orders").text


def test_an_emulator_that_is_gone_is_said_plainly(shop: Shop) -> None:
    shop.sign_in()
    settings = ShopSettings(app_id="DEMOAPP", emulator_url="http://127.0.0.1:9")
    shop.browser.app.state.shop = settings  # type: ignore[attr-defined]
    answer = shop.browser.post("/demo/expire", headers={"Accept": "application/json"})
    assert (answer.status_code, answer.json()["detail"]) == (502, "The emulator didn't do it. Is it running?")
