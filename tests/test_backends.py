"""The servers of the tests: they answer, come back where they were, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from backends import EMPTY_DATABASE, SHARED_STORES, MakeRedis, PostgresServer, RedisCluster, RedisServer
from processes import HOST, PATIENCE, wait_until
from redis.backoff import NoBackoff
from redis.retry import Retry

pytestmark = pytest.mark.varied

HERE = Path(__file__).parent

KILLED = """
import os, pathlib, signal

def test_is_killed(redis_server, postgres_server):
    servers = [redis_server, postgres_server]
    pathlib.Path("servers").write_text("".join(f"{server.pid} {server.room}\\n" for server in servers))
    redis_server.pause()
    os.kill(os.getpid(), signal.SIGKILL)
"""

NEEDS_REDIS = """
def test_needs_redis(redis_server):
    pass

def test_needs_redis_too(make_redis):
    make_redis()
"""


def test_redis_comes_back_on_its_port_and_is_empty(redis_server: RedisServer) -> None:
    url = redis_server.url
    redis_server.execute("SET", "a", "1")
    redis_server.stop()
    with pytest.raises(redis.ConnectionError):
        redis_server.execute("PING")
    redis_server.start()
    assert redis_server.url == url
    assert redis_server.execute("GET", "a") is None
    with redis.from_url(redis_server.socket_url) as client:
        assert client.ping()


def test_redis_keeps_what_it_is_told_to_keep_even_over_a_crash(make_redis: MakeRedis) -> None:
    server = make_redis(appendonly="yes", appendfsync="always")
    server.execute("SET", "a", "1")
    server.crash()
    server.start()
    assert server.execute("GET", "a") == "1"


def test_redis_takes_options(make_redis: MakeRedis) -> None:
    server = make_redis(maxmemory="1kb")
    with pytest.raises(redis.OutOfMemoryError):
        server.execute("SET", "a", "1")


def test_a_replica_has_what_its_primary_has(make_redis: MakeRedis) -> None:
    primary = make_redis()
    primary.execute("SET", "a", "1")
    assert make_redis(replica_of=primary).execute("GET", "a") == "1"


def test_a_paused_server_takes_connections_and_says_nothing(redis_server: RedisServer) -> None:
    redis_server.pause()
    with redis.Redis(port=redis_server.port, socket_timeout=0.1, retry=Retry(NoBackoff(), 0)) as client:
        with pytest.raises(redis.TimeoutError):
            client.ping()
        redis_server.resume()
    assert redis_server.execute("PING") is True


def test_the_next_test_has_its_server_back(
    redis_server: RedisServer, postgres_server: PostgresServer, redis_cluster: RedisCluster
) -> None:
    redis_server.stop()
    postgres_server.pause()
    redis_cluster.nodes[0].crash()
    redis_cluster.nodes[1].pause()
    for server in (redis_server, postgres_server, redis_cluster):
        server.make_ready()
    assert redis_server.execute("PING") is True
    assert postgres_server.execute("SELECT 1") == "1"
    assert [node.execute("PING") for node in redis_cluster.nodes] == [True] * RedisCluster.SIZE


def test_a_cluster_has_all_slots_and_forgets_between_tests(redis_cluster: RedisCluster) -> None:
    with redis.RedisCluster(HOST, redis_cluster.port, decode_responses=True) as client:
        keys = [f"key-{number}" for number in range(30)]
        for key in keys:
            client.set(key, key)
        assert [client.get(key) for key in keys] == keys
        assert all(node.execute("DBSIZE") for node in redis_cluster.nodes)
        redis_cluster.empty()
        assert client.dbsize() == 0


def test_postgres_keeps_what_is_committed_over_a_crash(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url:
        postgres_server.execute("CREATE TABLE a AS SELECT 1 AS one", url)
        postgres_server.crash()
        postgres_server.start()
        assert postgres_server.execute("SELECT one FROM a", url) == "1"
    assert postgres_server.execute("SELECT 2", postgres_server.socket_url) == "2"


def test_postgres_gives_each_test_an_empty_database(postgres_server: PostgresServer) -> None:
    with postgres_server.database() as url, postgres_server.database() as other:
        assert url != other
        postgres_server.execute("CREATE TABLE a (); CREATE SCHEMA b; CREATE TABLE b.c ()", url)
        command = [*postgres_server.psql(url), "-c", "SELECT 'here'", "-c", "BEGIN; LOCK a; SELECT pg_sleep(600)"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:  # noqa: S603
            assert client.stdout is not None
            client.stdout.readline()
            postgres_server.execute(EMPTY_DATABASE, url)
            assert client.wait(PATIENCE) != 0
        for each in (url, other):
            schemas = postgres_server.execute("SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'", each)
            assert sorted(schemas.splitlines()) == ["information_schema", "public"]
            assert postgres_server.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", each) == "0"


def test_a_paused_postgres_freezes_open_connections_too(postgres_server: PostgresServer) -> None:
    command = [*postgres_server.psql(), "-c", "SELECT 'here'", "-c", "SELECT pg_sleep(0.2)", "-c", "SELECT 'done'"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:  # noqa: S603
        assert client.stdout is not None
        assert client.stdout.readline() == "here\n"
        postgres_server.pause()
        with pytest.raises(subprocess.TimeoutExpired):
            client.wait(0.5)
        postgres_server.resume()
        assert client.stdout.read().split() == ["done"]


def test_each_store_has_a_url(any_store_url: str, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["any_store_url"]
    schemes = {"memory": "memory", "sqlite": "sqlite", "postgresql": "postgresql", "redis": "redis", "cluster": "redis"}
    assert any_store_url.partition("://")[0] == schemes[kind]
    assert (kind == "cluster") == ("," in any_store_url)


def test_shared_stores_are_all_but_memory(store_url: str) -> None:
    assert not store_url.startswith("memory")
    assert len(SHARED_STORES) == 4


@pytest.mark.usefixtures("redis_server", "postgres_server")  # skipped where these are
def test_servers_end_with_tests_that_are_killed(tmp_path: Path) -> None:
    answer = _pytest(tmp_path, KILLED)
    assert answer.returncode == -9
    servers = [line.split() for line in (tmp_path / "servers").read_text().splitlines()]
    assert len(servers) == 2
    wait_until(lambda: not any(_runs(pid) for pid, _ in servers), "for the servers to end")
    wait_until(lambda: not any(Path(room).exists() for _, room in servers), "for their files to go")


def _runs(pid: str) -> bool:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_what_is_not_installed_is_skipped_and_said(tmp_path: Path) -> None:
    answer = _pytest(tmp_path, NEEDS_REDIS, PATH="", REQUIRE_SERVERS="")
    assert answer.returncode == 0
    (line,) = (line for line in answer.stdout.splitlines() if line.startswith("SKIPPED"))
    assert line.startswith("SKIPPED [2] ")
    assert line.endswith("redis-server is not installed (Debian: apt-get install redis-server)")


def test_what_has_to_be_installed_is_not_skipped(tmp_path: Path) -> None:
    answer = _pytest(tmp_path, NEEDS_REDIS, PATH="", REQUIRE_SERVERS="1")
    assert answer.returncode == 1
    assert "REQUIRE_SERVERS=1, but redis-server is not installed" in answer.stdout


def _pytest(directory: Path, test: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a test in a pytest of its own."""
    (directory / "test_inner.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-p", "backends", "-p", "no:cacheprovider", "-ra", "-s", str(directory)]
    environ = {**os.environ, "PYTHONPATH": str(HERE), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables}
    return subprocess.run(command, env=environ, cwd=directory, capture_output=True, text=True, check=False)  # noqa: S603
