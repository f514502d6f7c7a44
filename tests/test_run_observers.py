"""Observers of runs: the events of a run and its tools for each outcome, their order, what they never contain."""

import asyncio
import contextvars
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any, Final

import anyio
import msgspec
import pytest
from support.clock import wait_until
from support.recorder import Collecting, RunRecorder
from support.sockets import DONE, MESSAGES, assert_no_leaks, client_of, complete, delta, start_run, with_timeout
from support.tools import fail, never_ends, weather

from friendli_async import (
    AsyncFriendli,
    CallEnded,
    CallEvent,
    CallStarted,
    ConfigurationError,
    FriendliError,
    ObservedRunEvent,
    RunEnded,
    ToolCallContent,
    ToolCallEnded,
    ToolCallEvent,
    ToolCallStarted,
    TurnLimitError,
)
from friendli_async.errors import ToolError
from friendli_async.testing import (
    FriendliServer,
    ReceivedRequest,
    chunk,
    cut,
    done,
    finish,
    raw,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)
from friendli_async.testing import (
    event as sse_event,
)
from friendli_async.tools import Run, ToolStarted, TurnEnded, tool

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]

ONE_TOOL: Final = ["run", "call", "call done", "weather started", "weather done", "call", "call done", "run done"]


class Waiter:
    """A tool that waits until it is cancelled, and then for permission to end."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_end = asyncio.Event()

    @tool
    async def wait(self) -> str:
        """Waits."""
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.may_end.wait()
        return "never"


@pytest.fixture
def waiter() -> Waiter:
    return Waiter()


@pytest.fixture
def seen() -> RunRecorder:
    return RunRecorder()


@pytest.fixture
def client_options(seen: RunRecorder) -> dict[str, Any]:
    return {"observers": [seen]}


def a_tool_then_text(request: ReceivedRequest) -> Any:
    """Answers the first turn of a run with a tool call, and the second with text."""
    answer = tool_calls(("weather", {})) if len(request.json_object["messages"]) == 1 else text("x")
    return answer(request)


async def result(run: Run) -> None:
    await with_timeout(run.result())


# --- runs that complete ----------------------------------------------------------------------------------------------


async def test_run_with_a_tool(client: AsyncFriendli, server: FriendliServer, seen: RunRecorder) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Paris"})), text("Sunny", prompt_tokens=7))
    run = start_run(client.with_options(team="acme"), weather)
    assert seen.reported == []  # the run starts with the first use
    outcome = await run.result()
    assert sorted(seen.reported) == sorted(ONE_TOOL)
    assert (seen.reported[:2], seen.reported[-3:]) == (ONE_TOOL[:2], ONE_TOOL[-3:])
    end = seen.end
    assert (end.outcome, end.turns, end.tool_calls, end.error) == ("done", 2, 1, None)
    assert (end.usage, end.finish_reasons) == (outcome.usage, ("stop",))
    assert end.seconds > 0
    runs = [event for event in seen.events if isinstance(event, ObservedRunEvent)]
    described = {(event.operation, event.deployment, event.model, event.team) for event in runs}
    assert described == {("chat.run", "serverless", "m", "acme")}


async def test_calls_and_tools_name_their_run_and_tools_name_their_call(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder
) -> None:
    server.always(a_tool_then_text)
    await asyncio.gather(*(start_run(client, weather).result() for _ in range(5)))
    await client.serverless.chat.complete(model="m", messages=MESSAGES)
    by_run: dict[int | None, list[CallEvent | ObservedRunEvent]] = {}
    for event in seen.events:
        by_run.setdefault(event.run_id, []).append(event)
    assert [type(event) for event in by_run.pop(None)] == [CallStarted, CallEnded]
    assert len(by_run) == 5
    for events in by_run.values():
        first_call = next(event.call_id for event in events if isinstance(event, CallStarted))
        tools = [event for event in events if isinstance(event, ToolCallEvent)]
        assert [type(event) for event in tools] == [ToolCallStarted, ToolCallEnded]
        assert {event.call_id for event in tools} == {first_call}
        assert len({event.tool_call_id for event in tools}) == 1
        assert isinstance(events[-1], RunEnded)


async def test_tool_that_makes_calls_and_runs_itself_does_not_mix_them_with_its_run(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder
) -> None:
    @tool
    async def ask() -> str:
        """Asks another model."""
        await client.serverless.chat.complete(model="m", messages=MESSAGES)
        return (await start_run(client, weather).result()).reply.text

    server.enqueue(tool_calls(("ask", {})), text("inner"), text("inner run"), text("outer"))
    await result(start_run(client, ask))
    outer = seen.events[0].run_id
    starts = [event.run_id == outer for event in seen.events if isinstance(event, CallStarted)]
    assert starts == [True, False, False, True]
    [plain] = [event for event in seen.events if isinstance(event, CallStarted) and event.run_id is None]
    assert plain.operation == "chat.complete"
    assert [event.run_id == outer for event in seen.events if isinstance(event, RunEnded)] == [False, True]


async def test_container_run_has_neither_model_nor_team(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder
) -> None:
    server.enqueue(text("x"))
    await client.with_options(team="acme").container.chat.run(messages=MESSAGES, tools=[weather]).result()
    assert (seen.end.deployment, seen.end.model, seen.end.team) == ("container", None, None)


async def test_unused_run_reports_nothing(client: AsyncFriendli, seen: RunRecorder) -> None:
    run = start_run(client, weather)
    await run.aclose()
    start_run(client, weather)
    gc.collect()
    assert seen.reported == []


async def test_run_of_a_closed_client_fails(client: AsyncFriendli, seen: RunRecorder) -> None:
    await client.aclose()
    with pytest.raises(ConfigurationError):
        await start_run(client, weather).result()
    assert seen.reported == ["run", "call", "call failed", "run failed ConfigurationError"]


# --- tool calls ------------------------------------------------------------------------------------------------------


@tool
async def returns_an_object() -> object:
    """Returns what is not JSON."""
    return object()


@tool
async def cancels_itself() -> str:
    """Cancels itself."""
    raise asyncio.CancelledError


@tool
async def refuses() -> str:
    """Fails on purpose."""
    raise ToolError("not today")


TOOLS: Final[dict[str, tuple[Any, dict[str, Any], str, str]]] = {
    # tool, options of the run; the reported end, what the log says
    "done": (weather, {}, "done", "done"),
    "raises": (fail, {}, "failed LookupError", "failed, LookupError"),
    "tool error": (refuses, {}, "failed ToolError", "failed, ToolError"),
    "timeout": (never_ends, {"tool_timeout": 0.01}, "failed timeout TimeoutError", "timeout, TimeoutError"),
    "result": (returns_an_object, {}, "failed result ToolError", "result, ToolError"),
    "cancels itself": (cancels_itself, {}, "failed ToolError", "failed, ToolError"),
    "refused": (weather, {"before_tool": lambda call: False}, "failed refused ToolError", "refused, ToolError"),
}


@pytest.mark.parametrize("name", TOOLS)
async def test_tool_call_ends_exactly_once(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    used, options, ended, logged = TOOLS[name]
    caplog.set_level(logging.DEBUG, "friendli_async")
    server.enqueue(tool_calls((used.name, {})), text("x"))
    await result(start_run(client, used, **options))
    assert [short for short in seen.reported if used.name in short] == [
        f"{used.name} started",
        f"{used.name} {ended}",
    ]
    assert seen.end.outcome == "done"
    [message] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("tool ")]
    assert message.startswith(f"tool {used.name!r}: {logged} in ")
    warnings = [vars(record) for record in caplog.records if record.levelno == logging.WARNING]
    assert {warning["friendli_run_id"] for warning in warnings} <= {seen.end.run_id}


async def test_call_of_an_unknown_tool_is_reported_with_a_bounded_name(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    name = "x" * 100
    server.enqueue(tool_calls((name, {})), text("x"))
    await result(start_run(client, weather))
    short = "x" * 64
    assert [each for each in seen.reported if "x" in each] == [f"{short} started", f"{short} failed unknown ToolError"]
    assert f"tool '{short}': unknown, ToolError in 0.000 s" in caplog.text
    [started] = [event for event in seen.events if isinstance(event, ToolCallStarted)]
    assert started.description is None


async def test_wait_for_approval_and_a_slot_is_not_part_of_the_tool_call(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder
) -> None:
    asked: list[str] = []

    async def approve(call: Any) -> bool:
        asked.append(call.function.name)
        assert "weather started" not in seen.reported
        loop = asyncio.get_running_loop()
        began = loop.time()
        await wait_until(lambda: loop.time() >= began + 0.01)
        return True

    server.enqueue(tool_calls(("weather", {})), text("x"))
    await result(start_run(client, weather, before_tool=approve))
    assert asked == ["weather"]
    [started] = [event for event in seen.events if isinstance(event, ToolCallStarted)]
    assert started.queued >= 0.005
    assert started.description == "Weather of a city."


async def test_context_variable_set_by_an_observer_is_seen_by_the_tool_alone(server: FriendliServer) -> None:
    current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="outside")
    found: dict[str, str] = {}

    class Setter:
        def tool_call_started(self, event: ToolCallStarted) -> None:
            current.set(event.name)

    @tool
    async def in_loop() -> None:
        """Runs in the loop."""
        await asyncio.sleep(0)
        found["in_loop"] = current.get()

    @tool
    def in_thread() -> None:
        """Runs in a thread."""
        found["in_thread"] = current.get()

    server.enqueue(tool_calls(("in_loop", {}), ("in_thread", {})), text("x"))
    async with client_of(server.url, observers=[Setter()]) as client:
        async for _ in start_run(client, in_loop, in_thread):
            assert current.get() == "outside"
    assert found == {"in_loop": "in_loop", "in_thread": "in_thread"}


# --- runs that end early ---------------------------------------------------------------------------------------------

CALLED: Final = {"index": 0, "id": "c", "function": {"name": "wait", "arguments": "{}"}}
NEXT: Final = {"index": 1, "id": "d", "function": {"name": "weather", "arguments": ""}}


async def until_the_tool_runs(run: Run, waiter: Waiter) -> None:
    async with asyncio.timeout(30):
        async for event in run:
            if isinstance(event, ToolStarted):
                break
    await with_timeout(waiter.started.wait())


async def close(run: Run, waiter: Waiter) -> None:
    await until_the_tool_runs(run, waiter)
    await run.aclose()


async def leave(run: Run, waiter: Waiter) -> None:
    async with run:
        await until_the_tool_runs(run, waiter)


async def drop(run: Run, waiter: Waiter) -> None:
    await until_the_tool_runs(run, waiter)


async def cancel(run: Run, waiter: Waiter) -> None:
    await until_the_tool_runs(run, waiter)
    reading = asyncio.ensure_future(run.result())
    await wait_until(lambda: run._is_waiting)
    reading.cancel()
    await asyncio.wait([reading])


async def close_during_read(run: Run, waiter: Waiter) -> None:
    await until_the_tool_runs(run, waiter)
    reading = asyncio.ensure_future(run.result())
    await wait_until(lambda: run._is_waiting)
    await run.aclose()
    await asyncio.wait([reading])
    reading.exception()


ENDS: Final[dict[str, tuple[Callable[[Run, Waiter], Awaitable[None]], str]]] = {
    "closed": (close, "run cancelled StreamInterruptedError"),
    "left": (leave, "run cancelled StreamInterruptedError"),
    "dropped": (drop, "run cancelled StreamInterruptedError"),
    "read cancelled": (cancel, "run cancelled CancelledError"),
    "closed during a read": (close_during_read, "run cancelled StreamInterruptedError"),
}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("name", ENDS)
async def test_run_that_ends_early_ends_exactly_once_and_after_its_tools(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, waiter: Waiter, name: str, streaming: bool
) -> None:
    use, expected = ENDS[name]
    calls = [chunk(tool_calls=[CALLED]), chunk(tool_calls=[NEXT])]
    end = raw(delta(finish="tool_calls") + DONE)  # at once: the tool starts when the call of the model has ended
    server.enqueue(script(*calls, stall()) if streaming else script(*calls[:1], end))
    ending = asyncio.ensure_future(use(start_run(client, waiter.wait, weather), waiter))
    await with_timeout(waiter.started.wait())
    call = "call cancelled" if streaming else "call done"
    await wait_until(lambda: call in seen.reported and not client.gauges().in_use)
    assert "wait started" in seen.reported
    assert "wait cancelled CancelledError" not in seen.reported
    assert not any(short.startswith("run ") for short in seen.reported)
    waiter.may_end.set()
    await with_timeout(ending)
    await wait_until(lambda: any(short.startswith("run ") for short in seen.reported))
    assert sorted(seen.reported) == sorted(
        ["run", "call", call, "wait started", "wait cancelled CancelledError", expected]
    )
    assert seen.reported[-1] == expected
    assert (seen.end.turns, seen.end.tool_calls) == (1, 1)
    await assert_no_leaks(client, server, connections=None)


async def test_run_dropped_in_another_thread_ends_once(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, waiter: Waiter
) -> None:
    waiter.may_end.set()
    server.enqueue(script(chunk(tool_calls=[CALLED]), chunk(tool_calls=[NEXT]), stall()))
    runs = [start_run(client, waiter.wait, weather)]
    await until_the_tool_runs(runs[0], waiter)
    await anyio.to_thread.run_sync(runs.clear)
    await wait_until(lambda: len(seen.reported) >= 6)
    assert seen.reported[-1] == "run cancelled StreamInterruptedError"
    assert seen.end.tool_calls == 1
    await assert_no_leaks(client, server)


async def test_observer_is_not_called_again_while_it_runs_if_the_garbage_collector_closes_a_run(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    observer = Collecting()
    client = client.with_options(observers=[observer])
    server.enqueue(a_tool_then_text, text("a"))
    run = start_run(client, weather)
    while not isinstance(await anext(run), TurnEnded):
        pass
    cycle: list[object] = [run]
    cycle.append(cycle)
    del run, cycle
    await complete(client)
    assert observer.ends == ["outside", "outside", "outside"]


async def test_run_closed_by_its_own_tool_ends_after_the_tool(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder
) -> None:
    runs: list[Run] = []

    @tool
    async def give_up() -> str:
        """Closes the run."""
        await runs[0].aclose()
        return "never seen"

    server.enqueue(tool_calls(("give_up", {})))
    runs.append(start_run(client, give_up))
    with pytest.raises(FriendliError):
        await result(runs[0])
    assert seen.reported[-2:] == ["give_up done", "run cancelled StreamInterruptedError"]
    assert seen.end.turns == 1


async def test_run_outliving_its_event_loop_ends_with_its_tools(remote: FriendliServer) -> None:
    seen = RunRecorder()
    remote.enqueue(script(chunk(tool_calls=[CALLED]), chunk(tool_calls=[NEXT]), stall()))
    client = client_of(remote.url, observers=[seen])

    async def main() -> Run:
        waiter = Waiter()
        waiter.may_end.set()
        run = start_run(client, waiter.wait, weather)
        await until_the_tool_runs(run, waiter)
        return run

    def run_in_own_loop() -> None:
        run = asyncio.run(main())
        del run
        gc.collect()

    await asyncio.to_thread(run_in_own_loop)
    assert set(seen.reported[-3:-1]) == {"wait failed ToolError", "call cancelled"}  # asyncio.run cancels all tasks
    assert seen.reported[-1] == "run cancelled StreamInterruptedError"
    assert seen.end.tool_calls == 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the loop is not shut down, on purpose
async def test_run_dropped_before_its_event_loop_is_closed_without_another_turn_ends_once(
    remote: FriendliServer,
) -> None:
    seen = RunRecorder()
    remote.enqueue(script(chunk("a"), stall()))
    client = client_of(remote.url, observers=[seen])

    async def main() -> Run:
        run = start_run(client, weather)
        await anext(run)
        return run

    def run_in_own_loop() -> None:
        with closing(asyncio.new_event_loop()) as loop:
            run = loop.run_until_complete(main())
            del run
            gc.collect()

    await asyncio.to_thread(run_in_own_loop)
    assert seen.reported == ["run", "call", "call cancelled", "run cancelled StreamInterruptedError"]


async def test_run_whose_client_is_drained_is_cancelled(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, waiter: Waiter
) -> None:
    waiter.may_end.set()
    server.enqueue(script(chunk(tool_calls=[CALLED]), finish("tool_calls"), done()))
    reading = asyncio.ensure_future(start_run(client, waiter.wait).result())
    await with_timeout(waiter.started.wait())
    await wait_until(lambda: client.gauges().in_use == 0)
    await with_timeout(client.drain(0.01))
    with pytest.raises(FriendliError):
        await with_timeout(reading)
    assert seen.reported[-2:] == ["wait cancelled CancelledError", "run cancelled StreamInterruptedError"]
    assert seen.end.turns == 1


FAILURES: Final[dict[str, tuple[Any, str, int | None]]] = {
    "rejected": (status(401), "run failed AuthenticationError", 401),
    "truncated": (script(chunk("a"), cut()), "run truncated StreamInterruptedError", None),
    "error event": (
        script(chunk("a"), sse_event({"error": {"message": "overloaded", "code": 503}})),
        "run failed InternalServerError",
        503,
    ),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_run_fails_with_the_error_of_its_call(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, name: str
) -> None:
    answer, expected, code = FAILURES[name]
    server.enqueue(tool_calls(("weather", {})), answer)
    run = start_run(client, weather)
    for _ in range(2):
        with pytest.raises(FriendliError):
            await result(run)
    await run.aclose()
    assert seen.reported[-1] == expected
    assert (seen.end.status, seen.end.turns, seen.end.finish_reasons) == (code, 2, ())


async def test_turn_limit_fails_the_run(client: AsyncFriendli, server: FriendliServer, seen: RunRecorder) -> None:
    server.always(tool_calls(("weather", {})))
    with pytest.raises(TurnLimitError) as caught:
        await result(start_run(client, weather, max_turns=2))
    assert seen.reported[-1] == "run failed TurnLimitError"
    assert (seen.end.turns, seen.end.tool_calls, seen.end.usage) == (2, 2, caught.value.usage)


async def test_failed_tool_that_ends_the_run_fails_it_and_cancels_the_others(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, waiter: Waiter
) -> None:
    waiter.may_end.set()
    failing = {**NEXT, "function": {"name": "fail", "arguments": "{}"}}
    server.enqueue(script(chunk(tool_calls=[CALLED, failing]), finish("tool_calls"), usage(3, 2), done()))
    with pytest.raises(ToolError):
        await result(start_run(client, waiter.wait, fail, on_tool_error="raise"))
    assert {"fail failed LookupError", "wait cancelled CancelledError"} < set(seen.reported)
    assert seen.reported[-1] == "run failed ToolError"
    assert (seen.end.tool_calls, seen.end.turns) == (2, 1)
    assert seen.end.usage is not None
    assert seen.end.usage.completion_tokens == 2


# --- observer objects and content ------------------------------------------------------------------------------------

SECRETS: Final = ("hush-prompt", "hush-argument", "hush-result", "hush-failure", "hush-reply")


@tool
async def hush(word: str) -> str:
    """Keeps secrets."""
    if word == "hush-argument":
        return "hush-result"
    raise LookupError("hush-failure")


async def test_events_and_log_contain_no_messages_arguments_or_results(
    client: AsyncFriendli, server: FriendliServer, seen: RunRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    server.enqueue(tool_calls(("hush", {"word": "hush-argument"}), ("hush", {"word": "no"})), text("hush-reply"))
    messages = [{"role": "user", "content": "hush-prompt"}]
    await client.serverless.chat.run(model="m", messages=messages, tools=[hush]).result()
    assert len([event for event in seen.events if isinstance(event, ToolCallEnded)]) == 2
    shown = "".join(repr(event) + repr(msgspec.to_builtins(event)) for event in seen.events)
    assert [word for word in SECRETS if word in shown] == []
    logged = [record.getMessage() for record in caplog.records if record.levelno < logging.WARNING]
    assert any(message.startswith("tool 'hush': done") for message in logged)
    assert [word for word in SECRETS if word in "".join(logged)] == []


async def test_content_of_tool_calls_goes_to_an_observer_that_asks_for_it(server: FriendliServer) -> None:
    found: list[ToolCallContent | ToolCallEnded] = []

    class Curious:
        def tool_call_content(self, event: ToolCallContent) -> None:
            found.append(event)

        def tool_call_ended(self, event: ToolCallEnded) -> None:
            found.append(event)

    server.enqueue(tool_calls(("hush", {"word": "hush-argument"})), tool_calls(("hush", {"word": "no"})), text("x"))
    async with client_of(server.url, observers=[Curious()]) as client:
        await start_run(client, hush).result()
    assert [type(event) for event in found] == [ToolCallContent, ToolCallEnded] * 2
    contents = [event for event in found if isinstance(event, ToolCallContent)]
    assert [(each.arguments, each.result) for each in contents] == [
        ('{"word": "hush-argument"}', "hush-result"),
        ('{"word": "no"}', "Error: LookupError: hush-failure"),
    ]
    assert "hush-" not in repr(contents)


async def test_failing_observer_is_logged_once_per_method_and_changes_nothing(
    server: FriendliServer, seen: RunRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(RunRecorder):
        def _keep(self, event: CallEvent | ObservedRunEvent) -> None:
            super()._keep(event)
            raise RuntimeError("no good observer")

    failing = Failing()
    server.enqueue(tool_calls(("weather", {})), text("x"))
    async with client_of(server.url, observers=[failing, seen]) as client:
        assert (await start_run(client, weather).result()).reply.text == "x"
    assert failing.reported == seen.reported
    assert sorted(seen.reported) == sorted(ONE_TOOL)
    assert [record.name for record in caplog.records] == ["friendli_async"] * len(set(map(type, failing.events)))


@pytest.mark.parametrize("method", ["run_started", "tool_call_started", "tool_call_ended", "run_ended"])
async def test_exit_raised_by_an_observer_ends_the_run_and_leaves_nothing_open(
    server: FriendliServer, method: str
) -> None:
    class Exit(BaseException):
        """Propagates as KeyboardInterrupt does."""

    def leave_program(event: ObservedRunEvent) -> None:
        raise Exit

    observer: Any = type("Observer", (), {method: staticmethod(leave_program)})()
    server.enqueue(tool_calls(("weather", {})), text("x"))
    async with client_of(server.url, observers=[observer]) as client:
        with pytest.raises(Exit):
            await result(start_run(client, weather))
        await assert_no_leaks(client, server, connections=None)
