"""What the refresh protocol promises of many workers, proven on real ones: processes, sockets, stores, SIGKILL.

`PROOF_ROUNDS` (3 unless set) says how often what could go wrong by chance is tried.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, NamedTuple, Protocol

import httpx
import pytest
from fleet_members import REFRESH, TLS, Fleet, Turnstile, Visitor, outcome, until
from processes import PATIENCE
from servers import Nursery, Worker, environment, uvicorn

from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve
from fastapi_otpless_session.telemetry import session_label

Rotation = Literal["fixed", "rotating", "strict"]

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "3"))
WORKERS = 8
REQUESTS = 200
TRIES = 20
PATIENT = {"OTPLESS_REQUEST_TIMEOUT": "30", "OTPLESS_REFRESH_TIMEOUT": "30"}
"""For what is not about deadlines: a slow machine is no failure."""

Crowd = Sequence[httpx.AsyncClient]
"""One client for each connection: httpx's pool takes seconds to choose between hundreds."""


EVERY_TIME = {"OTPLESS_VALIDATION_TTL": "0"}
"""OTPLESS is asked on each request, so that a token which it calls dead is refreshed at once."""
LONG_REMEMBERED = {"OTPLESS_VALIDATION_TTL": "3600", "OTPLESS_STALE_IF_ERROR": "3600"}


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


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


class MakeFleet(Protocol):
    def __call__(self, store_url: str, /, *, rotation: Rotation = "strict", **variables: str) -> Fleet: ...


@pytest.fixture
async def make_fleet(nursery: Nursery) -> AsyncIterator[MakeFleet]:
    """Put fleets together, each with an emulator of its own."""
    async with AsyncExitStack() as stack:

        def make(store_url: str, /, *, rotation: Rotation = "strict", **variables: str) -> Fleet:
            emulator = Emulator(EmulatorSettings(rotation=rotation))
            emulator.app = turnstile = Turnstile(emulator.app)
            url = stack.enter_context(serve(emulator))
            fleet = Fleet(nursery, emulator, turnstile, url, store_url, **{**PATIENT, **variables})
            stack.push_async_callback(fleet.close)
            return fleet

        yield make


# SIGKILL at every step


class Cost(NamedTuple):
    """What a worker that was killed costs its client."""

    at_first: str
    """The answer of the next worker, which has a second of patience."""
    then: str
    """The answer once the dead worker's lease has lapsed."""
    calls: int
    """How often OTPLESS was asked to refresh in all."""
    is_logged: bool
    """Whether the log says `refresh_answer_lost`."""


NOTHING = Cost("ok", "ok", 1, is_logged=False)
A_WAIT = Cost("session_unavailable", "ok", 1, is_logged=False)
A_WAIT_AND_A_CALL = Cost("session_unavailable", "ok", 2, is_logged=False)
THE_SESSION = Cost("session_unavailable", "session_expired", 2, is_logged=True)

WHAT_A_CRASH_COSTS = {
    ("before_lease", "strict"): NOTHING,
    ("lease_held", "strict"): A_WAIT,
    ("request_sent", "fixed"): A_WAIT_AND_A_CALL,
    ("request_sent", "rotating"): A_WAIT_AND_A_CALL,
    ("request_sent", "strict"): THE_SESSION,
    ("answered", "fixed"): A_WAIT_AND_A_CALL,
    ("answered", "rotating"): A_WAIT_AND_A_CALL,
    ("answered", "strict"): THE_SESSION,
    ("committed", "strict"): NOTHING,
}
"""The table of the refresh protocol: the step, how OTPLESS rotates refresh tokens, and what a crash there costs."""


async def test_a_worker_killed_at_any_step_of_a_refresh_costs_what_the_protocol_says_and_no_more(
    make_fleet: MakeFleet, store_url: str
) -> None:
    rotations: list[Rotation] = ["fixed", "rotating", "strict"]
    scenes = [Scene(make_fleet(store_url, rotation=rotation, **EVERY_TIME), rotation) for rotation in rotations]
    costs = await asyncio.gather(*(scene.play() for scene in scenes))
    assert {case: cost for found in costs for case, cost in found.items()} == WHAT_A_CRASH_COSTS


class Scene:
    """Workers that are killed, and two that go on: one waits a second for a lease, the other as long as it takes."""

    SECONDS = "2"
    """The deadline of those that are killed; their leases hold half as long again."""

    def __init__(self, fleet: Fleet, rotation: Rotation) -> None:
        self._fleet = fleet
        self._rotation = rotation
        self._steps = [step for step, how in WHAT_A_CRASH_COSTS if how == rotation]
        self._victims = {step: self._victim(step) for step in self._steps}
        self._hasty = fleet.start(OTPLESS_REQUEST_TIMEOUT="1", OTPLESS_REFRESH_TIMEOUT="1")
        self._patient = fleet.start()

    def _victim(self, step: str) -> Worker:
        short = {"OTPLESS_REQUEST_TIMEOUT": self.SECONDS, "OTPLESS_REFRESH_TIMEOUT": self.SECONDS}
        return self._fleet.start(WORKER_DIES=step, **short)

    async def play(self) -> dict[tuple[str, str], Cost]:
        """Kill a worker at each step, then let the others serve."""
        visitors = {step: await self._fleet.sign_in(self._patient) for step in self._steps}
        bystander = await self._fleet.sign_in(self._patient)
        for worker in (*self._victims.values(), self._hasty):
            assert (await self._fleet.get(worker, bystander.token)).status_code == 200  # all have started
        for step, visitor in visitors.items():
            await self._kill(step, visitor)
        costs = await asyncio.gather(*(self._cost(visitor) for visitor in visitors.values()))
        assert outcome(await self._fleet.get(self._hasty, bystander.token)) == "ok"
        return {(step, self._rotation): cost for step, cost in zip(self._steps, costs, strict=True)}

    async def _kill(self, step: str, visitor: Visitor) -> None:
        fleet, victim = self._fleet, self._victims[step]
        fleet.emulator.expire(visitor.session_id)
        if step != "request_sent":
            await fleet.is_killed_by(victim, visitor.token)
            return
        before = fleet.turnstile.held
        fleet.turnstile.hold_next()
        request = asyncio.create_task(fleet.get(victim, visitor.token))
        await until(lambda: fleet.turnstile.held > before)
        assert fleet.end(victim, signal.SIGKILL) == -signal.SIGKILL  # from outside: only OTPLESS knows when it acted
        fleet.turnstile.let_go()
        with pytest.raises(httpx.TransportError):
            await request

    async def _cost(self, visitor: Visitor) -> Cost:
        fleet, token = self._fleet, visitor.token
        at_first = outcome(await fleet.get(self._hasty, token))
        answers = await asyncio.gather(*(fleet.get(self._patient, token) for _ in range(3)))
        (then,) = {outcome(answer) for answer in answers}
        newest = answers[0].headers.get("x-session-token", token)
        assert (newest != token) == (then == "ok")
        assert outcome(await fleet.get(self._hasty, newest)) == then
        is_logged = f"refresh_answer_lost: {session_label(visitor.session_id)}" in self._patient.said()
        return Cost(at_first, then, fleet.refreshes(visitor.session_id), is_logged)
