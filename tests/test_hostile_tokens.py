"""Tokens made to get in: forged, borrowed, absurd. Asked of a real application; the answer is a 401, never a 500."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from asgi import Exchange, exchange, http_scope
from conftest import World
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm, RSAPSSAlgorithm

from fastapi_otpless_session.emulator import EmulatorSettings, Fault

pytestmark = pytest.mark.varied

ISSUER = "https://otpless.com"
JWKS = "/.well-known/jwks"
HS = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}

DAY = 86_400


def code(answer: Any) -> str:
    return str(answer.json()["detail"]["code"])


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


class Forge:
    """Makes tokens that claim to be of somebody whose session OTPLESS does call valid."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.user = world.emulator.sign_in()

    @property
    def header(self) -> dict[str, Any]:
        return {"alg": "RS256", "kid": self._world.emulator.kid, "typ": "JWT"}

    @property
    def claims(self) -> dict[str, Any]:
        session_id, now = self._world.session_id(self.user), int(self._world.clock.now)
        times = {"iat": now, "exp": now + 3600}
        return {"sub": session_id, "sessionId": session_id, "userId": self.user["userId"], "iss": ISSUER, **times}

    def text(self, header: object, claims: object) -> bytes:
        return f"{part(header)}.{part(claims)}".encode()

    def signed(self, header: object = None, claims: object = None) -> str:
        """With OTPLESS's own key, whatever the header says."""
        text = self.text(header or self.header, self.claims if claims is None else claims)
        signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text, self._world.emulator.private_key())
        return f"{text.decode()}.{part(signature)}"


@pytest.fixture
def believing(make_world: Callable[..., World]) -> World:
    """An application whose OTPLESS calls every token valid: what is refused here, our own checks refuse."""
    world = make_world()
    world.emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": true}'))
    return world


@pytest.fixture
def forge(believing: World) -> Forge:
    return Forge(believing)


def test_the_forge_makes_tokens_that_get_in_when_nothing_is_wrong_with_them(believing: World, forge: Forge) -> None:
    answer = believing.get("/orders", forge.signed())
    assert (answer.status_code, answer.json()["user"]) == (200, forge.user["userId"])


# Algorithms


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "NONE", "", None, [], {}, 7, True, ["RS256"], "rs256"])
@pytest.mark.parametrize("signature", [b"x", b""])
def test_none_or_anything_but_rs256_is_refused_even_with_a_good_signature(
    believing: World, forge: Forge, name: object, signature: bytes
) -> None:
    header = {**forge.header, "alg": name}
    tokens = [forge.signed(header), f"{forge.text(header, forge.claims).decode()}.{part(signature)}"]
    assert [believing.get("/orders", token).status_code for token in tokens] == [401, 401]
    assert believing.emulator.count("validate-session") == 0


@pytest.mark.parametrize("algorithm", list(HS))
@pytest.mark.parametrize("shape", ["pem", "pem without its last line end", "der", "modulus"])
def test_the_public_key_is_no_shared_secret(believing: World, forge: Forge, algorithm: str, shape: str) -> None:
    public = believing.emulator.private_key().public_key()
    pem = believing.emulator.public_pem()
    modulus = public.public_numbers().n
    secrets = {
        "pem": pem,
        "pem without its last line end": pem.rstrip(),
        "der": base64.b64decode(b"".join(pem.splitlines()[1:-1])),
        "modulus": modulus.to_bytes((modulus.bit_length() + 7) // 8),
    }
    text = forge.text({**forge.header, "alg": algorithm}, forge.claims)
    token = f"{text.decode()}.{part(hmac.digest(secrets[shape], text, HS[algorithm]))}"
    assert code(believing.get("/orders", token)) == "session_invalid"
    assert believing.emulator.count("validate-session") == 0


def test_other_algorithms_of_a_good_key_are_refused(believing: World, forge: Forge) -> None:
    key = believing.emulator.private_key()
    signers: dict[str, Callable[[bytes], bytes]] = {
        "RS384": lambda text: RSAAlgorithm(RSAAlgorithm.SHA384).sign(text, key),
        "RS512": lambda text: RSAAlgorithm(RSAAlgorithm.SHA512).sign(text, key),
        "PS256": lambda text: RSAPSSAlgorithm(RSAPSSAlgorithm.SHA256).sign(text, key),
        "ES256": lambda text: ECAlgorithm(ECAlgorithm.SHA256).sign(text, ec.generate_private_key(ec.SECP256R1())),
    }
    for name, sign in signers.items():
        for header in ({**forge.header, "alg": name}, forge.header):
            text = forge.text(header, forge.claims)
            assert code(believing.get("/orders", f"{text.decode()}.{part(sign(text))}")) == "session_invalid"
    assert believing.emulator.count("validate-session") == 0


# Keys


@pytest.mark.parametrize(
    "more",
    [
        {"jku": "http://otpless.localhost/evil/jwks"},
        {"x5u": "http://otpless.localhost/evil/cert"},
        {"x5c": ["MII"]},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"b64": False, "crit": ["b64"]},
    ],
    ids=json.dumps,
)
def test_a_header_that_brings_a_key_or_rules_of_its_own_is_refused_and_never_followed(
    believing: World, forge: Forge, more: dict[str, Any]
) -> None:
    assert code(believing.get("/orders", forge.signed({**forge.header, **more}))) == "session_invalid"
    assert [call.path for call in believing.emulator.calls if call.path != JWKS] == []


def test_a_key_that_the_token_itself_brings_verifies_nothing(believing: World, forge: Forge) -> None:
    own = generate_private_key(65537, 2048)
    jwk = RSAAlgorithm.to_jwk(own.public_key(), as_dict=True)
    for header in ({**forge.header, "jwk": jwk}, {**forge.header, "kid": "own", "jwk": jwk}, forge.header):
        text = forge.text(header, forge.claims)
        token = f"{text.decode()}.{part(RSAAlgorithm(RSAAlgorithm.SHA256).sign(text, own))}"
        assert code(believing.get("/orders", token)) == "session_invalid"


@pytest.mark.parametrize(
    "kid", [None, 7, True, [], {}, "", "../../dev/null", "' OR 1=1 --", "\0", "\ud800", "k" * 4000]
)
def test_an_odd_kid_is_refused(believing: World, forge: Forge, kid: object) -> None:
    assert code(believing.get("/orders", forge.signed({**forge.header, "kid": kid}))) == "session_invalid"
    assert believing.emulator.count("validate-session") == 0


@pytest.mark.parametrize("header", [[], "RS256", 7, None, b"", b"\xff", b"{", b"[" * 3000, b'{"alg":' + b"9" * 4000])
def test_a_header_that_is_no_object_is_refused(believing: World, forge: Forge, header: object) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    text = f"{part(raw) or 'AA'}.{part(forge.claims)}.AA"
    assert code(believing.get("/orders", text)) == "session_invalid"


# Claims


EXPIRIES = [
    *('"1900003600"', '"never"', "NaN", "Infinity", "-Infinity", "1e30", "1e308", "1e999", "1" + "0" * 30, "9" * 4000),
    *("true", "false", "null", "[]", "[1900003600]", "{}", "-1", "0", "-0.0", "253402300800", "1e-400"),
]


def with_expiry(claims: dict[str, Any], written: str | None) -> bytes:
    rest = json.dumps({name: value for name, value in claims.items() if name != "exp"})
    return rest.encode() if written is None else f'{rest[:-1]}, "exp": {written}}}'.encode()


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("written", [None, *EXPIRIES], ids=lambda written: str(written)[:12])
def test_a_missing_or_absurd_expiry_is_a_401_on_a_token_that_is_otherwise_good(
    make_world: Callable[..., World], written: str | None, jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    world.emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": true}'))
    forge = Forge(world)
    token = forge.signed(claims=with_expiry(forge.claims, written))
    assert code(world.get("/orders", token)) == "session_invalid"
    assert code(world.get("/auth/session", token)) == "session_invalid"
    assert world.emulator.count("validate-session") == 0


ODD: list[Any] = [True, [], {}, "", -1, 10**30, 1.5, "\ud800", "x" * 2000, [[[]]], {"a": {}}]
NAMES = ["exp", "iat", "nbf", "sub", "iss", "aud", "jti", "userId", "sessionId", "name", "email"]


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_claim_is_a_500(believing: World, forge: Forge, name: str) -> None:
    for value in ODD:
        token = forge.signed(claims={**forge.claims, name: value})
        for path in ("/orders", "/maybe", "/auth/session"):
            assert believing.get(path, token).status_code in {200, 401}, value


@pytest.mark.parametrize(
    "issuer", ["https://otpless.example", ISSUER + "/", ISSUER.upper(), "http://otpless.com", "", None, [ISSUER], {}]
)
def test_another_issuer_does_not_get_in(believing: World, forge: Forge, issuer: object) -> None:
    for claims in ({**forge.claims, "iss": issuer}, {n: v for n, v in forge.claims.items() if n != "iss"}):
        assert code(believing.get("/orders", forge.signed(claims=claims))) == "session_invalid"
    assert believing.emulator.count("validate-session") == 0


@pytest.mark.parametrize("payload", [[], "text", 7, None, b"{", b"\xff", b"[" * 3000 + b"]" * 3000, b'{"exp":' * 900])
def test_a_payload_that_is_no_object_is_a_401(believing: World, forge: Forge, payload: object) -> None:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    assert code(believing.get("/orders", forge.signed(claims=raw))) == "session_invalid"


@pytest.mark.parametrize("jwks_url", [None, ""])
def test_without_keys_too_a_wrong_algorithm_never_reaches_otpless(
    make_world: Callable[..., World], jwks_url: str | None
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    forge = Forge(world)
    for header in ({**forge.header, "alg": "none"}, {**forge.header, "alg": "HS256"}, {**forge.header, "jku": "x"}):
        assert code(world.get("/orders", forge.signed(header))) == "session_invalid"
    assert world.emulator.calls == []


# The key set


def test_however_many_unknown_keys_arrive_the_key_set_is_fetched_every_ten_seconds_at_most(world: World) -> None:
    forge = Forge(world)
    for second in range(30):
        for number in range(5):
            token = forge.signed({**forge.header, "kid": f"made-up-{second}-{number}"})
            assert code(world.get("/orders", token)) == "session_invalid"
        world.clock.advance(1)
    assert world.emulator.count(JWKS) == 3
    assert world.emulator.count("validate-session") == 0


def test_an_outage_of_the_key_set_leaves_known_keys_and_known_sessions_working(world: World) -> None:
    signed_in, forge = world.sign_in(channel="header"), Forge(world)
    assert world.get("/orders", world.token(world.emulator.sign_in())).status_code == 200
    world.emulator.add_fault(Fault("status", path=JWKS, status=500))
    world.clock.advance(7200)
    assert world.get("/orders", world.token(world.emulator.sign_in())).status_code == 200
    assert world.get("/orders", world.token(signed_in)).status_code == 200
    made_up = forge.signed({**forge.header, "kid": "made-up"})
    assert code(world.get("/orders", made_up)) == "session_unavailable"  # no verdict: it may be a new key


def test_a_rotated_key_is_picked_up_and_touches_nobody_who_signed_in_here(world: World) -> None:
    known = world.sign_in(channel="header")
    world.emulator.rotate_key()
    world.emulator.retire_keys()
    world.clock.advance(10)
    assert world.get("/orders", world.token(world.emulator.sign_in())).status_code == 200
    assert world.get("/orders", world.token(known)).status_code == 200
    assert world.emulator.count(JWKS) == 2


def test_a_retired_keys_signature_is_good_for_an_hour_at_most(world: World) -> None:
    before, after = world.emulator.sign_in(), world.emulator.sign_in()
    assert world.get("/orders", world.token(before)).status_code == 200
    world.emulator.rotate_key()
    world.emulator.retire_keys()
    world.clock.advance(3600)
    assert code(world.get("/orders", world.token(after))) == "session_invalid"


# Tokens of another kind


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("signed_in", [False, True])
@pytest.mark.parametrize("kind", ["refresh", "id", "one-time"])
def test_a_token_of_another_kind_does_not_pass_for_a_session_token(
    make_world: Callable[..., World], kind: str, jwks_url: str | None, signed_in: bool
) -> None:
    world = make_world(**({} if jwks_url is None else {"jwks_url": jwks_url}))
    user = world.sign_in(channel="header") if signed_in else world.emulator.sign_in()
    tokens = {"refresh": user["sessionInfo"]["refreshToken"], "id": user["idToken"], "one-time": user["token"]}
    for path in ("/orders", "/fresh", "/details", "/auth/session"):
        assert world.get(path, tokens[kind]).status_code == 401
    cookie = (b"cookie", f"__Host-otpless_session={tokens[kind]}".encode())
    answer: Exchange = world.call(exchange, world.app, http_scope("/orders", headers=[cookie]))
    assert answer.status == 401


@pytest.mark.parametrize("kind", ["refresh", "id"])
def test_signed_in_here_not_even_an_otpless_that_errs_lets_another_kind_in(
    make_world: Callable[..., World], kind: str
) -> None:
    world = make_world(EmulatorSettings(refresh_token_as_session_token=True))
    world.emulator.add_fault(Fault("status", path="validate-session", status=200, body=b'{"success": true}'))
    user = world.sign_in(channel="header")
    token = {"refresh": user["sessionInfo"]["refreshToken"], "id": user["idToken"]}[kind]
    assert code(world.get("/orders", token)) == "session_invalid"
    assert world.client.post("/auth/logout", headers={"X-Session-Token": token}).status_code == 204
    assert world.get("/orders", world.token(user)).status_code == 200  # and it signs nobody out


@pytest.mark.parametrize("audience", ["DEMOAPP", ["DEMOAPP"], "", None])
def test_whatever_has_an_audience_is_an_id_token_even_if_otpless_calls_it_valid(
    believing: World, forge: Forge, audience: object
) -> None:
    assert code(believing.get("/orders", forge.signed(claims={**forge.claims, "aud": audience}))) == "session_invalid"
    assert believing.emulator.count("validate-session") == 0


@pytest.mark.parametrize("jwks_url", [None, ""])
@pytest.mark.parametrize("answer", ["success_false", "error"])
def test_another_merchants_session_token_gets_in_nowhere_though_its_signature_is_good(
    make_world: Callable[..., World], answer: Any, jwks_url: str | None
) -> None:
    world = make_world(
        EmulatorSettings(foreign_token_answer=answer), **({} if jwks_url is None else {"jwks_url": jwks_url})
    )
    foreign = world.emulator.foreign_sign_in()
    token = world.token(foreign)
    cookie = {"Cookie": f"__Host-otpless_session={token}"}
    for headers in ({"X-Session-Token": token}, {"Authorization": f"Bearer {token}"}, cookie):
        assert world.client.get("/orders", headers=headers).status_code == 401
    assert world.client.post("/auth/login", json=foreign).status_code == 401
    mine = world.emulator.sign_in()
    mine["sessionInfo"] = foreign["sessionInfo"]
    assert code(world.client.post("/auth/login", json=mine)) == "sign_in_refused"


# What OTPLESS fails on


def test_details_of_a_stranger_that_fail_hold_back_no_call_for_anybody_known(world: World) -> None:
    known, stranger = world.sign_in(channel="header"), world.token(world.emulator.sign_in(mobile="922"))
    world.emulator.add_fault(Fault("status", path="get-session-details", status=500))
    assert [world.get("/auth/session", stranger).status_code for _ in range(6)] == [503] * 6
    assert world.get("/fresh", world.token(known)).status_code == 200


def test_sign_outs_of_strangers_that_fail_hold_back_no_call_for_anybody_known(world: World) -> None:
    known = world.sign_in(channel="header")
    world.emulator.add_fault(Fault("status", path="revoke-session", status=500))
    for number in range(6):
        foreign = world.token(world.emulator.foreign_sign_in(mobile=f"92{number}"))
        assert world.client.post("/auth/logout", headers={"X-Session-Token": foreign}).status_code == 204
    assert world.get("/fresh", world.token(known)).status_code == 200


def test_whoever_still_has_the_token_before_is_known_all_the_same(world: World) -> None:
    user = world.sign_in(channel="header")
    world.clock.advance(DAY + 1)
    assert [world.get("/orders", world.token(user)).json()["refreshed"] for _ in range(2)] == [True, True]
    world.emulator.add_fault(Fault("status", path="validate-session", status=500))
    for number in range(6):
        world.get("/orders", world.token(world.emulator.sign_in(mobile=f"92{number}")))
    assert world.get("/auth/session", world.token(user)).status_code == 200
