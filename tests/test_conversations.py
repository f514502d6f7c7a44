"""Conversations in the ways that people write them: what type checkers let pass (`typing/`) is sent, and answered."""

import importlib.util
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from friendli_async import ArgumentError, AsyncFriendli, ChatCompletion, ToolCall
from friendli_async.chat import AssistantMessage, Messages, UserMessage
from friendli_async.replies import FunctionCall
from friendli_async.responses import ContentPart
from friendli_async.testing import FriendliServer

SOURCE: Final = Path(__file__).parent / "typing" / "conversations.py"

Way = Callable[[AsyncFriendli], Awaitable[None]]


def ways() -> dict[str, Way]:
    spec = importlib.util.spec_from_file_location("conversations", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {
        name: way
        for name, way in vars(module).items()
        if inspect.iscoroutinefunction(way) and [*inspect.signature(way).parameters] == ["client"]
    }


WAYS: Final = ways()


def test_all_ways_are_seen() -> None:
    assert len(WAYS) == SOURCE.read_text().count("(client: AsyncFriendli) -> None:")


@pytest.mark.parametrize("way", WAYS)
async def test_conversation_is_answered(server: FriendliServer, client: AsyncFriendli, way: str) -> None:
    await WAYS[way](client)
    assert all(request.status == 200 for request in server.requests)


@pytest.mark.parametrize(
    ("conversation", "words"),
    [
        ([UserMessage([{"type": "smell"}])], "messages[0].content[0].type: Invalid value 'smell'"),
        ([AssistantMessage(tool_calls=[{"id": "1"}])], "messages[0].tool_calls[0]: Object missing required field"),
        ([{"role": "assistant", "tool_calls": [FunctionCall("f", "{}")]}], "messages[0].tool_calls[0]: Object missing"),
        ([ChatCompletion(choices=())], "messages[0]: Expected `object`, got `ChatCompletion`"),
    ],
)
async def test_struct_is_checked_as_a_dict_is(
    server: FriendliServer, client: AsyncFriendli, conversation: Messages, words: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        await client.serverless.chat.complete(model="m", messages=conversation)
    assert words in str(caught.value)
    assert server.requests == []


async def test_parts_of_replies_serve_inside_dicts(server: FriendliServer, client: AsyncFriendli) -> None:
    call = ToolCall("1", "function", FunctionCall("f", "{}"))
    said = {"role": "assistant", "tool_calls": (call,)}
    result = {"role": "tool", "tool_call_id": "1", "content": "5"}
    await client.serverless.chat.complete(model="m", messages=[said, result])
    item = {"role": "assistant", "content": [ContentPart(text="Hi")]}
    await client.serverless.responses.create(model="m", input=[item, {"role": "user", "content": "Hi"}])
    sent = [request.json for request in server.requests]
    assert sent[0]["messages"][0]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    ]
    assert sent[1]["input"][0]["content"] == [{"type": "output_text", "text": "Hi"}]
