"""Classification of events on every kind of stream: delivered, raised or ignored, and never lost."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import deterministic
from support.events import decode_event
from support.sockets import MESSAGES, client_of
from support.whole_replies import STREAMS

from friendli_async import APIStatusError, AsyncFriendli, ResponseDecodeError, StreamInterruptedError
from friendli_async._core.error_json import looks_like_error
from friendli_async._core.events.decoding import HEARTBEATS, ChunkDialect, Dialect, has_answer
from friendli_async.audio import _TranscriptCollector
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.tool_assisted import ToolStatus, _ToolAssistedCollector
from friendli_async.completions import _TextCompletionCollector
from friendli_async.messages import MessageStream
from friendli_async.messages.collector import MessagesCollector
from friendli_async.responses import ResponseStream
from friendli_async.responses.collector import ResponseCollector
from friendli_async.testing import FriendliServer, raw, script

DIALECTS: Final[dict[str, Dialect[Any]]] = {
    "chat": ChatCollector.dialect,
    "completions": _TextCompletionCollector.dialect,
    "tool-assisted": _ToolAssistedCollector.dialect,
    "messages": MessagesCollector.dialect,
    "responses": ResponseCollector.dialect,
    "audio": _TranscriptCollector.dialect,
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
    others = {key: value for key, value in fields.items() if key not in LABELS}
    if not isinstance(others.get("type"), str):
        others.pop("type", None)  # it names no kind
    return is_heartbeat or all(value in EMPTY for value in others.values())


@pytest.mark.parametrize("kind", DIALECTS)
@given(EVENT_NAMES, EVENTS)
@example(None, {"type": [1], "x": 1})
@example(None, {"type": {"x": 1}, "error": "no"})
@example(None, {"type": [None], "arguments": None})
@deterministic
def test_any_object_is_delivered_raised_or_ignorable(kind: str, name: str | None, fields: dict[str, Any]) -> None:
    data = json.dumps(fields).encode()
    try:
        payload, error, is_end, *_ = decode_event(data, name, dialect=DIALECTS[kind])
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
def test_chunk_without_content_is_decoded_again_only_if_it_has_a_message(fields: dict[str, Any]) -> None:
    dialect, data = ChatCollector.dialect, json.dumps(fields).encode()
    try:
        chunk = dialect.decode_payload(data)
    except ValueError:
        return  # not decoded on the fast path
    is_suspect = looks_like_error(fields) and not has_answer(fields)
    if dialect.are_ordinary([chunk], [data]):
        assert not is_suspect
        assert not chunk.error
    elif not is_suspect:
        assert chunk.error is not None or chunk.message is not None or not (chunk.choices or fields.get("usage"))


def outcome(data: bytes, name: str | None, kind: str) -> tuple[object, object, str]:
    """Returns the payload and the error of an event, or why it cannot be decoded."""
    try:
        payload, error, *_ = decode_event(data, name, dialect=DIALECTS[kind])
    except ResponseDecodeError as problem:
        return None, type(problem), str(problem)
    return payload, type(error), str(error)


FURTHER_FIELDS: Final[list[dict[str, Any]]] = [
    {},
    *({"error": error} for error in ({"message": "quota exceeded"}, "quota exceeded", "null")),
    *({"status": status} for status in ("failed", 429)),
    *({"message": message} for message in ("quota exceeded", "ok", "", None)),
    *({"usage": usage} for usage in ({}, {"total_tokens": 7}, {"input_tokens": 3}, {"prompt_tokens": 0}, None)),
    *({"code": 429}, {"detail": "a note"}, {"success": False}, {"object": "error"}, {"x": {"error": "no"}}),
]


@pytest.mark.parametrize("kind", DIALECTS)
def test_event_is_decoded_equally_with_and_without_the_fast_path(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [(name, {**value, **more}) for name, value, _ in STREAMS[kind].events for more in FURTHER_FIELDS]
    named = [
        (json.dumps(fields).encode(), each) for name, fields in events for each in {name, None, "message", "x", "ping"}
    ]
    fast = [outcome(data, name, kind) for data, name in named]
    monkeypatch.setattr(Dialect, "_decode_fast", lambda self, data: None)
    assert fast == [outcome(data, name, kind) for data, name in named]


@pytest.mark.parametrize("kind", DIALECTS)
def test_event_named_message_is_decoded_as_one_without_a_name(kind: str) -> None:
    events = [json.dumps({**value, **more}).encode() for _, value, _ in STREAMS[kind].events for more in FURTHER_FIELDS]
    for data in (*events, *ERROR_PAYLOADS, b"quota exceeded", b"5"):
        assert outcome(data, "message", kind) == outcome(data, None, kind)


CONTENT: Final = b'{"choices":[{"index":%s,"delta":{"content":"a"}}],"name":"n","status":"s"}'


@pytest.mark.parametrize("kind", ["chat", "tool-assisted"])
@pytest.mark.parametrize("name", ["x", "ping", "done", "tool_status", "error"])
@pytest.mark.parametrize("index", [b"0", b'"0"'])
def test_content_is_delivered_whatever_the_name_of_its_event(kind: str, name: str, index: bytes) -> None:
    payload, error, is_end, *_ = decode_event(CONTENT % index, name, dialect=DIALECTS[kind])
    assert (payload.text, is_end) == ("a", False)
    assert (error is not None) == (name == "error")


def test_words_under_an_unknown_name_are_delivered_as_the_text_that_they_encode() -> None:
    for data in (b'"almost \\"full\\""', b'almost "full"'):
        assert decode_event(data, "note").payload.message == {"data": 'almost "full"'}


@pytest.mark.parametrize("kind", DIALECTS)
def test_event_of_an_unknown_name_is_an_error_by_a_flag_unless_the_name_is_a_kind_and_not_by_a_note(kind: str) -> None:
    error = decode_event(b'{"status":"failed"}', "progress", dialect=DIALECTS[kind]).error
    assert (error is not None) is isinstance(DIALECTS[kind], ChunkDialect)
    note = b'{"usage":{"prompt_tokens":3},"detail":"all is fine"}'
    payload, error, *_ = decode_event(note, "progress", dialect=DIALECTS[kind])
    assert (payload is not None, error) == (True, None)


@pytest.mark.parametrize("kind", DIALECTS)
def test_event_that_says_nothing_is_delivered_only_if_its_name_says_something(kind: str) -> None:
    for data in (b'{"x":null}', b'{"id":"n","x":""}'):
        assert (decode_event(data, "note", dialect=DIALECTS[kind]).payload is None) is False
    assert decode_event(b'{"x":null}', dialect=DIALECTS[kind]) == (None, None, False, False)


def test_unknown_event_with_an_empty_type_has_that_of_its_name() -> None:
    assert decode_event(b'{"type":"","x":1}', "note", dialect=DIALECTS["messages"]).payload.type == "note"


def test_content_beside_an_error_is_delivered_without_the_error() -> None:
    payload, error, *_ = decode_event(b'{"choices":[{"delta":{"content":"a"}}],"error":{"message":"no"}}')
    assert (payload.text, payload.error, str(error)) == ("a", None, "no")


@pytest.mark.parametrize("kind", DIALECTS)
def test_problem_report_is_an_error(kind: str) -> None:
    """Its `type` is a URI (RFC 9457), and names no kind of event."""
    for uri in ("about:blank", "https://example.com/quota"):
        error = decode_event(b'{"type":"%s","title":"quota exceeded"}' % uri.encode(), dialect=DIALECTS[kind]).error
        assert error is not None
        assert error.message == "quota exceeded"


@pytest.mark.parametrize("data", [b"{}", b" {} ", b'{"type":"message_stop"}', b'{"type":""}', b'{"type":"stop"}'])
def test_event_with_only_a_name_is_delivered(data: bytes) -> None:
    payload, error, *_ = decode_event(data, "message_stop", dialect=DIALECTS["messages"])
    assert (type(payload).__name__, error) == ("MessageStop", None)


def test_type_of_an_event_takes_precedence_over_its_name() -> None:
    data = b'{"type":"content_block_stop","index":"1"}'
    payload, error, *_ = decode_event(data, "message_stop", dialect=DIALECTS["messages"])
    assert (type(payload).__name__, error) == ("ContentBlockStop", None)


STATUS: Final = {"name": "web:url", "status": "ERRORED"}


@pytest.mark.parametrize(
    ("name", "more", "reported"),
    [
        ("tool_status", {"error": "no"}, "no"),
        ("tool_status", {"error": {"msg": "no"}}, "no"),
        (None, {"tool_call_id": "t", "error": "no"}, "no"),
        (None, {"error": {"msg": "no"}, "success": False}, "no"),
        (None, {}, None),
        (None, {"usage": {"prompt_tokens": 1}}, None),
    ],
)
def test_error_of_a_tool_is_delivered_in_its_status(
    name: str | None, more: dict[str, object], reported: str | None
) -> None:
    data = json.dumps({**STATUS, **more}).encode()
    payload, error, *_ = decode_event(data, name, dialect=DIALECTS["tool-assisted"])
    assert isinstance(payload, ToolStatus)
    assert (payload.status, payload.error and payload.error.msg, error) == ("ERRORED", reported, None)


def test_error_that_may_be_that_of_the_call_is_raised() -> None:
    raised = decode_event(json.dumps({**STATUS, "error": "no"}).encode(), dialect=DIALECTS["tool-assisted"]).error
    assert raised is not None
    assert raised.message == "no"


def test_incomplete_status_is_recognized_by_the_name_of_its_event() -> None:
    payload = decode_event(b'{"name":"web:url"}', "tool_status", dialect=DIALECTS["tool-assisted"]).payload
    assert payload == ToolStatus(name="web:url")


# --- through the client ----------------------------------------------------------------------------------------------


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
