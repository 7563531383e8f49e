"""`OtplessSessions`: resolve, sign in, sign out, details, list, end. Usable without FastAPI, in jobs and scripts."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.background import Background
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.copies import Copy, Duties
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import (
    NoVerdictError,
    SessionRefusedError,
    SignInRefusedError,
    StoreError,
    bare,
)
from fastapi_otpless_session.hooks import Events, Hook, SignOutReason
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.refresh import Refresher
from fastapi_otpless_session.resolver import LANDING_SECONDS, Current, Resolver, claims_for
from fastapi_otpless_session.revocation import Outbox
from fastapi_otpless_session.session import Session, SessionDetails, SessionReason, is_over, utc
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.signin import Bound, OtplessUser, bind
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.stores.base import REFRESH_TOKEN, EndReason, SessionRow, SessionStore, State
from fastapi_otpless_session.strangers import Stranger, Strangers, UnclearError, check_details
from fastapi_otpless_session.tokens import Claims, UnreadableError
from fastapi_otpless_session.turns import Turns
from fastapi_otpless_session.vault import Vault
from fastapi_otpless_session.wire import Verdict

DETAILS_REMEMBERED = 1_000
UNKNOWN_LIFETIME = 30 * 86_400.0
"""How long an ended row is kept where only the frontend's SDK has the newest tokens: no refresh token tells."""
DRAIN_FACTOR = 2
"""How often `REFRESH_TIMEOUT` stopping may take: a refresh waits so long for another's, then makes its own call."""
HOUSEKEEPING_SECONDS = 2.0
MEASURE_EVERY = 5
PURGE_EVERY = 30
PURGE_BATCH = 500
PURGES_AT_ONCE = 20
"""How many batches a sign-in purges at most."""


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """One of a user's sessions, as a list of devices shows it."""

    id: str
    device: str | None
    place: str | None
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime


class OtplessSessions:
    """The sessions of an application.

    `settings` default to the `OTPLESS_*` variables. A `store` or `client` that is given is not closed here. `clock`
    gives seconds since the epoch, `monotonic` seconds that never go back. Raises `ConfigurationError`.

    `on_sign_in`, `on_refresh`, `on_sign_out` and `on_reuse` are called with a `SessionEvent` once what it tells has
    happened in this worker. They may be coroutine functions, or plain functions, which run in a thread. One that fails
    or takes longer than 5 s is logged, and does no harm. They run behind requests; where no lifespan runs, the request
    waits for them (but for `on_refresh`).

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
        monotonic: Callable[[], float] = time.monotonic,
        on_sign_in: Hook | None = None,
        on_refresh: Hook | None = None,
        on_sign_out: Hook | None = None,
        on_reuse: Hook | None = None,
    ) -> None:
        settings = settings or OtplessSettings()
        self.settings: OtplessSettings = settings
        self._owns_store, self._owns_client = store is None, client is None
        self._store = store = store or open_store(settings.store_url.get_secret_value(), clock=clock)
        self._client = client = client or OtplessClient(settings)
        self._vault = vault = Vault(settings)
        self.is_open: bool = False
        self._clock = clock
        self._background = background = Background(drain=DRAIN_FACTOR * settings.refresh_timeout + LANDING_SECONDS)
        self._outbox = outbox = Outbox(store, client, vault, hold=2 * settings.refresh_timeout)
        hooks = {"sign_in": on_sign_in, "refresh": on_refresh, "sign_out": on_sign_out, "reuse": on_reuse}
        self._hooks = {name: hook for name, hook in hooks.items() if hook}
        self._events = events = Events(self._hooks, background, clock)
        self._endings = endings = Endings(store, outbox, events, background, settings.request_timeout)
        self._duties = duties = Duties(settings, monotonic)
        self._turns = Turns()
        self._patience = settings.refresh_timeout + settings.request_timeout
        self._strangers = strangers = Strangers(
            store=store,
            client=client,
            settings=settings,
            duties=duties,
            background=background,
            endings=endings,
            clock=clock,
            monotonic=monotonic,
        )
        refresher = Refresher(
            store=store,
            client=client,
            vault=vault,
            outbox=outbox,
            events=events,
            settings=settings,
            monotonic=monotonic,
            behind=background.detach,
        )
        self._resolver = Resolver(
            store=store,
            client=client,
            vault=vault,
            refresher=refresher,
            strangers=strangers,
            duties=duties,
            endings=endings,
            events=events,
            background=background,
            settings=settings,
            monotonic=monotonic,
        )
        self._details: Lru[bytes, tuple[SessionDetails, float]] = Lru(DETAILS_REMEMBERED)

    @property
    def store(self) -> SessionStore:
        """Where the sessions are kept."""
        return self._store

    @property
    def owns_store(self) -> bool:
        """Whether the store was made here, by `STORE_URL`, and is closed here; one that was given is not."""
        return self._owns_store

    @property
    def hooks(self) -> Mapping[str, Hook]:
        """The hooks that were given, as the arguments that they were: `on_sign_in` and so on."""
        return {f"on_{name}": hook for name, hook in self._hooks.items()}

    def label(self, session_id: str) -> str:
        """Return the short hash that log lines and spans call a session by, in all workers with these credentials.

        In a process with several credentials those of the client that was made last count. For lines of the
        application's own. It means nothing to anyone without the client secret.
        """
        return telemetry.session_label(session_id)

    # Life

    async def open(self) -> None:
        """Open the store and the connections to OTPLESS, and begin the work that is done behind requests.

        Raises `StoreError` where the store cannot be used.
        """
        await self._open_store()
        await self._client.open()
        await self._background.begin(self._housekeep)
        self.is_open = True

    async def _open_store(self) -> None:
        try:
            await self._store.open()
        except StoreError as error:
            if not self._owns_store or "OTPLESS_STORE_URL" in str(error):
                raise
            raise StoreError(f"{str(error).rstrip('.')}. Check OTPLESS_STORE_URL") from None

    async def close(self) -> None:
        """Finish the refreshes that are under way on this event loop, and close what was opened."""
        self.is_open = False
        await self._background.close()
        await self._endings.write_all_noted()
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

    def at_once(self, token: str, *, known_only: bool = False) -> Copy | Stranger | None:
        """Return what `resolve` would make its session of, where nobody has to be waited for.

        Requests are answered by it where it can, and by `resolve` where not: who overrides one overrides both.
        """
        served = self._resolver.at_once(token, known_only=known_only)
        if served is not None:
            telemetry.count_served()
        return served

    async def resolve(
        self, token: str, *, known_only: bool = False, max_age: float | None = None
    ) -> Session | SessionReason:
        """Return the session that a token stands for, refreshed where need be, or the reason why there is none.

        `known_only`: admit only what was signed in here, as the cookie channel does. `max_age`: OTPLESS itself must
        have said "valid" within the last `max_age` seconds. Raises nothing: a fault is `SessionReason.UNAVAILABLE`.
        """
        outcome = await self._resolver.resolve(token, known_only=known_only, max_age=max_age)
        if isinstance(outcome, Session):
            telemetry.count_resolution("stale" if outcome.stale else "session")
        else:
            telemetry.count_resolution(outcome.value)
        return outcome

    async def recheck(self, session: Session, *, known_only: bool = False) -> Session | SessionReason:
        """Look at a session again that was resolved a while ago, whatever its token has become since."""
        try:
            row = await self._store.get(session.id)
            if row is None:
                return await self.resolve(session.token.get_secret_value(), known_only=known_only)
            return await self._resolver.recheck(row)
        except NoVerdictError:
            return self._endings.reason(session.id) or SessionReason.UNAVAILABLE

    async def remaining_life(self, session: Session) -> float | None:
        """Return how many seconds a session's refresh token is still good for; None: the session is not active here.

        Raises `StoreError`.
        """
        life = self._resolver.remaining_life(session)
        if life is not None:
            return max(0.0, life)
        row = await self._store.get(session.id)
        if row is None or row.state is State.ENDED:
            return None
        return max(0.0, row.expires_at - await self._store.now())

    # Signing in and out

    async def sign_in(self, user: OtplessUser, *, fits: Callable[[str, float], None] | None = None) -> Session:
        """Bind and store what the frontend SDK handed over, and return the session; its `token` is the client's.

        `fits` may look at the token and its remaining life and raise, before anything is stored. The same sign-in again
        is answered again; an ended session is not revived. Raises `SignInRefusedError`, `BodyRefusedError`, or
        `NoVerdictError`. A sign-in that has begun is finished though whoever asked be cancelled, as long as the event
        loop runs.
        """
        return await self._background.finish(lambda: self._counted_sign_in(user, fits))

    async def _counted_sign_in(self, user: OtplessUser, fits: Callable[[str, float], None] | None) -> Session:
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
            bound = await bind(self._client, self.settings, user, now, partial(self._is_stored, turn))
            if fits is not None:
                fits(bound.pair.session_token, bound.expires_at - now)
            row = self._new_row(bound, now)
            there = await self._stored(row, bound)
        self._strangers.forget(self._vault.digest(bound.pair.session_token))
        if there is None:
            self._endings.forget_expiry(row.session_id)
            self._resolver.begin_anew(row.session_id)
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

    def sign_out(self, token: str, *, known_only: bool = False) -> Coroutine[Any, Any, None]:
        """End the session of a token, here first and for every worker, then at OTPLESS.

        A token that is nobody's is no error. Raises `NoVerdictError` where neither the store nor OTPLESS could be told.
        """
        return self._sign_out_secret(SecretStr(token), known_only)  # no frame of an error's shows the token

    async def _sign_out_secret(self, token: SecretStr, known_only: bool) -> None:
        try:
            with telemetry.span("otpless.sign_out"):
                await self._sign_out(token.get_secret_value(), known_only)
        except NoVerdictError as error:
            telemetry.sign_outs.add(1, telemetry.labels(outcome=telemetry.outcome_of(error)))
            raise bare(error) from None

    async def _sign_out(self, token: str, known_only: bool) -> None:
        if not tokens.is_token(token):
            return
        row: SessionRow | None = None
        try:
            row, renewed = await self._row_to_end(token, known_only)
            if row is not None:
                await self._endings.end(row, EndReason.REVOKED, renewed=renewed)
        except StoreError as error:
            telemetry.logger.warning("Sign-out without the store: %s", error)
            await self._background.finish(lambda: self._sign_out_without_store(token, row))

    async def _sign_out_without_store(self, token: str, row: SessionRow | None) -> None:
        """Tell OTPLESS directly. Raises `NoVerdictError` where that does not end the session."""
        digest = self._vault.digest(token)
        known = row if row is not None and row.refresh_token else self._resolver.seen(digest)  # a stranger's has none
        ours = known or row or await self._identified(token, digest)
        if ours is None:
            return  # it was never anybody's
        verdict = await self._client.revoke_session(token, known=known is not None)
        if verdict not in {Verdict.VALID, Verdict.UNKNOWN}:
            raise StoreError("the session's refresh token may live, and cannot be read now")
        self._strangers.forget(digest)
        if known is not None or verdict is Verdict.VALID:  # else it is another application's
            await self._endings.note_signed_out(digest, ours)

    async def _identified(self, token: str, digest: bytes) -> SessionRow | None:
        """Return a row for a token that neither store nor this worker can tell of; None: it is none of OTPLESS's."""
        try:
            identity = await self._strangers.identify(token, digest)
        except UnclearError:
            raise StoreError("whose token it is cannot be told now") from None
        return None if identity is None else self._stranger_row(*identity, token, self._clock())

    async def replace(self, token: str, session: Session) -> None:
        """End the session of a token that a browser still carried when `session` was signed in, if it is another.

        A fault is logged only: the new session stands.
        """
        if not tokens.is_token(token):
            return
        try:
            found = await self._store.find(self._vault.digest(token))
        except StoreError as error:
            telemetry.logger.warning("The session before is not ended: %s", error)
            return
        if found is None or claims_for(token, found.row) is None:
            return
        if found.row.session_id != session.id and found.row.state is State.ACTIVE:
            await self._endings.end_refused(found.row, EndReason.REVOKED, SignOutReason.REPLACED)

    async def _row_to_end(self, token: str, known_only: bool) -> tuple[SessionRow | None, SessionRow | None]:
        """Return the row of a token's session and, where its own tokens are others than this, one with this."""
        digest = self._vault.digest(token)
        found = await self._store.find(digest)
        if found is not None:
            is_ours = found.generation != REFRESH_TOKEN and claims_for(token, found.row) is not None
            return found.row if is_ours else None, None
        if known_only or not self.settings.accept_unknown_tokens:
            return None, None
        try:
            identity = await self._strangers.identify(token, digest)
        except UnclearError:  # nor does it get in anywhere
            return None, None
        if identity is None:
            return None, None
        self._strangers.forget(digest)
        mine = self._stranger_row(*identity, token, await self._store.now())
        there = await self._store.get(mine.session_id)
        return (mine, None) if there is None else (there, mine)

    def _stranger_row(self, session_id: str, claims: Claims, token: str, now: float) -> SessionRow:
        return SessionRow(
            session_id=session_id,
            user_id=claims.user_id or "",
            session_token=self._vault.seal_session_token(token, session_id),
            token_expires_at=claims.expires_at,
            created_at=now,
            last_seen_at=now,
            expires_at=max(claims.expires_at, now + UNKNOWN_LIFETIME),
        )

    # A user's sessions

    async def details(self, session: Session) -> SessionDetails:
        """Return OTPLESS's get-session-details, remembered as long as a validation.

        Raises `SessionRefusedError` where OTPLESS says that the session is over, `NoVerdictError` for no verdict.
        """
        digest, now = self._vault.digest(session.token.get_secret_value()), self._clock()
        known = self._details.get(digest)
        if known is not None and abs(now - known[1]) < self.settings.validation_ttl:
            return known[0]
        is_known = not self._strangers.has_admitted(digest)
        details = await self._client.session_details(session.token.get_secret_value(), known=is_known)
        if isinstance(details, Verdict):
            raise SessionRefusedError(SessionReason.EXPIRED)
        check_details(details, session.id)
        self._details.put(digest, (details, now))
        return details

    async def list(self, user_id: str) -> Sequence[SessionSummary]:
        """Return a user's sessions that are known here, the newest first. Raises `StoreError`."""
        return [_summary(row) for row in await self._store.list_user(user_id)]

    async def end(self, session_id: str, *, user_id: str | None = None) -> bool:
        """End a session by its id; False where there is none, or none of `user_id`'s. Raises `NoVerdictError`."""
        row = await self._store.get(session_id)
        if row is None or row.state is State.ENDED or user_id not in {None, row.user_id}:
            return False
        await self._endings.end(row, EndReason.REVOKED, SignOutReason.ENDED)
        return True

    async def end_all(self, user_id: str) -> int:
        """End all of a user's sessions that are known here, and return how many. Raises `NoVerdictError`."""
        return await self._end_all(user_id)

    async def end_others(self, user_id: str, session_id: str) -> int:
        """End all of a user's sessions that are known here but one, and return how many. Raises `NoVerdictError`."""
        return await self._end_all(user_id, but=session_id)

    async def _end_all(self, user_id: str, but: str | None = None) -> int:
        count = 0
        while rows := [row for row in await self._store.list_user(user_id) if row.session_id != but]:
            await asyncio.gather(*(self._endings.end(row, EndReason.REVOKED, SignOutReason.ENDED_ALL) for row in rows))
            count += len(rows)
        return count

    # Behind requests

    async def housekeep(self) -> None:
        """Tell OTPLESS of ended sessions that are due, and delete what has expired, once. Raises `StoreError`.

        A running application does this by itself every few seconds. What was signed out while the store could not take
        note is written first.
        """
        await self._endings.write_noted()
        await self._outbox.deliver_due()
        await self._outbox.measure()
        await self._store.purge(PURGE_BATCH)

    async def _housekeep(self) -> None:
        turn = 0
        while True:
            try:
                await self._endings.write_noted()
                await self._outbox.deliver_due()
                if turn % MEASURE_EVERY == 0:
                    await self._outbox.measure()
                if turn % PURGE_EVERY == 0 and await self._store.purge(PURGE_BATCH) >= PURGE_BATCH:
                    turn -= 1  # there is more: go on at the next turn
            except NoVerdictError as error:
                telemetry.logger.warning("Housekeeping: %s", error)
            except Exception:  # noqa: BLE001 - the next turn may work, and nothing else would do this work
                telemetry.logger.exception("Housekeeping failed; it goes on")
            turn += 1
            await asyncio.sleep(HOUSEKEEPING_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreading load


def _has_expired(row: SessionRow | None, now: float) -> bool:
    """Whether a row is there, though its session went on until its tokens had expired."""
    return row is not None and row.state is State.ACTIVE and is_over(row.expires_at, now)


def _shown(summary: str) -> dict[str, str]:
    try:
        shown = json.loads(summary)
    except (ValueError, RecursionError):
        return {}
    return {name: str(value) for name, value in shown.items()} if isinstance(shown, dict) else {}


def _summary(row: SessionRow) -> SessionSummary:
    shown = _shown(row.summary)
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
