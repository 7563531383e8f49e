"""The session store: whether it can be reached and written, everybody shares it, and its clock agrees with ours."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol, runtime_checkable
from urllib.parse import unquote

from fastapi_otpless_session.doctor.findings import Outcome, Status, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.host import NETWORK_FILESYSTEMS, Host
from fastapi_otpless_session.doctor.otpless import compared
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.stores import SessionStore, open_store
from fastapi_otpless_session.stores.base import SessionRow
from fastapi_otpless_session.stores.sqlite import SqliteStore

LIFE = 0.2
"""How many seconds the row lives that is written to see whether that works."""
PURGE_BATCH = 500
SHARED = "Use postgresql:// or redis:// for OTPLESS_STORE_URL."


@runtime_checkable
class _Endangered(Protocol):
    """The Redis store. Its class is not named, because its packages need not be there."""

    async def dangers(self) -> Mapping[str, str]: ...


async def store(setup: Setup) -> Outcome:
    """A row can be written, is found again, and is taken away."""
    scheme, path = kind(setup), sqlite_path(setup)
    if path is not None and (trouble := _folder_trouble(path)) is not None:
        return trouble
    try:
        async with _opened(setup, path) as opened:
            written = await _written(opened, _shown(scheme, path))
            return await _dangers(opened) or written if written.status is Status.OK else written
    except ConfigurationError as error:
        text = str(error).removeprefix("OTPLESS_STORE_URL: ")
        return problem(f"OTPLESS_STORE_URL: {text}.", "Write it as the text says, or install what it names.")
    except StoreError as error:
        names_file = path is not None and str(error).startswith(f"{path} ")
        finding = str(error) if names_file else f"{_shown(scheme, path)} cannot be used: {error}"
        return problem(f"{finding}.", error.remedy or _remedy(path))


async def store_clock(setup: Setup) -> Outcome:
    """The clock that sessions go by agrees with ours."""
    if kind(setup) in {"memory", "sqlite"}:
        return skipped("The store goes by this host's clock.")
    try:
        async with _opened(setup, None) as opened:
            started = time.monotonic()
            theirs = await opened.now()
            took = time.monotonic() - started
            return compared(time.time() - took / 2 - theirs, took / 2, "This host's clock", "the store's")
    except (ConfigurationError, StoreError) as error:
        return skipped(f"The store's time is not known: {error}.")


async def store_shared(setup: Setup) -> Outcome:
    """All workers and hosts of the application see the same sessions."""
    scheme, path = kind(setup), sqlite_path(setup)
    if scheme == "memory":
        return _memory(setup.host)
    if path is not None:
        return _sqlite(path, setup.host)
    if setup.own_store is not None:
        return skipped("The application brings a store of its own; whether several hosts share it, it must know.")
    return ok("All workers and hosts share the store.")


def _memory(host: Host) -> Outcome:
    if (host.workers or 1) > 1:
        return problem(
            f"memory:// with {host.workers} workers: none knows who signed in at another, and answers 401.",
            "Use sqlite:///sessions.db for several workers of one machine, postgresql:// or redis:// for several.",
        )
    return warning(
        "memory:// is for one process: a restart signs everybody out, and with uvicorn --workers, WEB_CONCURRENCY or a "
        "second host none knows who signed in at another.",
        "Use sqlite:///sessions.db on one machine, postgresql:// or redis:// on several; for tests all is well.",
    )


def _sqlite(path: Path, host: Host) -> Outcome:
    filesystem = host.filesystem(path)
    if NETWORK_FILESYSTEMS.fullmatch(filesystem):
        finding = f"{path} lies on {filesystem}: SQLite's locks do not hold there, and the file will be damaged."
        return problem(finding, f"Put it on a local disk. {SHARED}")
    if host.platform:
        finding = f"{host.platform} may run the application on several hosts; each would have a {path.name} of its own."
        return warning(finding, f"{SHARED} It is fine as long as there is one host, whose disk stays.")
    if filesystem in {"overlay", "aufs"} and host.is_container:
        finding = f"{path} lies in the container's own layer: the next container starts with nobody signed in."
        return warning(finding, f"Put it on a volume, and its path into OTPLESS_STORE_URL. {SHARED}")
    if filesystem in {"tmpfs", "ramfs"}:
        finding = f"{path} lies in memory ({filesystem}): a restart of the host signs everybody out."
        return warning(finding, "Put it on a disk, and its path into OTPLESS_STORE_URL.")
    return ok(f"The workers of this machine share {path}; several machines would need PostgreSQL or Redis.")


async def _written(opened: SessionStore, shown: str) -> Outcome:
    name, token, refresh = f"doctor-{secrets.token_hex(16)}", secrets.token_bytes(32), secrets.token_bytes(32)
    now = await opened.now()
    row = SessionRow(session_id=name, user_id=name, created_at=now, last_seen_at=now, expires_at=now + LIFE)
    await opened.create(row, token, refresh)
    found = await opened.find(token)
    if found is None and await opened.now() < row.expires_at:
        return problem(f"{shown} takes a session, but does not have it afterwards.", "Is it a cache, or a replica?")
    await asyncio.sleep(max(0.0, row.expires_at - await opened.now()) + 0.01)
    await opened.purge(PURGE_BATCH)
    over = "ran out" if await opened.get(name) is None else "goes with the expired ones"
    return ok(f"{shown} can be reached and written: a row of a moment was written, found, and {over}.")


async def _dangers(opened: SessionStore) -> Outcome | None:
    """Repeat what the store itself warns of when it is opened."""
    try:
        found = await opened.dangers() if isinstance(opened, _Endangered) else {}
    except StoreError as error:
        return warning(
            f"Whether the store may lose sessions could not be looked at: {error}.",
            "Let its user ask: +info in Redis's access list.",
        )
    if not found:
        return None
    commands = ", ".join(f"CONFIG SET {setting}" for setting in found)
    return warning(" ".join(f"{danger}." for danger in found.values()), f"{commands}, and the same in redis.conf.")


@asynccontextmanager
async def _opened(setup: Setup, path: Path | None) -> AsyncIterator[SessionStore]:
    """Open the application's store, or one beside its file where there is no file yet: that is not ours to make.

    Made by whoever runs the doctor, it might not be the application's to write.
    """
    scratch = _beside(path) if path is not None else None
    opened = open_store(f"sqlite:///{scratch}") if scratch else setup.open_store()
    async with setup.store_turn if opened is setup.own_store else nullcontext():
        try:
            await opened.open()
            yield opened
        finally:
            await opened.close()
            if scratch:
                await asyncio.to_thread(_remove, scratch)


def _beside(path: Path) -> Path | None:
    return None if path.exists() else path.with_name(f".otpless-doctor-{secrets.token_hex(4)}")


def _remove(scratch: Path) -> None:
    for path in scratch.parent.glob(f"{scratch.name}*"):  # SQLite's and the store's own companions, too
        with suppress(OSError):
            path.unlink(missing_ok=True)


def kind(setup: Setup) -> str:
    """Return the scheme of the store's URL, or the name of the application's own."""
    own = setup.own_store
    if own is None:
        return setup.settings.store_url.get_secret_value().partition("://")[0]
    if type(own) is SqliteStore:
        return "memory" if own.path is None else "sqlite"
    return type(own).__name__


def sqlite_path(setup: Setup) -> Path | None:
    """Return the absolute path of a SQLite file."""
    own = setup.own_store
    if own is not None:
        return Path(own.path).absolute() if type(own) is SqliteStore and own.path is not None else None
    scheme, _, rest = setup.settings.store_url.get_secret_value().partition("://")
    return Path(unquote(rest[1:])).absolute() if scheme == "sqlite" and rest[1:] else None


def _folder_trouble(path: Path) -> Outcome | None:
    if not path.parent.is_dir():
        return problem(
            f"There is no folder {path.parent} for OTPLESS_STORE_URL's file.",
            f"Make it, and give it to the application's user: mkdir -p {path.parent}",
        )
    owner = path.stat().st_uid if path.exists() else path.parent.stat().st_uid
    if hasattr(os, "geteuid") and os.geteuid() == 0 and owner != 0:
        return warning(
            f"The doctor runs as root, who may write everything; {path} is another user's.",
            "Run it as the user that the application runs as.",
        )
    return None


def _shown(scheme: str, path: Path | None) -> str:
    return str(path) if path is not None else f"The store ({scheme})"


def _remedy(path: Path | None) -> str:
    if path is not None:
        write = f"Let the application's user write {path} and its folder"
        return f"{write}: three more files are kept beside it, ending in -wal, -shm and .lock."
    return "Start the server, or mend host, port, user and password in OTPLESS_STORE_URL."
