"""Reads a stream up to its first event: until then, the call may still be retried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from friendli_async._core.events.plain_reply import not_a_stream
from friendli_async._core.events.reader import Collector, EventReader
from friendli_async.errors import ResponseDecodeError, StreamInterruptedError

if TYPE_CHECKING:
    from friendli_async._core.net.exchange import Exchange
    from friendli_async._core.timing import Stopwatch
    from friendli_async.options import Limits

E = TypeVar("E")

# Servers often mislabel their streams; for any other content type the first bytes decide.
_STREAM_TYPES: Final = frozenset({"text/event-stream", "text/plain", "application/octet-stream", ""})
_BOM_AND_SPACE: Final = b"\xef\xbb\xbf \t\r\n"
_STREAM_PREFIXES: Final = (b"data:", b"event:", b"id:", b"retry:", b":")


async def open_reader(
    exchange: Exchange,
    collector: Collector[E, Any, Any],
    decoder: msgspec.json.Decoder[Any],
    limits: Limits,
    stopwatch: Stopwatch,
) -> tuple[EventReader[E], bytes]:
    """Reads until a stream has its first event, or has ended without any but successfully.

    ``decoder`` decodes a plain reply, which some servers send instead.

    Returns:
        The reader of the stream, and the bytes so far.

    Raises:
        FriendliError: There is no event, but an error, or no stream.
    """
    data = await exchange.read()
    if not data.startswith(_STREAM_PREFIXES):  # nearly all streams do
        data = await _read_beginning(data, exchange, decoder, limits)
    kept = bytearray(data)
    reader = EventReader(collector, limits.event, exchange.head)
    reader.feed(data)
    stopwatch.record_read(len(data), len(reader.ready))
    while not reader.ready and not reader.has_ended:
        _check_size(kept, limits)
        data = await exchange.read()
        kept += data
        reader.feed(data)
        stopwatch.record_read(len(data), len(reader.ready))
    failure = reader.failure
    if failure is not None and not reader.ready:
        if isinstance(failure, StreamInterruptedError) and kept.lstrip().startswith(b"{"):
            failure = not_a_stream(bytes(kept), decoder, exchange.head)
        raise failure
    return reader, bytes(kept)


def _check_size(begun: bytearray, limits: Limits) -> None:
    if len(begun) > limits.event:
        raise ResponseDecodeError(
            f"the data before the first event is larger than the limit of {limits.event} bytes (Limits.event)"
        )


async def _read_beginning(data: bytes, exchange: Exchange, decoder: msgspec.json.Decoder[Any], limits: Limits) -> bytes:
    """Reads on after the first bytes; raises if neither they nor the content type indicate an event stream."""
    content_type = exchange.head.headers.get("content-type", "")
    types = {part.partition(";")[0].strip().lower() for part in content_type.split(",")}  # may be repeated
    if types & _STREAM_TYPES:
        return data
    begun, start = bytearray(data), data.lstrip(_BOM_AND_SPACE)
    while data and any(prefix.startswith(start) for prefix in _STREAM_PREFIXES):  # the next bytes decide
        data = await exchange.read()
        begun += data
        start = (start + data).lstrip(_BOM_AND_SPACE)
        _check_size(begun, limits)
    data = bytes(begun)
    if start.startswith(_STREAM_PREFIXES):
        return data
    data += await exchange.read_some((limits.reply if start.startswith(b"{") else limits.error) - len(data))
    raise not_a_stream(data, decoder, exchange.head)
