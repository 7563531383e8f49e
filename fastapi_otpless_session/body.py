"""The body of an answer, collected as it comes: decoded step by step, and 64 KiB at most.

The limit is on what comes out of the decoder: 48 KB of gzip can hold 50 MB. Both HTTP libraries could decode by
themselves, but neither stops at a size.
"""

from __future__ import annotations

import zlib

from fastapi_otpless_session.errors import UpstreamError

BODY_LIMIT = 65_536


class TooLargeError(UpstreamError):
    """A body is larger than `BODY_LIMIT`. Of a 200 that may be one session's details, and says nothing of others."""

    def __init__(self) -> None:
        super().__init__("OTPLESS's answer is larger than 64 KiB", healthy=True)


class Body:
    """A body with a `Content-Encoding`. Raises `UpstreamError` for one that was not asked for and cannot be read."""

    __slots__ = ("_decoder", "_read")

    def __init__(self, encoding: str) -> None:
        self._decoder = _decoder(encoding.strip().lower())
        self._read = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises `UpstreamError` where they do not decode, `TooLargeError`."""
        self._read += self._decoder.decompress(chunk, BODY_LIMIT + 1 - len(self._read)) if self._decoder else chunk
        if len(self._read) > BODY_LIMIT:
            raise TooLargeError

    def whole(self) -> bytes:
        """Return the decoded body. Raises `UpstreamError` where its end is missing."""
        if self._decoder and not self._decoder.eof:
            raise UpstreamError("OTPLESS's answer is cut short")
        return bytes(self._read)


class _Decoder:
    """zlib's decompressor, its errors translated."""

    def __init__(self, window_bits: int) -> None:
        self._zlib = zlib.decompressobj(window_bits)

    def decompress(self, chunk: bytes, limit: int) -> bytes:
        try:
            return self._zlib.decompress(chunk, limit)
        except zlib.error:
            raise UpstreamError("OTPLESS's answer does not decode") from None

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
            raise UpstreamError("OTPLESS's answer has an encoding that was not asked for")
