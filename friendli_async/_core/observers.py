"""Who watches the calls: the events that observers are told, and how they are told. See ``Observer``."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from friendli_async._help import described
from friendli_async.replies import Timing, Usage

if TYPE_CHECKING:
    from friendli_async.errors import FriendliError

__all__ = [
    "AttemptEnded",
    "AttemptStarted",
    "CallEnded",
    "CallEvent",
    "CallStarted",
    "Connected",
    "FirstEvent",
    "Observer",
    "Observers",
    "Watch",
]

_numbers: Final = itertools.count(1)


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
    """``done``, ``truncated``, ``failed`` or ``cancelled``: see ``EventStream.outcome``."""
    timing: Timing = Timing()
    usage: Usage | None = None
    finish_reasons: tuple[str, ...] = ()
    """Why the choices that have finished did so."""
    error: str | None = None
    """Class name of the error that ended it; None where none did."""


class Observer:
    """Is told what happens to the calls of a client: ``AsyncFriendli(observers=[...])``.

    Override what is of interest. The methods are called in the call's own task, or where its stream is read or closed,
    and must return at once. One that raises is logged, once per observer, and goes on being called.
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


class Observers:
    """The observers of a client."""

    __slots__ = ("_failed", "members")

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members: tuple[Observer, ...] = tuple(members)
        self._failed: set[int] = set()

    def tell(self, method: str, event: CallEvent) -> None:
        """Tells all of them; what they raise is logged, once each."""
        for place, observer in enumerate(self.members):
            take = getattr(observer, method, None)  # an observer need not inherit from Observer
            if take is None:
                continue
            try:
                take(event)
            except Exception:
                if place not in self._failed:
                    self._failed.add(place)
                    import logging

                    logging.getLogger("friendli_async").exception(
                        "an observer failed in %s; it goes on being called", method
                    )


class Watch:
    """Tells a client's observers of one call."""

    __slots__ = ("_facts", "_observers", "attempt", "attempting", "ended")

    def __init__(
        self, observers: Observers, *, operation: str, deployment: str, model: str | None, team: str | None
    ) -> None:
        self._observers = observers
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

    def tell(self, method: str, kind: type[CallEvent], **facts: Any) -> None:
        """Tells all observers of one event.

        Args:
            method: The method of ``Observer`` that takes it.
            kind: The event's type.
            facts: Its fields, beside those of every event.
        """
        self._observers.tell(method, kind(**self._facts, attempt=self.attempt, **facts))

    def end(
        self,
        outcome: str,
        timing: Timing,
        usage: Usage | None = None,
        finish_reasons: tuple[str, ...] = (),
        error: FriendliError | BaseException | None = None,
    ) -> None:
        """Tells of the call's end, the first time that it is called."""
        if self.ended:
            return
        self.ended = True
        self.tell(
            "call_ended",
            CallEnded,
            outcome=outcome,
            timing=timing,
            usage=usage,
            finish_reasons=finish_reasons,
            error=None if error is None else type(error).__name__,
        )
