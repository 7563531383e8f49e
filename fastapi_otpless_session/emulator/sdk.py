"""What the frontend SDK talks to: its scripts, one-time passwords, and the browser's own session.

Two kinds of numbers show events that are rare: a number that ends in 0000 has no WhatsApp, so that the
password falls back to SMS; on a phone whose number ends in 1111 the page reads the password by itself.
"""

import hmac
import re
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastapi_otpless_session.emulator.bodies import RefusedError, optional_text, read_object, text_field
from fastapi_otpless_session.emulator.gate import SDK_PREFIX
from fastapi_otpless_session.emulator.profiles import person
from fastapi_otpless_session.emulator.state import Standing, State

OTP_LIFETIME = 300.0
OTP_TRIES = 5

_INBOX_SIZE = 50
MOST_PENDING = 1_000
"""How many people may have been sent a password that they did not enter yet."""
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_MOBILE = re.compile(r"[1-9][0-9]{6,14}")
_NO_WHATSAPP = "0000"
_READS_BY_ITSELF = "1111"
_SHOWN = 40
"""How many characters of a wrong app id are repeated."""


@dataclass(frozen=True, slots=True)
class OtpMessage:
    """A one-time password as it was "sent": to whom, over which channel, when (seconds since the epoch)."""

    to: str
    channel: str
    otp: str = field(repr=False)
    at: float

    def as_json(self) -> dict[str, Any]:
        """The message as the page of the phone shows it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recipient:
    """To whom a password goes: a mobile number or an e-mail address."""

    mobile: str | None
    email: str | None
    channel: str

    @property
    def address(self) -> str:
        """The number or the address."""
        return self.mobile or self.email or ""


@dataclass(slots=True)
class _Pending:
    otp: str = field(repr=False)
    channel: str
    expires_at: float
    tries_left: int = OTP_TRIES


class OtpDesk:
    """Sends one-time passwords to the inbox and checks them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pending: dict[str, _Pending] = {}
        self._inbox: deque[OtpMessage] = deque(maxlen=_INBOX_SIZE)

    def send(self, to: Recipient) -> OtpMessage:
        """Send a new password; the one before it works no more."""
        now = self._clock()
        message = OtpMessage(to.address, _delivery(to), f"{secrets.randbelow(10**6):06d}", now)
        self._pending.pop(to.address, None)  # the newest is to be the last
        self._pending[to.address] = _Pending(message.otp, message.channel, now + OTP_LIFETIME)
        if len(self._pending) > MOST_PENDING:
            del self._pending[next(iter(self._pending))]
        self._inbox.appendleft(message)
        return message

    def check(self, to: Recipient, otp: str) -> str:
        """Use up the password; returns the channel it came by. Raises `RefusedError` (400) if it is wrong."""
        pending = self._pending.get(to.address)
        if pending is None or self._clock() >= pending.expires_at:
            raise RefusedError(400, "This code has expired. Ask for a new one.")
        if not hmac.compare_digest(pending.otp.encode(), otp.encode()):
            self._count_wrong(to, pending)
        del self._pending[to.address]
        return pending.channel

    def messages(self) -> list[OtpMessage]:
        """What was sent, the newest first."""
        return list(self._inbox)

    def _count_wrong(self, to: Recipient, pending: _Pending) -> None:
        pending.tries_left -= 1
        if pending.tries_left == 0:
            del self._pending[to.address]
            raise RefusedError(400, "Wrong code, and too many tries. Ask for a new one.")
        raise RefusedError(400, "Wrong code. Try again.")


class Sdk:
    """The SDK's scripts and endpoints."""

    def __init__(self, state: State, desk: OtpDesk) -> None:
        self._state = state
        self._desk = desk

    def routes(self) -> list[Route]:
        """The routes of all of it."""
        return [
            Route("/v4/auth.js", _script("auth.js")),
            Route("/v4/headless.js", _script("headless.js")),
            self._call("initiate", self._initiate),
            self._call("verify", self._verify),
            self._call("session", self._session),
            self._call("logout", self._logout),
        ]

    def _call(self, name: str, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Route:
        async def endpoint(request: Request) -> Response:
            body = await read_object(request)
            if body.get("appId") != (known := self._state.settings.app_id):
                raise RefusedError(400, f"{_named(body.get('appId'))}; this emulator's is {known} (--app-id).")
            return JSONResponse(answer(body))

        return Route(SDK_PREFIX + name, endpoint, methods=["POST"])

    def _initiate(self, body: dict[str, Any]) -> dict[str, Any]:
        to = _recipient(body)
        sent = self._desk.send(to)
        auto_read = to.address.endswith(_READS_BY_ITSELF)
        return {
            "success": True,
            "requestId": secrets.token_hex(16),
            "channel": sent.channel,
            "fallback": sent.channel != to.channel,
            "autoReadOtp": sent.otp if auto_read else None,
        }

    def _verify(self, body: dict[str, Any]) -> dict[str, Any]:
        to = _recipient(body)
        channel = self._desk.check(to, text_field(body, "otp", 400))
        return {"success": True, "otplessUser": self._state.sign_in(person(None, to.mobile, to.email, None, channel))}

    def _session(self, body: dict[str, Any]) -> dict[str, Any]:
        session_token, refresh_token = _browser_tokens(body)
        found = self._state.find_session_token(session_token)
        if found.session is not None and found.standing is Standing.LIVE:
            return {
                "success": True,
                "sessionId": found.session.session_id,
                "sessionToken": session_token,
                "refreshToken": refresh_token,
            }
        return self._renewed(refresh_token)

    def _renewed(self, refresh_token: str) -> dict[str, Any]:
        found = self._state.find_refresh_token(refresh_token)
        if found.session is None or found.standing is not Standing.LIVE:
            return {"success": False}
        return {"success": True, **self._state.refresh(found.session, refresh_token).as_json()}

    def _logout(self, body: dict[str, Any]) -> dict[str, Any]:
        session_token, refresh_token = _browser_tokens(body)
        by_session_token = self._state.find_session_token(session_token)
        by_refresh_token = self._state.find_refresh_token(refresh_token)
        for found in (by_session_token, by_refresh_token):
            if found.session is not None and found.standing is not Standing.FOREIGN:
                found.session.revoke()
                return {"success": True}
        return {"success": False}


def _named(app_id: Any) -> str:
    """A wrong app id as an error names it: escaped, for it is shown in terminals too, and no longer than a line."""
    if not isinstance(app_id, str) or not app_id:
        return "No app id was sent"
    return f"App id {app_id[:_SHOWN]!r}{'…' if len(app_id) > _SHOWN else ''} is not known"


def _browser_tokens(body: dict[str, Any]) -> tuple[str, str]:
    return optional_text(body, "sessionToken") or "", optional_text(body, "refreshToken") or ""


def _recipient(body: dict[str, Any]) -> Recipient:
    email = optional_text(body, "email")
    if email:
        return _by_email(email.strip().lower())
    country_code, phone = optional_text(body, "countryCode") or "", optional_text(body, "phone") or ""
    mobile = re.sub(r"[\s()+.-]", "", country_code + phone)
    if not _MOBILE.fullmatch(mobile):
        raise RefusedError(400, "Enter a phone number with its country code.")
    return Recipient(mobile, None, _channel(body))


def _by_email(email: str) -> Recipient:
    if not _EMAIL.fullmatch(email):
        raise RefusedError(400, "Enter a complete e-mail address.")
    return Recipient(None, email, "EMAIL")


def _channel(body: dict[str, Any]) -> str:
    channel = (optional_text(body, "channel") or "").upper()
    return channel if channel in {"WHATSAPP", "SMS", "VIBER", "VOICE_CALL"} else "WHATSAPP"


def _delivery(to: Recipient) -> str:
    unreachable = to.channel == "WHATSAPP" and to.address.endswith(_NO_WHATSAPP)
    return "SMS" if unreachable else to.channel


def _static(name: str) -> str:
    return (files(__package__ or "") / "static" / name).read_text("utf-8")


def _script(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(_request: Request) -> Response:
        # Both scripts share one core; a function around them keeps its names out of the page.
        source = "(() => {\n" + _static("core.js") + _static(name) + "})();\n"
        return Response(source, media_type="text/javascript", headers={"Cache-Control": "no-store"})

    return endpoint
