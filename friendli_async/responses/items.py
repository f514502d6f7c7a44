"""Assembles the output items of a streamed response, even if an engine omits or varies their ids and indexes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Final

import msgspec

from friendli_async._core.lenient import convert
from friendli_async._core.text import join_text, join_up_to, missing_suffix
from friendli_async._json import Fields, as_object
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


_NOTHING: Final = ("", "")


class ItemParts:
    """Accumulates the deltas of one output item.

    Attributes:
        item: The item as the server last sent it.
        id: Its first id; None as long as that is unknown.
        index: Its position in the output; None as long as that is unknown.
        is_named: Whether an event has named it by its id: then another id means another item.
        is_announced: Whether the server has sent the item, not only parts of it.
        is_complete: Whether ``item`` is the complete item.
    """

    def __init__(self, item: OutputItem, index: int | None, *, announced: bool) -> None:
        self.item: OutputItem = item
        self.id: str | None = item.id
        self.index: int | None = index
        self.is_named: bool = False
        self.is_announced: bool = announced
        self.is_complete: bool = False
        self.arguments: list[str] = []
        self.name: str | None = None
        self._streamed: dict[tuple[int, str], list[str]] = {}  # by index and type of part
        self._latest: dict[str, int] = {}  # the index of the latest part, by its type
        self._next: dict[str, int] = {}  # the index of deltas without one
        self._completed_by: dict[tuple[int, str], set[type[OfPart]]] = {}  # the events with all of a part's text
        self._notes: dict[int, dict[str, list[Any]]] = {}  # by index of a text: its annotations and logprobs

    def pieces(self, index: int | None, kind: str) -> list[str]:
        """Returns the collected text pieces of a part. Without an index: of the latest, or the next if that ended."""
        key = (self._next.get(kind, 0) if index is None else index, kind)
        pieces = self._streamed.get(key)
        if pieces is None:
            pieces = self._streamed[key] = []
            self._latest[kind] = self._next[kind] = key[0]
        return pieces

    @property
    def has_pieces(self) -> bool:
        """Whether any delta has arrived."""
        return bool(self._streamed or self.arguments)

    def complete(self, event: OfPart, kind: str, text: str) -> str:
        """Adds the rest of a complete text that its deltas have not delivered, and returns it.

        Without its index, the part is the latest, or the next if such an event has completed that.
        """
        index = event.content_index
        if index is None:
            index = self._latest.get(kind, 0)
            index += type(event) in self._completed_by.get((index, kind), ())
        pieces = self.pieces(index, kind)
        given = join_up_to(len(text), pieces)
        if given is None:  # the deltas without an index were those of several parts
            return ""
        self._completed_by.setdefault((index, kind), set()).add(type(event))
        if not isinstance(event, ContentPartAdded):
            self._next[kind] = index + 1
        rest = missing_suffix(text, (given,))
        if rest:
            pieces.append(rest)
        return rest

    def note(self, index: int | None, field: str, values: Sequence[object], *, whole: bool) -> None:
        """Adds annotations or logprobs of a text, or the ``whole`` of them. Without an index: of the latest."""
        notes = self._notes.setdefault(self._latest.get("output_text", 0) if index is None else index, {})
        if whole:
            notes[field] = []
        notes.setdefault(field, []).extend(values)

    def pieces_of(self, kind: str) -> Iterable[str]:
        """Returns the text pieces of all parts of a type, part by part."""
        return chain.from_iterable(pieces for (_, each), pieces in self._streamed.items() if each == kind)

    def result(self) -> OutputItem:
        """Returns the item, with the streamed content where the item itself lacks it."""
        item = self.item
        return msgspec.structs.replace(
            item,
            content=self._with_notes(self._with_streamed("content", item.content) or item.content),
            summary=self._with_streamed("summary", item.summary) or item.summary,
            arguments=(self.is_complete and item.arguments) or join_text(self.arguments) or item.arguments,
            input=(self.is_complete and item.input) or join_text(self.pieces_of("input")) or item.input,
            name=item.name or self.name,
        )

    def _with_streamed(self, field: str, value: Sequence[ContentPart] | None) -> tuple[ContentPart, ...]:
        """Returns the parts of a field of the complete item, with the streamed text where they lack it."""
        final = (self.is_complete and value) or ()
        has_text = {kind: any(self._holds(part, kind) for part in final) for kind in _ITEM_TYPES}
        indexes = {index for index, _ in self._streamed}
        unstreamed = [part for index, part in enumerate(final) if index not in indexes]
        given = {text for part in unstreamed for text in (part.text, part.refusal)}  # whose deltas had another index
        filled: dict[int, ContentPart] = {}
        others: list[ContentPart] = []
        for (index, kind), pieces in sorted(self._streamed.items()):
            text = join_text(pieces)
            if not text or text in given or _FIELDS.get(kind, "content") != field:
                continue
            streamed = ContentPart(kind, refusal=text) if kind == "refusal" else ContentPart(kind, text)
            part = final[index] if 0 <= index < len(final) else None
            if part is not None and not (part.text or part.refusal) and index not in filled:
                filled[index] = streamed
            elif not has_text[kind]:  # e.g. of an engine that omits indexes: all of its parts have 0
                others.append(streamed)
        return (*(filled.get(index, part) for index, part in enumerate(final)), *others)

    def _with_notes(self, parts: tuple[ContentPart, ...] | None) -> tuple[ContentPart, ...] | None:
        """Returns the parts with the streamed annotations and logprobs where they lack them."""
        if not parts or not self._notes:
            return parts
        noted = dict(enumerate(parts))
        for index, notes in self._notes.items():
            text = join_text(self._streamed.get((index, "output_text"), ()))
            # Where the text is: that of an incomplete item may be at another index than the server's.
            places = (each for each in (index, *noted) if text and each in noted and noted[each].text == text)
            place = next(places, index)
            if (part := noted.get(place)) is not None:
                missing = {name: tuple(values) for name, values in notes.items() if not getattr(part, name)}
                noted[place] = msgspec.structs.replace(part, **missing)
        return tuple(noted.values())

    def _holds(self, part: ContentPart, kind: str) -> bool:
        """Whether a part of the complete item has text of the kind that was streamed."""
        if kind == "refusal":
            return bool(part.refusal)
        if kind == "output_text":
            return bool(part.text) and part.type in {"output_text", "text"}
        return bool(part.text) and (part.type == kind or self.item.type == "reasoning")  # whose parts may lack a type


class Items:
    """The output items of a response, in the order in which they begin.

    An event belongs to the item with its id, or else its index, or else to the latest incomplete item of its type
    whose id and index contradict it in nothing. If there is none, it begins an item, which may be announced later.
    """

    def __init__(self) -> None:
        self.all: list[ItemParts] = []
        self._by_id: dict[str, ItemParts] = {}
        self._by_index: dict[int, ItemParts] = {}
        self._latest: dict[str, ItemParts] = {}  # by type

    def add(self, event: ItemEvent | UnknownEvent) -> tuple[str, str]:
        """Adds an event of an item or of a part, and returns the type of part and the text that it adds."""
        match event:
            case OutputTextDelta():
                added = self.append(event, "output_text", event.delta)
                if event.logprobs:
                    self._note(event, "logprobs", event.logprobs)
                return added
            case ReasoningTextDelta():
                return self.append(event, "reasoning_text", event.delta)
            case OutputTextDone():
                added = self._complete(event, "output_text", event.text)
                self._note(event, "logprobs", event.logprobs, whole=True)
                return added
            case ReasoningTextDone():
                return self._complete(event, "reasoning_text", event.text)
            case ContentPartAdded(part=part) | ContentPartDone(part=part):
                kind = "output_text" if part.type == "text" else part.type
                text = part.refusal if kind == "refusal" else part.text
                added = self._complete(event, kind, text) if text and kind in _ITEM_TYPES else _NOTHING
                for field in ("annotations", "logprobs") if kind == "output_text" else ():
                    self._note(event, field, getattr(part, field), whole=True)
                return added
            case FunctionCallArgumentsDelta():
                self._of(event, "function_call", continues=True).arguments.append(event.delta)
            case FunctionCallArgumentsDone():
                parts = self._of(event, "function_call")
                parts.arguments = [event.arguments or join_text(parts.arguments)]
                parts.name = event.name
            case OutputItemAdded():
                self._announce(event.item, event.output_index)
            case OutputItemDone():
                self.finish(event)
            case UnknownEvent():
                return self._add_untyped(event)
        return _NOTHING

    def finish(self, event: OutputItemDone) -> ItemParts:
        """Adds a complete item, and returns what had arrived of it."""
        item, index = event.item, event.output_index
        parts = self._find(item.id, index, item.type) or self._begin(item, index, announced=True)
        parts.item, parts.is_complete = item, True
        self._register(parts, item.id, index)
        return parts

    def _note(self, event: OfPart, field: str, values: Sequence[object] | None, *, whole: bool = False) -> None:
        if values and (parts := self._find(event.item_id, event.output_index, "message")) is not None:
            parts.note(event.content_index, field, values, whole=whole)

    def _add_untyped(self, event: UnknownEvent) -> tuple[str, str]:
        data = event.data
        name, _, stage = event.type.rpartition(".")
        if name == "response.output_text.annotation" and (annotation := as_object(data.get("annotation"))):
            self._note(_part_of(data, "content_index"), "annotations", (annotation,))
        kind = _UNTYPED_EVENTS.get(name)
        if kind is None:
            return _NOTHING
        text = data.get("delta", data.get("text", data.get(kind)))
        if not isinstance(text, str):
            return _NOTHING
        part = _part_of(data, "summary_index" if "summary_index" in data else "content_index")
        return self.append(part, kind, text) if stage == "delta" else self._complete(part, kind, text)

    def append(self, event: OfPart, kind: str, text: str) -> tuple[str, str]:
        """Adds a delta of a part; returns what ``add`` does."""
        pieces = self._of(event, _ITEM_TYPES[kind], continues=True).pieces(event.content_index, kind)
        if text:
            pieces.append(text)
        return kind, text

    def _complete(self, event: OfPart, kind: str, text: str) -> tuple[str, str]:
        """Adds the rest of a complete text that its deltas have not delivered."""
        return kind, self._of(event, _ITEM_TYPES[kind]).complete(event, kind, text)

    # --- which item ------------------------------------------------------------------------------------------------

    def _of(self, event: OfItem, type: str, *, continues: bool = False) -> ItemParts:
        """Returns the item that an event belongs to; begins one if there is none.

        If an event that ``continues`` its item (a delta) has no id, and the item found is complete, it begins another.
        """
        name, index = event.item_id, event.output_index
        found = self._by_id.get(name) if name is not None else None
        if found is not None and found.index == index:  # nearly always
            found.is_named = True
            return found
        found = self._find(name, index, type)
        if found is not None and name is not None:
            is_named = self._by_id.get(name) is found
            found.is_named = found.is_named or is_named
            is_other = found.is_named and not is_named
        else:
            is_other = found is not None and continues and found.is_complete
        if found is None or is_other:
            return self._begin(OutputItem(type=type, id=name), index, announced=False)
        return found

    def _find(self, id: str | None, index: int | None, type: str) -> ItemParts | None:
        """Returns the item that an event belongs to, or None if that has not begun."""
        named = None if id is None else self._by_id.get(id)
        placed = None if index is None else self._by_index.get(index)
        if named is not None:
            return placed if placed is not None and placed.id == id else named  # several items may have the id
        if placed is not None:  # some engines send another id with each event
            return None if id is not None and placed.is_complete else placed
        latest = self._latest.get(type)
        if latest is None or latest.is_complete or not _may_be(latest, id, index):
            return None
        self._register(latest, id if latest.id is None else None, index)
        return latest

    def _announce(self, item: OutputItem, index: int | None) -> None:
        """Adds the beginning of an item, parts of which may have arrived before it."""
        parts = self._find(item.id, index, item.type)
        if parts is None or not _is_announced_by(parts, item, index):
            self._begin(item, index, announced=True)
            return
        if not parts.is_announced and item.id is not None and item.id == parts.id:
            parts.is_named = True  # by the event that began it
        parts.item, parts.is_announced = item, True
        self._latest[item.type] = parts
        self._register(parts, item.id, index)

    def _begin(self, item: OutputItem, index: int | None, *, announced: bool) -> ItemParts:
        parts = ItemParts(item, index, announced=announced)
        self.all.append(parts)
        self._latest[item.type] = parts
        self._register(parts, item.id, index)
        return parts

    def _register(self, parts: ItemParts, id: str | None, index: int | None) -> None:
        if id is not None:
            self._by_id[id] = parts
            parts.id = parts.id or id
        if index is not None:
            self._by_index[index] = parts
            parts.index = index


def _part_of(data: Fields, index: str) -> OfPart:
    """Returns which part an event of no known type is about; ``index`` is the field with its index."""
    part: OfPart = convert({**data, "type": OfPart.__struct_config__.tag, "content_index": data.get(index)}, OfPart)
    return part


def _may_be(parts: ItemParts, id: str | None, index: int | None) -> bool:
    """Whether neither the id nor the index of an event excludes an item.

    An announced item that no event has named so far may have another id in each event.
    """
    is_id_unreliable = parts.is_announced and not parts.is_named
    is_same_id = id is None or parts.id is None or parts.id == id or is_id_unreliable
    return is_same_id and (index is None or parts.index is None or parts.index == index)


def _is_announced_by(parts: ItemParts, item: OutputItem, index: int | None) -> bool:
    """Whether an announcement is that of an item of which parts have arrived, or repeats its announcement."""
    is_same_type = parts.item.type == item.type
    is_in_place = index is not None and parts.index == index
    is_equal = parts.item == item and (is_in_place or not parts.has_pieces)  # else it announces the next item
    is_repeated = is_same_type and parts.item.id == item.id and (item.id is not None or is_equal)
    if parts.is_complete or (parts.is_announced and not is_repeated):
        return False
    return _may_be(parts, item.id, index) or (is_in_place and is_same_type and not parts.is_announced)
