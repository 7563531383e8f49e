"""The shop as pages, for whom the session is a cookie: nothing in a page knows of tokens."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from example_app.layout import AllOrders, Shop, Visitor, identity, local_path, page, products, why_again
from example_app.pages import Html, local_time, render, render_all
from example_app.settings import ShopSettings
from example_app.shop import PRODUCTS
from fastapi_otpless_session import CurrentSession, CurrentSessionDetails, OptionalSession, Sessions

pages = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


@pages.get("/")
async def front(request: Request, session: OptionalSession, visitor: Visitor) -> Response:
    """Show what there is to buy."""
    body = render("front", products=products("buy_form"))
    return page(request, "Tea, fresh from the hills", body, session=session, visitor=visitor, heading=False)


@pages.get("/sign-in")
async def sign_in(
    request: Request,
    session: OptionalSession,
    shop: Shop,
    *,
    next: str = "/",  # noqa: A002 - the name that everybody knows from elsewhere
    why: str = "",
    form: Literal["prebuilt", "headless"] = "prebuilt",
) -> Response:
    """Show OTPLESS's own form, or ours over its headless SDK."""
    target = local_path(next)
    if session is not None:
        return RedirectResponse(target, 303)
    shown = _form(shop, form, target) if shop.app_id else render("sign_in_unset")
    body = render("sign_in", form=shown, hint=phone_hint(shop), why=why_again(why))
    return page(request, "Sign in", body, badge=Html(), heading=False)


def _form(shop: ShopSettings, form: str, target: str) -> Html:
    other, words = ("headless", "Use the shop's own form") if form == "prebuilt" else ("prebuilt", "Use OTPLESS's form")
    return render(
        "sign_in_form",
        next=target,
        form=render(f"form_{form}", app_id=shop.app_id, sdk_url=shop.sdk_url, headless_url=shop.headless_url),
        other=words,
        other_url="/sign-in?" + urlencode({"next": target, "form": other}, safe="/"),
    )


def phone_hint(shop: ShopSettings) -> Html:
    """Return where the codes arrive, if that is no real phone."""
    return render("phone_hint", url=shop.emulator_url) if shop.emulator_url else Html()


@pages.get("/orders")
async def orders(request: Request, session: CurrentSession, visitor: Visitor, orders: AllOrders) -> Response:
    """Show what the visitor bought."""
    rows: list[dict[str, object]] = [
        {
            "number": one.number,
            "name": one.product.name,
            "price": one.product.price,
            "placed_at": local_time(one.placed_at),
        }
        for one in orders.of(session.user_id)
    ]
    listed = render("orders_list", rows=render_all("order", rows)) if rows else render("orders_none")
    body = render("orders", listed=listed)
    return page(request, "Your orders", body, session=session, visitor=visitor)


@pages.post("/orders/{product_id}")
async def buy(product_id: str, session: CurrentSession, orders: AllOrders) -> Response:
    """Buy something."""
    product = PRODUCTS.get(product_id)
    if product is None:
        raise HTTPException(404, "There is no such tea.")
    orders.place(session.user_id, product)
    # The swap happened on this request, so the page that comes next has to be told.
    return RedirectResponse("/orders?swapped" if session.refreshed else "/orders", 303)


@pages.get("/live")
async def live(request: Request, session: CurrentSession, visitor: Visitor) -> Response:
    """Show the orders as they are placed, over a websocket."""
    body = render("live", orders=render("live_orders", title="Your orders"))
    return page(request, "Live", body, session=session, visitor=visitor)


@pages.get("/account")
async def account(
    request: Request, session: CurrentSession, details: CurrentSessionDetails, sessions: Sessions, visitor: Visitor
) -> Response:
    """Show the session, what OTPLESS knows about it, and the visitor's devices."""
    devices: list[dict[str, object]] = [
        {
            "device": one.device or "Unknown device",
            "place": one.place or "unknown place",
            "created_at": local_time(one.created_at),
            "last_seen_at": local_time(one.last_seen_at),
            "action": render("device_current")
            if one.id == session.id
            else render("device_end", id=one.id, device=one.device or "the unknown device", place=one.place or ""),
        }
        for one in await sessions.list(session.user_id)
    ]
    identities: list[dict[str, object]] = [
        {
            "value": identity(one.identity_type, one.identity_value),
            "channel": (one.channel or one.identity_type or "").replace("_", " ").title(),
            "verified": "verified" if one.verified else "not verified",
        }
        for one in details.identities
    ]
    browser, network = details.device_info, details.network
    body = render(
        "account",
        session_id=session.id,
        user_id=session.user_id,
        name=session.name or "–",
        email=session.email or "–",
        issued_at=local_time(session.issued_at),
        expires_at=local_time(session.expires_at),
        expires_at_iso=session.expires_at.isoformat(),
        validated_at=local_time(session.validated_at),
        identities=render_all("identity", identities),
        started_at=local_time(details.started_at),
        browser=(browser and browser.browser) or "–",
        platform=(browser and browser.platform) or "–",
        ip=(network and network.ip) or "–",
        devices=render_all("device", devices),
    )
    return page(request, "Your account", body, session=session, visitor=visitor)
