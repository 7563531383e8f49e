"""Who gets a request: the first route that matches, in the order in which the application has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from starlette.routing import BaseRoute, Host, Match, Mount
from starlette.types import Scope

from fastapi_otpless_session.connection import EXEMPT_MARK
from fastapi_otpless_session.doctor.application import unwrapped

PARAMETER = re.compile(r"\{\w+:?(\w*)\}")
EXAMPLES = {
    "": "1",
    "str": "1",
    "path": "1",
    "int": "1",
    "float": "1",
    "uuid": "00000000-0000-0000-0000-000000000000",
}
"""A value for each kind of path parameter that Starlette has."""


def taker(app: Any, template: str) -> str | None:
    """Name what gets a POST to the router's route with this path in its place; None: it gets it itself.

    None also where that cannot be told: paths with parameters of the application's own kinds, and hosts.
    """
    if not EXAMPLES.keys() >= set(PARAMETER.findall(template)):
        return None
    path = PARAMETER.sub(lambda parameter: EXAMPLES[parameter[1]], template)
    scope: Scope = {"type": "http", "method": "POST", "path": path, "root_path": "", "query_string": b"", "headers": []}
    name, at, routes = None, "", getattr(app, "routes", ())
    while (first := _first(routes, scope)) is not None:
        route, scope = first
        if EXEMPT_MARK in scope or isinstance(route, Host):
            return None
        name, inner = _named(route, at), unwrapped(getattr(route, "app", None))
        at, routes = at + getattr(route, "path", ""), getattr(inner, "routes", ())
    return name


def _first(routes: Iterable[BaseRoute], scope: Scope) -> tuple[BaseRoute, Scope] | None:
    """Return the first route that matches, and the scope that it passes on. A host may match: that is not known."""
    for route in routes:
        probe = {**scope}
        match, child = route.matches(probe)
        if match is Match.FULL or isinstance(route, Host):
            return route, {**probe, **child}
    return None


def _named(route: BaseRoute, at: str) -> str:
    path = getattr(route, "path", None)
    if path is None:
        return "another router"
    if isinstance(route, Mount):
        return f"what is mounted at {at}{path or '/'}"
    methods = ", ".join(sorted(getattr(route, "methods", None) or ["*"]))
    return f"the route {methods} {at}{path}"
