"""What is sent to a browser: whole events of upstream's bytes, or what ``encode`` returns for each event."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Final, TypeVar

from friendli_async._core.error_json import is_object, json_or_none
from friendli_async._core.events.decoding import DONE
from friendli_async._core.events.sse import SSEDecoder
from friendli_async._core.text import split_surrogate
from friendli_async._json import encode_json, replace_surrogates

__all__ = ["Encoded"]

E = TypeVar("E")

Encoded = str | bytes | dict[str, Any] | None
"""What to send for an event: a str as the data of an SSE event (it may have several lines), a dict as JSON data, bytes
unchanged (whole SSE events of your own), None for nothing. Half a character that ends a str is sent with the next."""

_BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r")
_OVERLAP: Final = 2  # bytes of a blank line that may end one piece while the rest begins the next


async def whole_events(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Re-chunks bytes at event boundaries, so that a ping or an error event can be sent between any two chunks.

    A browser cannot use a partial event anyway; one at the end is dropped. Each byte is scanned once, however the
    pieces are split.
    """
    incomplete: list[bytes] = []  # pieces of an incomplete event
    last = b""  # its last bytes
    async for piece in pieces:
        if not incomplete and piece.endswith(_BLANK_LINES):  # nearly every piece
            yield piece
            continue
        end = _end_of_events(last + piece) - len(last)
        rest = piece
        if end > 0:
            yield b"".join((*incomplete, piece[:end]))
            incomplete, last, rest = [], b"", piece[end:]
        if rest:
            incomplete.append(rest)
            last = (last + rest)[-_OVERLAP:]
    rest = b"".join(incomplete)
    if _lacks_only_blank_line(rest):
        yield rest + (b"\n" if rest.endswith(b"\n") else b"\n\n")


def _lacks_only_blank_line(data: bytes) -> bool:
    """Whether the last bytes of a stream are a whole event, which ``[DONE]`` and JSON objects prove to be.

    The SSE standard discards an event that the end of the stream truncates.
    """
    decoder = SSEDecoder()
    events, last = decoder.feed(data), decoder.unfinished_data()
    return bool(events) if last is None else last.strip() == DONE or is_object(json_or_none(last))


def _end_of_events(data: bytes) -> int:
    """Returns the position after the last blank line, or -1 if there is none."""
    return max((start + len(line) for line in _BLANK_LINES if (start := data.rfind(line)) >= 0), default=-1)


async def encoded_events(events: AsyncIterator[E], encode: Callable[[E], Encoded]) -> AsyncGenerator[bytes]:
    """Yields what to send for each event, unless that is nothing.

    Raises:
        TypeError: ``encode`` returned something that cannot be sent.
    """
    held = ""  # half a character, which the next text completes
    async for event in events:
        payload = encode(event)
        if isinstance(payload, str) and (held or payload):
            payload, held = split_surrogate(held, payload)
            payload = payload or None
        if data := sse_bytes(payload, "encode must return"):
            yield data
    if held:
        yield sse_bytes(held, "encode must return")


def sse_bytes(payload: object, rule: str) -> bytes:
    """Returns what to send for a payload; see ``Encoded``.

    Raises:
        TypeError: It cannot be sent. ``rule`` begins the message.
    """
    if isinstance(payload, str):
        return b"".join(b"data: %b\n" % line.encode() for line in _split_lines(replace_surrogates(payload))) + b"\n"
    if payload is None or isinstance(payload, bytes):
        return payload or b""
    if isinstance(payload, dict):
        return b"data: %b\n\n" % encode_json(payload)
    raise TypeError(f"{rule} str, bytes, dict or None, not {type(payload).__name__}")


def _split_lines(text: str) -> list[str]:
    """Splits lines as the SSE standard does; `str.splitlines` accepts more line terminators."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def error_event(payload: bytes | dict[str, Any] | None) -> bytes:
    """Returns what to send for an error: the data of ``event: error``, bytes of your own, or nothing."""
    if payload is None or isinstance(payload, bytes):
        return payload or b""
    return b"event: error\ndata: " + encode_json(payload) + b"\n\n"
