"""Whatever arrives, nothing but what is documented comes out, and nobody gets in who should not."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from asgi import Exchange, exchange, http_scope
from conftest import World, make_settings
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from fastapi_otpless_session import OtplessSessionMiddleware

# The application's own thread may draw a random pause while an example is being made; hypothesis takes it for ours.
pytestmark = [pytest.mark.varied, pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")]
COOKIE = b"__Host-otpless_session"
REFUSALS = {400, 401, 403}
DOCUMENTED = {
    ("GET", "/orders"): REFUSALS,
    ("POST", "/orders"): REFUSALS,
    ("GET", "/fresh"): REFUSALS,
    ("GET", "/details"): REFUSALS,
    ("GET", "/auth/session"): REFUSALS,
    ("GET", "/auth/sessions"): REFUSALS,
    ("DELETE", "/auth/sessions/x"): REFUSALS,
    ("POST", "/auth/logout-all"): REFUSALS,
    ("POST", "/auth/logout"): {204, 403},
    ("POST", "/auth/login"): {403, 415, 422},
    ("GET", "/maybe"): {200, 400},
    ("GET", "/public"): {200},
}

bounded = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def ask(world: World, path: str, method: str = "GET", headers: Any = (), body: Any = ()) -> Exchange:
    found: Exchange = world.call(exchange, world.app, http_scope(path, method, headers), body)
    return found


def code(answer: Exchange) -> str:
    return str(json.loads(answer.body)["detail"]["code"])


# Headers


PIECES = [
    b"",
    b" ",
    b"\t",
    b"\xa0",
    b"\0",
    b"\r\n",
    b";",
    b"=",
    b",",
    b".",
    b'"',
    b"a.b.c",
    b"e30.e30.e30",
    b"Bearer ",
    COOKIE,
]
VALUES = st.lists(st.sampled_from(PIECES) | st.binary(max_size=12), max_size=8).map(b"".join)
NAMES = st.sampled_from(
    [
        *(b"authorization", b"x-session-token", b"cookie", b"origin", b"host", b"sec-fetch-site", b"content-type"),
        *(b"content-length", b"x_session_token", b"accept", b"access-control-request-method"),
    ]
)
HEADERS = st.lists(st.tuples(NAMES, VALUES | VALUES.map(lambda value: COOKIE + b"=" + value)), max_size=6)


@bounded
@given(headers=HEADERS, where=st.sampled_from(sorted(DOCUMENTED)))
@example(headers=[(b"cookie", COOKIE + b"=" + b"e30.e30.e30"), (b"host", b"")], where=("POST", "/orders"))
@example(headers=[(b"authorization", b"Bearer a.b.c"), (b"authorization", b"\xff")], where=("GET", "/orders"))
def test_any_headers_get_a_documented_answer_and_nobody_in(
    world: World, headers: list[tuple[bytes, bytes]], where: tuple[str, str]
) -> None:
    method, path = where
    answer = ask(world, path, method, headers)
    assert answer.status in DOCUMENTED[where]
    if path == "/maybe" and answer.status == 200:
        assert json.loads(answer.body) == {"user": None}
    assert [call for call in world.emulator.calls if "session" in call.path] == []


@pytest.fixture
def locked(make_world: Callable[..., World]) -> World:
    return make_world(required_paths="/**")


@bounded
@given(headers=HEADERS, where=st.sampled_from(["/orders", "/public", "/nowhere"]))
def test_any_headers_get_no_further_on_a_required_path(
    locked: World, headers: list[tuple[bytes, bytes]], where: str
) -> None:
    assert ask(locked, where, headers=headers).status in REFUSALS


# Cookies


def read_strictly(header: bytes) -> list[bytes]:
    """What RFC 6265 leaves of our cookie's values, read byte by byte."""
    found = []
    for pair in header.split(b";"):
        name, equals, value = pair.partition(b"=")
        if equals and name.strip(b" \t") == COOKIE:
            found.append(value.strip(b" \t"))
    return found


@bounded
@given(data=st.data())
def test_any_cookie_header_is_read_as_the_standard_reads_it(world: World, data: st.DataObject) -> None:
    token = _token(world)
    space = st.sampled_from([b"", b" ", b"\t", b"\xa0", b"\x0b", b"\x85", b"\0", b"\xe3\x80\x80"])
    name = st.sampled_from([COOKIE, COOKIE.lower(), b"a", b"", COOKIE + b"x", b"$Version"])
    value = st.sampled_from([token, b"", b"x", b'"' + token + b'"', token + b"=", token[:-1]])
    pair = st.tuples(space, name, space, st.sampled_from([b"=", b"", b"=="]), space, value, space).map(b"".join)
    header = data.draw(st.lists(pair, max_size=4).map(b";".join))
    values = read_strictly(header)
    answer = ask(world, "/orders", headers=[(b"cookie", header)])
    if len(values) > 1:
        assert (answer.status, code(answer)) == (400, "conflicting_credentials")
    elif values == [token]:
        assert answer.status == 200
    else:
        expected = "session_invalid" if values and values[0] else "session_missing"
        assert (answer.status, code(answer)) == (401, expected)


def _token(world: World) -> bytes:
    """The token of somebody who is signed in; all examples share it with the world."""
    if "token" not in world.extra:
        world.extra["token"] = world.token(world.sign_in(channel="header")).encode()
    return bytes(world.extra["token"])


# JWTs


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CLAIMS = st.sampled_from(["sub", "sessionId", "userId", "exp", "iat", "nbf", "aud", "iss", "jti", "name", "email"])
PARAMETERS = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "jku", "x5u", "jwk", "x5c", "b64", "zip", "enc"])


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") or "AA"


@bounded
@given(
    header=st.dictionaries(PARAMETERS, JSON, max_size=4) | JSON | st.binary(max_size=40),
    payload=st.dictionaries(CLAIMS, JSON, max_size=6) | JSON | st.binary(max_size=40),
    plain=st.booleans(),
    path=st.sampled_from(["/orders", "/maybe", "/fresh", "/auth/session"]),
)
def test_any_jwt_even_of_otpless_own_key_gets_a_documented_answer_and_nobody_in(
    world: World, header: Any, payload: Any, plain: bool, path: str
) -> None:
    header = {"alg": "RS256", "kid": world.emulator.kid} if plain else header
    text = f"{part(header)}.{part(payload)}"
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), world.emulator.private_key())
    answer = ask(world, path, headers=[(b"x-session-token", f"{text}.{part(signature)}".encode())])
    if path == "/maybe":
        assert (answer.status, json.loads(answer.body)) == (200, {"user": None})
    else:
        assert (answer.status, code(answer)) in {(401, "session_invalid"), (401, "session_expired")}


@bounded
@given(data=st.data())
def test_a_good_token_that_was_changed_anywhere_gets_nobody_in(world: World, data: st.DataObject) -> None:
    token = _token(world)
    at = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.sampled_from(b"AZaz09-_.=~ \x00\xff"))
    changed = token[:at] + bytes([byte]) + token[at + data.draw(st.integers(0, 1)) :]
    answer = ask(world, "/orders", headers=[(b"authorization", b"Bearer " + changed)])
    assert answer.status == (200 if changed.strip(b" \t") == token else 401)


# Bodies


USERS = st.fixed_dictionaries(
    {},
    optional={
        "token": JSON,
        "userId": JSON,
        "status": JSON,
        "sessionInfo": JSON
        | st.fixed_dictionaries({}, optional={"sessionId": JSON, "sessionToken": JSON, "refreshToken": JSON})
        | st.fixed_dictionaries({"sessionToken": st.just("e30.e30.e30"), "refreshToken": st.text(max_size=20)}),
    },
)


@bounded
@given(body=st.binary(max_size=200) | (USERS | JSON).map(lambda value: json.dumps(value).encode()))
@example(body=b'{"token":"x","sessionInfo":{"sessionToken":"e30.e30.e30","refreshToken":"e30.e30.e30"}}')
def test_any_body_of_a_sign_in_gets_a_documented_answer_and_nobody_in(world: World, body: bytes) -> None:
    answer = ask(world, "/auth/login", "POST", [(b"content-type", b"application/json")], [body])
    assert (answer.status, code(answer)) in {(401, "sign_in_refused"), (422, "body_invalid")}
    assert answer.values(b"set-cookie") == []


@bounded
@given(sizes=st.lists(st.integers(0, 9_000), max_size=5))
def test_a_body_in_any_chunks_is_too_large_from_16_kib_on(world: World, sizes: list[int]) -> None:
    chunks = [b" " * size for size in sizes]
    answer = ask(world, "/auth/login", "POST", [(b"content-type", b"application/json")], chunks)
    assert answer.status == (413 if sum(sizes) > 16_384 else 422)


# Required paths


@pytest.fixture
def guarded(make_world: Callable[..., World], tmp_path: Path) -> World:
    for name, text in (("private/x", "secret"), ("public/x", "for all")):
        (tmp_path / "uploads" / name).parent.mkdir(parents=True)
        (tmp_path / "uploads" / name).write_text(text)
    world = make_world(
        required_paths="/files/private/**,/account/**,/sub/private/*,/exact", exempt_paths="/account/public/*"
    )
    world.app.add_api_route("/exact", lambda: "secret")
    world.app.add_api_route("/account/public/{page}", lambda: "for all")
    world.app.add_api_route("/account/{page:path}", lambda: "secret")
    sub = FastAPI()
    sub.add_api_route("/private/{page}", lambda: "secret")
    world.app.mount("/sub", sub)
    world.app.mount("/files", StaticFiles(directory=tmp_path / "uploads"))
    return world


SEGMENTS = st.sampled_from(
    (
        *("files", "uploads", "private", "public", "x", "account", "sub"),
        *("", ".", "..", "%2f", "Private", "\\", "x\\", "\n", "x\n"),
    )
)


@settings(bounded, max_examples=300)
@given(segments=st.lists(SEGMENTS, max_size=7))
@example(segments=["files", ".", "private", "x"])
@example(segments=["files", "public", "..", "private", "x"])
@example(segments=["account", "public", "..", "x"])
@example(segments=["account", "", "public", "x"])
@example(segments=["files", "..", "uploads", "private", "x"])
@example(segments=["exact\n"])
def test_no_path_leads_anybody_to_what_is_required(guarded: World, segments: list[str]) -> None:
    path = "/" + "/".join(segments)
    answer = ask(guarded, path)
    assert answer.status in {200, 307, 401, 404}
    assert b"secret" not in answer.body
    if answer.status == 200:
        assert answer.body in {b"for all", b'"for all"', b'{"hello":"world"}'}


async def _answers(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("for all")(scope, receive, send)


async def statuses(globs: list[str], paths: list[str]) -> list[int]:
    """What is answered to each path where only its glob says what is required."""
    apps = [OtplessSessionMiddleware(_answers, settings=make_settings(required_paths=[glob])) for glob in globs]
    return [(await exchange(app, http_scope(path))).status for app, path in zip(apps, paths, strict=True)]


@settings(bounded, max_examples=300)
@given(segment=st.text("ab-*", min_size=1, max_size=7), text=st.text("ab-", min_size=1, max_size=9))
@example(segment="a*b*a", text="a-b-b-a")
@example(segment="*ab*b", text="aab")
@example(segment="*-", text="--")
def test_stars_stand_for_any_part_of_a_segment(segment: str, text: str) -> None:
    assume("**" not in segment)
    status = 401 if fnmatchcase(text, segment) else 200
    globs, paths = ([f"/files/{one}/x", f"/files/{one}"] for one in (segment, text))
    assert asyncio.run(statuses(globs, paths)) == [status, status]
