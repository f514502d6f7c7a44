"""The tool calls of a stream, each as soon as it is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from friendli_async._json import is_json_object
from friendli_async.chat.replies import ChatChunk, ToolCallDelta
from friendli_async.replies import ToolCall
from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async.chat.collector import CompletionStream

__all__ = ["ToolCallView"]


class _CallsFrom(Protocol):
    """Yields the tool calls of choice 0 from index ``first`` on."""

    def __call__(self, first: int, *, with_last: bool) -> Iterator[ToolCall]: ...


class CompleteToolCalls:
    """Detects complete tool calls of a stream's choice 0 and yields each once, in order. No I/O.

    A call is complete when its arguments are a JSON object and, in addition, the next call has begun or the choice has
    its finish reason. Neither alone is enough: deltas of several calls may be interleaved, and more text may follow an
    object. Arguments that are not an object (a model may write anything, or nothing) are complete at the end of the
    stream.

    Args:
        calls_from: Yields the calls received so far.
    """

    def __init__(self, calls_from: _CallsFrom) -> None:
        self._calls_from = calls_from
        self._yielded = 0
        self.has_finished: bool = False
        """Whether the finish reason has arrived."""

    def after(self, event: object) -> Iterator[ToolCall]:
        """Yields the calls that an event has completed."""
        if not isinstance(event, ChatChunk):
            return
        for choice in event.choices:
            if choice.index != 0:
                continue
            deltas = choice.delta.tool_calls
            if deltas:
                self._add(deltas)
            self.has_finished = choice.finish_reason is not None and choice.finish_reason != "null"
            has_next = any(call.function is not None and call.function.name for call in deltas or ())
            if self.has_finished or has_next:
                yield from self._complete_calls()

    def _add(self, deltas: Sequence[ToolCallDelta]) -> None:
        """Adds the deltas of an event. The collector of a stream already has them."""

    def _complete_calls(self) -> Iterator[ToolCall]:
        for call in self._calls_from(self._yielded, with_last=self.has_finished):
            if not is_json_object(call.function.arguments):
                return
            self._yielded += 1
            yield call

    def rest(self, calls: tuple[ToolCall, ...]) -> Iterator[ToolCall]:
        """Yields the remaining calls of a stream that has ended."""
        for call in calls[self._yielded :]:
            self._yielded += 1
            yield call


class ToolCallView(View[ToolCall]):
    """Yields the tool calls of a stream, each as soon as it is complete. ``id``, name and arguments are never None.

    The view reads the stream's events; closing it closes the stream.
    """

    def __init__(self, stream: CompletionStream[Any]) -> None:
        super().__init__(stream)
        self._completion = stream
        self._whole_calls = CompleteToolCalls(stream._calls_from)  # pyright: ignore[reportPrivateUsage]  # the stream's own view
        self._ready: deque[ToolCall] = deque()

    async def __anext__(self) -> ToolCall:
        ready = self._ready
        while not ready:
            if self._is_complete():  # maybe because result() has read the events
                ready.extend(self._whole_calls.rest(self._completion.partial.tool_calls))
                break
            try:
                ready.extend(self._whole_calls.after(await self._stream.__anext__()))
            except StopAsyncIteration:
                if not self._is_complete():
                    raise
        if ready:
            return ready.popleft()
        raise StopAsyncIteration

    def _is_complete(self) -> bool:
        return self._completion.outcome == "done"
