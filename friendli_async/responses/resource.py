"""Responses: a model answers an input of messages, tool calls and their outputs, in one piece or as a stream of events.

Wire: ``POST {deployment}/v1/responses``, the same for serverless, dedicated endpoints and containers; ``stream: true``
selects server-sent events. They have no sentinel: ``response.completed``, ``response.incomplete`` or
``response.failed`` is the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, cast

import msgspec

from friendli_async._core.assembly import AssembledStream
from friendli_async._core.body.arguments import Arguments, Parameters
from friendli_async._core.protocol import Operation
from friendli_async._core.text import TextView
from friendli_async.responses.collector import ResponseCollector
from friendli_async.responses.events import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    UnknownEvent,
)
from friendli_async.responses.replies import (
    ContentPart,
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputItem,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseStatus,
    ResponseUsage,
    response_failure,
    response_partial,
)

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "ContainerResponses",
    "ContentPart",
    "ContentPartAdded",
    "ContentPartDone",
    "CustomTool",
    "CustomToolCall",
    "CustomToolCallOutput",
    "FunctionCallArgumentsDelta",
    "FunctionCallArgumentsDone",
    "FunctionTool",
    "FunctionToolCall",
    "FunctionToolCallOutput",
    "IncompleteDetails",
    "Input",
    "InputImage",
    "InputItem",
    "InputMessage",
    "InputText",
    "InputTokensDetails",
    "ItemStatus",
    "OutputItem",
    "OutputItemAdded",
    "OutputItemDone",
    "OutputText",
    "OutputTextDelta",
    "OutputTextDone",
    "OutputTokensDetails",
    "ReasoningItem",
    "ReasoningText",
    "ReasoningTextDelta",
    "ReasoningTextDone",
    "Refusal",
    "Response",
    "ResponseCollector",
    "ResponseCompleted",
    "ResponseCreated",
    "ResponseError",
    "ResponseEvent",
    "ResponseFailed",
    "ResponseInProgress",
    "ResponseIncomplete",
    "ResponseStatus",
    "ResponseStream",
    "ResponseUsage",
    "Responses",
    "ResponsesOptions",
    "SummaryText",
    "UnknownEvent",
]

# --- what goes in ----------------------------------------------------------------------------------------------------


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    """Text, as one part of a message or of a tool's output."""

    text: str


class InputImage(msgspec.Struct, frozen=True, tag_field="type", tag="input_image"):
    """An image, as one part of a message or of a tool's output: an http(s) URL or a data URL."""

    image_url: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Text that a model wrote, as one part of a message."""

    text: str


class Refusal(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """Why a model would not answer, as one part of a message."""

    refusal: str


class InputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A message of the conversation. Dicts may leave its ``type`` out."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText | InputImage | OutputText | Refusal]


class FunctionToolCall(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="function_call"):
    """A function call that a model asked for; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class FunctionToolCallOutput(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="function_call_output"
):
    """What a function call gave."""

    call_id: str
    output: str | list[InputText | InputImage]
    id: str | None = None
    status: ItemStatus | None = None


class CustomToolCall(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool that a model asked for; ``input`` is free text."""

    call_id: str
    name: str
    input: str
    id: str | None = None


class CustomToolCallOutput(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="custom_tool_call_output"
):
    """What a call of a custom tool gave."""

    call_id: str
    output: str | list[InputText | InputImage]
    id: str | None = None


class SummaryText(msgspec.Struct, frozen=True, tag_field="type", tag="summary_text"):
    """A summary of reasoning."""

    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    """A text of reasoning."""

    text: str


class ReasoningItem(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="reasoning"):
    """What a model thought before."""

    id: str
    summary: list[SummaryText]
    content: list[ReasoningText] | None = None
    status: ItemStatus | None = None


InputItem = (
    InputMessage | FunctionToolCall | FunctionToolCallOutput | CustomToolCall | CustomToolCallOutput | ReasoningItem
)
Input = str | Sequence[InputItem | OutputItem | Mapping[str, object]]
"""Text, or the conversation so far: plain dicts, the structs above, output of earlier responses, in any mixture."""


class FunctionTool(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="function"):
    """A function that the model may ask to be called; ``parameters`` is a JSON schema."""

    name: str
    parameters: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class CustomTool(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="custom"):
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


class ResponsesOptions(TypedDict, total=False):
    """Optional parameters of a response. What is left out is left to the server; None is sent as null."""

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
    text: Mapping[str, object] | None
    """``{"format": ...}``: ``{"type": "text" | "json_object"}``, or ``{"type": "json_schema", "name": ..., "schema":
    ...}``, with ``description`` and ``strict`` if need be."""
    tool_choice: Literal["none", "auto", "required"] | str | Mapping[str, object] | None  # open
    """"none", "auto", "required", or ``{"type": "function" | "custom", "name": ...}``."""
    tools: Sequence[FunctionTool | CustomTool | Mapping[str, object]] | None
    """What the model may ask to be called: ``{"type": "function", "name": ..., "parameters": ...}`` or ``{"type":
    "custom", "name": ...}``."""
    top_p: float | None
    """Sample from the likeliest tokens that make up this probability only."""
    extra_body: Mapping[str, object]
    """Further keys of the body, as they are; they win over the parameters."""
    extra_query: Mapping[str, object]
    """Query parameters."""


_PARAMETERS: Final = Parameters(
    ResponsesOptions,
    {"model": str, "input": str | list[InputItem]},
    {
        "reasoning": _ReasoningConfig | None,
        "text": _TextConfig | None,
        "tool_choice": str | _NamedFunction | _NamedCustomTool | None,
        "tools": list[FunctionTool | CustomTool] | None,
    },
)
_CREATE: Final = Operation(
    method="POST",
    path="/v1/responses",
    reply=msgspec.json.Decoder(Response),
    repeatable=True,
    billed=True,
)


def _sendable(given: object) -> object:
    """Input with the items of replies made into what a request takes; the rest as it is, for the check to judge."""
    if isinstance(given, str | bytes) or not isinstance(given, Sequence):
        return given
    return [_sendable_item(item) for item in cast("Sequence[object]", given)]


def _sendable_item(item: object) -> object:
    if isinstance(item, OutputItem):
        return item.as_input()
    if not isinstance(item, Mapping):
        return item
    named = cast("Mapping[str, object]", item)
    # The one item whose type is customarily left out; the official SDK fills it in, too.
    return {**named, "type": "message"} if "role" in named and named.get("type") is None else named


# --- streams ---------------------------------------------------------------------------------------------------------


class ResponseStream(AssembledStream[ResponseEvent, Response, ResponseUsage]):
    """The stream of a response: typed events, and ``UnknownEvent`` for kinds that come later.

    ``response.completed`` and ``response.incomplete`` are good ends; ``response.failed`` is raised, as the error class
    that its code names.
    """

    def text(self) -> TextView:
        """The text of the response, piece by piece, never ""."""
        return TextView(self, lambda event: event.delta if isinstance(event, OutputTextDelta) else "")

    def reasoning(self) -> TextView:
        """The reasoning text of the response, piece by piece, never ""."""
        return TextView(self, lambda event: event.delta if isinstance(event, ReasoningTextDelta) else "")


# --- the resource ----------------------------------------------------------------------------------------------------


class Responses:
    """Responses of a model: ``client.serverless.responses``, ``client.dedicated.responses``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def create(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response and returns it whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The response: ``text``, ``reasoning``, ``tool_calls``, ``output``, ``status``, ``usage``, ``meta``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            APIStatusError: The server refused, or the response failed: then ``partial`` is what there is of it.
            FriendliError: What else went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._create({"model": model, "input": input}, options)

    def stream(self, *, model: str, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it. The call is made when the stream is first used.

        Args:
            model: As for ``create``.
            input: Text, or the conversation so far.
            options: See ``ResponsesOptions``.

        Returns:
            The stream: use it with ``async with`` or ``async for``, or await its ``result()``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path.
        """
        return self._stream({"model": model, "input": input}, options)

    async def _create(self, required: dict[str, object], options: Mapping[str, object]) -> Response:
        response = await self._engine.call(_CREATE, _arguments("create", required, options, {}))
        if response.status == "failed":
            meta = response.meta
            error = response_failure(response, meta.status or 200, meta.headers)
            error.meta, error.partial = meta, response_partial(response)
            raise error
        return response

    def _stream(self, required: dict[str, object], options: Mapping[str, object]) -> ResponseStream:
        arguments = _arguments("stream", required, options, {"stream": True})
        return ResponseStream(self._engine.opening(_CREATE, arguments, ResponseCollector))


def _arguments(
    method: str, required: dict[str, object], options: Mapping[str, object], fixed: dict[str, object]
) -> Arguments:
    required["input"] = _sendable(required["input"])
    return _PARAMETERS.encode(method, required, options, fixed)


class ContainerResponses(Responses):
    """Responses of a self-hosted engine, which has its model: ``client.container.responses``."""

    async def create(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> Response:
        """Generates a response and returns it whole; see ``Responses.create``. ``model`` names an adapter's route."""
        return await self._create(_required(model, input), options)

    def stream(self, *, model: str | None = None, input: Input, **options: Unpack[ResponsesOptions]) -> ResponseStream:
        """Generates a response and streams it; see ``Responses.stream``. ``model`` names an adapter's route."""
        return self._stream(_required(model, input), options)


def _required(model: str | None, input: Input) -> dict[str, object]:
    # Left out rather than null: engines that serve one model take no model for it.
    return {"input": input} if model is None else {"model": model, "input": input}
