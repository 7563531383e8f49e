"""How it grows: each step beside the one before it. A request must not cost more because there are more of them.

"Linear" is read as: ten times as many requests cost ten times as much, so that one costs the same. 15 % are left to
noise, and to what caches of the processor do.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import apps
import fill
import measure
from apps import with_cookie, worker
from measure import Batch, Slice
from rows import Open, Row
from upstream import DAY, claims, unsigned

from fastapi_otpless_session import tokens

LINEAR = 1.15
CROWDS = (1, 8, 64, 256)
LIVE = (10_000, 100_000)
WARM = 10_000
"""As many as a worker remembers: from then on it forgets one for each that it comes to know."""


def crowd(concurrent: int) -> Open:
    """Requests of so many people at once, each with a row that is read from SQLite."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Slice]:
        async with worker(folder, apps.depending) as each:
            made = [(await each.sign_in()).token for _ in range(concurrent)]

            async def prepare(calls: int) -> Batch:
                return await each.batch([with_cookie(made[number % concurrent]) for number in range(calls)])

            yield measure.together(prepare, concurrent)

    return opened


def live(sessions: int) -> Open:
    """Requests of whoever comes, one of so many that are signed in and all served by one worker."""

    @asynccontextmanager
    async def opened(folder: Path) -> AsyncIterator[Slice]:
        clock = apps.Clock()  # it stands still: nobody's last visit is noted, and no token grows old
        async with worker(folder, apps.depending, clock=clock) as each:
            chance = random.Random(sessions)  # noqa: S311 - the same visitors in each run
            made = await _signed_in(f"sqlite:///{folder}/sessions.db", sessions, clock.now)

            async def prepare(calls: int) -> Batch:
                return await each.batch([with_cookie(made[chance.randrange(sessions)]) for _ in range(calls)])

            run = measure.requests(prepare)
            await run(min(WARM, sessions))
            yield run

    return opened


async def _signed_in(url: str, sessions: int, now: float) -> list[str]:
    """Fill a store with sessions of whom a client has a token; return the tokens."""
    made: list[str] = []
    for first in range(0, sessions, fill.BATCH):
        numbered = []
        for number in range(first, min(first + fill.BATCH, sessions)):
            row = fill.row(number, now)
            made.append(unsigned(claims(row.session_id, now, DAY)))
            numbered.append((number, replace(row, user_id=f"MO-{row.session_id}", token_expires_at=now + DAY)))
        await fill.into_sqlite(url, numbered, lambda number: tokens.digest(apps.CLIENT_ID, made[number]))
    return made


def _rows() -> Iterator[Row]:
    for fewer, more in pairwise(CROWDS):
        yield Row(
            f"crowd-{more}", f"a request, {more} at once", LINEAR, crowd(more), "", crowd(fewer), f"{fewer} at once"
        )
    for fewer, more in pairwise(LIVE):
        name = f"a request, {more:,} sessions in one worker"
        note = f"a worker remembers {WARM:,}"
        yield Row(f"live-{more}", name, LINEAR, live(more), note, live(fewer), f"{fewer:,} sessions")


ROWS = tuple(_rows())
