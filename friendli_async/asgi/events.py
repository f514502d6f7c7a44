"""What is sent to a browser: whole events of upstream's bytes, or what ``encode`` returns for each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from friendli_async._core.events.reader import is_whole
from friendli_async._core.events.sse import SSEDecoder
from friendli_async._core.text import split_surrogate
from friendli_async._json import encode_json, replace_surrogates

__all__ = ["Encoded"]

E = TypeVar("E")

Encoded = str | bytes | dict[str, Any] | None
"""What to send for an event: a str as the data of an SSE event (it may have several lines), a dict as JSON data, bytes
unchanged (whole SSE events of your own), None for nothing. Half a character that ends a str is sent with the next."""

_BLANK_LINES: Final = (b"\n\n", b"\n\r\n", b"\r\r", b"\n\r")  # if an LF follows a CR, the next event begins with it
_OVERLAP: Final = 2  # bytes of a blank line that may end one piece while the rest begins the next


class WholeEvents:
    """Re-chunks bytes at event boundaries, so that a ping or an error event can be sent between any two chunks.

    A browser cannot use a partial event anyway; one at the end is dropped. Each byte is scanned once, however the
    pieces are split.

    Args:
        mask: Masks secrets in whole events that were read last.
    """

    def __init__(self, mask: Callable[[bytes], bytes] = bytes) -> None:
        self._mask = mask
        self._incomplete: list[bytes] = []  # pieces of an incomplete event
        self._last = b""  # its last bytes

    def feed(self, item: bytes) -> bytes:
        """Returns the events that the piece completes."""
        if not self._incomplete and item.endswith(_BLANK_LINES):  # nearly every piece of a live stream
            return self._mask(item)
        end = _end_of_events(item)
        if end < 0:
            end = _end_of_events(self._last + item[:_OVERLAP]) - len(self._last)
        whole, rest = b"", item
        if end > 0:
            whole, rest = b"".join((*self._incomplete, item[:end])), item[end:]
            self._incomplete.clear()
            self._last = b""
        if rest:
            self._incomplete.append(rest)
            self._last = (self._last + rest[-_OVERLAP:])[-_OVERLAP:]
        return self._mask(whole)

    def finish(self) -> bytes:
        """Returns the last event, with its blank line, if it lacks only that, or the rest of the last line end."""
        rest = b"".join(self._incomplete)
        if rest == b"\n":
            return rest
        if not _lacks_only_blank_line(rest):
            return b""
        return self._mask(rest + (b"\n" if rest.endswith(b"\n") else b"\n\n"))


def _lacks_only_blank_line(data: bytes) -> bool:
    """Whether the last bytes of a stream are a whole event."""
    decoder = SSEDecoder()
    events, last = decoder.feed(data), decoder.unfinished()
    return bool(events) if last is None else is_whole(last)


def _end_of_events(data: bytes) -> int:
    """Returns the position after the last blank line, or -1 if there is none."""
    end = -1
    for line in _BLANK_LINES:
        if (start := data.rfind(line, max(0, end - len(line) + 1))) >= 0:
            end = start + len(line)
    return end


class EncodedEvents(Generic[E]):
    """What ``encode`` returns for each event.

    Args:
        encode: The function.
        rule: Begins the message of the error for something that cannot be sent.

    Raises:
        TypeError: ``encode`` returned something that cannot be sent.
    """

    def __init__(self, encode: Callable[[E], Encoded], rule: str) -> None:
        self._encode = encode
        self._rule = rule
        self._held = ""  # half a character, which the next text completes

    def feed(self, item: E) -> bytes:
        """Returns what to send for an event."""
        payload = self._encode(item)
        if isinstance(payload, str) and (self._held or payload):
            payload, self._held = split_surrogate(self._held, payload)
            payload = payload or None
        return sse_bytes(payload, self._rule)

    def finish(self) -> bytes:
        """Returns the half of a character that no text has completed."""
        return sse_bytes(self._held or None, self._rule)


Conversion = WholeEvents | EncodedEvents[Any]
"""Turns what is read from upstream into what is sent. No I/O."""


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


def error_event(payload: object) -> bytes:
    """Returns what to send for an error: the data of ``event: error``, bytes of your own, or nothing.

    Raises:
        TypeError: ``on_error`` returned something else.
    """
    if payload is None or isinstance(payload, bytes):
        return payload or b""
    if isinstance(payload, dict):
        return b"event: error\ndata: %b\n\n" % encode_json(payload)
    raise TypeError(f"on_error must return bytes, dict or None, not {type(payload).__name__}")
