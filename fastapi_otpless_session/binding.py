"""Binding a sign-in: what the browser brings counts only as far as OTPLESS bears it out.

Otherwise anybody could attach somebody else's refresh token to a session of their own. All of these must agree on user
and session: the one-time token (validate/token), the session token (get-session-details), and the refresh token (its
signature and claims; or, where no signature can be checked, the session that it can be exchanged for).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from fastapi_otpless_session import telemetry, tokens
from fastapi_otpless_session.client import OtplessClient
from fastapi_otpless_session.errors import BodyRefusedError, SignInRefusedError, UpstreamError
from fastapi_otpless_session.session import SessionDetails, is_over
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.tokens import Claims, TokenError
from fastapi_otpless_session.vault import check_life, check_pair
from fastapi_otpless_session.wire import TokenPair

LONGEST_SUMMARY = 256

IsStored = Callable[[str, str], Awaitable[bool]]


_AS_SENT = ConfigDict(alias_generator=to_camel, validate_by_name=True, hide_input_in_errors=True)


class SessionInfo(BaseModel):
    """The SDK's `sessionInfo`."""

    model_config: ClassVar[ConfigDict] = _AS_SENT

    session_id: str | None = None
    session_token: str = Field(repr=False)
    refresh_token: str = Field(repr=False)


class OtplessUser(BaseModel):
    """What the frontend SDK hands to its callback. Only these fields are looked at; the others are ignored."""

    model_config: ClassVar[ConfigDict] = _AS_SENT

    token: str | None = Field(default=None, repr=False)
    user_id: str | None = None
    session_info: SessionInfo | None = None


def read_user(sent: object) -> OtplessUser | BodyRefusedError:
    """Read what the SDK's callback was given, as it is; or return the error, so that none of its frames shows that."""
    if not isinstance(sent, Mapping):
        return unreadable("The body is not a JSON object, as the SDK's otplessUser is.")
    try:
        return OtplessUser.model_validate(dict(sent))
    except ValidationError as error:
        fields = sorted({".".join(map(str, problem["loc"])) for problem in error.errors(include_input=False)})
    return unreadable(f"Missing or not as the SDK sends it: {', '.join(fields)}.")


def unreadable(message: str) -> BodyRefusedError:
    """Return the error for what is not as the SDK sends it."""
    return BodyRefusedError(422, "body_invalid", message)


@dataclass(frozen=True, slots=True)
class Bound:
    """A sign-in that OTPLESS bore out."""

    pair: TokenPair = field(repr=False)
    user_id: str
    claims: Claims
    refresh_claims: Claims
    summary: str
    brought: str = field(repr=False)
    """The refresh token that the sign-in came with; it may have been exchanged for the pair's."""

    @property
    def expires_at(self) -> float:
        """When the last of the session's tokens expires."""
        return max(self.claims.expires_at, self.refresh_claims.expires_at)


async def bind(
    client: OtplessClient, settings: OtplessSettings, user: OtplessUser, now: float, is_stored: IsStored
) -> Bound:
    """Verify a sign-in; `is_stored` says whether a refresh token is a session's already, before one is used.

    Raises `SignInRefusedError`, `BodyRefusedError`, or `UpstreamError` for no verdict.
    """
    user_id, pair = await _redeem(client, settings, user)
    details = await client.session_details(pair.session_token, known=False)
    if not isinstance(details, SessionDetails):
        raise SignInRefusedError(why="OTPLESS does not know the session token, or calls it dead")
    claims = _readable(pair.session_token)
    if details.session_id != pair.session_id or user_id not in {None, details.user_id}:
        raise SignInRefusedError(why="by OTPLESS's details the session is another, or another user's")
    _must_name(claims, details)
    if is_over(claims.expires_at, now):
        raise SignInRefusedError(why="the session token has expired, by the store's clock")
    brought = pair.refresh_token
    pair, claims, refresh_claims = await _bind_refresh_token(client, settings, pair, details, claims, now, is_stored)
    return Bound(pair, details.user_id, claims, refresh_claims, summarise(details), brought)


async def _redeem(client: OtplessClient, settings: OtplessSettings, user: OtplessUser) -> tuple[str | None, TokenPair]:
    """Return whom the one-time token belongs to, and the tokens; OTPLESS's copy of those wins over the browser's."""
    if not settings.require_sign_in_token:
        return user.user_id, _from_browser(user)
    if not user.token or not _is_opaque_token(user.token):
        raise unreadable("The body has no token: send the SDK's otplessUser as it is.")
    brought = _from_browser(user) if user.session_info is not None else None
    proof = await client.validate_sign_in(user.token)
    if user.user_id not in {None, proof.user_id}:
        raise SignInRefusedError(why="the one-time token is another user's")
    return proof.user_id, proof.pair or brought or _from_browser(user)


def _is_opaque_token(token: str) -> bool:
    """Whether a one-time token is printable ASCII of a sane length; it is opaque otherwise."""
    return len(token) <= tokens.TOKEN_LIMIT and token.isascii() and token.isprintable()


def _from_browser(user: OtplessUser) -> TokenPair:
    info = user.session_info
    if info is None:
        raise unreadable("The body has no sessionInfo: enable Session Management in the OTPLESS dashboard.")
    claims = _readable(info.session_token)
    _readable(info.refresh_token)
    session_id = info.session_id or claims.session_id
    if session_id is None or info.session_token == info.refresh_token:
        raise SignInRefusedError(why="sessionInfo names no session, or has one token in both places")
    return TokenPair(session_id, info.session_token, info.refresh_token)


def _readable(token: str) -> Claims:
    try:
        return tokens.read_claims(token)
    except TokenError:
        raise SignInRefusedError(why="sessionInfo has a token that cannot be read") from None


def _must_name(claims: Claims, details: SessionDetails) -> None:
    """Refuse a token that names another session or user than OTPLESS does, or that is for somebody else (`aud`)."""
    if claims.session_id not in {None, details.session_id} or claims.user_id not in {None, details.user_id}:
        raise SignInRefusedError(why="a token names another session or user than OTPLESS does")
    if claims.has_audience:
        raise SignInRefusedError(why="a token has an audience, as ID tokens have")


async def _bind_refresh_token(  # noqa: PLR0917 - one step's whole evidence
    client: OtplessClient,
    settings: OtplessSettings,
    pair: TokenPair,
    details: SessionDetails,
    claims: Claims,
    now: float,
    is_stored: IsStored,
) -> tuple[TokenPair, Claims, Claims]:
    """Make sure that the refresh token is the session's: by its signature, or else by using it."""
    if settings.jwks_url:
        try:
            refresh_claims = await client.verify(pair.refresh_token, now=True)
        except TokenError:
            raise SignInRefusedError(why="the refresh token's signature or issuer does not hold") from None
        except UpstreamError as error:
            telemetry.logger.warning("Sign-in without keys, exchanging instead: %s", error)
        else:
            if refresh_claims.session_id != pair.session_id or refresh_claims.expires_at <= claims.expires_at:
                raise SignInRefusedError(why="the refresh token is another session's, or no refresh token")
            _must_name(refresh_claims, details)
            return pair, claims, refresh_claims
    if await is_stored(pair.refresh_token, pair.session_id):  # the same sign-in again: don't use it up
        return pair, claims, _readable(pair.refresh_token)
    answer = await client.new_session_token(pair.refresh_token, known=False)
    if not isinstance(answer, TokenPair) or answer.session_id != pair.session_id:
        raise SignInRefusedError(why="OTPLESS refused the refresh token, or it is another session's")
    new_claims, refresh_claims = check_pair(answer, details.session_id, details.user_id)
    for read in (new_claims, refresh_claims):
        check_life(read.expires_at, now)
    return answer, new_claims, refresh_claims


def summarise(details: SessionDetails) -> str:
    """Return what a list of the user's devices shows, as JSON: no address, no exact place."""
    device, network = details.device_info, details.network
    place = network.ip_location if network else None
    shown = {
        "browser": device and device.browser,
        "platform": device and device.platform,
        "user_agent": device and device.user_agent,
        "city": place and place.city and place.city.name,
        "country": place and place.country and place.country.name,
    }
    return json.dumps({name: value[:LONGEST_SUMMARY] for name, value in shown.items() if value})
