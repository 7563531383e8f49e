"""An application, taken apart: its middleware from the outside in, its routes, and what is mounted in it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, get_args, get_origin

import fastapi.routing
from fastapi.dependencies.models import Dependant
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Host, Mount, Route, WebSocketRoute

from fastapi_otpless_session.dependencies import (
    current_session,
    current_session_details,
    fresh_session,
    fresh_within,
    made_by_fresh_within,
)
from fastapi_otpless_session.middleware import OtplessSessionMiddleware
from fastapi_otpless_session.router import SignInRoute
from fastapi_otpless_session.session import Session, SessionDetails
from fastapi_otpless_session.sessions import OtplessSessions
from fastapi_otpless_session.settings import OtplessSettings


@dataclass(frozen=True, slots=True)
class Layer:
    """One middleware: what it is, and the arguments that it was given."""

    kind: Any
    arguments: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """The name of its class."""
        return str(getattr(self.kind, "__name__", type(self.kind).__name__))

    def is_a(self, *names: str) -> bool:
        """Whether it is one of these, or made from one, by the names of classes."""
        bases = inspect.getmro(self.kind) if inspect.isclass(self.kind) else ()
        return bool({self.name, *(base.__name__ for base in bases)} & set(names))

    @property
    def is_ours(self) -> bool:
        """Whether it is `OtplessSessionMiddleware`."""
        return inspect.isclass(self.kind) and issubclass(self.kind, OtplessSessionMiddleware)


@dataclass(frozen=True, slots=True)
class Place:
    """A route's full path, as a template. A mount's path leads to all paths below it."""

    path: str
    is_sign_in: bool = False
    is_open: bool = False
    """Whether everything below it belongs to it, too."""
    is_misread: bool = False
    """Whether FastAPI takes the session that it asks for to be a part of the request."""
    needs_session: bool = False
    """Whether one of its dependencies, wherever that was added, refuses who has no session."""


@dataclass(frozen=True, slots=True)
class Application:
    """What the doctor sees of an application."""

    layers: tuple[Layer, ...]
    """From the outside in."""
    places: tuple[Place, ...]
    has_websockets: bool = False
    mounted: Mapping[str, Application] = field(default_factory=dict)
    """The applications that are mounted in it, by their paths."""
    failure: BaseException | None = None
    """Why its middleware cannot be built, as a server would have it built by the first event."""
    inner: Any = field(default=None, repr=False, compare=False)
    """The application itself, without what is wrapped around it."""

    @property
    def ours(self) -> int | None:
        """Where `OtplessSessionMiddleware` stands among the layers."""
        return next((number for number, layer in enumerate(self.layers) if layer.is_ours), None)

    @property
    def sign_in(self) -> str | None:
        """The path of the router's sign-in route."""
        return next((place.path for place in self.places if place.is_sign_in), None)

    @property
    def sessions(self) -> OtplessSessions | None:
        """The sessions that the middleware was given in code."""
        return next((each for each in self._given if isinstance(each, OtplessSessions)), None)

    @property
    def settings(self) -> OtplessSettings | None:
        """The settings that the middleware was given in code."""
        if self.sessions is not None:
            return self.sessions.settings
        return next((each for each in self._given if isinstance(each, OtplessSettings)), None)

    @property
    def _given(self) -> Sequence[Any]:
        return () if self.ours is None else list(self.layers[self.ours].arguments.values())

    def layer(self, name: str) -> tuple[int, Layer] | None:
        """Return the outermost middleware of a class, by its name, and where it stands."""
        return next(((number, layer) for number, layer in enumerate(self.layers) if layer.is_a(name)), None)


def view(app: Any) -> Application:
    """Take an application apart, and build its middleware once, to throw it away.

    What is wrapped around it counts as middleware.
    """
    wrappers = []
    while not hasattr(app, "user_middleware") and (inner := getattr(app, "app", None)) is not None:
        wrappers.append(Layer(type(app), _attributes(app)))
        app = inner
    layers = [*wrappers, *map(_layer, getattr(app, "user_middleware", ()))]
    mounted: dict[str, Application] = {}
    places, websockets = [], False
    for place, route in _walk(app, "", mounted):
        places.append(place)
        websockets = websockets or isinstance(route, WebSocketRoute)
    return Application(tuple(layers), tuple(places), websockets, mounted, _failure(app), app)


def _failure(app: Any) -> BaseException | None:
    """Build what Starlette builds only when the first event comes, and keeps then. Nothing is run, nothing kept."""
    build = getattr(app, "build_middleware_stack", None)
    if build is None or getattr(app, "middleware_stack", None) is not None:
        return None
    try:
        build()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is anybody's middleware, and the check tells it
        return error
    return None


def _layer(middleware: Middleware) -> Layer:
    kind: Any = middleware.cls
    try:
        bound = inspect.signature(kind).bind(None, *middleware.args, **middleware.kwargs)
    except (TypeError, ValueError):  # Starlette itself will say so, and better
        return Layer(kind, middleware.kwargs)
    bound.apply_defaults()
    return Layer(kind, bound.arguments)


def _attributes(wrapper: object) -> dict[str, Any]:
    """A wrapper's attributes stand for the arguments that it was given."""
    return dict(getattr(wrapper, "__dict__", {}))


def _walk(app: Any, prefix: str, mounted: dict[str, Application]) -> Iterator[tuple[Place, BaseRoute]]:
    for path, route, asked in _flat(getattr(app, "routes", ())):
        if isinstance(route, Mount | Host):
            at = prefix + (route.path if isinstance(route, Mount) else "")
            within = unwrapped(route.app)
            if hasattr(within, "user_middleware"):
                mounted[at or "/"] = view(route.app)
            inner = list(_walk(within, at, mounted))
            yield from inner or [(Place(at, is_open=True), route)]
        else:
            is_sign_in = isinstance(route, SignInRoute)
            yield Place(prefix + path, is_sign_in, is_misread=_is_misread(asked), needs_session=_refuses(asked)), route
    for path, route in _frontends(app):
        yield Place(prefix + path, is_open=True), route


def unwrapped(app: Any) -> Any:
    """Return what other middleware was put around before it was mounted."""
    while not hasattr(app, "routes") and (inner := getattr(app, "app", None)) is not None:
        app = inner
    return app


def _flat(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, BaseRoute, Dependant | None]]:
    """Name all routes with their paths, and what each asks for, its routers' and its application's dependencies too.

    Newer versions of FastAPI keep an included router as one route.
    """
    contexts: Any = getattr(fastapi.routing, "iter_route_contexts", None)
    if contexts is None:
        for route in routes:
            yield _path(route), route, _dependant(route)
    else:
        for context in contexts(list(routes)):
            yield str(context.path or ""), context.original_route, _dependant(context)


def _frontends(app: Any) -> Iterator[tuple[str, BaseRoute]]:
    """Name what `app.frontend(...)` serves, by its paths: newer versions of FastAPI keep it apart from the routes."""
    kept = getattr(getattr(app, "router", app), "_iter_low_priority_routes", None)
    for context in kept() if kept is not None else ():
        group = getattr(context, "original_route", context)
        for route in getattr(group, "routes", ()):
            yield f"{getattr(context, 'frontend_prefix', '')}{route.path}".rstrip("/"), route


def _path(route: BaseRoute) -> str:
    return route.path if isinstance(route, Route | WebSocketRoute | Mount) else ""


def _dependant(route: object) -> Dependant | None:
    """What a route of FastAPI's asks for; others ask for nothing."""
    found = getattr(route, "dependant", None)
    return found if isinstance(found, Dependant) else None


def _is_misread(asked: Dependant | None) -> bool:
    """Whether somebody wrote `Depends(CurrentSession)`, `Depends(fresh_within)`, or `session: Session` by itself."""
    if asked is None:
        return False
    called: list[Any] = [each.call for each in asked.dependencies]
    if fresh_within in called:
        return True
    types = [get_args(call)[0] for call in called if get_origin(call) is Annotated]
    types += [field.field_info.annotation for field in asked.body_params]
    return any(_is_ours(each) for each in types) or any(map(_is_misread, asked.dependencies))


def _refuses(asked: Dependant | None) -> bool:
    """Whether a dependency, or what that depends on in turn, refuses who has no session."""
    if asked is None:
        return False
    refusing: list[Any] = [current_session, fresh_session, current_session_details, *made_by_fresh_within.values()]
    return any(each.call in refusing or _refuses(each) for each in asked.dependencies)


def _is_ours(annotation: Any) -> bool:
    return any(each in (Session, SessionDetails) for each in (annotation, *get_args(annotation)))
