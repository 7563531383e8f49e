"""The application's hooks: told what happened, once it has, and never in anybody's way."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
import pytest
from conftest import EMULATOR_URL, Clock, make_app, make_settings
from crew import STRICT, FailingStore
from fastapi.testclient import TestClient
from processes import wait_until
from simulated import settle
from starlette.applications import Starlette
from starlette.routing import Mount
from telemetered import Telemetry, telemetry_of_process

from fastapi_otpless_session import (
    NoVerdictError,
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    SessionEvent,
    SignOutReason,
)
from fastapi_otpless_session.binding import OtplessUser
from fastapi_otpless_session.emulator import Emulator
from fastapi_otpless_session.hooks import THREADS
from fastapi_otpless_session.stores.base import SessionRow, SessionStore
from fastapi_otpless_session.stores.sqlite import SqliteStore

T = TypeVar("T")
DAY = 86_400


@dataclass
class Shop:
    """An application with hooks, and what they were told."""

    clock: Clock
    hooks: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    store: SessionStore | None = None

    def __post_init__(self) -> None:
        self.emulator = Emulator(STRICT, clock=self.clock)
        settings = make_settings(**self.values)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=self.emulator.app))
        client = OtplessClient(settings, http=http, monotonic=self.clock)
        self.sessions = OtplessSessions(settings, store=self.store, client=client, clock=self.clock, **self.hooks)
        self.app = make_app()
        self.app.add_middleware(OtplessSessionMiddleware, sessions=self.sessions)

    @property
    def client(self) -> TestClient:
        return TestClient(self.app, base_url="https://shop.example")

    def sign_in(self, client: TestClient, number: int = 1, channel: str = "header") -> dict[str, Any]:
        user = self.emulator.sign_in(mobile=str(number))
        answer = client.post("/auth/login", params={"channel": channel}, json=user)
        assert answer.status_code == 200, answer.text
        return user


def header(token: str) -> dict[str, str]:
    return {"X-Session-Token": token}


def of(user: dict[str, Any]) -> str:
    return str(user["sessionInfo"]["sessionToken"])


def token_of(answer: Any) -> str:
    return str(answer.headers["x-session-token"])


def all_hooks(hook: Any) -> dict[str, Any]:
    return dict.fromkeys(("on_sign_in", "on_refresh", "on_sign_out", "on_reuse"), hook)


class Recorder:
    """A hook that keeps what it is told, in one of the ways in which a hook can be written."""

    def __init__(self, kind: str) -> None:
        self.told: list[SessionEvent] = []
        self.threads: set[str] = set()
        kinds: dict[str, Callable[..., Any]] = {
            "coroutine": self._coroutine,
            "function": self._function,
            "partial": functools.partial(self._with_more, "more"),
            "object": _Callable(self),
            "awaitable": self._awaitable,
        }
        self.hook = kinds[kind]

    def _function(self, event: SessionEvent) -> None:
        self.threads.add(threading.current_thread().name)
        self.told.append(event)

    async def _coroutine(self, event: SessionEvent) -> None:
        self._function(event)

    def _awaitable(self, event: SessionEvent) -> Awaitable[None]:
        return self._coroutine(event)

    async def _with_more(self, _: str, event: SessionEvent) -> None:
        self._function(event)


class _Callable:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def __call__(self, event: SessionEvent) -> None:
        self._recorder.told.append(event)


@pytest.mark.parametrize("kind", ["coroutine", "function", "partial", "object", "awaitable"])
def test_a_session_is_told_from_sign_in_to_reuse(clock: Clock, kind: str) -> None:
    recorder = Recorder(kind)
    shop = Shop(clock, all_hooks(recorder.hook))
    with shop.client as client:
        user = shop.sign_in(client)
        first = of(user)
        clock.advance(DAY + 1)
        second = token_of(client.get("/orders", headers=header(first)))
        client.get("/orders", headers=header(second))
        clock.advance(31)
        client.get("/orders", headers=header(first))
    told = sorted((event.name, event.reason) for event in recorder.told)
    expected = [("refresh", None), ("reuse", None), ("sign_in", None), ("sign_out", SignOutReason.REUSED)]
    assert told == expected
    assert {(event.session_id, event.user_id) for event in recorder.told} == {
        (user["sessionInfo"]["sessionId"], user["userId"])
    }
    assert {event.at.timestamp() for event in recorder.told if event.name == "reuse"} == {clock.now}


def test_a_plain_function_runs_in_a_thread(clock: Clock) -> None:
    recorder = Recorder("function")
    shop = Shop(clock, {"on_sign_in": recorder.hook})
    with shop.client as client:
        shop.sign_in(client)
    assert all(name.startswith("otpless-session-hooks") for name in recorder.threads)
    assert len(recorder.told) == 1


def test_every_way_to_end_a_session_has_its_reason_and_is_told_once(clock: Clock) -> None:
    recorder = Recorder("coroutine")
    shop = Shop(clock, {"on_sign_out": recorder.hook}, {"idle_timeout": 1_000})
    with shop.client as client:
        shop.sign_in(client, 1, "cookie")
        shop.sign_in(client, 2, "cookie")
        client.post("/auth/logout")
        client.post("/auth/logout")
        shop.sign_in(client, 3, "cookie")
        client.post("/auth/logout-all")
        other = shop.sign_in(client, 4)
        client.delete(f"/auth/sessions/{other['sessionInfo']['sessionId']}", headers=header(of(other)))
        idle = shop.sign_in(client, 5)
        refused = shop.sign_in(client, 6)
        shop.emulator.revoke(refused["sessionInfo"]["sessionId"])
        clock.advance(500)
        client.get("/orders", headers=header(of(refused)))
        clock.advance(501)
        for _ in range(2):
            client.get("/orders", headers=header(of(idle)))
        stranger = shop.emulator.sign_in(mobile="7")
        client.post("/auth/logout", headers=header(of(stranger)))
    assert [event.reason for event in recorder.told] == [
        SignOutReason.REPLACED,
        SignOutReason.SIGNED_OUT,
        SignOutReason.ENDED_ALL,
        SignOutReason.ENDED,
        SignOutReason.EXPIRED,
        SignOutReason.EXPIRED,
        SignOutReason.SIGNED_OUT,
    ]
    assert [event.user_id for event in recorder.told[-3:]] == [refused["userId"], idle["userId"], stranger["userId"]]


def test_the_same_sign_in_again_is_no_event(clock: Clock) -> None:
    recorder = Recorder("coroutine")
    shop = Shop(clock, {"on_sign_in": recorder.hook})
    with shop.client as client:
        user = shop.sign_in(client)
        again = {**user, "token": shop.emulator.sign_in(mobile="1")["token"]}
        assert client.post("/auth/login", json=again).status_code == 200
    assert len(recorder.told) == 1


def _raises(_: SessionEvent) -> None:
    raise LookupError("of the hook's own")


async def _raises_later(_: SessionEvent) -> None:
    await asyncio.sleep(0)
    raise LookupError("of the hook's own")


async def _cancels_itself(_: SessionEvent) -> None:
    raise asyncio.CancelledError


def _exits(_: SessionEvent) -> None:
    raise SystemExit(1)


async def _exits_later(_: SessionEvent) -> None:
    raise SystemExit(1)


async def _has_a_timeout_of_its_own(_: SessionEvent) -> None:
    raise TimeoutError


def _takes_nothing() -> None: ...


def _of_a_mistake(_: SessionEvent) -> Awaitable[None]:
    raise AssertionError


@contextmanager
def _served(shop: Shop, *, has_lifespan: bool) -> Iterator[TestClient]:
    """Serve a shop on one event loop; without a lifespan it is mounted in another application, which has its own."""
    app = shop.app if has_lifespan else Starlette(routes=[Mount("/", shop.app)])
    with TestClient(app, base_url="https://shop.example") as client:
        yield client


FAILING = [
    *(_raises, _raises_later, _cancels_itself, _exits, _exits_later, _has_a_timeout_of_its_own, _takes_nothing),
    _of_a_mistake,
]


@pytest.mark.parametrize("has_lifespan", [True, False], ids=["lifespan", "no lifespan"])
@pytest.mark.parametrize("hook", FAILING, ids=lambda hook: hook.__name__)
def test_a_hook_that_fails_is_logged_and_breaks_nothing(
    clock: Clock, caplog: pytest.LogCaptureFixture, hook: Any, *, has_lifespan: bool
) -> None:
    telemetry = _measured()
    shop = Shop(clock, all_hooks(hook))
    with _served(shop, has_lifespan=has_lifespan) as client:
        first = of(shop.sign_in(client))
        clock.advance(DAY + 1)
        second = token_of(client.get("/orders", headers=header(first)))
        assert client.get("/orders", headers=header(second)).status_code == 200
        assert client.post("/auth/logout", headers=header(second)).status_code == 204
        assert client.get("/orders", headers=header(second)).status_code == 401
        wait_until(lambda: len(_of_hooks(caplog)) >= 3, "for the last hook, which nobody waits for")
    logged = _of_hooks(caplog)
    assert sorted(record.getMessage() for record in logged) == [
        f"Hook on_{name}: failed" for name in ("refresh", "sign_in", "sign_out")
    ]
    assert all(record.levelno == logging.ERROR and record.exc_info for record in logged)
    assert telemetry.count("otpless.session.hook_failures", hook="on_sign_in", outcome="raised") == 1


def _of_hooks(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in list(caplog.records) if record.getMessage().startswith("Hook on_")]


def _measured() -> Telemetry:
    telemetry = telemetry_of_process()
    telemetry.begin()
    return telemetry


@pytest.mark.parametrize("has_lifespan", [True, False], ids=["lifespan", "no lifespan"])
@pytest.mark.parametrize("kind", ["coroutine", "function"])
def test_a_hook_that_hangs_is_given_up(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str, *, has_lifespan: bool
) -> None:
    monkeypatch.setattr("fastapi_otpless_session.hooks.HOOK_SECONDS", 0.05)
    released = threading.Event()

    def hangs(_: SessionEvent) -> None:
        released.wait()

    async def hangs_for_ever(_: SessionEvent) -> None:
        await asyncio.Event().wait()

    telemetry = _measured()
    shop = Shop(clock, {"on_sign_in": hangs if kind == "function" else hangs_for_ever})
    try:
        with _served(shop, has_lifespan=has_lifespan) as client:
            shop.sign_in(client)
    finally:
        released.set()
    assert "Hook on_sign_in: given up after 0.05 s" in caplog.messages
    assert telemetry.count("otpless.session.hook_failures", hook="on_sign_in", outcome="timeout") == 1


def test_no_request_waits_for_a_hook_where_a_lifespan_runs(clock: Clock) -> None:
    released, done = threading.Event(), threading.Event()

    def waits(_: SessionEvent) -> None:
        released.wait()
        done.set()

    shop = Shop(clock, all_hooks(waits))
    with shop.client as client:
        token = of(shop.sign_in(client))
        clock.advance(DAY + 1)
        assert client.get("/orders", headers=header(token)).json()["refreshed"] is True
        assert client.post("/auth/logout", headers=header(token)).status_code == 204
        assert not done.is_set()
        released.set()
        wait_until(done.is_set, "for the hook")


def test_a_shutdown_waits_for_hooks(clock: Clock) -> None:
    done: list[str] = []

    async def takes_its_time(event: SessionEvent) -> None:
        await asyncio.sleep(0.1)
        done.append(event.name)

    shop = Shop(clock, {"on_sign_in": takes_its_time})
    with shop.client as client:
        shop.sign_in(client)
        assert done == []
    assert done == ["sign_in"]


def test_without_a_lifespan_the_hook_has_run_before_the_answer(clock: Clock) -> None:
    recorder = Recorder("coroutine")
    shop = Shop(clock, {"on_sign_in": recorder.hook, "on_sign_out": recorder.hook})
    user = shop.sign_in(shop.client)
    assert [event.name for event in recorder.told] == ["sign_in"]
    shop.client.post("/auth/logout", headers=header(of(user)))
    assert [event.name for event in recorder.told] == ["sign_in", "sign_out"]


def test_beyond_a_number_of_calls_under_way_hooks_are_left_out(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_otpless_session.hooks.HOOKS_AT_ONCE", 1)
    released, told = threading.Event(), []

    def waits(event: SessionEvent) -> None:
        told.append(event)
        released.wait()

    shop = Shop(clock, {"on_sign_in": waits})
    with shop.client as client:
        for number in range(3):
            shop.sign_in(client, number)
        released.set()
    assert len(told) == 1
    assert caplog.messages.count("Hook on_sign_in: not called: 1 calls of hooks are under way") == 2


def test_calls_that_were_given_up_count_until_their_threads_have_let_go_of_them(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads cannot be stopped: whatever they have yet to do is kept."""
    monkeypatch.setattr("fastapi_otpless_session.hooks.HOOK_SECONDS", 0.05)
    monkeypatch.setattr("fastapi_otpless_session.hooks.HOOKS_AT_ONCE", THREADS + 2)
    released, told = threading.Event(), []

    def hangs(event: SessionEvent) -> None:
        told.append(event.user_id)
        released.wait()

    shop = Shop(clock, {"on_sign_in": hangs})
    try:
        with _served(shop, has_lifespan=False) as client:  # each sign-in waits until its hook is given up
            users = [shop.sign_in(client, number)["userId"] for number in range(THREADS + 5)]
            released.set()
            wait_until(lambda: _is_called_again(shop, client, told), "for the threads")
    finally:
        released.set()
    messages = [record.getMessage() for record in _of_hooks(caplog)]
    assert messages[: THREADS + 2] == ["Hook on_sign_in: given up after 0.05 s"] * (THREADS + 2)
    assert messages[THREADS + 2 : THREADS + 5] == ["Hook on_sign_in: not called: 6 calls of hooks are under way"] * 3
    assert told[:THREADS] == users[:THREADS]
    assert not set(users[THREADS:]) & set(told)  # given up before a thread had come to it


def _is_called_again(shop: Shop, client: TestClient, told: list[str]) -> bool:
    return str(shop.sign_in(client, 100)["userId"]) in told


def test_a_hook_is_called_once_it_is_durable(clock: Clock) -> None:
    """What it looks up is as it is told: here, that the session is over."""
    seen: list[int] = []

    async def looks(event: SessionEvent) -> None:
        seen.append(len(await shop.sessions.list(event.user_id)))

    shop = Shop(clock, {"on_sign_in": looks, "on_sign_out": looks})
    with shop.client as client:
        user = shop.sign_in(client)
        wait_until(lambda: seen == [1], "for the first hook")
        client.post("/auth/logout", headers=header(of(user)))
    assert seen == [1, 0]


def test_a_sign_out_without_the_store_is_told_too(clock: Clock) -> None:
    recorder, store = Recorder("coroutine"), FailingStore(None, clock=clock)
    shop = Shop(clock, {"on_sign_out": recorder.hook}, store=store)
    with shop.client as client:
        user = shop.sign_in(client)
        client.get("/orders", headers=header(of(user)))
        store.fail("find", "get", "end")
        assert client.post("/auth/logout", headers=header(of(user))).status_code == 204
        assert client.portal is not None
        client.portal.call(store.close)
    assert [(event.user_id, event.reason) for event in recorder.told] == [(user["userId"], SignOutReason.SIGNED_OUT)]


def test_one_hook_hears_of_one_leader_only(clock: Clock) -> None:
    recorder = Recorder("coroutine")
    shop = Shop(clock, {"on_refresh": recorder.hook})
    with shop.client as client:
        token = of(shop.sign_in(client))
        clock.advance(DAY + 1)

        async def tabs() -> None:
            await asyncio.gather(*(shop.sessions.resolve(token) for _ in range(5)))

        assert client.portal is not None
        client.portal.call(tabs)
    assert [event.name for event in recorder.told] == ["refresh"]
    assert shop.emulator.count("get-new-session-token") == 1


# Requests that are given up


class SlowStore(SqliteStore):
    """A store whose answer to a write is on its way until a test says otherwise."""

    written: asyncio.Event
    arrives: asyncio.Event

    async def _on_its_way(self, answer: T) -> T:
        self.written.set()
        await self.arrives.wait()
        return answer

    async def create(self, row: SessionRow, token: bytes, refresh_token: bytes) -> SessionRow | None:
        return await self._on_its_way(await super().create(row, token, refresh_token))

    async def end(self, row: SessionRow, *values: Any, **more: Any) -> SessionRow:
        return await self._on_its_way(await super().end(row, *values, **more))


@pytest.mark.parametrize("jwks_url", [f"{EMULATOR_URL}/.well-known/jwks", ""])
async def test_who_gives_up_on_a_sign_in_or_a_sign_out_leaves_nothing_half_done(clock: Clock, jwks_url: str) -> None:
    told: list[str] = []
    emulator, store = Emulator(STRICT, clock=clock), SlowStore(None, clock=clock)
    settings = make_settings(jwks_url=jwks_url, require_sign_in_token=False)

    async def given_up(work: Coroutine[Any, Any, Any]) -> None:
        store.written, store.arrives = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(work)
        await store.written.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        store.arrives.set()
        await settle()

    async def tell(event: SessionEvent) -> None:
        told.append(event.name)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        hooks: dict[str, Any] = {"on_sign_in": tell, "on_sign_out": tell}
        async with OtplessSessions(settings, store=store, client=client, clock=clock, **hooks) as sessions:
            user = OtplessUser.model_validate(emulator.sign_in())
            await given_up(sessions.sign_in(user))
            assert told == ["sign_in"]
            session = await sessions.sign_in(user)
            assert told == ["sign_in"]
            await given_up(sessions.sign_out(session.token.get_secret_value()))
            assert told == ["sign_in", "sign_out"]
    await store.close()


async def test_people_who_sign_in_at_once_get_a_session_each(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SlowStore(None, clock=clock)
    async with worker(emulator, store, clock) as sessions:
        users = [OtplessUser.model_validate(emulator.sign_in(mobile=f"92{number}")) for number in range(3)]
        tasks = [asyncio.create_task(sessions.sign_in(user)) for user in users]
        await settle()
        store.arrives.set()
        assert [session.user_id for session in await asyncio.gather(*tasks)] == [user.user_id for user in users]
    await store.close()


async def test_a_sign_in_that_the_applications_end_cuts_short_is_told_so(clock: Clock) -> None:
    emulator, store = Emulator(STRICT, clock=clock), SlowStore(None, clock=clock)
    async with worker(emulator, store, clock, refresh_timeout=0.2, request_timeout=0.1) as sessions:
        task = asyncio.create_task(sessions.sign_in(OtplessUser.model_validate(emulator.sign_in())))
        await store.written.wait()
    with pytest.raises(NoVerdictError, match="stopping"):
        await task
    await store.close()


@asynccontextmanager
async def worker(emulator: Emulator, store: SlowStore, clock: Clock, **values: Any) -> AsyncIterator[OtplessSessions]:
    settings = make_settings(**values)
    store.written, store.arrives = asyncio.Event(), asyncio.Event()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)) as http:
        client = OtplessClient(settings, http=http, monotonic=clock)
        async with OtplessSessions(settings, store=store, client=client, clock=clock) as sessions:
            yield sessions
