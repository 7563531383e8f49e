"""`OtplessSessions`: resolve, sign in, sign out, details, list, end. Usable without FastAPI, in jobs and scripts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.errors import (
    NoVerdictError,
    SessionRefusedError,
    SignInRefusedError,
    StoreError,
    UpstreamError,
)
from fastapi_otpless_session.flights import Flights
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.refresh import Refreshed, Refresher, ended_reason
from fastapi_otpless_session.revocation import Outbox
from fastapi_otpless_session.session import Session, SessionDetails, SessionReason, is_over, utc
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.signin import Bound, OtplessUser, bind
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.stores.base import (
    REFRESH_TOKEN,
    EndReason,
    Found,
    SessionRow,
    SessionStore,
    Standing,
    State,
)
from fastapi_otpless_session.strangers import Stranger, Strangers
from fastapi_otpless_session.tokens import Claims, UnreadableError
from fastapi_otpless_session.vault import Vault
from fastapi_otpless_session.wire import Verdict

REMEMBERED = 10_000
DETAILS_REMEMBERED = 1_000
SEEN_SECONDS = 60.0
UNKNOWN_LIFETIME = 30 * 86_400.0
"""How long the ended row of a session that was not signed in here is kept: no refresh token tells."""
HOUSEKEEPING_SECONDS = 2.0
PURGE_EVERY = 30
PURGE_BATCH = 500


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One of a user's sessions, as a list of devices shows it."""

    id: str
    device: str | None
    place: str | None
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime


@dataclass(slots=True)
class _Loop:
    """What runs on one event loop: tasks, and whether any may run behind a request."""

    flights: Flights[Any]
    housekeeping: asyncio.Task[None] | None = None

    @property
    def behind(self) -> bool:
        return self.housekeeping is not None


@dataclass(frozen=True, slots=True)
class _Copy:
    """A worker's own copy of what it found and answered for a digest, and when by the worker's monotonic clock."""

    found: Found
    at: float


@dataclass(frozen=True, slots=True)
class _Current:
    """A session's current token, and what is known of it."""

    row: SessionRow
    token: str
    claims: Claims
    now: float
    refreshed: bool
    stale: bool = False
    committed: bool = True


class OtplessSessions:
    """The sessions of an application.

    `settings` default to the `OTPLESS_*` variables. A `store` or `client` that is given is not closed here. `clock`
    gives seconds since the epoch. Raises `ConfigurationError`.

        async with OtplessSessions() as sessions:
            await sessions.end_all(user_id)
    """

    def __init__(
        self,
        settings: OtplessSettings | None = None,
        *,
        store: SessionStore | None = None,
        client: OtplessClient | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or OtplessSettings()
        self._clock = clock
        self._owns_store, self._owns_client = store is None, client is None
        self._store = store or open_store(self.settings.store_url.get_secret_value(), clock=clock)
        self._client = client or OtplessClient(self.settings)
        self._vault = Vault(self.settings)
        self._outbox = Outbox(self._store, self._client, self._vault, hold=2 * self.settings.refresh_timeout)
        self._loops: PerLoop[_Loop] = PerLoop(lambda: _Loop(Flights()), self._drain)
        self._refresher = Refresher(
            store=self._store,
            client=self._client,
            vault=self._vault,
            outbox=self._outbox,
            settings=self.settings,
            behind=self._behind,
        )
        self._strangers = Strangers(self._store, self._client, self.settings, clock)
        self._copies: Lru[bytes, _Copy] = Lru(REMEMBERED)
        self._claims: Lru[bytes, Claims] = Lru(REMEMBERED)
        self._ended: Lru[str, SessionReason] = Lru(REMEMBERED)
        self._details: Lru[bytes, tuple[SessionDetails, float]] = Lru(DETAILS_REMEMBERED)

    # Life

    async def open(self) -> None:
        """Open the store and the connections to OTPLESS, and begin the work that is done behind requests.

        Raises `StoreError` where the store cannot be used.
        """
        await self._store.open()
        await self._client.open()
        loop = await self._loops.get()
        if loop.housekeeping is None:
            loop.housekeeping = asyncio.create_task(self._housekeep())

    async def close(self) -> None:
        """Finish the refreshes that are under way on this event loop, and close what was opened."""
        await self._loops.close()
        if self._owns_client:
            await self._client.close()
        if self._owns_store:
            await self._store.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # Resolving

    async def resolve(
        self, token: str, *, known_only: bool = False, max_age: float | None = None
    ) -> Session | SessionReason:
        """Return the session that a token stands for, refreshed where need be, or the reason why there is none.

        `known_only`: admit only what was signed in here, as the cookie channel does. `max_age`: OTPLESS itself must have
        said "valid" at most so many seconds ago. Raises nothing: a fault is `SessionReason.UNAVAILABLE`.
        """
        outcome = await self._resolve(token, known_only, max_age)
        name = "session" if isinstance(outcome, Session) else outcome.value
        telemetry.resolutions.add(1, {"outcome": name})
        return outcome

    async def recheck(self, session: Session) -> Session | SessionReason:
        """Look at a session again that was resolved a while ago, whatever its token has become since."""
        try:
            row = await self._store.get(session.id)
            if row is None:
                return await self._resolve(session.token.get_secret_value(), known_only=False, max_age=None)
            if row.state is State.ENDED:
                return ended_reason(row)
            return await self._row_session(row, await self._store.now(), None, None)
        except NoVerdictError:
            return SessionReason.UNAVAILABLE

    async def is_active(self, session: Session) -> bool:
        """Whether a session has not been ended meanwhile. Raises `StoreError`."""
        row = await self._store.get(session.id)
        return row is not None and row.state is State.ACTIVE

    async def _resolve(self, token: str, known_only: bool, max_age: float | None) -> Session | SessionReason:
        if not tokens.is_token(token):
            return SessionReason.INVALID
        digest = self._vault.digest(token)
        try:
            found = await self._find(digest)
        except StoreError as error:
            telemetry.logger.warning("No verdict: %s", error)
            return self._while_store_is_down(token, digest, max_age)
        try:
            return await self._admit(token, digest, found, known_only=known_only, max_age=max_age)
        except NoVerdictError:
            return SessionReason.UNAVAILABLE

    async def _find(self, digest: bytes) -> Found | None:
        if self.settings.store_ttl:
            copy, now = self._copies.get(digest), time.monotonic()
            if copy is not None and now - copy.at < self.settings.store_ttl and not self._has_ended(copy):
                return replace(copy.found, now=copy.found.now + now - copy.at)
        return await self._store.find(digest)

    def _has_ended(self, copy: _Copy) -> bool:
        return self._ended.get(copy.found.row.session_id) is not None

    async def _admit(
        self, token: str, digest: bytes, found: Found | None, *, known_only: bool, max_age: float | None
    ) -> Session | SessionReason:
        if found is None:
            return await self._stranger(token, digest, known_only, max_age)
        row, now = found.row, found.now
        if found.generation == REFRESH_TOKEN:
            return SessionReason.INVALID
        if row.state is State.ENDED:
            self._forget(row, ended_reason(row))
            return ended_reason(row)
        standing = row.standing(found.generation, now, self.settings.rotation_grace)
        if standing is Standing.SUPERSEDED:
            return await self._reused(row)
        if standing is Standing.CURRENT and row.confirmed_generation < row.generation:
            await self._confirm(row)
        outcome = await self._row_session(row, now, token if standing is Standing.CURRENT else None, max_age)
        if isinstance(outcome, Session):
            self._copies.put(digest, _Copy(found, time.monotonic()))
        return outcome

    async def _row_session(
        self, row: SessionRow, now: float, token: str | None, max_age: float | None
    ) -> Session | SessionReason:
        """Judge an active row. `token` is what the client presented, if that is the current one."""
        if self._beyond_limits(row, now):
            await self._end_quietly(row, EndReason.EXPIRED)
            return SessionReason.EXPIRED
        try:
            presented = token or self._vault.session_token(row)
        except UnreadableError:
            return SessionReason.INVALID
        current = _Current(row, presented, self._claims_of(presented), now, refreshed=token is None)
        outcome = await self._settled(current, max_age)
        if isinstance(outcome, SessionReason):
            return outcome
        await self._note_seen(outcome.row, now)
        return _session(outcome)

    async def _settled(self, current: _Current, max_age: float | None) -> _Current | SessionReason:
        """Have OTPLESS's word, recent enough, on a session; refresh where that word is no."""
        row, now = current.row, current.now
        if is_over(row.token_expires_at, now):
            return await self._refreshed(current)
        loop = await self._loops.get()
        how = freshness(now - row.validated_at, self.settings, max_age=max_age, behind=loop.behind)
        if how is Freshness.FRESH:
            await self._refresh_ahead(current, loop)
            return current
        if how is Freshness.AGING:
            loop.flights.start(("behind", row.session_id), lambda: self._revalidate(current))
            return current
        try:
            verdict = await self._ask(current, loop)
        except NoVerdictError:
            if how is not Freshness.DUE:
                raise
            return replace(current, stale=True)
        if verdict is not Verdict.VALID:
            return await self._refreshed(current)
        return replace(current, row=replace(row, validated_at=now))

    async def _ask(self, current: _Current, loop: _Loop) -> Verdict:
        """Ask OTPLESS whether a session is valid; whoever asks at the same time shares the answer."""
        row = current.row
        key = ("validate", row.session_id, row.generation)
        try:
            return await loop.flights.join(key, lambda: self._validate(current), 2 * self.settings.request_timeout)
        except TimeoutError:
            raise NoVerdictError("OTPLESS takes too long") from None

    async def _validate(self, current: _Current) -> Verdict:
        verdict = await self._client.validate_session(current.token)
        if verdict is Verdict.VALID:
            try:
                await self._store.touch(current.row.session_id, current.row.generation, validated=True)
            except StoreError as error:
                telemetry.logger.warning("Validation not kept: %s", error)
        return verdict

    async def _revalidate(self, current: _Current) -> None:
        """Ask behind the request; a "not valid" goes straight into the refresh, and is shared."""
        loop = await self._loops.get()
        try:
            if await self._ask(current, loop) is not Verdict.VALID:
                await self._refreshed(current)
        except NoVerdictError as error:
            telemetry.logger.info("Behind a request: %s", error)

    async def _refreshed(self, current: _Current) -> _Current | SessionReason:
        row = current.row
        loop = await self._loops.get()
        try:
            outcome: Refreshed | SessionReason = await loop.flights.join(
                ("refresh", row.session_id), lambda: self._refresher.refresh(row), self.settings.refresh_timeout
            )
        except TimeoutError:
            raise NoVerdictError("the refresh takes too long") from None
        if isinstance(outcome, SessionReason):
            self._forget(row, outcome)
            return outcome
        claims = self._claims_of(outcome.token)
        now = max(current.now, outcome.row.validated_at)
        return _Current(
            outcome.row, outcome.token, claims, now, refreshed=outcome.committed, committed=outcome.committed
        )

    async def _refresh_ahead(self, current: _Current, loop: _Loop) -> None:
        """Refresh behind the request in the last part of a token's life, from a point that differs by session."""
        row, share = current.row, self.settings.refresh_ahead
        issued_at = current.claims.issued_at
        if not share or not loop.behind or issued_at is None or not row.refresh_token:
            return
        part = (row.token_expires_at - issued_at) * share
        jitter = random.Random(f"{row.session_id}{row.generation}").random()  # noqa: S311 - spreading load
        if current.now >= row.token_expires_at - part * (1 - jitter / 2):
            loop.flights.start(("ahead", row.session_id), lambda: self._ahead(current))

    async def _ahead(self, current: _Current) -> None:
        try:
            await self._refreshed(current)
        except NoVerdictError as error:
            telemetry.logger.info("Refresh ahead: %s", error)

    async def _stranger(
        self, token: str, digest: bytes, known_only: bool, max_age: float | None
    ) -> Session | SessionReason:
        if known_only or not self.settings.accept_unknown_tokens:
            return SessionReason.INVALID
        outcome = await self._strangers.admit(token, digest, max_age)
        return outcome if isinstance(outcome, SessionReason) else _stranger_session(outcome, token)

    async def _reused(self, row: SessionRow) -> SessionReason:
        """Somebody presents a token that was replaced long ago: a thief, or the user after one (RFC 9700, 4.14.2)."""
        telemetry.reuses.add(1)
        telemetry.logger.warning("session_reused: %s", telemetry.session_label(row.session_id))
        if self.settings.on_reuse == "revoke":
            await self._end_quietly(row, EndReason.REUSED)
        return SessionReason.REUSED

    async def _confirm(self, row: SessionRow) -> None:
        try:
            await self._store.confirm(row, self.settings.rotation_grace)
        except StoreError as error:
            telemetry.logger.warning("Not confirmed: %s", error)

    async def _note_seen(self, row: SessionRow, now: float) -> None:
        """Write `last_seen_at`, once a minute at most (a tenth of `IDLE_TIMEOUT` where that is shorter)."""
        idle = self.settings.idle_timeout
        if now - row.last_seen_at < min(SEEN_SECONDS, idle / 10 if idle else SEEN_SECONDS):
            return
        await self._behind(f"seen {row.session_id}", lambda: self._touch(row))

    async def _touch(self, row: SessionRow) -> None:
        try:
            await self._store.touch(row.session_id, row.generation, validated=False)
        except StoreError as error:
            telemetry.logger.warning("Not noted as seen: %s", error)

    def _beyond_limits(self, row: SessionRow, now: float) -> bool:
        """Whether our own limits, on top of OTPLESS's, are up."""
        idle, absolute = self.settings.idle_timeout, self.settings.absolute_timeout
        idle_over = idle is not None and is_over(row.last_seen_at + idle, now)
        return idle_over or (absolute is not None and is_over(row.created_at + absolute, now))

    def _while_store_is_down(self, token: str, digest: bytes, max_age: float | None) -> Session | SessionReason:
        """Serve who this worker resolved within `STALE_IF_ERROR`, as stale; nobody else."""
        if max_age is not None or not self.settings.stale_if_error:
            return SessionReason.UNAVAILABLE
        copy, now = self._copies.get(digest), time.monotonic()
        if copy is None:
            stranger = self._strangers.while_store_is_down(digest)
            return SessionReason.UNAVAILABLE if stranger is None else _stranger_session(stranger, token)
        if reason := self._ended.get(copy.found.row.session_id):
            return reason
        row, then = copy.found.row, copy.found.now + now - copy.at
        current_token = copy.found.generation == row.generation
        if now - copy.at > self.settings.stale_if_error or is_over(row.token_expires_at, then) or not current_token:
            return SessionReason.UNAVAILABLE
        return _session(_Current(row, token, self._claims_of(token), then, refreshed=False, stale=True))

    def _claims_of(self, token: str) -> Claims:
        """Read a token that OTPLESS vouched for. Remembered: it is read on every request."""
        digest = self._vault.digest(token)
        claims = self._claims.get(digest)
        if claims is None:
            claims = tokens.read_claims(token)
            self._claims.put(digest, claims)
        return claims

    # Signing in and out

    async def sign_in(self, user: OtplessUser, *, fits: Callable[[str, float], None] | None = None) -> Session:
        """Bind and store what the frontend SDK handed over, and return the session; its `token` is the client's.

        `fits` may look at the token and its remaining life and raise, before anything is stored. The same sign-in again
        is answered again; an ended session is not revived. Raises `SignInRefusedError`, `BodyRefusedError`, or
        `NoVerdictError`.
        """
        now = await self._store.now()
        bound = await bind(self._client, self.settings, user, now)
        if fits is not None:
            fits(bound.pair.session_token, bound.refresh_claims.expires_at - now)
        row = self._new_row(bound, now)
        vault, pair = self._vault, bound.pair
        there = await self._store.create(row, vault.digest(pair.session_token), vault.digest(pair.refresh_token))
        self._strangers.forget(vault.digest(pair.session_token))
        if there is None:
            telemetry.logger.info("Signed in: %s", telemetry.session_label(row.session_id))
            return _session(_Current(row, pair.session_token, bound.claims, now, refreshed=False))
        return self._signed_in_before(there, bound, now)

    def _signed_in_before(self, row: SessionRow, bound: Bound, now: float) -> Session:
        if row.state is State.ENDED or row.user_id != bound.user_id:
            raise SignInRefusedError
        try:
            token = self._vault.session_token(row)
        except UnreadableError:
            raise SignInRefusedError from None
        return _session(_Current(row, token, self._claims_of(token), now, refreshed=False))

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
            expires_at=bound.refresh_claims.expires_at,
            summary=bound.summary,
        )

    async def remaining_life(self, session: Session) -> float | None:
        """Return how many seconds the session's refresh token is still good for; None: it has none here."""
        row = await self._store.get(session.id)
        return None if row is None else max(0.0, row.expires_at - await self._store.now())

    async def sign_out(self, token: str, *, known_only: bool = False) -> None:
        """End the session of a token, here first and for every worker, then at OTPLESS.

        A token that is nobody's is no error. Raises `NoVerdictError` where neither the store nor OTPLESS could be told.
        """
        if not tokens.is_token(token):
            return
        try:
            row = await self._row_to_end(token, known_only)
            if row is not None:
                await self._end(row, EndReason.REVOKED)
        except StoreError as error:
            telemetry.logger.warning("Sign-out without the store: %s", error)
            await self._client.revoke_session(token)

    async def _row_to_end(self, token: str, known_only: bool) -> SessionRow | None:
        digest = self._vault.digest(token)
        found = await self._store.find(digest)
        if found is not None:
            return found.row if found.generation != REFRESH_TOKEN else None
        if known_only or not self.settings.accept_unknown_tokens:
            return None
        identity = await self._strangers.identify(token)
        if identity is None:
            return None
        self._strangers.forget(digest)
        session_id, claims = identity
        return await self._store.get(session_id) or await self._stranger_row(session_id, claims, token)

    async def _stranger_row(self, session_id: str, claims: Claims, token: str) -> SessionRow:
        now = await self._store.now()
        return SessionRow(
            session_id=session_id,
            user_id=claims.user_id or "",
            session_token=self._vault.seal_session_token(token, session_id),
            token_expires_at=claims.expires_at,
            created_at=now,
            last_seen_at=now,
            expires_at=now + UNKNOWN_LIFETIME,
        )

    async def _end(self, row: SessionRow, reason: EndReason) -> None:
        """End a row, durably, then tell OTPLESS; where that fails, the outbox goes on. Raises `StoreError`."""
        ended = await self._store.end(row, reason, revoke=True)
        self._forget(ended, ended_reason(ended))
        telemetry.logger.info("Ended (%s): %s", reason.value, telemetry.session_label(row.session_id))
        if ended.revocation_due is not None:
            await self._tell(ended)

    async def _tell(self, row: SessionRow) -> None:
        loop = await self._loops.get()
        try:
            await loop.flights.join(
                ("tell", row.session_id), lambda: self._outbox.tell(row), self.settings.request_timeout
            )
        except TimeoutError:
            telemetry.logger.info("Revocation goes on behind the request")

    async def _end_quietly(self, row: SessionRow, reason: EndReason) -> None:
        """End a row whose session is refused anyway, whether that can be written now or not."""
        try:
            await self._end(row, reason)
        except StoreError as error:
            telemetry.logger.warning("Not ended yet: %s", error)

    def _forget(self, row: SessionRow, reason: SessionReason) -> None:
        self._ended.put(row.session_id, reason)

    # A user's sessions

    async def details(self, session: Session) -> SessionDetails:
        """Return OTPLESS's get-session-details, remembered as long as a validation.

        Raises `SessionRefusedError` where OTPLESS says that the session is over, `NoVerdictError` where it says nothing.
        """
        token = session.token.get_secret_value()
        digest, now = self._vault.digest(token), time.monotonic()
        known = self._details.get(digest)
        if known is not None and now - known[1] < self.settings.validation_ttl:
            return known[0]
        details = await self._client.session_details(token)
        if isinstance(details, Verdict):
            raise SessionRefusedError(SessionReason.EXPIRED)
        if details.session_id != session.id:
            raise UpstreamError("OTPLESS's answer makes no sense: details of another session")
        self._details.put(digest, (details, now))
        return details

    async def list(self, user_id: str) -> Sequence[SessionSummary]:
        """Return a user's sessions that are known here, the newest first. Raises `StoreError`."""
        return [_summary(row) for row in await self._store.list_user(user_id)]

    async def end(self, session_id: str, *, user_id: str | None = None) -> bool:
        """End a session by its id; False where there is none, or none of `user_id`'s. Raises `StoreError`."""
        row = await self._store.get(session_id)
        if row is None or row.state is State.ENDED or user_id not in {None, row.user_id}:
            return False
        await self._end(row, EndReason.REVOKED)
        return True

    async def end_all(self, user_id: str) -> int:
        """End all of a user's sessions that are known here, and return how many. Raises `StoreError`."""
        count = 0
        while rows := await self._store.list_user(user_id):
            await asyncio.gather(*(self._end(row, EndReason.REVOKED) for row in rows))
            count += len(rows)
        return count

    # Behind requests

    async def housekeep(self) -> None:
        """Do once what a running application does every few seconds: tell OTPLESS of ended sessions that are due, and
        delete what has expired. Raises `StoreError`.
        """
        await self._outbox.deliver_due()
        await self._store.purge(PURGE_BATCH)

    async def _housekeep(self) -> None:
        turn = 0
        while True:
            try:
                await self._outbox.deliver_due()
                if turn % PURGE_EVERY == 0 and await self._store.purge(PURGE_BATCH) >= PURGE_BATCH:
                    turn -= 1  # there is more: go on at the next turn
            except NoVerdictError as error:
                telemetry.logger.warning("Housekeeping: %s", error)
            turn += 1
            await asyncio.sleep(HOUSEKEEPING_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreading load

    async def _behind(self, key: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something behind the request; where nothing may run there, now."""
        loop = await self._loops.get()
        task = loop.flights.start(key, work)
        if not loop.behind:
            await asyncio.shield(task)

    async def _drain(self, loop: _Loop) -> None:
        if loop.housekeeping is not None:
            loop.housekeeping.cancel()
            await asyncio.wait([loop.housekeeping])
        await loop.flights.drain(self.settings.refresh_timeout)


def _session(current: _Current) -> Session:
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


def _stranger_session(stranger: Stranger, token: str) -> Session:
    claims = stranger.claims
    return Session(
        id=stranger.session_id,
        user_id=stranger.user_id,
        name=claims.name,
        email=claims.email,
        issued_at=utc(claims.issued_at or stranger.validated_at),
        expires_at=utc(claims.expires_at),
        validated_at=utc(stranger.validated_at),
        refreshed=False,
        stale=stranger.stale,
        claims=claims.others,
        token=SecretStr(token),
    )


def _summary(row: SessionRow) -> SessionSummary:
    shown = json.loads(row.summary)
    device = [shown.get("browser"), shown.get("platform")]
    place = [shown.get("city"), shown.get("country")]
    return SessionSummary(
        id=row.session_id,
        device=", ".join(part for part in device if part) or shown.get("user_agent"),
        place=", ".join(part for part in place if part) or None,
        created_at=utc(row.created_at),
        last_seen_at=utc(row.last_seen_at),
        expires_at=utc(row.expires_at),
    )
