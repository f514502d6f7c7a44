"""Bounded decompression: in steps, so that a reader can stop at its limit; input that gives nothing counts, too."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from friendli_async.errors import ResponseDecodeError

if TYPE_CHECKING:
    from zlib import _Decompress  # pyright: ignore[reportPrivateUsage]  # it has no public name

__all__ = ["Inflater", "inflater"]

_STEP: Final = 1024 * 1024
# Names that servers and proxies have for "not compressed", beside the standard's own (RFC 9110 8.4.1, 12.5.3).
_IDENTITY: Final = frozenset({"", "identity", "none", "null", "binary", "plain", "text", "utf-8", "8bit", "7bit"})
_CONTROLS: Final = bytes(byte for byte in range(32) if byte not in b"\t\r\n\f\x1b")
# So many bytes of bare deflate data do not all look like text.
_TELLING: Final = 32


def inflater(encoding: str) -> Inflater | None:
    """A decompressor for a Content-Encoding (RFC 9110 8.4.1); None where there is nothing to decompress.

    A name that stands there several times is that of one header, which a proxy has sent once more.
    """
    if not encoding:
        return None
    named = [name for part in encoding.split(",") if (name := part.strip().lower()) not in _IDENTITY]
    names = dict.fromkeys("gzip" if name == "x-gzip" else name for name in named)
    return Inflater(", ".join(names), ", ".join(named)) if names else None


class Inflater:
    """Decompresses a body in steps of at most 1 MiB, so that whoever reads can stop at a limit.

    A gzip body may have several members (RFC 1952 2.2), one behind the other. What comes behind the last of them, zeros
    apart, is an error; so is a member after another that holds nothing, beyond 1 MiB of them: else a peer that sends
    without end would keep the reader busy, and no limit would see it.

    A body that begins as text is text, whatever it is labelled as: servers' own errors come so, through gateways that
    would have compressed the answer.

    Args:
        encoding: What the body is compressed with; of several names none is known.
        named: The same in the server's words, for errors.
    """

    def __init__(self, encoding: str, named: str) -> None:
        self._encoding = encoding
        self._named = named
        self._inflate: _Decompress | None = None
        self._input = b""
        self._more = False  # the last step was a full one, so there may be more behind it
        self._barren = 0  # bytes of input since the last output
        self._is_text = False
        self.unread = b""
        """The first input, where it is none of that compression: words in another charset than UTF-8, it may be."""

    @property
    def finished(self) -> bool:
        """Whether the compressed data has ended as it should."""
        return self._is_text or (self._inflate is not None and self._inflate.eof)

    @property
    def needs_input(self) -> bool:
        """Whether it needs more data; else ``step(b"")`` goes on."""
        return not self._input and not self._more

    def step(self, data: bytes) -> bytes:
        """Takes data and returns what at most 1 MiB of it decompresses to.

        Raises:
            ResponseDecodeError: The compression is broken, or one that was not asked for, or there is more behind it.
        """
        if self._is_text or (self._inflate is None and self._is_mislabelled(data)):
            self._is_text = True
            return data
        if self._inflate is None:
            self.unread = data
            self._inflate = self._begin(data)
        self._barren += len(data)
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
            self._barren = 0 if plain else self._barren
            self.unread = b"" if plain else self.unread
            if self._barren <= _STEP:
                return plain
            reason = f"{self._barren} bytes say nothing"
        raise ResponseDecodeError(f"the reply's compression is broken: {reason} ({self._named})")

    def _is_mislabelled(self, data: bytes) -> bool:
        """Whether the first bytes are those of a text, and so of nothing compressed."""
        text = data.decode("utf-8", "replace").rstrip("\ufffd")  # a character may be cut off at the end
        if not text or "\ufffd" in text or len(data.translate(None, _CONTROLS)) < len(data):
            return False
        if self._encoding != "deflate" or len(data) >= _TELLING:
            return True
        try:  # bare deflate data has no mark of its own, and a few bytes of it may look like text
            self._begin(data).decompress(data, _STEP)
        except zlib.error:
            return True
        return False

    def _next_member(self, data: bytes) -> bytes:
        """What follows the end: another member of a gzip body, for which it begins anew, or padding."""
        self._input, self._more = b"", False
        data = data.lstrip(b"\0")
        if data and self._encoding == "gzip" and b"\x1f\x8b".startswith(data[:2]):
            self._inflate = self._begin(data)
            return data
        if data or self._barren > _STEP:
            raise ResponseDecodeError("the reply's compression is broken: there are bytes behind its end")
        return b""

    def _begin(self, data: bytes) -> _Decompress:
        if self._encoding == "gzip":
            return zlib.decompressobj(zlib.MAX_WBITS | 16)
        if self._encoding == "deflate":
            # RFC 9110 8.4.1.2: "deflate" means the zlib format, and some send it bare all the same.
            return zlib.decompressobj(zlib.MAX_WBITS if data[0] & 0x0F == 8 else -zlib.MAX_WBITS)
        raise ResponseDecodeError(f"the reply is compressed with {self._named!r}, which was not asked for")
