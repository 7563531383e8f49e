"""How long OTPLESS's "valid" is believed. Pure: ages and settings in, what to do out."""

from __future__ import annotations

from enum import Enum, auto

from fastapi_otpless_session.settings import OtplessSettings


class Freshness(Enum):
    """What an answer of a certain age is good for."""

    FRESH = auto()
    """Serve."""
    AGING = auto()
    """Serve, and ask OTPLESS behind the request."""
    DUE = auto()
    """Ask OTPLESS first; serve as stale where it gives no verdict."""
    TOO_OLD = auto()
    """Ask OTPLESS first; without a verdict there is no session."""


def freshness(
    age: float, settings: OtplessSettings, *, max_age: float | None = None, behind: bool = False
) -> Freshness:
    """Judge an answer that is `age` seconds old; where the clock was set back, it is as old as it seems to be early.

    `max_age`: the application wants OTPLESS's word at most so old, and nothing stale. `behind`: work can be done behind
    the request.
    """
    age = abs(age)
    ttl, stale = settings.validation_ttl, settings.stale_if_error
    if max_age is not None:
        return Freshness.FRESH if age < min(max_age, ttl) else Freshness.TOO_OLD
    if age <= ttl and ttl:
        return Freshness.FRESH
    if age <= 2 * ttl and ttl and stale and behind:
        return Freshness.AGING
    return Freshness.DUE if age <= ttl + stale and stale else Freshness.TOO_OLD
