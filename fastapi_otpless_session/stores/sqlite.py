"""The SQLite store: one file for all workers of a machine, or the same in memory. Standard library only.

Write-ahead log, so that readers never wait for the writer. Sign-ins, refreshes and sign-outs wait for the disk, so that
they survive a power cut; what requests write about a session need not. A point read takes about 20 µs and runs on the
event loop; where the file is busy it is tried again in the writer's thread. Writes run in that one thread, in immediate
transactions; those that wait for it share a commit. In memory there is no second connection and nothing to wait for, so
that everything runs on the loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Lock
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
from fastapi_otpless_session.stores.sqlite_link import TRANSLATED, Connections

_ALL = ", ".join(COLUMNS)
_MARKS = ", ".join("?" * len(COLUMNS))

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

T = TypeVar("T")


class SqliteStore:
    """Sessions in a SQLite file, or in memory where `path` is None. Implements `SessionStore`."""

    def __init__(self, path: str | None, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._connections: Connections | None = None
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

        connections = self._connections or await self._opened()
        return await (self._note(take) if connections.is_disk_proven() else self._write(take))

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
        with TRANSLATED:
            return rows_of(await (await self._opened()).read_all(query, (user_id, now, LONGEST_LIST)))

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take ended rows whose telling is due."""
        with TRANSLATED:
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
        with self._opening, TRANSLATED:
            if self._connections is None:
                self._connections = Connections(self._path)
                self._finalizer = weakref.finalize(self, self._connections.close)

    async def _opened(self) -> Connections:
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
        with TRANSLATED:
            return await connections.write(transaction, durable=True)

    async def _note(self, transaction: Callable[[sqlite3.Connection], T]) -> T:
        """Return what a transaction does, once all workers see it: a sixth of the time.

        For what a power cut may undo: what was confirmed is confirmed again by the next request, and whoever held a
        lease was a worker of this machine; that its answer was lost is then not told (`Lease.follows_lost_answer`).
        Taking a lease is among it only where the disk was just seen to take what is written: else it is to prove that
        it will take what OTPLESS says.
        """
        connections = self._connections or await self._opened()
        with TRANSLATED:
            return await connections.write(transaction, durable=False)


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
