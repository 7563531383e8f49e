"""Over real sockets: uvicorn workers that share one SQLite file, and an emulator on a socket of its own."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import environment, uvicorn

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve

pytestmark = pytest.mark.varied

REQUESTS = 100


@pytest.fixture
def strict() -> Iterator[tuple[Emulator, str]]:
    """An emulator that gives each refresh token one use, and revokes the session on a second."""
    emulator = Emulator(EmulatorSettings(rotation="strict"))
    with serve(emulator) as url:
        yield emulator, url


async def _together(url: str, token: str) -> list[httpx.Response]:
    """Send many requests at once, each on a connection of its own, so that all workers get some."""
    limits = httpx.Limits(max_connections=REQUESTS, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, limits=limits) as client:
        headers = {"X-Session-Token": token}
        return await asyncio.gather(*(client.get("/orders", headers=headers) for _ in range(REQUESTS)))


def _sign_in(url: str, emulator: Emulator) -> dict[str, Any]:
    user = emulator.sign_in()
    answer = httpx.post(f"{url}/auth/login?channel=header", json=user)
    assert answer.status_code == 200, answer.text
    return user


def test_a_restart_loses_no_session_and_a_sign_out_acts_on_every_worker(
    strict: tuple[Emulator, str], tmp_path: Path
) -> None:
    emulator, emulator_url = strict
    variables = environment(emulator_url, tmp_path / "s.db")
    with uvicorn(variables) as url:
        token = str(_sign_in(url, emulator)["sessionInfo"]["sessionToken"])
    with uvicorn(variables, workers=2) as url:
        headers = {"X-Session-Token": token}
        assert httpx.get(f"{url}/orders", headers=headers).status_code == 200
        assert httpx.post(f"{url}/auth/logout", headers=headers).status_code == 204
        answers = asyncio.run(_together(url, token))
        assert {answer.json()["detail"]["code"] for answer in answers} == {"session_revoked"}


def test_each_channel_works_and_nothing_secret_is_in_the_file_or_the_log(
    strict: tuple[Emulator, str], tmp_path: Path
) -> None:
    emulator, emulator_url = strict
    store, log = tmp_path / "s.db", tmp_path / "log"
    with uvicorn(environment(emulator_url, store), log=log) as url, httpx.Client(base_url=url) as client:
        user = emulator.sign_in()
        assert client.post("/auth/login", json=user).status_code == 200
        info = user["sessionInfo"]
        seen = {info["sessionToken"], info["refreshToken"], user["token"], "demo-secret"}
        for _ in range(2):
            assert client.get("/orders").status_code == 200
            token = str(client.cookies["otpless_session"])
            seen.add(token)
            with httpx.Client(base_url=url) as other:
                for headers in ({"Authorization": f"Bearer {token}"}, {"X-Session-Token": token}):
                    assert other.get("/orders", headers=headers).status_code == 200
            emulator.expire(info["sessionId"])
            _age(store)
        swapped = client.get("/orders")
        assert swapped.json()["refreshed"] is True
        seen.add(str(client.cookies["otpless_session"]))
        assert client.post("/auth/logout").status_code == 204
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"fastapi_otpless_session" in log.read_bytes() or b"GET /orders" in log.read_bytes()
    assert [secret for secret in seen if secret.encode() in held] == []


def _age(store: Path) -> None:
    """Let the file say that OTPLESS was asked long ago, so that it is asked again."""
    with closing(sqlite3.connect(store, isolation_level=None)) as db:
        db.execute("UPDATE sessions SET validated_at = 0")
