"""Tool calls of a stream, each as soon as it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from friendli_async.chat.replies import ChatChunk
from friendli_async.replies import ToolCall
from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async.chat.resource import CompletionStream

__all__ = ["ToolCallView"]


class WholeCalls:
    """Tells which tool calls of a stream's choice 0 are whole, and each of them once, in order. No I/O.

    A call is whole when another one has begun behind it, or the choice has its finish reason, and when its arguments
    are a JSON object. Either alone is no proof: pieces of several calls may come in turns, and an object may be
    followed by more. What is no object (a model may write anything, and nothing) is whole when the stream has ended.
    """

    def __init__(self, stream: CompletionStream[Any]) -> None:
        self._stream = stream
        self._told = 0

    def after(self, event: object) -> Iterator[ToolCall]:
        """The calls that are whole now that an event has come."""
        if not isinstance(event, ChatChunk):
            return
        for choice in event.choices:
            if choice.index != 0:
                continue
            has_finished = choice.finish_reason is not None and choice.finish_reason != "null"
            begins = any(call.function is not None and call.function.name for call in choice.delta.tool_calls or ())
            if has_finished or begins:
                yield from self._whole(has_finished=has_finished)

    def _whole(self, *, has_finished: bool) -> Iterator[ToolCall]:
        for call in self._stream._calls_from(self._told, with_last=has_finished):  # pyright: ignore[reportPrivateUsage]  # for this view
            if not is_object(call.function.arguments):
                return
            self._told += 1
            yield call

    def rest(self, calls: tuple[ToolCall, ...]) -> Iterator[ToolCall]:
        """Those of a stream that has ended that have not been told yet."""
        for call in calls[self._told :]:
            self._told += 1
            yield call


def is_object(text: str) -> bool:
    """Whether text is a JSON object."""
    if not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return False


class ToolCallView(View[ToolCall]):
    """The tool calls of a stream, each as soon as it is whole; its ``id``, name and arguments are text, never None.

    A view: it reads the stream's events, and stopping it stops the stream.
    """

    def __init__(self, stream: CompletionStream[Any]) -> None:
        super().__init__(stream)
        self._completion = stream
        self._whole = WholeCalls(stream)
        self._ready: deque[ToolCall] = deque()
        self._has_ended = False

    async def __anext__(self) -> ToolCall:
        ready = self._ready
        while not ready and not self._has_ended:
            try:
                event = await self._stream.__anext__()
            except StopAsyncIteration:
                self._has_ended = True
                if self._completion.outcome == "done":
                    ready.extend(self._whole.rest(self._completion.partial.tool_calls))
            else:
                ready.extend(self._whole.after(event))
        if ready:
            return ready.popleft()
        raise StopAsyncIteration
