"""`python -m fastapi_otpless_session`: a check-up, the emulator, new keys, a store's tables, names in the log."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.doctor import cli as doctor
from fastapi_otpless_session.emulator import cli
from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.settings import OtplessSettings
from fastapi_otpless_session.stores.sql_schema import SCHEMA
from fastapi_otpless_session.tokens import new_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    parser = argparse.ArgumentParser("python -m fastapi_otpless_session", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor.add_arguments(commands.add_parser("doctor", help="check settings, OTPLESS, the store and an application"))
    cli.add_arguments(commands.add_parser("emulator", help="run a stand-in for OTPLESS"))
    commands.add_parser("keygen", help="print a new key for OTPLESS_ENCRYPTION_KEYS")
    schema = commands.add_parser("schema", help="print the SQL that makes a store's tables")
    schema.add_argument("dialect", choices=["postgresql"])
    label = commands.add_parser("label", help="print the short hash that log lines call a session by")
    label.add_argument("session_id", metavar="SESSION_ID")
    chosen = parser.parse_args(arguments)
    match chosen.command:
        case "doctor":
            return doctor.main(chosen)
        case "emulator":
            return cli.main(chosen)
        case "schema":
            sys.stdout.write(SCHEMA)
        case "label":
            return _label(chosen.session_id)
        case _:
            sys.stdout.write(f"{new_key()}\n")
    return 0


def _label(session_id: str) -> int:
    try:
        settings = OtplessSettings()
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    telemetry.salt_labels(settings.client_id, settings.client_secret.get_secret_value())
    sys.stdout.write(f"{telemetry.session_label(session_id)}\n")
    return 0
