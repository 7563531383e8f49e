"""The session cookie, and what pages of other sites can make a browser do with it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Exchange, exchange, http_scope
from conftest import World
from fastapi.routing import APIRoute

from fastapi_otpless_session import CurrentSession, OptionalSession, create_session_router
from fastapi_otpless_session.emulator import Fault

pytestmark = pytest.mark.varied

DAY = 86_400
COOKIE = "__Host-otpless_session"
OWN = "https://shop.example"
TRUSTED = "https://app.example"
EVIL = "https://evil.example"
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")
SAFE = ("GET", "HEAD", "OPTIONS")


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def attributes(cookie: str) -> set[str]:
    """What says where a cookie belongs and how it may be used: all but its value and its life."""
    _, *parts = cookie.split("; ")
    return {part for part in parts if not part.startswith(("Max-Age=", "Expires="))}


# The cookie


def test_the_cookie_has_the_host_prefix_by_default_and_all_that_it_demands(world: World) -> None:
    cookie = world.client.post("/auth/login", json=world.emulator.sign_in()).headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert attributes(cookie) == {"Path=/", "Secure", "HttpOnly", "SameSite=lax"}


SETTINGS: list[tuple[dict[str, Any], str, set[str]]] = [
    ({}, COOKIE, {"Path=/", "Secure", "HttpOnly", "SameSite=lax"}),
    ({"cookie_name": "sid"}, "__Host-sid", {"Path=/", "Secure", "HttpOnly", "SameSite=lax"}),
    ({"cookie_samesite": "strict"}, COOKIE, {"Path=/", "Secure", "HttpOnly", "SameSite=strict"}),
    ({"cookie_samesite": "none"}, COOKIE, {"Path=/", "Secure", "HttpOnly", "SameSite=none"}),
    ({"cookie_secure": False}, "otpless_session", {"Path=/", "HttpOnly", "SameSite=lax"}),
    ({"cookie_path": "/auth"}, "otpless_session", {"Path=/auth", "Secure", "HttpOnly", "SameSite=lax"}),
    (
        {"cookie_domain": "shop.example"},
        "otpless_session",
        {"Path=/", "Domain=shop.example", "Secure", "HttpOnly", "SameSite=lax"},
    ),
]


def _shown(value: object) -> str:
    """Name a case the same in each process: the tests are shared out by their names."""
    return str(sorted(value) if isinstance(value, set) else value)[:40]


@pytest.mark.parametrize(("settings", "name", "expected"), SETTINGS, ids=_shown)
def test_a_cookie_is_set_swapped_and_deleted_with_the_same_attributes(
    make_world: Callable[..., World], settings: dict[str, Any], name: str, expected: set[str]
) -> None:
    world = make_world(**settings)
    set_by = [world.client.post("/auth/login", json=world.emulator.sign_in())]
    assert name in world.client.cookies
    world.clock.advance(DAY + 1)
    set_by.append(world.get("/auth/sessions"))
    set_by.append(world.client.post("/auth/logout"))
    cookies = [answer.headers["set-cookie"] for answer in set_by]
    assert [cookie.partition("=")[0] for cookie in cookies] == [name] * 3
    assert [attributes(cookie) for cookie in cookies] == [expected] * 3
    assert name not in world.client.cookies


@pytest.mark.parametrize("path", ["/auth/logout", "/auth/logout-all", "/auth/sessions/{id}"])
def test_every_way_to_sign_out_deletes_the_cookie_for_good(world: World, path: str) -> None:
    user = world.sign_in()
    method = "DELETE" if "{id}" in path else "POST"
    answer = world.client.request(method, path.format(id=world.session_id(user)))
    (cookie,) = answer.headers.get_list("set-cookie")
    assert cookie.startswith(f"{COOKIE}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; ")
    assert COOKIE not in world.client.cookies


def test_an_expired_cookie_is_deleted_without_being_swapped_first(world: World) -> None:
    world.sign_in()
    world.clock.advance(DAY + 1)
    (cookie,) = world.client.post("/auth/logout-all").headers.get_list("set-cookie")
    assert cookie.startswith(f"{COOKIE}=;")


def test_the_cookie_lives_as_long_as_the_refresh_token(world: World) -> None:
    cookie = world.client.post("/auth/login", json=world.emulator.sign_in()).headers["set-cookie"]
    assert "Max-Age=604800;" in cookie
    world.clock.advance(2 * DAY)
    assert "Max-Age=432000;" in world.get("/orders").headers["set-cookie"]


def length(world: World, user: dict[str, Any]) -> int:
    rest = "; Max-Age=604800; Path=/; HttpOnly; SameSite=lax; Secure"
    return len(f"{world.settings.cookie}={world.token(user)}{rest}")


def test_a_cookie_of_4096_bytes_is_set_and_a_larger_one_is_an_error_that_says_so(
    make_world: Callable[..., World],
) -> None:
    lengths = set()
    for number in range(4):  # one length in four is none of base64's
        world = make_world(cookie_name="s" * (number + 1))
        room = 4096 - length(world, world.emulator.sign_in(name="x"))
        counts = range(room * 3 // 4 - 4, room * 3 // 4 + 8)
        users = [world.emulator.sign_in(name="x" * count) for count in counts]
        fitting = max((user for user in users if length(world, user) <= 4096), key=lambda user: length(world, user))
        larger = min((user for user in users if length(world, user) > 4096), key=lambda user: length(world, user))
        lengths |= {length(world, fitting), length(world, larger)}
        assert len(world.client.post("/auth/login", json=fitting).headers["set-cookie"]) == length(world, fitting)
        refused = world.client.post("/auth/login", json=larger)
        assert (refused.status_code, code(refused)) == (500, "cookie_too_large")
        assert "browsers keep 4096" in refused.json()["detail"]["message"]
        assert "set-cookie" not in refused.headers
        assert [one.id for one in world.call(world.sessions.list, larger["userId"])] == [world.session_id(fitting)]
    assert lengths >= {4096, 4097}


def test_a_sign_in_too_large_for_a_cookie_works_on_the_header_channel(world: World) -> None:
    user = world.emulator.sign_in(name="x" * 2_900)
    assert world.client.post("/auth/login", json=user).status_code == 500
    user = world.emulator.sign_in(name="x" * 2_900)
    assert world.client.post("/auth/login?channel=header", json=user).status_code == 200
    assert world.get("/orders", world.token(user)).status_code == 200


def test_a_swap_too_large_for_a_cookie_is_logged_as_that_and_loses_nobody_the_session(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    user = world.sign_in()
    session_id, now = world.session_id(user), int(world.clock.now) + DAY + 1
    claims = {"sub": session_id, "userId": user["userId"], "iss": "https://otpless.com", "iat": now, "exp": now + DAY}
    large = world.emulator.issue({**claims, "roles": "x" * 3_000})
    data = {"sessionId": session_id, "sessionToken": large, "refreshToken": user["sessionInfo"]["refreshToken"]}
    body = json.dumps({"success": True, "data": data}).encode()
    world.emulator.add_fault(Fault("status", path="get-new-session-token", status=200, body=body))
    world.clock.advance(DAY + 1)
    with caplog.at_level(logging.ERROR):
        answers = [world.get("/orders") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert all("set-cookie" not in answer.headers for answer in answers)
    assert "browsers keep 4096" in caplog.text
    assert world.emulator.count("get-new-session-token") == 1


# The same-origin rule


def allowed(site: str | None, origin: str | None) -> bool:
    """The design's rule, as one reads it."""
    if site in {"same-origin", "none"}:
        return True
    if origin == TRUSTED:
        return True
    if site is not None:
        return False
    return origin in {None, OWN, "https://shop.example:443"}


SITES = [None, "same-origin", "none", "same-site", "cross-site", "", "Same-Origin", "nonsense"]
ORIGINS = [
    None,
    OWN,
    "https://shop.example:443",
    "https://shop.example:8443",
    "http://shop.example",
    "http://shop.example:443",
    TRUSTED,
    "https://app.example:8443",
    "http://app.example",
    EVIL,
    "https://shop.example.evil.example",
    "https://evil.example/https://shop.example",
    "https://shop.example@evil.example",
    "https://app.shop.example",
    "null",
    "",
]
TABLE = [(site, origin) for site in SITES for origin in ORIGINS]


def fetch(site: str | None, origin: str | None) -> dict[str, str]:
    given = {"Sec-Fetch-Site": site, "Origin": origin}
    return {name: value for name, value in given.items() if value is not None}


def test_the_same_origin_rule_holds_for_every_unsafe_request_with_a_cookie(make_world: Callable[..., World]) -> None:
    world = make_world(trusted_origins=TRUSTED)
    world.sign_in()
    for site, origin in TABLE:
        answer = world.client.post("/orders", headers=fetch(site, origin))
        assert answer.status_code == (200 if allowed(site, origin) else 403), (site, origin)
        assert world.client.get("/orders", headers=fetch(site, origin)).status_code == 200


@pytest.mark.parametrize(
    "origin",
    ["capacitor://localhost", "chrome-extension://abcdefghijklmnop", "tauri://localhost", "HTTPS://App.example:443/"],
)
def test_an_app_of_its_own_scheme_can_be_trusted(make_world: Callable[..., World], origin: str) -> None:
    world = make_world(trusted_origins=origin)
    world.sign_in()
    sent = {"Sec-Fetch-Site": "cross-site", "Origin": origin.removesuffix(":443/")}
    assert world.client.post("/orders", headers=sent).status_code == 200
    assert world.client.post("/auth/logout", headers=sent).status_code == 204


def test_without_trusted_origins_nobody_else_is_trusted(world: World) -> None:
    world.sign_in()
    for site, origin in TABLE:
        expected = allowed(site, origin) and (origin != TRUSTED or site in {"same-origin", "none"})
        answer = world.client.post("/orders", headers=fetch(site, origin))
        assert answer.status_code == (200 if expected else 403), (site, origin)


@pytest.mark.parametrize("method", UNSAFE)
@pytest.mark.parametrize("path", ["/any", "/required", "/maybe-any"])
def test_the_rule_is_for_every_unsafe_method_and_every_way_to_ask_for_a_session(
    make_world: Callable[..., World], method: str, path: str
) -> None:
    world = make_world(required_paths="/required")

    async def any_(session: CurrentSession) -> str:
        return session.user_id

    async def required() -> str:
        return "in"

    async def maybe(session: OptionalSession) -> str | None:
        return session.user_id if session else None

    for where, endpoint in (("/any", any_), ("/required", required), ("/maybe-any", maybe)):
        world.app.add_api_route(where, endpoint, methods=[*UNSAFE, *SAFE])
    world.sign_in()
    cross = world.client.request(method, path, headers=fetch("cross-site", EVIL))
    own = world.client.request(method, path, headers=fetch("same-origin", OWN))
    assert (own.status_code, own.json() is not None) == (200, True)
    assert (cross.status_code, cross.json()) == (200, None) if path == "/maybe-any" else cross.status_code == 403


def test_a_token_in_a_header_needs_no_rule(world: World) -> None:
    token = world.token(world.sign_in(channel="header"))
    for name, value in (("X-Session-Token", token), ("Authorization", f"Bearer {token}")):
        answer = world.client.post("/orders", headers={name: value, **fetch("cross-site", EVIL)})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"sec-fetch-site", b"cross-site"), (b"sec-fetch-site", b"same-origin")], 403),
        ([(b"sec-fetch-site", b"same-origin"), (b"sec-fetch-site", b"cross-site")], 403),
        ([(b"origin", EVIL.encode()), (b"origin", OWN.encode())], 403),
        ([(b"origin", OWN.encode()), (b"origin", OWN.encode())], 403),
        ([(b"origin", OWN.encode()), (b"host", b"evil.example")], 403),
        ([(b"origin", b"\xff")], 403),
        ([(b"origin", OWN.upper().encode())], 200),
    ],
)
def test_a_name_twice_does_not_get_around_the_rule(
    world: World, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    world.sign_in()
    cookie = (b"cookie", f"{COOKIE}={world.client.cookies[COOKIE]}".encode())
    answer: Exchange = world.call(exchange, world.app, http_scope("/orders", "POST", [cookie, *headers]))
    assert answer.status == status


@pytest.mark.parametrize(
    ("scheme", "host", "origin", "status"),
    [
        ("https", b"shop.example", b"http://shop.example", 403),
        ("http", b"shop.example", b"https://shop.example", 200),  # a proxy ends TLS
        ("http", b"localhost:8000", b"http://localhost:8000", 200),
        ("http", b"localhost:8000", b"http://localhost:3000", 403),
        ("https", b"[::1]:8443", b"https://[::1]:8443", 200),
        ("https", b"Shop.Example:443", b"https://shop.example", 200),
        ("https", b"", b"https://", 403),
    ],
)
def test_our_own_origin_is_told_by_host_and_port(
    world: World, scheme: str, host: bytes, origin: bytes, status: int
) -> None:
    world.sign_in()
    cookie = (b"cookie", f"{COOKIE}={world.client.cookies[COOKIE]}".encode())
    headers = [(b"host", host), cookie, (b"origin", origin)]
    scope = {**http_scope("/orders", "POST"), "scheme": scheme, "headers": headers}
    assert world.call(exchange, world.app, scope).status == status


# The router


SCRIPT = "/client.js"
"""The one route that is for everybody."""
ROUTES = [
    (method, route.path)
    for route in create_session_router().routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
]


def test_the_router_has_no_route_that_these_tests_do_not_see() -> None:
    assert len(ROUTES) == len(create_session_router().routes) == 7


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("credential", ["cookie", "header", "none"])
def test_the_same_origin_rule_holds_for_every_route_of_the_router(
    make_world: Callable[..., World], method: str, path: str, credential: str
) -> None:
    world = make_world(trusted_origins=TRUSTED)
    user = world.sign_in(channel="cookie" if credential == "cookie" else "header")
    headers = {"X-Session-Token": world.token(user)} if credential == "header" else {}
    url = "/auth" + path.format(session_id="unknown")
    for site, origin in TABLE:
        if allowed(site, origin):
            continue
        answer = world.client.request(method, url, headers={**headers, **fetch(site, origin)})
        if method in SAFE:
            assert answer.status_code == (401 if credential == "none" and path != SCRIPT else 200)
        else:
            assert (answer.status_code, code(answer)) == (403, "cross_site_request"), (site, origin)
    assert not world.emulator.session(world.session_id(user)).revoked


@pytest.mark.parametrize(("method", "path"), [route for route in ROUTES if route[0] not in SAFE])
@pytest.mark.parametrize("headers", [fetch("same-origin", None), fetch("cross-site", TRUSTED), fetch(None, OWN), {}])
def test_our_own_and_trusted_pages_may_use_every_route_of_the_router(
    make_world: Callable[..., World], method: str, path: str, headers: dict[str, str]
) -> None:
    world = make_world(trusted_origins=TRUSTED)
    user = world.sign_in()
    url = "/auth" + path.format(session_id=world.session_id(user))
    body = world.emulator.sign_in() if path == "/login" else None
    assert world.client.request(method, url, headers=headers, json=body).status_code in {200, 204}


@pytest.mark.parametrize("path", [path for method, path in ROUTES if method in SAFE])
def test_reading_changes_nothing(world: World, path: str) -> None:
    user = world.sign_in()
    world.client.get("/auth" + path, headers=fetch("cross-site", EVIL))
    assert not world.emulator.session(world.session_id(user)).revoked
    assert [one.id for one in world.call(world.sessions.list, user["userId"])] == [world.session_id(user)]


# Sign-in: login-CSRF and fixation


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("headers", [{}, fetch(None, "null"), fetch("cross-site", EVIL), fetch("cross-site", None)])
def test_a_form_on_another_site_signs_nobody_in_as_the_attacker(
    world: World, media_type: str, headers: dict[str, str]
) -> None:
    attackers = json.dumps(world.emulator.sign_in(mobile="911"))
    answer = world.client.post("/auth/login", content=attackers, headers={"Content-Type": media_type, **headers})
    assert answer.status_code == (403 if headers else 415)
    assert "set-cookie" not in answer.headers
    assert world.emulator.calls == []


def test_json_from_another_site_signs_nobody_in_either(world: World) -> None:
    mine = world.sign_in(mobile="922")
    attackers = world.emulator.sign_in(mobile="911")
    for headers in (fetch("cross-site", EVIL), fetch(None, EVIL), fetch("same-site", None), fetch(None, "null")):
        assert code(world.client.post("/auth/login", json=attackers, headers=headers)) == "cross_site_request"
    assert world.get("/orders").json()["user"] == mine["userId"]


@pytest.mark.parametrize("planted_in", ["cookie", "header", "authorization"])
def test_a_session_planted_before_the_sign_in_is_not_the_one_after_it(world: World, planted_in: str) -> None:
    attacker = world.sign_in(channel="header", mobile="911")
    planted = world.token(attacker)
    headers = {
        "cookie": {"Cookie": f"{COOKIE}={planted}"},
        "header": {"X-Session-Token": planted},
        "authorization": {"Authorization": f"Bearer {planted}"},
    }[planted_in]
    victim = world.emulator.sign_in(mobile="922")
    answer = world.client.post("/auth/login", json=victim, headers=headers)
    assert answer.json()["user_id"] == victim["userId"]
    assert answer.json()["id"] == world.session_id(victim) != world.session_id(attacker)
    assert answer.headers["set-cookie"].startswith(f"{COOKIE}={world.token(victim)};")
    assert world.get("/orders").json()["user"] == victim["userId"]
    world.client.cookies.clear()
    assert code(world.get("/orders", planted)) == "session_revoked"


def test_a_token_that_was_not_signed_in_here_cannot_be_planted_as_a_cookie(world: World) -> None:
    attackers = world.token(world.emulator.sign_in(mobile="911"))
    assert world.get("/orders", attackers).status_code == 200  # as a header OTPLESS vouches for it
    world.client.cookies.set(COOKIE, attackers, domain="shop.example")
    assert code(world.get("/orders")) == "session_invalid"


def test_a_conflict_is_told_in_the_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    world.client.get("/orders", headers={"Cookie": f"{COOKIE}=a.b.c; {COOKIE}=d.e.f"})
    assert [text for text in caplog.messages if "conflict" in text] == [
        "Refused: credentials in conflict (cookie); docs/faq.md says where they come from"
    ]


def test_a_cookie_beside_a_planted_one_is_a_conflict_and_never_the_planted_session(world: World) -> None:
    attacker, victim = (world.token(world.sign_in(channel="header", mobile=number)) for number in ("911", "922"))
    for order in ((attacker, victim), (victim, attacker)):
        cookie = "; ".join(f"{COOKIE}={token}" for token in order)
        assert code(world.client.get("/orders", headers={"Cookie": cookie})) == "conflicting_credentials"
