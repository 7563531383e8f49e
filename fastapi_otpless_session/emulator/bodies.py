"""Reading JSON bodies, and refusing what is none."""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

_MOST_SECONDS = 1e9


class RefusedError(Exception):
    """A request that is answered with `status` and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"message": self.message}, self.status)


async def read_object(request: Request) -> dict[str, Any]:
    """The request's body as a JSON object; an empty body is an empty object. Raises `RefusedError` (400)."""
    body = await request.body()
    if not body:
        return {}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "The body is not JSON.") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "The body is not a JSON object.")
    return found


def text_field(body: dict[str, Any], name: str, status: int = 422) -> str:
    """A field that must be a non-empty string. Raises `RefusedError`."""
    value = body.get(name)
    if not isinstance(value, str) or not value or not _is_encodable(value):
        raise RefusedError(status, f"{name} must be a non-empty string.")
    return value


def optional_text(body: dict[str, Any], name: str) -> str | None:
    """A field that may be missing or null, else must be a string. Raises `RefusedError` (422)."""
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and _is_encodable(value)):
        raise RefusedError(422, f"{name} must be a string.")
    return value


def optional_seconds(body: dict[str, Any], name: str) -> float | None:
    """A field that may be missing or null, else must be a number from 0 up. Raises `RefusedError` (422)."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_SECONDS:
        raise RefusedError(422, f"{name} must be a number of seconds.")
    return float(value)


def optional_integer(body: dict[str, Any], name: str) -> int | None:
    """A field that may be missing or null, else must be an integer. Raises `RefusedError` (422)."""
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RefusedError(422, f"{name} must be an integer.")
    return value


def _is_encodable(text: str) -> bool:
    # JSON can smuggle in half a surrogate pair, which no answer could carry.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
