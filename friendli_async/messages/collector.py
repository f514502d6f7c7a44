"""How the events of a messages stream add up to a message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from friendli_async._core.protocol import decode
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
    TextDelta,
    ThinkingDelta,
    ToolUseBlock,
    UnknownEvent,
    as_block,
    as_input,
)
from friendli_async.replies import FunctionCall, Partial, ToolCall, Usage

__all__ = ["MessagesCollector"]

_decoder: Final[msgspec.json.Decoder[KnownEvent]] = msgspec.json.Decoder(KnownEvent)
_decode: Final = _decoder.decode
# The events that we know; of those that hold one of several kinds of things, where it is, and the kinds that we know.
_KINDS: Final[dict[str, tuple[str, frozenset[str]] | None]] = {
    "message_start": None,
    "content_block_start": ("content_block", KNOWN_BLOCKS),
    "content_block_delta": (
        "delta",
        frozenset({"text_delta", "thinking_delta", "signature_delta", "input_json_delta"}),
    ),
    "content_block_stop": None,
    "message_delta": None,
    "message_stop": None,
}


def _decode_slowly(data: bytes, name: str | None) -> MessageEvent | None:
    """Decodes what the fast path refused: unknown kinds, pings, errors, events that only their name tells.

    Args:
        data: The event's data.
        name: The ``event:`` line; counts where the data has no ``type``.

    Returns:
        The event; None for a ping, an error, and data that says nothing.

    Raises:
        ResponseDecodeError: Not JSON, or not what its kind promises.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        # Whatever a kind that we do not know says, a dict it is not.
        return decode(data, _decoder) if name is None or name in _KINDS else None
    fields = cast("dict[str, Any]", value)
    kind = fields.get("type") or name
    if not isinstance(kind, str) or kind in {"ping", "error"} or fields.get("error"):
        return None
    if kind not in _KINDS or _holds_unknown_kind(fields, kind):
        return UnknownEvent(kind, fields)
    return decode(data if "type" in fields else json.dumps({**fields, "type": kind}).encode(), _decoder)


def _holds_unknown_kind(fields: dict[str, Any], kind: str) -> bool:
    place = _KINDS[kind]
    if place is None:
        return False
    held = fields.get(place[0])
    of_kind = cast("dict[str, object]", held).get("type") if isinstance(held, dict) else None
    return isinstance(of_kind, str) and of_kind not in place[1]


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
        if not isinstance(self.start, ToolUseBlock):
            return None
        arguments = joined(self.input)
        if not arguments and self.start.input:
            arguments = json.dumps(self.start.input)
        return ToolCall(self.start.id, "function", FunctionCall(self.start.name, arguments))


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


class MessagesCollector:
    """Decodes the events of a messages stream and puts them together to a message."""

    def __init__(self) -> None:
        self.usage: MessageUsage | None = None
        self._envelope = MessageEnvelope()
        self._ending = MessageDeltaPayload()
        self._blocks: list[_BlockParts] = []
        self._by_index: dict[int, _BlockParts] = {}
        self._last_decoded = False
        self._stopped = False

    def decode(self, data: bytes) -> MessageEvent | None:
        """Decodes an event by its data's ``type``; None for a ping or an error."""
        return self.decode_named(None, data)

    def decode_each(self, payloads: list[bytes]) -> Sequence[MessageEvent] | None:
        """Decodes events; None if one of them is not an ordinary one."""
        try:
            events = list(map(_decode, payloads))
        except (ValueError, RecursionError):  # msgspec's and Unicode errors are ValueErrors
            return None
        return None if MessageStop in map(type, events) else events

    def decode_named(self, name: str | None, data: bytes) -> MessageEvent | None:
        """Decodes an event by its data's ``type``, or else by its name; None for a ping, an error, or after the end."""
        if self._last_decoded:
            return None
        event: MessageEvent | None
        try:
            event = _decode(data)
        except (ValueError, RecursionError):
            event = _decode_slowly(data, name)
        self._last_decoded = type(event) is MessageStop
        return event

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
                self._envelope = envelope
                self.usage = envelope.usage
            case MessageDelta():
                self._ending = event.delta
                self._count(event.usage)
            case MessageStop():
                self._stopped = True
            case UnknownEvent(type="content_block_start", data=data):
                index = data.get("index")
                self._begin(index if isinstance(index, int) else 0, data["content_block"])
            case _:
                pass

    def _begin(self, index: int, block: ContentBlock | None) -> _BlockParts:
        # In the order of their beginnings: indexes may be used again.
        parts = self._by_index[index] = _BlockParts(block)
        self._blocks.append(parts)
        return parts

    def _count(self, counts: MessageUsageDelta | None) -> None:
        if counts is None:
            return
        told = {name: value for name in counts.__struct_fields__ if (value := getattr(counts, name)) is not None}
        self.usage = msgspec.structs.replace(self.usage or MessageUsage(), **told)

    @property
    def ended(self) -> bool:
        """Whether the last event has come: nothing is waited for after it."""
        return self.complete()

    def complete(self) -> bool:
        """Whether ``message_stop`` has been seen."""
        return self._stopped

    def partial(self) -> Partial:
        """The message so far."""
        message = self.result()
        return Partial(
            text=message.text,
            reasoning=message.reasoning,
            tool_calls=tuple(call for parts in self._blocks if (call := parts.tool_call()) is not None),
            usage=_as_chat_usage(self.usage),
        )

    def result(self) -> Message:
        """The whole message."""
        head = self._envelope
        return Message(
            content=tuple(parts.result() for parts in self._blocks) or head.content,
            id=head.id,
            type=head.type,
            role=head.role,
            model=head.model,
            stop_reason=self._ending.stop_reason or head.stop_reason,
            stop_sequence=self._ending.stop_sequence or head.stop_sequence,
            usage=self.usage,
        )


def _as_chat_usage(usage: MessageUsage | None) -> Usage | None:
    if usage is None:
        return None
    return Usage(usage.input_tokens, usage.output_tokens, usage.input_tokens + usage.output_tokens)
