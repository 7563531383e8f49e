"""Tokens as data: their shape, their claims, their digests, and sealing them for the store. No I/O.

PyJWT reads headers and, with `cryptography`, verifies signatures. RS256 is pinned (RFC 8725, section 3.1), and header
parameters that would bring in a key of the sender's choice are refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, Self

import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from jwt.algorithms import RSAAlgorithm

from fastapi_otpless_session.session import LAST_SECOND
from fastapi_otpless_session.settings import DERIVED_KEY, KEY_BYTES

TOKEN_LIMIT = 8192
ID_LIMIT = 256
CLAIMS_REMEMBERED = 100
HEADERS_REMEMBERED = 100
SHAPES_REMEMBERED = 100
ISSUERS_REMEMBERED = 8
ALGORITHM = "RS256"
RS256 = RSAAlgorithm(RSAAlgorithm.SHA256)
SHORTEST_KEY_BITS = 2048
FOREIGN_KEY_HEADERS = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64"})
OWN_CLAIMS = frozenset({"sub", "sessionId", "iss", "userId", "name", "email", "iat", "exp"})

NOT_COPIED = (
    "a Session is not pickled, nor made a dict of: annotate the route '-> Session', and its public part is sent; "
    "pass on what you need of it, such as session.user_id"
)

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")

_ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
_LAST = (frozenset(_ALPHABET), frozenset[str](), frozenset(_ALPHABET[::16]), frozenset(_ALPHABET[::4]))
"""What a part of base64url may end with, by how many characters there are beyond a multiple of four."""


class TokenError(ValueError):
    """A token that does not hold up. Carries no part of the token."""


class UnknownKeyError(TokenError):
    """The token's `kid` is not among the keys."""


class UnreadableError(ValueError):
    """A sealed value that none of the keys opens: an unknown key, another row's value, or damage."""


class FrozenClaims(Mapping[str, Any]):
    """Claims that cannot be changed, nor taken out of their session by what copies all of it: its token would go along.

    So a route that returns a session without saying so sends nothing, and no queue or cache gets a token unasked.
    """

    __slots__ = ("_claims",)

    def __init__(self, claims: Mapping[str, Any]) -> None:
        self._claims = dict(claims)

    def __getitem__(self, name: str) -> Any:
        return self._claims[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._claims)

    def __len__(self) -> int:
        return len(self._claims)

    def __repr__(self) -> str:
        return repr(self._claims)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        """Refuse what `dataclasses.asdict` wants, and FastAPI of a route without annotation."""
        raise TypeError(NOT_COPIED)

    def __reduce__(self) -> NoReturn:
        raise TypeError(NOT_COPIED)


class Claims(NamedTuple):
    """What a token says. Whether to believe it is the caller's business."""

    session_id: str | None
    user_id: str | None
    name: str | None
    email: str | None
    issuer: str | None
    has_audience: bool
    issued_at: float | None
    expires_at: float
    others: Mapping[str, Any]


class Column(StrEnum):
    """Which of a row's values is sealed; a value moved to the other column does not open."""

    SESSION_TOKEN = "session_token"  # noqa: S105 - a column's name
    REFRESH_TOKEN = "refresh_token"  # noqa: S105 - a column's name


def is_token(text: str) -> bool:
    """Whether `text` has the shape of a JWT: three base64url parts (RFC 7515), 8 KiB at most."""
    return len(text) <= TOKEN_LIMIT and has_token_shape(text)


def has_token_shape(text: str) -> bool:
    """Whether `text` looks like a JWT, of whatever size."""
    return _has_shape(text) if len(text) <= TOKEN_LIMIT else _SHAPE.fullmatch(text) is not None


@lru_cache(SHAPES_REMEMBERED)  # on its way in, a token is looked at two or three times
def _has_shape(text: str) -> bool:
    return _SHAPE.fullmatch(text) is not None


def digest(client_id: str, token: str) -> bytes:
    """Return the 32 bytes under which a token is known: SHA-256 over the client id and the token.

    Any text has one, even what a server made of bytes that are none.
    """
    return hashlib.sha256(f"{len(client_id)}:{client_id}:{token}".encode("utf-8", "surrogatepass")).digest()


@lru_cache(CLAIMS_REMEMBERED)  # one request reads a token up to three times, and so does a herd that brings it
def read_claims(token: str) -> Claims:
    """Read a token's claims without checking its signature. Raises `TokenError`."""
    if not is_token(token):
        raise TokenError("not three base64url parts")
    _plain_header(token)
    return _claims(_unverified(token))


def read_stranger(token: str) -> Claims:
    """As `read_claims`, of a token that is known by nothing but itself: in another spelling it would be another one.

    Raises `TokenError`.
    """
    claims = read_claims(token)
    _decoded(token.rpartition(".")[2])
    return claims


def kid(token: str) -> str:
    """Return the id of the key that a token names. Raises `TokenError`, for every header but plain RS256 too."""
    name = _plain_header(token).get("kid")
    if not isinstance(name, str):
        raise TokenError("no kid")
    return name


def _plain_header(token: str) -> dict[str, Any]:
    return _read_header(token[: token.find(".") + 1])


@lru_cache(HEADERS_REMEMBERED)  # all tokens of a key have the same
def _read_header(part: str) -> dict[str, Any]:
    try:
        header = jwt.get_unverified_header(f"{part}e30.")  # the rest is not looked at
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise TokenError("unreadable header") from None
    if header.get("alg") != ALGORITHM or not FOREIGN_KEY_HEADERS.isdisjoint(header):
        raise TokenError("not plain RS256")
    return header


def verify(token: str, keys: KeySet, issuer: str) -> Claims:
    """Check a token's signature and issuer and return its claims; expiry is left to the caller.

    Raises `UnknownKeyError` where its key is not in `keys`, `TokenError` where it does not hold up.
    """
    if not is_token(token):
        raise TokenError("not three base64url parts")
    claims = _claims(_verified(token, keys[kid(token)]))
    if claims.issuer != issuer:
        raise TokenError("another issuer")
    return claims


def _verified(token: str, key: RSAPublicKey) -> dict[str, Any]:
    """Return the payload of a token whose signature is good.

    PyJWT's algorithm verifies it. PyJWT's own taking apart of the token is passed over: it looks at each character by
    itself, which takes twice as long as the signature.
    """
    message, _, signature = token.rpartition(".")
    if not RS256.verify(message.encode(), key, _decoded(signature)):
        raise TokenError("bad signature")
    return _unverified(token)


def _unverified(token: str) -> dict[str, Any]:
    try:
        payload = json.loads(_decoded(token.split(".")[1]).decode())
    except (ValueError, RecursionError):
        raise TokenError("unreadable payload") from None
    if not isinstance(payload, dict):
        raise TokenError("unreadable payload")
    return payload


def _decoded(part: str) -> bytes:
    """Return what a part of a token stands for, which has its shape.

    Of all ways to write it one is read: the bits that are left over are zero (RFC 4648, section 3.5).
    """
    if part[-1] not in _LAST[len(part) % 4]:
        raise TokenError("not base64url as it is written")
    return base64.urlsafe_b64decode(part + "==")  # one too many is passed over


def _claims(payload: dict[str, Any]) -> Claims:
    session_id, subject = _id(payload, "sessionId"), _id(payload, "sub")
    if session_id is not None and subject is not None and session_id != subject:
        raise TokenError("sub and sessionId differ")
    expires_at = _second(payload.get("exp"))
    if expires_at is None:
        raise TokenError("no usable exp")
    return Claims(
        session_id=session_id or subject,
        user_id=_id(payload, "userId"),
        name=_text(payload, "name"),
        email=_text(payload, "email"),
        issuer=_shared(_text(payload, "iss")),
        has_audience="aud" in payload,
        issued_at=_second(payload.get("iat")),
        expires_at=expires_at,
        others=FrozenClaims({k: v for k, v in payload.items() if k not in OWN_CLAIMS}),
    )


@lru_cache(ISSUERS_REMEMBERED)  # ten thousand tokens say the same; `sys.intern` would keep for ever what anybody says
def _shared(issuer: str | None) -> str | None:
    return issuer


def _text(payload: dict[str, Any], name: str) -> str | None:
    """Return a text that can be written again: half an emoji, as JavaScript's `slice` leaves it, is replaced."""
    value = payload.get(name)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and value else None


def _id(payload: dict[str, Any], name: str) -> str | None:
    value = payload.get(name)
    if value is None:
        return None
    if not is_id(value):
        raise TokenError(f"unusable {name}")
    return str(value)


def is_id(value: object) -> bool:
    """Whether a value can be OTPLESS's id of a session or user: printable ASCII of a sane length."""
    return isinstance(value, str) and 0 < len(value) <= ID_LIMIT and value.isascii() and value.isprintable()


def _second(value: object) -> float | None:
    """Return a NumericDate (RFC 7519, section 2) that a calendar can hold, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return float(value) if 0 < value <= LAST_SECOND else None


class KeySet:
    """The keys of a JWKS (RFC 7517) that can verify RS256, parsed once. A missing `kid` is `UnknownKeyError`."""

    def __init__(self, keys: Mapping[str, RSAPublicKey]) -> None:
        self._keys = dict(keys)

    def __getitem__(self, name: str) -> RSAPublicKey:
        try:
            return self._keys[name]
        except KeyError:
            raise UnknownKeyError("unknown kid") from None

    def __contains__(self, name: object) -> bool:
        return name in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    @classmethod
    def from_jwks(cls, entries: Iterable[object]) -> Self:
        """Take what is usable and pass over the rest, so that a key of a new kind breaks nothing."""
        return cls({name: key for name, key in map(_rsa_key, entries) if key is not None})


def _rsa_key(entry: object) -> tuple[str, RSAPublicKey | None]:
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str):
        return "", None
    usable = entry.get("kty") == "RSA" and entry.get("use", "sig") == "sig"
    if not usable or entry.get("alg", ALGORITHM) != ALGORITHM or "d" in entry:
        return "", None
    try:
        key = RSAAlgorithm.from_jwk(entry)
    except (jwt.PyJWTError, ValueError, TypeError):
        return "", None
    if not isinstance(key, RSAPublicKey) or key.key_size < SHORTEST_KEY_BITS:
        return "", None
    return entry["kid"], key


class KeyRing:
    """Seals tokens for the store with AES-256-GCM: the first key seals, all of them open.

    A sealed value is a key id (4 bytes), a nonce (12 bytes) and the ciphertext; client id, session id, key id
    and column are bound to it as associated data, so that a value in another row or column does not open.
    """

    def __init__(self, keys: Iterable[bytes], client_id: str) -> None:
        self._keys = {hashlib.sha256(b"key id" + key).digest()[:4]: AESGCM(key) for key in keys}
        self._first = next(iter(self._keys))
        self._client_id = client_id

    @classmethod
    def from_settings(cls, texts: Iterable[str], client_id: str, client_secret: str) -> Self:
        """Read keys as settings write them: base64url, or the word `derived`."""
        return cls((_key(text, client_id, client_secret) for text in texts), client_id)

    def seal(self, token: str, session_id: str, column: Column) -> bytes:
        """Return `token`, sealed for one column of one session's row."""
        nonce = os.urandom(12)
        bound = self._bound(self._first, session_id, column)
        return self._first + nonce + self._keys[self._first].encrypt(nonce, token.encode(), bound)

    def open(self, sealed: bytes, session_id: str, column: Column) -> str:
        """Return the token in `sealed`. Raises `UnreadableError`."""
        key_id, nonce, ciphertext = sealed[:4], sealed[4:16], sealed[16:]
        try:
            key = self._keys[key_id]
            return key.decrypt(nonce, ciphertext, self._bound(key_id, session_id, column)).decode()
        except (KeyError, InvalidTag, ValueError):
            raise UnreadableError("a sealed token cannot be opened") from None

    def _bound(self, key_id: bytes, session_id: str, column: Column) -> bytes:
        return json.dumps([self._client_id, session_id, key_id.hex(), column.value]).encode()


def _key(text: str, client_id: str, client_secret: str) -> bytes:
    if text != DERIVED_KEY:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    kdf = HKDF(SHA256(), KEY_BYTES, salt=client_id.encode(), info=b"fastapi-otpless-session sealing key")
    return kdf.derive(client_secret.encode())


def new_key() -> str:
    """Return a fresh sealing key, as `OTPLESS_ENCRYPTION_KEYS` takes it."""
    return base64.urlsafe_b64encode(os.urandom(KEY_BYTES)).decode().rstrip("=")
