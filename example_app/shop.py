"""What the shop sells, and who bought what. A real shop would have a database for this."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

_ORDERS_KEPT = 20


@dataclass(frozen=True, slots=True)
class Product:
    """Something to buy."""

    id: str
    name: str
    about: str
    rupees: int

    @property
    def price(self) -> str:
        """The price as people write it."""
        return f"₹{self.rupees}"


@dataclass(frozen=True, slots=True)
class Order:
    """Something that was bought."""

    number: int
    product: Product
    placed_at: datetime


PRODUCTS = {
    product.id: product
    for product in (
        Product("assam", "Assam Breakfast", "Malty and strong. Takes milk well. 100\u00a0g", 320),
        Product("darjeeling", "Darjeeling First Flush", "Light, floral, picked in March. 50\u00a0g", 540),
        Product("masala", "Masala Chai", "Cardamom, ginger, clove, black pepper. 100\u00a0g", 280),
        Product("rose", "Rose & Hibiscus", "No caffeine, deep red, good on ice. 80\u00a0g", 260),
    )
}


@dataclass
class Orders:
    """The orders of all customers, by OTPLESS's user id."""

    _by_user: dict[str, list[Order]] = field(default_factory=dict)
    _followers: dict[str, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))
    _last_number: int = 1000

    def of(self, user_id: str) -> list[Order]:
        """A customer's orders, the newest first."""
        return self._by_user.get(user_id, [])

    def place(self, user_id: str, product: Product) -> Order:
        """Note an order."""
        self._last_number += 1
        order = Order(self._last_number, product, datetime.now(UTC))
        self._by_user[user_id] = [order, *self.of(user_id)][:_ORDERS_KEPT]
        for placed in self._followers[user_id]:
            placed.set()
        return order

    @contextmanager
    def following(self, user_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the customer orders something. It tells this process only."""
        placed = asyncio.Event()
        self._followers[user_id].add(placed)
        try:
            yield placed
        finally:
            self._followers[user_id].discard(placed)
