"""The command line of the emulator."""

import argparse
import errno
import secrets
import sys
from typing import Any, get_args, get_type_hints

from fastapi_otpless_session.emulator.emulator import Emulator
from fastapi_otpless_session.emulator.server import ServerMissingError, run
from fastapi_otpless_session.emulator.settings import EmulatorSettings, parse_quirk, quirk_names

_LARGEST_PORT = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the emulator's options; `main` takes what the parser returns."""
    defaults = EmulatorSettings()
    rotations = get_args(get_type_hints(EmulatorSettings)["rotation"])
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=8701, help="port, 0 for any (default: %(default)s)")
    parser.add_argument("--client-id", type=_text, default=defaults.client_id, help="default: %(default)s")
    parser.add_argument("--client-secret", type=_text, default=defaults.client_secret, help="default: %(default)s")
    parser.add_argument("--app-id", type=_text, default=defaults.app_id, help="default: %(default)s")
    _add_lifetime(parser, "--session-lifetime", defaults.session_lifetime)
    _add_lifetime(parser, "--refresh-lifetime", defaults.refresh_lifetime)
    parser.add_argument(
        "--rotation",
        choices=rotations,
        default=defaults.rotation,
        help="what a refresh does to the refresh token (default: %(default)s)",
    )
    parser.add_argument(
        "--control-host",
        metavar="NAME",
        type=_text,
        action="append",
        default=[],
        help="a domain by which the page and the control API may be asked for, repeatable",
    )
    parser.add_argument(
        "--quirk",
        metavar="NAME=VALUE",
        type=_quirk,
        action="append",
        default=[],
        help=f"answer to an undocumented question, repeatable; names: {', '.join(quirk_names())}",
    )


def main(args: argparse.Namespace) -> int:
    """Run the emulator until Ctrl-C; returns the exit status."""
    try:
        run(Emulator(_settings(args), first_key=_some_key()), args.host, args.port)
    except (ServerMissingError, OSError) as error:
        print(f"error: {_why(error, args.port)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _some_key() -> int:
    """Return a number that no emulator before had: each process makes keys of its own."""
    return 10_000 + secrets.randbelow(10**8)


def _why(error: ServerMissingError | OSError, port: int) -> str:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} is taken. Choose another: --port {port + 1 if port < _LARGEST_PORT else 0}"
    return str(error)


def _settings(args: argparse.Namespace) -> EmulatorSettings:
    return EmulatorSettings(
        client_id=args.client_id,
        client_secret=args.client_secret,
        app_id=args.app_id,
        session_lifetime=args.session_lifetime,
        refresh_lifetime=args.refresh_lifetime,
        rotation=args.rotation,
        control_hosts=tuple(args.control_host),
        **dict(args.quirk),
    )


def _add_lifetime(parser: argparse.ArgumentParser, option: str, default: float) -> None:
    parser.add_argument(
        option, metavar="SECONDS", type=_seconds, default=default, help="in seconds (default: %(default)s)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LARGEST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {_LARGEST_PORT}")
    return int(text)


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _quirk(text: str) -> tuple[str, Any]:
    try:
        return parse_quirk(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
