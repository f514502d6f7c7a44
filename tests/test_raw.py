"""`raw()`: the unmodified bytes of a stream, which is still decoded for its result."""

import asyncio
import gc
import gzip
from collections.abc import AsyncIterable, Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import run_loop_iterations
from support.sockets import (
    DONE,
    STREAM_HEAD,
    Conversation,
    RawServer,
    assert_no_leaks,
    chunked,
    client_of,
    delta,
    open_stream,
    read,
    serve_bytes,
    with_timeout,
)
from support.steps import endless
from support.streams import KINDS, Kind
from support.virtual import NEVER_ENDS, FakeExchange, Piece, in_virtual_time, now, run_in_virtual_time

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    AuthenticationError,
    ChatStream,
    FriendliError,
    Limits,
    ResponseDecodeError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.events.reader import EventReader
from friendli_async._core.events.stream import OpenStream, StreamState
from friendli_async._core.net.clock import ReadClock
from friendli_async._core.secret import Secret
from friendli_async._core.timing import Stopwatch
from friendli_async.chat.collector import ChatCollector
from friendli_async.replies import Meta, ReplyHead
from friendli_async.streams import RawView
from friendli_async.testing import FriendliServer, cut, gate, raw, reset, script, stall, status

pytestmark = pytest.mark.compatibility

DEFAULT = Timeouts()
FINISH = delta(finish="stop")
UNUSUAL = (
    b"\xef\xbb\xbf: a comment\r\n\r\nid: 7\r\nretry: 10\r\n"
    b'data: {"choices": [{"index": 0,\r\ndata:  "delta": {"content": "a"}}]}\r\n\r\n'
    + delta("b").replace(b"\n", b"\r")
    + b":ping\n\nevent:\nid\ndata:"
    + delta("c")[6:]
    + FINISH
    + DONE
    + b": after the end\r\n\r\nnonsense"
)
"""A stream with everything that a conforming SSE parser ignores."""


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


async def read_all(view: AsyncIterable[bytes]) -> bytes:
    async with asyncio.timeout(30):
        return b"".join([data async for data in view])


async def read_bytes_into(seen: list[bytes], view: RawView) -> None:
    """Also keeps the data received before an error."""
    async with asyncio.timeout(30):
        async for data in view:
            seen.append(data)  # noqa: PERF401  # a comprehension would lose the items before an error


# --- the bytes -------------------------------------------------------------------------------------------------------


async def test_raw_yields_the_body_of_every_stream_kind_and_keeps_the_result(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    pieces = [*kind.first_events, *kind.remaining_events]
    server.enqueue(script(*map(raw, pieces)), script(*map(raw, pieces)))
    plain, relayed = kind.open(client), kind.open(client)
    result = await with_timeout(plain.result())
    assert await read_all(relayed.raw()) == kind.body
    assert relayed.outcome == "done"
    assert await relayed.result() == result
    assert relayed.usage == plain.usage
    assert relayed.timing.events == plain.timing.events == len(pieces) - (DONE in pieces)
    assert relayed.timing.bytes == len(kind.body)
    assert relayed.timing.first_text is not None


async def test_data_that_the_event_parser_skips_is_relayed_unchanged(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    until_the_end = UNUSUAL[: UNUSUAL.index(DONE) + len(DONE) - 1]
    server.enqueue(
        script(raw(UNUSUAL), stall()),
        script(*(raw(until_the_end[i : i + 1]) for i in range(len(until_the_end))), stall()),
    )
    for sent in (UNUSUAL, until_the_end):
        stream = open_stream(client)
        assert await read_all(stream.raw()) == sent
        assert (await stream.result()).text == "abc"


@given(st.lists(st.integers(0, len(UNUSUAL)), max_size=6))
def test_chunk_boundaries_do_not_affect_bytes_or_result(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(UNUSUAL)]
    pieces = [UNUSUAL[a:b] for a, b in pairwise(edges) if a < b]

    async def relay() -> tuple[bytes, str]:
        stream = stream_of(FakeExchange(*pieces))
        return await read_all(stream.raw()), (await stream.result()).text

    got, text = run_in_virtual_time(relay())
    assert text == "abc"
    assert UNUSUAL.startswith(got)
    assert len(got) >= UNUSUAL.index(DONE) + len(DONE)  # with the blank line, without which a browser ignores it


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_body_that_arrives_byte_by_byte_is_relayed_to_its_last_line_end(
    server: FriendliServer, client: AsyncFriendli, kind: Kind, line_end: bytes
) -> None:
    body = kind.body.replace(b"\n", line_end)
    server.enqueue(script(*(raw(body[i : i + 1]) for i in range(len(body)))))
    stream = kind.open(client)
    assert await read_all(stream.raw()) == body
    assert stream.outcome == "done"
    assert stream.timing.bytes == len(body)


@pytest.mark.parametrize("with_condition", [False, True], ids=["plain", "stop_when"])
@pytest.mark.parametrize("opened_first", [False, True], ids=["opened by the read", "opened before"])
async def test_blank_line_of_a_stream_that_was_complete_when_it_was_opened_is_relayed(
    opened_first: bool, with_condition: bool
) -> None:
    body, asked = delta("a", "stop") + DONE, asyncio.Event()

    async def talk(conversation: Conversation) -> None:
        await conversation.request()
        await conversation.send(STREAM_HEAD + chunked(body[:-1]))
        await asked.wait()
        await conversation.send(chunked(body[-1:]) + b"0\r\n\r\n")
        await conversation.request()

    async with RawServer(talk) as server, client_of(server.url) as client:
        stream = open_stream(client)
        if with_condition:
            stream.stop_when(lambda text: "z" in text)
        if opened_first:
            await stream
        view = stream.raw()
        got = await anext(view)
        rest = asyncio.create_task(read_all(view))
        await run_loop_iterations(20)  # it waits
        asked.set()
        assert got + await rest == body
        assert stream.outcome == "done"
        assert (await stream.result()).text == "a"
        assert (client.gauges().in_use, client.gauges().idle) == (0, 1)


@pytest.mark.parametrize("how", ["events", "result", "text", "tee"])
async def test_stream_that_lacks_only_its_last_blank_line_is_read_without_waiting_for_it(
    server: FriendliServer, client: AsyncFriendli, how: str
) -> None:
    server.enqueue(script(raw(delta("a", "stop") + DONE[:-1]), stall()))
    stream = open_stream(client)
    if how == "result":
        assert (await with_timeout(stream.result())).text == "a"
    else:
        views: dict[str, Callable[[], AsyncIterable[Any]]] = {
            "events": lambda: stream,
            "text": stream.text,
            "tee": lambda: stream.tee(1)[0],
        }
        assert len([item async for item in views[how]()]) == 1
    assert stream.outcome == "done"
    await assert_no_leaks(client, server)


@in_virtual_time
async def test_relay_waits_half_a_second_for_a_blank_line_that_never_comes() -> None:
    exchange = FakeExchange(delta("a", "stop"), DONE[:-1], NEVER_ENDS)
    stream = stream_of(exchange)
    view = stream.raw()
    assert [await anext(view, b"") for _ in range(3)] == [delta("a", "stop"), DONE[:-1], b""]
    assert now() == 0.5
    assert (stream.outcome, exchange.ends) == ("done", ["finish"])


@in_virtual_time
async def test_relay_waits_once_for_the_blank_line_of_a_server_that_goes_on_sending_comments() -> None:
    comments: list[Piece] = [0.2, b": x\n"]
    exchange = FakeExchange(delta("a", "stop"), DONE[:-1], *comments * 100)
    stream = stream_of(exchange)
    view = stream.raw()
    assert [await anext(view, b"") for _ in range(4)] == [delta("a", "stop"), DONE[:-1], b": x\n: x\n", b""]
    assert now() == 0.5
    assert (stream.outcome, set(exchange.ends)) == ("done", {"finish"})


@in_virtual_time
async def test_relay_does_not_read_a_flood_of_comments_after_the_sentinel() -> None:
    stream = stream_of(FakeExchange(delta("a", "stop"), DONE[:-1], *([b": x\n" * 256] * 100)))
    view = stream.raw()
    got = [await anext(view, b"") for _ in range(4)]
    assert [len(data) for data in got[2:]] == [4096, 0]
    assert stream.outcome == "done"


@in_virtual_time
async def test_reply_is_complete_although_the_wait_for_its_blank_line_is_cancelled() -> None:
    exchange = FakeExchange(delta("a", "stop"), DONE[:-1], NEVER_ENDS)
    stream = stream_of(exchange)
    view = stream.raw()
    await anext(view)
    await anext(view)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(view), 0.1)
    assert (stream.outcome, exchange.ends) == ("done", ["finish"])


def stream_of(exchange: Any, timeouts: Timeouts = DEFAULT) -> ChatStream:
    collector, state = ChatCollector(), StreamState()
    reader = EventReader(collector, 1 << 20, ReplyHead(200))
    clock = ReadClock(timeouts, timeouts.total, exchange.loop, exchange.abort_with)
    opening: Any = SimpleNamespace(state=state)
    stream = ChatStream(opening)
    stream._open = OpenStream(
        state, exchange, reader, collector, clock, Meta(), Stopwatch(clock.now), None, b"", Secret()
    )
    return stream


@in_virtual_time
async def test_connection_is_returned_with_the_last_bytes() -> None:
    exchange = FakeExchange(delta("a", "stop") + DONE)
    stream = stream_of(exchange)
    assert await anext(stream.raw())
    assert exchange.ends == ["finish"]


async def test_compressed_body_is_decompressed() -> None:
    body = gzip.compress(delta("a") + FINISH + DONE)
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with (
        serve_bytes(head + chunked(body[:20]), chunked(body[20:]), hang=True) as server,
        client_of(server.url) as client,
    ):
        assert await read_all(open_stream(client).raw()) == delta("a") + FINISH + DONE


async def test_data_received_while_opening_is_included(server: FriendliServer, client: AsyncFriendli) -> None:
    first, rest = b": hello\n\n: again\n\n", delta("a") + FINISH + DONE
    server.enqueue(script(raw(first), raw(b": more\n\n"), raw(rest)))
    async with open_stream(client) as stream:
        assert await read_all(stream.raw()) == first + b": more\n\n" + rest


async def test_exceeding_the_event_limit_before_the_first_event_fails_the_opening(server: FriendliServer) -> None:
    flood = [raw(b": " + b"x" * 400 + b"\n\n")] * 4
    server.enqueue(script(*flood, raw(delta("a") + FINISH + DONE)))
    async with client_of(server.url, limits=Limits(event=1000)) as client:
        with pytest.raises(ResponseDecodeError, match=r"larger than the limit of 1000 bytes \(Limits\.event\)"):
            await open_stream(client)


async def test_events_after_a_comment_do_not_count_towards_the_limit_before_the_first(server: FriendliServer) -> None:
    server.enqueue(script(raw(b": hello\n\n"), raw(delta("a") * 20 + FINISH + DONE)))
    async with client_of(server.url, limits=Limits(event=1000)) as client:
        assert await read(open_stream(client)) == "a" * 20


async def test_relayed_data_is_not_buffered(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*[raw(delta("a"))] * 50, raw(FINISH + DONE)))
    stream = open_stream(client)
    kept = []
    async for data in stream.raw():
        assert data
        assert stream._open is not None
        kept.append((len(stream._open.reader.ready), stream._open.kept_bytes))
    assert set(kept) == {(0, b"")}
    assert (await stream.result()).text == "a" * 50


async def test_result_consumes_the_rest_of_the_stream(server: FriendliServer, client: AsyncFriendli) -> None:
    relayed = asyncio.Event()
    server.enqueue(script(raw(delta("a")), gate(relayed), raw(delta("b")), raw(FINISH), raw(DONE)))
    stream = open_stream(client)
    view = stream.raw()
    assert await anext(view) == delta("a")
    relayed.set()
    assert (await with_timeout(stream.result())).text == "ab"
    assert await read_all(view) == b""
    assert stream.outcome == "done"


async def test_raw_view_is_a_context_manager_that_opens_and_closes_the_stream(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(raw(delta("a")), stall()), status(401))
    stream = open_stream(client)
    async with stream.raw() as view:
        assert stream.meta.status == 200
        assert await anext(view) == delta("a")
    assert stream.outcome == "cancelled"
    with pytest.raises(AuthenticationError):
        await open_stream(client).raw().__aenter__()
    await assert_no_leaks(client, server, connections=None)


async def test_large_reads_are_decoded_in_bounded_pieces() -> None:
    body = delta("word ") * 5_000 + FINISH + DONE
    async with serve_bytes(STREAM_HEAD + chunked(body) + b"0\r\n\r\n") as server, client_of(server.url) as client:
        stream = open_stream(client)
        pieces = [piece async for piece in stream.raw()]
        assert b"".join(pieces) == body
        assert max(map(len, pieces[1:])) <= 32 * 1024  # the first one holds all bytes up to the first event
        assert (await stream.result()).text == "word " * 5_000


# --- errors and cancellation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "outcome"),
    [
        ([cut()], StreamInterruptedError, "truncated"),
        ([reset()], StreamInterruptedError, "truncated"),
        ([], StreamInterruptedError, "truncated"),
        ([raw(b"data: {nope\n\ndata: more\n\n"), stall()], ResponseDecodeError, "failed"),
        ([raw(b'data: {"error": {"message": "m", "code": 500}}\n\n'), stall()], APIStatusError, "failed"),
    ],
    ids=["cut", "reset", "end", "no JSON", "error"],
)
@pytest.mark.parametrize("together", [False, True], ids=["reads", "one read"])
async def test_error_is_raised_after_all_bytes(
    server: FriendliServer,
    client: AsyncFriendli,
    bad: list[Any],
    error: type[FriendliError],
    outcome: str,
    together: bool,
) -> None:
    good = delta("a") + delta("b")
    last = bad[0].data if bad and hasattr(bad[0], "data") else b""
    steps = [raw(good + last), *bad[1:]] if together and last else [raw(delta("a")), raw(delta("b")), *bad]
    server.enqueue(script(*steps))
    stream = open_stream(client)
    view = stream.raw()
    seen: list[bytes] = []
    with pytest.raises(error) as caught:
        await read_bytes_into(seen, view)
    assert b"".join(seen) == good + last
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"
    assert stream.outcome == outcome
    with pytest.raises(error):  # another read must not find an empty body
        await read_all(view)
    with pytest.raises(error):
        await stream.result()
    await assert_no_leaks(client, server, connections=None)


async def test_first_read_raises_errors_from_opening(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(401))
    stream = open_stream(client)
    with pytest.raises(AuthenticationError):
        await read_all(stream.raw())
    assert stream.outcome == "failed"


async def test_oversized_event_is_partially_relayed_before_raising(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a")), endless(b"data: xxxx")))
    async with client_of(server.url, limits=Limits(event=5000)) as client:
        seen: list[bytes] = []
        with pytest.raises(ResponseDecodeError, match=r"Limits\.event"):
            await read_bytes_into(seen, open_stream(client).raw())
        assert b"".join(seen).startswith(delta("a") + b"data: xxxx")


async def _leave(view: RawView) -> None:
    async for _ in view:
        break


async def _close(view: RawView) -> None:
    assert await anext(view)
    await view.aclose()
    assert await read_all(view) == b""


async def _cancel(view: RawView) -> None:
    assert await anext(view)
    reading = asyncio.ensure_future(view.__anext__())
    await run_loop_iterations(3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(2):
        with pytest.raises(StreamInterruptedError):
            await anext(view)
    await view.aclose()
    assert await read_all(view) == b""


@pytest.mark.parametrize("leave", [_leave, _close, _cancel])
async def test_leaving_the_raw_view_cancels_the_request(
    server: FriendliServer, client: AsyncFriendli, leave: Callable[[RawView], Any]
) -> None:
    server.enqueue(script(raw(delta("a")), stall()))
    gc.collect()
    gc.disable()
    try:
        await with_timeout(leave(open_stream(client).raw()))
        await assert_no_leaks(client, server, connections=None)
        assert client.gauges().in_use == 0
    finally:
        gc.enable()


async def test_closing_the_stream_raises_in_a_waiting_reader(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a")), stall()))
    stream = open_stream(client)
    view = stream.raw()
    await anext(view)
    reading = asyncio.ensure_future(view.__anext__())
    await run_loop_iterations(3)
    with pytest.raises(RuntimeError):
        await anext(view)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError):
        await with_timeout(reading)
    assert await read_all(view) == b""


# --- mutual exclusion ------------------------------------------------------------------------------------------------


async def test_events_cannot_be_read_once_raw_is_in_use(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = open_stream(client)
    view = stream.raw()
    for other in (stream, stream.text()):
        with pytest.raises(RuntimeError, match="raw"):
            await anext(other)
    with pytest.raises(RuntimeError, match="raw"):
        stream.raw()
    assert await read_all(view)
    assert stream.outcome == "done"
    with pytest.raises(RuntimeError, match="raw"):
        await anext(stream)
    assert len(server.requests) == 1


async def test_raw_is_rejected_after_events_were_read(client: AsyncFriendli) -> None:
    async with open_stream(client) as stream:
        await anext(stream)
        with pytest.raises(RuntimeError, match="have already been read"):
            stream.raw()
        assert await read(stream)
    with pytest.raises(RuntimeError, match="have already been read"):
        stream.raw()


async def test_raw_is_rejected_after_result(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    await with_timeout(stream.result())
    with pytest.raises(RuntimeError, match="have already been read"):
        stream.raw()


async def test_raw_view_of_a_closed_stream_is_empty(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = open_stream(client)
    await stream.aclose()
    assert await read_all(stream.raw()) == b""
    assert server.requests == []


# --- time limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [None, 1000.0])
def test_idle_timeout_ignores_comments_and_time_between_reads(total: float | None) -> None:
    async def relay() -> tuple[float, bytes]:
        exchange = FakeExchange(delta("a"), 6.0, b": ping\n\n", b": ping\n\n", 3.0, b": ping\n\n", 100.0)
        view = stream_of(exchange, Timeouts(idle=10, total=total)).raw()
        got = b""
        for _ in range(4):
            got += await anext(view)
            await asyncio.sleep(50)  # a slow consumer does not count against the server
        began = now()
        with pytest.raises(APITimeoutError) as caught:
            await anext(view)
        assert caught.value.limit == "idle"
        return now() - began, got

    waited, got = run_in_virtual_time(relay())
    assert waited == pytest.approx(1.0)
    assert got == delta("a") + b": ping\n\n" * 3


def test_each_event_resets_the_idle_timeout() -> None:
    async def relay() -> bytes:
        pieces = [piece for _ in range(5) for piece in (9.0, b": ping\n\n", delta("a"), 9.0, delta("b"))]
        stream = stream_of(FakeExchange(*pieces, FINISH + DONE), Timeouts(idle=10))
        return b"".join([data async for data in stream.raw()])

    assert run_in_virtual_time(relay()) == (b": ping\n\n" + delta("a") + delta("b")) * 5 + FINISH + DONE


# --- a stream that ends while a read waits ---------------------------------------------------------------------------


class RacingExchange(FakeExchange):
    """A reply that goes on, and part of which arrives in the same loop iteration in which something ends the stream.

    Then `take` may return it: aborting an exchange whose body has ended changes nothing. Or `take_arrived` does.
    """

    arrived = b""

    def abort_with(self, error: FriendliError) -> None:
        if self.arrived:
            super().abort_with(error)

    def take_arrived(self) -> bytes:
        data, self.arrived = self.arrived, b""
        return data


@in_virtual_time
async def test_events_that_arrive_while_the_stream_is_closed_are_not_delivered() -> None:
    stream = stream_of(RacingExchange(delta("a"), 1.0, delta("b") + FINISH + DONE))
    assert (await anext(stream)).text == "a"
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.5)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError, match="the stream was closed"):
        await reader
    assert [event async for event in stream] == []
    assert stream.outcome == "cancelled"


@pytest.mark.parametrize("arrived", [delta("b"), b": ping\n\n"], ids=["an event", "a comment"])
def test_bytes_that_arrive_while_the_stream_is_aborted_are_returned_before_the_error(arrived: bytes) -> None:
    async def relay() -> None:
        exchange = RacingExchange(delta("a"), 1.0, b"")
        stream = stream_of(exchange)
        view = stream.raw()
        assert await anext(view) == delta("a")
        reader = asyncio.create_task(anext(view))
        await asyncio.sleep(0.5)
        exchange.arrived = arrived
        exchange.abort_with(StreamInterruptedError("the client was closed"))
        assert await reader == arrived
        for _ in range(2):
            with pytest.raises(StreamInterruptedError, match="the client was closed"):
                await anext(view)
        assert stream.outcome == "cancelled"

    run_in_virtual_time(relay())
