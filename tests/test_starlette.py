"""Without FastAPI: plain Starlette, by itself and mounted, gives the answers that it would."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastapi_otpless_session import OtplessSessionMiddleware, RefusalError
from fastapi_otpless_session.testing import use_emulator


async def required(request: Request) -> JSONResponse:
    session = await request.state.otpless.require()
    return JSONResponse({"user": session.user_id})


async def optional(request: Request) -> JSONResponse:
    session = await request.state.otpless.session()
    return JSONResponse({"user": session and session.user_id})


def plain(**values: Any) -> Starlette:
    app = Starlette(routes=[Route("/required", required), Route("/optional", optional)], **values)
    app.add_middleware(OtplessSessionMiddleware)
    return app


def mounted() -> FastAPI:
    app = FastAPI()
    app.mount("/", Starlette(routes=[Route("/required", required), Route("/optional", optional)]))
    app.add_middleware(OtplessSessionMiddleware)
    return app


TWO_TOKENS = [("X-Session-Token", "a.b.c"), ("X-Session-Token", "a.b.d")]


@pytest.mark.parametrize("make", [plain, mounted])
def test_a_session_is_served_and_a_refusal_is_what_it_says(make: Any) -> None:
    app = make()
    with use_emulator(app) as otpless, TestClient(app) as client:
        missing = client.get("/required")
        assert missing.status_code == 401
        assert missing.headers["WWW-Authenticate"] == 'Bearer realm="otpless"'
        assert missing.json()["detail"]["code"] == "session_missing"
        assert client.get("/optional").json() == {"user": None}
        for path in ("/required", "/optional"):
            conflict = client.get(path, headers=TWO_TOKENS)
            assert (conflict.status_code, conflict.json()["detail"]["code"]) == (400, "conflicting_credentials")
        otpless.sign_in(client, user_id="MO-7")
        assert client.get("/required").json() == client.get("/optional").json() == {"user": "MO-7"}


def test_it_is_shown_as_the_application_says() -> None:
    async def show(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusalError)
        return JSONResponse(error.body, error.status_code, error.headers)

    app = plain(exception_handlers={RefusalError: show})
    with use_emulator(app), TestClient(app) as client:
        missing = client.get("/required")
        assert missing.headers["Content-Type"] == "application/json"
        assert missing.json()["detail"]["code"] == "session_missing"
