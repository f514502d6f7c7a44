"""Hostile and non-conforming servers: processing time stays linear, and no answer is invented."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from support.sockets import (
    DONE,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    reply,
    serve_bytes,
    with_timeout,
)

from friendli_async import APIStatusError, AsyncFriendli, ChatChunk, ResponseDecodeError, StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async._core.observers import CallEnded, Observer
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.replies import ChunkChoice, ChunkDelta, FunctionCallDelta, ToolCallDelta
from friendli_async.chat.tool_calls import CompleteToolCalls
from friendli_async.replies import ReplyHead, UnknownEvent
from friendli_async.responses import OutputTextDelta
from friendli_async.responses.collector import ResponseCollector
from friendli_async.testing import FriendliServer, body, done, event, json_body, script, stall


def cpu_seconds(work: Callable[[], object]) -> float:
    """Returns the minimum CPU time of three runs, which other processes affect least."""
    spent: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def read_in_small_chunks(size: int) -> None:
    data = delta("x" * size)
    reader = EventReader(ChatCollector(), 1 << 25, ReplyHead(200))
    for start in range(0, len(data), 1400):
        reader.feed(data[start : start + 1400])
    assert len(reader.ready) == 1


def read_tool_calls_without_index(count: int) -> None:
    calls = [{"id": f"call-{number}", "function": {"name": "f", "arguments": "{}"}} for number in range(count)]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
    reader = EventReader(ChatCollector(), 1 << 25, ReplyHead(200))
    reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    assert len(reader.ready) == 1


def read_tool_call_with_its_name_in_each_delta(count: int) -> None:
    function = [{"name": "f", "arguments": piece} for piece in ("[", *["{}", ","] * count)]
    deltas = [[{"index": 0, "function": each}] for each in function]
    reader = EventReader(ChatCollector(), 1 << 25, ReplyHead(200))
    for calls in deltas:
        chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}}]}
        reader.feed(b"data: " + json.dumps(chunk).encode() + b"\n\n")


def tool_call_chunk(index: int, arguments: str, finish_reason: str | None = None) -> ChatChunk:
    """Returns a chunk of a server that repeats the name in each delta."""
    call = ToolCallDelta(index, f"call-{index}", function=FunctionCallDelta("f", arguments))
    delta = ChunkDelta(tool_calls=(call,))
    return ChatChunk(choices=(ChunkChoice(delta=delta, finish_reason=finish_reason),))


def find_complete_tool_calls(*chunks: ChatChunk) -> int:
    collector, complete = ChatCollector(), CompleteToolCalls()
    found = 0
    for chunk in chunks:
        collector.extend([chunk])
        found += len(list(complete.after(chunk, collector)))
    return found


def find_interleaved_tool_calls(count: int) -> None:
    pieces = [tool_call_chunk(index, "x" * 500 + "} ") for index in (0, 1)] * count
    first, last = ([tool_call_chunk(index, text) for index in (0, 1)] for text in ('{"a":"', '"}'))
    assert find_complete_tool_calls(*first, *pieces, *last, tool_call_chunk(2, "{}", "tool_calls")) == 3


def find_tool_calls_after_an_incomplete_one(count: int) -> None:
    others = [tool_call_chunk(1 + number, "{}") for number in range(count)]
    assert find_complete_tool_calls(tool_call_chunk(0, "{"), *others, tool_call_chunk(0, "}")) == count


def find_tool_call_with_a_finish_reason_in_each_chunk(count: int) -> None:
    pieces = [tool_call_chunk(0, "x}", "tool_calls")] * count
    first, last = (tool_call_chunk(0, text, "tool_calls") for text in ('{"a":"', '"}'))
    assert find_complete_tool_calls(first, *pieces, last) == 1


def assemble_reasoning_details(count: int) -> None:
    detail = {"index": 0, "type": "reasoning.text", "text": "a" * 500}
    choice = ChunkChoice(delta=ChunkDelta(reasoning_details=(detail,) * count))
    collector = ChatCollector()
    collector.extend([ChatChunk(choices=(choice,))])
    [merged] = collector.result().message.reasoning_details or ()
    assert len(merged["text"]) == 500 * count


def assemble_parts_with_the_same_indexes(count: int) -> None:
    collector = ResponseCollector()
    for index in range(count):
        where: dict[str, Any] = {"item_id": "i", "output_index": 0, "content_index": index}
        collector.extend([OutputTextDelta(delta="a", **where)])
        refusal = {"type": "response.refusal.delta", "delta": "no", **where}
        collector.extend([UnknownEvent("response.refusal.delta", refusal)])
    [item] = collector.result().output
    assert len(item.content or ()) == 2 * count


def read_whole_reply_in_place_of_a_stream(size: int) -> None:
    async def main() -> None:
        async with serve_bytes(reply(completion("x" * size))) as server, client_of(server.url) as client:
            with pytest.raises(ResponseDecodeError) as caught:
                await open_stream(client)
            assert caught.value.partial is not None
            assert len(caught.value.partial.text) == size

    asyncio.run(main())


@pytest.mark.parametrize(
    ("work", "size"),
    [
        (read_in_small_chunks, 500_000),
        (read_tool_calls_without_index, 1_000),
        (read_tool_call_with_its_name_in_each_delta, 500),
        (find_interleaved_tool_calls, 1_000),
        (find_tool_calls_after_an_incomplete_one, 8_000),
        (find_tool_call_with_a_finish_reason_in_each_chunk, 4_000),
        (assemble_reasoning_details, 2_000),
        (assemble_parts_with_the_same_indexes, 1_000),
        (read_whole_reply_in_place_of_a_stream, 4_000_000),
    ],
)
def test_processing_time_is_linear(work: Callable[[int], None], size: int) -> None:
    # The least of several ratios: load on the machine changes each. Quadratic time would be sixteen times.
    ratios = (cpu_seconds(lambda: work(4 * size)) / max(cpu_seconds(lambda: work(size)), 0.002) for _ in range(5))
    assert any(ratio < 9 for ratio in ratios)


@pytest.mark.parametrize("blank", ["", "null", "None", None])
def test_tool_call_is_complete_only_with_a_finish_reason_that_is_one(blank: str | None) -> None:
    assert find_complete_tool_calls(tool_call_chunk(0, "{}", blank)) == 0
    assert find_complete_tool_calls(tool_call_chunk(0, "{}", blank), tool_call_chunk(0, "", "tool_calls")) == 1


@pytest.mark.parametrize("reason", [False, 0, [], {}, ["stop"]])
async def test_non_string_finish_reason_does_not_end_the_stream(
    server: FriendliServer, client: AsyncFriendli, reason: Any
) -> None:
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": reason}
    server.enqueue(script(event({"choices": [choice]})))
    stream = open_stream(client)
    with pytest.raises(StreamInterruptedError) as caught:
        await with_timeout(stream.result())
    assert stream.outcome == "truncated"
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


def indexed(index: int, text: str, finish_reason: str | None = None) -> dict[str, Any]:
    """Returns a choice for a stream of a chat or of completions."""
    return {"index": index, "delta": {"content": text}, "text": None, "finish_reason": finish_reason}


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize("indexes", [(-1, -1, -1), (1, 1, 1)])
async def test_uninformative_index_of_the_only_choice_loses_no_text(
    server: FriendliServer, client: AsyncFriendli, api: str, indexes: tuple[int, ...]
) -> None:
    for _ in range(2):
        choices = zip(indexes, "abc", (None, None, "stop"), strict=True)
        server.enqueue(script(*(event({"choices": [indexed(*choice)]}) for choice in choices), done()))
    prompt = {"messages": [{"role": "user", "content": "Hi"}]} if api == "chat" else {"prompt": "Hi"}
    streams = [getattr(client.serverless, api).stream(model="m", **prompt) for _ in range(2)]
    pieces = [piece async for piece in streams[0].text()]
    events = [event async for event in streams[1]]
    reply = await streams[1].result()
    assert ["".join(pieces), "".join(event.text for event in events), reply.text] == ["abc"] * 3
    assert [choice.index for choice in reply.choices] == [0]
    assert reply.choices[0].finish_reason == "stop"


CONTENT_TYPES = [
    *("application/json", "text/html", "text/html; charset=utf-8", "text/event-stream, application/json", "*/*"),
    *("application/x-ndjson", "", "TEXT/EVENT-STREAM", "text/event-stream;charset=UTF-8, text/event-stream"),
]
UNCOMPRESSED = ["none", "identity", "Identity", "null", "utf-8", "binary", "", "none, identity"]


@pytest.mark.parametrize("kind", CONTENT_TYPES)
@pytest.mark.parametrize("before", [b"", b": hi\n\n", b"\xef\xbb\xbf", b"\r\n", b"\n \t\n"])
async def test_stream_is_detected_regardless_of_content_type(
    server: FriendliServer, client: AsyncFriendli, kind: str, before: bytes
) -> None:
    server.enqueue(body(before + delta("a", "stop") + DONE, content_type=kind))
    assert await read(open_stream(client)) == "a"


@pytest.mark.parametrize("name", UNCOMPRESSED)
async def test_content_encodings_that_mean_uncompressed_are_accepted(
    server: FriendliServer, client: AsyncFriendli, name: str
) -> None:
    labelled = {"Content-Encoding": name}
    server.enqueue(body(completion(), content_type="application/json", headers=labelled))
    server.enqueue(body(delta("a", "stop") + DONE, content_type="text/event-stream", headers=labelled))
    assert (await complete(client)).text == "whole"
    assert await read(open_stream(client)) == "a"


async def test_read_after_a_cancelled_read_raises_interrupted_with_partial(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(event({"choices": [{"index": 0, "delta": {"content": "a"}}]}), stall()))
    stream = open_stream(client)
    assert (await with_timeout(anext(stream))).text == "a"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.01)
    with pytest.raises(StreamInterruptedError) as caught:
        await with_timeout(anext(stream))
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert stream.outcome == "cancelled"


async def test_call_ended_has_usage_of_non_streamed_call(server: FriendliServer, client: AsyncFriendli) -> None:
    ended: list[CallEnded] = []

    class Meter(Observer):
        def call_ended(self, event: CallEnded) -> None:
            ended.append(event)

    reply = await complete(client.with_options(observers=[Meter()]))
    assert reply.usage is not None
    assert [(each.usage, each.finish_reasons) for each in ended] == [(reply.usage, ("stop",))]


async def test_raw_contains_fields_without_attribute(server: FriendliServer, client: AsyncFriendli) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "a", "new": 1}}], "timings": {"x": [1, None]}}
    server.enqueue(json_body(whole))
    reply = await complete(client)
    assert reply.raw == whole
    with pytest.raises(AttributeError, match="accumulated from a stream"):
        _ = (await open_stream(client).result()).raw


@pytest.mark.parametrize(
    ("charset", "expected"),
    [("utf-8", "na\xefve"), ("utf-8-sig", "na\xefve"), ("utf-16", "na\xefve"), ("iso-8859-1", "na\ufffdve")],
)
async def test_reply_is_read_as_json_whatever_charset_its_content_type_names(
    server: FriendliServer, client: AsyncFriendli, charset: str, expected: str
) -> None:
    whole = {"choices": [{"index": 0, "message": {"content": "na\xefve"}}], "new": "na\xefve"}
    data = json.dumps(whole, ensure_ascii=False).encode(charset)
    server.enqueue(body(data, content_type="application/json; charset=iso-8859-1"))
    reply = await complete(client)
    assert (reply.text, reply.raw["new"]) == (expected, expected)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("data", ['{"error": {"message": "zu viel f\xfcr uns"}}', "zu viel f\xfcr uns"])
async def test_error_with_good_status_is_read_as_utf8(
    server: FriendliServer, client: AsyncFriendli, data: str, streamed: bool
) -> None:
    server.enqueue(body(data.encode(), content_type="text/plain; charset=iso-8859-1"))
    with pytest.raises(APIStatusError, match="zu viel f\xfcr uns") as caught:
        await with_timeout(read(open_stream(client)) if streamed else complete(client))
    assert caught.value.body.rstrip() == data


DETAILS = [
    {"type": "reasoning.text", "index": 0, "text": "Let me "},
    {"type": "reasoning.text", "index": 0, "text": "think.", "signature": "s"},
    {"type": "reasoning.encrypted", "index": 1, "data": "abc"},
]
MERGED_DETAILS = ({"type": "reasoning.text", "index": 0, "text": "Let me think.", "signature": "s"}, DETAILS[2])


async def test_reasoning_details_accumulate_and_are_sent_back(server: FriendliServer, client: AsyncFriendli) -> None:
    events = [event({"choices": [{"index": 0, "delta": {"reasoning_details": [detail]}}]}) for detail in DETAILS]
    server.enqueue(script(*events, event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), done()))
    stream = open_stream(client)
    assert [text async for text in stream.reasoning()] == ["Let me ", "think."]
    reply = await stream.result()
    assert reply.reasoning == "Let me think."
    assert reply.message.reasoning_details == MERGED_DETAILS
    assert reply.message.as_input()["reasoning_details"] == MERGED_DETAILS
    await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "Hi"}, reply.message])
    assert server.requests[-1].json["messages"][1]["reasoning_details"] == list(MERGED_DETAILS)


async def test_half_a_character_in_place_of_a_number_does_not_end_a_stream(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(event({"news": "x", "created": "\ud83d"}), done()))
    chunk = await anext(open_stream(client))
    assert chunk.message == {"news": "x", "created": "\ud83d"}
    refusal = {"type": "response.refusal.delta", "delta": "No", "output_index": "\ud83d"}
    server.enqueue(script(event(refusal), stall()))
    async with client.serverless.responses.stream(model="m", input="Hi") as stream:
        assert isinstance(await anext(stream), UnknownEvent)
