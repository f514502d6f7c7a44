"""SSE decoding, checked against https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Iterable
from itertools import combinations
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cut, cuttings, deterministic, event_streams
from support.memory import assert_peak_memory_below

from friendli_async import ChatChunk, ResponseDecodeError, StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async._core.events.sse import SSEDecoder
from friendli_async._json import encode_json
from friendli_async.chat.collector import ChatCollector
from friendli_async.messages import MessageEvent
from friendli_async.messages.collector import MessagesCollector
from friendli_async.replies import ReplyHead

pytestmark = pytest.mark.compatibility

Event = tuple[str, str | None]
"""Data and name."""

BOM = b"\xef\xbb\xbf"

# --- reference implementation ----------------------------------------------------------------------------------------


class Reference:
    """Sections 9.2.5 and 9.2.6, literally, one decoded character at a time; shares no code with the decoder."""

    def __init__(self, stream: bytes) -> None:
        self.events: list[Event] = []
        self._data = ""
        self._type = ""
        text = stream.decode("utf-8", "replace")
        if text[:1] == "\ufeff":
            text = text[1:]
        line = ""
        position = 0
        while position < len(text):
            character = text[position]
            position += 1
            if character == "\r" and text[position : position + 1] == "\n":
                position += 1
            if character in "\r\n":
                self._line(line)
                line = ""
            else:
                line += character
        # An unfinished line is discarded.

    def _line(self, line: str) -> None:
        if line == "":
            self._dispatch()
        elif line[0] == ":":
            pass
        elif ":" in line:
            name = line[: line.index(":")]
            value = line[line.index(":") + 1 :]
            self._field(name, value[1:] if value[:1] == " " else value)
        else:
            self._field(line, "")

    def _field(self, name: str, value: str) -> None:
        if name == "event":
            self._type = value
        elif name == "data" and self._data != "[DONE]\n":  # which ends the stream, whatever follows it
            self._data += value + "\n"

    def _dispatch(self) -> None:
        if self._data != "":
            self.events.append((self._data[:-1], self._type or None))
        self._data = self._type = ""


def decode(chunks: Iterable[bytes], decoder: SSEDecoder | None = None) -> list[Event]:
    decoder = decoder or SSEDecoder()
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    return [(event.data.decode("utf-8", "replace"), event.event) for event in events]


def decode_with_fast_paths(chunks: Iterable[bytes]) -> list[Event]:
    """Decodes as the reader does: a chunk of one event, or of plain events only, bypasses `feed`."""
    decoder = SSEDecoder(redundant=frozenset({b"kind", b"e"}))
    events: list[Event] = []
    for chunk in chunks:
        if (payload := decoder.single(chunk)) is not None:
            plain, payloads = chunk, [payload]
        elif (found := decoder.plain(chunk)) is not None:
            plain, payloads = found
        else:
            events += decode([chunk], decoder)
            continue
        decoded = decode([plain])
        assert [data for data, _ in decoded] == [payload.decode("utf-8", "replace") for payload in payloads]
        events += decoded
    return events


def split_into_bytes(stream: bytes) -> list[bytes]:
    return [stream[position : position + 1] for position in range(len(stream))]


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.data())
@deterministic
def test_chunked_streams_match_the_reference(data: st.DataObject) -> None:
    stream = data.draw(event_streams())
    chunks = cut(stream, data.draw(cuttings(len(stream))))
    decoder = SSEDecoder()
    expected = Reference(stream)
    assert decode(chunks, decoder) == expected.events
    assert decoder.error is None


@given(event_streams())
@deterministic
def test_streams_fed_byte_by_byte_match_the_reference(stream: bytes) -> None:
    assert decode(split_into_bytes(stream)) == Reference(stream).events


@given(st.binary(max_size=60))
@deterministic
def test_arbitrary_bytes_match_the_reference(stream: bytes) -> None:
    assert decode([stream]) == decode(split_into_bytes(stream)) == Reference(stream).events


@given(st.text(alphabet=st.sampled_from("data: x\r\n"), max_size=30))
@deterministic
def test_mixed_line_endings_match_the_reference(text: str) -> None:
    stream = b"data: a" + text.encode()
    assert decode([stream]) == decode(split_into_bytes(stream)) == Reference(stream).events


COMMON_CHUNKS = st.sampled_from(
    [
        *(b"data: a\n\n", b"data: b\n\n", b"data: long" * 9 + b"\n\n", b"data: c\n\ndata: d\n\n"),
        *(b"data:e\n\n", b"data: f\r\n\r\n", b"data: g\ndata: h\n\n", b"data: i\n", b"data: \n\n", b"\n"),
        *(b": ping\n\n", b"event: e\ndata: j\n\n", b"data: k\r\n\n", b"id: 7\n", b"data: l", b"\n\n\n"),
        *(
            b"event: kind\ndata: m\n\n",
            b"event: kind\ndata: n\n\nevent: e\ndata: o\n\n",
            b"event: kind\n",
            b"event: ki",
        ),
        *(b"event: kind\ndata: p", b"event: other\ndata: q\n\n", b"event:kind\ndata: r\n\n", b"event: kind\n\n"),
    ]
)


@given(st.lists(COMMON_CHUNKS, max_size=12), st.data())
@deterministic
def test_fast_paths_match_the_reference(chunks: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(chunks)
    expected = Reference(stream).events
    assert decode_with_fast_paths(chunks) == expected
    assert decode_with_fast_paths(cut(stream, data.draw(cuttings(len(stream))))) == expected


def test_single_accepts_only_a_chunk_that_is_exactly_one_event() -> None:
    decoder = SSEDecoder(limit=20)
    assert decoder.single(b"data: a\n\n") is None, "there may still be a byte order mark"
    assert decoder.feed(b"data: a\n\n")[0].data == b"a"
    assert decoder.single(b"data: b\n\n") == b"b"
    for other in (
        b"",
        b"data: b\n",
        b"data: b\n\n\n",
        b"data: b\r\n\n",
        b"data:b\n\n",
        b"data: " + b"b" * 20 + b"\n\n",
    ):
        assert decoder.single(other) is None
    assert decoder.feed(b"data: c\nid: 1\n\n")[0].data == b"c"
    assert decoder.feed(b"data: d") == []
    assert decoder.single(b"data: e\n\n") is None, "the chunk continues an unfinished line"


@pytest.mark.parametrize("before", [b"data: a\r\r", b"data: a\r\n\r", b""])
def test_fast_paths_are_not_taken_before_the_first_line_or_within_a_line_end(before: bytes) -> None:
    decoder = SSEDecoder()
    decoder.feed(before)
    for event in (b"data: b\n\n", b"data: b\n\ndata: c"):
        assert decoder.single(event) is None
    if before:
        assert decoder.plain(b"data: b\n\ndata: c") is None


def test_plain_accepts_redundant_names_unless_split_before_a_blank_line() -> None:
    stream = b"event: kind\ndata: a\n\nevent: kind\ndata: b\n\nevent: e\ndata: c\n\n"
    assert SSEDecoder().plain(stream) is None
    refused: set[int] = set()
    for position in range(1, len(stream)):
        decoder = SSEDecoder(redundant=frozenset({b"kind", b"e"}))
        payloads: list[bytes] = []
        for chunk in cut(stream, [position]):
            if (plain := decoder.plain(chunk)) is not None:
                payloads += plain[1]
            elif events := decoder.feed(chunk):
                payloads += [event.data for event in events]
                refused.add(position)
        assert payloads == [b"a", b"b", b"c"]
    assert refused == {match.end() for match in re.finditer(rb"data: .\n", stream)}


def test_single_accepts_only_redundant_names() -> None:
    decoder = SSEDecoder(redundant=frozenset({b"kind"}))
    assert decoder.feed(b"data: a\n\n")[0].data == b"a"
    assert decoder.single(b"event: kind\ndata: d\n\n") == b"d"
    for other in (b"event: other\ndata: d\n\n", b"event: kind\n\n", b"event: kind\ndata: d\ndata: e\n\n"):
        assert decoder.single(other) is None


TRICKY = BOM + "data: é漢\r\ndata:😀\r\n\r\nid: 7\revent: e\rdata\r\r: c\n\n\ndata: \u2028\r\n\n".encode()


def test_splitting_at_any_two_positions_gives_the_same_events() -> None:
    expected = Reference(TRICKY).events
    assert expected == [("é漢\n😀", None), ("", "e"), ("\u2028", None)]
    for positions in combinations(range(len(TRICKY) + 1), 2):
        assert decode(cut(TRICKY, positions)) == expected, positions


@given(st.data())
@deterministic
def test_event_limit_does_not_depend_on_chunk_boundaries(data: st.DataObject) -> None:
    stream = data.draw(event_streams())
    limit = data.draw(st.integers(1, 24))
    whole, split = SSEDecoder(limit), SSEDecoder(limit)
    expected = decode([stream], whole)
    assert decode(cut(stream, data.draw(cuttings(len(stream)))), split) == expected
    assert (split.error is None) == (whole.error is None)


@pytest.mark.parametrize("limit", [1, 5, 8])
@pytest.mark.parametrize("stream", [BOM + b"\ndata:\n", BOM + b"data:\n\n"], ids=["a line", "before a line"])
def test_byte_order_mark_is_no_part_of_an_event(stream: bytes, limit: int) -> None:
    decoders = [SSEDecoder(limit) for _ in range(len(stream))]
    for position, decoder in enumerate(decoders):
        decode(cut(stream, [position]), decoder)
    assert {decoder.error is None for decoder in decoders} == {limit >= 5}


# --- rules of the specification --------------------------------------------------------------------------------------

RULES: dict[str, tuple[bytes, list[Event]]] = {
    "first example of the specification": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("YHOO\n+2\n10", None)]),
    "second example of the specification": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [("first event", None), ("second event", None), (" third event", None)],
    ),
    "third example of the specification": (b"data\n\ndata\ndata\n\ndata:\n", [("", None), ("\n", None)]),
    "fourth example of the specification": (b"data:test\n\ndata: test\n\n", [("test", None), ("test", None)]),
    "CR": (b"data: a\r\rdata: b\r\r", [("a", None), ("b", None)]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("a", None), ("b", None)]),
    "LF then CR": (b"data: a\n\r", [("a", None)]),
    "CR then CRLF": (b"data: a\r\r\n", [("a", None)]),
    "CRLF is one line ending": (b"data: a\r\ndata: b\r\n\n", [("a\nb", None)]),
    "blank lines in between": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [("a", None), ("b", None)]),
    "a BOM": (BOM + b"data: a\n\n", [("a", None)]),
    "only one BOM": (BOM + BOM + b"data: a\n\ndata: b\n\n", [("b", None)]),
    "a BOM in the middle belongs to the field": (b"data: a\n\n" + BOM + b"data: b\n\n", [("a", None)]),
    "a truncated BOM is not a BOM": (b"\xef\xbbdata: a\n\ndata: b\n\n", [("b", None)]),
    "comments": (b":\n: ping\n:data: x\ndata: a\n: pong\ndata: b\n\n:\n\n", [("a\nb", None)]),
    "one space after the colon is stripped": (b"data:  a\n\ndata:\ta\n\n", [(" a", None), ("\ta", None)]),
    "a second colon is text": (b"data: a: b\ndata::c\n\n", [("a: b\n:c", None)]),
    "unknown fields": (b"foo: 1\ndata: a\nbar\n data: no\n\n", [("a", None)]),
    "field names are case-sensitive": (b"Data: a\nDATA: b\n\n", []),
    "an event without data is not dispatched": (b"event: e\n\nid: 1\n\ndata: a\n\n", [("a", None)]),
    "an event name applies to one event": (b"event: e\ndata: a\n\ndata: b\n\n", [("a", "e"), ("b", None)]),
    "the last event name wins": (b"event: e\nevent: f\ndata: a\n\n", [("a", "f")]),
    "an empty event name is ignored": (b"event: e\nevent\ndata: a\n\n", [("a", None)]),
    "an event name may follow the data": (b"data: a\nevent: e\n\n", [("a", "e")]),
    "an unfinished event is discarded at the end": (b"data: a\n\ndata: b\n", [("a", None)]),
    "U+2028, U+2029, U+0085, VT and FF are text": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(),
        [("a\u2028b\u2029c\u0085d\x0be\x0cf", None)],
    ),
    "NUL is text": (b"data: a\0b\n\n", [("a\0b", None)]),
    "invalid UTF-8": (b"data: \xff\nevent: \xfe\n\n", [("\ufffd", "\ufffd")]),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_of_the_specification(rule: str) -> None:
    stream, expected = RULES[rule]
    assert decode([stream]) == expected
    assert decode(split_into_bytes(stream)) == expected
    assert Reference(stream).events == expected


def test_event_is_dispatched_at_the_first_byte_of_its_blank_line() -> None:
    decoder = SSEDecoder()
    assert [event.data for event in decoder.feed(b"data: a\r\n\r")] == [b"a"]
    assert decoder.feed(b"\n") == []
    assert [event.data for event in decoder.feed(b"data: b\n\n")] == [b"b"]


@pytest.mark.parametrize(
    "value", [b": 1500", b":007", b": 1.5", b": -1", b"", b":", ": ٣".encode(), b": x", b": " + b"5" * 40]
)
@pytest.mark.parametrize("name", [b"id", b"retry"])
def test_id_and_retry_fields_are_ignored(name: bytes, value: bytes) -> None:
    decoder = SSEDecoder()
    assert decode([name + value + b"\ndata: x\n" + name + value + b"\n\n"], decoder) == [("x", None)]
    assert (decoder.error, decoder.stray) == (None, b"")


def test_retry_field_with_thousands_of_digits_is_ignored() -> None:
    decoder = SSEDecoder()
    assert [event.data for event in decoder.feed(b"retry: " + b"9" * 10_000 + b"\ndata: a\n\n")] == [b"a"]


def test_empty_chunks_are_ignored() -> None:
    chunks = [chunk for byte in split_into_bytes(TRICKY) for chunk in (b"", byte, b"")]
    assert decode(chunks) == Reference(TRICKY).events


# --- the limit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "limit", "events"),
    [
        (b"data: abcd\n\ndata: efgh\n\n", 10, ["abcd", "efgh"]),
        (b"data: abcd\n: e\ndata: f\n\n", 22, ["abcd\nf"]),
    ],
)
def test_event_of_exactly_the_limit_passes_at_any_split(stream: bytes, limit: int, events: list[str]) -> None:
    for positions in combinations(range(len(stream) + 1), 2):
        decoder = SSEDecoder(limit)
        assert [data for data, _ in decode(cut(stream, positions), decoder)] == events, positions
        assert decoder.error is None


def test_event_one_byte_over_the_limit_fails_at_any_split_after_earlier_events() -> None:
    stream = b"data: abcd\n\ndata: efghi\n\ndata: j\n\n"
    for positions in combinations(range(len(stream) + 1), 2):
        decoder = SSEDecoder(10)
        assert [data for data, _ in decode(cut(stream, positions), decoder)] == ["abcd"], positions
        assert isinstance(decoder.error, ResponseDecodeError)
        assert decoder.feed(b"\n\ndata: k\n\n") == []


@pytest.mark.parametrize("stream", [b": " + b"x" * 100, b"data: x\n" * 20, b"id: " + b"7" * 100, b"x" * 100])
def test_limit_includes_comments_ignored_lines_and_multiple_lines(stream: bytes) -> None:
    for chunks in ([stream], split_into_bytes(stream)):
        decoder = SSEDecoder(99)
        assert decode(chunks, decoder) == []
        assert isinstance(decoder.error, ResponseDecodeError)


def test_nothing_follows_an_event_over_the_limit() -> None:
    event = b"data: a\n\n"
    for before in (b"", event):
        decoder = SSEDecoder(limit=20)
        assert len(decoder.feed(before + b"data: %b\n\n" % (b"x" * 30) + event)) == len(before) // len(event)
        assert (decoder.single(event), decoder.plain(event), decoder.feed(event)) == (None, None, [])


def test_fast_paths_leave_an_event_over_the_limit_to_the_limit() -> None:
    for begun, rest in ((b"", b"data: 123456789\n\n"), (b"data: 1234", b"56789\n\n")):
        decoder = SSEDecoder(limit=14)
        assert len(decoder.feed(b"data: 0\n\n" + begun)) == 1
        assert (decoder.single(rest), decoder.plain(rest)) == (None, None)


def test_limit_error_names_the_setting_and_truncates_its_excerpt() -> None:
    decoder = SSEDecoder(1000)
    decoder.feed(b"data: " + b"secret" * 1000)
    assert decoder.error is not None
    assert "1000" in str(decoder.error)
    assert "Limits.event" in str(decoder.error)
    assert decoder.error.excerpt.startswith("data: secret")
    assert len(decoder.error.excerpt) <= 200


def test_chunk_larger_than_the_limit_may_contain_many_small_events() -> None:
    decoder = SSEDecoder(10)
    assert len(decode([b"data: abcd\n\n" * 1000], decoder)) == 1000
    assert decoder.error is None


def test_default_limit_accepts_8_mib_and_rejects_40_mib() -> None:
    chunk = b"x" * (1 << 20)
    decoder = SSEDecoder()
    decoder.feed(b"data: ")
    for _ in range(8):
        decoder.feed(chunk)
    assert [len(event.data) for event in decoder.feed(b"\n\n")] == [8 << 20]
    decoder.feed(b"data: ")
    for _ in range(40):
        decoder.feed(chunk)
    assert isinstance(decoder.error, ResponseDecodeError)


def test_endless_event_uses_bounded_memory() -> None:
    limit = 256 * 1024
    decoder = SSEDecoder(limit)
    with assert_peak_memory_below(3 * limit):
        for _ in range(1024):
            decoder.feed(bytes(4096).replace(b"\0", b"x"))
    assert isinstance(decoder.error, ResponseDecodeError)


# --- amount of work --------------------------------------------------------------------------------------------------


class CountingBytes(bytes):
    """Bytes that count how many bytes are searched, copied and joined."""

    work = 0

    def _count(self, size: int) -> None:
        CountingBytes.work += size

    def __contains__(self, item: object) -> bool:
        self._count(len(self))
        return super().__contains__(item)  # type: ignore[operator]  # same as bytes

    def __add__(self, other: Any) -> CountingBytes:
        self._count(len(self) + len(other))
        return CountingBytes(super().__add__(other))

    def __radd__(self, other: bytes) -> CountingBytes:
        self._count(len(self) + len(other))
        return CountingBytes(other + bytes(self))


def measure_work(chunks: list[bytes], size: int) -> tuple[int, int]:
    """Returns the number of events, and of bytes processed by methods of bytes objects; a join counts as `size`."""
    events = 0
    CountingBytes.work = 0

    def profile(_frame: FrameType, kind: str, function: Any) -> None:
        if kind == "c_call" and isinstance(owner := getattr(function, "__self__", None), bytes):
            CountingBytes.work += size if function.__name__ == "join" else len(owner)

    decoder = SSEDecoder()
    counting_chunks = [CountingBytes(chunk) for chunk in chunks]
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        for chunk in counting_chunks:
            events += len(decoder.feed(chunk))
    finally:
        sys.setprofile(before)
    return events, CountingBytes.work


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("line", [8 << 20, 200_000])
def test_decoding_8_mib_in_small_chunks_is_linear(line: int, line_end: bytes) -> None:
    size = 8 << 20
    stream = (b"data: " + b"x" * line + line_end) * (size // line) + line_end
    chunks = [stream[position : position + 4096] for position in range(0, len(stream), 4096)]
    events, work = measure_work(chunks, line)
    assert events == 1
    assert work < 12 * size


def test_work_count_detects_quadratic_buffering() -> None:
    def join_repeatedly(chunks: list[bytes]) -> bytes:
        buffer = b""
        for chunk in chunks:
            buffer += chunk
        return buffer

    chunks = [CountingBytes(b"x" * 1000) for _ in range(100)]
    CountingBytes.work = 0
    join_repeatedly(list(chunks))
    assert CountingBytes.work > 20 * 100 * 1000


# --- the [DONE] sentinel, which is not part of the specification -----------------------------------------------------


def read(chunks: Iterable[bytes], *, end: bool = True, limit: int = 1 << 20) -> EventReader[ChatChunk]:
    reader = EventReader[ChatChunk](ChatCollector(), limit, ReplyHead(200))
    for chunk in filter(None, chunks):
        if not reader.has_ended:
            reader.feed(chunk)
    if end and not reader.has_ended:
        reader.feed(b"")
    return reader


CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'

BEFORE = [b"", b": ping\n", b"id: 4711-4711-4711\n", b"\n\n", b"retry: 5\nevent: message\n", BOM]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("sentinel", [b"data: [DONE]", b"data:[DONE]"])
def test_done_ends_the_stream_before_its_blank_line(before: bytes, sentinel: bytes, line_end: bytes) -> None:
    stream = (BOM + CONTENT if before == BOM else CONTENT + before) + sentinel + line_end
    for position in range(len(stream) + 1):
        reader = read(cut(stream, [position]), end=False)
        assert (reader.has_ended, reader.failure, len(reader.ready)) == (True, None, 1), position


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("sentinel", [b"data: [DONE]", b"data:[DONE]"])
def test_done_before_any_content_is_an_interruption(before: bytes, sentinel: bytes, line_end: bytes) -> None:
    stream = before + sentinel + line_end
    for position in range(len(stream) + 1):
        reader = read(cut(stream, [position]), end=False)
        state = (reader.has_ended, type(reader.failure), len(reader.ready))
        assert state == (True, StreamInterruptedError, 0), position


@pytest.mark.parametrize(
    "sentinel", [b"data: [DONE]", b"data:  [DONE]", b"data: [DONE] ", b"data: [DONE]\t\n", b"data:\ndata: [DONE]\n"]
)
def test_unterminated_done_line_at_the_end_of_the_body_ends_the_stream(sentinel: bytes) -> None:
    for chunks in ([CONTENT + sentinel], split_into_bytes(CONTENT + sentinel)):
        reader = read(chunks)
        assert (reader.has_ended, reader.failure, len(reader.ready)) == (True, None, 1)


@pytest.mark.parametrize("sentinel", [b"data: [DONE] ", b"data:  [DONE]", b"data: [DONE]\t", b'data: "[DONE]"'])
def test_padded_or_quoted_done_ends_the_stream_at_its_blank_line(sentinel: bytes) -> None:
    stream = CONTENT + sentinel + b"\n\n"
    for position in range(len(stream) + 1):
        reader = read(cut(stream, [position]), end=False)
        assert (reader.has_ended, reader.failure, len(reader.ready)) == (True, None, 1), position


@pytest.mark.parametrize("before", [b"", CONTENT])
@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"data: [DONE",
        b"data: [DONE]x",
        b"data: [done]",
        b": [DONE]\n",
    ],
)
def test_missing_or_malformed_done_is_an_interruption(before: bytes, stream: bytes) -> None:
    reader = read([before + stream])
    assert reader.has_ended
    assert isinstance(reader.failure, StreamInterruptedError)


@pytest.mark.parametrize(
    "sentinel", [b"data: [DONE]\n", b"data:[DONE]\n\n", b"data: [done]\n\n", b"event: done\ndata\n\n"]
)
@pytest.mark.parametrize(
    "after",
    [
        b"data: x\n",
        b"data: x\n\n",
        b"event: error\ndata: x\n\n",
        b"quota exceeded\n",
        b"quota exceeded\n\n",
        b": comment\n\n" + CONTENT,
        b"data: " + b"x" * 300 + b"\n\n",
    ],
)
def test_what_follows_done_is_ignored_at_any_split(sentinel: bytes, after: bytes) -> None:
    stream = CONTENT + sentinel + after
    for position in range(len(CONTENT), len(stream) + 1):
        reader = read(cut(stream, [position]), limit=200)
        assert (reader.has_ended, reader.failure, len(reader.ready)) == (True, None, 1), position


# --- named events ----------------------------------------------------------------------------------------------------

_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}}
_NAMELESS = dict(list(_DELTA.items())[1:])  # the event's name is its type
_NAMED_EVENTS = st.sampled_from(
    [
        b"event: content_block_delta\ndata: " + encode_json(_DELTA) + b"\n\n",
        b"event: content_block_delta\ndata: " + encode_json(_NAMELESS) + b"\n\n",
        b"event: content_block_stop\ndata: " + encode_json(_DELTA) + b"\n\n",
        b"event: new_kind\ndata: " + encode_json({"type": "new_kind"}) + b"\n\n",
        b"data: " + encode_json(_DELTA) + b"\n\n",
        b"event: ping\ndata: {}\n\n",
    ]
)


@given(st.lists(_NAMED_EVENTS, min_size=1, max_size=8), st.data())
@deterministic
def test_named_events_are_decoded_alike_in_any_reads(events: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(events)
    expected = read_messages([bytes([byte]) for byte in stream])  # too small for the fast paths
    assert read_messages(events) == read_messages([stream]) == expected
    assert read_messages(filter(None, cut(stream, data.draw(cuttings(len(stream)))))) == expected


def read_messages(reads: Iterable[bytes]) -> list[MessageEvent]:
    reader = EventReader(MessagesCollector(), 1 << 20, ReplyHead(200))
    events: list[MessageEvent] = []
    for read in reads:
        reader.feed(read)
        events += reader.ready
        reader.ready.clear()
    assert reader.failure is None
    return events


@pytest.mark.parametrize("last", [b"", b'data: {"type": "message_stop"}\n\n'], ids=["raised", "ignored"])
def test_event_that_cannot_be_decoded_leaves_no_reference_cycle(last: bytes) -> None:
    reader = EventReader(MessagesCollector(), 1 << 20, ReplyHead(200))
    reader.feed(b'data: {"type": "message_start", "message": {"id": "m", "content": []}}\n\n')
    reader.ready.clear()
    reader.feed(last + b"event: content_block_delta\ndata: 5\n\n")
    assert (reader.failure is None, reader.has_ended) == (last != b"", True)
    dropped = weakref.ref(reader)
    del reader
    assert dropped() is None
