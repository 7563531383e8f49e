"""The example application's OpenAPI says what comes back, and nothing else does: schemathesis, over real sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from asgi import serving
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from example_app.main import create_app
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve

# The application's own thread may draw a random pause while an example is being made; hypothesis takes it for ours.
pytestmark = [pytest.mark.varied, pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")]
EXAMPLES = 20
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    *("POST /auth/login", "POST /auth/logout", "POST /auth/logout-all"),
    *("GET /auth/session", "GET /auth/sessions", "DELETE /auth/sessions/{session_id}"),
    *("POST /api/orders/{product_id}", "POST /demo/expire"),
}


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Emulator]]:
    """The shop's address, and its OTPLESS."""
    for name in [name for name in os.environ if name.startswith("SHOP_")]:
        monkeypatch.delenv(name)
    emulator = Emulator(EmulatorSettings())
    with serve(emulator) as url:
        variables = {
            "OTPLESS_CLIENT_ID": emulator.settings.client_id,
            "OTPLESS_CLIENT_SECRET": emulator.settings.client_secret,
            "OTPLESS_BASE_URL": url,
            "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
            "OTPLESS_STORE_URL": "memory://",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with serving(create_app()) as address:
            yield address, emulator


def operations(address: str) -> list[APIOperation[Any, Any, Any, Any]]:
    config = schemathesis.Config()
    config.projects.default.generation.with_security_parameters = False  # the tests send credentials of their own
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
    results = list(schema.get_all_operations())
    found = [result.ok() for result in results if isinstance(result, Ok)]
    assert len(found) == len(results)  # the schema itself is in order
    return found


def test_the_schema_lists_every_route_that_answers_with_json_and_every_refusal(shop: tuple[str, Emulator]) -> None:
    found = {operation.label: operation.definition.raw["responses"] for operation in operations(shop[0])}
    assert set(found) == OPERATIONS
    assert all({"403", "503"} <= set(responses) for responses in found.values())
    without = {"POST /auth/login", "POST /auth/logout"}  # where it makes no difference what was presented
    assert all({"400", "401"} <= set(found[label]) for label in OPERATIONS - without)
    assert {"400", "401"}.isdisjoint(found["POST /auth/logout"])
    assert "400" not in found["POST /auth/login"]
    assert {"413", "415", "422", "500"} <= set(found["POST /auth/login"])
    assert "404" in found["DELETE /auth/sessions/{session_id}"]
    assert {"201", "404"} <= set(found["POST /api/orders/{product_id}"])
    assert {"204", "404", "502"} <= set(found["POST /demo/expire"])


def test_the_schema_has_clients_send_a_token_to_the_sign_out(shop: tuple[str, Emulator]) -> None:
    schemes = {operation.label: operation.definition.raw.get("security") for operation in operations(shop[0])}
    needed = schemes["GET /auth/session"]
    assert needed
    assert schemes["POST /auth/logout"] == [*needed, {}]


def test_an_order_is_answered_as_the_schema_says(shop: tuple[str, Emulator]) -> None:
    address, emulator = shop
    headers = {"X-Session-Token": emulator.sign_in()["sessionInfo"]["sessionToken"]}
    (buy,) = [each for each in operations(address) if each.label == "POST /api/orders/{product_id}"]
    case = buy.Case(path_parameters={"product_id": "masala"})
    answer = case.call(headers=headers)
    assert answer.json()["name"] == "Masala Chai"
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("signed_in", [False, True])
def test_nothing_comes_out_but_what_the_schema_documents(
    shop: tuple[str, Emulator], signed_in: bool, mode: GenerationMode
) -> None:
    address, emulator = shop
    tried: dict[str, set[int]] = {}

    def try_out(operation: APIOperation[Any, Any, Any, Any]) -> None:
        token = emulator.sign_in()["sessionInfo"]["sessionToken"]
        headers = {"X-Session-Token": token} if signed_in else {}

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def holds(case: Case[Any]) -> None:
            answer = case.call(headers=headers)
            tried.setdefault(operation.label, set()).add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        holds()

    for operation in operations(address):
        with suppress(Unsatisfiable):  # without parameters there is nothing to get wrong
            try_out(operation)
    assert 200 not in tried["POST /auth/login"]
    if mode is GenerationMode.POSITIVE:
        assert set(tried) == OPERATIONS
        assert tried["GET /auth/session"] == {200 if signed_in else 401}
