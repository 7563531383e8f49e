"""The header channel's client script, `client.js`, as the router serves it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

SCRIPT_PATH = "/client.js"
"""Where the router serves it, under its prefix."""
MAX_AGE = 300
"""How many seconds a browser may use the script unasked: so long an upgrade takes to reach all pages."""

_COMMENTS = re.compile(r"^ *(?://[^\n]*|/\*\*[\s\S]*?\*/)\n", re.MULTILINE)
"""Those that have lines of their own: they are for who reads the source, and a sixth of what browsers would load."""
# Read with the module: a request does not wait for the disk.
_SOURCE = _COMMENTS.sub("", (files("fastapi_otpless_session") / "static" / "client.js").read_text("utf-8"))
_HEADER_AS_WRITTEN = 'HEADER = "X-Session-Token"'
_BEARER_AS_WRITTEN = "AS_BEARER = false"


@dataclass(frozen=True, slots=True)
class ClientScript:
    """The script, and the headers to serve it with."""

    body: bytes
    etag: str

    @property
    def headers(self) -> dict[str, str]:
        """What caches and browsers are to know."""
        return {
            "Cache-Control": f"public, max-age={MAX_AGE}",
            "ETag": self.etag,
            "X-Content-Type-Options": "nosniff",
            # Pages of other origins include it too, those that isolate themselves (COEP) among them.
            "Cross-Origin-Resource-Policy": "cross-origin",
        }

    def is_known_to(self, if_none_match: str) -> bool:
        """Whether a client that sends this `If-None-Match` has the script already (RFC 9110, section 13.1.2)."""
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return not known.isdisjoint({self.etag, "*"})


@lru_cache(maxsize=8)
def client_script(header_name: str, *, as_bearer: bool = False) -> ClientScript:
    """Return the script for a header's name; `as_bearer`: tokens are sent in `Authorization`, and only come in ours."""
    source = _SOURCE.replace(_HEADER_AS_WRITTEN, f"HEADER = {json.dumps(header_name)}")
    body = source.replace(_BEARER_AS_WRITTEN, f"AS_BEARER = {json.dumps(as_bearer)}").encode()
    return ClientScript(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
