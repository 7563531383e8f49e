"""What a request costs with this package, without it, and with what people use instead.

    python tests/bench/bench.py --rounds 25 --only believed

Prints a table, says which goals are missed, and writes docs/bench.json and docs/bench.svg; with --only it writes
neither, because a part would overwrite the whole. The status is 0 where goals are missed, and 1 with --strict.

Which package is measured, PYTHONPATH says: `make bench` measures the one that is interpreted, which is kept in
docs/bench-interpreted.json, and then the compiled one, with peers and sockets.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import apps
import clicks
import crowds
import floods
import footprint
import keeping
import measure
import peer_rows
import picture
import report
import scaling
import sockets
import steady
import uvloop
from rows import Count, NotHereError, Result, Row, bare

ROOT = Path(__file__).parents[2]
ROWS: tuple[Row, ...] = (*steady.ROWS, *crowds.ROWS, *keeping.ROWS, *scaling.ROWS)
ADDED_GOAL = 0.2
COUNTS: tuple[Count, ...] = (*crowds.COUNTS, *footprint.COUNTS, *clicks.COUNTS, *floods.COUNTS)


def chosen(rows: Sequence[Row | Count], only: str) -> list[Row | Count]:
    return [row for row in rows if only in row.key or only.lower() in row.name.lower()]


async def run(only: str, rounds: int) -> list[Result]:
    """Measure whatever row has `only` in its key or name."""
    results = await compared([row for row in ROWS if row in chosen(ROWS, only)], rounds)
    for count in (count for count in COUNTS if count in chosen(COUNTS, only)):
        results.append(await counted(count, rounds))
    return [*results, *added(results)]


async def compared(rows: Sequence[Row], rounds: int) -> list[Result]:
    """Measure rows that are ratios, side by side: all of them are open at the same time."""
    with ExitStack() as folders:
        async with AsyncExitStack() as stack:
            base = await stack.enter_async_context(bare(Path()))
            pairs, lacking = {}, {}
            for row in rows:
                own = [Path(folders.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
                try:
                    candidate = await stack.enter_async_context(row.open(own[0]))
                    beside = base if row.beside is bare else await stack.enter_async_context(row.beside(own[1]))
                except NotHereError as error:
                    lacking[row.key] = row.unmeasured(str(error))
                else:
                    pairs[row.key] = measure.Pair(candidate, beside)
            figures = await measure.compare(pairs, rounds)
    return [lacking.get(row.key) or row.result(figures[row.key]) for row in rows]


async def counted(count: Count, rounds: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return count.result(await count.measure(Path(folder), rounds))
        except NotHereError as error:
            return count.unmeasured(str(error))


def added(results: Sequence[Result]) -> list[Result]:
    """Return what our middleware adds to a request, × what Starlette's SessionMiddleware adds."""
    by_key = {result.key: result.value for result in results}
    ours, theirs = by_key.get("believed"), by_key.get("starlette")
    if ours is None or theirs is None:
        return []
    name = "what the middleware adds, row believed"
    value = (ours - 1) / (theirs - 1)
    return [Result(key="added", name=name, goal=ADDED_GOAL, value=value, against="what SessionMiddleware adds")]


def main() -> int:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS, help="how many pairs of slices a row has")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="rows with this in their key or name")
    parser.add_argument("--strict", action="store_true", help="end with status 1 where a goal is missed")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="the folder of bench.json and bench.svg")
    parser.add_argument("--cpu", action="store_true", help="count CPU time: for a busy machine; disks are left out")
    options = parser.parse_args()
    if options.cpu:
        measure.clock = time.process_time
    logging.disable(logging.CRITICAL)  # an application's own choice, and not what is measured
    for name in [name for name in os.environ if name.startswith("OTPLESS_")]:
        del os.environ[name]
    report.say(f"The package is {'compiled' if apps.IS_COMPILED else 'interpreted'}.")
    results = uvloop.run(run(options.only, options.rounds))
    others, versions = (
        peer_rows.measured(options.rounds, options.only, cpu=options.cpu) if apps.IS_COMPILED else ([], {})
    )
    served = sockets.measured() if apps.IS_COMPILED and not options.only else []
    report.say(report.table(results, others, served))
    if not options.only:
        about = {**report.environment(), "rounds": options.rounds, "cpu_time": options.cpu, "peer_packages": versions}
        name = "bench" if apps.IS_COMPILED else "bench-interpreted"
        report.write(options.out / f"{name}.json", results, others, served, about)
        if apps.IS_COMPILED:
            picture.write(options.out / "bench.svg", results, others, report.in_short(about))
    missed = [result for result in results if result.missed]
    report.say(report.verdict(missed))
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
