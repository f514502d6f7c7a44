"""Audio: speech to text, in full or as a stream.

Wire: ``POST {deployment}/v1/audio/transcriptions``, a form (multipart/form-data), the same for serverless, dedicated
endpoints and containers; a part ``stream`` with ``true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body import content_types
from friendli_async._core.body.arguments import Arguments, ExtraQuery, Parameters, model_of, without_none
from friendli_async._core.body.forms import Form, Part
from friendli_async._core.body.json_values import encode_body
from friendli_async._core.body.sources import BytesSource, Content, Source, source_of
from friendli_async._core.events.decoding import Dialect, TaggedDialect
from friendli_async._core.lenient import latest_usage
from friendli_async._core.resource import Resource, inference
from friendli_async._core.text import join_text, missing_suffix
from friendli_async._help import document_fields
from friendli_async.chat.replies import TokenLogprob
from friendli_async.replies import Partial, Reply, TokenUsage, UnknownEvent, Value, always_encoded, partial_of
from friendli_async.streams.stream import AssembledStream

__all__ = ["Content", "InputTokenDetails", "TranscriptDelta", "Transcription", "TranscriptionUsage"]
__all__ += ["Audio", "TranscriptDone", "TranscriptEvent", "TranscriptionOptions", "TranscriptionStream"]
__all__ += ["ContainerAudio"]

# --- replies ---------------------------------------------------------------------------------------------------------


class InputTokenDetails(Value, frozen=True):
    """Breakdown of the input tokens."""

    audio_tokens: int = always_encoded(0)
    text_tokens: int = always_encoded(0)


class TranscriptionUsage(TokenUsage, frozen=True):
    """Billed usage of a transcription."""

    input_tokens: int = always_encoded(0)
    output_tokens: int = always_encoded(0)
    total_tokens: int = always_encoded(0)
    input_audio_length_ms: int = always_encoded(0)
    """Length of the audio, in milliseconds."""
    processed_audio_length_ms: int = always_encoded(0)
    """Length of the audio that was processed, in milliseconds."""
    type: Literal["tokens", "duration"] | str = always_encoded("tokens")  # open
    input_token_details: InputTokenDetails | None = None
    seconds: float | None = None
    """Length of the audio, if that is what is billed: ``type`` is "duration"."""


class Transcription(Reply, frozen=True, kw_only=True):
    """A complete transcript, from ``transcribe`` or assembled from a stream."""

    text: str
    usage: TranscriptionUsage | None = None
    language: str | None = None
    duration: float | None = None
    """Length of the audio in seconds."""
    segments: tuple[dict[str, Any], ...] | None = None
    """The text in segments with their times, if the server sends them."""
    words: tuple[dict[str, Any], ...] | None = None
    """The words with their times, if the server sends them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Log probabilities of the tokens, if the server sends them."""


class TranscriptDelta(Value, frozen=True, tag_field="type", tag="transcript.text.delta"):
    """The next chunk of the text."""

    type: ClassVar[Literal["transcript.text.delta"]] = "transcript.text.delta"
    delta: str = always_encoded("")
    logprobs: tuple[TokenLogprob, ...] | None = None


class TranscriptDone(Value, frozen=True, tag_field="type", tag="transcript.text.done"):
    """The end of the transcript, with the complete text."""

    type: ClassVar[Literal["transcript.text.done"]] = "transcript.text.done"
    text: str | None = None
    usage: TranscriptionUsage | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None


TranscriptEvent = TranscriptDelta | TranscriptDone | UnknownEvent

# --- parameters ------------------------------------------------------------------------------------------------------


class _ServerVAD(msgspec.Struct):
    type: Literal["server_vad"]
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    threshold: float | None = None


@document_fields
class TranscriptionOptions(ExtraQuery, total=False):
    """Optional parameters of a transcription. Omitted ones and None are left to the server."""

    chunking_strategy: Literal["auto"] | str | Mapping[str, object] | None  # open
    """How to split the audio: ``"auto"``, or ``{"type": "server_vad", "prefix_padding_ms": int, "silence_duration_ms":
    int, "threshold": float}``."""
    language: str | None
    """Language of the speech, as ``en``."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    filename: str | None
    """File name; its suffix tells the format. Default: the name of the path or open file; of bytes, one made from the
    leading ones; else ``audio``, without a suffix: an ``UploadFile`` has its name in its own ``filename``."""
    content_type: str | None
    """Content type of the file. Default: guessed from its name."""
    extra_body: Mapping[str, object] | None
    """Additional parts of the form. Strings, numbers and booleans are sent as text, other values as JSON."""


_PARAMETERS: Final = Parameters(TranscriptionOptions, {"model": str}, {"chunking_strategy": str | _ServerVAD | None})
_TRANSCRIBE: Final = inference("audio.transcribe", "POST /v1/audio/transcriptions", Transcription)


def _arguments(method: str, required: Mapping[str, object], file: object, options: Mapping[str, object]) -> Arguments:
    given, extra, query = _PARAMETERS.checked_parts(method, required, options)
    source = source_of(file, "file")
    filename = cast("str | None", given.pop("filename", None)) or source.name or f"audio{_suffix(source)}"
    content_type = cast("str | None", given.pop("content_type", None)) or content_types.by_name(filename)
    chunking = given.pop("chunking_strategy", None)
    given["stream"] = (method == "stream") or None
    parts = [*_form_parts({name: given.get(name) for name in ("model", "language", "stream", "temperature")})]
    parts.append(Part("file", source, filename, content_type))
    if chunking is not None:
        parts.append(_json_part("chunking_strategy", chunking))
    return Arguments(Form([*parts, *_form_parts(extra)]), query, model=model_of({**given, **extra}))


def _suffix(source: Source) -> str:
    return content_types.suffix_of(source.data[:32]) if isinstance(source, BytesSource) else ""


def _form_parts(fields: Mapping[str, object]) -> Iterator[Part]:
    for name, value in fields.items():
        if isinstance(value, str):
            yield Part.text(name, value)
        elif isinstance(value, bool | int | float):
            is_float = name == "temperature" and not isinstance(value, bool)
            yield _json_part(name, float(value) if is_float else value, content_type=None)
        elif value is not None:
            yield _json_part(name, value)


def _json_part(name: str, value: object, content_type: str | None = "application/json") -> Part:
    # Encode an object and strip its braces and key, so that the value is validated as in every other body.
    encoded = encode_body({name: value})
    return Part.text(name, encoded[len(encode_body({name: 0})) - 2 : -1].decode(), content_type)


# --- streams ---------------------------------------------------------------------------------------------------------


class _TranscriptCollector:
    """Accumulates the events of a transcription stream."""

    dialect: Dialect[TranscriptEvent] = TaggedDialect(
        TranscriptDelta | TranscriptDone, reporting=frozenset({TranscriptDone})
    )
    is_last: bool = False  # only the sentinel marks the end
    add_texts: None = None
    splits_answer: bool = False
    finish_reasons: tuple[str, ...] = ()
    envelope: None = None  # a transcript has neither id nor model

    def __init__(self) -> None:
        self.usage: TranscriptionUsage | None = None
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._complete: str | None = None
        self._is_done = False

    @property
    def may_end(self) -> bool:
        """Whether the event with the complete text has arrived."""
        return self._is_done and self.begun

    @property
    def has_text(self) -> bool:
        """Whether a text has arrived that is not empty: of some servers only with the last event."""
        return any(self._pieces) or bool(self._complete)

    @property
    def begun(self) -> bool:
        """Whether a text delta or the complete text has arrived."""
        return bool(self._pieces) or self._complete is not None

    def extend(self, events: Sequence[TranscriptEvent]) -> int:
        """Adds events in order; returns how many."""
        for event in events:
            if isinstance(event, TranscriptDelta):
                self._pieces.append(event.delta)
                self._logprobs.extend(event.logprobs or ())
            elif isinstance(event, TranscriptDone):
                self._is_done = True
                if event.text or self._complete is None:  # one that repeats nothing takes nothing back
                    self._complete = event.text
                if event.usage is not None:
                    self.usage = latest_usage(event.usage, self.usage)
                self._logprobs = list(event.logprobs or self._logprobs)
        return len(events)

    def partial(self) -> Partial:
        """Returns the text so far, or the server's complete text once it has arrived."""
        return partial_of(self.result())

    def result(self) -> Transcription:
        """Returns the complete transcription."""
        text, logprobs = self._complete or join_text(self._pieces), tuple(self._logprobs) or None
        return Transcription(text=text, usage=self.usage, logprobs=logprobs)


class TranscriptionStream(AssembledStream[TranscriptEvent, Transcription, TranscriptionUsage]):
    """A stream of ``TranscriptDelta`` events with a ``TranscriptDone`` at the end.

    Events of future types are ``UnknownEvent``.
    """

    __slots__ = ()

    def _text_extractor(self) -> Callable[[TranscriptEvent], str]:
        pieces: list[str] = []

        def piece(event: TranscriptEvent) -> str:
            if isinstance(event, TranscriptDelta):
                pieces.append(event.delta)
                return event.delta
            return missing_suffix(event.text, pieces) if isinstance(event, TranscriptDone) else ""

        return piece


# --- the resource ----------------------------------------------------------------------------------------------------


class Audio(Resource):
    """Speech to text: ``client.serverless.audio``, ``client.dedicated.audio``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def transcribe(self, *, model: str, file: Content, **options: Unpack[TranscriptionOptions]) -> Transcription:
        """Transcribes speech and returns the complete text.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            file: The audio: a path, bytes, an open binary file, or an async iterator of bytes. It is read while it is
                being sent. An iterator or a non-seekable file can be sent only once: the call is not retried after the
                first byte has been read, and has no Content-Length.
            options: See ``TranscriptionOptions``.

        Returns:
            The transcription, with ``text``, ``usage``, ``meta``.

        Raises:
            ValueError: An invalid value, with its path (nothing was sent), or a file that changed while being sent.
            OSError: The file cannot be read.
        """
        return await self._engine.call(_TRANSCRIBE, _arguments("transcribe", {"model": model}, file, options))

    def stream(self, *, model: str, file: Content, **options: Unpack[TranscriptionOptions]) -> TranscriptionStream:
        """Transcribes speech and streams the text. The request is sent when the stream is first used.

        Args:
            model: As for ``transcribe``.
            file: As for ``transcribe``.
            options: See ``TranscriptionOptions``.

        Returns:
            The stream. Use it with ``async with`` or ``async for``, or await its ``result()``. Opening it
            raises the same errors as ``transcribe``.
        """
        return self._stream({"model": model}, file, options)

    def _stream(
        self, required: Mapping[str, object], file: object, options: Mapping[str, object]
    ) -> TranscriptionStream:
        arguments = _arguments("stream", required, file, options)
        return TranscriptionStream(self._engine.opening(_TRANSCRIBE, arguments, _TranscriptCollector))


class ContainerAudio(Audio):
    """Speech to text on a self-hosted engine, which serves one model: ``client.container.audio``."""

    async def transcribe(
        self, *, model: str | None = None, file: Content, **options: Unpack[TranscriptionOptions]
    ) -> Transcription:
        """Transcribes speech; see ``Audio.transcribe``. ``model`` selects an adapter route."""
        arguments = _arguments("transcribe", without_none(model=model), file, options)
        return await self._engine.call(_TRANSCRIBE, arguments)

    def stream(
        self, *, model: str | None = None, file: Content, **options: Unpack[TranscriptionOptions]
    ) -> TranscriptionStream:
        """Transcribes speech and streams the text; see ``Audio.stream``. ``model`` selects an adapter route."""
        return self._stream(without_none(model=model), file, options)
