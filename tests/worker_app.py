"""An application for uvicorn workers; its settings come from `OTPLESS_*` variables.

More variables are for what befalls a worker. `WORKER_CLOCK_AHEAD`: how many seconds its host's clock is ahead.
`WORKER_STORE_AHEAD`: a file that says so of the store's clock, at each moment.
`WORKER_STRUCK_AT`: the step of the refresh protocol at which, once, it gets the signal `WORKER_STRUCK_BY` (SIGKILL):

    before_lease     it wants to refresh, and has told nobody
    lease_held       it has the lease
    sending          it has made sure of its lease, and is about to ask OTPLESS
    answered         it has OTPLESS's answer, and has told nobody
    committed        it has written the new pair into the store, and has not answered its client
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from patience import be_patient

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

    url, store_ahead = settings.store_url.get_secret_value(), os.environ.get("WORKER_STORE_AHEAD")
    store = open_store(url, clock=clock, offset=lambda: float(Path(store_ahead).read_text()) if store_ahead else 0.0)
    be_patient()
    if "WORKER_STRUCK_AT" not in os.environ:
        return OtplessSessions(settings, store=store if store_ahead else None, clock=clock)
    blow = Blow(os.environ["WORKER_STRUCK_AT"], signal.Signals[os.environ.get("WORKER_STRUCK_BY", "SIGKILL")])
    client = OtplessClient(settings, http=StruckSender(HttpxSender(), blow))
    return OtplessSessions(settings, store=cast("SessionStore", StruckStore(store, blow)), client=client, clock=clock)


async def orders(session: CurrentSession) -> dict[str, Any]:
    return {"user": session.user_id, "worker": os.getpid(), "refreshed": session.refreshed, "stale": session.stale}


async def fresh(session: FreshSession) -> dict[str, Any]:
    return {"user": session.user_id}


async def orders_and_fresh(session: CurrentSession, again: FreshSession) -> dict[str, Any]:
    return {"user": session.user_id, "again": again.user_id}


async def public() -> dict[str, Any]:
    return {"hello": "world", "worker": os.getpid()}


class Blow:
    """A signal that comes as the kernel sends it: in the midst of things, and nothing is closed or told before."""

    def __init__(self, step: str, number: signal.Signals) -> None:
        self._step = step
        self._number = number

    def falls(self, step: str) -> None:
        """Strike if this is the step, and no second time."""
        if step == self._step:
            self._step = ""
            os.kill(os.getpid(), self._number)


class StruckStore:
    """A store in whose midst the blow falls; else the store itself."""

    def __init__(self, store: SessionStore, blow: Blow) -> None:
        self._store = store
        self._blow = blow

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        self._blow.falls("before_lease")
        lease = await self._store.take_lease(session_id, generation, owner, seconds)
        if lease is not None:
            self._blow.falls("lease_held")
        return lease

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        row = await self._store.commit(lease, rotation)
        if row is not None:
            self._blow.falls("committed")
        return row


class StruckSender:
    """A sender in whose midst the blow falls, if it is a refresh that is sent; else the sender itself."""

    def __init__(self, sender: HttpSender, blow: Blow) -> None:
        self._sender = sender
        self._blow = blow

    async def open(self) -> None:
        await self._sender.open()

    async def close(self) -> None:
        await self._sender.close()

    async def send(self, request: Request, *, deadline: float) -> Answer:
        is_refresh = request.url.endswith(NEW_SESSION_TOKEN)
        if is_refresh:
            self._blow.falls("sending")
        answer = await self._sender.send(request, deadline=deadline)
        if is_refresh:
            self._blow.falls("answered")
        return answer
