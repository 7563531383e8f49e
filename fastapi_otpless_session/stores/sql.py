"""The PostgreSQL store, for version 12 and later: SQLAlchemy Core over asyncpg.

Each transition is one conditional statement, committed by itself, that also writes the index: one way to the server and
back. It is right under READ COMMITTED, where an UPDATE that had to wait for a row looks at it again; where a role has a
stricter isolation as its default, what the server refuses for that reason is done again, as a deadlock's victim is.
Times are the server's `clock_timestamp()`.

Work runs in a task of its own, up to `PATIENCE`: whoever is cancelled does not take a connection along in the middle of
a conversation. Each event loop has up to `POOL_SIZE` connections, opened when they are needed.

PgBouncer works in session mode, and in transaction mode from 1.21 on with `max_prepared_statements` above 0; for others
end the URL in `?prepared_statement_cache_size=0`, which costs about half as much again for a read.
"""
# ruff: noqa: S608 - statements are made of names of our own; values are parameters

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from weakref import WeakSet

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Executable, Row, column, event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.stores.base import (
    LONGEST_LIST,
    PATIENCE,
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

SCHEMA_VERSION = 1
POOL_SIZE = 10
_LOCKS = 0x6F74706C
"""The advisory locks of this package: 1 to make the tables, 2 to purge. The number is "otpl" in ASCII."""

# Whatever writes a row often leaves the indexed columns alone, and a page has room for the new version: it stays off
# the indexes then (a "heap-only" update). Ids are compared as bytes, so that no change of a locale's order matters.
SCHEMA = f"""\
-- The tables of fastapi-otpless-session. Running this again is harmless.
BEGIN;
SELECT pg_advisory_xact_lock({_LOCKS}, 1);
CREATE TABLE IF NOT EXISTS otpless_meta (
    name text PRIMARY KEY,
    value integer NOT NULL
);
CREATE TABLE IF NOT EXISTS otpless_sessions (
    session_id text COLLATE "C" PRIMARY KEY,
    user_id text COLLATE "C" NOT NULL,
    state text NOT NULL,
    end_reason text,
    generation bigint NOT NULL,
    confirmations text NOT NULL,
    rotated_at double precision NOT NULL,
    session_token bytea NOT NULL,
    token_expires_at double precision NOT NULL,
    refresh_token bytea NOT NULL,
    lease_owner text,
    lease_until double precision NOT NULL,
    lease_follows_lost_answer boolean NOT NULL DEFAULT false,
    fence bigint NOT NULL,
    validated_at double precision NOT NULL,
    created_at double precision NOT NULL,
    last_seen_at double precision NOT NULL,
    expires_at double precision NOT NULL,
    summary text NOT NULL,
    revocation_due double precision,
    revocation_attempts bigint NOT NULL
) WITH (fillfactor = 80);
CREATE TABLE IF NOT EXISTS otpless_tokens (
    digest bytea PRIMARY KEY,
    session_id text COLLATE "C" NOT NULL,
    generation bigint NOT NULL,
    expires_at double precision NOT NULL
);
CREATE INDEX IF NOT EXISTS otpless_sessions_user ON otpless_sessions (user_id) WHERE state = 'active';
CREATE INDEX IF NOT EXISTS otpless_sessions_due ON otpless_sessions (revocation_due) WHERE revocation_due IS NOT NULL;
CREATE INDEX IF NOT EXISTS otpless_sessions_expiry ON otpless_sessions (expires_at);
CREATE INDEX IF NOT EXISTS otpless_tokens_expiry ON otpless_tokens (expires_at);
INSERT INTO otpless_meta (name, value) VALUES ('schema', {SCHEMA_VERSION})
    ON CONFLICT (name) DO UPDATE SET value = greatest(otpless_meta.value, excluded.value);
COMMIT;
"""

T = TypeVar("T")
Record = Row[Any]

# The statements. A subquery for the time is evaluated once, and can be looked up in an index.

_NOW = "(CAST(extract(epoch FROM clock_timestamp()) AS double precision) + CAST(:offset AS double precision))"
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

SCHEMA_READ = text("SELECT value FROM otpless_meta WHERE name = 'schema'")
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
UPDATE otpless_sessions
SET lease_owner = :owner, lease_until = {_NOW} + :seconds, fence = fence + 1,
    lease_follows_lost_answer = lease_owner IS NOT NULL
WHERE session_id = :session_id AND generation = :generation AND state = 'active' AND lease_until <= {_NOW}
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
        lease_owner = NULL, lease_until = 0, validated_at = clock.now, last_seen_at = clock.now
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
ORDER BY s.created_at DESC, s.session_id LIMIT {LONGEST_LIST}
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
UPDATE otpless_sessions SET session_token = :session_token, refresh_token = :refresh_token, revocation_due = {_NOW}
WHERE session_id = :session_id AND state = 'ended'
""")
SETTLE_REVOCATION = text("""
UPDATE otpless_sessions SET revocation_due = NULL
WHERE session_id = :session_id AND session_token = :session_token AND revocation_due IS NOT NULL
""")
PURGE = text(rf"""
WITH clock AS MATERIALIZED (SELECT {_NOW} AS now, pg_try_advisory_xact_lock({_LOCKS}, 2) AS is_ours),
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
        return float(record.now)

    async def find(self, digest: bytes) -> Found | None:
        """Look a token up by its digest: one indexed read."""
        for record in await self._read(FIND, digest=digest):
            row = row_of(record)
            if row is not None and REFRESH_TOKEN <= record.token_generation <= row.generation:
                return Found(row, record.token_generation, record.now)
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
            TAKE_LEASE, session_id=session_id, generation=generation, owner=owner, seconds=seconds
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
        return rows_of(await self._read(LIST_USER, user_id=user_id))

    async def claim_revocations(self, limit: int, hold: float) -> Sequence[SessionRow]:
        """Take ended rows whose telling is due; where none is, nothing is written."""
        return rows_of(await self._write(CLAIM_REVOCATIONS, limit=limit, hold=hold))

    async def postpone_revocation(self, row: SessionRow, seconds: float) -> None:
        """Make a telling due again in `seconds`."""
        await self._write(
            POSTPONE_REVOCATION, session_id=row.session_id, session_token=row.session_token, seconds=seconds
        )

    async def replace_revocation(self, session_id: str, session_token: bytes, refresh_token: bytes) -> None:
        """Make an ended row's telling due now, with other tokens."""
        await self._write(
            REPLACE_REVOCATION, session_id=session_id, session_token=session_token, refresh_token=refresh_token
        )

    async def settle_revocation(self, row: SessionRow) -> None:
        """Note that OTPLESS knows."""
        await self._write(SETTLE_REVOCATION, session_id=row.session_id, session_token=row.session_token)

    async def purge(self, limit: int) -> int:
        """Delete what expired, in one small transaction; nothing while another worker is at it."""
        [record] = await self._write(PURGE, limit=limit)
        return int(record[0])

    async def _record(self, session_id: str) -> Record | None:
        records = await self._read(GET, session_id=session_id)
        return records[0] if records else None

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


# The way to the server: address, connections, deadline, and one place where errors turn

_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(%25\w+)?\]|[^\[\]:@]*)(:(?P<port>\d*))?")
_HIGHEST_PORT = 65_535
_CHOICES = {
    "sslmode": {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"},
    "target_session_attrs": {"any", "read-write", "read-only", "primary", "standby", "prefer-standby"},
    "gssencmode": {"disable", "prefer"},
    "channel_binding": {"disable", "prefer"},
}
_LIBPQ_ONLY = {
    *("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "client_encoding", "fallback_application_name"),
    *("sslcompression", "sslsni", "gssencmode", "channel_binding"),
}
"""What libpq knows and asyncpg does not, and would take for settings of the server's."""
_DID_NOT_HAPPEN = {"40001", "40P01"}
"""SQLSTATEs of a serialization failure and a deadlock: rolled back, to be tried again."""
_NO_TABLE = "42P01"
_UNREACHED = (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched)


@dataclass(frozen=True, slots=True)
class Address:
    """Where PostgreSQL is: what asyncpg takes for each host, in the order to try them."""

    urls: tuple[str, ...] = field(repr=False)
    options: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a `STORE_URL`. Raises `ConfigurationError`, which does not show the URL: it may hold a password."""
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            size = query.pop("prepared_statement_cache_size", None)
            options = {} if size is None else {"statement_cache_size": int(size)}
            userinfo, at, hosts = parts.netloc.rpartition("@")
            each = _each_host(hosts, query)
            if "@" in userinfo or parts.fragment:
                raise ValueError  # noqa: TRY301 - all that is wrong is told in one place
        except ValueError:
            raise ConfigurationError(
                "OTPLESS_STORE_URL: is not a PostgreSQL URL; write postgresql://user:password@host:5432/database, with "
                "what is special in the password percent-encoded (@ is %40, / is %2F, # is %23)"
            ) from None
        for name, choices in _CHOICES.items():
            if query.get(name, "") not in {"", *choices}:
                raise ConfigurationError(f"OTPLESS_STORE_URL: {name} can be {', '.join(sorted(choices))}")
        kept = urlencode({name: value for name, value in query.items() if name not in _LIBPQ_ONLY})
        path = "" if parts.path == "/" else parts.path  # asyncpg would take an empty name for the database's
        urls = (parts._replace(netloc=f"{userinfo}{at}{host}", path=path, query=kept) for host in each)
        return cls(tuple(map(urlunsplit, urls)), options)


def _each_host(hosts: str, query: dict[str, str]) -> list[str]:
    """Return what each host is in a URL of its own; as for libpq, `host` and `port` can stand in the query."""
    if named := query.pop("host", ""):
        hosts = ",".join(f"[{host}]" if ":" in host else quote(host, safe="") for host in named.split(","))
    if not hosts:
        return [""]  # asyncpg looks at the usual places
    each, ports = hosts.split(","), query.pop("port", "").split(",")
    ports = ports * len(each) if len(ports) == 1 else ports
    return [_with_port(host, port) for host, port in zip(each, ports, strict=True)]


def _with_port(host: str, otherwise: str) -> str:
    match = _HOST.fullmatch(host)
    port = int((match and match["port"]) or otherwise or 0)
    if match is None or port > _HIGHEST_PORT:
        raise ValueError
    return f"{match['host']}:{port}" if port else match["host"]


class SqlLink:
    """One event loop's connections."""

    def __init__(self, address: Address) -> None:
        self._urls = list(address.urls)
        self._options = address.options
        self._connections: WeakSet[Any] = WeakSet()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._preparing = asyncio.Lock()
        self._is_prepared = self._is_closed = False
        # asyncpg and not psycopg, which takes 1.24 × as long for a find and 1.1 × for a lease alone, and 1.6 × and
        # 1.35 × with 32 at once.
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            isolation_level="AUTOCOMMIT",
            pool_size=POOL_SIZE,
            max_overflow=0,
            pool_timeout=PATIENCE,
            pool_reset_on_return=None,
            hide_parameters=True,
        )
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)

    async def open(self) -> None:
        """Connect and prepare. Raises `StoreError`."""
        await self._within_patience(self._prepare())

    async def close(self) -> None:
        """Close the connections, when what is under way is done."""
        self._is_closed = True
        while self._under_way:
            await asyncio.wait(list(self._under_way))
        for connection in list(self._connections):
            connection.terminate()  # says goodbye, and does not wait for an answer
        await self._engine.dispose()

    async def run(self, statement: Executable, values: dict[str, Any], *, is_read: bool) -> Sequence[Record]:
        """Run a statement and return its records, within `PATIENCE`. Raises `StoreError`."""
        return await self._within_patience(self._run(statement, values, is_read=is_read))

    async def _run(self, statement: Executable, values: dict[str, Any], *, is_read: bool) -> Sequence[Record]:
        if not self._is_prepared:
            await self._prepare()
        return await self._execute(statement, values, is_read=is_read)

    async def _within_patience(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work in a task of its own: a caller that is cancelled does not cut a connection off in mid-sentence."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._is_over)
        try:
            await asyncio.wait({task}, timeout=PATIENCE)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(PATIENCE, task.cancel)
            raise
        if not task.done():
            task.cancel()
            raise StoreError(f"PostgreSQL did not answer within {PATIENCE:g} s")
        with _translated():
            return task.result()

    def _is_over(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be there any more to take note

    async def _execute(self, statement: Executable, values: dict[str, Any], *, is_read: bool) -> Sequence[Record]:
        """Run a statement; again where it did not happen, and once more if it reads and its connection was dead."""
        while True:
            if self._is_closed:
                raise StoreError("the session store was closed")
            try:
                async with self._engine.connect() as connection:
                    result = await connection.execute(statement, values)
                    return result.all() if result.returns_rows else ()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) in _DID_NOT_HAPPEN:
                    continue
                if not is_read or not error.connection_invalidated:
                    raise
                is_read = False

    async def _prepare(self) -> None:
        """Check the tables' version, and create or change them where they are older; whoever comes first does."""
        async with self._preparing:
            if self._is_prepared:
                return
            version = await self._schema_version()
            if version < SCHEMA_VERSION:
                await self._create_tables()
                version = await self._schema_version()
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"PostgreSQL: the tables have schema {version}, made by a newer version of this package; upgrade it"
                )
            self._is_prepared = True

    async def _schema_version(self) -> int:
        try:
            records = await self._execute(SCHEMA_READ, {}, is_read=True)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _NO_TABLE:
                return 0
            raise
        return int(records[0].value) if records else 0

    async def _create_tables(self) -> None:
        connection = await self._connect()
        try:
            await connection.execute(SCHEMA)
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreError(
                f"PostgreSQL: {_words(error)}; have the tables created with what "
                "`python -m fastapi_otpless_session schema postgresql` prints"
            ) from None
        finally:
            connection.terminate()

    async def _connect(self) -> Any:
        """Connect to the first host that can be reached, each in its share of the time; it is first from then on."""
        *others, last = list(self._urls)
        for url in others:
            try:
                return await self._connect_to(url)
            except _UNREACHED:
                continue
        return await self._connect_to(last)

    async def _connect_to(self, url: str) -> Any:
        connection = await asyncpg.connect(url, timeout=PATIENCE / len(self._urls), **self._options)
        self._connections.add(connection)
        self._urls.remove(url)
        self._urls.insert(0, url)
        return connection


def _refuse_closed(connection: Any, *_: object) -> None:
    """Have the pool replace a connection that the server has closed, without asking the server."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what SQLAlchemy, asyncpg and the network raise into `StoreError`, here and nowhere else."""
    try:
        yield
    except (
        *(SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
        *(OSError, ValueError),
    ) as error:
        raise StoreError(f"PostgreSQL: {_words(error)}") from None


def _words(error: BaseException) -> str:
    """Say what went wrong, without SQL and without values."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig.__cause__ or error.orig
    if isinstance(error, asyncpg.DataError):
        return f"a value cannot be kept ({type(error).__name__})"
    if isinstance(error, (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError)):
        return f"{error.args[0]}; behind PgBouncer, add ?prepared_statement_cache_size=0 to OTPLESS_STORE_URL"
    if isinstance(error, OSError) or not error.args:
        return str(error) or type(error).__name__
    return str(error.args[0])
