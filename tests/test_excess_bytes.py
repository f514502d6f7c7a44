"""Servers that send more than a reply, or broken framing, in the read that brings the reply's head."""

import json

import pytest
from support.clock import run_loop_iterations
from support.sockets import (
    DONE,
    FAST_RETRY,
    IS_PURE_PARSER,
    LAST_CHUNK,
    STREAM_HEAD,
    Conversation,
    RawServer,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    read_into,
    reply,
    serve_bytes,
    slots_in_use,
    with_timeout,
)

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    AsyncFriendli,
    AuthenticationError,
    BadRequestError,
    ResponseDecodeError,
    StreamInterruptedError,
)

INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
EXCESS = [b"XX", b"\r\nXX", b"\r\n", reply(b"{}"), b"\x00" * 70_000]


def error_reply(status: str) -> bytes:
    return reply(b'{"error": {"message": "no such model"}}', status=status)


@pytest.mark.parametrize("head", [b"", INTERIM, INTERIM * 2], ids=["", "interim", "two interim"])
@pytest.mark.parametrize("excess", EXCESS, ids=["letters", "line", "empty line", "another reply", "many bytes"])
async def test_bytes_after_a_reply_in_the_same_segment_are_ignored(head: bytes, excess: bytes) -> None:
    async with (
        serve_bytes(head + reply(completion()) + excess) as server,
        client_of(server.url, retry=FAST_RETRY) as client,
    ):
        assert (await with_timeout(complete(client))).text == "whole"
        assert len(server.requests) == 1
        assert slots_in_use(client) == 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_bytes_after_a_reply_are_ignored_at_any_split_of_its_head(size: int) -> None:
    head, _, body = reply(completion()).partition(b"\r\n\r\n")
    pieces = [head[start : start + size] for start in range(0, len(head), size)]
    for split in range(5):
        blank, rest = b"\r\n\r\n"[:split], b"\r\n\r\n"[split:]
        async with (
            serve_bytes(*pieces, *([blank] if blank else []), rest + body + b"XX") as server,
            client_of(server.url, retry=FAST_RETRY) as client,
        ):
            assert (await with_timeout(complete(client))).text == "whole"
            assert len(server.requests) == 1


async def test_bytes_after_a_reply_with_bare_line_feeds_are_ignored() -> None:
    head, _, body = reply(completion()).partition(b"\r\n\r\n")
    data = head.replace(b"\r\n", b"\n") + b"\n\n" + body + b"XX"
    async with serve_bytes(data) as server, client_of(server.url, retry=FAST_RETRY) as client:
        assert (await with_timeout(complete(client))).text == "whole"
        assert len(server.requests) == 1


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"], ids=["", "close"])
async def test_bytes_after_a_reply_do_not_become_the_next_reply(headers: str) -> None:
    async def talk(conversation: Conversation) -> None:
        while await conversation.request():
            requests.append(conversation.number)
            await conversation.send(reply(completion(str(len(requests))), headers=headers) + b"XX")

    requests: list[int] = []
    async with RawServer(talk) as server, client_of(server.url, retry=FAST_RETRY) as client:
        for number in (1, 2, 3):
            assert (await with_timeout(complete(client))).text == str(number)
        assert len(requests) == 3


@pytest.mark.compatibility
@pytest.mark.parametrize("excess", [reply(completion("stray")), b"XX"], ids=["another reply", "letters"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_bytes_after_a_reply_in_the_read_that_ends_its_body_do_not_become_the_next_reply(
    streamed: bool, excess: bytes
) -> None:
    async def talk(conversation: Conversation) -> None:
        while await conversation.request():
            connections.append(conversation.number)
            whole = reply(completion(str(len(connections))))
            if streamed:
                whole = STREAM_HEAD + chunked(delta(str(len(connections)), "stop") + DONE) + LAST_CHUNK
            await conversation.send(whole[:-5])
            await run_loop_iterations(20)
            await conversation.send(whole[-5:] + excess)

    connections: list[int] = []
    async with RawServer(talk) as server, client_of(server.url, retry=None) as client:
        for number in ("1", "2", "3"):
            assert await with_timeout(read(open_stream(client)) if streamed else text_of(client)) == number
    # aiohttp's pure-Python parser drops what may still become a line, and the connection may be used again.
    assert connections == [1, 2, 3] or (IS_PURE_PARSER and connections[0] == 1)


async def text_of(client: AsyncFriendli) -> str:
    return (await complete(client)).text


async def test_content_length_that_counts_characters_is_a_decode_error_and_not_retried() -> None:
    body = json.dumps({"choices": [], "model": "äöü"}, ensure_ascii=False)
    data = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    async with serve_bytes(data.encode()) as server, client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises(ResponseDecodeError):
            await with_timeout(complete(client))
        assert len(server.requests) == 1


@pytest.mark.parametrize("excess", EXCESS[:3], ids=["letters", "line", "empty line"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "error"), [("400 Bad Request", BadRequestError), ("401 Unauthorized", AuthenticationError)]
)
async def test_error_reply_followed_by_excess_keeps_its_class_and_message(
    status: str, error: type[APIStatusError], streamed: bool, excess: bytes
) -> None:
    async with (
        serve_bytes(error_reply(status) + excess) as server,
        client_of(server.url, retry=FAST_RETRY) as client,
    ):
        with pytest.raises(error, match="no such model"):
            await with_timeout(read(open_stream(client)) if streamed else complete(client))
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_reply_without_body_followed_by_excess_keeps_its_status(status: str) -> None:
    data = f"HTTP/1.1 {status}\r\n\r\nXX".encode()
    async with serve_bytes(data) as server, client_of(server.url, retry=FAST_RETRY) as client:
        with pytest.raises((APIStatusError, ResponseDecodeError)) as caught:
            await with_timeout(complete(client))
        assert caught.value.meta is not None
        assert caught.value.meta.status == int(status[:3])
        assert len(server.requests) == 1


@pytest.mark.parametrize("hang", [False, True])
async def test_bytes_after_a_stream_in_the_same_segment_are_ignored(hang: bool) -> None:
    data = STREAM_HEAD + chunked(delta("a") + delta("b", "stop") + DONE) + LAST_CHUNK + b"XX"
    async with serve_bytes(data, hang=hang) as server, client_of(server.url, retry=FAST_RETRY) as client:
        assert await read(open_stream(client)) == "ab"
        assert len(server.requests) == 1
        assert slots_in_use(client) == 0


@pytest.mark.parametrize("hang", [False, True])
@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nabcdefgh\r\n", b"-1\r\n"])
async def test_broken_framing_in_the_first_segment_truncates_the_stream_after_its_events(
    broken: bytes, hang: bool
) -> None:
    data = STREAM_HEAD + chunked(delta("a") + delta("b")) + broken
    async with serve_bytes(data, hang=hang) as server, client_of(server.url, retry=FAST_RETRY) as client:
        seen: list[str] = []
        stream = open_stream(client)
        with pytest.raises(StreamInterruptedError) as caught:
            await read_into(seen, stream)
        assert seen == ["a", "b"]
        assert stream.outcome == "truncated"
        assert caught.value.partial is not None
        assert caught.value.partial.text == "ab"
        assert len(server.requests) == 1
        assert slots_in_use(client) == 0


async def test_invalid_head_is_still_no_reply() -> None:
    async with (
        serve_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}") as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(APIConnectionError, match="no reply: invalid HTTP response"):
            await with_timeout(complete(client))
        assert len(server.requests) == 1


@pytest.mark.parametrize("header", ["Set-Cookie: session=secret" + "x" * 9_000, "X: secret" + "'x" * 9_000])
async def test_error_about_a_header_does_not_quote_its_value(header: str) -> None:
    async with (
        serve_bytes(f"HTTP/1.1 200 OK\r\n{header}\r\n\r\n{{}}".encode()) as server,
        client_of(server.url) as client,
    ):
        with pytest.raises(APIConnectionError, match=r"Got more than 8190 bytes when reading \(server ") as caught:
            await with_timeout(complete(client))
        assert "secret" not in str(caught.value)
        assert "secret" not in repr(caught.value.meta)


async def test_log_of_a_retry_names_the_status_of_an_error_in_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    error = b'data: {"error": {"message": "busy", "code": 503}}\n\n'
    answers = [error, delta("a", "stop") + DONE]

    async def talk(conversation: Conversation) -> None:
        while await conversation.request():
            await conversation.send(STREAM_HEAD + chunked(answers.pop(0)) + LAST_CHUNK)

    with caplog.at_level("INFO", "friendli_async"):
        async with RawServer(talk) as server, client_of(server.url, retry=FAST_RETRY) as client:
            assert await read(open_stream(client)) == "a"
    assert [record.message for record in caplog.records if "after 503" in record.message]
