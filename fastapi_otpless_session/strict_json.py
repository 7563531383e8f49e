"""JSON as everybody reads it alike (RFC 7493): UTF-8, no name twice, no NaN, no number out of range."""

from __future__ import annotations

import json
import math
from typing import Any


def parse(body: bytes) -> Any:
    """Read a JSON text. Raises `ValueError`, and `RecursionError` for what nests too deep."""
    return _DECODER.decode(body.decode())


def writable(value: Any) -> Any:
    """Replace halves of characters, which JSON can carry and UTF-8 cannot. Raises `RecursionError`, likewise.

    Not to be compiled: what recurses there fills the stack instead.
    """
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case list():
            return [writable(item) for item in value]
        case dict():
            return {writable(name): writable(item) for name, item in value.items()}
        case _:
            return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        raise ValueError("a name occurs twice")
    return read


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
"""Made once: `json.loads` would make one for each text."""
