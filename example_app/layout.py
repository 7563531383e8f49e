"""What all pages of the shop have in common: the frame, messages, and whoever is signed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection
from fastapi.responses import HTMLResponse

from example_app.pages import Html, render, render_all
from example_app.settings import ShopSettings
from example_app.shop import PRODUCTS, Orders
from fastapi_otpless_session import OptionalSession, OtplessSessionError, Session, Sessions

WHY_AGAIN = {
    "session_expired": "Your session has ended. Sign in again to go on.",
    "session_revoked": "You were signed out. Sign in again to go on.",
    "session_reused": "For your safety, this session was ended. Sign in again to go on.",
    "session_invalid": "This browser's session isn't known any more. Sign in again to go on.",
    "signed_out": "You are signed out.",
}


def _shop(connection: HTTPConnection) -> ShopSettings:
    found: ShopSettings = connection.app.state.shop
    return found


def _orders(connection: HTTPConnection) -> Orders:
    found: Orders = connection.app.state.orders
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
    return next((identity(one.identity_type, one.identity_value) for one in identities), "you")


Visitor = Annotated[str, Depends(_visitor)]


def identity(kind: str | None, value: str | None) -> str:
    """Return a phone number or an address as people write it."""
    return f"+{value}" if kind == "MOBILE" and value else value or "–"


def page(
    request: Request,
    title: str,
    body: Html,
    *,
    session: Session | None = None,
    visitor: str = "",
    badge: Html | None = None,
    nav: str = "nav",
    heading: bool = True,
    status: int = 200,
) -> HTMLResponse:
    """Return a whole page. `heading`: whether the title is its headline, or `body` has one."""
    shop = request.app.state.shop
    if session is not None:
        badge = render("badge", visitor=visitor)
    whole = render(
        "layout",
        title=title,
        mark=Html(" data-signed-in") if session else Html(),
        nav=render(nav),
        badge=render("signed_out") if badge is None else badge,
        flashes=Html("".join(_flashes(request, session))),
        heading=render("heading", title=title) if heading else Html(),
        demo=_demo(session) if session and shop.emulator_url else Html(),
        body=body,
        phone=render("phone_link", url=shop.emulator_url) if shop.emulator_url else Html(),
    )
    # What is somebody's own doesn't belong into a cache, nor into the back button after a sign-out.
    return HTMLResponse(whole, status, {"Cache-Control": "no-store", "X-Frame-Options": "DENY"})


def _demo(session: Session) -> Html:
    return render(
        "demo",
        expires_at=session.expires_at.isoformat(),
        button=render("expire_cookie"),
        then="click anything",
        swapped="the token was swapped",
    )


def _flashes(request: Request, session: Session | None) -> Sequence[Html]:
    if session is None:
        return []
    found = []
    if "again" in request.query_params:
        found.append(flash("good", "You are signed in. Order again."))
    if session.refreshed or "swapped" in request.query_params:
        found.append(flash("good", "Your session token was swapped just now — you didn't notice."))
    if session.stale:
        found.append(flash("note", "OTPLESS can't be reached at the moment. You stay signed in."))
    return found


def flash(kind: str, text: str) -> Html:
    """Return a message: "good", "note" or "bad"."""
    return render("flash", kind=kind, text=text)


def why_again(why: str) -> Html:
    """Return the message that says why somebody has to sign in again, if there is one for this code."""
    return flash("note", WHY_AGAIN[why]) if why in WHY_AGAIN else Html()


def products(buy: str) -> Html:
    """Return the tiles of what there is to buy; `buy` names the template of the button."""
    rows: list[dict[str, object]] = [
        {
            "id": one.id,
            "name": one.name,
            "about": one.about,
            "buy": render(buy, id=one.id, name=one.name, price=one.price),
        }
        for one in PRODUCTS.values()
    ]
    return render_all("product", rows)


def local_path(wanted: str) -> str:
    """Return `wanted` if it is a path of this site, else the front page: a link must not lead elsewhere."""
    plain = wanted.isascii() and wanted.isprintable() and "\\" not in wanted
    if not plain or not wanted.startswith("/") or wanted.startswith("//"):
        return "/"
    parts = urlsplit(wanted)
    return "/" if parts.scheme or parts.netloc else wanted
