"""What streams accept: the dialects of real servers, errors in mid-stream, and what is no stream at all."""

from typing import Any

import pytest
from aiohttp import http_parser
from support.sockets import (
    DONE,
    LAST_CHUNK,
    MESSAGES,
    QUICK,
    STREAM_HEAD,
    UNFRAMED_HEAD,
    ask,
    chunked,
    client_of,
    delta,
    read,
    saying,
    sse,
    within,
)

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    AuthenticationError,
    BadRequestError,
    ChatChunk,
    FriendliError,
    InternalServerError,
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
    end,
    error_data,
    error_event,
    event,
    finish,
    garbage,
    head,
    json_body,
    raw,
    reset,
    script,
    split,
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


def _last(choice: dict[str, object]) -> bytes:
    """A chunk with usage in the same choice as something else."""
    return sse({"choices": [{"index": 0, **choice}], "usage": USAGE})


DIALECTS = {
    "usage in an empty chunk": ALL,
    "usage in a choice with an empty delta": HI + FINISH + _last({"delta": {}}) + DONE,
    "usage in a choice without delta": HI + FINISH + _last({}) + DONE,
    "usage in the finish chunk": HI + _last({"delta": {}, "finish_reason": "stop"}) + DONE,
    "usage without choices": HI + FINISH + sse({"usage": USAGE}) + DONE,
    "no sentinel": HI + FINISH + COUNTS,
    "no finish_reason key": ALL.replace(b', "finish_reason": null', b""),
    "choices null": HI + FINISH + sse({"choices": None, "usage": USAGE}) + DONE,
    "delta null": HI + _last({"delta": None, "finish_reason": "stop"}) + DONE,
    "extra keys": HI + FINISH + sse({"choices": [], "usage": USAGE, "timings": {"x": 1}, "error": None}) + DONE,
    "CRLF": ALL.replace(b"\n", b"\r\n"),
    "CR": ALL.replace(b"\n", b"\r"),
    "no space after the colon": ALL.replace(b"data: ", b"data:"),
    "BOM, comments, ids": b"\xef\xbb\xbf: hello\n\n" + ALL.replace(b"data:", b": ping\nid: 7\nretry: 5\ndata:"),
    "pings by name": b"event: ping\ndata: {}\n\n" + HI + b'event: x\ndata: {"type": 1}\n\n' + FINISH + COUNTS + DONE,
    "pings that are no JSON": HI + b"event: ping\ndata\n\nevent: ping\ndata: 12:30\n\n" + FINISH + COUNTS + DONE,
    "the default name": (HI + FINISH + COUNTS).replace(b"data:", b"event: message\ndata:") + DONE,
    "empty data lines": b"data:\n\n" + HI + b"data: \n\ndata\n\n" + FINISH + COUNTS + DONE,
    "more after the sentinel": ALL + b"data: {nope\n\n" + sse({"error": "x"}),
    "no blank line after the sentinel": ALL[:-2],
    "text in the finish chunk": delta("H") + _last({"delta": {"content": "i"}, "finish_reason": "stop"}),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("name", DIALECTS)
async def test_dialects_of_the_wild_are_understood(
    server: FriendliServer, client: AsyncFriendli, name: str, size: int
) -> None:
    server.enqueue(script(split(raw(DIALECTS[name]), size)))
    stream = ask(client)
    assert await read(stream) == "Hi"
    assert stream.outcome == "done"
    result = await stream.result()
    assert result.text == "Hi"
    assert result.usage is not None
    assert result.usage.total_tokens == 3


@pytest.mark.parametrize("ending", [b"data: [DONE]\n", b"data: [DONE]\r", b"data:[DONE]\r\n", b"data: [DONE]\n\n"])
async def test_the_sentinel_ends_the_stream_although_the_server_then_says_nothing(
    server: FriendliServer, client: AsyncFriendli, ending: bytes
) -> None:
    server.enqueue(script(chunk("a"), finish(), raw(ending), stall()))
    stream = ask(client)
    assert await within(read(stream)) == "a"
    assert stream.outcome == "done"


async def test_text_that_mentions_errors_and_sentinels_is_text(server: FriendliServer, client: AsyncFriendli) -> None:
    words = ['{"error": {"code": 500}}', "data: [DONE]\n\n", '"error"', "[DONE]", "\u2028"]
    server.enqueue(script(*[chunk(word) for word in words], finish(), done()))
    assert await read(ask(client)) == "".join(words)


@pytest.mark.parametrize("kind", ["text/event-stream; charset=utf-8", "Text/Event-Stream", "text/plain"])
async def test_a_stream_is_known_however_it_is_labelled(
    server: FriendliServer, client: AsyncFriendli, kind: str
) -> None:
    server.enqueue(script(chunk("a"), finish(), done(), content_type=kind))
    assert await read(ask(client)) == "a"


async def test_a_body_that_ends_with_its_connection_is_a_good_stream() -> None:
    async with saying(UNFRAMED_HEAD, delta("a"), delta(finish="stop"), DONE) as server, client_of(server.url) as client:
        stream = ask(client)
        assert await read(stream) == "a"
        assert stream.outcome == "done"


async def test_a_body_that_ends_with_its_connection_too_early_is_truncated() -> None:
    async with saying(UNFRAMED_HEAD, delta("a"), delta("b")) as server, client_of(server.url) as client:
        stream = ask(client)
        with pytest.raises(StreamInterruptedError) as caught:
            await read(stream)
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ab"


seen_by_the_c_parser = pytest.mark.skipif(
    http_parser.HttpResponseParser is http_parser.HttpResponseParserPy,
    reason="aiohttp's parser in Python takes it, or waits for more: there the idle limit ends it",
)


@pytest.mark.parametrize(
    "junk",
    [
        b"zz\r\n",
        b"-1\r\nabc\r\n",
        pytest.param(b"5;\x00\r\nhello\r\n", marks=seen_by_the_c_parser),
        b"2\r\nabcdef\r\n",
        pytest.param(b"\xff" * 100, marks=seen_by_the_c_parser),
    ],
)
async def test_garbage_in_the_framing_does_not_hang_the_reader(junk: bytes) -> None:
    async with (
        saying(STREAM_HEAD, chunked(delta("a")), junk, hang=True) as server,
        client_of(server.url, timeout=Timeouts(idle=None)) as client,
    ):
        stream = ask(client)
        with pytest.raises(StreamInterruptedError) as caught:
            await within(read(stream))
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "a"


async def test_the_end_of_the_framing_without_a_terminal_event_is_truncated() -> None:
    async with (
        saying(STREAM_HEAD, chunked(delta("a")), LAST_CHUNK, hang=True) as server,
        client_of(server.url) as client,
    ):
        stream = ask(client)
        with pytest.raises(StreamInterruptedError):
            await read(stream)
        assert stream.outcome == "truncated"


# --- errors inside a stream ------------------------------------------------------------------------------------------

EMBEDDED: dict[str, tuple[object, type[APIStatusError], int | None]] = {
    "integer code": ({"error": {"message": "m", "code": 429}}, RateLimitError, 429),
    "code as text": ({"error": {"message": "m", "code": "400"}}, BadRequestError, 400),
    "named code": ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, RateLimitError, 429),
    "named type": ({"error": {"message": "m", "type": "overloaded_error"}}, InternalServerError, 503),
    "llama.cpp": ({"error": {"message": "m", "code": 400, "type": "exceed_context_size_error"}}, BadRequestError, 400),
    "authentication": ({"error": {"message": "m", "type": "authentication_error"}}, AuthenticationError, 401),
    "a word": ({"error": "m"}, APIStatusError, None),
    "nothing that names a class": ({"error": {"message": "m", "type": "novel"}}, APIStatusError, None),
}


@pytest.mark.parametrize("named", [None, "error"])
@pytest.mark.parametrize("name", EMBEDDED)
async def test_an_error_in_the_stream_raises_the_class_that_it_names(
    server: FriendliServer, client: AsyncFriendli, name: str, named: str | None
) -> None:
    data, expected, code = EMBEDDED[name]
    server.enqueue(script(chunk("a"), event(data, name=named), chunk("never"), done()))
    stream = ask(client)
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


async def test_an_error_event_of_plain_text_is_an_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), event("it broke", name="error"), done()))
    with pytest.raises(APIStatusError, match="it broke"):
        await read(ask(client))


@pytest.mark.parametrize(
    "first",
    [
        error_data({"message": "m", "code": 503}),
        error_event({"error": {"message": "m", "code": 429}}),
        event({"error": {"type": "overloaded"}}),
    ],
)
async def test_an_overload_as_the_first_event_is_retried_unseen(server: FriendliServer, first: Step) -> None:
    server.enqueue(script(first), text("ok"))
    async with client_of(server.url, retry=QUICK) as client, ask(client) as stream:
        assert await read(stream) == "ok"
        assert len(stream.meta.attempts) == 2
        assert stream.meta.attempts[0].cause is not None
    assert len(server.requests) == 2


async def test_an_overload_after_the_first_event_is_not_retried(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), error_data({"message": "m", "code": 503})), text("never"))
    async with client_of(server.url, retry=QUICK) as client:
        with pytest.raises(InternalServerError):
            await read(ask(client))
    assert len(server.requests) == 1


@pytest.mark.parametrize("steps", [[cut()], [reset()], [garbage()], [end()]])
async def test_a_stream_broken_after_its_first_event_is_not_retried(server: FriendliServer, steps: list[Step]) -> None:
    server.enqueue(script(chunk("a"), *steps), text("never"))
    async with client_of(server.url, retry=QUICK) as client:
        with pytest.raises(StreamInterruptedError):
            await read(ask(client))
    assert len(server.requests) == 1


async def test_a_refusal_as_the_first_event_is_raised_by_opening(server: FriendliServer) -> None:
    server.enqueue(script(error_data({"message": "m", "code": 400})), text("never"))
    async with client_of(server.url, retry=QUICK) as client:
        stream = ask(client)
        with pytest.raises(BadRequestError) as caught:
            await stream
        assert stream.outcome == "failed"
        assert caught.value.meta is not None
        assert caught.value.meta.status == 200
    assert len(server.requests) == 1


async def test_a_page_instead_of_a_stream_is_named(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(body(b"<html><title>Sign in</title></html>"))
    with pytest.raises(ResponseDecodeError) as caught:
        await ask(client)
    assert "<html>" in caught.value.excerpt
    assert "text/html" in str(caught.value)


async def test_a_document_instead_of_a_stream_is_named(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body({"choices": []}))
    with pytest.raises(ResponseDecodeError):
        await ask(client)


async def test_an_error_document_with_status_200_is_the_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(json_body({"error": {"message": "slow down", "code": 429}}))
    with pytest.raises(RateLimitError, match="slow down"):
        await ask(client)


@pytest.mark.parametrize("steps", [[end()], [comment(), end()], [head(), cut()], [head(), reset()]])
async def test_a_stream_without_any_event_is_an_error_of_opening(
    server: FriendliServer, client: AsyncFriendli, steps: list[Step]
) -> None:
    server.enqueue(script(*steps))
    stream = ask(client)
    with pytest.raises(FriendliError):
        await stream
    assert stream.outcome in {"failed", "truncated"}


async def test_a_stream_of_the_sentinel_alone_has_not_begun(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(done()))
    stream = ask(client)
    with pytest.raises(StreamInterruptedError, match="before it began"):
        await stream
    assert stream.outcome == "truncated"


# --- tool-assisted chat has the same life -----------------------------------------------------------------------------

BODY: dict[str, Any] = {"model": "m", "messages": MESSAGES, "tools": [{"type": "math:calculator"}]}


async def test_the_seed_operation_streams_both_kinds_of_events(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(tool_status("STARTED"), tool_status("ENDED", result='"4"'), chunk("4"), finish(), done()))
    events = [
        event
        async for event in client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=BODY)
    ]
    assert [type(event) for event in events] == [ToolStatus, ToolStatus, ChatChunk, ChatChunk]


async def test_a_tool_that_starts_after_a_finish_reason_means_that_more_must_come(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("let me see"), finish("tool_calls"), tool_status("STARTED"), end()))
    stream = client.serverless.tool_assisted_chat.stream(model="m", messages=MESSAGES)
    with pytest.raises(StreamInterruptedError) as caught:
        async for _ in stream:
            pass
    assert stream.outcome == "truncated"
    assert caught.value.partial is not None
    assert caught.value.partial.text == "let me see"
