"""Numbers of other libraries: parameters of a call may be some, settings may not."""

import enum
import fractions
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pytest
from support.sockets import MESSAGES, client_of, complete, open_stream

from friendli_async import (
    AsyncFriendli,
    ChatCompletion,
    ConfigurationError,
    Timeouts,
    ToolCall,
)
from friendli_async.asgi import SSEResponse, drain_on_shutdown
from friendli_async.bulk import Adaptive, run_all
from friendli_async.integrations.fastapi import lifespan
from friendli_async.testing import FriendliServer, chunk, done, event, json_body, script, text, tool_calls
from friendli_async.tools import tool

NO_NUMBERS: Final[list[Any]] = [
    *(np.bool_(True), np.float64("nan"), np.array([1, 2]), np.str_("2")),
    *(np.int64(2), np.float32(2.0), np.timedelta64(2, "s"), fractions.Fraction(2), Decimal(2)),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=type)
def test_numbers_of_other_libraries_are_no_settings(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Timeouts\.total "):
        Timeouts(total=value)


# --- arguments of methods --------------------------------------------------------------------------------------------


class Two(enum.IntEnum):
    VALUE = 2


SECONDS: Final[list[Any]] = [np.float64(2.0), Two.VALUE]


@dataclass
class Box:
    value: int = 0


@tool
async def now() -> str:
    """The time."""
    return "noon"


async def test_enum_members_are_counts_of_methods(server: FriendliServer) -> None:
    value: Any = Two.VALUE
    async with client_of(server.url) as client:
        await client.warm_up(value)
        assert client.gauges().idle == 2
        server.always(script(chunk("a"), done()))
        assert len(open_stream(client).tee(value, buffer=value)) == 2
        server.always(text("a"))
        concurrencies: list[Any] = [value, Adaptive(start=value, max=value)]
        for concurrency in concurrencies:
            rows = run_all(range(3), lambda _: complete(client), concurrency=concurrency, max_rejections=value)
            assert [outcome.error async for outcome in rows] == [None] * 3
        server.clear_replies()
        server.enqueue(text("x"), text("y"), text('{"value": 5}'))
        parsed = await client.serverless.chat.parse(dict[str, int], model="m", messages=MESSAGES, reask=value)
        assert (parsed.value, parsed.asked) == ({"value": 5}, 3)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2), Two.VALUE], ids=type)
async def test_whole_numbers_of_other_libraries_are_counts_of_choices(
    client: AsyncFriendli, server: FriendliServer, value: Any
) -> None:
    chunks = [event({"choices": [{"index": index, "delta": {"content": str(index)}}]}) for index in (1, 0)]
    server.enqueue(script(*chunks, done()))
    reply = await client.serverless.chat.stream(model="m", messages=MESSAGES, n=value).result()
    assert [choice.message.content for choice in reply.choices] == ["0", "1"]
    with pytest.raises(ValueError, match=r"^n: a run supports only one choice per turn"):
        client.serverless.chat.run(model="m", messages=MESSAGES, tools=[], n=value)


@pytest.mark.parametrize("value", SECONDS, ids=type)
async def test_subclasses_of_numbers_are_seconds_of_methods(server: FriendliServer, value: Any) -> None:
    async with client_of(server.url) as client:
        server.always(json_body({"status": "RUNNING"}))
        await client.dedicated.endpoint.wait("e", timeout=value, interval=value)
        SSEResponse(open_stream(client), heartbeat=value, answer_after=value, send_timeout=value)
        server.clear_replies()
        server.enqueue(tool_calls(("now", {})), text("done"))
        run = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[now], tool_timeout=value)
        assert [message["content"] for message in (await run.result()).messages[2:3]] == ["noon"]
        lifespan(drain=value)
        async with drain_on_shutdown(client, value):
            pass
        assert await client.drain(value) == 0


async def test_decimal_is_no_number_of_seconds(client: AsyncFriendli, server: FriendliServer) -> None:
    seconds: Any = Decimal(3)
    with pytest.raises(ValueError, match=r"^tool_timeout: Expected `float \| null`, got Decimal\('3'\)"):
        client.serverless.chat.run(model="m", messages=MESSAGES, tools=[now], tool_timeout=seconds)
    assert server.requests == []


@pytest.mark.parametrize(("approved", "content"), [(True, "noon"), (False, "Error: the call was refused by the user")])
async def test_bool_of_numpy_is_a_decision(
    client: AsyncFriendli, server: FriendliServer, approved: bool, content: str
) -> None:
    def approve(_: ToolCall) -> Any:
        return np.bool_(approved)

    server.enqueue(tool_calls(("now", {})), text("done"))
    run = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[now], before_tool=approve)
    assert [message["content"] for message in (await run.result()).messages[2:3]] == [content]


async def test_bool_of_numpy_decides_whether_the_original_operation_streams(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text("a"))
    body = {"model": "m", "messages": MESSAGES, "stream": np.bool_(False)}
    reply = await client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    assert isinstance(reply, ChatCompletion)
    assert server.requests[-1].json["stream"] is False


async def test_bool_of_numpy_chooses_the_form_of_a_schema(client: AsyncFriendli, server: FriendliServer) -> None:
    sent: list[Any] = []
    values: list[Any] = [True, np.bool_(True), False, np.bool_(False)]
    for strict in values:
        server.enqueue(text('{"value": 5}'))
        await client.serverless.chat.parse(Box, model="m", messages=MESSAGES, strict=strict)
        sent.append(server.requests[-1].json["response_format"])
    assert sent[0] == sent[1] != sent[2] == sent[3]
