"""A user who clicks every few seconds, and an OTPLESS that takes 300 ms: nobody waits for it.

Time is simulated: a click comes every three seconds of it, and an answer of OTPLESS when 0.3 s of it have passed. A
click's latency is what it really took, plus the simulated time if it had to wait for OTPLESS. Beside it clicks a user
about whom OTPLESS need not be asked at all: the cached path.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import apps
import measure
from apps import Pair, Worker, with_cookie, worker
from rows import Count
from simulated import SleepingClock, settle
from starlette.types import Message
from upstream import YEAR, InstantOtpless, read

from fastapi_otpless_session.wire import Answer, Request

EVERY = 3.0
UPSTREAM_SECONDS = 0.3
LIFE = 3_600.0
"""Of a token. OTPLESS's is a day, and there would be fewer refreshes to see."""
CLICKS = 1_300
"""In a round: a little more than a token's life of them, so that each has a refresh in it."""
STUCK = 0.1
"""A request that really takes so long waits for what only simulated time will bring."""
REPEATS = 5


class SlowOtpless(InstantOtpless):
    """Answers after 300 ms of simulated time."""

    def __init__(self, clock: SleepingClock) -> None:
        super().__init__()
        self._clock = clock

    async def send(self, request: Request, *, deadline: float) -> Answer:
        if request.url.endswith("get-new-session-token"):
            refresh_token = json.loads(request.body)["refreshToken"]
            self.will_refresh(refresh_token, read(refresh_token)["sessionId"], self._clock.now, LIFE)
        await self._clock.sleep(UPSTREAM_SECONDS)
        return await super().send(request, deadline=deadline)


class User:
    """Somebody with a browser, which keeps what cookie is set."""

    def __init__(self, each: Worker, clock: SleepingClock, pair: Pair) -> None:
        self._app = each.app
        self._clock = clock
        self._token = pair.token
        self.waited = 0
        self.swaps = 0

    async def click(self) -> float:
        """Let three seconds pass, send a request, and return its latency in seconds."""
        self._clock.advance(EVERY)
        await settle()
        scope, before, started = with_cookie(self._token), self._clock.now, time.perf_counter()
        request = asyncio.ensure_future(self._app(scope, measure.receive, self._take))
        await asyncio.wait({request}, timeout=STUCK)
        latency = time.perf_counter() - started
        while not request.done():
            self._clock.advance(UPSTREAM_SECONDS)
            await asyncio.wait({request}, timeout=STUCK)
        self.waited += self._clock.now > before
        return latency + self._clock.now - before

    async def _take(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            return
        if message["status"] != 200:
            raise measure.UnexpectedAnswerError(str(message["status"]))
        for name, value in message["headers"]:
            if name == b"set-cookie":
                self._token = SimpleCookie(value.decode())[apps.COOKIE].value
                self.swaps += 1


@asynccontextmanager
async def _user(folder: Path, **values: Any) -> AsyncIterator[User]:
    clock = SleepingClock()
    upstream = SlowOtpless(clock)
    life = YEAR / 2 if values else LIFE
    async with worker(folder, apps.depending, upstream=upstream, clock=clock, **values) as each:
        signing_in = asyncio.create_task(each.sign_in(life))
        while not signing_in.done():
            clock.advance(UPSTREAM_SECONDS)
            await asyncio.wait({signing_in}, timeout=STUCK)
        user = User(each, clock, await signing_in)
        yield user
        for _ in range(REPEATS):  # what goes on behind the last request gets its answer
            clock.advance(EVERY)
            await settle()
        if not values and (not user.swaps or not upstream.calls["validate-session"]):
            raise RuntimeError("OTPLESS was not asked behind any request")


async def p99(folder: Path, rounds: int) -> float:
    """Return the 99th percentile of a user's latency, × that of one on the cached path."""
    ratios: list[float] = []
    with_room = folder / "asked", folder / "cached"
    for room in with_room:
        room.mkdir()
    async with _user(with_room[0]) as asked, _user(with_room[1], validation_ttl=YEAR, refresh_ahead=0) as cached:
        for _ in range(_repeats(rounds)):
            gc.collect()
            pairs = [
                (await asked.click(), await cached.click()) for _ in range(CLICKS)
            ]  # what stalls a machine hits both
            ours, theirs = (statistics.quantiles(latencies, n=100)[-1] for latencies in zip(*pairs, strict=True))
            ratios.append(ours / theirs)
    return statistics.median(ratios)


async def waits(folder: Path, rounds: int) -> float:
    """Return how many clicks had to wait for OTPLESS."""
    async with _user(folder) as user:
        for _ in range(_repeats(rounds) * CLICKS):
            await user.click()
        return user.waited


def _repeats(rounds: int) -> int:
    return max(1, min(REPEATS, rounds // 5))


COUNTS = (
    Count("p99", "p99 of a user who clicks every 3 s, upstream at 300 ms", 2, "×", p99, "", "the cached path"),
    Count("waits", "… clicks of theirs that wait for OTPLESS", 0, "clicks", waits),
)
