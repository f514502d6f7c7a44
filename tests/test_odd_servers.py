"""Servers that are hostile or odd: nothing takes more than its share of time, and no answer is made up."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.sockets import (
    DONE,
    STREAM_HEAD,
    ask,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    read,
    saying,
    within,
)

from friendli_async import AsyncFriendli, StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async._core.observers import CallEnded, Observer
from friendli_async.chat import ChatCollector
from friendli_async.replies import Headers
from friendli_async.testing import FriendliServer, body, done, event, json_body, script, stall


def cpu_seconds(work: Callable[[], object]) -> float:
    """The least of three, which other processes disturb least."""
    spent: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def read_in_small_pieces(size: int) -> None:
    data = delta("x" * size)
    reader = EventReader(ChatCollector(), 1 << 25, 200, Headers())
    for start in range(0, len(data), 1400):
        reader.feed(data[start : start + 1400])
    assert len(reader.ready) == 1


def read_calls_without_index(count: int) -> None:
    calls = [{"id": f"call-{number}", "function": {"name": "f", "arguments": "{}"}} for number in range(count)]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
    reader = EventReader(ChatCollector(), 1 << 25, 200, Headers())
    reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert len(reader.ready) == 1


@pytest.mark.parametrize(("work", "size"), [(read_in_small_pieces, 500_000), (read_calls_without_index, 1_000)])
def test_what_is_four_times_as_long_takes_no_more_than_linear_time(work: Callable[[int], None], size: int) -> None:
    once, four_times = cpu_seconds(lambda: work(size)), cpu_seconds(lambda: work(4 * size))
    assert four_times < 9 * max(once, 0.002)  # squared it would be sixteen times


@pytest.mark.parametrize("reason", [False, 0, [], {}, ["stop"]])
async def test_a_finish_reason_that_is_no_word_does_not_end_a_stream(
    server: FriendliServer, client: AsyncFriendli, reason: Any
) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": reason}
    server.enqueue(script(event({"choices": [choice]})))
    stream = ask(client)
    with pytest.raises(StreamInterruptedError) as caught:
        await within(stream.result())
    assert stream.outcome == "truncated"
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


async def test_answers_whose_indexes_cannot_be_read_are_not_merged(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    choices = [{"index": name, "delta": {"content": name}} for name in ("a", "b")]
    server.enqueue(script(event({"choices": choices}), done()))
    reply = await within(ask(client, n=2).result())
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize("choice", [None, 1, "x", []])
async def test_an_old_last_frame_with_no_choices_in_it_raises_nothing_of_pythons(
    server: FriendliServer, client: AsyncFriendli, choice: Any
) -> None:
    old = event({"event": "token_sampled", "index": 0, "text": "a"})
    server.enqueue(script(old, event({"event": "complete", "choices": [choice]}), done()))
    async with client.serverless.completions.stream(model="m", prompt="Hi") as stream:
        assert "".join([chunk.text async for chunk in stream]) == "a"
    assert stream.outcome == "done"


async def test_a_mislabelled_stream_is_one_however_its_first_bytes_are_cut() -> None:
    head = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
    whole = delta("a", "stop") + b"data: [DONE]\n\n"
    pieces = [chunked(whole[:2]), chunked(whole[2:9]), chunked(whole[9:]), b"0\r\n\r\n"]
    async with saying(head, *pieces) as server, client_of(server.url) as client:
        assert await read(ask(client)) == "a"


KINDS = [
    *("application/json", "text/html", "text/html; charset=utf-8", "text/event-stream, application/json", "*/*"),
    *("application/x-ndjson", "", "TEXT/EVENT-STREAM", "text/event-stream;charset=UTF-8, text/event-stream"),
]
NAMES = ["none", "identity", "Identity", "null", "utf-8", "binary", "", "none, identity"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [b"", b": hi\n\n", b"\xef\xbb\xbf", b"\r\n"])
async def test_a_stream_is_one_whatever_its_content_type_says(
    server: FriendliServer, client: AsyncFriendli, kind: str, before: bytes
) -> None:
    server.enqueue(body(before + delta("a", "stop") + DONE, content_type=kind))
    assert await read(ask(client)) == "a"


@pytest.mark.parametrize("name", NAMES)
async def test_every_name_for_not_compressed_is_one(server: FriendliServer, client: AsyncFriendli, name: str) -> None:
    labelled = {"Content-Encoding": name}
    server.enqueue(body(completion(), content_type="application/json", headers=labelled))
    server.enqueue(body(delta("a", "stop") + DONE, content_type="text/event-stream", headers=labelled))
    assert (await complete(client)).text == "whole"
    assert await read(ask(client)) == "a"


async def test_after_a_read_that_was_cancelled_the_next_one_says_so_with_what_had_come(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(event({"choices": [{"index": 0, "delta": {"content": "a"}}]}), stall()))
    stream = ask(client)
    assert (await within(anext(stream))).text == "a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)
    with pytest.raises(StreamInterruptedError) as caught:
        await within(anext(stream))
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert stream.outcome == "cancelled"


async def test_reasoning_after_a_finish_reason_means_that_it_goes_on(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    ends = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    thinks = {"index": 0, "delta": {"reasoning_content": "hm"}}
    server.enqueue(script(event({"choices": [ends]}), event({"choices": [thinks]})))
    with pytest.raises(StreamInterruptedError):
        await within(ask(client).result())


async def test_the_end_of_a_plain_call_tells_its_usage(server: FriendliServer, client: AsyncFriendli) -> None:
    told: list[CallEnded] = []

    class Meter(Observer):
        def call_ended(self, event: CallEnded) -> None:
            told.append(event)

    reply = await complete(client.with_options(observers=[Meter()]))
    assert reply.usage is not None
    assert [(each.usage, each.finish_reasons) for each in told] == [(reply.usage, ("stop",))]


async def test_a_reply_gives_what_it_has_no_field_for(server: FriendliServer, client: AsyncFriendli) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "a", "new": 1}}], "timings": {"x": [1, None]}}
    server.enqueue(json_body(whole))
    reply = await complete(client)
    assert reply.raw == whole
    with pytest.raises(AttributeError, match="in one piece"):
        _ = (await ask(client).result()).raw


DETAILS = [
    {"type": "reasoning.text", "index": 0, "text": "Let me "},
    {"type": "reasoning.text", "index": 0, "text": "think.", "signature": "s"},
    {"type": "reasoning.encrypted", "index": 1, "data": "abc"},
]
WHOLE_DETAILS = ({"type": "reasoning.text", "index": 0, "text": "Let me think.", "signature": "s"}, DETAILS[2])


async def test_reasoning_as_objects_adds_up_and_goes_back(server: FriendliServer, client: AsyncFriendli) -> None:
    pieces = [event({"choices": [{"index": 0, "delta": {"reasoning_details": [detail]}}]}) for detail in DETAILS]
    server.enqueue(script(*pieces, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), done()))
    stream = ask(client)
    assert [text async for text in stream.reasoning()] == ["Let me ", "think."]
    reply = await stream.result()
    assert reply.reasoning == "Let me think."
    assert reply.message.reasoning_details == WHOLE_DETAILS
    assert reply.message.as_input()["reasoning_details"] == WHOLE_DETAILS
    await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}, reply.message])
    assert server.requests[-1].json["messages"][1]["reasoning_details"] == list(WHOLE_DETAILS)
