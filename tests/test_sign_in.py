"""Signing in twice: at once, again much later, or again after the session was over."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from conftest import Clock, make_settings
from crew import STRICT, FailingStore, Workers
from simulated import LoopTime, settle

from fastapi_otpless_session import (
    BodyRefusedError,
    NoVerdictError,
    OtplessClient,
    OtplessSessions,
    Session,
    SessionReason,
    SignInRefusedError,
    open_store,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault
from fastapi_otpless_session.stores.base import EndReason, SessionStore, State
from fastapi_otpless_session.stores.sqlite import SqliteStore
from fastapi_otpless_session.wire import TokenPair

DAY = 86_400
REFRESH = "get-new-session-token"
UNPROVED: list[dict[str, Any]] = [{"jwks_url": ""}, {"jwks_is_down": True}]
"""Where no signature can be checked, a refresh token is proved by using it."""


class Held(httpx.ASGITransport):
    """The answers to refreshes stay on their way until a test says otherwise; OTPLESS has acted by then."""

    def __init__(self, app: Any) -> None:
        super().__init__(app=app)
        self.arrives = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.url.path.endswith("get-new-session-token"):
            await self.arrives.wait()
        return answer


@asynccontextmanager
async def worker_on(
    emulator: Emulator, store: SessionStore, clock: Clock, *, jwks_is_down: bool = False, **values: Any
) -> AsyncIterator[tuple[OtplessSessions, Held]]:
    """A worker that takes a sign-in more than once, and what holds OTPLESS's answers."""
    if jwks_is_down:
        emulator.add_fault(Fault("status", path="jwks", status=500))
    settings, answers = make_settings(require_sign_in_token=False, **values), Held(emulator.app)
    async with httpx.AsyncClient(transport=answers) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        async with OtplessSessions(settings, store=store, client=client, clock=clock, monotonic=clock) as worker:
            yield worker, answers


def brought(user: dict[str, Any], pair: TokenPair | None = None) -> dict[str, Any]:
    """What the page sends, with the pair that the SDK has by now."""
    return {**user, "sessionInfo": asdict(pair)} if pair else user


async def renewed(worker: OtplessSessions, emulator: Emulator, refresh_token: str) -> TokenPair:
    """The next pair, as the SDK gets it from OTPLESS by itself."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        pair = await OtplessClient(worker.settings, http=http).new_session_token(refresh_token)
    assert isinstance(pair, TokenPair)
    return pair


async def state_of(store: SessionStore, session_id: str) -> tuple[State, EndReason | None]:
    row = await store.get(session_id)
    assert row is not None
    return row.state, row.end_reason


# At once


@pytest.mark.parametrize("values", UNPROVED)
async def test_equal_sign_ins_at_once_use_the_refresh_token_once(clock: Clock, values: dict[str, Any]) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock, **values) as (worker, answers):
        user = emulator.sign_in()
        signing_in = [asyncio.create_task(worker.sign_in(brought(user))) for _ in range(3)]
        await settle(200)
        answers.arrives.set()
        sessions = await asyncio.gather(*signing_in)
        assert len({session.token.get_secret_value() for session in sessions}) == 1
        assert emulator.count("get-new-session-token") == 1
        assert not emulator.session(sessions[0].id).revoked
        clock.advance(DAY + 1)
        assert isinstance(await worker.resolve(sessions[1].token.get_secret_value()), Session)
    await store.close()


async def test_a_sign_in_is_finished_for_its_double_though_whoever_began_it_gave_up(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock, jwks_url="") as (worker, answers):
        user = emulator.sign_in()
        first, second = (asyncio.create_task(worker.sign_in(brought(user))) for _ in range(2))
        await settle(200)
        first.cancel()
        await settle()
        answers.arrives.set()
        assert (await second).id == user["sessionInfo"]["sessionId"]
        assert first.cancelled()
    await store.close()


async def test_a_sign_in_goes_on_where_its_double_before_it_failed(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock, jwks_url="") as (worker, answers):
        user = emulator.sign_in()
        emulator.add_fault(Fault("status", path="get-new-session-token", status=503, times=1))
        signing_in = [asyncio.create_task(worker.sign_in(brought(user))) for _ in range(2)]
        await settle(200)
        answers.arrives.set()
        first, second = await asyncio.gather(*signing_in, return_exceptions=True)
        assert isinstance(first, NoVerdictError)
        assert isinstance(second, Session)
    await store.close()


async def test_nobody_waits_longer_for_a_double_than_for_otpless(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock, jwks_url="") as (worker, _):
        user, loop_time = emulator.sign_in(), LoopTime()
        signing_in = [asyncio.create_task(worker.sign_in(brought(user))) for _ in range(5)]
        await settle(200)
        for _ in range(2):
            await loop_time.advance(worker.settings.refresh_timeout + 1)
            await settle(200)
        outcomes = await asyncio.gather(*signing_in, return_exceptions=True)
        assert all(isinstance(outcome, NoVerdictError) for outcome in outcomes)
        assert emulator.count("get-new-session-token") <= 2
    await store.close()


# With a new key


async def test_a_key_that_cannot_be_asked_for_yet_keeps_nobody_from_signing_in(clock: Clock) -> None:
    """OTPLESS has just begun to sign with it, and its keys were fetched seconds ago: no signature can be checked."""
    emulator, store = Emulator(STRICT, clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock) as (worker, answers):
        answers.arrives.set()
        await worker.sign_in(brought(emulator.sign_in()))
        emulator.rotate_key()
        clock.advance(5)
        user = emulator.sign_in(mobile="919876543210")
        session = await worker.sign_in(brought(user))
        assert session.id == user["sessionInfo"]["sessionId"]
        assert emulator.count("jwks") == 1
    await store.close()


# Again


@pytest.mark.parametrize("limits", [{"idle_timeout": 600}, {"absolute_timeout": 600}])
async def test_a_session_that_is_over_by_our_own_limits_is_not_signed_in_again(
    clock: Clock, limits: dict[str, Any]
) -> None:
    emulator, store = Emulator(clock=clock), SqliteStore(None, clock=clock)
    async with worker_on(emulator, store, clock, **limits) as (worker, _):
        user = emulator.sign_in()
        session = await worker.sign_in(brought(user))
        clock.advance(601)
        with pytest.raises(SignInRefusedError):
            await worker.sign_in(brought(user))
        assert await state_of(store, session.id) == (State.ENDED, EndReason.EXPIRED)
        assert emulator.session(session.id).revoked
    await store.close()


async def test_a_session_that_was_signed_out_without_the_store_is_not_signed_in_again(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with worker_on(emulator, store, clock) as (worker, _):
        user = emulator.sign_in()
        session = await worker.sign_in(brought(user))
        emulator.add_fault(Fault("status", path="revoke-session", status=200, body=b'{"success": true}'))
        store.fail("find", "get", "end")
        await worker.sign_out(session.token.get_secret_value())
        store.fail()
        with pytest.raises(SignInRefusedError):
            await worker.sign_in(brought(user))
    await store.close()


async def outlived(worker: OtplessSessions, emulator: Emulator, clock: Clock) -> tuple[Session, dict[str, Any]]:
    """Somebody whose row has expired, while the SDK went on renewing; and what their page sends then."""
    user = emulator.sign_in()
    first = await worker.sign_in(brought(user))
    clock.advance(6 * DAY)
    pair = await renewed(worker, emulator, user["sessionInfo"]["refreshToken"])
    clock.advance(DAY - 100)
    pair = await renewed(worker, emulator, pair.refresh_token)
    clock.advance(110)
    return first, brought(user, pair)


@pytest.mark.parametrize("values", [{}, {"jwks_url": ""}, {"absolute_timeout": DAY}])
async def test_a_row_that_has_expired_keeps_nobody_from_signing_in(
    any_store_url: str, clock: Clock, values: dict[str, Any]
) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    store = open_store(any_store_url, offset=lambda: clock.now - time.time())
    async with worker_on(emulator, store, clock, **values) as (worker, answers):
        answers.arrives.set()
        first, user = await outlived(worker, emulator, clock)
        lives: list[float] = []
        again = await worker.sign_in(user, fits=lambda _, life: lives.append(life))
        assert lives[-1] > 6 * DAY
        assert isinstance(await worker.resolve(again.token.get_secret_value(), known_only=True), Session)
        assert await worker.resolve(first.token.get_secret_value(), known_only=True) is SessionReason.EXPIRED
    await store.close()


async def test_a_sign_in_is_no_verdict_while_another_worker_deletes_what_has_expired(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), Late(None, clock=clock)
    async with worker_on(emulator, store, clock) as (worker, answers):
        answers.arrives.set()
        first, user = await outlived(worker, emulator, clock)
        with pytest.raises(NoVerdictError):
            await worker.sign_in(user)
        await SqliteStore.purge(store, 10)
        assert (await worker.sign_in(user)).id == first.id
    await store.close()


class Late(SqliteStore):
    """A store that another worker purges, but has not yet."""

    async def purge(self, limit: int) -> int:
        return min(limit, 0)


async def forget(store: SqliteStore) -> None:
    """Have a store lose its rows, as a failover may."""
    await store._write(lambda db: db.execute("DELETE FROM sessions"))
    await store._write(lambda db: db.execute("DELETE FROM tokens"))


async def test_that_a_session_expired_here_is_forgotten_once_it_is_signed_in_again(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), Forgetful(None, clock=clock)
    async with worker_on(emulator, store, clock) as (worker, answers):
        answers.arrives.set()
        user = emulator.sign_in()
        token = (await worker.sign_in(brought(user))).token.get_secret_value()
        emulator.expire(user["sessionInfo"]["sessionId"])
        clock.advance(100)
        store.forgets = True
        assert await worker.resolve(token) is SessionReason.EXPIRED
        store.forgets = False
        pair = await renewed(worker, emulator, user["sessionInfo"]["refreshToken"])
        again = await worker.sign_in(brought(user, pair))
        assert worker.at_once(again.token.get_secret_value()) is None  # it is read first
        assert isinstance(await worker.resolve(again.token.get_secret_value()), Session)
        assert worker.at_once(again.token.get_secret_value()) is not None
        assert emulator.session(again.id).generation == 2  # by the SDK, not by us
        store.fail("find", "get", "touch", "end", "confirm")
        outcome = await worker.resolve(again.token.get_secret_value())
        assert isinstance(outcome, Session)
        assert outcome.stale
        assert await worker.recheck(again) is SessionReason.UNAVAILABLE
    await store.close()


@pytest.mark.parametrize("heard", ["expired", "refused"])
async def test_what_another_worker_knows_of_a_sessions_former_life_is_forgotten(clock: Clock, heard: str) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store], require_sign_in_token=False) as world:
        worker, other = world.workers
        user = emulator.sign_in(mobile="922")
        token = (await worker.sign_in(brought(user))).token.get_secret_value()
        assert isinstance(await other.resolve(token), Session)
        clock.advance(DAY + 1 if heard == "expired" else 100)
        pair = await renewed(worker, emulator, user["sessionInfo"]["refreshToken"])
        if heard == "expired":
            emulator.add_fault(Fault("status", path=REFRESH, status=401, body=b'{"errorCode": "7415"}'))
        else:
            emulator.expire(user["sessionInfo"]["sessionId"])
            emulator.add_fault(Fault("status", path=REFRESH))
        assert not isinstance(await other.resolve(token), Session)
        emulator.clear_faults()
        if heard == "refused":
            pair = await renewed(worker, emulator, pair.refresh_token)
        await forget(store)  # as if it had been purged
        again = (await worker.sign_in(brought(user, pair))).token.get_secret_value()
        emulator.add_fault(Fault("status", path=REFRESH))
        assert isinstance(await other.resolve(again), Session)
        store.fail("find", "get", "unchanged_at", "touch", "end", "confirm")
        outcome = await other.resolve(again)
        assert isinstance(outcome, Session)
        assert outcome.stale
    await store.close()


class Forgetful(FailingStore):
    """A store that loses its rows between the look at one and its refresh."""

    forgets = False

    async def take_lease(self, *values: Any) -> Any:
        if self.forgets:
            await forget(self)
        return await super().take_lease(*values)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"sessionInfo": {"sessionToken": "eyJ.canary.x"}}, "sessionInfo.refreshToken"),
        (["eyJ.canary.x"], "not a JSON object"),
    ],
)
async def test_what_is_not_as_the_sdk_sends_it_is_told_where_there_is_no_request_too(
    clock: Clock, sent: Any, told: str
) -> None:
    """And no frame of the error shows it, as error reporters collect them."""
    async with OtplessSessions(make_settings(), clock=clock) as sessions:
        with pytest.raises(BodyRefusedError, match=told) as caught:
            await sessions.sign_in(sent)
    ours = [
        frame for frame, _ in traceback.walk_tb(caught.tb) if "fastapi_otpless_session/" in frame.f_code.co_filename
    ]
    assert ours
    assert not [frame for frame in ours if "canary" in repr(frame.f_locals)]
