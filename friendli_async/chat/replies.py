"""What a chat answers: completions, the chunks of a stream, and how chunks add up to a completion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import msgspec

from friendli_async.replies import Reply, ToolCall, Usage, Value, always

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
    """The token at a position, how likely it was, and the likeliest ones."""

    token: str = ""
    logprob: float | None = None
    top_logprobs: tuple[TopLogprob, ...] | None = None
    bytes: tuple[int, ...] | None = None


class Logprobs(Value, frozen=True):
    """Log probabilities of a choice's tokens."""

    content: tuple[TokenLogprob, ...] | None = None


class AnyMessage(msgspec.Struct, frozen=True):
    """What every message of a conversation is: by it type checkers take a list of several kinds for a conversation."""


class ChatMessage(Value, AnyMessage, frozen=True):
    """A model's message. It can be put into the next call's ``messages`` as it is."""

    role: str | None = None
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    reasoning_content: str | None = None
    """Reasoning text, where the server spells it so."""
    reasoning: str | None = None
    """Reasoning text, where the server spells it so."""
    reasoning_details: tuple[dict[str, Any], ...] | None = None
    """Reasoning as objects, where the server gives it so. Some models want them back with the message."""
    refusal: str | None = None
    """Why the model would not answer, where the server says so beside ``content``."""

    def as_input(self) -> dict[str, object]:
        """The message as the API takes it: what a reply may leave out and a request may not is filled in."""
        content = self.refusal if self.content is None else self.content  # a request has no other place for it
        message: dict[str, object] = {"role": self.role or "assistant", "content": content}
        for name in ("reasoning_content", "reasoning", "reasoning_details"):
            if getattr(self, name) is not None:
                message[name] = getattr(self, name)
        if self.tool_calls:
            message["tool_calls"] = msgspec.to_builtins(self.tool_calls)
        return message


class ChatChoice(Value, frozen=True):
    """One of the ``n`` answers."""

    index: int = always(0)
    message: ChatMessage = ChatMessage()
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class ChatCompletion(Reply, frozen=True, kw_only=True):
    """A whole answer, of ``complete`` or put together from a stream."""

    answered_by: ClassVar[tuple[str, ...]] = ("choices",)

    choices: tuple[ChatChoice, ...]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    """Unix time in seconds; servers have been seen to send nanoseconds."""
    model: str | None = None
    usage: Usage | None = None

    @property
    def message(self) -> ChatMessage:
        """The message of the first choice, ready for the next call's ``messages``."""
        return self.choices[0].message if self.choices else ChatMessage()

    @property
    def text(self) -> str:
        """The text of the first choice; "" where it has none."""
        return self.message.content or ""

    @property
    def reasoning(self) -> str:
        """The reasoning text of the first choice, under any spelling; "" where it has none."""
        return reasoning_of(self.message)


class FunctionCallDelta(Value, frozen=True):
    """A piece of a function call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Value, frozen=True):
    """A piece of a tool call."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionCallDelta | None = None


class ChunkDelta(Value, frozen=True):
    """What a chunk adds to a choice's message."""

    content: str | None = None
    role: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: tuple[dict[str, Any], ...] | None = None
    refusal: str | None = None
    error: None = None
    """Never filled: one that is an error is raised as one."""


def reasoning_of(said: ChatMessage | ChunkDelta) -> str:
    """The reasoning text of a message, or of a piece of one, under whichever spelling it has."""
    return said.reasoning_content or said.reasoning or details_text(said.reasoning_details or ())


def details_text(details: Iterable[Mapping[str, Any]]) -> str:
    """The text in ``reasoning_details``; what is encrypted has none."""
    texts = [detail.get("text", detail.get("summary")) for detail in details]
    return "".join(text for text in texts if isinstance(text, str))


class ChunkChoice(Value, frozen=True):
    """What a chunk says about one choice."""

    index: int = always(0)
    delta: ChunkDelta = ChunkDelta()
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None
    message: ChunkDelta | None = None
    """The whole message, as some servers give it. A stream moves into ``delta`` what had not come before."""
    text: str | None = None
    """Text beside ``delta``, as completions have it. A stream moves it into ``delta``."""
    error: None = None
    """Never filled: a choice that is an error is raised as one."""


class ChatChunk(Value, frozen=True):
    """One event of a chat stream. The one with the usage has no choices."""

    choices: tuple[ChunkChoice, ...] = always(())
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None
    """An error that the server put beside the choices. A stream raises it, so the chunks that it gives have none."""
    message: Any = None
    """Of an event of an unknown kind, which has no choices: all that it says. Beside choices it is as ``error``."""

    @property
    def text(self) -> str:
        """What it adds to the text of choice 0; often ""."""
        for choice in self.choices:
            if choice.index == 0:
                return choice.delta.content or ""
        return ""

    @property
    def reasoning(self) -> str:
        """What it adds to the reasoning text of choice 0, under any spelling; often ""."""
        for choice in self.choices:
            if choice.index == 0:
                return reasoning_of(choice.delta)
        return ""
