"""The cookie's flags against the site that it is for: what browsers drop or withhold, they do without a word."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fastapi_otpless_session.doctor.findings import NotApplicableError, Outcome, ok, problem, skipped, warning
from fastapi_otpless_session.doctor.setup import Setup, Site
from fastapi_otpless_session.settings import OtplessSettings, is_loopback


def _cookies(setup: Setup) -> OtplessSettings:
    if not setup.uses_cookie:
        raise NotApplicableError("OTPLESS_TOKEN_SOURCES has no cookie.")
    return setup.settings


async def secure(setup: Setup) -> Outcome:
    """`Secure` suits the site's scheme."""
    settings, site = _cookies(setup), setup.known_site
    if not settings.cookie_secure:
        return _in_the_clear(site)
    if site is None:
        return ok(f"Browsers send {settings.cookie} over https only; --site checks that against the site's address.")
    if site.is_https:
        return ok(f"Browsers send {settings.cookie} over https only.")
    if site.is_local:
        return warning(
            f"{site.origin} is http: Chrome and Firefox keep a Secure cookie of this machine, Safari drops it.",
            "Set OTPLESS_COOKIE_SECURE=false in development.",
        )
    return problem(
        f"{site.origin} is http: browsers drop the Secure cookie, and nobody stays signed in.",
        "Serve the site over https; in development set OTPLESS_COOKIE_SECURE=false.",
    )


def _in_the_clear(site: Site | None) -> Outcome:
    if site is not None and site.is_local:
        return ok(f"The cookie of {site.origin} does not leave this machine.")
    if site is not None and not site.is_https:
        return warning(
            f"The cookie of {site.origin} travels in the clear, and who reads it is signed in.",
            "Serve the site over https, and leave OTPLESS_COOKIE_SECURE unset.",
        )
    return warning(
        "The cookie is also sent over http://, where everybody on the way can read it.",
        "Leave OTPLESS_COOKIE_SECURE unset, except for http:// on your own machine.",
    )


async def same_site(setup: Setup) -> Outcome:
    """`SameSite` goes with what the application expects of other sites."""
    settings = _cookies(setup)
    match settings.cookie_samesite:
        case "none" if not settings.trusted_origins:
            return warning(
                "SameSite=None sends the cookie with other sites' requests, and the application refuses those: "
                "no origin is trusted.",
                "Name these sites in OTPLESS_TRUSTED_ORIGINS, or leave OTPLESS_COOKIE_SAMESITE unset.",
            )
        case "none":
            return ok("Other sites' pages send the cookie; only OTPLESS_TRUSTED_ORIGINS may change anything with it.")
        case "strict":
            return ok("SameSite=Strict: whoever follows a link from another site arrives signed out at first.")
        case _:
            return ok("SameSite=Lax: other sites' pages cannot send the cookie, links from there can.")


async def domain(setup: Setup) -> Outcome:
    """`Domain` is one that browsers take from this site."""
    settings = _cookies(setup)
    if settings.cookie_domain is None:
        bound = "with __Host- in its name: no other host can set it" if settings.cookie.startswith("__Host-") else ""
        return ok(f"The cookie belongs to the site's own host{f', {bound}' if bound else ''}.")
    wanted = settings.cookie_domain.removeprefix(".").lower()
    fix = "Leave OTPLESS_COOKIE_DOMAIN unset, or write the domain that the site's host ends with."
    if "." not in wanted or _is_address(wanted):
        return problem(f"Browsers drop a cookie for the domain {wanted}.", fix)
    host = setup.known_site.host if setup.known_site else None
    if host is not None and host != wanted and not host.endswith(f".{wanted}"):
        return problem(f"Browsers drop a cookie for {wanted} that comes from {host}.", fix)
    return warning(
        f"The cookie goes to all hosts below {wanted}, and each of them can set one: __Host- is not possible.",
        "Leave OTPLESS_COOKIE_DOMAIN unset, unless several hosts share the sign-in.",
    )


async def path(setup: Setup) -> Outcome:
    """`Path` covers the router and what needs a session."""
    settings = _cookies(setup)
    if settings.cookie_path == "/":
        return ok("The cookie is sent to all paths.")
    sign_in = setup.app.sign_in
    if sign_in is not None and not _is_below(sign_in, settings.cookie_path):
        return problem(
            f"The cookie is sent below {settings.cookie_path} only, and the router's routes are at "
            f"{sign_in.rpartition('/')[0]}: signing out would not see it.",
            "Leave OTPLESS_COOKIE_PATH unset, or include the router below it.",
        )
    return warning(
        f"The cookie is sent below {settings.cookie_path} only, and has no __Host- for it.",
        "Leave OTPLESS_COOKIE_PATH unset, unless several applications share the host.",
    )


async def trusted_origins(setup: Setup) -> Outcome:
    """Trusted origins are not for anybody on the way to change."""
    origins = setup.settings.trusted_origins
    if not origins:
        return ok("No origin beside the site's own may change anything with the cookie.")
    local = [each for each in origins if each.startswith("http") and is_loopback(urlsplit(each).hostname or "")]
    clear = [each for each in origins if each.startswith("http://") and each not in local]
    if clear:
        return warning(
            f"OTPLESS_TRUSTED_ORIGINS has {', '.join(clear)}: whoever is on the way can put requests into its pages.",
            "Trust https:// origins only.",
        )
    if local and setup.known_site is not None and not setup.known_site.is_local:
        return warning(
            f"OTPLESS_TRUSTED_ORIGINS has {', '.join(local)}, which is every user's own machine.",
            "Trust it in development only.",
        )
    return ok(f"Beside the site's own, {', '.join(origins)} may change something with the cookie.")


async def name(setup: Setup) -> Outcome:
    """No other middleware uses the same cookie."""
    settings, found = _cookies(setup), setup.app.layer("SessionMiddleware")
    if found is None:
        return skipped("There is no SessionMiddleware whose cookie could have the same name.")
    theirs = found[1].arguments.get("session_cookie", "session")
    if theirs == settings.cookie:
        return problem(
            f"SessionMiddleware has the cookie {theirs}, too: each overwrites the other's.",
            'SessionMiddleware(session_cookie="..."), or another OTPLESS_COOKIE_NAME.',
        )
    return ok(f"SessionMiddleware's cookie is {theirs}, ours is {settings.cookie}.")


def _is_below(path: str, folder: str) -> bool:
    """Whether browsers send a cookie of `folder` to `path` (RFC 6265, section 5.1.4)."""
    return path == folder or path.startswith(folder if folder.endswith("/") else f"{folder}/")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
