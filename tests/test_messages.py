"""Messages: replies, the events of a stream and what they add up to, inputs, errors, and where a stream ends."""

import copy
import json
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest
from aioresponses import aioresponses
from support.engine import LONG, MODEL
from support.sockets import QUICK, client_of, nothing_left, places_in_use, within

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    InternalServerError,
    Partial,
    ResponseDecodeError,
    StreamInterruptedError,
    UnprocessableEntityError,
)
from friendli_async.messages import (
    Base64Source,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    ImageBlock,
    InputJSONDelta,
    InputMessage,
    Message,
    MessageDelta,
    MessageDeltaPayload,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageStream,
    MessageUsage,
    MessageUsageDelta,
    SignatureDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
    UnknownEvent,
)
from friendli_async.testing import (
    FriendliServer,
    Payload,
    comment,
    done,
    error_event,
    event,
    json_body,
    raw,
    reset,
    script,
    split,
    stall,
    status,
)
from friendli_async.testing.engine import LocalEngine

JSON = dict[str, Any]
HI: Final[list[dict[str, object]]] = [{"role": "user", "content": "Hi"}]
WHOLE: Final[JSON] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [
        {"type": "thinking", "thinking": "Hmm", "signature": "sig"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "tu_1", "name": "weather", "input": {"city": "Paris"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 2},
}


def start(**fields: object) -> JSON:
    usage = {"input_tokens": 5, "output_tokens": 0, "cache_read_input_tokens": 2}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
    return {"type": "message_start", "message": {**message, "stop_reason": None, **fields}}


def begins(block: JSON, index: int = 0) -> JSON:
    return {"type": "content_block_start", "index": index, "content_block": block}


def adds(delta: JSON, index: int = 0) -> JSON:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def says(text: str, index: int = 0) -> JSON:
    return adds({"type": "text_delta", "text": text}, index)


def writes(text: str, index: int = 0) -> JSON:
    return adds({"type": "input_json_delta", "partial_json": text}, index)


def stops(index: int = 0) -> JSON:
    return {"type": "content_block_stop", "index": index}


def ends(reason: str = "end_turn", **usage: object) -> JSON:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage or {"output_tokens": 7}}


STOP: Final[JSON] = {"type": "message_stop"}
TEXT: Final[JSON] = {"type": "text", "text": ""}
CALL: Final[JSON] = {"type": "tool_use", "id": "tu_1", "name": "weather", "input": {}}
STREAMED: Final[list[JSON]] = [
    start(),
    begins({"type": "thinking", "thinking": "", "signature": ""}),
    adds({"type": "thinking_delta", "thinking": "H"}),
    adds({"type": "thinking_delta", "thinking": "mm"}),
    adds({"type": "signature_delta", "signature": "sig"}),
    stops(),
    begins(TEXT, 1),
    says("Let me ", 1),
    says("see.", 1),
    stops(1),
    begins(CALL, 2),
    writes("", 2),
    writes('{"city": "Pa', 2),
    writes('ris"}', 2),
    stops(2),
    ends("tool_use"),
    STOP,
]
SHORT: Final[list[JSON]] = [start(), begins(TEXT), says("Hel"), says("lo"), stops(), ends(), STOP]


def named(events: list[JSON]) -> list[Payload]:
    return [event(each, name=each["type"]) for each in events]


def unnamed(events: list[JSON]) -> list[Payload]:
    return [event(each) for each in events]


@pytest.fixture
async def server() -> AsyncIterator[FriendliServer]:
    async with FriendliServer() as running:
        yield running


@pytest.fixture
async def client(server: FriendliServer) -> AsyncIterator[AsyncFriendli]:
    async with client_of(server.url) as opened:
        yield opened


def ask(client: AsyncFriendli, **options: Any) -> MessageStream:
    return client.serverless.messages.stream(model="m", messages=HI, **options)


async def read(stream: MessageStream) -> list[MessageEvent]:
    return await within(_events(stream))


async def _events(stream: MessageStream) -> list[MessageEvent]:
    return [each async for each in stream]


async def failure(stream: MessageStream, kind: type[Exception]) -> Any:
    """Reads a stream to its error."""
    with pytest.raises(kind) as raised:
        await read(stream)
    return raised.value


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
        ({"content": []}, ""),
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


@pytest.mark.parametrize(
    "reply", [{}, {"content": None}, {"content": ["a"]}, {"content": [{"type": "text", "text": 5}]}]
)
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


# --- ends and errors -------------------------------------------------------------------------------------------------


async def test_message_stop_ends_the_stream_although_the_server_keeps_it_open(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(SHORT), stall()), script(*named(SHORT), stall()))
    stream = ask(client)
    assert len(await read(stream)) == len(SHORT)
    assert stream.outcome == "done"
    assert (await within(ask(client).result())).text == "Hello"


async def test_end_without_message_stop_is_an_interruption_with_what_had_arrived(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(STREAMED[:13])))
    stream = ask(client)
    error = await failure(stream, StreamInterruptedError)
    assert stream.outcome == "truncated"
    partial: Partial = error.partial
    assert (partial.text, partial.reasoning) == ("Let me see.", "Hmm")
    [call] = partial.tool_calls
    assert (call.id, call.type, call.function.name) == ("tu_1", "function", "weather")
    assert call.function.arguments == '{"city": "Pa'
    assert partial.usage is not None
    assert (partial.usage.prompt_tokens, partial.usage.completion_tokens, partial.usage.total_tokens) == (5, 0, 5)
    with pytest.raises(StreamInterruptedError):
        await stream.result()


async def test_partial_of_a_stream_that_told_little_is_what_it_told(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named([begins({**CALL, "input": {"city": "Rome"}})])), script(*named([begins(CALL)])))
    error = await failure(ask(client), StreamInterruptedError)
    assert error.partial.tool_calls[0].function.arguments == '{"city": "Rome"}'
    error = await failure(ask(client), StreamInterruptedError)
    assert error.partial.tool_calls[0].function.arguments == ""
    assert error.partial.usage is None


async def test_stop_reason_alone_is_no_end(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(SHORT[:-1])))
    error = await failure(ask(client), StreamInterruptedError)
    assert error.partial.text == "Hello"


async def test_reset_before_the_end_is_an_interruption_and_after_it_is_none(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(SHORT[:3]), reset()), script(*named(SHORT), reset()))
    error = await failure(ask(client), StreamInterruptedError)
    assert error.partial.text == "Hel"
    assert error.partial.usage.prompt_tokens == 5
    assert (await ask(client).result()).text == "Hello"


OVERLOADED: Final[JSON] = {"type": "error", "error": {"type": "overloaded_error", "message": "too busy"}}


@pytest.mark.parametrize("name", ["error", None], ids=["named", "unnamed"])
async def test_error_in_the_stream_raises_the_class_that_its_type_names(
    server: FriendliServer, client: AsyncFriendli, name: str | None
) -> None:
    server.enqueue(script(*named(SHORT[:3]), event(OVERLOADED, name=name), stall()))
    stream = ask(client)
    error = await failure(stream, InternalServerError)
    assert (error.status_code, error.type, error.message) == (503, "overloaded_error", "too busy")
    assert error.meta.status == 200
    assert error.partial.text == "Hel"
    assert stream.outcome == "failed"


@pytest.mark.parametrize(
    "data",
    [{"error": {"message": "oh"}}, {"type": "new", "error": "oh"}, {"type": "error", "error": {"message": "oh"}}],
)
async def test_error_of_no_known_type_is_an_error_all_the_same(
    server: FriendliServer, client: AsyncFriendli, data: JSON
) -> None:
    server.enqueue(script(*unnamed(SHORT[:3]), event(data)))
    error = await failure(ask(client), APIStatusError)
    assert error.message == "oh"


async def test_overload_as_the_first_event_is_retried(server: FriendliServer) -> None:
    server.enqueue(script(error_event(OVERLOADED)), script(*named(SHORT)))
    async with client_of(server.url, retry=QUICK) as client:
        stream = ask(client)
        assert (await stream.result()).text == "Hello"
        assert len(stream.meta.attempts) == 2


async def test_422_tells_type_message_and_request_id(mock_http: aioresponses) -> None:
    detail = {"type": "invalid_request_error", "message": "max_tokens: too large"}
    reply = {"type": "error", "error": detail, "request_id": "r9"}
    mock_http.post("http://friendli.test/serverless/v1/messages", status=422, payload=reply, repeat=True)
    async with client_of("http://friendli.test") as client:
        with pytest.raises(UnprocessableEntityError) as plain:
            await client.serverless.messages.create(model="m", messages=HI)
        with pytest.raises(UnprocessableEntityError) as streamed:
            await ask(client).result()
    for error in (plain.value, streamed.value):
        assert (error.type, error.message) == ("invalid_request_error", "max_tokens: too large")
        assert error.request_id == "r9"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("{nope", None),
        ("[1]", None),
        ("nope", "content_block_delta"),
        ({"type": "content_block_delta", "index": 0}, None),
        ({"type": "content_block_start", "index": 0, "content_block": "text"}, "content_block_start"),
        (says("x") | {"index": "one"}, None),
        ({"delta": {"type": "text_delta", "text": 5}}, "content_block_delta"),
        ({"type": "message_start"}, None),
    ],
    ids=["broken", "a list", "text by a known name", "no delta", "no block", "index", "text a number", "no message"],
)
async def test_event_that_is_not_what_its_kind_promises_is_a_decode_error_after_the_good_ones(
    server: FriendliServer, client: AsyncFriendli, data: object, name: str | None
) -> None:
    server.enqueue(script(*named(SHORT[:3]), event(data, name=name), stall()))
    stream = ask(client)
    error = await failure(stream, ResponseDecodeError)
    assert error.partial.text == "Hel"
    assert error.excerpt
    assert stream.outcome == "failed"


async def test_data_that_says_nothing_is_passed_by(server: FriendliServer, client: AsyncFriendli) -> None:
    nothing = [event({}), event("text", name="rated"), event({"type": None}), event({"type": 5})]
    server.enqueue(script(*named(SHORT[:3]), *nothing, *named(SHORT[3:])))
    assert len(await read(ask(client))) == len(SHORT)


async def test_leaving_a_stream_closes_it(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(SHORT[:3]), stall()))
    async with ask(client) as stream:
        async for each in stream:
            if isinstance(each, ContentBlockDelta):
                break
    assert stream.outcome == "cancelled"
    assert await within(server.requests[0].disconnected())
    assert places_in_use(client) == 0
    with pytest.raises(StreamInterruptedError) as raised:
        await stream.result()
    assert raised.value.partial is not None
    assert raised.value.partial.text == "Hel"


async def test_plain_call_is_repeated_after_a_503(server: FriendliServer) -> None:
    server.enqueue(status(503), json_body(WHOLE))
    async with client_of(server.url, retry=QUICK) as client:
        assert (await client.serverless.messages.create(model="m", messages=HI)).text


# --- inputs ----------------------------------------------------------------------------------------------------------


async def test_replies_structs_and_dicts_go_into_the_next_call(server: FriendliServer, client: AsyncFriendli) -> None:
    content = [*WHOLE["content"], {"type": "document", "title": "t"}]
    server.enqueue(json_body({**WHOLE, "content": content}), json_body(WHOLE))
    first = await client.serverless.messages.create(model="m", messages=HI)
    image = ImageBlock(Base64Source("AAAA", "image/png"))
    await client.serverless.messages.create(
        model="m",
        messages=(
            InputMessage("user", "Hi"),
            first,
            {"role": "assistant", "content": first.content[1:2]},
            InputMessage(
                "user", [ToolResultBlock("tu_1", "5"), image, TextBlock("so?"), {"type": "text", "text": "x"}]
            ),
        ),
        system=[TextBlock("be brief"), {"type": "text", "text": "be kind"}],
        tools=[Tool("weather", input_schema={"type": "object"}), {"name": "time", "new": 1}],
    )
    sent = server.requests[1].json_object
    result = {"type": "tool_result", "tool_use_id": "tu_1", "content": "5"}
    source = {"type": "base64", "data": "AAAA", "media_type": "image/png"}
    text = {"type": "text", "text": "so?"}
    assert sent["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": content},
        {"role": "assistant", "content": content[1:2]},
        {
            "role": "user",
            "content": [result, {"type": "image", "source": source}, text, {"type": "text", "text": "x"}],
        },
    ]
    assert sent["system"] == [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]
    assert sent["tools"] == [{"name": "weather", "input_schema": {"type": "object"}}, {"name": "time", "new": 1}]


async def test_streamed_result_goes_into_the_next_call(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(STREAMED)), json_body(WHOLE))
    first = await ask(client).result()
    await client.serverless.messages.create(model="m", messages=[*HI, first])
    assert server.requests[1].json_object["messages"][1]["content"] == WHOLE["content"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].*content"),
        ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\[0\].content\[0\].*text"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, r"messages\[0\].content\[0\].*type"),
        ({"messages": [{"role": "user", "content": [{"type": "film"}]}]}, r"messages\[0\].content\[0\].type.*film"),
        ({"messages": [InputMessage("user", [ToolUseBlock("f", '{"a')])]}, r"messages\[0\].content\[0\].input"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]}, r"source.*url"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [5]}, r"messages\[0\]"),
        ({"model": None}, "model"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"system": [{"text": "x"}]}, r"system\[0\].*type"),
        ({"system": 5}, "system"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"tool_choice": {}}, "tool_choice.*type"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{}]}, r"tools\[0\].*name"),
        ({"output_config": {"format": {"schema": {}}}}, "output_config.format.*type"),
        ({"metadata": [1]}, "metadata"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"service_tier": 5}, "service_tier"),
        ({"temperature": float("nan")}, "temperature"),
    ],
    ids=str,
)
async def test_bad_value_is_refused_with_its_path_before_anything_is_sent(
    server: FriendliServer, client: AsyncFriendli, wrong: JSON, message: str
) -> None:
    given: JSON = {"model": "m", "messages": HI, **wrong}
    with pytest.raises(ValueError, match=message):
        await client.serverless.messages.create(**given)
    with pytest.raises(ValueError, match=message):
        client.serverless.messages.stream(**given)
    assert server.requests == []


async def test_unknown_keyword_names_the_nearest(client: AsyncFriendli) -> None:
    given: JSON = {"model": "m", "messages": HI, "max_token": 5}
    with pytest.raises(TypeError, match=r"create\(\).*max_tokens"):
        await client.serverless.messages.create(**given)
    with pytest.raises(TypeError, match=r"stream\(\).*max_tokens"):
        client.serverless.messages.stream(**given)


async def test_extra_body_and_query_pass_anything(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body(WHOLE))
    await client.serverless.messages.create(
        model="m", messages=HI, extra_body={"betas": ["x"]}, extra_query={"beta": True}
    )
    assert server.requests[0].json_object["betas"] == ["x"]
    assert dict(server.requests[0].query) == {"beta": ["true"]}


@pytest.mark.parametrize(
    ("deployment", "path"),
    [("serverless", "/serverless/v1/messages"), ("dedicated", "/dedicated/v1/messages"), ("container", "/v1/messages")],
)
async def test_every_deployment_has_messages(
    server: FriendliServer, client: AsyncFriendli, deployment: str, path: str
) -> None:
    server.enqueue(json_body(WHOLE), script(*named(SHORT)))
    messages = getattr(client, deployment).messages
    assert (await messages.create(model="m", messages=HI)).text
    assert (await messages.stream(model="m", messages=HI).result()).text == "Hello"
    assert [(each.method, each.path) for each in server.requests] == [("POST", path)] * 2


async def test_container_leaves_the_model_out_where_it_is_none(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body(WHOLE), script(*named(SHORT)), json_body(WHOLE))
    await client.container.messages.create(messages=HI)
    await client.container.messages.stream(model=None, messages=HI).result()
    await client.container.messages.create(model="adapter", messages=HI)
    assert [each.json_object.get("model", "left out") for each in server.requests] == ["left out"] * 2 + ["adapter"]


# --- servers ---------------------------------------------------------------------------------------------------------


async def test_embedded_server_answers_messages_plain_and_streamed(client: AsyncFriendli) -> None:
    plain = await client.serverless.messages.create(model="m", messages=HI, max_tokens=20)
    stream = ask(client, max_tokens=20)
    events = await read(stream)
    result = await stream.result()
    assert plain.text
    assert result.text == plain.text
    assert isinstance(events[-1], MessageStop)
    assert not any(isinstance(each, UnknownEvent) for each in events)


@pytest.mark.engine
async def test_real_engine_answers_plain_and_streamed(engine: LocalEngine) -> None:
    asked: JSON = {"messages": HI, "max_tokens": 12, "temperature": 0.0, **LONG}
    async with AsyncFriendli(container_url=engine.url) as client:
        plain = await client.container.messages.create(**asked)
        async with client.container.messages.stream(**asked) as stream:
            events = await read(stream)
        result = await stream.result()
    assert plain.model == result.model == MODEL
    assert plain.text == result.text != ""
    assert result.usage is not None
    assert plain.usage is not None
    assert result.usage.output_tokens == plain.usage.output_tokens == 12
    assert result.stop_reason == "max_tokens"
    assert stream.outcome == "done"
    assert isinstance(events[0], MessageStart)
    assert isinstance(events[-1], MessageStop)
