"""The emulator against the published contract of OTPLESS."""

import argparse
import errno
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from conftest import make_settings
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from processes import HOST, PATIENCE, steady_port, wait_until

from fastapi_otpless_session import OtplessClient, OtplessSessions, OtplessSettings
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, ServerMissingError, cli, serve
from fastapi_otpless_session.emulator.settings import parse_quirk, quirk_names
from fastapi_otpless_session.emulator.state import KEPT_TOKENS

CREDENTIALS = {"clientId": "demo-client", "clientSecret": "demo-secret"}
VALIDATE = "/v1/sessions/validate-session"
REFRESH = "/v1/sessions/get-new-session-token"
DETAILS = "/v1/sessions/get-session-details"
REVOKE = "/v1/sessions/revoke-session"
SIGN_IN = "/auth/v1/validate/token"
JWKS = "/.well-known/jwks"
FIELDS = {
    VALIDATE: "sessionToken",
    REFRESH: "refreshToken",
    DETAILS: "sessionToken",
    REVOKE: "sessionToken",
    SIGN_IN: "token",
}
NOT_PRESENT = (400, "7414")
NOT_ACTIVE = (401, "7415")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Backend:
    """A backend that talks to an emulator in the same process."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.emulator = Emulator(EmulatorSettings(**settings), clock=self.clock)
        transport = httpx.ASGITransport(self.emulator.app)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://otpless.test")

    async def call(self, path: str, token: str) -> httpx.Response:
        return await self.http.post(path, json={FIELDS[path]: token}, headers=CREDENTIALS)

    def tokens(self, **options: Any) -> dict[str, str]:
        info: dict[str, str] = self.emulator.sign_in(**options)["sessionInfo"]
        return info


def verdict(response: httpx.Response) -> tuple[int, Any]:
    return response.status_code, response.json()["errorCode"]


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    made = Backend()
    async with made.http:
        yield made


class TestSignIn:
    def test_the_user_is_the_sdks_whole_object(self) -> None:
        emulator = Emulator(clock=Clock())
        user = emulator.sign_in(email="asha@example.com", name="Asha")
        assert user.keys() == {
            "status",
            "token",
            "userId",
            "timestamp",
            "identities",
            "idToken",
            "network",
            "deviceInfo",
            "sessionInfo",
        }
        assert user["status"] == "SUCCESS"
        assert user["timestamp"] == "2027-01-15T08:00:00Z"
        assert [each["identityType"] for each in user["identities"]] == ["MOBILE", "EMAIL"]
        assert user["sessionInfo"].keys() == {"sessionId", "sessionToken", "refreshToken"}

    def test_a_number_always_has_the_same_user_id(self) -> None:
        emulator = Emulator()
        assert emulator.sign_in()["userId"] == emulator.sign_in()["userId"]
        assert emulator.sign_in()["userId"] != emulator.sign_in(mobile="918888888888")["userId"]
        assert emulator.sign_in("MO-1")["userId"] == "MO-1"

    def test_somebody_needs_a_number_or_an_address(self) -> None:
        with pytest.raises(ValueError, match="mobile number or an e-mail"):
            Emulator().sign_in(mobile=None)

    async def test_the_tokens_verify_with_the_published_keys(self, backend: Backend) -> None:
        tokens = backend.tokens(email="asha@example.com", name="Asha")
        keys = jwt.PyJWKSet.from_dict((await backend.http.get(JWKS)).json())
        claims = jwt.decode(
            tokens["sessionToken"],
            keys["pk0183"],
            ["RS256"],
            issuer="https://otpless.com",
            options={"verify_exp": False, "verify_iat": False},
        )
        assert jwt.get_unverified_header(tokens["sessionToken"])["kid"] == "pk0183"
        assert claims["sub"] == claims["sessionId"] == tokens["sessionId"]
        assert len(claims["sub"]) == 32
        assert claims["userId"].startswith("MO-")
        assert (claims["name"], claims["email"]) == ("Asha", "asha@example.com")
        assert claims["exp"] - claims["iat"] == 86400
        assert "aud" not in claims

    def test_the_id_token_is_for_the_app(self) -> None:
        emulator = Emulator()
        user = emulator.sign_in()
        claims = jwt.decode(user["idToken"], emulator.public_pem(), ["RS256"], audience="DEMOAPP")
        assert claims["sub"] == user["userId"]

    def test_a_foreign_sign_in_has_the_same_issuer_and_key(self) -> None:
        emulator = Emulator()
        foreign = emulator.foreign_sign_in()
        claims = jwt.decode(foreign["sessionInfo"]["sessionToken"], emulator.public_pem(), ["RS256"])
        assert claims["iss"] == "https://otpless.com"
        assert emulator.session(foreign["sessionInfo"]["sessionId"]).foreign

    async def test_lifetimes_can_be_chosen(self, backend: Backend) -> None:
        tokens = backend.tokens(session_lifetime=10, refresh_lifetime=20)
        backend.clock.now += 11
        assert (await backend.call(VALIDATE, tokens["sessionToken"])).json() == {"success": False}
        assert (await backend.call(REFRESH, tokens["refreshToken"])).json()["success"] is True
        backend.clock.now += 10
        assert verdict(await backend.call(REFRESH, tokens["refreshToken"])) == NOT_ACTIVE


class TestCalls:
    async def test_a_live_session_is_valid(self, backend: Backend) -> None:
        response = await backend.call(VALIDATE, backend.tokens()["sessionToken"])
        assert (response.status_code, response.json()) == (200, {"success": True})

    async def test_a_refresh_gives_a_new_session_token(self, backend: Backend) -> None:
        tokens = backend.tokens()
        data = (await backend.call(REFRESH, tokens["refreshToken"])).json()["data"]
        assert data["sessionId"] == tokens["sessionId"]
        assert data["refreshToken"] == tokens["refreshToken"]
        assert data["sessionToken"] != tokens["sessionToken"]
        for token in (tokens["sessionToken"], data["sessionToken"]):
            assert (await backend.call(VALIDATE, token)).json() == {"success": True}

    async def test_the_details_are_complete(self, backend: Backend) -> None:
        tokens = backend.tokens(name="Asha")
        backend.clock.now += 5
        details = (await backend.call(DETAILS, tokens["sessionToken"])).json()
        assert details["sessionId"] == tokens["sessionId"]
        assert details["startedAt"] == 1_800_000_000_000
        assert details["lastActiveAt"] == 1_800_000_005_000
        assert details["identities"] == [
            {
                "identityType": "MOBILE",
                "identityValue": "919999999999",
                "channel": "WHATSAPP",
                "methods": ["WHATSAPP"],
                "name": "Asha",
                "verified": True,
                "verifiedAt": 1_800_000_000_000,
            }
        ]
        assert details["network"]["ipLocation"]["country"] == {"code": "IN", "name": "India"}
        assert details["deviceInfo"]["timezoneOffset"] == -330

    async def test_revoking_kills_both_tokens(self, backend: Backend) -> None:
        tokens = backend.tokens()
        assert (await backend.call(REVOKE, tokens["sessionToken"])).json() == {"success": True}
        assert (await backend.call(VALIDATE, tokens["sessionToken"])).json() == {"success": False}
        for path, token in ((DETAILS, "sessionToken"), (REVOKE, "sessionToken"), (REFRESH, "refreshToken")):
            assert verdict(await backend.call(path, tokens[token])) == NOT_ACTIVE

    async def test_a_one_time_token_gives_the_user_once(self, backend: Backend) -> None:
        user = backend.emulator.sign_in()
        answer = (await backend.call(SIGN_IN, user["token"])).json()
        assert answer == {name: value for name, value in user.items() if name not in {"idToken", "sessionInfo"}}
        assert (await backend.call(SIGN_IN, user["token"])).status_code == 401

    async def test_one_time_tokens_are_refused_when_foreign_old_revoked_or_unknown(self, backend: Backend) -> None:
        foreign = backend.emulator.foreign_sign_in()["token"]
        revoked = backend.emulator.sign_in()
        backend.emulator.revoke(revoked["sessionInfo"]["sessionId"])
        old = backend.emulator.sign_in()["token"]
        backend.clock.now += 300
        for token in (foreign, revoked["token"], old, "unknown"):
            assert (await backend.call(SIGN_IN, token)).status_code == 401

    @pytest.mark.parametrize("path", [REFRESH, DETAILS, REVOKE])
    async def test_an_unknown_token_is_not_present(self, backend: Backend, path: str) -> None:
        response = await backend.call(path, "unknown")
        assert verdict(response) == NOT_PRESENT
        assert response.json()["description"] == "session not present"

    @pytest.mark.parametrize("path", [REFRESH, DETAILS, REVOKE])
    async def test_a_foreign_token_is_not_present(self, backend: Backend, path: str) -> None:
        tokens = backend.emulator.foreign_sign_in()["sessionInfo"]
        assert verdict(await backend.call(path, tokens[FIELDS[path]])) == NOT_PRESENT

    async def test_an_expired_token_is_not_active(self, backend: Backend) -> None:
        tokens = backend.tokens()
        backend.clock.now += 86400
        response = await backend.call(DETAILS, tokens["sessionToken"])
        assert verdict(response) == NOT_ACTIVE
        assert response.json()["description"] == "session is not in active state"

    async def test_tokens_of_another_kind_are_unknown(self, backend: Backend) -> None:
        user = backend.emulator.sign_in()
        for token in (user["idToken"], user["sessionInfo"]["refreshToken"], user["token"]):
            assert verdict(await backend.call(DETAILS, token)) == NOT_PRESENT
        assert verdict(await backend.call(REFRESH, user["sessionInfo"]["sessionToken"])) == NOT_PRESENT

    async def test_the_configuration_names_the_key_set(self, backend: Backend) -> None:
        found = (await backend.http.get("/.well-known/openid-configuration")).json()
        assert found["issuer"] == "https://otpless.com"
        assert found["jwks_uri"] == "http://otpless.test/.well-known/jwks"

    @pytest.mark.parametrize("path", FIELDS)
    @pytest.mark.parametrize("wrong", [{}, {"clientId": "other"}, {"clientSecret": "other"}, {"clientSecret": "é"}])
    async def test_wrong_credentials_say_nothing_about_a_session(
        self, backend: Backend, path: str, wrong: dict[str, str]
    ) -> None:
        names = CREDENTIALS | wrong if wrong else {}
        headers = {name.encode(): value.encode() for name, value in names.items()}
        response = await backend.http.post(path, json={FIELDS[path]: "x"}, headers=headers)
        assert response.status_code == 401
        assert response.json().keys() == {"message"}

    @pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"sessionToken": 7}', '{"sessionToken": ""}'])
    async def test_a_bad_body_is_refused(self, backend: Backend, body: str) -> None:
        headers = {**CREDENTIALS, "Content-Type": "application/json"}
        response = await backend.http.post(VALIDATE, content=body, headers=headers)
        assert response.status_code == 400
        assert response.json()["errorCode"] not in {"7414", "7415"}

    async def test_only_json_is_taken(self, backend: Backend) -> None:
        response = await backend.http.post(VALIDATE, data={"sessionToken": "x"}, headers=CREDENTIALS)
        assert response.status_code == 400
        assert "application/json" in response.json()["message"]

    async def test_other_paths_and_methods_are_json_errors(self, backend: Backend) -> None:
        assert (await backend.http.get(VALIDATE)).status_code == 405
        missing = await backend.http.post("/v1/sessions/other")
        assert (missing.status_code, missing.json()) == (404, {"message": "Not Found"})


class TestRotation:
    async def test_rotating_gives_a_new_refresh_token_and_keeps_the_old_one(self) -> None:
        backend = Backend(rotation="rotating")
        old = backend.tokens()["refreshToken"]
        new = (await backend.call(REFRESH, old)).json()["data"]["refreshToken"]
        assert new != old
        for token in (old, new):
            assert (await backend.call(REFRESH, token)).json()["success"] is True

    async def test_strict_takes_each_refresh_token_once(self) -> None:
        backend = Backend(rotation="strict")
        first = backend.tokens()["refreshToken"]
        second = (await backend.call(REFRESH, first)).json()["data"]["refreshToken"]
        third = (await backend.call(REFRESH, second)).json()["data"]["refreshToken"]
        assert len({first, second, third}) == 3

    async def test_strict_revokes_the_session_when_a_used_token_comes_back(self) -> None:
        backend = Backend(rotation="strict")
        tokens = backend.tokens()
        data = (await backend.call(REFRESH, tokens["refreshToken"])).json()["data"]
        assert verdict(await backend.call(REFRESH, tokens["refreshToken"])) == NOT_ACTIVE
        assert verdict(await backend.call(REFRESH, data["refreshToken"])) == NOT_ACTIVE
        assert verdict(await backend.call(DETAILS, data["sessionToken"])) == NOT_ACTIVE
        assert backend.emulator.session(tokens["sessionId"]).revoked

    async def test_strict_does_not_punish_a_token_that_only_expired(self) -> None:
        backend = Backend(rotation="strict")
        tokens = backend.tokens()
        backend.emulator.kill_refresh(tokens["sessionId"])
        assert verdict(await backend.call(REFRESH, tokens["refreshToken"])) == NOT_ACTIVE
        assert (await backend.call(VALIDATE, tokens["sessionToken"])).json() == {"success": True}


class TestQuirks:
    async def test_the_session_id_of_the_details_can_be_called_session_token(self) -> None:
        backend = Backend(details_id_field="sessionToken")
        tokens = backend.tokens()
        details = (await backend.call(DETAILS, tokens["sessionToken"])).json()
        assert details["sessionToken"] == tokens["sessionId"]
        assert "sessionId" not in details

    async def test_a_dead_or_unknown_token_can_be_an_error(self) -> None:
        backend = Backend(dead_token_answer="error")
        tokens = backend.tokens()
        backend.emulator.expire(tokens["sessionId"])
        assert verdict(await backend.call(VALIDATE, tokens["sessionToken"])) == NOT_ACTIVE
        assert verdict(await backend.call(VALIDATE, "unknown")) == NOT_PRESENT

    async def test_a_dead_or_unknown_token_is_else_no_success(self, backend: Backend) -> None:
        tokens = backend.tokens()
        backend.emulator.expire(tokens["sessionId"])
        for token in (tokens["sessionToken"], "unknown"):
            assert (await backend.call(VALIDATE, token)).json() == {"success": False}

    @pytest.mark.parametrize("answer", ["success_false", "error"])
    async def test_a_foreign_token_is_answered_either_way(self, answer: str) -> None:
        backend = Backend(foreign_token_answer=answer)
        foreign = backend.emulator.foreign_sign_in()["sessionInfo"]["sessionToken"]
        response = await backend.call(VALIDATE, foreign)
        if answer == "error":
            assert verdict(response) == NOT_PRESENT
        else:
            assert response.json() == {"success": False}

    async def test_a_refresh_can_kill_the_old_session_token(self) -> None:
        backend = Backend(refresh_kills_old_token=True)
        tokens = backend.tokens()
        data = (await backend.call(REFRESH, tokens["refreshToken"])).json()["data"]
        assert (await backend.call(VALIDATE, tokens["sessionToken"])).json() == {"success": False}
        assert (await backend.call(VALIDATE, data["sessionToken"])).json() == {"success": True}

    async def test_validating_the_one_time_token_can_give_the_tokens(self) -> None:
        backend = Backend(validate_token_session_info=True)
        user = backend.emulator.sign_in()
        assert (await backend.call(SIGN_IN, user["token"])).json()["sessionInfo"] == user["sessionInfo"]

    async def test_times_of_verification_can_be_iso(self) -> None:
        backend = Backend(verified_at="iso")
        details = (await backend.call(DETAILS, backend.tokens()["sessionToken"])).json()
        assert details["identities"][0]["verifiedAt"] == "2027-01-15T08:00:00Z"

    async def test_a_refresh_token_can_pass_for_a_session_token(self) -> None:
        backend = Backend(refresh_token_as_session_token=True)
        tokens = backend.tokens()
        assert (await backend.call(VALIDATE, tokens["refreshToken"])).json() == {"success": True}
        assert (await backend.call(VALIDATE, "unknown")).json() == {"success": False}

    async def test_a_one_time_token_can_be_reusable(self) -> None:
        backend = Backend(one_time_token_reusable=True)
        token = backend.emulator.sign_in()["token"]
        for _ in range(2):
            assert (await backend.call(SIGN_IN, token)).status_code == 200

    @pytest.mark.parametrize("refusal", ["401/7301", "400/7301", "401/7415", "400/7414"])
    async def test_a_one_time_token_is_refused_in_many_ways(self, refusal: str) -> None:
        backend = Backend(one_time_token_refusal=refusal)
        status, code = verdict(await backend.call(SIGN_IN, "unknown"))
        assert f"{status}/{code}" == refusal

    async def test_error_codes_can_be_numbers(self) -> None:
        backend = Backend(error_code_type="int")
        assert verdict(await backend.call(REVOKE, "unknown")) == (400, 7414)

    async def test_an_expired_session_token_can_revoke(self) -> None:
        backend = Backend(revoke_accepts_expired=True)
        tokens = backend.tokens()
        backend.emulator.expire(tokens["sessionId"])
        assert (await backend.call(REVOKE, tokens["sessionToken"])).json() == {"success": True}
        assert verdict(await backend.call(REVOKE, tokens["sessionToken"])) == NOT_ACTIVE

    async def test_an_expired_session_token_else_cannot_revoke(self, backend: Backend) -> None:
        tokens = backend.tokens()
        backend.emulator.expire(tokens["sessionId"])
        assert verdict(await backend.call(REVOKE, tokens["sessionToken"])) == NOT_ACTIVE
        assert not backend.emulator.session(tokens["sessionId"]).revoked


class TestSettings:
    def test_the_secret_is_not_shown(self) -> None:
        assert "demo-secret" not in repr(EmulatorSettings())

    @pytest.mark.parametrize(
        "wrong",
        [
            *({"rotation": "other"}, {"session_lifetime": 0}, {"refresh_lifetime": float("nan")}, {"client_id": ""}),
            {"kept_sessions": 0},
        ],
    )
    def test_wrong_values_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            EmulatorSettings(**wrong)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("verified_at=iso", ("verified_at", "iso")),
            ("refresh-kills-old-token=true", ("refresh_kills_old_token", True)),
            ("revoke_accepts_expired=False", ("revoke_accepts_expired", False)),
            ("one_time_token_lifetime=1.5", ("one_time_token_lifetime", 1.5)),
        ],
    )
    def test_quirks_are_parsed(self, text: str, expected: tuple[str, Any]) -> None:
        assert parse_quirk(text) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "verified_at",
            "client_id=x",
            "verified_at=never",
            "refresh_kills_old_token=2",
            "one_time_token_lifetime=x",
        ],
    )
    def test_wrong_quirks_are_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"NAME=VALUE|must be"):
            parse_quirk(text)


class TestSteering:
    async def test_an_expired_session_can_be_refreshed(self, backend: Backend) -> None:
        tokens = backend.tokens()
        backend.emulator.expire(tokens["sessionId"])
        assert backend.emulator.session(tokens["sessionId"]).session_tokens == 0
        data = (await backend.call(REFRESH, tokens["refreshToken"])).json()["data"]
        assert (await backend.call(VALIDATE, data["sessionToken"])).json() == {"success": True}

    async def test_a_killed_refresh_token_is_refused(self, backend: Backend) -> None:
        tokens = backend.tokens()
        backend.emulator.kill_refresh(tokens["sessionId"])
        assert verdict(await backend.call(REFRESH, tokens["refreshToken"])) == NOT_ACTIVE
        assert (await backend.call(VALIDATE, tokens["sessionToken"])).json() == {"success": True}

    def test_unknown_sessions_are_a_key_error(self) -> None:
        with pytest.raises(KeyError):
            Emulator().revoke("unknown")

    def test_all_sessions_are_listed(self) -> None:
        emulator = Emulator()
        ids = [emulator.sign_in()["sessionInfo"]["sessionId"] for _ in range(2)]
        assert [record.session_id for record in emulator.sessions()] == ids

    async def test_of_more_sessions_than_are_kept_those_that_ended_go_first_and_then_the_oldest(self) -> None:
        backend = Backend(kept_sessions=3)
        users = [backend.tokens() for _ in range(3)]
        backend.emulator.revoke(users[1]["sessionId"])
        for gone in (1, 0, 2):
            users.append(backend.tokens())
            known = [session.session_id for session in backend.emulator.sessions()]
            assert users[gone]["sessionId"] not in known
            assert len(known) == 3
            for path, kind in ((DETAILS, "sessionToken"), (REFRESH, "refreshToken")):
                assert verdict(await backend.call(path, users[gone][kind])) == NOT_PRESENT
        for user in users[3:]:
            assert (await backend.call(REFRESH, user["refreshToken"])).json()["success"]

    async def test_a_session_whose_tokens_have_all_expired_has_ended(self) -> None:
        backend = Backend(kept_sessions=2)
        alive, expired = backend.tokens(), backend.tokens(session_lifetime=1, refresh_lifetime=2)
        backend.clock.now += 2
        backend.tokens()
        known = [session.session_id for session in backend.emulator.sessions()]
        assert alive["sessionId"] in known
        assert expired["sessionId"] not in known

    @pytest.mark.parametrize("rotation", ["fixed", "rotating", "strict"])
    async def test_of_a_session_that_is_refreshed_again_and_again_the_newest_tokens_are_known(
        self, rotation: str
    ) -> None:
        backend = Backend(rotation=rotation)
        tokens = [backend.tokens()]
        for _ in range(KEPT_TOKENS):
            answer = await backend.call(REFRESH, tokens[-1]["refreshToken"])
            tokens.append(answer.json()["data"])
        assert verdict(await backend.call(DETAILS, tokens[0]["sessionToken"])) == NOT_PRESENT
        assert (await backend.call(DETAILS, tokens[1]["sessionToken"])).status_code == 200
        assert (await backend.call(REFRESH, tokens[-1]["refreshToken"])).status_code == 200
        if rotation != "fixed":
            assert verdict(await backend.call(REFRESH, tokens[0]["refreshToken"])) == NOT_PRESENT

    async def test_calls_are_logged_without_secrets(self, backend: Backend) -> None:
        tokens = backend.tokens()
        await backend.call(VALIDATE, tokens["sessionToken"])
        await backend.call(REFRESH, "unknown")
        first, second = backend.emulator.calls
        assert (first.path, first.status, first.at) == (VALIDATE, 200, backend.clock.now)
        assert first.session_id == tokens["sessionId"]
        assert (second.status, second.session_id) == (400, None)
        assert tokens["sessionToken"] not in repr(backend.emulator.calls)
        assert backend.emulator.count("validate-session") == 1
        backend.emulator.reset_calls()
        assert backend.emulator.calls == []

    async def test_a_rotated_key_signs_while_the_old_one_stays_published(self, backend: Backend) -> None:
        assert backend.emulator.rotate_key() == "pk0184" == backend.emulator.kid
        token = backend.tokens()["sessionToken"]
        assert jwt.get_unverified_header(token)["kid"] == "pk0184"
        keys = (await backend.http.get(JWKS)).json()["keys"]
        assert [key["kid"] for key in keys] == ["pk0183", "pk0184"]
        backend.emulator.retire_keys()
        assert len((await backend.http.get(JWKS)).json()["keys"]) == 1

    def test_any_claims_can_be_signed_and_forged(self) -> None:
        emulator = Emulator()
        issued = emulator.issue({"sub": "x"})
        assert jwt.decode(issued, emulator.public_pem(), ["RS256"]) == {"sub": "x"}
        assert "kid" not in jwt.get_unverified_header(emulator.issue({"sub": "x"}, kid=""))
        own_key = generate_private_key(65537, 2048)
        for token in (emulator.forge({"sub": "x"}), emulator.issue({"sub": "x"}, key=own_key)):
            assert jwt.get_unverified_header(token)["kid"] == emulator.kid
            with pytest.raises(jwt.InvalidSignatureError):
                jwt.decode(token, emulator.public_pem(), ["RS256"])
        assert emulator.private_key().key_size == 2048

    async def test_latency_is_chosen_by_path(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr("fastapi_otpless_session.emulator.gate.asyncio.sleep", sleep)
        backend.emulator.set_latency(None, 2)
        backend.emulator.set_latency("revoke-session", 3)
        for path in (VALIDATE, REVOKE):
            await backend.call(path, "unknown")
        await backend.http.get("/")
        assert slept == [2, 3, 0]
        backend.emulator.set_latency("revoke-session", 0)
        await backend.call(REVOKE, "unknown")
        backend.emulator.set_latency(None, 0)
        await backend.call(REVOKE, "unknown")
        assert slept[3:] == [2, 0]


class TestFaults:
    async def test_a_status_comes_with_its_headers_and_body(self, backend: Backend) -> None:
        headers = (("Retry-After", "7"), ("Content-Type", "text/plain"))
        backend.emulator.add_fault(Fault("status", status=429, body=b"slow", headers=headers))
        response = await backend.call(VALIDATE, "x")
        assert (response.status_code, response.text, response.headers["retry-after"]) == (429, "slow", "7")
        assert response.headers["content-type"] == "text/plain"
        assert backend.emulator.calls[0].status == 429

    async def test_a_status_has_a_body_of_its_own(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("status"))
        response = await backend.http.get(JWKS)
        assert (response.status_code, response.json()) == (503, {"message": "Something went wrong."})

    async def test_a_status_without_content_has_no_body(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("status", status=204))
        assert (await backend.call(VALIDATE, "x")).content == b""

    async def test_faults_are_counted(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("status", status=500, skip=1, times=2))
        statuses = [(await backend.call(SIGN_IN, "x")).status_code for _ in range(5)]
        assert statuses == [401, 500, 500, 401, 401]

    async def test_faults_go_by_path_and_can_be_cleared(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("status", path="revoke-session"))
        assert (await backend.call(REFRESH, "x")).status_code == 400
        assert (await backend.call(REVOKE, "x")).status_code == 503
        backend.emulator.clear_faults()
        assert (await backend.call(REVOKE, "x")).status_code == 400

    async def test_the_control_api_never_fails(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("status", path=""))
        assert (await backend.http.get("/_emulator/calls")).status_code == 200
        assert (await backend.http.post("/_emulator/sdk/initiate")).status_code == 503

    @pytest.mark.parametrize("kind", ["garbage", "html", "deep"])
    async def test_bodies_that_are_no_usable_json(self, backend: Backend, kind: Any) -> None:
        backend.emulator.add_fault(Fault(kind))
        response = await backend.call(VALIDATE, "x")
        assert response.status_code == 200
        with pytest.raises((ValueError, RecursionError)):
            json.loads(response.content)

    async def test_bodies_that_deceive(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("wrong_types", times=1))
        assert (await backend.call(VALIDATE, "x")).json()["success"] == "true"
        backend.emulator.add_fault(Fault("duplicate_keys", times=1))
        assert (await backend.call(VALIDATE, "x")).text.count('"success"') == 2
        backend.emulator.add_fault(Fault("garbage", body=b"own"))
        assert (await backend.call(VALIDATE, "x")).text == "own"

    async def test_a_redirect_goes_elsewhere(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("redirect", location="http://evil.example/"))
        response = await backend.call(VALIDATE, "x")
        assert (response.status_code, response.headers["location"]) == (307, "http://evil.example/")

    async def test_too_much_is_sent_compressed(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("gzip_bomb"))
        async with backend.http.stream("GET", JWKS) as response:
            raw = b"".join([chunk async for chunk in response.aiter_raw()])
        assert len(raw) < 1 << 20
        assert response.headers["content-encoding"] == "gzip"
        unpacked = zlib.decompressobj(wbits=31)
        assert len(unpacked.decompress(raw, 2 << 20)) == 2 << 20
        assert raw[:2] == gzip.compress(b"")[:2]

    async def test_too_much_is_sent_plain(self, backend: Backend) -> None:
        backend.emulator.add_fault(Fault("huge"))
        assert len((await backend.call(VALIDATE, "x")).content) > 50 << 20

    async def test_another_session_answers(self, backend: Backend) -> None:
        user = backend.emulator.sign_in()
        backend.emulator.add_fault(Fault("other_session"))
        tokens = user["sessionInfo"]
        details = (await backend.call(DETAILS, tokens["sessionToken"])).json()
        assert details["userId"] != user["userId"]
        data = (await backend.call(REFRESH, tokens["refreshToken"])).json()["data"]
        assert data["sessionId"] != tokens["sessionId"]
        assert (await backend.call(SIGN_IN, user["token"])).json()["userId"] != user["userId"]
        assert (await backend.http.get(JWKS)).status_code == 200

    @pytest.mark.parametrize("kind", ["reset", "truncated", "act_then_reset"])
    async def test_without_a_connection_a_loss_is_an_exception(self, backend: Backend, kind: Any) -> None:
        backend.emulator.add_fault(Fault(kind))
        with pytest.raises(ConnectionResetError):
            await backend.call(VALIDATE, "x")

    @pytest.mark.parametrize("wrong", [{"kind": "other"}, {"times": 0}, {"skip": -1}, {"interval": -1}, {"status": 99}])
    def test_faults_that_make_no_sense_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"must"):
            Fault(**{"kind": "status", **wrong})


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def url(emulator: Emulator) -> Iterator[str]:
    with serve(emulator) as base_url:
        yield base_url


A_MOMENT = 0.1


class TestServed:
    """On a real socket."""

    def post(self, url: str, path: str, token: str) -> httpx.Response:
        return httpx.post(url + path, json={FIELDS[path]: token}, headers=CREDENTIALS)

    def post_and_leave(self, url: str, path: str, token: str) -> None:
        """Wait a moment for an answer in vain. The emulator may hear of it later: it has a thread of its own."""
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                url + path,
                json={FIELDS[path]: token},
                headers=CREDENTIALS,
                timeout=httpx.Timeout(PATIENCE, read=A_MOMENT),
            )

    def test_it_answers(self, emulator: Emulator, url: str) -> None:
        tokens = emulator.sign_in()["sessionInfo"]
        assert self.post(url, VALIDATE, tokens["sessionToken"]).json() == {"success": True}
        assert httpx.get(url + JWKS).json()["keys"][0]["kid"] == "pk0183"

    @pytest.mark.parametrize("kind", ["hang", "act_then_hang"])
    def test_a_hanging_call_ends_with_the_client(self, emulator: Emulator, url: str, kind: Any) -> None:
        tokens = emulator.sign_in()["sessionInfo"]
        emulator.add_fault(Fault(kind))
        self.post_and_leave(url, REVOKE, tokens["sessionToken"])
        wait_for_a_call(emulator)
        acts = kind == "act_then_hang"
        wait_until(lambda: emulator.session(tokens["sessionId"]).revoked is acts, "for what it does")
        assert [call.status for call in emulator.calls] == [0]

    @pytest.mark.parametrize("kind", ["reset", "act_then_reset"])
    def test_a_reset_connection(self, emulator: Emulator, url: str, kind: Any) -> None:
        tokens = emulator.sign_in()["sessionInfo"]
        emulator.add_fault(Fault(kind))
        with pytest.raises(httpx.NetworkError):
            self.post(url, REVOKE, tokens["sessionToken"])
        assert emulator.session(tokens["sessionId"]).revoked is (kind == "act_then_reset")

    def test_a_truncated_answer(self, emulator: Emulator, url: str) -> None:
        emulator.add_fault(Fault("truncated"))
        with pytest.raises(httpx.RemoteProtocolError):
            self.post(url, VALIDATE, "x")

    def test_a_dripping_answer_is_whole_in_the_end(self, emulator: Emulator, url: str) -> None:
        emulator.add_fault(Fault("drip", interval=0.001))
        with httpx.stream("POST", url + VALIDATE, json={"sessionToken": "x"}, headers=CREDENTIALS) as response:
            chunks = list(response.iter_raw())
        assert len(chunks) > 1
        assert json.loads(b"".join(chunks)) == {"success": False}

    def test_a_drip_ends_with_the_client(self, emulator: Emulator) -> None:
        emulator.add_fault(Fault("drip", interval=60))
        with serve(emulator) as url:
            self.post_and_leave(url, VALIDATE, "x")
            wait_until(lambda: [call.status for call in emulator.calls] == [200], "for the answer's start")
            assert httpx.get(url + "/_emulator/calls").json()[0]["status"] == 200

    def test_it_ends_while_a_call_hangs(self, emulator: Emulator) -> None:
        emulator.add_fault(Fault("hang"))
        with serve(emulator) as url:
            address = url.removeprefix("http://").split(":")
            client = socket.create_connection((address[0], int(address[1])), timeout=PATIENCE)
            client.sendall(b"GET " + JWKS.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_for_a_call(emulator)
        with client:
            client.recv(4096)
        assert not [thread for thread in threading.enumerate() if thread.name == "otpless-emulator"]

    def test_a_taken_port_is_an_error(self, emulator: Emulator, url: str) -> None:
        port = int(url.rsplit(":", 1)[1])
        with pytest.raises(OSError, match="in use"), serve(emulator, port=port):
            pass

    def test_a_server_that_does_not_start_is_an_error(
        self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fastapi_otpless_session.emulator.server._run", lambda *_: None)
        with pytest.raises(RuntimeError, match="did not start"), serve(emulator):
            pass

    def test_without_uvicorn_it_says_what_to_install(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        with pytest.raises(ServerMissingError, match=r"fastapi-otpless-session\[cli\]"), serve(emulator):
            pass

    def test_an_ipv6_address_is_in_brackets(self, emulator: Emulator) -> None:
        with serve(emulator, host="::1") as url:
            assert url.startswith("http://[::1]:")
            assert httpx.get(url + JWKS).status_code == 200

    @pytest.mark.parametrize(("host", "here"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]")])  # noqa: S104 - in a container
    def test_where_it_listens_everywhere_it_is_found_at_loopback(
        self, emulator: Emulator, host: str, here: str
    ) -> None:
        with serve(emulator, host=host) as url:
            assert url.startswith(f"http://{here}:")
            assert httpx.get(url + JWKS).status_code == 200


def wait_for_a_call(emulator: Emulator) -> None:
    wait_until(lambda: bool(emulator.calls), "for the call to arrive")


class TestControl:
    async def command(self, backend: Backend, path: str, /, **body: Any) -> httpx.Response:
        return await backend.http.post("/_emulator/" + path, json=body)

    async def test_signing_in_and_steering_a_session(self, backend: Backend) -> None:
        user = (await self.command(backend, "sign_in", name="Asha", session_lifetime=60)).json()
        session_id = user["sessionInfo"]["sessionId"]
        assert (await backend.call(VALIDATE, user["sessionInfo"]["sessionToken"])).json() == {"success": True}
        for name, shown in (
            ("expire", ("session_tokens", 0)),
            ("kill-refresh", ("refresh_tokens", 0)),
            ("revoke", ("revoked", True)),
        ):
            assert (await self.command(backend, name, sessionId=session_id)).json() == {"success": True}
            session = (await backend.http.get("/_emulator/state")).json()["sessions"][0]
            assert session[shown[0]] == shown[1]

    async def test_the_state_shows_no_tokens(self, backend: Backend) -> None:
        tokens = backend.tokens()
        await backend.call(VALIDATE, tokens["sessionToken"])
        backend.emulator.add_fault(Fault("garbage", body=b"\xff", times=3))
        backend.emulator.set_latency("x", 1)
        state = await backend.http.get("/_emulator/state")
        assert tokens["sessionToken"] not in state.text
        assert state.json()["calls"] == {VALIDATE: 1}
        assert state.json()["faults"][0]["kind"] == "garbage"
        assert state.json()["latency"] == {"x": 1}
        assert state.json()["kid"] == "pk0183"

    async def test_a_foreign_sign_in(self, backend: Backend) -> None:
        user = (await self.command(backend, "sign_in", foreign=True)).json()
        assert backend.emulator.session(user["sessionInfo"]["sessionId"]).foreign

    async def test_faults_are_added_and_cleared(self, backend: Backend) -> None:
        fault = {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}, "body": "slow"}
        assert (await self.command(backend, "faults", **fault)).json() == {"success": True}
        assert (await backend.call(VALIDATE, "x")).text == "slow"
        await backend.http.delete("/_emulator/faults")
        assert (await backend.call(VALIDATE, "x")).json() == {"success": False}

    async def test_calls_are_listed_and_forgotten(self, backend: Backend) -> None:
        await backend.call(VALIDATE, "x")
        (call,) = (await backend.http.get("/_emulator/calls")).json()
        assert call == {"path": VALIDATE, "status": 200, "at": backend.clock.now, "session_id": None}
        await backend.http.delete("/_emulator/calls")
        assert backend.emulator.calls == []

    async def test_keys_and_latency(self, backend: Backend) -> None:
        assert (await self.command(backend, "rotate-key")).json() == {"kid": "pk0184"}
        assert (await self.command(backend, "latency", path="x", seconds=0)).json() == {"success": True}

    @pytest.mark.parametrize(
        ("name", "body"),
        [
            ("expire", {}),
            ("expire", {"sessionId": 7}),
            ("revoke", {"sessionId": "unknown"}),
            ("latency", {}),
            ("latency", {"seconds": "1"}),
            ("latency", {"seconds": True}),
            ("latency", {"seconds": 1, "path": 1}),
            ("latency", {"second": 2}),
            ("latency", {"seconds": 2, "paths": "x"}),
            ("sign_in", {"mobile": 7}),
            ("sign_in", {"mobile": None}),
            ("sign_in", {"other": 1}),
            ("sign_in", {"session_lifetime": -1}),
            ("faults", {}),
            ("faults", {"kind": "other"}),
            ("faults", {"kind": "status", "other": 1}),
            ("faults", {"kind": "status", "status": "x"}),
            ("faults", {"kind": "status", "status": 99}),
            ("faults", {"kind": "status", "path": 1}),
            ("faults", {"kind": "status", "path": "validate-sesion"}),
            ("faults", {"kind": "status", "body": 1}),
            ("faults", {"kind": "status", "headers": {"a": 1}}),
        ],
    )
    async def test_bad_fields_are_refused(self, backend: Backend, name: str, body: dict[str, Any]) -> None:
        response = await self.command(backend, name, **body)
        assert response.status_code == 422
        assert response.json()["message"]

    @pytest.mark.parametrize("name", ["latency", "sign_in", "faults"])
    async def test_an_unknown_field_is_named_with_those_that_are_known(self, backend: Backend, name: str) -> None:
        message = (await self.command(backend, name, second=2)).json()["message"]
        assert message.startswith("Unknown: second. Known: ")

    @pytest.mark.parametrize("path", ["", "expir", "expire/", "openapi.yaml", "<b>"])
    @pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
    async def test_a_path_that_is_none_is_answered_with_those_that_are(
        self, backend: Backend, method: str, path: str
    ) -> None:
        answer = await backend.http.request(method, f"/_emulator/x{path}", json={})
        assert answer.status_code == 404
        known = answer.json()["known"]
        assert {"GET /_emulator/", "GET /_emulator/state", "POST /_emulator/expire"} <= set(known)
        assert {"GET /_emulator/calls", "DELETE /_emulator/calls", "GET /_emulator/openapi.json"} <= set(known)
        for one in known:
            verb, _, there = one.partition(" ")
            assert there.startswith("/_emulator/")
            if there != "/_emulator/events":  # which has no end
                found = await backend.http.request(verb, there, json={} if verb == "POST" else None)
                assert found.status_code not in {404, 405}, one

    @pytest.mark.parametrize("path", ["/v1/sessions/validate", "/_emulator/sdk/other", "/state", "/_emulators/state"])
    async def test_of_the_control_api_only_the_control_api_tells(self, backend: Backend, path: str) -> None:
        answer = await backend.http.post(path, json={})
        assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})

    async def test_half_a_surrogate_pair_is_no_text(self, backend: Backend) -> None:
        response = await backend.http.post("/_emulator/sign_in", content=r'{"name": "\ud800"}')
        assert response.status_code == 422

    @pytest.mark.parametrize("body", ["{", "[]"])
    async def test_bad_json_is_refused(self, backend: Backend, body: str) -> None:
        assert (await backend.http.post("/_emulator/expire", content=body)).status_code == 400

    async def test_pages_of_other_origins_may_call(self, backend: Backend) -> None:
        headers = {
            "Origin": "http://localhost:8000",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        response = await backend.http.options("/_emulator/sdk/initiate", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "*"


class Started:
    """An emulator as its own process, and what it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._process = process
        self.printed: list[str] = []
        while not any(line.startswith("<script") for line in self.printed):
            line = process.stdout.readline()
            assert line, self.printed
            self.printed.append(line.rstrip("\n"))
        self.url = self.printed[0].split(" on ")[1].split()[0]
        self.settings = [line for line in self.printed if re.match("[A-Z_]+=", line)]
        self.tag = self.printed[-1]

    def end(self) -> tuple[str, str, int]:
        """Press Ctrl-C; return what it printed then, its errors and its status."""
        os.kill(self._process.pid, signal.SIGINT)
        out, err = self._process.communicate(timeout=PATIENCE)
        return out, err, self._process.returncode


@contextmanager
def started(*arguments: str) -> Iterator[Started]:
    command = [sys.executable, "-W", "error", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:  # noqa: S603 - our own code
        try:
            yield Started(process)
        finally:
            process.kill()


def parsed(*args: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser("emulator")
    cli.add_arguments(parser)
    return parser.parse_args(args)


class TestCommandLine:
    def test_the_options_become_settings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[EmulatorSettings, str, int]] = []

        def run(emulator: Emulator, host: str, port: int) -> None:
            seen.append((emulator.settings, host, port))

        monkeypatch.setattr(cli, "run", run)
        args = parsed("--port", "0", "--rotation", "strict", "--session-lifetime", "9", "--quirk", "verified_at=iso")
        assert cli.main(args) == 0
        expected = EmulatorSettings(rotation="strict", session_lifetime=9, verified_at="iso")
        assert seen == [(expected, "127.0.0.1", 0)]

    @pytest.mark.parametrize(
        "args",
        [
            ("--port", "x"),
            ("--port", "65536"),
            ("--client-id", ""),
            ("--session-lifetime", "0"),
            ("--refresh-lifetime", "x"),
            ("--rotation", "other"),
            ("--quirk", "other=1"),
            ("--quirk", "verified_at=never"),
        ],
    )
    def test_wrong_options_are_explained(self, args: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            parsed(*args)
        assert stopped.value.code == 2
        assert f"argument {args[0]}" in capsys.readouterr().err

    def test_the_help_names_the_quirks(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parsed("--help")
        printed = "".join(capsys.readouterr().out.split())
        assert all(name in printed for name in quirk_names())

    def test_a_taken_port_is_said_in_one_line_with_another(self, capsys: pytest.CaptureFixture[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            assert cli.main(parsed("--port", str(port))) == 1
        assert capsys.readouterr() == ("", f"error: port {port} is taken. Choose another: --port {port + 1}\n")

    def test_after_the_last_port_any_is_proposed(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(*_: object) -> None:
            raise OSError(errno.EADDRINUSE, "Address already in use")

        monkeypatch.setattr(cli, "run", run)
        assert cli.main(parsed("--port", "65535")) == 1
        assert capsys.readouterr().err == "error: port 65535 is taken. Choose another: --port 0\n"

    def test_an_address_that_is_not_this_machine_s_is_reported(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(parsed("--host", "192.0.2.1", "--port", "0")) == 1
        assert "192.0.2.1" in capsys.readouterr().err

    def test_it_runs_until_control_c(self) -> None:
        source = "from fastapi_otpless_session.emulator import Emulator, run; run(Emulator(), port=0); print('end')"
        with started("-c", source) as emulator:
            assert httpx.get(emulator.url + JWKS).status_code == 200
            assert emulator.end() == ("end\n", "", 0)

    def test_it_prints_all_that_an_application_needs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = ("--client-id", "mine", "--client-secret", "my secret #1", "--app-id", 'X"><b>')
        with started("-m", "fastapi_otpless_session", "emulator", "--port", "0", *options) as emulator:
            (tmp_path / ".env").write_text("\n".join(emulator.settings), "utf-8")
            for name in [name for name in os.environ if name.startswith("OTPLESS_")]:
                monkeypatch.delenv(name)
            monkeypatch.chdir(tmp_path)
            found = OtplessSettings()
            assert (found.base_url, found.jwks_url) == (emulator.url, emulator.url + JWKS)
            assert found.cookie == "otpless_session"  # as http needs it
            credentials = {"clientId": found.client_id, "clientSecret": found.client_secret.get_secret_value()}
            answer = httpx.post(found.base_url + VALIDATE, json={"sessionToken": "x"}, headers=credentials)
            assert (answer.status_code, answer.json()) == (200, {"success": False})
            source = f'src="{emulator.url}/v4/auth.js"'
            assert emulator.tag == (
                tag := f'<script id="otpless-sdk" {source} data-appid="X&quot;&gt;&lt;b&gt;"></script>'
            )
            told = httpx.get(f"{emulator.url}/_emulator/settings").json()
            assert told == {"settings": "\n".join(emulator.settings), "script": tag}
            assert emulator.end() == ("", "", 0)

    async def test_an_application_that_outlives_it_signs_people_in_at_the_next_one_too(self) -> None:
        port, clock = str(steady_port()), Clock()
        url = f"http://{HOST}:{port}"
        settings = make_settings(base_url=url, jwks_url=url + JWKS)
        async with (
            OtplessClient(settings, monotonic=clock) as client,
            OtplessSessions(settings, client=client) as sessions,
            httpx.AsyncClient(base_url=url) as http,
        ):
            for _ in range(2):
                with started("-m", "fastapi_otpless_session", "emulator", "--port", port):
                    user = (await http.post("/_emulator/sign_in", json={"name": "Asha"})).json()
                    assert (await sessions.sign_in(user)).name == "Asha"
                clock.now += 11  # a key set is fetched once in ten seconds at most
