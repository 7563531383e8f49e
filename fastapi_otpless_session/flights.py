"""Work that many ask for and that is done once at a time for each key: single flight.

What must be finished once it began (a refresh) is done in a task of the application's: a client that disconnects
cancels its own waiting only. What may as well be asked again (a validation) is done by the first who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from fastapi_otpless_session.errors import NoVerdictError, OtplessSessionError
from fastapi_otpless_session.telemetry import logger

T = TypeVar("T")
R = TypeVar("R")


class Flights(Generic[T]):
    """The tasks of one event loop that are under way."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._asked: dict[Hashable, asyncio.Future[T]] = {}

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the task that is under way for `key`; where there is none, start `work`."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._tasks[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        return task

    def under_way(self, key: Hashable) -> asyncio.Task[T] | None:
        """Return the task that is under way for `key`, if there is one."""
        return self._tasks.get(key)

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Wait for the task of `key`, started where there is none. Raises `NoVerdictError` after `seconds`."""
        return await _within(seconds, asyncio.shield(self.start(key, work)))

    async def ask(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Do `work` in the caller's own task, and give whoever asks for `key` meanwhile the same.

        Where the caller is cancelled, one of those who wait does the work anew. Raises `NoVerdictError` to who waits
        for longer than `seconds`. Neither task nor timer: that is worth a quarter of a bare route.
        """
        while (asked := self._asked.get(key)) is not None:
            await _within(seconds, asyncio.wait([asked]))
            if not asked.cancelled():
                return asked.result()
        asked = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            result = await work()
        except Exception as error:
            asked.set_exception(error)
            asked.exception()  # seen, whether anybody waits for it or not
            raise
        else:
            asked.set_result(result)
            return result
        finally:
            asked.cancel()  # no more than a word to those who wait, where it has no result
            del self._asked[key]

    async def drain(self, seconds: float = 0) -> None:
        """Let what is under way finish, for `seconds` at most; cancel the rest."""
        ends_at = time.monotonic() + seconds
        while self._tasks and (left := ends_at - time.monotonic()) > 0:  # what finishes may start more
            await asyncio.wait(set(self._tasks.values()), timeout=left)
        for task in (pending := set(self._tasks.values())):
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        self._tasks.pop(key, None)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OtplessSessionError):
            logger.error("Work behind requests failed", exc_info=error)


async def _within(seconds: float, waiting: Awaitable[R]) -> R:
    try:
        async with asyncio.timeout(seconds):
            return await waiting
    except TimeoutError:
        raise NoVerdictError("the answer takes too long") from None
