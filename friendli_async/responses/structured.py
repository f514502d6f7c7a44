"""Structured output of responses: the requests and replies of ``parse`` and ``parse_stream``.

``chat.output`` validates the answers, and ``chat.output_stream`` parses them while they are streamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from friendli_async.chat.output import Answer, OutputAPI, ask, prepare
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


def _answer_of(reply: Response, cut: str) -> Answer:
    if reply.status == "incomplete":
        reason = None if reply.incomplete_details is None else reply.incomplete_details.reason
        limit = reason is None or reason == "max_output_tokens"
        cut = "the token limit was reached" if limit else f"the response is incomplete ({reason})"
    parts = [part for item in reply.output for part in item.content or ()]
    return Answer(reply, cut, " ".join(part.refusal or part.text for part in parts if part.type == "refusal"))


def _format_of(declared: dict[str, object] | None) -> object:
    return {"format": {"type": "json_object"} if declared is None else {"type": "json_schema", **declared}}


def _next_request(required: Mapping[str, object], reply: Response, feedback: str) -> Mapping[str, object]:
    given = required["input"]
    history = [_user_message(given)] if isinstance(given, str) else cast("Sequence[object]", given)
    return {**required, "input": [*history, *reply.output, _user_message(feedback)]}


def _user_message(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


_API: Final[OutputAPI[ParsedResponse[Any]]] = OutputAPI(
    operation=CREATE,
    parameters=PARAMETERS,
    parsed=ParsedResponse,
    option="text",
    format_of=_format_of,
    answer_of=_answer_of,
    next_request=_next_request,
)


class ParsedResponseStream(OutputStream[ResponseEvent, Response, ResponseUsage, T], ResponseStream, Generic[T]):
    """A stream of a response whose text is a value: a ``ResponseStream`` with ``snapshots()`` and ``items(...)``."""

    __slots__ = ()

    _api = _API

    async def result(self) -> ParsedResponse[T]:
        """Reads the rest and returns the response, with its ``value``; see ``OutputStream.result``."""
        return cast("ParsedResponse[T]", await super().result())


async def parse(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedResponse[Any]:
    """Returns a response whose text is a value. Asks again if the answer does not match, up to ``reask`` times."""
    known = {**ResponsesOptions.__annotations__, **ParseOptions.__annotations__}
    output, sent = prepare(_API, "parse", kind, required, options, known)
    return await ask(_API, engine, output, required, sent)


def parse_stream(
    engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
) -> ParsedResponseStream[Any]:
    """Returns the stream of a response whose text is a value."""
    known = {**ResponsesOptions.__annotations__, **ParseStreamOptions.__annotations__}
    output, sent = prepare(_API, "parse_stream", kind, required, options, known)
    arguments = PARAMETERS.encode("parse_stream", required, sent, {"stream": True})
    return ParsedResponseStream(engine.opening(CREATE, arguments, ResponseCollector), output)
