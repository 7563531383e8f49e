"""Work that one does after the other for each key: unlike in a flight, nobody gets what another's work returns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from fastapi_otpless_session.errors import NoVerdictError
from fastapi_otpless_session.loops import PerLoop


class Turns:
    """Has those of an event loop who bring the same key wait for each other."""

    def __init__(self) -> None:
        self._locks: PerLoop[WeakValueDictionary[Hashable, asyncio.Lock]] = PerLoop(WeakValueDictionary)

    @asynccontextmanager
    async def wait(self, key: Hashable, seconds: float) -> AsyncIterator[None]:
        """Wait for those before, and have those who come meanwhile wait. Raises `NoVerdictError` after `seconds`."""
        lock = (await self._locks.get()).setdefault(key, asyncio.Lock())
        try:
            async with asyncio.timeout(seconds):
                await lock.acquire()
        except TimeoutError:
            raise NoVerdictError("what is to be waited for takes too long") from None
        try:
            yield
        finally:
            lock.release()
