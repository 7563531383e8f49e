"""Signing out on a bad day: whoever is told that it is done is out, everywhere and for good, or is told that it is not.

What several workers and failing stores do is shown on `OtplessSessions` itself: each object is a worker.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from conftest import Clock, World, make_settings
from crew import FailingStore, Workers
from fleet_members import Turnstile, until
from simulated import settle

from fastapi_otpless_session import NoVerdictError, OtplessClient, OtplessSessions, Session, SessionReason, ending
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault
from fastapi_otpless_session.stores.base import SessionRow, SessionStore, State
from fastapi_otpless_session.stores.sqlite import SqliteStore
from fastapi_otpless_session.wire import TokenPair

DAY = 86_400


# While the store cannot take note


async def test_a_sign_out_is_an_error_where_nobody_can_tell_whose_token_it_is(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        emulator.rotate_key()
        emulator.retire_keys()  # and so no signature tells
        emulator.expire(world.session_id)  # nor does OTPLESS
        clock.advance(3_601)
        store.fail("find", "get", "end")
        with pytest.raises(NoVerdictError):
            await worker.sign_out(world.token)
        store.fail()
        await worker.sign_out(world.token)
        assert emulator.session(world.session_id).revoked
    await store.close()


async def test_a_token_that_a_worker_never_saw_is_revoked_once_it_was_signed_out_there_in_an_outage(
    clock: Clock,
) -> None:
    """And no matter for another try: a 503 would have the page wait for a session that is over."""
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        other = world.workers[1]
        store.fail("find", "get", "end")
        assert await other.resolve(world.token) is SessionReason.UNAVAILABLE
        await other.sign_out(world.token)
        assert await other.resolve(world.token) is SessionReason.REVOKED
    await store.close()


async def test_a_sign_out_that_could_not_be_written_before_the_worker_stops_is_told(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        store.fail("find", "get", "end")
        await world.workers[0].sign_out(world.token)
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert told == ["Not ended: 1 signed-out sessions, which the store could not take note of"]
    await store.close()


async def test_a_session_that_was_signed_out_without_the_store_has_no_newest_token(clock: Clock) -> None:
    """So a response that is on its way brings none: it would be one that gets nobody in."""
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        (worker,) = world.workers
        clock.advance(DAY + 1)
        swapped = await worker.resolve(world.token)
        assert isinstance(swapped, Session)
        assert await worker.newest_token(swapped) is not None
        store.fail("find", "get", "end")
        await worker.sign_out(swapped.token.get_secret_value())
        store.fail()
        assert await worker.newest_token(swapped) is None
    await store.close()


async def test_a_sign_out_without_keys_is_an_error_where_the_refresh_token_may_live(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], jwks_url="") as world:
        worker = world.workers[0]
        emulator.expire(world.session_id)
        store.fail("find", "get", "end")
        with pytest.raises(NoVerdictError):
            await worker.sign_out(world.token)
    await store.close()


async def test_what_was_found_before_the_store_failed_is_what_is_signed_out(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        emulator.rotate_key()
        emulator.retire_keys()
        clock.advance(3_601)
        store.fail("end")
        await worker.sign_out(world.token)
        assert emulator.session(world.session_id).revoked
        assert await worker.resolve(world.token) is SessionReason.REVOKED
    await store.close()


async def forget(store: SqliteStore) -> None:
    """Have a store lose its rows, as a crash may."""
    await store._write(lambda db: db.execute("DELETE FROM sessions"))


@pytest.mark.parametrize("has_lost_it", [False, True])
@pytest.mark.parametrize("is_known", [True, False])
async def test_what_the_store_could_not_note_is_written_once_it_can(
    clock: Clock, is_known: bool, has_lost_it: bool
) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        user = emulator.sign_in(mobile="922")["sessionInfo"]
        token = world.token if is_known else str(user["sessionToken"])
        session_id = world.session_id if is_known else str(user["sessionId"])
        assert isinstance(await worker.resolve(token), Session)
        store.fail("find", "get", "end")
        await worker.sign_out(token)
        await worker.housekeep()
        if has_lost_it:
            await forget(store)
        store.fail()
        await worker.housekeep()
        row = await store.get(session_id)
        assert row is not None
        assert row.state is State.ENDED
        assert row.expires_at > clock.now + DAY
    await store.close()


async def test_an_open_websocket_ends_with_its_session_though_the_store_is_down(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        session = await worker.resolve(world.token)
        assert isinstance(session, Session)
        store.fail("find", "get", "end")
        assert await worker.recheck(session) is SessionReason.UNAVAILABLE
        await worker.sign_out(world.token)
        assert await worker.recheck(session) is SessionReason.REVOKED
        store.fail()
        assert await worker.recheck(session) is SessionReason.REVOKED
        row = await store.get(world.session_id)
        assert row is not None
        assert row.state is State.ENDED
    await store.close()


async def test_a_sign_out_without_the_store_is_finished_though_whoever_asked_gave_up(clock: Clock) -> None:
    emulator, store, settings = Emulator(clock=clock), FailingStore(None, clock=clock), make_settings()
    answer = Late(emulator.app)
    async with Workers(emulator, clock, [store]) as world, httpx.AsyncClient(transport=answer) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        async with OtplessSessions(settings, store=store, client=client, clock=clock) as worker:
            assert isinstance(await worker.resolve(world.token), Session)
            store.fail("find", "get", "end", "now")
            task = asyncio.create_task(worker.sign_out(world.token))
            await answer.given.wait()
            task.cancel()
            await asyncio.wait([task])
            answer.arrives.set()
            await settle()
            assert emulator.session(world.session_id).revoked
            assert await worker.resolve(world.token) is SessionReason.REVOKED
    await store.close()


class Late(httpx.ASGITransport):
    """Answers to revoke-session stay on their way until a test says otherwise."""

    def __init__(self, app: Any) -> None:
        super().__init__(app=app)
        self.given, self.arrives = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await super().handle_async_request(request)
        if request.url.path.endswith("revoke-session"):
            self.given.set()
            await self.arrives.wait()
        return answer


# Everywhere


def test_a_sign_out_everywhere_that_fails_half_way_can_be_tried_again(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world()
    users = [world.sign_in(user_id="MO-1", channel="header") for _ in range(3)]
    tokens = [world.token(user) for user in users]
    here, hiccup = tokens[1], FailingStore(None, clock=world.clock)
    failing = world.session_id(users[2])
    end = SqliteStore.end

    async def end_but_one(self: SqliteStore, row: Any, *values: Any, **more: Any) -> Any:
        if row.session_id == failing and hiccup.failing:
            hiccup._check("end")
        return await end(self, row, *values, **more)

    monkeypatch.setattr(SqliteStore, "end", end_but_one)
    hiccup.fail("end")
    assert world.client.post("/auth/logout-all", headers={"X-Session-Token": here}).status_code == 503
    hiccup.fail()
    assert world.client.post("/auth/logout-all", headers={"X-Session-Token": here}).status_code == 204
    assert [world.get("/orders", token).status_code for token in tokens] == [401, 401, 401]


# Whose token it is


async def test_a_frontends_session_ends_though_the_key_of_its_token_is_published_no_more(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        user = emulator.sign_in(mobile="922")["sessionInfo"]
        token = str(user["sessionToken"])
        for worker in world.workers:
            assert isinstance(await worker.resolve(token), Session)
        emulator.rotate_key()
        emulator.retire_keys()
        clock.advance(3_601)
        await world.workers[1].sign_out(token)
        assert emulator.session(str(user["sessionId"])).revoked
        assert await world.workers[0].resolve(token) is SessionReason.REVOKED
    await store.close()


@pytest.mark.parametrize("payload", ["e30", "bm90IEpTT04", "eyJleHAiOjF9"])
async def test_a_made_up_token_of_an_unknown_key_is_nobodys(clock: Clock, payload: str) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"made up"}').decode().rstrip("=")
    async with Workers(emulator, clock, [store]) as world:
        clock.advance(11)  # keys may be fetched again
        await world.workers[0].sign_out(f"{header}.{payload}.c2lnbmF0dXJl")
        assert emulator.count("revoke-session") == 0
    await store.close()


async def test_otpless_hears_nothing_of_made_up_tokens_of_unknown_keys(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    header = base64.urlsafe_b64encode(b'{"alg":"RS256","kid":"made up"}').decode().rstrip("=")
    async with Workers(emulator, clock, [store]) as world:
        payload = world.token.split(".")[1]
        emulator.reset_calls()
        for number in range(3):
            clock.advance(11)  # keys may be fetched again
            await world.workers[0].sign_out(f"{header}.{payload}.c2lnbmF0dXJ{number}")
        assert {call.path for call in emulator.calls} <= {"/.well-known/jwks"}
        assert isinstance(await world.workers[0].resolve(world.token), Session)
    await store.close()


async def test_a_sign_out_is_an_error_while_the_key_of_its_token_cannot_be_asked_for_yet(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        emulator.rotate_key()
        user = emulator.sign_in(mobile="922")["sessionInfo"]
        with pytest.raises(NoVerdictError):
            await worker.sign_out(str(user["sessionToken"]))
        clock.advance(11)
        await worker.sign_out(str(user["sessionToken"]))
        assert emulator.session(str(user["sessionId"])).revoked
        assert await worker.resolve(str(user["sessionToken"])) is SessionReason.REVOKED
    await store.close()


async def test_without_keys_otpless_is_asked_once_about_a_made_up_token(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], jwks_url="") as world:
        made_up = emulator.issue({"sub": "s-1", "sessionId": "s-1", "exp": clock.now + DAY})
        emulator.reset_calls()
        for _ in range(3):
            await world.workers[0].sign_out(made_up)
        assert emulator.count("get-session-details") == 1
        assert emulator.count("revoke-session") == 0
    await store.close()


async def test_a_strangers_sign_out_on_a_full_disk_is_no_news_of_known_sessions(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        store.fail("end")
        for number in range(6):
            token = str(emulator.sign_in(mobile=f"92{number}")["sessionInfo"]["sessionToken"])
            with pytest.raises(NoVerdictError):
                await worker.sign_out(token)
        store.fail()
        assert isinstance(await worker.resolve(world.token, max_age=0), Session)
    await store.close()


async def test_a_token_of_another_application_is_not_written_down_after_an_outage(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        foreign, worker = emulator.sign_in(mobile="922")["sessionInfo"], world.workers[0]
        body = b'{"errorCode": "7414", "message": "unknown"}'
        emulator.add_fault(Fault("status", path="revoke-session", status=400, body=body))
        store.fail("find", "get", "end")
        await worker.sign_out(str(foreign["sessionToken"]))
        store.fail()
        await worker.housekeep()
        assert await store.get(str(foreign["sessionId"])) is None
    await store.close()


# A session that was signed in here, and whose token the frontend's SDK renewed


USED_UP = Fault("status", path="get-new-session-token", status=401, body=b'{"errorCode": "7415", "message": "used"}')
"""An OTPLESS that takes each refresh token once, and punishes nobody who brings it again."""


async def renewed(world: Workers, refresh_token: str) -> TokenPair:
    """The next pair, as the SDK gets it from OTPLESS by itself."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=world.emulator.app)) as http:
        client = OtplessClient(world.workers[0].settings, http=http)
        pair = await client.new_session_token(refresh_token)
    assert isinstance(pair, TokenPair)
    return pair


async def signed_in(world: Workers) -> TokenPair:
    """Sign another one in, and return the tokens that the SDK has, too."""
    user = world.emulator.sign_in(mobile="922")
    await world.workers[0].sign_in(user)
    info = user["sessionInfo"]
    return TokenPair(info["sessionId"], info["sessionToken"], info["refreshToken"])


async def the_row(store: SqliteStore, session_id: str) -> SessionRow:
    row = await store.get(session_id)
    assert row is not None
    return row


async def test_otpless_is_told_of_the_token_that_the_sdk_renewed_where_ours_are_used_up(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        first = await signed_in(world)
        clock.advance(DAY - 1_000)
        second = await renewed(world, first.refresh_token)
        clock.advance(2_000)
        emulator.add_fault(USED_UP)
        await world.workers[0].sign_out(second.session_token)
        assert emulator.session(first.session_id).revoked
        assert (await the_row(store, first.session_id)).revocation_due is None
    await store.close()


async def test_otpless_is_told_of_a_renewed_token_however_late_and_though_the_row_has_expired(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        first = await signed_in(world)
        clock.advance(6 * DAY)
        second = await renewed(world, first.refresh_token)
        clock.advance(DAY - 100)
        third = await renewed(world, second.refresh_token)
        clock.advance(110)  # what was signed in here is over by now
        assert isinstance(await world.workers[0].resolve(third.session_token), Session)
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        await world.workers[0].sign_out(third.session_token)
        assert not emulator.session(first.session_id).revoked
        emulator.clear_faults()
        clock.advance(3_600)
        await world.workers[1].housekeep()
        assert emulator.session(first.session_id).revoked
        assert await world.workers[1].resolve(third.session_token) is SessionReason.REVOKED
    await store.close()


async def test_a_sign_out_with_a_renewed_token_holds_as_long_as_one_of_a_stranger(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store, store]) as world:
        first = await signed_in(world)
        clock.advance(DAY)
        newest = await renewed(world, first.refresh_token)
        clock.advance(DAY)  # the SDK could renew it still, and nobody can tell OTPLESS of that
        emulator.add_fault(USED_UP)
        await world.workers[0].sign_out(newest.session_token)
        emulator.clear_faults()
        for _ in range(7):
            newest = await renewed(world, newest.refresh_token)
            clock.advance(DAY - 1)
            await world.workers[1].housekeep()
            assert await world.workers[1].resolve(newest.session_token) is SessionReason.REVOKED
    await store.close()


async def test_a_token_from_before_the_sign_in_does_not_keep_otpless_from_hearing_of_the_sessions_own(
    clock: Clock,
) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store], require_sign_in_token=False) as world:
        user = emulator.sign_in(mobile="922")
        old = str(user["sessionInfo"]["sessionToken"])
        clock.advance(3_600)
        second = await renewed(world, str(user["sessionInfo"]["refreshToken"]))
        await world.workers[0].sign_in({**user, "sessionInfo": asdict(second)})
        clock.advance(DAY - 3_000)
        emulator.add_fault(USED_UP)
        await world.workers[0].sign_out(old)
        assert emulator.session(second.session_id).revoked
    await store.close()


async def test_otpless_hears_once_of_a_renewed_token_that_is_signed_out_again_and_again(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        second = await renewed(world, (await signed_in(world)).refresh_token)
        for _ in range(3):
            await world.workers[0].sign_out(second.session_token)
        assert emulator.count("revoke-session") == 1
    await store.close()


async def test_an_older_renewed_token_does_not_take_the_place_of_the_newest(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker, first = world.workers[0], await signed_in(world)
        clock.advance(DAY // 2)
        second = await renewed(world, first.refresh_token)
        clock.advance(DAY - 1_000)
        third = await renewed(world, second.refresh_token)
        clock.advance(2_000)
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        for token in (third.session_token, second.session_token):  # the latter by another tab
            await worker.sign_out(token)
        emulator.clear_faults()
        emulator.add_fault(USED_UP)
        clock.advance(700)
        await worker.housekeep()
        assert emulator.session(first.session_id).revoked
        assert (await the_row(store, first.session_id)).revocation_due is None
    await store.close()


async def test_no_other_worker_tells_of_a_renewed_token_while_one_is_at_it(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    emulator.app = turnstile = Turnstile(emulator.app, "revoke-session")
    async with Workers(emulator, clock, [store, store]) as world:
        first = await signed_in(world)
        second = await renewed(world, first.refresh_token)
        turnstile.hold_next()
        ending = asyncio.create_task(world.workers[0].sign_out(second.session_token))
        await until(lambda: turnstile.held == 1)
        clock.advance(1)
        await world.workers[1].housekeep()
        assert emulator.count("revoke-session") == 1
        turnstile.let_go()
        await ending
        assert emulator.session(first.session_id).revoked
    await store.close()


async def test_a_session_that_had_expired_here_is_signed_out_at_otpless_by_its_renewed_token(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        first = await signed_in(world)
        clock.advance(DAY - 1_000)
        second = await renewed(world, first.refresh_token)
        clock.advance(2_000)
        emulator.add_fault(USED_UP)
        assert await world.workers[0].resolve(first.session_token) is SessionReason.EXPIRED
        await world.workers[0].sign_out(second.session_token)
        assert emulator.session(first.session_id).revoked
    await store.close()


async def test_a_renewed_token_is_signed_out_by_a_worker_that_cannot_unseal_the_row(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    keys = base64.urlsafe_b64encode(b"k" * 32).decode()
    async with (
        Workers(emulator, clock, [store]) as world,
        Workers(emulator, clock, [store], encryption_keys=keys) as other,
    ):
        first = await signed_in(world)
        second = await renewed(world, first.refresh_token)
        await other.workers[0].sign_out(second.session_token)
        assert emulator.session(first.session_id).revoked
    await store.close()


async def test_a_sign_out_with_a_renewed_token_is_an_error_where_nobody_can_note_that_token(clock: Clock) -> None:
    emulator, store = Emulator(EmulatorSettings(rotation="rotating"), clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        first = await signed_in(world)
        second = await renewed(world, first.refresh_token)
        store.fail("replace_revocation")
        emulator.add_fault(Fault("status", path="revoke-session", status=500))
        with pytest.raises(NoVerdictError):
            await world.workers[0].sign_out(second.session_token)
        emulator.clear_faults()
        await world.workers[0].sign_out(second.session_token)  # OTPLESS hears of it directly
        assert emulator.session(first.session_id).revoked
    await store.close()


# Shutdown


async def test_an_answer_about_somebody_else_signs_out_nobody_else(clock: Clock) -> None:
    """A dead token's refresh token is used up to end its session, and OTPLESS errs about whose the new pair is."""
    emulator, store = Emulator(clock=clock), SqliteStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        clock.advance(DAY + 1)
        emulator.add_fault(Fault("other_session", path="get-new-session-token", times=1))
        await worker.sign_out(world.token)
        others = [each for each in emulator.sessions() if each.session_id != world.session_id]
        assert others
        assert not any(each.revoked for each in others)
        clock.advance(11)
        await worker.housekeep()
        assert emulator.session(world.session_id).revoked
        assert (await the_row(store, world.session_id)).revocation_due is None
    await store.close()


async def test_everything_that_the_store_could_not_note_is_written_at_shutdown(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        pairs = [await signed_in(world) for _ in range(250)]
        store.fail("find", "get", "end")
        for pair in pairs:
            await world.workers[0].sign_out(pair.session_token)
        store.fail()
    assert {(await the_row(store, pair.session_id)).state for pair in pairs} == {State.ENDED}
    await store.close()


# Clocks


@pytest.mark.parametrize("rotation", ["fixed", "rotating", "strict"])
async def test_a_store_whose_clock_is_ahead_of_a_tokens_life_costs_nobody_the_session(
    clock: Clock, rotation: Any
) -> None:
    now = Clock()
    now.now = clock.now
    emulator, store = Emulator(EmulatorSettings(rotation=rotation), clock=clock), FailingStore(None, clock=now)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        now.advance(DAY + 3_600)
        for _ in range(9):
            assert await worker.resolve(world.token) is SessionReason.UNAVAILABLE
        row = await store.get(world.session_id)
        assert row is not None
        assert row.generation <= 2  # not one for each request
        now.now = clock.now
        clock.advance(60)  # the breaker's pause
        assert isinstance(await worker.resolve(world.token), Session)
    await store.close()


async def test_a_clock_that_is_set_back_does_not_keep_a_good_token_out(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), FailingStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        worker = world.workers[0]
        token = str(emulator.sign_in(mobile="922")["sessionInfo"]["sessionToken"])
        clock.advance(3_600)
        emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": false}', times=1))
        assert await worker.resolve(token) is SessionReason.EXPIRED
        assert await worker.resolve(token) is SessionReason.EXPIRED
        clock.advance(-3_500)
        assert isinstance(await worker.resolve(token), Session)
    await store.close()


# When more have ended than a worker remembers


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> int:
    """Workers remember three endings only."""
    monkeypatch.setattr(ending, "REMEMBERED", 3)
    return 3


async def end_others(world: Workers, count: int) -> None:
    """Sign others in, and end their sessions."""
    for number in range(count):
        user = world.emulator.sign_in(mobile=f"91987654{number:04}")
        session = await world.workers[0].sign_in(user)
        await world.workers[0].end(session.id)


@pytest.mark.parametrize("store_ttl", [0, 60])
async def test_whoever_was_signed_out_here_is_not_served_in_an_outage_however_many_were_since(
    clock: Clock, forgetful: int, store_ttl: float
) -> None:
    store = FailingStore(None, clock=clock)
    async with Workers(Emulator(clock=clock), clock, [store], store_ttl=store_ttl) as world:
        worker = world.workers[0]
        clock.advance(10)
        assert isinstance(await worker.resolve(world.token), Session)
        await worker.sign_out(world.token)
        clock.advance(61)
        await end_others(world, forgetful - 1)
        store.fail("find", "get", "unchanged_at")
        assert await worker.resolve(world.token) is SessionReason.REVOKED
        store.fail()
        await end_others(world, forgetful)
        store.fail("find", "get", "unchanged_at")
        assert await worker.resolve(world.token) is SessionReason.UNAVAILABLE
    await store.close()


async def test_whoever_was_seen_since_then_is_served_in_an_outage_all_the_same(clock: Clock, forgetful: int) -> None:
    store = FailingStore(None, clock=clock)
    async with Workers(Emulator(clock=clock), clock, [store]) as world:
        worker, stranger = world.workers[0], str(world.emulator.sign_in(mobile="922")["sessionInfo"]["sessionToken"])
        await end_others(world, forgetful)
        clock.advance(1)
        for token in (world.token, stranger):
            assert isinstance(await worker.resolve(token), Session)
        await end_others(world, 1)
        store.fail("find", "get", "unchanged_at")
        for token in (world.token, stranger):
            served = await worker.resolve(token)
            assert isinstance(served, Session)
            assert served.stale
    await store.close()


@pytest.mark.parametrize("is_learned", [True, False])
async def test_a_stranger_that_was_signed_out_is_not_served_in_an_outage_by_another_token(
    clock: Clock, forgetful: int, is_learned: bool
) -> None:
    """Whether the sign-out was here, or this worker learned of one elsewhere from the token that was signed out."""
    stores: list[SessionStore] = [FailingStore(None, clock=clock)]
    async with Workers(Emulator(clock=clock), clock, stores * 2) as world:
        here, elsewhere = world.workers
        info = world.emulator.sign_in(mobile="922")["sessionInfo"]
        first, second = str(info["sessionToken"]), (await renewed(world, info["refreshToken"])).session_token
        for token in (first, second):
            assert isinstance(await here.resolve(token), Session)
        await (elsewhere if is_learned else here).sign_out(first)
        assert await here.resolve(first) is SessionReason.REVOKED
        clock.advance(1)
        store = stores[0]
        assert isinstance(store, FailingStore)
        store.fail("find", "get", "unchanged_at")
        assert await here.resolve(second) is SessionReason.REVOKED
        store.fail()
        await end_others(world, forgetful)
        store.fail("find", "get", "unchanged_at")
        assert await here.resolve(second) is SessionReason.UNAVAILABLE
    await stores[0].close()


# By its id


async def test_a_session_that_has_ended_is_not_there_to_be_ended(clock: Clock) -> None:
    emulator, store = Emulator(clock=clock), SqliteStore(None, clock=clock)
    async with Workers(emulator, clock, [store]) as world:
        (worker,) = world.workers
        assert await worker.end(world.session_id, user_id="MO-another") is False
        assert await worker.end(world.session_id) is True
        assert await worker.end(world.session_id) is False
    await store.close()
