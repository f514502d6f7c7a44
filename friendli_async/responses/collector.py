"""How the events of a streamed response add up to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, cast

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect, no_error_field
from friendli_async._core.text import joined, missing
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

__all__ = ["ResponseCollector", "Wording"]


_ITEM_OF: Final = {"output_text": "message", "reasoning_text": "reasoning"}
"""The kind of item that a kind of part is in."""
_Delta = type[OutputTextDelta | ReasoningTextDelta]
_Done = type[OutputTextDone | ReasoningTextDone]
_EVENTS_OF: Final[dict[str, tuple[_Delta, _Done]]] = {
    "output_text": (OutputTextDelta, OutputTextDone),
    "reasoning_text": (ReasoningTextDelta, ReasoningTextDone),
}
"""The events that bring a kind of part."""
_PART_OF: Final[dict[object, str]] = {event: part for part, events in _EVENTS_OF.items() for event in events}


class _ItemParts:
    """An output item in the making."""

    def __init__(self, item: OutputItem) -> None:
        self.item = item
        self.arguments: list[str] = []
        self.name: str | None = None
        self.whole = False
        self._content: dict[int, tuple[str, list[str]]] = {}

    def pieces(self, index: int | None, kind: str) -> list[str]:
        """Those of a part of its content."""
        return self._content.setdefault(index or 0, (kind, []))[1]

    def result(self) -> OutputItem:
        content = tuple(ContentPart(kind, joined(pieces)) for _, (kind, pieces) in sorted(self._content.items()))
        return msgspec.structs.replace(
            self.item,
            content=(self.whole and self.item.content) or content or self.item.content,
            arguments=(self.whole and self.item.arguments) or joined(self.arguments) or self.item.arguments,
            name=self.item.name or self.name,
        )


def _are_ordinary(events: Sequence[ResponseEvent], payloads: Sequence[bytes]) -> bool:
    return no_error_field(events, payloads) and ResponseFailed not in map(type, events)


def _with_output(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Engines begin with little more than the id of the response."""
    response: Any = fields.get("response")
    if isinstance(response, dict) and cast("dict[str, Any]", response).get("output") is None:
        return {**fields, "response": {**response, "output": []}}
    return fields


def _failure_of(event: ResponseEvent) -> APIStatusError | None:
    return response_failure(event.response, 200, Headers()) if isinstance(event, ResponseFailed) else None


class ResponseCollector:
    """Puts a response's events together, also where an engine leaves indexes or ids out."""

    dialect: Dialect[ResponseEvent] = TaggedDialect(
        KnownEvent, ordinary=_are_ordinary, rewrite=_with_output, failure_of=_failure_of
    )
    add_texts: None = None

    def __init__(self) -> None:
        self.is_last: bool = False
        self._begun = Response(id="", output=())
        self._final: Response | None = None
        self._items: list[_ItemParts] = []
        self._places: dict[str | int, _ItemParts] = {}

    @property
    def begun(self) -> bool:
        """Whether a part of a response, or its end, has come; its head alone is nothing."""
        return bool(self._items) or self._final is not None

    @property
    def may_end(self) -> bool:
        """Whether the response has come to a good end."""
        return self.is_last

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return bool(self._items) and bool(self.result().text)

    @property
    def head(self) -> Response:
        """What has the reply's ``id`` and ``model``."""
        return self._final or self._begun

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """How the response ended, once it has."""
        return () if self._final is None or self._final.status is None else (self._final.status,)

    @property
    def usage(self) -> ResponseUsage | None:
        """The usage, once the server has told it."""
        return (self._final or self._begun).usage

    def extend(self, events: Iterable[ResponseEvent]) -> None:
        """Adds events."""
        for event in events:
            match event:
                case OutputTextDelta() | ReasoningTextDelta():
                    self._pieces(event, _PART_OF[type(event)]).append(event.delta)
                case FunctionCallArgumentsDelta():
                    self._item(event, "function_call").arguments.append(event.delta)
                case OutputTextDone() | ReasoningTextDone():
                    self._settle(event, _PART_OF[type(event)], event.text)
                case FunctionCallArgumentsDone():
                    parts = self._item(event, "function_call")
                    parts.arguments = [event.arguments or joined(parts.arguments)]
                    parts.name = event.name
                case OutputItemAdded():
                    self._begin(event.item, event.output_index)
                case OutputItemDone(item=item, output_index=index):
                    parts = self._found(item.id, index, item.type) or self._begin(item, index)
                    parts.item, parts.whole = item, True
                case ContentPartAdded() | ContentPartDone():
                    if event.part.text and event.part.type in _ITEM_OF:
                        self._settle(event, event.part.type, event.part.text)
                case ResponseCompleted() | ResponseIncomplete():
                    self._final = event.response
                    self.is_last = True
                case ResponseFailed():
                    self._final = event.response
                case ResponseCreated() | ResponseInProgress():
                    self._begun = event.response
                case UnknownEvent():
                    pass

    def _pieces(self, event: OfPart, kind: str) -> list[str]:
        return self._item(event, _ITEM_OF[kind]).pieces(event.content_index, kind)

    def _settle(self, event: OfPart, kind: str, text: str) -> None:
        """Adds the whole of a text as far as its pieces did not come."""
        pieces = self._pieces(event, kind)
        pieces.append(missing(text, pieces))

    def _item(self, event: OfItem, kind: str) -> _ItemParts:
        found = self._found(event.item_id, event.output_index, kind)
        return found or self._begin(OutputItem(type=kind, id=event.item_id), event.output_index)

    def _found(self, id: str | None, index: int | None, kind: str) -> _ItemParts | None:
        for place in (id, index):
            if place is not None and place in self._places:
                return self._places[place]
        if id is not None or index is not None:
            return None
        # Nothing says which: the latest of its kind that is still being made.
        alike = (parts for parts in reversed(self._items) if parts.item.type == kind and not parts.whole)
        return next(alike, None)

    def _begin(self, item: OutputItem, index: int | None) -> _ItemParts:
        parts = _ItemParts(item)
        self._items.append(parts)
        self._places.update({place: parts for place in (item.id, index) if place is not None})
        return parts

    def partial(self) -> Partial:
        """What there is of the response."""
        return partial_of(self.result())

    def result(self) -> Response:
        """The whole response: as its last event gives it, or where that is bare, put together from the others."""
        output = tuple(parts.result() for parts in self._items)
        whole = msgspec.structs.replace(self._final or self._begun, output=output)
        return self._final if self._final is not None and not _says_more(whole, self._final) else whole


def _says_more(whole: Response, final: Response) -> bool:
    """Whether the events have said anything of a kind of which the last one says nothing."""
    return any(
        getattr(whole, name) and not getattr(final, name) for name in ("output", "text", "reasoning", "tool_calls")
    )


class Wording:
    """The text, or the reasoning, event by event; of what an event gives as a whole, what had not come in pieces.

    Args:
        kind: The kind of part that it is in.
    """

    def __init__(self, kind: Literal["output_text", "reasoning_text"]) -> None:
        self._kind = kind
        self._delta, self._done = _EVENTS_OF[kind]
        self._pieces: list[str] = []
        self._by_part: dict[tuple[object, ...], list[str]] = {}

    def of(self, event: ResponseEvent) -> str:
        """What an event adds; often ""."""
        if isinstance(event, self._delta):
            return self._add(event, event.delta)
        if isinstance(event, self._done):
            return self._rest(event, event.text)
        match event:
            case ContentPartAdded() | ContentPartDone() if event.part.type == self._kind:
                return self._rest(event, event.part.text)
            case ResponseCompleted() | ResponseIncomplete():
                whole = event.response.text if self._kind == "output_text" else event.response.reasoning
                return missing(whole, self._pieces)
            case _:
                return ""

    def _add(self, event: OfPart, text: str) -> str:
        self._part(event).append(text)
        self._pieces.append(text)
        return text

    def _rest(self, event: OfPart, text: str) -> str:
        return self._add(event, missing(text, self._part(event)))

    def _part(self, event: OfPart) -> list[str]:
        return self._by_part.setdefault((event.item_id, event.output_index, event.content_index), [])
