"""`python -m fastapi_otpless_session`."""

from __future__ import annotations

import base64
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World
from processes import PATIENCE, wait_until

from fastapi_otpless_session import telemetry
from fastapi_otpless_session.__main__ import main
from fastapi_otpless_session.emulator import Emulator, serve


def test_keygen_prints_a_key_that_the_settings_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(base64.urlsafe_b64decode(key + "=")) == 32


def test_the_emulator_says_which_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Emulator()) as url:
        assert main(["emulator", "--port", url.rpartition(":")[2]]) == 1
    assert f"port {url.rpartition(':')[2]} is taken" in capsys.readouterr().err


def test_schema_prints_the_sql_that_makes_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "postgresql"]) == 0
    assert "CREATE TABLE IF NOT EXISTS otpless_sessions" in capsys.readouterr().out


def test_label_prints_what_log_lines_call_a_session(
    make_world: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fastapi_otpless_session")
    world = make_world()
    session_id = world.session_id(world.sign_in())
    telemetry.salt_labels("another application", "of this process")
    monkeypatch.setenv("OTPLESS_CLIENT_ID", world.emulator.settings.client_id)
    monkeypatch.setenv("OTPLESS_CLIENT_SECRET", world.emulator.settings.client_secret)
    assert main(["label", session_id]) == 0
    label = capsys.readouterr().out.strip()
    assert f"Signed in: {label}" in caplog.text
    assert world.sessions.label(session_id) == label


def test_label_says_which_setting_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where no .env is
    monkeypatch.delenv("OTPLESS_CLIENT_ID", raising=False)
    assert main(["label", "a-session"]) == 1
    printed = capsys.readouterr()
    assert "OTPLESS_CLIENT_ID" in printed.err
    assert not printed.out


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["emulator", "--rotation", "sometimes"], ["schema"], ["schema", "oracle"], ["label"]],
)
def test_wrong_arguments_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["emulator", "doctor", "keygen"])
def test_ctrl_c_while_it_is_still_importing_is_no_traceback(command: str, tmp_path: Path) -> None:
    mark = tmp_path / "importing"
    (tmp_path / "jwt.py").write_text(f"open({str(mark)!r}, 'w').close()\nimport threading\nthreading.Event().wait()")
    process = subprocess.Popen(  # noqa: S603 - our own program, in a folder where what it needs is slow
        [sys.executable, "-m", "fastapi_otpless_session", command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(mark.exists, "for the imports to begin")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
