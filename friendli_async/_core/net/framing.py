"""Chunked framing of reads that hold whole chunks and nothing else: what lets them go past aiohttp's parser."""

from __future__ import annotations

import re
from types import ModuleType
from typing import TYPE_CHECKING, Final

from aiohttp import StreamReader, http_parser

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

__all__ = ["CAN_BYPASS", "between_chunks", "can_bypass", "whole_chunks"]

# What aiohttp's C parser and any other take for the size of a chunk: digits alone, and few of them.
_DIGITS: Final = b"0123456789ABCDEFabcdef"
_head = re.compile(rb"([%b]{1,8})\r\n" % _DIGITS).match


def can_bypass(reader: type, parsers: ModuleType) -> bool:
    """Whether it can be told where aiohttp's parser stands: it is the C one, and notes where chunks end."""
    is_c = parsers.HttpResponseParser is getattr(parsers, "HttpResponseParserC", None)
    return is_c and "_http_chunk_splits" in getattr(reader, "__slots__", ())


CAN_BYPASS: Final = can_bypass(StreamReader, http_parser)
"""Whether it can with the aiohttp that is installed; where it cannot, all goes through its parser."""


def between_chunks(protocol: ResponseHandler, content: StreamReader, data: bytes) -> bool:
    """Whether the parser, having been fed ``data``, stands exactly behind a chunk and before the next one.

    The body's last byte so far ended a chunk, so that all that the parser can have read since then is a part of the
    next chunk's head, or of the trailer. Neither can have an LF before the CRLF that it ends with: the LF would have
    ended the head, and the CRLF be data. Nor does it hold back anything: it pauses amid a chunk only.
    """
    if not data.endswith(b"\n\r\n") or content.is_eof() or protocol.exception() is not None:
        return False
    splits = content._http_chunk_splits  # pyright: ignore[reportPrivateUsage]  # nothing public tells
    return splits is not None and bool(splits) and splits[-1] == content.total_bytes


def whole_chunks(data: bytes) -> bytes | None:
    """What a read carries that is whole chunks, none of them the last one; None where it is anything else."""
    size, _, body = data.partition(b"\r\n")
    if 0 < len(size) <= 8 and not size.strip(_DIGITS) and int(size, 16) == len(body) - 2 and body[-2:] == b"\r\n":
        return body[:-2] or None  # one chunk, as each event of a live stream is: in few steps
    pieces: list[bytes] = []
    place, end = 0, len(data)
    while place < end:
        head = _head(data, place)
        if head is None:
            return None
        begin = head.end()
        behind = begin + int(head[1], 16)
        place = behind + 2
        if place > end or behind == begin or data[behind:place] != b"\r\n":
            return None
        pieces.append(data[begin:behind])
    return b"".join(pieces) or None
