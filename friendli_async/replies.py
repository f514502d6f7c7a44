"""What every answer and every error carries: how it came about, and what had arrived. And what a client is doing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import msgspec

from friendli_async._help import described
from friendli_async._pydantic import PydanticField
from friendli_async.rate_limits import RateLimit, parts, rate_limit_of

__all__ = ["Attempt", "FunctionCall", "Headers", "Meta", "PromptTokensDetails", "Reply", "UnknownEvent", "Usage"]
__all__ += ["CompletionTokensDetails", "Gauges", "LoopGauges", "Partial", "Timing", "ToolCall"]


R = TypeVar("R", bound="Reply")
S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")


def always(default: T) -> T:
    """A default that is encoded all the same: whoever a reply is relayed to relies on it."""
    return msgspec.field(default_factory=lambda: default)


class Headers(Mapping[str, str]):
    """Reply headers: read-only, names in any case; a repeated header's values are joined with ``", "``.

    Plain data, so that it can be pickled and copied along with the reply or the error that carries it.
    """

    __slots__ = ("_held",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._held: tuple[tuple[str, str], ...] | dict[str, str] = tuple(items)

    def _by_name(self) -> dict[str, str]:
        """The values by their lower-case names. Made when somebody asks: few do, and each call has headers."""
        held = self._held
        if isinstance(held, tuple):
            held = self._held = _joined(held)
        return held

    def __getitem__(self, name: str) -> str:
        return self._by_name()[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._by_name()

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name())

    def __len__(self) -> int:
        return len(self._by_name())

    def __repr__(self) -> str:
        return f"Headers({self._by_name()!r})"

    def __reduce__(self) -> tuple[type[Headers], tuple[tuple[tuple[str, str], ...]]]:
        return Headers, (tuple(self._by_name().items()),)


def request_id_of(headers: Headers) -> str | None:
    """The ``x-request-id``: the first, where a proxy has added another."""
    return next(filter(None, parts(headers.get("x-request-id", ""))), None)


def _joined(items: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in items:
        key, text = name.lower(), value
        if not text.isascii():  # bytes that are no UTF-8 arrive as lone surrogates, which cannot be printed
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        values[key] = f"{values[key]}, {text}" if key in values else text
    return values


@described
class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try of a call."""

    number: int = 0
    """Its place among the attempts of its call, from 1."""
    status: int | None = None
    """HTTP status of the reply; None when there was none."""
    error: str | None = None
    """Class name of its error; None for the attempt that succeeded."""
    cause: str | None = None
    """Why it did not succeed, as ``ErrorClass: message``; None for the attempt that did."""
    wait: float = 0.0
    """Seconds slept after it, before the next one."""
    elapsed: float = 0.0
    """Seconds that it took."""


@described
class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of a call went. Seconds since the call began, where nothing else is said."""

    queued: float = 0.0
    """Seconds that its attempts waited for a free place among ``max_connections``, and that ``Pacing`` held it back."""
    connecting: float = 0.0
    """Seconds that its attempts took to get their connections."""
    first_event: float | None = None
    """When the first event came, or the whole of a plain reply."""
    first_text: float | None = None
    """When the first text of a stream came."""
    last_event: float | None = None
    """When the latest event came."""
    total: float = 0.0
    """How long it has taken, or took: it grows until the end."""
    events: int = 0
    """How many events came."""
    bytes: int = 0
    """How many bytes of body came, decompressed."""
    gap_p50: float | None = None
    """Median of the seconds between reads that brought events, within 2 %."""
    gap_p95: float | None = None
    """Their 95th percentile, within 2 %."""
    gap_max: float | None = None
    """The longest of them."""
    tokens_per_second: float | None = None
    """Completion tokens, by the usage, over the time from the first to the last event."""


@described
class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """How a reply, a stream or an error came about."""

    status: int | None = None
    """HTTP status of the last reply; None when no attempt got one."""
    headers: Headers = Headers()
    """Headers of the last reply."""
    attempts: tuple[Attempt, ...] = ()
    """Every attempt, the last one last."""
    elapsed: float = 0.0
    """Seconds from the call to its outcome, sleeps included; of a stream, to its first event."""
    timing: Timing = Timing()
    """Where the time went; of an open stream, up to its first event (``stream.timing`` goes on)."""

    @property
    def request_id(self) -> str | None:
        """The server's ``x-request-id``, to quote to its operators; the first, where a proxy has added its own."""
        return request_id_of(self.headers)

    @property
    def rate_limit(self) -> RateLimit | None:
        """What is left of the limits, as the last reply's headers told it; None where they told nothing of it."""
        return rate_limit_of(self.headers)

    def with_timing(self, timing: Timing) -> Meta:
        """The same with another timing."""
        return msgspec.structs.replace(self, timing=timing)


class Reply(
    PydanticField, msgspec.Struct, frozen=True, kw_only=True, dict=True, omit_defaults=True, repr_omit_defaults=True
):
    """Base of the top-level replies.

    ``meta`` is kept beside the struct's fields, so comparing, encoding and printing a reply see what the server said
    and nothing else; nor is it copied or pickled with them.
    """

    answered_by: ClassVar[tuple[str, ...]] = ()
    """The fields of which one has to be filled, or there is no answer in it."""

    @property
    def meta(self) -> Meta:
        """How this reply came about. Only replies of a call have it; raises AttributeError on a hand-made one."""
        meta: Meta | None = self.__dict__.get("_meta")
        if meta is None:
            raise AttributeError(f"this {type(self).__name__} did not come from a call, so it has no meta")
        return meta

    @property
    def raw(self) -> Any:
        """The reply's JSON as the server sent it, with what this version has no field for; decoded anew at each look.

        Raises AttributeError on a hand-made reply, and on one that a stream added up to.
        """
        data: bytes | None = self.__dict__.get("_raw")
        if data is None:
            raise AttributeError(f"this {type(self).__name__} did not come in one piece, so there is no JSON of it")
        import json  # what msgspec decodes strictly, NaN and lone surrogates included

        return json.loads(data)


def keep_raw(reply: object, data: bytes) -> None:
    """Gives a freshly decoded reply the bytes that it came as, for ``raw``."""
    if isinstance(reply, Reply):
        msgspec.structs.force_setattr(reply, "_raw", data)


def kept_raw(reply: object) -> bytes | None:
    """The bytes that a reply came as; None where it did not come in one piece."""
    return reply.__dict__.get("_raw") if isinstance(reply, Reply) else None


def attach_meta(reply: object, meta: Meta) -> None:
    """Gives a freshly decoded reply its ``meta``; what is no Reply has no place for it."""
    if isinstance(reply, Reply):
        msgspec.structs.force_setattr(reply, "_meta", meta)


def remade(kind: type[R], reply: Reply, **fields: object) -> R:
    """A reply made of another one, whose fields, ``meta`` and ``raw`` it has."""
    made = kind(**{**msgspec.structs.asdict(reply), **fields})
    for name, value in vars(reply).items():
        msgspec.structs.force_setattr(made, name, value)
    return made


class Value(PydanticField, msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Base of what is inside a reply or an event.

    Made by the million, and never in a reference cycle: the garbage collector need not look at it. What the server left
    out is left out of encoding and printing, too.
    """


class PromptTokensDetails(Value, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None


class CompletionTokensDetails(Value, frozen=True):
    """What the generated tokens were spent on."""

    reasoning_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None


class Usage(Value, frozen=True):
    """Tokens that a call was billed for."""

    prompt_tokens: int = always(0)
    completion_tokens: int = always(0)
    total_tokens: int = always(0)
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


def added(one: S | None, other: S | None) -> S | None:
    """Two usages, or parts of two, added up; what neither tells stays untold."""
    if one is None or other is None:
        return one or other
    sums: dict[str, Any] = {}
    for name in one.__struct_fields__:
        first, second = getattr(one, name), getattr(other, name)
        if isinstance(first, msgspec.Struct) or isinstance(second, msgspec.Struct):
            sums[name] = added(first, second)
        else:
            sums[name] = first if second is None else (first or 0) + second
    return type(one)(**sums)


def usage_of(reply: object) -> Usage | None:
    """The usage of whatever has one, in the form that chat has."""
    return as_chat_usage(getattr(reply, "usage", None))


def as_chat_usage(usage: Any) -> Usage | None:
    """A usage of any API in the form that chat has."""
    if usage is None or isinstance(usage, Usage):
        return usage
    taken, given = getattr(usage, "input_tokens", 0), getattr(usage, "output_tokens", 0)
    cached, spent = getattr(usage, "input_tokens_details", None), getattr(usage, "output_tokens_details", None)
    return Usage(
        prompt_tokens=taken,
        completion_tokens=given,
        total_tokens=getattr(usage, "total_tokens", None) or taken + given,
        prompt_tokens_details=None if cached is None else PromptTokensDetails(cached.cached_tokens),
        completion_tokens_details=None if spent is None else CompletionTokensDetails(spent.reasoning_tokens),
    )


class UnknownEvent(Value, frozen=True):
    """An event of a stream of a kind that this version does not know."""

    type: str
    data: dict[str, Any]
    """The whole event, as the server sent it."""


class FunctionCall(Value, frozen=True, omit_defaults=False):
    """The function that a model wants called."""

    name: str = ""
    arguments: str = ""
    """JSON text as the model wrote it: not necessarily valid, not necessarily complete in a ``Partial``."""


class ToolCall(Value, frozen=True, omit_defaults=False):
    """One tool call of a model's message. What the server leaves out is "", so that nobody has to ask."""

    id: str = ""
    type: str = "function"
    function: FunctionCall = FunctionCall()


@described
class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """What had arrived when a stream ended early: ready to be stored, shown or continued from."""

    text: str = ""
    """Text of choice 0."""
    reasoning: str = ""
    """Reasoning text of choice 0."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls of choice 0; the last one's arguments may be cut."""
    usage: Usage | None = None
    """What the server has told of the usage; it comes with the last events."""


def partial_of(reply: Any) -> Partial:
    """What there is of a reply that has a text."""
    return Partial(
        text=reply.text,
        reasoning=getattr(reply, "reasoning", ""),
        tool_calls=getattr(reply, "tool_calls", ()),
        usage=usage_of(reply),
    )


@described
class LoopGauges(msgspec.Struct, frozen=True, kw_only=True):
    """The connections of one event loop."""

    in_use: int = 0
    """Places taken: by connections in use, and by calls that are connecting."""
    idle: int = 0
    """Open connections in the pool; 0 where the session is the user's, which tells nothing."""
    waiting: int = 0
    """Calls that wait for a place."""
    open_streams: int = 0
    """Streams whose connection is in use."""


@described
class Gauges(LoopGauges, frozen=True, kw_only=True):
    """What a client has under way, in all its event loops."""

    calls_in_flight: int = 0
    """Calls that are being made, or wait for their next attempt; open streams are counted by themselves."""
    max_connections: int = 0
    """Places per event loop."""
    loops: tuple[LoopGauges, ...] = ()
    """The same for each event loop that is running."""
