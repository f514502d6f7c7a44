"""Classifies the events of every API: payload, unknown kind, heartbeat, end of stream or error. No I/O.

Every stream decodes its events here. ``plain_reply`` decodes plain replies, by the same definition of an error.
An API contributes its ``Dialect``: ``ChunkDialect`` if the filled fields identify an event (chat, completions),
``TaggedDialect`` if its ``type`` does (messages, responses, audio). An event is *recognized* if it has the form of
the API's events; *content* is a part of the reply.

An event is classified in this order:

1. **End of stream**: data ``[DONE]``, in any case and quotes, or empty data under the event name ``done`` or ``end``.
   (The collector decides whether the stream may end without it, or with a final event of the API's own: ``may_end``,
   ``is_last``.)
2. **Heartbeat**: empty data, ``null``, ``{}``, ``[]``, data that is itself a comment (``: ...``), one of
   ``HEARTBEATS`` in any spelling, or an object that holds one, without content and without an error message.
3. **Error**: an event named an error; one of the API's own form with a filled ``error``, also in a choice; or an
   unrecognized one, JSON or text, that says so in any way or has a message (see ``error_json``). Content in the same
   event is delivered before the error. An ``error`` that is empty or reports success is ignored. Only a message, which
   may be a note, is no error after the end of the answer (``Decoded.is_guess``).
4. **Payload**: decoded by msgspec, or else by the lenient fallback (``lenient``).
5. **Unknown kind**: delivered, as ``UnknownEvent`` or as a chunk without choices. Under an event name that the API does
   not use, data that is neither a JSON object nor a text of several words is skipped.

A message or a failure flag beside fields of the API, or in an event of an unknown kind, does not make an error, because
the API may add fields and kinds. If the stream then ends unfinished, the last such event is raised as the error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeGuard, TypeVar, cast, get_args

import msgspec

from friendli_async._core.error_json import (
    error_beside_reply,
    explicit_error,
    has_value,
    holds_content,
    is_blank,
    is_error_alone,
    is_error_name,
    is_success,
    looks_like_error,
    normalize_name,
)
from friendli_async._core.error_text import is_message
from friendli_async._core.lenient import convert, has_usage_without_counts
from friendli_async._core.status_errors import error_of_payload, excerpt
from friendli_async._json import Fields, as_object, is_object, items_of, json_or_none, type_lock
from friendli_async._locks import cached_property
from friendli_async.errors import APIStatusError, ResponseDecodeError
from friendli_async.replies import ReplyHead, UnknownEvent

E = TypeVar("E")

HEARTBEATS: Final = frozenset({"ping", "pong", "keepalive", "heartbeat", "noop", "tick", "alive"})
"""Words of keep-alive events, in lower case, without "_", "-" and spaces."""
NOT_DECODED: Final = (ValueError, RecursionError)
"""What msgspec raises: its own errors and Unicode errors are ValueErrors."""

_DEFAULT_NAME: Final = "message"
"""The name of an event without a name in the SSE standard; some servers send it."""
_HEARTBEAT_FIELDS: Final = frozenset({"type", "event", "object", "name", "status", "message", "msg", "data"})
_EMPTY_DATA: Final = frozenset({b"", b"null", b"{}", b"[]", b'""', b"false", b"None", b"undefined"})
"""Nothing in JSON, Python and JavaScript: gateways send it for an event of which they have found no content."""
_SENTINELS: Final = frozenset({b"[DONE]", b"DONE", b"[END]"})
_END_EVENTS: Final = frozenset({"done", "end"})
METADATA: Final = frozenset({"id", "object", "created", "model", "system_fingerprint", "service_tier", "timestamp"})
"""Fields that only identify the reply."""
_CHUNK_FIELDS: Final = frozenset({"choices", "usage"})
"""Fields of which a chunk fills one at least."""


class Decoded(NamedTuple, Generic[E]):
    """A classified event: a payload or None, and an error that follows it, or the end of the stream."""

    payload: E | None = None
    error: APIStatusError | None = None
    is_end: bool = False
    is_guess: bool = False
    """Whether it may be no error: ``error`` counts only before the end of the answer, and without one, the payload is
    raised as the error if the stream ends unfinished."""


def _no_failure(event: object, head: ReplyHead) -> None:
    return None


class Dialect(msgspec.Struct, Generic[E], dict=True, eq=False):
    """How one API encodes its events."""

    events: Any
    """The type of its events: a struct, or a union of structs tagged by ``type``."""
    rewrite: Callable[[str | None, Fields], Fields] | None = None
    """Converts the fields of an event of a kind from an older or less compatible server to the current shape."""
    failure_of: Callable[[E, ReplyHead], APIStatusError | None] = _no_failure
    """Returns the error that one of the API's own events reports, in a reply with this head, or None."""

    def are_ordinary(self, events: Sequence[E], payloads: Sequence[bytes]) -> bool:
        """Whether msgspec's decoding of some payloads was complete. Such events take the fast path.

        It is complete if they hold no error next to the content, and no content that was ignored.
        """
        raise NotImplementedError

    @cached_property
    def redundant_names(self) -> frozenset[bytes]:
        """The event names that say no more than the data: see ``SSEDecoder``."""
        return frozenset({_DEFAULT_NAME.encode()})

    @cached_property
    def decode_payload(self) -> Callable[[bytes], E]:
        """Decodes the data of an event without a name, or raises one of ``NOT_DECODED``.

        Built on first use: that takes milliseconds, and a service reads few kinds of streams.
        """
        with type_lock:
            return msgspec.json.Decoder(self.events).decode

    def decode(self, name: str | None, data: bytes, head: ReplyHead) -> Decoded[E]:
        """Decodes and classifies one event; ``name`` is its ``event`` field.

        Raises:
            ResponseDecodeError: The event is recognized but its content cannot be decoded, or it is neither a JSON
                object nor an error message.
        """
        name = None if name == _DEFAULT_NAME else name
        is_error, is_own_name = is_error_name(name), self._is_own_name(name)
        if is_own_name and (payload := self._decode_fast(data)) is not None:
            return Decoded(payload)
        data = data.strip()
        if _is_end(name, data):
            return Decoded(is_end=True)
        needs_no_data = is_error or (is_own_name and name is not None)  # the name alone is significant
        if not needs_no_data and _is_empty_or_heartbeat(data):
            return Decoded()
        value: object = json_or_none(data)
        fields = as_object(value)
        if is_object(value) and not is_error:
            return self._decode_fields(name, fields, data, head)
        has_message = is_error_alone(value) or (value is None and is_message(data))
        if is_error or (name is None and has_message):
            error = error_of_payload(value, data, head, is_named=is_error)
            is_guess = not is_error and not explicit_error(value)
            return Decoded(self._content_with_error(name, fields), error, is_guess=is_guess)
        if is_own_name:
            raise ResponseDecodeError("an event of the stream is not a JSON object", excerpt=excerpt(data))
        text: str = value if isinstance(value, str) else data.decode("utf-8", "replace")
        payload = self._build_unknown(name, {"data": text}) if " " in text else None
        return Decoded(payload, is_guess=has_message)

    def _decode_fast(self, data: bytes) -> E | None:
        try:
            payload = self.decode_payload(data)
        except NOT_DECODED:
            return None
        return payload if self.are_ordinary((payload,), (data,)) else None

    def _decode_fields(self, name: str | None, fields: Fields, data: bytes, head: ReplyHead) -> Decoded[E]:
        if not self._has_content(name, fields) and _is_heartbeat(name, fields):
            return Decoded()
        if self._is_error(name, fields):
            error = error_of_payload(fields, data, head)  # first: converting the content changes the fields
            return Decoded(self._content_with_error(name, fields), error)
        if self.rewrite is not None:
            fields = self.rewrite(self._kind(name, fields), fields)
        if self._is_recognized(name, fields):
            is_guess = self._may_be_error(name, fields)
            try:
                return Decoded(self._build_payload(name, fields), is_guess=is_guess)
            except NOT_DECODED as error:
                reason = str(error)
            raise ResponseDecodeError(f"an event of the stream could not be decoded: {reason}", excerpt=excerpt(data))
        if looks_like_error(fields) and self._is_own_name(name) and not self._has_shape(name, fields):
            return Decoded(error=error_of_payload(fields, data, head), is_guess=True)
        kind = fields.get("type")
        is_guess = looks_like_error(fields) if isinstance(kind, str) and _is_kind_name(kind) else is_error_alone(fields)
        return Decoded(self._build_unknown(name, fields), is_guess=is_guess)

    def _content_with_error(self, name: str | None, fields: Fields) -> E | None:
        """Returns the content of an event that also carries an error, or None."""
        fields = {key: item for key, item in fields.items() if key != "error"}
        try:
            return self._build_payload(name, fields) if self._has_content(name, fields) else None
        except NOT_DECODED:
            return None

    def _kind(self, name: str | None, fields: Fields) -> str | None:
        """Returns the kind of an event: its name, for events without a ``type``."""
        return name

    def _is_error(self, name: str | None, fields: Fields) -> bool:
        """Whether an event says that it is an error."""
        return error_beside_reply(fields) if self._has_shape(name, fields) else explicit_error(fields)

    def _has_shape(self, name: str | None, fields: Fields) -> bool:
        """Whether an event has the form of the API's events, even if it holds nothing."""
        return self._is_recognized(name, fields)

    def _may_be_error(self, name: str | None, fields: Fields) -> bool:
        """Whether a recognized event looks like an error, which is raised if the stream ends unfinished."""
        return not self._has_content(name, fields) and looks_like_error(fields)

    def _is_own_name(self, name: str | None) -> bool:
        """Whether the API's own events have this name (None: no name)."""
        raise NotImplementedError

    def _is_recognized(self, name: str | None, fields: Fields) -> bool:
        """Whether an event has the form of the API's events: content fields, or a ``type`` that names a kind."""
        raise NotImplementedError

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        """Whether an event carries a part of the reply, even if it also carries an error."""
        raise NotImplementedError

    def _build_payload(self, name: str | None, fields: Fields) -> E:
        """Converts a recognized event. Raises ValueError."""
        raise NotImplementedError

    def _build_unknown(self, name: str | None, fields: Fields) -> E | None:
        """Converts an unrecognized event; returns None if it carries no information."""
        raise NotImplementedError


class ChunkDialect(Dialect[E], kw_only=True):
    """Events without a ``type``: chunks of the choices of a reply, recognized by the fields that they fill."""

    further: Any = None
    """The struct of a further kind of event, such as the status of a tool; None if there is none."""
    further_name: str = ""
    """The name of such an event. Without it, the event is recognized by ``shape``."""
    shape: frozenset[str] = frozenset()
    """The fields that all such events have, and chunks do not."""

    def _struct_of(self, name: str | None, fields: Fields) -> Any:
        """Returns the struct of an event: that of the further kind, or the chunk."""
        if self._has_content(name, fields):
            return self.events  # whatever its name
        return self.further if name == self.further_name or self.is_further(fields) else self.events

    def is_further(self, fields: Fields) -> bool:
        """Whether an event without content has the fields of an event of the further kind."""
        return bool(self.shape) and self.shape <= fields.keys()

    def _is_error(self, name: str | None, fields: Fields) -> bool:
        struct = self._struct_of(name, fields)
        if struct is self.events:
            return super()._is_error(name, fields)
        # A tool's status may have an error of its own while the reply continues.
        known = struct.__struct_encode_fields__
        return error_beside_reply(fields, known) and not self._is_nonfatal_error(name, fields, known)

    def _has_shape(self, name: str | None, fields: Fields) -> bool:
        is_list = isinstance(fields.get("choices"), list)
        # MiniMax sends zeros with an error in place of a reply.
        return is_list or self._has_content(name, fields) or not is_blank(fields.get("usage"))

    def _may_be_error(self, name: str | None, fields: Fields) -> bool:
        if self._struct_of(name, fields) is not self.events:
            return False
        if has_answer(fields):  # as on the fast path, which looks at no other field
            fields = {"message": fields.get("message")}
        return looks_like_error(fields)

    def _is_nonfatal_error(self, name: str | None, fields: Fields, known: Sequence[str]) -> bool:
        """Whether an error is only that of what a further event reports, such as a tool: the reply continues.

        The event must be identified by its name, an object in ``error``, or more of its fields than ``shape``.
        """
        present = fields.keys() & set(known) - {"error", "message"}
        return name == self.further_name or isinstance(fields.get("error"), dict) or len(present) > len(self.shape)

    def _is_own_name(self, name: str | None) -> bool:
        return name is None

    def _is_recognized(self, name: str | None, fields: Fields) -> bool:
        if self._has_content(name, fields) or self._struct_of(name, fields) is not self.events:
            return True
        return has_value(fields, _CHUNK_FIELDS)

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return has_value(fields, ("choices",))

    def _build_payload(self, name: str | None, fields: Fields) -> E:
        if is_blank(fields.get("error")):
            fields.pop("error", None)
        return cast("E", convert(fields, self._struct_of(name, fields)))

    def _build_unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not has_value(fields, _names_of_fields(fields) - METADATA - _CHUNK_FIELDS):
            return None  # only metadata, ahead of the content
        metadata = {key: fields[key] for key in fields.keys() & METADATA}
        return cast("E", convert({**metadata, "message": fields}, self.events))


class TaggedDialect(Dialect[E], kw_only=True):
    """Events with a ``type``; if it is missing, the event's name is used instead."""

    reporting: frozenset[type]
    """The structs of the events that may report the usage, or a failure."""
    holds_unknown: Callable[[str, Fields], bool] | None = None
    """Whether the object in an event of a known kind is absent, or of an unknown kind."""

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(str(member.__struct_config__.tag) for member in get_args(self.events))

    @cached_property
    def redundant_names(self) -> frozenset[bytes]:
        """The default name, and those of its kinds, which the events repeat."""
        return frozenset(kind.encode() for kind in {_DEFAULT_NAME, *self._kinds})

    def are_ordinary(self, events: Sequence[E], payloads: Sequence[bytes]) -> bool:
        """Whether no event has an ``error`` or reports a failure, or a usage that may be absent."""
        if len(events) == 1 and type(events[0]) not in self.reporting:  # as in nearly all reads of a live stream
            return b'"error"' not in payloads[0]
        if any([b'"error"' in data for data in payloads]):  # noqa: C419  # a list is faster than a generator
            return False
        if self.reporting.isdisjoint(map(type, events)):
            return True
        head = ReplyHead(200)  # of no consequence for whether there is a failure
        return not any(has_usage_without_counts(event) or self.failure_of(event, head) for event in events)

    def _is_error(self, name: str | None, fields: Fields) -> bool:
        if fields.get("type") in tuple(self._kinds):  # as on the fast path
            return error_beside_reply(fields)
        is_named = is_error_name(fields.get("type")) or is_error_name(fields.get("object"))  # Anthropic; vLLM
        return is_named or super()._is_error(name, fields)

    def _is_own_name(self, name: str | None) -> bool:
        return name is None or name in self._kinds

    def _kind(self, name: str | None, fields: Fields) -> str | None:
        """Returns its ``type``, or its name if only that is known or ``type`` is missing."""
        tag = fields.get("type")
        kind = tag if isinstance(tag, str) and tag else name
        return name if name in self._kinds and kind not in self._kinds else kind

    def _is_recognized(self, name: str | None, fields: Fields) -> bool:
        kind = self._kind(name, fields)
        return kind is not None and _is_kind_name(kind)

    def _has_content(self, name: str | None, fields: Fields) -> bool:
        return self._kind(name, fields) in self._kinds

    def _build_payload(self, name: str | None, fields: Fields) -> E:
        kind = self._kind(name, fields) or ""
        if kind not in self._kinds or (self.holds_unknown is not None and self.holds_unknown(kind, fields)):
            return cast("E", UnknownEvent(kind, fields))  # the union of every such API includes it
        return cast("E", convert({**fields, "type": kind}, self.events))

    def _build_unknown(self, name: str | None, fields: Fields) -> E | None:
        if name is None and not has_value(fields, _names_of_fields(fields) - {"type"}):
            return None
        return cast("E", UnknownEvent(self._kind(name, fields) or "", fields))


def _names_of_fields(fields: Fields) -> set[str]:
    """The names of the fields, except that of an ``error`` that is empty or says success."""
    return {name for name, value in fields.items() if name != "error" or (value and not is_success(value))}


def has_answer(fields: Fields) -> bool:
    """Whether a choice of a chunk holds anything, or has finished."""
    return any(holds_content(choice) or _is_finished(choice) for choice in items_of(fields.get("choices")))


def _is_finished(choice: object) -> bool:
    reason = as_object(choice).get("finish_reason")
    return isinstance(reason, str) and is_end_of_choice(reason)


_USUAL_REASONS: Final = frozenset({"stop", "length", "tool_calls"})
"""Finish reasons of nearly every choice, which need no closer look."""
_ABORTED: Final = "abort"
"""The finish reason with which vLLM and SGLang end a choice that they have not finished."""
_NO_REASONS: Final = frozenset({"null", "None"})
"""Texts that some servers send as the finish reason of a choice that has not finished."""


def is_finish_reason(reason: str | None) -> TypeGuard[str]:
    """Whether a finish reason is one, and not empty or one of ``_NO_REASONS``."""
    return bool(reason) and reason not in _NO_REASONS


def is_end_of_choice(reason: str | None) -> bool:
    """Whether a finish reason says that a choice has all that the model was to generate, and not that it failed."""
    return reason in _USUAL_REASONS or (is_finish_reason(reason) and reason != _ABORTED and not is_error_name(reason))


def _is_kind_name(name: str) -> bool:
    """Whether a ``type`` can name a kind of event; that of a problem report (RFC 9457) is a URI."""
    return not any(mark in name for mark in ":/ ")


def _is_end(name: str | None, data: bytes) -> bool:
    """Whether an event is the end of the stream: a sentinel like ``[DONE]``, or empty data under the name ``done``."""
    word = data.strip(b" \t\r\n\"'.;")
    if len(word) <= 6 and word.upper() in _SENTINELS:
        return True
    return name is not None and name.lower() in _END_EVENTS and data in _EMPTY_DATA


def _is_heartbeat_word(text: object) -> bool:
    """Whether a value is a text that is one of ``HEARTBEATS``, in any case and punctuation."""
    if not isinstance(text, str):
        return False
    return len(text) < 16 and normalize_name(text.strip(" .!:<>[]'\"").replace(" ", "")) in HEARTBEATS


def _is_empty_or_heartbeat(data: bytes) -> bool:
    """Whether data is an empty JSON value, a comment or a heartbeat word."""
    if data in _EMPTY_DATA or data.startswith(b":"):
        return True
    return len(data) < 16 and _is_heartbeat_word(data.decode("latin-1"))


def _is_heartbeat(name: str | None, fields: Fields) -> bool:
    """Whether an object has a heartbeat word as its event name, a field name or a value, and no error message."""
    others = {
        key: value
        for key, value in fields.items()
        if not (_is_heartbeat_word(key) or (key in _HEARTBEAT_FIELDS and _is_heartbeat_word(value)))
    }
    return (_is_heartbeat_word(name) or len(others) < len(fields)) and not is_error_alone(others)
