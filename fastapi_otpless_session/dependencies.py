"""FastAPI dependencies, for HTTP and websocket routes: each a function and an `Annotated` alias.

Where one raises a `RefusalError`, a websocket whose server can send no answer before the handshake gets a
`WebSocketException` with the same code, which closes it.
"""

from collections.abc import Awaitable, Callable
from math import inf
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from fastapi_otpless_session.connection import request_session
from fastapi_otpless_session.errors import NoVerdictError, SessionUnavailableError
from fastapi_otpless_session.secured import Secured
from fastapi_otpless_session.session import Session, SessionDetails
from fastapi_otpless_session.sessions import OtplessSessions


async def otpless_sessions(connection: HTTPConnection) -> OtplessSessions:
    """Return the `OtplessSessions` behind the middleware. Raises `MiddlewareMissingError`."""
    return request_session(connection).sessions


@Secured
async def current_session(connection: HTTPConnection) -> Session:
    """Return the session. Raises a `RefusalError`: 401 where there is none, 400, 403, or 503 for no verdict."""
    request = request_session(connection)
    return request.at_once() or await request.require()


@Secured
async def optional_session(connection: HTTPConnection) -> Session | None:
    """Return the session, or None: refusals and outages are None. Raises `ConflictingCredentialsError` (400)."""
    return await request_session(connection).session()


@Secured
async def fresh_session(connection: HTTPConnection) -> Session:
    """Return the session as OTPLESS itself says now, for payments and changes of e-mail. Raises `RefusalError`."""
    return await request_session(connection).require(0)


made_by_fresh_within: dict[float, Callable[..., Awaitable[Session]]] = {}
"""By their seconds. FastAPI evaluates annotations more than once, and an override must find what it finds then."""


def fresh_within(seconds: float) -> Callable[..., Awaitable[Session]]:
    """Return a dependency: the session, about which OTPLESS said "valid" within the last `seconds`.

    The same `seconds` give the same dependency, so that tests can override it. 0 asks OTPLESS now, as `fresh_session`.
    Raises `ValueError` for what is no number of seconds.
    """
    given: object = seconds  # not everybody's annotations are checked
    if not isinstance(given, int | float) or not 0 <= given < inf:
        raise ValueError(f"fresh_within takes a number of seconds, 0 or more, and not {seconds!r}")

    @Secured
    async def session_fresh_within(connection: HTTPConnection) -> Session:
        return await request_session(connection).require(seconds)

    return made_by_fresh_within.setdefault(seconds, session_fresh_within)


CurrentSession = Annotated[Session, Depends(current_session)]
"""The session; 401 where there is none."""
OptionalSession = Annotated[Session | None, Depends(optional_session)]
"""The session, or None."""
FreshSession = Annotated[Session, Depends(fresh_session)]
"""The session, as OTPLESS itself says now."""
Sessions = Annotated[OtplessSessions, Depends(otpless_sessions)]
"""The `OtplessSessions` behind the middleware."""


@Secured
async def current_session_details(connection: HTTPConnection) -> SessionDetails:
    """Return OTPLESS's details of the session: identities, device, network. Raises `RefusalError`."""
    try:
        return await request_session(connection).details()
    except NoVerdictError:
        raise SessionUnavailableError from None


CurrentSessionDetails = Annotated[SessionDetails, Depends(current_session_details)]
"""OTPLESS's details of the session."""
