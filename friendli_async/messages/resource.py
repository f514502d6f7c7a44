"""Messages: chat in the format of Anthropic's Messages API.

Wire: ``POST {deployment}/v1/messages``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events. Each is named by its ``type``, and ``message_stop`` is the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Unpack

from friendli_async._core.body.arguments import without_none
from friendli_async._core.resource import Resource, inference
from friendli_async.messages.collector import MessagesCollector, words_of
from friendli_async.messages.inputs import PARAMETERS, InputMessages, MessagesOptions
from friendli_async.messages.replies import Message, MessageEvent, MessageUsage
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

__all__ = ["ContainerMessages", "MessageStream", "Messages"]

_CREATE: Final = inference("messages.create", "POST /v1/messages", Message)


# --- the stream ------------------------------------------------------------------------------------------------------


class MessageStream(AssembledStream[MessageEvent, Message, MessageUsage]):
    """A stream of ``MessageEvent`` that assembles a ``Message``. It ends with ``message_stop``."""

    __slots__ = ()

    def _text_extractor(self) -> Callable[[MessageEvent], str]:
        return words_of

    def reasoning(self) -> TextView:
        """Returns a view of the reasoning: its chunks as they arrive, never ""."""
        return TextView(self, lambda event: words_of(event, "thinking"))


# --- the resource ----------------------------------------------------------------------------------------------------


class Messages(Resource):
    """The Messages API: ``client.serverless.messages``, ``client.dedicated.messages``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def create(self, *, model: str, messages: InputMessages, **options: Unpack[MessagesOptions]) -> Message:
        """Generates a message and returns it in full.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation so far; earlier replies can be passed as they are.
            options: See ``MessagesOptions``.

        Returns:
            The message, with ``text``, ``reasoning``, ``content``, ``stop_reason``, ``usage``, ``meta``.
        """
        arguments = PARAMETERS.encode("create", {"model": model, "messages": messages}, options)
        return await self._engine.call(_CREATE, arguments)

    def stream(self, *, model: str, messages: InputMessages, **options: Unpack[MessagesOptions]) -> MessageStream:
        """Generates a message and streams it. The request is sent when the stream is first used.

        Args:
            model: As for ``create``.
            messages: The conversation so far.
            options: See ``MessagesOptions``.

        Returns:
            The stream of ``MessageEvent``. Use it with ``async with`` or ``async for``, or await its ``result()``.
        """
        return self._stream({"model": model, "messages": messages}, options)

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> MessageStream:
        arguments = PARAMETERS.encode("stream", required, options, {"stream": True})
        return MessageStream(self._engine.opening(_CREATE, arguments, MessagesCollector))


class ContainerMessages(Messages):
    """The Messages API of a self-hosted engine, which serves one model: ``client.container.messages``."""

    async def create(
        self, *, model: str | None = None, messages: InputMessages, **options: Unpack[MessagesOptions]
    ) -> Message:
        """Generates a message; see ``Messages.create``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        return await self._engine.call(_CREATE, PARAMETERS.encode("create", required, options))

    def stream(
        self, *, model: str | None = None, messages: InputMessages, **options: Unpack[MessagesOptions]
    ) -> MessageStream:
        """Generates and streams a message; see ``Messages.stream``. ``model`` selects an adapter route."""
        return self._stream({**without_none(model=model), "messages": messages}, options)
