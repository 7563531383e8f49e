"""The shop as one page, for frontends that send the token themselves, and what such pages ask for.

`/header`: the header channel, with the session router's client script. `/frontend`: the OTPLESS SDK keeps and renews
the tokens, and the server only checks them. An application would choose one way; the example shows all, and lets a
browser be signed in one way at a time: a cookie and another token together would be a conflict.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter, HTTPException, Request, Response, WebSocket
from fastapi.responses import HTMLResponse

from example_app.answers import OrderBody, answers
from example_app.cookie import phone_hint
from example_app.layout import AllOrders, Shop, page, products, why_again
from example_app.pages import Html, render
from example_app.settings import ShopSettings
from example_app.shop import PRODUCTS, Orders
from fastapi_otpless_session import CurrentSession, OptionalSession

ABOUT = {
    "header": "This page keeps its session token itself, in the browser's local storage, and shares it with its tabs.",
    "frontend": "This page leaves its tokens to the OTPLESS SDK, which renews them; the shop only checks them.",
}
SWAPPED = {"header": "the token was swapped", "frontend": "the SDK renewed it"}
FORMS = {"header": "form_later", "frontend": "form_headless"}

single = APIRouter()


@single.get("/header", response_class=HTMLResponse, include_in_schema=False)
async def header(request: Request, session: OptionalSession, shop: Shop, why: str = "") -> Response:
    """Show the shop on the header channel."""
    return _app(request, shop, "header", why, signed_in=session is not None)


@single.get("/frontend", response_class=HTMLResponse, include_in_schema=False)
async def frontend(request: Request, session: OptionalSession, shop: Shop, why: str = "") -> Response:
    """Show the shop whose tokens are the SDK's."""
    return _app(request, shop, "frontend", why, signed_in=session is not None)


def _app(request: Request, shop: ShopSettings, way: str, why: str, *, signed_in: bool) -> Response:
    if signed_in:  # a page has no token to send with its own request: it was the cookie
        title = "One way at a time"
        body = render("app_taken", title=title, here=f"/{way}")
        return page(request, title, body, badge=Html(), nav="nav_app", heading=False)
    title = "Tea, fresh from the hills"
    if not shop.app_id:
        return page(request, title, render("sign_in_unset"), badge=Html(), nav="nav_app")
    body = render(
        "app",
        sdk_url=shop.sdk_url,
        app_id=shop.app_id,
        why=why_again(why),
        form=render(FORMS[way], app_id=shop.app_id, headless_url=shop.headless_url),
        hint=phone_hint(shop),
        about=ABOUT[way],
        products=products("buy_button"),
        live=render("live_orders", title="Your orders"),
        demo=_demo(way) if shop.emulator_url else Html(),
        scripts=render(f"app_{way}"),
    )
    return page(request, title, body, badge=render("badge_app"), nav="nav_app", heading=False)


def _demo(way: str) -> Html:
    return render("demo", expires_at="", button=render("expire_app"), then="order something", swapped=SWAPPED[way])


@single.post("/api/orders/{product_id}", status_code=201, tags=["shop"], responses=answers(_404="No such tea"))
async def buy(product_id: str, session: CurrentSession, orders: AllOrders) -> OrderBody:
    """Buy something."""
    product = PRODUCTS.get(product_id)
    if product is None:
        raise HTTPException(404, "There is no such tea.")
    return OrderBody.of(orders.place(session.user_id, product))


@single.websocket("/live/orders")
async def live(websocket: WebSocket, session: CurrentSession, orders: AllOrders) -> None:
    """Tell the customer's orders, and again whenever there is a new one."""
    await websocket.accept()
    telling = asyncio.create_task(_tell(websocket, orders, session.user_id))
    try:
        async for _ in websocket.iter_text():  # nothing is expected; the end of it is
            pass
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling


async def _tell(websocket: WebSocket, orders: Orders, user_id: str) -> None:
    with orders.following(user_id) as placed:
        while True:
            placed.clear()
            told = [OrderBody.of(one).model_dump(mode="json") for one in orders.of(user_id)]
            await websocket.send_json({"orders": told})
            await placed.wait()
