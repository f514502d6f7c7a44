"""Chat: a model answers a conversation, in one piece or as a stream of tokens.

Wire: ``POST {deployment}/v1/chat/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from friendli_async._core.body.arguments import without_none
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.inputs import (
    COMPLETE,
    PARAMETERS,
    ChatOptions,
    Messages,
    RunOptions,
    choices_wanted,
    stream_fields,
)
from friendli_async.chat.parsing import ContainerParsing, Parsing
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.replies import Partial, ToolCall, Usage
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async.chat.run import Run
    from friendli_async.chat.tool_calls import ToolCallView
    from friendli_async.tools.function import LocalTool

__all__ = ["Chat", "ChatStream", "CompletionStream", "ContainerChat"]

E = TypeVar("E")


# --- streams ---------------------------------------------------------------------------------------------------------


class CompletionStream(AssembledStream[E, ChatCompletion, Usage]):
    """A stream whose events add up to a ChatCompletion."""

    @staticmethod
    def _text_of(event: Any) -> str:
        return event.text if isinstance(event, ChatChunk) else ""  # a tool's status has none

    def reasoning(self) -> TextView:
        """The reasoning text of choice 0, under either spelling, piece by piece, never ""."""
        return TextView(self, lambda event: event.reasoning if isinstance(event, ChatChunk) else "")

    def tool_calls(self) -> ToolCallView:
        """The tool calls of choice 0, each as soon as it is whole."""
        from friendli_async.chat.tool_calls import ToolCallView

        return ToolCallView(self)

    @property
    def partial(self) -> Partial:
        """What has arrived so far of choice 0."""
        return Partial() if self._open is None else self._open.collector.partial()

    def _calls_from(self, first: int, *, with_last: bool) -> Iterator[ToolCall]:
        """Its tool calls from one on: ``partial`` joins all of them, each time."""
        collector: Any = None if self._open is None else self._open.collector
        return iter(()) if collector is None else collector.calls_from(first, with_last=with_last)


class ChatStream(CompletionStream[ChatChunk]):
    """The stream of a chat: ``ChatChunk`` events."""


# --- the resource ----------------------------------------------------------------------------------------------------


class Chat(Parsing):
    """Chat with a model: ``client.serverless.chat``, ``client.dedicated.chat``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call (of a stream, once it is used); see ``friendli_async.errors``.
    """

    async def complete(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Generates an answer and returns it whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation so far.
            options: See ``ChatOptions``.

        Returns:
            The completion: ``text``, ``reasoning``, ``choices``, ``usage``, ``meta``.
        """
        return await self._complete({"model": model, "messages": messages}, options)

    def stream(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatStream:
        """Generates an answer and streams it, token by token. The call is made when the stream is first used.

        Args:
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ChatOptions``.

        Returns:
            The stream: use it with ``async with`` or ``async for``, or await its ``result()``.
        """
        return self._stream({"model": model, "messages": messages}, options)

    def run(self, *, model: str, messages: Messages, tools: Sequence[LocalTool], **options: Unpack[RunOptions]) -> Run:
        """Lets the model call tools that run here, and go on from their results, until it is through.

        Args:
            model: As for ``complete``.
            messages: The conversation so far.
            tools: Functions made into tools by ``friendli_async.tools.tool``, tools of an MCP server
                (``friendli_async.integrations.mcp``), or whatever else is a ``LocalTool``. A ``tool_choice`` that makes
                the model call one holds for the first turn.
            options: See ``RunOptions``.

        Returns:
            The run: use it with ``async with`` or ``async for``, or await its ``result()``. Nothing is sent before.

        Raises:
            TypeError: Something that is no tool, or a ``ToolDefinitionError``.
        """
        return self._run({"model": model}, messages, tools, options)

    def _run(
        self,
        required: Mapping[str, object],
        messages: Messages,
        tools: Sequence[LocalTool],
        options: Mapping[str, object],
    ) -> Run:
        from friendli_async.chat.run import begin_run  # who runs no tools does not load it

        return begin_run(
            lambda messages, options: self._stream({**required, "messages": messages}, options, "run"),
            messages,
            tools,
            options,
        )

    def _complete(
        self, required: Mapping[str, object], options: Mapping[str, object]
    ) -> Coroutine[Any, Any, ChatCompletion]:
        return self._engine.call(COMPLETE, PARAMETERS.encode("complete", required, options))

    def _stream(
        self, required: Mapping[str, object], options: Mapping[str, object], method: str = "stream"
    ) -> ChatStream:
        arguments = PARAMETERS.encode(method, required, options, stream_fields(options))
        n = choices_wanted(options)
        return ChatStream(self._engine.opening(COMPLETE, arguments, lambda: ChatCollector(n)))


class ContainerChat(ContainerParsing, Chat):
    """Chat with a self-hosted engine, which has its model: ``client.container.chat``."""

    async def complete(
        self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Generates an answer and returns it whole; see ``Chat.complete``. ``model`` names an adapter's route."""
        return await self._complete({**without_none(model=model), "messages": messages}, options)

    def stream(self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]) -> ChatStream:
        """Generates an answer and streams it; see ``Chat.stream``. ``model`` names an adapter's route."""
        return self._stream({**without_none(model=model), "messages": messages}, options)

    def run(
        self, *, model: str | None = None, messages: Messages, tools: Sequence[LocalTool], **options: Unpack[RunOptions]
    ) -> Run:
        """Lets the model call tools that run here; see ``Chat.run``. ``model`` names an adapter's route."""
        return self._run(without_none(model=model), messages, tools, options)
