"""OTPLESS's calls as pure functions: which answers are a verdict, and that nothing else is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastapi_otpless_session import wire
from fastapi_otpless_session.emulator import Emulator
from fastapi_otpless_session.errors import CredentialsRefusedError, SignInRefusedError, UpstreamError
from fastapi_otpless_session.session import DeviceInfo, Identity, SessionDetails
from fastapi_otpless_session.wire import Answer, SignInProof, TokenPair, Verdict

CANARY = "canary-secret"
SESSION_TOKEN = "c2Vzc2lvbg.dG9rZW4.c2lnbmF0dXJl"
REFRESH_TOKEN = "cmVmcmVzaA.dG9rZW4.c2lnbmF0dXJl"
PAIR = {"sessionId": "0f" * 16, "sessionToken": SESSION_TOKEN, "refreshToken": REFRESH_TOKEN}
DETAILS: dict[str, Any] = {"sessionId": "0f" * 16, "userId": "MO-1"}
PROOF: dict[str, Any] = {"status": "SUCCESS", "userId": "MO-1", "token": "one-time"}
WRONG_TEXTS: tuple[object, ...] = (None, 7, "", [], {}, "line\nbreak", "a" * 9000)
NOW = datetime(2030, 1, 1, tzinfo=UTC)

Read = Callable[[Answer], object]

ON_SESSIONS: list[Read] = [wire.read_validation, wire.read_new_tokens, wire.read_details, wire.read_revocation]
READS: list[Read] = [*ON_SESSIONS, wire.read_sign_in, wire.read_jwks]
GOOD_BODIES: dict[Read, dict[str, Any]] = {
    wire.read_validation: {"success": True},
    wire.read_revocation: {"success": True},
    wire.read_new_tokens: {"success": True, "data": PAIR},
    wire.read_details: DETAILS,
    wire.read_sign_in: PROOF,
    wire.read_jwks: {"keys": []},
}


def answer(status: int, body: object = None, headers: Mapping[str, str] | None = None) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, headers or {}, raw)


def name_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


on_sessions = pytest.mark.parametrize("read", ON_SESSIONS, ids=name_of)
every_call = pytest.mark.parametrize("read", READS, ids=name_of)


# Requests


def test_a_call_is_a_post_with_our_credentials_in_headers_and_a_json_body() -> None:
    request = wire.call("https://otpless.example/call", wire.credentials("id", CANARY), {"sessionToken": "t"})
    assert (request.method, request.url) == ("POST", "https://otpless.example/call")
    assert request.headers["clientId"] == "id"
    assert request.headers["clientSecret"] == CANARY
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {"sessionToken": "t"}


def test_no_sender_can_change_the_credentials_of_all_calls() -> None:
    request = wire.call("https://otpless.example/call", wire.credentials("id", CANARY), {"sessionToken": "t"})
    with pytest.raises(TypeError, match="does not support item assignment"):
        request.headers["clientId"] = "another"  # type: ignore[index]


def test_the_request_for_the_key_set_carries_no_credentials() -> None:
    request = wire.jwks_call("https://otpless.example/jwks")
    assert (request.method, request.url, request.body) == ("GET", "https://otpless.example/jwks", b"")
    assert {name.lower() for name in request.headers} == {"accept"}


@pytest.mark.parametrize(
    "record",
    [
        wire.call("https://otpless.example/call", wire.credentials("id", CANARY), {"sessionToken": CANARY}),
        Answer(200, {"x": CANARY}, CANARY.encode()),
        TokenPair("s-1", CANARY, CANARY),
        SignInProof("MO-1", TokenPair("s-1", CANARY, CANARY)),
    ],
    ids=lambda record: type(record).__name__,
)
def test_no_repr_shows_a_secret(record: object) -> None:
    assert CANARY not in repr(record)
    assert CANARY not in str(record)


# Verdicts


@on_sessions
@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("7414", Verdict.UNKNOWN),
        (7414, Verdict.UNKNOWN),
        ("7415", Verdict.INACTIVE),
        (7415, Verdict.INACTIVE),
    ],
)
def test_7414_and_7415_are_verdicts_on_a_session(read: Read, status: int, code: object, verdict: Verdict) -> None:
    assert read(answer(status, {"message": "no", "errorCode": code, "description": "no"})) is verdict


@on_sessions
def test_success_false_is_a_verdict_on_a_session(read: Read) -> None:
    assert read(answer(200, {"success": False})) is Verdict.DENIED


@pytest.mark.parametrize("read", [wire.read_validation, wire.read_revocation], ids=name_of)
def test_success_true_is_the_good_verdict(read: Read) -> None:
    assert read(answer(200, {"success": True})) is Verdict.VALID


@every_call
@pytest.mark.parametrize("code", ["7414", "7415"])
@pytest.mark.parametrize("status", [200, 204, 302, 403, 404, 429, 500, 503])
def test_a_known_code_with_another_status_is_no_verdict(read: Read, status: int, code: str) -> None:
    with pytest.raises(UpstreamError):
        read(answer(status, {"errorCode": code}))


@on_sessions
@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
def test_success_false_with_an_error_status_is_no_verdict(read: Read, status: int) -> None:
    with pytest.raises(UpstreamError):
        read(answer(status, {"success": False}))


@on_sessions
@pytest.mark.parametrize("success", ["false", "true", 1, 0, None, [], {}])
def test_success_that_is_no_boolean_is_no_verdict(read: Read, success: object) -> None:
    with pytest.raises(UpstreamError):
        read(answer(200, {"success": success}))


# Our own credentials, and faults


@every_call
@pytest.mark.parametrize(
    ("status", "body"),
    [(401, {}), (401, {"message": "no"}), (401, b"<html>"), (401, b""), (403, {}), (404, {}), (404, b"not found")],
)
def test_a_refusal_without_a_code_concerns_our_own_credentials(read: Read, status: int, body: object) -> None:
    with pytest.raises(CredentialsRefusedError, match="OTPLESS_CLIENT_ID") as caught:
        read(answer(status, body))
    assert caught.value.healthy is True


@on_sessions
@pytest.mark.parametrize("code", ["7301", "7400", "", " 7414", "07414", "7414.0", 7416, 7414.0, None, True, ["7414"]])
def test_a_401_with_any_other_code_concerns_our_own_credentials(read: Read, code: object) -> None:
    with pytest.raises(CredentialsRefusedError):
        read(answer(401, {"errorCode": code}))


@on_sessions
@pytest.mark.parametrize("body", [{}, {"errorCode": "7400"}, b"", b"<html>", {"message": "7414"}])
def test_a_400_without_a_known_code_is_no_verdict_and_no_outage(read: Read, body: object) -> None:
    with pytest.raises(UpstreamError) as caught:
        read(answer(400, body))
    assert not isinstance(caught.value, CredentialsRefusedError)
    assert caught.value.healthy is True


@every_call
@pytest.mark.parametrize("status", [100, 201, 204, 301, 302, 307, 408, 429, 500, 502, 503, 504, 599])
def test_every_other_status_is_a_failure_of_otpless_even_with_a_good_body(read: Read, status: int) -> None:
    with pytest.raises(UpstreamError, match=str(status)) as caught:
        read(answer(status, GOOD_BODIES[read]))
    assert not isinstance(caught.value, CredentialsRefusedError)
    assert caught.value.healthy is False


@every_call
@pytest.mark.parametrize("status", [405, 409, 413, 415, 422])
def test_disliking_one_request_does_not_mean_that_otpless_fails(read: Read, status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        read(answer(status, {}))
    assert caught.value.healthy is True


DEEP = 900 if sys.version_info < (3, 12) else 2000
"""How deep the decoder gets and we don't."""
GARBAGE = {
    "empty": b"",
    "not json": b'{"success": tr\x00\xff',
    "UTF-16": '{"success": true, "userId": "MO-1", "sessionId": "s-1"}'.encode("utf-16"),
    "half a character": b'{"success": true, "userId": "MO-1", "sessionId": "s-1", "plan": "\xed\xa0\x80"}',
    "html": b"<!doctype html>",
    "a list": b"[]",
    "a string": b'"success"',
    "a number": b"1",
    "null": b"null",
    "nested deeply": b'{"success": true, "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested deeply beside an escape": b'{"success": true, "x": "\\u0041", "y": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a key twice": b'{"success": false, "success": true}',
    "a key twice inside": b'{"success": true, "data": {"a": 1, "a": 2}, "x": {"a": 1, "a": 2}}',
    "NaN": b'{"success": true, "x": NaN}',
    "Infinity": b'{"success": true, "x": -Infinity}',
    "a number beyond all": b'{"success": true, "x": 1e999}',
    "a number of many digits": b'{"success": true, "x": ' + b"9" * 10_000 + b"}",
    "more after the end": b'{"success": true} {"success": true}',
    "not UTF-8": b'{"success": true, "x": "\xff"}',
}


@every_call
@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_no_verdict(read: Read, body: bytes) -> None:
    with pytest.raises(UpstreamError, match="makes no sense") as caught:
        read(answer(200, body))
    assert caught.value.healthy is (read is wire.read_details)  # which are one user's, and maybe as odd as they are


@pytest.mark.varied
@every_call
@given(status=st.integers(100, 599), body=st.binary() | st.sampled_from(sorted(GARBAGE.values(), key=len)))
def test_any_answer_is_read_or_is_an_error_of_ours(read: Read, status: int, body: bytes) -> None:
    try:
        read(Answer(status, {}, body))
    except (UpstreamError, SignInRefusedError):
        return
    assert status in {200, 400, 401}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        *("success", "data", "sessionId", "sessionToken", "refreshToken", "userId", "status", "sessionInfo", "keys"),
        *("errorCode", "startedAt", "identities", "deviceInfo", "network", "kid", "kty", "n", "e"),
    ]
)


@pytest.mark.varied
@every_call
@given(status=st.sampled_from([200, 400, 401]), fields=st.dictionaries(FIELDS, JSON), retry_after=st.text())
def test_known_fields_of_any_type_are_read_or_are_an_error_of_ours(
    read: Read, status: int, fields: dict[str, Any], retry_after: str
) -> None:
    body = {**GOOD_BODIES[read], **fields}
    try:
        result = read(Answer(status, {"retry-after": retry_after}, json.dumps(body).encode()))
    except (UpstreamError, SignInRefusedError):
        return
    if isinstance(result, SessionDetails):
        assert json.loads(result.model_dump_json())["session_id"] == result.session_id


# get-new-session-token


def test_a_new_pair_is_read_as_it_came() -> None:
    pair = wire.read_new_tokens(answer(200, {"success": True, "data": PAIR, "more": 1}))
    assert pair == TokenPair(PAIR["sessionId"], SESSION_TOKEN, REFRESH_TOKEN)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "all",
        [],
        {},
        *({name: value for name, value in PAIR.items() if name != missing} for missing in PAIR),
        *({**PAIR, name: wrong} for name in PAIR for wrong in WRONG_TEXTS),
        {**PAIR, "sessionToken": "two.parts"},
        {**PAIR, "refreshToken": "spa ce.dG9rZW4.c2ln"},
        {**PAIR, "refreshToken": REFRESH_TOKEN + "\n"},
    ],
)
def test_a_pair_that_is_not_whole_is_no_verdict(data: object) -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_new_tokens(answer(200, {"success": True, "data": data}))


# get-session-details


@pytest.mark.parametrize("name", ["sessionId", "sessionToken"])
def test_details_name_the_session_by_either_field(name: str) -> None:
    details = wire.read_details(answer(200, {name: "s-1", "userId": "MO-1"}))
    assert isinstance(details, SessionDetails)
    assert (details.session_id, details.user_id) == ("s-1", "MO-1")
    assert "s-1" not in json.dumps(details.model_extra)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_field_that_holds_nothing_is_no_name_where_the_other_is_one(nothing: object) -> None:
    details = wire.read_details(answer(200, {"sessionId": nothing, "sessionToken": "s-1", "userId": "MO-1"}))
    assert isinstance(details, SessionDetails)
    assert details.session_id == "s-1"


@pytest.mark.parametrize("other", [None, "", 7])
def test_details_with_neither_field_are_no_verdict(other: object) -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_details(answer(200, {"sessionId": None, "sessionToken": other, "userId": "MO-1"}))


@pytest.mark.parametrize("wrong", [None, 7, "", [], {}, True, "line\nbreak", "é", "a" * 257])
@pytest.mark.parametrize("name", ["sessionId", "userId"])
def test_details_without_a_session_or_user_are_no_verdict(name: str, wrong: object) -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_details(answer(200, {**DETAILS, name: wrong}))


def details_of(**fields: Any) -> SessionDetails:
    details = wire.read_details(answer(200, {**DETAILS, **fields}))
    assert isinstance(details, SessionDetails)
    return details


def test_details_as_the_emulator_gives_them_are_read_in_full() -> None:
    user = Emulator().sign_in(email="asha@example.com")
    details = details_of(identities=user["identities"], deviceInfo=user["deviceInfo"], network=user["network"])
    assert [identity.identity_value for identity in details.identities] == ["919999999999", "asha@example.com"]
    assert all(identity.verified_at for identity in details.identities)
    assert details.device_info is not None
    assert details.device_info.user_agent == user["deviceInfo"]["userAgent"]
    assert details.network is not None
    assert details.network.ip_location is not None
    assert details.network.ip_location.city is not None
    assert details.network.ip_location.city.name == user["network"]["ipLocation"]["city"]["name"]


def test_fields_that_nobody_documented_are_kept() -> None:
    details = details_of(plan="gold", deviceInfo={"userAgent": "x", "gpu": {"vendor": "y"}})
    assert details.model_extra == {"plan": "gold"}
    assert isinstance(details.device_info, DeviceInfo)
    assert details.device_info.model_extra == {"gpu": {"vendor": "y"}}


@pytest.mark.parametrize(
    "written",
    [1893456000000, 1893456000000.0, "1893456000000", "2030-01-01T00:00:00Z", "2030-01-01T05:30:00+05:30"],
)
def test_times_are_read_in_milliseconds_or_iso_8601_as_aware(written: object) -> None:
    details = details_of(startedAt=written, identities=[{"verifiedAt": written}])
    assert details.started_at == NOW
    assert details.identities[0].verified_at == NOW


def test_a_time_without_a_zone_is_utc() -> None:
    assert details_of(startedAt="2030-01-01T00:00:00").started_at == NOW


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("startedAt", "yesterday"),
        ("startedAt", 1e300),
        ("startedAt", 10**400),
        ("startedAt", "9" * 400),
        ("startedAt", "²"),
        ("startedAt", True),
        ("lastActiveAt", {}),
        ("identities", "none"),
        ("identities", {"identityType": "MOBILE"}),
        ("deviceInfo", "Firefox"),
        ("deviceInfo", []),
        ("network", 7),
    ],
)
def test_an_unreadable_optional_field_is_as_if_missing(name: str, wrong: object) -> None:
    field = {"startedAt": "started_at", "lastActiveAt": "last_active_at", "deviceInfo": "device_info"}.get(name, name)
    details = details_of(**{name: wrong, "other": 1})
    assert getattr(details, field) == SessionDetails.model_fields[field].default
    assert details.model_extra == {"other": 1}


def test_an_unreadable_field_inside_does_not_cost_the_others() -> None:
    details = details_of(
        identities=[{"identityType": 7, "identityValue": "919999999999", "methods": "all", "verified": "maybe"}],
        network={"ip": "192.0.2.1", "ipLocation": {"latitude": "north", "city": {"name": "Pune"}}},
    )
    assert details.identities == (Identity(identity_value="919999999999"),)
    assert details.network is not None
    assert details.network.ip == "192.0.2.1"
    assert details.network.ip_location is not None
    assert (details.network.ip_location.latitude, details.network.ip_location.postal_code) == (None, None)
    assert details.network.ip_location.city is not None
    assert details.network.ip_location.city.name == "Pune"


def test_half_an_emoji_does_not_keep_details_from_being_shown() -> None:
    body = b'{"sessionId": "s-1", "userId": "MO-1", "x": "a\\ud83d", "identities": [{"name": "b\\ud83d"}]}'
    details = wire.read_details(answer(200, body))
    assert isinstance(details, SessionDetails)
    assert details.identities[0].name == "b?"
    assert json.loads(details.model_dump_json())["x"] == "a?"


def test_details_that_nest_too_deep_to_be_shown_are_no_verdict() -> None:
    nested = b'{"sessionId": "s-1", "userId": "MO-1", "x": ' + b"[" * 400 + b"]" * 400 + b"}"
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_details(answer(200, nested))


# validate/token


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("code", ["7301", 7301, "7414", "7415", "7", ""])
def test_any_code_on_a_one_time_token_refuses_the_sign_in_and_nothing_else(status: int, code: object) -> None:
    with pytest.raises(SignInRefusedError):
        wire.read_sign_in(answer(status, {"message": CANARY, "errorCode": code}))


def test_a_status_other_than_success_refuses_the_sign_in() -> None:
    with pytest.raises(SignInRefusedError):
        wire.read_sign_in(answer(200, {**PROOF, "status": "FAILED"}))


@pytest.mark.parametrize(
    "change", [{"status": None}, {"status": 7}, {"userId": None}, {"userId": 7}, {"userId": ""}, {"userId": "a\nb"}]
)
def test_a_sign_in_answer_without_status_or_user_is_no_verdict(change: dict[str, Any]) -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_sign_in(answer(200, {**PROOF, **change}))


def test_a_400_without_any_code_does_not_refuse_a_sign_in() -> None:
    with pytest.raises(UpstreamError):
        wire.read_sign_in(answer(400, {"message": "bad request"}))


@pytest.mark.parametrize("info", [None, PAIR])
def test_a_proof_says_whose_token_it_was_and_brings_the_session_if_there_is_one(info: object) -> None:
    proof = wire.read_sign_in(answer(200, {**PROOF, "sessionInfo": info}))
    assert proof.user_id == "MO-1"
    assert proof.pair == (TokenPair(PAIR["sessionId"], SESSION_TOKEN, REFRESH_TOKEN) if info else None)


def test_session_tokens_that_make_no_sense_are_not_taken_from_a_proof() -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_sign_in(answer(200, {**PROOF, "sessionInfo": {**PAIR, "refreshToken": "no token"}}))


# The key set


@pytest.mark.parametrize("body", [{}, {"keys": None}, {"keys": {}}, {"keys": []}, {"keys": [7, {"kty": "EC"}]}])
def test_an_answer_without_a_usable_key_does_not_replace_the_keys(body: object) -> None:
    with pytest.raises(UpstreamError, match="makes no sense"):
        wire.read_jwks(answer(200, body))


# Retry-After


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("Tue, 01 Jan 2030 00:00:07 GMT", 7.0),
        ("Tue, 01 Jan 2030 05:30:07 +0530", 7.0),
        ("Mon, 31 Dec 2029 00:00:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("5, 5", None),
        ("٥", None),
        ("Tue, 99 Jan 2030 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(written: str, seconds: float | None) -> None:
    assert wire.retry_after({"retry-after": written}, NOW) == seconds


def test_no_retry_after_is_none() -> None:
    assert wire.retry_after({}, NOW) is None


@pytest.mark.varied
@given(st.text() | st.from_regex(r"\w+, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ ([+-]\d+|GMT)"))
def test_any_retry_after_is_read_or_passed_over(written: str) -> None:
    seconds = wire.retry_after({"retry-after": written}, NOW)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_otpless_says_when_to_come_back(status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        wire.read_validation(answer(status, {"message": "later"}, {"retry-after": "7"}))
    assert caught.value.retry_after == 7.0


@every_call
@pytest.mark.parametrize("status", [200, 400, 401, 403, 500])
def test_no_error_repeats_what_otpless_wrote(read: Read, status: int) -> None:
    body = {"message": CANARY, "errorCode": CANARY, "sessionToken": CANARY + "\n", "status": CANARY}
    with pytest.raises((UpstreamError, SignInRefusedError)) as caught:
        read(answer(status, body))
    assert CANARY not in str(caught.value) + repr(caught.value)
