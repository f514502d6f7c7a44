"""Structured output of responses: the requests and replies of ``parse`` and ``parse_stream``.

``chat.output`` validates the answers, and ``chat.output_stream`` parses them while they are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from friendli_async.chat.output import Answer, Output, ask, prepare
from friendli_async.chat.output_stream import OutputStream
from friendli_async.responses.collector import ResponseCollector, ResponseStream
from friendli_async.responses.events import ResponseEvent
from friendli_async.responses.inputs import CREATE, PARAMETERS, ParseOptions, ParseStreamOptions, ResponsesOptions
from friendli_async.responses.replies import Response, ResponseUsage

if TYPE_CHECKING:
    from friendli_async._core.engine import Engine

__all__ = ["ParsedResponse", "ParsedResponseStream"]

T = TypeVar("T")


class ParsedResponse(Response, Generic[T], frozen=True, kw_only=True):
    """A complete response with the value parsed from its text."""

    value: T
    asked: int = 1
    """Number of answers it took; ``usage`` is their total."""


def _answer_of(reply: Response, cut: str = "") -> Answer:
    if reply.status == "incomplete":
        reason = None if reply.incomplete_details is None else reply.incomplete_details.reason
        limit = reason is None or reason == "max_output_tokens"
        cut = "the token limit was reached" if limit else f"the response is incomplete ({reason})"
    parts = [part for item in reply.output for part in item.content or ()]
    return Answer(reply, cut, " ".join(part.refusal or part.text for part in parts if part.type == "refusal"))


class ParsedResponseStream(OutputStream[ResponseEvent, Response, ResponseUsage, T], ResponseStream, Generic[T]):
    """A stream of a response whose text is a value: a ``ResponseStream`` with ``snapshots()`` and ``items(...)``."""

    __slots__ = ()

    _parsed = ParsedResponse
    _answer_of = staticmethod(_answer_of)

    async def result(self) -> ParsedResponse[T]:
        """Reads the rest and returns the response, with its ``value``; see ``OutputStream.result``."""
        return cast("ParsedResponse[T]", await super().result())


async def parse(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedResponse[Any]:
    """Returns a response whose text is a value. Asks again if the answer does not match, up to ``reask`` times."""
    output, sent = _prepare("parse", kind, options, ParseOptions)
    reask = sent.pop("reask", 0)
    reply_class: type[ParsedResponse[Any]] = ParsedResponse
    with engine.runtime.as_one_call():
        return await ask(
            output,
            required,
            reask,
            call=lambda required: engine.call(CREATE, PARAMETERS.encode("parse", required, sent)),
            answer_of=_answer_of,
            again=_next_request,
            parsed=reply_class,
        )


def _next_request(required: Mapping[str, object], reply: Response, feedback: str) -> Mapping[str, object]:
    given = required["input"]
    history = [_user_message(given)] if isinstance(given, str) else cast("Sequence[object]", given)
    return {**required, "input": [*history, *reply.output, _user_message(feedback)]}


def _user_message(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def parse_stream(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedResponseStream[Any]:
    """Returns the stream of a response whose text is a value."""
    output, sent = _prepare("parse_stream", kind, options, ParseStreamOptions)
    arguments = PARAMETERS.encode("parse_stream", required, sent, {"stream": True})
    return ParsedResponseStream(engine.opening(CREATE, arguments, ResponseCollector), output)


def _prepare(method: str, kind: Any, options: Mapping[str, object], known: type) -> tuple[Output[Any], dict[str, Any]]:
    """Returns the expected output, and the options with its response format."""
    output, sent = prepare(method, kind, options, "text", {**ResponsesOptions.__annotations__, **known.__annotations__})
    declared = output.declared()
    response_format = {"type": "json_object"} if declared is None else {"type": "json_schema", **declared}
    return output, {**sent, "text": {"format": response_format}}
