"""A bounded memory: the least recently used entry goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, KeysView
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most `limit` entries. Safe to use from several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.keys: KeysView[K] = self._entries.keys()
        """A live view of the keys. To look there does not count as use."""

    def get(self, key: K) -> V | None:
        """Return an entry, which counts as its use."""
        value = self._entries.get(key)
        if value is not None:
            try:
                self._entries.move_to_end(key)
            except KeyError:  # another thread has just dropped it
                return None
        return value

    def put(self, key: K, value: V) -> V | None:
        """Keep an entry; where there are too many, drop the least recently used and return it."""
        self._entries.pop(key, None)
        self._entries[key] = value
        dropped: V | None = None
        while len(self._entries) > self._limit:
            _, dropped = self._entries.popitem(last=False)
        return dropped

    def items(self) -> list[tuple[K, V]]:
        """Return all entries, the least recently used first."""
        return [*self._entries.items()]

    def drop(self, key: K) -> None:
        """Forget an entry."""
        self._entries.pop(key, None)
