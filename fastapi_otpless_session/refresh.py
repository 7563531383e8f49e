"""The refresh protocol: for many tabs, workers and hosts, OTPLESS is asked once, and nobody is signed out by a race.

Lease by compare-and-swap, call once, check the answer, commit by compare-and-swap on the lease's fence, update only:

    row active ── take_lease ──► leased ── get-new-session-token ──► commit ──► next generation
                     │ held            │ no verdict: release            │ ended meanwhile: revoke the new pair
                     ▼                 ▼                                ▼
               wait, re-read     NoVerdictError                   the row's reason

A refusal ends the row; but not of a refresh ahead, which nobody needs yet: that gives the lease back.

Three things see to it that one does it for all. Requests of a worker that bring the same dead token share one look at
its row (`Resolver`), since a herd of hundreds must not read it hundreds of times. What they and the session's other
tokens need is one refresh a worker, in a task that no request's end cancels (`Judge`). The lease keeps workers apart.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.errors import NoVerdictError, StoreError, UpstreamError
from fastapi_otpless_session.hooks import SignOutReason
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.session import Session, SessionReason, is_over
from fastapi_otpless_session.stores.base import LEASES_AHEAD, EndReason, Lease, Rotation, SessionRow, State
from fastapi_otpless_session.tokens import UnreadableError
from fastapi_otpless_session.vault import check_life, check_pair
from fastapi_otpless_session.wire import TokenPair

LEASE_FACTOR = 1.5
FIRST_PAUSE = 0.02
LONGEST_PAUSE = 0.5
LONGEST_COMMIT_PAUSE = 1.0
"""Once the store is back, whoever has a pair to commit is to be there before another worker takes the lapsed lease.

That one gives it `outage.RESERVE_SECONDS`.
"""
PAUSE_IN_VAIN = 5.0
REMEMBERED = 10_000
COMMIT_TRIES = 5000
UNAVAILABLE = SessionReason.UNAVAILABLE.value

END_REASONS = {
    EndReason.REVOKED: SessionReason.REVOKED,
    EndReason.EXPIRED: SessionReason.EXPIRED,
    EndReason.REUSED: SessionReason.REVOKED,
}


class RefusedAheadError(NoVerdictError):
    """OTPLESS refuses a refresh that nobody needs yet: the session goes on for as long as its token does."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A session's newest token. `committed`: it is in the store, so that it may be handed out."""

    row: SessionRow
    token: str = field(repr=False)
    committed: bool = True


def ended_reason(row: SessionRow | None) -> SessionReason:
    """Say why there is no session where a row is gone or has ended."""
    if row is None or row.end_reason is None:
        return SessionReason.EXPIRED
    return END_REASONS[row.end_reason]


class Refresher:
    """Refreshes sessions, each once at a time in a process, and once among all workers."""

    def __init__(self, core: Core) -> None:
        self._store = core.store
        self._client = core.client
        self._vault = core.vault
        self._outbox = core.outbox
        self._events = core.events
        self._timeout = core.settings.refresh_timeout
        self._lease_seconds = core.settings.refresh_timeout * LEASE_FACTOR
        self._monotonic = core.monotonic
        self._outages = core.outages
        self._behind = core.background.detach
        self._room = PerLoop(lambda: asyncio.Semaphore(core.settings.max_upstream))
        self._pending: dict[str, _Rotated] = {}
        self._in_vain: Lru[str, float] = Lru(REMEMBERED)
        """When a session's new token was over as it came. Nothing else would keep each request from asking again."""

    async def refresh(self, row: SessionRow, *, ahead: bool = False) -> Refreshed | SessionReason:
        """Return the session's next token, or why there is none; `INVALID`: the row cannot be read here.

        Raises `NoVerdictError`; and `RefusedAheadError` where OTPLESS refuses while its token is still good (`ahead`).

        Meant to run once a session in a process, in a task of its own.
        """
        gives_up_at = self._monotonic() + self._timeout
        for pause in _pauses():
            outcome = await self._attempt(row, gives_up_at, ahead)
            if isinstance(outcome, _Held):
                if self._monotonic() + pause > gives_up_at:
                    break
                await asyncio.sleep(pause)
                outcome = await self._looked_at(outcome.row)
            if isinstance(outcome, SessionRow):
                row = outcome
            elif isinstance(outcome, _Held):
                row = outcome.row
            else:
                return outcome
        telemetry.refreshes.add(1, telemetry.labels(role="follower", outcome=UNAVAILABLE))
        raise NoVerdictError("another worker's refresh of this session takes too long")

    async def _attempt(
        self, row: SessionRow, gives_up_at: float, ahead: bool
    ) -> Refreshed | SessionReason | SessionRow | _Held:
        """Refresh once. A row: it moved on, and is to be tried anew."""
        pending = self._pending.get(row.session_id)
        if pending is not None:
            return await self._attempt_with(pending, row)
        if self._monotonic() - (self._in_vain.get(row.session_id) or -inf) < PAUSE_IN_VAIN:
            raise NoVerdictError("the last new token of this session was over as it came; a clock may be wrong")
        if not await self._is_to_be_had(row):
            return _Held(row)
        led = await self._try_to_lead(row, gives_up_at, ahead)
        return await self._looked_at(row) if led is None else _to_be_refreshed(led) or led

    async def _looked_at(self, row: SessionRow) -> Refreshed | SessionReason | SessionRow | _Held:
        """Look what another worker made of a session. A row: it is to be tried anew."""
        there = await self._outages.read(self._store.get(row.session_id))
        theirs = self._theirs(row, there)
        if theirs is None:
            return _Held(there or row)
        newer = _to_be_refreshed(theirs)
        if newer is None:
            telemetry.refreshes.add(1, telemetry.labels(role="follower", outcome=named(theirs)))
        return newer or theirs

    async def _attempt_with(self, pending: _Rotated, row: SessionRow) -> Refreshed | SessionReason | SessionRow | _Held:
        """Refresh by a pair that was put off. It may have expired, or be the very one that is to be refreshed."""
        try:
            kept = await self._keep_pending(pending)
        except StoreError:
            raise
        except NoVerdictError:
            return _Held(row)
        if not isinstance(kept, Refreshed):
            return kept
        is_newer = (kept.row.created_at, kept.row.generation) > (row.created_at, row.generation)
        return kept if is_newer and not is_over(kept.row.token_expires_at, await self._store.now()) else kept.row

    async def _try_to_lead(
        self, row: SessionRow, gives_up_at: float, ahead: bool
    ) -> Refreshed | SessionReason | SessionRow | None:
        """Refresh if the lease can be had; None: somebody else has it. A row: it moved on, and is to be tried anew.

        In a crowd the others wait before they take a lease: behind one it would lapse, and the first would not be done
        before the last have theirs.
        """
        async with self._room.there() or await self._room.get():
            if self._monotonic() > gives_up_at:
                raise NoVerdictError("too many refreshes are under way")
            asked_at = self._monotonic()
            lease = await self._take_lease(row)
            if lease is None:
                return None
            if self._monotonic() - asked_at > self._lease_seconds / 2:
                # Another's, which was held when this one was asked for, may have lapsed while all was held up: that one
                # goes first (`_is_to_be_had`). To be given back is not enough.
                await self._store.renew_lease(lease, 0)
                return None
            pending = self._pending.get(row.session_id)
            if pending is None:
                return await self._lead(row, lease, ahead)
            # Of another event loop's, put off meanwhile. What it came for is used up.
            await self._release(lease, answer_lost=False)
            return row

    async def _is_to_be_had(self, row: SessionRow) -> bool:
        """Whether to try for a lease: not where it is held, nor where its holder may be about to commit a new pair."""
        if not row.lease_until:  # as a rule; or else it was not given back
            return True
        now = await self._outages.read(self._store.now())
        if row.lease_until > now:
            return row.lease_until > now + LEASES_AHEAD * self._lease_seconds  # the clock was set back
        await self._outages.write(self._store.touch(row.session_id, row.generation, validated=False))  # or is it away?
        return not self._outages.spare(self._monotonic() - (now - row.lease_until))

    async def _take_lease(self, row: SessionRow) -> Lease | None:
        owner = secrets.token_hex(16)
        taking = self._store.take_lease(row.session_id, row.generation, owner, self._lease_seconds)
        return await self._outages.write(taking)

    def _theirs(self, before: SessionRow, row: SessionRow | None) -> Refreshed | SessionReason | None:
        """Return what another worker made of the session, or None where it is still at it."""
        if row is None or row.state is State.ENDED:
            return ended_reason(row)
        if row.generation == before.generation and row.created_at == before.created_at:
            return None
        return self._current(row)

    def _current(self, row: SessionRow) -> Refreshed | SessionReason:
        try:
            return Refreshed(row, self._vault.session_token(row))
        except UnreadableError:
            return SessionReason.INVALID

    async def _lead(self, row: SessionRow, lease: Lease, ahead: bool) -> Refreshed | SessionReason | SessionRow:
        label = telemetry.session_label(row.session_id)
        with telemetry.span("otpless.refresh", {"otpless.session": label}) as span:
            try:
                outcome = await self._exchange(row, lease, ahead)
            except NoVerdictError as error:
                telemetry.refreshes.add(1, telemetry.labels(role="leader", outcome=_named_error(error)))
                raise
            if isinstance(outcome, SessionRow):
                return outcome
            span.set_attribute("otpless.outcome", named(outcome))
        telemetry.refreshes.add(1, telemetry.labels(role="leader", outcome=named(outcome)))
        telemetry.logger.info("Refresh of %s: %s", label, named(outcome))
        return outcome

    async def _exchange(self, row: SessionRow, lease: Lease, ahead: bool) -> Refreshed | SessionReason | SessionRow:
        try:
            refresh_token = self._vault.refresh_token(row)
        except UnreadableError:
            telemetry.logger.warning(
                "None of OTPLESS_ENCRYPTION_KEYS opens the row of %s, which cannot be refreshed here",
                telemetry.session_label(row.session_id),
            )
            await self._store.release_lease(lease, answer_lost=False)
            return SessionReason.INVALID
        held, now = await self._with_time_left(lease)
        asked_at = self._monotonic()
        try:
            answer = await self._client.new_session_token(refresh_token)
            now += self._monotonic() - asked_at  # not by asking the store: it may be down, and the pair lost with it
            new = self._checked(row, held, answer, now, refresh_token) if isinstance(answer, TokenPair) else None
        except UpstreamError as error:
            await self._release(held, answer_lost=not error.unsent)
            raise
        if new is None:
            return await self._refused(row, held, ahead)
        kept = await self._keep(new)
        if isinstance(kept, Refreshed) and is_over(new.rotation.token_expires_at, now):
            self._in_vain.put(row.session_id, self._monotonic())
            raise NoVerdictError("the new token of this session is over as it comes; a clock may be wrong")
        return kept

    def _checked(self, row: SessionRow, lease: Lease, pair: TokenPair, now: float, used: str) -> _Rotated:
        """Return what is to be committed of a new pair. Raises `UpstreamError`: that pair is nothing to keep.

        A session token that is over by the store's clock is kept all the same with another refresh token than the one
        that was `used`: OTPLESS may not take that again.
        """
        claims, refresh_claims = check_pair(pair, row.session_id, row.user_id)
        try:
            check_life(claims.expires_at if pair.refresh_token == used else refresh_claims.expires_at, now)
        except UpstreamError:
            self._in_vain.put(row.session_id, self._monotonic())
            raise
        return _Rotated(row, lease, pair, self._vault.rotation(pair, claims, refresh_claims, now))

    async def _with_time_left(self, lease: Lease) -> tuple[Lease, float]:
        """Make sure that the lease outlives the call that is about to be made. Return it, and the store's time."""
        now = await self._store.now()
        if self._timeout <= lease.until - now <= self._lease_seconds:  # more: the clock was set back, and says nothing
            return lease, now
        renewed = await self._store.renew_lease(lease, self._lease_seconds)
        if renewed is None:
            raise NoVerdictError("the lease was lost before the call")
        return renewed, renewed.until - self._lease_seconds

    async def _release(self, lease: Lease, *, answer_lost: bool) -> None:
        try:
            await self._store.release_lease(lease, answer_lost=answer_lost)
        except StoreError as error:  # then it lapses by itself
            telemetry.logger.warning("Lease of %s: %s", telemetry.session_label(lease.session_id), error)

    async def _refused(self, row: SessionRow, lease: Lease, ahead: bool) -> Refreshed | SessionReason | SessionRow:
        """OTPLESS refused the refresh token: the session is over, unless somebody else was faster.

        Or, `ahead`, its token may be good for long.
        """
        if ahead:
            await self._release(lease, answer_lost=False)
            raise RefusedAheadError("OTPLESS refuses a refresh that nobody needs yet")
        if lease.follows_lost_answer:
            telemetry.logger.warning("refresh_answer_lost: %s", telemetry.session_label(row.session_id))
        ended = await self._store.end(row, EndReason.EXPIRED, revoke_in=None, fence=lease.fence)
        if ended.state is State.ENDED:
            if ended.end_reason is EndReason.EXPIRED:
                await self._events.signed_out(ended, SignOutReason.EXPIRED, waits=False)
            return ended_reason(ended)
        return self._theirs(row, ended) or ended

    async def _keep(self, new: _Rotated) -> Refreshed | SessionReason:
        """Commit a new pair. What cannot be now is put off, and tried behind the request.

        Where it is the store that fails, the request is served with it. Not where the store has refused it: then the
        session may have ended.
        """
        try:
            committed = await self._outages.write(self._store.commit(new.lease, new.rotation))
        except StoreError as error:
            await self._put_off(new, error)
            expires_at, answered_at = new.rotation.token_expires_at, new.rotation.answered_at
            kept = replace(new.row, token_expires_at=expires_at, validated_at=answered_at)
            return Refreshed(kept, new.pair.session_token, committed=False)
        try:
            return await self._kept(new, committed)
        except NoVerdictError as error:
            await self._put_off(new, error)
            raise

    async def _put_off(self, new: _Rotated, error: NoVerdictError) -> None:
        label = telemetry.session_label(new.row.session_id)
        telemetry.logger.warning("Commit for %s put off: %s", label, error)
        self._pending[new.row.session_id] = new
        await self._behind(("commit", new.row.session_id, new.lease.fence), lambda: self._keep_later(new))

    async def _keep_later(self, new: _Rotated) -> None:
        """Keep the lease, and try the commit until there is an answer, or the application stops."""
        label = telemetry.session_label(new.row.session_id)
        try:
            for pause in islice(_pauses(LONGEST_COMMIT_PAUSE), COMMIT_TRIES):
                await asyncio.sleep(pause)
                if self._pending.get(new.row.session_id) is not new:
                    return  # the next refresh saw to it
                with suppress(NoVerdictError):
                    await self._store.renew_lease(new.lease, self._lease_seconds)
                    await self._keep_pending(new)
                    return
        except asyncio.CancelledError:
            telemetry.logger.error("Commit for %s: its new pair is lost, as the application stops", label)
            raise
        telemetry.logger.error("Commit for %s: given up until its next refresh", label)

    async def _keep_pending(self, new: _Rotated) -> Refreshed | SessionReason:
        """Commit a pair whose commit was put off. Raises `NoVerdictError`; then it stays put off."""
        outcome = await self._kept(new, await self._outages.write(self._store.commit(new.lease, new.rotation)))
        if self._pending.get(new.row.session_id) is new:
            self._pending.pop(new.row.session_id, None)
        return outcome

    async def _kept(self, new: _Rotated, committed: SessionRow | None) -> Refreshed | SessionReason:
        """Say what came of a commit. A refused fence: the session ended meanwhile, or somebody else has the lease.

        Raises `StoreError`, and `NoVerdictError` where another worker may yet come to something.
        """
        if committed is None:
            outcome = self._theirs(new.row, await self._store.get(new.row.session_id))
            if outcome is not None:
                await self._behind(("discard", new.row.session_id, new.lease.fence), lambda: self._discard(new))
                return outcome
            committed = await self._commit_anew(new)
        await self._events.refreshed(committed)
        return Refreshed(committed, new.pair.session_token)

    async def _commit_anew(self, new: _Rotated) -> SessionRow:
        """Commit a pair with another lease than the one that was lost, where nobody came to anything since.

        The refresh token that it came for may be used up: then nothing but this pair keeps the session alive.
        """
        lease = await self._take_lease(new.row)
        if lease is None:
            raise NoVerdictError("the lease was lost during the call")
        try:
            committed = await self._store.commit(lease, new.rotation)
        except StoreError:
            await self._release(lease, answer_lost=False)
            raise
        if committed is None:
            raise NoVerdictError("the lease was lost once more")
        return committed

    async def _discard(self, new: _Rotated) -> None:
        """Revoke a pair that came too late, where its session ended; try until the store says whether it did."""
        for pause in islice(_pauses(LONGEST_COMMIT_PAUSE), COMMIT_TRIES):
            try:
                row = await self._store.get(new.row.session_id)
                if row is None:
                    await self._client.revoke_session(new.pair.session_token)
                elif row.state is State.ENDED and row.generation == new.row.generation:  # else there was a newer pair
                    await self._outbox.revoke_pair(row, new.pair)
            except NoVerdictError:
                await asyncio.sleep(pause)
            else:
                return
        label = telemetry.session_label(new.row.session_id)
        telemetry.logger.error("A new pair of %s came too late, and is not revoked", label)


def _to_be_refreshed(outcome: Refreshed | SessionReason | SessionRow | None) -> SessionRow | None:
    """Return the row to try anew with: it moved on, or its new token had expired when it was committed at last."""
    match outcome:
        case SessionRow():
            return outcome
        case Refreshed(row=row) if is_over(row.token_expires_at, row.rotated_at):
            return row
        case _:
            return None


@dataclass(frozen=True, slots=True)
class _Held:
    """Somebody else is at it, or may be; the row as it was read last."""

    row: SessionRow


@dataclass(frozen=True, slots=True)
class _Rotated:
    """A new pair that OTPLESS gave, to be committed under the lease it was asked for."""

    row: SessionRow
    lease: Lease
    pair: TokenPair
    rotation: Rotation


def _pauses(longest: float = LONGEST_PAUSE) -> Iterator[float]:
    """Growing, jittered pauses without end."""
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1)  # noqa: S311 - spreading load, not a secret
        pause = min(longest, pause * 1.5)


def named(outcome: Refreshed | Session | SessionReason) -> str:
    """Name what came of a refresh, for metrics, spans and log lines."""
    return outcome.value if isinstance(outcome, SessionReason) else "refreshed"


def _named_error(error: NoVerdictError) -> str:
    """Name what a refresh without an outcome came to, likewise."""
    return "refused_ahead" if isinstance(error, RefusedAheadError) else UNAVAILABLE
