"""The results as a table to read and as JSON to keep."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sockets
from rows import TIMES, Result

PACKAGES = (
    *("fastapi", "starlette", "uvicorn", "uvloop", "pydantic", "httpx"),
    *("pyjwt", "cryptography", "sqlalchemy", "redis", "itsdangerous"),
)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(results: Sequence[Result], others: Sequence[Result], served: Sequence[sockets.Served]) -> str:
    """Return all that was measured, in columns."""
    lines = _columns([("", "measured", "goal", "", "", "quartiles", "µs", "× µs of"), *map(_cells, results)])
    if others:
        rows = [("peers, × the bare route in their environment", "", "", "", "", "", "", ""), *map(_cells, others)]
        lines += ["", *_columns(rows)]
    return "\n".join([*lines, "", *sockets.table(served)])


def _cells(result: Result) -> tuple[str, ...]:
    if result.value is None:
        return (result.name, "–", _number(result.goal, result.unit), "", result.note, "", "", "")
    spread = "–".join(f"{edge:.2f}" for edge in result.spread) if result.spread else ""
    return (
        result.name,
        _number(result.value, result.unit),
        _number(result.goal, result.unit),
        "" if result.goal is None else "missed" if result.missed else "met",
        result.note,
        spread,
        _number(result.microseconds, ""),
        f"{_number(result.baseline_microseconds, '')} {result.against}".strip(),
    )


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    text = f"{value:,.2f}" if value < 100 and unit == TIMES else f"{value:,.0f}"
    return f"{unit} {text}" if unit == TIMES else f"{text} {unit}".strip()


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def verdict(missed: Sequence[Result]) -> str:
    """Name the goals that are missed, and by how much."""
    if not missed:
        return "\nEvery goal that could be measured is met."
    rows = [
        (f"  {each.name}", _number(each.value, each.unit), f"goal {_number(each.goal, each.unit)}") for each in missed
    ]
    return "\n".join([f"\nMissed goals: {len(missed)}", *_columns(rows)])


def environment() -> dict[str, Any]:
    """Return when and on what this is measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "system": platform.system(),
        "cpu": _cpu(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def in_short(about: dict[str, Any]) -> str:
    """Return that as one line."""
    machine = f"Python {about['python']}, FastAPI {about['packages']['fastapi']}, {about['cpu']}"
    return f"{about['date']}, {machine}, compiled. make bench"


def _cpu() -> str:
    """Return the processor's name: Linux keeps it in a file, elsewhere `platform` knows."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write(
    place: Path,
    results: Sequence[Result],
    others: Sequence[Result],
    served: Sequence[sockets.Served],
    more: dict[str, Any],
) -> None:
    """Write everything as JSON."""
    content = {
        **more,
        "rows": [{**asdict(each), "missed": each.missed} for each in results],
        "peers": [asdict(each) for each in others],
        "sockets": [asdict(each) for each in served],
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
