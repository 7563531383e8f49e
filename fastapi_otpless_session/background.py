"""The application's own tasks on each event loop: shared work, work behind requests, and housekeeping.

| way | done in | who waits | where the request is cancelled | without a lifespan |
| --- | --- | --- | --- | --- |
| `share` | a task of its own | all who come with its key, up to a time | goes on | the same |
| `finish` | a task of its own | who began it | goes on | the same |
| `ask` | the first request | all who come with its key, up to a time | ends; the next who waits asks anew | the same |
| `start` | a task of its own, once for its key | nobody | goes on | whoever began it waits |
| `detach` | a task of its own | nobody | goes on | the same |
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi_otpless_session.flights import Flights, Question, finished
from fastapi_otpless_session.loops import PerLoop

T = TypeVar("T")


@dataclass(slots=True)
class _Loop:
    """What runs on one event loop. Without housekeeping there is no lifespan, and nothing runs behind requests."""

    flights: Flights[Any] = field(default_factory=Flights)
    housekeeping: asyncio.Task[None] | None = None


class Background:
    """Runs tasks that outlive the requests which asked for them; `close` waits `drain` seconds for them."""

    def __init__(self, drain: float) -> None:
        self._drain_seconds = drain
        self._loops: PerLoop[_Loop] = PerLoop(_Loop, self._drain)

    async def begin(self, housekeeping: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start housekeeping on the running event loop; from now on work may be done behind requests there."""
        loop = await self._loops.get()
        if loop.housekeeping is None:
            loop.housekeeping = asyncio.create_task(housekeeping())

    async def close(self) -> None:
        """Stop housekeeping on the running event loop, and let what is under way finish."""
        await self._loops.close()

    def is_allowed(self) -> bool:
        """Whether work may be done behind requests on the running event loop."""
        loop = self._loops.there()
        return loop is not None and loop.housekeeping is not None

    async def share(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Return what `work` returns; whoever asks for the same key meanwhile gets the same.

        Raises `NoVerdictError` after `seconds`; the work goes on.
        """
        loop = self._loops.there() or await self._loops.get()
        result: T = await loop.flights.join(key, work, seconds)
        return result

    async def finish(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns; it is done to its end, whether whoever asked is cancelled meanwhile or not.

        Raises `NoVerdictError` where the application is stopping.
        """
        loop = self._loops.there() or await self._loops.get()
        result: T = await finished(loop.flights.start(object(), work))
        return result

    def ask(
        self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float, *, anew: bool = False
    ) -> Coroutine[Any, Any, T]:
        """Return what `work` returns, done by the first who asks; see `Flights.ask`. `anew`: see `Flights.ask_anew`.

        Raises `NoVerdictError` where another's takes longer than `seconds`.
        """
        loop = self._loops.there()
        if loop is None:
            return self._ask_first(key, work, seconds)
        return loop.flights.ask_anew(key, work, seconds) if anew else loop.flights.ask(key, work, seconds)

    async def _ask_first(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Ask on an event loop that nothing was asked on before."""
        result: T = await (await self._loops.get()).flights.ask(key, work, seconds)
        return result

    def asked(self, key: Hashable) -> Question[Any] | None:
        """Return what somebody on the running event loop has asked for by `key` and does not know yet."""
        loop = self._loops.there()
        return None if loop is None else loop.flights.asked(key)

    async def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something behind the request; where nothing may run there, now."""
        loop = await self._loops.get()
        task = loop.flights.start(key, work)
        if loop.housekeeping is None:
            await finished(task)

    async def detach(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do something that no request can wait for, lifespan or not."""
        loop = await self._loops.get()
        _ = loop.flights.start(key, work)

    async def _drain(self, loop: _Loop) -> None:
        if loop.housekeeping is not None:
            loop.housekeeping.cancel()
            await asyncio.wait([loop.housekeeping])
        await loop.flights.drain(self._drain_seconds)
