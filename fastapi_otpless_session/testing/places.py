"""Where an application has the middleware, and how it gets other sessions for a while.

Only what Starlette documents is used: an application's list of middleware, and the stack that it builds of them on the
first use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from fastapi_otpless_session import ConfigurationError, OtplessSessionMiddleware, OtplessSessions, OtplessSettings
from fastapi_otpless_session.testing.overridden import OverridingMiddleware


@dataclass(frozen=True, slots=True)
class _Added:
    """With `app.add_middleware(OtplessSessionMiddleware)`, or in the application's `middleware=[…]`."""

    app: Starlette
    entry: Middleware

    @property
    def sessions(self) -> OtplessSessions | None:
        found = self.entry.kwargs.get("sessions")
        return found if isinstance(found, OtplessSessions) else None

    @property
    def settings(self) -> OtplessSettings | None:
        found = self.sessions.settings if self.sessions is not None else self.entry.kwargs.get("settings")
        return found if isinstance(found, OtplessSettings) else None

    @property
    def serving(self) -> OtplessSessions | None:
        """What serves it already; None where it was not in use."""
        stack = _inside(self.app.middleware_stack)
        return _serving(next((one for one in stack if isinstance(one, OtplessSessionMiddleware)), None))

    def using(self, sessions: OtplessSessions) -> AbstractContextManager[None]:
        kept: dict[str, Any] = {name: value for name, value in self.entry.kwargs.items() if name != "settings"}
        instead = Middleware(_without_settings(self.entry.cls), *self.entry.args, **{**kept, "sessions": sessions})
        return self.replaced_by(instead)

    def replaced_by(self, instead: Middleware) -> AbstractContextManager[None]:
        return _with_middleware(self.app, [instead if one is self.entry else one for one in self.app.user_middleware])


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """With `OtplessSessionMiddleware(app)`."""

    middleware: Any

    @property
    def sessions(self) -> OtplessSessions | None:
        return next(self._having(OtplessSessions), None)

    @property
    def settings(self) -> OtplessSettings | None:
        return self.sessions.settings if self.sessions is not None else next(self._having(OtplessSettings), None)

    def _having(self, kind: type[Any]) -> Iterator[Any]:
        return (value for value in vars(self.middleware).values() if isinstance(value, kind))

    @property
    def serving(self) -> OtplessSessions | None:
        return _serving(self.middleware)

    def using(self, sessions: OtplessSessions) -> AbstractContextManager[None]:
        on_refusal = self.middleware._on_refusal  # noqa: SLF001 - what else it was made with
        made_by = _without_settings(type(self.middleware))
        return self.replaced_by(Middleware(made_by, sessions=sessions, on_refusal=on_refusal))

    @contextmanager
    def replaced_by(self, instead: Middleware) -> Iterator[None]:
        # The application holds this very object: it becomes one that was made in the other way.
        before = type(self.middleware), dict(vars(self.middleware))
        made = instead.cls(self.middleware.app, *instead.args, **instead.kwargs)
        self._become(type(made), vars(made))
        try:
            yield
        finally:
            self._become(*before)

    def _become(self, kind: type[Any], attributes: Mapping[str, Any]) -> None:
        self.middleware.__class__ = kind
        vars(self.middleware).clear()
        vars(self.middleware).update(attributes)


def _without_settings(made_by: Any) -> Any:
    """Return such middleware with no settings beside the sessions': the application's own may give itself some."""

    def make(self: Any, app: ASGIApp, *args: Any, **values: Any) -> None:
        made_by.__init__(self, app, *args, **values)
        self._settings = None

    return type(made_by.__name__, (made_by,), {"__init__": make})


def _serving(middleware: Any) -> OtplessSessions | None:
    """Return what a middleware has made, or been given, for requests and its lifespan."""
    serving = getattr(middleware, "_serving", None)
    return None if serving is None else serving.sessions


def _inside(app: object) -> Iterator[object]:
    """Return an application or middleware, and what it wraps."""
    while app is not None:
        yield app
        app = getattr(app, "app", None)


Place = _Added | _Wrapped


def places(app: object, kinds: tuple[type[Any], ...] = (OtplessSessionMiddleware,)) -> list[Place]:
    """Return where the middleware is: on the application, on what wraps it, on what is mounted in it.

    `kinds`: the classes to look for.
    """
    return [place for one in applications(app) for place in _places_on(one, kinds)]


def applications(app: object) -> Iterator[object]:
    """Return an application, what it wraps, and what is mounted in it."""
    for one in _inside(app):
        yield one
        for route in getattr(one, "routes", ()):  # FastAPI keeps included routers as they are
            yield from applications(getattr(route, "original_router", None) or getattr(route, "app", None))


def _places_on(app: object, kinds: tuple[type[Any], ...]) -> Iterator[Place]:
    if isinstance(app, kinds):
        yield _Wrapped(app)
    if isinstance(app, Starlette):
        yield from (_Added(app, entry) for entry in app.user_middleware if _is_one_of(entry, kinds))


def _is_one_of(entry: Middleware, kinds: tuple[type[Any], ...]) -> bool:
    made_by: object = entry.cls
    return isinstance(made_by, type) and issubclass(made_by, kinds)


def existing_places(app: object) -> list[Place]:
    """Return `places`. Raises `ConfigurationError` where there is none."""
    found = places(app)
    if not found and places(app, (OverridingMiddleware,)):
        raise ConfigurationError(
            "override_session has taken OtplessSessionMiddleware's place on this application: every request has its "
            "session already. Use sign_in and use_emulator(app) outside of its block."
        )
    if not found:
        raise ConfigurationError(
            f"There is no OtplessSessionMiddleware on this application ({type(app).__name__}). "
            "Add it: app.add_middleware(OtplessSessionMiddleware). "
            "For tests without any middleware there is override_session(app, user_id=…)."
        )
    return found


@contextmanager
def using(found: list[Place], sessions: OtplessSessions) -> Iterator[None]:
    """Give the middleware other sessions, and afterwards its own again."""
    with ExitStack() as stack:
        for place in found:
            stack.enter_context(place.using(sessions))
        yield


@contextmanager
def replaced(app: Starlette, found: list[Place], instead: Middleware) -> Iterator[None]:
    """Put other middleware in all those places, and outermost on the application where that has none."""
    with ExitStack() as stack:
        if not any(isinstance(place, _Added) and place.app is app for place in found):
            stack.enter_context(_with_middleware(app, [instead, *app.user_middleware]))
        for place in found:
            stack.enter_context(place.replaced_by(instead))
        yield


@contextmanager
def _with_middleware(app: Starlette, entries: list[Middleware]) -> Iterator[None]:
    before = app.user_middleware, app.middleware_stack
    app.user_middleware, app.middleware_stack = entries, None
    try:
        yield
    finally:
        app.user_middleware, app.middleware_stack = before
