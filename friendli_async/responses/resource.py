"""Responses: a model answers an input of messages, tool calls and their outputs, in one piece or as a stream of events.

Wire: ``POST {deployment}/v1/responses``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events. They have no sentinel: ``response.completed``, ``response.incomplete`` or
``response.failed`` is the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Unpack

from friendli_async._core.body.arguments import without_none
from friendli_async.responses.collector import ResponseCollector, Wording
from friendli_async.responses.events import ResponseEvent
from friendli_async.responses.inputs import CREATE, PARAMETERS, Input, ResponsesOptions
from friendli_async.responses.parsing import ContainerResponseParsing, ResponseParsing
from friendli_async.responses.replies import Response, ResponseUsage, raise_if_failed
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

__all__ = ["ContainerResponses", "ResponseStream", "Responses"]


# --- streams ---------------------------------------------------------------------------------------------------------


class ResponseStream(AssembledStream[ResponseEvent, Response, ResponseUsage]):
    """The stream of a response: typed events, and ``UnknownEvent`` for kinds that come later.

    ``response.completed`` and ``response.incomplete`` are good ends; ``response.failed`` is raised, as the error class
    that its code names.
    """

    def _wording(self) -> Callable[[ResponseEvent], str]:
        return Wording("output_text").of

    def reasoning(self) -> TextView:
        """The reasoning text of the response, piece by piece, never ""."""
        return TextView(self, Wording("reasoning_text").of)


# --- the resource ----------------------------------------------------------------------------------------------------


class Responses(ResponseParsing):
    """Responses of a model: ``client.serverless.responses``, ``client.dedicated.responses``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call (of a stream, once it is used); see ``friendli_async.errors``.
    """

    async def create(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response and returns it whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The response: ``text``, ``reasoning``, ``tool_calls``, ``output``, ``status``, ``usage``, ``meta``.

        Raises:
            APIStatusError: The server refused, or the response failed: then ``partial`` is what there is of it.
        """
        return await self._create({"model": model, "input": input}, options)

    def stream(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it. The call is made when the stream is first used.

        Args:
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The stream: use it with ``async with`` or ``async for``, or await its ``result()``.
        """
        return self._stream({"model": model, "input": input}, options)

    async def _create(self, required: Mapping[str, object], options: Mapping[str, object]) -> Response:
        response = await self._engine.call(CREATE, PARAMETERS.encode("create", required, options))
        raise_if_failed(response)
        return response

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> ResponseStream:
        arguments = PARAMETERS.encode("stream", required, options, {"stream": True})
        return ResponseStream(self._engine.opening(CREATE, arguments, ResponseCollector))


class ContainerResponses(ContainerResponseParsing, Responses):
    """Responses of a self-hosted engine, which has its model: ``client.container.responses``."""

    async def create(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response and returns it whole; see ``Responses.create``. ``model`` names an adapter's route."""
        return await self._create({**without_none(model=model), "input": input}, options)

    def stream(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it; see ``Responses.stream``. ``model`` names an adapter's route."""
        return self._stream({**without_none(model=model), "input": input}, options)
