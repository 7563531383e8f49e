"""A crowd: many who wait for one thing, each with a patience of its own.

`asyncio.shield` and `asyncio.timeout` would do for each of them, and cost a waiting request a quarter of a bare route;
here a waiter is one future, and one timer serves the crowd.
"""

from __future__ import annotations

import asyncio
from collections import deque


class Crowd:
    """Those on one event loop who wait for the same. One of them who is cancelled takes nothing from the others."""

    __slots__ = ("_loop", "_timer", "_until", "_waiters")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        # By each other's side: a tuple for each would be one more object for the garbage collector to look through.
        self._waiters: deque[asyncio.Future[bool]] = deque()
        self._until: deque[float] = deque()

    def join(self, seconds: float) -> asyncio.Future[bool]:
        """Return a future: True once the crowd is let go, False after `seconds`, which must be the same for all.

        Those who come later then give up later, and one timer serves them.
        """
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        self._until.append(self._loop.time() + seconds)
        if self._timer is None:
            self._timer = self._loop.call_later(seconds, self._lose_patience)
        return waiter

    def let_go(self) -> None:
        """Wake everyone who is waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._until.clear()
        while self._waiters:
            _end(self._waiters.popleft(), in_time=True)

    def _lose_patience(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiters and (self._until[0] <= now or self._waiters[0].done()):
            self._until.popleft()
            _end(self._waiters.popleft(), in_time=False)
        if self._waiters:
            self._timer = self._loop.call_at(self._until[0], self._lose_patience)


def _end(waiter: asyncio.Future[bool], *, in_time: bool) -> None:
    if not waiter.done():
        waiter.set_result(in_time)
