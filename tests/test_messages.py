"""Messages API: replies, stream events and their accumulation."""

import asyncio
import json
import sys
from types import FrameType
from typing import Any, Final

import pytest
from support.messages import (
    CALL,
    HI,
    JSON,
    SHORT,
    STOP,
    STREAMED,
    TEXT,
    WHOLE,
    block_delta,
    block_start,
    json_delta,
    message_delta,
    named,
    open_stream,
    read,
    start,
    text_delta,
    unnamed,
)
from support.sockets import with_timeout
from support.steps import split

from friendli_async import (
    AsyncFriendli,
)
from friendli_async.messages import (
    ContentBlockDelta,
    ContentBlockStart,
    InputJSONDelta,
    Message,
    MessageDelta,
    MessageDeltaPayload,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    MessageUsageDelta,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from friendli_async.messages.collector import MessagesCollector
from friendli_async.replies import FunctionCall, ReplyHead, ToolCall, UnknownEvent
from friendli_async.testing import FriendliServer, comment, done, event, gate, json_body, raw, script
from friendli_async.testing.steps import Payload

# --- non-streamed messages -------------------------------------------------------------------------------------------


async def test_create_returns_content_text_reasoning_usage_and_meta(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(json_body(WHOLE, headers={"x-request-id": "r1"}))
    message = await client.serverless.messages.create(model="m", messages=HI, max_tokens=9)
    assert message.content == (
        ThinkingBlock(thinking="Hmm", signature="sig"),
        TextBlock(text="Let me see."),
        ToolUseBlock(id="tu_1", name="weather", input={"city": "Paris"}),
    )
    assert (message.text, message.reasoning) == ("Let me see.", "Hmm")
    assert message.tool_calls == (ToolCall("tu_1", "function", FunctionCall("weather", '{"city": "Paris"}')),)
    assert (message.id, message.model, message.role, message.type) == ("msg_1", "m", "assistant", "message")
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)
    assert message.usage == MessageUsage(5, 7, 2)
    assert message.meta.request_id == "r1"
    assert server.requests[0].json == {"model": "m", "messages": HI, "max_tokens": 9}


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ({"content": [], "stop_reason": "end_turn"}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": [{"type": "text", "text": None}, {"type": "text"}]}, ""),
        ({"content": [{"type": "text", "text": "a", "citations": None}], "usage": None, "new": {"x": 1}}, "a"),
        ({"content": [{"type": "text", "text": "a"}], "stop_reason": "refusal", "role": None}, "a"),
    ],
    ids=["no content", "two texts", "nulls", "extra fields", "new stop reason"],
)
async def test_unusual_replies_are_parsed(
    server: FriendliServer, client: AsyncFriendli, reply: JSON, text: str
) -> None:
    server.enqueue(json_body(reply))
    message = await client.serverless.messages.create(model="m", messages=HI)
    assert message.text == text
    assert message.role == "assistant"


async def test_unknown_block_type_stays_a_dict(server: FriendliServer, client: AsyncFriendli) -> None:
    block = {"type": "hologram", "data": "x"}
    server.enqueue(json_body({**WHOLE, "content": [block, {"type": "text", "text": "a"}]}))
    message = await client.serverless.messages.create(model="m", messages=HI)
    assert message.content == (block, TextBlock("a"))
    assert message.text == "a"


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [named, unnamed], ids=["named", "unnamed"])
async def test_streamed_events_accumulate_to_the_non_streamed_reply(
    server: FriendliServer, client: AsyncFriendli, form: Any
) -> None:
    server.enqueue(script(*form(STREAMED)), json_body(WHOLE))
    stream = open_stream(client)
    events = await read(stream)
    assert [type(each) for each in events[:3]] == [MessageStart, ContentBlockStart, ContentBlockDelta]
    assert events[4] == ContentBlockDelta(index=0, delta=SignatureDelta("sig"))
    assert events[2] == ContentBlockDelta(index=0, delta=ThinkingDelta("H"))
    assert events[7] == ContentBlockDelta(index=1, delta=TextDelta("Let me "))
    assert events[10] == ContentBlockStart(index=2, content_block=ToolUseBlock(id="tu_1", name="weather", input={}))
    assert events[12] == ContentBlockDelta(index=2, delta=InputJSONDelta('{"city": "Pa'))
    assert events[-2:] == [
        MessageDelta(MessageDeltaPayload("tool_use"), MessageUsageDelta(output_tokens=7)),
        MessageStop(),
    ]
    assert len(events) == len(STREAMED)
    assert stream.outcome == "done"
    plain = await client.serverless.messages.create(model="m", messages=HI)
    assert await stream.result() == plain
    assert stream.usage == plain.usage
    assert (await stream.result()).meta is stream.meta
    assert server.requests[0].json == {"model": "m", "messages": HI, "stream": True}


async def test_text_and_reasoning_views_yield_only_their_deltas(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(STREAMED)), script(*named(STREAMED)))
    assert [text async for text in open_stream(client).text()] == ["Let me ", "see."]
    assert [text async for text in open_stream(client).reasoning()] == ["H", "mm"]


async def test_usage_is_updated_by_events_and_null_counts_are_ignored(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    events = [
        *SHORT[:-2],
        message_delta(output_tokens=3, input_tokens=None),
        message_delta(output_tokens=8, input_tokens=6),
        STOP,
    ]
    opened = asyncio.Event()
    server.enqueue(script(*named(events[:1]), gate(opened), *named(events[1:])))
    stream = open_stream(client)
    seen = [stream.usage]
    async with stream:
        seen.append(stream.usage)
        opened.set()
        result = await stream.result()
    assert seen == [None, MessageUsage(5, 0, 2)]
    assert result.usage == stream.usage == MessageUsage(6, 8, 2)


async def test_zero_after_a_count_does_not_replace_it(server: FriendliServer, client: AsyncFriendli) -> None:
    events = [*SHORT[:-2], message_delta(output_tokens=8, input_tokens=0), message_delta(output_tokens=0), STOP]
    server.enqueue(script(*named(events)))
    assert (await open_stream(client).result()).usage == MessageUsage(5, 8, 2)


DIALECTS: Final[dict[str, list[Payload]]] = {
    "pings": [event({"type": "ping"}, name="ping"), *named(SHORT[:3]), event({"type": "ping"}), *named(SHORT[3:])],
    "pings without data": [comment("ping"), *named(SHORT[:3]), event("12:30", name="ping"), *named(SHORT[3:])],
    "event name without type": [
        event({key: value for key, value in each.items() if key != "type"}, name=each["type"]) for each in SHORT
    ],
    "wrong event name": [event(each, name="message") for each in SHORT],
    "[DONE] sentinel": [*named(SHORT), done()],
    "[DONE] without message_stop": [*unnamed(SHORT[:-1]), done()],
    "nulls": named(
        [
            start(),
            block_start({"type": "text", "text": None}),
            text_delta("Hello"),
            {**message_delta(), "usage": None},
            STOP,
        ]
    ),
    "extra fields": named([{**each, "new": {"x": [1]}} for each in SHORT]),
    "CRLF": [raw("".join(f"event: {x['type']}\r\ndata: {json.dumps(x)}\r\n\r\n" for x in SHORT).encode())],
    "events after message_stop": [*named(SHORT), *named([text_delta("!"), {"type": "later"}]), event("{nope")],
    "error after message_stop": [raw("".join(f"data: {json.dumps(x)}\n\n" for x in [*SHORT, {"error": "x"}]).encode())],
}


@pytest.mark.parametrize("size", [None, 7], ids=["whole events", "7-byte chunks"])
@pytest.mark.parametrize("name", DIALECTS)
async def test_dialects_yield_the_same_text(
    server: FriendliServer, client: AsyncFriendli, name: str, size: int | None
) -> None:
    steps = DIALECTS[name]
    server.enqueue(script(*[step if size is None else split(step, size) for step in steps]))
    stream = open_stream(client)
    result = await with_timeout(stream.result())
    assert (result.text, stream.outcome) == ("Hello", "done")
    assert result.stop_reason == "end_turn"


async def test_surrogate_pair_split_across_deltas_is_joined(server: FriendliServer, client: AsyncFriendli) -> None:
    events = [start(), block_start(TEXT), text_delta("\ud83d"), text_delta("\ude00"), message_delta(), STOP]
    server.enqueue(script(*named(events)), script(*named(events)))
    assert (await open_stream(client).result()).text == "\U0001f600"
    assert [text async for text in open_stream(client).text()] == ["\U0001f600"]


# --- unknown types ---------------------------------------------------------------------------------------------------

UNKNOWN: Final[dict[str, JSON]] = {
    "event": {"type": "content_block_rated", "stars": 5},
    "delta": block_delta({"type": "hologram_delta", "hologram": {"title": "x"}}),
    "block": block_start({"type": "hologram", "data": "x"}, 1),
}


@pytest.mark.parametrize("form", [named, unnamed], ids=["named", "unnamed"])
@pytest.mark.parametrize("name", UNKNOWN)
async def test_unknown_types_become_unknown_events_and_the_stream_continues(
    server: FriendliServer, client: AsyncFriendli, name: str, form: Any
) -> None:
    server.enqueue(script(*form([*SHORT[:4], UNKNOWN[name], *SHORT[4:]])))
    stream = open_stream(client)
    events = await read(stream)
    assert events[4] == UnknownEvent(UNKNOWN[name]["type"], UNKNOWN[name])
    assert len(events) == len(SHORT) + 1
    assert (await stream.result()).text == "Hello"


async def test_unknown_event_without_type_is_identified_by_its_name(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(SHORT[:3]), event({"stars": 5}, name="rated"), *named(SHORT[3:])))
    assert (await read(open_stream(client)))[3] == UnknownEvent("rated", {"stars": 5})


# --- tool arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "deltas", "expected"),
    [
        ({}, [], {}),
        ({}, [""], {}),
        ({}, ["{}"], {}),
        ({"city": "Rome"}, [], {"city": "Rome"}),
        ({}, ['{"a"', ": [1, ", "2]}"], {"a": [1, 2]}),
        ({}, ['{"city": "Pa'], '{"city": "Pa'),
        ({}, ["[1]"], "[1]"),
    ],
    ids=["none", "empty delta", "empty object", "in block start", "split", "truncated", "not an object"],
)
async def test_arguments_are_parsed_or_kept_as_raw_text(
    server: FriendliServer, client: AsyncFriendli, initial: JSON, deltas: list[str], expected: object
) -> None:
    events = [
        start(),
        block_start({**CALL, "input": initial}),
        *map(json_delta, deltas),
        message_delta("max_tokens"),
        STOP,
    ]
    server.enqueue(script(*named(events)))
    [block] = (await open_stream(client).result()).content
    assert isinstance(block, ToolUseBlock)
    assert block == ToolUseBlock(id="tu_1", name="weather", input=expected)
    assert block.tool_call.function.arguments == (expected if isinstance(expected, str) else json.dumps(expected))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (None, b'{"type":"message_start","message":{"id":"m"}}'),
        (None, b'{"type":"message_start","message":{"id":"m","content":null}}'),
        ("message_start", b'{"message":{"id":"m","content":{}}}'),
        ("message_start", b'{"type":"other","message":{"id":"m"}}'),
    ],
)
def test_start_without_content_is_that_of_an_empty_message(name: str | None, data: bytes) -> None:
    decoded = MessagesCollector.dialect.decode(name, data, ReplyHead(200))
    assert decoded.payload == MessageStart(message=Message(id="m", content=()))


def calls_to_collect(blocks: int) -> int:
    """Returns the number of function calls that a stream of tool calls takes, an event a read."""
    count = 0

    def profile(_frame: FrameType, kind: str, _function: object) -> None:
        nonlocal count
        count += kind in {"call", "c_call"}

    collector = MessagesCollector()
    events = [ContentBlockStart(content_block=ToolUseBlock("f"), index=index) for index in range(blocks)]
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        for each in events:
            collector.extend((each,))
            assert not collector.has_text
    finally:
        sys.setprofile(before)
    return count


def test_an_event_costs_the_same_after_any_number_of_tool_calls() -> None:
    assert calls_to_collect(400) < 4.1 * calls_to_collect(100)


@pytest.mark.parametrize(
    ("event", "has_text"),
    [
        (ContentBlockDelta(delta=TextDelta("Hi")), True),
        (ContentBlockDelta(delta=TextDelta("")), False),
        (ContentBlockDelta(delta=ThinkingDelta("Hm")), False),
        (ContentBlockStart(content_block=TextBlock("Hi")), True),
        (ContentBlockStart(content_block=TextBlock()), False),
        (MessageStart(message=Message(content=(TextBlock("Hi"),))), True),
    ],
    ids=repr,
)
def test_text_has_arrived_with_the_first_event_that_has_some(event: MessageEvent, has_text: bool) -> None:
    collector = MessagesCollector()
    collector.extend((event, ContentBlockDelta(delta=InputJSONDelta("{}"), index=1)))
    assert collector.has_text is has_text
