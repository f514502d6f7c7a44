"""The tool calls of a stream, each as soon as it is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from friendli_async._core.events.decoding import is_end_of_choice, is_finish_reason
from friendli_async._lazy import LazyModule
from friendli_async.chat.replies import ChatChunk
from friendli_async.replies import ToolCall
from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async.chat import collector as collector_module
else:  # which imports this module
    collector_module = LazyModule("friendli_async.chat.collector")

__all__ = ["ToolCallView"]


class CompleteToolCalls:
    """Detects complete tool calls of a stream's choice 0 and yields each once, in order. No I/O.

    A call is complete when its arguments are a JSON object and, in addition, the next call has begun or the choice has
    its finish reason. Neither alone is enough: deltas of several calls may be interleaved, and more text may follow an
    object. A finish reason that means an error completes none. Arguments that are not an object (a model may write
    anything, or nothing) are complete at the end of the stream.
    """

    def __init__(self) -> None:
        self._yielded = 0
        self.has_finished: bool = False
        """Whether the finish reason has arrived."""

    def after(self, event: object, collector: collector_module.ChatCollector) -> Iterator[ToolCall]:
        """Yields the calls that an event has completed; the collector has the tool calls of all events so far."""
        if not isinstance(event, ChatChunk):
            return
        for choice in event.choices:
            if choice.index != 0:
                continue
            self.has_finished = is_finish_reason(choice.finish_reason)
            if self.has_finished or choice.delta.tool_calls:
                with_last = is_end_of_choice(choice.finish_reason)
                for call in collector.whole_calls(self._yielded, with_last=with_last):
                    self._yielded += 1
                    yield call

    def rest(self, calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        """Returns the remaining calls of a stream that has ended."""
        remaining, self._yielded = calls[self._yielded :], len(calls)
        return remaining


class ToolCallView(View[ToolCall]):
    """Yields the tool calls of a stream, each as soon as it is complete. ``id``, name and arguments are never None.

    The view reads the stream's events; closing it closes the stream.
    """

    _stream: collector_module.CompletionStream[Any]

    def __init__(self, stream: collector_module.CompletionStream[Any]) -> None:
        super().__init__(stream)
        self._complete_calls = CompleteToolCalls()
        self._ready: deque[ToolCall] = deque()

    async def __anext__(self) -> ToolCall:
        ready = self._ready
        while not ready:
            # If it is done, result() may have read the events.
            event = None if self._stream.outcome == "done" else await anext(self._stream, None)
            if event is not None:
                received = self._stream._received  # pyright: ignore[reportPrivateUsage]  # its own view
                ready.extend(self._complete_calls.after(event, received))
                continue
            if self._stream.outcome == "done":
                ready.extend(self._complete_calls.rest(self._stream.partial.tool_calls))
            if not ready:
                raise StopAsyncIteration
        return ready.popleft()
