"""What `override_session` puts in the middleware's place: every request carries one session, and nobody is asked."""

# ruff: noqa: ARG002 - there is one session, whatever the token

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from typing import NoReturn

from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_otpless_session import ConfigurationError, OtplessSessions, OtplessSettings, Session, SessionDetails
from fastapi_otpless_session.binding import OtplessUser
from fastapi_otpless_session.connection import RequestSession, put_session
from fastapi_otpless_session.serving import keep_headers
from fastapi_otpless_session.session import SessionReason
from fastapi_otpless_session.sessions import SessionSummary
from fastapi_otpless_session.transport import Transport

TOKEN = "override.session.token"  # noqa: S105 - it opens nothing


class OverriddenSessions(OtplessSessions):
    """One session until it is ended, or the reason why there is none; neither store nor OTPLESS is asked."""

    def __init__(
        self, settings: OtplessSettings, outcome: Session | SessionReason, details: SessionDetails | None
    ) -> None:
        super().__init__(settings)
        self._outcome = outcome
        self._shown = details

    def at_once(self, token: str, *, known_only: bool = False) -> None:
        """Leave it to `resolved`."""

    async def resolved(
        self, token: str, *, known_only: bool = False, max_age: float | None = None, waited: float = 0.0
    ) -> Session | SessionReason:
        """Return the session, or the reason why there is none.

        A stale one is none where OTPLESS has to have said so within `max_age` seconds, however many: it is stale for
        want of an answer of OTPLESS's.
        """
        session = self._outcome
        is_wanting = max_age is not None and isinstance(session, Session) and session.stale
        return SessionReason.UNAVAILABLE if is_wanting else session

    async def details(self, session: Session) -> SessionDetails:
        """Return the session's details."""
        return self._shown or SessionDetails(session_id=session.id, user_id=session.user_id)

    async def list(self, user_id: str) -> builtins.list[SessionSummary]:
        """Return the session, where it is the user's."""
        session = self._of(user_id)
        return [_summary(session)] if session is not None else []

    async def end(self, session_id: str, *, user_id: str | None = None) -> bool:
        """End the session, where it is this one."""
        session = self._of(user_id)
        if session is None or session.id != session_id:
            return False
        self._outcome = SessionReason.REVOKED
        return True

    async def end_others(self, user_id: str, session_id: str) -> int:
        """End the session, where it is the user's and not that one."""
        return sum([await self.end(one.id) for one in await self.list(user_id) if one.id != session_id])

    async def end_all(self, user_id: str) -> int:
        """End the session, where it is the user's."""
        return sum([await self.end(one.id) for one in await self.list(user_id)])

    async def sign_out(self, token: str, *, known_only: bool = False) -> None:
        """End the session."""
        if isinstance(self._outcome, Session):
            await self.end(self._outcome.id)

    async def sign_in(
        self, user: OtplessUser | Mapping[str, object], *, fits: Callable[[str, float], None] | None = None
    ) -> NoReturn:
        """Raise `ConfigurationError`: who it is, only OTPLESS or the emulator can say."""
        raise ConfigurationError(
            "override_session signs nobody in: there is no OTPLESS that could be asked. "
            "For tests of signing in there is use_emulator(app), and the fixture otpless_emulator."
        )

    def _of(self, user_id: str | None) -> Session | None:
        session = self._outcome
        return session if isinstance(session, Session) and user_id in {None, session.user_id} else None


class OverridingMiddleware:
    """Gives each request the one session, whatever it carries."""

    def __init__(self, app: ASGIApp, *, sessions: OtplessSessions) -> None:
        self.app = app
        self._sessions = sessions
        self._transport = Transport(sessions.settings)
        self._credentials = {b"authorization", b"cookie", sessions.settings.header_name.lower().encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note the session, and pass all on as it is."""
        if scope["type"] in {"http", "websocket"}:
            keep_headers(scope)
            others = [(name, value) for name, value in scope["headers"] if name not in self._credentials]
            put_session(RequestSession(self._sessions, self._transport, {**scope, "headers": others}, (TOKEN,)), scope)
        await self.app(scope, receive, send)


def _summary(session: Session) -> SessionSummary:
    return SessionSummary(
        id=session.id,
        device=None,
        place=None,
        created_at=session.issued_at,
        last_seen_at=session.validated_at,
        expires_at=session.expires_at,
    )
