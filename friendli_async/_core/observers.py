"""Events of calls and runs, and their delivery to observers. See ``Observer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from friendli_async._help import document_fields
from friendli_async.errors import ToolProblem
from friendli_async.replies import Timing, Usage

__all__ = ["METHODS", "AttemptEnded", "AttemptStarted", "CallContent", "CallEnded", "CallEvent", "CallHeld"]
__all__ += ["CallStarted", "Connected", "FirstEvent", "ObservedRunEvent", "Observer", "Observers", "RunEnded"]
__all__ += ["RunStarted", "ToolCallContent", "ToolCallEnded", "ToolCallEvent", "ToolCallStarted"]

Parameter = bool | int | float | str | tuple[str, ...]
"""Value of a generation parameter in ``CallStarted``."""


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    def __init_subclass__(cls) -> None:
        document_fields(cls)


class CallEvent(_Event, frozen=True, kw_only=True):
    """Base of the call events. No event holds a header, a body or a token."""

    call_id: int
    """Number of the call in this process: the same in all its events."""
    operation: str
    """The group on the client and the method, such as ``chat.stream``."""
    deployment: str
    """``serverless``, ``dedicated`` or ``container``; "" for operations of no deployment."""
    model: str | None = None
    """The requested model, if the call names one."""
    team: str | None = None
    """The billed team, if the client names one."""
    attempt: int = 0
    """Number of the attempt, from 1; 0 before the first."""
    run_id: int | None = None
    """Number of the run (``chat.run``) that the call is a turn of; None for any other call."""


class CallStarted(CallEvent, frozen=True, kw_only=True):
    """A call has started. Nothing has been sent yet."""

    server_address: str = ""
    """Host of the base URL."""
    server_port: int | None = None
    """Port of the base URL."""
    parameters: Mapping[str, Parameter] = {}
    """The call's generation parameters by their wire names: ``temperature``, ``max_tokens``, ``stop``... Numbers, flags
    and names only, no content."""


class CallHeld(CallEvent, frozen=True, kw_only=True):
    """A rate-limit hold pauses the call before its first attempt. Reported again if the server extends the hold."""

    seconds: float = 0.0
    """Seconds that the call will wait, unless it is cancelled."""
    status: int = 0
    """HTTP status of the response that started the hold, to another call: 429 or 503."""


class AttemptStarted(CallEvent, frozen=True, kw_only=True):
    """An attempt starts: the request is built, and waits for a connection."""


class Connected(CallEvent, frozen=True, kw_only=True):
    """An attempt got a connection, and sends its request. Not reported if the session is the user's own.

    Reported again in the same attempt if a dead pooled connection is replaced, or a redirect is followed.
    """

    reused: bool = False
    """Whether the connection came from the pool."""
    queued: float = 0.0
    """Seconds that the attempt waited for a connection slot."""
    connecting: float = 0.0
    """Seconds that getting the connection took."""


class AttemptEnded(CallEvent, frozen=True, kw_only=True):
    """An attempt has ended: a plain call has its reply, a stream is open, or it failed or was cancelled."""

    status: int | None = None
    """HTTP status of the response; None if there was none."""
    error: str | None = None
    """Class name of its error; None if it succeeded."""
    reason: str | None = None
    """The message of that error, as in ``CallEnded``."""
    wait: float | None = None
    """Seconds until the next attempt; None if there is none."""


class FirstEvent(CallEvent, frozen=True, kw_only=True):
    """A stream's first event has arrived."""

    seconds: float = 0.0
    """Seconds since the call started."""


class CallEnded(CallEvent, frozen=True, kw_only=True):
    """A call has ended, in whatever way. The last event of each call, reported once."""

    outcome: str = "done"
    """``done``, ``stopped``, ``truncated``, ``failed`` or ``cancelled``: see ``EventStream.outcome``."""
    timing: Timing = Timing()
    usage: Usage | None = None
    finish_reasons: tuple[str, ...] = ()
    """Finish reasons of the finished choices."""
    error: str | None = None
    """Class name of the error that ended it; None if there was none."""
    reason: str | None = None
    """Its message, if it is about the connection: which timeout expired, why there was no reply, or how a stream was
    interrupted. Others may quote the server."""
    status: int | None = None
    """HTTP status of the last response, or the status that an error in a stream names; None if there was neither."""
    request_id: str | None = None
    """The server's ``x-request-id`` or ``request-id`` of the last response, which its operators ask for."""
    response_id: str | None = None
    """The reply's ``id``."""
    response_model: str | None = None
    """The reply's ``model``."""


class CallContent(CallEvent, frozen=True, kw_only=True):
    """Request and reply of a call. Reported before ``call_ended``, and only to observers with ``call_content``."""

    request: bytes | None = None
    """The JSON request body; None for a form, or an empty body."""
    reply: object = None
    """The reply's struct; a ``Partial`` for a stream that ended early; None if nothing arrived."""
    finish_reasons: tuple[str, ...] = ()
    """Finish reasons of the finished choices."""

    def __repr__(self) -> str:
        return f"CallContent(call_id={self.call_id}, operation={self.operation!r}, ...)"


class ObservedRunEvent(_Event, frozen=True, kw_only=True):
    """Base of the events of a run, ``chat.run``. No event holds messages, arguments or results."""

    run_id: int
    """Number of the run in this process: the same in all its events, and in those of its turns' calls."""
    operation: str
    """``chat.run``."""
    deployment: str
    """``serverless``, ``dedicated`` or ``container``."""
    model: str | None = None
    """The requested model, if the run names one."""
    team: str | None = None
    """The billed team, if the client names one."""


class RunStarted(ObservedRunEvent, frozen=True, kw_only=True):
    """A run has started: it is being used for the first time. Reported before its first call starts."""


class RunEnded(ObservedRunEvent, frozen=True, kw_only=True):
    """A run has ended, in whatever way, and so have its calls and tools. Its last event, reported once."""

    outcome: str = "done"
    """``done``, ``truncated``, ``failed`` or ``cancelled``, as of a stream: see ``EventStream.outcome``."""
    seconds: float = 0.0
    """Seconds since it started."""
    turns: int = 0
    """Number of turns, each of which is one call, including one that was not finished."""
    tool_calls: int = 0
    """Number of tool calls, including those that were rejected."""
    usage: Usage | None = None
    """Usage of all turns, as far as the server has reported it."""
    finish_reasons: tuple[str, ...] = ()
    """Finish reason of the last answer, if the run is ``done``."""
    error: str | None = None
    """Class name of the error that ended it; None if there was none."""
    status: int | None = None
    """HTTP status of that error, if it has one."""


class ToolCallEvent(ObservedRunEvent, frozen=True, kw_only=True):
    """Base of the events of a tool call in a run."""

    call_id: int
    """Number of the call whose answer contains the tool call; 0 if that was a call of an earlier run."""
    tool_call_id: str
    """The tool call's id in the run's messages: not the server's if that had none, or one of an earlier call."""
    name: str
    """The tool's name as the model wrote it, at most 64 characters."""


class ToolCallStarted(ToolCallEvent, frozen=True, kw_only=True):
    """A tool is about to be called, or its call has been rejected: it does not exist, or was not approved."""

    description: str | None = None
    """The tool's description; None if the call was rejected."""
    queued: float = 0.0
    """Seconds since the arguments were complete: the wait for approval and for a free slot."""


class ToolCallEnded(ToolCallEvent, frozen=True, kw_only=True):
    """A tool call has ended, in whatever way. Reported once for each ``ToolCallStarted``."""

    outcome: str = "done"
    """``done``, ``failed``, or ``cancelled`` if the run ended first."""
    seconds: float = 0.0
    """Seconds since it started."""
    problem: ToolProblem | None = None
    """Why it failed, as in ``ToolFinished``; None on success, or if it was cancelled."""
    error: str | None = None
    """Class name of the exception that ended it; None on success."""


class ToolCallContent(ToolCallEvent, frozen=True, kw_only=True):
    """Arguments and result of a tool call. Reported before its end, only to observers with ``tool_call_content``."""

    arguments: str = ""
    """The arguments as the model wrote them."""
    result: str | None = None
    """What the model gets: the result, or the message of the failure; None if the run ended first."""

    def __repr__(self) -> str:
        return f"ToolCallContent(run_id={self.run_id}, tool_call_id={self.tool_call_id!r}, name={self.name!r}, ...)"


class Observer:
    """Receives the events of a client's calls and runs: ``AsyncFriendli(observers=[...])``.

    Override the methods of interest. They are called synchronously, in the call's own task, or where its stream is read
    or closed, so they must not block. Their exceptions do not stop later events. They are logged: of each method, the
    first of each class. Events for which no observer has a method are not made; which methods there are is looked up
    when the client is created.

    No event holds a header (but the request id), a body or a token, with two exceptions, which are opt-in: an observer
    that defines ``call_content(self, event: CallContent)``, which this class does not, receives requests and replies,
    and one that defines ``tool_call_content(self, event: ToolCallContent)`` the arguments and results of tools.
    """

    def call_started(self, event: CallStarted) -> None:
        """A call has started."""

    def call_held(self, event: CallHeld) -> None:
        """A rate-limit hold pauses the call."""

    def attempt_started(self, event: AttemptStarted) -> None:
        """An attempt starts."""

    def connected(self, event: Connected) -> None:
        """An attempt got a connection."""

    def attempt_ended(self, event: AttemptEnded) -> None:
        """An attempt has ended."""

    def first_event(self, event: FirstEvent) -> None:
        """A stream's first event has arrived."""

    def call_ended(self, event: CallEnded) -> None:
        """A call has ended."""

    def run_started(self, event: RunStarted) -> None:
        """A run has started."""

    def tool_call_started(self, event: ToolCallStarted) -> None:
        """A tool is about to be called. Runs in the tool's own task: context variables set here are set in the tool."""

    def tool_call_ended(self, event: ToolCallEnded) -> None:
        """A tool call has ended."""

    def run_ended(self, event: RunEnded) -> None:
        """A run has ended."""


_CONTENT_METHODS: Final = ("call_content", "tool_call_content")
METHODS: Final = (*_CONTENT_METHODS, *(name for name in vars(Observer) if not name.startswith("_")))
"""The methods of an observer that ``Observers.report`` calls."""


class Observers:
    """The observers of a client."""

    def __init__(self, members: Sequence[Observer]) -> None:
        numbered = tuple(enumerate(members))
        self._receivers: dict[str, tuple[tuple[int, Observer], ...]] = {
            method: tuple(member for member in numbered if _receives(member[1], method)) for method in METHODS
        }
        self._logged: set[tuple[int, str, type[BaseException]]] = set()

    def wants(self, method: str) -> bool:
        """Returns whether any observer has this method; else its events need not be made."""
        return bool(self._receivers[method])

    def report(self, method: str, event: _Event) -> None:
        """Passes an event to the observers with this method; logs the first exception of each class."""
        for index, observer in self._receivers[method]:
            try:
                getattr(observer, method)(event)
            except BaseException as error:
                import asyncio
                import logging

                # A CancelledError cannot be genuine, as nothing cancels a plain method. If it propagated, it would look
                # like the caller's cancellation, of a stream that is already open and that nobody would close.
                if not isinstance(error, Exception | asyncio.CancelledError):
                    raise
                failure = (index, method, type(error))
                if failure not in self._logged:
                    self._logged.add(failure)
                    logging.getLogger("friendli_async").exception(
                        "an observer raised an exception in %s; it stays registered", method
                    )


def _receives(observer: Observer, method: str) -> bool:
    """Whether an observer, which need not inherit from Observer, has a method that is not Observer's no-op."""
    own = getattr(observer, method, None)
    return own is not None and getattr(own, "__func__", own) is not vars(Observer).get(method)
