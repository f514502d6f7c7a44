"""The raw bytes of a stream."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async.streams.stream import EventStream

__all__ = ["RawView"]


class RawView(View[bytes]):
    """The bytes of a stream's body, in the pieces in which they arrive. Closing the view closes the stream.

    No piece is empty, and a piece need not end at an event boundary.
    """

    def __init__(self, stream: EventStream[Any], read: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        super().__init__(stream)
        self._read = read

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._read()  # the coroutine itself: one frame less for each read
