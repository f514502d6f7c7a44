"""Assembles the output items of a streamed response, even if an engine omits their indexes or varies their ids."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from friendli_async._core.lenient import convert
from friendli_async._core.text import join_text, missing_suffix
from friendli_async._json import Fields, is_object
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
_ANNOTATION: Final = "response.output_text.annotation"
"""The name, without ``.added``, of the events of the sources of a text."""
_FIELDS: Final = {"summary_text": "summary", "input": "input"}
"""The field of the item that holds each type of part, if it is not ``content``."""


class _ItemParts:
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
        self.annotations: dict[int, list[dict[str, Any]]] = {}  # of texts, by the index of the part
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
        """Returns the parts of a field: those of the complete item, and the streamed ones that it lacks."""
        streamed: list[ContentPart] = []
        for (index, kind), pieces in sorted(self._streamed.items()):
            text = join_text(pieces)
            if not text or _FIELDS.get(kind, "content") != field:
                continue
            if kind == "refusal":
                streamed.append(ContentPart(kind, refusal=text))
            else:
                sources = tuple(self.annotations.get(index, ())) if kind == "output_text" else ()
                streamed.append(ContentPart(kind, text, annotations=sources or None))
        return _with_lacking(own if self.is_complete else None, streamed) or own


def _words_of_parts(parts: Sequence[ContentPart] | None) -> str:
    return join_text(part.text or part.refusal or "" for part in parts or ())


def _with_lacking(
    own: tuple[ContentPart, ...] | None, streamed: Sequence[ContentPart] | None
) -> tuple[ContentPart, ...] | None:
    """Returns the parts of an item, and after them streamed ones that they lack; as many with other words correct them.

    Parts without words are replaced by those that were streamed.
    """
    words, parts = _words_of_parts(own), tuple(streamed or ())
    if not own or not words:
        return parts or own
    if len(parts) <= len(own):
        return own
    return *own, *(part for part in parts if _words_of_parts((part,)).strip() not in words)


def _words_of(item: OutputItem) -> str:
    """Returns all that the model wrote in an item; "" for an item of an unknown type."""
    call = f"{item.name or ''}{item.arguments or item.input or ''}"
    return _words_of_parts(item.content) + _words_of_parts(item.summary) + call


def has_content(item: OutputItem) -> bool:
    """Whether an item is more than the start of a message or of reasoning."""
    return item.type not in {"message", "reasoning"} or bool(_words_of(item))


def completed_items(
    final: Sequence[OutputItem], streamed: Sequence[OutputItem], *, may_repeat: bool
) -> tuple[OutputItem, ...]:
    """Returns the output of a response's last event, with the streamed words and items that it lacks.

    Items correspond by their words, since some engines send another id with each event. Other words in place of the
    streamed ones are a correction. If the streamed items ``may_repeat`` each other, it lacks none whose words it has.
    """
    if not final:
        return tuple(streamed)
    output, place = list(final), 0
    rests = [_words_of(item) for item in final]
    streamed = [item for item in streamed if has_content(item)]
    found = [_find(item, final, rests) for item in streamed]
    taken = {index for index in found if index is not None}
    lacking: list[tuple[int, OutputItem]] = []
    for item, index in zip(streamed, found, strict=True):
        repeats = index is None and may_repeat and _is_among(item, final)
        has_place = index is not None or (repeats and _words_of(item))
        if not has_place and (index := _counterpart(item, final, taken)) is not None:
            taken.add(index)
            output[index] = _filled(final[index], item)
        if index is not None:
            place = index + 1
        elif not repeats:
            lacking.append((place, item))
    for moved, (place, item) in enumerate(sorted(lacking, key=itemgetter(0))):
        output.insert(place + moved, item)
    return tuple(output)


def _find(item: OutputItem, final: Sequence[OutputItem], rests: list[str]) -> int | None:
    """Returns the position of the item that has the words of a streamed one, which are taken out of ``rests``."""
    words = _words_of(item).strip()
    same = [index for index, each in enumerate(final) if each.type == item.type]
    for index in same if words else ():
        if words in rests[index]:
            rests[index] = rests[index].replace(words, "\n", 1)
            return index
    if words and words in join_text(rests[index] for index in same):  # in several items
        for index in same:
            rests[index] = ""
        return same[0]
    return None


def _is_among(item: OutputItem, final: Sequence[OutputItem]) -> bool:
    """Whether items have the words of a streamed one, or one of its type is there if it has none."""
    same = [each for each in final if each.type == item.type]
    return bool(same) and _words_of(item).strip() in join_text(map(_words_of, same))


def _counterpart(item: OutputItem, final: Sequence[OutputItem], taken: set[int]) -> int | None:
    """Returns the position of the item in whose place a streamed one may be: with its id, or else the next one."""
    free = [index for index, each in enumerate(final) if each.type == item.type and index not in taken]
    named = [index for index in free if item.id is not None and final[index].id == item.id]
    return next(iter(named or free), None)


def _filled(item: OutputItem, streamed: OutputItem) -> OutputItem:
    """Returns an item with what was streamed of it, unless it has other words."""
    if _words_of(item).strip() not in _words_of(streamed):
        return item
    return msgspec.structs.replace(
        item,
        content=_with_lacking(item.content, streamed.content),
        summary=_with_lacking(item.summary, streamed.summary),
        name=item.name or streamed.name,
        arguments=streamed.arguments or item.arguments,
        input=streamed.input or item.input,
    )


class Items:
    """The output items of a response, in the order in which they begin.

    An event belongs to the item of its type with its id, or else with its index: some gateways send another id with
    each event. Without an index, it belongs to the latest item of its type, unless their ids differ. If there is none,
    or it is complete, the event begins an item.

    Attributes:
        may_repeat: Whether an event without an index had another id than the item before: it is of the next item, or
            the engine sends another id with each event, and what is one item has become several.
    """

    def __init__(self) -> None:
        self.all: list[_ItemParts] = []
        self.may_repeat: bool = False
        self._known: dict[tuple[str | int | None, str], _ItemParts] = {}  # by id and type, and by index and type
        self._latest: dict[str, _ItemParts] = {}  # by type

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
        if name == _ANNOTATION and is_object(annotation := data.get("annotation")):
            part = _part_of(data, "content_index")
            self._of(part, "message").annotations.setdefault(part.content_index or 0, []).append(annotation)
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

    def _of(self, event: OfItem, type: str) -> _ItemParts:
        """Returns the item that an event belongs to; begins one if there is none."""
        name = event.item_id
        if name is not None and (named := self._known.get((name, type))) is not None:  # nearly always
            return named
        index = event.output_index
        return self._find(name, index, type) or self._begin(OutputItem(type=type, id=name), index)

    def _find(self, id: str | None, index: int | None, type: str) -> _ItemParts | None:
        """Returns the item that an event belongs to, or None if that has not begun."""
        if id is not None and (named := self._known.get((id, type))) is not None:
            return named
        if index is not None:
            found = self._known.get((index, type))
        else:
            found = self._latest.get(type)
            if found is not None and None not in (id, found.item.id):
                self.may_repeat = True
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

    def _begin(self, item: OutputItem, index: int | None) -> _ItemParts:
        parts = _ItemParts(item)
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
