"""`stop()` and `stop_when()`: an end on purpose, after which there is a result."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.clock import turns
from support.sockets import TOKEN, ask, client_of, delta, nothing_left, places_in_use, read, within
from support.streams import KINDS, AnyStream, Kind

from friendli_async import AsyncFriendli, ChatStream, StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async._core.observers import CallEnded, Observer
from friendli_async.chat import ChatCollector
from friendli_async.replies import Headers
from friendli_async.testing import FriendliServer, chunk, comment, done, finish, raw, script, stall, usage

pytestmark = pytest.mark.compatibility


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


class Ends(Observer):
    """Notes how calls end."""

    def __init__(self) -> None:
        self.seen: list[CallEnded] = []

    def call_ended(self, event: CallEnded) -> None:
        self.seen.append(event)


# --- stop() ----------------------------------------------------------------------------------------------------------


async def test_every_kind_of_stream_is_stopped_with_a_result_of_what_had_arrived(
    server: FriendliServer, kind: Kind
) -> None:
    server.enqueue(script(*map(raw, kind.begun), stall()))
    ends = Ends()
    async with client_of(server.url, observers=[ends]) as client:
        async with kind.open(client) as stream:
            for _ in kind.begun:
                await within(anext(stream))
            await stream.stop()
            assert stream.outcome == "stopped"
            assert [event async for event in stream] == []
        result = await within(stream.result())
        assert result.text == "Hello "
        assert kind.finish(result) == kind.unfinished
        assert result.meta == stream.meta
        assert await stream.result() is result
        assert stream.outcome == "stopped"
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)]
        await nothing_left(client, server)


async def test_usage_of_a_stopped_stream_is_what_the_server_told(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), usage(1, 2), chunk("b"), stall()), script(chunk("a"), stall()))
    told, untold = ask(client), ask(client)
    for _ in range(3):
        await anext(told)
    await anext(untold)
    for stream in (told, untold):
        await stream.stop()
    assert told.usage is not None
    assert (told.usage.total_tokens, untold.usage) == (3, None)
    assert (await told.result()).usage == told.usage
    assert (await untold.result()).usage is None


async def test_the_connection_is_aborted_before_stop_returns(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with ask(client) as stream:
        stopping = stream.stop()
        with pytest.raises(StopIteration):
            stopping.send(None)
        assert places_in_use(client) == 0
    await server.wait_for_connections(0)


async def _iterate(stream: AnyStream) -> list[Any]:
    return [event async for event in stream]


async def _text(stream: ChatStream) -> list[Any]:
    return [text async for text in stream.text()]


async def _result(stream: ChatStream) -> list[Any]:
    return [(await stream.result()).text]


async def _raw(stream: ChatStream) -> list[Any]:
    return [data async for data in stream.raw()]


READS: dict[str, Callable[[ChatStream], Awaitable[list[Any]]]] = {
    "iteration": _iterate,
    "text": _text,
    "result": _result,
    "raw": _raw,
}


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
async def test_whoever_waits_is_through_without_an_error(
    server: FriendliServer, client: AsyncFriendli, reads: Callable[[ChatStream], Awaitable[list[Any]]]
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = ask(client)
    reading = asyncio.ensure_future(reads(stream))
    await server.wait_for_requests(1)
    while stream._open is None:
        await turns(1)
    await turns(5)
    await stream.stop()
    assert len(await within(reading)) == 1
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "a"
    await nothing_left(client, server)


async def test_events_that_nobody_had_taken_are_in_the_result_alone(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    stream = ask(client)
    assert (await anext(stream)).text == "a"
    await stream.stop()
    assert await read(stream) == ""
    assert (await stream.result()).text == "abc"


async def test_a_stream_that_is_stopped_before_it_is_used_sends_nothing(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    stream = ask(client)
    await stream.stop()
    assert stream.outcome == "stopped"
    assert await read(stream) == ""
    for use in (stream.result(), stream.__aenter__(), stream):
        with pytest.raises(StreamInterruptedError, match="stopped before it was opened"):
            await use
    with pytest.raises(RuntimeError, match="never opened"):
        _ = stream.meta
    assert server.requests == []


@pytest.mark.parametrize("reads", [_iterate, _text, _raw])
async def test_a_stream_that_is_stopped_while_it_is_being_opened_is_through(
    server: FriendliServer, reads: Callable[[ChatStream], Awaitable[list[Any]]]
) -> None:
    server.enqueue(script(comment(), stall()))
    ends = Ends()
    async with client_of(server.url, observers=[ends]) as client:
        stream = ask(client)
        reading = asyncio.ensure_future(reads(stream))
        await server.wait_for_requests(1)
        await stream.stop()
        assert await within(reading) == []
        assert stream.outcome == "stopped"
        with pytest.raises(StreamInterruptedError):
            await stream.result()
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)]
        await nothing_left(client, server)


async def test_entering_a_stream_that_is_stopped_meanwhile_raises(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(stall())
    stream = ask(client)
    entering = asyncio.ensure_future(stream.__aenter__())
    await server.wait_for_requests(1)
    await stream.stop()
    with pytest.raises(StreamInterruptedError, match="stopped"):
        await within(entering)
    assert stream.outcome == "stopped"


@pytest.mark.parametrize("ends", [["done"], ["cancelled"], ["stopped", "stopped"]])
async def test_a_stream_that_has_ended_is_not_stopped(
    server: FriendliServer, client: AsyncFriendli, ends: list[str]
) -> None:
    server.enqueue(script(chunk("a"), finish(), done()))
    async with ask(client) as stream:
        if ends[0] == "done":
            await read(stream)
        elif ends[0] == "cancelled":
            await stream.aclose()
        else:
            await stream.stop()
        await stream.stop()
        assert stream.outcome == ends[-1]
    await stream.aclose()
    assert stream.outcome == ends[-1]


# --- stop_when() -----------------------------------------------------------------------------------------------------


def _contains_lo(text: str) -> bool:
    return "lo " in text


@pytest.mark.parametrize("together", [False, True], ids=["reads", "one read"])
@pytest.mark.parametrize("entered", [False, True])
async def test_every_kind_of_stream_stops_by_itself_with_the_event_that_made_it_true(
    server: FriendliServer, kind: Kind, together: bool, entered: bool
) -> None:
    pieces = [*kind.begun, *kind.rest]
    steps = [raw(kind.body)] if together else [*map(raw, pieces)]
    server.enqueue(*[script(*steps[: None if together else len(kind.begun)], stall())] * 2)
    ends = Ends()
    async with client_of(server.url, observers=[ends]) as client:
        stream = kind.open(client)
        if entered:
            await stream
        assert stream.stop_when(_contains_lo) is stream
        events = [event async for event in stream]
        assert len(events) == len(kind.begun)
        assert stream.outcome == "stopped"
        result = await stream.result()
        assert result.text == "Hello "
        assert kind.finish(result) == kind.unfinished
        relayed = kind.open(client).stop_when(_contains_lo)
        assert b"".join([data async for data in relayed.raw()]) == b"".join(kind.begun)
        assert await relayed.result() == result
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)] * 2
        await nothing_left(client, server)


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_whatever_reads_it_nothing_comes_behind_the_last_event(
    server: FriendliServer,
    client: AsyncFriendli,
    reads: Callable[[ChatStream], Awaitable[list[Any]]],
    newline: bytes,
) -> None:
    body = (b": hi\n\n" + delta("a") + delta("b") + delta("c")).replace(b"\n", newline)
    server.enqueue(script(raw(body), stall()))
    stream = ask(client).stop_when(lambda text: text.endswith("b"))
    got = await within(reads(stream))
    if reads is _raw:
        assert got == [body[: body.index(b'"c"')].rpartition(b"data")[0]]
    else:
        assert len(got) == (1 if reads is _result else 2)
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "ab"
    await nothing_left(client, server)


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\n\n"])
def test_no_cut_lets_bytes_from_behind_the_last_event_through(blank: bytes) -> None:
    body = b"".join(map(delta, "abcd")).replace(b"\n\n", blank)
    most = body.index(b"data", body.index(b'"b"'))
    for cut in range(1, len(body)):
        reader = EventReader(ChatCollector(), 1 << 20, 200, Headers(), [lambda event: event.text == "b"])
        heard = b""
        for piece in (body[:cut], body[cut:]):
            if not reader.is_last:
                reader.feed(piece)
                heard += piece[: len(piece) - reader.excess]
        assert reader.stopped
        assert [event.text for event in reader.ready] == ["a", "b"]
        assert heard == body[: len(heard)]
        assert most - len(blank) < len(heard) <= most


async def test_branches_all_get_the_last_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    branches = ask(client).stop_when(lambda text: "b" in text).tee(3)
    got = await within(asyncio.gather(*map(_iterate, branches)))
    assert [[event.text for event in events] for events in got] == [["a", "b"]] * 3


async def test_a_predicate_may_look_at_events(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), chunk(reasoning="hm"), chunk("b"), stall()))
    stream = ask(client).stop_when(event=lambda event: bool(event.reasoning))
    assert [event.reasoning async for event in stream] == ["", "hm"]
    assert (await stream.result()).reasoning == "hm"


async def test_several_predicates_add_up(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(*[script(*map(chunk, "abcd"), stall())] * 2)
    for first, second in (("b", "d"), ("d", "b")):
        stream = ask(client).stop_when(lambda text, end=first: end in text)
        stream.stop_when(event=lambda event, end=second: event.text == end)
        assert await read(stream) == "ab"


async def test_the_predicate_is_asked_once_for_each_growth_of_the_text(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    asked: list[str] = []
    halves = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half for half in (b"b\\ud83d", b"\\ude00")
    )
    server.enqueue(script(chunk("a"), chunk(reasoning="x"), raw(halves), finish(), done()))
    stream = ask(client).stop_when(asked.append)
    assert await read(stream)
    assert asked == ["a", "ab", "ab😀"]
    assert stream.outcome == "done"


async def test_a_stream_for_which_it_never_holds_ends_as_ever(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    server.enqueue(*[script(raw(kind.body))] * 2)
    plain, judged = kind.open(client), kind.open(client).stop_when(lambda _: False, event=None)
    events = [event async for event in plain]
    assert [event async for event in judged] == events
    assert judged.outcome == "done"
    assert await judged.result() == await plain.result()


async def test_an_end_of_the_apis_own_is_an_end_though_the_predicate_holds(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    kind = KINDS["messages"]
    server.enqueue(script(raw(kind.body)))
    stream = kind.open(client).stop_when(event=lambda event: type(event).__name__ == "MessageStop")
    assert (await stream.result()).text == "Hello there"
    assert stream.outcome == "done"


def failing_at(text: str, client: AsyncFriendli, server: FriendliServer) -> ChatStream:
    """A stream whose predicate raises when a text has come."""

    def fail(so_far: str) -> bool:
        if text in so_far:
            raise LookupError(text)
        return False

    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    return ask(client).stop_when(fail)


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("at", ["a", "b"], ids=["first read", "later read"])
async def test_what_a_predicate_raises_is_raised_to_the_reader_and_closes_the_stream(
    server: FriendliServer, client: AsyncFriendli, reads: Callable[[ChatStream], Awaitable[list[Any]]], at: str
) -> None:
    stream = failing_at(at, client, server)
    with pytest.raises(LookupError):
        await within(reads(stream))
    assert stream.outcome == "failed"
    with pytest.raises(StreamInterruptedError, match="LookupError"):
        await stream.result()
    await nothing_left(client, server)


@pytest.mark.parametrize("at", ["a", "b"], ids=["first read", "later read"])
async def test_a_stream_that_a_failing_predicate_has_cut_does_not_look_whole(
    server: FriendliServer, client: AsyncFriendli, at: str
) -> None:
    stream = failing_at(at, client, server)
    with pytest.raises(LookupError):
        await within(_iterate(stream))
    with pytest.raises(StreamInterruptedError, match="LookupError"):
        await within(anext(stream))
    assert [event async for event in stream] == [], "that was told once"


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("at", ["token", "first read", "later read"])
async def test_an_end_that_the_callers_own_code_raises_is_not_taken_for_the_streams(
    server: FriendliServer, reads: Callable[[ChatStream], Awaitable[list[Any]]], at: str
) -> None:
    async def token() -> str:
        if at == "token":
            raise StopAsyncIteration
        return TOKEN

    def ends(text: str) -> bool:
        if at == "first read" or "b" in text:
            raise StopAsyncIteration
        return False

    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    async with AsyncFriendli(token, server_url=server.url) as client:
        stream = ask(client).stop_when(ends)
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            await within(reads(stream))
        assert stream.outcome == "failed"
        await nothing_left(client, server)


async def test_a_failing_predicate_ends_every_branch(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    branches = ask(client).stop_when(lambda text: text.nope).tee(2)  # type: ignore[attr-defined]  # that is the test
    ends = await within(asyncio.gather(*map(_iterate, branches), return_exceptions=True))
    assert sorted(type(end).__name__ for end in ends) == ["AttributeError", "StreamInterruptedError"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([{}], "one function"),
        ([{"predicate": bool, "event": bool}], "one function"),
        ([{"predicate": "stop"}], "str"),
        ([{"event": 3}], "int"),
        ([{"predicate": read}], "plain function"),
    ],
)
async def test_what_is_no_predicate_is_refused(
    client: AsyncFriendli, arguments: list[dict[str, Any]], named: str
) -> None:
    stream = ask(client)
    with pytest.raises(TypeError, match=named):
        stream.stop_when(**arguments[0])
    assert await read(stream)


async def test_a_predicate_comes_before_the_first_event_is_taken(client: AsyncFriendli) -> None:
    async with ask(client) as stream:
        await anext(stream)
        with pytest.raises(RuntimeError, match="read from already"):
            stream.stop_when(bool)


async def test_dropping_a_stream_with_a_predicate_stops_the_model(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    gc.collect()
    gc.disable()
    try:
        async for _ in ask(client).stop_when(lambda text: "b" in text):
            break
        assert await server.requests[0].disconnected()
        await nothing_left(client, server)
    finally:
        gc.enable()
