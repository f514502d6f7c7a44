"""What a chat takes: messages, tools, and the optional parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from friendli_async._core.body.arguments import ExtraOptions, Parameters, each, shallow
from friendli_async._core.resource import operation
from friendli_async._help import described
from friendli_async.chat.replies import AnyMessage, ChatCompletion, ChatMessage

if TYPE_CHECKING:
    from friendli_async.chat.tool_loop import BeforeTool
    from friendli_async.replies import ToolCall

__all__: list[str] = ["AudioContent", "ImageContent", "Media", "SystemMessage", "TextContent", "UserMessage"]
__all__ += ["AnyContent"]
__all__ += ["AssistantMessage", "Conversation", "Function", "Message", "Messages", "Tool", "VideoContent"]
__all__ += ["ChatOptions", "GenerationOptions", "ParseOptions", "ParseStreamOptions", "RunOptions"]
__all__ += ["SamplingOptions", "ToolMessage"]


class Media(msgspec.Struct, frozen=True):
    """Where an image, a sound or a film is: an http(s) URL or a data URL."""

    url: str


class AnyContent(msgspec.Struct, frozen=True):
    """What every part of a user's message is."""


class TextContent(AnyContent, frozen=True, tag_field="type", tag="text"):
    """Text, as one part of a user's message."""

    text: str


class ImageContent(AnyContent, frozen=True, tag_field="type", tag="image_url"):
    """An image, as one part of a user's message."""

    image_url: Media


class AudioContent(AnyContent, frozen=True, tag_field="type", tag="audio_url"):
    """A sound, as one part of a user's message."""

    audio_url: Media


class VideoContent(AnyContent, frozen=True, tag_field="type", tag="video_url"):
    """A film, as one part of a user's message."""

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
else:  # what msgspec checks, once all of it is JSON
    _Parts = list[TextContent | ImageContent | AudioContent | VideoContent]
    _Calls = list[_SentToolCall]


class SystemMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="system"):
    """Instructions that stand above the conversation."""

    content: str
    name: str | None = None


class UserMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="user"):
    """What the user says: text, or parts of several kinds."""

    content: str | _Parts
    name: str | None = None


class AssistantMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="assistant"):
    """What a model said before. A reply's ``message`` serves as well, and so do its ``tool_calls``."""

    content: str | None = None
    name: str | None = None
    tool_calls: _Calls | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ToolMessage(AnyMessage, frozen=True, omit_defaults=True, tag_field="role", tag="tool"):
    """What a tool call gave."""

    content: str
    tool_call_id: str
    name: str | None = None


if TYPE_CHECKING:
    Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage | ChatMessage
else:  # what msgspec tells apart, by the role; a reply's message is made into one of them
    Message = SystemMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Sequence[Message | AnyMessage | Mapping[str, object]]
"""A conversation: plain dicts, the structs above, messages of earlier replies, in any mixture."""

Conversation = list[Message | Mapping[str, object]]
"""The same to append to."""


class Function(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may ask to be called; ``parameters`` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class Tool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function, offered as a tool."""

    function: Function


class _NoTool(msgspec.Struct, tag_field="type", tag=""):
    """Stands beside Tool in the check: where there is more than one, msgspec insists on the type."""


class _NamedFunction(msgspec.Struct):
    name: str


class _NamedTool(msgspec.Struct):
    type: Literal["function"]
    function: _NamedFunction


class _TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    pass


class _JSONObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    pass


class _RegexFormat(msgspec.Struct, tag_field="type", tag="regex"):
    schema: str


class _Schema(msgspec.Struct):
    schema: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class _JSONSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    json_schema: _Schema


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


@described
class SamplingOptions(ExtraOptions, total=False):
    """Optional parameters of a model that writes text: how its tokens are chosen, and where it ends."""

    eos_token: Sequence[int] | None
    """Token ids that end the generation."""
    frequency_penalty: float | None
    """Penalty on tokens by how often they have occurred; positive values avoid repetition."""
    max_tokens: int | None
    """The most tokens to generate."""
    min_p: float | None
    """Least probability of a token, relative to the likeliest one's."""
    n: int | None
    """How many choices to generate; of a completion, for each prompt."""
    presence_penalty: float | None
    """Penalty on tokens that have occurred at all."""
    repetition_penalty: float | None
    """Penalty on tokens that have occurred; 1.0 is none."""
    seed: int | Sequence[int] | None
    """Seed of the sampling, one for all choices or one each."""
    stop: Sequence[str] | None
    """Texts that end the generation."""
    stream_options: Mapping[str, object] | None
    """``{"include_usage": bool}``; a stream asks for its usage unless this is given."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    top_k: int | None
    """Sample from the k likeliest tokens only."""
    top_p: float | None
    """Sample from the likeliest tokens that make up this probability only."""
    xtc_probability: float | None
    """Probability that the likeliest tokens are cut off (XTC sampling)."""
    xtc_threshold: float | None
    """Probability above which tokens count as the likeliest (XTC sampling)."""


@described
class GenerationOptions(SamplingOptions, total=False):
    """Optional parameters of a chat, with or without built-in tools.

    What is left out is left to the server; None is sent as null.
    """

    chat_template_kwargs: Mapping[str, object] | None
    """Variables for the model's chat template."""
    include_reasoning: bool | None
    """Whether the reply shows the reasoning that ``parse_reasoning`` separated."""
    logit_bias: Mapping[str, object] | None
    """Token id to a number that is added to its logit."""
    logprobs: bool | None
    """Whether to return log probabilities."""
    parallel_tool_calls: bool | None
    """Whether the model may call several tools at once."""
    parse_reasoning: bool | None
    """Whether the server separates reasoning from the answer."""
    reasoning_budget: int | None
    """The most tokens to spend on reasoning; 0 switches it off."""
    reasoning_effort: Literal["minimal", "low", "medium", "high", "xhigh", "max", "ultracode"] | str | None  # open
    """How hard to think. Most models refuse "none": ``reasoning_budget=0`` is what switches reasoning off."""
    tool_choice: str | Mapping[str, object] | None
    """"none", "auto", "required", or ``{"type": "function", "function": {"name": ...}}``."""
    top_logprobs: int | None
    """How many of the likeliest tokens to return at each position; needs ``logprobs``."""


@described
class ChatOptions(GenerationOptions, total=False):
    """Optional parameters of a chat. What is left out is left to the server; None is sent as null."""

    min_tokens: int | None
    """The fewest tokens to generate. Not together with ``tools`` or ``response_format`` (the server's rule)."""
    response_format: Mapping[str, object] | None
    """``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema": {"schema": ...}}`` or
    ``{"type": "regex", "schema": ...}``."""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Functions that the model may ask to be called."""


@described
class ParseStreamOptions(GenerationOptions, total=False):
    """Optional parameters of a chat whose answer is a value. ``n`` is 1: one answer is read."""

    tools: Sequence[Tool | Mapping[str, object]] | None
    """Functions that the model may ask to be called; then there is no value, but an OutputInvalidError with them."""
    strict: bool
    """Whether the schema is in the strict form, as by default; see ``json_schema``."""


@described
class ParseOptions(ParseStreamOptions, total=False):
    """The same, for a chat that answers in one piece."""

    reask: int
    """How often an answer that does not fit is sent back, with what is wrong about it, to be given anew; 0 by default.
    Each answer is billed. One that was cut off, and one that is a tool call, is not asked for again."""


@described
class RunOptions(GenerationOptions, total=False):
    """Optional parameters of a run with tools: those of a chat, for each turn, and its own."""

    response_format: Mapping[str, object] | None
    """As in a chat; of each turn."""
    max_turns: int
    """How often the model may answer, 8 by default; beyond, ``TurnLimitError``."""
    concurrency: int
    """How many tools may run at a time, 4 by default."""
    tool_timeout: float | None
    """Seconds that one call of a tool may take, 30 by default; None is no limit."""
    on_tool_error: Literal["feed", "raise"]
    """Whether the model is told what went wrong with a call ("feed", the default), or the run raises ``ToolError``."""
    before_tool: BeforeTool | None
    """Is asked with each call, one at a time: True lets it happen, of False the model is told. It may be async."""


REQUIRED: Final[dict[str, Any]] = {"model": str, "messages": list[Message]}
CHECKS: Final[dict[str, Any]] = {"stream_options": _StreamOptions | None, "tool_choice": str | _NamedTool | None}
RESPONSE_FORMAT: Final[Any] = _TextFormat | _JSONObjectFormat | _RegexFormat | _JSONSchemaFormat | None
TOOLS: Final[Any] = list[Tool | _NoTool] | None


def _sendable_message(message: object) -> object:
    """A message as a request takes it, of a reply or not; what is none is left as it is, for the check to judge."""
    if isinstance(message, ChatMessage):
        return message.as_input()
    return shallow(message) if isinstance(message, AnyMessage) else message


SENT: Final = {"messages": each(_sendable_message)}
_CHAT_CHECKS: Final[dict[str, Any]] = {**CHECKS, "response_format": RESPONSE_FORMAT, "tools": TOOLS}
COMPLETE: Final = operation("chat.complete", "POST /v1/chat/completions", ChatCompletion, repeatable=True, billed=True)
PARAMETERS: Final = Parameters(ChatOptions, REQUIRED, _CHAT_CHECKS, SENT)


def stream_fields(options: Mapping[str, object]) -> dict[str, object]:
    """What a stream sends by itself: that it is one, and that it wants its usage (unless the caller has said)."""
    extra: Any = options.get("extra_body") or {}
    if "stream_options" in options or "stream_options" in extra:
        return {"stream": True}
    return {"stream": True, "stream_options": {"include_usage": True}}


def choices_wanted(options: Mapping[str, object]) -> int:
    """How many choices a call asks for."""
    extra: Any = options.get("extra_body") or {}
    n = extra.get("n", options.get("n"))
    return n if isinstance(n, int) else 1
