"""The package's one logger and its OpenTelemetry instruments.

Log lines name a session by a short keyed hash, never by its id or a token, so that lines can be matched and
nothing in them can be presented. Instruments cost next to nothing until the application sets up a provider.
"""

from __future__ import annotations

import hashlib
import logging

from opentelemetry import metrics

logger = logging.getLogger("fastapi_otpless_session")

_meter = metrics.get_meter("fastapi_otpless_session")

resolutions = _meter.create_counter("otpless.session.resolutions", "{resolution}", "Sessions asked for, by outcome.")
refreshes = _meter.create_counter(
    "otpless.session.refreshes", "{refresh}", "Refreshes by role (leader, follower) and outcome."
)
upstream_duration = _meter.create_histogram(
    "otpless.upstream.duration", "s", "Duration of calls to OTPLESS, by call and outcome."
)
reuses = _meter.create_counter("otpless.session.reuses", "{token}", "Superseded tokens presented too late.")


def session_label(session_id: str) -> str:
    """Return eight hex digits that stand for a session in log lines."""
    return hashlib.blake2s(session_id.encode(), digest_size=4, key=b"fastapi-otpless-session log").hexdigest()
