"""Chat whose answer is a value of a type: asked for by the type's schema, checked here, seen while it arrives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.inputs import COMPLETE, PARAMETERS, choices_wanted, stream_fields
from friendli_async.chat.output import (
    Answer,
    ItemView,
    Output,
    OutputStream,
    SnapshotView,
    ask,
    output_of,
    refuse_own_format,
)
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.schema import json_schema
from friendli_async.errors import ArgumentError
from friendli_async.replies import Usage
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = ["ItemView", "ParsedChatStream", "ParsedCompletion", "SnapshotView", "json_schema"]

T = TypeVar("T")


class ParsedCompletion(ChatCompletion, Generic[T], frozen=True, kw_only=True):
    """A whole answer, and the value that it is."""

    value: T
    asked: int = 1
    """How many answers it took; ``usage`` is that of all of them."""


def _answer_of(reply: ChatCompletion, cut: str = "") -> Answer:
    if reply.choices and reply.choices[0].finish_reason == "length":
        cut = "it reached its limit of tokens"
    calls = ", ".join(call.function.name for call in reply.message.tool_calls or ())
    instead = f"the model called tools instead of answering: {calls}" if calls and not cut else ""
    if reply.message.refusal and not cut:
        instead = f"the model refused to answer: {reply.message.refusal}"
    return Answer(reply=reply, text=reply.text, cut=cut, instead=instead)


class ParsedChatStream(OutputStream[ChatChunk, ChatCompletion, Usage, T], Generic[T]):
    """The stream of an answer that is a value: ``snapshots()``, ``items(...)``, ``text()``, ``ChatChunk`` events."""

    __slots__ = ()

    _parsed = ParsedCompletion
    _answer_of = staticmethod(_answer_of)

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


async def parsed(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedCompletion[Any]:
    """A chat whose answer is a value, asked for again where it does not fit."""
    output, sent = _asking("parse", kind, options)
    reask = sent.pop("reask", 0)
    whole: type[ParsedCompletion[Any]] = ParsedCompletion
    return await ask(
        output,
        required,
        reask,
        call=lambda required: engine.call(COMPLETE, PARAMETERS.encode("parse", required, sent)),
        answer_of=_answer_of,
        again=_again,
        parsed=whole,
    )


def _again(required: Mapping[str, object], reply: ChatCompletion, words: str) -> Mapping[str, object]:
    said = cast("Sequence[object]", required["messages"])
    return {**required, "messages": [*said, reply.message, {"role": "user", "content": words}]}


def parsed_stream(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedChatStream[Any]:
    """The stream of an answer that is a value."""
    output, sent = _asking("parse_stream", kind, options)
    arguments = PARAMETERS.encode("parse_stream", required, sent, stream_fields(sent))
    return ParsedChatStream(engine.opening(COMPLETE, arguments, ChatCollector), output)


def _asking(method: str, kind: Any, options: Mapping[str, object]) -> tuple[Output[Any], dict[str, Any]]:
    """What the answer is to be, and the options with what asks for it."""
    sent: dict[str, Any] = dict(options)
    output = output_of(kind, sent.pop("strict", True))
    refuse_own_format(method, "response_format", sent)
    if choices_wanted(sent) != 1:
        raise ArgumentError(f"n: {method}() reads one answer; call it several times, or use complete()")
    declared = output.declared()
    kept = {"type": "json_object"} if declared is None else {"type": "json_schema", "json_schema": declared}
    return output, {**sent, "response_format": kept}
