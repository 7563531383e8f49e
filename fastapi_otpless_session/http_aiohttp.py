"""The adapter of aiohttp, for applications that ask OTPLESS often: it costs a fraction of httpx's CPU (extra `fast`).

It keeps `HttpSender`'s promises as `HttpxSender` does. What differs underneath:

- aiohttp sends a GET again when a kept connection turns out to be closed. A middleware on those requests hides the
  errors that it would do so for: whatever was sent is sent once. (A POST it never repeats.)
- It learns of a connection that the server closed from the event loop, before it hands it to a request.
- Names are looked up in a thread, or by aiodns where that is installed, and remembered for ten seconds.
"""

from __future__ import annotations

import asyncio
import ssl

import aiohttp
import httpx
from aiohttp.http import HttpProcessingError

from fastapi_otpless_session.body import Body, BodyError
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.http import KEEPALIVE_SECONDS
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.wire import Answer, Request

SHARE_OF_CONNECTING = 0.9
"""How much of its deadline a call may spend until it has a connection: one that has none by then was certainly not
sent, where one whose deadline ends later may have been."""
NEVER = float("inf")
UNREACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL, UnicodeError)
"""What aiohttp raises before anything is sent. `UnicodeError`: of the lookup, for a name that can be none."""


class AiohttpSender:
    """Sends through aiohttp: one pooled session for each event loop."""

    def __init__(self, *, connections: int = 100) -> None:
        self._connections = connections
        self._tls: ssl.SSLContext | None = None
        self._sessions: PerLoop[aiohttp.ClientSession] = PerLoop(self._new_session, aiohttp.ClientSession.close)

    async def open(self) -> None:
        """Build the session now: a TLS context takes 20 ms, too long for a request."""
        await self._sessions.get()

    async def close(self) -> None:
        """Close the running event loop's session."""
        await self._sessions.close()

    async def send(self, request: Request, *, deadline: float) -> Answer:
        """Send one request. See `HttpSender`."""
        session = await self._sessions.get()
        try:
            async with asyncio.timeout(deadline):
                return await _exchange(session, request, deadline)
        except UNREACHED as error:
            why = f"OTPLESS was not reached at {request.host}: {type(error).__name__}"
            raise UpstreamError(why, unsent=True) from None
        except TimeoutError:
            raise UpstreamError(f"OTPLESS did not answer within {deadline:g} s") from None
        except (aiohttp.ClientError, HttpProcessingError, OSError) as error:
            raise UpstreamError(f"OTPLESS's answer was lost: {type(error).__name__}") from None

    def _new_session(self) -> aiohttp.ClientSession:
        if self._tls is None:
            self._tls = httpx.create_ssl_context()  # the same authorities, whichever library is chosen
            self._tls.set_alpn_protocols(["http/1.1"])
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=self._connections, keepalive_timeout=KEEPALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),  # one pool serves all users: a cookie of one call is kept for no other
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=False,
        )


async def _exchange(session: aiohttp.ClientSession, request: Request, deadline: float) -> Answer:
    try:
        response = await _begin(session, request, deadline)
    except aiohttp.ClientConnectorError:
        response = await _begin(session, request, deadline)  # no connection was made, so nothing was sent
    body, flaw = b"", None
    try:
        body = await _read(response)
    except BaseException as error:
        response.close()  # with something left to read, the connection is of no more use
        if not isinstance(error, BodyError):
            raise
        flaw = str(error)
    return Answer(response.status, _headers(response), body, flaw)


async def _begin(session: aiohttp.ClientSession, request: Request, deadline: float) -> aiohttp.ClientResponse:
    return await session.request(
        request.method,
        request.url,
        headers=request.headers,
        data=request.body or None,
        allow_redirects=False,
        timeout=aiohttp.ClientTimeout(connect=deadline * SHARE_OF_CONNECTING, ceil_threshold=NEVER),
        middlewares=() if request.method == "POST" else (_once,),
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    headers, content = response.headers, response.content
    if headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":  # aiohttp would leave it as it is
        raise BodyError("it has an encoding that was not asked for")
    body = Body(", ".join(headers.getall("Content-Encoding", ())))
    while not content.at_eof():
        body.feed(await content.readany())
    return body.whole()


def _headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """Return the headers with their names in lower case; the values of one that occurs twice are joined."""
    received: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        received[key] = f"{received[key]}, {value}" if key in received else value
    return received


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Turn the errors after which aiohttp sends a request again into one after which it does not."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(type(error).__name__) from None
