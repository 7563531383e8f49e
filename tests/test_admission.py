"""Who gets in: known tokens, strangers that OTPLESS vouches for, and nobody else."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from conftest import World

from fastapi_otpless_session.emulator import EmulatorSettings, Fault

DAY = 86_400


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def test_a_token_that_the_frontend_manages_is_validated_and_named_by_its_signature(world: World) -> None:
    user = world.emulator.sign_in()
    assert world.get("/orders", world.token(user)).json()["user"] == user["userId"]
    assert world.get("/orders", world.token(user)).status_code == 200
    assert world.emulator.count("validate-session") == 1


def test_without_jwks_otpless_details_name_the_user(make_world: Callable[..., World]) -> None:
    world = make_world(jwks_url="")
    user = world.emulator.sign_in()
    assert world.get("/orders", world.token(user)).json()["user"] == user["userId"]
    assert world.emulator.count("get-session-details") == 1


@pytest.mark.parametrize("jwks_url", [None, ""])
def test_a_signature_is_read_in_one_spelling_only(make_world: Callable[..., World], jwks_url: str | None) -> None:
    """Another would be another digest: a way for a token that was replaced to come in as a stranger's."""
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    token = world.token(world.emulator.sign_in())
    respelled = token[:-1] + chr(ord(token[-1]) + 1)  # of the last letter two bits count
    assert urlsafe_b64decode(respelled.split(".")[2] + "==") == urlsafe_b64decode(token.split(".")[2] + "==")
    assert code(world.get("/orders", respelled)) == "session_invalid"
    assert world.emulator.count("validate-session") == 0
    assert world.get("/orders", token).status_code == 200


@pytest.mark.parametrize("jwks_url", [None, ""])
def test_claims_of_a_token_that_otpless_does_not_vouch_for_name_nobody(
    make_world: Callable[..., World], jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    mine, victim = world.emulator.sign_in(mobile="911"), world.emulator.sign_in(mobile="922")
    claims = {
        "sub": world.session_id(mine),
        "sessionId": world.session_id(mine),
        "userId": victim["userId"],
        "iss": "https://otpless.com",
        "iat": int(world.clock.now),
        "exp": int(world.clock.now) + 60,
    }
    assert world.get("/orders", world.emulator.forge(claims)).status_code == 401


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("answer", ["success_false", "error"])
def test_another_merchants_token_does_not_get_in(
    make_world: Callable[..., World], jwks_url: str | None, answer: Any
) -> None:
    settings = {} if jwks_url is None else {"jwks_url": jwks_url}
    world = make_world(EmulatorSettings(foreign_token_answer=answer), **settings)
    foreign = world.emulator.foreign_sign_in()
    assert world.get("/orders", world.token(foreign)).status_code == 401
    assert world.client.post("/auth/login", json=foreign).status_code == 401


@pytest.mark.parametrize("accepted", [False, True])
def test_refresh_and_id_tokens_do_not_pass_for_session_tokens(make_world: Callable[..., World], accepted: bool) -> None:
    world = make_world(EmulatorSettings(refresh_token_as_session_token=accepted))
    user = world.sign_in(channel="header")
    for token in (user["sessionInfo"]["refreshToken"], user["idToken"]):
        answer = world.get("/orders", token)
        assert (answer.status_code, code(answer)) == (401, "session_invalid")


def test_a_swapped_refresh_token_does_not_pass_either(make_world: Callable[..., World]) -> None:
    world = make_world(EmulatorSettings(rotation="rotating", refresh_token_as_session_token=True))
    user = world.sign_in(channel="header")
    world.clock.advance(DAY + 1)
    world.get("/orders", world.token(user))
    assert world.get("/orders", user["sessionInfo"]["refreshToken"]).status_code == 401


def test_the_cookie_channel_admits_known_tokens_only(world: World) -> None:
    user = world.emulator.sign_in()
    world.client.cookies.set("__Host-otpless_session", world.token(user), domain="shop.example")
    assert code(world.get("/orders")) == "session_invalid"
    assert world.emulator.count("validate-session") == 0


def test_an_expired_token_without_a_row_has_expired_on_every_channel(world: World) -> None:
    user = world.emulator.sign_in()
    world.client.cookies.set("__Host-otpless_session", world.token(user), domain="shop.example")
    world.clock.advance(DAY + 1)
    assert code(world.get("/orders")) == "session_expired"
    assert code(world.get("/orders", world.token(user))) == "session_expired"
    assert world.emulator.count("validate-session") == 0


def test_unknown_tokens_can_be_switched_off(make_world: Callable[..., World]) -> None:
    world = make_world(accept_unknown_tokens=False)
    user = world.emulator.sign_in()
    assert world.get("/orders", world.token(user)).status_code == 401
    assert world.emulator.calls == []


@pytest.mark.parametrize("answer", ["success_false", "error"])
def test_a_dead_token_of_the_frontends_is_a_plain_401_and_remembered(
    make_world: Callable[..., World], answer: Any
) -> None:
    world = make_world(EmulatorSettings(dead_token_answer=answer))
    user = world.emulator.sign_in()
    world.emulator.expire(world.session_id(user))
    assert code(world.get("/orders", world.token(user))) == "session_expired"
    assert code(world.get("/orders", world.token(user))) == "session_expired"
    assert world.emulator.count("validate-session") == 1
    assert world.emulator.count("get-new-session-token") == 0


def test_an_expired_token_of_the_frontends_is_refused_without_asking(world: World) -> None:
    user = world.emulator.sign_in()
    world.clock.advance(DAY + 1)
    assert code(world.get("/orders", world.token(user))) == "session_expired"
    assert world.emulator.count("validate-session") == 0


def test_a_sign_out_of_a_frontend_driven_session_holds(world: World) -> None:
    user = world.emulator.sign_in()
    headers = {"X-Session-Token": world.token(user)}
    world.get("/orders", world.token(user))
    assert world.client.post("/auth/logout", headers=headers).status_code == 204
    assert code(world.get("/orders", world.token(user))) == "session_revoked"
    assert world.emulator.session(world.session_id(user)).revoked


@pytest.mark.parametrize("jwks_url", [None, ""])
def test_a_frontend_driven_session_survives_an_outage_as_stale(
    make_world: Callable[..., World], jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    user = world.emulator.sign_in()
    world.get("/orders", world.token(user))
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(100)
    assert world.get("/orders", world.token(user)).json()["stale"] is True
    world.clock.advance(300)
    assert world.get("/orders", world.token(user)).status_code == 503
    world.emulator.clear_faults()
    world.clock.advance(1)
    assert world.get("/orders", world.token(user)).json()["stale"] is False


def test_a_token_that_cannot_be_checked_is_no_verdict(world: World) -> None:
    user = world.emulator.sign_in()
    world.emulator.add_fault(Fault("status", path="jwks", status=500))
    assert world.get("/orders", world.token(user)).status_code == 503
    world.emulator.clear_faults()
    world.clock.advance(10)
    assert world.get("/orders", world.token(user)).status_code == 200


@pytest.mark.parametrize(
    "token", ["x", "a.b", "a.b.c", "a.b.c.d", "é.é.é", "a.b." + "c" * 8192, "..", "a..c"], ids=lambda t: t[:9]
)
def test_what_is_no_token_is_refused_without_asking_anybody(world: World, token: str) -> None:
    answer = world.client.get("/orders", headers={b"X-Session-Token": token.encode()})
    assert (answer.status_code, code(answer)) == (401, "session_invalid")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert [call.path for call in world.emulator.calls if "session" in call.path] == []


def test_no_credential_is_told_apart_from_a_bad_one(world: World) -> None:
    answer = world.get("/orders")
    assert (answer.status_code, code(answer)) == (401, "session_missing")
    assert answer.headers["www-authenticate"] == 'Bearer realm="otpless"'
    assert answer.headers["vary"] == "Authorization, X-Session-Token, Cookie"


def test_a_bearer_of_another_kind_is_none_of_our_business(world: World) -> None:
    for value in ("Bearer sk_live_1234", "Basic dXNlcjpwYXNz", "Bearer"):
        assert code(world.client.get("/orders", headers={"Authorization": value})) == "session_missing"


def test_the_same_token_on_two_channels_is_one_credential_and_two_tokens_are_a_conflict(world: World) -> None:
    one, two = world.token(world.emulator.sign_in()), world.token(world.emulator.sign_in())
    both = world.client.get("/orders", headers={"X-Session-Token": one, "Authorization": f"Bearer {one}"})
    assert both.status_code == 200
    for path in ("/orders", "/maybe"):
        answer = world.client.get(path, headers={"X-Session-Token": one, "Authorization": f"Bearer {two}"})
        assert (answer.status_code, code(answer)) == (400, "conflicting_credentials")
    twice = world.client.get("/orders", headers=[("X-Session-Token", one), ("X-Session-Token", one)])
    assert twice.status_code == 400
    assert world.client.get("/public", headers=[("X-Session-Token", one), ("X-Session-Token", two)]).status_code == 200


def test_a_cookie_name_that_is_only_alike_is_not_ours_and_one_that_occurs_twice_is_a_conflict(world: World) -> None:
    token = world.token(world.sign_in(channel="header"))
    name = "__Host-otpless_session"
    for cookie in (f"\xa0{name}={token}", f"{name.lower()}={token}", f"{name}", f"{name}="):
        assert code(world.client.get("/orders", headers={b"Cookie": cookie.encode("latin-1")})) == "session_missing"
    assert world.client.get("/orders", headers={"Cookie": f"a=b;\t{name} = {token} ; c=d"}).status_code == 200
    assert world.client.get("/orders", headers={"Cookie": f"{name}={token}; {name}={token}"}).status_code == 400


def test_a_public_page_costs_nothing_and_is_not_touched_by_an_outage(world: World) -> None:
    user = world.sign_in()
    world.emulator.reset_calls()
    world.emulator.add_fault(Fault("status", status=500))
    answer = world.get("/public")
    assert (answer.status_code, answer.json()) == (200, {"hello": "world"})
    assert "vary" not in answer.headers
    assert world.emulator.calls == []
    assert world.token(user)


def test_details_come_from_otpless_and_are_remembered_as_long_as_a_validation(world: World) -> None:
    user = world.sign_in()
    world.emulator.reset_calls()
    answer = world.get("/details").json()
    assert answer["user_id"] == user["userId"]
    assert answer["identities"][0]["identity_value"] == "919999999999"
    assert world.get("/details").json() == answer
    assert world.emulator.count("get-session-details") == 1


def test_details_that_cannot_be_had_are_503(world: World) -> None:
    world.sign_in()
    world.emulator.add_fault(Fault("status", path="get-session-details", status=500))
    assert world.get("/details").status_code == 503


@pytest.mark.parametrize(("stale_if_error", "bridged"), [(300, 200), (0, 503)])
def test_details_go_on_in_an_outage_as_long_as_the_session_does(
    make_world: Callable[..., World], stale_if_error: int, bridged: int
) -> None:
    world = make_world(stale_if_error=stale_if_error)
    world.sign_in()
    before = world.get("/auth/session").json()["details"]
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(100)
    during = world.get("/auth/session")
    assert (during.status_code, world.get("/details").status_code) == (bridged, bridged)
    if bridged == 200:
        assert during.json()["details"] == before
    world.clock.advance(231)
    assert world.get("/details").status_code == 503
    world.emulator.clear_faults()
    world.clock.advance(2)  # the breaker lets a probe through
    assert world.get("/details").status_code == 200


def test_details_of_a_token_that_died_early_are_had_with_its_successor(world: World) -> None:
    user = world.sign_in()
    world.emulator.expire(world.session_id(user))
    answer = world.get("/details")
    assert answer.status_code == 200
    assert "set-cookie" in answer.headers
    world.emulator.revoke(world.session_id(user))
    world.clock.advance(61)
    assert code(world.get("/details")) == "session_expired"


def test_half_an_emoji_in_a_name_breaks_nothing(world: World) -> None:
    user = world.emulator.sign_in()
    claims = jwt.decode(world.token(user), options={"verify_signature": False})
    half = world.emulator.issue({**claims, "name": "half \ud83d"})
    user["sessionInfo"]["sessionToken"] = half
    details = {"sessionId": world.session_id(user), "userId": user["userId"], "identities": [{"name": "\ud83d"}]}
    fault = Fault("status", path="get-session-details", status=200, body=json.dumps(details).encode())
    world.emulator.add_fault(fault)
    assert world.client.post("/auth/login", json=user).json()["name"] == "half ?"
    assert world.get("/auth/session").json()["details"]["identities"][0]["name"] == "?"
    assert world.get("/details").status_code == 200


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("session_id", ["\ud800", "x" * 300, "new\nline", "", 7, None])
def test_an_absurd_session_id_in_a_token_is_refused(
    make_world: Callable[..., World], session_id: Any, jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    token = world.emulator.issue({"sub": session_id, "iss": "https://otpless.com", "exp": int(world.clock.now) + 60})
    assert world.get("/orders", token).status_code == 401


def test_an_unverified_session_id_finds_no_row(make_world: Callable[..., World]) -> None:
    world = make_world(jwks_url="")
    user = world.sign_in(channel="header")
    world.client.post("/auth/logout", headers={"X-Session-Token": world.token(user)})
    forged = world.emulator.forge({"sub": world.session_id(user), "exp": int(world.clock.now) + 60})
    assert code(world.get("/orders", forged)) != "session_revoked"


def test_a_stranger_is_asked_about_behind_the_request_too(world: World) -> None:
    token = world.token(world.emulator.sign_in())
    world.get("/orders", token)
    world.clock.advance(45)
    assert world.get("/orders", token).status_code == 200
    world.get("/public")
    world.clock.advance(29)
    assert world.get("/orders", token).status_code == 200
    assert world.emulator.count("validate-session") == 2
    world.emulator.add_fault(Fault("status", status=500))
    world.clock.advance(10)
    assert world.get("/orders", token).status_code == 200
