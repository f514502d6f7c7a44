"""The stream of a response, and the collector that assembles its events into a ``Response``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, cast, get_args

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect
from friendli_async._core.lenient import latest_usage, text_of
from friendli_async._core.text import missing_suffix
from friendli_async._json import as_object, is_object
from friendli_async.errors import APIStatusError
from friendli_async.replies import Partial, ReplyHead, partial_of
from friendli_async.responses.events import (
    ContentPartAdded,
    ContentPartDone,
    ItemEvent,
    KnownEvent,
    OfResponse,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ResponseCompleted,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    Stages,
)
from friendli_async.responses.items import Items, completed_items, has_content
from friendli_async.responses.replies import OutputItem, Response, ResponseUsage, failure_of
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

__all__ = ["ResponseStream"]


_TEXTS: Final[dict[str, str]] = {
    kind.__struct_config__.tag: text
    for kind in get_args(ItemEvent)
    for text in ("delta", "text", "arguments")
    if text in kind.__struct_fields__
}
"""The field of the text of an event, by the event's type."""
_STAGES: Final[frozenset[str]] = frozenset(kind.__struct_config__.tag for kind in get_args(Stages))
"""The types of the events that hold a response."""
_ENDING: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Of these, the events that end a response."""


def _fill(kind: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Makes a missing text or response an empty one, joins the parts of a text, and adds an empty ``output``.

    Some engines start with little more than an id, and the events that end a response say so by their type alone.
    """
    kind = kind or ""
    text = _TEXTS.get(kind, "")
    words: object = fields.get(text)
    if text and (words is None or (isinstance(words, dict | list) and "arguments" not in kind)):
        fields = {**fields, text: text_of(cast("object", words))}
    if kind not in _STAGES:
        return fields
    given: object = fields.get("response")
    if given and not is_object(given) and kind not in _ENDING:
        return fields  # it cannot be read
    response = as_object(given)
    if given and not response and kind == "response.failed":
        response = {"error": {"message": given}}
    return {**fields, "response": {**response, "output": response.get("output") or []}}


def _lacks_item(kind: str, fields: dict[str, Any]) -> bool:
    """Whether an event that is about an item has none, as some gateways send it: then it says nothing."""
    return kind in {"response.output_item.added", "response.output_item.done"} and fields.get("item") is None


def _failure_of(event: ResponseEvent, head: ReplyHead) -> APIStatusError | None:
    match event:
        case ResponseFailed(response=response):
            return failure_of(msgspec.structs.replace(response, status="failed"), head)
        case ResponseCompleted(response=response) | ResponseIncomplete(response=response):
            return failure_of(response, head)
        case _:
            return None


def _has_text(event: ResponseEvent) -> bool:
    match event:
        case OutputTextDelta(delta=text) | OutputTextDone(text=text):
            return bool(text)
        case ContentPartAdded(part=part) | ContentPartDone(part=part):
            return part.type in {"output_text", "text"} and bool(part.text)
        case OutputItemAdded(item=whole) | OutputItemDone(item=whole) | OfResponse(response=whole):
            return bool(whole.text)
        case _:
            return False


class ResponseCollector:
    """Accumulates the events of a response, even if an engine omits indexes or ids."""

    dialect: Dialect[ResponseEvent] = TaggedDialect(
        KnownEvent,
        reporting=frozenset(get_args(Stages)),
        holds_unknown=_lacks_item,
        rewrite=_fill,
        failure_of=_failure_of,
    )
    add_texts: None = None
    splits_answer: bool = False
    may_end: bool = False  # the last event ends the stream at once, so nothing can end it later

    def __init__(self) -> None:
        self.is_last: bool = False
        self.has_text: bool = False
        self.usage: ResponseUsage | None = None
        self.envelope: Response = Response(id="", output=())
        """The response object with the reply's ``id`` and ``model``, of the latest event that has one."""
        self._items = Items()

    @property
    def begun(self) -> bool:
        """Whether content or the end of the response has arrived; the start of a response or an item does not count."""
        return self.is_last or any(has_content(parts.result()) for parts in self._items.all)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The status of the response, once it has ended."""
        return () if not self.is_last or self.envelope.status is None else (self.envelope.status,)

    def extend(self, events: Sequence[ResponseEvent]) -> int:
        """Adds events in order, up to the final one; returns how many it added."""
        for position, event in enumerate(events, 1):
            if isinstance(event, OfResponse):
                self.envelope = event.response
                if event.response.usage is not None:
                    self.usage = latest_usage(event.response.usage, self.usage)
                self.is_last = event.type in _ENDING
                if self.is_last:
                    events = events[:position]
                    break
            else:
                self._items.add(event)
        if not self.has_text:
            self.has_text = any(map(_has_text, events))
        return len(events)

    def partial(self) -> Partial:
        """Returns the response so far."""
        result = self.result()
        parts = [part for item in result.output for part in item.content or ()]
        sources = tuple(each for part in parts for each in part.annotations or ())
        return msgspec.structs.replace(partial_of(result), annotations=sources)

    def result(self) -> Response:
        """Returns the response of the final event, with what was streamed and it lacks; see ``completed_items``."""
        output = tuple(parts.result() for parts in self._items.all)
        if self.is_last:
            output = completed_items(self.envelope.output, output, may_repeat=self._items.may_repeat)
        return msgspec.structs.replace(self.envelope, output=output, usage=self.usage)


class _Wording:
    """Extracts the text of each event, of the answer or of the reasoning.

    A complete item adds its text only if there are no deltas, and the end what has not come before.

    Args:
        kind: The type of part to read.
    """

    def __init__(self, kind: Literal["output_text", "reasoning_text"]) -> None:
        self._kind = kind
        self._delta = OutputTextDelta if kind == "output_text" else ReasoningTextDelta
        self._has_deltas = False
        self._given: list[str] = []

    def of(self, event: ResponseEvent) -> str:
        """Returns the text that an event adds; often ""."""
        if isinstance(event, self._delta):  # first: nearly all events are
            text, self._has_deltas = event.delta, True
        elif isinstance(event, OutputItemDone):
            text = "" if self._has_deltas else self._words(event.item)
        elif isinstance(event, ResponseCompleted | ResponseIncomplete):
            text = missing_suffix(self._words(event.response), self._given)
        else:
            return ""
        if text:
            self._given.append(text)
        return text

    def _words(self, whole: OutputItem | Response) -> str:
        return whole.text if self._kind == "output_text" else whole.reasoning


class ResponseStream(AssembledStream[ResponseEvent, Response, ResponseUsage]):
    """A stream of typed events that assembles a ``Response``. Events of future types are ``UnknownEvent``.

    It ends normally with ``response.completed`` or ``response.incomplete``. ``response.failed`` raises the error class
    that matches its code.
    """

    __slots__ = ()

    def _text_extractor(self) -> Callable[[ResponseEvent], str]:
        return _Wording("output_text").of

    def reasoning(self) -> TextView:
        """Returns a view of the reasoning: its chunks as they arrive, never ""."""
        return TextView(self, _Wording("reasoning_text").of)
