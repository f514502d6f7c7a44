"""Which stream variants are accepted, in-stream errors, and responses that are not event streams."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from support.clock import Clock, run_loop_iterations
from support.sockets import (
    DONE,
    FAST_RETRY,
    IS_PURE_PARSER,
    LAST_CHUNK,
    MESSAGES,
    STREAM_HEAD,
    UNFRAMED_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    delta,
    open_stream,
    read,
    serve_bytes,
    sse,
    with_timeout,
)
from support.steps import garbage, split

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    AuthenticationError,
    BadRequestError,
    ChatChunk,
    FriendliError,
    InternalServerError,
    Limits,
    RateLimitError,
    ResponseDecodeError,
    StreamInterruptedError,
    Timeouts,
    ToolStatus,
)
from friendli_async.testing import (
    FriendliServer,
    Step,
    body,
    chunk,
    comment,
    cut,
    done,
    event,
    finish,
    head,
    json_body,
    raw,
    reset,
    script,
    stall,
    text,
    tool_status,
)

pytestmark = pytest.mark.compatibility


# --- dialects --------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
HI = sse({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}) + delta("Hi")
FINISH = delta(finish="stop")
COUNTS = sse({"choices": [], "usage": USAGE})
ALL = HI + FINISH + COUNTS + DONE


def _chunk_with_usage(choice: dict[str, object]) -> bytes:
    """Returns a chunk whose only choice has these fields, with usage in the same chunk."""
    return sse({"choices": [{"index": 0, **choice}], "usage": USAGE})


DIALECTS = {
    "usage in an empty chunk": ALL,
    "usage in a choice with an empty delta": HI + FINISH + _chunk_with_usage({"delta": {}}) + DONE,
    "usage in a choice without delta": HI + FINISH + _chunk_with_usage({}) + DONE,
    "usage in the finish chunk": HI + _chunk_with_usage({"delta": {}, "finish_reason": "stop"}) + DONE,
    "usage without a choices key": HI + FINISH + sse({"usage": USAGE}) + DONE,
    "no sentinel": HI + FINISH + COUNTS,
    "no finish_reason key": ALL.replace(b', "finish_reason": null', b""),
    "null choices": HI + FINISH + sse({"choices": None, "usage": USAGE}) + DONE,
    "null delta": HI + _chunk_with_usage({"delta": None, "finish_reason": "stop"}) + DONE,
    "extra keys": HI + FINISH + sse({"choices": [], "usage": USAGE, "timings": {"x": 1}, "error": None}) + DONE,
    "CRLF": ALL.replace(b"\n", b"\r\n"),
    "CR": ALL.replace(b"\n", b"\r"),
    "no space after the colon": ALL.replace(b"data: ", b"data:"),
    "BOM, comments, ids": b"\xef\xbb\xbf: hello\n\n" + ALL.replace(b"data:", b": ping\nid: 7\nretry: 5\ndata:"),
    "named pings": b"event: ping\ndata: {}\n\n" + HI + b'event: x\ndata: {"type": 1}\n\n' + FINISH + COUNTS + DONE,
    "pings that are not JSON": HI + b"event: ping\ndata\n\nevent: ping\ndata: 12:30\n\n" + FINISH + COUNTS + DONE,
    "explicit default event name": (HI + FINISH + COUNTS).replace(b"data:", b"event: message\ndata:") + DONE,
    "empty data lines": b"data:\n\n" + HI + b"data: \n\ndata\n\n" + FINISH + COUNTS + DONE,
    "data after the sentinel": ALL + b"data: {nope\n\n" + sse({"error": "x"}),
    "no blank line after the sentinel": ALL[:-2],
    "no blank line after the last event": (HI + FINISH + COUNTS)[:-1],
    "no line end after the last event": (HI + FINISH + COUNTS)[:-2],
    "no line end after a named last event": HI + FINISH + COUNTS[:-2].replace(b"data:", b"event: message\ndata:"),
    "usage of zeros after the usage": HI
    + FINISH
    + COUNTS
    + sse({"choices": [], "usage": dict.fromkeys(USAGE, 0)})
    + DONE,
    "texts for no finish reason": HI.replace(b"}]}", b', "finish_reason": "None"}]}') + FINISH + COUNTS + DONE,
    "text in the finish chunk": delta("H") + _chunk_with_usage({"delta": {"content": "i"}, "finish_reason": "stop"}),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("name", DIALECTS)
async def test_known_dialects_are_accepted(server: FriendliServer, client: AsyncFriendli, name: str, size: int) -> None:
    server.enqueue(script(split(raw(DIALECTS[name]), size)))
    stream = open_stream(client)
    assert await read(stream) == "Hi"
    assert stream.outcome == "done"
    result = await stream.result()
    assert result.text == "Hi"
    assert result.usage is not None
    assert result.usage.total_tokens == 3


@pytest.mark.parametrize("ending", [b"data: [DONE]\n", b"data: [DONE]\r", b"data:[DONE]\r\n", b"data: [DONE]\n\n"])
async def test_sentinel_ends_stream_even_if_connection_stays_open(
    server: FriendliServer, client: AsyncFriendli, ending: bytes
) -> None:
    server.enqueue(script(chunk("a"), finish(), raw(ending), stall()))
    stream = open_stream(client)
    assert await with_timeout(read(stream)) == "a"
    assert stream.outcome == "done"


async def test_error_or_sentinel_lookalikes_in_content_are_text(server: FriendliServer, client: AsyncFriendli) -> None:
    pieces = ['{"error": {"code": 500}}', "data: [DONE]\n\n", '"error"', "[DONE]", "\u2028"]
    server.enqueue(script(*[chunk(piece) for piece in pieces], finish(), done()))
    assert await read(open_stream(client)) == "".join(pieces)


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "Text/Event-Stream", "text/plain"])
async def test_stream_content_type_variants_are_accepted(
    server: FriendliServer, client: AsyncFriendli, kind: str
) -> None:
    server.enqueue(script(chunk("a"), finish(), done(), content_type=kind))
    assert await read(open_stream(client)) == "a"


async def test_close_delimited_body_is_accepted() -> None:
    async with (
        serve_bytes(UNFRAMED_HEAD, delta("a"), delta(finish="stop"), DONE) as server,
        client_of(server.url) as client,
    ):
        stream = open_stream(client)
        assert await read(stream) == "a"
        assert stream.outcome == "done"


async def test_close_delimited_body_without_terminal_event_is_truncated() -> None:
    async with serve_bytes(UNFRAMED_HEAD, delta("a"), delta("b")) as server, client_of(server.url) as client:
        stream = open_stream(client)
        with pytest.raises(StreamInterruptedError) as caught:
            await read(stream)
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ab"


c_parser_only = pytest.mark.skipif(
    IS_PURE_PARSER,
    reason="aiohttp's pure-Python parser accepts this or waits for more data; there the idle timeout ends the stream",
)


@pytest.mark.parametrize(
    "junk",
    [
        b"zz\r\n",
        b"-1\r\nabc\r\n",
        pytest.param(b"5;\x00\r\nhello\r\n", marks=c_parser_only),
        b"2\r\nabcdef\r\n",
        pytest.param(b"\xff" * 100, marks=c_parser_only),
    ],
)
@pytest.mark.parametrize("foreign", [False, True], ids=["own session", "session passed in"])
async def test_malformed_chunked_framing_does_not_hang_reader(junk: bytes, foreign: bool) -> None:
    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(delta("a")))
        await opened.wait()
        await conversation.send(junk)
        await conversation.wait_disconnected()

    opened = asyncio.Event()
    async with (
        RawServer(talk) as server,
        aiohttp.ClientSession() as session,
        client_of(server.url, timeout=Timeouts(idle=None), session=session if foreign else None) as client,
    ):
        stream = await open_stream(client)
        opened.set()
        with pytest.raises(StreamInterruptedError) as caught:
            await with_timeout(read(stream))
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "a"


async def test_chunked_body_without_terminal_event_is_truncated() -> None:
    async with (
        serve_bytes(STREAM_HEAD, chunked(delta("a")), LAST_CHUNK, hang=True) as server,
        client_of(server.url) as client,
    ):
        stream = open_stream(client)
        with pytest.raises(StreamInterruptedError):
            await read(stream)
        assert stream.outcome == "truncated"


# --- errors inside a stream ------------------------------------------------------------------------------------------

EMBEDDED: dict[str, tuple[object, type[APIStatusError], int | None]] = {
    "integer code": ({"error": {"message": "m", "code": 429}}, RateLimitError, 429),
    "code as a string": ({"error": {"message": "m", "code": "400"}}, BadRequestError, 400),
    "named code": ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, RateLimitError, 429),
    "named type": ({"error": {"message": "m", "type": "overloaded_error"}}, InternalServerError, 503),
    "llama.cpp": ({"error": {"message": "m", "code": 400, "type": "exceed_context_size_error"}}, BadRequestError, 400),
    "authentication": ({"error": {"message": "m", "type": "authentication_error"}}, AuthenticationError, 401),
    "string error": ({"error": "m"}, APIStatusError, None),
    "plain text": ("m", APIStatusError, None),
    "unknown type": ({"error": {"message": "m", "type": "novel"}}, APIStatusError, None),
}


@pytest.mark.parametrize("event_name", [None, "error"])
@pytest.mark.parametrize("name", EMBEDDED)
async def test_in_stream_error_raises_matching_class(
    server: FriendliServer, client: AsyncFriendli, name: str, event_name: str | None
) -> None:
    data, expected, code = EMBEDDED[name]
    server.enqueue(script(chunk("a"), event(data, name=event_name), chunk("never"), done()))
    stream = open_stream(client)
    with pytest.raises(APIStatusError) as caught:
        await read(stream)
    assert isinstance(caught.value, expected)
    if code is not None:
        assert caught.value.status_code == code
    assert caught.value.message == "m"
    assert caught.value.request_id == server.requests[0].request_id
    assert caught.value.meta is not None
    assert caught.value.meta.status == stream.meta.status == 200
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


@pytest.mark.parametrize(
    "first",
    [
        event({"error": {"message": "m", "code": 503}}),
        event({"error": {"message": "m", "code": 429}}, name="error"),
        event({"error": {"type": "overloaded"}}),
    ],
)
async def test_overload_error_as_first_event_is_retried_transparently(server: FriendliServer, first: Step) -> None:
    server.enqueue(script(first), text("ok"))
    async with client_of(server.url, retry=FAST_RETRY) as client, open_stream(client) as stream:
        assert await read(stream) == "ok"
        assert len(stream.meta.attempts) == 2
        assert stream.meta.attempts[0].cause is not None
    assert len(server.requests) == 2


@pytest.mark.parametrize("steps", [[cut()], [reset()], [garbage()], []])
async def test_stream_interrupted_after_first_event_is_not_retried(server: FriendliServer, steps: list[Step]) -> None:
    server.enqueue(script(chunk("a"), *steps), text("never"))
    async with client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(StreamInterruptedError):
            await read(open_stream(client))
    assert len(server.requests) == 1


async def test_client_error_as_first_event_is_raised_on_open(server: FriendliServer) -> None:
    server.enqueue(script(event({"error": {"message": "m", "code": 400}})), text("never"))
    async with client_of(server.url, retry=FAST_RETRY) as client:
        stream = open_stream(client)
        with pytest.raises(BadRequestError) as caught:
            await stream
        assert stream.outcome == "failed"
        assert caught.value.meta is not None
        assert caught.value.meta.status == 200
    assert len(server.requests) == 1


WHOLE_REPLIES: dict[str, dict[str, Any]] = {
    "chat": {"choices": [{"message": {"role": "assistant", "content": "Hi"}}], "usage": {"total_tokens": 3}},
    "completions": {"choices": [{"text": "Hi"}], "usage": {"total_tokens": 3}},
    "messages": {"content": [{"type": "text", "text": "Hi"}], "usage": {"input_tokens": 1, "output_tokens": 2}},
    "responses": {
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}],
        "usage": {"total_tokens": 3},
    },
}


@pytest.mark.parametrize("content_type", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("api", WHOLE_REPLIES)
async def test_whole_reply_instead_of_stream_is_not_requested_again_and_is_partial(
    server: FriendliServer, api: str, content_type: str
) -> None:
    reply = json.dumps(WHOLE_REPLIES[api]).encode()
    server.always(script(raw(reply[:20]), raw(reply[20:]), content_type=content_type))
    limits = Limits(error=50)  # applies to what is no reply
    async with AsyncFriendli(token="t", server_url=server.url, retry=FAST_RETRY, limits=limits) as client:
        streams: dict[str, Callable[[], Any]] = {
            "chat": lambda: open_stream(client),
            "completions": lambda: client.serverless.completions.stream(model="m", prompt="Hi"),
            "messages": lambda: client.serverless.messages.stream(model="m", messages=MESSAGES, max_tokens=5),
            "responses": lambda: client.serverless.responses.stream(model="m", input="Hi"),
        }
        with pytest.raises(ResponseDecodeError, match=f"not an event stream|{content_type} instead of") as caught:
            await streams[api]()
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hi"
    assert caught.value.partial.usage is not None
    assert caught.value.partial.usage.total_tokens == 3
    assert len(server.requests) == 1


async def test_json_error_body_with_status_200_raises_that_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body({"error": {"message": "slow down", "code": 429}}))
    with pytest.raises(RateLimitError, match="slow down"):
        await open_stream(client)


@pytest.mark.parametrize("steps", [[], [comment()], [head(), cut()], [head(), reset()]])
async def test_stream_without_events_raises_on_open(
    server: FriendliServer, client: AsyncFriendli, steps: list[Step]
) -> None:
    server.enqueue(script(*steps))
    stream = open_stream(client)
    with pytest.raises(FriendliError):
        await stream
    assert stream.outcome in {"failed", "truncated"}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\n", b"da", b"\nevent"])
async def test_body_that_ends_within_what_may_begin_a_stream_raises_on_open(
    server: FriendliServer, client: AsyncFriendli, start: bytes
) -> None:
    server.enqueue(body(start, content_type="application/json"))
    stream = open_stream(client)
    with pytest.raises(ResponseDecodeError if not start.strip(b"\xef\xbb\xbf\n") else APIStatusError):
        await with_timeout(stream)
    assert stream.outcome == "failed"


@pytest.mark.parametrize("separator", [b"\n", b""])
async def test_stream_that_begins_within_a_read_is_recognized(server: FriendliServer, separator: bytes) -> None:
    pieces = [b"\xef", b"\xbb\xbf", separator, b"d", b"ata", b":", b" " + delta("a", "stop")[6:], DONE]
    server.enqueue(script(*map(raw, filter(None, pieces)), content_type="application/json"))
    async with client_of(server.url) as client:
        assert await read(open_stream(client)) == "a"


async def test_page_that_does_not_end_is_reported_before_the_timeout(
    server: FriendliServer, client: AsyncFriendli, clock: Clock
) -> None:
    server.enqueue(script(raw(b"<html><title>Sign in</title>"), stall(), content_type="text/html"))
    opening = asyncio.ensure_future(open_stream(client).__aenter__())
    await server.wait_for_requests(1)
    await run_loop_iterations(50)
    clock.advance(5)
    with pytest.raises(ResponseDecodeError, match="text/html"):
        await opening


async def test_stream_with_only_the_sentinel_is_truncated(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(done()))
    stream = open_stream(client)
    with pytest.raises(StreamInterruptedError, match="before any content came"):
        await stream
    assert stream.outcome == "truncated"


# --- tool-assisted chat follows the same rules -----------------------------------------------------------------------

BODY: dict[str, Any] = {"model": "m", "messages": MESSAGES, "tools": [{"type": "math:calculator"}]}


async def test_generated_operation_yields_tool_statuses_and_chunks(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(tool_status("STARTED"), tool_status("ENDED", result='"4"'), chunk("4"), finish(), done()))
    events = [
        event
        async for event in client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=BODY)
    ]
    assert [type(event) for event in events] == [ToolStatus, ToolStatus, ChatChunk, ChatChunk]


async def test_generated_operation_is_closed_where_its_context_is_left(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(tool_status("STARTED"), stall()))
    call = client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=BODY)
    async with call as stream:
        assert isinstance(await anext(stream), ToolStatus)
    assert stream.outcome == "cancelled"
    assert await server.requests[0].disconnected()


async def test_tool_start_after_finish_reason_makes_end_of_body_a_truncation(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("let me see"), finish("tool_calls"), tool_status("STARTED")))
    stream = client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES)
    with pytest.raises(StreamInterruptedError) as caught:
        async for _ in stream:
            pass
    assert stream.outcome == "truncated"
    assert caught.value.partial is not None
    assert caught.value.partial.text == "let me see"


@pytest.mark.parametrize("rest", [b"d", b"dat", b"data", b"data:", b"eve", b"event: x", b"i", b"retr", b": com"])
async def test_cut_field_is_no_error_message_of_a_truncated_stream(
    server: FriendliServer, client: AsyncFriendli, rest: bytes
) -> None:
    server.enqueue(script(raw(delta("a")), raw(rest)))
    stream = open_stream(client)
    with pytest.raises(StreamInterruptedError, match="before it was complete"):
        await with_timeout(stream.result())
    assert stream.outcome == "truncated"


@pytest.mark.parametrize("line", [b"quota exceeded", b"error: quota", b"upstream: quota exceeded", b"x-served-by: a"])
async def test_line_that_is_no_field_is_the_error_of_an_unfinished_answer(
    server: FriendliServer, client: AsyncFriendli, line: bytes
) -> None:
    for rest in (b"\n\n" + DONE, b"\n\n", b""):
        server.enqueue(script(raw(delta("a")), raw(line + rest)))
        with pytest.raises(APIStatusError):
            await with_timeout(open_stream(client).result())
