"""`create_session_router`: sign in, sign out, who am I, my devices. A refresh token never leaves the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Scope

from fastapi_otpless_session import strict_json
from fastapi_otpless_session.binding import OtplessUser, read_user, unreadable
from fastapi_otpless_session.connection import EXEMPT_MARK, RequestSession, request_session
from fastapi_otpless_session.errors import (
    BodyRefusedError,
    CrossSiteRequestError,
    NoVerdictError,
    SessionNotFoundError,
    SessionUnavailableError,
)
from fastapi_otpless_session.script import SCRIPT_PATH, client_script
from fastapi_otpless_session.secured import OPTIONAL_SECURITY, Secured
from fastapi_otpless_session.session import Session, SessionBody, SessionDetails
from fastapi_otpless_session.transport import COOKIE, SAFE_METHODS, Channel

BODY_LIMIT = 16_384


class SessionWithDetailsBody(SessionBody):
    """A session and OTPLESS's details of it."""

    details: SessionDetails


class DeviceBody(BaseModel):
    """One of the user's sessions."""

    id: str
    current: bool
    device: str | None
    place: str | None
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime


class RefusalDetail(BaseModel):
    """Why a request was refused."""

    code: str
    message: str


class RefusalBody(BaseModel):
    """The body of every refusal."""

    detail: RefusalDetail


class ExemptRoute(APIRoute):
    """A route that needs no session, `REQUIRED_PATHS` or not: to sign in, to sign out, and the script for both.

    It says so in the scope that it matches, whatever prefix it was included under.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as usual."""
        match, child = super().matches(scope)
        if match is Match.FULL:
            scope[EXEMPT_MARK] = True
        return match, child


class SignInRoute(ExemptRoute):
    """The sign-in route, which the doctor looks for: without it nobody can sign in."""


async def _same_origin(connection: HTTPConnection) -> None:
    """Refuse what a page of another site makes a browser do; it is on the router, so that no route can lack it."""
    if connection.scope["method"] not in SAFE_METHODS and request_session(connection).is_from_elsewhere():
        raise CrossSiteRequestError


async def _unstored(response: Response) -> None:
    """Keep what is about one person out of caches, of which some don't heed `Vary`."""
    response.headers["Cache-Control"] = "no-store"


@Secured
async def _required(connection: HTTPConnection) -> Session:
    return await request_session(connection).require()


def _asking(connection: HTTPConnection) -> RequestSession:
    """Return the request's session. FastAPI reads what this takes, which compiled code does not show."""
    return request_session(connection)


_Request = Annotated[RequestSession, Depends(_asking)]
_Session = Annotated[Session, Depends(_required)]


def _refusals(**whys: str) -> dict[int | str, dict[str, Any]]:
    """Describe refusals for OpenAPI: `_404="No such session"`."""
    return {int(status[1:]): {"model": RefusalBody, "description": why} for status, why in whys.items()}


_ALL = _refusals(_403="From another site", _503="No verdict now; try again")
_NEEDS_SESSION = _refusals(_400="Credentials that disagree", _401="No session")
_SIGN_IN = _refusals(
    _401="The sign-in could not be verified",
    _413="Larger than 16 KiB",
    _415="Not JSON",
    _500="Browsers would drop the cookie",
)
_UNREADABLE: dict[int | str, dict[str, Any]] = {
    422: {
        "description": "Not what the SDK sends",
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": f"#/components/schemas/{name}"} for name in ("RefusalBody", "HTTPValidationError")
                    ]
                }
            }
        },
    }
}


def create_session_router(*, tags: Sequence[str] = ("session",), include_in_schema: bool = True) -> APIRouter:
    """Return the router, to be included under a prefix of your choice.

    `POST /login`, `POST /logout`, `POST /logout-all`, `GET /session`, `GET /sessions`, `DELETE /sessions/{id}`, and
    `GET /client.js` for frontends that keep the token themselves.
    """
    router = APIRouter(
        tags=[*tags],
        include_in_schema=include_in_schema,
        dependencies=[Depends(_same_origin)],
        responses=_ALL,
        default_response_class=JSONResponse,  # said here, or it would be the application's, which may be HTML
    )
    router.get("/session", dependencies=[Depends(_required), Depends(_unstored)], responses=_NEEDS_SESSION)(
        read_session
    )
    router.get("/sessions", dependencies=[Depends(_unstored)], responses=_NEEDS_SESSION)(list_sessions)
    router.add_api_route(
        "/logout",
        logout,
        methods=["POST"],
        status_code=204,
        route_class_override=ExemptRoute,
        openapi_extra={"security": OPTIONAL_SECURITY},
    )
    router.post("/logout-all", status_code=204, responses=_NEEDS_SESSION)(logout_all)
    gone = {**_NEEDS_SESSION, **_refusals(_404="None of yours")}
    router.delete("/sessions/{session_id}", status_code=204, responses=gone)(end_session)
    router.add_api_route(
        SCRIPT_PATH, read_client_script, methods=["GET"], include_in_schema=False, route_class_override=ExemptRoute
    )
    router.add_api_route(
        "/login",
        login,
        methods=["POST"],
        response_model=SessionBody,
        responses={**_SIGN_IN, **_UNREADABLE},
        route_class_override=SignInRoute,
        openapi_extra={"requestBody": _login_body()},
    )
    return router


async def login(request: Request, otpless: _Request, channel: Literal["cookie", "header"] | None = None) -> Response:
    """Sign in with the SDK's `otplessUser` object as it is. `channel=header`: no cookie, the token in a header."""
    way = otpless.transport.sign_in_channel(channel)
    user = await _read_user(request)

    life = 0.0

    def fits(token: str, its_life: float) -> None:
        nonlocal life
        life = its_life
        if way == COOKIE:
            otpless.transport.cookie(token, life)

    with _faults_are_503():
        session = await otpless.sessions.sign_in(user, fits=fits)
        for token, _ in otpless.presented.tokens:
            await otpless.sessions.replace(token, session)
    response = JSONResponse(SessionBody.of(session).model_dump(mode="json"))
    otpless.transport.write_session(response.raw_headers, way, session.token.get_secret_value(), life)
    return response


async def logout(otpless: _Request) -> Response:
    """Sign out: here at once and on every worker, then at OTPLESS. Signing out twice is no error."""
    has_failed = False
    for token, channels in otpless.presented.tokens:
        try:
            await otpless.sessions.sign_out(token, known_only=channels == {Channel.COOKIE})
        except NoVerdictError:
            has_failed = True  # which keeps no other from being signed out
    if has_failed:
        raise SessionUnavailableError
    return _cleared(otpless)


async def logout_all(otpless: _Request, session: _Session) -> Response:
    """Sign the user out everywhere."""
    with _faults_are_503():
        await otpless.sessions.end_others(session.user_id, session.id)  # whoever asks can ask again if that fails
        await otpless.sessions.end_all(session.user_id)
        await otpless.sessions.sign_out(session.token.get_secret_value())
    return _cleared(otpless)


async def read_session(otpless: _Request) -> SessionWithDetailsBody:
    """Return the session and its details."""
    with _faults_are_503():
        details = await otpless.details()
    session = await otpless.require()
    return SessionWithDetailsBody(**SessionBody.of(session).model_dump(), details=details)


async def list_sessions(otpless: _Request, session: _Session) -> list[DeviceBody]:
    """Return the user's sessions that are known here, the newest first."""
    with _faults_are_503():
        found = await otpless.sessions.list(session.user_id)
    return [
        DeviceBody(
            id=one.id,
            current=one.id == session.id,
            device=one.device,
            place=one.place,
            created_at=one.created_at,
            last_seen_at=one.last_seen_at,
            expires_at=one.expires_at,
        )
        for one in found
    ]


async def end_session(otpless: _Request, session: _Session, session_id: str) -> Response:
    """End one of the user's sessions; 404 where it is none of this user's."""
    is_own = session_id == session.id
    with _faults_are_503():
        is_ended = await otpless.sessions.end(session_id, user_id=session.user_id)
        if is_own and not is_ended:  # one that the frontend keeps has no row
            await otpless.sessions.sign_out(session.token.get_secret_value())
    if not is_own and not is_ended:
        raise SessionNotFoundError
    return _cleared(otpless) if is_own else Response(status_code=204)


async def read_client_script(request: Request, otpless: _Request) -> Response:
    """Return the client script for the header channel, which sends its token where one is looked for here."""
    settings = otpless.sessions.settings
    script = client_script(settings.header_name, as_bearer="header" not in settings.token_sources)
    if script.is_known_to(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=script.headers)
    return Response(script.body, headers=script.headers, media_type="text/javascript")


def _cleared(otpless: RequestSession) -> Response:
    response = Response(status_code=204)
    response.raw_headers.append((b"set-cookie", otpless.transport.cleared_cookie()))
    return response


@contextmanager
def _faults_are_503() -> Iterator[None]:
    try:
        yield
    except NoVerdictError:
        raise SessionUnavailableError from None


async def _read_user(request: Request) -> OtplessUser:
    """Read the body: JSON only, 16 KiB at most. Raises `BodyRefusedError`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BodyRefusedError(415, "media_type_unsupported", "Send the SDK's otplessUser as application/json.")
    try:
        user = read_user(strict_json.parse(await _read_limited(request)))
    except ClientDisconnect:  # whom no answer reaches; it is one for whoever counts and logs them
        raise unreadable("The body ended before its time.") from None
    except (ValueError, RecursionError):
        raise unreadable("The body is not JSON.") from None
    if isinstance(user, BodyRefusedError):
        raise user
    return user


async def _read_limited(request: Request) -> bytes:
    body = bytearray()
    if _declared_length(request.headers) <= BODY_LIMIT:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_LIMIT:
                break
        else:
            return bytes(body)
    raise BodyRefusedError(413, "body_too_large", "The body is larger than 16 KiB.")


def _declared_length(headers: Headers) -> float:
    text = headers.get("content-length", "0")
    return float(text) if text.isascii() and text.isdigit() else 0  # `int` refuses very long ones


def _login_body() -> dict[str, Any]:
    schema = OtplessUser.model_json_schema(ref_template="#/components/schemas/{model}")
    info = schema.pop("$defs")["SessionInfo"]
    schema["properties"]["sessionInfo"] = {"anyOf": [info, {"type": "null"}]}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
