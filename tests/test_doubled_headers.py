"""Headers that came twice, or say what is not so: of the refusal nothing is lost, and a good reply is read."""

from __future__ import annotations

import gzip
import json
from typing import Any, Final

import pytest
from support.sockets import (
    DONE,
    LAST_CHUNK,
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

from friendli_async import APIConnectionError, APIStatusError, RateLimitError, ResponseDecodeError

SAID: Final = json.dumps({"error": {"message": "slow down", "code": "c"}}).encode()
JSON: Final = "Content-Type: application/json"
TOO_MANY: Final = "429 Too Many Requests"


def http(body: bytes, *headers: str, status: str = TOO_MANY) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


async def refused(reply: bytes, *, streamed: bool = False, kind: type[Any] = RateLimitError) -> Any:
    async with saying(reply) as server, client_of(server.url) as client:
        with pytest.raises(kind) as caught:
            await within(read(ask(client)) if streamed else complete(client))
    return caught.value


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((JSON, JSON), SAID),
        (("Content-Type: text/html", JSON), SAID),
        (("Content-Type: /;;=",), SAID),
        ((), SAID),
        ((JSON, "Content-Encoding: gzip", "Content-Encoding: gzip"), gzip.compress(SAID)),
        ((JSON, "Content-Encoding: x-gzip", "Content-Encoding: gzip"), gzip.compress(SAID)),
        ((JSON, "Content-Encoding: identity", "Content-Encoding: gzip"), gzip.compress(SAID)),
        ((JSON, "Content-Encoding: gzip"), SAID),
        ((JSON, "Content-Encoding: br"), SAID),
        ((JSON, "Content-Encoding: gzip, br"), SAID),
        ((JSON, "Content-Encoding: gzip"), gzip.compress(SAID)[:-8]),
    ],
)
async def test_the_words_of_a_refusal_are_read_whatever_its_headers_say(
    headers: tuple[str, ...], body: bytes, streamed: bool
) -> None:
    error = await refused(http(body, *headers), streamed=streamed)
    assert (error.message, error.code) == ("slow down", "c")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
async def test_what_cannot_be_read_is_not_shown(encoding: str) -> None:
    error = await refused(http(bytes(range(256)), JSON, f"Content-Encoding: {encoding}"))
    assert error.message == "HTTP 429 Too Many Requests"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        (("Retry-After: 3", "retry-after: 9"), 9.0),
        (("Retry-After: soon", "Retry-After: 3"), 3.0),
        (("Retry-After:", "Retry-After: 3"), 3.0),
        (("retry-after-ms: 3000", "Retry-After-Ms: 9000"), 9.0),
        (("X-RateLimit-Reset-Requests: 1s", "x-ratelimit-reset-requests: 1m0s"), 60.0),
        (("X-RateLimit-Remaining: 5", "X-RateLimit-Remaining: 0", "X-RateLimit-Reset: 8"), 8.0),
        (("X-RateLimit-Remaining: 5", "X-RateLimit-Reset: 8"), None),
    ],
)
async def test_the_longer_wait_counts(headers: tuple[str, ...], wait: float | None) -> None:
    assert (await refused(http(SAID, JSON, *headers))).retry_after == wait


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [(("X-Request-Id: a", "x-request-id: b"), "a"), (("X-Request-Id:", "X-Request-Id: b"), "b"), ((), None)],
)
async def test_the_first_request_id_counts(headers: tuple[str, ...], request_id: str | None) -> None:
    error = await refused(http(SAID, JSON, *headers))
    assert error.request_id == request_id
    assert error.meta.request_id == request_id


@pytest.mark.parametrize("headers", [("Content-Encoding: gzip", "Content-Encoding: gzip"), ("Content-Encoding: GZIP",)])
async def test_a_good_reply_is_decompressed_once(headers: tuple[str, ...]) -> None:
    async with (
        saying(http(gzip.compress(completion()), JSON, JSON, *headers, status="200 OK")) as server,
        client_of(server.url) as client,
    ):
        assert (await within(complete(client))).text == "whole"


async def test_a_stream_under_two_content_types_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Type: text/event-stream\r\n"
    head += b"Content-Encoding: none\r\nContent-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        saying(head, chunked(delta("a", "stop") + DONE) + LAST_CHUNK) as server,
        client_of(server.url) as client,
    ):
        assert await read(ask(client)) == "a"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (http(SAID, f"Content-Length: {len(SAID)}"), "Content-Length"),
        (http(SAID, "Content-Length: 3"), "Content-Length"),
        (http(SAID, "Transfer-Encoding: chunked"), "Transfer-Encoding"),
        (http(SAID, status="42 X"), "status"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ""),
    ],
)
async def test_what_is_no_http_is_told_in_one_line_that_quotes_none_of_it(
    reply: bytes, words: str, streamed: bool
) -> None:
    error = await refused(reply, streamed=streamed, kind=APIConnectionError)
    said = str(error)
    assert said.startswith("no reply: what came is no HTTP: ")
    assert words in said
    assert "\n" not in said
    assert "b'" not in said
    assert error.sent


@pytest.mark.parametrize(
    ("status", "headers", "there"),
    [
        ("302 Found", ("Location: https://u:secret@login.example/in?token=secret#secret",), "https://login.example/in"),
        ("302 Found", ("Location: https://u:se,cret@login.example/in",), "https://login.example/in"),
        ("302 Found", ("Location: https://u:sec@r et@login.example:81/in",), "https://login.example:81/in"),
        ("307 X", ("Location: //other.example/a",), "//other.example/a"),
        ("307 X", ("Location: https://other.example/@a",), "https://other.example/@a"),
        ("301 Moved", ("Location: /v2",), "/v2"),
        ("308 X", ("Location: http://[bad",), "http://[bad"),
        ("307 X", ("Location: https://other.example/a", "Location: /b"), "https://other.example/a"),
    ],
)
async def test_a_redirect_that_is_not_followed_says_where_to_and_nothing_secret(
    status: str, headers: tuple[str, ...], there: str
) -> None:
    page = b"<html><title>Sign in</title></html>"
    error = await refused(http(page, "Content-Type: text/html", *headers, status=status), kind=APIStatusError)
    assert error.message == f"Sign in (a redirect to {there})"


@pytest.mark.parametrize("mark", "?#/")
async def test_a_redirect_whose_password_cannot_be_told_from_the_rest_is_not_quoted(mark: str) -> None:
    page = b"<html><title>Sign in</title></html>"
    there = f"Location: https://u:sec{mark}ret@login.example/in"
    error = await refused(http(page, "Content-Type: text/html", there, status="302 Found"), kind=APIStatusError)
    assert error.message == "Sign in"


async def test_an_empty_reply_says_so() -> None:
    error = await refused(http(b"", JSON, status="200 OK"), kind=ResponseDecodeError)
    assert str(error) == "the server's reply is empty"
