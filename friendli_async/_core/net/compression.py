"""Bounded decompression, in steps: a reader can stop at its limit, and input that yields no output is limited, too."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from friendli_async.errors import ResponseDecodeError

if TYPE_CHECKING:
    from zlib import _Decompress  # pyright: ignore[reportPrivateUsage]  # it has no public name

_STEP: Final = 1024 * 1024
# Names that servers and proxies use for "not compressed", besides the standard's (RFC 9110 8.4.1, 12.5.3).
_IDENTITY: Final = frozenset({"", "identity", "none", "null", "binary", "plain", "text", "utf-8", "8bit", "7bit"})

_BEGINNINGS: Final = (b"{", b"[", b"<", b":", b"data:", b"event:", b"id:", b"retry:")
"""How JSON, markup and events begin. Raw deflate data may begin so, too; other data could not be decompressed."""


def inflater(encoding: str) -> Inflater | None:
    """Returns a decompressor for a Content-Encoding (RFC 9110 8.4.1), or None if the body is not compressed.

    A repeated name counts once: a proxy has duplicated the header.
    """
    if not encoding:
        return None
    named = [name for part in encoding.split(",") if (name := part.strip().lower()) not in _IDENTITY]
    names = dict.fromkeys("gzip" if name == "x-gzip" else name for name in named)
    return Inflater(", ".join(names), ", ".join(named)) if names else None


class Inflater:
    """Decompresses a body in steps of at most 1 MiB, so that the reader can stop at a limit.

    A gzip body may have several members (RFC 1952 2.2). Data after the last one is an error, unless it is zeros. So is
    more than 1 MiB of input without output, such as empty members: a peer that sends without end would otherwise keep
    the reader busy, and no size limit would notice.

    A body that is labelled as gzip and does not begin so, or as br, zstd and the like and begins as JSON, events or
    markup, is passed through: relays on httpx or requests decompress a body and keep its headers.

    Args:
        encoding: Normalized name of the compression. A list of several names is not supported.
        named: The same as the server spelled it, for errors.
    """

    def __init__(self, encoding: str, named: str) -> None:
        self._encoding = encoding
        self._named = named
        self._inflate: _Decompress | None = None
        self._input = b""
        self._more = False  # the last step filled its output, so there may be more
        self._since_output = 0  # bytes of input since the last output
        self._is_plain = False

    @property
    def finished(self) -> bool:
        """Whether the data has ended properly: also if it is not compressed, or there is none, whatever its label."""
        return self._inflate is None or self._inflate.eof

    @property
    def needs_input(self) -> bool:
        """Whether it needs more data; otherwise ``step(b"")`` continues."""
        return not self._input and not self._more

    def step(self, data: bytes) -> bytes:
        """Takes data and returns at most 1 MiB of output.

        Raises:
            ResponseDecodeError: The compression is broken or was not requested, or data follows its end.
        """
        if self._is_plain or (self._inflate is None and self._begins_plain(data)):
            self._is_plain = True
            return data
        if self._inflate is None:
            self._inflate = self._new_decompressor(data)
        self._since_output += len(data)
        data = self._input + data
        if self._inflate.eof and not (data := self._next_member(data)):
            return b""
        try:
            plain = self._inflate.decompress(data, _STEP)
        except zlib.error as error:
            reason = str(error)
        else:
            self._input = self._inflate.unconsumed_tail or self._inflate.unused_data
            self._more = len(plain) == _STEP
            self._since_output = 0 if plain else self._since_output
            if self._since_output <= _STEP:
                return plain
            reason = f"{self._since_output} bytes decompress to nothing"
        raise ResponseDecodeError(f"the compressed reply is corrupt: {reason} ({self._named})")

    def _begins_plain(self, data: bytes) -> bool:
        """Whether the first bytes are not compressed."""
        if self._encoding == "gzip":
            return not data.startswith(b"\x1f")
        return self._encoding != "deflate" and data.lstrip().startswith(_BEGINNINGS)

    def _next_member(self, data: bytes) -> bytes:
        """Returns the data of the next gzip member, for which it starts a new decompressor, or b"" for padding."""
        self._input, self._more = b"", False
        data = data.lstrip(b"\0")
        if data and self._encoding == "gzip" and b"\x1f\x8b".startswith(data[:2]):
            self._inflate = self._new_decompressor(data)
            return data
        if data or self._since_output > _STEP:
            raise ResponseDecodeError("the compressed reply is corrupt: unexpected data after its end")
        return b""

    def _new_decompressor(self, data: bytes) -> _Decompress:
        if self._encoding == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._encoding == "deflate":
            # RFC 9110 8.4.1.2: "deflate" means the zlib format, but some servers send raw deflate.
            return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
        raise ResponseDecodeError(f"the reply is compressed with {self._named!r}, which was not requested")
