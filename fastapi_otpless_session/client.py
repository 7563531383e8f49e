"""`OtplessClient`: OTPLESS's five calls and its key set, with deadlines, a breaker and a cap on concurrency."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import httpx

from fastapi_otpless_session import telemetry, tokens, wire
from fastapi_otpless_session.breaker import Breaker
from fastapi_otpless_session.errors import CredentialsRefusedError, RefusalError, UpstreamError
from fastapi_otpless_session.gate import Gate
from fastapi_otpless_session.http import HttpSender, HttpxSender
from fastapi_otpless_session.keys import KeyCache
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import Claims, KeySet
from fastapi_otpless_session.wire import SignInProof, TokenPair, Verdict

T = TypeVar("T")


class OtplessClient:
    """Talks to OTPLESS. Usable from several event loops; `http` is an `httpx.AsyncClient` or an `HttpSender` of yours.

    Every method raises `UpstreamError` where OTPLESS gives no verdict: it was not reached in time, failed, or made no
    sense; `CredentialsRefusedError` where it refused the client's own credentials.
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
        self._owns_http = http is None
        if http is None or isinstance(http, httpx.AsyncClient):
            http = HttpxSender(http, connections=settings.max_upstream)
        self._http: HttpSender = http
        self._monotonic = monotonic
        self._breaker = Breaker(monotonic)
        self._gate = Gate(settings.max_upstream)
        self._keys = KeyCache(self._fetch_keys, monotonic)

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

    async def validate_session(self, session_token: str, *, known: bool = True) -> Verdict:
        """Ask whether a session token is valid (validate-session). `known`: the session was signed in here."""
        body = {"sessionToken": session_token}
        return await self._call(wire.VALIDATE_SESSION, body, wire.read_validation, known=known)

    async def new_session_token(self, refresh_token: str) -> TokenPair | Verdict:
        """Exchange a refresh token for a new pair (get-new-session-token). Keep what comes back, both of them."""
        body = {"refreshToken": refresh_token}
        deadline = self._settings.refresh_timeout
        return await self._call(wire.NEW_SESSION_TOKEN, body, wire.read_new_tokens, deadline=deadline)

    async def session_details(self, session_token: str, *, known: bool = True) -> SessionDetails | Verdict:
        """Return who and where a session is (get-session-details)."""
        body = {"sessionToken": session_token}
        return await self._call(wire.SESSION_DETAILS, body, wire.read_details, known=known)

    async def revoke_session(self, session_token: str) -> Verdict:
        """Kill a session's tokens (revoke-session). VALID: done; other verdicts: there was nothing to kill."""
        return await self._call(wire.REVOKE_SESSION, {"sessionToken": session_token}, wire.read_revocation)

    async def validate_sign_in(self, token: str) -> SignInProof:
        """Redeem the frontend SDK's one-time token (validate/token). Raises `SignInRefusedError`."""
        return await self._call(wire.VALIDATE_TOKEN, {"token": token}, wire.read_sign_in, known=False)

    async def verify(self, token: str) -> Claims:
        """Check a token's signature and issuer with OTPLESS's key set.

        Raises `TokenError` where it does not hold up, `UpstreamError` where the keys are out of reach.
        """
        keys = await self._keys.get(tokens.kid(token))
        return tokens.verify(token, keys, self._settings.issuer)

    async def _fetch_keys(self) -> KeySet:
        request = wire.jwks_call(self._settings.jwks_url)
        answer = await self._http.send(request, deadline=self._settings.request_timeout)
        return wire.read_jwks(answer)

    async def _call(
        self,
        path: str,
        body: dict[str, str],
        read: Callable[[wire.Answer], T],
        *,
        known: bool = True,
        deadline: float | None = None,
    ) -> T:
        settings = self._settings
        request = wire.call(settings.base_url, path, settings.client_id, self._secret, body)
        ends_at = self._monotonic() + (deadline or settings.request_timeout)
        async with self._gate.pass_through(known=known, deadline=ends_at - self._monotonic()):
            return await self._guarded(request, read, path, ends_at)

    async def _guarded(self, request: wire.Request, read: Callable[[wire.Answer], T], path: str, ends_at: float) -> T:
        if not self._breaker.admit():
            raise UpstreamError("OTPLESS has been failing; not asked again yet", unsent=True)
        started, outcome = self._monotonic(), "fault"
        try:
            answer = await self._http.send(request, deadline=max(0.001, ends_at - started))
            result = read(answer)
        except UpstreamError as error:
            self._took_note(error)
            raise
        except RefusalError:
            outcome = "answer"
            self._breaker.succeeded()
            raise
        else:
            outcome = "answer"
            self._breaker.succeeded()
            return result
        finally:
            telemetry.upstream_duration.record(
                self._monotonic() - started, {"call": path.rpartition("/")[2], "outcome": outcome}
            )

    def _took_note(self, error: UpstreamError) -> None:
        if isinstance(error, CredentialsRefusedError):
            telemetry.logger.error("%s", error)
        else:
            telemetry.logger.warning("No verdict: %s", error)
        if error.healthy:
            self._breaker.succeeded()
        else:
            self._breaker.failed(error.retry_after)
