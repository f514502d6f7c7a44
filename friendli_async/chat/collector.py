"""How the chunks of a chat stream add up to a completion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from friendli_async._core.protocol import decode
from friendli_async._core.text import joined
from friendli_async.chat.replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChunkChoice,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
)
from friendli_async.replies import FunctionCall, Partial, ToolCall, Usage

__all__ = ["ChatCollector"]


class _CallParts:
    """A tool call in the making."""

    __slots__ = ("arguments", "id", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []

    def begins_another(self, delta: ToolCallDelta) -> bool:
        """Whether a delta under this call's index is the head of another call: servers reuse indexes.

        Another id alone is no sign: some servers send a new one with every piece.
        """
        named = delta.function is not None and delta.function.name
        return bool(named and delta.id and self.id and delta.id != self.id)

    def add(self, delta: ToolCallDelta) -> None:
        """Identity is set once, however often it is repeated; only arguments add up."""
        self.id = self.id or delta.id
        self.type = self.type or delta.type
        if delta.function is not None:
            self.name = self.name or delta.function.name
            if delta.function.arguments:
                self.arguments.append(delta.function.arguments)

    def result(self) -> ToolCall:
        return ToolCall(self.id, self.type, FunctionCall(self.name, joined(self.arguments)))


class _ChoiceParts:
    """A choice in the making."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.role: str | None = None
        self.text: list[str] = []
        self.reasoning_content: list[str] = []
        self.reasoning: list[str] = []
        self.finish_reason: str | None = None
        self.finished = False
        self.logprobs: list[TokenLogprob] = []
        self.calls: list[_CallParts] = []
        self._calls_by_index: dict[int, _CallParts] = {}

    def add(self, choice: ChunkChoice) -> None:
        delta = choice.delta
        if delta.content:
            self.text.append(delta.content)
        if delta.reasoning_content:
            self.reasoning_content.append(delta.reasoning_content)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if delta.role and self.role is None:
            self.role = delta.role
        for call in delta.tool_calls or ():
            self._add_call(call)
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprobs.extend(choice.logprobs.content)
        if choice.finish_reason and choice.finish_reason != "null":  # the word has been seen for the value
            self.finish_reason = choice.finish_reason
            self.finished = True
        elif delta.content or delta.tool_calls:
            self.finished = False  # it went on: after a tool's turn, the answer

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index is not None:
            call = self._calls_by_index.get(delta.index)
            if call is None or call.begins_another(delta):
                call = self._calls_by_index[delta.index] = self._new_call()
        elif delta.id:
            call = next((call for call in self.calls if call.id == delta.id), None) or self._new_call()
        else:
            call = self.calls[-1] if self.calls else self._new_call()
        call.add(delta)

    def _new_call(self) -> _CallParts:
        self.calls.append(_CallParts())
        return self.calls[-1]

    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(call.result() for call in self.calls)

    def result(self) -> ChatChoice:
        message = ChatMessage(
            role=self.role or "assistant",
            content=joined(self.text) if self.text or not self.calls else None,
            tool_calls=self.tool_calls() or None,
            reasoning_content=joined(self.reasoning_content) or None,
            reasoning=joined(self.reasoning) or None,
        )
        logprobs = Logprobs(tuple(self.logprobs)) if self.logprobs else None
        return ChatChoice(self.index, message, self.finish_reason, logprobs)


_decoder: Final = msgspec.json.Decoder(ChatChunk)
_decode: Final = _decoder.decode


class ChatCollector:
    """Decodes a chat stream's events and puts its chunks together, whatever order and shape they come in.

    Args:
        n: Choices that were asked for.
    """

    ended = False  # the end is the sentinel's to tell: usage may follow the finish reasons

    def __init__(self, n: int = 1) -> None:
        self.usage: Usage | None = None
        self._n = n
        self._first = _ChoiceParts(0)
        self._choices: dict[int, _ChoiceParts] = {}
        self._head = ChatChunk()

    def decode(self, data: bytes) -> ChatChunk | None:
        """Decodes a chunk; None where it has neither choices nor usage."""
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError):  # msgspec's and Unicode errors are ValueErrors
            chunk = decode(data, _decoder)
        return chunk if (chunk.choices or chunk.usage is not None) and chunk.error is None else None

    def decode_each(self, payloads: list[bytes]) -> list[ChatChunk] | None:
        """Decodes chunks; None if one of them is not an ordinary one."""
        try:
            chunks = list(map(_decode, payloads))
        except (ValueError, RecursionError):
            return None
        ordinary = all([chunk.choices and chunk.error is None for chunk in chunks])  # noqa: C419  # a list is faster
        return chunks if ordinary else None

    def decode_named(self, name: str, data: bytes) -> ChatChunk | None:
        """Chat names no events, so one that has a name counts only if it looks like a chunk: a ping does not."""
        return self.decode(data) if b'"choices"' in data else None

    def extend(self, events: Iterable[ChatChunk]) -> None:
        """Adds chunks."""
        for chunk in events:
            for choice in chunk.choices:
                parts = self._choices.get(choice.index)
                if parts is None:
                    parts = self._choices[choice.index] = _ChoiceParts(choice.index)
                    self._head = self._head if self._head.choices else chunk
                delta = choice.delta
                # The everyday chunk is a piece of text and nothing else.
                if (
                    delta.content
                    and choice.finish_reason is None
                    and choice.logprobs is None
                    and (delta.role is None or parts.role is not None)  # some servers repeat it in every chunk
                    and delta.tool_calls is None
                    and delta.reasoning_content is None
                    and delta.reasoning is None
                ):
                    parts.text.append(delta.content)
                    parts.finished = False
                else:
                    parts.add(choice)
            if chunk.usage is not None:
                self.usage = chunk.usage

    def complete(self) -> bool:
        """Whether every choice has its finish reason."""
        choices = self._choices.values()
        return len(choices) >= self._n and all(parts.finished for parts in choices)

    def reopen(self) -> None:
        """The turn goes on: a tool has been started."""
        for parts in self._choices.values():
            parts.finished = False

    def partial(self) -> Partial:
        """Choice 0 so far."""
        first = self._choices.get(0, self._first)
        return Partial(
            text=joined(first.text),
            reasoning=joined(first.reasoning_content or first.reasoning),
            tool_calls=first.tool_calls(),
            usage=self.usage,
        )

    def result(self) -> ChatCompletion:
        """The whole completion."""
        head = self._head
        return ChatCompletion(
            choices=tuple(self._choices[index].result() for index in sorted(self._choices)),
            id=head.id,
            object="chat.completion",
            created=head.created,
            model=head.model,
            usage=self.usage,
        )
