"""The tool calls of a run: each in a task of its own, so many at a time, each under its time limit.

What is under way here does not know the run: so when the user's last reference to the run goes, the run goes, and ends
this.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
from anyio import CancelScope

from friendli_async._core.held import Held
from friendli_async._help import described
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.errors import ToolError, ToolProblem
from friendli_async.replies import ToolCall

if TYPE_CHECKING:
    from friendli_async.tools.function import LocalTool

__all__ = ["BeforeTool", "RunEvent", "ToolFinished", "ToolStarted", "TurnEnded"]

BeforeTool = Callable[[ToolCall], bool | Awaitable[bool]]
"""Is asked before each call: True lets it happen."""

_MAX_WORDS: Final = 2000
# What exceptions are known to say that nobody else should read: a URL's user and password, an Authorization header.
_SECRETS: Final = re.compile(r"(?<=://)[^/\s@]+(?=@)|(?<=Bearer )\S+|(?<=Basic )\S+|\b(?:flp_|sk-)\w[\w-]{8,}")


@described
class ToolStarted(msgspec.Struct, frozen=True, kw_only=True):
    """A tool is being called."""

    call: ToolCall
    """What the model asked for."""


@described
class ToolFinished(msgspec.Struct, frozen=True, kw_only=True):
    """A call is over, also one that never started: every call of the model has one of these."""

    call: ToolCall
    """What the model asked for."""
    content: str
    """What the model gets for it."""
    error: ToolProblem | None = None
    """What was wrong; None where it went well."""
    elapsed: float = 0.0
    """Seconds from when its arguments were whole, waiting for approval and for a free place included."""


@described
class TurnEnded(msgspec.Struct, frozen=True, kw_only=True):
    """The model has answered, and all tools that it called have finished."""

    number: int
    """Which turn it was, from 1."""
    reply: ChatCompletion
    """What the model said, with usage and ``meta``."""


RunEvent = ChatChunk | ToolStarted | ToolFinished | TurnEnded
"""What happens in a run."""


class ToolCalls:
    """Runs the tool calls of a run.

    Args:
        tools: By name.
        concurrency: How many may run at a time.
        timeout: Seconds that each may take; None is no limit.
        on_error: Whether what goes wrong is told to the model, or ends the run.
        before: Is asked before each call.
        events: Where what happens is told.
    """

    def __init__(
        self,
        tools: Mapping[str, LocalTool],
        *,
        concurrency: int,
        timeout: float | None,
        on_error: Literal["feed", "raise"],
        before: BeforeTool | None,
        events: deque[RunEvent],
    ) -> None:
        self._tools = tools
        self._places = asyncio.Semaphore(concurrency)
        self._timeout = timeout
        self._on_error = on_error
        self._before = before
        self._asking = asyncio.Lock()
        self._events = events
        self.asked: dict[str, ToolCall] = {}
        """The calls of this turn, by their ids."""
        self._finished: dict[str, ToolFinished] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._failure: Held[BaseException] | None = None
        self._are_over = False

    @property
    def are_running(self) -> bool:
        """Whether any call of this turn has not finished."""
        return len(self._finished) < len(self.asked)

    def start(self, asked: ToolCall) -> None:
        """Starts a call, or lets it wait for its place."""
        self.asked[asked.id] = asked
        self.spawn(self._serve(asked))

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """A task that ends with the calls."""
        self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_look_at)
        return task

    def finish_turn(self) -> list[ToolFinished]:
        """How the calls of this turn went, in their order; the next turn begins without any."""
        done = [self._finished[call_id] for call_id in self.asked]
        self.asked, self._finished = {}, {}
        return done

    def check(self) -> None:
        """Raises what ends the run, if anything does."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure.take()

    # --- waiting and ending ----------------------------------------------------------------------------------------

    async def happened(self, besides: asyncio.Task[Any] | None = None) -> None:
        """Waits until there is an event, or a failure; or until a task is done."""
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            if besides is None:
                await waiter
            else:
                await asyncio.wait((waiter, besides), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Ends the wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def stop(self) -> None:
        """Cancels what is under way and waits for its end; being cancelled meanwhile does not shorten the wait."""
        self._cancel()
        cancelled = False
        with CancelScope(shield=True):  # anyio's cancellation comes again and again, and would make this a busy loop
            while under_way := self._tasks - {asyncio.current_task()}:
                try:
                    await asyncio.wait(under_way)
                except asyncio.CancelledError:
                    cancelled = True
        if cancelled:
            raise asyncio.CancelledError

    def drop(self) -> None:
        """Cancels what is under way, from wherever the last reference to the run went; nobody waits for it."""
        if not self._tasks or self._loop is None or self._loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._cancel()
        else:
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._are_over = True  # a tool may swallow its cancellation, and give a result that nobody waits for
        self._failure = None
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    # --- one call --------------------------------------------------------------------------------------------------

    async def _serve(self, asked: ToolCall) -> None:
        began = monotonic()
        kind = None
        try:
            content = await self._content(asked)
        except ToolError as error:
            kind = error.kind
            content = f"Error: {error}"
            if self._on_error == "raise" and kind != "refused":
                ending = ToolError(f"the tool {asked.function.name!r} failed: {error}", kind=kind, call=asked)
                ending.__cause__ = error.__cause__ or error
                self._fail(ending)
                del ending
        except asyncio.CancelledError:
            return  # a task that ends by it keeps it, with frames that lead back to the task: a reference cycle
        except BaseException as error:  # the caller's own, of before_tool; or nothing that a model should hear of
            self._fail(error)
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise  # the loop stops by them
            return
        finished = ToolFinished(call=asked, content=content, error=kind, elapsed=monotonic() - began)
        self._finished[asked.id] = finished
        self._tell(finished)

    async def _content(self, call: ToolCall) -> str:
        tool = self._tools.get(call.function.name)
        if tool is None:
            names = ", ".join(self._tools) or "none"
            raise ToolError(f"there is no tool {call.function.name!r}; there are: {names}", kind="unknown")
        if self._before is not None:
            async with self._asking:  # one question at a time, in the order of the calls
                await _approve(self._before, call)
        async with self._places:
            self._tell(ToolStarted(call=call))
            return await self._limited(tool, call.function.arguments)

    async def _limited(self, tool: LocalTool, arguments: str) -> str:
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                return await tool.run(arguments)
        except ToolError:
            raise
        except asyncio.CancelledError:
            if _is_being_cancelled():
                raise
            raise ToolError("the tool was cancelled") from None
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise ToolError(f"the tool gave no result within {self._timeout:g} s", kind="timeout") from error
            raise ToolError(_words(error)) from error

    def _tell(self, event: RunEvent) -> None:
        if not self._are_over:
            self._events.append(event)
        self.wake()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None and not self._are_over:
            self._failure = Held(error)
        self.wake()


def _look_at(task: asyncio.Task[Any]) -> None:
    """Takes note of an error that nobody waits for any more, so that asyncio does not complain of it."""
    if not task.cancelled():
        task.exception()


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _approve(before: BeforeTool, call: ToolCall) -> None:
    answer = before(call)
    if inspect.isawaitable(answer):
        answer = await answer
    if not isinstance(answer, bool):
        raise TypeError(f"before_tool must say True or False, not {answer!r}")
    if not answer:
        raise ToolError("the call was refused by the user", kind="refused")


def _words(error: BaseException) -> str:
    """What a model is told of an exception: class and message, bounded, without what looks like a secret."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    try:
        message = _SECRETS.sub("***", str(error))[:_MAX_WORDS]
    except Exception:  # its own words are broken, which the model cannot mend
        message = ""
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
