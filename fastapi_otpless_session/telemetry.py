"""The package's one logger, its OpenTelemetry instruments and its spans.

Log lines name a session by a short salted hash, never by its id or a token, so that lines can be matched and
nothing in them can be presented. The salt is derived from the client secret: all workers of a deployment have that,
so their lines match, and nobody else can tell from a line whether it is about a session whose id they know. A salt
drawn by each process would part one session's lines, and one in the code would be none.

Instruments and spans cost next to nothing until the application sets up a provider. docs/observability.md says what
each of them means, and which values its attributes take: all of them are from short lists in the code, never from a
request.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import lru_cache
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import Attributes

from fastapi_otpless_session.errors import NoVerdictError, OtplessSessionError, RefusalError

logger: logging.Logger = logging.getLogger("fastapi_otpless_session")

_meter = metrics.get_meter("fastapi_otpless_session")
_tracer = trace.get_tracer("fastapi_otpless_session")

validations: metrics.Counter = _meter.create_counter(
    "otpless.session.validations", "{validation}", "What OTPLESS said of session tokens, by outcome."
)
refreshes: metrics.Counter = _meter.create_counter(
    "otpless.session.refreshes", "{refresh}", "Refreshes by role (leader, coalesced, follower) and outcome."
)
reuses: metrics.Counter = _meter.create_counter(
    "otpless.session.reuses", "{token}", "Superseded tokens presented too late."
)
sign_ins: metrics.Counter = _meter.create_counter("otpless.session.sign_ins", "{sign_in}", "Sign-ins by outcome.")
sign_outs: metrics.Counter = _meter.create_counter(
    "otpless.session.sign_outs", "{sign_out}", "Sessions that this worker ended, by reason, and sign-outs that failed."
)
revocations: metrics.Counter = _meter.create_counter(
    "otpless.session.revocations", "{revocation}", "Attempts to tell OTPLESS that a session ended, by outcome."
)
revocations_waiting: metrics._Gauge = _meter.create_gauge(
    "otpless.session.revocations_waiting", "{session}", "Ended sessions in the store that OTPLESS has yet to hear of."
)
hook_failures: metrics.Counter = _meter.create_counter(
    "otpless.session.hook_failures", "{failure}", "Hooks of the application that failed, by hook and outcome."
)
websocket_closes: metrics.Counter = _meter.create_counter(
    "otpless.websocket.closes", "{websocket}", "Open websockets closed because their session was over, by reason."
)
upstream_duration: metrics.Histogram = _meter.create_histogram(
    "otpless.upstream.duration",
    "s",
    "Duration of calls to OTPLESS, by call and outcome.",
    explicit_bucket_boundaries_advisory=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
upstream_rejections: metrics.Counter = _meter.create_counter(
    "otpless.upstream.rejections", "{call}", "Calls to OTPLESS that were not made, by reason."
)


class Watched(Protocol):
    """What may hold calls back: a client, by its breaker."""

    @property
    def is_held_back(self) -> bool:
        """Whether it does."""
        ...


_watched: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(client: Watched) -> None:
    """Have a client counted while its breaker is open, as long as somebody has it."""
    _watched.add(client)


def _open_breakers(_: CallbackOptions) -> Iterable[Observation]:
    yield Observation(sum(client.is_held_back for client in list(_watched)))


_meter.create_observable_gauge(
    "otpless.upstream.breakers_open", [_open_breakers], "{breaker}", "Breakers of this process that hold calls back."
)

_resolutions: defaultdict[tuple[str, str], int] = defaultdict(int)
"""How many, by outcome and source. Every request counts one, and a counter of OpenTelemetry's would cost it 3 µs where
there is a provider. Threads with an event loop each may lose one of millions."""
_SERVED = ("session", "memory")


def _all_resolutions(_: CallbackOptions) -> Iterable[Observation]:
    for (outcome, source), count in list(_resolutions.items()):
        yield Observation(count, {"outcome": outcome, "source": source})


_meter.create_observable_counter(
    "otpless.session.resolutions",
    [_all_resolutions],
    "{resolution}",
    "Sessions asked for, by outcome and by where the answer came from.",
)


def count_served() -> None:
    """Count the resolution that costs the least: the session is there, and nobody had to be waited for."""
    _resolutions[_SERVED] += 1


@lru_cache(maxsize=512)
def labels(**values: str) -> Mapping[str, str]:
    """Return attributes, the same object for the same values: those are few."""
    return values


_source: ContextVar[str] = ContextVar("otpless_source", default="token")


def came_from(source: str) -> None:
    """Note where the answer to the resolution under way comes from: token, memory, store, otpless or refresh."""
    _source.set(source)


def count_resolution(outcome: str, source: str | None = None) -> None:
    """Count a resolution, by where its answer came from; None: as was noted last."""
    _resolutions[outcome, source or _source.get()] += 1


_VALID = labels(outcome="valid")


def count_validation(outcome: str) -> None:
    """Count what OTPLESS said of a session token, or that it said nothing."""
    validations.add(1, _VALID if outcome == "valid" else labels(outcome=outcome))


def outcome_of(error: BaseException) -> str:
    """Name an error among the outcomes of what failed with it."""
    if isinstance(error, RefusalError):
        return error.code
    return "unavailable" if isinstance(error, NoVerdictError) else "error"


WAITS_FOR_VALIDATION = {"otpless.waits_for": "validation"}
WAITS_FOR_REFRESH = {"otpless.waits_for": "refresh"}


def span(
    name: str, attributes: Attributes = None, kind: SpanKind = SpanKind.INTERNAL
) -> AbstractContextManager[Span, None]:
    """Return a span, current inside; without a provider that records it, one that does nothing."""
    # To be told by the API that there is no provider takes 2 µs, of which a request that waits for OTPLESS would take
    # two: a twentieth of a bare route. Where the name is gone, nothing else is.
    if getattr(trace, "_TRACER_PROVIDER", True) is None:
        return _NOTHING
    opened = _tracer.start_span(name, kind=kind, attributes=attributes)
    return _Recorded(opened) if opened.is_recording() else opened


class _Nothing:
    """In place of a span where none is recorded. To enter and to leave OpenTelemetry's own for that takes 0.3 µs."""

    def __enter__(self) -> Span:
        return trace.INVALID_SPAN

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_NOTHING = _Nothing()


class _Recorded:
    """A span that ends with its block, and tells of the error that does.

    An error is told by its type and, where it is one of ours, by its text, which holds no secret. OpenTelemetry's
    `record_exception` would add a stack and the errors behind it, whose texts may quote what somebody sent.
    """

    def __init__(self, opened: Span) -> None:
        self._opened = opened
        self._scope = trace.use_span(opened, end_on_exit=True, record_exception=False, set_status_on_exception=False)

    def __enter__(self) -> Span:
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            _tell(self._opened, error)
        self._scope.__exit__(kind, error, trace)


def call_attributes(method: str, url: str) -> Attributes:
    """Return a call's attributes by HTTP's semantic conventions, without query or headers."""
    parts = urlsplit(url)
    return {
        "http.request.method": method,
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
        "url.path": parts.path,
    }


def _tell(opened: Span, error: BaseException) -> None:
    told = {"exception.type": type(error).__qualname__}
    if isinstance(error, OtplessSessionError):
        told["exception.message"] = _text(error)
    opened.add_event("exception", told)
    opened.set_attribute("error.type", type(error).__qualname__)
    if not isinstance(error, RefusalError):  # a refusal is an answer
        opened.set_status(StatusCode.ERROR, told.get("exception.message"))


def _text(error: OtplessSessionError) -> str:
    return error.message if isinstance(error, RefusalError) else str(error)


_salt = secrets.token_bytes(32)
"""Until a client is made, nothing is logged that would have to match another worker's lines."""


def salt_labels(client_id: str, client_secret: str) -> None:
    """Have the labels of this process match those of all who use these credentials, and of nobody else."""
    global _salt  # noqa: PLW0603 - the logger is one for the process, too
    _salt = hashlib.blake2s(f"{client_id} {client_secret}".encode(), person=b"log salt").digest()


def session_label(session_id: str) -> str:
    """Return eight hex digits that stand for a session in log lines."""
    return hashlib.blake2s(session_id.encode(), digest_size=4, key=_salt).hexdigest()
