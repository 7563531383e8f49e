"""Metrics and spans of real flows, as an application's exporter gets them; docs/observability.md names them all."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Clock, World, make_settings
from crew import STRICT, Workers, close, files
from fastapi import WebSocket
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pages import DOCS, read
from simulated import LoopTime, settle
from telemetered import Telemetry, telemetry_of_process
from test_refresh import token_of

from fastapi_otpless_session import CurrentSession, OtplessClient, OtplessSessions, SessionReason, open_store
from fastapi_otpless_session.emulator import Emulator, Fault

DAY = 86_400
RESOLUTIONS = "otpless.session.resolutions"
REFRESHES = "otpless.session.refreshes"
DURATION = "otpless.upstream.duration"


@pytest.fixture
def telemetry() -> Telemetry:
    telemetry = telemetry_of_process()
    telemetry.begin()
    return telemetry


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


class TestResolutions:
    def test_tell_where_the_answer_came_from(self, make_world: Callable[..., World], telemetry: Telemetry) -> None:
        world = make_world()
        token = world.token(world.sign_in(channel="header"))
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="session", source="store") == 1
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="session", source="memory") == 1
        world.clock.advance(400)
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="session", source="otpless") == 1
        world.clock.advance(DAY)
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="session", source="refresh") == 1
        world.get("/orders", "no token")
        assert telemetry.count(RESOLUTIONS, outcome="invalid", source="token") == 1

    def test_of_strangers_come_from_otpless_and_then_from_memory(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.emulator.sign_in())
        world.get("/orders", token)
        world.get("/orders", token)
        world.emulator.revoke(world.session_id(world.emulator.sign_in()))
        assert telemetry.count(RESOLUTIONS, outcome="session", source="otpless") == 1
        assert telemetry.count(RESOLUTIONS, outcome="session", source="memory") == 1
        assert telemetry.count("otpless.session.validations", outcome="valid") == 1

    def test_of_an_outage_are_stale_and_then_unavailable(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.sign_in(channel="header"))
        world.emulator.add_fault(Fault("status", status=503))
        world.clock.advance(100)
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="stale", source="otpless") == 1
        world.clock.advance(300)
        world.get("/orders", token)
        assert telemetry.count(RESOLUTIONS, outcome="unavailable", source="otpless") == 1
        assert telemetry.count("otpless.session.validations", outcome="unavailable") == 2


class TestRefreshes:
    async def test_of_one_moment_have_one_leader_and_tell_the_others_apart(
        self, tmp_path: Path, clock: Clock, telemetry: Telemetry
    ) -> None:
        emulator = Emulator(STRICT, clock=clock)
        stores = files(tmp_path, clock, 2)
        async with Workers(emulator, clock, stores) as workers:
            clock.advance(DAY + 1)
            asking = [worker.resolve(workers.token) for worker in workers.workers for _ in range(3)]
            outcomes = await asyncio.gather(*asking)
        await close(stores)
        assert not [outcome for outcome in outcomes if isinstance(outcome, SessionReason)]
        assert telemetry.count(REFRESHES, role="leader", outcome="refreshed") == 1
        assert telemetry.count(REFRESHES, role="follower", outcome="refreshed") == 1
        assert telemetry.count(REFRESHES, role="coalesced", outcome="refreshed") == 4
        assert len(telemetry.spans("otpless.refresh")) == 1
        assert len(telemetry.spans("otpless.resolve")) == 6

    def test_that_otpless_refuses_or_does_not_answer_say_so(self, world: World, telemetry: Telemetry) -> None:
        user = world.sign_in(channel="header")
        world.clock.advance(DAY + 1)
        world.emulator.add_fault(Fault("status", status=500, times=1))
        world.get("/orders", world.token(user))
        world.emulator.revoke(world.session_id(user))
        world.get("/orders", world.token(user))
        assert telemetry.counts(REFRESHES) == {
            frozenset({("role", "leader"), ("outcome", "unavailable")}): 1,
            frozenset({("role", "leader"), ("outcome", "expired")}): 1,
        }


class TestUpstream:
    @pytest.mark.parametrize(
        ("fault", "outcome"),
        [
            (Fault("status", status=500), "fault"),
            (Fault("garbage"), "fault"),
            (Fault("status", status=401), "credentials"),
            (Fault("status", status=200, body=b'{"success": false}'), "answer"),
        ],
        ids=["500", "garbage", "401", "refused"],
    )
    def test_outcomes_are_told_by_call(self, world: World, telemetry: Telemetry, fault: Fault, outcome: str) -> None:
        token = world.token(world.sign_in(channel="header"))
        before = telemetry.count(DURATION, call="validate-session", outcome=outcome)
        world.emulator.add_fault(fault)
        world.clock.advance(100)
        world.get("/orders", token)
        assert telemetry.count(DURATION, call="validate-session", outcome=outcome) == before + 1
        assert telemetry.count(DURATION, call="validate-token", outcome="answer") == 1
        assert telemetry.count(DURATION, call="jwks", outcome="answer") == 1

    def test_a_request_that_is_cancelled_is_no_fault_of_otpless(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.sign_in(channel="header"))
        world.emulator.add_fault(Fault("hang"))
        world.clock.advance(100)

        async def leave() -> None:
            request = asyncio.create_task(world.sessions.resolve(token))
            while not world.emulator.count("validate-session"):  # noqa: ASYNC110 - the emulator tells nobody
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait([request])

        world.call(leave)
        assert telemetry.count(DURATION, call="validate-session", outcome="cancelled") == 1
        assert telemetry.count(DURATION, call="validate-session", outcome="fault") == 0

    def test_a_breaker_that_opens_is_seen_and_so_are_the_calls_that_it_holds_back(
        self, world: World, telemetry: Telemetry
    ) -> None:
        token = world.token(world.sign_in(channel="header"))
        closed = telemetry.gauge("otpless.upstream.breakers_open")
        world.emulator.add_fault(Fault("status", status=503))
        for _ in range(7):
            world.clock.advance(100)
            world.get("/fresh", token)
            if telemetry.gauge("otpless.upstream.breakers_open") > closed:
                break
        assert telemetry.gauge("otpless.upstream.breakers_open") == closed + 1
        world.get("/fresh", token)
        assert telemetry.count("otpless.upstream.rejections", reason="breaker") == 1
        world.emulator.clear_faults()
        world.clock.advance(2)
        world.get("/fresh", token)
        assert telemetry.gauge("otpless.upstream.breakers_open") == closed

    def test_a_crowd_beyond_max_upstream_is_told(self, make_world: Callable[..., World], telemetry: Telemetry) -> None:
        world = make_world(max_upstream=1)
        tokens = [world.token(world.sign_in(channel="header", mobile=str(number))) for number in range(2)]
        world.emulator.add_fault(Fault("hang"))
        world.clock.advance(400)

        async def both() -> None:
            time = LoopTime()
            looks = asyncio.gather(*(world.sessions.resolve(token) for token in tokens))
            await settle()
            await time.advance(world.settings.request_timeout)
            await looks

        world.call(both)
        assert telemetry.count("otpless.upstream.rejections", reason="full") == 1


class TestPeople:
    def test_sign_ins_are_told_by_outcome(self, world: World, telemetry: Telemetry) -> None:
        user = world.sign_in()
        other = world.emulator.sign_in(mobile="2")
        assert world.client.post("/auth/login", json={**other, "sessionInfo": user["sessionInfo"]}).status_code == 401
        world.emulator.add_fault(Fault("status", status=503))
        assert world.client.post("/auth/login", json=world.emulator.sign_in(mobile="3")).status_code == 503
        counts = telemetry.counts("otpless.session.sign_ins")
        assert counts == {
            frozenset({("outcome", outcome)}): 1 for outcome in ("signed_in", "sign_in_refused", "unavailable")
        }

    def test_sign_outs_are_told_by_reason_and_the_telling_of_otpless_too(
        self, make_world: Callable[..., World], telemetry: Telemetry
    ) -> None:
        world = make_world(idle_timeout=1_000)
        world.sign_in(mobile="1")
        world.sign_in(mobile="2")  # the same browser's cookie: the session before is replaced
        world.client.post("/auth/logout")
        world.sign_in(mobile="3")
        world.client.post("/auth/logout-all")
        user = world.sign_in(channel="header", mobile="4")
        world.call(world.sessions.end, world.session_id(user))
        idle = world.token(world.sign_in(channel="header", mobile="5"))
        world.clock.advance(1_001)
        world.get("/orders", idle)
        reasons = ("replaced", "signed_out", "ended_all", "ended", "expired")
        assert telemetry.counts("otpless.session.sign_outs") == {frozenset({("outcome", each)}): 1 for each in reasons}
        assert telemetry.count("otpless.session.revocations", outcome="settled") == len(reasons)

    def test_a_telling_that_fails_is_told_as_put_off(self, world: World, telemetry: Telemetry) -> None:
        world.sign_in()
        world.emulator.add_fault(Fault("status", status=503, path="revoke-session"))
        world.client.post("/auth/logout")
        assert telemetry.count("otpless.session.revocations", outcome="postponed") == 1

    async def test_the_length_of_the_outbox_is_the_stores(self, any_store_url: str, telemetry: Telemetry) -> None:
        emulator, passed = Emulator(), Clock(0.0)
        store = open_store(any_store_url, offset=passed)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
        settings = make_settings(store_url=any_store_url)
        async with OtplessSessions(settings, store=store, client=OtplessClient(settings, http=http)) as sessions:
            users = [emulator.sign_in(mobile=str(number)) for number in range(3)]
            signed_in = [await sessions.sign_in(user) for user in users]
            emulator.add_fault(Fault("status", status=503, path="revoke-session"))
            for session in signed_in[:2]:
                await sessions.end(session.id)
            await sessions.housekeep()
            assert telemetry.gauge("otpless.session.revocations_waiting") == 2
            emulator.clear_faults()
            for _ in range(2):  # Redis forgets an entry when it is due again
                passed.advance(60)
                await sessions.housekeep()
            assert telemetry.gauge("otpless.session.revocations_waiting") == 0
        await store.close()

    def test_a_reused_token_is_counted(self, make_world: Callable[..., World], telemetry: Telemetry) -> None:
        world = make_world(STRICT)
        first = world.token(world.sign_in(channel="header"))
        world.clock.advance(DAY + 1)
        world.get("/orders", token_of(world.get("/orders", first)))
        world.clock.advance(31)
        world.get("/orders", first)
        assert telemetry.count("otpless.session.reuses") == 1
        assert telemetry.count("otpless.session.sign_outs", outcome="reused") == 1

    def test_a_websocket_that_is_closed_for_its_session_is_counted(
        self, make_world: Callable[..., World], telemetry: Telemetry
    ) -> None:
        world = make_world(websocket_recheck=0.02)

        @world.app.websocket("/feed")
        async def feed(websocket: WebSocket, _: CurrentSession) -> None:
            await websocket.accept()
            await websocket.receive()

        user = world.sign_in(channel="header")
        with world.client.websocket_connect("/feed", headers={"X-Session-Token": world.token(user)}) as socket:
            world.call(world.sessions.end, world.session_id(user))
            assert socket.receive()["code"] == 1008
        assert telemetry.count("otpless.websocket.closes", reason="revoked") == 1


class TestSpans:
    def test_a_settled_request_has_none(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.sign_in(channel="header"))
        telemetry.begin()
        for _ in range(3):
            assert world.get("/orders", token).status_code == 200
        assert telemetry.all_spans() == []

    def test_a_call_is_a_client_span_with_the_attributes_of_http(self, world: World, telemetry: Telemetry) -> None:
        world.sign_in()
        [call] = telemetry.spans("otpless validate-token")
        assert call.kind is SpanKind.CLIENT
        assert attributes(call) == {
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "server.address": "otpless.localhost",
            "server.port": 80,
            "url.path": "/auth/v1/validate/token",
        }
        [sign_in] = telemetry.spans("otpless.sign_in")
        assert call.parent is not None
        assert call.parent.span_id == sign_in.context.span_id
        assert attributes(sign_in) == {"otpless.outcome": "signed_in"}

    def test_a_fault_is_told_without_a_stack(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.sign_in(channel="header"))
        world.emulator.add_fault(Fault("html"))
        world.clock.advance(400)
        world.get("/orders", token)
        [call] = telemetry.spans("otpless validate-session")
        assert call.status.status_code is StatusCode.ERROR
        assert attributes(call)["error.type"] == "UpstreamError"
        [event] = call.events
        assert set(event.attributes or {}) == {"exception.type", "exception.message"}
        [waited] = telemetry.spans("otpless.resolve")
        assert attributes(waited)["otpless.waits_for"] == "validation"

    def test_a_refresh_is_within_what_waits_for_it(self, world: World, telemetry: Telemetry) -> None:
        token = world.token(world.sign_in(channel="header"))
        world.clock.advance(DAY + 1)
        world.get("/orders", token)
        [waited], [refresh] = telemetry.spans("otpless.resolve"), telemetry.spans("otpless.refresh")
        [call] = telemetry.spans("otpless get-new-session-token")
        assert attributes(waited)["otpless.waits_for"] == "refresh"
        assert attributes(refresh)["otpless.outcome"] == "refreshed"
        assert refresh.parent is not None
        assert refresh.parent.span_id == waited.context.span_id
        assert call.parent is not None
        assert call.parent.span_id == refresh.context.span_id

    def test_a_refusal_is_an_answer_and_no_error(self, world: World, telemetry: Telemetry) -> None:
        user, other = world.sign_in(), world.emulator.sign_in(mobile="2")
        telemetry.begin()
        world.client.post("/auth/login", json={**other, "sessionInfo": user["sessionInfo"]})
        [sign_in] = telemetry.spans("otpless.sign_in")
        assert sign_in.status.status_code is StatusCode.UNSET
        assert attributes(sign_in)["error.type"] == "SignInRefusedError"


class TestPage:
    """docs/observability.md has what there is, and nothing else."""

    PAGE = read(DOCS / "observability.md")

    def _rows(self, *head: str) -> list[list[str]]:
        return [row for table in self.PAGE.tables if table.head == head for row in table.rows]

    def test_every_metric_is_in_its_table(self) -> None:
        package = Path(sys.modules["fastapi_otpless_session"].__file__ or "").parent
        source = (package / "telemetry.py").read_text(encoding="utf-8")  # beside it, where it is compiled
        made = set(re.findall(r'_meter\.create_\w+\(\s*"([a-z_.]+)"', source))
        assert {row[0].strip("`") for row in self._rows("metric", "in Prometheus", "counts", "attributes")} == made

    def test_every_value_that_an_attribute_takes_is_in_the_table_and_there_are_few(
        self, make_world: Callable[..., World], telemetry: Telemetry
    ) -> None:
        run_everything(make_world)
        told = {row[0].strip("`"): row[3] for row in self._rows("metric", "in Prometheus", "counts", "attributes")}
        for name in telemetry.names():
            for series in telemetry.counts(name):
                for key, value in series:
                    assert f"`{key}`" in told[name], (name, key)
                    assert f"`{value}`" in told[name], (name, key, value)
            assert len(telemetry.counts(name)) < 20
        assert len(telemetry.counts(RESOLUTIONS)) > 5

    def test_every_span_is_in_its_table(self, make_world: Callable[..., World], telemetry: Telemetry) -> None:
        run_everything(make_world)
        named = {row[0].strip("`") for row in self._rows("span", "kind", "is", "attributes")}
        seen = {re.sub(r"^otpless [\w-]+$", "otpless <call>", span.name) for span in telemetry.all_spans()}
        assert seen == named


def run_everything(make_world: Callable[..., World]) -> None:
    """Take every way through sign-in, refresh, outage and sign-out."""
    world = make_world(STRICT)
    users = [world.sign_in(channel="header", mobile=str(number)) for number in range(8)]
    tokens = [world.token(user) for user in users] + ["no token"]
    world.emulator.revoke(world.session_id(users[0]))
    for seconds, fault in ((1, None), (31, None), (70, Fault("html")), (400, Fault("status", status=401)), (DAY, None)):
        world.emulator.clear_faults()
        world.clock.advance(seconds)
        if fault:
            world.emulator.add_fault(fault)
        for token in tokens:
            world.clock.advance(2)
            world.get("/orders", token)
            world.get("/fresh", token)
    world.client.post("/auth/logout", headers={"X-Session-Token": tokens[1]})
    world.client.post("/auth/login", json={**users[2], "token": "made up"})


def test_without_a_provider_nothing_of_the_sdk_is_loaded_and_nothing_is_recorded() -> None:
    program = (
        "import sys, fastapi_otpless_session as f\n"
        "from fastapi_otpless_session import telemetry\n"
        "with telemetry.span('otpless.refresh') as span:\n"
        "    telemetry.count_resolution('session')\n"
        "print(span.is_recording(), [name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)  # noqa: S603
    assert ran.stdout.split() == ["False", "[]"]
