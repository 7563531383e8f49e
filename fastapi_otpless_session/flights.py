"""Work that many ask for and that is done once at a time for each key: single flight.

What must be finished once it began (a refresh) is done in a task of the application's: a client that disconnects
cancels its own waiting only. What may as well be asked again (a validation) is done by the first who asks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from fastapi_otpless_session.crowd import Crowd
from fastapi_otpless_session.errors import OtplessSessionError
from fastapi_otpless_session.telemetry import logger

T = TypeVar("T")


class _Flight(Generic[T]):
    """What there will be, and who waits for it: nobody, as a rule."""

    __slots__ = ("_crowd", "answer")

    def __init__(self, answer: asyncio.Future[T]) -> None:
        self.answer = answer
        self._crowd: Crowd | None = None

    async def wait(self, seconds: float) -> None:
        """Wait until it has landed. Raises `NoVerdictError` after `seconds`."""
        self._crowd = self._crowd or Crowd()
        await self._crowd.wait(seconds)

    def land(self) -> None:
        """Have all go on who wait."""
        if self._crowd is not None:
            self._crowd.let_go()


class Flights(Generic[T]):
    """The tasks of one event loop that are under way."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, _Flight[T]] = {}
        self._asked: dict[Hashable, _Flight[T]] = {}

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Future[T]:
        """Return the task that is under way for `key`; where there is none, start `work`."""
        return self._started(key, work).answer

    def under_way(self, key: Hashable) -> asyncio.Future[T] | None:
        """Return the task that is under way for `key`, if there is one."""
        flight = self._tasks.get(key)
        return None if flight is None else flight.answer

    def is_asked(self, key: Hashable) -> bool:
        """Whether somebody has asked for `key` and does not know yet."""
        return key in self._asked

    async def overhear(self, key: Hashable, seconds: float) -> tuple[T] | None:
        """Return what who has asked for `key` learns; None: nobody has asked, or who did was cancelled.

        Raises what that one's work raises, and `NoVerdictError` after `seconds`.
        """
        asked = self._asked.get(key)
        if asked is None:
            return None
        await asked.wait(seconds)
        return (asked.answer.result(),) if asked.answer.done() else None

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Wait for the task of `key`, started where there is none. Raises `NoVerdictError` after `seconds`."""
        flight = self._started(key, work)
        if not flight.answer.done():
            await flight.wait(seconds)
        return flight.answer.result()

    async def ask(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Do `work` in the caller's own task, and give whoever asks for `key` meanwhile the same.

        Where the caller is cancelled, one of those who wait does the work anew. Raises `NoVerdictError` to who waits
        for longer than `seconds`. Neither task nor timer: that is worth a quarter of a bare route.
        """
        while key in self._asked:
            if (heard := await self.overhear(key, seconds)) is not None:
                return heard[0]
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        asked = self._asked[key] = _Flight(answer)
        try:
            result = await work()
        except Exception as error:
            answer.set_exception(error)
            answer.exception()  # seen, whether anybody waits for it or not
            raise
        else:
            answer.set_result(result)
            return result
        finally:
            del self._asked[key]
            asked.land()

    async def drain(self, seconds: float = 0) -> None:
        """Let what is under way finish, for `seconds` at most; cancel the rest."""
        ends_at = time.monotonic() + seconds
        while self._tasks and (left := ends_at - time.monotonic()) > 0:  # what finishes may start more
            await asyncio.wait({flight.answer for flight in self._tasks.values()}, timeout=left)
        for task in (pending := {flight.answer for flight in self._tasks.values()}):
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _started(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> _Flight[T]:
        flight = self._tasks.get(key)
        if flight is None:
            task = asyncio.create_task(work())
            flight = self._tasks[key] = _Flight(task)
            task.add_done_callback(lambda done: self._landed(key, done))
        return flight

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OtplessSessionError):
            logger.error("Work behind requests failed", exc_info=error)
        self._tasks.pop(key).land()
