"""The way to PostgreSQL: address, connections, deadline, and one place where errors turn.

Work runs in a task of its own, up to `PATIENCE`: whoever is cancelled does not take a connection along in the middle of
a conversation. Each event loop has up to `POOL_SIZE` connections, opened when they are needed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from weakref import WeakSet

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import Executable, Row, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.stores.base import PATIENCE
from fastapi_otpless_session.stores.keepalive import KEEPALIVE
from fastapi_otpless_session.stores.sql_schema import SCHEMA, SCHEMA_VERSION

POOL_SIZE = 10
SCHEMA_READ = text("SELECT value FROM otpless_meta WHERE name = 'schema'")

T = TypeVar("T")
Record = Row[Any]

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
_READ_ONLY = "25006"
"""What a standby says to a write, and a server that was told to take none."""
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
        self._room = asyncio.Semaphore(POOL_SIZE)
        self._idle_reads: set[asyncio.Task[Any] | None] = set()
        """Those that wait for a connection: a caller that leaves takes them along."""
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
        event.listen(self._engine.sync_engine, "handle_error", _leave_standby)

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
        task = asyncio.current_task() if is_read else None
        self._idle_reads.add(task)
        async with self._room:
            self._idle_reads.discard(task)
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
            patience = 0 if task in self._idle_reads else PATIENCE
            asyncio.get_running_loop().call_later(patience, task.cancel)
            raise
        if not task.done():
            task.cancel()
            raise StoreError(f"PostgreSQL did not answer within {PATIENCE:g} s")
        with _translated():
            return task.result()

    def _is_over(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        self._idle_reads.discard(task)
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
                    f"PostgreSQL: the tables have schema {version}, made by a newer version of this package; "
                    "upgrade it",
                    remedy='pip install --upgrade "fastapi-otpless-session", or name another database in '
                    "OTPLESS_STORE_URL.",
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
        except asyncpg.InvalidSchemaNameError as error:
            raise StoreError(
                f"PostgreSQL: {_words(error)}; make the one that search_path names, with CREATE SCHEMA"
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
        _keep_alive(connection)
        self._connections.add(connection)
        self._urls.remove(url)
        self._urls.insert(0, url)
        return connection


def _keep_alive(connection: Any) -> None:
    its_socket = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no other way to it
    if its_socket.family in {socket.AF_INET, socket.AF_INET6}:
        its_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            its_socket.setsockopt(socket.IPPROTO_TCP, option, value)


def _refuse_closed(connection: Any, *_: object) -> None:
    """Have the pool replace a connection that the server has closed, without asking the server."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _leave_standby(context: ExceptionContext) -> None:
    """Have the pool replace a connection that takes no writes: the name or the next host may lead to a primary by now.

    That one only: where nothing can be written for long, reads go on without connecting anew for each write that fails.
    """
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect, context.invalidate_pool_on_disconnect = True, False


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
