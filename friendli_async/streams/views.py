"""Views of a stream: its text, piece by piece, its bytes, and what those of structured output have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from friendli_async._core.text import split_surrogate
from friendli_async._lazy import LazyModule

if TYPE_CHECKING:
    from friendli_async.streams import stream as stream_module
    from friendli_async.streams import tee
else:  # which import this module
    stream_module, tee = LazyModule("friendli_async.streams.stream"), LazyModule("friendli_async.streams.tee")

__all__ = ["RawView", "TextView"]

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

    def __init__(self, stream: stream_module.EventStream[Any], read: Callable[[], Coroutine[Any, Any, bytes]]) -> None:
        super().__init__(stream)
        self._read = read

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._read()  # the coroutine itself: one frame less for each read
