"""Completions: a model continues a text, or a sequence of tokens, in one piece or as a stream of tokens.

Wire: ``POST {deployment}/v1/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, without_none
from friendli_async._core.events.decoding import ChunkDialect, Dialect
from friendli_async._core.resource import Resource, operation
from friendli_async._core.text import joined, missing
from friendli_async._help import described
from friendli_async.chat.collector import CHUNK_CONTENT, ChoiceParts, ChoicesCollector, are_ordinary
from friendli_async.chat.inputs import CHECKS, RESPONSE_FORMAT, SamplingOptions, choices_wanted, stream_fields
from friendli_async.chat.replies import TokenLogprob
from friendli_async.replies import Partial, Reply, Usage, Value, always
from friendli_async.streams.stream import AssembledStream

__all__ = ["CompletionsOptions", "TextCompletion", "TextCompletionChoice", "TextCompletionLogprobs"]
__all__ += ["TextCompletionChunk", "TextCompletionChunkChoice", "TextCompletionCollector", "TextCompletionStream"]
__all__ += ["Completions", "ContainerCompletions"]

# --- what goes in ----------------------------------------------------------------------------------------------------


class _TokenSequence(msgspec.Struct):
    tokens: list[int] | msgspec.UnsetType | None = msgspec.UNSET


@described
class CompletionsOptions(SamplingOptions, total=False):
    """Optional parameters of a completion. What is left out is left to the server; None is sent as null."""

    bad_word_tokens: Sequence[Mapping[str, object]] | None
    """Sequences of tokens that must not be generated, each as ``{"tokens": [...]}``."""
    bad_words: Sequence[str] | None
    """Texts that must not be generated."""
    embedding_to_replace: Sequence[float] | None
    """Embedding vectors, flattened, for the prompt's tokens at ``token_index_to_replace``."""
    encoder_no_repeat_ngram: int | None
    """Size of n-grams of the encoder's input that the answer must not repeat (encoder-decoder models)."""
    encoder_repetition_penalty: float | None
    """Penalty on tokens that occur in the encoder's input; 1.0 is none (encoder-decoder models)."""
    forced_output_tokens: Sequence[int] | None
    """Token ids to give out instead of sampling: their log probabilities, for instance, are of interest."""
    logprobs: int | None
    """How many of the likeliest tokens to return log probabilities of, at each position."""
    max_total_tokens: int | None
    """The most tokens of prompt and answer together."""
    min_tokens: int | None
    """The fewest tokens to generate."""
    min_total_tokens: int | None
    """The fewest tokens of prompt and answer together."""
    no_repeat_ngram: int | None
    """Size of n-grams that must not occur twice."""
    response_format: Mapping[str, object] | None
    """``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema": {"schema": ...}}`` or
    ``{"type": "regex", "schema": ...}``."""
    stop_tokens: Sequence[Mapping[str, object]] | None
    """Sequences of tokens that end the generation, each as ``{"tokens": [...]}``."""
    token_index_to_replace: Sequence[int] | None
    """Positions in the prompt whose embeddings ``embedding_to_replace`` gives."""


_PARAMETERS: Final = Parameters(
    CompletionsOptions,
    {"model": str, "prompt": str | list[str], "tokens": list[int]},
    {
        "bad_word_tokens": list[_TokenSequence] | None,
        "response_format": RESPONSE_FORMAT,
        "stop_tokens": list[_TokenSequence] | None,
        "stream_options": CHECKS["stream_options"],
    },
)

# --- what comes out --------------------------------------------------------------------------------------------------


class TextCompletionLogprobs(Value, frozen=True):
    """Log probabilities of a choice's tokens, one entry of each tuple per token."""

    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, Any] | None, ...] | None = None
    """The likeliest tokens at each position, with their log probabilities."""
    text_offset: tuple[int, ...] | None = None
    """Where each token begins in the text, in characters."""
    content: tuple[TokenLogprob, ...] | None = None
    """The same as chat has it: what llama.cpp's server sends instead."""


class TextCompletionChoice(Value, frozen=True):
    """One of the ``n`` continuations of a prompt."""

    index: int = always(0)
    text: str = always("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    seed: int | None = None
    """Seed that it was sampled with."""
    tokens: tuple[int, ...] | None = None
    """Ids of the generated tokens."""
    logprobs: TextCompletionLogprobs | None = None


class TextCompletion(Reply, frozen=True, kw_only=True):
    """A whole completion, of ``complete`` or put together from a stream."""

    answered_by: ClassVar[tuple[str, ...]] = ("choices",)

    choices: tuple[TextCompletionChoice, ...]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    """Unix time in seconds."""
    model: str | None = None
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text of the first choice; "" where it has none."""
        return self.choices[0].text if self.choices else ""


class TextCompletionChunkChoice(Value, frozen=True):
    """What a chunk says about one choice."""

    index: int = always(0)
    text: str = always("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    token: int | None = None
    """Id of the token."""
    logprobs: TextCompletionLogprobs | None = None
    tokens: tuple[int, ...] | None = None
    """Ids of the tokens of a text that came in one piece."""
    error: None = None
    """Never filled: a choice that is an error is raised as one."""
    delta: None = None
    """Never filled: what a choice says as chat has it becomes its ``text``."""


class TextCompletionChunk(Value, frozen=True):
    """One event of a completion's stream. The one with the usage has no choices."""

    choices: tuple[TextCompletionChunkChoice, ...] = always(())
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
                return choice.text
        return ""


_COMPLETE: Final = operation(
    "completions.complete", "POST /v1/completions", TextCompletion, repeatable=True, billed=True
)

# --- streams ---------------------------------------------------------------------------------------------------------


class _ChoiceParts(ChoiceParts):
    __slots__ = ("logprobs", "tokens")

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.tokens: list[int] = []
        self.logprobs: list[TextCompletionLogprobs] = []

    @property
    def begun(self) -> bool:
        return bool(self.text or self.tokens) or self.finish_reason is not None

    def add(self, choice: TextCompletionChunkChoice) -> None:
        if choice.text:
            self.text.append(choice.text)
        if choice.token is not None:
            self.tokens.append(choice.token)
        if choice.tokens:
            self.tokens.extend(choice.tokens)
        if choice.logprobs is not None:
            self.logprobs.append(choice.logprobs)
        if choice.finish_reason and choice.finish_reason != "null":  # the word has been seen for the value
            self.finish_reason = choice.finish_reason
            self.may_end = True

    def result(self) -> TextCompletionChoice:
        return TextCompletionChoice(
            index=self.index,
            text=joined(self.text),
            finish_reason=self.finish_reason,
            tokens=tuple(self.tokens) or None,
            logprobs=self._all_logprobs() if self.logprobs else None,
        )

    def _all_logprobs(self) -> TextCompletionLogprobs:
        def whole(name: str) -> tuple[Any, ...] | None:
            parts = [part for each in self.logprobs if (part := getattr(each, name)) is not None]
            return tuple(item for part in parts for item in part) if parts else None

        return TextCompletionLogprobs(**{name: whole(name) for name in TextCompletionLogprobs.__struct_fields__})


_TOLD_WHOLE: Final = "complete"
"""What the last frame of 2024 says of itself."""


def _todays(name: str | None, frame: dict[str, Any]) -> dict[str, Any]:
    """A frame of 2024, which says by its key or its name what it is, as a chunk; any other as it is.

    One was a token by itself; the last had all of the text once more, of which ``extend`` leaves what is new.
    """
    event = frame.get("event") or name
    choices: Any = frame.get("choices")
    if event == "token_sampled" and not choices:
        return {"choices": [{key: frame[key] for key in ("index", "text", "token") if key in frame}]}
    if event == "complete" and (choices is None or isinstance(choices, list)):
        ends: list[Any] = [choice for choice in cast("list[object]", choices or [{}]) if isinstance(choice, dict)]
        return {"choices": ends, "usage": frame.get("usage"), "object": _TOLD_WHOLE}
    if isinstance(choices, list):
        return {**frame, "choices": [_worded_as_chat(choice) for choice in cast("list[object]", choices)]}
    return frame


def _worded_as_chat(choice: object) -> object:
    """A choice that has its text where chat has it, with the text in its place; any other as it is."""
    if not isinstance(choice, dict):
        return choice
    fields = cast("dict[str, Any]", choice)
    said: Any = fields.get("delta") or fields.get("message")
    if fields.get("text") or not isinstance(said, dict):
        return fields
    return {**fields, "text": cast("dict[str, Any]", said).get("content") or "", "delta": None}


def _are_ordinary(chunks: Sequence[TextCompletionChunk], payloads: Sequence[bytes]) -> bool:
    return are_ordinary(chunks, payloads) and b'"event"' not in b" ".join(payloads)


class TextCompletionCollector(ChoicesCollector[TextCompletionChunk, _ChoiceParts]):
    """Puts the chunks of a completion's stream together.

    Args:
        n: Choices that were asked for.
    """

    dialect: Dialect[TextCompletionChunk] = ChunkDialect(
        TextCompletionChunk, content=CHUNK_CONTENT, ordinary=_are_ordinary, rewrite=_todays
    )
    add_texts: None = None

    def __init__(self, n: int = 1) -> None:
        super().__init__(_ChoiceParts, n)
        self._told_whole = False

    @property
    def may_end(self) -> bool:
        """Whether every choice has its finish reason, or an old server has said that it is done."""
        return self._told_whole or super().may_end

    def extend(self, events: Iterable[TextCompletionChunk]) -> None:
        """Adds chunks."""
        take_in = super().extend
        for chunk in events:
            if chunk.object == _TOLD_WHOLE:
                self._told_whole = True
                self._leave_what_is_new(chunk)
            take_in((chunk,))

    def _leave_what_is_new(self, chunk: TextCompletionChunk) -> None:
        for choice in chunk.choices:
            parts = self.choices.get(choice.index)
            if parts is not None:
                msgspec.structs.force_setattr(choice, "text", missing(choice.text, parts.text))
                if parts.tokens:
                    msgspec.structs.force_setattr(choice, "tokens", None)

    def partial(self) -> Partial:
        """Choice 0 so far."""
        first = self.choices.get(0)
        return Partial(text="" if first is None else joined(first.text), usage=self.usage)

    def result(self) -> TextCompletion:
        """The whole completion."""
        return self._adding_up_to(TextCompletion, "text_completion")


class TextCompletionStream(AssembledStream[TextCompletionChunk, TextCompletion, Usage]):
    """The stream of a completion: ``TextCompletionChunk`` events that add up to a ``TextCompletion``."""

    @staticmethod
    def _text_of(event: TextCompletionChunk) -> str:
        return event.text


# --- the resource ----------------------------------------------------------------------------------------------------


class Completions(Resource):
    """Continues a text: ``client.serverless.completions``, ``client.dedicated.completions``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call (of a stream, once it is used); see ``friendli_async.errors``.
    """

    async def complete(
        self,
        *,
        model: str,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletion:
        """Continues a prompt and returns the continuation whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            prompt: The text to continue, or several texts. Either this or ``tokens``.
            tokens: The text to continue, as token ids.
            options: See ``CompletionsOptions``.

        Returns:
            The completion: ``text``, ``choices``, ``usage``, ``meta``.

        Raises:
            TypeError: An unknown keyword; neither ``prompt`` nor ``tokens``, or both.
        """
        return await self._complete({"model": model, **without_none(prompt=prompt, tokens=tokens)}, options)

    def stream(
        self,
        *,
        model: str,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletionStream:
        """Continues a prompt and streams it, token by token. The call is made when the stream is first used.

        Args:
            model: As for ``complete``.
            prompt: The text to continue, or several texts. Either this or ``tokens``.
            tokens: The text to continue, as token ids.
            options: See ``CompletionsOptions``.

        Returns:
            The stream: use it with ``async with`` or ``async for``, or await its ``result()``.

        Raises:
            TypeError: An unknown keyword; neither ``prompt`` nor ``tokens``, or both.
        """
        return self._stream({"model": model, **without_none(prompt=prompt, tokens=tokens)}, options)

    def _complete(
        self, required: Mapping[str, object], options: Mapping[str, object]
    ) -> Coroutine[Any, Any, TextCompletion]:
        return self._engine.call(_COMPLETE, arguments_of("complete", required, options))

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> TextCompletionStream:
        arguments = arguments_of("stream", required, options, stream_fields(options))
        prompt = required.get("prompt", "")
        prompts = 1 if isinstance(prompt, str) else len(cast("Sequence[str]", prompt))
        n = choices_wanted(options) * prompts
        return TextCompletionStream(self._engine.opening(_COMPLETE, arguments, lambda: TextCompletionCollector(n)))


def arguments_of(
    method: str, required: Mapping[str, object], options: Mapping[str, object], fixed: Mapping[str, object] = {}
) -> Arguments:
    """Checks what a method was given and encodes it; ``fixed`` is what the method itself sends."""
    given = {"prompt", "tokens"} & set(required)
    if len(given) == 2:
        raise TypeError(f"{method}() takes either 'prompt' or 'tokens', not both")
    if not given and not {"prompt", "tokens"} & set(cast("Mapping[str, object]", options.get("extra_body") or {})):
        raise TypeError(f"{method}() needs 'prompt' or 'tokens'")
    return _PARAMETERS.encode(method, required, options, fixed)


class ContainerCompletions(Completions):
    """Continues a text with a self-hosted engine, which has its model: ``client.container.completions``."""

    async def complete(
        self,
        *,
        model: str | None = None,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletion:
        """Continues a prompt; see ``Completions.complete``. ``model`` names an adapter's route."""
        return await self._complete(without_none(model=model, prompt=prompt, tokens=tokens), options)

    def stream(
        self,
        *,
        model: str | None = None,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletionStream:
        """Continues a prompt and streams it; see ``Completions.stream``. ``model`` names an adapter's route."""
        return self._stream(without_none(model=model, prompt=prompt, tokens=tokens), options)
