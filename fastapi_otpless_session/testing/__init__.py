"""Helpers for the tests of applications and stores. The contract suite for stores is in `store_contract`.

The pytest plugin (`pytest_otpless_session`) makes fixtures of what is here; docs/testing.md shows how it is used.
"""

from fastapi_otpless_session.testing.app import SignedInApp, minimal_app
from fastapi_otpless_session.testing.clients import Channel, Client
from fastapi_otpless_session.testing.emulated import EmulatedOtpless, SignedIn, SignIn, use_emulator
from fastapi_otpless_session.testing.overriding import override_session

__all__ = [
    "Channel",
    "Client",
    "EmulatedOtpless",
    "SignIn",
    "SignedIn",
    "SignedInApp",
    "minimal_app",
    "override_session",
    "use_emulator",
]
