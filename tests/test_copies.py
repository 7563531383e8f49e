"""A worker's own copies of sessions: what they are good for, and that they let in nobody whom the rest would refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from asgi import exchange
from conftest import Clock, World, make_settings

from fastapi_otpless_session import OtplessClient, OtplessSessions, Session, SessionReason, StoreError
from fastapi_otpless_session.copies import Copies, Copy
from fastapi_otpless_session.duties import Duties
from fastapi_otpless_session.emulator import Emulator
from fastapi_otpless_session.stores.base import EndReason, SessionRow
from fastapi_otpless_session.stores.sqlite import SqliteStore
from fastapi_otpless_session.tokens import Claims
from fastapi_otpless_session.wire import TokenPair

DAY = 86_400


class Unreachable(SqliteStore):
    """A real store of which some methods cannot be reached while they are told so, and which can be slow."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(None, clock=clock)
        self.failing: frozenset[str] = frozenset()
        self.reads_until_held_up: int | None = None
        """Once it is set, nothing can be told at once, and this read of a row waits until it may go on."""
        self.is_held_up, self.goes_on = asyncio.Event(), asyncio.Event()

    def unknown_at(self, digest: bytes, session_id: str) -> float | None:
        return super().unknown_at(digest, session_id) if self.reads_until_held_up is None else None

    async def get(self, session_id: str) -> SessionRow | None:
        if self.reads_until_held_up is not None:
            self.reads_until_held_up -= 1
            if self.reads_until_held_up == 0:
                self.is_held_up.set()
                await self.goes_on.wait()
        return await super().get(session_id)

    def __getattribute__(self, name: str) -> Any:
        if name in super().__getattribute__("__dict__").get("failing", ()):
            return _unreachable
        return super().__getattribute__(name)

    def fail(self, *names: str) -> None:
        self.failing = frozenset(names)

    def fail_wholly(self) -> None:
        self.fail("find", "get", "touch", "confirm", "end", "now", "take_lease", "unchanged_at", "unknown_at")


def _unreachable(*_: Any, **__: Any) -> Any:
    raise StoreError("not reached")


@asynccontextmanager
async def worker(
    clock: Clock, emulator: Emulator, **values: Any
) -> AsyncIterator[tuple[OtplessSessions, Unreachable, str]]:
    """Give the sessions of a worker, its store, and the token of somebody signed in and seen."""
    settings, store = make_settings(**values), Unreachable(clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        async with OtplessSessions(settings, store=store, client=client, clock=clock, monotonic=clock) as sessions:
            session = await sessions.sign_in(emulator.sign_in())
            token = session.token.get_secret_value()
            assert isinstance(await sessions.resolve(token), Session)
            yield sessions, store, token
        await store.close()


async def test_a_token_that_otpless_just_refused_is_not_served_because_the_store_is_down(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, store_ttl=60, validation_ttl=0) as (sessions, store, token):
        emulator.revoke(emulator.sessions()[-1].session_id)
        store.fail_wholly()
        assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
        assert await sessions.resolve(token) is SessionReason.UNAVAILABLE
        store.fail()
        assert await sessions.resolve(token) is SessionReason.EXPIRED


async def test_a_believed_session_that_otpless_refuses_is_refreshed_with_one_question(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, store_ttl=60, validation_ttl=0) as (sessions, _, token):
        emulator.expire(emulator.sessions()[-1].session_id)
        emulator.reset_calls()
        outcome = await sessions.resolve(token)
        assert isinstance(outcome, Session)
        assert outcome.refreshed
        assert emulator.count("validate-session") == 1
        assert emulator.count("get-new-session-token") == 1


async def test_what_otpless_refused_is_not_served_because_another_worker_heard_valid_before(
    clock: Clock,
) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, store_ttl=3600, refresh_ahead=0) as (sessions, store, token):
        session_id = emulator.sessions()[-1].session_id
        clock.advance(50)
        await store.touch(session_id, 1, validated=True)
        clock.advance(12)  # by this worker's copy OTPLESS is to be asked, by the row it is not
        emulator.expire(session_id)
        outcome = await sessions.resolve(token)
        assert isinstance(outcome, Session)
        assert outcome.refreshed


async def test_a_confirmation_that_failed_is_tried_again_at_the_next_request(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, validation_ttl=3600, refresh_ahead=0) as (sessions, store, token):
        clock.advance(DAY + 1)
        swapped = await sessions.resolve(token)
        assert isinstance(swapped, Session)
        new = swapped.token.get_secret_value()
        store.fail("confirm")
        assert isinstance(await sessions.resolve(new), Session)
        store.fail()
        assert sessions.at_once(new) is None
        assert isinstance(await sessions.resolve(new), Session)
        row = await store.get(swapped.id)
        assert row is not None
        assert row.confirmed_generation == row.generation == 2
        assert sessions.at_once(new) is not None


async def test_a_token_that_was_superseded_is_not_served_because_the_store_is_down(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, on_reuse="reject", refresh_ahead=0, validation_ttl=DAY) as (
        sessions,
        store,
        token,
    ):
        row = await store.find(sessions._vault.digest(token))
        assert row is not None
        emulator.expire(row.row.session_id)
        swapped = await sessions.resolve(token, max_age=0)
        assert isinstance(swapped, Session)
        assert isinstance(await sessions.resolve(swapped.token.get_secret_value()), Session)
        clock.advance(60)
        assert await sessions.resolve(token) is SessionReason.REUSED
        store.fail_wholly()
        assert await sessions.resolve(token) is SessionReason.UNAVAILABLE


async def test_a_sign_out_without_the_store_holds_for_older_tokens_too_and_is_made_up_for(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, refresh_ahead=0) as (sessions, store, token):
        emulator.expire(emulator.sessions()[-1].session_id)
        swapped = await sessions.resolve(token, max_age=0)
        assert isinstance(swapped, Session)
        new = swapped.token.get_secret_value()
        assert isinstance(await sessions.resolve(new), Session)
        store.fail_wholly()
        await sessions.sign_out(new)
        store.fail()
        assert await sessions.resolve(token) is SessionReason.REVOKED
        row = await store.get(swapped.id)
        assert row is not None
        assert row.state == "ended"


async def test_a_copy_holds_no_token(clock: Clock) -> None:
    async with worker(clock, Emulator(clock=clock)) as (sessions, _, token):
        copy = sessions.at_once(token)
        assert isinstance(copy, Copy)
        assert copy.row.session_token == copy.row.refresh_token == b""
        assert token not in repr(copy)


async def test_what_ends_elsewhere_is_not_served_at_once_here(clock: Clock) -> None:
    async with worker(clock, Emulator(clock=clock)) as (sessions, store, token):
        copy = sessions.at_once(token)
        assert isinstance(copy, Copy)
        row = await store.get(copy.row.session_id)
        assert row is not None
        await store.end(row, "revoked", revoke_in=None)  # type: ignore[arg-type]
        assert sessions.at_once(token) is None
        assert await sessions.resolve(token) is SessionReason.REVOKED


# Strangers


@asynccontextmanager
async def stranger(
    clock: Clock, emulator: Emulator, **values: Any
) -> AsyncIterator[tuple[OtplessSessions, Unreachable, str]]:
    """Give the sessions of a worker, its store, and a token of the frontend's that was admitted."""
    async with worker(clock, emulator, **values) as (sessions, store, _):
        token = emulator.sign_in()["sessionInfo"]["sessionToken"]
        assert sessions.at_once(token) is None
        assert isinstance(await sessions.resolve(token), Session)
        assert sessions.at_once(token) is not None
        yield sessions, store, token


async def test_a_stranger_is_served_at_once_where_strangers_are_admitted(clock: Clock) -> None:
    async with stranger(clock, Emulator(clock=clock)) as (sessions, store, token):
        served = sessions.at_once(token)
        assert served is not None
        assert served.session(token) == await sessions.resolve(token)
        assert sessions.at_once(token, known_only=True) is None
        store.fail("find", "get", "now")
        assert sessions.at_once(token) is not None


@pytest.mark.parametrize("store_ttl", [0, 3600])
async def test_a_stranger_that_was_signed_out_elsewhere_is_believed_for_store_ttl_at_most(
    clock: Clock, store_ttl: float
) -> None:
    async with stranger(clock, Emulator(clock=clock), store_ttl=store_ttl) as (sessions, store, token):
        served = sessions.at_once(token)
        assert served is not None
        ended = SessionRow(session_id=served.session(token).id, user_id="MO-1", expires_at=clock() + DAY)
        await store.end(ended, EndReason.REVOKED, revoke_in=None)
        assert (sessions.at_once(token) is not None) == (store_ttl > 0)
        assert await sessions.resolve(token) is SessionReason.REVOKED
        assert sessions.at_once(token) is None


async def test_a_stranger_that_was_signed_out_here_is_believed_no_more_whichever_token_it_brings(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator, store_ttl=3600) as (sessions, _, _):
        info = emulator.sign_in()["sessionInfo"]
        pair = await sessions._client.new_session_token(info["refreshToken"])  # as the frontend's SDK does
        assert isinstance(pair, TokenPair)
        both = info["sessionToken"], pair.session_token
        assert all([isinstance(await sessions.resolve(token), Session) for token in both])
        assert all(sessions.at_once(token) for token in both)
        await sessions.sign_out(pair.session_token)
        assert not any(sessions.at_once(token) for token in both)


async def test_a_stranger_that_was_signed_out_while_the_store_was_down_stays_so_whichever_token_it_brings(
    clock: Clock,
) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator) as (sessions, store, _):
        info = emulator.sign_in()["sessionInfo"]
        pair = await sessions._client.new_session_token(info["refreshToken"])
        assert isinstance(pair, TokenPair)
        both = info["sessionToken"], pair.session_token
        assert all([isinstance(await sessions.resolve(token), Session) for token in both])
        store.fail_wholly()
        await sessions.sign_out(pair.session_token)
        assert [await sessions.resolve(token) for token in both] == [SessionReason.REVOKED] * 2
        store.fail()
        assert not any(sessions.at_once(token) for token in both)
        assert [await sessions.resolve(token) for token in both] == [SessionReason.REVOKED] * 2


async def test_a_stranger_that_otpless_refused_is_not_let_in_by_who_was_answered_before(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator) as (sessions, store, _):
        info = emulator.sign_in()["sessionInfo"]
        token = info["sessionToken"]
        store.reads_until_held_up = 2  # the look after OTPLESS's answer
        first = asyncio.create_task(sessions.resolve(token))
        await store.is_held_up.wait()
        emulator.revoke(info["sessionId"])
        assert await sessions.resolve(token, max_age=0) is SessionReason.EXPIRED
        store.goes_on.set()
        assert await first is SessionReason.EXPIRED
        clock.advance(11)  # until then refusals are remembered
        assert sessions.at_once(token) is None
        assert await sessions.resolve(token) is SessionReason.EXPIRED


async def test_a_stranger_that_signs_in_is_one_no_more(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with worker(clock, emulator) as (sessions, _, _):
        user = emulator.sign_in()
        token = user["sessionInfo"]["sessionToken"]
        assert isinstance(await sessions.resolve(token), Session)
        await sessions.sign_in(user)
        assert sessions.at_once(token) is None
        assert isinstance(await sessions.resolve(token, known_only=True), Session)
        assert isinstance(sessions.at_once(token, known_only=True), Copy)


async def test_a_stranger_that_was_signed_in_elsewhere_is_one_no_more(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with stranger(clock, emulator) as (sessions, store, token):
        row = SessionRow(session_id=emulator.sessions()[-1].session_id, user_id="MO-1", expires_at=clock() + DAY)
        assert await store.create(row, sessions._vault.digest(token), b"another") is None
        assert sessions.at_once(token) is None


@pytest.mark.parametrize(("values", "seconds"), [({"validation_ttl": 30}, 31), ({"validation_ttl": 10 * DAY}, DAY + 1)])
async def test_no_stranger_is_served_at_once_past_a_limit(clock: Clock, values: dict[str, Any], seconds: float) -> None:
    async with stranger(clock, Emulator(clock=clock), **values) as (sessions, _, token):
        clock.advance(29)
        assert sessions.at_once(token) is not None
        clock.advance(seconds - 29)
        assert sessions.at_once(token) is None


async def test_a_stranger_that_otpless_refused_meanwhile_is_not_served_at_once(clock: Clock) -> None:
    emulator = Emulator(clock=clock)
    async with stranger(clock, emulator) as (sessions, _, token):
        emulator.revoke(emulator.sessions()[-1].session_id)
        assert await sessions.resolve(token, max_age=0) is SessionReason.EXPIRED
        assert sessions.at_once(token) is None


@pytest.mark.parametrize("limit", ["idle_timeout", "absolute_timeout", "validation_ttl"])
async def test_nothing_is_served_at_once_past_a_limit(clock: Clock, limit: str) -> None:
    async with worker(clock, Emulator(clock=clock), **{limit: 30}) as (sessions, _, token):
        assert sessions.at_once(token) is not None
        clock.advance(31)
        assert sessions.at_once(token) is None


def test_the_first_duty_never_comes_after_the_tokens_end() -> None:
    row = SessionRow(session_id="s", user_id="u", token_expires_at=100, validated_at=90, created_at=90, last_seen_at=90)
    claims = Claims("s", "u", None, None, None, has_audience=False, issued_at=10_000, expires_at=100, others={})
    assert Duties(make_settings(absolute_timeout=DAY, refresh_ahead=0.5)).first(row, claims) <= 100


def test_the_least_recently_used_copy_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = Copies(Duties(make_settings()))
    monkeypatch.setattr(copies, "_limit", 2)
    row = SessionRow(session_id="s", user_id="u")
    claims = Claims("s", "u", None, None, None, has_audience=False, issued_at=1, expires_at=100, others={})
    for digest in (b"1", b"2"):
        copies.keep(digest, row, claims, 0, 0)
    assert copies.get(b"1") is not None
    copies.keep(b"3", row, claims, 0, 0)
    assert copies.get(b"2") is None
    assert copies.get(b"1") is not None


def test_a_websockets_scope_is_never_taken_for_a_safe_request(make_world: Callable[..., World]) -> None:
    world = make_world(required_paths=["/echo"])
    world.sign_in()
    (cookie,) = [f"{name}={value}" for name, value in world.client.cookies.items()]
    headers = [(b"host", b"shop.example"), (b"origin", b"https://evil.example"), (b"cookie", cookie.encode())]
    scope = {"type": "websocket", "scheme": "wss", "path": "/echo", "method": "GET", "headers": headers}
    sent = world.call(exchange, world.app, {**scope, "subprotocols": [], "extensions": {}}).messages
    assert [(each["type"], each.get("reason")) for each in sent] == [("websocket.close", "cross_site_request")]
