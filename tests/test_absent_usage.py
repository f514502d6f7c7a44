"""A usage without counts is no usage, one of zeros is, and so is one under another API's names, in every API."""

from __future__ import annotations

import itertools
from typing import Any, Final

import pytest
from support.sockets import MESSAGES

from friendli_async import AsyncFriendli
from friendli_async._core.lenient import latest_usage
from friendli_async.messages.replies import MessageUsage
from friendli_async.replies import Usage
from friendli_async.responses.replies import InputTokensDetails, ResponseUsage
from friendli_async.testing import FriendliServer, done, event, json_body, script

TRANSCRIPT: Final = {"model": "m", "file": b"RIFF"}
TEXT: Final = [{"type": "text", "text": "a"}]
OUTPUT: Final = [{"type": "message", "content": [{"type": "output_text", "text": "a"}]}]

COUNTS: Final = {
    "chat": ("prompt_tokens", "completion_tokens"),
    "completions": ("prompt_tokens", "completion_tokens"),
    "messages": ("input_tokens", "output_tokens"),
    "responses": ("input_tokens", "output_tokens"),
    "audio": ("input_tokens", "output_tokens"),
    "embeddings": ("prompt_tokens", "total_tokens"),
}
FOREIGN_NAMES: Final = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "input_tokens": "prompt_tokens",
    "output_tokens": "completion_tokens",
    "total_tokens": "total_tokens",
}
BLANK: Final[list[object]] = [
    {},
    {"x": 1},
    {"prompt_tokens": None, "input_tokens": None},
    {"prompt_tokens": "many"},
    [],
    None,
    {"prompt_tokens_details": {}, "input_tokens_details": {"cached_tokens": None}},
]


def plain_reply(api: str, usage: object) -> dict[str, Any]:
    replies: dict[str, dict[str, Any]] = {
        "chat": {"choices": [{"index": 0, "message": {"content": "a"}}]},
        "completions": {"choices": [{"index": 0, "text": "a"}]},
        "messages": {"content": TEXT},
        "responses": {"id": "r", "output": OUTPUT},
        "audio": {"text": "a"},
        "embeddings": {"data": [{"embedding": [1.0], "index": 0}]},
    }
    return {**replies[api], "usage": usage}


async def call(client: AsyncFriendli, api: str) -> Any:
    group: Any = getattr(client.serverless, api) if api != "embeddings" else client.dedicated.embeddings
    match api:
        case "chat":
            return await group.complete(model="m", messages=MESSAGES)
        case "completions":
            return await group.complete(model="m", prompt="Hi")
        case "messages":
            return await group.create(model="m", max_tokens=5, messages=MESSAGES)
        case "responses" | "embeddings":
            return await group.create(model="m", input="Hi")
        case _:
            return await group.transcribe(**TRANSCRIPT)


def streamed(api: str, usage: object) -> list[dict[str, Any]]:
    match api:
        case "chat":
            delta = {"index": 0, "delta": {"content": "a"}}
            last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage}
            return [{"choices": [delta], "usage": usage}, {"choices": [delta], "usage": usage}, last]
        case "completions":
            choice = {"index": 0, "text": "a", "finish_reason": "stop"}
            return [{"choices": [choice], "usage": usage}, {"choices": [], "usage": usage}]
        case "messages":
            start = {"type": "message_start", "message": {"id": "m", "content": TEXT, "usage": usage}}
            return [start, {"type": "message_delta", "delta": {}, "usage": usage}, {"type": "message_stop"}]
        case "responses":
            return [
                {"type": "response.created", "response": {"id": "r", "output": [], "usage": usage}},
                {"type": "response.completed", "response": {"id": "r", "output": OUTPUT, "usage": usage}},
            ]
        case _:
            return [{"type": "transcript.text.done", "text": "a", "usage": usage}]


def opened(client: AsyncFriendli, api: str) -> Any:
    group: Any = getattr(client.serverless, api)
    match api:
        case "chat":
            return group.stream(model="m", messages=MESSAGES)
        case "completions":
            return group.stream(model="m", prompt="Hi")
        case "messages":
            return group.stream(model="m", max_tokens=5, messages=MESSAGES)
        case "responses":
            return group.stream(model="m", input="Hi")
        case _:
            return group.stream(**TRANSCRIPT)


STREAMING: Final = [api for api in COUNTS if api != "embeddings"]


@pytest.mark.parametrize("usage", BLANK, ids=str)
@pytest.mark.parametrize("api", COUNTS)
async def test_usage_without_counts_of_a_plain_reply_is_none(
    server: FriendliServer, client: AsyncFriendli, api: str, usage: object
) -> None:
    server.enqueue(json_body(plain_reply(api, usage)))
    assert (await call(client, api)).usage is None


@pytest.mark.parametrize("usage", BLANK, ids=str)
@pytest.mark.parametrize("api", STREAMING)
async def test_usage_without_counts_of_a_stream_is_none_in_its_events_and_result(
    server: FriendliServer, client: AsyncFriendli, api: str, usage: object
) -> None:
    server.enqueue(script(*(event(fields) for fields in streamed(api, usage))))
    stream = opened(client, api)
    for each in [each async for each in stream]:
        for holder in (each, getattr(each, "message", None), getattr(each, "response", None)):
            reported: Any = getattr(holder, "usage", None)
            assert reported is None
    assert stream.usage is None
    assert (await stream.result()).usage is None


@pytest.mark.parametrize("beside", [{}, dict.fromkeys(FOREIGN_NAMES)], ids=["alone", "nulls of another API"])
@pytest.mark.parametrize("api", COUNTS)
async def test_usage_of_zeros_of_a_plain_reply_is_kept(
    server: FriendliServer, client: AsyncFriendli, api: str, beside: dict[str, None]
) -> None:
    server.enqueue(json_body(plain_reply(api, {**beside, **dict.fromkeys(COUNTS[api], 0)})))
    usage: Any = (await call(client, api)).usage
    assert [getattr(usage, name) for name in COUNTS[api]] == [0, 0]


@pytest.mark.parametrize("zero", [0, 0.0, "0"])
@pytest.mark.parametrize("api", STREAMING)
async def test_usage_of_zeros_of_a_stream_is_kept(
    server: FriendliServer, client: AsyncFriendli, api: str, zero: object
) -> None:
    server.enqueue(script(*(event(fields) for fields in streamed(api, {COUNTS[api][1]: zero}))))
    stream = opened(client, api)
    text = "".join([piece async for piece in stream.text()])
    assert text == ("aa" if api == "chat" else "a")
    assert getattr(stream.usage, COUNTS[api][1]) == 0
    assert (await stream.result()).usage == stream.usage


def foreign_usage(api: str, own: dict[str, Any]) -> dict[str, Any]:
    """Returns a usage of 7 and 3 tokens under the names of another API, beside some under its own."""
    return own | dict(zip((FOREIGN_NAMES[name] for name in COUNTS[api]), (7, "3"), strict=True))


@pytest.mark.parametrize("own", [{}, {"total_tokens": 10}, dict.fromkeys(FOREIGN_NAMES, 0)], ids=str)
@pytest.mark.parametrize("api", COUNTS)
async def test_usage_under_the_names_of_another_api_is_read(
    server: FriendliServer, client: AsyncFriendli, api: str, own: dict[str, Any]
) -> None:
    server.enqueue(json_body(plain_reply(api, foreign_usage(api, own))))
    replies = [await call(client, api)]
    if api in STREAMING:
        server.enqueue(script(*(event(fields) for fields in streamed(api, foreign_usage(api, own)))))
        replies.append(await opened(client, api).result())
    for reply in replies:
        assert [getattr(reply.usage, name) for name in COUNTS[api]] == [7, 3]


@pytest.mark.parametrize("api", STREAMING)
async def test_usage_of_a_stream_is_that_of_the_plain_reply(
    server: FriendliServer, client: AsyncFriendli, api: str
) -> None:
    names = [*COUNTS[api], *(FOREIGN_NAMES[name] for name in COUNTS[api])]
    for counts in itertools.product((None, 0, 7), repeat=len(names)):
        usage = dict(zip(names, counts, strict=True))
        events = [event(fields) for fields in streamed(api, usage)]
        server.enqueue(json_body(plain_reply(api, usage)), script(*events))
        assert (await call(client, api)).usage == (await opened(client, api).result()).usage, usage


async def test_last_counts_of_a_message_are_read_under_the_names_of_another_api(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    start, end, stop = streamed("messages", {"prompt_tokens": 7, "completion_tokens": 0})
    end["usage"] = {"prompt_tokens": 7, "completion_tokens": 3}
    server.enqueue(script(*map(event, (start, end, stop))))
    usage = (await opened(client, "messages").result()).usage
    assert (usage.input_tokens, usage.output_tokens) == (7, 3)


async def test_details_of_a_usage_under_the_names_of_another_api_are_read(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
    server.enqueue(json_body(plain_reply("responses", usage)))
    reply = await client.serverless.responses.create(model="m", input="Hi")
    assert reply.usage is not None
    assert reply.usage.input_tokens_details is not None
    assert (reply.usage.total_tokens, reply.usage.input_tokens_details.cached_tokens) == (10, 5)


@pytest.mark.parametrize("api", ["chat", "completions"])
async def test_usage_inside_a_choice_is_that_of_the_chunk_and_of_the_plain_reply(
    server: FriendliServer, client: AsyncFriendli, api: str
) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    plain = plain_reply(api, usage)
    plain["choices"][0].update(usage=plain.pop("usage"), finish_reason="stop")
    content: dict[str, Any] = {"delta": {"content": "a"}} if api == "chat" else {"text": "a"}
    end: dict[str, Any] = {"delta": {}} if api == "chat" else {"text": ""}
    first = {"choices": [{"index": 0, **content}]}
    last = {"choices": [{"index": 0, **end, "finish_reason": "stop", "usage": usage}]}
    server.enqueue(script(event(first), event(last), done()), json_body(plain))
    group: Any = getattr(client.serverless, api)
    request: dict[str, Any] = {"messages": MESSAGES} if api == "chat" else {"prompt": "Hi"}
    stream = group.stream(model="m", **request)
    reply = await stream.result()
    assert reply.usage == stream.usage == Usage(7, 3, 10)
    assert (reply.text, reply.choices[0].finish_reason) == ("a", "stop")
    complete = await group.complete(model="m", **request)
    assert (complete.usage, complete.choices[0].finish_reason) == (Usage(7, 3, 10), "stop")


def holder_of(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the object of an event that has its usage."""
    holder: dict[str, Any] = fields.get("response", fields.get("message", fields))
    return holder


@pytest.mark.parametrize("is_zero", [True, False])
@pytest.mark.parametrize("api", STREAMING)
async def test_event_without_usage_takes_none_back_that_came_before(
    server: FriendliServer, client: AsyncFriendli, api: str, is_zero: bool
) -> None:
    prompt, completion = COUNTS[api]
    events = streamed(api, {prompt: 3, completion: 4, "total_tokens": 7})
    if api == "audio":  # has one event
        events *= 2
    # Also a message that starts once more, as of a gateway that has tried another model.
    again = [{"type": "message_start", "message": {"id": "n", "content": [], "usage": {}}}] if api == "messages" else []
    events = [events[0], *again, *events[1:]]
    late = {prompt: 0, completion: 0, "total_tokens": 0} if is_zero else None
    for position, fields in enumerate(events[1:], 1):
        if "usage" in (holder := holder_of(fields)):
            name = next((name for name in ("response", "message") if name in fields), None)
            changed = {**holder, "usage": late}
            events[position] = changed if name is None else {**fields, name: changed}
    server.enqueue(script(*(event(fields) for fields in events), done()))
    stream = opened(client, api)
    result = await stream.result()
    assert result.usage == stream.usage
    assert (getattr(result.usage, prompt), getattr(result.usage, completion)) == (3, 4)


def test_count_that_only_an_earlier_usage_has_is_part_of_the_total() -> None:
    later = latest_usage(ResponseUsage(output_tokens=9), ResponseUsage(3, 4))
    assert later == ResponseUsage(3, 9, 12)
    details = InputTokensDetails(cached_tokens=2)
    usage = ResponseUsage(3, 9, 12)
    assert latest_usage(usage, ResponseUsage(3, 4, 7, details)) == ResponseUsage(3, 9, 12, details)
    assert latest_usage(usage, ResponseUsage(3, 4, 99)) is usage
    assert latest_usage(MessageUsage(0, 9), MessageUsage(3, 4, 5)) == MessageUsage(3, 9, 5)
