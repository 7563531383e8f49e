"""What belongs to one event loop: made on its first use, closed with it.

HTTP connections and tasks cannot be shared among event loops, and a process can have several of them (tests,
sub-applications, threads). Where the application's lifespan runs, it closes what it opened; elsewhere the loop's own
shutdown of asynchronous generators does, which `asyncio.run` and every ASGI server perform.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.guard import guard

T = TypeVar("T")


def check_loop() -> None:
    """Raise `ConfigurationError` where the running event loop is none of asyncio's, but trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "fastapi-otpless-session runs on asyncio only: start the server without its option for trio, and run tests "
            "on asyncio (TestClient and anyio do by default)"
        ) from None


class PerLoop(Generic[T]):
    """One value for each event loop. `close` is for values that need closing."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]] | None = None) -> None:
        self._make = make
        self._close = close
        self._values: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None, None]]] = (
            WeakKeyDictionary()
        )
        self._closings: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[None]] = WeakKeyDictionary()
        self._latest: tuple[weakref.ref[asyncio.AbstractEventLoop], T] | None = None

    def there(self) -> T | None:
        """Return the running loop's value if it was made: most often it was, and no coroutine is needed to get it."""
        loop, latest = asyncio.get_running_loop(), self._latest
        if latest is not None and latest[0]() is loop:  # nearly always, and a dictionary of weak keys takes its time
            return latest[1]
        entry = self._values.get(loop)
        if entry is None:
            return None
        self._latest = weakref.ref(loop), entry[0]
        return entry[0]

    async def get(self) -> T:
        """Return the running loop's value."""
        there = self.there()
        if there is not None:
            return there
        loop = asyncio.get_running_loop()
        value = self._make()
        known = weakref.ref(loop)
        guarding = guard(lambda: self._end(known, value))
        self._values[loop] = value, guarding
        await anext(guarding)  # from here on the loop knows the generator, and closes it when it ends
        return value

    async def close(self) -> None:
        """Close the running loop's value, if it has one.

        Whoever does so meanwhile waits for the same closing, which goes on where one of them is cancelled.
        """
        loop = asyncio.get_running_loop()
        entry = self._values.get(loop)
        if entry is None:
            return
        closing = self._closings.get(loop)
        if closing is None or closing.done():  # done, and the value still there: cancelled before it began
            closing = self._closings[loop] = asyncio.create_task(_finish(entry[1]))
        await asyncio.shield(closing)

    async def _end(self, loop: weakref.ref[asyncio.AbstractEventLoop], value: T) -> None:
        try:
            if self._close is not None:
                await self._close(value)
        finally:
            self._latest = None
            if (known := loop()) is not None:
                self._values.pop(known, None)
                self._closings.pop(known, None)


async def _finish(guarding: AsyncGenerator[None, None]) -> None:
    await guarding.aclose()
