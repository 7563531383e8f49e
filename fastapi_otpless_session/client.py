"""`OtplessClient`: OTPLESS's five calls and its key set, with deadlines, a breaker and a cap on concurrency."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import Attributes
from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens, wire
from fastapi_otpless_session.breaker import Breakers
from fastapi_otpless_session.errors import (
    ConfigurationError,
    CredentialsRefusedError,
    NoVerdictError,
    OtplessSessionError,
    RefusalError,
    UpstreamError,
    bare,
)
from fastapi_otpless_session.gate import Gate
from fastapi_otpless_session.http import HttpSender, HttpxSender, checked_sender
from fastapi_otpless_session.keys import KeyCache
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import Claims, KeySet, TokenError
from fastapi_otpless_session.wire import SignInProof, TokenPair, Verdict

T = TypeVar("T")

SHARE_OF_PATIENCE = 0.5
"""How much of its deadline a call has to go without an answer to count as failed, where its caller gives up on it."""


class OtplessClient:
    """Talks to OTPLESS. Usable from several event loops; `http` is an `httpx.AsyncClient` or an `HttpSender` of yours.

    Without `http`, the settings choose. Raises `ConfigurationError` where what they choose is not installed, and where
    `http` is neither.

    Every method raises `UpstreamError` where OTPLESS gives no verdict: it was not reached in time, failed, or made no
    sense; `CredentialsRefusedError` where it refused the client's own credentials.

    Their tracebacks show no token, not even with the frames' local variables, as error reporters collect them: the
    methods that take one are no coroutines, so that their frames are gone when the call is made, and an error leaves
    behind those of the answer that it was about.
    """

    def __init__(
        self,
        settings: OtplessSettings,
        *,
        http: httpx.AsyncClient | HttpSender | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._secret = settings.client_secret.get_secret_value()
        telemetry.salt_labels(settings.client_id, self._secret)
        self._owns_http = http is None
        if http is None:
            http = new_sender(settings)
        elif isinstance(http, httpx.AsyncClient):
            http = HttpxSender(http)
        self._http: HttpSender = checked_sender(http)
        self._monotonic = monotonic
        self._breakers = Breakers(monotonic)
        telemetry.watch_breaker(self._breakers)
        self._gate = Gate(settings.max_upstream)
        self._keys = KeyCache(self._fetch_keys, monotonic)
        urls = {settings.base_url + path: name for path, name in wire.CALL_NAMES.items()}
        self._calls = {url: _Call.of(name, url) for url, name in urls.items()}
        self._calls[settings.jwks_url] = _Call.of("jwks", settings.jwks_url, "GET")

    async def open(self) -> None:
        """Make the running event loop's connection pool, so that no request has to."""
        await self._http.open()

    async def close(self) -> None:
        """Close the running event loop's connection pool, unless it was given."""
        await self._keys.close()
        if self._owns_http:
            await self._http.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def validate_session(self, session_token: str, *, known: bool = True) -> Coroutine[Any, Any, Verdict]:
        """Ask whether a session token is valid (validate-session). `known`: the session was signed in here."""
        request = self._request(wire.VALIDATE_SESSION, {"sessionToken": session_token})
        return self._call(request, wire.read_validation, known=known)

    def new_session_token(self, refresh_token: str, *, known: bool = True) -> Coroutine[Any, Any, TokenPair | Verdict]:
        """Exchange a refresh token for a new pair (get-new-session-token). Keep what comes back, both of them."""
        request = self._request(wire.NEW_SESSION_TOKEN, {"refreshToken": refresh_token})
        return self._call(request, wire.read_new_tokens, known=known, deadline=self._settings.refresh_timeout)

    def session_details(
        self, session_token: str, *, known: bool = True
    ) -> Coroutine[Any, Any, SessionDetails | Verdict]:
        """Return who and where a session is (get-session-details)."""
        request = self._request(wire.SESSION_DETAILS, {"sessionToken": session_token})
        return self._call(request, wire.read_details, known=known)

    def revoke_session(self, session_token: str, *, known: bool = True) -> Coroutine[Any, Any, Verdict]:
        """Kill a session's tokens (revoke-session). VALID: done; other verdicts: there was nothing to kill."""
        request = self._request(wire.REVOKE_SESSION, {"sessionToken": session_token})
        return self._call(request, wire.read_revocation, known=known)

    def validate_sign_in(self, token: str) -> Coroutine[Any, Any, SignInProof]:
        """Redeem the frontend SDK's one-time token (validate/token). Raises `SignInRefusedError`."""
        return self._call(self._request(wire.VALIDATE_TOKEN, {"token": token}), wire.read_sign_in, known=False)

    def verify(self, token: str, *, now: bool = False) -> Coroutine[Any, Any, Claims]:
        """Check a token's signature and issuer with OTPLESS's key set.

        Raises `TokenError` where it does not hold up, `UpstreamError` where the keys are out of reach. `now`: or where
        its key is unknown, and OTPLESS may not be asked for it yet.
        """
        return self._verified(SecretStr(token), now=now)

    async def _verified(self, token: SecretStr, *, now: bool) -> Claims:
        try:
            keys = await self._keys.get(tokens.kid(token.get_secret_value()), now=now)
            return tokens.verify(token.get_secret_value(), keys, self._settings.issuer)
        except (TokenError, NoVerdictError) as error:
            raise bare(error) from None

    async def _fetch_keys(self) -> KeySet:
        request = wire.jwks_call(self._settings.jwks_url)
        return await self._exchange(request, wire.read_jwks, self._settings.request_timeout)

    def _request(self, path: str, body: dict[str, str]) -> wire.Request:
        return wire.call(self._settings.base_url, path, self._settings.client_id, self._secret, body)

    async def _call(
        self,
        request: wire.Request,
        read: Callable[[wire.Answer], T],
        *,
        known: bool = True,
        deadline: float | None = None,
    ) -> T:
        ends_at = self._monotonic() + (deadline or self._settings.request_timeout)
        try:
            if self._breakers.of(known=known).refuses():  # at once, rather than after waiting for a place
                raise _held_back()
            place = await self._gate.enter(known=known, deadline=ends_at - self._monotonic())
            try:
                return await self._guarded(request, read, ends_at, known=known)
            finally:
                place.leave()
        except OtplessSessionError as error:
            raise bare(error) from None

    async def _guarded(
        self, request: wire.Request, read: Callable[[wire.Answer], T], ends_at: float, *, known: bool
    ) -> T:
        if not self._breakers.of(known=known).admit():
            raise _held_back()
        started = self._monotonic()
        try:
            result = await self._exchange(request, read, max(0.001, ends_at - started))
        except UpstreamError as error:
            self._took_note(error, started, known=known)
            raise
        except RefusalError:
            self._breakers.succeeded(started)
            raise
        except asyncio.CancelledError:  # where callers give up early, nothing else would tell of an OTPLESS that hangs
            if self._monotonic() - started >= (ends_at - started) * SHARE_OF_PATIENCE:
                self._breakers.failed(started, known=known)
            raise
        else:
            self._breakers.succeeded(started)
            return result

    async def _exchange(self, request: wire.Request, read: Callable[[wire.Answer], T], deadline: float) -> T:
        """Send a request and read its answer, measured."""
        call, started, outcome = self._calls[request.url], self._monotonic(), "fault"
        try:
            with telemetry.span(call.span, call.attributes, SpanKind.CLIENT) as span:
                answer = await self._http.send(request, deadline=deadline)
                span.set_attribute("http.response.status_code", answer.status)
                result = read(answer)
        except RefusalError:
            outcome = "answer"
            raise
        except UpstreamError as error:
            outcome = _kind_of(error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        else:
            outcome = "answer"
            return result
        finally:
            telemetry.upstream_duration.record(
                self._monotonic() - started, telemetry.labels(call=call.name, outcome=outcome)
            )

    def _took_note(self, error: UpstreamError, began_at: float, *, known: bool) -> None:
        if isinstance(error, CredentialsRefusedError):
            telemetry.logger.error("%s", error)
        else:
            telemetry.logger.warning("No verdict: %s", error)
        if error.healthy:
            self._breakers.succeeded(began_at)
        else:
            self._breakers.failed(began_at, error.retry_after, known=known)


@dataclass(frozen=True, slots=True)
class _Call:
    """How one of the calls is told in metrics and spans."""

    name: str
    span: str
    attributes: Attributes

    @classmethod
    def of(cls, name: str, url: str, method: str = "POST") -> Self:
        return cls(name, f"otpless {name}", telemetry.call_attributes(method, url))


def new_sender(settings: OtplessSettings) -> HttpSender:
    """Return what sends requests, as `OTPLESS_HTTP_CLIENT` says. Raises `ConfigurationError` where it is missing."""
    if settings.http_client == "httpx":
        return HttpxSender(connections=settings.max_upstream)
    try:  # only imported where it is chosen: the package need not be there
        from fastapi_otpless_session.http_aiohttp import AiohttpSender  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            'OTPLESS_HTTP_CLIENT: aiohttp needs more packages: pip install "fastapi-otpless-session[fast]"'
        ) from error
    return AiohttpSender(connections=settings.max_upstream)


def _kind_of(error: UpstreamError) -> str:
    if isinstance(error, CredentialsRefusedError):
        return "credentials"
    return "unreached" if error.unsent else "fault"


def _held_back() -> UpstreamError:
    telemetry.upstream_rejections.add(1, telemetry.labels(reason="breaker"))
    return UpstreamError("OTPLESS has been failing; not asked again yet", unsent=True)
