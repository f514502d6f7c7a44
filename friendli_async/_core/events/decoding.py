"""What an event is, in all the APIs: a payload, one of an unknown kind, a heartbeat, the end, or an error. Pure.

Every stream reads its events here, and every plain reply is looked at here for an error that came with a good status.
What an API adds is its ``Dialect``: ``ChunkDialect`` where an event is told by the fields that it fills (chat,
completions), ``TaggedDialect`` where it has a ``type`` (messages, responses, audio).

An event is looked at in this order:

1. **The end**: data ``[DONE]``, blanks and quotes around it or not. (Whether there may be an end without it, or a last
   event of the API's own, is the collector's to say: ``may_end``, ``is_last``.)
2. **A heartbeat**: no data, ``null``, ``{}``, ``[]``, data that is itself a comment (``: ...``), a bare word of
   ``HEARTBEATS``, or an event that has such a word for its name or its type and says nothing in the API's own way.
3. **An error**: one that says so (an event so named, a filled ``error``, a type or object ``error``), whatever stands
   beside it, and one that says something in words and nothing in the API's own way. Content that stands beside an error
   is delivered before it. An empty ``error`` beside content is no error.
4. **A payload**, which msgspec decodes, or else the tolerant reading (``lenient``).
5. **An unknown kind**: delivered, as ``UnknownEvent`` or as a chunk without choices. Under a name that the API does not
   know, what is no JSON object is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Final, Generic, NamedTuple, TypeVar, cast, get_args

import msgspec

from friendli_async._core.error_bodies import excerpt, has_words, is_filled, loads, parsed, said_error, says_error
from friendli_async._core.lenient import convert, decode
from friendli_async.errors import APIStatusError, ResponseDecodeError
from friendli_async.replies import Headers, UnknownEvent

__all__ = [
    "DONE",
    "HEARTBEATS",
    "ChunkDialect",
    "Decoded",
    "Dialect",
    "TaggedDialect",
    "decode_reply",
    "no_error_beside",
]

E = TypeVar("E")
T = TypeVar("T")
Fields = dict[str, Any]

DONE: Final = b"[DONE]"
HEARTBEATS: Final = frozenset({"ping", "pong", "keepalive", "keep-alive", "keep_alive", "heartbeat"})

_SILENCE: Final = frozenset({b"", b"null", b"{}", b"[]", b'""', *(word.encode() for word in HEARTBEATS)})
# Fields that only say to which reply an event belongs.
_LABELS: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "timestamp"})


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
        self._type = events
        self._ordinary = ordinary
        self._rewrite = rewrite

    @cached_property
    def _decode(self) -> Callable[[bytes], E]:
        """Made on first use: it costs milliseconds, and a service reads few kinds of streams."""
        return msgspec.json.Decoder(self._type).decode

    def decode_all(self, payloads: Sequence[bytes]) -> Sequence[E] | None:
        """Decodes the data of nameless events, all at once; None if there is one that ``decode`` has to look at."""
        try:
            events = list(map(self._decode, payloads))
        except (ValueError, RecursionError):  # msgspec's and Unicode errors are ValueErrors
            return None
        return events if self._ordinary(events, payloads) else None

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
        is_error = name is not None and _names_an_error(name)
        if not is_error and self._is_everyday(name) and (events := self.decode_all((data,))) is not None:
            return Decoded(events[0])
        data = data.strip()
        if data.strip(b'"') == DONE:
            return Decoded(is_end=True)
        if (data in _SILENCE or data.startswith(b":")) and not is_error and not self._tells_by_name(name):
            return Decoded()
        value = parsed(data)
        if is_error or isinstance(value, str) or self._is_error(name, value):
            error = said_error(value, data, status, headers)
            return Decoded(self._beside(name, value), error)
        if isinstance(value, dict):
            return self._decode_fields(name, cast("Fields", value), data, status, headers)
        if name is not None and not self._is_everyday(name):
            return Decoded()  # of a kind that this version does not know, and no JSON object: no event of this API
        raise ResponseDecodeError("an event of the stream is no JSON object", excerpt=excerpt(data))

    def _decode_fields(
        self, name: str | None, fields: Fields, data: bytes, status: int, headers: Headers
    ) -> Decoded[E]:
        if self._rewrite is not None:
            fields = self._rewrite(name, fields)
        if self._speaks(name, fields):
            try:
                return Decoded(self._payload(name, fields))
            except (ValueError, RecursionError) as error:
                reason = str(error)
            raise ResponseDecodeError(f"an event of the stream could not be read: {reason}", excerpt=excerpt(data))
        if (name in HEARTBEATS or _is_among(HEARTBEATS, fields.get("type"))) and not has_words(fields):
            return Decoded()
        if has_words(fields) and self._is_everyday(name):
            return Decoded(error=said_error(fields, data, status, headers))
        return Decoded(self._unknown(name, fields))

    def _beside(self, name: str | None, value: object) -> E | None:
        """The content that stands beside an error."""
        if not isinstance(value, dict):
            return None
        fields = {key: item for key, item in cast("Fields", value).items() if key != "error"}
        try:
            return self._payload(name, fields) if self._has_content(name, fields) else None
        except (ValueError, RecursionError):
            return None

    def _is_error(self, name: str | None, value: object) -> bool:
        """Whether an event says that it is an error, whatever stands beside that."""
        return says_error(value)

    def _is_everyday(self, name: str | None) -> bool:
        """Whether events of this name are this API's."""
        raise NotImplementedError

    def _tells_by_name(self, name: str | None) -> bool:
        """Whether this name is all that need be told: the event means something without any data."""
        return name is not None and self._is_everyday(name)

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
        if self._shape and self._shape <= fields.keys() and not is_filled(fields, self._content):
            return next(iter(self._named.values()))
        return self._type

    def _is_error(self, name: str | None, value: object) -> bool:
        if not isinstance(value, dict):
            return says_error(value)
        fields = cast("Fields", value)
        kind = self._kind(name, fields)
        if kind is self._type:
            # A chunk has no message: one says that something is wrong, as the vendor's own client has it, too.
            return says_error(fields) or (name is None and bool(fields.get("message")))
        # What is told of a tool has an error of its own, an object, while the answer goes on.
        own = "error" in kind.__struct_encode_fields__ and isinstance(fields.get("error"), dict)
        return says_error(fields) and not own

    def _is_everyday(self, name: str | None) -> bool:
        return name is None

    def _speaks(self, name: str | None, fields: Fields) -> bool:
        if self._has_content(name, fields) or self._kind(name, fields) is not self._type:
            return True
        return is_filled(fields, self._content) and not has_words(fields)

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return is_filled(fields, self._content - {"usage"})

    def _payload(self, name: str | None, fields: Fields) -> E:
        if not fields.get("error"):
            fields.pop("error", None)
        payload: E = convert(fields, self._kind(name, fields))
        return payload

    def _unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not is_filled(fields, fields.keys() - _LABELS - self._content):
            return None  # the head of a reply, before anything of it
        said = {key: fields[key] for key in fields.keys() & _LABELS}
        payload: E = convert({**said, "message": fields}, self._type)
        return payload


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
        super().__init__(events, ordinary=ordinary or no_error_beside, rewrite=rewrite, failure_of=failure_of)
        self._kinds = frozenset(str(member.__struct_config__.tag) for member in get_args(events))
        self._holds_unknown = holds_unknown

    def _is_everyday(self, name: str | None) -> bool:
        return name is None or name in self._kinds

    def _speaks(self, name: str | None, fields: Fields) -> bool:
        kind = fields.get("type") or name
        return isinstance(kind, str) and kind not in HEARTBEATS

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return _is_among(self._kinds, fields.get("type") or name)

    def _payload(self, name: str | None, fields: Fields) -> E:
        kind = str(fields.get("type") or name)
        if kind not in self._kinds or (self._holds_unknown is not None and self._holds_unknown(kind, fields)):
            return cast("E", UnknownEvent(kind, fields))  # it is one of the events of each such API
        payload: E = convert({**fields, "type": kind}, self._type)
        return payload

    def _unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not is_filled(fields, fields.keys() - {"type"}):
            return None
        return cast("E", UnknownEvent(name or "", fields))


def _no_failure(event: object) -> None:
    return None


def no_error_beside(events: Sequence[object], payloads: Sequence[bytes]) -> bool:
    return not any([b'"error"' in data for data in payloads])  # noqa: C419  # a list is faster than a generator


def _is_among(words: frozenset[str], value: object) -> bool:
    return isinstance(value, str) and value in words  # a list or an object cannot even be looked up


def _names_an_error(name: str) -> bool:
    name = name.lower()
    return "error" in name or name in {"exception", "fatal"}


def decode_reply(data: bytes, decoder: msgspec.json.Decoder[T], status: int, headers: Headers) -> T:
    """Decodes a plain reply with a good status.

    Raises:
        APIStatusError: It is an error all the same.
        ResponseDecodeError: It is not what the API promises.
    """
    own: tuple[str, ...] = getattr(decoder.type, "__struct_encode_fields__", ())
    if b'"error"' in data and "error" not in own and _says_error(value := parsed(data)):
        raise said_error(value, data, status, headers)
    try:
        reply = decode(data, decoder)
    except ResponseDecodeError:
        if not _only_words(value := parsed(data), [name for name in own if name not in _LABELS]):
            raise
    else:
        hollow = bool(own) and _is_hollow(reply)
        if not (hollow or _takes_anything(decoder)) or not _only_words(value := parsed(data), own):
            if hollow:
                _check_is_own(parsed(data), own, data)
            return reply if getattr(reply, "text", None) != "" else _with_answers(reply, data, decoder)
    raise said_error(value, data, status, headers)


def _says_error(value: object) -> bool:
    """Whether a plain reply says that it is an error; ``status`` is another thing in events, and in words alone."""
    if says_error(value):
        return True
    fields = cast("Fields", value) if isinstance(value, dict) else {}
    return fields.get("status") == "error" and has_words(fields)


def _check_is_own(value: object, own: Collection[str], data: bytes) -> None:
    """Refuses a hollow reply that says something, and nothing of it in the API's own fields."""
    if isinstance(value, dict) and value and not set(cast("Fields", value)) & set(own):
        raise ResponseDecodeError("the server's reply has no field of this API", excerpt=excerpt(data))


def _with_answers(reply: T, data: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """A reply without any text: a choice may have its answer where another API, or a stream, has it.

    Raises:
        ResponseDecodeError: A choice has none at all.
    """
    choices: Any = getattr(reply, "choices", ())
    if not choices:
        return reply
    value: Any = loads(data)
    wanted = "message" if hasattr(choices[0], "message") else "text"
    lacking = [choice for choice in value["choices"] if choice.get(wanted) is None]
    moved = [choice for choice in lacking if _move_answer(choice, wanted)]
    if any(wanted not in choice for choice in lacking):
        raise ResponseDecodeError("a choice of the server's reply has no answer", excerpt=excerpt(data))
    return cast("T", convert(value, decoder.type)) if moved else reply


def _move_answer(choice: Fields, wanted: str) -> bool:
    said = choice.get("message") or choice.get("delta") or choice.get("text")
    message = cast("Fields", said) if isinstance(said, dict) else {"content": said}
    answer = message if wanted == "message" else message.get("content")
    if said is None or (wanted == "text" and not isinstance(answer, str)):
        return False
    choice[wanted] = answer
    return True


def _is_hollow(reply: object) -> bool:
    """Whether nothing of a reply is filled but what says which one it is."""
    fields = msgspec.structs.asdict(cast("msgspec.Struct", reply))
    return all(fields[name] in (None, (), [], {}, "") for name in fields.keys() - _LABELS)


def _only_words(value: object, own: Collection[str]) -> bool:
    """Whether a reply says something in words, and nothing in the API's own way."""
    if not isinstance(value, dict):
        return isinstance(value, str) and bool(value) and bool(own)
    fields = cast("Fields", value)
    return has_words(fields) and not is_filled(fields, [name for name in own if name != "message"])


@cache
def _takes_anything(decoder: msgspec.json.Decoder[Any]) -> bool:
    """Whether a decoder finds nothing missing in an empty object, so that an error could pass for a reply."""
    try:
        decoder.decode(b"{}")
    except msgspec.DecodeError:
        return False
    return True
