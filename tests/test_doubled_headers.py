"""Duplicate and incorrect response headers: error details are kept and successful responses are read."""

from __future__ import annotations

import gzip
import json
import logging
from typing import Any, Final

import pytest
from support.sockets import (
    DONE,
    IS_PURE_PARSER,
    LAST_CHUNK,
    chunked,
    client_of,
    complete,
    completion,
    delta,
    open_stream,
    read,
    serve_bytes,
    with_timeout,
)

from friendli_async import APIConnectionError, APIStatusError, RateLimitError, ResponseDecodeError

ERROR_BODY: Final = json.dumps({"error": {"message": "slow down", "code": "c"}}).encode()
JSON: Final = "Content-Type: application/json"
TOO_MANY: Final = "429 Too Many Requests"


def http(body: bytes, *headers: str, status: str = TOO_MANY) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return head.encode() + body


async def error_for(reply: bytes, *, streamed: bool = False, kind: type[Any] = RateLimitError) -> Any:
    async with serve_bytes(reply) as server, client_of(server.url) as client:
        with pytest.raises(kind) as caught:
            await with_timeout(read(open_stream(client)) if streamed else complete(client))
    return caught.value


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((JSON, JSON), ERROR_BODY),
        (("Content-Type: text/html", JSON), ERROR_BODY),
        (("Content-Type: /;;=",), ERROR_BODY),
        ((), ERROR_BODY),
        ((JSON, "Content-Encoding: gzip", "Content-Encoding: gzip"), gzip.compress(ERROR_BODY)),
        ((JSON, "Content-Encoding: x-gzip", "Content-Encoding: gzip"), gzip.compress(ERROR_BODY)),
        ((JSON, "Content-Encoding: identity", "Content-Encoding: gzip"), gzip.compress(ERROR_BODY)),
        ((JSON, "Content-Encoding: gzip"), ERROR_BODY),
        ((JSON, "Content-Encoding: br"), ERROR_BODY),
        ((JSON, "Content-Encoding: gzip, br"), ERROR_BODY),
        ((JSON, "Content-Encoding: gzip"), gzip.compress(ERROR_BODY)[:-8]),
    ],
)
async def test_error_message_is_read_regardless_of_headers(
    headers: tuple[str, ...], body: bytes, streamed: bool
) -> None:
    error = await error_for(http(body, *headers), streamed=streamed)
    assert (error.message, error.code) == ("slow down", "c")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
async def test_undecodable_error_body_is_not_shown(encoding: str) -> None:
    error = await error_for(http(bytes(range(256)), JSON, f"Content-Encoding: {encoding}"))
    assert error.message == "HTTP 429 Too Many Requests"


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("headers", "delay"),
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
async def test_longest_retry_delay_wins(headers: tuple[str, ...], delay: float | None) -> None:
    assert (await error_for(http(ERROR_BODY, JSON, *headers))).retry_after == delay


@pytest.mark.compatibility
@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        (("X-Request-Id: a", "x-request-id: b"), "a"),
        (("X-Request-Id:", "X-Request-Id: b"), "b"),
        (("X-Request-Id: 8sun", "X-Request-Id: b"), "8sun"),  # like the name of a day
        (("Request-Id: a", "X-Request-Id: b"), "b"),
        (("X-Request-Id: ", "X-Request-Id:", "Request-Id: a", "Request-Id: b"), "a"),  # Anthropic's name for it
        ((), None),
    ],
)
async def test_first_nonempty_request_id_wins(headers: tuple[str, ...], request_id: str | None) -> None:
    error = await error_for(http(ERROR_BODY, JSON, *headers))
    assert error.request_id == request_id
    assert error.meta.request_id == request_id


@pytest.mark.parametrize("headers", [("Content-Encoding: gzip", "Content-Encoding: gzip"), ("Content-Encoding: GZIP",)])
async def test_successful_response_is_decompressed_once(headers: tuple[str, ...]) -> None:
    async with (
        serve_bytes(http(gzip.compress(completion()), JSON, JSON, *headers, status="200 OK")) as server,
        client_of(server.url) as client,
    ):
        assert (await with_timeout(complete(client))).text == "whole"


async def test_stream_with_two_content_types_is_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Type: text/event-stream\r\n"
    head += b"Content-Encoding: none\r\nContent-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with (
        serve_bytes(head, chunked(delta("a", "stop") + DONE) + LAST_CHUNK) as server,
        client_of(server.url) as client,
    ):
        assert await read(open_stream(client)) == "a"


@pytest.mark.compatibility
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (http(ERROR_BODY, f"Content-Length: {len(ERROR_BODY)}"), "Content-Length"),
        (http(ERROR_BODY, "Content-Length: 3"), "Content-Length"),
        (http(ERROR_BODY, "Transfer-Encoding: chunked"), "Transfer-Encoding"),
        (http(ERROR_BODY, status="42 secret"), "status"),
        (http(ERROR_BODY, status="429 " + "secret" * 2000), "Got more than 8190 bytes when reading"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", ""),
    ],
)
async def test_invalid_http_error_is_one_line_without_quoted_bytes(reply: bytes, detail: str, streamed: bool) -> None:
    if IS_PURE_PARSER and detail == "Content-Length":  # which that parser accepts
        await error_for(reply, streamed=streamed, kind=RateLimitError)
        return
    error = await error_for(reply, streamed=streamed, kind=APIConnectionError)
    message = str(error)
    ended = IS_PURE_PARSER and reply.startswith(b"SSH")
    assert message.startswith("no reply: the server closed" if ended else "no reply: invalid HTTP response: ")
    assert detail in message
    assert "\n" not in message
    assert "b'" not in message
    assert "secret" not in message
    assert error.sent


@pytest.mark.parametrize(
    ("status", "headers", "target"),
    [
        ("302 Found", ("Location: https://u:secret@login.example/in?token=secret#secret",), "https://login.example/in"),
        ("302 Found", ("Location: https://u:se,cret@login.example/in",), "https://login.example/in"),
        ("302 Found", ("Location: https://u:sec@r et@login.example:81/in",), "https://login.example:81/in"),
        ("307 X", ("Location: HTTPS://u:secret@login.example/in",), "HTTPS://login.example/in"),
        ("307 X", ("Location: u:secret@login.example/in",), "login.example/in"),
        ("307 X", ("Location: //other.example/a",), "//other.example/a"),
        ("307 X", ("Location: https://other.example/@a",), "https://other.example/@a"),
        ("301 Moved", ("Location: /v2",), "/v2"),
        ("308 X", ("Location: http://[bad",), "http://[bad"),
        ("307 X", ("Location: https://other.example/a", "Location: /b"), "https://other.example/a"),
    ],
)
async def test_redirect_error_names_target_without_secrets(status: str, headers: tuple[str, ...], target: str) -> None:
    page = b"<html><title>Sign in</title></html>"
    error = await error_for(http(page, "Content-Type: text/html", *headers, status=status), kind=APIStatusError)
    assert error.message == f"Sign in (a redirect to {target})"


@pytest.mark.parametrize("mark", "?#/")
async def test_redirect_target_with_ambiguous_password_is_not_quoted(mark: str) -> None:
    page = b"<html><title>Sign in</title></html>"
    location = f"Location: https://u:sec{mark}ret@login.example/in"
    error = await error_for(http(page, "Content-Type: text/html", location, status="302 Found"), kind=APIStatusError)
    assert error.message == "Sign in"


async def test_empty_response_body_is_reported() -> None:
    error = await error_for(http(b"", JSON, status="200 OK"), kind=ResponseDecodeError)
    assert str(error) == "the server's reply is empty"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("control", ["\x1b[2J", "\x08", "\t", "\x7f", "\x9b2J", "\u2028"])
async def test_control_characters_in_headers_reach_neither_errors_nor_logs(
    streamed: bool, control: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "friendli_async")
    error = await error_for(http(ERROR_BODY, f"x-request-id: a{control}b"), streamed=streamed)
    page = http(b"<p>moved</p>", f"Content-Type: text/a{control}b", status="200 OK")
    decoding = await error_for(page, streamed=streamed, kind=ResponseDecodeError)
    shown = [str(error), error.request_id, error.meta.request_id, *error.meta.headers.values(), str(decoding)]
    shown += [str(record.__dict__["friendli_request_id"]) for record in caplog.records]
    assert error.request_id == f"a {control[1:]}b"
    assert "text/a " in str(decoding)
    assert [text for text in shown if control[0] in text] == []
