"""Responses: generation from messages, tool calls and their outputs, in full or as a stream of events.

Wire: ``POST {deployment}/v1/responses``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events. They end without a sentinel: ``response.completed``, ``response.incomplete`` or
``response.failed`` is the last event.
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
    """A stream of typed events that assembles a ``Response``. Events of future types are ``UnknownEvent``.

    It ends normally with ``response.completed`` or ``response.incomplete``. ``response.failed`` raises the error class
    that matches its code.
    """

    __slots__ = ()

    def _text_extractor(self) -> Callable[[ResponseEvent], str]:
        return Wording("output_text").of

    def reasoning(self) -> TextView:
        """Returns a view of the reasoning: its chunks as they arrive, never ""."""
        return TextView(self, Wording("reasoning_text").of)


# --- the resource ----------------------------------------------------------------------------------------------------


class Responses(ResponseParsing):
    """The Responses API: ``client.serverless.responses``, ``client.dedicated.responses``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def create(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response and returns it in full.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The response: ``text``, ``reasoning``, ``tool_calls``, ``output``, ``status``, ``usage``, ``meta``.

        Raises:
            APIStatusError: The server returned an error; or the response failed, and ``partial`` has its output so far.
        """
        return await self._create({"model": model, "input": input}, options)

    def stream(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it. The request is sent when the stream is first used.

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
    """The Responses API of a self-hosted engine, which serves one model: ``client.container.responses``."""

    async def create(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response; see ``Responses.create``. ``model`` selects an adapter route."""
        return await self._create({**without_none(model=model), "input": input}, options)

    def stream(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates and streams a response; see ``Responses.stream``. ``model`` selects an adapter route."""
        return self._stream({**without_none(model=model), "input": input}, options)
