"""Imports go downward only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fastapi_otpless_session

pytestmark = pytest.mark.varied  # it reads the package, and runs nothing of it

ROOT = "fastapi_otpless_session"
FOLDER = Path(fastapi_otpless_session.__file__).parent
LAYERS = [
    {"errors", "settings", "session", "telemetry"},
    {
        *(
            "strict_json",
            "wire",
            "tokens",
            "transport",
            "crowd",
            "patience",
            "flights",
            "guard",
            "loops",
            "lru",
            "freshness",
        ),
        "turns",
        *(
            "stores",
            "stores.base",
            "stores.records",
            "stores.sqlite",
            "stores.sqlite_file",
            "stores.sqlite_link",
            "stores.sqlite_writer",
        ),
        *("stores.sql_schema", "stores.sql_link", "stores.sql"),
        *(
            "stores.server_clock",
            "stores.keepalive",
            "stores.lua",
            "stores.redis_link",
            "stores.redis_cluster",
            "stores.redis",
        ),
    },
    {"http", "http_aiohttp", "body", "calls", "client", "breaker", "gate", "keys"},
    {
        *("core", "vault", "refresh", "outage", "outbox", "ending", "hooks", "background", "strangers", "binding"),
        *("duties", "copies", "current", "judge", "denials", "resolver", "sign_ins", "sign_outs", "sessions"),
    },
    {"connection", "websocket", "serving", "middleware", "secured", "dependencies", "script", "router"},
    {
        *("doctor", "doctor.findings", "doctor.host", "doctor.application", "doctor.load", "doctor.setup"),
        *("doctor.otpless", "doctor.store", "doctor.configuration", "doctor.cookie", "doctor.layers", "doctor.places"),
        *("doctor.matching", "doctor.refusals", "doctor.site", "doctor.checks", "doctor.display", "doctor.cli"),
    },
]
ON_TOP = {"", "command_line", "__main__"}
"""The root gathers the public names, and the command line calls what it needs; no layer imports either."""
TESTING = {
    *("", "connection", "dependencies", "emulator", "session", "sessions", "binding", "stores.base", "tokens"),
    *("serving", "transport"),
}
ISLANDS = {"emulator": set[str](), "testing": TESTING}
"""Folders that belong to no layer, and what of the rest they may import."""
SURFACE = {"middleware", "dependencies", "router"}


def modules() -> dict[str, Path]:
    found = {}
    for path in FOLDER.rglob("*.py"):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Name the package's modules that a module imports, by their place inside; the root is an empty name."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (inside(alias.name) for alias in node.names if is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            if is_ours(node.module or ""):
                yield from (target(inside(node.module or ""), alias.name) for alias in node.names)


def is_ours(module: str) -> bool:
    return module == ROOT or module.startswith(f"{ROOT}.")


def inside(module: str) -> str:
    return module.removeprefix(ROOT).removeprefix(".")


def target(module: str, imported: str) -> str:
    submodule = f"{module}.{imported}".removeprefix(".")
    return submodule if submodule in MODULES else module


def island_of(name: str) -> str | None:
    first = name.partition(".")[0]
    return first if first in ISLANDS else None


def layer_of(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


LAYERED = sorted(name for name in MODULES if name not in ON_TOP and not island_of(name))


def test_every_module_has_a_place_in_the_table_and_the_table_has_no_others() -> None:
    assert set(LAYERED) == set().union(*LAYERS)
    assert sum(map(len, LAYERS)) == len(LAYERED)


@pytest.mark.parametrize("name", LAYERED)
def test_a_module_imports_its_own_layer_or_lower_ones_and_never_the_root_or_an_island(name: str) -> None:
    for imported in imports(name):
        assert imported in LAYERED, f"{name} imports {imported or 'the root'}"
        assert layer_of(imported) <= layer_of(name), f"{name} imports {imported}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {imported for imported in imports(name) if imported != name} for name in MODULES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_middleware_dependencies_and_router_do_not_import_each_other(name: str) -> None:
    assert not SURFACE & set(imports(name))


@pytest.mark.parametrize("name", sorted(name for name in MODULES if island_of(name)))
def test_an_island_imports_itself_and_what_it_may(name: str) -> None:
    island = island_of(name)
    assert island is not None
    for imported in imports(name):
        allowed = imported in ISLANDS[island] or island_of(imported) in {island, *ISLANDS[island]}
        assert allowed, f"{name} imports {imported or 'the root'}"


def test_nobody_imports_the_emulator_but_the_command_line_and_the_helpers_for_tests() -> None:
    importers = {name for name in MODULES if any(island_of(each) == "emulator" for each in imports(name))}
    assert {island_of(name) or name for name in importers} <= {"emulator", "testing", "command_line"}
    assert "command_line" in importers


def test_pytest_is_imported_by_the_helpers_for_tests_only() -> None:
    importers = {name for name in MODULES if "import pytest" in MODULES[name].read_text(encoding="utf-8")}
    assert {island_of(name) for name in importers} == {"testing"}
