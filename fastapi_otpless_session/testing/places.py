"""Where an application has the middleware, and how it gets other sessions for a while.

Only what Starlette documents is used: an application's list of middleware, and the stack that it builds of them on the
first use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware

from fastapi_otpless_session import ConfigurationError, OtplessSessionMiddleware, OtplessSessions, OtplessSettings


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

    def using(self, sessions: OtplessSessions) -> AbstractContextManager[None]:
        kept: dict[str, Any] = {name: value for name, value in self.entry.kwargs.items() if name != "settings"}
        instead = Middleware(self.entry.cls, *self.entry.args, **{**kept, "sessions": sessions})
        return _with_middleware(self.app, [instead if one is self.entry else one for one in self.app.user_middleware])


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """With `OtplessSessionMiddleware(app)`."""

    middleware: OtplessSessionMiddleware

    @property
    def sessions(self) -> OtplessSessions | None:
        return next(self._having(OtplessSessions), None)

    @property
    def settings(self) -> OtplessSettings | None:
        return self.sessions.settings if self.sessions is not None else next(self._having(OtplessSettings), None)

    def _having(self, kind: type[Any]) -> Iterator[Any]:
        return (value for value in vars(self.middleware).values() if isinstance(value, kind))

    @contextmanager
    def using(self, sessions: OtplessSessions) -> Iterator[None]:
        # The application holds this very object: it becomes one that was made with the other sessions.
        attributes = vars(self.middleware)
        before = dict(attributes)
        on_refusal = self.middleware._on_refusal  # noqa: SLF001 - what else it was made with
        instead = type(self.middleware)(self.middleware.app, sessions=sessions, on_refusal=on_refusal)
        attributes.update(vars(instead))
        try:
            yield
        finally:
            attributes.clear()
            attributes.update(before)


Place = _Added | _Wrapped


def places(app: object) -> list[Place]:
    """Return where the middleware is: on the application, on what wraps it, on what is mounted in it."""
    return list(_walk(app))


def _walk(app: object) -> Iterator[Place]:
    while app is not None:
        if isinstance(app, OtplessSessionMiddleware):
            yield _Wrapped(app)
        if isinstance(app, Starlette):
            yield from (_Added(app, entry) for entry in app.user_middleware if _is_ours(entry))
        for route in getattr(app, "routes", ()):  # FastAPI keeps included routers as they are
            yield from _walk(getattr(route, "original_router", None) or getattr(route, "app", None))
        app = getattr(app, "app", None)


def _is_ours(entry: Middleware) -> bool:
    made_by: object = entry.cls
    return isinstance(made_by, type) and issubclass(made_by, OtplessSessionMiddleware)


def existing_places(app: object) -> list[Place]:
    """Return `places`. Raises `ConfigurationError` where there is none."""
    found = places(app)
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


def instead_of_middleware(app: Starlette, entry: Middleware) -> AbstractContextManager[None]:
    """Put an entry in the middleware's place, or outermost where there is none; afterwards all is as before."""
    goes = [one for one in app.user_middleware if _is_ours(one) or one.cls is entry.cls]
    first = goes[0] if goes else None
    kept = [entry if one is first else one for one in app.user_middleware if one is first or one not in goes]
    return _with_middleware(app, kept if goes else [entry, *kept])


@contextmanager
def _with_middleware(app: Starlette, entries: list[Middleware]) -> Iterator[None]:
    before = app.user_middleware, app.middleware_stack
    app.user_middleware, app.middleware_stack = entries, None
    try:
        yield
    finally:
        app.user_middleware, app.middleware_stack = before
