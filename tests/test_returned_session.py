"""What a route that returns a `Session` sends: what `GET /session` shows of it, and no token."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import World
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

from fastapi_otpless_session import CurrentSession, OptionalSession, Session
from fastapi_otpless_session.testing import override_session

PUBLIC = {"id", "user_id", "name", "email", "issued_at", "expires_at", "refreshed", "stale"}


class Greeting(BaseModel):
    hello: str
    session: Session


@pytest.fixture
def world(world: World) -> World:
    app = world.app

    @app.get("/me")
    async def me(session: CurrentSession) -> Session:
        return session

    @app.get("/me/modelled", response_model=Session)
    async def modelled(session: CurrentSession) -> Any:
        return session

    @app.get("/me/perhaps")
    async def perhaps(session: OptionalSession) -> Session | None:
        return session

    @app.get("/me/greeted")
    async def greeted(session: CurrentSession) -> Greeting:
        return Greeting(hello="world", session=session)

    @app.post("/forgot-depends")
    async def forgot_depends(session: Session) -> str:
        return session.user_id

    return world


def test_it_is_what_the_router_shows_of_it(world: World) -> None:
    user = world.sign_in(name="Asha", email="asha@shop.example")
    shown = world.get("/auth/session").json()
    del shown["details"]
    assert set(shown) == PUBLIC
    for path in ("/me", "/me/modelled", "/me/perhaps"):
        assert world.get(path).json() == shown
    assert world.get("/me/greeted").json() == {"hello": "world", "session": shown}
    assert world.token(user) not in world.get("/me").text
    world.client.cookies.clear()
    assert world.get("/me/perhaps").json() is None


def test_the_schema_says_so(world: World) -> None:
    schema = world.get("/openapi.json").json()
    answer = schema["paths"]["/me"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    name = answer["$ref"].rpartition("/")[2]
    assert set(schema["components"]["schemas"][name]["properties"]) == PUBLIC


def test_without_the_annotation_nothing_is_sent_and_the_error_is_the_one_in_the_questions(world: World) -> None:
    @world.app.get("/me/unsaid")
    async def unsaid(session: CurrentSession):  # type: ignore[no-untyped-def]  # noqa: ANN202 - that is the point
        return session

    world.sign_in()
    with pytest.raises(TypeError, match="a Session is not pickled, nor made a dict of"):
        world.get("/me/unsaid")
    with override_session(world.app), pytest.raises(TypeError, match="a Session is not pickled, nor made a dict of"):
        world.get("/me/unsaid")


def test_in_a_dictionary_of_anything_it_is_an_error_and_in_one_of_sessions_its_public_part(world: World) -> None:
    @world.app.get("/me/anything")
    async def anything(session: CurrentSession) -> dict[str, Any]:
        return {"session": session}

    @world.app.get("/me/named")
    async def named(session: CurrentSession) -> dict[str, Session]:
        return {"session": session}

    world.sign_in()
    with pytest.raises(PydanticSerializationError, match=r"Unable to serialize unknown type: .*FrozenClaims"):
        world.get("/me/anything")
    assert set(world.get("/me/named").json()["session"]) == PUBLIC


def test_nobody_sends_a_session_of_their_own_making_to_a_route_that_forgot_depends(world: World) -> None:
    made_up = {
        **dict.fromkeys(PUBLIC | {"validated_at"}, "2030-01-01T00:00:00Z"),
        "refreshed": False,
        "stale": False,
        "claims": {},
        "token": "x",
    }
    assert world.client.post("/forgot-depends", json=made_up).status_code == 422
