"""Reports calls and runs to the observers of a client, as the events of ``observers``, and to the log."""

from __future__ import annotations

import itertools
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from friendli_async._core.loops import call_once_soon, running_loop
from friendli_async._core.observers import (
    CallContent,
    CallEnded,
    CallEvent,
    ObservedRunEvent,
    Observers,
    Parameter,
    RunEnded,
    RunStarted,
    ToolCallContent,
    ToolCallEnded,
    ToolCallStarted,
)
from friendli_async._json import decode_json
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    FriendliError,
    StreamInterruptedError,
    ToolProblem,
)
from friendli_async.replies import Meta, ToolCall, Usage
from friendli_async.usage_limit import UsageLimit

if TYPE_CHECKING:
    import asyncio

_run_ids: Final = itertools.count(1)
OUT_OF_BUDGET: Final = "the retry budget is exhausted"
"""Ends the cause of the last attempt of a call that was not retried for this reason."""
MAX_NAME: Final = 64
"""Characters of a tool's name. A model may write anything."""

PARAMETERS: Final = (
    *("max_tokens", "max_output_tokens", "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
    *("seed", "n", "stop", "stop_sequences", "reasoning_effort", "encoding_format", "dimensions"),
)
"""Generation parameters of request bodies. None of these can hold content."""
_NOBODY: Final = Observers(())
_SCALARS: Final = (bool, int, float, str)
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
        if value is None:
            continue
        if isinstance(value, list):
            found[name] = tuple(str(item) for item in cast("list[object]", value))
        elif isinstance(value, _SCALARS):
            found[name] = value
    return found


def finish_reasons_of(reply: object) -> tuple[str, ...]:
    """Returns the finish reasons of a reply's choices, a message's stop reason, or a response's status."""
    choices: Any = getattr(reply, "choices", None)
    owners = [reply] if choices is None else choices
    names = ("stop_reason", "status") if choices is None else ("finish_reason",)
    found = [getattr(owner, name, None) for owner in owners for name in names]
    return tuple(reason for reason in found if isinstance(reason, str))


def reason_of(error: BaseException | None) -> str | None:
    """Returns the message of an error of the connection, without what it quotes; None for others, which may quote.

    The server, which ``str()`` adds, is in each event and log record anyway.
    """
    if not isinstance(error, APIConnectionError):
        return None
    message = Exception.__str__(error)
    quotes = isinstance(error, StreamInterruptedError) and error.excerpt
    return message.partition(": ")[0] if quotes else message


def cause_of(error: FriendliError) -> str:
    """Returns ``ErrorClass: message``, without the request id, which would make every cause unique."""
    message = str(error)
    if isinstance(error, APIStatusError):
        message = message.removesuffix(f" (request id {error.request_id})")
    return f"{type(error).__name__}: {message}"


def logged_name(error: FriendliError) -> str:
    """Returns the class of an error, and the part of its message that does not quote the server, if there is one."""
    reason = reason_of(error)
    return type(error).__name__ if reason is None else f"{type(error).__name__}: {reason}"


def logged_reason(error: FriendliError) -> str:
    """Returns why an attempt failed, for the log: the status, or the error."""
    return str(error.status_code) if isinstance(error, APIStatusError) else logged_name(error)


def log_fields(meta: Meta) -> dict[str, object]:
    """Returns the attributes that a record of the log has of a call, so that its records can be told from others'."""
    fields = {
        "call_id": meta.call_id,
        "operation": meta.operation,
        "deployment": meta.deployment,
        "server": meta.server,
        "model": meta.model,
        "attempt": len(meta.attempts),
        "request_id": meta.request_id,
    }
    return {f"friendli_{name}": value for name, value in fields.items()}


class CallReporter:
    """Reports one call: to the observers, to the run that it is a turn of, and to the usage limit, if there are any.

    Args:
        observers: The observers of the client.
        request: The JSON body, for ``call_content``; None for another one.
        call_id: The number of the call.
        run_reporter: Reports the run.
        limit: The usage limit.
        fields: Further fields of every event.

    Attributes:
        attempt: The number of the attempt; 0 before the first.
        attempting: Whether its end is still to be reported.
    """

    def __init__(
        self,
        observers: Observers | None,
        request: bytes | None,
        call_id: int,
        *,
        run_reporter: RunReporter | None,
        limit: UsageLimit | None,
        **fields: str | None,
    ) -> None:
        self._observers = observers or _NOBODY
        self._run_reporter = run_reporter
        self._limit = limit
        self._request = request if self.wants("call_content") else None
        self._fields: dict[str, Any] = {
            "call_id": call_id,
            "run_id": None if run_reporter is None else run_reporter.run_id,
            **fields,
        }
        self.attempt = 0
        self.attempting = False
        self._is_counted = False
        self._ended = False
        if run_reporter is not None:
            run_reporter.start_call(call_id)

    def wants(self, method: str) -> bool:
        """Returns whether any observer has this method."""
        return self._observers.wants(method)

    def report(self, method: str, kind: type[CallEvent], **fields: Any) -> None:
        """Passes one event to the observers that have the method; ``fields`` are those that not every event has."""
        if self._observers.wants(method):
            self._observers.report(method, kind(**self._fields, attempt=self.attempt, **fields))

    def begin_call(self) -> None:
        """Raises UsageLimitError if the limit does not allow the call, and otherwise counts it.

        ``check_usage`` asks again right before each attempt is sent. ``end`` adds the usage, or takes a call back that
        a rate-limit hold has kept from its first attempt.
        """
        if self._limit is not None:
            self._limit._begin_call()  # pyright: ignore[reportPrivateUsage]  # not for users
            self._is_counted = True

    def check_usage(self) -> None:
        """Raises UsageLimitError if other calls have reached the limit while this one waited."""
        if self._limit is not None:
            self._limit._check_usage()  # pyright: ignore[reportPrivateUsage]  # not for users

    def end(
        self,
        outcome: str,
        meta: Meta,
        usage: Usage | None = None,
        finish_reasons: tuple[str, ...] = (),
        error: BaseException | None = None,
        *,
        is_complete: bool = True,
        envelope: object = None,
        reply: object = None,
    ) -> None:
        """Reports the end of the call. Only the first call of this method does.

        ``is_complete`` is for the limit; ``envelope`` is an object with the ``id`` and ``model`` of the reply;
        ``reply`` is needed if an observer has ``call_content``.
        """
        if self._ended:
            return
        self._ended = True
        if self._limit is not None and (usage is not None or 200 <= (meta.status or 0) < 300):
            self._limit._add_answer(usage, is_complete=is_complete)  # pyright: ignore[reportPrivateUsage]  # not for users
        if self._limit is not None and self._is_counted and not self.attempt:
            self._limit._take_call_back()  # pyright: ignore[reportPrivateUsage]  # not for users
        try:
            self.report("call_content", CallContent, request=self._request, reply=reply, finish_reasons=finish_reasons)
            self.report(
                "call_ended",
                CallEnded,
                outcome=outcome,
                timing=meta.timing,
                usage=usage,
                finish_reasons=finish_reasons,
                error=_class_name(error),
                reason=reason_of(error),
                status=getattr(error, "status_code", None) or meta.status,
                request_id=getattr(error, "request_id", None) or meta.request_id,
                response_id=_string_attribute(envelope, "id"),
                response_model=_string_attribute(envelope, "model"),
            )
        finally:
            if self._run_reporter is not None:
                self._run_reporter.end_call()


class RunReporter:
    """Reports the events of one run to a client's observers, if any. ``fields`` are those of every event.

    The run starts with its first call. Its end is reported once all its calls and tools have ended: a run that is
    dropped ends before them, and so does one that is closed by a tool.

    Attributes:
        run_id: The run's number; None if nobody observes it.
    """

    def __init__(self, observers: Observers | None, **fields: str | None) -> None:
        self.run_id: int | None = None if observers is None else next(_run_ids)
        self._observers = observers or _NOBODY
        self._fields: dict[str, Any] = {"run_id": self.run_id, "operation": "chat.run", **fields}
        self._began: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # from the start on
        self._call_id = 0
        self._turns = 0
        self._tool_calls = 0
        self._unended = 0  # calls and tools
        self._ended = False
        self._end: dict[str, Any] | None = None  # the fields of the end until it is reported

    def start_call(self, call_id: int) -> None:
        """Reports the start of the run, if the call is its first."""
        self._start()
        self._call_id = call_id
        self._turns += 1
        self._unended += 1

    def _start(self) -> None:
        if self._began is None:
            self._began, self._loop = monotonic(), running_loop()
            self._report("run_started", RunStarted)

    def end_call(self) -> None:
        """Notes that a call has ended."""
        self._unended -= 1
        self._report_end()

    def start_tool(self, call: ToolCall, description: str | None, queued: float) -> None:
        """Reports the start of a tool call; called in the tool's task."""
        self._start()
        self._tool_calls += 1
        self._unended += 1
        self._report(
            "tool_call_started", ToolCallStarted, **self._tool_fields(call), description=description, queued=queued
        )

    def end_tool(
        self,
        call: ToolCall,
        outcome: str,
        seconds: float,
        *,
        problem: ToolProblem | None,
        error: BaseException | None,
        result: str | None,
    ) -> None:
        """Reports the end of a tool call, after ``start_tool``; ``result`` is what the model gets."""
        fields = self._tool_fields(call)
        try:
            arguments = call.function.arguments
            self._report("tool_call_content", ToolCallContent, **fields, arguments=arguments, result=result)
            ended = {"outcome": outcome, "seconds": seconds, "problem": problem, "error": _class_name(error)}
            self._report("tool_call_ended", ToolCallEnded, **fields, **ended)
        finally:
            self._unended -= 1
            self._report_end()

    def end(
        self, outcome: str, error: BaseException | None, usage: Usage | None, finish_reasons: tuple[str, ...] = ()
    ) -> None:
        """Reports the end of the run, once its calls and tools have ended. Only the first call of this method does.

        The finish reasons are those of the last answer.
        """
        if self._ended:
            return
        self._ended = True
        status = getattr(error, "status_code", None)
        self._end = {
            "outcome": outcome,
            "error": _class_name(error),
            "status": status if isinstance(status, int) else None,
            "usage": usage,
            "finish_reasons": finish_reasons,
        }
        self._report_end()

    def end_dropped(self, error: BaseException, usage: Usage | None) -> None:
        """Reports the end of a run whose last reference was dropped: in its loop's next turn, as for a stream."""
        if self._loop is not None and not self._ended:
            call_once_soon(self._loop, self.end, "cancelled", error, usage)

    def _report_end(self) -> None:
        end = self._end
        if end is None or self._unended or self._began is None:
            return
        self._end = None
        seconds = monotonic() - self._began
        self._report("run_ended", RunEnded, **end, seconds=seconds, turns=self._turns, tool_calls=self._tool_calls)

    def _tool_fields(self, call: ToolCall) -> dict[str, Any]:
        return {"call_id": self._call_id, "tool_call_id": call.id, "name": call.function.name[:MAX_NAME]}

    def _report(self, method: str, kind: type[ObservedRunEvent], **fields: Any) -> None:
        if self._observers.wants(method):
            self._observers.report(method, kind(**self._fields, **fields))


def _class_name(error: BaseException | None) -> str | None:
    return None if error is None else type(error).__name__


def _string_attribute(envelope: object, name: str) -> str | None:
    value = getattr(envelope, name, None)
    return value if isinstance(value, str) else None
