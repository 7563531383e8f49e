"""The way to SQLite: connections, the thread that writes, forks, and one place where errors turn."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.stores.sqlite_file import BUSY_SECONDS, connected, create, identity, prepare
from fastapi_otpless_session.stores.sqlite_writer import Writer, transact
from fastapi_otpless_session.telemetry import logger

_FORKED = (
    "the SQLite file was open when this process was forked, and must not be used here: close the store before the "
    "fork, or open it after"
)

T = TypeVar("T")


class Connections:
    """A reader for the loop and a writer in its own thread; in memory one connection for both."""

    def __init__(self, path: str | None) -> None:
        self._lock = Lock()
        self._path: Path | None = None
        self.file: tuple[int, int] | None = None
        if path is None:
            self._writer: Writer | None = None
            self._reader = connected(":memory:", 0)
            prepare(self._reader)
            return
        full = Path(path).absolute()
        if not Path(path).is_absolute():
            logger.info("Sessions are kept in %s", full)
        _refuse_inherited(full)
        create(full)
        with ExitStack() as failing:
            self._path, self.file = full, identity(full)
            _open.add(self)
            failing.callback(_open.discard, self)
            self._reader = connected(str(full), BUSY_SECONDS)
            failing.callback(self._reader.close)
            self._reader.execute("PRAGMA schema_version").fetchone()  # opens what others may hold for a moment
            self._reader.execute("PRAGMA busy_timeout = 0")  # from now on the loop waits for it
            self._reader.text_factory = str  # what is no UTF-8 fails, and is read by the writer then
            self._writer = Writer(connected(str(full), BUSY_SECONDS))
            failing.pop_all()

    def read(self, query: str, values: tuple[Any, ...]) -> Any:
        if self in _inherited:
            raise StoreError(_FORKED)
        with self._lock:
            return self._reader.execute(query, values).fetchone()

    async def read_all(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        """Read what may be many rows, off the loop."""
        self._refuse_if_inherited()
        if self._writer is None:
            with self._lock:
                return self._reader.execute(query, values).fetchall()
        return await self._writer.read(lambda db: db.execute(query, values).fetchall())

    def is_disk_proven(self) -> bool:
        """Whether the disk was just seen to take what was written; memory always does."""
        return self._writer is None or self._writer.is_disk_proven()

    async def write(self, transaction: Callable[[sqlite3.Connection], T], *, durable: bool) -> T:
        """Return what a transaction does, once all can see it; `durable`: and once it is on the disk."""
        self._refuse_if_inherited()
        if self._writer is None:
            with self._lock:
                return transact(self._reader, transaction)

        def in_place(db: sqlite3.Connection) -> T:
            self.check_place()
            return transaction(db)

        return await self._writer.transact(in_place, durable=durable)

    def check_place(self) -> None:
        """Raise `StoreError` where the file's name leads to another one, or to none: no one else would see a write."""
        if self._path is not None and identity(self._path) != self.file:
            raise StoreError(f"{self._path} was deleted, moved or replaced while it was open: restart all workers")

    def close(self) -> None:
        if self in _inherited:
            return
        if self._writer is not None:
            self._writer.close()
        with self._lock:  # another thread's event loop may be reading
            self._reader.close()
        _open.discard(self)

    def _refuse_if_inherited(self) -> None:
        if self in _inherited:
            raise StoreError(_FORKED)


_open: set[Connections] = set()
"""What this process has opened, files only."""
_inherited: set[Connections] = set()
"""What was open when this process was forked.

SQLite's table of the locks that it has is copied, the locks are not: the child would believe that its log is guarded,
and go on writing into it when others have deleted it. That holds for all connections to such a file, new ones too. To
close one is as wrong; that they are kept here keeps them from being collected, which closes them.
"""


def _disown() -> None:
    """Note in a forked child what it must not use."""
    _inherited.update(_open)
    _open.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_disown)


def _refuse_inherited(path: Path) -> None:
    file = identity(path)
    if file is not None and any(each.file == file for each in _inherited):
        raise StoreError(_FORKED)


class _Translated:
    """Turns what SQLite and the file system raise into `StoreError`, here and nowhere else."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error | OSError | UnicodeError | OverflowError):
            raise StoreError(f"SQLite: {error}") from None


TRANSLATED = _Translated()
