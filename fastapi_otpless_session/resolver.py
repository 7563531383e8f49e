"""From a token to a session: look it up, have OTPLESS's word, refresh where that word is no.

Steps 1 and 8 of the refresh protocol (exact digest, generations, confirmation) and the freshness rules are here; the
refresh itself is in `refresh.py`, tokens without a row are in `strangers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from fastapi_otpless_session import copies, telemetry, tokens
from fastapi_otpless_session.copies import Copies, Copy
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, StoreError
from fastapi_otpless_session.flights import Asked
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.refresh import (
    UNAVAILABLE,
    Refreshed,
    Refresher,
    RefusedAheadError,
    ended_reason,
    named,
)
from fastapi_otpless_session.refusals import Refusals
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
from fastapi_otpless_session.strangers import WAITS_FOR_VALIDATION, Stranger, Strangers, touch
from fastapi_otpless_session.telemetry import came_from
from fastapi_otpless_session.tokens import TOKEN_LIMIT, Claims, TokenError, UnreadableError
from fastapi_otpless_session.wire import Verdict

DIGESTS_REMEMBERED = 200
NOTED_SECONDS = 1.0
"""How much older than known here the "valid" in the store may be: it is not written with every request."""
LANDING_SECONDS = 0.25
"""What a refresh may take beyond its call's deadline to put things in order: nobody is to join one that fails."""
WAITS_FOR_REFRESH = {"otpless.waits_for": "refresh"}
COALESCED = {
    outcome: telemetry.labels(role="coalesced", outcome=outcome)
    for outcome in ("refreshed", *(reason.value for reason in SessionReason))
}
"""How a refresh that was shared is counted, by its outcome."""


class Current(NamedTuple):
    """An active session's current token, and what is known of it at `now` by the store's clock."""

    row: SessionRow
    token: str
    claims: Claims
    now: float
    validated_at: float
    refreshed: bool = False
    stale: bool = False

    def session(self) -> Session:
        """Return what the application sees of the session."""
        return copies.session_of(self.row, self.claims, self.token, self.validated_at, self.refreshed, self.stale)

    def __repr__(self) -> str:
        """Leave out the token: it is secret."""
        return f"Current(row={self.row!r})"


Resolved = Session | SessionReason | Copy | Stranger | Current
"""What a token stands for: a session, or what one is made of; or why there is none."""


def session_of(served: Copy | Stranger | Current, token: str) -> Session:
    """Return what the application sees of whom a token was resolved to."""
    return served.session() if isinstance(served, Current) else served.session(token)


class _Asked(NamedTuple):
    """One question: a token, as it was presented, and how recent OTPLESS's word has to be."""

    token: str
    digest: bytes
    known_only: bool
    max_age: float | None
    waited: float
    """How many seconds ago it was presented."""

    def __repr__(self) -> str:
        """Leave out the token: it is secret."""
        return f"_Asked(known_only={self.known_only}, max_age={self.max_age})"


class Resolver:
    """Resolves tokens and rows."""

    def __init__(self, core: Core, *, refresher: Refresher, strangers: Strangers, endings: Endings) -> None:
        self._store = core.store
        self._client = core.client
        self._vault = core.vault
        # Most requests bring the token of one of the last. To look its digest up saves a twentieth of a bare route.
        self._digest = lru_cache(DIGESTS_REMEMBERED)(core.vault.digest)
        self._refresher = refresher
        self._strangers = strangers
        self._endings = endings
        self._events = core.events
        self._background = core.background
        self._settings = core.settings
        self._monotonic = core.monotonic
        self._duties = core.duties
        self._copies = Copies(core.duties)
        self._watchful = core.store if isinstance(core.store, WatchfulStore) else None
        self._has_quiet_time = core.settings.validation_ttl > 0
        self._store_ttl = core.settings.store_ttl
        self._patience = core.settings.refresh_timeout + LANDING_SECONDS
        self._refused = Refusals()
        """What OTPLESS said no to. A refresh that gets no answer leaves that as it is."""
        self._refused_ahead = Refusals()
        """What OTPLESS did not replace before it was dead. It is not asked to again."""

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
            if copy is not None and max_age is None and (others := self._others(digest, copy)) is not None:
                source = "refresh"
                outcome = await self._overheard(others)
            if outcome is None:  # or the first of them was cancelled
                asked, source = _Asked(token, digest, known_only, max_age, max(0.0, waited)), None
                outcome = await self._resolved(asked, self._copies.get(digest))
        except NoVerdictError as error:
            telemetry.logger.info("No verdict: %s", error)
            outcome = SessionReason.UNAVAILABLE
        return _counted(outcome, source)

    async def recheck(self, row: SessionRow) -> Session | SessionReason:
        """Look at a row again as if its current token had been presented. Raises `NoVerdictError`."""
        reason = await self._ended(row)
        if reason is not None:
            return reason
        outcome = await self._judged(row, await self._store.now(), None)
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
        if not copy.is_just_read:
            if self._unchanged_at(digest, copy, at) is None:
                return None
            copy.share_reading(asyncio.get_running_loop())
        return copy.row.expires_at - (copy.offset + at)

    async def _resolved(self, asked: _Asked, copy: Copy | None) -> Resolved:
        if copy is not None and self._is_believed(copy):
            came_from("memory")
            now = copy.offset + self._monotonic()
            current = Current(copy.row, asked.token, copy.claims, now, copy.row.validated_at)
            settled = await self._settled(current, asked.max_age)
            if settled is not None:
                if self._duties.is_to_be_noted(settled.row, now):
                    settled = await self._seen(settled)
                if settled.row is not copy.row and self._is_worth_keeping(
                    settled
                ):  # not as read again: it was believed
                    self._copies.keep(asked.digest, settled.row, copy.claims, copy.offset + copy.at, copy.at)
                return settled
        read_at = self._monotonic()
        came_from("store")
        try:
            found = await self._store.find(asked.digest)
        except StoreError as error:
            telemetry.logger.warning("No verdict: %s", error)
            if copy is not None and (reason := self._endings.reason(copy.row.session_id)):
                return reason
            return self._while_store_is_down(asked, copy)
        if found is None:
            self._copies.drop(asked.digest)
            return await self._stranger(asked)
        return await self._known(asked, found, copy, read_at)

    def _others(self, digest: bytes, copy: Copy) -> Asked[Session | SessionReason] | None:
        """Return what is under way for others with the same dead token, if its row still is as they read it."""
        others = self._background.asked(_crowd(digest, copy.row))
        if others is None or copy.row.session_id in self._endings.over:
            return None
        at = self._monotonic()
        is_as_read = at - copy.at < self._store_ttl or self._unchanged_at(digest, copy, at) is not None
        return others if is_as_read else None

    async def _with_others(
        self, asked: _Asked, row: SessionRow, serve: Callable[[], Coroutine[Any, Any, Session | SessionReason]]
    ) -> Session | SessionReason:
        """Serve a dead token, once for all who bring it now.

        To do it for each would double what a herd costs: 500 requests would take 3.2 times what 500 idle tasks do.
        """
        crowd = _crowd(asked.digest, row)
        while (others := self._background.asked(crowd)) is not None:
            came_from("refresh")
            if (outcome := await self._overheard(others)) is not None:
                return outcome
        return await self._background.ask(crowd, serve, self._patience)

    async def _overheard(self, others: Asked[Session | SessionReason]) -> Session | SessionReason | None:
        """Return what the first of a crowd learns; None: that one was cancelled."""
        try:
            with telemetry.span("otpless.resolve", WAITS_FOR_REFRESH):
                heard = others.heard(await others.join(self._patience))
        except BaseException:
            _count_coalesced(UNAVAILABLE)
            raise
        if heard is None:
            return None
        _count_coalesced(named(heard[0]))
        return heard[0]

    def _is_believed(self, copy: Copy) -> bool:
        """Whether this worker's own copy will do: one that is old, or that says that it is over, is read again."""
        row, at = copy.row, self._monotonic()
        if at - copy.at >= self._store_ttl or row.session_id in self._endings.over or not copy.first_duty:
            return False
        now = copy.offset + at
        is_over_now = is_over(row.token_expires_at, now) or self._duties.is_to_end(row, now)
        return not is_over_now and not self._refused.covers(row)

    async def _known(self, asked: _Asked, found: Found, copy: Copy | None, read_at: float) -> Resolved:
        row, now = found.row, found.now
        if copy is not None and copy.row.created_at != row.created_at:  # of the session's former life
            copy = None
        claims = copy.claims if copy is not None else claims_for(asked.token, row)
        if found.generation == REFRESH_TOKEN or claims is None:
            return SessionReason.INVALID if found.generation == REFRESH_TOKEN else self._strangers.refused(asked.token)
        reason = await self._ended(row)
        if reason is not None:
            return reason
        standing = row.standing(found.generation, now - asked.waited, self._settings.rotation_grace)
        if standing in {Standing.SUPERSEDED, Standing.FORGOTTEN}:
            self._copies.drop(asked.digest)  # it would be served in an outage
            return await self._reused(row) if standing is Standing.SUPERSEDED else SessionReason.REUSED
        is_dead = is_over(row.token_expires_at, now)
        if standing is Standing.CURRENT and asked.max_age is None:
            fresh = self._copies.of(row, claims, now, read_at)
            if fresh.is_quiet(now) and not self._refused.covers(row):  # as a rule; what follows would find that out
                self._copies.put(asked.digest, fresh)
                return fresh
            if is_dead:  # it tells who comes next that nothing has changed
                self._copies.put(asked.digest, fresh)
        if is_dead and asked.max_age is None:
            return await self._with_others(asked, row, lambda: self._shown(asked, found, claims, read_at))
        return await self._served(asked, found, claims, read_at)

    async def _shown(self, asked: _Asked, found: Found, claims: Claims, read_at: float) -> Session | SessionReason:
        """As `_served`, for many: the session's record is made once for them."""
        outcome = await self._served(asked, found, claims, read_at)
        return outcome if isinstance(outcome, SessionReason) else outcome.session()

    async def _served(self, asked: _Asked, found: Found, claims: Claims, read_at: float) -> Current | SessionReason:
        """Return what a token that still counts is good for: by its own generation, or as the current one."""
        row, now = found.row, found.now
        if found.generation < row.generation:
            return await self._judged(row, now, asked.max_age)
        is_dead = is_over(row.token_expires_at, now)
        if not row.is_confirmed and not is_dead and await self._confirm(row):
            row = replace(row, confirmations=row.confirmed(now, self._settings.rotation_grace))
        current = Current(row, asked.token, claims, now, row.validated_at)
        if not row.is_confirmed and is_dead:
            outcome = await self._refreshed_and_confirmed(current)
        else:
            outcome = await self._allowed(current, asked.max_age)
        if isinstance(outcome, SessionReason):
            if self._endings.reason(row.session_id) is None:  # what is remembered would be served in an outage
                self._copies.drop(asked.digest)
            return outcome
        if outcome.token == asked.token and self._is_worth_keeping(outcome):
            self._copies.keep(asked.digest, outcome.row, claims, now, read_at)
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

    async def _judged(self, row: SessionRow, now: float, max_age: float | None) -> Current | SessionReason:
        """Judge an active row by its own current token; whoever presented another gets that one."""
        try:
            token = self._vault.session_token(row)
            current = Current(row, token, tokens.read_claims(token), now, row.validated_at, refreshed=True)
        except (UnreadableError, TokenError):
            return SessionReason.INVALID
        return await self._allowed(current, max_age)

    async def _allowed(self, current: Current, max_age: float | None) -> Current | SessionReason:
        """Judge an active session by our limits and by OTPLESS's word, refreshing it where that word is no."""
        if self._duties.is_to_end(current.row, current.now):
            await self._endings.end_refused(current.row, EndReason.EXPIRED)
            return SessionReason.EXPIRED
        is_dead = self._refused.covers(current.row) or is_over(current.row.token_expires_at, current.now)
        settled = None if is_dead else await self._settled(current, max_age)
        outcome = settled or await self._waited_for_refresh(current)
        return outcome if isinstance(outcome, SessionReason) else await self._seen(outcome)

    async def _settled(self, current: Current, max_age: float | None) -> Current | None:
        """Have OTPLESS's word, recent enough, on a session whose token is not over. None: that word is no."""
        row, now = current.row, current.now
        behind = self._background.is_allowed()
        how = freshness(now - row.validated_at, self._settings, max_age=max_age, behind=behind)
        if how is Freshness.FRESH:
            if behind and self._is_to_be_refreshed_ahead(current):
                await self._background.start(("ahead", row.session_id), lambda: self._refresh_ahead(current))
            return current
        if how is Freshness.AGING:
            await self._background.start(("behind", row.session_id), lambda: self._revalidate(current))
            return current
        came_from("otpless")
        try:
            with telemetry.span("otpless.resolve", WAITS_FOR_VALIDATION):
                verdict = await self._ask(current, anew=max_age is not None)
        except NoVerdictError:
            if how is not Freshness.DUE:
                await self._seen(current)  # whoever comes is not idle, whether OTPLESS answers or not
                raise
            return current._replace(stale=True)
        if verdict is not Verdict.VALID:
            return None
        if not self._is_worth_noting(current):
            return Current(row, current.token, current.claims, now, now, current.refreshed)
        return current._replace(row=replace(row, validated_at=now, last_seen_at=now), validated_at=now)

    def _ask(self, current: Current, *, anew: bool = False) -> Coroutine[Any, Any, Verdict]:
        """Ask OTPLESS whether a session is valid; whoever asks at the same time shares the answer.

        `anew`: not one to a question that was asked before.
        """
        key = ("validate", current.row.session_id, current.row.generation)
        patience = 2 * self._settings.request_timeout
        return self._background.ask(key, lambda: self._validate(current), patience, anew=anew)

    async def _validate(self, current: Current) -> Verdict:
        try:
            verdict = await self._client.validate_session(current.token)
        except NoVerdictError:
            telemetry.count_validation("unavailable")
            raise
        telemetry.count_validation(verdict.name.lower())
        if verdict is not Verdict.VALID:
            self._refused.note(current.row)
            self._doubt(current.token)
            return verdict
        self._refused.forget(current.row)
        if self._is_worth_noting(current):
            await touch(self._store, self._duties, current.row, validated=True)
        return verdict

    def _doubt(self, token: str) -> None:
        """Have a token's row read before its copy is believed again."""
        copy = self._copies.get(self._digest(token))
        if copy is not None:
            copy.doubt()

    def _is_worth_keeping(self, current: Current) -> bool:
        """Whether to remember a session as it is now: not with an old answer, nor where a no came meanwhile."""
        return not current.stale and not self._refused.covers(current.row)

    def _is_to_be_refreshed_ahead(self, current: Current) -> bool:
        row = current.row
        if not self._duties.is_to_be_refreshed_ahead(row, current.claims, current.now):
            return False
        return not self._refused_ahead.covers(row)

    def _is_worth_noting(self, current: Current) -> bool:
        """Whether the "valid" in the store is so old that it makes a difference to write another."""
        ttl = self._settings.validation_ttl
        return abs(current.now - current.row.validated_at) >= min(NOTED_SECONDS, ttl or NOTED_SECONDS)

    async def _revalidate(self, current: Current) -> None:
        """Ask behind the request; a "not valid" goes straight into the refresh, and is shared."""
        try:
            if await self._ask(current) is not Verdict.VALID:
                await self._refresh_behind(current)
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)
        self._doubt(current.token)  # the row has moved on

    async def _refresh_ahead(self, current: Current) -> None:
        """Refresh behind the request what is good for a while yet. A refusal ends nothing before that."""
        try:
            await self._refresh_behind(current, ahead=True)
        except RefusedAheadError as error:
            telemetry.logger.info("Behind a request: %s", error)
            self._refused_ahead.note(current.row)

    async def _refresh_behind(self, current: Current, *, ahead: bool = False) -> None:
        """Refresh behind the request, from the row as it is now: what was believed has no refresh token."""
        try:
            row = await self._store.get(current.row.session_id)
            if row is not None and row.state is State.ACTIVE and row.generation == current.row.generation:
                await self._refreshed(current._replace(row=row), ahead=ahead)
        except RefusedAheadError:
            raise
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)

    async def _waited_for_refresh(self, current: Current) -> Current | SessionReason:
        came_from("refresh")
        try:
            with telemetry.span("otpless.resolve", WAITS_FOR_REFRESH):
                return await self._refreshed(current)
        except NoVerdictError:
            await self._seen(current)
            raise

    async def _refreshed(self, current: Current, *, ahead: bool = False) -> Current | SessionReason:
        row, began_at = current.row, self._monotonic()
        try:
            outcome = await self._shared_refresh(("refresh", row.session_id), row, ahead)
        except RefusedAheadError:
            if ahead:
                raise
            # What was under way was for nobody; this one needs it.
            outcome = await self._shared_refresh(("needed refresh", row.session_id), row, ahead)
        if outcome is SessionReason.INVALID:  # unreadable here, which says nothing about the session
            return SessionReason.EXPIRED
        if isinstance(outcome, SessionReason):
            self._endings.note(row.session_id, outcome)
            return outcome
        claims, now = tokens.read_claims(outcome.token), max(current.now, outcome.row.validated_at)
        if outcome.committed:  # each answer that hands the token out looks at its row again
            self._copies.keep(self._digest(outcome.token), outcome.row, claims, now, began_at)
        return Current(outcome.row, outcome.token, claims, now, outcome.row.validated_at, refreshed=outcome.committed)

    async def _shared_refresh(self, key: Hashable, row: SessionRow, ahead: bool) -> Refreshed | SessionReason:
        """Refresh, once for all who ask by this key now. Raises `NoVerdictError`."""
        led, result = False, UNAVAILABLE

        def lead() -> Coroutine[Any, Any, Refreshed | SessionReason]:
            nonlocal led
            led = True
            return self._refresher.refresh(row, ahead=ahead)

        try:
            outcome = await self._background.share(key, lead, self._patience)
            result = named(outcome)
        finally:
            if not led:
                _count_coalesced(result)
        return outcome

    async def _stranger(self, asked: _Asked) -> Stranger | SessionReason:
        if asked.known_only or not self._settings.accept_unknown_tokens:
            return self._strangers.refused(asked.token)
        outcome = await self._strangers.admit(asked.token, asked.digest, asked.max_age)
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
            return await self._allowed(current, None)
        finally:
            await confirming

    async def _seen(self, current: Current) -> Current:
        """Have `last_seen_at` written, now and then."""
        row = current.row
        if not self._duties.is_to_be_noted(row, current.now):
            return current
        await self._background.start(
            ("seen", row.session_id), lambda: touch(self._store, self._duties, row, validated=False)
        )
        return current._replace(row=replace(row, last_seen_at=current.now))

    def _while_store_is_down(self, asked: _Asked, copy: Copy | None) -> Resolved:
        """Serve who this worker resolved within `STALE_IF_ERROR`, as stale; nobody else."""
        came_from("memory")
        longest = self._settings.stale_if_error if asked.max_age is None else 0
        if copy is None:
            stranger = None if asked.known_only else self._strangers.while_store_is_down(asked.digest)
            if stranger is None or not longest:
                return SessionReason.UNAVAILABLE
            return stranger
        row, at = copy.row, self._monotonic()
        age, now = at - copy.at, copy.offset + at
        if self._duties.is_to_end(row, now):
            return SessionReason.UNAVAILABLE
        self._duties.note_unwritten(row.session_id)
        if self._refused.covers(row) or self._endings.may_have_forgotten(copy.at):
            return SessionReason.UNAVAILABLE
        if not longest or age > longest or is_over(row.token_expires_at, now):
            return SessionReason.UNAVAILABLE
        return Current(row, asked.token, copy.claims, now, row.validated_at, stale=True)


def _counted(outcome: Resolved, source: str | None = None) -> Resolved:
    """Count an outcome, and return it; `source`: see `telemetry.count_resolution`."""
    if isinstance(outcome, SessionReason):
        telemetry.count_resolution(outcome.value, source)
    else:
        is_stale = not isinstance(outcome, Copy) and outcome.stale
        telemetry.count_resolution("stale" if is_stale else "session", source)
    return outcome


def _count_coalesced(outcome: str) -> None:
    telemetry.refreshes.add(1, COALESCED[outcome])


def _crowd(digest: bytes, row: SessionRow) -> Hashable:
    """Return the key of those who bring the same token of the same generation of its session."""
    return "token", digest, row.generation


def claims_for(token: str, row: SessionRow) -> Claims | None:
    """Return a token's claims if they name the row's session and user, or none of them: the index may be damaged.

    And if the token was not over when the row was created: what is kept of a row that has expired leads to the one that
    was signed in anew under the same id.
    """
    try:
        claims = tokens.read_claims(token)
    except TokenError:
        return None
    names_row = claims.session_id in {None, row.session_id} and claims.user_id in {None, row.user_id}
    return claims if names_row and not is_over(claims.expires_at, row.created_at) else None
