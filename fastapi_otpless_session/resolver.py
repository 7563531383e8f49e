"""From a token to a session: look it up, have OTPLESS's word, refresh where that word is no.

Steps 1 and 8 of the refresh protocol (exact digest, generations, confirmation) and the freshness rules are here; the
refresh itself is in `refresh.py`, tokens without a row are in `strangers.py`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.background import Background
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, StoreError
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.refresh import Refresher, ended_reason
from fastapi_otpless_session.session import Session, SessionReason, is_over, utc
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.base import (
    REFRESH_TOKEN,
    EndReason,
    Found,
    SessionRow,
    SessionStore,
    Standing,
    State,
)
from fastapi_otpless_session.strangers import Strangers
from fastapi_otpless_session.tokens import Claims, TokenError, UnreadableError
from fastapi_otpless_session.vault import Vault
from fastapi_otpless_session.wire import Verdict

REMEMBERED = 10_000
SEEN_SECONDS = 60.0
LANDING_SECONDS = 0.25
"""What a refresh may take beyond its call's deadline to put things in order: nobody is to join one that fails."""


@dataclass(frozen=True, slots=True)
class Current:
    """An active session's current token, and what is known of it at `now` by the store's clock."""

    row: SessionRow
    token: str = field(repr=False)
    claims: Claims
    now: float
    refreshed: bool = False
    stale: bool = False


@dataclass(frozen=True, slots=True)
class _Copy:
    """A worker's own copy of what it found for a digest, and when by the worker's monotonic clock."""

    found: Found
    claims: Claims
    at: float


class Resolver:
    """Resolves tokens and rows."""

    def __init__(
        self,
        *,
        store: SessionStore,
        client: OtplessClient,
        vault: Vault,
        refresher: Refresher,
        strangers: Strangers,
        endings: Endings,
        background: Background,
        settings: OtplessSettings,
    ) -> None:
        self._store = store
        self._client = client
        self._vault = vault
        self._refresher = refresher
        self._strangers = strangers
        self._endings = endings
        self._background = background
        self._settings = settings
        self._copies: Lru[bytes, _Copy] = Lru(REMEMBERED)

    async def resolve(  # noqa: PLR0911 - one return for each way in
        self, token: str, *, known_only: bool, max_age: float | None
    ) -> Session | SessionReason:
        """Return the session of a token, or why there is none. A fault is `UNAVAILABLE`."""
        if not tokens.is_token(token):
            return SessionReason.INVALID
        digest = self._vault.digest(token)
        if self._endings.is_signed_out(digest):
            return SessionReason.REVOKED
        copy = self._copies.get(digest)
        believed, read_at = self._believed(copy), time.monotonic()
        if believed is not None and copy is not None:
            read_at = copy.at  # what is only believed does not count as read again
        try:
            found = believed or await self._store.find(digest)
        except StoreError as error:
            telemetry.logger.warning("No verdict: %s", error)
            if copy is not None and (reason := self._endings.reason(copy.found.row.session_id)):
                return reason
            if max_age is not None or not self._settings.stale_if_error:
                return SessionReason.UNAVAILABLE
            return self._while_store_is_down(token, digest, copy, known_only=known_only)
        try:
            if found is None:
                return await self._stranger(token, digest, known_only=known_only, max_age=max_age)
            return await self._known(token, digest, found, copy, max_age, read_at)
        except NoVerdictError as error:
            telemetry.logger.info("No verdict: %s", error)
            return SessionReason.UNAVAILABLE

    async def recheck(self, row: SessionRow) -> Session | SessionReason:
        """Look at a row again as if its current token had been presented. Raises `NoVerdictError`."""
        if row.state is State.ENDED:
            return ended_reason(row)
        outcome = await self._judged(row, await self._store.now(), None, None, None)
        return outcome if isinstance(outcome, SessionReason) else session_of(outcome)

    def _believed(self, copy: _Copy | None) -> Found | None:
        """Return this worker's own copy where it may be believed without reading the store."""
        if copy is None or not self._settings.store_ttl:
            return None
        age = time.monotonic() - copy.at
        ended = self._endings.reason(copy.found.row.session_id)
        return None if age >= self._settings.store_ttl or ended else replace(copy.found, now=copy.found.now + age)

    async def _known(  # noqa: PLR0917 - what one look brought
        self, token: str, digest: bytes, found: Found, copy: _Copy | None, max_age: float | None, read_at: float
    ) -> Session | SessionReason:
        row, now = found.row, found.now
        claims = copy.claims if copy is not None else claims_for(token, row)
        if found.generation == REFRESH_TOKEN or claims is None:
            return SessionReason.INVALID
        if row.state is State.ENDED:
            self._endings.note(row.session_id, ended_reason(row))
            return ended_reason(row)
        standing = row.standing(found.generation, now, self._settings.rotation_grace)
        if standing is Standing.SUPERSEDED:
            return await self._reused(row)
        if standing is Standing.OLDER:
            outcome = await self._judged(row, now, None, None, max_age)
            return outcome if isinstance(outcome, SessionReason) else session_of(outcome)
        if row.confirmed_generation < row.generation:
            row = await self._confirmed(row, now)
        outcome = await self._judged(row, now, token, claims, max_age)
        if isinstance(outcome, SessionReason):
            if self._endings.reason(row.session_id) is None:  # what is remembered would be served in an outage
                self._copies.drop(digest)
            return outcome
        if outcome.token == token and not outcome.stale:
            then = copy.found.now if copy is not None and read_at == copy.at else now
            kept = Found(outcome.row, found.generation, then)
            self._copies.put(digest, _Copy(kept, outcome.claims, read_at))
        return session_of(outcome)

    def seen(self, digest: bytes) -> str | None:
        """Return the id of the session that this worker resolved a token to, if it was signed in here."""
        copy = self._copies.get(digest)
        return None if copy is None else copy.found.row.session_id

    async def _judged(
        self, row: SessionRow, now: float, presented: str | None, claims: Claims | None, max_age: float | None
    ) -> Current | SessionReason:
        """Judge an active row, whose current token was presented or else is taken from the row."""
        if self._is_beyond_limits(row, now):
            await self._endings.end_refused(row, EndReason.EXPIRED)
            return SessionReason.EXPIRED
        try:
            token = presented or self._vault.session_token(row)
            current = Current(row, token, claims or tokens.read_claims(token), now, refreshed=presented is None)
        except (UnreadableError, TokenError):
            return SessionReason.INVALID
        outcome = await self._settled(current, max_age)
        return outcome if isinstance(outcome, SessionReason) else await self._seen(outcome)

    async def _settled(self, current: Current, max_age: float | None) -> Current | SessionReason:
        """Have OTPLESS's word, recent enough, on a session; refresh where that word is no."""
        row, now = current.row, current.now
        if is_over(row.token_expires_at, now):
            return await self._refreshed(current)
        behind = await self._background.is_allowed()
        how = freshness(now - row.validated_at, self._settings, max_age=max_age, behind=behind)
        if how is Freshness.FRESH:
            await self._refresh_ahead(current, behind=behind)
            return current
        if how is Freshness.AGING:
            await self._background.start(("behind", row.session_id), lambda: self._revalidate(current))
            return current
        try:
            verdict = await self._ask(current)
        except NoVerdictError:
            if how is not Freshness.DUE:
                raise
            return replace(current, stale=True)
        if verdict is not Verdict.VALID:
            return await self._refreshed(current)
        return replace(current, row=replace(row, validated_at=now, last_seen_at=now))

    async def _ask(self, current: Current) -> Verdict:
        """Ask OTPLESS whether a session is valid; whoever asks at the same time shares the answer."""
        key = ("validate", current.row.session_id, current.row.generation)
        patience = 2 * self._settings.request_timeout
        return await self._background.share(key, lambda: self._validate(current), patience)

    async def _validate(self, current: Current) -> Verdict:
        verdict = await self._client.validate_session(current.token)
        if verdict is Verdict.VALID:
            await self._touch(current.row, validated=True)
        return verdict

    async def _revalidate(self, current: Current) -> None:
        """Ask behind the request; a "not valid" goes straight into the refresh, and is shared."""
        try:
            if await self._ask(current) is not Verdict.VALID:
                await self._refreshed(current)
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)
        self._copies.drop(self._vault.digest(current.token))  # the row has moved on

    async def _refreshed(self, current: Current) -> Current | SessionReason:
        row = current.row
        outcome = await self._background.share(
            ("refresh", row.session_id),
            lambda: self._refresher.refresh(row),
            self._settings.refresh_timeout + LANDING_SECONDS,
        )
        if outcome is SessionReason.INVALID:  # unreadable here, which says nothing about the session
            return SessionReason.EXPIRED
        if isinstance(outcome, SessionReason):
            self._endings.note(row.session_id, outcome)
            return outcome
        claims, now = tokens.read_claims(outcome.token), max(current.now, outcome.row.validated_at)
        return Current(outcome.row, outcome.token, claims, now, refreshed=outcome.committed)

    async def _refresh_ahead(self, current: Current, *, behind: bool) -> None:
        """Refresh behind the request in the last part of a token's life, from a point that differs by session."""
        row, issued_at, share = current.row, current.claims.issued_at, self._settings.refresh_ahead
        if not behind or issued_at is None or not share:
            return
        part = (row.token_expires_at - issued_at) * share
        if current.now < row.token_expires_at - part:
            return
        jitter = random.Random(f"{row.session_id} {row.generation}").random()  # noqa: S311 - spreading load
        if current.now >= row.token_expires_at - part * (1 - jitter / 2):
            await self._background.start(("ahead", row.session_id), lambda: self._ahead(current))

    async def _ahead(self, current: Current) -> None:
        try:
            await self._refreshed(current)
        except NoVerdictError as error:
            telemetry.logger.info("Refresh ahead: %s", error)

    async def _stranger(
        self, token: str, digest: bytes, *, known_only: bool, max_age: float | None
    ) -> Session | SessionReason:
        if known_only or not self._settings.accept_unknown_tokens:
            return self._strangers.refused(token)
        outcome = await self._strangers.admit(token, digest, max_age)
        return outcome if isinstance(outcome, SessionReason) else outcome.session(token)

    async def _reused(self, row: SessionRow) -> SessionReason:
        """Somebody presents a token that was replaced long ago: a thief, or the user after one (RFC 9700, 4.14.2)."""
        telemetry.reuses.add(1)
        telemetry.logger.warning("session_reused: %s", telemetry.session_label(row.session_id))
        if self._settings.on_reuse == "revoke":
            await self._endings.end_refused(row, EndReason.REUSED)
        return SessionReason.REUSED

    async def _confirmed(self, row: SessionRow, now: float) -> SessionRow:
        try:
            await self._store.confirm(row, self._settings.rotation_grace)
        except StoreError as error:
            telemetry.logger.warning("Not confirmed: %s", error)
        return replace(row, confirmations=row.confirmed(now, self._settings.rotation_grace))

    async def _seen(self, current: Current) -> Current:
        """Have `last_seen_at` written, once a minute at most (a tenth of `IDLE_TIMEOUT` where that is shorter)."""
        row, idle = current.row, self._settings.idle_timeout
        if current.now - row.last_seen_at < min(SEEN_SECONDS, idle / 10 if idle else SEEN_SECONDS):
            return current
        await self._background.start(("seen", row.session_id), lambda: self._touch(row, validated=False))
        return replace(current, row=replace(row, last_seen_at=current.now))

    async def _touch(self, row: SessionRow, *, validated: bool) -> None:
        try:
            await self._store.touch(row.session_id, row.generation, validated=validated)
        except StoreError as error:
            telemetry.logger.warning("Not noted: %s", error)

    def _is_beyond_limits(self, row: SessionRow, now: float) -> bool:
        """Whether our own limits, on top of OTPLESS's, are up."""
        idle, absolute = self._settings.idle_timeout, self._settings.absolute_timeout
        is_idle = idle is not None and is_over(row.last_seen_at + idle, now)
        return is_idle or (absolute is not None and is_over(row.created_at + absolute, now))

    def _while_store_is_down(
        self, token: str, digest: bytes, copy: _Copy | None, *, known_only: bool
    ) -> Session | SessionReason:
        """Serve who this worker resolved within `STALE_IF_ERROR`, as stale; nobody else."""
        if copy is None:
            stranger = None if known_only else self._strangers.while_store_is_down(digest)
            if stranger is None:
                return SessionReason.UNAVAILABLE
            return self._endings.reason(stranger.session_id) or stranger.session(token)
        row, age = copy.found.row, time.monotonic() - copy.at
        now = copy.found.now + age
        is_over_now = is_over(row.token_expires_at, now) or self._is_beyond_limits(row, now)
        if age > self._settings.stale_if_error or is_over_now:
            return SessionReason.UNAVAILABLE
        return session_of(Current(row, token, copy.claims, now, stale=True))


def claims_for(token: str, row: SessionRow) -> Claims | None:
    """Return a token's claims if they name the row's session and user, or none of them: the index may be damaged."""
    try:
        claims = tokens.read_claims(token)
    except TokenError:
        return None
    names_row = claims.session_id in {None, row.session_id} and claims.user_id in {None, row.user_id}
    return claims if names_row else None


def session_of(current: Current) -> Session:
    """Return what the application sees of a session."""
    row, claims = current.row, current.claims
    return Session(
        id=row.session_id,
        user_id=row.user_id,
        name=claims.name,
        email=claims.email,
        issued_at=utc(claims.issued_at or row.rotated_at),
        expires_at=utc(row.token_expires_at),
        validated_at=utc(row.validated_at),
        refreshed=current.refreshed,
        stale=current.stale,
        claims=claims.others,
        token=SecretStr(current.token),
    )
