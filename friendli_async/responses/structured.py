"""Responses whose text is a value of a type: asked for by the type's schema, checked here, seen while it arrives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from friendli_async._core.protocol import Operation
from friendli_async.chat.output import Answer, Output, OutputStream, output_of
from friendli_async.chat.structured import check_reask, reask_words, refuse_own_format
from friendli_async.errors import FriendliError, OutputInvalidError
from friendli_async.replies import Partial, added, share_origin
from friendli_async.responses.collector import ResponseCollector, Wording
from friendli_async.responses.events import ResponseEvent
from friendli_async.responses.inputs import arguments_of
from friendli_async.responses.replies import (
    Response,
    ResponseUsage,
    raise_if_failed,
    response_partial,
)
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async._core.call import Engine
    from friendli_async._core.events.stream import Opening

__all__ = ["ParsedResponse", "ParsedResponseStream"]

T = TypeVar("T")


class ParsedResponse(Response, Generic[T], frozen=True, kw_only=True):
    """A whole response, and the value that its text is."""

    value: T
    asked: int = 1
    """How many answers it took; ``usage`` is that of all of them."""


class ParsedResponseStream(OutputStream[ResponseEvent, Response, ResponseUsage, T], Generic[T]):
    """The stream of a response whose text is a value: ``snapshots()``, ``items(...)``, ``text()``, typed events."""

    __slots__ = ()

    def __init__(self, opening: Opening[ResponseEvent, Response, ResponseUsage], output: Output[T]) -> None:
        super().__init__(opening, output)

    def _wording(self) -> Callable[[ResponseEvent], str]:
        return Wording("output_text").of

    def reasoning(self) -> TextView:
        """The reasoning text of the response, piece by piece, never ""."""
        return TextView(self, Wording("reasoning_text").of)

    async def result(self) -> ParsedResponse[T]:
        """Reads what is left and returns the whole response, with its ``value`` and ``meta``.

        Raises:
            OutputCutOffError: The answer ended before it was complete.
            OutputInvalidError: It is no value of the type.
            FriendliError: The stream did not end well, or was closed early.
        """
        return cast("ParsedResponse[T]", await super().result())

    def _read(self, reply: Response) -> ParsedResponse[T]:
        stopped = "the stream was stopped" if self.outcome == "stopped" else ""
        return _with_value(reply, self._output.read(_answer(reply, stopped)))


async def parsed(
    engine: Engine,
    operation: Operation[Response],
    kind: Any,
    required: Mapping[str, object],
    options: Mapping[str, object],
    *,
    strict: bool,
    reask: int,
) -> ParsedResponse[Any]:
    """Asks until the answer fits, or has been asked for often enough."""
    output = output_of(kind, strict)
    options = _asking(output, "parse", options)
    check_reask(reask)
    arguments = arguments_of("parse", required, options)
    before: ResponseUsage | None = None
    asked = 1
    while True:
        try:
            reply = await engine.call(operation, arguments)
            raise_if_failed(reply)
        except FriendliError as error:
            if before is not None:
                billed = response_partial(Response(id="", output=(), usage=before)).usage
                error.partial = error.partial or Partial(usage=billed)
            raise
        reply = _with_usage(reply, added(before, reply.usage))
        answer = _answer(reply)
        try:
            return _with_value(reply, output.read(answer), asked)
        except OutputInvalidError as error:
            if asked > reask or not error.text.strip() or answer.instead:
                raise
            words = reask_words(error)
        required = {**required, "input": [*_listed(required["input"]), *reply.output, _said(words)]}
        arguments = arguments_of("parse", required, options)
        before = reply.usage
        asked += 1


def parsed_stream(
    engine: Engine,
    operation: Operation[Response],
    kind: Any,
    required: Mapping[str, object],
    options: Mapping[str, object],
    *,
    strict: bool,
) -> ParsedResponseStream[Any]:
    """The stream of a response whose text is a value."""
    output = output_of(kind, strict)
    options = _asking(output, "parse_stream", options)
    arguments = arguments_of("parse_stream", required, options, {"stream": True})
    return ParsedResponseStream(engine.opening(operation, arguments, ResponseCollector), output)


def _asking(output: Output[Any], method: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options, with what asks for the type."""
    refuse_own_format(method, "text", options)
    if output.schema is None:
        return {**options, "text": {"format": {"type": "json_object"}}}
    said: dict[str, object] = {"type": "json_schema", "name": output.name, "schema": output.schema}
    if output.description is not None:
        said["description"] = output.description
    return {**options, "text": {"format": said}}


def _said(words: str) -> dict[str, object]:
    return {"role": "user", "content": words}


def _listed(given: object) -> list[object]:
    return [_said(given)] if isinstance(given, str) else list(cast("Sequence[object]", given))


def _answer(reply: Response, cut: str = "") -> Answer:
    if reply.status == "incomplete":
        reason = None if reply.incomplete_details is None else reply.incomplete_details.reason
        limit = reason is None or reason == "max_output_tokens"
        cut = "it reached its limit of tokens" if limit else f"it is incomplete, {reason}"
    parts = [part for item in reply.output for part in item.content or ()]
    refusals = " ".join(part.refusal or part.text for part in parts if part.type == "refusal")
    calls = ", ".join(call.function.name for call in reply.tool_calls)
    instead = ""
    if refusals:
        instead = f"the model refused to answer: {refusals}"
    elif calls and not cut:
        instead = f"the model called tools instead of answering: {calls}"
    return Answer(reply=reply, text=reply.text, cut=cut, instead=instead)


def _with_value(reply: Response, value: Any, asked: int = 1) -> ParsedResponse[Any]:
    fields = {name: getattr(reply, name) for name in reply.__struct_fields__}
    whole: ParsedResponse[Any] = ParsedResponse(**fields, value=value, asked=asked)
    share_origin(whole, reply)
    return whole


def _with_usage(reply: Response, usage: ResponseUsage | None) -> Response:
    if usage is reply.usage:
        return reply
    whole = msgspec.structs.replace(reply, usage=usage)
    share_origin(whole, reply)
    return whole
