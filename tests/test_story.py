"""The main job, end to end: sign in, stay signed in, sign out."""

from __future__ import annotations

from conftest import World


def test_who_signs_in_stays_signed_in_until_signing_out(world: World) -> None:
    user = world.sign_in()
    assert world.get("/orders").json()["user"] == user["userId"]
    assert world.client.post("/auth/logout").status_code == 204
    answer = world.get("/orders")
    assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "session_missing")


def test_an_expired_token_is_swapped_without_the_user_noticing(world: World) -> None:
    user = world.sign_in()
    world.clock.advance(86_401)
    answer = world.get("/orders")
    assert answer.status_code == 200
    assert answer.json()["refreshed"] is True
    assert "__Host-otpless_session=" in answer.headers["set-cookie"]
    assert answer.headers["cache-control"] == "no-store"
    assert world.get("/orders").json() == {
        "id": world.session_id(user),
        "user": user["userId"],
        "refreshed": False,
        "stale": False,
    }
    assert world.emulator.count("get-new-session-token") == 1


def test_a_token_that_otpless_calls_dead_is_swapped_on_the_header_channel(world: World) -> None:
    user = world.sign_in(channel="header")
    world.emulator.expire(world.session_id(user))
    world.clock.advance(61)
    answer = world.get("/orders", world.token(user))
    assert answer.status_code == 200
    swapped = answer.headers["x-session-token"]
    assert swapped != world.token(user)
    assert "set-cookie" not in answer.headers
    assert answer.headers["access-control-expose-headers"] == "X-Session-Token"
    assert world.get("/orders", swapped).json()["refreshed"] is False


def test_a_dead_refresh_token_means_signing_in_again(world: World) -> None:
    user = world.sign_in()
    world.emulator.revoke(world.session_id(user))
    world.clock.advance(61)
    answer = world.get("/orders")
    assert (answer.status_code, answer.json()["detail"]["code"]) == (401, "session_expired")
    assert "set-cookie" not in answer.headers
    world.sign_in()
    assert world.get("/orders").status_code == 200
