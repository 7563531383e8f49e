"""Credentials on the wire, as pure functions of an ASGI scope: find them, write a swapped one back, cookies, globs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

from fastapi_otpless_session.errors import ChannelUnreadError, CookieTooLargeError
from fastapi_otpless_session.settings import DEFAULT_PORTS, OtplessSettings
from fastapi_otpless_session.tokens import has_token_shape

Headers = list[Any]
Pairs = Iterable[Any]
"""Each of a name and a value, in bytes: by ASGI any two-item iterable, where compiled code would insist on a tuple."""

COOKIE_LIMIT = 4096
MOST_TOKENS = 8
"""How many different tokens of one request are looked at: a sign-out ends them all, and may ask OTPLESS about each."""
REMEMBERED = 200
LONGEST_REMEMBERED = 4096
"""How many headers and paths are remembered, and how many characters these have at most."""
SUBPROTOCOL = "otpless-session"
NO_PATH = "(?!)"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, section 9.2.1
OWN_SITES = frozenset({"same-origin", "none"})  # by the page itself, or by the user (W3C Fetch Metadata, section 2.4)
CACHEABLE = frozenset(
    {"public", "s-maxage", "max-age", "immutable", "stale-while-revalidate", "stale-if-error", "no-store"}
)
STORING = frozenset({b"cache-control", b"expires", b"surrogate-control", b"cdn-cache-control"})
"""Headers that caches heed: `Cache-Control`, HTTP/1.0's, and the targeted ones (RFC 9213), which may have a prefix."""


class Channel(StrEnum):
    """Where a session token came in, and so where its successor goes out."""

    AUTHORIZATION = "authorization"
    HEADER = "header"
    COOKIE = "cookie"
    SUBPROTOCOL = "subprotocol"


class Presented(NamedTuple):
    """The credentials of one request: each distinct token with its channels."""

    tokens: tuple[tuple[str, frozenset[Channel]], ...] = ()
    channels: frozenset[Channel] = frozenset()
    """All channels that carried something."""
    in_conflict: bool = False
    """Whether it is unclear which credential counts."""
    token: str | None = None
    """The one that counts; None where there is none, or they are in conflict."""
    is_cookie_only: bool = False
    """Whether a browser may have sent it without the page's doing."""

    def __repr__(self) -> str:
        """Name the channels only: the tokens are secret."""
        return f"Presented(channels={sorted(self.channels)})"


AUTHORIZATION, HEADER, COOKIE, OFFERED = (frozenset({channel}) for channel in Channel)
"""Each channel alone. They are made once, for an enum's member takes its time to hash."""
Seen = list[tuple[str, frozenset[Channel]]]
NOTHING = Presented()


class Transport:
    """The wire side of the settings; everything that does not change is computed once."""

    def __init__(self, settings: OtplessSettings) -> None:
        self._sources = frozenset(Channel(source) for source in settings.token_sources)
        self._header = settings.header_name.lower().encode()
        self._header_name = settings.header_name
        self._cookie = settings.cookie
        self._cookie_start = f"{settings.cookie}=".encode()
        self._names = {name.lower().encode(): channel for name, channel in self._looked_at()}
        self._attributes = _attributes(settings)
        self._trusted = frozenset(settings.trusted_origins)
        self.has_required: bool = bool(settings.required_paths)
        """Whether any path needs a session by `REQUIRED_PATHS`."""
        self._required = _compile(settings.required_paths)
        self._exempt = _compile(settings.exempt_paths)
        self._vary = [name for name, _ in self._looked_at()]
        self._vary_header = (b"vary", ", ".join(self._vary).encode())
        # Most requests bring what one of the last brought, to where it went. Remembering both saves a tenth of a bare
        # route's cost a request.
        self._alone = lru_cache(REMEMBERED)(self._read_alone)
        self._covers = lru_cache(REMEMBERED)(self._is_covered)

    def _looked_at(self) -> list[tuple[str, frozenset[Channel]]]:
        """Return the names of the headers that are read, and what comes in by each."""
        names = [("Authorization", AUTHORIZATION), (self._header_name, HEADER), ("Cookie", COOKIE)]
        return [(name, channel) for name, channel in names if channel & self._sources]

    # In

    def find(self, headers: Pairs, offered: Sequence[str] = ()) -> Presented:
        """Return what a request presents; `offered` are tokens from the websocket subprotocols."""
        names = self._names
        only_name = only_value = b""
        for name, value in headers:
            if name in names:
                if only_name:
                    return self._together(headers, offered)
                only_name, only_value = name, value
        if offered or len(only_value) > LONGEST_REMEMBERED:
            return self._together(headers, offered)
        return self._alone(only_name, only_value) if only_name else NOTHING

    def _read_alone(self, name: bytes, value: bytes) -> Presented:
        return _presented(self._read(self._names[name], value))

    def _read(self, channel: frozenset[Channel], value: bytes) -> Seen:
        """Return the tokens in a header of a channel. One that is empty is nothing, but its name occurred."""
        text = value.decode("latin-1")
        if channel is HEADER:
            return [(text.strip(" \t"), HEADER)]
        if channel is AUTHORIZATION:
            return [(_bearer(text), AUTHORIZATION)]
        return [
            (token.strip(" \t"), COOKIE)
            for name, is_pair, token in [pair.partition("=") for pair in text.split(";")]
            if is_pair and name.strip(" \t") == self._cookie
        ]

    def _together(self, headers: Pairs, offered: Sequence[str]) -> Presented:
        seen: Seen = [(token, OFFERED) for token in offered if token]
        bearers: Seen = []
        for name, value in headers:
            channel = self._names.get(name)
            if channel is not None:
                (bearers if channel is AUTHORIZATION else seen).extend(self._read(channel, value))
        if any(token for token, _ in bearers):  # else they are other API keys, however many
            seen += bearers
        return _presented(seen)

    def take_subprotocols(self, scope: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
        """Take the tokens that a websocket offers as subprotocols out of the scope; return both.

        A token is what follows `otpless-session`. A browser's page offers one, and no subprotocol twice.
        """
        offered = scope.get("subprotocols", ())
        if Channel.HEADER not in self._sources or SUBPROTOCOL not in offered[:-1]:
            return dict(scope), ()
        others, tokens = _parted(offered)
        kept = [(name, value) for name, value in scope["headers"] if name != b"sec-websocket-protocol"]
        # Servers decode the header in different ways, some to what cannot be encoded again.
        kept.append((b"sec-websocket-protocol", ", ".join(others).encode("latin-1", "replace")))
        return {**scope, "subprotocols": others, "headers": kept}, tokens

    def is_required(self, scope: Mapping[str, Any], root_path: str = "") -> bool:
        """Whether a path needs a session by `REQUIRED_PATHS`.

        `root_path`: what the application inside will add to the scope's own.
        """
        if not self.has_required:
            return False
        path = _route_path(scope, root_path) if root_path or scope.get("root_path") else scope["path"]
        return self._covers(path) if len(path) <= LONGEST_REMEMBERED else self._is_covered(path)

    def _is_covered(self, path: str) -> bool:
        spellings = _spellings(path)
        if ".." in spellings[-1].split("/"):  # out of a mounted folder, and in again by a name that is not known here
            return True
        slashes = [each for spelling in spellings for each in (spelling, spelling.rstrip("/"), spelling + "/")]
        if not any(map(self._required.fullmatch, slashes)):  # the router redirects between those
            return False
        # An exemption has to fit as it came, too: with a doubled slash the router may find a catch-all instead.
        return not all(map(self._exempt.fullmatch, spellings))

    def is_cross_site(self, headers: Pairs, scheme: str) -> bool:
        """Whether a request comes from another site, by Fetch metadata or else by its origin."""
        sites, origins = _values(headers, b"sec-fetch-site"), _values(headers, b"origin")
        if sites and OWN_SITES.issuperset(sites):
            return False
        if len(origins) == 1 and origins[0].lower() in self._trusted:
            return False
        if sites:
            return True
        return bool(origins) and not (len(origins) == 1 and _is_own(origins[0].lower(), headers, scheme))

    # Out

    def sign_in_channel(self, named: str | None) -> frozenset[Channel]:
        """Return the channel that a sign-in answers on: one that is looked at, or nobody would stay signed in.

        `named`: `cookie`, `header` or None. Raises `ChannelUnreadError`.
        """
        reads_cookie, reads_header = Channel.COOKIE in self._sources, bool(self._sources - COOKIE)
        if (named == "cookie" and not reads_cookie) or (named == "header" and not reads_header):
            raise ChannelUnreadError(named)
        return HEADER if named == "header" or not reads_cookie else COOKIE

    def write_session(self, headers: Headers, channels: frozenset[Channel], token: str, max_age: float) -> None:
        """Add a new token to a response's headers, on the channels that the old one came in on.

        What is there already, from a sign-in or from a middleware further in, stays alone: a browser joins two headers
        of a name into `a, b`, which is no token.
        """
        names = [key.lower() for key, _ in headers]
        if Channel.COOKIE in channels and (b"set-cookie" not in names or not self._sets_cookie(headers)):
            headers.append((b"set-cookie", self.cookie(token, max_age)))
        if not channels <= COOKIE and self._header not in names:
            headers.append((self._header, token.encode()))
            add_to_list(headers, b"access-control-expose-headers", [self._header_name])
        forbid_storing(headers)

    def cookie(self, token: str, max_age: float) -> bytes:
        """Return the session cookie's `Set-Cookie` value. Raises `CookieTooLargeError`."""
        text = f"{self._cookie}={token}; Max-Age={int(max_age)}{self._attributes}"
        if len(text) > COOKIE_LIMIT:
            raise CookieTooLargeError(len(text))
        return text.encode()

    def _sets_cookie(self, headers: Headers) -> bool:
        return any(key.lower() == b"set-cookie" and value.startswith(self._cookie_start) for key, value in headers)

    def cleared_cookie(self) -> bytes:
        """Return the `Set-Cookie` value that deletes the session cookie: the same attributes, no life."""
        return f"{self._cookie}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT{self._attributes}".encode()

    def varied(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a response's start with a note that it depends on the channels that were looked at."""
        headers = [*start.get("headers", ())]
        for name, _ in headers:
            if name.lower() == b"vary":
                add_to_list(headers, b"vary", self._vary)
                break
        else:
            headers.append(self._vary_header)
        return {**start, "headers": headers}


def is_preflight(headers: Pairs) -> bool:
    """Whether an OPTIONS asks for a browser what a page of another origin may send. It carries no credentials."""
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in headers}


def _attributes(settings: OtplessSettings) -> str:
    parts = [f"Path={settings.cookie_path}", "HttpOnly", f"SameSite={settings.cookie_samesite}"]
    if settings.cookie_secure:
        parts.append("Secure")
    if settings.cookie_domain:
        parts.append(f"Domain={settings.cookie_domain}")
    return "".join(f"; {part}" for part in parts)


def _bearer(value: str) -> str:
    """Return a bearer that is shaped like a JWT, else nothing: other API keys are none of our business."""
    scheme, _, rest = value.partition(" ")
    token = rest.strip(" \t")
    return token if scheme.lower() == "bearer" and has_token_shape(token) else ""


def _presented(seen: Seen) -> Presented:
    if len(seen) == 1:  # as a rule
        ((only, channel),) = seen
        return Presented((*seen,), channel, token=only, is_cookie_only=channel is COOKIE) if only else NOTHING
    tokens: dict[str, frozenset[Channel]] = {}
    for token, channel in seen:
        if token in tokens:
            tokens[token] |= channel
        elif token and len(tokens) < MOST_TOKENS:  # an empty one is nothing, but its name occurred
            tokens[token] = channel
    is_repeated = len(seen) != len({channel for _, channel in seen})
    channels = frozenset[Channel]().union(*tokens.values())
    in_conflict = is_repeated or len(tokens) > 1
    counts = None if in_conflict or not tokens else next(iter(tokens))
    return Presented((*tokens.items(),), channels, in_conflict, counts, is_cookie_only=channels == COOKIE)


def _parted(subprotocols: Iterable[str]) -> tuple[list[str], list[str]]:
    """Part subprotocols from the tokens that follow ours."""
    others: list[str] = []
    tokens: list[str] = []
    rest = iter(subprotocols)
    for name in rest:
        others.append(name)
        if name == SUBPROTOCOL:
            tokens += [*itertools.islice(rest, 1)]
    return others, tokens


def _route_path(scope: Mapping[str, Any], root_path: str) -> str:
    """Return the path that the router matches: without the prefix that the application is served under."""
    path: str = scope["path"]
    root: str = root_path or scope.get("root_path", "")
    if root and (path == root or path.startswith(root + "/")):
        return path[len(root) :] or "/"
    return path


def _spellings(path: str) -> tuple[str, str, str]:
    """Return a path as it came, and what it is read as further in.

    To the router a newline at the end is nothing: its patterns end in `$`. To a folder of files (`StaticFiles`)
    `/a//b`, `/a/./b` and, on Windows, a backslash lead to `/a/b`; no server takes them out before.
    """
    routed = path.removesuffix("\n")
    segments = routed.replace("\\", "/").split("/")
    plain = "/" + "/".join(segment for segment in segments if segment not in {"", "."})
    return path, routed, plain + "/" if routed.endswith("/") and plain != "/" else plain


def _values(headers: Pairs, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _is_own(origin: str, headers: Pairs, scheme: str) -> bool:
    """Whether an origin's host and port are those of `Host`, default ports normalised."""
    its_scheme, _, place = origin.partition("://")
    port, hosts = DEFAULT_PORTS.get(its_scheme), _values(headers, b"host")
    if port is None or len(hosts) != 1:
        return False
    if its_scheme == "http" and scheme in {"https", "wss"}:  # the reverse may be a proxy that ends TLS
        return False
    return bool(place) and place.removesuffix(port) == hosts[0].lower().removesuffix(port)


def _compile(globs: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(_pattern, globs)) or NO_PATH, re.DOTALL)


def _pattern(glob: str) -> str:
    """Translate a glob: `*` is one segment (or a part of one), a final `/**` the folder and all below."""
    folder = glob.removesuffix("/**")
    segments = [_segment(segment) for segment in re.sub("/{2,}", "/", folder).split("/")]
    return "/".join(segments) + ("(?:/.*)?" if folder != glob else "")


def _segment(segment: str) -> str:
    """Translate a part of a glob. Each star but the last stands for as little as it can, and that is not tried anew.

    To try every place for every star would take a long path's length to the power of their number.
    """
    if segment == "*":
        return "[^/]+"
    first, *rest = map(re.escape, segment.split("*"))
    if not rest:
        return first
    *middle, last = rest
    return "".join([first, *(f"(?>[^/]*?{part})" for part in middle), "[^/]*", last])


def add_to_list(headers: Headers, name: bytes, items: Iterable[str]) -> None:
    """Merge items into a comma-separated header, adding none twice; `*` in `Vary` says it all."""
    there = [
        item.strip() for key, value in headers if key.lower() == name for item in value.decode("latin-1").split(",")
    ]
    known = {item.lower() for item in there}
    if name == b"vary" and "*" in known:
        return
    merged = [item for item in there if item] + [item for item in items if item.lower() not in known]
    headers[:] = [(key, value) for key, value in headers if key.lower() != name]
    headers.append((name, ", ".join(merged).encode("latin-1")))


def forbid_storing(headers: Headers) -> None:
    """Replace what a response's headers say of storing by `no-store`."""
    kept = [pair for pair in headers if not _is_about_storing(bytes(pair[0]))]
    said = "no-store"
    if len(kept) < len(headers):  # seldom, and to look twice would cost a herd more than all else here
        said = ", ".join([said, *_not_about_storing(headers)])
        headers[:] = kept
    headers.append((b"cache-control", said.encode("latin-1")))


@lru_cache(REMEMBERED)
def _is_about_storing(name: bytes) -> bool:
    name = name.lower()
    return name in STORING or name.endswith(b"-cdn-cache-control")


def _not_about_storing(headers: Headers) -> Iterable[str]:
    """Name what else `Cache-Control` says."""
    for key, value in headers:
        if key.lower() == b"cache-control":
            parts = [part.strip() for part in value.decode("latin-1").split(",")]
            yield from (part for part in parts if part and part.partition("=")[0].strip().lower() not in CACHEABLE)
