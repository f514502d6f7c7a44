"""Text completions of a prompt or a sequence of tokens, in full or as a stream of tokens.

Wire: ``POST {deployment}/v1/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, without_none
from friendli_async._core.events.decoding import Dialect, is_finish_reason
from friendli_async._core.resource import Resource, inference
from friendli_async._core.text import join_text
from friendli_async._help import document_fields
from friendli_async._json import as_list, as_object, is_object
from friendli_async.chat.collector import ChoiceParts, ChoicesCollector
from friendli_async.chat.dialect import ChoicesDialect
from friendli_async.chat.inputs import (
    CHECKS,
    RESPONSE_FORMAT,
    STOP,
    SamplingOptions,
    extra_body_of,
    requested_choices,
    stream_fields,
)
from friendli_async.chat.replies import TokenLogprob
from friendli_async.replies import Reply, Usage, Value, always_encoded
from friendli_async.streams.stream import AssembledStream

__all__ = ["CompletionsOptions", "TextCompletion", "TextCompletionChoice", "TextCompletionLogprobs"]
__all__ += ["TextCompletionChunk", "TextCompletionChunkChoice", "TextCompletionStream"]
__all__ += ["Completions", "ContainerCompletions"]

# --- inputs ----------------------------------------------------------------------------------------------------------


class _TokenSequence(msgspec.Struct):
    tokens: list[int] | msgspec.UnsetType | None = msgspec.UNSET


@document_fields
class CompletionsOptions(SamplingOptions, total=False):
    """Optional parameters of a completion. Omitted ones are left to the server; None is sent as null."""

    bad_word_tokens: Sequence[Mapping[str, object]] | None
    """Token sequences that must not be generated, each as ``{"tokens": [...]}``."""
    bad_words: Sequence[str] | None
    """Strings that must not be generated."""
    embedding_to_replace: Sequence[float] | None
    """Flattened embedding vectors for the prompt tokens at ``token_index_to_replace``."""
    encoder_no_repeat_ngram: int | None
    """Size of n-grams in the encoder input that must not be repeated in the output (encoder-decoder models)."""
    encoder_repetition_penalty: float | None
    """Penalty on tokens in the encoder input; 1.0 means no penalty (encoder-decoder models)."""
    forced_output_tokens: Sequence[int] | None
    """Token ids to output instead of sampling, for instance to get their log probabilities."""
    logprobs: int | None
    """Number of likeliest tokens to return log probabilities for at each position."""
    max_total_tokens: int | None
    """Maximum number of tokens in prompt and output together."""
    min_tokens: int | None
    """Minimum number of tokens to generate."""
    min_total_tokens: int | None
    """Minimum number of tokens in prompt and output together."""
    no_repeat_ngram: int | None
    """Size of n-grams that must not occur more than once."""
    response_format: Mapping[str, object] | None
    """``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema": {"schema": ...}}`` or
    ``{"type": "regex", "schema": ...}``."""
    stop_tokens: Sequence[Mapping[str, object]] | None
    """Token sequences that end the generation, each as ``{"tokens": [...]}``."""
    token_index_to_replace: Sequence[int] | None
    """Positions in the prompt whose embeddings are replaced by ``embedding_to_replace``."""


_PARAMETERS: Final = Parameters(
    CompletionsOptions,
    {"model": str, "prompt": str | list[str], "tokens": list[int]},
    {
        "bad_word_tokens": list[_TokenSequence] | None,
        "response_format": RESPONSE_FORMAT,
        "stop_tokens": list[_TokenSequence] | None,
        "stream_options": CHECKS["stream_options"],
    },
    STOP,
)

# --- replies ---------------------------------------------------------------------------------------------------------


class TextCompletionLogprobs(Value, frozen=True):
    """Log probabilities of a choice's tokens. Each tuple has one entry per token."""

    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, Any] | None, ...] | None = None
    """The likeliest tokens at each position, with their log probabilities."""
    text_offset: tuple[int, ...] | None = None
    """Offset of each token in the text, in characters."""
    content: tuple[TokenLogprob, ...] | None = None
    """The log probabilities in chat format, which llama.cpp's server sends instead."""


class TextCompletionChoice(Value, frozen=True):
    """One of the ``n`` continuations of a prompt."""

    index: int = always_encoded(0)
    text: str = always_encoded("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    seed: int | None = None
    """Sampling seed of the choice."""
    tokens: tuple[int, ...] | None = None
    """Ids of the generated tokens."""
    logprobs: TextCompletionLogprobs | None = None
    usage: None = None  # as in ``ChatChoice``
    """Always None: usage that a server sends in a choice is in the reply's ``usage``."""
    stop_reason: int | str | None = None
    """The token or the text of ``stop`` at which the model stopped, if the server names it."""


class TextCompletion(Reply, frozen=True, kw_only=True):
    """A full completion, from ``complete`` or assembled from a stream."""

    _answered_by: ClassVar[tuple[str, ...]] = ("choices",)

    choices: tuple[TextCompletionChoice, ...]
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    """Unix time in seconds."""
    model: str | None = None
    system_fingerprint: str | None = None
    """The server's configuration, by which one can tell that it has changed."""
    service_tier: str | None = None
    """The priority that was billed."""
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text of the first choice, or ""."""
        return self.choices[0].text if self.choices else ""


class TextCompletionChunkChoice(Value, frozen=True):
    """A chunk's entry for one choice."""

    index: int = always_encoded(0)
    """The choice. A stream sets it to 0 for an only choice, however the server numbers it."""
    text: str = always_encoded("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    token: int | None = None
    """Id of the token."""
    logprobs: TextCompletionLogprobs | None = None
    tokens: tuple[int, ...] | None = None
    """Ids of the tokens, if the text arrives in one piece."""
    # Any other value of these fails to decode, so that the slow path looks for an error, or for text.
    error: None = None
    """Always None: an error in a choice is raised."""
    usage: None = None
    """Always None: usage that a server sends in a choice is in the chunk's ``usage``."""
    delta: None = None
    """Always None: the content of a chat-style delta becomes ``text``."""
    message: None = None
    """Always None: the content of a chat-style message becomes ``text``."""
    stop_reason: int | str | None = None


class TextCompletionChunk(Value, frozen=True):
    """An event of a completion stream. The chunk with the usage has no choices."""

    choices: tuple[TextCompletionChunkChoice, ...] = always_encoded(())
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
            return choice.text if choice.index == 0 else ""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


_COMPLETE: Final = inference("completions.complete", "POST /v1/completions", TextCompletion)

# --- streams ---------------------------------------------------------------------------------------------------------


class _ChoiceParts(ChoiceParts):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.tokens: list[int] = []
        self.logprobs: list[TextCompletionLogprobs] = []

    @property
    def has_content(self) -> bool:
        return bool(self.text or self.tokens)

    def add(self, choice: TextCompletionChunkChoice) -> None:
        if choice.text:
            self.text.append(choice.text)
        if choice.token is not None:
            self.tokens.append(choice.token)
        if choice.tokens:
            self.tokens.extend(choice.tokens)
        if choice.logprobs is not None:
            self.logprobs.append(choice.logprobs)
        if is_finish_reason(choice.finish_reason):
            self.end(choice.finish_reason, choice.stop_reason)

    def result(self) -> TextCompletionChoice:
        return TextCompletionChoice(
            index=self.index,
            text=join_text(self.text),
            finish_reason=self.finish_reason,
            tokens=tuple(self.tokens) or None,
            logprobs=self._merge_logprobs() if self.logprobs else None,
            stop_reason=self.stop_reason,
        )

    def _merge_logprobs(self) -> TextCompletionLogprobs:
        def merged(name: str) -> tuple[Any, ...] | None:
            parts = [part for each in self.logprobs if (part := getattr(each, name)) is not None]
            return tuple(item for part in parts for item in part) if parts else None

        return TextCompletionLogprobs(**{name: merged(name) for name in TextCompletionLogprobs.__struct_fields__})


def _normalize(name: str | None, chunk: dict[str, Any]) -> dict[str, Any]:
    """Makes the content of chat-style choices the text of a chunk; returns any other chunk unchanged."""
    for choice in map(as_object, as_list(chunk.get("choices"))):
        message = choice.get("message") or choice.get("delta")
        text = message.get("content") or message.get("text") if is_object(message) else message
        if not choice.get("text") and isinstance(text, str):
            choice.update(text=text, delta=None, message=None)
    return chunk


class _TextCompletionCollector(ChoicesCollector[TextCompletionChunk, _ChoiceParts]):
    """Assembles the chunks of a completion stream, with ``n`` requested choices, into a TextCompletion."""

    dialect: Dialect[TextCompletionChunk] = ChoicesDialect(TextCompletionChunk, rewrite=_normalize)
    add_texts: None = None

    _parts = _ChoiceParts

    def result(self) -> TextCompletion:
        """Returns the assembled completion."""
        return self._build_reply(TextCompletion, "text_completion")


class TextCompletionStream(AssembledStream[TextCompletionChunk, TextCompletion, Usage]):
    """A stream of ``TextCompletionChunk`` events that are assembled into a ``TextCompletion``."""

    __slots__ = ()

    def _text_extractor(self) -> Callable[[TextCompletionChunk], str]:
        return lambda event: event.text


# --- the resource ----------------------------------------------------------------------------------------------------


class Completions(Resource):
    """Text completions: ``client.serverless.completions``, ``client.dedicated.completions``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def complete(
        self,
        *,
        model: str,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletion:
        """Continues a prompt and returns the completion in full.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            prompt: The text to continue, or a list of texts. Mutually exclusive with ``tokens``.
            tokens: The text to continue, as token ids.
            options: See ``CompletionsOptions``.

        Returns:
            The completion, with ``text``, ``choices``, ``usage``, ``meta``.

        Raises:
            TypeError: An unknown keyword, or not exactly one of ``prompt`` and ``tokens``.
        """
        required = {"model": model, **without_none(prompt=prompt, tokens=tokens)}
        return await self._engine.call(_COMPLETE, arguments_of("complete", required, options))

    def stream(
        self,
        *,
        model: str,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletionStream:
        """Continues a prompt and streams it, token by token. The request is sent when the stream is first used.

        Args:
            model: As for ``complete``.
            prompt: The text to continue, or a list of texts. Mutually exclusive with ``tokens``.
            tokens: The text to continue, as token ids.
            options: See ``CompletionsOptions``.

        Returns:
            The stream. Use it with ``async with`` or ``async for``, or await its ``result()``.

        Raises:
            TypeError: An unknown keyword, or not exactly one of ``prompt`` and ``tokens``.
        """
        return self._stream({"model": model, **without_none(prompt=prompt, tokens=tokens)}, options)

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> TextCompletionStream:
        arguments = arguments_of("stream", required, options, stream_fields(options))
        n = requested_choices(options) * _requested_prompts(required, options)
        return TextCompletionStream(self._engine.opening(_COMPLETE, arguments, lambda: _TextCompletionCollector(n)))


def _requested_prompts(required: Mapping[str, object], options: Mapping[str, object]) -> int:
    """Returns the number of prompts that a call sends: texts or lists of token ids. A single one is not in a list."""
    prompt: object = extra_body_of(options).get("prompt", required.get("prompt"))
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):
        return 1
    return sum(isinstance(part, Sequence) for part in cast("Sequence[object]", prompt)) or 1


def arguments_of(
    method: str, required: Mapping[str, object], options: Mapping[str, object], fixed: Mapping[str, object] = {}
) -> Arguments:
    """Validates and encodes the arguments of a method; ``fixed`` holds the fields that the method adds."""
    arguments = _PARAMETERS.encode(method, required, options, fixed)
    given = {"prompt", "tokens"} & set(required)
    if len(given) == 2:
        raise TypeError(f"{method}() takes either 'prompt' or 'tokens', not both")
    if not given and not {"prompt", "tokens"} & extra_body_of(options).keys():
        raise TypeError(f"{method}() needs 'prompt' or 'tokens'")
    return arguments


class ContainerCompletions(Completions):
    """Text completions of a self-hosted engine, which serves one model: ``client.container.completions``."""

    async def complete(
        self,
        *,
        model: str | None = None,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletion:
        """Continues a prompt; see ``Completions.complete``. ``model`` selects an adapter route."""
        required = without_none(model=model, prompt=prompt, tokens=tokens)
        return await self._engine.call(_COMPLETE, arguments_of("complete", required, options))

    def stream(
        self,
        *,
        model: str | None = None,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletionStream:
        """Continues a prompt and streams it; see ``Completions.stream``. ``model`` selects an adapter route."""
        return self._stream(without_none(model=model, prompt=prompt, tokens=tokens), options)
