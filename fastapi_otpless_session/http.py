"""The one seam to the network: send a request, get its answer, within a total deadline and a size.

Here are the protocol and the adapter of httpx; `http_aiohttp.py` has the one of aiohttp, imported where it is chosen.

httpx's own timeouts are per phase, so a server that drips a byte a second would beat them; the deadline here is total,
connection included. Redirects are not followed (one would carry `clientSecret` along), the environment's proxies are
not used, and nothing is sent twice except where no connection was made.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from http.cookiejar import Cookie, CookieJar, DefaultCookiePolicy
from typing import Protocol

import httpx

from fastapi_otpless_session.body import Body, BodyError
from fastapi_otpless_session.errors import ConfigurationError, UpstreamError
from fastapi_otpless_session.loops import PerLoop
from fastapi_otpless_session.wire import Answer, Request

KEEPALIVE_SECONDS = 60.0  # httpx's 5 would make most calls of a quiet application pay for a TLS handshake
CONNECT_ATTEMPTS_MORE = 1


class HttpSender(Protocol):
    """Whatever can send an HTTP request."""

    async def send(self, request: Request, *, deadline: float) -> Answer:
        """Return the answer to `request` within `deadline` seconds, its decoded body 64 KiB at most.

        Raises `UpstreamError` for everything else.
        """
        ...

    async def open(self) -> None:
        """Make what the running event loop needs, so that no request has to."""
        ...

    async def close(self) -> None:
        """Close what was opened for the running event loop."""
        ...


def checked_sender(http: HttpSender) -> HttpSender:
    """Return what an application gave. Raises `ConfigurationError` where it is no `HttpSender`.

    By its methods' names: as `httpx.Client` has `send` and `close`, it would only fail at the first call.
    """
    if all(callable(getattr(http, name, None)) for name in ("send", "open", "close")):
        return http
    kind = type(http)
    raise ConfigurationError(
        "http: must be an httpx.AsyncClient, or something with the methods of HttpSender (send, open, close), "
        f"not {kind.__module__}.{kind.__qualname__}"
    )


class _NoCookies(DefaultCookiePolicy):
    """Keeps none: one connection pool serves all users, and a cookie of one call has no business in the next."""

    def set_ok(self, cookie: Cookie, request: urllib.request.Request) -> bool:  # noqa: ARG002 - as the base has it
        return False


class HttpxSender:
    """Sends through httpx: one pooled client for each event loop, or the one that is given (and then not closed)."""

    def __init__(self, client: httpx.AsyncClient | None = None, *, connections: int = 100) -> None:
        self._given = client
        self._connections = connections
        self._tls: ssl.SSLContext | None = None
        self._clients: PerLoop[httpx.AsyncClient] = PerLoop(self._new_client, httpx.AsyncClient.aclose)

    async def open(self) -> None:
        """Build the client now: a TLS context takes 20 ms, too long for a request."""
        await self._client()

    async def close(self) -> None:
        """Close the running event loop's client."""
        await self._clients.close()

    async def send(self, request: Request, *, deadline: float) -> Answer:
        """Send one request. See `HttpSender`."""
        client = await self._client()
        try:
            async with asyncio.timeout(deadline):
                return await self._exchange(client, request, deadline)
        except TimeoutError:
            raise UpstreamError(f"OTPLESS did not answer within {deadline:g} s") from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            why = f"OTPLESS was not reached at {request.host}: {type(error).__name__}"
            raise UpstreamError(why, unsent=True) from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnicodeError) as error:
            # UnicodeError: httpx writes the next request of a redirect even where none is followed, odd cookies and all
            raise UpstreamError(f"OTPLESS's answer was lost: {type(error).__name__}") from None
        except RuntimeError as error:  # a client that was given, and closed; after StreamError, which is one too
            raise UpstreamError(f"OTPLESS cannot be asked: {error}", unsent=client.is_closed) from None

    async def _client(self) -> httpx.AsyncClient:
        return self._given or await self._clients.get()

    def _new_client(self) -> httpx.AsyncClient:
        self._tls = self._tls or httpx.create_ssl_context()
        limits = httpx.Limits(
            max_connections=self._connections,
            max_keepalive_connections=self._connections,
            keepalive_expiry=KEEPALIVE_SECONDS,
        )
        transport = httpx.AsyncHTTPTransport(
            verify=self._tls, limits=limits, retries=CONNECT_ATTEMPTS_MORE, trust_env=False
        )
        return httpx.AsyncClient(transport=transport, trust_env=False, cookies=CookieJar(_NoCookies()))

    async def _exchange(self, client: httpx.AsyncClient, request: Request, deadline: float) -> Answer:
        sent = _written(request, client, deadline)
        response = await client.send(sent, stream=True, follow_redirects=False, auth=None)
        body, flaw = b"", None
        try:
            body = await _read(response)
        except BodyError as error:
            flaw = str(error)
        finally:
            await response.aclose()
        received = {name.lower(): value for name, value in response.headers.items()}
        return Answer(response.status_code, received, body, flaw)


def _written(request: Request, client: httpx.AsyncClient, deadline: float) -> httpx.Request:
    """Write a request as httpx has it. On its own, so that no frame that waits for the answer has the headers.

    Not by `client.build_request`: that would add the cookies that a given client has kept from earlier answers.
    """
    headers = httpx.Headers(client.headers)
    headers.update({**request.headers, "Accept-Encoding": "identity"})
    return httpx.Request(
        request.method,
        request.url,
        headers=headers,
        content=request.body or None,
        extensions={"timeout": httpx.Timeout(deadline).as_dict()},
    )


async def _read(response: httpx.Response) -> bytes:
    if response.is_stream_consumed:
        return _read_already(response)
    body = Body(response.headers.get("content-encoding", ""))
    async for chunk in response.aiter_raw():
        body.feed(chunk)
    return body.whole()


def _read_already(response: httpx.Response) -> bytes:
    """Return what a given client's hook or transport has read, decoded by httpx; what it did not keep is lost."""
    body = Body("")
    body.feed(response.content)
    return body.whole()
