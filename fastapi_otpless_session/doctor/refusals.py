"""Where `on_refusal` sends people: to a page that needs a session itself, it would send them there without end."""

from __future__ import annotations

import inspect
import re
from asyncio import CancelledError
from collections.abc import Awaitable
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import Response

from fastapi_otpless_session.doctor.application import Application
from fastapi_otpless_session.doctor.findings import NotApplicableError, Outcome, ok, problem
from fastapi_otpless_session.doctor.load import guarded
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.errors import RefusalError, refusal
from fastapi_otpless_session.middleware import OnRefusal
from fastapi_otpless_session.session import SessionReason
from fastapi_otpless_session.transport import Transport

MOST_REDIRECTS = 20
"""As many as browsers follow."""
REDIRECTS = range(300, 400)
HERE = "doctor.invalid"
"""The host that requests are made up for."""


async def on_refusal(setup: Setup) -> Outcome:
    """Who is sent elsewhere arrives. The function itself is asked, with made-up requests; no route is."""
    ask, settings = _function(setup.app), setup.settings
    if ask is None or not settings.required_paths:
        raise NotApplicableError("on_refusal answers for OTPLESS_REQUIRED_PATHS, and one of the two is not there.")
    for glob in settings.required_paths:
        page = _page_without_end(setup, ask, re.sub(r"\*+", "x", glob))
        if page is not None:
            return problem(
                f"on_refusal redirects to {page}, which OTPLESS_REQUIRED_PATHS covers: without a session that is "
                "redirected again, without end.",
                f"Exempt the sign-in page: OTPLESS_EXEMPT_PATHS={','.join([*settings.exempt_paths, page])}",
            )
    return ok("Where on_refusal redirects to can be seen without a session.")


def _page_without_end(setup: Setup, ask: OnRefusal, path: str) -> str | None:
    """Return the page that a browser is sent to over and over; None where it gets an answer."""
    transport = Transport(setup.settings)
    seen: list[str] = []
    while transport.is_required(scope := _scope(setup.app, path)):
        if path in seen or len(seen) == MOST_REDIRECTS:
            return path.removeprefix(scope["root_path"])
        seen.append(path)
        target = _target(setup, ask, scope)
        if target is None:
            return None
        path = target
    return None


def _target(setup: Setup, ask: OnRefusal, scope: dict[str, Any]) -> str | None:
    """Return the path that `on_refusal` redirects to; None where that is elsewhere, or it answers by itself."""
    try:
        with guarded(setup.deadline):
            answer = ask(HTTPConnection(scope), refusal(SessionReason.MISSING))
            response = _finished(answer) if inspect.isawaitable(answer) else answer
            if response is None or response.status_code not in REDIRECTS:
                return None
            return _path_here(response, scope["path"])
    except RefusalError:
        return None
    except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001 - it may need more than is made up
        raise NotApplicableError(
            f"on_refusal has no answer to a made-up request: {type(error).__name__}: {error}"
        ) from None


def _finished(answer: Awaitable[Response | None]) -> Response | None:
    """Return what an awaitable gives at once: one that waits for somebody is not waited for."""
    steps = answer.__await__()
    try:
        next(steps)
    except StopIteration as done:
        response: Response | None = done.value
        return response
    steps.close()
    raise TimeoutError("it waits for something")


def _path_here(answer: Response, path: str) -> str | None:
    target = urlsplit(urljoin(f"https://{HERE}{path}", answer.headers.get("location", "//elsewhere")))
    return unquote(target.path) or "/" if target.netloc == HERE else None


def _function(app: Application) -> OnRefusal | None:
    """What the middleware was given; one that is wrapped around the application has it as an attribute."""
    given = {} if app.ours is None else app.layers[app.ours].arguments
    found: OnRefusal | None = given.get("on_refusal") or given.get("_on_refusal")
    return found


def _scope(app: Application, path: str) -> dict[str, Any]:
    """A browser's request for a page, as far as an `on_refusal` looks at it."""
    return {
        "type": "http",
        "method": "GET",
        "scheme": "https",
        "server": (HERE, 443),
        "client": None,
        "path": path,
        "raw_path": path.encode(),
        "root_path": getattr(app.inner, "root_path", ""),
        "query_string": b"",
        "headers": [(b"host", HERE.encode()), (b"accept", b"text/html")],
        "state": {},
        "app": app.inner,
    }
