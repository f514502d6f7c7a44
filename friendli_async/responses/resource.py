"""Responses: generation from messages, tool calls and their outputs, in full or as a stream of events.

Wire: ``POST {deployment}/v1/responses``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events. They end without a sentinel: ``response.completed``, ``response.incomplete`` or
``response.failed`` is the last event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from friendli_async._core.body.arguments import without_none
from friendli_async._core.resource import Resource
from friendli_async._lazy import LazyModule, TypeForm
from friendli_async.responses.collector import ResponseCollector, ResponseStream
from friendli_async.responses.inputs import (
    CREATE,
    PARAMETERS,
    Input,
    ParseOptions,
    ParseStreamOptions,
    ResponsesOptions,
)
from friendli_async.responses.replies import Response

if TYPE_CHECKING:
    from friendli_async.responses import structured
else:  # not needed by plain calls
    structured = LazyModule("friendli_async.responses.structured")

__all__ = ["ContainerResponses", "Responses"]

T = TypeVar("T")


class Responses(Resource):
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
            The response, with ``text``, ``reasoning``, ``tool_calls``, ``output``, ``status``, ``usage``, ``meta``.

        Raises:
            APIStatusError: The server returned an error; or the response failed, and ``partial`` has its output so far.
        """
        arguments = PARAMETERS.encode("create", {"model": model, "input": input}, options)
        return await self._engine.call(CREATE, arguments)

    def stream(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it. The request is sent when the stream is first used.

        Args:
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The stream. Use it with ``async with`` or ``async for``, or await its ``result()``.
        """
        return self._stream({"model": model, "input": input}, options)

    @overload
    async def parse(
        self, type: TypeForm[T], /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[Any]: ...

    async def parse(
        self, type: Any = ..., /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[Any]:
        """Generates a response and parses its text into a value of a type.

        The request contains the type's schema. The client validates the answer against the type, even if the server
        ignored the schema. Only whitespace may surround the JSON: no prose, no Markdown.

        Args:
            type: The type of the value; ``Any`` accepts any JSON. See ``json_schema``.
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ParseOptions``; ``reask`` and ``strict`` are among them.

        Returns:
            The response with its ``value``. ``asked`` is the number of answers, and ``usage`` is their total.

        Raises:
            TypeError: The type has no JSON form. Nothing was sent.
            OutputCutOffError: The answer was truncated.
            OutputInvalidError: The answer does not match the type, or is a tool call or a refusal.
        """
        from friendli_async.responses.structured import OUTPUT  # not needed by plain calls

        return await OUTPUT.parse(self._engine, type, {"model": model, "input": input}, options)

    @overload
    def parse_stream(
        self, type: TypeForm[T], /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[Any]: ...

    def parse_stream(
        self, type: Any = ..., /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[Any]:
        """Streams a response whose text is a value of a type. The request is sent on first use.

        Args:
            type: As for ``parse``.
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ParseStreamOptions``. There is no ``reask``: chunks cannot be taken back once delivered.

        Returns:
            The stream, with ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.

        Raises:
            TypeError: As for ``parse``.
        """
        from friendli_async.responses.structured import OUTPUT, ParsedResponseStream

        return ParsedResponseStream(*OUTPUT.opening(self._engine, type, {"model": model, "input": input}, options))

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> ResponseStream:
        arguments = PARAMETERS.encode("stream", required, options, {"stream": True})
        return ResponseStream(self._engine.opening(CREATE, arguments, ResponseCollector))


class ContainerResponses(Responses):
    """The Responses API of a self-hosted engine, which serves one model: ``client.container.responses``."""

    async def create(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response; see ``Responses.create``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "input": input}
        return await self._engine.call(CREATE, PARAMETERS.encode("create", required, options))

    def stream(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates and streams a response; see ``Responses.stream``. ``model`` selects an adapter route."""
        return self._stream({**without_none(model=model), "input": input}, options)

    @overload
    async def parse(
        self, type: TypeForm[T], /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[Any]: ...

    async def parse(
        self, type: Any = ..., /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> structured.ParsedResponse[Any]:
        """Generates a value; see ``Responses.parse``. ``model`` selects an adapter route."""
        from friendli_async.responses.structured import OUTPUT

        return await OUTPUT.parse(self._engine, type, {**without_none(model=model), "input": input}, options)

    @overload
    def parse_stream(
        self, type: TypeForm[T], /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[Any]: ...

    def parse_stream(
        self, type: Any = ..., /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedResponseStream[Any]:
        """Streams a value; see ``Responses.parse_stream``. ``model`` selects an adapter route."""
        from friendli_async.responses.structured import OUTPUT, ParsedResponseStream

        required = {**without_none(model=model), "input": input}
        return ParsedResponseStream(*OUTPUT.opening(self._engine, type, required, options))
