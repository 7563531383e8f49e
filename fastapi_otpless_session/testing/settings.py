"""The settings of an application under test: its own, but for what must not leave the process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fastapi_otpless_session import OtplessSettings
from fastapi_otpless_session.emulator import EmulatorSettings

OTPLESS = "https://otpless.test"
"""No such host exists (RFC 6761): what is not answered in the process is not answered."""


class _SettingsForTests(OtplessSettings):
    """Reads no variable and no `.env`: a developer's own would change what the tests do, or who is asked."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - they are the base's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings_for_tests(
    own: OtplessSettings | None, emulator: EmulatorSettings, changes: Mapping[str, Any]
) -> OtplessSettings:
    """Return `own` settings (None: the defaults) with the emulator in OTPLESS's place, and `changes` on top.

    Where `own` are of an application's subclass, so are those returned. Its fields are taken as they are: to check them
    once more might read variables, or refuse what is for tests only. Raises `ConfigurationError`.
    """
    ours = OtplessSettings.model_fields
    theirs = type(own).model_fields.keys() - ours if own is not None else set()
    kept = {name: getattr(own, name) for name in ours} if own is not None else {}
    wanted = {name: value for name, value in changes.items() if name not in theirs}
    checked = _SettingsForTests(**{"_env_file": None, **kept, **_for_tests(emulator, kept), **wanted})
    if own is None:
        return checked
    update = {name: changes[name] for name in theirs & changes.keys()}
    return own.model_copy(update={**update, **{name: getattr(checked, name) for name in ours}})


def _for_tests(emulator: EmulatorSettings, kept: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "client_id": emulator.client_id,
        "client_secret": emulator.client_secret,
        "base_url": OTPLESS,
        "jwks_url": "" if kept.get("jwks_url") == "" else f"{OTPLESS}/.well-known/jwks",
        "issuer": emulator.issuer,
        "store_url": "memory://",
        "encryption_keys": "derived",
        # Clients speak http:// to hosts of their own, and would keep such cookies to themselves.
        "cookie_secure": False,
        "cookie_domain": None,
        "cookie_samesite": "lax",
        # What a test tells the emulator holds from the next request on, and nothing happens at times drawn by lot.
        "validation_ttl": 0,
        "store_ttl": 0,
        "refresh_ahead": 0,
    }
