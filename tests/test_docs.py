"""Every page of the documentation holds, the README too: its code runs, its settings and commands exist, its links lead
somewhere.

What single pages promise is in `test_readme.py`; what holds for all of them is here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import commands
import diagrams
import pytest
import yaml  # type: ignore[import-untyped]
from pages import DOCS, NOT_OURS, README, ROOT, Block, Page, blocks, pages, read, tables
from processes import PATIENCE

import fastapi_otpless_session
from example_app.settings import ShopSettings
from fastapi_otpless_session import OtplessSettings, open_store, testing
from fastapi_otpless_session.settings import STORE_SCHEMES

pytestmark = pytest.mark.varied

NODE = shutil.which("node")
PYTHON = [block for block in blocks("python") if not re.match(r"# \S+\.py\b", block.text)]
"""But for the files of a project, which begin with their name: `test_plugin_docs.py` puts that together and runs it."""
TESTS = [block for block in PYTHON if re.search(r"^\s*(async )?def test_|^class Test", block.text, re.MULTILINE)]
CHECKED = {"python", "ini", "sh", "mermaid", "js", "html", "nginx", "json", "toml", "yaml", "conf", "text"}
"""The languages of blocks. `conf` is a server's of others; what is for Redis is tried by `test_store_redis.py`. `text`
is what a program prints."""
LOOP_SCOPE = "asyncio_default_fixture_loop_scope=function"
"""What pytest-asyncio wants to be told, or it warns."""
FOREIGN = {"AsyncClient", "CORSMiddleware", "EventSource", "SameSite", "StreamingResponse", "TestClient", "HTTPS_PROXY"}
"""Names of others."""
PAGES = pytest.mark.parametrize("page", pages(), ids=str)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader would have set."""
    monkeypatch.setenv("OTPLESS_CLIENT_ID", "your-client-id")
    monkeypatch.setenv("OTPLESS_CLIENT_SECRET", "your-client-secret")
    monkeypatch.setenv("OTPLESS_STORE_URL", "memory://")


class TestCode:
    @PAGES
    def test_there_is_no_block_that_nothing_checks(self, page: Page) -> None:
        assert [str(block) for block in page.blocks if block.language not in CHECKED] == []

    @pytest.mark.parametrize("block", PYTHON, ids=str)
    def test_python_runs_by_itself(self, block: Block) -> None:
        assert block.run()

    def test_tests_pass(self, tmp_path: Path) -> None:
        """As a reader's would, each a file: in a folder of their own, with nothing of ours set."""
        for block in TESTS:
            name = re.sub(r"\W+", "_", str(block))
            (tmp_path / f"test_{name}.py").write_text(block.text, encoding="utf-8")
        ran = subprocess.run(  # noqa: S603 - our own pages
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-o", LOOP_SCOPE, tmp_path],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith(("OTPLESS_", "PYTEST_"))},
            capture_output=True,
            text=True,
            check=False,
            timeout=5 * PATIENCE,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "passed" in ran.stdout

    @pytest.mark.parametrize("block", blocks("ini"), ids=str)
    def test_environments_are_settings(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        for line in block.text.splitlines():
            if not line or line.startswith("#"):
                continue
            name, separator, value = line.partition("=")
            assert separator, line
            assert _is_setting(name), line
            monkeypatch.setenv(name, value)
        OtplessSettings()  # raises where a value is wrong
        ShopSettings()

    @pytest.mark.parametrize("block", blocks("sh"), ids=str)
    def test_commands_exist(self, block: Block) -> None:
        found = commands.lines(block.text)
        assert found
        assert [fault for command in found for fault in commands.faults(command)] == []

    @pytest.mark.parametrize("block", blocks("mermaid"), ids=str)
    def test_diagrams_can_be_drawn(self, block: Block) -> None:
        assert diagrams.faults(block.text) == []

    @pytest.mark.skipif(NODE is None, reason="reads the frontend's code with Node.js, and there is none")
    @pytest.mark.parametrize("block", blocks("js", "html"), ids=str)
    def test_the_frontends_code_is_javascript(self, block: Block, tmp_path: Path) -> None:
        assert NODE is not None
        found = [block.text]
        if block.language == "html":
            found = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", block.text, re.DOTALL)
        file = tmp_path / ("snippet.mjs" if "import " in block.text else "snippet.js")
        file.write_text("\n".join(found), encoding="utf-8")
        ran = subprocess.run([NODE, "--check", file], capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603 - our own page
        assert ran.returncode == 0, ran.stderr

    @pytest.mark.parametrize("block", blocks("nginx", "json", "toml", "yaml"), ids=str)
    def test_data_and_configurations_can_be_read(self, block: Block) -> None:
        readers = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load, "nginx": _read_nginx}
        assert readers[block.language](block.text)


def _read_nginx(text: str) -> list[str]:
    """Return the lines of a configuration for nginx. Raises `ValueError` where one has no end."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    kept = [line for line in lines if line]
    if text.count("{") != text.count("}") or not all(line.endswith((";", "{", "}")) for line in kept):
        raise ValueError(text)
    return kept


def _is_setting(variable: str) -> bool:
    if variable.startswith("SHOP_"):
        return variable.removeprefix("SHOP_").lower() in ShopSettings.model_fields
    return variable.startswith("OTPLESS_") and not commands.unknown_setting(variable)


class TestText:
    @PAGES
    def test_links_lead_somewhere(self, page: Page) -> None:
        assert [target for target in page.links if not _leads_somewhere(page, target)] == []

    @pytest.mark.parametrize("file", sorted(DOCS.glob("*.md")), ids=lambda file: file.name)
    def test_the_readme_leads_to_every_page(self, file: Path) -> None:
        linked = {(README.parent / target.partition("#")[0]).resolve() for target in read(README).links}
        assert file.resolve() in linked

    @PAGES
    def test_no_heading_is_there_twice(self, page: Page) -> None:
        assert len(set(page.anchors)) == len(page.anchors)
        assert not [anchor for anchor in page.anchors if re.search(r"-\d+$", anchor) and anchor[:-2] in page.anchors]

    @PAGES
    def test_every_setting_that_is_named_exists(self, page: Page) -> None:
        text = page.file.read_text(encoding="utf-8")
        assert [name for name in re.findall(r"\b(?:OTPLESS|SHOP)_[A-Z_]*[A-Z]\b", text) if not _is_setting(name)] == []
        bare = [name for name in page.codes if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", name) and name not in FOREIGN]
        assert [name for name in bare if not (_is_setting(name) or _is_setting(f"OTPLESS_{name}"))] == []

    @PAGES
    def test_every_command_that_is_named_exists(self, page: Page) -> None:
        named = [code for code in page.codes if commands.is_command(code)]
        assert [fault for command in named for fault in commands.faults(command)] == []

    @PAGES
    def test_every_name_of_code_exists(self, page: Page) -> None:
        named = {code for code in page.codes if re.fullmatch(r"[A-Z][a-z]+[A-Z]\w+", code)}
        rules = yaml.safe_load((DOCS / "alerts.yml").read_text(encoding="utf-8"))
        alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
        assert named - FOREIGN - alerts <= {*fastapi_otpless_session.__all__, *testing.__all__}

    @PAGES
    def test_every_metric_that_is_named_exists(self, page: Page) -> None:
        source = (Path(fastapi_otpless_session.__file__).parent / "telemetry.py").read_text(encoding="utf-8")
        named = [code for code in page.codes if re.fullmatch(r"otpless(\.[a-z_]+){2,}", code)]
        assert [name for name in named if f'"{name}"' not in source] == []

    @PAGES
    def test_every_store_address_is_one(self, page: Page) -> None:
        for url in re.findall(rf"`((?:{'|'.join(STORE_SCHEMES)})://[^`…]*)`", page.prose):
            assert open_store(url) is not None


def _leads_somewhere(page: Page, target: str) -> bool:
    if NOT_OURS.match(target):
        return True
    path, _, anchor = target.partition("#")
    file = (page.file.parent / path).resolve() if path else page.file
    if not file.is_relative_to(ROOT) or not file.exists():
        return False
    return not anchor or anchor in read(file).anchors


class TestSettings:
    HEAD = ("name", "default", "meaning")

    def test_a_folder_of_secrets_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OTPLESS_CLIENT_SECRET")
        (tmp_path / "otpless_client_secret").write_text("of-the-file\n", encoding="utf-8")
        [block] = [block for block in PYTHON if "_secrets_dir" in block.text]
        app = block.run()["create_app"](str(tmp_path))
        settings = app.user_middleware[0].kwargs["settings"]
        assert settings.client_secret.get_secret_value() == "of-the-file"

    def test_one_table_has_every_setting_in_order(self) -> None:
        named = [[row[0].strip("`").lower() for row in table.rows] for _, table in tables(*self.HEAD)]
        assert list(OtplessSettings.model_fields) in named

    @pytest.mark.parametrize(
        ("row", "where"),
        [pytest.param(row, page, id=f"{page}:{row[0]}") for page, table in tables(*HEAD) for row in table.rows],
    )
    def test_defaults_are_the_codes(self, row: list[str], where: Page) -> None:
        name, default, meaning = row[0].strip("`").lower(), row[1].strip("`"), row[2]
        field = OtplessSettings.model_fields[name]
        assert meaning, where
        if field.is_required():
            assert default == "required"
        elif field.default in {None, ()}:
            assert row[1] == "none"
        else:
            written = OtplessSettings(**{"client_id": "id", "client_secret": "secret", name: default})
            assert getattr(written, name) == field.default


class TestStores:
    def test_the_pages_name_the_stores_that_there_are(self) -> None:
        named = {
            scheme
            for page in pages()
            for text in page.sections.get("where-sessions-are-kept", ())
            for scheme in re.findall(r"`(\w+)://", text)
        }
        assert named == set(STORE_SCHEMES)


class TestContributing:
    def test_every_module_is_in_the_map_once(self) -> None:
        [table] = [table for table in read(ROOT / "CONTRIBUTING.md").tables if table.head == ("module", "its one job")]
        named = [name for row in table.rows if row[1] for name in re.findall(r"`([\w.]+)`", row[0])]
        folder = ROOT / "fastapi_otpless_session"
        there = {".".join(file.relative_to(folder).with_suffix("").parts) for file in folder.rglob("[!_]*.py")}
        whole = {"doctor", "emulator", "testing"}
        assert sorted(named) == sorted({name for name in there if name.partition(".")[0] not in whole} | whole)


class TestWatching:
    def test_the_lines_to_watch_for_are_logged(self) -> None:
        package = Path(fastapi_otpless_session.__file__).parent
        source = "\n".join(file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py")))
        [(_, table)] = tables("line", "means")
        for row in table.rows:
            line = re.match(r"`(\D+?)[ :]*(?:\d|`)", row[0])
            assert line is not None, row
            assert f'"{line[1]}' in source, line[1]


class TestCheckers:
    """What looks at the pages sees a mistake."""

    @pytest.mark.parametrize(
        "diagram",
        [
            "sequenceDiagram\n participant A\n A->>B: hello",
            "sequenceDiagram\n participant A\n A-->A: hello",
            "sequenceDiagram\n participant A\n loop always\n A->>A: hello",
            "sequenceDiagram\n participant A\n A->>A: one; two",
            "stateDiagram-v2\n One : first\n One --> Two",
            "stateDiagram-v2\n One : first\n One -> One",
            "flowchart\n A --> B",
        ],
    )
    def test_a_diagram_that_would_not_be_drawn_is_told(self, diagram: str) -> None:
        assert diagrams.faults(diagram)

    @pytest.mark.parametrize(
        "command",
        [
            "make coffee",
            'pip install "fastapi-otpless-session[oracle]"',
            'pip install ".[oracle]"',
            "pip install somebody-elses",
            "python -m fastapi_otpless_session keygem",
            "python -m fastapi_otpless_session emulator --prot 1",
            "OTPLESS_STORE=memory:// make demo",
            "uvicorn main:app --wrokers 4",
            "frobnicate",
        ],
    )
    def test_a_command_that_does_not_exist_is_told(self, command: str) -> None:
        assert commands.faults(command)

    def test_a_link_that_leads_nowhere_is_told(self) -> None:
        page = read(README)
        assert _leads_somewhere(page, "docs/faq.md#cookies")
        assert not _leads_somewhere(page, "docs/faq.md#biscuits")
        assert not _leads_somewhere(page, "docs/fax.md")
        assert not _leads_somewhere(page, "../elsewhere.md")
