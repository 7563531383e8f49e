"""The refresh protocol: one call, no race signs anybody out, an old token is worth little."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from conftest import Clock, World, make_app, make_settings
from crew import STRICT, Door, FailingStore, Workers, close, files
from fleet_members import Turnstile, until
from processes import PATIENCE
from simulated import LoopTime, Stalls, hurry, settle

from fastapi_otpless_session import (
    CurrentSession,
    NoVerdictError,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    Session,
    SessionReason,
    StoreError,
)
from fastapi_otpless_session.denials import Denials
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.outage import RESERVE_SECONDS
from fastapi_otpless_session.stores import SessionStore
from fastapi_otpless_session.stores.base import Lease, Rotation, SessionRow, State
from fastapi_otpless_session.stores.sqlite import SqliteStore
from fastapi_otpless_session.tokens import new_key

DAY = 86_400


def token_of(answer: httpx.Response) -> str:
    return str(answer.headers["x-session-token"])


def code(answer: httpx.Response) -> str:
    return str(answer.json()["detail"]["code"])


def refreshes(world: World) -> int:
    return world.emulator.count("get-new-session-token")


@pytest.mark.parametrize("rotation", ["fixed", "rotating", "strict"])
def test_a_session_outlives_many_tokens(make_world: Callable[..., World], rotation: Any) -> None:
    world = make_world(EmulatorSettings(rotation=rotation))
    world.sign_in()
    for turn in range(1, 6):
        world.clock.advance(DAY + 1)
        assert world.get("/orders").json()["refreshed"] is True
        assert refreshes(world) == turn


def test_a_lost_response_costs_nothing_however_late_the_client_returns(make_world: Callable[..., World]) -> None:
    world = make_world(STRICT)
    first = world.token(world.sign_in(channel="header"))
    world.clock.advance(DAY + 1)
    lost = token_of(world.get("/orders", first))
    world.clock.advance(3_600)
    again = world.get("/orders", first)
    assert (again.status_code, token_of(again)) == (200, lost)
    assert refreshes(world) == 1


def test_an_older_token_is_good_for_the_grace_after_its_successor_was_seen(make_world: Callable[..., World]) -> None:
    world = make_world(STRICT, rotation_grace=30)
    first = world.token(world.sign_in(channel="header"))
    world.clock.advance(DAY + 1)
    second = token_of(world.get("/orders", first))
    assert world.get("/orders", second).status_code == 200
    world.clock.advance(29)
    assert token_of(world.get("/orders", first)) == second
    world.clock.advance(2)  # one for the time that a request takes by a real clock
    reused = world.get("/orders", first)
    assert (reused.status_code, code(reused)) == (401, "session_reused")


def test_a_long_superseded_token_ends_its_session_everywhere(make_world: Callable[..., World]) -> None:
    world = make_world(STRICT)
    user = world.sign_in(channel="header")
    first = world.token(user)
    world.clock.advance(DAY + 1)
    second = token_of(world.get("/orders", first))
    world.get("/orders", second)
    world.clock.advance(31)
    world.get("/orders", first)
    assert code(world.get("/orders", second)) == "session_revoked"
    assert world.emulator.session(world.session_id(user)).revoked


def test_with_on_reuse_reject_the_session_goes_on(make_world: Callable[..., World]) -> None:
    world = make_world(STRICT, on_reuse="reject")
    first = world.token(world.sign_in(channel="header"))
    world.clock.advance(DAY + 1)
    second = token_of(world.get("/orders", first))
    world.get("/orders", second)
    world.clock.advance(31)
    assert code(world.get("/orders", first)) == "session_reused"
    assert world.get("/orders", second).status_code == 200


def test_several_quick_rotations_leave_every_token_of_the_grace_good(make_world: Callable[..., World]) -> None:
    world = make_world(STRICT, validation_ttl=0)
    user = world.sign_in(channel="header")
    tokens = [world.token(user)]
    for _ in range(3):
        world.emulator.expire(world.session_id(user))
        tokens.append(token_of(world.get("/orders", tokens[-1])))
        world.get("/orders", tokens[-1])
        world.clock.advance(5)
    assert [world.get("/orders", token).status_code for token in tokens] == [200] * 4


def test_a_session_id_in_a_forged_token_never_finds_a_row(world: World) -> None:
    user = world.sign_in(channel="header")
    world.clock.advance(DAY + 1)
    claims = {
        "sub": world.session_id(user),
        "sessionId": world.session_id(user),
        "userId": user["userId"],
        "iss": "https://otpless.com",
        "iat": int(world.clock.now),
        "exp": int(world.clock.now) + 3600,
    }
    for forged in (
        world.emulator.forge(claims),
        world.emulator.issue(claims),
        world.emulator.issue({**claims, "exp": 1}),
    ):
        assert world.get("/orders", forged).status_code == 401
        world.client.cookies.set("__Host-otpless_session", forged, domain="shop.example")
        assert world.get("/orders").status_code == 401
        world.client.cookies.clear()
    assert refreshes(world) == 0


def test_a_fault_in_a_refresh_is_503_and_the_session_works_afterwards(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.sign_in()
    world.clock.advance(DAY + 1)
    for status, body in ((500, None), (401, b'{"message": "who?"}'), (200, b"<html>"), (429, None)):
        world.emulator.add_fault(Fault("status", status=status, body=body))
        answer = world.get("/orders")
        assert (answer.status_code, code(answer)) == (503, "session_unavailable")
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert "set-cookie" not in answer.headers
        assert world.get("/maybe").json() == {"user": None}
        assert world.get("/public").status_code == 200
        world.emulator.clear_faults()
        world.clock.advance(1)
        assert world.get("/orders").status_code == 200
        world.clock.advance(DAY + 1)


def test_an_answer_for_another_session_is_no_verdict(world: World) -> None:
    user = world.sign_in()
    world.clock.advance(DAY + 1)
    world.emulator.add_fault(Fault("other_session", path="get-new-session-token", times=1))
    assert world.get("/orders").status_code == 503
    assert world.get("/orders").json()["user"] == user["userId"]


async def test_a_lost_answer_is_asked_for_again(clock: Clock) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    with serve(emulator) as url:
        settings = make_settings(base_url=url, jwks_url=f"{url}/.well-known/jwks")
        async with OtplessSessions(settings, clock=clock) as sessions:
            session = await sessions.sign_in(emulator.sign_in())
            clock.advance(DAY + 1)
            emulator.add_fault(Fault("act_then_reset", path="get-new-session-token", times=1))
            token = session.token.get_secret_value()
            assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
            assert isinstance(await sessions.resolve(token), Session)


@pytest.mark.parametrize("kind", ["hang", "reset", "truncated", "gzip_bomb", "deep", "redirect", "wrong_types"])
async def test_an_otpless_that_answers_nothing_usable_signs_nobody_out(clock: Clock, kind: Any) -> None:
    emulator = Emulator(clock=clock)
    emulator.app = stalls = Stalls(emulator.app)
    with serve(emulator) as url:
        settings = make_settings(
            base_url=url,
            jwks_url=f"{url}/.well-known/jwks",
            request_timeout=PATIENCE,
            refresh_timeout=PATIENCE,
            stale_if_error=0,
        )
        async with OtplessSessions(settings, clock=clock) as sessions:
            hurry(sessions._client, stalls)
            session = await sessions.sign_in(emulator.sign_in())
            token = session.token.get_secret_value()
            for path in ("validate-session", "get-new-session-token"):
                clock.advance(31 if path == "validate-session" else DAY + 1)
                emulator.add_fault(Fault(kind, path=path))
                assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
                emulator.clear_faults()
                assert isinstance(await sessions.resolve(token), Session)


async def test_the_seconds_that_are_given_count_for_the_calls_to_otpless_too(clock: Clock) -> None:
    """After five failures OTPLESS is left alone for a second of them."""
    emulator = Emulator(clock=clock)
    with serve(emulator) as url:
        settings = make_settings(base_url=url, jwks_url="", stale_if_error=0)
        async with OtplessSessions(settings, clock=clock, monotonic=clock) as sessions:
            token = emulator.sign_in()["sessionInfo"]["sessionToken"]
            emulator.add_fault(Fault("status", path="validate-session", status=500))
            for _ in range(7):
                assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
            assert emulator.count("validate-session") == 5
            emulator.clear_faults()
            clock.advance(2)
            assert isinstance(await sessions.resolve(token), Session)


HERD = 10

# What several workers and failing stores do is shown on `OtplessSessions` itself: each object is a worker.


async def _called(emulator: Emulator) -> None:
    """Let the loop run until OTPLESS is being asked for a new pair."""
    while not emulator.count("get-new-session-token"):  # noqa: ASYNC110 - the emulator tells nobody
        await asyncio.sleep(0)


@asynccontextmanager
async def expired(path: Path, clock: Clock, count: int = 1, **values: Any) -> AsyncIterator[Workers]:
    """Workers on a file, and somebody whose token is dead."""
    stores = files(path, clock, count)
    async with Workers(Emulator(STRICT, clock=clock), clock, stores, **values) as world:
        clock.advance(DAY + 1)
        yield world
    await close(stores)


async def test_workers_that_refresh_at_once_share_one_call_and_one_token(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 4)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        outcomes = await asyncio.gather(*(w.resolve(world.token) for w in world.workers for _ in range(25)))
        assert {o.token.get_secret_value() for o in outcomes if isinstance(o, Session)} != {world.token}
        assert len({o.token.get_secret_value() for o in outcomes if isinstance(o, Session)}) == 1
        assert len(outcomes) == sum(isinstance(o, Session) for o in outcomes)
        assert emulator.count("get-new-session-token") == 1
    await close(stores)


async def test_a_cancelled_request_does_not_cancel_the_refresh(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 1)
    emulator.set_latency("get-new-session-token", 0.05)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await _called(emulator)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        outcome = await world.workers[0].resolve(world.token)
        assert isinstance(outcome, Session)
        assert outcome.refreshed
        assert emulator.count("get-new-session-token") == 1
    await close(stores)


@pytest.mark.parametrize(("store_ttl", "seen"), [(0, HERD - 1), (3600, 0)])
async def test_of_a_herd_only_the_first_reads_the_row(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, store_ttl: float, seen: int
) -> None:
    """The others see that it is as the first read it, unless that is believed for longer."""
    async with expired(tmp_path, clock, store_ttl=store_ttl) as world:
        emulator = world.emulator
        asked: Counter[str] = Counter()
        for name in ("find", "get", "unchanged_at"):
            _count(monkeypatch, name, asked)
        worker = world.workers[0]
        sessions = await asyncio.gather(*(worker.resolve(world.token) for _ in range(HERD)))
        assert all(isinstance(session, Session) and session.refreshed for session in sessions)
        assert len({id(session) for session in sessions}) == 1
        assert asked == Counter(find=1, unchanged_at=seen)
        [newest, *_] = [await worker.newest_token(s) for s in sessions if isinstance(s, Session)]
        assert newest is not None
        assert newest[1] > 0
        assert (asked["find"], asked["get"]) == (1, 0)
        assert emulator.count("get-new-session-token") == 1


def _count(monkeypatch: pytest.MonkeyPatch, name: str, asked: Counter[str]) -> None:
    method = getattr(SqliteStore, name)

    def counting(self: SqliteStore, *arguments: Any) -> Any:
        asked[name] += 1
        return method(self, *arguments)

    monkeypatch.setattr(SqliteStore, name, counting)


async def test_a_herd_whose_first_is_cancelled_is_served(tmp_path: Path, clock: Clock) -> None:
    async with expired(tmp_path, clock) as world:
        emulator = world.emulator
        emulator.set_latency("get-new-session-token", 0.05)
        first, *others = (asyncio.create_task(world.workers[0].resolve(world.token)) for _ in range(HERD))
        await _called(emulator)
        first.cancel()
        outcomes = await asyncio.gather(*others)
        assert all(isinstance(outcome, Session) and outcome.refreshed for outcome in outcomes)
        assert emulator.count("get-new-session-token") == 1


async def test_who_joins_a_herd_after_a_sign_out_elsewhere_is_not_served_with_it(tmp_path: Path, clock: Clock) -> None:
    """He is told at once, though those before him still wait for OTPLESS, which will say yes."""
    async with expired(tmp_path, clock, 2, refresh_timeout=2 * PATIENCE) as world:
        emulator = world.emulator
        emulator.set_latency("get-new-session-token", PATIENCE)
        time = LoopTime()
        here, elsewhere = world.workers
        before = [asyncio.create_task(here.resolve(world.token)) for _ in range(HERD)]
        await _called(emulator)
        emulator.set_latency("get-new-session-token", 0)
        await elsewhere.end(world.session_id)
        assert await here.resolve(world.token) is SessionReason.REVOKED
        assert not any(task.done() for task in before)
        await time.advance(PATIENCE)
        assert set(await asyncio.gather(*before)) == {SessionReason.REVOKED}


@pytest.mark.parametrize("store_ttl", [0, 3600])
async def test_a_swapped_token_is_not_handed_out_once_its_session_was_ended_elsewhere(
    tmp_path: Path, clock: Clock, store_ttl: float
) -> None:
    """However long a copy may be believed: the sign-out's answer may have cleared the cookie already."""
    async with expired(tmp_path, clock, 2, store_ttl=store_ttl) as world:
        here, elsewhere = world.workers
        session = await here.resolve(world.token)
        assert isinstance(session, Session)
        assert await here.newest_token(session) is not None
        await elsewhere.end(world.session_id)
        assert await here.newest_token(session) is None


@pytest.mark.parametrize("store_ttl", [0, 3600])
async def test_the_token_after_a_refresh_is_confirmed_when_it_comes_though_its_row_is_known(
    tmp_path: Path, clock: Clock, store_ttl: float
) -> None:
    """What the refresh left in memory says nothing about whether the client has its token."""
    async with expired(tmp_path, clock, store_ttl=store_ttl) as world:
        worker, store = world.workers[0], world.workers[0].store
        session = await worker.resolve(world.token)
        assert isinstance(session, Session)
        row = await store.get(world.session_id)
        assert row is not None
        assert (row.generation, row.confirmed_generation) == (2, 1)
        assert isinstance(await worker.resolve(session.token.get_secret_value()), Session)
        row = await store.get(world.session_id)
        assert row is not None
        assert row.confirmed_generation == 2


class SlowToConfirm(SqliteStore):
    """A store that takes its time to note what the client has."""

    def __init__(self, path: Path, clock: Clock) -> None:
        super().__init__(str(path / "sessions.db"), clock=clock)
        self.may_confirm = asyncio.Event()

    async def confirm(self, row: SessionRow, grace: float) -> None:
        await self.may_confirm.wait()
        await super().confirm(row, grace)


async def test_no_answer_goes_out_before_it_was_tried_to_note_what_the_client_has(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    store = SlowToConfirm(tmp_path, clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        worker = world.workers[0]
        session = await worker.resolve(world.token)
        assert isinstance(session, Session)
        clock.advance(DAY + 1)
        request = asyncio.create_task(worker.resolve(session.token.get_secret_value()))
        while (row := await store.get(world.session_id)) and row.generation < 3:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)
        await settle()
        assert not request.done()
        store.may_confirm.set()
        outcome = await request
        assert isinstance(outcome, Session)
        assert outcome.refreshed
    await store.close()


@pytest.mark.parametrize("kind", ["dead", "alive"])
async def test_a_dead_tokens_generation_is_confirmed_too_before_its_successor_is_handed_out(
    tmp_path: Path, clock: Clock, kind: str
) -> None:
    async with expired(tmp_path, clock) as world:
        worker, store, token = world.workers[0], world.workers[0].store, world.token
        for generation in (2, 3):
            clock.advance(DAY + 1)
            session = await worker.resolve(token)
            assert isinstance(session, Session)
            token = session.token.get_secret_value()
            row = await store.get(world.session_id)
            assert row is not None
            assert (row.generation, row.confirmed_generation) == (generation, generation - 1)
            if kind == "alive":
                assert isinstance(await worker.resolve(token), Session)


async def test_who_waits_for_the_question_of_a_request_that_is_cancelled_asks_it_anew(
    tmp_path: Path, clock: Clock
) -> None:
    emulator = Emulator(clock=clock)
    stores = files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        emulator.reset_calls()
        emulator.set_latency("validate-session", 0.05)
        clock.advance(100)
        first, *others = (asyncio.create_task(world.workers[0].resolve(world.token)) for _ in range(5))
        while not emulator.count("validate-session"):  # noqa: ASYNC110 - the emulator tells nobody
            await asyncio.sleep(0)
        first.cancel()
        outcomes = await asyncio.gather(*others)
        assert all(isinstance(outcome, Session) and not outcome.stale for outcome in outcomes)
        assert first.cancelled()
        assert emulator.count("validate-session") == 2
    await close(stores)


@pytest.mark.parametrize("is_known", [True, False])
async def test_whoever_wants_otpless_word_now_gets_no_answer_to_an_earlier_question(
    tmp_path: Path, clock: Clock, is_known: bool
) -> None:
    emulator = Emulator(clock=clock)
    emulator.app = turnstile = Turnstile(emulator.app, "validate-session")
    async with Workers(emulator, clock, files(tmp_path, clock, 1), validation_ttl=0) as world:
        worker, stranger = world.workers[0], emulator.sign_in(mobile="922")["sessionInfo"]
        token = world.token if is_known else str(stranger["sessionToken"])
        turnstile.hold_next()
        early = asyncio.create_task(worker.resolve(token))
        await until(lambda: bool(turnstile.held))  # OTPLESS has said "valid"
        emulator.revoke(world.session_id if is_known else str(stranger["sessionId"]))
        late = [asyncio.create_task(worker.resolve(token, max_age=0)) for _ in range(5)]
        await settle()
        emulator.reset_calls()
        turnstile.let_go()
        assert isinstance(await early, Session)
        assert {await each for each in late} == {SessionReason.EXPIRED}
        assert emulator.count("validate-session") == 1
        await close([worker.store])


async def test_a_shutdown_lets_the_refresh_finish(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 2)
    emulator.set_latency("get-new-session-token", 0.05)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await _called(emulator)
        request.cancel()
        await world.workers[0].close()
        row = await stores[1].get(world.session_id)
        assert row is not None
        assert row.generation == 2
    await close(stores)


@pytest.mark.parametrize("gives_up", [None, 0, 1])
async def test_all_who_shut_down_at_once_wait_for_the_refresh_though_one_of_them_gives_up(
    tmp_path: Path, clock: Clock, gives_up: int | None
) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 2)
    emulator.set_latency("get-new-session-token", 0.05)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await _called(emulator)
        request.cancel()
        closing = [asyncio.create_task(world.workers[0].close()) for _ in range(3)]
        await settle()
        if gives_up is not None:
            closing.pop(gives_up).cancel()
        await asyncio.gather(*closing)
        row = await stores[1].get(world.session_id)
        assert row is not None
        assert row.generation == 2
    await close(stores)


async def test_a_sign_out_during_a_refresh_wins_and_the_new_pair_is_revoked(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    stores = files(tmp_path, clock, 2)
    door = Door(emulator)
    emulator.add_fault(Fault("status", path="revoke-session", times=1))
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        refreshing = asyncio.create_task(world.workers[0].resolve(world.token))
        await door.reached.wait()
        await world.workers[1].sign_out(world.token)
        door.open()
        assert await refreshing is SessionReason.REVOKED
        await world.workers[0].close()  # lets what runs behind finish
        assert emulator.session(world.session_id).revoked
        assert await world.workers[1].resolve(world.token) is SessionReason.REVOKED
    await close(stores)


async def test_a_lease_that_its_holder_left_behind_lapses(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 2)
    hurried = Workers(emulator, clock, stores[:1], refresh_timeout=0.1, request_timeout=0.1)
    async with hurried, Workers(emulator, clock, stores[1:]) as patient:
        for workers in (hurried, patient):  # that there was no outage is known to whoever was here before
            assert isinstance(await workers.workers[0].resolve(patient.token), Session)
        clock.advance(DAY + 1)
        assert await stores[0].take_lease(patient.session_id, 1, "crashed", 15)
        assert await hurried.workers[0].resolve(patient.token) is SessionReason.UNAVAILABLE
        clock.advance(15)
        assert isinstance(await patient.workers[0].resolve(patient.token), Session)
    await close(stores)


class TimePasses(SqliteStore):
    """A real store, and time that passes, or is set back, while a lease is being taken."""

    def __init__(self, path: str, clock: Clock, seconds: float) -> None:
        super().__init__(path, clock=clock)
        self._pass = partial(clock.advance, seconds)

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        lease = await super().take_lease(session_id, generation, owner, seconds)
        self._pass()
        return lease


@pytest.mark.parametrize("seconds", [pytest.param(6, id="a slow answer"), pytest.param(-100, id="a clock set back")])
async def test_a_lease_outlives_the_call_that_it_was_taken_for_but_not_by_more_than_it_lasts(
    tmp_path: Path, clock: Clock, seconds: float
) -> None:
    """Else another worker would take it during the call; or nobody for long, should this one crash."""
    emulator = Emulator(STRICT, clock=clock)
    store = TimePasses(str(tmp_path / "sessions.db"), clock, seconds)
    stores: list[SessionStore] = [store, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        emulator.set_latency("get-new-session-token", 0.05)
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await _called(emulator)
        row = await stores[1].get(world.session_id)
        assert row is not None
        assert 10 < row.lease_until - clock.now <= 15
        assert isinstance(await request, Session)
    await close(stores)


async def test_a_refused_refresh_after_a_lost_answer_is_logged_by_name(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        lease = await stores[0].take_lease(world.session_id, 1, "crashed", 15)
        assert lease is not None
        clock.advance(15)
        emulator.kill_refresh(world.session_id)
        assert await world.workers[0].resolve(world.token) is SessionReason.EXPIRED
        assert "refresh_answer_lost" in caplog.text
    await close(stores)


async def test_where_the_store_cannot_be_written_otpless_is_not_called(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("take_lease")
        assert await world.workers[0].resolve(world.token) is SessionReason.UNAVAILABLE
        assert emulator.count("get-new-session-token") == 0
        store.fail()
        assert isinstance(await world.workers[0].resolve(world.token), Session)
    await store.close()


async def test_a_commit_that_the_store_fails_is_made_up_for_behind_the_request(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("commit")
        served = await world.workers[0].resolve(world.token)
        assert isinstance(served, Session)
        assert not served.refreshed
        store.fail()
        again = await world.workers[0].resolve(world.token)
        assert isinstance(again, Session)
        assert again.refreshed
        assert emulator.count("get-new-session-token") == 1
    await store.close()


class HaltingStore(SqliteStore):
    """A real store on which a lease is not to be had before it is let go."""

    def __init__(self, path: str, clock: Clock) -> None:
        super().__init__(path, clock=clock)
        self.goes_on = asyncio.Event()

    async def take_lease(self, session_id: str, generation: int, owner: str, seconds: float) -> Lease | None:
        if generation == 1:
            await self.goes_on.wait()
        return await super().take_lease(session_id, generation, owner, seconds)


async def test_what_another_worker_got_meanwhile_is_not_served_where_otpless_has_refused_it_since(
    tmp_path: Path, clock: Clock
) -> None:
    emulator = Emulator(STRICT, clock=clock)
    halting = HaltingStore(str(tmp_path / "sessions.db"), clock)
    stores = [halting, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        slow = asyncio.create_task(here.resolve(world.token))
        await settle()
        theirs = await there.resolve(world.token)
        assert isinstance(theirs, Session)
        emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": false}', times=1))
        refused = asyncio.create_task(here.resolve(theirs.token.get_secret_value(), max_age=0))
        await until(lambda: emulator.count("validate-session") == 1)
        await settle()
        halting.goes_on.set()
        for outcome in await asyncio.gather(slow, refused):
            assert isinstance(outcome, Session)
            assert outcome.token != theirs.token
    await close(stores)


async def test_a_pair_whose_commit_was_put_off_is_not_overtaken_when_the_lease_lapses(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("commit")
        await world.workers[0].resolve(world.token)
        clock.advance(60)
        store.fail()
        outcome = await world.workers[0].resolve(world.token)
        assert isinstance(outcome, Session)
        assert emulator.count("get-new-session-token") == 1
        assert not emulator.session(world.session_id).revoked
    await store.close()


async def test_a_pair_that_cannot_be_kept_before_the_application_stops_is_told(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], refresh_timeout=0.5, request_timeout=0.5) as world:
        clock.advance(DAY + 1)
        store.fail("commit")
        await world.workers[0].resolve(world.token)
        label = world.workers[0].label(world.session_id)
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told == [f"Commit for {label}: its new pair is lost, as the application stops"]
    await store.close()


async def test_a_pair_whose_commit_was_put_off_is_no_newer_than_otplesss_word_on_it(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("commit")
        await world.workers[0].resolve(world.token)
        clock.advance(1000)
        store.fail()
        outcome = await world.workers[0].resolve(world.token, max_age=60)
        assert isinstance(outcome, Session)
        assert outcome.validated_at.timestamp() == clock.now
        assert emulator.count("validate-session") == 1
        assert emulator.count("get-new-session-token") == 1
    await store.close()


async def test_a_pair_whose_commit_was_put_off_is_replaced_where_otpless_calls_it_dead_by_then(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("commit")
        await world.workers[0].resolve(world.token)
        clock.advance(1000)
        store.fail()
        emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": false}', times=1))
        outcome = await world.workers[0].resolve(world.token, max_age=60)
        assert isinstance(outcome, Session)
        assert outcome.validated_at.timestamp() == clock.now
        assert emulator.count("get-new-session-token") == 2
    await store.close()


async def test_a_pair_whose_commit_was_put_off_until_its_token_had_expired_is_refreshed_in_turn(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.fail("commit", "renew_lease")
        await world.workers[0].resolve(world.token)
        clock.advance(DAY + 1)
        store.fail()
        outcome = await world.workers[0].resolve(world.token)
        assert isinstance(outcome, Session)
        assert outcome.expires_at.timestamp() > clock.now
        assert emulator.count("get-new-session-token") == 2
    await store.close()


WRITES = ("touch", "take_lease")


@pytest.mark.parametrize("failing", [("find",), WRITES], ids=["away", "full"])
async def test_after_an_outage_of_the_store_whoever_has_a_new_pair_goes_first(
    tmp_path: Path, clock: Clock, failing: tuple[str, ...]
) -> None:
    """The lease has lapsed by then; whoever took it would ask OTPLESS with a refresh token that is used up."""
    emulator = Emulator(STRICT, clock=clock)
    here, there = (FailingStore(str(tmp_path / "sessions.db"), clock=clock) for _ in range(2))
    async with Workers(emulator, clock, [here, there]) as world:
        clock.advance(DAY + 1)
        here.fail("commit", "renew_lease")
        assert isinstance(await world.workers[0].resolve(world.token), Session)
        there.fail(*failing)
        clock.advance(60)
        assert await world.workers[1].resolve(world.token) is SessionReason.UNAVAILABLE
        clock.advance(60)  # nobody comes until the store is back
        there.fail()
        there.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[1].resolve(world.token))
        await until(lambda: counted["get"] > 3)
        assert counted["take_lease"] == 0
        here.fail()
        outcome = await request
        assert isinstance(outcome, Session)
        assert emulator.count("get-new-session-token") == 1
    await close([here, there])


class SlowStore(FailingStore):
    """A real store on which a call takes so long, by its clock."""

    slow = ""
    seconds = 0.0

    def __init__(self, path: str, clock: Clock) -> None:
        super().__init__(path, clock=clock)
        self._pass = clock.advance

    def _check(self, name: str) -> None:
        super()._check(name)
        if name == self.slow:
            self._pass(self.seconds)


@pytest.mark.parametrize("slow", ["find", "touch"])
async def test_a_call_that_was_held_up_for_long_is_an_outage_too(tmp_path: Path, clock: Clock, slow: str) -> None:
    emulator = Emulator(STRICT, clock=clock)
    here = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    there = SlowStore(str(tmp_path / "sessions.db"), clock)
    async with Workers(emulator, clock, [here, there]) as world:
        clock.advance(DAY + 1)
        here.fail("commit", "renew_lease")
        assert isinstance(await world.workers[0].resolve(world.token), Session)
        clock.advance(60)
        there.slow, there.seconds = slow, 4.9
        there.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[1].resolve(world.token))
        await until(lambda: counted[slow] > 0)
        there.slow = ""
        await until(lambda: counted["get"] > 1)
        here.fail()
        assert isinstance(await request, Session)
        assert emulator.count("get-new-session-token") == 1
    await close([here, there])


@pytest.mark.parametrize("is_given_back", [False, True], ids=["never heard of again", "given back"])
@pytest.mark.parametrize("failing", [("find",), WRITES], ids=["away", "full"])
async def test_after_an_outage_whoever_left_a_lease_behind_is_not_waited_for_for_long(
    tmp_path: Path, clock: Clock, failing: tuple[str, ...], *, is_given_back: bool
) -> None:
    emulator = Emulator(STRICT, clock=clock)
    store = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        lease = await store.take_lease(world.session_id, 1, "another", 15)
        assert lease
        clock.advance(60)
        store.fail(*failing)
        assert await world.workers[0].resolve(world.token) is SessionReason.UNAVAILABLE
        store.fail()
        store.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await until(lambda: counted["get"] > 3 and not store.under_way)  # it looks what became of the row
        assert counted["take_lease"] == 0
        if is_given_back:
            await store.release_lease(lease, answer_lost=True)
        else:
            clock.advance(RESERVE_SECONDS)
        assert isinstance(await request, Session)
    await store.close()


async def test_a_lease_that_lapsed_before_an_outage_was_left_behind_and_is_taken_at_once(
    tmp_path: Path, clock: Clock
) -> None:
    """Else the sessions of a worker that crashed would wait for as long as a shaky store fails now and then."""
    emulator = Emulator(STRICT, clock=clock)
    store = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        assert await store.take_lease(world.session_id, 1, "crashed", 15)
        clock.advance(60)
        others = await world.workers[0].sign_in(emulator.sign_in(mobile="1"))
        for _ in range(3):
            assert isinstance(await world.workers[0].resolve(others.token.get_secret_value()), Session)
            clock.advance(5)
            store.fail("find", "unchanged_at")
            await world.workers[0].resolve(others.token.get_secret_value())
            store.fail()
        assert isinstance(await world.workers[0].resolve(world.token), Session)
    await store.close()


async def test_a_worker_that_starts_after_an_outage_lets_others_go_first_too(tmp_path: Path, clock: Clock) -> None:
    """It has seen none; but who is restarted in an outage cannot start before it is over."""
    emulator = Emulator(STRICT, clock=clock)
    here, there = (FailingStore(str(tmp_path / "sessions.db"), clock=clock) for _ in range(2))
    async with Workers(emulator, clock, [here]) as world:
        clock.advance(DAY + 1)
        here.fail("commit", "renew_lease")
        assert isinstance(await world.workers[0].resolve(world.token), Session)
        clock.advance(60)
        there.counted = counted = Counter[str]()
        async with Workers(emulator, clock, [there]) as started:
            request = asyncio.create_task(started.workers[0].resolve(world.token))
            await until(lambda: counted["get"] > 3)
            here.fail()
            assert isinstance(await request, Session)
        assert emulator.count("get-new-session-token") == 1
    await close([here, there])


async def test_a_lease_that_was_long_in_coming_is_left_to_whoever_may_have_had_one(
    tmp_path: Path, clock: Clock
) -> None:
    """Another's may have lapsed while all was held up, and its new pair may be on the way."""
    emulator = Emulator(STRICT, clock=clock)
    store = SlowStore(str(tmp_path / "sessions.db"), clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        store.slow, store.seconds = "take_lease", 8
        store.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await until(lambda: counted["take_lease"] > 0)
        store.slow = ""
        taken = counted["get"]
        await until(lambda: counted["get"] > taken + 2)
        assert emulator.count("get-new-session-token") == 0
        clock.advance(11)
        assert await request is SessionReason.UNAVAILABLE
        assert isinstance(await world.workers[0].resolve(world.token), Session)
    await store.close()


async def test_whoever_waits_for_anothers_lease_gives_up_in_time(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    store = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    async with Workers(Emulator(STRICT, clock=clock), clock, [store]) as world:
        clock.advance(DAY + 1)
        assert await store.take_lease(world.session_id, 1, "another", 60)
        store.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await until(lambda: counted["get"] > 1)
        clock.advance(11)
        with caplog.at_level("INFO"):
            assert await request is SessionReason.UNAVAILABLE
        assert "another worker's refresh of this session takes too long" in caplog.text
    await store.close()


async def test_a_lease_from_before_the_stores_clock_was_set_back_is_cut_short(tmp_path: Path, clock: Clock) -> None:
    wall = Clock(now=clock.now)
    store = FailingStore(str(tmp_path / "sessions.db"), clock=wall)
    async with Workers(Emulator(STRICT, clock=wall), clock, [store]) as world:
        wall.advance(2 * DAY)
        assert await store.take_lease(world.session_id, 1, "crashed", 15)
        wall.advance(-1000)
        store.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await until(lambda: counted["take_lease"] > 0 and not store.under_way)
        clock.advance(RESERVE_SECONDS)
        wall.advance(15)
        assert isinstance(await request, Session)
    await store.close()


async def test_a_lease_that_is_held_is_only_looked_at(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    store = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        assert await store.take_lease(world.session_id, 1, "another", 15)
        clock.advance(8)
        store.counted = counted = Counter[str]()
        request = asyncio.create_task(world.workers[0].resolve(world.token))
        await until(lambda: counted["get"] > 3 and not store.under_way)
        assert counted["take_lease"] == 0
        clock.advance(8)
        assert isinstance(await request, Session)
    await store.close()


class InterruptedStore(FailingStore):
    """A real store on which something else happens just before a commit."""

    before_commit: Callable[[], Awaitable[None]] | None = None

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        if self.before_commit is not None:
            await self.before_commit()
        return await super().commit(lease, rotation)


async def test_a_sign_out_elsewhere_wins_against_a_pair_whose_commit_was_put_off(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    store = InterruptedStore(str(tmp_path / "sessions.db"), clock=clock)
    stores: list[SessionStore] = [store, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        store.fail("commit", "renew_lease")
        assert isinstance(await here.resolve(world.token), Session)
        store.fail()
        store.before_commit = lambda: there.sign_out(world.token)
        assert await here.resolve(world.token) is SessionReason.REVOKED
    assert emulator.session(world.session_id).revoked
    await close(stores)


class HangingStore(SqliteStore):
    """A real store on which the first commit hangs until it is let go, and fails then."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(None, clock=clock)
        self.has_come, self.goes_on = asyncio.Event(), asyncio.Event()

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        if not self.goes_on.is_set():
            self.has_come.set()
            await self.goes_on.wait()
            raise StoreError("it took too long")
        return await super().commit(lease, rotation)


async def test_who_wants_otplesss_word_is_not_served_with_a_pair_that_it_denies_before_it_could_be_kept(
    clock: Clock,
) -> None:
    emulator, store = Emulator(clock=clock), HangingStore(clock)
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        (worker,) = world.workers
        first = asyncio.create_task(worker.resolve(world.token))
        await store.has_come.wait()
        clock.advance(1)
        second = asyncio.create_task(worker.resolve(world.token, max_age=0))
        await settle()
        emulator.revoke(world.session_id)
        store.goes_on.set()
        assert isinstance(await first, Session)
        assert await second is SessionReason.EXPIRED
    await store.close()


async def test_a_pair_whose_commit_was_put_off_outlives_an_attempt_of_anothers(tmp_path: Path, clock: Clock) -> None:
    """The refresh token that it came for is used up: of all that there is for this session, only this pair lives."""
    emulator = Emulator(STRICT, clock=clock)
    failing = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    stores = [failing, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        failing.fail("commit", "renew_lease")
        assert isinstance(await here.resolve(world.token), Session)
        clock.advance(60)
        emulator.add_fault(Fault("status", path="get-new-session-token", status=500, times=1))
        assert await there.resolve(world.token) is SessionReason.UNAVAILABLE
        failing.fail()
        outcome = await here.resolve(world.token)
        assert isinstance(outcome, Session)
        assert outcome.refreshed
        assert not emulator.session(world.session_id).revoked
        assert isinstance(await there.resolve(outcome.token.get_secret_value()), Session)
    await close(stores)


@pytest.mark.parametrize("has_given_back", [True, False])
async def test_a_pair_that_comes_after_its_lease_was_lost_is_kept_unless_there_is_another(
    tmp_path: Path, clock: Clock, has_given_back: bool
) -> None:
    emulator = Emulator(STRICT, clock=clock)
    door = Door(emulator)
    stores = files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        refreshing = asyncio.create_task(world.workers[0].resolve(world.token))
        await door.reached.wait()
        clock.advance(60)
        lease = await stores[0].take_lease(world.session_id, 1, "another", 15)
        assert lease is not None
        if not has_given_back:
            door.open()
            assert await refreshing is SessionReason.UNAVAILABLE
        await stores[0].release_lease(lease, answer_lost=False)
        door.open()
        outcome = await (refreshing if has_given_back else world.workers[0].resolve(world.token))
        assert isinstance(outcome, Session)
        assert outcome.refreshed
        assert emulator.count("get-new-session-token") == 1
        assert not emulator.session(world.session_id).revoked
    await close(stores)


async def test_a_sign_out_elsewhere_during_a_refresh_holds_though_the_store_fails_then(
    tmp_path: Path, clock: Clock
) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    door = Door(emulator)
    failing = FailingStore(str(tmp_path / "sessions.db"), clock=clock)
    stores = [failing, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        refreshing = asyncio.create_task(here.resolve(world.token))
        await door.reached.wait()
        failing.fail("get")
        await there.sign_out(world.token)
        door.open()
        assert await refreshing is SessionReason.UNAVAILABLE
        failing.fail()
        assert await here.resolve(world.token) is SessionReason.REVOKED
    await close(stores)


async def test_with_a_pair_put_off_a_worker_still_waits_for_what_another_makes_of_the_session(
    tmp_path: Path, clock: Clock
) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    emulator.set_latency("get-new-session-token", 0.1)
    stores = files(tmp_path, clock, 2)
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        first = asyncio.create_task(here.resolve(world.token))
        await _called(emulator)
        clock.advance(60)
        emulator.set_latency("get-new-session-token", 0.3)
        theirs = asyncio.create_task(there.resolve(world.token))
        await until(lambda: emulator.count("get-new-session-token") == 2)
        assert await first is SessionReason.UNAVAILABLE
        ours = await here.resolve(world.token)
        assert isinstance(ours, Session)
        newest = await theirs
        assert isinstance(newest, Session)
        assert ours.token == newest.token
        assert emulator.count("get-new-session-token") == 2
    await close(stores)


async def test_a_pair_that_was_put_off_in_a_sessions_former_life_is_none_of_the_new_ones(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        clock.advance(DAY + 1)
        store.fail("commit", "renew_lease")
        assert isinstance(await worker.resolve(world.token), Session)
        row = await store.get(world.session_id)
        assert row is not None
        await store._write(lambda db: db.execute("DELETE FROM sessions").rowcount)
        anew = replace(row, created_at=clock(), lease_owner=None, lease_until=0.0, fence=0)
        assert await store.create(anew, b"t" * 32, b"r" * 32) is None
        store.fail()
        await worker.resolve(world.token)
        await worker.close()
        found = await store.get(world.session_id)
        assert found is not None
        assert (found.generation, found.session_token) == (1, anew.session_token)
    await store.close()


class ForgetfulStore(FailingStore):
    """A real store, of which the answer to a commit is lost on the way when it is told so."""

    loses_answers = False

    async def commit(self, lease: Lease, rotation: Rotation) -> SessionRow | None:
        committed = await super().commit(lease, rotation)
        if self.loses_answers:
            raise StoreError("the connection is gone")
        return committed


async def test_a_pair_put_off_that_otpless_refuses_by_now_is_not_served(tmp_path: Path, clock: Clock) -> None:
    """It had been committed, in truth; another worker handed it out, and its session was revoked at OTPLESS."""
    emulator = Emulator(STRICT, clock=clock)
    store = ForgetfulStore(str(tmp_path / "sessions.db"), clock=clock)
    stores = [store, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        store.loses_answers = True
        store.fail("renew_lease")
        assert isinstance(await here.resolve(world.token), Session)
        newest = await there.resolve(world.token)
        assert isinstance(newest, Session)
        store.loses_answers = False
        emulator.revoke(world.session_id)
        assert await here.resolve(newest.token.get_secret_value(), max_age=0) is SessionReason.EXPIRED
    await close(stores)


async def test_a_pair_put_off_does_not_take_the_place_of_a_newer_one_in_an_ended_row(
    tmp_path: Path, clock: Clock
) -> None:
    emulator = Emulator(EmulatorSettings(rotation="rotating"), clock=clock)
    store = ForgetfulStore(str(tmp_path / "sessions.db"), clock=clock)
    stores = [store, *files(tmp_path, clock, 1)]
    async with Workers(emulator, clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        store.loses_answers = True
        store.fail("renew_lease")
        assert isinstance(await here.resolve(world.token), Session)
        second = await there.resolve(world.token)
        assert isinstance(second, Session)
        clock.advance(DAY + 1)
        third = await there.resolve(second.token.get_secret_value())
        assert isinstance(third, Session)
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        await there.sign_out(third.token.get_secret_value())
        ended = await stores[1].get(world.session_id)
        store.loses_answers = False
        store.fail()
        assert await here.resolve(world.token) is SessionReason.REVOKED
        await here.close()
        found = await stores[1].get(world.session_id)
        assert ended is not None
        assert found is not None
        assert found.session_token == ended.session_token
    await close(stores)


async def test_an_event_loop_does_not_ask_for_what_another_of_its_worker_has_put_off(clock: Clock) -> None:
    """It waits for the lease meanwhile, and gets it once that lapses: the refresh token is used up by then."""
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    emulator.set_latency("get-new-session-token", 0.2)
    async with Workers(emulator, clock, [store]) as world:
        worker, asked = world.workers[0], Counter[str]()
        clock.advance(DAY + 1)
        first = asyncio.create_task(worker.resolve(world.token))
        await _called(emulator)
        clock.advance(8)
        store.counted = asked
        outcomes: list[Any] = []
        other = Thread(target=lambda: outcomes.append(asyncio.run(worker.resolve(world.token))))
        other.start()
        await until(lambda: asked["get"] > 0)
        store.fail("commit", "renew_lease")
        assert isinstance(await first, Session)
        clock.advance(8)
        await until(lambda: not other.is_alive())
        assert emulator.count("get-new-session-token") == 1
        assert not emulator.session(world.session_id).revoked
        store.fail()
        assert isinstance(await worker.resolve(world.token), Session)
    await store.close()


async def test_a_sign_out_in_a_refresh_holds_though_the_new_pair_cannot_be_noted(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    door = Door(emulator)
    emulator.add_fault(Fault("status", path="revoke-session", times=1))
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(DAY + 1)
        refreshing = asyncio.create_task(world.workers[0].resolve(world.token))
        await door.reached.wait()
        store.fail("replace_revocation")
        await world.workers[0].sign_out(world.token)
        door.open()
        assert await refreshing is SessionReason.REVOKED
        store.fail()
        await world.workers[0].close()
        assert emulator.session(world.session_id).revoked
    await store.close()


async def test_a_look_that_a_herd_shares_is_no_older_than_a_moment(tmp_path: Path, clock: Clock) -> None:
    """Who are woken together share a look at their row; not for as long as a busy event loop takes for them all."""
    stores = files(tmp_path, clock, 2)
    async with Workers(Emulator(STRICT, clock=clock), clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        session = await here.resolve(world.token)
        assert isinstance(session, Session)
        assert here.remaining_life(session) is not None
        elsewhere = Thread(target=lambda: asyncio.run(there.sign_out(session.token.get_secret_value())))
        elsewhere.start()
        elsewhere.join()  # this event loop's turn takes that long
        clock.advance(1)
        assert here.remaining_life(session) is None
    await close(stores)


async def test_what_only_notes_something_may_fail_without_anybody_noticing(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        store.fail("touch", "confirm", "release_lease")
        clock.advance(70)
        assert isinstance(await worker.resolve(world.token), Session)
        clock.advance(DAY)
        emulator.add_fault(Fault("status", path="get-new-session-token", status=500, times=1))
        assert await worker.resolve(world.token) is SessionReason.UNAVAILABLE
        clock.advance(15)
        store.fail("confirm", "release_lease")  # whether a lease that was left behind may be taken, a write has to tell
        outcome = await worker.resolve(world.token)
        assert isinstance(outcome, Session)
        store.fail("touch", "confirm", "release_lease")
        assert isinstance(await worker.resolve(outcome.token.get_secret_value()), Session)
    await store.close()


async def test_a_sign_out_without_the_store_tells_otpless_and_holds_in_this_worker(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        await worker.resolve(world.token)
        store.fail("find", "get", "end")
        await worker.sign_out(world.token)
        assert emulator.session(world.session_id).revoked
        assert await worker.resolve(world.token) is SessionReason.REVOKED
        store.fail()
        assert await worker.resolve(world.token) is SessionReason.REVOKED
    await store.close()


async def test_a_sign_out_that_neither_store_nor_otpless_takes_is_an_error(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        await worker.resolve(world.token)
        store.fail("find", "end")
        emulator.expire(world.session_id)
        with pytest.raises(NoVerdictError):  # OTPLESS takes no dead token, and its refresh token lives on
            await worker.sign_out(world.token)
        emulator.reset_calls()
        await worker.sign_out(emulator.forge({"sub": world.session_id, "exp": clock.now + 60}))
        assert emulator.count("revoke-session") == 0
    await store.close()


async def test_a_stranger_is_bridged_over_a_store_outage_but_not_past_a_sign_out(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        user = emulator.sign_in(mobile="922")
        token = str(user["sessionInfo"]["sessionToken"])
        assert isinstance(await worker.resolve(token), Session)
        store.fail("find", "get")
        served = await worker.resolve(token)
        assert isinstance(served, Session)
        assert served.stale
        assert await worker.resolve(token, known_only=True) is SessionReason.UNAVAILABLE
        store.fail()
        await worker.sign_out(token)
        store.fail("find", "get")
        assert not isinstance(await worker.resolve(token), Session)
    await store.close()


async def test_who_was_served_while_otpless_was_asked_behind_the_request_is_bridged_over_a_store_outage(
    clock: Clock,
) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        assert isinstance(await worker.resolve(world.token), Session)
        clock.advance(40)
        emulator.reset_calls()
        assert isinstance(await worker.resolve(world.token), Session)
        while not emulator.count("validate-session"):
            await settle()
        await settle()
        store.fail("find", "get")
        served = await worker.resolve(world.token)
        assert isinstance(served, Session)
        assert served.stale
    await store.close()


async def test_whose_token_was_refused_behind_a_request_is_not_served_in_a_store_outage(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        assert isinstance(await worker.resolve(world.token), Session)
        emulator.expire(world.session_id)
        emulator.add_fault(Fault("status", path="get-new-session-token", status=500))
        clock.advance(40)
        emulator.reset_calls()
        assert isinstance(await worker.resolve(world.token), Session)
        while not emulator.count("get-new-session-token"):
            await settle()
        await settle()
        store.fail("find", "get")
        assert await worker.resolve(world.token) is SessionReason.UNAVAILABLE
    await store.close()


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_store_outage_is_bridged_for_stale_if_error_since_a_session_was_last_resolved(
    clock: Clock, is_known: bool
) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], validation_ttl=30, stale_if_error=10) as world:
        worker = world.workers[0]
        token = world.token if is_known else str(emulator.sign_in(mobile="922")["sessionInfo"]["sessionToken"])
        assert isinstance(await worker.resolve(token), Session)
        clock.advance(25)
        assert isinstance(await worker.resolve(token), Session)
        store.fail("find", "get")
        clock.advance(9)
        assert isinstance(await worker.resolve(token), Session)  # 34 s after OTPLESS's word, 9 s after the store's
        clock.advance(2)
        assert await worker.resolve(token) is SessionReason.UNAVAILABLE
    await store.close()


@pytest.mark.parametrize("is_known", [True, False])
async def test_an_outage_of_the_store_lets_nobody_in_whom_one_of_otpless_has_kept_out(
    clock: Clock, is_known: bool
) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], validation_ttl=5, stale_if_error=10) as world:
        worker = world.workers[0]
        token = world.token if is_known else str(emulator.sign_in(mobile="922")["sessionInfo"]["sessionToken"])
        assert isinstance(await worker.resolve(token), Session)
        emulator.add_fault(Fault("status", path="validate-session", status=500))
        clock.advance(20)
        assert await worker.resolve(token) is SessionReason.UNAVAILABLE
        store.fail("find", "get")
        assert await worker.resolve(token) is SessionReason.UNAVAILABLE
    await store.close()


async def test_an_own_copy_is_read_again_after_the_store_ttl_however_often_it_is_used(
    tmp_path: Path, clock: Clock
) -> None:
    emulator, stores = Emulator(clock=clock), files(tmp_path, clock, 2)
    async with Workers(emulator, clock, stores, store_ttl=10) as world:
        one, two = world.workers
        assert isinstance(await two.resolve(world.token), Session)
        await one.sign_out(world.token)
        for _ in range(3):
            clock.advance(3)
            assert isinstance(await two.resolve(world.token), Session)
        clock.advance(3)
        assert await two.resolve(world.token) is SessionReason.REVOKED
    await close(stores)


async def test_fresh_within_never_believes_longer_than_the_ttl(tmp_path: Path, clock: Clock) -> None:
    emulator, stores = Emulator(clock=clock), files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        emulator.revoke(world.session_id)
        clock.advance(500)
        assert await world.workers[0].resolve(world.token, max_age=600) is SessionReason.EXPIRED
    await close(stores)


async def test_a_row_lives_as_long_as_the_longest_of_its_tokens(tmp_path: Path, clock: Clock) -> None:
    emulator, stores = Emulator(clock=clock), files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        worker = world.workers[0]
        clock.advance(6.5 * DAY)
        renewed = await worker.resolve(world.token)
        assert isinstance(renewed, Session)
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        token = renewed.token.get_secret_value()
        await worker.sign_out(token)
        clock.advance(0.6 * DAY)
        await worker.housekeep()
        assert await worker.resolve(token) is SessionReason.REVOKED
    await close(stores)


async def test_a_telling_that_store_or_otpless_refuses_is_tried_again(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        store.fail("settle_revocation")
        await worker.sign_out(world.token)
        store.fail()
        emulator.reset_calls()
        clock.advance(7)
        await worker.housekeep()
        assert emulator.count("revoke-session") == 1
        clock.advance(3600)
        await worker.housekeep()
        assert emulator.count("revoke-session") == 1
    await store.close()


async def test_a_cookie_websocket_does_not_go_on_as_a_stranger_once_its_row_is_gone(
    tmp_path: Path, clock: Clock
) -> None:
    emulator, stores = Emulator(clock=clock), files(tmp_path, clock, 1)
    async with Workers(emulator, clock, stores) as world:
        worker = world.workers[0]
        stranger = await worker.resolve(str(emulator.sign_in()["sessionInfo"]["sessionToken"]))
        assert isinstance(stranger, Session)
        assert isinstance(await worker.recheck(stranger), Session)
        assert await worker.recheck(stranger, known_only=True) is SessionReason.INVALID
    await close(stores)


async def test_while_the_store_is_down_only_who_was_just_seen_is_served(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        assert isinstance(await world.workers[0].resolve(world.token), Session)
        store.fail("find", "get")
        served = await world.workers[0].resolve(world.token)
        assert isinstance(served, Session)
        assert served.stale
        assert await world.workers[1].resolve(world.token) is SessionReason.UNAVAILABLE
        assert await world.workers[0].resolve(world.token, max_age=0) is SessionReason.UNAVAILABLE
    await store.close()


async def test_while_the_store_is_down_a_swapped_token_is_served_where_it_was_handed_out(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        here, elsewhere = world.workers
        clock.advance(DAY + 1)
        session = await here.resolve(world.token)
        assert isinstance(session, Session)
        store.fail("find", "get")
        swapped = session.token.get_secret_value()
        served = await here.resolve(swapped)
        assert isinstance(served, Session)
        assert served.stale
        assert await elsewhere.resolve(swapped) is SessionReason.UNAVAILABLE
        assert await here.resolve(world.token) is SessionReason.UNAVAILABLE
    await store.close()


async def test_an_unreadable_row_is_as_an_unknown_token(tmp_path: Path, clock: Clock) -> None:
    emulator = Emulator(STRICT, clock=clock)
    stores = files(tmp_path, clock, 2)
    other = make_settings(encryption_keys="A" * 43)
    async with Workers(emulator, clock, stores) as world:
        clock.advance(DAY + 1)
        client = OtplessClient(other, http=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
        async with OtplessSessions(other, store=stores[1], client=client, clock=clock) as stranger:
            assert await stranger.resolve(world.token) is SessionReason.EXPIRED
        row = await stores[0].get(world.session_id)
        assert row is not None
        assert row.state is State.ACTIVE
        assert isinstance(await world.workers[0].resolve(world.token), Session)
    await close(stores)


async def test_a_row_that_this_worker_cannot_unseal_is_not_remembered_as_ended(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    other = make_settings(encryption_keys="A" * 43)
    async with Workers(emulator, clock, [store]) as world:
        client = OtplessClient(other, http=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
        async with OtplessSessions(other, store=store, client=client, clock=clock) as stranger:
            assert isinstance(await stranger.resolve(world.token), Session)
            clock.advance(DAY + 1)
            assert await stranger.resolve(world.token) is SessionReason.EXPIRED
            store.fail("find", "get")
            assert await stranger.resolve(world.token) is SessionReason.UNAVAILABLE
    await store.close()


async def test_a_sign_out_without_the_store_holds_for_the_sessions_older_tokens_too(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        await worker.resolve(world.token)
        emulator.expire(world.session_id)
        newer = await worker.resolve(world.token, max_age=0)
        assert isinstance(newer, Session)
        await worker.resolve(newer.token.get_secret_value())
        store.fail("find", "get", "end")
        await worker.sign_out(newer.token.get_secret_value())
        assert await worker.resolve(world.token) is SessionReason.REVOKED
    await store.close()


async def test_closing_waits_for_a_call_that_first_waited_for_anothers_lease(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    door = Door(emulator)
    async with Workers(emulator, clock, [store], request_timeout=3, refresh_timeout=3) as world:
        time, worker = LoopTime(), world.workers[0]
        clock.advance(DAY + 1)
        lease = await store.take_lease(world.session_id, 1, "another", 60)
        assert lease is not None
        asked = asyncio.create_task(worker.resolve(world.token))
        await settle()
        closing = asyncio.create_task(worker.close())
        await settle()
        clock.advance(2)
        await store.release_lease(lease, answer_lost=False)
        await time.advance(2)
        assert door.reached.is_set()
        clock.advance(2)
        await time.advance(2)
        door.open()
        assert await asked is SessionReason.UNAVAILABLE  # that took too long, and its token comes with the next request
        await closing
        row = await store.get(world.session_id)
        assert row is not None
        assert (row.state, row.generation) == (State.ACTIVE, 2)
        assert emulator.count("get-new-session-token") == 1
    await store.close()


async def test_whoever_waits_for_a_refresh_that_closing_ends_gets_no_verdict(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        time, worker = LoopTime(), world.workers[0]
        clock.advance(DAY + 1)
        await store.take_lease(world.session_id, 1, "another", DAY)
        first = asyncio.create_task(worker.resolve(world.token))
        await settle()
        closing = asyncio.create_task(worker.close())
        await settle()
        await time.advance(15)
        late = asyncio.create_task(worker.resolve(world.token))
        await settle()
        await time.advance(8)
        assert [await first, await late] == [SessionReason.UNAVAILABLE] * 2
        await closing
    await store.close()


async def test_a_store_whose_clock_is_ahead_of_each_new_token_does_not_have_otpless_asked_by_each_request(
    clock: Clock,
) -> None:
    emulator, ahead = Emulator(clock=clock), Clock()
    store = FailingStore(None, clock=ahead)
    async with Workers(emulator, clock, [store]) as world:
        ahead.advance(2 * DAY)
        for _ in range(20):
            assert await world.workers[0].resolve(world.token) is SessionReason.UNAVAILABLE
        assert emulator.count("get-new-session-token") == 1
        clock.advance(10)
        assert await world.workers[0].resolve(world.token) is SessionReason.UNAVAILABLE
        assert emulator.count("get-new-session-token") == 2
    await store.close()


# What takes long


@asynccontextmanager
async def shop(clock: Clock) -> AsyncIterator[tuple[Workers, httpx.AsyncClient, asyncio.Event]]:
    """A worker's application, what it is asked with, and until when `/report`, and whatever `upload` sends, take.

    FastAPI reads what is sent before it asks by whom.
    """
    store = FailingStore(None, clock=clock)
    async with Workers(Emulator(STRICT, clock=clock), clock, [store]) as world:
        app, goes_on = make_app(), asyncio.Event()

        @app.post("/photos")
        async def photos(photo: dict[str, Any], session: CurrentSession) -> dict[str, Any]:
            return {"photo": photo, "user": session.user_id}

        @app.get("/report")
        async def report(session: CurrentSession) -> str:
            await goes_on.wait()
            return session.user_id

        app.add_middleware(OtplessSessionMiddleware, sessions=world.workers[0])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="https://shop.example") as client:
            yield world, client, goes_on
    await store.close()


def with_token(token: str) -> dict[str, str]:
    return {"X-Session-Token": token}


async def upload(client: httpx.AsyncClient, token: str, goes_on: asyncio.Event) -> httpx.Response:
    """Send something whose second half waits."""

    async def halves() -> AsyncIterator[bytes]:
        yield b"{"
        await goes_on.wait()
        yield b"}"

    headers = {**with_token(token), "Content-Type": "application/json"}
    return await client.post("/photos", content=halves(), headers=headers)


async def swapped(world: Workers, client: httpx.AsyncClient, token: str) -> str:
    """Return the token after `token`, once that is dead and this one was seen."""
    world.clock.advance(DAY + 1)
    newer = token_of(await client.get("/orders", headers=with_token(token)))
    assert (await client.get("/orders", headers=with_token(newer))).status_code == 200
    return newer


async def test_a_token_counts_as_it_did_when_its_request_arrived(clock: Clock) -> None:
    """However slowly the rest of that comes: another tab may have the next token meanwhile."""
    async with shop(clock) as (world, client, goes_on):
        uploading = asyncio.create_task(upload(client, world.token, goes_on))
        await settle()
        newer = await swapped(world, client, world.token)
        clock.advance(60)
        goes_on.set()
        answer = await uploading
        assert (answer.status_code, token_of(answer)) == (200, newer)
        assert (await client.get("/orders", headers=with_token(newer))).status_code == 200


async def test_a_superseded_token_is_one_however_slowly_its_request_comes(clock: Clock) -> None:
    async with shop(clock) as (world, client, goes_on):
        newer = await swapped(world, client, world.token)
        clock.advance(31)
        uploading = asyncio.create_task(upload(client, world.token, goes_on))
        await settle()
        clock.advance(60)
        goes_on.set()
        assert code(await uploading) == "session_reused"
        assert code(await client.get("/orders", headers=with_token(newer))) == "session_revoked"


@pytest.mark.parametrize("was_good", [True, False])
async def test_who_was_on_the_way_for_several_tokens_gets_nowhere_and_ends_nothing(
    clock: Clock, was_good: bool
) -> None:
    """By then the row does not tell any more whether the token counted when its request arrived."""
    async with shop(clock) as (world, client, goes_on):
        newest = world.token
        if not was_good:
            newest = await swapped(world, client, newest)
            clock.advance(31)
        uploading = asyncio.create_task(upload(client, world.token, goes_on))
        await settle()
        for _ in range(3):
            newest = await swapped(world, client, newest)
        goes_on.set()
        assert code(await uploading) == "session_reused"
        assert (await client.get("/orders", headers=with_token(newest))).status_code == 200


async def test_whoever_says_that_a_token_is_yet_to_come_makes_it_no_older(clock: Clock) -> None:
    async with shop(clock) as (world, client, _):
        await swapped(world, client, world.token)
        clock.advance(20)
        assert isinstance(await world.workers[0].resolve(world.token, waited=-20), Session)


async def test_a_late_answer_brings_the_newest_token(clock: Clock) -> None:
    """The one that it was to bring was replaced meanwhile, and its client, who goes on with it, is no thief."""
    async with shop(clock) as (world, client, goes_on):
        clock.advance(DAY + 1)
        reporting = asyncio.create_task(client.get("/report", headers=with_token(world.token)))
        await _called(world.emulator)
        second = token_of(await client.get("/orders", headers=with_token(world.token)))
        third = await swapped(world, client, second)
        goes_on.set()
        answer = await reporting
        assert (answer.status_code, token_of(answer)) == (200, third)


async def test_a_late_answer_brings_no_token_that_cannot_be_read(tmp_path: Path, clock: Clock) -> None:
    """A worker that has been told of a new key already has sealed the newest token with it."""
    stores = files(tmp_path, clock, 2)
    async with Workers(Emulator(STRICT, clock=clock), clock, stores) as world:
        here, there = world.workers
        clock.advance(DAY + 1)
        session = await here.resolve(world.token)
        assert isinstance(session, Session)
        with_new_key = make_settings(encryption_keys=[new_key(), "derived"])
        async with OtplessSessions(with_new_key, store=there.store, client=there._client, clock=clock) as ahead:
            clock.advance(DAY + 1)
            assert isinstance(await ahead.resolve(session.token.get_secret_value()), Session)
        assert await here.newest_token(session) is None
    await close(stores)


async def test_a_token_of_a_sessions_former_life_is_none_of_the_new_one(tmp_path: Path, clock: Clock) -> None:
    """What is kept of a row that is gone may lead to the one that was signed in anew: generations begin at one."""
    async with expired(tmp_path, clock) as world:
        worker, store = world.workers[0], world.workers[0].store
        row = await store.get(world.session_id)
        assert row is not None
        assert isinstance(store, SqliteStore)
        await store._write(lambda db: db.execute("DELETE FROM sessions").rowcount)
        now = await store.now()
        anew = replace(row, created_at=now, validated_at=now, last_seen_at=now, token_expires_at=now + DAY)
        assert await store.create(anew, b"t" * 32, b"r" * 32) is None
        assert await worker.resolve(world.token) is SessionReason.EXPIRED
        await worker.sign_out(world.token)
        other = await worker.sign_in(world.emulator.sign_in())
        await worker.replace(world.token, other)
        assert world.emulator.count("get-new-session-token") == 0
        assert await store.get(world.session_id) == anew


def test_a_late_no_about_an_older_token_is_not_taken_for_one_about_the_newest() -> None:
    refusals, older, newer = (
        Denials(),
        SessionRow(session_id="s", user_id="u"),
        SessionRow(session_id="s", user_id="u", generation=2),
    )
    refusals.note(newer)
    refusals.note(older)
    assert refusals.covers(newer)
