"""From a token to a session: whose it is, whether it still counts, and one answer for all who bring a dead one.

Which generation of its session a token is, whether that still counts, and that the client was seen to have it (its
confirmation), is told here. Whether a session is good is for `judge.py` to say; tokens without a row are in
`strangers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.copies import Copies, Copy
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.current import Current, Resolved, claims_for
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, StoreError
from fastapi_otpless_session.flights import Question
from fastapi_otpless_session.judge import LANDING_SECONDS, Judge, count_coalesced
from fastapi_otpless_session.refresh import (
    UNAVAILABLE,
    Refresher,
    ended_reason,
    named,
)
from fastapi_otpless_session.session import Session, SessionReason, is_over
from fastapi_otpless_session.stores.base import (
    REFRESH_TOKEN,
    EndReason,
    Found,
    SessionRow,
    Standing,
    State,
    WatchfulStore,
)
from fastapi_otpless_session.strangers import Stranger, Strangers
from fastapi_otpless_session.telemetry import came_from
from fastapi_otpless_session.tokens import TOKEN_LIMIT, Claims

DIGESTS_REMEMBERED = 200


class _Query:
    """One question: a token, as it was presented `waited` seconds ago, and how recent OTPLESS's word has to be."""

    __slots__ = ("digest", "known_only", "max_age", "token", "waited")

    def __init__(self, token: str, digest: bytes, *, known_only: bool, max_age: float | None, waited: float) -> None:
        self.token: Final[str] = token
        self.digest: Final[bytes] = digest
        self.known_only: Final[bool] = known_only
        self.max_age: Final[float | None] = max_age
        self.waited: Final[float] = waited

    def __repr__(self) -> str:
        """Leave out the token: it is secret."""
        return f"_Query(known_only={self.known_only}, max_age={self.max_age})"


class Resolver:
    """Resolves tokens and rows."""

    def __init__(self, core: Core, *, refresher: Refresher, strangers: Strangers, endings: Endings) -> None:
        self._store = core.store
        # Most requests bring the token of one of the last. To look its digest up saves a twentieth of a bare route.
        self._digest = lru_cache(DIGESTS_REMEMBERED)(core.vault.digest)
        self._strangers = strangers
        self._endings = endings
        self._events = core.events
        self._background = core.background
        self._settings = core.settings
        self._monotonic = core.monotonic
        self._duties = core.duties
        self._outages = core.outages
        self._copies = Copies(core.duties)
        self._watchful = core.store if isinstance(core.store, WatchfulStore) else None
        self._has_quiet_time = core.settings.validation_ttl > 0
        self._store_ttl = core.settings.store_ttl
        self._patience = core.settings.refresh_timeout + LANDING_SECONDS
        self._judge = Judge(core, refresher=refresher, endings=endings, copies=self._copies, digest=self._digest)

    def at_once(self, token: str, *, known_only: bool) -> Copy | Stranger | None:
        """Return a session that may be served without waiting for anybody or writing; None: `resolve`.

        What is known by its digest was seen to have the shape of a token.
        """
        digest = self._digest(token) if self._has_quiet_time and len(token) <= TOKEN_LIMIT else None
        if digest is None or digest in self._endings.signed_out:
            return None
        copy = self._copies.get(digest)
        if copy is None:
            return None if known_only else self._stranger_at_once(digest)
        if copy.row.session_id in self._endings.over:
            return None
        at = self._monotonic()
        if copy.first_duty <= copy.offset + at:  # the store need not be asked, then
            return None
        if at - copy.at < self._store_ttl:
            return copy
        now = self._unchanged_at(digest, copy, at)
        return copy if now is not None and copy.is_quiet(now) else None

    def _stranger_at_once(self, digest: bytes) -> Stranger | None:
        stranger = self._strangers.at_once(digest)
        return None if stranger is None or stranger.session_id in self._endings.over else stranger

    def _unchanged_at(self, digest: bytes, copy: Copy, at: float) -> float | None:
        """Return the store's time if a row is as its copy has it, now at `at` by the worker's monotonic clock."""
        now = None if self._watchful is None else self._watchful.unchanged_at(digest, copy.row)
        if now is not None:
            copy.read_again(now, at)
        return now

    async def resolve(self, token: str, *, known_only: bool, max_age: float | None, waited: float) -> Resolved:
        """Return whom a token stands for, or why there is nobody. A fault is `UNAVAILABLE`."""
        if not tokens.is_token(token):
            return _counted(SessionReason.INVALID, "token")
        digest = self._digest(token)
        if digest in self._endings.signed_out:
            return _counted(SessionReason.REVOKED, "memory")
        outcome: Resolved | None = None
        source, copy = None, self._copies.get(digest)
        try:
            if copy is not None and self._is_believed(copy):
                outcome = await self._believed(token, digest, copy, max_age)
            elif copy is not None and max_age is None and (others := self._others(digest, copy)) is not None:
                source = "refresh"
                outcome = await self._overheard(others)
            if outcome is None:  # or OTPLESS says no; or the first of the others was cancelled
                query, source = (
                    _Query(token, digest, known_only=known_only, max_age=max_age, waited=max(0.0, waited)),
                    None,
                )
                outcome = await self._looked_up(query, self._copies.get(digest))
        except NoVerdictError as error:
            telemetry.logger.info("Answered without a verdict: %s", error)
            outcome = SessionReason.UNAVAILABLE
        return _counted(outcome, source)

    async def recheck(self, row: SessionRow) -> Session | SessionReason:
        """Look at a row again as if its current token had been presented. Raises `NoVerdictError`."""
        reason = await self._ended(row)
        if reason is not None:
            return reason
        outcome = await self._judge.judged(row, await self._store.now(), None)
        return outcome if isinstance(outcome, SessionReason) else outcome.session()

    def seen(self, digest: bytes) -> SessionRow | None:
        """Return what this worker knows of the session that it resolved a token to, if it was signed in here."""
        copy = self._copies.get(digest)
        return None if copy is None else copy.row

    def remaining_life(self, session: Session) -> float | None:
        """Return how many seconds a session's refresh token is still good for; None: that cannot be told at once.

        Or its token is not the newest any more. It takes a look at the row, however long a copy may be believed; those
        of a herd who are woken together share it.
        """
        digest = self._digest(session.token.get_secret_value())
        copy = self._copies.get(digest)
        if copy is None or copy.row.session_id != session.id or session.id in self._endings.over:
            return None
        at = self._monotonic()
        if not copy.is_just_read(at):
            if self._unchanged_at(digest, copy, at) is None:
                return None
            copy.share_reading(asyncio.get_running_loop())
        return copy.row.expires_at - (copy.offset + at)

    async def _believed(self, token: str, digest: bytes, copy: Copy, max_age: float | None) -> Current | None:
        """Return whom a token stands for by this worker's own copy; None: OTPLESS says no."""
        came_from("memory")
        now = copy.offset + self._monotonic()
        settled = await self._judge.settled(Current(copy.row, token, copy.claims, now, copy.row.validated_at), max_age)
        if settled is None:
            return None
        if self._duties.is_to_be_noted(settled.row, now):
            settled = await self._judge.seen(settled)
        if settled.row is not copy.row and self._judge.is_worth_keeping(settled):  # not as read again: as believed
            self._copies.keep(digest, settled.row, copy.claims, copy.offset + copy.at, copy.at)
        return settled

    async def _looked_up(self, query: _Query, copy: Copy | None) -> Resolved:
        """Return whom a token stands for by the store's row; `copy` bridges an outage of the store."""
        read_at = self._monotonic()
        came_from("store")
        try:
            found = await self._store.find(query.digest)
        except StoreError as error:
            self._outages.reads.failed()
            telemetry.logger.warning("No verdict: %s", error)
            if copy is not None and (reason := self._endings.reason(copy.row.session_id)):
                return reason
            return self._while_store_is_down(query, copy)
        self._outages.reads.worked(read_at)
        if found is None:
            self._copies.drop(query.digest)
            return await self._stranger(query)
        return await self._known(query, found, copy, read_at)

    def _others(self, digest: bytes, copy: Copy) -> Question[Session | SessionReason] | None:
        """Return what is under way for others with the same dead token, if its row still is as they read it."""
        others = self._background.asked(_crowd(digest, copy.row))
        if others is None or copy.row.session_id in self._endings.over:
            return None
        at = self._monotonic()
        is_as_read = at - copy.at < self._store_ttl or self._unchanged_at(digest, copy, at) is not None
        return others if is_as_read else None

    async def _with_others(
        self, query: _Query, row: SessionRow, serve: Callable[[], Coroutine[Any, Any, Session | SessionReason]]
    ) -> Session | SessionReason:
        """Serve a dead token, once for all who bring it now.

        To do it for each would double what a herd costs: 500 requests would take 3.2 times what 500 idle tasks do.
        """
        crowd = _crowd(query.digest, row)
        while (others := self._background.asked(crowd)) is not None:
            came_from("refresh")
            if (outcome := await self._overheard(others)) is not None:
                return outcome
        return await self._background.ask(crowd, serve, self._patience)

    async def _overheard(self, others: Question[Session | SessionReason]) -> Session | SessionReason | None:
        """Return what the first of a crowd learns; None: that one was cancelled."""
        try:
            with telemetry.span("otpless.resolve", telemetry.WAITS_FOR_REFRESH):
                heard = others.heard(await others.join(self._patience))
        except BaseException:
            count_coalesced(UNAVAILABLE)
            raise
        if heard is None:
            return None
        count_coalesced(named(heard[0]))
        return heard[0]

    def _is_believed(self, copy: Copy) -> bool:
        """Whether this worker's own copy will do: one that is old, or that says that it is over, is read again."""
        row, at = copy.row, self._monotonic()
        if at - copy.at >= self._store_ttl or row.session_id in self._endings.over or not copy.first_duty:
            return False
        now = copy.offset + at
        is_over_now = is_over(row.token_expires_at, now) or self._duties.is_to_end(row, now)
        return not is_over_now and not self._judge.denied.covers(row)

    async def _known(self, query: _Query, found: Found, copy: Copy | None, read_at: float) -> Resolved:
        row, now = found.row, found.now
        if copy is not None and copy.row.created_at != row.created_at:  # of the session's former life
            copy = None
        claims = copy.claims if copy is not None else claims_for(query.token, row)
        if found.generation == REFRESH_TOKEN or claims is None:
            return SessionReason.INVALID if found.generation == REFRESH_TOKEN else self._strangers.refused(query.token)
        reason = await self._ended(row)
        if reason is not None:
            return reason
        standing = row.standing(found.generation, now - query.waited, self._settings.rotation_grace)
        if standing in {Standing.SUPERSEDED, Standing.FORGOTTEN}:
            self._copies.drop(query.digest)  # it would be served in an outage
            return await self._reused(row) if standing is Standing.SUPERSEDED else SessionReason.REUSED
        is_dead = is_over(row.token_expires_at, now)
        if standing is Standing.CURRENT and query.max_age is None:
            fresh = self._copies.of(row, claims, now, read_at)
            if fresh.is_quiet(now) and not self._judge.denied.covers(row):  # as a rule; else that comes out below
                self._copies.put(query.digest, fresh)
                return fresh
            if is_dead:  # it tells who comes next that nothing has changed
                self._copies.put(query.digest, fresh)
        if is_dead and query.max_age is None:
            return await self._with_others(query, row, lambda: self._shown(query, found, claims, read_at))
        return await self._served(query, found, claims, read_at)

    async def _shown(self, query: _Query, found: Found, claims: Claims, read_at: float) -> Session | SessionReason:
        """As `_served`, for many: the session's record is made once for them."""
        outcome = await self._served(query, found, claims, read_at)
        return outcome if isinstance(outcome, SessionReason) else outcome.session()

    async def _served(self, query: _Query, found: Found, claims: Claims, read_at: float) -> Current | SessionReason:
        """Return what a token that still counts is good for: by its own generation, or as the current one."""
        row, now = found.row, found.now
        if found.generation < row.generation:
            return await self._judge.judged(row, now, query.max_age)
        is_dead = is_over(row.token_expires_at, now)
        if not row.is_confirmed and not is_dead and await self._confirm(row):
            row = replace(row, confirmations=row.confirmed(now, self._settings.rotation_grace))
        current = Current(row, query.token, claims, now, row.validated_at)
        if not row.is_confirmed and is_dead:
            outcome = await self._refreshed_and_confirmed(current)
        else:
            outcome = await self._judge.allowed(current, query.max_age)
        if isinstance(outcome, SessionReason):
            if self._endings.reason(row.session_id) is None:  # what is remembered would be served in an outage
                self._copies.drop(query.digest)
            return outcome
        if outcome.token == query.token and self._judge.is_worth_keeping(outcome):
            self._copies.keep(query.digest, outcome.row, claims, now, read_at)
        return outcome

    async def _ended(self, row: SessionRow) -> SessionReason | None:
        """Return why a session has ended, if it has. A sign-out that the store could not note is made up for."""
        if row.state is State.ENDED:
            self._endings.note(row.session_id, ended_reason(row))
            return ended_reason(row)
        if self._endings.reason(row.session_id) is SessionReason.REVOKED:
            await self._endings.end_refused(row, EndReason.REVOKED)
            return SessionReason.REVOKED
        self._endings.forget_expiry(row.session_id)
        return None

    async def _stranger(self, query: _Query) -> Stranger | SessionReason:
        if query.known_only or not self._settings.accept_unknown_tokens:
            return self._strangers.refused(query.token)
        outcome = await self._strangers.admit(query.token, query.digest, query.max_age)
        if isinstance(outcome, SessionReason):
            return outcome
        # A sign-out that the store could not note left no row.
        return self._endings.reason(outcome.session_id) or outcome

    async def _reused(self, row: SessionRow) -> SessionReason:
        """Somebody presents a token that was replaced long ago: a thief, or the user after one (RFC 9700, 4.14.2)."""
        telemetry.reuses.add(1)
        telemetry.logger.warning("session_reused: %s", telemetry.session_label(row.session_id))
        if self._settings.on_reuse == "revoke":
            await self._endings.end_refused(row, EndReason.REUSED)
        await self._events.reused(row)
        return SessionReason.REUSED

    async def _confirm(self, row: SessionRow) -> bool:
        """Have it written that the client has this generation; where that fails, the next request tries again."""
        try:
            await self._store.confirm(row, self._settings.rotation_grace)
        except StoreError as error:
            telemetry.logger.warning("Not confirmed: %s", error)
            return False
        return True

    async def _refreshed_and_confirmed(self, current: Current) -> Current | SessionReason:
        """Have it written that the client has a dead token's generation while the lease for its refresh is written.

        A store that takes both at once is waited for once; the answer goes out after both.
        """
        confirming = asyncio.create_task(self._confirm(current.row))
        try:
            return await self._judge.allowed(current, None)
        finally:
            await confirming

    def _while_store_is_down(self, query: _Query, copy: Copy | None) -> Resolved:
        """Serve who this worker resolved within `STALE_IF_ERROR`, as stale; nobody else."""
        came_from("memory")
        longest = self._settings.stale_if_error if query.max_age is None else 0
        if copy is None:
            stranger = None if query.known_only else self._strangers.while_store_is_down(query.digest)
            if stranger is None or not longest:
                return SessionReason.UNAVAILABLE
            return stranger
        row, at = copy.row, self._monotonic()
        age, now = at - copy.at, copy.offset + at
        if self._duties.is_to_end(row, now):
            return SessionReason.UNAVAILABLE
        self._duties.note_unwritten(row.session_id)
        if self._judge.denied.covers(row) or self._endings.may_have_forgotten(copy.at):
            return SessionReason.UNAVAILABLE
        if not longest or age > longest or is_over(row.token_expires_at, now):
            return SessionReason.UNAVAILABLE
        return Current(row, query.token, copy.claims, now, row.validated_at, stale=True)


def _counted(outcome: Resolved, source: str | None = None) -> Resolved:
    """Count an outcome, and return it; `source`: see `telemetry.count_resolution`."""
    if isinstance(outcome, SessionReason):
        telemetry.count_resolution(outcome.value, source)
    else:
        is_stale = not isinstance(outcome, Copy) and outcome.stale
        telemetry.count_resolution("stale" if is_stale else "session", source)
    return outcome


def _crowd(digest: bytes, row: SessionRow) -> Hashable:
    """Return the key of those who bring the same token of the same generation of its session."""
    return "token", digest, row.generation
