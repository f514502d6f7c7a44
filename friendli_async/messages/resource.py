"""Messages: a model answers a conversation in the form that Anthropic's Messages API has made common.

Wire: ``POST {deployment}/v1/messages``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events, each named by its ``type``, of which ``message_stop`` is the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Union, Unpack, cast, get_args

import msgspec

from friendli_async._core.assembly import AssembledStream
from friendli_async._core.body.arguments import Arguments, Parameters
from friendli_async._core.protocol import Operation
from friendli_async._core.text import TextView
from friendli_async.messages.collector import MessagesCollector
from friendli_async.messages.replies import (
    BlockDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJSONDelta,
    KnownBlock,
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
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
    UnknownEvent,
    as_input,
    reasoning_of,
    text_of,
)

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "Base64Source",
    "BlockDelta",
    "ContainerMessages",
    "ContentBlock",
    "ContentBlockDelta",
    "ContentBlockStart",
    "ContentBlockStop",
    "ImageBlock",
    "InputJSONDelta",
    "InputMessage",
    "InputMessages",
    "Message",
    "MessageDelta",
    "MessageDeltaPayload",
    "MessageEnvelope",
    "MessageEvent",
    "MessageStart",
    "MessageStop",
    "MessageStream",
    "MessageUsage",
    "MessageUsageDelta",
    "Messages",
    "MessagesOptions",
    "SignatureDelta",
    "StopReason",
    "TextBlock",
    "TextDelta",
    "ThinkingBlock",
    "ThinkingDelta",
    "Tool",
    "ToolResultBlock",
    "ToolUseBlock",
    "URLSource",
    "UnknownEvent",
]

# --- what goes in ----------------------------------------------------------------------------------------------------


class Base64Source(msgspec.Struct, frozen=True, tag_field="type", tag="base64"):
    """An image itself, as base64 text."""

    data: str
    media_type: str


class URLSource(msgspec.Struct, frozen=True, tag_field="type", tag="url"):
    """Where an image is."""

    url: str


class ImageBlock(msgspec.Struct, frozen=True, tag_field="type", tag="image"):
    """An image, as one part of a message."""

    source: Base64Source | URLSource


class ToolResultBlock(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="tool_result"):
    """What the call of a tool gave: text, or blocks."""

    tool_use_id: str
    content: str | list[dict[str, Any]] | None = None


# What a request must have and a reply need not.
class _Text(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class _Thinking(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str | None = None


class _ToolUse(msgspec.Struct, tag_field="type", tag="tool_use"):
    name: str
    input: dict[str, Any]
    id: str | None = None


class _NoText(msgspec.Struct, tag_field="type", tag=""):
    """Stands beside _Text in the check: where there is more than one, msgspec insists on the type."""


_CompatibilityKind = Literal[
    "document",
    "search_result",
    "redacted_thinking",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "container_upload",
]
_COMPATIBILITY: Final = [
    msgspec.defstruct("CompatibilityBlock", [], tag_field="type", tag=kind) for kind in get_args(_CompatibilityKind)
]
# What a block may be, by its type; of those that are there for compatibility the wire describes nothing else.
_BLOCK: Final[Any] = Union[(_Text, _Thinking, _ToolUse, ImageBlock, ToolResultBlock, *_COMPATIBILITY)]


class InputMessage(msgspec.Struct, frozen=True):
    """What the user or the model said: text, or blocks (structs or dicts)."""

    role: Literal["user", "assistant"]
    content: str | Sequence[TextBlock | ThinkingBlock | ToolUseBlock | ImageBlock | ToolResultBlock | Mapping[str, Any]]


class _CheckedMessage(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_BLOCK]  # pyright: ignore[reportInvalidTypeForm]  # made from a list


InputMessages = Sequence[InputMessage | Message | Mapping[str, object]]
"""A conversation: plain dicts, the struct above, earlier replies, in any mixture."""


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model may ask to be called; ``input_schema`` is a JSON schema."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None
    """Whether the arguments must keep to the schema."""


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinks(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class _OutputFormat(msgspec.Struct):
    type: Literal["json_schema"] | None
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct):
    effort: Literal["minimal", "low", "medium", "high", "xhigh", "max", "ultracode"] | str | None = None  # open
    format: _OutputFormat | None = None


class MessagesOptions(TypedDict, total=False):
    """Optional parameters of a message. What is left out is left to the server; None is sent as null."""

    cache_control: Mapping[str, object] | None
    """How to cache the prompt."""
    container: Mapping[str, object] | None
    """The container that tools run in."""
    context_manager: Mapping[str, object] | None
    """How the conversation is shortened where it grows too long."""
    inference_geo: Mapping[str, object] | None
    """Where in the world the model may run."""
    max_tokens: int | None
    """The most tokens to generate."""
    metadata: Mapping[str, object] | None
    """About the request, such as ``{"user_id": ...}``."""
    output_config: Mapping[str, object] | None
    """``{"effort": "minimal" | "low" | "medium" | "high" | "xhigh" | "max" | "ultracode", "format": {"type":
    "json_schema", "schema": {...}}}``."""
    service_tier: str | Mapping[str, object] | None
    """Priority of the request."""
    stop_sequences: Sequence[str] | None
    """Texts that end the generation."""
    system: str | Sequence[TextBlock | Mapping[str, object]] | None
    """Instructions that stand above the conversation: text, or text blocks."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    thinking: Mapping[str, object] | None
    """``{"type": "enabled" | "disabled" | "adaptive", "budget_tokens": int}``: whether to think first, and how much."""
    tool_choice: Mapping[str, object] | None
    """``{"type": "auto" | "any" | "none"}`` or ``{"type": "tool", "name": ...}``, and ``"disable_parallel_tool_use":
    bool``."""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Tools that the model may ask to be called."""
    top_k: int | None
    """Sample from the k likeliest tokens only."""
    top_p: float | None
    """Sample from the likeliest tokens that make up this probability only."""
    extra_body: Mapping[str, object]
    """Further keys of the body, as they are; they win over the parameters."""
    extra_query: Mapping[str, object]
    """Query parameters."""


_PARAMETERS: Final = Parameters(
    MessagesOptions,
    {"model": str, "messages": list[_CheckedMessage]},
    {
        "output_config": _OutputConfig | None,
        "system": str | list[_Text | _NoText] | None,
        "thinking": _Thinks | None,
        "tool_choice": _ToolChoice | None,
        "tools": list[Tool] | None,
    },
)
_CREATE: Final = Operation(
    method="POST",
    path="/v1/messages",
    reply=msgspec.json.Decoder(Message),
    repeatable=True,
    billed=True,
)


# --- the stream ------------------------------------------------------------------------------------------------------


class MessageStream(AssembledStream[MessageEvent, Message, MessageUsage]):
    """The stream of a message; its events add up to a ``Message``. ``message_stop`` is its end."""

    def text(self) -> TextView:
        """The message's text, piece by piece, never ""."""
        return TextView(self, text_of)

    def reasoning(self) -> TextView:
        """What the model thinks, piece by piece, never ""."""
        return TextView(self, reasoning_of)


# --- the resource ----------------------------------------------------------------------------------------------------


class Messages:
    """Messages of a model: ``client.serverless.messages``, ``client.dedicated.messages``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, *, model: str, messages: InputMessages, **options: Unpack[MessagesOptions]) -> Message:
        """Generates an answer and returns it whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation so far; earlier replies can be put in as they are.
            options: See ``MessagesOptions``.

        Returns:
            The message: ``text``, ``reasoning``, ``content``, ``stop_reason``, ``usage``, ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._create({"model": model, "messages": messages}, options)

    def stream(self, *, model: str, messages: InputMessages, **options: Unpack[MessagesOptions]) -> MessageStream:
        """Generates an answer and streams it, piece by piece. The call is made when the stream is first used.

        Args:
            model: As for ``create``.
            messages: The conversation so far.
            options: See ``MessagesOptions``.

        Returns:
            The stream of ``MessageEvent``: use it with ``async with`` or ``async for``, or await its ``result()``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path.
        """
        return self._stream({"model": model, "messages": messages}, options)

    async def _create(self, required: dict[str, object], options: Mapping[str, object]) -> Message:
        return await self._engine.call(_CREATE, _arguments("create", required, options, {}))

    def _stream(self, required: dict[str, object], options: Mapping[str, object]) -> MessageStream:
        arguments = _arguments("stream", required, options, {"stream": True})
        return MessageStream(self._engine.opening(_CREATE, arguments, MessagesCollector))


class ContainerMessages(Messages):
    """Messages of a self-hosted engine, which has its model: ``client.container.messages``."""

    async def create(
        self, *, model: str | None = None, messages: InputMessages, **options: Unpack[MessagesOptions]
    ) -> Message:
        """Generates an answer and returns it whole; see ``Messages.create``.

        Args:
            model: An adapter's route; None leaves it out.
            messages: The conversation so far.
            options: See ``MessagesOptions``.

        Returns:
            The message.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call.
        """
        return await self._create(_required(model, messages), options)

    def stream(
        self, *, model: str | None = None, messages: InputMessages, **options: Unpack[MessagesOptions]
    ) -> MessageStream:
        """Generates an answer and streams it; see ``Messages.stream``.

        Args:
            model: An adapter's route; None leaves it out.
            messages: The conversation so far.
            options: See ``MessagesOptions``.

        Returns:
            The stream.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path.
        """
        return self._stream(_required(model, messages), options)


def _required(model: str | None, messages: InputMessages) -> dict[str, object]:
    # Left out rather than null: engines that serve one model take no model for it.
    return {"messages": messages} if model is None else {"model": model, "messages": messages}


def _arguments(
    method: str, required: dict[str, object], options: Mapping[str, object], fixed: Mapping[str, object]
) -> Arguments:
    required["messages"] = _sendable(required["messages"])
    if "system" in options:
        options = {**options, "system": _sendable_blocks(options["system"])}
    return _PARAMETERS.encode(method, required, options, fixed)


def _sendable(messages: object) -> object:
    """Messages with those of replies made into what a request takes; the rest as it is, for the check to judge."""
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        return messages
    return [_sendable_message(message) for message in cast("Sequence[object]", messages)]


def _sendable_message(message: object) -> object:
    if isinstance(message, Message | InputMessage):
        return {"role": message.role, "content": _sendable_blocks(message.content)}
    if isinstance(message, Mapping) and "content" in message:
        given = cast("Mapping[str, object]", message)
        return {**given, "content": _sendable_blocks(given["content"])}
    return message  # pyright: ignore[reportUnknownVariableType]  # whatever it is, it goes back as it came


def _sendable_blocks(content: object) -> object:
    if isinstance(content, str | bytes) or not isinstance(content, Sequence):
        return content
    blocks = cast("Sequence[object]", content)
    return [as_input(block) if isinstance(block, KnownBlock) else block for block in blocks]
