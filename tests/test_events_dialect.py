"""Classification of events on every kind of stream: delivered, raised or ignored, and never lost."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import deterministic
from support.events import decode_event
from support.sockets import client_of

from friendli_async import APIStatusError, AsyncFriendli, ResponseDecodeError, StreamInterruptedError
from friendli_async._core.events.decoding import HEARTBEATS, Dialect, shows_error_without_content
from friendli_async.audio import TranscriptCollector
from friendli_async.chat import ChatCollector
from friendli_async.chat.tool_assisted import ToolAssistedCollector
from friendli_async.completions import TextCompletionCollector
from friendli_async.messages import MessageStream
from friendli_async.messages.collector import MessagesCollector
from friendli_async.responses import ResponseStream
from friendli_async.responses.collector import ResponseCollector
from friendli_async.testing import FriendliServer, body, raw, script

DIALECTS: Final[dict[str, Dialect[Any]]] = {
    "chat": ChatCollector.dialect,
    "completions": TextCompletionCollector.dialect,
    "tool-assisted": ToolAssistedCollector.dialect,
    "messages": MessagesCollector.dialect,
    "responses": ResponseCollector.dialect,
    "audio": TranscriptCollector.dialect,
}

# Fields that only identify the response; the first event of a stream may have no others.
LABELS: Final = {"id", "object", "created", "model", "system_fingerprint", "service_tier", "timestamp"}
NAMES: Final = sorted(
    LABELS
    | {"choices", "usage", "delta", "content", "text", "index", "message", "detail", "msg", "error", "errors", "code"}
    | {"type", "event", "name", "status", "item", "response", "output", "content_block", "tokens", "arguments", "x"}
    | {"sequence_number", "output_index", "logprobs", "finish_reason", "tool_call_id", "parameters", "reason", "title"}
)
TYPES: Final = [
    "error",
    "ping",
    "message_start",
    "message_delta",
    "content_block_start",
    "content_block_delta",
    "response.created",
    "response.completed",
    "response.failed",
    "response.output_item.added",
    "response.output_text.delta",
    "transcript.text.delta",
    "transcript.text.done",
    "text_delta",
    "token_sampled",
    "message",
]
SCALARS = st.sampled_from([None, True, False, 0, 1, -5, 429, 1.5, "", "0", "quota exceeded", *TYPES])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=8,
)
EVENTS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)
EVENT_NAMES = st.sampled_from([None, None, None, "message", "ping", "x", "error", "tool_status", *TYPES])
EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


def is_ignorable(name: str | None, fields: dict[str, Any]) -> bool:
    """Whether an event is a documented heartbeat, or only identifies the response."""
    markers = [
        name,
        *(fields.get(key) for key in ("type", "event", "object", "name", "status", "message", "msg", "data")),
    ]
    is_heartbeat = any(isinstance(marker, str) and marker in HEARTBEATS for marker in markers)
    return is_heartbeat or all(value in EMPTY for key, value in fields.items() if key not in LABELS)


@pytest.mark.parametrize("kind", DIALECTS)
@given(EVENT_NAMES, EVENTS)
@example(None, {"type": [1], "x": 1})
@example(None, {"type": {"x": 1}, "error": "no"})
@deterministic
def test_any_object_is_delivered_raised_or_ignorable(kind: str, name: str | None, fields: dict[str, Any]) -> None:
    data = json.dumps(fields).encode()
    try:
        payload, error, is_end = decode_event(data, name, dialect=DIALECTS[kind])
    except ResponseDecodeError:
        return  # invalid content
    assert not is_end
    if payload is None and error is None:
        assert is_ignorable(name, fields)
    if error is not None:
        assert isinstance(error, APIStatusError)
        assert error.message
        assert error.body == data[:200].decode()


ERROR_PAYLOADS: Final = [
    b'{"message":"quota exceeded"}',
    b'{"detail":"quota exceeded"}',
    b'{"detail":[{"msg":"quota exceeded"}]}',
    b'{"code":7,"msg":"quota exceeded"}',
    b'{"error_code":7,"error_msg":"quota exceeded"}',
    b'{"errors":["quota exceeded"]}',
    b'{"error":"quota exceeded"}',
    b'{"error":{"message":"quota exceeded"}}',
    b'[{"error":{"message":"quota exceeded"}}]',
    b'"quota exceeded"',
    b'{"id":"c1","object":"x","message":"quota exceeded"}',
    b'{"choices":[],"message":"quota exceeded"}',
    b'{"choices":null,"error":{"message":"quota exceeded"}}',
]


CHUNKS = st.fixed_dictionaries(
    {"choices": st.sampled_from([[], [{"index": 0, "delta": {"role": "assistant", "content": ""}}], [{"delta": {}}]])},
    optional={
        "object": st.sampled_from(["chat.completion.chunk", "text_completion", "error", "failed", "x", "", None]),
        "usage": st.sampled_from([None, {}, {"total_tokens": 0}, {"total_tokens": 7}]),
        "error": st.sampled_from([None, {}, "", {"message": "overloaded"}]),
        **{
            name: st.sampled_from(["m", "failed", "", None]) for name in ("id", "model", "system_fingerprint", "detail")
        },
        **{name: st.sampled_from([200, 429, "error", None]) for name in ("created", "code", "status", "service_tier")},
    },
)


@deterministic
@given(CHUNKS)
def test_chunk_without_content_is_an_error_only_if_its_fields_show_one(fields: dict[str, Any]) -> None:
    dialect, data = ChatCollector.dialect, json.dumps(fields).encode()
    try:
        chunk = dialect.decode_payload(data)
    except ValueError:
        return  # not decoded on the fast path
    if dialect.are_ordinary([chunk], [data]):
        assert not shows_error_without_content(fields)
        assert not chunk.error
    elif not shows_error_without_content(fields):
        assert chunk.error or not (chunk.choices or fields.get("usage"))


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("data", ERROR_PAYLOADS)
def test_error_payload_without_content_is_an_error(kind: str, data: bytes) -> None:
    payload, error, is_end = decode_event(data, dialect=DIALECTS[kind])
    assert (payload, is_end) == (None, False)
    assert error is not None
    assert error.message == "quota exceeded"


@pytest.mark.parametrize("kind", DIALECTS)
@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[]", b": comment", b"ping"])
def test_heartbeats_are_ignored(kind: str, data: bytes) -> None:
    assert decode_event(data, dialect=DIALECTS[kind]) == (None, None, False)


@pytest.mark.parametrize("data", [b"{}", b" {} ", b'{"type":"message_stop"}'])
def test_event_with_only_a_name_is_delivered(data: bytes) -> None:
    payload, error, _ = decode_event(data, "message_stop", dialect=DIALECTS["messages"])
    assert (type(payload).__name__, error) == ("MessageStop", None)


def test_failed_tool_status_is_delivered_and_other_errors_are_raised() -> None:
    dialect = DIALECTS["tool-assisted"]
    status = b'{"tool_call_id":"t","name":"web:url","status":"ERRORED","error":{"type":"x","msg":"no"}}'
    for name in ("tool_status", None):
        payload, error, _ = decode_event(status, name, dialect=dialect)
        assert (payload.error.msg, error) == ("no", None)
    raised = decode_event(b'{"name":"web:url","status":"ERRORED","error":"no"}', dialect=dialect).error
    assert raised is not None
    assert raised.message == "no"


# --- through the client ----------------------------------------------------------------------------------------------

MESSAGES: Final = [{"role": "user", "content": "Hi"}]
TEXT: Final = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


@pytest.mark.parametrize("data", ERROR_PAYLOADS)
@pytest.mark.parametrize("before", [b"", TEXT])
async def test_error_payload_in_stream_is_raised(server: FriendliServer, before: bytes, data: bytes) -> None:
    server.enqueue(script(raw(before + b"data: " + data + b"\n\ndata: [DONE]\n\n")))
    async with client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await client.serverless.chat.stream(model="m", messages=MESSAGES).result()
    assert caught.value.message == "quota exceeded"


@pytest.mark.parametrize("data", [data for data in ERROR_PAYLOADS if data[:1] != b"["])
async def test_error_payload_in_successful_response_is_raised(server: FriendliServer, data: bytes) -> None:
    server.enqueue(body(data, content_type="application/json"))
    async with client_of(server.url) as client:
        with pytest.raises(APIStatusError) as caught:
            await client.serverless.chat.complete(model="m", messages=MESSAGES)
    assert caught.value.message == "quota exceeded"


@pytest.mark.parametrize("data", [b'{"choices":null}', b'{"choices":[{"message":null}]}', b"{}", b"null"])
async def test_response_without_content_is_a_decode_error(server: FriendliServer, data: bytes) -> None:
    server.enqueue(body(data, content_type="application/json"))
    async with client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError):
            await client.serverless.chat.complete(model="m", messages=MESSAGES)


def _named(*events: dict[str, Any]) -> bytes:
    return b"".join(b"event: %s\ndata: %s\n\n" % (each["type"].encode(), json.dumps(each).encode()) for each in events)


_STARTS: Final = {
    "messages": _named(
        {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": ""}},
    ),
    "responses": _named(
        {"type": "response.created", "response": {"id": "r", "status": "in_progress", "output": []}},
        {"type": "response.output_item.added", "item": {"id": "i", "type": "message", "content": []}},
        {"type": "response.content_part.added", "item_id": "i", "part": {"type": "output_text", "text": ""}},
        {"type": "response.output_text.delta", "item_id": "i", "delta": ""},
    ),
}
_CALLS: Final = {
    "messages": _named(
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f"}}
    ),
    "responses": _named(
        {"type": "response.output_item.added", "item": {"id": "f", "type": "function_call", "name": "f"}}
    ),
}


def _open(client: AsyncFriendli, api: str) -> MessageStream | ResponseStream:
    if api == "messages":
        return client.serverless.messages.stream(model="m", max_tokens=5, messages=MESSAGES)
    return client.serverless.responses.stream(model="m", input="Hi")


@pytest.mark.parametrize("api", _STARTS)
async def test_sentinel_after_the_mere_start_of_a_text_is_no_success(server: FriendliServer, api: str) -> None:
    server.enqueue(script(raw(_STARTS[api] + b"data: [DONE]\n\n")))
    async with client_of(server.url, retry=None) as client:
        stream = _open(client, api)
        with pytest.raises(StreamInterruptedError, match="before any content came"):
            await stream.result()
        assert stream.outcome == "truncated"


@pytest.mark.parametrize("api", _STARTS)
async def test_sentinel_after_the_start_of_a_call_vouches_for_it(server: FriendliServer, api: str) -> None:
    server.enqueue(script(raw(_STARTS[api] + _CALLS[api] + b"data: [DONE]\n\n")))
    async with client_of(server.url, retry=None) as client:
        result = await _open(client, api).result()
    assert [call.function.name for call in result.tool_calls] == ["f"]


async def test_stream_of_only_the_sentinel_is_interrupted(server: FriendliServer) -> None:
    server.enqueue(script(raw(b"data: [DONE]\n\n")))
    async with client_of(server.url) as client:
        with pytest.raises(StreamInterruptedError):
            await client.serverless.chat.stream(model="m", messages=MESSAGES).result()
