"""OTPLESS: whether it takes our credentials, has usable keys, and has the same time as we.

Only validate-session is called, with a made-up token: it changes nothing, is not counted as a sign-in, and tells
refused credentials (401 with another code than 7415) from a token that OTPLESS does not know.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from fastapi_otpless_session import wire
from fastapi_otpless_session.client import new_sender
from fastapi_otpless_session.doctor.findings import NotApplicableError, Outcome, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.errors import ConfigurationError, CredentialsRefusedError, UpstreamError
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import SHORTEST_KEY_BITS

MADE_UP = "eyJhbGciOiJSUzI1NiIsImtpZCI6ImRvY3RvciJ9.eyJzdWIiOiJkb2N0b3IiLCJleHAiOjF9.bWFkZS11cA"
"""Shaped like a session token; expired in 1970, and signed by nobody."""
OFTEN_UNNOTICED = 5.0
TOO_FAR = 60.0
OWN_CREDENTIALS = "Copy OTPLESS_CLIENT_ID and OTPLESS_CLIENT_SECRET again from the OTPLESS dashboard."
EMULATOR = "python -m fastapi_otpless_session emulator"
HTTP_PORT = 80
WAY_OUT = "Let this host reach it: DNS, firewall, certificates; proxies from the environment are not used."


async def credentials(setup: Setup) -> Outcome:
    """OTPLESS takes our client id and secret."""
    settings = setup.settings
    where = _host(settings.base_url)
    try:
        verdict = wire.read_validation(await _ask(settings))
    except CredentialsRefusedError as error:
        address = f" If they are right, OTPLESS_BASE_URL is not: {settings.base_url}"
        return problem(f"{where} refuses the client id and secret. {error}.", OWN_CREDENTIALS + address)
    except UpstreamError as error:
        return problem(f"{where} gives no usable answer. {error}.", _way_to(settings.base_url))
    if verdict is wire.Verdict.VALID:
        return problem(
            f"{where} calls a made-up token valid.", "OTPLESS_BASE_URL must be OTPLESS's: https://user-auth.otpless.app"
        )
    return ok(f"{where} takes the client id and secret.")


async def keys(setup: Setup) -> Outcome:
    """OTPLESS's key set can be fetched, and has a key for RS256."""
    settings = setup.settings
    if not settings.jwks_url:
        return skipped(
            "OTPLESS_JWKS_URL is empty: OTPLESS is asked about every token, and no signature is checked here."
        )
    try:
        answer = await _send(settings, wire.jwks_call(settings.jwks_url))
        found = wire.read_jwks(answer)
    except UpstreamError as error:
        finding = f"{settings.jwks_url} has no usable keys. {error}."
        right = "OTPLESS_JWKS_URL must be OTPLESS's key set, in reach of this host. "
        return problem(finding, right * (not _is_local(settings.jwks_url)) + _way_to(settings.jwks_url))
    offered = len(json.loads(answer.body)["keys"])
    more = f"; {offered - len(found)} more are not for RS256 of {SHORTEST_KEY_BITS} bits" * (offered > len(found))
    return ok(f"{settings.jwks_url} has {len(found)} usable key{'s' * (len(found) > 1)}{more}.")


async def clock(setup: Setup) -> Outcome:
    """Our clock and OTPLESS's agree, by the Date of its answers."""
    began, started = time.time(), time.monotonic()
    try:
        answer = await _ask(setup.settings)
    except UpstreamError as error:
        return skipped(f"OTPLESS's time is not known. {error}.")
    took = time.monotonic() - started
    theirs = _date(answer.headers.get("date", ""))
    if theirs is None:
        return skipped("OTPLESS's answer has no Date.")
    return compared(began + took / 2 - (theirs + 0.5), 0.5 + took / 2, "This host's clock", "OTPLESS's")


def compared(ahead: float, give: float, ours: str, theirs: str) -> Outcome:
    """Judge two clocks that are `ahead` seconds apart, give or take `give`."""
    surely = max(0.0, abs(ahead) - give)
    away = f"{ours} is {surely:.0f} s or more {'ahead of' if ahead > 0 else 'behind'} {theirs}"
    fix = "Let NTP set it (timedatectl set-ntp true, or the host's own time service if this is a container)."
    if surely > TOO_FAR:
        return problem(f"{away}; tokens expire at the wrong time, or seem to be expired when they come.", fix)
    if surely > OFTEN_UNNOTICED:
        return warning(f"{away}; more than {TOO_FAR:.0f} s will break sessions.", fix)
    return ok(f"{ours} and {theirs} agree to {OFTEN_UNNOTICED:.0f} s, as far as can be told.")


async def base_url(setup: Setup) -> Outcome:
    """It is OTPLESS that is asked, not the emulator."""
    url = setup.settings.base_url
    if _is_local(url):
        return warning(
            f"{url} is on this machine: an emulator, not OTPLESS.",
            "In production leave OTPLESS_BASE_URL and OTPLESS_JWKS_URL unset, or set them to OTPLESS's own.",
        )
    return ok(f"Sessions are checked at {url}.")


async def _ask(settings: OtplessSettings) -> wire.Answer:
    headers = wire.credentials(settings.client_id, settings.client_secret.get_secret_value())
    url = settings.base_url + wire.VALIDATE_SESSION
    return await _send(settings, wire.call(url, headers, {"sessionToken": MADE_UP}))


async def _send(settings: OtplessSettings, request: wire.Request) -> wire.Answer:
    """Send a request as the application would, with its deadline."""
    try:
        sender = new_sender(settings)
    except ConfigurationError as error:
        raise NotApplicableError(f"OTPLESS cannot be asked. {error}") from None
    try:
        return await sender.send(request, deadline=settings.request_timeout)
    finally:
        await asyncio.shield(sender.close())


def _date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _is_local(url: str) -> bool:
    """Whether it is an address of this machine: settings take http:// for no others."""
    return url.startswith("http://")


def _way_to(url: str) -> str:
    """What to do about an OTPLESS that gives no usable answer."""
    if not _is_local(url):
        return WAY_OUT
    port = urlsplit(url).port or HTTP_PORT
    return f"Is the emulator running at {_host(url)}? {EMULATOR} --port {port} starts it."
