"""Rows of many requests at once: a herd with one dead token, and 32 people whose sessions OTPLESS is asked about.

A herd of 500 is set beside 500 requests to the bare route at once, each a task: "tasks that do nothing" is read as
"requests that do nothing about a session". Tasks with an empty body would cost 2 µs each, and no request could be
compared with them; tasks of the same application with a live token would leave out what the middleware itself costs a
crowd. That second comparison is printed too, without a goal.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import apps
import measure
from apps import BELIEVED, REQUIRED, Pair, Worker, with_cookie, worker
from measure import Batch, Slice
from rows import Count, Open, Row
from upstream import DAY, claims, unsigned

HERD = 500
CROWD = 32
LIFE = 3600.0


class Herd:
    """One session, whose token is dead each time that many bring it at once."""

    def __init__(self, each: Worker, clock: apps.Clock, pair: Pair) -> None:
        self._worker = each
        self._clock = clock
        self._pair = pair

    async def prepare(self, calls: int) -> Batch:
        """Let the token expire, and make `calls` requests with it."""
        self._clock.now += 2 * LIFE
        old = self._pair
        new = self._worker.upstream.will_refresh(old.refresh_token, old.session_id, self._clock.now, LIFE)
        self._pair = Pair(old.session_id, *new)
        return await self._worker.batch([with_cookie(old.token) for _ in range(calls)])

    async def prepare_live(self, calls: int) -> Batch:
        return await self._worker.batch([with_cookie(self._pair.token) for _ in range(calls)])

    @property
    def refreshes(self) -> int:
        return self._worker.upstream.calls["get-new-session-token"]


@asynccontextmanager
async def _herd(folder: Path) -> AsyncIterator[Herd]:
    clock = apps.Clock()
    async with worker(folder, clock=clock, **BELIEVED, **REQUIRED) as each:
        yield Herd(each, clock, await each.sign_in(LIFE))


@asynccontextmanager
async def herd(folder: Path) -> AsyncIterator[Slice]:
    async with _herd(folder) as each:
        yield measure.together(each.prepare, HERD)


@asynccontextmanager
async def live_crowd(folder: Path) -> AsyncIterator[Slice]:
    async with _herd(folder) as each:
        yield measure.together(each.prepare_live, HERD)


@asynccontextmanager
async def bare_crowd(_: Path) -> AsyncIterator[Slice]:
    app, token = apps.bare(), unsigned(claims("0" * 32, 0, DAY))

    async def prepare(calls: int) -> Batch:
        return Batch(app, [with_cookie(token) for _ in range(calls)])

    yield measure.together(prepare, HERD)


async def herd_calls(folder: Path, rounds: int) -> float:
    """Return how often OTPLESS was asked for new tokens, for each herd; the most of all rounds."""
    most = 0
    async with _herd(folder) as each:
        run = measure.together(each.prepare, HERD)
        for _ in range(rounds):
            before = each.refreshes
            await run(HERD)
            most = max(most, each.refreshes - before)
    return most


# Over loopback


@contextmanager
def otpless_over_loopback() -> Iterator[str]:
    """Run a server that says "valid" as fast as it can, in a process of its own."""
    server = subprocess.Popen(  # noqa: S603 - this Python
        [sys.executable, str(Path(__file__).with_name("loopback.py"))], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.terminate()
        server.communicate()


def _asking(client: str) -> Open:
    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Slice]:
        values: dict[str, Any] = {"http_client": client, "validation_ttl": 0, **BELIEVED, **REQUIRED}
        values["stale_if_error"] = 0  # where OTPLESS gives no verdict, the answer must not be 200
        with otpless_over_loopback() as url:
            async with (
                worker(folder) as first,
                worker(folder, over_network=True, base_url=url, **values) as each,
            ):
                pairs = [await first.sign_in() for _ in range(CROWD)]

                async def prepare(calls: int) -> Batch:
                    return await each.batch([with_cookie(pairs[n % CROWD].token) for n in range(calls)])

                yield measure.together(prepare, CROWD)

    return opened


ROWS = (
    Row("herd", f"{HERD} requests with one dead token", 1.4, herd, "row believed", bare_crowd, f"{HERD} bare at once"),
    Row("herd-live", "… the same", None, herd, "row believed", live_crowd, "with a live token"),
    Row(
        "aiohttp",
        f"VALIDATION_TTL=0, {CROWD} tokens at once over loopback, aiohttp",
        0.2,
        _asking("aiohttp"),
        "",
        _asking("httpx"),
        "httpx",
    ),
)
COUNTS = (Count("herd-calls", "herd: calls to OTPLESS for one dead token", 1, "calls", herd_calls),)
