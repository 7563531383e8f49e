"""Redis Cluster: which node has a key, and one redis-py client for each node.

redis-py has a Cluster client, and it does not fit here: it repeats commands whose answer was lost, which must not be
done to a transition; it uses a node's connection again without looking whether an old answer is still on it; and while
one primary is down it may open no connection to the others (seen with 8.1). Our commands have one key each, so that
what is needed of the Cluster specification (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)
is the slot map and the two redirections. A redirected command was not executed, so that sending it on is safe.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

REDIRECTIONS = 5
REFRESH_SECONDS = 1.0
"""How often the slot map is learnt anew at most."""
ASK_SECONDS = 1.0
"""How long a node may take to tell the slot map."""
NODE_SECONDS = 2.0
"""How long a node may take for a command; the next one is then asked for the slot map."""
NODE_CONNECTIONS = 50
UNKNOWN_HOSTS = {"", "?"}

Node = tuple[str, int]
Work = Callable[[Redis], Awaitable[Any]]


class Cluster:
    """The nodes of a Cluster, found through `seeds`; `connect` makes a client for a node, without connecting yet."""

    def __init__(self, connect: Callable[[Node], Redis], seeds: Sequence[Node]) -> None:
        self._connect = connect
        self._nodes = list(seeds)
        """Whom to ask for the slot map: those that failed last."""
        self._clients: dict[Node, Redis] = {}
        self._rooms: dict[Node, asyncio.Semaphore] = {}
        self._starts: list[int] = []
        self._owners: list[Node] = []
        self._is_stale = True
        self._refreshed_at = -REFRESH_SECONDS
        self._refreshing = asyncio.Lock()

    async def do(self, key: str, work: Work) -> Any:
        """Have something done at the node that has a key."""
        slot = key_slot(key.encode())
        node = await self._owner(slot)
        for _ in range(REDIRECTIONS):
            try:
                return await self._at(node, work)
            except MovedError as error:
                node = self._endpoint(error, node)
                self._is_stale = True
            except AskError as error:
                return await self._ask(self._endpoint(error, node), work)
        raise ClusterDownError("the nodes send us round in circles")

    async def do_anywhere(self, work: Work) -> Any:
        """Have something done at whichever node answers."""
        await self._refresh_if_stale()
        failure: Exception | None = None
        for node in list(self._nodes):
            try:
                return await self._at(node, work)
            except RedisConnectionError as error:
                failure = error
        raise RedisConnectionError(f"no node of the Cluster answers: {failure}")

    async def close(self) -> None:
        """Close all connections."""
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.aclose()

    async def _at(self, node: Node, work: Work) -> Any:
        """Have something done at a node. One that hangs is found out, and keeps nobody from the others."""
        room = self._rooms.setdefault(node, asyncio.Semaphore(NODE_CONNECTIONS))
        try:
            async with asyncio.timeout(NODE_SECONDS), room:
                return await work(self._client(node))
        except (RedisConnectionError, ClusterDownError):
            self._failed(node)
            raise
        except (TimeoutError, RedisTimeoutError):
            self._failed(node)
            raise RedisConnectionError(f"{node[0]}:{node[1]} does not answer") from None

    def _client(self, node: Node) -> Redis:
        client = self._clients.get(node)
        if client is None:
            client = self._clients[node] = self._connect(node)
        return client

    async def _ask(self, node: Node, work: Work) -> Any:
        """Have something done at the node that a slot is moving to: the connection must say ASKING right before."""
        async with self._client(node).client() as once:  # keeps to one connection
            await once.execute_command("ASKING")  # type: ignore[no-untyped-call]
            return await work(once)

    @staticmethod
    def _endpoint(error: AskError, node: Node) -> Node:
        return (node[0] if error.host in UNKNOWN_HOSTS else error.host), error.port

    def _failed(self, node: Node) -> None:
        self._is_stale = True
        if node in self._nodes:
            self._nodes.remove(node)
            self._nodes.append(node)

    async def _owner(self, slot: int) -> Node:
        await self._refresh_if_stale()
        place = bisect_right(self._starts, slot) - 1
        if place < 0:
            self._is_stale = True
            raise ClusterDownError("no node has this key's slot")
        return self._owners[place]

    async def _refresh_if_stale(self) -> None:
        """Learn the slot map anew, once for all who want it, and not more often than once a second."""
        if self._wants_refresh():
            async with self._refreshing:
                if self._wants_refresh():
                    self._refreshed_at = time.monotonic()
                    await self._refresh()

    def _wants_refresh(self) -> bool:
        is_due = not self._owners or time.monotonic() - self._refreshed_at >= REFRESH_SECONDS
        return self._is_stale and is_due

    async def _refresh(self) -> None:
        """Learn the slot map from the first node that answers."""
        failure: Exception | None = None
        for node in list(self._nodes):
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    ranges = await self._client(node).execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except (RedisError, OSError) as error:
                self._failed(node)
                failure = error
            else:
                if ranges:
                    self._take(node, ranges)
                    return
                failure = ClusterDownError(f"{node[0]}:{node[1]} knows of no slots")
        raise RedisConnectionError(f"no node of the Cluster answers: {failure}")

    def _take(self, asked: Node, ranges: Sequence[Any]) -> None:
        found = sorted((int(start), _address(primary, asked)) for start, _, primary, *_ in ranges)
        self._starts = [start for start, _ in found]
        self._owners = [node for _, node in found]
        self._nodes = list(dict.fromkeys([asked, *self._owners, *self._nodes]))
        self._is_stale = False


def _address(primary: Sequence[Any], asked: Node) -> Node:
    """Return a node's address; one that does not say its host is at the host that was asked."""
    host = bytes(primary[0] or b"").decode()
    return (asked[0] if host in UNKNOWN_HOSTS else host), int(primary[1])
