"""Fields that the API adds to its events and replies, under any name, change neither the answer nor the outcome."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import JSON as ANY_JSON
from strategies import deterministic, fewer
from support.whole_replies import JSON, REPLIES, STREAMS, USAGE

from friendli_async import APIStatusError, StreamInterruptedError
from friendli_async._core.error_json import is_blank
from friendli_async._core.events.plain_reply import decode_reply
from friendli_async._core.events.reader import EventReader
from friendli_async._core.lenient import structs_of
from friendli_async.chat.collector import ChatCollector
from friendli_async.messages.collector import MessagesCollector
from friendli_async.replies import ReplyHead

NAMES: Final = (
    *("message", "warning_message", "deprecation_message", "status_message", "finish_message", "system_message"),
    *("msg", "log_msg", "detail", "details", "reason", "title", "description", "cause", "explanation", "problem"),
    *("errors", "err", "errmsg", "error_message", "error_rate", "error_count", "previous_error", "last_error", "Error"),
    *("exception", "exceptions", "fault", "failure", "failover", "failed_over", "fail_reason"),
    *("status", "http_status", "status_code", "code", "error_code", "state", "level", "severity", "result", "outcome"),
    *("success", "ok", "type", "object", "event", "data", "response", "body", "payload", "base_resp", "warnings"),
    *("ping", "done", "timings", "prompt_filter_results", "x_groq", "provider"),
)
VALUES: Final[tuple[object, ...]] = (
    *("quota exceeded", "x", "error", "failed", "failover_error", "ping", "[DONE]", "ok", "", "503"),
    *(None, True, False, 0, 1, 0.1, 429, 503, [], {}, ["quota exceeded"]),
    *({"error": "x"}, {"code": 8, "message": "x"}, {"message": "quota exceeded"}, {"success": False}, [{"msg": "x"}]),
)
FIELDS: Final = st.tuples(st.sampled_from(NAMES) | st.text(max_size=8), st.sampled_from(VALUES) | ANY_JSON)


def own_fields(kind: str, value: JSON) -> set[str]:
    """The names that are not unknown in an event: those of the API's structs, except for a chunk's ``message``."""
    events = STREAMS[kind].collector().dialect.events
    names = {name for struct in structs_of(events) for name in struct.__struct_encode_fields__}
    is_chunk = "choices" in value
    return (names - {"message"} if is_chunk else names | {"type"}) | {*value, "error"}


def read(kind: str, events: list[tuple[str | None, JSON]], *, at_once: bool) -> tuple[object, ...]:
    """Returns the result of a stream, and how it ended."""
    wire = [f"event: {name}\n" * (name is not None) + f"data: {json.dumps(value)}\n\n" for name, value in events]
    wire.append("data: [DONE]\n\n")
    collector = STREAMS[kind].collector()
    reader = EventReader[Any](collector, 1 << 20, ReplyHead(200))
    for data in ["".join(wire)] if at_once else wire:
        if not reader.has_ended:
            reader.feed(data.encode())
    result: Any = collector.result()
    return repr(reader.failure), reader.has_ended, STREAMS[kind].content(result), result.usage


# As Azure's first event.
HOLLOW: Final[JSON] = {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": [{}]}
RECORDED: Final = {
    kind: [*([(None, HOLLOW)] if kind == "chat" else []), *((name, value) for name, value, _ in stream.events)]
    for kind, stream in STREAMS.items()
}


@pytest.mark.parametrize("kind", STREAMS)
@given(FIELDS, st.booleans())
@deterministic
def test_field_added_to_any_event_changes_nothing(kind: str, field: tuple[str, object], at_once: bool) -> None:
    events, (name, value) = RECORDED[kind], field
    expected = read(kind, events, at_once=at_once)
    assert expected[0] == "None"
    for position, (event, fields) in enumerate(events):
        if name not in own_fields(kind, fields):
            added = [*events[:position], (event, {**fields, name: value}), *events[position + 1 :]]
            assert read(kind, added, at_once=at_once) == expected, (position, name, value)


@pytest.mark.parametrize("kind", REPLIES)
@given(FIELDS)
@deterministic
def test_field_added_to_any_reply_changes_nothing(kind: str, field: tuple[str, object]) -> None:
    whole, (name, value) = REPLIES[kind], field
    own = {name for struct in structs_of(whole.kind) for name in struct.__struct_encode_fields__}
    if name in own | {"error"}:
        return
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(whole.kind)
    plain = decode_reply(json.dumps(whole.value).encode(), decoder, ReplyHead(200))
    reply = decode_reply(json.dumps({**whole.value, name: value}).encode(), decoder, ReplyHead(200))
    assert (whole.content(reply), reply) == (whole.content(plain), plain)


@pytest.mark.parametrize("kind", STREAMS)
@given(st.sampled_from(VALUES) | ANY_JSON)
@example({"code": 503})
@fewer
def test_error_that_is_not_blank_is_raised_beside_any_event(kind: str, value: object) -> None:
    for position, (event, fields) in enumerate(RECORDED[kind]):
        if "error" not in fields and event != "tool_status":  # a tool has errors of its own
            reader = EventReader[Any](STREAMS[kind].collector(), 1 << 20, ReplyHead(200))
            for name, each in [*RECORDED[kind][:position], (event, {**fields, "error": value})]:
                reader.feed(f"event: {name or ''}\ndata: {json.dumps(each)}\n\n".encode())
            assert isinstance(reader.failure, APIStatusError) is not is_blank(value)


def test_message_beside_the_role_is_quoted_if_the_stream_ends_without_content() -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "http_status": 503, "note": "", "detail": "full"}
    for end in (b"data: [DONE]\n\n", b""):
        reader = EventReader[Any](ChatCollector(), 1 << 20, ReplyHead(200))
        reader.feed(f"data: {json.dumps(role)}\n\n".encode())
        assert (reader.failure, len(reader.ready)) == (None, 1)
        reader.feed(end)
        assert isinstance(reader.failure, APIStatusError)
        assert reader.failure.message == "full"


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b""])
def test_message_beside_the_role_is_a_note_if_content_follows(end: bytes) -> None:
    role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}], "title": "a new field"}
    reader = EventReader[Any](ChatCollector(), 1 << 20, ReplyHead(200))
    for value in (role, {"choices": [{"index": 0, "delta": {"content": "hi"}}]}):
        reader.feed(f"data: {json.dumps(value)}\n\n".encode())
    reader.feed(end)
    assert type(reader.failure) is (type(None) if end else StreamInterruptedError)


def test_message_beside_the_usage_is_a_note() -> None:
    reader = EventReader[Any](ChatCollector(), 1 << 20, ReplyHead(200))
    finish = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    for value in (finish, {"choices": [], "usage": USAGE, "description": "chat model"}):
        reader.feed(f"data: {json.dumps(value)}\n\n".encode())
    reader.feed(b"data: [DONE]\n\n")
    assert (reader.failure, len(reader.ready)) == (None, 2)


def test_message_stream_may_end_after_its_stop_reason() -> None:
    events = STREAMS["messages"].events
    for length, is_complete in ((len(events) - 1, True), (len(events) - 2, False)):
        collector = MessagesCollector()
        reader = EventReader[Any](collector, 1 << 20, ReplyHead(200))
        for name, value, _ in events[:length]:
            reader.feed(f"event: {name}\ndata: {json.dumps(value)}\n\n".encode())
        reader.feed(b"")
        assert (reader.failure is None, collector.may_end) == (is_complete, is_complete)


@pytest.mark.parametrize(("reason", "is_end"), [("new_reason", True), ("error", False)])
def test_error_as_stop_reason_is_not_the_end_of_a_message(reason: str, is_end: bool) -> None:
    reader = EventReader[Any](MessagesCollector(), 1 << 20, ReplyHead(200))
    for _, value, _ in STREAMS["messages"].events[:4]:
        reader.feed(f"data: {json.dumps(value)}\n\n".encode())
    reader.feed(f'data: {{"type": "message_delta", "delta": {{"stop_reason": "{reason}"}}}}\n\n'.encode())
    reader.feed(b"")
    assert type(reader.failure) is (type(None) if is_end else StreamInterruptedError)
