"""Runs the tool calls of a run, each in its own task, with a concurrency limit and a timeout.

The tasks hold no reference to the run. So the run is collected when the user drops the last reference to it, and then
cancels them.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import logging
import re
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar, cast

import msgspec

from friendli_async._core.body.json_values import to_builtins
from friendli_async._core.held import Held
from friendli_async._core.loops import call_in_loop, is_current, wait_ended
from friendli_async._core.net.clock import TimeLimit
from friendli_async._core.reporting import MAX_NAME, RunReporter
from friendli_async._help import document_fields
from friendli_async._json import arguments_json, is_json_object, prepared
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.errors import FriendliError, ToolError, ToolProblem, UsageLimitError
from friendli_async.replies import ToolCall

if TYPE_CHECKING:
    from friendli_async.chat.answer_tool import AnswerTool
    from friendli_async.chat.inputs import BeforeTool, Decision, LocalTool

__all__ = ["RunEvent", "ToolFinished", "ToolStarted", "TurnEnded", "current_call"]

T = TypeVar("T")

_logger: Final = logging.getLogger("friendli_async")
_LIBRARIES: Final = frozenset({"friendli_async", "anyio", "asyncio"})
_MAX_MESSAGE: Final = 2000  # characters
_CANCELLED: Final = "the tool was cancelled"
_UNFINISHED: Final = "Error: the run was stopped before the tool finished; it may have taken effect"
_NOT_CALLED: Final = "Error: the run was stopped before the tool was called"
# Secrets that exception messages are known to contain: credentials in a URL, an Authorization header.
_SECRETS: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=Bearer )\S+|(?<=Basic )\S+|\b(?:flp_|sk-)\w[\w-]{8,}")


@document_fields
class ToolStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A tool call has started."""

    call: ToolCall
    """The model's tool call."""


@document_fields
class ToolFinished(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A tool call has finished. Every call that was not deferred ends with this event, even if it never started.

    ``exception`` is not a field of the struct: comparing, encoding, printing, copying and pickling ignore it.
    """

    call: ToolCall
    """The model's tool call."""
    content: str
    """The content of the tool message that the model gets."""
    problem: ToolProblem | None = None
    """Why it failed; None on success."""
    elapsed: float = 0.0
    """Seconds since the arguments were complete, including the wait for approval and for a free slot."""

    @property
    def exception(self) -> BaseException | None:
        """What the tool raised, with the traceback from the tool on; None on success, or if no tool was called.

        For a ToolError with a ``__cause__``, it is the cause. The traceback keeps the local variables of the tool's
        functions alive for as long as the event is kept.
        """
        exception: BaseException | None = self.__dict__.get("_exception")
        return exception


@document_fields
class TurnEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The model has answered, and all its tool calls have finished, or were deferred."""

    number: int
    """Turn number, starting at 1."""
    reply: ChatCompletion
    """The model's reply, with usage and ``meta``. Its tool calls have the ids that the server sent; in the messages and
    events of the run, a missing or repeated one is replaced."""
    deferred: tuple[ToolCall, ...] = ()
    """The calls that ``before_tool`` deferred: if there are any, the run ends here; see ``RunResult.deferred``."""


RunEvent = ChatChunk | ToolStarted | ToolFinished | TurnEnded
"""The events of a run."""


_current_call: Final[ContextVar[ToolCall]] = ContextVar("friendli_async_tool_call")


def current_call() -> ToolCall:
    """Returns the call of the model by which a run has called the function that asks, also in a worker thread.

    Its id is unique in the conversation, and stays if the call was deferred: an idempotency key, beside the
    conversation's.

    Raises:
        RuntimeError: No run has called the function.
    """
    call = _current_call.get(None)
    if call is None:
        raise RuntimeError("current_call() is for tools that a run has called")
    return call


@prepared
class RunSettings(msgspec.Struct):
    """The parameters of a run that are not sent to the server, and their defaults."""

    max_turns: Annotated[int, msgspec.Meta(ge=1)] = 8
    concurrency: Annotated[int, msgspec.Meta(ge=1)] = 4
    tool_timeout: Annotated[float, msgspec.Meta(gt=0)] | None = 30.0
    max_tool_result: Annotated[int, msgspec.Meta(ge=1)] | None = 1_000_000
    on_tool_error: Literal["feed", "raise"] = "feed"
    before_tool: Any = None
    between_turns: Any = None
    decisions: dict[str, bool | str] | None = None


class _RequestedCall:
    """A call of this turn, and what has become of it."""

    def __init__(self, call: ToolCall) -> None:
        self.call = call
        self.began = monotonic()  # its arguments are complete
        self.is_started = False  # whether its tool was called
        self.is_deferred = False
        self.content: str | None = None  # of its tool message, once it has finished

    @property
    def is_running(self) -> bool:
        return self.content is None and not self.is_deferred

    @property
    def elapsed(self) -> float:
        return monotonic() - self.began


class ToolRunner:
    """Runs the tool calls of a run.

    Args:
        tools: The tools by name.
        settings: The settings of the run.
        reporter: Reports the calls to observers.
        answer: The tool that gives the answer, which ``before_tool`` is not called for.

    Attributes:
        events: The events of the calls; the run adds its own.
    """

    def __init__(
        self,
        tools: Mapping[str, LocalTool],
        settings: RunSettings,
        reporter: RunReporter,
        answer: AnswerTool | None = None,
    ) -> None:
        self._tools = tools
        self._answer = answer
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._approval_lock = asyncio.Lock()
        self._reporter = reporter
        self.events: deque[RunEvent] = deque()
        self._turn: list[_RequestedCall] = []  # in the order of the calls
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[asyncio.Task[Any]] = set()  # those of the tasks that run calls and have not been cancelled
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._failure: Held[BaseException] | None = None
        self._interruption: FriendliError | None = None
        self._is_stopped = False

    @property
    def requested(self) -> list[ToolCall]:
        """The calls of this turn."""
        return [each.call for each in self._turn]

    @property
    def has_running(self) -> bool:
        """Whether any call of this turn is unfinished."""
        return any(each.is_running for each in self._turn)

    @property
    def has_called(self) -> bool:
        """Whether any tool has been called in this turn."""
        return any(each.is_started for each in self._turn)

    def start(self, call: ToolCall) -> None:
        """Starts a call, or queues it if no slot is free."""
        requested = _RequestedCall(call)
        self._turn.append(requested)
        if not self._is_stopped:
            task = self._spawn_call(self._run_call(requested))
            task.add_done_callback(partial(self._check_result, requested))

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Creates a task that is cancelled when the run is dropped."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _spawn_call(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Creates the task of a call, which also ends when the run is stopped or interrupted."""
        task = self.spawn(coroutine)
        self._calls.add(task)
        if self._interruption is not None:
            self.fail(copy.copy(self._interruption))
        return task

    async def run_as_call(self, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """Runs code of the user between two turns as if it was a call; returns None if the run is stopped meanwhile.

        Raises:
            FriendliError: It was cancelled, but not by the run. A CancelledError would look like a cancelled read.
            BaseException: What the code raises.
        """
        task = self._spawn_call(coroutine)
        try:
            while not task.done():
                await self.wait()
            if self._is_stopped:
                return None
            try:
                return task.result()
            except asyncio.CancelledError as error:
                _strip_library_frames(error)
                message = "between_turns raised CancelledError: something that it awaited was cancelled"
                raise FriendliError(message) from error
        finally:
            del task  # avoid a reference cycle: it holds the error, whose traceback holds this frame

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._calls.discard(task)
        self.wake()
        if not task.cancelled():
            task.exception()  # else asyncio would log that it was never retrieved

    def contents(self) -> Iterator[tuple[ToolCall, str]]:
        """Yields this turn's calls with the contents of their tool messages, in order, also for unfinished ones.

        Deferred calls have none, unless the turn has ended early: then nobody will decide on them. While the turn is
        open, a call that waits may start at any time, so its content does not say that the tool was not called.
        """
        for each in self._turn:
            if self._is_stopped or not each.is_deferred:
                unfinished = _NOT_CALLED if self._is_stopped and not each.is_started else _UNFINISHED
                yield each.call, unfinished if each.content is None else each.content

    def finish_turn(self) -> None:
        """Begins the next turn."""
        self._turn = []

    def check(self) -> None:
        """Raises the failure that ends the run, if there is one."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.take()

    # --- waiting and stopping --------------------------------------------------------------------------------------

    async def wait(self) -> None:
        """Waits until something has changed since the last wait: an event, a failure, the end of a task."""
        await self._changed.wait()
        self._changed.clear()

    def wake(self) -> None:
        """Ends the wait, or the next one if nobody waits now."""
        self._changed.set()

    def interrupt(self, error: FriendliError) -> None:
        """Cancels the calls and ends the run with the error; if no call is unfinished, not before the next one."""
        self._interruption = error
        if self._calls:
            self.fail(copy.copy(error))

    async def stop(self, *, wait: bool) -> None:
        """Cancels the calls, and may wait until all tasks have ended, even if it is itself cancelled meanwhile."""
        self._cancel(self._calls)
        if wait:
            await wait_ended(self._tasks)

    def drop(self) -> None:
        """Cancels all tasks without waiting for them. Thread-safe, because the run may be dropped in any thread."""
        self.events.clear()  # an exception in an unread event refers back to this object: a reference cycle
        if self._tasks and self._loop is not None:
            call_in_loop(self._loop, self._cancel, self._tasks)

    def _cancel(self, tasks: set[asyncio.Task[Any]]) -> None:
        self._is_stopped = True  # a tool may suppress its cancellation and still return a result
        self._failure = None
        for task in tasks - {asyncio.current_task()}:
            self._calls.discard(task)  # a second cancellation would interrupt how the tool ends
            task.cancel()

    # --- one call --------------------------------------------------------------------------------------------------

    async def _run_call(self, requested: _RequestedCall) -> None:
        try:
            # An eager task begins inside the frames of the reader, and the traceback of an exception would keep these.
            await asyncio.sleep(0)
            content = await self._execute(requested)
        except ToolError as error:
            self._finish_failed(requested, error)
        except asyncio.CancelledError:
            # A cancelled task would keep the error, whose traceback refers back to the task: a reference cycle.
            if not self._is_stopped:  # cancelled by others
                self._finish_failed(requested, ToolError(_CANCELLED))
        except Exception as error:  # raised by before_tool; at once, before the next call is asked about
            self.fail(error)
        else:
            if content is None:
                requested.is_deferred = True  # the end of the task wakes the run
            else:
                self._finish(requested, content)

    def _finish_failed(self, requested: _RequestedCall, error: ToolError) -> None:
        """Ends a failed call: with an error for the model, or with a failure of the run."""
        call = requested.call
        if not requested.is_started:
            self._reporter.start_tool(call, None, requested.elapsed)
            self._record_end(call, 0.0, error)
        self._finish(requested, self._content_of(error), error)
        if self._settings.on_tool_error == "raise" and error.kind != "refused":
            failure = ToolError(f"the tool {call.function.name!r} failed: {error}", kind=error.kind, call=call)
            failure.__cause__ = error.__cause__ or error
            self.fail(failure)

    def _content_of(self, error: ToolError) -> str:
        """Returns the content of the tool message about a failed call."""
        limit = self._settings.max_tool_result
        return f"Error: {error}"[: limit and max(limit, _MAX_MESSAGE)]

    def _finish(self, requested: _RequestedCall, content: str, error: ToolError | None = None) -> None:
        requested.content = content  # not the exception, too: it would be kept until the end of the turn
        kind = None if error is None else error.kind
        finished = ToolFinished(call=requested.call, content=content, problem=kind, elapsed=requested.elapsed)
        if error is not None and requested.is_started:  # else no tool was called
            msgspec.structs.force_setattr(finished, "_exception", _exception_of_tool(error))
        self._emit(finished)

    def _check_result(self, requested: _RequestedCall, task: asyncio.Task[None]) -> None:
        """Ends a call whose task has ended without a result. Otherwise the run would wait for it forever."""
        if self._is_stopped:
            return
        if task.cancelled():  # before its first step
            self._finish_failed(requested, ToolError(_CANCELLED))
        elif (error := task.exception()) is not None:  # no Exception: such as KeyboardInterrupt
            self.fail(error)

    async def _execute(self, requested: _RequestedCall) -> str | None:
        """Returns the content of the tool message; None if the call is deferred."""
        call = requested.call
        tool = self._tools.get(call.function.name)
        if tool is None:
            names = ", ".join(self._tools) or "none"
            raise ToolError(f"unknown tool {call.function.name!r}; available: {names}", kind="unknown")
        if not await self._is_to_run(tool, call):
            return None
        async with self._slots:
            if self._is_stopped:  # and the approval has suppressed its cancellation
                raise asyncio.CancelledError
            requested.is_started = True
            self._emit(ToolStarted(call=call))
            return await self._run_recorded(tool, call, requested.elapsed)

    async def _run_recorded(self, tool: LocalTool, call: ToolCall, queued: float) -> str:
        """Calls a tool; reports and logs how that ends."""
        began = monotonic()
        try:
            self._reporter.start_tool(call, tool.description, queued)
            _current_call.set(call)  # never reset: the task ends with the call
            await asyncio.sleep(0)  # a reader that waits goes first, to save the call before the tool takes effect
            content = await self._run_with_timeout(tool, call.function.arguments)
        except BaseException as error:
            self._record_end(call, monotonic() - began, error)
            raise
        self._record_end(call, monotonic() - began, None, content)
        return content

    def _record_end(
        self, call: ToolCall, seconds: float, error: BaseException | None, content: str | None = None
    ) -> None:
        """Logs and reports the end of a call. Never its arguments, unless an observer asks for them."""
        outcome, problem = "failed", None
        if isinstance(error, asyncio.CancelledError) and not self._is_stopped:  # cancelled by others
            error = ToolError(_CANCELLED)
        if error is None:
            outcome = "done"
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome = "cancelled"
        elif isinstance(error, ToolError):
            problem, content = error.kind, self._content_of(error)
            error = error.__cause__ or error
        if _logger.isEnabledFor(logging.DEBUG):
            shown = outcome if error is None else f"{problem or outcome}, {type(error).__name__}"
            _logger.debug("tool %r: %s in %.3f s", call.function.name[:MAX_NAME], shown, seconds)
        self._reporter.end_tool(call, outcome, seconds, problem=problem, error=error, result=content)

    async def _is_to_run(self, tool: LocalTool, call: ToolCall) -> bool:
        """Returns whether a call is to be run now; False if it is deferred.

        Raises:
            ToolError: It is refused, or its arguments are invalid, so that nobody need decide on it.
        """
        settings = self._settings
        decision = (settings.decisions or {}).get(call.id)
        if decision is None:
            if settings.before_tool is None or tool is self._answer:
                return True
            _check_arguments(tool, call)
            async with self._approval_lock:  # one approval at a time, in the order of the calls
                decision = await self._ask(settings.before_tool, call)
            if decision == "defer":
                if not is_json_object(arguments_json(call.function.arguments)):  # messages cannot keep them
                    raise ToolError("the arguments are not a JSON object", kind="arguments")
                return False
        if decision is True:
            return True
        raise ToolError(decision or "the call was refused by the user", kind="refused")

    async def _ask(self, before: BeforeTool, call: ToolCall) -> Decision:
        try:
            answer = before(call)
            if inspect.isawaitable(answer):
                answer = await answer
        except asyncio.CancelledError:
            if self._is_stopped:
                raise
            raise ToolError("the call was refused: its approval was cancelled", kind="refused") from None
        decision = to_builtins(answer)  # also a bool of numpy
        if isinstance(decision, bool):
            return decision
        if decision == "defer":
            return "defer"
        raise TypeError(f'before_tool must return True, False or "defer", not {answer!r}')

    async def _run_with_timeout(self, tool: LocalTool, arguments: str) -> str:
        own: float | msgspec.UnsetType | None = getattr(tool, "timeout", msgspec.UNSET)
        timeout = self._settings.tool_timeout if own is msgspec.UNSET else own
        limit = TimeLimit(timeout)
        task = asyncio.current_task()
        try:
            with limit:
                content: object = await tool.run(arguments)
            return self._check_content(tool, content)
        except BaseException as error:
            if isinstance(error, ToolError) and error.call is None:  # else a run in the tool has failed
                if error.kind == "result":  # the tool's fault, not the model's
                    self._warn("the tool %r failed: %s", tool.name, str(error))
                raise
            if not _is_failure(error, task):
                raise
            if isinstance(error, TimeoutError) and limit.expired:
                self._warn("the tool %r did not finish within %g s", tool.name, timeout)
                message = f"the tool did not finish within {timeout:g} s; it may have taken effect"
                raise ToolError(message, kind="timeout") from error
            _strip_library_frames(error)
            # The arguments are not logged: they may be confidential.
            if isinstance(error, UsageLimitError):  # no fault of the tool, so where it was raised does not matter
                self._warn("the tool %r failed: %s", tool.name, str(error))
            else:
                self._warn("the tool %r raised %s", tool.name, type(error).__name__, cause=error)
            raise ToolError(_error_message(error)) from error

    def _warn(self, message: str, *arguments: object, cause: BaseException | None = None) -> None:
        """Logs a warning about the running call; the record has what identifies the call in the events of the run."""
        extra = {"friendli_tool_call_id": _current_call.get().id, "friendli_run_id": self._reporter.run_id}
        _logger.warning(message, *arguments, exc_info=cause, extra=extra, stacklevel=2)

    def _check_content(self, tool: LocalTool, content: object) -> str:
        if not isinstance(content, str):
            raise ToolError(f"the tool returned {type(content).__name__} instead of text", kind="result")
        text = str.__str__(content)  # a plain str, which every encoder accepts
        limit = self._settings.max_tool_result
        if limit is not None and len(text) > limit and tool is not self._answer:  # whose result is ours
            message = f"the tool's result is too long: {len(text):,} characters; at most {limit:,} are allowed"
            raise ToolError(message, kind="result")
        return text

    def _emit(self, event: RunEvent) -> None:
        if not self._is_stopped:
            self.events.append(event)
        self.wake()

    def fail(self, error: BaseException) -> None:
        """Cancels the calls, and ends the run with the error."""
        if not self._is_stopped:
            self._cancel(self._calls)
            self._failure = Held(error)
        self.wake()


def _check_arguments(tool: LocalTool, call: ToolCall) -> None:
    """Raises ToolError if a function cannot be called with the arguments of a call. Other tools have no such check."""
    from friendli_async.tools.function import FunctionTool  # loaded, unless no tool is one

    if isinstance(tool, FunctionTool):
        try:
            tool._decode_arguments(call.function.arguments)  # pyright: ignore[reportPrivateUsage]  # not of LocalTool
        except ToolError:
            raise
        except Exception:  # raised by a type of the user's: the call will fail with it
            return


def _is_failure(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Whether an exception is a failure of the tool that runs in ``task``, and must not end the run or the process."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(_is_failure(inner, task) for inner in group.exceptions)
    if isinstance(error, GeneratorExit):
        return is_current(task)  # else not raised by the tool
    return isinstance(error, Exception | SystemExit)


def _exception_of_tool(error: ToolError) -> BaseException:
    """Returns what a tool raised, and cuts its traceback to the frames of the tool."""
    exception = error.__cause__ or error
    _strip_library_frames(exception)
    if exception.__context__ is not None:  # the cancellation behind a timeout
        _strip_library_frames(exception.__context__)
    return exception


def _strip_library_frames(error: BaseException) -> None:
    """Removes the frames above the tool's own from a traceback.

    They would be reference cycles: ours refer to the run and its events, and anyio's to the future of the exception.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        traceback = traceback.tb_next
    error.__traceback__ = traceback


def _error_message(error: BaseException) -> str:
    """Returns an exception's class and message for the model, truncated and with secrets masked; all of a group's."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return "; ".join(map(_error_message, group.exceptions))[:_MAX_MESSAGE]
    try:
        message = _SECRETS.sub("***", str(error))[:_MAX_MESSAGE]
    except Exception:  # a broken __str__, which the model cannot fix
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
