"""The applications that are measured: a FastAPI application with one small JSON route, and what is put around it."""

from __future__ import annotations

import json
import time
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import itsdangerous
import measure
from fastapi import FastAPI, Request
from measure import Scope, scope
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp
from upstream import DAY, YEAR, InstantOtpless, claims, signed, unsigned

from fastapi_otpless_session import CurrentSession, OtplessClient, OtplessSessionMiddleware, OtplessSessions, serving
from fastapi_otpless_session.binding import OtplessUser
from fastapi_otpless_session.settings import OtplessSettings

CLIENT_ID = "bench"
SECRET = "a secret of the bench's"
COOKIE = "__Host-otpless_session"
BASE_URL = "http://127.0.0.1:9"
IS_COMPILED = not serving.__file__.endswith(".py")
BELIEVED: dict[str, Any] = {"store_ttl": 3600.0}
REQUIRED: dict[str, Any] = {"required_paths": ("/**",)}


def bare() -> FastAPI:
    """Return the baseline."""
    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def depending() -> FastAPI:
    """Return the same, with the session asked for by its route."""
    app = FastAPI()

    @app.get("/")
    async def hello(session: CurrentSession) -> dict[str, str]:
        return {"hello": session.user_id}

    return app


def starlette_session() -> tuple[FastAPI, tuple[bytes, bytes]]:
    """Return an application with Starlette's SessionMiddleware that reads its session, and the cookie to send."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, secret_key=SECRET)

    @app.get("/")
    async def hello(request: Request) -> dict[str, str]:
        return {"hello": request.session["user_id"]}

    content = b64encode(json.dumps({"user_id": "MO-1"}).encode())
    return app, (b"cookie", b"session=" + itsdangerous.TimestampSigner(SECRET).sign(content))


def settings(**values: Any) -> OtplessSettings:
    """Return the package's own defaults, but for what is given; nothing in the environment counts."""
    basics: dict[str, Any] = {
        "client_id": CLIENT_ID,
        "client_secret": SECRET,
        "base_url": BASE_URL,
        "jwks_url": f"{BASE_URL}/jwks",
        "_env_file": None,
    }
    return OtplessSettings(**{**basics, **values})


@dataclass
class Clock:
    """Time that passes only when it is told to."""

    now: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Pair:
    """A session's tokens."""

    session_id: str
    token: str
    refresh_token: str


@dataclass
class Worker:
    """An application with the package's middleware, started, and what is behind it."""

    app: ASGIApp
    sessions: OtplessSessions
    upstream: InstantOtpless
    clock: Callable[[], float]

    async def sign_in(self, life: float = DAY) -> Pair:
        """Sign somebody in, as the router's sign-in route does."""
        session_id, now = uuid.uuid4().hex, self.clock()
        make = signed if self.sessions.settings.jwks_url else unsigned
        pair = Pair(session_id, make(claims(session_id, now, life)), make(claims(session_id, now, YEAR)))
        if not self.sessions.settings.jwks_url:  # then a sign-in exchanges the refresh token at once
            new = self.upstream.will_refresh(pair.refresh_token, session_id, now, life)
            user = _user(pair)
            pair = Pair(session_id, *new)
        else:
            user = _user(pair)
        await self.sessions.sign_in(user)
        return pair

    async def first(self, pair: Pair) -> None:
        """Have a token seen by this worker."""
        await measure.requests(lambda _: self.batch([with_cookie(pair.token)]))(1)

    async def batch(self, scopes: list[Scope], status: int = 200) -> measure.Batch:
        return measure.Batch(self.app, scopes, status)

    def sends(self, *headers: tuple[bytes, bytes], status: int = 200) -> measure.Slice:
        """Return a slice of requests that all have the same headers."""
        return repeated(self.app, *headers, status=status)


def _user(pair: Pair) -> OtplessUser:
    info = {"sessionId": pair.session_id, "sessionToken": pair.token, "refreshToken": pair.refresh_token}
    user_id = f"MO-{pair.session_id}"
    return OtplessUser.model_validate({"token": user_id, "userId": user_id, "sessionInfo": info})


def repeated(app: ASGIApp, *headers: tuple[bytes, bytes], status: int = 200) -> measure.Slice:
    """Return a slice of requests that all have the same headers."""

    async def prepare(calls: int) -> measure.Batch:
        return measure.Batch(app, [scope("/", *headers) for _ in range(calls)], status)

    return measure.requests(prepare)


def cookie(token: str) -> tuple[bytes, bytes]:
    return b"cookie", f"{COOKIE}={token}".encode()


def bearer(token: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {token}".encode()


def with_cookie(token: str) -> Scope:
    return scope("/", cookie(token))


@asynccontextmanager
async def worker(
    folder: Path | None,
    inner: Callable[[], FastAPI] = bare,
    *,
    upstream: InstantOtpless | None = None,
    over_network: bool = False,
    clock: Callable[[], float] = time.time,
    **values: Any,
) -> AsyncIterator[Worker]:
    """Start a worker over a SQLite file in `folder`, or in memory. Workers of one folder share their sessions.

    `over_network`: OTPLESS is asked as the settings say, and not what stands in for it.
    """
    if "store_url" not in values:
        values["store_url"] = "memory://" if folder is None else f"sqlite:///{folder}/sessions.db"
    chosen = settings(**values)
    upstream = upstream or InstantOtpless()
    client = None if over_network else OtplessClient(chosen, http=upstream)
    sessions = OtplessSessions(chosen, client=client, clock=clock)
    app = inner()
    app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
    async with measure.lifespan(app):
        yield Worker(app, sessions, upstream, clock)
