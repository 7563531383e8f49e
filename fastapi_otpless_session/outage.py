"""When this worker last saw the store fail: what waited for the store meanwhile goes first once it is back."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

RESERVE_SECONDS = 5.0
"""Several tries of a commit that was put off (`refresh.LONGEST_COMMIT_PAUSE`), and well within `REFRESH_TIMEOUT`."""


class Outage:
    """What a worker knows of the store's outages, by its `monotonic` clock."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen_at = -inf

    def note(self) -> None:
        """Note that the store fails now."""
        self._seen_at = self._monotonic()

    def is_recent(self) -> bool:
        """Whether the store failed a moment ago, so that others may be about to write what they could not."""
        return self._monotonic() - self._seen_at < RESERVE_SECONDS
