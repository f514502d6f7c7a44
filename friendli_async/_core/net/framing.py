"""Recognizes reads that consist of whole HTTP chunks and can therefore bypass aiohttp's parser."""

from __future__ import annotations

import re
from types import ModuleType
from typing import TYPE_CHECKING, Final

from aiohttp import StreamReader, http_parser

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

# What aiohttp's C parser and any other accept as a chunk size: only hex digits, and few of them.
_DIGITS: Final = b"0123456789ABCDEFabcdef"
_head = re.compile(rb"([%b]{1,8})\r\n" % _DIGITS).match


def can_bypass(reader: type, parsers: ModuleType) -> bool:
    """Whether the position of aiohttp's parser is known: it is the C parser, and records where chunks end."""
    is_c = parsers.HttpResponseParser is getattr(parsers, "HttpResponseParserC", None)
    return is_c and "_http_chunk_splits" in getattr(reader, "__slots__", ())


CAN_BYPASS: Final = can_bypass(StreamReader, http_parser)
"""Whether the installed aiohttp allows the bypass; otherwise everything goes through its parser."""


def between_chunks(protocol: ResponseHandler, content: StreamReader, data: bytes) -> bool:
    """Whether the parser, after being fed ``data``, is exactly between two chunks.

    The last byte of the body so far ended a chunk, so whatever the parser has read since belongs to the next chunk's
    head or to the trailer. Neither can contain an LF before its final CRLF: that LF would have ended the head, and the
    CRLF would be data. The parser also buffers nothing here: it pauses only within a chunk.
    """
    if not data.endswith(b"\n\r\n") or content.is_eof() or protocol.exception() is not None:
        return False
    splits = content._http_chunk_splits  # pyright: ignore[reportPrivateUsage]  # no public API
    return splits is not None and bool(splits) and splits[-1] == content.total_bytes


def whole_chunks(data: bytes) -> bytes | None:
    """Returns the payload of a read that consists of whole chunks, none of them the last; None for any other read."""
    size, _, body = data.partition(b"\r\n")
    if 0 < len(size) <= 8 and not size.strip(_DIGITS) and int(size, 16) == len(body) - 2 and body[-2:] == b"\r\n":
        return body[:-2] or None  # fast path: one chunk, as for each event of a live stream
    pieces: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        head = _head(data, position)
        if head is None:
            return None
        start = head.end()
        stop = start + int(head[1], 16)
        position = stop + 2
        if position > end or stop == start or data[stop:position] != b"\r\n":
            return None
        pieces.append(data[start:stop])
    return b"".join(pieces) or None
