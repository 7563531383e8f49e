"""The table that the README shows, made from docs/bench*.json: `python tests/bench/readme_table.py` prints it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEPT = Path(__file__).parents[2] / "docs" / "bench.json"
INTERPRETED = KEPT.with_name("bench-interpreted.json")
ALSO_SHOWN = frozenset({"import-all"})


def readme_table(kept: Mapping[str, Any], interpreted: Mapping[str, Any]) -> str:
    """Return the rows that have a goal, then the peers', with when and on what they were measured."""
    plain = {row["key"]: row for row in interpreted["rows"]}
    rows = [row for row in kept["rows"] if row["goal"] is not None or row["key"] in ALSO_SHOWN]
    packages = kept["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("fastapi", "starlette", "uvloop", "pydantic"))
    lines = [
        f"Measured on {kept['date']}: {kept['cpu']}, Python {kept['python']}, {versions}; {kept['rounds']} rounds.",
        "",
        "| what | compiled | goal | interpreted |",
        "| --- | --- | --- | --- |",
        *(f"| {row['name']} | {_number(row)} | {_goal(row)} | {_number(plain[row['key']])} |" for row in rows),
    ]
    if kept["peers"]:
        lines += ["", "| what people use instead | measured |", "| --- | --- |"]
        lines += [f"| {row['name']} | {_number(row)} |" for row in kept["peers"]]
    return "\n".join(lines)


def _goal(row: Mapping[str, Any]) -> str:
    if row["goal"] is None:
        return "–"
    return _number({**row, "value": row["goal"]}) + (", missed" if row["missed"] else "")


def _number(row: Mapping[str, Any]) -> str:
    value, unit = row["value"], row["unit"]
    if value is None:
        return "–"
    text = f"{value:,.2f}" if unit == "×" and value < 100 else f"{value:,.0f}"
    return f"{unit} {text}" if unit == "×" else f"{text} {unit}"


if __name__ == "__main__":
    both = [json.loads(path.read_text(encoding="utf-8")) for path in (KEPT, INTERPRETED)]
    sys.stdout.write(readme_table(*both) + "\n")
