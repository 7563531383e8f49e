"""Tasks of the application's rather than a request's, one at a time for each key: single flight.

A client that disconnects cancels its own waiting, never the work that others wait for too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from fastapi_otpless_session.errors import OtplessSessionError
from fastapi_otpless_session.telemetry import logger

T = TypeVar("T")


class Flights(Generic[T]):
    """The tasks of one event loop that are under way."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}

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
        """Wait for the task of `key`, started where there is none. Raises `TimeoutError` after `seconds`."""
        task = self.start(key, work)
        async with asyncio.timeout(seconds):
            return await asyncio.shield(task)

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
