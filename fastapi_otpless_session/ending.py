"""Ending a session: here first, durably and for every worker, then at OTPLESS."""

from __future__ import annotations

import asyncio
from collections.abc import KeysView
from math import inf

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.errors import NoVerdictError, StoreError
from fastapi_otpless_session.hooks import SignOutReason
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.refresh import ended_reason
from fastapi_otpless_session.session import SessionReason
from fastapi_otpless_session.stores.base import EndReason, SessionRow, State

REMEMBERED = 10_000
WRITTEN_AT_ONCE = 100

WHY = {
    EndReason.REVOKED: SignOutReason.SIGNED_OUT,
    EndReason.EXPIRED: SignOutReason.EXPIRED,
    EndReason.REUSED: SignOutReason.REUSED,
}


class Endings:
    """Ends sessions, and remembers in this worker which have ended, for when the store cannot be read."""

    def __init__(self, core: Core) -> None:
        self._store = core.store
        self._events = core.events
        self._outbox = core.outbox
        self._background = core.background
        self._patience = core.settings.request_timeout
        self._monotonic = core.monotonic
        self._known: Lru[str, tuple[SessionReason, float]] = Lru(REMEMBERED)
        """By session: why it ended, and when this worker first knew."""
        self._forgotten_until = -inf
        """When this worker first knew of the latest ending that it remembers no more."""
        self._signed_out: Lru[bytes, bool] = Lru(REMEMBERED)
        self._unwritten: Lru[str, SessionRow] = Lru(REMEMBERED)
        self.over: KeysView[str] = self._known.keys
        """The ids of the sessions that this worker knows to have ended."""
        self.signed_out: KeysView[bytes] = self._signed_out.keys
        """The digests of tokens that were signed out in this worker while the store could not take note of it."""

    def reason(self, session_id: str) -> SessionReason | None:
        """Return why a session ended, if this worker knows that it has."""
        known = self._known.get(session_id)
        return None if known is None else known[0]

    def note(self, session_id: str, reason: SessionReason) -> None:
        """Remember that a session has ended."""
        _, since = self._known.get(session_id) or (reason, self._monotonic())
        forgotten = self._known.put(session_id, (reason, since))
        if forgotten is not None:
            self._forgotten_until = max(self._forgotten_until, forgotten[1])

    def may_have_forgotten(self, seen_at: float) -> bool:
        """Whether a session that was last seen to go on at `seen_at`, by the worker's clock, may have ended since.

        Of so many that ended the first are forgotten. Whoever was seen after the last of those is none of them.
        """
        return seen_at <= self._forgotten_until

    def forget_expiry(self, session_id: str) -> None:
        """Forget that a session expired here: it was signed in again. One that was signed out stays so."""
        if self.reason(session_id) is SessionReason.EXPIRED:
            self._known.drop(session_id)

    async def note_signed_out(self, digest: bytes, row: SessionRow) -> None:
        """Remember a token that was signed out without the store, and its session, to be written when it can be."""
        was_active = row.session_id not in self.over
        self._signed_out.put(digest, True)
        self._unwritten.put(row.session_id, row)
        self.note(row.session_id, SessionReason.REVOKED)
        if was_active:
            await self._events.signed_out(row, SignOutReason.SIGNED_OUT)

    async def write_noted(self) -> None:
        """End in the store what was signed out while it could not take note; what still fails, another time."""
        await asyncio.gather(*(self._write(row) for _, row in self._unwritten.items()[:WRITTEN_AT_ONCE]))

    async def write_all_noted(self) -> None:
        """Write until none is left, or a round writes nothing: the rest is lost with the process."""
        left, before = len(self._unwritten.keys), 0
        while 0 < left != before:
            await self.write_noted()
            left, before = len(self._unwritten.keys), left
        if left:
            telemetry.logger.error("Not ended: %s signed-out sessions, which the store could not take note of", left)

    async def _write(self, row: SessionRow) -> None:
        """Write one. OTPLESS was told already."""
        try:
            await self._store.end(row, EndReason.REVOKED, revoke_in=None)
        except StoreError as error:
            telemetry.logger.warning("Not ended yet: %s", error)
            self._unwritten.put(row.session_id, row)  # behind the others, which may fare better
        else:
            self._unwritten.drop(row.session_id)

    async def end(
        self,
        row: SessionRow,
        reason: EndReason,
        why: SignOutReason | None = None,
        *,
        renewed: SessionRow | None = None,
    ) -> None:
        """End a row, then tell OTPLESS; where that takes long or fails, the outbox goes on. Raises `NoVerdictError`.

        `renewed` has a token of the session's that its row does not have; see `Outbox.take_over`.
        """
        ended = await self._background.finish(lambda: self._end(row, reason, why or WHY[reason], renewed))
        if ended.revocation_due is None:
            return
        try:
            await self._background.share(("tell", row.session_id), lambda: self._outbox.tell(ended), self._patience)
        except NoVerdictError:
            telemetry.logger.info("Revocation goes on behind the request")

    async def _end(
        self, row: SessionRow, reason: EndReason, why: SignOutReason, renewed: SessionRow | None
    ) -> SessionRow:
        revoke_in = 2 * self._patience
        ended = await self._store.end(row, reason, revoke_in=revoke_in)
        was_active = row.state is State.ACTIVE and row.session_id not in self.over
        self.note(row.session_id, ended_reason(ended))
        if was_active and ended.end_reason is reason:
            telemetry.logger.info("Ended (%s): %s", reason.value, telemetry.session_label(row.session_id))
            await self._events.signed_out(ended, why)
        return ended if renewed is None else await self._outbox.take_over(ended, renewed, revoke_in)

    async def end_refused(self, row: SessionRow, reason: EndReason, why: SignOutReason | None = None) -> None:
        """End a row whose session is refused anyway, whether that can be written now or not."""
        try:
            await self.end(row, reason, why)
        except NoVerdictError as error:
            telemetry.logger.warning("Not ended yet: %s", error)
