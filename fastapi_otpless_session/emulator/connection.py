"""What an application and its sign-in page need to find an emulator."""

import shlex
from html import escape

from fastapi_otpless_session.emulator.settings import EmulatorSettings


def settings_lines(settings: EmulatorSettings, url: str) -> str:
    """The application's settings, as they stand in `.env`; `url` is the emulator's, without a path."""
    values = {
        "OTPLESS_CLIENT_ID": settings.client_id,
        "OTPLESS_CLIENT_SECRET": settings.client_secret,
        "OTPLESS_BASE_URL": url,
        "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
        "OTPLESS_COOKIE_SECURE": "false",  # Safari keeps no secure cookie from http://localhost
    }
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


def script_tag(settings: EmulatorSettings, url: str) -> str:
    """The tag that puts the SDK with its form into a page."""
    return f'<script id="otpless-sdk" src="{escape(url)}/v4/auth.js" data-appid="{escape(settings.app_id)}"></script>'
