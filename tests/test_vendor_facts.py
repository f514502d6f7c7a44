"""Wire format details from the vendor's newer sources that its SDK does not cover."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from support.sockets import (
    DONE,
    LAST_CHUNK,
    MESSAGES,
    STREAM_HEAD,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    reply,
    serve_bytes,
    sse,
    with_timeout,
)

from friendli_async import AsyncFriendli, RateLimitError
from friendli_async.chat import ChatOptions
from friendli_async.chat.tool_assisted import ToolAssistedChat, ToolStatus, ToolStatusError, ToolStatusParameter

STATUS: Final[dict[str, Any]] = {
    "tool_call_id": "c1",
    "name": "math:calculator",
    "status": "STARTED",
    "parameters": [{"name": "expression", "value": "2+2"}],
}
STATUSES: Final[list[tuple[dict[str, Any], dict[str, Any]]]] = [
    ({"tool_call_id": None}, {"tool_call_id": ""}),
    ({"tool_call_id": 5}, {"tool_call_id": "5"}),
    ({"parameters": [{"name": "x", "value": {"a": 1}}]}, {"parameters": (ToolStatusParameter("x", '{"a":1}'),)}),
    ({"parameters": [{"name": "x", "value": 5}]}, {"parameters": (ToolStatusParameter("x", "5"),)}),
    ({"parameters": [{"name": "x", "value": []}]}, {"parameters": (ToolStatusParameter("x", "[]"),)}),
    ({"parameters": {"x": False}, "result": {}}, {"parameters": (ToolStatusParameter("x", "false"),), "result": "{}"}),
    (
        {"parameters": {"x": "y", "z": [1]}},
        {"parameters": (ToolStatusParameter("x", "y"), ToolStatusParameter("z", "[1]"))},
    ),
    ({"parameters": None}, {"parameters": ()}),
    ({"status": "ENDED", "result": {"a": 1}}, {"result": '{"a":1}'}),
    ({"status": "ENDED", "result": 4}, {"result": "4"}),
    ({"message": 5}, {"message": "5"}),
    ({"message": "searching"}, {"message": "searching"}),
    ({"message": {"a": 1}}, {"message": '{"a":1}'}),
    ({"status": "ERRORED", "error": {"type": "t", "msg": "no"}}, {"error": ToolStatusError("t", "no")}),
    ({"status": "ERRORED", "error": {"code": "t", "message": "no"}}, {"error": ToolStatusError("t", "no")}),
    ({"status": "ERRORED", "error": "no"}, {"error": ToolStatusError(None, "no")}),
    ({"status": "ERRORED", "error": ["no"]}, {"error": ToolStatusError(None, '["no"]')}),
    ({"error": {}}, {"error": None}),
    ({"error": ""}, {"error": None}),
    ({"status": "PAUSED"}, {"status": "PAUSED"}),
    ({"files": "x"}, {"files": None}),
]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("fields", "expected"), STATUSES, ids=[json.dumps(fields) for fields, _ in STATUSES])
async def test_unusual_tool_status_does_not_break_the_stream(
    fields: dict[str, Any], expected: dict[str, Any], named: bool
) -> None:
    event = (b"event: tool_status\n" if named else b"") + sse({**STATUS, **fields})
    body = chunked(event + delta("4", "stop") + DONE) + LAST_CHUNK
    async with serve_bytes(STREAM_HEAD + body) as server, client_of(server.url) as client:
        stream = client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES)
        status, chunk = [event async for event in stream]
    assert isinstance(status, ToolStatus)
    assert {name: getattr(status, name) for name in expected} == expected
    assert not isinstance(chunk, ToolStatus)
    assert chunk.text == "4"
    assert stream.outcome == "done"


async def test_delta_tool_calls_may_be_a_single_object() -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    piece = sse({"choices": [{"index": 0, "delta": {"tool_calls": call}, "finish_reason": "tool_calls"}]})
    async with serve_bytes(STREAM_HEAD + chunked(piece + DONE) + LAST_CHUNK) as server, client_of(server.url) as client:
        whole = await with_timeout(open_stream(client).result())
    assert [(found.id, found.function.name) for found in whole.message.tool_calls or ()] == [("c1", "f")]


async def test_usage_has_completion_tokens_details() -> None:
    details = {"reasoning_tokens": 1, "accepted_prediction_tokens": 2, "rejected_prediction_tokens": 3}
    usage = {"prompt_tokens": 1, "completion_tokens": 6, "total_tokens": 7, "completion_tokens_details": details}
    body = {**json.loads(completion()), "usage": usage}
    async with serve_bytes(reply(json.dumps(body).encode())) as server, client_of(server.url) as client:
        parsed_usage = (await with_timeout(complete(client))).usage
    assert parsed_usage is not None
    assert parsed_usage.completion_tokens_details is not None
    for name, count in details.items():
        assert getattr(parsed_usage.completion_tokens_details, name) == count


async def test_model_has_license_origin_discount_and_built_in_tool_support() -> None:
    entry = {
        "id": "m",
        "license": "MIT",
        "hugging_face_id": "o/m",
        "hugging_face_url": "https://huggingface.co/o/m",
        "discount_to_user": 0.5,
        "functionality": {"builtin_tool": True, "tool_call": True},
    }
    async with serve_bytes(reply(json.dumps({"data": [entry]}).encode())) as server, client_of(server.url) as client:
        (model,) = (await with_timeout(client.serverless.model.list())).data
    metadata = (model.license, model.hugging_face_id, model.hugging_face_url, model.discount_to_user)
    assert metadata == ("MIT", "o/m", "https://huggingface.co/o/m", 0.5)
    assert model.functionality is not None
    assert model.functionality.builtin_tool is True


async def test_queue_timeout_of_dedicated_endpoint_is_a_rate_limit_error() -> None:
    queue_timeout = reply(b'{"message": "queue timeout"}', status="429 Too Many Requests")
    async with serve_bytes(queue_timeout) as server, client_of(server.url) as client:
        with pytest.raises(RateLimitError, match="queue timeout"):
            await with_timeout(client.dedicated.chat.complete(model="ep", messages=MESSAGES))
    assert "queue" in (RateLimitError.__doc__ or "")


def test_deprecated_and_unsupported_apis_are_documented() -> None:
    assert "deprecated since 2026-07-06" in (ToolAssistedChat.__doc__ or "")
    assert "``reasoning_budget=0``" in (ChatOptions.__doc__ or "")
    with pytest.raises(AttributeError, match="datasets are not supported"):
        _ = AsyncFriendli("t").datasets  # type: ignore[attr-defined]  # under test
