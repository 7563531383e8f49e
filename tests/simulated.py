"""Time that passes because a test says so: for clocks that are injected, and for an event loop's own timers."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

from conftest import Clock
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_otpless_session import OtplessClient
from fastapi_otpless_session.http import HttpSender
from fastapi_otpless_session.wire import Answer, Request

ROUNDS = 20


async def settle(rounds: int = ROUNDS) -> None:
    """Let every task run until it waits for something outside."""
    for _ in range(rounds):
        await asyncio.sleep(0)


@dataclass
class SleepingClock(Clock):
    """A clock on which one can also sleep."""

    _sleepers: list[tuple[float, int, asyncio.Event]] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        while self._sleepers and self._sleepers[0][0] <= self.now:
            heapq.heappop(self._sleepers)[2].set()


class LoopTime:
    """Moves the running event loop's clock forward, and with it every timer and timeout on it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real = loop.time
        self._ahead = 0.0
        loop.time = self._now  # type: ignore[method-assign]

    def _now(self) -> float:
        return self._real() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let time pass, and whatever was waiting for it run."""
        self._ahead += seconds
        await settle()


class Stalls:
    """Stands before the emulator's application and counts the calls that it has begun to leave without an answer.

    Those that wait for their client to go away, and those whose answer comes drop by drop.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.count = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watched = _Watched(self, receive, send)
        await self._app(scope, watched.receive, watched.send)


class _Watched:
    """One call, seen from the server. Faults look for the connection where the server has it, beside `send`."""

    def __init__(self, stalls: Stalls, receive: Receive, send: Send) -> None:
        self._stalls = stalls
        self._receive = receive
        self._send = send
        self._is_received = False
        self.transport = getattr(getattr(send, "__self__", None), "transport", None)

    async def receive(self) -> Message:
        self._stalls.count += self._is_received
        message = await self._receive()
        self._is_received = not message.get("more_body")
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        self._stalls.count += len(message.get("body", b"")) == 1


class Hurried:
    """Sends as another does; but a deadline that is waited for in vain passes at once, on the event loop's clock.

    So deadlines can be as long as a busy machine needs for everything else.
    """

    def __init__(self, sender: HttpSender, stalls: Stalls) -> None:
        self._sender = sender
        self._stalls = stalls
        self._time: LoopTime | None = None

    async def send(self, request: Request, *, deadline: float) -> Answer:
        self._time = self._time or LoopTime()
        before = self._stalls.count
        sending = asyncio.create_task(self._sender.send(request, deadline=deadline))
        try:
            while not sending.done():
                await asyncio.wait({sending}, timeout=0.01)
                if self._stalls.count > before:
                    await self._time.advance(deadline)
            return await sending
        finally:
            sending.cancel()
            await asyncio.wait({sending})

    async def open(self) -> None:
        await self._sender.open()

    async def close(self) -> None:
        await self._sender.close()


def hurry(client: OtplessClient, stalls: Stalls) -> OtplessClient:
    """Have a client's deadlines pass at once where they are waited for in vain."""
    client._calls._http = Hurried(client._calls._http, stalls)
    return client
