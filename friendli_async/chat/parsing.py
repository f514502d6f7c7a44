"""Chat whose answer is a value: the methods. What they are made of is loaded when one of them is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from friendli_async._core.body.arguments import without_none
from friendli_async._core.resource import Resource
from friendli_async.chat.inputs import Messages, ParseOptions, ParseStreamOptions

if TYPE_CHECKING:
    from friendli_async.chat.structured import ParsedChatStream, ParsedCompletion

__all__ = ["ContainerParsing", "Parsing"]

T = TypeVar("T")


class Parsing(Resource):
    """Chat whose answer is a value of a type: a struct, a dataclass, a pydantic model, a list of them...

    Raises:
        TypeError: There is no JSON for the type, or an unknown keyword. Nothing was sent.
        ValueError: A bad value, with its path; or more than one choice was asked for.
        OutputCutOffError: The answer ended before it was complete.
        OutputInvalidError: The answer does not fit the type; or there is none, but a tool call.
        FriendliError: What went wrong with the call; see ``friendli_async.errors``.
    """

    @overload
    async def parse(
        self, type: type[T], /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[Any]: ...

    async def parse(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[Any]:
        """Generates an answer that is a value of a type, and returns it whole.

        The server is given the type's schema, and the answer is checked against the type here, whatever the server made
        of that. Nothing may stand around the JSON but white space: no words, no Markdown.

        Args:
            type: What the value is to be; ``Any`` is any JSON. See ``json_schema``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseOptions``; ``reask`` and ``strict`` are among them.

        Returns:
            The completion with its ``value``. ``usage`` is that of all answers, and ``asked`` their number.
        """
        from friendli_async.chat.structured import parsed

        return await parsed(self._engine, type, {"model": model, "messages": messages}, options)

    @overload
    def parse_stream(
        self, type: type[T], /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[Any]: ...

    def parse_stream(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[Any]:
        """Generates an answer that is a value of a type, and streams it. The call is made on first use.

        Args:
            type: As for ``parse``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseStreamOptions``. What was shown cannot be taken back, so there is no ``reask``.

        Returns:
            The stream: ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.
        """
        from friendli_async.chat.structured import parsed_stream

        return parsed_stream(self._engine, type, {"model": model, "messages": messages}, options)


class ContainerParsing(Parsing):
    """The same with a self-hosted engine, which has its model."""

    @overload
    async def parse(
        self, type: type[T], /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[Any]: ...

    async def parse(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> ParsedCompletion[Any]:
        """Generates an answer that is a value of a type; see ``Parsing.parse``. ``model`` names an adapter's route."""
        from friendli_async.chat.structured import parsed

        return await parsed(self._engine, type, {**without_none(model=model), "messages": messages}, options)

    @overload
    def parse_stream(
        self, type: type[T], /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[Any]: ...

    def parse_stream(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> ParsedChatStream[Any]:
        """Streams an answer that is a value; see ``Parsing.parse_stream``. ``model`` names an adapter's route."""
        from friendli_async.chat.structured import parsed_stream

        return parsed_stream(self._engine, type, {**without_none(model=model), "messages": messages}, options)
