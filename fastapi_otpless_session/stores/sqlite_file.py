"""The file that SQLite keeps sessions in: made, locked while it is, and checked to be ours."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from fastapi_otpless_session.errors import StoreError

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


def create(path: Path) -> None:
    """Create file and tables under a lock: workers that race to switch to the write-ahead log fail otherwise."""
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} does not exist; create it, or change OTPLESS_STORE_URL")
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        if fcntl is not None:
            _lock(lock, path)
        _create_file(path)
        with _named(path), closing(connected(str(path), BUSY_SECONDS)) as db:
            _refuse_others(db, path)
            db.execute("PRAGMA journal_mode = WAL")
            prepare(db)
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


def prepare(db: sqlite3.Connection) -> None:
    if _version(db) < SCHEMA_VERSION:
        db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from all others, whatever its name, or None where there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def connected(path: str, busy: float) -> sqlite3.Connection:
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
