"""Every exception that an application is meant to catch, in one tree.

OtplessSessionError
├── ConfigurationError (also a ValueError)
│   └── MiddlewareMissingError
├── NoVerdictError                    a fault: it says nothing about anybody's session
│   ├── UpstreamError                 OTPLESS failed, was not reached, or made no sense
│   │   └── CredentialsRefusedError   OTPLESS refused *our* credentials or configuration
│   └── StoreError                    the session store failed or was not reached
└── RefusalError (also a fastapi.HTTPException)
    ├── SessionRefusedError           401: no session, or one that is over
    ├── ConflictingCredentialsError   400: several credentials that disagree
    ├── CrossSiteRequestError         403: a request from another site
    ├── SessionUnavailableError       503: no verdict now, try again
    ├── SignInRefusedError            401: what the frontend sent does not prove a sign-in
    ├── BodyRefusedError              413, 415, 422: the request's body
    ├── ChannelUnreadError            422: a sign-in on a channel that is not read
    ├── SessionNotFoundError          404: not one of this user's sessions
    └── CookieTooLargeError           500: browsers would drop the cookie
"""

from __future__ import annotations

import json
import random
from typing import TypeVar

from fastapi import HTTPException

from fastapi_otpless_session.session import SessionReason

E = TypeVar("E", bound=Exception)

RETRY_AFTER_SECONDS = (1, 5)

MESSAGES = {
    SessionReason.MISSING: "Sign in to continue.",
    SessionReason.INVALID: "The session token is not valid.",
    SessionReason.EXPIRED: "The session has expired. Sign in again.",
    SessionReason.REVOKED: "The session was signed out. Sign in again.",
    SessionReason.REUSED: "The session token was replaced long ago. Sign in again.",
    SessionReason.UNAVAILABLE: "Sessions cannot be checked right now. Try again shortly.",
    SessionReason.CONFLICT: "The request carries several credentials that disagree.",
    SessionReason.CROSS_SITE: "The request comes from another site.",
}


class OtplessSessionError(Exception):
    """The root of everything that this package raises on its own account."""


class ConfigurationError(OtplessSessionError, ValueError):
    """Settings, the store's address or the application's set-up are wrong; the text says what to write."""


class MiddlewareMissingError(ConfigurationError):
    """A dependency or the router ran in an application without `OtplessSessionMiddleware`."""

    def __init__(
        self,
        message: str = "OtplessSessionMiddleware is not installed on this application. "
        "Add it: app.add_middleware(OtplessSessionMiddleware)",
    ) -> None:
        super().__init__(message)


class NoVerdictError(OtplessSessionError):
    """A fault. It never signs anybody out, deletes anything or lets anybody in."""


class UpstreamError(NoVerdictError):
    """OTPLESS gave no usable answer.

    `retry_after`: the seconds that OTPLESS asked for, if it did. `unsent`: the request certainly never left, so OTPLESS
    cannot have acted on it. `healthy`: OTPLESS works; it only didn't like this call.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, unsent: bool = False, healthy: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.unsent = unsent
        self.healthy = healthy


class CredentialsRefusedError(UpstreamError):
    """OTPLESS refused our client id and secret, or the address is wrong: ours to mend, no user's fault."""


class StoreError(NoVerdictError):
    """The session store failed, timed out or could not be reached.

    `remedy`: what mends it, as a sentence, where that is known.
    """

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class _Detail(dict[str, str]):
    """What is told of a refusal. FastAPI sends it as JSON; Starlette sends text, and gets the same, encoded."""

    def encode(self, encoding: str) -> bytes:
        return json.dumps({"detail": self}).encode(encoding)


class RefusalError(OtplessSessionError, HTTPException):
    """An answer to the client: a status, headers, and a body `{"detail": {"code", "message"}}`."""

    def __init__(self, status_code: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        HTTPException.__init__(self, status_code, _Detail(code=code, message=message), headers)
        self.code = code
        self.message = message

    @property
    def body(self) -> dict[str, object]:
        """The JSON body that FastAPI's own exception handler would send."""
        return {"detail": self.detail}


class SessionRefusedError(RefusalError):
    """401 with `WWW-Authenticate` (RFC 6750, section 3)."""

    def __init__(self, reason: SessionReason) -> None:
        challenge = 'Bearer realm="otpless"'
        if reason is not SessionReason.MISSING:
            challenge += ', error="invalid_token"'
        super().__init__(401, reason.code, MESSAGES[reason], {"WWW-Authenticate": challenge})


class ConflictingCredentialsError(RefusalError):
    """400: two different session tokens, or a header or cookie name that occurs twice."""

    def __init__(self) -> None:
        reason = SessionReason.CONFLICT
        challenge = 'Bearer realm="otpless", error="invalid_request"'
        super().__init__(400, reason.code, MESSAGES[reason], {"WWW-Authenticate": challenge})


class CrossSiteRequestError(RefusalError):
    """403: the same-origin rule."""

    def __init__(self) -> None:
        super().__init__(403, SessionReason.CROSS_SITE.code, MESSAGES[SessionReason.CROSS_SITE])


class SessionUnavailableError(RefusalError):
    """503 with a jittered `Retry-After`, so that clients don't come back all at once."""

    def __init__(self) -> None:
        reason = SessionReason.UNAVAILABLE
        seconds = random.randint(*RETRY_AFTER_SECONDS)  # noqa: S311 - spreading load, not a secret
        super().__init__(503, reason.code, MESSAGES[reason], {"Retry-After": str(seconds)})


class SignInRefusedError(RefusalError):
    """401: OTPLESS or our own checks don't bear out what the frontend sent. Nothing was stored.

    `why` is for the log: whoever forges sign-ins is not to learn how far they get.
    """

    def __init__(self, *, why: str = "") -> None:
        message = "The sign-in could not be verified. Sign in again."
        super().__init__(401, "sign_in_refused", message, {"WWW-Authenticate": 'Bearer realm="otpless"'})
        self.why = why


class BodyRefusedError(RefusalError):
    """413, 415 or 422: the body is too large, not JSON, or not what the SDK's callback receives."""


class ChannelUnreadError(RefusalError):
    """422: a sign-in asks for its token on a channel that `TOKEN_SOURCES` leaves out."""

    def __init__(self, channel: str) -> None:
        super().__init__(422, "channel_unread", f"This application does not read session tokens from a {channel}.")


class SessionNotFoundError(RefusalError):
    """404: no session of this user has that id."""

    def __init__(self) -> None:
        super().__init__(404, "session_not_found", "No session of yours has this id.")


class CookieTooLargeError(RefusalError):
    """500: with its attributes the cookie exceeds 4096 bytes, which browsers drop without a word (RFC 6265)."""

    def __init__(self, size: int) -> None:
        super().__init__(
            500,
            "cookie_too_large",
            f"The session cookie would be {size} bytes long; browsers keep 4096 at most. "
            "Ask for fewer claims in the token, or sign in with ?channel=header.",
        )


def bare(error: E) -> E:
    """Return an error without the frames and the error that it comes from: their locals are answers and tokens."""
    error.__context__ = None
    return error.with_traceback(None)


def refusal(reason: SessionReason) -> RefusalError:
    """Return the exception that answers a client for `reason`."""
    match reason:
        case SessionReason.CONFLICT:
            return ConflictingCredentialsError()
        case SessionReason.CROSS_SITE:
            return CrossSiteRequestError()
        case SessionReason.UNAVAILABLE:
            return SessionUnavailableError()
        case _:
            return SessionRefusedError(reason)
