"""Replies of the Messages API: complete messages and stream events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, cast

import msgspec

from friendli_async._core.body.json_values import AsSent
from friendli_async._core.lenient import convert
from friendli_async._core.text import join_text
from friendli_async._json import as_object, prepared
from friendli_async._pydantic import PydanticField
from friendli_async.replies import AnyUsage, FunctionCall, Reply, ToolCall, UnknownEvent, Value, always_encoded

__all__: list[str] = ["ContentBlock", "StopReason", "TextBlock", "ThinkingBlock", "ToolUseBlock"]
__all__ += ["AnyBlock", "AnyMessage", "CacheCreation", "CitationsDelta", "OutputTokensDetails", "ServerToolUsage"]
__all__ += ["Message", "MessageUsage", "SignatureDelta", "TextDelta", "ThinkingDelta"]
__all__ += ["BlockDelta", "InputJSONDelta", "MessageDeltaPayload", "MessageStart", "MessageUsageDelta"]
__all__ += ["ContentBlockDelta", "ContentBlockStart", "ContentBlockStop", "MessageDelta", "MessageStop"]
__all__ += ["MessageEvent"]

StopReason = Literal["end_turn", "max_tokens", "tool_use", "stop_sequence"] | str  # open: new values are accepted

# --- content ---------------------------------------------------------------------------------------------------------


class AnyBlock(PydanticField, msgspec.Struct, frozen=True):
    """Base class of content blocks. With it, type checkers accept a list of mixed blocks as a message's content."""


class TextBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="text"):
    """A text block."""

    type: ClassVar[Literal["text"]] = "text"
    text: str = always_encoded("")
    citations: tuple[dict[str, Any], ...] | None = None
    """The sources of the text, if the server sends them."""


class ThinkingBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="thinking"):
    """The model's reasoning before its answer."""

    type: ClassVar[Literal["thinking"]] = "thinking"
    thinking: str = always_encoded("")
    signature: str | None = None
    """Proves that the model wrote this reasoning; send it back unchanged with the next call."""


class ToolUseBlock(Value, AnyBlock, frozen=True, tag_field="type", tag="tool_use"):
    """A tool call requested by the model."""

    type: ClassVar[Literal["tool_use"]] = "tool_use"
    name: str = always_encoded("")
    input: Any = msgspec.field(default_factory=lambda: cast("dict[str, object]", {}))
    """The arguments as a dict. Streamed arguments that do not form a JSON object (for example, truncated by
    ``max_tokens``) are the raw text."""
    id: str = ""
    caller: dict[str, Any] | None = None
    """Who calls the tool, if the server says so: the model itself, or a program of its own."""
    toolset_name: str | None = None
    """The set of tools that the tool belongs to, if it does."""

    @property
    def tool_call(self) -> ToolCall:
        """The call in the form of the other APIs."""
        arguments = self.input if isinstance(self.input, str) else json.dumps(self.input)
        return ToolCall(self.id, "function", FunctionCall(self.name, arguments))


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock | dict[str, Any]
"""A part of a message. A block of an unknown type stays a dict."""

KnownBlock = TextBlock | ThinkingBlock | ToolUseBlock
prepared(KnownBlock)
KNOWN_BLOCKS: Final = {"text": "text", "thinking": "thinking", "input": "tool_use", "name": "tool_use"}
"""The known block types, keyed by the fields that identify them."""
if TYPE_CHECKING:
    _Blocks = tuple[ContentBlock, ...]
else:  # msgspec does not support unions of structs and dicts: see _as_block
    _Blocks = tuple[Any, ...]


def _as_block(value: object) -> ContentBlock:
    """Converts a JSON value to a block. Returns an object of an unknown type as is.

    Raises:
        ValueError: The value is not a block.
    """
    if isinstance(value, str):
        return TextBlock(value)
    block = with_type(value, KNOWN_BLOCKS)
    if is_unknown(block, KNOWN_BLOCKS):
        return cast("dict[str, Any]", block)
    try:  # first without leniency, as nearly always suffices: ``convert`` also looks for a usage, which no block has
        known: KnownBlock = msgspec.convert(block, KnownBlock)
    except ValueError:
        known = convert(block, KnownBlock)
    return known


def with_type(value: object, kinds: Mapping[str, str]) -> object:
    """Fills in the ``type`` of an object that has none; ``kinds`` maps identifying fields to types."""
    fields: Any = value
    if not isinstance(value, dict) or (isinstance(fields.get("type"), str) and fields["type"]):
        return fields
    inferred = next((kind for field, kind in kinds.items() if field in fields), None)
    return fields if inferred is None else {**fields, "type": inferred}


def is_unknown(value: object, kinds: Mapping[str, str]) -> bool:
    """Whether the value is an object with a ``type`` that is not in ``kinds``."""
    kind = cast("dict[str, object]", value).get("type") if isinstance(value, dict) else None
    return isinstance(kind, str) and kind not in kinds.values()


def _as_input(block: KnownBlock) -> dict[str, Any]:
    """Returns the block in the form that requests take."""
    fields = {"type": block.type, **msgspec.structs.asdict(block)}
    return {name: value for name, value in fields.items() if value is not None and (value or name != "id")}


def block_as_input(block: object) -> object:
    """Returns a block of a known type in its request form, and anything else unchanged."""
    return _as_input(block) if isinstance(block, KnownBlock) else block


def reply_block_as_input(block: object) -> object:
    """Returns a block of a reply in its request form; one of a type that is unknown here is not checked there, too."""
    return AsSent(as_object(block)) if is_unknown(block, KNOWN_BLOCKS) else block_as_input(block)


class CacheCreation(Value, frozen=True):
    """Breakdown of the tokens written to a cache, by how long it keeps them."""

    ephemeral_5m_input_tokens: int | None = None
    ephemeral_1h_input_tokens: int | None = None


class OutputTokensDetails(Value, frozen=True):
    """Breakdown of the output tokens."""

    thinking_tokens: int | None = None


class ServerToolUsage(Value, frozen=True):
    """Billed calls of tools that run on the server."""

    web_search_requests: int | None = None
    web_fetch_requests: int | None = None


class MessageUsage(AnyUsage, frozen=True):
    """Billed tokens of a message."""

    input_tokens: int = always_encoded(0)
    """Those of the prompt, without the tokens that were read from a cache or written to one."""
    output_tokens: int = always_encoded(0)
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens_details: OutputTokensDetails | None = None
    server_tool_use: ServerToolUsage | None = None
    service_tier: str | None = None
    """The priority that was billed, as are the place and the speed."""
    inference_geo: str | None = None
    speed: str | None = None


class AnyMessage(PydanticField, msgspec.Struct, frozen=True):
    """Base class of the messages of a conversation."""


class Message(Reply, AnyMessage, frozen=True, kw_only=True):
    """A complete message, from ``create`` or a stream. It can be passed in the next call's ``messages``."""

    _answered_by: ClassVar[tuple[str, ...]] = ("content", "stop_reason")

    content: _Blocks
    id: str | None = None
    type: str = always_encoded("message")
    role: str = always_encoded("assistant")
    model: str | None = None
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    """Which of the ``stop_sequences`` stopped the generation."""
    stop_details: dict[str, Any] | None = None
    """Why the model refused to go on, if the server explains it."""
    container: dict[str, Any] | None = None
    """The container in which tools of the server ran: its ``id`` can be passed with the next call."""
    usage: MessageUsage | None = None

    def __post_init__(self) -> None:
        blocks = tuple(block if isinstance(block, KnownBlock) else _as_block(block) for block in self.content)
        msgspec.structs.force_setattr(self, "content", blocks)

    @property
    def text(self) -> str:
        """The text of all text blocks; "" if there are none."""
        return join_text(block.text for block in self.content if isinstance(block, TextBlock))

    @property
    def reasoning(self) -> str:
        """The text of all thinking blocks; "" if there are none."""
        return join_text(block.thinking for block in self.content if isinstance(block, ThinkingBlock))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls that the model requests, with their input as JSON text."""
        return tuple(block.tool_call for block in self.content if isinstance(block, ToolUseBlock))

    def as_input(self) -> dict[str, object]:
        """Returns the message in its request form: a dict of JSON values with its role and content."""
        return {"role": self.role, "content": [reply_block_as_input(block) for block in self.content]}


# --- events ----------------------------------------------------------------------------------------------------------


class TextDelta(Value, frozen=True, tag_field="type", tag="text_delta"):
    """A chunk of text."""

    type: ClassVar[Literal["text_delta"]] = "text_delta"
    text: str = always_encoded("")


class ThinkingDelta(Value, frozen=True, tag_field="type", tag="thinking_delta"):
    """A chunk of reasoning."""

    type: ClassVar[Literal["thinking_delta"]] = "thinking_delta"
    thinking: str = always_encoded("")


class SignatureDelta(Value, frozen=True, tag_field="type", tag="signature_delta"):
    """The signature of a thinking block."""

    type: ClassVar[Literal["signature_delta"]] = "signature_delta"
    signature: str = always_encoded("")


class CitationsDelta(Value, frozen=True, tag_field="type", tag="citations_delta"):
    """A further source of a text."""

    type: ClassVar[Literal["citations_delta"]] = "citations_delta"
    citation: dict[str, Any] = msgspec.field(default_factory=lambda: cast("dict[str, Any]", {}))


class InputJSONDelta(Value, frozen=True, tag_field="type", tag="input_json_delta"):
    """A chunk of a tool call's arguments. The chunks are JSON only when joined."""

    type: ClassVar[Literal["input_json_delta"]] = "input_json_delta"
    partial_json: str = always_encoded("")


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | CitationsDelta | InputJSONDelta


class MessageDeltaPayload(Value, frozen=True):
    """Why the message ended."""

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: dict[str, Any] | None = None
    container: dict[str, Any] | None = None


class MessageUsageDelta(Value, frozen=True):
    """Token counts that have changed since the message started. Each is a total, not a difference."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: CacheCreation | None = None
    output_tokens_details: OutputTokensDetails | None = None
    server_tool_use: ServerToolUsage | None = None


class MessageStart(Value, frozen=True, tag_field="type", tag="message_start"):
    """The message starts."""

    type: ClassVar[Literal["message_start"]] = "message_start"
    message: Message


class ContentBlockStart(Value, frozen=True, tag_field="type", tag="content_block_start"):
    """A block starts. Text and thinking are usually empty; a tool call has its name and id."""

    type: ClassVar[Literal["content_block_start"]] = "content_block_start"
    content_block: TextBlock | ThinkingBlock | ToolUseBlock
    index: int = always_encoded(0)


class ContentBlockDelta(Value, frozen=True, tag_field="type", tag="content_block_delta"):
    """A block grows by a delta."""

    type: ClassVar[Literal["content_block_delta"]] = "content_block_delta"
    delta: BlockDelta
    index: int = always_encoded(0)


class ContentBlockStop(Value, frozen=True, tag_field="type", tag="content_block_stop"):
    """A block is complete."""

    type: ClassVar[Literal["content_block_stop"]] = "content_block_stop"
    index: int = always_encoded(0)


class MessageDelta(Value, frozen=True, tag_field="type", tag="message_delta"):
    """Updates of the message as a whole: its stop reason and usage."""

    type: ClassVar[Literal["message_delta"]] = "message_delta"
    delta: MessageDeltaPayload = always_encoded(MessageDeltaPayload())
    usage: MessageUsageDelta | None = None


class MessageStop(Value, frozen=True, tag_field="type", tag="message_stop"):
    """The message is complete. This is the last event."""

    type: ClassVar[Literal["message_stop"]] = "message_stop"


KnownEvent = MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop
MessageEvent = KnownEvent | UnknownEvent
