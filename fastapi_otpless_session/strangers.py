"""Tokens without a row: the frontend's SDK keeps and renews them, and we only validate what it sends.

There is no `aud` in a session token, so a good signature proves that OTPLESS made it, not for whom. A stranger gets in
only where OTPLESS itself says "valid" to our credentials *and* its identity holds: by signature, or by OTPLESS's
get-session-details *and* the store has no ended row for its session id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, NamedTuple

from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.duties import touch
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, UpstreamError
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.refresh import ended_reason
from fastapi_otpless_session.session import Session, SessionDetails, SessionReason, is_over, utc
from fastapi_otpless_session.stores.base import EndReason, SessionRow, State, WatchfulStore
from fastapi_otpless_session.telemetry import came_from
from fastapi_otpless_session.tokens import Claims, TokenError, UnknownKeyError
from fastapi_otpless_session.wire import Verdict

REMEMBERED = 10_000
REFUSAL_SECONDS = 10.0

REASONS = {
    Verdict.DENIED: SessionReason.EXPIRED,
    Verdict.INACTIVE: SessionReason.EXPIRED,
    Verdict.UNKNOWN: SessionReason.INVALID,
}


class UnclearError(TokenError):
    """A token may be OTPLESS's: its key is unknown; or there are none to tell by, and OTPLESS calls it dead."""


class Stranger(NamedTuple):
    """Whom an unknown token belongs to, and when OTPLESS last said that it is valid."""

    session_id: str
    user_id: str
    claims: Claims
    validated_at: float
    stale: bool = False

    def session(self, token: str) -> Session:
        """Return what the application sees of a stranger."""
        claims = self.claims
        return Session(
            id=self.session_id,
            user_id=self.user_id,
            name=claims.name,
            email=claims.email,
            issued_at=utc(claims.issued_at or self.validated_at),
            expires_at=utc(claims.expires_at),
            validated_at=utc(self.validated_at),
            refreshed=False,
            stale=self.stale,
            claims=claims.others,
            token=SecretStr(token),
        )


class _Look(NamedTuple):
    """What the store had of a stranger's session."""

    at: float
    """When that was, by the worker's monotonic clock."""
    now: float
    """The same by the store's."""
    ended: SessionReason | None = None
    row: SessionRow | None = None
    """What was signed in here, and goes on: the frontend's SDK renewed its token, and is seen with either."""
    ends_at: float = inf
    """When our own limits end it, by the store's clock."""
    to_be_noted_at: float = inf
    """When it is to be noted that it was seen, by the same."""


@dataclass(slots=True)
class _Seen:
    """A stranger that was admitted, and the last look at the store for it, which tells of no end."""

    stranger: Stranger
    look: _Look


class Strangers:
    """Admits tokens that nobody signed in here, and remembers, bounded and briefly, whom it turned away."""

    def __init__(self, core: Core, *, endings: Endings) -> None:
        self._store = core.store
        # A glimpse tells of ended sessions only; for limits the row is needed.
        self._watchful = core.store if isinstance(core.store, WatchfulStore) and not core.duties.has_limits else None
        self._client = core.client
        self._settings = core.settings
        self._duties = core.duties
        self._background = core.background
        self._endings = endings
        self._clock = core.clock
        self._monotonic = core.monotonic
        self._seen: Lru[bytes, _Seen] = Lru(REMEMBERED)
        self._turned_away: Lru[bytes, tuple[SessionReason, float]] = Lru(REMEMBERED)

    def at_once(self, digest: bytes) -> Stranger | None:
        """Return a stranger about whom OTPLESS need not be asked, nor anybody be waited for; None: `admit`."""
        seen = self._seen.get(digest)
        if seen is None or self._remembered_refusal(digest) is not None:
            return None
        stranger, look = seen.stranger, seen.look
        if self._monotonic() - look.at >= self._settings.store_ttl:
            newer = self._look_at_once(stranger.session_id, digest)
            if newer is None:
                return None
            look = newer
        now = look.now + self._monotonic() - look.at
        if is_over(min(stranger.claims.expires_at, look.ends_at), now) or now >= look.to_be_noted_at:
            return None
        if freshness(self._clock() - stranger.validated_at, self._settings) is not Freshness.FRESH:
            return None
        seen.look = look
        return stranger

    async def admit(self, token: str, digest: bytes, max_age: float | None) -> Stranger | SessionReason:
        """Return whom a token belongs to, or why it does not get in. Raises `NoVerdictError`."""
        reason = self._remembered_refusal(digest)
        if reason is not None:
            came_from("memory")
            return reason
        seen = self._seen.get(digest)
        try:
            claims = seen.stranger.claims if seen else await self._claimed(token)
        except TokenError:
            return self._turn_away(digest, SessionReason.INVALID)
        if seen or self._settings.jwks_url:
            session_id = claims.session_id or ""
            look = self._look_at_once(session_id, digest) or await self._look(session_id, digest)
        else:  # the session id is not verified yet, and finds nothing
            look = _Look(self._monotonic(), await self._store.now())
        if is_over(claims.expires_at, look.now):  # this host's clock may be off
            return SessionReason.EXPIRED
        if look.ended is not None:
            return look.ended
        if seen is None:
            return await self._waited_for(token, digest, claims, max_age)
        try:
            outcome = await self._validated(token, digest, seen.stranger, max_age)
        except NoVerdictError:
            await self._noted(look)  # whoever comes is not idle, whether OTPLESS answers or not
            raise
        if isinstance(outcome, Stranger) and (outcome is seen.stranger or outcome.stale):  # else it has a newer look
            look = await self._noted(look)
            if not outcome.stale:  # an outage of the store is bridged since then
                seen.look = look
        return outcome

    def refused(self, token: str) -> SessionReason:
        """Say why a stranger does not get in where none do. Its claims are not verified, and nobody gets in by them."""
        try:
            over = is_over(tokens.read_claims(token).expires_at, self._clock())
        except TokenError:
            over = False
        return SessionReason.EXPIRED if over else SessionReason.INVALID

    def while_store_is_down(self, digest: bytes) -> Stranger | SessionReason | None:
        """Return a stranger that this worker resolved within `STALE_IF_ERROR`, as the store knew of no end.

        Or why its session has ended since, if this worker knows.
        """
        seen = self._seen.get(digest)
        if seen is None:
            return None
        stranger, look, age = seen.stranger, seen.look, self._monotonic() - seen.look.at
        if look.row is not None and self._duties.is_to_end(look.row, look.now + age):
            return None
        self._duties.note_unwritten(stranger.session_id)
        if age > self._settings.stale_if_error or is_over(stranger.claims.expires_at, look.now + age):
            return None
        reason = self._endings.reason(stranger.session_id)
        if reason is not None:
            return reason
        return None if self._endings.may_have_forgotten(look.at) else stranger._replace(stale=True)

    async def identify(self, token: str, digest: bytes) -> tuple[str, Claims] | None:
        """Return a token's verified session id and claims, however old it is; None: it is none of OTPLESS's.

        OTPLESS itself is only asked where there are no keys to tell by. Raises `UnclearError` where it calls the token
        dead then, or its key is unknown, and `UpstreamError`.
        """
        seen = self._seen.get(digest)
        if seen is not None:
            return seen.stranger.session_id, seen.stranger.claims
        try:
            claims = await self._claimed(token, now=True)
        except UnknownKeyError:
            raise UnclearError from None
        except TokenError:
            return None
        if not self._settings.jwks_url:
            if self._remembered_refusal(digest) is SessionReason.INVALID:
                return None
            details = await self._client.session_details(token, known=False)
            if details is Verdict.UNKNOWN:
                self._turn_away(digest, SessionReason.INVALID)
                return None
            if isinstance(details, Verdict):
                raise UnclearError
            check_details(details, claims.session_id)
        return claims.session_id or "", claims

    def has_admitted(self, digest: bytes) -> bool:
        """Whether a token was admitted as a stranger's."""
        return digest in self._seen.keys

    def forget(self, digest: bytes) -> None:
        """Ask anew the next time."""
        self._seen.drop(digest)
        self._turned_away.drop(digest)

    async def _claimed(self, token: str, *, now: bool = False) -> Claims:
        """Read a session token's claims, verified where there are keys to verify with; see `OtplessClient.verify`.

        Raises `TokenError`, `UpstreamError`.
        """
        claims = await self._client.verify(token, now=now) if self._settings.jwks_url else tokens.read_stranger(token)
        if claims.has_audience or claims.session_id is None:
            raise TokenError("an ID token")
        return claims

    async def _look(self, session_id: str, digest: bytes) -> _Look:
        """Look whether a session was ended here, where that takes waiting."""
        at = self._monotonic()
        asked: Awaitable[Any] = asyncio.gather(self._store.now(), self._store.get(session_id))
        now, row = await asked  # said to be a tuple, but it is a list, which compiled code would refuse
        ended = None if row is None else await self._ended(row, now)
        if ended is not None:
            self._seen.drop(digest)
            return _Look(at, now, ended)
        return _Look(at, now, row=row)

    async def _ended(self, row: SessionRow, now: float) -> SessionReason | None:
        """Return why a session ended that was signed in here, if it has: by our own limits, too."""
        if row.state is State.ENDED:
            self._endings.note(row.session_id, ended_reason(row))
            return ended_reason(row)
        if self._duties.is_to_end(row, now):
            await self._endings.end_refused(row, EndReason.EXPIRED)
            return SessionReason.EXPIRED
        return None

    async def _noted(self, look: _Look) -> _Look:
        """Note that a session was seen, now and then, and return its look without the row's secrets.

        Not before its token is known to be good: whoever gets nobody in keeps no session from being idle.
        """
        row = look.row
        if row is None:
            return look
        if self._duties.is_to_be_noted(row, look.now):
            await self._background.start(
                ("seen", row.session_id), partial(touch, self._store, self._duties, row, validated=False)
            )
            row = replace(row, last_seen_at=look.now)
        return look._replace(
            row=replace(row, session_token=b"", refresh_token=b""),
            ends_at=self._duties.ends_at(row),
            to_be_noted_at=self._duties.to_be_noted_at(row),
        )

    def _look_at_once(self, session_id: str, digest: bytes) -> _Look | None:
        """Return a look that tells of no end, where it can be had without waiting."""
        at = self._monotonic()
        now = None if self._watchful is None else self._watchful.unknown_at(digest, session_id)
        return None if now is None else _Look(at, now)

    async def _validated(
        self, token: str, digest: bytes, seen: Stranger, max_age: float | None
    ) -> Stranger | SessionReason:
        claims = seen.claims
        age, behind = self._clock() - seen.validated_at, self._background.is_allowed()
        how = freshness(age, self._settings, max_age=max_age, behind=behind)
        if how is Freshness.AGING:
            await self._background.start(("behind", digest), lambda: self._ask_behind(token, digest, claims))
        if how in {Freshness.FRESH, Freshness.AGING}:
            came_from("memory")
            return seen
        try:
            return await self._waited_for(token, digest, claims, max_age)
        except UpstreamError:
            if how is not Freshness.DUE:
                raise
            return seen._replace(stale=True)

    async def _waited_for(
        self, token: str, digest: bytes, claims: Claims, max_age: float | None
    ) -> Stranger | SessionReason:
        came_from("otpless")
        with telemetry.span("otpless.resolve", telemetry.WAITS_FOR_VALIDATION):
            return await self._asked(token, digest, claims, anew=max_age is not None)

    async def _asked(
        self, token: str, digest: bytes, claims: Claims, *, anew: bool = False
    ) -> Stranger | SessionReason:
        """Ask OTPLESS, once for all who ask now; then look whether the session was ended here meanwhile."""
        patience = 3 * self._settings.request_timeout
        key = ("stranger", digest)
        outcome = await self._background.ask(key, lambda: self._ask(token, claims), patience, anew=anew)
        if isinstance(outcome, SessionReason):
            self._seen.drop(digest)
            return self._turn_away(digest, outcome)
        look = self._look_at_once(outcome.session_id, digest) or await self._look(outcome.session_id, digest)
        reason = look.ended or self._remembered_refusal(digest)  # of a request that asked later and was answered first
        if reason is not None:
            return reason
        self._seen.put(digest, _Seen(outcome, look if look.row is None else await self._noted(look)))
        return outcome

    async def _ask_behind(self, token: str, digest: bytes, claims: Claims) -> None:
        try:
            await self._asked(token, digest, claims)
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)

    async def _ask(self, token: str, claims: Claims) -> Stranger | SessionReason:
        """Have OTPLESS itself say "valid" to our credentials, and who it is where no signature could."""
        try:
            verdict = await self._client.validate_session(token, known=False)
        except NoVerdictError:
            telemetry.count_validation("unavailable")
            raise
        telemetry.count_validation(verdict.told)
        if verdict is not Verdict.VALID:
            return REASONS[verdict]
        session_id, user_id = claims.session_id, claims.user_id
        if not self._settings.jwks_url:
            details = await self._client.session_details(token, known=False)
            if isinstance(details, Verdict):
                return REASONS[details]
            check_details(details, session_id)
            user_id = details.user_id
        if session_id is None or user_id is None:
            return SessionReason.INVALID
        return Stranger(session_id, user_id, claims, self._clock())

    def _remembered_refusal(self, digest: bytes) -> SessionReason | None:
        reason, at = self._turned_away.get(digest) or (None, 0.0)
        return reason if abs(self._clock() - at) < REFUSAL_SECONDS else None  # not longer where the clock is set back

    def _turn_away(self, digest: bytes, reason: SessionReason) -> SessionReason:
        self._turned_away.put(digest, (reason, self._clock()))
        return reason


def check_details(details: SessionDetails, session_id: str | None) -> None:
    """Raise `UpstreamError` for an answer about another session: OTPLESS took the token, so that is its mistake."""
    if details.session_id != session_id:
        raise UpstreamError("OTPLESS's answer makes no sense: details of another session")
