"""The control API under `/_emulator/`: what the page, the demo and tests in other processes steer the emulator with."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastapi_otpless_session.emulator.bodies import (
    RefusedError,
    optional_integer,
    optional_seconds,
    optional_text,
    read_object,
    text_field,
)
from fastapi_otpless_session.emulator.calls import CallLog
from fastapi_otpless_session.emulator.connection import script_tag, settings_lines
from fastapi_otpless_session.emulator.faults import DESCRIPTIONS, Fault, FaultBook
from fastapi_otpless_session.emulator.gate import CONTROL_PREFIX, Latency
from fastapi_otpless_session.emulator.profiles import person
from fastapi_otpless_session.emulator.sdk import OtpDesk
from fastapi_otpless_session.emulator.state import State
from fastapi_otpless_session.emulator.wire import PUBLISHED

_SIGN_IN_TEXTS = ("user_id", "mobile", "email", "name", "channel")
_SIGN_IN_LIFETIMES = ("session_lifetime", "refresh_lifetime")

_FAULT_FIELDS = frozenset(each.name for each in fields(Fault))


@dataclass(frozen=True, slots=True)
class Control:
    """The parts of the emulator that the control API reads and steers."""

    state: State
    log: CallLog
    faults: FaultBook
    latency: Latency
    desk: OtpDesk

    def routes(self) -> list[Route]:
        """The routes of the control API."""
        return [
            Route(CONTROL_PREFIX + "state", self._state),
            Route(CONTROL_PREFIX + "settings", self._settings),
            Route(CONTROL_PREFIX + "calls", self._calls, methods=["GET"]),
            Route(CONTROL_PREFIX + "calls", self._reset_calls, methods=["DELETE"]),
            Route(CONTROL_PREFIX + "faults", self._fault_kinds, methods=["GET"]),
            Route(CONTROL_PREFIX + "faults", self._clear_faults, methods=["DELETE"]),
            self._command("faults", self._add_fault),
            self._command("sign_in", self._sign_in),
            self._command("expire", self._on_session(self.state.expire)),
            self._command("kill-refresh", self._on_session(self.state.kill_refresh)),
            self._command("revoke", self._on_session(lambda session_id: self.state.get(session_id).revoke())),
            self._command("latency", self._set_latency),
            self._command("rotate-key", self._rotate_key),
        ]

    def _command(self, name: str, command: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Route:
        async def endpoint(request: Request) -> Response:
            return JSONResponse(command(await read_object(request)))

        return Route(CONTROL_PREFIX + name, endpoint, methods=["POST"])

    def _on_session(self, act: Callable[[str], None]) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
        def command(body: dict[str, Any]) -> Mapping[str, Any]:
            session_id = text_field(body, "sessionId")
            try:
                act(session_id)
            except KeyError:
                raise RefusedError(422, "There is no session with this sessionId.") from None
            return {"success": True}

        return command

    async def _state(self, _request: Request) -> Response:
        now = self.state.clock()
        return JSONResponse(
            {
                "now": now,
                "sessions": [asdict(session.record(now)) for session in self.state.sessions()],
                "calls": self.log.by_path(),
                "faults": [_fault_as_json(fault) for fault in self.faults.faults()],
                "latency": self.latency.by_path(),
                "inbox": [message.as_json() for message in self.desk.messages()],
                "kid": self.state.keys.kid,
            }
        )

    async def _settings(self, request: Request) -> Response:
        settings, url = self.state.settings, str(request.base_url).rstrip("/")
        return JSONResponse({"settings": settings_lines(settings, url), "script": script_tag(settings, url)})

    async def _calls(self, _request: Request) -> Response:
        return JSONResponse([asdict(call) for call in self.log.calls()])

    async def _reset_calls(self, _request: Request) -> Response:
        self.log.reset()
        return JSONResponse({"success": True})

    async def _fault_kinds(self, _request: Request) -> Response:
        armed = [_fault_as_json(fault) for fault in self.faults.faults()]
        return JSONResponse({"kinds": DESCRIPTIONS, "paths": sorted(PUBLISHED), "armed": armed})

    async def _clear_faults(self, _request: Request) -> Response:
        self.faults.clear()
        return JSONResponse({"success": True})

    def _add_fault(self, body: dict[str, Any]) -> Mapping[str, Any]:
        self.faults.add(_fault(body))
        return {"success": True}

    def _sign_in(self, body: dict[str, Any]) -> Mapping[str, Any]:
        _refuse_unknown(body, {*_SIGN_IN_TEXTS, *_SIGN_IN_LIFETIMES, "foreign"})
        texts = {"mobile": "919999999999", "channel": "WHATSAPP", **body}
        user_id, mobile, email, name, channel = (optional_text(texts, field) for field in _SIGN_IN_TEXTS)
        session_lifetime, refresh_lifetime = (optional_seconds(body, field) for field in _SIGN_IN_LIFETIMES)
        try:
            who = person(user_id, mobile, email, name, channel or "WHATSAPP")
        except ValueError as error:
            raise RefusedError(422, str(error)) from None
        return self.state.sign_in(
            who,
            foreign=body.get("foreign") is True,
            session_lifetime=session_lifetime,
            refresh_lifetime=refresh_lifetime,
        )

    def _set_latency(self, body: dict[str, Any]) -> Mapping[str, Any]:
        _refuse_unknown(body, {"path", "seconds"})
        seconds = optional_seconds(body, "seconds")
        if seconds is None:
            raise RefusedError(422, "seconds must be a number of seconds.")
        self.latency.set(optional_text(body, "path"), seconds)
        return {"success": True}

    def _rotate_key(self, _body: dict[str, Any]) -> Mapping[str, Any]:
        return {"kid": self.state.keys.rotate()}


def _fault(body: dict[str, Any]) -> Fault:
    _refuse_unknown(body, _FAULT_FIELDS)
    given = {name: value for name, value in body.items() if value is not None}
    _check_types(body)
    if (text := optional_text(body, "body")) is not None:
        given["body"] = text.encode()
    given["headers"] = _headers(body.get("headers"))
    given.setdefault("kind", "")
    path = given.get("path", "")
    if not any(known.endswith(path) for known in PUBLISHED):
        raise RefusedError(422, f"path must be how one of these ends: {', '.join(sorted(PUBLISHED))}.")
    try:
        return Fault(**given)
    except (TypeError, ValueError) as error:
        raise RefusedError(422, f"This is no fault: {error}.") from None


def _check_types(body: dict[str, Any]) -> None:
    for name in ("kind", "path", "location"):
        optional_text(body, name)
    for name in ("times", "skip", "status"):
        optional_integer(body, name)
    optional_seconds(body, "interval")


def _headers(found: Any) -> tuple[tuple[str, str], ...]:
    if found is None:
        return ()
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise RefusedError(422, "headers must be an object with strings.")
    return tuple(found.items())


def _fault_as_json(fault: Fault) -> dict[str, Any]:
    body = None if fault.body is None else fault.body.decode("utf-8", "replace")
    return {**asdict(fault), "body": body, "headers": dict(fault.headers)}


def _refuse_unknown(body: dict[str, Any], known: set[str] | frozenset[str]) -> None:
    if unknown := sorted(set(body) - known):
        raise RefusedError(422, f"Unknown: {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
