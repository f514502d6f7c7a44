"""`stop()` and `stop_when()`: ending a stream deliberately, with a result."""

import asyncio
import gc
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import pytest
from support.clock import run_loop_iterations, wait_until
from support.sockets import (
    TOKEN,
    UNFRAMED_HEAD,
    assert_no_leaks,
    client_of,
    delta,
    open_stream,
    read,
    serve_bytes,
    slots_in_use,
    sse,
    with_timeout,
)
from support.streams import KINDS, Kind

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    ChatStream,
    FriendliError,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async._core.events.reader import EventReader
from friendli_async._core.net.exchange import AiohttpExchange
from friendli_async._core.observers import CallEnded, Observer
from friendli_async.chat.collector import ChatCollector
from friendli_async.replies import ReplyHead
from friendli_async.testing import FriendliServer, chunk, comment, done, finish, gate, raw, script, stall, usage

pytestmark = pytest.mark.compatibility


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


class EndRecorder(Observer):
    """Records how calls end."""

    def __init__(self) -> None:
        self.seen: list[CallEnded] = []

    def call_ended(self, event: CallEnded) -> None:
        self.seen.append(event)


# --- stop() ----------------------------------------------------------------------------------------------------------


async def test_stop_leaves_a_partial_result_for_every_stream_kind(server: FriendliServer, kind: Kind) -> None:
    server.enqueue(script(*map(raw, kind.first_events), stall()))
    ends = EndRecorder()
    async with client_of(server.url, observers=[ends]) as client:
        async with kind.open(client) as stream:
            for _ in kind.first_events:
                await with_timeout(anext(stream))
            await stream.stop()
            assert stream.outcome == "stopped"
            assert [event async for event in stream] == []
        result = await with_timeout(stream.result())
        assert result.text == "Hello "
        assert kind.finish_reason(result) == kind.incomplete_reason
        assert result.meta == stream.meta
        assert await stream.result() is result
        assert stream.outcome == "stopped"
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)]
        await assert_no_leaks(client, server)


async def test_stopped_stream_has_the_usage_received_so_far(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), usage(1, 2), chunk("b"), stall()), script(chunk("a"), stall()))
    with_usage, without_usage = open_stream(client), open_stream(client)
    for _ in range(3):
        await anext(with_usage)
    await anext(without_usage)
    for stream in (with_usage, without_usage):
        await stream.stop()
    assert with_usage.usage is not None
    assert (with_usage.usage.total_tokens, without_usage.usage) == (3, None)
    assert (await with_usage.result()).usage == with_usage.usage
    assert (await without_usage.result()).usage is None


async def test_stop_aborts_the_connection_without_suspending(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with open_stream(client) as stream:
        stopping = stream.stop()
        with pytest.raises(StopIteration):
            stopping.send(None)
        assert slots_in_use(client) == 0
    await server.wait_for_connections(0)


async def test_cancelled_read_of_a_stream_that_was_just_stopped_is_no_error(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await run_loop_iterations()
    await stream.stop()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert [event async for event in stream] == []
    assert (await stream.result()).text == "a"


async def _iterate(stream: AsyncIterable[Any]) -> list[Any]:
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


@pytest.mark.parametrize("arriving", [b"", sse({"error": {"message": "overloaded"}})], ids=["nothing", "an error"])
@pytest.mark.parametrize("reads", READS.values(), ids=READS)
async def test_stop_ends_a_waiting_reader_without_an_error(
    server: FriendliServer,
    client: AsyncFriendli,
    reads: Callable[[ChatStream], Awaitable[list[Any]]],
    arriving: bytes,
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)
    reading = asyncio.ensure_future(reads(stream))
    await server.wait_for_requests(1)
    while stream._open is None:
        await run_loop_iterations(1)
    await run_loop_iterations(5)
    exchange = stream._open.exchange
    assert isinstance(exchange, AiohttpExchange)
    exchange.content.feed_data(arriving)  # in the turn of the loop in which it is stopped
    await stream.stop()
    assert len(await with_timeout(reading)) == 1
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "a"
    await assert_no_leaks(client, server)


async def test_unread_events_appear_only_in_the_result(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    stream = open_stream(client)
    assert (await anext(stream)).text == "a"
    await stream.stop()
    assert await read(stream) == ""
    assert (await stream.result()).text == "abc"


async def test_stream_stopped_before_use_sends_nothing(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = open_stream(client)
    await stream.stop()
    assert stream.outcome == "stopped"
    assert await read(stream) == ""
    for use in (stream.result(), stream.__aenter__(), stream):
        with pytest.raises(StreamInterruptedError, match="stopped before it was opened") as raised:
            await use
        assert raised.value.sent is False
    with pytest.raises(RuntimeError, match="never opened"):
        _ = stream.meta
    assert server.requests == []


@pytest.mark.parametrize("reads", [_iterate, _text, _raw])
async def test_stop_while_opening_ends_the_reader(
    server: FriendliServer, reads: Callable[[ChatStream], Awaitable[list[Any]]]
) -> None:
    server.enqueue(script(comment(), stall()))
    ends = EndRecorder()
    async with client_of(server.url, observers=[ends]) as client:
        stream = open_stream(client)
        reading = asyncio.ensure_future(reads(stream))
        await server.wait_for_requests(1)
        await stream.stop()
        assert await with_timeout(reading) == []
        assert stream.outcome == "stopped"
        with pytest.raises(StreamInterruptedError):
            await stream.result()
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)]
        await assert_no_leaks(client, server)


async def test_stop_while_entering_raises(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(stall())
    stream = open_stream(client)
    entering = asyncio.ensure_future(stream.__aenter__())
    await server.wait_for_requests(1)
    await stream.stop()
    with pytest.raises(StreamInterruptedError, match="stopped"):
        await with_timeout(entering)
    assert stream.outcome == "stopped"


@pytest.mark.parametrize("ends", [["done"], ["cancelled"], ["stopped", "stopped"]])
async def test_stop_does_not_change_the_outcome_of_an_ended_stream(
    server: FriendliServer, client: AsyncFriendli, ends: list[str]
) -> None:
    server.enqueue(script(chunk("a"), finish(), done()))
    async with open_stream(client) as stream:
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
async def test_stop_when_ends_every_stream_kind_with_the_matching_event(
    server: FriendliServer, kind: Kind, together: bool, entered: bool
) -> None:
    pieces = [*kind.first_events, *kind.remaining_events]
    steps = [raw(kind.body)] if together else [*map(raw, pieces)]
    server.enqueue(*[script(*steps[: None if together else len(kind.first_events)], stall())] * 2)
    ends = EndRecorder()
    async with client_of(server.url, observers=[ends]) as client:
        stream = kind.open(client)
        if entered:
            await stream
        assert stream.stop_when(_contains_lo) is stream
        events = [event async for event in stream]
        assert len(events) == len(kind.first_events)
        assert stream.outcome == "stopped"
        result = await stream.result()
        assert result.text == "Hello "
        assert kind.finish_reason(result) == kind.incomplete_reason
        relayed = kind.open(client).stop_when(_contains_lo)
        assert b"".join([data async for data in relayed.raw()]) == b"".join(kind.first_events)
        assert await relayed.result() == result
        assert [(end.outcome, end.error) for end in ends.seen] == [("stopped", None)] * 2
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_no_reader_receives_data_after_the_matching_event(
    server: FriendliServer,
    client: AsyncFriendli,
    reads: Callable[[ChatStream], Awaitable[list[Any]]],
    newline: bytes,
) -> None:
    body = (b": hi\n\n" + delta("a") + delta("b") + delta("c")).replace(b"\n", newline)
    server.enqueue(script(raw(body), stall()))
    stream = open_stream(client).stop_when(lambda text: text.endswith("b"))
    received = await with_timeout(reads(stream))
    if reads is _raw:
        assert received == [body[: body.index(b'"c"')].rpartition(b"data")[0]]
    else:
        assert len(received) == (1 if reads is _result else 2)
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "ab"
    await assert_no_leaks(client, server)


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\n\n"])
def test_no_split_passes_bytes_after_the_matching_event(blank: bytes) -> None:
    body = b"".join(map(delta, "abcd")).replace(b"\n\n", blank)
    limit = body.index(b"data", body.index(b'"b"'))
    for cut in range(1, len(body)):
        reader = EventReader(ChatCollector(), 1 << 20, ReplyHead(200), [lambda event: event.text == "b"])
        passed = b""
        for piece in (body[:cut], body[cut:]):
            if not reader.has_ended:
                reader.feed(piece)
                passed += piece[: len(piece) - reader.excess]
        assert reader.stopped
        assert [event.text for event in reader.ready] == ["a", "b"]
        assert passed == body[: len(passed)]
        assert limit - len(blank) < len(passed) <= limit


@pytest.mark.parametrize("together", [False, True], ids=["later read", "first read"])
async def test_connection_stays_open_until_the_matching_event_and_is_closed_when_it_has_arrived(
    server: FriendliServer, client: AsyncFriendli, together: bool
) -> None:
    resume = asyncio.Event()
    first, second = raw(delta("a")), raw(delta("b") + delta("c"))
    server.enqueue(
        script(raw(delta("b") + delta("c")), stall()) if together else script(first, gate(resume), second, stall())
    )
    async with open_stream(client).stop_when(lambda text: "b" in text) as stream:
        if not together:
            await anext(stream)
            assert (slots_in_use(client), client.gauges().open_streams) == (1, 1)
            resume.set()
        assert (await anext(stream)).text == "b"
        assert slots_in_use(client) == 0


async def test_all_tee_branches_receive_the_matching_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    branches = open_stream(client).stop_when(lambda text: "b" in text).tee(3)
    received = await with_timeout(asyncio.gather(*map(_iterate, branches)))
    assert [[event.text for event in events] for events in received] == [["a", "b"]] * 3


async def test_predicate_may_inspect_events(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), chunk(reasoning="hm"), chunk("b"), stall()))
    stream = open_stream(client).stop_when(event=lambda event: bool(event.reasoning))
    assert [event.reasoning async for event in stream] == ["", "hm"]
    assert (await stream.result()).reasoning == "hm"


async def test_any_of_several_predicates_stops_the_stream(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(*[script(*map(chunk, "abcd"), stall())] * 2)
    for first, second in (("b", "d"), ("d", "b")):
        stream = open_stream(client).stop_when(lambda text, end=first: end in text)  # type: ignore[misc]  # a bound default
        stream.stop_when(event=lambda event, end=second: event.text == end)  # type: ignore[misc]  # a bound default
        assert await read(stream) == "ab"


async def test_error_beside_the_content_that_stops_the_stream_is_ignored(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    both = sse({"choices": [{"index": 0, "delta": {"content": "b"}}], "error": {"message": "no"}})
    server.enqueue(script(chunk("a"), raw(both)))
    stream = open_stream(client).stop_when(lambda text: "b" in text)
    assert await read(stream) == "ab"
    assert stream.outcome == "stopped"


async def test_text_predicate_is_called_once_per_change_of_the_text(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    texts: list[str] = []
    halves = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half for half in (b"b\\ud83d", b"\\ude00")
    )
    server.enqueue(script(chunk("a"), chunk(reasoning="x"), raw(halves), finish(), done()))
    stream = open_stream(client).stop_when(texts.append)
    assert await read(stream)
    assert texts == ["a", "ab", "ab😀"]
    assert stream.outcome == "done"


async def test_predicate_that_never_matches_has_no_effect(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    server.enqueue(*[script(raw(kind.body))] * 2)
    plain, with_predicate = kind.open(client), kind.open(client).stop_when(lambda _: False, event=None)
    seen: list[object] = []
    with_predicate.stop_when(event=seen.append)
    events = [event async for event in plain]
    assert [event async for event in with_predicate] == events
    assert seen == events  # also the API's last one, which may be the only one with the text
    assert with_predicate.outcome == "done"
    assert await with_predicate.result() == await plain.result()


async def test_predicate_that_matches_the_final_event_leaves_the_outcome_done(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    kind = KINDS["messages"]
    server.enqueue(script(raw(kind.body)))
    stream = kind.open(client).stop_when(event=lambda event: type(event).__name__ == "MessageStop")
    assert (await stream.result()).text == "Hello there"
    assert stream.outcome == "done"


@pytest.mark.parametrize("writes", ["one", "one each"])
async def test_result_of_a_stopped_stream_has_what_arrived_but_was_not_read(
    server: FriendliServer, client: AsyncFriendli, writes: str
) -> None:
    counts = {"prompt_tokens": 1, "completion_tokens": 2}
    events = [delta("a"), delta("b"), sse({"choices": [], "usage": counts})]
    server.enqueue(script(*map(raw, [b"".join(events)] if writes == "one" else events), stall()))
    stream = open_stream(client)
    assert (await anext(stream)).text == "a"
    assert stream._open is not None
    exchange = stream._open.exchange
    assert isinstance(exchange, AiohttpExchange)
    await wait_until(lambda: exchange.content.total_bytes == len(b"".join(events)))
    await stream.stop()
    assert await read(stream) == ""
    result = await stream.result()
    assert (stream.outcome, result.text) == ("stopped", "ab")
    assert result.usage is not None
    assert result.usage.completion_tokens == 2


def stream_failing_at(
    text: str, client: AsyncFriendli, server: FriendliServer, error: Exception | None = None
) -> ChatStream:
    """Returns a stream whose predicate raises once `text` has been received."""

    def fail(so_far: str) -> bool:
        if text in so_far:
            raise error or LookupError(text)
        return False

    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    return open_stream(client).stop_when(fail)


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("at", ["a", "b"], ids=["first read", "later read"])
async def test_exception_in_a_predicate_reaches_the_reader_and_closes_the_stream(
    server: FriendliServer, client: AsyncFriendli, reads: Callable[[ChatStream], Awaitable[list[Any]]], at: str
) -> None:
    stream = stream_failing_at(at, client, server)
    with pytest.raises(LookupError):
        await with_timeout(reads(stream))
    assert stream.outcome == "failed"
    with pytest.raises(StreamInterruptedError, match="LookupError"):
        await stream.result()
    await assert_no_leaks(client, server)


@pytest.mark.parametrize("at", ["a", "b"], ids=["first read", "later read"])
@pytest.mark.parametrize(
    "error",
    [ResponseDecodeError("not wanted"), APIConnectionError("no moderation"), StreamInterruptedError("of another")],
    ids=lambda error: type(error).__name__,
)
async def test_library_error_in_a_predicate_is_not_taken_for_one_of_the_stream(
    server: FriendliServer, client: AsyncFriendli, error: FriendliError, at: str
) -> None:
    stream = stream_failing_at(at, client, server, error)
    with pytest.raises(type(error)) as caught:
        await with_timeout(_iterate(stream))
    assert caught.value is error
    assert stream.outcome == "failed"
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match=type(error).__name__):
            await with_timeout(anext(stream))


@pytest.mark.parametrize("reads", READS.values(), ids=READS)
@pytest.mark.parametrize("at", ["token", "first read", "later read"])
async def test_stop_async_iteration_from_user_code_is_not_taken_for_the_stream_end(
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
        stream = open_stream(client).stop_when(ends)
        with pytest.raises(RuntimeError, match="StopAsyncIteration"):
            await with_timeout(reads(stream))
        assert stream.outcome == "failed"
        await assert_no_leaks(client, server)


@pytest.mark.parametrize("at", ["a", "ab"], ids=["first read", "later read"])
async def test_failing_predicate_ends_every_tee_branch(server: FriendliServer, client: AsyncFriendli, at: str) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    stream = open_stream(client).stop_when(lambda text: text == at and text.nope)  # type: ignore[attr-defined]  # the error under test
    branches = stream.tee(2)
    ends = await with_timeout(asyncio.gather(*map(_iterate, branches), return_exceptions=True))
    assert sorted(type(end).__name__ for end in ends) == ["AttributeError", "StreamInterruptedError"]
    assert (stream.outcome, slots_in_use(client)) == ("failed", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([{}], "one function"),
        ([{"predicate": bool, "event": bool}], "one function"),
        ([{"predicate": "stop"}], "str"),
        ([{"event": 3}], "int"),
        ([{"predicate": read}], "plain function"),
    ],
)
async def test_invalid_predicate_is_rejected(
    client: AsyncFriendli, arguments: list[dict[str, Any]], message: str
) -> None:
    stream = open_stream(client)
    with pytest.raises(TypeError, match=message):
        stream.stop_when(**arguments[0])
    assert await read(stream)


async def test_stop_when_is_rejected_once_an_event_was_read(client: AsyncFriendli) -> None:
    async with open_stream(client) as stream:
        await anext(stream)
        with pytest.raises(RuntimeError, match="already been read from"):
            stream.stop_when(bool)


async def test_dropping_a_stream_with_a_predicate_cancels_the_request(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    gc.collect()
    gc.disable()
    try:
        async for _ in open_stream(client).stop_when(lambda text: "b" in text):
            break
        assert await server.requests[0].disconnected()
        await assert_no_leaks(client, server)
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["predicate", "event"])
async def test_dropped_stream_that_its_stop_condition_refers_to_is_closed_when_it_is_collected(
    server: FriendliServer, client: AsyncFriendli, how: str
) -> None:
    async def read_one() -> None:
        stream = open_stream(client)
        async for _ in stream.stop_when(**{how: lambda _: stream.timing.total > 3600}):
            break

    server.enqueue(script(chunk("a"), stall()))
    gc.disable()
    try:
        await read_one()
        assert client.gauges().open_streams == 1
    finally:
        gc.enable()
    gc.collect()
    assert await server.requests[0].disconnected()
    await assert_no_leaks(client, server)


@pytest.mark.parametrize("stops", [False, True], ids=["plain", "stop_when"])
async def test_body_that_ends_with_its_first_event_is_read_alike_with_a_stop_condition(stops: bool) -> None:
    async with serve_bytes(UNFRAMED_HEAD, delta("a").removesuffix(b"\n")) as server, client_of(server.url) as client:
        stream = open_stream(client)
        if stops:
            stream.stop_when(lambda text: "b" in text)
        assert await with_timeout(anext(stream)) is not None
        with pytest.raises(StreamInterruptedError, match="the stream ended before it was complete") as caught:
            await with_timeout(anext(stream))
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
