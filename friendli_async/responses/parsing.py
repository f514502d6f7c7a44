"""Methods for responses parsed into typed values. The implementation is imported on the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from friendli_async._core.body.arguments import without_none
from friendli_async._core.resource import Resource
from friendli_async.responses.inputs import Input, ParseOptions, ParseStreamOptions

if TYPE_CHECKING:
    from friendli_async.responses.structured import ParsedResponse, ParsedResponseStream

__all__ = ["ContainerResponseParsing", "ResponseParsing"]

T = TypeVar("T")


class ResponseParsing(Resource):
    """Responses parsed into a type: a struct, a dataclass, a pydantic model, a list of them...

    Raises:
        TypeError: The type has no JSON form, or a keyword is unknown. Nothing was sent.
        ValueError: An invalid value, with its path.
        OutputCutOffError: The answer was truncated.
        OutputInvalidError: The answer does not match the type, or is a tool call or a refusal.
        FriendliError: The call failed; see ``friendli_async.errors``.
    """

    @overload
    async def parse(
        self, type: type[T], /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[Any]: ...

    async def parse(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[Any]:
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
        """
        from friendli_async.responses.structured import parse

        return await parse(self._engine, type, {"model": model, "input": input}, options)

    @overload
    def parse_stream(
        self, type: type[T], /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[Any]: ...

    def parse_stream(
        self, type: Any, /, *, model: str, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[Any]:
        """Streams a response whose text is a value of a type. The request is sent on first use.

        Args:
            type: As for ``parse``.
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ParseStreamOptions``. There is no ``reask``: chunks cannot be taken back once delivered.

        Returns:
            The stream: ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.
        """
        from friendli_async.responses.structured import parse_stream

        return parse_stream(self._engine, type, {"model": model, "input": input}, options)


class ContainerResponseParsing(ResponseParsing):
    """The same for a self-hosted engine, which serves one model."""

    @overload
    async def parse(
        self, type: type[T], /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[Any]: ...

    async def parse(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseOptions]
    ) -> ParsedResponse[Any]:
        """Generates a value; see ``ResponseParsing.parse``. ``model`` selects an adapter route."""
        from friendli_async.responses.structured import parse

        return await parse(self._engine, type, {**without_none(model=model), "input": input}, options)

    @overload
    def parse_stream(
        self, type: type[T], /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[Any]: ...

    def parse_stream(
        self, type: Any, /, *, model: str | None = None, input: Input, **options: Unpack[ParseStreamOptions]
    ) -> ParsedResponseStream[Any]:
        """Streams a value; see ``ResponseParsing.parse_stream``. ``model`` selects an adapter route."""
        from friendli_async.responses.structured import parse_stream

        return parse_stream(self._engine, type, {**without_none(model=model), "input": input}, options)
