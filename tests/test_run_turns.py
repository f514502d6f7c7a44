"""The option ``between_turns`` of a run: what a turn sends is chosen by a function of the user."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from traceback import extract_tb
from typing import Any

import pytest
from support.clock import begin_tasks_eagerly, run_loop_iterations, wait_until
from support.sockets import MESSAGES, library_tasks, slots_in_use, start_run, with_timeout

from friendli_async import AsyncFriendli, FriendliError, StreamInterruptedError, TurnLimitError
from friendli_async.testing import FriendliServer, text, tool_calls
from friendli_async.tools import TurnEnded, tool

pytestmark = pytest.mark.compatibility


@tool
def now() -> str:
    """The time."""
    return "12:00"


class Chosen:
    """An async ``between_turns`` that waits until it may finish."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self.started.set()
        try:
            await self.may_finish.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return messages


def last_sent(server: FriendliServer) -> Any:
    return server.requests[-1].json_object["messages"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_next_turn_sends_what_between_turns_returns_and_the_run_keeps_all(
    client: AsyncFriendli, server: FriendliServer, is_async: bool
) -> None:
    seen: list[list[Any]] = []

    def shorten(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.append([message["role"] for message in messages])
        for message in messages:
            if message["role"] == "tool":
                message["content"] = "(removed)"
        return messages

    async def shorten_async(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return shorten(messages)

    server.enqueue(tool_calls(("now", {})), tool_calls(("now", {})), text("It is noon."))
    run = start_run(client, now, between_turns=shorten_async if is_async else shorten)
    result = await with_timeout(run.result())
    assert seen == [["user", "assistant", "tool"], ["user", *["assistant", "tool"] * 2]]  # not before the first turn
    assert [message["content"] for message in last_sent(server) if message["role"] == "tool"] == ["(removed)"] * 2
    assert [message["content"] for message in result.messages if message["role"] == "tool"] == ["12:00"] * 2
    assert (result.reply.text, result.turns) == ("It is noon.", 3)


async def test_between_turns_chooses_what_follows_the_calls_of_an_earlier_run(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("now", {})), text("It is noon."))
    first = await with_timeout(start_run(client, now, before_tool=lambda _: "defer").result())
    again = client.serverless.chat.run(
        model="m",
        messages=first.messages,
        tools=[now],
        decisions={first.deferred[0].id: True},
        between_turns=lambda messages: [{"role": "system", "content": "Be brief."}, *messages],
    )
    await with_timeout(again.result())
    assert [message["role"] for message in last_sent(server)] == ["system", "user", "assistant", "tool"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_exception_of_between_turns_ends_the_run_before_anything_is_sent(
    client: AsyncFriendli, server: FriendliServer, is_async: bool
) -> None:
    def refuse(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise LookupError("too expensive")

    async def refuse_async(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return refuse(messages)

    server.enqueue(tool_calls(("now", {})))
    run = start_run(client, now, between_turns=refuse_async if is_async else refuse)
    with pytest.raises(LookupError, match="too expensive"):
        await with_timeout(run.result())
    assert [message["role"] for message in run.messages] == ["user", "assistant", "tool"]
    assert run.usage is not None
    assert len(server.requests) == 1
    assert slots_in_use(client) == 0


async def test_between_turns_that_is_cancelled_by_itself_fails_the_run(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    async def awaits_cancelled(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        answer.cancel()
        return await answer

    def raises(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise asyncio.CancelledError

    for between in (awaits_cancelled, raises):
        server.enqueue(tool_calls(("now", {})))
        run = start_run(client, now, between_turns=between)
        with pytest.raises(FriendliError, match=r"^between_turns raised CancelledError: ") as caught:
            await with_timeout(run.result())
        assert caught.value.__cause__ is not None
        assert between.__name__ in [frame.name for frame in extract_tb(caught.value.__cause__.__traceback__)]
        with pytest.raises(FriendliError, match=r"^between_turns raised CancelledError: "):
            await with_timeout(run.result())
        assert [message["role"] for message in run.messages] == ["user", "assistant", "tool"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [(None, r"^between_turns\(\): "), ([{"role": "nobody"}], r"^between_turns\(\)\[0\]\.role: ")],
    ids=["nothing", "invalid"],
)
async def test_invalid_messages_of_between_turns_end_the_run(
    client: AsyncFriendli, server: FriendliServer, returned: Any, message: str
) -> None:
    server.enqueue(tool_calls(("now", {})))
    with pytest.raises(ValueError, match=message):
        await with_timeout(start_run(client, now, between_turns=lambda _: returned).result())
    assert len(server.requests) == 1


async def test_run_is_freed_after_an_exception_of_between_turns_with_eager_tasks(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    begin_tasks_eagerly()

    def refuse(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise LookupError("too expensive")

    server.enqueue(tool_calls(("now", {})))
    gc.disable()
    try:
        run = start_run(client, now, between_turns=refuse)
        with pytest.raises(LookupError):
            await run.result()
        seen = weakref.ref(run)
        del run
        await run_loop_iterations()
        assert seen() is None
    finally:
        gc.enable()


async def test_between_turns_is_not_called_beyond_the_limit_of_turns(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    called: list[Any] = []
    server.enqueue(tool_calls(("now", {})))
    with pytest.raises(TurnLimitError):
        await with_timeout(start_run(client, now, max_turns=1, between_turns=called.append).result())
    assert called == []


async def test_between_turns_may_call_the_same_client_and_is_not_called_for_that(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    async def summarize(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        reply = await client.serverless.chat.complete(model="m", messages=messages)
        return [{"role": "user", "content": reply.text}]

    server.enqueue(tool_calls(("now", {})), text("A summary."), text("It is noon."))
    result = await with_timeout(start_run(client, now, between_turns=summarize).result())
    assert last_sent(server) == [{"role": "user", "content": "A summary."}]
    assert result.turns == 2


@pytest.mark.parametrize("end", ["close", "drain", "close the client", "cancel"])
async def test_run_can_be_ended_while_between_turns_waits(
    client: AsyncFriendli, server: FriendliServer, end: str
) -> None:
    chosen = Chosen()
    server.enqueue(tool_calls(("now", {})))
    run = start_run(client, now, between_turns=chosen)
    async for event in run:
        if isinstance(event, TurnEnded):
            break
    reading = asyncio.ensure_future(run.result())
    await with_timeout(chosen.started.wait())
    ends: dict[str, Callable[[], Any]] = {
        "close": run.aclose,
        "drain": lambda: client.drain(0.01),
        "close the client": client.aclose,
    }
    if end in ends:
        await with_timeout(ends[end]())
    else:
        reading.cancel()
    with pytest.raises(asyncio.CancelledError if end == "cancel" else StreamInterruptedError):
        await with_timeout(reading)
    assert chosen.was_cancelled
    assert len(server.requests) == 1
    await wait_until(lambda: library_tasks() == [])


async def test_between_turns_is_not_called_once_a_drain_has_timed_out(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    called: list[object] = []
    server.enqueue(tool_calls(("now", {})))
    run = start_run(client, now, between_turns=called.append)
    async with asyncio.timeout(30):
        async for event in run:
            if isinstance(event, TurnEnded):
                break
    assert await with_timeout(client.drain(0.01)) == 1
    with pytest.raises(StreamInterruptedError, match="drained"):
        await with_timeout(run.result())
    assert (called, len(server.requests)) == ([], 1)


async def test_tools_and_turns_after_between_turns_run_as_before(client: AsyncFriendli, server: FriendliServer) -> None:
    chosen = Chosen()
    server.enqueue(tool_calls(("now", {})), text("It is noon."))
    run = start_run(client, now, between_turns=chosen)
    reading = asyncio.ensure_future(run.result())
    await with_timeout(chosen.started.wait())
    await run_loop_iterations()
    assert not reading.done()
    chosen.may_finish.set()
    assert (await with_timeout(reading)).reply.text == "It is noon."
    assert last_sent(server)[0] == MESSAGES[0]
