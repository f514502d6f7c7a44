"""Structured output of responses: the requests and replies of ``parse`` and ``parse_stream``.

``chat.output`` validates the answers, and ``chat.output_stream`` parses them while they are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, cast

from friendli_async.chat.output import Answer, OutputAPI
from friendli_async.chat.output_stream import OutputStream
from friendli_async.replies import HasValue
from friendli_async.responses.collector import ResponseCollector, ResponseStream
from friendli_async.responses.events import ResponseEvent
from friendli_async.responses.inputs import CREATE, PARAMETERS, ResponsesOptions
from friendli_async.responses.replies import Response, ResponseUsage

__all__ = ["ParsedResponse", "ParsedResponseStream"]

T = TypeVar("T")


class ParsedResponse(Response, HasValue, Generic[T], frozen=True, kw_only=True):
    """A complete response with the value parsed from its text."""

    value: T
    asked: int = 1
    """Number of answers it took; ``usage`` is their total."""


def _user_message(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


_UNFINISHED: Final = frozenset({"queued", "in_progress", "cancelled"})
"""The statuses of a response whose text may be cut off, beside ``incomplete``; of ``failed`` an error is raised."""


class _ResponseOutput(OutputAPI[ParsedResponse[Any]]):
    operation = CREATE
    parameters = PARAMETERS
    options = ResponsesOptions
    parsed = ParsedResponse
    collector = ResponseCollector
    option = "text"

    def format_of(self, declared: dict[str, object] | None) -> object:
        return {"format": {"type": "json_object"} if declared is None else {"type": "json_schema", **declared}}

    def answer_of(self, reply: Response, cut: str) -> Answer:
        if reply.status == "incomplete":
            reason = None if reply.incomplete_details is None else reply.incomplete_details.reason
            limit = reason is None or reason == "max_output_tokens"
            cut = "the token limit was reached" if limit else f"the response is incomplete ({reason})"
        elif reply.status in _UNFINISHED and not cut:
            cut = f"the status of the response is {reply.status!r}"
        parts = [part for item in reply.output for part in item.content or ()]
        return Answer(reply, cut, " ".join(part.refusal or part.text for part in parts if part.type == "refusal"))

    def next_request(self, required: Mapping[str, Any], reply: Response, feedback: str) -> Mapping[str, object]:
        given = required["input"]
        history = [_user_message(given)] if isinstance(given, str) else given
        return {**required, "input": [*history, *reply.output, _user_message(feedback)]}


OUTPUT: Final = _ResponseOutput()


class ParsedResponseStream(OutputStream[ResponseEvent, Response, ResponseUsage, T], ResponseStream, Generic[T]):
    """A stream of a response whose text is a value: a ``ResponseStream`` with ``snapshots()`` and ``items(...)``."""

    __slots__ = ()

    _api = OUTPUT

    async def result(self) -> ParsedResponse[T]:
        """Reads the rest and returns the response, with its ``value``; see ``OutputStream.result``."""
        return cast("ParsedResponse[T]", await super().result())
