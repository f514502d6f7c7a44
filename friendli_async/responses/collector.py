"""How the events of a streamed response add up to it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final, cast, get_args

import msgspec

from friendli_async._core.protocol import decode
from friendli_async._core.text import joined
from friendli_async.replies import Headers, Partial, UnknownEvent
from friendli_async.responses.events import (
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    KnownEvent,
    OfItem,
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

__all__ = ["ResponseCollector"]


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
        """The whole of a text, which counts only where its pieces did not come."""
        pieces = self._pieces(index, kind)
        if not pieces:
            pieces.append(text)

    def finish(self, item: OutputItem) -> None:
        self.item = item
        self.whole = True

    def _pieces(self, index: int | None, kind: str) -> list[str]:
        return self._content.setdefault(index or 0, (kind, []))[1]

    def result(self) -> OutputItem:
        if self.whole:
            return self.item
        content = tuple(ContentPart(kind, joined(pieces)) for _, (kind, pieces) in sorted(self._content.items()))
        return msgspec.structs.replace(
            self.item,
            content=content or self.item.content,
            arguments=joined(self.arguments) or self.item.arguments,
            name=self.item.name or self.name,
        )


_decoder: Final[msgspec.json.Decoder[KnownEvent]] = msgspec.json.Decoder(KnownEvent)
_decode: Final = _decoder.decode
_KINDS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(KnownEvent))
# They only keep the connection busy.
_HEARTBEATS: Final = frozenset({"ping", "keepalive"})


def _odd_event(data: bytes, name: str | None) -> ResponseEvent | None:
    """Decodes what the fast path refuses: a new kind, a kind told by the name alone, a response without output."""
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return decode(data, _decoder) if name is None or name in _KINDS else None  # raises: it is not an event
    event = cast("dict[str, Any]", value)
    kind = event.get("type", name)
    if not isinstance(kind, str) or kind in _HEARTBEATS or kind == "error" or event.get("error"):
        return None
    if kind not in _KINDS:
        return UnknownEvent(kind, event)
    event["type"] = kind
    response = event.get("response")
    if isinstance(response, dict) and cast("dict[str, Any]", response).get("output") is None:
        response["output"] = []  # engines begin with little more than the id
    return decode(json.dumps(event).encode(), _decoder)


class ResponseCollector:
    """Decodes a response's events and puts them together, also where an engine leaves indexes or ids out."""

    def __init__(self) -> None:
        self._begun = Response(id="", output=())
        self._final: Response | None = None
        self._ended = False
        self._items: list[_ItemParts] = []
        self._places: dict[str | int, _ItemParts] = {}

    @property
    def usage(self) -> ResponseUsage | None:
        """The usage, once the server has told it."""
        return (self._final or self._begun).usage

    def decode(self, data: bytes) -> ResponseEvent | None:
        """Decodes an event that is named by its ``type`` alone; None for one that says nothing, or an error."""
        return self._decoded(data, None)

    def decode_each(self, payloads: list[bytes]) -> list[ResponseEvent] | None:
        """Decodes events; None if one of them is not an ordinary one."""
        try:
            events: list[ResponseEvent] = list(map(_decode, payloads))
        except (ValueError, RecursionError):
            return None
        return None if any(type(event) is ResponseFailed for event in events) else events

    def decode_named(self, name: str, data: bytes) -> ResponseEvent | None:
        """Decodes a named event; its name counts where its ``type`` is missing."""
        return self._decoded(data, name)

    def _decoded(self, data: bytes, name: str | None) -> ResponseEvent | None:
        try:
            event: ResponseEvent | None = _decode(data)
        except (ValueError, RecursionError):  # msgspec's and Unicode errors are ValueErrors
            event = _odd_event(data, name)
        if isinstance(event, ResponseFailed):
            self._final = event.response
            raise response_failure(event.response, 200, Headers())
        return event

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
                    parts.arguments = [event.arguments]
                    parts.name = event.name
                case OutputItemAdded():
                    self._begin(event.item, event.output_index)
                case OutputItemDone():
                    parts = self._found(event.item, event.output_index) or self._begin(event.item, event.output_index)
                    parts.finish(event.item)
                case ResponseCompleted() | ResponseIncomplete():
                    self._final = event.response
                    self._ended = True
                case ResponseCreated() | ResponseInProgress():
                    self._begun = event.response
                case _:  # the beginning and the end of a part say nothing that its text does not
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

    @property
    def ended(self) -> bool:
        """Whether the last event has come: nothing is waited for after it."""
        return self.complete()

    def complete(self) -> bool:
        """Whether the response has come to a good end."""
        return self._ended

    def partial(self) -> Partial:
        """What there is of the response."""
        return response_partial(self.result())

    def result(self) -> Response:
        """The whole response: as its last event gives it, or where that is bare, put together from the others."""
        if self._final is not None and self._final.output:
            return self._final
        output = tuple(parts.result() for parts in self._items)
        return msgspec.structs.replace(self._final or self._begun, output=output)
