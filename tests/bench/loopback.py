"""A server that answers every request with `{"success": true}`, as fast as Python can. Prints its port.

Its cost must not count: what is measured is who asks. It takes requests that come whole, as those of both clients do.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

BODY = b'{"success": true}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Valid(asyncio.Protocol):
    """One connection: an answer for each request whose head and body have come."""

    def __init__(self) -> None:
        self._had = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do all that, and are no subclass

    def data_received(self, data: bytes) -> None:
        self._had += data
        while (length := _whole(self._had)) is not None:
            self._had = self._had[length:]
            self._transport.write(ANSWER)


def _whole(had: bytes) -> int | None:
    """Return how long the first request is, or None while it is not all there."""
    head, separator, _ = had.partition(b"\r\n\r\n")
    if not separator:
        return None
    _, _, after = head.lower().partition(b"content-length:")
    length = len(head) + len(separator) + int(after.partition(b"\r\n")[0] or 0)
    return length if len(had) >= length else None


async def main() -> None:
    """Serve until the end."""
    server = await asyncio.get_running_loop().create_server(Valid, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
