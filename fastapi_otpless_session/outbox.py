"""Telling OTPLESS that a session ended here: at once if it can be, else again and again until it is settled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.errors import StoreError, UpstreamError
from fastapi_otpless_session.stores.base import CountingStore, SessionRow, SessionStore
from fastapi_otpless_session.tokens import TokenError, UnreadableError
from fastapi_otpless_session.vault import Vault, check_pair
from fastapi_otpless_session.wire import TokenPair, Verdict

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 600.0
BATCH = 20


class Outbox:
    """The ended rows that OTPLESS has yet to hear of."""

    def __init__(self, store: SessionStore, client: OtplessClient, vault: Vault, hold: float) -> None:
        self._store = store
        self._client = client
        self._vault = vault
        self._hold = hold

    async def deliver_due(self) -> int:
        """Try those that are due, and return how many were settled. Raises `StoreError`."""
        rows = await self._store.claim_revocations(BATCH, self._hold)
        return sum(await asyncio.gather(*(self.tell(row) for row in rows)))

    async def measure(self) -> None:
        """Tell the metrics how long the outbox is, where the store can count. Raises `StoreError`."""
        if isinstance(self._store, CountingStore):
            telemetry.revocations_waiting.set(await self._store.waiting_revocations())

    async def tell(self, row: SessionRow) -> bool:
        """Try once; settle or put off. Return whether it is settled. Never raises a fault."""
        try:
            is_settled = await self._try(row)
        except StoreError as error:
            telemetry.revocations.add(1, telemetry.labels(outcome="unavailable"))
            telemetry.logger.warning("Revocation of %s: %s", telemetry.session_label(row.session_id), error)
            return False
        telemetry.revocations.add(1, telemetry.labels(outcome="settled" if is_settled else "postponed"))
        if is_settled:
            telemetry.logger.info("OTPLESS knows that %s ended", telemetry.session_label(row.session_id))
        return is_settled

    async def _try(self, row: SessionRow) -> bool:
        """Return whether OTPLESS has answered definitely, or can no longer be told. Raises `StoreError`."""
        try:
            is_settled = await self._revoke(row)
            if not is_settled:
                exchanged = await self._exchange(row)
                row = exchanged or row  # what is settled or put off from here on is the new pair
                is_settled = exchanged is None or await self._keep_and_revoke(exchanged)
        except UpstreamError:
            is_settled = False
        if is_settled:
            await self._store.settle_revocation(row)
        else:
            await self._store.postpone_revocation(row, _pause(row.revocation_attempts))
        return is_settled

    async def revoke_pair(self, row: SessionRow, pair: TokenPair) -> None:
        """Revoke a pair that came for a session which had ended meanwhile. Raises `StoreError`."""
        sealed = self._vault.seal_session_token(pair.session_token, row.session_id)
        sealed_refresh = self._vault.seal_refresh_token(pair.refresh_token, row.session_id)
        await self._store.replace_revocation(row.session_id, sealed, sealed_refresh)
        kept = await self._store.get(row.session_id)
        if kept is None:
            await self._client.revoke_session(pair.session_token)
        else:
            await self.tell(kept)

    async def take_over(self, ended: SessionRow, renewed: SessionRow, due_in: float) -> SessionRow:
        """Have OTPLESS told of a token that the frontend's SDK renewed, and that only `renewed` has, by an ended row.

        It stands in for the row's own session token, which it superseded; the row's refresh token, which may live,
        stays behind it. One that is older than the row's own says nothing new. `due_in`: after how many seconds others
        are to tell it. Return the row. Raises `StoreError`.
        """
        if not self._supersedes(renewed, ended):
            return ended
        token, until = renewed.session_token, max(ended.expires_at, renewed.expires_at)
        await self._store.replace_revocation(
            ended.session_id, token, ended.refresh_token, due_in=due_in, keep_until=until
        )
        due = await self._store.now() + due_in
        return replace(ended, session_token=token, expires_at=until, revocation_due=due)

    def _supersedes(self, renewed: SessionRow, ended: SessionRow) -> bool:
        """Whether a renewed token is another than an ended row's own, and no older.

        The row's `token_expires_at` is that of its first: one that is taken over leaves it as it is.
        """
        try:
            own = self._vault.session_token(ended)
            is_older = renewed.token_expires_at < tokens.read_claims(own).expires_at
            return not is_older and own != self._vault.session_token(renewed)
        except (UnreadableError, TokenError):  # sealed with a key that is not here
            return renewed.token_expires_at >= ended.token_expires_at

    async def _revoke(self, row: SessionRow) -> bool:
        """Revoke the session token; return whether that settles it. Raises `UpstreamError`.

        It does not where the token is dead already, and there is a refresh token: a dead token cannot name its session
        any more, but its refresh token would revive it.
        """
        token, is_known = _opened(row, self._vault.session_token), bool(row.refresh_token)  # a stranger's row has none
        verdict = await self._client.revoke_session(token, known=is_known)
        return verdict not in {Verdict.INACTIVE, Verdict.DENIED} or not row.refresh_token

    async def _exchange(self, row: SessionRow) -> SessionRow | None:
        """Use the refresh token up; return the row with the new pair, if there is one. Raises `UpstreamError`."""
        answer = await self._client.new_session_token(_opened(row, self._vault.refresh_token))
        if not isinstance(answer, TokenPair):
            return None
        check_pair(answer, row.session_id, row.user_id)  # or else somebody else is signed out
        return replace(
            row,
            session_token=self._vault.seal_session_token(answer.session_token, row.session_id),
            refresh_token=self._vault.seal_refresh_token(answer.refresh_token, row.session_id),
        )

    async def _keep_and_revoke(self, row: SessionRow) -> bool:
        """Keep a new pair in the outbox, and revoke it; return whether that settles it.

        A refresh that was on its way may have overtaken it. Raises `StoreError`, `UpstreamError`.
        """
        try:
            await self._store.replace_revocation(row.session_id, row.session_token, row.refresh_token)
        finally:  # where the store cannot keep the new pair, this is the only chance to revoke it
            is_settled = await self._revoke(row)
        return is_settled


def _opened(row: SessionRow, open_token: Callable[[SessionRow], str]) -> str:
    """Return a row's token. Raises `UpstreamError` where its key is unknown here: a worker that has it can tell."""
    try:
        return open_token(row)
    except UnreadableError:
        telemetry.logger.error("%s cannot be unsealed to be revoked", telemetry.session_label(row.session_id))
        raise UpstreamError("the token to be revoked cannot be unsealed here", unsent=True) from None


def _pause(attempts: int) -> float:
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempts, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311 - spreading load, not a secret
