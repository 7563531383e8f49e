"""What the shop answers programs with, for its OpenAPI: pages are for people, and not in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel

from example_app.shop import Order


class OrderBody(BaseModel):
    """An order, as the page's script shows it."""

    number: int
    name: str
    price: str
    placed_at: datetime

    @classmethod
    def of(cls, order: Order) -> OrderBody:
        """Make it of an order."""
        return cls(number=order.number, name=order.product.name, price=order.product.price, placed_at=order.placed_at)


class Problem(BaseModel):
    """Why the shop did not do it."""

    detail: str


class WhyRefused(BaseModel):
    """Why a session was refused."""

    code: str
    message: str


class Refusal(BaseModel):
    """The body of every refusal for want of a session."""

    detail: WhyRefused


def answers(**others: str) -> dict[int | str, dict[str, Any]]:
    """Describe the refusals of every route that needs a session, and the route's own: `_404="No such tea"`."""
    refusals = {400: "Credentials that disagree", 401: "No session", 403: "From another site", 503: "No verdict now"}
    found: dict[int | str, dict[str, Any]] = {}
    for status, why in refusals.items():
        found[status] = {"model": Refusal, "description": why}
    for name, why in others.items():
        found[int(name[1:])] = {"model": Problem, "description": why}
    return found
