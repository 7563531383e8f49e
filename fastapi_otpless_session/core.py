"""What the parts of a worker's sessions share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi_otpless_session.background import Background
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.duties import Duties
from fastapi_otpless_session.hooks import Events
from fastapi_otpless_session.outage import Outages
from fastapi_otpless_session.outbox import Outbox
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.base import SessionStore
from fastapi_otpless_session.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Made once for a worker, and handed to each part: `Endings`, `Refresher`, `Resolver` and the others."""

    settings: OtplessSettings
    store: SessionStore
    client: OtplessClient
    vault: Vault
    duties: Duties
    outages: Outages
    outbox: Outbox
    events: Events
    background: Background
    clock: Callable[[], float]
    """Seconds since the epoch, by this host."""
    monotonic: Callable[[], float]
    """Seconds that never go back."""
