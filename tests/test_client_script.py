"""`GET /client.js`: the header channel's script. What it does in a page is in `test_browser.py`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import World
from processes import PATIENCE

NODE = shutil.which("node")
SCRIPT = "/auth/client.js"
LARGEST = 10_000


def test_the_script_is_served_to_anybody_as_a_script_that_caches_may_keep(world: World) -> None:
    answer = world.client.get(SCRIPT)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["cache-control"] == "public, max-age=300"
    assert {"vary", "set-cookie"}.isdisjoint(answer.headers)
    assert len(answer.content) < LARGEST


def test_a_page_of_another_site_may_include_it(world: World) -> None:
    answer = world.client.get(SCRIPT, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "script"})
    assert answer.status_code == 200


@pytest.mark.parametrize("known", ["{}", "W/{}", '"other", {}', "*"])
def test_whoever_has_it_already_is_not_sent_it_again(world: World, known: str) -> None:
    etag = world.client.get(SCRIPT).headers["etag"]
    answer = world.client.get(SCRIPT, headers={"If-None-Match": known.format(etag)})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert world.client.get(SCRIPT, headers={"If-None-Match": '"other"'}).status_code == 200


def test_it_uses_the_header_that_the_settings_name(make_world: Callable[..., World]) -> None:
    usual, other = (make_world(header_name=name).client.get(SCRIPT) for name in ("X-Session-Token", "X-Chai"))
    assert re.findall(r"HEADER = (.*?);", usual.text) == ['"X-Session-Token"']
    assert re.findall(r"HEADER = (.*?);", other.text) == ['"X-Chai"']
    assert usual.headers["etag"] != other.headers["etag"]


def test_an_outage_of_otpless_or_a_credential_that_is_none_does_not_keep_it_from_a_page(world: World) -> None:
    answer = world.client.get(SCRIPT, headers={"X-Session-Token": "nonsense", "Cookie": "__Host-otpless_session=x"})
    assert answer.status_code == 200
    assert world.emulator.calls == []


def test_it_is_written_for_browsers_of_2018(world: World) -> None:
    later = r"\?\.\w|\?\?|catch \{|\|\|=|&&=|\.(?:at|flat|flatMap|replaceAll|allSettled|any|fromEntries)\("
    assert re.findall(later, world.client.get(SCRIPT).text) == []
    assert re.findall(later, "a?.b; a ?? b; try {} catch {}")  # that the pattern would see it


@pytest.mark.skipif(NODE is None, reason="reads the script with Node.js")
def test_it_is_javascript(world: World, tmp_path: Path) -> None:
    assert NODE is not None
    file = tmp_path / "client.js"
    file.write_bytes(world.client.get(SCRIPT).content)
    subprocess.run([NODE, "--check", file], check=True, timeout=PATIENCE)  # noqa: S603 - our own script
