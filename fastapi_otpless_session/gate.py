"""How many calls to OTPLESS a worker makes at once, with room kept for the sessions that it knows.

Two of the standard library's semaphores. The libraries that were looked at limit something else: aiolimiter 1.3 and
pyrate-limiter 4.5 limit calls *a second*, which bounds nothing once OTPLESS slows down, and neither lets one kind of
caller wait while there is room for the other. anyio's `CapacityLimiter` would do for one of the two, and belongs to one
event loop as they do. The wait ends by the one deadline that the call itself has to keep, which none of them shares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.loops import PerLoop

SHARE_OF_STRANGERS = 0.5
SHARE_OF_WAITING = 0.8
"""How much of its deadline a call may wait for its place. One that is sent in the last moment is answered too late, and
a refresh whose answer is lost may cost its session."""


class Gate:
    """`limit` calls at once; those for tokens that nobody here knows get half of that at most.

    So a flood of made-up tokens cannot starve the people who are signed in.
    """

    def __init__(self, limit: int) -> None:
        strangers = max(1, int(limit * SHARE_OF_STRANGERS))
        self._all = PerLoop(lambda: asyncio.Semaphore(limit))
        self._strangers = PerLoop(lambda: asyncio.Semaphore(strangers))

    @asynccontextmanager
    async def pass_through(self, *, known: bool, deadline: float) -> AsyncIterator[None]:
        """Hold a place. Raises `UpstreamError` where none gets free early enough in the call's `deadline` seconds."""
        gates = [await self._all.get()] if known else [await self._strangers.get(), await self._all.get()]
        held: list[asyncio.Semaphore] = []
        try:
            try:
                async with asyncio.timeout(deadline * SHARE_OF_WAITING):
                    for gate in gates:
                        await gate.acquire()
                        held.append(gate)
            except TimeoutError:
                raise UpstreamError("too many calls to OTPLESS are under way", unsent=True) from None
            yield
        finally:
            for gate in held:
                gate.release()
