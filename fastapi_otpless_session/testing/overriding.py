"""A session without middleware, OTPLESS or store: FastAPI's dependency overrides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, WebSocketException
from pydantic import SecretStr
from starlette.requests import HTTPConnection

from fastapi_otpless_session import (
    Identity,
    Session,
    SessionDetails,
    SessionReason,
    current_session,
    current_session_details,
    fresh_session,
    optional_session,
)
from fastapi_otpless_session.dependencies import made_by_fresh_within
from fastapi_otpless_session.errors import refusal
from fastapi_otpless_session.testing.places import without_middleware
from fastapi_otpless_session.websocket import DENIAL_EXTENSION, POLICY_VIOLATION

DAY = 86_400.0


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
    reason: SessionReason = SessionReason.MISSING,
) -> Iterator[Session | None]:
    """Let an application's session dependencies return this session, without looking at the request.

        with override_session(app, user_id="MO-1") as session:
            assert client.get("/orders").status_code == 200

    These are `current_session`, `optional_session`, `fresh_session`, each `fresh_within(…)` and
    `current_session_details`, with their aliases. The middleware is taken off meanwhile: what looks at
    `request.state.otpless`, the router, and `REQUIRED_PATHS` need `use_emulator` instead. `user_id=None`: nobody is
    signed in, for `reason`. `expires_in` is in seconds from now, and may be negative. `details` are made of `mobile`
    and `email` unless given. Afterwards all is as before.

    Raises TypeError for what is not the FastAPI application itself, ValueError for an empty `user_id` or a time that
    no calendar holds.
    """
    if not isinstance(app, FastAPI):
        raise TypeError(f"override_session wants the FastAPI application itself, not {type(app).__name__}")
    if user_id == "":
        raise ValueError("user_id must not be empty; None: nobody is signed in")
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
            claims=dict(claims or {}),
            token=SecretStr("override.session.token"),
        )
        details = details or _details(session, mobile)
    before = dict(app.dependency_overrides)
    app.dependency_overrides.update(_overrides(session, details, reason))
    try:
        with without_middleware(app):
            yield session
    finally:
        app.dependency_overrides.clear()
        app.dependency_overrides.update(before)


def _overrides(
    session: Session | None, details: SessionDetails | None, reason: SessionReason
) -> dict[Callable[..., Any], Callable[..., Any]]:
    async def required(connection: HTTPConnection) -> Session:
        if session is None:
            raise _refused(connection, reason)
        return session

    async def optional(connection: HTTPConnection) -> Session | None:
        if session is None and reason is SessionReason.CONFLICT:
            raise _refused(connection, reason)
        return session

    async def described(connection: HTTPConnection) -> SessionDetails:
        if session is None or details is None:
            raise _refused(connection, reason)
        return details

    return {
        **dict.fromkeys((current_session, fresh_session, *made_by_fresh_within.values()), required),
        optional_session: optional,
        current_session_details: described,
    }


def _refused(connection: HTTPConnection, reason: SessionReason) -> Exception:
    """Return what the dependencies raise: for a websocket a close, unless the server can send an HTTP answer."""
    if connection.scope["type"] == "websocket" and DENIAL_EXTENSION not in connection.scope.get("extensions", {}):
        return WebSocketException(POLICY_VIOLATION, reason.code)
    return refusal(reason)


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
