"""The shop: pages for everybody, pages for those who are signed in, and three lines for the sessions.

uvicorn example_app.main:app
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode, urlsplit

import httpx
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from example_app.pages import Html, local_time, render, render_all
from example_app.settings import ShopSettings
from example_app.shop import PRODUCTS, Orders
from fastapi_otpless_session import (
    CurrentSession,
    CurrentSessionDetails,
    OptionalSession,
    OtplessSessionError,
    OtplessSessionMiddleware,
    RefusalError,
    Session,
    SessionRefusedError,
    Sessions,
    SessionUnavailableError,
    create_session_router,
)

WHY_AGAIN = {
    "session_expired": "Your session has ended. Sign in again to go on.",
    "session_revoked": "You were signed out. Sign in again to go on.",
    "session_reused": "For your safety, this session was ended. Sign in again to go on.",
    "session_invalid": "This browser's session isn't known any more. Sign in again to go on.",
}

pages = APIRouter(default_response_class=HTMLResponse, include_in_schema=False)


def create_app(settings: ShopSettings | None = None) -> FastAPI:
    """Build the application. The sessions' settings are read at startup, from `OTPLESS_*`."""
    app = FastAPI(title="Chai Corner")
    app.state.shop = settings or ShopSettings()
    app.state.orders = Orders()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth")
    app.include_router(pages)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_exception_handler(RefusalError, show_refusal)
    return app


# What the pages need


def _shop(request: Request) -> ShopSettings:
    found: ShopSettings = request.app.state.shop
    return found


def _orders(request: Request) -> Orders:
    found: Orders = request.app.state.orders
    return found


Shop = Annotated[ShopSettings, Depends(_shop)]
AllOrders = Annotated[Orders, Depends(_orders)]


async def _visitor(session: OptionalSession, sessions: Sessions) -> str:
    """What to call whoever is signed in; somebody who signed in by phone may have no name."""
    if session is None:
        return ""
    known = session.name or session.email
    if known or session.stale:
        return known or "you"
    try:
        identities = (await sessions.details(session)).identities
    except OtplessSessionError:
        return "you"
    return next((_identity(one.identity_type, one.identity_value) for one in identities), "you")


Visitor = Annotated[str, Depends(_visitor)]


def _identity(kind: str | None, value: str | None) -> str:
    return f"+{value}" if kind == "MOBILE" and value else value or "–"


def _page(
    request: Request,
    title: str,
    body: Html,
    *,
    session: Session | None = None,
    visitor: str = "",
    badge: Html | None = None,
    status: int = 200,
) -> HTMLResponse:
    shop = _shop(request)
    if session is not None:
        badge = render("badge", visitor=visitor, expires_at=session.expires_at.isoformat())
    whole = render(
        "layout",
        title=title,
        badge=render("signed_out") if badge is None else badge,
        flashes=Html("".join(_flashes(request, session))),
        demo=render("demo") if session and shop.emulator_url else Html(),
        body=body,
        phone=render("phone_link", url=shop.emulator_url) if shop.emulator_url else Html(),
    )
    # What is somebody's own doesn't belong into a cache, nor into the back button after a sign-out.
    return HTMLResponse(whole, status, {"Cache-Control": "no-store", "X-Frame-Options": "DENY"})


def _flashes(request: Request, session: Session | None) -> Sequence[Html]:
    if session is None:
        return []
    found = []
    if session.refreshed or "swapped" in request.query_params:
        found.append(_flash("good", "Your session token was swapped just now — you didn't notice."))
    if session.stale:
        found.append(_flash("note", "OTPLESS can't be reached at the moment. You stay signed in."))
    return found


def _flash(kind: str, text: str) -> Html:
    return render("flash", kind=kind, text=text)


def local_path(wanted: str) -> str:
    """Return `wanted` if it is a path of this site, else the front page: a link must not lead elsewhere."""
    plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    if not plain or not wanted.startswith("/") or wanted.startswith("//"):
        return "/"
    parts = urlsplit(wanted)
    return "/" if parts.scheme or parts.netloc else wanted


# Refusals, as pages


async def show_refusal(request: Request, error: Exception) -> Response:
    """Send people to the sign-in page or show them one; programs get the package's JSON."""
    if not isinstance(error, RefusalError):
        raise error
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    if isinstance(error, SessionRefusedError):
        return RedirectResponse(_sign_in_url(request, error.code), 303)
    return _refusal_page(request, error)


def _sign_in_url(request: Request, why: str) -> str:
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    query = {"next": asked if request.method == "GET" else "/"}
    if why in WHY_AGAIN:
        query["why"] = why
    return "/sign-in?" + urlencode(query, safe="/")


def _refusal_page(request: Request, error: RefusalError) -> Response:
    headers = dict(error.headers or {})
    if isinstance(error, SessionUnavailableError):
        body = render("unavailable", again=request.url.path if request.method == "GET" else "/")
        title = "One moment"
    else:
        body, title = render("refused", message=error.message), "That didn't work"
    response = _page(request, title, body, badge=Html(), status=error.status_code)
    response.headers.update(headers)
    return response


# Pages


@pages.get("/")
async def front(request: Request, session: OptionalSession, visitor: Visitor) -> Response:
    """Show what there is to buy."""
    rows: list[dict[str, object]] = [
        {"id": one.id, "name": one.name, "about": one.about, "price": f"₹{one.rupees}", "picture": one.picture}
        for one in PRODUCTS.values()
    ]
    body = render("front", products=render_all("product", rows))
    return _page(request, "Tea, fresh from the hills", body, session=session, visitor=visitor)


@pages.get("/sign-in")
async def sign_in(
    request: Request,
    session: OptionalSession,
    shop: Shop,
    next: str = "/",  # noqa: A002 - the name that everybody knows from elsewhere
    why: str = "",
) -> Response:
    """Show OTPLESS's own form."""
    target = local_path(next)
    if session is not None:
        return RedirectResponse(target, 303)
    form = "sign_in_form" if shop.app_id else "sign_in_unset"
    values = {"sdk_url": shop.sdk_url, "app_id": shop.app_id, "next": target} if shop.app_id else {}
    hint = render("phone_hint", url=shop.emulator_url) if shop.emulator_url else Html()
    reason = _flash("note", WHY_AGAIN[why]) if why in WHY_AGAIN else Html()
    body = render("sign_in", form=render(form, **values), hint=hint, why=reason)
    return _page(request, "Sign in", body, badge=Html())


@pages.get("/orders")
async def orders(request: Request, session: CurrentSession, visitor: Visitor, orders: AllOrders) -> Response:
    """Show what the visitor bought."""
    rows: list[dict[str, object]] = [
        {
            "number": one.number,
            "name": one.product.name,
            "price": f"₹{one.product.rupees}",
            "placed_at": local_time(one.placed_at),
        }
        for one in orders.of(session.user_id)
    ]
    listed = render("orders_list", rows=render_all("order", rows)) if rows else render("orders_none")
    body = render("orders", listed=listed)
    return _page(request, "Your orders", body, session=session, visitor=visitor)


@pages.post("/orders/{product_id}")
async def buy(product_id: str, session: CurrentSession, orders: AllOrders) -> Response:
    """Buy something."""
    product = PRODUCTS.get(product_id)
    if product is None:
        raise HTTPException(404, "There is no such tea.")
    orders.place(session.user_id, product)
    # The swap happened on this request, so the page that comes next has to be told.
    return RedirectResponse("/orders?swapped" if session.refreshed else "/orders", 303)


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
            "action": render("device_current") if one.id == session.id else render("device_end", id=one.id),
        }
        for one in await sessions.list(session.user_id)
    ]
    identities: list[dict[str, object]] = [
        {
            "value": _identity(one.identity_type, one.identity_value),
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
    return _page(request, "Your account", body, session=session, visitor=visitor)


@pages.post("/demo/expire", status_code=204)
async def expire(session: CurrentSession, shop: Shop) -> Response:
    """Make the emulator expire the visitor's token, as time would."""
    if not shop.emulator_url:
        raise HTTPException(404, "There is no emulator.")
    url = f"{shop.emulator_url}/_emulator/expire"
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            (await client.post(url, json={"sessionId": session.id})).raise_for_status()
    except httpx.HTTPError:
        raise HTTPException(502, "The emulator didn't do it. Is it running?") from None
    return Response(status_code=204)


app = create_app()
