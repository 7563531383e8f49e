"""Whether an active session is good: by our limits, by OTPLESS's word, and by a refresh where that word is no.

The freshness rules are followed here; the refresh itself is in `refresh.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from typing import Any

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.copies import Copies
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.current import Current
from fastapi_otpless_session.denials import Denials
from fastapi_otpless_session.duties import touch
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.refresh import UNAVAILABLE, Refreshed, Refresher, RefusedAheadError, named
from fastapi_otpless_session.session import SessionReason, is_over
from fastapi_otpless_session.stores.base import EndReason, SessionRow, State
from fastapi_otpless_session.telemetry import came_from
from fastapi_otpless_session.tokens import TokenError, UnreadableError
from fastapi_otpless_session.wire import Verdict

NOTED_SECONDS = 1.0
"""How much older than known here the "valid" in the store may be: it is not written with every request."""
LANDING_SECONDS = 0.25
"""What a refresh may take beyond its call's deadline to put things in order: nobody is to join one that fails."""
COALESCED = {
    outcome: telemetry.labels(role="coalesced", outcome=outcome)
    for outcome in ("refreshed", *(reason.value for reason in SessionReason))
}
"""How a refresh that was shared is counted, by its outcome."""


class Judge:
    """Judges active sessions. What it learns of a token goes into the worker's `copies`, by its `digest`."""

    def __init__(
        self, core: Core, *, refresher: Refresher, endings: Endings, copies: Copies, digest: Callable[[str], bytes]
    ) -> None:
        self._store = core.store
        self._client = core.client
        self._vault = core.vault
        self._duties = core.duties
        self._background = core.background
        self._settings = core.settings
        self._monotonic = core.monotonic
        self._refresher = refresher
        self._endings = endings
        self._copies = copies
        self._digest = digest
        self._patience = core.settings.refresh_timeout + LANDING_SECONDS
        self._patience_for_validation = 2 * core.settings.request_timeout
        self._noted_seconds = min(NOTED_SECONDS, core.settings.validation_ttl or NOTED_SECONDS)
        self.denied: Denials = Denials()
        """What OTPLESS said no to. A refresh that gets no answer leaves that as it is."""
        self._refused_ahead = Denials()
        """What OTPLESS did not replace before it was dead. It is not asked to again."""

    async def judged(self, row: SessionRow, now: float, max_age: float | None) -> Current | SessionReason:
        """Judge an active row by its own current token; whoever presented another gets that one."""
        try:
            token = self._vault.session_token(row)
            current = Current(row, token, tokens.read_claims(token), now, row.validated_at, refreshed=True)
        except (UnreadableError, TokenError):
            return SessionReason.INVALID
        return await self.allowed(current, max_age)

    async def allowed(self, current: Current, max_age: float | None) -> Current | SessionReason:
        """Judge an active session by our limits and by OTPLESS's word, refreshing it where that word is no."""
        if self._duties.is_to_end(current.row, current.now):
            await self._endings.end_refused(current.row, EndReason.EXPIRED)
            return SessionReason.EXPIRED
        is_dead = self.denied.covers(current.row) or is_over(current.row.token_expires_at, current.now)
        settled = None if is_dead else await self.settled(current, max_age)
        outcome = settled or await self._waited_for_refresh(current)
        if settled is None and isinstance(outcome, Current) and outcome.validated_at < current.now:  # it was put off
            outcome = await self.settled(outcome, max_age) or await self._replaced(outcome)
        return outcome if isinstance(outcome, SessionReason) else await self.seen(outcome)

    async def settled(self, current: Current, max_age: float | None) -> Current | None:
        """Have OTPLESS's word, recent enough, on a session whose token is not over. None: that word is no."""
        row, now = current.row, current.now
        behind = self._background.is_allowed()
        how = freshness(now - row.validated_at, self._settings, max_age=max_age, behind=behind)
        if how is Freshness.FRESH:
            if behind and self._is_to_be_refreshed_ahead(current):
                await self._start_refresh_ahead(current)
            return current
        if how is Freshness.AGING:
            await self._background.start(("behind", row.session_id), lambda: self._revalidate(current))
            return current
        came_from("otpless")
        try:
            with telemetry.span("otpless.resolve", telemetry.WAITS_FOR_VALIDATION):
                verdict = await self._ask(current, anew=max_age is not None)
        except NoVerdictError:
            if how is not Freshness.DUE:
                await self.seen(current)  # whoever comes is not idle, whether OTPLESS answers or not
                raise
            return current.as_stale()
        if verdict is not Verdict.VALID:
            return None
        if behind and self._is_to_be_refreshed_ahead(current):
            await self._start_refresh_ahead(current)
        if not self._is_worth_noting(current):
            return current.with_row(row, now)
        return current.with_row(replace(row, validated_at=now, last_seen_at=now), now)

    async def seen(self, current: Current) -> Current:
        """Have `last_seen_at` written, now and then."""
        row = current.row
        if not self._duties.is_to_be_noted(row, current.now):
            return current
        await self._background.start(
            ("seen", row.session_id), lambda: touch(self._store, self._duties, row, validated=False)
        )
        return current.with_row(replace(row, last_seen_at=current.now), current.validated_at)

    def is_worth_keeping(self, current: Current) -> bool:
        """Whether to remember a session as it is now: not with an old answer, nor where a no came meanwhile."""
        return not current.stale and not self.denied.covers(current.row)

    def _ask(self, current: Current, *, anew: bool = False) -> Coroutine[Any, Any, Verdict]:
        """Ask OTPLESS whether a session is valid; whoever asks at the same time shares the answer.

        `anew`: not one to a question that was asked before.
        """
        key = ("validate", current.row.session_id, current.row.generation)
        return self._background.ask(key, lambda: self._validate(current), self._patience_for_validation, anew=anew)

    async def _validate(self, current: Current) -> Verdict:
        try:
            verdict = await self._client.validate_session(current.token)
        except NoVerdictError:
            telemetry.count_validation("unavailable")
            raise
        telemetry.count_validation(verdict.told)
        if verdict is not Verdict.VALID:
            self.denied.note(current.row)
            self._doubt(current.token)
            return verdict
        self.denied.forget(current.row)
        if self._is_worth_noting(current):
            await touch(self._store, self._duties, current.row, validated=True)
        return verdict

    def _doubt(self, token: str) -> None:
        """Have a token's row read before its copy is believed again."""
        copy = self._copies.get(self._digest(token))
        if copy is not None:
            copy.doubt()

    def _is_to_be_refreshed_ahead(self, current: Current) -> bool:
        row = current.row
        if not self._duties.is_to_be_refreshed_ahead(row, current.claims, current.now):
            return False
        return not self._refused_ahead.covers(row)

    def _is_worth_noting(self, current: Current) -> bool:
        """Whether the "valid" in the store is so old that it makes a difference to write another."""
        return abs(current.now - current.row.validated_at) >= self._noted_seconds

    async def _revalidate(self, current: Current) -> None:
        """Ask behind the request; a "not valid" goes straight into the refresh, and is shared."""
        try:
            if await self._ask(current) is not Verdict.VALID:
                await self._refresh_behind(current)
            elif self._is_to_be_refreshed_ahead(current):
                await self._refresh_ahead(current)
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)
        self._doubt(current.token)  # the row has moved on

    async def _start_refresh_ahead(self, current: Current) -> None:
        await self._background.start(("ahead", current.row.session_id), lambda: self._refresh_ahead(current))

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
                await self._refreshed(current.with_row(row, row.validated_at), ahead=ahead)
        except RefusedAheadError:
            raise
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)

    async def _waited_for_refresh(self, current: Current) -> Current | SessionReason:
        came_from("refresh")
        try:
            with telemetry.span("otpless.resolve", telemetry.WAITS_FOR_REFRESH):
                return await self._refreshed(current)
        except NoVerdictError:
            await self.seen(current)
            raise

    async def _replaced(self, dead: Current) -> Current | SessionReason:
        """Refresh what OTPLESS calls dead. Where that had yet to be kept, and now is, it is dead all the same."""
        outcome = await self._waited_for_refresh(dead)
        if isinstance(outcome, Current) and outcome.token == dead.token:
            self.denied.note(outcome.row)
            outcome = await self._waited_for_refresh(outcome)
        return outcome

    async def _refreshed(self, current: Current, *, ahead: bool = False) -> Current | SessionReason:
        row, began_at = current.row, self._monotonic()
        try:
            outcome = await self._shared_refresh(("refresh", row.session_id), row, ahead)
        except RefusedAheadError:
            if ahead:
                raise
            # What was under way was for nobody; this one needs it.
            outcome = await self._shared_refresh(("needed refresh", row.session_id), row, ahead)
        if isinstance(outcome, Refreshed) and self.denied.covers(outcome.row):  # another worker's, and dead by now
            outcome = await self._shared_refresh(("refresh", row.session_id), outcome.row, ahead)
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
                count_coalesced(result)
        return outcome


def count_coalesced(outcome: str) -> None:
    telemetry.refreshes.add(1, COALESCED[outcome])
