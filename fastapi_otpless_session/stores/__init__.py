"""Session stores. `open_store` picks one by its URL and imports only that."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import unquote

from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.stores.base import SessionStore

__all__ = ["SessionStore", "open_store"]


def open_store(url: str, *, clock: Callable[[], float] = time.time) -> SessionStore:
    """Return the store for a URL, not yet opened: `sqlite:///relative.db`, `sqlite:////absolute.db`, `memory://`.

    `clock` gives seconds since the epoch, for stores that run on the host's clock. Raises `ConfigurationError`.
    """
    from fastapi_otpless_session.stores.sqlite import SqliteStore  # noqa: PLC0415 - only the store that is asked for

    scheme, separator, rest = url.partition("://")
    if not separator:  # what stands there may be a password
        raise ConfigurationError("OTPLESS_STORE_URL: is not a URL; write sqlite:///file.db or memory://")
    match scheme:
        case "memory":
            return SqliteStore(None, clock=clock)
        case "sqlite":
            return SqliteStore(_path(rest), clock=clock)
        case _:
            raise ConfigurationError(
                f"OTPLESS_STORE_URL: this version has no store for {scheme}://; write sqlite:///file.db or memory://"
            )


def _path(rest: str) -> str:
    if not rest.startswith("/") or not rest[1:] or rest.startswith("/:memory:"):
        raise ConfigurationError(
            "OTPLESS_STORE_URL: write sqlite:///file.db for a file in the working directory, sqlite:////folder/file.db "
            "for an absolute path, or memory://"
        )
    return unquote(rest[1:])
