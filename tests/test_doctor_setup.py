"""`doctor` on settings, on OTPLESS and its faults, and on stores."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from backends import MakeRedis, PostgresServer, RedisCluster, RedisServer
from conftest import make_settings
from doctored import APP, SECRET, Examine
from processes import steady_port

from fastapi_otpless_session.doctor.host import Host
from fastapi_otpless_session.doctor.setup import Setup
from fastapi_otpless_session.doctor.store import store_shared
from fastapi_otpless_session.emulator import Emulator, EmulatorSettings, Fault, serve
from fastapi_otpless_session.stores.sqlite_file import SCHEMA
from fastapi_otpless_session.tokens import new_key

# Settings


def test_settings_that_cannot_be_read_are_the_only_problem(examine: Examine) -> None:
    found = examine(app=APP, OTPLESS_CLIENT_SECRET="", OTPLESS_VALIDATION_TTL="often")
    assert found.status == 1
    assert found.wrong() == {"settings": "problem"}
    assert "OTPLESS_CLIENT_SECRET: is required" in found.text("settings")
    assert "OTPLESS_VALIDATION_TTL: is not a number" in found.text("settings")


def test_an_application_that_reads_wrong_settings_when_imported_is_a_problem_with_settings(examine: Examine) -> None:
    app = "from fastapi_otpless_session import OtplessSettings\napp = OtplessSettings()"
    found = examine(app=app, OTPLESS_CLIENT_ID="")
    assert found.status == 1
    assert found.wrong() == {"settings": "problem"}


@pytest.mark.parametrize("argument", ["settings=settings", "sessions=OtplessSessions(settings)"])
@pytest.mark.parametrize("wrapped", [False, True], ids=["added", "wrapped"])
def test_settings_given_in_code_are_those_that_count(examine: Examine, argument: str, wrapped: bool) -> None:
    app = f"""
    from fastapi import FastAPI
    from fastapi_otpless_session import *
    settings = OtplessSettings(store_url="memory://")
    app = FastAPI()
    if {wrapped}:
        app = OtplessSessionMiddleware(app, {argument})
    else:
        app.add_middleware(OtplessSessionMiddleware, {argument})
    """
    found = examine(app=app)
    assert found["store-shared"] == "warning"
    assert "memory://" in found.text("store-shared")
    assert found["middleware"] == "ok"


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        pytest.param(new_key, "ok", id="one of its own"),
        pytest.param(lambda: f"{new_key()},{new_key()}", "ok", id="two"),
        pytest.param(lambda: f"{new_key()},derived", "ok", id="on the way to one"),
        pytest.param(lambda: "derived", "warning", id="derived"),
        pytest.param(lambda: f"derived,{new_key()}", "warning", id="derived seals"),
        pytest.param(lambda: ",".join([new_key()] * 2), "warning", id="twice the same"),
        pytest.param(lambda: "A" * 43, "problem", id="zeros"),
        pytest.param(lambda: "dGhpcyBpcyBhIHZlcnkgc2VjcmV0IHBhc3N3b3JkISE", "problem", id="a sentence"),
    ],
)
def test_the_key_ring_is_looked_at(examine: Examine, keys: Callable[[], str], status: str) -> None:
    ring = keys()
    found = examine(OTPLESS_ENCRYPTION_KEYS=ring)
    assert found["encryption-keys"] == status
    assert not any(key in found.out for key in ring.split(",") if key != "derived")


def test_a_key_of_ones_own_is_known_to_all_workers_before_one_seals_with_it(examine: Examine) -> None:
    steps = examine(OTPLESS_ENCRYPTION_KEYS="derived").text("encryption-keys")
    first, second, third = (steps.index(text) for text in ("=derived,<what", "then <key>,derived;", "then <key>, when"))
    assert first < second < third
    weak = examine(OTPLESS_ENCRYPTION_KEYS="A" * 43).text("encryption-keys")
    assert weak.index("as the last key") < weak.index("in front") < weak.index("drop the weak one")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("OTPLESS_ENCRYPTION_KEY", "OTPLESS_ENCRYPTION_KEYS"),
        ("OTPLESS_STORE", "OTPLESS_STORE_URL"),
        ("OTPLESS_VALIDATON_TTL", "OTPLESS_VALIDATION_TTL"),
        ("otpless_cookie_samsite", "OTPLESS_COOKIE_SAMESITE"),
        ("OTPLES_STORE_URL", "OTPLESS_STORE_URL"),
        ("OPTLESS_ISSUER", "OTPLESS_ISSUER"),
        ("OTP_LESS_CLIENT_ID", "OTPLESS_CLIENT_ID"),
    ],
)
def test_a_misspelled_variable_is_told_with_the_name_that_is_meant(
    examine: Examine, name: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = examine(**{name: SECRET})
    assert found["variables"] == "warning"
    assert f"{name.upper()}: write {meant}," in found.text("variables")
    assert SECRET not in found.out
    assert found.err == caplog.text == ""  # what the settings would say at a server's start stands in the report


def test_a_misspelled_variable_in_the_env_file_is_told_and_an_applications_own_is_not(
    examine: Examine, tmp_path: Path
) -> None:
    others = "COGNITO_CLIENT_SECRET=z\nOTP_CLIENT_ID=z\nSTORE_URL=z\n"
    (tmp_path / ".env").write_text(f"OTPLESS_APP_ID=SHOP\nOTPLESS_PAGE=x\nOTPLESSHOP=y\n{others}")
    assert examine()["variables"] == "ok"
    (tmp_path / ".env").write_text("OTPLESS_REFRESH_TIMOUT=3\n")
    assert "OTPLESS_REFRESH_TIMEOUT" in examine().text("variables")


@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("OTPLESS_CLIENT_SECRET", SECRET), ("otpless_client_id", "demo-client"), ("OTPLESS_COOKIE_SECURE", "false")],
)
def test_quotes_that_became_a_part_of_a_value_are_told(examine: Examine, name: str, value: str, quote: str) -> None:
    found = examine(**{name: f"{quote}{value}{quote}"})
    assert found["quotes"] == "problem"
    assert f"The quotes around {name.upper()} are a part of its value" in found.text("quotes")
    assert "docker run --env-file" in found.text("quotes")
    assert value not in found.text("quotes")


@pytest.mark.parametrize("value", ["https://otpless.com", '["a", "b"]', '"', "it's", '"half'])
def test_quotes_that_are_not_around_a_value_are_its_own(examine: Examine, value: str) -> None:
    assert examine(OTPLESS_ISSUER=value, OTHERS_ISSUER='"theirs"')["quotes"] == "ok"


def test_quotes_around_a_value_in_the_env_file_are_none_unless_there_are_two_pairs(
    examine: Examine, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text('OTPLESS_ISSUER="https://otpless.com"\n')
    assert examine()["quotes"] == "ok"
    (tmp_path / ".env").write_text("OTPLESS_ISSUER='\"https://otpless.com\"'\n")
    assert "OTPLESS_ISSUER" in examine().text("quotes")
    assert examine(OTPLESS_ISSUER="https://otpless.com")["quotes"] == "ok"  # the environment goes before the file


# OTPLESS


def test_credentials_that_otpless_refuses_are_told_from_a_token_that_it_does_not_know(
    examine: Examine, url: str
) -> None:
    found = examine(otpless=url, OTPLESS_CLIENT_SECRET=SECRET)
    assert found["credentials"] == "problem"
    assert "refuses the client id and secret" in found.text("credentials")
    assert found["jwks"] == found["clock"] == "ok"
    assert found.status == 1
    assert SECRET not in found.out + found.err


@pytest.mark.parametrize("answer", ["success_false", "error"])
def test_either_answer_to_a_made_up_token_means_that_credentials_were_taken(examine: Examine, answer: Any) -> None:
    with serve(Emulator(EmulatorSettings(dead_token_answer=answer))) as url:
        assert examine(otpless=url)["credentials"] == "ok"


def test_nothing_is_spent_at_otpless(examine: Examine, emulator: Emulator, url: str) -> None:
    examine(app=APP, otpless=url)
    assert {call.path for call in emulator.calls} == {"/v1/sessions/validate-session", "/.well-known/jwks"}
    assert emulator.sessions() == []


@pytest.mark.parametrize(
    "fault", [Fault("status", status=500), Fault("reset"), Fault("hang"), Fault("html")], ids=lambda fault: fault.kind
)
def test_an_otpless_that_fails_is_not_said_to_refuse_credentials(
    examine: Examine, emulator: Emulator, url: str, fault: Fault
) -> None:
    emulator.add_fault(fault)
    deadline = "2" if fault.kind == "hang" else "60"
    found = examine(otpless=url, OTPLESS_REQUEST_TIMEOUT=deadline, OTPLESS_REFRESH_TIMEOUT="60")
    assert found["credentials"] == found["jwks"] == "problem"
    assert "gives no usable answer" in found.text("credentials")


def test_an_otpless_that_is_not_there_is_not_reached(examine: Examine) -> None:
    found = examine(otpless=f"http://127.0.0.1:{steady_port()}")
    assert "was not reached" in found.text("credentials")
    assert found["clock"] == "skipped"


def test_for_an_address_of_this_machine_it_is_asked_whether_the_emulator_runs(examine: Examine) -> None:
    port = steady_port()
    found = examine(otpless=f"http://127.0.0.1:{port}")
    for check in ("credentials", "jwks"):
        fix = found.checks[check]["fix"]
        assert fix.startswith(f"Is the emulator running at 127.0.0.1:{port}? ")
        assert f"python -m fastapi_otpless_session emulator --port {port} " in fix


def test_for_other_addresses_it_is_the_network_that_is_to_be_looked_at(examine: Examine) -> None:
    address = f"https://127.0.0.1:{steady_port()}"
    found = examine(OTPLESS_BASE_URL=address, OTPLESS_JWKS_URL=f"{address}/jwks")
    for check in ("credentials", "jwks"):
        assert "DNS, firewall, certificates" in found.text(check)
        assert "emulator" not in found.text(check)


def test_no_check_lasts_longer_than_its_deadline(examine: Examine, emulator: Emulator, url: str) -> None:
    emulator.add_fault(Fault("hang"))
    found = examine("--timeout", "0.3", otpless=url, OTPLESS_REQUEST_TIMEOUT="60", OTPLESS_REFRESH_TIMEOUT="60")
    assert "No end after 0.3 s" in found.text("credentials")
    assert "No end after 0.3 s" in found.text("jwks")


def test_a_key_set_without_a_key_for_rs256_is_a_problem(examine: Examine, emulator: Emulator, url: str) -> None:
    keys = {"keys": [{"kty": "EC", "crv": "P-256", "kid": "pk1", "x": "AA", "y": "AA"}]}
    emulator.add_fault(Fault("status", "jwks", status=200, body=json.dumps(keys).encode()))
    found = examine(otpless=url)
    assert found["jwks"] == "problem"
    assert "no usable key" in found.text("jwks")
    assert found["credentials"] == "ok"


def test_keys_that_are_not_usable_are_counted(examine: Examine, emulator: Emulator, url: str) -> None:
    emulator.rotate_key()
    assert "has 2 usable keys." in examine(otpless=url).text("jwks")


def test_without_local_signature_checks_no_key_set_is_asked_for(examine: Examine, emulator: Emulator, url: str) -> None:
    found = examine(app=APP, otpless=url, OTPLESS_JWKS_URL="")
    assert found["jwks"] == "skipped"
    assert found["signatures"] == "warning"
    assert emulator.count("jwks") == 0


@pytest.mark.parametrize(
    ("ahead", "status", "says"),
    [
        (0, "ok", ""),
        (3, "ok", ""),
        (20, "warning", "behind"),
        (-20, "warning", "ahead of"),
        (600, "problem", "behind"),
        (-600, "problem", "ahead of"),
    ],
)
def test_clocks_that_differ_are_found_by_the_date_of_any_answer(
    examine: Examine, ahead: float, status: str, says: str
) -> None:
    with otpless_with_clock(ahead) as url:
        found = examine(otpless=url)
    assert found["clock"] == status
    assert says in found.text("clock")


class _Skewed(BaseHTTPRequestHandler):
    """Knows no session, and has a clock of its own."""

    ahead = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"message": "x", "errorCode": "7414", "description": "session not present"}'
        self.send_response(400)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def date_time_string(self, timestamp: float | None = None) -> str:
        moment = datetime.fromtimestamp((timestamp or time.time()) + self.ahead, UTC)
        return format_datetime(moment, usegmt=True)

    def log_message(self, *_: object) -> None:
        pass


class otpless_with_clock:  # noqa: N801 - read as a function
    """Serve an OTPLESS whose clock is ahead."""

    def __init__(self, ahead: float) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (_Skewed,), {"ahead": ahead}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_otpless_is_asked_through_the_chosen_http_client(
    examine: Examine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(otpless=url, OTPLESS_HTTP_CLIENT="aiohttp")
    assert found["extras"] == found["credentials"] == found["jwks"] == found["clock"] == "ok"
    monkeypatch.setitem(sys.modules, "fastapi_otpless_session.http_aiohttp", None)
    found = examine(otpless=url)
    assert found["extras"] == "problem"
    assert "fastapi-otpless-session[fast]" in found.text("extras")
    assert found["credentials"] == "skipped"


# The store


def test_a_file_that_is_not_there_yet_is_not_made(examine: Examine, tmp_path: Path) -> None:
    found = examine()
    assert found["store"] == "ok"
    assert "was written, found, and ran out" in found.text("store")
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_into_a_file_is_undone(examine: Examine, tmp_path: Path, world: Any) -> None:
    path = tmp_path / "sessions.db"
    store = Setup(Host({}), make_settings(store_url=f"sqlite:///{path}")).open_store()
    world.call(store.open)
    world.call(store.close)
    assert "was written, found, and ran out" in examine().text("store")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (0,)


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{SCHEMA} PRAGMA user_version = 7;")


@pytest.mark.parametrize(
    ("make", "finding", "fix"),
    [
        pytest.param(
            lambda path: path.write_bytes(b"no database, and not a short text either" * 100),
            "{path} is no SQLite database",
            "Name another file in OTPLESS_STORE_URL, or move this one away",
            id="not SQLite",
        ),
        pytest.param(
            lambda path: path.mkdir(), "{path} is no file", "Name a file in OTPLESS_STORE_URL.", id="a folder"
        ),
        pytest.param(
            lambda path: sqlite3.connect(path).execute("CREATE TABLE sessions (x)").connection.close(),
            "{path} is another program's database",
            "Name another file in OTPLESS_STORE_URL.",
            id="other",
        ),
        pytest.param(
            _newer,
            "{path} has schema 7, made by a newer version",
            'pip install --upgrade "fastapi-otpless-session", or name another file in OTPLESS_STORE_URL',
            id="newer",
        ),
    ],
)
def test_a_file_that_is_no_store_is_a_problem_and_what_mends_it_is_said(
    examine: Examine, tmp_path: Path, make: Callable[[Path], Any], finding: str, fix: str
) -> None:
    path = tmp_path / "sessions.db"
    make(path)
    found = examine()
    assert found["store"] == "problem"
    assert found.status == 1
    assert found.checks["store"]["finding"].startswith(finding.format(path=path))
    assert found.checks["store"]["fix"].startswith(fix)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_a_folder_that_nobody_may_write_is_a_problem_and_it_is_said_what_has_to_be(examine: Examine) -> None:
    found = examine(OTPLESS_STORE_URL="sqlite:////proc/sessions.db")
    assert found["store"] == "problem"
    assert "three more files are kept beside it, ending in -wal, -shm and .lock" in found.text("store")


def test_a_folder_that_is_not_there_is_a_problem(examine: Examine, tmp_path: Path) -> None:
    found = examine(OTPLESS_STORE_URL=f"sqlite:///{tmp_path}/missing/sessions.db")
    assert found["store"] == "problem"
    assert f"mkdir -p {tmp_path}/missing" in found.text("store")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_is_read_only_is_a_problem(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "sessions.db").touch(0o400)
    assert examine()["store"] == "problem"


@pytest.mark.parametrize("scheme", ["redis", "rediss", "postgresql"])
def test_a_server_that_is_not_there_is_a_problem_and_its_password_is_not_shown(examine: Examine, scheme: str) -> None:
    password = "canary-password"
    url = f"{scheme}://user:{password}@127.0.0.1:{steady_port()}/0"
    found = examine(OTPLESS_STORE_URL=url)
    assert found["store"] == "problem"
    assert found["store-clock"] == "skipped"
    assert password not in found.out + found.err


@pytest.mark.parametrize("credentials", ["shop", "shop:"])
def test_a_user_without_a_password_is_no_secret(examine: Examine, credentials: str) -> None:
    url = f"postgresql://{credentials}@127.0.0.1:{steady_port()}/shop"
    found = examine(app=APP, OTPLESS_STORE_URL=url, OTPLESS_REQUIRED_PATHS="/shop/orders")
    assert "/shop/orders in OTPLESS_REQUIRED_PATHS" in found.text("required-paths")


@pytest.mark.parametrize("written", ["or%2Fders", "or/ders"], ids=["as in the URL", "as it is meant"])
def test_a_password_is_blotted_out_wherever_it_stands(examine: Examine, written: str) -> None:
    url = f"redis://:or%2Fders@127.0.0.1:{steady_port()}"
    found = examine(app=APP, OTPLESS_STORE_URL=url, OTPLESS_COOKIE_PATH=f"/{written}")
    assert "below /*** only" in found.checks["cookie-path"]["finding"]


def test_a_redis_is_written_and_its_clock_compared(examine: Examine, make_redis: MakeRedis) -> None:
    found = examine(OTPLESS_STORE_URL=make_redis(appendonly="yes").url)
    assert found["store"] == found["store-clock"] == found["store-shared"] == "ok"


def test_a_redis_that_takes_no_writes_is_a_problem(examine: Examine, redis_server: RedisServer) -> None:
    redis_server.pause()
    found = examine("--timeout", "1", OTPLESS_STORE_URL=redis_server.url)
    redis_server.resume()
    assert found["store"] == "problem"


@pytest.mark.parametrize("made_in_code", [False, True], ids=["by its URL", "in code"])
def test_a_redis_that_may_throw_sessions_away_is_a_warning(
    examine: Examine, make_redis: MakeRedis, made_in_code: bool
) -> None:
    url = make_redis(maxmemory_policy="volatile-lru").url
    app = f"""
    from fastapi import FastAPI
    from fastapi_otpless_session import *
    from fastapi_otpless_session.stores.redis import RedisStore

    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, sessions=OtplessSessions(store=RedisStore("{url}")))
    """
    found = examine(app=app) if made_in_code else examine(OTPLESS_STORE_URL=url)
    assert found["store"] == "warning", found.text("store")
    assert "maxmemory-policy volatile-lru" in found.text("store")
    assert "CONFIG SET maxmemory-policy noeviction" in found.text("store")
    assert found["store-clock"] == "ok"


def test_a_redis_that_may_forget_what_it_confirmed_is_a_warning(examine: Examine, redis_server: RedisServer) -> None:
    found = examine(OTPLESS_STORE_URL=redis_server.url)
    assert found["store"] == "warning", found.text("store")
    assert "appendonly no" in found.text("store")
    assert "CONFIG SET appendonly yes" in found.text("store")


def test_a_redis_that_may_not_be_asked_for_its_settings_is_said(examine: Examine, make_redis: MakeRedis) -> None:
    server = make_redis(user="shop on >secret ~otpless:* +@all -info")
    found = examine(OTPLESS_STORE_URL=server.url.replace("://", "://shop:secret@"))
    assert found["store"] == "warning", found.text("store")
    assert "could not be looked at" in found.text("store")
    assert "+info" in found.text("store")


def test_a_cluster_that_may_throw_sessions_away_is_a_warning(examine: Examine, redis_cluster: RedisCluster) -> None:
    def configure(name: str, value: str) -> None:
        for node in redis_cluster.nodes:
            node.execute("CONFIG SET", name, value)

    try:
        configure("appendonly", "yes")
        assert examine(OTPLESS_STORE_URL=redis_cluster.url)["store"] == "ok"
        configure("maxmemory-policy", "allkeys-lru")
        assert examine(OTPLESS_STORE_URL=redis_cluster.url)["store"] == "warning"
    finally:
        configure("maxmemory-policy", "noeviction")
        configure("appendonly", "no")


def test_a_postgresql_is_written_and_its_clock_compared(
    examine: Examine, postgres_server: PostgresServer, postgres_url: str
) -> None:
    assert postgres_server.pid
    found = examine(OTPLESS_STORE_URL=postgres_url)
    assert found["store"] == found["store-clock"] == found["store-shared"] == "ok"


def test_a_store_of_the_applications_own_is_tried_too(examine: Examine, tmp_path: Path) -> None:
    app = f"""
    from fastapi import FastAPI
    from fastapi_otpless_session import *
    from fastapi_otpless_session.stores.sqlite import SqliteStore

    class OwnStore(SqliteStore):
        pass

    app = FastAPI()
    app.add_middleware(OtplessSessionMiddleware, sessions=OtplessSessions(store=OwnStore("{tmp_path}/own.db")))
    """
    found = examine(app=app)
    assert found["store"] == "ok"
    assert "The store (OwnStore)" in found.text("store")
    assert found["store-shared"] == "skipped"
    (tmp_path / "own.db").write_bytes(b"no database" * 100)
    assert examine(app=app)["store"] == "problem"


MADE_IN_CODE = """
from fastapi import FastAPI
from fastapi_otpless_session import *

app = FastAPI()
app.add_middleware(OtplessSessionMiddleware, sessions=OtplessSessions(store=open_store("{url}")))
"""


def test_memory_that_was_given_in_code_is_not_taken_for_the_settings_file(examine: Examine, tmp_path: Path) -> None:
    (tmp_path / "sessions.db").write_bytes(b"no database" * 100)  # what STORE_URL names, and nobody uses
    found = examine(app=MADE_IN_CODE.format(url="memory://"))
    assert found["store"] == "ok", found.text("store")
    assert "The store (memory)" in found.text("store")
    assert found["store-shared"] == "warning"
    assert examine(app=MADE_IN_CODE.format(url="memory://"), WEB_CONCURRENCY="4")["store-shared"] == "problem"


def test_a_file_that_was_given_in_code_is_the_one_that_is_looked_at_and_not_made(
    examine: Examine, tmp_path: Path
) -> None:
    app = MADE_IN_CODE.format(url=f"sqlite:///{tmp_path}/given.db")
    for variables in ({}, {"OTPLESS_STORE_URL": "memory://"}):
        found = examine(app=app, **variables)
        assert found["store"] == found["store-shared"] == "ok"
        assert "given.db" in found.text("store")
        assert "given.db" in found.text("store-shared")
    assert list(tmp_path.glob("*.db*")) == []
    (tmp_path / "given.db").write_bytes(b"no database" * 100)
    assert examine(app=app)["store"] == "problem"


def test_memory_is_fine_for_one_process_only(examine: Examine) -> None:
    assert examine(OTPLESS_STORE_URL="memory://")["store-shared"] == "warning"
    found = examine(OTPLESS_STORE_URL="memory://", WEB_CONCURRENCY="4")
    assert found["store-shared"] == "problem"
    assert "4 workers" in found.text("store-shared")


@pytest.mark.parametrize(
    ("host", "status", "says"),
    [
        (Host({}, "/dev/sda1 / ext4 rw 0 0"), "ok", "several machines would need"),
        (Host({"WEB_CONCURRENCY": "8"}, "/dev/sda1 / ext4 rw 0 0"), "ok", "workers of this machine"),
        (Host({}, "/dev/sda1 / ext4 rw 0 0\nnas:/x /srv/data nfs4 rw 0 0"), "problem", "nfs4"),
        (Host({}, "/dev/sda1 / ext4 rw 0 0\nnas:/x /srv nfs4 rw 0 0\n/dev/sdb /srv/data ext4 rw 0 0"), "ok", ""),
        (Host({}, "overlay / overlay rw 0 0", is_container=True), "warning", "next container"),
        (Host({}, "overlay / overlay rw 0 0\n/dev/sdb /srv/data ext4 rw 0 0", is_container=True), "ok", ""),
        (Host({}, "tmpfs /srv tmpfs rw 0 0"), "warning", "restart"),
        (Host({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ""), "warning", "Kubernetes"),
    ],
    ids=["a disk", "workers", "NFS", "a disk below NFS", "a container", "a volume", "in memory", "Kubernetes"],
)
async def test_a_sqlite_file_is_for_the_workers_of_one_machine(host: Host, status: str, says: str) -> None:
    settings = make_settings(store_url="sqlite:////srv/data/sessions.db")
    found = await store_shared(Setup(host, settings))
    assert found.status == status
    assert says in found.finding
