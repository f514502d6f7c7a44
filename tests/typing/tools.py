# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Static types of tools and runs. Checked in strict mode; never run.

A `type: ignore` marks a call that the checkers must reject; if they accept it, they report the comment as unused.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Literal, assert_type

import msgspec

from friendli_async import AsyncFriendli, ChatChunk, ChatCompletion, ToolCall, Usage
from friendli_async.chat import Conversation
from friendli_async.chat.tool_calls import ToolCallView
from friendli_async.errors import ToolProblem, TurnLimitError
from friendli_async.integrations.mcp import MCPSession, MCPTool, mcp_tools
from friendli_async.tools import (
    FunctionTool,
    LocalTool,
    ParsedRun,
    ParsedRunResult,
    Run,
    RunResult,
    ToolFinished,
    ToolStarted,
    TurnEnded,
    tool,
)


class Weather(msgspec.Struct):
    degrees: float


@tool
async def weather(city: str, unit: Literal["C", "F"] = "C") -> Weather:
    """Weather of a city."""
    return Weather(1.5)


@tool(name="time_of_day")
def now() -> str:
    """The time."""
    return "12:00"


TOOLS = [weather, now]  # of different types: their common base class is a LocalTool


class Desk:
    @tool
    async def note(self, text: str) -> int:
        """Writes a note."""
        return len(text)


async def tools_are_still_functions(desk: Desk) -> None:
    assert_type(await weather("Paris", unit="F"), Weather)
    assert_type(now(), str)
    await weather(3)  # type: ignore[arg-type]  # rejected
    await weather("Paris", unit="K")  # type: ignore[arg-type]  # rejected
    now("x")  # type: ignore[call-arg]  # rejected
    assert_type(await desk.note("x"), int)
    assert_type(await Desk.note(desk, "x"), int)
    await desk.note(3)  # type: ignore[arg-type]  # rejected
    bound: FunctionTool[Callable[[str], Coroutine[Any, Any, int]]] = desk.note
    assert_type(bound.name, str)
    assert_type(bound.description, str | None)
    assert_type(bound.parameters, dict[str, Any])
    assert_type(await bound.run("{}"), str)


async def runs(client: AsyncFriendli, desk: Desk, session: MCPSession) -> None:
    more = await mcp_tools(session)
    assert_type(more, list[MCPTool])
    tools: list[LocalTool] = [weather, now, desk.note, *more]
    messages: Conversation = [{"role": "user", "content": "Hi"}]
    run = client.serverless.chat.run(model="m", messages=messages, tools=[weather, now, desk.note, *more])
    assert_type(run, Run)
    client.serverless.chat.run(model="m", messages=messages, tools=TOOLS)
    await client.serverless.chat.complete(model="m", messages=messages, tools=TOOLS)
    client.serverless.chat.run(model="m", messages=messages, tools=[*TOOLS, desk.note, *more])
    client.dedicated.chat.run(model="m", messages=messages, tools=tools, max_turns=3, tool_timeout=None)
    client.container.chat.run(messages=messages, tools=tools, concurrency=1, on_tool_error="raise", temperature=0.5)
    async with run as entered:
        assert_type(entered, Run)
        async for event in run:
            match event:
                case ChatChunk():
                    assert_type(event.text, str)
                case ToolStarted():
                    assert_type(event.call, ToolCall)
                case ToolFinished():
                    assert_type(event.content, str)
                    assert_type(event.problem, ToolProblem | None)
                case TurnEnded():
                    assert_type(event.reply, ChatCompletion)
    result = await run.result()
    assert_type(result, RunResult)
    assert_type(result.usage, Usage | None)
    await client.serverless.chat.complete(model="m", messages=result.messages)
    await client.serverless.chat.complete(model="m", messages=run.messages)
    plain: list[dict[str, Any]] = result.messages
    assert_type(plain[-1]["content"], Any)
    assert_type(run.messages[-1]["content"], Any)
    messages = result.messages

    client.serverless.chat.run(messages=messages, tools=tools)  # type: ignore[call-arg]  # rejected
    client.serverless.chat.run(model="m", messages=messages, tools=[len])  # type: ignore[list-item]  # rejected
    client.serverless.chat.run(model="m", messages=messages, tools=tools, max_turn=3)  # type: ignore[call-arg]  # rejected
    client.serverless.chat.run(model="m", messages=messages, tools=tools, on_tool_error="no")  # type: ignore[arg-type]  # rejected


async def parsed_runs(client: AsyncFriendli, messages: Conversation) -> None:
    run = client.serverless.chat.parse_run(Weather, model="m", messages=messages, tools=[weather], strict=False)
    assert_type(run, ParsedRun[Weather])
    async with run as entered:
        assert_type(entered, ParsedRun[Weather])
    result = await run.result()
    assert_type(result, ParsedRunResult[Weather])
    assert_type(result.value, Weather)
    assert_type(result.usage, Usage | None)
    union = client.dedicated.chat.parse_run(Weather | list[int], model="m", messages=messages, tools=TOOLS)
    assert_type((await union.result()).value, Weather | list[int])
    container = client.container.chat.parse_run(Weather, messages=messages, tools=[], max_turns=3)
    assert_type((await container.result()).value, Weather)

    client.serverless.chat.parse_run(Weather, messages=messages, tools=TOOLS)  # type: ignore[call-overload]  # rejected


async def approval(client: AsyncFriendli, messages: Conversation) -> None:
    def allow(call: ToolCall) -> bool:
        return call.function.name == "weather"

    async def ask(call: ToolCall) -> bool:
        return allow(call)

    chat = client.serverless.chat
    chat.run(model="m", messages=messages, tools=[weather], before_tool=allow)
    chat.run(model="m", messages=messages, tools=[weather], before_tool=ask)
    chat.run(model="m", messages=messages, tools=[weather], before_tool=lambda _: "defer")
    result = await chat.run(model="m", messages=messages, tools=[weather], decisions={}).result()
    assert_type(result.deferred, tuple[ToolCall, ...])
    decisions: dict[str, bool | str] = {call.id: call.function.name == "weather" for call in result.deferred}
    chat.run(model="m", messages=result.messages, tools=[weather], decisions=decisions)
    chat.run(model="m", messages=messages, tools=[weather], decisions={"c": "no"})
    chat.run(model="m", messages=messages, tools=[weather], before_tool=len)  # type: ignore[arg-type]  # rejected


async def shortened_conversations(client: AsyncFriendli, messages: Conversation) -> None:
    def shorten(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**each, "content": "(removed)"} if each["role"] == "tool" else each for each in messages]

    async def summarize(messages: list[dict[str, Any]]) -> Conversation:
        return [{"role": "user", "content": (await chat.complete(model="m", messages=messages)).text}]

    chat = client.serverless.chat
    chat.run(model="m", messages=messages, tools=[weather], between_turns=shorten)
    chat.run(model="m", messages=messages, tools=[weather], between_turns=summarize)
    chat.run(model="m", messages=messages, tools=[weather], between_turns=lambda messages: messages[-9:])
    chat.run(model="m", messages=messages, tools=[weather], between_turns=len)  # type: ignore[arg-type]  # rejected


async def views(client: AsyncFriendli, messages: Conversation) -> None:
    calls = client.serverless.chat.stream(model="m", messages=messages).tool_calls()
    assert_type(calls, ToolCallView)
    async for call in calls:
        assert_type(call, ToolCall)
        assert_type(call.function.arguments, str)
    assert_type(client.serverless.tool_assisted_chat.stream(model="m", messages=messages).tool_calls(), ToolCallView)


async def continues_after_turn_limit(client: AsyncFriendli, error: TurnLimitError) -> None:
    assert_type(error.usage, Usage | None)
    client.serverless.chat.run(model="m", messages=error.messages, tools=[weather])
