"""The RS256 keys that sign tokens, and the key set that publishes them."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm

FIRST_KEY = 183
_FORGER = -1


_keys: dict[int, RSAPrivateKey] = {}
_making = Lock()


def _private_key(number: int) -> RSAPrivateKey:
    # One key per number and process: making one takes long enough to slow a test suite down. The lock is
    # there because a test and its server's thread may both ask first.
    with _making:
        if number not in _keys:
            _keys[number] = generate_private_key(public_exponent=65537, key_size=2048)
        return _keys[number]


class KeyRing:
    """The signing keys of an emulator, the newest last. Keys are made when they are first needed."""

    def __init__(self, first: int = FIRST_KEY) -> None:
        self._numbers = [first]

    @property
    def kid(self) -> str:
        """The id of the key that signs now."""
        return _kid(self._numbers[-1])

    def rotate(self) -> str:
        """Add a new signing key and return its id; the old ones stay in the key set."""
        self._numbers.append(self._numbers[-1] + 1)
        return self.kid

    def retire(self) -> None:
        """Take all keys but the one that signs now out of the key set."""
        del self._numbers[:-1]

    def private_key(self) -> RSAPrivateKey:
        """The key that signs now."""
        return _private_key(self._numbers[-1])

    def public_pem(self) -> bytes:
        """The public half of the key that signs now, as PEM."""
        public = self.private_key().public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, claims: Mapping[str, Any], kid: str | None = None, key: RSAPrivateKey | None = None) -> str:
        """A JWT over `claims`. An empty `kid` leaves the header out."""
        named = self.kid if kid is None else kid
        headers = {"kid": named} if named else None
        return jwt.encode(dict(claims), key or self.private_key(), algorithm="RS256", headers=headers)

    def forge(self, claims: Mapping[str, Any]) -> str:
        """A JWT that names the current key but is signed with an unrelated one."""
        return self.sign(claims, key=_private_key(_FORGER))

    def jwks(self) -> dict[str, Any]:
        """The published key set."""
        return {"keys": [_jwk(number) for number in self._numbers]}


def _kid(number: int) -> str:
    return f"pk{number:04d}"


def _jwk(number: int) -> dict[str, Any]:
    public = RSAAlgorithm.to_jwk(_private_key(number).public_key(), as_dict=True)
    core = {name: public[name] for name in ("kty", "n", "e")}
    return {**core, "use": "sig", "alg": "RS256", "kid": _kid(number)}
