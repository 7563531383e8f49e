"""Waiting with others, and for so long only: single flights, and deadlines that share a timer."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from simulated import LoopTime, settle

from fastapi_otpless_session.errors import NoVerdictError
from fastapi_otpless_session.flights import Flights
from fastapi_otpless_session.patience import Patience

PATIENCE = 10.0


class Work:
    """Something that takes until it is told to end, and counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self._end: asyncio.Event = asyncio.Event()
        self._error: Exception | None = None

    async def __call__(self) -> str:
        self.begun += 1
        await self._end.wait()
        if self._error is not None:
            raise self._error
        return "done"

    def end(self, error: Exception | None = None) -> None:
        self._error = error
        self._end.set()


Wait = Callable[[Flights[str], Work], Coroutine[Any, Any, str]]


async def join(flights: Flights[str], work: Work) -> str:
    return await flights.join("key", work, PATIENCE)


async def ask(flights: Flights[str], work: Work) -> str:
    return await flights.ask("key", work, PATIENCE)


async def begun(wait: Wait, flights: Flights[str], work: Work, count: int) -> list[asyncio.Task[str]]:
    tasks = [asyncio.create_task(wait(flights, work)) for _ in range(count)]
    await settle()
    return tasks


@pytest.mark.parametrize("wait", [join, ask])
class TestFlights:
    async def test_all_get_what_was_done_once(self, wait: Wait) -> None:
        flights, work = Flights[str](), Work()
        tasks = await begun(wait, flights, work, 5)
        work.end()
        assert await asyncio.gather(*tasks) == ["done"] * 5
        assert work.begun == 1

    async def test_what_is_over_is_done_anew(self, wait: Wait) -> None:
        flights, work = Flights[str](), Work()
        work.end()
        assert [await wait(flights, work), await wait(flights, work)] == ["done"] * 2
        await settle()
        assert work.begun == 2

    async def test_all_get_the_error_and_no_longer_a_traceback_for_there_being_many(self, wait: Wait) -> None:
        flights, work = Flights[str](), Work()
        _, *others = await begun(wait, flights, work, 50)
        work.end(NoVerdictError("no"))
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(outcome, NoVerdictError) for outcome in outcomes)
        assert all(len(traceback.extract_tb(outcome.__traceback__)) < 10 for outcome in outcomes if outcome)  # type: ignore[union-attr]

    async def test_who_is_cancelled_takes_nothing_from_the_others(self, wait: Wait) -> None:
        flights, work = Flights[str](), Work()
        first, second, *others = await begun(wait, flights, work, 5)
        second.cancel()
        await settle()
        first.cancel()
        await settle()
        work.end()
        assert await asyncio.gather(*others) == ["done"] * 3
        assert first.cancelled()
        assert second.cancelled()
        assert work.begun == (1 if wait is join else 2)  # who asks does it himself

    async def test_each_waits_for_so_long_from_when_he_came(self, wait: Wait) -> None:
        flights, work, time = Flights[str](), Work(), LoopTime()
        await begun(wait, flights, work, 1)  # who does it, or has it done
        early = await begun(wait, flights, work, 2)
        await time.advance(PATIENCE * 0.6)
        late = await begun(wait, flights, work, 2)
        await time.advance(PATIENCE * 0.6)
        assert [isinstance(task.exception(), NoVerdictError) for task in early] == [True] * 2
        assert not any(task.done() for task in late)
        await time.advance(PATIENCE * 0.6)
        assert [isinstance(task.exception(), NoVerdictError) for task in late] == [True] * 2
        last = await begun(wait, flights, work, 1)
        work.end()
        assert await asyncio.gather(*last) == ["done"]
        assert work.begun == 1


async def test_when_all_ends_who_waits_is_let_go_and_nothing_is_begun_anew() -> None:
    flights, work = Flights[str](), Work()
    tasks = await begun(join, flights, work, 3)
    await flights.drain()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoVerdictError] * 3
    with pytest.raises(NoVerdictError):
        await join(flights, work)
    assert work.begun == 1


async def test_who_overhears_is_told_that_nobody_will_know() -> None:
    flights, work = Flights[str](), Work()
    [first] = await begun(ask, flights, work, 1)
    asked = flights.asked("key")
    assert asked is not None
    waiting = asked.join(PATIENCE)
    first.cancel()
    assert asked.heard(await waiting) is None
    assert flights.asked("key") is None


# Deadlines

Limit = Callable[[float], AbstractAsyncContextManager[Any]]


@pytest.fixture(params=["asyncio", "shared"])
def limit(request: pytest.FixtureRequest) -> Limit:
    """What limits a call: what the standard library has, and ours, which is to do the same."""
    if request.param == "asyncio":
        return asyncio.timeout
    patience = Patience()

    @asynccontextmanager
    async def shared(seconds: float) -> Any:
        with patience.limit(seconds):
            yield

    return shared


async def _limited(limit: Limit, seconds: float, ends: asyncio.Event) -> str:
    async with limit(seconds):
        await ends.wait()
        return "in time"


async def test_who_is_in_time_is_left_alone(limit: Limit) -> None:
    time, ends = LoopTime(), asyncio.Event()
    tasks = [asyncio.create_task(_limited(limit, 5, ends)) for _ in range(3)]
    await settle()
    await time.advance(4)
    ends.set()
    assert await asyncio.gather(*tasks) == ["in time"] * 3
    await time.advance(4)


async def test_who_is_late_is_ended_each_at_his_time(limit: Limit) -> None:
    time, ends = LoopTime(), asyncio.Event()
    slow = asyncio.create_task(_limited(limit, 5, ends))
    await settle()
    await time.advance(2)
    slower, quick = (asyncio.create_task(_limited(limit, seconds, ends)) for seconds in (5, 1))
    await settle()
    for passes, done in ((1.5, [False, False, True]), (2, [True, False, True]), (2, [True, True, True])):
        await time.advance(passes)
        assert [task.done() for task in (slow, slower, quick)] == done
    for task in (slow, slower, quick):
        assert isinstance(task.exception(), TimeoutError)
        assert not task.cancelling()


async def test_who_is_cancelled_from_outside_stays_cancelled(limit: Limit) -> None:
    time, ends = LoopTime(), asyncio.Event()
    task = asyncio.create_task(_limited(limit, 5, ends))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await time.advance(10)


async def test_who_is_cancelled_when_his_time_is_up_stays_cancelled(limit: Limit) -> None:
    time, ends = LoopTime(), asyncio.Event()
    task = asyncio.create_task(_limited(limit, 5, ends))
    await settle()
    asyncio.get_running_loop().call_later(5, task.cancel)
    await time.advance(5.5)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_of_two_limits_the_shorter_counts(limit: Limit) -> None:
    time = LoopTime()
    ended: list[str] = []

    async def both(outer: float, inner: float) -> None:
        try:
            async with limit(outer):
                try:
                    async with limit(inner):
                        await asyncio.Event().wait()
                except TimeoutError:
                    ended.append("inner")
                    await asyncio.Event().wait()
        except TimeoutError:
            ended.append("outer")

    for outer, inner in ((5, 1), (1, 5)):
        task = asyncio.create_task(both(outer, inner))
        await settle()
        await time.advance(1.5)
        await time.advance(4)
        await task
    assert ended == ["inner", "outer", "outer"]


async def test_an_error_inside_is_that_error_however_late(limit: Limit) -> None:
    time = LoopTime()

    async def fails() -> None:
        async with limit(5):
            try:
                await asyncio.Event().wait()
            finally:
                raise KeyError("inside")

    task = asyncio.create_task(fails())
    await settle()
    await time.advance(6)
    with pytest.raises(KeyError, match="inside"):
        await task
