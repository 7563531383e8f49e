"""An outage of OTPLESS under load, in simulated time: what it sees of us, and how soon we see that it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from conftest import NOW, make_settings
from simulated import SleepingClock, settle

from fastapi_otpless_session import OtplessClient, OtplessSessions, Session, SessionReason
from fastapi_otpless_session.emulator import Emulator
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.http import HttpSender, HttpxSender
from fastapi_otpless_session.wire import Answer, Request

pytestmark = [pytest.mark.slow, pytest.mark.varied]

PEOPLE = 250
REQUESTS_A_SECOND = 500
OUTAGE_SECONDS = 60
AT_EASE_SECONDS = 5
SEEN_WITHIN = 2.0


class Otpless:
    """The way to OTPLESS, on which it can be up, answer with errors, or take calls and say nothing."""

    def __init__(self, sender: HttpSender, clock: SleepingClock) -> None:
        self._sender = sender
        self._clock = clock
        self.is_down: str | None = None
        self._calls = 0

    def calls_since_asked(self) -> int:
        """How many calls came since this was asked last."""
        calls, self._calls = self._calls, 0
        return calls

    async def send(self, request: Request, *, deadline: float) -> Answer:
        self._calls += 1
        if self.is_down == "errors":
            return Answer(503, {}, b"")
        if self.is_down == "silence":
            await self._clock.sleep(deadline)
            raise UpstreamError("OTPLESS did not answer")
        return await self._sender.send(request, deadline=deadline)

    async def open(self) -> None:
        await self._sender.open()

    async def close(self) -> None:
        await self._sender.close()


class Crowd:
    """People who are signed in, and who send 500 requests a second between them."""

    def __init__(self, sessions: OtplessSessions, otpless: Otpless, clock: SleepingClock) -> None:
        self._sessions = sessions
        self._clock = clock
        self._tokens: list[str] = []
        self._turn = 0
        self.otpless = otpless

    async def sign_in(self, emulator: Emulator) -> None:
        for number in range(PEOPLE):
            user = emulator.sign_in(mobile=str(number))
            self._tokens.append((await self._sessions.sign_in(user)).token.get_secret_value())
            self._clock.advance(30 / PEOPLE)  # they did not all come at once

    async def browse(self, seconds: float) -> list[Session | SessionReason]:
        """Let time pass with everybody's requests, and return their answers."""
        requests = []
        for _ in range(int(seconds * REQUESTS_A_SECOND)):
            self._turn += 1
            token = self._tokens[self._turn % PEOPLE]
            requests.append(asyncio.create_task(self._sessions.resolve(token)))
            self._clock.advance(1 / REQUESTS_A_SECOND)
            await settle(2)
        return await self._answers(requests)

    async def _answers(self, requests: list[asyncio.Task[Session | SessionReason]]) -> list[Session | SessionReason]:
        await settle()
        for _ in range(10):  # whoever still waits for OTPLESS
            if all(request.done() for request in requests):
                break
            self._clock.advance(1)
            await settle()
        return [request.result() for request in requests]

    async def seconds_until_seen(self) -> float:
        """Let people browse until somebody has OTPLESS's word that is newer than now."""
        began = self._clock.now
        while self._clock.now < began + 10:
            answers = await self.browse(0.1)
            words = [answer.validated_at.timestamp() for answer in answers if isinstance(answer, Session)]
            if max(words, default=0) > began:
                break
        return self._clock.now - began


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    clock = SleepingClock(NOW)
    emulator = Emulator(clock=clock)
    settings = make_settings()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        otpless = Otpless(HttpxSender(http), clock)
        client = OtplessClient(settings, http=otpless, monotonic=clock)
        async with OtplessSessions(settings, client=client, clock=clock) as sessions:
            built = Crowd(sessions, otpless, clock)
            await built.sign_in(emulator)
            otpless.calls_since_asked()
            yield built
            otpless.is_down = None


async def test_otpless_sees_no_more_of_us_in_an_outage_than_healthy_and_is_seen_again_within_two_seconds(
    crowd: Crowd,
) -> None:
    await crowd.browse(OUTAGE_SECONDS)
    healthy = crowd.otpless.calls_since_asked()
    assert healthy > PEOPLE
    for how in ("errors", "silence"):
        crowd.otpless.is_down = how
        answers = await crowd.browse(OUTAGE_SECONDS)
        assert crowd.otpless.calls_since_asked() <= 1.1 * healthy, how
        assert all(isinstance(answer, Session) for answer in answers)  # a minute is bridged

        crowd.otpless.is_down = None
        assert await crowd.seconds_until_seen() <= SEEN_WITHIN, how
        await crowd.browse(AT_EASE_SECONDS)
        assert crowd.otpless.calls_since_asked() >= PEOPLE  # nothing is held back any more
