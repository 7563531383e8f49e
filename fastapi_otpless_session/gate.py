"""How many calls to OTPLESS a worker makes at once, with room kept for the sessions that it knows.

The libraries that were looked at limit something else: aiolimiter 1.3 and pyrate-limiter 4.5 limit calls *a second*,
which bounds nothing once OTPLESS slows down, and neither lets one kind of caller wait while there is room for the
other. Of the standard library's semaphores it would take two for a stranger, and a coroutine for each though nobody
has to wait.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from itertools import count
from math import inf

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.loops import PerLoop

SHARE_OF_STRANGERS = 0.5
SHARE_OF_WAITING = 0.8
"""How much of its deadline a call may wait for its place. One that is sent in the last moment is answered too late, and
a refresh whose answer is lost may cost its session."""


class _Queue:
    """Those of one kind who wait for a place, the first first, each with its number among all who ever did."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        return not self._waiters

    @property
    def first(self) -> float:
        """The number of whoever is to be the next; infinite where nobody waits."""
        return next(iter(self._waiters.values()), inf)

    def append(self, waiter: asyncio.Future[None], number: int) -> None:
        self._waiters[waiter] = number

    def drop(self, waiter: asyncio.Future[None]) -> None:
        self._waiters.pop(waiter, None)

    def pop(self) -> asyncio.Future[None]:
        return self._waiters.popitem(last=False)[0]


class Places:
    """The places on one event loop: how many are free, for everybody and of those for strangers, and who waits."""

    __slots__ = ("_free", "_free_for_strangers", "_known", "_numbers", "_strangers")

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._free_for_strangers = max(1, int(limit * SHARE_OF_STRANGERS))
        self._known, self._strangers = _Queue(), _Queue()
        self._numbers = count()

    def take(self, *, known: bool) -> bool:
        """Take a place, if one is free that nobody waits for."""
        if self._free <= 0 or (not known and self._free_for_strangers <= 0):
            return False
        self._free -= 1
        self._free_for_strangers -= not known
        return True

    def give_back(self, *, known: bool) -> None:
        """Give a place back, for whoever has waited longest of those who may have it."""
        self._free += 1
        self._free_for_strangers += not known
        if self._known.is_empty and self._strangers.is_empty:  # as a rule
            return
        while self._free > 0:
            first, first_stranger = self._known.first, self._strangers.first if self._free_for_strangers > 0 else inf
            if first == first_stranger == inf:
                return
            is_known = first < first_stranger
            waiter = (self._known if is_known else self._strangers).pop()
            if not waiter.done():  # else it was cancelled just now, and has yet to hear of it
                self.take(known=is_known)
                waiter.set_result(None)

    async def wait(self, *, known: bool) -> None:
        """Wait for a place, and take it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._known if known else self._strangers
        queue.append(waiter, next(self._numbers))
        try:
            await waiter
        except BaseException:
            queue.drop(waiter)
            if waiter.done() and not waiter.cancelled():  # it was given one in the same moment
                self.give_back(known=known)
            raise


class Gate:
    """`limit` calls at once; those for tokens that nobody here knows get half of that at most.

    So a flood of made-up tokens cannot starve the people who are signed in.
    """

    def __init__(self, limit: int) -> None:
        self._places: PerLoop[Places] = PerLoop(lambda: Places(limit))

    def enter_at_once(self, *, known: bool) -> Places | None:
        """Take a place where nobody has to be waited for, as a rule; None: `enter`. What this returns gets it back."""
        places = self._places.there()
        return places if places is not None and places.take(known=known) else None

    async def enter(self, *, known: bool, deadline: float) -> Places:
        """Take a place. Raises `UpstreamError` where none gets free early enough in `deadline` seconds."""
        places = await self._places.get()
        if places.take(known=known):
            return places
        try:
            async with asyncio.timeout(deadline * SHARE_OF_WAITING):
                await places.wait(known=known)
        except TimeoutError:
            telemetry.upstream_rejections.add(1, telemetry.labels(reason="full"))
            raise UpstreamError("too many calls to OTPLESS are under way", unsent=True) from None
        return places
