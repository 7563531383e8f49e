"""All checks by their ids, and the round that makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi_otpless_session.doctor import configuration, cookie, layers, otpless, places, refusals, site, store
from fastapi_otpless_session.doctor.findings import Finding, NotApplicableError, Outcome, Report, problem, skipped
from fastapi_otpless_session.doctor.setup import Setup

Check = Callable[[Setup], Awaitable[Outcome]]

CHECKS: dict[str, Check] = {
    "settings": configuration.settings,
    "variables": configuration.variables,
    "quotes": configuration.quotes,
    "versions": configuration.versions,
    "extras": configuration.extras,
    "otpless": otpless.base_url,
    "credentials": otpless.credentials,
    "jwks": otpless.keys,
    "issuer": configuration.issuer,
    "clock": otpless.clock,
    "store": store.store,
    "store-shared": store.store_shared,
    "store-clock": store.store_clock,
    "encryption-keys": configuration.encryption_keys,
    "middleware": layers.middleware,
    "middleware-stack": layers.stack,
    "middleware-order": layers.order,
    "cors-order": layers.cors_order,
    "cors-headers": layers.cors_headers,
    "cors-methods": layers.cors_methods,
    "cors-origins": layers.cors_origins,
    "trusted-hosts": layers.trusted_hosts,
    "router": places.router,
    "unknown-tokens": configuration.unknown_tokens,
    "signatures": configuration.signatures,
    "session-arguments": places.session_arguments,
    "mounted-apps": places.mounted,
    "required-paths": places.required_paths,
    "exempt-paths": places.exempt_paths,
    "on-refusal": refusals.on_refusal,
    "cookie-secure": cookie.secure,
    "cookie-samesite": cookie.same_site,
    "cookie-domain": cookie.domain,
    "cookie-path": cookie.path,
    "cookie-name": cookie.name,
    "trusted-origins": cookie.trusted_origins,
    "proxy-headers": site.proxies,
    "same-origin": site.same_origin,
}
"""Ids are part of the JSON report, and stay."""


async def examine(setup: Setup) -> Report:
    """Make all checks at once; each has `setup.deadline` seconds."""
    outcomes = await asyncio.gather(*(_outcome(check, setup) for check in CHECKS.values()))
    return Report(tuple(map(Finding, CHECKS, outcomes)))


async def _outcome(check: Check, setup: Setup) -> Outcome:
    try:
        async with asyncio.timeout(setup.deadline):
            return await check(setup)
    except NotApplicableError as why:
        return skipped(str(why))
    except TimeoutError:
        return problem(f"No end after {setup.deadline:g} s.", "Something hangs; --timeout gives each check more.")
    except Exception as error:  # noqa: BLE001 - what one check did not foresee must not cost the others' findings
        return problem(
            f"The check itself failed: {type(error).__name__}: {error}",
            "Please report this, with the versions above.",
        )
