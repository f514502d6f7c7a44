"""Structured output of chat: the requests and replies of ``parse`` and ``parse_stream``.

``chat.output`` validates the answers, and ``chat.output_stream`` parses them while they are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, cast

from friendli_async._core.events.decoding import is_end_of_choice, is_finish_reason
from friendli_async.chat.collector import ChatCollector, ChatStream
from friendli_async.chat.inputs import COMPLETE, PARAMETERS, ChatOptions, requested_choices, stream_fields
from friendli_async.chat.output import Answer, OutputAPI
from friendli_async.chat.output_stream import ItemView, OutputStream, SnapshotView
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.schema import json_schema
from friendli_async.errors import ArgumentError
from friendli_async.replies import HasValue, Usage

__all__ = ["ItemView", "ParsedChatStream", "ParsedCompletion", "SnapshotView", "json_schema"]

T = TypeVar("T")


class ParsedCompletion(ChatCompletion, HasValue, Generic[T], frozen=True, kw_only=True):
    """A completion and the value parsed from it."""

    value: T
    asked: int = 1
    """Number of answers generated; ``usage`` covers all of them."""


# By finish reason. Asking again would only cost as much again.
_CUTS: Final = {
    "length": "the token limit was reached",
    "content_filter": "the content filter stopped it",
}


class _ChatOutput(OutputAPI[ParsedCompletion[Any]]):
    operation = COMPLETE
    parameters = PARAMETERS
    options = ChatOptions
    parsed = ParsedCompletion
    collector = ChatCollector
    option = "response_format"

    def format_of(self, declared: dict[str, object] | None) -> object:
        return {"type": "json_object"} if declared is None else {"type": "json_schema", "json_schema": declared}

    def answer_of(self, reply: ChatCompletion, cut: str) -> Answer:
        reason = reply.choices[0].finish_reason if reply.choices else None
        if is_finish_reason(reason):
            cut = _CUTS.get(reason, cut if is_end_of_choice(reason) else f"its finish reason is {reason!r}")
        return Answer(reply, cut, reply.message.refusal)

    def next_request(self, required: Mapping[str, Any], reply: ChatCompletion, feedback: str) -> Mapping[str, object]:
        return {**required, "messages": [*required["messages"], reply.message, {"role": "user", "content": feedback}]}

    def stream_fields(self, sent: Mapping[str, object]) -> dict[str, object]:
        return stream_fields(sent)

    def check(self, method: str, sent: Mapping[str, object]) -> None:
        if requested_choices(sent) != 1:
            raise ArgumentError(f"{method}() supports only one choice; call it several times, or use complete()", "n")


OUTPUT: Final = _ChatOutput()


class ParsedChatStream(OutputStream[ChatChunk, ChatCompletion, Usage, T], ChatStream, Generic[T]):
    """The stream of a structured answer: a ``ChatStream`` with ``snapshots()`` and ``items(...)``."""

    __slots__ = ()

    _api = OUTPUT

    async def result(self) -> ParsedCompletion[T]:
        """Reads the rest and returns the completion, with its ``value``; see ``OutputStream.result``."""
        return cast("ParsedCompletion[T]", await super().result())
