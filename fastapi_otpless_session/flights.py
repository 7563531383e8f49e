"""Work that many ask for and that is done once at a time for each key: single flight.

What must be finished once it began (a refresh) is done in a task of the application's: a client that disconnects
cancels its own waiting only. What may as well be asked again (a validation) is done by the first who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from fastapi_otpless_session.crowd import Crowd
from fastapi_otpless_session.errors import NoVerdictError, OtplessSessionError
from fastapi_otpless_session.telemetry import logger

T = TypeVar("T")


class Question(Generic[T]):
    """A question under way. What others need to wait for its answer is made once one of them comes, which is seldom."""

    __slots__ = ("_answer", "_crowd")

    def __init__(self) -> None:
        self._answer: asyncio.Future[T] | None = None
        self._crowd: Crowd | None = None

    def join(self, seconds: float) -> asyncio.Future[bool]:
        """Return a future, to be awaited at once: `heard` takes what it gives. Not a coroutine: a herd waits by it."""
        self._answer = self._answer or asyncio.get_running_loop().create_future()
        self._crowd = self._crowd or Crowd()
        return self._crowd.join(seconds)

    def heard(self, in_time: bool) -> tuple[T] | None:
        """Return the answer that was waited for; None: there will be none. Raises its error, and `NoVerdictError`."""
        _check(in_time)
        answer = self._answer
        return (answer.result(),) if answer is not None and answer.done() else None

    def fail(self, error: Exception) -> None:
        """Have those who wait get an error."""
        if self._answer is not None:
            self._answer.set_exception(error)
            self._answer.exception()  # seen, whether anybody still waits for it or not

    def succeed(self, result: T) -> None:
        """Have those who wait get a result."""
        if self._answer is not None:
            self._answer.set_result(result)

    def let_go(self) -> None:
        """Have all go on who wait."""
        if self._crowd is not None:
            self._crowd.let_go()


class Flights(Generic[T]):
    """The tasks of one event loop that are under way."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, tuple[asyncio.Task[T], Crowd]] = {}
        self._questions: dict[Hashable, Question[T]] = {}
        self._is_drained = False

    def start(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the task that is under way for `key`; where there is none, start `work`."""
        return self._started(key, work)[0]

    def under_way(self, key: Hashable) -> asyncio.Task[T] | None:
        """Return the task that is under way for `key`, if there is one."""
        started = self._tasks.get(key)
        return None if started is None else started[0]

    def asked(self, key: Hashable) -> Question[T] | None:
        """Return the question about `key` whose answer somebody is about to learn, if there is one."""
        return self._questions.get(key)

    async def join(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Wait for the task of `key`, started where there is none. Raises `NoVerdictError` after `seconds`."""
        task, crowd = self._started(key, work)
        if not task.done():
            _check(await crowd.join(seconds))
        return result_of(task)

    async def ask(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """Do `work` in the caller's own task, and give whoever asks for `key` meanwhile the same.

        Where the caller is cancelled, one of those who wait does the work anew. Raises `NoVerdictError` in those
        that wait longer than `seconds`. Neither task nor timer: that is worth a quarter of a bare route.
        """
        while (other := self._questions.get(key)) is not None:
            if (heard := other.heard(await other.join(seconds))) is not None:
                return heard[0]
        question: Question[T] = Question()
        self._questions[key] = question
        try:
            result = await work()
        except Exception as error:
            question.fail(error)
            raise
        else:
            question.succeed(result)
            return result
        finally:
            del self._questions[key]
            question.let_go()

    async def ask_anew(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]], seconds: float) -> T:
        """As `ask`, but whoever asked before is waited for first: what that one learns may be older than the question.

        Whoever asks while it is waited for shares the answer. Raises `NoVerdictError` where that takes `seconds`, too.
        """
        earlier = self._questions.get(key)
        if earlier is not None:
            with suppress(NoVerdictError):
                earlier.heard(await earlier.join(seconds))
            _check(self._questions.get(key) is not earlier)
        return await self.ask(key, work, seconds)

    async def drain(self, seconds: float = 0) -> None:
        """Let what is under way finish, for `seconds` at most; cancel the rest. Nothing is started any more then."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while self._tasks and (left := ends_at - loop.time()) > 0:  # what finishes may start more
            await asyncio.wait({task for task, _ in self._tasks.values()}, timeout=left)
        self._is_drained = True
        for task in (pending := {task for task, _ in self._tasks.values()}):
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _started(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[asyncio.Task[T], Crowd]:
        started = self._tasks.get(key)
        if started is None:
            if self._is_drained:
                raise NoVerdictError("the application is stopping")
            started = self._tasks[key] = asyncio.create_task(work()), Crowd()
            started[0].add_done_callback(lambda task: self._landed(key, task))
        return started

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OtplessSessionError):
            logger.error("Work behind requests failed", exc_info=error)
        self._tasks.pop(key)[1].let_go()


async def finished(task: asyncio.Task[T]) -> T:
    """Wait for a task, which goes on where the waiting is cancelled, and return what it gave; see `result_of`."""
    await asyncio.wait([task])
    return result_of(task)


def result_of(task: asyncio.Task[T]) -> T:
    """Return what a task that is done gave. Raises what it raised, and `NoVerdictError` where stopping cut it off."""
    if task.cancelled():
        raise NoVerdictError("the application is stopping")
    return task.result()


def _check(is_there: bool) -> None:
    if not is_there:
        raise NoVerdictError("the answer takes too long")
