"""A bounded memory: the least recently used entry goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most `limit` entries. Each operation is atomic for the threads of a process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.has: Callable[[object], bool] = self._entries.__contains__
        """Whether there is an entry; asking is no use of it."""
        self._use = self._entries.move_to_end

    def get(self, key: K) -> V | None:
        """Return an entry, which counts as its use."""
        try:
            self._use(key)
            return self._entries[key]
        except KeyError:
            return None

    def put(self, key: K, value: V) -> None:
        """Keep an entry, dropping the least recently used where there are too many."""
        self._entries.pop(key, None)
        self._entries[key] = value
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def items(self) -> list[tuple[K, V]]:
        """Return all entries, the least recently used first."""
        return [*self._entries.items()]

    def drop(self, key: K) -> None:
        """Forget an entry."""
        self._entries.pop(key, None)

    def __len__(self) -> int:
        return len(self._entries)
