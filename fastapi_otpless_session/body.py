"""The body of an answer, collected as it comes: decoded step by step, and 64 KiB at most.

The limit is on what comes out of the decoder: 48 KB of gzip can hold 50 MB. Both HTTP libraries could decode by
themselves, but neither stops at a size.
"""

from __future__ import annotations

import zlib

BODY_LIMIT = 65_536


class BodyError(ValueError):
    """A body cannot be used; its text says why."""


class Body:
    """A body with a `Content-Encoding`. Raises `BodyError` for one that was not asked for and cannot be read."""

    __slots__ = ("_decoder", "_read")

    def __init__(self, encoding: str) -> None:
        self._decoder = _decoder(encoding.strip().lower())
        self._read = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `BodyError` where they do not decode, or are more than fit."""
        self._read += self._decoder.decompress(chunk, BODY_LIMIT + 1 - len(self._read)) if self._decoder else chunk
        if len(self._read) > BODY_LIMIT:
            raise BodyError("it is larger than 64 KiB")

    def whole(self) -> bytes:
        """Return the decoded body. Raises `BodyError` where its end is missing."""
        if self._decoder and not self._decoder.eof:
            raise BodyError("it is cut short")
        return bytes(self._read)


class _Decoder:
    """zlib's decompressor, its errors translated."""

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)

    def decompress(self, chunk: bytes, limit: int) -> bytes:
        try:
            return self._zlib.decompress(chunk, limit)
        except zlib.error:
            raise BodyError("it does not decode") from None

    @property
    def eof(self) -> bool:
        return self._zlib.eof


def _decoder(encoding: str) -> _Decoder | None:
    match encoding:
        case "identity" | "":
            return None
        case "gzip" | "x-gzip" | "deflate":
            return _Decoder(zlib.MAX_WBITS | 32)  # either header
        case _:
            raise BodyError("it has an encoding that was not asked for")
