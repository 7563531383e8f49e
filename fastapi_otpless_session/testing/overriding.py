"""A session without OTPLESS or store, for the tests of an application's routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI
from pydantic import SecretStr
from starlette.middleware import Middleware

from fastapi_otpless_session import (
    Identity,
    OtplessSessionMiddleware,
    Session,
    SessionDetails,
    SessionReason,
    current_session,
    current_session_details,
    fresh_session,
    optional_session,
    otpless_sessions,
)
from fastapi_otpless_session.dependencies import made_by_fresh_within
from fastapi_otpless_session.emulator import EmulatorSettings
from fastapi_otpless_session.testing.overridden import TOKEN, OverriddenSessions, OverridingMiddleware
from fastapi_otpless_session.testing.places import applications, places, replaced
from fastapi_otpless_session.testing.settings import settings_for_tests
from fastapi_otpless_session.tokens import FrozenClaims

DAY = 86_400.0
DEPENDENCIES: tuple[Callable[..., Any], ...] = (
    current_session,
    current_session_details,
    fresh_session,
    optional_session,
    otpless_sessions,
)


@contextmanager
def override_session(
    app: FastAPI,
    user_id: str | None = "MO-1",
    *,
    session_id: str = "test-session",
    name: str | None = None,
    email: str | None = None,
    mobile: str | None = None,
    claims: Mapping[str, Any] | None = None,
    expires_in: float = DAY,
    refreshed: bool = False,
    stale: bool = False,
    details: SessionDetails | None = None,
    reason: SessionReason | str = SessionReason.MISSING,
) -> Iterator[Session | None]:
    """Let every request to an application have this session, whatever it carries.

        with override_session(app, user_id="MO-1") as session:
            assert client.get("/orders").status_code == 200

    All dependencies, `request.state.otpless` and the router's routes show it, also in what is mounted. A sign-out, also
    through `Sessions`, holds for everybody until the block ends. Signing in, swapped tokens and `REQUIRED_PATHS` need
    `use_emulator` instead: the middleware is taken off meanwhile, wherever it is. `user_id=None`: nobody is signed in,
    for `reason`, such as `"expired"`. `expires_in` is in seconds from now, and may be negative. `details` are made of
    `mobile` and `email` unless given. Afterwards all is as before.

    Raises TypeError for what is not the FastAPI application itself, ValueError for an empty `user_id`, a `reason`
    that is none, or a time that no calendar holds.
    """
    if not isinstance(app, FastAPI):
        raise TypeError(f"override_session wants the FastAPI application itself, not {type(app).__name__}")
    if user_id == "":
        raise ValueError("user_id must not be empty; None: nobody is signed in")
    reason = SessionReason(reason)
    session = None
    if user_id is not None:
        now = datetime.now(UTC)
        expires_at = _after(now, expires_in)
        session = Session(
            id=session_id,
            user_id=user_id,
            name=name,
            email=email,
            issued_at=min(now, expires_at),
            expires_at=expires_at,
            validated_at=now,
            refreshed=refreshed,
            stale=stale,
            claims=FrozenClaims(claims or {}),  # as the middleware's are
            token=SecretStr(TOKEN),
        )
        details = details or _details(session, mobile)
    with _shown(app, reason if session is None else session, details):
        yield session


@contextmanager
def _shown(app: FastAPI, outcome: Session | SessionReason, details: SessionDetails | None) -> Iterator[None]:
    """Have whatever asks for a session get this one, or the reason why there is none."""
    found = places(app, (OtplessSessionMiddleware, OverridingMiddleware))  # the latter where one block is in another
    own = next((place.settings for place in found if place.settings is not None), None)
    sessions = OverriddenSessions(settings_for_tests(own, EmulatorSettings(), {}), outcome, details)
    with ExitStack() as stack:
        stack.enter_context(replaced(app, found, Middleware(OverridingMiddleware, sessions=sessions)))
        for each in applications(app):
            if isinstance(each, FastAPI):
                stack.enter_context(_own_dependencies(each))
        yield


@contextmanager
def _own_dependencies(app: FastAPI) -> Iterator[None]:
    """Take off what a test or a fixture has put in place of our dependencies."""
    before = dict(app.dependency_overrides)
    for dependency in (*DEPENDENCIES, *made_by_fresh_within.values()):
        app.dependency_overrides.pop(dependency, None)
    try:
        yield
    finally:
        app.dependency_overrides.clear()
        app.dependency_overrides.update(before)


def _after(now: datetime, seconds: float) -> datetime:
    try:
        return now + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        raise ValueError(f"expires_in must lead to a time from the year 1 to 9999, not {seconds!r}") from None


def _details(session: Session, mobile: str | None) -> SessionDetails:
    known = {"MOBILE": mobile, "EMAIL": session.email}
    return SessionDetails(
        session_id=session.id,
        user_id=session.user_id,
        started_at=session.issued_at,
        last_active_at=session.validated_at,
        identities=tuple(
            Identity(identity_type=kind, identity_value=value, name=session.name, verified=True)
            for kind, value in known.items()
            if value
        ),
    )
