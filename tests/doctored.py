"""Runs the doctor as its command line does, on setups that a test describes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from processes import PATIENCE

from fastapi_otpless_session.__main__ import main
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve
from fastapi_otpless_session.tokens import new_key

SECRET = "canary-client-secret-0123456789"
APP = """
from fastapi import FastAPI
from fastapi_otpless_session import CurrentSession, OtplessSessionMiddleware, create_session_router

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware)
app.include_router(create_session_router(), prefix="/auth")


@app.get("/orders/{number}")
async def order(number: int, session: CurrentSession) -> str:
    return session.user_id
"""
_numbers = count(1)


@dataclass
class Examined:
    """What a run of the doctor printed, and its exit status."""

    status: int
    out: str
    err: str
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return str(self.checks[name]["status"])

    def wrong(self) -> dict[str, str]:
        """Return the warnings and problems."""
        return {name: each["status"] for name, each in self.checks.items() if each["status"] in {"warning", "problem"}}

    def text(self, name: str) -> str:
        return f"{self.checks[name]['finding']} {self.checks[name]['fix'] or ''}"


Examine = Callable[..., Examined]


@pytest.fixture
def examine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the doctor as the command line does; `app` is the text of a module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    emulator = EmulatorSettings()
    defaults = {
        "OTPLESS_CLIENT_ID": emulator.client_id,
        "OTPLESS_CLIENT_SECRET": emulator.client_secret,
        "OTPLESS_STORE_URL": f"sqlite:///{tmp_path}/sessions.db",
        "OTPLESS_ENCRYPTION_KEYS": new_key(),
        # Nobody listens there: tests that are not about OTPLESS do without.
        "OTPLESS_BASE_URL": "http://127.0.0.1:9",
        "OTPLESS_JWKS_URL": "http://127.0.0.1:9/.well-known/jwks",
    }

    def run(
        *options: str,
        app: str | None = None,
        attribute: str = "app",
        otpless: str | None = None,
        as_json: bool = True,
        **variables: str,
    ) -> Examined:
        urls = (
            {}
            if otpless is None
            else {
                "OTPLESS_BASE_URL": otpless,
                "OTPLESS_JWKS_URL": f"{otpless}/.well-known/jwks",
            }
        )
        for name, value in {**defaults, **urls, **variables}.items():
            monkeypatch.setenv(name, value)
        arguments = ["doctor", "--timeout", str(PATIENCE), *options, *["--json"] * as_json]
        if app is not None:
            module = f"doctored_{os.getpid()}_{next(_numbers)}"
            (tmp_path / f"{module}.py").write_text(dedent(app))
            arguments.append(f"{module}:{attribute}")
        status = main(arguments)
        out, err = capsys.readouterr()
        checks = {each["id"]: each for each in json.loads(out)["checks"]} if as_json and out else {}
        return Examined(status, out, err, checks)

    return run


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def url(emulator: Emulator) -> Iterator[str]:
    with serve(emulator) as url:
        yield url
