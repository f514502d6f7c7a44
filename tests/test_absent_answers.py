"""Successful responses without an answer, or with one in the fields of another API, are rejected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.sockets import MESSAGES, complete

from friendli_async import APIStatusError, AsyncFriendli, InternalServerError, RateLimitError, ResponseDecodeError
from friendli_async.testing import FriendliServer, body, json_body

HI = {"content": "hi"}


async def text_complete(client: AsyncFriendli) -> Any:
    return await client.serverless.completions.complete(model="m", prompt="Hi")


@pytest.mark.parametrize("call", [complete, text_complete])
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"index": 0},
        {"finish_reason": "stop"},
        {"role": "assistant"},
        {"logprobs": None, "index": "0"},
        *({"delta": HI}, {"delta": HI, "finish_reason": "stop"}, {"message": {"text": "hi"}, "finish_reason": "stop"}),
    ],
)
async def test_choice_without_content_is_rejected(
    client: AsyncFriendli, server: FriendliServer, call: Any, choice: dict[str, Any]
) -> None:
    server.enqueue(json_body({"choices": [choice], "usage": {"total_tokens": 3}}))
    with pytest.raises(ResponseDecodeError, match="no answer") as raised:
        await call(client)
    assert "choices" in str(raised.value.excerpt)


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{"id": "t", "function": {"name": "f", "arguments": "{}"}}]},
        *({"reasoning_content": "why"}, {"reasoning": "why"}, {"reasoning_details": [{"text": "why"}]}),
        {"refusal": "no"},
    ],
)
async def test_answer_without_content_or_finish_reason_is_accepted(
    client: AsyncFriendli, server: FriendliServer, message: dict[str, Any]
) -> None:
    server.enqueue(json_body({"choices": [{"index": 0, "message": message}]}))
    assert len((await complete(client)).choices) == 1


@pytest.mark.parametrize("call", [complete, text_complete])
@pytest.mark.parametrize("choice", [{"text": {}}, {"delta": None, "text": {}}, {"message": {}, "text": {}}])
async def test_empty_object_as_content_is_rejected(
    client: AsyncFriendli, server: FriendliServer, call: Any, choice: dict[str, Any]
) -> None:
    server.enqueue(json_body({"choices": [{"index": 0, **choice}]}))
    with pytest.raises(ResponseDecodeError):
        await call(client)


@pytest.mark.parametrize(
    "body",
    [{"text": "x"}, {"id": "x"}, {"response": {"text": "x"}}, {"statusCode": 200, "body": "x"}, {"status": "fine"}],
)
async def test_object_without_listing_fields_is_not_an_empty_listing(
    client: AsyncFriendli, server: FriendliServer, body: dict[str, Any]
) -> None:
    for _ in range(2):
        server.enqueue(json_body(body))
    with pytest.raises(ResponseDecodeError, match="none of the fields of this API"):
        await client.dedicated.endpoint.list()
    with pytest.raises(ResponseDecodeError, match="none of the fields of this API"):
        await client.dedicated.endpoint.get_version_history("ep_1")
    server.enqueue(json_body({"data": {}}))
    assert (await client.dedicated.endpoint.list()).data == {}


@pytest.mark.parametrize(
    ("body", "status"),
    [({"statusCode": 503, "body": "x"}, 503), ({"status": "failed"}, 200), ({"response": {"error": "x"}}, 200)],
)
async def test_failure_in_listing_body_is_raised(
    client: AsyncFriendli, server: FriendliServer, body: dict[str, Any], status: int
) -> None:
    server.enqueue(json_body(body))
    with pytest.raises(APIStatusError) as raised:
        await client.dedicated.endpoint.list()
    assert raised.value.status_code == status


async def open_stream(client: AsyncFriendli) -> Any:
    return await client.serverless.chat.stream(model="m", messages=MESSAGES)


OPERATIONS: dict[str, Callable[[AsyncFriendli], Awaitable[Any]]] = {
    "chat": complete,
    "stream": open_stream,
    "list": lambda client: client.dedicated.endpoint.list(),
    "status": lambda client: client.dedicated.endpoint.get_status("ep_1"),
    "delete": lambda client: client.dedicated.endpoint.delete("ep_1"),
}


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ({"success": False}, APIStatusError, "success"),
        ({"success": False, "code": 429}, RateLimitError, "success"),
        ({"status": "error", "message": "no more"}, APIStatusError, "no more"),
        ({"status": "error", "detail": "no more", "code": "overloaded"}, InternalServerError, "no more"),
        ({"Error": {"Message": "no more", "Code": "X"}}, APIStatusError, "no more"),
        ({"exception": "ValueError: no more"}, APIStatusError, "ValueError: no more"),
        ({"err": "no more"}, APIStatusError, "no more"),
        ({"fault": {"title": "no more"}}, APIStatusError, "no more"),
    ],
)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_failure_in_body_is_raised_with_its_message_by_every_operation(
    client: AsyncFriendli, server: FriendliServer, operation: str, body: dict[str, Any], kind: Any, message: str
) -> None:
    server.enqueue(json_body(body))
    with pytest.raises(kind) as raised:
        await OPERATIONS[operation](client)
    assert message in str(raised.value)


CALLS = b'"tool_calls": [{"id": "i", "type": "function", "function": {"name": "f", "arguments": "{}"}}]'


@pytest.mark.parametrize("field", [b'"note": "\xff"', b'"\xff": 1'])
async def test_unreadable_field_beside_tool_calls_does_not_cost_them(
    client: AsyncFriendli, server: FriendliServer, field: bytes
) -> None:
    data = b'{%s, "choices": [{"message": {%s}, "finish_reason": "tool_calls"}]}' % (field, CALLS)
    server.enqueue(body(data, content_type="application/json"))
    assert [call.function.name for call in (await complete(client)).tool_calls] == ["f"]


@pytest.mark.parametrize("message", [b'"me\xffssage": {"content": "hi"}', b'"message": {"conten\xff": "hi"}'])
async def test_answer_under_an_unreadable_name_is_reported_as_missing(
    client: AsyncFriendli, server: FriendliServer, message: bytes
) -> None:
    server.enqueue(body(b'{"choices": [{%s, "index": 0}]}' % message, content_type="application/json"))
    with pytest.raises(ResponseDecodeError, match="no answer"):
        await complete(client)
