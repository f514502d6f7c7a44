"""What an event is, in all the APIs: a payload, one of an unknown kind, a heartbeat, the end, or an error. Pure.

Every stream reads its events here, and every plain reply is looked at here for an error that came with a good status.
What an API adds is its ``Dialect``: ``ChunkDialect`` where an event is told by the fields that it fills (chat,
completions), ``TaggedDialect`` where it has a ``type`` (messages, responses, audio).

An event is looked at in this order:

1. **The end**: data ``[DONE]``, in whatever case and quotes, or nothing under the name ``done`` or ``end``. (Whether
   there may be an end without it, or a last event of the API's own, is the collector's to say: ``may_end``,
   ``is_last``.)
2. **A heartbeat**: no data, ``null``, ``{}``, ``[]``, data that is itself a comment (``: ...``), a bare word of
   ``HEARTBEATS``, in any spelling, or an object that holds such a word, and nothing else in words or in the API's own
   way.
3. **An error**: one that says so (an event so named, a filled ``error``, also in a choice, a type, object or status
   that stands for one), whatever stands beside it; and one that says something in words (see ``error_json``) and
   nothing in the API's own way, as JSON or as text. Content that stands beside an error is delivered before it. An
   empty ``error`` beside content is no error.
4. **A payload**, which msgspec decodes, or else the tolerant reading (``lenient``).
5. **An unknown kind**: delivered, as ``UnknownEvent`` or as a chunk without choices; under a name that the API does not
   know, what is neither a JSON object nor a text of several words is passed over. If the stream then ends without
   having been finished, the words of the last of them are why: see ``is_unexplained``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, get_args

import msgspec

from friendli_async._core.error_json import (
    Fields,
    as_list,
    as_object,
    declares_error,
    describes_error,
    has_message,
    has_value,
    is_error_name,
    is_object,
    is_success,
    json_or_none,
    loads,
    normalize_name,
    wraps_error,
)
from friendli_async._core.error_text import is_message
from friendli_async._core.lenient import convert, decode
from friendli_async._core.status_errors import error_of_payload, excerpt
from friendli_async.errors import APIStatusError, ResponseDecodeError
from friendli_async.replies import Headers, Partial, UnknownEvent, usage_of

__all__ = [
    "DONE",
    "HEARTBEATS",
    "NOT_DECODED",
    "ChunkDialect",
    "Decoded",
    "Dialect",
    "TaggedDialect",
    "decode_reply",
    "no_error_field",
]

E = TypeVar("E")
T = TypeVar("T")

DONE: Final = b"[DONE]"
HEARTBEATS: Final = frozenset({"ping", "pong", "keepalive", "heartbeat", "noop", "tick", "alive"})
"""Words that only say that the server is there; in lower case, without "_", "-" and blanks."""
NOT_DECODED: Final = (ValueError, RecursionError)
"""What msgspec raises: its own errors and Unicode's are ValueErrors."""

_BEATEN: Final = frozenset({"type", "event", "object", "name", "status", "message", "msg", "data"})
_SILENCE: Final = frozenset({b"", b"null", b"{}", b"[]", b'""'})
_ENDS: Final = frozenset({b"[DONE]", b"DONE", b"[END]"})
_END_NAMES: Final = frozenset({"done", "end"})
# Fields that only say to which reply an event belongs.
_LABELS: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "timestamp"})
# Fields of replies that errors have, too.
_VAGUE: Final = frozenset({"status", "name", "type", "role", "usage", "message"})


class Decoded(NamedTuple, Generic[E]):
    """What an event turned out to be: a payload or none, and perhaps an error behind it, or the end."""

    payload: E | None = None
    error: APIStatusError | None = None
    is_end: bool = False


class Dialect(Generic[E]):
    """How one API says things in events.

    Args:
        events: The type of its events: a struct, or a union of structs that ``type`` tells apart.
        ordinary: Whether there is no more to decoded events than what msgspec saw: no error beside the content, no
            content left out.
        rewrite: Gives an event of an older or poorer server the shape of today's, from its name and its fields.
        failure_of: The error that an event of the API's own tells, or None.
    """

    def __init__(
        self,
        events: Any,
        *,
        ordinary: Callable[[Sequence[E], Sequence[bytes]], bool],
        rewrite: Callable[[str | None, Fields], Fields] | None = None,
        failure_of: Callable[[E], APIStatusError | None] | None = None,
    ) -> None:
        self.failure_of: Callable[[E], APIStatusError | None] = failure_of or _no_failure
        self.are_ordinary = ordinary
        self._type = events
        self._rewrite = rewrite

    @cached_property
    def decode_payload(self) -> Callable[[bytes], E]:
        """Decodes the data of an event without a name, or raises one of ``NOT_DECODED``.

        Made on first use: it costs milliseconds, and a service reads few kinds of streams.
        """
        return msgspec.json.Decoder(self._type).decode

    def decode(self, name: str | None, data: bytes, status: int, headers: Headers) -> Decoded[E]:
        """Decodes one event, whatever it is.

        Args:
            name: Its ``event`` field; None where it has none.
            data: Its data.
            status: The HTTP status of the reply, for an error that names none.
            headers: The reply's headers.

        Raises:
            ResponseDecodeError: It is no event of this API, nor anything that could be told in words.
        """
        name = None if name == "message" else name  # the standard's name for an event without one
        is_error, is_everyday = is_error_name(name), self._is_everyday(name)
        if is_everyday and not is_error and (payload := self._ordinary_payload(data)) is not None:
            return Decoded(payload)
        data = data.strip()
        if _is_end(name, data):
            return Decoded(is_end=True)
        tells_by_name = is_error or (is_everyday and name is not None)  # it means something without any data
        if not tells_by_name and _is_silence(data):
            return Decoded()
        value: object = json_or_none(data)
        fields = as_object(value)
        if is_object(value) and not is_error:
            return self._decode_fields(name, fields, data, status, headers)
        if is_error or (name is None and _says_something(value, data)):
            error = error_of_payload(value, data, status, headers)
            return Decoded(self._beside(name, fields), error)
        if is_everyday:
            raise ResponseDecodeError("an event of the stream is no JSON object", excerpt=excerpt(data))
        text: str = value if isinstance(value, str) else data.decode("utf-8", "replace")
        return Decoded(self._unknown(name, {"data": text}) if " " in text else None)

    def is_unexplained(self, event: E, data: bytes) -> bool:
        """Whether an event is of an unknown kind, and says something in words.

        It is delivered, since the answer may go on; if the answer then ends unfinished, it was an error.
        """
        if not self._is_unknown(event):
            return False
        value: object = json_or_none(data)
        fields = as_object(value)
        if isinstance(kind := fields.get("type"), str) and _is_kind(kind):
            return has_message(fields)
        return _says_something(value, data)

    def _ordinary_payload(self, data: bytes) -> E | None:
        try:
            payload = self.decode_payload(data)
        except NOT_DECODED:
            return None
        return payload if self.are_ordinary((payload,), (data,)) else None

    def _decode_fields(
        self, name: str | None, fields: Fields, data: bytes, status: int, headers: Headers
    ) -> Decoded[E]:
        if not self._has_content(name, fields) and _is_heartbeat(name, fields):
            return Decoded()
        if self._is_error(name, fields):
            error = error_of_payload(
                fields, data, status, headers
            )  # before the content is read, which changes the fields
            return Decoded(self._beside(name, fields), error)
        if self._rewrite is not None:
            fields = self._rewrite(name, fields)
        if self._speaks(name, fields):
            try:
                return Decoded(self._payload(name, fields))
            except NOT_DECODED as error:
                reason = str(error)
            raise ResponseDecodeError(f"an event of the stream could not be read: {reason}", excerpt=excerpt(data))
        if has_message(fields) and self._is_everyday(name):
            return Decoded(error=error_of_payload(fields, data, status, headers))
        return Decoded(self._unknown(name, fields))

    def _beside(self, name: str | None, fields: Fields) -> E | None:
        """The content that stands beside an error."""
        fields = {key: item for key, item in fields.items() if key != "error"}
        try:
            return self._payload(name, fields) if self._has_content(name, fields) else None
        except NOT_DECODED:
            return None

    def _is_error(self, name: str | None, fields: Fields) -> bool:
        """Whether an event says that it is an error, whatever stands beside that."""
        return declares_error(fields)

    def _is_unknown(self, event: E) -> bool:
        """Whether an event is one that ``_unknown`` has made."""
        return isinstance(event, UnknownEvent)

    def _is_everyday(self, name: str | None) -> bool:
        """Whether events of this name are this API's."""
        raise NotImplementedError

    def _speaks(self, name: str | None, fields: Fields) -> bool:
        """Whether an event says something in the API's own way."""
        raise NotImplementedError

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        """Whether an event that is an error has a part of the answer, too."""
        raise NotImplementedError

    def _payload(self, name: str | None, fields: Fields) -> E:
        """Makes an event that speaks into a payload. Raises ValueError."""
        raise NotImplementedError

    def _unknown(self, name: str | None, fields: Fields) -> E | None:
        """Makes an event that does not speak into what is delivered; None where it says nothing at all."""
        raise NotImplementedError


class ChunkDialect(Dialect[E]):
    """Events without a ``type``: chunks of a reply, which say something by filling certain fields.

    Args:
        events: The chunk's struct.
        content: Those fields.
        named: Further kinds of events, which have a name; one that lost it is known by ``shape``.
        shape: Fields that all events of further kinds have, and chunks do not.
        ordinary: See ``Dialect``.
        rewrite: See ``Dialect``.
    """

    def __init__(
        self,
        events: type[E],
        *,
        content: frozenset[str],
        ordinary: Callable[[Sequence[E], Sequence[bytes]], bool],
        named: Mapping[str, Any] | None = None,
        shape: frozenset[str] = frozenset(),
        rewrite: Callable[[str | None, Fields], Fields] | None = None,
    ) -> None:
        super().__init__(events, ordinary=ordinary, rewrite=rewrite)
        self._content = content
        self._named = named or {}
        self._shape = shape

    def _kind(self, name: str | None, fields: Fields) -> Any:
        """The type of an event: a further kind's, or the chunk's."""
        if name is not None and name in self._named:
            return self._named[name]
        if self._shape and self._shape <= fields.keys() and not self._has_content(name, fields):
            return next(iter(self._named.values()))
        return self._type

    def _is_error(self, name: str | None, fields: Fields) -> bool:
        kind = self._kind(name, fields)
        if kind is self._type:
            # A chunk has no message: one says that something is wrong, as the vendor's own client has it, too.
            told = fields.get("message")
            return declares_error(fields) or (name is None and bool(told) and not is_success(told))
        # What is told of a tool has an error of its own, while the answer goes on.
        known = kind.__struct_encode_fields__
        return declares_error(fields, known) and not self._is_own(name, fields, known)

    def _is_unknown(self, event: E) -> bool:
        chunk: Any = event
        return isinstance(event, self._type) and not chunk.choices and chunk.message is not None

    def _is_own(self, name: str | None, fields: Fields, known: Sequence[str]) -> bool:
        """Whether an error is one of something that the event tells of, as a tool's, while the answer goes on."""
        told = fields.keys() & set(known) - {"error", "message"}
        certain = name in self._named or isinstance(fields.get("error"), dict) or len(told) > len(self._shape)
        return "error" in known and certain

    def _is_everyday(self, name: str | None) -> bool:
        return name is None

    def _speaks(self, name: str | None, fields: Fields) -> bool:
        if self._has_content(name, fields) or self._kind(name, fields) is not self._type:
            return True
        return has_value(fields, self._content) and not has_message(fields)

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return has_value(fields, self._content - {"usage"})

    def _payload(self, name: str | None, fields: Fields) -> E:
        if not fields.get("error"):
            fields.pop("error", None)
        return cast("E", convert(fields, self._kind(name, fields)))

    def _unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not has_value(fields, _filled_names(fields) - _LABELS - self._content):
            return None  # the head of a reply, before anything of it
        said = {key: fields[key] for key in fields.keys() & _LABELS}
        return cast("E", convert({**said, "message": fields}, self._type))


class TaggedDialect(Dialect[E]):
    """Events with a ``type``; where it is missing, the event's name stands in for it.

    Args:
        events: The union of the structs that it tells apart.
        ordinary: See ``Dialect``.
        holds_unknown: Whether an event of a known kind holds something of an unknown one.
        rewrite: See ``Dialect``.
        failure_of: See ``Dialect``.
    """

    def __init__(
        self,
        events: Any,
        *,
        ordinary: Callable[[Sequence[E], Sequence[bytes]], bool] | None = None,
        holds_unknown: Callable[[str, Fields], bool] | None = None,
        rewrite: Callable[[str | None, Fields], Fields] | None = None,
        failure_of: Callable[[E], APIStatusError | None] | None = None,
    ) -> None:
        super().__init__(events, ordinary=ordinary or no_error_field, rewrite=rewrite, failure_of=failure_of)
        self._kinds = frozenset(str(member.__struct_config__.tag) for member in get_args(events))
        self._holds_unknown = holds_unknown

    def _is_everyday(self, name: str | None) -> bool:
        return name is None or name in self._kinds

    def _kind(self, name: str | None, fields: Fields) -> str | None:
        """What kind an event is: by its type, or where that says nothing, or nothing known, by its name."""
        told = fields.get("type")
        kind = told if isinstance(told, str) and told else name
        return name if name in self._kinds and kind not in self._kinds else kind

    def _speaks(self, name: str | None, fields: Fields) -> bool:
        kind = self._kind(name, fields)
        return kind is not None and _is_kind(kind)

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return self._kind(name, fields) in self._kinds

    def _payload(self, name: str | None, fields: Fields) -> E:
        kind = self._kind(name, fields) or ""
        if kind not in self._kinds or (self._holds_unknown is not None and self._holds_unknown(kind, fields)):
            return cast("E", UnknownEvent(kind, fields))  # it is one of the events of each such API
        return cast("E", convert({**fields, "type": kind}, self._type))

    def _unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not has_value(fields, _filled_names(fields) - {"type"}):
            return None
        return cast("E", UnknownEvent(self._kind(name, fields) or "", fields))


def _filled_names(fields: Fields) -> set[str]:
    """The names of its fields, but for an error that is none."""
    return {name for name, value in fields.items() if name != "error" or value}


def _says_something(value: object, data: bytes) -> bool:
    """Whether data says something in words: as the JSON that it is, or as a text."""
    return describes_error(value) or (value is None and is_message(data))


def _no_failure(event: object) -> None:
    return None


def no_error_field(events: Sequence[object], payloads: Sequence[bytes]) -> bool:
    return not any([b'"error"' in data for data in payloads])  # noqa: C419  # a list is faster than a generator


def _is_kind(name: str) -> bool:
    """Whether a type names a kind of event; in a problem report (RFC 9457) it is a URI."""
    return not any(mark in name for mark in ":/ ")


def _is_end(name: str | None, data: bytes) -> bool:
    """Whether an event says that it is the last one, and nothing else."""
    word = data.strip(b" \t\r\n\"'.;")
    if len(word) <= 6 and word.upper() in _ENDS:
        return True
    return name is not None and name.lower() in _END_NAMES and data in _SILENCE


def _beats(text: object) -> bool:
    if not isinstance(text, str):
        return False
    return len(text) < 16 and normalize_name(text.strip(" .!:<>[]'\"").replace(" ", "")) in HEARTBEATS


def _is_silence(data: bytes) -> bool:
    if data in _SILENCE or data.startswith(b":"):
        return True
    return len(data) < 16 and _beats(data.decode("latin-1"))


def _is_heartbeat(name: str | None, fields: Fields) -> bool:
    """Whether an object that is no content says that the server is there, and nothing else in words."""
    kept = {key: value for key, value in fields.items() if not (key in _BEATEN and _beats(value))}
    beats = len(kept) < len(fields) or (name is not None and _beats(name)) or any(_beats(key) for key in kept)
    return beats and not describes_error({key: value for key, value in kept.items() if not _beats(key)})


# Where none of these stands in a good reply with content of its own, it does not say that it is an error.
_ERROR: Final = b'"error'
_FAIL: Final = b'"fail'
_SUCCESS: Final = b'"success"'


def decode_reply(data: bytes, decoder: msgspec.json.Decoder[T], status: int, headers: Headers) -> T:
    """Decodes a plain reply with a good status.

    Raises:
        APIStatusError: It is an error all the same.
        ResponseDecodeError: It is not what the API promises.
    """
    kind: Any = decoder.type
    own = _own_fields(kind)
    if _ERROR in data or _FAIL in data or _SUCCESS in data:
        value: object = json_or_none(data)
        fields = as_object(value)
        if declares_error(value, own) or wraps_error(fields):
            error = error_of_payload(value, data, status, headers)
            error.partial = _content_beside(fields, decoder)
            raise error
    try:
        reply = decode(data, decoder)
    except ResponseDecodeError:
        value = json_or_none(data)
        if not (is_message(data) if value is None else _only_words(value, own)):
            raise
    else:
        if own and _has_answer(reply):
            return reply if getattr(reply, "text", None) != "" else _with_answers(reply, data, decoder)
        value = json_or_none(data)
        if not _only_words(value, own):
            _check_is_own(reply, as_object(value), data, own)
            return reply
    raise error_of_payload(value, data, status, headers)


@cache
def _own_fields(kind: Any) -> frozenset[str]:
    """The fields of a reply, or of those that it may be; none where it may be anything."""
    members: tuple[Any, ...] = get_args(kind) or (kind,)
    return frozenset(name for member in members for name in getattr(member, "__struct_encode_fields__", ()))


def _check_is_own(reply: object, fields: Fields, data: bytes, own: Collection[str]) -> None:
    """Refuses a reply that says little, and nothing of an error, where that is nothing of the API's, or no answer.

    Raises:
        ResponseDecodeError: It is.
    """
    if own and fields and not fields.keys() & own:
        raise ResponseDecodeError("the server's reply has no field of this API", excerpt=excerpt(data))
    if not _is_answered(reply):
        wanted = " and no ".join(getattr(reply, "answered_by", ()))
        raise ResponseDecodeError(f"the server's reply has no answer: it has no {wanted}", excerpt=excerpt(data))


def _has_answer(reply: object) -> bool:
    """Whether a reply has what it is for: nothing that an error may have, too."""
    for name in getattr(reply, "answered_by", ()):
        if getattr(reply, name) and name not in _VAGUE:
            return True
    return _says_own(reply) and _is_answered(reply)


def _is_answered(reply: object) -> bool:
    wanted: tuple[str, ...] = getattr(reply, "answered_by", ())
    return not wanted or any(getattr(reply, name) not in (None, (), "") for name in wanted)


def _says_own(reply: Any) -> bool:
    """Whether anything of a reply is filled but what any error may have, too."""
    for name in reply.__struct_fields__ if isinstance(reply, msgspec.Struct) else ():
        value: object = getattr(reply, name)
        if value in (None, (), [], {}, "") or name in _LABELS:
            continue
        if name not in _VAGUE or (isinstance(value, str) and value in _named_values(reply.__class__, name)):
            return True
    return False


@cache
def _named_values(struct: Any, name: str) -> frozenset[object]:
    """The values that the API names for a field."""
    kinds = [field.type for field in msgspec.structs.fields(struct) if field.name == name]
    return frozenset(value for kind in kinds for member in get_args(kind) for value in get_args(member))


def _content_beside(fields: Fields, decoder: msgspec.json.Decoder[Any]) -> Partial | None:
    """What stands of an answer beside an error: it was paid for."""
    try:
        reply = convert({name: each for name, each in fields.items() if name != "error"}, decoder.type)
    except NOT_DECODED:
        return None
    text, usage = getattr(reply, "text", ""), usage_of(reply)
    return Partial(text=text, reasoning=getattr(reply, "reasoning", ""), usage=usage) if text or usage else None


def _with_answers(reply: T, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A reply without any text: a choice may have its answer where another API, or a stream, has it.

    Raises:
        ResponseDecodeError: A choice has none at all.
    """
    own_choices: Any = getattr(reply, "choices", ())
    if not own_choices:
        return reply
    fields = as_object(loads(data))
    choices = list(map(as_object, as_list(fields["choices"]) or [fields["choices"]]))  # or one by itself
    wanted = "message" if hasattr(own_choices[0], "message") else "text"
    lacking = [choice for choice in choices if _lacks(choice, wanted)]
    moved = [choice for choice in lacking if _move_answer(choice, wanted)]
    if any(_lacks(choice, wanted) and not (wanted in choice and choice.get("finish_reason")) for choice in lacking):
        raise ResponseDecodeError("a choice of the server's reply has no answer", excerpt=excerpt(data))
    return cast("T", convert({**fields, "choices": choices}, decoder.type)) if moved else reply


_ANSWERS: Final = ("content", "tool_calls", "reasoning_content", "reasoning", "reasoning_details", "refusal")


def _lacks(choice: Fields, wanted: str) -> bool:
    """Whether a choice does not even say that its answer is empty."""
    answer = choice.get(wanted)
    return answer is None or (isinstance(answer, dict) and not any(name in answer for name in _ANSWERS))


def _move_answer(choice: Fields, wanted: str) -> bool:
    said = choice.get("message") or choice.get("delta") or choice.get("text")
    message = as_object(said) if is_object(said) else {"content": said}
    if isinstance(message.get("text"), str):
        message = {"content": message["text"], **message}
    answer = message if wanted == "message" else message.get("content")
    if said is None or (wanted == "text" and not isinstance(answer, str)):
        return False
    choice[wanted] = answer
    return True


def _only_words(value: object, own: Collection[str]) -> bool:
    """Whether a reply says something in words, and nothing in the API's own way."""
    if not is_object(value):
        return describes_error(value)
    fields = as_object(value)
    if wraps_error(fields) or declares_error(fields):
        return True
    if has_value(fields, [name for name in own if name not in _LABELS | _VAGUE and not is_error_name(name)]):
        return False
    return describes_error({name: each for name, each in fields.items() if name not in own or is_error_name(name)})
