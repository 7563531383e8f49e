"""The package's one logger and its OpenTelemetry instruments.

Log lines name a session by a short salted hash, never by its id or a token, so that lines can be matched and
nothing in them can be presented. The salt is derived from the client secret: all workers of a deployment have that,
so their lines match, and nobody else can tell from a line whether it is about a session whose id they know. A salt
drawn by each process would part one session's lines, and one in the code would be none.

Instruments cost next to nothing until the application sets up a provider.
"""

from __future__ import annotations

import hashlib
import logging
import secrets

from opentelemetry import metrics

logger: logging.Logger = logging.getLogger("fastapi_otpless_session")

_meter = metrics.get_meter("fastapi_otpless_session")

resolutions: metrics.Counter = _meter.create_counter(
    "otpless.session.resolutions", "{resolution}", "Sessions asked for, by outcome."
)
refreshes: metrics.Counter = _meter.create_counter(
    "otpless.session.refreshes", "{refresh}", "Refreshes by role (leader, follower) and outcome."
)
upstream_duration: metrics.Histogram = _meter.create_histogram(
    "otpless.upstream.duration", "s", "Duration of calls to OTPLESS, by call and outcome."
)
reuses: metrics.Counter = _meter.create_counter(
    "otpless.session.reuses", "{token}", "Superseded tokens presented too late."
)


_salt = secrets.token_bytes(32)
"""Until a client is made, nothing is logged that would have to match another worker's lines."""


def salt_labels(client_id: str, client_secret: str) -> None:
    """Have the labels of this process match those of all who use these credentials, and of nobody else."""
    global _salt  # noqa: PLW0603 - the logger is one for the process, too
    _salt = hashlib.blake2s(f"{client_id} {client_secret}".encode(), person=b"log salt").digest()


def session_label(session_id: str) -> str:
    """Return eight hex digits that stand for a session in log lines."""
    return hashlib.blake2s(session_id.encode(), digest_size=4, key=_salt).hexdigest()
