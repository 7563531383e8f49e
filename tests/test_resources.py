"""Floods: of made-up tokens, and of sessions that expire at once."""

from __future__ import annotations

import asyncio
import base64
import gc
import itertools
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Clock, make_settings
from made_up import MadeUp

from fastapi_otpless_session import (
    OtplessClient,
    OtplessSessions,
    Session,
    SessionStore,
    open_store,
)
from fastapi_otpless_session.emulator import Emulator
from fastapi_otpless_session.stores.base import Lease, Rotation, SessionRow
from fastapi_otpless_session.stores.sqlite import SqliteStore
from fastapi_otpless_session.vault import Vault
from fastapi_otpless_session.wire import Answer, Request

pytestmark = [pytest.mark.slow, pytest.mark.varied]

GARBAGE = 100_000
MEGABYTES = 50

CROWD = 10_000
PLACES = 100
LATENCY = 0.05
PATIENCE = 1200
"""All ask in the same instant, and a thousand take a second of a machine's time, or as much more as it is busy."""


def resident_megabytes() -> float:
    """How much memory this process has, in MB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.fixture
async def known(clock: Clock) -> AsyncIterator[tuple[OtplessSessions, Emulator, str]]:
    """Sessions of a worker whose OTPLESS is in the same process, and the token of somebody who is signed in."""
    emulator = Emulator(clock=clock)
    settings = make_settings()
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http,
        OtplessSessions(settings, client=OtplessClient(settings, http=http, monotonic=clock), clock=clock) as sessions,
    ):
        session = await sessions.sign_in(emulator.sign_in())
        yield sessions, emulator, session.token.get_secret_value()


async def test_a_hundred_thousand_made_up_tokens_cost_little_memory_and_otpless_hears_of_none(
    known: tuple[OtplessSessions, Emulator, str],
) -> None:
    sessions, emulator, token = known
    made_up = iter(MadeUp(emulator))
    for _ in range(100):
        await sessions.resolve(next(made_up))
    emulator.reset_calls()
    before = resident_megabytes()
    for each in itertools.islice(made_up, GARBAGE):
        assert not isinstance(await sessions.resolve(each), Session)
    assert resident_megabytes() - before < MEGABYTES
    assert isinstance(await sessions.resolve(token), Session)
    assert emulator.calls == []


class Upstream:
    """An OTPLESS that takes 50 ms to give a new pair: the emulator's signatures would take minutes for so many.

    It answers when all places are taken, however slowly that comes about.
    """

    def __init__(self) -> None:
        self.under_way = 0
        self.most = 0
        self.calls = 0
        self._all_places = asyncio.Barrier(PLACES)

    async def send(self, request: Request, *, deadline: float) -> Answer:
        assert deadline > 0
        claims = _claims_of(json.loads(request.body)["refreshToken"])
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self._all_places.wait()
            await asyncio.sleep(LATENCY)
        finally:
            self.under_way -= 1
        now = time.time()
        data = {
            "sessionId": claims["sessionId"],
            "sessionToken": made(claims["sessionId"], now + 86_400),
            "refreshToken": made(claims["sessionId"], now + 604_800),
        }
        return Answer(200, {}, json.dumps({"success": True, "data": data}).encode())

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


def made(session_id: str, expires_at: float) -> str:
    """Return a token that nobody signed: here it comes from OTPLESS itself, and is believed."""
    claims = {"sessionId": session_id, "userId": "MO-1", "exp": int(expires_at), "jti": secrets.token_hex(8)}
    parts = [json.dumps({"alg": "RS256"}).encode(), json.dumps(claims).encode(), b"signature"]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def _claims_of(token: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))


async def test_ten_thousand_sessions_that_expire_in_one_second_are_all_refreshed_within_the_cap() -> None:
    settings, upstream = make_settings(max_upstream=PLACES, refresh_timeout=PATIENCE), Upstream()
    store = open_store("memory://")
    client = OtplessClient(settings, http=upstream)
    async with OtplessSessions(settings, store=store, client=client) as sessions:
        tokens = [await _expired(store, Vault(settings), number) for number in range(CROWD)]
        answers = await asyncio.gather(*(sessions.resolve(token) for token in tokens))
    await store.close()
    assert sum(isinstance(answer, Session) for answer in answers) == CROWD
    assert upstream.calls == CROWD
    assert upstream.most == PLACES


class CountingStore(SqliteStore):
    """A store in memory that knows how many leases are held."""

    held = most = 0

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        lease = await super().take_lease(session_id, generation, owner, seconds)
        self.held += lease is not None
        self.most = max(self.most, self.held)
        return lease

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        self.held -= 1
        return await super().commit(lease, rotation)


async def test_a_crowd_takes_no_more_leases_than_it_can_make_calls() -> None:
    """A lease that waits for its turn lapses; and where all leases come before the first commit, none is in time."""
    settings, upstream = make_settings(max_upstream=PLACES, refresh_timeout=PATIENCE), Upstream()
    store = CountingStore(None)
    async with OtplessSessions(settings, store=store, client=OtplessClient(settings, http=upstream)) as sessions:
        tokens = [await _expired(store, Vault(settings), number) for number in range(5 * PLACES)]
        answers = await asyncio.gather(*(sessions.resolve(token) for token in tokens))
    await store.close()
    assert sum(isinstance(answer, Session) for answer in answers) == len(tokens)
    assert store.most == PLACES


async def _expired(store: SessionStore, vault: Vault, number: int) -> str:
    """Put a session into the store whose token has just expired, and return the token."""
    now, session_id = time.time(), f"{number:032x}"
    token, refresh = made(session_id, now - 1), made(session_id, now + 604_800)
    row = SessionRow(
        session_id=session_id,
        user_id="MO-1",
        rotated_at=now,
        session_token=vault.seal_session_token(token, session_id),
        token_expires_at=now - 1,
        refresh_token=vault.seal_refresh_token(refresh, session_id),
        validated_at=now,
        created_at=now - 86_400,
        last_seen_at=now,
        expires_at=now + 604_800,
        summary="{}",
    )
    await store.create(row, vault.digest(token), vault.digest(refresh))
    return token
