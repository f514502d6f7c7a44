"""Call events, and their delivery to observers. See ``Observer``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from friendli_async._help import document_fields
from friendli_async._json import decode_json
from friendli_async.replies import Meta, Timing, Usage

__all__ = ["METHODS", "AttemptEnded", "AttemptStarted", "CallContent", "CallEnded", "CallEvent", "CallHeld"]
__all__ += ["CallStarted", "Connected", "FirstEvent", "Observer", "Observers"]
__all__ += ["CallReporter"]

_call_ids: Final = itertools.count(1)

Parameter = bool | int | float | str | tuple[str, ...]
"""Value of a generation parameter in ``CallStarted``."""


@document_fields
class CallEvent(msgspec.Struct, frozen=True, kw_only=True):
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

    def __init_subclass__(cls) -> None:
        document_fields(cls)


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
    status: int | None = None
    """HTTP status of the last response, or the status that an error in a stream names; None if there was neither."""
    request_id: str | None = None
    """The server's ``x-request-id`` of the last response, which its operators ask for."""
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


class Observer:
    """Receives the events of a client's calls: ``AsyncFriendli(observers=[...])``.

    Override the methods of interest. They are called synchronously, in the call's own task, or where its stream is read
    or closed, so they must not block. Their exceptions are logged, once per observer, and do not stop later events.

    No event holds a header (but the request id), a body or a token, with one exception, which is opt-in: an observer
    that defines ``call_content(self, event: CallContent)``, which this class does not, receives requests and replies.
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


METHODS: Final = ("call_content", *(name for name in vars(Observer) if not name.startswith("_")))
"""The methods of an observer that ``Observers.notify`` calls."""


class Observers:
    """The observers of a client."""

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members: tuple[Observer, ...] = tuple(members)
        self.wants_content: bool = any(hasattr(member, "call_content") for member in self.members)
        self._failed: set[int] = set()

    def notify(self, method: str, event: CallEvent) -> None:
        """Passes an event to all observers; logs the first exception of each."""
        for index, observer in enumerate(self.members):
            callback = getattr(observer, method, None)  # an observer need not inherit from Observer
            if callback is None:
                continue
            try:
                callback(event)
            except BaseException as error:
                import asyncio
                import logging

                # A CancelledError cannot be genuine, as nothing cancels a plain method. If it propagated, it would look
                # like the caller's cancellation, of a stream that is already open and that nobody would close.
                if not isinstance(error, Exception | asyncio.CancelledError):
                    raise
                if index not in self._failed:
                    self._failed.add(index)
                    logging.getLogger("friendli_async").exception(
                        "an observer raised an exception in %s; it stays registered", method
                    )


PARAMETERS: Final = (
    *("max_tokens", "max_output_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
    *("seed", "n", "stop", "stop_sequences", "reasoning_effort", "encoding_format", "dimensions"),
)
"""Generation parameters of request bodies. None of these can hold content."""
_parameters_decoder: Final = msgspec.json.Decoder(
    msgspec.defstruct("Parameters", [(name, object, None) for name in PARAMETERS])
)


def parameters_of(body: object) -> dict[str, Parameter]:
    """Returns the generation parameters of a body, except those of other types; {} if it is not a JSON object."""
    if not isinstance(body, bytes):
        return {}
    try:
        parameters = decode_json(body, _parameters_decoder)
    except (ValueError, RecursionError):  # the user's own encoder may produce anything
        return {}
    found: dict[str, Parameter] = {}
    for name in PARAMETERS:
        value = getattr(parameters, name)
        if isinstance(value, list):
            found[name] = tuple(str(item) for item in cast("list[object]", value))
        elif isinstance(value, bool | int | float | str):
            found[name] = value
    return found


def finish_reasons_of(reply: object) -> tuple[str, ...]:
    """Returns the finish reasons of a reply's choices, a message's stop reason, or a response's status."""
    choices: Any = getattr(reply, "choices", None)
    owners = [reply] if choices is None else choices
    names = ("stop_reason", "status") if choices is None else ("finish_reason",)
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return tuple(reason for reason in found if isinstance(reason, str))


class CallReporter:
    """Reports the events of one call to a client's observers.

    Args:
        observers: The observers.
        request: The JSON request body, or None.
        fields: The fields of every event.
    """

    def __init__(self, observers: Observers, request: bytes | None, **fields: str | None) -> None:
        self._observers = observers
        self.wants_content: bool = observers.wants_content
        self._request = request if self.wants_content else None
        self._fields: dict[str, Any] = {"call_id": next(_call_ids), **fields}
        self.attempt = 0
        self.attempting = False
        self.ended = False

    def report(self, method: str, kind: type[CallEvent], **fields: Any) -> None:
        """Passes one event to all observers.

        Args:
            method: The method of ``Observer`` that receives it.
            kind: The event's type.
            fields: Its fields, except those of every event.
        """
        self._observers.notify(method, kind(**self._fields, attempt=self.attempt, **fields))

    def end(
        self,
        outcome: str,
        meta: Meta,
        usage: Usage | None = None,
        finish_reasons: tuple[str, ...] = (),
        error: BaseException | None = None,
        *,
        head: object = None,
        reply: object = None,
    ) -> None:
        """Reports the end of the call. Only the first call of this method does.

        Args:
            outcome: How it ended.
            meta: The metadata of the call.
            usage: Its usage.
            finish_reasons: Finish reasons of the finished choices.
            error: The error it raised.
            head: An object with the reply's ``id`` and ``model``.
            reply: The reply, if ``wants_content``.
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
            timing=meta.timing,
            usage=usage,
            finish_reasons=finish_reasons,
            error=None if error is None else type(error).__name__,
            status=getattr(error, "status_code", None) or meta.status,
            request_id=getattr(error, "request_id", None) or meta.request_id,
            response_id=_string_attribute(head, "id"),
            response_model=_string_attribute(head, "model"),
        )


def _string_attribute(head: object, name: str) -> str | None:
    value = getattr(head, name, None)
    return value if isinstance(value, str) else None
