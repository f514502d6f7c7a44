"""The stream of a response, and the collector that assembles its events into a ``Response``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, Literal, cast

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect, no_error_field
from friendli_async._core.lenient import convert
from friendli_async._core.text import join_text, missing_suffix
from friendli_async.errors import APIStatusError
from friendli_async.replies import Headers, Partial, UnknownEvent, partial_of
from friendli_async.responses.events import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    KnownEvent,
    OfItem,
    OfPart,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
)
from friendli_async.responses.replies import ContentPart, OutputItem, Response, ResponseUsage, response_failure
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

__all__ = ["ResponseCollector", "ResponseStream", "Wording"]


_ITEM_TYPES: Final = {
    "output_text": "message",
    "reasoning_text": "reasoning",
    "refusal": "message",
    "summary_text": "reasoning",
    "input": "custom_tool_call",
}
"""The type of item that contains each type of part."""
_UNTYPED_EVENTS: Final = {
    "response.refusal": "refusal",
    "response.reasoning_summary_text": "summary_text",
    "response.custom_tool_call_input": "input",
}
"""The types of part whose events are UnknownEvents, by the names of these without ``.delta`` and ``.done``."""
_FIELDS: Final = {"summary_text": "summary", "input": "input"}
"""The field of the item that holds each type of part, if it is not ``content``."""
_Delta = type[OutputTextDelta | ReasoningTextDelta]
_Done = type[OutputTextDone | ReasoningTextDone]
_EVENT_TYPES: Final[dict[str, tuple[_Delta, _Done]]] = {
    "output_text": (OutputTextDelta, OutputTextDone),
    "reasoning_text": (ReasoningTextDelta, ReasoningTextDone),
}
"""The delta and done events of each type of part."""
_PART_TYPES: Final[dict[object, str]] = {event: part for part, events in _EVENT_TYPES.items() for event in events}


class _ItemParts:
    """Accumulates the deltas of one output item."""

    def __init__(self, item: OutputItem) -> None:
        self.item = item
        self.arguments: list[str] = []
        self.name: str | None = None
        self.is_complete = False
        self._streamed: dict[str, dict[tuple[int, str], list[str]]] = {}  # by field; then by index and type of part

    def pieces(self, index: int | None, kind: str) -> list[str]:
        """Returns the collected text pieces of a part."""
        return self._streamed.setdefault(_FIELDS.get(kind, "content"), {}).setdefault((index or 0, kind), [])

    def result(self) -> OutputItem:
        item = self.item
        inputs = self._streamed.get("input", {}).get((0, "input"), ())
        return msgspec.structs.replace(
            item,
            content=self._with_streamed("content", item.content) or item.content,
            summary=self._with_streamed("summary", item.summary) or item.summary,
            arguments=(self.is_complete and item.arguments) or join_text(self.arguments) or item.arguments,
            input=(self.is_complete and item.input) or join_text(inputs) or item.input,
            name=item.name or self.name,
        )

    def _with_streamed(self, field: str, value: Sequence[ContentPart] | None) -> tuple[ContentPart, ...]:
        """Returns the parts of a field of the complete item, with the streamed text where they lack it."""
        final = (self.is_complete and value) or ()
        parts = dict(enumerate(final))
        has_text = {kind: any(_holds(part, kind) for part in final) for kind in _ITEM_TYPES}
        placed: set[int] = set()
        for (index, kind), pieces in sorted(self._streamed.get(field, {}).items()):
            text, part = join_text(pieces), parts.get(index)
            is_held = has_text[kind] if part is None else _holds(part, kind)
            if is_held or (part is not None and not text):
                continue
            is_taken = part is not None and (index in placed or part.refusal or (kind == "refusal" and part.text))
            at = max(parts) + 1 if is_taken else index
            parts[at] = ContentPart(kind, refusal=text) if kind == "refusal" else ContentPart(kind, text)
            placed.add(at)
        return tuple(part for _, part in sorted(parts.items()))


def _holds(part: ContentPart, kind: str) -> bool:
    """Whether a part has text of the kind that was streamed."""
    if kind == "refusal":
        return bool(part.refusal)
    return bool(part.text) and part.type in (("output_text", "text") if kind == "output_text" else (kind,))


def _are_ordinary(events: Sequence[ResponseEvent], payloads: Sequence[bytes]) -> bool:
    return no_error_field(events, payloads) and ResponseFailed not in map(type, events)


def _fill_output(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds an empty ``output``: some engines start with little more than the id of the response."""
    response: Any = fields.get("response")
    if isinstance(response, dict) and cast("dict[str, Any]", response).get("output") is None:
        return {**fields, "response": {**response, "output": []}}
    return fields


def _failure_of(event: ResponseEvent) -> APIStatusError | None:
    return response_failure(event.response, 200, Headers()) if isinstance(event, ResponseFailed) else None


def _has_text(event: ResponseEvent) -> bool:
    match event:
        case OutputTextDelta(delta=text) | OutputTextDone(text=text):
            return bool(text)
        case ContentPartAdded() | ContentPartDone():
            return event.part.type == "output_text" and bool(event.part.text)
        case OutputItemAdded() | OutputItemDone():
            return bool(event.item.text)
        case ResponseCompleted() | ResponseIncomplete() | ResponseFailed():
            return bool(event.response.text)
        case _:
            return False


class ResponseCollector:
    """Accumulates the events of a response, even if an engine omits indexes or ids."""

    dialect: Dialect[ResponseEvent] = TaggedDialect(
        KnownEvent, are_ordinary=_are_ordinary, rewrite=_fill_output, failure_of=_failure_of
    )
    add_texts: None = None
    may_end: bool = False  # the last event ends the stream at once, so nothing can end it later

    def __init__(self) -> None:
        self.is_last: bool = False
        self.has_text: bool = False
        self.head: Response = Response(id="", output=())
        """The response object with the reply's ``id`` and ``model``, of the latest event that has one."""
        self._items: list[_ItemParts] = []
        self._by_key: dict[str | int, _ItemParts] = {}

    @property
    def begun(self) -> bool:
        """Whether output or the end of the response has arrived; ``response.created`` alone does not count."""
        return bool(self._items) or self.is_last

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The status of the response, once it has ended."""
        return () if not self.is_last or self.head.status is None else (self.head.status,)

    @property
    def usage(self) -> ResponseUsage | None:
        """The usage, once the server has sent it."""
        return self.head.usage

    def extend(self, events: Sequence[ResponseEvent]) -> int:
        """Adds events in order, up to the final one; returns how many it added."""
        if not self.has_text:
            self.has_text = any(map(_has_text, events))
        for count, event in enumerate(events, 1):
            match event:
                case OutputTextDelta() | ReasoningTextDelta():
                    self._pieces(event, _PART_TYPES[type(event)]).append(event.delta)
                case FunctionCallArgumentsDelta():
                    self._item(event, "function_call").arguments.append(event.delta)
                case OutputTextDone() | ReasoningTextDone():
                    self._add_missing(event, _PART_TYPES[type(event)], event.text)
                case FunctionCallArgumentsDone():
                    parts = self._item(event, "function_call")
                    parts.arguments = [event.arguments or join_text(parts.arguments)]
                    parts.name = event.name
                case OutputItemAdded():
                    self._begin(event.item, event.output_index)
                case OutputItemDone(item=item, output_index=index):
                    parts = self._find(item.id, index, item.type) or self._begin(item, index)
                    parts.item, parts.is_complete = item, True
                case ContentPartAdded() | ContentPartDone():
                    text = event.part.refusal if event.part.type == "refusal" else event.part.text
                    if text and event.part.type in _ITEM_TYPES:
                        self._add_missing(event, event.part.type, text)
                case ResponseCompleted() | ResponseIncomplete() | ResponseFailed():
                    self.head = event.response
                    self.is_last = True
                    return count
                case ResponseCreated() | ResponseInProgress():
                    self.head = event.response
                case UnknownEvent():
                    self._add_untyped(event)
        return len(events)

    def _add_untyped(self, event: UnknownEvent) -> None:
        data = event.data
        name, _, stage = event.type.rpartition(".")
        kind = _UNTYPED_EVENTS.get(name)
        if kind is None:
            return
        text = data.get("delta", data.get("text", data.get(kind)))
        if not isinstance(text, str):
            return
        index = data.get("summary_index", data.get("content_index"))
        part: OfPart = convert({**data, "type": OfPart.__struct_config__.tag, "content_index": index}, OfPart)
        if stage == "delta":
            self._pieces(part, kind).append(text)
        else:
            self._add_missing(part, kind, text)

    def _pieces(self, event: OfPart, kind: str) -> list[str]:
        return self._item(event, _ITEM_TYPES[kind]).pieces(event.content_index, kind)

    def _add_missing(self, event: OfPart, kind: str, text: str) -> None:
        """Adds the rest of a complete text that its deltas have not delivered."""
        pieces = self._pieces(event, kind)
        pieces.append(missing_suffix(text, pieces))

    def _item(self, event: OfItem, kind: str) -> _ItemParts:
        found = self._find(event.item_id, event.output_index, kind)
        return found or self._begin(OutputItem(type=kind, id=event.item_id), event.output_index)

    def _find(self, id: str | None, index: int | None, kind: str) -> _ItemParts | None:
        for key in (id, index):
            if key is not None and key in self._by_key:
                return self._by_key[key]
        if id is not None or index is not None:
            return None
        # The event names no item: take the latest incomplete one of this type.
        candidates = (parts for parts in reversed(self._items) if parts.item.type == kind and not parts.is_complete)
        return next(candidates, None)

    def _begin(self, item: OutputItem, index: int | None) -> _ItemParts:
        parts = _ItemParts(item)
        self._items.append(parts)
        self._by_key.update({key: parts for key in (item.id, index) if key is not None})
        return parts

    def partial(self) -> Partial:
        """Returns the response so far."""
        return partial_of(self.result())

    def result(self) -> Response:
        """Returns the response of the final event, or if that lacks content, one assembled from the other events."""
        output = tuple(parts.result() for parts in self._items)
        assembled = msgspec.structs.replace(self.head, output=output)
        return self.head if self.is_last and not _has_more(assembled, self.head) else assembled


def _has_more(assembled: Response, final: Response) -> bool:
    """Whether the assembled response, or an item of it, has a kind of content that the final one lacks entirely."""
    names = ("output", "text", "reasoning", "tool_calls")
    if any(getattr(assembled, name) and not getattr(final, name) for name in names):
        return True
    if [item.type for item in assembled.output] != [item.type for item in final.output]:
        return False
    pairs = zip(assembled.output, final.output, strict=True)
    return any(new and not old for pair in pairs for new, old in zip(*map(_contents, pair), strict=True))


def _contents(item: OutputItem) -> tuple[str | None, ...]:
    refusal = join_text(part.refusal or "" for part in item.content or ())
    return item.text, item.reasoning, item.arguments, item.input, refusal


class Wording:
    """Extracts the text of each event, of the answer or of the reasoning.

    An event with a complete text adds only what its deltas have not delivered.

    Args:
        kind: The type of part to read.
    """

    def __init__(self, kind: Literal["output_text", "reasoning_text"]) -> None:
        self._kind = kind
        self._delta, self._done = _EVENT_TYPES[kind]
        self._pieces: list[str] = []
        self._by_part: dict[tuple[object, ...], list[str]] = {}
        self._by_item: dict[object, list[list[str]]] = {}  # by id, and by index; None if the events name no item

    def of(self, event: ResponseEvent) -> str:
        """Returns the text that an event adds; often ""."""
        if isinstance(event, self._delta):
            return self._add(event, event.delta)
        if isinstance(event, self._done):
            return self._rest(event, event.text)
        match event:
            case ContentPartAdded() | ContentPartDone() if event.part.type == self._kind:
                return self._rest(event, event.part.text)
            case OutputItemDone(item=item, output_index=index):
                given = self._by_item.get(item.id) or self._by_item.get(index) or ()
                text = "" if None in self._by_item else missing_suffix(self._words(item), chain(*given))
                return self._add(OfPart(item_id=item.id, output_index=index), text) if text else ""
            case ResponseCompleted() | ResponseIncomplete():
                return missing_suffix(self._words(event.response), self._pieces)
            case _:
                return ""

    def _words(self, whole: OutputItem | Response) -> str:
        return whole.text if self._kind == "output_text" else whole.reasoning

    def _add(self, event: OfPart, text: str) -> str:
        self._part(event).append(text)
        self._pieces.append(text)
        return text

    def _rest(self, event: OfPart, text: str) -> str:
        return self._add(event, missing_suffix(text, self._part(event)))

    def _part(self, event: OfPart) -> list[str]:
        key = event.item_id, event.output_index, event.content_index
        if (pieces := self._by_part.get(key)) is None:
            pieces = self._by_part[key] = []
            for name in {event.item_id, event.output_index} - {None} or {None}:
                self._by_item.setdefault(name, []).append(pieces)
        return pieces


class ResponseStream(AssembledStream[ResponseEvent, Response, ResponseUsage]):
    """A stream of typed events that assembles a ``Response``. Events of future types are ``UnknownEvent``.

    It ends normally with ``response.completed`` or ``response.incomplete``. ``response.failed`` raises the error class
    that matches its code.
    """

    def _text_extractor(self) -> Callable[[ResponseEvent], str]:
        return Wording("output_text").of

    def reasoning(self) -> TextView:
        """Returns a view of the reasoning: its chunks as they arrive, never ""."""
        return TextView(self, Wording("reasoning_text").of)
