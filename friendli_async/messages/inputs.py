"""Parameters of the Messages API: conversations, tools and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Union, cast

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, map_items, tagged_structs
from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField
from friendli_async.chat.inputs import LocalTool, local_function
from friendli_async.messages.replies import (
    AnyBlock,
    AnyMessage,
    Message,
    TextBlock,
    block_as_input,
    reply_block_as_input,
)

__all__: list[str] = ["Base64Source", "ImageBlock", "InputMessage", "InputMessages", "Tool", "ToolResultBlock"]
__all__ += ["Conversation", "MessagesOptions", "URLSource"]


class Base64Source(PydanticField, msgspec.Struct, frozen=True, tag_field="type", tag="base64"):
    """An image as base64 text."""

    data: str
    media_type: str


class URLSource(PydanticField, msgspec.Struct, frozen=True, tag_field="type", tag="url"):
    """The URL of an image."""

    url: str


class ImageBlock(AnyBlock, frozen=True, tag_field="type", tag="image"):
    """An image block of a message."""

    source: Base64Source | URLSource


class ToolResultBlock(AnyBlock, frozen=True, omit_defaults=True, tag_field="type", tag="tool_result"):
    """The result of a tool call: text or blocks."""

    tool_use_id: str
    content: str | Sequence[Mapping[str, Any]] | None = None


# Stricter variants for validation: these fields are required in a request, and optional in a reply.
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
    """Makes the checked type a union with _Text, because msgspec requires a tag only in unions."""


_COMPATIBILITY_KINDS: Final = """
    document search_result redacted_thinking server_tool_use web_search_tool_result web_fetch_tool_result
    code_execution_tool_result bash_code_execution_tool_result text_editor_code_execution_tool_result
    tool_search_tool_result container_upload
"""
# The blocks that a request may contain. The wire format defines only the type of the compatibility blocks.
_BLOCK: Final[Any] = Union[
    (_Text, _Thinking, _ToolUse, ImageBlock, ToolResultBlock, *tagged_structs(_COMPATIBILITY_KINDS))
]


if TYPE_CHECKING:
    _Content = Sequence[AnyBlock | Mapping[str, Any]]
else:  # what msgspec decodes, with all keys of each block
    _Content = list[dict[str, Any]]


class InputMessage(AnyMessage, frozen=True):
    """A message of the user or the model: text or blocks (structs or dicts)."""

    role: Literal["user", "assistant"]
    content: str | _Content


class _CheckedMessage(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_BLOCK]  # pyright: ignore[reportInvalidTypeForm]  # built from a list


InputMessages = Sequence[InputMessage | Message | AnyMessage | Mapping[str, object]]
"""A conversation: any mix of dicts, ``InputMessage`` and earlier replies, also those that were saved as JSON."""

Conversation = list[InputMessage | Message | Mapping[str, object]]
"""A mutable conversation, to append to."""


class Tool(PydanticField, msgspec.Struct, frozen=True, omit_defaults=True):
    """A tool that the model may call; ``input_schema`` is a JSON schema."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None
    """Whether the arguments must conform to the schema."""


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _ThinkingConfig(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class _OutputFormat(msgspec.Struct):
    type: Literal["json_schema"] | None
    schema: dict[str, Any] | None = None


class _OutputConfig(msgspec.Struct):
    effort: Literal["minimal", "low", "medium", "high", "xhigh", "max", "ultracode"] | str | None = None  # open
    format: _OutputFormat | None = None


@document_fields
class MessagesOptions(ExtraOptions, total=False):
    """Optional parameters of a message. Omitted ones are left to the server; None is sent as null."""

    cache_control: Mapping[str, object] | None
    """How to cache the prompt."""
    container: Mapping[str, object] | None
    """The container that tools run in."""
    context_manager: Mapping[str, object] | None
    """How to shorten a conversation that grows too long."""
    inference_geo: Mapping[str, object] | None
    """Where in the world the model may run."""
    max_tokens: int | None
    """Maximum number of tokens to generate."""
    metadata: Mapping[str, object] | None
    """Metadata of the request, such as ``{"user_id": ...}``."""
    output_config: Mapping[str, object] | None
    """``{"effort": "minimal" | "low" | "medium" | "high" | "xhigh" | "max" | "ultracode", "format": {"type":
    "json_schema", "schema": {...}}}``."""
    service_tier: str | Mapping[str, object] | None
    """Priority of the request."""
    stop_sequences: Sequence[str] | None
    """Strings that stop the generation."""
    system: str | Sequence[TextBlock | Mapping[str, object]] | None
    """System prompt: text or text blocks."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    thinking: Mapping[str, object] | None
    """``{"type": "enabled" | "disabled" | "adaptive", "budget_tokens": int}``: whether and how long to think first."""
    tool_choice: Mapping[str, object] | None
    """``{"type": "auto" | "any" | "none"}`` or ``{"type": "tool", "name": ...}``, and ``"disable_parallel_tool_use":
    bool``."""
    tools: Sequence[Tool | Mapping[str, object] | LocalTool] | None
    """Tools that the model may call; or local tools (``@tool``), whose definitions are sent, and whose calls are yours
    to run."""
    top_k: int | None
    """Sample only from the k most likely tokens."""
    top_p: float | None
    """Nucleus sampling: sample only from the most likely tokens with this cumulative probability."""


_encode_blocks: Final = map_items(block_as_input)
_encode_reply_blocks: Final = map_items(reply_block_as_input)
_ONLY_IN_REPLIES: Final = frozenset(Message.__struct_fields__) - {"role", "content"}


def _encode_message(message: object) -> object:
    """Converts a message to its wire form. Any other value is returned as is, for validation to reject."""
    if isinstance(message, Message):
        return message.as_input()
    if isinstance(message, InputMessage):
        return {"role": message.role, "content": _encode_blocks(message.content)}
    if isinstance(message, Mapping) and "content" in message:
        fields = cast("Mapping[str, object]", message)
        if fields.get("type") == "message":  # a reply that was saved as JSON: messages of requests have no type
            fields = {name: value for name, value in fields.items() if name not in _ONLY_IN_REPLIES}
            return {**fields, "content": _encode_reply_blocks(fields["content"])}
        return {**fields, "content": _encode_blocks(fields["content"])}
    return message  # pyright: ignore[reportUnknownVariableType]  # any value, returned as is


PARAMETERS: Final = Parameters(
    MessagesOptions,
    {"model": str, "messages": list[_CheckedMessage]},
    {
        "output_config": _OutputConfig | None,
        "system": str | list[_Text | _NoText] | None,
        "thinking": _ThinkingConfig | None,
        "tool_choice": _ToolChoice | None,
        "tools": list[Tool] | None,
    },
    {
        "messages": map_items(_encode_message),
        "system": _encode_blocks,
        "tools": map_items(lambda tool: local_function(tool, "input_schema") or tool),
    },
)
