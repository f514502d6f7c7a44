"""Runs: the model calls tools, the client executes them, and the model continues with their results."""

import asyncio
import contextlib
import contextvars
import copy
import gc
import json
import logging
import pickle
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import anyio
import msgspec
import pytest
from support.clock import Clock, begin_tasks_eagerly, run_loop_iterations, run_until, wait_until
from support.sockets import MESSAGES, client_of, library_tasks, slots_in_use, start_run, with_timeout

from friendli_async import (
    AsyncFriendli,
    ChatChunk,
    ChatStream,
    ConfigurationError,
    InternalServerError,
    ResponseDecodeError,
    StreamInterruptedError,
    ToolCall,
)
from friendli_async._core.reporting import RunReporter
from friendli_async.chat import Conversation, SystemMessage, TextContent, UserMessage
from friendli_async.chat.tool_loop import RunSettings, ToolRunner
from friendli_async.errors import ToolError, TurnLimitError
from friendli_async.replies import FunctionCall
from friendli_async.testing import (
    FriendliServer,
    Step,
    chunk,
    cut,
    done,
    event,
    finish,
    gate,
    raw,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)
from friendli_async.tools import LocalTool, Run, RunResult, ToolFinished, ToolStarted, TurnEnded, current_call, tool


@tool
async def weather(city: str) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


@tool
def now() -> str:
    """The time."""
    return "12:00"


@tool
async def fail(message: str = "no such city") -> str:
    """Fails."""
    raise ValueError(message)


class Waiter:
    """A tool that waits, and logs how it ends."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_clean_up = asyncio.Event()
        self.may_clean_up.set()
        self.running = 0
        self.peak = 0
        self.log: list[str] = []

    @tool
    async def wait(self, name: str = "w") -> str:
        """Waits."""
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.log.append(f"{name} started")
        self.started.set()
        try:
            await self.may_finish.wait()
        except asyncio.CancelledError:
            await self.may_clean_up.wait()
            self.log.append(f"{name} cancelled")
            raise
        finally:
            self.running -= 1
        self.log.append(f"{name} finished")
        return name


@pytest.fixture
def waiter() -> Waiter:
    return Waiter()


def call_delta(index: int, name: str, id: str | None = "", arguments: str = "") -> Step:
    """The first delta of a tool call."""
    call: dict[str, Any] = {"index": index, "type": "function", "function": {"name": name, "arguments": arguments}}
    if id is not None:
        call["id"] = id or f"call_{index}"
    return chunk(tool_calls=[call])


def arguments_delta(index: int, arguments: str) -> Step:
    return chunk(tool_calls=[{"index": index, "function": {"arguments": arguments}}])


def turn(*steps: Step) -> Any:
    return script(*steps, finish("tool_calls"), usage(10, 5), done())


async def events_of(run: Run) -> list[Any]:
    return await with_timeout(_events_of(run))


async def _events_of(run: Run) -> list[Any]:
    return [event async for event in run]


async def read_into(seen: list[Any], run: Run) -> None:
    async for found in run:
        seen.append(found)  # noqa: PERF401  # a comprehension would lose the items before an error


async def read_until(run: Run, kind: type) -> Any:
    """Reads up to the first event of a type, and returns it."""
    async with asyncio.timeout(30):
        async for event in run:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__} was received")


def summarize(events: Sequence[Any]) -> list[str]:
    """Summarizes all events except chunks."""
    short: list[str] = []
    for found in events:
        match found:
            case ToolStarted(call=call):
                short.append(f"{call.function.name} started")
            case ToolFinished(call=call, problem=None):
                short.append(f"{call.function.name} finished")
            case ToolFinished(call=call, problem=error):
                short.append(f"{call.function.name}: {error}")
            case TurnEnded(number=number):
                short.append(f"turn {number}")
            case _:
                assert isinstance(found, ChatChunk)
    return short


def tool_results(server: FriendliServer, number: int = -1) -> list[tuple[str, str]]:
    """Returns the id and content of each tool message in a request."""
    messages: list[Mapping[str, Any]] = server.requests[number].json_object["messages"]
    return [(message["tool_call_id"], message["content"]) for message in messages if message["role"] == "tool"]


async def assert_idle(client: AsyncFriendli, server: FriendliServer) -> None:
    """Asserts that no request, connection slot or task is left; pooled connections may stay open."""
    await server.idle(timeout=30)
    await run_until(lambda: not slots_in_use(client) and not library_tasks())
    assert slots_in_use(client) == 0
    assert library_tasks() == []


# --- successful runs -------------------------------------------------------------------------------------------------


async def test_awaiting_a_run_says_how_to_get_its_result(client: AsyncFriendli) -> None:
    run: Any = start_run(client)
    with pytest.raises(TypeError, match=r"^a run cannot be awaited: use `await run\.result\(\)`"):
        await run


@pytest.mark.parametrize("at_once", [True, False])
async def test_tool_starts_after_the_chunks_that_complete_its_call(
    client: AsyncFriendli, server: FriendliServer, at_once: bool
) -> None:
    deltas: list[Any] = [
        {"index": 0, "id": "1", "function": {"name": "weather", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"city":'}},
        {"index": 0, "function": {"arguments": '"Rome"}'}},
        {"index": 1, "id": "2", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
    ]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]} for delta in deltas]
    events = [f"data: {json.dumps(each)}\n\n".encode() for each in chunks]
    writes = [b"".join(events)] if at_once else events
    server.enqueue(script(*map(raw, writes), finish("tool_calls"), done()), text("x"))
    begun: list[str] = []
    delivered = ""
    async for found in start_run(client, weather):
        if isinstance(found, ChatChunk) and found.choices:
            calls = found.choices[0].delta.tool_calls or ()
            delivered += "".join(call.function.arguments or "" for call in calls if call.function)
        if isinstance(found, ToolStarted):
            begun.append(found.call.function.arguments)
            assert delivered.startswith("".join(begun))
    assert begun == ['{"city":"Rome"}', '{"city":"Oslo"}']


async def test_events_are_in_chronological_order(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Paris"}), ("now", "")), text("It is ", "sunny"))
    run = start_run(client, weather, now)
    events = await events_of(run)
    steps = summarize(events)
    assert sorted(steps[:4]) == ["now finished", "now started", "weather finished", "weather started"]
    assert steps.index("weather started") < steps.index("weather finished")
    assert steps[4:] == ["turn 1", "turn 2"]
    assert "".join(event.text for event in events if isinstance(event, ChatChunk)) == "It is sunny"
    assert isinstance(events[-1], TurnEnded)
    assert events[-1].reply.text == "It is sunny"
    assert events[-1].reply.meta.status == 200


@pytest.mark.parametrize("how", ["at once", "approved", "decided"])
async def test_reader_that_waits_can_save_a_call_before_its_tool_takes_effect(
    client: AsyncFriendli, server: FriendliServer, how: str
) -> None:
    log: list[str] = []

    @tool
    async def pay(amount: int) -> str:
        log.append(f"paid {amount}")
        return "paid"

    @tool
    def pay_in_thread(amount: int) -> str:
        log.append(f"paid {amount}")
        return "paid"

    def decide(call: ToolCall) -> Any:
        return "defer" if how == "decided" else True

    server.enqueue(tool_calls(("pay", {"amount": 1}), ("pay", {"amount": 2}), ("pay_in_thread", {"amount": 3})))
    run = start_run(client, pay, pay_in_thread, before_tool=None if how == "at once" else decide)
    if how == "decided":
        calls = (await run.result()).deferred
        decisions = {call.id: True for call in calls}
        run = client.serverless.chat.run(
            model="m", messages=run.messages, tools=[pay, pay_in_thread], decisions=decisions
        )
    server.enqueue(text("Done"))
    async for found in run:
        if isinstance(found, ToolStarted):
            assert run.messages[-1]["role"] == "tool"  # the turn is in what is saved
            log.append(f"saved {json.loads(found.call.function.arguments)['amount']}")
    assert all(log.index(f"saved {amount}") < log.index(f"paid {amount}") for amount in (1, 2, 3)), log


async def test_result_has_reply_transcript_usage_and_turns(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Paris"})), text("Sunny", prompt_tokens=7))
    run = start_run(client, weather)
    result = await run.result()
    assert isinstance(result, RunResult)
    assert (result.reply.text, result.turns) == ("Sunny", 2)
    call_id = result.messages[1]["tool_calls"][0]["id"]
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    call = {"id": call_id, "type": "function", "function": function}
    assert result.messages == [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "name": "weather", "content": "sunny in Paris"},
        {"role": "assistant", "content": "Sunny"},
    ]  # fmt: skip
    assert result.usage is not None
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (8, 2)
    assert (run.messages, run.usage, run.turns) == (result.messages, result.usage, 2)
    assert await run.result() is result
    with pytest.raises(RuntimeError, match=r"^result\(\) has already read all events"):
        await anext(run)
    assert json.loads(json.dumps(result.messages)) == result.messages


async def test_refused_read_does_not_count_as_an_iteration(client: AsyncFriendli, server: FriendliServer) -> None:
    go = asyncio.Event()
    server.enqueue(script(gate(go), chunk("Hi"), finish(), done()))
    run = start_run(client, now)
    reading = asyncio.ensure_future(run.result())
    await server.wait_for_requests(1)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(run)
    go.set()
    await with_timeout(reading)
    with pytest.raises(RuntimeError, match=r"^result\(\) has already read all events"):
        await anext(run)


async def test_transcript_is_plain_dicts_whatever_was_given(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text("Hi"))
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    server.enqueue(turn(call_delta(0, "now")), text("good"))
    part = TextContent("Hello")
    given: Conversation = [SystemMessage("Be brief."), UserMessage([part]), reply.message]
    given.append({"role": "user", "content": (part,)})
    run = client.serverless.chat.run(model="m", messages=given, tools=[now])
    assert json.loads(json.dumps(run.messages))[1]["content"] == [{"type": "text", "text": "Hello"}]
    result = await run.result()
    assert json.loads(json.dumps(result.messages))[:-1] == server.requests[-1].json_object["messages"]


async def test_transcript_can_be_passed_to_the_next_call(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("weather", '{"city": '), ("nothing", ""), ("now", "[]")))
    result = await start_run(client, weather, now).result()
    reply = await client.serverless.chat.complete(
        model="m", messages=[*result.messages, {"role": "user", "content": "And now?"}]
    )
    assert reply.text == "You said: And now?"
    again = await client.serverless.chat.run(model="m", messages=result.messages, tools=[weather]).result()
    assert again.turns == 1


async def test_the_first_request_offers_the_tools(client: AsyncFriendli, server: FriendliServer) -> None:
    more = {"top_k": 3, "response_format": {"type": "text"}}
    await start_run(client, weather, temperature=0.5, extra_body=more).result()
    [request] = server.requests
    function = {"name": "weather", "description": "Weather of a city.", "parameters": weather.parameters}
    assert request.json_object["tools"] == [{"type": "function", "function": function}]
    assert (request.json_object["temperature"], request.json_object["top_k"]) == (0.5, 3)
    assert request.json_object["response_format"] == {"type": "text"}
    assert request.json_object["stream_options"] == {"include_usage": True}


async def test_tool_call_of_a_choice_that_was_not_requested_is_not_run(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    called: list[str] = []

    @tool
    async def charge(card: str) -> str:
        called.append(card)
        return "charged"

    function = {"name": "charge", "arguments": '{"card": "a"}'}
    call = {"index": 0, "id": "t", "type": "function", "function": function}
    server.enqueue(
        script(
            chunk("Hello", role="assistant"),
            chunk(role="assistant", tool_calls=[call], index=1),
            chunk(finish_reason="tool_calls", index=1),
            finish("stop"),
            done(),
        )
    )
    run = start_run(client, charge)
    chunks = [event for event in await events_of(run) if isinstance(event, ChatChunk)]
    assert [choice.index for each in chunks for choice in each.choices] == [0, 1, 1, 0]
    assert (await run.result()).reply.text == "Hello"
    assert called == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}, "auto"])
@pytest.mark.parametrize("in_extra_body", [False, True])
async def test_forcing_tool_choice_applies_to_the_first_turn_only(
    client: AsyncFriendli, server: FriendliServer, choice: Any, in_extra_body: bool
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Rome"})))
    given: Any = {"tool_choice": choice}
    await start_run(client, weather, **({"extra_body": given} if in_extra_body else given)).result()
    first, second = (request.json_object.get("tool_choice") for request in server.requests)
    assert (first, second) == (choice, "auto" if choice == "auto" else None)
    assert given == {"tool_choice": choice}


async def test_all_deployments_run_tools(client: AsyncFriendli, server: FriendliServer) -> None:
    ask: Any = {"messages": [{"role": "user", "content": "How is the weather?"}], "tools": [weather]}
    runs = [
        client.serverless.chat.run(model="m", **ask),
        client.dedicated.chat.run(model="m", **ask),
        client.container.chat.run(**ask),
    ]
    for run in runs:
        assert (await run.result()).reply.text == "The tool says: sunny in How is the weather?"
    paths = [request.path for request in server.requests]
    assert paths[::2] == paths[1::2]
    assert len(set(paths)) == 3
    assert "model" not in server.requests[-1].json_object


async def test_turns_without_usage_are_skipped_in_the_total(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(
        script(call_delta(0, "now"), finish("tool_calls"), done()),
        script(call_delta(0, "now"), finish("tool_calls"), usage(3, 4), done()),
        script(call_delta(0, "now"), finish("tool_calls"), usage(10, 20), done()),
        script(chunk("x"), finish(), done()),
    )
    result = await start_run(client, now).result()
    assert result.usage is not None
    assert (result.usage.prompt_tokens, result.usage.total_tokens) == (13, 37)
    assert result.usage.prompt_tokens_details is not None
    assert result.usage.prompt_tokens_details.cached_tokens == 0
    server.enqueue(script(chunk("x"), finish(), done()))
    assert (await start_run(client, now).result()).usage is None


async def test_custom_tool_class_runs(client: AsyncFriendli, server: FriendliServer) -> None:
    class Echo:
        name = "echo"
        description = None
        parameters: Mapping[str, Any] = {"type": "object"}

        async def run(self, arguments: str) -> str:
            return arguments

    server.enqueue(tool_calls(("echo", "anything")))
    await start_run(client, Echo()).result()
    assert [content for _, content in tool_results(server)] == ["anything"]
    assert server.requests[0].json_object["tools"] == [
        {"type": "function", "function": {"name": "echo", "parameters": {"type": "object"}}}
    ]


# --- when tool calls start -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["error", "abort"])
async def test_calls_of_an_answer_that_broke_off_are_not_made(
    client: AsyncFriendli, server: FriendliServer, reason: str
) -> None:
    paid: list[int] = []

    @tool
    def pay(amount: int) -> None:
        paid.append(amount)

    server.enqueue(script(call_delta(0, "pay", '{"amount": 5}'), finish(reason), done()))
    run = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[pay])
    with pytest.raises(StreamInterruptedError, match=reason) as caught:
        await run.result()
    assert caught.value.partial is not None
    assert [call.function.name for call in caught.value.partial.tool_calls] == ["pay"]
    assert (paid, len(server.requests)) == ([], 1)


async def test_call_starts_when_the_next_one_begins_before_the_stream_ends(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    resume = asyncio.Event()
    rest = [gate(resume), arguments_delta(1, '"Rome"}')]
    server.enqueue(
        turn(call_delta(0, "now", arguments="{}"), call_delta(1, "weather"), arguments_delta(1, '{"city":'), *rest),
        text("x"),
    )
    run = start_run(client, now, weather)
    finished = await read_until(run, ToolFinished)
    assert (finished.call.function.name, finished.content) == ("now", "12:00")
    resume.set()
    assert summarize(await events_of(run)) == ["weather started", "weather finished", "turn 1", "turn 2"]


async def test_call_starts_at_the_finish_reason_before_the_stream_ends(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    resume = asyncio.Event()
    steps = [
        call_delta(0, "weather"),
        arguments_delta(0, '{"city":"Rome"}'),
        finish("tool_calls"),
        gate(resume),
        usage(1, 1),
        done(),
    ]
    server.enqueue(script(*steps), text("x"))
    run = start_run(client, weather)
    assert (await read_until(run, ToolFinished)).content == "sunny in Rome"
    resume.set()
    assert summarize(await events_of(run)) == ["turn 1", "turn 2"]


async def test_chunk_that_arrives_while_nobody_waits_is_delivered_although_a_tool_runs(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    resume = asyncio.Event()
    server.enqueue(turn(call_delta(0, "wait", arguments="{}"), call_delta(1, "now"), gate(resume), chunk("late")))
    async with start_run(client, waiter.wait, now) as run:
        await read_until(run, ToolStarted)
        reading = run._read_task
        assert reading is not None
        resume.set()
        await wait_until(reading.done)
        await run_loop_iterations()
        last = await with_timeout(anext(run))
        assert isinstance(last, ChatChunk)
        assert last.text == "late"


async def test_complete_arguments_object_alone_does_not_start_a_call(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(
        turn(call_delta(0, "weather", arguments='{"city":"Rome"}'), arguments_delta(0, " "), arguments_delta(0, "\n")),
        text("x"),
    )
    events = await events_of(start_run(client, weather))
    first = next(number for number, found in enumerate(events) if isinstance(found, ToolStarted))
    assert sum(isinstance(found, ChatChunk) for found in events[:first]) >= 4
    assert summarize(events) == ["weather started", "weather finished", "turn 1", "turn 2"]


async def test_deltas_of_two_calls_may_be_interleaved(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(
        turn(
            call_delta(0, "weather"),
            call_delta(1, "weather"),
            arguments_delta(0, '{"city":'),
            arguments_delta(1, '{"city":'),
            arguments_delta(0, '"Rome"}'),
            arguments_delta(1, '"Oslo"}'),
        ),
        text("x"),
    )
    await start_run(client, weather).result()
    assert tool_results(server) == [("call_0", "sunny in Rome"), ("call_1", "sunny in Oslo")]


async def test_arguments_that_continue_after_the_call_started_fail_the_run(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    server.enqueue(
        turn(call_delta(0, "wait", arguments="{}"), call_delta(1, "now"), arguments_delta(0, '{"name":"x"}'))
    )
    run = start_run(client, waiter.wait, now)
    with pytest.raises(ResponseDecodeError, match="'wait' continued after the tool call had started") as caught:
        await events_of(run)
    assert caught.value.partial is not None
    assert waiter.log in ([], ["w started", "w cancelled"])
    await assert_idle(client, server)


async def test_results_are_sent_in_call_order(client: AsyncFriendli, server: FriendliServer) -> None:
    slow_may_finish, quick_started = asyncio.Event(), asyncio.Event()

    @tool
    async def slow() -> str:
        await slow_may_finish.wait()
        return "slow"

    @tool
    async def quick() -> str:
        quick_started.set()
        return "quick"

    server.enqueue(tool_calls(("slow", {}), ("quick", {}), ("nothing", {})))
    run = start_run(client, slow, quick)
    assert (await read_until(run, ToolFinished)).call.function.name != "slow"
    await with_timeout(quick_started.wait())
    slow_may_finish.set()
    await events_of(run)
    assert [content for _, content in tool_results(server)][:2] == ["slow", "quick"]
    assert tool_results(server)[2][1].startswith("Error: unknown tool 'nothing'")


@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_concurrency_limits_running_tools(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, concurrency: int
) -> None:
    server.enqueue(tool_calls(*(("wait", {"name": str(number)}) for number in range(5))))
    run = start_run(client, waiter.wait, concurrency=concurrency)
    for _ in range(concurrency):
        await read_until(run, ToolStarted)
    await run_until(lambda: waiter.running == concurrency)
    await run_loop_iterations()
    assert waiter.running == concurrency
    waiter.may_finish.set()
    await events_of(run)
    assert waiter.peak == concurrency
    assert [content for _, content in tool_results(server)] == ["0", "1", "2", "3", "4"]


async def test_tools_run_in_the_context_of_the_reader(client: AsyncFriendli, server: FriendliServer) -> None:
    user = contextvars.ContextVar("user", default="nobody")

    @tool
    def sync() -> str:
        return user.get()

    @tool
    async def coroutine() -> str:
        return user.get()

    server.enqueue(tool_calls(("sync", {}), ("coroutine", {})))
    user.set("somebody")
    await start_run(client, sync, coroutine).result()
    assert [content for _, content in tool_results(server)] == ["somebody", "somebody"]


# --- tool errors -----------------------------------------------------------------------------------------------------


@tool
async def returns_unserializable_object() -> object:
    return object()


@tool
async def never_ends() -> str:
    clock = asyncio.get_running_loop().time
    if isinstance(clock, Clock):
        await run_loop_iterations(20)  # lets the other tool of the turn finish
        clock.advance(0.05)
    await asyncio.Event().wait()
    return "never"


@tool
async def cancels_itself() -> str:
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task
    return "never"


@tool
async def times_out() -> str:
    raise TimeoutError("the database did not answer")


@tool
async def raises_tool_error() -> str:
    raise ToolError("there are two cities of that name")


@tool
async def fails_in_a_group() -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(fail("inside"))
    return "never"


@tool
async def fails_in_nested_groups() -> str:
    raise ExceptionGroup("both", [ValueError("one"), ExceptionGroup("inner", [KeyError("two"), ValueError()])])


@tool
async def leaks() -> str:
    raise RuntimeError("GET https://ann:pass@host/x failed, Authorization: Bearer abcdef0123 flp_0123456789abc")


TOOL_ERRORS = [
    ("nothing", {}, "unknown", "Error: unknown tool 'nothing'; available: weather, now"),
    ("weather", {"town": "Rome"}, "arguments", "Error: invalid arguments: Object "),
    ("weather", '{"city":', "arguments", "Error: the arguments are not valid JSON: "),
    ("fail", {}, "failed", "Error: ValueError: no such city"),
    ("returns_unserializable_object", {}, "result", "Error: the tool's result cannot be serialized: "),
    ("never_ends", {}, "timeout", "Error: the tool did not finish within 0.05 s; it may have taken effect"),
    ("cancels_itself", {}, "failed", "Error: the tool was cancelled"),
    ("times_out", {}, "failed", "Error: TimeoutError: the database did not answer"),
    ("raises_tool_error", {}, "failed", "Error: there are two cities of that name"),
    ("fails_in_a_group", {}, "failed", "Error: ValueError: inside"),
    ("fails_in_nested_groups", {}, "failed", "Error: ValueError: one; KeyError: 'two'; ValueError"),
    ("leaks", {}, "failed", "Error: RuntimeError: GET https://***@host/x failed, Authorization: Bearer *** ***"),
]
ALL_TOOLS = [
    weather,
    now,
    fail,
    returns_unserializable_object,
    never_ends,
    cancels_itself,
    times_out,
    raises_tool_error,
    fails_in_a_group,
    fails_in_nested_groups,
]
ALL_TOOLS += [leaks]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("name", "arguments", "kind", "message"), TOOL_ERRORS, ids=[f"{row[0]}-{row[2]}" for row in TOOL_ERRORS]
)
async def test_tool_error_is_fed_to_the_model_and_the_run_continues(
    client: AsyncFriendli, server: FriendliServer, name: str, arguments: Any, kind: str, message: str
) -> None:
    server.enqueue(tool_calls((name, arguments), ("weather", {"city": "Rome"})), text("Sorry"))
    run = start_run(client, *ALL_TOOLS, tool_timeout=0.05 if kind == "timeout" else 30)
    events = await events_of(run)
    [finished] = [found for found in events if isinstance(found, ToolFinished) and found.problem is not None]
    assert finished.problem == kind
    assert finished.content.startswith(message)
    assert [content for _, content in tool_results(server)] == [finished.content, "sunny in Rome"]
    assert "Traceback" not in finished.content
    assert "line " not in finished.content
    assert (await run.result()).reply.text == "Sorry"


class ToolWithTimeout:
    """A tool of the user's own class."""

    name = "own"
    description = None
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}}
    timeout: Any = 0.05

    async def run(self, arguments: str) -> str:
        return await never_ends()


class Slow:
    @tool(timeout=0.05)
    async def wait(self) -> str:
        return await never_ends()


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "used",
    [
        tool(never_ends.__wrapped__, timeout=0.05),
        tool(tool(never_ends.__wrapped__, timeout=0.05), name="renamed"),
        Slow().wait,
        ToolWithTimeout(),
    ],
    ids=["function", "tool of a tool", "method", "own class"],
)
async def test_timeout_of_a_tool_replaces_that_of_the_run(
    client: AsyncFriendli, server: FriendliServer, used: Any
) -> None:
    server.enqueue(tool_calls((used.name, {})), text("Sorry"))
    result = await with_timeout(start_run(client, used, tool_timeout=None).result())
    assert tool_results(server)[0][1] == "Error: the tool did not finish within 0.05 s; it may have taken effect"
    assert result.reply.text == "Sorry"


@pytest.mark.parametrize("timeout", [timedelta(seconds=1), "30", True, 0, print])
def test_timeout_of_an_own_tool_is_checked_before_anything_is_sent(client: AsyncFriendli, timeout: Any) -> None:
    used = ToolWithTimeout()
    used.timeout = timeout
    with pytest.raises(ValueError, match=r"^tools\[1\]\.timeout: Expected a number of seconds above 0, or None, got"):
        start_run(client, weather, used)


@pytest.mark.parametrize("timeout", [None, 1])
async def test_tool_may_take_longer_than_the_run_allows_others(
    client: AsyncFriendli, server: FriendliServer, clock: Clock, timeout: float | None
) -> None:
    @tool(timeout=timeout)
    async def slow() -> str:
        clock.advance(0.1)
        await run_loop_iterations()
        return "done"

    server.enqueue(tool_calls(("slow", {})), text("Fine"))
    await with_timeout(start_run(client, slow, tool_timeout=0.05).result())
    assert tool_results(server)[0][1] == "done"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("name", "arguments", "kind", "message"), TOOL_ERRORS, ids=[f"{row[0]}-{row[2]}" for row in TOOL_ERRORS]
)
async def test_tool_error_ends_the_run_if_on_tool_error_is_raise(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, name: str, arguments: Any, kind: str, message: str
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Rome"})), tool_calls(("wait", {}), (name, arguments)))
    run = start_run(
        client, *ALL_TOOLS, waiter.wait, on_tool_error="raise", tool_timeout=0.05 if kind == "timeout" else None
    )
    with pytest.raises(ToolError) as caught:
        await events_of(run)
    error = caught.value
    assert error.kind == kind
    assert error.call is not None
    assert name in (error.call.function.name, "never_ends")  # `wait` times out as well
    assert error.__cause__ is not None
    assert [message["role"] for message in error.messages] == ["user", *["assistant", "tool"] * 2, "tool"]
    assert error.usage is not None
    assert waiter.running == 0
    assert run.messages == error.messages
    with pytest.raises(ToolError) as again:
        await run.result()
    assert (again.value.messages, again.value.usage) == (error.messages, error.usage)
    assert pickle.loads(pickle.dumps(error)).call == error.call
    await assert_idle(client, server)


async def test_exception_of_a_tool_is_kept_by_its_event_and_logged(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    @tool
    async def look_up(name: str) -> str:
        entries: dict[str, str] = {}
        return entries[name]

    server.enqueue(tool_calls(("look_up", {"name": "nope"})))
    with caplog.at_level(logging.WARNING, "friendli_async"):
        events = await events_of(start_run(client, look_up))
    [finished] = [event for event in events if isinstance(event, ToolFinished)]
    exception = finished.exception
    assert isinstance(exception, KeyError)
    assert traceback.extract_tb(exception.__traceback__)[0].name == "look_up"
    assert msgspec.json.decode(msgspec.json.encode(finished), type=ToolFinished) == finished
    assert pickle.loads(pickle.dumps(finished)) == finished
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    assert record.getMessage() == "the tool 'look_up' raised KeyError"
    assert record.levelno == logging.WARNING
    assert record.exc_info is not None
    assert record.exc_info[1] is exception
    assert record.exc_info[2] is not None
    assert record.exc_info[2].tb_frame.f_code.co_filename == __file__
    assert vars(record)["friendli_tool_call_id"] == finished.call.id
    assert vars(record)["friendli_run_id"] is None, "nobody observes the run"


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("nothing", {}, type(None)),
        ("now", {}, type(None)),
        ("fail", {}, ValueError),
        ("never_ends", {}, TimeoutError),
        ("raises_tool_error", {}, ToolError),
        ("refuses", {}, ToolError),
        ("weather", {"town": "Rome"}, ToolError),
        ("fails_in_a_group", {}, ExceptionGroup),
    ],
)
async def test_event_has_the_exception_that_the_tool_raised_with_the_traceback_from_the_tool_on(
    client: AsyncFriendli, server: FriendliServer, name: str, arguments: dict[str, str], kind: type
) -> None:
    @tool
    async def refuses() -> str:
        raise ToolError("not on Fridays", kind="refused")

    server.enqueue(tool_calls((name, arguments)))
    run = start_run(client, *ALL_TOOLS, refuses, tool_timeout=0.05 if name == "never_ends" else 30)
    [finished] = [event for event in await events_of(run) if isinstance(event, ToolFinished)]
    exception = finished.exception
    assert type(exception) is kind
    for each in (exception, exception and exception.__context__):
        begin = None if each is None else each.__traceback__
        assert begin is None or begin.tb_frame.f_code.co_filename == __file__


async def test_failure_chosen_by_the_tool_is_not_logged(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.enqueue(tool_calls(("raises_tool_error", {}), ("weather", {"town": "Rome"})))
    with caplog.at_level(logging.WARNING, "friendli_async"):
        await events_of(start_run(client, *ALL_TOOLS))
    assert [record for record in caplog.records if record.name == "friendli_async"] == []


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("name", "arguments"), [("nothing", {}), ("weather", {"town": "Rome"}), ("never_ends", {}), ("fail", {})]
)
async def test_failed_run_in_a_tool_is_a_failure_of_the_tool_whatever_had_failed_in_it(
    client: AsyncFriendli, server: FriendliServer, name: str, arguments: dict[str, str]
) -> None:
    @tool
    async def ask() -> str:
        run = start_run(client, *ALL_TOOLS, tool_timeout=0.05, on_tool_error="raise")
        return (await run.result()).reply.text

    server.enqueue(tool_calls(("ask", {})), tool_calls((name, arguments)), text("Sorry"))
    events = await events_of(start_run(client, ask))
    [finished] = [event for event in events if isinstance(event, ToolFinished)]
    assert finished.problem == "failed"
    assert finished.content.startswith(f"Error: ToolError: the tool '{name}' failed: ")
    assert isinstance(finished.exception, ToolError)
    assert finished.exception.call is not None
    assert finished.exception.call.function.name == name


class Witness:
    """A local variable of a tool, by which a test sees how long the tool's frame lives."""


@pytest.mark.compatibility
@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("way", ["raises", "in_thread", "tool_error", "cancels_itself", "never_ends"])
async def test_exception_of_a_tool_makes_no_reference_cycle(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture, way: str, is_closed: bool
) -> None:
    caplog.set_level(logging.CRITICAL, "friendli_async")  # a captured record would keep the exception
    witnesses: list[weakref.ref[Witness]] = []

    def body() -> None:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        if way in ("raises", "in_thread", "tool_error"):
            raise ToolError("no") if way == "tool_error" else LookupError

    @tool
    def in_thread() -> None:
        body()

    @tool
    async def in_loop() -> None:
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        body()
        if way == "cancels_itself":
            raise asyncio.CancelledError
        await asyncio.Event().wait()

    used = in_thread if way == "in_thread" else in_loop
    server.enqueue(tool_calls((used.name, {}), (used.name, {})))  # the second event is not read
    gc.disable()
    try:
        run = start_run(client, used, tool_timeout=0.01 if way == "never_ends" else 30)
        finished = await read_until(run, ToolFinished)
        assert finished.problem is not None
        calls = weakref.ref(run._runner)
        if is_closed:
            await run.aclose()
        del finished, run
        await assert_idle(client, server)
        await asyncio.sleep(0)
        if way == "in_thread":
            # A worker thread lets go of an exception a moment after it has passed it to the loop; of anyio 4.4, with
            # the next call. One of them may have run both calls.
            both_run = threading.Barrier(2)
            await asyncio.gather(*(anyio.to_thread.run_sync(both_run.wait, 30) for _ in range(2)))
            await wait_until(lambda: not any(witness() for witness in witnesses))
        assert [witness() for witness in witnesses] == [None] * len(witnesses)
        assert calls() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [SystemExit(4), GeneratorExit(), BaseExceptionGroup("both", [SystemExit(4)])])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_exit_raised_by_a_tool_is_a_failure_of_the_tool(
    client: AsyncFriendli, server: FriendliServer, error: BaseException, in_thread: bool
) -> None:
    def leave() -> str:
        raise error

    async def leave_async() -> str:
        raise error

    server.enqueue(tool_calls(("leave", {})), text("Sorry"))
    run = start_run(client, tool(leave) if in_thread else tool(leave_async, name="leave"))
    [finished] = [event for event in await events_of(run) if isinstance(event, ToolFinished)]
    assert finished.problem == "failed"
    assert type(finished.exception) is type(error)
    assert finished.content in ("Error: SystemExit: 4", "Error: GeneratorExit")
    assert (await run.result()).reply.text == "Sorry"


@pytest.mark.parametrize("where", ["thread", "coroutine", "approval"])
def test_keyboard_interrupt_in_a_tool_or_its_approval_ends_the_process(where: str) -> None:
    code = """
import asyncio, sys
from friendli_async import AsyncFriendli
from friendli_async.testing import FriendliServer, tool_calls
from friendli_async.tools import tool

def interrupt() -> str:
    raise KeyboardInterrupt

async def interrupt_async() -> str:
    raise KeyboardInterrupt

def approve(call) -> bool:
    if sys.argv[1] == "approval":
        raise KeyboardInterrupt
    return True

async def main():
    async with FriendliServer() as server, AsyncFriendli("token", server_url=server.url) as client:
        server.enqueue(tool_calls(("interrupt", {})))
        made = tool(interrupt) if sys.argv[1] == "thread" else tool(interrupt_async, name="interrupt")
        messages = [{"role": "user", "content": "Hi"}]
        run = client.serverless.chat.run(model="m", messages=messages, tools=[made], before_tool=approve)
        try:
            await run.result()
        finally:
            assert repr(run) == "<Run closed, 0 turns>"

asyncio.run(main())
"""
    command = [sys.executable, "-c", code, where]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


async def test_exception_with_a_failing_str_is_reported_by_its_class_name(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    class BrokenError(Exception):
        def __str__(self) -> str:
            raise LookupError

    @tool
    async def breaks() -> str:
        raise BrokenError

    server.enqueue(tool_calls(("breaks", {})))
    await events_of(start_run(client, breaks))
    assert [content for _, content in tool_results(server)] == ["Error: BrokenError"]


async def test_tool_error_is_chained_to_the_exception_of_the_tool(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("fail", {})))
    with pytest.raises(ToolError, match="the tool 'fail' failed: ValueError: no such city") as caught:
        await start_run(client, fail, on_tool_error="raise").result()
    assert isinstance(caught.value.__cause__, ValueError)


async def test_arguments_with_a_lone_surrogate_are_sent_back_unchanged(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("weather", r'{"city":"half \ud83d"}')), text("x"))
    result = await start_run(client, weather).result()
    assert [content for _, content in tool_results(server)] == ["sunny in half \ud83d"]
    call = result.messages[1]["tool_calls"][0]
    assert call["function"]["arguments"] == r'{"city":"half \ud83d"}'


class OtherTool:
    """A local tool of the user's own class, with a given result."""

    description = None
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}}

    def __init__(self, name: str, result: Any) -> None:
        self.name = name
        self._result = result

    async def run(self, arguments: str) -> Any:
        return self._result


async def test_tool_that_returns_something_else_than_text_has_failed(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    class Text(str):
        __slots__ = ()

    results: dict[str, object] = {"bytes": b"x", "nothing": None, "object": {"a": 1}, "text": Text("x")}
    server.enqueue(tool_calls(*((name, {}) for name in results)), text("x"))
    run = start_run(client, *(OtherTool(name, result) for name, result in results.items()))
    finished = [event for event in await events_of(run) if isinstance(event, ToolFinished)]
    assert {event.call.function.name: event.problem for event in finished} == {
        "bytes": "result",
        "nothing": "result",
        "object": "result",
        "text": None,
    }
    assert [content for _, content in tool_results(server)] == [
        "Error: the tool returned bytes instead of text",
        "Error: the tool returned NoneType instead of text",
        "Error: the tool returned dict instead of text",
        "x",
    ]


@pytest.mark.parametrize("limit", [10, None])
async def test_result_of_a_tool_longer_than_the_limit_is_a_failure(
    client: AsyncFriendli, server: FriendliServer, limit: int | None
) -> None:
    @tool
    async def repeat(count: int) -> str:
        return "x" * count

    @tool
    async def explain() -> str:
        raise ToolError("y" * 3000)

    @tool
    async def fail() -> str:
        raise ValueError("z" * 3000)

    @tool
    async def fail_twice() -> str:
        raise ExceptionGroup("both", [ValueError("z" * 1500)] * 2)

    repeats = [("repeat", {"count": count}) for count in (10, 11)]
    server.enqueue(tool_calls(*repeats, ("explain", {}), ("fail", {}), ("fail_twice", {})), text("x"))
    events = await events_of(start_run(client, repeat, explain, fail, fail_twice, max_tool_result=limit))
    finished = {found.call.id: found for found in events if isinstance(found, ToolFinished)}
    results = tool_results(server)
    most = None if limit is None else 2000
    assert [(finished[call_id].problem, finished[call_id].content) for call_id, _ in results] == [
        (None, "x" * 10),
        (None, "x" * 11)
        if limit is None
        else ("result", "Error: the tool's result is too long: 11 characters; at most 10 are allowed"),
        ("failed", ("Error: " + "y" * 3000)[:most]),
        ("failed", ("Error: ValueError: " + "z" * 2000)[:most]),
        ("failed", ("Error: " + f"ValueError: {'z' * 1500}; ValueError: {'z' * 1500}"[:2000])[:most]),
    ]
    assert [content for _, content in results] == [finished[call_id].content for call_id, _ in results]


async def test_result_of_a_tool_is_limited_by_default(client: AsyncFriendli, server: FriendliServer) -> None:
    @tool
    async def dump() -> list[int]:
        return [0] * 1_000_000

    server.enqueue(tool_calls(("dump", {})))
    with pytest.raises(ToolError, match=r"too long: 2,000,001 characters; at most 1,000,000 are allowed") as caught:
        await start_run(client, dump, on_tool_error="raise").result()
    assert caught.value.kind == "result"


async def test_call_without_arguments_is_sent_back_with_an_empty_object(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(call_delta(0, "now"), finish("tool_calls"), done()), text("x"))
    result = await start_run(client, now).result()
    assert [content for _, content in tool_results(server)] == ["12:00"]
    call = result.messages[1]["tool_calls"][0]
    assert call["function"]["arguments"] == "{}"


async def test_arguments_truncated_by_the_token_limit_are_rejected(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(
        script(call_delta(0, "weather"), arguments_delta(0, '{"city":"Ro'), finish("length"), done()), text("x")
    )
    result = await start_run(client, weather).result()
    [(_, content)] = tool_results(server)
    assert content.startswith("Error: the arguments are not valid JSON")
    call = result.messages[1]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"invalid_json": '{"city":"Ro'}


# --- nonconforming servers -------------------------------------------------------------------------------------------


async def test_missing_empty_and_duplicate_ids_are_replaced(client: AsyncFriendli, server: FriendliServer) -> None:
    calls: list[dict[str, Any]] = [
        {"index": 0, "function": {"name": "now", "arguments": "{}"}},
        {"index": 1, "id": None, "function": {"name": "now", "arguments": "{}"}},
        {"index": 2, "id": "", "function": {"name": "now", "arguments": "{}"}},
        {"index": 3, "id": "same", "function": {"name": "now", "arguments": "{}"}},
        {"index": 4, "id": "same", "function": {"name": "now", "arguments": "{}"}},
        {"index": 5, "id": "call_1_7", "function": {"name": "now", "arguments": "{}"}},
        {"index": 6, "function": {"name": "now", "arguments": "{}"}},
    ]
    server.enqueue(turn(*(chunk(tool_calls=[call]) for call in calls)))
    await start_run(client, now).result()
    ids = [call_id for call_id, _ in tool_results(server)]
    assert len(set(ids)) == 7
    assert all(ids)
    assert ids[3] == "same"
    requested = server.requests[-1].json_object["messages"][1]["tool_calls"]
    assert [call["id"] for call in requested] == ids


async def test_call_has_an_id_that_no_other_call_of_the_conversation_has(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    earlier = {"id": "call_0", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    given: Conversation = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [earlier]},
        {"role": "tool", "tool_call_id": "call_0", "content": "12:00"},
    ]
    server.enqueue(turn(call_delta(0, "now"), call_delta(1, "now")), turn(call_delta(0, "now"), call_delta(1, "now")))
    run = client.serverless.chat.run(model="m", messages=given, tools=[now])
    events = await events_of(run)
    ids = [call_id for call_id, _ in tool_results(server)]
    assert (ids[0], ids[2]) == ("call_0", "call_1")
    assert len(set(ids)) == 5
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in {*ids} - {"call_0", "call_1"})
    assert sorted(found.call.id for found in events if isinstance(found, ToolFinished)) == sorted(ids[1:])
    assistant = [message for message in run.messages if message.get("tool_calls")]
    assert [call["id"] for message in assistant for call in message["tool_calls"]] == ids


async def test_object_arguments_and_several_calls_in_one_event_are_accepted(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "now", "arguments": None}},
    ]
    choice = {"index": 0, "delta": {"role": "assistant", "content": None, "tool_calls": calls}, "finish_reason": "stop"}
    server.enqueue(script(event({"choices": [choice]}), done()))
    await start_run(client, weather, now).result()
    assert tool_results(server) == [("a", "sunny in Rome"), ("b", "12:00")]


async def test_stream_without_finish_reason_ends_with_its_sentinel(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(call_delta(0, "now"), done()))
    await start_run(client, now).result()
    assert [content for _, content in tool_results(server)] == ["12:00"]


# --- turns -----------------------------------------------------------------------------------------------------------


async def test_turn_limit_raises_with_a_transcript_that_can_be_continued(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(*(tool_calls(("now", {})) for _ in range(3)))
    run = start_run(client, now, max_turns=3)
    seen: list[Any] = []
    with pytest.raises(TurnLimitError, match="turn 3, the last one that max_turns allows") as caught:
        await read_into(seen, run)
    assert summarize(seen)[-1] == "turn 3"
    error = caught.value
    assert error.turns == 3
    assert [message["role"] for message in error.messages] == ["user", *["assistant", "tool"] * 3]
    assert error.usage is not None
    assert error.usage.completion_tokens == 3
    with pytest.raises(TurnLimitError):
        await run.result()
    continued = await client.serverless.chat.complete(model="m", messages=error.messages)
    assert continued.text == "The tool says: 12:00, 12:00, 12:00"
    assert len(server.requests) == 4


async def test_run_may_use_exactly_max_turns(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("now", {})))
    assert (await start_run(client, now, max_turns=2).result()).turns == 2


async def test_tool_knows_the_call_by_which_it_was_called(client: AsyncFriendli, server: FriendliServer) -> None:
    seen: list[ToolCall] = []

    @tool
    async def outer() -> str:
        server.enqueue(tool_calls(("in_thread", {})))
        await start_run(client, in_thread).result()
        seen.append(current_call())
        return "done"

    @tool
    def in_thread() -> None:
        seen.append(current_call())

    server.enqueue(tool_calls(("outer", {})))
    calls = [event.call async for event in start_run(client, outer) if isinstance(event, ToolFinished)]
    assert [call.function.name for call in seen] == ["in_thread", "outer"]
    assert seen[1:] == calls
    with pytest.raises(RuntimeError, match="for tools that a run has called"):
        current_call()


# --- approval --------------------------------------------------------------------------------------------------------


async def test_denied_call_is_not_executed_and_reported_to_the_model(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    requested: list[ToolCall] = []

    def allow(call: ToolCall) -> bool:
        requested.append(call)
        return call.function.name != "fail"

    server.enqueue(tool_calls(("fail", {}), ("now", {}), ("nothing", {})))
    events = await events_of(start_run(client, fail, now, before_tool=allow, on_tool_error="feed"))
    assert "fail: refused" in summarize(events)
    assert "fail started" not in summarize(events)
    assert [call.function.name for call in requested] == ["fail", "now"]
    assert tool_results(server)[0][1] == "Error: the call was refused by the user"
    server.enqueue(tool_calls(("fail", {})))
    await start_run(client, fail, before_tool=lambda call: False, on_tool_error="raise").result()


@pytest.mark.parametrize("decision", [True, False, "defer"])
async def test_call_with_invalid_arguments_fails_without_being_decided_on(
    client: AsyncFriendli, server: FriendliServer, decision: bool | str
) -> None:
    requested: list[str] = []

    def decide(call: ToolCall) -> Any:
        requested.append(call.function.arguments)
        return decision

    server.enqueue(tool_calls(("weather", {"town": "Rome"}), ("weather", '{"city":')), text("Sorry."))
    run = start_run(client, weather, before_tool=decide)
    events = await events_of(run)
    assert requested == []
    assert [event.problem for event in events if isinstance(event, ToolFinished)] == ["arguments", "arguments"]
    assert not any(isinstance(event, ToolStarted) for event in events)
    result = await run.result()
    assert (result.reply.text, result.deferred) == ("Sorry.", ())
    assert tool_results(server)[0][1].startswith("Error: invalid arguments: Object ")
    server.enqueue(tool_calls(("weather", {"city": "Rome"})), text("x"))
    await start_run(client, weather, before_tool=decide).result()
    assert list(map(json.loads, requested)) == [{"city": "Rome"}]


async def test_call_whose_arguments_cannot_be_checked_is_decided_on_and_fails(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    @dataclass
    class City:
        name: str

        def __post_init__(self) -> None:
            raise KeyError(self.name)

    @tool
    async def visit(city: City) -> str:
        return city.name

    server.enqueue(tool_calls(("visit", {"city": {"name": "Rome"}})), text("Sorry."))
    requested: list[ToolCall] = []

    def approve(call: ToolCall) -> bool:
        requested.append(call)
        return True

    run = start_run(client, visit, before_tool=approve)
    errors = [event.problem for event in await events_of(run) if isinstance(event, ToolFinished)]
    assert (len(requested), errors) == (1, ["failed"])


async def test_approvals_are_requested_one_at_a_time_while_the_stream_continues(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    may_approve, resume = asyncio.Event(), asyncio.Event()
    pending: list[str] = []
    peak = 0

    async def allow(call: ToolCall) -> bool:
        nonlocal peak
        pending.append(call.function.arguments)
        peak = max(peak, len(pending))
        await may_approve.wait()
        pending.remove(call.function.arguments)
        return True

    calls = [call_delta(number, "weather", arguments=f'{{"city":"{number}"}}') for number in range(3)]
    server.enqueue(turn(*calls, gate(resume), chunk("said meanwhile")), text("x"))
    run = start_run(client, weather, before_tool=allow)
    for _ in range(2):
        await read_until(run, ChatChunk)
    resume.set()
    async with asyncio.timeout(30):
        async for found in run:
            if isinstance(found, ChatChunk) and found.text == "said meanwhile":
                break
    assert len(pending) == 1
    may_approve.set()
    await events_of(run)
    assert peak == 1
    assert [content for _, content in tool_results(server)] == ["sunny in 0", "sunny in 1", "sunny in 2"]


async def test_invalid_or_failing_approval_ends_the_run(client: AsyncFriendli, server: FriendliServer) -> None:
    def returns_none(call: ToolCall) -> Any:
        return None

    def raises(call: ToolCall) -> bool:
        raise LookupError("who is that?")

    async def raises_stop(call: ToolCall) -> bool:
        raise StopAsyncIteration  # must not be taken for the end of the run

    for before, kind in ((returns_none, TypeError), (raises, LookupError), (raises_stop, RuntimeError)):
        server.enqueue(tool_calls(("now", {})))
        run = start_run(client, now, before_tool=before)
        with pytest.raises(kind):
            await events_of(run)
        with pytest.raises(StreamInterruptedError, match="the run failed"):
            await run.result()
    await assert_idle(client, server)


class Exit(BaseException):
    """Propagates as KeyboardInterrupt does, but does not stop the event loop."""


@pytest.mark.parametrize("error", [Exit, GeneratorExit])
@pytest.mark.parametrize("in_coroutine", [False, True])
async def test_exit_raised_by_an_approval_ends_the_run_and_its_stream(
    client: AsyncFriendli, server: FriendliServer, error: type[BaseException], in_coroutine: bool
) -> None:
    def leave(call: ToolCall) -> bool:
        raise error

    async def leave_async(call: ToolCall) -> bool:
        raise error

    server.enqueue(turn(call_delta(0, "now", arguments="{}"), call_delta(1, "now"), stall()))
    run = start_run(client, now, before_tool=leave_async if in_coroutine else leave)
    with pytest.raises(error):
        await with_timeout(run.result())
    assert repr(run) == "<Run closed, 0 turns>"
    with pytest.raises(StreamInterruptedError, match="the run failed"):
        await run.result()
    await assert_idle(client, server)


async def test_exit_raised_by_a_token_callable_ends_the_run(server: FriendliServer) -> None:
    def leave() -> str:
        raise GeneratorExit

    async with AsyncFriendli(leave, server_url=server.url) as client:
        run = start_run(client, now)
        with pytest.raises(GeneratorExit):
            await run.result()
        assert repr(run) == "<Run closed, 0 turns>"


async def test_no_other_approval_is_asked_for_once_one_has_failed(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    asked: list[str] = []

    async def approve(call: ToolCall) -> bool:
        asked.append(call.function.name)
        await run_loop_iterations(50)  # the next call waits for its approval now
        raise LookupError("nobody is there")

    server.enqueue(tool_calls(("now", {}), ("weather", {"city": "Rome"})))
    with pytest.raises(LookupError):
        await start_run(client, now, weather, before_tool=approve).result()
    assert asked == ["now"]


async def test_approval_gives_the_model_a_reason_by_raising_tool_error(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    def refuse(call: ToolCall) -> bool:
        raise ToolError("not on Fridays", kind="refused")

    server.enqueue(tool_calls(("now", {})), text("Sorry"))
    run = start_run(client, now, before_tool=refuse, on_tool_error="raise")
    assert summarize(await events_of(run)) == ["now: refused", "turn 1", "turn 2"]
    assert [content for _, content in tool_results(server)] == ["Error: not on Fridays"]


async def test_cancelled_approval_refuses_the_call(client: AsyncFriendli, server: FriendliServer) -> None:
    async def awaits_cancelled(call: ToolCall) -> bool:
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        answer.cancel()
        return await answer

    async def cancels_its_task(call: ToolCall) -> bool:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return True

    def raises(call: ToolCall) -> bool:
        raise asyncio.CancelledError

    for before in (awaits_cancelled, cancels_its_task, raises):
        server.enqueue(tool_calls(("now", {})), text("Sorry"))
        run = start_run(client, now, before_tool=before, on_tool_error="raise")
        assert summarize(await events_of(run)) == ["now: refused", "turn 1", "turn 2"]
        assert tool_results(server)[0][1] == "Error: the call was refused: its approval was cancelled"
    await assert_idle(client, server)


async def test_approval_that_suppresses_the_cancellation_of_its_run_starts_no_tool(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    asked = asyncio.Event()
    called: list[str] = []

    @tool
    async def pay() -> str:
        called.append("pay")
        return "paid"

    async def allow(call: ToolCall) -> bool:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return True

    server.enqueue(turn(call_delta(0, "pay")))
    run = start_run(client, pay, before_tool=allow)
    reading = asyncio.ensure_future(run.result())
    await with_timeout(asked.wait())
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert (called, run.messages) == ([], MESSAGES)
    await assert_idle(client, server)


@pytest.mark.parametrize("turns", [0, 5], ids=["before its first step", "during its approval"])
async def test_call_that_its_run_cancels_before_the_tool_is_called_is_reported_as_not_called(turns: int) -> None:
    async def never(_: ToolCall) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    calls = ToolRunner({"now": now}, RunSettings(before_tool=never), RunReporter(None))
    call = ToolCall("1", function=FunctionCall("now", "{}"))
    calls.start(call)
    await run_loop_iterations(turns)
    await calls.stop(wait=True)
    assert list(calls.contents()) == [(call, "Error: the run was stopped before the tool was called")]
    assert not calls.events


async def test_tool_that_cancels_its_task_has_failed(client: AsyncFriendli, server: FriendliServer) -> None:
    @tool
    async def cancels_its_task() -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    @tool
    async def awaits_cancelled() -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        answer.cancel()
        return await answer

    server.enqueue(tool_calls(("cancels_its_task", {}), ("awaits_cancelled", {})), text("Sorry"))
    run = start_run(client, cancels_its_task, awaits_cancelled)
    await events_of(run)
    assert [content for _, content in tool_results(server)] == ["Error: the tool was cancelled"] * 2
    assert (await run.result()).reply.text == "Sorry"
    server.enqueue(tool_calls(("cancels_its_task", {})))
    with pytest.raises(ToolError, match="the tool was cancelled"):
        await events_of(start_run(client, cancels_its_task, on_tool_error="raise"))
    await assert_idle(client, server)


@pytest.mark.parametrize("when", ["before its first step", "while it waits"])
async def test_call_that_is_cancelled_but_not_by_its_run_has_failed(
    client: AsyncFriendli, waiter: Waiter, when: str
) -> None:
    run = start_run(client, waiter.wait, concurrency=1)
    calls, call = run._runner, ToolCall("2", "function", FunctionCall("wait", ""))
    calls.start(ToolCall("1", "function", FunctionCall("wait", "")))
    await waiter.started.wait()
    others = asyncio.all_tasks()
    calls.start(call)
    if when == "while it waits":
        await run_loop_iterations(2)
    [task] = asyncio.all_tasks() - others
    task.cancel()
    await run_loop_iterations()
    waiter.may_finish.set()
    while calls.has_running:
        await with_timeout(calls.wait())
    assert summarize(run._events) == ["wait started", "wait: failed", "wait finished"]
    assert [content for _, content in calls.contents()] == ["w", "Error: the tool was cancelled"]


@pytest.mark.parametrize("where", ["tool", "approval"])
async def test_tool_error_that_cannot_be_reported_ends_the_run(
    client: AsyncFriendli, server: FriendliServer, where: str
) -> None:
    class BrokenError(ToolError):
        def __str__(self) -> str:
            raise LookupError("no message")

    @tool
    async def breaks() -> str:
        raise BrokenError

    def approve(call: ToolCall) -> bool:
        if where == "approval":
            raise BrokenError
        return True

    server.enqueue(tool_calls(("breaks", {})))
    with pytest.raises(LookupError, match="no message"):
        await events_of(start_run(client, breaks, before_tool=approve))
    await assert_idle(client, server)


async def test_base_exception_in_a_tool_ends_the_run(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    @tool
    async def assert_something() -> str:
        await waiter.started.wait()
        pytest.fail("in a test's own tool")

    server.enqueue(tool_calls(("assert_something", {}), ("wait", {})))
    with pytest.raises(pytest.fail.Exception, match="in a test's own tool"):
        await events_of(start_run(client, assert_something, waiter.wait))
    assert waiter.log == ["w started", "w cancelled"]
    await assert_idle(client, server)


# --- input validation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tools": [weather, weather]}, ValueError, r"tools\[1\]: duplicate tool name 'weather'"),
        ({"tools": [{"type": "function", "function": {"name": "x"}}]}, TypeError, r"tools\[0\]: a dict is not a"),
        ({"tools": [len]}, TypeError, "is not a runnable tool"),
        ({"tools": {"weather": weather}}, ValueError, "tools: Expected a list"),
        ({"tools": "weather"}, ValueError, "tools: Expected a list"),
        ({"tools": weather}, ValueError, "tools: Expected a list"),
        ({"n": 2}, ValueError, "n: a run supports only one choice"),
        ({"extra_body": {"n": 2}}, ValueError, "n: a run supports only one choice"),
        ({"extra_body": {"messages": []}}, ValueError, "extra_body.messages: cannot be set here"),
        ({"extra_body": {"tools": []}}, ValueError, "extra_body.tools: cannot be set here"),
        ({"max_turns": 0}, ValueError, "max_turns"),
        ({"concurrency": True}, ValueError, "concurrency"),
        ({"tool_timeout": 0}, ValueError, "tool_timeout"),
        ({"tool_timeout": "30"}, ValueError, "tool_timeout"),
        ({"max_tool_result": 0}, ValueError, "max_tool_result"),
        ({"on_tool_error": "ignore"}, ValueError, "on_tool_error"),
        ({"before_tool": True}, ValueError, "before_tool"),
        ({"between_turns": [1]}, ValueError, "between_turns"),
        ({"max_turn": 3}, TypeError, r"unexpected keyword argument 'max_turn'; did you mean 'max_turns'"),
        ({"max_steps": 3}, TypeError, r"unexpected keyword argument 'max_steps'; use 'max_turns'"),
        ({"stream": True}, TypeError, r"run\(\) does not accept 'stream'"),
        ({"temperature": "hot"}, ValueError, "temperature: "),
        ({"messages": [{"role": "owl"}]}, ValueError, r"messages\[0\]"),
        ({"messages": "Hi"}, ValueError, "messages: "),
        ({"tool_choice": 3}, ValueError, "tool_choice"),
    ],
)  # fmt: skip
async def test_invalid_input_is_rejected_before_sending(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        client.serverless.chat.run(**{"model": "m", "messages": MESSAGES, "tools": [weather], **options})
    assert server.requests == []


# --- stream errors ---------------------------------------------------------------------------------------------------


async def test_entering_raises_errors_from_opening(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(500))
    with pytest.raises(InternalServerError):
        async with start_run(client, weather):
            pytest.fail("entered")
    await assert_idle(client, server)


async def test_drain_lets_a_run_finish_whose_tool_is_running(client: AsyncFriendli, server: FriendliServer) -> None:
    started, may_call = asyncio.Event(), asyncio.Event()

    @tool
    async def ask_model() -> str:
        """Makes a call itself."""
        started.set()
        await may_call.wait()
        return (await client.serverless.chat.complete(model="m", messages=MESSAGES)).text

    server.enqueue(turn(call_delta(0, "ask_model")), text("inner"), text("outer"))
    reading = asyncio.ensure_future(start_run(client, ask_model).result())
    await with_timeout(started.wait())
    await wait_until(lambda: client.gauges().in_use == 0)
    drain = asyncio.ensure_future(client.drain())
    await run_loop_iterations(50)
    with pytest.raises(ConfigurationError, match="draining"):
        await start_run(client, ask_model).result()
    assert not drain.done()
    may_call.set()
    assert (await with_timeout(reading)).reply.text == "outer"
    assert await with_timeout(drain) == 0
    assert tool_results(server) == [("call_0", "inner")]


@pytest.mark.parametrize("end", ["complete", "close", "drop"])
async def test_run_whose_tools_run_is_in_the_gauges_until_its_next_call(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, end: str
) -> None:
    server.enqueue(turn(call_delta(0, "wait")), script(chunk("a"), stall()) if end != "complete" else text("a"))
    run = start_run(client, waiter.wait)
    before = client.gauges()
    await read_until(run, ToolStarted)
    await wait_until(lambda: client.gauges().in_use == 0)
    during = client.gauges()
    assert (before.runs_between_calls, during.runs_between_calls, during.calls_in_flight) == (0, 1, 0)
    assert [each.runs_between_calls for each in during.loops] == [1]
    waiter.may_finish.set()
    while not isinstance(event := await with_timeout(anext(run)), ChatChunk) or event.text != "a":
        pass
    assert client.gauges().runs_between_calls == 0
    if end == "complete":
        await run.result()
    elif end == "close":
        await run.aclose()
    del run
    await wait_until(lambda: client.gauges().in_use == 0)
    assert client.gauges().runs_between_calls == 0


@pytest.mark.parametrize("end", ["complete", "close", "drop"])
async def test_drain_does_not_wait_for_a_run_that_has_ended(
    client: AsyncFriendli, server: FriendliServer, end: str
) -> None:
    server.enqueue(turn(call_delta(0, "now")), text("good"))
    run = start_run(client, now)
    await read_until(run, TurnEnded)
    if end == "complete":
        await run.result()
    elif end == "close":
        await run.aclose()
    else:
        del run
    assert await with_timeout(client.drain()) == 0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("end", ["drain", "close"])
async def test_drain_timeout_and_closing_the_client_interrupt_a_run_whose_tool_is_running(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, end: str, streaming: bool
) -> None:
    waiter.may_clean_up.clear()
    calls = (call_delta(0, "wait", arguments="{}"), call_delta(1, "wait", arguments="{}"))
    server.enqueue(script(*calls, stall()) if streaming else turn(*calls))
    run = start_run(client, waiter.wait)
    reading = asyncio.ensure_future(run.result())
    await with_timeout(waiter.started.wait())
    await wait_until(lambda: client.gauges().in_use == streaming)
    await run_loop_iterations(20)
    if end == "drain":
        assert await with_timeout(client.drain(0.01)) == 1
    else:
        await with_timeout(client.aclose())
    await run_loop_iterations(50)
    assert not reading.done()  # it waits for the tools
    waiter.may_clean_up.set()
    with pytest.raises(StreamInterruptedError, match="was drained" if end == "drain" else "was closed") as caught:
        await with_timeout(reading)
    assert caught.value.draining
    assert (caught.value.partial is not None) == streaming
    assert waiter.running == 0
    assert "w finished" not in waiter.log
    assert len(server.requests) == 1


async def test_drain_waits_for_a_run_whose_tool_has_run_an_event_loop_of_its_own(
    client: AsyncFriendli, server: FriendliServer, remote: FriendliServer, waiter: Waiter
) -> None:
    async def call_model() -> str:
        async with client_of(remote.url) as own:
            return (await own.serverless.chat.complete(model="m", messages=MESSAGES)).text

    @tool
    def ask_model() -> str:
        """Makes a call in a thread."""
        return asyncio.run(call_model())

    remote.enqueue(text("inner"))
    server.enqueue(turn(call_delta(0, "ask_model"), call_delta(1, "wait")))
    run = start_run(client, ask_model, waiter.wait)
    assert (await read_until(run, ToolFinished)).content == "inner"
    reading = asyncio.ensure_future(run.result())
    assert await with_timeout(client.drain(0.01)) == 1
    with pytest.raises(StreamInterruptedError, match="was drained"):
        await with_timeout(reading)
    assert waiter.log == ["w started", "w cancelled"]


@pytest.mark.parametrize("which", ["of its own", "of the run"])
async def test_tool_may_drain_a_client_without_waiting_for_its_own_run(
    client: AsyncFriendli, server: FriendliServer, which: str
) -> None:
    @tool
    async def ask_model() -> str:
        drained = client_of(server.url) if which == "of its own" else client
        answer = (await drained.serverless.chat.complete(model="m", messages=MESSAGES)).text
        await drained.drain()
        return answer

    server.enqueue(turn(call_delta(0, "ask_model")), text("inner"), text("outer"))
    run = start_run(client, ask_model)
    if which == "of its own":
        assert (await with_timeout(run.result())).reply.text == "outer"
    else:
        with pytest.raises(StreamInterruptedError, match="was drained"):
            await with_timeout(run.result())
    assert [message["content"] for message in run.messages][2:3] == ["inner"]


async def test_drain_timeout_cancels_the_tools_of_a_run_that_nobody_reads(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    run = await busy_run(client, server, waiter)
    assert await with_timeout(client.drain(0.01)) == 1
    await wait_until(lambda: waiter.running == 0)
    with pytest.raises(StreamInterruptedError, match="was drained"):
        await events_of(run)


async def test_next_turn_of_a_run_fails_once_a_drain_has_timed_out(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(turn(call_delta(0, "now")))
    run = start_run(client, now)
    await read_until(run, TurnEnded)
    assert await with_timeout(client.drain(0.01)) == 1
    with pytest.raises(ConfigurationError, match="draining"):
        await with_timeout(run.result())
    assert len(server.requests) == 1


async def test_drain_timeout_counts_a_run_that_reads_a_later_answer_once(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(turn(call_delta(0, "now")), script(chunk("a"), stall()))
    run = start_run(client, now)
    await read_until(run, TurnEnded)
    await read_until(run, ChatChunk)
    assert await with_timeout(client.drain(0.01)) == 1


@pytest.mark.parametrize("tool_fails", [False, True])
async def test_later_answer_that_has_begun_is_in_the_partial_of_a_run_that_fails_while_its_tool_runs(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, tool_fails: bool
) -> None:
    @tool
    async def fail() -> str:
        raise RuntimeError

    name = "fail" if tool_fails else "wait"
    calls = (call_delta(0, name, arguments="{}"), call_delta(1, name, arguments="{}"))
    server.enqueue(turn(call_delta(0, "now")), script(chunk("a"), *calls, stall()))
    run = start_run(client, now, waiter.wait, fail, on_tool_error="raise")
    reading = asyncio.ensure_future(run.result())
    if not tool_fails:
        await with_timeout(waiter.started.wait())
        await client.aclose()
    with pytest.raises((ToolError, StreamInterruptedError)) as caught:
        await with_timeout(reading)
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert len(server.requests) == 2


async def test_answer_that_has_arrived_when_the_client_is_closed_is_delivered_but_starts_no_tool(
    server: FriendliServer, waiter: Waiter
) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "wait", "arguments": "{}"}}
    for delta in ({"content": "good"}, {"tool_calls": [call, {**call, "index": 1, "id": "2"}]}):
        frame = json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]})
        server.enqueue(script(raw(f"data: {frame}\n\ndata: [DONE]\n\n".encode()), stall()))
        client = client_of(server.url)
        async with start_run(client, waiter.wait) as run:
            await client.aclose()
            if "content" in delta:
                assert (await with_timeout(run.result())).reply.text == "good"
            else:
                with pytest.raises(StreamInterruptedError, match="was closed"):
                    await with_timeout(run.result())
                assert run.messages == MESSAGES
    assert waiter.log == []


async def test_closing_the_client_that_a_tool_uses_does_not_interrupt_the_run(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    @tool
    async def ask_model() -> str:
        """Makes a call with a client of its own."""
        async with client_of(server.url) as own:
            return (await own.serverless.chat.complete(model="m", messages=MESSAGES)).text

    server.enqueue(turn(call_delta(0, "ask_model")), text("inner"), text("outer"))
    assert (await with_timeout(start_run(client, ask_model).result())).reply.text == "outer"


@pytest.mark.parametrize(
    ("ending", "kind"), [(cut(), StreamInterruptedError), (event({"error": {"message": "no", "code": 500}}), Exception)]
)
async def test_stream_interrupted_mid_turn_cancels_the_tools(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, ending: Step, kind: type[Exception]
) -> None:
    started = waiter.started
    server.enqueue(
        tool_calls(("now", {})),
        script(chunk("Let me see"), call_delta(0, "wait", arguments="{}"), call_delta(1, "now"), gate(started), ending),
    )
    run = start_run(client, now, waiter.wait)
    with pytest.raises(kind) as caught:
        await events_of(run)
    assert waiter.log == ["w started", "w cancelled"]
    partial = getattr(caught.value, "partial", None)
    assert partial is not None
    assert (partial.text, [call.function.name for call in partial.tool_calls]) == ("Let me see", ["wait", "now"])
    roles = [message["role"] for message in run.messages]
    assert roles == ["user", *["assistant", "tool"] * 2]
    assert run.turns == 1
    for read in (events_of(run), run.result()):
        with pytest.raises(type(caught.value)) as again:
            await read
        assert str(again.value) == str(caught.value)
    await assert_idle(client, server)


# --- turns that end early --------------------------------------------------------------------------------------------

UNFINISHED = "Error: the run was stopped before the tool finished; it may have taken effect"
NOT_CALLED = "Error: the run was stopped before the tool was called"


async def end_early(client: AsyncFriendli, run: Run, waiter: Waiter, end: str) -> None:
    """Ends a run whose answer has arrived and whose tools wait, unless it ends by itself, and checks the error."""
    limit = asyncio.timeout(None)

    async def read() -> None:
        async with limit:
            await run.result()

    reading = asyncio.ensure_future(read())
    if end not in ("cut", "raise"):
        await wait_until(lambda: run._reply is not None and waiter.running == 2)
    if end == "cancel":
        reading.cancel()
    elif end == "deadline":
        limit.reschedule(0)
    elif end == "close":
        await run.aclose()
    elif end == "drain":
        assert await client.drain(0.01) == 1
    kinds = {"cancel": asyncio.CancelledError, "deadline": TimeoutError, "raise": ToolError}
    with pytest.raises(kinds.get(end, StreamInterruptedError)) as caught:
        await with_timeout(reading)
    if isinstance(caught.value, ToolError):
        assert (caught.value.messages, caught.value.usage) == (run.messages, run.usage)


@pytest.mark.parametrize("end", ["cancel", "deadline", "close", "raise", "cut", "drain"])
async def test_turn_that_ends_early_is_in_the_transcript_so_that_its_tools_are_not_called_again(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, end: str
) -> None:
    paid: list[int] = []

    @tool
    async def pay(amount: int) -> str:
        """Pays."""
        paid.append(amount)
        return "paid"

    @tool
    async def stop() -> str:
        """Fails once the answer has arrived, or waits."""
        if end == "raise":
            await wait_until(lambda: run._reply is not None)
            raise ValueError("stop")
        return await waiter.wait("stop")

    calls = [
        call_delta(0, "pay", arguments='{"amount": 5}'),
        call_delta(1, "wait", arguments="{}"),
        call_delta(2, "stop", arguments="{}"),
        call_delta(3, "pay", arguments='{"amount": 7}'),
    ]
    if end == "cut":
        last = script(chunk("I pay"), *calls, usage(10, 5), gate(waiter.started), cut())
    else:
        last = turn(chunk("I pay"), *calls)
    server.enqueue(turn(call_delta(0, "now", id="earlier")), last)
    run = start_run(client, now, pay, waiter.wait, stop, concurrency=2, on_tool_error="raise", tool_timeout=None)
    await end_early(client, run, waiter, end)
    assert (run.turns, run.usage and run.usage.total_tokens) == (1, 30)
    answer, *results = run.messages[3:]
    assert isinstance(answer, dict)
    assert answer["content"] == "I pay"
    stopped = "Error: ValueError: stop" if end == "raise" else UNFINISHED
    contents = [(message["tool_call_id"], message["content"]) for message in results]
    expected = [("call_0", "paid"), ("call_1", UNFINISHED), ("call_2", stopped), ("call_3", NOT_CALLED)]
    assert contents == expected[: 3 if end == "cut" else 4]  # the arguments of the last call may be incomplete
    assert [call["id"] for call in answer["tool_calls"]] == [call_id for call_id, _ in contents]
    resumed = json.loads(json.dumps(run.messages))

    async with client_of(server.url) as other:
        server.enqueue(text("done"))
        again = other.serverless.chat.run(model="m", messages=resumed, tools=[now, pay, waiter.wait, stop])
        assert (await again.result()).reply.text == "done"
    assert server.requests[-1].json_object["messages"] == resumed
    assert paid == [5]


async def test_failed_tool_ends_the_run_after_the_usage_of_the_answer_has_arrived(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    cancelled = asyncio.Event()

    @tool
    async def wait() -> None:
        """Waits to be cancelled."""
        try:
            await waiter.wait()
        finally:
            cancelled.set()

    calls = [call_delta(0, "wait", arguments="{}"), call_delta(1, "fail", arguments="{}"), call_delta(2, "now")]
    server.enqueue(script(*calls, finish("tool_calls"), gate(cancelled), usage(10, 5), done()))
    run = start_run(client, wait, fail, now, on_tool_error="raise", concurrency=2)
    with pytest.raises(ToolError) as caught:
        await with_timeout(run.result())
    assert caught.value.usage is not None
    assert caught.value.usage.total_tokens == 15
    contents = [message["content"] for message in caught.value.messages[2:]]
    assert contents == [UNFINISHED, "Error: ValueError: no such city", NOT_CALLED]


SIGNED: Final = {"type": "reasoning.text", "index": 0, "text": "to look up", "signature": "s"}


def choice_delta(delta: dict[str, Any]) -> Step:
    return event({"choices": [{"index": 0, "delta": delta}]})


@pytest.mark.parametrize(
    ("delta", "answer"),
    [
        (chunk("I look"), {"content": "I look"}),
        (chunk(reasoning="to look up"), {"content": None, "reasoning_content": "to look up"}),
        (choice_delta({"reasoning": "to look"}), {"content": None, "reasoning": "to look"}),
        (choice_delta({"reasoning_details": [SIGNED]}), {"content": None, "reasoning_details": (SIGNED,)}),
        (choice_delta({"refusal": "I will not"}), {"content": "I will not"}),
        (choice_delta({"content": "Sorry.", "refusal": "No."}), {"content": "Sorry.\n\nNo."}),
    ],
)
async def test_turn_that_ends_early_is_in_the_transcript_with_all_that_the_model_said_so_far(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, delta: Step, answer: dict[str, Any]
) -> None:
    calls = (call_delta(0, "wait", arguments="{}"), call_delta(1, "now"))
    server.enqueue(script(delta, *calls, gate(waiter.started), cut()))
    run = start_run(client, waiter.wait, now)
    with pytest.raises(StreamInterruptedError):
        await with_timeout(run.result())
    message: Any = run.messages[1]
    del message["tool_calls"]
    assert message == {"role": "assistant", **answer}


async def test_turn_that_ends_early_before_a_tool_was_called_is_not_in_the_transcript(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    async def never(call: ToolCall) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    server.enqueue(turn(call_delta(0, "now")))
    run = start_run(client, now, before_tool=never)
    reading = asyncio.ensure_future(run.result())
    await with_timeout(wait_until(lambda: run.usage is not None))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert run.messages == MESSAGES
    assert run.usage is not None
    assert run.usage.total_tokens == 15


def stubborn_tool(waiter: Waiter) -> LocalTool:
    """Returns a tool that waits until it is cancelled, and then returns a result."""

    @tool
    async def stubborn() -> str:
        try:
            return await waiter.wait()
        except asyncio.CancelledError:
            return "late"

    return stubborn


async def test_result_of_a_tool_that_finishes_while_it_is_cancelled_is_in_the_transcript(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    server.enqueue(turn(call_delta(0, "stubborn"), call_delta(1, "fail")))
    run = start_run(client, stubborn_tool(waiter), fail, on_tool_error="raise")
    with pytest.raises(ToolError) as caught:
        await run.result()
    assert caught.value.messages == run.messages
    assert [message["content"] for message in caught.value.messages[2:]] == ["late", "Error: ValueError: no such city"]


# --- closing and cancellation ----------------------------------------------------------------------------------------


async def busy_run(client: AsyncFriendli, server: FriendliServer, waiter: Waiter) -> Run:
    """Returns a run with an open stream and a running tool."""
    server.enqueue(script(call_delta(0, "wait", arguments="{}"), call_delta(1, "now"), stall()))
    run = start_run(client, waiter.wait, now)
    await read_until(run, ToolStarted)
    await with_timeout(waiter.started.wait())
    return run


async def leave(run: Run) -> None:
    async with run:
        pass


@pytest.mark.parametrize("stop", [Run.aclose, leave])
async def test_closing_cancels_stream_and_tools_and_waits_for_the_tools(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, stop: Any
) -> None:
    waiter.may_clean_up.clear()
    run = await busy_run(client, server, waiter)
    leaving = asyncio.create_task(stop(run))
    await server.wait_for_connections(0, timeout=30)
    assert not leaving.done()
    waiter.may_clean_up.set()
    await with_timeout(leaving)
    assert waiter.log == ["w started", "w cancelled"]
    assert [found async for found in run] == []
    with pytest.raises(StreamInterruptedError, match="closed before it was complete") as caught:
        await run.result()
    assert caught.value.partial is not None
    await run.aclose()
    await assert_idle(client, server)


@pytest.mark.parametrize(
    ("until", "sent"),
    [
        (None, False),
        ("no token", False),
        ("no second token", True),
        (ChatChunk, True),
        (ToolStarted, True),
        (TurnEnded, True),
    ],
)
async def test_run_that_ends_early_says_whether_a_request_may_have_been_sent(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, until: Any, sent: bool
) -> None:
    calls = call_delta(0, "wait", arguments="{}")
    has_turn = until in {TurnEnded, "no second token"}
    server.enqueue(turn(call_delta(0, "now")) if has_turn else turn(chunk("Hm."), calls))
    tokens = ["flp_1"] if has_turn else []
    run = start_run(client.with_options(token=tokens.pop) if isinstance(until, str) else client, waiter.wait, now)
    if isinstance(until, str):
        with pytest.raises(IndexError):
            await run.result()
    elif until is not None:
        await read_until(run, until)
    reading = asyncio.create_task(run.result()) if until is ToolStarted else None
    if reading is not None:
        await with_timeout(wait_until(lambda: run._reply is not None))
    await run.aclose()
    with pytest.raises(StreamInterruptedError) as raised:
        await (reading or run.result())
    assert (raised.value.sent, bool(server.requests)) == (sent, sent)


async def test_closed_run_yields_neither_unread_events_nor_the_error_of_a_cancelled_read(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    calls = (call_delta(0, "wait", arguments="{}"), call_delta(1, "now", arguments="{}"))
    server.enqueue(script(*calls, finish("tool_calls"), stall()))
    run = start_run(client, waiter.wait, now)
    for _ in range(2):
        await read_until(run, ToolStarted)
    await with_timeout(wait_until(lambda: bool(run._events)))
    await run.aclose()
    assert await events_of(run) == []

    run = await busy_run(client, server, Waiter())
    reading = asyncio.create_task(events_of(run))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await run.aclose()
    assert await events_of(run) == []


async def test_cancelled_read_waits_for_the_tools_and_is_reported_by_later_reads(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    waiter.may_clean_up.clear()
    run = await busy_run(client, server, waiter)
    reading = asyncio.create_task(events_of(run))
    await asyncio.sleep(0)
    reading.cancel()
    await server.wait_for_connections(0, timeout=30)
    for _ in range(5):
        await asyncio.sleep(0)
        reading.cancel()  # repeated cancellation must not abandon the tool
    assert not reading.done()
    waiter.may_clean_up.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert waiter.log == ["w started", "w cancelled"]
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match="a read of the run was cancelled"):
            await anext(run)
    await assert_idle(client, server)


async def test_second_block_after_a_cancelled_read_is_no_empty_answer(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    run = await busy_run(client, server, waiter)

    async def loop() -> None:
        async with run:
            await events_of(run)

    reading = asyncio.create_task(loop())
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match="a read of the run was cancelled"):
            await loop()
    await run.aclose()
    await loop()
    await assert_idle(client, server)


async def test_error_whose_read_is_cancelled_while_the_tools_end_is_raised_by_the_next_read(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    waiter.may_clean_up.clear()
    calls = (call_delta(0, "wait", arguments="{}"), call_delta(1, "now"))
    server.enqueue(script(*calls, gate(waiter.started), cut()))
    run = start_run(client, waiter.wait, now)
    reading = asyncio.create_task(events_of(run))
    await wait_until(lambda: run._state.error is not None)
    reading.cancel()
    await run_loop_iterations(5)
    assert not reading.done()
    waiter.may_clean_up.set()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match="the connection broke"):
            await anext(run)
    await assert_idle(client, server)


async def test_caller_timeout_ends_the_run(client: AsyncFriendli, server: FriendliServer, waiter: Waiter) -> None:
    run = await busy_run(client, server, waiter)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run.result()
    assert waiter.log == ["w started", "w cancelled"]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await assert_idle(client, server)


@pytest.mark.parametrize("way", ["closed", "read cancelled"])
async def test_result_of_a_tool_that_suppresses_cancellation_is_discarded(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter, way: str
) -> None:
    server.enqueue(tool_calls(("stubborn", {})))
    run = start_run(client, stubborn_tool(waiter))
    reader = asyncio.create_task(events_of(run))
    await with_timeout(waiter.started.wait())
    await run_loop_iterations(5)  # now the reader waits for the tool
    if way == "closed":
        await with_timeout(run.aclose())
    else:
        reader.cancel()
    with pytest.raises((StreamInterruptedError, asyncio.CancelledError)):
        await reader
    seen: list[Any] = []
    if way == "closed":
        await read_into(seen, run)
    else:
        with pytest.raises(StreamInterruptedError, match="cancelled"):
            await read_into(seen, run)
    assert seen == []
    await assert_idle(client, server)


async def test_anyio_cancel_scope_ends_the_run(client: AsyncFriendli, server: FriendliServer, waiter: Waiter) -> None:
    waiter.may_clean_up.clear()
    run = await busy_run(client, server, waiter)
    asyncio.get_running_loop().call_later(0.05, waiter.may_clean_up.set)
    with anyio.move_on_after(0.01) as scope:
        await run.result()
    assert scope.cancelled_caught
    assert waiter.log == ["w started", "w cancelled"]
    await assert_idle(client, server)


async def test_run_in_a_task_group_raises_its_own_error(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("fail", {}), ("never_ends", {})))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(start_run(client, fail, never_ends, on_tool_error="raise").result())
    assert [type(error) for error in caught.value.exceptions] == [ToolError]
    await assert_idle(client, server)


async def test_closing_wakes_a_reader_that_waits_for_tools(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    server.enqueue(tool_calls(("wait", {})))
    run = start_run(client, waiter.wait)
    await read_until(run, ToolStarted)
    reading = asyncio.create_task(events_of(run))
    await server.idle(timeout=30)
    await run_loop_iterations()
    with pytest.raises(RuntimeError, match="another task is already waiting"):
        await anext(run)
    await with_timeout(run.aclose())
    with pytest.raises(StreamInterruptedError, match="closed"):
        await with_timeout(reading)
    assert waiter.log == ["w started", "w cancelled"]
    await assert_idle(client, server)


async def close_in_task(run: Run) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(run.aclose())


@pytest.mark.parametrize("close", [Run.aclose, close_in_task, None])
async def test_tool_that_closes_its_run_or_the_client_is_cancelled_itself(
    client: AsyncFriendli, server: FriendliServer, close: Any
) -> None:
    runs: list[Run] = []

    @tool
    async def give_up() -> None:
        await run_loop_iterations(5)  # until the reader waits for the tool
        await (client.aclose() if close is None else close(runs[0]))
        await asyncio.get_running_loop().create_future()

    server.enqueue(tool_calls(("give_up", {})))
    runs.append(start_run(client, give_up, tool_timeout=None))
    with pytest.raises(StreamInterruptedError, match="closed"):
        await events_of(runs[0])
    await assert_idle(client, server)


async def test_tools_that_close_their_run_do_not_wait_for_each_other(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    runs: list[Run] = []
    both_run = asyncio.Barrier(2)

    @tool
    async def give_up() -> str:
        try:
            await both_run.wait()
        finally:
            await runs[0].aclose()
        return "never seen"

    server.enqueue(tool_calls(("give_up", {}), ("give_up", {})))
    runs.append(start_run(client, give_up))
    with pytest.raises(StreamInterruptedError, match="closed"):
        await events_of(runs[0])
    await assert_idle(client, server)


async def test_worker_thread_is_not_waited_for(client: AsyncFriendli, server: FriendliServer) -> None:
    started, may_finish, ended = threading.Event(), threading.Event(), threading.Event()

    @tool
    def block() -> str:
        started.set()
        may_finish.wait(30)
        ended.set()
        return "dropped"

    server.enqueue(tool_calls(("block", {})))
    run = start_run(client, block)
    await read_until(run, ToolStarted)
    await anyio.to_thread.run_sync(started.wait, 30)
    await with_timeout(run.aclose())
    assert not ended.is_set()
    may_finish.set()
    assert await anyio.to_thread.run_sync(ended.wait, 30)
    await assert_idle(client, server)


@pytest.mark.parametrize(
    ("fault", "logged"),
    [
        ("hangs", "the tool 'bad' did not finish within 0.05 s"),
        ("unserializable", "the tool 'bad' failed: the tool's result cannot be serialized: object is not JSON"),
        ("too long", "the tool 'bad' failed: "),
    ],
)
async def test_call_that_fails_through_a_fault_of_the_tool_is_logged_as_a_warning(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture, fault: str, logged: str
) -> None:
    @tool
    async def bad() -> object:
        if fault == "hangs":
            await asyncio.Event().wait()
        return object() if fault == "unserializable" else "x" * 100

    server.enqueue(tool_calls(("bad", {})), text("x"))
    await events_of(start_run(client, bad, tool_timeout=0.05, max_tool_result=99))
    [record] = [record for record in caplog.records if record.name == "friendli_async"]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(logged)


async def test_mistake_of_the_model_in_a_tool_call_is_no_warning(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    @tool
    async def good(number: int) -> None: ...

    server.enqueue(tool_calls(("good", {"number": "x"}), ("god", {})), text("x"))
    assert "good: arguments" in summarize(await events_of(start_run(client, good)))
    assert [record for record in caplog.records if record.name == "friendli_async"] == []


async def test_slow_worker_thread_is_reported_as_a_timeout(client: AsyncFriendli, server: FriendliServer) -> None:
    may_finish = threading.Event()

    @tool
    def block() -> str:
        may_finish.wait(30)
        return "too late"

    server.enqueue(tool_calls(("block", {})))
    events = await events_of(start_run(client, block, tool_timeout=0.05))
    may_finish.set()
    assert "block: timeout" in summarize(events)


@pytest.mark.parametrize("finishes", [True, False])
async def test_tool_that_finishes_while_the_loop_is_blocked_is_no_timeout(
    client: AsyncFriendli, server: FriendliServer, clock: Clock, finishes: bool
) -> None:
    started = asyncio.Event()

    @tool
    async def nap() -> str:
        started.set()
        await asyncio.sleep(1 if finishes else 30)
        return "rested"

    server.enqueue(tool_calls(("nap", {})), text("x"))
    reading = asyncio.create_task(events_of(start_run(client, nap, tool_timeout=5)))
    await started.wait()
    await run_loop_iterations()
    clock.advance(10)  # both timers are due in the same turn of the loop
    assert ("nap: timeout" in summarize(await with_timeout(reading))) != finishes


@pytest.mark.compatibility
async def test_dropped_run_cancels_tools_and_stream(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    run = await busy_run(client, server, waiter)
    gc.disable()
    try:
        seen = weakref.ref(run)
        del run
        assert seen() is None
        await assert_idle(client, server)
    finally:
        gc.enable()
    assert waiter.log == ["w started", "w cancelled"]


@pytest.mark.compatibility
async def test_dropped_run_is_freed_if_the_exception_of_an_eager_tool_was_not_read(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    begin_tasks_eagerly()
    caplog.set_level(logging.CRITICAL, "friendli_async")
    server.enqueue(script(call_delta(0, "fail", arguments="{}"), call_delta(1, "now"), stall()))
    gc.disable()
    try:
        run = start_run(client, fail, now)
        await read_until(run, ToolStarted)
        await run_loop_iterations()
        assert any(isinstance(found, ToolFinished) for found in run._events)
        seen = weakref.ref(run)
        del run
        assert seen() is None
        await assert_idle(client, server)
    finally:
        gc.enable()


async def test_run_dropped_in_another_thread_cancels_tools_and_stream(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    runs = [await busy_run(client, server, waiter)]
    await anyio.to_thread.run_sync(runs.clear)
    await assert_idle(client, server)
    assert waiter.log == ["w started", "w cancelled"]


async def test_breaking_out_of_the_loop_cancels_tools_and_stream(
    client: AsyncFriendli, server: FriendliServer, waiter: Waiter
) -> None:
    server.enqueue(script(call_delta(0, "wait", arguments="{}"), call_delta(1, "now"), stall()))
    async for found in start_run(client, waiter.wait, now):
        if isinstance(found, ToolStarted):
            break
    del found
    await assert_idle(client, server)
    assert waiter.log in ([], ["w started", "w cancelled"])


async def test_dropped_run_that_its_tool_refers_to_is_closed_when_it_is_collected(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    async def read_one() -> None:
        @tool
        async def give_up() -> None:
            await run.aclose()

        run = start_run(client, give_up)
        async for _ in run:
            break

    server.enqueue(script(chunk("a"), stall()))
    await read_one()
    assert client.gauges().open_streams == 1
    gc.collect()
    await assert_idle(client, server)
    assert await with_timeout(client.drain()) == 0


async def test_event_loop_shutdown_emits_no_warning(remote: FriendliServer) -> None:
    async def main() -> Run:
        remote.enqueue(script(call_delta(0, "never_ends", arguments="{}"), call_delta(1, "now"), stall()))
        run = start_run(client_of(remote.url), never_ends, now)
        await read_until(run, ToolStarted)
        return run

    run = await anyio.to_thread.run_sync(asyncio.run, main())
    assert run.turns == 0
    del run
    gc.collect()


@pytest.mark.compatibility
async def test_five_hundred_runs_leak_nothing(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "friendli_async")  # a captured record would keep the exception and its frames

    @tool
    async def pause() -> str:
        await asyncio.sleep(3600)
        return "never"

    async def run_scenario(number: int) -> None:
        run = start_run(client, now, fail, pause, on_tool_error="raise" if number % 5 == 4 else "feed")
        match number % 5:
            case 0:
                await run.result()
            case 1:
                async with run:
                    async for found in run:
                        if isinstance(found, ToolStarted):
                            break
            case 2:
                await read_until(run, ToolStarted)
            case 3:
                await read_until(run, ToolStarted)
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await run.result()
            case _:
                with pytest.raises(ToolError):
                    await run.result()

    kinds = {0: "fail", 1: "pause", 2: "pause", 3: "pause", 4: "fail"}
    await run_scenarios(run_scenario, server, kinds, 5)
    gc.collect()
    gc.freeze()  # what the exceptions of earlier tests keep
    gc.disable()
    try:
        await run_scenarios(run_scenario, server, kinds, 500)
        await assert_idle(client, server)
        await run_loop_iterations()  # the callbacks of the last task refer to its run
        left = [thing for thing in gc.get_objects() if isinstance(thing, Run | ToolRunner | ToolError | ChatStream)]
        tasks = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task) and thing.done()]
    finally:
        gc.enable()
    assert left == []
    assert len(tasks) < 100  # some dozens belong to the server; a leak in one scenario would add 100
    gc.collect()
    await assert_idle(client, server)


async def run_scenarios(run_scenario: Any, server: FriendliServer, kinds: Mapping[int, str], count: int) -> None:
    for number in range(count):
        server.enqueue(tool_calls((kinds[number % 5], {}), ("now", {})))
        await run_scenario(number)
        server.requests.clear()


# --- other properties ------------------------------------------------------------------------------------------------


async def test_run_cannot_be_copied_or_pickled_and_repr_shows_its_state(client: AsyncFriendli) -> None:
    run = start_run(client, weather)
    assert repr(run) == "<Run open, 0 turns>"
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a run cannot be"):
            attempt(run)
    await run.aclose()
    assert repr(run) == "<Run closed, 0 turns>"


async def test_unused_run_sends_nothing(client: AsyncFriendli, server: FriendliServer) -> None:
    start_run(client, weather)
    assert server.requests == []


async def test_read_outside_of_an_event_loop_leaves_the_run_usable(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(text("Hi"))
    run = start_run(client, now)
    with pytest.raises(RuntimeError, match="no running event loop"):
        await asyncio.to_thread(lambda: run.__anext__().send(None))
    assert (await run.result()).reply.text == "Hi"


def test_events_can_be_pickled_and_encoded() -> None:
    call = ToolCall("a")
    for found in (ToolStarted(call=call), ToolFinished(call=call, content="x", problem="timeout", elapsed=1.5)):
        assert pickle.loads(pickle.dumps(found)) == found
        assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found


async def test_default_replies_of_the_server_call_tools_and_use_their_results(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    messages = [{"role": "user", "content": "How is the weather, and what time is it now?"}]
    run = client.serverless.chat.run(model="m", messages=messages, tools=[now, weather], parallel_tool_calls=True)
    assert (await run.result()).reply.text.startswith("The tool says: 12:00, sunny in How is the weather")


async def test_scripted_tool_calls_work_in_a_plain_reply(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("now", {}), ("weather", "not JSON")))
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert [call.function.arguments for call in reply.message.tool_calls or ()] == ["{}", "not JSON"]


def test_tool_modules_are_not_loaded_without_a_run() -> None:
    code = """
import sys, friendli_async
friendli_async.AsyncFriendli("t").serverless.chat.stream(model="m", messages=[])
ours = {name for name in sys.modules if name.startswith("friendli_async")}
print(sorted(ours & {"friendli_async.tools", "friendli_async.chat.run", "friendli_async.chat.tool_loop"}))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
