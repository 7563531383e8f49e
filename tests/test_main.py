"""`python -m fastapi_otpless_session`."""

from __future__ import annotations

import base64

import pytest

from fastapi_otpless_session.__main__ import main
from fastapi_otpless_session.emulator import Emulator, serve


def test_keygen_prints_a_key_that_the_settings_take(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen"]) == 0
    key = capsys.readouterr().out.strip()
    assert len(base64.urlsafe_b64decode(key + "=")) == 32


def test_the_emulator_says_which_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Emulator()) as url:
        assert main(["emulator", "--port", url.rpartition(":")[2]]) == 1
    assert url.rpartition(":")[2] in capsys.readouterr().err


def test_schema_prints_the_sql_that_makes_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "postgresql"]) == 0
    assert "CREATE TABLE IF NOT EXISTS otpless_sessions" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["emulator", "--rotation", "sometimes"], ["schema"], ["schema", "oracle"]]
)
def test_wrong_arguments_are_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
