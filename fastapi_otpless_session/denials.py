"""What OTPLESS said no to, by session and generation: bounded, and forgotten with the worker."""

from __future__ import annotations

from fastapi_otpless_session.lru import Lru
from fastapi_otpless_session.stores.base import SessionRow

REMEMBERED = 10_000


class Denials:
    """The newest generation of each session that OTPLESS said no to. One that is signed in again counts from one."""

    def __init__(self) -> None:
        self._newest: Lru[str, tuple[float, int]] = Lru(REMEMBERED)
        """By session: when its row was created, and the generation."""

    def note(self, row: SessionRow) -> None:
        """Remember it of a row's generation. A late answer about an older one changes nothing."""
        if self.covers(row):
            return
        self._newest.put(row.session_id, (row.created_at, row.generation))

    def forget(self, row: SessionRow) -> None:
        """Forget it of a row's generation, and of a later one."""
        if self.covers(row):
            self._newest.drop(row.session_id)

    def covers(self, row: SessionRow) -> bool:
        """Whether it was said of a row's generation, or of a later one."""
        created_at, generation = self._newest.get(row.session_id) or (0.0, 0)
        return created_at == row.created_at and generation >= row.generation
