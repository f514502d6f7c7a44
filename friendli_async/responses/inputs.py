"""Parameters of the Responses API: messages, tool calls and their outputs, tools, and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Union, cast

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, map_items, tagged_structs
from friendli_async._core.body.json_values import AsSent, struct_to_dict
from friendli_async._core.resource import inference
from friendli_async._help import document_fields
from friendli_async._json import as_object
from friendli_async._pydantic import PydanticField
from friendli_async.chat.inputs import JSONObjectFormat, LocalTool, TextFormat, local_function
from friendli_async.responses.replies import AnyItem, ItemStatus, OutputItem, Response, failure_of, holds_item

__all__: list[str] = ["FunctionToolCall", "InputImage", "InputMessage", "InputText", "OutputText", "Refusal"]
__all__ += ["AnyContent", "AnyTool", "Conversation"]
__all__ += ["CustomToolCall", "CustomToolCallOutput", "FunctionToolCallOutput", "ReasoningText", "SummaryText"]
__all__ += ["CustomTool", "FunctionTool", "Input", "InputItem", "ReasoningItem", "ResponsesOptions"]
__all__ += ["GenerationOptions", "ParseOptions", "ParseStreamOptions"]


class AnyContent(PydanticField, msgspec.Struct, frozen=True):
    """Base class of the parts of a message or of a tool's output."""


class InputText(AnyContent, frozen=True, tag_field="type", tag="input_text"):
    """A text part of a message or of a tool's output."""

    text: str


class InputImage(AnyContent, frozen=True, tag_field="type", tag="input_image"):
    """An image part of a message or of a tool's output: an http(s) URL or a data URL."""

    image_url: str


class OutputText(AnyContent, frozen=True, tag_field="type", tag="output_text"):
    """A text part that a model generated."""

    text: str


class Refusal(AnyContent, frozen=True, tag_field="type", tag="refusal"):
    """A model's refusal to answer, as a part of a message."""

    refusal: str


if TYPE_CHECKING:
    _Parts = Sequence[AnyContent | Mapping[str, object]]
    _Output = _Parts
else:  # what msgspec validates, after conversion to plain JSON
    _Parts = list[InputText | InputImage | OutputText | Refusal]
    _Output = list[InputText | InputImage]


class InputMessage(AnyItem, frozen=True, tag_field="type", tag="message"):
    """A message of the conversation. Dicts may omit its ``type``."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts

    @classmethod
    def _is_valid(cls, value: object) -> bool:
        return isinstance(value, cls | OutputItem)

    @classmethod
    def _check_tag(cls, value: object) -> None:
        """Does nothing: its other fields tell it from all other items."""


class FunctionToolCall(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="function_call"):
    """A function call requested by a model; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionToolCallOutput(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="function_call_output"):
    """The output of a function call."""

    call_id: str
    output: str | _Output
    id: str | None = None
    status: ItemStatus | None = None


class CustomToolCall(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call"):
    """A custom tool call requested by a model; ``input`` is free text."""

    call_id: str
    name: str
    input: str
    id: str | None = None


class CustomToolCallOutput(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call_output"):
    """The output of a custom tool call."""

    call_id: str
    output: str | _Output
    id: str | None = None


class SummaryText(PydanticField, msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """A summary of reasoning."""

    text: str


class ReasoningText(PydanticField, msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """Reasoning text."""

    text: str


class ReasoningItem(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="reasoning"):
    """Reasoning of an earlier response."""

    id: str
    summary: Sequence[SummaryText]
    content: Sequence[ReasoningText] | None = None
    status: ItemStatus | None = None
    encrypted_content: str | None = None


_Item = InputMessage | FunctionToolCall | FunctionToolCallOutput | CustomToolCall | CustomToolCallOutput | ReasoningItem
if TYPE_CHECKING:
    InputItem = _Item | OutputItem
else:  # msgspec's union, tagged by type; items of replies are converted to its members
    InputItem = _Item
_COMPATIBILITY_KINDS: Final = """
    additional_tools apply_patch_call apply_patch_call_output code_interpreter_call compaction compaction_trigger
    computer_call computer_call_output file_search_call image_generation_call item_reference local_shell_call
    local_shell_call_output mcp_approval_request mcp_approval_response mcp_call mcp_list_tools program program_output
    shell_call shell_call_output tool_search_call tool_search_output web_search_call
"""
# The items that a request may contain. Those of OpenAI's other tools go back to a server that has sent them.
_CHECKED_ITEM: Final[Any] = Union[(InputItem, *tagged_structs(_COMPATIBILITY_KINDS))]
Input = str | Sequence[InputItem | AnyItem | Mapping[str, object]]
"""Text, or the conversation so far: any mix of dicts, the structs above and output of earlier responses."""

Conversation = list[InputItem | Mapping[str, object]]
"""A mutable conversation, to append to."""


class AnyTool(PydanticField, msgspec.Struct, frozen=True):
    """Base class of tools."""


class FunctionTool(AnyTool, frozen=True, omit_defaults=True, tag_field="type", tag="function"):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    parameters: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class CustomTool(AnyTool, frozen=True, omit_defaults=True, tag_field="type", tag="custom"):
    """A tool whose input is free text."""

    name: str
    description: str | None = None


class _NamedTool(msgspec.Struct):
    type: Literal["function", "custom"]
    name: str


class _JSONSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _TextConfig(msgspec.Struct):
    format: TextFormat | JSONObjectFormat | _JSONSchemaFormat | None = None


class _ReasoningConfig(msgspec.Struct):
    # Open: "minimal", "low", "medium", "high", "xhigh", "max", "ultracode", and future values.
    effort: str | None = None


@document_fields
class GenerationOptions(ExtraOptions, total=False):
    """Optional parameters of every response. Omitted ones are left to the server; None is sent as null."""

    instructions: str | None
    """System prompt, placed before the input."""
    max_output_tokens: int | None
    """Maximum number of tokens to generate, including reasoning; a response that reaches it is "incomplete"."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools in parallel."""
    reasoning: Mapping[str, object] | None
    """``{"effort": "minimal" | "low" | "medium" | "high" | "xhigh" | "max" | "ultracode"}``: how hard to think."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    tool_choice: Literal["none", "auto", "required"] | str | Mapping[str, object] | None  # open
    """"none", "auto", "required", or ``{"type": "function" | "custom", "name": ...}``."""
    tools: Sequence[AnyTool | Mapping[str, object] | LocalTool] | None
    """Tools that the model may call: ``{"type": "function", "name": ..., "parameters": ...}`` or ``{"type":
    "custom", "name": ...}``; or local tools (``@tool``), whose definitions are sent, and whose calls are yours to
    run."""
    top_p: float | None
    """Nucleus sampling: sample only from the most likely tokens with this cumulative probability."""


@document_fields
class ParseStreamOptions(GenerationOptions, total=False):
    """Optional parameters of ``parse_stream``. None is sent as null."""

    strict: bool
    """Whether to use the strict form of the schema; default True. See ``json_schema``."""


@document_fields
class ParseOptions(ParseStreamOptions, total=False):
    """Optional parameters of ``parse``. None is sent as null."""

    reask: int
    """How many times to ask again, with the validation error, if the answer does not match the type; default 0. Each
    answer is billed. A truncated answer, a refusal or a tool call is not asked for again."""


@document_fields
class ResponsesOptions(GenerationOptions, total=False):
    """Optional parameters of a response. Omitted ones are left to the server; None is sent as null."""

    text: Mapping[str, object] | None
    """``{"format": ...}``: ``{"type": "text" | "json_object"}``, or ``{"type": "json_schema", "name": ..., "schema":
    ...}``, optionally with ``description`` and ``strict``."""


def _encode_item(item: object) -> object:
    """Converts an item to its wire form. Any other value is returned as is, for validation to reject."""
    if isinstance(item, OutputItem):
        return item.as_input()
    if isinstance(item, AnyItem):
        return struct_to_dict(item)
    if not isinstance(item, Mapping):
        return item
    fields = cast("Mapping[str, object]", item)
    if holds_item(fields):  # an item of a reply that was saved as JSON
        return AsSent(as_object(fields["data"]))
    # Messages customarily omit their type; the official SDK fills it in, too.
    return {**fields, "type": "message"} if "role" in fields and fields.get("type") is None else fields


def _encode_tool(tool: object) -> object:
    """Converts a local tool to its wire form. Any other value is returned as is, for validation to reject."""
    function = local_function(tool)
    return tool if function is None else {"type": "function", **function}


CREATE: Final = inference("responses.create", "POST /v1/responses", Response, failure_of)
PARAMETERS: Final = Parameters(
    ResponsesOptions,
    {"model": str, "input": str | list[_CHECKED_ITEM]},
    {
        "reasoning": _ReasoningConfig | None,
        "text": _TextConfig | None,
        "tool_choice": str | _NamedTool | None,
        "tools": list[FunctionTool | CustomTool] | None,
    },
    {"input": map_items(_encode_item), "tools": map_items(_encode_tool)},
)
