"""Assembles the events of a message stream into a message."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from friendli_async._core.error_json import has_value
from friendli_async._core.events.decoding import Dialect, TaggedDialect
from friendli_async._core.lenient import lacks_counts
from friendli_async._core.text import join_text
from friendli_async._json import is_object, json_or_none
from friendli_async.messages.replies import (
    KNOWN_BLOCKS,
    BlockDelta,
    CitationsDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    KnownBlock,
    KnownEvent,
    Message,
    MessageDelta,
    MessageDeltaPayload,
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

__all__ = ["MessagesCollector", "Wording"]

# The tagged fields of events: their known types, keyed by the fields that identify them.
_KINDS: Final = {
    "content_block": KNOWN_BLOCKS,
    "delta": {
        "text": "text_delta",
        "thinking": "thinking_delta",
        "signature": "signature_delta",
        "citation": "citations_delta",
        "partial_json": "input_json_delta",
    },
}
_TAGGED_FIELDS: Final = {"content_block_start": "content_block", "content_block_delta": "delta"}
S = TypeVar("S", Message, MessageDeltaPayload)

_UNKNOWN_INDEX: Final = -1
"""Sentinel for an unreadable index: it refers to the block in progress."""


def _holds_unknown_kind(kind: str, fields: dict[str, Any]) -> bool:
    field = _TAGGED_FIELDS.get(kind)
    return field is not None and is_unknown(fields.get(field), _KINDS[field])


def _normalize_event(kind: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Fills in missing content of a message and a missing type, and replaces an unreadable index by the sentinel."""
    if kind == "message_start" and is_object(fields.get("message")):
        fields["message"]["content"] = fields["message"].get("content") or []
    fields = {key: with_type(value, _KINDS[key]) if key in _KINDS else value for key, value in fields.items()}
    if _parse_index(fields.get("index", 0)) == _UNKNOWN_INDEX:
        fields["index"] = _UNKNOWN_INDEX
    return fields


def _parse_index(index: object) -> int:
    """Returns an index, which some servers send as text, or the sentinel."""
    digits = str(index)
    return int(digits) if digits.isdecimal() and len(digits) < 20 else _UNKNOWN_INDEX


_EMPTY_BLOCKS: Final = (TextBlock(), ThinkingBlock())

# --- assembly --------------------------------------------------------------------------------------------------------


_WORDS: Final = frozenset({"text", "thinking", "signature"})
"""The fields that deltas extend, besides the input of a tool call."""


class _BlockParts:
    """Accumulates the deltas of one content block, whose ``index`` no other block has."""

    def __init__(self, index: int, start: ContentBlock | None) -> None:
        self.index = index
        self.start = start
        self.has_ended = False
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.signature: list[str] = []
        self.citations: list[dict[str, Any]] = []
        self.input: list[str] = []
        self.others: dict[str, list[str]] = {}  # of a block of an unknown type: the text for each field

    def add(self, delta: BlockDelta) -> None:
        if isinstance(delta, TextDelta):
            self.text.append(delta.text)
        elif isinstance(delta, ThinkingDelta):
            self.thinking.append(delta.thinking)
        elif isinstance(delta, SignatureDelta):
            self.signature.append(delta.signature)
        elif isinstance(delta, CitationsDelta):
            self.citations.append(delta.citation)
        else:
            self.input.append(delta.partial_json)

    def add_unknown(self, delta: dict[str, Any]) -> None:
        """Adds a delta of an unknown type: its texts continue the fields of the same name of an unknown block."""
        if isinstance(self.start, dict):
            for name, piece in delta.items():
                if name != "type" and isinstance(piece, str) and isinstance(self.start.get(name) or "", str):
                    self.others.setdefault(name, []).append(piece)

    def is_repeated_by(self, start: ContentBlock | None) -> bool:
        """Whether a start is that of this block once more, and not that of an equal one after it."""
        return self.start == start and not (self._has_deltas or self.has_ended)

    @property
    def _has_deltas(self) -> bool:
        words = self.text or self.thinking or self.signature or self.citations
        return bool(words or self.input or self.others)

    @property
    def has_content(self) -> bool:
        """Whether it is more than the start of a text or of thinking."""
        return any(block not in _EMPTY_BLOCKS for block in self.result())

    def result(self) -> list[ContentBlock]:
        """Returns the block, and a block each for streamed text, thinking and input that it cannot hold."""
        fields = self._fields()
        blocks = [as_block(fields)]
        if self.thinking and not isinstance(blocks[0], ThinkingBlock):
            blocks.insert(0, ThinkingBlock(join_text(self.thinking), join_text(self.signature) or None))
        if self.text and not isinstance(blocks[-1], TextBlock):
            blocks.append(TextBlock(join_text(self.text), tuple(self.citations) or None))
        if self._is_of_words and "input" in fields:
            blocks.append(ToolUseBlock(input=fields["input"]))
        return blocks

    def _fields(self) -> dict[str, Any]:
        """Returns the block as JSON, with the deltas that it can hold."""
        fields: dict[str, Any]
        if isinstance(self.start, KnownBlock):
            fields = as_input(self.start)
        else:
            fields = {**(self.start or {})}
            fields.update({name: (fields.get(name) or "") + join_text(each) for name, each in self.others.items()})
            has_words = bool(self.text or self.thinking) and not self.input
            if self.start is None or (has_words and not has_value(fields, fields.keys() - {"type"})):
                fields["type"] = self._kind()
        holds_words = fields["type"] in KNOWN_BLOCKS.values()
        begun: object  # of a block of an unknown type, or that could not be read, it may be anything
        for name in _WORDS if holds_words else ("signature",):
            if pieces := getattr(self, name):
                begun = fields.get(name)
                fields[name] = join_text([begun if isinstance(begun, str) else "", *pieces])
        if self.citations and (holds_words or not self.text):  # else they are those of the text, in a block of its own
            begun = fields.get("citations")
            fields["citations"] = [*(begun if isinstance(begun, list | tuple) else ()), *self.citations]
        if raw_input := join_text(self.input):
            arguments = json_or_none(raw_input)
            fields["input"] = arguments if isinstance(arguments, dict) else raw_input
        return fields

    @property
    def _is_of_words(self) -> bool:
        """Whether it has begun with words: an input in it is that of a tool call whose start is missing."""
        return isinstance(self.start, TextBlock | ThinkingBlock)

    def _kind(self) -> str:
        """Infers the type of a block whose ``content_block_start`` is missing, or has an unknown type."""
        if self.input:
            return "tool_use"
        return "text" if self.text or self.citations else "thinking"

    def tool_call(self) -> ToolCall | None:
        arguments = join_text(self.input)
        if arguments and (self.start is None or self._is_of_words):
            return ToolCall(function=FunctionCall("", arguments))
        if not isinstance(self.start, ToolUseBlock):
            return None
        if not arguments and self.start.input:
            return self.start.as_call()
        return ToolCall(self.start.id, "function", FunctionCall(self.start.name, arguments))


def _renumber(event: ContentBlockStart | ContentBlockDelta | ContentBlockStop, parts: _BlockParts) -> None:
    """Gives an event the index of its block: programs group events by it, and some servers reuse or omit theirs."""
    if event.index != parts.index:
        msgspec.structs.force_setattr(event, "index", parts.index)


class Wording:
    """Extracts the text or the thinking of each event; of a block that events repeat, only once.

    Args:
        kind: The field of blocks and deltas to read.
    """

    def __init__(self, kind: Literal["text", "thinking"]) -> None:
        self._kind = kind
        self._untouched: dict[int, ContentBlock] = {}  # the open blocks without deltas so far

    def of(self, event: MessageEvent) -> str:
        """Returns the text that an event adds to the message; often ""."""
        if type(event) is ContentBlockDelta:
            self._untouched.pop(event.index, None)
            return getattr(event.delta, self._kind, "")
        if type(event) is ContentBlockStart:
            return self._start(event.index, event.content_block)
        if type(event) is MessageStart:
            return join_text(itertools.starmap(self._start, enumerate(event.message.content)))
        if type(event) is ContentBlockStop:
            self._untouched.pop(event.index, None)
        return ""

    def _start(self, index: int, block: ContentBlock) -> str:
        if self._untouched.get(index) == block:  # as in ``MessagesCollector``
            return ""
        self._untouched[index] = block
        return getattr(block, self._kind, "")


class MessagesCollector:
    """Accumulates the events of a message stream."""

    dialect: Dialect[MessageEvent] = TaggedDialect(
        KnownEvent,
        reporting=frozenset({MessageStart, MessageDelta}),
        holds_unknown=_holds_unknown_kind,
        rewrite=_normalize_event,
    )
    add_texts: None = None
    may_end: bool = False  # the last event ends the stream at once, so nothing can end it later

    def __init__(self) -> None:
        self.usage: MessageUsage | None = None
        self.is_last: bool = False
        self.has_text: bool = False
        self.envelope: Message = Message(content=())
        """The start of the message, with its ``id`` and ``model``."""
        self._ending = MessageDeltaPayload()  # apart from the start, which some servers send late, or again
        self._text_of = Wording("text").of
        self._blocks: list[_BlockParts] = []
        self._by_index: dict[int, _BlockParts] = {}  # the latest with the server's index
        self._indexes: set[int] = set()  # of the blocks
        self._next_index = 0  # greater than all of these

    @property
    def begun(self) -> bool:
        """Whether content or a stop reason has arrived; an empty envelope and empty blocks of words do not count."""
        return bool(self.finish_reasons) or any(parts.has_content for parts in self._blocks)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The stop reason, once it has arrived."""
        reason = self._ending.stop_reason or self.envelope.stop_reason
        return () if reason is None else (reason,)

    def extend(self, events: Sequence[MessageEvent]) -> int:
        """Adds events in order, up to the final one; returns how many it added."""
        for position, event in enumerate(events, 1):
            if type(event) is ContentBlockDelta:
                parts = self._by_index.get(event.index) or self._start_block(event.index, None)
                parts.add(event.delta)
                if event.index != parts.index:
                    _renumber(event, parts)
            elif type(event) is ContentBlockStart:
                _renumber(event, self._start_block(event.index, event.content_block))
            else:
                self._add_other(event)
                if self.is_last:
                    events = events[:position]
                    break
        if not self.has_text:
            self.has_text = any(map(self._text_of, events))
        return len(events)

    def _add_other(self, event: MessageEvent) -> None:
        match event:
            case MessageStart(message=envelope):
                self.envelope = envelope
                self.usage = envelope.usage or self.usage
                for position, block in enumerate(envelope.content):
                    if block not in _EMPTY_BLOCKS:
                        self._start_block(position, block)
            case MessageDelta():
                self._ending = _filled_from(self._ending, event.delta)
                self._update_usage(event.usage)
            case ContentBlockStop(index=index) if index in self._by_index:
                self._by_index[index].has_ended = True
                _renumber(event, self._by_index[index])
            case MessageStop():
                self.is_last = True
            case UnknownEvent(type="content_block_start", data=data):
                self._start_block(_parse_index(data.get("index", 0)), data["content_block"])
            case UnknownEvent(type="content_block_delta", data=data):
                if (parts := self._by_index.get(_parse_index(data.get("index", 0)))) is not None:
                    parts.add_unknown(data["delta"])
            case _:
                pass

    def _start_block(self, index: int, block: ContentBlock | None) -> _BlockParts:
        # Blocks are kept in the order in which they start, because servers may reuse an index.
        if block is None and self._blocks and (index == _UNKNOWN_INDEX or _UNKNOWN_INDEX in self._by_index):
            parts = self._by_index.pop(_UNKNOWN_INDEX, self._blocks[-1])
            return self._by_index.setdefault(index, parts)
        existing = self._by_index.get(index)
        if existing is not None and existing.is_repeated_by(block):
            return existing  # message_start already contained it
        parts = self._by_index[index] = _BlockParts(self._free_index(index), block)
        self._blocks.append(parts)
        return parts

    def _free_index(self, index: int) -> int:
        """Returns the index of a new block: the server's, or the next one if that is unreadable or taken."""
        if index == _UNKNOWN_INDEX or index in self._indexes:
            index = self._next_index
        self._indexes.add(index)
        self._next_index = max(self._next_index, index + 1)
        return index

    def _update_usage(self, counts: MessageUsageDelta | None) -> None:
        given = {} if counts is None else msgspec.structs.asdict(counts)
        usage = self.usage or MessageUsage()
        # The counts are totals: a zero after a count says that a server does not repeat it.
        updates = {
            name: count
            for name, count in given.items()
            if count is not None and (not getattr(usage, name) or (count and not lacks_counts(count)))
        }
        if updates:
            self.usage = msgspec.structs.replace(usage, **updates)

    def partial(self) -> Partial:
        """Returns the message so far."""
        calls = tuple(call for parts in self._blocks if (call := parts.tool_call()) is not None)
        return msgspec.structs.replace(partial_of(self.result()), tool_calls=calls)

    def result(self) -> Message:
        """Returns the complete message."""
        content = tuple(block for parts in self._blocks for block in parts.result())
        return msgspec.structs.replace(_filled_from(self.envelope, self._ending), content=content, usage=self.usage)


def _filled_from(earlier: S, later: MessageDeltaPayload) -> S:
    """Returns a message, or its end, with what a later end says of it."""
    said = {name: value for name, value in msgspec.structs.asdict(later).items() if value}
    return msgspec.structs.replace(earlier, **said)
