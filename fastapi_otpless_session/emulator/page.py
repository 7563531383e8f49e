"""The page of the emulator: one HTML document, style and script inside, which fetches nothing from elsewhere."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

_STYLE = "/* page.css */"
_SCRIPT = "/* page.js */"


async def page(_request: Request) -> Response:
    """The endpoint of the page."""
    html, policy = _document()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"})


async def description(_request: Request) -> Response:
    """The endpoint of the OpenAPI description of the calls that the emulator answers."""
    return Response(_text("otpless_openapi.json"), media_type=JSONResponse.media_type)


@cache
def _document() -> tuple[str, str]:
    style, script = _text("static/page.css"), _text("static/page.js")
    html = _text("static/page.html").replace(_STYLE, style).replace(_SCRIPT, script)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


@cache
def _text(name: str) -> str:
    return (files(__package__ or "") / name).read_text("utf-8")
