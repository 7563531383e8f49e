"""aiohttp in place of httpx: chosen by a setting, told where it is missing, and good for a whole session.

What both must do over a socket is in `test_client.py` and `test_upstream_faults.py`, once for each.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from conftest import make_app
from fastapi.testclient import TestClient
from processes import PATIENCE

from fastapi_otpless_session import OtplessClient, OtplessSessionMiddleware
from fastapi_otpless_session.emulator import Emulator, Fault, serve
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.http_aiohttp import AiohttpSender
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.wire import jwks_call

SHORT = 0.4
DEMO = {"OTPLESS_CLIENT_ID": "demo-client", "OTPLESS_CLIENT_SECRET": "demo-secret", "OTPLESS_STORE_URL": "memory://"}
STARTING = """
import asyncio, contextlib, sys
sys.modules["aiohttp"] = None
from fastapi import FastAPI
from fastapi_otpless_session import ConfigurationError, OtplessSessionMiddleware

async def receive():
    return {"type": "lifespan.startup"}

async def send(message):
    print(message["type"], message["message"])

with contextlib.suppress(ConfigurationError):
    asyncio.run(OtplessSessionMiddleware(FastAPI())({"type": "lifespan"}, receive, send))
"""
IMPORTING = "import json, sys, fastapi_otpless_session; print(json.dumps(sorted(sys.modules)))"


def run(code: str, **variables: str) -> str:
    """Run code in a process of its own, and return what it printed."""
    environ = {**DEMO, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True).stdout  # noqa: S603


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Emulator, TestClient]]:
    """An application that asks OTPLESS on every request, as its environment says, and the emulator on a socket."""
    emulator = Emulator()
    with serve(emulator) as url:
        mine = {
            "OTPLESS_BASE_URL": url,
            "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
            "OTPLESS_HTTP_CLIENT": "aiohttp",
        }
        for name, value in {**DEMO, **mine, "OTPLESS_VALIDATION_TTL": "0"}.items():
            monkeypatch.setenv(name, value)
        app = make_app()
        app.add_middleware(OtplessSessionMiddleware)
        with TestClient(app, base_url="https://shop.example") as client:
            yield emulator, client


def test_a_session_is_signed_in_asked_for_refreshed_and_signed_out(shop: tuple[Emulator, TestClient]) -> None:
    emulator, client = shop
    user = emulator.sign_in()
    session_id = user["sessionInfo"]["sessionId"]
    assert client.post("/auth/login", json=user).status_code == 200
    for _ in range(3):
        assert client.get("/orders").json() == {
            "id": session_id,
            "user": user["userId"],
            "refreshed": False,
            "stale": False,
        }
    assert emulator.count("validate-session") == 3
    emulator.expire(session_id)
    assert client.get("/orders").json()["refreshed"] is True
    assert client.get("/details").json()["session_id"] == session_id
    assert emulator.count("get-new-session-token") == 1
    emulator.add_fault(Fault("reset", times=1))
    assert client.get("/orders").json()["stale"] is True
    assert client.post("/auth/logout").status_code == 204
    assert client.get("/orders").status_code == 401
    assert emulator.session(session_id).revoked


def test_a_missing_package_keeps_the_server_from_starting_and_is_told_with_what_to_install() -> None:
    printed = run(STARTING, OTPLESS_HTTP_CLIENT="aiohttp")
    assert printed.startswith("lifespan.startup.failed OTPLESS_HTTP_CLIENT: ")
    assert 'pip install "fastapi-otpless-session[fast]"' in printed


def test_aiohttp_is_imported_only_where_it_is_chosen() -> None:
    assert "aiohttp" not in json.loads(run(IMPORTING))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take connections beyond the backlog")
async def test_a_connection_that_does_not_come_about_in_time_means_that_nothing_was_sent() -> None:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        with suppress(TimeoutError):
            while True:  # until there is no room left: from then on whoever wants to connect waits
                address = listener.getsockname()
                stack.enter_context(socket.create_connection(address, timeout=SHORT))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = OtplessSettings(
            client_id="demo-client",
            client_secret="demo-secret",
            base_url=url,
            http_client="aiohttp",
            request_timeout=SHORT,
        )
        async with OtplessClient(settings) as client:
            with pytest.raises(UpstreamError, match="was not reached") as caught:
                await asyncio.wait_for(client.validate_session("a.b.c"), PATIENCE)
    assert caught.value.unsent is True


@pytest.mark.parametrize("host", ["x..y", ".", f"{'a' * 64}.example", "x\\y"])
async def test_a_host_that_cannot_be_looked_up_means_that_nothing_was_sent(host: str) -> None:
    sender = AiohttpSender()
    with pytest.raises(UpstreamError, match="was not reached") as caught:
        await sender.send(jwks_call(f"https://{host}/jwks"), deadline=PATIENCE)
    await sender.close()
    assert caught.value.unsent is True
