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

    Raises `ConfigurationError`.
    """
    kept = {name: getattr(own, name) for name in type(own).model_fields} if own is not None else {}
    return _SettingsForTests(**{"_env_file": None, **kept, **_for_tests(emulator, kept), **changes})


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
