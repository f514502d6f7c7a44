# mypy: disable-error-code="var-annotated"
# The variables of a comprehension over values of many types cannot be annotated.
"""Errors that servers and gateways send with status 200: every API raises them with their message."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from support.sockets import DONE, complete, delta, open_stream
from support.whole_replies import HEAD, JSON, REPLIES, STREAMS, USAGE

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    InternalServerError,
    RateLimitError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async._core.events.plain_reply import decode_reply
from friendli_async._core.events.reader import EventReader
from friendli_async.billing import CostPage, UsagePage
from friendli_async.chat import ChatCompletion
from friendli_async.chat.collector import ChatCollector
from friendli_async.endpoints import EndpointPage, EndpointVersionPage
from friendli_async.replies import Headers, Reply, ReplyHead
from friendli_async.testing import FriendliServer
from friendli_async.testing import body as reply_of

MSG: Final = "quota exceeded"

# What only has a message: an error where a reply was expected, and nothing of one came.
MESSAGES: Final[list[Any]] = [
    *({key: MSG} for key in ("message", "detail", "msg", "Message", "problem", "reason", "Reason", "title")),
    *({key: MSG} for key in ("description", "cause", "explanation", "errorDescription", "error_description")),
    *({key: MSG} for key in ("errorDetails", "userMessage", "status_msg", "failure")),
    *({"detail": payload} for payload in ([{"loc": ["body"], "msg": MSG}], {"error": MSG}, {"message": MSG}, [MSG])),
    *({"level": "error", "msg": MSG}, {"result": "failed", "note": MSG}, {"ret_code": 7, "ret_msg": MSG}),
    {"ping": 1, "message": MSG},
    # together with fields of a response that hold nothing
    {"choices": None, "detail": MSG},
    {"error": None, "detail": MSG},
    {"id": "c", "object": "x", "message": MSG},
    {"choices": [], "message": MSG},
    # not an object
    *([{"message": MSG}], [{"detail": MSG}], [MSG], MSG),
]
# What says that it is an error.
EXPLICIT: Final[list[Any]] = [
    # one key
    *({key: MSG} for key in ("error", "errmsg", "errorMsg", "err_msg", "error_message", "Error", "ERROR", "err")),
    *({key: MSG} for key in ("fault", "Fault", "exception", "Exception")),
    *({"errors": payload} for payload in ([MSG], [{"message": MSG}], {"field": [MSG]}, [{"code": 1, "detail": MSG}])),
    # OpenAI, vLLM, LiteLLM, OpenRouter, Azure, Anthropic, Google
    {"error": {"message": MSG, "type": "invalid_request_error", "param": None, "code": None}},
    {"object": "error", "message": MSG, "type": "BadRequestError", "param": None, "code": 400},
    {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": MSG}}},
    {"error": {"code": "content_filter", "innererror": {"message": MSG}}},
    {"type": "error", "error": {"type": "overloaded_error", "message": MSG}},
    {"type": "error", "message": MSG},
    {"type": "exception", "message": MSG},
    [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": MSG}}],
    # frameworks and gateways
    {"code": 8, "message": MSG, "details": []},
    {"timestamp": "2026-01-01T00:00:00Z", "status": 503, "error": "Service Unavailable", "message": MSG, "path": "/v1"},
    {"timestamp": 1700000000, "status": 500, "error": MSG, "path": "/v1"},
    {"type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": MSG},
    {"type": "about:blank", "title": MSG, "status": 429, "detail": "later"},
    {"type": "https://example.com/probs/out-of-credit", "title": MSG, "status": 403},
    {"success": False, "errors": [{"code": 10000, "message": MSG}], "messages": [], "result": None},
    {"success": False, "message": MSG},
    {"success": False, "data": MSG},
    {"ok": False, "error": MSG},
    {"ok": False, "description": MSG},
    {"status": "error", "message": MSG},
    {"status": "error", "data": MSG},
    {"status": "failed", "reason": MSG},
    {"status": {"code": 8, "message": MSG}},
    {"statusCode": 429, "error": "Too Many Requests", "message": MSG},
    {"base_resp": {"status_code": 1008, "status_msg": MSG}},
    {"__type": "com.amazon.coral#ThrottlingException", "code": "ThrottlingException", "message": MSG},
    {"errorMessage": MSG, "errorType": "Runtime.ExitError"},
    {"fault": {"faultstring": MSG, "detail": {"errorcode": "x"}}},
    {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": MSG}},
    {"data": None, "errors": [{"message": MSG, "path": []}]},
    {"success": "False", "note": MSG},
    {"event": "error", "data": MSG},
    *({envelope: {"error": {"message": MSG}}} for envelope in ("response", "result", "data", "body")),
    *({envelope: {"success": False, "message": MSG}} for envelope in ("result", "data")),
    {"type": "ping", "error": MSG},
    # together with fields of a response
    {"id": "c", "object": "x", "created": 1, "model": "m", "error": {"message": MSG}},
    {"choices": [], "error": {"message": MSG, "code": 429}},
    {"error": {}, "message": MSG},
    {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], "error": {"message": MSG}},
    {"choices": [{"index": 0, "finish_reason": "error", "error": {"message": MSG, "code": 502}}]},
    {"choices": [{"error": MSG}]},
    {"choices": [{"message": None, "error": {"message": MSG}}]},
    {"choices": [{"delta": {"error": {"message": MSG}}}]},
    {"choices": None, "error": {"message": MSG}},
    *({"code": 7, "msg": MSG}, {"error_code": 7, "error_msg": MSG}),
    [[{"error": MSG}]],
]
TEXTS: Final = [
    *(MSG, f"Error: {MSG}", f"429 {MSG}", f"[ERROR] {MSG}"),
    *(f'{{"error": "{MSG}', f"{{'error': '{MSG}'}}", f'{{"detail":"{MSG}"'),
    *(f'{{"{name}": "{MSG}' for name in ("err", "message", "msg", "errors", "exception")),
    f'{{"error": "{MSG}"}}\n{{}}',
]
PAGES: Final = [f"<html><title>{MSG}</title></html>", f"<p>{MSG}", f"<Error><Message>{MSG}</Message></Error>"]
BODIES: Final = [*map(json.dumps, [*MESSAGES, *EXPLICIT]), *TEXTS]


def feed_reader(kind: str, *events: bytes, with_content: bool = True) -> EventReader[Any]:
    """Returns a reader that was fed content of a valid stream, if `with_content`, and then these events."""
    stream = STREAMS[kind]
    reader = EventReader(stream.collector(), 1 << 20, ReplyHead(200, Headers([("x-request-id", "r")])))
    for name, value, paid in stream.events if with_content else ():
        if paid and kind != "audio" and not {"content_block", "message", "response"} & {path[0] for path in paid}:
            head = "" if name is None else f"event: {name}\n"
            reader.feed(f"{head}data: {json.dumps(value)}\n\n".encode())
    for event in events:
        reader.feed(event)
    return reader


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", ["", "event: error\n"])
def test_every_stream_raises_error_at_start(kind: str, name: str) -> None:
    for body in (*BODIES, *PAGES):
        data = body.replace("\n", "\ndata: ")
        reader = feed_reader(kind, f"{name}data: {data}\n\n".encode(), b"data: [DONE]\n\n", with_content=False)
        assert isinstance(reader.failure, APIStatusError), body
        assert MSG in str(reader.failure), body
        assert reader.failure.request_id == "r"


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", ["", "event: error\n"])
def test_every_stream_raises_explicit_error_after_content(kind: str, name: str) -> None:
    for body in map(json.dumps, EXPLICIT):
        reader = feed_reader(kind, f"{name}data: {body}\n\n".encode(), b"data: [DONE]\n\n")
        assert isinstance(reader.failure, APIStatusError), body
        assert MSG in str(reader.failure), body


@pytest.mark.parametrize("kind", ["chat", "tool-assisted", "completions"])
@pytest.mark.parametrize("is_separate", [False, True])
def test_message_after_the_finish_reason_is_no_error(kind: str, is_separate: bool) -> None:
    for body in map(json.dumps, MESSAGES):
        events = [*(value for _, value, _ in STREAMS[kind].events)]
        wire = [f"data: {json.dumps(value)}\n\n".encode() for value in events]
        wire += [f"data: {body}\n\n".encode(), b"data: [DONE]\n\n"]
        reader = feed_reader(kind, *(wire if is_separate else [b"".join(wire)]), with_content=False)
        assert (reader.failure, reader.has_ended) == (None, True), body


def test_error_event_without_data_has_a_message() -> None:
    reader = feed_reader("chat", b"event: error\ndata:\n\n")
    assert isinstance(reader.failure, APIStatusError)
    assert reader.failure.message == "the server reported an error without a message"


def test_error_without_a_request_id_in_the_headers_keeps_its_own() -> None:
    reader = EventReader(ChatCollector(), 1 << 20, ReplyHead(200))
    reader.feed(b'data: {"error": {"message": "no", "request_id": "own"}}\n\n')
    assert isinstance(reader.failure, APIStatusError)
    assert reader.failure.request_id == "own"


def test_failure_that_an_event_of_the_api_reports_has_the_request_id_of_the_headers() -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no"}}}
    reader = feed_reader("responses", f"data: {json.dumps(failed)}\n\n".encode(), with_content=False)
    assert isinstance(reader.failure, APIStatusError)
    assert (reader.failure.message, reader.failure.request_id) == ("no", "r")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (delta("a"), "the stream ended before it was complete"),
        (delta("a") + b"<p>trace</p>\n", "the stream ended before it was complete: 'trace'"),
        (delta("a") + b"trace: a-b\n", "trace: a-b"),
        (b"", "the stream ended before any content came"),
        (DONE, "the stream ended before any content came"),
        (b"trace: a-b\n\n" + DONE, "trace: a-b"),
        (delta("a") + b'event: x\ndata: {"message": "was unwell"}\n\nquota exceeded\n', "quota exceeded"),
    ],
)
def test_early_end_says_what_came_beside_the_events(data: bytes, message: str) -> None:
    reader = feed_reader("chat", data, b"", with_content=False)
    assert str(reader.failure).removesuffix(" (request id r)") == message


def test_lines_after_the_sentinel_are_ignored() -> None:
    reader = feed_reader("chat", delta("a") + DONE + b"quota exceeded\n", with_content=False)
    assert (reader.has_ended, reader.failure) == (True, None)


@pytest.mark.parametrize("kind", REPLIES)
def test_every_call_raises_error_in_successful_response(kind: str) -> None:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(REPLIES[kind].kind)
    for body in BODIES:
        with pytest.raises(APIStatusError) as caught:
            decode_reply(body.encode(), decoder, ReplyHead(200))
        assert MSG in str(caught.value), body


@pytest.mark.parametrize(
    "reply", [{"status": "fail", "data": {"title": MSG}}, {"success": False, "data": {"reason": MSG}}], ids=str
)
@pytest.mark.parametrize("kind", ["embeddings", "classification", "images", "models"])
def test_object_in_place_of_a_list_without_a_field_of_its_items_is_no_item(kind: str, reply: JSON) -> None:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(REPLIES[kind].kind)
    with pytest.raises(APIStatusError, match=MSG):
        decode_reply(json.dumps(reply).encode(), decoder, ReplyHead(200))
    with pytest.raises(ResponseDecodeError):
        decode_reply(json.dumps({"data": {"about": MSG}}).encode(), decoder, ReplyHead(200))
    item = REPLIES[kind].value["data"][0]
    for data in (item, {"0": item}):
        reply = decode_reply(json.dumps({"data": data}).encode(), decoder, ReplyHead(200))
        assert REPLIES[kind].content(reply)


EVENTS: Final = f'event: x\ndata: {{"error": {{"message": "{MSG}", "code": 429}}}}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize("kind", REPLIES)
def test_every_call_raises_error_in_events(kind: str) -> None:
    with pytest.raises(RateLimitError, match=MSG):
        decode_reply(EVENTS.encode(), msgspec.json.Decoder(REPLIES[kind].kind), ReplyHead(200))


@pytest.mark.parametrize("text", ["rate_limited", '"rate_limited"', json.dumps('{"code": 429, "msg": "no"}')])
def test_text_of_an_error_event_is_read_alike_in_a_reply_and_a_stream(text: str) -> None:
    event = f"event: error\ndata: {text}\n\n".encode()
    with pytest.raises(RateLimitError) as caught:
        decode_reply(event, msgspec.json.Decoder(ChatCompletion), ReplyHead(200))
    failure: Any = feed_reader("chat", event).failure
    assert (failure.status_code, failure.code, failure.message) == (429, caught.value.code, caught.value.message)


OTHER_FORMATS: Final = [
    *(("text/html", page, f"text/html instead of {{}}: '{MSG}'") for page in PAGES),
    ("text/html; charset=utf-8", PAGES[0], f"text/html; charset=utf-8 instead of {{}}: '{MSG}'"),
    ("text/css", "ok", "text/css instead of {}: 'ok'"),
    ("image/png", "\x89PNG\r\n", "image/png instead of {}"),
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("content_type", "page", "message"), OTHER_FORMATS)
async def test_other_format_is_the_same_decode_error_for_calls_and_streams(
    server: FriendliServer, client: AsyncFriendli, streamed: bool, content_type: str, page: str, message: str
) -> None:
    server.enqueue(reply_of(page.encode("latin-1"), content_type=content_type))
    with pytest.raises(ResponseDecodeError) as caught:
        await (open_stream(client).result() if streamed else complete(client))
    expected = f"the server answered with {message.format('an event stream' if streamed else 'JSON')}"
    assert str(caught.value).startswith(expected)
    assert caught.value.excerpt[1:] == page[1:]
    assert caught.value.meta is not None
    assert len(caught.value.meta.attempts) == 1


@pytest.mark.parametrize("end", [DONE, delta("b")[:60], b"data: {\n\n"], ids=["whole", "truncated", "malformed"])
async def test_plain_call_answered_by_a_stream_is_a_decode_error(
    server: FriendliServer, client: AsyncFriendli, end: bytes
) -> None:
    server.enqueue(reply_of(delta("a", "stop") + end, content_type="text/event-stream"))
    with pytest.raises(ResponseDecodeError, match="answered with text/event-stream instead of JSON: 'data: "):
        await complete(client)


@pytest.mark.parametrize("content_type", ["application/json", "application/problem+json", ""])
async def test_page_labelled_as_json_is_reported_as_not_json(
    server: FriendliServer, client: AsyncFriendli, content_type: str
) -> None:
    server.enqueue(reply_of(PAGES[0].encode(), content_type=content_type))
    with pytest.raises(ResponseDecodeError, match=f"the server's reply is not JSON: '{MSG}'"):
        await complete(client)


@pytest.mark.parametrize("data", [b'{"choices": [{"message": {"content": "a', b"[1, 2", b"[", b"null", b'"a', b"   "])
async def test_malformed_reply_is_reported_as_such(server: FriendliServer, client: AsyncFriendli, data: bytes) -> None:
    server.enqueue(reply_of(data, content_type="application/json"))
    with pytest.raises(ResponseDecodeError, match="the server's reply could not be decoded"):
        await complete(client)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(
    "payload",
    [
        *({"note": MSG}, {"text": MSG}, {"answer": MSG}),
        *({"type": "quota", "message": MSG}, {"type": "about:blank", "note": MSG}),
    ],
)
def test_unknown_event_is_the_error_of_an_unfinished_stream(kind: str, payload: Any) -> None:
    event = f"data: {json.dumps(payload)}\n\n".encode()
    for end in (b"data: [DONE]\n\n", b""):
        reader = feed_reader(kind, event, end, with_content=False)
        assert isinstance(reader.failure, APIStatusError)
        assert MSG in str(reader.failure)


@pytest.mark.parametrize("kind", STREAMS)
def test_words_of_an_unknown_type_of_event_are_not_the_error_of_an_unfinished_stream(kind: str) -> None:
    reader = feed_reader(kind, b'data: {"type":"note","note":"all is well"}\n\n', b"", with_content=False)
    assert isinstance(reader.failure, StreamInterruptedError)


@pytest.mark.parametrize("kind", STREAMS)
def test_unknown_events_are_delivered_if_the_stream_completes(kind: str) -> None:
    stream = STREAMS[kind]
    reader = EventReader(stream.collector(), 1 << 20, ReplyHead(200))
    reader.feed(b'event: note\ndata: {"note": "almost full"}\n\nevent: note\ndata: almost full\n\n')
    for name, value, _ in stream.events:
        reader.feed(f"event: {name or ''}\ndata: {json.dumps(value)}\n\n".encode())
    reader.feed(b"data: [DONE]\n\n")
    assert reader.failure is None
    assert [("almost full" in repr(event)) for event in reader.ready][:2] == [True, True]


SUCCESS_WORDS: Final = ("ok", " OK ", "success", "successful", "succeeded", "true", "deleted", "done", "completed")
SUCCESS_PAYLOADS: Final[list[Any]] = [
    {"success": True},
    {"message": "deleted"},
    {"code": 0, "msg": "success"},
    {"status": "ok"},
    *({"id": "e", field: "FAILED", "errorCode": None} for field in ("status", "state")),
    *({"success": "true"}, {"ok": "True"}, {"status": 200, "code": 200}, {"level": "info", "outcome": "accepted"}),
    {},
    [],
    None,
    *SUCCESS_WORDS,
    *({"message": word} for word in SUCCESS_WORDS),
    True,
    *({"error": value} for value in ({"code": 0, "message": "success"}, ["ok"], "done")),
    *({"message": "Endpoint deleted"}, {"detail": "it is being terminated"}, "the endpoint was deleted"),
    *({"deleted": True, "name": "my nice endpoint"}, {"fileId": "f1", "name": "my file.txt", "reason": ""}),
    *({"code": 201, "message": "File created"}, {"status": "TERMINATING", "message": "It takes a minute"}),
    *({"errorCount": 0, "failover": "eu", "error_rate": 0.1}, {"data": {"count": 5, "message": "hello"}}),
]


@pytest.mark.parametrize("payload", SUCCESS_PAYLOADS, ids=repr)
def test_untyped_call_accepts_success_payloads(payload: Any) -> None:
    decoder = msgspec.json.Decoder(Any)
    assert decode_reply(json.dumps(payload).encode(), decoder, ReplyHead(200)) == payload


# Errors without a text of several words, which alone would be one.
TERSE: Final[list[Any]] = [
    *({"status": word} for word in ("err", "fail", "Failed", "failure", "fatal", "critical", "rejected", "some_error")),
    *({field: "failed"} for field in ("type", "object", "event")),
    *({field: value} for field in ("success", "ok") for value in (False, "false")),
    *({"type": "QuotaException"}, {"error": {}}, {"status": 400}, {"status": 599}, [[{"error": "quota"}]]),
    *({field: 429} for field in ("statusCode", "http_status_code", "httpCode", "http-status", "code", "errorCode")),
    *(
        {envelope: {"error": "quota"}}
        for envelope in ("response", "result", "data", "body", "payload", "status", "base_resp")
    ),
    *({"data": {"success": False}}, {"data": {"code": 7, "msg": "quota"}}),
]
MESSAGE_NAMES: Final = (
    *("message", "faultstring", "detail", "details", "msg", "errormsg", "errmsg", "errorMessage", "errorDescription"),
    *("errors", "status_msg", "statusMessage", "fault", "error", "err", "exception", "failure", "problem", "reason"),
    *("title", "description", "cause", "explanation", "errText", "failureMessage", "userMessages", "ret_msg"),
    *("shortMsgs", "longDescription", "innerException", "last_error", "soap-fault", "login_failures"),
)


@pytest.mark.parametrize("payload", TERSE, ids=repr)
def test_error_without_a_sentence_is_raised(payload: Any) -> None:
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(Any), ReplyHead(200))
    assert ("quota" in str(caught.value)) is ("quota" in json.dumps(payload))


@pytest.mark.parametrize("name", MESSAGE_NAMES)
def test_message_under_any_name_is_raised_in_place_of_a_reply(name: str) -> None:
    with pytest.raises(APIStatusError, match="quota"):
        decode_reply(json.dumps({name: "quota"}).encode(), msgspec.json.Decoder(ChatCompletion), ReplyHead(200))


@pytest.mark.parametrize("kind", REPLIES)
def test_every_call_raises_error_without_a_sentence(kind: str) -> None:
    for payload in TERSE:
        if kind == "status" and isinstance(payload, dict) and isinstance(payload.get("status"), str):
            continue  # a valid response of this API
        with pytest.raises(APIStatusError):
            decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(REPLIES[kind].kind), ReplyHead(200))


@pytest.mark.parametrize(
    "payload",
    [
        *({"errCode": "quota"}, {"status": 399}, {"status": 600}, {"code": 7}, {"level": 500, "result": 404}),
        *({"data": value} for value in ({}, {"code": 200, "message": "hello"})),
    ],
)
def test_value_that_says_nothing_of_an_error_is_accepted(payload: Any) -> None:
    assert decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(Any), ReplyHead(200)) == payload


@pytest.mark.parametrize("body", [*map(json.dumps, EXPLICIT), *TEXTS])
def test_untyped_call_raises_error_payloads(body: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        decode_reply(body.encode(), msgspec.json.Decoder(Any), ReplyHead(200))
    assert MSG in str(caught.value)


@pytest.mark.parametrize("payload", MESSAGES, ids=repr)
def test_untyped_call_accepts_a_message(payload: Any) -> None:
    assert decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(Any), ReplyHead(200)) == payload


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        *(("chat", {"choices": choices, "usage": {"total_tokens": 3}}) for choices in ([], None, {}, "", 5)),
        *(("completion", {"choices": choices}) for choices in ([], None, {}, [{}])),
        ("chat", {}),
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
        *(("message", {"content": [], "stop_sequence": "x"}), ("response", {"output": [], "created_at": 1})),
        ("file", {"id": "f", "size": "large", "description": MSG}),  # no error: files have no answer beside it
    ],
)
def test_missing_content_is_a_decode_error(kind: str, reply: Any) -> None:
    with pytest.raises(ResponseDecodeError):
        decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(REPLIES[kind].kind), ReplyHead(200))


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
def test_empty_content_is_accepted(kind: str, reply: Any) -> None:
    read: Any = decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(REPLIES[kind].kind), ReplyHead(200))
    assert not (read.text if hasattr(read, "text") else read.data)


class Ranking(Reply, frozen=True, kw_only=True):
    """The reply of an API with a name of its own for the answer."""

    ranked: tuple[int, ...]
    elapsed: float | None = None


def test_answer_may_be_in_a_field_of_any_name() -> None:
    decoder = msgspec.json.Decoder(Ranking)
    beside = {"elapsed": 0.5, "message": MSG}
    with pytest.raises(APIStatusError, match=MSG):
        decode_reply(json.dumps({"message": MSG}).encode(), decoder, ReplyHead(200))
    assert decode_reply(json.dumps({"ranked": [], "message": MSG}).encode(), decoder, ReplyHead(200)).ranked == ()
    assert decode_reply(json.dumps({"ranked": [1], **beside}).encode(), decoder, ReplyHead(200)).ranked == (1,)
    assert decode_reply(b'{"ranked": [], "elapsed": 0.5}', decoder, ReplyHead(200)).ranked == ()


@pytest.mark.parametrize("error", [{"code": 429}, {"status": 500}, {"status": "failed"}, {"success": False}], ids=str)
@pytest.mark.parametrize("items", [{}, {"data": None}, {"data": []}, {"data": {}}], ids=str)
@pytest.mark.parametrize("kind", [EndpointPage, EndpointVersionPage, CostPage, UsagePage])
def test_explicit_error_beside_an_empty_page_is_raised(kind: Any, items: JSON, error: JSON) -> None:
    with pytest.raises(APIStatusError):
        decode_reply(json.dumps({**items, **error}).encode(), msgspec.json.Decoder(kind), ReplyHead(200))


@pytest.mark.parametrize("kind", [EndpointPage, EndpointVersionPage, CostPage, UsagePage])
def test_message_without_a_page_is_an_error_and_beside_an_empty_one_a_note(kind: Any) -> None:
    for items in ({}, {"data": None}):
        with pytest.raises(APIStatusError, match=MSG):
            decode_reply(json.dumps({**items, "message": MSG}).encode(), msgspec.json.Decoder(kind), ReplyHead(200))
    empty: Any = {} if kind is EndpointPage else []
    page = {"data": empty, "has_more": False, "message": MSG}
    assert not decode_reply(json.dumps(page).encode(), msgspec.json.Decoder(kind), ReplyHead(200)).data


def test_error_that_a_field_of_the_api_reports_is_left_to_its_reader() -> None:
    payload = {**REPLIES["response"].value, "status": "failed", "error": {"code": "server_error", "message": MSG}}
    reply = decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(REPLIES["response"].kind), ReplyHead(200))
    assert (reply.text, reply.error.message) == ("paid", MSG)


def test_response_fields_beside_an_error_become_its_partial() -> None:
    payload = {**REPLIES["chat"].value, "error": {"message": MSG}}
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps(payload).encode(), msgspec.json.Decoder(REPLIES["chat"].kind), ReplyHead(200))
    partial = caught.value.partial
    assert partial is not None
    assert (partial.text, partial.reasoning, partial.usage and partial.usage.total_tokens) == ("paid", "why", 3)


@pytest.mark.parametrize("kind", REPLIES)
def test_error_alone_has_no_partial(kind: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        decode_reply(json.dumps({"error": MSG}).encode(), msgspec.json.Decoder(REPLIES[kind].kind), ReplyHead(200))
    assert caught.value.partial is None


@pytest.mark.parametrize("kind", REPLIES)
def test_error_beside_response_fields_is_raised(kind: str) -> None:
    whole = REPLIES[kind]
    body = json.dumps({"error": MSG, **whole.value} | {"error": MSG})
    with pytest.raises(APIStatusError) as caught:
        decode_reply(body.encode(), msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert MSG in str(caught.value)
    assert "usage" not in whole.value or caught.value.partial is not None


# What looks like an error next to fields of a reply, and uses none of the API.
BESIDE: Final[list[tuple[JSON, type[APIStatusError]]]] = [
    ({"code": 429, "msg": MSG}, RateLimitError),
    ({"status": 500, "detail": MSG}, InternalServerError),
    *(({name: MSG}, APIStatusError) for name in ("message", "detail", "error_msg", "reason", "warning_message")),
    ({"errors": [{"message": MSG}]}, APIStatusError),
    ({"object": "error", "detail": MSG}, APIStatusError),
    ({"success": False, "reason": MSG}, APIStatusError),
    ({"base_resp": {"status_code": 1004, "status_msg": MSG}}, APIStatusError),
]
EMPTY_REPLIES: Final[list[tuple[str, JSON]]] = [
    ("chat", {"choices": [{"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": None}]}),
    ("chat", {"choices": [{"index": 0, "message": {"role": "assistant", "content": None}}]}),
    ("chat", {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}),
    ("completion", {"choices": [{"index": 0, "text": ""}]}),
    ("message", {"id": "m", "type": "message", "role": "assistant", "content": [], "stop_reason": "end_turn"}),
    ("message", {"id": "m", "content": [{"type": "text", "text": ""}], "stop_reason": "end_turn"}),
    ("message", {"id": "m", "content": None, "stop_reason": "end_turn"}),
    ("response", {"id": "r", "object": "response", "status": "completed", "output": []}),
    ("transcription", {"text": ""}),
    *((kind, {"data": []}) for kind in ("embeddings", "classification", "images", "models")),
    ("tokens", {"tokens": []}),
    ("endpoints", {"data": {}}),
    ("costs", {"data": [], "has_more": False}),
]
KINDS: Final = {**{kind: whole.kind for kind, whole in REPLIES.items()}, "costs": CostPage}


# Of these, those that have no value of their own: what says that it is an error is believed.
HOLLOW_REPLIES: Final = [each for each in EMPTY_REPLIES if each[0] not in {"chat", "completion", "message", "response"}]


@pytest.mark.parametrize("beside", [{"code": 429, "msg": MSG}, {"success": False, "reason": MSG}, {"errors": [MSG]}])
@pytest.mark.parametrize(("kind", "reply"), HOLLOW_REPLIES[:-1])
def test_explicit_error_beside_an_empty_answer_is_raised(kind: str, reply: JSON, beside: JSON) -> None:
    with pytest.raises(APIStatusError, match=MSG):
        decode_reply(json.dumps({**reply, **beside}).encode(), msgspec.json.Decoder(KINDS[kind]), ReplyHead(200))


@pytest.mark.parametrize("name", ["message", "warning_message", "detail", "description", "failover", "error_rate"])
@pytest.mark.parametrize(("kind", "reply"), EMPTY_REPLIES)
def test_message_beside_an_empty_reply_is_a_note(kind: str, reply: JSON, name: str) -> None:
    if reply.get("content", "") is None:
        return  # no valid reply
    data = json.dumps({**reply, name: MSG}).encode()
    assert type(decode_reply(data, msgspec.json.Decoder(KINDS[kind]), ReplyHead(200))) is KINDS[kind]


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        *((kind, {"usage": USAGE}) for kind in ("chat", "completion", "embeddings", "classification")),
        *(("message", reply) for reply in ({"role": "assistant"}, {"type": "message"}, {"usage": USAGE})),
        *(("response", {"status": "ok"}), ("status", {"status": "ok"})),
    ],
)
def test_text_beside_a_field_that_errors_have_too_is_an_error(kind: str, reply: JSON) -> None:
    with pytest.raises(APIStatusError, match=MSG):
        decode_reply(json.dumps({**reply, "note": MSG}).encode(), msgspec.json.Decoder(KINDS[kind]), ReplyHead(200))


def test_text_beside_the_only_field_that_a_reply_needs_is_a_note() -> None:
    reply = {"name": "my-endpoint", "description": "for the demo"}
    decoded: Any = decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(KINDS["spec"]), ReplyHead(200))
    assert decoded.name == "my-endpoint"


def test_text_beside_a_documented_status_is_not_an_error() -> None:
    reply = {"status": "RUNNING", "note": MSG}
    decoded: Any = decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(KINDS["status"]), ReplyHead(200))
    assert decoded.status == "RUNNING"


@pytest.mark.parametrize(
    "nested", ["[" * 400 + "]" * 400, *(begin * 400 + "1" + "}" * 400 for begin in ('{"a":', '{"error":'))]
)
def test_depth_of_the_search_for_content_and_blank_values_is_limited(nested: str) -> None:
    decoder = msgspec.json.Decoder(ChatCompletion)
    with pytest.raises(APIStatusError) as caught:
        decode_reply(f'{{"error": {nested}}}'.encode(), decoder, ReplyHead(200))
    assert caught.value.message.startswith("{")  # the body: no message was found
    choice = '{"message": {"content": ""}, "x": %s}'
    assert decode_reply(f'{{"choices": [{choice % nested}], "detail": "no"}}'.encode(), decoder, ReplyHead(200)).choices


NOTES: Final[list[JSON]] = [
    {"message": None, "detail": "", "error": None, "errors": [], "msg": "ok"},
    {"service_tier": "default", "system_fingerprint": "f", "object": "chat.completion", "warnings": ["slow"]},
    {"base_resp": {"status_code": 0, "status_msg": "success"}, "code": 200, "success": True},
]


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize(("kind", "reply"), [each for each in EMPTY_REPLIES if None not in each[1].values()])
def test_empty_reply_with_ordinary_fields_is_accepted(kind: str, reply: JSON, note: JSON) -> None:
    if reply.get("choices", [{}])[0].get("message", {}).get("content", "") is None:
        reply = {"choices": [{**reply["choices"][0], "finish_reason": "stop"}]}
    data = json.dumps({**reply, **note}).encode()
    decoded: Any = decode_reply(data, msgspec.json.Decoder(KINDS[kind]), ReplyHead(200))
    assert type(decoded) is KINDS[kind]


@pytest.mark.parametrize("note", [{"detail": MSG}, {"code": 429, "msg": MSG}, {"message": MSG}, {"reason": MSG}])
@pytest.mark.parametrize("kind", REPLIES)
def test_message_beside_a_filled_reply_is_ignored(kind: str, note: JSON) -> None:
    whole = REPLIES[kind]
    reply = json.dumps({**whole.value, **note}).encode()
    plain: Any = decode_reply(json.dumps(whole.value).encode(), msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert decode_reply(reply, msgspec.json.Decoder(whole.kind), ReplyHead(200)) == plain


@pytest.mark.parametrize("note", [{"detail": MSG}, {"code": 429, "msg": MSG}])
def test_message_beside_an_answer_without_text_is_ignored(note: JSON) -> None:
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    reply = {"choices": [{"index": 0, "message": {"content": None, "tool_calls": [call]}}], **note}
    decoded = decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(ChatCompletion), ReplyHead(200))
    assert [each.id for each in decoded.choices[0].message.tool_calls or ()] == ["t"]


def test_message_beside_an_answer_that_cannot_be_decoded_is_not_its_error() -> None:
    reply = {"choices": [{"index": 0, "message": {"content": 5}}], "detail": MSG}
    with pytest.raises(ResponseDecodeError):
        decode_reply(json.dumps(reply).encode(), msgspec.json.Decoder(ChatCompletion), ReplyHead(200))


BLANK: Final[list[Any]] = [
    *(None, "", " ", {}, [], False, 0, "null", "None"),
    *({"message": None, "code": None}, {"message": "", "code": 0}, {"details": [], "inner": {"code": None}}),
    *("false", "0", "ok", 200, {"code": "0"}, {"code": 0, "message": "success"}, {"code": 200, "message": "OK"}),
]


@pytest.mark.parametrize("name", ["error", "errors", "detail", "error_message"])
@pytest.mark.parametrize("value", BLANK)
def test_blank_message_beside_the_usage_is_ignored(name: str, value: Any) -> None:
    last = {"id": "c", "choices": [], "usage": USAGE, name: value}
    reader = feed_reader("chat", f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode(), with_content=True)
    assert reader.failure is None


EMPTY_CHUNKS: Final[list[tuple[str, JSON]]] = [
    *(("chat", {"delta": delta}) for delta in ({}, {"content": ""}, {"role": "assistant", "content": None})),
    ("chat", {"delta": {}, "finish_reason": "error"}),
    *(("chat", {"delta": {}, name: 5}) for name in ("id", "seed", "matched_stop")),  # also of Together AI, of SGLang
    ("completions", {"text": ""}),
    ("completions", {"text": "", "finish_reason": "null"}),
]


@pytest.mark.parametrize(("beside", "expected"), BESIDE)
@pytest.mark.parametrize(("kind", "choice"), EMPTY_CHUNKS)
@pytest.mark.parametrize("unusual", [{}, {"id": 5}, {"x": "\ud83d"}, {"usage": USAGE}])  # some by the lenient fallback
def test_message_beside_an_empty_chunk_is_the_error_of_an_unfinished_stream_only(
    kind: str, choice: JSON, beside: JSON, expected: type[APIStatusError], unusual: JSON
) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, **choice}], **beside, **unusual}
    event, end = f"data: {json.dumps(chunk)}\n\n".encode(), b"data: [DONE]\n\n"
    for events in ([event, end], [event + end], [event, b""]):
        reader = feed_reader(kind, *events, with_content=False)
        assert isinstance(reader.failure, expected)
        assert MSG in str(reader.failure)
        assert len(reader.ready) == 1
    rest = [f"data: {json.dumps(value)}\n\n".encode() for _, value, _ in STREAMS[kind].events]
    for events in ([event, *rest, end], [event + b"".join(rest) + end]):
        assert feed_reader(kind, *events, with_content=False).failure is None


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b""])
def test_message_beside_content_is_the_error_of_an_unfinished_stream(end: bytes) -> None:
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}}], "message": MSG}
    reader = feed_reader("chat", f"data: {json.dumps(chunk)}\n\n".encode(), end, with_content=False)
    assert isinstance(reader.failure, APIStatusError)
    assert MSG in str(reader.failure)
    assert len(reader.ready) == 1


FLAGS: Final[list[JSON]] = [{"type": "error"}, {"success": False}, {"status": 500}, {"detail": MSG}, {"code": 429}]


@pytest.mark.parametrize("flag", [*FLAGS, {"base_resp": {"status_code": 1027, "status_msg": MSG}}])
@pytest.mark.parametrize("usage", [None, USAGE])
@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b""])
def test_failure_flag_without_content_is_the_error_of_a_stream_that_it_has_cut(
    flag: JSON, usage: JSON | None, end: bytes
) -> None:
    for beside in ({"choices": []}, {"choices": [{"index": 0, "delta": {}}]}):
        chunk = {**beside, "usage": usage, **flag}
        reader = feed_reader("chat", delta("a"), f"data: {json.dumps(chunk)}\n\n".encode(), end, with_content=False)
        assert isinstance(reader.failure, APIStatusError)


@pytest.mark.parametrize("usage", [{"total_tokens": 0}, {"prompt_tokens": 0, "completion_tokens": 0}])
@pytest.mark.parametrize("choices", [{}, {"choices": None}])
@pytest.mark.parametrize("with_content", [False, True])
def test_error_beside_a_usage_of_zeros_is_raised_at_once(usage: JSON, choices: JSON, with_content: bool) -> None:
    # As MiniMax sends it.
    chunk = {**HEAD, **choices, "usage": usage, "base_resp": {"status_code": 2056, "status_msg": MSG}}
    content = len(feed_reader("chat", with_content=with_content).ready)
    reader = feed_reader("chat", f"data: {json.dumps(chunk)}\n\n".encode(), with_content=with_content)
    assert isinstance(reader.failure, APIStatusError)
    assert (reader.failure.message, len(reader.ready)) == (MSG, content)


@pytest.mark.parametrize("note", [*NOTES, *FLAGS])
@pytest.mark.parametrize("delta", [{"content": "a"}, {"tool_calls": [{"id": "t", "function": {}}]}, {"reasoning": "a"}])
def test_note_beside_content_of_a_chunk_is_ignored_however_it_is_decoded(delta: JSON, note: JSON) -> None:
    for unusual in ({}, {"id": 5}, {"x": "\ud83d"}):
        chunk = {"choices": [{"index": 0, "delta": delta}], **note, **unusual}
        reader = feed_reader("chat", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), with_content=False)
        assert reader.failure is None
        assert len(reader.ready) == 1


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize(("kind", "choice"), EMPTY_CHUNKS)
def test_empty_chunk_with_ordinary_fields_is_delivered(kind: str, choice: JSON, note: JSON) -> None:
    chunk = {"id": "c", "choices": [{"index": 0, **choice}], **note}
    reader = EventReader(STREAMS[kind].collector(), 1 << 20, ReplyHead(200))
    reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())
    assert reader.failure is None
    assert len(reader.ready) == 1


@pytest.mark.parametrize("kind", ["messages", "responses", "audio"])
def test_error_beside_the_final_event_is_raised_after_it_is_delivered(kind: str) -> None:
    events = [(name, value) for name, value, _ in STREAMS[kind].events]
    events[-1] = events[-1][0], {**events[-1][1], "error": {"message": MSG, "code": 500}}
    frames = [f"event: {name or ''}\ndata: {json.dumps(value)}\n\n" for name, value in events]
    for reads in (frames, ["".join(frames)]):
        reader = EventReader(STREAMS[kind].collector(), 1 << 20, ReplyHead(200))
        for read in reads:
            reader.feed(read.encode())
        assert isinstance(reader.failure, InternalServerError)
        assert len(reader.ready) == len(frames)


@pytest.mark.parametrize("kind", ["messages", "responses"])
def test_error_in_an_event_after_the_final_one_is_ignored(kind: str) -> None:
    frames = [f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value, _ in STREAMS[kind].events]
    reader = EventReader(STREAMS[kind].collector(), 1 << 20, ReplyHead(200))
    name, value, _ = STREAMS[kind].events[0]
    after = f"event: {name}\ndata: {json.dumps({**value, 'error': MSG})}\n\n"
    reader.feed("".join([*frames, after]).encode())
    assert reader.failure is None
    assert len(reader.ready) == len(frames)


@pytest.mark.parametrize("stop_conditions", [(), (lambda _: False,)])
@pytest.mark.parametrize("kind", ["messages", "responses"])
def test_event_after_the_final_one_is_ignored_even_in_the_same_read(kind: str, stop_conditions: Any) -> None:
    events = [(name, value) for name, value, _ in STREAMS[kind].events]
    events += events  # repeated blocks and items would change the result
    frames = [f"event: {name or ''}\ndata: {json.dumps(value)}\n\n".encode() for name, value in events]
    outcomes: list[Any] = []
    for reads in (frames, [b"".join(frames)]):
        collector: Any = STREAMS[kind].collector()
        reader = EventReader[Any](collector, 1 << 20, ReplyHead(200), stop_conditions)
        for read in reads:
            if not reader.has_ended:
                reader.feed(read)
        assert reader.failure is None
        assert collector.is_last
        outcomes.append((list(reader.ready), collector.result()))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) < len(frames)


@pytest.mark.parametrize("error", BLANK)
@pytest.mark.parametrize("kind", REPLIES)
def test_blank_error_beside_response_fields_is_ignored(kind: str, error: Any) -> None:
    whole = REPLIES[kind]
    reply = json.dumps({**whole.value, "error": error}).encode()
    assert type(decode_reply(reply, msgspec.json.Decoder(whole.kind), ReplyHead(200))) is whole.kind


@pytest.mark.parametrize("error", BLANK)
@pytest.mark.parametrize("kind", STREAMS)
def test_blank_error_beside_event_fields_is_ignored(kind: str, error: Any) -> None:
    stream = STREAMS[kind]
    events: list[list[Any]] = []
    for beside in ({}, {"error": error}):
        reader = EventReader(stream.collector(), 1 << 20, ReplyHead(200))
        for name, value, _ in stream.events:
            reader.feed(f"event: {name or ''}\ndata: {json.dumps({**value, **beside})}\n\n".encode())
        reader.feed(b"data: [DONE]\n\n")
        assert reader.failure is None
        events.append(list(reader.ready))
    assert events[0] == events[1]


@pytest.mark.parametrize("error", BLANK)
def test_blank_error_with_every_chunk_takes_the_fast_path(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventReader, "_decode_again", None)
    reader = EventReader[Any](ChatCollector(), 1 << 20, ReplyHead(200))
    for text in ("a", "b"):
        chunk = {"choices": [{"index": 0, "delta": {"content": text}}], "error": error}
        reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())
    assert [(chunk.text, chunk.error) for chunk in reader.ready] == [("a", None), ("b", None)]


@pytest.mark.parametrize("kind", STREAMS)
def test_error_that_reports_success_alone_is_no_event(kind: str) -> None:
    reader = feed_reader(kind, b'data: {"error": {"code": 0, "message": "success"}}\n\n', with_content=True)
    ready = len(reader.ready)
    reader.feed(b'data: {"error": "succeeded"}\n\n')
    assert (reader.failure, len(reader.ready)) == (None, ready)


@pytest.mark.parametrize("error", [{}, {"message": ""}, {"message": "", "type": None, "code": 0}])
@pytest.mark.parametrize("kind", STREAMS)
def test_error_object_without_a_message_alone_is_an_error(kind: str, error: JSON) -> None:
    data = json.dumps({"error": error}).encode()
    for with_content in (False, True):
        reader = feed_reader(kind, b"data: " + data + b"\n\n", b"data: [DONE]\n\n", with_content=with_content)
        assert isinstance(reader.failure, APIStatusError)
    for whole in REPLIES.values():
        with pytest.raises(APIStatusError):
            decode_reply(data, msgspec.json.Decoder(whole.kind), ReplyHead(200))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize(
    "head",
    [
        b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n',
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"m"}}\n\n',
        b'data: {"type":"response.created","response":{"id":"r"}}\n\n',
        b"",
    ],
)
def test_sentinel_without_content_is_a_failure(kind: str, head: bytes) -> None:
    reader = feed_reader(kind, head, b"data: [DONE]\n\n", with_content=False)
    assert reader.failure is not None


IGNORED_EVENTS: Final = [
    *(": ping", ":", "data:", "data: null", "data: {}", "data: []", 'data: ""', "data: : comment", "data: ping"),
    *("data: PING", 'data: "ping"', "data: keep-alive", "data: keep_alive", "data: KeepAlive", "data: [ping]"),
    *("event: ping\ndata: {}", "event: ping", "event: ping\ndata: 2026-01-01T00:00:00Z", "event: heartbeat\ndata: 1"),
    *('data: {"type":"ping"}', 'data: {"type":"keep_alive","ts":1}', 'data: {"event":"heartbeat"}', "retry: 5"),
    *('data: {"ping":1}', 'data: {"message":"ping"}', 'data: {"object":"ping"}', 'data: {"status":"alive"}', "id: 7"),
    *('data: {"heartbeat":"2026-01-01T00:00:00Z"}', 'data: {"type":"ping","timestamp":"2026-01-01 00:00"}', "data"),
    *("data: false", "data: None", "data: undefined"),
    *('data: {"error":null}', 'data: {"error":""}', 'data: {"error":false}', "event: foo", "\n\n"),
    *(
        "data: pong",
        "data: no-op",
        "data: tick",
        'data: {"name":"ping"}',
        'data: {"msg":"ping"}',
        'data: {"data":"ping"}',
    ),
]


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_heartbeats_do_not_affect_stream_content(kind: str, line_end: str) -> None:
    stream = STREAMS[kind]
    wire = [f"event: {name or ''}\ndata: {json.dumps(value)}\n\n" for name, value, _ in stream.events]
    events = len(wire)
    for ignored in IGNORED_EVENTS:
        collector = stream.collector()
        reader = EventReader(collector, 1 << 20, ReplyHead(200))
        text = f"{ignored}\n\n".join(["\ufeff", *wire, "data: [DONE]\n\n"])
        reader.feed(text.replace("\n", line_end).encode())
        assert (reader.failure, len(reader.ready), reader.has_ended) == (None, events, True), ignored
        assert "paid" in repr(collector.result()), ignored


METADATA: Final = ("id", "object", "created", "model", "system_fingerprint", "service_tier", "timestamp")


@pytest.mark.parametrize("name", METADATA)
def test_chunk_of_metadata_ahead_of_the_content_is_skipped(name: str) -> None:
    reader = feed_reader("chat", f'data: {{"{name}": "x"}}\n\n'.encode(), with_content=False)
    assert (reader.has_ended, len(reader.ready)) == (False, 0)


SENTINELS: Final = [
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


@pytest.mark.parametrize("sentinel", SENTINELS)
def test_sentinel_variants_end_the_stream(sentinel: str) -> None:
    unfinished = b'data: {"choices":[{"index":0,"delta":{"content":"paid"}}]}\n\n'
    reader = feed_reader("chat", unfinished, f"{sentinel}\n\n".encode(), with_content=False)
    assert (reader.has_ended, reader.failure, len(reader.ready)) == (True, None, 1)
