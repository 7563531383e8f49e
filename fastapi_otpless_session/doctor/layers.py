"""The application's middleware: ours must be there, and the others where they should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fastapi_otpless_session.doctor.application import Application, Layer
from fastapi_otpless_session.doctor.findings import NotApplicableError, Outcome, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.settings import DEFAULT_PORTS

OURS = "OtplessSessionMiddleware"
ADD = f"app.add_middleware({OURS})"
STATE_ATTRIBUTE = "otpless"
ROUTER_METHODS = ("POST", "DELETE")
"""What the router's routes take beside GET."""
HOOKS = ("on_sign_in", "on_refresh", "on_sign_out", "on_reuse")


def _ours(app: Application) -> int:
    if app.ours is None:
        raise NotApplicableError(f"There is no {OURS} to compare with.")
    return app.ours


def _cors(setup: Setup) -> tuple[int, Layer]:
    found = setup.app.layer("CORSMiddleware")
    if found is None:
        raise NotApplicableError("There is no CORSMiddleware: pages of other origins cannot read answers.")
    return found


async def middleware(setup: Setup) -> Outcome:
    """It is there, once."""
    app = setup.app
    count = sum(layer.is_ours for layer in app.layers)
    if count > 1:
        return problem(f"{OURS} is there {count} times: requests are resolved {count} times.", "Add it once.")
    if count == 1:
        return ok(f"{OURS} is there.")
    inside = [path for path, each in app.mounted.items() if each.ours is not None]
    if inside:
        return warning(
            f"{OURS} is only in the application mounted at {', '.join(inside)}, whose lifespan nobody runs: no "
            "refresh-ahead, and what OTPLESS could not be told waits.",
            f"Add it to the outer application: {ADD}; the mounted one shares its session.",
        )
    return problem(f"There is no {OURS}: whatever asks for a session answers with an error.", f"Add it: {ADD}")


async def stack(setup: Setup) -> Outcome:
    """It can be built from the arguments that it was given."""
    app = setup.app
    failing = [("", app), *((f" mounted at {path}", each) for path, each in app.mounted.items())]
    for where, each in failing:
        if each.failure is not None:
            return _not_built(each, each.failure, where)
    return ok("The application's middleware can be built.")


def _not_built(app: Application, error: BaseException, where: str) -> Outcome:
    of_server = "" if where else ", and uvicorn says that lifespan appears unsupported"
    finding = (
        f"The middleware of the application{where} cannot be built ({type(error).__name__}: {error}): each request is "
        f"a 500{of_server}."
    )
    if isinstance(error, TypeError) and f"{OURS}.__init__() takes " in str(error):
        return problem(finding, f"settings= and sessions= are keywords: app.add_middleware({OURS}, settings=…)")
    hook = next((name for name in HOOKS if _is_not_ours(name, app, error)), None)
    if hook is None:
        return problem(finding, "Mend the arguments that the middleware is added with.")
    return problem(
        finding,
        "Hooks are arguments of OtplessSessions, and so are settings of yours: "
        f"add_middleware({OURS}, sessions=OtplessSessions({hook}=…))",
    )


def _is_not_ours(argument: str, app: Application, error: BaseException) -> bool:
    """Whether our middleware was given this argument, and the error is about it."""
    given = () if app.ours is None else app.layers[app.ours].arguments
    return isinstance(error, TypeError) and argument in given and f"'{argument}'" in str(error)


async def order(setup: Setup) -> Outcome:
    """What stands outside and inside of ours has what it needs."""
    app = setup.app
    number = _ours(app)
    outside, inside = app.layers[:number], app.layers[number + 1 :]
    if any(layer.is_a("ProxyHeadersMiddleware") for layer in inside):
        return warning(
            "ProxyHeadersMiddleware is inside ours, which sees the proxy's scheme and address.",
            f"Add it after {OURS}, so that it is outside, or start uvicorn with --proxy-headers.",
        )
    for layer in outside:
        if layer.is_a("BaseHTTPMiddleware") and _asks_for_session(layer):
            return problem(
                f"{_named(layer)} is outside ours: request.state.otpless is not there before its call_next.",
                f"Add it before {OURS}, which makes it an inner one.",
            )
    if any(layer.is_a("TrustedHostMiddleware", "HTTPSRedirectMiddleware") for layer in inside):
        name = next(layer.name for layer in inside if layer.is_a("TrustedHostMiddleware", "HTTPSRedirectMiddleware"))
        return warning(
            f"{name} is inside ours: sessions of requests that it turns away are resolved all the same.",
            f"Add it after {OURS}, so that it is outside.",
        )
    names = ", ".join(map(_named, outside)) or "nothing"
    return ok(f"Outside ours: {names}; inside: {', '.join(map(_named, inside)) or 'nothing'}.")


async def cors_order(setup: Setup) -> Outcome:
    """CORS is outside: refusals need its headers, too."""
    number, _ = _cors(setup)
    if number < _ours(setup.app):
        return ok("CORSMiddleware is outside ours.")
    fix = f"Add CORSMiddleware after {OURS}: what is added last is outermost."
    if setup.settings.required_paths:
        finding = "CORSMiddleware is inside ours: pages of other origins see a network error in place of a refusal."
        return problem(finding, fix)
    return warning("CORSMiddleware is inside ours, and would not see what OTPLESS_REQUIRED_PATHS refuses.", fix)


async def cors_headers(setup: Setup) -> Outcome:
    """CORS lets tokens through, both ways: in by the header that is a source, and out by ours, whichever it was."""
    _, cors = _cors(setup)
    header, sources = setup.settings.header_name, setup.settings.token_sources
    if {"header", "authorization"}.isdisjoint(sources):
        return skipped("Only the cookie carries tokens.")
    sent = header if "header" in sources else "Authorization"
    allowed, exposed = _texts(cors.arguments.get("allow_headers")), _exposed(cors)
    lacking = {}
    if not _has(allowed, sent):
        lacking["allow_headers"] = (sent, "pages of other origins cannot send it")
    if exposed and not _has(exposed, header):  # without a list of its own, CORSMiddleware leaves ours alone
        lacking["expose_headers"] = (header, "its list overwrites ours, and pages never see a swapped token")
    if not lacking:
        return ok(f"CORSMiddleware lets tokens in, by {sent}, and out, by {header}.")
    return _hidden(lacking, by_cookie=setup.uses_cookie and bool(cors.arguments.get("allow_credentials")))


def _hidden(lacking: Mapping[str, tuple[str, str]], *, by_cookie: bool) -> Outcome:
    """Name the headers that arguments of CORS lack, with what that does."""
    names = " and ".join(f"{header} in {argument}" for argument, (header, _) in lacking.items())
    finding = f"CORSMiddleware lacks {names}: {'; '.join(effect for _, effect in lacking.values())}."
    arguments = ", ".join(f'{argument}=[..., "{header}"]' for argument, (header, _) in lacking.items())
    fix = f"CORSMiddleware({arguments})"
    return warning(finding, f"{fix}, unless these pages have cookies only.") if by_cookie else problem(finding, fix)


async def cors_methods(setup: Setup) -> Outcome:
    """CORS lets the router's methods through: by itself it allows GET alone."""
    _, cors = _cors(setup)
    if setup.app.sign_in is None:
        return skipped("There is no router whose methods could be allowed.")
    allowed = _texts(cors.arguments.get("allow_methods"))
    missing = [] if "*" in allowed else [method for method in ROUTER_METHODS if method not in allowed]
    if not missing:
        return ok("CORSMiddleware lets the router's methods through.")
    judged, effect = (problem, "sign in or out") if "POST" in missing else (warning, "end one of a user's sessions")
    names = ", ".join(f'"{method}"' for method in [*allowed, *missing])
    return judged(
        f"CORSMiddleware lacks {' and '.join(missing)} in allow_methods: pages of other origins cannot {effect}.",
        f'CORSMiddleware(allow_methods=["*"]), or [{names}]',
    )


async def cors_origins(setup: Setup) -> Outcome:
    """Origins are written as browsers send them, and those that may read answers may also sign in."""
    _, cors = _cors(setup)
    allowed = _texts(cors.arguments.get("allow_origins"))
    if "*" in allowed and cors.arguments.get("allow_credentials"):
        return problem(
            'CORSMiddleware has allow_origins=["*"] with allow_credentials: any site reads what the cookie gives.',
            "Name the origins, in allow_origins and in OTPLESS_TRUSTED_ORIGINS.",
        )
    if (unheard := _unheard(allowed)) is not None:
        return unheard
    trusted = setup.settings.trusted_origins
    site = setup.known_site.origin if setup.known_site else None
    missing = [each for each in map(_as_sent, allowed) if each not in {*trusted, site, "*"}]
    if missing and setup.app.sign_in is not None:
        return problem(
            f"CORSMiddleware allows {', '.join(missing)}, which OTPLESS_TRUSTED_ORIGINS does not have: "
            "signing in and out from there is a 403.",
            f"OTPLESS_TRUSTED_ORIGINS={','.join([*trusted, *missing])}",
        )
    if not trusted and setup.app.sign_in is not None:
        return warning(
            "CORSMiddleware allows other origins, and OTPLESS_TRUSTED_ORIGINS has none: these cannot sign in or out.",
            "Name them in OTPLESS_TRUSTED_ORIGINS.",
        )
    return ok("The origins that CORSMiddleware allows are trusted.")


def _unheard(allowed: Sequence[str]) -> Outcome | None:
    """Name origins that no browser writes so: CORS compares them as they are."""
    unheard = [each for each in allowed if _as_sent(each) not in allowed]
    if not unheard:
        return None
    names = ", ".join(f'"{origin}"' for origin in dict.fromkeys(map(_as_sent, allowed)))
    return problem(
        f"{', '.join(unheard)} in allow_origins never matches: CORSMiddleware compares letter by letter, and browsers "
        "send scheme and host in small letters, without a path, a slash or the scheme's own port.",
        f"CORSMiddleware(allow_origins=[{names}])",
    )


async def trusted_hosts(setup: Setup) -> Outcome:
    """Hosts that are let in are hosts that the cookie is for."""
    found = setup.app.layer("TrustedHostMiddleware")
    if found is None:
        return skipped("There is no TrustedHostMiddleware.")
    hosts = _texts(found[1].arguments.get("allowed_hosts")) or ["*"]
    site, domain = setup.known_site, setup.settings.cookie_domain
    if site is not None and not any(_is_host(site.host, pattern) for pattern in hosts):
        return problem(
            f"TrustedHostMiddleware refuses {site.host}: it allows {', '.join(hosts)}.",
            f'TrustedHostMiddleware(allowed_hosts=[..., "{site.host}"])',
        )
    if domain is not None and "*" not in hosts and not any(_is_in(host, domain) for host in hosts):
        return problem(
            f"The cookie is for {domain}, and TrustedHostMiddleware allows {', '.join(hosts)} only: browsers drop it.",
            "OTPLESS_COOKIE_DOMAIN must be the end of an allowed host's name.",
        )
    return ok(f"TrustedHostMiddleware allows {', '.join(hosts)}.")


def _asks_for_session(layer: Layer) -> bool:
    """Whether a middleware's own code names `request.state.otpless`."""
    code = [layer.arguments.get("dispatch"), getattr(layer.kind, "dispatch", None)]
    return any(STATE_ATTRIBUTE in getattr(getattr(each, "__code__", None), "co_names", ()) for each in code)


def _named(layer: Layer) -> str:
    """Name a middleware; what `@app.middleware` made is known by its function."""
    function = getattr(layer.arguments.get("dispatch"), "__name__", None)
    return f"{layer.name} ({function})" if function else layer.name


def _has(headers: Sequence[str], header: str) -> bool:
    return not {"*", header.lower()}.isdisjoint(text.lower() for text in headers)


def _exposed(cors: Layer) -> Sequence[str]:
    """The headers that CORS exposes; one that is wrapped around the application has them ready as a header."""
    ready = cors.arguments.get("simple_headers", {})
    listed = ready.get("Access-Control-Expose-Headers", "").split(", ")
    return _texts(cors.arguments.get("expose_headers")) or [name for name in listed if name]


def _texts(value: object) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    return [str(each) for each in value] if isinstance(value, list | tuple | set | frozenset) else []


def _as_sent(origin: str) -> str:
    """Write an origin as browsers do; what is none of the web, such as `null`, stays as it is."""
    scheme, _, place = origin.lower().partition("://")
    port = DEFAULT_PORTS.get(scheme)
    return origin if port is None else f"{scheme}://{place.partition('/')[0].removesuffix(port)}"


def _is_host(host: str, pattern: str) -> bool:
    return pattern in {"*", host} or (pattern.startswith("*") and host.endswith(pattern[1:]))


def _is_in(host: str, domain: str) -> bool:
    host, domain = host.removeprefix("*.").lower(), domain.removeprefix(".").lower()
    return host == domain or host.endswith(f".{domain}")
