"""OTPLESS's calls as pure functions: requests out, and of an answer a verdict, a value, or an error. No I/O.

One line is drawn here and nowhere else: errorCode 7414, errorCode 7415 and `"success": false` are verdicts on
a session. Everything else that is not a success (other codes, other statuses, bodies that don't parse) raises
`UpstreamError`: no verdict. The calls are those of the OTPLESS page "Session Management", section "API Endpoints".
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic_core import to_json

from fastapi_otpless_session import strict_json
from fastapi_otpless_session.errors import CredentialsRefusedError, SignInRefusedError, UpstreamError
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.tokens import KeySet, is_id, is_token

VALIDATE_SESSION = "/v1/sessions/validate-session"
NEW_SESSION_TOKEN = "/v1/sessions/get-new-session-token"  # noqa: S105 - a path
SESSION_DETAILS = "/v1/sessions/get-session-details"
REVOKE_SESSION = "/v1/sessions/revoke-session"
VALIDATE_TOKEN = "/auth/v1/validate/token"  # noqa: S105 - a path
CALL_NAMES = {
    VALIDATE_SESSION: "validate-session",
    NEW_SESSION_TOKEN: "get-new-session-token",
    SESSION_DETAILS: "get-session-details",
    REVOKE_SESSION: "revoke-session",
    VALIDATE_TOKEN: "validate-token",
}
"""What the calls are called in metrics and spans."""


class Verdict(Enum):
    """What OTPLESS says of a session; `told` is what that is called in metrics."""

    VALID = "valid"
    DENIED = "denied"
    """`"success": false`: not valid."""
    UNKNOWN = "unknown"
    """7414: there is no such session."""
    INACTIVE = "inactive"
    """7415: there was one; it expired or was revoked."""

    told: str

    def __init__(self, told: str) -> None:
        self.told = told  # `value` takes five times as long


TOKEN_FIELDS = frozenset({"token", "idToken", "sessionToken", "refreshToken", "sessionInfo"})
"""What may hold a token, and so is never a detail: details are shown to the browser."""
BODIES_REMEMBERED = 8
LONGEST_REMEMBERED = 128
"""How many answers to validate-session are remembered as read, and how many bytes these have at most."""
USED_UP = "OTPLESS refused the one-time token: used before, expired, or issued for another OTPLESS application"
_OK = 200
_CLIENT_ERRORS = range(400, 500)
_BUSY = frozenset({408, 425, 429})
_VERDICTS = {"7414": Verdict.UNKNOWN, "7415": Verdict.INACTIVE}


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request to send. Its `repr` shows neither headers nor body: they hold secrets.

    No named tuple: error reporters show those by what is in them.
    """

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def host(self) -> str:
        """Host and port that it goes to, for error messages."""
        return urlsplit(self.url).netloc


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    flaw: str | None = None
    """Why the body cannot be used, where it cannot: as in "it is larger than 64 KiB". The status may say enough."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The answer of get-new-session-token, or a frontend's `sessionInfo`."""

    session_id: str
    session_token: str = field(repr=False)
    refresh_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignInProof:
    """The answer of validate/token: whose one-time token it was, and the session if OTPLESS sent it along."""

    user_id: str
    pair: TokenPair | None


def credentials(client_id: str, client_secret: str) -> Mapping[str, str]:
    """Return the headers of the five calls. They are the same each time, and so are shared and cannot be changed."""
    return MappingProxyType(
        {
            "clientId": client_id,
            "clientSecret": client_secret,
            "Content-Type": "application/json",
            "Accept": "application/json",
        }
    )


def call(url: str, headers: Mapping[str, str], body: Mapping[str, str]) -> Request:
    """Build one of the five calls: a POST with our `credentials` in the headers and a JSON body."""
    return Request("POST", url, headers, _json(body))


def _json(body: Mapping[str, str]) -> bytes:
    try:
        return to_json(body)  # in a sixth of the time: the standard library looks at each character of a token
    except ValueError:
        return json.dumps(body).encode()  # half of a character can only be written as an escape


def jwks_call(url: str) -> Request:
    """Build the request for the key set. It carries no credentials."""
    return Request("GET", url, {"Accept": "application/json"}, b"")


def read_validation(answer: Answer) -> Verdict:
    """Read validate-session's answer: VALID or a verdict against it."""
    if answer.status == _OK and answer.flaw is None and len(answer.body) <= LONGEST_REMEMBERED:
        return _flag_in(answer.body)
    return _read_success(answer)


@lru_cache(BODIES_REMEMBERED)  # OTPLESS says "valid" in the same bytes each time
def _flag_in(body: bytes) -> Verdict:
    return _flag(_object(Answer(_OK, {}, body)))


def read_revocation(answer: Answer) -> Verdict:
    """Read revoke-session's answer: VALID means that it is revoked now."""
    return _read_success(answer)


def read_new_tokens(answer: Answer) -> TokenPair | Verdict:
    """Read get-new-session-token's answer: a new pair, or a verdict against the refresh token."""
    verdict = _verdict(answer)
    if verdict is not None:
        return verdict
    body = _success(answer)
    if _flag(body) is Verdict.DENIED:
        return Verdict.DENIED
    return _pair(body.get("data"))


def read_details(answer: Answer) -> SessionDetails | Verdict:
    """Read get-session-details's answer. Its id is called `sessionId`, or `sessionToken` on the reference page."""
    verdict = _verdict(answer)
    if verdict is not None:
        return verdict
    body = _success(answer, of_one_session=True)
    if body.get("success") is False:
        return Verdict.DENIED
    session_id, user_id = body.get("sessionId") or body.get("sessionToken"), body.get("userId")
    if not is_id(session_id) or not is_id(user_id):
        raise _nonsense("no session or user id in the session's details", of_one_session=True)
    details = {name: value for name, value in body.items() if name not in TOKEN_FIELDS}
    try:
        read = SessionDetails.model_validate({**details, "sessionId": session_id})
        read.model_dump_json()  # what nests too deep can be read, but not be shown
    except ValueError:
        raise _nonsense("unreadable session details", of_one_session=True) from None
    return read


def read_sign_in(answer: Answer) -> SignInProof:
    """Read validate/token's answer. Raises `SignInRefusedError` where OTPLESS refuses the one-time token."""
    if answer.status in {400, 401} and _error_code(answer) is not None:
        raise SignInRefusedError(why=USED_UP)
    body = _success(answer)
    if body.get("status") != "SUCCESS":
        if isinstance(body.get("status"), str):
            raise SignInRefusedError(why=USED_UP)
        raise _nonsense("no status in the sign-in's answer")
    user_id = body.get("userId")
    if not isinstance(user_id, str) or not is_id(user_id):
        raise _nonsense("no user id in the sign-in's answer")
    info = body.get("sessionInfo")
    return SignInProof(user_id, _pair(info) if _is_whole(info) else None)


def read_jwks(answer: Answer) -> KeySet:
    """Read a key set; an answer without a usable key is no verdict on anything."""
    entries = _success(answer).get("keys")
    if not isinstance(entries, list):
        raise _nonsense("no list of keys")
    keys = KeySet.from_jwks(entries)
    if not keys:
        raise _nonsense("no usable key")
    return keys


def _read_success(answer: Answer) -> Verdict:
    return _verdict(answer) or _flag(_success(answer))


def _flag(body: dict[str, Any]) -> Verdict:
    match body.get("success"):
        case True:
            return Verdict.VALID
        case False:
            return Verdict.DENIED
        case _:
            raise _nonsense("success is neither true nor false")


def _verdict(answer: Answer) -> Verdict | None:
    if answer.status not in {400, 401}:
        return None
    return _VERDICTS.get(_error_code(answer) or "")


def _error_code(answer: Answer) -> str | None:
    try:
        code = _object(answer).get("errorCode")
    except UpstreamError:
        return None
    return str(code) if isinstance(code, str | int) and not isinstance(code, bool) else None


def _success(answer: Answer, *, of_one_session: bool = False) -> dict[str, Any]:
    """Return a 200 answer's object; raise what every other status means. `of_one_session`: see `_nonsense`."""
    match answer.status:
        case 200:
            return _object(answer, of_one_session=of_one_session)
        case 401 | 403 | 404:
            raise CredentialsRefusedError(
                f"OTPLESS answered {answer.status}: check OTPLESS_CLIENT_ID, OTPLESS_CLIENT_SECRET and "
                "OTPLESS_BASE_URL",
                healthy=True,
            )
        case 400:
            raise UpstreamError("OTPLESS answered 400 without a known code", healthy=True)
        case status:
            healthy = status in _CLIENT_ERRORS and status not in _BUSY  # one odd token must not stop everybody's calls
            raise UpstreamError(f"OTPLESS answered {status}", healthy=healthy, retry_after=retry_after(answer.headers))


def _object(answer: Answer, *, of_one_session: bool = False) -> dict[str, Any]:
    if answer.flaw is not None:
        raise _nonsense(answer.flaw, of_one_session=of_one_session)
    try:
        body = strict_json.parse(answer.body.removeprefix(BOM_UTF8))
        body = strict_json.writable(body) if b"\\u" in answer.body else body
    except (ValueError, RecursionError):
        raise _nonsense("the body is not JSON", of_one_session=of_one_session) from None
    if not isinstance(body, dict):
        raise _nonsense("the body is not a JSON object", of_one_session=of_one_session)
    return body


def _pair(data: object) -> TokenPair:
    fields = data if isinstance(data, dict) else {}
    session_id = fields.get("sessionId")
    session_token, refresh_token = fields.get("sessionToken"), fields.get("refreshToken")
    if not isinstance(session_id, str) or not is_id(session_id):
        raise _nonsense("no session id beside the tokens")
    for token in (session_token, refresh_token):
        if not isinstance(token, str) or not is_token(token):
            raise _nonsense("a token is missing or malformed")
    return TokenPair(session_id, str(session_token), str(refresh_token))


def _is_whole(info: object) -> bool:
    """Whether a `sessionInfo` holds both tokens."""
    return isinstance(info, dict) and bool(info.get("sessionToken")) and bool(info.get("refreshToken"))


def _nonsense(what: str, *, of_one_session: bool = False) -> UpstreamError:
    """Return the error for an odd answer. `of_one_session`: maybe of that one alone, and OTPLESS is well for others."""
    return UpstreamError(f"OTPLESS's answer makes no sense: {what}", healthy=of_one_session)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Read `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        aware = date if date.tzinfo else date.replace(tzinfo=UTC)
        return max(0.0, (aware - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        return None
