"""Server-sent events: bytes in, events out. No I/O, no clock.

Implements "Parsing an event stream" and "Interpreting an event stream" of the WHATWG HTML standard (9.2.5, 9.2.6):
https://html.spec.whatwg.org/multipage/server-sent-events.html. Events that have no data are not dispatched; an event
that the end of the stream cuts is discarded.
"""

from __future__ import annotations

from typing import Final

import msgspec

from friendli_async.errors import ResponseDecodeError

__all__ = ["SSEDecoder", "ServerSentEvent"]

_BOM: Final = b"\xef\xbb\xbf"


class ServerSentEvent(msgspec.Struct, frozen=True, gc=False):
    """One dispatched event. ``data`` stays bytes: its decoder wants bytes, and decodes UTF-8 while it is at it."""

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
        retry: The reconnection time that the stream asked for, in milliseconds, or None.
    """

    def __init__(self, limit: int = 32 * 1024 * 1024) -> None:
        self.error: ResponseDecodeError | None = None
        self.retry: int | None = None
        self._limit = limit
        self._id = ""
        self._head: bytes | None = b""  # the first bytes, until it is known whether they are a BOM; then None
        self._after_cr = False  # the last byte was a CR: an LF that follows belongs to it
        self._pieces: list[bytes] = []  # the incomplete event, line ends normalised to LF
        self._size = 0

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
        if self._after_cr or b"\r" in data:
            data = self._normalised(data)
        if self._pieces:
            # The boundary may straddle the pieces. Joining only when it is there keeps a large event linear.
            if b"\n\n" not in data and not (data[:1] == b"\n" and self._pieces[-1][-1:] == b"\n"):
                self._keep(data)
                return []
            self._pieces.append(data)
            data = b"".join(self._pieces)
            self._pieces.clear()
        *blocks, rest = data.split(b"\n\n")
        events: list[ServerSentEvent] = []
        within_limit = len(data) <= self._limit
        for block in blocks:
            if not within_limit and len(block) > self._limit:
                self._overflow(block)
                return events
            if block.startswith(b"data: ") and b"\n" not in block:
                events.append(ServerSentEvent(block[6:], None, self._id))
            elif block:
                self._interpret(block, events)
        self._size = 0
        self._keep(rest)
        return events

    def pending(self) -> bytes | None:
        """The data of the event that has begun and is not dispatched yet; None where it has no data line.

        An unfinished last line counts, so it is meant for the end of a stream, and for ``[DONE]``.
        """
        lines = b"".join(self._pieces).split(b"\n")
        return _data_of(lines)

    def at_line_end(self) -> bool:
        """Whether the last line of the incomplete event is finished."""
        return not self._pieces or self._pieces[-1].endswith(b"\n")

    @property
    def size(self) -> int:
        """Bytes held of the incomplete event."""
        return self._size

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

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self._pieces.append(data)
        self._size += len(data)
        # A line end that may prove to be half of the boundary is not the event's yet: so splitting changes nothing.
        if self._size - data.endswith(b"\n") > self._limit:
            self._overflow(self._pieces[0])

    def _overflow(self, block: bytes) -> None:
        self._pieces.clear()
        self.error = ResponseDecodeError(
            f"an event of the stream is larger than the limit of {self._limit} bytes (Limits.event)",
            excerpt=block[:200].decode("utf-8", "replace"),
        )

    def _interpret(self, block: bytes, events: list[ServerSentEvent]) -> None:
        """9.2.6, for a block of lines that a blank line ends."""
        lines = block.split(b"\n")
        name: str | None = None
        for line in lines:
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.removeprefix(b" ").decode("utf-8", "replace") or None
            elif field == b"id" and b"\0" not in value:
                self._id = value.removeprefix(b" ").decode("utf-8", "replace")
            elif field == b"retry" and (digits := value.removeprefix(b" ")[:18]).isdigit():
                self.retry = int(digits)
        data = _data_of(lines)
        if data is not None:
            events.append(ServerSentEvent(data, name, self._id))


def _data_of(lines: list[bytes]) -> bytes | None:
    values = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(values) if values else None
