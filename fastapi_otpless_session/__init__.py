"""Keeps people signed in to a FastAPI application through OTPLESS, with the refresh token on the server.

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware)                  # settings from OTPLESS_* variables or .env
app.include_router(create_session_router(), prefix="/auth")   # sign in, sign out, who am I, my devices
"""

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
    "SessionNotFoundError",
    "SessionReason",
    "SessionRefusedError",
    "SessionStore",
    "SessionUnavailableError",
    "Sessions",
    "SignInRefusedError",
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
