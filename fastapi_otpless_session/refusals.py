"""What OTPLESS refused, by session and generation: bounded, and forgotten with the worker."""

from __future__ import annotations

from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.stores.base import SessionRow

REMEMBERED = 10_000


class Refusals:
    """The newest generation of each session that OTPLESS refused. One that is signed in again counts from one."""

    def __init__(self) -> None:
        self._newest: Lru[str, tuple[float, int]] = Lru(REMEMBERED)
        """By session: when its row was created, and the generation."""

    def note(self, row: SessionRow) -> None:
        """Remember that a row's generation was refused. A late answer about an older one changes nothing."""
        if self.covers(row):
            return
        self._newest.put(row.session_id, (row.created_at, row.generation))

    def forget(self, row: SessionRow) -> None:
        """Forget that it was, or that a later one was."""
        if self.covers(row):
            self._newest.drop(row.session_id)

    def covers(self, row: SessionRow) -> bool:
        """Whether a row's generation was refused, or a later one."""
        created_at, generation = self._newest.get(row.session_id) or (0.0, 0)
        return created_at == row.created_at and generation >= row.generation
