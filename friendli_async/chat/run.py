"""Runs: a model answers, the tools that it calls run here, and it goes on from their results, until it is through."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self, cast
from uuid import uuid4

import msgspec

from friendli_async._core.body.arguments import check_keywords, check_values
from friendli_async._core.held import refuse_stop_iteration
from friendli_async._help import described
from friendli_async.chat.inputs import Conversation, Messages, RunOptions, choices_wanted
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.tool_calls import WholeCalls, is_object
from friendli_async.chat.tool_loop import BeforeTool, RunEvent, ToolCalls, ToolFinished, TurnEnded
from friendli_async.errors import FriendliError, ResponseDecodeError, StreamInterruptedError, ToolError, TurnLimitError
from friendli_async.replies import Partial, ToolCall, Usage, added

if TYPE_CHECKING:
    from friendli_async.chat.resource import ChatStream
    from friendli_async.tools.function import LocalTool

__all__ = ["Run", "RunResult"]


_OpenTurn = Callable[[Messages, Mapping[str, object]], "ChatStream"]
"""Makes the stream of a turn, of the conversation so far and the options; it is not opened yet."""


@described
class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    reply: ChatCompletion
    """The model's last answer."""
    messages: Conversation
    """The whole conversation: what was passed, then all answers and results; ready for the next call."""
    usage: Usage | None
    """What all turns were billed for, as far as the server has told."""
    turns: int
    """How often the model answered."""


class _Turns:
    """The turns of a run: which comes next, and what they add up to."""

    def __init__(self, open_turn: _OpenTurn, messages: Messages, options: dict[str, object], limit: int) -> None:
        self._first: ChatStream | None = open_turn(messages, options)  # tells what is wrong with them
        self.messages: Conversation = cast("Conversation", list(messages))
        self.usage: Usage | None = None
        self.count: int = 0
        self._open = open_turn
        self._options = options
        self._limit = limit

    def next(self) -> ChatStream:
        """The stream of the next turn.

        Raises:
            TurnLimitError: There have been as many as there may be.
        """
        first, self._first = self._first, None
        if first is not None:
            return first
        if self.count >= self._limit:
            raise TurnLimitError(
                f"the model still called tools in turn {self.count}, the last one that max_turns allows",
                messages=self.messages,
                usage=self.usage,
                turns=self.count,
            )
        options = self._options
        if options.get("tool_choice") not in (None, "auto", "none"):
            # The model has called what it had to: made to go on, it would never answer.
            options = {name: value for name, value in options.items() if name != "tool_choice"}
        return self._open(self.messages, options)

    def add(self, reply: ChatCompletion, calls: Sequence[ToolCall], results: Sequence[ToolFinished]) -> None:
        """A turn has ended."""
        self.count += 1
        self.usage = added(self.usage, reply.usage)
        said = reply.message.as_input()
        if calls:
            said["tool_calls"] = [_sendable(call) for call in calls]
        self.messages.append(said)
        for result in results:
            call = result.call
            self.messages.append(
                {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": result.content}
            )


class Run:
    """A run: ``async for event in run``, ``async with run``, or ``await run.result()`` alone.

    Its events are ``ChatChunk`` (the model's words), ``ToolStarted``, ``ToolFinished`` and ``TurnEnded``, as things
    happen. Nothing is sent before it is first used. A call starts the moment its arguments are whole, while the model
    goes on; the results go back in the order of the calls.

    Leaving ``async with``, ``aclose()``, a cancelled read and any error close the stream, cancel the tools, and wait
    for them. A plain function runs in a worker thread, which cannot be cancelled: it runs to its end, nobody waits for
    it, and what it gives is dropped. Dropping the last reference cancels as well, but cannot wait.

    Raises:
        FriendliError: What a stream raises, with ``partial``; ``messages`` has the turns before.
        TurnLimitError: The model still called tools in the last turn that ``max_turns`` allows.
        ToolError: A call went wrong, and ``on_tool_error`` is "raise".
        RuntimeError: Two tasks wait for its events at the same time.
    """

    def __init__(self, turns: _Turns, calls: ToolCalls, events: deque[RunEvent]) -> None:
        self._turns = turns
        self._calls = calls
        self._events = events
        self._state: Literal["open", "done", "closed"] = "open"
        self._waiting = False
        self._is_cut = False
        self._error: FriendliError | None = None
        self._result: RunResult | None = None
        self._reading: asyncio.Task[ChatChunk | None] | None = None
        self._stream: ChatStream | None = None
        self._reply: ChatCompletion | None = None
        self._begin_turn()

    @property
    def messages(self) -> Conversation:
        """The conversation so far: what was passed, and all turns that have ended; ready for another call."""
        return list(self._turns.messages)

    @property
    def usage(self) -> Usage | None:
        """What the turns that have ended were billed for, as far as the server has told."""
        return self._turns.usage

    @property
    def turns(self) -> int:
        """How many turns have ended."""
        return self._turns.count

    def __repr__(self) -> str:
        return f"<Run {self._state}, {self.turns} turns>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a run cannot be copied or pickled: it holds a connection")

    def __del__(self) -> None:
        calls: ToolCalls | None = getattr(self, "_calls", None)  # None where __init__ never came so far
        if calls is not None:
            calls.drop()

    # --- opening and closing ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Opens the first turn's stream, so that what is wrong with the call is raised here."""
        if self._state == "open":
            await self._alone(self._open)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the stream, cancels the tools, and returns when they have ended.

        May be called from any task of its loop, and as often as one likes. Whoever waits for an event gets
        StreamInterruptedError.
        """
        if self._state == "open":
            self._state = "closed"
            self._error = StreamInterruptedError("the run was closed before it was over", partial=self._partial())
        self._is_cut = False
        self._events.clear()
        await self._end()

    async def _end(self) -> None:
        """Lets go of everything, and waits for the tools."""
        if self._stream is not None:
            await self._stream.aclose()
        self._calls.wake()
        await self._calls.stop()

    async def _break(self, error: BaseException) -> None:
        """The run has come to a bad end."""
        if self._state == "open":
            self._state = "closed"
            self._is_cut = isinstance(error, asyncio.CancelledError)
            if isinstance(error, FriendliError):
                if isinstance(error, ToolError):
                    error.messages, error.usage = self.messages, self.usage
                self._error = copy.copy(error)
            else:
                words = "a read of the run was cancelled, which closed it" if self._is_cut else "the run failed"
                self._error = StreamInterruptedError(words, partial=self._partial())
        del error
        await self._end()

    def _partial(self) -> Partial | None:
        return None if self._stream is None else self._stream.partial

    async def _open(self) -> None:
        if self._stream is not None:
            await self._stream

    # --- iterating -------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        events = self._events
        if not events:
            await self._alone(self._go_on)
        if events:
            return events.popleft()
        raise StopAsyncIteration

    async def result(self) -> RunResult:
        """Goes on to the end, past events that nobody has taken.

        Raises:
            FriendliError: The run did not end well; again, if it has already said so.
        """
        await self._alone(self._go_on_to_the_end)
        if self._result is None:
            raise self._ending()
        return self._result

    async def _alone(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits, in one task at a time; what goes wrong meanwhile ends the run."""
        if self._waiting:
            raise RuntimeError("another task is waiting for this run's events already")
        self._waiting = True
        try:
            await wait()
        except GeneratorExit:  # the task is destroyed with its loop: nothing can be awaited any more
            self._calls.drop()
            raise
        except BaseException as error:
            await self._break(error)
            refuse_stop_iteration(error)
            raise
        finally:
            self._waiting = False

    async def _go_on(self) -> None:
        while not self._events and self._state == "open":
            await self._advance()
        if not self._events and self._is_cut:
            self._is_cut = False  # told once: the end of what was cut must not look like a good one
            raise self._ending()

    async def _go_on_to_the_end(self) -> None:
        while self._state == "open":
            self._events.clear()
            await self._advance()
        self._events.clear()

    def _ending(self) -> FriendliError:
        assert self._error is not None, self._state
        return copy.copy(self._error)

    async def _advance(self) -> None:
        """Goes on until something has happened."""
        self._calls.check()
        if self._stream is not None:
            await self._read(self._stream)
        elif self._reply is None:
            self._begin_turn()
        elif self._calls.are_running:
            await self._calls.happened()
        else:
            self._end_turn(self._reply)
        if self._state == "closed":  # by another task
            raise self._ending()

    def _begin_turn(self) -> None:
        self._stream = self._turns.next()
        self._whole = WholeCalls(self._stream)

    def _end_turn(self, reply: ChatCompletion) -> None:
        asked, turns = [*self._calls.asked.values()], self._turns
        turns.add(reply, asked, self._calls.finish_turn())
        self._reply = None
        self._events.append(TurnEnded(number=turns.count, reply=reply))
        if not asked:
            self._result = RunResult(reply=reply, messages=turns.messages, usage=turns.usage, turns=turns.count)
            self._state = "done"

    async def _read(self, stream: ChatStream) -> None:
        """Reads on; while tools are running, no longer than until one of them has something to tell."""
        if self._reading is None and not self._calls.are_running:
            chunk = await anext(stream, None)
        else:
            if self._reading is None:
                self._reading = self._calls.spawn(_read_one(stream))
            await self._calls.happened(self._reading)
            if self._state == "closed" or not self._reading.done():
                return
            reading, self._reading = self._reading, None
            try:
                chunk = reading.result()
            finally:
                del reading  # it holds the error, whose traceback holds this frame
        if chunk is not None:
            self._events.append(chunk)
            for call in self._whole.after(chunk):
                self._start(call)
        else:
            await self._end_of_stream(stream)

    def _start(self, call: ToolCall) -> None:
        """Starts a call; one whose id is missing, or is another's, gets one of ours."""
        if not call.id or call.id in self._calls.asked:
            call = ToolCall(f"call_{uuid4().hex}", "function", call.function)
        self._calls.start(call)

    async def _end_of_stream(self, stream: ChatStream) -> None:
        reply = await stream.result()
        said = reply.message.tool_calls or ()
        for early, whole in zip(self._calls.asked.values(), said, strict=False):
            if early.function.arguments.strip() != whole.function.arguments.strip():
                raise ResponseDecodeError(
                    f"the arguments for {early.function.name!r} went on after they were whole, and the call had begun",
                    partial=stream.partial,
                    meta=stream.meta,
                )
        for call in self._whole.rest(said):
            self._start(call)
        self._stream = None
        self._reply = reply


async def _read_one(stream: ChatStream) -> ChatChunk | None:
    return await anext(stream, None)


# --- what goes back to the model -------------------------------------------------------------------------------------


def _sendable(call: ToolCall) -> dict[str, object]:
    """A call as part of the conversation. Servers parse its arguments, and refuse what is no JSON object."""
    arguments = call.function.arguments
    if not arguments.strip():
        arguments = "{}"
    elif not is_object(arguments):
        arguments = json.dumps({"invalid_json": arguments})
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


# --- beginning -------------------------------------------------------------------------------------------------------


class _Own(msgspec.Struct):
    """The parameters of a run that are none of the call, and their defaults."""

    max_turns: Annotated[int, msgspec.Meta(ge=1)] = 8
    concurrency: Annotated[int, msgspec.Meta(ge=1)] = 4
    tool_timeout: Annotated[float, msgspec.Meta(gt=0)] | None = 30.0
    on_tool_error: Literal["feed", "raise"] = "feed"
    before_tool: Any = None


def begin_run(
    open_turn: _OpenTurn, messages: Messages, tools: Sequence[LocalTool], options: Mapping[str, object]
) -> Run:
    """A run that has not sent anything yet.

    Args:
        open_turn: Makes the stream of a turn.
        messages: The conversation so far.
        tools: What the model may call.
        options: Those of ``RunOptions`` that were given.

    Raises:
        TypeError: An unknown keyword; something that is no tool.
        ValueError: A bad value; two tools of one name.
    """
    check_keywords(options, frozenset(RunOptions.__annotations__), "run")
    given: dict[str, Any] = {name: options[name] for name in _Own.__struct_fields__ if name in options}
    check_values(given, _Own)
    own = _Own(**given)
    if own.before_tool is not None and not callable(own.before_tool):
        raise ValueError(f"before_tool: Expected a function, got {type(own.before_tool).__name__}")
    if choices_wanted(options) != 1:
        raise ValueError("n: a run follows one answer, so there is one choice a turn")
    by_name = _by_name(tools)
    sent = {name: value for name, value in options.items() if name not in given}
    sent["tools"] = [_definition(tool) for tool in tools]
    events: deque[RunEvent] = deque()
    calls = ToolCalls(
        by_name,
        concurrency=own.concurrency,
        timeout=own.tool_timeout,
        on_error=own.on_tool_error,
        before=cast("BeforeTool | None", own.before_tool),
        events=events,
    )
    return Run(_Turns(open_turn, messages, sent, own.max_turns), calls, events)


def _by_name(tools: Sequence[LocalTool]) -> dict[str, LocalTool]:
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ValueError(f"tools: Expected a list of tools, got `{type(tools).__name__}`")
    found: dict[str, LocalTool] = {}
    for number, tool in enumerate(tools):
        if not callable(getattr(tool, "run", None)) or not isinstance(getattr(tool, "name", None), str):
            kind = type(tool).__name__
            raise TypeError(
                f"tools[{number}]: a {kind} is no tool that can be run here: make one of a function, with "
                "friendli_async.tools.tool. What only describes a tool goes to chat.stream, which runs none"
            )
        if tool.name in found:
            raise ValueError(f"tools[{number}]: there is a tool {tool.name!r} already; tool(fn, name=...) renames one")
        found[tool.name] = tool
    return found


def _definition(tool: LocalTool) -> dict[str, object]:
    """What the model is told of a tool."""
    function: dict[str, object] = {"name": tool.name, "parameters": tool.parameters}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}
