"""Tokens that OTPLESS never made, of every kind, and no two alike."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from itertools import cycle
from typing import NamedTuple

from fastapi_otpless_session.emulator import Emulator


class Kind(NamedTuple):
    """How a made-up token is made: `{head}` and `{claims}` are OTPLESS's own, `{stranger}` names another key."""

    pattern: str
    has_token_shape: bool = False
    names_known_key: bool = False


KINDS = {
    "a known key, another signature": Kind("{head}.{claims}.{noise}", has_token_shape=True, names_known_key=True),
    "an unknown key": Kind("{stranger}.{noise}.{noise}", has_token_shape=True),
    "no JSON": Kind("{noise}.{noise}.{noise}", has_token_shape=True),
    "beyond 8 KiB": Kind("{head}.{claims}." + 24 * "{noise}"),
    "not three parts": Kind("not a token {noise}"),
}


class MadeUp:
    """Makes them."""

    def __init__(self, emulator: Emulator) -> None:
        claims = {
            "sub": "s-1",
            "sessionId": "s-1",
            "iss": "https://otpless.com",
            "userId": "MO-1",
            "exp": time.time() + 900,
        }
        head, payload, _ = emulator.issue(claims).split(".")
        stranger = emulator.issue(claims, kid="made-up").partition(".")[0]
        self._parts = {"head": head, "claims": payload, "stranger": stranger}

    def one(self, kind: Kind) -> str:
        return kind.pattern.format(**self._parts, noise=secrets.token_urlsafe(256))

    def __iter__(self) -> Iterator[str]:
        return map(self.one, cycle(KINDS.values()))
