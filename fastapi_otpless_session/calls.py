"""One call to OTPLESS from beginning to end: held back or let through, in its place, by its deadline, measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import Attributes

from fastapi_otpless_session import telemetry, wire
from fastapi_otpless_session.breaker import Breakers
from fastapi_otpless_session.errors import (
    CredentialsRefusedError,
    OtplessSessionError,
    RefusalError,
    UpstreamError,
    bare,
)
from fastapi_otpless_session.gate import Gate
from fastapi_otpless_session.http import HttpSender
from fastapi_otpless_session.settings import OtplessSettings

T = TypeVar("T")

SHARE_OF_PATIENCE = 0.5
"""How much of its deadline a call has to go without an answer to count as failed, where its caller gives up on it."""


class Calls:
    """Makes a worker's calls. Each raises `UpstreamError` where there is no verdict."""

    def __init__(self, settings: OtplessSettings, http: HttpSender, monotonic: Callable[[], float]) -> None:
        self._http = http
        self._monotonic = monotonic
        self._request_timeout = settings.request_timeout
        self._breakers = Breakers(monotonic)
        self._gate = Gate(settings.max_upstream)
        urls = {settings.base_url + path: name for path, name in wire.CALL_NAMES.items()}
        self._told = {url: _Told.of(name, url) for url, name in urls.items()}
        self._told[settings.jwks_url] = _Told.of("jwks", settings.jwks_url, "GET")

    @property
    def is_held_back(self) -> bool:
        """Whether calls are held back, but for the probes."""
        return self._breakers.is_open

    async def make(
        self,
        request: wire.Request,
        read: Callable[[wire.Answer], T],
        *,
        known: bool = True,
        deadline: float | None = None,
    ) -> T:
        ends_at = self._monotonic() + (deadline or self._request_timeout)
        breaker = self._breakers.of(known=known)
        try:
            if breaker.refuses():  # at once, rather than after waiting for a place
                raise _held_back()
            if not self._gate.enter_at_once(known=known):
                await self._gate.enter(known=known, deadline=ends_at - self._monotonic())
            try:
                if not breaker.admit():
                    raise _held_back()
                return await self.exchange(request, read, max(0.001, ends_at - self._monotonic()), known=known)
            finally:
                self._gate.leave(known=known)
        except OtplessSessionError as error:
            raise bare(error) from None

    async def exchange(
        self, request: wire.Request, read: Callable[[wire.Answer], T], deadline: float, *, known: bool | None = None
    ) -> T:
        """Send a request and read its answer, measured. `known`: for whom the breakers hear of it; None: for nobody."""
        told, started, outcome = self._told[request.url], self._monotonic(), "fault"
        try:
            with telemetry.span(told.span, told.attributes, SpanKind.CLIENT) as span:
                answer = await self._http.send(request, deadline=deadline)
                span.set_attribute("http.response.status_code", answer.status)
                result = read(answer)
        except RefusalError:
            outcome = "answer"
            raise
        except UpstreamError as error:
            outcome = _kind_of(error)
            if known is not None:
                self._took_note(error, started, known=known)
            raise
        except asyncio.CancelledError:  # where callers give up early, nothing else would tell of an OTPLESS that hangs
            outcome = "cancelled"
            if known is not None and self._monotonic() - started >= deadline * SHARE_OF_PATIENCE:
                self._breakers.failed(started, known=known)
            raise
        else:
            outcome = "answer"
            return result
        finally:
            if known is not None and outcome == "answer":
                self._breakers.succeeded(started)
            telemetry.upstream_duration.record(
                self._monotonic() - started, telemetry.labels(call=told.name, outcome=outcome)
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
class _Told:
    """How one of the calls is told in metrics and spans."""

    name: str
    span: str
    attributes: Attributes

    @classmethod
    def of(cls, name: str, url: str, method: str = "POST") -> Self:
        return cls(name, f"otpless {name}", telemetry.call_attributes(method, url))


def _kind_of(error: UpstreamError) -> str:
    if isinstance(error, CredentialsRefusedError):
        return "credentials"
    return "unreached" if error.unsent else "fault"


def _held_back() -> UpstreamError:
    telemetry.upstream_rejections.add(1, telemetry.labels(reason="breaker"))
    return UpstreamError("OTPLESS has been failing; not asked again yet", unsent=True)
