"""The PostgreSQL store, for version 12 and later: SQLAlchemy Core over asyncpg.

Each transition is one conditional statement, committed by itself, that also writes the index: one way to the server and
back. It is right under READ COMMITTED, where an UPDATE that had to wait for a row looks at it again; where a role has a
stricter isolation as its default, what the server refuses for that reason is done again, as a deadlock's victim is.
Times are the server's `clock_timestamp()`.

PgBouncer works in session mode, and in transaction mode from 1.21 on with `max_prepared_statements` above 0; for others
end the URL in `?prepared_statement_cache_size=0`, which costs about half as much again for a read.
"""
# ruff: noqa: S608 - statements are made of names of our own; values are parameters

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Executable, column, text

from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.loops import PerLoop
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
from fastapi_otpless_session.stores.server_clock import ServerClock
from fastapi_otpless_session.stores.sql_link import Address, Record, SqlLink
from fastapi_otpless_session.stores.sql_schema import LOCKS

# The statements. A subquery for the time is evaluated once, and can be looked up in an index.

_SERVERS_TIME = "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"
_NOW = f"({_SERVERS_TIME} + CAST(:offset AS double precision))"
_ROW = ", ".join(f"s.{column}" for column in COLUMNS)
_NAMES = ", ".join(COLUMNS)
_VALUES = ", ".join(f":{column}" for column in COLUMNS)
_INDEX = """
INSERT INTO otpless_tokens (digest, session_id, generation, expires_at)
SELECT pair.digest, written.session_id, pair.generation, written.expires_at FROM written CROSS JOIN LATERAL
    (VALUES (CAST(:token_digest AS bytea), written.generation), (CAST(:refresh_digest AS bytea), 0))
    AS pair (digest, generation)
ON CONFLICT (digest) DO UPDATE
SET session_id = excluded.session_id, generation = excluded.generation, expires_at = excluded.expires_at
"""

NOW = text(f"SELECT {_NOW} AS now")
FIND = text(f"""
SELECT {_ROW}, t.generation AS token_generation, {_NOW} AS now
FROM otpless_tokens t JOIN otpless_sessions s ON s.session_id = t.session_id WHERE t.digest = :digest
""").columns(*map(column, (*COLUMNS, "token_generation", "now")))  # told, it is not worked out for each result: 0.9 ×
GET = text(f"""
SELECT {_ROW}, {_NOW} AS now FROM otpless_sessions s WHERE s.session_id = :session_id
""").columns(*map(column, (*COLUMNS, "now")))
CREATE = text(f"""
WITH written AS (
    INSERT INTO otpless_sessions ({_NAMES}) VALUES ({_VALUES}) ON CONFLICT (session_id) DO NOTHING
    RETURNING session_id, generation, expires_at
), indexed AS ({_INDEX})
SELECT session_id FROM written
""")
TAKE_LEASE = text(f"""
WITH from_before_the_clock_was_set_back AS (
    UPDATE otpless_sessions SET lease_until = {_NOW} + :seconds
    WHERE session_id = :session_id AND state = 'active' AND lease_until > {_NOW} + {LEASES_AHEAD} * :seconds
)
UPDATE otpless_sessions
SET lease_owner = :owner, lease_until = {_NOW} + :seconds, fence = fence + 1,
    lease_follows_lost_answer = lease_owner IS NOT NULL
WHERE session_id = :session_id AND generation = :generation AND state = 'active' AND lease_until <= {_NOW}
    AND {_SERVERS_TIME} <= CAST(:not_after AS double precision)
RETURNING fence, lease_until, lease_follows_lost_answer
""")
RENEW_LEASE = text(f"""
UPDATE otpless_sessions SET lease_until = {_NOW} + :seconds
WHERE session_id = :session_id AND fence = :fence AND lease_owner = :owner AND state = 'active'
RETURNING lease_until
""")
RELEASE_LEASE = text("""
UPDATE otpless_sessions SET lease_owner = :left_owner, lease_until = 0
WHERE session_id = :session_id AND fence = :fence AND lease_owner = :owner
""")
COMMIT = text(f"""
WITH clock AS (SELECT {_NOW} AS now), written AS (
    UPDATE otpless_sessions s
    SET generation = s.generation + 1, rotated_at = clock.now, session_token = :session_token,
        token_expires_at = :token_expires_at, refresh_token = :refresh_token, expires_at = :expires_at,
        lease_owner = NULL, lease_until = 0, last_seen_at = clock.now,
        validated_at = least(clock.now, CAST(:answered_at AS double precision))
    FROM clock
    WHERE s.session_id = :session_id AND s.fence = :fence AND s.lease_owner = :owner AND s.state = 'active'
    RETURNING {_ROW}
), indexed AS ({_INDEX})
SELECT * FROM written
""")
COMMITTED_BEFORE = text(f"""
SELECT {_ROW} FROM otpless_tokens t JOIN otpless_sessions s ON s.session_id = t.session_id
WHERE t.digest = :token_digest AND s.session_id = :session_id AND s.fence = :fence AND s.state = 'active'
""")
CONFIRM = text("""
UPDATE otpless_sessions SET confirmations = :confirmations
WHERE session_id = :session_id AND generation = :generation AND confirmations = :as_read
""")
TOUCH = text(f"""
UPDATE otpless_sessions s
SET last_seen_at = clock.now,
    validated_at = CASE WHEN :validated AND generation = :generation THEN clock.now ELSE validated_at END
FROM (SELECT {_NOW} AS now) AS clock WHERE s.session_id = :session_id AND s.state = 'active'
""")
_DUE = f"{_NOW} + CAST(:revoke_in AS double precision)"
_END = f"""
SET state = 'ended', end_reason = :end_reason, fence = s.fence + 1, lease_owner = NULL, lease_until = 0,
    revocation_due = {_DUE}
"""
_MAY_END = "s.state = 'active' AND (CAST(:only_fence AS bigint) IS NULL OR s.fence = :only_fence)"
_ENDED_VALUES = _VALUES.replace(":revocation_due", _DUE)
END = text(f"UPDATE otpless_sessions s {_END} WHERE s.session_id = :session_id AND {_MAY_END} RETURNING {_ROW}")
END_OR_INSERT = text(f"""
INSERT INTO otpless_sessions AS s ({_NAMES}) VALUES ({_ENDED_VALUES})
ON CONFLICT (session_id) DO UPDATE {_END} WHERE {_MAY_END} RETURNING {_ROW}
""")
REPLACE_UNREADABLE = text(f"""
UPDATE otpless_sessions s SET ({_NAMES}) = ROW ({_ENDED_VALUES})
WHERE s.session_id = :session_id AND s.state = :state_read AND s.confirmations = :confirmations_read RETURNING {_ROW}
""")
LIST_USER = text(f"""
SELECT {_ROW} FROM otpless_sessions s WHERE s.user_id = :user_id AND s.state = 'active' AND s.expires_at > {_NOW}
ORDER BY s.created_at DESC, s.session_id LIMIT :limit
""")
WAITING_REVOCATIONS = text(f"""
SELECT count(*) FROM (SELECT 1 FROM otpless_sessions WHERE revocation_due IS NOT NULL LIMIT {MOST_COUNTED}) AS waiting
""")
CLAIM_REVOCATIONS = text(f"""
UPDATE otpless_sessions s SET revocation_due = {_NOW} + :hold
WHERE session_id = ANY (ARRAY (
    SELECT session_id FROM otpless_sessions WHERE revocation_due <= (SELECT {_NOW})
    ORDER BY revocation_due LIMIT :limit FOR UPDATE SKIP LOCKED
))
RETURNING {_ROW}
""")
POSTPONE_REVOCATION = text(f"""
UPDATE otpless_sessions SET revocation_due = {_NOW} + :seconds, revocation_attempts = revocation_attempts + 1
WHERE session_id = :session_id AND session_token = :session_token AND revocation_due IS NOT NULL
""")
REPLACE_REVOCATION = text(f"""
UPDATE otpless_sessions SET session_token = :session_token, refresh_token = :refresh_token,
    revocation_due = {_NOW} + :due_in,
    expires_at = greatest(expires_at, CAST(:keep_until AS double precision))
WHERE session_id = :session_id AND state = 'ended'
""")
SETTLE_REVOCATION = text("""
UPDATE otpless_sessions SET revocation_due = NULL
WHERE session_id = :session_id AND session_token = :session_token AND revocation_due IS NOT NULL
""")
PURGE = text(rf"""
WITH clock AS MATERIALIZED (SELECT {_NOW} AS now, pg_try_advisory_xact_lock({LOCKS}, 2) AS is_ours),
expired AS MATERIALIZED (
    SELECT t.digest, t.generation = {REFRESH_TOKEN} OR coalesce(s.expires_at, 0) <= (SELECT now FROM clock)
        OR t.generation < CAST(substring(s.confirmations FROM '^\[\[(\d{{1,18}}),') AS bigint) AS goes
    FROM otpless_tokens t LEFT JOIN otpless_sessions s ON s.session_id = t.session_id
    WHERE (SELECT is_ours FROM clock) AND t.expires_at <= (SELECT now FROM clock)
    ORDER BY t.expires_at LIMIT :limit FOR UPDATE OF t SKIP LOCKED
), kept AS (
    UPDATE otpless_tokens t SET expires_at = s.expires_at FROM otpless_sessions s
    WHERE t.digest = ANY (ARRAY (SELECT digest FROM expired WHERE goes IS NOT TRUE)) AND s.session_id = t.session_id
), gone AS (
    DELETE FROM otpless_tokens WHERE digest = ANY (ARRAY (SELECT digest FROM expired WHERE goes))
), deleted AS (
    DELETE FROM otpless_sessions WHERE session_id = ANY (ARRAY (
        SELECT session_id FROM otpless_sessions
        WHERE (SELECT is_ours FROM clock) AND expires_at <= (SELECT now FROM clock)
        ORDER BY expires_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ))
    RETURNING 1
)
SELECT (SELECT count(*) FROM expired) + (SELECT count(*) FROM deleted)
""")


class SqlStore:
    """Sessions in PostgreSQL. Implements `SessionStore`. `offset`: seconds to add to the server's time, for tests.

    The URL is as for libpq: `postgresql://user:password@host:5432/database?sslmode=verify-full`, several hosts, a
    socket's directory as `host`, a password in `~/.pgpass`; raises `ConfigurationError` where it is not.
    """

    def __init__(self, url: str, *, offset: Callable[[], float] = float) -> None:
        address = Address.parse(url)
        self._offset = offset
        self._clock = ServerClock()
        self._links: PerLoop[SqlLink] = PerLoop(lambda: SqlLink(address), SqlLink.close)

    async def open(self) -> None:
        """Connect, and create or check the tables. Raises `StoreError` where they cannot be used."""
        await (await self._links.get()).open()

    async def close(self) -> None:
        """Close the running event loop's connections, when what is under way there is done."""
        await self._links.close()

    async def now(self) -> float:
        """Return the server's time."""
        [record] = await self._read(NOW)
        return self._told(record)

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest: one indexed read."""
        for record in await self._read(FIND, digest=digest):
            row, now = row_of(record), self._told(record)
            if row is not None and REFRESH_TOKEN <= record.token_generation <= row.generation:
                return Found(row, record.token_generation, now)
        return None  # or an entry that its row does not back

    async def get(self, session_id: str) -> SessionRow | None:
        """Return a session's row."""
        record = await self._record(session_id)
        return None if record is None else row_of(record)

    async def create(self, row: SessionRow, token_digest: bytes, refresh_digest: bytes) -> SessionRow | None:
        """Insert a first row with its digests, or return the one that was there."""
        if await self._write(CREATE, **record_of(row), token_digest=token_digest, refresh_digest=refresh_digest):
            return None
        return _readable(await self._record(row.session_id))

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        """Take the lease of an active row of this generation that nobody holds."""
        taken = await self._write(
            TAKE_LEASE,
            session_id=session_id,
            generation=generation,
            owner=owner,
            seconds=seconds,
            not_after=self._clock.in_time_for(seconds),
        )
        if not taken:
            return None
        return Lease(session_id, owner, taken[0].fence, taken[0].lease_until, taken[0].lease_follows_lost_answer)

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease | None:
        """Hold a lease for longer."""
        held = await self._write(RENEW_LEASE, **_held(lease), seconds=seconds)
        return replace(lease, until=held[0].lease_until) if held else None

    async def release_lease(self, lease: Lease, *, answer_lost: bool) -> None:
        """Give a lease back; an owner that stays on a free lease tells the next one of a lost answer."""
        left = lease.owner if answer_lost or lease.follows_lost_answer else None
        await self._write(RELEASE_LEASE, **_held(lease), left_owner=left)

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        """Make the rotation the next generation, if the fence is still the lease's."""
        written = await self._write(
            COMMIT,
            **_held(lease),
            session_token=rotation.session_token,
            token_expires_at=rotation.token_expires_at,
            refresh_token=rotation.refresh_token,
            expires_at=rotation.expires_at,
            answered_at=rotation.answered_at,
            token_digest=rotation.token_digest,
            refresh_digest=rotation.refresh_digest,
        )
        if not written:  # refused; unless an earlier try of this commit got through
            written = await self._read(COMMITTED_BEFORE, **_held(lease), token_digest=rotation.token_digest)
        return row_of(written[0]) if written else None

    async def confirm(self, row: SessionRow, grace: float) -> None:
        """Note that the client has the row's generation."""
        record = await self._record(row.session_id)
        current = None if record is None else row_of(record)
        if record is None or current is None or current.generation != row.generation:
            return
        if current.confirmed_generation < current.generation:
            await self._write(
                CONFIRM,
                session_id=row.session_id,
                generation=row.generation,
                confirmations=confirmations_text(current.confirmed(record.now, grace)),
                as_read=record.confirmations,
            )

    async def touch(self, session_id: str, generation: int, *, validated: bool) -> None:
        """Note that the session was seen now, and is valid."""
        await self._write(TOUCH, session_id=session_id, generation=generation, validated=validated)

    async def end(
        self, row: SessionRow, reason: EndReason, *, revoke_in: float | None, fence: int | None = None
    ) -> SessionRow:
        """End a session; see `SessionStore.end`."""
        may_insert = row.state is State.ACTIVE and fence is None
        values = {**record_of(ended(row, reason, None)), "revoke_in": revoke_in, "only_fence": fence}
        written = await self._write(END_OR_INSERT if may_insert else END, **values)
        record = written[0] if written else await self._record(row.session_id)
        if record is None:
            return row
        return row_of(record) or await self._replace(record, values)

    async def _replace(self, unreadable: Record, values: dict[str, Any]) -> SessionRow:
        """Write an ended row over one that cannot be read, unless somebody else did."""
        read = {"state_read": unreadable.state, "confirmations_read": unreadable.confirmations}
        written = await self._write(REPLACE_UNREADABLE, **values, **read)
        return _readable(written[0] if written else await self._record(unreadable.session_id))

    async def list_user(self, user_id: str) -> Sequence[SessionRow]:
        """Return a user's active rows, the newest first, up to a thousand."""
        return rows_of(await self._read(LIST_USER, user_id=user_id, limit=LONGEST_LIST))

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take ended rows whose telling is due; where none is, nothing is written."""
        return rows_of(await self._write(CLAIM_REVOCATIONS, limit=limit, hold=hold))

    async def waiting_revocations(self) -> int:
        """Return how long the outbox is."""
        [record] = await self._read(WAITING_REVOCATIONS)
        return int(record[0])

    async def postpone_revocation(self, row: SessionRow, seconds: float) -> None:
        """Make a telling due again in `seconds`."""
        await self._write(
            POSTPONE_REVOCATION, session_id=row.session_id, session_token=row.session_token, seconds=seconds
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
        values = {"session_token": session_token, "refresh_token": refresh_token}
        await self._write(REPLACE_REVOCATION, session_id=session_id, **values, due_in=due_in, keep_until=keep_until)

    async def settle_revocation(self, row: SessionRow) -> None:
        """Note that OTPLESS knows."""
        await self._write(SETTLE_REVOCATION, session_id=row.session_id, session_token=row.session_token)

    async def purge(self, limit: int) -> int:
        """Delete what expired, in one small transaction; nothing while another worker is at it."""
        [record] = await self._write(PURGE, limit=limit)
        return int(record[0])

    async def _record(self, session_id: str) -> Record | None:
        for record in await self._read(GET, session_id=session_id):
            self._told(record)
            return record
        return None

    def _told(self, record: Record) -> float:
        """Return the time in a record that came just now."""
        now = float(record.now)
        self._clock.told(now - self._offset())
        return now

    async def _read(self, statement: Executable, **values: Any) -> Sequence[Record]:
        link = await self._links.get()
        return await link.run(statement, {**values, "offset": self._offset()}, is_read=True)

    async def _write(self, statement: Executable, **values: Any) -> Sequence[Record]:
        link = await self._links.get()
        return await link.run(statement, {**values, "offset": self._offset()}, is_read=False)


def _held(lease: Lease) -> dict[str, Any]:
    return {"session_id": lease.session_id, "fence": lease.fence, "owner": lease.owner}


def _readable(record: Record | None) -> SessionRow:
    row = None if record is None else row_of(record)
    if row is None:
        raise StoreError("PostgreSQL: the row of this session cannot be read")
    return row
