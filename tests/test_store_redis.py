"""The Redis store, on one server and in a Cluster: the contract, and what is Redis's own."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from backends import MakeRedis, RedisCluster, RedisServer
from certificates import CERTIFICATE, KEY, write_certificate
from processes import HOST, PATIENCE, are_kept_alive, steady_port, wait_until
from proxy import Proxy
from redis.crc import key_slot

from fastapi_otpless_session.errors import ConfigurationError, StoreError
from fastapi_otpless_session.stores import SessionStore, open_store
from fastapi_otpless_session.stores.base import REFRESH_TOKEN, EndReason, SessionRow, Standing, State
from fastapi_otpless_session.stores.lua import KEPT_LONGER
from fastapi_otpless_session.stores.redis import LONGEST_LINEAGE, UNFINISHED_SECONDS, RedisStore
from fastapi_otpless_session.stores.redis_link import dangers_in
from fastapi_otpless_session.testing.store_contract import (
    GRACE,
    LIFE,
    ContractClock,
    StoreContract,
    Subject,
    about,
    digest,
    refresh_digest,
    rotation,
    token_digest,
)

PAGE = (Path(__file__).parents[1] / "docs" / "stores.md").read_text(encoding="utf-8")
LITTLE_PATIENCE = 0.4
MakeStore = Callable[[ContractClock], SessionStore]


class RedisContract(StoreContract):
    @pytest.fixture
    def longest_list(self, short_list: int) -> int:
        return short_list


class TestRedis(RedisContract):
    @pytest.fixture
    def make_store(self, redis_server: RedisServer) -> MakeStore:
        return lambda clock: open_store(redis_server.url, offset=lambda: clock.offset)


class TestCluster(RedisContract):
    @pytest.fixture
    def make_store(self, redis_cluster: RedisCluster) -> MakeStore:
        return lambda clock: open_store(redis_cluster.url, offset=lambda: clock.offset)


@pytest.fixture
def short_list(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("fastapi_otpless_session.stores.redis.LONGEST_LIST", 5)
    return 5


@pytest.fixture
async def subject(redis_server: RedisServer) -> AsyncIterator[Subject]:
    clock = ContractClock()
    store = open_store(redis_server.url, offset=lambda: clock.offset)
    yield Subject(store, clock)
    await store.close()


# Addresses


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Subject]:
    """A store that somebody else opens."""
    clock = ContractClock()
    store = open_store(url, offset=lambda: clock.offset)
    await store.open()
    try:
        yield Subject(store, clock)
    finally:
        await store.close()


async def test_a_unix_socket_leads_to_the_same_sessions(subject: Subject, redis_server: RedisServer) -> None:
    row = await subject.sign_in()
    async with opened(redis_server.socket_url) as other:
        assert await other.row() == row


@pytest.mark.slow  # by itself, like those: it failed once in some thirty runs beside another, and never alone
@pytest.mark.parametrize("is_checked", [True, False])
async def test_tls_leads_to_a_server_whose_certificate_holds(
    make_redis: MakeRedis, tmp_path: Path, is_checked: bool
) -> None:
    write_certificate(tmp_path)
    port = steady_port()
    certificate, key = str(tmp_path / CERTIFICATE), str(tmp_path / KEY)
    make_redis(
        tls_port=str(port),
        tls_auth_clients="no",
        tls_cert_file=certificate,
        tls_key_file=key,
        tls_ca_cert_file=certificate,
    )
    trusted = tmp_path / CERTIFICATE if is_checked else ssl.get_default_verify_paths().cafile
    store = open_store(f"rediss://{HOST}:{port}/0?ssl_ca_certs={trusted}")
    with nullcontext() if is_checked else pytest.raises(StoreError, match="certificate"):
        await Subject(store, ContractClock()).sign_in()
    await store.close()


async def test_a_lease_that_its_taker_has_given_up_is_not_taken_when_the_server_goes_on(
    subject: Subject, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would know that it is held, and whoever has a new pair could not commit it before it lapses."""
    await subject.sign_in()
    assert await subject.store.take_lease("nobody", 1, "one", 15) is None  # the server knows the script from now on
    for module in ("server_clock", "redis_link"):
        monkeypatch.setattr(f"fastapi_otpless_session.stores.{module}.PATIENCE", LITTLE_PATIENCE)
    redis_server.pause()
    with pytest.raises(StoreError, match="did not answer"):
        await subject.store.take_lease("s-1", 1, "one", 15)
    redis_server.resume()
    async with opened(redis_server.url) as other:  # it is heard after the first
        lease = await other.store.take_lease("s-1", 1, "another", 15)
        assert lease is not None
        assert lease.fence == 1


async def test_one_node_is_enough_to_find_a_cluster(redis_cluster: RedisCluster) -> None:
    async with opened(redis_cluster.url) as subject:
        rows = [await subject.sign_in(f"s-{number}") for number in range(20)]
        async with opened(redis_cluster.nodes[2].url) as other:
            assert [await other.row(f"s-{number}") for number in range(20)] == rows


@pytest.mark.parametrize("how", ["stop", "pause"])
async def test_one_node_that_is_down_or_hangs_does_not_take_the_others_along(
    redis_cluster: RedisCluster, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default a Cluster of which a part is down takes nothing at all; here its other parts go on."""
    for name in ("redis_link.CONNECT_SECONDS", "redis_cluster.ASK_SECONDS", "redis_cluster.NODE_SECONDS"):
        monkeypatch.setattr(f"fastapi_otpless_session.stores.{name}", PATIENCE / 20)  # it is waited out four times
    for node in redis_cluster.nodes:
        node.execute("CONFIG SET", "cluster-require-full-coverage", "no")
    getattr(redis_cluster.nodes[0], how)()
    async with opened(redis_cluster.url) as subject:
        found = [name for name in map(str, range(30)) if await is_served(subject, name)]
        assert await subject.store.now() > 0
        with pytest.raises(StoreError):
            await subject.store.get(next(name for name in map(str, range(30)) if name not in found))
        assert [name for name in map(str, range(30)) if await is_served(subject, name)] == found
    assert 5 < len(found) < 30


async def is_served(subject: Subject, session_id: str) -> bool:
    """Whether a session's slot is on a node that answers."""
    if key_slot(f"otpless:session:{session_id}".encode()) < RedisCluster.SLOTS / RedisCluster.SIZE:
        return False
    assert await subject.store.get(session_id) is None
    return True


async def test_a_node_without_slots_does_not_know_the_cluster(
    redis_cluster: RedisCluster, make_redis: MakeRedis
) -> None:
    outsider = make_redis(cluster_enabled="yes", cluster_port=str(steady_port()))
    async with opened(f"redis://{HOST}:{outsider.port},{HOST}:{redis_cluster.port}") as subject:
        row = await subject.sign_in()
        assert await subject.row() == row


async def test_hosts_that_hang_do_not_keep_a_worker_from_the_one_that_answers(
    redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than can be waited for one after the other: they take connections, and say nothing."""
    with ExitStack() as stack:
        hanging = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(8)]
        monkeypatch.setattr("fastapi_otpless_session.stores.redis_link.CONNECT_SECONDS", PATIENCE / 4)
        hosts = [f"{HOST}:{each.getsockname()[1]}" for each in hanging]
        async with opened(f"redis://{','.join(hosts)},{HOST}:{redis_cluster.port}") as subject:
            row = await subject.sign_in()
            assert await subject.row() == row


async def test_hosts_of_which_none_answers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    ports = [steady_port() for _ in range(3)]
    store = open_store("redis://" + ",".join(f"{HOST}:{port}" for port in ports))
    with pytest.raises(StoreError, match="connecting to"):
        await store.open()
    await store.close()
    assert all(f"{HOST}:{port}" in caplog.text for port in ports)


@pytest.fixture
def moving(redis_cluster: RedisCluster) -> Iterator[tuple[RedisServer, RedisServer]]:
    """The slot of `s-1` on its way from one node to another: the row is there already."""
    slot = key_slot(b"otpless:session:s-1")
    source = redis_cluster.nodes[slot * RedisCluster.SIZE // RedisCluster.SLOTS]
    target = next(node for node in redis_cluster.nodes if node is not source)
    names = {node: node.execute("CLUSTER MYID") for node in (source, target)}
    target.execute("CLUSTER SETSLOT", slot, "IMPORTING", names[source])
    source.execute("CLUSTER SETSLOT", slot, "MIGRATING", names[target])
    yield source, target
    for node in redis_cluster.nodes:
        node.execute("FLUSHALL")
    for node in (source, target):
        node.execute("CLUSTER SETSLOT", slot, "NODE", names[source])


async def test_a_slot_that_moves_takes_its_sessions_along(
    redis_cluster: RedisCluster, moving: tuple[RedisServer, RedisServer]
) -> None:
    source, target = moving
    async with opened(redis_cluster.url) as subject:
        row = await subject.sign_in()  # goes to the target, by ASK
        assert source.execute("CLUSTER COUNTKEYSINSLOT", key_slot(b"otpless:session:s-1")) == 0
        assert await subject.row() == row
        rotated = await subject.rotate()
        for node in (target, source):
            node.execute("CLUSTER SETSLOT", key_slot(b"otpless:session:s-1"), "NODE", target.execute("CLUSTER MYID"))
        assert await subject.row() == rotated  # by MOVED
        assert (await subject.end()).state is State.ENDED


async def test_a_prefix_keeps_applications_apart(redis_server: RedisServer) -> None:
    async with opened(f"{redis_server.url}?prefix=shop:") as shop, opened(f"{redis_server.url}?prefix=blog:") as blog:
        await shop.sign_in()
        assert await blog.store.get("s-1") is None
        assert await blog.store.find(token_digest("s-1")) is None
        assert not await blog.store.list_user("MO-1")
    assert all(key.startswith("shop:") for key in redis_server.execute("KEYS", "*"))


async def test_databases_are_apart(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as subject, opened(redis_server.url.removesuffix("0") + "1") as other:
        await subject.sign_in()
        assert await other.store.get("s-1") is None


async def test_a_database_may_be_left_out_or_be_an_option(redis_server: RedisServer) -> None:
    server = redis_server.url.removesuffix("/0")
    async with opened(redis_server.url) as subject:
        await subject.sign_in()
        for same in (server, f"{server}/", f"{server}/0/", f"{server}?db=0", f"{redis_server.socket_url}?db=0"):
            async with opened(same) as other:
                assert await other.store.get("s-1") is not None
        for another in (f"{server}?db=1", f"{redis_server.socket_url}?db=1"):
            async with opened(another) as other:
                assert await other.store.get("s-1") is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://:canary@host:port/0",
        "redis://:canary@host/0?no_such_option=1",
        "rediss://:canary@host?socket_timeout=long",
        "redis://:canary@one:6379,two:x",
        "redis://:canary@one,two/3",
        "redis://:canary\u2100@host",
        "redis://:canary[x@host",
        "rediss://:canary@host?ssl_cert_reqs=perhaps",
        "redis://:canary@host?decode_responses=true",
        "redis://:canary@host?credential_provider=x",
        "redis://:canary@host?db",
        "redis://:canary@host?db=shop",
        "redis://:canary@host/shop",
        "rediss://:canary@host:6379/1x",
        "redis://:canary@host/-1",
        "redis://:canary@host/0/1",
        "redis://:canary@host/1_0",
        "redis://:canary@host/shop?db=2",
        "redis://:canary@one,two/shop",
    ],
)
def test_a_wrong_address_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="OTPLESS_STORE_URL") as caught:
        open_store(url)
    assert "canary" not in str(caught.value)


async def test_a_refused_password_is_a_fault_that_does_not_show_it(make_redis: MakeRedis) -> None:
    server = make_redis(user="guest on >right ~* +@all")
    store = open_store(server.url.replace("://", "://guest:canary@"))
    with pytest.raises(StoreError) as caught:
        await store.open()
    await store.close()
    assert "canary" not in str(caught.value)
    assert "canary" not in repr(store)


async def test_a_user_needs_no_more_than_the_readme_says(make_redis: MakeRedis) -> None:
    rights = "~otpless:* +@read +@write +@connection +@scripting +time +info"
    assert rights in PAGE
    server = make_redis(user=f"shop on >secret {rights}")
    async with opened(server.url.replace("://", "://shop:secret@")) as subject:
        await subject.sign_in()
        await subject.store.confirm(await subject.rotate(), GRACE)
        assert len(await subject.store.list_user("MO-1")) == 1
        await subject.end(revoke_in=0)
        assert await subject.claim() == ["s-1"]
        assert isinstance(subject.store, RedisStore)
        assert list(await subject.store.dangers()) == ["appendonly yes"]


async def test_the_configuration_of_the_documentation_keeps_sessions_through_a_crash(make_redis: MakeRedis) -> None:
    [block] = re.findall(r"```conf\n(appendonly .*?)```", PAGE, re.DOTALL)
    lines = [line.split() for line in block.splitlines() if not line.startswith("#")]
    options: dict[str, Any] = {name.replace("-", "_"): value for name, value in lines}
    server = make_redis(**options)
    async with opened(server.url) as subject:
        row = await subject.sign_in()
        await asyncio.to_thread(wait_until, server.has_handed_over, "for Redis to write its log")
        server.crash()  # of the server: what it had handed to the system is there
        server.start()
        assert await subject.store.get("s-1") == row


async def test_several_hosts_that_are_no_cluster_are_told(redis_server: RedisServer) -> None:
    store = open_store(f"redis://127.0.0.1:{redis_server.port},127.0.0.1:{redis_server.port}")
    with pytest.raises(StoreError, match="Cluster"):
        await store.open()
    await store.close()


def test_a_missing_package_is_told_with_what_to_install() -> None:
    code = "import sys; sys.modules['redis'] = None; from fastapi_otpless_session import open_store; open_store('redis://h')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert 'pip install "fastapi-otpless-session[redis]"' in ended.stderr


@pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru"])
@pytest.mark.parametrize("appendonly", ["yes", "no"])
async def test_a_server_that_may_throw_sessions_away_or_forget_what_it_confirmed_is_warned_of(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture, policy: str, appendonly: str
) -> None:
    async with opened(make_redis(maxmemory_policy=policy, appendonly=appendonly).url):
        assert (f"maxmemory-policy {policy}" in caplog.text) is (policy != "noeviction")
        assert ("appendonly no" in caplog.text) is (appendonly == "no")


async def test_a_server_that_may_not_be_asked_for_its_settings_works_and_is_not_warned_of(
    make_redis: MakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_redis(user="shop on >secret ~otpless:* +@all -info")
    async with opened(server.url.replace("://", "://shop:secret@")) as subject:
        await subject.sign_in()
        assert isinstance(subject.store, RedisStore)
        with pytest.raises(StoreError, match="info"):
            await subject.store.dangers()
    assert caplog.messages == []


def test_of_a_server_that_does_not_tell_its_settings_nothing_is_said() -> None:
    assert dangers_in({"redis_version": "7.4.0"}) == {}


# Life


async def test_event_loops_share_a_store(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)
    await Subject(store, ContractClock()).sign_in()

    async def look() -> int:
        found = await asyncio.gather(*(store.find(token_digest("s-1")) for _ in range(50)))
        await store.close()
        return sum(each is not None for each in found)

    counts = await asyncio.gather(*(asyncio.to_thread(asyncio.run, look()) for _ in range(4)))
    assert counts == [50] * 4
    assert await store.get("s-1") is not None
    await store.close()


async def test_a_restarted_server_goes_on_with_its_sessions(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="yes", appendfsync="always")
    async with opened(server.url) as subject:
        row = await subject.sign_in()
        server.crash()
        with pytest.raises(StoreError):
            await subject.store.get("s-1")
        server.start()
        assert await subject.store.get("s-1") == row


async def test_a_demoted_primary_is_left_for_the_new_one(make_redis: MakeRedis) -> None:
    primary = make_redis()
    replica = make_redis(replica_of=primary)
    with Proxy(primary.port) as name:  # as a service's name, which leads elsewhere after a failover
        async with opened(name.through(primary.url)) as subject:
            row = await subject.sign_in()
            wait_until(lambda: replica.execute("EXISTS", "otpless:session:s-1") == 1, "for the replica to have it")
            replica.execute("REPLICAOF NO ONE")
            primary.execute("REPLICAOF", HOST, replica.port)
            name.lead_to(replica.port)
            with pytest.raises(StoreError, match="read only"):
                await subject.end()
            assert await subject.row() == row
            assert (await subject.end()).state is State.ENDED


async def test_a_full_server_still_takes_sign_outs(make_redis: MakeRedis) -> None:
    server = make_redis()
    async with opened(server.url) as subject:
        row = await subject.sign_in()
        server.execute("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreError, match="maxmemory"):
            await subject.lease()
        ended = await subject.store.end(row, EndReason.REVOKED, revoke_in=0)
        assert ended.state is State.ENDED
        assert (await subject.row()).state is State.ENDED


async def test_a_full_server_keeps_no_sign_out_from_being_told(make_redis: MakeRedis) -> None:
    server = make_redis()
    async with opened(server.url) as subject:
        for name in ("s-1", "s-2"):
            await subject.sign_in(name)
            await subject.end(name, revoke_in=0)
        server.execute("CONFIG", "SET", "maxmemory", "1")
        assert sorted(await subject.claim()) == ["s-1", "s-2"]
        await subject.store.settle_revocation(await subject.row("s-1"))
        await subject.store.postpone_revocation(await subject.row("s-2"), 20)
        subject.clock.advance(10)
        assert await subject.claim() == []
        subject.clock.advance(60)  # longer than a claim holds
        assert await subject.claim() == ["s-2"]
        assert (await subject.row("s-2")).revocation_attempts == 1


async def test_a_full_server_has_its_outbox_put_right(make_redis: MakeRedis) -> None:
    """As where a worker died between the two that say when a telling is due."""
    server = make_redis()
    async with opened(server.url) as subject:
        await subject.sign_in()
        await subject.end(revoke_in=60)
        server.execute("ZADD", "otpless:due", "0", "s-1")
        server.execute("CONFIG", "SET", "maxmemory", "1")
        assert await subject.claim() == []
        subject.clock.advance(60)
        assert await subject.claim() == ["s-1"]


async def test_an_idle_connection_is_looked_after(make_redis: MakeRedis) -> None:
    """A firewall that forgot it would not tell."""
    server = make_redis()
    async with opened(server.url) as subject:
        await subject.sign_in()
        assert set(are_kept_alive(server.port)) == {True}


async def test_a_closed_store_connects_for_nobody(redis_server: RedisServer) -> None:
    store = open_store(redis_server.url)
    await Subject(store, ContractClock()).sign_in()
    under_way = [asyncio.create_task(store.get("s-1")) for _ in range(20)]
    await asyncio.sleep(0)
    await store.close()
    outcomes = await asyncio.gather(*under_way, return_exceptions=True)
    assert {type(each) for each in outcomes} <= {StoreError, SessionRow}
    wait_until(lambda: redis_server.execute("CLIENT LIST").count("cmd=evalsha") == 0, "for connections to close")


async def test_a_session_that_expired_does_not_stand_in_its_own_way(subject: Subject) -> None:
    row = await subject.sign_in()
    subject.clock.advance(LIFE + 1)
    again = await subject.sign_in(user_id="MO-2")
    assert again != row
    assert await subject.row() == again


# A Cluster of which a node is away


class Maimed:
    """A Cluster of which one node can be away. By default such a one takes nothing at all; here its others go on."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster
        for node in cluster.nodes:
            node.execute("CONFIG SET", "cluster-require-full-coverage", "no")

    def lose(self, key: str) -> None:
        """Stop the node that has a key. What it had in memory is gone."""
        self._cluster.nodes[node_of(key)].stop()

    def mend(self) -> None:
        self._cluster.make_ready()


def node_of(key: str) -> int:
    return key_slot(f"otpless:{key}".encode()) * RedisCluster.SIZE // RedisCluster.SLOTS


def token_key(session_id: str, generation: int) -> str:
    return f"token:{token_digest(session_id, generation).hex()}"


@pytest.fixture
def maimed(redis_cluster: RedisCluster) -> Maimed:
    return Maimed(redis_cluster)


@pytest.fixture
async def apart(redis_cluster: RedisCluster) -> AsyncIterator[Subject]:
    """A store in the Cluster, where it can be seen what of it hangs on which node."""
    async with opened(redis_cluster.url) as subject:
        yield subject


NEW_TOKEN_APART = next(
    name
    for name in map(str, range(1000))
    if node_of(token_key(name, 2)) not in {node_of(f"session:{name}"), node_of(token_key(name, 1))}
)
"""The id of a session whose second token's index entry is on another node than its row and its first token's."""
APART_FROM_OUTBOX = next(
    name
    for name in map(str, range(1000))
    if node_of("due") not in {node_of(f"session:{name}"), node_of(token_key(name, 1))}
)


async def refreshed_without_the_index(subject: Subject, maimed: Maimed) -> SessionRow:
    """Refresh a session while the node that is to have its new token's index entry is away."""
    await subject.sign_in(NEW_TOKEN_APART)
    maimed.lose(token_key(NEW_TOKEN_APART, 2))
    return await subject.store.commit(
        await subject.lease(session_id=NEW_TOKEN_APART),
        rotation(NEW_TOKEN_APART, 2, await subject.store.now() + LIFE),
    ) or pytest.fail("the commit was refused")


async def test_a_commit_needs_no_other_node_than_its_rows(apart: Subject, maimed: Maimed) -> None:
    row = await refreshed_without_the_index(apart, maimed)
    assert row.generation == 2
    found = await apart.store.find(token_digest(NEW_TOKEN_APART))
    assert found is not None
    assert (found.row, found.generation) == (row, 1)


async def test_nobody_is_given_a_token_that_could_not_be_found(
    apart: Subject, maimed: Maimed, redis_cluster: RedisCluster
) -> None:
    """Whoever is to have the newest token is shown the row by `get`, in another worker too."""
    row = await refreshed_without_the_index(apart, maimed)
    async with opened(redis_cluster.url) as other:
        for store in (apart.store, other.store):
            with pytest.raises(StoreError):
                await store.get(NEW_TOKEN_APART)
        maimed.mend()
        assert await other.store.get(NEW_TOKEN_APART) == row
        await assert_all_leads_to(other, row)


async def test_what_a_commit_could_not_write_is_made_up_for_by_housekeeping(apart: Subject, maimed: Maimed) -> None:
    row = await refreshed_without_the_index(apart, maimed)
    with pytest.raises(StoreError):
        await apart.store.get(NEW_TOKEN_APART)
    maimed.mend()
    await apart.claim()
    await assert_all_leads_to(apart, row)


LIST_APART = next(
    name
    for name in map(str, range(1000))
    if node_of("user:MO-1")
    not in {node_of(f"session:{name}"), *(node_of(token_key(name, generation)) for generation in (1, 2))}
)


async def test_a_row_is_to_be_had_as_long_as_its_newest_token_is_found_whatever_else_could_not_be_written(
    apart: Subject, maimed: Maimed, redis_cluster: RedisCluster
) -> None:
    await apart.sign_in(LIST_APART)
    maimed.lose("user:MO-1")
    await apart.rotate(LIST_APART)
    async with opened(redis_cluster.url) as other:
        for each in (apart, other):
            row = await each.store.get(LIST_APART)
            assert row is not None
            assert row.generation == 2
            assert await each.store.find(token_digest(LIST_APART, 2)) is not None


async def test_a_sign_in_again_gives_nobody_a_token_that_could_not_be_found(apart: Subject, maimed: Maimed) -> None:
    row = await refreshed_without_the_index(apart, maimed)
    maimed.mend()
    digests = token_digest(NEW_TOKEN_APART), refresh_digest(NEW_TOKEN_APART)
    assert await apart.store.create(row, *digests) == row
    await assert_all_leads_to(apart, row)


async def test_a_refresh_makes_up_for_what_the_one_before_could_not_write(apart: Subject, maimed: Maimed) -> None:
    row = await refreshed_without_the_index(apart, maimed)
    maimed.mend()
    lease = await apart.lease(2, session_id=NEW_TOKEN_APART)
    third = await apart.store.commit(lease, rotation(NEW_TOKEN_APART, 3, row.expires_at))
    assert third is not None
    await assert_all_leads_to(apart, third)


async def assert_all_leads_to(subject: Subject, row: SessionRow) -> None:
    """All of a session's tokens, each as what it is, and its user's list."""
    for generation in range(1, row.generation + 1):
        found = await subject.store.find(token_digest(row.session_id, generation))
        assert found is not None
        assert (found.row, found.generation) == (row, generation)
        found = await subject.store.find(digest(f"{row.session_id} refresh {generation}"))
        assert found is not None
        assert found.generation == REFRESH_TOKEN
    assert await subject.store.list_user("MO-1") == [row]


async def test_a_commit_that_is_overtaken_does_not_shorten_how_long_a_token_is_known(
    subject: Subject, redis_server: RedisServer
) -> None:
    for name in map(str, range(8)):  # either may be the one that is overtaken
        await subject.sign_in(name)
        lease, now = await subject.lease(session_id=name), await subject.store.now()
        first, second = rotation(name, 2, now + 3 * LIFE), rotation(name, 2, now + 2 * LIFE)
        second = replace(second, token_digest=digest(f"{name} b"), refresh_digest=digest(f"{name} refresh b"))
        rows = await asyncio.gather(*(subject.store.commit(lease, each) for each in (first, second)))
        assert rows.count(None) == 1
        known_until = redis_server.execute("PEXPIRETIME", f"otpless:{token_key(name, 1)}")
        assert known_until >= redis_server.execute("PEXPIRETIME", f"otpless:session:{name}") - 1  # rounded


async def test_what_is_made_up_for_has_no_replaced_token_forgotten(
    apart: Subject, maimed: Maimed, redis_cluster: RedisCluster
) -> None:
    """A thief's token is to be known for one that was replaced."""
    row = await refreshed_without_the_index(apart, maimed)
    maimed.mend()
    await apart.store.confirm(row, GRACE)
    apart.clock.advance(GRACE + 1)
    third = await apart.rotate(NEW_TOKEN_APART)
    await apart.store.confirm(third, GRACE)
    async with opened(redis_cluster.url) as other:
        await other.row(NEW_TOKEN_APART)
        found = await other.store.find(token_digest(NEW_TOKEN_APART))
    assert found is not None
    assert found.generation == 1
    assert found.row.standing(1, await apart.store.now(), GRACE) is Standing.SUPERSEDED


async def test_a_session_ends_while_the_outbox_is_away_and_is_told_of_later(apart: Subject, maimed: Maimed) -> None:
    await apart.sign_in(APART_FROM_OUTBOX)
    maimed.lose("due")
    ended = await apart.end(APART_FROM_OUTBOX, revoke_in=0)
    assert ended.state is State.ENDED
    assert await apart.row(APART_FROM_OUTBOX) == ended
    await apart.store.postpone_revocation(ended, 20)
    with pytest.raises(StoreError):
        await apart.claim()
    maimed.mend()
    assert await apart.claim() == []
    apart.clock.advance(30)
    assert await apart.claim() == [APART_FROM_OUTBOX]
    assert await apart.claim() == []


async def test_what_a_worker_could_not_write_into_the_outbox_is_written_before_it_stops(
    apart: Subject, maimed: Maimed, redis_cluster: RedisCluster
) -> None:
    await apart.sign_in(APART_FROM_OUTBOX)
    async with opened(redis_cluster.url) as stopping:
        maimed.lose("due")
        await stopping.end(APART_FROM_OUTBOX, revoke_in=0)
        maimed.mend()
    assert await apart.claim() == [APART_FROM_OUTBOX]


async def test_a_worker_that_stops_while_the_outbox_is_away_does_not_wait_for_it(
    maimed: Maimed, redis_cluster: RedisCluster
) -> None:
    async with asyncio.timeout(PATIENCE), opened(redis_cluster.url) as stopping:
        await stopping.sign_in(APART_FROM_OUTBOX)
        maimed.lose("due")
        await stopping.end(APART_FROM_OUTBOX, revoke_in=0)


@pytest.mark.parametrize("by", ["token", "id"])
async def test_whoever_comes_with_an_ended_session_that_nobody_was_told_of_has_it_told(
    apart: Subject, maimed: Maimed, redis_cluster: RedisCluster, by: str
) -> None:
    """The worker that ended it is gone."""
    await apart.sign_in(APART_FROM_OUTBOX)
    async with opened(redis_cluster.url) as dying:
        maimed.lose("due")
        await dying.end(APART_FROM_OUTBOX, revoke_in=0)
    maimed.mend()
    apart.clock.advance(UNFINISHED_SECONDS + 1)
    assert await apart.claim() == []
    look = apart.store.find(token_digest(APART_FROM_OUTBOX)) if by == "token" else apart.store.get(APART_FROM_OUTBOX)
    assert await look is not None
    assert await apart.claim() == [APART_FROM_OUTBOX]


async def test_a_list_that_would_lack_sessions_is_an_error(apart: Subject, maimed: Maimed) -> None:
    for name in map(str, range(20)):
        await apart.sign_in(name)
    maimed.lose(
        next(f"session:{name}" for name in map(str, range(20)) if node_of(f"session:{name}") != node_of("user:MO-1"))
    )
    with pytest.raises(StoreError):
        await apart.store.list_user("MO-1")


# Hints


async def test_what_a_late_commit_left_in_the_index_leads_nowhere(subject: Subject, redis_server: RedisServer) -> None:
    await subject.sign_in()
    row = await subject.rotate()
    key = f"otpless:token:{digest('late').hex()}"
    redis_server.execute("SET", key, f"{digest('late').hex()[:16]} token 2 s-1")
    assert await subject.store.find(digest("late")) is None
    await subject.store.confirm(row, GRACE)
    assert await subject.store.find(digest("late")) is None
    assert await subject.standing(2) is Standing.CURRENT


@pytest.mark.parametrize("value", ["", "x", "00 token 1 s-1", "{} token x s-1", "{} token 1", "{} token 1 other"])
async def test_an_index_entry_that_makes_no_sense_leads_nowhere(
    subject: Subject, redis_server: RedisServer, value: str
) -> None:
    await subject.sign_in()
    wanted = token_digest("s-1")
    redis_server.execute("SET", f"otpless:token:{wanted.hex()}", value.format(wanted.hex()[:16]))
    assert await subject.store.find(wanted) is None


async def test_tokens_that_still_count_are_kept_as_long_as_their_session(
    subject: Subject, redis_server: RedisServer
) -> None:
    row = await subject.sign_in()
    key = f"otpless:token:{token_digest('s-1').hex()}"
    assert redis_server.execute("PEXPIRETIME", key) == int((row.expires_at + KEPT_LONGER) * 1000)
    subject.clock.advance(LIFE / 2)
    rotated = await subject.rotate()
    server_time = rotated.expires_at - subject.clock.offset
    kept_until = redis_server.execute("PEXPIRETIME", key) / 1000 - KEPT_LONGER
    assert kept_until == about(server_time)
    assert redis_server.execute("PEXPIRETIME", "otpless:user:MO-1") / 1000 - KEPT_LONGER == about(server_time)
    assert redis_server.execute("PEXPIRETIME", "otpless:session:s-1") / 1000 - KEPT_LONGER == about(server_time)


async def test_a_sign_in_again_does_not_set_a_newer_token_back(subject: Subject) -> None:
    row = await subject.sign_in()
    await subject.rotate()
    assert await subject.store.create(row, token_digest("s-1", 2), refresh_digest("s-1")) is not None
    assert await subject.standing(2) is Standing.CURRENT


async def test_a_damaged_row_keeps_no_other_from_being_told(subject: Subject, redis_server: RedisServer) -> None:
    row, other = await subject.sign_in(), await subject.sign_in("other")
    for each in (row, other):
        await subject.store.end(each, EndReason.REVOKED, revoke_in=0)
    redis_server.execute("HSET", "otpless:session:s-1", "revocation_due", "soon")
    assert await subject.claim() == ["other"]


async def test_the_outbox_forgets_what_is_not_due_and_keeps_what_may_be(
    subject: Subject, redis_server: RedisServer
) -> None:
    await subject.sign_in()
    redis_server.execute("ZADD", "otpless:due", 1, "s-1", 1, "absent")
    assert await subject.claim() == []
    assert redis_server.execute("ZRANGE", "otpless:due", 0, -1) == ["s-1"]
    await subject.end(revoke_in=0)
    assert await subject.claim() == ["s-1"]
    await subject.store.settle_revocation(await subject.row())
    subject.clock.advance(100)
    assert await subject.claim() == []
    assert redis_server.execute("ZCARD", "otpless:due") == 0


async def test_a_list_drops_what_ended_or_expired(subject: Subject, redis_server: RedisServer) -> None:
    await subject.sign_in("ended")
    await subject.end("ended")
    await subject.sign_in("short", expires_at=await subject.store.now() + 10)
    subject.clock.advance(20)
    await subject.sign_in("alive")
    assert [row.session_id for row in await subject.store.list_user("MO-1")] == ["alive"]
    assert redis_server.execute("ZRANGE", "otpless:user:MO-1", 0, -1) == ["alive"]


async def test_a_list_looks_behind_whatever_has_no_row_and_leaves_it_there(
    subject: Subject, redis_server: RedisServer, short_list: int
) -> None:
    """Whoever signs in is on the list before there is a row: dropped from there, no sign-out would find it."""
    row = await subject.sign_in()
    others = [f"absent-{number}" for number in range(4 * short_list)]
    later = str(row.expires_at + 1)
    redis_server.execute("ZADD", "otpless:user:MO-1", *(part for name in others for part in (later, name)))
    assert list(await subject.store.list_user("MO-1")) == [row]
    begun = await subject.sign_in(others[0])
    assert set(await subject.store.list_user("MO-1")) == {row, begun}


async def test_a_row_that_changes_all_the_time_has_a_bounded_lineage(subject: Subject) -> None:
    await subject.sign_in()
    for _ in range(LONGEST_LINEAGE + 10):
        await subject.rotate()
    newest = LONGEST_LINEAGE + 11
    assert await subject.standing(1) is Standing.OLDER
    assert await subject.standing(newest - 1) is Standing.OLDER
    assert await subject.standing(newest) is Standing.CURRENT


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        ("HSET", "generation", "many"),
        ("HSET", "generation", "99999999999999999999999999"),
        ("HSET", "expires_at", "nan"),
        ("HSET", "state", "asleep"),
        ("HSET", "confirmations", "[["),
        ("HSET", "digests", "1:2"),
        ("HSET", "session_id", "other"),
        ("HDEL", "fence"),
        ("HDEL", "digests"),
        ("DEL",),
        ("SET", "no row at all"),
    ],
)
async def test_a_damaged_row_is_none_and_can_be_ended(
    subject: Subject, redis_server: RedisServer, damage: tuple[str, ...]
) -> None:
    row = await subject.sign_in()
    other = await subject.sign_in("other")
    command, *values = damage
    redis_server.execute(command, "otpless:session:s-1", *values)
    assert await subject.store.get("s-1") is None
    assert await subject.store.find(token_digest("s-1")) is None
    assert [each.session_id for each in await subject.store.list_user("MO-1")] == ["other"]
    ended = await subject.store.end(row, EndReason.REVOKED, revoke_in=0)
    assert ended.state is State.ENDED
    assert await subject.claim() == ["s-1"]
    assert await subject.store.get("other") == other
