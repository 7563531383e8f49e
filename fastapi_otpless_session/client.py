"""`OtplessClient`: OTPLESS's five calls and its key set, with deadlines, a breaker and a cap on concurrency."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens, wire
from fastapi_otpless_session.calls import Calls
from fastapi_otpless_session.errors import (
    ConfigurationError,
    NoVerdictError,
    bare,
)
from fastapi_otpless_session.http import HttpSender, HttpxSender, checked_sender
from fastapi_otpless_session.keys import KeyCache
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import Claims, KeySet, TokenError
from fastapi_otpless_session.wire import SignInProof, TokenPair, Verdict

VALIDATIONS_REMEMBERED = 100
"""How many requests to validate-session are kept. A refresh token is in none of them."""


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
        secret = settings.client_secret.get_secret_value()
        telemetry.salt_labels(settings.client_id, secret)
        self._credentials = wire.credentials(settings.client_id, secret)
        self._owns_http = http is None
        if http is None:
            http = new_sender(settings)
        elif isinstance(http, httpx.AsyncClient):
            http = HttpxSender(http)
        self._http: HttpSender = checked_sender(http)
        self._calls = Calls(settings, self._http, monotonic)
        telemetry.watch(self)
        self._keys = KeyCache(self._fetch_keys, monotonic)
        # Who is asked about on each request is asked about in the same words: that saves a thirtieth of a bare route.
        self._validation = lru_cache(VALIDATIONS_REMEMBERED)(self._new_validation)

    @property
    def client_id(self) -> str:
        """Whom OTPLESS takes this client for."""
        return self._settings.client_id

    @property
    def is_held_back(self) -> bool:
        """Whether OTPLESS has been failing, so that calls are held back but for a probe a second."""
        return self._calls.is_held_back

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
        return self._calls.make(self._validation(session_token), wire.read_validation, known=known)

    def new_session_token(self, refresh_token: str, *, known: bool = True) -> Coroutine[Any, Any, TokenPair | Verdict]:
        """Exchange a refresh token for a new pair (get-new-session-token). Keep what comes back, both of them."""
        request = self._request(wire.NEW_SESSION_TOKEN, {"refreshToken": refresh_token})
        return self._calls.make(request, wire.read_new_tokens, known=known, deadline=self._settings.refresh_timeout)

    def session_details(
        self, session_token: str, *, known: bool = True
    ) -> Coroutine[Any, Any, SessionDetails | Verdict]:
        """Return who and where a session is (get-session-details)."""
        request = self._request(wire.SESSION_DETAILS, {"sessionToken": session_token})
        return self._calls.make(request, wire.read_details, known=known)

    def revoke_session(self, session_token: str, *, known: bool = True) -> Coroutine[Any, Any, Verdict]:
        """Kill a session's tokens (revoke-session). VALID: done; other verdicts: there was nothing to kill."""
        request = self._request(wire.REVOKE_SESSION, {"sessionToken": session_token})
        return self._calls.make(request, wire.read_revocation, known=known)

    def validate_sign_in(self, token: str) -> Coroutine[Any, Any, SignInProof]:
        """Redeem the frontend SDK's one-time token (validate/token). Raises `SignInRefusedError`."""
        return self._calls.make(self._request(wire.VALIDATE_TOKEN, {"token": token}), wire.read_sign_in, known=False)

    def verify(self, token: str, *, now: bool = False) -> Coroutine[Any, Any, Claims]:
        """Check a token's signature and issuer with OTPLESS's key set.

        Raises `TokenError` where it does not hold up, `UpstreamError` where the keys are out of reach. `now`: or where
        its key is unknown, and OTPLESS may not be asked for it yet.
        """
        return self._verified(SecretStr(token), now=now)

    async def _verified(self, token: SecretStr, *, now: bool) -> Claims:
        try:
            kid = tokens.kid(token.get_secret_value())
            keys = self._keys.at_once(kid) or await self._keys.get(kid, now=now)
            return tokens.verify(token.get_secret_value(), keys, self._settings.issuer)
        except (TokenError, NoVerdictError) as error:
            raise bare(error) from None

    async def _fetch_keys(self) -> KeySet:
        request = wire.jwks_call(self._settings.jwks_url)
        return await self._calls.exchange(request, wire.read_jwks, self._settings.request_timeout)

    def _new_validation(self, session_token: str) -> wire.Request:
        return self._request(wire.VALIDATE_SESSION, {"sessionToken": session_token})

    def _request(self, path: str, body: dict[str, str]) -> wire.Request:
        return wire.call(self._settings.base_url + path, self._credentials, body)


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
