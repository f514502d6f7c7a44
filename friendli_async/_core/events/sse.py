"""A parser of server-sent events. No I/O, no clock.

Implements "Parsing an event stream" and "Interpreting an event stream" of the WHATWG HTML standard (9.2.5, 9.2.6):
https://html.spec.whatwg.org/multipage/server-sent-events.html. Events that have no data are not dispatched; an event
truncated by the end of the stream is discarded; ``id`` and ``retry`` are ignored, since a reply cannot be resumed.
"""

from __future__ import annotations

from typing import Final

import msgspec

from friendli_async.errors import ResponseDecodeError

DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
# As ints: searching bytes for an int takes a seventh of the time of searching for bytes.
_LF: Final = 10
_CR: Final = 13
_MAX_STRAY: Final = 4096
_IGNORED: Final = (b"", b"id", b"retry")  # a comment has no field name
_NAMES: Final = (b"data", b"event", b"id", b"retry")
_MAX_SINGLE: Final = 4096
"""The largest input for ``single``, in bytes: for a larger one, the copies cost more than it saves."""


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event. ``data`` stays bytes: msgspec decodes bytes, UTF-8 and JSON in one pass."""

    data: bytes
    event: str | None = None
    """The ``event`` field, or None."""
    stray: bytes = b""
    """The stray lines before the end of the event: see ``SSEDecoder``."""


class SSEDecoder:
    """Parses the bytes of one stream, split anywhere, into events.

    A first data line ``[DONE]`` ends the stream, whatever follows it: the blank line may never come.

    Args:
        limit: The size limit of an event in bytes, including field names and comments.
        redundant: The event names that say no more than the data: ``single`` and ``plain`` accept and omit them.

    Attributes:
        error: Set once an event is larger than ``limit``. The events before it were returned; nothing follows it.
        stray: The beginning of the lines that are not fields, e.g. the error message of a server or proxy that did not
            send a stream.
    """

    def __init__(self, limit: int = 32 * 1024 * 1024, redundant: frozenset[bytes] = frozenset()) -> None:
        self.error: ResponseDecodeError | None = None
        self.stray = b""
        self._is_idle = False  # nothing is pending: the next byte starts an event
        self._limit = limit
        self._max_single = min(limit, _MAX_SINGLE)
        self._redundant = redundant
        self._is_first = True  # all bytes so far are kept in `_line`, and may be the beginning of a BOM
        self._after_cr = False  # the last byte was a CR: if an LF follows, both are one line end
        self._line = bytearray()  # the unfinished line; extended in place, so that a long one takes linear time
        self._size = 0  # bytes of the finished lines of the unfinished event
        self._data: bytes | None = None  # its first data line
        self._more: list[bytes] = []  # its other data lines
        self._name: str | None = None

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Parses the next bytes, split anywhere, and returns the events that they complete."""
        if self.error is not None:
            return []
        if self._is_first:
            data = self._without_bom(data)
            if self._is_first:
                return []
        if self._after_cr or _CR in data:
            data = self._normalize_newlines(data)
        lines = data.split(b"\n")
        may_overflow = self._size + len(self._line) + len(data) > self._limit
        rest = lines.pop()
        if self._line and lines:
            self._line += lines[0]
            lines[0] = bytes(self._line)
            self._line = bytearray()
        if rest:
            self._line += rest
        if may_overflow:
            lines = self._within_limit(lines)
        events = self._interpret(lines)
        self._update_size(lines)
        self._is_idle = not (self._line or self._size or self._after_cr or self.error)
        return events

    def _without_bom(self, data: bytes) -> bytes:
        """Removes a byte order mark from the beginning of the stream (9.2.5); b"" while it may be unfinished."""
        data = bytes(self._line) + data
        self._is_first = len(data) < len(_BOM) and _BOM.startswith(data)
        self._line = bytearray(data if self._is_first else b"")
        return b"" if self._is_first else data.removeprefix(_BOM)

    def single(self, data: bytes) -> bytes | None:
        """Parses the next bytes if they are exactly one event of one line, ``data: ...``, and perhaps a redundant name.

        This is the fast path for nearly every read of a live stream.

        Returns:
            The data of the event; None, without consuming anything, if the bytes are anything else.
        """
        if self._is_idle and len(data) <= self._max_single:
            line, _, rest = data.partition(b"\n")  # `in` and slices are the cheapest operations on bytes
            if rest != b"\n" and self._is_redundant(line):
                line, _, rest = rest.partition(b"\n")
            if rest == b"\n" and line[:6] == b"data: " and _CR not in line:
                return line[6:]
        return None

    def plain(self, data: bytes) -> tuple[bytes, list[bytes]] | None:
        """Parses the next bytes if they complete only such events as ``single`` accepts, and may begin another.

        This is the fast path for nearly every large read of a token stream, at a fraction of the cost of ``feed``.

        Returns:
            The bytes from the first of these events on, for another decoder, and the data of each event. None, without
            consuming anything, if there is anything else: then call ``feed``.
        """
        if _LF not in data or _CR in data or self._size + len(self._line) + len(data) > self._limit:
            return None  # checked first: copying the unfinished line may be slow
        if (begun := self._begun()) is None:
            return None
        data = begun + data
        end = data.rfind(b"\n\n")
        rest = data[end + 2 :]
        name, _, line = rest.rpartition(b"\n")
        if end < 0 or (name and not self._is_redundant(name)):
            return None
        payloads = self._payloads(data, end)
        if payloads is None or _LF in b"".join(payloads):
            return None
        self._is_first = False
        if rest or not self._is_idle:
            self._line = bytearray(line)
            self._name = name[7:].decode() if name else None
            self._size = len(name) + 1 if name else 0
            self._is_idle = not rest
        return data, payloads

    def _begun(self) -> bytes | None:
        """Returns the bytes of the unfinished event if they are part of one line, after at most a redundant name."""
        if self._is_idle:
            return b""
        if self.error is not None or self._after_cr or self._data is not None:
            return None
        name = b"" if self._name is None else b"event: %b\n" % self._name.encode()
        return name + self._line if len(name) == self._size else None

    def _payloads(self, data: bytes, end: int) -> list[bytes] | None:
        """Returns the data of the events up to ``end``, all with a redundant name or all without a name; else None."""
        if data[:6] == b"data: ":
            return data[6:end].split(b"\n\ndata: ")
        if data[:7] != b"event: ":
            return None
        parts = [event.partition(b"\ndata: ") for event in data[7:end].split(b"\n\nevent: ")]
        names = [name for name, separator, _ in parts if separator]
        are_plain = len(names) == len(parts) and self._redundant.issuperset(names)
        return [payload for _, _, payload in parts] if are_plain else None

    def _is_redundant(self, line: bytes) -> bool:
        return line[:7] == b"event: " and line[7:] in self._redundant

    @property
    def is_done(self) -> bool:
        """Whether the first data line of the unfinished event is ``[DONE]``."""
        return self._data == DONE

    @property
    def lacks_line_end(self) -> bool:
        """Whether the blank line after ``[DONE]``, or the LF of a CRLF, may still follow."""
        return self.is_done or self._after_cr

    def unfinished(self) -> ServerSentEvent | None:
        """Returns the event that the end of the stream truncated, including an unfinished line, or None."""
        line = bytes(self._line)
        if not any(name.startswith(line) for name in _NAMES):  # else it is empty or says nothing: ``dat``
            self._interpret([line])
        if self._data is None:
            return None
        return ServerSentEvent(b"\n".join([self._data, *self._more]), self._name, self.stray)

    def _interpret(self, lines: list[bytes]) -> list[ServerSentEvent]:
        """Interprets lines as in 9.2.6."""
        events: list[ServerSentEvent] = []
        data = self._data
        for line in lines:
            if not line:
                if data is not None:
                    if self._more:
                        data = b"\n".join([data, *self._more])
                        self._more.clear()
                    events.append(ServerSentEvent(data, self._name, self.stray))
                    data = None
                self._name = None
            elif data is None and line.startswith(b"data: "):
                data = line[6:]
            else:
                data = self._field(line, data)
        self._data = data
        return events

    def _field(self, line: bytes, data: bytes | None) -> bytes | None:
        """Handles any other field than the first ``data: ...``; returns the first data line of the event."""
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            if data is None:
                return value
            if data != DONE:
                self._more.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace") or None
        elif field not in _IGNORED and data != DONE and len(self.stray) < _MAX_STRAY:
            self.stray = (self.stray + line + b"\n")[:_MAX_STRAY]
        return data

    def _update_size(self, lines: list[bytes]) -> None:
        """Updates the size of the unfinished event after these lines."""
        size = 0
        for line in reversed(lines):
            if not line:
                break
            size += len(line) + 1
        else:
            size += self._size
        self._size = size

    def _within_limit(self, lines: list[bytes]) -> list[bytes]:
        """Returns the lines before an event that is too large, and sets ``error`` if there is one."""
        size = self._size
        for index, line in enumerate(lines):
            size = size + len(line) + 1 if line else 0
            if size - 1 > self._limit:
                self._overflow(line)
                return lines[:index]
        if self._line and size + len(self._line) > self._limit:
            self._overflow(bytes(self._line[:200]))
        return lines

    def _overflow(self, line: bytes) -> None:
        self._line = bytearray()
        self.error = ResponseDecodeError(
            f"an event of the stream is larger than the limit of {self._limit} bytes (Limits.event)",
            excerpt=line[:200].decode("utf-8", "replace"),
        )

    def _normalize_newlines(self, data: bytes) -> bytes:
        """Replaces CR and CRLF with LF. A CR at the end counts immediately; an LF that follows it is dropped."""
        if not data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
