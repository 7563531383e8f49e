"""The PostgreSQL store: the contract, and what is PostgreSQL's own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
from backends import NO_POSTGRES, PostgresServer, find_postgres, required
from certificates import CERTIFICATE, KEY, write_certificate
from creators import PROCESSES, create_together
from pages import DOCS
from processes import HOST, PATIENCE, Account, Guard, are_kept_alive, is_running, steady_port, wait_until
from proxy import ANSWER, REQUEST, Proxy
from simulated import LoopTime, settle
from sqlalchemy import text

from fastapi_otpless_session.__main__ import main
from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.stores import SessionStore, open_store, server_clock, sql, sql_link
from fastapi_otpless_session.stores.base import EndReason, Standing, State
from fastapi_otpless_session.stores.sql_link import POOL_SIZE
from fastapi_otpless_session.stores.sql_schema import SCHEMA_VERSION
from fastapi_otpless_session.testing.store_contract import (
    LIFE,
    ContractClock,
    StoreContract,
    Subject,
    digest,
    new_row,
    refresh_digest,
    rotation,
    token_digest,
)

LITTLE_PATIENCE = 0.4
"""For where nothing can come of waiting: who gets an answer may need longer, on a busy machine."""
MakeStore = Callable[[ContractClock], SessionStore]


class PostgreSQLContract(StoreContract):
    @pytest.fixture
    def longest_list(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr(sql, "LONGEST_LIST", 5)
        return 5


class TestPostgreSQL(PostgreSQLContract):
    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        return lambda clock: open_store(postgres_url, offset=lambda: clock.offset)


class TestStricterIsolation(PostgreSQLContract):
    """As the default of a role or a database: the server then refuses what under READ COMMITTED would have waited."""

    @pytest.fixture
    def make_store(self, postgres_url: str) -> MakeStore:
        url = f"{postgres_url}?default_transaction_isolation=serializable"
        return lambda clock: open_store(url, offset=lambda: clock.offset)


@asynccontextmanager
async def opened(url: str, clock: ContractClock | None = None) -> AsyncIterator[Subject]:
    clock = clock or ContractClock()
    store = open_store(url, offset=lambda: clock.offset)
    try:
        await store.open()
        yield Subject(store, clock)
    finally:
        await store.close()


@pytest.fixture
async def subject(postgres_url: str) -> AsyncIterator[Subject]:
    async with opened(postgres_url) as subject:
        yield subject


@asynccontextmanager
async def holding(url: str, statement: str) -> AsyncIterator[None]:
    """Somebody else's transaction, which goes on as long as the block."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(statement)
            yield
    finally:
        connection.terminate()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something at the server, while the event loop goes on."""
    await asyncio.to_thread(wait_until, condition, what)


def with_query(url: str, query: str) -> str:
    return f"{url}?{query}"


def of_role(url: str, role: str) -> str:
    return url.replace("//tests@", f"//{role}@")


# The tables


@pytest.mark.varied
def test_processes_that_create_the_tables_at_once_all_get_them(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    assert create_together(postgres_url) == (b"", [0] * PROCESSES)
    assert postgres_server.execute("SELECT count(*) FROM otpless_sessions", postgres_url) == str(PROCESSES)


async def test_tables_of_a_newer_version_are_refused_and_left_alone(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with opened(postgres_url):
        postgres_server.execute("UPDATE otpless_meta SET value = value + 1", postgres_url)
    before = _tables(postgres_server, postgres_url)
    store = open_store(postgres_url)
    for call in (store.open(), store.get("s-1")):
        with pytest.raises(StoreError, match=r"schema 2, made by a newer version of this package; upgrade it") as error:
            await call
        assert (error.value.remedy or "").startswith("pip install --upgrade")
    await store.close()
    assert _tables(postgres_server, postgres_url) == before
    assert postgres_server.execute("SELECT value FROM otpless_meta", postgres_url) == "2"


async def test_tables_of_an_older_version_are_brought_up_to_date(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    async with opened(postgres_url) as subject:
        row = await subject.sign_in()
        postgres_server.execute("UPDATE otpless_meta SET value = value - 1", postgres_url)
    async with opened(postgres_url) as subject:
        assert await subject.store.get("s-1") == row
    assert postgres_server.execute("SELECT value FROM otpless_meta", postgres_url) == str(SCHEMA_VERSION)


def _tables(server: PostgresServer, url: str) -> list[str]:
    columns = "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
    return [
        server.execute(f"{columns} WHERE table_name LIKE 'otpless%' ORDER BY 1, ordinal_position", url),
        server.execute("SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'otpless%' ORDER BY 1", url),
        server.execute("SELECT relname, reloptions FROM pg_class WHERE relname LIKE 'otpless%' ORDER BY 1", url),
    ]


def _run_printed_schema(server: PostgresServer, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "postgresql"]) == 0
    script = capsys.readouterr().out
    subprocess.run([*server.psql(url), "-f", "-"], input=script, text=True, check=True, capture_output=True)  # noqa: S603


async def test_the_printed_schema_makes_the_tables_and_can_run_again(
    postgres_server: PostgresServer, postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgres_server.database() as other:
        async with opened(other):
            by_the_store = _tables(postgres_server, other)
    _run_printed_schema(postgres_server, postgres_url, capsys)
    assert _tables(postgres_server, postgres_url) == by_the_store
    async with opened(postgres_url) as subject:
        row = await subject.sign_in()
        _run_printed_schema(postgres_server, postgres_url, capsys)
        assert await subject.store.get("s-1") == row


@pytest.fixture
def limited_role(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """A role that may use what is there, and create nothing."""
    postgres_server.execute("CREATE ROLE limited LOGIN; GRANT USAGE ON SCHEMA public TO limited", postgres_url)
    yield "limited"
    postgres_server.execute("DROP OWNED BY limited; DROP ROLE limited", postgres_url)


async def test_a_role_that_may_not_create_works_where_the_tables_are(
    postgres_server: PostgresServer, postgres_url: str, limited_role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _run_printed_schema(postgres_server, postgres_url, capsys)
    grants = "SELECT, INSERT, UPDATE, DELETE ON otpless_sessions, otpless_tokens, otpless_meta"
    assert f"GRANT {grants} TO" in (DOCS / "stores.md").read_text(encoding="utf-8")
    postgres_server.execute(f"GRANT {grants} TO {limited_role}", postgres_url)
    async with opened(of_role(postgres_url, limited_role)) as subject:
        await subject.sign_in()
        await subject.rotate()
        await subject.end(revoke_in=0)
        assert await subject.claim() == ["s-1"]
        subject.clock.advance(2 * LIFE)
        assert await subject.store.purge(10) == 5


async def test_a_role_that_may_not_create_is_told_how_to_have_the_tables_made(
    postgres_url: str, limited_role: str
) -> None:
    store = open_store(of_role(postgres_url, limited_role))
    with pytest.raises(StoreError, match=r"permission denied .*`python -m fastapi_otpless_session schema postgresql`"):
        await store.open()
    await store.close()


async def test_tables_can_live_in_a_schema_of_their_own(postgres_server: PostgresServer, postgres_url: str) -> None:
    postgres_server.execute("CREATE SCHEMA auth", postgres_url)
    for query in ("options=-c%20search_path%3Dauth", "search_path=auth"):
        async with opened(with_query(postgres_url, query)) as subject:
            await subject.store.end(new_row(0, query), EndReason.REVOKED, revoke_in=None)
    assert postgres_server.execute("SELECT count(*) FROM auth.otpless_sessions", postgres_url) == "2"


async def test_a_schema_each_keeps_applications_apart(postgres_server: PostgresServer, postgres_url: str) -> None:
    postgres_server.execute("CREATE SCHEMA blog", postgres_url)
    clock = ContractClock()
    async with (
        opened(postgres_url, clock) as shop,  # the tables that were there first are in sight of nobody else
        opened(with_query(postgres_url, "search_path=blog"), clock) as blog,
    ):
        row = await shop.sign_in()
        await shop.store.end(row, EndReason.REVOKED, revoke_in=0)
        assert await blog.store.find(token_digest("s-1")) is None
        assert await blog.store.get("s-1") is None
        assert await blog.store.claim_revocations(10, 60) == []
        clock.offset += 2 * LIFE
        assert await blog.store.purge(10) == 0
        assert [each.session_id for each in await shop.store.claim_revocations(10, 60)] == ["s-1"]


async def test_a_schema_that_is_not_there_is_a_store_error_that_says_so(postgres_url: str) -> None:
    store = open_store(with_query(postgres_url, "search_path=blog"))
    with pytest.raises(StoreError, match=r"no schema has been selected.*CREATE SCHEMA"):
        await store.open()
    await store.close()


async def test_what_is_written_often_leaves_the_indexes_alone(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    await subject.sign_in()
    for number in range(20):
        await subject.store.touch("s-1", 1, validated=True)
        lease = await subject.lease(owner=f"owner {number}")
        await subject.store.renew_lease(lease, 60)
        await subject.store.release_lease(lease, answer_lost=False)
    await subject.store.close()  # the server counts when a connection ends
    query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'otpless_sessions'"
    await until(lambda: postgres_server.execute(query, postgres_url) == "80|80", "for 80 heap-only updates of 80")


async def test_no_raw_token_and_nothing_but_digests_reach_the_index(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    await subject.sign_in()
    digests = postgres_server.execute("SELECT encode(digest, 'hex') FROM otpless_tokens", postgres_url)
    assert set(digests.splitlines()) == {token_digest("s-1").hex(), refresh_digest("s-1").hex()}


# Damage

UNREADABLE = [
    ("state", "dormant"),
    ("end_reason", "boredom"),
    ("confirmations", "none at all"),
    ("confirmations", "[]"),
    ("confirmations", "[[1]]"),
    ("confirmations", "7"),
    ("confirmations", "[[1e999, 0]]"),
    ("confirmations", "[" * 1000),
]


@pytest.fixture
def damage(postgres_server: PostgresServer, postgres_url: str) -> Callable[[str, str], None]:
    def write(column: str, value: str) -> None:
        statement = f"UPDATE otpless_sessions SET {column} = '{value}' WHERE session_id = 'damaged'"  # noqa: S608
        postgres_server.execute(statement, postgres_url)

    return write


@pytest.mark.parametrize(("column", "value"), UNREADABLE)
async def test_a_damaged_row_is_as_unknown_and_the_others_work(
    subject: Subject, damage: Callable[[str, str], None], column: str, value: str
) -> None:
    await subject.sign_in("damaged")
    whole = await subject.sign_in("whole")
    damage(column, value)
    assert await subject.store.find(token_digest("damaged")) is None
    assert await subject.store.get("damaged") is None
    assert await subject.store.get("whole") == whole
    assert list(await subject.store.list_user("MO-1")) == [whole]
    subject.clock.advance(2 * LIFE)
    assert await subject.store.purge(10) == 6


@pytest.mark.parametrize(("column", "value"), UNREADABLE)
async def test_a_damaged_row_can_be_ended_but_never_begun_again(
    subject: Subject, damage: Callable[[str, str], None], column: str, value: str
) -> None:
    row = await subject.sign_in("damaged")
    damage(column, value)
    with pytest.raises(StoreError, match="cannot be read"):
        await subject.store.create(row, token_digest("damaged"), refresh_digest("damaged"))
    ended = await asyncio.gather(*(subject.store.end(row, EndReason.REVOKED, revoke_in=0) for _ in range(5)))
    assert {each.state for each in ended} == {State.ENDED}
    assert ended == [await subject.row("damaged")] * 5
    assert await subject.claim() == ["damaged"]


async def test_a_damaged_row_does_not_stop_the_outbox(subject: Subject, damage: Callable[[str, str], None]) -> None:
    for name in ("damaged", "whole"):
        await subject.sign_in(name)
        await subject.end(name, revoke_in=0)
    damage("confirmations", "none")
    assert await subject.claim() == ["whole"]


@pytest.mark.parametrize("generation", [-1, 2])
async def test_a_digest_that_its_row_does_not_back_is_unknown(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str, generation: int
) -> None:
    await subject.sign_in()
    postgres_server.execute(f"UPDATE otpless_tokens SET generation = {generation}", postgres_url)  # noqa: S608
    assert await subject.store.find(token_digest("s-1")) is None


async def test_a_table_that_vanished_is_a_store_error_for_reads_and_writes(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row = await subject.sign_in()
    postgres_server.execute("DROP TABLE otpless_sessions", postgres_url)
    with pytest.raises(StoreError, match="otpless_sessions"):
        await subject.store.find(token_digest("s-1"))
    with pytest.raises(StoreError, match="otpless_sessions"):
        await subject.store.end(row, EndReason.REVOKED, revoke_in=None)


@pytest.mark.parametrize("name", ["canary\0", "canary\udcff"])
async def test_text_that_postgresql_cannot_keep_is_a_store_error_that_does_not_repeat_it(
    subject: Subject, name: str
) -> None:
    for call in (
        subject.store.get(name),
        subject.store.end(new_row(0, name), EndReason.REVOKED, revoke_in=None),
    ):
        with pytest.raises(StoreError) as caught:
            await call
        assert "canary" not in _all_text(caught.value)
    await subject.sign_in()


def _all_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


# Purging


async def test_superseded_digests_go_while_their_session_lives(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    await subject.sign_in()
    for _ in range(5):
        subject.clock.advance(LIFE - 10)
        await subject.store.confirm(await subject.rotate(), 0)
    subject.clock.advance(20)
    while await subject.store.purge(3):
        pass
    count = postgres_server.execute("SELECT count(*) FROM otpless_tokens", postgres_url)
    assert count == "3"  # the pair, and the token before
    assert await subject.standing(6) is Standing.CURRENT


async def test_one_worker_at_a_time_purges_and_nobody_waits_for_it(subject: Subject, postgres_url: str) -> None:
    for number in range(20):
        await subject.sign_in(f"s-{number}")
    subject.clock.advance(2 * LIFE)
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions WHERE session_id = 's-3' FOR UPDATE"):
        async with holding(postgres_url, "SELECT pg_advisory_xact_lock(1869901932, 2)"):
            assert await subject.store.purge(100) == 0
        gone = await asyncio.gather(*(subject.store.purge(100) for _ in range(8)))
        assert sum(gone) == 3 * 20 - 1
    assert await subject.store.purge(100) == 1


async def test_claims_do_not_wait_for_rows_that_somebody_writes(subject: Subject, postgres_url: str) -> None:
    for number in range(5):
        await subject.sign_in(f"s-{number}")
        await subject.end(f"s-{number}", revoke_in=0)
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions WHERE session_id = 's-3' FOR UPDATE"):
        assert sorted(await subject.claim()) == ["s-0", "s-1", "s-2", "s-4"]
    assert await subject.claim() == ["s-3"]


# Several stores, loops


async def test_two_stores_on_one_database_see_each_other_at_once(subject: Subject, postgres_url: str) -> None:
    async with opened(postgres_url, subject.clock) as other:
        await subject.sign_in()
        row = await other.rotate()
        assert await subject.store.get("s-1") == row
        lease = await subject.lease(2)
        assert await other.store.take_lease("s-1", 2, "b", 60) is None
        ended = await other.end()
        assert await subject.store.get("s-1") == ended
        assert await subject.store.renew_lease(lease, 60) is None


def test_one_store_serves_event_loops_in_several_threads(postgres_server: PostgresServer, postgres_url: str) -> None:
    clock = ContractClock()
    store = open_store(postgres_url, offset=lambda: clock.offset)
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
    query = "SELECT count(*) FROM otpless_sessions WHERE generation = 6"
    assert postgres_server.execute(query, postgres_url) == "4"
    assert sum(lease is not None for lease in taken) == 1
    wait_until(lambda: _connections(postgres_server, postgres_url) == 0, "for all loops' connections to go")


def _connections(server: PostgresServer, url: str, condition: str = "true") -> int:
    """Count the connections that others have to a database."""
    others = f"pid <> pg_backend_pid() AND datname = current_database() AND {condition}"
    return int(server.execute(f"SELECT count(*) FROM pg_stat_activity WHERE {others}", url))  # noqa: S608


async def test_a_store_opens_on_first_use_once_for_all_and_leaves_no_connection(
    postgres_server: PostgresServer, postgres_url: str
) -> None:
    store = open_store(postgres_url)
    assert await asyncio.gather(*(store.get("s-1") for _ in range(50))) == [None] * 50
    assert 0 < _connections(postgres_server, postgres_url) <= POOL_SIZE
    await store.close()
    await until(lambda: _connections(postgres_server, postgres_url) == 0, "for connections to go")
    assert await store.get("s-1") is None
    await store.close()


async def test_closing_lets_what_is_under_way_finish(subject: Subject, postgres_url: str) -> None:
    row = await subject.sign_in()
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions FOR UPDATE"):
        ending = asyncio.create_task(subject.store.end(row, EndReason.REVOKED, revoke_in=None))
        await subject.store.now()
        closing = asyncio.create_task(subject.store.close())
        await settle()
        with pytest.raises(StoreError, match="closed"):
            await subject.store.now()
        assert not closing.done()
    assert (await ending).state is State.ENDED
    await closing
    assert (await subject.row()).state is State.ENDED


# Cancelled calls


@pytest.mark.varied
async def test_cancelled_calls_never_give_anybody_anothers_row_and_leave_the_store_usable(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    names = [f"s-{number}" for number in range(40)]
    await asyncio.gather(*map(subject.sign_in, names))

    async def look(name: str) -> bool:
        row, found = await subject.store.get(name), await subject.store.find(token_digest(name))
        return row is not None and found is not None and (row.session_id, found.row.session_id) == (name, name)

    for steps in range(20):
        calls = [asyncio.create_task(look(name)) for name in names]
        for _ in range(steps):  # further each time: waiting for a connection, for an answer, giving it back
            await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert outcomes[1::2] == [True] * 20
        assert all(outcome is True or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    assert all(await asyncio.gather(*map(look, names)))
    assert _connections(postgres_server, postgres_url) <= POOL_SIZE


async def test_a_write_whose_caller_goes_away_is_done_all_the_same(subject: Subject, postgres_url: str) -> None:
    row = await subject.sign_in()
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions FOR UPDATE"):
        ending = asyncio.create_task(subject.store.end(row, EndReason.REVOKED, revoke_in=None))
        await subject.store.now()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    await subject.store.close()
    assert (await subject.row()).state is State.ENDED


async def test_a_caller_that_went_away_is_not_waited_for_longer_than_others(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row, time = await subject.sign_in(), LoopTime()
    waiting = "wait_event_type = 'Lock'"
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions FOR UPDATE"):
        ending = asyncio.create_task(subject.store.end(row, EndReason.REVOKED, revoke_in=None))
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 1, "for the statement to wait")
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        await time.advance(PATIENCE / 2)
        assert _connections(postgres_server, postgres_url, waiting) == 1
        await time.advance(PATIENCE / 2)
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 0, "for the statement to go")
    assert await subject.row() == row


# The deadline


async def test_a_call_that_takes_too_long_is_a_store_error_and_leaves_nothing_waiting_at_the_server(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await subject.sign_in()
    monkeypatch.setattr(sql_link, "PATIENCE", LITTLE_PATIENCE)
    async with holding(postgres_url, "SELECT 1 FROM otpless_sessions FOR UPDATE"):
        ends = (subject.store.end(row, EndReason.REVOKED, revoke_in=None) for _ in range(3 * POOL_SIZE))
        async with asyncio.timeout(PATIENCE):
            outcomes = await asyncio.gather(*ends, return_exceptions=True)  # two thirds never get a connection
        assert {str(outcome) for outcome in outcomes} == {"PostgreSQL did not answer within 0.4 s"}
        waiting = "wait_event_type = 'Lock'"
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 0, "for the statements to go")
        assert await subject.row() == row
    monkeypatch.undo()
    assert (await subject.end()).state is State.ENDED


async def test_a_server_that_hangs_is_a_store_error_in_time_and_good_again_afterwards(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await subject.sign_in()
    await asyncio.gather(*(subject.store.get("s-1") for _ in range(20)))  # on many connections
    monkeypatch.setattr(sql_link, "PATIENCE", LITTLE_PATIENCE)
    postgres_server.pause()
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(StoreError, match="did not answer"):
            await subject.store.get("s-1")
        other = open_store(postgres_url)  # this one has to connect
        with pytest.raises(StoreError, match="did not answer"):
            await other.open()
        await asyncio.gather(subject.store.close(), other.close())  # does not wait for a goodbye
    monkeypatch.undo()
    postgres_server.resume()
    assert await subject.store.get("s-1") == row


async def test_a_lease_that_its_taker_has_given_up_is_not_taken_when_the_server_goes_on(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know that it is held, and whoever has a new pair could not commit it before it lapses."""
    row = await subject.sign_in()
    assert await subject.store.get("s-1") == row
    for module in (server_clock, sql_link):
        monkeypatch.setattr(module, "PATIENCE", LITTLE_PATIENCE)
    postgres_server.pause()
    with pytest.raises(StoreError, match="did not answer"):
        await subject.store.take_lease("s-1", 1, "one", 15)
    postgres_server.resume()
    async with opened(postgres_url) as other:
        await until(lambda: _connections(postgres_server, postgres_url, "state = 'active'") == 0, "for the statement")
        lease = await other.store.take_lease("s-1", 1, "another", 15)
        assert lease is not None
        assert lease.fence == 1


# Lost connections


async def test_a_stopped_server_is_a_store_error_and_no_read_fails_after_its_return(
    subject: Subject, postgres_server: PostgresServer
) -> None:
    row = await subject.sign_in()
    await asyncio.gather(*(subject.store.get("s-1") for _ in range(20)))
    for stop in (postgres_server.stop, postgres_server.crash):
        stop()
        for call in (subject.store.get("s-1"), subject.store.end(row, EndReason.REVOKED, revoke_in=None)):
            with pytest.raises(StoreError, match="PostgreSQL: "):
                await call
        postgres_server.start()
        reads = await asyncio.gather(*(subject.store.get("s-1") for _ in range(20)))
        assert reads == [row] * 20
    assert (await subject.end()).state is State.ENDED


async def test_a_server_that_restarts_unnoticed_fails_no_read(
    subject: Subject, postgres_server: PostgresServer
) -> None:
    row = await subject.sign_in()
    await asyncio.gather(*(subject.store.get("s-1") for _ in range(20)))
    postgres_server.crash()
    postgres_server.start()
    assert await asyncio.gather(*(subject.store.get("s-1") for _ in range(20))) == [row] * 20
    assert (await subject.end()).state is State.ENDED


async def test_connections_that_were_closed_while_idle_are_replaced_before_anything_is_sent(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row = await subject.sign_in()
    await asyncio.gather(*(subject.store.get("s-1") for _ in range(20)))
    others = "pid <> pg_backend_pid() AND datname = current_database()"
    listed = postgres_server.execute(f"SELECT pid FROM pg_stat_activity WHERE {others}", postgres_url)  # noqa: S608
    _terminate(postgres_server, postgres_url, "pid <> pg_backend_pid()")
    # What the server does not list any more may have its connection open yet.
    await until(lambda: not any(is_running(int(pid)) for pid in listed.split()), "for the server's processes to go")
    await settle()
    ends = await asyncio.gather(*(subject.store.end(row, EndReason.REVOKED, revoke_in=None) for _ in range(20)))
    assert {end.state for end in ends} == {State.ENDED}


async def test_a_read_works_however_much_of_a_connections_end_was_seen(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row = await subject.sign_in()
    for steps in range(6):
        await subject.store.close()
        assert await subject.store.get("s-1") == row
        _terminate(postgres_server, postgres_url, "pid <> pg_backend_pid()")
        for _ in range(steps):  # the server's goodbye, then the end of the connection
            await asyncio.sleep(0)
        assert await subject.store.get("s-1") == row


@pytest.mark.varied
async def test_no_read_fails_while_connections_are_taken_away_again_and_again(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """Each reader finishes ten reads between two times, so that none of its reads meets both."""
    row = await subject.sign_in()
    counts, targets = [0] * POOL_SIZE, [0] * POOL_SIZE
    enough = asyncio.Event()

    async def take_away() -> None:
        for _ in range(10):
            await asyncio.to_thread(_terminate, postgres_server, postgres_url, "pid <> pg_backend_pid()")
            targets[:] = [count + 10 for count in counts]
            enough.clear()
            await enough.wait()

    async def look(reader: int) -> None:
        while not taking.done():
            assert await subject.store.get("s-1") == row
            counts[reader] += 1
            if all(count >= target for count, target in zip(counts, targets, strict=True)):
                enough.set()

    taking = asyncio.create_task(take_away())
    await asyncio.gather(taking, *(look(reader) for reader in range(POOL_SIZE)))
    assert all(count >= target > 0 for count, target in zip(counts, targets, strict=True))


async def test_a_read_whose_connection_is_taken_away_is_done_on_another(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row = await subject.sign_in()
    waiting = "wait_event_type = 'Lock'"
    async with holding(postgres_url, "LOCK otpless_sessions"):
        read = asyncio.create_task(subject.store.get("s-1"))
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 1, "for the read to wait")
        _terminate(postgres_server, postgres_url, waiting)
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 1, "for the read to wait again")
    assert await read == row


async def test_a_write_whose_connection_is_taken_away_is_a_store_error_and_not_repeated(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    row = await subject.sign_in()
    waiting = "wait_event_type = 'Lock'"
    async with holding(postgres_url, "LOCK otpless_sessions"):
        end = asyncio.create_task(subject.store.end(row, EndReason.REVOKED, revoke_in=None))
        await until(lambda: _connections(postgres_server, postgres_url, waiting) == 1, "for the write to wait")
        _terminate(postgres_server, postgres_url, waiting)
        with pytest.raises(StoreError):
            await end
    assert await subject.row() == row


def _terminate(server: PostgresServer, url: str, condition: str) -> None:
    here = f"datname = current_database() AND {condition}"
    server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {here}", url)  # noqa: S608


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
async def distant(proxy: Proxy, postgres_url: str) -> AsyncIterator[Subject]:
    async with opened(proxy.through(postgres_url)) as subject:
        yield subject


async def test_a_commit_whose_answer_is_lost_can_be_tried_again_and_happens_once(
    distant: Subject, proxy: Proxy
) -> None:
    await distant.sign_in()
    lease, brought = await distant.lease(), rotation("s-1", 2, await distant.store.now() + LIFE)
    proxy.cut_after(brought.session_token, REQUEST)
    with pytest.raises(StoreError):
        await distant.store.commit(lease, brought)
    assert (await distant.row()).generation == 2
    assert await distant.store.commit(lease, brought) == await distant.row()
    assert (await distant.row()).generation == 2


async def test_a_write_that_does_not_arrive_is_a_store_error_and_not_repeated(distant: Subject, proxy: Proxy) -> None:
    row = await distant.sign_in()
    proxy.cut_before(b"owner of the lease", REQUEST)
    with pytest.raises(StoreError):
        await distant.lease(owner="owner of the lease")
    assert await distant.row() == row


@pytest.mark.parametrize("direction", [REQUEST, ANSWER])
async def test_a_read_that_is_cut_off_is_done_again(distant: Subject, proxy: Proxy, direction: Any) -> None:
    row = await distant.sign_in()
    proxy.cut_before(token_digest("s-1") if direction is REQUEST else row.session_token, direction)
    found = await distant.store.find(token_digest("s-1"))
    assert found is not None
    assert found.row == row
    assert proxy.counts.resets == 1


async def test_a_network_that_swallows_everything_is_a_store_error_in_time(
    distant: Subject, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await distant.sign_in()
    monkeypatch.setattr(sql_link, "PATIENCE", LITTLE_PATIENCE)
    proxy.blackhole()
    with pytest.raises(StoreError, match="did not answer"):
        await distant.store.get("s-1")
    monkeypatch.undo()
    proxy.restore()
    assert await distant.store.get("s-1") == row


async def test_an_idle_connection_is_looked_after(distant: Subject, proxy: Proxy) -> None:
    """A firewall that forgot it would not tell."""
    await distant.sign_in()
    assert set(are_kept_alive(proxy.port)) == {True}


async def test_a_slow_network_is_no_fault(distant: Subject, proxy: Proxy) -> None:
    row = await distant.sign_in()
    proxy.throttle(20_000)
    assert await asyncio.gather(*(distant.store.get("s-1") for _ in range(5))) == [row] * 5


# Servers that cannot be written


async def test_where_nothing_can_be_written_reads_work_and_writes_are_store_errors(
    subject: Subject, postgres_url: str
) -> None:
    row = await subject.sign_in()
    async with opened(with_query(postgres_url, "default_transaction_read_only=on")) as reader:
        assert await reader.row() == row
        assert await reader.store.find(token_digest("s-1")) is not None
        for call in (
            reader.store.take_lease("s-1", 1, "a", 60),
            reader.store.end(row, EndReason.REVOKED, revoke_in=None),
            reader.store.create(new_row(0, "s-2"), digest("2"), digest("2 refresh")),
        ):
            with pytest.raises(StoreError, match="read-only"):
                await call
    assert await subject.row() == row


async def test_a_connection_that_takes_no_writes_is_left_for_one_that_may(
    subject: Subject, postgres_server: PostgresServer, postgres_url: str
) -> None:
    """As after a failover: what is connected stays with the standby, and who connects anew finds the primary."""
    await subject.sign_in()
    name = postgres_url.rpartition("/")[2]
    postgres_server.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    try:
        async with opened(postgres_url) as worker:
            with pytest.raises(StoreError, match="read-only"):
                await worker.end()
            postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            assert (await worker.end()).state is State.ENDED
    finally:
        postgres_server.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


# Addresses


async def test_a_url_is_as_for_libpq(postgres_server: PostgresServer, postgres_url: str) -> None:
    database = postgres_url.rpartition("/")[2]
    address = f"{HOST}:{postgres_server.port}"
    dead = f"{HOST}:{steady_port()}"
    for url in (
        f"postgres://tests@{address}/{database}",
        f"postgresql://{address}/{database}?user=tests",
        f"postgresql://tests@/{database}?host={HOST}&port={postgres_server.port}",
        f"postgresql://{HOST}/?user=tests&dbname={database}&port={postgres_server.port}",
        f"postgresql://tests@/{database}?host={postgres_server.room}&port={postgres_server.port}",
        f"postgresql:///{database}?host={postgres_server.room}&port={postgres_server.port}&user=tests",
        f"postgresql://tests@{str(postgres_server.room).replace('/', '%2F')}:{postgres_server.port}/{database}",
        f"postgresql://tests@{dead},{address}/{database}",
        f"postgresql://tests@/{database}?host={HOST},{HOST}&port={dead.rpartition(':')[2]},{postgres_server.port}",
        f"postgresql://tests@{dead},{address}/{database}?target_session_attrs=read-write",
        f"{postgres_url}?sslmode=prefer&connect_timeout=10&keepalives=1&channel_binding=prefer&gssencmode=disable",
    ):
        async with opened(url) as subject:
            assert await subject.store.get("s-1") is None


async def test_what_a_url_leaves_out_comes_from_the_environment(
    postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"PGHOST": HOST, "PGPORT": str(postgres_server.port), "PGUSER": "tests"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with opened(f"postgresql:///{postgres_url.rpartition('/')[2]}") as subject:
        assert await subject.store.get("s-1") is None


async def test_what_the_server_is_asked_for_and_does_not_know_is_a_store_error_that_names_it(postgres_url: str) -> None:
    store = open_store(with_query(postgres_url, "requirepeer=postgres"))
    with pytest.raises(StoreError, match="requirepeer"):
        await store.open()
    await store.close()


async def test_a_host_that_swallows_everything_leaves_time_for_the_next(
    proxy: Proxy, postgres_server: PostgresServer, postgres_url: str
) -> None:
    proxy.blackhole()
    address, time = f"{HOST}:{postgres_server.port}", LoopTime()
    store = open_store(postgres_url.replace(address, f"{HOST}:{proxy.port},{address}"))
    found = asyncio.create_task(store.get("s-1"))
    await until(lambda: proxy.counts.connections == 1, "for the first host to be tried")
    await time.advance(PATIENCE / 2)
    assert await found is None
    await store.close()


async def test_the_applications_name_is_shown_to_the_server(postgres_server: PostgresServer, postgres_url: str) -> None:
    async with opened(with_query(postgres_url, "application_name=shop%20front")):
        assert _connections(postgres_server, postgres_url, "application_name = 'shop front'") == 1


@pytest.mark.parametrize(("query", "expected"), [("", 1), ("?prepared_statement_cache_size=0", 0)])
async def test_named_statements_can_be_turned_off_for_an_older_pgbouncer(
    proxy: Proxy, postgres_url: str, query: str, expected: int
) -> None:
    async with opened(f"{proxy.through(postgres_url)}{query}") as subject:
        await subject.sign_in()
        proxy.cut_before(b"__asyncpg_stmt", REQUEST)
        await subject.rotate() if not expected else await subject.row()
        await subject.row()
        assert proxy.counts.resets == expected


async def test_a_pgbouncer_that_does_not_know_named_statements_is_told_what_to_write(subject: Subject) -> None:
    assert isinstance(subject.store, sql.SqlStore)
    await subject.sign_in()
    await subject.row()
    await subject.store._write(text("DEALLOCATE ALL"))  # as if it went on with another server's connection
    with pytest.raises(StoreError, match=r"add \?prepared_statement_cache_size=0 to OTPLESS_STORE_URL"):
        await subject.row()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:canary@host:port/db",
        "postgresql://user:can#canary@host/db",
        "postgresql://user:can/canary@host/db",
        "postgresql://user:can?canary@host/db",
        "postgresql://user:can@canary@host/db",
        "postgresql://user:canary@host:123456/db",
        "postgresql://user:canary@[::1/db",
        "postgresql://user:canary@::1/db",
        "postgresql://user:canary@a,b/db?port=1,2,3",
        "postgresql://user:canary@host/db?sslmode",
        "postgresql://user:canary@host/db?sslmode=sometimes",
        "postgresql://user:canary@host/db?channel_binding=require",
        "postgresql://user:canary@host/db?target_session_attrs=canary",
        "postgresql://user:canary@host/db?prepared_statement_cache_size=canary",
    ],
)
def test_a_wrong_url_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="OTPLESS_STORE_URL") as caught:
        open_store(url)
    assert "canary" not in _all_text(caught.value)


# Passwords and TLS

PASSWORD = "canary /@:#?%&=+ü"
QUOTED = "canary%20%2F%40%3A%23%3F%25%26%3D%2B%C3%BC"


@pytest.fixture(scope="module")
def guarded_server(server_guard: Guard) -> Iterator[PostgresServer]:
    """A server with TLS, on which the role `secured` needs its password."""
    server = PostgresServer(required(find_postgres(), NO_POSTGRES), server_guard, ssl="on")
    server.options |= {"ssl_cert_file": f"{server.room}/{CERTIFICATE}", "ssl_key_file": f"{server.room}/{KEY}"}
    _write_certificate(server)
    try:
        server.start()
        server.execute(f"CREATE ROLE secured SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        server.stop()
        rules = server.data / "pg_hba.conf"
        rules.write_text(f"host all secured {HOST}/32 scram-sha-256\n{rules.read_text()}")
        server.start()
        yield server
    finally:
        server.stop()


def _write_certificate(server: PostgresServer) -> None:
    write_certificate(server.room)
    if account := Account.of_postgres():
        for file in (CERTIFICATE, KEY):
            os.chown(server.room / file, account.uid, account.gid)


async def test_a_password_is_percent_encoded_and_never_shown(guarded_server: PostgresServer) -> None:
    url = guarded_server.url.replace("tests@", f"secured:{QUOTED}@")
    async with opened(url) as subject:
        assert await subject.store.get("s-1") is None
        assert "canary" not in repr(subject.store)
        guarded_server.stop()
        with pytest.raises(StoreError) as down:
            await subject.store.get("s-1")
        guarded_server.start()
    store = open_store(url.replace("canary", "canary-wrong"))
    with pytest.raises(StoreError, match="password authentication failed") as wrong:
        await store.open()
    with pytest.raises(StoreError, match="nowhere") as absent:
        await open_store(url.replace("/postgres", "/nowhere")).open()
    assert "canary" not in "".join(_all_text(caught.value) for caught in (down, wrong, absent))


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_connections_are_encrypted_where_the_url_says_so(guarded_server: PostgresServer, mode: str) -> None:
    query = f"sslmode={mode}&sslrootcert={guarded_server.room}/{CERTIFICATE}"
    async with opened(with_query(guarded_server.url, query)) as subject:
        assert await subject.store.get("s-1") is None
        encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND usename = 'tests'"
        assert int(guarded_server.execute(f"{encrypted} AND pid <> pg_backend_pid()")) == 1


async def test_a_certificate_that_cannot_be_checked_is_a_store_error(guarded_server: PostgresServer) -> None:
    for query in ("sslmode=verify-full", "sslmode=verify-ca&sslrootcert=/nowhere.pem"):
        store = open_store(with_query(guarded_server.url, query))
        with pytest.raises(StoreError, match="PostgreSQL: "):
            await store.open()
        await store.close()
