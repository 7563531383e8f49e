"""The OpenAPI description of OTPLESS: the emulator answers as it says, and each of its answers is read as it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core import NOT_SET
from schemathesis.core.failures import FailureGroup
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fastapi_otpless_session import emulator as emulator_package
from fastapi_otpless_session import wire
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.errors import CredentialsRefusedError, SignInRefusedError, UpstreamError
from fastapi_otpless_session.session import SessionDetails
from fastapi_otpless_session.tokens import KeySet
from fastapi_otpless_session.wire import Answer, SignInProof, TokenPair, Verdict

pytestmark = pytest.mark.varied

TEXT = (files(emulator_package) / "otpless_openapi.json").read_text("utf-8")
DOCUMENT: dict[str, Any] = json.loads(TEXT)
CREDENTIALS = {"clientId": "demo-client", "clientSecret": "demo-secret"}
VALIDATE, REFRESH, DETAILS, REVOKE, SIGN_IN = (
    wire.VALIDATE_SESSION,
    wire.NEW_SESSION_TOKEN,
    wire.SESSION_DETAILS,
    wire.REVOKE_SESSION,
    wire.VALIDATE_TOKEN,
)
JWKS = "/.well-known/jwks"
CONFIGURATION = "/.well-known/openid-configuration"
FIELDS = {
    VALIDATE: "sessionToken",
    REFRESH: "refreshToken",
    DETAILS: "sessionToken",
    REVOKE: "sessionToken",
    SIGN_IN: "token",
}
CHECKS: list[Any] = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 15


def resolved(node: Any) -> Any:
    """Follow `$ref`, once."""
    if isinstance(node, dict) and "$ref" in node:
        found: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return found
    return node


class Example(NamedTuple):
    """An answer that the description shows."""

    path: str
    status: int
    name: str
    value: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.path.rpartition('/')[2]}-{self.status}-{self.name}"


def _examples() -> Iterator[Example]:
    for path, item in DOCUMENT["paths"].items():
        operation = item.get("post") or item["get"]
        for status, response in operation["responses"].items():
            shown = resolved(response)["content"]["application/json"]["examples"]
            yield from (Example(path, int(status), name, each["value"]) for name, each in shown.items())


SHOWN = list(_examples())


def closed(node: Any) -> Any:
    """The description with no room for fields that it does not name."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    inner = {name: closed(each) for name, each in node.items()}
    return {**inner, "additionalProperties": False} if inner.get("type") == "object" else inner


SCHEMA: BaseSchema = schemathesis.openapi.from_dict(closed(DOCUMENT))


def operation_of(path: str) -> APIOperation[Any, Any, Any, Any]:
    return SCHEMA[path]["POST" if path in FIELDS else "GET"]


# What the emulator answers


class Stage:
    """An emulator behind a socket, whose answers are held against the description."""

    def __init__(self, url: str, emulator: Emulator) -> None:
        self.emulator = emulator
        self._http = httpx.Client(base_url=url)

    def ask(self, path: str, token: str = "", headers: dict[str, str] | None = None) -> httpx.Response:
        """Call, and see that the answer is a documented one."""
        given = CREDENTIALS if headers is None else headers
        body: Any = {FIELDS[path]: token} if path in FIELDS else None
        operation = operation_of(path)
        answer = self._http.request(operation.method, path, json=body, headers=given)
        case = operation.Case(headers=given, body=NOT_SET if body is None else body)
        case.validate_response(answer, checks=CHECKS)
        return answer

    def close(self) -> None:
        self._http.close()


@contextmanager
def on_stage(**quirks: Any) -> Iterator[Stage]:
    emulator = Emulator(EmulatorSettings(**quirks))
    with serve(emulator) as url:
        stage = Stage(url, emulator)
        try:
            yield stage
        finally:
            stage.close()


def tokens(path: str, user: dict[str, Any]) -> str:
    """The token that a call takes, of a sign-in."""
    token = user["token"] if path == SIGN_IN else user["sessionInfo"][FIELDS[path]]
    return str(token)


def alive(stage: Stage, path: str) -> httpx.Response:
    return stage.ask(path, tokens(path, stage.emulator.sign_in()) if path in FIELDS else "")


def dead(stage: Stage, path: str) -> httpx.Response:
    user = stage.emulator.sign_in()
    stage.emulator.revoke(user["sessionInfo"]["sessionId"])
    return stage.ask(path, tokens(path, user))


def foreign(stage: Stage, path: str) -> httpx.Response:
    return stage.ask(path, tokens(path, stage.emulator.foreign_sign_in()))


def unknown(stage: Stage, path: str) -> httpx.Response:
    return stage.ask(path, "unknown")


def empty(stage: Stage, path: str) -> httpx.Response:
    return stage.ask(path, "")


def without_credentials(stage: Stage, path: str) -> httpx.Response:
    return stage.ask(path, "x", headers={})


def failing(status: int) -> Callable[[Stage, str], httpx.Response]:
    def ask(stage: Stage, path: str) -> httpx.Response:
        headers = (("Retry-After", "5"),) if status == 429 else ()
        stage.emulator.add_fault(Fault("status", path=path, times=1, status=status, headers=headers))
        return stage.ask(path, "x")

    return ask


Call = Callable[[Stage, str], httpx.Response]
CALLS: list[Call] = [alive, dead, foreign, unknown, empty, without_credentials]
CALLS += map(failing, (403, 404, 429, 500, 503))
UNSECURED: dict[str, list[Call]] = {JWKS: [alive, *map(failing, (404, 429, 500, 503))], CONFIGURATION: [alive]}
QUIRKS: list[dict[str, Any]] = [
    {},
    {"dead_token_answer": "error", "foreign_token_answer": "error", "verified_at": "iso"},
    {"error_code_type": "int", "dead_token_answer": "error", "details_id_field": "sessionToken"},
    {"rotation": "strict", "validate_token_session_info": True},
    {"one_time_token_refusal": "400/7301"},
    {"one_time_token_refusal": "400/7414"},
    {"one_time_token_refusal": "401/7415"},
]


def shape(value: Any) -> Any:
    """What kind of an answer it is: which fields of which types, which verdict."""
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    if not isinstance(value, dict):
        return type(value).__name__
    verdicts = ("success", "errorCode", "status")
    return {name: each if name in verdicts else shape(each) for name, each in value.items()}


@pytest.fixture(scope="module")
def stages() -> Iterator[list[Stage]]:
    """One for each row of quirks, for all paths: what was asked of one path is nothing to the others."""
    with ExitStack() as stack:
        yield [stack.enter_context(on_stage(**quirks)) for quirks in QUIRKS]


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_the_emulator_gives_each_answer_that_the_description_shows_and_no_other(stages: list[Stage], path: str) -> None:
    answers = [call(stage, path) for stage in stages for call in UNSECURED.get(path, CALLS)]
    given = [(answer.status_code, shape(answer.json())) for answer in answers]
    missing = [str(each) for each in SHOWN if each.path == path and (each.status, shape(each.value)) not in given]
    assert missing == []


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(
    ("quirks", "authentic"),
    [({}, True), (QUIRKS[2], True), ({}, False)],
    ids=["usual", "errors as numbers", "no credentials"],
)
def test_nothing_comes_out_of_the_emulator_but_what_the_description_documents(
    quirks: dict[str, Any], authentic: bool, mode: GenerationMode
) -> None:
    emulator = Emulator(EmulatorSettings(**quirks))
    headers = CREDENTIALS if authentic else {}
    statuses: set[int] = set()

    def try_out(path: str) -> None:
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation_of(path).as_strategy(generation_mode=mode))
        def holds(case: Case[Any]) -> None:
            case.headers.pop("clientId", None)
            case.headers.pop("clientSecret", None)
            answer = case.call(base_url=url, headers=headers)
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=[not_a_server_error, *CHECKS])

        holds()

    with serve(emulator) as url:
        for path in FIELDS:
            try_out(path)
    assert statuses <= {200, 400, 401}
    assert 401 in statuses if not authentic else statuses != {401}


def test_an_answer_with_another_field_or_type_would_be_found() -> None:
    with on_stage() as stage:
        for body in (b'{"success": true, "more": 1}', b'{"success": "true"}', b"{}", b"[]"):
            stage.emulator.add_fault(Fault("garbage", times=1, body=body))
            with pytest.raises(FailureGroup):
                stage.ask(VALIDATE, "x")
        stage.emulator.add_fault(Fault("status", times=1, status=418))
        with pytest.raises(FailureGroup):
            stage.ask(VALIDATE, "x")


# How its answers are read


@dataclass(frozen=True)
class Raises:
    """No verdict, but this."""

    error: type[Exception]
    healthy: bool = True


READS: dict[str, Callable[[Answer], object]] = {
    VALIDATE: wire.read_validation,
    REFRESH: wire.read_new_tokens,
    DETAILS: wire.read_details,
    REVOKE: wire.read_revocation,
    SIGN_IN: wire.read_sign_in,
    JWKS: wire.read_jwks,
}
READ_AS: dict[str, Any] = {
    "200 valid": Verdict.VALID,
    "200 notValid": Verdict.DENIED,
    "200 revoked": Verdict.VALID,
    "200 newTokens": TokenPair,
    "200 details": SessionDetails,
    "200 idAsSessionToken": SessionDetails,
    "200 verifiedAtIso": SessionDetails,
    "200 signedIn": SignInProof,
    "200 verifiedAtMilliseconds": SignInProof,
    "200 withSessionInfo": SignInProof,
    "200 keys": KeySet,
    "400 notPresent": Verdict.UNKNOWN,
    "400 notPresentNumber": Verdict.UNKNOWN,
    "400 badRequest": Raises(UpstreamError),
    "401 notActive": Verdict.INACTIVE,
    "401 notActiveNumber": Verdict.INACTIVE,
    "401 credentialsRefused": Raises(CredentialsRefusedError),
    "400 refused": Raises(SignInRefusedError),
    "400 refusedLikeASession": Raises(SignInRefusedError),
    "401 refused": Raises(SignInRefusedError),
    "401 refusedNumber": Raises(SignInRefusedError),
    "401 refusedLikeASession": Raises(SignInRefusedError),
    "403 forbidden": Raises(CredentialsRefusedError),
    "404 notFound": Raises(CredentialsRefusedError),
    "429 tooMany": Raises(UpstreamError, healthy=False),
    "500 failing": Raises(UpstreamError, healthy=False),
    "503 unavailable": Raises(UpstreamError, healthy=False),
}
READABLE = [each for each in SHOWN if each.path in READS]


def test_each_answer_of_a_call_that_we_make_is_shown_and_has_a_meaning() -> None:
    assert {f"{each.status} {each.name}" for each in READABLE} == set(READ_AS)
    assert {each.path for each in READABLE} == set(READS)
    assert set(DOCUMENT["paths"]) - set(READS) == {CONFIGURATION}


@pytest.mark.parametrize("example", READABLE, ids=str)
def test_each_answer_is_read_as_the_description_says(example: Example) -> None:
    answer = Answer(example.status, {}, json.dumps(example.value).encode())
    wanted = READ_AS[f"{example.status} {example.name}"]
    read = READS[example.path]
    if isinstance(wanted, Raises):
        with pytest.raises((UpstreamError, SignInRefusedError)) as caught:
            read(answer)
        assert type(caught.value) is wanted.error
        assert getattr(caught.value, "healthy", True) is wanted.healthy
    elif isinstance(wanted, type):
        assert isinstance(read(answer), wanted)
    else:
        assert read(answer) is wanted


def test_what_is_read_is_what_the_examples_say() -> None:
    by_name = {str(each): each.value for each in READABLE}

    def read(name: str, path: str) -> Any:
        return READS[path](Answer(200, {}, json.dumps(by_name[name]).encode()))

    session_id = by_name["get-session-details-200-details"]["sessionId"]
    variants = [read(f"get-session-details-200-{each}", DETAILS) for each in ("details", "idAsSessionToken")]
    iso = read("get-session-details-200-verifiedAtIso", DETAILS)
    assert {details.session_id for details in [*variants, iso]} == {session_id}
    assert variants[0].identities[0].verified_at == iso.identities[0].verified_at
    pair = read("get-new-session-token-200-newTokens", REFRESH)
    assert pair.session_id == session_id
    assert read("token-200-withSessionInfo", SIGN_IN).pair == pair
    assert read("token-200-signedIn", SIGN_IN) == SignInProof(by_name["token-200-signedIn"]["userId"], None)


@pytest.mark.parametrize("path", FIELDS)
def test_what_we_send_is_what_the_description_takes(path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]
    url = "https://user-auth.otpless.app" + path
    request = wire.call(url, wire.credentials("id", "secret"), {FIELDS[path]: "t"})
    assert request.url == DOCUMENT["servers"][0]["url"] + path
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {schemes[name]["name"] for name in operation["security"][0]} <= set(request.headers)
    (content_type,) = operation["requestBody"]["content"]
    assert request.headers["Content-Type"] == content_type
    schema = operation["requestBody"]["content"][content_type]["schema"]
    assert set(json.loads(request.body)) == set(schema["properties"]) == set(schema["required"])


def test_every_example_is_valid_by_its_own_schema() -> None:
    for example in SHOWN:
        body = httpx.ByteStream(json.dumps(example.value).encode())
        shown = httpx.Response(example.status, stream=body, headers={"Content-Type": "application/json"})
        with httpx.Client(transport=httpx.MockTransport(lambda _, shown=shown: shown)) as client:
            operation_of(example.path).validate_response(client.get("https://otpless.example"))


def test_the_description_names_no_real_token() -> None:
    signatures = {token.rpartition(".")[2] for token in re.findall(r"eyJ[\w.-]+", TEXT)}
    assert signatures == {"c2lnbmF0dXJl"}  # "signature"
