"""Runs: a loop in which the model calls tools, the client runs them, and the model continues from their results."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, cast

import msgspec

from friendli_async._core.events.decoding import is_end_of_choice
from friendli_async._core.events.stream import Outcome, StreamState
from friendli_async._core.held import reject_stop_iteration, weak_method
from friendli_async._core.loops import is_current, running_loop
from friendli_async._core.reporting import RunReporter, finish_reasons_of
from friendli_async._core.work import Work
from friendli_async._help import document_fields
from friendli_async._hints import Explained
from friendli_async._lazy import LazyModule
from friendli_async._pydantic import PydanticField
from friendli_async.chat.collector import ChatCollector, ChatStream
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.tool_calls import CompleteToolCalls
from friendli_async.chat.tool_loop import RunEvent, ToolRunner, TurnEnded
from friendli_async.chat.transcript import Transcript
from friendli_async.errors import (
    FriendliError,
    OutputCutOffError,
    OutputError,
    ResponseDecodeError,
    StreamInterruptedError,
    ToolError,
)
from friendli_async.replies import HasValue, Partial, ToolCall, Usage, add_usage

if TYPE_CHECKING:
    from friendli_async.chat import answer_tool

    # Plain dicts. Lists are invariant: a `friendli_async.chat.Conversation` could not be a list[dict[str, Any]].
    Conversation = list[Any]
else:
    answer_tool = LazyModule("friendli_async.chat.answer_tool")
    # What the messages of a result are, and what msgspec can decode, so that a checkpoint can restore results.
    Conversation = list[dict[str, Any]]

__all__ = ["ParsedRun", "ParsedRunResult", "Run", "RunResult"]

T = TypeVar("T")


@document_fields
class RunResult(Explained, PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run."""

    reply: ChatCompletion
    """The model's last answer."""
    messages: Conversation
    """The full conversation as plain dicts: the given messages, then all replies and tool results; ready for the next
    call, or run if calls were deferred."""
    usage: Usage | None
    """Billed usage of all turns, as far as the server reported it."""
    turns: int
    """Number of turns."""
    deferred: tuple[ToolCall, ...] = ()
    """The tool calls that ``before_tool`` deferred, which ended the run. Another run with ``messages`` and the
    ``decisions`` on them goes on. ``deferred_calls`` finds them again in saved messages."""


@document_fields
class ParsedRunResult(RunResult, HasValue, Generic[T], frozen=True, kw_only=True):
    """The result of a run that ends with a value."""

    value_field = "answer"

    answer: T | msgspec.UnsetType = msgspec.field(default=msgspec.UNSET, name="value")
    """The ``value``, or UNSET if there is none; in JSON, it is ``value``, too."""

    @property
    def value(self) -> T:
        """The answer as a value of the type.

        Raises:
            RuntimeError: There is none yet, because calls were deferred.
        """
        if self.answer is msgspec.UNSET:
            raise RuntimeError("there is no value yet: the run has ended with deferred calls; see `deferred`")
        return self.answer


class Run:
    """A run: use ``async for event in run``, ``async with run``, or just ``await run.result()``.

    It yields ``ChatChunk`` (the model's output), ``ToolStarted``, ``ToolFinished`` and ``TurnEnded`` events as they
    happen. Nothing is sent before first use. A tool call starts as soon as its arguments are complete, while the model
    is still streaming; the results are sent back in the order of the calls. With ``decisions``, the calls that they are
    on come first, before anything is sent.

    Leaving ``async with``, ``aclose()``, a cancelled read and any error close the stream, cancel the tools, and wait
    for them. A sync function runs in a worker thread, which cannot be cancelled: it runs to completion without being
    awaited, and its result is discarded. Dropping the last reference also cancels the tools, but does not wait.

    Raises:
        FriendliError: An error of the stream, with ``partial``: if a later turn was never answered, the usage so far.
        StreamInterruptedError: The client was drained or closed, while tools ran.
        TurnLimitError: The model still called tools in the last turn that ``max_turns`` allows.
        ToolError: A call failed, and ``on_tool_error`` is "raise".
        RuntimeError: Two tasks wait for events at the same time, or it is iterated for the first time after
            ``result()`` has read it.
    """

    __slots__ = (  # as of an EventStream
        "__weakref__",
        "_answer",
        "_begin_work",
        "_complete_calls",
        "_delivered",
        "_events",
        "_is_iterated",
        "_is_waiting",
        "_read_task",
        "_reply",
        "_reporter",
        "_result",
        "_runner",
        "_state",
        "_stream",
        "_transcript",
        "_work",
    )

    def __init__(
        self,
        first: ChatStream,
        transcript: Transcript,
        runner: ToolRunner,
        reporter: RunReporter,
        begin_work: Callable[[Work], None],
        answer: answer_tool.AnswerTool | None,
    ) -> None:
        self._answer = answer
        self._transcript = transcript
        self._begin_work = begin_work
        self._reporter = reporter
        self._runner = runner
        self._events = runner.events
        self._work = Work(weak_method(runner.interrupt))  # the client holds it, and a tool may refer to the run
        self._is_waiting = False
        self._is_iterated = False
        self._state = StreamState()
        self._result: RunResult | None = None
        self._read_task: asyncio.Task[ChatChunk | None] | None = None
        self._reply: ChatCompletion | None = None
        self._begin_turn(None if transcript.pending else first)

    def _begin_turn(self, stream: ChatStream | None) -> None:
        """Begins to read the answer of a turn; None: the calls of an earlier run come first."""
        self._stream = stream
        self._complete_calls = CompleteToolCalls()
        # The tool calls of the chunks that the run has read; the stream's own collector has all that has arrived. That
        # one has numbered the choices already; a collector of one choice would do so again, so this is one of two.
        self._delivered = ChatCollector(2)

    @property
    def messages(self) -> Conversation:
        """The conversation so far as plain dicts: the given messages and all finished turns; ready for another call.

        Also the unfinished turn, if a tool has been called in it: what a tool has done must not be forgotten, even if
        the process is killed. A tool message says so where the tool has not finished, or was not called.
        """
        if not self._runner.has_called:
            return list(self._transcript.messages)
        answer = self._reply
        if answer is None and self._stream is not None:
            answer = self._stream._received.result()  # pyright: ignore[reportPrivateUsage]  # its own stream
        return self._transcript.with_results(self._runner, answer)

    @property
    def usage(self) -> Usage | None:
        """Billed usage of all answers so far, as far as the server reported it."""
        answer = self._reply or self._stream
        return add_usage(self._transcript.usage, None if answer is None else answer.usage)

    @property
    def turns(self) -> int:
        """Number of finished turns."""
        return self._transcript.turns

    def __repr__(self) -> str:
        state = "closed" if self._state.error is not None else self._state.outcome
        return f"<{type(self).__name__} {state}, {self.turns} turns>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run cannot be copied or pickled: it holds a connection")

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        self._work.close()
        self._runner.drop()
        if not is_finalizing():
            self._reporter.end_dropped(StreamInterruptedError("the last reference to the run was dropped"), self.usage)

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Opens the stream of the first turn, so that errors of the call are raised here; not before decided calls."""
        if self._state.outcome == "open":
            await self._exclusively(self._open)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._leave()

    async def aclose(self) -> None:
        """Closes the stream, cancels the tools, and waits for them to end; not in a tool of the run itself.

        Idempotent; may be called from any task of the run's event loop. A task that is waiting for an event gets
        StreamInterruptedError.
        """
        self._state.closed = True
        await self._leave()

    async def _leave(self) -> None:
        if self._state.outcome == "open":
            self._state.closed = True
        self._events.clear()
        message = "the run was closed before it was complete"
        await self._close(StreamInterruptedError(message, sent=self._may_have_been_sent()), "cancelled")

    async def _close(self, error: BaseException, outcome: Outcome) -> None:
        """Closes the stream, cancels the tools and waits for them; an open run stores and reports the error."""
        state = self._state
        was_open = state.outcome == "open"
        if was_open:
            state.outcome, state.error = outcome, self._error_for_later(error)
        self._work.close()
        try:
            if self._stream is not None:
                await self._stream.aclose()
            self._runner.wake()
            await self._runner.stop(wait=not self._work.is_current())
        finally:  # not earlier: a tool may finish although it is cancelled
            for failed in (error, state.error):
                if isinstance(failed, ToolError):
                    failed.messages, failed.usage = self.messages, self.usage
            if was_open:
                self._reporter.end(outcome, error, self.usage)

    def _error_for_later(self, error: BaseException) -> FriendliError:
        """Returns what later calls raise after an error."""
        partial, has_grown = None if self._stream is None else self._stream.partial, self._transcript.has_grown
        if has_grown and partial in (None, Partial()):
            partial = Partial(usage=self.usage)
        if not isinstance(error, FriendliError):
            was_cancelled = isinstance(error, asyncio.CancelledError)
            message = "a read of the run was cancelled, which closed it" if was_cancelled else "the run failed"
            return StreamInterruptedError(message, partial=partial, sent=self._may_have_been_sent())
        if error.partial is None:
            if isinstance(error, StreamInterruptedError):
                error.partial, error.sent = partial, error.sent and self._may_have_been_sent()
            elif has_grown:  # a bulk run must not begin again: tools have effects
                error.partial = partial
        return copy.copy(error)

    def _may_have_been_sent(self) -> bool:
        """Whether the server may have accepted a request of any turn."""
        stream = self._stream
        if self.turns or stream is None:
            return self.turns > 0 or self._reply is not None
        return stream._may_have_been_sent  # pyright: ignore[reportPrivateUsage]  # its own stream

    async def _open(self) -> None:
        if self._stream is not None:
            await self._stream
        elif self._transcript.pending:
            self._begin_pending()

    def _begin_response(self, work: Work, on_abort: Callable[[], None]) -> None:
        """Prepares the open run for a response that serves the rest of it; see ``EventStream``.

        ``on_abort`` is not needed: a timeout ends only the stream of a turn, and the client tells ``work`` of its end.

        Raises:
            RuntimeError: Nothing is left of it: the response would be empty, and look complete.
            StreamInterruptedError: A cancelled read has closed it.
        """
        if self._state.outcome != "open" and not self._events:
            self._state.check_readable()
            raise RuntimeError("the run has ended before the response started: it was finished, or closed")
        work.include(self._work)

    def _check_complete(self) -> None:
        """Raises the error that ended the run early: iteration just ends if another task has closed it."""
        if self._state.outcome != "done":
            raise self._state.final_error()

    if not TYPE_CHECKING:  # to type checkers a run is not awaitable

        def __await__(self) -> NoReturn:
            raise TypeError("a run cannot be awaited: use `await run.result()`, or `async for event in run`")

    # --- iterating -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        if self._result is not None and not self._is_iterated:
            raise RuntimeError("result() has already read all events: iterate over the run before calling it")
        events = self._events
        if not events:
            await self._exclusively(self._wait_for_event)
        self._is_iterated = True  # not earlier: a read that is refused leaves the run as it was
        if events:
            return events.popleft()
        raise StopAsyncIteration

    async def result(self) -> RunResult:
        """Runs to completion, discarding events that have not been read, and returns the result.

        Raises:
            FriendliError: The run failed; an error that has already been raised is raised again.
        """
        await self._exclusively(self._run_to_end)
        if self._result is None:
            raise self._state.final_error()
        return self._result

    async def _exclusively(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Awaits ``wait`` in one task at a time; any error closes the run."""
        if self._is_waiting:
            raise RuntimeError("another task is already waiting for this run's events")
        task = asyncio.current_task(running_loop())
        self._is_waiting = True
        try:
            with self._work.making_calls():
                await wait()
        except BaseException as error:
            if isinstance(error, GeneratorExit) and not is_current(task):
                raise  # destroyed with its event loop, as are the tools
            await self._close(error, _outcome_of(error))
            reject_stop_iteration(error)
            raise
        finally:
            self._is_waiting = False
            del task  # avoid a reference cycle: the error's traceback holds this frame, and the task the error

    async def _wait_for_event(self) -> None:
        while not self._events and self._state.outcome == "open":
            await self._advance()
        if not self._events:
            self._state.check_readable()

    async def _run_to_end(self) -> None:
        while self._state.outcome == "open":
            self._events.clear()
            await self._advance()
        self._events.clear()

    async def _advance(self) -> None:
        """Advances the run by one step."""
        if self._stream is None or not self._complete_calls.has_finished:  # else the usage of the answer is yet to come
            self._runner.check()
        if self._stream is not None:
            await self._read(self._stream)
        elif self._runner.has_running:
            await self._runner.wait()
        elif self._reply is not None:
            self._end_turn(self._reply)
        elif self._transcript.pending:
            self._run_pending()
        else:
            await self._begin_next_turn()
        self._state.raise_error()  # closed by another task meanwhile

    async def _begin_next_turn(self) -> None:
        turn = self._transcript.next_turn()
        stream = await (self._runner.run_as_call(turn) if self._transcript.between_turns is not None else turn)
        if stream is not None:  # not stopped meanwhile
            self._work.is_between_calls = False
            self._begin_turn(stream)

    def _begin_pending(self) -> None:
        """Makes the calls of an earlier run open work: a drain waits for them as for those of a turn."""
        self._begin_work(self._work)
        self._work.is_between_calls = True

    def _run_pending(self) -> None:
        """Starts the calls of an earlier run, or ends them once all have finished."""
        if self._runner.requested:
            self._transcript.end_pending(self._runner)
            self._runner.finish_turn()
            return
        self._begin_pending()
        for call in self._transcript.pending:
            self._runner.start(call)

    def _end_turn(self, reply: ChatCompletion) -> None:
        transcript = self._transcript
        transcript.end_turn(reply, self._runner)
        deferred = transcript.deferred()
        is_last = bool(deferred) or self._is_answered(reply)
        self._runner.finish_turn()
        self._reply = None
        self._events.append(TurnEnded(number=transcript.turns, reply=reply, deferred=deferred))
        if is_last:
            self._work.close()
            self._state.outcome = "done"
            self._result = RunResult(
                reply=reply,
                messages=transcript.messages,
                usage=transcript.usage,
                turns=transcript.turns,
                deferred=deferred,
            )
            if self._answer is not None:
                self._result = ParsedRunResult(**msgspec.structs.asdict(self._result), answer=self._answer.value)
            self._reporter.end("done", None, self.usage, finish_reasons_of(reply))

    def _is_answered(self, reply: ChatCompletion) -> bool:
        """Whether a reply, whose calls have finished, is the last; if it was to be and is invalid, asks again."""
        called = [call.function.name for call in self._runner.requested]
        transcript, answer = self._transcript, self._answer
        if answer is None:
            return not called
        try:
            answer.end_turn(reply, called, is_last=transcript.has_reached_limit)
        except OutputError as error:
            if error.feedback and not transcript.has_reached_limit:
                transcript.ask_again(f"This cannot be used: {error}. Give the answer by calling {answer.name}.")
            else:
                error.__traceback__ = None  # it has this frame: until a read raises it, the run would hold itself
                self._runner.fail(error)
        return answer.value is not msgspec.UNSET

    async def _read(self, stream: ChatStream) -> None:
        """Reads the next chunk. While tools are running, it returns early if one of them has an event."""
        if self._read_task is None and not self._runner.has_running:
            chunk = await anext(stream, None)
        else:
            if self._read_task is None:
                self._read_task = self._runner.spawn(_read_one(stream))
            await self._runner.wait()
            if self._state.error is not None or not self._read_task.done():
                return
            task, self._read_task = self._read_task, None
            try:
                chunk = task.result()
            finally:
                del task  # avoid a reference cycle: it holds the error, whose traceback holds this frame
        if chunk is not None:
            self._events.append(chunk)
            if any([choice.delta.tool_calls for choice in chunk.choices]):  # noqa: C419  # a list is faster
                self._delivered.extend((chunk,))
            for call in self._complete_calls.after(chunk, self._delivered):
                self._runner.start(self._transcript.identify(call))
        else:
            await self._finish_stream(stream)

    async def _finish_stream(self, stream: ChatStream) -> None:
        reply = await stream.result()
        reason = reply.choices[0].finish_reason if reply.choices else None
        if reason is not None and not is_end_of_choice(reason):  # its calls are not to be made
            message, partial = f"the model's answer broke off: its finish reason is {reason!r}", stream.partial
            if self._answer is not None:
                raise OutputCutOffError(message, reply=reply, text=reply.text, meta=stream.meta, partial=partial)
            raise StreamInterruptedError(message, meta=stream.meta, partial=partial)
        complete = reply.tool_calls
        for early, final in zip(self._runner.requested, complete, strict=False):
            if early.function.arguments.strip() != final.function.arguments.strip():
                raise ResponseDecodeError(
                    f"the arguments for {early.function.name!r} continued after the tool call had started",
                    partial=stream.partial,
                    meta=stream.meta,
                )
        for call in self._complete_calls.rest(complete):
            self._runner.start(self._transcript.identify(call))
        self._stream = None
        self._reply = reply
        self._work.is_between_calls = True


class ParsedRun(Run, Generic[T]):
    """A run that ends with a value of a type: as ``Run``, but its result has a ``value``.

    The model gives the value by calling a tool, ``final_answer``, of which the run has the usual events. If its
    arguments do not match the type, or it answers with a text that is not the value, the model is told, and can try
    again, as with any tool. Each attempt is a turn.

    Raises:
        OutputCutOffError: The answer was truncated.
        OutputInvalidError: The model refused to answer, or its answer is empty, or does not match the type in the last
            turn that ``max_turns`` allows.
        TurnLimitError: The model called only other tools in that turn.
    """

    __slots__ = ()

    @property
    def snapshot(self) -> Any:
        """The answer so far, to be looked at after each ``ChatChunk``; None before the model has begun to give it.

        It has plain JSON types, as from ``json``, and is usually a dict. It is not validated, and its last string may
        be unfinished. While it grows, it is the same object: do not modify it, and to keep it, copy it. With the next
        turn, it is None again. After the last event, it is the whole answer, also if the model gave it as text.
        """
        assert self._answer is not None, "as created by parse_run"
        return self._answer.snapshot(self._delivered.arguments_of(self._answer.name))

    async def result(self) -> ParsedRunResult[T]:
        """Runs to completion, and returns the result, with its ``value``; see ``Run.result``."""
        return cast("ParsedRunResult[T]", await super().result())


def _outcome_of(error: BaseException) -> Outcome:
    """Returns the outcome that observers are told of a run that ends with this error."""
    if isinstance(error, StreamInterruptedError):
        return "cancelled" if error.draining else "truncated"
    return "failed" if isinstance(error, Exception) else "cancelled"


async def _read_one(stream: ChatStream) -> ChatChunk | None:
    # A coroutine, which a task requires. It holds no reference to the run: the run is collected while a task reads.
    return await anext(stream, None)
