"""The methods for structured output of chat. The implementation is imported on first call."""

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
    """Chat with structured output: a struct, a dataclass, a pydantic model, a list of them...

    Raises:
        TypeError: The type has no JSON form, or an unknown keyword. Nothing was sent.
        ValueError: An invalid value, with its path; or more than one choice requested.
        OutputCutOffError: The answer was truncated.
        OutputInvalidError: The answer does not match the type, or the model called a tool instead.
        FriendliError: The call failed; see ``friendli_async.errors``.
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
        """Generates an answer, parses it as a value of a type, and returns the completion.

        The type's schema is sent to the server, and the answer is validated against the type here, whether or not the
        server enforced the schema. Only whitespace may surround the JSON: no text, no Markdown.

        Args:
            type: Type of the value; ``Any`` accepts any JSON. See ``json_schema``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseOptions``, including ``reask`` and ``strict``.

        Returns:
            The completion with its ``value``. ``asked`` is the number of answers, and ``usage`` covers all of them.
        """
        from friendli_async.chat.structured import parse

        return await parse(self._engine, type, {"model": model, "messages": messages}, options)

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
        """Generates an answer that is a value of a type, and streams it. The request is sent on first use.

        Args:
            type: As for ``parse``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseStreamOptions``. There is no ``reask``: streamed output cannot be taken back.

        Returns:
            The stream: ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.
        """
        from friendli_async.chat.structured import parse_stream

        return parse_stream(self._engine, type, {"model": model, "messages": messages}, options)


class ContainerParsing(Parsing):
    """Chat with structured output on a self-hosted engine, which serves one model."""

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
        """Generates and parses an answer; see ``Parsing.parse``. ``model`` selects an adapter route."""
        from friendli_async.chat.structured import parse

        return await parse(self._engine, type, {**without_none(model=model), "messages": messages}, options)

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
        """Streams a structured answer; see ``Parsing.parse_stream``. ``model`` selects an adapter route."""
        from friendli_async.chat.structured import parse_stream

        return parse_stream(self._engine, type, {**without_none(model=model), "messages": messages}, options)
