"""The shop: pages for everybody, pages for those who are signed in, and three lines for the sessions.

uvicorn example_app.main:app
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import httpx
from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import RedirectResponse
from fastapi.staticfiles import StaticFiles

from example_app.answers import answers
from example_app.cookie import pages
from example_app.layout import WHY_AGAIN, Shop, page
from example_app.pages import Html, render
from example_app.settings import ShopSettings
from example_app.shop import Orders
from example_app.single import single
from fastapi_otpless_session import (
    CurrentSession,
    OtplessSessionMiddleware,
    RefusalError,
    SessionRefusedError,
    SessionUnavailableError,
    create_session_router,
)

demo = APIRouter(tags=["demo"])


def create_app(settings: ShopSettings | None = None) -> FastAPI:
    """Build the application. The sessions' settings are read at startup, from `OTPLESS_*`."""
    app = FastAPI(title="Chai Corner")
    app.state.shop = settings or ShopSettings()
    app.state.orders = Orders()
    app.add_middleware(OtplessSessionMiddleware)
    app.include_router(create_session_router(), prefix="/auth")
    for router in (pages, single, demo):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    app.add_exception_handler(RefusalError, show_refusal)
    return app


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
    # An order cannot be taken along: the shop asks for it again.
    query = {"next": asked if request.method == "GET" else "/?again"}
    if why in WHY_AGAIN:
        query["why"] = why
    return "/sign-in?" + urlencode(query, safe="/")


def _refusal_page(request: Request, error: RefusalError) -> Response:
    headers = dict(error.headers or {})
    if isinstance(error, SessionUnavailableError):
        title, again = "One moment", request.url.path if request.method == "GET" else "/"
        body = render("unavailable", title=title, again=again, seconds=headers.get("Retry-After", "5"))
    else:
        title = "That didn't work"
        body = render("refused", title=title, message=error.message)
    response = page(request, title, body, badge=Html(), heading=False, status=error.status_code)
    response.headers.update(headers)
    return response


@demo.post("/demo/expire", status_code=204, responses=answers(_404="No emulator here", _502="The emulator failed"))
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
