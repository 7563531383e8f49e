"""A stand-in for OTPLESS, for tests and for development without an account.

It serves the published contract and nothing of it is shared with the rest of the package, so that both
sides cannot make the same mistake. What the contract leaves open is a setting: see `EmulatorSettings`.
"""

from fastapi_otpless_session.emulator.calls import Call
from fastapi_otpless_session.emulator.emulator import Emulator
from fastapi_otpless_session.emulator.faults import Fault, FaultKind
from fastapi_otpless_session.emulator.sdk import OtpMessage
from fastapi_otpless_session.emulator.server import ServerMissingError, run, serve
from fastapi_otpless_session.emulator.settings import EmulatorSettings
from fastapi_otpless_session.emulator.state import SessionRecord

__all__ = [
    "Call",
    "Emulator",
    "EmulatorSettings",
    "Fault",
    "FaultKind",
    "OtpMessage",
    "ServerMissingError",
    "SessionRecord",
    "run",
    "serve",
]
