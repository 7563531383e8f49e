"""A circuit breaker: while OTPLESS fails, fail at once instead of queueing on it.

Of the libraries that were looked at (circuitbreaker, pybreaker, aiobreaker, purgatory), none opens both on failures in
a row and on a rate, honours `Retry-After`, and probes with a single call a second; these rules are one page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 10.0
WINDOW_CALLS = 20
PROBE_SECONDS = 1.0
LONGEST_PAUSE = 10.0


class Breaker:
    """Opens on 5 failures in a row, or on half of at least 20 calls in 10 s; then lets a probe through each second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._row = 0
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._next_probe: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether calls are being held back."""
        return self._next_probe is not None

    def admit(self) -> bool:
        """Whether a call may be made now. While open, one call each second may: the probe."""
        if self._next_probe is None:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_SECONDS
        return True

    def succeeded(self) -> None:
        """Take note of a call that OTPLESS answered sensibly."""
        if self._next_probe is not None:
            self._outcomes.clear()
        self._row = 0
        self._next_probe = None
        self._remember(ok=True)

    def failed(self, retry_after: float | None = None) -> None:
        """Take note of a failed call, and of how many seconds OTPLESS asked to be left alone."""
        self._row += 1
        self._remember(ok=False)
        if retry_after:
            self._hold_back(min(retry_after, LONGEST_PAUSE))
        elif self._row >= FAILURES_IN_A_ROW or self._half_failed():
            self._hold_back(PROBE_SECONDS)

    def _remember(self, *, ok: bool) -> None:
        now = self._clock()
        self._outcomes.append((now, ok))
        while self._outcomes and self._outcomes[0][0] < now - WINDOW_SECONDS:
            self._outcomes.popleft()

    def _half_failed(self) -> bool:
        failures = sum(not ok for _, ok in self._outcomes)
        return len(self._outcomes) >= WINDOW_CALLS and failures * 2 >= len(self._outcomes)

    def _hold_back(self, seconds: float) -> None:
        self._next_probe = max(self._next_probe or 0.0, self._clock() + seconds)
