"""The application's routes: whether the router is there, what is mounted, and whether path globs match anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi_otpless_session.doctor.application import Place
from fastapi_otpless_session.doctor.findings import Outcome, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.matching import taker
from fastapi_otpless_session.doctor.setup import Setup

PARAMETER = re.compile(r"\{[^{}]*\}")
PATH_PARAMETER = re.compile(r"\{[^{}]*:path\}")
OPEN_END = "**"


async def router(setup: Setup) -> Outcome:
    """People can sign in."""
    places = [place for place in setup.app.places if place.is_sign_in]
    paths, closed = [place.path for place in places], [place.path for place in places if place.needs_session]
    if closed:
        return problem(
            f"POST {', '.join(closed)} asks for a session itself, by a dependency of the application or of a router: "
            "nobody without one can sign in.",
            "Give that dependency to the routers that need a session, or name their paths in OTPLESS_REQUIRED_PATHS, "
            "which leaves signing in open.",
        )
    for path in paths:
        if (name := taker(setup.app.inner, path)) is not None:
            return problem(
                f"POST {path} does not reach the router: {name} gets it first, and nobody can sign in.",
                "Routes are asked in their order: put app.include_router(create_session_router(), …) before it.",
            )
    if len(paths) > 1:
        return warning(f"The router is there {len(paths)} times: {', '.join(paths)}.", "Include it once.")
    if paths:
        return ok(f"People sign in at POST {paths[0]}.")
    return warning(
        "There is no router: nobody can sign in or out here. That is right where the OTPLESS SDK keeps the tokens.",
        'app.include_router(create_session_router(), prefix="/auth")',
    )


async def session_arguments(setup: Setup) -> Outcome:
    """Routes ask for the session in a way that FastAPI understands."""
    misread = [place.path for place in setup.app.places if place.is_misread]
    if not misread:
        return ok("No route has its session taken for a part of the request.")
    return problem(
        f"FastAPI takes the session of {', '.join(misread)} for a part of the request: the answer is 422, or it is "
        "never there.",
        "Without Depends: session: CurrentSession, details: CurrentSessionDetails. With it: Depends(fresh_within(60)).",
    )


async def mounted(setup: Setup) -> Outcome:
    """Mounted applications share the outer one's session."""
    app = setup.app
    if not app.mounted:
        return skipped("No application is mounted in this one.")
    twice = [path for path, inner in app.mounted.items() if inner.ours is not None and app.ours is not None]
    if twice:
        return warning(
            f"The application mounted at {', '.join(twice)} has OtplessSessionMiddleware, and so has the outer one: "
            "two of them, with settings and connections each.",
            "Take it out of the mounted application; that shares the outer one's session.",
        )
    names = ", ".join(app.mounted)
    return ok(f"Mounted at {names}: the session is there, too; exception handlers of the outer application are not.")


async def required_paths(setup: Setup) -> Outcome:
    """Each glob of REQUIRED_PATHS matches a route."""
    return _matched(setup, "OTPLESS_REQUIRED_PATHS", setup.settings.required_paths, "protects nothing")


async def exempt_paths(setup: Setup) -> Outcome:
    """Each glob of EXEMPT_PATHS matches a route, and there is something to be exempt from."""
    globs = setup.settings.exempt_paths
    if globs and not setup.settings.required_paths:
        return warning(
            "OTPLESS_EXEMPT_PATHS makes exceptions, and OTPLESS_REQUIRED_PATHS has no rule.",
            "Write OTPLESS_REQUIRED_PATHS, or drop the exceptions.",
        )
    return _matched(setup, "OTPLESS_EXEMPT_PATHS", globs, "exempts nothing")


def _matched(setup: Setup, variable: str, globs: Sequence[str], effect: str) -> Outcome:
    if not globs:
        return skipped(f"{variable} is empty.")
    lonely = [glob for glob in globs if not any(meets(glob, place) for place in setup.app.places)]
    if not lonely:
        return ok(f"Each path of {variable} has a route: {', '.join(globs)}.")
    judged = problem if variable == "OTPLESS_REQUIRED_PATHS" else warning
    return judged(
        f"{', '.join(lonely)} in {variable} matches no route, and {effect}.",
        "Write paths as the router has them, without a proxy's prefix; * is one segment, /** a folder and all below.",
    )


def meets(glob: str, place: Place) -> bool:
    """Whether there may be a path that both a glob and a route match."""
    wanted = [OPEN_END if part == OPEN_END else part for part in re.sub("/{2,}", "/", glob).split("/")]
    template = PATH_PARAMETER.sub(OPEN_END, place.path)
    offered = template.rstrip("/").split("/") + [OPEN_END] * place.is_open
    return _meet(wanted, offered)


def _meet(glob: Sequence[str], route: Sequence[str]) -> bool:
    if not glob or not route:
        return (not glob and not route) or [*glob, *route] in ([OPEN_END], [""])
    if glob[0] == OPEN_END or OPEN_END in route[0]:  # whatever comes then; the other may be at its end
        return True
    return _segments_meet(glob[0], route[0]) and _meet(glob[1:], route[1:])


def _segments_meet(glob: str, segment: str) -> bool:
    """Whether a segment of a glob and one of a route can be the same. Where both are open, they are taken to be."""
    if "*" in glob and PARAMETER.search(segment):
        return True
    if "*" in glob:
        return re.fullmatch(re.escape(glob).replace(r"\*", ".*"), segment) is not None and bool(segment)
    pattern = "".join(re.escape(part) + ".+" for part in PARAMETER.split(segment))[: -len(".+")]
    return re.fullmatch(pattern, glob) is not None
