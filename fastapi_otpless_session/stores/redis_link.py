"""The way to Redis, a single server or a Cluster: address, connections, deadline, and one place where errors turn.

redis-py may repeat a command whose answer was lost; here nothing but reads is repeated, because a transition that
happened must not happen again. A connection whose call was cancelled or timed out is closed, never used again: its
answer is still on the way, and would be taken for the next caller's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.patience import Patience
from fastapi_otpless_session.stores.base import PATIENCE
from fastapi_otpless_session.stores.keepalive import KEEPALIVE
from fastapi_otpless_session.stores.lua import Script
from fastapi_otpless_session.stores.redis_cluster import Cluster, Work
from fastapi_otpless_session.telemetry import logger

CONNECTIONS = 50
CONNECT_SECONDS = 2.0
DEFAULT_PREFIX = "otpless:"
SAFE_POLICY = "noeviction"
OPTIONS = ("db", "username", "password", "client_name", "health_check_interval")
"""What a URL may say of redis-py's options; others would change what an answer looks like, or the deadline."""
DATABASE = re.compile(r"/?|/[0-9]{1,9}/?")
"""A URL's path: Redis calls its databases by numbers."""


class ForeignValueError(StoreError):
    """A key holds something that this package did not put there."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where Redis is: what redis-py makes of the URL for each host, and the prefix of our keys."""

    hosts: tuple[dict[str, Any], ...] = field(repr=False)
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a `STORE_URL`. Raises `ConfigurationError`, which does not show the URL: it may hold a password."""
        try:
            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            prefix = query.pop("prefix", DEFAULT_PREFIX)
            if not all(name in OPTIONS or name.startswith("ssl_") for name in query):
                raise ValueError  # noqa: TRY301 - all that is wrong is told in one place
            if parts.scheme != "unix" and not DATABASE.fullmatch(parts.path):
                raise ValueError  # noqa: TRY301 - redis-py would take it for database 0
            userinfo, at, hosts = parts.netloc.rpartition("@")
            urls = (parts._replace(netloc=f"{userinfo}{at}{host}", query=urlencode(query)) for host in hosts.split(","))
            each = tuple(dict(parse_url(urlunsplit(one))) for one in urls)
            for host in each:
                _check_options(host)
            if len(each) > 1 and any(host.get("db") for host in each):
                raise ValueError  # noqa: TRY301 - a Cluster has one database
        except (ValueError, TypeError, RedisError):
            raise ConfigurationError(
                "OTPLESS_STORE_URL: is not a Redis URL; write redis://user:password@host:6379/0, rediss://… for TLS, "
                "unix:///redis.sock, or redis://node-1:6379,node-2:6379 for a Cluster; what is special in the password "
                "is percent-encoded (@ is %40, / is %2F), the database is a number, and options are prefix, "
                f"{', '.join(OPTIONS)} and ssl_…"
            ) from None
        return cls(each, prefix)


class RedisLink:
    """One event loop's connections."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._servers: Redis | Cluster | None = None
        self._opening = asyncio.Lock()
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._patience = Patience()
        self._calls = 0
        self._is_idle = asyncio.Event()
        self._is_closed = False

    async def close(self) -> None:
        """Close the connections, when the calls that are under way are done."""
        self._is_closed = True
        if self._calls:
            await self._is_idle.wait()
        self._patience.close()
        servers, self._servers = self._servers, None
        if servers is not None:
            await (servers.aclose() if isinstance(servers, Redis) else servers.close())

    async def run(self, script: Script, key: str, *arguments: str | bytes, is_read: bool = False) -> Any:
        """Run a script on a key. Raises `StoreError`."""

        def by_name(client: Redis) -> Awaitable[Any]:
            return client.evalsha(script.sha, 1, key, *arguments)

        def by_text(client: Redis) -> Awaitable[Any]:
            return client.eval(script.text, 1, key, *arguments)

        return await self.do(key, by_name, by_text, is_read=is_read)

    async def do(self, key: str | None, work: Work, otherwise: Work | None = None, *, is_read: bool = False) -> Any:
        """Have something done with a key within `PATIENCE`; `otherwise` where the server does not know the script.

        Without a key it may be done at any node of a Cluster. Raises `StoreError`.
        """
        if self._is_closed:
            raise StoreError("the session store was closed")
        self._calls += 1
        try:
            return await self._do_in_time(key, work, otherwise or work, is_read=is_read)
        finally:
            self._leave()

    def _leave(self) -> None:
        self._calls -= 1
        if self._is_closed and not self._calls:
            self._is_idle.set()

    async def _do_in_time(self, key: str | None, work: Work, otherwise: Work, *, is_read: bool) -> Any:
        try:
            with self._patience.limit(PATIENCE):
                try:
                    return await self._do(key, work, is_read=is_read)
                except NoScriptError:
                    return await self._do(key, otherwise, is_read=is_read)
        except TimeoutError:
            raise StoreError(f"Redis did not answer within {PATIENCE:g} s") from None
        except ResponseError as error:
            if isinstance(error, ReadOnlyError) or "READONLY" in str(error):
                await self._look_again()
            kind = ForeignValueError if "WRONGTYPE" in str(error) else StoreError
            raise kind(f"Redis: {error}") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"Redis: {error}") from None
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            # redis-py's, when a server goes away at the wrong moment, or an id that is no text. Its own words may quote
            # what was sent.
            raise StoreError(f"Redis: {type(error).__name__}") from None

    async def _look_again(self) -> None:
        """Connect anew: what answered is a replica now, and its name or address may lead to the new primary."""
        if isinstance(self._servers, Redis):
            await self._servers.connection_pool.disconnect(inuse_connections=False)

    async def _do(self, key: str | None, work: Work, *, is_read: bool) -> Any:
        """Do it; a read once more where its connection was dead."""
        try:
            return await self._do_once(key, work)
        except RedisConnectionError:
            if not is_read:
                raise
            return await self._do_once(key, work)

    async def _do_once(self, key: str | None, work: Work) -> Any:
        servers = self._servers
        if servers is None:
            async with self._opening:
                servers = self._servers = self._servers or await self._find()
        if isinstance(servers, Redis):
            async with self._room:
                return await work(servers)
        return await (servers.do_anywhere(work) if key is None else servers.do(key, work))

    async def _find(self) -> Redis | Cluster:
        """Find out through the first host that answers what is there."""
        hosts = self._address.hosts
        return await self._find_through(hosts[0] if len(hosts) == 1 else await _first_to_answer(hosts))

    async def _find_through(self, host: dict[str, Any]) -> Redis | Cluster:
        client = _connect(host)
        try:
            mode = await _mode(client)
            await _warn_of_dangers(client)
            if mode == "standalone" and len(self._address.hosts) == 1:
                return client
        except BaseException:
            await client.aclose()
            raise
        await client.aclose()
        if mode != "cluster":
            raise StoreError(f"Redis: several hosts are for a Cluster, and {mode} is what answers; name one server")
        others = (each for each in self._address.hosts if each is not host)
        seeds = [(str(each.get("host", "localhost")), int(each.get("port", 6379))) for each in (host, *others)]
        return Cluster(lambda node: _connect({**host, "host": node[0], "port": node[1]}), seeds)


class _Pool(ConnectionPool):
    """redis-py's pool, which notices that an idle connection was closed, but not that it was reset."""

    async def ensure_connection(self, connection: Any) -> None:
        """Connect anew where the connection is gone: what would be written to it is certainly not sent."""
        writer = getattr(connection, "_writer", None)
        if writer is not None and writer.is_closing():
            await connection.disconnect(nowait=True)
        await super().ensure_connection(connection)


async def _first_to_answer(hosts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Ask all hosts at once, so that those which hang keep nobody from the others. Raises what the last one did."""
    clients = [_connect(host) for host in hosts]
    asked = [asyncio.create_task(_greeted(client, host)) for client, host in zip(clients, hosts, strict=True)]
    failure: RedisError | OSError | None = None
    try:
        for answer in asyncio.as_completed(asked):
            try:
                return await answer
            except (RedisError, OSError) as error:
                logger.warning("Redis: a host does not answer: %s", error)
                failure = error
    finally:
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for client in clients:  # here, where nobody cancels it
            await client.aclose()
    raise failure or RedisConnectionError("there is no host to be asked")


async def _greeted(client: Redis, host: dict[str, Any]) -> dict[str, Any]:
    await _mode(client)
    return host


def _connect(host: dict[str, Any]) -> Redis:
    return Redis.from_pool(_Pool(**_options(host)))


def _options(host: dict[str, Any]) -> dict[str, Any]:
    is_local = host.get("connection_class") is UnixDomainSocketConnection
    return {
        **host,
        **({} if is_local else {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}),
        "max_connections": 2 * CONNECTIONS,  # those being closed count too
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,  # the deadline is total
        "socket_connect_timeout": CONNECT_SECONDS,
    }


def _check_options(host: dict[str, Any]) -> None:
    """Raise `TypeError` for an option that redis-py does not know; it would tell only when it connects."""
    ConnectionPool(**_options(host)).make_connection()  # type: ignore[no-untyped-call]


async def _mode(client: Redis) -> str:
    """Say what answers: `standalone`, `cluster` or `sentinel`; servers before Redis 6 cannot tell."""
    try:
        answer = await client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    except ResponseError:
        return "standalone"
    fields = dict(zip(answer[::2], answer[1::2], strict=False)) if isinstance(answer, list) else answer
    return bytes(fields[b"mode"]).decode()


async def _warn_of_dangers(client: Redis) -> None:
    try:
        found = await dangers(client)
    except ResponseError:  # not permitted here
        return
    for setting, danger in found.items():
        logger.warning("%s; set %s", danger, setting)


async def dangers(client: Redis) -> Mapping[str, str]:
    """Say what a server's settings may do to sessions, each under the setting that keeps it from that."""
    return dangers_in({**await client.info("memory"), **await client.info("persistence")})


def dangers_in(told: Mapping[str, Any]) -> dict[str, str]:
    """Judge what `INFO` tells. Providers leave fields out: of those nothing is said."""
    found = {}
    policy = told.get("maxmemory_policy", SAFE_POLICY)
    if policy != SAFE_POLICY:
        found[f"maxmemory-policy {SAFE_POLICY}"] = (
            f"Redis may throw sessions away when its memory is full (maxmemory-policy {policy}): people would be "
            "signed out, and sign-outs forgotten"
        )
    if not told.get("aof_enabled", True):
        found["appendonly yes"] = (
            "Redis may forget what it confirmed when it is started anew (appendonly no): people would be signed out, "
            "and sign-outs undone"
        )
    return found
