"""A canary: every path and every fault, with debug logging on, and no secret wherever one could come to light."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import pytest
from conftest import Clock, make_app, make_settings
from fastapi.testclient import TestClient
from processes import PATIENCE
from simulated import Stalls, hurry
from starlette.requests import HTTPConnection
from telemetered import telemetry_of_process

import fastapi_otpless_session
from fastapi_otpless_session import (
    NoVerdictError,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    SessionEvent,
    telemetry,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.errors import OtplessSessionError
from fastapi_otpless_session.tokens import TokenError, new_key
from fastapi_otpless_session.wire import Answer, Request

pytestmark = pytest.mark.varied

SECRET = "canary-client-secret-0123456789"
OURS = Path(fastapi_otpless_session.__file__).parent
FOREIGN_LOGGERS = ("httpx", "httpcore", "asyncio", "redis", "sqlalchemy", "uvicorn", "websockets", "concurrent")
LISTED = (list, tuple, set, frozenset)
FAULTS = [
    *(Fault("act_then_reset"), Fault("truncated"), Fault("html"), Fault("gzip_bomb"), Fault("deep")),
    *(Fault("wrong_types"), Fault("duplicate_keys"), Fault("other_session"), Fault("redirect")),
    *(Fault("status", status=500), Fault("status", status=401), Fault("hang", times=1)),
]


@dataclass
class Canaries:
    """What must not be seen, and where it would be."""

    secrets: set[str] = field(default_factory=lambda: {SECRET})
    seen: list[str] = field(default_factory=list)

    def add(self, user: dict[str, Any]) -> None:
        info = user["sessionInfo"]
        self.secrets |= {user["token"], info["sessionToken"], info["refreshToken"], user["idToken"]}

    def add_swaps(self, answer: Any) -> None:
        self.secrets |= set(re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", str(answer.headers)))

    def found(self) -> list[str]:
        """Say where they were seen: of a token, its payload or its signature alone would be too much."""
        parts = {part for secret in self.secrets for part in secret.split(".")[-2:]}
        hits = [(part, text.find(part), text) for text in self.seen for part in parts if part in text]
        return [f"…{text[max(0, at - 200) : at]}[{part}]" for part, at, text in hits]


@pytest.fixture
def canaries(caplog: pytest.LogCaptureFixture) -> Iterator[Canaries]:
    caplog.set_level(logging.DEBUG)
    for name in (*FOREIGN_LOGGERS, telemetry.logger.name):
        caplog.set_level(logging.DEBUG, logger=name)
    canaries = Canaries()
    yield canaries
    records = caplog.get_records("call")
    assert {"httpx", "httpcore.http11", telemetry.logger.name} <= {record.name for record in records}
    for record in records:
        canaries.seen += [record.getMessage(), repr(record.args)]
        if record.exc_info and record.exc_info[1]:
            canaries.seen.append(told_with_locals(record.exc_info[1]))
    assert canaries.found() == []


def told_with_locals(error: BaseException) -> str:
    """Tell an error as reporters do that collect local variables; of frames, ours count.

    The scope is left out, and what is made of it: every ASGI server and framework has it in its frames, headers and all
    (see docs/security.md).
    """
    lines = [str(error), repr(error), repr(error.args)]
    for each in (error, error.__cause__, error.__context__):
        for frame in _our_frames(each):
            where = f"{frame.f_code.co_filename} {frame.f_code.co_name}"
            lines += [
                f"{where} {name} {text}" for name, value in frame.f_locals.items() for text in _shown(name, value)
            ]
    return "\n".join(lines)


def _our_frames(error: BaseException | None) -> Iterator[FrameType]:
    """Pick ours: to ask all of a framework's frames for their variables takes a third of a test."""
    for frame, _ in traceback.walk_tb(error.__traceback__ if error else None):
        if frame.f_code.co_filename.startswith(f"{OURS}/"):
            yield frame


def _shown(name: str, value: object, depth: int = 4) -> Iterator[str]:
    """Show a variable as Sentry does: containers, named tuples too, by what is in them, whatever their `repr`."""
    if name == "scope" or isinstance(value, HTTPConnection) or not depth:
        return
    yield repr(value)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, LISTED) else ()
    for key, item in items:
        yield from _shown(str(key), item, depth - 1)


def test_no_path_and_no_fault_brings_a_secret_to_light(
    clock: Clock, canaries: Canaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_otpless_session.refresh.LONGEST_PAUSE", 0.1)
    key = new_key()
    canaries.secrets.add(key)
    measured = telemetry_of_process()
    measured.begin()
    emulator = Emulator(EmulatorSettings(client_secret=SECRET, rotation="rotating"), clock=clock)
    emulator.app = stalls = Stalls(emulator.app)
    with serve(emulator) as url:
        values = make_settings(
            client_secret=SECRET,
            encryption_keys=key,
            base_url=url,
            jwks_url=f"{url}/.well-known/jwks",
            store_url=f"sqlite:///{tmp_path / 'store.db'}",
            request_timeout=PATIENCE,
            refresh_timeout=PATIENCE,
        )
        client = hurry(OtplessClient(values, monotonic=clock), stalls)

        def told_to_a_hook(event: SessionEvent) -> None:
            canaries.seen.append(repr(event))

        sessions = OtplessSessions(
            values,
            client=client,
            clock=clock,
            on_sign_in=told_to_a_hook,
            on_refresh=told_to_a_hook,
            on_sign_out=told_to_a_hook,
            on_reuse=told_to_a_hook,
        )
        app = make_app()
        app.add_middleware(OtplessSessionMiddleware, sessions=sessions)

        @app.exception_handler(OtplessSessionError)
        async def told(_: Any, error: Exception) -> Any:
            canaries.seen.append(told_with_locals(error))
            raise error

        with TestClient(app, base_url="https://shop.example", raise_server_exceptions=False) as browser:
            for fault in [None, *FAULTS]:
                _visit(browser, emulator, clock, canaries, fault)
            for path in ("/openapi.json", "/docs", "/redoc"):
                canaries.seen.append(browser.get(path).text)
    shown = [values, client, sessions, values.client_secret, values.encryption_keys, vars(sessions), vars(client)]
    canaries.seen += [repr(each) for each in shown if each is not shown[-1]]
    assert {"otpless.sign_in", "otpless.refresh"} <= {span.name for span in measured.all_spans()}
    assert measured.count("otpless.session.sign_ins", outcome="signed_in") > 1
    canaries.seen.append(measured.told())
    canaries.seen += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]


def _visit(browser: Any, emulator: Emulator, clock: Clock, canaries: Canaries, fault: Fault | None) -> None:
    """Take every path with people in every state, while OTPLESS has a fault."""
    people = [emulator.sign_in(mobile=str(number)) for number in range(4)]
    fresh = emulator.sign_in(mobile="5")
    for user in (*people, fresh):
        canaries.add(user)
    for user in people[:3]:
        _look(browser.post("/auth/login?channel=header", json=user), canaries)
    emulator.expire(people[1]["sessionInfo"]["sessionId"])
    clock.advance(400)
    if fault:
        emulator.add_fault(fault)
    tokens = [user["sessionInfo"]["sessionToken"] for user in people] + [people[0]["sessionInfo"]["refreshToken"]]
    for token in (*tokens, tokens[0][:-4] + "AAAA"):
        canaries.secrets.add(token)
        for path in ("/orders", "/maybe", "/fresh", "/details", "/auth/session", "/auth/sessions"):
            clock.advance(0.4)
            _look(browser.get(path, headers={"X-Session-Token": token}), canaries)
    _look(browser.post("/auth/login", json=fresh), canaries)
    _look(browser.post("/auth/login", json={**fresh, "sessionInfo": people[2]["sessionInfo"]}), canaries)
    _look(browser.post("/auth/logout", headers={"Authorization": f"Bearer {tokens[0]}"}), canaries)
    _look(browser.post("/auth/logout-all", headers={"X-Session-Token": tokens[2]}), canaries)
    browser.cookies.clear()
    emulator.clear_faults()
    clock.advance(20)


def _look(answer: Any, canaries: Canaries) -> None:
    canaries.add_swaps(answer)
    canaries.seen.append(answer.text)


@pytest.mark.parametrize("fault", [each for each in FAULTS if each.kind != "hang"], ids=lambda each: each.kind)
async def test_an_error_of_the_client_shows_no_token_even_with_local_variables(fault: Fault) -> None:
    emulator = Emulator(EmulatorSettings(client_secret=SECRET))
    user = emulator.sign_in()
    canaries = Canaries()
    canaries.add(user)
    info = user["sessionInfo"]
    half = b'{"success": true, "data": {"sessionId": "s", "sessionToken": "' + info["sessionToken"].encode() + b'"}}'
    with serve(emulator) as url:
        values = make_settings(client_secret=SECRET, base_url=url, jwks_url=f"{url}/.well-known/jwks")
        async with OtplessClient(values) as client:
            for each in (fault, Fault("status", status=200, body=half), Fault("status", status=200, body=half * 200)):
                emulator.clear_faults()
                emulator.add_fault(each)
                for call in (
                    lambda: client.validate_session(info["sessionToken"]),
                    lambda: client.new_session_token(info["refreshToken"]),
                    lambda: client.session_details(info["sessionToken"]),
                    lambda: client.revoke_session(info["sessionToken"]),
                    lambda: client.validate_sign_in(user["token"]),
                    lambda: client.verify(info["sessionToken"]),
                    lambda: client.verify(info["sessionToken"][:-4] + "AAAA"),
                ):
                    try:
                        await call()
                    except (OtplessSessionError, TokenError) as error:
                        canaries.seen.append(told_with_locals(error))
    assert len(canaries.seen) > 10
    assert canaries.found() == []


def test_labels_match_between_workers_of_one_deployment_and_not_between_deployments() -> None:
    program = (
        "import sys; from fastapi_otpless_session import OtplessClient, OtplessSettings, telemetry;"
        "OtplessClient(OtplessSettings(client_id='shop', client_secret=sys.argv[1], store_url='memory://'));"
        "print(telemetry.session_label('0f' * 16))"
    )

    def label(secret: str) -> str:
        command = [sys.executable, "-c", program, secret]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603

    one, same, another = label("one"), label("one"), label("another")
    assert one == same != another
    assert re.fullmatch("[0-9a-f]{8}", one)


async def test_an_error_of_a_sign_in_shows_no_token_even_with_local_variables() -> None:
    """As it is raised where the sessions are used without FastAPI, in jobs and scripts."""
    emulator = Emulator(EmulatorSettings(client_secret=SECRET))
    user = emulator.sign_in()
    canaries = Canaries()
    canaries.add(user)
    with serve(emulator) as url:
        values = make_settings(client_secret=SECRET, base_url=url, jwks_url=f"{url}/.well-known/jwks")
        async with OtplessSessions(values) as sessions:
            emulator.add_fault(Fault("status", status=503))
            with pytest.raises(NoVerdictError) as caught:
                await sessions.sign_in(user)
    canaries.seen.append(told_with_locals(caught.value))
    assert canaries.found() == []


class HangingSender:
    """A sender of an application's own, whose server never answers."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, request: Request, *, deadline: float) -> Answer:
        del request
        await asyncio.sleep(deadline)
        raise NotImplementedError


@pytest.mark.parametrize("sender", ["httpx", "aiohttp", "own"])
async def test_an_error_of_the_applications_that_cuts_a_call_short_shows_neither_client_secret_nor_refresh_token(
    sender: Literal["httpx", "aiohttp", "own"],
) -> None:
    emulator = Emulator(EmulatorSettings(client_secret=SECRET))
    refresh_token = emulator.sign_in()["sessionInfo"]["refreshToken"]
    canaries = Canaries({SECRET, refresh_token})
    with serve(emulator) as url:
        settings = make_settings(client_secret=SECRET, base_url=url, http_client=sender if sender != "own" else "httpx")
        async with OtplessClient(settings, http=HangingSender() if sender == "own" else None) as client:
            emulator.add_fault(Fault("hang"))
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.3):
                    await client.new_session_token(refresh_token)
            emulator.clear_faults()
    canaries.seen.append(told_with_locals(caught.value))
    assert canaries.found() == []


@pytest.mark.parametrize("call", ["details", "sign_out"])
async def test_an_error_of_these_shows_no_token_either(call: str) -> None:
    emulator = Emulator(EmulatorSettings(client_secret=SECRET))
    user = emulator.sign_in()
    canaries = Canaries()
    canaries.add(user)
    token = user["sessionInfo"]["sessionToken"]
    with serve(emulator) as url:
        values = make_settings(client_secret=SECRET, base_url=url, jwks_url=f"{url}/.well-known/jwks")
        async with OtplessSessions(values) as sessions:
            session = await sessions.sign_in(user)
            emulator.add_fault(Fault("status", status=503))
            stranger = emulator.sign_in()
            canaries.add(stranger)
            asked = sessions.details(session) if call == "details" else _sign_out_unverified(url, token)
            with pytest.raises(NoVerdictError) as caught:
                await asked
    canaries.seen.append(told_with_locals(caught.value))
    assert canaries.found() == []


async def _sign_out_unverified(url: str, token: str) -> None:
    """Sign out where nobody can say whose token it is."""
    values = make_settings(client_secret=SECRET, base_url=url, jwks_url=f"{url}/.well-known/jwks")
    async with OtplessSessions(values) as others:
        await others.sign_out(token)
