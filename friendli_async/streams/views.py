"""Views of a stream: its text, piece by piece, its bytes, and what those of structured output have in common."""

# A view is a part of its stream:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from friendli_async._core.text import split_surrogate
from friendli_async._lazy import LazyModule
from friendli_async.errors import FriendliError

if TYPE_CHECKING:
    from friendli_async._core.events.reader import EventReader
    from friendli_async._core.events.stream import OpenStream
    from friendli_async.streams import stream as stream_module
    from friendli_async.streams import tee
else:  # which import this module
    stream_module, tee = LazyModule("friendli_async.streams.stream"), LazyModule("friendli_async.streams.tee")

__all__ = ["RawView", "TextView"]

_LINE_END_SECONDS: Final = 0.5
"""How long a relay waits for the rest of the last line ends, which some servers never send."""
_MAX_LINE_END: Final = 4096
"""How many bytes of comments and fields before the last blank line a relay reads after ``[DONE]``."""

T_co = TypeVar("T_co", covariant=True)


class View(Generic[T_co]):
    """A way to read a stream or a branch; closing the view closes the stream or the branch."""

    def __init__(self, stream: stream_module.EventStream[Any] | tee.Branch[Any]) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T_co]:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stream.__aexit__(*exc_info)

    async def aclose(self) -> None:
        """Closes the stream or the branch."""
        await self._stream.aclose()


class TextView(View[str]):
    """The text of a stream or a branch, piece by piece.

    It consumes the events, and closing it closes the stream or the branch.
    """

    def __init__(self, stream: stream_module.EventStream[Any] | tee.Branch[Any], pick: Callable[[Any], str]) -> None:
        super().__init__(stream)
        self._pick = pick
        self._high_surrogate = ""  # of a surrogate pair that is split between two tokens

    async def __anext__(self) -> str:
        while True:
            try:
                text = self._pick(await self._stream.__anext__())
            except StopAsyncIteration:
                if not self._high_surrogate:
                    raise
                text, self._high_surrogate = self._high_surrogate, ""
                return text
            if not text:
                continue
            if self._high_surrogate or "\ud800" <= text[-1] <= "\udbff":
                text, self._high_surrogate = split_surrogate(self._high_surrogate, text)
            if text:
                return text


class ValueView(View[T_co]):
    """A view of the value of structured output, which a response can serve."""


class RawView(View[bytes]):
    """The bytes of a stream's body, in the pieces in which they arrive. Closing the view closes the stream.

    No piece is empty, and a piece need not end at an event boundary.
    """

    _stream: stream_module.EventStream[Any]

    def __init__(self, stream: stream_module.EventStream[Any]) -> None:
        super().__init__(stream)
        self._line_end_read = False

    async def __anext__(self) -> bytes:
        stream = self._stream
        stream._begin_waiting()
        try:
            opened = stream._open
            if opened is None or opened.is_unread:
                opened = await stream._open_to_read()
            if opened is not None and (stream.outcome == "open" or opened.kept_bytes):
                if data := await self._read(opened):
                    return data
            else:
                stream._reject_after_result()
                stream._state.check_readable()
            raise StopAsyncIteration
        finally:
            stream._waiting = False

    async def _read(self, opened: OpenStream[Any, Any, Any]) -> bytes:
        """Reads the next bytes, unchanged. They are decoded, too, but their events are discarded.

        An error among them is raised once all bytes have been returned.

        Returns:
            The bytes; b"" if the stream has ended.

        Raises:
            FriendliError: The stream failed.
        """
        reader = opened.reader
        if not opened.kept_bytes:
            if not reader.has_ended:
                await opened.fill()
            elif self._lacks_line_end(reader):
                await self._read_line_end(opened)
        data, opened.kept_bytes = opened.kept_bytes or b"", b""
        reader.ready.clear()
        if not data:
            opened.settle()
        elif reader.has_ended:
            if self._lacks_line_end(reader):
                opened.stop_watching()  # the reply is complete: nothing that happens while the rest arrives matters
            else:
                opened.release()
        return data[: len(data) - reader.excess] if reader.excess else data

    def _lacks_line_end(self, reader: EventReader[Any]) -> bool:
        return reader.lacks_line_end and not self._line_end_read

    async def _read_line_end(self, opened: OpenStream[Any, Any, Any]) -> None:
        """Reads the rest of the line ends after the last event, or what arrives of it within a moment.

        It waits once, not for each piece: no timeout applies any more to a server that goes on sending comments.
        """
        from friendli_async._core.net.clock import TimeLimit  # loads asyncio, which the import of the library does not

        reader, data = opened.reader, b""
        self._line_end_read = True
        try:
            with suppress(TimeoutError, FriendliError), TimeLimit(_LINE_END_SECONDS):
                while reader.lacks_line_end and len(data) < _MAX_LINE_END and (piece := await opened.exchange.read()):
                    data += piece
                    reader.skip(piece)
        except BaseException:  # cancelled: the reply is complete nevertheless
            reader.ready.clear()
            opened.settle()
            raise
        opened.stopwatch.record_read(len(data), 0)
        opened.kept_bytes = data
