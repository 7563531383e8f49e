"""The harness of `make bench`: it measures, names what is missed, and leaves out no goal. Seconds are not judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))

import apps
import bench
import measure
import picture
import readme_table
import report
import sockets
from rows import Count, Result, Row

pytestmark = pytest.mark.varied

GOALS = {
    "believed": 1.15,
    "sqlite": 2.0,
    "added": 0.2,
    "first-stranger": 3.5,
    "validated": 1.4,
    "aiohttp": 0.2,
    "refresh": 15,
    "herd": 1.4,
    "herd-calls": 1,
    "no-token": 0.25,
    "bad-signature": 1.7,
    "unused": 1.05,
    "unused-sent": 1.07,
    "sqlite-read": 0.35,
    "redis": 1.5,
    "memory": 1_536,
    "import": 15,
    "p99": 2,
    "flood": 2,
}


def test_every_goal_has_a_row() -> None:
    rows: list[Row | Count] = [*bench.ROWS, *bench.COUNTS]
    goals = {row.key: row.goal for row in rows} | {"added": bench.ADDED_GOAL}
    assert {key: goals[key] for key in GOALS} == GOALS


@pytest.mark.parametrize("key", ["believed", "no-token", "refresh", "herd", "sqlite-read"])
async def test_a_row_is_a_ratio_of_slices(key: str) -> None:
    (row,) = (row for row in bench.ROWS if row.key == key)
    (result,) = await bench.compared([row], rounds=1)
    assert result.value is not None
    assert result.value > 0
    assert result.goal == GOALS[key]


async def test_what_the_middleware_adds_is_set_beside_starlettes() -> None:
    rows = [row for row in bench.ROWS if row.key in {"believed", "starlette"}]
    (added,) = bench.added(await bench.compared(rows, rounds=1))
    assert added.value is not None


async def test_a_herd_is_counted() -> None:
    (count,) = (count for count in bench.COUNTS if count.key == "herd-calls")
    assert (await bench.counted(count, rounds=1)).value == 1


async def test_a_wrong_answer_is_not_measured() -> None:
    async def prepare(calls: int) -> measure.Batch:
        return measure.Batch(apps.bare(), [measure.scope("/nowhere")] * calls)

    with pytest.raises(measure.UnexpectedAnswerError):
        await measure.requests(prepare)(1)


def test_what_is_missed_is_named_and_kept(tmp_path: Path) -> None:
    met = Result(key="a", name="one that is met", goal=2, value=1.5)
    missed = Result(key="b", name="one that is missed", goal=2, value=2.5)
    lacking = Result(key="c", name="one that is not there", goal=2, note="not installed")
    assert [each.missed for each in (met, missed, lacking)] == [False, True, False]
    said = report.verdict([missed])
    assert "one that is missed" in said
    assert "2.50" in said
    assert "not installed" in report.table([met, missed, lacking], [], [])
    report.write(tmp_path / "bench.json", [met, missed, lacking], [], [], report.environment())
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["key"], row["missed"]) for row in kept["rows"]] == [("a", False), ("b", True), ("c", False)]
    assert kept["date"]
    assert kept["cpu"]
    assert kept["packages"].keys() >= {"fastapi", "starlette", "uvloop"}


def test_the_picture_has_a_bar_for_us_and_for_each_peer(tmp_path: Path) -> None:
    ours = [Result(key="believed", name="ours", value=1.1), Result(key="unused", name="not shown", value=1.2)]
    peers = [
        Result(key="a", name="Peer & Sons", value=4.25),
        Result(key="b", name="one that lacks", note="not installed"),
    ]
    picture.write(tmp_path / "bench.svg", ours, peers, "2030-01-01")
    texts = {each.text for each in ET.parse(tmp_path / "bench.svg").iter() if each.text}  # noqa: S314 - our own
    assert {"1.10", "Peer & Sons", "4.25", "2030-01-01"} <= texts
    assert not {"not shown", "one that lacks"} & texts


WRK = """
  Latency Distribution
     50%    6.51ms
     99%    1.20s
  24613 requests in 4.00s, 3.03MB read
Requests/sec:   6150.40
"""


def test_what_wrk_prints_is_read() -> None:
    served = sockets.read("bare", 1, WRK, spent=2.4613)
    assert (served.requests_per_second, served.p99_milliseconds) == (6150.4, 1200.0)
    assert round(served.cpu_microseconds) == 100
    with pytest.raises(RuntimeError, match="Non-2xx"):
        sockets.read("bare", 1, WRK + "  Non-2xx or 3xx responses: 3", spent=1.0)


def test_the_readme_shows_what_was_measured_last() -> None:
    both = [json.loads(path.read_text(encoding="utf-8")) for path in (readme_table.KEPT, readme_table.INTERPRETED)]
    readme = readme_table.KEPT.parents[1] / "README.md"
    assert readme_table.readme_table(*both) in readme.read_text(encoding="utf-8")
