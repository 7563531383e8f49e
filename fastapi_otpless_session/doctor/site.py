"""What stands between browsers and the application: proxies, and what they make of a request."""

from __future__ import annotations

import asyncio

import httpx

from fastapi_otpless_session.doctor.findings import NotApplicableError, Outcome, ok, problem, warning
from fastapi_otpless_session.doctor.setup import Setup

REDIRECTS = range(300, 400)
EVERYBODY = "*"
HOST_RULE = "nginx: proxy_set_header Host $http_host; others: keep or preserve the host header."
SITE_ANSWERS = {
    401: "something before the application wants a sign-in of its own",
    404: "there is no such route",
    405: "the route takes no POST",
}


async def proxies(setup: Setup) -> Outcome:
    """Forwarded headers are believed from the proxy, and from nobody else."""
    trusted = setup.host.trusted_proxies
    if trusted == EVERYBODY:
        return warning(
            "uvicorn believes everybody's forwarded headers: whoever reaches its port picks an address and a scheme.",
            "FORWARDED_ALLOW_IPS=<the proxy's address>, unless nobody but the proxy can reach the port.",
        )
    if trusted is not None:
        return ok(f"uvicorn believes forwarded headers of {trusted}.")
    is_behind = setup.host.platform or ("a container" if setup.host.is_container else None)
    if is_behind and setup.known_site is not None and setup.known_site.is_https:
        return warning(
            f"In {is_behind} the proxy is not 127.0.0.1, and uvicorn believes no other: URLs that the application "
            "makes begin with http://.",
            "uvicorn --proxy-headers --forwarded-allow-ips=<the proxy's address>, or FORWARDED_ALLOW_IPS",
        )
    return ok("uvicorn believes forwarded headers of 127.0.0.1; FORWARDED_ALLOW_IPS names a proxy elsewhere.")


async def same_origin(setup: Setup) -> Outcome:
    """The running site takes requests of its own pages: the Host header arrives as browsers sent it.

    It is asked to sign out nobody: POST to the router's sign-out route, without a credential.
    """
    site, sign_in = setup.site, setup.app.sign_in
    if sign_in is None:
        raise NotApplicableError("There is no router whose sign-out route could be asked.")
    url = f"{site.origin}{site.path}{sign_in.rpartition('/')[0]}/logout"
    try:
        answer = await _post(url, site.origin, setup.deadline)
    except (httpx.HTTPError, TimeoutError, OSError) as error:
        return warning(f"{url} was not reached: {type(error).__name__}.", "Start the site, or mend --site.")
    return _judged(answer, url, site.origin)


def _judged(answer: httpx.Response, url: str, origin: str) -> Outcome:
    status = answer.status_code
    if status == httpx.codes.NO_CONTENT:
        return ok(f"{url} takes requests of its own pages.")
    if status == httpx.codes.FORBIDDEN and "cross_site_request" in answer.text:
        return problem(
            f"{url} takes its own pages' requests for another site's: the proxy changes the Host header, and the "
            "same-origin rule compares Origin with it.",
            f"Let the proxy pass Host on ({HOST_RULE}), or set OTPLESS_TRUSTED_ORIGINS={origin}",
        )
    if status in REDIRECTS:
        to = answer.headers.get("location", "elsewhere")
        return problem(f"{url} redirects to {to}.", "Give --site the address that browsers end up at.")
    return problem(
        f"{url} answers {status}: {SITE_ANSWERS.get(status) or 'the application may not run there'}.",
        "Give --site the address and path under which the application is served.",
    )


async def _post(url: str, origin: str, deadline: float) -> httpx.Response:
    async with asyncio.timeout(deadline), httpx.AsyncClient(trust_env=False, timeout=deadline) as client:
        return await client.post(url, headers={"Origin": origin})
