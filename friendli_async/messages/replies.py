"""What messages answer: whole messages, the events of a stream, and how events add up to a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

import msgspec

from friendli_async._core.lenient import convert
from friendli_async._core.text import joined
from friendli_async._pydantic import PydanticField
from friendli_async.replies import Reply, UnknownEvent, Value, always

__all__: list[str] = ["ContentBlock", "StopReason", "TextBlock", "ThinkingBlock", "ToolUseBlock", "UnknownEvent"]
__all__ += ["AnyBlock", "AnyMessage"]
__all__ += ["Message", "MessageEnvelope", "MessageUsage", "SignatureDelta", "TextDelta", "ThinkingDelta"]
__all__ += ["BlockDelta", "InputJSONDelta", "MessageDeltaPayload", "MessageStart", "MessageUsageDelta"]
__all__ += ["ContentBlockDelta", "ContentBlockStart", "ContentBlockStop", "MessageDelta", "MessageStop"]
__all__ += ["MessageEvent"]

StopReason = Literal["end_turn", "max_tokens", "tool_use", "stop_sequence"] | str  # open: new ones must not break us

# --- content ---------------------------------------------------------------------------------------------------------


class AnyBlock(msgspec.Struct, frozen=True):
    """What every part of a message is: by it type checkers take a list of several kinds for a message's content."""


class TextBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="text"):
    """Text."""

    type: ClassVar[Literal["text"]] = "text"
    text: str = always("")


class ThinkingBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="thinking"):
    """What the model thought before it answered."""

    type: ClassVar[Literal["thinking"]] = "thinking"
    thinking: str = always("")
    signature: str | None = None
    """Proof that the model thought this; it goes back unchanged with the next call."""


class ToolUseBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="tool_use"):
    """The call of a tool that the model wants made."""

    type: ClassVar[Literal["tool_use"]] = "tool_use"
    name: str = always("")
    input: Any = msgspec.field(default_factory=lambda: cast("dict[str, object]", {}))
    """The arguments, as a dict. A stream's, if they do not make up a JSON object (as when ``max_tokens`` cut them), are
    the text as the model wrote it."""
    id: str = ""


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | dict[str, Any]
"""A part of a message. One of a kind that this release does not know stays the dict that it is."""

KnownBlock = TextBlock | ThinkingBlock | ToolUseBlock
KNOWN_BLOCKS: Final = {"text": "text", "thinking": "thinking", "input": "tool_use", "name": "tool_use"}
"""The kinds of blocks that we know, by the fields that tell them."""
if TYPE_CHECKING:
    _Blocks = tuple[ContentBlock, ...]
else:  # msgspec knows no union of structs and dicts: see as_block
    _Blocks = tuple[Any, ...]


def as_block(value: object) -> ContentBlock:
    """A block from its JSON; one of an unknown kind as it is.

    Raises:
        ValueError: It is no object.
    """
    if isinstance(value, str):
        return TextBlock(value)
    block = with_type(value, KNOWN_BLOCKS)
    if is_unknown(block, KNOWN_BLOCKS):
        return cast("dict[str, Any]", block)
    known: KnownBlock = convert(block, KnownBlock)
    return known


def with_type(held: object, kinds: Mapping[str, str]) -> object:
    """Something that says of what kind it is: where it does not, what it holds tells. ``kinds`` are by those fields."""
    fields: Any = held
    if not isinstance(held, dict) or isinstance(fields.get("type"), str):
        return fields
    told = next((kind for field, kind in kinds.items() if field in fields), None)
    return fields if told is None else {**fields, "type": told}


def is_unknown(held: object, kinds: Mapping[str, str]) -> bool:
    """Whether something says that it is of another kind."""
    kind = cast("dict[str, object]", held).get("type") if isinstance(held, dict) else None
    return isinstance(kind, str) and kind not in kinds.values()


def as_input(block: KnownBlock) -> dict[str, Any]:
    """A block as a request takes it."""
    fields = {"type": block.type, **msgspec.structs.asdict(block)}
    return {name: value for name, value in fields.items() if value is not None and (value or name != "id")}


class MessageUsage(Value, frozen=True):
    """Tokens that a message was billed for."""

    input_tokens: int = always(0)
    output_tokens: int = always(0)
    cache_read_input_tokens: int | None = None


class AnyMessage(msgspec.Struct, frozen=True):
    """What every message of a conversation is."""


class Message(Reply, AnyMessage, frozen=True, kw_only=True):
    """A whole answer, of ``create`` or put together from a stream. It can be put into the next call's ``messages``."""

    answered_by: ClassVar[tuple[str, ...]] = ("content", "stop_reason")

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


class MessageEnvelope(
    PydanticField, msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True
):
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


class TextDelta(Value, frozen=True, tag_field="type", tag="text_delta"):
    """A piece of text."""

    type: ClassVar[Literal["text_delta"]] = "text_delta"
    text: str = always("")


class ThinkingDelta(Value, frozen=True, tag_field="type", tag="thinking_delta"):
    """A piece of what the model thinks."""

    type: ClassVar[Literal["thinking_delta"]] = "thinking_delta"
    thinking: str = always("")


class SignatureDelta(Value, frozen=True, tag_field="type", tag="signature_delta"):
    """A thinking block's signature."""

    type: ClassVar[Literal["signature_delta"]] = "signature_delta"
    signature: str = always("")


class InputJSONDelta(Value, frozen=True, tag_field="type", tag="input_json_delta"):
    """A piece of a tool call's arguments: JSON only once all pieces are together."""

    type: ClassVar[Literal["input_json_delta"]] = "input_json_delta"
    partial_json: str = always("")


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJSONDelta


class MessageDeltaPayload(Value, frozen=True):
    """Why the message ended."""

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageUsageDelta(Value, frozen=True):
    """Token counts that have changed since the message began; each is a total, not a difference."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class MessageStart(Value, frozen=True, tag_field="type", tag="message_start"):
    """The message begins."""

    type: ClassVar[Literal["message_start"]] = "message_start"
    message: MessageEnvelope


class ContentBlockStart(Value, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins: text and thinking usually empty, a tool call with its name and id."""

    type: ClassVar[Literal["content_block_start"]] = "content_block_start"
    content_block: TextBlock | ThinkingBlock | ToolUseBlock
    index: int = always(0)


class ContentBlockDelta(Value, frozen=True, tag_field="type", tag="content_block_delta"):
    """A piece of a block."""

    type: ClassVar[Literal["content_block_delta"]] = "content_block_delta"
    delta: BlockDelta
    index: int = always(0)


class ContentBlockStop(Value, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    type: ClassVar[Literal["content_block_stop"]] = "content_block_stop"
    index: int = always(0)


class MessageDelta(Value, frozen=True, tag_field="type", tag="message_delta"):
    """The message as a whole: why it ended, and its usage."""

    type: ClassVar[Literal["message_delta"]] = "message_delta"
    delta: MessageDeltaPayload = always(MessageDeltaPayload())
    usage: MessageUsageDelta | None = None


class MessageStop(Value, frozen=True, tag_field="type", tag="message_stop"):
    """The message is complete. Nothing comes after it."""

    type: ClassVar[Literal["message_stop"]] = "message_stop"


KnownEvent = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop
MessageEvent = KnownEvent | UnknownEvent


def text_of(event: MessageEvent) -> str:
    """What an event adds to the message's text; often ""."""
    if type(event) is ContentBlockDelta:
        return event.delta.text if type(event.delta) is TextDelta else ""
    if type(event) is ContentBlockStart and type(event.content_block) is TextBlock:
        return event.content_block.text
    if type(event) is MessageStart:
        return joined(block.text for block in event.message.content if isinstance(block, TextBlock))
    return ""


def reasoning_of(event: MessageEvent) -> str:
    """What an event adds to what the model thinks; often ""."""
    if type(event) is ContentBlockDelta:
        return event.delta.thinking if type(event.delta) is ThinkingDelta else ""
    if type(event) is ContentBlockStart and type(event.content_block) is ThinkingBlock:
        return event.content_block.thinking
    if type(event) is MessageStart:
        return joined(block.thinking for block in event.message.content if isinstance(block, ThinkingBlock))
    return ""
