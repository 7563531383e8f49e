"""Faults: which calls fail, and how each kind of failure looks from the other end of the wire.

`DESCRIPTIONS` says what each kind does.
"""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FaultKind = Literal[
    "status",
    "hang",
    "drip",
    "truncated",
    "reset",
    "garbage",
    "html",
    "redirect",
    "gzip_bomb",
    "huge",
    "deep",
    "wrong_types",
    "duplicate_keys",
    "other_session",
    "act_then_hang",
    "act_then_reset",
]

DESCRIPTIONS: dict[FaultKind, str] = {
    "status": "An error status with a short message, or whatever status, headers and body you say.",
    "hang": "No answer at all: the call waits until the client gives up.",
    "reset": "The connection is reset before an answer.",
    "act_then_hang": "The call has its effect, but its answer never comes.",
    "act_then_reset": "The call has its effect, but the connection is reset before the answer.",
    "drip": "The real answer, slowly: one byte at each interval.",
    "truncated": "The real answer, but the connection ends before all the bytes that were promised.",
    "garbage": "200 with bytes that are not JSON.",
    "html": "200 with an HTML page, as a captive portal or a proxy sends it.",
    "wrong_types": "200 with JSON whose fields have other types than documented.",
    "duplicate_keys": "200 with JSON that says success twice: false, then true.",
    "deep": "200 with JSON that nests 100,000 lists.",
    "huge": "200 with 50 MB of JSON.",
    "gzip_bomb": "200 with less than 50 KB that unpack to 50 MB.",
    "redirect": "307 to somewhere else, where credentials and tokens must not follow.",
    "other_session": "The real answer, but about somebody else's session.",
}
"""What each kind of fault does, in one sentence."""

_MEGABYTE = 1 << 20
_HUGE_MEGABYTES = 50
_BOMB_BYTES = 50_000_000
_DEPTH = 100_000
_WITHOUT_BODY = frozenset({204, 205, 304})
_MISSING_BYTES = 100
_JSON = (b"content-type", b"application/json")
_HTML = (b"content-type", b"text/html; charset=utf-8")


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of some calls.

    `path` is the end of the paths concerned (None: the five calls and the key set). The first `skip` calls
    are spared, the next `times` calls fail (None: all, until the faults are cleared). `body` replaces the
    kind's own body where it has one; `status` and `headers` are those of the kind "status", `location`
    that of "redirect", `interval` (seconds between two bytes) that of "drip".

    Raises ValueError for an unknown kind or numbers that make no sense.
    """

    kind: FaultKind
    path: str | None = None
    times: int | None = None
    skip: int = 0
    status: int = 503
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    location: str = "https://example.com/elsewhere"
    interval: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(FaultKind))}, not {self.kind!r}")
        if self.times is not None and self.times < 1:
            raise ValueError("times must be 1 or more, or None")
        if self.skip < 0 or self.interval < 0:
            raise ValueError("skip and interval must not be negative")
        if not 200 <= self.status <= 599:
            raise ValueError("status must be from 200 to 599")


@dataclass(slots=True)
class Armed:
    """A fault that waits for its calls: how many it still spares, and how many are left to fail (None: all)."""

    fault: Fault
    skip: int
    left: int | None

    def as_json(self) -> dict[str, Any]:
        """What the page shows of the fault."""
        fault = self.fault
        return {"kind": fault.kind, "path": fault.path, "status": fault.status, "skip": self.skip, "left": self.left}


class FaultBook:
    """The faults that wait for their calls, in the order in which they were added."""

    def __init__(self, default_paths: frozenset[str]) -> None:
        self._default_paths = default_paths
        self._armed: list[Armed] = []

    def add(self, fault: Fault) -> None:
        """Arm a fault."""
        self._armed.append(Armed(fault, fault.skip, fault.times))

    def clear(self) -> None:
        """Disarm all faults."""
        self._armed.clear()

    def faults(self) -> list[Fault]:
        """The faults that are armed."""
        return [armed.fault for armed in self.armed()]

    def armed(self) -> list[Armed]:
        """The faults that are armed, with how far they have got."""
        return list(self._armed)

    def take(self, path: str) -> Fault | None:
        """The fault that a call to `path` meets, if any; counts the call."""
        for armed in list(self._armed):
            if self._concerns(armed.fault, path) and _is_due(armed):
                return self._spend(armed)
        return None

    def _concerns(self, fault: Fault, path: str) -> bool:
        return path in self._default_paths if fault.path is None else path.endswith(fault.path)

    def _spend(self, armed: Armed) -> Fault:
        if armed.left is not None:
            armed.left -= 1
            if armed.left == 0:
                self._armed.remove(armed)
        return armed.fault


def _is_due(armed: Armed) -> bool:
    if armed.skip == 0:
        return True
    armed.skip -= 1
    return False


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call on its way: the application behind, and the connection where the server shows it.

    `decoy` starts another session and returns its tokens by the names that requests use.
    """

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    transport: asyncio.WriteTransport | None
    decoy: Callable[[], Mapping[str, str]]


@dataclass(slots=True)
class _Answer:
    """The application's answer, kept back."""

    status: int = 500
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    async def keep(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message["headers"])
        else:
            self.body += message.get("body", b"")


async def play(fault: Fault, exchange: Exchange) -> None:
    """Answer a call as the fault wants. Raises ConnectionResetError where no connection can be reset."""
    await _PLAYERS[fault.kind](fault, exchange)


async def _status(fault: Fault, exchange: Exchange) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers]
    if not any(name == b"content-type" for name, _ in headers):
        headers.append(_JSON)
    await _respond(exchange.send, fault.status, headers, _status_body(fault))


def _status_body(fault: Fault) -> bytes:
    if fault.body is not None:
        return fault.body
    return b"" if fault.status in _WITHOUT_BODY else b'{"message": "Something went wrong."}'


async def _hang(_fault: Fault, exchange: Exchange) -> None:
    await _until_gone(exchange.receive)


async def _drip(fault: Fault, exchange: Exchange) -> None:
    answer = await _real_answer(exchange)
    await _start(exchange.send, answer.status, answer.headers)
    for byte in answer.body:
        if await _gone_within(exchange.receive, fault.interval):
            return
        await _part(exchange.send, bytes([byte]))
    await exchange.send({"type": "http.response.body", "body": b""})


async def _truncated(_fault: Fault, exchange: Exchange) -> None:
    answer = await _real_answer(exchange)
    others = [header for header in answer.headers if header[0] != b"content-length"]
    length = str(len(answer.body) + _MISSING_BYTES).encode()
    await _start(exchange.send, answer.status, [*others, (b"content-length", length)])
    await _part(exchange.send, answer.body)
    if exchange.transport is None:
        raise ConnectionResetError("the emulator ended the connection")
    exchange.transport.close()
    await _until_gone(exchange.receive)


async def _reset(_fault: Fault, exchange: Exchange) -> None:
    # A client that is still sending may take a reset for an orderly end.
    while (await exchange.receive()).get("more_body"):
        pass
    await _abort(exchange)


async def _abort(exchange: Exchange) -> None:
    if exchange.transport is None:
        raise ConnectionResetError("the emulator reset the connection")
    connection = exchange.transport.get_extra_info("socket")
    # Without lingering, the other end gets a reset instead of an orderly end.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.transport.abort()
    await _until_gone(exchange.receive)


async def _huge(_fault: Fault, exchange: Exchange) -> None:
    await _start(exchange.send, 200, [_JSON])
    await _part(exchange.send, b'{"success": true, "data": "')
    for _ in range(_HUGE_MEGABYTES):
        await _part(exchange.send, b"x" * _MEGABYTE)
    await exchange.send({"type": "http.response.body", "body": b'"}'})


async def _gzip_bomb(_fault: Fault, exchange: Exchange) -> None:
    await _respond(exchange.send, 200, [_JSON, (b"content-encoding", b"gzip")], _bomb())


async def _redirect(fault: Fault, exchange: Exchange) -> None:
    await _respond(exchange.send, 307, [(b"location", fault.location.encode())], b"")


async def _other_session(_fault: Fault, exchange: Exchange) -> None:
    body = json.dumps(dict(exchange.decoy())).encode()
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await exchange.receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    await exchange.app(exchange.scope, receive, exchange.send)


async def _act_then_hang(fault: Fault, exchange: Exchange) -> None:
    await _real_answer(exchange)
    await _hang(fault, exchange)


async def _act_then_reset(_fault: Fault, exchange: Exchange) -> None:
    await _real_answer(exchange)
    await _abort(exchange)


def _canned(
    make: Callable[[], bytes], header: tuple[bytes, bytes] = _JSON
) -> Callable[[Fault, Exchange], Awaitable[None]]:
    async def player(fault: Fault, exchange: Exchange) -> None:
        await _respond(exchange.send, 200, [header], make() if fault.body is None else fault.body)

    return player


def _garbage() -> bytes:
    return b'{"success": tr\x00\xff\xfe\x80 not json'


def _page() -> bytes:
    return b"<!doctype html><title>Welcome</title><h1>Sign in to the network</h1>"


def _deep() -> bytes:
    return b'{"success": true, "data": ' + b"[" * _DEPTH + b"]" * _DEPTH + b"}"


def _wrong_types() -> bytes:
    return b'{"success": "true", "data": "all", "keys": "all", "userId": 7, "sessionId": 7, "status": 7}'


def _duplicate_keys() -> bytes:
    return b'{"success": false, "success": true}'


@cache
def _bomb() -> bytes:
    return gzip.compress(b'{"success": true' + b" " * _BOMB_BYTES + b"}")  # less than 50 KB


async def _real_answer(exchange: Exchange) -> _Answer:
    answer = _Answer()
    await exchange.app(exchange.scope, exchange.receive, answer.keep)
    return answer


async def _respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await _start(send, status, [*headers, (b"content-length", str(len(body)).encode())])
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _gone_within(receive: Receive, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await _until_gone(receive)
    except TimeoutError:
        return False
    return True


_PLAYERS: dict[FaultKind, Callable[[Fault, Exchange], Awaitable[None]]] = {
    "status": _status,
    "hang": _hang,
    "drip": _drip,
    "truncated": _truncated,
    "reset": _reset,
    "garbage": _canned(_garbage),
    "html": _canned(_page, _HTML),
    "redirect": _redirect,
    "gzip_bomb": _gzip_bomb,
    "huge": _huge,
    "deep": _canned(_deep),
    "wrong_types": _canned(_wrong_types),
    "duplicate_keys": _canned(_duplicate_keys),
    "other_session": _other_session,
    "act_then_hang": _act_then_hang,
    "act_then_reset": _act_then_reset,
}
