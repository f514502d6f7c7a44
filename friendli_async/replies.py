"""Building blocks of replies and errors: metadata, timing, usage, partial results; and the gauges of a client."""

from __future__ import annotations

import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeVar, overload

import msgspec

from friendli_async._help import document_fields
from friendli_async._hints import Explained
from friendli_async._pydantic import PydanticField
from friendli_async.rate_limits import RateLimit, rate_limit_of

__all__ = ["Attempt", "FunctionCall", "Headers", "Meta", "PromptTokensDetails", "Reply", "UnknownEvent", "Usage"]
__all__ += ["CompletionTokensDetails", "Gauges", "LoopGauges", "Partial", "Timing", "ToolCall"]


R = TypeVar("R", bound="Reply")
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


def always_encoded(default: T) -> T:
    """Returns a field default that is encoded despite ``omit_defaults``: recipients of a relayed reply rely on it."""
    return msgspec.field(default_factory=lambda: default)


class Headers(Mapping[str, str]):
    """Response headers: read-only, with case-insensitive names; values of a repeated header are joined by ``", "``.

    A control character in a value is replaced by a blank.

    Plain data, so that it can be pickled and copied with the reply or error that it belongs to.
    """

    __slots__ = ("_items",)
    _items: Callable[[], dict[str, str]] | tuple[tuple[str, str], ...] | dict[str, str]

    def __init__(self, items: Iterable[tuple[str, str]] | Callable[[], dict[str, str]] = ()) -> None:
        self._items = items if callable(items) else tuple(items)

    def _by_name(self) -> dict[str, str]:
        """Returns the values by lower-case name. Built lazily, as most calls never access their headers."""
        items = self._items
        if callable(items):
            items = self._items = items()
        elif isinstance(items, tuple):
            items = self._items = _join_values(items)
        return items

    def __getitem__(self, name: str) -> str:
        return self._by_name()[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._by_name()

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._by_name())

    def items(self) -> ItemsView[str, str]:
        """Returns the names and values, faster than ``Mapping`` does."""
        return self._by_name().items()

    def __repr__(self) -> str:
        return f"Headers({self._by_name()!r})"

    def __reduce__(self) -> tuple[type[Headers], tuple[tuple[tuple[str, str], ...]]]:
        return Headers, (tuple(self._by_name().items()),)


class ReplyHead(NamedTuple):
    """The head of an HTTP reply: what has arrived before its body, and what errors in the body are built with."""

    status: int
    headers: Headers = Headers()


def request_id_of(headers: Headers) -> str | None:
    """Returns the ``x-request-id``, or else the ``request-id``; the first, if a proxy has added another."""
    for name in ("x-request-id", "request-id"):  # the second is Anthropic's, and all that LiteLLM sends
        for value in headers.get(name, "").split(","):  # at each: an id may end like the name of a day
            if found := value.strip():
                return found
    return None


# aiohttp accepts them (RFC 9110 5.5), but a terminal obeys them, where an error or a log quotes the header.
_CONTROLS: Final = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"


def _join_values(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in items:
        key, text = name.lower(), value
        if not text.isprintable():  # bytes that are not UTF-8 were decoded to lone surrogates
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            text = re.sub(_CONTROLS, " ", text)
        values[key] = f"{values[key]}, {text}" if key in values else text
    return values


@document_fields
class Attempt(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a call."""

    number: int = 0
    """Its number within the call, from 1."""
    status: int | None = None
    """HTTP status of the response; None if there was none."""
    error: str | None = None
    """Class name of its error; None if it succeeded."""
    cause: str | None = None
    """Why it failed, as ``ErrorClass: message``; None if it succeeded."""
    wait: float = 0.0
    """Seconds between its end and the next attempt."""
    elapsed: float = 0.0
    """Its duration in seconds."""


@document_fields
class Timing(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """Time measurements of a call. Times are seconds since the call started, unless noted otherwise."""

    queued: float = 0.0
    """Seconds spent waiting for one of the ``max_connections`` slots, and paused by ``Pacing``."""
    connecting: float = 0.0
    """Seconds that its attempts took to get their connections."""
    first_event: float | None = None
    """When the first event arrived, or the whole of a plain reply."""
    first_text: float | None = None
    """When the first text of a stream arrived."""
    last_event: float | None = None
    """When the latest event arrived."""
    total: float = 0.0
    """Duration of the call; it grows until the end."""
    events: int = 0
    """Number of events received."""
    bytes: int = 0
    """Number of body bytes received, decompressed."""
    gap_p50: float | None = None
    """Median of the seconds between reads that completed events, within 2 %."""
    gap_p95: float | None = None
    """95th percentile of these gaps, within 2 %."""
    gap_max: float | None = None
    """The longest of these gaps."""
    tokens_per_second: float | None = None
    """Completion tokens of the usage, divided by the time from the first to the last event."""


@document_fields
class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata of a reply, a stream or an error."""

    status: int | None = None
    """HTTP status of the last attempt's response; None if there was none."""
    headers: Headers = Headers()
    """Headers of that response."""
    attempts: tuple[Attempt, ...] = ()
    """All attempts in order."""
    elapsed: float = 0.0
    """Seconds from the call to its outcome, including waits; for a stream, to its first event."""
    timing: Timing = Timing()
    """Time measurements; for an open stream, up to its first event (``stream.timing`` is current)."""
    call_id: int = 0
    """Number of the call in this process, as in the log and in the events of observers."""
    operation: str = ""
    """The group on the client and the method, such as ``chat.stream``."""
    deployment: str = ""
    """``serverless``, ``dedicated`` or ``container``; "" for operations of no deployment."""
    server: str = ""
    """Host and port of the server in the last attempt; "" if that ended before it could connect."""
    proxy: str = ""
    """Host and port of the client's proxy in that attempt; "" if there was none."""
    model: str | None = None
    """The requested model, if the call names one."""

    @property
    def request_id(self) -> str | None:
        """The server's ``x-request-id`` or ``request-id``, for support; the first, if a proxy has added one."""
        return request_id_of(self.headers)

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate limits by the response headers; None if these have none."""
        return rate_limit_of(self.headers)


class HasValue:
    """Base of the replies and results of runs that have a value of the user's type."""

    __slots__ = ()

    value_field: ClassVar[str] = "value"
    """The name of its attribute."""


class Reply(
    Explained,
    PydanticField,
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    dict=True,
    omit_defaults=True,
    repr_omit_defaults=True,
):
    """Base of the top-level replies.

    ``meta`` is not a field of the struct: comparing, encoding and printing a reply ignore it, and so do copying and
    pickling.
    """

    _answered_by: ClassVar[tuple[str, ...]] = ()
    """Fields of which at least one must be set, or the reply contains no answer."""

    @property
    def meta(self) -> Meta:
        """The call's metadata. Raises AttributeError on a copy, or a reply made by hand; see ``with_meta``."""
        meta: Meta | None = self.__dict__.get("_meta")
        if meta is None:
            kind = type(self).__name__
            reason = "it was copied, unpickled, decoded or made by hand"
            raise AttributeError(f"this {kind} has no meta, because {reason}: with_meta() adds one")
        return meta

    @property
    def raw(self) -> Any:
        """The reply's JSON as the server sent it, including fields unknown to this version; decoded on each access.

        Bytes that are not UTF-8 become U+FFFD.

        Raises AttributeError on a reply that has no ``meta``, or was accumulated from a stream.
        """
        data: bytes | None = self.__dict__.get("_raw")
        if data is None:
            reason = "it was accumulated from a stream, copied, unpickled, decoded or made by hand"
            raise AttributeError(f"this {type(self).__name__} has no raw JSON, because {reason}")
        from friendli_async._json import loads_with_replacement  # unlike msgspec, it accepts NaN and lone surrogates

        return loads_with_replacement(data)

    def with_meta(self, meta: Meta) -> Self:
        """Returns a copy with this ``meta``: for a reply that was made by hand, or restored from a cache."""
        made = convert_reply(type(self), self)
        attach_meta(made, meta)
        return made


def keep_raw(reply: object, data: bytes) -> None:
    """Stores the response body in a newly decoded reply, for ``raw``."""
    if isinstance(reply, Reply):
        msgspec.structs.force_setattr(reply, "_raw", data)


def kept_raw(reply: object) -> bytes | None:
    """Returns the response body that a reply was decoded from; None if it was accumulated from a stream."""
    return reply.__dict__.get("_raw") if isinstance(reply, Reply) else None


def attach_meta(reply: object, meta: Meta) -> None:
    """Stores the ``meta`` in a newly decoded reply; does nothing if it is not a Reply."""
    if isinstance(reply, Reply):
        msgspec.structs.force_setattr(reply, "_meta", meta)


def convert_reply(kind: type[R], reply: Reply, **fields: object) -> R:
    """Returns a reply of type ``kind`` with the fields (or ``fields``), ``meta`` and ``raw`` of another."""
    made = kind(**{**msgspec.structs.asdict(reply), **fields})
    for name, value in vars(reply).items():
        msgspec.structs.force_setattr(made, name, value)
    return made


class Value(PydanticField, msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Base of the values inside replies and events.

    Instances are created by the million, and never in reference cycles, so the garbage collector does not track them.
    Fields that the server omitted are also omitted when encoding and printing.
    """


class PromptTokensDetails(Value, frozen=True):
    """Breakdown of the prompt tokens."""

    cached_tokens: int | None = None
    """Those read from a cache."""
    cache_write_tokens: int | None = None
    """Those written to a cache."""
    audio_tokens: int | None = None
    image_tokens: int | None = None
    text_tokens: int | None = None


class CompletionTokensDetails(Value, frozen=True):
    """Breakdown of the completion tokens."""

    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    audio_tokens: int | None = None
    text_tokens: int | None = None


class AnyUsage(Value, frozen=True):
    """Base of the usages of all APIs."""


class TokenUsage(AnyUsage, frozen=True):
    """Base of usages with a ``total_tokens``, which some servers omit: it is then the sum of the others."""

    def __post_init__(self: Any) -> None:
        if not self.total_tokens:
            names = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")
            msgspec.structs.force_setattr(self, "total_tokens", sum(getattr(self, name, 0) for name in names))


class Usage(Explained, TokenUsage, frozen=True):
    """Tokens that a call was billed for. The usage of several calls is ``sum(usages, Usage())``."""

    prompt_tokens: int = always_encoded(0)
    completion_tokens: int = always_encoded(0)
    total_tokens: int = always_encoded(0)
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    reasoning_tokens: int | None = None
    """Those of the reasoning, if the server counts them here, and not in the details."""
    cost: float | None = None
    """The price of the call, if a gateway names it, in its own currency."""

    def __add__(self, other: Usage) -> Usage:
        if not isinstance(other, Usage):
            return NotImplemented
        return add_usage(self, other)


def token_details(usage: Usage) -> tuple[int | None, int | None]:
    """Returns the cached and the reasoning tokens of a usage; None for what the server has not counted."""
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = None if prompt is None else prompt.cached_tokens
    reasoning = None if completion is None else completion.reasoning_tokens
    return cached, usage.reasoning_tokens if reasoning is None else reasoning


@overload
def add_usage(one: S, other: S | None) -> S: ...


@overload
def add_usage(one: S | None, other: S | None) -> S | None: ...


def add_usage(one: S | None, other: S | None) -> S | None:
    """Returns the sum of two usages, or of parts of them. Fields that are None in both stay None."""
    if one is None or other is None:
        return one or other
    sums: dict[str, Any] = {}
    for name in one.__struct_fields__:
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, msgspec.Struct) or isinstance(second, msgspec.Struct):
            sums[name] = add_usage(first, second)
        else:
            sums[name] = first if second is None else (first or 0) + second
    return type(one)(**sums)


def usage_of(reply: object) -> Usage | None:
    """Returns the usage of a reply of any API, in the form of the chat API; None if it has none, or a foreign one."""
    usage = getattr(reply, "usage", None)
    return as_chat_usage(usage) if isinstance(usage, AnyUsage) else None


def as_chat_usage(usage: Any) -> Usage | None:
    """Converts the usage of any API to the form of the chat API.

    It has no negative counts, by which one server could give back what others have counted.
    """
    if usage is None:
        return None
    counted = usage if isinstance(usage, Usage) else _convert_usage(usage)
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    negative = [name for name in names if getattr(counted, name) < 0]
    return msgspec.structs.replace(counted, **dict.fromkeys(negative, 0)) if negative else counted


def _convert_usage(usage: Any) -> Usage:
    prompt, spent = getattr(usage, "input_tokens_details", None), getattr(usage, "output_tokens_details", None)
    # A message's ``input_tokens`` are without those read from a cache or written to one; the other APIs count them in.
    read, written = getattr(usage, "cache_read_input_tokens", None), getattr(usage, "cache_creation_input_tokens", None)
    cached = read if prompt is None else prompt.cached_tokens
    stored = written if prompt is None else prompt.cache_write_tokens
    # The tokens of the reasoning are named "thinking" in a message's usage.
    reasoning = getattr(spent, "reasoning_tokens", getattr(spent, "thinking_tokens", None))
    own = getattr(usage, "input_tokens", None)
    prompt_tokens = getattr(usage, "prompt_tokens", 0) if own is None else own  # a classification has the former
    return Usage(
        prompt_tokens=prompt_tokens + (read or 0) + (written or 0),
        completion_tokens=getattr(usage, "output_tokens", 0),
        total_tokens=getattr(usage, "total_tokens", 0),
        prompt_tokens_details=None if cached is stored is None else PromptTokensDetails(cached, stored),
        completion_tokens_details=None if spent is None else CompletionTokensDetails(reasoning),
    )


class UnknownEvent(Value, frozen=True):
    """A stream event of a type unknown to this version."""

    type: str
    data: dict[str, Any]
    """The whole event as the server sent it."""


class FunctionCall(Value, frozen=True):
    """The function of a tool call."""

    name: str = always_encoded("")
    arguments: str = always_encoded("")
    """JSON as generated by the model: possibly invalid, and in a ``Partial`` possibly incomplete."""
    # An object or a text fails to decode, so that the lenient fallback moves it to ``arguments``.
    _parameters: None = msgspec.field(default=None, name="parameters")


CALL_EXTRAS: Final = ("extra_content", "provider_specific_fields")
"""The fields of a tool call that go back with it unread."""


def given_fields(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Returns those of the named fields that are not None."""
    return {name: given for name in names if (given := getattr(value, name)) is not None}


class ToolCall(Explained, Value, frozen=True):
    """One tool call of a model's message. Strings that the server omits are "", never None."""

    id: str = always_encoded("")
    type: str = always_encoded("function")
    function: FunctionCall = always_encoded(FunctionCall())
    """Of a call with the type ``custom``, the name and the input."""
    custom: None = None  # an object fails to decode, so that the lenient fallback moves it
    """Always None: the name and the input of a custom call are in ``function``."""
    # As ``custom``, but not public: these belong to ``function``.
    _name: None = msgspec.field(default=None, name="name")
    _arguments: None = msgspec.field(default=None, name="arguments")
    extra_content: dict[str, Any] | None = None
    """What the server adds to the call, such as a signature of the reasoning before it; sent back with the call."""
    provider_specific_fields: dict[str, Any] | None = None
    """The same, under the name that gateways use."""

    def as_input(self) -> dict[str, object]:
        """Returns the call in its request form in the chat API."""
        name, text = self.function.name, self.function.arguments
        extras = given_fields(self, CALL_EXTRAS)
        if self.type == "custom":
            return {"id": self.id, "type": self.type, "custom": {"name": name, "input": text}, **extras}
        return {"id": self.id, "type": self.type, "function": {"name": name, "arguments": text}, **extras}


@document_fields
class Partial(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """What a stream had received when it ended early: it can be stored, shown or continued."""

    text: str = ""
    """Text of choice 0."""
    reasoning: str = ""
    """Reasoning text of choice 0."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls of choice 0; the last one's arguments may be truncated."""
    texts: tuple[str, ...] = ()
    """Text of each choice, if several were requested; of 10,000 at most."""
    usage: Usage | None = None
    """The usage, if received: servers send it with the last events."""
    annotations: tuple[dict[str, Any], ...] = ()
    """The sources of the text of choice 0, as far as the server has sent them; of a message, its citations."""


def partial_of(reply: Any) -> Partial:
    """Returns the Partial for a reply, or an incomplete one."""
    return Partial(
        text=getattr(reply, "text", ""),
        reasoning=getattr(reply, "reasoning", ""),
        tool_calls=getattr(reply, "tool_calls", ()),
        usage=usage_of(reply),
    )


@document_fields
class LoopGauges(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """Connection and call counts of one event loop."""

    in_use: int = 0
    """Connection slots in use, including by calls that are connecting."""
    idle: int = 0
    """Idle connections in the pool; always 0 if the session is the user's own."""
    waiting: int = 0
    """Calls that wait for a connection slot."""
    open_streams: int = 0
    """Streams whose connection is in use."""
    calls_in_flight: int = 0
    """Calls in flight, including those that wait for their next attempt, but without open streams."""
    runs_between_calls: int = 0
    """Open runs that have no call in flight, as while their tools run. A drain waits for them, too."""


@document_fields
class Gauges(LoopGauges, frozen=True, kw_only=True):
    """Connection and call counts of a client, summed over its event loops."""

    held: int = 0
    """Calls in flight that a rate-limit hold pauses."""
    max_connections: int = 0
    """Connection slots per event loop."""
    loops: tuple[LoopGauges, ...] = ()
    """The counts of each running event loop."""
