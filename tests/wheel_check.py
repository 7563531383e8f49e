"""The packages as users get them: built, installed in empty environments, and tried there. `make wheel` runs this.

It is no part of `make test`, which needs no package index once its own environment is there. The environments get the
versions that `constraints.txt` pins, as the others do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pages import README, ROOT
from processes import PATIENCE, steady_port, wait_until

EXTRAS = ("cli", "fast", "postgres", "redis")
LONG = 600.0
"""How many seconds a build or an installation may take."""
PYTHON_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing in it but the wheel and what it brings along."""

    path: Path

    @property
    def python(self) -> str:
        return str(self.path / ("Scripts" if os.name == "nt" else "bin") / "python")

    def run(
        self, *arguments: str, status: int = 0, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python there, in a folder where nothing of ours lies about, and expect a status."""
        ran = subprocess.run(  # noqa: S603
            [self.python, *arguments],
            cwd=self.path,
            env=clean(variables),
            capture_output=True,
            text=True,
            timeout=LONG,
            check=False,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran

    def command(
        self, *arguments: str, status: int = 0, variables: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m fastapi_otpless_session`."""
        return self.run("-m", "fastapi_otpless_session", *arguments, status=status, variables=variables)

    @contextmanager
    def running(self, *arguments: str, answers_at: str, variables: dict[str, str] | None = None) -> Iterator[None]:
        """Run Python as long as the context lasts, once it answers HTTP."""
        log = self.path / f"{arguments[1]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [self.python, *arguments], cwd=self.path, env=clean(variables), stdout=output, stderr=output
            )
        try:
            wait_until(lambda: answers(answers_at, process, log), f"for {' '.join(arguments)}")
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def clean(variables: dict[str, str] | None) -> dict[str, str]:
    """This environment, without what leads Python or the application elsewhere."""
    elsewhere = ("OTPLESS_", "PYTHON", "COVERAGE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(elsewhere)}
    return kept | (variables or {})


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(log.read_text(errors="replace"))
    try:
        httpx.get(url, trust_env=False)
    except httpx.TransportError:
        return False
    return True


@pytest.fixture(scope="session", autouse=True)
def _one_authority() -> None:
    """Here pip calls the world, whose certificates count."""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and the wheel from that: what the sdist lacks, the wheel would lack, too."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)  # noqa: S603
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(packages: Path) -> Path:
    (found,) = packages.glob("*.whl")
    return found


def installed(folder: Path, requirement: str) -> Environment:
    venv.create(folder, with_pip=True)
    environment = Environment(folder)
    quiet = ("--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / "constraints.txt"))
    environment.run("-m", "pip", "install", *quiet, requirement)
    return environment


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel without extras."""
    return installed(tmp_path_factory.mktemp("bare") / "venv", str(wheel))


@pytest.fixture(scope="module")
def whole(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with all extras."""
    return installed(tmp_path_factory.mktemp("whole") / "venv", f"{wheel}[{','.join(EXTRAS)}]")


@pytest.fixture(scope="module")
def served(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel with what `make demo` installs."""
    return installed(tmp_path_factory.mktemp("served") / "venv", f"{wheel}[cli]")


@pytest.fixture(scope="module")
def compiled(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it is built from the sdist where compiling is asked for."""
    (sdist,) = packages.glob("*.tar.gz")
    folder = tmp_path_factory.mktemp("compiled")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(sdist)]
    environ = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    built = subprocess.run(  # noqa: S603
        command, env=environ, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


# What is in them


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    first = {name.partition("/")[0] for name in names}
    info = next(name for name in first if name.endswith(".dist-info"))
    assert first == {"fastapi_otpless_session", "pytest_otpless_session.py", info}
    assert "fastapi_otpless_session/py.typed" in names
    assert f"{info}/licenses/LICENSE" in names
    ours = [path for path in (ROOT / "fastapi_otpless_session").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in ours} <= set(names)


def test_the_sdist_holds_what_it_takes_to_work_on_it(packages: Path) -> None:
    (found,) = packages.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE", "Makefile", "constraints.txt"}
    assert wanted <= names
    assert {"tests/test_story.py", "example_app/main.py", "docs/stores.md", ".ci/run"} <= names
    assert not any(name.endswith((".pyc", ".db", ".env")) or "/.venv" in f"/{name}" for name in names)


REFUSED = """
import asyncio
import httpx
from fastapi import FastAPI
from fastapi_otpless_session import OtplessSessionMiddleware, OtplessSettings, serving

assert not serving.__file__.endswith(".py"), serving.__file__
app = FastAPI()
settings = OtplessSettings(client_id="x", client_secret="y", store_url="memory://", required_paths="/**")
app.add_middleware(OtplessSessionMiddleware, settings=settings)


async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://shop.example") as client:
        assert (await client.get("/")).status_code == 401
        assert (await client.get("/", headers={"X-Session-Token": "e30.e30.e30"})).status_code == 401


asyncio.run(main())
"""


def test_a_compiled_wheel_is_this_systems_and_works(compiled: Path, tmp_path: Path) -> None:
    assert not compiled.name.endswith("none-any.whl")
    environment = installed(tmp_path / "venv", str(compiled))
    environment.run("-W", "error", "-c", REFUSED)


# Without extras


def test_without_extras_everything_can_be_imported_and_fits_together(bare: Environment) -> None:
    bare.run("-m", "pip", "check")
    bare.run("-W", "error", "-c", "import fastapi_otpless_session, fastapi_otpless_session.emulator")


def test_without_extras_keys_and_tables_are_printed(bare: Environment) -> None:
    key = bare.command("keygen").stdout.strip()
    assert "CREATE TABLE" in bare.command("schema", "postgresql").stdout
    bare.run(
        "-c",
        "from fastapi_otpless_session import OtplessSettings; OtplessSettings()",
        variables={"OTPLESS_CLIENT_ID": "x", "OTPLESS_CLIENT_SECRET": "y", "OTPLESS_ENCRYPTION_KEYS": key},
    )


@pytest.mark.parametrize(
    ("arguments", "status", "extra"), [(["emulator"], 1, "cli"), (["doctor"], 2, "cli")], ids=["emulator", "doctor"]
)
def test_a_command_names_the_extra_that_it_needs(
    bare: Environment, arguments: list[str], status: int, extra: str
) -> None:
    assert f"fastapi-otpless-session[{extra}]" in bare.command(*arguments, status=status).stderr


@pytest.mark.parametrize(("url", "extra"), [("redis://host", "redis"), ("postgresql://host/db", "postgres")])
def test_a_store_names_the_extra_that_it_needs(bare: Environment, url: str, extra: str) -> None:
    ran = bare.run("-c", f"from fastapi_otpless_session import open_store; open_store({url!r})", status=1)
    assert f"fastapi-otpless-session[{extra}]" in ran.stderr


# With extras


def test_with_extras_all_stores_are_there(whole: Environment) -> None:
    whole.run("-m", "pip", "check")
    for url in ("redis://host", "postgresql://host/db", "memory://"):
        whole.run("-W", "error", "-c", f"from fastapi_otpless_session import open_store; open_store({url!r})")


def test_the_readmes_first_application_signs_in_and_out(whole: Environment) -> None:
    first = PYTHON_BLOCK.search(README.read_text("utf-8"))
    assert first is not None
    (whole.path / "shop.py").write_text(first[1])
    ports = steady_port(), steady_port()
    otpless, shop = (f"http://127.0.0.1:{port}" for port in ports)
    variables = {
        "OTPLESS_CLIENT_ID": "demo-client",
        "OTPLESS_CLIENT_SECRET": "demo-secret",
        "OTPLESS_BASE_URL": otpless,
        "OTPLESS_JWKS_URL": f"{otpless}/.well-known/jwks",
        "OTPLESS_COOKIE_SECURE": "false",
    }
    emulator = ("-m", "fastapi_otpless_session", "emulator", "--port", str(ports[0]))
    application = ("-m", "uvicorn", "shop:app", "--port", str(ports[1]))
    with (
        whole.running(*emulator, answers_at=otpless),
        whole.running(*application, answers_at=shop, variables=variables),
        httpx.Client(base_url=shop, trust_env=False) as browser,
    ):
        assert browser.get("/orders").status_code == 401
        user = httpx.post(f"{otpless}/_emulator/sign_in", json={}, trust_env=False).json()
        assert browser.post("/auth/login", json=user).status_code == 200
        assert browser.get("/orders").json() == {"user": user["userId"]}
        assert browser.post("/auth/logout").status_code == 204
        assert browser.get("/orders").status_code == 401
        examined = whole.command("doctor", "shop:app", "--json", "--site", shop, variables=variables)
        assert json.loads(examined.stdout)["counts"]["problem"] == 0
        assert "0 problems" in whole.command("doctor", "shop:app", variables=variables).stdout


def test_the_example_application_needs_no_more_than_make_demo_installs(served: Environment) -> None:
    ports = steady_port(), steady_port()
    shop, emulator = (f"http://localhost:{port}" for port in ports)
    variables = {"PORT": str(ports[0]), "EMULATOR_PORT": str(ports[1]), "PYTHONPATH": str(ROOT)}
    with (
        served.running("-m", "example_app", answers_at=shop, variables=variables),
        httpx.Client(base_url=shop, trust_env=False) as browser,
    ):
        user = httpx.post(f"{emulator}/_emulator/sign_in", json={}, trust_env=False).json()
        assert browser.post("/auth/login", json=user).status_code == 200
        assert browser.get("/auth/session").json()["user_id"] == user["userId"]
        assert browser.post("/demo/expire").status_code == 204
