"""How requests are measured: in process, in slices, each beside one of a baseline.

An application is called with scopes made beforehand, as a server would call it; no socket has a part in it. One *slice*
of a candidate takes 15 to 60 ms, and just before it or just after it runs a slice of the baseline. Of each such pair
the ratio is kept, and the median of the ratios is what is told: whatever else the machine does hits both of a pair.
The baseline gets the same request, credential included: FastAPI itself takes a while to read a cookie of 700 bytes.
In each round all candidates have their turn, in an order that is shuffled, as is who of a pair goes first.

The garbage collector stays on, because cyclic garbage is a cost of whoever makes it. What was there before the first
slice is frozen, and before each slice the rest is collected, so that nobody pays for another's.

On a machine that is busy with other things, `clock = time.process_time` counts what the process itself spends; what
waits for a disk is left out then.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message

SLICE_SECONDS = 0.03
ROUNDS = 25
MOST_CALLS = 2_000
FIRST_CALLS = 8
clock: Callable[[], float] = time.perf_counter
CALIBRATIONS = 3

Scope = dict[str, Any]
Slice = Callable[[int], Awaitable[float]]
"""Does something so many times, and returns how many seconds one took; what it prepares does not count."""


class UnexpectedAnswerError(Exception):
    """An application answered something else than what was to be measured."""


@dataclass(frozen=True)
class Batch:
    """Requests to send: to which application, each with a scope of its own, and the status that each must get."""

    app: ASGIApp
    scopes: list[Scope]
    status: int = 200
    after: Callable[[], Awaitable[None]] | None = None
    """Tidies up, when nobody measures any more."""


Sized = Callable[[], Awaitable[float]]
"""A slice whose length was chosen."""
Prepare = Callable[[int], Awaitable[Batch]]


@dataclass
class Pair:
    """A candidate beside its baseline."""

    candidate: Slice
    baseline: Slice


@dataclass
class Figures:
    """What the slices of a pair gave: seconds a call, and the ratio of each pair."""

    candidate: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.candidate, self.baseline, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The first and the third quartile of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return low, high

    @property
    def seconds(self) -> float:
        return statistics.median(self.candidate)

    @property
    def baseline_seconds(self) -> float:
        return statistics.median(self.baseline)


async def compare(pairs: Mapping[str, Pair], rounds: int = ROUNDS) -> dict[str, Figures]:
    """Measure each pair `rounds` times."""
    sized = {name: (await _sized(pair.candidate), await _sized(pair.baseline)) for name, pair in pairs.items()}
    figures = {name: Figures() for name in pairs}
    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for name in random.sample(list(pairs), len(pairs)):
                await _one_pair(*sized[name], figures[name])
    finally:
        gc.unfreeze()
    return figures


async def _one_pair(candidate: Sized, base: Sized, to: Figures) -> None:
    sides = [(candidate, to.candidate), (base, to.baseline)]
    random.shuffle(sides)
    for run, kept in sides:
        kept.append(await run())


async def _sized(run: Slice) -> Sized:
    """Choose how many calls make a slice; that warms it up, too."""
    calls = FIRST_CALLS
    for _ in range(CALIBRATIONS):
        calls = max(1, min(MOST_CALLS, round(SLICE_SECONDS / await run(calls))))

    async def one() -> float:
        return await run(calls)

    return one


def requests(prepare: Prepare) -> Slice:
    """Send requests one after the other."""

    async def run(calls: int) -> float:
        batch = await prepare(calls)
        statuses, send = _recorder()
        waiting = list(reversed(batch.scopes))
        batch.scopes.clear()  # a scope goes with its request, as a server lets go of it
        count = len(waiting)
        gc.collect()
        started = clock()
        while waiting:
            await batch.app(waiting.pop(), receive, send)
        seconds = clock() - started
        await _finish(batch, statuses, count)
        return seconds / count

    return run


def together(prepare: Prepare, concurrent: int) -> Slice:
    """Send requests in crowds of `concurrent`: each crowd at once, one crowd after the other."""

    async def run(calls: int) -> float:
        crowds = max(1, calls // concurrent)
        batch = await prepare(crowds * concurrent)
        statuses, send = _recorder()
        gc.collect()
        started = clock()
        for first in range(0, len(batch.scopes), concurrent):
            crowd = batch.scopes[first : first + concurrent]
            await asyncio.gather(*(asyncio.create_task(_call(batch.app, scope, send)) for scope in crowd))
        seconds = clock() - started
        await _finish(batch, statuses, len(batch.scopes))
        return seconds / len(batch.scopes)

    return run


def calls(function: Callable[[], Awaitable[object]]) -> Slice:
    """Call something that is no request."""

    async def run(count: int) -> float:
        gc.collect()
        started = clock()
        for _ in range(count):
            await function()
        return (clock() - started) / count

    return run


async def _call(app: ASGIApp, scope: Scope, send: Callable[[Message], Awaitable[None]]) -> None:
    await app(scope, receive, send)


async def _finish(batch: Batch, statuses: list[int], count: int) -> None:
    if statuses != [batch.status] * count:
        raise UnexpectedAnswerError(f"{batch.status} was to be measured, but there were {sorted(set(statuses))}")
    if batch.after is not None:
        await batch.after()


async def receive() -> Message:
    """Give an empty body, as a server does for a GET."""
    return {"type": "http.request", "body": b"", "more_body": False}


def _recorder() -> tuple[list[int], Callable[[Message], Awaitable[None]]]:
    """Return a `send` that does next to nothing: it keeps the statuses."""
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    return statuses, send


def scope(path: str = "/", *headers: tuple[bytes, bytes]) -> Scope:
    """Return the scope of a browser's GET, as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 40000),
        "scheme": "https",
        "root_path": "",
        "headers": [*BROWSER, *headers],
        "state": {},
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
    }


BROWSER = (
    (b"host", b"shop.example"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"application/json"),
    (b"accept-language", b"en-GB,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"connection", b"keep-alive"),
    (b"sec-fetch-site", b"same-origin"),
)


@asynccontextmanager
async def lifespan(app: ASGIApp) -> AsyncIterator[None]:
    """Run an application's lifespan, as a server does."""
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    outbox: asyncio.Queue[Message] = asyncio.Queue()
    task = asyncio.create_task(_run(app, inbox, outbox))
    await inbox.put({"type": "lifespan.startup"})
    started = await outbox.get()
    if started["type"] != "lifespan.startup.complete":
        raise RuntimeError(started.get("message", "the application did not start"))
    try:
        yield
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await outbox.get()
        await task


async def _run(app: ASGIApp, inbox: asyncio.Queue[Message], outbox: asyncio.Queue[Message]) -> None:
    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, inbox.get, outbox.put)
