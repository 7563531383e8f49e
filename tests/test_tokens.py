"""Tokens as data: what holds up, under which digest it is known, and how it is sealed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import secrets
import sys
from functools import cache
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

from fastapi_otpless_session import tokens
from fastapi_otpless_session.tokens import Column, KeyRing, KeySet, TokenError, UnknownKeyError, UnreadableError

ISSUER = "https://otpless.com"
KID = "pk0183"
CLAIMS: dict[str, Any] = {
    "sub": "0f" * 16,
    "sessionId": "0f" * 16,
    "iss": ISSUER,
    "userId": "MO-1",
    "name": "Asha",
    "email": "asha@example.com",
    "iat": 1_900_000_000,
    "exp": 1_900_086_400,
}
KEYS = [bytes([number]) * 32 for number in range(3)]
CANARY = "canary-claim"


@cache
def private_key(bits: int = 2048) -> RSAPrivateKey:
    return generate_private_key(65537, bits)


def jwk(key: RSAPrivateKey | None = None, **changes: Any) -> dict[str, Any]:
    public: dict[str, Any] = RSAAlgorithm.to_jwk((key or private_key()).public_key(), as_dict=True)
    return {**public, "kid": KID, "use": "sig", "alg": "RS256", **changes}


def keys() -> KeySet:
    return KeySet.from_jwks([jwk()])


def signed(headers: dict[str, Any] | None = None, *, algorithm: str = "RS256", **changes: Any) -> str:
    claims = {name: value for name, value in {**CLAIMS, **changes}.items() if value is not ...}
    return jwt.encode(claims, private_key(), algorithm, {"kid": KID, **(headers or {})})


def part(value: object) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def unsigned(header: object, payload: object = CLAIMS, signature: bytes = b"x") -> str:
    return f"{part(header)}.{part(payload)}.{part(signature)}"


def verify(token: str) -> tokens.Claims:
    return tokens.verify(token, keys(), ISSUER)


# Shape


@pytest.mark.parametrize(
    ("text", "is_token"),
    [
        ("a.b.c", True),
        ("a-_9.b.c", True),
        ("", False),
        ("a.b", False),
        ("a.b.c.d", False),
        ("a..c", False),
        ("a.b.", False),
        ("a.b.c ", False),
        ("a.b.c\n", False),
        ("a=.b.c", False),
        ("a+/.b.c", False),
        ("ä.b.c", False),
        ("a.b." + "c" * 8188, True),
        ("a.b." + "c" * 8189, False),
    ],
)
def test_a_token_is_three_base64url_parts_of_8_kib_at_most(text: str, is_token: bool) -> None:
    assert tokens.is_token(text) is is_token


@pytest.mark.parametrize("text", ["a.b", "a.b.c", "a.b." + "c" * 9000, "e30.e30.e30"])
def test_what_is_no_token_is_neither_read_nor_verified(text: str) -> None:
    for read in (tokens.read_claims, verify):
        with pytest.raises(TokenError):
            read(text)


# Signatures


def test_a_token_that_otpless_signed_says_who_it_is_for() -> None:
    claims = verify(signed(plan="gold"))
    assert (claims.session_id, claims.user_id, claims.issuer) == (CLAIMS["sub"], "MO-1", ISSUER)
    assert (claims.name, claims.email) == ("Asha", "asha@example.com")
    assert (claims.issued_at, claims.expires_at) == (1_900_000_000, 1_900_086_400)
    assert claims.has_audience is False
    assert claims.others == {"plan": "gold"}


def test_expiry_is_left_to_the_caller_and_its_clock() -> None:
    assert verify(signed(exp=1)).expires_at == 1


def test_an_id_token_shows_by_its_audience() -> None:
    assert verify(signed(aud="APP")).has_audience is True


def test_a_token_of_another_key_is_refused() -> None:
    other = jwt.encode(CLAIMS, generate_private_key(65537, 2048), "RS256", {"kid": KID})
    with pytest.raises(TokenError):
        verify(other)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_token_that_was_changed_anywhere_is_refused(place: int) -> None:
    parts = signed().split(".")
    middle = len(parts[place]) // 2
    parts[place] = parts[place][:middle] + ("A" if parts[place][middle] != "A" else "B") + parts[place][middle + 1 :]
    with pytest.raises(TokenError):
        verify(".".join(parts))


def respelled(text: str) -> str:
    """Return another way to write the same bytes: the last character's spare bits are not nought."""
    assert len(text) % 4 in {2, 3}, "there are no spare bits"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    padding = "=" * (-len(text) % 4)
    assert base64.urlsafe_b64decode(other + padding) == base64.urlsafe_b64decode(text + padding)
    return other


def test_a_signature_in_another_spelling_is_refused() -> None:
    message, _, signature = signed().rpartition(".")
    with pytest.raises(TokenError):
        verify(f"{message}.{respelled(signature)}")


def test_a_payload_in_another_spelling_is_refused() -> None:
    padded = next(each for length in range(3) if len(each := part({**CLAIMS, "x": "x" * length})) % 4)
    token = unsigned({"alg": "RS256", "kid": KID}).split(".")
    assert tokens.read_claims(f"{token[0]}.{padded}.{token[2]}").user_id == "MO-1"
    with pytest.raises(TokenError):
        tokens.read_claims(f"{token[0]}.{respelled(padded)}.{token[2]}")


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256"])
def test_another_algorithm_of_the_same_key_is_refused(algorithm: str) -> None:
    with pytest.raises(TokenError):
        verify(signed(algorithm=algorithm))


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, 7, ["RS256"], "rs256", "RS256 "])
def test_no_algorithm_but_the_word_rs256_is_taken(name: object) -> None:
    token = unsigned({"alg": name, "kid": KID})
    for read in (tokens.kid, verify):
        with pytest.raises(TokenError):
            read(token)


def test_the_public_key_is_no_secret_to_sign_with() -> None:
    pem = private_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = f"{part({'alg': 'HS256', 'kid': KID})}.{part(CLAIMS)}"
    mac = hmac.digest(pem, text.encode(), "sha256")
    with pytest.raises(TokenError):
        verify(f"{text}.{part(mac)}")


@pytest.mark.parametrize(
    "headers",
    [
        {"jku": "https://evil.example/jwks"},
        {"jwk": {"kty": "RSA"}},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MII"]},
        {"crit": ["exp"], "exp": 1},
        {"crit": []},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_a_header_that_brings_its_own_key_or_rules_is_refused_even_with_a_good_signature(
    headers: dict[str, Any],
) -> None:
    text = f"{part({'alg': 'RS256', 'kid': KID, **headers})}.{part(CLAIMS)}"
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), private_key())
    with pytest.raises(TokenError):
        verify(f"{text}.{part(signature)}")


@pytest.mark.parametrize("kid", [None, 7, [], {}])
def test_a_header_without_a_key_id_is_refused(kid: object) -> None:
    with pytest.raises(TokenError):
        tokens.kid(unsigned({"alg": "RS256", "kid": kid}))


def test_an_unknown_key_id_is_told_apart_from_a_bad_token() -> None:
    with pytest.raises(UnknownKeyError):
        verify(signed({"kid": "pk0184"}))


@pytest.mark.parametrize("issuer", ["https://otpless.example", ISSUER + "/", "", ..., None, 7, [ISSUER]])
def test_another_issuer_is_refused(issuer: object) -> None:
    claims = {name: value for name, value in {**CLAIMS, "iss": issuer}.items() if value is not ...}
    text = f"{part({'alg': 'RS256', 'kid': KID})}.{part(claims)}"
    signature = RSAAlgorithm(RSAAlgorithm.SHA256).sign(text.encode(), private_key())
    with pytest.raises(TokenError):
        verify(f"{text}.{part(signature)}")


# Claims


@pytest.mark.parametrize(
    "written",
    [
        *("1900000000", "1e30", "-1", "0", "true", "null", "[]", "{}", "NaN", "Infinity", "-Infinity", "1e999"),
        *('"1900000000"', "253402300800", "9" * 5000),
    ],
)
def test_only_a_second_that_a_calendar_can_hold_is_an_expiry(written: str) -> None:
    token = unsigned({"alg": "RS256", "kid": KID}, f'{{"sub": "s-1", "exp": {written}}}'.encode())
    if written == "1900000000":
        assert tokens.read_claims(token).expires_at == 1_900_000_000
    else:
        with pytest.raises(TokenError):
            tokens.read_claims(token)


def test_a_token_without_an_expiry_is_refused() -> None:
    with pytest.raises(TokenError):
        verify(signed(exp=...))


@pytest.mark.parametrize("issued_at", ["1900000000", True, -1, 1e30, None, []])
def test_an_unreadable_time_of_issue_is_none(issued_at: object) -> None:
    assert tokens.read_claims(unsigned({"alg": "RS256"}, {**CLAIMS, "iat": issued_at})).issued_at is None


def test_sub_and_session_id_must_agree() -> None:
    with pytest.raises(TokenError):
        verify(signed(sessionId="ab" * 16))


@pytest.mark.parametrize("absent", ["sub", "sessionId"])
def test_either_of_sub_and_session_id_names_the_session(absent: str) -> None:
    changes: dict[str, Any] = {absent: ...}
    assert verify(signed(**changes)).session_id == CLAIMS["sub"]


@pytest.mark.parametrize("wrong", [7, None, "", [], {}])
@pytest.mark.parametrize("name", ["name", "email"])
def test_a_name_that_is_no_text_is_as_if_missing(name: str, wrong: object) -> None:
    claims = tokens.read_claims(unsigned({"alg": "RS256"}, {**CLAIMS, name: wrong}))
    assert getattr(claims, name) is None


@pytest.mark.parametrize("name", ["name", "email"])
def test_half_an_emoji_in_a_name_can_be_shown(name: str) -> None:
    claims = tokens.read_claims(unsigned({"alg": "RS256"}, {**CLAIMS, name: "Asha \ud83d"}))
    assert getattr(claims, name).encode() == b"Asha ?"


@pytest.mark.parametrize("wrong", [7, "", [], {}, True, "\ud83d", "line\nbreak", "é", "a" * 257])
@pytest.mark.parametrize("name", ["sub", "sessionId", "userId"])
def test_an_id_that_is_none_is_refused(name: str, wrong: object) -> None:
    with pytest.raises(TokenError):
        tokens.read_claims(unsigned({"alg": "RS256"}, {**CLAIMS, name: wrong}))


@pytest.mark.parametrize("payload", [[], "text", 7, None, b"not json", b"\xff", b"[" * 3000 + b"]" * 3000])
def test_a_payload_that_is_no_object_is_refused(payload: object) -> None:
    with pytest.raises(TokenError):
        tokens.read_claims(unsigned({"alg": "RS256"}, payload))


def test_no_error_holds_a_part_of_the_token() -> None:
    for token in (unsigned({"alg": "none", "kid": CANARY}), signed({"kid": CANARY}), signed(iss=CANARY)):
        with pytest.raises(TokenError) as caught:
            verify(token)
        assert CANARY not in repr(caught.value)
        assert token.split(".")[1] not in repr(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CLAIM_NAMES = st.sampled_from(["sub", "sessionId", "userId", "exp", "iat", "nbf", "aud", "iss", "jti", "name"])
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "crit", "jku", "b64", "cty"])


@pytest.mark.varied
@given(st.text())
def test_any_text_is_read_or_is_a_token_error(text: str) -> None:
    for read in (tokens.read_claims, tokens.kid, verify):
        with pytest.raises(TokenError):
            read(text)


@pytest.mark.varied
@given(st.dictionaries(HEADER_NAMES, JSON) | JSON, st.dictionaries(CLAIM_NAMES, JSON) | JSON | st.binary(), st.binary())
def test_any_three_parts_are_read_or_are_a_token_error(header: object, payload: object, signature: bytes) -> None:
    token = unsigned(header, payload, signature)
    with pytest.raises(TokenError):
        verify(token)
    try:
        expires_at = tokens.read_claims(token).expires_at
    except TokenError:
        return
    assert math.isfinite(expires_at)


# The key set


@pytest.mark.parametrize(
    "entry",
    [
        None,
        7,
        "key",
        [],
        {},
        {"kid": KID},
        {"kid": KID, "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kid": KID, "kty": "oct", "k": "AA"},
        *({name: value for name, value in jwk().items() if name != missing} for missing in ("kid", "kty", "n", "e")),
        jwk(kid=7),
        jwk(kid=None),
        jwk(use="enc"),
        jwk(alg="RS512"),
        jwk(alg=None),
        jwk(n=7),
        jwk(n=["AA"]),
        jwk(n={}),
        jwk(n="ä"),
        jwk(n=""),
        jwk(e="AA"),
        jwk(e="AQ"),
        jwk(generate_private_key(65537, 1024)),  # noqa: S505 - too weak, which is the point
        RSAAlgorithm.to_jwk(private_key(), as_dict=True) | {"kid": KID},
    ],
)
def test_an_entry_that_cannot_be_used_is_passed_over_and_the_others_work(entry: object) -> None:
    found = KeySet.from_jwks([entry, jwk(kid="good"), entry])
    assert len(found) == 1
    assert KID not in found
    assert tokens.verify(signed({"kid": "good"}), found, ISSUER).user_id == "MO-1"


def test_use_and_algorithm_may_be_left_out_of_a_key() -> None:
    entry = {name: value for name, value in jwk().items() if name not in {"use", "alg"}}
    assert KID in KeySet.from_jwks([entry])


@pytest.mark.varied
@given(st.dictionaries(st.sampled_from(["n", "e", "kty", "use", "alg", "kid", "key_ops", "oth"]), JSON))
def test_any_entry_is_a_key_or_is_passed_over(changes: dict[str, Any]) -> None:
    assert len(KeySet.from_jwks([{**jwk(), **changes}])) <= 1


# Digests


def test_a_digest_is_32_bytes_and_the_same_each_time() -> None:
    assert tokens.digest("client", "a.b.c") == tokens.digest("client", "a.b.c")
    assert len(tokens.digest("client", "a.b.c")) == 32


@pytest.mark.parametrize(
    ("client_id", "token"), [("other", "a.b.c"), ("client", "a.b.d"), ("client:a", "b.c"), ("clien", "ta.b.c")]
)
def test_a_digest_is_bound_to_the_client_id(client_id: str, token: str) -> None:
    assert tokens.digest(client_id, token) != tokens.digest("client", "a.b.c")
    assert tokens.digest(client_id, token) != hashlib.sha256(token.encode()).digest()


# Sealing


def ring(*chosen: bytes, client_id: str = "client") -> KeyRing:
    return KeyRing(chosen or KEYS[:1], client_id)


def test_what_was_sealed_opens_and_shows_nothing() -> None:
    sealed = ring().seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    assert b"a.b.c" not in sealed
    assert ring().open(sealed, "s-1", Column.SESSION_TOKEN) == "a.b.c"
    assert ring().seal("a.b.c", "s-1", Column.SESSION_TOKEN) != sealed


def test_what_it_is_bound_to_never_changes_so_that_what_is_stored_opens_for_ever() -> None:
    client_id, session_id = 'a "client"', "s-\\1"
    key_id = hashlib.sha256(b"key id" + KEYS[0]).digest()[:4]
    bound = json.dumps([client_id, session_id, key_id.hex(), "refresh_token"]).encode()
    sealed = key_id + bytes(12) + AESGCM(KEYS[0]).encrypt(bytes(12), b"a.b.c", bound)
    assert ring(client_id=client_id).open(sealed, session_id, Column.REFRESH_TOKEN) == "a.b.c"


def test_the_first_key_seals_and_all_of_them_open() -> None:
    old = ring(KEYS[0]).seal("old", "s-1", Column.REFRESH_TOKEN)
    both = ring(KEYS[1], KEYS[0])
    assert both.open(old, "s-1", Column.REFRESH_TOKEN) == "old"
    new = both.seal("new", "s-1", Column.REFRESH_TOKEN)
    assert ring(KEYS[1]).open(new, "s-1", Column.REFRESH_TOKEN) == "new"
    with pytest.raises(UnreadableError):
        ring(KEYS[0]).open(new, "s-1", Column.REFRESH_TOKEN)


@pytest.mark.parametrize(
    ("session_id", "column", "client_id"),
    [
        ("s-2", Column.SESSION_TOKEN, "client"),
        ("s-1", Column.REFRESH_TOKEN, "client"),
        ("s-1", Column.SESSION_TOKEN, "other"),
    ],
)
def test_a_value_that_was_moved_to_another_row_column_or_client_does_not_open(
    session_id: str, column: Column, client_id: str
) -> None:
    sealed = ring().seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    with pytest.raises(UnreadableError):
        ring(client_id=client_id).open(sealed, session_id, column)


def test_an_unknown_key_does_not_open() -> None:
    sealed = ring(KEYS[0]).seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    with pytest.raises(UnreadableError):
        ring(KEYS[1], KEYS[2]).open(sealed, "s-1", Column.SESSION_TOKEN)


def test_damage_anywhere_does_not_open() -> None:
    sealed = ring().seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    damaged = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    shortened = [sealed[:length] for length in range(len(sealed))]
    for value in (*damaged, *shortened, sealed + b"\x00"):
        with pytest.raises(UnreadableError):
            ring().open(value, "s-1", Column.SESSION_TOKEN)


@pytest.mark.varied
@given(st.binary(max_size=100))
def test_any_bytes_do_not_open(sealed: bytes) -> None:
    for value in (sealed, hashlib.sha256(b"key id" + KEYS[0]).digest()[:4] + sealed):
        with pytest.raises(UnreadableError):
            ring().open(value, "s-1", Column.SESSION_TOKEN)


def test_a_derived_key_depends_on_both_credentials() -> None:
    sealed = KeyRing.from_settings(["derived"], "client", "secret").seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    again = KeyRing.from_settings(["derived"], "client", "secret")
    assert again.open(sealed, "s-1", Column.SESSION_TOKEN) == "a.b.c"
    for client_id, secret in [("client", "other"), ("other", "secret")]:
        with pytest.raises(UnreadableError):
            KeyRing.from_settings(["derived"], client_id, secret).open(sealed, "s-1", Column.SESSION_TOKEN)


def test_a_printed_key_can_be_put_before_the_derived_one() -> None:
    sealed = KeyRing.from_settings(["derived"], "client", "secret").seal("a.b.c", "s-1", Column.SESSION_TOKEN)
    key = tokens.new_key()
    rotated = KeyRing.from_settings([key, "derived"], "client", "secret")
    assert rotated.open(sealed, "s-1", Column.SESSION_TOKEN) == "a.b.c"
    new = rotated.seal("d.e.f", "s-1", Column.SESSION_TOKEN)
    alone = KeyRing.from_settings([key], "client", "another secret")
    assert alone.open(new, "s-1", Column.SESSION_TOKEN) == "d.e.f"


def test_printed_keys_differ_and_hold_32_bytes() -> None:
    printed = {tokens.new_key() for _ in range(5)}
    assert len(printed) == 5
    assert {len(base64.urlsafe_b64decode(key + "=")) for key in printed} == {32}


def test_what_anybody_may_write_into_a_token_is_no_text_that_python_keeps_for_ever() -> None:
    """Some versions of Python never free what was interned. An issuer is kept once all the same."""
    issuer = f"https://issuer.example/{secrets.token_hex()}"
    header = {"alg": "RS256", "kid": KID}
    first, second = (
        tokens.read_claims(unsigned(header, {**CLAIMS, "iss": issuer, "jti": name})) for name in ("a", "b")
    )
    another = "".join(issuer)
    assert sys.intern(another) is another
    assert first.issuer is second.issuer
    assert first.issuer == another
