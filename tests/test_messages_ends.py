"""Messages: where a stream ends, errors, inputs, and real servers."""

from typing import Final

import pytest
from aioresponses import aioresponses
from support.engine import LONG, MODEL
from support.messages import CALL, HI, JSON, SHORT, STREAMED, WHOLE, ask, begins, failure, named, read, unnamed
from support.sockets import QUICK, client_of, places_in_use, within

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    InternalServerError,
    Partial,
    ResponseDecodeError,
    StreamInterruptedError,
    UnprocessableEntityError,
)
from friendli_async.demo.engine import LocalEngine
from friendli_async.messages import (
    Base64Source,
    ContentBlockDelta,
    ImageBlock,
    InputMessage,
    MessageStart,
    MessageStop,
    TextBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
    UnknownEvent,
)
from friendli_async.testing import (
    FriendliServer,
    error_event,
    event,
    json_body,
    reset,
    script,
    stall,
    status,
)

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
        ({"delta": {"type": "text_delta", "text": 5}}, "content_block_delta"),
        ({"type": "message_start"}, None),
    ],
    ids=["broken", "a list", "text by a known name", "no delta", "no block", "text a number", "no message"],
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
