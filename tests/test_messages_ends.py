"""Messages API: end of stream, errors, inputs and real servers."""

import pytest
from support.engine import LONG, MODEL
from support.messages import (
    HI,
    JSON,
    SHORT,
    STOP,
    STREAMED,
    WHOLE,
    failure,
    named,
    open_stream,
    read,
    start,
    text_delta,
)
from support.sockets import with_timeout

from friendli_async import (
    AsyncFriendli,
    Partial,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async.demo.engine import LocalEngine
from friendli_async.messages import (
    Base64Source,
    ImageBlock,
    InputMessage,
    MessageStart,
    MessageStop,
    TextBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
)
from friendli_async.testing import (
    FriendliServer,
    event,
    json_body,
    reset,
    script,
    stall,
)

# --- end of stream and errors ----------------------------------------------------------------------------------------


async def test_message_stop_ends_the_stream_while_the_connection_stays_open(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(SHORT), stall()), script(*named(SHORT), stall()))
    stream = open_stream(client)
    assert len(await read(stream)) == len(SHORT)
    assert stream.outcome == "done"
    assert (await with_timeout(open_stream(client).result())).text == "Hello"


async def test_missing_message_stop_raises_interrupted_with_partial(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*named(STREAMED[:13])))
    stream = open_stream(client)
    error = await failure(stream, StreamInterruptedError)
    assert stream.outcome == "truncated"
    partial: Partial = error.partial
    assert (partial.text, partial.reasoning) == ("Let me see.", "Hmm")
    [call] = partial.tool_calls
    assert (call.id, call.type, call.function.name) == ("tu_1", "function", "weather")
    assert call.function.arguments == '{"city": "Pa'
    assert partial.usage is not None
    assert (partial.usage.prompt_tokens, partial.usage.completion_tokens, partial.usage.total_tokens) == (7, 0, 7)
    with pytest.raises(StreamInterruptedError):
        await stream.result()


async def test_body_may_end_after_the_stop_reason(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(SHORT[:-1])), script(*named(SHORT[:-2])))
    assert (await open_stream(client).result()).text == "Hello"
    error = await failure(open_stream(client), StreamInterruptedError)
    assert error.partial.text == "Hello"


@pytest.mark.parametrize("late", [start(), start(stop_reason="end_turn")], ids=["without", "with another"])
async def test_message_start_after_the_stop_reason_does_not_replace_it(
    server: FriendliServer, client: AsyncFriendli, late: JSON
) -> None:
    ending = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    events = [text_delta("Hello"), {"type": "message_delta", "delta": ending}, late, STOP]
    server.enqueue(script(*named(events)))
    message = await open_stream(client).result()
    assert (message.id, message.text, message.stop_reason, message.stop_sequence) == (
        "msg_1",
        "Hello",
        "stop_sequence",
        "END",
    )


async def test_reset_interrupts_only_before_message_stop(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(SHORT[:3]), reset()), script(*named(SHORT), reset()))
    error = await failure(open_stream(client), StreamInterruptedError)
    assert error.partial.text == "Hel"
    assert error.partial.usage.prompt_tokens == 7, "5, and 2 that were read from a cache"
    assert (await open_stream(client).result()).text == "Hello"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("{nope", None),
        ("[1]", None),
        ("nope", "content_block_delta"),
        ({"type": "content_block_delta", "index": 0, "delta": {"x": "y"}}, None),
        ({"type": "content_block_start", "index": 0, "content_block": 5}, "content_block_start"),
        ({"delta": {"type": "text_delta", "text": 5}}, "content_block_delta"),
        ({"type": "message_start", "message": {"content": [5]}}, None),
    ],
    ids=["malformed", "list", "plain text", "odd delta", "block is a number", "text is a number", "odd message"],
)
async def test_malformed_event_raises_decode_error_after_valid_events(
    server: FriendliServer, client: AsyncFriendli, data: object, name: str | None
) -> None:
    server.enqueue(script(*named(SHORT[:3]), event(data, name=name), stall()))
    stream = open_stream(client)
    error = await failure(stream, ResponseDecodeError)
    assert error.partial.text == "Hel"
    assert error.excerpt
    assert stream.outcome == "failed"


async def test_events_without_known_content_are_skipped(server: FriendliServer, client: AsyncFriendli) -> None:
    skipped = [event({}), event("text", name="rated"), event({"type": None}), event({"type": 5})]
    server.enqueue(script(*named(SHORT[:3]), *skipped, *named(SHORT[3:])))
    assert len(await read(open_stream(client))) == len(SHORT)


# --- inputs ----------------------------------------------------------------------------------------------------------


async def test_replies_structs_and_dicts_are_accepted_as_input(server: FriendliServer, client: AsyncFriendli) -> None:
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


async def test_streamed_result_is_accepted_as_input(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*named(STREAMED)), json_body(WHOLE))
    first = await open_stream(client).result()
    await client.serverless.messages.create(model="m", messages=[*HI, first])
    assert server.requests[1].json_object["messages"][1]["content"] == WHOLE["content"]


@pytest.mark.parametrize(
    ("invalid", "message"),
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
async def test_invalid_value_is_rejected_with_its_path_before_sending(
    server: FriendliServer, client: AsyncFriendli, invalid: JSON, message: str
) -> None:
    arguments: JSON = {"model": "m", "messages": HI, **invalid}
    with pytest.raises(ValueError, match=message):
        await client.serverless.messages.create(**arguments)
    with pytest.raises(ValueError, match=message):
        client.serverless.messages.stream(**arguments)
    assert server.requests == []


async def test_extra_body_and_extra_query_are_sent(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body(WHOLE))
    await client.serverless.messages.create(
        model="m", messages=HI, extra_body={"betas": ["x"]}, extra_query={"beta": True}
    )
    assert server.requests[0].json_object["betas"] == ["x"]
    assert dict(server.requests[0].query) == {"beta": ["true"]}


async def test_container_omits_model_if_none(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body(WHOLE), script(*named(SHORT)), json_body(WHOLE))
    await client.container.messages.create(messages=HI)
    await client.container.messages.stream(model=None, messages=HI).result()
    await client.container.messages.create(model="adapter", messages=HI)
    assert [each.json_object.get("model", "omitted") for each in server.requests] == ["omitted"] * 2 + ["adapter"]


# --- servers ---------------------------------------------------------------------------------------------------------


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
