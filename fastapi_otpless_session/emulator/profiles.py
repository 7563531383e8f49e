"""Who signs in, and the descriptions of people, devices and networks in OTPLESS's answers."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

_PEOPLE = uuid.UUID("5b0f4a3e-6a0e-4a53-9f9b-0d5fd9f5f0a1")


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who signs in. `mobile` is digits with the country code, without a plus sign."""

    user_id: str
    mobile: str | None
    email: str | None
    name: str | None
    channel: str


def person(user_id: str | None, mobile: str | None, email: str | None, name: str | None, channel: str) -> Person:
    """A `Person`; without a user id, the same mobile number or address always gets the same one.

    Raises ValueError when there is neither a mobile number nor an address.
    """
    known_by = mobile or email
    if not known_by:
        raise ValueError("somebody who signs in has a mobile number or an e-mail address")
    return Person(user_id or "MO-" + uuid.uuid5(_PEOPLE, known_by).hex, mobile, email, name, channel)


def iso(at: float) -> str:
    """A time in seconds since the epoch as ISO-8601 in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def milliseconds(at: float) -> int:
    """A time in seconds since the epoch as whole milliseconds."""
    return int(at * 1000)


def identities(who: Person, at: float, verified_at: Literal["ms", "iso"]) -> list[dict[str, Any]]:
    """The identities of `who`, all verified at the time `at`."""
    when = milliseconds(at) if verified_at == "ms" else iso(at)
    found = []
    if who.mobile:
        found.append(_identity(who, "MOBILE", who.mobile, who.channel, when))
    if who.email:
        channel = "EMAIL" if who.mobile else who.channel
        found.append(_identity(who, "EMAIL", who.email, channel, when))
    return found


def _identity(who: Person, kind: str, value: str, channel: str, when: int | str) -> dict[str, Any]:
    return {
        "identityType": kind,
        "identityValue": value,
        "channel": channel,
        "methods": [channel],
        "name": who.name or "",
        "verified": True,
        "verifiedAt": when,
    }


def device() -> dict[str, Any]:
    """A device as OTPLESS describes it."""
    return {
        "userAgent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0",
        "platform": "Linux x86_64",
        "vendor": "Google Inc.",
        "browser": "Chrome",
        "connection": "4g",
        "language": "en-IN",
        "cookieEnabled": True,
        "screenWidth": 1440,
        "screenHeight": 900,
        "screenColorDepth": 24,
        "devicePixelRatio": 2,
        "timezoneOffset": -330,
        "cpuArchitecture": "8-core",
        "fontFamily": '"Times New Roman"',
    }


def network() -> dict[str, Any]:
    """A network as OTPLESS describes it; the address is from a range kept for documentation."""
    return {
        "ip": "203.0.113.7",
        "timezone": "Asia/Kolkata",
        "ipLocation": {
            "city": {"name": "Gurugram"},
            "subdivisions": {"code": "HR", "name": "Haryana"},
            "country": {"code": "IN", "name": "India"},
            "continent": {"code": "AS"},
            "latitude": 28.4597,
            "longitude": 77.0282,
            "postalCode": "122001",
        },
    }
