"""Sign in, sign out, who am I, my devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Exchange, http_scope
from conftest import World
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from starlette.types import Message

from fastapi_otpless_session import OtplessSessionMiddleware, create_session_router
from fastapi_otpless_session.emulator import EmulatorSettings, Fault
from fastapi_otpless_session.testing import use_emulator

CROSS_SITE = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def stored(world: World) -> list[str]:
    users = {session.user_id for session in world.emulator.sessions()}
    return [one.id for user in users for one in world.call(world.sessions.list, user)]


def test_login_answers_with_the_session_and_no_token_in_the_body(world: World) -> None:
    user = world.emulator.sign_in(name="Asha", email="asha@example.com")
    answer = world.client.post("/auth/login", json=user)
    assert answer.status_code == 200
    assert answer.json()["id"] == world.session_id(user)
    assert answer.json()["user_id"] == user["userId"]
    assert world.token(user) not in answer.text
    assert user["sessionInfo"]["refreshToken"] not in answer.text
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"__Host-otpless_session={world.token(user)}; ")
    assert set(cookie.split("; ")[1:]) == {"Max-Age=604800", "Path=/", "HttpOnly", "SameSite=lax", "Secure"}
    assert answer.headers["cache-control"] == "no-store"


def test_login_on_the_header_channel_sets_no_cookie(world: World) -> None:
    user = world.emulator.sign_in()
    answer = world.client.post("/auth/login?channel=header", json=user)
    assert answer.headers["x-session-token"] == world.token(user)
    assert "set-cookie" not in answer.headers
    answer = world.client.post("/auth/login?channel=carrier-pigeon", json=user)
    assert (answer.status_code, type(answer.json()["detail"])) == (422, list)


@pytest.mark.parametrize(
    ("sources", "read", "unread"),
    [("cookie", "cookie", "header"), ("header", "header", "cookie"), ("authorization", "header", "cookie")],
)
def test_login_answers_on_a_channel_that_is_read(
    make_world: Callable[..., World], sources: str, read: str, unread: str
) -> None:
    world = make_world(token_sources=sources)
    user = world.emulator.sign_in()
    refused = world.client.post(f"/auth/login?channel={unread}", json=user)
    assert (refused.status_code, refused.json()["detail"]["code"]) == (422, "channel_unread")
    assert stored(world) == []
    for query in ("", f"?channel={read}"):
        answer = world.client.post(f"/auth/login{query}", json=world.emulator.sign_in())
        assert [name in answer.headers for name in ("set-cookie", "x-session-token")] == [
            read == "cookie",
            read == "header",
        ]


@pytest.mark.parametrize("quirk", [{}, {"details_id_field": "sessionToken"}, {"validate_token_session_info": True}])
@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("rotation", ["fixed", "strict"])
def test_login_works_with_either_answer_to_what_is_undocumented(
    make_world: Callable[..., World], quirk: dict[str, Any], jwks_url: str | None, rotation: Any
) -> None:
    settings = {} if jwks_url is None else {"jwks_url": jwks_url}
    world = make_world(EmulatorSettings(rotation=rotation, **quirk), **settings)
    world.sign_in()
    world.clock.advance(86_401)
    assert world.get("/orders").status_code == 200


def _swap(mine: dict[str, Any], other: dict[str, Any], *path: str) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(mine))
    target, source = changed, other
    for name in path[:-1]:
        target, source = target[name], source[name]
    target[path[-1]] = source[path[-1]]
    return changed


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize(
    "path",
    [
        ("token",),
        ("userId",),
        ("sessionInfo",),
        ("sessionInfo", "sessionId"),
        ("sessionInfo", "sessionToken"),
        ("sessionInfo", "refreshToken"),
    ],
    ids=".".join,
)
def test_nobody_attaches_anything_of_somebody_elses_to_a_session(
    make_world: Callable[..., World], path: tuple[str, ...], jwks_url: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    mine, victim = world.emulator.sign_in(mobile="911"), world.emulator.sign_in(mobile="922")
    answer = world.client.post("/auth/login", json=_swap(mine, victim, *path))
    assert (answer.status_code, code(answer)) == (401, "sign_in_refused")
    (logged,) = [line for line in caplog.messages if line.startswith("Sign-in refused: ")]
    why = logged.removeprefix("Sign-in refused: ")
    assert why
    assert why not in answer.text
    assert "set-cookie" not in answer.headers
    assert stored(world) == []


def test_a_refresh_token_of_ones_own_other_session_is_refused(world: World) -> None:
    one, two = world.emulator.sign_in(), world.emulator.sign_in()
    answer = world.client.post("/auth/login", json=_swap(one, two, "sessionInfo", "refreshToken"))
    assert answer.status_code == 401


@pytest.mark.parametrize("jwks_url", [None, ""])
def test_a_session_token_that_has_expired_signs_nobody_in_and_its_refresh_token_is_not_used(
    make_world: Callable[..., World], jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    user = world.emulator.sign_in(session_lifetime=60, refresh_lifetime=86_400)
    world.clock.advance(61)
    answer = world.client.post("/auth/login", json=user)
    assert (answer.status_code, code(answer)) == (401, "sign_in_refused")
    assert stored(world) == []
    assert world.emulator.count("get-new-session-token") == 0


@pytest.mark.parametrize("refusal", ["401/7301", "400/7301", "401/7415", "400/7414"])
def test_a_refused_one_time_token_fails_the_sign_in_and_nothing_else(
    make_world: Callable[..., World], refusal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world = make_world(EmulatorSettings(one_time_token_refusal=refusal))
    user = world.sign_in()
    assert code(world.client.post("/auth/login", json=user)) == "sign_in_refused"
    assert [line for line in caplog.messages if line.startswith("Sign-in refused: OTPLESS refused the one-time token")]
    assert world.get("/orders").status_code == 200


def test_the_same_sign_in_again_is_answered_again_and_an_ended_one_is_not_revived(
    make_world: Callable[..., World],
) -> None:
    world = make_world(EmulatorSettings(one_time_token_reusable=True))
    user = world.sign_in()
    again = world.client.post("/auth/login", json=user)
    assert again.status_code == 200
    assert world.get("/orders").status_code == 200
    world.emulator.add_fault(Fault("status", path="revoke-session", status=500))
    world.client.post("/auth/logout")
    assert world.client.post("/auth/login", json=user).status_code == 401


def test_without_require_sign_in_token_the_session_itself_is_the_proof(make_world: Callable[..., World]) -> None:
    world = make_world(require_sign_in_token=False)
    user = world.emulator.sign_in()
    assert world.client.post("/auth/login", json={"sessionInfo": user["sessionInfo"]}).status_code == 200
    assert world.emulator.count("validate/token") == 0


@pytest.mark.parametrize("call", ["validate/token", "get-session-details"])
def test_a_sign_in_while_otpless_fails_is_503_and_stores_nothing(world: World, call: str) -> None:
    world.emulator.add_fault(Fault("status", path=call, status=500))
    answer = world.client.post("/auth/login", json=world.emulator.sign_in())
    assert (answer.status_code, code(answer)) == (503, "session_unavailable")
    assert stored(world) == []


def test_while_the_keys_are_out_of_reach_the_refresh_token_is_proved_by_using_it(
    make_world: Callable[..., World],
) -> None:
    world = make_world(EmulatorSettings(rotation="strict"))
    world.emulator.add_fault(Fault("status", path="jwks", status=500))
    world.sign_in()
    assert world.emulator.count("get-new-session-token") == 1
    world.clock.advance(86_401)
    assert world.get("/orders").status_code == 200


def test_signing_in_ends_the_session_that_the_browser_still_carried(world: World) -> None:
    before = world.sign_in(mobile="911")
    world.sign_in(mobile="922")
    assert world.emulator.session(world.session_id(before)).revoked
    assert world.get("/orders", world.token(before)).status_code == 400  # it and the new cookie disagree


@pytest.mark.parametrize(
    ("body", "content_type", "status", "expected"),
    [
        (b"{}", "text/plain", 415, "media_type_unsupported"),
        (b"{}", "application/x-www-form-urlencoded", 415, "media_type_unsupported"),
        (b"{}", "", 415, "media_type_unsupported"),
        (b"{" + b" " * 16_384 + b"}", "application/json", 413, "body_too_large"),
        (b"", "application/json", 422, "body_invalid"),
        (b"\xff\xfe", "application/json", 422, "body_invalid"),
        (b"[" * 16_000, "application/json", 422, "body_invalid"),
        (b"[]", "application/json", 422, "body_invalid"),
        (b"{}", "application/json; charset=utf-8", 422, "body_invalid"),
        (b'{"token": 1}', "application/json", 422, "body_invalid"),
        (
            b'{"token": "t", "sessionInfo": {"sessionToken": 1, "refreshToken": "x"}}',
            "application/json",
            422,
            "body_invalid",
        ),
        (b'{"token": "t\\ud800"}', "application/json", 422, "body_invalid"),
    ],
)
def test_a_body_that_the_sdk_never_sends_gets_a_clear_error(
    world: World, body: bytes, content_type: str, status: int, expected: str
) -> None:
    answer = world.client.post("/auth/login", content=body, headers={"Content-Type": content_type})
    assert (answer.status_code, code(answer)) == (status, expected)
    assert world.emulator.calls == []


@pytest.mark.parametrize("body", [b"[]", b"null", b'"otplessUser"', b"1"])
def test_a_body_that_is_no_object_is_told_as_that(world: World, body: bytes) -> None:
    answer = world.client.post("/auth/login", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, code(answer)) == (422, "body_invalid")
    assert answer.json()["detail"]["message"] == "The body is not a JSON object, as the SDK's otplessUser is."


def test_a_body_without_a_length_is_limited_too(world: World) -> None:
    def chunks() -> Any:
        for _ in range(17):
            yield b" " * 1024

    answer = world.client.post("/auth/login", content=chunks(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("sent", [[], [b'{"token": "t'], [b"{}"]])
def test_a_client_that_leaves_in_the_middle_of_a_sign_in_is_no_fault_of_ours(
    world: World, sent: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    coming = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in sent]
    answered: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    scope = http_scope("/auth/login", "POST", [(b"content-type", b"application/json")])
    world.call(world.app, scope, receive, send)
    answer = Exchange(answered)
    assert (answer.status, json.loads(answer.body)["detail"]["code"]) == (422, "body_invalid")
    assert [record for record in caplog.records if record.exc_info] == []


def test_malformed_tokens_in_a_sign_in_are_refused(world: World) -> None:
    user = world.emulator.sign_in()
    user["sessionInfo"]["sessionToken"] = "not\ud800.a.token"
    answer = world.client.post("/auth/login", content=json.dumps(user), headers={"Content-Type": "application/json"})
    assert code(answer) == "sign_in_refused"


def test_a_cookie_that_browsers_would_drop_is_an_error_and_nothing_is_stored(world: World) -> None:
    user = world.emulator.sign_in(name="x" * 2800)
    answer = world.client.post("/auth/login", json=user)
    assert (answer.status_code, code(answer)) == (500, "cookie_too_large")
    assert stored(world) == []


def test_logout_clears_the_cookie_with_the_same_attributes_and_tells_otpless(world: World) -> None:
    user = world.sign_in()
    answer = world.client.post("/auth/logout")
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-otpless_session=; Max-Age=0; ")
    assert {"Path=/", "HttpOnly", "SameSite=lax", "Secure"} <= set(cookie.split("; "))
    assert world.emulator.session(world.session_id(user)).revoked
    assert code(world.get("/orders", world.token(user))) == "session_revoked"


@pytest.mark.parametrize("token", [None, "x", "a.b.c"])
def test_logout_of_nobody_is_no_error(world: World, token: str | None) -> None:
    headers = {"X-Session-Token": token} if token else {}
    assert world.client.post("/auth/logout", headers=headers).status_code == 204


def test_logout_ends_everything_that_was_presented(world: World) -> None:
    one, two = world.sign_in(channel="header", mobile="911"), world.sign_in(channel="header", mobile="922")
    headers = {"X-Session-Token": world.token(one), "Authorization": f"Bearer {world.token(two)}"}
    assert world.client.post("/auth/logout", headers=headers).status_code == 204
    assert [code(world.get("/orders", world.token(user))) for user in (one, two)] == ["session_revoked"] * 2


@pytest.mark.parametrize("last", [False, True])
def test_a_credential_that_cannot_be_told_keeps_no_other_from_being_signed_out(world: World, last: bool) -> None:
    user = world.sign_in(channel="header")
    world.clock.advance(11)  # after which keys are fetched for an unknown one
    world.emulator.add_fault(Fault("status", path="/.well-known/jwks", status=503))
    unclear = world.emulator.issue({"sub": "s-1", "sessionId": "s-1", "exp": world.clock() + 60}, kid="unknown")
    headers = [("X-Session-Token", world.token(user)), ("X-Session-Token", unclear)]
    answer = world.client.post("/auth/logout", headers=headers if last else headers[::-1])
    assert (answer.status_code, code(answer)) == (503, "session_unavailable")
    assert code(world.get("/orders", world.token(user))) == "session_revoked"


def test_otpless_is_told_of_a_logout_later_where_it_cannot_be_told_now(world: World) -> None:
    user = world.sign_in()
    world.emulator.add_fault(Fault("status", path="revoke-session", status=500))
    assert world.client.post("/auth/logout").status_code == 204
    assert code(world.get("/orders", world.token(user))) == "session_revoked"
    assert not world.emulator.session(world.session_id(user)).revoked
    world.emulator.clear_faults()
    world.clock.advance(10)
    world.call(world.sessions.housekeep)
    assert world.emulator.session(world.session_id(user)).revoked


def test_a_late_telling_with_an_expired_token_uses_up_the_refresh_token(make_world: Callable[..., World]) -> None:
    world = make_world(EmulatorSettings(rotation="strict", dead_token_answer="error"))
    user = world.sign_in()
    world.clock.advance(86_401)
    assert world.client.post("/auth/logout").status_code == 204
    assert world.emulator.session(world.session_id(user)).revoked
    world.clock.advance(3600)
    world.call(world.sessions.housekeep)  # it is settled: nothing is told twice
    assert world.emulator.count("get-new-session-token") == 1
    assert world.emulator.count("revoke-session") == 2


def test_an_exchanged_token_that_cannot_be_revoked_now_is_put_off_like_any_other(world: World) -> None:
    user = world.sign_in()
    world.emulator.expire(world.session_id(user))
    world.emulator.add_fault(Fault("status", path="revoke-session", status=503, skip=1, times=1))
    assert world.client.post("/auth/logout").status_code == 204
    world.call(world.sessions.housekeep)
    assert world.emulator.count("revoke-session") == 2
    world.clock.advance(3600)
    world.call(world.sessions.housekeep)
    assert world.emulator.session(world.session_id(user)).revoked
    assert world.emulator.count("get-new-session-token") == 1


def test_an_exchanged_token_that_is_dead_by_then_too_is_not_the_end_of_it(world: World) -> None:
    user = world.sign_in()
    world.emulator.expire(world.session_id(user))
    dead = {"message": "Unauthorized", "errorCode": "7415", "description": "session is not in active state"}
    body = json.dumps(dead).encode()
    world.emulator.add_fault(Fault("status", path="revoke-session", status=401, body=body, skip=1, times=1))
    assert world.client.post("/auth/logout").status_code == 204  # as where a refresh on its way overtakes the exchange
    assert not world.emulator.session(world.session_id(user)).revoked
    world.clock.advance(3600)
    world.call(world.sessions.housekeep)
    assert world.emulator.session(world.session_id(user)).revoked


def test_who_am_i(world: World) -> None:
    user = world.sign_in(name="Asha")
    found = world.get("/auth/session")
    assert found.headers["cache-control"] == "no-store"
    answer = found.json()
    assert answer["id"] == world.session_id(user)
    assert answer["details"]["user_id"] == user["userId"]
    assert answer["details"]["network"]["ip_location"]["city"]["name"]


def test_my_devices_can_be_listed_and_ended_one_by_one(world: World) -> None:
    other = world.sign_in(channel="header")
    world.clock.advance(1)
    here = world.sign_in()
    listed = world.get("/auth/sessions")
    assert listed.headers["cache-control"] == "no-store"
    devices = listed.json()
    assert [(device["id"], device["current"]) for device in devices] == [
        (world.session_id(here), True),
        (world.session_id(other), False),
    ]
    assert all(device["device"] and device["place"] for device in devices)
    assert world.client.delete(f"/auth/sessions/{world.session_id(other)}").status_code == 204
    assert len(world.get("/auth/sessions").json()) == 1
    ended = world.client.delete(f"/auth/sessions/{world.session_id(here)}")
    assert "Max-Age=0" in ended.headers["set-cookie"]
    assert world.get("/auth/sessions").status_code == 401


def test_somebody_elses_session_is_not_found(world: World) -> None:
    victim = world.sign_in(channel="header", mobile="911")
    world.sign_in(mobile="922")
    for session_id in (world.session_id(victim), "unknown"):
        answer = world.client.delete(f"/auth/sessions/{session_id}")
        assert (answer.status_code, code(answer)) == (404, "session_not_found")
    assert not world.emulator.session(world.session_id(victim)).revoked


def test_what_is_no_id_is_not_found_whatever_the_store_could_make_of_it(
    make_world: Callable[..., World], any_store_url: str
) -> None:
    world = make_world(store_url=any_store_url)
    world.sign_in()
    for path in ("%00", "a%00b", "%C3%A9", "%0A", "x" * 5_000):
        answer = world.client.delete(f"/auth/sessions/{path}")
        assert (answer.status_code, code(answer)) == (404, "session_not_found")
    for name in ("", "\0", "a\0b", "\ud800", "é", "x" * 5_000):
        assert world.call(world.sessions.end, name) is False
        assert world.call(world.sessions.list, name) == []
        assert world.call(world.sessions.end_all, name) == 0
        assert world.call(world.sessions.end_others, name, "x") == 0
    assert world.get("/orders").status_code == 200


def test_signing_out_everywhere_ends_all_sessions_of_the_user_and_no_others(world: World) -> None:
    mine = [world.sign_in(channel="header") for _ in range(3)]
    other = world.sign_in(channel="header", mobile="922")
    world.sign_in()
    assert world.client.post("/auth/logout-all").status_code == 204
    assert {code(world.get("/orders", world.token(user))) for user in mine} == {"session_revoked"}
    assert world.get("/orders", world.token(other)).status_code == 200


def test_a_frontend_that_keeps_its_session_ends_it_by_its_id_too(world: World) -> None:
    user = world.emulator.sign_in()
    token, session_id = world.token(user), world.session_id(user)
    assert world.get("/auth/session", token).json()["id"] == session_id
    assert world.client.delete(f"/auth/sessions/{session_id}", headers={"X-Session-Token": token}).status_code == 204
    assert world.get("/auth/session", token).status_code == 401
    assert world.emulator.session(session_id).revoked


def test_who_serves_the_page_from_elsewhere_is_told_what_to_set(world: World, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Origin": "http://localhost:5500"}
    assert world.client.post("/auth/login", json=world.emulator.sign_in(), headers=headers).status_code == 403
    assert "Origin 'http://localhost:5500'. OTPLESS_TRUSTED_ORIGINS" in caplog.text
    caplog.clear()
    assert world.client.post("/auth/logout", headers={"Origin": "x" * 4_000}).status_code == 403
    assert "OTPLESS_TRUSTED_ORIGINS" in caplog.text
    assert len(caplog.text) < 500


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/login"), ("POST", "/logout"), ("POST", "/logout-all"), ("DELETE", "/sessions/x")],
)
def test_another_site_can_make_a_browser_do_nothing(world: World, method: str, path: str) -> None:
    world.sign_in()
    answer = world.client.request(method, f"/auth{path}", headers=CROSS_SITE, json={})
    assert (answer.status_code, code(answer)) == (403, "cross_site_request")
    assert world.get("/orders").status_code == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://shop.example"}, False),
        ({"Origin": "https://shop.example"}, True),
        ({"Origin": "https://shop.example:443"}, True),
        ({"Origin": "https://shop.example:8443"}, False),
        ({"Origin": "https://app.example"}, True),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://[bad"}, False),
        ({"Origin": ""}, False),
    ],
)
def test_the_same_origin_rule(make_world: Callable[..., World], headers: dict[str, str], allowed: bool) -> None:
    world = make_world(trusted_origins="https://app.example")
    user = world.sign_in()
    assert world.client.post("/orders", headers=headers).status_code == (200 if allowed else 403)
    assert world.client.get("/orders", headers=headers).status_code == 200
    token = {"X-Session-Token": world.token(user), **headers}
    world.client.cookies.clear()
    assert world.client.post("/orders", headers=token).status_code == 200


def test_the_same_sign_in_again_does_not_use_up_a_strict_refresh_token(make_world: Callable[..., World]) -> None:
    settings = EmulatorSettings(one_time_token_reusable=True, rotation="strict")
    world = make_world(settings)
    user = world.sign_in()
    world.emulator.add_fault(Fault("status", path="jwks", status=500))
    assert world.client.post("/auth/login", json=user).status_code == 200
    world.clock.advance(86_401)
    assert world.get("/orders").status_code == 200


@pytest.mark.parametrize("path", ["/auth/sessions", "/auth/session"])
def test_what_cannot_be_read_now_is_503(world: World, path: str) -> None:
    world.sign_in()
    world.clock.advance(86_401)
    world.emulator.add_fault(Fault("status", status=500))
    assert world.get(path).status_code == 503


def test_a_scripts_view_of_a_users_sessions(world: World) -> None:
    user = world.sign_in()
    assert world.call(world.sessions.end, "unknown") is False
    assert world.call(world.sessions.end_all, user["userId"]) == 1
    assert world.call(world.sessions.end_all, user["userId"]) == 0


def test_the_same_sign_in_again_is_answered_though_the_first_was_proved_by_exchange(
    make_world: Callable[..., World],
) -> None:
    world = make_world(EmulatorSettings(rotation="strict"), jwks_url="", require_sign_in_token=False)
    user = world.sign_in()
    assert world.client.post("/auth/login", json=user).status_code == 200
    assert world.emulator.count("get-new-session-token") == 1
    world.clock.advance(86_401)
    assert world.get("/orders").status_code == 200


@pytest.mark.parametrize(
    ("of_the_application", "of_the_router"),
    [({"default_response_class": HTMLResponse}, {}), ({}, {"default_response_class": HTMLResponse})],
    ids=["application", "include_router"],
)
def test_an_application_of_pages_gets_json_from_the_router_all_the_same(
    of_the_application: dict[str, Any], of_the_router: dict[str, Any]
) -> None:
    app, usual = FastAPI(**of_the_application), FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth", **of_the_router)
    usual.include_router(create_session_router(), prefix="/auth")
    with use_emulator(app) as otpless:
        client = TestClient(app)
        user = otpless.sign_in(client)
        assert client.get("/auth/session").json()["id"] == user.session_id
        assert [one["id"] for one in client.get("/auth/sessions").json()] == [user.session_id]
    assert app.openapi()["paths"] == usual.openapi()["paths"]
