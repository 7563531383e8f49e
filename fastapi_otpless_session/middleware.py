"""`OtplessSessionMiddleware`: pure ASGI, for http and websocket; the lifespan opens and closes what it owns."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, cast

from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.connection import EXEMPT_MARK, RequestSession, put_session
from fastapi_otpless_session.errors import ConfigurationError, OtplessSessionError, RefusalError, refusal
from fastapi_otpless_session.loops import check_loop
from fastapi_otpless_session.script import SCRIPT_PATH
from fastapi_otpless_session.serving import Serving, answer, keep_headers
from fastapi_otpless_session.session import SessionReason
from fastapi_otpless_session.sessions import OtplessSessions
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.transport import Transport
from fastapi_otpless_session.websocket import DENIAL_EXTENSION, GuardedSocket, close_message

OnRefusal = Callable[[HTTPConnection, RefusalError], Response | Awaitable[Response | None] | None]


class OtplessSessionMiddleware:
    """Gives each request its session.

    `settings` default to the `OTPLESS_*` variables and are read at startup, so that wrong ones keep the server from
    starting. `sessions`: yours, with settings of their own; opened here unless you did.

    `on_refusal(connection, error)` is called for a request that `REQUIRED_PATHS` refuses. It returns the response, or
    None for the default JSON; where it raises a `RefusalError`, that one's JSON is sent. A response of its with status
    401 gets `WWW-Authenticate`, where it is for want of a session and has none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: OtplessSettings | None = None,
        sessions: OtplessSessions | None = None,
        on_refusal: OnRefusal | None = None,
    ) -> None:
        self.app = app
        self._root_path = next((inner.root_path for inner in _inside(app) if hasattr(inner, "root_path")), "")
        self._settings = settings
        self._given = sessions
        self._on_refusal = on_refusal
        self._serving: Serving | None = None
        self._has_told_of_routes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await (self._serving or self._ready()).serve(scope, receive, send)
        else:
            await self._not_http(scope, receive, send)

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "websocket":
                await self._websocket(scope, receive, send)
            case "lifespan":
                await self._lifespan(scope, receive, send)
            case _:
                await self.app(scope, receive, send)

    def _ready(self) -> Serving:
        """Return what serves requests, made on first use. Raises `ConfigurationError`."""
        if self._serving is None:
            check_loop()
            sessions = self._given or OtplessSessions(self._settings)
            if self._settings is not None and self._settings != sessions.settings:
                raise ConfigurationError(
                    "OtplessSessionMiddleware: settings and sessions are given, and the sessions have others of their "
                    "own: write sessions=OtplessSessions(settings, …) alone"
                )
            transport = Transport(sessions.settings)
            has_cors = any(isinstance(inner, CORSMiddleware) for inner in _inside(self.app))
            self._serving = Serving(
                self.app,
                sessions,
                transport,
                is_exempt=self._is_exempt,
                refuse=self._refusal,
                root_path=self._root_path,
                has_cors=has_cors,
            )
        return self._serving

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = self._ready()
        sessions, transport = serving.sessions, serving.transport
        keep_headers(scope)
        scope, offered = transport.take_subprotocols(scope)
        request = RequestSession(sessions, transport, scope, offered)
        put_session(request, scope)
        if transport.is_required(scope, self._root_path):
            reason = await request.settle()
            if reason is not None:
                await self._deny(await self._refusal(scope, reason), request, scope, receive, send)
                return
        socket = GuardedSocket(request, receive, send, sessions.settings.websocket_recheck)
        try:
            await socket.run(self.app, scope)
        except RefusalError as error:  # by other middleware, as over HTTP
            if socket.has_answered:
                raise
            await self._deny(answer(error), request, scope, receive, send)

    async def _refusal(self, scope: Scope, reason: SessionReason) -> ASGIApp:
        """Return the answer to a request whose path needs a session that it does not have."""
        own = None if self._on_refusal is None else await self._restyled(self._on_refusal, scope, refusal(reason))
        return own or _REFUSALS.get(reason) or answer(refusal(reason))

    def _is_exempt(self, scope: Scope) -> bool:
        return _may_be_exempt(scope) and _is_exempt(self._routed(scope), self._routes(scope))

    @staticmethod
    async def _restyled(ask: OnRefusal, scope: Scope, error: RefusalError) -> ASGIApp | None:
        """Return the application's own answer; None where it has none. A path that is refused is never let through."""
        connection = HTTPConnection(scope)
        try:
            own = ask(connection, error)
            return _challenging(await own if inspect.isawaitable(own) else own, error)
        except RefusalError as raised:
            return answer(raised)
        except HTTPException as raised:  # the application's handlers are further in
            shown = await http_exception_handler(cast("Request", connection), raised)  # it looks at the exception only
            return _challenging(shown, error)

    def _routed(self, scope: Scope) -> Mapping[str, Any]:
        """Return a scope as the router will have it: an application may add a prefix that it is served under."""
        return {**scope, "root_path": self._root_path} if self._root_path else scope

    def _routes(self, scope: Scope) -> Any:
        routes = _routes_of(self.app) or _routes_of(scope.get("app"))
        if not routes and not self._has_told_of_routes:
            self._has_told_of_routes = True
            telemetry.logger.warning(
                "OTPLESS_REQUIRED_PATHS: no routes are to be seen in what the middleware wraps, so that the sign-in "
                "route is not exempt by itself. Name it in OTPLESS_EXEMPT_PATHS, or use app.add_middleware"
            )
        return routes

    async def _deny(
        self, refused: ASGIApp, request: RequestSession, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Refuse a handshake: with the answer where the server can send one, else with a close (which is a 403)."""

        async def send_varied(message: Message) -> None:
            if "headers" in message:
                message = request.transport.varied(message)
            await send(message)

        if DENIAL_EXTENSION in scope.get("extensions", {}):
            await refused(scope, receive, send_varied)
        else:
            await send(close_message(request.reason))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open before the application starts, close after it stopped; what cannot open keeps the server from starting.

        Raising alone would not do that: servers take it to mean that the application has no lifespan. But whoever does
        not stop by himself, as a `TestClient`, has to get the error, as from Starlette's own lifespan.
        """
        startup = await receive()
        try:
            sessions = self._ready().sessions
            is_to_be_closed = not sessions.is_open
            await sessions.open()
        except Exception as error:  # whatever it is, the server must not start as if it were nothing
            is_ours = isinstance(error, OtplessSessionError)
            telemetry.logger.critical("Not started: %s", error, exc_info=not is_ours)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        pending = [startup]

        async def receive_again() -> Message:
            return pending.pop() if pending else await receive()

        async def close() -> None:
            nonlocal is_to_be_closed
            if is_to_be_closed:
                await sessions.close()
            is_to_be_closed = False  # a server that knows it is over may cancel what goes on, and would say so

        async def send_and_close(message: Message) -> None:
            if message["type"] in {"lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
                await close()
            await send(message)

        try:
            await self.app(scope, receive_again, send_and_close)
        finally:
            await close()


def _inside(app: Any) -> Iterator[Any]:
    """An application and what it wraps: what is between us and the router is other middleware, as a rule."""
    while app is not None:
        yield app
        app = getattr(app, "app", None)


def _routes_of(app: Any) -> Any:
    return next((inner.routes for inner in _inside(app) if hasattr(inner, "routes")), ())


def _challenging(own: Response | None, error: RefusalError) -> ASGIApp | None:
    """Return an application's answer; a 401 with our challenge, if it has none (RFC 9110, section 15.5.2, wants one).

    By that `client.js` knows that a session is over. It goes into what is sent, and not into the response: a fault may
    be answered with the same object.
    """
    challenge = (error.headers or {}).get("WWW-Authenticate")
    is_lacking = own is not None and own.status_code == error.status_code == HTTPStatus.UNAUTHORIZED
    if own is None or not is_lacking or challenge is None or "www-authenticate" in own.headers:
        return own

    async def challenged(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_challenging(message: Message) -> None:
            if "headers" in message:
                message = {**message, "headers": [*message["headers"], (b"www-authenticate", challenge.encode())]}
            await send(message)

        await own(scope, receive, send_challenging)

    return challenged


def _may_be_exempt(scope: Mapping[str, Any]) -> bool:
    """Whether it is worth asking the routes: most requests without a session are to be refused at little cost."""
    method = scope.get("method")
    return method == "POST" or (method == "GET" and scope["path"].endswith(SCRIPT_PATH))


def _is_exempt(scope: Mapping[str, Any], routes: Any) -> bool:
    """Whether a request will reach a route of the router's that needs no session: asked of the routes themselves."""
    probe = {**scope}
    for route in routes:
        try:
            found, child = route.matches(probe)
        except ValueError:  # a number of more digits than `int` reads
            return False
        if found is Match.FULL:
            return EXEMPT_MARK in probe or _is_exempt({**probe, **child}, _routes_of(child.get("endpoint")))
    return False


_REFUSALS: dict[SessionReason, Response] = {
    reason: answer(refusal(reason)) for reason in SessionReason if reason is not SessionReason.UNAVAILABLE
}
"""The answers that are the same each time. What is written into a response's headers goes into a copy of them."""
