"""What a message takes: conversations, tools, and the optional parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Union, cast

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, each
from friendli_async._help import described
from friendli_async.messages.replies import AnyBlock, AnyMessage, KnownBlock, Message, TextBlock, as_input

__all__: list[str] = ["Base64Source", "ImageBlock", "InputMessage", "InputMessages", "Tool", "ToolResultBlock"]
__all__ += ["MessagesOptions", "URLSource"]


class Base64Source(msgspec.Struct, frozen=True, tag_field="type", tag="base64"):
    """An image itself, as base64 text."""

    data: str
    media_type: str


class URLSource(msgspec.Struct, frozen=True, tag_field="type", tag="url"):
    """Where an image is."""

    url: str


class ImageBlock(AnyBlock, frozen=True, tag_field="type", tag="image"):
    """An image, as one part of a message."""

    source: Base64Source | URLSource


class ToolResultBlock(AnyBlock, frozen=True, omit_defaults=True, tag_field="type", tag="tool_result"):
    """What the call of a tool gave: text, or blocks."""

    tool_use_id: str
    content: str | Sequence[Mapping[str, Any]] | None = None


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


_COMPATIBILITY_KINDS: Final = [
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
    msgspec.defstruct("CompatibilityBlock", [], tag_field="type", tag=kind) for kind in _COMPATIBILITY_KINDS
]
# What a block may be, by its type; of those that are there for compatibility the wire describes nothing else.
_BLOCK: Final[Any] = Union[(_Text, _Thinking, _ToolUse, ImageBlock, ToolResultBlock, *_COMPATIBILITY)]


class InputMessage(AnyMessage, frozen=True):
    """What the user or the model said: text, or blocks (structs or dicts)."""

    role: Literal["user", "assistant"]
    content: str | Sequence[AnyBlock | Mapping[str, Any]]


class _CheckedMessage(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_BLOCK]  # pyright: ignore[reportInvalidTypeForm]  # made from a list


InputMessages = Sequence[InputMessage | Message | AnyMessage | Mapping[str, object]]
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


@described
class MessagesOptions(ExtraOptions, total=False):
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


_sendable_blocks: Final = each(lambda block: as_input(block) if isinstance(block, KnownBlock) else block)


def _sendable(message: object) -> object:
    """A message as a request takes it, of a reply or not; what is none is left as it is, for the check to judge."""
    if isinstance(message, Message | InputMessage):
        return {"role": message.role, "content": _sendable_blocks(message.content)}
    if isinstance(message, Mapping) and "content" in message:
        given = cast("Mapping[str, object]", message)
        return {**given, "content": _sendable_blocks(given["content"])}
    return message  # pyright: ignore[reportUnknownVariableType]  # whatever it is, it goes back as it came


PARAMETERS: Final = Parameters(
    MessagesOptions,
    {"model": str, "messages": list[_CheckedMessage]},
    {
        "output_config": _OutputConfig | None,
        "system": str | list[_Text | _NoText] | None,
        "thinking": _Thinks | None,
        "tool_choice": _ToolChoice | None,
        "tools": list[Tool] | None,
    },
    {"messages": each(_sendable), "system": _sendable_blocks},
)
