"""OTPLESS's signing keys, kept: fetched once, hourly, and for an unknown `kid`, but every ten seconds at most."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.flights import Flights, finished
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.tokens import KeySet

PAUSE_SECONDS = 10.0
AGE_SECONDS = 3600.0


class KeyCache:
    """The last key set that could be had. An outage leaves the known keys working."""

    def __init__(self, fetch: Callable[[], Awaitable[KeySet]], monotonic: Callable[[], float]) -> None:
        self._fetch = fetch
        self._monotonic = monotonic
        self._keys = KeySet({})
        self._asked_at = -AGE_SECONDS
        self._failed = False
        self._flights: PerLoop[Flights[None]] = PerLoop(Flights, Flights.drain)

    def at_once(self, kid: str) -> KeySet | None:
        """Return the keys with `kid` among them, where they need not be fetched; None: `get`."""
        return self._keys if kid in self._keys and not self._wants_fetch(kid) else None

    async def get(self, kid: str, *, now: bool = False) -> KeySet:
        """Return the keys to look for `kid` in. Raises `UpstreamError` where they are out of reach.

        And `NoVerdictError` where closing cuts a fetch off.

        `now`: an unknown key is an `UpstreamError`, too, where OTPLESS may not be asked for it yet.
        """
        flights = self._flights.there() or await self._flights.get()
        fetch = flights.under_way("keys")
        if self._wants_fetch(kid):
            await finished(fetch := flights.start("keys", self._fetch_once))
        elif kid not in self._keys and fetch is not None:
            await finished(fetch)
        if kid not in self._keys and (self._failed or (now and fetch is None)):
            raise UpstreamError("OTPLESS's keys are out of reach", unsent=True)
        return self._keys

    async def close(self) -> None:
        """Stop a fetch that is still under way on the running event loop."""
        await self._flights.close()

    def _wants_fetch(self, kid: str) -> bool:
        age = self._monotonic() - self._asked_at
        return age >= AGE_SECONDS or (kid not in self._keys and age >= PAUSE_SECONDS)

    async def _fetch_once(self) -> None:
        self._asked_at, self._failed = self._monotonic(), True  # until proven otherwise
        with suppress(UpstreamError):
            self._keys = await self._fetch()
            self._failed = False
