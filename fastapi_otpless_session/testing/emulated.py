"""An application whose OTPLESS is the emulator, in the same process: no socket, no variable, no file."""

from __future__ import annotations

import asyncio
import copy
import math
import warnings
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any, Protocol, TypeVar

import httpx
from starlette.applications import Starlette
from starlette.types import ASGIApp

from fastapi_otpless_session import ConfigurationError, OtplessClient, OtplessSessions, OtplessSettings, open_store
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault
from fastapi_otpless_session.session import LAST_SECOND, Session
from fastapi_otpless_session.testing.clients import (
    Channel,
    Client,
    Credentials,
    application_of,
    channel_for,
    check_client,
)
from fastapi_otpless_session.testing.clock import Clock
from fastapi_otpless_session.testing.places import Place, existing_places, places, using
from fastapi_otpless_session.testing.settings import OTPLESS, settings_for_tests
from fastapi_otpless_session.tokens import is_id

MOBILE = "919999999999"
SHORTEST_LIFE = 60.0
REFRESH_LIFE = 7 * 86_400.0
LONGEST_PAUSE = 60.0
"""Seconds; longer than the client holds back calls to an OTPLESS that fails."""
NOBODY = "no.such.token"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A sign-in: who, which session, and the token that the client was given."""

    user_id: str
    session_id: str
    token: str = field(repr=False)
    """It is swapped for another when it expires: this one is then the old one."""


class SignIn(Protocol):
    """The type of the fixture `sign_in`. See `EmulatedOtpless.sign_in`."""

    def __call__(
        self,
        client: Client | None = None,
        *,
        user_id: str = ...,
        name: str | None = None,
        email: str | None = None,
        mobile: str | None = ...,
        expires_in: float | None = None,
        channel: Channel | None = None,
    ) -> SignedIn:
        """Sign somebody in."""
        ...


class EmulatedOtpless:
    """What `use_emulator` and the fixture `otpless_emulator` give: signs users in, and makes trouble.

    Whatever is said here holds from the application's next request on. All methods are plain functions, for
    asynchronous tests too.
    """

    def __init__(
        self, settings: OtplessSettings, emulator: Emulator, clock: Clock, own: OtplessSessions | None = None
    ) -> None:
        self.settings = settings
        """The application's settings in this test."""
        self.emulator = emulator
        """The emulator itself: its calls, its faults, its keys."""
        self._clock = clock
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app))
        self._client = OtplessClient(settings, http=self._http, monotonic=clock.hurried)
        # Neither is the sessions' own: an application whose lifespan ends would close them, and forget everybody.
        self._store = open_store(settings.store_url.get_secret_value(), clock=clock)
        self.sessions: OtplessSessions = _made_as(
            own, settings=settings, store=self._store, client=self._client, clock=clock, monotonic=clock.monotonic
        )
        """The sessions of the application."""
        self._credentials = Credentials(settings)
        self._thread = ThreadPoolExecutor(1, "otpless-testing")

    # Users

    def sign_in(
        self,
        client: Client | None = None,
        *,
        user_id: str = "MO-1",
        name: str | None = None,
        email: str | None = None,
        mobile: str | None = MOBILE,
        expires_in: float | None = None,
        channel: Channel | None = None,
    ) -> SignedIn:
        """Sign a user in, and let `client` carry the session from now on.

        Another session that it carried is ended, as the router does; a key of another API in its `Authorization` stays,
        unless the session goes there. `mobile` (digits with the country code) and `email` are the identities in the
        session's details; one of them is needed. `expires_in` is how many seconds the token lives at least, and those
        it is swapped for; 0 and less: it has expired already, and is swapped at the next request for one that lives a
        minute. `channel`: "cookie", "header" (`X-Session-Token`) or "authorization"; the first of them that the
        settings' `token_sources` allow. Swapped tokens are followed on all.

        Raises `ConfigurationError` where the client is another application's or cannot carry the cookie, ValueError
        for what no user or token can be, TypeError for what is no client, `UpstreamError` after `down()`.
        """
        if not is_id(user_id):
            raise ValueError(f"user_id must be 1 to 256 printable ASCII characters, not {user_id!r}")
        chosen = channel_for(self.settings, channel)
        if client is not None:
            self._check(client)
        session = self._run(self._sign_in(user_id, name, email, mobile, expires_in))
        signed_in = SignedIn(session.user_id, session.id, session.token.get_secret_value())
        if client is not None:
            for carried in self._credentials.tokens(client):
                self._run(self.sessions.replace(carried, session))
            self._credentials.take(client)
            self._credentials.give(client, chosen, signed_in.token)
        return signed_in

    def sign_out(self, user: SignedIn) -> None:
        """End a session as a sign-out on another device does: the client still carries its token (401)."""
        self._run(self.sessions.end(self._known(user)))

    def expire(self, user: SignedIn) -> None:
        """Let OTPLESS call the session's token dead: the next request swaps it."""
        self.emulator.expire(self._known(user))

    def revoke(self, user: SignedIn) -> None:
        """End a session at OTPLESS, as its dashboard does: the token is dead and cannot be swapped (401)."""
        self.emulator.revoke(self._known(user))

    # OTPLESS and time

    def down(self) -> AbstractContextManager[object]:
        """Let OTPLESS answer every call with 503, until `up()`, or to the end of the `with` block where there is one.

        Signed-in users are served for another `STALE_IF_ERROR` seconds (`session.stale`), then get a 503.
        """
        self.emulator.add_fault(Fault("status", status=503))
        until = ExitStack()
        until.callback(self.up)
        return until

    def up(self) -> None:
        """Let OTPLESS answer again, and the application know: it would hold calls back for a second."""
        self.emulator.clear_faults()
        self._clock.hurry(LONGEST_PAUSE)
        self._run(self._client.validate_session(NOBODY))

    def advance(self, seconds: float) -> None:
        """Let time pass, for application, store and OTPLESS. Raises ValueError where it would go back.

        What sleeps is not woken: an open websocket's session is looked at after `websocket_recheck` real seconds.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be 0 or more, not {seconds!r}: time does not go back")
        self._clock.advance(seconds)

    # Inside

    async def _sign_in(
        self, user_id: str, name: str | None, email: str | None, mobile: str | None, expires_in: float | None
    ) -> Session:
        life = _life(self._clock(), self.emulator.settings.session_lifetime if expires_in is None else expires_in)
        with self._clock.at(life.issued_at):
            user = self.emulator.sign_in(
                user_id,
                mobile=mobile,
                email=email,
                name=name,
                session_lifetime=life.session_token,
                refresh_lifetime=life.refresh_token,
            )
            return await self.sessions.sign_in(user)

    def _known(self, user: SignedIn) -> str:
        if not isinstance(user, SignedIn):
            raise TypeError(f"what sign_in returned is wanted here, not {type(user).__name__}")
        if user.session_id not in {each.session_id for each in self.emulator.sessions()}:
            raise ConfigurationError(f"{user.user_id} was not signed in here: every test starts with nobody signed in")
        return user.session_id

    def _check(self, client: Client) -> None:
        check_client(client)
        app = application_of(client)
        found = places(app)
        if not found and isinstance(app, Starlette):
            existing_places(app)
        if found and not any(place.sessions is self.sessions for place in found):
            raise ConfigurationError(
                "This client is of another application than the one that the emulator was put into. With the fixtures, "
                "override otpless_app so that it returns yours; or say use_emulator(app)."
            )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await on an event loop in a thread: the caller's own may be running."""
        return self._thread.submit(asyncio.run, work).result()

    def _close(self) -> None:
        self._run(self._store.close())
        self._run(self._http.aclose())
        self._thread.shutdown()


@dataclass(frozen=True, slots=True)
class _Life:
    """When tokens are issued (seconds since the epoch), and how many seconds they live from then on."""

    issued_at: float
    session_token: float
    refresh_token: float


def _life(now: float, expires_in: float) -> _Life:
    """Return the life of a session whose token expires so many seconds from now, or did.

    A token's times are whole seconds. One that is over or nearly so was issued earlier: no sign-in brings a dead token.
    """
    if not math.isfinite(expires_in):
        raise ValueError(f"expires_in must be a number of seconds, not {expires_in!r}")
    ends_at = math.ceil(now + expires_in) if expires_in > 0 else math.floor(now + expires_in)
    issued_at = min(now, ends_at - SHORTEST_LIFE)
    over_at = max(now, ends_at) + REFRESH_LIFE
    if issued_at <= 0 or over_at > LAST_SECOND:
        raise ValueError(f"expires_in must lead to a time from 1970 to 9999, not {expires_in!r}")
    return _Life(issued_at, ends_at - issued_at + 0.001, over_at - issued_at)  # the claims are rounded down


def _warn_of_started(found: list[Place]) -> None:
    """Warn of an application that was started with its own settings: it opened the developer's store, and asks OTPLESS.

    That shows where a lifespan runs, whose sessions are open. Those of another emulator harm nobody. It is no error:
    from here on the emulator serves the requests.
    """
    for place in found:
        sessions = place.serving
        if sessions is not None and sessions.is_open and sessions.settings.base_url != OTPLESS:
            scheme = sessions.settings.store_url.get_secret_value().partition("://")[0]
            warnings.warn(
                "This application was started before the emulator was put into it: with its own settings, those of the "
                f"environment or of .env, and its own store ({scheme}://). Let it start afterwards: a fixture that "
                "opens a client has to ask for otpless_emulator before the client is made, as in "
                "def client(otpless_emulator); where its scope is wider, it enters use_emulator(app) itself.",
                stacklevel=4,  # of who enters use_emulator
            )


def _made_as(own: OtplessSessions | None, **values: Any) -> OtplessSessions:
    """Return sessions of the class that an application's own are of, with their hooks and attributes.

    Not by that class's `__init__`, which nobody knows how to call. Warns where it cannot be made without.
    """
    hooks: Mapping[str, Any] = {} if own is None else own.hooks
    if own is not None and type(own) is not OtplessSessions:
        try:
            made = copy.copy(own)
            OtplessSessions.__init__(
                made, **values, **{name: _bound_to(made, own, hook) for name, hook in hooks.items()}
            )
        except Exception as error:  # noqa: BLE001 - whatever a class of somebody else's does
            instead = f"{type(own).__name__} cannot be made for a test ({error}): plain OtplessSessions take its place"
            warnings.warn(instead, stacklevel=5)
        else:
            return made
    return OtplessSessions(**values, **hooks)


def _bound_to(made: OtplessSessions, own: OtplessSessions, hook: Any) -> Any:
    """Return a hook that was one of `own`'s methods as one of `made`'s."""
    return MethodType(hook.__func__, made) if getattr(hook, "__self__", None) is own else hook


@contextmanager
def use_emulator(
    app: ASGIApp, *, emulator_settings: EmulatorSettings | None = None, **settings: Any
) -> Iterator[EmulatedOtpless]:
    """Put the emulator in OTPLESS's place for an application, and take it out again afterwards.

    The application may have been in use before, and be used again by the next test: each starts with nobody signed in.
    Its middleware gets sessions in memory; the settings are those that it was given in code (never those of the
    environment or of `.env`), with the emulator's credentials, cookies that http:// clients send too, and OTPLESS asked
    at every request (`validation_ttl=0`). `settings` are put on top. Its hooks are called. `emulator_settings` say how
    OTPLESS behaves where its documentation is silent, such as `EmulatorSettings(rotation="strict")`.

    Raises `ConfigurationError` where the application has no `OtplessSessionMiddleware`, or a setting is wrong. Warns
    where it runs already, with its own settings.
    """
    found = existing_places(app)
    _warn_of_started(found)
    clock = Clock()
    emulator = Emulator(emulator_settings or EmulatorSettings(), clock=clock)
    own = next((place.settings for place in found if place.settings is not None), None)
    sessions = next((place.sessions for place in found if place.sessions is not None), None)
    emulated = EmulatedOtpless(settings_for_tests(own, emulator.settings, settings), emulator, clock, sessions)
    try:
        with using(found, emulated.sessions):
            yield emulated
    finally:
        emulated._close()  # noqa: SLF001 - nobody else is to
