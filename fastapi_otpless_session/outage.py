"""The store's outages, as this worker saw them: what could not be committed meanwhile goes first afterwards.

A worker whose new pair cannot be committed keeps its lease alive, as long as the store takes that. So a lease that
lapsed before an outage was left behind by a worker that crashed, and is taken at once. One that lapsed in an outage, or
soon after it, may be that of a worker which has the new pair and is about to commit it: whoever took it would ask
OTPLESS with a refresh token that is used up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, Final, TypeVar

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.stores.base import PATIENCE

RESERVE_SECONDS = PATIENCE + 3
"""For how long: a try to commit that hangs as the outage ends, the pause after it, and the next."""
SHORTEST = 1.0
"""What ends earlier keeps nobody from holding a lease; nor does a call that takes less."""
LONGEST = 60.0
"""How much of the past counts where a store comes back and goes again, before anybody's reserve is over. Not all of it:
the sessions of a worker that crashed would wait for as long as that goes on."""
REMEMBERED = 8

T = TypeVar("T")


class _Seen:
    """What calls of one kind say: they worked, or they failed, or were held up for long."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._worked_at = -inf
        self._has_failed = False
        """Since then."""
        self._over: deque[tuple[float, float]] = deque(maxlen=REMEMBERED)
        """The outages that are over: from when the store was last seen to work to when it was again."""

    def failed(self) -> None:
        self._has_failed = True

    def worked(self, began_at: float) -> None:
        now, before = self._monotonic(), self._worked_at
        if (self._has_failed or now - began_at >= SHORTEST) and now - before >= SHORTEST:
            if self._over and before - self._over[-1][1] < RESERVE_SECONDS:  # nobody had the time to commit
                before = min(before, max(self._over[-1][0], now - LONGEST))
            self._over.append((before, now))
        self._has_failed, self._worked_at = False, now

    def spares(self, lapsed_at: float) -> bool:
        now, over = self._monotonic(), tuple(self._over)  # other threads' event loops note what they see
        return any(began_at <= lapsed_at and now - ended_at < RESERVE_SECONDS for began_at, ended_at in over)


class Outages:
    """What a worker knows of the store's outages, by its `monotonic` clock.

    Writes are by themselves: a file that is locked, or a disk that is full, can be read.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.reads: Final = _Seen(monotonic)
        self.reads.failed()  # before this worker: who is restarted in an outage starts after it
        self.writes: Final = _Seen(monotonic)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note of whether the store fails in what is done meanwhile, which may take long for other reasons."""
        try:
            yield
        except StoreError:
            self.reads.failed()
            self.writes.failed()
            raise
        self.reads.worked(self._monotonic())

    def spare(self, lapsed_at: float) -> bool:
        """Whether a lease that lapsed then is to be left to its holder a while longer."""
        return self.reads.spares(lapsed_at) or self.writes.spares(lapsed_at)

    async def read(self, call: Coroutine[Any, Any, T]) -> T:
        """Read from the store, and take note of how that goes. Raises what the call raises."""
        return await self._seen(self.reads, call)

    async def write(self, call: Coroutine[Any, Any, T]) -> T:
        """Write to the store, likewise."""
        return await self._seen(self.writes, call)

    async def _seen(self, kind: _Seen, call: Coroutine[Any, Any, T]) -> T:
        began_at = self._monotonic()
        try:
            result = await call
        except StoreError:
            kind.failed()
            raise
        kind.worked(began_at)
        return result
