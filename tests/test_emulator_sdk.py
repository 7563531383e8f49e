"""The emulator's side of the frontend SDK."""

import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from processes import PATIENCE

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve
from fastapi_otpless_session.emulator.sdk import MOST_PENDING, OTP_LIFETIME, OTP_TRIES

NODE = shutil.which("node")
PHONE = {"countryCode": "+91", "phone": "99999 88888"}


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Browser:
    """A page's SDK, talking to an emulator in the same process."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.emulator = Emulator(EmulatorSettings(**settings), clock=self.clock)
        transport = httpx.ASGITransport(self.emulator.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://otpless.test")

    async def post(self, name: str, **body: Any) -> httpx.Response:
        return await self.http.post("/_emulator/sdk/" + name, json={"appId": "DEMOAPP", **body})

    async def sign_in(self) -> dict[str, str]:
        await self.post("initiate", **PHONE)
        answer = await self.post("verify", **PHONE, otp=self.emulator.inbox[0].otp)
        info: dict[str, str] = answer.json()["otplessUser"]["sessionInfo"]
        return info

    def wrong_otp(self) -> str:
        return f"{(int(self.emulator.inbox[0].otp) + 1) % 10**6:06d}"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    made = Browser()
    async with made.http:
        yield made


class TestOtp:
    async def test_the_right_code_signs_in(self, browser: Browser) -> None:
        sent = (await browser.post("initiate", **PHONE)).json()
        assert (sent["channel"], sent["fallback"], sent["autoReadOtp"]) == ("WHATSAPP", False, None)
        (message,) = browser.emulator.inbox
        assert message.to == "919999988888"
        assert re.fullmatch(r"[0-9]{6}", message.otp)
        assert message.otp not in repr(message)
        state = (await browser.http.get("/_emulator/state")).json()
        assert state["inbox"][0]["otp"] == message.otp
        user = (await browser.post("verify", **PHONE, otp=message.otp)).json()["otplessUser"]
        assert user["identities"][0]["identityValue"] == "919999988888"

    async def test_an_address_gets_a_code_too(self, browser: Browser) -> None:
        await browser.post("initiate", email=" Asha@Example.com ")
        (message,) = browser.emulator.inbox
        assert (message.to, message.channel) == ("asha@example.com", "EMAIL")
        user = (await browser.post("verify", email="asha@example.com", otp=message.otp)).json()["otplessUser"]
        assert [each["identityType"] for each in user["identities"]] == ["EMAIL"]

    async def test_a_code_works_once(self, browser: Browser) -> None:
        await browser.sign_in()
        again = await browser.post("verify", **PHONE, otp=browser.emulator.inbox[0].otp)
        assert again.status_code == 400

    async def test_a_code_expires(self, browser: Browser) -> None:
        await browser.post("initiate", **PHONE)
        browser.clock.now += OTP_LIFETIME
        late = await browser.post("verify", **PHONE, otp=browser.emulator.inbox[0].otp)
        assert (late.status_code, "expired" in late.json()["message"]) == (400, True)

    async def test_wrong_codes_end_the_tries(self, browser: Browser) -> None:
        await browser.post("initiate", **PHONE)
        answers = [await browser.post("verify", **PHONE, otp=browser.wrong_otp()) for _ in range(OTP_TRIES)]
        assert {answer.status_code for answer in answers} == {400}
        assert "too many tries" in answers[-1].json()["message"]
        right = await browser.post("verify", **PHONE, otp=browser.emulator.inbox[0].otp)
        assert right.status_code == 400

    async def test_only_the_newest_code_works(self, browser: Browser) -> None:
        await browser.post("initiate", **PHONE)
        while len({message.otp for message in browser.emulator.inbox}) < 2:
            await browser.post("initiate", **PHONE)
        newest, *_, oldest = browser.emulator.inbox
        assert (await browser.post("verify", **PHONE, otp=oldest.otp)).status_code == 400
        assert (await browser.post("verify", **PHONE, otp=newest.otp)).status_code == 200

    async def test_special_numbers_fall_back_or_read_by_themselves(self, browser: Browser) -> None:
        fallback = (await browser.post("initiate", phone="9999990000", countryCode="91")).json()
        assert (fallback["channel"], fallback["fallback"]) == ("SMS", True)
        auto = (await browser.post("initiate", phone="9999991111", countryCode="91", channel="sms")).json()
        assert (auto["channel"], auto["fallback"]) == ("SMS", False)
        assert auto["autoReadOtp"] == browser.emulator.inbox[0].otp

    async def test_of_codes_that_nobody_enters_only_the_newest_are_good(self, browser: Browser) -> None:
        await browser.post("initiate", **PHONE)
        oldest = browser.emulator.inbox[0].otp
        for number in range(MOST_PENDING):
            await browser.post("initiate", email=f"person{number}@shop.example")
        newest = browser.emulator.inbox[0].otp
        assert (await browser.post("verify", **PHONE, otp=oldest)).status_code == 400
        assert (await browser.post("verify", email=f"person{number}@shop.example", otp=newest)).status_code == 200

    @pytest.mark.parametrize("name", ["initiate", "verify", "session", "logout"])
    async def test_another_app_id_is_refused_and_both_are_named(self, browser: Browser, name: str) -> None:
        response = await browser.post(name, **PHONE, otp="1", appId="OTHER")
        message = "App id 'OTHER' is not known; this emulator's is DEMOAPP (--app-id)."
        assert (response.status_code, response.json()) == (400, {"message": message})

    @pytest.mark.parametrize(
        ("app_id", "named"),
        [
            ("<b>\n\x1b[31m", r"App id '<b>\n\x1b[31m' is not known"),
            ("\ud800", r"App id '\ud800' is not known"),
            ("X" * 10_000, f"App id '{'X' * 40}'… is not known"),
            ("", "No app id was sent"),
            (None, "No app id was sent"),
            ([["X"]], "No app id was sent"),
        ],
    )
    async def test_whatever_an_app_id_holds_it_is_named_in_a_few_plain_letters(
        self, browser: Browser, app_id: Any, named: str
    ) -> None:
        body = json.dumps({**PHONE, "appId": app_id})  # with escapes, for half a surrogate pair has no other way
        response = await browser.http.post("/_emulator/sdk/initiate", content=body)
        assert response.status_code == 400
        assert response.json() == {"message": f"{named}; this emulator's is DEMOAPP (--app-id)."}

    @pytest.mark.parametrize("body", [{}, {"phone": "12"}, {"phone": "abc"}, {"email": "x"}])
    async def test_bad_recipients_are_refused(self, browser: Browser, body: dict[str, str]) -> None:
        assert (await browser.post("initiate", **body)).status_code == 400

    async def test_fields_have_types(self, browser: Browser) -> None:
        assert (await browser.post("initiate", phone=7)).status_code == 422
        assert (await browser.post("verify", **PHONE)).status_code == 400


class TestSession:
    async def test_a_live_session_is_kept(self, browser: Browser) -> None:
        tokens = await browser.sign_in()
        assert (await browser.post("session", **tokens)).json() == {"success": True, **tokens}

    async def test_a_dead_session_token_is_renewed(self, browser: Browser) -> None:
        tokens = await browser.sign_in()
        browser.emulator.expire(tokens["sessionId"])
        renewed = (await browser.post("session", **tokens)).json()
        assert renewed["success"] is True
        assert renewed["sessionId"] == tokens["sessionId"]
        assert renewed["sessionToken"] != tokens["sessionToken"]

    async def test_without_a_living_token_there_is_no_session(self, browser: Browser) -> None:
        tokens = await browser.sign_in()
        browser.emulator.revoke(tokens["sessionId"])
        assert (await browser.post("session", **tokens)).json() == {"success": False}
        assert (await browser.post("session")).json() == {"success": False}

    async def test_logging_out_revokes(self, browser: Browser) -> None:
        tokens = await browser.sign_in()
        assert (await browser.post("logout", **tokens)).json() == {"success": True}
        assert browser.emulator.session(tokens["sessionId"]).revoked
        assert (await browser.post("logout")).json() == {"success": False}

    async def test_a_foreign_session_cannot_be_logged_out(self, browser: Browser) -> None:
        tokens = browser.emulator.foreign_sign_in()["sessionInfo"]
        assert (await browser.post("logout", **tokens)).json() == {"success": False}


class TestStatic:
    @pytest.mark.parametrize("name", ["auth", "headless"])
    async def test_the_scripts_are_served(self, browser: Browser, name: str) -> None:
        response = await browser.http.get(f"/v4/{name}.js")
        assert response.headers["content-type"].startswith("text/javascript")
        assert "OTPlessVerifySession" in response.text

    async def test_the_phone_is_a_page_without_html_insertion(self, browser: Browser) -> None:
        response = await browser.http.get("/")
        assert response.headers["content-type"].startswith("text/html")
        assert "textContent" in response.text
        assert "innerHTML" not in response.text
        assert "http://" not in response.text


PAGE = """
const [origin, source] = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const stored = new Map();
globalThis.window = globalThis;
globalThis.localStorage = {
  getItem: (key) => stored.get(key) ?? null,
  setItem: (key, value) => stored.set(key, value),
  removeItem: (key) => stored.delete(key),
};
globalThis.document = { currentScript: { src: origin + "/v4/headless.js", dataset: { appid: "DEMOAPP" } } };
(0, eval)(source);
(async () => {
  const events = [];
  const sdk = new OTPless((event) => events.push(event));
  const phone = { channel: "PHONE", phone: "9999991111", countryCode: "+91" };
  const initiated = await sdk.initiate(phone);
  const otp = events[0].response.otp;
  const wrong = String((Number(otp) + 1) % 1000000).padStart(6, "0");
  const refused = await sdk.verify({ ...phone, otp: wrong });
  await sdk.verify({ ...phone, otp });
  const verified = await OTPlessVerifySession();
  const token = events.at(-1).response.sessionInfo.sessionToken;
  await fetch(origin + "/_emulator/expire", {
    method: "POST", body: JSON.stringify({ sessionId: verified.sessionId }) });
  const renewed = await OTPlessVerifySession();
  const loggedOut = await OTPlessLogout();
  const gone = await OTPlessVerifySession();
  console.log(JSON.stringify({
    types: events.map((event) => event.responseType),
    initiated: initiated.responseType, refused: refused.success,
    same: verified.sessionToken === token, renewed: renewed.success && renewed.sessionToken !== token,
    loggedOut, gone, stored: stored.size,
  }));
})();
"""


@pytest.mark.skipif(NODE is None, reason="runs the page's script with Node.js")
def test_the_headless_script_reports_its_events() -> None:
    assert NODE is not None
    with serve(Emulator()) as url:
        source = httpx.get(url + "/v4/headless.js").text
        command = [NODE, "-e", PAGE]
        ran = subprocess.run(  # noqa: S603 - the command is Node.js with the page above
            command, input=json.dumps([url, source]), capture_output=True, text=True, check=True, timeout=PATIENCE
        )
    assert json.loads(ran.stdout) == {
        "types": ["OTP_AUTO_READ", "FAILED", "ONETAP", "SESSION_END"],
        "initiated": "INITIATE",
        "refused": False,
        "same": True,
        "renewed": True,
        "loggedOut": {"success": True},
        "gone": {"success": False},
        "stored": 0,
    }
