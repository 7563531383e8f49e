"""Who may steer the emulator: programs and the emulator's own page, but no web page from elsewhere.

The emulator listens at a loopback address, and every page that is open in the developer's browser can send requests
there. Two things are looked at:

- where a request comes from, by `Sec-Fetch-Site`, else by `Origin`. Programs send neither;
- the name that it asks for, by `Host`. Who owns a domain can let it point to 127.0.0.1 (DNS rebinding): then their page
  and the emulator are one origin to the browser. So it must be a name that nobody else can own.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_NOBODYS = ("localhost", "test", "example", "invalid", "internal", "home.arpa")
"""Top-level names that are never sold: RFC 6761, RFC 8375, and ICANN's choice of `internal`."""

_ELSEWHERE = "Another site's page asks for this. Only programs and the emulator's own page may."


class Guard:
    """An ASGI layer that refuses (403) what another site's page asks for. `names` are hosts to be trusted too."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        why = self._refusal(scope["method"], Headers(scope=scope))
        app = self._app if why is None else JSONResponse({"message": why}, 403)
        await app(scope, receive, send)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        host = headers.get("host", "")
        if not self._is_ours(_name(host)):
            return (
                f"{_name(host)!r} may be anybody's domain. Ask by an IP address, by localhost or another name without "
                "a dot, or name it with --control-host."
            )
        if _is_followed_link(method, headers) or _is_own(headers, host):
            return None
        return _ELSEWHERE

    def _is_ours(self, name: str) -> bool:
        if "." not in name or name in self._names or _is_address(name):
            return True
        return name.endswith(tuple(f".{top}" for top in _NOBODYS))


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:  # brackets around what is no address
        return host


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_followed_link(method: str, headers: Headers) -> bool:
    """Whether somebody opens a page by a link: whoever made the link cannot read what comes back."""
    return (
        method == "GET" and headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    )


def _is_own(headers: Headers, host: str) -> bool:
    if site := headers.get("sec-fetch-site"):
        return site in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is None or origin.lower() in {f"http://{host.lower()}", f"https://{host.lower()}"}
