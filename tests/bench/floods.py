"""A flood of made-up tokens: what somebody who is signed in notices of it.

Beside it as many people come who are signed in: a machine that is full is full, whoever fills it.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
from pathlib import Path

import apps
import measure
from apps import Worker, bearer, worker
from made_up import MadeUp
from measure import Scope, scope
from rows import Count
from starlette.types import Message

from fastapi_otpless_session.emulator import Emulator

AT_ONCE = 10
LOOKS = 200
REPEATS = 5


async def p99(folder: Path, rounds: int) -> float:
    """Return the 99th percentile of a request's latency among made-up tokens, × that among people signed in."""
    ratios = []
    async with worker(folder, apps.depending) as each:
        token = (await each.sign_in()).token
        flood = iter(MadeUp(Emulator()))
        for _ in range(max(1, min(REPEATS, rounds // 5))):
            flooded, quiet = [], []
            gc.collect()
            for _ in range(LOOKS):  # in turn, so that both have the same of what else the machine does
                flooded.append(await _time_among(each, token, [next(flood) for _ in range(AT_ONCE)]))
                quiet.append(await _time_among(each, token, [token] * AT_ONCE))
            ratios.append(statistics.quantiles(flooded, n=100)[-1] / statistics.quantiles(quiet, n=100)[-1])
    return statistics.median(ratios)


async def _time_among(each: Worker, token: str, others: list[str]) -> float:
    """Send a request when others are under way, and return how many seconds it took."""
    scopes = [scope("/", bearer(other)) for other in others]
    known = scope("/", bearer(token))

    async def timed(began: float) -> float:
        if await _status(each, known) != 200:
            raise measure.UnexpectedAnswerError("somebody who is signed in was refused")
        return measure.clock() - began

    *_, took = await asyncio.gather(*(_status(each, other) for other in scopes), timed(measure.clock()))
    return took


async def _status(each: Worker, one: Scope) -> int:
    said: list[Message] = []

    async def send(message: Message) -> None:
        said.append(message)

    await each.app(one, measure.receive, send)
    return int(said[0]["status"])


NAME = "p99 of somebody signed in among 10 made-up tokens"
COUNTS = (Count("flood", NAME, 2, "×", p99, "", "among 10 signed in"),)
