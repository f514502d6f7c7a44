"""A complete response of the responses API, and the events of its stream."""

import json
from typing import Any, Final

from friendli_async._core.events.reader import EventReader
from friendli_async.replies import ReplyHead
from friendli_async.responses.collector import ResponseCollector
from friendli_async.responses.events import ResponseEvent
from friendli_async.testing import event
from friendli_async.testing.steps import Payload

REASONING_ITEM: Final = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [{"type": "summary_text", "text": "short"}],
    "content": [{"type": "reasoning_text", "text": "think harder"}],
    "status": "completed",
}
MESSAGE_ITEM: Final = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Hello there"}, {"type": "output_text", "text": "!"}],
}
CALL_ITEM: Final = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "weather",
    "arguments": '{"city": "Rome"}',
    "status": "completed",
}
USAGE: Final = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 2},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 3},
    "total_tokens": 12,
}
WHOLE: Final[dict[str, Any]] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1700000000,
    "model": "m",
    "status": "completed",
    "output": [REASONING_ITEM, MESSAGE_ITEM, CALL_ITEM],
    "usage": USAGE,
}
BEGUN: Final = {"id": "resp_1", "object": "response", "created_at": 1700000000, "status": "in_progress", "output": []}


def _part(item_id: str, output_index: int, content_index: int = 0, **fields: object) -> dict[str, Any]:
    return {"item_id": item_id, "output_index": output_index, "content_index": content_index, **fields}


def _begun(item: dict[str, Any], **empty: object) -> dict[str, Any]:
    return {**item, **empty, "status": "in_progress"}


def _text(text: str, kind: str = "output_text") -> dict[str, str]:
    return {"type": kind, "text": text}


ARGUMENTS: Final = {"item_id": "fc_1", "output_index": 2}
# All events of a stream, in order, without sequence numbers; types without their common prefix.
EVENTS: Final[list[tuple[str, dict[str, Any]]]] = [
    ("created", {"response": BEGUN}),
    ("in_progress", {"response": BEGUN}),
    ("output_item.added", {"output_index": 0, "item": _begun(REASONING_ITEM, content=[])}),
    ("content_part.added", _part("rs_1", 0, part=_text("", "reasoning_text"))),
    ("reasoning_text.delta", _part("rs_1", 0, delta="think ")),
    ("reasoning_text.delta", _part("rs_1", 0, delta="harder")),
    ("reasoning_text.done", _part("rs_1", 0, text="think harder")),
    ("content_part.done", _part("rs_1", 0, part=_text("think harder", "reasoning_text"))),
    ("output_item.done", {"output_index": 0, "item": REASONING_ITEM}),
    ("output_item.added", {"output_index": 1, "item": _begun(MESSAGE_ITEM, content=[])}),
    ("content_part.added", _part("msg_1", 1, part=_text(""))),
    ("output_text.delta", _part("msg_1", 1, delta="Hello")),
    ("output_text.delta", _part("msg_1", 1, delta=" there")),
    ("output_text.done", _part("msg_1", 1, text="Hello there")),
    ("content_part.done", _part("msg_1", 1, part=_text("Hello there"))),
    ("output_text.delta", _part("msg_1", 1, 1, delta="!")),
    ("output_text.done", _part("msg_1", 1, 1, text="!")),
    ("output_item.done", {"output_index": 1, "item": MESSAGE_ITEM}),
    ("output_item.added", {"output_index": 2, "item": _begun(CALL_ITEM, arguments="")}),
    ("function_call_arguments.delta", {**ARGUMENTS, "delta": '{"city": '}),
    ("function_call_arguments.delta", {**ARGUMENTS, "delta": '"Rome"}'}),
    ("function_call_arguments.done", {**ARGUMENTS, "arguments": '{"city": "Rome"}', "name": "weather"}),
    ("output_item.done", {"output_index": 2, "item": CALL_ITEM}),
    ("completed", {"response": WHOLE}),
]
DATA: Final[list[dict[str, Any]]] = [
    {"type": f"response.{kind}", "sequence_number": number, **fields} for number, (kind, fields) in enumerate(EVENTS)
]
KINDS: Final = sorted({data["type"] for data in DATA} | {"response.incomplete", "response.failed"})


def named(data: dict[str, Any]) -> Payload:
    return event(data, name=data["type"])


def ending(kind: str, **fields: object) -> Payload:
    """Returns the last event of a stream."""
    return named({"type": f"response.{kind}", "response": {**WHOLE, "status": kind, **fields}, "sequence_number": 99})


BARE: Final = {"type": "response.completed", "response": {"id": "r", "status": "completed"}}
"""A last event without the output."""


def read(payloads: list[dict[str, Any]]) -> tuple[ResponseCollector, list[ResponseEvent]]:
    """Returns a collector that has read these events, and the events."""
    collector = ResponseCollector()
    reader = EventReader[ResponseEvent](collector, 1 << 20, ReplyHead(200))
    reader.feed(b"".join(b"data: " + json.dumps(payload).encode() + b"\n\n" for payload in payloads))
    assert reader.failure is None
    return collector, list(reader.ready)
