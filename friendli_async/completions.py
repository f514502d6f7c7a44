"""Completions: a model continues a text, or a sequence of tokens, in one piece or as a stream of tokens.

Wire: ``POST {deployment}/v1/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, Unpack, cast

import msgspec

from friendli_async._core.assembly import AssembledStream
from friendli_async._core.body.arguments import Arguments, Parameters
from friendli_async._core.protocol import Operation, decode
from friendli_async._core.text import TextView, joined
from friendli_async.chat.replies import TokenLogprob
from friendli_async.chat.resource import CHECKS, RESPONSE_FORMAT, choices_wanted, stream_fields
from friendli_async.replies import Partial, Reply, Usage, always

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "Completions",
    "CompletionsOptions",
    "ContainerCompletions",
    "TextCompletion",
    "TextCompletionChoice",
    "TextCompletionChunk",
    "TextCompletionChunkChoice",
    "TextCompletionCollector",
    "TextCompletionLogprobs",
    "TextCompletionStream",
]

# --- what goes in ----------------------------------------------------------------------------------------------------


class _TokenSequence(msgspec.Struct):
    tokens: list[int] | msgspec.UnsetType | None = msgspec.UNSET


class CompletionsOptions(TypedDict, total=False):
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
    eos_token: Sequence[int] | None
    """Token ids that end the generation."""
    forced_output_tokens: Sequence[int] | None
    """Token ids to give out instead of sampling: their log probabilities, for instance, are of interest."""
    frequency_penalty: float | None
    """Penalty on tokens by how often they have occurred; positive values avoid repetition."""
    logprobs: int | None
    """How many of the likeliest tokens to return log probabilities of, at each position."""
    max_tokens: int | None
    """The most tokens to generate."""
    max_total_tokens: int | None
    """The most tokens of prompt and answer together."""
    min_p: float | None
    """Least probability of a token, relative to the likeliest one's."""
    min_tokens: int | None
    """The fewest tokens to generate."""
    min_total_tokens: int | None
    """The fewest tokens of prompt and answer together."""
    n: int | None
    """How many choices to generate for each prompt."""
    no_repeat_ngram: int | None
    """Size of n-grams that must not occur twice."""
    presence_penalty: float | None
    """Penalty on tokens that have occurred at all."""
    repetition_penalty: float | None
    """Penalty on tokens that have occurred; 1.0 is none."""
    response_format: Mapping[str, object] | None
    """``{"type": "text" | "json_object"}``, ``{"type": "json_schema", "json_schema": {"schema": ...}}`` or
    ``{"type": "regex", "schema": ...}``."""
    seed: int | Sequence[int] | None
    """Seed of the sampling, one for all choices or one each."""
    stop: Sequence[str] | None
    """Texts that end the generation."""
    stop_tokens: Sequence[Mapping[str, object]] | None
    """Sequences of tokens that end the generation, each as ``{"tokens": [...]}``."""
    stream_options: Mapping[str, object] | None
    """``{"include_usage": bool}``; a stream asks for its usage unless this is given."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    token_index_to_replace: Sequence[int] | None
    """Positions in the prompt whose embeddings ``embedding_to_replace`` gives."""
    top_k: int | None
    """Sample from the k likeliest tokens only."""
    top_p: float | None
    """Sample from the likeliest tokens that make up this probability only."""
    xtc_probability: float | None
    """Probability that the likeliest tokens are cut off (XTC sampling)."""
    xtc_threshold: float | None
    """Probability above which tokens count as the likeliest (XTC sampling)."""
    extra_body: Mapping[str, object]
    """Further keys of the body, as they are; they win over the parameters."""
    extra_query: Mapping[str, object]
    """Query parameters."""


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


class TextCompletionLogprobs(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Log probabilities of a choice's tokens, one entry of each tuple per token."""

    tokens: tuple[str, ...] | None = None
    token_logprobs: tuple[float | None, ...] | None = None
    top_logprobs: tuple[dict[str, Any] | None, ...] | None = None
    """The likeliest tokens at each position, with their log probabilities."""
    text_offset: tuple[int, ...] | None = None
    """Where each token begins in the text, in characters."""
    content: tuple[TokenLogprob, ...] | None = None
    """The same as chat has it: what llama.cpp's server sends instead."""


class TextCompletionChoice(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One of the ``n`` continuations of a prompt."""

    index: int = always(0)
    text: str = always("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    seed: int | None = None
    """Seed that it was sampled with."""
    tokens: tuple[int, ...] | None = None
    """Ids of the generated tokens."""
    logprobs: TextCompletionLogprobs | None = None


class TextCompletion(Reply, frozen=True, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """A whole completion, of ``complete`` or put together from a stream."""

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


class TextCompletionChunkChoice(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """What a chunk says about one choice."""

    index: int = always(0)
    text: str = always("")
    finish_reason: Literal["stop", "length"] | str | None = None  # open
    token: int | None = None
    """Id of the token."""
    logprobs: TextCompletionLogprobs | None = None


class TextCompletionChunk(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One event of a completion's stream. The one with the usage has no choices."""

    choices: tuple[TextCompletionChunkChoice, ...] = always(())
    id: str | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Any = None
    """An error that the server put beside the choices. A stream raises it, so the chunks that it gives have none."""

    @property
    def text(self) -> str:
        """What it adds to the text of choice 0; often ""."""
        for choice in self.choices:
            if choice.index == 0:
                return choice.text
        return ""


_COMPLETE: Final = Operation(
    method="POST",
    path="/v1/completions",
    reply=msgspec.json.Decoder(TextCompletion),
    repeatable=True,
    billed=True,
)

# --- streams ---------------------------------------------------------------------------------------------------------


class _OldFrame(msgspec.Struct):
    """An event of 2024: a token by itself, or in the end all of the text once more."""

    event: str | None = None
    index: int = 0
    text: str = ""
    token: int | None = None
    choices: tuple[TextCompletionChunkChoice, ...] = ()
    usage: Usage | None = None


_decoder: Final = msgspec.json.Decoder(TextCompletionChunk)
_decode: Final = _decoder.decode
_old_decoder: Final = msgspec.json.Decoder(_OldFrame)


class _ChoiceParts:
    """A choice in the making."""

    __slots__ = ("finish_reason", "index", "logprobs", "text", "tokens")

    def __init__(self, index: int) -> None:
        self.index = index
        self.text: list[str] = []
        self.tokens: list[int] = []
        self.finish_reason: str | None = None
        self.logprobs: list[TextCompletionLogprobs] = []

    def add(self, choice: TextCompletionChunkChoice) -> None:
        if choice.text:
            self.text.append(choice.text)
        if choice.token is not None:
            self.tokens.append(choice.token)
        if choice.logprobs is not None:
            self.logprobs.append(choice.logprobs)
        if choice.finish_reason and choice.finish_reason != "null":  # the word has been seen for the value
            self.finish_reason = choice.finish_reason

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


class TextCompletionCollector:
    """Decodes a completion stream's events and puts its chunks together.

    Args:
        n: Choices that were asked for.
    """

    ended = False  # the end is the sentinel's to tell

    def __init__(self, n: int = 1) -> None:
        self.usage: Usage | None = None
        self._n = n
        self._choices: dict[int, _ChoiceParts] = {}
        self._head = TextCompletionChunk()
        self._told_whole = False

    def decode(self, data: bytes) -> TextCompletionChunk | None:
        """Decodes a chunk; None where it has neither choices nor usage."""
        if b'"event"' in data and (old := self._decode_old("", data)) is not None:
            return old
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError):  # msgspec's and Unicode errors are ValueErrors
            if data == b"null":  # llama.cpp's server begins so where there are several prompts
                return None
            chunk = decode(data, _decoder)
        return chunk if (chunk.choices or chunk.usage is not None) and chunk.error is None else None

    def decode_each(self, payloads: list[bytes]) -> list[TextCompletionChunk] | None:
        """Decodes chunks; None if one of them is not an ordinary one."""
        try:
            chunks = list(map(_decode, payloads))
        except (ValueError, RecursionError):
            return None
        ordinary = all([chunk.choices and chunk.error is None for chunk in chunks])  # noqa: C419  # a list is faster
        return chunks if ordinary and b'"event"' not in b" ".join(payloads) else None

    def decode_named(self, name: str, data: bytes) -> TextCompletionChunk | None:
        """Names were those of 2024's frames; another event counts only if it looks like a chunk: a ping does not."""
        if (old := self._decode_old(name, data)) is not None:
            return old
        return self.decode(data) if b'"choices"' in data else None

    def _decode_old(self, name: str, data: bytes) -> TextCompletionChunk | None:
        """Makes a frame of 2024, which says by its key or its name what it is, into a chunk; None if it is not one."""
        try:
            frame = _old_decoder.decode(data)
        except (ValueError, RecursionError):  # decoding it as a chunk says what is wrong
            return None
        event = frame.event or name
        if event == "token_sampled" and not frame.choices:
            return TextCompletionChunk((TextCompletionChunkChoice(frame.index, frame.text, token=frame.token),))
        if event == "complete":
            self._told_whole = True
            # The text has come before, token by token.
            ends = tuple(TextCompletionChunkChoice(each.index, "", each.finish_reason) for each in frame.choices)
            return TextCompletionChunk(ends, usage=frame.usage)
        return None

    def extend(self, events: Iterable[TextCompletionChunk]) -> None:
        """Adds chunks."""
        for chunk in events:
            for choice in chunk.choices:
                parts = self._choices.get(choice.index)
                if parts is None:
                    parts = self._choices[choice.index] = _ChoiceParts(choice.index)
                    self._head = self._head if self._head.choices else chunk
                parts.add(choice)
            if chunk.usage is not None:
                self.usage = chunk.usage

    def complete(self) -> bool:
        """Whether every choice has its finish reason, or an old server has said that it is done."""
        choices = self._choices.values()
        return self._told_whole or (
            len(choices) >= self._n and all(parts.finish_reason is not None for parts in choices)
        )

    def partial(self) -> Partial:
        """Choice 0 so far."""
        first = self._choices.get(0)
        return Partial(text="" if first is None else joined(first.text), usage=self.usage)

    def result(self) -> TextCompletion:
        """The whole completion."""
        head = self._head
        return TextCompletion(
            choices=tuple(self._choices[index].result() for index in sorted(self._choices)),
            id=head.id,
            object="text_completion",
            created=head.created,
            model=head.model,
            usage=self.usage,
        )


class TextCompletionStream(AssembledStream[TextCompletionChunk, TextCompletion, Usage]):
    """The stream of a completion: ``TextCompletionChunk`` events that add up to a ``TextCompletion``."""

    def text(self) -> TextView:
        """The text of choice 0, piece by piece, never ""."""
        return TextView(self, lambda chunk: chunk.text)


# --- the resource ----------------------------------------------------------------------------------------------------


class Completions:
    """Continues a text: ``client.serverless.completions``, ``client.dedicated.completions``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        return await self._complete({"model": model}, prompt, tokens, options)

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
            ValueError: A bad value, with its path.
        """
        return self._stream({"model": model}, prompt, tokens, options)

    async def _complete(
        self,
        required: dict[str, object],
        prompt: str | Sequence[str] | None,
        tokens: Sequence[int] | None,
        options: Mapping[str, object],
    ) -> TextCompletion:
        arguments = _arguments("complete", required, prompt, tokens, options, {})
        return await self._engine.call(_COMPLETE, arguments)

    def _stream(
        self,
        required: dict[str, object],
        prompt: str | Sequence[str] | None,
        tokens: Sequence[int] | None,
        options: Mapping[str, object],
    ) -> TextCompletionStream:
        arguments = _arguments("stream", required, prompt, tokens, options, stream_fields(options))
        prompts = 1 if prompt is None or isinstance(prompt, str) else len(prompt)
        n = choices_wanted(options) * prompts
        return TextCompletionStream(self._engine.opening(_COMPLETE, arguments, lambda: TextCompletionCollector(n)))


def _arguments(
    method: str,
    required: dict[str, object],
    prompt: object,
    tokens: object,
    options: Mapping[str, object],
    fixed: dict[str, object],
) -> Arguments:
    given = {name: value for name, value in (("prompt", prompt), ("tokens", tokens)) if value is not None}
    if len(given) == 2:
        raise TypeError(f"{method}() takes either 'prompt' or 'tokens', not both")
    if not given and not {"prompt", "tokens"} & set(cast("Mapping[str, object]", options.get("extra_body") or {})):
        raise TypeError(f"{method}() needs 'prompt' or 'tokens'")
    return _PARAMETERS.encode(method, {**required, **given}, options, fixed)


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
        return await self._complete(_required(model), prompt, tokens, options)

    def stream(
        self,
        *,
        model: str | None = None,
        prompt: str | Sequence[str] | None = None,
        tokens: Sequence[int] | None = None,
        **options: Unpack[CompletionsOptions],
    ) -> TextCompletionStream:
        """Continues a prompt and streams it; see ``Completions.stream``. ``model`` names an adapter's route."""
        return self._stream(_required(model), prompt, tokens, options)


def _required(model: str | None) -> dict[str, object]:
    # Left out rather than null: engines that serve one model take no model for it.
    return {} if model is None else {"model": model}
