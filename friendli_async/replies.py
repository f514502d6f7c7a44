"""What every answer and every error carries: how it came about, and what had arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

__all__ = [
    "Attempt",
    "FunctionCall",
    "Headers",
    "Meta",
    "Partial",
    "PromptTokensDetails",
    "Reply",
    "ToolCall",
    "UnknownEvent",
    "Usage",
]


T = TypeVar("T")


def always(default: T) -> T:
    """A default that is encoded all the same: whoever a reply is relayed to relies on it."""
    return msgspec.field(default_factory=lambda: default)


class Headers(Mapping[str, str]):
    """Reply headers: read-only, names in any case; a repeated header's values are joined with ``", "``.

    Plain data, so that it can be pickled and copied along with the reply or the error that carries it.
    """

    __slots__ = ("_values",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        values: dict[str, str] = {}
        for name, value in items:
            key, text = name.lower(), value
            if not text.isascii():  # bytes that are no UTF-8 arrive as lone surrogates, which cannot be printed
                text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            values[key] = f"{values[key]}, {text}" if key in values else text
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try of a call."""

    status: int | None = None
    """HTTP status of the reply; None when there was none."""
    cause: str | None = None
    """Why it did not succeed, as ``ErrorClass: message``; None for the attempt that did."""
    wait: float = 0.0
    """Seconds slept after it, before the next one."""
    elapsed: float = 0.0
    """Seconds that it took."""


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

    @property
    def request_id(self) -> str | None:
        """The server's ``x-request-id``, to quote to its operators."""
        return self.headers.get("x-request-id")


class Reply(msgspec.Struct, frozen=True, kw_only=True, dict=True, omit_defaults=True, repr_omit_defaults=True):
    """Base of the top-level replies.

    ``meta`` is kept beside the struct's fields, so comparing, encoding and printing a reply see what the server said
    and nothing else; nor is it copied or pickled with them.
    """

    @property
    def meta(self) -> Meta:
        """How this reply came about. Only replies of a call have it; raises AttributeError on a hand-made one."""
        meta: Meta | None = self.__dict__.get("_meta")
        if meta is None:
            raise AttributeError(f"this {type(self).__name__} did not come from a call, so it has no meta")
        return meta


def attach_meta(reply: object, meta: Meta) -> None:
    """Gives a freshly decoded reply its ``meta``; what is no Reply has no place for it."""
    if isinstance(reply, Reply):
        msgspec.structs.force_setattr(reply, "_meta", meta)


class PromptTokensDetails(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Tokens that a call was billed for."""

    prompt_tokens: int = always(0)
    completion_tokens: int = always(0)
    total_tokens: int = always(0)
    prompt_tokens_details: PromptTokensDetails | None = None


class UnknownEvent(msgspec.Struct, frozen=True, gc=False):
    """An event of a stream of a kind that this version does not know."""

    type: str
    data: dict[str, Any]
    """The whole event, as the server sent it."""


class FunctionCall(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """The function that a model wants called."""

    name: str | None = None
    arguments: str | None = None
    """JSON text as the model wrote it: not necessarily valid, not necessarily complete in a ``Partial``."""


class ToolCall(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One tool call of a model's message."""

    id: str | None = None
    type: str | None = None
    function: FunctionCall = FunctionCall()


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """What had arrived when a stream ended early: ready to be stored, shown or continued from."""

    text: str = ""
    """Text of choice 0."""
    reasoning: str = ""
    """Reasoning text of choice 0."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls of choice 0; the last one's arguments may be cut."""
    usage: Usage | None = None
