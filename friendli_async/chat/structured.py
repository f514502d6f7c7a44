"""Chat whose answer is a value of a type: asked for by the type's schema, checked here, seen while it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from friendli_async._core.protocol import Operation
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.inputs import arguments_of, choices_wanted, stream_fields
from friendli_async.chat.output import Answer, ItemView, Output, OutputStream, SnapshotView, output_of
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.schema import json_schema
from friendli_async.errors import ArgumentError, FriendliError, OutputInvalidError
from friendli_async.replies import Partial, Usage, added, share_origin
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async._core.call import Engine
    from friendli_async._core.events.stream import Opening

__all__ = ["ItemView", "ParsedChatStream", "ParsedCompletion", "SnapshotView", "json_schema"]

T = TypeVar("T")


class ParsedCompletion(ChatCompletion, Generic[T], frozen=True, kw_only=True):
    """A whole answer, and the value that it is."""

    value: T
    asked: int = 1
    """How many answers it took; ``usage`` is that of all of them."""


class ParsedChatStream(OutputStream[ChatChunk, ChatCompletion, Usage, T], Generic[T]):
    """The stream of an answer that is a value: ``snapshots()``, ``items(...)``, ``text()``, ``ChatChunk`` events."""

    __slots__ = ()

    def __init__(self, opening: Opening[ChatChunk, ChatCompletion, Usage], output: Output[T]) -> None:
        super().__init__(opening, output)

    @staticmethod
    def _text_of(event: ChatChunk) -> str:
        return event.text

    def reasoning(self) -> TextView:
        """The reasoning text of choice 0, under either spelling, piece by piece, never ""."""
        return TextView(self, lambda event: event.reasoning)

    async def result(self) -> ParsedCompletion[T]:
        """Reads what is left and returns the whole completion, with its ``value`` and ``meta``.

        Raises:
            OutputCutOffError: The answer ended before it was complete.
            OutputInvalidError: It is no value of the type.
            FriendliError: The stream did not end well, or was closed early.
        """
        return cast("ParsedCompletion[T]", await super().result())

    def _read(self, reply: ChatCompletion) -> ParsedCompletion[T]:
        stopped = "the stream was stopped" if self.outcome == "stopped" else ""
        return _with_value(reply, self._output.read(_answer(reply, stopped)))


async def parsed(
    engine: Engine,
    operation: Operation[ChatCompletion],
    kind: Any,
    required: Mapping[str, object],
    options: Mapping[str, object],
    *,
    strict: bool,
    reask: int,
) -> ParsedCompletion[Any]:
    """Asks until the answer fits, or has been asked for often enough."""
    output = output_of(kind, strict)
    options = _asking(output, "parse", options)
    check_reask(reask)
    arguments = arguments_of("parse", required, options)
    before: Usage | None = None
    asked = 1
    while True:
        try:
            reply = await engine.call(operation, arguments)
        except FriendliError as error:
            error.partial = error.partial or (None if before is None else Partial(usage=before))
            raise
        reply = _with_usage(reply, added(before, reply.usage))
        try:
            return _with_value(reply, output.read(_answer(reply)), asked)
        except OutputInvalidError as error:
            if asked > reask or not error.text.strip() or _called(reply):
                raise
            words = reask_words(error)
        messages = [*cast("Sequence[object]", required["messages"]), reply.message, {"role": "user", "content": words}]
        required = {**required, "messages": messages}
        arguments = arguments_of("parse", required, options)
        before = reply.usage
        asked += 1


def parsed_stream(
    engine: Engine,
    operation: Operation[ChatCompletion],
    kind: Any,
    required: Mapping[str, object],
    options: Mapping[str, object],
    *,
    strict: bool,
) -> ParsedChatStream[Any]:
    """The stream of an answer that is a value."""
    output = output_of(kind, strict)
    options = _asking(output, "parse_stream", options)
    arguments = arguments_of("parse_stream", required, options, stream_fields(options))
    return ParsedChatStream(engine.opening(operation, arguments, ChatCollector), output)


def _asking(output: Output[Any], method: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options, with what asks for the type."""
    refuse_own_format(method, "response_format", options)
    if choices_wanted(options) != 1:
        raise ArgumentError(f"n: {method}() reads one answer; call it several times, or use complete()")
    if output.schema is None:
        return {**options, "response_format": {"type": "json_object"}}
    said: dict[str, object] = {"name": output.name, "schema": output.schema}
    if output.description is not None:
        said["description"] = output.description
    return {**options, "response_format": {"type": "json_schema", "json_schema": said}}


def refuse_own_format(method: str, name: str, options: Mapping[str, object]) -> None:
    """Refuses what would take the place of the type's schema.

    Raises:
        TypeError: It is among the options, or in ``extra_body``.
    """
    if name in options or name in cast("Mapping[str, object]", options.get("extra_body") or {}):
        raise TypeError(f"{method}() takes no {name!r}: it is made from the type")


def check_reask(reask: object) -> None:
    """Refuses what is no number of times.

    Raises:
        ArgumentError: It is not.
    """
    if not isinstance(reask, int) or isinstance(reask, bool) or reask < 0:
        raise ArgumentError(f"reask: {reask!r} is no number of times")


def reask_words(error: OutputInvalidError) -> str:
    """What a model is told about an answer that does not fit."""
    return f"This cannot be used: {error}. Answer again, with nothing but JSON that fits the schema."


def _answer(reply: ChatCompletion, cut: str = "") -> Answer:
    if reply.choices and reply.choices[0].finish_reason == "length":
        cut = "it reached its limit of tokens"
    calls = ", ".join(call.function.name for call in reply.message.tool_calls or ())
    instead = f"the model called tools instead of answering: {calls}" if calls and not cut else ""
    return Answer(reply=reply, text=reply.text, cut=cut, instead=instead)


def _called(reply: ChatCompletion) -> bool:
    return bool(reply.message.tool_calls)


def _with_value(reply: ChatCompletion, value: Any, asked: int = 1) -> ParsedCompletion[Any]:
    fields = {name: getattr(reply, name) for name in reply.__struct_fields__}
    whole: ParsedCompletion[Any] = ParsedCompletion(**fields, value=value, asked=asked)
    share_origin(whole, reply)
    return whole


def _with_usage(reply: ChatCompletion, usage: Usage | None) -> ChatCompletion:
    if usage is reply.usage:
        return reply
    whole = msgspec.structs.replace(reply, usage=usage)
    share_origin(whole, reply)
    return whole
