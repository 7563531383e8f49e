"""The SQLite store: the contract, in a file and in memory, and what is SQLite's own."""
# ruff: noqa: ASYNC240 - a test may wait for its files

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import multiprocessing
import os
import re
import resource
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from creators import PROCESSES, create_together
from processes import PATIENCE
from simulated import settle

from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.stores import SessionStore, open_store, sqlite_file, sqlite_link, sqlite_writer
from fastapi_otpless_session.stores.base import EndReason, Standing, State, WatchfulStore
from fastapi_otpless_session.stores.sqlite_writer import MOST_TOGETHER, Writer
from fastapi_otpless_session.testing.store_contract import (
    GRACE,
    LEASE,
    LIFE,
    ContractClock,
    Subject,
    WatchfulContract,
    new_row,
    refresh_digest,
    rotation,
    token_digest,
)

NOBODY = 65534
MakeStore = Callable[[ContractClock], SessionStore]


class TestFile(WatchfulContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda clock: open_store(f"sqlite:///{tmp_path / 'sessions.db'}", offset=lambda: clock.offset)


class TestMemory(WatchfulContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda clock: open_store("memory://", offset=lambda: clock.offset)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def subject(path: Path) -> AsyncIterator[Subject]:
    clock = ContractClock()
    store = open_store(f"sqlite:///{path}", offset=lambda: clock.offset)
    await store.open()
    yield Subject(store, clock)
    await store.close()


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder of a user who may not do everything: permissions say nothing to root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        if os.geteuid() != 0:
            yield folder
            return
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)


def by_hand(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement, values)


# The file


async def test_only_the_owner_may_read_the_file_and_what_lies_beside_it(subject: Subject, path: Path) -> None:
    await subject.sign_in()
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert {"sessions.db", "sessions.db-wal"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_the_file_uses_a_write_ahead_log(subject: Subject, path: Path) -> None:
    await subject.store.now()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_sessions_survive_a_restart(subject: Subject) -> None:
    row = await subject.sign_in()
    await subject.store.close()
    await subject.store.open()
    assert await subject.store.get("s-1") == row
    assert await subject.store.find(token_digest("s-1")) is not None


async def test_no_raw_token_and_nothing_but_sealed_values_reach_the_file(subject: Subject, path: Path) -> None:
    await subject.sign_in()
    await subject.store.close()
    with closing(sqlite3.connect(path)) as db:
        digests = {digest for (digest,) in db.execute("SELECT digest FROM tokens")}
    assert digests == {token_digest("s-1"), refresh_digest("s-1")}


@pytest.mark.parametrize("good", range(10))
async def test_a_file_that_cannot_be_opened_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch, good: int) -> None:
    made: list[sqlite3.Connection] = []
    statements = itertools.count()

    class Failing(sqlite3.Connection):
        """Takes as many statements as are good."""

        def execute(self, *args: Any) -> sqlite3.Cursor:
            if next(statements) == good:
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(*args)

    def connect(*args: Any, **values: Any) -> sqlite3.Connection:
        made.append(Failing(*args, **values))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", connect)
    store = open_store(f"sqlite:///{path}")
    try:
        with pytest.raises(StoreError, match="disk I/O error"):
            await store.open()
        assert [db for db in made if is_open(db)] == []
    finally:
        await store.close()


def is_open(db: sqlite3.Connection) -> bool:
    try:
        db.cursor()
    except sqlite3.ProgrammingError:
        return False
    return True


async def test_a_store_is_open_as_soon_as_it_is_used(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    assert await store.get("s-1") is None
    await store.close()


async def test_a_store_that_is_dropped_without_closing_leaves_nothing_open(path: Path) -> None:
    await _used(path)
    gc.collect()
    writers = [thread for thread in threading.enumerate() if thread.name == "otpless-session-store"]
    for writer in writers:
        await asyncio.to_thread(writer.join, PATIENCE)
    assert not any(writer.is_alive() for writer in writers)


async def _used(path: Path) -> None:
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    await subject.sign_in()
    assert await subject.store.list_user("MO-1")


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_file_that_is_deleted_or_replaced_while_it_is_open_is_a_store_error(
    subject: Subject, path: Path, is_replaced: bool
) -> None:
    await subject.sign_in()
    path.unlink()
    if is_replaced:
        by_hand(path, "PRAGMA user_version")
    with pytest.raises(StoreError, match=r"was deleted, moved or replaced .*: restart all workers"):
        await subject.end()
    with pytest.raises(StoreError, match="restart all workers"):
        await subject.claim()
    await subject.store.close()
    await subject.sign_in()


@pytest.mark.parametrize("relative", [True, False])
async def test_a_relative_path_is_named_in_full_in_the_log(
    path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(path.parent)
    caplog.set_level(logging.INFO)
    store = open_store("sqlite:///sessions.db" if relative else f"sqlite:///{path}")
    await store.open()
    await store.close()
    assert path.exists()
    assert (str(path) in caplog.text) is relative


# Files that cannot be used


async def test_a_missing_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/absent/sessions.db")
    with pytest.raises(StoreError, match=r"absent does not exist; create it, or change OTPLESS_STORE_URL"):
        await store.open()


async def test_a_file_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    await store.open()
    await store.close()
    by_hand(path, f"PRAGMA user_version = {sqlite_file.SCHEMA_VERSION + 1}")
    by_hand(path, "ALTER TABLE sessions ADD COLUMN new")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"{path} has schema 2, made by a newer version of this package; upgrade it"):
        await store.open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", [0, 100], ids=["no database", "a damaged one"])
async def test_a_file_that_cannot_be_read_as_a_database_is_named_and_left_alone(path: Path, at: int) -> None:
    by_hand(path, "CREATE TABLE orders (id)")
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"nothing that SQLite wrote. " * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=rf"{path} is .*: give the sessions a file of their own in OTPLESS_STORE_URL"):
        await open_store(f"sqlite:///{path}").open()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("version", "table"),
    [
        *((version, "orders (id)") for version in (1, 2, 40)),
        *((version, "sessions (id, data)") for version in (0, 1, 2)),
        *((version, "Tokens (id, session_id)") for version in (0, 1, 2)),
        (1, "sessions (session_id, user_id)"),
    ],
)
async def test_another_programs_database_is_refused_and_left_alone(path: Path, version: int, table: str) -> None:
    by_hand(path, f"CREATE TABLE {table}")
    by_hand(path, f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another program's database: give the sessions a file of their own"):
        await open_store(f"sqlite:///{path}").open()
    assert path.read_bytes() == before


async def test_a_file_with_other_tables_is_shared_where_nothing_is_in_the_way(path: Path) -> None:
    by_hand(path, "CREATE TABLE orders (id)")
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    await subject.sign_in()
    await subject.store.close()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM orders").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (1,)


async def test_a_file_that_was_dumped_and_read_in_again_has_no_version_and_is_ours(path: Path) -> None:
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    await subject.sign_in()
    await subject.store.close()
    by_hand(path, "PRAGMA user_version = 0")
    assert await subject.store.get("s-1") is not None
    await subject.store.close()


async def test_a_file_that_is_no_database_is_a_store_error(path: Path) -> None:
    path.write_bytes(b"this is no database at all, but longer than a header" * 100)
    with pytest.raises(StoreError):
        await open_store(f"sqlite:///{path}").open()


async def test_a_file_whose_log_cannot_be_opened_is_named_with_what_it_takes(path: Path) -> None:
    Path(f"{path}-wal").mkdir()
    with pytest.raises(StoreError, match=re.escape(f"{path} cannot be opened or written")) as refused:
        await open_store(f"sqlite:///{path}").open()
    assert str(path.parent) in (refused.value.remedy or "")


async def test_a_folder_in_the_files_place_is_a_store_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StoreError):
        await open_store(f"sqlite:///{path}").open()


async def test_a_file_that_cannot_be_written_is_a_store_error(folder_of_nobody: Path) -> None:
    path = folder_of_nobody / "sessions.db"
    store = open_store(f"sqlite:///{path}")
    await store.open()
    await store.close()
    path.chmod(0o400)
    with pytest.raises(StoreError):
        await store.open()


async def test_a_folder_that_cannot_be_written_is_a_store_error(folder_of_nobody: Path) -> None:
    locked = folder_of_nobody / "locked"
    locked.mkdir(0o500)
    with pytest.raises(StoreError):
        await open_store(f"sqlite:///{locked}/sessions.db").open()


async def test_a_table_that_vanished_is_a_store_error_for_reads_and_writes(subject: Subject, path: Path) -> None:
    row = await subject.sign_in()
    by_hand(path, "DROP TABLE sessions")
    with pytest.raises(StoreError):
        await subject.store.find(token_digest("s-1"))
    with pytest.raises(StoreError):
        await subject.store.end(row, EndReason.REVOKED, revoke_in=None)


# Damage


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state", "dormant"),
        ("end_reason", "boredom"),
        ("generation", "first"),
        ("confirmations", "none at all"),
        ("confirmations", "[]"),
        ("confirmations", "[[1]]"),
        ("confirmations", "7"),
        ("confirmations", "[[1e999, 0]]"),
        ("confirmations", "[" * 100_000),
        ("session_token", "text"),
        ("refresh_token", 7),
        ("validated_at", "yesterday"),
        ("fence", b"\x00"),
        ("summary", b"\x00"),
        ("user_id", b"MO-1"),
        ("revocation_due", "soon"),
    ],
)
async def test_a_damaged_row_is_as_unknown_and_the_others_work(
    subject: Subject, path: Path, column: str, value: object
) -> None:
    await subject.sign_in("damaged")
    whole = await subject.sign_in("whole")
    by_hand(path, f"UPDATE sessions SET {column} = ? WHERE session_id = 'damaged'", value)  # noqa: S608 - see above
    assert await subject.store.find(token_digest("damaged")) is None
    assert await subject.store.get("damaged") is None
    assert await subject.store.take_lease("damaged", 1, "a", 60) is None
    assert await subject.store.get("whole") == whole
    assert list(await subject.store.list_user("MO-1")) == [whole]


async def test_text_that_is_not_utf8_damages_its_own_row_only(subject: Subject, path: Path) -> None:
    await subject.sign_in("damaged")
    whole = await subject.sign_in("whole")
    by_hand(path, "UPDATE sessions SET summary = CAST(x'22ff22' AS TEXT) WHERE session_id = 'damaged'")
    assert await subject.store.find(token_digest("damaged")) is None
    assert list(await subject.store.list_user("MO-1")) == [whole]


@pytest.mark.parametrize("generation", ["first", -1, 2])
async def test_a_digest_that_its_row_does_not_back_is_unknown(subject: Subject, path: Path, generation: object) -> None:
    await subject.sign_in()
    by_hand(path, "UPDATE tokens SET generation = ?", generation)
    assert await subject.store.find(token_digest("s-1")) is None


async def test_a_damaged_row_does_not_stop_the_outbox(subject: Subject, path: Path) -> None:
    for name in ("damaged", "whole"):
        await subject.sign_in(name)
        await subject.end(name, revoke_in=0)
    by_hand(path, "UPDATE sessions SET summary = CAST(x'ff' AS TEXT) WHERE session_id = 'damaged'")
    assert await subject.claim() == ["whole"]


async def test_a_damaged_row_can_be_ended_but_never_begun_again(subject: Subject, path: Path) -> None:
    row = await subject.sign_in()
    by_hand(path, "UPDATE sessions SET state = 'dormant'")
    with pytest.raises(StoreError):
        await subject.store.create(row, token_digest("s-1"), refresh_digest("s-1"))
    assert (await subject.store.end(row, EndReason.REVOKED, revoke_in=None)).state is State.ENDED
    assert (await subject.row()).state is State.ENDED


# Several processes, stores, loops


@pytest.mark.varied
def test_processes_that_create_the_file_at_once_all_get_it(path: Path) -> None:
    assert create_together(f"sqlite:///{path}") == (b"", [0] * PROCESSES)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM sessions").fetchone() == (PROCESSES,)


async def test_two_stores_on_one_file_see_each_other_at_once(subject: Subject, path: Path) -> None:
    other = Subject(open_store(f"sqlite:///{path}", offset=lambda: subject.clock.offset), subject.clock)
    await subject.sign_in()
    row = await other.rotate()
    assert await subject.store.get("s-1") == row
    lease = await subject.lease(2)
    assert await other.store.take_lease("s-1", 2, "b", 60) is None
    ended = await other.end()
    assert await subject.store.get("s-1") == ended
    assert await subject.store.renew_lease(lease, 60) is None
    await other.store.close()


HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(f"{sys.argv[1]}.lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def lock_held(path: Path) -> Iterator[None]:
    """Have another process in the middle of opening the file."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: S603
        assert holder.stdout is not None
        assert holder.stdin is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.stdin.close()  # it ends


async def test_a_process_that_hangs_while_it_opens_the_file_is_a_store_error_for_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOCK_SECONDS", 0.1)
    store = open_store(f"sqlite:///{path}")
    with lock_held(path):
        opening = asyncio.create_task(store.open())
        await asyncio.wait({opening}, timeout=PATIENCE)
        assert opening.done()
    with pytest.raises(StoreError, match=r"another process has held .*sessions\.db\.lock for 0\.1 s"):
        await opening
    await store.open()
    await store.close()


async def test_opening_waits_for_another_process_that_opens_the_file(path: Path) -> None:
    store = open_store(f"sqlite:///{path}")
    with lock_held(path):
        opening = asyncio.create_task(store.open())
        await settle()
        assert not opening.done()
    await opening
    await store.close()


COUNT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT count(*) FROM sessions").fetchone()[0])
db.close()
"""


def counted_elsewhere(path: Path) -> int:
    """Return how many sessions another process sees; it opens the file and closes it again."""
    ran = subprocess.run([sys.executable, "-c", COUNT, path], capture_output=True, check=True, timeout=PATIENCE)  # noqa: S603
    return int(ran.stdout)


async def test_what_is_written_is_there_though_a_second_store_was_opened_and_another_process_came_and_went(
    subject: Subject, path: Path
) -> None:
    await subject.sign_in("s-1")
    other = open_store(f"sqlite:///{path}")
    await other.open()
    assert counted_elsewhere(path) == 1
    await subject.sign_in("s-2")
    assert counted_elsewhere(path) == 2
    await other.close()
    assert counted_elsewhere(path) == 2


FORK = """
import asyncio, os, sys
from fastapi_otpless_session.errors import StoreError
from fastapi_otpless_session.stores import open_store
from fastapi_otpless_session.testing.store_contract import ContractClock, Subject, token_digest

async def signed_in(name):
    store = open_store(sys.argv[1])
    row = await Subject(store, ContractClock()).sign_in(name)
    return store, row

async def use(inherited, row):
    print("unchanged", inherited.unchanged_at(token_digest("s-1"), row))
    for call in (
        inherited.get("s-1"),
        inherited.touch("s-1", 1, validated=True),
        inherited.list_user("MO-1"),
        open_store(sys.argv[1]).open(),
    ):
        try:
            print(await call)
        except StoreError as error:
            print(error)
    await inherited.close()

def in_a_child(work, *values):
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    asyncio.run(work(*values))
    sys.exit()
"""

OPEN_AT_THE_FORK = f"""{FORK}
store, row = asyncio.run(signed_in("s-1"))
second, _ = asyncio.run(signed_in("s-2"))
if in_a_child(use, store, row):
    print("the child failed")
print(len(asyncio.run(store.list_user("MO-1"))), "sessions", flush=True)
asyncio.run(Subject(store, ContractClock()).sign_in("s-3"))
os._exit(0)  # without closing: what the child did to the log is what the next process finds
"""

CLOSED_BEFORE_THE_FORK = f"""{FORK}
async def sign_in_too():
    store, _ = await signed_in("s-2")
    await store.close()

store, row = asyncio.run(signed_in("s-1"))
asyncio.run(store.close())
if in_a_child(sign_in_too):
    print("the child failed")
"""


def said_by(script: str, path: Path) -> list[str]:
    forks_though_there_are_threads = (
        "ignore:This process:DeprecationWarning"  # Python 3.12 warns; that is what is tried
    )
    command = [sys.executable, "-W", forks_though_there_are_threads, "-c", script, f"sqlite:///{path}"]
    ran = subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE, text=True)  # noqa: S603
    assert ran.stderr == ""
    return ran.stdout.splitlines()


def test_a_child_uses_no_file_that_was_open_when_it_was_forked_and_leaves_it_to_its_parent(path: Path) -> None:
    """SQLite's locks do not come along: the child would write into a log that others have deleted."""
    unchanged, *refused, there = said_by(OPEN_AT_THE_FORK, path)
    assert unchanged == "unchanged None"
    assert ["close the store before the fork, or open it after" in each for each in refused] == [True] * 4
    assert there == "2 sessions"
    assert counted_elsewhere(path) == 3


def test_a_child_opens_a_file_that_was_closed_before_the_fork(path: Path) -> None:
    assert said_by(CLOSED_BEFORE_THE_FORK, path) == []
    assert counted_elsewhere(path) == 2


@pytest.mark.parametrize("url", ["memory://", "sqlite:///shared.db"])
def test_one_store_serves_event_loops_in_several_threads(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    clock = ContractClock()
    store = open_store(url, offset=lambda: clock.offset)
    taken = []

    async def work(name: str) -> None:
        subject = Subject(store, clock)
        await subject.sign_in(name)
        for _ in range(5):
            await subject.rotate(name)
        taken.append(await store.take_lease("shared", 1, name, 60))

    asyncio.run(Subject(store, clock).sign_in("shared"))
    threads = [threading.Thread(target=asyncio.run, args=(work(f"s-{number}"),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = asyncio.run(_list(store))
    assert sorted(row for row in rows if row[0] != "shared") == [(f"s-{number}", 6) for number in range(4)]
    assert sum(lease is not None for lease in taken) == 1
    asyncio.run(store.close())


async def _list(store: SessionStore) -> list[tuple[str, int]]:
    return [(row.session_id, row.generation) for row in await store.list_user("MO-1")]


async def test_what_another_worker_writes_is_seen_at_once(subject: Subject, path: Path) -> None:
    row = await subject.sign_in()
    seen, store = token_digest("s-1"), subject.store
    assert isinstance(store, WatchfulStore)
    assert store.unchanged_at(seen, row) is not None
    assert store.unknown_at(token_digest("s-2"), "s-2") is not None
    other = open_store(f"sqlite:///{path}")
    await other.touch("s-1", 1, validated=True)
    await Subject(other, subject.clock).sign_in("s-2")
    await other.close()
    assert store.unchanged_at(seen, row) is None
    assert store.unknown_at(token_digest("s-2"), "s-2") is None


# What is written together


def commits(path: Path) -> int:
    """Count the commits in the write-ahead log: the frames that say how large the file is after them."""
    log = path.with_name(f"{path.name}-wal").read_bytes()
    page = int.from_bytes(log[8:12])
    return sum(log[at + 4 : at + 8] != bytes(4) for at in range(32, len(log), 24 + page))


@contextmanager
def held_up(path: Path) -> Iterator[sqlite3.Connection]:
    """Keep a store from writing, as another process may: what it is to write meanwhile has to wait."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def begun(*writes: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(write) for write in writes]
    await settle()
    return tasks


async def test_what_waits_for_the_file_is_written_with_one_commit(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    with held_up(path) as other:
        before = commits(path)
        tasks = await begun(*(subject.sign_in(f"s-{number}") for number in range(20)))
        other.execute("ROLLBACK")
        rows = await asyncio.gather(*tasks)
    assert commits(path) - before <= 2  # the first may have begun alone
    assert [await subject.store.get(row.session_id) for row in rows] == rows


class Disk:
    """What waited for the disk, of all that was committed; told by the statements that SQLite was given."""

    def __init__(self) -> None:
        self.commits: list[bool] = []

    def watch(self) -> Callable[[str], None]:
        """Return what notes the statements of one connection."""
        waits = True

        def note(statement: str) -> None:
            nonlocal waits
            if statement.startswith("PRAGMA synchronous"):
                waits = statement.endswith("FULL")
            elif statement == "COMMIT":
                self.commits.append(waits)

        return note

    async def waited_for_by(self, write: Coroutine[Any, Any, Any]) -> bool:
        self.commits.clear()
        await write
        (waited,) = self.commits
        return waited


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    trace(monkeypatch, disk.watch)
    return disk


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What SQLite is given, by all connections that are made from now on."""
    statements: list[str] = []
    trace(monkeypatch, lambda: statements.append)
    return statements


def trace(monkeypatch: pytest.MonkeyPatch, watch: Callable[[], Callable[[str], None]]) -> None:
    connect = sqlite3.connect

    def traced(*args: Any, **values: Any) -> sqlite3.Connection:
        db: sqlite3.Connection = connect(*args, **values)
        db.set_trace_callback(watch())
        return db

    monkeypatch.setattr(sqlite3, "connect", traced)


async def test_sign_ins_refreshes_and_sign_outs_wait_for_the_disk_and_notes_do_not(
    disk: Disk, subject: Subject
) -> None:
    store = subject.store
    row = await subject.sign_in()
    assert await disk.waited_for_by(subject.sign_in("s-2"))
    assert not await disk.waited_for_by(store.touch("s-1", 1, validated=True))
    lease = await subject.lease()
    assert not await disk.waited_for_by(store.renew_lease(lease, LEASE))
    assert await disk.waited_for_by(store.commit(lease, rotation("s-1", 2, row.expires_at)))
    assert not await disk.waited_for_by(store.confirm(await subject.row(), GRACE))
    assert await disk.waited_for_by(subject.end())
    assert await disk.waited_for_by(store.settle_revocation(await subject.row()))


@pytest.fixture
def proof_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the disk took what was written counts for however long a machine may pause."""
    monkeypatch.setattr(sqlite_writer, "PROOF_SECONDS", math.inf)


@pytest.mark.usefixtures("proof_for_ever")
async def test_to_take_a_lease_proves_that_the_disk_takes_what_otpless_will_say_unless_that_was_just_seen(
    disk: Disk, subject: Subject, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut takes those who hold a lease along, for they are workers of the same machine."""
    for name in ("s-1", "s-2", "s-3"):
        await subject.sign_in(name)
    other = open_store(f"sqlite:///{path}")
    assert await disk.waited_for_by(other.take_lease("s-1", 1, "a", LEASE))
    assert not await disk.waited_for_by(other.take_lease("s-2", 1, "a", LEASE))
    monkeypatch.setattr(sqlite_writer, "PROOF_SECONDS", 0)
    assert await disk.waited_for_by(other.take_lease("s-3", 1, "a", LEASE))
    await other.close()


@pytest.mark.usefixtures("proof_for_ever")
async def test_of_what_need_not_wait_for_the_disk_and_of_what_changes_nothing_it_takes_no_proof(
    disk: Disk, subject: Subject, path: Path
) -> None:
    await subject.sign_in()
    other = open_store(f"sqlite:///{path}")
    await other.touch("s-1", 1, validated=True)
    assert await other.purge(100) == 0
    assert await other.take_lease("nobody", 1, "a", LEASE) is None
    assert await disk.waited_for_by(other.take_lease("s-1", 1, "a", LEASE))
    await other.close()


@pytest.mark.usefixtures("proof_for_ever")
async def test_what_was_written_together_proves_it_too(disk: Disk, subject: Subject, path: Path) -> None:
    await subject.sign_in()
    other = open_store(f"sqlite:///{path}")
    await other.open()
    with held_up(path) as last:
        tasks = await begun(*(Subject(other, subject.clock).sign_in(f"o-{number}") for number in range(5)))
        last.execute("ROLLBACK")
        await asyncio.gather(*tasks)
    assert not await disk.waited_for_by(other.take_lease("s-1", 1, "a", LEASE))
    await other.close()


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Have the write-ahead log not grow any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name(f"{path.name}-wal").stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("proof_for_ever")
async def test_a_disk_that_takes_no_more_is_to_prove_that_it_does_again(
    disk: Disk, subject: Subject, path: Path
) -> None:
    await subject.sign_in()
    with full_disk(path), pytest.raises(StoreError, match="SQLite: disk"):
        await subject.sign_in("s-2")
    assert await disk.waited_for_by(subject.lease())


@pytest.mark.usefixtures("proof_for_ever")
async def test_no_lease_is_had_where_the_disk_takes_no_more(subject: Subject, path: Path) -> None:
    row = await subject.sign_in()
    with full_disk(path), pytest.raises(StoreError, match="SQLite: disk"):
        await subject.lease()
    assert await subject.row() == row
    assert (await subject.rotate()).generation == row.generation + 1


async def test_what_shares_a_commit_with_a_sign_out_waits_for_the_disk_with_it(
    disk: Disk, subject: Subject, path: Path
) -> None:
    rows = [await subject.sign_in(f"s-{number}") for number in range(3)]
    with held_up(path) as other:
        first = await begun(subject.store.touch("s-0", 1, validated=True))  # alone, if it was taken at once
        both = await begun(
            subject.store.touch("s-1", 1, validated=True),
            subject.store.end(rows[2], EndReason.REVOKED, revoke_in=None),
        )
        disk.commits.clear()
        other.execute("ROLLBACK")
        await asyncio.gather(*first, *both)
    assert disk.commits[-1]


async def test_a_transaction_that_fails_takes_nobody_else_along(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    no_digest: Any = 2**70  # its row is written before that is found
    with held_up(path) as other:
        tasks = await begun(
            subject.sign_in("s-0"),
            subject.sign_in("s-1"),
            subject.store.create(new_row(time.time(), "s-2"), token_digest("s-2"), no_digest),
            subject.sign_in("s-3"),
        )
        other.execute("ROLLBACK")
        *_, refused, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(refused, StoreError)
    there = [await subject.store.get(name) for name in ("s-0", "s-1", "s-2", "s-3")]
    assert [row is not None for row in there] == [True, True, False, True]
    assert there[-1] == last


async def test_a_transaction_that_cannot_even_be_rolled_back_is_ended_by_the_next(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing: set[str] = set()

    class Failing(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            if statement in failing:
                failing.discard(statement)
                raise MemoryError
            return super().execute(statement, *values)

    monkeypatch.setattr(sqlite3, "connect", Failing)
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    await subject.sign_in()
    failing |= {"COMMIT", "ROLLBACK"}
    with pytest.raises(MemoryError):
        await subject.sign_in("s-2")
    row = await subject.sign_in("s-3")
    assert await subject.store.get("s-2") is None
    assert await subject.store.get("s-3") == row
    await subject.store.close()


async def test_a_fault_that_ends_the_common_transaction_is_only_the_fault_of_one(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    by_hand(
        path,
        "CREATE TRIGGER full BEFORE INSERT ON sessions WHEN new.session_id = 's-2' "
        "BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END",
    )
    with held_up(path) as other:
        tasks = await begun(*(subject.sign_in(f"s-{number}") for number in range(5)))
        other.execute("ROLLBACK")
        rows = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(row, StoreError) for row in rows] == [False, False, True, False, False]
    for number in (0, 1, 3, 4):
        assert await subject.store.get(f"s-{number}") == rows[number]
        assert await subject.store.find(token_digest(f"s-{number}")) is not None
    assert await subject.store.find(token_digest("s-2")) is None


async def test_who_failed_when_all_did_is_told_what_came_of_the_second_time(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    writer = Writer(sqlite3.connect(path, isolation_level=None, check_same_thread=False))
    tries = itertools.count()

    def fail_at_first(_: sqlite3.Connection) -> str:
        if next(tries) == 0:
            raise sqlite3.OperationalError("not now")
        return "done"

    def end_all(db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK")
        raise sqlite3.OperationalError("disk is full")

    with held_up(path) as other:
        works = (lambda _: "done", fail_at_first, end_all)
        tasks = await begun(*(writer.transact(work, durable=True) for work in works))
        other.execute("ROLLBACK")
        *outcomes, error = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes == ["done", "done"]
    assert isinstance(error, sqlite3.OperationalError)
    await asyncio.to_thread(writer.close)


async def test_what_is_cancelled_while_it_waits_is_not_written(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    with held_up(path) as other:
        _, cancelled, last = tasks = await begun(*(subject.sign_in(f"s-{number}") for number in range(3)))
        cancelled.cancel()
        await asyncio.wait({cancelled})
        other.execute("ROLLBACK")
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await subject.store.get("s-1") is None
    assert await subject.store.get("s-2") == last.result()


async def test_what_was_begun_is_written_before_a_store_is_closed(subject: Subject, path: Path) -> None:
    await subject.sign_in("first")
    with held_up(path) as other:
        tasks = await begun(*(subject.sign_in(f"s-{number}") for number in range(3)))
        closing_store = asyncio.create_task(subject.store.close())
        await settle()
        other.execute("ROLLBACK")
        rows = await asyncio.gather(*tasks)
        await closing_store
    await subject.store.open()
    assert [await subject.store.get(row.session_id) for row in rows] == rows


async def test_what_waits_longer_than_a_file_may_be_busy_fails_at_once_and_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_link, "BUSY_SECONDS", 0.05)
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    await subject.sign_in("first")
    with held_up(path):
        tasks = await begun(*(subject.sign_in(f"s-{number}") for number in range(5)))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    assert [row.session_id for row in await subject.store.list_user("MO-1")] == ["first"]
    await subject.store.close()


async def test_however_many_wait_for_a_file_that_stays_busy_all_wait_for_it_once(
    statements: list[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_link, "BUSY_SECONDS", 0.5)
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    row = await subject.sign_in()
    with held_up(path):
        statements.clear()
        writes = await begun(*(subject.store.touch("s-1", 1, validated=True) for _ in range(2 * MOST_TOGETHER)))
        reads = await begun(*(subject.store.list_user("MO-1") for _ in range(2)))
        writes += await begun(*(subject.store.touch("s-1", 1, validated=True) for _ in range(2 * MOST_TOGETHER)))
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreError}
        assert [list(await read) for read in reads] == [[row], [row]]
        assert statements.count("BEGIN IMMEDIATE") <= 2  # on a machine that pauses some may come late
    assert (await subject.end()).state is State.ENDED
    await subject.store.close()


async def test_what_is_done_again_by_itself_waits_once_for_a_file_that_is_busy_by_then(
    statements: list[str], subject: Subject, path: Path
) -> None:
    await subject.sign_in("first")
    writer = Writer(sqlite3.connect(path, timeout=0.5, isolation_level=None, check_same_thread=False))
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as last, held_up(path) as other:

        def lose_the_lock(db: sqlite3.Connection) -> None:
            db.execute("ROLLBACK")
            last.execute("BEGIN IMMEDIATE")
            raise sqlite3.OperationalError("disk is full")

        works = [lambda _: None, lose_the_lock, *[lambda _: None] * 5]
        tasks = await begun(*(writer.transact(work, durable=True) for work in works))
        other.execute("ROLLBACK")
        statements.clear()
        _, *outcomes = await asyncio.gather(*tasks, return_exceptions=True)  # the first may have begun alone
    assert [str(outcome) for outcome in outcomes] == ["database is locked"] * 6
    assert statements.count("BEGIN IMMEDIATE") <= 3  # the common one, perhaps, that of `last`, and one more
    await asyncio.to_thread(writer.close)


# A busy file


async def test_reads_work_and_writes_wait_while_another_connection_writes(subject: Subject, path: Path) -> None:
    row = await subject.sign_in()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(subject.end())
        assert await subject.store.get("s-1") == row
        assert await subject.store.find(token_digest("s-1")) is not None
        assert not write.done()
        other.execute("COMMIT")
    assert (await write).state is State.ENDED


async def test_a_write_that_waited_too_long_is_a_store_error_and_did_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_link, "BUSY_SECONDS", 0.05)
    subject = Subject(open_store(f"sqlite:///{path}"), ContractClock())
    row = await subject.sign_in()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await subject.end()
    assert await subject.store.get("s-1") == row
    await subject.end()
    await subject.store.close()


async def test_a_caller_that_goes_away_leaves_the_store_usable(subject: Subject, path: Path) -> None:
    await subject.sign_in()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        write = asyncio.create_task(subject.end())
        await asyncio.sleep(0)
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        other.execute("COMMIT")
    await subject.sign_in("s-2")
    assert (await subject.row("s-2")).state is State.ACTIVE


# Addresses


async def test_what_memory_held_is_gone_after_closing() -> None:
    store = open_store("memory://")
    await store.create(new_row(await store.now(), expires_at=2e11), token_digest("s-1"), refresh_digest("s-1"))
    assert await store.get("s-1") is not None
    await store.close()
    assert await store.get("s-1") is None
    await store.close()


@pytest.mark.parametrize(
    ("name", "written"),
    [("plain.db", "plain.db"), ("with space.db", "with%20space.db"), ("ä.db", "ä.db"), ("what?#.db", "what%3F%23.db")],
)
async def test_a_file_is_named_as_in_a_url(path: Path, name: str, written: str) -> None:
    store = open_store(f"sqlite:///{path.parent}/{written}")
    await store.open()
    await store.close()
    assert (path.parent / name).is_file()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://file.db", "sqlite:///:memory:"])
def test_an_address_without_a_file_is_refused_with_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OTPLESS_STORE_URL: .*sqlite:///file\.db"):
        open_store(url)


@pytest.mark.parametrize("name", ["sessions.db?timeout=30", "sessions.db#sessions", "/var/lib/shop/s.db?mode=ro", "?"])
def test_an_address_with_options_is_refused_rather_than_a_file_made_of_that_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OTPLESS_STORE_URL: sqlite:/// takes no options; .*%3F.*%23"):
        open_store(f"sqlite:///{name}")


@pytest.mark.parametrize("name", ["a%00b.db", "a\0b.db", "%00", "\ud800.db"])
def test_an_address_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OTPLESS_STORE_URL: .*sqlite:///file\.db"):
        open_store(f"sqlite:///{name}")


@pytest.mark.parametrize("url", ["mysql://user:canary@host/db", "canary", "redis:canary@host", ""])
def test_an_address_of_an_unknown_kind_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="OTPLESS_STORE_URL") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


async def test_superseded_digests_go_while_their_session_lives(subject: Subject, path: Path) -> None:
    await subject.sign_in()
    for _ in range(5):
        subject.clock.advance(LIFE - 10)
        await subject.store.confirm(await subject.rotate(), 0)
    subject.clock.advance(20)
    while await subject.store.purge(3):
        pass
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM tokens").fetchone() == (3,)  # the pair, and the token before
    assert await subject.standing(6) is Standing.CURRENT


@pytest.mark.parametrize(
    "damage",
    [
        """UPDATE sessions SET confirmations = '[["first", 1]]'""",
        """UPDATE sessions SET confirmations = '[[[1], 1]]'""",
        "UPDATE sessions SET confirmations = x'5b5bff'",
        "UPDATE sessions SET expires_at = 'soon'",
        "UPDATE sessions SET expires_at = x'00'",
        "UPDATE tokens SET generation = 'first'",
        "UPDATE tokens SET generation = x'00'",
    ],
)
async def test_a_damaged_row_keeps_no_other_from_being_purged(subject: Subject, path: Path, damage: str) -> None:
    await subject.sign_in()
    await subject.sign_in("expired", expires_at=await subject.store.now() + 10)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"{damage} WHERE session_id = 's-1'")
        db.execute("UPDATE tokens SET expires_at = 1 WHERE session_id = 's-1'")
    subject.clock.advance(20)
    assert await subject.store.purge(10) == 5  # four digests, and one row
    assert await subject.store.get("expired") is None
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT session_id FROM sessions").fetchall() == [("s-1",)]
    assert await subject.store.purge(10) == 0


def _open_and_close(path: str, times: int) -> None:
    async def go() -> None:
        for _ in range(times):
            store = open_store(f"sqlite:///{path}")
            await store.open()
            await store.close()

    asyncio.run(go())


def test_workers_that_start_and_stop_at_once_are_not_in_each_others_way(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(6, spawn) as workers:
        opened = [workers.submit(_open_and_close, str(tmp_path / "s.db"), 60) for _ in range(6)]
    assert [each.exception() for each in opened] == [None] * 6  # "database is locked", for the moment of a close


@pytest.mark.parametrize("is_file", [True, False])
async def test_a_store_that_one_thread_closes_is_none_for_the_others_which_read_it(
    tmp_path: Path, is_file: bool
) -> None:
    """It was freed under their hands, which ended the process."""
    store = open_store(f"sqlite:///{tmp_path / 's.db'}" if is_file else "memory://")
    is_over, read = threading.Event(), threading.Event()

    async def go_on_reading() -> None:
        while not is_over.is_set():
            with suppress(StoreError):
                assert await store.find(b"x" * 32) is None
                read.set()

    threads = [threading.Thread(target=asyncio.run, args=(go_on_reading(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            await store.open()
            assert await asyncio.to_thread(read.wait, PATIENCE)
            read.clear()
            await store.close()
    finally:
        is_over.set()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await store.close()
