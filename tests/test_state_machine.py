"""Random stories of several workers on one store, with an OTPLESS whose refresh tokens work once; what always holds.

The workers are real `OtplessSessions` over one SQLite file, without a lifespan, so that all they do happens inside a
step. A worker that crashes is struck at its call to OTPLESS, leaves its lease behind, and is replaced.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from conftest import Clock, make_settings
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from processes import PATIENCE

from fastapi_otpless_session import OtplessClient, OtplessSessions, Session, SessionReason, SessionStore, open_store
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.http import HttpxSender
from fastapi_otpless_session.stores.base import State
from fastapi_otpless_session.tokens import read_claims
from fastapi_otpless_session.wire import NEW_SESSION_TOKEN, Answer, Request

pytestmark = pytest.mark.varied

T = TypeVar("T")

WORKERS = 3
GRACE = 30.0
DAY = 86_400.0
DEADLINE = 1.0
"""How long a refresh is waited for, in real seconds: a dead worker's lease is waited for as long."""
LEASE = 1.5 * DEADLINE
"""How long a dead worker's lease keeps others waiting, by the store's clock."""


GUESTS = 6
WHO = st.integers(0, GUESTS)
WORKER_LISTS = st.lists(st.integers(0, WORKERS - 1), min_size=1, max_size=5)
WORKER = st.integers(0, WORKERS - 1)


class Crash(BaseException):
    """The end of a worker's process."""


@dataclass
class Visitor:
    """Somebody who signed in, the tokens that their browsers have seen, and what befell their session."""

    session_id: str
    user_id: str
    tokens: list[str] = field(repr=False)
    shown_at: dict[str, float] = field(default_factory=dict, repr=False)
    """When a token was presented first."""
    is_signed_out: bool = False
    may_be_lost: bool = False
    """Whether OTPLESS acted on a refresh whose answer nobody kept: the one loss that the protocol names."""
    is_reused: bool = False
    has_expired: bool = False

    @property
    def is_over(self) -> bool:
        return self.is_signed_out or self.is_reused or self.has_expired

    def may_count_as_reuse(self, token: str, now: float) -> bool:
        """Whether a newer token was shown so long ago that this one ends the session."""
        newer = self.tokens[self.tokens.index(token) + 1 :]
        return any(self.shown_at.get(each, now) + GRACE <= now for each in newer)


class Line:
    """A worker's way to OTPLESS: where it is watched, and where the worker can be struck."""

    def __init__(self, emulator: Emulator, store: SessionStore, watch: Watch) -> None:
        self._store = store
        self._sender = HttpxSender(httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
        self._watch = watch
        self.dies: str | None = None

    async def send(self, request: Request, *, deadline: float) -> Answer:
        if not request.url.endswith(NEW_SESSION_TOKEN):
            return await self._sender.send(request, deadline=deadline)
        session_id = read_claims(json.loads(request.body)["refreshToken"]).session_id or ""
        row = await self._store.get(session_id)
        if row is None or row.state is State.ENDED:  # no refresh: its last pair is exchanged in order to be revoked
            return await self._sender.send(request, deadline=deadline)
        with self._watch.refresh_of(session_id):
            if self.dies == "before":
                raise Crash
            try:
                answer = await self._sender.send(request, deadline=deadline)
            except UpstreamError:
                self._watch.lost.add(session_id)
                raise
            if self.dies == "after":
                self._watch.lost.add(session_id)
                raise Crash
            return answer

    async def open(self) -> None:
        """Nothing to make."""

    async def close(self) -> None:
        """Nothing to close."""


class Watch:
    """Counts the refreshes that are under way."""

    def __init__(self) -> None:
        self.under_way: Counter[str] = Counter()
        self.most = 0
        self.lost: set[str] = set()

    @contextmanager
    def refresh_of(self, session_id: str) -> Iterator[None]:
        self.under_way[session_id] += 1
        self.most = max(self.most, *self.under_way.values())
        try:
            yield
        finally:
            self.under_way[session_id] -= 1


class Story(RuleBasedStateMachine):
    """Sign-ins, requests, expiries, refreshes, sign-outs, outages and crashes, in any order."""

    @initialize()
    def begin(self) -> None:
        # Workers that were started just now leave lapsed leases alone for a while, in which the story would be over.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("fastapi_otpless_session.outage.RESERVE_SECONDS", 0)
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.emulator = Emulator(EmulatorSettings(rotation="strict"), clock=self.clock)
        self.watch = Watch()
        self.settings = make_settings(validation_ttl=30, rotation_grace=GRACE).model_copy(
            update={"request_timeout": PATIENCE, "refresh_timeout": DEADLINE}
        )
        url = f"sqlite:///{Path(self.folder.name) / 's.db'}"
        self.stores = [open_store(url, clock=self.clock) for _ in range(WORKERS)]
        self.lines: list[Line] = []
        self.workers: list[OtplessSessions] = []
        for number in range(WORKERS):
            self._start(number)
        self.visitors: list[Visitor] = []
        self.leases_until = 0.0
        self.is_out = False

    def _start(self, number: int) -> None:
        line = Line(self.emulator, self.stores[number], self.watch)
        client = OtplessClient(self.settings, http=line, monotonic=self.clock)
        worker = OtplessSessions(self.settings, store=self.stores[number], client=client, clock=self.clock)
        self.lines[number : number + 1] = [line]
        self.workers[number : number + 1] = [worker]

    def run(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        began = time.monotonic()
        try:
            return self.runner.run(awaited())
        finally:
            self.took = time.monotonic() - began

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        for store in self.stores:
            self.run(store.close())
        self.runner.close()
        self.patch.undo()
        self.folder.cleanup()

    def _pick(self, who: int) -> Visitor:
        """Mostly those who are signed in, for they have more to lose."""
        signed_in = [visitor for visitor in self.visitors if not visitor.is_over]
        return (
            self.visitors[who % len(self.visitors)]
            if who >= GUESTS or not signed_in
            else signed_in[who % len(signed_in)]
        )

    # What happens

    @rule(worker=WORKER)
    @precondition(lambda self: sum(not visitor.is_over for visitor in self.visitors) < 3)
    def sign_in(self, worker: int) -> None:
        user = self.emulator.sign_in(mobile=str(len(self.visitors)))
        session = self.run(self.workers[worker].sign_in(user))
        info = user["sessionInfo"]
        assert (session.id, session.user_id) == (info["sessionId"], user["userId"])
        self.visitors.append(Visitor(session.id, session.user_id, [session.token.get_secret_value()]))

    @rule(who=WHO, age=st.integers(0, 2), workers=WORKER_LISTS)
    @precondition(lambda self: self.visitors)
    def request(self, who: int, age: int, workers: list[int]) -> None:
        """Send a request with a token, maybe an old one, to several workers at once."""
        self._request(self._pick(who), age, workers)

    @rule(who=WHO, workers=WORKER_LISTS)
    @precondition(lambda self: self._with_older_tokens())
    def an_older_token_is_shown(self, who: int, workers: list[int]) -> None:
        """As by a tab that missed the answer with the newer one."""
        found = self._with_older_tokens()
        self._request(found[who % len(found)], 1, workers)

    def _with_older_tokens(self) -> list[Visitor]:
        return [visitor for visitor in self.visitors if len(visitor.tokens) > 1 and not visitor.is_over]

    @rule(who=WHO, age=st.integers(0, 1), workers=WORKER_LISTS)
    @precondition(lambda self: self.visitors)
    def refresh(self, who: int, age: int, workers: list[int]) -> None:
        """Let a token die at OTPLESS, and send requests when that has to be noticed."""
        visitor = self._pick(who)
        self.emulator.expire(visitor.session_id)
        self.clock.advance(61)
        self._request(visitor, age, workers)

    def _request(self, visitor: Visitor, age: int, workers: list[int]) -> None:
        token = visitor.tokens[max(0, len(visitor.tokens) - 1 - age)]
        may_be_reuse = visitor.may_count_as_reuse(token, self.clock.now)
        visitor.shown_at.setdefault(token, self.clock.now)
        answers = self.run(self._together(token, workers))
        for answer in answers:
            self._check(visitor, answer, may_be_reuse=may_be_reuse)

    async def _together(self, token: str, workers: list[int]) -> list[Session | SessionReason]:
        return await asyncio.gather(*(self.workers[number].resolve(token) for number in workers))

    def _check(self, visitor: Visitor, answer: Session | SessionReason, *, may_be_reuse: bool) -> None:
        self._note_losses()
        if isinstance(answer, Session):
            assert (answer.id, answer.user_id) == (visitor.session_id, visitor.user_id)
            assert not visitor.is_signed_out
            token = answer.token.get_secret_value()
            if token not in visitor.tokens:
                visitor.tokens.append(token)
        elif answer is SessionReason.UNAVAILABLE:
            assert self.is_out or self.clock.now < self.leases_until or self.took >= DEADLINE  # a busy machine
        elif answer is SessionReason.REUSED:
            assert may_be_reuse
            visitor.is_reused = True
        elif answer is SessionReason.REVOKED:
            assert visitor.is_signed_out or visitor.is_reused or may_be_reuse
        else:
            assert answer is SessionReason.EXPIRED
            visitor.has_expired = True
            assert visitor.is_signed_out or visitor.may_be_lost or visitor.is_reused or self._is_over(visitor)

    def _is_over(self, visitor: Visitor) -> bool:
        return self.emulator.session(visitor.session_id).refresh_tokens == 0

    @rule(who=WHO, worker=WORKER)
    @precondition(lambda self: self.visitors)
    def sign_out(self, who: int, worker: int) -> None:
        visitor = self._pick(who)
        self.run(self.workers[worker].sign_out(visitor.tokens[-1]))
        visitor.is_signed_out = True
        for number in range(WORKERS):
            for token in visitor.tokens:
                assert not isinstance(self.run(self.workers[number].resolve(token)), Session)

    @rule(who=WHO, worker=WORKER, other=WORKER)
    @precondition(lambda self: self.visitors)
    def sign_out_during_a_refresh(self, who: int, worker: int, other: int) -> None:
        visitor = self._pick(who)
        token = visitor.tokens[-1]
        self.emulator.expire(visitor.session_id)
        self.clock.advance(61)
        may_be_reuse = visitor.may_count_as_reuse(token, self.clock.now)
        visitor.shown_at.setdefault(token, self.clock.now)

        async def both() -> Session | SessionReason:
            request = asyncio.create_task(self.workers[worker].resolve(token))
            await asyncio.sleep(0)
            await self.workers[other].sign_out(token)
            return await request

        answer = self.run(both())
        if not isinstance(answer, Session):  # that one may have been first
            visitor.is_signed_out = True
            self._check(visitor, answer, may_be_reuse=may_be_reuse)
        visitor.is_signed_out = True

    @rule(who=WHO)
    @precondition(lambda self: self.visitors)
    def a_token_dies_at_otpless(self, who: int) -> None:
        self.emulator.expire(self._pick(who).session_id)

    @rule(seconds=st.sampled_from([1.0, GRACE / 2, GRACE + 1, 61.0, 400.0, DAY / 2, DAY, 3 * DAY]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(who=WHO, workers=WORKER_LISTS, seconds=st.sampled_from([1.0, 61.0, 400.0, DAY]), dies=st.booleans())
    @precondition(lambda self: self.visitors)
    def an_outage(self, who: int, workers: list[int], seconds: float, *, dies: bool) -> None:
        """OTPLESS fails for a while in which somebody comes; they may sign out, too."""
        visitor = self._pick(who)
        self.is_out = True
        self.emulator.add_fault(Fault("status", status=503))
        if dies:
            self.emulator.expire(visitor.session_id)
        self.clock.advance(seconds)
        self._request(visitor, 0, workers)
        self._recover()

    def _recover(self) -> None:
        self.is_out = False
        self.emulator.clear_faults()
        self.clock.advance(2)  # within which that is seen

    @rule(who=WHO, worker=WORKER)
    @precondition(lambda self: self.visitors)
    def an_answer_is_lost(self, who: int, worker: int) -> None:
        visitor = self._pick(who)
        self.emulator.add_fault(Fault("act_then_reset", NEW_SESSION_TOKEN, times=1))
        self.is_out = True
        self.emulator.expire(visitor.session_id)
        self.clock.advance(400)
        self._request(visitor, 0, [worker])
        self._recover()

    @rule(who=WHO, worker=WORKER, when=st.sampled_from(["before", "after"]))
    @precondition(lambda self: self.visitors)
    def a_worker_crashes_in_a_refresh(self, who: int, worker: int, when: str) -> None:
        visitor = self._pick(who)
        token = visitor.tokens[-1]
        self.emulator.expire(visitor.session_id)
        self.clock.advance(400)
        may_be_reuse = visitor.may_count_as_reuse(token, self.clock.now)
        visitor.shown_at.setdefault(token, self.clock.now)
        self.lines[worker].dies = when
        try:
            answer = self.run(self.workers[worker].resolve(token))
        except Crash:
            self.leases_until = self.clock.now + LEASE
        else:
            self._check(visitor, answer, may_be_reuse=may_be_reuse)  # there was nothing to refresh
        self._start(worker)

    @rule(worker=WORKER)
    def housekeeping(self, worker: int) -> None:
        self.run(self.workers[worker].housekeep())

    # What always holds

    def _note_losses(self) -> None:
        for visitor in self.visitors:
            visitor.may_be_lost |= visitor.session_id in self.watch.lost

    @invariant()
    def one_refresh_at_a_time(self) -> None:
        if hasattr(self, "watch"):
            assert self.watch.most <= 1

    @invariant()
    def nobody_is_signed_out_at_otpless_but_for_a_reason(self) -> None:
        for visitor in getattr(self, "visitors", []):
            self._note_losses()
            if self.emulator.session(visitor.session_id).revoked:
                assert visitor.is_signed_out or visitor.may_be_lost or visitor.is_reused


TestStory = Story.TestCase
TestStory.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
