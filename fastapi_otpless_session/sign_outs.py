"""Signing out: whose session a token is, and what ends it where the store cannot."""

from __future__ import annotations

from pydantic import SecretStr

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.core import Core
from fastapi_otpless_session.current import claims_for
from fastapi_otpless_session.ending import Endings
from fastapi_otpless_session.errors import NoVerdictError, StoreError, bare
from fastapi_otpless_session.hooks import SignOutReason
from fastapi_otpless_session.resolver import Resolver
from fastapi_otpless_session.session import Session
from fastapi_otpless_session.stores.base import REFRESH_TOKEN, EndReason, SessionRow, State
from fastapi_otpless_session.strangers import Strangers, UnclearError
from fastapi_otpless_session.tokens import Claims
from fastapi_otpless_session.wire import Verdict

UNKNOWN_LIFETIME = 30 * 86_400.0
"""How long an ended row is kept where only the frontend's SDK has the newest tokens: no refresh token tells."""


class SignOuts:
    """Signs people out, by any of their session tokens."""

    def __init__(self, core: Core, *, resolver: Resolver, strangers: Strangers, endings: Endings) -> None:
        self._store = core.store
        self._client = core.client
        self._vault = core.vault
        self._resolver = resolver
        self._strangers = strangers
        self._endings = endings
        self._background = core.background
        self._settings = core.settings
        self._clock = core.clock

    async def sign_out(self, token: SecretStr, known_only: bool) -> None:
        """End the session of a token; see `OtplessSessions.sign_out`."""
        try:
            with telemetry.span("otpless.sign_out"):
                await self._sign_out(token.get_secret_value(), known_only)
        except NoVerdictError as error:
            telemetry.sign_outs.add(1, telemetry.labels(outcome=telemetry.outcome_of(error)))
            raise bare(error) from None

    async def _sign_out(self, token: str, known_only: bool) -> None:
        if not tokens.is_token(token):
            return
        row: SessionRow | None = None
        try:
            row, renewed = await self._row_to_end(token, known_only)
            if row is not None:
                await self._endings.end(row, EndReason.REVOKED, renewed=renewed)
        except StoreError as error:
            telemetry.logger.warning("Sign-out without the store: %s", error)
            await self._background.finish(lambda: self._sign_out_without_store(token, row))

    async def _sign_out_without_store(self, token: str, row: SessionRow | None) -> None:
        """Tell OTPLESS directly. Raises `NoVerdictError` where that does not end the session."""
        digest = self._vault.digest(token)
        known = row if row is not None and row.refresh_token else self._resolver.seen(digest)  # a stranger's has none
        ours = known or row or await self._identified(token, digest)
        if ours is None:
            return  # it was never anybody's
        verdict = await self._client.revoke_session(token, known=known is not None)
        if verdict not in {Verdict.VALID, Verdict.UNKNOWN}:
            raise StoreError("the session's refresh token may live, and cannot be read now")
        self._strangers.forget(digest)
        if known is not None or verdict is Verdict.VALID:  # else it is another application's
            await self._endings.note_signed_out(digest, ours)

    async def _identified(self, token: str, digest: bytes) -> SessionRow | None:
        """Return a row for a token that neither store nor this worker can tell of; None: it is none of OTPLESS's."""
        try:
            identity = await self._strangers.identify(token, digest)
        except UnclearError:
            raise StoreError("whose token it is cannot be told now") from None
        return None if identity is None else self._stranger_row(*identity, token, self._clock())

    async def replace(self, token: str, session: Session) -> None:
        """End the session of a token, if it is another; see `OtplessSessions.replace`."""
        if not tokens.is_token(token):
            return
        try:
            found = await self._store.find(self._vault.digest(token))
        except StoreError as error:
            telemetry.logger.warning("The session before is not ended: %s", error)
            return
        if found is None or claims_for(token, found.row) is None:
            return
        if found.row.session_id != session.id and found.row.state is State.ACTIVE:
            await self._endings.end_refused(found.row, EndReason.REVOKED, SignOutReason.REPLACED)

    async def _row_to_end(self, token: str, known_only: bool) -> tuple[SessionRow | None, SessionRow | None]:
        """Return the row of a token's session, to be ended; None: there is none.

        And, where the session was signed in here and the OTPLESS SDK has renewed its token by itself, a row with that
        token: it is the one that OTPLESS is to be told of.
        """
        digest = self._vault.digest(token)
        found = await self._store.find(digest)
        if found is not None:
            is_ours = found.generation != REFRESH_TOKEN and claims_for(token, found.row) is not None
            return found.row if is_ours else None, None
        if known_only or not self._settings.accept_unknown_tokens:
            return None, None
        try:
            identity = await self._strangers.identify(token, digest)
        except UnclearError:  # nor does it get in anywhere
            return None, None
        if identity is None:
            return None, None
        self._strangers.forget(digest)
        mine = self._stranger_row(*identity, token, await self._store.now())
        there = await self._store.get(mine.session_id)
        return (mine, None) if there is None else (there, mine)

    def _stranger_row(self, session_id: str, claims: Claims, token: str, now: float) -> SessionRow:
        return SessionRow(
            session_id=session_id,
            user_id=claims.user_id or "",
            session_token=self._vault.seal_session_token(token, session_id),
            token_expires_at=claims.expires_at,
            created_at=now,
            last_seen_at=now,
            expires_at=max(claims.expires_at, now + UNKNOWN_LIFETIME),
        )
