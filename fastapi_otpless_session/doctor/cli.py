"""The doctor's command line.

It stays with argparse, as the other commands do, so that a report as JSON needs none of the `cli` extra's packages: an
application's image rarely has them.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.doctor.application import view
from fastapi_otpless_session.doctor.checks import examine
from fastapi_otpless_session.doctor.findings import Report
from fastapi_otpless_session.doctor.host import Host
from fastapi_otpless_session.doctor.load import LoadError, guarded, load
from fastapi_otpless_session.doctor.setup import Setup, Site
from fastapi_otpless_session.errors import ConfigurationError
from fastapi_otpless_session.settings import DERIVED_KEY, ENV_FILE, PREFIX, OtplessSettings

USAGE_ERROR = 2
INTERRUPTED = 130
NO_RICH = (
    'error: the report is shown by rich: pip install "fastapi-otpless-session[cli]"; '
    "--json needs nothing more, and exit statuses are the same"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the doctor's options; `main` takes what the parser returns."""
    parser.description = "Check settings, OTPLESS, the store and, where one is named, the application."
    parser.epilog = "Exit status: 0 fine, 1 problems (with --strict warnings, too), 2 not examined."
    parser.add_argument("app", nargs="?", metavar="module:attribute", help="the application, as for uvicorn")
    parser.add_argument("--factory", action="store_true", help="the attribute is a function that makes the application")
    parser.add_argument("--app-dir", type=Path, default=Path(), metavar="FOLDER", help="where to look for the module")
    parser.add_argument("--site", type=_site, metavar="URL", help="the site's address in browsers; it is asked, too")
    parser.add_argument("--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="each check's (default: 10)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    parser.add_argument("--json", action="store_true", help="a report for machines")
    parser.add_argument("--all", action="store_true", help="show what was skipped, too")


def main(args: argparse.Namespace) -> int:
    """Examine, show what was found, and return the exit status."""
    try:
        if not args.json:
            from rich.console import Console  # noqa: F401, PLC0415 - before the work, not after it
        report = asyncio.run(_examined(args))
    except ImportError:
        return _failed(NO_RICH, USAGE_ERROR)
    except LoadError as error:
        return _failed(f"error: {_bare(str(error))}", USAGE_ERROR)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    return report.exit_status(strict=args.strict)


def _failed(text: str, status: int) -> int:
    sys.stderr.write(f"{text}\n")
    return status


async def _examined(args: argparse.Namespace) -> Report:
    """Examine and show, in this order on one event loop: a resolver that hangs delays the end, not the report."""
    with _quiet():
        setup = _setup(args)
        report = (await examine(setup)).without(_secrets(setup))
    if args.json:
        sys.stdout.write(f"{report.as_json()}\n")
    else:
        _show(report, everything=args.all)
    sys.stdout.flush()
    return report


def _show(report: Report, *, everything: bool) -> None:
    from rich.console import Console  # noqa: PLC0415 - of the cli extra

    from fastapi_otpless_session.doctor.display import show, show_unwrapped  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        show(report, console, everything=everything)
    else:  # a file or a program: neither has a width
        show_unwrapped(report, console, everything=everything)


def _setup(args: argparse.Namespace) -> Setup:
    """Load the application, and read the settings: its own, else what the environment says."""
    setup = Setup(Host.here(), known_site=args.site, deadline=args.timeout)
    try:
        if args.app is not None:
            app = load(args.app, app_dir=args.app_dir, factory=args.factory, deadline=args.timeout)
            with guarded(args.timeout):
                setup = replace(setup, known_app=view(app))
        given = setup.known_app.settings if setup.known_app else None
        source = "the application's code" if given else _source()
        return replace(setup, known_settings=given or OtplessSettings(), settings_source=source)
    except ConfigurationError as error:
        return replace(setup, settings_error=str(error))


def _source() -> str:
    file = Path(ENV_FILE).absolute()
    return f"the environment and {file}" if file.is_file() else "the environment"


def _secrets(setup: Setup) -> Iterator[str]:
    """What must not be shown, whatever an error says: of the settings, or of variables that could not be read."""
    yield setup.host.environ.get(f"{PREFIX}CLIENT_SECRET", "")
    yield from _keys(setup.host.environ.get(f"{PREFIX}ENCRYPTION_KEYS", "").split(","))
    yield from _passwords(setup.host.environ.get(f"{PREFIX}STORE_URL", ""))
    settings = setup.known_settings
    if settings is not None:
        yield settings.client_secret.get_secret_value()
        yield from _keys(key.get_secret_value() for key in settings.encryption_keys)
        yield from _passwords(settings.store_url.get_secret_value())


def _keys(texts: Iterable[str]) -> Iterator[str]:
    return (key for text in texts if (key := text.strip(' []"')) != DERIVED_KEY)


def _passwords(url: str) -> Iterator[str]:
    """What stands before an @: the whole of it, and the password alone, as it is written and as it is meant.

    A user's name alone is no secret, and often a word that the report needs.
    """
    credentials = url.rpartition("@")[0].partition("://")[2]
    password = credentials.partition(":")[2]
    if password:
        yield from (credentials, password, unquote(password))


def _bare(text: str) -> str:
    for secret in filter(None, _secrets(Setup(Host.here()))):
        text = text.replace(secret, "***")
    return text


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave what goes wrong to the report: the same again as log lines would stand in its way."""
    before = telemetry.logger.disabled, logging.root.manager.disable
    telemetry.logger.disabled = True
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        telemetry.logger.disabled = before[0]
        logging.disable(before[1])


def _site(text: str) -> Site:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or parts.query:
        raise argparse.ArgumentTypeError(
            "it is an address that begins with http:// or https://, such as https://shop.example"
        )
    return Site(f"{parts.scheme}://{parts.netloc.lower()}", parts.path.rstrip("/"))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds
