"""`doctor`: how it is called, what it returns, and what people and machines see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from doctored import APP, SECRET, Examine
from processes import PATIENCE, wait_until

from fastapi_otpless_session import OtplessSettings
from fastapi_otpless_session.__main__ import main
from fastapi_otpless_session.doctor.checks import CHECKS
from fastapi_otpless_session.emulator import Emulator, Fault

# The whole


def test_nothing_is_wrong_with_a_setup_that_is_right(examine: Examine, url: str) -> None:
    found = examine(app=APP, otpless=url)
    assert found.wrong() == {"otpless": "warning"}  # that it is the emulator
    assert found.status == 0
    assert found.err == ""


def test_a_warning_is_an_error_only_where_it_is_said_to_be(examine: Examine, url: str) -> None:
    assert examine(otpless=url).status == 0
    assert examine("--strict", otpless=url).status == 1


def test_without_an_application_the_settings_are_examined(examine: Examine, url: str) -> None:
    found = examine(otpless=url)
    assert found["credentials"] == found["store"] == "ok"
    assert found["middleware"] == found["router"] == "skipped"


def test_the_report_for_machines_has_every_check_in_order_and_the_same_keys(examine: Examine, url: str) -> None:
    report = json.loads(examine(otpless=url).out)
    assert list(report) == ["format", "counts", "checks"]
    assert [each["id"] for each in report["checks"]] == list(CHECKS)
    assert {tuple(each) for each in report["checks"]} == {("id", "status", "finding", "fix")}
    assert sum(report["counts"].values()) == len(CHECKS)
    assert all(each["fix"] for each in report["checks"] if each["status"] in {"warning", "problem"})


def test_the_example_application_is_examined(examine: Examine, url: str) -> None:
    found = examine("example_app.main:app", otpless=url)
    assert found["router"] == found["middleware"] == "ok"
    assert found.status == 0


# How it is called


@pytest.mark.parametrize(
    ("text", "attribute", "says"),
    [
        ("x = 1", "app", "has no app"),
        ("app = 1", "app", "no ASGI application but int"),
        ("import nothing_of_this_name", "app", "ModuleNotFoundError"),
        ("raise RuntimeError('no database')", "app", "RuntimeError: no database"),
        ("import sys; sys.exit('usage')", "app", "SystemExit"),
        ("def app(settings): ...", "app", "app is no ASGI application but a function"),
        ("class app: ...", "app", "app is no ASGI application but a class"),
        ("def make(): return 1", "make", "make makes no ASGI application but int"),
    ],
)
def test_an_application_that_cannot_be_had_is_a_usage_error(
    examine: Examine, text: str, attribute: str, says: str
) -> None:
    found = examine(app=text, attribute=attribute)
    assert found.status == 2
    assert found.out == ""
    assert says in found.err


ROUTES = f"""{APP}
from fastapi import APIRouter

router = APIRouter()


@router.get("/three")
async def three(a: int, b: int, c: int) -> int:
    return a + b + c


@router.get("/none")
def none() -> None:
    raise SystemExit("it was called")


app.include_router(router)
"""


@pytest.mark.parametrize("attribute", ["order", "three", "none"])
@pytest.mark.parametrize("options", [[], ["--factory"]], ids=["", "as a factory"])
def test_a_route_is_no_application_and_the_one_that_is_meant_is_named(
    examine: Examine, attribute: str, options: list[str]
) -> None:
    found = examine(*options, app=ROUTES, attribute=attribute)
    assert (found.status, found.out) == (2, "")
    assert f":{attribute} is no ASGI application but a route" in found.err
    assert ":app is one" in found.err


CLASS = """
class App:
    def __init__(self, debug=True): ...
    async def __call__(self, scope, receive, send): ...
"""


@pytest.mark.parametrize(
    "text",
    [
        "async def app(scope, receive, send): ...",
        "async def app(*args): ...",
        "from functools import partial\nasync def serve(shop, scope, receive, send): ...\napp = partial(serve, 1)",
        f"{CLASS}\napp = App()",
        f"{CLASS}\napp = App().__call__",
        f"{CLASS}\ndef app(): return App()",
        "class app:\n def __init__(self, scope, receive, send): ...\n def __await__(self): ...",
        "def app(scope):\n async def serve(receive, send): ...\n return serve",
        "class app:\n def __init__(self, scope): ...\n async def __call__(self, receive, send): ...",
    ],
)
def test_an_application_may_be_any_callable_of_asgi(examine: Examine, text: str) -> None:
    assert examine(app=text)["middleware"] == "problem"  # there is nothing to see in it


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["myapp"], "write module:attribute"),
        (["nothing_of_this_name:app"], "There is no module nothing_of_this_name in"),
    ],
)
def test_what_names_no_application_is_explained(examine: Examine, arguments: list[str], says: str) -> None:
    found = examine(*arguments)
    assert found.status == 2
    assert says in found.err


@pytest.mark.parametrize(
    ("written", "meant"),
    [("main.py", "main"), ("./main.py", "main"), ("shop/main.py", "shop.main"), ("../main.py", "module")],
)
def test_a_file_is_no_module_and_the_one_that_is_meant_is_named(
    examine: Examine, tmp_path: Path, written: str, meant: str
) -> None:
    (tmp_path / "shop").mkdir()
    for file in (tmp_path / "main.py", tmp_path / "shop" / "main.py"):
        file.write_text("raise RuntimeError('it is not imported')")
    folder = ["--app-dir", "shop"] if written.startswith("..") else []
    found = examine(f"{written}:app", *folder)
    assert found.status == 2
    assert f"'{written}:app' is not an application; write {meant}:a" in found.err


@pytest.mark.parametrize("arguments", [["--site", "shop"], ["--site", "https://u:p@shop.example"], ["--timeout", "0"]])
def test_wrong_options_are_a_usage_error(examine: Examine, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        examine(*arguments)
    assert ended.value.code == 2


def test_an_address_without_its_scheme_is_told_what_it_begins_with(
    examine: Examine, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        examine("--site", "localhost:8000")
    says = "it is an address that begins with http:// or https://, such as https://shop.example"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--factory"]], ids=["recognised", "named"])
def test_a_factory_is_called(examine: Examine, options: list[str]) -> None:
    app = (
        APP.replace("app = FastAPI()", "app = made = FastAPI()") + "\ndef create_app(debug: bool = False): return made"
    )
    assert examine(*options, app=app, attribute="create_app")["router"] == "ok"


def test_the_module_may_be_in_another_folder(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "shop_elsewhere.py").write_text(APP)
    assert examine("--app-dir", str(tmp_path / "src"), "shop_elsewhere:app")["router"] == "ok"


def test_an_import_that_does_not_end_is_given_up(examine: Examine) -> None:
    found = examine("--timeout", "0.2", app="import threading; threading.Event().wait()")
    assert found.status == 2
    assert "longer than 0.2 s" in found.err


def test_what_an_application_prints_does_not_spoil_the_report(examine: Examine, url: str) -> None:
    found = examine(app=f"print('starting')\n{APP}", otpless=url)
    assert found["router"] == "ok"
    assert "starting" in found.err


def test_secrets_in_an_applications_own_error_are_not_shown(examine: Examine) -> None:
    app = "import os; raise RuntimeError('cannot use ' + os.environ['OTPLESS_CLIENT_SECRET'])"
    found = examine(app=app, OTPLESS_CLIENT_SECRET=SECRET)
    assert "cannot use ***" in found.err
    assert SECRET not in found.err


# What people see


def test_people_get_a_table_no_wider_than_their_terminal(
    examine: Examine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    found = examine(app=APP, otpless=url, as_json=False, OTPLESS_STORE_URL="memory://")
    lines = found.out.splitlines()
    assert max(map(len, lines)) <= 64
    assert any(line.startswith("warning  store-shared") for line in lines)
    assert "fix: Use sqlite:///sessions.db" in found.out
    assert lines[-1].startswith("0 problems, 2 warnings, ")
    assert lines[-1].endswith(" skipped (--all shows them)")
    assert "skipped  store-clock" not in found.out
    assert "\x1b" not in found.out


def test_what_goes_to_no_terminal_has_a_line_for_each_finding_and_each_fix(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = examine(app=APP, as_json=False, OTPLESS_STORE_URL="memory://").out.splitlines()
    found = {line.split()[1]: line for line in lines if line.startswith(("ok ", "warning ", "problem "))}
    assert found["store-shared"].endswith("none knows who signed in at another.")
    fixes = [line for line in lines if line.lstrip().startswith("fix: ")]
    assert {line.index("fix: ") for line in fixes} == {found["store-shared"].index("memory://")}
    assert len(lines) == len(found) + len(fixes) + 2  # an empty one, and how many there are of each kind
    assert [line for line in lines if line != line.rstrip()] == []


def test_skipped_checks_are_shown_on_request(examine: Examine, url: str) -> None:
    found = examine("--all", otpless=url, as_json=False)
    assert "skipped  store-clock" in found.out
    assert found.out.endswith(" skipped\n")


def test_colours_are_for_terminals_and_for_those_who_want_them(
    examine: Examine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[32mok" in examine(otpless=url, as_json=False).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in examine(otpless=url, as_json=False).out


WITHOUT_RICH = """
import sys
sys.modules.update({"rich": None, "rich.console": None, "uvicorn": None})
from fastapi_otpless_session.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("options", "status"), [([], 2), (["--json"], 1)], ids=["people", "machines"])
def test_without_the_extra_people_are_told_what_to_install_and_machines_need_nothing(
    options: list[str], status: int
) -> None:
    command = [sys.executable, "-c", WITHOUT_RICH, "doctor", *options]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
    assert ran.returncode == status
    if options:
        assert json.loads(ran.stdout)["counts"]["problem"] == 1
    else:
        assert 'pip install "fastapi-otpless-session[cli]"' in ran.stderr
        assert ran.stdout == ""


@pytest.mark.parametrize("where", ["asking", "importing"])
def test_ctrl_c_ends_it_without_a_traceback(emulator: Emulator, url: str, tmp_path: Path, where: str) -> None:
    emulator.add_fault(Fault("hang"))
    mark = tmp_path / "imported"
    (tmp_path / "slow_app.py").write_text(
        f"open({str(mark)!r}, 'w').close()\nimport threading\nthreading.Event().wait()"
    )
    environ = {
        **os.environ,
        "OTPLESS_CLIENT_ID": "demo-client",
        "OTPLESS_CLIENT_SECRET": "demo-secret",
        "OTPLESS_BASE_URL": url,
        "OTPLESS_REQUEST_TIMEOUT": "60",
        "OTPLESS_REFRESH_TIMEOUT": "60",
        "OTPLESS_STORE_URL": "memory://",
        "OTPLESS_JWKS_URL": f"{url}/.well-known/jwks",
    }
    command = [sys.executable, "-m", "fastapi_otpless_session", "doctor", "--timeout", "60", "--json"]
    command += ["slow_app:app"] if where == "importing" else []
    process = subprocess.Popen(  # noqa: S603
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(
        mark.exists if where == "importing" else lambda: emulator.count("validate-session") > 0, "for the doctor"
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_settings_are_read_from_the_working_folders_env_file(
    examine: Examine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine()
    monkeypatch.delenv("OTPLESS_CLIENT_ID")
    (tmp_path / ".env").write_text("OTPLESS_CLIENT_ID=from-the-file\n")
    assert OtplessSettings().client_id == "from-the-file"
    assert main(["doctor", "--json"]) == 1
