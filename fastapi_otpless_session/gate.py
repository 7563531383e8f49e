"""How many calls to OTPLESS a worker makes at once, with room kept for the sessions that it knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.loops import PerLoop

SHARE_OF_STRANGERS = 0.5


class Gate:
    """`limit` calls at once; those for tokens that nobody here knows get half of that at most.

    So a flood of made-up tokens cannot starve the people who are signed in.
    """

    def __init__(self, limit: int) -> None:
        strangers = max(1, int(limit * SHARE_OF_STRANGERS))
        self._all = PerLoop(lambda: asyncio.Semaphore(limit), _nothing)
        self._strangers = PerLoop(lambda: asyncio.Semaphore(strangers), _nothing)

    @asynccontextmanager
    async def pass_through(self, *, known: bool, deadline: float) -> AsyncIterator[None]:
        """Hold a place. Raises `UpstreamError` where none gets free within `deadline` seconds."""
        gates = [await self._all.get()] if known else [await self._strangers.get(), await self._all.get()]
        held: list[asyncio.Semaphore] = []
        try:
            try:
                async with asyncio.timeout(deadline):
                    for gate in gates:
                        await gate.acquire()
                        held.append(gate)
            except TimeoutError:
                raise UpstreamError("too many calls to OTPLESS are under way", unsent=True) from None
            yield
        finally:
            for gate in held:
                gate.release()


async def _nothing(_: asyncio.Semaphore) -> None:
    """A semaphore needs no closing."""
