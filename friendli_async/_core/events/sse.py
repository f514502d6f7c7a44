"""Server-sent events: bytes in, events out. No I/O, no clock.

Implements "Parsing an event stream" and "Interpreting an event stream" of the WHATWG HTML standard (9.2.5, 9.2.6):
https://html.spec.whatwg.org/multipage/server-sent-events.html. Events that have no data are not dispatched; an event
that the end of the stream cuts is discarded; ``retry`` is passed over, since nobody reconnects to an answer.
"""

from __future__ import annotations

from typing import Final

import msgspec

from friendli_async.errors import ResponseDecodeError

__all__ = ["SSEDecoder", "ServerSentEvent"]

_BOM: Final = b"\xef\xbb\xbf"
# As ints: looking for an int in bytes costs a seventh of looking for bytes.
_LF: Final = 10
_CR: Final = 13
_STRAY: Final = 4096
_SMALL: Final = 4096
"""The most bytes that are looked at as if they were one event: copying more of them costs what it saves."""


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event. ``data`` stays bytes: msgspec decodes bytes, UTF-8 and JSON in one pass."""

    data: bytes
    event: str | None = None
    """The ``event`` field; None where the stream named none."""
    id: str = ""
    """The last ``id`` of the stream so far (9.2.6: it stays in force until another replaces it)."""


class SSEDecoder:
    """Turns the bytes of one stream, in whatever pieces they come, into events.

    Args:
        limit: The largest event in bytes, its field names and comments included.

    Attributes:
        error: Set once an event is larger than ``limit``. The events before it were returned; nothing follows it.
        stray: The beginning of what came in lines that are no fields: words of a server or proxy that answers with
            something else than a stream.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_fresh",
        "_head",
        "_id",
        "_limit",
        "_line",
        "_more",
        "_name",
        "_size",
        "_small",
        "error",
        "stray",
    )

    def __init__(self, limit: int = 32 * 1024 * 1024) -> None:
        self.error: ResponseDecodeError | None = None
        self.stray = b""
        self._fresh = False  # nothing is pending: the next byte begins an event
        self._limit = limit
        self._small = min(limit, _SMALL)
        self._head: bytes | None = b""  # the first bytes, until it is known whether they are a BOM; then None
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._line = bytearray()  # the unfinished line; grown in place, which keeps a long one linear
        self._size = 0  # bytes of the unfinished event's finished lines
        self._data: bytes | None = None  # its first data line,
        self._more: list[bytes] = []  # and the others
        self._name: str | None = None
        self._id = ""

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Takes the next bytes.

        Args:
            data: Any number of bytes, split anywhere.

        Returns:
            The events that these bytes complete.
        """
        if self.error is not None:
            return []
        if self._head is not None:
            data = self._without_bom(data)
        if self._after_cr or _CR in data:
            data = self._normalised(data)
        lines = data.split(b"\n")
        tight = self._size + len(self._line) + len(data) > self._limit
        rest = lines.pop()
        if self._line and lines:
            self._line += lines[0]
            lines[0] = bytes(self._line)
            self._line = bytearray()
        if rest:
            self._line += rest
        if tight:
            lines = self._within_limit(lines)
        events = self._interpret(lines)
        self._count(lines)
        self._fresh = not (
            self._line or self._size or self._after_cr or self._head is not None or self._name or self.error
        )
        return events

    def single(self, data: bytes) -> bytes | None:
        """Takes the next bytes, if they are one event of one line, ``data: ...``, and nothing else.

        Nearly every read of a live stream is like that.

        Returns:
            The event's data; None where they are anything else: then nothing was taken.
        """
        if self._fresh and len(data) <= self._small:
            line, _, rest = data.partition(b"\n")  # with `in` and slices, what costs least of bytes
            if rest == b"\n" and line[:6] == b"data: " and _CR not in line:
                return line[6:]
        return None

    def plain(self, data: bytes) -> list[bytes] | None:
        """Takes the next bytes, if all that they complete is events of one line, ``data: ...``.

        Nearly every large read of a stream of tokens is like that, and it costs a fraction of what ``feed`` does.

        Returns:
            The data of the events; None where there is anything else: then nothing was taken, and ``feed`` is due.
        """
        if _LF not in data or _CR in data or len(self._line) + len(data) > self._limit:
            return None  # before the unfinished line is copied, which may be long
        if self._fresh:
            whole = data
        elif self._line and not (self._after_cr or self._size or self._name or self.error or self._head is not None):
            whole = bytes(self._line) + data
        elif self._head == b"" and self.error is None:  # the first bytes; these are no byte order mark
            whole = data
        else:
            return None
        if not whole.startswith(b"data: "):
            return None
        payloads = whole.split(b"\n\ndata: ")
        payloads[0] = payloads[0][6:]
        last = payloads.pop()
        unfinished = b""
        if last.endswith(b"\n\n"):
            payloads.append(last[:-2])
        else:
            unfinished = b"data: " + last
        if _LF in unfinished or _LF in b"".join(payloads):
            return None
        self._head = None
        if unfinished:
            self._line = bytearray(unfinished)
            self._fresh = False
        elif not self._fresh:
            self._line = bytearray()
            self._fresh = True
        return payloads

    def ends_with(self, data: bytes) -> bool:
        """Whether the unfinished event has exactly this data, in a finished line."""
        return self._data == data and not self._line and not self._more

    def cut(self) -> bytes | None:
        """At the end of the stream: the data of the event that was cut off, unfinished line included, or None."""
        if self._line:  # an empty one would end the event
            self._interpret([bytes(self._line)])
        return None if self._data is None else b"\n".join([self._data, *self._more])

    def _interpret(self, lines: list[bytes]) -> list[ServerSentEvent]:
        """9.2.6, line by line."""
        events: list[ServerSentEvent] = []
        data = self._data
        for line in lines:
            if not line:
                if data is not None:
                    if self._more:
                        data = b"\n".join([data, *self._more])
                        self._more.clear()
                    events.append(ServerSentEvent(data, self._name, self._id))
                    data = None
                self._name = None
            elif data is None and line.startswith(b"data: "):
                data = line[6:]
            else:
                data = self._field(line, data)
        self._data = data
        return events

    def _field(self, line: bytes, data: bytes | None) -> bytes | None:
        """Takes a field in that is not the everyday ``data: ...``; returns the event's first data line."""
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            if data is None:
                return value
            self._more.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace") or None
        elif field == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif field and field != b"retry" and len(self.stray) < _STRAY:  # a comment has no field
            self.stray = (self.stray + line + b"\n")[:_STRAY]
        return data

    def _count(self, lines: list[bytes]) -> None:
        """Counts what these lines leave of an unfinished event."""
        size = 0
        for line in reversed(lines):
            if not line:
                break
            size += len(line) + 1
        else:
            size += self._size
        self._size = size

    def _within_limit(self, lines: list[bytes]) -> list[bytes]:
        """Returns the lines before the event that is too large, if there is one, and notes the error."""
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

    def _without_bom(self, data: bytes) -> bytes:
        """9.2.5: one leading byte order mark is ignored."""
        head = (self._head or b"") + data
        if len(head) < len(_BOM) and _BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BOM)

    def _normalised(self, data: bytes) -> bytes:
        """CR and CRLF as LF. A CR at the end counts at once; should an LF follow, it is dropped then."""
        if not data:
            return data
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            if not data:
                self._after_cr = False
                return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
