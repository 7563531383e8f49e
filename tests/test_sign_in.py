"""Signing in twice: at once, again much later, or again after the session was over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from conftest import Clock, make_settings
from crew import STRICT
from simulated import LoopTime, settle

from fastapi_otpless_session import (
    NoVerdictError,
    OtplessClient,
    OtplessSessions,
    Session,
)
from fastapi_otpless_session.emulator import Emulator, Fault
from fastapi_otpless_session.signin import OtplessUser
from fastapi_otpless_session.stores.base import SessionStore
from fastapi_otpless_session.stores.sqlite import SqliteStore

DAY = 86_400
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


def brought(user: dict[str, Any]) -> OtplessUser:
    """What the page sends."""
    return OtplessUser.model_validate(user)


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
