"""One HTTP request on its way through the middleware: its session at hand, refused or served, a swap written back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastapi_otpless_session.connection import RequestSession, put_session
from fastapi_otpless_session.errors import RefusalError
from fastapi_otpless_session.session import SessionReason
from fastapi_otpless_session.sessions import OtplessSessions
from fastapi_otpless_session.transport import Transport, is_preflight

Refuse = Callable[[Scope, SessionReason], Awaitable[ASGIApp]]
"""Returns the answer to a request whose path needs a session that it does not have."""


class Serving:
    """Serves HTTP requests by an application. `root_path`: what that will add to a scope's own.

    `is_exempt` says whether a request will reach a route that needs no session, whatever `REQUIRED_PATHS` says.
    """

    def __init__(
        self,
        app: ASGIApp,
        sessions: OtplessSessions,
        transport: Transport,
        *,
        is_exempt: Callable[[Scope], bool],
        refuse: Refuse,
        root_path: str,
        has_cors: bool,
    ) -> None:
        self.sessions = sessions
        self.transport = transport
        self._app = app
        self._is_exempt = is_exempt
        self._refuse = refuse
        self._root_path = root_path
        self._has_cors = has_cors

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        transport = self.transport
        if type(scope["headers"]) is not list:  # what servers give; so nothing is called for it
            keep_headers(scope)
        request = RequestSession(self.sessions, transport, scope)
        put_session(request, scope)

        is_required = transport.has_required and transport.is_required(scope, self._root_path)
        if is_required and scope["method"] == "OPTIONS" and is_preflight(scope["headers"]):
            is_required, send = False, _to_preflight(send, has_cors=self._has_cors)
        has_started = False

        def send_with_session(message: Message) -> Awaitable[None]:
            """Send a message. Not a coroutine function: that would cost each message a coroutine."""
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                if request.was_asked_for:  # written in a copy: an application may send one message to many clients
                    message = transport.varied(message)
                    if request.has_new_token and not request.write_at_once(message):
                        return _send_swapped(request, message, send)
            return send(message)

        if (
            is_required
            and not request.settle_at_once()
            and not self._is_exempt(scope)
            and (reason := await request.settle()) is not None
        ):
            refused = await self._refuse(scope, reason)
            await refused(scope, receive, send_with_session)
            return
        try:
            await self._app(scope, receive, send_with_session)
        except RefusalError as error:  # by other middleware, where no exception handler of the application's sees it
            if has_started:
                raise
            await answer(error)(scope, receive, send_with_session)


def keep_headers(scope: Scope) -> None:
    """Have the headers of a scope be read more than once: by ASGI they may be any iterable."""
    scope["headers"] = [*scope["headers"]]


def answer(error: RefusalError) -> Response:
    """Return the answer to what is refused."""
    return JSONResponse(error.body, error.status_code, error.headers)


async def _send_swapped(request: RequestSession, message: Message, send: Send) -> None:
    await request.write(message)
    await send(message)


def _to_preflight(send: Send, *, has_cors: bool) -> Send:
    """Return what sends the answer to a preflight that `REQUIRED_PATHS` lets through.

    A CORSMiddleware's passes untouched. Where another answers, it may be what answers any method alike, such as a
    mounted `prometheus_client`: of that only what a browser looks at is sent.
    """
    is_cors = False

    async def send_to_preflight(message: Message) -> None:
        nonlocal is_cors
        kind, headers = message["type"], message.get("headers", ())
        if kind == "http.response.start":
            is_cors = has_cors and any(name.lower() == b"access-control-allow-methods" for name, _ in headers)
        if is_cors:
            await send(message)
        elif kind == "http.response.start":
            shown = [each for each in headers if _is_for_preflight(each[0].lower())]
            await send({**message, "headers": shown, "trailers": False})
        elif kind in {"http.response.body", "http.response.pathsend", "http.response.zerocopysend"}:
            await send({"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)})

    return send_to_preflight


def _is_for_preflight(name: bytes) -> bool:
    return name.startswith(b"access-control-") or name in {b"vary", b"allow"}
