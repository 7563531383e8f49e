"""A session row as stores keep it: named columns of plain values. And what a refresh and an end make of a row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from fastapi_otpless_session.session import LAST_SECOND
from fastapi_otpless_session.stores.base import EndReason, SessionRow, State

CONFIRMATIONS_REMEMBERED = 1_000
ROWS_REMEMBERED = 100

_NUMBER = (int, float)
_MAYBE_TEXT = (str, type(None))
_MAYBE_NUMBER = (int, float, type(None))

TYPES: dict[str, Any] = {
    "session_id": str,
    "user_id": str,
    "state": str,
    "end_reason": _MAYBE_TEXT,
    "generation": int,
    "confirmations": str,
    "rotated_at": _NUMBER,
    "session_token": bytes,
    "token_expires_at": _NUMBER,
    "refresh_token": bytes,
    "lease_owner": _MAYBE_TEXT,
    "lease_until": _NUMBER,
    "fence": int,
    "validated_at": _NUMBER,
    "created_at": _NUMBER,
    "last_seen_at": _NUMBER,
    "expires_at": _NUMBER,
    "summary": str,
    "revocation_due": _MAYBE_NUMBER,
    "revocation_attempts": int,
}
COLUMNS = tuple(TYPES)

_STATES = {state.value: state for state in State}
_REASONS: dict[str | None, EndReason | None] = {None: None, **{reason.value: reason for reason in EndReason}}


def record_of(row: SessionRow) -> dict[str, Any]:
    """Return a row's columns and their values."""
    values = {column: getattr(row, column) for column in COLUMNS}
    values["confirmations"] = confirmations_text(row.confirmations)
    return values


def confirmations_text(confirmations: Sequence[tuple[int, float]]) -> str:
    """Return confirmations as their column has them."""
    return json.dumps(confirmations)


def row_of(record: Sequence[Any]) -> SessionRow | None:
    """Read a record, in the order of `COLUMNS`. One that this package cannot have written is as good as none."""
    return _row_of(*record[: len(COLUMNS)])


@lru_cache(ROWS_REMEMBERED, typed=True)  # a row that is read is most often one that was read before
def _row_of(*record: Any) -> SessionRow | None:
    if not all(map(isinstance, record, TYPES.values())):
        return None
    values = dict(zip(COLUMNS, record, strict=False))
    try:
        values["state"] = _STATES[values["state"]]
        values["end_reason"] = _REASONS[values["end_reason"]]
        values["confirmations"] = _confirmations(values["confirmations"])
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError):
        return None
    row = SessionRow(**values)
    return row if _has_sane_times(row) else None


@lru_cache(CONFIRMATIONS_REMEMBERED)  # most rows have one of a few
def _confirmations(text: str) -> tuple[tuple[int, float], ...]:
    """Read confirmations as their column has them. Raises `ValueError`, `TypeError`, `OverflowError` or so."""
    confirmations = tuple((int(generation), float(at)) for generation, at in json.loads(text))
    if not confirmations or not all(0 <= at <= LAST_SECOND for _, at in confirmations):
        raise ValueError("no confirmations, or at no time")
    return confirmations


def _has_sane_times(row: SessionRow) -> bool:
    """Whether a calendar can hold all of a row's times; NaN is no time either."""
    return (
        0 <= row.rotated_at <= LAST_SECOND
        and 0 <= row.token_expires_at <= LAST_SECOND
        and 0 <= row.lease_until <= LAST_SECOND
        and 0 <= row.validated_at <= LAST_SECOND
        and 0 <= row.created_at <= LAST_SECOND
        and 0 <= row.last_seen_at <= LAST_SECOND
        and 0 <= row.expires_at <= LAST_SECOND
        and 0 <= (row.revocation_due or 0) <= LAST_SECOND
    )


def rows_of(records: Iterable[Sequence[Any]]) -> list[SessionRow]:
    """Read records, passing over those that cannot be read."""
    return [row for row in map(row_of, records) if row is not None]


def ended(row: SessionRow, reason: EndReason, revocation_due: float | None) -> SessionRow:
    """Return what an end makes of a row."""
    return replace(
        row,
        state=State.ENDED,
        end_reason=reason,
        fence=row.fence + 1,
        lease_owner=None,
        lease_until=0.0,
        revocation_due=revocation_due,
    )
