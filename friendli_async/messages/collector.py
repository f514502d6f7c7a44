"""How the events of a messages stream add up to a message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect
from friendli_async._core.text import joined
from friendli_async.messages.replies import (
    KNOWN_BLOCKS,
    BlockDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    KnownBlock,
    KnownEvent,
    Message,
    MessageDelta,
    MessageDeltaPayload,
    MessageEnvelope,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    MessageUsageDelta,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    UnknownEvent,
    as_block,
    as_input,
    is_unknown,
    with_type,
)
from friendli_async.replies import FunctionCall, Partial, ToolCall, partial_of

__all__ = ["MessagesCollector"]

# Where an event holds one of several kinds of things, and the kinds that we know, by the fields that tell them.
_HELD: Final = {
    "content_block": KNOWN_BLOCKS,
    "delta": {
        "text": "text_delta",
        "thinking": "thinking_delta",
        "signature": "signature_delta",
        "partial_json": "input_json_delta",
    },
}
_PLACES: Final = {"content_block_start": "content_block", "content_block_delta": "delta"}
_NOWHERE: Final = -1
"""Stands for an index that cannot be read: of the block that is being made."""


def _holds_unknown_kind(kind: str, fields: dict[str, Any]) -> bool:
    place = _PLACES.get(kind)
    return place is not None and is_unknown(fields.get(place), _HELD[place])


def _readable(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """An event whose index, or whose block's kind, says nothing, as one that does."""
    fields = {key: with_type(value, _HELD[key]) if key in _HELD else value for key, value in fields.items()}
    index: object = fields.get("index", 0)
    if not (isinstance(index, int | float | str) and str(index).strip().isdecimal()):
        fields["index"] = _NOWHERE
    return fields


_EMPTY_BLOCKS: Final = (TextBlock(), ThinkingBlock())

# --- putting together ------------------------------------------------------------------------------------------------


class _BlockParts:
    """A block in the making."""

    __slots__ = ("input", "signature", "start", "text", "thinking")

    def __init__(self, start: ContentBlock | None = None) -> None:
        self.start = start
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.signature: list[str] = []
        self.input: list[str] = []

    def add(self, delta: BlockDelta) -> None:
        if isinstance(delta, TextDelta):
            self.text.append(delta.text)
        elif isinstance(delta, ThinkingDelta):
            self.thinking.append(delta.thinking)
        elif isinstance(delta, SignatureDelta):
            self.signature.append(delta.signature)
        else:
            self.input.append(delta.partial_json)

    @property
    def begun(self) -> bool:
        return bool(self.text or self.thinking or self.signature or self.input)

    def result(self) -> ContentBlock:
        start = {"type": self._kind()} if self.start is None else self.start
        fields: dict[str, Any] = as_input(start) if isinstance(start, KnownBlock) else {**start}
        for name in ("text", "thinking", "signature"):
            if pieces := getattr(self, name):
                fields[name] = joined([fields.get(name) or "", *pieces])
        if written := joined(self.input):
            arguments = _json_object(written)
            fields["input"] = written if arguments is None else arguments
        return as_block(fields)

    def _kind(self) -> str:
        """The kind of a block whose beginning the server has left out."""
        if self.input:
            return "tool_use"
        return "thinking" if self.thinking or self.signature else "text"

    def tool_call(self) -> ToolCall | None:
        arguments = joined(self.input)
        if self.start is None and arguments:
            return ToolCall(function=FunctionCall("", arguments))
        if not isinstance(self.start, ToolUseBlock):
            return None
        if not arguments and self.start.input:
            arguments = json.dumps(self.start.input)
        return ToolCall(self.start.id or "", "function", FunctionCall(self.start.name, arguments))


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


class MessagesCollector:
    """Puts the events of a messages stream together to a message."""

    dialect: Dialect[MessageEvent] = TaggedDialect(KnownEvent, holds_unknown=_holds_unknown_kind, rewrite=_readable)
    add_texts: None = None

    def __init__(self) -> None:
        self.usage: MessageUsage | None = None
        self.is_last: bool = False
        self.head: MessageEnvelope = MessageEnvelope()
        """What has the reply's ``id`` and ``model``."""
        self._ending = MessageDeltaPayload()
        self._blocks: list[_BlockParts] = []
        self._by_index: dict[int, _BlockParts] = {}

    @property
    def begun(self) -> bool:
        """Whether a block, or the reason of the end, has come; the head alone is nothing."""
        return bool(self._blocks or self.finish_reasons)

    @property
    def may_end(self) -> bool:
        """Whether ``message_stop`` has been seen."""
        return self.is_last

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return any(parts.text or (isinstance(parts.start, TextBlock) and parts.start.text) for parts in self._blocks)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the model stopped, once it has."""
        reason = self._ending.stop_reason or self.head.stop_reason
        return () if reason is None else (reason,)

    def extend(self, events: Sequence[MessageEvent]) -> None:
        """Adds events, in order."""
        for event in events:
            if type(event) is ContentBlockDelta:
                parts = self._by_index.get(event.index) or self._begin(event.index, None)
                parts.add(event.delta)
            elif type(event) is ContentBlockStart:
                self._begin(event.index, event.content_block)
            else:
                self._add_rare(event)

    def _add_rare(self, event: MessageEvent) -> None:
        match event:
            case MessageStart(message=envelope):
                self.head = envelope
                self.usage = envelope.usage
                for place, block in enumerate(envelope.content):
                    if block not in _EMPTY_BLOCKS:
                        self._begin(place, block)
            case MessageDelta():
                self._ending = event.delta
                self._count(event.usage)
            case MessageStop():
                self.is_last = True
            case UnknownEvent(type="content_block_start", data=data):
                index = data.get("index")
                self._begin(index if isinstance(index, int) else 0, data["content_block"])
            case _:
                pass

    def _begin(self, index: int, block: ContentBlock | None) -> _BlockParts:
        # In the order of their beginnings: indexes may be used again.
        if block is None and self._blocks and (index == _NOWHERE or _NOWHERE in self._by_index):
            parts = self._by_index.pop(_NOWHERE, self._blocks[-1])
            return self._by_index.setdefault(index, parts)
        told = self._by_index.get(index)
        if told is not None and block is not None and told.start == block and not told.begun:
            return told  # the head had it already
        parts = self._by_index[index] = _BlockParts(block)
        self._blocks.append(parts)
        return parts

    def _count(self, counts: MessageUsageDelta | None) -> None:
        if counts is None:
            return
        told = {name: value for name in counts.__struct_fields__ if (value := getattr(counts, name)) is not None}
        self.usage = msgspec.structs.replace(self.usage or MessageUsage(), **told)

    def partial(self) -> Partial:
        """The message so far."""
        calls = tuple(call for parts in self._blocks if (call := parts.tool_call()) is not None)
        return msgspec.structs.replace(partial_of(self.result()), tool_calls=calls)

    def result(self) -> Message:
        """The whole message."""
        head = self.head
        return Message(
            content=tuple(parts.result() for parts in self._blocks),
            id=head.id,
            type=head.type,
            role=head.role,
            model=head.model,
            stop_reason=self._ending.stop_reason or head.stop_reason,
            stop_sequence=self._ending.stop_sequence or head.stop_sequence,
            usage=self.usage,
        )
