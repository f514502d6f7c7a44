"""Bounded decompression: a small body must not become a large one all at once."""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from friendli_async.errors import ResponseDecodeError

__all__ = ["Inflater", "inflater"]

_STEP: Final = 1024 * 1024


class _Decompressor(Protocol):
    """What zlib.decompressobj returns."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def inflater(encoding: str) -> Inflater | None:
    """A decompressor for a Content-Encoding (RFC 9110 8.4.1); None where there is nothing to decompress."""
    encoding = encoding.strip().lower()
    return None if encoding in {"", "identity"} else Inflater(encoding)


class Inflater:
    """Decompresses a body in steps of at most 1 MiB, so that whoever reads can stop at a limit."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inflate: _Decompressor | None = None
        self._tail = b""
        self._more = False  # the last step was a full one, so there may be more behind it

    @property
    def finished(self) -> bool:
        """Whether the compressed data has ended as it should."""
        return self._inflate is not None and self._inflate.eof

    @property
    def hungry(self) -> bool:
        """Whether it needs more data; else ``step(b"")`` goes on."""
        return not self._tail and not self._more

    def step(self, data: bytes) -> bytes:
        """Takes data and returns what at most 1 MiB of it decompresses to.

        Raises:
            ResponseDecodeError: The compression is broken, or one that was not asked for.
        """
        if self._inflate is None:
            self._inflate = self._begin(data)
        try:
            plain = self._inflate.decompress(self._tail + data, _STEP)
        except zlib.error as error:
            reason = str(error)
        else:
            self._tail = self._inflate.unconsumed_tail
            self._more = len(plain) == _STEP
            return plain
        raise ResponseDecodeError(f"the reply's compression is broken: {reason}")

    def _begin(self, data: bytes) -> _Decompressor:
        if self._encoding in {"gzip", "x-gzip"}:
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._encoding == "deflate":
            # RFC 9110 8.4.1.2: "deflate" means the zlib format, and some send it bare all the same.
            return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
        raise ResponseDecodeError(f"the reply is compressed with {self._encoding!r}, which was not asked for")
