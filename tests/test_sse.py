"""Bytes to events, against the standard: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterable
from itertools import combinations
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cut, cuttings, deterministic, event_streams

from friendli_async import ChatChunk, ResponseDecodeError, StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async._core.events.sse import SSEDecoder
from friendli_async.chat import ChatCollector
from friendli_async.replies import Headers

pytestmark = pytest.mark.compatibility

Event = tuple[str, str | None, str]
"""Data, name, last event id."""

BOM = b"\xef\xbb\xbf"

# --- the standard, word for word and slow ----------------------------------------------------------------------------


class Reference:
    """9.2.5 and 9.2.6, on decoded characters, one at a time. Shares nothing with the decoder."""

    def __init__(self, stream: bytes) -> None:
        self.events: list[Event] = []
        self._data = ""
        self._type = ""
        self._last_id = ""
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
        # What is left is discarded.

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
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self._last_id = value

    def _dispatch(self) -> None:
        if self._data != "":
            self.events.append((self._data[:-1], self._type or None, self._last_id))
        self._data = self._type = ""


def decoded(pieces: Iterable[bytes], decoder: SSEDecoder | None = None) -> list[Event]:
    decoder = decoder or SSEDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return [(event.data.decode("utf-8", "replace"), event.event, event.id) for event in events]


def decoded_in_short_ways(pieces: Iterable[bytes]) -> list[tuple[str, str | None]]:
    """As a reader does it: a piece that is one event, or nothing but everyday ones, does not go through `feed`."""
    decoder = SSEDecoder()
    events: list[tuple[bytes, str | None]] = []
    for piece in pieces:
        if (payload := decoder.single(piece)) is not None:
            events.append((payload, None))
        elif (payloads := decoder.plain(piece)) is not None:
            events += [(payload, None) for payload in payloads]
        else:
            events += [(event.data, event.event) for event in decoder.feed(piece)]
    return [(data.decode("utf-8", "replace"), name) for data, name in events]


def one_by_one(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


# --- properties ------------------------------------------------------------------------------------------------------


@given(st.data())
@deterministic
def test_any_stream_in_any_pieces_gives_the_events_of_the_standard(data: st.DataObject) -> None:
    stream = data.draw(event_streams())
    pieces = cut(stream, data.draw(cuttings(len(stream))))
    decoder = SSEDecoder()
    expected = Reference(stream)
    assert decoded(pieces, decoder) == expected.events
    assert decoder.error is None


@given(event_streams())
@deterministic
def test_any_stream_byte_by_byte_gives_the_events_of_the_standard(stream: bytes) -> None:
    assert decoded(one_by_one(stream)) == Reference(stream).events


@given(st.binary(max_size=60))
@deterministic
def test_arbitrary_bytes_give_the_events_of_the_standard(stream: bytes) -> None:
    assert decoded([stream]) == decoded(one_by_one(stream)) == Reference(stream).events


@given(st.text(alphabet=st.sampled_from("data: x\r\n"), max_size=30))
@deterministic
def test_any_mixture_of_line_ends_gives_the_events_of_the_standard(text: str) -> None:
    stream = b"data: a" + text.encode()
    assert decoded([stream]) == decoded(one_by_one(stream)) == Reference(stream).events


EVERYDAY = st.sampled_from(
    [
        *(b"data: a\n\n", b"data: b\n\n", b"data: long" * 9 + b"\n\n", b"data: c\n\ndata: d\n\n"),
        *(b"data:e\n\n", b"data: f\r\n\r\n", b"data: g\ndata: h\n\n", b"data: i\n", b"data: \n\n", b"\n"),
        *(b": ping\n\n", b"event: e\ndata: j\n\n", b"data: k\r\n\n", b"id: 7\n", b"data: l", b"\n\n\n"),
    ]
)


@given(st.lists(EVERYDAY, max_size=12), st.data())
@deterministic
def test_the_short_ways_give_the_events_of_the_standard(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    expected = [(text, name) for text, name, _ in Reference(stream).events]
    assert decoded_in_short_ways(pieces) == expected
    assert decoded_in_short_ways(cut(stream, data.draw(cuttings(len(stream))))) == expected


def test_a_piece_that_is_one_event_is_taken_at_once_and_any_other_is_left() -> None:
    decoder = SSEDecoder(limit=20)
    assert decoder.single(b"data: a\n\n") is None, "there may be a byte order mark yet"
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
    assert decoder.single(b"data: e\n\n") is None, "it goes on with the unfinished line"


NASTY = BOM + "data: é漢\r\ndata:😀\r\n\r\nid: 7\revent: e\rdata\r\r: c\n\n\ndata: \u2028\r\n\n".encode()


def test_a_stream_cut_at_any_two_places_gives_the_same_events() -> None:
    expected = Reference(NASTY).events
    assert expected == [("é漢\n😀", None, ""), ("", "e", "7"), ("\u2028", None, "7")]
    for positions in combinations(range(len(NASTY) + 1), 2):
        assert decoded(cut(NASTY, positions)) == expected, positions


@given(st.data())
@deterministic
def test_whether_an_event_is_too_large_does_not_depend_on_the_pieces(data: st.DataObject) -> None:
    stream = data.draw(event_streams())
    limit = data.draw(st.integers(1, 24))
    whole, split = SSEDecoder(limit), SSEDecoder(limit)
    expected = decoded([stream], whole)
    assert decoded(cut(stream, data.draw(cuttings(len(stream)))), split) == expected
    assert (split.error is None) == (whole.error is None)


# --- the standard's rules, one by one --------------------------------------------------------------------------------

RULES: dict[str, tuple[bytes, list[Event]]] = {
    "the standard's first example": (b"data: YHOO\ndata: +2\ndata: 10\n\n", [("YHOO\n+2\n10", None, "")]),
    "the standard's second example": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
        [("first event", None, "1"), ("second event", None, ""), (" third event", None, "")],
    ),
    "the standard's third example": (b"data\n\ndata\ndata\n\ndata:\n", [("", None, ""), ("\n", None, "")]),
    "the standard's fourth example": (b"data:test\n\ndata: test\n\n", [("test", None, ""), ("test", None, "")]),
    "CR": (b"data: a\r\rdata: b\r\r", [("a", None, ""), ("b", None, "")]),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", [("a", None, ""), ("b", None, "")]),
    "LF then CR": (b"data: a\n\r", [("a", None, "")]),
    "CR then CRLF": (b"data: a\r\r\n", [("a", None, "")]),
    "CRLF is one line end": (b"data: a\r\ndata: b\r\n\n", [("a\nb", None, "")]),
    "blank lines in between": (b"\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [("a", None, ""), ("b", None, "")]),
    "a BOM": (BOM + b"data: a\n\n", [("a", None, "")]),
    "only one BOM": (BOM + BOM + b"data: a\n\ndata: b\n\n", [("b", None, "")]),
    "a BOM in the middle belongs to the field": (b"data: a\n\n" + BOM + b"data: b\n\n", [("a", None, "")]),
    "half a BOM is no BOM": (b"\xef\xbbdata: a\n\ndata: b\n\n", [("b", None, "")]),
    "comments": (b":\n: ping\n:data: x\ndata: a\n: pong\ndata: b\n\n:\n\n", [("a\nb", None, "")]),
    "one space after the colon is dropped": (b"data:  a\n\ndata:\ta\n\n", [(" a", None, ""), ("\ta", None, "")]),
    "a second colon is text": (b"data: a: b\ndata::c\n\n", [("a: b\n:c", None, "")]),
    "unknown fields": (b"foo: 1\ndata: a\nbar\n data: no\n\n", [("a", None, "")]),
    "field names have case": (b"Data: a\nDATA: b\n\n", []),
    "no data is no event": (b"event: e\n\nid: 1\n\ndata: a\n\n", [("a", None, "1")]),
    "a name holds for its event only": (b"event: e\ndata: a\n\ndata: b\n\n", [("a", "e", ""), ("b", None, "")]),
    "the last name counts": (b"event: e\nevent: f\ndata: a\n\n", [("a", "f", "")]),
    "an empty name is no name": (b"event: e\nevent\ndata: a\n\n", [("a", None, "")]),
    "a name after the data": (b"data: a\nevent: e\n\n", [("a", "e", "")]),
    "an id stays in force": (b"id: 1\ndata: a\n\ndata: b\n\n", [("a", None, "1"), ("b", None, "1")]),
    "an empty id takes it away": (b"id: 1\ndata: a\n\nid:\ndata: b\n\n", [("a", None, "1"), ("b", None, "")]),
    "an id with NUL is ignored": (b"id: 1\nid: 2\0\ndata: a\n\n", [("a", None, "1")]),
    "the end discards what is unfinished": (b"data: a\n\ndata: b\n", [("a", None, "")]),
    "U+2028, U+2029, U+0085, VT and FF are text": (
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\n\n".encode(),
        [("a\u2028b\u2029c\u0085d\x0be\x0cf", None, "")],
    ),
    "NUL is text": (b"data: a\0b\n\n", [("a\0b", None, "")]),
    "bytes that are no UTF-8": (b"data: \xff\nevent: \xfe\n\n", [("\ufffd", "\ufffd", "")]),
}


@pytest.mark.parametrize("rule", RULES)
def test_rule_of_the_standard(rule: str) -> None:
    stream, expected = RULES[rule]
    assert decoded([stream]) == expected
    assert decoded(one_by_one(stream)) == expected
    assert Reference(stream).events == expected


def test_an_event_is_there_as_soon_as_its_blank_line_has_begun() -> None:
    decoder = SSEDecoder()
    assert [event.data for event in decoder.feed(b"data: a\r\n\r")] == [b"a"]
    assert decoder.feed(b"\n") == []
    assert [event.data for event in decoder.feed(b"data: b\n\n")] == [b"b"]


@pytest.mark.parametrize(
    "value", [b": 1500", b":007", b": 1.5", b": -1", b"", b":", ": ٣".encode(), b": x", b": " + b"5" * 40]
)
def test_a_reconnection_time_is_passed_over_whatever_it_is(value: bytes) -> None:
    decoder = SSEDecoder()
    assert decoded([b"retry" + value + b"\ndata: x\nretry" + value + b"\n\n"], decoder) == [("x", None, "")]
    assert (decoder.error, decoder.stray) == (None, b"")


def test_a_reconnection_time_of_thousands_of_digits_breaks_nothing() -> None:
    decoder = SSEDecoder()
    assert [event.data for event in decoder.feed(b"retry: " + b"9" * 10_000 + b"\ndata: a\n\n")] == [b"a"]


def test_empty_pieces_change_nothing() -> None:
    pieces = [piece for byte in one_by_one(NASTY) for piece in (b"", byte, b"")]
    assert decoded(pieces) == Reference(NASTY).events


# --- the limit -------------------------------------------------------------------------------------------------------


def test_an_event_of_exactly_the_limit_passes_in_any_two_cuts() -> None:
    stream = b"data: abcd\n\ndata: efgh\n\n"
    for positions in combinations(range(len(stream) + 1), 2):
        decoder = SSEDecoder(10)
        assert [data for data, _, _ in decoded(cut(stream, positions), decoder)] == ["abcd", "efgh"], positions
        assert decoder.error is None


def test_an_event_of_several_lines_of_exactly_the_limit_passes_in_any_two_cuts() -> None:
    stream = b"data: abcd\n: e\ndata: f\n\n"
    for positions in combinations(range(len(stream) + 1), 2):
        decoder = SSEDecoder(len(stream) - 2)
        assert [data for data, _, _ in decoded(cut(stream, positions), decoder)] == ["abcd\nf"], positions
        assert decoder.error is None


def test_an_event_one_byte_larger_than_the_limit_fails_in_any_two_cuts_after_the_good_ones() -> None:
    stream = b"data: abcd\n\ndata: efghi\n\ndata: j\n\n"
    for positions in combinations(range(len(stream) + 1), 2):
        decoder = SSEDecoder(10)
        assert [data for data, _, _ in decoded(cut(stream, positions), decoder)] == ["abcd"], positions
        assert isinstance(decoder.error, ResponseDecodeError)
        assert decoder.feed(b"\n\ndata: k\n\n") == []


@pytest.mark.parametrize("stream", [b": " + b"x" * 100, b"data: x\n" * 20, b"id: " + b"7" * 100, b"x" * 100])
def test_the_limit_counts_comments_lines_without_meaning_and_many_lines(stream: bytes) -> None:
    for pieces in ([stream], one_by_one(stream)):
        decoder = SSEDecoder(99)
        assert decoded(pieces, decoder) == []
        assert isinstance(decoder.error, ResponseDecodeError)


def test_the_error_of_the_limit_names_the_setting_and_its_excerpt_is_bounded() -> None:
    decoder = SSEDecoder(1000)
    decoder.feed(b"data: " + b"secret" * 1000)
    assert decoder.error is not None
    assert "1000" in str(decoder.error)
    assert "Limits.event" in str(decoder.error)
    assert decoder.error.excerpt.startswith("data: secret")
    assert len(decoder.error.excerpt) <= 200


def test_many_events_in_one_piece_that_is_larger_than_the_limit_pass() -> None:
    decoder = SSEDecoder(10)
    assert len(decoded([b"data: abcd\n\n" * 1000], decoder)) == 1000
    assert decoder.error is None


def test_the_default_limit_takes_an_event_of_8_mib_and_refuses_one_of_40_mib() -> None:
    piece = b"x" * (1 << 20)
    decoder = SSEDecoder()
    decoder.feed(b"data: ")
    for _ in range(8):
        decoder.feed(piece)
    assert [len(event.data) for event in decoder.feed(b"\n\n")] == [8 << 20]
    decoder.feed(b"data: ")
    for _ in range(40):
        decoder.feed(piece)
    assert isinstance(decoder.error, ResponseDecodeError)


def test_an_endless_event_holds_no_more_memory_than_a_few_times_the_limit() -> None:
    limit = 256 * 1024
    decoder = SSEDecoder(limit)
    tracemalloc.start()
    try:
        for _ in range(1024):
            decoder.feed(bytes(4096).replace(b"\0", b"x"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(decoder.error, ResponseDecodeError)
    assert peak < 3 * limit


# --- work ------------------------------------------------------------------------------------------------------------


class Counted(bytes):
    """Bytes that count how many of them were searched, copied and joined."""

    work = 0

    def _count(self, size: int) -> None:
        Counted.work += size

    def __contains__(self, item: object) -> bool:
        self._count(len(self))
        return super().__contains__(item)  # type: ignore[operator]  # as bytes does it

    def __add__(self, other: Any) -> Counted:
        self._count(len(self) + len(other))
        return Counted(super().__add__(other))

    def __radd__(self, other: bytes) -> Counted:
        self._count(len(self) + len(other))
        return Counted(other + bytes(self))


def work_of(pieces: list[bytes], size: int) -> tuple[int, int]:
    """Events, and bytes that methods of bytes objects went over; a join counts as if it were of everything."""
    events = 0
    Counted.work = 0

    def called(_frame: FrameType, kind: str, function: Any) -> None:
        if kind == "c_call" and isinstance(owner := getattr(function, "__self__", None), bytes):
            Counted.work += size if function.__name__ == "join" else len(owner)

    decoder = SSEDecoder()
    counted = [Counted(piece) for piece in pieces]
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        for piece in counted:
            events += len(decoder.feed(piece))
    finally:
        sys.setprofile(before)
    return events, Counted.work


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("line", [8 << 20, 200_000])
def test_an_event_of_8_mib_is_linear_work_in_small_pieces(line: int, line_end: bytes) -> None:
    size = 8 << 20
    stream = (b"data: " + b"x" * line + line_end) * (size // line) + line_end
    pieces = [stream[at : at + 4096] for at in range(0, len(stream), 4096)]
    events, work = work_of(pieces, line)
    assert events == 1
    assert work < 12 * size


def test_the_work_count_would_notice_a_decoder_that_starts_over_with_each_piece() -> None:
    def joining(pieces: list[bytes]) -> bytes:
        buffer = b""
        for piece in pieces:
            buffer += piece
        return buffer

    pieces = [Counted(b"x" * 1000) for _ in range(100)]
    Counted.work = 0
    joining(list(pieces))
    assert Counted.work > 20 * 100 * 1000


# --- the sentinel, which is not the standard's ------------------------------------------------------------------------


def read(pieces: Iterable[bytes], *, end: bool = True) -> EventReader[ChatChunk]:
    reader = EventReader[ChatChunk](ChatCollector(), 1 << 20, 200, Headers())
    for piece in filter(None, pieces):
        if not reader.is_last:
            reader.feed(piece)
    if end and not reader.is_last:
        reader.feed(b"")
    return reader


CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'

BEFORE = [b"", b": ping\n", b"id: 4711-4711-4711\n", b"\n\n", b"retry: 5\nevent: message\n", BOM]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("sentinel", [b"data: [DONE]", b"data:[DONE]"])
def test_done_ends_a_stream_without_its_blank_line(before: bytes, sentinel: bytes, line_end: bytes) -> None:
    stream = (BOM + CONTENT if before == BOM else CONTENT + before) + sentinel + line_end
    for at in range(len(stream) + 1):
        reader = read(cut(stream, [at]), end=False)
        assert (reader.is_last, reader.failure, len(reader.ready)) == (True, None, 1), at


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("sentinel", [b"data: [DONE]", b"data:[DONE]"])
def test_done_before_any_content_is_no_good_end(before: bytes, sentinel: bytes, line_end: bytes) -> None:
    stream = before + sentinel + line_end
    for at in range(len(stream) + 1):
        reader = read(cut(stream, [at]), end=False)
        assert (reader.is_last, type(reader.failure), len(reader.ready)) == (True, StreamInterruptedError, 0), at


@pytest.mark.parametrize(
    "sentinel", [b"data: [DONE]", b"data:  [DONE]", b"data: [DONE] ", b"data: [DONE]\t\n", b"data:\ndata: [DONE]\n"]
)
def test_done_ends_a_stream_whose_body_ends_in_the_very_line(sentinel: bytes) -> None:
    for pieces in ([CONTENT + sentinel], one_by_one(CONTENT + sentinel)):
        reader = read(pieces)
        assert (reader.is_last, reader.failure, len(reader.ready)) == (True, None, 1)


@pytest.mark.parametrize("sentinel", [b"data: [DONE] ", b"data:  [DONE]", b"data: [DONE]\t", b'data: "[DONE]"'])
def test_done_with_something_around_it_ends_a_stream_at_its_blank_line(sentinel: bytes) -> None:
    stream = CONTENT + sentinel + b"\n\n"
    for at in range(len(stream) + 1):
        reader = read(cut(stream, [at]), end=False)
        assert (reader.is_last, reader.failure, len(reader.ready)) == (True, None, 1), at


@pytest.mark.parametrize("before", [b"", CONTENT])
@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"data: [DONE",
        b"data: [DONE]x",
        b"data: [done]",
        b": [DONE]\n",
        b"data: [DONE]\ndata: x\n",
    ],
)
def test_what_is_not_quite_done_is_a_stream_that_was_cut(before: bytes, stream: bytes) -> None:
    reader = read([before + stream])
    assert reader.is_last
    assert isinstance(reader.failure, StreamInterruptedError)


def test_what_comes_after_done_is_ignored() -> None:
    reader = read([CONTENT + b"data: [DONE]\n\ndata: not JSON\n\n"])
    assert (reader.failure, len(reader.ready)) == (None, 1)


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b"[]", b": comment", b"ping"])
def test_heartbeats_among_the_events_are_passed_over(data: bytes) -> None:
    beat = b"data: " + data + b"\n\n"
    for pieces in ([beat + CONTENT + beat + CONTENT + beat], one_by_one(beat + CONTENT + beat + CONTENT + beat)):
        reader = read([*pieces, b"data: [DONE]\n\n"])
        assert (reader.failure, len(reader.ready)) == (None, 2)
