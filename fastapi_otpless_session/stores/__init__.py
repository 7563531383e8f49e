"""Session stores. `open_store` picks one by its URL and imports only that."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from urllib.parse import unquote

from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.stores.base import SessionStore

__all__ = ["SessionStore", "open_store"]

HINT = "write sqlite:///file.db, postgresql://host/database, redis://host or memory://"


def open_store(
    url: str, *, clock: Callable[[], float] = time.time, offset: Callable[[], float] = float
) -> SessionStore:
    """Return the store for a URL, not yet opened.

    `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://`, `postgresql://user@host/database`,
    `redis://host:6379/0`, `rediss://…` (TLS), `unix:///redis.sock`, `redis://node-1:6379,node-2:6379` (a cluster).
    For tests: `clock` gives seconds since the epoch to stores on the host's clock, and `offset` how many seconds are to
    be added to a store's clock, whichever it is. Raises `ConfigurationError`, also where the store's extra is missing.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:  # what stands there may be a password
        raise ConfigurationError(f"OTPLESS_STORE_URL: is not a URL; {HINT}")
    match scheme:
        case "memory" | "sqlite":
            return _sqlite(None if scheme == "memory" else _path(rest), lambda: clock() + offset())
        case "postgresql" | "postgres":
            return _postgresql(url, offset)
        case "redis" | "rediss" | "unix":
            return _redis(url, offset)
        case _:
            raise ConfigurationError(f"OTPLESS_STORE_URL: there is no store for {scheme}://; {HINT}")


# Only the store that is asked for is imported: the others' packages need not be there.


def _sqlite(path: str | None, clock: Callable[[], float]) -> SessionStore:
    from fastapi_otpless_session.stores.sqlite import SqliteStore  # noqa: PLC0415

    return SqliteStore(path, clock=clock)


def _postgresql(url: str, offset: Callable[[], float]) -> SessionStore:
    try:
        from fastapi_otpless_session.stores.sql import SqlStore  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed("postgresql://", "postgres") from error
    return SqlStore(url, offset=offset)


def _redis(url: str, offset: Callable[[], float]) -> SessionStore:
    try:
        from fastapi_otpless_session.stores.redis import RedisStore  # noqa: PLC0415
    except ImportError as error:
        raise _not_installed("redis://", "redis") from error
    return RedisStore(url, offset=offset)


def _not_installed(scheme: str, extra: str) -> ConfigurationError:
    return ConfigurationError(
        f'OTPLESS_STORE_URL: {scheme} needs more packages: pip install "fastapi-otpless-session[{extra}]"'
    )


def _path(rest: str) -> str:
    if not rest.startswith("/") or not rest[1:] or rest.startswith("/:memory:"):
        raise ConfigurationError(
            "OTPLESS_STORE_URL: write sqlite:///file.db for a file in the working directory, sqlite:////folder/file.db "
            "for an absolute path, or memory://"
        )
    if "?" in rest or "#" in rest:  # as other libraries' addresses have, which would be part of the file's name
        raise ConfigurationError(
            "OTPLESS_STORE_URL: sqlite:/// takes no options; in a file's name, ? is written %3F and # is written %23"
        )
    path = unquote(rest[1:])
    if not _is_nameable(path):
        raise ConfigurationError("OTPLESS_STORE_URL: no file can have this name; write sqlite:///file.db")
    return path


def _is_nameable(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False
