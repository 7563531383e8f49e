"""Whether a Mermaid diagram of ours will be drawn: its lines are of a known form, and name what was declared.

Mermaid itself needs a browser's DOM to parse most diagrams. This knows the two kinds that our pages use, and takes any
other, and any line that it does not know, for a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

DECLARATION = re.compile(r"(?:participant|actor) (\w+)(?: as .+)?")
MESSAGE = re.compile(r"(\w+)(?:-->>|->>|--x|-x|--\)|-\))[+-]?(\w+): .+")
ABOVE = re.compile(r"Note (?:over|left of|right of) (\w+)(?:,(\w+))?: .+")
OPENS = re.compile(r"(?:loop|alt|opt|par|critical|break|rect) .+")
GOES_ON = re.compile(r"(?:else|and|option)(?: .+)?")
STATE = re.compile(r'state "[^"]+" as (\w+)|(\w+) : .+')
TRANSITION = re.compile(r"(\[\*\]|\w+) --> (\[\*\]|\w+)(?: : .+)?")
REMARK = re.compile(r"note (?:left|right) of (\w+)")


def faults(text: str) -> list[str]:
    """Return what is wrong with a diagram."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("%%")]
    match lines:
        case ["sequenceDiagram", *rest]:
            return list(_sequence(rest))
        case ["stateDiagram-v2", *rest]:
            return list(_states(rest))
        case _:
            return [f"a kind that is not checked: {lines[:1]}"]


def _sequence(lines: Iterable[str]) -> Iterator[str]:
    declared: set[str] = set()
    depth = 0
    for line in lines:
        if ";" in line or "#" in line:
            yield f"Mermaid ends a line at ; and reads # as a code: {line}"
        if line == "end":
            depth -= 1
        elif OPENS.fullmatch(line):
            depth += 1
        elif found := DECLARATION.fullmatch(line):
            declared.add(found[1])
        elif found := MESSAGE.fullmatch(line) or ABOVE.fullmatch(line):
            yield from (f"{name} was not declared: {line}" for name in found.groups() if name and name not in declared)
        elif not (line == "autonumber" or (depth and GOES_ON.fullmatch(line))):
            yield f"not understood: {line}"
        if depth < 0:
            yield f"an end too many: {line}"
    if depth > 0:
        yield "an end is missing"


def _states(lines: Iterable[str]) -> Iterator[str]:
    known: set[str] = set()
    named: set[str] = set()
    in_remark = False
    for line in lines:
        if in_remark:
            in_remark = line != "end note"
        elif found := REMARK.fullmatch(line):
            named.add(found[1])
            in_remark = True
        elif found := TRANSITION.fullmatch(line):
            named |= {name for name in found.groups() if name != "[*]"}
        elif found := STATE.fullmatch(line):
            known.add(found[1] or found[2])
        elif not re.fullmatch(r"direction (?:LR|TB)", line):
            yield f"not understood: {line}"
    if in_remark:
        yield "a note without an end"
    yield from (f"{name} was not described" for name in sorted(named - known))
