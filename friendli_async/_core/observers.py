"""Who watches the calls: the events that observers are told, and how they are told. See ``Observer``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from friendli_async._help import described
from friendli_async.replies import Timing, Usage

__all__ = ["METHODS", "AttemptEnded", "AttemptStarted", "CallContent", "CallEnded", "CallEvent", "CallStarted"]
__all__ += ["Connected", "FirstEvent", "Observer", "Observers"]
__all__ += ["CallReporter"]

_numbers: Final = itertools.count(1)

Parameter = bool | int | float | str | tuple[str, ...]
"""A setting of generation, as an observer is told of it."""


@described
class CallEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a call. No event holds a header, a body or a token."""

    call_id: int
    """Number of the call in this process: the same in all its events."""
    operation: str
    """As ``chat.stream``: the group on the client, and the method."""
    deployment: str
    """``serverless``, ``dedicated``, ``container``, or "" for what belongs to none of them."""
    model: str | None = None
    """The model that was asked for, where the call names one."""
    team: str | None = None
    """The team that is billed, where the client names one."""
    attempt: int = 0
    """Number of the attempt, from 1; 0 before the first."""


@described
class CallStarted(CallEvent, frozen=True, kw_only=True):
    """A call has begun. Nothing was sent yet."""

    server_address: str = ""
    """Host of the base URL."""
    server_port: int | None = None
    """Port of the base URL."""
    parameters: Mapping[str, Parameter] = {}
    """How to generate, as far as the call says, by the names of the wire: ``temperature``, ``max_tokens``, ``stop``...
    Numbers, switches and names alone, no content."""


@described
class AttemptStarted(CallEvent, frozen=True, kw_only=True):
    """An attempt begins: the request is built, and waits for a connection."""


@described
class Connected(CallEvent, frozen=True, kw_only=True):
    """There is a connection: the request goes out. Not told where the session is the user's own.

    Told again in the same attempt where a pooled connection proved dead and was replaced, or a redirect is followed.
    """

    reused: bool = False
    """Whether the connection came from the pool."""
    queued: float = 0.0
    """Seconds that the attempt waited for a place."""
    connecting: float = 0.0
    """Seconds that it took to get the connection."""


@described
class AttemptEnded(CallEvent, frozen=True, kw_only=True):
    """An attempt has ended: a plain call has its reply, a stream is open, it failed, or it was cancelled."""

    status: int | None = None
    """HTTP status of the reply; None when there was none."""
    error: str | None = None
    """Class name of its error; None where it succeeded."""
    wait: float | None = None
    """Seconds until the next attempt; None where there will be none."""


@described
class FirstEvent(CallEvent, frozen=True, kw_only=True):
    """A stream's first event has come."""

    seconds: float = 0.0
    """Since the call began."""


@described
class CallEnded(CallEvent, frozen=True, kw_only=True):
    """A call has ended, in whatever way; the last event of each call, and told once."""

    outcome: str = "done"
    """``done``, ``stopped``, ``truncated``, ``failed`` or ``cancelled``: see ``EventStream.outcome``."""
    timing: Timing = Timing()
    usage: Usage | None = None
    finish_reasons: tuple[str, ...] = ()
    """Why the choices that have finished did so."""
    error: str | None = None
    """Class name of the error that ended it; None where none did."""
    status: int | None = None
    """HTTP status of the last reply, or the one that an error in a stream named; None where there was neither."""
    response_id: str | None = None
    """The id that the server gave to the reply."""
    response_model: str | None = None
    """The model that answered, by the reply."""


@described
class CallContent(CallEvent, frozen=True, kw_only=True):
    """What was asked and answered. Told before ``call_ended``, and only to an observer that has ``call_content``."""

    request: bytes | None = None
    """The body, JSON; None where it was a form, or nothing."""
    reply: object = None
    """The reply's struct; of a stream that did not end well, a ``Partial``; None where nothing came."""
    finish_reasons: tuple[str, ...] = ()
    """Why the choices that have finished did so."""

    def __repr__(self) -> str:
        return f"CallContent(call_id={self.call_id}, operation={self.operation!r}, ...)"


class Observer:
    """Is told what happens to the calls of a client: ``AsyncFriendli(observers=[...])``.

    Override what is of interest. The methods are called in the call's own task, or where its stream is read or closed,
    and must return at once. One that raises is logged, once per observer, and goes on being called.

    No event holds a header, a body or a token, but for one that has to be asked for: an observer with a method
    ``call_content(self, event: CallContent)``, which this class does not have, is told what was asked and answered.
    """

    def call_started(self, event: CallStarted) -> None:
        """A call has begun."""

    def attempt_started(self, event: AttemptStarted) -> None:
        """An attempt begins."""

    def connected(self, event: Connected) -> None:
        """There was a connection."""

    def attempt_ended(self, event: AttemptEnded) -> None:
        """An attempt has ended."""

    def first_event(self, event: FirstEvent) -> None:
        """A stream's first event has come."""

    def call_ended(self, event: CallEnded) -> None:
        """A call has ended."""


METHODS: Final = ("call_content", *(name for name in vars(Observer) if not name.startswith("_")))
"""What an observer may have: all that ``Observers.notify`` calls."""


class Observers:
    """The observers of a client."""

    __slots__ = ("_failed", "members", "want_content")

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members: tuple[Observer, ...] = tuple(members)
        self.want_content: bool = any(hasattr(member, "call_content") for member in self.members)
        self._failed: set[int] = set()

    def notify(self, method: str, event: CallEvent) -> None:
        """Tells all of them; what they raise is logged, once each."""
        for place, observer in enumerate(self.members):
            take = getattr(observer, method, None)  # an observer need not inherit from Observer
            if take is None:
                continue
            try:
                take(event)
            except BaseException as error:
                import asyncio
                import logging

                # Nobody cancels a plain method: it would look like the caller's own cancellation, of a stream that is
                # open already and that nobody would close.
                if not isinstance(error, Exception | asyncio.CancelledError):
                    raise
                if place not in self._failed:
                    self._failed.add(place)
                    logging.getLogger("friendli_async").exception(
                        "an observer failed in %s; it goes on being called", method
                    )


PARAMETERS: Final = (
    *("max_tokens", "max_output_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
    *("seed", "n", "stop", "stop_sequences", "reasoning_effort", "encoding_format", "dimensions"),
)
"""What a body says of how to generate. None of these can hold content."""
_asked: Final = msgspec.json.Decoder(msgspec.defstruct("Asked", [(name, object, None) for name in PARAMETERS]))


def parameters_of(body: object) -> dict[str, Parameter]:
    """What a body says of how to generate, as far as it is of a type that it may have; of no JSON object nothing."""
    if not isinstance(body, bytes):
        return {}
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):  # what the user's own encoder may send
        return {}
    found: dict[str, Parameter] = {}
    for name in PARAMETERS:
        value = getattr(asked, name)
        if isinstance(value, list):
            found[name] = tuple(str(item) for item in cast("list[object]", value))
        elif isinstance(value, bool | int | float | str):
            found[name] = value
    return found


class CallReporter:
    """Tells a client's observers of one call."""

    __slots__ = ("_facts", "_observers", "_request", "attempt", "attempting", "ended")

    def __init__(
        self,
        observers: Observers,
        request: bytes | None,
        *,
        operation: str,
        deployment: str,
        model: str | None,
        team: str | None,
    ) -> None:
        self._observers = observers
        self._request = request if observers.want_content else None
        self._facts: dict[str, Any] = {
            "call_id": next(_numbers),
            "operation": operation,
            "deployment": deployment,
            "model": model,
            "team": team,
        }
        self.attempt = 0
        self.attempting = False
        self.ended = False

    @property
    def wants_content(self) -> bool:
        """Whether an observer asks for what was asked and answered."""
        return self._observers.want_content

    def report(self, method: str, kind: type[CallEvent], **facts: Any) -> None:
        """Tells all observers of one event.

        Args:
            method: The method of ``Observer`` that takes it.
            kind: The event's type.
            facts: Its fields, beside those of every event.
        """
        self._observers.notify(method, kind(**self._facts, attempt=self.attempt, **facts))

    def end(
        self,
        outcome: str,
        timing: Timing,
        usage: Usage | None = None,
        finish_reasons: tuple[str, ...] = (),
        error: BaseException | None = None,
        *,
        status: int | None = None,
        head: object = None,
        reply: object = None,
    ) -> None:
        """Tells of the call's end, the first time that it is called.

        Args:
            outcome: How it ended.
            timing: How long it took.
            usage: What it used.
            finish_reasons: Why the choices that have finished did so.
            error: What it raised.
            status: HTTP status of the last reply.
            head: What has the reply's ``id`` and ``model``.
            reply: What came, where ``wants_content``.
        """
        if self.ended:
            return
        self.ended = True
        if self.wants_content:
            content: dict[str, Any] = {"request": self._request, "reply": reply, "finish_reasons": finish_reasons}
            self.report("call_content", CallContent, **content)
        self.report(
            "call_ended",
            CallEnded,
            outcome=outcome,
            timing=timing,
            usage=usage,
            finish_reasons=finish_reasons,
            error=None if error is None else type(error).__name__,
            status=getattr(error, "status_code", None) or status,
            response_id=_word(head, "id"),
            response_model=_word(head, "model"),
        )


def _word(head: object, name: str) -> str | None:
    value = getattr(head, name, None)
    return value if isinstance(value, str) else None
