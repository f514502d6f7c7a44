"""Inputs of a chat: messages, tools and optional parameters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeGuard, cast, runtime_checkable

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, map_items
from friendli_async._core.body.json_values import normalize, struct_to_dict
from friendli_async._core.resource import inference
from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField
from friendli_async.chat.replies import AnyMessage, ChatCompletion, ChatMessage
from friendli_async.errors import ArgumentError
from friendli_async.options import is_number
from friendli_async.replies import ToolCall

__all__: list[str] = ["AudioContent", "ImageContent", "Media", "SystemMessage", "TextContent", "UserMessage"]
__all__ += ["AnyContent", "AssistantMessage", "Conversation", "Function", "Message", "Messages", "Tool", "VideoContent"]
__all__ += ["ChatOptions", "GenerationOptions", "ParseOptions", "ParseRunOptions"]
__all__ += ["ParseStreamOptions", "RunOptions", "SamplingOptions", "ToolMessage"]


class Media(PydanticField, msgspec.Struct, frozen=True):
    """Location of an image, audio or video: an http(s) URL or a data URL."""

    url: str


class AnyContent(PydanticField, msgspec.Struct, frozen=True):
    """Base class of the content parts of a user message."""


class TextContent(AnyContent, frozen=True, tag_field="type", tag="text"):
    """A text part of a user message."""

    text: str


class ImageContent(AnyContent, frozen=True, tag_field="type", tag="image_url"):
    """An image part of a user message."""

    image_url: Media


class AudioContent(AnyContent, frozen=True, tag_field="type", tag="audio_url"):
    """An audio part of a user message."""

    audio_url: Media


class VideoContent(AnyContent, frozen=True, tag_field="type", tag="video_url"):
    """A video part of a user message."""

    video_url: Media


class _SentFunctionCall(msgspec.Struct):
    name: str
    arguments: str


class _SentToolCall(msgspec.Struct):
    id: str
    function: _SentFunctionCall
    type: Literal["function"]


if TYPE_CHECKING:
    _Parts = Sequence[AnyContent | Mapping[str, object]]
    _Calls = Sequence[ToolCall | Mapping[str, object]]
else:  # what msgspec validates after conversion to JSON types
    _Parts = list[TextContent | ImageContent | AudioContent | VideoContent]
    _Calls = list[_SentToolCall]


class SystemMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="system"):
    """A system message: instructions for the whole conversation."""

    content: str
    name: str | None = None


class UserMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="user"):
    """A user message: text, or a list of content parts."""

    content: str | _Parts
    name: str | None = None


class AssistantMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="assistant"):
    """An earlier message of the model. A reply's ``message`` and ``tool_calls`` are accepted as well."""

    content: str | None = None
    name: str | None = None
    tool_calls: _Calls | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @classmethod
    def _is_valid(cls, value: object) -> bool:
        return isinstance(value, cls | ChatMessage)


class ToolMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="tool"):
    """The result of a tool call."""

    content: str
    tool_call_id: str
    name: str | None = None


if TYPE_CHECKING:
    Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage | ChatMessage
else:  # a union tagged by role; a reply's message is converted to one of these
    Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Sequence[Message | AnyMessage | Mapping[str, object]]
"""A conversation: any mix of plain dicts, the structs above, and messages of earlier replies."""

Conversation = list[Message | Mapping[str, object]]
"""A mutable conversation, to append to."""


class Function(PydanticField, msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Tool(PydanticField, msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function offered to the model as a tool."""

    function: Function


@runtime_checkable
class LocalTool(Protocol):
    """A tool that ``chat.run`` can call: a function decorated with ``tool``, an MCP server's tool or your own class.

    If it has an attribute ``timeout``, in seconds, that replaces the ``tool_timeout`` of the run. None is no limit.
    """

    @property
    def name(self) -> str:
        """The name that the model sees: letters, digits, ``_`` and ``-``, at most 64."""
        ...

    @property
    def description(self) -> str | None:
        """The description that the model sees."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The JSON schema of the arguments, an object."""
        ...

    async def run(self, arguments: str) -> str:
        """Calls the tool.

        Args:
            arguments: The JSON text that the model wrote, possibly invalid; "" if it wrote none.

        Returns:
            The text to send to the model.

        Raises:
            ToolError: The model gets its message. Of any other exception it gets class and message.
        """
        ...


Decision = bool | Literal["defer"]
"""What ``before_tool`` returns: True runs the call, False refuses it, and "defer" leaves it to a later run."""

BeforeTool = Callable[[ToolCall], Decision | Awaitable[Decision]]
"""Decides on a tool call; called before each one that can run."""

BetweenTurns = Callable[[list[dict[str, Any]]], Messages | Awaitable[Messages]]
"""Returns the messages that the next turn of a run sends; called with a copy of the conversation so far, as dicts."""


class _NoTool(msgspec.Struct, tag_field="type", tag=""):
    """Makes the checked type a union, because msgspec requires a tag only in unions."""


class _NamedFunction(msgspec.Struct):
    name: str


class _NamedTool(msgspec.Struct):
    type: Literal["function"]
    function: _NamedFunction


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class JSONObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class _RegexFormat(msgspec.Struct, tag_field="type", tag="regex"):
    schema: str


class _Schema(msgspec.Struct):
    schema: dict[str, Any]


class _JSONSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: _Schema


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


@document_fields
class SamplingOptions(ExtraOptions, total=False):
    """Optional parameters of text generation: sampling, penalties and stop conditions."""

    eos_token: Sequence[int] | None
    """Token ids that end the generation."""
    frequency_penalty: float | None
    """Penalty on tokens by how often they have occurred; positive values avoid repetition."""
    max_tokens: int | None
    """Maximum number of tokens to generate."""
    min_p: float | None
    """Minimum probability of a token, relative to that of the likeliest token."""
    n: int | None
    """Number of choices to generate; for completions, per prompt."""
    presence_penalty: float | None
    """Penalty on tokens that have occurred at all."""
    repetition_penalty: float | None
    """Penalty on tokens that have occurred; 1.0 means no penalty."""
    seed: int | Sequence[int] | None
    """Sampling seed: one for all choices, or a list with one per choice."""
    stop: str | Sequence[str] | None
    """Stop sequences: strings that end the generation. A single string is sent as a list of one."""
    stream_options: Mapping[str, object] | None
    """``{"include_usage": bool}``; by default a stream requests usage."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    top_k: int | None
    """Sample only from the k likeliest tokens."""
    top_p: float | None
    """Sample only from the likeliest tokens whose probabilities add up to this (nucleus sampling)."""
    xtc_probability: float | None
    """Probability that the likeliest tokens are excluded (XTC sampling)."""
    xtc_threshold: float | None
    """Probability above which tokens count as the likeliest (XTC sampling)."""


@document_fields
class GenerationOptions(SamplingOptions, total=False):
    """Optional parameters of a chat, with or without built-in tools.

    Omitted ones are left to the server; None is sent as null.
    """

    chat_template_kwargs: Mapping[str, object] | None
    """Variables for the model's chat template."""
    include_reasoning: bool | None
    """Whether the reply includes the reasoning separated by ``parse_reasoning``."""
    logit_bias: Mapping[str, object] | None
    """Maps token ids to a bias that is added to the logit."""
    logprobs: bool | None
    """Whether to return log probabilities."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools at once."""
    parse_reasoning: bool | None
    """Whether the server separates reasoning from the answer."""
    reasoning_budget: int | None
    """Maximum number of reasoning tokens; 0 disables reasoning."""
    reasoning_effort: Literal["minimal", "low", "medium", "high", "xhigh", "max", "ultracode"] | str | None  # open
    """Reasoning effort. Most models reject "none"; to disable reasoning, set ``reasoning_budget=0``."""
    tool_choice: str | Mapping[str, object] | None
    """"none", "auto", "required", or ``{"type": "function", "function": {"name": ...}}``."""
    top_logprobs: int | None
    """Number of likeliest tokens to return at each position; requires ``logprobs``."""


@document_fields
class ChatOptions(GenerationOptions, total=False):
    """Optional parameters of a chat. Omitted ones are left to the server; None is sent as null."""

    min_tokens: int | None
    """Minimum number of tokens to generate. Not with ``tools`` or ``response_format`` (a server rule)."""
    response_format: Mapping[str, object] | None
    """``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema": {"schema": ...}}`` or
    ``{"type": "regex", "schema": ...}``. Not with ``tools`` (a server rule)."""
    tools: Sequence[Tool | Mapping[str, object] | LocalTool] | None
    """Functions that the model may call: definitions, or local tools (``@tool``), whose definitions are sent. The calls
    are yours to run; ``chat.run`` runs them."""


@document_fields
class ParseStreamOptions(GenerationOptions, total=False):
    """Optional parameters of a chat with structured output. ``n`` must be 1."""

    tools: Sequence[Tool | Mapping[str, object] | LocalTool] | None
    """Functions that the model may call: definitions, or local tools (``@tool``), whose definitions are sent. Calls
    instead of a value raise OutputInvalidError, which carries them. Friendli's API rejects tools beside the schema of a
    type; other servers may accept both."""
    strict: bool
    """Whether the schema has the strict form (the default); see ``json_schema``."""


@document_fields
class ParseOptions(ParseStreamOptions, total=False):
    """Optional parameters of ``parse``: those of ``parse_stream``, and ``reask``."""

    reask: int
    """Number of times to send an invalid answer back with the validation error and ask again; 0 by default.
    Each answer is billed. A truncated answer or a tool call is not retried."""


@document_fields
class RunOptions(GenerationOptions, total=False):
    """Optional parameters of a run with tools: those of a chat, applied to each turn, and the run's own."""

    max_turns: int
    """Maximum number of turns, 8 by default; beyond it the run raises ``TurnLimitError``."""
    concurrency: int
    """Maximum number of tools running at a time, 4 by default."""
    tool_timeout: float | None
    """Timeout of one tool call in seconds, 30 by default; None means no limit. It does not limit the run, nor the calls
    of a tool that has a ``timeout`` of its own."""
    max_tool_result: int | None
    """Maximum length of a tool's result in characters, 1,000,000 by default; None means no limit. A call with a longer
    result has failed, because a part of it might be taken for the whole. An error message that is longer, and has more
    than 2,000 characters, is truncated."""
    on_tool_error: Literal["feed", "raise"]
    """Whether a failed call is reported to the model ("feed", the default) or raises ``ToolError`` ("raise"). One that
    was refused is always reported."""
    before_tool: BeforeTool | None
    """Called with each tool call, one at a time; True approves it, False is reported to the model. May be async.
    ``ToolError(reason, kind="refused")`` refuses with a reason; other exceptions, and other values, end the run.
    "defer" does not run the call: once the other calls of the turn have finished, the run ends, with the deferred calls
    in ``RunResult.deferred``."""
    between_turns: BetweenTurns | None
    """Called before each turn but the first with a copy of the conversation so far; returns the messages that this turn
    sends instead, for example fewer. May be async. The ``messages`` of the run and its result stay whole. An exception
    ends the run."""
    decisions: Mapping[str, bool | str] | None
    """The decisions on calls that an earlier run has deferred, by the ids of the calls: True runs a call; False or a
    text refuses it, and the model is told the text. There must be one for each call without a result at the end of
    ``messages``, and none for another. ``before_tool`` is not called for these calls. None, the default, sends such
    calls without a result."""


@document_fields
class ParseRunOptions(RunOptions, total=False):
    """Optional parameters of a run that ends with a value: those of a run, and ``strict``."""

    strict: bool
    """Whether the schema of the value has the strict form (the default); see ``json_schema``."""


REQUIRED: Final[dict[str, Any]] = {"model": str, "messages": list[Message]}
CHECKS: Final[dict[str, Any]] = {"stream_options": _StreamOptions | None, "tool_choice": str | _NamedTool | None}
RESPONSE_FORMAT: Final[Any] = TextFormat | JSONObjectFormat | _RegexFormat | _JSONSchemaFormat | None
TOOLS: Final[Any] = list[Tool | _NoTool] | None


def to_request_message(message: object) -> object:
    """Converts a message struct to its request form. Anything else is returned unchanged and validated later."""
    if not isinstance(message, AnyMessage):
        return message
    return message.as_input() if isinstance(message, ChatMessage) else struct_to_dict(message)


def is_local_tool(tool: object) -> TypeGuard[LocalTool]:
    """Whether an object is a local tool; see ``LocalTool``."""
    return callable(getattr(tool, "run", None)) and isinstance(getattr(tool, "name", None), str)


def check_timeout(seconds: object, path: str) -> float | msgspec.UnsetType | None:
    """Checks the ``timeout`` of a tool, and returns it; UNSET if the tool has none.

    Raises:
        ArgumentError: It is neither None nor a number above 0.
    """
    if seconds is None or isinstance(seconds, msgspec.UnsetType) or (is_number(seconds) and seconds > 0):
        return seconds
    raise ArgumentError(f"Expected a number of seconds above 0, or None, got {seconds!r}", path)


def local_function(tool: object, schema: str = "parameters") -> dict[str, object] | None:
    """Returns the definition of a local tool (see ``LocalTool``), or None for anything else.

    ``schema`` is the name of the field for the JSON schema of the arguments.
    """
    if not is_local_tool(tool):
        return None
    definition: dict[str, object] = {"name": tool.name, schema: tool.parameters}
    return {**definition, "description": tool.description} if tool.description else definition


def to_request_tool(tool: object) -> object:
    """Converts a local tool to its request form. Anything else is returned unchanged and validated later."""
    function = local_function(tool)
    return tool if function is None else {"type": "function", "function": function}


def _to_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


STOP: Final = {"stop": _to_list}
"""The conversion of the option ``stop``: the server requires a list."""
CONVERTERS: Final[dict[str, Any]] = {
    **STOP,
    "messages": map_items(to_request_message),
    "tools": map_items(to_request_tool),
}
_CHAT_CHECKS: Final[dict[str, Any]] = {**CHECKS, "response_format": RESPONSE_FORMAT, "tools": TOOLS}
COMPLETE: Final = inference("chat.complete", "POST /v1/chat/completions", ChatCompletion)
PARAMETERS: Final = Parameters(ChatOptions, REQUIRED, _CHAT_CHECKS, CONVERTERS)


def extra_body_of(options: Mapping[str, object]) -> Mapping[str, Any]:
    """Returns the ``extra_body`` of a call; empty if there is none, or it is not valid, which is reported elsewhere."""
    extra = options.get("extra_body")
    return cast("Mapping[str, Any]", extra) if extra is not None and isinstance(extra, Mapping) else {}


def stream_fields(options: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields that a stream adds to the body; it requests usage unless ``stream_options`` is given."""
    if "stream_options" in options or "stream_options" in extra_body_of(options):
        return {"stream": True}
    return {"stream": True, "stream_options": {"include_usage": True}}


def requested_choices(options: Mapping[str, object]) -> int:
    """Returns the number of choices that a call requests."""
    n = normalize(extra_body_of(options).get("n", options.get("n")))
    return n if isinstance(n, int) else 1
