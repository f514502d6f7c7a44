"""What a response takes: messages, tool calls and their outputs, tools, and the optional parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, each, shallow
from friendli_async._core.resource import operation
from friendli_async._help import described
from friendli_async.responses.replies import AnyItem, ItemStatus, OutputItem, Response

__all__: list[str] = ["FunctionToolCall", "InputImage", "InputMessage", "InputText", "OutputText", "Refusal"]
__all__ += ["AnyContent", "AnyTool"]
__all__ += ["CustomToolCall", "CustomToolCallOutput", "FunctionToolCallOutput", "ReasoningText", "SummaryText"]
__all__ += ["CustomTool", "FunctionTool", "Input", "InputItem", "ReasoningItem", "ResponsesOptions"]
__all__ += ["GenerationOptions", "ParseOptions", "ParseStreamOptions"]


class AnyContent(msgspec.Struct, frozen=True):
    """What every part of a message, or of a tool's output, is."""


class InputText(AnyContent, frozen=True, tag_field="type", tag="input_text"):
    """Text, as one part of a message or of a tool's output."""

    text: str


class InputImage(AnyContent, frozen=True, tag_field="type", tag="input_image"):
    """An image, as one part of a message or of a tool's output: an http(s) URL or a data URL."""

    image_url: str


class OutputText(AnyContent, frozen=True, tag_field="type", tag="output_text"):
    """Text that a model wrote, as one part of a message."""

    text: str


class Refusal(AnyContent, frozen=True, tag_field="type", tag="refusal"):
    """Why a model would not answer, as one part of a message."""

    refusal: str


if TYPE_CHECKING:
    _Parts = Sequence[AnyContent | Mapping[str, object]]
    _Output = _Parts
else:  # what msgspec checks, once all of it is JSON
    _Parts = list[InputText | InputImage | OutputText | Refusal]
    _Output = list[InputText | InputImage]


class InputMessage(AnyItem, frozen=True, tag_field="type", tag="message"):
    """A message of the conversation. Dicts may leave its ``type`` out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | _Parts


class FunctionToolCall(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="function_call"):
    """A function call that a model asked for; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionToolCallOutput(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="function_call_output"):
    """What a function call gave."""

    call_id: str
    output: str | _Output
    id: str | None = None
    status: ItemStatus | None = None


class CustomToolCall(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool that a model asked for; ``input`` is free text."""

    call_id: str
    name: str
    input: str
    id: str | None = None


class CustomToolCallOutput(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call_output"):
    """What a call of a custom tool gave."""

    call_id: str
    output: str | _Output
    id: str | None = None


class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """A summary of reasoning."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """A text of reasoning."""

    text: str


class ReasoningItem(AnyItem, frozen=True, omit_defaults=True, tag_field="type", tag="reasoning"):
    """What a model thought before."""

    id: str
    summary: Sequence[SummaryText]
    content: Sequence[ReasoningText] | None = None
    status: ItemStatus | None = None


_Item = InputMessage | FunctionToolCall | FunctionToolCallOutput | CustomToolCall | CustomToolCallOutput | ReasoningItem
if TYPE_CHECKING:
    InputItem = _Item | OutputItem
else:  # what msgspec tells apart, by the type; an item of a reply is made into one of them
    InputItem = _Item
Input = str | Sequence[InputItem | AnyItem | Mapping[str, object]]
"""Text, or the conversation so far: plain dicts, the structs above, output of earlier responses, in any mixture."""


class AnyTool(msgspec.Struct, frozen=True):
    """What every tool is."""


class FunctionTool(AnyTool, frozen=True, omit_defaults=True, tag_field="type", tag="function"):
    """A function that the model may ask to be called; ``parameters`` is a JSON schema."""

    name: str
    parameters: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class CustomTool(AnyTool, frozen=True, omit_defaults=True, tag_field="type", tag="custom"):
    """A tool that is given free text."""

    name: str
    description: str | None = None


class _NamedFunction(msgspec.Struct, tag_field="type", tag="function"):
    name: str


class _NamedCustomTool(msgspec.Struct, tag_field="type", tag="custom"):
    name: str


class _TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class _JSONObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class _JSONSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _TextConfig(msgspec.Struct):
    format: _TextFormat | _JSONObjectFormat | _JSONSchemaFormat | None = None


class _ReasoningConfig(msgspec.Struct):
    # Open: "minimal", "low", "medium", "high", "xhigh", "max", "ultracode", and what comes later.
    effort: str | None = None


@described
class GenerationOptions(ExtraOptions, total=False):
    """Optional parameters of every response. What is left out is left to the server; None is sent as null."""

    instructions: str | None
    """Instructions that stand above the input."""
    max_output_tokens: int | None
    """The most tokens to generate, reasoning included; a response that reaches it is "incomplete"."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools at once."""
    reasoning: Mapping[str, object] | None
    """``{"effort": "minimal" | "low" | "medium" | "high" | "xhigh" | "max" | "ultracode"}``: how hard to think."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    tool_choice: Literal["none", "auto", "required"] | str | Mapping[str, object] | None  # open
    """"none", "auto", "required", or ``{"type": "function" | "custom", "name": ...}``."""
    tools: Sequence[AnyTool | Mapping[str, object]] | None
    """What the model may ask to be called: ``{"type": "function", "name": ..., "parameters": ...}`` or ``{"type":
    "custom", "name": ...}``."""
    top_p: float | None
    """Sample from the likeliest tokens that make up this probability only."""


@described
class ParseStreamOptions(GenerationOptions, total=False):
    """Optional parameters of a response whose text is a value. None is sent as null."""

    strict: bool
    """Whether the schema is in the strict form, as by default; see ``json_schema``."""


@described
class ParseOptions(ParseStreamOptions, total=False):
    """The same, for a response that comes in one piece."""

    reask: int
    """How often an answer that does not fit is sent back, with what is wrong about it, to be given anew; 0 by default.
    Each answer is billed. One that was cut off, and one that is a tool call, is not asked for again."""


@described
class ResponsesOptions(GenerationOptions, total=False):
    """Optional parameters of a response. What is left out is left to the server; None is sent as null."""

    text: Mapping[str, object] | None
    """``{"format": ...}``: ``{"type": "text" | "json_object"}``, or ``{"type": "json_schema", "name": ..., "schema":
    ...}``, with ``description`` and ``strict`` if need be."""


def _sendable_item(item: object) -> object:
    """An item as a request takes it, of a reply or not; what is none is left as it is, for the check to judge."""
    if isinstance(item, OutputItem):
        return item.as_input()
    if isinstance(item, AnyItem):
        return shallow(item)
    if not isinstance(item, Mapping):
        return item
    named = cast("Mapping[str, object]", item)
    # The one item whose type is customarily left out; the official SDK fills it in, too.
    return {**named, "type": "message"} if "role" in named and named.get("type") is None else named


CREATE: Final = operation("responses.create", "POST /v1/responses", Response, repeatable=True, billed=True)
PARAMETERS: Final = Parameters(
    ResponsesOptions,
    {"model": str, "input": str | list[InputItem]},
    {
        "reasoning": _ReasoningConfig | None,
        "text": _TextConfig | None,
        "tool_choice": str | _NamedFunction | _NamedCustomTool | None,
        "tools": list[FunctionTool | CustomTool] | None,
    },
    {"input": each(_sendable_item)},
)
