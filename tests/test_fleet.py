"""What the refresh protocol promises of many workers, proven on real ones: processes, sockets, stores, SIGKILL.

`PROOF_ROUNDS` (3 unless set) says how often what could go wrong by chance is tried.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from processes import PATIENCE
from servers import environment, uvicorn

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "3"))
WORKERS = 8
REQUESTS = 200
TRIES = 20
PATIENT = {"OTPLESS_REQUEST_TIMEOUT": "30", "OTPLESS_REFRESH_TIMEOUT": "30"}
"""For what is not about deadlines: a slow machine is no failure."""

Crowd = Sequence[httpx.AsyncClient]
"""One client for each connection: httpx's pool takes seconds to choose between hundreds."""

TLS = httpx.create_ssl_context()
"""Made once: for hundreds of clients it would take seconds."""

REFRESH = "get-new-session-token"


async def test_200_requests_on_8_workers_with_one_dead_token_make_one_refresh(store_url: str) -> None:
    emulator = Emulator(EmulatorSettings(rotation="strict"))
    with serve(emulator) as emulator_url:
        variables = environment(emulator_url, store_url, OTPLESS_VALIDATION_TTL="0", **PATIENT)
        with uvicorn(variables, workers=WORKERS) as url:
            user = emulator.sign_in()
            token = await _sign_in(url, user)
            async with _crowd(url) as crowd:
                for _ in range(ROUNDS):
                    emulator.expire(user["sessionInfo"]["sessionId"])
                    emulator.reset_calls()
                    answers = await _together(crowd, "/orders", {"X-Session-Token": token})
                    assert [answer.status_code for answer in answers] == [200] * REQUESTS
                    assert len(_workers(answers)) > 1
                    assert emulator.count(REFRESH) == 1
                    swapped = {answer.headers["x-session-token"] for answer in answers}
                    assert len(swapped) == 1
                    assert token not in swapped
                    (token,) = swapped


async def _sign_in(url: str, user: dict[str, Any]) -> str:
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        answer = await client.post("/auth/login?channel=header", json=user)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-session-token"])


@asynccontextmanager
async def _crowd(url: str) -> AsyncIterator[Crowd]:
    """Open many connections, not all to one worker: the first that wakes up may well accept them all."""
    for _ in range(TRIES):
        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(_client(url)) for _ in range(REQUESTS)]
            if len(_workers(await _together(crowd, "/public", {}))) > 1:
                yield crowd
                return
    raise AssertionError("one worker accepts all connections")


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(keepalive_expiry=PATIENCE)
    return httpx.AsyncClient(base_url=url, verify=TLS, limits=limits, timeout=PATIENCE)


async def _together(crowd: Crowd, path: str, headers: dict[str, str]) -> list[httpx.Response]:
    return await asyncio.gather(*(client.get(path, headers=headers) for client in crowd))


def _workers(answers: list[httpx.Response]) -> set[int]:
    return {answer.json()["worker"] for answer in answers}
