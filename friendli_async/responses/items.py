"""Assembles the output items of a streamed response, even if an engine omits their indexes or varies their ids."""

from __future__ import annotations

from typing import Final

import msgspec

from friendli_async._core.lenient import convert
from friendli_async._core.text import join_text, missing_suffix
from friendli_async._json import Fields
from friendli_async.replies import UnknownEvent
from friendli_async.responses.events import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    ItemEvent,
    OfItem,
    OfPart,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
)
from friendli_async.responses.replies import ContentPart, OutputItem

__all__ = ["ItemParts", "Items"]


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


class ItemParts:
    """Accumulates the deltas of one output item.

    Attributes:
        item: The item as the server last sent it.
        is_complete: Whether ``item`` is the complete item.
    """

    def __init__(self, item: OutputItem) -> None:
        self.item: OutputItem = item
        self.is_complete: bool = False
        self.arguments: list[str] = []
        self.name: str | None = None
        self._streamed: dict[tuple[int, str], list[str]] = {}  # by index and type of part

    def pieces(self, index: int | None, kind: str) -> list[str]:
        """Returns the collected text pieces of a part. Engines that omit its index send one part of a type."""
        key = (index or 0, kind)
        pieces = self._streamed.get(key)
        if pieces is None:
            pieces = self._streamed[key] = []
        return pieces

    def result(self) -> OutputItem:
        """Returns the item, with the streamed content where the item itself lacks it."""
        item = self.item
        return msgspec.structs.replace(
            item,
            content=self._parts("content", item.content),
            summary=self._parts("summary", item.summary),
            arguments=(self.is_complete and item.arguments) or join_text(self.arguments) or item.arguments,
            input=(self.is_complete and item.input) or join_text(self.pieces(0, "input")) or item.input,
            name=item.name or self.name,
        )

    def _parts(self, field: str, own: tuple[ContentPart, ...] | None) -> tuple[ContentPart, ...] | None:
        """Returns the parts of a field: those of the complete item, or the streamed ones if it has no text there."""
        if self.is_complete and any(part.text or part.refusal for part in own or ()):
            return own
        texts = [(kind, join_text(pieces)) for (_, kind), pieces in sorted(self._streamed.items())]
        streamed = [
            ContentPart(kind, refusal=text) if kind == "refusal" else ContentPart(kind, text)
            for kind, text in texts
            if text and _FIELDS.get(kind, "content") == field
        ]
        return tuple(streamed) or own


class Items:
    """The output items of a response, in the order in which they begin.

    An event belongs to the item of its type with its id, or else with its index: some gateways send another id with
    each event. Without an index, it belongs to the latest item of its type, unless their ids differ. If there is none,
    or it is complete, the event begins an item.
    """

    def __init__(self) -> None:
        self.all: list[ItemParts] = []
        self._known: dict[tuple[str | int | None, str], ItemParts] = {}  # by id and type, and by index and type
        self._latest: dict[str, ItemParts] = {}  # by type

    def add(self, event: ItemEvent | UnknownEvent) -> None:
        """Adds an event of an item or of a part."""
        match event:
            case OutputTextDelta():
                self._append(event, "output_text", event.delta)
            case ReasoningTextDelta():
                self._append(event, "reasoning_text", event.delta)
            case OutputTextDone():
                self._complete(event, "output_text", event.text)
            case ReasoningTextDone():
                self._complete(event, "reasoning_text", event.text)
            case ContentPartAdded(part=part) | ContentPartDone(part=part):
                kind = "output_text" if part.type == "text" else part.type
                text = part.refusal if kind == "refusal" else part.text
                if text and kind in _ITEM_TYPES:
                    self._complete(event, kind, text)
            case FunctionCallArgumentsDelta():
                self._of(event, "function_call").arguments.append(event.delta)
            case FunctionCallArgumentsDone():
                parts = self._of(event, "function_call")
                parts.arguments = [event.arguments or join_text(parts.arguments)]
                parts.name = event.name
            case OutputItemAdded():
                self._announce(event.item, event.output_index)
            case OutputItemDone(item=item, output_index=index):
                parts = self._find(item.id, index, item.type) or self._begin(item, index)
                parts.item, parts.is_complete = item, True
            case UnknownEvent():
                self._add_untyped(event)

    def _add_untyped(self, event: UnknownEvent) -> None:
        data = event.data
        name, _, stage = event.type.rpartition(".")
        kind = _UNTYPED_EVENTS.get(name)
        if kind is None:
            return
        text = data.get("delta", data.get("text", data.get(kind)))
        if isinstance(text, str):
            part = _part_of(data, "summary_index" if "summary_index" in data else "content_index")
            (self._append if stage == "delta" else self._complete)(part, kind, text)

    def _append(self, event: OfPart, kind: str, text: str) -> None:
        """Adds a delta of a part."""
        if text:
            self._of(event, _ITEM_TYPES[kind]).pieces(event.content_index, kind).append(text)

    def _complete(self, event: OfPart, kind: str, text: str) -> None:
        """Adds the rest of a complete text that its deltas have not delivered."""
        pieces = self._of(event, _ITEM_TYPES[kind]).pieces(event.content_index, kind)
        if rest := missing_suffix(text, pieces):
            pieces.append(rest)

    # --- which item ------------------------------------------------------------------------------------------------

    def _of(self, event: OfItem, type: str) -> ItemParts:
        """Returns the item that an event belongs to; begins one if there is none."""
        name = event.item_id
        if name is not None and (named := self._known.get((name, type))) is not None:  # nearly always
            return named
        index = event.output_index
        return self._find(name, index, type) or self._begin(OutputItem(type=type, id=name), index)

    def _find(self, id: str | None, index: int | None, type: str) -> ItemParts | None:
        """Returns the item that an event belongs to, or None if that has not begun."""
        if id is not None and (named := self._known.get((id, type))) is not None:
            return named
        if index is not None:
            found = self._known.get((index, type))
        else:
            found = self._latest.get(type)
            if found is not None and None not in (id, found.item.id):
                return None
        return None if found is None or found.is_complete else found

    def _announce(self, item: OutputItem, index: int | None) -> None:
        """Adds the beginning of an item, parts of which may have arrived before it."""
        parts = None if item.id is None else self._known.get((item.id, item.type))
        # SGLang gives all items of a response one id.
        if parts is None or (parts.is_complete and self._known.get((index, item.type)) is not parts):
            self._begin(item, index)
        elif not parts.is_complete:
            parts.item = item

    def _begin(self, item: OutputItem, index: int | None) -> ItemParts:
        parts = ItemParts(item)
        self.all.append(parts)
        self._latest[item.type] = parts
        for key in (item.id, index):
            if key is not None:
                self._known[key, item.type] = parts
        return parts


def _part_of(data: Fields, index: str) -> OfPart:
    """Returns which part an event of no known type is about; ``index`` is the field with its index."""
    part: OfPart = convert({**data, "type": OfPart.__struct_config__.tag, "content_index": data.get(index)}, OfPart)
    return part
