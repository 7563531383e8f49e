"""A circuit breaker: while OTPLESS fails, fail at once instead of queueing on it.

It opens both on failures in a row and on a rate, honours `Retry-After`, probes with one call a second so that recovery
is seen within two, and ignores news from before it opened or OTPLESS recovered. No library with a release in recent
years does all of this:

- purgatory 3.0 (asyncio, typed) counts failures in a row only, and lets everybody through at once when it probes;
  its pause is fixed for a circuit, so that a `Retry-After` cannot lengthen it;
- pybreaker 1.4 (typed) is asynchronous for Tornado only, counts in a row, and takes its pause from the wall clock;
- circuitbreaker 2.1 and aiobreaker 1.2 (no release since 2021) are untyped, count in a row, and know neither a clock of
  ours nor `Retry-After`;
- tenacity and stamina retry, which is what must not be done here: a refresh is sent once.

All of them wrap a call from the outside and judge it by its exception. Here the breaker is one step inside a deadline
that also covers the wait for a place and the connection (`calls.py`), and a call that was admitted may turn out to say
nothing about OTPLESS's health. That is what this module is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from threading import Lock

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 10
WINDOW_CALLS = 20
PROBE_SECONDS = 1.0
LONGEST_PAUSE = 10.0


class Breakers:
    """A worker's two breakers: one for calls of sessions that were signed in here, one for strangers'.

    What a stranger brings may be the very thing that OTPLESS fails on, and whoever brings it again and again must not
    keep everybody else from OTPLESS. So the first knows nothing of strangers' failures; the second knows all.

    Safe to use from several threads, as event loops have them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._known, self._strangers = Breaker(clock, self._lock), Breaker(clock, self._lock)

    @property
    def is_open(self) -> bool:
        """Whether calls are held back, but for the probes."""
        return self._known.is_open or self._strangers.is_open

    def of(self, *, known: bool) -> Breaker:
        """Return the breaker that a call has to ask."""
        return self._known if known else self._strangers

    def succeeded(self, began_at: float) -> None:
        """Take note of a call that OTPLESS answered sensibly; see `Breaker.succeeded`."""
        with self._lock:
            now = self._clock()
            self._known.succeeded(began_at, now)
            self._strangers.succeeded(began_at, now)

    def failed(self, began_at: float, retry_after: float | None = None, *, known: bool) -> None:
        """Take note of a failed call; see `Breaker.failed`. OTPLESS asks all of us to wait, whoever hears it."""
        with self._lock:
            now = self._clock()
            self._strangers.failed(began_at, now, retry_after)
            if known or retry_after:
                self._known.failed(began_at, now, retry_after)


@dataclass(slots=True)
class _Second:
    """How many calls ended in a second of the clock's: thousands take no more memory, or time, than one."""

    number: int
    calls: int = 0
    failures: int = 0


class Breaker:
    """Opens on 5 failures in a row, or on half of at least 20 calls in 10 s; then lets a probe through each second.

    What is noted is noted with the `lock` held.
    """

    def __init__(self, clock: Callable[[], float], lock: Lock) -> None:
        self._clock = clock
        self._lock = lock
        self._row = 0
        self._window: deque[_Second] = deque()
        self._next_probe: float | None = None
        self._opened_at = -inf
        self._recovered_at = -inf

    @property
    def is_open(self) -> bool:
        """Whether calls are held back, but for the probes."""
        return self._next_probe is not None

    def refuses(self) -> bool:
        """Whether a call would be turned away now; asking does not use up the probe."""
        next_probe = self._next_probe
        return next_probe is not None and self._clock() < next_probe

    def admit(self) -> bool:
        """Whether a call may be made now. While open, one call each second may: the probe."""
        if self._next_probe is None:  # as a rule
            return True
        with self._lock:
            if self.refuses():
                return False
            if self._next_probe is not None:
                self._next_probe = self._clock() + PROBE_SECONDS
            return True

    def succeeded(self, began_at: float, now: float) -> None:
        """Take note of a call that OTPLESS answered sensibly.

        One that began before this opened is old news: others are under way when OTPLESS asks to be left alone.
        """
        if self._next_probe is not None:
            if began_at < self._opened_at:
                return
            self._window.clear()
            self._recovered_at = now
            self._next_probe = None
        self._row = 0
        self._remember(now, ok=True)

    def failed(self, began_at: float, now: float, retry_after: float | None = None) -> None:
        """Take note of a failed call, and of how many seconds OTPLESS asked to be left alone.

        One that began before OTPLESS recovered is old news: calls that hung in an outage end seconds after it.
        """
        if began_at < self._recovered_at:
            return
        self._row += 1
        self._remember(now, ok=False)
        if retry_after:
            self._hold_back(now, min(retry_after, LONGEST_PAUSE))
        elif self._row >= FAILURES_IN_A_ROW or self._half_failed():
            self._hold_back(now, PROBE_SECONDS)

    def _remember(self, now: float, *, ok: bool) -> None:
        window, number = self._window, int(now)
        if not window or window[-1].number != number:
            window.append(_Second(number))
            while window[0].number <= number - WINDOW_SECONDS:
                window.popleft()
        last = window[-1]
        last.calls += 1
        last.failures += not ok

    def _half_failed(self) -> bool:
        calls = sum(second.calls for second in self._window)
        return calls >= WINDOW_CALLS and 2 * sum(second.failures for second in self._window) >= calls

    def _hold_back(self, now: float, seconds: float) -> None:
        if self._next_probe is None or seconds > PROBE_SECONDS:  # a probe that fails makes no other's answer old
            self._opened_at = now
        self._next_probe = max(self._next_probe or 0.0, now + seconds)
