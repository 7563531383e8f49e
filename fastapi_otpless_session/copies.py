"""A worker's own copies of the sessions that it resolved: enough to serve them again, and none of their tokens.

The records that applications see do have the token; the last ones that were made are kept.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from pydantic import SecretStr

from fastapi_otpless_session.duties import Duties
from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.session import Session, utc
from fastapi_otpless_session.stores.base import SessionRow
from fastapi_otpless_session.tokens import Claims

REMEMBERED = 10_000
MADE_REMEMBERED = 200
GENERATIONS_REMEMBERED = 100
SHARED_SECONDS = 0.05


class Copy:
    """A store's row for a digest, as it was read. Only `at`, `offset`, `first_duty` and `is_shared` change.

    A plain class: compiled, it is made in a sixth of the time that a dataclass takes.
    """

    __slots__ = ("at", "claims", "first_duty", "is_shared", "made", "offset", "row")

    def __init__(
        self,
        row: SessionRow,
        claims: Claims,
        *,
        first_duty: float,
        made: Lru[str, tuple[SessionRow, Session]],
        at: float,
        offset: float,
    ) -> None:
        self.row: Final[SessionRow] = row
        self.claims: Final[Claims] = claims
        self.first_duty: float = first_duty
        """By the store's clock: until then there is nothing to do about the session but to serve it. 0: read it
        first."""
        self.made: Final[Lru[str, tuple[SessionRow, Session]]] = made
        """The sessions that were last made of copies and a token each, with the rows that they were made of."""
        self.at: float = at
        """When it was read, by the worker's monotonic clock."""
        self.offset: float = offset
        """What the store's clock was ahead of that: threads that read while it is written are wrong by a drift at
        most."""
        self.is_shared: bool = False
        """Whether that was in the current turn of the event loop that read it."""

    def read_again(self, now: float, at: float) -> None:
        """Note that the store's row is the same at `at` by the worker's monotonic clock, `now` by the store's."""
        self.at, self.offset = at, now - at

    def share_reading(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have it count as just read until the loop's current turn is over.

        All who wait for one refresh go on in the same turn, and to look for each of 500 takes a tenth of what they do.
        """
        self.is_shared = True
        loop.call_soon(self._end_sharing)

    def _end_sharing(self) -> None:
        self.is_shared = False

    def is_just_read(self, at: float) -> bool:
        """Whether it was read in this turn, `at` being now. A turn may be long, or be another loop's, or never end."""
        return self.is_shared and at - self.at < SHARED_SECONDS

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
            session = new_session(self.row, self.claims, token, self.row.validated_at)
            self.made.put(token, (self.row, session))
        return session


def new_session(  # noqa: PLR0917 - all that a session is made of
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
        light = _light(row, claims)
        return Copy(light, claims, first_duty=first_duty, made=self._made, at=at, offset=now - at)


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
