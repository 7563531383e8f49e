"""What happened to a session, told to the metrics and to the application's hooks.

A hook is called once what happened is durable. It cannot break what it is told about: its failure is logged, and so is
that it takes longer than `HOOK_SECONDS`. Where a lifespan runs, no request waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Literal

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.background import Background
from fastapi_otpless_session.session import utc
from fastapi_otpless_session.stores.base import SessionRow

HOOK_SECONDS = 5.0
HOOKS_AT_ONCE = 1_000
"""How many calls of hooks may be under way; more are left out, and that is logged: hooks that hang fill no memory.

One that was given up counts until its thread is done with it.
"""
THREADS = 4


EventName = Literal["sign_in", "refresh", "sign_out", "reuse"]


class SignOutReason(StrEnum):
    """Why a session ended."""

    SIGNED_OUT = "signed_out"
    """By its own token: `POST /logout`."""
    ENDED = "ended"
    """By its id: `DELETE /sessions/{id}`, or the application."""
    ENDED_ALL = "ended_all"
    """With all sessions of its user: `POST /logout-all`, or the application."""
    REPLACED = "replaced"
    """The browser that had it signed in anew."""
    EXPIRED = "expired"
    """OTPLESS refused its refresh token, or `IDLE_TIMEOUT` or `ABSOLUTE_TIMEOUT` was up."""
    REUSED = "reused"
    """A token of its was presented that had been replaced long ago."""


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """What a hook is told. `reason` is why the session ended, where it did; there is never a token."""

    name: EventName
    session_id: str
    user_id: str
    at: datetime
    reason: SignOutReason | None = None


Hook = Callable[[SessionEvent], Awaitable[Any] | Any]
"""A function of the application's; one that is not a coroutine function runs in a thread, so that it may block."""


class Events:
    """Tells what happened in this worker. `hooks` are the application's, by the event's name."""

    def __init__(self, hooks: dict[str, Hook], background: Background, clock: Callable[[], float]) -> None:
        self._hooks = hooks
        self._background = background
        self._clock = clock
        self._numbers = itertools.count()
        self._awaited: set[int] = set()
        self._in_threads: set[int] = set()
        """The calls that threads have yet to do or finish: given up or not, they cannot be taken back."""
        self._threads = ThreadPoolExecutor(THREADS, "otpless-session-hooks")  # no thread before it is needed

    async def signed_in(self, row: SessionRow) -> None:
        """Somebody signed in."""
        await self._happened("sign_in", row)

    async def refreshed(self, row: SessionRow) -> None:
        """A session has its next token, from this worker. Nobody waits for the hook: others wait for the refresh."""
        await self._happened("refresh", row, waits=False)

    async def signed_out(self, row: SessionRow, reason: SignOutReason, *, waits: bool = True) -> None:
        """A session ended, in this worker."""
        telemetry.sign_outs.add(1, telemetry.labels(outcome=reason.value))
        await self._happened("sign_out", row, reason, waits=waits)

    async def reused(self, row: SessionRow) -> None:
        """A token was presented that had been replaced long ago."""
        await self._happened("reuse", row)

    async def _happened(
        self, name: EventName, row: SessionRow, reason: SignOutReason | None = None, *, waits: bool = True
    ) -> None:
        hook = self._hooks.get(name)
        if hook is None:
            return
        if len(self._awaited | self._in_threads) >= HOOKS_AT_ONCE:
            _failed(name, "dropped", f"not called: {HOOKS_AT_ONCE} calls of hooks are under way")
            return
        event = SessionEvent(name, row.session_id, row.user_id, utc(self._clock()), reason)
        begin = self._background.start if waits else self._background.detach
        number = next(self._numbers)
        self._awaited.add(number)
        await begin(("hook", number), lambda: self._call(number, hook, event))

    async def _call(self, number: int, hook: Hook, event: SessionEvent) -> None:
        limit = asyncio.timeout(HOOK_SECONDS)
        try:
            async with limit:
                await self._called(number, hook, event)
        except (Exception, SystemExit, asyncio.CancelledError) as error:  # `exit()` in a hook ends no server
            if limit.expired():
                _failed(event.name, "timeout", f"given up after {HOOK_SECONDS:g} s")
            elif isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
                raise
            else:
                _failed(event.name, "raised", "failed", error)
        finally:
            self._awaited.discard(number)

    async def _called(self, number: int, hook: Hook, event: SessionEvent) -> None:
        if inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(type(hook).__call__):
            await hook(event)
            return
        result = await self._in_thread(number, partial(contextvars.copy_context().run, hook, event))
        if inspect.isawaitable(result):
            await result

    def _in_thread(self, number: int, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Have a call done in a thread, unless it was given up before one comes to it.

        In threads of their own: hooks that hang would else take those that the loop resolves host names in.
        """
        answer: Future[Any] = Future()

        def work() -> None:
            try:
                if answer.set_running_or_notify_cancel():
                    answer.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                answer.set_exception(error)
            finally:
                self._in_threads.discard(number)

        self._in_threads.add(number)
        # The executor's own future would say that a call was given up, and not when the executor has let go of it.
        self._threads.submit(work)
        return asyncio.wrap_future(answer)


def _is_being_cancelled() -> bool:
    """Whether somebody cancels the running task, so that it is not the hook that raised."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _failed(name: str, outcome: str, text: str, error: BaseException | None = None) -> None:
    telemetry.hook_failures.add(1, telemetry.labels(hook=f"on_{name}", outcome=outcome))
    telemetry.logger.error("Hook on_%s: %s", name, text, exc_info=error)
