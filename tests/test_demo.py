"""`make demo`'s program, as its own process over real sockets."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from demos import ROOT, run_demo
from processes import PATIENCE, steady_port, wait_until

from example_app.demo import USUAL_EMULATOR_PORT, USUAL_PORT, main

pytestmark = pytest.mark.varied

HTML = {"Accept": "text/html"}


def is_open(url: str) -> bool:
    port = urlsplit(url).port
    assert port
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def sign_in(browser: httpx.Client, emulator: str) -> None:
    user = httpx.post(f"{emulator}/_emulator/sign_in", json={"name": "Asha"}).json()
    assert browser.post("/auth/login", json=user).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_works_and_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, emulator = demo.wait_until_ready()
        assert shop.startswith("http://localhost:")
        with httpx.Client(base_url=shop, headers=HTML, follow_redirects=True) as browser:
            page = browser.get("/orders")
            assert (page.url.path, page.url.query) == ("/sign-in", b"next=/orders")
            assert f'src="{emulator}/v4/auth.js"' in page.text
            assert httpx.get(f"{emulator}/v4/auth.js").status_code == 200
            assert "The phone" in httpx.get(emulator).text
            sign_in(browser, emulator)
            assert "Asha" in browser.get("/orders").text
            assert browser.post("/demo/expire").status_code == 204
            page = browser.get("/orders")
            assert page.url.path == "/orders"
            assert "was swapped just now" in page.text
            # The connection is still open: that must not keep it from stopping.
            demo.process.send_signal(number)
            assert demo.wait_until_over() == 0, demo.printed
        assert "Traceback" not in demo.printed
        assert demo.printed.endswith("Stopped.\n")
        assert not is_open(shop)
        assert not is_open(emulator)


def test_after_a_restart_an_emulator_that_forgot_everybody_means_signing_in_again(tmp_path: Path) -> None:
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, emulator = demo.wait_until_ready()
        with httpx.Client(base_url=shop, headers=HTML) as browser:
            sign_in(browser, emulator)
            cookies = browser.cookies
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait_until_over() == 0, demo.printed
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, emulator = demo.wait_until_ready()
        with httpx.Client(base_url=shop, headers=HTML, cookies=cookies) as browser:
            answer = browser.get("/orders")
            assert answer.headers["location"] == "/sign-in?next=/orders&why=session_expired"
            sign_in(browser, emulator)
            assert browser.get("/orders").status_code == 200


def test_a_second_ctrl_c_while_it_stops_is_no_traceback(tmp_path: Path) -> None:
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, _ = demo.wait_until_ready()
        demo.process.send_signal(signal.SIGINT)
        wait_until(lambda: not is_open(shop), "for the shop to stop listening")
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait_until_over() == 0, demo.printed
    assert demo.printed.endswith("Ctrl-C stops everything.\nStopped.\n")


def two_taken(stack: ExitStack) -> int:
    """Listen at a port and the next, and return the first."""
    while True:
        port = steady_port()
        with ExitStack() as opened, suppress(OSError):
            for number in (port, port + 1):
                opened.enter_context(socket.create_server(("127.0.0.1", number)))
            stack.push(opened.pop_all())
            return port


@pytest.mark.parametrize("name", ["PORT", "EMULATOR_PORT"])
def test_a_taken_port_is_said_in_one_line_with_one_that_is_free(tmp_path: Path, name: str) -> None:
    with ExitStack() as stack:
        port = two_taken(stack)
        ports = {"PORT": "0", "EMULATOR_PORT": "0", name: str(port)}
        with run_demo(tmp_path, **ports) as demo:
            assert demo.wait_until_over() == 1
        said = f"error: port {port} is taken. Choose another, as in: make demo {name}="
        assert demo.printed.startswith(said)
        other = int(demo.printed.removeprefix(said))
        assert other > port + 1
        with socket.create_server(("127.0.0.1", other)):
            pass


def test_the_port_that_the_emulator_is_to_have_is_not_named_for_the_shop(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", steady_port())) as taken:
        port = taken.getsockname()[1]
        with run_demo(tmp_path, PORT=str(port), EMULATOR_PORT=str(port + 1)) as demo:
            assert demo.wait_until_over() == 1
    assert int(demo.printed.rpartition("=")[2]) > port + 1


def test_where_the_usual_ports_are_taken_the_lines_say_so(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for port in (USUAL_PORT, USUAL_EMULATOR_PORT):
            with suppress(OSError):  # then it is taken already
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        demo = stack.enter_context(run_demo(tmp_path))
        shop, emulator = demo.wait_until_ready()
        assert f"Shop       {shop} ({USUAL_PORT} is taken)\n" in demo.printed
        assert f"Emulator   {emulator} ({USUAL_EMULATOR_PORT} is taken; its phone shows the codes)\n" in demo.printed


def test_where_any_port_is_asked_for_none_is_said_to_be_taken(tmp_path: Path) -> None:
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, emulator = demo.wait_until_ready()
        assert f"Shop       {shop}\n" in demo.printed
        assert f"Emulator   {emulator} (its phone shows the codes)\n" in demo.printed


def test_shop_and_emulator_cannot_have_the_same_port(tmp_path: Path) -> None:
    port = str(steady_port())
    with run_demo(tmp_path, PORT=port, EMULATOR_PORT=port) as demo:
        assert demo.wait_until_over() == 1
    remedy = f"Choose another for one of them, as in: make demo PORT={port} EMULATOR_PORT="
    said, other = demo.printed.rsplit("=", 1)
    assert f"{said}=" == f"error: the shop and the emulator cannot both have port {port}. {remedy}"
    assert int(other) > int(port)


@pytest.mark.parametrize("port", ["http", "65536", "-1", "²"])
def test_a_port_that_is_none_is_said_in_one_line(
    port: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", port)
    assert main() == 1  # in this process, for nothing is started
    assert capsys.readouterr() == ("", f"error: PORT must be a number from 0 (any free port) to 65535, not {port!r}\n")


def test_with_real_credentials_in_the_env_file_no_emulator_runs(tmp_path: Path) -> None:
    lines = ["OTPLESS_CLIENT_ID=mine", "OTPLESS_CLIENT_SECRET=very-secret", "SHOP_APP_ID=MYAPP"]
    (tmp_path / ".env").write_text("\n".join(lines), "utf-8")
    with run_demo(tmp_path, PORT="0") as demo:
        (shop,) = demo.wait_until_ready()
        assert "the real one" in demo.printed
        page = httpx.get(f"{shop}/sign-in", headers=HTML).text
        assert 'src="https://otpless.com/v4/auth.js" data-appid="MYAPP"' in page
        assert "emulator" not in page.lower()
        demo.process.send_signal(signal.SIGINT)
        assert demo.wait_until_over() == 0
    assert "very-secret" not in demo.printed


def test_with_half_of_the_credentials_the_demo_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTPLESS_CLIENT_ID=mine\nOTPLESS_CLIENT_SECRET=very-secret\n", "utf-8")
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        shop, emulator = demo.wait_until_ready()
        assert "The real OTPLESS isn't used: SHOP_APP_ID not set." in demo.printed
        with httpx.Client(base_url=shop) as browser:
            sign_in(browser, emulator)


def test_wrong_settings_are_named_and_the_demo_does_not_start(tmp_path: Path) -> None:
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0", OTPLESS_REQUEST_TIMEOUT="soon") as demo:
        assert demo.wait_until_over() == 1
    problem = "OTPLESS_REQUEST_TIMEOUT: is not a number; write seconds, such as 30"
    assert demo.printed == f"error: Wrong settings:\n  {problem}\n"


def test_a_store_that_cannot_be_used_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "demo.db").mkdir()
    with run_demo(tmp_path, PORT="0", EMULATOR_PORT="0") as demo:
        assert demo.wait_until_over() == 1
    assert "demo.db" in demo.printed
    assert "Traceback" not in demo.printed
    assert "Shop " not in demo.printed


# `make demo` itself

PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-c "*) exit ;;
esac
echo "python $*"
"""
"""Says what it is asked to do, and installs nothing."""


def make_demo(folder: Path) -> list[str]:
    """Return the lines that `make demo` prints, without a line on the way into a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "demo", f"PYTHON={folder / 'a-python'}"]
    ran = subprocess.run(  # noqa: S603 - our own Makefile
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return ran.stdout.splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_demo_says_that_it_installs_and_installs_once_what_the_demo_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "a-python").write_text(PYTHON)
    (tmp_path / "a-python").chmod(0o755)
    first = make_demo(tmp_path)
    said = next(number for number, line in enumerate(first) if line.startswith("Installing what the demo needs"))
    installed = [number for number, line in enumerate(first) if line.startswith("python -m pip install ")]
    assert len(installed) == 1
    assert said < installed[0]
    assert first[installed[0]].endswith("--editable .[cli]")
    assert first[-1] == "python -m example_app"
    assert make_demo(tmp_path) == ["python -m example_app"]
    # Whoever has run the tests has all of it.
    (tmp_path / ".venv" / ".installed-for-demo").rename(tmp_path / ".venv" / ".installed")
    assert make_demo(tmp_path) == ["python -m example_app"]
