"""Messages: replies, the events of a stream, and what they add up to."""

import copy
import json
from typing import Any, Final

import msgspec
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
    adds,
    ask,
    begins,
    ends,
    named,
    read,
    says,
    start,
    stops,
    unnamed,
    writes,
)
from support.sockets import nothing_left, within

from friendli_async import (
    AsyncFriendli,
    ResponseDecodeError,
)
from friendli_async.messages import (
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJSONDelta,
    Message,
    MessageDelta,
    MessageDeltaPayload,
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
    UnknownEvent,
)
from friendli_async.testing import (
    FriendliServer,
    Payload,
    comment,
    done,
    event,
    json_body,
    raw,
    script,
    split,
)

# --- whole messages --------------------------------------------------------------------------------------------------


async def test_create_gives_content_text_reasoning_usage_and_meta(
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
    ids=["no content", "two texts", "nulls", "added fields", "a new stop reason"],
)
async def test_replies_of_other_shapes_are_read(
    server: FriendliServer, client: AsyncFriendli, reply: JSON, text: str
) -> None:
    server.enqueue(json_body(reply))
    message = await client.serverless.messages.create(model="m", messages=HI)
    assert message.text == text
    assert message.role == "assistant"


async def test_block_of_an_unknown_kind_stays_the_dict_that_it_is(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    block = {"type": "hologram", "data": "x"}
    server.enqueue(json_body({**WHOLE, "content": [block, {"type": "text", "text": "a"}]}))
    message = await client.serverless.messages.create(model="m", messages=HI)
    assert message.content == (block, TextBlock("a"))
    assert message.text == "a"


@pytest.mark.parametrize("reply", [{}, {"content": None}, {"content": [5]}, {"content": [{"type": "text", "text": 5}]}])
async def test_what_is_no_message_is_a_decode_error(server: FriendliServer, client: AsyncFriendli, reply: JSON) -> None:
    server.enqueue(json_body(reply))
    with pytest.raises(ResponseDecodeError):
        await client.serverless.messages.create(model="m", messages=HI)


def test_message_round_trips_through_json() -> None:
    content = [*WHOLE["content"], {"type": "hologram", "data": "x"}]
    message = msgspec.convert({**WHOLE, "content": content}, Message)
    encoded = json.loads(msgspec.json.encode(message))
    assert encoded == {key: value for key, value in {**WHOLE, "content": content}.items() if value is not None}
    assert msgspec.convert(encoded, Message) == message
    assert copy.deepcopy(message) == message


def test_every_event_round_trips_through_json_and_tells_its_type() -> None:
    for each in STREAMED:
        decoded = msgspec.convert(each, MessageStart | ContentBlockStart | ContentBlockDelta | ContentBlockStop
                                  | MessageDelta | MessageStop)  # fmt: skip
        assert decoded.type == each["type"]
        assert msgspec.convert(json.loads(msgspec.json.encode(decoded)), type(decoded)) == decoded


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [named, unnamed], ids=["named", "unnamed"])
async def test_stream_gives_typed_events_that_add_up_to_the_plain_reply(
    server: FriendliServer, client: AsyncFriendli, form: Any
) -> None:
    server.enqueue(script(*form(STREAMED)), json_body(WHOLE))
    stream = ask(client)
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


async def test_result_alone_reads_the_whole_stream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(SHORT)))
    stream = ask(client)
    assert (await within(stream.result())).text == "Hello"
    assert stream.outcome == "done"
    await nothing_left(client, server, connections=1)


async def test_text_and_reasoning_views_give_their_pieces_only(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(STREAMED)), script(*named(STREAMED)))
    assert [text async for text in ask(client).text()] == ["Let me ", "see."]
    assert [text async for text in ask(client).reasoning()] == ["H", "mm"]


async def test_text_in_the_beginning_of_a_block_counts(server: FriendliServer, client: AsyncFriendli) -> None:
    thought = begins({"type": "thinking", "thinking": "Hm"})
    events = [start(), thought, begins({"type": "text", "text": "He"}, 1), says("llo", 1), ends(), STOP]
    server.enqueue(*[script(*named(events)) for _ in range(3)])
    result = await ask(client).result()
    assert (result.text, result.reasoning) == ("Hello", "Hm")
    assert "".join([text async for text in ask(client).text()]) == "Hello"
    assert "".join([text async for text in ask(client).reasoning()]) == "Hm"


async def test_usage_grows_with_the_stream_and_null_counts_change_nothing(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    events = [*SHORT[:-2], ends(output_tokens=3, input_tokens=None), ends(output_tokens=8, input_tokens=6), STOP]
    server.enqueue(script(*named(events)))
    stream = ask(client)
    seen = [stream.usage]
    async with stream:
        seen.append(stream.usage)
        result = await stream.result()
    assert seen == [None, MessageUsage(5, 0, 2)]
    assert result.usage == stream.usage == MessageUsage(6, 8, 2)


DIALECTS: Final[dict[str, list[Payload]]] = {
    "pings": [event({"type": "ping"}, name="ping"), *named(SHORT[:3]), event({"type": "ping"}), *named(SHORT[3:])],
    "pings without data": [comment("ping"), *named(SHORT[:3]), event("12:30", name="ping"), *named(SHORT[3:])],
    "the name alone": [
        event({key: value for key, value in each.items() if key != "type"}, name=each["type"]) for each in SHORT
    ],
    "a name that says something else": [event(each, name="message") for each in SHORT],
    "a sentinel": [*named(SHORT), done()],
    "a sentinel without message_stop": [*unnamed(SHORT[:-1]), done()],
    "blocks that begin with a delta": named([start(), says("Hel"), says("lo"), ends(), STOP]),
    "an index used again": named(
        [start(), begins(TEXT), says("Hel"), stops(), begins(TEXT), says("lo"), stops(), ends(), STOP]
    ),
    "an index as text": [event(each | {"index": "0"} if "index" in each else each) for each in SHORT],
    "no index": [event({k: v for k, v in each.items() if k != "index"}) for each in SHORT],
    "content in message_start": named([start(content=[{"type": "text", "text": "Hello"}]), ends(), STOP]),
    "nulls": named([start(), begins({"type": "text", "text": None}), says("Hello"), {**ends(), "usage": None}, STOP]),
    "added fields": named([{**each, "new": {"x": [1]}} for each in SHORT]),
    "CRLF": [raw("".join(f"event: {x['type']}\r\ndata: {json.dumps(x)}\r\n\r\n" for x in SHORT).encode())],
    "events after the last": [*named(SHORT), *named([says("!"), {"type": "later"}]), event("{nope")],
    "an error after the last": [raw("".join(f"data: {json.dumps(x)}\n\n" for x in [*SHORT, {"error": "x"}]).encode())],
}


@pytest.mark.parametrize("size", [None, 7], ids=["by event", "7 bytes a read"])
@pytest.mark.parametrize("name", DIALECTS)
async def test_dialects_give_the_same_text(
    server: FriendliServer, client: AsyncFriendli, name: str, size: int | None
) -> None:
    steps = DIALECTS[name]
    server.enqueue(script(*[step if size is None else split(step, size) for step in steps]))
    stream = ask(client)
    result = await within(stream.result())
    assert (result.text, stream.outcome) == ("Hello", "done")
    assert result.stop_reason == "end_turn"


async def test_character_that_two_deltas_share_is_put_together(server: FriendliServer, client: AsyncFriendli) -> None:
    events = [start(), begins(TEXT), says("\ud83d"), says("\ude00"), ends(), STOP]
    server.enqueue(script(*named(events)), script(*named(events)))
    assert (await ask(client).result()).text == "\U0001f600"
    assert [text async for text in ask(client).text()] == ["\U0001f600"]


# --- what comes later ------------------------------------------------------------------------------------------------

LATER: Final[dict[str, JSON]] = {
    "an event": {"type": "content_block_rated", "stars": 5},
    "a delta": adds({"type": "citations_delta", "citation": {"title": "x"}}),
    "a block": begins({"type": "hologram", "data": "x"}, 1),
}


@pytest.mark.parametrize("form", [named, unnamed], ids=["named", "unnamed"])
@pytest.mark.parametrize("name", LATER)
async def test_unknown_kinds_are_unknown_events_and_the_stream_goes_on(
    server: FriendliServer, client: AsyncFriendli, name: str, form: Any
) -> None:
    server.enqueue(script(*form([*SHORT[:4], LATER[name], *SHORT[4:]])))
    stream = ask(client)
    events = await read(stream)
    assert events[4] == UnknownEvent(LATER[name]["type"], LATER[name])
    assert len(events) == len(SHORT) + 1
    assert (await stream.result()).text == "Hello"


async def test_unknown_event_that_only_its_name_tells_is_delivered(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(SHORT[:3]), event({"stars": 5}, name="rated"), *named(SHORT[3:])))
    assert (await read(ask(client)))[3] == UnknownEvent("rated", {"stars": 5})


async def test_block_of_an_unknown_kind_is_kept_in_its_place_with_what_is_added(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    block = {"type": "server_tool_use", "id": "x", "name": "search", "input": {}}
    events = [start(), begins(block), writes('{"q": 1}'), begins(TEXT, 1), says("Hello", 1), ends(), STOP]
    server.enqueue(script(*named(events)))
    result = await ask(client).result()
    assert result.content == ({**block, "input": {"q": 1}}, TextBlock("Hello"))


@pytest.mark.parametrize("index", [1, "1", 1.0, None])
async def test_unknown_block_with_any_form_of_index_takes_no_text_of_another_block(
    server: FriendliServer, client: AsyncFriendli, index: Any
) -> None:
    block = {"type": "hologram", "data": "x"}
    events = [start(), begins(TEXT), says("Hel"), begins(block, index), says("!", index), says("lo"), ends(), STOP]
    server.enqueue(script(*named(events)))
    result = await ask(client).result()
    assert result.content == (TextBlock("Hello"), {**block, "text": "!"})


async def test_new_stop_reason_is_taken_as_it_is(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named([*SHORT[:-2], ends("pause_turn"), STOP])))
    assert (await ask(client).result()).stop_reason == "pause_turn"


# --- arguments of tools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begun", "pieces", "expected"),
    [
        ({}, [], {}),
        ({}, [""], {}),
        ({}, ["{}"], {}),
        ({"city": "Rome"}, [], {"city": "Rome"}),
        ({}, ['{"a"', ": [1, ", "2]}"], {"a": [1, 2]}),
        ({}, ['{"city": "Pa'], '{"city": "Pa'),
        ({}, ["[1]"], "[1]"),
    ],
    ids=["none", "an empty piece", "empty", "at the beginning", "in pieces", "cut", "no object"],
)
async def test_arguments_are_a_dict_or_else_the_text_as_written(
    server: FriendliServer, client: AsyncFriendli, begun: JSON, pieces: list[str], expected: object
) -> None:
    events = [start(), begins({**CALL, "input": begun}), *map(writes, pieces), ends("max_tokens"), STOP]
    server.enqueue(script(*named(events)))
    [block] = (await ask(client).result()).content
    assert block == ToolUseBlock(id="tu_1", name="weather", input=expected)


async def test_call_and_thought_whose_beginnings_are_missing_are_kept(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    thinks = adds({"type": "thinking_delta", "thinking": "Hm"}, 1)
    server.enqueue(script(*named([start(), writes('{"a": 1}'), thinks, ends(), STOP])))
    assert (await ask(client).result()).content == (ToolUseBlock(input={"a": 1}), ThinkingBlock("Hm"))
