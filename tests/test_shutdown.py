"""Shutting down and giving up: what was begun is finished, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from conftest import make_settings
from fleet_members import REFRESH, Fleet, Turnstile, outcome, until
from processes import PATIENCE, wait_until
from servers import Nursery, Worker, environment, uvicorn
from simulated import Stalls, hurry

from fastapi_otpless_session import OtplessClient, OtplessSessions, Session, SessionReason
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.wire import Answer, Request

EVERY_TIME = {"OTPLESS_VALIDATION_TTL": "0", "OTPLESS_REQUEST_TIMEOUT": "30", "OTPLESS_REFRESH_TIMEOUT": "30"}


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Real uvicorn processes, and an OTPLESS whose refresh tokens work once."""
    emulator = Emulator(EmulatorSettings(rotation="strict"))
    emulator.app = turnstile = Turnstile(emulator.app)
    with serve(emulator) as url, Nursery(tmp_path) as nursery:
        fleet = Fleet(nursery, emulator, turnstile, environment(url, tmp_path / "s.db", **EVERY_TIME))
        yield fleet
        await fleet.close()


def _accepts(worker: Worker) -> bool:
    url = httpx.URL(worker.url)
    try:
        socket.create_connection((url.host, url.port or 0)).close()
    except ConnectionError:
        return False
    return True


async def test_sigterm_in_the_middle_of_a_refresh_finishes_it_and_its_client_gets_the_token(fleet: Fleet) -> None:
    worker = fleet.start()
    visitor = await fleet.sign_in(worker)
    request = await fleet.held_refresh(worker, visitor)
    worker.send(signal.SIGTERM)
    await until(lambda: not _accepts(worker))  # it has begun to shut down
    fleet.turnstile.let_go()
    answer = await request
    assert (outcome(answer), "x-session-token" in answer.headers) == ("ok", True)
    assert fleet.ended(worker) == -signal.SIGTERM  # uvicorn's way to say that it went in good order
    assert outcome(await fleet.get(fleet.start(), answer.headers["x-session-token"])) == "ok"
    assert fleet.calls(REFRESH, visitor) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_the_server_is_not_told_of_a_fault(tmp_path: Path, number: int) -> None:
    log = tmp_path / "log"
    with (
        serve(Emulator(EmulatorSettings())) as emulator,
        uvicorn(environment(emulator, tmp_path / "s.db"), log=log, ends_by=number),
    ):
        pass
    said = log.read_text()
    assert "Application shutdown complete" in said
    assert "unsupported" not in said, "uvicorn takes a lifespan that it has to cancel for none"
    assert "Traceback" not in said


async def test_sigterm_finishes_a_refresh_that_nobody_waits_for_any_more(fleet: Fleet) -> None:
    worker = fleet.start()
    visitor = await fleet.sign_in(worker)
    (await fleet.held_refresh(worker, visitor)).cancel()
    worker.send(signal.SIGTERM)
    await until(lambda: not _accepts(worker))  # it has begun to shut down
    fleet.turnstile.let_go()
    assert fleet.ended(worker) == -signal.SIGTERM
    assert fleet.calls(REFRESH, visitor) == 1
    answer = await fleet.get(fleet.start(), visitor.token)
    assert (outcome(answer), "x-session-token" in answer.headers) == ("ok", True)
    assert fleet.calls(REFRESH, visitor) == 1  # the row had the new pair


async def test_a_client_that_disconnects_changes_nothing_for_others_who_wait_nor_for_itself(fleet: Fleet) -> None:
    worker = fleet.start()
    visitor = await fleet.sign_in(worker)
    leaving = await fleet.held_refresh(worker, visitor)
    staying = asyncio.create_task(fleet.get(worker, visitor.token))
    await fleet.get(worker, visitor.token, "/public")  # sent later: the one before waits by now
    leaving.cancel()
    await asyncio.wait([leaving])
    fleet.turnstile.let_go()
    answers = [await staying, await fleet.get(worker, visitor.token)]
    assert [outcome(answer) for answer in answers] == ["ok", "ok"]
    assert len({answer.headers["x-session-token"] for answer in answers}) == 1
    assert fleet.calls(REFRESH, visitor) == 1


async def test_sessions_that_are_closed_twice_at_once_are_closed_and_can_be_opened_again(any_store_url: str) -> None:
    sessions = OtplessSessions(make_settings(store_url=any_store_url))
    before = asyncio.all_tasks()
    for _ in range(2):
        await sessions.open()
        assert await sessions.end("x") is False
        await asyncio.gather(sessions.close(), sessions.close())
        assert not sessions.is_open
        assert asyncio.all_tasks() == before


@dataclass
class FaultySender:
    """Sends nothing, and fails while it is told to."""

    fails_to: str = ""

    async def open(self) -> None:
        self._check("open")

    async def close(self) -> None:
        self._check("close")

    async def send(self, request: Request, *, deadline: float) -> Answer:  # noqa: ARG002 - nobody asks
        raise AssertionError

    def _check(self, name: str) -> None:
        if name == self.fails_to:
            raise OSError(f"cannot {name}")


async def test_sessions_that_cannot_be_opened_leave_nothing_open_and_can_be_opened_later(tmp_path: Path) -> None:
    settings = make_settings(store_url=f"sqlite:///{tmp_path / 'sessions.db'}")
    sender = FaultySender("open")
    files = _open_files()
    sessions = OtplessSessions(settings, client=OtplessClient(settings, http=sender))
    with pytest.raises(OSError, match="cannot open"):
        await sessions.open()
    assert _open_files() == files
    assert "otpless-session-store" not in {thread.name for thread in threading.enumerate()}
    sender.fails_to = ""
    async with sessions:
        assert await sessions.list("MO-1") == []


async def test_sessions_whose_client_cannot_be_closed_close_their_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = FaultySender("close")
    monkeypatch.setattr("fastapi_otpless_session.client.new_sender", lambda _: sender)
    files = _open_files()
    sessions = OtplessSessions(make_settings(store_url=f"sqlite:///{tmp_path / 'sessions.db'}"))
    await sessions.open()
    with pytest.raises(OSError, match="cannot close"):
        await sessions.close()
    assert _open_files() == files
    assert "otpless-session-store" not in {thread.name for thread in threading.enumerate()}


def test_a_life_with_faults_leaves_no_task_connection_file_or_thread_open(tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.app = stalls = Stalls(emulator.app)
    with serve(emulator) as url:
        asyncio.run(_live(emulator, stalls, url, tmp_path / "warm.db"))  # what Python itself opens once is open now
        files, threads = Counter(_open_files()), set(threading.enumerate())
        asyncio.run(_live(emulator, stalls, url, tmp_path / "s.db"))
        gc.collect()  # a connection that was forgotten would warn now, and warnings are errors
        # The emulator is in this process, too, and may need a moment to see that its clients have gone; those of the
        # first life as well, so that there may be less open than before.
        wait_until(lambda: not Counter(_open_files()) - files, "for everything to be closed")
        assert set(threading.enumerate()) <= threads


async def _live(emulator: Emulator, stalls: Stalls, url: str, file: Path) -> None:
    values = make_settings(
        base_url=url,
        jwks_url=f"{url}/.well-known/jwks",
        store_url=f"sqlite:///{file}",
        request_timeout=PATIENCE,
        refresh_timeout=PATIENCE,
        validation_ttl=0,
        stale_if_error=0,
    )
    async with OtplessSessions(values) as sessions:
        hurry(sessions._client, stalls)
        user = emulator.sign_in()
        token = (await sessions.sign_in(user)).token.get_secret_value()
        assert isinstance(await sessions.resolve(token), Session)
        for kind in ("hang", "drip", "reset", "truncated", "huge"):
            emulator.add_fault(Fault(kind, times=1))
            assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
        emulator.clear_faults()
        emulator.add_fault(Fault("hang"))
        request = asyncio.create_task(sessions.resolve(token))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
    emulator.clear_faults()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def _open_files() -> list[str]:
    """Name the kinds of what this process has open."""
    links = Path("/proc/self/fd").iterdir()
    return sorted(str(link.readlink()).partition(":")[0] for link in links if link.is_symlink())


async def test_who_opens_twice_has_one_of_everything_to_close() -> None:
    before = asyncio.all_tasks()
    sessions = OtplessSessions(make_settings())
    await sessions.open()
    await sessions.open()
    await sessions.close()
    assert asyncio.all_tasks() == before
