"""Events of the messages API, and helpers to read its streams."""

from typing import Any, Final

import pytest
from support.sockets import with_timeout

from friendli_async import AsyncFriendli
from friendli_async.messages import MessageEvent, MessageStream
from friendli_async.testing import event
from friendli_async.testing.steps import Payload

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


def block_start(block: JSON, index: int = 0) -> JSON:
    return {"type": "content_block_start", "index": index, "content_block": block}


def block_delta(delta: Any, index: int = 0) -> JSON:
    return {"type": "content_block_delta", "index": index, "delta": delta}


def text_delta(text: str, index: int = 0) -> JSON:
    return block_delta({"type": "text_delta", "text": text}, index)


def json_delta(text: str, index: int = 0) -> JSON:
    return block_delta({"type": "input_json_delta", "partial_json": text}, index)


def block_stop(index: int = 0) -> JSON:
    return {"type": "content_block_stop", "index": index}


def message_delta(reason: str = "end_turn", **usage: object) -> JSON:
    delta = {"stop_reason": reason, "stop_sequence": None}
    return {"type": "message_delta", "delta": delta, "usage": usage or {"output_tokens": 7}}


STOP: Final[JSON] = {"type": "message_stop"}
TEXT: Final[JSON] = {"type": "text", "text": ""}
CALL: Final[JSON] = {"type": "tool_use", "id": "tu_1", "name": "weather", "input": {}}
STREAMED: Final[list[JSON]] = [
    start(),
    block_start({"type": "thinking", "thinking": "", "signature": ""}),
    block_delta({"type": "thinking_delta", "thinking": "H"}),
    block_delta({"type": "thinking_delta", "thinking": "mm"}),
    block_delta({"type": "signature_delta", "signature": "sig"}),
    block_stop(),
    block_start(TEXT, 1),
    text_delta("Let me ", 1),
    text_delta("see.", 1),
    block_stop(1),
    block_start(CALL, 2),
    json_delta("", 2),
    json_delta('{"city": "Pa', 2),
    json_delta('ris"}', 2),
    block_stop(2),
    message_delta("tool_use"),
    STOP,
]
SHORT: Final[list[JSON]] = [
    start(),
    block_start(TEXT),
    text_delta("Hel"),
    text_delta("lo"),
    block_stop(),
    message_delta(),
    STOP,
]


def named(events: list[JSON]) -> list[Payload]:
    return [event(each, name=each["type"]) for each in events]


def unnamed(events: list[JSON]) -> list[Payload]:
    return [event(each) for each in events]


def open_stream(client: AsyncFriendli, **options: Any) -> MessageStream:
    return client.serverless.messages.stream(model="m", messages=HI, **options)


async def read(stream: MessageStream) -> list[MessageEvent]:
    return await with_timeout(_events(stream))


async def _events(stream: MessageStream) -> list[MessageEvent]:
    return [each async for each in stream]


async def failure(stream: MessageStream, kind: type[Exception]) -> Any:
    """Reads a stream until it raises; returns the error."""
    with pytest.raises(kind) as raised:
        await read(stream)
    return raised.value
