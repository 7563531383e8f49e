"""When something is to be done about a session: by its row, our own limits, and who was seen in an outage."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.session import is_over
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.base import SessionRow, SessionStore
from fastapi_otpless_session.tokens import Claims

REMEMBERED = 10_000
SEEN_SECONDS = 60.0


class Duties:
    """When something is to be done about a session that is served: by the store's clock, from its row."""

    def __init__(self, settings: OtplessSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._unwritten: Lru[str, float] = Lru(REMEMBERED)
        self._validation_ttl = settings.validation_ttl
        self._ahead = settings.refresh_ahead
        self._idle = settings.idle_timeout
        self._absolute = settings.absolute_timeout
        self._seen_seconds = min(SEEN_SECONDS, self._idle / 10 if self._idle else SEEN_SECONDS)

    @property
    def has_limits(self) -> bool:
        """Whether there are limits of our own."""
        return self._idle is not None or self._absolute is not None

    def is_to_end(self, row: SessionRow, now: float) -> bool:
        """Whether our own limits, on top of OTPLESS's, are up."""
        if not is_over(self.ends_at(row), now):
            return False
        unwritten = self._unwritten.get(row.session_id)
        if unwritten is None:
            return True
        seen_at = max(row.last_seen_at, now - (self._monotonic() - unwritten))
        return is_over(self.ends_at(replace(row, last_seen_at=seen_at)), now)

    def note_unwritten(self, session_id: str) -> None:
        """Note that somebody is here now, where an outage keeps that from being written: they are not idle."""
        self._unwritten.put(session_id, self._monotonic())

    def ends_at(self, row: SessionRow) -> float:
        """Return when our own limits are up."""
        idle = inf if self._idle is None else row.last_seen_at + self._idle
        return idle if self._absolute is None else min(idle, row.created_at + self._absolute)

    def is_to_be_noted(self, row: SessionRow, now: float) -> bool:
        """Whether `last_seen_at` is to be written."""
        return now >= self.to_be_noted_at(row)

    def to_be_noted_at(self, row: SessionRow) -> float:
        """Return when it is to be written: once a minute, or in a tenth of `IDLE_TIMEOUT` if that is less."""
        return row.last_seen_at + self._seen_seconds

    def is_to_be_refreshed_ahead(self, row: SessionRow, claims: Claims, now: float) -> bool:
        """Whether it is the last part of a token's life, from a point in its first half that differs by session."""
        left, part = row.token_expires_at - now, self._last_part(row, claims)
        return left <= part and left <= part * (1 - _chance(f"{row.session_id} {row.generation}") / 2)

    def first(self, row: SessionRow, claims: Claims) -> float:
        """Return when there is first something to do, or may be."""
        if not row.is_confirmed:
            return 0.0
        limit = inf if self._absolute is None else row.created_at + self._absolute
        return min(
            row.validated_at + self._validation_ttl,
            row.token_expires_at - self._last_part(row, claims),
            self.to_be_noted_at(row),
            limit,
        )

    def _last_part(self, row: SessionRow, claims: Claims) -> float:
        life = 0.0 if claims.issued_at is None else row.token_expires_at - claims.issued_at
        return max(0.0, life) * self._ahead


async def touch(store: SessionStore, duties: Duties, row: SessionRow, *, validated: bool) -> None:
    """Have it written that a session was seen, and that OTPLESS called it valid; a fault ends nobody."""
    try:
        await store.touch(row.session_id, row.generation, validated=validated)
    except StoreError as error:
        duties.note_unwritten(row.session_id)
        telemetry.logger.warning("Not noted: %s", error)


def _chance(text: str) -> float:
    """Return a number from 0 to 1 that is the same for the same text in every worker: it spreads load."""
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest()) / 2**32
