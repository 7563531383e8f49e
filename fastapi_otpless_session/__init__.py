"""Keeps people signed in to a FastAPI application through OTPLESS, with the refresh token on the server.

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware)                  # settings from OTPLESS_* variables or .env
app.include_router(create_session_router(), prefix="/auth")   # sign in, sign out, who am I, my devices

A name is loaded when it is first used: whoever imports only some, or `fastapi_otpless_session.emulator`, does not wait
for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi_otpless_session.client import OtplessClient
    from fastapi_otpless_session.dependencies import (
        CurrentSession,
        CurrentSessionDetails,
        FreshSession,
        OptionalSession,
        Sessions,
        current_session,
        current_session_details,
        fresh_session,
        fresh_within,
        optional_session,
        otpless_sessions,
    )
    from fastapi_otpless_session.errors import (
        BodyRefusedError,
        ChannelUnreadError,
        ConfigurationError,
        ConflictingCredentialsError,
        CookieTooLargeError,
        CredentialsRefusedError,
        CrossSiteRequestError,
        MiddlewareMissingError,
        NoVerdictError,
        OtplessSessionError,
        RefusalError,
        SessionNotFoundError,
        SessionRefusedError,
        SessionUnavailableError,
        SignInRefusedError,
        StoreError,
        UpstreamError,
    )
    from fastapi_otpless_session.hooks import SessionEvent, SignOutReason
    from fastapi_otpless_session.middleware import OtplessSessionMiddleware
    from fastapi_otpless_session.router import create_session_router
    from fastapi_otpless_session.session import (
        DeviceInfo,
        Identity,
        NetworkInfo,
        Session,
        SessionDetails,
        SessionReason,
    )
    from fastapi_otpless_session.sessions import OtplessSessions
    from fastapi_otpless_session.settings import OtplessSettings
    from fastapi_otpless_session.stores import SessionStore, open_store

__all__ = [
    "BodyRefusedError",
    "ChannelUnreadError",
    "ConfigurationError",
    "ConflictingCredentialsError",
    "CookieTooLargeError",
    "CredentialsRefusedError",
    "CrossSiteRequestError",
    "CurrentSession",
    "CurrentSessionDetails",
    "DeviceInfo",
    "FreshSession",
    "Identity",
    "MiddlewareMissingError",
    "NetworkInfo",
    "NoVerdictError",
    "OptionalSession",
    "OtplessClient",
    "OtplessSessionError",
    "OtplessSessionMiddleware",
    "OtplessSessions",
    "OtplessSettings",
    "RefusalError",
    "Session",
    "SessionDetails",
    "SessionEvent",
    "SessionNotFoundError",
    "SessionReason",
    "SessionRefusedError",
    "SessionStore",
    "SessionUnavailableError",
    "Sessions",
    "SignInRefusedError",
    "SignOutReason",
    "StoreError",
    "UpstreamError",
    "create_session_router",
    "current_session",
    "current_session_details",
    "fresh_session",
    "fresh_within",
    "open_store",
    "optional_session",
    "otpless_sessions",
]

_HOMES = {
    "OtplessClient": "client",
    "CurrentSession": "dependencies",
    "CurrentSessionDetails": "dependencies",
    "FreshSession": "dependencies",
    "OptionalSession": "dependencies",
    "Sessions": "dependencies",
    "current_session": "dependencies",
    "current_session_details": "dependencies",
    "fresh_session": "dependencies",
    "fresh_within": "dependencies",
    "optional_session": "dependencies",
    "otpless_sessions": "dependencies",
    "BodyRefusedError": "errors",
    "ChannelUnreadError": "errors",
    "ConfigurationError": "errors",
    "ConflictingCredentialsError": "errors",
    "CookieTooLargeError": "errors",
    "CredentialsRefusedError": "errors",
    "CrossSiteRequestError": "errors",
    "MiddlewareMissingError": "errors",
    "NoVerdictError": "errors",
    "OtplessSessionError": "errors",
    "RefusalError": "errors",
    "SessionNotFoundError": "errors",
    "SessionRefusedError": "errors",
    "SessionUnavailableError": "errors",
    "SignInRefusedError": "errors",
    "StoreError": "errors",
    "UpstreamError": "errors",
    "SessionEvent": "hooks",
    "SignOutReason": "hooks",
    "OtplessSessionMiddleware": "middleware",
    "create_session_router": "router",
    "DeviceInfo": "session",
    "Identity": "session",
    "NetworkInfo": "session",
    "Session": "session",
    "SessionDetails": "session",
    "SessionReason": "session",
    "OtplessSessions": "sessions",
    "OtplessSettings": "settings",
    "SessionStore": "stores",
    "open_store": "stores",
}
"""Which module each name is from."""


if not TYPE_CHECKING:  # to which a module with this has whatever somebody misspells

    def __getattr__(name: str) -> Any:
        """Load a public name (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
