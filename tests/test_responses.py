"""Responses API: inputs, plain replies, and round trips against the embedded server and a real engine."""

import json
from typing import Any, Final

import pytest
from support.engine import CALLS_A_TOOL
from support.responses import CALL_ITEM, MESSAGE_ITEM, REASONING_ITEM, WHOLE

from friendli_async import (
    AsyncFriendli,
    RateLimitError,
    ResponseDecodeError,
)
from friendli_async.demo.engine import LocalEngine
from friendli_async.replies import FunctionCall, ToolCall, UnknownEvent
from friendli_async.responses import (
    ContentPart,
    Conversation,
    FunctionCallArgumentsDelta,
    InputMessage,
    InputText,
    InputTokensDetails,
    OutputItem,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    OutputTokensDetails,
    ResponseCompleted,
    ResponseCreated,
    ResponseUsage,
)
from friendli_async.testing import (
    FriendliServer,
    event,
    json_body,
    script,
)

# --- plain replies ---------------------------------------------------------------------------------------------------


async def test_reply_exposes_text_reasoning_tool_calls_usage_and_meta(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(json_body({**WHOLE, "error": None, "incomplete_details": None, "new_field": 1}))
    reply = await client.serverless.responses.create(model="m", input="hi")
    assert (reply.id, reply.model, reply.status, reply.created_at) == ("resp_1", "m", "completed", 1700000000)
    assert reply.text == "Hello there!"
    assert reply.reasoning == "think harder"
    assert reply.tool_calls == (ToolCall("call_1", "function", FunctionCall("weather", '{"city": "Rome"}')),)
    assert reply.usage == ResponseUsage(5, 7, 12, InputTokensDetails(2), OutputTokensDetails(3))
    assert reply.meta.status == 200
    assert [item.type for item in reply.output] == ["reasoning", "message", "function_call"]


async def test_unknown_item_types_part_types_and_statuses_are_kept(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    item = {"type": "web_search_call", "id": "ws_1", "status": "searching", "action": {"query": "x"}}
    message = {"type": "message", "content": [{"type": "output_song", "text": "la"}]}
    server.enqueue(json_body({**WHOLE, "status": "paused", "output": [item, message]}))
    reply = await client.serverless.responses.create(model="m", input="hi")
    assert reply.status == "paused"
    assert reply.output[0] == OutputItem(type="web_search_call", id="ws_1", status="searching", data=item)
    assert reply.output[1].content == (ContentPart("output_song", "la"),)
    assert (reply.text, reply.reasoning, reply.tool_calls) == ("", "", ())


async def test_reasoning_falls_back_to_the_summary(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body({**WHOLE, "output": [{**REASONING_ITEM, "content": None}]}))
    assert (await client.serverless.responses.create(model="m", input="hi")).reasoning == "short"


async def test_part_of_a_reasoning_item_without_a_type_is_reasoning(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(json_body({**WHOLE, "output": [{**REASONING_ITEM, "content": [{"text": "hm"}]}, MESSAGE_ITEM]}))
    reply = await client.serverless.responses.create(model="m", input="hi")
    assert (reply.text, reply.reasoning) == (reply.output[1].text, "hm")


async def test_reply_requires_output_but_not_id(client: AsyncFriendli, server: FriendliServer) -> None:
    for missing in ("id", "output"):
        server.enqueue(json_body({name: value for name, value in WHOLE.items() if name != missing}))
    reply = await client.serverless.responses.create(model="m", input="hi")
    assert (reply.id, len(reply.output)) == ("", len(WHOLE["output"]))
    with pytest.raises(ResponseDecodeError, match="output"):
        await client.serverless.responses.create(model="m", input="hi")


async def test_incomplete_reply_is_returned(client: AsyncFriendli, server: FriendliServer) -> None:
    details = {"reason": "max_output_tokens"}
    server.enqueue(json_body({**WHOLE, "status": "incomplete", "incomplete_details": details}))
    reply = await client.serverless.responses.create(model="m", input="hi")
    assert reply.status == "incomplete"
    assert reply.incomplete_details is not None
    assert reply.incomplete_details.reason == "max_output_tokens"


async def test_failed_reply_raises_with_its_partial_output(client: AsyncFriendli, server: FriendliServer) -> None:
    failed = {**WHOLE, "status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow down"}}
    server.enqueue(json_body(failed, headers={"x-request-id": "req_7"}))
    with pytest.raises(RateLimitError, match="slow down") as caught:
        await client.serverless.responses.create(model="m", input="hi")
    error = caught.value
    assert (error.status_code, error.code, error.request_id) == (429, "rate_limit_exceeded", "req_7")
    assert error.meta is not None
    assert error.meta.status == 200
    assert error.partial is not None
    assert error.partial.text == "Hello there!"


@pytest.mark.parametrize("fields", [{"status": "completed"}, {"status": None, "output": []}, {"output": []}])
async def test_error_in_a_reply_that_has_not_failed_is_raised(
    client: AsyncFriendli, server: FriendliServer, fields: dict[str, Any]
) -> None:
    whole = {**WHOLE, "error": {"code": "rate_limit_exceeded", "message": "slow down"}, **fields}
    server.enqueue(json_body(whole), script(event({"type": "response.completed", "response": whole})))
    for call in (
        client.serverless.responses.create,
        lambda **body: client.serverless.responses.stream(**body).result(),
    ):
        with pytest.raises(RateLimitError, match="slow down") as caught:
            await call(model="m", input="hi")
        assert caught.value.partial is not None
        assert bool(caught.value.partial.text) == ("output" not in fields)


@pytest.mark.parametrize("error", [{}, {"code": None, "message": None}, {"code": "", "message": "null"}, {"code": 0}])
async def test_blank_error_in_a_reply_is_ignored(
    client: AsyncFriendli, server: FriendliServer, error: dict[str, Any]
) -> None:
    server.enqueue(json_body({**WHOLE, "error": error}))
    assert (await client.serverless.responses.create(model="m", input="hi")).text == "Hello there!"


# --- inputs ----------------------------------------------------------------------------------------------------------

BAD: Final[list[tuple[str, dict[str, Any], str]]] = [
    ("input", {"input": 3}, r"input: Expected `str \| array`, got `int`"),
    ("role", {"input": [{"role": "robot", "content": "x"}]}, r"input\[0\].role"),
    ("content", {"input": [{"role": "user"}]}, r"input\[0\]: .*`content`"),
    (
        "part",
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        r"input\[0\].content\[0\].type",
    ),
    ("kind", {"input": ["x", {"type": "message_", "role": "user", "content": "x"}]}, r"input\[0\]"),
    ("no type", {"input": [{"call_id": "c", "output": "x"}]}, r"input\[0\]: .*`type`"),
    ("output", {"input": [{"type": "function_call_output", "call_id": "c"}]}, r"input\[0\]: .*`output`"),
    ("tool", {"tools": [{"name": "f", "parameters": {}}]}, r"tools\[0\]: .*`type`"),
    ("parameters", {"tools": [{"type": "function", "name": "f"}]}, r"tools\[0\]: .*`parameters`"),
    ("chat's tool", {"tools": [{"type": "function", "function": {"name": "f"}}]}, r"tools\[0\]: .*`name`"),
    ("choice", {"tool_choice": {"type": "function"}}, r"tool_choice: .*`name`"),
    ("format", {"text": {"format": {"type": "regex"}}}, r"text.format.type"),
    ("schema", {"text": {"format": {"type": "json_schema", "name": "n"}}}, r"text.format: .*`schema`"),
    ("effort", {"reasoning": {"effort": 3}}, r"reasoning.effort"),
    ("temperature", {"temperature": "hot"}, r"temperature: Expected"),
    ("nan", {"temperature": float("nan")}, r"temperature: nan is not valid JSON"),
]


@pytest.mark.parametrize(("bad", "path"), [each[1:] for each in BAD], ids=[each[0] for each in BAD])
async def test_invalid_value_is_rejected_with_its_path_before_sending(
    client: AsyncFriendli, server: FriendliServer, bad: dict[str, Any], path: str
) -> None:
    with pytest.raises(ValueError, match=path):
        await client.serverless.responses.create(**{"model": "m", "input": "hi", **bad})
    with pytest.raises(ValueError, match=path):
        client.container.responses.stream(**{"input": "hi", **bad})
    assert server.requests == []


async def test_reply_output_can_be_sent_back_with_tool_results(client: AsyncFriendli, server: FriendliServer) -> None:
    custom = {"type": "custom_tool_call", "call_id": "call_2", "name": "shell", "input": "ls"}
    server.enqueue(json_body({**WHOLE, "output": [REASONING_ITEM, MESSAGE_ITEM, CALL_ITEM, custom]}), json_body(WHOLE))
    create = client.serverless.responses.create
    reply = await create(model="m", input="hi")
    assert reply.tool_calls[1] == ToolCall("call_2", "custom", FunctionCall("shell", "ls"))
    outputs = [{"type": "function_call_output", "call_id": call.id, "output": "4"} for call in reply.tool_calls[:1]]
    messages: Conversation = [
        InputMessage("user", [InputText("and now?")]),
        {"role": "user", "content": "well?", "vendor": 1},
    ]
    await create(model="m", input=[*reply.output, *outputs, *messages])
    sent = server.requests[1].json_object["input"]
    assert sent == [
        REASONING_ITEM,
        {"type": "message", "role": "assistant", "content": MESSAGE_ITEM["content"]},
        CALL_ITEM,
        custom,
        {"type": "function_call_output", "call_id": "call_1", "output": "4"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and now?"}]},
        {"type": "message", "role": "user", "content": "well?", "vendor": 1},
    ]


@pytest.mark.parametrize("kind", ["message", "reasoning", "function_call", "custom_tool_call"])
async def test_item_with_missing_fields_is_completed_when_sent_back(
    client: AsyncFriendli, server: FriendliServer, kind: str
) -> None:
    server.enqueue(json_body({**WHOLE, "output": [{"type": kind}]}), json_body(WHOLE))
    reply = await client.container.responses.create(input="hi")
    await client.container.responses.create(input=reply.output)
    [sent] = server.requests[1].json_object["input"]
    assert sent["type"] == kind


async def test_input_is_not_modified(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(WHOLE))
    message = {"role": "user", "content": "hi"}
    given = [message]
    await client.serverless.responses.create(model="m", input=given)
    assert given == [{"role": "user", "content": "hi"}]
    assert given[0] is message
    assert server.requests[0].json_object["input"] == [{"type": "message", "role": "user", "content": "hi"}]


# --- against servers -------------------------------------------------------------------------------------------------

TOOL: Final = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}, "hourly": {"type": "boolean"}},
        "required": ["city", "hourly"],
    },
}


@pytest.mark.engine
async def test_real_engine_gives_the_same_reply_plain_and_streamed(engine: LocalEngine) -> None:
    async with AsyncFriendli(container_url=engine.url) as client:
        options: dict[str, Any] = {"input": [{"role": "user", "content": "Tell me about the sea"}], "temperature": 0.0}
        options |= {"max_output_tokens": 12, "instructions": "Be brief", "extra_body": {"ignore_eos": True}}
        whole = await client.container.responses.create(**options)
        stream = client.container.responses.stream(**options)
        received = [each async for each in stream]
        result = await stream.result()
    assert isinstance(received[0], ResponseCreated)
    assert received[0].response.id == result.id
    assert isinstance(received[-1], ResponseCompleted)
    assert not [each for each in received if isinstance(each, UnknownEvent)]
    texts = [each.delta for each in received if isinstance(each, OutputTextDelta)]
    assert "".join(texts) == result.text == whole.text
    assert [each.text for each in received if isinstance(each, OutputTextDone)] == [result.text]
    assert (result.status, whole.status) == ("completed", "completed")
    assert result.usage is not None
    assert whole.usage is not None
    assert result.usage.output_tokens == whole.usage.output_tokens == 12


@pytest.mark.engine
@pytest.mark.parametrize("seed", range(3))
async def test_real_engine_tool_calls_are_assembled_and_can_be_answered(engine: LocalEngine, seed: int) -> None:
    async with AsyncFriendli(container_url=engine.url) as client:
        question = {"role": "user", "content": "Tell me about the weather"}
        stream = client.container.responses.stream(
            input=[question],
            max_output_tokens=1500,
            tools=[TOOL],
            extra_body={**CALLS_A_TOOL["extra_body"], "seed": seed},
        )
        received = [each async for each in stream]
        result = await stream.result()
        assert result.output == tuple(each.item for each in received if isinstance(each, OutputItemDone))
        assert result.tool_calls
        pieces = [each.delta for each in received if isinstance(each, FunctionCallArgumentsDelta)]
        assert "".join(pieces) == "".join(call.function.arguments or "" for call in result.tool_calls)
        assert {json.loads(call.function.arguments or "")["city"] for call in result.tool_calls} <= {"Paris", "Rome"}
        answers = [{"type": "function_call_output", "call_id": call.id, "output": "sun"} for call in result.tool_calls]
        reply = await client.container.responses.create(
            input=[question, *result.output, *answers], tools=[TOOL], max_output_tokens=4
        )
    assert reply.usage is not None
    assert result.usage is not None
    assert reply.usage.input_tokens > result.usage.input_tokens
