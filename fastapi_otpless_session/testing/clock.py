"""The time that application, store and emulator share in a test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """The host's time plus what a test let pass, in seconds since the epoch."""

    def __init__(self) -> None:
        self._ahead = self._hurried = 0.0
        self._pinned: float | None = None

    def __call__(self) -> float:
        return time.time() + self._ahead if self._pinned is None else self._pinned

    def monotonic(self) -> float:
        """Seconds since any moment; they pass as the clock's do, and never go back."""
        return time.monotonic() + self._ahead

    def hurried(self) -> float:
        """As `monotonic`, and what was hurried over."""
        return self.monotonic() + self._hurried

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._ahead += seconds

    def hurry(self, seconds: float) -> None:
        """Let time pass for what waits for a moment: it has waited, and no token has aged."""
        self._hurried += seconds

    @contextmanager
    def at(self, moment: float) -> Iterator[None]:
        """Stand still at a moment: something happened then."""
        self._pinned = moment
        try:
            yield
        finally:
            self._pinned = None
