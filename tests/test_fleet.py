"""What the refresh protocol promises of many workers, proven on real ones: processes, sockets, stores, SIGKILL.

`PROOF_ROUNDS` (3 unless set) says how often what could go wrong by chance is tried.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import httpx
import pytest
from backends import SHARED_STORES, RedisServer
from fleet_members import REFRESH, TLS, Fleet, StoreTime, Turnstile, Visitor, outcome, until
from processes import PATIENCE, Server
from servers import Nursery, Worker, environment, uvicorn

from fastapi_otpless_session import open_store
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.telemetry import session_label
from fastapi_otpless_session.tokens import new_key

pytestmark = [pytest.mark.slow, pytest.mark.varied]

Rotation = Literal["fixed", "rotating", "strict"]

ROUNDS = int(os.environ.get("PROOF_ROUNDS", "3"))
WORKERS = 8
REQUESTS = 200
TRIES = 20
PATIENT = {"OTPLESS_REQUEST_TIMEOUT": "40", "OTPLESS_REFRESH_TIMEOUT": "40"}
"""For what is not about deadlines: a slow machine is no failure."""
LEASE = 60.0
"""How long the lease of a worker with such deadlines holds, by the store's clock."""

Crowd = Sequence[httpx.AsyncClient]
"""One client for each connection: httpx's pool takes seconds to choose between hundreds."""

HASTY = {"OTPLESS_REQUEST_TIMEOUT": "5", "OTPLESS_REFRESH_TIMEOUT": "5"}
"""For who waits in vain, in real seconds."""
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
    return httpx.AsyncClient(base_url=url, verify=TLS, limits=limits, timeout=PATIENCE, trust_env=False)


async def _together(crowd: Crowd, path: str, headers: dict[str, str]) -> list[httpx.Response]:
    return await asyncio.gather(*(client.get(path, headers=headers) for client in crowd))


def _workers(answers: list[httpx.Response]) -> set[int]:
    return {answer.json()["worker"] for answer in answers}


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with Nursery(tmp_path_factory.mktemp("nursery")) as nursery:
        yield nursery


class MakeFleet(Protocol):
    def __call__(self, store_url: str, variables: Mapping[str, str], rotation: Rotation = "strict") -> Fleet: ...


@pytest.fixture
async def make_fleet(nursery: Nursery) -> AsyncIterator[MakeFleet]:
    """Put fleets together, each with an emulator of its own."""
    async with AsyncExitStack() as stack:

        def make(store_url: str, variables: Mapping[str, str], rotation: Rotation = "strict") -> Fleet:
            emulator = Emulator(EmulatorSettings(rotation=rotation))
            emulator.app = turnstile = Turnstile(emulator.app)
            url = stack.enter_context(serve(emulator))
            fleet = Fleet(nursery, emulator, turnstile, environment(url, store_url, **{**PATIENT, **variables}))
            stack.push_async_callback(fleet.close)
            return fleet

        yield make


# SIGKILL at every step


class Cost(NamedTuple):
    """What a worker that was killed costs its client."""

    at_first: str
    """The answer of the next worker, whose patience ends before the lease."""
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
    ("sending", "strict"): A_WAIT,
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
    make_fleet: MakeFleet, store_url: str, tmp_path: Path
) -> None:
    rotations: list[Rotation] = ["fixed", "rotating", "strict"]
    times = [StoreTime(tmp_path) for _ in rotations]
    scenes = [
        Scene(make_fleet(store_url, EVERY_TIME | time.variables, rotation), rotation, time)
        for rotation, time in zip(rotations, times, strict=True)
    ]
    costs = await asyncio.gather(*(scene.play() for scene in scenes))
    assert {case: cost for found in costs for case, cost in found.items()} == WHAT_A_CRASH_COSTS


class Scene:
    """Workers that are killed, and two that go on: one while the dead ones' leases hold, the other after that."""

    def __init__(self, fleet: Fleet, rotation: Rotation, time: StoreTime) -> None:
        self._fleet = fleet
        self._time = time
        self._rotation = rotation
        self._steps = [step for step, how in WHAT_A_CRASH_COSTS if how == rotation]
        self._victims = {step: fleet.start(WORKER_STRUCK_AT=step) for step in self._steps}
        self._hasty = fleet.start(**HASTY)
        self._patient = fleet.start()

    async def play(self) -> dict[tuple[str, str], Cost]:
        """Kill a worker at each step, then let the others serve."""
        visitors = {step: await self._fleet.sign_in(self._patient) for step in self._steps}
        bystander = await self._fleet.sign_in(self._patient)
        for worker in (*self._victims.values(), self._hasty):
            assert (await self._fleet.get(worker, bystander.token)).status_code == 200  # all have started
        for step, visitor in visitors.items():
            await self._kill(step, visitor)
        early = await asyncio.gather(*(self._fleet.get(self._hasty, each.token) for each in visitors.values()))
        self._time.advance(LEASE)
        late = (self._cost(visitor, outcome(answer)) for visitor, answer in zip(visitors.values(), early, strict=True))
        costs = await asyncio.gather(*late)
        assert outcome(await self._fleet.get(self._hasty, bystander.token)) == "ok"
        return {(step, self._rotation): cost for step, cost in zip(self._steps, costs, strict=True)}

    async def _kill(self, step: str, visitor: Visitor) -> None:
        fleet, victim = self._fleet, self._victims[step]
        if step != "request_sent":
            fleet.emulator.expire(visitor.session_id)
            await fleet.is_killed_by(victim, visitor.token)
            return
        request = await fleet.held_refresh(victim, visitor)
        assert fleet.end(victim, signal.SIGKILL) == -signal.SIGKILL  # from outside: only OTPLESS knows when it acted
        fleet.turnstile.let_go()
        with pytest.raises(httpx.TransportError):
            await request

    async def _cost(self, visitor: Visitor, at_first: str) -> Cost:
        fleet, token = self._fleet, visitor.token
        answers = await asyncio.gather(*(fleet.get(self._patient, token) for _ in range(3)))
        (then,) = {outcome(answer) for answer in answers}
        newest = answers[0].headers.get("x-session-token", token)
        assert (newest != token) == (then == "ok")
        assert outcome(await fleet.get(self._hasty, newest)) == then
        is_logged = f"refresh_answer_lost: {session_label(visitor.session_id)}" in self._patient.said()
        return Cost(at_first, then, fleet.calls(REFRESH, visitor), is_logged)


WHAT_A_SLEEPER_ASKS = {"lease_held": 1, "sending": 2, "answered": 2}
"""How often OTPLESS is asked in all: whoever wakes up with a lapsed lease and has not sent yet, doesn't."""


async def test_a_worker_that_slept_past_its_lease_is_refused_and_hands_out_what_the_row_has(
    make_fleet: MakeFleet, store_url: str, tmp_path: Path
) -> None:
    time = StoreTime(tmp_path)
    fleet = make_fleet(store_url, EVERY_TIME | time.variables, "rotating")
    awake = fleet.start()
    sleepers = {step: fleet.start(WORKER_STRUCK_AT=step, WORKER_STRUCK_BY="SIGSTOP") for step in WHAT_A_SLEEPER_ASKS}
    visitors = [await fleet.sign_in(awake) for _ in sleepers]
    requests = []
    for sleeper, visitor in zip(sleepers.values(), visitors, strict=True):
        fleet.emulator.expire(visitor.session_id)
        requests.append(fleet.send(sleeper, visitor.token))
        await until(sleeper.is_stopped)
    time.advance(LEASE)
    wakings = zip(sleepers.values(), visitors, requests, strict=True)
    calls = await asyncio.gather(*(_wake_up(fleet, awake, *waking) for waking in wakings))
    assert dict(zip(sleepers, calls, strict=True)) == WHAT_A_SLEEPER_ASKS


async def _wake_up(
    fleet: Fleet, awake: Worker, sleeper: Worker, visitor: Visitor, request: asyncio.Task[httpx.Response]
) -> int:
    swapped = (await fleet.get(awake, visitor.token)).headers["x-session-token"]
    sleeper.send(signal.SIGCONT)
    slept = await request
    assert (outcome(slept), slept.headers.get("x-session-token")) in {("ok", swapped), ("session_unavailable", None)}
    for worker in (sleeper, awake):
        assert (await fleet.get(worker, visitor.token)).headers["x-session-token"] == swapped
        assert outcome(await fleet.get(worker, swapped)) == "ok"
    assert fleet.end(sleeper, signal.SIGTERM) == -signal.SIGTERM  # which waits for what it has begun
    return fleet.calls(REFRESH, visitor)


# Sign-out

AT_ONCE = "at once"


async def test_a_sign_out_on_one_worker_is_the_next_answer_of_every_other(
    make_fleet: MakeFleet, store_url: str
) -> None:
    fleet = make_fleet(store_url, LONG_REMEMBERED)
    workers = [fleet.start() for _ in range(3)]
    signed_in_here = (await fleet.sign_in(workers[0])).token
    frontend_driven = str(fleet.emulator.sign_in()["sessionInfo"]["sessionToken"])
    for token in (signed_in_here, frontend_driven):
        for _ in range(2):  # the first time they may ask
            fleet.emulator.reset_calls()
            assert [outcome(await fleet.get(worker, token)) for worker in workers[:2]] == ["ok", "ok"]
        assert fleet.emulator.calls == []  # both have it in their memory, the third has never seen it
        await fleet.sign_out(workers[0], token)
        assert [outcome(await fleet.get(worker, token)) for worker in workers] == ["session_revoked"] * 3
    assert [session.revoked for session in fleet.emulator.sessions()] == [True, True]


@pytest.mark.parametrize("reachable", [True, False], ids=["told_at_once", "told_later"])
async def test_a_sign_out_wins_over_a_refresh_in_flight_whose_new_tokens_are_revoked(
    make_fleet: MakeFleet, store_url: str, reachable: bool
) -> None:
    fleet = make_fleet(store_url, EVERY_TIME)
    refreshing, other = fleet.start(), fleet.start()
    visitor = await fleet.sign_in(other)
    requests = [await fleet.held_refresh(refreshing, visitor)]
    requests += [fleet.send(worker, visitor.token) for worker in (refreshing, other)]
    await until(lambda: fleet.calls("validate-session", visitor) > 1)  # one a worker: the first knows OTPLESS's no
    await fleet.get(refreshing, visitor.token, "/public")  # sent later: the one before waits by now
    if not reachable:
        fleet.emulator.add_fault(Fault("status", path="revoke-session", times=1))
    await fleet.sign_out(other, visitor.token)
    fleet.turnstile.let_go()
    answers = await asyncio.gather(*requests)
    assert [outcome(answer) for answer in answers] == ["session_revoked"] * 3
    assert not any("x-session-token" in answer.headers for answer in answers)
    await until(lambda: fleet.emulator.session(visitor.session_id).revoked)
    if not reachable:
        assert fleet.calls(REFRESH, visitor) == 1  # OTPLESS was told with the new token, the only one that it takes


async def test_whenever_a_sign_out_meets_a_refresh_no_token_is_good_afterwards(
    make_fleet: MakeFleet, store_url: str
) -> None:
    fleet = make_fleet(store_url, EVERY_TIME)
    workers = [fleet.start(), fleet.start()]
    for moment in [AT_ONCE, "validate-session", REFRESH] * ROUNDS:
        await _sign_out_during_a_refresh(fleet, workers, moment)


async def _sign_out_during_a_refresh(fleet: Fleet, workers: Sequence[Worker], moment: str) -> None:
    visitor = await fleet.sign_in(workers[0])
    fleet.emulator.expire(visitor.session_id)
    requests = [fleet.send(worker, visitor.token) for worker in [*workers] * 3]
    await until(lambda: moment == AT_ONCE or fleet.calls(moment, visitor) > 0)
    await fleet.sign_out(workers[1], visitor.token)
    answers = await asyncio.gather(*requests)
    assert {outcome(answer) for answer in answers} <= {"ok", "session_revoked"}
    for token in {visitor.token, *(answer.headers.get("x-session-token", visitor.token) for answer in answers)}:
        assert [outcome(await fleet.get(worker, token)) for worker in workers] == ["session_revoked"] * 2
    await until(lambda: fleet.emulator.session(visitor.session_id).revoked)


# Keys

OLD, NEW = new_key(), new_key()


@pytest.mark.parametrize("old", [OLD, "derived"], ids=["a_key", "derived"])
async def test_new_keys_reach_a_fleet_worker_by_worker_and_nobody_is_signed_out(
    make_fleet: MakeFleet, store_url: str, old: str
) -> None:
    """The order that works: every worker first learns to open what the new key seals; only then does one seal with it.

    Half of the workers are always a step behind, as in a rolling restart.
    """
    fleet = make_fleet(store_url, EVERY_TIME)
    visitors: list[Visitor] = []
    for half, other_half in itertools.pairwise([old, f"{old},{NEW}", f"{NEW},{old}"]):
        workers = [fleet.start(OTPLESS_ENCRYPTION_KEYS=keys) for keys in (half, other_half)]
        visitors += [await fleet.sign_in(worker) for worker in workers]
        visitors = [*await asyncio.gather(*(_visit_in_turn(fleet, workers, visitor) for visitor in visitors))]
        for worker in workers:
            fleet.end(worker, signal.SIGKILL)
    assert len(visitors) == 4


async def _visit_in_turn(fleet: Fleet, workers: Sequence[Worker], visitor: Visitor) -> Visitor:
    """Have each worker refresh, and the other give out what it sealed, to a client that did not get the answer."""
    for refreshing, other in itertools.permutations(workers):
        fleet.emulator.expire(visitor.session_id)
        answers = [await fleet.get(worker, visitor.token) for worker in (refreshing, other)]
        assert [outcome(answer) for answer in answers] == ["ok", "ok"]
        swapped, again = (answer.headers["x-session-token"] for answer in answers)
        assert swapped == again
        visitor = Visitor(visitor.session_id, swapped)
    return visitor


async def test_a_worker_without_the_key_refuses_a_session_that_goes_on_elsewhere(
    make_fleet: MakeFleet, store_url: str
) -> None:
    fleet = make_fleet(store_url, EVERY_TIME)
    knows, knows_not = (fleet.start(OTPLESS_ENCRYPTION_KEYS=keys) for keys in (f"{NEW},{OLD}", OLD))
    visitor, neighbour = await fleet.sign_in(knows), await fleet.sign_in(knows_not)
    assert outcome(await fleet.get(knows_not, visitor.token)) == "ok"  # what is presented need not be opened
    fleet.emulator.expire(visitor.session_id)
    assert outcome(await fleet.get(knows_not, visitor.token)) == "session_expired"
    assert fleet.calls(REFRESH, visitor) == 0
    swapped = await fleet.get(knows, visitor.token)
    assert outcome(swapped) == "ok"
    assert outcome(await fleet.get(knows_not, visitor.token)) == "session_invalid"  # older: it would need the row's
    assert outcome(await fleet.get(knows_not, swapped.headers["x-session-token"])) == "ok"
    assert outcome(await fleet.get(knows, visitor.token)) == "ok"
    assert outcome(await fleet.get(knows_not, neighbour.token)) == "ok"


async def test_a_sign_out_on_a_worker_without_the_key_is_still_to_be_told_by_one_that_has_it(
    make_fleet: MakeFleet, store_url: str
) -> None:
    fleet = make_fleet(store_url, {})
    knows, knows_not = (fleet.start(OTPLESS_ENCRYPTION_KEYS=keys) for keys in (f"{NEW},{OLD}", OLD))
    visitor = await fleet.sign_in(knows)
    await fleet.sign_out(knows_not, visitor.token)
    assert outcome(await fleet.get(knows, visitor.token)) == "session_revoked"
    store = open_store(store_url)
    row = await store.get(visitor.session_id)
    await store.close()
    assert row is not None
    assert row.revocation_due is not None or fleet.emulator.session(visitor.session_id).revoked


async def test_a_session_that_a_worker_could_not_open_is_served_there_while_the_store_is_down(
    make_fleet: MakeFleet, redis_server: RedisServer
) -> None:
    fleet = make_fleet(redis_server.url, EVERY_TIME)
    knows, knows_not, sees_not = (fleet.start(OTPLESS_ENCRYPTION_KEYS=keys) for keys in (f"{NEW},{OLD}", OLD, OLD))
    visitor = await fleet.sign_in(knows)
    fleet.emulator.expire(visitor.session_id)
    assert outcome(await fleet.get(knows_not, visitor.token)) == "session_expired"
    swapped = (await fleet.get(knows, visitor.token)).headers["x-session-token"]
    assert outcome(await fleet.get(knows_not, swapped)) == "ok"
    redis_server.stop()
    assert outcome(await fleet.get(sees_not, swapped)) == "session_unavailable"
    assert outcome(await fleet.get(knows_not, swapped)) == "ok"
    assert outcome(await fleet.get(knows, swapped)) == "ok"  # which handed that token out


# Clocks

MINUTES = 300.0


@pytest.fixture
def server_url(store_url: str) -> str:
    """The URL of a store with a clock of its own."""
    if store_url.startswith("sqlite:"):
        pytest.skip("workers that share a file share its machine, and that machine's clock")
    return store_url


@pytest.fixture
def hosts(make_fleet: MakeFleet, server_url: str) -> tuple[Fleet, list[Worker]]:
    """Workers whose hosts are right, five minutes behind and five minutes ahead."""
    fleet = make_fleet(server_url, {"OTPLESS_VALIDATION_TTL": "60"})
    return fleet, [fleet.start(WORKER_CLOCK_AHEAD=str(seconds)) for seconds in (0.0, -MINUTES, MINUTES)]


async def test_hosts_five_minutes_apart_sign_in_serve_and_refresh_for_each_other(
    hosts: tuple[Fleet, list[Worker]],
) -> None:
    fleet, workers = hosts
    for worker in workers:
        visitor = await fleet.sign_in(worker)
        assert [outcome(await fleet.get(each, visitor.token)) for each in workers] == ["ok"] * 3
        assert fleet.calls("validate-session", visitor) == 0  # signed in just now, by the store's clock
        fleet.emulator.expire(visitor.session_id)
        requests = [fleet.get(each, visitor.token, "/fresh") for each in [worker, *workers] * 5]
        answers = await asyncio.gather(*requests)
        assert [outcome(answer) for answer in answers] == ["ok"] * 20
        assert fleet.calls(REFRESH, visitor) == 1
        (swapped,) = {answer.headers["x-session-token"] for answer in answers}
        assert [outcome(await fleet.get(each, swapped)) for each in workers] == ["ok"] * 3


async def test_a_token_s_last_minutes_are_the_same_on_hosts_five_minutes_apart(
    hosts: tuple[Fleet, list[Worker]],
) -> None:
    """`exp` is OTPLESS's, to be held against the store's clock, not against that of a host which is ahead."""
    fleet, workers = hosts
    visitor = await fleet.sign_in(workers[0], session_lifetime=MINUTES / 2)
    assert [outcome(await fleet.get(each, visitor.token)) for each in workers] == ["ok"] * 3
    assert fleet.calls(REFRESH, visitor) == 0


async def test_an_unknown_token_s_last_minutes_are_the_same_on_hosts_five_minutes_apart(
    hosts: tuple[Fleet, list[Worker]],
) -> None:
    fleet, workers = hosts
    token = str(fleet.emulator.sign_in(session_lifetime=MINUTES / 2)["sessionInfo"]["sessionToken"])
    assert [outcome(await fleet.get(each, token)) for each in workers] == ["ok"] * 3


async def test_a_fresh_session_is_otpless_s_word_of_now_on_hosts_five_minutes_apart(
    hosts: tuple[Fleet, list[Worker]],
) -> None:
    fleet, workers = hosts
    visitor = await fleet.sign_in(workers[0])
    for number, worker in enumerate(workers, 1):
        assert outcome(await fleet.get(worker, visitor.token, "/orders-and-fresh")) == "ok"
        assert fleet.calls("validate-session", visitor) == number


async def test_a_lease_holds_as_long_on_hosts_whose_clocks_are_off(make_fleet: MakeFleet, server_url: str) -> None:
    fleet = make_fleet(server_url, EVERY_TIME)
    right = fleet.start()
    off = [fleet.start(WORKER_CLOCK_AHEAD=str(ahead), **HASTY) for ahead in (-MINUTES, MINUTES)]
    visitor = await fleet.sign_in(right)
    request = await fleet.held_refresh(right, visitor)
    answers = await asyncio.gather(*(fleet.get(worker, visitor.token) for worker in off))
    assert [outcome(answer) for answer in answers] == ["session_unavailable"] * 2  # each tried for a while
    assert fleet.calls(REFRESH, visitor) == 1
    fleet.turnstile.let_go()
    swapped = (await request).headers["x-session-token"]
    assert [(await fleet.get(worker, visitor.token)).headers["x-session-token"] for worker in off] == [swapped] * 2


async def test_a_lease_that_was_taken_on_a_host_whose_clock_is_off_lapses_in_time(
    make_fleet: MakeFleet, server_url: str, tmp_path: Path
) -> None:
    time = StoreTime(tmp_path)
    fleet = make_fleet(server_url, EVERY_TIME | time.variables)
    right, hasty = fleet.start(), fleet.start(**HASTY)
    visitors = [await fleet.sign_in(right) for _ in range(2)]
    for visitor, ahead in zip(visitors, (-MINUTES, MINUTES), strict=True):
        victim = fleet.start(WORKER_STRUCK_AT="lease_held", WORKER_CLOCK_AHEAD=str(ahead))
        fleet.emulator.expire(visitor.session_id)
        await fleet.is_killed_by(victim, visitor.token)
    for worker, expected in ((hasty, "session_unavailable"), (right, "ok")):
        answers = await asyncio.gather(*(fleet.get(worker, visitor.token) for visitor in visitors))
        assert [outcome(answer) for answer in answers] == [expected] * 2
        time.advance(LEASE)
    assert [fleet.calls(REFRESH, visitor) for visitor in visitors] == [1, 1]


# Restart


class Lasting(NamedTuple):
    """A store that lasts, and how to crash its server and start it again."""

    url: str
    crash: Callable[[], None]


@pytest.fixture(params=SHARED_STORES)
def lasting(request: pytest.FixtureRequest) -> Lasting:
    """A store as it is to be configured to keep sessions; Redis keeps nothing unless it is told to."""

    def crash_and_start(server: Server) -> None:
        server.crash()
        server.start()

    match request.param:
        case "sqlite":
            return Lasting(f"sqlite:///{request.getfixturevalue('tmp_path') / 's.db'}", lambda: None)
        case "postgresql":
            server = request.getfixturevalue("postgres_server")
            return Lasting(request.getfixturevalue("postgres_url"), lambda: crash_and_start(server))
        case "redis":
            server = request.getfixturevalue("make_redis")(appendonly="yes", appendfsync="always")
            return Lasting(server.url, lambda: crash_and_start(server))
        case _:  # its servers stay: the tests' Cluster keeps nothing
            return Lasting(request.getfixturevalue("redis_cluster").url, lambda: None)


async def test_a_restart_of_everything_loses_no_session_and_no_sign_out(
    make_fleet: MakeFleet, lasting: Lasting
) -> None:
    fleet = make_fleet(lasting.url, EVERY_TIME)
    workers = [fleet.start(), fleet.start()]
    plain, lost, gone = [await fleet.sign_in(workers[0]) for _ in range(3)]
    fleet.emulator.expire(lost.session_id)
    swapped = (await fleet.get(workers[1], lost.token)).headers["x-session-token"]  # and it gets lost on a train
    await fleet.sign_out(workers[1], gone.token)
    ends = [signal.SIGTERM, signal.SIGKILL]  # in good order, and not
    assert [fleet.end(worker, number) for worker, number in zip(workers, ends, strict=True)] == [-each for each in ends]
    lasting.crash()
    for worker in (fleet.start(), fleet.start()):
        assert outcome(await fleet.get(worker, plain.token)) == "ok"
        assert (await fleet.get(worker, lost.token)).headers["x-session-token"] == swapped
        assert outcome(await fleet.get(worker, gone.token)) == "session_revoked"
    assert (fleet.calls(REFRESH, plain), fleet.calls(REFRESH, lost)) == (0, 1)
