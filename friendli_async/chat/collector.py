"""The streams of chat, and the collectors that assemble a completion from their chunks."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast

import msgspec

from friendli_async._core.events.decoding import Dialect, is_end_of_choice, is_finish_reason
from friendli_async._core.lenient import latest_usage
from friendli_async._core.text import join_text, join_up_to, missing_suffix
from friendli_async._json import is_json_object
from friendli_async._lazy import LazyModule
from friendli_async.chat.dialect import ChoicesDialect
from friendli_async.chat.replies import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChunkChoice,
    ChunkDelta,
    FunctionCallDelta,
    Logprobs,
    TokenLogprob,
    ToolCallDelta,
    reasoning_of,
)
from friendli_async.replies import CALL_EXTRAS, FunctionCall, Partial, ToolCall, Usage, partial_of
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import TextView

if TYPE_CHECKING:
    from friendli_async.chat import tool_calls as tool_calls_module
    from friendli_async.chat.incremental_json import JSONReader
else:
    tool_calls_module = LazyModule("friendli_async.chat.tool_calls")

__all__ = ["ChatStream", "CompletionStream"]


class ChoiceParts:
    """A partially received choice.

    Attributes:
        may_end: Whether a finish reason has arrived that does not mean an error.
    """

    def __init__(self, index: int) -> None:
        self.index: int = index
        self.text: list[str] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.may_end: bool = False

    def end(self, finish_reason: str, stop_reason: int | str | None) -> None:
        """Ends the choice, which may continue nevertheless."""
        self.finish_reason, self.stop_reason = finish_reason, stop_reason
        self.may_end = is_end_of_choice(finish_reason)

    @property
    def has_content(self) -> bool:
        """Whether any content has arrived. A role does not count."""
        return bool(self.text)

    @property
    def begun(self) -> bool:
        """Whether any content or a finish reason has arrived."""
        return self.has_content or self.finish_reason is not None


_MAX_TEXTS: Final = 10_000
"""Maximum number of texts of a partial result: a service may pass on any ``n`` that its user sends."""

C = TypeVar("C", bound=Any)
"""A chunk type with ``usage`` and ``choices``, each of which has an ``index``."""
E = TypeVar("E")
P = TypeVar("P", bound=Any)
"""A class of ``ChoiceParts`` with ``add``, which takes a chunk's entry for the choice, and ``result``."""
R = TypeVar("R")


class ChoicesCollector(Generic[C, P]):
    """Accumulates chunks by choice index; the ``n`` requested choices may be interleaved in any order."""

    is_last: bool = False  # only the sentinel ends a stream: usage may follow the finish reasons

    _parts: ClassVar[Any]
    """The class that accumulates one choice; called with the choice's index."""

    def __init__(self, n: int = 1) -> None:
        self.usage: Usage | None = None
        self.has_text: bool = False
        self.envelope: C | None = None
        """The first chunk with a choice."""
        self.closing: C | None = None
        """The last chunk with a usage: vLLM sends its ``system_fingerprint`` there only."""
        self.choices: dict[int, P] = {}
        self._n = n
        self._first: int | None = None  # the server's index of choice 0; some number an only choice 1

    @property
    def begun(self) -> bool:
        """Whether any choice has begun."""
        return any(parts.begun for parts in self.choices.values())

    @property
    def may_end(self) -> bool:
        """Whether every requested choice has its finish reason."""
        for parts in self.choices.values():
            if not parts.may_end:
                return False
        return bool(self.choices) and len(self.choices) >= self._n

    @property
    def splits_answer(self) -> bool:
        """Whether the only answer is in several choices: TGI and Foundry Local have counted its chunks there."""
        others = [parts for index, parts in self.choices.items() if index]
        is_unfinished = self._n == 1 and 0 in self.choices and self.choices[0].finish_reason is None
        return is_unfinished and any(each.finish_reason for each in others) and any(each.has_content for each in others)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """The finish reasons received so far, in order of choice index."""
        return tuple(parts.finish_reason for parts in self.in_order() if parts.finish_reason is not None)

    def in_order(self) -> list[P]:
        """Returns the choices sorted by index."""
        return [self.choices[index] for index in sorted(self.choices)]

    def begin(self, index: int, chunk: C) -> P:
        """Creates and registers the choice for a new index."""
        parts: P = self._parts(index)
        self.choices[index] = parts
        if self.envelope is None:
            self.envelope = chunk
        return parts

    def extend(self, events: Sequence[C]) -> int:
        """Adds chunks; returns how many."""
        for chunk in events:
            if self._first is None and chunk.choices:
                self._first = chunk.choices[0].index if self._n == 1 else 0
            if self._first:
                self._renumber(chunk)
            for choice in chunk.choices:
                parts = self.choices.get(choice.index)
                if parts is None:
                    parts = self.begin(choice.index, chunk)
                parts.add(choice)
                if parts.text:
                    self.has_text = True
            if chunk.usage is not None:
                self.usage = latest_usage(chunk.usage, self.usage)
                self.closing = chunk
        return len(events)

    def partial(self) -> Partial:
        """Returns what has arrived of choice 0, and the texts of all if there are several."""
        partial = partial_of(self.result()) if 0 in self.choices else Partial(usage=self.usage)
        if self._n == 1:
            return partial
        indexes = range(min(self._n, _MAX_TEXTS))
        texts = [join_text(self.choices[index].text) if index in self.choices else "" for index in indexes]
        return msgspec.structs.replace(partial, texts=tuple(texts))

    def result(self) -> Any:
        """Returns the assembled completion."""
        raise NotImplementedError

    def _renumber(self, chunk: C) -> None:
        """Makes an only choice choice 0, whatever index the server gives it."""
        for choice in chunk.choices:
            msgspec.structs.force_setattr(choice, "index", self._number(choice.index))

    def _number(self, index: int) -> int:
        """Returns our index of a choice; one that was not requested, with the index 0, gets that of the first."""
        first = self._first or 0
        return first - index if index in (0, first) else index

    def _build_reply(self, reply: Callable[..., R], object: str) -> R:
        """Builds a reply of the given class; ``object`` is the value of its ``object`` field."""
        first: Any = self.envelope or ChatChunk()
        closing: Any = self.closing or first
        choices = tuple([parts.result() for parts in self.in_order()])
        return reply(
            choices=choices,
            id=first.id,
            object=object,
            created=first.created,
            model=first.model,
            system_fingerprint=closing.system_fingerprint or first.system_fingerprint,
            service_tier=closing.service_tier or first.service_tier,
            usage=self.usage,
        )


_ENDS_OF_OBJECTS: Final = ("}", *" \t\r\n")


class _CallParts:
    """A partially received tool call, with its index among those of the choice."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.id: str | None = None
        self.type: str | None = None
        self.name: str | None = None
        self.arguments: list[str] = []
        self.extras: dict[str, Any] = {}
        self.has_arguments = False  # maybe only empty ones
        self._reader: JSONReader | None = None  # of the arguments, as far as they were parsed
        self._parsed = 0  # pieces

    def starts_new_call(self, delta: ToolCallDelta, position: int) -> bool:
        """Whether a delta with a name, and with this call's index or none, starts a new call.

        Some servers reuse indexes, or send none. A different id is not enough: some send a new one with every delta.
        ``position`` is that of the delta in its chunk.
        """
        function = delta.function
        if self.name is None or function is None:
            return False
        if delta.id and self.id:
            return delta.id != self.id
        if position > 0 and delta.index is None:
            return True
        if not self.arguments:  # a piece of the name, if only the other pieces have the id
            return self.has_arguments and function.name != self.name and not self.id
        # Only space, and the same name, may follow a complete object.
        is_other = function.name != self.name or bool(function.arguments and function.arguments.strip())
        return is_other and self.arguments[-1].endswith(_ENDS_OF_OBJECTS) and self.is_whole()

    def is_whole(self) -> bool:
        """Whether the arguments are a JSON object. However often this is asked, it takes linear time."""
        from friendli_async.chat.incremental_json import JSONError, JSONReader

        if self._reader is None:  # asked for the first time, and mostly the last: msgspec is faster
            if is_json_object(join_text(self.arguments)):
                return True
            self._reader = JSONReader()
        pieces, self._parsed = self.arguments[self._parsed :], len(self.arguments)
        try:
            self._reader.feed("".join(pieces))
        except JSONError:
            return False
        return self._reader.complete and isinstance(self._reader.value, dict)

    def may_be(self, call: ToolCallDelta) -> bool:
        """Whether a complete call may be this one: it has its id, or its name and, with another id, its arguments."""
        if call.id and call.id == self.id:
            return True
        function = call.function or FunctionCallDelta()
        is_same = (function.arguments or "").strip() == join_text(self.arguments).strip()
        return function.name == self.name and (is_same or not call.id or not self.id)

    def add(self, delta: ToolCallDelta) -> None:
        """Adds a delta. The first id and type win if they are repeated; arguments are concatenated.

        Programs for OpenAI's API group the deltas by their index, and some concatenate ids and names. So the delta gets
        the index of its call, and keeps only what is new of its id and name.
        """
        if delta.index != self.index:
            msgspec.structs.force_setattr(delta, "index", self.index)
        new_id = None if self.id else delta.id or None
        self.id = self.id or new_id
        if delta.id != new_id:
            msgspec.structs.force_setattr(delta, "id", new_id)
        self.type = self.type or delta.type
        for name in CALL_EXTRAS:
            if (extra := getattr(delta, name)) is not None:
                self.extras[name] = extra
        function = delta.function
        if function is None:
            return
        if function.name is not None:
            # Most servers send it once, and some repeat it; Gemini may cut it, before there is text of the arguments.
            begun, self.name = self.name or "", None
            piece = "" if begun and self.arguments else function.name.removeprefix(begun)
            begun += piece  # a local variable with the only reference, to which CPython appends in place
            self.name = begun or None
            if function.name != (piece or None):
                msgspec.structs.force_setattr(function, "name", piece or None)
        if function.arguments is not None:
            self.has_arguments = True
        if function.arguments:
            self.arguments.append(function.arguments)

    def result(self) -> ToolCall:
        function = FunctionCall(self.name or "", join_text(self.arguments))
        return ToolCall(self.id or "", self.type or "function", function, **self.extras)


class _ChoiceParts(ChoiceParts):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.role: str | None = None
        self.reasoning_content: list[str] = []
        self.reasoning: list[str] = []
        self.reasoning_details: list[dict[str, Any]] = []
        self.thinking_blocks: list[dict[str, Any]] = []
        self.refusal: list[str] = []
        self.annotations: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.audio: list[dict[str, Any]] = []
        self.logprobs: list[TokenLogprob] = []
        self.refusal_logprobs: list[TokenLogprob] = []
        self.calls: list[_CallParts] = []
        self._calls_by_key: dict[int | str | None, _CallParts] = {}  # by index, or by id
        self._in_messages: set[str] = set()  # the fields whose text comes in messages only

    @property
    def has_content(self) -> bool:
        thought = self.reasoning_content or self.reasoning or self.reasoning_details or self.thinking_blocks
        return bool(self.text or self.calls or self.refusal or thought or self.images or self.audio)

    def add(self, choice: ChunkChoice) -> None:
        if choice.message is not None or choice.text is not None:
            self._move_into_delta(choice)
        delta = choice.delta
        if delta.content:
            self.text.append(delta.content)
        if delta.reasoning_content:
            self.reasoning_content.append(delta.reasoning_content)
        if delta.reasoning:
            self.reasoning.append(delta.reasoning)
        if delta.reasoning_details or delta.thinking_blocks:
            self.reasoning_details.extend(delta.reasoning_details or ())
            self.thinking_blocks.extend(delta.thinking_blocks or ())
        if delta.refusal or delta.annotations or delta.images or delta.audio:
            self._add_rare(delta)
        if delta.role and self.role is None:
            self.role = delta.role
        for position, call in enumerate(delta.tool_calls or ()):
            self._add_call(call, position)
        if choice.logprobs is not None:
            self.logprobs.extend(choice.logprobs.content or ())
            self.refusal_logprobs.extend(choice.logprobs.refusal or ())
        if is_finish_reason(choice.finish_reason):
            self.end(choice.finish_reason, choice.stop_reason)
        elif self.may_end and (delta.content or delta.tool_calls or reasoning_of(delta)):
            self.may_end = False  # the choice continues, e.g. with the answer after a tool ran on the server

    def _add_rare(self, delta: ChunkDelta) -> None:
        if delta.refusal:
            self.refusal.append(delta.refusal)
        if delta.audio:
            self.audio.append(delta.audio)
        self.annotations.extend(delta.annotations or ())
        self.images.extend(delta.images or ())

    def _move_into_delta(self, choice: ChunkChoice) -> None:
        """Moves a complete message or text into the delta, without the part that has already been streamed."""
        delta, message = choice.delta, choice.message or ChunkDelta()
        fields = {
            "content": self._rest("content", delta, message, self.text) or choice.text,
            "role": message.role,
            "tool_calls": self._new_calls(message.tool_calls or ()),
            "reasoning_content": self._rest("reasoning_content", delta, message, self.reasoning_content),
            "reasoning": self._rest("reasoning", delta, message, self.reasoning),
            "reasoning_details": () if self.reasoning_details else message.reasoning_details,
            "thinking_blocks": () if self.thinking_blocks else message.thinking_blocks,
            "refusal": self._rest("refusal", delta, message, self.refusal),
            "annotations": () if self.annotations else message.annotations,
            "images": () if self.images else message.images,
            "audio": {} if self.audio else message.audio,
        }
        new = {name: value for name, value in fields.items() if value and not getattr(delta, name)}
        msgspec.structs.force_setattr(choice, "delta", msgspec.structs.replace(delta, **new))
        msgspec.structs.force_setattr(choice, "message", None)
        msgspec.structs.force_setattr(choice, "text", None)

    def _new_calls(self, calls: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
        """Returns those of a message's calls that have not been streamed."""
        new: list[ToolCallDelta] = []
        streamed = list(self.calls)
        for position, call in enumerate(calls):
            if (known := next((parts for parts in streamed if parts.may_be(call)), None)) is not None:
                streamed.remove(known)
            else:
                new.append(msgspec.structs.replace(call, index=position if call.index is None else call.index))
        return tuple(new)

    def _rest(self, name: str, delta: ChunkDelta, message: ChunkDelta, pieces: list[str]) -> str:
        """Returns what a text of a message adds to the text so far.

        It is the whole text, or the next piece of one that comes in messages only and that it does not repeat.
        """
        text: str | None = getattr(message, name)
        if not text or getattr(delta, name):
            return ""
        if pieces and name not in self._in_messages:
            return missing_suffix(text, pieces)
        self._in_messages.add(name)
        return text.removeprefix(join_up_to(len(text), pieces) or "")

    def _add_call(self, delta: ToolCallDelta, position: int) -> None:
        """Adds a tool-call delta, the position of which is that in its chunk."""
        calls = self.calls
        key: int | str | None = (delta.id or None) if delta.index is None else delta.index
        call = None if key is None else self._calls_by_key.get(key)
        is_named = delta.function is not None and bool(delta.function.name)
        if call is None and calls and not delta.index:
            # The delta that begins a call has two of index, id and name, or a new index. Only the first call's index
            # may come late.
            has_two = (delta.index is not None) + bool(delta.id) + is_named >= 2
            call = None if has_two else calls[-1]
        if call is None or (is_named and call.starts_new_call(delta, position)):
            call = _CallParts(len(calls))
            calls.append(call)
        if key is not None:
            self._calls_by_key[key] = call
        call.add(delta)

    def result(self) -> ChatChoice:
        message = ChatMessage(
            role=self.role or "assistant",
            content=join_text(self.text) if self.text or not (self.calls or self.refusal) else None,
            tool_calls=tuple(call.result() for call in self.calls) or None,
            reasoning_content=join_text(self.reasoning_content) or None,
            reasoning=join_text(self.reasoning) or None,
            reasoning_details=_merge_details(self.reasoning_details) or None,
            thinking_blocks=_merge_details(self.thinking_blocks) or None,
            refusal=join_text(self.refusal) or None,
            annotations=tuple(self.annotations) or None,
            images=tuple(self.images) or None,
            audio=_merge_audio(self.audio) or None,
        )
        given = tuple(self.logprobs) or None, tuple(self.refusal_logprobs) or None
        logprobs = Logprobs(*given) if any(given) else None
        return ChatChoice(self.index, message, self.finish_reason, logprobs, stop_reason=self.stop_reason)


_DETAIL_TEXTS: Final = frozenset({"text", "summary", "data", "thinking"})
"""The fields of a piece of reasoning that continue those of the piece before."""


def _continues_detail(piece: dict[str, Any], last: dict[str, Any]) -> bool:
    """Whether a piece of reasoning continues the one before: it has the same index and type, or that has no end."""
    if "index" in piece:
        return (piece["index"], piece.get("type")) == (last.get("index"), last.get("type"))
    return piece.get("type") == last.get("type") == "thinking" and not last.get("signature")


def _merge_details(pieces: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Merges the pieces that continue each other into one object, concatenating their texts."""
    merged: list[dict[str, Any]] = []
    texts: list[dict[str, list[str]]] = []  # of each object, joined at the end: there may be a piece for each token
    for piece in pieces:
        last = merged[-1] if merged else {}
        if merged and _continues_detail(piece, last):
            last.update({key: value for key, value in piece.items() if value is not None})
        else:
            merged.append({**piece})
            texts.append({})
        for key in _DETAIL_TEXTS & piece.keys():
            if isinstance(piece[key], str):
                texts[-1].setdefault(key, []).append(piece[key])
    for each, fields in zip(merged, texts, strict=True):
        each.update({key: join_text(parts) for key, parts in fields.items()})
    return tuple(merged)


def _merge_audio(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merges the pieces of a speech: its data in base64, of which each piece may be complete, and its transcript."""
    merged = {key: value for piece in pieces for key, value in piece.items() if value is not None}
    for key in {"data", "transcript"} & merged.keys():
        texts = [piece[key] for piece in pieces if isinstance(piece.get(key), str)]
        merged[key] = _join_base64(texts) if key == "data" else join_text(texts)
    return merged


def _join_base64(texts: Sequence[str]) -> str:
    """Joins data in base64 whose pieces are each complete, or were cut anywhere."""
    with suppress(ValueError):
        return b64encode(b"".join([b64decode(text, validate=True) for text in texts])).decode()
    return "".join(texts)


class ChatCollector(ChoicesCollector[ChatChunk, _ChoiceParts]):
    """Assembles the chunks of a chat stream, with ``n`` requested choices, into a ChatCompletion."""

    dialect: Dialect[ChatChunk] = ChoicesDialect(ChatChunk)

    usage: Usage | None  # again: type checkers infer a narrower type from ``add_texts``

    _parts = _ChoiceParts

    def add_texts(self, chunks: Sequence[ChatChunk]) -> int:
        """Fast path: adds chunks up to the first that is not plain text or reasoning. Returns how many it added."""
        if self._first:
            return 0  # the indexes are not the server's
        begun, texts = self.choices, 0
        for chunk in chunks:
            try:
                (choice,) = chunk.choices
                parts = begun[choice.index]
            except (ValueError, KeyError):  # not exactly one choice, or a choice's first chunk
                return texts
            delta, usage = choice.delta, chunk.usage
            if (
                choice.finish_reason is not None
                or choice.logprobs is not None
                or choice.message is not None
                or (delta.role is not None and parts.role is None)  # some servers repeat the role in every chunk
                or delta.tool_calls is not None
                or (delta.reasoning_details is not None or delta.refusal is not None)
                or (delta.thinking_blocks is not None or delta.annotations is not None)
                or (choice.text is not None or delta.images is not None or delta.audio is not None)
                or chunk.message is not None
                or chunk.error is not None
                or (usage is not None and not usage.prompt_tokens)  # then an earlier one may have them
            ):
                return texts
            text = delta.content
            if text and delta.reasoning_content is None and delta.reasoning is None:
                parts.text.append(text)
                self.has_text = True
            elif delta.reasoning_content and not text and delta.reasoning is None:
                parts.reasoning_content.append(delta.reasoning_content)
            elif delta.reasoning and not text and delta.reasoning_content is None:
                parts.reasoning.append(delta.reasoning)
            else:
                return texts
            if usage is not None:  # some servers send usage with every chunk
                self.usage = latest_usage(usage, self.usage)
            parts.may_end = False
            texts += 1
        return texts

    def whole_calls(self, first: int, *, with_last: bool) -> Iterator[ToolCall]:
        """Yields the tool calls of choice 0 from index ``first`` on, up to one without a name or whole arguments."""
        calls = self.choices[0].calls if 0 in self.choices else []
        for index in range(first, len(calls) if with_last else len(calls) - 1):
            if calls[index].name is None or not calls[index].is_whole():
                break
            yield calls[index].result()

    def arguments_of(self, name: str) -> list[str]:
        """Returns the pieces so far of the arguments of the first call of a tool in choice 0: a list that grows."""
        for call in self.choices[0].calls if 0 in self.choices else ():
            if call.name == name:
                return call.arguments
        return []

    def partial(self) -> Partial:
        """Returns what has arrived of choice 0, and the texts of all if there are several."""
        partial = super().partial()
        sources = self.choices[0].annotations if 0 in self.choices else ()
        return msgspec.structs.replace(partial, annotations=tuple(sources)) if sources else partial

    def result(self) -> ChatCompletion:
        """Returns the assembled completion."""
        return self._build_reply(ChatCompletion, "chat.completion")


# --- streams ---------------------------------------------------------------------------------------------------------


class CompletionStream(AssembledStream[E, ChatCompletion, Usage]):
    """A stream whose events are assembled into a ChatCompletion."""

    __slots__ = ()

    def _text_extractor(self) -> Callable[[Any], str]:
        return lambda event: event.text if isinstance(event, ChatChunk) else ""  # a ToolStatus has no text

    def reasoning(self) -> TextView:
        """Returns a view of choice 0's reasoning text in pieces, under either field name. No piece is empty."""
        return TextView(self, lambda event: event.reasoning if isinstance(event, ChatChunk) else "")

    def tool_calls(self) -> tool_calls_module.ToolCallView:
        """Returns a view of choice 0's tool calls, each as soon as it is complete."""
        return tool_calls_module.ToolCallView(self)

    @property
    def _received(self) -> ChatCollector:
        """What an open stream has received, for its views and its run: ``partial`` lacks what a run sends back."""
        assert self._open is not None, "an event has arrived"
        return cast("ChatCollector", self._open.collector)


class ChatStream(CompletionStream[ChatChunk]):
    """A chat stream of ``ChatChunk`` events."""

    __slots__ = ()
