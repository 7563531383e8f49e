"""Workers of one process, on one store and one emulator: each `OtplessSessions` is one. And a store that fails."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from conftest import Clock, make_settings
from starlette.types import Receive, Scope, Send

from fastapi_otpless_session import OtplessClient, OtplessSessions, StoreError, open_store
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings
from fastapi_otpless_session.stores.base import EndReason, Lease, Rotation, SessionRow, SessionStore
from fastapi_otpless_session.stores.sqlite import SqliteStore

STRICT = EmulatorSettings(rotation="strict")


class Workers:
    """Some workers on one store and one emulator, and somebody who is signed in."""

    def __init__(self, emulator: Emulator, clock: Clock, stores: list[SessionStore], **values: Any) -> None:
        self.emulator = emulator
        self.clock = clock
        settings = make_settings(**values)
        self.workers = [
            OtplessSessions(
                settings,
                store=store,
                client=OtplessClient(
                    settings,
                    http=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)),
                    monotonic=clock,
                ),
                clock=clock,
                monotonic=clock,
            )
            for store in stores
        ]
        self.token = ""
        self.session_id = ""

    async def __aenter__(self) -> Self:
        for worker in self.workers:
            await worker.open()
        user = self.emulator.sign_in()
        session = await self.workers[0].sign_in(user)
        self.token, self.session_id = session.token.get_secret_value(), session.id
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            await worker.close()


class Door:
    """Stands before the emulator: who wants a new pair waits until it is opened. Made before the workers."""

    def __init__(self, emulator: Emulator) -> None:
        self._app, emulator.app = emulator.app, self
        self._is_open = asyncio.Event()
        self.reached = asyncio.Event()
        """Somebody waits."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("get-new-session-token"):
            self.reached.set()
            await self._is_open.wait()
        await self._app(scope, receive, send)

    def open(self) -> None:
        """Let all through."""
        self._is_open.set()


def files(path: Path, clock: Clock, count: int) -> list[SessionStore]:
    return [open_store(f"sqlite:///{path / 'sessions.db'}", clock=clock) for _ in range(count)]


async def close(stores: list[SessionStore]) -> None:
    for store in stores:
        await store.close()


class FailingStore(SqliteStore):
    """A real store whose writes of some kind fail while they are told to, as on a full disk."""

    failing: frozenset[str] = frozenset()
    counted: Counter[str] | None = None
    """How often each was asked for, where somebody wants to know."""
    under_way = 0
    """How many of `get` and `touch` are, while which no clock is to be moved: they would seem to be held up."""

    def fail(self, *names: str) -> None:
        self.failing = frozenset(names)

    def _check(self, name: str) -> None:
        if self.counted is not None:
            self.counted[name] += 1
        if name in self.failing:
            raise StoreError("disk full")

    @contextmanager
    def _being_done(self) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def find(self, digest: bytes) -> Any:
        self._check("find")
        return await super().find(digest)

    def unchanged_at(self, digest: bytes, row: SessionRow) -> float | None:
        return None if "unchanged_at" in self.failing else super().unchanged_at(digest, row)

    async def get(self, session_id: str) -> SessionRow | None:
        self._check("get")
        with self._being_done():
            return await super().get(session_id)

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        self._check("take_lease")
        return await super().take_lease(session_id, generation, owner, seconds)

    async def renew_lease(self, lease: Lease, seconds: float) -> Lease | None:
        self._check("renew_lease")
        return await super().renew_lease(lease, seconds)

    async def confirm(self, row: SessionRow, grace: float) -> None:
        self._check("confirm")
        await super().confirm(row, grace)

    async def touch(self, session_id: str, generation: int, *, validated: bool) -> None:
        self._check("touch")
        with self._being_done():
            await super().touch(session_id, generation, validated=validated)

    async def release_lease(self, lease: Lease, *, answer_lost: bool) -> None:
        self._check("release_lease")
        await super().release_lease(lease, answer_lost=answer_lost)

    async def replace_revocation(
        self, session_id: str, session_token: bytes, refresh_token: bytes, **when: float
    ) -> None:
        self._check("replace_revocation")
        await super().replace_revocation(session_id, session_token, refresh_token, **when)

    async def settle_revocation(self, row: SessionRow) -> None:
        self._check("settle_revocation")
        await super().settle_revocation(row)

    async def list_user(self, user_id: str) -> Any:
        self._check("list_user")
        return await super().list_user(user_id)

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        self._check("commit")
        return await super().commit(lease, rotation)

    async def end(
        self, row: SessionRow, reason: EndReason, *, revoke_in: float | None, fence: int | None = None
    ) -> SessionRow:
        self._check("end")
        return await super().end(row, reason, revoke_in=revoke_in, fence=fence)
