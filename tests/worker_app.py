"""An application for uvicorn workers; its settings come from `OTPLESS_*` variables.

Two more variables are for what befalls a worker: `WORKER_CLOCK_AHEAD` (seconds that its host's clock is ahead), and
`WORKER_DIES` (the step of the refresh protocol at which it is killed by SIGKILL):

    before_lease     it wants to refresh, and has told nobody
    lease_held       it has the lease, and has not asked OTPLESS
    answered         it has OTPLESS's answer, and has told nobody
    committed        it has written the new pair into the store, and has not answered its client
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any, NoReturn, cast

from fastapi import FastAPI

from fastapi_otpless_session import (
    CurrentSession,
    FreshSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    SessionStore,
    create_session_router,
    open_store,
)
from fastapi_otpless_session.http import HttpSender, HttpxSender
from fastapi_otpless_session.stores.base import Lease, Rotation, SessionRow
from fastapi_otpless_session.wire import NEW_SESSION_TOKEN, Answer, Request


def create_app() -> FastAPI:
    """Build the application as the environment says now."""
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, sessions=create_sessions())
    app.include_router(create_session_router(), prefix="/auth")
    app.get("/orders")(orders)
    app.get("/fresh")(fresh)
    app.get("/orders-and-fresh")(orders_and_fresh)
    app.get("/public")(public)
    return app


def create_sessions() -> OtplessSessions:
    """Build the sessions as an application would; or, for a worker that is to die, over its seams."""
    settings, ahead = OtplessSettings(), float(os.environ.get("WORKER_CLOCK_AHEAD", "0"))

    def clock() -> float:
        return time.time() + ahead

    step = os.environ.get("WORKER_DIES")
    if step is None:
        return OtplessSessions(settings, clock=clock)
    store = MortalStore(open_store(settings.store_url.get_secret_value(), clock=clock), step)
    client = OtplessClient(settings, http=MortalSender(HttpxSender(), step))
    return OtplessSessions(settings, store=cast("SessionStore", store), client=client, clock=clock)


async def orders(session: CurrentSession) -> dict[str, Any]:
    return {"user": session.user_id, "worker": os.getpid(), "refreshed": session.refreshed, "stale": session.stale}


async def fresh(session: FreshSession) -> dict[str, Any]:
    return {"user": session.user_id}


async def orders_and_fresh(session: CurrentSession, again: FreshSession) -> dict[str, Any]:
    return {"user": session.user_id, "again": again.user_id}


async def public() -> dict[str, Any]:
    return {"hello": "world", "worker": os.getpid()}


def die() -> NoReturn:
    """As the kernel does it when memory is short: nothing is closed, nothing is told."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


class MortalStore:
    """A store whose process dies at a step; else the store itself."""

    def __init__(self, store: SessionStore, step: str) -> None:
        self._store = store
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        if self._step == "before_lease":
            die()
        lease = await self._store.take_lease(session_id, generation, owner, seconds)
        if lease is not None and self._step == "lease_held":
            die()
        return lease

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        row = await self._store.commit(lease, rotation)
        if row is not None and self._step == "committed":
            die()
        return row


class MortalSender:
    """A sender whose process dies when it has OTPLESS's answer to a refresh; else the sender itself."""

    def __init__(self, sender: HttpSender, step: str) -> None:
        self._sender = sender
        self._step = step

    async def open(self) -> None:
        await self._sender.open()

    async def close(self) -> None:
        await self._sender.close()

    async def send(self, request: Request, *, deadline: float) -> Answer:
        answer = await self._sender.send(request, deadline=deadline)
        if self._step == "answered" and request.url.endswith(NEW_SESSION_TOKEN):
            die()
        return answer
