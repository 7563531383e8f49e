"""Runs an emulator on a real socket."""

import asyncio
import importlib
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from fastapi_otpless_session.emulator.connection import script_tag, settings_lines
from fastapi_otpless_session.emulator.emulator import Emulator
from fastapi_otpless_session.emulator.gate import CONTROL_PREFIX
from fastapi_otpless_session.emulator.live import IS_ENDING

_POLL_SECONDS = 0.005
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection that is idle: one that both ends let go of at once would lose a call."""


class ServerMissingError(RuntimeError):
    """uvicorn, which serves the emulator, is not installed."""


@contextmanager
def serve(emulator: Emulator, host: str = "127.0.0.1", port: int = 0) -> Generator[str]:
    """Serve the emulator from a thread as long as the context lasts; yields its base URL.

    Port 0 takes any free port. Raises `ServerMissingError` without uvicorn, OSError if the port is taken.
    """
    uvicorn = _uvicorn()
    with _bound(host, port) as listener:
        server = _server(uvicorn, emulator)
        thread = threading.Thread(target=_run, args=(server, listener), name="otpless-emulator", daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield _url(listener)
        finally:
            server.should_exit = True
            thread.join()


def run(emulator: Emulator, host: str = "127.0.0.1", port: int = 8701) -> None:
    """Serve the emulator until Ctrl-C, printing first how an application finds it. Raises as `serve` does."""
    uvicorn = _uvicorn()
    with _bound(host, port) as listener:
        server = _server(uvicorn, emulator)
        url = _url(listener)
        print(_greeting(emulator, url), flush=True)  # noqa: T201
        # After its own clean end, uvicorn raises the signal once more.
        with suppress(KeyboardInterrupt):
            _run(server, listener)


def _greeting(emulator: Emulator, url: str) -> str:
    return (
        f"OTPLESS emulator on {url} (its page: {url}{CONTROL_PREFIX} - Ctrl-C ends it)\n\n"
        f"Your application's settings:\n\n{settings_lines(emulator.settings, url)}\n\n"
        f"In its sign-in page:\n\n{script_tag(emulator.settings, url)}"
    )


def _uvicorn() -> ModuleType:
    try:
        return importlib.import_module("uvicorn")
    except ModuleNotFoundError:
        raise ServerMissingError('The emulator is served by uvicorn: install "fastapi-otpless-session[cli]".') from None


def _server(uvicorn: ModuleType, emulator: Emulator) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await emulator.app({**scope, IS_ENDING: lambda: server.should_exit}, receive, send)

    server = uvicorn.Server(_config(uvicorn, app))
    return server


def _config(uvicorn: ModuleType, app: ASGIApp) -> Any:
    # Lost connections are its purpose, so that the server must neither log nor wait for them.
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )


def _bound(host: str, port: int) -> socket.socket:
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # asyncio sees to this only where the socket names its protocol. Connections inherit it, and without it
    # each answer but the first waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    # Where it listens at all addresses it is named by the one that an application takes without https.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run(server: Any, listener: socket.socket) -> None:
    asyncio.run(_serve(server, listener))


async def _serve(server: Any, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    # One more round for the transports to close their sockets.
    await asyncio.sleep(_POLL_SECONDS)


def _wait_until_started(server: Any, thread: threading.Thread) -> None:
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the emulator's server did not start")
        time.sleep(_POLL_SECONDS)
