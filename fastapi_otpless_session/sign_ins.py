"""Signing in: what the frontend SDK handed over is bound (`binding.py`), and stored, once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Literal

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.binding import Bound, OtplessUser, bind
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.current import Current
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, SignInRefusedError
from fastapi_otpless_session.session import Session, SessionReason, is_over
from fastapi_otpless_session.stores.base import EndReason, SessionRow, State
from fastapi_otpless_session.strangers import Strangers
from fastapi_otpless_session.tokens import UnreadableError
from fastapi_otpless_session.turns import Turns

PURGE_BATCH = 500
"""How many expired rows and digests are deleted in one transaction."""
PURGES_AT_ONCE = 20
"""How many batches of them a sign-in purges at most."""


class SignIns:
    """Signs people in."""

    def __init__(self, core: Core, *, strangers: Strangers, endings: Endings) -> None:
        self._store = core.store
        self._client = core.client
        self._vault = core.vault
        self._strangers = strangers
        self._duties = core.duties
        self._endings = endings
        self._events = core.events
        self._settings = core.settings
        self._turns = Turns()
        self._patience = core.settings.refresh_timeout + core.settings.request_timeout

    async def sign_in(self, user: OtplessUser, fits: Callable[[str, float], None] | None) -> Session:
        """Bind, store and count a sign-in; see `OtplessSessions.sign_in`."""
        with telemetry.span("otpless.sign_in") as span:
            try:
                session, outcome = await self._sign_in(user, fits)
            except BaseException as error:
                telemetry.sign_ins.add(1, telemetry.labels(outcome=telemetry.outcome_of(error)))
                if isinstance(error, SignInRefusedError):
                    telemetry.logger.warning("Sign-in refused: %s", error.why or error.message)
                raise
            span.set_attribute("otpless.outcome", outcome)
        telemetry.sign_ins.add(1, telemetry.labels(outcome=outcome))
        return session

    async def _sign_in(
        self, user: OtplessUser, fits: Callable[[str, float], None] | None
    ) -> tuple[Session, Literal["signed_in", "again"]]:
        now = await self._store.now()
        async with AsyncExitStack() as turn:
            bound = await bind(self._client, self._settings, user, now, partial(self._is_stored, turn))
            if fits is not None:
                fits(bound.pair.session_token, bound.expires_at - now)
            row = self._new_row(bound, now)
            there = await self._stored(row, bound)
        self._strangers.forget(self._vault.digest(bound.pair.session_token))
        if there is None:
            self._endings.forget_expiry(row.session_id)
            telemetry.logger.info("Signed in: %s", telemetry.session_label(row.session_id))
            await self._events.signed_in(row)
            return Current(row, bound.pair.session_token, bound.claims, now, row.validated_at).session(), "signed_in"
        session = await self._signed_in_before(there, bound, now)
        if fits is not None:
            fits(session.token.get_secret_value(), there.expires_at - now)
        return session, "again"

    async def _stored(self, row: SessionRow, bound: Bound) -> SessionRow | None:
        """Store a first row, or return the one that was there. One that has expired gives way, as if purged already.

        All that has expired is purged for it: a digest that stayed would have an old token taken for the new one.
        Raises `NoVerdictError`, also where that is too much at once.
        """
        digests = self._vault.digest(bound.pair.session_token), self._vault.digest(bound.brought)
        there = await self._store.create(row, *digests)
        if not _has_expired(there, row.created_at):
            return there
        for _ in range(PURGES_AT_ONCE):
            if await self._store.purge(PURGE_BATCH) < PURGE_BATCH:
                there = await self._store.create(row, *digests)
                break
        if _has_expired(there, row.created_at):
            raise NoVerdictError("the session's row of before has expired, and is yet to be deleted")
        return there

    async def _signed_in_before(self, row: SessionRow, bound: Bound, now: float) -> Session:
        """Return the session of a sign-in that is repeated. Raises `SignInRefusedError` where it is over."""
        if row.state is State.ENDED or row.user_id != bound.user_id:
            raise SignInRefusedError(why="the session was signed out or ended before, or is another user's")
        if self._endings.reason(row.session_id) is SessionReason.REVOKED:
            raise SignInRefusedError(why="the session was signed out while the store could not take note")
        if self._duties.is_to_end(row, now):
            await self._endings.end_refused(row, EndReason.EXPIRED)
            raise SignInRefusedError(why="the session is over by IDLE_TIMEOUT or ABSOLUTE_TIMEOUT")
        try:
            token = self._vault.session_token(row)
        except UnreadableError:
            raise SignInRefusedError(why="the session is here already, sealed with a key that is not set") from None
        return Current(row, token, tokens.read_claims(token), now, row.validated_at).session()

    async def _is_stored(self, turn: AsyncExitStack, refresh_token: str, session_id: str) -> bool:
        """Whether a session was signed in with this refresh token before, and goes on.

        One sign-in after the other finds out until it is stored, in this worker: a page that sends the same twice would
        use the token up twice, for which OTPLESS may end the session.
        """
        digest = self._vault.digest(refresh_token)
        await turn.enter_async_context(self._turns.wait(digest, self._patience))
        found = await self._store.find(digest)
        if found is None or found.row.session_id != session_id:
            return False
        return found.row.state is State.ACTIVE and not _has_expired(found.row, found.now)

    def _new_row(self, bound: Bound, now: float) -> SessionRow:
        pair = bound.pair
        return SessionRow(
            session_id=pair.session_id,
            user_id=bound.user_id,
            rotated_at=now,
            session_token=self._vault.seal_session_token(pair.session_token, pair.session_id),
            token_expires_at=bound.claims.expires_at,
            refresh_token=self._vault.seal_refresh_token(pair.refresh_token, pair.session_id),
            validated_at=now,
            created_at=now,
            last_seen_at=now,
            expires_at=bound.expires_at,
            summary=bound.summary,
        )


def _has_expired(row: SessionRow | None, now: float) -> bool:
    """Whether a row is there, though its session went on until its tokens had expired."""
    return row is not None and row.state is State.ACTIVE and is_over(row.expires_at, now)
