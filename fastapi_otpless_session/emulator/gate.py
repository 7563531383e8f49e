"""The outermost layer: logs the calls, delays them, and lets faults have them."""

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_otpless_session.emulator.calls import CallLog, OpenCall
from fastapi_otpless_session.emulator.faults import Exchange, FaultBook, play
from fastapi_otpless_session.emulator.wire import CALL_SCOPE_KEY, CONFIGURATION, PUBLISHED

CONTROL_PREFIX = "/_emulator/"
SDK_PREFIX = "/_emulator/sdk/"

_LOGGED = PUBLISHED | {CONFIGURATION}


class Latency:
    """How long calls wait for their answers, in seconds by the ends of their paths."""

    def __init__(self) -> None:
        self._seconds: dict[str | None, float] = {}

    def set(self, path: str | None, seconds: float) -> None:
        """Delay the calls whose path ends with `path` (None: the five calls and the key set); 0 ends it."""
        if seconds:
            self._seconds[path] = seconds
        else:
            self._seconds.pop(path, None)

    def of(self, path: str) -> float:
        """How long a call to `path` waits: what was set for its path, else for all."""
        for suffix, seconds in list(self._seconds.items()):
            if suffix is not None and path.endswith(suffix):
                return seconds
        return self._seconds.get(None, 0.0) if path in PUBLISHED else 0.0

    def by_path(self) -> dict[str, float]:
        """All delays; "*" stands for all calls."""
        return {path or "*": seconds for path, seconds in list(self._seconds.items())}


class Gate:
    """An ASGI layer around the emulator's application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        log: CallLog,
        faults: FaultBook,
        latency: Latency,
        clock: Callable[[], float],
        decoy: Callable[[], Mapping[str, str]],
    ) -> None:
        self._app = app
        self._log = log
        self._faults = faults
        self._latency = latency
        self._clock = clock
        self._decoy = decoy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or is_control(scope["path"]):
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        call = self._open(path)
        await asyncio.sleep(self._latency.of(path))
        logged_scope = {**scope, CALL_SCOPE_KEY: call}
        await self._answer(logged_scope, receive, _logged(send, call), _transport(send))

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, transport: asyncio.WriteTransport | None
    ) -> None:
        fault = self._faults.take(scope["path"])
        if fault is None:
            await self._app(scope, receive, send)
        else:
            scope[CALL_SCOPE_KEY].fault = fault.kind
            await play(fault, Exchange(self._app, scope, receive, send, transport, self._decoy))

    def _open(self, path: str) -> OpenCall:
        if path in _LOGGED:
            return self._log.open(path, self._clock())
        return OpenCall(path, self._clock())


def is_control(path: str) -> bool:
    """Whether the path belongs to the control API, which steers, and is neither logged nor delayed nor ever fails."""
    return path.startswith(CONTROL_PREFIX) and not path.startswith(SDK_PREFIX)


def _logged(send: Send, call: OpenCall) -> Send:
    async def logged(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.answered(message["status"])
        await send(message)

    return logged


def _transport(send: Send) -> asyncio.WriteTransport | None:
    # A server's `send` is usually a method of an object that also has the connection.
    found = getattr(getattr(send, "__self__", None), "transport", None)
    return found if isinstance(found, asyncio.WriteTransport) else None
