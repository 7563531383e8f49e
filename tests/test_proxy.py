"""The proxy of the tests: each fault does what it says, and nothing is left behind."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import redis
from backends import RedisServer
from processes import HOST, PATIENCE, steady_port, wait_until
from proxy import ANSWER, REQUEST, Direction, Proxy

LARGE = b"x" * 1_000_000 + b"\n"


class Server(socketserver.ThreadingTCPServer):
    """Says of each line that it is done."""

    def __init__(self) -> None:
        super().__init__((HOST, 0), Handler)
        self.port = int(self.server_address[1])
        self.done: list[bytes] = []


class Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        with suppress(ConnectionError):  # it is cut off often here
            for line in self.rfile:
                self.server.done.append(line)
                self.wfile.write(b"done " + line)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((HOST, proxy.port), timeout=PATIENCE)


def ask(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line)
    return read_line(client)


def read_line(client: socket.socket) -> bytes:
    """Read to the end of a line, or of what there is."""
    received = b""
    while not received.endswith(b"\n"):
        chunk = client.recv(65_536)
        if not chunk:
            break
        received += chunk
    return received


def test_a_good_network_forwards_and_counts(server: Server, proxy: Proxy) -> None:
    with connect(proxy) as client, connect(proxy) as other:
        assert ask(client, b"one\n") == b"done one\n"
        assert ask(other, LARGE) == b"done " + LARGE
        other.shutdown(socket.SHUT_WR)
        assert other.recv(1) == b""
    assert server.done == [b"one\n", LARGE]
    assert (proxy.counts.connections, proxy.counts.resets) == (2, 0)
    assert proxy.counts.bytes == {REQUEST: 4 + len(LARGE), ANSWER: 9 + len(LARGE) + 5}


def test_a_cut_resets_and_refuses_until_all_is_well_again(proxy: Proxy) -> None:
    with connect(proxy) as client:
        ask(client, b"one\n")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
    assert proxy.counts.resets == 1
    proxy.restore()
    with connect(proxy) as client:
        assert ask(client, b"two\n") == b"done two\n"


def test_a_black_hole_gives_back_what_it_took(server: Server, proxy: Proxy) -> None:
    with connect(proxy) as before:
        ask(before, b"one\n")
        proxy.blackhole()
        with connect(proxy) as after:
            for client in (before, after):
                client.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    ask(client, b"two\n")
                client.settimeout(PATIENCE)
            assert server.done == [b"one\n"]
            proxy.restore()
            assert [read_line(client) for client in (before, after)] == [b"done two\n"] * 2


@pytest.mark.parametrize(("directions", "expected"), [((REQUEST,), 0.1), ((ANSWER,), 0.1), ((), 0.2)])
def test_a_delay_is_waited_out(proxy: Proxy, directions: tuple[Direction, ...], expected: float) -> None:
    with connect(proxy) as client:
        ask(client, b"one\n")
        proxy.delay(0.1, *directions)
        started = time.monotonic()
        ask(client, b"two\n")
        assert time.monotonic() - started >= expected
        proxy.delay(0)
        ask(client, b"three\n")


def test_a_throttled_line_takes_its_time(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.throttle(500)
        started = time.monotonic()
        ask(client, b"x" * 95 + b"\n")  # 96 bytes there and 101 back
        assert time.monotonic() - started >= 0.3


def test_a_request_is_cut_off_before_it_arrives(server: Server, proxy: Proxy) -> None:
    proxy.cut_before(b"two", REQUEST)
    with connect(proxy) as client:
        ask(client, b"one\n")
        with pytest.raises(ConnectionResetError):
            ask(client, b"two\n")
    assert server.done == [b"one\n"]
    with connect(proxy) as client:
        assert ask(client, b"two\n") == b"done two\n"  # a trap catches once


def test_a_request_is_acted_on_and_its_answer_is_lost(server: Server, proxy: Proxy) -> None:
    proxy.cut_after(b"two", REQUEST)
    with connect(proxy) as client:
        ask(client, b"one\n")
        with pytest.raises(ConnectionResetError):
            ask(client, b"two\n")
    assert server.done == [b"one\n", b"two\n"]
    assert proxy.counts.resets == 1


def test_an_answer_is_cut_off(server: Server, proxy: Proxy) -> None:
    proxy.cut_before(lambda chunk: chunk.startswith(b"done two"), ANSWER)
    with connect(proxy) as client:
        ask(client, b"one\n")
        with pytest.raises(ConnectionResetError):
            ask(client, b"two\n")
    assert server.done == [b"one\n", b"two\n"]


def test_an_answer_arrives_and_is_the_last(proxy: Proxy) -> None:
    proxy.cut_after(b"one", ANSWER)
    with connect(proxy) as client:
        assert ask(client, b"one\n") == b"done one\n"
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_server_that_is_not_there_is_a_reset() -> None:
    with Proxy(steady_port()) as proxy:
        with pytest.raises(ConnectionResetError), connect(proxy) as client:
            client.recv(1)
        assert proxy.counts.resets == 1


def test_a_proxy_leaves_nothing_behind(server: Server) -> None:
    threads = threading.active_count()
    with Proxy(server.port) as proxy:
        clients = [connect(proxy) for _ in range(3)]
        ask(clients[0], b"one\n")
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    wait_until(lambda: threading.active_count() == threads, "for the server to see its clients gone")


async def test_a_proxy_works_beside_a_running_event_loop(proxy: Proxy) -> None:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    writer.write(b"one\n")
    assert await reader.readline() == b"done one\n"
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        await reader.readline()
    writer.close()


def test_a_proxy_stands_before_redis(redis_server: RedisServer) -> None:
    with Proxy(redis_server.port) as proxy, redis.from_url(proxy.through(redis_server.url)) as client:
        client.set("a", "1")
        proxy.cut_after(b"INCR", REQUEST)
        with pytest.raises(redis.ConnectionError):
            client.incr("a")
        assert client.get("a") == b"2"
