"""The clock of a store's server, so that a call can say until when it is to be done.

A server that stands still, or a network that holds back what it was given, may get to a call long after its caller has
given up. Whatever is then taken is taken by nobody.
"""

from __future__ import annotations

import time

from fastapi_otpless_session.stores.base import PATIENCE

WHENEVER = 1e12
"""A time that never comes, in seconds since the epoch: as long as the server has not told its own."""


class ServerClock:
    """What a server's clock shows, as far as its answers told: it is never taken for later than it is."""

    def __init__(self) -> None:
        self._ahead: float | None = None

    def told(self, now: float) -> None:
        """Note what an answer that came just now says."""
        self._ahead = now - time.monotonic()

    def in_time_for(self, lease_seconds: float) -> float:
        """Return until when a lease is to be taken, in seconds since the epoch.

        Its taker has given up by then; or has so little left of it that another's may have lapsed meanwhile.
        """
        seconds = min(PATIENCE, lease_seconds / 2)
        return WHENEVER if self._ahead is None else time.monotonic() + self._ahead + seconds
