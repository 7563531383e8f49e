"""Measures what people use instead, × the bare FastAPI route, in an environment where those libraries are installed.

    .venv-peers/bin/python tests/bench/peers/run.py --rounds 25

Prints JSON. Each peer is used as its documentation says, on its local path: the key is given, no network is asked.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from contextlib import AsyncExitStack
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import libraries
import measure
import uvloop


def _repeated(peer: libraries.Peer) -> measure.Slice:
    async def prepare(calls: int) -> measure.Batch:
        return measure.Batch(peer.app, [measure.scope("/", *peer.headers) for _ in range(calls)], peer.status)

    return measure.requests(prepare)


async def run(only: str, rounds: int) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as stack:
        pairs = {}
        for each in libraries.LIBRARIES:
            if only not in each.key and only.lower() not in each.name.lower():
                continue
            rows[each.key] = {"key": each.key, "name": each.name, "note": each.note, "spread": None}
            try:
                peer = await stack.enter_async_context(each.open())
                slice_of_it = _repeated(peer)
                await slice_of_it(1)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are to be measured
                rows[each.key]["note"] = f"not measured: {type(error).__name__}: {error}".partition("\n")[0]
            else:
                pairs[each.key] = measure.Pair(slice_of_it, _repeated(libraries.Peer(libraries.bare(), peer.headers)))
        for key, figures in (await measure.compare(pairs, rounds)).items():
            rows[key] |= {
                "value": figures.ratio,
                "spread": figures.spread,
                "microseconds": statistics.median(figures.candidate) * 1e6,
                "baseline_microseconds": statistics.median(figures.baseline) * 1e6,
            }
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=measure.ROUNDS)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    if options.cpu:
        measure.clock = time.process_time
    logging.disable(logging.CRITICAL)
    rows = uvloop.run(run(options.only, options.rounds))
    installed = {each.name.lower().replace("_", "-"): each.version for each in distributions()}
    packages = {name: installed.get(name, "not installed") for name in libraries.PACKAGES}
    json.dump({"rows": rows, "packages": packages}, sys.stdout)


if __name__ == "__main__":
    main()
