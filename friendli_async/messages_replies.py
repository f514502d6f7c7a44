"""What messages answer: whole messages, the events of a stream, and how events add up to a message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

import msgspec

from friendli_async._core.protocol import decode
from friendli_async.chat_replies import joined
from friendli_async.replies import FunctionCall, Partial, Reply, ToolCall, UnknownEvent, Usage, always

__all__ = [
    "BlockDelta",
    "ContentBlock",
    "ContentBlockDelta",
    "ContentBlockStart",
    "ContentBlockStop",
    "InputJSONDelta",
    "KnownBlock",
    "Message",
    "MessageDelta",
    "MessageDeltaPayload",
    "MessageEnvelope",
    "MessageEvent",
    "MessageStart",
    "MessageStop",
    "MessageUsage",
    "MessageUsageDelta",
    "MessagesCollector",
    "SignatureDelta",
    "StopReason",
    "TextBlock",
    "TextDelta",
    "ThinkingBlock",
    "ThinkingDelta",
    "ToolUseBlock",
    "UnknownEvent",
    "as_input",
    "reasoning_of",
    "text_of",
]

StopReason = Literal["end_turn", "max_tokens", "tool_use", "stop_sequence"] | str  # open: new ones must not break us

# --- content ---------------------------------------------------------------------------------------------------------


class TextBlock(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="text"):
    """Text."""

    type: ClassVar[Literal["text"]] = "text"
    text: str = always("")


class ThinkingBlock(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True, tag_field="type", tag="thinking"
):
    """What the model thought before it answered."""

    type: ClassVar[Literal["thinking"]] = "thinking"
    thinking: str = always("")
    signature: str | None = None
    """Proof that the model thought this; it goes back unchanged with the next call."""


class ToolUseBlock(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True, tag_field="type", tag="tool_use"
):
    """The call of a tool that the model wants made."""

    type: ClassVar[Literal["tool_use"]] = "tool_use"
    name: str = always("")
    input: Any = msgspec.field(default_factory=lambda: cast("dict[str, object]", {}))
    """The arguments, as a dict. A stream's, if they do not make up a JSON object (as when ``max_tokens`` cut them), are
    the text as the model wrote it."""
    id: str | None = None


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | dict[str, Any]
"""A part of a message. One of a kind that this release does not know stays the dict that it is."""

KnownBlock = TextBlock | ThinkingBlock | ToolUseBlock
_KNOWN_BLOCKS: Final = frozenset({"text", "thinking", "tool_use"})
if TYPE_CHECKING:
    _Blocks = tuple[ContentBlock, ...]
else:  # msgspec knows no union of structs and dicts: see as_block
    _Blocks = tuple[Any, ...]


def as_block(value: object) -> ContentBlock:
    """A block from its JSON; one of an unknown kind as it is.

    Raises:
        ValueError: It is no object.
    """
    kind = cast("dict[str, object]", value).get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in _KNOWN_BLOCKS:
        return cast("dict[str, Any]", value)
    known: KnownBlock = msgspec.convert(value, KnownBlock)
    return known


def as_input(block: KnownBlock) -> dict[str, Any]:
    """A block as a request takes it."""
    fields = {"type": block.type, **msgspec.structs.asdict(block)}
    return {name: value for name, value in fields.items() if value is not None}


class MessageUsage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Tokens that a message was billed for."""

    input_tokens: int = always(0)
    output_tokens: int = always(0)
    cache_read_input_tokens: int | None = None


class Message(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A whole answer, of ``create`` or put together from a stream. It can be put into the next call's ``messages``."""

    content: _Blocks
    id: str | None = None
    type: str = always("message")
    role: str = always("assistant")
    model: str | None = None
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    """Which of the ``stop_sequences`` it was."""
    usage: MessageUsage | None = None

    def __post_init__(self) -> None:
        _set_blocks(self, self.content)

    @property
    def text(self) -> str:
        """The text of all text blocks; "" where there are none."""
        return joined(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def reasoning(self) -> str:
        """The text of all thinking blocks; "" where there are none."""
        return joined(block.thinking for block in self.content if isinstance(block, ThinkingBlock))


class MessageEnvelope(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A message that is about to be streamed: its head, and usually no content."""

    id: str | None = None
    type: str = always("message")
    role: str = always("assistant")
    model: str | None = None
    content: _Blocks = always(())
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage | None = None

    def __post_init__(self) -> None:
        _set_blocks(self, self.content)


def _set_blocks(message: Message | MessageEnvelope, blocks: Sequence[object]) -> None:
    made = tuple(block if isinstance(block, KnownBlock) else as_block(block) for block in blocks)
    msgspec.structs.force_setattr(message, "content", made)


# --- events ----------------------------------------------------------------------------------------------------------


class TextDelta(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="text_delta"):
    """A piece of text."""

    type: ClassVar[Literal["text_delta"]] = "text_delta"
    text: str = always("")


class ThinkingDelta(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="thinking_delta"):
    """A piece of what the model thinks."""

    type: ClassVar[Literal["thinking_delta"]] = "thinking_delta"
    thinking: str = always("")


class SignatureDelta(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="signature_delta"):
    """A thinking block's signature."""

    type: ClassVar[Literal["signature_delta"]] = "signature_delta"
    signature: str = always("")


class InputJSONDelta(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="input_json_delta"):
    """A piece of a tool call's arguments: JSON only once all pieces are together."""

    type: ClassVar[Literal["input_json_delta"]] = "input_json_delta"
    partial_json: str = always("")


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJSONDelta


class MessageDeltaPayload(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Why the message ended."""

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageUsageDelta(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Token counts that have changed since the message began; each is a total, not a difference."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class MessageStart(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="message_start"):
    """The message begins."""

    type: ClassVar[Literal["message_start"]] = "message_start"
    message: MessageEnvelope


class ContentBlockStart(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="content_block_start"):
    """A block begins: text and thinking usually empty, a tool call with its name and id."""

    type: ClassVar[Literal["content_block_start"]] = "content_block_start"
    content_block: TextBlock | ThinkingBlock | ToolUseBlock
    index: int = always(0)


class ContentBlockDelta(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="content_block_delta"):
    """A piece of a block."""

    type: ClassVar[Literal["content_block_delta"]] = "content_block_delta"
    delta: BlockDelta
    index: int = always(0)


class ContentBlockStop(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    type: ClassVar[Literal["content_block_stop"]] = "content_block_stop"
    index: int = always(0)


class MessageDelta(
    msgspec.Struct,
    frozen=True,
    gc=False,
    omit_defaults=True,
    repr_omit_defaults=True,
    tag_field="type",
    tag="message_delta",
):
    """The message as a whole: why it ended, and its usage."""

    type: ClassVar[Literal["message_delta"]] = "message_delta"
    delta: MessageDeltaPayload = always(MessageDeltaPayload())
    usage: MessageUsageDelta | None = None


class MessageStop(msgspec.Struct, frozen=True, gc=False, tag_field="type", tag="message_stop"):
    """The message is complete. Nothing comes after it."""

    type: ClassVar[Literal["message_stop"]] = "message_stop"


_KnownEvent = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop
MessageEvent = _KnownEvent | UnknownEvent


def text_of(event: MessageEvent) -> str:
    """What an event adds to the message's text; often ""."""
    if type(event) is ContentBlockDelta:
        return event.delta.text if type(event.delta) is TextDelta else ""
    if type(event) is ContentBlockStart and type(event.content_block) is TextBlock:
        return event.content_block.text
    return ""


def reasoning_of(event: MessageEvent) -> str:
    """What an event adds to what the model thinks; often ""."""
    if type(event) is ContentBlockDelta:
        return event.delta.thinking if type(event.delta) is ThinkingDelta else ""
    if type(event) is ContentBlockStart and type(event.content_block) is ThinkingBlock:
        return event.content_block.thinking
    return ""


_decoder: Final[msgspec.json.Decoder[_KnownEvent]] = msgspec.json.Decoder(_KnownEvent)
_decode: Final = _decoder.decode
# The events that we know; of those that hold one of several kinds of things, where it is, and the kinds that we know.
_KINDS: Final[dict[str, tuple[str, frozenset[str]] | None]] = {
    "message_start": None,
    "content_block_start": ("content_block", _KNOWN_BLOCKS),
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
