"""A websocket whose session is looked at again while it is open, and which closes when the session is over."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.connection import RequestSession
from fastapi_otpless_session.session import Session, SessionReason
from fastapi_otpless_session.transport import SUBPROTOCOL

DENIAL_EXTENSION = "websocket.http.response"
POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1


def close_message(reason: SessionReason | None) -> Message:
    """Return the message that closes a websocket for lack of a session."""
    return {"type": "websocket.close", "code": POLICY_VIOLATION, "reason": reason.code if reason else ""}


class SessionEndedError(OSError):
    """The websocket was closed for its session: an OSError is what servers raise once a client has left."""


class GuardedSocket:
    """One websocket. After it was closed for its session, its client has left, as far as the application can see.

    A client need not heed the close, and servers pass on what still comes: some for ten seconds, some for ever. Whoever
    waits for it then hears of the end with the next message; most servers' own disconnect comes sooner.
    """

    def __init__(self, request: RequestSession, receive: Receive, send: Send, recheck: float) -> None:
        self._request = request
        self._receive = receive
        self._send = send
        self._recheck = recheck
        self._is_open = False
        self._is_closed = False
        self._is_left = False
        self._ended: SessionReason | None = None
        """Why the websocket was closed for its session."""
        self.has_answered: bool = False
        """Whether the handshake has its answer."""
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Run the application on this websocket."""
        try:
            await app(scope, self.receive, self.send)
        except (SessionEndedError, WebSocketDisconnect):  # Starlette turns an OSError into its own
            if self._ended is None:
                raise
        finally:
            if self._watcher is not None:
                if self._ended is None:  # or else it may still be sending the close
                    self._watcher.cancel()
                await asyncio.wait([self._watcher])

    async def receive(self) -> Message:
        """Pass on what the client sends, as long as its session goes on."""
        self._watch()  # before waiting: it may be for ever
        message = self._end_of_it() or await self._receive()
        message = self._end_of_it() or message  # it may have come later
        if message["type"] == "websocket.disconnect":
            self._is_left = True
        self._watch()
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application sends, a swapped token with the handshake."""
        if self._ended is not None and message["type"] == "websocket.send":
            raise SessionEndedError  # or else an application that only sends would go on for ever
        if self._is_closed:
            return
        if message["type"] == "websocket.accept":
            message = await self._written(message)
            if self._has_own_subprotocol(message):
                message["subprotocol"] = SUBPROTOCOL
            self._is_open = True
        elif message["type"] == "websocket.http.response.start":
            if self._is_open and self._request.reason is not None:
                await self._refuse(self._request.reason)
                return
            message = await self._written(message)
        elif message["type"] == "websocket.close":
            self._is_closed = True
        self.has_answered = True
        await self._send(message)
        self._watch()

    def _end_of_it(self) -> Message | None:
        """Return what there is to receive once the websocket was closed for its session."""
        if self._ended is None:
            return None
        return {"type": "websocket.disconnect", "code": POLICY_VIOLATION, "reason": self._ended.code}

    async def _refuse(self, reason: SessionReason) -> None:
        """Close what has been accepted: an exception handler's answer to a refusal comes too late for a handshake."""
        self._is_closed = True
        await self._send(close_message(reason))

    async def _written(self, message: Message) -> Message:
        """Return the message with what is ours in its headers, as one that the application will not send again."""
        message = self._request.transport.varied(message) if self._request.was_asked_for else {**message}
        if self._request.has_new_token:
            await self._request.write(message)
        return message

    def _has_own_subprotocol(self, message: Message) -> bool:
        return self._request.is_offered and not message.get("subprotocol")

    def _watch(self) -> None:
        """Start watching once the websocket is open: somebody may ask for its session without another message."""
        if self._watcher is None and self._is_open:
            self._watcher = asyncio.create_task(self._look_again())

    async def _rechecked(self, session: Session) -> Session | SessionReason:
        try:
            known_only = self._request.presented.is_cookie_only
            return await self._request.sessions.recheck(session, known_only=known_only)
        except Exception:  # noqa: BLE001 - an unwatched websocket would outlive its session
            telemetry.logger.exception("A websocket's session could not be looked at")
            return SessionReason.UNAVAILABLE

    async def _look_again(self) -> None:
        session: Session | None = None
        while True:
            await asyncio.sleep(self._recheck)
            if self._is_closed or self._is_left:  # an application that goes on alone is no activity of anybody's
                return
            asked = session or self._request.outcome
            if not isinstance(asked, Session):
                continue
            outcome = await self._rechecked(asked)
            if isinstance(outcome, Session):
                session = outcome
            elif outcome is not SessionReason.UNAVAILABLE:
                await self._end(outcome)
                return

    async def _end(self, reason: SessionReason) -> None:
        """Close the websocket, unless the application just did."""
        if self._is_closed:
            return
        self._is_closed, self._ended = True, reason
        telemetry.websocket_closes.add(1, telemetry.labels(reason=reason.value))
        with suppress(Exception):  # the client may have left just now
            await self._send(close_message(reason))
