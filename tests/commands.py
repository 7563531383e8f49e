"""Whether the commands in our pages exist: targets of the Makefile, our own command line, our extras, options of tools.

A command of ours is asked for its help, and must know the options that a page shows with it.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from typing import Any

import uvicorn
from click.testing import CliRunner
from pages import ROOT

from fastapi_otpless_session import OtplessSettings
from fastapi_otpless_session.__main__ import main

FOREIGN = ("docker", "sqlite3", "pg_dump", "redis-cli", "curl")
"""Tools of others that need not be here; they are known by their own documentation."""
STARTS = re.compile(rf"(?:[A-Z_]+=\S* )*(?:make|pip|python|uvicorn|{'|'.join(FOREIGN)}) .+")
"""What a command looks like, to tell one from other names in backticks."""


def is_command(text: str) -> bool:
    """Whether a text in backticks is a command to type."""
    return STARTS.fullmatch(text) is not None


def lines(text: str) -> list[str]:
    """Return the commands of a block: without prompts, comments and empty lines, continued lines joined."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in map(str.strip, joined) if line and not line.startswith("#")]


def faults(command: str) -> list[str]:
    """Return what is wrong with a command line."""
    words = shlex.split(command, comments=True)
    found = []
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        found += unknown_setting(words.pop(0).partition("=")[0])
    match words:
        case ["make", *rest]:
            return found + [f"no such target: {word}" for word in rest if "=" not in word and word not in targets()]
        case ["pip", "install", *packages]:
            return found + [f"no such extra: {package}" for package in packages if not _is_installable(package)]
        case ["python", "-m", "fastapi_otpless_session", *rest]:
            return found + _unknown_to_us(rest)
        case ["uvicorn", application, *rest] if ":" in application:
            return found + [f"uvicorn has no {option}" for option in _options(rest) if option not in _help("uvicorn")]
        case [tool, *_] if tool in FOREIGN:
            return found
        case _:
            return [*found, f"not known: {command}"]


def unknown_setting(variable: str) -> list[str]:
    """Return what is wrong with the name of an environment variable that a page sets."""
    if not variable.startswith("OTPLESS_"):
        return []
    name = variable.removeprefix("OTPLESS_").lower()
    return [] if name in OtplessSettings.model_fields else [f"no such setting: {variable}"]


@cache
def targets() -> set[str]:
    """Return the Makefile's targets."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))


def _is_installable(package: str) -> bool:
    """Whether a page may tell to install this: our package with extras that there are, or what our tests need, too.

    A dot is our package in a checkout.
    """
    found = re.fullmatch(r"(?:fastapi-otpless-session|\.)(?:\[([\w,]+)\])?", package)
    if found is None:
        return package in _needed_by_tests()
    return set((found[1] or "").split(",")) - {""} <= extras()


def extras() -> set[str]:
    """Return the package's extras."""
    return set(_pyproject()["project"]["optional-dependencies"])


def _needed_by_tests() -> set[str]:
    """Return the packages that are tried here every day."""
    needed = _pyproject()["dependency-groups"]["dev"]
    return {re.split(r"[\[>=]", each)[0] for each in needed if isinstance(each, str)}


@cache
def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _unknown_to_us(words: list[str]) -> list[str]:
    if not words:
        return ["no command"]
    name, *rest = words
    text = _help(name)
    if not text:
        return [f"no such command: {name}"]
    return [f"{name} has no {option}" for option in _options(rest) if option not in text]


def _options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


@cache
def _help(name: str) -> str:
    """Return a command's help; nothing where there is no such command."""
    if name == "uvicorn":
        return CliRunner().invoke(uvicorn.main, ["--help"]).stdout
    with redirect_stdout(StringIO()) as printed, redirect_stderr(StringIO()):
        try:
            main([name, "--help"])
        except SystemExit as ended:
            return "" if ended.code else printed.getvalue()
    return ""
