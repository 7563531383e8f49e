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
from typing import Any, Self

from pydantic import SecretStr

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.background import Background
from fastapi_otpless_session.binding import OtplessUser, read_user
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.copies import Copy
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.current import Resolved, session_of
from fastapi_otpless_session.duties import Duties
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import (
    BodyRefusedError,
    ConfigurationError,
    NoVerdictError,
    SessionRefusedError,
    StoreError,
)
from fastapi_otpless_session.freshness import Freshness, freshness
from fastapi_otpless_session.hooks import Events, Hook, SignOutReason
from fastapi_otpless_session.judge import LANDING_SECONDS
from fastapi_otpless_session.loops import check_loop
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.outage import Outages
from fastapi_otpless_session.outbox import Outbox
from fastapi_otpless_session.refresh import Refresher
from fastapi_otpless_session.resolver import Resolver
from fastapi_otpless_session.session import Session, SessionDetails, SessionReason, utc
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.sign_ins import PURGE_BATCH, SignIns
from fastapi_otpless_session.sign_outs import SignOuts
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.stores.base import EndReason, SessionRow, SessionStore, State
from fastapi_otpless_session.strangers import Stranger, Strangers, check_details
from fastapi_otpless_session.tokens import UnreadableError, is_id
from fastapi_otpless_session.vault import Vault
from fastapi_otpless_session.wire import Verdict

DETAILS_REMEMBERED = 1_000
DRAIN_FACTOR = 2
"""Stopping may take this many times `REFRESH_TIMEOUT`: a refresh waits that long for another worker's, then calls."""
HOUSEKEEPING_SECONDS = 2.0
MEASURE_EVERY = 5
PURGE_EVERY = 30


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
    or takes longer than 5 s is logged, and harms no request; a thread that hangs in one keeps the process from ending.
    They run behind requests. Where no lifespan runs, the request waits for them; but never for what a refresh brings:
    `on_refresh`, and the `on_sign_out` of a session that OTPLESS refuses to refresh.

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
        settings = _checked(settings or OtplessSettings())
        hooks = {"sign_in": on_sign_in, "refresh": on_refresh, "sign_out": on_sign_out, "reuse": on_reuse}
        _check_parts(settings, store, client, hooks)
        self.settings: OtplessSettings = settings
        self._owns_store, self._owns_client = store is None, client is None
        self._store = store = store or open_store(settings.store_url.get_secret_value(), clock=clock)
        self._client = client = client or OtplessClient(settings, monotonic=monotonic)
        self._vault = vault = Vault(settings)
        self.is_open: bool = False
        self._clock = clock
        self.monotonic: Callable[[], float] = monotonic
        """Seconds that never go back."""
        self._background = background = Background(drain=DRAIN_FACTOR * settings.refresh_timeout + LANDING_SECONDS)
        self._hooks = {name: hook for name, hook in hooks.items() if hook}
        self._outbox = outbox = Outbox(store, client, vault, hold=2 * settings.refresh_timeout)
        self._duties = duties = Duties(settings, monotonic)
        self._outages = outages = Outages(monotonic)
        core = Core(
            settings=settings,
            store=store,
            client=client,
            vault=vault,
            duties=duties,
            outages=outages,
            outbox=outbox,
            events=Events(self._hooks, background, clock),
            background=background,
            clock=clock,
            monotonic=monotonic,
        )
        self._endings = endings = Endings(core)
        self._strangers = strangers = Strangers(core, endings=endings)
        self._resolver = resolver = Resolver(core, refresher=Refresher(core), strangers=strangers, endings=endings)
        self._sign_ins = SignIns(core, strangers=strangers, endings=endings)
        self._sign_outs = SignOuts(core, resolver=resolver, strangers=strangers, endings=endings)
        self._details: Lru[str, tuple[SessionDetails, float]] = Lru(DETAILS_REMEMBERED)

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

        Raises `StoreError` where the store cannot be used, `ConfigurationError` on another event loop than asyncio's.
        What was opened before a fault is closed again.
        """
        check_loop()
        try:
            await self._open_store()
            await self._client.open()
            await self._background.begin(self._housekeep)
        except BaseException:
            if not self.is_open:  # else others go on with it
                await self.close()
            raise
        self.is_open = True

    async def _open_store(self) -> None:
        try:
            await self._store.open()
        except StoreError as error:
            if not self._owns_store or "OTPLESS_STORE_URL" in str(error):
                raise
            raise StoreError(f"{str(error).rstrip('.')}. Check OTPLESS_STORE_URL", remedy=error.remedy) from None

    async def close(self) -> None:
        """Finish the refreshes that are under way on this event loop, and close what was opened.

        All of it: a step that fails or is cancelled keeps none of the next from being done.
        """
        self.is_open = False
        async with AsyncExitStack() as steps:  # the last first
            if self._owns_store:
                steps.push_async_callback(self._store.close)
            if self._owns_client:
                steps.push_async_callback(self._client.close)
            steps.push_async_callback(self._endings.write_all_noted)
            steps.push_async_callback(self._background.close)

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

        Requests are answered by it where it can, and by `resolved` where not: who overrides one overrides both.
        """
        served = self._resolver.at_once(token, known_only=known_only)
        if served is not None:
            telemetry.count_served()
        return served

    async def resolve(
        self, token: str, *, known_only: bool = False, max_age: float | None = None, waited: float = 0.0
    ) -> Session | SessionReason:
        """Return the session that a token stands for, refreshed where need be, or the reason why there is none.

        `known_only`: admit only what was signed in here, as the cookie channel does. `max_age`: OTPLESS itself must
        have said "valid" within the last `max_age` seconds. `waited`: how many seconds ago the token came; whether it
        was superseded is judged by then. Raises nothing: a fault is `SessionReason.UNAVAILABLE`.
        """
        outcome = await self.resolved(token, known_only=known_only, max_age=max_age, waited=waited)
        return outcome if isinstance(outcome, Session | SessionReason) else session_of(outcome, token)

    def resolved(
        self, token: str, *, known_only: bool = False, max_age: float | None = None, waited: float = 0.0
    ) -> Coroutine[Any, Any, Resolved]:
        """Return what `resolve` makes its session of. Requests are answered by it: who overrides one overrides both."""
        return self._resolver.resolve(token, known_only=known_only, max_age=max_age, waited=waited)

    async def recheck(self, session: Session, *, known_only: bool = False) -> Session | SessionReason:
        """Look at a session again that was resolved a while ago, whatever its token has become since.

        `known_only`: as for `resolve`. Raises nothing: a fault is `SessionReason.UNAVAILABLE`, and says nothing of it.
        """
        try:
            row = await self._store.get(session.id)
            if row is None:
                return await self.resolve(session.token.get_secret_value(), known_only=known_only)
            return await self._resolver.recheck(row)
        except NoVerdictError as error:
            if isinstance(error, StoreError):  # an open websocket is activity, and that cannot be written
                self._duties.note_unwritten(session.id)
            return self._endings.reason(session.id) or SessionReason.UNAVAILABLE

    def remaining_life(self, session: Session) -> float | None:
        """Return what `newest_token` says of a session's own token, where nobody has to be waited for; else None."""
        life = self._resolver.remaining_life(session)
        return None if life is None else max(0.0, life)

    async def newest_token(self, session: Session) -> tuple[SecretStr, float] | None:
        """Return a session's newest token, and how many seconds its refresh token is still good for.

        A session that was resolved a while ago may have got another token since, and whoever goes on with the one of
        then is soon taken for a thief. None: the session is not active here, or its token cannot be unsealed. Raises
        `StoreError`.
        """
        life = self.remaining_life(session)
        if life is not None:
            return session.token, life
        row = await self._store.get(session.id)
        if row is None or row.state is State.ENDED or self._endings.reason(row.session_id) is SessionReason.REVOKED:
            return None
        life = max(0.0, row.expires_at - await self._store.now())
        try:
            return SecretStr(self._vault.session_token(row)), life
        except UnreadableError:
            return None

    # Signing in and out

    async def sign_in(
        self, user: OtplessUser | Mapping[str, object], *, fits: Callable[[str, float], None] | None = None
    ) -> Session:
        """Bind and store what the frontend SDK handed over, and return the session; its `token` is the client's.

        `user` is the SDK's `otplessUser`, as it came. `fits` may look at the token and its remaining life and raise,
        before anything is stored. The same sign-in again is answered again; an ended session is not revived. Raises
        `SignInRefusedError`, `BodyRefusedError`, or `NoVerdictError`. A sign-in that has begun is finished though
        whoever asked be cancelled, as long as the event loop runs.
        """
        read = user if isinstance(user, OtplessUser) else read_user(user)
        del user  # no frame of an error's shows it
        if isinstance(read, BodyRefusedError):
            raise read
        return await self._background.finish(partial(self._sign_ins.sign_in, read, fits))

    async def sign_out(self, token: str, *, known_only: bool = False) -> None:
        """End the session of a token, here first and for every worker, then at OTPLESS.

        A token that is nobody's is no error. Raises `NoVerdictError` where neither the store nor OTPLESS could be told.
        """
        secret = SecretStr(token)
        del token  # no frame of an error's shows it
        await self._sign_outs.sign_out(secret, known_only)

    async def replace(self, token: str, session: Session) -> None:
        """End the session of a token that a browser still carried when `session` was signed in, if it is another.

        A fault is logged only: the new session stands.
        """
        await self._sign_outs.replace(token, session)

    # A user's sessions

    async def details(self, session: Session) -> SessionDetails:
        """Return OTPLESS's get-session-details, remembered as long as a validation, and in an outage as long as that.

        Raises `SessionRefusedError` where OTPLESS says that the session is over, `NoVerdictError` for no verdict.
        """
        now, known = self._clock(), self._details.get(session.id)
        how = Freshness.TOO_OLD if known is None else freshness(now - known[1], self.settings)
        if known is not None and how is Freshness.FRESH:
            return known[0]
        is_known = not self._strangers.has_admitted(self._vault.digest(session.token.get_secret_value()))
        try:
            details = await self._client.session_details(session.token.get_secret_value(), known=is_known)
        except NoVerdictError:
            if known is None or how is Freshness.TOO_OLD:
                raise
            return known[0]
        if isinstance(details, Verdict):
            raise SessionRefusedError(SessionReason.EXPIRED)
        check_details(details, session.id)
        self._details.put(session.id, (details, now))
        return details

    async def list(self, user_id: str) -> Sequence[SessionSummary]:
        """Return a user's sessions that are known here, the newest first. Raises `StoreError`."""
        return [_summary(row) for row in await self._rows(user_id)]

    async def end(self, session_id: str, *, user_id: str | None = None) -> bool:
        """End a session by its id; False where there is none, or none of `user_id`'s. Raises `NoVerdictError`."""
        row = await self._store.get(session_id) if is_id(session_id) else None
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
        while rows := [row for row in await self._rows(user_id) if row.session_id != but]:
            await asyncio.gather(*(self._endings.end(row, EndReason.REVOKED, SignOutReason.ENDED_ALL) for row in rows))
            count += len(rows)
        return count

    async def _rows(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's rows. What can be no id has none: a store may not even be able to look for it."""
        return await self._store.list_user(user_id) if is_id(user_id) else ()

    # Behind requests

    async def housekeep(self) -> None:
        """Tell OTPLESS of ended sessions that are due, and delete what has expired, once. Raises `StoreError`.

        A running application does this by itself every few seconds. What was signed out while the store could not take
        note is written first.
        """
        with self._outages.watching():
            await self._endings.write_noted()
            await self._outbox.deliver_due()
            await self._outbox.measure()
            await self._store.purge(PURGE_BATCH)

    async def _housekeep(self) -> None:
        turn = 0
        while True:
            try:
                with self._outages.watching():
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


def _checked(settings: object) -> OtplessSettings:
    if not isinstance(settings, OtplessSettings):
        kind = "a class" if isinstance(settings, type) else f"a {type(settings).__name__}"
        raise ConfigurationError(f"settings: OtplessSettings(…) is expected, and not {kind}")
    return settings


def _check_parts(settings: OtplessSettings, store: object, client: object, hooks: Mapping[str, object]) -> None:
    """Refuse what would be found out by a request, or never: not everybody's annotations are checked."""
    if isinstance(store, str):  # which may hold a password
        raise ConfigurationError("store: a store is expected, and not its address: open_store(address) makes it")
    client_id = getattr(client, "client_id", None)  # a test's double need not have one
    if isinstance(client_id, str) and client_id != settings.client_id:
        raise ConfigurationError("client: it calls OTPLESS as another client_id than the settings'")
    for name, hook in hooks.items():
        if hook is not None and not callable(hook):
            raise ConfigurationError(f"on_{name}: a function is expected, and not a {type(hook).__name__}")
