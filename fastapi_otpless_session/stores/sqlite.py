"""The SQLite store: one file for all workers of a machine, or the same in memory. Standard library only.

Write-ahead log, so that readers never wait for the writer. Sign-ins, refreshes and sign-outs wait for the disk, so that
they survive a power cut; what requests write about a session need not. A point read takes about 20 µs and runs on the
event loop; where the file is busy it is tried again in the writer's thread. Writes run in that one thread, in immediate
transactions; those that wait for it share a commit. In memory there is no second connection and nothing to wait for, so
that everything runs on the loop.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.stores.base import (
    LEASES_AHEAD,
    LONGEST_LIST,
    MOST_COUNTED,
    REFRESH_TOKEN,
    EndReason,
    Found,
    Lease,
    Rotation,
    SessionRow,
    State,
)
from fastapi_otpless_session.stores.records import (
    COLUMNS,
    confirmations_text,
    ended,
    record_of,
    row_of,
    rows_of,
)
from fastapi_otpless_session.stores.sqlite_writer import Writer, transact
from fastapi_otpless_session.telemetry import logger

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows: SQLite's own locks and the busy timeout have to do
    fcntl = None  # type: ignore[assignment]

SCHEMA_VERSION = 1
BUSY_SECONDS = 5.0
LOCK_SECONDS = 30.0
"""How long to wait for others that open the file; one may have a long log to recover."""
LOCK_PAUSE = 0.02
UNREADABLE = {sqlite3.SQLITE_NOTADB: "no SQLite database", sqlite3.SQLITE_CORRUPT: "a damaged SQLite database"}
UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
OTHER_FILE = "Name another file in OTPLESS_STORE_URL"
_PRIMARY = 0xFF
"""What of an error's number says its kind; the rest says more."""

_HAS_EFFECTIVE_IDS = os.access in os.supports_effective_ids
"""Whether the system tells what the process may, rather than who started it."""

_ALL = ", ".join(COLUMNS)
_MARKS = ", ".join("?" * len(COLUMNS))

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    state TEXT NOT NULL,
    end_reason TEXT,
    generation INTEGER NOT NULL,
    confirmations TEXT NOT NULL,
    rotated_at REAL NOT NULL,
    session_token BLOB NOT NULL,
    token_expires_at REAL NOT NULL,
    refresh_token BLOB NOT NULL,
    lease_owner TEXT,
    lease_until REAL NOT NULL,
    fence INTEGER NOT NULL,
    validated_at REAL NOT NULL,
    created_at REAL NOT NULL,
    last_seen_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    summary TEXT NOT NULL,
    revocation_due REAL,
    revocation_attempts INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS tokens (
    digest BLOB PRIMARY KEY,
    session_id TEXT NOT NULL,
    generation INTEGER NOT NULL,
    expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_user ON sessions (user_id) WHERE state = 'active';
CREATE INDEX IF NOT EXISTS sessions_due ON sessions (revocation_due) WHERE revocation_due IS NOT NULL;
CREATE INDEX IF NOT EXISTS sessions_expiry ON sessions (expires_at);
CREATE INDEX IF NOT EXISTS tokens_expiry ON tokens (expires_at);
"""

UPSERT = f"""
ON CONFLICT (session_id) DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in COLUMNS[1:])}
"""

FIND = f"""
SELECT {", ".join("s." + column for column in COLUMNS)}, t.generation
FROM tokens t JOIN sessions s ON s.session_id = t.session_id WHERE t.digest = ?
"""  # noqa: S608 - column names of our own

COMMIT = f"""
UPDATE sessions SET session_token = ?, token_expires_at = ?, refresh_token = ?, expires_at = ?,
    generation = generation + 1, rotated_at = ?, validated_at = ?, last_seen_at = ?, lease_owner = NULL, lease_until = 0
WHERE session_id = ? AND fence = ? AND lease_owner = ? AND state = 'active' RETURNING {_ALL}
"""  # noqa: S608 - column names of our own

CONFIRM = "UPDATE sessions SET confirmations = ? WHERE session_id = ?"

UNCHANGED = """
SELECT 1 FROM sessions WHERE session_id = ? AND generation = ? AND state = 'active'
AND validated_at = ? AND last_seen_at = ? AND token_expires_at = ?
"""

UNKNOWN = """
SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM tokens WHERE digest = ?)
AND NOT EXISTS (SELECT 1 FROM sessions WHERE session_id = ? AND state = 'ended')
"""

EXPIRED_DIGESTS = """
SELECT t.digest, t.generation, s.expires_at,
    CASE WHEN typeof(s.confirmations) = 'text' AND json_valid(s.confirmations)
    THEN json_extract(s.confirmations, '$[0][0]') END
FROM tokens t LEFT JOIN sessions s ON s.session_id = t.session_id
WHERE t.expires_at <= ? ORDER BY t.expires_at LIMIT ?
"""

_FORKED = (
    "the SQLite file was open when this process was forked, and must not be used here: close the store before the "
    "fork, or open it after"
)

T = TypeVar("T")


class SqliteStore:
    """Sessions in a SQLite file, or in memory where `path` is None. Implements `SessionStore`."""

    def __init__(self, path: str | None, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._connections: _Connections | None = None
        self._finalizer: weakref.finalize[[], SqliteStore] | None = None
        self._opening = Lock()

    @property
    def path(self) -> str | None:
        """The file, as it was given; None where it is memory."""
        return self._path

    async def open(self) -> None:
        """Create or check the file. Raises `StoreError` where it cannot be used."""
        if self._connections is not None:
            return
        if self._path is None:
            self._connect()
        else:
            await asyncio.to_thread(self._connect)

    async def close(self) -> None:
        """Close the file; what `memory://` held is gone."""
        self._connections = None
        if self._finalizer is not None:
            await asyncio.to_thread(self._finalizer)

    async def now(self) -> float:
        """Return the host's time."""
        return self._clock()

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest: one indexed read."""
        record = await self._read(FIND, (digest,))
        row = None if record is None else row_of(record)
        if row is None or not isinstance(record[-1], int) or not REFRESH_TOKEN <= record[-1] <= row.generation:
            return None  # an entry that its row does not back
        return Found(row, record[-1], self._clock())

    def unchanged_at(self, digest: bytes, row: SessionRow) -> float | None:  # noqa: ARG002 - for stores that need it
        """Return the time if a row is as it was: a fifth of what `find` costs, for there is nothing to read.

        The index is not asked again: that a digest is that of a session's generation is true for ever.
        """
        values = (row.session_id, row.generation, row.validated_at, row.last_seen_at, row.token_expires_at)
        return self._clock() if self._glimpse(UNCHANGED, values) == (1,) else None

    def unknown_at(self, digest: bytes, session_id: str) -> float | None:
        """Return the time if neither the token is known nor its session has ended."""
        return self._clock() if self._glimpse(UNKNOWN, (digest, session_id)) == (1,) else None

    async def get(self, session_id: str) -> SessionRow | None:
        """Return a session's row."""
        record = await self._read(f"SELECT {_ALL} FROM sessions WHERE session_id = ?", (session_id,))  # noqa: S608
        return None if record is None else row_of(record)

    async def create(self, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> SessionRow | None:
        """Insert a first row with its digests, or return the one that was there."""

        def insert(db: sqlite3.Connection) -> SessionRow | None:
            there = _get(db, row.session_id)
            if there is not None:
                return there
            _insert(db, row)
            _index(db, row, token_digest, refresh_digest)
            return None

        return await self._write(insert)

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        """Take the lease of an active row of this generation that nobody holds."""

        def take(db: sqlite3.Connection) -> Lease | None:
            row, now = _get(db, session_id), self._clock()
            if row is None or row.state is not State.ACTIVE or row.generation != generation:
                return None
            if row.lease_until > now:
                if row.lease_until > now + LEASES_AHEAD * seconds:
                    db.execute("UPDATE sessions SET lease_until = ? WHERE session_id = ?", (now + seconds, session_id))
                return None
            lease = Lease(session_id, owner, row.fence + 1, now + seconds, row.lease_owner is not None)
            db.execute(
                "UPDATE sessions SET lease_owner = ?, lease_until = ?, fence = ? WHERE session_id = ?",
                (owner, lease.until, lease.fence, session_id),
            )
            return lease

        return await self._write(take)

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease | None:
        """Hold a lease for longer."""

        def renew(db: sqlite3.Connection) -> Lease | None:
            until = self._clock() + seconds
            held = db.execute(
                "UPDATE sessions SET lease_until = ? "
                "WHERE session_id = ? AND fence = ? AND lease_owner = ? AND state = 'active'",
                (until, lease.session_id, lease.fence, lease.owner),
            )
            return replace(lease, until=until) if held.rowcount else None

        return await self._note(renew)

    async def release_lease(self, lease: Lease, *, answer_lost: bool) -> None:
        """Give a lease back; an owner that stays on a free lease tells the next one of a lost answer."""
        owner = lease.owner if answer_lost or lease.follows_lost_answer else None

        def release(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE sessions SET lease_owner = ?, lease_until = 0 "
                "WHERE session_id = ? AND fence = ? AND lease_owner = ?",
                (owner, lease.session_id, lease.fence, lease.owner),
            )

        await self._write(release)

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        """Make the rotation the next generation, if the fence is still the lease's."""

        def rotate(db: sqlite3.Connection) -> SessionRow | None:
            new = (rotation.session_token, rotation.token_expires_at, rotation.refresh_token, rotation.expires_at)
            held = (lease.session_id, lease.fence, lease.owner)
            now = self._clock()
            records = db.execute(COMMIT, (*new, now, min(now, rotation.answered_at), now, *held)).fetchall()
            if not records:  # refused; unless an earlier try of this commit got through
                row = _get(db, lease.session_id)
                is_ours = row is not None and row.state is State.ACTIVE and row.fence == lease.fence
                return row if is_ours and _is_indexed(db, rotation.token_digest) else None
            row = row_of(records[0])
            if row is not None:
                _index(db, row, rotation.token_digest, rotation.refresh_digest)
            return row

        return await self._write(rotate)

    async def confirm(self, row: SessionRow, grace: float) -> None:
        """Note that the client has the row's generation."""

        def note(db: sqlite3.Connection) -> None:
            current = _get(db, row.session_id)
            if current is not None and current.generation == row.generation > current.confirmed_generation:
                confirmations = confirmations_text(current.confirmed(self._clock(), grace))
                db.execute(CONFIRM, (confirmations, row.session_id))

        await self._note(note)

    async def touch(self, session_id: str, generation: int, *, validated: bool) -> None:
        """Note that the session was seen now, and is valid."""

        def note(db: sqlite3.Connection) -> None:
            now = self._clock()
            db.execute(
                "UPDATE sessions SET last_seen_at = ?, "
                "validated_at = CASE WHEN ? AND generation = ? THEN ? ELSE validated_at END "
                "WHERE session_id = ? AND state = 'active'",
                (now, validated, generation, now, session_id),
            )

        await self._note(note)

    async def end(
        self, row: SessionRow, reason: EndReason, *, revoke_in: float | None, fence: int | None = None
    ) -> SessionRow:
        """End a session; see `SessionStore.end`."""

        def end(db: sqlite3.Connection) -> SessionRow:
            there = _get(db, row.session_id)
            due = None if revoke_in is None else self._clock() + revoke_in
            current = there or row
            if current.state is State.ENDED or fence not in {None, current.fence}:
                return current
            over = ended(current, reason, due)
            _replace(db, over)  # an unreadable row too
            return over

        return await self._write(end)

    async def list_user(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's active rows, the newest first, up to a thousand."""
        query = (
            f"SELECT {_ALL} FROM sessions WHERE user_id = ? AND state = 'active' AND expires_at > ? "  # noqa: S608
            "ORDER BY created_at DESC, session_id LIMIT ?"
        )
        now = self._clock()
        with _TRANSLATED:
            return rows_of(await (await self._opened()).read_all(query, (user_id, now, LONGEST_LIST)))

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take ended rows whose telling is due."""
        with _TRANSLATED:
            (await self._opened()).check_place()  # here, too, where nobody writes: housekeeping tells the log
        if await self._read("SELECT 1 FROM sessions WHERE revocation_due <= ?", (self._clock(),)) is None:
            return ()  # the usual case costs no write

        def claim(db: sqlite3.Connection) -> list[SessionRow]:
            now = self._clock()
            records = db.execute(
                f"UPDATE sessions SET revocation_due = ? WHERE session_id IN (SELECT session_id FROM sessions "  # noqa: S608
                f"WHERE revocation_due <= ? ORDER BY revocation_due LIMIT ?) RETURNING {_ALL}",
                (now + hold, now, limit),
            ).fetchall()
            return rows_of(records)

        return await self._write(claim)

    async def waiting_revocations(self) -> int:
        """Return how long the outbox is."""
        query = "SELECT count(*) FROM (SELECT 1 FROM sessions WHERE revocation_due IS NOT NULL LIMIT ?)"
        [waiting] = await self._read(query, (MOST_COUNTED,))
        return int(waiting)

    async def postpone_revocation(self, row: SessionRow, seconds: float) -> None:
        """Make a telling due again in `seconds`."""
        await self._write(
            lambda db: db.execute(
                "UPDATE sessions SET revocation_due = ?, revocation_attempts = revocation_attempts + 1 "
                "WHERE session_id = ? AND session_token = ? AND revocation_due IS NOT NULL",
                (self._clock() + seconds, row.session_id, row.session_token),
            )
        )

    async def replace_revocation(
        self,
        session_id: str,
        session_token: bytes,
        refresh_token: bytes,
        *,
        due_in: float = 0.0,
        keep_until: float = 0.0,
    ) -> None:
        """Make an ended row's telling due, with other tokens."""
        await self._write(
            lambda db: db.execute(
                "UPDATE sessions SET session_token = ?, refresh_token = ?, revocation_due = ?, "
                "expires_at = max(expires_at, ?) WHERE session_id = ? AND state = 'ended'",
                (session_token, refresh_token, self._clock() + due_in, keep_until, session_id),
            )
        )

    async def settle_revocation(self, row: SessionRow) -> None:
        """Note that OTPLESS knows."""
        await self._write(
            lambda db: db.execute(
                "UPDATE sessions SET revocation_due = NULL WHERE session_id = ? AND session_token = ?",
                (row.session_id, row.session_token),
            )
        )

    async def purge(self, limit: int) -> int:
        """Delete what expired, in one small transaction."""

        def delete(db: sqlite3.Connection) -> int:
            now = self._clock()
            expired = db.execute(EXPIRED_DIGESTS, (now, limit)).fetchall()
            for digest, generation, lives_until, oldest in expired:
                its_session_is_over = _number(lives_until) <= now
                if generation == REFRESH_TOKEN or its_session_is_over or _number(generation) < _number(oldest):
                    db.execute("DELETE FROM tokens WHERE digest = ?", (digest,))
                else:  # it still counts: look again when its session expires
                    db.execute("UPDATE tokens SET expires_at = ? WHERE digest = ?", (lives_until, digest))
            rows = db.execute(
                "DELETE FROM sessions WHERE session_id IN "
                "(SELECT session_id FROM sessions WHERE expires_at <= ? LIMIT ?)",
                (now, limit),
            )
            return len(expired) + rows.rowcount

        return await self._write(delete)

    def _connect(self) -> None:
        with self._opening, _TRANSLATED:
            if self._connections is None:
                self._connections = _Connections(self._path)
                self._finalizer = weakref.finalize(self, self._connections.close)

    async def _opened(self) -> _Connections:
        await self.open()
        if self._connections is None:
            raise StoreError("the session store was closed")
        return self._connections

    def _glimpse(self, query: str, values: tuple[Any, ...]) -> Any:
        """Return what can be read without waiting, if anything; for the rest, `find` and `get` will tell."""
        if self._connections is None:
            return None
        try:
            return self._connections.read(query, values)
        except (StoreError, sqlite3.Error, UnicodeError, OverflowError):
            return None

    async def _read(self, query: str, values: tuple[Any, ...]) -> Any:
        connections = self._connections or await self._opened()
        try:
            return connections.read(query, values)
        except sqlite3.OperationalError:  # busy, or broken: the writer's thread can wait, and will tell
            return await self._note(lambda db: db.execute(query, values).fetchone())
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise StoreError(f"SQLite: {error}") from None

    async def _write(self, transaction: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a transaction does, once a power cut cannot undo it."""
        connections = self._connections or await self._opened()
        with _TRANSLATED:
            return await connections.write(transaction, durable=True)

    async def _note(self, transaction: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a transaction does, once all workers see it: a sixth of the time.

        For what a power cut may undo: what was confirmed is confirmed again by the next request, and whoever held a
        lease was a worker of this machine. Taking a lease is not among it: that proves that the disk takes what OTPLESS
        will say.
        """
        connections = self._connections or await self._opened()
        with _TRANSLATED:
            return await connections.write(transaction, durable=False)


class _Connections:
    """A reader for the loop and a writer in its own thread; in memory one connection for both."""

    def __init__(self, path: str | None) -> None:
        self._lock = Lock()
        self._path: Path | None = None
        self.file: tuple[int, int] | None = None
        if path is None:
            self._writer: Writer | None = None
            self._reader = _connect(":memory:", 0)
            _prepare(self._reader)
            return
        full = Path(path).absolute()
        if not Path(path).is_absolute():
            logger.info("Sessions are kept in %s", full)
        _refuse_inherited(full)
        _create(full)
        with ExitStack() as failing:
            self._path, self.file = full, _identity(full)
            _open.add(self)
            failing.callback(_open.discard, self)
            self._reader = _connect(str(full), BUSY_SECONDS)
            failing.callback(self._reader.close)
            self._reader.execute("PRAGMA schema_version").fetchone()  # opens what others may hold for a moment
            self._reader.execute("PRAGMA busy_timeout = 0")  # from now on the loop waits for it
            self._reader.text_factory = str  # what is no UTF-8 fails, and is read by the writer then
            self._writer = Writer(_connect(str(full), BUSY_SECONDS))
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

    async def write(self, transaction: Callable[[sqlite3.Connection], T], *, durable: bool) -> T:
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
        if self._path is not None and _identity(self._path) != self.file:
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


_open: set[_Connections] = set()
"""What this process has opened, files only."""
_inherited: set[_Connections] = set()
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
    file = _identity(path)
    if file is not None and any(each.file == file for each in _inherited):
        raise StoreError(_FORKED)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, whatever its name, or None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _connect(path: str, busy: float) -> sqlite3.Connection:
    with ExitStack() as failing:
        db = sqlite3.connect(path, timeout=busy, isolation_level=None, check_same_thread=False)
        failing.callback(db.close)
        db.text_factory = _decoded
        db.execute("PRAGMA synchronous = FULL")
        failing.pop_all()
    return db


def _decoded(data: bytes) -> str | bytes:
    """Read text. What is not UTF-8 stays bytes: a damaged row is then passed over instead of failing a whole query."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


class _Translated:
    """Turns what SQLite and the file system raise into `StoreError`, here and nowhere else."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, sqlite3.Error | OSError | UnicodeError | OverflowError):
            raise StoreError(f"SQLite: {error}") from None


_TRANSLATED = _Translated()


def _create(path: Path) -> None:
    """Create file and tables under a lock: workers that race to switch to the write-ahead log fail otherwise."""
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist; create it, or change OTPLESS_STORE_URL")
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if fcntl is not None:
            _lock(lock, path)
        _create_file(path)
        with _named(path), closing(_connect(str(path), BUSY_SECONDS)) as db:
            _refuse_others(db, path)
            db.execute("PRAGMA journal_mode = WAL")
            _prepare(db)
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    """Wait for the lock, but not for ever: who has it may be stopped, or have left it to a forked child."""
    gives_up_at = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > gives_up_at:
                raise StoreError(
                    f"another process has held {path}.lock for {LOCK_SECONDS:g} s: a worker that hangs while it "
                    "starts, or a child that one forked then; end it"
                ) from None
            time.sleep(LOCK_PAUSE)
        else:
            return


def _create_file(path: Path) -> None:
    """Create the file, or see that it can be written, without opening one that is there.

    Whoever closes it drops all locks that the process has on it, those of another store too; a process that comes and
    goes would then take the write-ahead log away from under that.
    """
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    elif not (path.is_file() and os.access(path, os.R_OK | os.W_OK, effective_ids=_HAS_EFFECTIVE_IDS)):
        remedy = None if path.is_file() else "Name a file in OTPLESS_STORE_URL."
        raise StoreError(f"{path} is no file that this user may read and write", remedy=remedy)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise `StoreError` for what SQLite cannot read: its own error names no file."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        kind = getattr(error, "sqlite_errorcode", 0) & _PRIMARY
        what = UNREADABLE.get(kind)
        if kind in UNWRITABLE:
            raise StoreError(
                f"{path} cannot be opened or written ({error})",
                remedy=f"This user must be able to write {path}, what lies beside it (-wal, -shm) and {path.parent}.",
            ) from None
        if what is None:
            raise
        raise StoreError(
            f"{path} is {what}: give the sessions a file of their own in OTPLESS_STORE_URL",
            remedy=f"{OTHER_FILE}, or move this one away: a new one is made at the next start, with nobody signed in.",
        ) from None


def _refuse_others(db: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreError` for what is not ours to write to, before anything of it is changed.

    Other programs number their tables, too. One that does not, and has no tables of our names, may share its file.
    """
    version, sessions, tokens = _version(db), _columns(db, "sessions"), _columns(db, "tokens")
    if "session_id" not in sessions or "digest" not in tokens:
        if version or sessions or tokens:
            raise StoreError(
                f"{path} is another program's database: give the sessions a file of their own in OTPLESS_STORE_URL",
                remedy=f"{OTHER_FILE}.",
            )
    elif version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema {version}, made by a newer version of this package; upgrade it",
            remedy='pip install --upgrade "fastapi-otpless-session", or name another file in OTPLESS_STORE_URL.',
        )


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}


def _prepare(db: sqlite3.Connection) -> None:
    if _version(db) < SCHEMA_VERSION:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _number(value: Any) -> float:
    """Return what should be a number; 0 where there is none, or a damaged row has something else in its place."""
    return value if isinstance(value, int | float) else 0


def _get(db: sqlite3.Connection, session_id: str) -> SessionRow | None:
    query = f"SELECT {_ALL} FROM sessions WHERE session_id = ?"  # noqa: S608
    record = db.execute(query, (session_id,)).fetchone()
    return None if record is None else row_of(record)


def _insert(db: sqlite3.Connection, row: SessionRow) -> None:
    db.execute(f"INSERT INTO sessions ({_ALL}) VALUES ({_MARKS})", tuple(record_of(row).values()))  # noqa: S608


def _replace(db: sqlite3.Connection, row: SessionRow) -> None:
    db.execute(f"INSERT INTO sessions ({_ALL}) VALUES ({_MARKS}) {UPSERT}", tuple(record_of(row).values()))  # noqa: S608


def _index(db: sqlite3.Connection, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> None:
    """Have a row found by its newest tokens."""
    its_token = (token_digest, row.session_id, row.generation, row.expires_at)
    its_refresh_token = (refresh_digest, row.session_id, REFRESH_TOKEN, row.expires_at)
    db.execute("REPLACE INTO tokens VALUES (?, ?, ?, ?), (?, ?, ?, ?)", (*its_token, *its_refresh_token))


def _is_indexed(db: sqlite3.Connection, digest: bytes) -> bool:
    return db.execute("SELECT 1 FROM tokens WHERE digest = ?", (digest,)).fetchone() is not None
