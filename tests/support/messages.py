"""Events of the messages API, and helpers to read its streams."""

from typing import Any, Final

import pytest
from support.sockets import within

from friendli_async import AsyncFriendli
from friendli_async.messages import MessageEvent, MessageStream
from friendli_async.testing import Payload, event

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


def ask(client: AsyncFriendli, **options: Any) -> MessageStream:
    return client.serverless.messages.stream(model="m", messages=HI, **options)


async def read(stream: MessageStream) -> list[MessageEvent]:
    return await within(_events(stream))


async def _events(stream: MessageStream) -> list[MessageEvent]:
    return [each async for each in stream]


async def failure(stream: MessageStream, kind: type[Exception]) -> Any:
    """Reads a stream until it raises; returns the error."""
    with pytest.raises(kind) as raised:
        await read(stream)
    return raised.value
