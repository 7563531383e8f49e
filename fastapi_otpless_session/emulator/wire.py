"""The five calls that a backend makes, and the published key set."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastapi_otpless_session.emulator.bodies import RefusedError, read_object, text_field
from fastapi_otpless_session.emulator.calls import OpenCall
from fastapi_otpless_session.emulator.profiles import device, identities, milliseconds, network
from fastapi_otpless_session.emulator.settings import EmulatorSettings
from fastapi_otpless_session.emulator.state import Found, Session, Standing, State

VALIDATE_SESSION = "/v1/sessions/validate-session"
REFRESH = "/v1/sessions/get-new-session-token"
DETAILS = "/v1/sessions/get-session-details"
REVOKE = "/v1/sessions/revoke-session"
VALIDATE_TOKEN = "/auth/v1/validate/token"
JWKS = "/.well-known/jwks"
CONFIGURATION = "/.well-known/openid-configuration"
BACKEND_CALLS = frozenset({VALIDATE_SESSION, REFRESH, DETAILS, REVOKE, VALIDATE_TOKEN})
PUBLISHED = frozenset({*BACKEND_CALLS, JWKS})

CALL_SCOPE_KEY = "otpless_emulator.call"

_NOT_PRESENT = (400, "7414", "session not present")
_NOT_ACTIVE = (401, "7415", "session is not in active state")
_BAD_REQUEST = (400, "7400", "request is not valid")

_Answer = tuple[str, Response]
"""An answer, and in a few words what it was: for the page, so without any token."""


class Wire:
    """The calls, as handlers over a state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._settings = state.settings

    def routes(self) -> list[Route]:
        """The routes of all calls."""
        return [
            self._call(VALIDATE_SESSION, "sessionToken", self._validate_session),
            self._call(REFRESH, "refreshToken", self._refresh),
            self._call(DETAILS, "sessionToken", self._details),
            self._call(REVOKE, "sessionToken", self._revoke),
            self._call(VALIDATE_TOKEN, "token", self._validate_token),
            Route(JWKS, self._jwks),
            Route(CONFIGURATION, self._configuration),
        ]

    def _call(self, path: str, field: str, answer: Callable[[str, OpenCall], _Answer]) -> Route:
        return Route(path, _endpoint(self._settings, field, answer), methods=["POST"])

    def _validate_session(self, token: str, call: OpenCall) -> _Answer:
        found = self._presented(token, call)
        if found.session is not None and found.standing is Standing.LIVE:
            found.session.last_active_at = self._state.clock()
            return "valid", JSONResponse({"success": True})
        foreign = found.standing is Standing.FOREIGN
        wanted = self._settings.foreign_token_answer if foreign else self._settings.dead_token_answer
        if wanted == "success_false":
            return "success: false", JSONResponse({"success": False})
        return self._verdict(found)

    def _presented(self, token: str, call: OpenCall) -> Found:
        found = self._state.find_session_token(token)
        if found.standing is Standing.UNKNOWN and self._settings.refresh_token_as_session_token:
            found = self._state.find_refresh_token(token)
        return _noted(found, call)

    def _refresh(self, token: str, call: OpenCall) -> _Answer:
        found = _noted(self._state.find_refresh_token(token), call)
        if found.session is None or found.standing is Standing.FOREIGN:
            return self._verdict(found)
        if found.standing is Standing.DEAD:
            self._state.punish_reuse(found.session, token)
            return self._verdict(found)
        pair = self._state.refresh(found.session, token)
        return "new session token", JSONResponse({"success": True, "data": pair.as_json()})

    def _details(self, token: str, call: OpenCall) -> _Answer:
        found = _noted(self._state.find_session_token(token), call)
        if found.session is None or found.standing is not Standing.LIVE:
            return self._verdict(found)
        found.session.last_active_at = self._state.clock()
        return "details", JSONResponse(self._description(found.session))

    def _description(self, session: Session) -> dict[str, Any]:
        return {
            self._settings.details_id_field: session.session_id,
            "userId": session.who.user_id,
            "startedAt": milliseconds(session.started_at),
            "lastActiveAt": milliseconds(session.last_active_at),
            "identities": identities(session.who, session.started_at, self._settings.verified_at),
            "deviceInfo": device(),
            "network": network(),
        }

    def _revoke(self, token: str, call: OpenCall) -> _Answer:
        found = _noted(self._state.find_session_token(token), call)
        if found.session is None or not self._may_revoke(found, found.session):
            return self._verdict(found)
        found.session.revoke()
        return "revoked", JSONResponse({"success": True})

    def _may_revoke(self, found: Found, session: Session) -> bool:
        if found.standing is Standing.DEAD:
            return self._settings.revoke_accepts_expired and not session.revoked
        return found.standing is Standing.LIVE

    def _validate_token(self, token: str, call: OpenCall) -> _Answer:
        call.session_id = self._state.one_time_session_id(token)
        redeemed = self._state.redeem(token)
        if redeemed is None:
            status, code = self._settings.one_time_token_refusal.split("/")
            return _failure(self._settings, (int(status), code, "token is not valid"))
        answer = self._state.sign_in_answer(redeemed.session, token)
        if self._settings.validate_token_session_info:
            answer["sessionInfo"] = redeemed.pair.as_json()
        return "who signed in", JSONResponse(answer)

    def _verdict(self, found: Found) -> _Answer:
        return _failure(self._settings, _NOT_ACTIVE if found.standing is Standing.DEAD else _NOT_PRESENT)

    async def _jwks(self, _request: Request) -> Response:
        return JSONResponse(self._state.keys.jwks())

    async def _configuration(self, request: Request) -> Response:
        here = str(request.base_url).rstrip("/")
        return JSONResponse(
            {
                "issuer": self._settings.issuer,
                "jwks_uri": here + JWKS,
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["code", "id_token"],
                "subject_types_supported": ["public"],
            }
        )


def _endpoint(
    settings: EmulatorSettings, field: str, answer: Callable[[str, OpenCall], _Answer]
) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request, call: OpenCall) -> _Answer:
        if not _authentic(request, settings):
            return "wrong credentials", JSONResponse({"message": "The client id or the client secret is wrong."}, 401)
        try:
            token = await _token(request, field)
        except RefusedError as error:
            return _failure(settings, _BAD_REQUEST, error.message)
        return answer(token, call)

    async def endpoint(request: Request) -> Response:
        call: OpenCall = request.scope[CALL_SCOPE_KEY]
        call.outcome, response = await answered(request, call)
        return response

    return endpoint


def _authentic(request: Request, settings: EmulatorSettings) -> bool:
    right_id = _same(request.headers.get("clientId", ""), settings.client_id)
    right_secret = _same(request.headers.get("clientSecret", ""), settings.client_secret)
    return right_id and right_secret


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


async def _token(request: Request, field: str) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(400, "The content type must be application/json.")
    return text_field(await read_object(request), field, 400)


def _noted(found: Found, call: OpenCall) -> Found:
    call.session_id = found.session.session_id if found.session else None
    return found


def _failure(settings: EmulatorSettings, kind: tuple[int, str, str], message: str | None = None) -> _Answer:
    status, code, description = kind
    body = {
        "message": message or "Request error: " + description,
        "errorCode": int(code) if settings.error_code_type == "int" else code,
        "description": description,
    }
    return f"{code} {description}", JSONResponse(body, status)
