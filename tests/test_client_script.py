"""`GET /client.js`: the header channel's script. What it does in a page is in `test_browser.py`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asgi import serving
from conftest import World
from fastapi import FastAPI
from processes import PATIENCE

from fastapi_otpless_session import CurrentSession, OtplessSessionMiddleware, create_session_router
from fastapi_otpless_session.testing import use_emulator

NODE = shutil.which("node")
SCRIPT = "/auth/client.js"
LARGEST = 10_000
PAGE = """
const [address, user] = JSON.parse(process.argv[1]);
const stored = new Map();
const localStorage = {
  getItem: (key) => stored.has(key) ? stored.get(key) : null,
  setItem: (key, value) => stored.set(key, value),
  removeItem: (key) => stored.delete(key),
};
globalThis.window = { addEventListener() {}, localStorage };
globalThis.document = { currentScript: { src: address + "/auth/client.js" } };
const ask = (path) => window.otplessSession.fetch(path).then((answer) => answer.json());
const seen = { socket: "" };
(async () => {
  (0, eval)(await (await fetch(document.currentScript.src)).text());
  await window.otplessSession.signIn(user);
  seen.orders = [await ask("/orders"), await ask("/expire"), await ask("/orders"), await ask("/orders")];
  try {
    window.otplessSession.socket("/updates");
  } catch (error) {
    seen.socket = error.message;
  }
  await window.otplessSession.signOut();
  seen.over = await ask("/orders");
  console.log(JSON.stringify(seen));
})();
"""
"""A page of the address, for Node.js: it signs in, asks, has its token swapped, asks again, signs out and asks."""


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


def shop() -> FastAPI:
    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth")

    @app.get("/orders")
    async def orders(session: CurrentSession) -> bool:
        return session.refreshed

    return app


def seen_by_a_page(app: FastAPI, **settings: Any) -> dict[str, Any]:
    """Return what a page saw; `/expire` lets its session token die."""
    assert NODE is not None
    with use_emulator(app, **settings) as otpless, serving(app) as address:
        user = otpless.emulator.sign_in()
        app.get("/expire")(lambda: otpless.emulator.expire(user["sessionInfo"]["sessionId"]))
        page = [NODE, "-e", PAGE, json.dumps([address, user])]
        ran = subprocess.run(page, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
    assert ran.returncode == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.skipif(NODE is None, reason="runs the script with Node.js")
@pytest.mark.parametrize(
    "sources", ["header", "authorization,header,cookie", "header,cookie", "authorization", "authorization,cookie"]
)
def test_it_sends_its_token_where_the_server_looks_for_one(sources: str) -> None:
    seen = seen_by_a_page(shop(), token_sources=sources)
    assert seen["orders"] == [False, None, True, False]
    assert seen["over"]["detail"]["code"] == "session_missing"


@pytest.mark.skipif(NODE is None, reason="runs the script with Node.js")
def test_it_says_why_a_websocket_cannot_have_the_token_where_the_server_reads_no_header_of_ours() -> None:
    assert "OTPLESS_TOKEN_SOURCES" in seen_by_a_page(shop(), token_sources="authorization")["socket"]
    assert "OTPLESS_TOKEN_SOURCES" not in seen_by_a_page(shop(), token_sources="header")["socket"]
