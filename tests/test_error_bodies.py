"""Error messages parsed from the response bodies of many servers, gateways and proxies."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import APIStatusError
from friendli_async._core.status_errors import error_of_payload, status_error
from friendli_async.replies import Headers, ReplyHead

DATA: Final = Path(__file__).parent / "data"
ROWS: Final = [json.loads(line) for line in (DATA / "error_bodies.jsonl").read_text().splitlines()]
BODIES: Final = {row["made_by"]: row for row in ROWS}


def parse_error(body: bytes, content_type: str = "") -> APIStatusError:
    error = status_error(ReplyHead(500, Headers([("Content-Type", content_type)] if content_type else [])), body)
    assert error.status_code == 500
    return error


@pytest.mark.parametrize("made_by", BODIES)
def test_message_is_extracted_from_known_servers(made_by: str) -> None:
    row = BODIES[made_by]
    expected = row["says"]
    error = parse_error(row["body"].encode(row.get("encoding", "utf-8")), row["content_type"])
    assert (error.message, error.code, error.type, error.request_id) == (
        expected["message"],
        expected.get("code"),
        expected.get("type"),
        expected.get("request_id"),
    )
    assert "encoding" in row or error.body == row["body"].removeprefix("\ufeff")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", ""),
        (b"\r\n ", "text/plain"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b"[]", "application/json"),
        (b"[5]", "application/json"),
        (b'{"error": {"mess', "application/json"),
        (b"<html></html>", ""),
        (b'""', "application/json"),
        (b"data: [DONE]\n\n", "text/event-stream"),
        (b'data: {"choices": [{"delta": {"content": "an answer', ""),
        (b"<html><body>&nbsp;</body></html>", "text/html"),
        (b"<Error><Code/><Message/></Error>", "application/xml"),
        (bytes(range(128, 256)) * 9, "application/octet-stream"),
        (b'{"choices": [{"message": {"content": "an answer is nobody\'s to quote"}}]}', "application/json"),
        *((b'{"%b": [{}]}' % name, "") for name in (b"content", b"output", b"data", b"results", b"usage")),
    ],
)
@pytest.mark.parametrize(("status", "phrase"), [(502, " Bad Gateway"), (599, ""), (418, " I'm a Teapot")])
def test_error_without_message_names_its_status(body: bytes, content_type: str, status: int, phrase: str) -> None:
    error = status_error(ReplyHead(status, Headers([("content-type", content_type)])), body)
    assert error.message == f"HTTP {status}{phrase}"
    assert str(error) == error.message


ELEMENTS: Final = ("title", "h1", "message", "faultstring", "pre", "h2", "h3", "detail", "reason", "p")


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (' {"message": "no", "code": 5}', "no", "5"),
        *((f"<Error><x>other</x><{name}>no</{name}></Error>", "no", None) for name in ELEMENTS),
        *((f"<{tag}><h1>no</h1></{tag}><code>5</code>", "no", None) for tag in ("html", "body", "p")),
        ("<title>no</title><code>5</code>", "no", None),
        ("<x>other</x><p> </p><p>no</p>", "no", None),
        ("<div><SCRIPT>a\nb</SCRIPT>no</div>", "no", None),
        ("<x><message>no</message><code>5</code></x>", "no", "5"),
        *((f'{{"{name}": "no", ', "no", None) for name in ("message", "ERROR", "errors", "error_msg", "statusMessage")),
        *((f"{{'{name}': 'no', ", "no", None) for name in ("err", "err_msg", "exception", "reason", "title")),
        *((f'{begin}{{"error": {{"message": "no", "prompt": "a', "no", None) for begin in ("[", "[\n  ")),
        ("[12:00] no", "[12:00] no", None),
        ('{"errors": [{"message": "no", "code": 1}, {"message": "not", "code": 2}]}', "no; not", None),
        ('{"model": ["no"], "n": [], "status": 400, "requestId": 5}', "model: no", None),
        ('{"err": "no"}', "no", None),
        *((f'data: {begin}{{"error": {{"message": "no", "prompt": "a', "no", None) for begin in ("", "[")),
        *((f'{field}: 1\ndata: {{"message": "no"}}\n\n', "no", None) for field in ("id", "retry", "event", "")),
        ('{"details": {"code": 1}, "title": "no", "code": 2}', "no", "2"),
        ('{"message": "say \\"no\\"\\nor yes", ', 'say "no" or yes', None),
    ],
)
def test_message_is_found_in_lists_markup_and_malformed_json(body: str, message: str, code: str | None) -> None:
    error = parse_error(body.encode())
    assert (error.message, error.code) == (message, code)


def test_message_is_truncated_and_sanitized_and_body_is_kept() -> None:
    text = "red \x1b[31m\x07 line\r\nnext " + "x" * 5000
    error = status_error(ReplyHead(500), b'{"message": "red \\u001b[31m\\u0007 line\\r\\nnext ' + b"x" * 5000 + b'"}')
    assert error.message.startswith("red [31m line\nnext xxx")
    assert len(error.message) == 2000
    assert len(error.body) > 5000
    embedded = error_of_payload({"error": {"message": text}}, b"", ReplyHead(200))
    assert embedded.message == error.message


@pytest.mark.parametrize("charset", ["idna", "punycode", "unicode_escape", "rot13", "zlib", "undefined", "?"])
def test_non_text_charset_falls_back_to_utf8(charset: str) -> None:
    error = parse_error(b"na\xc3\xafve \xff", f"text/plain; charset={charset}")
    assert (error.message, error.code, error.type, error.request_id) == ("na\xefve \ufffd", None, None, None)


@pytest.mark.parametrize(
    ("text", "charset", "named"),
    [
        ("na\xefve", "utf-8", "ISO-8859-1"),
        ("na\xefve", "utf-8-sig", "utf-8"),
        ("na\xefve", "latin-1", "'ISO-8859-1'"),
        ("na\xefve", "utf-16", "utf-16"),
        ("日本", "shift_jis", "Shift_JIS"),
        ("日本", "gbk", "gbk"),
        ("Київ", "cp1251", "windows-1251"),
    ],
)
def test_error_that_is_not_utf8_is_read_in_the_charset_of_its_content_type(text: str, charset: str, named: str) -> None:
    assert parse_error(text.encode(charset), f"text/plain; CHARSET={named}").body == text


@pytest.mark.parametrize("charset", ["utf-8", "utf-16", "shift_jis", "gbk"])
def test_truncated_last_character_keeps_the_message(charset: str) -> None:
    body = "Zu viel verlangt 日本".encode(charset)[:-1]
    assert parse_error(body, f"text/plain; charset={charset}").message.startswith("Zu viel verlangt 日")


@pytest.mark.parametrize(
    ("kind", "body", "content_type"),
    [("field", '{{"{}": 1}}', "application/json"), ("charset", "na\xefve", "text/plain; charset={}")],
)
def test_names_that_a_server_makes_up_are_not_kept(kind: str, body: str, content_type: str) -> None:
    def parse(count: int) -> None:
        for number in range(count):
            name = f"{kind}{number}".ljust(900, "x")
            parse_error(body.format(name).encode("latin-1"), content_type.format(name))

    parse(3)
    tracemalloc.start()
    try:
        parse(1000)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000


TOKENS: Final = ("<", "<p", "<p>", "<!--", "<svg>", "<message ", "<![CDATA[", "&#", "{", "[", "{}", "[]")
MORE_TOKENS: Final = ('{"a":', '"message":"\\', "data:\n", "data: x\n\n", "\r", "\0", "error", '{"errors":[', "<meta ")


@pytest.mark.parametrize("content_type", ["", "text/html", "application/json", "text/event-stream"])
@pytest.mark.parametrize("token", [*TOKENS, *MORE_TOKENS])
def test_hostile_body_is_parsed_in_bounded_time(token: str, content_type: str) -> None:
    body = (token * 65536)[:65536].encode()
    start = time.process_time()
    assert parse_error(body, content_type).message
    assert time.process_time() - start < 5


@given(
    st.binary() | st.text().map(str.encode),
    st.sampled_from(["", "text/html", "application/json; charset=gbk", "text/event-stream", "x; charset=utf-16"]),
)
@deterministic
def test_any_bytes_give_a_message_of_bounded_length(body: bytes, content_type: str) -> None:
    message = parse_error(body, content_type).message
    assert message
    assert len(message) <= 2000
