"""docs/testing.md holds: its project is written to a folder as it stands, and its tests are run there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastapi_otpless_session.emulator import EmulatorSettings
from fastapi_otpless_session.testing import EmulatedOtpless
from fastapi_otpless_session.testing.settings import settings_for_tests

pytestmark = pytest.mark.varied

pytest_plugins = ["pytester"]
PAGE = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:schemathesis")
FENCED = re.compile(r"^```python\n# (\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES: dict[str, str] = dict(FENCED.findall(PAGE))
TESTS = {"test_shop.py", "test_asynchronous.py", "test_sign_in.py", "test_profile.py"}


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    for name, text in FILES.items():
        pytester.path.joinpath(name).write_text(text, encoding="utf-8")
    return pytester


def test_the_page_has_the_files() -> None:
    assert set(FILES) == {"shop.py", "conftest.py", "another_runner.py", *TESTS}


def test_the_example_is_complete_and_its_tests_pass_though_a_variable_and_an_env_file_say_otherwise(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTPLESS_BASE_URL", "not an address")
    project.path.joinpath(".env").write_text("OTPLESS_STORE_URL=redis://production\nOTPLESS_TOKEN_SOURCES=none\n")
    result = project.runpytest_subprocess("-W", "error", *WITHOUT)
    result.assert_outcomes(passed=sum(FILES[name].count("def test_") for name in TESTS))
    assert not list(project.path.glob("*.db"))


def test_the_example_without_pytest_runs(project: pytest.Pytester) -> None:
    result = project.runpython(Path("another_runner.py"))
    assert result.ret == 0


def test_the_settings_that_the_page_shows_are_used(project: pytest.Pytester) -> None:
    conftest = project.path / "conftest.py"
    more = PAGE.partition("# conftest.py, more\n")[2].partition("```")[0]
    assert "cookie_secure" in more
    conftest.write_text(FILES["conftest.py"] + more, encoding="utf-8")
    project.makepyfile(
        test_more="""
        from fastapi.testclient import TestClient
        from shop import app

        def test_a_required_path_and_a_secure_cookie(otpless_emulator, sign_in):
            client = TestClient(app, base_url="https://testserver")
            assert client.get("/account/bills").status_code == 401
            sign_in(client)
            assert client.get("/account/bills").status_code == 404
            assert [cookie.name for cookie in client.cookies.jar] == ["__Host-otpless_session"]
        """
    )
    project.runpytest_inprocess("test_more.py", *WITHOUT).assert_outcomes(passed=1)


def test_every_method_that_the_page_names_exists_and_every_setting_that_differs_is_there() -> None:
    named = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert set(named) >= {"expire", "revoke", "sign_out", "down", "advance"}
    assert [name for name in named if not callable(getattr(EmulatedOtpless, name, None))] == []
    differing = {name.upper() for name in settings_for_tests(None, EmulatorSettings(), {}).model_fields_set}
    table = PAGE.partition("| setting | in tests |")[2].partition("\n\n")[0]
    assert {name for name in differing if name not in table} <= {"CLIENT_SECRET", "BASE_URL", "JWKS_URL"}
