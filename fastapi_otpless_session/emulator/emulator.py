"""The emulator itself: all parts put together, with the methods that tests use."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from fastapi_otpless_session.emulator.bodies import RefusedError
from fastapi_otpless_session.emulator.calls import Call, CallLog
from fastapi_otpless_session.emulator.control import Control
from fastapi_otpless_session.emulator.faults import Fault, FaultBook
from fastapi_otpless_session.emulator.gate import CONTROL_PREFIX, Gate, Latency, is_control
from fastapi_otpless_session.emulator.guard import Guard
from fastapi_otpless_session.emulator.keys import FIRST_KEY, KeyRing
from fastapi_otpless_session.emulator.live import Live
from fastapi_otpless_session.emulator.page import description, page
from fastapi_otpless_session.emulator.profiles import person
from fastapi_otpless_session.emulator.sdk import OtpDesk, OtpMessage, Sdk
from fastapi_otpless_session.emulator.settings import EmulatorSettings
from fastapi_otpless_session.emulator.state import SessionRecord, State
from fastapi_otpless_session.emulator.wire import PUBLISHED, Wire

_DEFAULT_SETTINGS = EmulatorSettings()


class Emulator:
    """A stand-in for OTPLESS with its state in memory. `app` is an ASGI application.

    `clock` gives the time in seconds since the epoch; all expiry goes by it. `first_key` numbers the first signing
    key: an application that outlives an emulator would take its successor's key for the same if it were called the
    same. Methods that take a session id raise KeyError for one that is not known.
    """

    def __init__(
        self,
        settings: EmulatorSettings = _DEFAULT_SETTINGS,
        *,
        clock: Callable[[], float] = time.time,
        first_key: int = FIRST_KEY,
    ) -> None:
        self.settings = settings
        self._keys = KeyRing(first_key)
        self._state = State(settings, self._keys, clock)
        self._log = CallLog()
        self._faults = FaultBook(PUBLISHED)
        self._latency = Latency()
        self._desk = OtpDesk(clock)
        self.app: ASGIApp = Gate(
            _Sides(_open_side(self._open_routes()), _guarded_side(self._control_routes(), settings.control_hosts)),
            log=self._log,
            faults=self._faults,
            latency=self._latency,
            clock=clock,
            decoy=self._decoy,
        )

    def _open_routes(self) -> list[BaseRoute]:
        return [Route("/", page), *Wire(self._state).routes(), *Sdk(self._state, self._desk).routes()]

    def _control_routes(self) -> list[BaseRoute]:
        parts = (self._state, self._log, self._faults, self._latency, self._desk)
        return [
            Route(CONTROL_PREFIX, page),
            Route(CONTROL_PREFIX + "events", Live(*parts).events),
            Route(CONTROL_PREFIX + "openapi.json", description),
            *Control(*parts).routes(),
        ]

    # Sessions

    def sign_in(
        self,
        user_id: str | None = None,
        *,
        mobile: str | None = "919999999999",
        email: str | None = None,
        name: str | None = None,
        channel: str = "WHATSAPP",
        session_lifetime: float | None = None,
        refresh_lifetime: float | None = None,
    ) -> dict[str, Any]:
        """Sign somebody in and return the SDK's `otplessUser`.

        Without `user_id`, the same number or address always gets the same one. The lifetimes (seconds) are
        those of the settings unless given. Raises ValueError without both a number and an address.
        """
        return self._state.sign_in(
            person(user_id, mobile, email, name, channel),
            session_lifetime=session_lifetime,
            refresh_lifetime=refresh_lifetime,
        )

    def foreign_sign_in(
        self,
        user_id: str | None = None,
        *,
        mobile: str | None = "919999999999",
        email: str | None = None,
        name: str | None = None,
        channel: str = "WHATSAPP",
        session_lifetime: float | None = None,
        refresh_lifetime: float | None = None,
    ) -> dict[str, Any]:
        """As `sign_in`, but at another merchant: the same issuer and keys, no session of these credentials."""
        return self._state.sign_in(
            person(user_id, mobile, email, name, channel),
            foreign=True,
            session_lifetime=session_lifetime,
            refresh_lifetime=refresh_lifetime,
        )

    def expire(self, session_id: str) -> None:
        """End all session tokens issued so far, whatever their `exp`; the refresh token keeps working."""
        self._state.expire(session_id)

    def kill_refresh(self, session_id: str) -> None:
        """End all refresh tokens issued so far; session tokens keep working."""
        self._state.kill_refresh(session_id)

    def revoke(self, session_id: str) -> None:
        """End the session with all its tokens."""
        self._state.get(session_id).revoke()

    def session(self, session_id: str) -> SessionRecord:
        """A snapshot of the session."""
        return self._state.get(session_id).record(self._state.clock())

    def sessions(self) -> list[SessionRecord]:
        """Snapshots of all sessions that are remembered, in the order of their start."""
        now = self._state.clock()
        return [session.record(now) for session in self._state.sessions()]

    # Calls and faults

    @property
    def calls(self) -> list[Call]:
        """The newest 50,000 calls so far, in the order of their arrival."""
        return self._log.calls()

    def count(self, path_suffix: str) -> int:
        """How many calls went to a path with this end."""
        return self._log.count(path_suffix)

    def reset_calls(self) -> None:
        """Forget the calls so far."""
        self._log.reset()

    def add_fault(self, fault: Fault) -> None:
        """Let calls fail; see `Fault`. Of several faults, a call meets the first that is due."""
        self._faults.add(fault)

    def clear_faults(self) -> None:
        """End all faults."""
        self._faults.clear()

    def set_latency(self, path: str | None, seconds: float) -> None:
        """Delay calls whose path ends with `path` (None: the five calls and the key set); 0 ends the delay."""
        self._latency.set(path, seconds)

    @property
    def inbox(self) -> list[OtpMessage]:
        """The one-time passwords that were sent, the newest first."""
        return self._desk.messages()

    # Keys and tokens

    @property
    def kid(self) -> str:
        """The id of the key that signs now."""
        return self._keys.kid

    def rotate_key(self) -> str:
        """Sign with a new key from now on and return its id; the old ones stay published."""
        return self._keys.rotate()

    def retire_keys(self) -> None:
        """Publish only the key that signs now."""
        self._keys.retire()

    def private_key(self) -> RSAPrivateKey:
        """The key that signs now."""
        return self._keys.private_key()

    def public_pem(self) -> bytes:
        """The public half of the key that signs now, as PEM."""
        return self._keys.public_pem()

    def issue(self, claims: Mapping[str, Any], *, kid: str | None = None, key: RSAPrivateKey | None = None) -> str:
        """A JWT over any claims, with the key that signs now unless told otherwise.

        It names `kid` in its header, else the current one; an empty `kid` leaves that out. The emulator's
        sessions don't know the token.
        """
        return self._keys.sign(claims, kid, key)

    def forge(self, claims: Mapping[str, Any]) -> str:
        """A JWT over any claims that names the current key but is signed with an unrelated one."""
        return self._keys.forge(claims)

    def _decoy(self) -> dict[str, str]:
        user = self.sign_in(mobile="918888888888", name="Somebody Else")
        info = user["sessionInfo"]
        return {"token": user["token"], "sessionToken": info["sessionToken"], "refreshToken": info["refreshToken"]}


@dataclass(frozen=True, slots=True)
class _Sides:
    """What every page may call, and what steers the emulator."""

    anyones: ASGIApp
    guarded: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and is_control(scope["path"])
        await (self.guarded if guarded else self.anyones)(scope, receive, send)


def _open_side(routes: list[BaseRoute]) -> ASGIApp:
    # The page with the SDK's script is of another origin.
    anyone = Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    return _application(routes, anyone)


def _guarded_side(routes: list[BaseRoute], names: tuple[str, ...]) -> ASGIApp:
    return _application(routes, Middleware(Guard, names=names), {404: _unknown_path(routes)})


def _unknown_path(routes: list[BaseRoute]) -> ExceptionHandler:
    known = [
        f"{method} {route.path}"
        for route in routes
        if isinstance(route, Route)
        for method in sorted((route.methods or set()) - {"HEAD"})
    ]

    async def answer(_request: Request, _error: Exception) -> Response:
        return JSONResponse({"message": "The control API has no such path.", "known": known}, 404)

    return answer


def _application(
    routes: list[BaseRoute], middleware: Middleware, others: Mapping[Any, ExceptionHandler] | None = None
) -> ASGIApp:
    handlers = {RefusedError: _refused, HTTPException: _http_error, **(others or {})}
    return Starlette(routes=routes, middleware=[middleware], exception_handlers=handlers)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)  # noqa: S101 - it is registered for nothing else
    return error.response()


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for nothing else
    return JSONResponse({"message": error.detail}, error.status_code, headers=error.headers)
