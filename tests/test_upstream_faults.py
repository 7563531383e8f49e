"""Every row of the protocol's table "When OTPLESS or the store gives no verdict", for every kind of fault.

The faults happen on real sockets. Time is the tests': a second passes between two requests, so that the breaker lets
each of them meet the fault itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import Clock, World, make_app, make_settings
from fastapi import Request
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import PATIENCE
from simulated import Stalls, hurry

from fastapi_otpless_session import (
    OtplessClient,
    OtplessSessionMiddleware,
    OtplessSessions,
    SessionReason,
)
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.tokens import read_claims

pytestmark = pytest.mark.varied

SECRET = "canary-client-secret"
COOKIE = "__Host-otpless_session"

FAULTS = {
    "timeout": Fault("hang"),
    "one byte a second": Fault("drip", interval=1),
    "reset": Fault("reset"),
    "reset after OTPLESS acted": Fault("act_then_reset"),
    "timeout after OTPLESS acted": Fault("act_then_hang"),
    "connection lost in the answer": Fault("truncated"),
    "redirect": Fault("redirect"),
    "500": Fault("status", status=500),
    "502 with a page": Fault("status", status=502, body=b"<html>", headers=(("content-type", "text/html"),)),
    "503": Fault("status", status=503),
    "503 that looks like a verdict": Fault("status", status=503, body=b'{"errorCode": "7415", "success": false}'),
    "429": Fault("status", status=429),
    "429 with Retry-After": Fault("status", status=429, headers=(("retry-after", "1"),)),
    "429 with a date in Retry-After": Fault(
        "status", status=429, headers=(("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT"),)
    ),
    "429 with nonsense in Retry-After": Fault("status", status=429, headers=(("retry-after", "soon"),)),
    "401 without a code": Fault("status", status=401),
    "401 with an unknown code": Fault("status", status=401, body=b'{"errorCode": "7400"}'),
    "401 without a body": Fault("status", status=401, body=b""),
    "400 without a code": Fault("status", status=400),
    "403": Fault("status", status=403),
    "404": Fault("status", status=404),
    "204": Fault("status", status=204),
    "HTML": Fault("html"),
    "not JSON": Fault("garbage"),
    "truncated JSON": Fault("status", status=200, body=b'{"success": true, "data": {"sess'),
    "deep nesting": Fault("deep"),
    "gzip bomb": Fault("gzip_bomb"),
    "50 MB": Fault("huge"),
    "success as text": Fault("wrong_types"),
    "success as a number": Fault("status", status=200, body=b'{"success": 1}'),
    "success as text, and false": Fault("status", status=200, body=b'{"success": "false"}'),
    "duplicate keys": Fault("duplicate_keys"),
}

every_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@dataclass
class Stage:
    """An application whose OTPLESS is on a real socket."""

    clock: Clock
    emulator: Emulator
    sessions: OtplessSessions
    client: TestClient
    reasons: list[SessionReason | None] = field(default_factory=list)

    def sign_in(self, number: int, **values: Any) -> str:
        """Sign somebody in, and return the token that their browser has in its cookie."""
        user = self.emulator.sign_in(mobile=str(number), **values)
        answer = self.client.post("/auth/login", json=user)
        assert answer.status_code == 200, answer.text
        self.client.cookies.clear()
        return str(user["sessionInfo"]["sessionToken"])

    def get(self, path: str, token: str, *, channel: str = "cookie") -> Any:
        """Request as a browser with this cookie, a second after the request before."""
        self.clock.advance(1)
        self.client.cookies.clear()  # a swap's
        carried = {"Cookie": f"{COOKIE}={token}"} if channel == "cookie" else {"X-Session-Token": token}
        return self.client.get(path, headers=carried)


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[Emulator, Stalls, Clock, str]]:
    clock = Clock()
    emulator = Emulator(EmulatorSettings(client_secret=SECRET, rotation="rotating"), clock=clock)
    emulator.app = stalls = Stalls(emulator.app)
    with serve(emulator) as url:
        yield emulator, stalls, clock, url


@pytest.fixture
def stage(upstream: tuple[Emulator, Stalls, Clock, str], http_client: str) -> Iterator[Stage]:
    emulator, stalls, clock, url = upstream
    values = make_settings(
        client_secret=SECRET,
        base_url=url,
        jwks_url=f"{url}/.well-known/jwks",
        request_timeout=PATIENCE,
        refresh_timeout=PATIENCE,
        http_client=http_client,
    )
    sessions = OtplessSessions(values, client=hurry(OtplessClient(values, monotonic=clock), stalls), clock=clock)
    app = make_app()
    app.add_middleware(OtplessSessionMiddleware, sessions=sessions)
    with TestClient(app, base_url="https://shop.example") as client:
        built = Stage(clock, emulator, sessions, client)

        @app.get("/why")
        async def why(request: Request) -> str | None:
            session = await request.state.otpless.session()
            built.reasons.append(request.state.otpless.reason)
            return session.user_id if session else None

        yield built
    emulator.clear_faults()


def user_of(token: str) -> str:
    return str(read_claims(token).user_id)


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def is_unavailable(answer: Any) -> bool:
    """Whether it is the 503 of the table: to be tried again, and with the cookie left alone."""
    assert (answer.status_code, code(answer)) == (503, "session_unavailable"), answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    return "set-cookie" not in answer.headers and "x-session-token" not in answer.headers


@every_fault
def test_each_row_of_the_fail_table_holds_for_each_fault(stage: Stage, fault: Fault) -> None:
    people = _people(stage)
    never_seen = stage.emulator.sign_in(mobile="9")["sessionInfo"]["sessionToken"]
    stage.emulator.reset_calls()
    stage.emulator.add_fault(fault)

    ended = stage.get("/orders", people["ended"])
    assert (ended.status_code, code(ended)) == (401, "session_revoked")
    fresh = stage.get("/orders", people["fresh"])
    assert (fresh.status_code, fresh.json()["stale"]) == (200, False)
    assert stage.emulator.calls == []  # neither row asks anybody

    stale = stage.get("/orders", people["stale"])
    assert (stale.status_code, stale.json()["stale"]) == (200, True)
    assert is_unavailable(stage.get("/orders", people["beyond"]))
    assert is_unavailable(stage.get("/orders", never_seen, channel="header"))
    assert is_unavailable(stage.get("/orders", people["expired"]))
    assert stage.get("/maybe", people["expired"]).json() == {"user": None}
    assert stage.get("/why", people["expired"]).json() is None
    assert stage.reasons == [SessionReason.UNAVAILABLE]
    assert is_unavailable(stage.get("/fresh", people["fresh"]))
    asked = len(stage.emulator.calls)
    assert asked >= 7  # every row met the fault, none an open breaker only

    stage.emulator.clear_faults()
    for person in ("fresh", "stale", "beyond", "expired"):  # nobody was signed out, and every cookie is as good
        after = stage.get("/fresh", people[person])
        assert after.status_code == 200, person
    assert stage.get("/orders", never_seen, channel="header").status_code == 200


def _people(stage: Stage) -> dict[str, str]:
    """Sign in somebody for each row of the table."""
    people = {
        "beyond": stage.sign_in(1),
        "ended": stage.sign_in(2),
        "expired": stage.sign_in(3, session_lifetime=300),
    }
    stage.client.post("/auth/logout", headers={"Cookie": f"{COOKIE}={people['ended']}", "Sec-Fetch-Site": "none"})
    stage.clock.advance(300)
    people["stale"] = stage.sign_in(4)
    stage.clock.advance(61)  # beyond the time in which OTPLESS would be asked behind the request
    people["fresh"] = stage.sign_in(5)
    return people


@every_fault
def test_a_fault_at_sign_in_or_sign_out_is_no_refusal_and_both_work_afterwards(stage: Stage, fault: Fault) -> None:
    user, other = stage.emulator.sign_in(mobile="1"), stage.sign_in(2)
    signed_out = stage.emulator.sessions()[-1].session_id
    stage.emulator.add_fault(fault)
    if fault.status == 401 and b"errorCode" in (fault.body or b""):
        stage.emulator.clear_faults()  # there, any code is a refusal of the one-time token
        stage.emulator.add_fault(Fault("status", status=503))
    assert is_unavailable(stage.client.post("/auth/login", json=user))
    stage.clock.advance(1)
    gone = stage.client.post("/auth/logout", headers={"Cookie": f"{COOKIE}={other}"})
    assert gone.status_code == 204  # it holds here, and OTPLESS will be told
    assert code(stage.get("/orders", other)) == "session_revoked"
    stage.emulator.clear_faults()
    stage.clock.advance(60)
    again = stage.emulator.sign_in(mobile="1")  # a one-time token may be used up
    assert stage.client.post("/auth/login", json=again).status_code == 200
    assert stage.client.portal is not None
    stage.client.portal.call(stage.sessions.housekeep)
    assert stage.emulator.session(signed_out).revoked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_carries_our_secret_and_tokens_nowhere(stage: Stage, status: int) -> None:
    elsewhere = Emulator(EmulatorSettings(client_secret=SECRET))
    with serve(elsewhere) as url:
        people = _people(stage)
        for location in (f"{url}/v1/sessions/validate-session", "/v1/sessions/elsewhere", "//", "http://[", "\x7f"):
            stage.emulator.add_fault(Fault("status", status=status, headers=(("location", location),)))
            assert is_unavailable(stage.get("/orders", people["expired"]))
            assert is_unavailable(stage.get("/orders", people["beyond"]))
            stage.emulator.clear_faults()
    assert elsewhere.calls == []
    assert stage.emulator.count("elsewhere") == 0


# An answer for another session


def test_tokens_of_another_session_are_handed_to_nobody(stage: Stage) -> None:
    people = _people(stage)
    stage.emulator.add_fault(Fault("other_session", "get-new-session-token"))
    assert is_unavailable(stage.get("/orders", people["expired"]))
    stage.emulator.clear_faults()
    assert stage.get("/orders", people["expired"]).json()["user"] == user_of(people["expired"])


def test_details_of_another_session_are_shown_to_nobody(stage: Stage) -> None:
    people = _people(stage)
    stage.emulator.add_fault(Fault("other_session", "get-session-details"))
    assert is_unavailable(stage.get("/details", people["fresh"]))
    stage.emulator.clear_faults()
    assert stage.get("/details", people["fresh"]).json()["user_id"] == user_of(people["fresh"])


def test_where_details_say_who_somebody_is_those_of_another_session_are_no_verdict(
    make_world: Callable[..., World],
) -> None:
    world = make_world(jwks_url="")
    user = world.emulator.sign_in()
    world.emulator.add_fault(Fault("other_session", "get-session-details"))
    assert is_unavailable(world.get("/orders", world.token(user)))
    assert is_unavailable(world.client.post("/auth/logout", headers={"X-Session-Token": world.token(user)}))
    world.emulator.clear_faults()
    assert world.get("/orders", world.token(user)).json()["user"] == user["userId"]


# Whatever OTPLESS may answer

DOCUMENTED = {"/orders": {200, 401, 503}, "/fresh": {200, 401, 503}, "/details": {200, 401, 503}, "/maybe": {200}}
WORDS: st.SearchStrategy[Any] = st.sampled_from(
    ["7414", "7415", 7414, 7415, True, False, "true", 1, None, "SUCCESS", "", [], {}, 1e308]
)
NAMES = st.sampled_from(
    ["success", "errorCode", "data", "sessionId", "sessionToken", "refreshToken", "userId", "status", "keys", "message"]
)
OBJECTS = st.dictionaries(NAMES, WORDS | st.dictionaries(NAMES, WORDS, max_size=3), max_size=5)
BODIES = st.binary(max_size=200) | OBJECTS.map(lambda found: json.dumps(found).encode())
STATUSES = st.sampled_from([200, 200, 201, 204, 301, 400, 401, 403, 404, 408, 422, 429, 500, 503]) | st.integers(
    200, 599
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["retry-after", "location", "content-encoding", "set-cookie", "content-type", "date"]),
        st.sampled_from(
            ["", "0", "9" * 40, "gzip", "br", "//", "a=b; path=/", "text/html; charset=utf-7", "\xff", "-1"]
        ),
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(status=STATUSES, body=BODIES, headers=HEADERS)
def test_whatever_otpless_answers_only_documented_statuses_come_out(
    world: World, status: int, body: bytes, headers: tuple[tuple[str, str], ...]
) -> None:
    world.emulator.clear_faults()
    world.clock.advance(11)
    world.client.cookies.clear()
    user = world.sign_in(mobile="1")
    world.client.cookies.clear()
    stranger = world.token(world.emulator.sign_in(mobile="0"))
    world.emulator.expire(world.session_id(user))
    world.clock.advance(400)  # whatever was believed has to be asked for, and no breaker is open
    world.emulator.add_fault(Fault("status", status=status, body=body, headers=headers))
    for path, documented in DOCUMENTED.items():
        for carried in ({"Cookie": f"{COOKIE}={world.token(user)}"}, {"X-Session-Token": stranger}):
            answer = world.client.get(path, headers=carried)
            assert answer.status_code in documented, answer.text
            assert "set-cookie" not in answer.headers  # neither swapped nor cleared
    assert world.client.post("/auth/login", json=world.emulator.sign_in()).status_code in {401, 503}
    world.emulator.clear_faults()
    world.clock.advance(11)
    is_verdict = status in {200, 400, 401} and any(word in body for word in (b"7414", b"7415", b"false"))
    after = world.client.get("/fresh", headers={"Cookie": f"{COOKIE}={world.token(user)}"})
    assert after.status_code == 200 or is_verdict
