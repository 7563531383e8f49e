"""Tokens to what the store may see, and back: digests and sealed values."""

from __future__ import annotations

from fastapi_otpless_session import tokens
from fastapi_otpless_session.errors import UpstreamError
from fastapi_otpless_session.session import is_over
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.base import Rotation, SessionRow
from fastapi_otpless_session.tokens import Claims, Column, KeyRing, TokenError
from fastapi_otpless_session.wire import TokenPair


class Vault:
    """The application's key ring, and the client id that its digests are bound to."""

    def __init__(self, settings: OtplessSettings) -> None:
        self._client_id = settings.client_id
        self._ring = KeyRing.from_settings(
            [key.get_secret_value() for key in settings.encryption_keys],
            settings.client_id,
            settings.client_secret.get_secret_value(),
        )

    def digest(self, token: str) -> bytes:
        """Return the digest that a token is known by."""
        return tokens.digest(self._client_id, token)

    def session_token(self, row: SessionRow) -> str:
        """Return a row's current session token. Raises `UnreadableError`."""
        return self._ring.open(row.session_token, row.session_id, Column.SESSION_TOKEN)

    def refresh_token(self, row: SessionRow) -> str:
        """Return a row's refresh token. Raises `UnreadableError`."""
        return self._ring.open(row.refresh_token, row.session_id, Column.REFRESH_TOKEN)

    def seal_session_token(self, token: str, session_id: str) -> bytes:
        """Seal a session token for its row."""
        return self._ring.seal(token, session_id, Column.SESSION_TOKEN)

    def seal_refresh_token(self, token: str, session_id: str) -> bytes:
        """Seal a refresh token for its row."""
        return self._ring.seal(token, session_id, Column.REFRESH_TOKEN)

    def rotation(self, pair: TokenPair, claims: Claims, refresh_claims: Claims, answered_at: float) -> Rotation:
        """Return what a store keeps of a new pair, which OTPLESS gave at `answered_at`."""
        return Rotation(
            token_digest=self.digest(pair.session_token),
            session_token=self.seal_session_token(pair.session_token, pair.session_id),
            token_expires_at=claims.expires_at,
            refresh_digest=self.digest(pair.refresh_token),
            refresh_token=self.seal_refresh_token(pair.refresh_token, pair.session_id),
            expires_at=max(claims.expires_at, refresh_claims.expires_at),
            answered_at=answered_at,
        )


def check_pair(pair: TokenPair, session_id: str, user_id: str) -> tuple[Claims, Claims]:
    """Return the claims of a new pair that came from OTPLESS itself: of this session and this user.

    Raises `UpstreamError`: an answer for somebody else is no verdict on anybody.
    """
    if pair.session_id != session_id or pair.session_token == pair.refresh_token:
        raise UpstreamError("OTPLESS's answer makes no sense: tokens of another session")
    try:
        claims, refresh_claims = tokens.read_claims(pair.session_token), tokens.read_claims(pair.refresh_token)
    except TokenError:
        raise UpstreamError("OTPLESS's answer makes no sense: unreadable tokens") from None
    for read in (claims, refresh_claims):
        if read.session_id not in {None, session_id} or read.user_id not in {None, user_id}:
            raise UpstreamError("OTPLESS's answer makes no sense: tokens of another session")
    return claims, refresh_claims


def check_life(expires_at: float, now: float) -> None:
    """Raise `UpstreamError` for a new token that is over by the store's clock: that one or OTPLESS is wrong."""
    if is_over(expires_at, now):
        raise UpstreamError("OTPLESS's answer makes no sense: a token that has expired, unless a clock is wrong")
