"""Assembles the events of a message stream into a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from friendli_async._core.events.decoding import Dialect, TaggedDialect, is_end_of_choice
from friendli_async._core.lenient import latest_usage
from friendli_async._core.text import join_text
from friendli_async._json import is_object, json_or_none
from friendli_async.messages.replies import (
    KNOWN_BLOCKS,
    BlockDelta,
    CitationsDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    InputJSONDelta,
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
    is_unknown,
    with_type,
)
from friendli_async.replies import FunctionCall, Partial, ToolCall, UnknownEvent, partial_of

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


def _holds_unknown_kind(kind: str, fields: dict[str, Any]) -> bool:
    field = _TAGGED_FIELDS.get(kind)
    return field is not None and is_unknown(fields.get(field), _KINDS[field])


def _normalize_event(kind: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Fills in missing content of a message, and a missing type of a block or of a delta."""
    if kind == "message_start" and is_object(fields.get("message")):
        fields["message"]["content"] = fields["message"].get("content") or []
    return {key: with_type(value, _KINDS[key]) if key in _KINDS else value for key, value in fields.items()}


# --- assembly --------------------------------------------------------------------------------------------------------


_EMPTY_BLOCKS: Final = (TextBlock(), ThinkingBlock())
_BLOCKS: Final[dict[type[BlockDelta], type[KnownBlock]]] = {
    TextDelta: TextBlock,
    CitationsDelta: TextBlock,
    ThinkingDelta: ThinkingBlock,
    SignatureDelta: ThinkingBlock,
    InputJSONDelta: ToolUseBlock,
}
"""The type of block that each type of delta continues."""


class _BlockParts:
    """Accumulates the deltas of one content block.

    Attributes:
        kind: The type of block whose deltas it takes.
        latest: The type of the latest delta.
    """

    def __init__(self, start: ContentBlock) -> None:
        self.start = start
        self.kind: type[KnownBlock] = ToolUseBlock if isinstance(start, dict) else type(start)
        self.latest: type[BlockDelta] | None = None
        self.pieces: list[str] = []  # of its text, its thinking or its input
        self.signature: list[str] = []
        self.citations: list[dict[str, Any]] = []
        self.others: dict[str, list[str]] = {}  # of a block of an unknown type: the text for each field

    def add(self, delta: ThinkingDelta | SignatureDelta | CitationsDelta | InputJSONDelta) -> None:
        if isinstance(delta, ThinkingDelta):
            self.pieces.append(delta.thinking)
        elif isinstance(delta, SignatureDelta):
            self.signature.append(delta.signature)
        elif isinstance(delta, CitationsDelta):
            self.citations.append(delta.citation)
        else:
            self.pieces.append(delta.partial_json)

    def add_unknown(self, delta: dict[str, Any]) -> None:
        """Adds a delta of an unknown type: its texts continue the fields of the same name of an unknown block."""
        if isinstance(self.start, dict):
            for name, piece in delta.items():
                if name != "type" and isinstance(piece, str) and isinstance(self.start.get(name) or "", str):
                    self.others.setdefault(name, []).append(piece)

    @property
    def has_content(self) -> bool:
        """Whether it is more than the start of a text or of thinking."""
        return self.start not in _EMPTY_BLOCKS or any(self.pieces) or bool(self.signature or self.citations)

    def result(self) -> ContentBlock:
        """Returns the block with its deltas."""
        start = self.start
        if isinstance(start, TextBlock):
            citations = (*(start.citations or ()), *self.citations)
            return TextBlock(join_text([start.text, *self.pieces]), citations or start.citations)
        if isinstance(start, ThinkingBlock):
            signature = join_text([start.signature or "", *self.signature])
            return ThinkingBlock(join_text([start.thinking, *self.pieces]), signature or start.signature)
        raw_input = join_text(self.pieces)
        arguments = json_or_none(raw_input)
        given: dict[str, Any] = {"input": arguments if isinstance(arguments, dict) else raw_input} if raw_input else {}
        if isinstance(start, ToolUseBlock):
            return msgspec.structs.replace(start, **given)
        return {
            **start,
            **given,
            **{name: (start.get(name) or "") + join_text(each) for name, each in self.others.items()},
        }

    def tool_call(self) -> ToolCall | None:
        if not isinstance(self.start, ToolUseBlock):
            return None
        arguments = join_text(self.pieces)
        if not arguments and self.start.input:
            return self.start.tool_call
        return ToolCall(self.start.id, "function", FunctionCall(self.start.name, arguments))


def words_of(event: MessageEvent, kind: Literal["text", "thinking"] = "text") -> str:
    """Returns the text, or the thinking, that an event adds to the message; often ""."""
    if type(event) is ContentBlockDelta:
        return getattr(event.delta, kind, "")
    if type(event) is ContentBlockStart:
        return getattr(event.content_block, kind, "")
    if type(event) is MessageStart:
        return join_text(getattr(block, kind, "") for block in event.message.content)
    return ""


def _index_of(data: dict[str, Any]) -> int:
    index = data.get("index")
    return index if isinstance(index, int) else 0


class MessagesCollector:
    """Accumulates the events of a message stream."""

    dialect: Dialect[MessageEvent] = TaggedDialect(
        KnownEvent,
        reporting=frozenset({MessageStart, MessageDelta}),
        holds_unknown=_holds_unknown_kind,
        rewrite=_normalize_event,
    )
    add_texts: None = None
    splits_answer: bool = False

    def __init__(self) -> None:
        self.usage: MessageUsage | None = None
        self.is_last: bool = False
        self.has_text: bool = False
        self.envelope: Message = Message(content=())
        """The start of the message, with its ``id`` and ``model``."""
        self._ending = MessageDeltaPayload()  # apart from the start, which some servers send late, or again
        self._blocks: list[_BlockParts] = []
        self._by_index: dict[int, _BlockParts] = {}  # the latest with the server's index

    @property
    def begun(self) -> bool:
        """Whether content or a stop reason has arrived; an empty envelope and empty blocks of words do not count."""
        return bool(self.finish_reasons) or any(parts.has_content for parts in self._blocks)

    @property
    def may_end(self) -> bool:
        """Whether a stop reason has arrived that does not mean an error: only the final event may still follow."""
        return is_end_of_choice(self._ending.stop_reason)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The stop reason, once it has arrived."""
        reason = self._ending.stop_reason or self.envelope.stop_reason
        return () if reason is None else (reason,)

    def extend(self, events: Sequence[MessageEvent]) -> int:
        """Adds events in order, up to the final one; returns how many it added."""
        for position, event in enumerate(events, 1):
            if type(event) is ContentBlockDelta:
                parts, delta = self._by_index.get(event.index), event.delta
                if parts is None or parts.latest is not type(delta):
                    parts = self._block_of(event.index, type(delta))
                if isinstance(delta, TextDelta):  # nearly always: one call less
                    parts.pieces.append(delta.text)
                else:
                    parts.add(delta)
            else:
                self._add_other(event)
                if self.is_last:
                    events = events[:position]
                    break
        if not self.has_text:
            self.has_text = any(map(words_of, events))
        return len(events)

    def _add_other(self, event: MessageEvent) -> None:
        match event:
            case MessageStart(message=envelope):
                self.envelope = envelope
                if envelope.usage is not None:
                    self.usage = latest_usage(envelope.usage, self.usage)
                for position, block in enumerate(envelope.content):
                    self._start_block(position, block)
            case ContentBlockStart(index=index, content_block=block):
                self._start_block(index, block)
            case MessageDelta():
                self._ending = _filled_from(self._ending, event.delta)
                self._update_usage(event.usage)
            case MessageStop():
                self.is_last = True
            case UnknownEvent(type="content_block_start", data=data):
                self._start_block(_index_of(data), data["content_block"])
            case UnknownEvent(type="content_block_delta", data=data):
                if (parts := self._by_index.get(_index_of(data))) is not None:
                    parts.add_unknown(data["delta"])
            case _:
                pass

    def _block_of(self, index: int, kind: type[BlockDelta]) -> _BlockParts:
        """Returns the block of a delta; begins one if there is none, or if it is of another type."""
        parts = self._by_index.get(index)
        if parts is None or parts.kind is not _BLOCKS[kind]:
            parts = self._start_block(index, _BLOCKS[kind]())
        parts.latest = kind
        return parts

    def _start_block(self, index: int, block: ContentBlock) -> _BlockParts:
        # Blocks are kept in the order in which they start, because servers may reuse an index. An empty text whose
        # index is reused does not count: some servers announce it with the message, or start it before thinking.
        existing = self._by_index.get(index)
        if existing is not None and not existing.has_content:
            self._blocks.remove(existing)
        parts = self._by_index[index] = _BlockParts(block)
        self._blocks.append(parts)
        return parts

    def _update_usage(self, counts: MessageUsageDelta | None) -> None:
        fields = {} if counts is None else msgspec.structs.asdict(counts)
        if given := {name: count for name, count in fields.items() if count is not None}:
            self.usage = latest_usage(MessageUsage(**given), self.usage)

    def partial(self) -> Partial:
        """Returns the message so far."""
        calls = tuple(call for parts in self._blocks if (call := parts.tool_call()) is not None)
        result = self.result()
        texts = [block for block in result.content if isinstance(block, TextBlock)]
        sources = tuple(each for block in texts for each in block.citations or ())
        return msgspec.structs.replace(partial_of(result), tool_calls=calls, annotations=sources)

    def result(self) -> Message:
        """Returns the complete message."""
        content = tuple(parts.result() for parts in self._blocks)
        return msgspec.structs.replace(_filled_from(self.envelope, self._ending), content=content, usage=self.usage)


def _filled_from(earlier: S, later: MessageDeltaPayload) -> S:
    """Returns a message, or its end, with what a later end says of it."""
    said = {name: value for name, value in msgspec.structs.asdict(later).items() if value}
    return msgspec.structs.replace(earlier, **said)
