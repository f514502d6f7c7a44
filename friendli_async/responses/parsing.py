"""Responses whose answer is a value: the methods. What they are made of is loaded when one of them is called."""

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
    """Responses whose answer is a value of a type: a struct, a dataclass, a pydantic model, a list of them...

    Raises:
        TypeError: There is no JSON for the type, or an unknown keyword. Nothing was sent.
        ValueError: A bad value, with its path.
        OutputCutOffError: The answer ended before it was complete.
        OutputInvalidError: The answer does not fit the type; or there is none, but a tool call or a refusal.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
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
        """Generates an answer that is a value of a type, and returns it whole.

        The server is given the type's schema, and the answer is checked against the type here, whatever the server made
        of that. Nothing may stand around the JSON but white space: no words, no Markdown.

        Args:
            type: What the value is to be; ``Any`` is any JSON. See ``json_schema``.
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ParseOptions``; ``reask`` and ``strict`` are among them.

        Returns:
            The response with its ``value``. ``usage`` is that of all answers, and ``asked`` their number.
        """
        from friendli_async.responses.structured import parsed

        return await parsed(self._engine, type, {"model": model, "input": input}, options)

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
        """Generates an answer that is a value of a type, and streams it. The call is made on first use.

        Args:
            type: As for ``parse``.
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ParseStreamOptions``. What was shown cannot be taken back, so there is no ``reask``.

        Returns:
            The stream: ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.
        """
        from friendli_async.responses.structured import parsed_stream

        return parsed_stream(self._engine, type, {"model": model, "input": input}, options)


class ContainerResponseParsing(ResponseParsing):
    """The same with a self-hosted engine, which has its model."""

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
        """Generates an answer that is a value; see ``ResponseParsing.parse``. ``model`` names an adapter's route."""
        from friendli_async.responses.structured import parsed

        return await parsed(self._engine, type, {**without_none(model=model), "input": input}, options)

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
        """Streams it; see ``ResponseParsing.parse_stream``. ``model`` names an adapter's route."""
        from friendli_async.responses.structured import parsed_stream

        return parsed_stream(self._engine, type, {**without_none(model=model), "input": input}, options)
