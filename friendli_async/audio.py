"""Audio: speech is written down, in one piece or as a stream of text.

Wire: ``POST {deployment}/v1/audio/transcriptions``, a form (multipart/form-data), the same for serverless, dedicated
endpoints and containers; the part ``stream`` with ``true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body import content_types
from friendli_async._core.body.arguments import Arguments, ExtraQuery, Parameters, encode_json
from friendli_async._core.body.forms import Form, Part
from friendli_async._core.body.sources import BytesSource, Content, Source, source_of
from friendli_async._core.events.decoding import Dialect, TaggedDialect
from friendli_async._core.resource import Resource, operation
from friendli_async._core.text import joined, missing
from friendli_async._help import described
from friendli_async.replies import Partial, Reply, UnknownEvent, Value, always, partial_of
from friendli_async.streams.stream import AssembledStream

__all__ = ["Content", "InputTokenDetails", "TranscriptDelta", "Transcription", "TranscriptionUsage", "UnknownEvent"]
__all__ += ["Audio", "TranscriptDone", "TranscriptEvent", "TranscriptionOptions", "TranscriptionStream"]
__all__ += ["ContainerAudio", "TranscriptCollector"]

# --- what comes out --------------------------------------------------------------------------------------------------


class InputTokenDetails(Value, frozen=True):
    """What the input's tokens stood for."""

    audio_tokens: int = always(0)
    text_tokens: int = always(0)


class TranscriptionUsage(Value, frozen=True):
    """What a transcription was billed for."""

    input_tokens: int = always(0)
    output_tokens: int = always(0)
    total_tokens: int = always(0)
    input_audio_length_ms: int = always(0)
    """Length of the sound, milliseconds."""
    processed_audio_length_ms: int = always(0)
    """How much of it was listened to, milliseconds."""
    type: Literal["tokens"] | str = always("tokens")  # open
    input_token_details: InputTokenDetails | None = None


class Transcription(Reply, frozen=True, kw_only=True):
    """What was said, of ``transcribe`` or put together from a stream."""

    text: str
    usage: TranscriptionUsage | None = None


class TranscriptDelta(Value, frozen=True, tag_field="type", tag="transcript.text.delta"):
    """The next piece of the text."""

    delta: str = always("")


class TranscriptDone(Value, frozen=True, tag_field="type", tag="transcript.text.done"):
    """The whole text, at the end."""

    text: str | None = None
    usage: TranscriptionUsage | None = None


TranscriptEvent = TranscriptDelta | TranscriptDone | UnknownEvent

# --- what goes in ----------------------------------------------------------------------------------------------------


class _ServerVAD(msgspec.Struct):
    type: Literal["server_vad"]
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    threshold: float | None = None


@described
class TranscriptionOptions(ExtraQuery, total=False):
    """Optional parameters of a transcription. What is left out, or None, is left to the server."""

    chunking_strategy: Literal["auto"] | str | Mapping[str, object] | None  # open
    """How the sound is cut: ``"auto"``, or ``{"type": "server_vad", "prefix_padding_ms": int, "silence_duration_ms":
    int, "threshold": float}``."""
    language: str | None
    """The language that is spoken, as ``en``."""
    temperature: float | None
    """Sampling temperature; lower is more deterministic."""
    filename: str | None
    """The file's name; its suffix tells the format. Default: the path's or the open file's, else made from how the
    bytes begin."""
    content_type: str | None
    """The file's content type. Default: guessed from its name."""
    extra_body: Mapping[str, object] | None
    """Further parts of the form: text, numbers and booleans as text, everything else as JSON."""


_PARAMETERS: Final = Parameters(TranscriptionOptions, {"model": str}, {"chunking_strategy": str | _ServerVAD | None})
_TRANSCRIBE: Final = operation(
    "audio.transcribe", "POST /v1/audio/transcriptions", Transcription, repeatable=True, billed=True
)


def _arguments(method: str, model: str | None, file: object, options: Mapping[str, object], stream: bool) -> Arguments:
    required: dict[str, object] = {} if model is None else {"model": model}
    given, extra, query = _PARAMETERS.take(method, required, options)
    source = source_of(file, "file")
    named = cast("str | None", given.pop("filename", None)) or source.name or f"audio{_suffix(source)}"
    kind = cast("str | None", given.pop("content_type", None)) or content_types.by_name(named)
    chunking = given.pop("chunking_strategy", None)
    given["stream"] = stream or None
    parts = [*_parts({name: given.get(name) for name in ("model", "language", "stream", "temperature")})]
    parts.append(Part("file", source, named, kind))
    if chunking is not None:
        parts.append(_json_part("chunking_strategy", chunking))
    return Arguments(Form([*parts, *_parts(extra)]), query, model=model)


def _suffix(source: Source) -> str:
    return content_types.suffix_of(source.data[:32]) if isinstance(source, BytesSource) else ""


def _parts(fields: Mapping[str, object]) -> Iterator[Part]:
    for name, value in fields.items():
        if isinstance(value, str):
            yield Part.text(name, value)
        elif isinstance(value, bool | int | float):
            is_float = name == "temperature" and not isinstance(value, bool)
            yield _json_part(name, float(value) if is_float else value, content_type=None)
        elif value is not None:
            yield _json_part(name, value)


def _json_part(name: str, value: object, content_type: str | None = "application/json") -> Part:
    # An encoded object without its braces and its one key: so the value is checked as in every other body.
    encoded = encode_json({name: value})
    return Part.text(name, encoded[len(encode_json({name: 0})) - 2 : -1].decode(), content_type)


# --- streams ---------------------------------------------------------------------------------------------------------


class TranscriptCollector:
    """Puts the text of a transcription together."""

    dialect: Dialect[TranscriptEvent] = TaggedDialect(TranscriptDelta | TranscriptDone)
    is_last: bool = False  # the end is the sentinel's to tell
    add_texts: None = None
    finish_reasons: tuple[str, ...] = ()
    head: None = None  # a transcript has neither id nor model

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.done: TranscriptDone | None = None

    @property
    def begun(self) -> bool:
        """Whether a text, or its end, has come."""
        return bool(self.pieces) or (self.done is not None and self.done.text is not None)

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return any(self.pieces)

    @property
    def may_end(self) -> bool:
        """Whether the whole text has come."""
        return self.done is not None

    def extend(self, events: Sequence[TranscriptEvent]) -> None:
        """Adds events."""
        for event in events:
            if isinstance(event, TranscriptDelta):
                self.pieces.append(event.delta)
            elif isinstance(event, TranscriptDone):
                self.done = event

    @property
    def usage(self) -> TranscriptionUsage | None:
        """The usage, once the server has told it (with the last event)."""
        return self.done.usage if self.done is not None else None

    def text(self) -> str:
        """The text so far; in the end, the server's own whole."""
        if self.done is not None and self.done.text is not None:
            return self.done.text
        return joined(self.pieces)

    def partial(self) -> Partial:
        """The text so far."""
        return partial_of(self.result())

    def result(self) -> Transcription:
        """The whole transcription."""
        return Transcription(text=self.text(), usage=self.usage)


class TranscriptionStream(AssembledStream[TranscriptEvent, Transcription, TranscriptionUsage]):
    """The stream of a transcription: ``TranscriptDelta`` events, and ``TranscriptDone`` at the end.

    Kinds that come later are ``UnknownEvent``.
    """

    def _wording(self) -> Callable[[TranscriptEvent], str]:
        pieces: list[str] = []

        def piece(event: TranscriptEvent) -> str:
            if isinstance(event, TranscriptDelta):
                pieces.append(event.delta)
                return event.delta
            return missing(event.text, pieces) if isinstance(event, TranscriptDone) else ""

        return piece


# --- the resource ----------------------------------------------------------------------------------------------------


class Audio(Resource):
    """Speech to text: ``client.serverless.audio``, ``client.dedicated.audio``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call (of a stream, once it is used); see ``friendli_async.errors``.
    """

    async def transcribe(self, *, model: str, file: Content, **options: Unpack[TranscriptionOptions]) -> Transcription:
        """Writes down what is said and returns it whole.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            file: The sound: a path, bytes, an open binary file, or an async iterator of bytes. It is read while it is
                being sent. An iterator, or a file that cannot be rewound, can be sent only once: that call is not
                retried after its first byte has been read, and its length is not announced.
            options: See ``TranscriptionOptions``.

        Returns:
            The transcription: ``text``, ``usage``, ``meta``.

        Raises:
            ValueError: A bad value, with its path (nothing was sent), or a file that changed while it was being sent.
            OSError: The file cannot be read.
        """
        return await self._engine.call(_TRANSCRIBE, _arguments("transcribe", model, file, options, stream=False))

    def stream(self, *, model: str, file: Content, **options: Unpack[TranscriptionOptions]) -> TranscriptionStream:
        """Writes down what is said and streams it. The call is made when the stream is first used.

        Args:
            model: As for ``transcribe``.
            file: As for ``transcribe``.
            options: See ``TranscriptionOptions``.

        Returns:
            The stream: use it with ``async with`` or ``async for``, or await its ``result()``. When it is opened it
            raises what ``transcribe`` raises.
        """
        return self._stream(model, file, options)

    def _stream(self, model: str | None, file: object, options: Mapping[str, object]) -> TranscriptionStream:
        arguments = _arguments("stream", model, file, options, stream=True)
        return TranscriptionStream(self._engine.opening(_TRANSCRIBE, arguments, TranscriptCollector))


class ContainerAudio(Audio):
    """Speech to text by a self-hosted engine, which has its model: ``client.container.audio``."""

    async def transcribe(
        self, *, model: str | None = None, file: Content, **options: Unpack[TranscriptionOptions]
    ) -> Transcription:
        """Writes down what is said; see ``Audio.transcribe``. ``model`` names an adapter's route."""
        return await self._engine.call(_TRANSCRIBE, _arguments("transcribe", model, file, options, stream=False))

    def stream(
        self, *, model: str | None = None, file: Content, **options: Unpack[TranscriptionOptions]
    ) -> TranscriptionStream:
        """Writes down what is said and streams it; see ``Audio.stream``. ``model`` names an adapter's route."""
        return self._stream(model, file, options)
