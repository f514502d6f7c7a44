"""Chat: a model answers a conversation, in one piece or as a stream of tokens.

Wire: ``POST {deployment}/v1/chat/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar, Unpack

from friendli_async._core.body.arguments import stated
from friendli_async._core.events.stream import AssembledStream
from friendli_async._core.events.views import TextView
from friendli_async._core.resource import Resource, operation
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.inputs import ChatOptions, Messages, arguments_of, choices_wanted, stream_fields
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.replies import Usage

__all__ = ["Chat", "ChatStream", "CompletionStream", "ContainerChat"]

E = TypeVar("E")

_COMPLETE: Final = operation("chat.complete", "POST /v1/chat/completions", ChatCompletion, repeatable=True, billed=True)


# --- streams ---------------------------------------------------------------------------------------------------------


class CompletionStream(AssembledStream[E, ChatCompletion, Usage]):
    """A stream whose events add up to a ChatCompletion."""

    def text(self) -> TextView:
        """The text of choice 0, piece by piece, never ""."""
        return TextView(self, lambda event: event.text)

    def reasoning(self) -> TextView:
        """The reasoning text of choice 0, under either spelling, piece by piece, never ""."""
        return TextView(self, lambda event: event.reasoning)


class ChatStream(CompletionStream[ChatChunk]):
    """The stream of a chat: ``ChatChunk`` events."""


# --- the resource ----------------------------------------------------------------------------------------------------


class Chat(Resource):
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

    def _complete(
        self, required: Mapping[str, object], options: Mapping[str, object]
    ) -> Coroutine[Any, Any, ChatCompletion]:
        return self._engine.call(_COMPLETE, arguments_of("complete", required, options))

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> ChatStream:
        arguments = arguments_of("stream", required, options, stream_fields(options))
        n = choices_wanted(options)
        return ChatStream(self._engine.opening(_COMPLETE, arguments, lambda: ChatCollector(n)))


class ContainerChat(Chat):
    """Chat with a self-hosted engine, which has its model: ``client.container.chat``."""

    async def complete(
        self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Generates an answer and returns it whole; see ``Chat.complete``. ``model`` names an adapter's route."""
        return await self._complete({**stated(model=model), "messages": messages}, options)

    def stream(self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]) -> ChatStream:
        """Generates an answer and streams it; see ``Chat.stream``. ``model`` names an adapter's route."""
        return self._stream({**stated(model=model), "messages": messages}, options)
