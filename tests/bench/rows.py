"""A row of the table: what is measured, what it may cost, and what came out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import apps
from measure import Figures, Slice

BARE = "the bare route"
"""It gets the same request, credential included."""
TIMES = "×"

Open = Callable[[Path], AbstractAsyncContextManager[Slice]]
"""Opens what is measured, in an empty folder of its own."""


class NotHereError(Exception):
    """What a row needs is not installed, or not built. The message says what."""


@asynccontextmanager
async def bare(_: Path) -> AsyncIterator[Slice]:
    yield apps.repeated(apps.bare())


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out for a row. `value` is None where it could not be measured; `note` then says why."""

    key: str
    name: str
    goal: float | None = None
    value: float | None = None
    unit: str = TIMES
    against: str = ""
    note: str = ""
    spread: tuple[float, float] | None = None
    """The quartiles of the value."""
    microseconds: float | None = None
    baseline_microseconds: float | None = None

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.value is not None and self.value > self.goal


@dataclass(frozen=True)
class Row:
    """A candidate beside a baseline: a ratio comes out."""

    key: str
    name: str
    goal: float | None
    open: Open
    note: str = ""
    beside: Open = bare
    against: str = BARE

    def result(self, figures: Figures) -> Result:
        return replace(
            self.unmeasured(self.note),
            value=figures.ratio,
            spread=figures.spread,
            microseconds=figures.seconds * 1e6,
            baseline_microseconds=figures.baseline_seconds * 1e6,
        )

    def unmeasured(self, why: str) -> Result:
        return Result(key=self.key, name=self.name, goal=self.goal, against=self.against, note=why)


@dataclass(frozen=True)
class Count:
    """Something that is measured in its own way: bytes, calls, percents; the `Path` is an empty folder."""

    key: str
    name: str
    goal: float | None
    unit: str
    measure: Callable[[Path, int], Awaitable[float]]
    """Takes how many rounds to go, too."""
    note: str = ""
    against: str = ""

    def result(self, value: float) -> Result:
        return replace(self.unmeasured(self.note), value=value)

    def unmeasured(self, why: str) -> Result:
        return Result(key=self.key, name=self.name, goal=self.goal, unit=self.unit, against=self.against, note=why)
