"""Chunked framing: data of whole chunks bypasses aiohttp's parser with the same result."""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import http_parser
from aiohttp.client_proto import ResponseHandler
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from strategies import cut, cuttings, deterministic

from friendli_async import FriendliError
from friendli_async._core.net import dialing
from friendli_async._core.net.dialing import PooledProtocol
from friendli_async._core.net.exchange import AiohttpExchange
from friendli_async._core.net.framing import CAN_BYPASS, can_bypass, whole_chunks

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
needs_bypass = pytest.mark.skipif(not CAN_BYPASS, reason="aiohttp's parser does not expose its state")


def encode_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- recognizing whole chunks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        (b"5\r\nhello\r\n", b"hello"),
        (b"5\r\nhello\r\n6\r\n world\r\n", b"hello world"),
        (b"0005\r\nhello\r\n", b"hello"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n", b"01234567890123456789"),
        (b"4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    ],
)
def test_whole_chunks_are_decoded(data: bytes, payload: bytes) -> None:
    assert whole_chunks(data) == payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"5\r\nhell",
        b"5\r\nhello",
        b"5\r\nhello\r",
        b"5\r\nhello\n\n",
        b"5\r\nhello\r\n5",
        b"5\r\nhello\r\n5\r\nhell",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"5;name=value\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"1_0\r\n0123456789abcdef\r\n",
        b" 5\r\nhello\r\n",
        b"g\r\nhello\r\n",
        b"\r\nhello\r\n",
        "\u0665\r\nhello\r\n".encode(),
        b"000000005\r\nhello\r\n",
        b"5\r\nhello\r\nHTTP/1.1 200 OK\r\n",
    ],
)
def test_other_data_is_left_to_the_parser(data: bytes) -> None:
    assert whole_chunks(data) is None


# --- with aiohttp's parser -------------------------------------------------------------------------------------------


class FakeTransport:
    """A transport that writes nothing and records its state."""

    def __init__(self) -> None:
        self.paused = False
        self.closed = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed = True

    abort = close


@dataclass
class Outcome:
    """What was read of a response, and the state of its connection."""

    received: list[bytes] = field(default_factory=list[bytes])
    """The data of each read."""
    error: str | None = None
    ended: bool = False
    closed: bool = False
    parsed: int = 0
    """Bytes of the body that went through aiohttp's parser."""

    @property
    def body(self) -> bytes:
        return b"".join(self.received)


class ResponseReader:
    """A pooled connection, the response on it and the reader of its body, without a running loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: int = 2**18) -> None:
        self.transport = FakeTransport()
        self.protocol = PooledProtocol(loop, set())
        transport: Any = self.transport
        self.protocol.connection_made(transport)
        self.protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=buffer)
        self.outcome = Outcome()
        self.protocol.data_received(HEAD)
        message, content = self.protocol._buffer.popleft()[0]  # what aiohttp awaits
        connection = SimpleNamespace(protocol=self.protocol, transport=self.transport)
        content.on_eof(self._release)
        response: Any = SimpleNamespace(
            status=message.code,
            headers=message.headers,
            content=content,
            connection=connection,
            close=self.transport.close,
            release=self._release,
        )
        pool: Any = SimpleNamespace(
            loop=loop,
            exchanges=set(),
            finishing=deque(),
            slots=SimpleNamespace(release=lambda: None),
            exchange_ended=lambda: None,
        )
        self.content = content
        self.exchange = AiohttpExchange(pool, response)
        self.waiter: Any = None

    def _release(self) -> None:
        """Marks the connection idle, as aiohttp does at the end of the body."""
        self.protocol.idle = True

    def feed(self, data: bytes) -> None:
        if self.transport.closed:
            return
        if self.transport.paused:
            self.read()
        self.protocol.data_received(data)

    def disconnect(self) -> None:
        self.transport.closed = True
        self.protocol.connection_lost(None)

    def read(self) -> None:
        """Reads the available data and starts waiting for more."""
        data: list[bytes] = []
        outcome = self.outcome
        while not outcome.ended and outcome.error is None:
            try:
                taken = self.exchange.take()
            except FriendliError as error:
                outcome.error = f"{type(error).__name__}: {error}"
                break
            if taken is None:
                self.waiter = self.exchange.wait_readable()
                break
            outcome.ended = not taken
            data.append(taken)
        outcome.received.append(b"".join(data))
        outcome.parsed = self.content.total_bytes


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


SIZES = st.sampled_from([b"%x", b"%X", b"00%x", b"%x;a=b", b"%x ", b'%x;a="\n"', b"0x%x", b"+%x", b"%x;\n"])
DATA = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=0, max_size=20).map(lambda data: data + b"\n"),
    st.sampled_from([b"\r\n", b"\n\r\n", b"5\r\nhello\r\n", b"data: x\n\n", b"0\r\n\r\n"]),
)
LINE_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"", b"\n\r\n"])
VALID_CHUNKS = DATA.map(encode_chunk)


@st.composite
def malformed_chunks(draw: st.DrawFn) -> bytes:
    data = draw(DATA)
    return draw(SIZES) % len(data) + draw(LINE_ENDS) + data + draw(LINE_ENDS)


# Each contains a segment that looks like a whole chunk but is part of another chunk or of its header.
MISLEADING_SEGMENTS: list[list[bytes]] = [
    [b"1", encode_chunk(b"hello"), b"behind hello\r\n\r\n"],
    [b"2\r\na\n\r\n1", encode_chunk(b"hello"), b"behind hello\r\n\r\n"],
    [b"14\r\nxx\n\r\n", encode_chunk(b"hello"), b"12345\r\n"],
    [b"5;a=\r\n", encode_chunk(b"a"), b"\r\n"],
    [b'1;a="\n\r\n', encode_chunk(b"hello")],
    [b"2\r\na\nzz\n\r\n", encode_chunk(b"hello")],
    [b"1\n\r\n", encode_chunk(b"hello")],
    [b"0\r\nX:\n\r\n", encode_chunk(b"hello")],
    [b"0\r\nX: y\r\n", encode_chunk(b"hello")],
]
TAILS = st.sampled_from(
    [
        b"",
        LAST,
        LAST,
        b"0\r\nX: y\r\n\r\n",
        b"0\r\nX: y\n\r\n",
        b"0\n\r\n",
        b"0;a=b\r\n\r\n",
        b"00\r\n\r\n",
        b"zz\n\r\n",
        LAST + b"stray\n\r\n",
        LAST + encode_chunk(b"stray\n"),
        LAST + HEAD + encode_chunk(b"unasked\n") + LAST,
    ]
)


@st.composite
def split_bodies(draw: st.DrawFn, chunks: st.SearchStrategy[bytes]) -> list[bytes]:
    """A body as received segments, split mostly between chunks but also elsewhere."""
    whole = [*draw(st.lists(chunks, min_size=1, max_size=8)), draw(TAILS)]
    body = b"".join(whole)
    between = [position for position in accumulate(map(len, whole)) if draw(st.integers(0, 3))]
    inside = draw(st.just([]) | cuttings(len(body), 3))
    segments = [segment for segment in cut(body, sorted([*between, *inside])) if segment]
    position = draw(st.integers(0, len(segments)))
    return [*segments[:position], *draw(st.just([]) | st.sampled_from(MISLEADING_SEGMENTS)), *segments[position:]]


def run_reader(
    loop: asyncio.AbstractEventLoop, segments: list[bytes], read_after: list[bool], buffer: int, *, bypass: bool
) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialing, "CAN_BYPASS", bypass)
        reader = ResponseReader(loop, buffer)
        reader.read()
        for number, segment in enumerate(segments):
            reader.feed(segment)
            if read_after[number % len(read_after)]:
                reader.read()
        reader.read()
        reader.read()
        reader.outcome.closed = reader.transport.closed or reader.protocol.should_close
        if not reader.outcome.ended:
            reader.disconnect()
            reader.read()
    return reader.outcome


@needs_bypass
@hypothesis_settings(deterministic, max_examples=600)
@given(
    segments=split_bodies(st.one_of(VALID_CHUNKS, VALID_CHUNKS, VALID_CHUNKS, malformed_chunks())),
    read_after=st.lists(st.booleans(), min_size=1, max_size=5).map(lambda read_after: [*read_after, True]),
    buffer=st.sampled_from([2**18, 64, 8]),
)
def test_results_with_and_without_the_parser_are_equal(
    loop: asyncio.AbstractEventLoop, segments: list[bytes], read_after: list[bool], buffer: int
) -> None:
    plain = run_reader(loop, segments, read_after, buffer, bypass=False)
    bypassed = run_reader(loop, segments, read_after, buffer, bypass=True)
    assert plain.parsed >= len(plain.body)
    assert (bypassed.body, bypassed.ended, bypassed.closed) == (plain.body, plain.ended, plain.closed)
    assert bypassed.error == plain.error


LINES = st.binary(max_size=20).map(lambda data: data + b"\n")


@needs_bypass
@hypothesis_settings(deterministic, max_examples=200)
@given(
    lines=st.lists(LINES, min_size=2, max_size=60), per_segment=st.integers(1, 30), buffer=st.sampled_from([2**18, 8])
)
def test_body_is_complete_after_any_pause(
    loop: asyncio.AbstractEventLoop, lines: list[bytes], per_segment: int, buffer: int
) -> None:
    chunks = [encode_chunk(line) for line in lines]
    segments = [b"".join(chunks[start : start + per_segment]) for start in range(0, len(chunks), per_segment)]
    for bypass in (False, True):
        outcome = run_reader(loop, [*segments, LAST], [True], buffer, bypass=bypass)
        assert (outcome.body, outcome.ended, outcome.closed) == (b"".join(lines), True, False)


@needs_bypass
def test_parser_is_bypassed_once_it_is_between_chunks(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    for line in (b"one\n", b"two\n", b"three\n"):
        reader.read()
        reader.feed(encode_chunk(line))
    reader.read()
    assert (reader.outcome.body, reader.outcome.parsed) == (b"one\ntwo\nthree\n", len(b"one\n"))


@needs_bypass
def test_unread_data_applies_backpressure(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop, buffer=1000)
    reader.read()
    fed = 0
    while not reader.transport.paused and fed < 100:
        reader.protocol.data_received(encode_chunk(b"x" * 99 + b"\n"))
        fed += 1
    assert reader.transport.paused
    assert fed <= 23  # one bypassed segment, and twice aiohttp's buffer
    reader.read()
    assert (reader.transport.paused, len(reader.outcome.body)) == (False, 100 * fed)


@needs_bypass  # aiohttp's pure-Python parser delays data received in a pause, with or without the bypass
@pytest.mark.parametrize("bypass", [False, CAN_BYPASS])
def test_pause_at_the_end_of_a_segment_delays_no_data(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, bypass: bool
) -> None:
    monkeypatch.setattr(dialing, "CAN_BYPASS", bypass)
    reader = ResponseReader(loop, buffer=8)
    # The number of chunks pauses reading, at the last one.
    reader.protocol.data_received(b"".join([encode_chunk(b"x\n")] * 5))
    assert reader.transport.paused
    for _ in range(3):
        reader.read()
        reader.feed(encode_chunk(b"y\n") + encode_chunk(b"z\n"))
    reader.read()
    assert reader.outcome.body == b"x\n" * 5 + b"y\nz\n" * 3


@pytest.mark.parametrize("ended", [LAST, b""], ids=["whole", "cut"])
def test_connection_that_ends_in_a_pause_loses_no_data(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, ended: bytes
) -> None:
    reader = ResponseReader(loop, buffer=8)
    reader.read()
    reader.protocol.data_received(b"".join([encode_chunk(b"x\n")] * 50) + ended)  # already decrypted by TLS
    parse = ResponseHandler.data_received
    parsed: list[bytes] = []

    def parse_and_note(protocol: ResponseHandler, data: bytes) -> None:
        parsed.append(data)
        parse(protocol, data)

    monkeypatch.setattr(ResponseHandler, "data_received", parse_and_note)
    reader.disconnect()
    assert parsed == [b""]  # a pause at each chunk would copy the rest each time
    reader.read()
    assert (reader.outcome.body, reader.outcome.error is None) == (b"x\n" * 50, bool(ended))


@needs_bypass
def test_no_data_is_read_after_a_framing_error(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    reader.read()
    reader.feed(encode_chunk(b"one\n") + b"zz\n\r\n")
    reader.read()
    reader.protocol.data_received(encode_chunk(b"two\n"))  # already decrypted by TLS
    reader.disconnect()
    reader.read()
    assert reader.outcome.body == b"one\n"
    assert reader.outcome.error is not None


def test_disconnect_before_the_first_read_does_not_block(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    reader.feed(encode_chunk(b"one\n") + b"2\r\nabcdef\r\n")  # garbage that aiohttp does not report to the reader
    reader.disconnect()  # before the first read
    reader.read()
    assert reader.outcome.body.startswith(b"one\n")
    assert reader.outcome.error is not None
    assert "APIConnectionError" in reader.outcome.error


def test_read_after_abort_does_not_block(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    reader.read()
    reader.feed(encode_chunk(b"one\n"))
    reader.read()
    reader.exchange.abort()
    reader.disconnect()
    reader.read()
    assert (reader.outcome.body, reader.outcome.ended) == (b"one\n", False)
    assert reader.outcome.error is not None
    assert "APIConnectionError" in reader.outcome.error


@needs_bypass
def test_cancelled_read_loses_no_data(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    reader.feed(encode_chunk(b"one\n"))
    reader.read()
    reader.waiter.cancel()
    reader.feed(encode_chunk(b"two\n"))
    reader.feed(encode_chunk(b"three\n"))
    reader.read()
    assert reader.outcome.body == b"one\ntwo\nthree\n"


@needs_bypass
def test_bypassed_data_is_read_before_the_disconnect_error(loop: asyncio.AbstractEventLoop) -> None:
    reader = ResponseReader(loop)
    reader.feed(encode_chunk(b"one\n"))
    reader.read()
    reader.feed(encode_chunk(b"two\n"))
    reader.disconnect()
    reader.read()
    assert reader.outcome.body == b"one\ntwo\n"
    assert reader.outcome.error is not None


# --- without the bypass ----------------------------------------------------------------------------------------------


class _Reader:
    __slots__ = ("_http_chunk_splits",)


@pytest.mark.parametrize(
    ("reader", "parser", "expected"),
    [
        (_Reader, http_parser.HttpResponseParserPy, False),  # without the C extension
        (object, "C", False),
        (_Reader, "C", True),
    ],
)
def test_bypass_requires_the_c_parser_and_reader_state(reader: type, parser: Any, expected: bool) -> None:
    parsers: Any = SimpleNamespace(HttpResponseParser=parser, HttpResponseParserC="C")
    assert can_bypass(reader, parsers) is expected


def test_bypass_is_off_without_the_c_extension() -> None:
    parsers: Any = SimpleNamespace(HttpResponseParser=http_parser.HttpResponseParserPy)
    assert can_bypass(aiohttp.StreamReader, parsers) is False


def test_all_data_is_parsed_without_the_bypass(loop: asyncio.AbstractEventLoop) -> None:
    segments = [encode_chunk(b"one\n"), encode_chunk(b"two\n"), LAST]
    outcome = run_reader(loop, segments, [True], 2**18, bypass=False)
    assert (outcome.body, outcome.parsed, outcome.ended, outcome.closed) == (b"one\ntwo\n", 8, True, False)
