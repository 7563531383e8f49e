"""Runs the shop and the emulator until Ctrl-C. `PORT` and `EMULATOR_PORT` choose their ports."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from types import FrameType
from urllib.parse import urlsplit

import uvicorn
from pydantic_settings import BaseSettings, SettingsConfigDict

from example_app.main import create_app
from fastapi_otpless_session import ConfigurationError, OtplessSettings
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, serve

USUAL_PORT = 8000
USUAL_EMULATOR_PORT = 8701
TOKEN_LIFETIME = 600.0
"""Ten minutes, so that the clock on the page is worth watching."""

_ATTEMPTS = 50
_LARGEST_PORT = 65535
_NO_IPV6 = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class DemoError(Exception):
    """The demo cannot start; the text says why."""


class Given(BaseSettings):
    """What the environment or `.env` says already."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    otpless_client_id: str = ""
    otpless_client_secret: str = ""
    shop_app_id: str = ""
    otpless_cookie_secure: str = ""

    def missing(self) -> list[str]:
        """The names of what running against the real OTPLESS needs and isn't there."""
        needed = ("otpless_client_id", "otpless_client_secret", "shop_app_id")
        return [name.upper() for name in needed if not getattr(self, name)]


class Server(uvicorn.Server):
    """Says where it is once it can be reached."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        await super().startup(sockets)
        if self.started:
            _say(self._greeting)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the base's names
        """Stop cleanly, however often it is asked to.

        uvicorn's own does not end the application's lifespan where Ctrl-C is pressed again, and prints where it was;
        and it raises the signals once more after its end. What is open has few seconds anyway.
        """
        self.should_exit = True


def main() -> int:
    """Run both and return the exit status."""
    try:
        return _run()
    except DemoError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _run() -> int:
    with ExitStack() as stack:
        shop = _listen(stack, "PORT", USUAL_PORT)
        port = shop[0].getsockname()[1]
        given = Given()
        os.environ["OTPLESS_COOKIE_SECURE"] = given.otpless_cookie_secure or "false"  # Safari, on http://localhost
        if missing := given.missing():
            note = _start_emulator(stack, given, missing, port)
        else:
            note = "OTPLESS    the real one, with the credentials from the environment or .env (no emulator)"
        _check_settings()
        place = f"http://localhost:{port}{_aside(_detour('PORT', USUAL_PORT, port))}"
        greeting = f"\nShop       {place}\n{note}\n\nCtrl-C stops everything.\n"
        # The live page needs websockets. Named, for else uvicorn starts without the package and refuses each handshake.
        config = uvicorn.Config(create_app(), log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=3)
        server = Server(config, greeting)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, server.handle_exit)
        try:
            server.run(sockets=shop)
        except SystemExit:  # uvicorn has said why it didn't start
            return 1
    _say("Stopped.\n")
    return 0


def _start_emulator(stack: ExitStack, given: Given, missing: list[str], shop_port: int) -> str:
    """Start the emulator, point all settings at it, and return what there is to say about it."""
    if _wanted("EMULATOR_PORT") == shop_port:
        remedy = f"make demo PORT={shop_port} EMULATOR_PORT={_another(shop_port)}"
        text = f"the shop and the emulator cannot both have port {shop_port}"
        raise DemoError(f"{text}. Choose another for one of them, as in: {remedy}")
    settings = EmulatorSettings(session_lifetime=TOKEN_LIFETIME)
    url = _serve(stack, Emulator(settings))
    os.environ |= {
        "OTPLESS_CLIENT_ID": settings.client_id,
        "OTPLESS_CLIENT_SECRET": settings.client_secret,
        "OTPLESS_BASE_URL": url,
        "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
        "OTPLESS_ISSUER": settings.issuer,
        "OTPLESS_STORE_URL": "sqlite:///demo.db",
        # Ask OTPLESS each time, so that an expired token shows at the very next click …
        "OTPLESS_VALIDATION_TTL": "0",
        # … and soon where a websocket is open.
        "OTPLESS_WEBSOCKET_RECHECK": os.environ.get("OTPLESS_WEBSOCKET_RECHECK", "5"),
        "SHOP_APP_ID": settings.app_id,
        "SHOP_SDK_URL": f"{url}/v4/auth.js",
        "SHOP_HEADLESS_URL": f"{url}/v4/headless.js",
        "SHOP_EMULATOR_URL": url,
    }
    detour = _detour("EMULATOR_PORT", USUAL_EMULATOR_PORT, urlsplit(url).port)
    note = f"Emulator   {url}{_aside(detour, 'its phone shows the codes')}"
    if given.otpless_client_id or given.otpless_client_secret or given.shop_app_id:
        note += f"\nThe real OTPLESS isn't used: {', '.join(missing)} not set."
    return note


def _check_settings() -> None:
    """Say what is wrong with them before anything starts, rather than amid a server's log."""
    try:
        OtplessSettings()
    except ConfigurationError as error:
        raise DemoError(str(error)) from None


def _serve(stack: ExitStack, emulator: Emulator) -> str:
    wanted = _wanted("EMULATOR_PORT")
    last: OSError | None = None
    for port in [USUAL_EMULATOR_PORT, 0] if wanted is None else [wanted]:
        try:
            return stack.enter_context(serve(emulator, port=port))
        except OSError as error:
            last = error
    raise _cannot_listen("EMULATOR_PORT", wanted or 0, last)


def _listen(stack: ExitStack, name: str, usual: int) -> list[socket.socket]:
    """Listen on localhost: at the port that the variable `name` gives, else at the usual one or any free one."""
    wanted = _wanted(name)
    last: OSError | None = None
    for port in [usual, *[0] * _ATTEMPTS] if wanted is None else [wanted]:
        try:
            return _localhost(stack, port)
        except OSError as error:
            last = error
    raise _cannot_listen(name, wanted or 0, last)


def _localhost(stack: ExitStack, port: int) -> list[socket.socket]:
    """Listen at both of localhost's addresses: which one a browser takes is its own choice."""
    with ExitStack() as opened:
        first = opened.enter_context(socket.create_server(("127.0.0.1", port)))
        found = [first]
        try:
            second = socket.create_server(("::1", first.getsockname()[1]), family=socket.AF_INET6)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
        else:
            found.append(opened.enter_context(second))
        stack.push(opened.pop_all())
    return found


def _wanted(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) > _LARGEST_PORT:
        raise DemoError(f"{name} must be a number from 0 (any free port) to {_LARGEST_PORT}, not {text!r}")
    return int(text)


def _detour(name: str, usual: int, port: int | None) -> str:
    """Say why it is not where it usually is, unless the variable `name` asked for that."""
    return "" if port == usual or _wanted(name) is not None else f"{usual} is taken"


def _aside(*remarks: str) -> str:
    text = "; ".join(filter(None, remarks))
    return f" ({text})" if text else ""


def _another(port: int) -> int:
    """Return one of the next ports that is free, and meant for neither; 0, which takes any, where there is none."""
    meant = {USUAL_EMULATOR_PORT, _wanted("PORT"), _wanted("EMULATOR_PORT")}
    candidates = range(port + 1, min(port + _ATTEMPTS, _LARGEST_PORT) + 1)
    return next((each for each in candidates if each not in meant and _is_free(each)), 0)


def _is_free(port: int) -> bool:
    with ExitStack() as stack, suppress(OSError):
        return bool(_localhost(stack, port))
    return False


def _cannot_listen(name: str, port: int, error: OSError | None) -> DemoError:
    if error is not None and error.errno == errno.EADDRINUSE:
        return DemoError(f"port {port} is taken. Choose another, as in: make demo {name}={_another(port)}")
    return DemoError(f"cannot listen on port {port}: {error.strerror if error else 'unknown'}")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
