"""What all dependencies that need a session token have in common: how they are documented, and how they refuse.

Routes that have one show three security schemes in OpenAPI (bearer, header, cookie), so that the Authorize button of
/docs works.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, WebSocketException
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer, SecurityBase
from fastapi.security.base import SecurityBase as SecurityDependency
from starlette.requests import HTTPConnection

from fastapi_otpless_session.errors import RefusalError
from fastapi_otpless_session.websocket import DENIAL_EXTENSION, POLICY_VIOLATION

T = TypeVar("T")


class _Scheme(SecurityDependency):
    """A security scheme for OpenAPI only; the middleware finds the credential itself."""

    def __init__(self, name: str, model: SecurityBase) -> None:
        self.scheme_name = name
        self.model = model

    async def __call__(self) -> None:
        """Ask for nothing."""


# Routes know no settings: the names are the defaults, and the texts say what may give another.
_HEADER_TEXT = "The OTPLESS session token. The server's `OTPLESS_HEADER_NAME` may give the header another name."
_COOKIE_TEXT = (
    "Set by a sign-in. It is called `otpless_session` where the server has `OTPLESS_COOKIE_SECURE=false`, a cookie "
    "domain or a path; `OTPLESS_COOKIE_NAME` may give it another name."
)


def _api_key(place: APIKeyIn, name: str, text: str) -> APIKey:
    return APIKey.model_validate({"in": place, "name": name, "description": text})


_header = _Scheme("OtplessHeader", _api_key(APIKeyIn.header, "X-Session-Token", _HEADER_TEXT))
_cookie = _Scheme("OtplessCookie", _api_key(APIKeyIn.cookie, "__Host-otpless_session", _COOKIE_TEXT))


class Secured(SecurityDependency, Generic[T]):
    """A dependency that needs a session token, and is documented with the three ways to send one.

    It is the bearer scheme itself and brings the two others along: FastAPI documents a scheme for each dependency, and
    solving one more costs as much as reading a session from SQLite.
    """

    scheme_name = "OtplessBearer"
    model: HTTPBearer = HTTPBearer(bearerFormat="JWT", description="The OTPLESS session token.")

    def __init__(self, ask: Callable[[HTTPConnection], Awaitable[T]]) -> None:
        self._ask = ask
        self.__name__: str = ask.__name__
        self.__doc__ = ask.__doc__

    async def __call__(
        self,
        connection: HTTPConnection,
        _header: Annotated[None, Depends(_header, scope="function")] = None,  # so FastAPI need not find out
        _cookie: Annotated[None, Depends(_cookie, scope="function")] = None,
    ) -> T:
        """Return what `ask` does. Raises a `RefusalError`, or what closes a websocket that cannot be sent one."""
        try:
            return await self._ask(connection)
        except RefusalError as error:
            raise _answerable(connection, error) from None


def _answerable(connection: HTTPConnection, error: RefusalError) -> Exception:
    """Return what the server can send: before a handshake an HTTP answer if it knows how, else a close."""
    scope = connection.scope
    if scope["type"] == "websocket" and DENIAL_EXTENSION not in scope.get("extensions", {}):
        return WebSocketException(POLICY_VIOLATION, error.code)
    return error


_NO_SCOPES: list[str] = []
OPTIONAL_SECURITY: list[dict[str, list[str]]] = [
    {Secured.scheme_name: _NO_SCOPES},
    {_header.scheme_name: _NO_SCOPES},
    {_cookie.scheme_name: _NO_SCOPES},
    {},
]
"""What OpenAPI is to say of a route that takes a token and needs none: what is not said there is not sent by /docs."""
