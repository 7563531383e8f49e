"""Counts: what a remembered session takes of memory, and what importing the package takes."""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import tracemalloc
from pathlib import Path

import measure
from apps import BELIEVED, REQUIRED, Pair, Worker, bearer, with_cookie, worker
from measure import Scope, scope
from rows import Count
from upstream import DAY, claims, unsigned

REMEMBERED = 5_000
MORE_THAN_REMEMBERED = (11_000, 14_000)
"""Past the 10,000 that a worker remembers, and past where the dict with them grows for the last time; and well past."""
IMPORTS = 9
QUIET = 3
"""The tasks of a worker at rest: the bench itself, the lifespan, and housekeeping."""

IMPORT = """
import time
started = time.perf_counter()
import fastapi, httpx
before = time.perf_counter()
import fastapi_otpless_session
print(before - started, time.perf_counter() - before)
"""
IMPORT_ALL = IMPORT.replace("import fastapi_otpless_session", "from fastapi_otpless_session import *")


async def memory(folder: Path, _: int) -> float:
    """Return how many bytes a session takes that a worker remembers: its tokens were made elsewhere."""
    async with worker(folder, jwks_url="") as other:  # no signature is looked at, so that none has to be made
        pairs = [await other.sign_in() for _ in range(REMEMBERED + 1)]
    async with worker(folder, jwks_url="", **BELIEVED, **REQUIRED) as each:
        await _send(each, [with_cookie(pairs.pop().token)])
        return await _traced(each, pairs) / REMEMBERED


async def _traced(each: Worker, pairs: list[Pair]) -> float:
    gc.collect()
    tracemalloc.start()
    try:
        for pair in pairs:
            await _send(each, [with_cookie(pair.token)])
            await _quiet()  # a server's loop turns between requests, too
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


async def _quiet() -> None:
    """Let what goes on behind the requests finish: all tasks but this one and housekeeping's."""
    while len(asyncio.all_tasks()) > QUIET:  # noqa: ASYNC110 - other people's tasks tell nobody when they end
        await asyncio.sleep(0.01)


async def _send(each: Worker, scopes: list[Scope]) -> None:
    for one in scopes:
        await each.app(one, measure.receive, _ignore)


async def _ignore(_: object) -> None:
    """Send nothing."""


async def bounded(_: Path, __: int) -> float:
    """Return how many bytes each session takes that comes when a worker remembers as many as it may."""
    fewer, more = MORE_THAN_REMEMBERED
    async with worker(None, jwks_url="", **REQUIRED) as each:
        tracemalloc.start()
        try:
            at = []
            for first, last in ((0, fewer), (fewer, more)):
                for number in range(first, last):
                    token = unsigned(claims(f"{number:032x}", each.clock(), DAY))
                    await _send(each, [scope("/", bearer(token))])
                gc.collect()
                at.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    return max(0.0, at[1] - at[0]) / (more - fewer)


async def importing(_: Path, __: int) -> float:
    """Return what the import adds to that of fastapi and httpx, in percent."""
    return statistics.median(_import_once(IMPORT) for _ in range(IMPORTS))


async def importing_all(_: Path, __: int) -> float:
    """Return what it adds to load all public names, which an application does piece by piece."""
    return statistics.median(_import_once(IMPORT_ALL) for _ in range(IMPORTS))


def _import_once(code: str) -> float:
    printed = subprocess.run(  # noqa: S603 - this Python
        [sys.executable, "-Pc", code], capture_output=True, check=True, text=True
    )
    before, added = map(float, printed.stdout.split())
    return 100 * added / before


COUNTS = (
    Count("memory", "memory of a remembered session", 1_536, "bytes", memory, f"{REMEMBERED:,} sessions, one worker"),
    Count("bounded", "… of each further one, once 10,000 are remembered", 64, "bytes", bounded),
    Count("import", "import fastapi_otpless_session", 15, "%", importing, "", "import fastapi, httpx"),
    Count("import-all", "… and all its names", None, "%", importing_all, "", "import fastapi, httpx"),
)
