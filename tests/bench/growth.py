"""What a lookup, a refresh, a list of devices and a purge cost, by how many sessions the store holds.

    python tests/bench/growth.py --stores sqlite,postgresql,redis --sizes 1000,10000,100000,1000000

For each store two are filled: one with a thousand sessions, one that grows. Both do the same in turns, in slices, and
the ratio is the median of the paired slices' ratios: whatever else the machine does hits both. Prints a Markdown table
for the README and writes the figures as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import backends
import fill
from processes import Guard

from fastapi_otpless_session.stores import SessionStore, open_store
from fastapi_otpless_session.stores.base import Rotation

BASE = 1_000
ROUNDS = 25
PURGED = 100
EXPIRED = 10**9
"""Where the numbers of sessions begin that have expired."""
CALLS = {"lookup": 60, "refresh": 8, "devices": 30, "purge": 1}


@dataclass
class Subject:
    """A filled store, and which of its sessions comes next."""

    url: str
    store: SessionStore
    size: int = 0
    expired: int = 0
    turn: int = 0
    generations: dict[int, int] = field(default_factory=dict)

    async def grow(self, size: int) -> None:
        now = await self.store.now()
        await fill.fill(self.url, self.size, size, lambda number: fill.row(number, now))
        self.size = size

    async def add_expired(self, count: int) -> None:
        now = await self.store.now()
        first = EXPIRED + self.expired
        await fill.fill(self.url, first, first + count, lambda number: fill.row(number, now - fill.DAY, life=1.0))
        self.expired += count

    def next(self) -> int:
        """Return the number of a session; in an order that no page cache can foresee."""
        self.turn += 1
        return random.Random(self.turn).randrange(self.size)  # noqa: S311

    async def lookup(self) -> None:
        number = self.next()
        while number in self.generations:
            number = self.next()
        if await self.store.find(fill.digest(number)) is None:
            raise RuntimeError("a session is missing")

    async def refresh(self) -> None:
        number = self.next()
        generation = self.generations.get(number, 1)
        lease = await self.store.take_lease(fill.session_id(number), generation, f"{self.turn}", 15)
        now = await self.store.now()
        if lease is None or await self.store.commit(lease, _rotation(number, generation + 1, now)) is None:
            raise RuntimeError("a refresh was refused")
        self.generations[number] = generation + 1

    async def devices(self) -> None:
        if not await self.store.list_user(fill.user_id(self.next())):
            raise RuntimeError("a user has no sessions")

    async def purge(self) -> None:
        await self.store.purge(PURGED)


def _rotation(number: int, generation: int, now: float) -> Rotation:
    return Rotation(
        token_digest=fill.digest(number, f"token {generation}"),
        session_token=b"x" * fill.SEALED,
        token_expires_at=now + fill.DAY,
        refresh_digest=fill.digest(number, f"refresh {generation}"),
        refresh_token=b"x" * fill.SEALED,
        expires_at=now + 7 * fill.DAY,
        answered_at=now,
    )


async def _slice(work: Callable[[], Awaitable[None]], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        await work()
    return (time.perf_counter() - started) / calls


async def measure(base: Subject, grown: Subject, what: str) -> tuple[float, float]:
    """Return what a call costs in the grown store, in microseconds, and how many times that of the base."""
    pairs = []
    for turn in range(ROUNDS):
        order = (base, grown) if turn % 2 else (grown, base)
        cost = {id(each): await _slice(getattr(each, what), CALLS[what]) for each in order}
        pairs.append((cost[id(base)], cost[id(grown)]))
    pairs = pairs[ROUNDS // 5 :]  # the first slices warm up
    return statistics.median(b for _, b in pairs) * 1e6, statistics.median(b / a for a, b in pairs)


@asynccontextmanager
async def subject(url: str) -> AsyncIterator[Subject]:
    store = open_store(url)
    await store.open()
    try:
        yield Subject(url, store)
    finally:
        await store.close()


@contextmanager
def two_urls(name: str, guard: Guard) -> Iterator[tuple[str, str]]:
    """Give the URLs of two empty stores of a kind."""
    match name:
        case "sqlite":
            with tempfile.TemporaryDirectory() as folder:
                yield f"sqlite:///{folder}/base.db", f"sqlite:///{folder}/grown.db"
        case "postgresql":
            binaries = backends.required(backends.find_postgres(), backends.NO_POSTGRES)
            durable = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "512MB", "max_wal_size": "8GB"}
            server = backends.PostgresServer(binaries, guard, **durable)
            server.start()
            with server.database() as base, server.database() as grown:
                yield base, grown
            server.stop()
        case _:
            binary = backends.required(backends.find_redis(), backends.NO_REDIS)
            both = [backends.RedisServer(binary, guard, appendonly="yes") for _ in range(2)]
            for each in both:
                each.start()
            yield both[0].url, both[1].url
            for each in both:
                each.stop()


async def grow(name: str, sizes: list[int], guard: Guard) -> list[dict[str, float | str]]:
    """Measure one kind of store at each size."""
    lines: list[dict[str, float | str]] = []
    with two_urls(name, guard) as urls:
        async with subject(urls[0]) as base, subject(urls[1]) as grown:
            await base.grow(BASE)
            for size in sizes:
                await grown.grow(size)
                for each in (base, grown):
                    await each.add_expired((ROUNDS + 1) * PURGED)
                for what in CALLS:
                    cost, ratio = await measure(base, grown, what)
                    lines.append({"store": name, "sessions": size, "what": what, "us": cost, "ratio": ratio})
                    say(f"{name:10} {size:>9,} {what:8} {cost:9.0f} us  x {ratio:.2f}")
    return lines


def table(lines: list[dict[str, float | str]]) -> str:
    """Return the figures as a Markdown table: microseconds, and how many times those with a thousand sessions."""
    rows = ["| store | sessions | " + " | ".join(CALLS) + " |", "| --- | --- |" + " --- |" * len(CALLS)]
    for store, size in dict.fromkeys((line["store"], line["sessions"]) for line in lines):
        cells = [_cell(line) for line in lines if (line["store"], line["sessions"]) == (store, size)]
        rows.append(f"| {store} | {size:,} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(line: dict[str, float | str]) -> str:
    if line["store"] == "redis" and line["what"] == "purge":
        return "by the server"
    return f"{line['us']:,.0f} µs (× {line['ratio']:.2f})"


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="sqlite,postgresql,redis")
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--json", type=Path, default=Path("growth.json"))
    chosen = parser.parse_args()
    lines = []
    with Guard() as guard:
        for name in chosen.stores.split(","):
            lines += asyncio.run(grow(name, [int(size) for size in chosen.sizes.split(",")], guard))
    chosen.json.write_text(json.dumps(lines, indent=1))
    say(f"\n{table(lines)}")


if __name__ == "__main__":
    main()
