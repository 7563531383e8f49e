"""The pytest plugin: fixtures for the tests of applications that use `fastapi_otpless_session`. See docs/testing.md.

pytest imports this module in every project of an environment that has the package. So it stands beside the package
instead of in it, and imports it in the fixtures only: who asks for none pays nothing, and a coverage measurement has
begun before the package is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from fastapi_otpless_session.testing import EmulatedOtpless, SignedInApp, SignIn


@pytest.fixture
def otpless_app() -> ASGIApp:
    """Your application: override this fixture. As it is, a FastAPI with the middleware, and the router at /auth."""
    from fastapi_otpless_session.testing import minimal_app  # noqa: PLC0415 - see above

    return minimal_app()


@pytest.fixture
def otpless_settings() -> Mapping[str, Any]:
    """The settings that are to differ in the tests, such as {"required_paths": ["/account/**"]}: override this."""
    return {}


@pytest.fixture
def otpless_emulator(otpless_app: ASGIApp, otpless_settings: Mapping[str, Any]) -> Iterator[EmulatedOtpless]:
    """`otpless_app` with the emulator in OTPLESS's place, in memory, nobody signed in; undone after the test."""
    from fastapi_otpless_session.testing import use_emulator  # noqa: PLC0415 - see above

    with use_emulator(otpless_app, **otpless_settings) as emulated:
        yield emulated


@pytest.fixture
def sign_in(otpless_emulator: EmulatedOtpless) -> SignIn:
    """`sign_in(client, user_id="MO-1", expires_in=3600)`: sign a user in, and let the client carry the session."""
    return otpless_emulator.sign_in


@pytest.fixture
def otpless_session(otpless_app: ASGIApp, otpless_emulator: EmulatedOtpless) -> Iterator[SignedInApp]:
    """`otpless_app` with a user signed in: `.client` is a TestClient whose lifespan runs, `.user_id` who it is."""
    from starlette.testclient import TestClient  # noqa: PLC0415 - see above

    from fastapi_otpless_session.testing import SignedInApp  # noqa: PLC0415 - see above

    scheme = "https" if otpless_emulator.settings.cookie_secure else "http"  # a Secure cookie is not for http://
    with TestClient(otpless_app, base_url=f"{scheme}://testserver") as client:
        yield SignedInApp(otpless_app, client, otpless_emulator.sign_in(client))
