"""How the events of a streamed response add up to it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, cast

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect, no_error_beside
from friendli_async._core.text import joined, missing
from friendli_async.errors import APIStatusError
from friendli_async.replies import Headers, Partial
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
from friendli_async.responses.replies import (
    ContentPart,
    OutputItem,
    Response,
    ResponseUsage,
    response_failure,
    response_partial,
)

__all__ = ["ResponseCollector", "Wording"]


_ITEM_OF: Final = {"output_text": "message", "reasoning_text": "reasoning"}
"""The kind of item that a kind of part is in."""


class _ItemParts:
    """An output item in the making."""

    def __init__(self, item: OutputItem) -> None:
        self.item = item
        self.arguments: list[str] = []
        self.name: str | None = None
        self.whole = False
        self._content: dict[int, tuple[str, list[str]]] = {}

    def add(self, index: int | None, kind: str, text: str) -> None:
        self._pieces(index, kind).append(text)

    def settle(self, index: int | None, kind: str, text: str) -> None:
        """The whole of a text, which counts as far as its pieces did not come."""
        pieces = self._pieces(index, kind)
        if rest := missing(text, pieces):
            pieces.append(rest)

    def finish(self, item: OutputItem) -> None:
        self.item = item
        self.whole = True

    def _pieces(self, index: int | None, kind: str) -> list[str]:
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
    return no_error_beside(events, payloads) and ResponseFailed not in map(type, events)


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
                case OutputTextDelta():
                    self._item(event, "message").add(event.content_index, "output_text", event.delta)
                case ReasoningTextDelta():
                    self._item(event, "reasoning").add(event.content_index, "reasoning_text", event.delta)
                case FunctionCallArgumentsDelta():
                    self._item(event, "function_call").arguments.append(event.delta)
                case OutputTextDone():
                    self._item(event, "message").settle(event.content_index, "output_text", event.text)
                case ReasoningTextDone():
                    self._item(event, "reasoning").settle(event.content_index, "reasoning_text", event.text)
                case FunctionCallArgumentsDone():
                    parts = self._item(event, "function_call")
                    parts.arguments = [event.arguments or joined(parts.arguments)]
                    parts.name = event.name
                case OutputItemAdded():
                    self._begin(event.item, event.output_index)
                case OutputItemDone():
                    parts = self._found(event.item, event.output_index) or self._begin(event.item, event.output_index)
                    parts.finish(event.item)
                case ContentPartAdded() | ContentPartDone():
                    if event.part.text and (kind := _ITEM_OF.get(event.part.type)) is not None:
                        self._item(event, kind).settle(event.content_index, event.part.type, event.part.text)
                case ResponseCompleted() | ResponseIncomplete():
                    self._final = event.response
                    self.is_last = True
                case ResponseFailed():
                    self._final = event.response
                case ResponseCreated() | ResponseInProgress():
                    self._begun = event.response
                case _:
                    pass

    def _item(self, event: OfItem, kind: str) -> _ItemParts:
        item = OutputItem(type=kind, id=event.item_id)
        return self._found(item, event.output_index) or self._begin(item, event.output_index)

    def _found(self, item: OutputItem, index: int | None) -> _ItemParts | None:
        for place in (item.id, index):
            if place is not None and place in self._places:
                return self._places[place]
        if item.id is not None or index is not None:
            return None
        # Nothing says which: the latest of its kind that is still being made.
        alike = (parts for parts in reversed(self._items) if parts.item.type == item.type and not parts.whole)
        return next(alike, None)

    def _begin(self, item: OutputItem, index: int | None) -> _ItemParts:
        parts = _ItemParts(item)
        self._items.append(parts)
        self._places.update({place: parts for place in (item.id, index) if place is not None})
        return parts

    def partial(self) -> Partial:
        """What there is of the response."""
        return response_partial(self.result())

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
        self._pieces: list[str] = []
        self._by_part: dict[tuple[object, ...], list[str]] = {}

    def of(self, event: ResponseEvent) -> str:
        """What an event adds; often ""."""
        match event:
            case OutputTextDelta() if self._kind == "output_text":
                return self._add(event, event.delta)
            case ReasoningTextDelta() if self._kind == "reasoning_text":
                return self._add(event, event.delta)
            case OutputTextDone() if self._kind == "output_text":
                return self._rest(event, event.text)
            case ReasoningTextDone() if self._kind == "reasoning_text":
                return self._rest(event, event.text)
            case ContentPartAdded() | ContentPartDone() if event.part.type == self._kind:
                return self._rest(event, event.part.text)
            case ResponseCompleted() | ResponseIncomplete():
                whole = event.response.text if self._kind == "output_text" else event.response.reasoning
                return missing(whole, self._pieces)
            case _:
                return ""

    def _add(self, event: OfPart, text: str) -> str:
        place = event.item_id, event.output_index, event.content_index
        self._by_part.setdefault(place, []).append(text)
        self._pieces.append(text)
        return text

    def _rest(self, event: OfPart, text: str) -> str:
        place = event.item_id, event.output_index, event.content_index
        rest = missing(text, self._by_part.get(place, ()))
        return self._add(event, rest) if rest else ""
