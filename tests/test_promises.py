"""The table in `tests/README.md` names tests that exist, and names one for each promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

FOLDER = Path(__file__).parent
README = (FOLDER / "README.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(test_\w+\.py)::([\w:]+)`")


def defined(file: Path) -> set[str]:
    """Name a file's tests, those in classes as `Class::test`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            inner = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            found |= {node.name, *(f"{node.name}::{one.name}" for one in inner)}
    return found


def test_every_test_that_the_table_names_exists() -> None:
    named: dict[str, set[str]] = {}
    for file, test in NAMED.findall(README):
        named.setdefault(file, set()).add(test)
    missing = {
        file: sorted(tests - defined(FOLDER / file)) if (FOLDER / file).is_file() else sorted(tests)
        for file, tests in named.items()
    }
    assert {file: tests for file, tests in missing.items() if tests} == {}
    assert named


def test_every_row_of_the_table_names_a_test() -> None:
    rows = [
        line for line in README.splitlines() if line.startswith("| ") and not line.startswith(("| promise", "| ---"))
    ]
    assert rows
    assert [row for row in rows if not NAMED.search(row)] == []
