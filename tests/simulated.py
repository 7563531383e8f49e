"""Time that passes because a test says so: for clocks that are injected, and for an event loop's own timers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from conftest import Clock

ROUNDS = 20


async def settle(rounds: int = ROUNDS) -> None:
    """Let every task run until it waits for something outside."""
    for _ in range(rounds):
        await asyncio.sleep(0)


@dataclass
class SleepingClock(Clock):
    """A clock on which one can also sleep."""

    _sleepers: list[tuple[float, int, asyncio.Event]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        while self._sleepers and self._sleepers[0][0] <= self.now:
            heapq.heappop(self._sleepers)[2].set()


class LoopTime:
    """Moves the running event loop's clock forward, and with it every timer and timeout on it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real = loop.time
        self._ahead = 0.0
        loop.time = self._now  # type: ignore[method-assign]

    def _now(self) -> float:
        return self._real() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let time pass, and whatever was waiting for it run."""
        self._ahead += seconds
        await settle()
