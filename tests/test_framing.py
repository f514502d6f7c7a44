"""Chunked framing: reads of whole chunks go past aiohttp's parser, and nobody can tell."""

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
needs_bypass = pytest.mark.skipif(not CAN_BYPASS, reason="aiohttp's parser does not tell where it stands")


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- what is taken for whole chunks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "carries"),
    [
        (b"5\r\nhello\r\n", b"hello"),
        (b"5\r\nhello\r\n6\r\n world\r\n", b"hello world"),
        (b"0005\r\nhello\r\n", b"hello"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n", b"01234567890123456789"),
        (b"4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    ],
)
def test_whole_chunks_give_what_they_carry(read: bytes, carries: bytes) -> None:
    assert whole_chunks(read) == carries


@pytest.mark.parametrize(
    "read",
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
def test_anything_else_is_left_to_the_parser(read: bytes) -> None:
    assert whole_chunks(read) is None


# --- with aiohttp's parser behind it ---------------------------------------------------------------------------------


class Wire:
    """A transport that writes nothing and notes what becomes of it."""

    def __init__(self) -> None:
        self.paused = False
        self.gone = False

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return self.gone

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.gone = True

    abort = close


@dataclass
class Outcome:
    """What a reader has seen of a reply, and what has become of its connection."""

    seen: list[bytes] = field(default_factory=list[bytes])
    """What each look gave, in one piece."""
    error: str | None = None
    ended: bool = False
    closed: bool = False
    parsed: int = 0
    """How many bytes of the body aiohttp's parser has given."""

    @property
    def body(self) -> bytes:
        return b"".join(self.seen)


class Reply:
    """A connection of ours, the reply that comes over it, and who reads that: no loop runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: int = 2**18) -> None:
        self.wire = Wire()
        self.protocol = PooledProtocol(loop, set())
        self.protocol.connection_made(self.wire)
        self.protocol.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=buffer)
        self.outcome = Outcome()
        self.protocol.data_received(HEAD)
        message, content = self.protocol._buffer.popleft()[0]  # type: ignore[attr-defined]  # what aiohttp awaits
        connection = SimpleNamespace(protocol=self.protocol, transport=self.wire)
        content.on_eof(self._given_back)
        response: Any = SimpleNamespace(
            status=message.code,
            headers=message.headers,
            content=content,
            connection=connection,
            close=self.wire.close,
            release=self._given_back,
        )
        home: Any = SimpleNamespace(
            loop=loop,
            exchanges=set(),
            draining=deque(),
            slots=SimpleNamespace(release=lambda: None),
            exchange_ended=lambda: None,
        )
        self.content = content
        self.exchange = AiohttpExchange(home, response)
        self.waiting: Any = None

    def _given_back(self) -> None:
        """As aiohttp does at the end of the body."""
        self.protocol.idle = True

    def feed(self, data: bytes) -> None:
        if self.wire.gone:
            return
        if self.wire.paused:
            self.look()
        self.protocol.data_received(data)

    def hang_up(self) -> None:
        if not self.wire.gone:
            self.wire.gone = True
        self.protocol.connection_lost(None)

    def look(self) -> None:
        """Takes what there is, and waits for more."""
        pieces: list[bytes] = []
        outcome = self.outcome
        while not outcome.ended and outcome.error is None:
            try:
                data = self.exchange.take()
            except FriendliError as error:
                outcome.error = f"{type(error).__name__}: {error}"
                break
            if data is None:
                self.waiting = self.exchange.wait_readable()
                break
            outcome.ended = not data
            pieces.append(data)
        outcome.seen.append(b"".join(pieces))
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
GOOD_CHUNKS = DATA.map(framed)


@st.composite
def odd_chunks(draw: st.DrawFn) -> bytes:
    data = draw(DATA)
    return draw(SIZES) % len(data) + draw(LINE_ENDS) + data + draw(LINE_ENDS)


# Each has a read in it that looks like a whole chunk, and is a part of one, or of its head.
LURES: list[list[bytes]] = [
    [b"1", framed(b"hello"), b"behind hello\r\n\r\n"],
    [b"2\r\na\n\r\n1", framed(b"hello"), b"behind hello\r\n\r\n"],
    [b"14\r\nxx\n\r\n", framed(b"hello"), b"12345\r\n"],
    [b"5;a=\r\n", framed(b"a"), b"\r\n"],
    [b'1;a="\n\r\n', framed(b"hello")],
    [b"2\r\na\nzz\n\r\n", framed(b"hello")],
    [b"1\n\r\n", framed(b"hello")],
    [b"0\r\nX:\n\r\n", framed(b"hello")],
    [b"0\r\nX: y\r\n", framed(b"hello")],
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
        LAST + framed(b"stray\n"),
        LAST + HEAD + framed(b"unasked\n") + LAST,
    ]
)


@st.composite
def replies(draw: st.DrawFn, chunks: st.SearchStrategy[bytes]) -> list[bytes]:
    """A body in the reads that it comes in: cut between chunks for the most part, and anywhere else."""
    whole = [*draw(st.lists(chunks, min_size=1, max_size=8)), draw(TAILS)]
    body = b"".join(whole)
    between = [place for place in accumulate(map(len, whole)) if draw(st.integers(0, 3))]
    elsewhere = draw(st.just([]) | cuttings(len(body), 3))
    reads = [read for read in cut(body, sorted([*between, *elsewhere])) if read]
    place = draw(st.integers(0, len(reads)))
    return [*reads[:place], *draw(st.just([]) | st.sampled_from(LURES)), *reads[place:]]


def read_through(
    loop: asyncio.AbstractEventLoop, reads: list[bytes], looks: list[bool], buffer: int, *, bypass: bool
) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialing, "CAN_BYPASS", bypass)
        reply = Reply(loop, buffer)
        reply.look()
        for number, read in enumerate(reads):
            reply.feed(read)
            if looks[number % len(looks)]:
                reply.look()
        reply.look()
        reply.look()
        reply.outcome.closed = reply.wire.gone or reply.protocol.should_close
        if not reply.outcome.ended:
            reply.hang_up()
            reply.look()
    return reply.outcome


@needs_bypass
@hypothesis_settings(deterministic, max_examples=600)
@given(
    reads=replies(st.one_of(GOOD_CHUNKS, GOOD_CHUNKS, GOOD_CHUNKS, odd_chunks())),
    looks=st.lists(st.booleans(), min_size=1, max_size=5).map(lambda looks: [*looks, True]),
    buffer=st.sampled_from([2**18, 64, 8]),
)
def test_with_and_without_the_parser_the_same_comes(
    loop: asyncio.AbstractEventLoop, reads: list[bytes], looks: list[bool], buffer: int
) -> None:
    plain = read_through(loop, reads, looks, buffer, bypass=False)
    short = read_through(loop, reads, looks, buffer, bypass=True)
    assert plain.parsed >= len(plain.body)
    assert (short.body, short.ended, short.closed) == (plain.body, plain.ended, plain.closed)
    assert short.error == plain.error


LINES = st.binary(max_size=20).map(lambda data: data + b"\n")


@needs_bypass
@hypothesis_settings(deterministic, max_examples=200)
@given(lines=st.lists(LINES, min_size=2, max_size=60), together=st.integers(1, 30), buffer=st.sampled_from([2**18, 8]))
def test_all_of_a_body_comes_whatever_was_paused(
    loop: asyncio.AbstractEventLoop, lines: list[bytes], together: int, buffer: int
) -> None:
    chunks = [framed(line) for line in lines]
    reads = [b"".join(chunks[begin : begin + together]) for begin in range(0, len(chunks), together)]
    for bypass in (False, True):
        outcome = read_through(loop, [*reads, LAST], [True], buffer, bypass=bypass)
        assert (outcome.body, outcome.ended, outcome.closed) == (b"".join(lines), True, False)


@needs_bypass
def test_the_parser_is_passed_once_it_stands_between_chunks(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    for word in (b"one\n", b"two\n", b"three\n"):
        reply.look()
        reply.feed(framed(word))
    reply.look()
    assert (reply.outcome.body, reply.outcome.parsed) == (b"one\ntwo\nthree\n", len(b"one\n"))


@needs_bypass
def test_who_does_not_read_pushes_back(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop, buffer=1000)
    reply.look()
    fed = 0
    while not reply.wire.paused and fed < 100:
        reply.protocol.data_received(framed(b"x" * 99 + b"\n"))
        fed += 1
    assert reply.wire.paused
    assert fed <= 23  # one read past the parser, and twice aiohttp's buffer
    reply.look()
    assert not reply.wire.paused
    assert len(reply.outcome.body) == 100 * fed


@needs_bypass  # aiohttp's parser in Python holds back what came in a pause, also without us
@pytest.mark.parametrize("bypass", [False, CAN_BYPASS])
def test_a_pause_at_the_end_of_a_read_holds_nothing_back(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, bypass: bool
) -> None:
    monkeypatch.setattr(dialing, "CAN_BYPASS", bypass)
    reply = Reply(loop, buffer=8)
    reply.protocol.data_received(b"".join([framed(b"x\n")] * 5))  # paused by the number of chunks, at the last one
    assert reply.wire.paused
    for _ in range(3):
        reply.look()
        reply.feed(framed(b"y\n") + framed(b"z\n"))
    reply.look()
    assert reply.outcome.body == b"x\n" * 5 + b"y\nz\n" * 3


@needs_bypass
def test_nothing_comes_behind_broken_framing(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    reply.look()
    reply.feed(framed(b"one\n") + b"zz\n\r\n")
    reply.look()
    reply.protocol.data_received(framed(b"two\n"))  # what TLS had decrypted already
    reply.hang_up()
    reply.look()
    assert reply.outcome.body == b"one\n"
    assert reply.outcome.error is not None


def test_an_end_that_came_with_the_last_bytes_is_not_waited_for(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    reply.feed(framed(b"one\n") + b"2\r\nabcdef\r\n")  # garbage of which aiohttp does not tell the reader
    reply.hang_up()  # before anybody has looked
    reply.look()
    assert reply.outcome.body.startswith(b"one\n")
    assert reply.outcome.error is not None
    assert "APIConnectionError" in reply.outcome.error


def test_who_reads_after_an_abort_does_not_wait(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    reply.look()
    reply.feed(framed(b"one\n"))
    reply.look()
    reply.exchange.abort()
    reply.hang_up()
    reply.look()
    assert (reply.outcome.body, reply.outcome.ended) == (b"one\n", False)
    assert reply.outcome.error is not None
    assert "APIConnectionError" in reply.outcome.error


@needs_bypass
def test_a_read_that_was_cancelled_loses_nothing(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    reply.feed(framed(b"one\n"))
    reply.look()
    reply.waiting.cancel()
    reply.feed(framed(b"two\n"))
    reply.feed(framed(b"three\n"))
    reply.look()
    assert reply.outcome.body == b"one\ntwo\nthree\n"


@needs_bypass
def test_what_was_passed_over_comes_before_the_break(loop: asyncio.AbstractEventLoop) -> None:
    reply = Reply(loop)
    reply.feed(framed(b"one\n"))
    reply.look()
    reply.feed(framed(b"two\n"))
    reply.hang_up()
    reply.look()
    assert reply.outcome.body == b"one\ntwo\n"
    assert reply.outcome.error is not None


# --- where it cannot be done -----------------------------------------------------------------------------------------


class _Reader:
    __slots__ = ("_http_chunk_splits",)


@pytest.mark.parametrize(
    ("reader", "parser", "can"),
    [
        (_Reader, http_parser.HttpResponseParserPy, False),  # the one without the C extension
        (object, "C", False),
        (_Reader, "C", True),
    ],
)
def test_it_is_off_where_the_parser_does_not_tell_where_it_stands(reader: type, parser: Any, can: bool) -> None:
    parsers: Any = SimpleNamespace(HttpResponseParser=parser, HttpResponseParserC="C")
    assert can_bypass(reader, parsers) is can


def test_it_is_off_without_the_extension() -> None:
    parsers: Any = SimpleNamespace(HttpResponseParser=http_parser.HttpResponseParserPy)
    assert can_bypass(aiohttp.StreamReader, parsers) is False


def test_all_goes_through_the_parser_where_it_is_off(loop: asyncio.AbstractEventLoop) -> None:
    reads = [framed(b"one\n"), framed(b"two\n"), LAST]
    outcome = read_through(loop, reads, [True], 2**18, bypass=False)
    assert (outcome.body, outcome.parsed, outcome.ended, outcome.closed) == (b"one\ntwo\n", 8, True, False)
