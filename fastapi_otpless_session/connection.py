"""One request's session: resolved on first use, once, and shared by everything in the request.

The middleware puts a `RequestSession` into `request.state.otpless`; dependencies and router take it from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, MutableMapping, Sequence
from typing import Any

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.copies import Copy
from fastapi_otpless_session.current import Current, Resolved, session_of
from fastapi_otpless_session.errors import (
    ConflictingCredentialsError,
    CookieTooLargeError,
    MiddlewareMissingError,
    SessionRefusedError,
    StoreError,
    refusal,
)
from fastapi_otpless_session.session import Session, SessionDetails, SessionReason
from fastapi_otpless_session.sessions import OtplessSessions
from fastapi_otpless_session.strangers import Stranger
from fastapi_otpless_session.transport import SAFE_METHODS, Presented, Transport

STATE_NAME = "otpless"
OWN_MARK = "fastapi_otpless_session.own"
"""A scope gets this key when a request's session is put into its state."""
EXEMPT_MARK = "fastapi_otpless_session.exempt"
"""A scope gets this key when one of the router's routes that need no session matches it."""


class RequestSession:
    """The session of one request or websocket. `await session()` gives it, or None with `reason` saying why."""

    _presented: Presented | None = None
    _is_asking: bool = False
    _others: asyncio.Event | None = None
    """Where others in the request wait while one of them asks; made for the first of them: most often there is none."""
    _max_age: float | None = None
    was_asked_for: bool = False
    """Whether anybody has asked for the session."""
    has_new_token: bool = False
    """Whether the response is to bring a new token."""

    def __init__(
        self,
        sessions: OtplessSessions,
        transport: Transport,
        scope: Mapping[str, Any],
        offered: Sequence[str] = (),
    ) -> None:
        self.sessions = sessions
        self.transport = transport
        self._arrived_at = sessions.monotonic()
        # Not the scope itself, which leads here: nobody but the garbage collector could free the two.
        self._headers = scope["headers"]
        self._scheme = scope.get("scheme") or ""
        self._is_safe = scope["type"] == "http" and scope["method"] in SAFE_METHODS
        self._offered = offered
        self._served: Copy | Stranger | Current | None = None
        """What the session's record is made of once something asks for it: that takes 4 µs, a tenth of a bare route."""
        self._outcome: Session | SessionReason | None = None

    @property
    def presented(self) -> Presented:
        """The credentials that the request carries."""
        if self._presented is None:
            self._presented = self.transport.find(self._headers, self._offered)
        return self._presented

    @property
    def is_offered(self) -> bool:
        """Whether the token came as a websocket subprotocol."""
        return bool(self._offered)

    @property
    def outcome(self) -> Session | SessionReason | None:
        """The session or the reason why there is none; None while nobody has asked."""
        if self._outcome is None and self._served is not None:
            self._outcome = session_of(self._served, self.presented.token or "")
        return self._outcome

    @property
    def reason(self) -> SessionReason | None:
        """Why there is no session; None where there is one, or nobody has asked."""
        return self._outcome if isinstance(self._outcome, SessionReason) else None

    def is_from_elsewhere(self) -> bool:
        """Whether the request comes from another site, which is logged: the page may well be one's own."""
        if not self.transport.is_cross_site(self._headers, self._scheme):
            return False
        origins = [value for name, value in self._headers if name == b"origin"]
        telemetry.logger.warning(
            "Refused as from another site: Origin %.100r. OTPLESS_TRUSTED_ORIGINS names those that are yours, and a "
            "proxy must pass Host on as it is",
            b", ".join(origins).decode("latin-1") or None,
        )
        return True

    async def session(self) -> Session | None:
        """Return the session, or None where there is none or no verdict.

        Raises `ConflictingCredentialsError`: such a request is wrong whatever it wants.
        """
        outcome = await self.resolve()
        if outcome is SessionReason.CONFLICT:
            raise ConflictingCredentialsError
        return outcome if isinstance(outcome, Session) else None

    async def require(self, max_age: float | None = None) -> Session:
        """Return the session, about which OTPLESS said "valid" less than `max_age` seconds ago.

        Raises the `RefusalError` that answers the client where there is none.
        """
        outcome = await self.resolve(max_age)
        if isinstance(outcome, SessionReason):
            raise refusal(outcome)
        return outcome

    async def details(self) -> SessionDetails:
        """Return OTPLESS's details of the session. Raises a `RefusalError` where there is none, `NoVerdictError`.

        Where OTPLESS calls the token dead, it is refreshed first: its session may well be alive.
        """
        session = await self.require()
        try:
            return await self.sessions.details(session)
        except SessionRefusedError:
            return await self.sessions.details(await self.require(max_age=0))

    async def resolve(self, max_age: float | None = None) -> Session | SessionReason:
        """Return the session or the reason why there is none, the same for everybody who asks."""
        reason = await self.settle(max_age)
        outcome = self.outcome if reason is None else reason
        return SessionReason.UNAVAILABLE if outcome is None else outcome

    async def settle(self, max_age: float | None = None) -> SessionReason | None:
        """Return the reason why there is no session; None: there is one. What `resolve` returns is yet to be made."""
        if max_age is None:
            self.settle_at_once()
        else:
            self.was_asked_for = True
        if self._is_settled() and self._is_within(max_age):
            return self.reason
        while self._is_asking:
            self._others = self._others or asyncio.Event()
            await self._others.wait()
        is_settled, self._is_asking = self._is_settled(), True
        try:
            if is_settled and (self.reason is not None or self._is_within(max_age)):
                return self.reason
            outcome = (None if is_settled else self._refusal(self.presented)) or await self._asked(max_age)
            if is_settled and outcome is SessionReason.UNAVAILABLE:  # no verdict on what was resolved already
                return outcome
            self._take(outcome, max_age)
            return self.reason
        finally:
            self._is_asking = False
            if self._others is not None:
                self._others.set()
                self._others = None

    def _take(self, outcome: Resolved, max_age: float | None) -> None:
        self._max_age, self._served, self._outcome, self.has_new_token = max_age, None, None, False
        if isinstance(outcome, Session | SessionReason):
            self._outcome = outcome
            self.has_new_token = isinstance(outcome, Session) and outcome.refreshed
        else:
            self._served = outcome
            self.has_new_token = isinstance(outcome, Current) and outcome.refreshed

    def _is_settled(self) -> bool:
        return self._outcome is not None or self._served is not None

    def _is_within(self, max_age: float | None) -> bool:
        """Whether the answer so far was asked for as recent as this. Its age is for the store's clock to tell."""
        return max_age is None or (self._max_age is not None and self._max_age <= max_age)

    def settle_at_once(self) -> bool:
        """Whether there is a session, as far as that can be told without waiting for anybody.

        The record that an application sees of it is made when something asks for that.
        """
        if not self.was_asked_for:
            self.was_asked_for = True
            self._presented = presented = self.transport.find(self._headers, self._offered)
            self._outcome = reason = self._refusal(presented)
            if reason is None and presented.token is not None:
                self._served = self.sessions.at_once(presented.token, known_only=presented.is_cookie_only)
        return self._served is not None

    def at_once(self) -> Session | None:
        """Return the session, where nobody has to be waited for."""
        if not self.settle_at_once():
            return None
        outcome = self.outcome
        return outcome if isinstance(outcome, Session) else None

    def _refusal(self, presented: Presented) -> SessionReason | None:
        """Return why what the request carries cannot be used, whatever it stands for."""
        if presented.token is None and presented.in_conflict:
            names = ", ".join(sorted(str(channel) for channel in presented.channels))
            telemetry.logger.info("Refused: credentials in conflict (%s); docs/faq.md says where they come from", names)
            return SessionReason.CONFLICT
        if presented.token is None:
            return SessionReason.MISSING
        if not self._is_safe and presented.is_cookie_only and self.is_from_elsewhere():  # sent without the page's doing
            return SessionReason.CROSS_SITE
        return None

    def _asked(self, max_age: float | None) -> Coroutine[Any, Any, Resolved]:
        """Return what the token stands for, by the sessions' word.

        It may be long after the request arrived: FastAPI reads a body, however slowly it comes, before it asks.
        """
        presented, waited = self.presented, self.sessions.monotonic() - self._arrived_at
        return self.sessions.resolved(
            presented.token or "", known_only=presented.is_cookie_only, max_age=max_age, waited=waited
        )

    def write_at_once(self, message: MutableMapping[str, Any]) -> bool:
        """Write a swapped token as `write` does, where nobody has to be waited for; False: `write` is to do it."""
        session = self.outcome
        life = self.sessions.remaining_life(session) if isinstance(session, Session) else None
        if life is None or not isinstance(session, Session):
            return False
        self._write(message, session.token, life)
        return True

    async def write(self, message: MutableMapping[str, Any]) -> None:
        """Write a swapped token into the start of a response, in place, after one more look at the session.

        It is the newest by then, as for an older token that is presented: whoever presented this one may have no other.
        """
        session = self.outcome
        if not isinstance(session, Session):
            return
        try:
            newest = await self.sessions.newest_token(session)
        except StoreError as error:
            telemetry.logger.warning("The swapped token goes out with the next response: %s", error)
            return
        if newest is not None:
            self._write(message, *newest)

    def _write(self, message: MutableMapping[str, Any], token: SecretStr, life: float) -> None:
        try:
            self.transport.write_session(message["headers"], self.presented.channels, token.get_secret_value(), life)
        except CookieTooLargeError as error:
            telemetry.logger.error("The swapped token cannot be set as a cookie: %s", error.message)


def put_session(request: RequestSession, scope: MutableMapping[str, Any]) -> None:
    """Put a request's session into its state, where the application finds it.

    Some servers and lifespan managers hand one state to many requests: Hypercorn 0.17, asgi-lifespan. What is in the
    state of a scope without our mark is another request's, which keeps it.
    """
    if "state" not in scope:
        scope["state"] = {}
    state = scope["state"]
    if STATE_NAME in state and OWN_MARK not in scope:
        state = scope["state"] = {**state}
    state[STATE_NAME] = request
    scope[OWN_MARK] = True


def request_session(connection: HTTPConnection) -> RequestSession:
    """Return the request's session. Raises `MiddlewareMissingError`."""
    scope = connection.scope
    found = scope.get("state", {}).get(STATE_NAME) if OWN_MARK in scope else None
    if not isinstance(found, RequestSession):
        raise MiddlewareMissingError
    return found
