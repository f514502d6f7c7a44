"""Conversations in all forms that type checkers accept (`typing/conversations.py`) are sent and answered."""

import importlib.util
import inspect
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from friendli_async import ArgumentError, AsyncFriendli, ChatCompletion, ToolCall
from friendli_async.chat import AssistantMessage, Messages, UserMessage
from friendli_async.replies import FunctionCall
from friendli_async.responses import ContentPart
from friendli_async.testing import FriendliServer, json_body

SOURCE: Final = Path(__file__).parent / "typing" / "conversations.py"

JSON = dict[str, Any]
Example = Callable[[AsyncFriendli], Awaitable[None]]


def load_examples() -> dict[str, Example]:
    spec = importlib.util.spec_from_file_location("conversations", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: example
        for name, example in vars(module).items()
        if inspect.iscoroutinefunction(example) and [*inspect.signature(example).parameters] == ["client"]
    }


EXAMPLES: Final = load_examples()


def test_all_examples_are_loaded() -> None:
    assert len(EXAMPLES) == SOURCE.read_text().count("(client: AsyncFriendli) -> None:")


@pytest.mark.parametrize("example", EXAMPLES)
async def test_conversation_is_answered(server: FriendliServer, client: AsyncFriendli, example: str) -> None:
    await EXAMPLES[example](client)
    assert all(request.status == 200 for request in server.requests)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([UserMessage([{"type": "smell"}])], "messages[0].content[0].type: Invalid value 'smell'"),
        ([AssistantMessage(tool_calls=[{"id": "1"}])], "messages[0].tool_calls[0]: Object missing required field"),
        ([{"role": "assistant", "tool_calls": [FunctionCall("f", "{}")]}], "messages[0].tool_calls[0]: Object missing"),
        ([ChatCompletion(choices=())], "messages[0]: Expected `object`, got `ChatCompletion`"),
    ],
)
async def test_struct_is_validated_like_a_dict(
    server: FriendliServer, client: AsyncFriendli, conversation: Messages, message: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        await client.serverless.chat.complete(model="m", messages=conversation)
    assert message in str(caught.value)
    assert server.requests == []


async def test_parts_of_replies_can_be_nested_in_dicts(server: FriendliServer, client: AsyncFriendli) -> None:
    call = ToolCall("1", "function", FunctionCall("f", "{}"))
    assistant = {"role": "assistant", "tool_calls": (call,)}
    result = {"role": "tool", "tool_call_id": "1", "content": "5"}
    await client.serverless.chat.complete(model="m", messages=[assistant, result])
    item = {"role": "assistant", "content": [ContentPart(text="Hi")]}
    await client.serverless.responses.create(model="m", input=[item, {"role": "user", "content": "Hi"}])
    sent = [request.json for request in server.requests]
    assert sent[0]["messages"][0]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert sent[1]["input"][0]["content"] == [{"type": "output_text", "text": "Hi"}]


CALL: Final[JSON] = {"function": {"name": "f", "arguments": "{}"}}
ANSWERS: Final[dict[str, list[JSON]]] = {
    "chat": [
        {"role": "assistant", "content": "Hi", "reasoning_content": "hm", "annotations": []},
        {"content": "Hi"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "tool_calls": [CALL, {"id": "1", "type": "function", **CALL}]},
    ],
    "messages": [
        {"type": "text", "text": "Hi", "citations": None},
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "tool_use", "name": "f", "input": {"city": "Oslo"}},
        {"type": "redacted_thinking", "data": "x"},
    ],
    "responses": [
        {"type": "message", "id": "1", "status": "completed", "content": [{"type": "output_text", "text": "Hi"}]},
        {"type": "message", "role": "assistant"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ],
}
QUESTION: Final = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("answer", ANSWERS["chat"], ids=json.dumps)
async def test_saved_message_is_sent_to_chat_like_the_reply_itself(
    server: FriendliServer, client: AsyncFriendli, answer: JSON
) -> None:
    server.enqueue(json_body({"choices": [{"index": 0, "finish_reason": "stop", "message": answer}]}))
    reply = await client.serverless.chat.complete(model="m", messages=[QUESTION])
    saved = json.loads(json.dumps([QUESTION, reply.message.as_input()]))
    await client.serverless.chat.complete(model="m", messages=[QUESTION, reply.message])
    await client.serverless.chat.complete(model="m", messages=saved)
    live, restored = [request.json["messages"] for request in server.requests[1:]]
    assert restored == live == saved


@pytest.mark.parametrize("block", ANSWERS["messages"], ids=json.dumps)
async def test_saved_message_is_sent_to_messages_like_the_reply_itself(
    server: FriendliServer, client: AsyncFriendli, block: JSON
) -> None:
    usage = {"input_tokens": 1, "output_tokens": 1}
    fields = {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    server.enqueue(json_body({**fields, "content": [block], "usage": usage}))
    reply = await client.serverless.messages.create(model="m", max_tokens=9, messages=[QUESTION])
    saved = json.loads(json.dumps([QUESTION, reply.as_input()]))
    whole = msgspec.json.decode(msgspec.json.encode([QUESTION, reply]))
    assert whole[1]["usage"] == usage
    given: list[Any] = [[QUESTION, reply], saved, whole]
    for messages in given:
        await client.serverless.messages.create(model="m", max_tokens=9, messages=messages)
    live, *restored = [request.json["messages"] for request in server.requests[1:]]
    assert restored == [live, live]
    assert live == saved
    assert live[1].keys() == {"role", "content"}


@pytest.mark.parametrize("item", ANSWERS["responses"], ids=json.dumps)
async def test_saved_item_is_sent_to_responses_like_the_reply_itself(
    server: FriendliServer, client: AsyncFriendli, item: JSON
) -> None:
    server.enqueue(json_body({"id": "1", "object": "response", "status": "completed", "output": [item]}))
    response = await client.serverless.responses.create(model="m", input=[QUESTION])
    saved = json.loads(json.dumps([QUESTION, *(item.as_input() for item in response.output)]))
    await client.serverless.responses.create(model="m", input=[QUESTION, *response.output])
    await client.serverless.responses.create(model="m", input=saved)
    live, restored = [request.json["input"] for request in server.requests[1:]]
    assert restored == live
    assert live[1:] == saved[1:]


async def test_unknown_fields_of_a_message_are_sent(server: FriendliServer, client: AsyncFriendli) -> None:
    message = {"role": "user", "content": "Hi", "model": "mine", "x": 1}
    await client.serverless.messages.create(model="m", max_tokens=9, messages=[message])
    assert server.requests[0].json["messages"] == [message]
