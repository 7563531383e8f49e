"""Requests as a server hands them over, message by message: any bytes, any path, any extension."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message

HeaderList = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Exchange:
    """All that an application sent in answer to one request."""

    messages: list[Message]

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def headers(self) -> HeaderList:
        return [(bytes(name), bytes(value)) for name, value in self.messages[0]["headers"]]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]


def http_scope(path: str, method: str = "GET", headers: HeaderList = (), **more: Any) -> dict[str, Any]:
    """The scope of a request to https://shop.example, as uvicorn makes it. `path` is decoded already."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"shop.example"), *headers],
        "client": ("192.0.2.1", 40000),
        "server": ("shop.example", 443),
        **more,
    }


async def exchange(app: ASGIApp, scope: dict[str, Any], body: Iterable[bytes] = ()) -> Exchange:
    """Play the server for one request whose body comes in these chunks, and whose client leaves after it."""
    chunks = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in body]
    pending: list[Message] = [*chunks, {"type": "http.request", "body": b"", "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return Exchange(sent)


@contextmanager
def serving(app: ASGIApp, *, websockets: bool = False) -> Iterator[str]:
    """Serve an application on a loopback port, in a thread."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="websockets-sansio" if websockets else "none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
