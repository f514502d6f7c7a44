"""`raw()`: the bytes of a stream as they came, while it goes on decoding."""

import asyncio
import gc
import gzip
from collections.abc import AsyncIterable, Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import turns
from support.sockets import (
    DONE,
    STREAM_HEAD,
    ask,
    chunked,
    client_of,
    delta,
    nothing_left,
    read,
    saying,
    within,
)
from support.streams import KINDS, Kind
from support.virtual import FakeExchange, now, virtually

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    AuthenticationError,
    FriendliError,
    Limits,
    ResponseDecodeError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.events.reader import EventReader
from friendli_async._core.events.stream import OpenStream
from friendli_async._core.net.clock import ReadClock
from friendli_async._core.timing import Stopwatch
from friendli_async.chat import ChatCollector
from friendli_async.replies import Headers, Meta
from friendli_async.streams import RawView
from friendli_async.testing import FriendliServer, cut, endless, raw, reset, script, stall, status

pytestmark = pytest.mark.compatibility

DEFAULT = Timeouts()
FINISH = delta(finish="stop")
ODD = (
    b"\xef\xbb\xbf: a comment\r\n\r\nid: 7\r\nretry: 10\r\n"
    b'data: {"choices": [{"index": 0,\r\ndata:  "delta": {"content": "a"}}]}\r\n\r\n'
    + delta("b").replace(b"\n", b"\r")
    + b":ping\n\nevent:\nid\ndata:"
    + delta("c")[6:]
    + FINISH
    + DONE
    + b": after the end\r\n\r\nnonsense"
)
"""One stream with all that a standard's reader passes over."""


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


async def bytes_of(view: AsyncIterable[bytes]) -> bytes:
    async with asyncio.timeout(30):
        return b"".join([data async for data in view])


async def read_bytes_into(seen: list[bytes], view: RawView) -> None:
    """Keeps what comes before an error, too."""
    async with asyncio.timeout(30):
        async for data in view:
            seen.append(data)  # noqa: PERF401  # a list would be lost


# --- the bytes -------------------------------------------------------------------------------------------------------


async def test_every_kind_of_stream_gives_its_bytes_and_its_result(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    pieces = [*kind.begun, *kind.rest]
    server.enqueue(script(*map(raw, pieces)), script(*map(raw, pieces)))
    plain, relayed = kind.open(client), kind.open(client)
    result = await within(plain.result())
    assert await bytes_of(relayed.raw()) == kind.body
    assert relayed.outcome == "done"
    assert await relayed.result() == result
    assert relayed.usage == plain.usage
    assert relayed.timing.events == plain.timing.events == len(pieces) - (DONE in pieces)
    assert relayed.timing.bytes == len(kind.body)
    assert relayed.timing.first_text is not None


async def test_what_a_reader_of_events_passes_over_is_relayed_in_one_read_or_in_bytes(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    whole = ODD
    until_the_end = ODD[: ODD.index(DONE) + len(DONE) - 1]
    server.enqueue(
        script(raw(whole), stall()),
        script(*(raw(until_the_end[i : i + 1]) for i in range(len(until_the_end))), stall()),
    )
    for sent in (whole, until_the_end):
        stream = ask(client)
        assert await bytes_of(stream.raw()) == sent
        assert (await stream.result()).text == "abc"


@given(st.lists(st.integers(0, len(ODD)), max_size=6))
def test_no_split_changes_a_byte_or_the_result(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ODD)]
    pieces = [ODD[a:b] for a, b in pairwise(edges) if a < b]

    async def relay() -> tuple[bytes, str]:
        opened = opened_with(FakeExchange(*pieces))
        got = b""
        while data := await opened.read():
            got += data
        return got, opened.collector.result().text

    got, text = virtually(relay())
    assert text == "abc"
    assert ODD.startswith(got)
    assert len(got) >= ODD.index(DONE) + len(DONE) - 1


def opened_with(exchange: Any, timeouts: Timeouts = DEFAULT) -> OpenStream[Any, Any, Any]:
    collector = ChatCollector()
    reader = EventReader(collector, 1 << 20, 200, Headers())
    clock = ReadClock(timeouts, None, exchange.loop, exchange.abort_with)
    return OpenStream(exchange, reader, collector, clock, Meta(), Stopwatch(clock.now), None, b"")


async def test_the_bytes_of_a_compressed_body_come_decompressed() -> None:
    body = gzip.compress(delta("a") + FINISH + DONE)
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
    async with (
        saying(head + chunked(body[:20]), chunked(body[20:]), hang=True) as server,
        client_of(server.url) as client,
    ):
        assert await bytes_of(ask(client).raw()) == delta("a") + FINISH + DONE


async def test_what_came_while_the_stream_was_opened_is_not_missing(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    first, rest = b": hello\n\n: again\n\n", delta("a") + FINISH + DONE
    server.enqueue(script(raw(first), raw(b": more\n\n"), raw(rest)))
    async with ask(client) as stream:
        assert await bytes_of(stream.raw()) == first + b": more\n\n" + rest


async def test_more_than_the_limit_before_the_first_event_is_an_error_of_raw_alone(server: FriendliServer) -> None:
    flood = [raw(b": " + b"x" * 400 + b"\n\n")] * 4
    server.enqueue(*[script(*flood, raw(delta("a") + FINISH + DONE))] * 3)
    async with client_of(server.url, limits=Limits(event=1000)) as client:
        assert await read(ask(client)) == "a"
        async with ask(client) as stream:
            with pytest.raises(RuntimeError, match=r"Limits\.event"):
                stream.raw()
            assert await read(stream) == "a"
        with pytest.raises(ResponseDecodeError, match=r"Limits\.event"):
            await bytes_of(ask(client).raw())


async def test_nothing_is_kept_of_what_was_relayed(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*[raw(delta("a"))] * 50, raw(FINISH + DONE)))
    stream = ask(client)
    kept = []
    async for data in stream.raw():
        assert data
        assert stream._open is not None
        kept.append((len(stream._open.reader.ready), stream._open.head))
    assert set(kept) == {(0, b"")}
    assert (await stream.result()).text == "a" * 50


async def test_result_reads_what_has_not_been_relayed(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a")), raw(delta("b")), raw(FINISH), raw(DONE)))
    stream = ask(client)
    view = stream.raw()
    assert await anext(view) == delta("a")
    assert (await within(stream.result())).text == "ab"
    assert await bytes_of(view) == b""
    assert stream.outcome == "done"


async def test_a_view_of_bytes_is_a_context_that_opens_and_closes(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(raw(delta("a")), stall()), status(401))
    stream = ask(client)
    async with stream.raw() as view:
        assert stream.meta.status == 200
        assert await anext(view) == delta("a")
    assert stream.outcome == "cancelled"
    with pytest.raises(AuthenticationError):
        await ask(client).raw().__aenter__()
    await nothing_left(client, server, connections=None)


# --- how it ends -----------------------------------------------------------------------------------------------------


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
async def test_an_error_comes_after_all_the_bytes(
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
    stream = ask(client)
    view = stream.raw()
    seen: list[bytes] = []
    with pytest.raises(error) as caught:
        await read_bytes_into(seen, view)
    assert b"".join(seen) == good + last
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"
    assert stream.outcome == outcome
    assert await bytes_of(view) == b""
    with pytest.raises(error):
        await stream.result()
    await nothing_left(client, server, connections=None)


async def test_errors_of_opening_raise_from_the_first_read(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(401))
    stream = ask(client)
    with pytest.raises(AuthenticationError):
        await bytes_of(stream.raw())
    assert stream.outcome == "failed"


async def test_an_event_larger_than_the_limit_is_relayed_as_far_as_it_came_and_raises(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a")), endless(b"data: xxxx")))
    async with client_of(server.url, limits=Limits(event=5000)) as client:
        seen: list[bytes] = []
        with pytest.raises(ResponseDecodeError, match=r"Limits\.event"):
            await read_bytes_into(seen, ask(client).raw())
        assert b"".join(seen).startswith(delta("a") + b"data: xxxx")


async def _leave(view: RawView) -> None:
    async for _ in view:
        break


async def _close(view: RawView) -> None:
    assert await anext(view)
    await view.aclose()
    assert await bytes_of(view) == b""


async def _cancel(view: RawView) -> None:
    assert await anext(view)
    reading = asyncio.ensure_future(view.__anext__())
    await turns(3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    with pytest.raises(StreamInterruptedError):
        await anext(view)
    assert await bytes_of(view) == b""


@pytest.mark.parametrize("leave", [_leave, _close, _cancel])
async def test_leaving_the_bytes_stops_the_model(
    server: FriendliServer, client: AsyncFriendli, leave: Callable[[RawView], Any]
) -> None:
    server.enqueue(script(raw(delta("a")), stall()))
    gc.collect()
    gc.disable()
    try:
        await within(leave(ask(client).raw()))
        await nothing_left(client, server, connections=None)
        assert client.gauges().in_use == 0
    finally:
        gc.enable()


async def test_closing_under_a_waiting_reader_of_bytes_raises_in_it(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(raw(delta("a")), stall()))
    stream = ask(client)
    view = stream.raw()
    await anext(view)
    reading = asyncio.ensure_future(view.__anext__())
    await turns(3)
    with pytest.raises(RuntimeError):
        await anext(view)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError):
        await within(reading)
    assert await bytes_of(view) == b""


# --- one way at a time -----------------------------------------------------------------------------------------------


async def test_events_and_bytes_are_not_read_at_a_time(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = ask(client)
    view = stream.raw()
    for other in (stream, stream.text()):
        with pytest.raises(RuntimeError, match="raw"):
            await anext(other)
    with pytest.raises(RuntimeError, match="raw"):
        stream.raw()
    assert await bytes_of(view)
    assert stream.outcome == "done"
    with pytest.raises(RuntimeError, match="raw"):
        await anext(stream)
    assert len(server.requests) == 1


async def test_bytes_cannot_be_asked_for_once_events_have_been_taken(client: AsyncFriendli) -> None:
    async with ask(client) as stream:
        await anext(stream)
        with pytest.raises(RuntimeError, match="have been taken"):
            stream.raw()
        assert await read(stream)
    with pytest.raises(RuntimeError, match="have been taken"):
        stream.raw()


async def test_bytes_cannot_be_asked_for_once_the_result_has_been_read(client: AsyncFriendli) -> None:
    stream = ask(client)
    await within(stream.result())
    with pytest.raises(RuntimeError, match="have been taken"):
        stream.raw()


async def test_a_closed_stream_has_no_bytes(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = ask(client)
    await stream.aclose()
    assert await bytes_of(stream.raw()) == b""
    assert server.requests == []


# --- time limits -----------------------------------------------------------------------------------------------------


def test_comments_do_not_put_off_the_idle_limit_and_time_between_reads_does_not_count() -> None:
    async def relay() -> tuple[float, bytes]:
        exchange = FakeExchange(delta("a"), 6.0, b": ping\n\n", 3.0, b": ping\n\n", 100.0)
        opened = opened_with(exchange, Timeouts(idle=10))
        got = b""
        for _ in range(3):
            got += await opened.read()
            await asyncio.sleep(50)  # the browser is slow: that is not the server's fault
        began = now()
        with pytest.raises(APITimeoutError) as caught:
            await opened.read()
        assert caught.value.limit == "idle"
        return now() - began, got

    waited, got = virtually(relay())
    assert waited == pytest.approx(1.0)
    assert got == delta("a") + b": ping\n\n" * 2


def test_each_event_begins_the_idle_limit_anew() -> None:
    async def relay() -> bytes:
        pieces = [piece for _ in range(5) for piece in (9.0, b": ping\n\n", delta("a"), 9.0, delta("b"))]
        opened = opened_with(FakeExchange(*pieces, FINISH + DONE), Timeouts(idle=10))
        got = b""
        while data := await opened.read():
            got += data
        return got

    assert virtually(relay()) == (b": ping\n\n" + delta("a") + delta("b")) * 5 + FINISH + DONE
