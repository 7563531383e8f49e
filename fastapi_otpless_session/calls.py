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
        """Make a call once there is a place for it, and return what its answer is read as."""
        seconds = deadline or self._request_timeout
        breaker = self._breakers.of(known=known)
        try:
            if breaker.refuses():  # at once, rather than after waiting for a place
                raise _held_back()
            place = self._gate.enter_at_once(known=known)
            if place is None:
                ends_at = self._monotonic() + seconds
                place = await self._gate.enter(known=known, deadline=seconds)
                seconds = max(0.001, ends_at - self._monotonic())
            try:
                if not breaker.admit():
                    raise _held_back()
                return await self.exchange(request, read, seconds, known=known)
            finally:
                place.give_back(known=known)
        except OtplessSessionError as error:
            raise bare(error) from None

    async def exchange(
        self, request: wire.Request, read: Callable[[wire.Answer], T], deadline: float, *, known: bool | None = None
    ) -> T:
        """Send a request and read its answer, measured. `known`: for whom the breakers hear of it; None: for nobody."""
        told, started = self._told[request.url], self._monotonic()
        try:
            with telemetry.span(told.span, told.attributes, SpanKind.CLIENT) as span:
                answer = await self._http.send(request, deadline=deadline)
                span.set_attribute("http.response.status_code", answer.status)
                result = read(answer)
        except BaseException as error:
            self._failed(error, told, started, deadline, known)
            raise
        telemetry.upstream_duration.record(self._monotonic() - started, told.answered)
        if known is not None:
            self._breakers.succeeded(started)
        return result

    def _failed(self, error: BaseException, told: _Told, began_at: float, deadline: float, known: bool | None) -> None:
        """Take note of a call without a result: for the breakers, in the log, and measured."""
        outcome, seconds = _outcome_of(error), self._monotonic() - began_at
        telemetry.upstream_duration.record(seconds, telemetry.labels(call=told.name, outcome=outcome))
        if known is None:
            return
        if isinstance(error, UpstreamError):
            self._took_note(error, began_at, known=known)
        elif outcome == "answer":
            self._breakers.succeeded(began_at)
        elif outcome == "cancelled" and seconds >= deadline * SHARE_OF_PATIENCE:
            # Where callers give up early, nothing else would tell of an OTPLESS that hangs.
            self._breakers.failed(began_at, known=known)

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
    answered: Attributes

    @classmethod
    def of(cls, name: str, url: str, method: str = "POST") -> Self:
        answered = telemetry.labels(call=name, outcome="answer")
        return cls(name, f"otpless {name}", telemetry.call_attributes(method, url), answered)


def _outcome_of(error: BaseException) -> str:
    """Name what a call came to that has no result. A refusal is an answer."""
    if isinstance(error, RefusalError):
        return "answer"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, CredentialsRefusedError):
        return "credentials"
    return "unreached" if isinstance(error, UpstreamError) and error.unsent else "fault"


def _held_back() -> UpstreamError:
    telemetry.upstream_rejections.add(1, telemetry.labels(reason="breaker"))
    return UpstreamError("OTPLESS has been failing; not asked again yet", unsent=True)
