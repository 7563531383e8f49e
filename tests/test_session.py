"""A session as a value that an application keeps and compares."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import copy, deepcopy
from dataclasses import FrozenInstanceError, asdict

import pytest
from conftest import World

from fastapi_otpless_session import CurrentSession, Session
from fastapi_otpless_session.testing import override_session


def resolved(world: World) -> Session:
    """Return the session of somebody who has signed in."""
    seen: list[Session] = []

    @world.app.get("/seen")
    async def see(session: CurrentSession) -> None:
        seen.append(session)

    world.sign_in(name="Asha")
    assert world.get("/seen").status_code == 200
    return seen[0]


def overridden(world: World) -> Session:
    """Return the session of a test."""
    with override_session(world.app, claims={"roles": ["buyer"]}) as session:
        assert session is not None
        return session


@pytest.fixture(params=[resolved, overridden])
def session(request: pytest.FixtureRequest, world: World) -> Session:
    make: Callable[[World], Session] = request.param
    return make(world)


@pytest.mark.parametrize("copied", [copy, deepcopy])
def test_a_copy_is_equal(session: Session, copied: Callable[[Session], Session]) -> None:
    again = copied(session)
    assert again == session
    assert again.token.get_secret_value() == session.token.get_secret_value()


@pytest.mark.parametrize("taken", [pickle.dumps, asdict, lambda session: deepcopy(session.claims)])
def test_its_token_is_not_taken_along_by_what_copies_all_of_it(
    session: Session, taken: Callable[[Session], object]
) -> None:
    with pytest.raises(TypeError, match="pass on what you need of it"):
        taken(session)


def test_it_can_be_a_key(session: Session) -> None:
    assert {session: "here"}[copy(session)] == "here"


def test_neither_it_nor_its_claims_can_be_changed(session: Session) -> None:
    with pytest.raises(FrozenInstanceError):
        session.user_id = "MO-2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        session.claims["aud"] = "shop"  # type: ignore[index]


def test_its_token_is_not_shown_with_it(session: Session) -> None:
    assert session.token.get_secret_value() not in repr(session)
    assert repr(dict(session.claims)) in repr(session)
