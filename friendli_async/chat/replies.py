"""Replies of a chat: completions, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, Literal

import msgspec

from friendli_async._hints import Explained
from friendli_async._pydantic import PydanticField
from friendli_async.replies import Reply, ToolCall, Usage, Value, always_encoded, given_fields

__all__: list[str] = ["ChatChoice", "ChatCompletion", "ChatMessage", "FinishReason", "Logprobs", "TokenLogprob"]
__all__ += ["AnyMessage"]
__all__ += ["ChatChunk", "ChunkChoice", "ChunkDelta", "FunctionCallDelta", "ToolCallDelta", "TopLogprob"]

FinishReason = Literal["stop", "length", "tool_calls"] | str  # open: new reasons must not break old clients


class TopLogprob(Value, frozen=True):
    """One of the likeliest tokens at a position."""

    token: str = ""
    logprob: float | None = None
    bytes: tuple[int, ...] | None = None


class TokenLogprob(Value, frozen=True):
    """The token at a position, its log probability, and the likeliest tokens there."""

    token: str = ""
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] | None = None
    bytes: tuple[int, ...] | None = None


class Logprobs(Value, frozen=True):
    """Log probabilities of a choice's tokens."""

    content: tuple[TokenLogprob, ...] | None = None
    refusal: tuple[TokenLogprob, ...] | None = None


REASONING_EXTRAS: Final = ("reasoning_details", "thinking_blocks")
"""The fields of a message that go back with it unread: signatures, and reasoning that only the model can read."""


class AnyMessage(PydanticField, msgspec.Struct, frozen=True):
    """Base class of all messages, so that type checkers accept a list of mixed messages as a conversation."""


class ChatMessage(Explained, Value, AnyMessage, frozen=True):
    """A model's message. It can be passed back as is in the ``messages`` of the next call."""

    role: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    reasoning_content: str | None = None
    """Reasoning text, if the server uses this field name."""
    reasoning: str | None = None
    """Reasoning text, if the server uses this field name."""
    reasoning_details: tuple[dict[str, Any], ...] | None = None
    """Reasoning as structured objects, if the server sends them. Some models require them back with the message."""
    refusal: str | None = None
    """The model's refusal, if the server sends it separately from ``content``."""
    function_call: None = None  # any other value fails to decode, so that the lenient fallback moves it
    """Always None: the call of an older server is in ``tool_calls``, with the id ""."""
    thinking_blocks: tuple[dict[str, Any], ...] | None = None
    """Reasoning with signatures, if the server sends it, which some models require back with the message."""
    annotations: tuple[dict[str, Any], ...] | None = None
    """The sources of the text, if the server sends them."""
    images: tuple[dict[str, Any], ...] | None = None
    """Images that the model made, as gateways send them. A request has no field for them."""
    audio: dict[str, Any] | None = None
    """Speech of the model, if the server sends it: ``data`` in base64, and its ``transcript``."""

    def as_input(self) -> dict[str, object]:
        """Returns the message in its request form, with fields that a reply may omit but a request must have."""
        content = self.content
        if self.refusal:  # a request has no field for it
            content = f"{content}\n\n{self.refusal}" if content else self.refusal
        message: dict[str, object] = {"role": self.role or "assistant", "content": content}
        message |= given_fields(self, ("reasoning_content", "reasoning", *REASONING_EXTRAS))
        if self.tool_calls:
            message["tool_calls"] = [call.as_input() for call in self.tool_calls]
        return message


class ChatChoice(Value, frozen=True):
    """One of the ``n`` choices."""

    index: int = always_encoded(0)
    message: ChatMessage = ChatMessage()
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    usage: None = None  # any other value fails to decode, so that the lenient fallback moves it
    """Always None: usage that a server sends in a choice is in the reply's ``usage``."""
    stop_reason: int | str | None = None
    """The token or the text of ``stop`` at which the model stopped, if the server names it."""


class ChatCompletion(Reply, frozen=True, kw_only=True):
    """A full completion, from ``complete`` or assembled from a stream."""

    _answered_by: ClassVar[tuple[str, ...]] = ("choices",)

    choices: tuple[ChatChoice, ...]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    """Unix time in seconds; some servers send nanoseconds."""
    model: str | None = None
    system_fingerprint: str | None = None
    """The server's configuration, by which one can tell that it has changed."""
    service_tier: str | None = None
    """The priority that was billed."""
    usage: Usage | None = None

    @property
    def message(self) -> ChatMessage:
        """The message of the first choice, ready for the ``messages`` of the next call."""
        return self.choices[0].message if self.choices else ChatMessage()

    @property
    def text(self) -> str:
        """The text of the first choice, or ""."""
        return self.message.content or ""

    @property
    def reasoning(self) -> str:
        """The reasoning text of the first choice from any of its fields, or ""."""
        return reasoning_of(self.message)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the first choice, or ()."""
        return self.message.tool_calls or ()


class FunctionCallDelta(Value, frozen=True):
    """A delta of a function call."""

    name: str | None = None
    """The name, or a new piece of it: a stream removes repetitions."""
    arguments: str | None = None
    _parameters: None = msgspec.field(default=None, name="parameters")  # as in ``FunctionCall``


class ToolCallDelta(Value, frozen=True):
    """A delta of a tool call."""

    index: int | None = None
    """The call, by the order in which they began. A stream sets it, however the server numbers the calls."""
    id: str | None = None
    """The id, with the first delta that has it: a stream removes repetitions."""
    type: str | None = None
    function: FunctionCallDelta | None = None
    custom: None = None  # as in ``ToolCall``
    """Always None: the name and the input of a custom call are in ``function``."""
    # As ``custom``, but not public: these belong to ``function``.
    _name: None = msgspec.field(default=None, name="name")
    _arguments: None = msgspec.field(default=None, name="arguments")
    extra_content: dict[str, Any] | None = None
    provider_specific_fields: dict[str, Any] | None = None


class ChunkDelta(Value, frozen=True):
    """A delta of a choice's message."""

    content: str | None = None
    role: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: tuple[dict[str, Any], ...] | None = None
    refusal: str | None = None
    error: None = None  # any other value fails to decode, so that the slow path looks for an error
    """Always None: an error in a delta is raised."""
    function_call: None = None  # as in ``ChatMessage``
    """Always None: the call of an older server is in ``tool_calls``."""
    # As ``function_call``, but not public: ``delta.text`` has to be an error, since it would be None.
    _text: None = msgspec.field(default=None, name="text")
    # Last, as they are rare: a decoder looks for the next field of a chunk in this order.
    thinking_blocks: tuple[dict[str, Any], ...] | None = None
    annotations: tuple[dict[str, Any], ...] | None = None
    images: tuple[dict[str, Any], ...] | None = None
    audio: dict[str, Any] | None = None
    """The next piece of the speech, and of its transcript."""


def reasoning_of(message: ChatMessage | ChunkDelta) -> str:
    """Returns the reasoning text of a message or delta, from whichever field has it."""
    return message.reasoning_content or message.reasoning or _details_text(message.reasoning_details or ())


def _details_text(details: Iterable[Mapping[str, Any]]) -> str:
    """Returns the text in ``reasoning_details``; encrypted details have none."""
    texts = [detail.get("text", detail.get("summary")) for detail in details]
    return "".join(text for text in texts if isinstance(text, str))


class ChunkChoice(Value, frozen=True):
    """A chunk's entry for one choice."""

    index: int = always_encoded(0)
    """The choice. A stream sets it to 0 for an only choice, however the server numbers it."""
    delta: ChunkDelta = ChunkDelta()
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    message: ChunkDelta | None = None
    """The full message, which some servers send. A stream moves the part not yet streamed into ``delta``."""
    text: str | None = None
    """Text outside ``delta``, as in completions. A stream moves it into ``delta``."""
    error: None = None  # as in ``ChunkDelta``
    """Always None: an error in a choice is raised."""
    usage: None = None  # any other value fails to decode, so that the lenient fallback moves it
    """Always None: usage that a server sends in a choice is in the chunk's ``usage``."""
    stop_reason: int | str | None = None


class ChatChunk(Value, frozen=True):
    """An event of a chat stream. The chunk with the usage has no choices."""

    choices: tuple[ChunkChoice, ...] = always_encoded(())
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None
    """An error sent together with choices. A stream raises it, so the chunks that it yields have none."""
    message: Any = None
    """All fields of an event of unknown type, which has no choices. With choices it is an error, like ``error``."""
    system_fingerprint: str | None = None
    service_tier: str | None = None

    @property
    def text(self) -> str:
        """The text delta of choice 0; often ""."""
        if len(self.choices) == 1:
            (choice,) = self.choices
            return (choice.delta.content or "") if choice.index == 0 else ""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)

    @property
    def reasoning(self) -> str:
        """The reasoning delta of choice 0 from any of its fields; often ""."""
        return "".join(reasoning_of(choice.delta) for choice in self.choices if choice.index == 0)
