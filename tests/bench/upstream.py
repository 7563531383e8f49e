"""Tokens of about 600 bytes, and what stands in for OTPLESS: something that answers at once, in place of `http.py`."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from jwt.algorithms import RSAAlgorithm

from fastapi_otpless_session.wire import Answer, Request

ISSUER = "https://otpless.com"
KEY_ID = "pk0183"
SIGNATURE_BYTES = 256
DAY = 86_400.0
YEAR = 365 * DAY


@cache
def private_key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


@cache
def key_set() -> bytes:
    public = RSAAlgorithm.to_jwk(private_key().public_key(), as_dict=True)
    core = {name: public[name] for name in ("kty", "n", "e")}
    return json.dumps({"keys": [{**core, "use": "sig", "alg": "RS256", "kid": KEY_ID}]}).encode()


_numbers = itertools.count(1)


def claims(session_id: str, now: float, life: float) -> dict[str, Any]:
    """Return what a token of a session says; no two are the same."""
    return {
        "sub": session_id,
        "sessionId": session_id,
        "userId": f"MO-{session_id}",
        "iss": ISSUER,
        "iat": int(now),
        "exp": int(now + life),
        "jti": f"{next(_numbers):016x}",
        "name": "Asha Rao",
    }


def signed(content: dict[str, Any]) -> str:
    return jwt.encode(content, private_key(), algorithm="RS256", headers={"kid": KEY_ID})


def unsigned(content: dict[str, Any]) -> str:
    """Return a token whose signature is random bytes: nobody verifies what OTPLESS itself hands out.

    It is made a hundred times as fast, and it is what a forger would send.
    """
    header = {"alg": "RS256", "typ": "JWT", "kid": KEY_ID}
    parts = [json.dumps(part, separators=(",", ":")).encode() for part in (header, content)]
    parts.append(random.randbytes(SIGNATURE_BYTES))  # noqa: S311 - it need not be hard to guess
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def read(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return content


VALID = Answer(200, {}, b'{"success": true}')


@dataclass
class InstantOtpless:
    """An `HttpSender`: what OTPLESS would say, without delay or connection. It keeps nothing but counts."""

    calls: Counter[str] = field(default_factory=Counter)
    pairs: dict[str, Answer] = field(default_factory=dict, repr=False)

    async def open(self) -> None:
        """Open nothing."""

    async def close(self) -> None:
        """Close nothing."""

    async def send(self, request: Request, *, deadline: float) -> Answer:  # noqa: ARG002 - it is never late
        call = _name(request.url)
        self.calls[call] += 1
        match call:
            case "validate-session":
                return VALID
            case "jwks":
                return Answer(200, {}, key_set())
            case "get-new-session-token":
                return self.pairs.pop(request.body.split(b'"')[3].decode())  # {"refreshToken":"…"}, and no work of ours
            case "get-session-details":
                known = read(json.loads(request.body)["sessionToken"])
                return _json({"sessionId": known["sessionId"], "userId": known["userId"]})
            case "token":  # the one-time token is the user's id here
                return _json({"status": "SUCCESS", "userId": json.loads(request.body)["token"]})
            case _:
                return VALID

    def will_refresh(self, refresh_token: str, session_id: str, now: float, life: float) -> tuple[str, str]:
        """Prepare the answer to a refresh, so that no request has to wait for it; return the new pair."""
        pair = unsigned(claims(session_id, now, life)), unsigned(claims(session_id, now, YEAR))
        data = {"sessionId": session_id, "sessionToken": pair[0], "refreshToken": pair[1]}
        self.pairs[refresh_token] = _json({"data": data})
        return pair


@cache  # there are five, and this stands for no work at all
def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _json(content: dict[str, Any]) -> Answer:
    return Answer(200, {}, json.dumps({"success": True, **content}).encode())
