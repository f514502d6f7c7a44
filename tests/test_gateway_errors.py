"""What servers and gateways say under a good status when something is wrong: raised with its words, by every API."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from support.whole_replies import STREAMED, WHOLE

from friendli_async import (
    APIStatusError,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    ResponseDecodeError,
)
from friendli_async._core.events.decoding import decode_reply
from friendli_async._core.events.reader import EventReader
from friendli_async.replies import Headers

W: Final = "quota exceeded"

SAID: Final[list[Any]] = [
    # one key
    *({key: W} for key in ("error", "message", "detail", "msg", "errmsg", "errorMsg", "err_msg", "error_message")),
    *({key: W} for key in ("Message", "Error", "ERROR", "err", "fault", "Fault", "exception", "Exception", "failure")),
    *({key: W} for key in ("problem", "reason", "Reason", "title", "description", "cause", "explanation")),
    *({key: W} for key in ("errorDescription", "error_description", "errorDetails", "userMessage", "status_msg")),
    *({"errors": said} for said in ([W], [{"message": W}], {"field": [W]}, [{"code": 1, "detail": W}])),
    *({"detail": said} for said in ([{"loc": ["body"], "msg": W}], {"error": W}, {"message": W}, [W])),
    # OpenAI, vLLM, LiteLLM, OpenRouter, Azure, Anthropic, Google
    {"error": {"message": W, "type": "invalid_request_error", "param": None, "code": None}},
    {"object": "error", "message": W, "type": "BadRequestError", "param": None, "code": 400},
    {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": W}}},
    {"error": {"code": "content_filter", "innererror": {"message": W}}},
    {"type": "error", "error": {"type": "overloaded_error", "message": W}},
    {"type": "error", "message": W},
    {"type": "exception", "message": W},
    [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": W}}],
    # frameworks and gateways
    {"code": 8, "message": W, "details": []},
    {"timestamp": "2026-01-01T00:00:00Z", "status": 503, "error": "Service Unavailable", "message": W, "path": "/v1"},
    {"timestamp": 1700000000, "status": 500, "error": W, "path": "/v1"},
    {"type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": W},
    {"type": "about:blank", "title": W, "status": 429, "detail": "later"},
    {"type": "https://example.com/probs/out-of-credit", "title": W, "status": 403},
    {"success": False, "errors": [{"code": 10000, "message": W}], "messages": [], "result": None},
    {"success": False, "message": W},
    {"success": False, "data": W},
    {"ok": False, "error": W},
    {"ok": False, "description": W},
    {"status": "error", "message": W},
    {"status": "error", "data": W},
    {"status": "fail", "data": {"title": W}},
    {"status": "failed", "reason": W},
    {"status": {"code": 8, "message": W}},
    {"statusCode": 429, "error": "Too Many Requests", "message": W},
    {"base_resp": {"status_code": 1008, "status_msg": W}},
    {"__type": "com.amazon.coral#ThrottlingException", "message": W},
    {"fault": {"faultstring": W, "detail": {"errorcode": "x"}}},
    {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": W}},
    {"data": None, "errors": [{"message": W, "path": []}]},
    {"level": "error", "msg": W},
    {"event": "error", "data": W},
    *({envelope: {"error": {"message": W}}} for envelope in ("response", "result", "data", "body")),
    # beside what is there of a reply
    {"id": "c", "object": "x", "created": 1, "model": "m", "error": {"message": W}},
    {"choices": [], "error": {"message": W, "code": 429}},
    {"choices": [], "usage": {"total_tokens": 1}, "message": W},
    {"choices": None, "detail": W},
    {"error": {}, "message": W},
    {"error": None, "detail": W},
    {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], "error": {"message": W}},
    {"choices": [{"index": 0, "finish_reason": "error", "error": {"message": W, "code": 502}}]},
    {"choices": [{"error": W}]},
    {"choices": [{"message": None, "error": {"message": W}}]},
    {"choices": [{"delta": {"error": {"message": W}}}]},
    # no object at all
    *([{"message": W}], [{"detail": W}], [W], [[{"error": W}]], W),
]
TEXTS: Final = [
    *(W, f"Error: {W}", f"429 {W}", f"[ERROR] {W}", f"<html><title>{W}</title></html>", f"<p>{W}"),
    *(f'{{"error": "{W}', f"{{'error': '{W}'}}", f'{{"detail":"{W}"'),
]
BODIES: Final = [*(json.dumps(said) for said in SAID), *TEXTS]


def streamed(kind: str, *events: bytes, whole: bool = True) -> EventReader[Any]:
    """A reader that has read some of a good stream, and then these events."""
    stream = STREAMED[kind]
    reader = EventReader(stream.collector(), 1 << 20, 200, Headers([("x-request-id", "r")]))
    for name, value, paid in stream.events if whole else ():
        if paid and kind != "audio" and not {"content_block", "message", "response"} & {path[0] for path in paid}:
            head = "" if name is None else f"event: {name}\n"
            reader.feed(f"{head}data: {json.dumps(value)}\n\n".encode())
    for event in events:
        reader.feed(event)
    return reader


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("name", ["", "event: error\n"])
@pytest.mark.parametrize("whole", [False, True])
def test_words_are_raised_by_every_stream_at_its_beginning_and_behind_content(
    kind: str, name: str, whole: bool
) -> None:
    for body in BODIES:
        reader = streamed(kind, f"{name}data: {body}\n\n".encode(), b"data: [DONE]\n\n", whole=whole)
        assert isinstance(reader.failure, APIStatusError), body
        assert W in str(reader.failure), body
        assert reader.failure.request_id == "r"


@pytest.mark.parametrize("kind", WHOLE)
def test_words_are_raised_by_every_plain_call(kind: str) -> None:
    decoder = msgspec.json.Decoder(WHOLE[kind].kind)
    for body in BODIES:
        if kind in {"text", "transcription"} and '"text"' in body:
            continue  # that is what they answer
        with pytest.raises(APIStatusError) as caught:
            decode_reply(body.encode(), decoder, 200, Headers())
        assert W in str(caught.value), body


@pytest.mark.parametrize(
    ("said", "status", "kind"),
    [
        ({"code": 8, "message": W, "details": []}, 429, RateLimitError),
        ({"code": 14, "message": W, "details": []}, 503, InternalServerError),
        ({"code": 16, "message": W, "details": []}, 401, AuthenticationError),
        ({"__type": "com.amazon.coral#ThrottlingException", "message": W}, 429, RateLimitError),
        ({"statusCode": 404, "message": W}, 404, NotFoundError),
        ({"status": 429, "error": "Too Many Requests", "message": W}, 429, RateLimitError),
        ({"error": "Too Many Requests", "message": W}, 429, RateLimitError),
        ({"type": "about:blank", "title": W, "status": 503}, 503, InternalServerError),
        ({"error": {"status": "UNAUTHENTICATED", "message": W}}, 401, AuthenticationError),
        ({"choices": [{"error": {"code": 502, "message": W}}]}, 502, InternalServerError),
        ({"response": {"error": {"code": 429, "message": W}}}, 429, RateLimitError),
        ({"error": {"code": "rate-limit-exceeded", "message": W}}, 429, RateLimitError),
        ({"errcode": 503, "note": W}, 503, InternalServerError),
        ({"__type": "TooManyRequestsException", "message": W}, 429, RateLimitError),
        ({"error": {"type": "UnauthorizedError", "message": W}}, 401, AuthenticationError),
    ],
)
def test_the_class_is_what_the_error_names(said: Any, status: int, kind: type[APIStatusError]) -> None:
    reader = streamed("chat", f"data: {json.dumps(said)}\n\n".encode(), whole=False)
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps(said).encode(), msgspec.json.Decoder(WHOLE["chat"].kind), 200, Headers())
    for error in (reader.failure, caught.value):
        assert isinstance(error, kind)
        assert error.status_code == status


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("said", [{"note": W}, {"text": W}, {"answer": W}, {"type": "quota", "message": W}])
def test_words_under_an_unknown_name_are_why_a_stream_ended_unfinished(kind: str, said: Any) -> None:
    event = f"data: {json.dumps(said)}\n\n".encode()
    for end in (b"data: [DONE]\n\n", b""):
        reader = streamed(kind, event, end, whole=False)
        assert isinstance(reader.failure, APIStatusError)
        assert W in str(reader.failure)


@pytest.mark.parametrize("kind", STREAMED)
def test_words_under_an_unknown_name_are_delivered_where_the_stream_goes_on_to_its_end(kind: str) -> None:
    stream = STREAMED[kind]
    reader = EventReader(stream.collector(), 1 << 20, 200, Headers())
    reader.feed(b'event: note\ndata: {"note": "almost full"}\n\nevent: note\ndata: almost full\n\n')
    for name, value, _ in stream.events:
        reader.feed(f"event: {name or ''}\ndata: {json.dumps(value)}\n\n".encode())
    reader.feed(b"data: [DONE]\n\n")
    assert reader.failure is None
    assert [("almost full" in repr(event)) for event in reader.ready][:2] == [True, True]


GOOD: Final = [
    {"success": True},
    {"message": "deleted"},
    {"code": 0, "msg": "success"},
    {"status": "ok"},
    {"id": "e", "status": "FAILED", "errorCode": None},
    {},
    [],
    None,
    "ok",
    True,
]


@pytest.mark.parametrize("said", GOOD, ids=repr)
def test_a_call_without_an_answer_takes_what_says_nothing_of_a_failure(said: Any) -> None:
    decoder = msgspec.json.Decoder(Any)
    assert decode_reply(json.dumps(said).encode(), decoder, 200, Headers()) == said


@pytest.mark.parametrize("body", BODIES)
def test_a_call_without_an_answer_raises_what_says_something(body: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        decode_reply(body.encode(), msgspec.json.Decoder(Any), 200, Headers())
    assert W in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        *(("chat", {"choices": choices, "usage": {"total_tokens": 3}}) for choices in ([], None, {}, "", 5)),
        *(("completion", {"choices": choices}) for choices in ([], None, {}, [{}])),
        *((kind, {"choices": choices}) for kind in ("chat", "completion") for choices in ('[{"x":1}]', ['{"x":1}'])),
        *(("chat", {"choices": [{"message": message}]}) for message in (None, {}, [], "x", {"role": "assistant"})),
        *(("message", {"content": content, "role": "assistant"}) for content in ([], None, {}, 5)),
        *(("response", {"id": "r", "output": output}) for output in ([], None, {}, 5)),
        *(
            (kind, {"data": data})
            for kind in ("embeddings", "classification", "images", "models")
            for data in (None, 5)
        ),
        *(("tokens", {"tokens": tokens}) for tokens in (None, "", {})),
        *(("text", {"text": text}) for text in (None, 5)),
        *(("transcription", {"text": text, "usage": {}}) for text in (None, 5)),
        *(("status", {"status": status}) for status in (None, "", [], {})),
    ],
)
def test_the_absence_of_the_answer_is_a_decode_error(kind: str, reply: Any) -> None:
    with pytest.raises(ResponseDecodeError):
        decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(WHOLE[kind].kind), 200, Headers())


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("chat", {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
        ("chat", {"choices": [{"message": {"role": "assistant"}, "finish_reason": "length"}]}),
        ("completion", {"choices": [{"text": ""}]}),
        ("message", {"content": [], "stop_reason": "end_turn"}),
        ("response", {"output": [], "status": "incomplete"}),
        ("transcription", {"text": ""}),
        ("embeddings", {"data": []}),
        ("endpoints", {"data": {}}),
    ],
)
def test_an_answer_that_is_empty_is_an_answer(kind: str, reply: Any) -> None:
    read: Any = decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(WHOLE[kind].kind), 200, Headers())
    assert not (read.text if hasattr(read, "text") else read.data)


def test_what_stands_beside_an_error_of_a_plain_reply_is_its_partial() -> None:
    said = {**WHOLE["chat"].value, "error": {"message": W}}
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps(said).encode(), msgspec.json.Decoder(WHOLE["chat"].kind), 200, Headers())
    partial = caught.value.partial
    assert partial is not None
    assert (partial.text, partial.reasoning, partial.usage and partial.usage.total_tokens) == ("paid", "why", 3)


@pytest.mark.parametrize("kind", WHOLE)
def test_an_error_beside_a_plain_reply_of_any_kind_is_that_error(kind: str) -> None:
    whole = WHOLE[kind]
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps({**whole.value, "error": W}).encode(), msgspec.json.Decoder(whole.kind), 200, Headers())
    assert W in str(caught.value)
    assert "usage" not in whole.value or caught.value.partial is not None


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize(
    "head",
    [
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m"}}\n\n',
        b'data: {"type":"response.created","response":{"id":"r"}}\n\n',
        b"",
    ],
)
def test_the_sentinel_behind_a_head_alone_is_no_success(kind: str, head: bytes) -> None:
    reader = streamed(kind, head, b"data: [DONE]\n\n", whole=False)
    assert reader.failure is not None


NOTHING: Final = [
    *(": ping", ":", "data:", "data: null", "data: {}", "data: []", 'data: ""', "data: : comment", "data: ping"),
    *("data: PING", 'data: "ping"', "data: keep-alive", "data: keep_alive", "data: KeepAlive", "data: [ping]"),
    *("event: ping\ndata: {}", "event: ping", "event: ping\ndata: 2026-01-01T00:00:00Z", "event: heartbeat\ndata: 1"),
    *('data: {"type":"ping"}', 'data: {"type":"keep_alive","ts":1}', 'data: {"event":"heartbeat"}', "retry: 5"),
    *('data: {"ping":1}', 'data: {"message":"ping"}', 'data: {"object":"ping"}', 'data: {"status":"alive"}', "id: 7"),
    *('data: {"heartbeat":"2026-01-01T00:00:00Z"}', 'data: {"type":"ping","timestamp":"2026-01-01 00:00"}', "data"),
    *('data: {"error":null}', 'data: {"error":""}', 'data: {"error":false}', "event: foo", "\n\n"),
]


@pytest.mark.parametrize("kind", STREAMED)
@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_heartbeats_of_all_kinds_cost_no_stream_its_content(kind: str, line_end: str) -> None:
    stream = STREAMED[kind]
    wire = [f"event: {name or ''}\ndata: {json.dumps(value)}\n\n" for name, value, _ in stream.events]
    events = len(wire)
    for nothing in NOTHING:
        collector = stream.collector()
        reader = EventReader(collector, 1 << 20, 200, Headers())
        text = f"{nothing}\n\n".join(["\ufeff", *wire, "data: [DONE]\n\n"])
        reader.feed(text.replace("\n", line_end).encode())
        assert (reader.failure, len(reader.ready), reader.is_last) == (None, events, True), nothing
        assert "paid" in repr(collector.result()), nothing


DONES: Final = [
    *("data: [DONE]", "data: [DONE] ", "data:[DONE]", 'data: "[DONE]"', "data: '[DONE]'", "data: [done]", "data: DONE"),
    *(
        "event: done\ndata: [DONE]",
        "event: done\ndata: {}",
        "event: end\ndata:",
        "data: [DONE];",
        "id: 5\ndata: [DONE]",
    ),
    *("data: \t[DONE]\t", "event: message\ndata: [DONE]", "data: [END]"),
]


@pytest.mark.parametrize("done", DONES)
def test_the_sentinel_is_known_in_all_its_dresses(done: str) -> None:
    unfinished = b'data: {"choices":[{"index":0,"delta":{"content":"paid"}}]}\n\n'
    reader = streamed("chat", unfinished, f"{done}\n\n".encode(), whole=False)
    assert (reader.is_last, reader.failure, len(reader.ready)) == (True, None, 1)
