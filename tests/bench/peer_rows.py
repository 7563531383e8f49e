"""The peers' rows: measured in their own environment by `peers/run.py`, × the bare route there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rows import BARE, Result

PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"
RUN = Path(__file__).parent / "peers" / "run.py"
WITHOUT = "Peers are measured by `make bench-peers`, which installs them into an environment of their own."


def measured(rounds: int, only: str, *, cpu: bool = False) -> tuple[list[Result], dict[str, str]]:
    """Return the peers' rows and versions; none where their environment is not there."""
    if not PYTHON.exists():
        return [], {}
    command = [str(PYTHON), str(RUN), "--rounds", str(rounds), "--only", only, *(["--cpu"] if cpu else [])]
    said = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603 - our own script
    content: dict[str, Any] = json.loads(said.stdout)
    return [_result(row) for row in content["rows"]], content["packages"]


def _result(row: dict[str, Any]) -> Result:
    spread = row.pop("spread")
    return Result(**row, spread=tuple(spread) if spread else None, against=BARE)
