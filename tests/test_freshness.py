"""How long OTPLESS's word is believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Clock, World, make_settings
from crew import FailingStore, Workers, close, files
from fleet_members import Turnstile, until
from simulated import settle

from fastapi_otpless_session import OtplessClient, OtplessSessions, Session, SessionReason
from fastapi_otpless_session.emulator import Emulator, Fault
from fastapi_otpless_session.stores.base import EndReason
from fastapi_otpless_session.wire import TokenPair

DAY = 86_400
REFRESHES = "get-new-session-token"


def asked(world: World) -> int:
    return world.emulator.count("validate-session")


def test_within_the_ttl_nobody_is_asked(world: World) -> None:
    world.sign_in()
    world.clock.advance(30)
    assert world.get("/orders").status_code == 200
    assert asked(world) == 0


def test_up_to_twice_the_ttl_otpless_is_asked_behind_the_request(world: World) -> None:
    world.sign_in()
    world.clock.advance(59)
    assert world.get("/orders").status_code == 200
    world.get("/public")  # lets the loop run
    assert asked(world) == 1
    world.clock.advance(29)
    world.get("/orders")
    assert asked(world) == 1


def test_after_that_otpless_is_asked_first_and_once_for_all_workers(world: World) -> None:
    user = world.sign_in()
    world.clock.advance(61)
    world.get("/orders")
    world.get("/orders")
    assert asked(world) == 1
    world.emulator.revoke(world.session_id(user))
    world.clock.advance(61)
    assert world.get("/orders").status_code == 401


def test_a_no_behind_a_request_goes_straight_into_the_refresh(world: World) -> None:
    user = world.sign_in()
    world.emulator.expire(world.session_id(user))
    world.clock.advance(45)
    assert world.get("/orders").json()["refreshed"] is False
    world.get("/public")
    assert world.get("/orders").json()["refreshed"] is True
    assert world.emulator.count("get-new-session-token") == 1


def test_an_outage_is_bridged_as_stale_and_no_longer_than_stale_if_error(world: World) -> None:
    world.sign_in()
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(330)
    assert world.get("/orders").json()["stale"] is True
    assert world.get("/fresh").status_code == 503
    world.clock.advance(1)
    assert world.get("/orders").status_code == 503
    world.emulator.clear_faults()
    world.clock.advance(1)
    assert world.get("/orders").json()["stale"] is False


@pytest.mark.parametrize("values", [{"stale_if_error": 0}, {"validation_ttl": 0, "stale_if_error": 0}])
def test_with_stale_if_error_0_an_outage_is_503_at_once(
    make_world: Callable[..., World], values: dict[str, float]
) -> None:
    world = make_world(**values)
    world.sign_in()
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(31)
    assert world.get("/orders").status_code == 503


def test_with_ttl_0_otpless_is_asked_on_every_resolution(make_world: Callable[..., World]) -> None:
    world = make_world(validation_ttl=0)
    world.sign_in()
    for _ in range(3):
        assert world.get("/orders").status_code == 200
    assert asked(world) == 3


def test_a_fresh_session_is_otpless_word_of_now(world: World) -> None:
    user = world.sign_in()
    assert world.get("/fresh").status_code == 200
    assert asked(world) == 1
    world.emulator.revoke(world.session_id(user))
    assert world.get("/orders").status_code == 200
    assert world.get("/fresh").status_code == 401


@pytest.mark.parametrize("channel", ["signed in here", "frontend-driven"])
@pytest.mark.parametrize("path", ["/orders", "/fresh"])
def test_a_clock_that_was_set_back_makes_nobodys_word_last_longer(world: World, path: str, channel: str) -> None:
    user = world.sign_in() if channel == "signed in here" else world.emulator.sign_in()
    token = world.token(user)
    assert [world.get("/orders", token).status_code for _ in range(2)] == [200, 200]  # this worker remembers it
    before = asked(world)
    world.clock.advance(-3600)
    assert world.get(path, token).status_code == 200
    assert asked(world) == before + 1
    assert world.get("/orders", token).status_code == 200
    assert asked(world) == before + 1


def test_a_workers_own_copy_is_believed_for_the_store_ttl(make_world: Callable[..., World]) -> None:
    world = make_world(store_ttl=60)
    world.sign_in()
    assert [world.get("/orders").status_code for _ in range(3)] == [200] * 3
    world.client.post("/auth/logout")
    assert world.get("/orders").status_code == 401


@pytest.mark.parametrize("pause", [10, 45, 70], ids=["fresh", "aging", "too-old"])
@pytest.mark.parametrize("validation_ttl", [0, 30])
def test_a_token_near_its_end_is_refreshed_behind_the_request(
    make_world: Callable[..., World], pause: float, validation_ttl: float
) -> None:
    """However seldom somebody comes, and whether OTPLESS has to be asked first."""
    world = make_world(validation_ttl=validation_ttl)
    world.sign_in()
    world.clock.advance(DAY * 0.94)
    assert world.get("/orders").status_code == 200
    world.get("/public")
    assert world.emulator.count(REFRESHES) == 0
    world.clock.advance(DAY * 0.036 - pause)
    swapped = []
    for _ in range(3):
        world.clock.advance(pause)
        swapped.append(world.get("/orders").json()["refreshed"])
        world.get("/public")  # lets the loop run
    assert swapped == [False, True, False]
    assert world.emulator.count(REFRESHES) == 1


def near_its_end(world: World) -> dict[str, Any]:
    """Sign somebody in whose token is in the last part of its life, and cannot be refreshed."""
    user = world.sign_in()
    world.emulator.kill_refresh(world.session_id(user))
    world.clock.advance(DAY * 0.976)
    return user


def test_a_refresh_that_nobody_needs_yet_ends_no_session_where_it_is_refused(world: World) -> None:
    near_its_end(world)
    for _ in range(20):
        assert world.get("/orders").status_code == 200
        world.get("/public")  # lets the loop run
        world.clock.advance(10)
    assert world.emulator.count(REFRESHES) == 1
    world.clock.advance(DAY * 0.024)
    assert world.get("/orders").json()["detail"]["code"] == "session_expired"
    assert world.emulator.count(REFRESHES) == 2
    world.get("/orders")
    assert world.emulator.count(REFRESHES) == 2


def test_a_session_whose_refresh_was_refused_ends_when_otpless_says_no(world: World) -> None:
    user = near_its_end(world)
    world.get("/orders")
    world.get("/public")
    assert world.emulator.count(REFRESHES) == 1
    world.emulator.expire(world.session_id(user))
    world.clock.advance(61)
    assert world.get("/orders").json()["detail"]["code"] == "session_expired"


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_whoever_needs_the_refresh_that_nobody_needed_before_has_its_refusal(
    tmp_path: Path, clock: Clock, where: str
) -> None:
    """The token dies while OTPLESS is asked; whoever brings it then waits for that answer, and asks again."""
    emulator, stores = Emulator(clock=clock), files(tmp_path, clock, 2)
    emulator.app = turnstile = Turnstile(emulator.app)
    async with Workers(emulator, clock, stores) as world:
        worker, other = world.workers
        emulator.kill_refresh(world.session_id)
        clock.advance(DAY * 0.99)
        assert isinstance(await worker.resolve(world.token), Session)
        turnstile.hold_next()
        assert isinstance(await worker.resolve(world.token), Session)
        await until(lambda: turnstile.held == 1)
        emulator.expire(world.session_id)
        clock.advance(2)
        needing = asyncio.create_task((worker if where == "here" else other).resolve(world.token, max_age=0))
        await settle(200)
        turnstile.let_go()
        assert await needing is SessionReason.EXPIRED
        assert emulator.count(REFRESHES) == 2
        row = await stores[0].get(world.session_id)
        assert row is not None
        assert row.end_reason is EndReason.EXPIRED
    await close(stores)


@pytest.mark.parametrize("limit", ["idle_timeout", "absolute_timeout"])
def test_our_own_limits_end_a_session(make_world: Callable[..., World], limit: str) -> None:
    world = make_world(**{limit: 600})
    user = world.sign_in()
    world.clock.advance(599)
    assert world.get("/orders").status_code == 200
    world.clock.advance(601)
    answer = world.get("/orders")
    assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "session_expired")
    assert world.emulator.session(world.session_id(user)).revoked


@pytest.mark.parametrize("limit", ["idle_timeout", "absolute_timeout"])
def test_our_own_limits_end_a_session_whatever_token_of_it_comes(make_world: Callable[..., World], limit: str) -> None:
    world = make_world(**{limit: 600})
    user = world.sign_in(channel="header")
    world.clock.advance(300)
    renewed = renewed_by_the_sdk(world, user)
    assert world.get("/orders", renewed).status_code == 200
    world.clock.advance(601)
    for token in (renewed, renewed_by_the_sdk(world, user), world.token(user)):
        answer = world.get("/orders", token)
        assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "session_expired")
    assert world.emulator.session(world.session_id(user)).revoked


def renewed_by_the_sdk(world: World, user: dict[str, Any]) -> str:
    """A token of a session that was signed in here, which only the browser has asked OTPLESS for."""
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=world.emulator.app))
    client = OtplessClient(world.settings, http=http)
    return str(world.call(client.new_session_token, user["sessionInfo"]["refreshToken"]).session_token)


@pytest.mark.parametrize("how", ["expired", "refused"])
def test_a_token_that_gets_nobody_in_keeps_no_session_from_being_idle(
    make_world: Callable[..., World], how: str
) -> None:
    world = make_world(idle_timeout=600)
    user = world.sign_in(channel="header")
    if how == "refused":
        dead = renewed_by_the_sdk(world, user)
        world.emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": false}'))
    else:
        session_id, now = world.session_id(user), world.clock()
        names = {"sub": session_id, "sessionId": session_id, "userId": user["userId"], "iss": world.settings.issuer}
        dead = world.emulator.issue({**names, "iat": now - 120, "exp": now - 60})
    for _ in range(5):
        world.clock.advance(300)
        assert world.get("/orders", dead).status_code == 401
    world.emulator.clear_faults()
    assert world.get("/orders", world.token(user)).json()["detail"]["code"] == "session_expired"


async def renewed_token(world: Workers) -> str:
    """Sign somebody in, and return the token that their SDK got from OTPLESS by itself."""
    user = world.emulator.sign_in(mobile="922")
    await world.workers[0].sign_in(user)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=world.emulator.app)) as http:
        client = OtplessClient(world.workers[0].settings, http=http)
        pair = await client.new_session_token(user["sessionInfo"]["refreshToken"])
    assert isinstance(pair, TokenPair)
    return pair.session_token


async def asked_for(worker: OtplessSessions, token: str) -> Session | SessionReason:
    """What a request gets."""
    served = worker.at_once(token)
    return await worker.resolve(token) if served is None else served.session(token)


async def test_our_own_limits_hold_while_the_store_is_down_whatever_token_comes(clock: Clock) -> None:
    store = FailingStore(None, clock=clock)
    async with Workers(Emulator(clock=clock), clock, [store], absolute_timeout=3600) as world:
        renewed = await renewed_token(world)
        clock.advance(3590)
        assert isinstance(await world.workers[0].resolve(renewed), Session)
        store.fail("find", "get", "now", "end")
        clock.advance(5)
        assert isinstance(await world.workers[0].resolve(renewed), Session)
        clock.advance(5)
        assert await world.workers[0].resolve(renewed) is SessionReason.UNAVAILABLE
    await store.close()


async def test_our_own_limits_end_what_a_worker_believes_whatever_token_comes(clock: Clock) -> None:
    store = FailingStore(None, clock=clock)
    values = {"absolute_timeout": 600, "store_ttl": DAY, "validation_ttl": DAY}
    async with Workers(Emulator(clock=clock), clock, [store], **values) as world:
        renewed = await renewed_token(world)
        for _ in range(2):
            clock.advance(295)
            assert isinstance(await asked_for(world.workers[0], renewed), Session)
        clock.advance(10)
        assert await asked_for(world.workers[0], renewed) is SessionReason.EXPIRED
    await store.close()


@pytest.mark.parametrize("limits", [{"idle_timeout": 100}, {"idle_timeout": 100, "absolute_timeout": DAY}])
async def test_whoever_keeps_coming_is_not_idle_however_long_a_worker_believes_what_it_saw(
    tmp_path: Path, clock: Clock, limits: dict[str, float]
) -> None:
    stores = files(tmp_path, clock, 2)
    async with Workers(Emulator(clock=clock), clock, stores, store_ttl=DAY, validation_ttl=DAY, **limits) as world:
        renewed, (worker, other) = await renewed_token(world), world.workers
        for _ in range(30):
            clock.advance(15)
            assert isinstance(await asked_for(worker, renewed), Session)
            await settle()
            await worker.housekeep()  # behind what is to be written meanwhile
        assert isinstance(await asked_for(other, renewed), Session)
    await close(stores)


@pytest.mark.parametrize("renewed", [False, True])
def test_whoever_keeps_coming_is_not_idle(make_world: Callable[..., World], renewed: bool) -> None:
    world = make_world(idle_timeout=100)
    user = world.sign_in(channel="header")
    token = renewed_by_the_sdk(world, user) if renewed else world.token(user)
    for _ in range(5):
        world.clock.advance(60)
        assert world.get("/orders", token).status_code == 200


@asynccontextmanager
async def alone(clock: Clock, **values: Any) -> AsyncIterator[tuple[Workers, Emulator, FailingStore]]:
    """One worker with a store and an OTPLESS that can fail."""
    otpless, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(otpless, clock, [store], **values) as world:
        yield world, otpless, store
    await store.close()


OUTAGES: dict[str, Callable[[Emulator, FailingStore], None]] = {
    "OTPLESS": lambda otpless, _: otpless.add_fault(Fault("status")),
    "the store": lambda _, store: store.fail("find", "get", "unchanged_at", "touch", "end", "confirm"),
    "the store's disk": lambda _, store: store.fail("touch", "end", "confirm", "take_lease", "commit"),
}


@pytest.mark.parametrize("down", OUTAGES)
async def test_whoever_keeps_coming_in_an_outage_is_not_idle_and_who_stays_away_is(clock: Clock, down: str) -> None:
    async with alone(clock, idle_timeout=600) as (world, otpless, store):
        worker = world.workers[0]
        away = await worker.sign_in(otpless.sign_in(mobile="919876543210"))
        for token in (world.token, away.token.get_secret_value()):
            assert isinstance(await asked_for(worker, token), Session)
        OUTAGES[down](otpless, store)
        for _ in range(40):
            clock.advance(30)
            assert await asked_for(worker, world.token) is not SessionReason.EXPIRED
            await settle()
        otpless.clear_faults()
        store.fail()
        clock.advance(30)
        assert isinstance(await asked_for(worker, world.token), Session)
        assert await asked_for(worker, away.token.get_secret_value()) is SessionReason.EXPIRED


async def test_a_no_of_otpless_counts_though_the_refresh_after_it_gets_no_answer(clock: Clock) -> None:
    async with alone(clock) as (world, otpless, _):
        worker = world.workers[0]
        clock.advance(100)
        otpless.expire(world.session_id)
        otpless.add_fault(Fault("status", path=REFRESHES))
        assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE
        otpless.add_fault(Fault("status"))
        clock.advance(5)
        assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE  # and not stale
        otpless.clear_faults()
        clock.advance(5)
        session = await asked_for(worker, world.token)
        assert isinstance(session, Session)
        assert session.refreshed


async def test_a_no_that_is_learned_behind_a_request_lets_nobody_in_meanwhile(clock: Clock) -> None:
    async with alone(clock) as (world, otpless, _):
        worker = world.workers[0]
        clock.advance(31)
        otpless.revoke(world.session_id)
        otpless.add_fault(Fault("status", path=REFRESHES))
        assert isinstance(await asked_for(worker, world.token), Session)
        for _ in range(6):
            await settle()
            clock.advance(4)
            assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE
        otpless.clear_faults()
        clock.advance(4)
        assert await asked_for(worker, world.token) is SessionReason.EXPIRED


async def test_a_no_to_a_question_for_now_lets_nobody_in_as_fresh(clock: Clock) -> None:
    async with alone(clock) as (world, otpless, _):
        worker = world.workers[0]
        assert isinstance(await asked_for(worker, world.token), Session)
        otpless.revoke(world.session_id)
        otpless.add_fault(Fault("status", path=REFRESHES))
        clock.advance(5)
        assert await worker.resolve(world.token, max_age=0) is SessionReason.UNAVAILABLE
        assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE


async def test_a_renewed_token_that_keeps_coming_in_an_outage_is_not_idle_after_it(clock: Clock) -> None:
    async with alone(clock, idle_timeout=600) as (world, otpless, store):
        renewed, worker = await renewed_token(world), world.workers[0]
        assert isinstance(await asked_for(worker, renewed), Session)
        await settle()
        OUTAGES["the store"](otpless, store)
        for _ in range(50):
            clock.advance(30)
            assert await asked_for(worker, renewed) is not SessionReason.EXPIRED
        store.fail()
        clock.advance(30)
        assert isinstance(await asked_for(worker, renewed), Session)


async def test_an_open_websocket_is_activity_in_an_outage_too(clock: Clock) -> None:
    async with alone(clock, idle_timeout=600) as (world, otpless, store):
        worker = world.workers[0]
        session = await worker.resolve(world.token)
        assert isinstance(session, Session)
        OUTAGES["the store"](otpless, store)
        for _ in range(30):
            clock.advance(30)
            assert await worker.recheck(session) is SessionReason.UNAVAILABLE
        store.fail()
        clock.advance(30)
        assert isinstance(await worker.recheck(session), Session)


async def test_whom_otpless_said_no_to_is_not_idle_after_an_outage_of_the_store_either(clock: Clock) -> None:
    async with alone(clock, idle_timeout=600) as (world, otpless, store):
        worker = world.workers[0]
        assert isinstance(await asked_for(worker, world.token), Session)
        clock.advance(100)
        otpless.expire(world.session_id)
        otpless.add_fault(Fault("status", path=REFRESHES))
        assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE
        OUTAGES["the store"](otpless, store)
        for _ in range(30):
            clock.advance(30)
            assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE
        otpless.clear_faults()
        store.fail()
        clock.advance(30)
        assert isinstance(await asked_for(worker, world.token), Session)


async def test_a_valid_that_is_asked_for_after_a_no_counts(clock: Clock) -> None:
    async with alone(clock) as (world, otpless, _):
        worker = world.workers[0]
        assert isinstance(await asked_for(worker, world.token), Session)
        clock.advance(100)
        otpless.add_fault(Fault("status", path=REFRESHES))
        otpless.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": false}', times=1))
        first, fresh = await asyncio.gather(worker.resolve(world.token), worker.resolve(world.token, max_age=0))
        assert first is SessionReason.UNAVAILABLE
        assert isinstance(fresh, Session)
        clock.advance(2)
        assert isinstance(await worker.resolve(world.token), Session)


async def test_a_no_to_a_sessions_newer_token_holds_for_its_older_one_in_an_outage_of_the_store(clock: Clock) -> None:
    otpless, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(otpless, clock, [store, store], rotation_grace=600) as world:
        worker, other = world.workers
        assert isinstance(await asked_for(worker, world.token), Session)
        otpless.expire(world.session_id)
        newer = await other.resolve(world.token, max_age=0)
        assert isinstance(newer, Session)
        clock.advance(100)
        otpless.revoke(world.session_id)
        otpless.add_fault(Fault("status", path=REFRESHES))
        assert await asked_for(worker, newer.token.get_secret_value()) is SessionReason.UNAVAILABLE
        OUTAGES["the store"](otpless, store)
        assert await asked_for(worker, world.token) is SessionReason.UNAVAILABLE
    await store.close()


async def test_without_a_lifespan_the_first_question_is_answered_too(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    settings = make_settings()
    client = OtplessClient(settings, http=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
    sessions = OtplessSessions(settings, client=client, clock=clock, monotonic=clock)
    outcome = await sessions.resolve(emulator.sign_in()["sessionInfo"]["sessionToken"])
    assert isinstance(outcome, Session)
    await sessions.close()


@pytest.mark.parametrize("validation_ttl", [0, 2 * DAY])
async def test_without_a_lifespan_no_token_is_refreshed_before_it_is_over(clock: Clock, validation_ttl: float) -> None:
    """A request would wait for what it does not need."""
    emulator = Emulator(clock=clock)
    settings = make_settings(validation_ttl=validation_ttl)
    client = OtplessClient(settings, http=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
    sessions = OtplessSessions(settings, client=client, clock=clock, monotonic=clock)  # and not opened
    token = (await sessions.sign_in(emulator.sign_in())).token.get_secret_value()
    clock.advance(DAY * 0.99)
    assert isinstance(await sessions.resolve(token), Session)
    assert emulator.count(REFRESHES) == 0
    await sessions.close()
