"""A TCP proxy with faults that a test switches on: what a network does to a client and its server.

    with Proxy(redis_server.port) as proxy:
        store = open_store(proxy.through(redis_server.url))
        proxy.cut_after(b"EVALSHA", REQUEST)  # the server does it, and the client does not hear of it

A request is what the client sends, an answer what the server sends. A chunk is what one `recv` gave: between a client
that waits for its answer and a server on the same machine it is one message, up to 64 KiB.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Self

from anyio.from_thread import BlockingPortal, start_blocking_portal
from processes import HOST, steady_port

CHUNK = 65_536
SLICES_PER_SECOND = 20  # into which a throttled chunk is cut


class Direction(Enum):
    REQUEST = "request"
    ANSWER = "answer"


REQUEST, ANSWER = Direction
Marker = bytes | Callable[[bytes], bool]


class CutError(Exception):
    """A trap has caught a chunk: its connection is to be reset."""


@dataclass(frozen=True)
class Trap:
    """Catches the first chunk with a marker, on whatever connection."""

    marker: Marker
    direction: Direction
    delivers: bool

    def catches(self, chunk: bytes, direction: Direction) -> bool:
        if direction is not self.direction:
            return False
        return self.marker in chunk if isinstance(self.marker, bytes) else self.marker(chunk)


@dataclass
class Faults:
    """What is wrong with the network now, besides cuts and black holes."""

    delay: dict[Direction, float] = field(default_factory=dict)
    bytes_per_second: float | None = None
    trap: Trap | None = None


@dataclass
class Counts:
    """What the proxy has seen since it was opened."""

    connections: int = 0
    resets: int = 0
    cuts: int = 0
    """Resets by a trap: others may come of them, or of clients that leave."""
    bytes: dict[Direction, int] = field(default_factory=lambda: {REQUEST: 0, ANSWER: 0})


@dataclass
class Connection:
    """A client, and our own connection to the server on its behalf."""

    client: socket.socket
    server: socket.socket
    answer_is_lost: bool = False
    broken: bool = False

    def way(self, direction: Direction) -> tuple[socket.socket, socket.socket]:
        return (self.client, self.server) if direction is REQUEST else (self.server, self.client)

    def close(self, *, reset: bool) -> None:
        for end in (self.client, self.server):
            if reset:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()


class Proxy:
    """Stands before `host:port`, on a port of its own; a context manager, whose end closes everything.

    Where the server does not let it in, the client is reset.

    It runs in a thread: its methods may be called in tests with and without an event loop, and have taken effect when
    they return.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self.port = steady_port()
        self.counts = Counts()
        self._target = (host, port)
        self._faults = Faults()
        self._flows = asyncio.Event()
        self._listener: socket.socket | None = None
        self._connections: set[asyncio.Task[bool]] = set()
        self._resources = ExitStack()
        self._portal: BlockingPortal

    def __enter__(self) -> Self:
        self._portal = self._resources.enter_context(start_blocking_portal())
        self._resources.callback(self.cut)
        self.restore()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def through(self, url: str) -> str:
        """Return the URL of a server with the proxy in its place."""
        host, port = self._target
        assert f"{host}:{port}" in url
        return url.replace(f"{host}:{port}", f"{HOST}:{self.port}")

    def lead_to(self, port: int) -> None:
        """Take connections from now on to another port, as a name does after a failover; those that are open stay."""
        self._target = (self._target[0], port)

    def cut(self) -> None:
        """Reset all connections, and refuse new ones until `restore`."""
        self._portal.call(self._cut)

    def blackhole(self) -> None:
        """Accept, and hold everything back until `restore`, as where packets are lost on the way."""
        self._portal.call(self._flows.clear)

    def delay(self, seconds: float, *directions: Direction) -> None:
        """Let each chunk wait before it is forwarded, in both directions unless one is given."""
        self._faults.delay = dict.fromkeys(directions or Direction, seconds)

    def throttle(self, bytes_per_second: float) -> None:
        """Forward so many bytes each second, in each direction of each connection."""
        self._faults.bytes_per_second = bytes_per_second

    def cut_before(self, marker: Marker, direction: Direction) -> None:
        """Once, reset the connection in place of forwarding a chunk with a marker: it does not arrive.

        A marker is what the chunk contains, or a function that knows it.
        """
        self._faults.trap = Trap(marker, direction, delivers=False)

    def cut_after(self, marker: Marker, direction: Direction) -> None:
        """Once, forward a chunk with a marker, and then reset the connection.

        A request has been acted on by then: the connection is reset when the server answers, in place of the answer.
        """
        self._faults.trap = Trap(marker, direction, delivers=True)

    def restore(self) -> None:
        """Be a good network again: no faults, what was held back goes on, connections are accepted."""
        self._faults = Faults()
        self._portal.call(self._listen)

    # On the event loop of our thread

    def _listen(self) -> None:
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port))
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):  # who knocked has gone
            client, _ = listener.accept()
            self.counts.connections += 1
            connection = Connection(without_waiting(client), without_waiting(socket.socket()))
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(partial(self._close, connection))

    def _close(self, connection: Connection, task: asyncio.Task[bool]) -> None:
        """Not in `_serve`, whose first line a cancelled task may never reach."""
        in_order = not task.cancelled() and task.result()
        self._connections.discard(task)
        self.counts.resets += not in_order
        connection.close(reset=not in_order)

    async def _cut(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        connections = set(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _serve(self, connection: Connection) -> bool:
        """Forward both directions; return whether both ended in order."""
        await self._flows.wait()
        try:
            await asyncio.get_running_loop().sock_connect(connection.server, self._target)
            async with asyncio.TaskGroup() as pumps:
                for direction in Direction:
                    pumps.create_task(self._pump(connection, direction))
        except* (OSError, CutError):
            connection.broken = True
        return not connection.broken

    async def _pump(self, connection: Connection, direction: Direction) -> None:
        """Forward one direction until its sender has finished."""
        loop = asyncio.get_running_loop()
        source, sink = connection.way(direction)
        while chunk := await self._held_back(loop.sock_recv(source, CHUNK)):
            await self._forward(chunk, connection, direction)
        sink.shutdown(socket.SHUT_WR)

    async def _held_back(self, chunk: Awaitable[bytes]) -> bytes:
        received = await chunk
        await self._flows.wait()
        return received

    async def _forward(self, chunk: bytes, connection: Connection, direction: Direction) -> None:
        await asyncio.sleep(self._faults.delay.get(direction, 0))
        trap = self._spring_trap(chunk, direction)
        if (direction is ANSWER and connection.answer_is_lost) or (trap and not trap.delivers):
            raise self._cut_off()
        if trap and direction is REQUEST:
            connection.answer_is_lost = True
        for piece in self._pieces(chunk):
            await self._send(piece, connection, direction)
        if trap and direction is ANSWER:
            raise self._cut_off()

    def _cut_off(self) -> CutError:
        self.counts.cuts += 1
        return CutError()

    def _spring_trap(self, chunk: bytes, direction: Direction) -> Trap | None:
        trap = self._faults.trap
        if trap is None or not trap.catches(chunk, direction):
            return None
        self._faults.trap = None
        return trap

    def _pieces(self, chunk: bytes) -> Iterator[bytes]:
        rate = self._faults.bytes_per_second
        size = len(chunk) if rate is None else max(1, int(rate / SLICES_PER_SECOND))
        return (chunk[start : start + size] for start in range(0, len(chunk), size))

    async def _send(self, piece: bytes, connection: Connection, direction: Direction) -> None:
        _, sink = connection.way(direction)
        await asyncio.get_running_loop().sock_sendall(sink, piece)
        self.counts.bytes[direction] += len(piece)
        rate = self._faults.bytes_per_second
        if rate is not None:
            await asyncio.sleep(len(piece) / rate)


def without_waiting(connection: socket.socket) -> socket.socket:
    """Set up one end: it does not block, and small chunks leave at once."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
