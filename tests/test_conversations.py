"""Conversations in all forms that type checkers accept (`typing/conversations.py`) are sent and answered."""

import importlib.util
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec
import pytest

from friendli_async import ArgumentError, AsyncFriendli, ChatCompletion, ToolCall
from friendli_async.chat import AssistantMessage, Messages, UserMessage
from friendli_async.messages import Conversation, InputMessage, ToolResultBlock
from friendli_async.replies import FunctionCall
from friendli_async.responses import ContentPart
from friendli_async.testing import FriendliServer

SOURCE: Final = Path(__file__).parent / "typing" / "conversations.py"

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


async def test_saved_reply_is_sent_to_the_messages_api_like_the_reply_itself(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    question = {"role": "user", "content": "Weather in Oslo?"}
    tools = [{"name": "weather", "input_schema": {"type": "object"}}]
    reply = await client.serverless.messages.create(model="m", max_tokens=9, messages=[question], tools=tools)
    assert reply.usage is not None
    result = ToolResultBlock(reply.tool_calls[0].id, "clear")
    conversation: Conversation = [question, reply, InputMessage("user", [result])]
    restored = msgspec.json.decode(msgspec.json.encode(conversation))
    assert restored[1]["usage"]
    for messages in (conversation, restored, msgspec.to_builtins(conversation)):
        await client.serverless.messages.create(model="m", max_tokens=9, messages=messages)
    live, *saved = [request.json["messages"] for request in server.requests[1:]]
    assert saved == [live, live]
    assert live[1].keys() == {"role", "content"}


async def test_unknown_fields_of_a_message_are_sent(server: FriendliServer, client: AsyncFriendli) -> None:
    message = {"role": "user", "content": "Hi", "model": "mine", "x": 1}
    await client.serverless.messages.create(model="m", max_tokens=9, messages=[message])
    assert server.requests[0].json["messages"] == [message]
