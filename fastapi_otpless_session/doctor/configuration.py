"""The settings themselves: readable, the keys that seal tokens, who gets in, and the packages that they need."""

from __future__ import annotations

import base64
import platform
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec

from dotenv import dotenv_values

from fastapi_otpless_session.client import new_sender
from fastapi_otpless_session.doctor.findings import Outcome, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.settings import DERIVED_KEY, ENV_FILE, PREFIX, OtplessSettings, misspelled

DISTRIBUTION = "fastapi-otpless-session"
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[.*?\])?>=([\d.]+)")
"""How our own metadata name what they need."""
QUOTED = re.compile(r"""(["']).*\1""", re.DOTALL)
FEWEST_BYTES = 16
"""32 random bytes hold about 30 different ones; fewer than 16 come from no random source."""
KEYGEN = "python -m fastapi_otpless_session keygen"
ENCRYPTION_KEYS = "OTPLESS_ENCRYPTION_KEYS"
WEBSOCKET_PACKAGES = ("websockets", "wsproto")
SHOWN = ("fastapi", "starlette", "pydantic", "httpx")


async def settings(setup: Setup) -> Outcome:
    """They can be read."""
    if setup.settings_error is not None:
        lines = [line.strip() for line in setup.settings_error.splitlines()]
        finding = " ".join([*lines[:1], "; ".join(lines[1:])]).strip()
        return problem(
            f"{finding}.", "Set them in the environment or in .env, in the folder that the server starts in."
        )
    return ok(f"They can be read; they come from {setup.settings_source}.")


async def variables(setup: Setup) -> Outcome:
    """No variable nearly has a setting's name: it would do nothing."""
    meant = misspelled((*setup.host.environ, *_file()))
    if not meant:
        return ok("No variable nearly has the name of a setting.")
    return warning(
        f"No setting has this name, and what it says is not heeded: {', '.join(meant)}.",
        " ".join(f"{name}: write {setting}, if that is meant." for name, setting in meant.items()),
    )


async def quotes(setup: Setup) -> Outcome:
    """No value has quotes around it that were meant for a shell: they would be a part of it."""
    given = {**_file(), **{name.upper(): value for name, value in setup.host.environ.items()}}
    known = [f"{PREFIX}{name.upper()}" for name in OtplessSettings.model_fields]
    quoted = [name for name in known if QUOTED.fullmatch(given.get(name, ""))]
    if not quoted:
        return ok("No value has quotes around it.")
    are = "are a part of its value" if len(quoted) == 1 else "are a part of their values"
    return problem(
        f"The quotes around {', '.join(quoted)} {are}: docker run --env-file, for one, takes them as they are.",
        f"Write {quoted[0]}=… without quotes{', and so the others' * (len(quoted) > 1)}.",
    )


def _file() -> Mapping[str, str]:
    """Return what the file says that the settings are read from, by what pydantic-settings reads it with."""
    try:
        return {name.upper(): value or "" for name, value in dotenv_values(ENV_FILE).items()}
    except (OSError, UnicodeError):  # the check of the settings tells
        return {}


async def versions(_: Setup) -> Outcome:
    """What is installed is not older than what we need."""
    old = [
        f"{name} {installed} (needed: {needed})"
        for name, needed in _requirements()
        if (installed := _installed(name)) and _numbers(installed) < _numbers(needed)
    ]
    if old:
        return problem(f"Too old: {', '.join(old)}.", f'pip install --upgrade "{DISTRIBUTION}"')
    names = [f"{name} {_installed(name)}" for name in SHOWN]
    own = _installed(DISTRIBUTION) or "of a checkout"
    return ok(f"{DISTRIBUTION} {own}, Python {platform.python_version()}, {', '.join(names)}.")


async def extras(setup: Setup) -> Outcome:
    """The packages are there that settings and application need."""
    if setup.known_app is not None and setup.known_app.has_websockets and not any(map(find_spec, WEBSOCKET_PACKAGES)):
        return problem(
            "The application has websocket routes, and uvicorn refuses them without the websockets package.",
            'pip install "uvicorn[standard]", or pip install websockets',
        )
    try:
        new_sender(setup.settings)
    except ConfigurationError as error:
        return problem(f"{error}.", "Install it, or leave OTPLESS_HTTP_CLIENT unset.")
    return ok("The packages for settings and routes are there.")


async def encryption_keys(setup: Setup) -> Outcome:
    """The key ring is set explicitly, and its keys are random."""
    texts = [key.get_secret_value() for key in setup.settings.encryption_keys]
    ring = [_bytes(text) for text in texts if text != DERIVED_KEY]
    if any(_is_weak(key) for key in ring):
        return problem(
            "A key of OTPLESS_ENCRYPTION_KEYS is not random: whoever guesses it reads the stored tokens.",
            f"Add what {KEYGEN} prints as the last key on all workers; then put it in front; drop the weak one when "
            "the refresh tokens that it sealed have expired.",
        )
    if max(Counter(map(bytes, ring)).values(), default=1) > 1 or texts.count(DERIVED_KEY) > 1:
        return warning("A key occurs twice in OTPLESS_ENCRYPTION_KEYS.", "Keep each key once; the first one seals.")
    if not ring:
        return warning(
            "Stored tokens are sealed with a key derived from the client secret: a new secret signs everybody out.",
            f"{ENCRYPTION_KEYS}=derived,<what {KEYGEN} prints> on all workers; then <key>,derived; then <key>, when "
            "the refresh tokens that the derived one sealed have expired (docs/operations.md).",
        )
    if texts[0] == DERIVED_KEY:
        return warning(
            "The first key seals, and that is the one derived from the client secret.",
            f"{ENCRYPTION_KEYS}=<key>,derived, now that all workers have both.",
        )
    return ok(f"Stored tokens are sealed with the first of {len(texts)} keys in OTPLESS_ENCRYPTION_KEYS.")


async def unknown_tokens(setup: Setup) -> Outcome:
    """Who signs in is who gets in."""
    has_router = setup.app.sign_in is not None
    if setup.settings.accept_unknown_tokens:
        if set(setup.settings.token_sources) == {"cookie"}:
            return ok("Only sessions that were signed in here are admitted: there are only cookies.")
        advice = " If everybody signs in through the router, set OTPLESS_ACCEPT_UNKNOWN_TOKENS=false." * has_router
        return ok(f"Header tokens that OTPLESS calls valid are admitted, though they were not signed in here.{advice}")
    if not has_router:
        return warning(
            "OTPLESS_ACCEPT_UNKNOWN_TOKENS=false admits only who signed in here, and there is no sign-in route.",
            'Add app.include_router(create_session_router(), prefix="/auth"), or admit unknown tokens.',
        )
    return ok("Only sessions that were signed in here are admitted.")


async def signatures(setup: Setup) -> Outcome:
    """Whether a made-up token costs a call to OTPLESS."""
    if setup.settings.jwks_url or not setup.settings.accept_unknown_tokens:
        return ok("Made-up tokens are refused without a call to OTPLESS.")
    return warning(
        "OTPLESS_JWKS_URL is empty and unknown tokens are admitted: each made-up token costs calls to OTPLESS.",
        "Leave OTPLESS_JWKS_URL unset, or set OTPLESS_ACCEPT_UNKNOWN_TOKENS=false.",
    )


async def issuer(setup: Setup) -> Outcome:
    """The issuer is OTPLESS's, where the key set is."""
    found = setup.settings.issuer
    if not setup.settings.jwks_url:
        return skipped("OTPLESS_JWKS_URL is empty: no signature and no issuer is checked here.")
    default = type(setup.settings).model_fields["issuer"].default
    if found != default:
        return warning(
            f"OTPLESS_ISSUER is {found}; tokens of OTPLESS name {default}, and all others are refused.",
            "Leave OTPLESS_ISSUER unset, unless your tokens' iss says so.",
        )
    return ok(f"Tokens must come from {found}.")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _is_weak(key: bytes) -> bool:
    """Whether a key repeats itself or is typed text: 32 random bytes are printable once in 10^13 times."""
    return len(set(key)) < FEWEST_BYTES or (key.isascii() and key.decode().isprintable())


def _requirements() -> Iterator[tuple[str, str]]:
    try:
        lines = metadata.requires(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        return
    for line in lines:
        if found := REQUIREMENT.match(line):
            yield found[1], found[2]


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]
