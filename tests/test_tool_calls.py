"""`stream.tool_calls()` yields each tool call as soon as it is complete."""

import asyncio
import gc
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import fewer
from support.sockets import MESSAGES, assert_no_leaks, open_stream, slots_in_use, with_timeout

from friendli_async import AsyncFriendli, StreamInterruptedError, ToolCall
from friendli_async._json import is_json_object
from friendli_async.chat import collector
from friendli_async.replies import FunctionCall
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    event,
    finish,
    gate,
    json_body,
    script,
    stall,
    text,
    tool_calls,
    tool_status,
)
from friendli_async.tools import ToolDefinitionError, tool


@tool
async def look_up(word: str) -> str:
    """Looks up a word."""
    return f"meaning of {word}"


@tool(description="")
def untyped(word) -> str:  # type: ignore[no-untyped-def]  # what the test is about
    return str(word)


CHAT_TOOL = {
    "type": "function",
    "function": {"name": "look_up", "description": "Looks up a word.", "parameters": look_up.parameters},
}


def piece(index: int, arguments: str = "", **fields: Any) -> Any:
    function = {"arguments": arguments} | ({"name": fields.pop("name")} if "name" in fields else {})
    return chunk(tool_calls=[{"index": index, **fields, "function": function}])


async def test_calls_are_yielded_complete_and_in_order(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Paris"}), ("now", "")))
    async with open_stream(client) as stream:
        calls = [call async for call in stream.tool_calls()]
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city": "Paris"}'),
        ("now", ""),
    ]
    assert all(call.id and call.type == "function" for call in calls)
    assert (await stream.result()).message.tool_calls == tuple(calls)


def delta(index: int | None, id: str | None = None, name: str | None = None, arguments: str | None = None) -> Any:
    fields = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([[delta(0, "a", "f")], [delta(0, None, "f", "{}")]], [(0, "a", "f", None), (0, None, None, "{}")]),
        ([[delta(0, "a", "get_")], [delta(0, None, "f", "{}")]], [(0, "a", "get_", None), (0, None, "f", "{}")]),
        (
            [[delta(0, "a", "f", "{")], [delta(0, "a", "f", "}")], [delta(1, "b", "g", "{}")]],
            [(0, "a", "f", "{"), (0, None, None, "}"), (1, "b", "g", "{}")],
        ),
        (
            [[delta(0, "a", "f", "{}")], [delta(0, "b", "f", "{")], [delta(0, None, None, "}")]],
            [(0, "a", "f", "{}"), (1, "b", "f", "{"), (1, None, None, "}")],
        ),
        (
            [[delta(None, "a", "f", "{")], [delta(None, None, None, "}")], [delta(None, "b", "g", "{}")]],
            [(0, "a", "f", "{"), (0, None, None, "}"), (1, "b", "g", "{}")],
        ),
        ([[delta(None, "a", "f", "{}"), delta(None, "b", "f", "{}")]], [(0, "a", "f", "{}"), (1, "b", "f", "{}")]),
        ([[delta(1, "a", "f", "{}")], [delta(2, "b", "f", "{}")]], [(0, "a", "f", "{}"), (1, "b", "f", "{}")]),
        ([[delta(0, "a", "f")], [delta(0, "z", None, "{}")]], [(0, "a", "f", None), (0, None, None, "{}")]),
        ([[delta(None, "a", "f", "{")], [delta(None, "", "", "}")]], [(0, "a", "f", "{"), (0, None, None, "}")]),
    ],
    ids=[
        "name-twice",
        "name-in-pieces",
        "repeated",
        "same-index",
        "no-index",
        "one-chunk",
        "from-one",
        "other-ids",
        "empty-id",
    ],
)
async def test_deltas_have_the_index_of_their_call_and_its_id_and_name_once(
    client: AsyncFriendli, server: FriendliServer, chunks: list[list[Any]], expected: list[Any]
) -> None:
    """Programs for OpenAI's API group the deltas by index, and some of them concatenate ids and names."""
    server.enqueue(script(*[chunk(tool_calls=deltas) for deltas in chunks], finish("tool_calls"), done()))
    received: list[tuple[object, ...]] = []
    async for each in open_stream(client):
        for call in each.choices[0].delta.tool_calls or ():
            assert call.function is not None
            received.append((call.index, call.id, call.function.name, call.function.arguments))
    assert received == expected


async def test_call_is_not_yielded_before_its_name(client: AsyncFriendli, server: FriendliServer) -> None:
    deltas = [delta(0, "1", None, "{}"), delta(1, "2", "g", "{}"), delta(0, None, "f")]
    server.enqueue(script(*[chunk(tool_calls=[each]) for each in deltas], finish("tool_calls"), done()))
    assert [call.function.name async for call in open_stream(client).tool_calls()] == ["f", "g"]


@pytest.mark.parametrize("late_end", [False, True])
async def test_call_is_yielded_when_it_has_ended_and_next_one_has_started(
    client: AsyncFriendli, server: FriendliServer, late_end: bool
) -> None:
    release = asyncio.Event()
    first = [piece(0, '{"a":', name="x", id="1"), chunk(tool_calls=[{"index": 0}])]
    end, second = piece(0, "1}"), piece(1, name="y", id="2")
    both = [*first, second, end] if late_end else [*first, end, second]
    server.enqueue(script(*both, gate(release), piece(1, "{}"), finish("tool_calls"), done()))
    calls = open_stream(client).tool_calls()
    assert await with_timeout(anext(calls)) == ToolCall("1", "function", FunctionCall("x", '{"a":1}'))
    release.set()
    assert await with_timeout(anext(calls)) == ToolCall("2", "function", FunctionCall("y", "{}"))
    with pytest.raises(StopAsyncIteration):
        await anext(calls)


async def test_missing_call_fields_have_string_defaults(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk(tool_calls=[{"function": {"name": None}}]), finish("tool_calls"), done()))
    [call] = [call async for call in open_stream(client).tool_calls()]
    assert call == ToolCall("", "function", FunctionCall("", ""))


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([{"name": "x", "arguments": ""}, {"arguments": '{"a":'}, {"arguments": "1}"}], ("x", '{"a":1}')),
        ([{"name": "x", "arguments": {"a": 1}}], ("x", '{"a":1}')),
        ([{"name": None, "arguments": ""}], None),
    ],
    ids=["pieces", "object", "empty"],
)
async def test_legacy_function_call_is_a_tool_call(
    client: AsyncFriendli, server: FriendliServer, deltas: list[dict[str, Any]], expected: tuple[str, str] | None
) -> None:
    chunks = [event({"choices": [{"index": 0, "delta": {"function_call": each}}]}) for each in deltas]
    server.enqueue(script(*chunks, finish("function_call"), done()))
    stream = open_stream(client)
    calls = [call async for call in stream.tool_calls()]
    assert calls == ([ToolCall("", "function", FunctionCall(*expected))] if expected else [])
    assert (await stream.result()).tool_calls == tuple(calls)

    whole = {**deltas[0], "arguments": expected[1]} if expected else deltas[0]
    server.enqueue(json_body({"choices": [{"index": 0, "message": {"role": "assistant", "function_call": whole}}]}))
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.tool_calls == tuple(calls)


async def test_custom_tool_call_keeps_its_name_and_input(client: AsyncFriendli, server: FriendliServer) -> None:
    custom = {"name": "grep", "input": "a b"}
    pieces: list[dict[str, Any]] = [
        {"id": "1", "type": "custom", "custom": {**custom, "input": "a "}},
        {"custom": {"input": "b"}},
    ]
    chunks = [event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, **each}]}}]}) for each in pieces]
    server.enqueue(script(*chunks, finish("tool_calls"), done()))
    stream = open_stream(client)
    calls = [call async for call in stream.tool_calls()]
    assert calls == [ToolCall("1", "custom", FunctionCall("grep", "a b"))]
    assert (await stream.result()).tool_calls == tuple(calls)

    whole = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "custom", "custom": custom}]}
    server.enqueue(json_body({"choices": [{"index": 0, "message": whole, "finish_reason": "tool_calls"}]}))
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.tool_calls == tuple(calls)
    assert reply.message.as_input() == whole


@pytest.mark.parametrize("function", [{}, {"function": None}, {"function": {"name": None}}], ids=str)
@pytest.mark.parametrize(
    "arguments", [{"arguments": '{"a":1}'}, {"arguments": {"a": 1}}, {"parameters": {"a": 1}}], ids=str
)
async def test_tool_call_without_a_function_keeps_its_name_and_arguments(
    client: AsyncFriendli, server: FriendliServer, function: dict[str, Any], arguments: dict[str, Any]
) -> None:
    whole = {"index": 0, "id": "1", **function, "name": "grep", **arguments}
    rest = {"index": 0, "arguments": "1}"}
    is_text = isinstance(arguments.get("arguments"), str)
    deltas = [{**whole, "arguments": '{"a":'}, rest] if is_text else [whole]
    server.enqueue(
        json_body({"choices": [{"index": 0, "message": {"tool_calls": [whole]}, "finish_reason": "tool_calls"}]}),
        script(
            *(event({"choices": [{"index": 0, "delta": {"tool_calls": [each]}}]}) for each in deltas),
            finish("tool_calls"),
            done(),
        ),
    )
    expected = (ToolCall("1", "function", FunctionCall("grep", '{"a":1}')),)
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.tool_calls == (await open_stream(client).result()).tool_calls == expected
    assert reply.message.as_input()["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "grep", "arguments": '{"a":1}'}}
    ]
    assert json.loads(msgspec.json.encode(expected)) == reply.message.as_input()["tool_calls"]


@pytest.mark.parametrize(
    "shape",
    [
        '{"name": "grep", "function": {"arguments": ARGUMENTS}}',
        '{"name": "grep", "function": {"name": "", "parameters": ARGUMENTS}}',
        '{"function": {"name": "grep"}, "arguments": ARGUMENTS}',
        '{"function": {"name": "grep", "arguments": ""}, "arguments": ARGUMENTS}',
        '{"function": {"name": "grep", "parameters": ARGUMENTS}}',
        '{"function": {"name": "grep", "arguments": null, "parameters": ARGUMENTS}}',
        '{"function": {"name": "grep", "arguments": "", "parameters": ARGUMENTS}}',
        '{"name": "other", "function": {"name": "grep", "arguments": ARGUMENTS, "parameters": {"b": 2}}}',
    ],
)
@pytest.mark.parametrize("pieces", [['{"a":1}'], ['"{\\"a\\":1}"'], ['"{\\"a\\":"', '"1}"']])
async def test_tool_call_in_two_places_keeps_its_name_and_arguments(
    client: AsyncFriendli, server: FriendliServer, shape: str, pieces: list[str]
) -> None:
    calls = [{"index": 0, "id": "1", **json.loads(shape.replace("ARGUMENTS", each))} for each in pieces]
    deltas = [event({"choices": [{"index": 0, "delta": {"tool_calls": [each]}}]}) for each in calls]
    server.enqueue(script(*deltas, finish("tool_calls"), done()))
    expected = (ToolCall("1", "function", FunctionCall("grep", '{"a":1}')),)
    assert (await open_stream(client).result()).tool_calls == expected
    if len(pieces) == 1:
        choice = {"index": 0, "message": {"tool_calls": calls}, "finish_reason": "tool_calls"}
        server.enqueue(json_body({"choices": [choice]}))
        reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
        assert reply.tool_calls == expected
        assert json.loads(msgspec.json.encode(reply.tool_calls[0].function)) == {"name": "grep", "arguments": '{"a":1}'}


@pytest.mark.parametrize(
    "shape",
    [
        '{"function": {"name": "NAME", "arguments": ""}}',
        '{"name": "NAME", "arguments": ""}',
        '{"name": "NAME", "parameters": {}}',
        '{"name": "NAME", "function": {"arguments": ""}}',
        '{"function": {"name": "NAME", "parameters": ""}}',
        '{"custom": {"name": "NAME", "input": ""}}',
    ],
)
async def test_name_after_empty_arguments_is_that_of_another_call_wherever_they_are(
    client: AsyncFriendli, server: FriendliServer, shape: str
) -> None:
    deltas = [{"index": 0, **json.loads(shape.replace("NAME", name))} for name in ("f", "g")]
    server.enqueue(script(*[chunk(tool_calls=[each]) for each in deltas], finish("tool_calls"), done()))
    found = (await open_stream(client).result()).tool_calls
    assert [call.function.name for call in found] == ["f", "g"]


async def test_nulls_beside_the_function_of_a_tool_call_are_neither_kept_nor_sent(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    nulls = {"custom": None, "name": None, "arguments": None}
    whole = {"index": 0, **call, **nulls, "function": {"name": "f", "arguments": "{}", "parameters": None}}
    server.enqueue(
        json_body({"choices": [{"index": 0, "message": {"tool_calls": [whole]}, "finish_reason": "tool_calls"}]}),
        script(event({"choices": [{"index": 0, "delta": {"tool_calls": [whole]}}]}), finish("tool_calls"), done()),
        text("ok"),
    )
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert reply.tool_calls == (await open_stream(client).result()).tool_calls
    assert json.loads(msgspec.json.encode(reply.tool_calls)) == [call]
    await client.serverless.chat.complete(model="m", messages=[{"role": "assistant", "tool_calls": reply.tool_calls}])
    assert server.requests[-1].json["messages"][0]["tool_calls"] == [call]


@pytest.mark.parametrize("custom", [{"name": "", "input": ""}, {"name": None, "input": None}, {"origin": "x"}], ids=str)
async def test_function_of_a_tool_call_wins_over_a_custom_object(
    client: AsyncFriendli, server: FriendliServer, custom: dict[str, Any]
) -> None:
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "x", "arguments": "{}"}, "custom": custom}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    server.enqueue(
        json_body({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}),
        script(event({"choices": [{"index": 0, "delta": message}]}), finish("tool_calls"), done()),
    )
    reply = await client.serverless.chat.complete(model="m", messages=MESSAGES)
    for each in (reply, await open_stream(client).result()):
        assert each.tool_calls == (ToolCall("1", "function", FunctionCall("x", "{}")),)


async def test_tool_calls_win_over_legacy_function_call(client: AsyncFriendli, server: FriendliServer) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "x", "arguments": "{}"}}
    delta = {"tool_calls": [call], "function_call": call["function"]}
    server.enqueue(script(event({"choices": [{"index": 0, "delta": delta}]}), finish("tool_calls"), done()))
    calls = [call async for call in open_stream(client).tool_calls()]
    assert calls == [ToolCall("1", "function", FunctionCall("x", "{}"))]


async def test_calls_started_before_view_creation_are_complete(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(piece(0, '{"a":', name="x", id="1"), piece(0, "1}"), finish("tool_calls"), done()))
    async with open_stream(client) as stream:
        await anext(stream)
        assert stream.partial.tool_calls[0].function.arguments.startswith('{"a":')
        calls = [call async for call in stream.tool_calls()]
    assert calls == [ToolCall("1", "function", FunctionCall("x", '{"a":1}'))]


async def test_stream_without_calls_yields_none(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    assert stream.partial.text == ""
    assert [call async for call in stream.tool_calls()] == []
    assert stream.partial.text == "You said: Hi"
    assert stream.outcome == "done"


async def test_calls_of_other_choices_are_ignored(client: AsyncFriendli, server: FriendliServer) -> None:
    call = [{"index": 0, "id": "1", "function": {"name": "x", "arguments": "{}"}}]
    steps = [chunk(tool_calls=call, index=1), finish("tool_calls", index=1), chunk("no"), finish()]
    server.enqueue(script(*steps, done()))
    assert [call async for call in open_stream(client, n=2).tool_calls()] == []


async def test_end_of_another_choice_completes_no_call(client: AsyncFriendli, server: FriendliServer) -> None:
    begun, rest = piece(0, "{}", name="x", id="1"), piece(0, "}")
    server.enqueue(script(begun, finish("tool_calls", index=1), rest, finish("tool_calls"), done()))
    calls = [call async for call in open_stream(client, n=2).tool_calls()]
    assert [call.function.arguments for call in calls] == ["{}}"]


async def test_tool_assisted_streams_have_the_view(client: AsyncFriendli, server: FriendliServer) -> None:
    call = piece(0, "{}", name="x", id="1")
    server.enqueue(script(chunk("Let me see"), tool_status("STARTED"), call, finish("tool_calls"), done()))
    stream = client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES)
    assert [call.function.name async for call in stream.tool_calls()] == ["x"]


async def test_interrupted_stream_raises_and_yields_no_truncated_call(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(piece(0, "{}", name="x", id="1"), piece(1, '{"a":', name="y", id="2"), cut()))
    calls = open_stream(client).tool_calls()
    assert (await anext(calls)).function.name == "x"
    with pytest.raises(StreamInterruptedError) as caught:
        await anext(calls)
    assert caught.value.partial is not None
    assert caught.value.partial.tool_calls[1].function.arguments == '{"a":'
    with pytest.raises(StreamInterruptedError):
        await anext(calls)


@pytest.mark.parametrize("how", ["leave", "close", "drop"])
async def test_leaving_view_cancels_stream(client: AsyncFriendli, server: FriendliServer, how: str) -> None:
    server.enqueue(script(piece(0, "{}", name="x", id="1"), piece(1, name="y", id="2"), stall()))
    calls = open_stream(client).tool_calls()
    gc.disable()
    try:
        if how == "leave":
            async with calls:
                await anext(calls)
        else:
            await anext(calls)
        if how == "close":
            await calls.aclose()
        if how == "drop":
            del calls
        assert slots_in_use(client) == 0
    finally:
        gc.enable()
    await assert_no_leaks(client, server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(fewer, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    arguments=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3).map(json.dumps), max_size=4),
    size=st.integers(1, 9),
    interleaved=st.booleans(),
)
async def test_calls_survive_any_chunking(
    client: AsyncFriendli, server: FriendliServer, arguments: list[str], size: int, interleaved: bool
) -> None:
    pieces = [
        [piece(number, name=f"f{number}", id=f"id{number}")]
        + [piece(number, text[at : at + size]) for at in range(0, len(text), size)]
        for number, text in enumerate(arguments)
    ]
    if interleaved:
        longest = max(map(len, pieces), default=0)
        steps = [row[at] for at in range(longest) for row in pieces if at < len(row)]
    else:
        steps = [step for row in pieces for step in row]
    server.enqueue(script(chunk("x"), *steps, finish("tool_calls"), done()))
    calls = [call async for call in open_stream(client).tool_calls()]
    assert [(call.id, call.function.arguments) for call in calls] == [
        (f"id{number}", text) for number, text in enumerate(arguments)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", True),
        (' {"a": [1]} \n', True),
        ("", False),
        ("[{}]", False),
        ('"}"', False),
        ('{"a":1', False),
        ('{"a":1}{"b":2}', False),
        ('{"a":"\ud800"}', True),
        (r'{"a":"\ud800"}', True),
        ("{" * 100_000 + "}", False),
        ('{"a":' * 100_000 + "}" * 100_000, False),
    ],
)
def test_json_object_is_distinguished_from_other_text(text: str, expected: bool) -> None:
    assert is_json_object(text) is expected


async def test_work_is_linear_in_number_of_calls(
    client: AsyncFriendli, server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    joins = 0
    original: Any = collector._CallParts.result

    def counting_result(call: Any) -> Any:
        nonlocal joins
        joins += 1
        return original(call)

    monkeypatch.setattr(collector._CallParts, "result", counting_result)
    steps = [step for i in range(100) for step in (piece(i, '{"a":', name="x", id=str(i)), piece(i, f"{i}}}"))]
    server.enqueue(script(*steps, finish("tool_calls"), done()))
    async with open_stream(client) as stream:
        assert [call.id async for call in stream.tool_calls()] == [str(i) for i in range(100)]
    assert joins <= 300


# --- local tools in calls that do not run them -----------------------------------------------------------------------


async def test_local_tool_is_offered_and_its_calls_are_left_to_the_caller(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("look_up", {"word": "owl"})), tool_calls(("look_up", {"word": "owl"})))
    chat = client.serverless.chat
    reply = await chat.complete(model="m", messages=MESSAGES, tools=[look_up])
    async with chat.stream(model="m", messages=MESSAGES, tools=(look_up, CHAT_TOOL)) as stream:
        calls = [call async for call in stream.tool_calls()]
    assert [request.json_object["tools"] for request in server.requests] == [[CHAT_TOOL], [CHAT_TOOL, CHAT_TOOL]]
    assert reply.message.tool_calls is not None
    for call in (*reply.message.tool_calls, *calls):
        assert await look_up.run(call.function.arguments) == "meaning of owl"


async def test_local_tool_is_offered_by_every_api_in_its_own_form(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    serverless = client.serverless
    function = CHAT_TOOL["function"]
    assert isinstance(function, dict)
    schema = function["parameters"]
    server.enqueue(text("1"))
    await serverless.chat.parse(Any, model="m", messages=MESSAGES, tools=[look_up])
    await serverless.tool_assisted_chat.complete(model="m", messages=MESSAGES, tools=[look_up])
    await serverless.chat_render.render(model="m", messages=MESSAGES, tools=[look_up])
    await serverless.responses.create(model="m", input="Hi", tools=[look_up])
    await serverless.messages.create(model="m", max_tokens=9, messages=MESSAGES, tools=[look_up])
    assert [request.json_object["tools"] for request in server.requests] == [
        [CHAT_TOOL],
        [CHAT_TOOL],
        [CHAT_TOOL],
        [{"type": "function", **function}],
        [{"name": "look_up", "description": "Looks up a word.", "input_schema": schema}],
    ]


async def test_local_tool_without_parameter_types_is_rejected_before_sending(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    with pytest.raises(ToolDefinitionError, match="'word' has no type annotation"):
        await client.serverless.chat.complete(model="m", messages=MESSAGES, tools=[untyped])
    with pytest.raises(ValueError, match=r"^tools\[0\]: Expected `object`, got `builtin_function_or_method`"):
        await client.serverless.chat.complete(model="m", messages=MESSAGES, tools=[len])  # type: ignore[list-item]  # invalid
    assert server.requests == []
