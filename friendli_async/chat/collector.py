"""How the chunks of a chat stream add up to a completion, and what an event of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec

from friendli_async._core.error_json import has_message
from friendli_async._core.events.decoding import ChunkDialect, Dialect
from friendli_async._core.text import joined, missing
from friendli_async.chat.replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChunkChoice,
    ChunkDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    details_text,
    reasoning_of,
)
from friendli_async.replies import FunctionCall, Partial, ToolCall, Usage

__all__ = ["CHUNK_CONTENT", "ChatCollector", "ChoiceParts", "ChoicesCollector", "are_ordinary"]


class ChoiceParts:
    """A choice in the making.

    Args:
        index: Its own.

    Attributes:
        may_end: Whether it has its finish reason.
    """

    __slots__ = ("finish_reason", "index", "may_end", "text")

    def __init__(self, index: int) -> None:
        self.index: int = index
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.may_end: bool = False

    @property
    def begun(self) -> bool:
        """Whether anything of it has come; a role alone is nothing."""
        return bool(self.text) or self.finish_reason is not None

    def add(self, choice: Any) -> None:
        """Adds what a chunk says about it."""
        raise NotImplementedError

    def result(self) -> Any:
        """The whole choice."""
        raise NotImplementedError


C = TypeVar("C", bound=Any)
"""A chunk: ``choices``, each with an ``index``, and ``usage``."""
P = TypeVar("P", bound=ChoiceParts)
R = TypeVar("R")

CHUNK_CONTENT: Final = frozenset({"choices", "usage"})
"""The fields by which a chunk says something."""


def are_ordinary(chunks: Sequence[Any], payloads: Sequence[bytes]) -> bool:
    """Whether chunks have content, and no error nor words beside it."""
    if len(chunks) == 1 and chunks[0].choices and not chunks[0].error and chunks[0].message is None:
        return True
    if all([chunk.choices and not chunk.error and chunk.message is None for chunk in chunks]):  # noqa: C419  # a list is faster
        return True
    return all(_is_ordinary(chunk, payload) for chunk, payload in zip(chunks, payloads, strict=True))


def _is_ordinary(chunk: Any, payload: bytes) -> bool:
    if chunk.error or chunk.message is not None or not (chunk.choices or chunk.usage is not None):
        return False
    return bool(chunk.choices) or not has_message(msgspec.json.decode(payload))


class ChoicesCollector(Generic[C, P]):
    """Adds up chunks by their choices, whatever order they come in.

    Args:
        parts: Makes a choice, of its index.
        n: Choices that were asked for.
    """

    is_last: bool = False  # the end is the sentinel's to tell: usage may follow the finish reasons

    def __init__(self, parts: type[P], n: int) -> None:
        self.usage: Usage | None = None
        self.head: C | None = None
        """The first chunk that had a choice."""
        self.choices: dict[int, P] = {}
        self._parts: Any = parts
        self._n = n

    @property
    def begun(self) -> bool:
        """Whether anything of a choice has come."""
        return any(parts.begun for parts in self.choices.values())

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return any([parts.text for parts in self.choices.values()])  # noqa: C419  # a list is faster

    @property
    def may_end(self) -> bool:
        """Whether every choice has its finish reason."""
        choices = self.choices.values()
        return len(choices) >= self._n and all(parts.may_end for parts in choices)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the choices that have finished did so."""
        return tuple(parts.finish_reason for parts in self.in_order() if parts.finish_reason is not None)

    def in_order(self) -> list[P]:
        """The choices by their indexes."""
        return [self.choices[index] for index in sorted(self.choices)]

    def begin(self, index: int, chunk: C) -> P:
        """A choice that had not come before."""
        parts: P = self._parts(index)
        self.choices[index] = parts
        if self.head is None:
            self.head = chunk
        return parts

    def extend(self, events: Iterable[C]) -> None:
        """Adds chunks."""
        for chunk in events:
            for choice in chunk.choices:
                parts = self.choices.get(choice.index)
                if parts is None:
                    parts = self.begin(choice.index, chunk)
                parts.add(choice)
            if chunk.usage is not None:
                self.usage = chunk.usage

    def _adding_up_to(self, reply: Callable[..., R], object: str) -> R:
        """The whole reply: of this class, and called so."""
        head: Any = self.head or ChatChunk()
        choices = tuple([parts.result() for parts in self.in_order()])
        return reply(
            choices=choices, id=head.id, object=object, created=head.created, model=head.model, usage=self.usage
        )


class _CallParts:
    """A tool call in the making."""

    __slots__ = ("arguments", "has_index", "id", "name", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []
        self.has_index = False

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
        self.has_index = self.has_index or delta.index is not None
        if delta.function is not None:
            self.name = self.name or delta.function.name
            if delta.function.arguments:
                self.arguments.append(delta.function.arguments)

    def result(self) -> ToolCall:
        return ToolCall(self.id or "", self.type or "function", FunctionCall(self.name or "", joined(self.arguments)))


class _ChoiceParts(ChoiceParts):
    __slots__ = (
        "_calls_by_key",
        "calls",
        "logprobs",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "refusal",
        "role",
    )

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.role: str | None = None
        self.reasoning_content: list[str] = []
        self.reasoning: list[str] = []
        self.reasoning_details: list[dict[str, Any]] = []
        self.refusal: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.calls: list[_CallParts] = []
        self._calls_by_key: dict[int | str | None, _CallParts] = {}  # by index, or by id

    @property
    def begun(self) -> bool:
        thought = self.reasoning_content or self.reasoning or self.reasoning_details
        return bool(self.text or self.calls or self.refusal or thought) or self.finish_reason is not None

    def add(self, choice: ChunkChoice) -> None:
        if choice.message is not None or choice.text is not None:
            self._complete(choice)
        delta = choice.delta
        if delta.content:
            self.text.append(delta.content)
        if delta.reasoning_content:
            self.reasoning_content.append(delta.reasoning_content)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if delta.reasoning_details:
            self.reasoning_details.extend(delta.reasoning_details)
        if delta.refusal:
            self.refusal.append(delta.refusal)
        if delta.role and self.role is None:
            self.role = delta.role
        for call in delta.tool_calls or ():
            self.add_call(call)
        if choice.logprobs is not None and choice.logprobs.content:
            self.logprobs.extend(choice.logprobs.content)
        if choice.finish_reason and choice.finish_reason != "null":  # the word has been seen for the value
            self.finish_reason = choice.finish_reason
            self.may_end = True
        elif self.may_end and (delta.content or delta.tool_calls or reasoning_of(delta)):
            self.may_end = False  # it went on: after a tool's turn, the answer

    def _complete(self, choice: ChunkChoice) -> None:
        """Moves what a server gives as a whole into the delta, as far as it had not come in pieces."""
        delta, whole = choice.delta, choice.message or ChunkDelta()
        calls = tuple(
            msgspec.structs.replace(call, index=place if call.index is None else call.index)
            for place, call in enumerate(whole.tool_calls or ())
        )
        told = {
            "content": missing(whole.content, self.text) or choice.text,
            "role": whole.role,
            "tool_calls": () if self.calls else calls,
            "reasoning_content": missing(whole.reasoning_content, self.reasoning_content),
            "reasoning": missing(whole.reasoning, self.reasoning),
            "reasoning_details": () if self.reasoning_details else whole.reasoning_details,
            "refusal": missing(whole.refusal, self.refusal),
        }
        new = {name: value for name, value in told.items() if value and not getattr(delta, name)}
        msgspec.structs.force_setattr(choice, "delta", msgspec.structs.replace(delta, **new))
        msgspec.structs.force_setattr(choice, "message", None)
        msgspec.structs.force_setattr(choice, "text", None)

    def add_call(self, delta: ToolCallDelta) -> _CallParts:
        calls, key = self.calls, delta.id or None if delta.index is None else delta.index
        call = None if key is None else self._calls_by_key.get(key)
        if call is None and calls and not delta.id and not (delta.index is not None and calls[-1].has_index):
            call = calls[-1]  # it goes on with the last one, whose index perhaps could not be read
        if call is None or call.begins_another(delta):
            call = _CallParts()
            calls.append(call)
        if key is not None:
            self._calls_by_key[key] = call
        call.add(delta)
        return call

    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(call.result() for call in self.calls)

    def thoughts(self) -> str:
        return joined(self.reasoning_content or self.reasoning) or details_text(self.reasoning_details)

    def result(self) -> ChatChoice:
        message = ChatMessage(
            role=self.role or "assistant",
            content=joined(self.text) if self.text or not (self.calls or self.refusal) else None,
            tool_calls=self.tool_calls() or None,
            reasoning_content=joined(self.reasoning_content) or None,
            reasoning=joined(self.reasoning) or None,
            reasoning_details=_details_joined(self.reasoning_details) or None,
            refusal=joined(self.refusal) or None,
        )
        logprobs = Logprobs(tuple(self.logprobs)) if self.logprobs else None
        return ChatChoice(index=self.index, message=message, finish_reason=self.finish_reason, logprobs=logprobs)


def _details_joined(pieces: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """The objects that the pieces make: those of one index, one behind the other, are one, whose texts add up."""
    whole: list[dict[str, Any]] = []
    for piece in pieces:
        last = whole[-1] if whole else {}
        if "index" in piece and (piece["index"], piece.get("type")) == (last.get("index"), last.get("type")):
            told = {key: value for key, value in piece.items() if value is not None}
            texts = {
                key: last[key] + told[key]
                for key in ("text", "summary", "data")
                if isinstance(last.get(key), str) and isinstance(told.get(key), str)
            }
            whole[-1] = {**last, **told, **texts}
        else:
            whole.append(piece)
    return tuple(whole)


class ChatCollector(ChoicesCollector[ChatChunk, _ChoiceParts]):
    """Puts the chunks of a chat together.

    Args:
        n: Choices that were asked for.
    """

    usage: Usage | None
    dialect: Dialect[ChatChunk] = ChunkDialect(ChatChunk, content=CHUNK_CONTENT, ordinary=are_ordinary)

    def __init__(self, n: int = 1) -> None:
        super().__init__(_ChoiceParts, n)

    def add_texts(self, chunks: Sequence[ChatChunk]) -> int:
        """Adds the chunks up to the first that is more than a piece of text or reasoning; returns how many they are."""
        begun = self.choices
        texts = 0
        for chunk in chunks:
            try:
                (choice,) = chunk.choices
                parts = begun[choice.index]
            except (ValueError, KeyError):  # another number of choices, or the first of a choice
                return texts
            delta = choice.delta
            if (
                choice.finish_reason is not None
                or choice.logprobs is not None
                or choice.message is not None
                or (delta.role is not None and parts.role is None)  # some servers repeat it in every chunk
                or delta.tool_calls is not None
                or delta.reasoning is not None
                or delta.reasoning_details is not None
                or delta.refusal is not None
                or choice.text is not None
                or chunk.message is not None
                or chunk.error is not None
            ):
                return texts
            text = delta.content
            if text and delta.reasoning_content is None:
                parts.text.append(text)
            elif delta.reasoning_content and not text:
                parts.reasoning_content.append(delta.reasoning_content)
            else:
                return texts
            parts.may_end = False
            if chunk.usage is not None:  # some servers count in every chunk
                self.usage = chunk.usage
            texts += 1
        return texts

    def reopen(self) -> None:
        """The turn goes on: a tool has been started."""
        for parts in self.choices.values():
            parts.may_end = False

    def calls_from(self, first: int, *, with_last: bool) -> Iterator[ToolCall]:
        """The tool calls of choice 0 from one on, each joined when it is asked for; the last may be in the making."""
        parts = self.choices.get(0)
        for call in parts.calls[first : None if with_last else -1] if parts is not None else ():
            yield call.result()

    def partial(self) -> Partial:
        """Choice 0 so far."""
        first = self.choices.get(0)
        if first is None:
            return Partial(usage=self.usage)
        return Partial(
            text=joined(first.text), reasoning=first.thoughts(), tool_calls=first.tool_calls(), usage=self.usage
        )

    def result(self) -> ChatCompletion:
        """The whole completion."""
        return self._adding_up_to(ChatCompletion, "chat.completion")
