"""A worker's own copies of the sessions that it resolved: enough to serve them again, and none of their tokens.

The records that applications see do have the token; the last ones that were made are kept.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf

from pydantic import SecretStr

from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.session import Session, is_over, utc
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.base import SessionRow
from fastapi_otpless_session.tokens import Claims

REMEMBERED = 10_000
MADE_REMEMBERED = 200
GENERATIONS_REMEMBERED = 100
SEEN_SECONDS = 60.0


@dataclass(slots=True)
class Copy:
    """What a store had for a digest. Only when it was read, and is to be read again, changes."""

    row: SessionRow
    claims: Claims
    first_duty: float
    """By the store's clock: until then there is nothing to do about the session but to serve it. 0: read it first."""
    made: Lru[str, tuple[SessionRow, Session]]
    """The sessions that were last made of copies and a token each, with the rows that they were made of."""
    at: float
    """When it was read, by the worker's monotonic clock."""
    offset: float
    """What the store's clock was ahead of that: threads that read while it is written are wrong by a drift at most."""

    def read_again(self, now: float, at: float) -> None:
        """Note that the store's row is the same at `at` by the worker's monotonic clock, `now` by the store's."""
        self.at, self.offset = at, now - at

    def doubt(self) -> None:
        """Have the store's row read before this is believed again; an outage of the store is bridged with it."""
        self.first_duty = 0.0

    def is_quiet(self, now: float) -> bool:
        """Whether there is nothing to do yet; a clock that was set back is before the validation."""
        return self.row.validated_at <= now < self.first_duty

    def session(self, token: str) -> Session:
        """Return what the application sees of the session: a record that never changes, and so is made once.

        To make it for each request would take 4 µs, a twentieth of a bare route.
        """
        row, session = self.made.get(token) or (None, None)
        if session is None or row is not self.row:
            session = session_of(self.row, self.claims, token, self.row.validated_at)
            self.made.put(token, (self.row, session))
        return session


def session_of(  # noqa: PLR0917 - all that a session is made of
    row: SessionRow, claims: Claims, token: str, validated_at: float, refreshed: bool = False, stale: bool = False
) -> Session:
    """Return what the application sees of a session."""
    return Session(
        id=row.session_id,
        user_id=row.user_id,
        name=claims.name,
        email=claims.email,
        issued_at=utc(claims.issued_at or row.rotated_at),
        expires_at=utc(row.token_expires_at),
        validated_at=utc(validated_at),
        refreshed=refreshed,
        stale=stale,
        claims=claims.others,
        token=SecretStr(token),
    )


class Copies(Lru[bytes, Copy]):
    """The copies by digest, at most `REMEMBERED`."""

    def __init__(self, duties: Duties) -> None:
        super().__init__(REMEMBERED)
        self._duties = duties
        self._made: Lru[str, tuple[SessionRow, Session]] = Lru(MADE_REMEMBERED)

    def keep(self, digest: bytes, row: SessionRow, claims: Claims, now: float, at: float) -> None:
        """Keep an active row, whose current token has this digest and these claims."""
        self.put(digest, self.of(row, claims, now, at))

    def of(self, row: SessionRow, claims: Claims, now: float, at: float) -> Copy:
        """Return a copy of a row that was read at `at` by the worker's monotonic clock, `now` by the store's."""
        is_set_back = now < row.validated_at
        first_duty = 0.0 if is_set_back else self._duties.first(row, claims)
        return Copy(_light(row, claims), claims, first_duty, self._made, at, now - at)


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
        limit = row.token_expires_at if self._absolute is None else row.created_at + self._absolute
        return min(
            row.validated_at + self._validation_ttl,
            row.token_expires_at - self._last_part(row, claims),
            self.to_be_noted_at(row),
            limit,
        )

    def _last_part(self, row: SessionRow, claims: Claims) -> float:
        life = 0.0 if claims.issued_at is None else row.token_expires_at - claims.issued_at
        return max(0.0, life) * self._ahead


def _light(row: SessionRow, claims: Claims) -> SessionRow:
    """Return a row without what serving does not need; texts that its token says too are kept once."""
    return SessionRow(
        session_id=claims.session_id or row.session_id,
        user_id=claims.user_id or row.user_id,
        generation=row.generation,
        confirmations=_seen_to_have(row.generation) if row.is_confirmed else row.confirmations,
        rotated_at=0.0 if claims.issued_at else row.rotated_at,
        token_expires_at=row.token_expires_at,
        validated_at=row.validated_at,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        expires_at=row.expires_at,
    )


@lru_cache(GENERATIONS_REMEMBERED)  # thousands of copies share one
def _seen_to_have(generation: int) -> tuple[tuple[int, float], ...]:
    return ((generation, 0.0),)


def _chance(text: str) -> float:
    """Return a number from 0 to 1 that is the same for the same text in every worker: it spreads load."""
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest()) / 2**32
