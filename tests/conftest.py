"""A real application, a real store, and the emulator in place of OTPLESS."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import CERTIFICATE, write_certificate
from fastapi import FastAPI
from fastapi.testclient import TestClient
from processes import PATIENCE

from fastapi_otpless_session import (
    CurrentSession,
    CurrentSessionDetails,
    FreshSession,
    OptionalSession,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    OtplessSettings,
    create_session_router,
    serving,
    telemetry,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings

for number in (signal.SIGINT, signal.SIGQUIT):  # a shell has what runs in the background ignore them, and its children
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)

pytest_plugins = ["backends", "browser", "doctored", "traced"]
EMULATOR_URL = "http://otpless.localhost"
NOW = 1_900_000_000.0

interpreted_only = pytest.mark.skipif(
    not serving.__file__.endswith(".py"), reason="looks at frames, of which compiled code has none"
)
"""Of a test that the compiled package (`make test-compiled`) cannot be put to."""


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no `.env` of whoever runs the tests reaches them."""
    import os  # noqa: PLC0415 - only here

    for name in list(os.environ):
        if name.startswith("OTPLESS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """HTTP clients trust one certificate: to read all of a system takes them long, and no test calls the world."""
    folder = tmp_path_factory.mktemp("authority")
    write_certificate(folder, "nobody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / CERTIFICATE))
        yield


@pytest.fixture(scope="session", autouse=True)
def _patient_requests() -> Iterator[None]:
    """What tests send by httpx has as long as a busy machine needs; by itself it gives up after five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for phase in ("connect", "read", "write", "pool"):
            patch.setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, PATIENCE)
        yield


@pytest.fixture(autouse=True)
def _labels_as_in_the_workers() -> None:
    """Sessions have the names in this process that they have in the logs of workers with the emulator's credentials."""
    telemetry.salt_labels(*_credentials())


@cache
def _credentials() -> tuple[str, str]:
    emulator = EmulatorSettings()
    return emulator.client_id, emulator.client_secret


@dataclass
class Clock:
    """Time that passes only when a test says so."""

    now: float = NOW

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["httpx", "aiohttp"])
def http_client(request: pytest.FixtureRequest) -> str:
    """The library that calls OTPLESS: what goes over sockets is the same with each of them."""
    return str(request.param)


def make_settings(**values: Any) -> OtplessSettings:
    """Settings for the emulator, in memory."""
    emulator = EmulatorSettings()
    defaults: dict[str, Any] = {
        "client_id": emulator.client_id,
        "client_secret": emulator.client_secret,
        "base_url": EMULATOR_URL,
        "jwks_url": f"{EMULATOR_URL}/.well-known/jwks",
        "store_url": "memory://",
    }
    return OtplessSettings(**{**defaults, **values})


def add_routes(app: FastAPI) -> FastAPI:
    """The application's own routes: public, signed in, optional, fresh, details."""

    @app.get("/public")
    async def public() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/orders")
    async def orders(session: CurrentSession) -> dict[str, Any]:
        return {
            "id": session.id,
            "user": session.user_id,
            "refreshed": session.refreshed,
            "stale": session.stale,
        }

    @app.post("/orders")
    async def order(session: CurrentSession) -> dict[str, Any]:
        return {"user": session.user_id}

    @app.get("/maybe")
    async def maybe(session: OptionalSession) -> dict[str, Any]:
        return {"user": session.user_id if session else None}

    @app.get("/fresh")
    async def fresh(session: FreshSession) -> dict[str, Any]:
        return {"user": session.user_id}

    @app.get("/details")
    async def details(details: CurrentSessionDetails) -> dict[str, Any]:
        return details.model_dump(mode="json")

    return app


@cache
def _template() -> FastAPI:
    app = add_routes(FastAPI(openapi_url=None))
    app.include_router(create_session_router(), prefix="/auth")
    return app


def make_app() -> FastAPI:
    """Return an application with those routes, and ours under /auth: made once, for FastAPI takes long for them."""
    app = FastAPI()
    app.router.routes.extend(_template().routes)
    return app


@dataclass
class World:
    """An application, its client with a cookie jar, the emulator, and the clock that all of them share."""

    clock: Clock
    emulator: Emulator
    settings: OtplessSettings
    sessions: OtplessSessions
    app: FastAPI
    client: TestClient
    extra: dict[str, Any] = field(default_factory=dict)

    def sign_in(self, *, channel: str = "cookie", **values: Any) -> dict[str, Any]:
        """Sign in as the SDK's page does; return the SDK's user."""
        user = self.emulator.sign_in(**values)
        answer = self.client.post("/auth/login", params={"channel": channel}, json=user)
        assert answer.status_code == 200, answer.text
        return user

    def session_id(self, user: dict[str, Any]) -> str:
        return str(user["sessionInfo"]["sessionId"])

    def token(self, user: dict[str, Any]) -> str:
        return str(user["sessionInfo"]["sessionToken"])

    def call(self, function: Callable[..., Any], *values: Any) -> Any:
        """Call something asynchronous on the application's event loop."""
        assert self.client.portal is not None
        return self.client.portal.call(function, *values)

    def get(self, path: str, token: str | None = None, **headers: str) -> Any:
        """Request with a token on the header channel, or with the cookie jar where there is none."""
        if token is not None:
            headers["X-Session-Token"] = token
        return self.client.get(path, headers=headers)


@pytest.fixture
def make_world(clock: Clock) -> Iterator[Callable[..., World]]:
    """Build applications whose lifespan runs; `emulator` and other settings may be given."""
    opened: list[TestClient] = []

    def build(
        emulator: Emulator | EmulatorSettings | None = None, *, middleware: dict[str, Any] | None = None, **values: Any
    ) -> World:
        if not isinstance(emulator, Emulator):
            emulator = Emulator(emulator or EmulatorSettings(), clock=clock)
        settings = make_settings(**values)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
        sessions = OtplessSessions(settings, client=OtplessClient(settings, http=http, monotonic=clock), clock=clock)
        app = make_app()
        app.add_middleware(OtplessSessionMiddleware, sessions=sessions, **(middleware or {}))
        client = TestClient(app, base_url="https://shop.example")
        client.__enter__()
        opened.append(client)
        return World(clock, emulator, settings, sessions, app, client)

    yield build
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
