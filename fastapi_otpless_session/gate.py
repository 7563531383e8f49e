"""How many calls to OTPLESS a worker makes at once, with room kept for the sessions that it knows.

Two of the standard library's semaphores. The libraries that were looked at limit something else: aiolimiter 1.3 and
pyrate-limiter 4.5 limit calls *a second*, which bounds nothing once OTPLESS slows down, and neither lets one kind of
caller wait while there is room for the other. anyio's `CapacityLimiter` would do for one of the two, and belongs to one
event loop as they do. The wait ends by the one deadline that the call itself has to keep, which none of them shares.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.loops import PerLoop

SHARE_OF_STRANGERS = 0.5
SHARE_OF_WAITING = 0.8
"""How much of its deadline a call may wait for its place. One that is sent in the last moment is answered too late, and
a refresh whose answer is lost may cost its session."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A place, free or held: one in each gate that leads to it."""

    gates: tuple[asyncio.Semaphore, ...]

    def is_free(self) -> bool:
        """Whether it can be taken without waiting."""
        for gate in self.gates:  # noqa: SIM110 - a generator would take longer than the rest
            if gate.locked():
                return False
        return True

    def leave(self) -> None:
        """Give the place back."""
        for gate in self.gates:
            gate.release()


@dataclass(frozen=True, slots=True)
class _Places:
    """The places on one event loop, by who may take them."""

    known: Pass
    strangers: Pass


class Gate:
    """`limit` calls at once; those for tokens that nobody here knows get half of that at most.

    So a flood of made-up tokens cannot starve the people who are signed in.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._places: PerLoop[_Places] = PerLoop(self._new_places)

    async def enter(self, *, known: bool, deadline: float) -> Pass:
        """Take a place. Raises `UpstreamError` where none gets free early enough in `deadline` seconds."""
        places = self._places.there() or await self._places.get()
        place = places.known if known else places.strangers
        if place.is_free():  # as a rule; then nobody waits, and a deadline would cost a timer
            for gate in place.gates:
                await gate.acquire()
            return place
        try:
            async with asyncio.timeout(deadline * SHARE_OF_WAITING):
                return await _wait(place)
        except TimeoutError:
            telemetry.upstream_rejections.add(1, telemetry.labels(reason="full"))
            raise UpstreamError("too many calls to OTPLESS are under way", unsent=True) from None

    def _new_places(self) -> _Places:
        everybody = asyncio.Semaphore(self._limit)
        strangers = asyncio.Semaphore(max(1, int(self._limit * SHARE_OF_STRANGERS)))
        return _Places(Pass((everybody,)), Pass((strangers, everybody)))


async def _wait(place: Pass) -> Pass:
    held: tuple[asyncio.Semaphore, ...] = ()
    try:
        for gate in place.gates:
            await gate.acquire()
            held = (*held, gate)
    except BaseException:
        Pass(held).leave()
        raise
    return place
