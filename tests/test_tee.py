"""`tee()`: one stream, several independent branches."""

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import AsyncIterable, Iterator
from typing import Any

import pytest
from support.clock import Clock, begin_tasks_eagerly, run_loop_iterations, wait_until
from support.sockets import (
    DONE,
    STREAM_HEAD,
    assert_no_leaks,
    chunked,
    client_of,
    delta,
    open_stream,
    serve_bytes,
    slots_in_use,
    with_timeout,
)
from support.streams import KINDS, Kind

from friendli_async import (
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    AuthenticationError,
    ChatChunk,
    ChatStream,
    FriendliError,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async.streams import Branch, BranchOverrunError, Slow
from friendli_async.testing import FriendliServer, chunk, cut, done, event, gate, raw, script, stall, status

pytestmark = pytest.mark.compatibility

FINISH = delta(finish="stop")
SLOW = pytest.mark.parametrize("slow", ["wait", "drop", "fail"])


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


@pytest.fixture
def gc_disabled() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def events_of(branch: AsyncIterable[Any]) -> list[Any]:
    async with asyncio.timeout(30):
        return [event async for event in branch]


async def texts_into(seen: list[str], branch: AsyncIterable[ChatChunk]) -> None:
    """Appends the text of each event, so that what precedes an error is kept."""
    async with asyncio.timeout(30):
        async for event in branch:
            seen.append(event.text)  # noqa: PERF401  # a comprehension would lose what precedes an error


async def text_of(branch: AsyncIterable[ChatChunk]) -> str:
    return "".join([event.text for event in await events_of(branch)])


def text_steps(*texts: str) -> list[Any]:
    return [*(raw(delta(text)) for text in texts), raw(FINISH + DONE)]


# --- reading ---------------------------------------------------------------------------------------------------------


async def test_every_kind_of_stream_yields_all_events_to_each_branch(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    pieces = [raw(piece) for piece in (*kind.first_events, *kind.remaining_events)]
    server.enqueue(script(*pieces), script(*pieces))
    plain, teed = kind.open(client), kind.open(client)
    whole = await events_of(plain)
    assert await with_timeout(asyncio.gather(*map(events_of, teed.tee(3)))) == [whole] * 3
    assert teed.outcome == "done"
    assert await teed.result() == await plain.result()
    assert teed.usage == plain.usage
    assert len(server.requests) == 2
    await assert_no_leaks(client, server, connections=len({request.connection for request in server.requests}))


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("together", [False, True], ids=["many reads", "one read"])
@SLOW
async def test_any_number_of_branches_receives_all_events(
    server: FriendliServer, client: AsyncFriendli, n: int, together: bool, slow: Slow
) -> None:
    pieces = [delta(str(number)) for number in range(600)]
    server.enqueue(script(*([raw(b"".join(pieces))] if together else map(raw, pieces[:100])), *text_steps()))
    branches = open_stream(client).tee(n, buffer=16, slow=slow)
    got = await with_timeout(asyncio.gather(*map(text_of, branches)))
    assert got == ["".join(str(number) for number in range(600 if together else 100))] * n
    assert {branch.dropped for branch in branches} == {0}


async def test_branch_text_joins_split_surrogate_pairs(server: FriendliServer, client: AsyncFriendli) -> None:
    halves = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half for half in (b"a\\ud83d", b"\\ude00b")
    )
    server.enqueue(script(raw(halves), *text_steps("c")))
    first, second = open_stream(client).tee(2)
    got = await with_timeout(asyncio.gather(events_of(first.text()), text_of(second)))
    assert "".join(got[0]) == "a😀bc"


async def test_branch_text_of_unsegmented_transcription(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(b'data: {"type": "transcript.text.done", "text": "Hi"}\n\n'), done()))
    first, second = client.container.audio.stream(file=b"RIFF").tee(2)
    assert await with_timeout(asyncio.gather(*(events_of(each.text()) for each in (first, second)))) == [["Hi"]] * 2


async def test_branches_can_be_read_sequentially_within_buffer(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*text_steps(*"abcdef")))
    first, second = open_stream(client).tee(2, buffer=20)
    assert await text_of(first) == await text_of(second) == "abcdef"


async def test_open_stream_is_teed_from_first_event(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(*text_steps("a", "b")))
    async with open_stream(client) as stream:
        assert await with_timeout(asyncio.gather(*map(text_of, stream.tee(2)))) == ["ab", "ab"]
    assert stream.outcome == "done"


async def test_teed_stream_cannot_be_read_another_way(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    (branch,) = stream.tee(1)
    for read in (stream.raw, lambda: stream.tee(1)):
        with pytest.raises(RuntimeError, match="tee"):
            read()
    for awaitable in (anext(stream), stream.result()):
        with pytest.raises(RuntimeError, match="tee"):
            await awaitable
    assert await text_of(branch)
    assert (await stream.result()).text
    started = open_stream(client)
    await anext(started)
    with pytest.raises(RuntimeError, match="have already been read"):
        started.tee(2)
    await started.aclose()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n: "),
        ({"n": True}, "n: "),
        ({"n": 1.5}, "n: "),
        ({"n": 1, "buffer": 0}, "buffer: "),
        ({"n": 1, "buffer": None}, "buffer: "),
        ({"n": 1, "slow": "block"}, "slow: "),
    ],
)
async def test_invalid_arguments_are_rejected_and_stream_stays_usable(
    client: AsyncFriendli, arguments: dict[str, Any], message: str
) -> None:
    stream = open_stream(client)
    with pytest.raises(ValueError, match=f"^{message}"):
        stream.tee(**arguments)
    assert [event async for event in stream]


async def test_second_task_cannot_read_branch_concurrently(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(stall()))
    (branch,) = open_stream(client).tee(1)
    waiting = asyncio.ensure_future(branch.__anext__())
    await run_loop_iterations(3)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(branch)
    await branch.aclose()
    with pytest.raises(StreamInterruptedError):
        await with_timeout(waiting)


async def test_branch_that_was_read_while_another_task_opens_its_stream_can_be_read_after_that(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    opened = asyncio.Event()
    server.enqueue(script(gate(opened), *text_steps("a", "b")))
    stream = open_stream(client)
    (branch,) = stream.tee(1)
    opening = asyncio.ensure_future(stream.__aenter__())
    await run_loop_iterations(3)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(branch)
    opened.set()
    await with_timeout(opening)
    assert await text_of(branch) == "ab"
    assert stream.outcome == "done"


# --- a slow branch ---------------------------------------------------------------------------------------------------


async def start_tee(server: FriendliServer, client: AsyncFriendli, count: int, slow: Slow, buffer: int = 4) -> Any:
    """Returns the stream, the task and the texts of a fast branch, and a slow branch that has read nothing."""
    server.enqueue(script(*text_steps(*(str(number % 10) for number in range(count)))))
    stream = open_stream(client)
    fast, lagging = stream.tee(2, buffer=buffer, slow=slow)
    seen: list[str] = []
    return stream, asyncio.ensure_future(texts_into(seen, fast)), seen, lagging


async def test_wait_applies_backpressure_and_loses_nothing(server: FriendliServer, client: AsyncFriendli) -> None:
    _, reading, seen, lagging = await start_tee(server, client, 12, "wait")
    await wait_until(lambda: len(seen) == 4)
    await run_loop_iterations(50)
    assert len(seen) == 4
    assert (await anext(lagging)).text == "0"
    await wait_until(lambda: len(seen) == 5)
    await run_loop_iterations(20)
    assert len(seen) == 5
    assert await text_of(lagging) == "12345678901"
    await with_timeout(reading)
    assert "".join(seen) == "012345678901"
    assert lagging.dropped == 0


async def test_closed_or_dropped_slow_branch_does_not_block_others(
    server: FriendliServer, client: AsyncFriendli, gc_disabled: None
) -> None:
    for close in (True, False):
        _, reading, seen, lagging = await start_tee(server, client, 12, "wait")
        await wait_until(lambda seen=seen: len(seen) == 4)  # type: ignore[misc]  # a bound default
        if close:
            await lagging.aclose()
        del lagging
        await with_timeout(reading)
        assert "".join(seen) == "012345678901"


async def test_drop_discards_oldest_events_and_counts_them(server: FriendliServer, client: AsyncFriendli) -> None:
    stream, reading, seen, lagging = await start_tee(server, client, 12, "drop")
    await with_timeout(reading)
    assert "".join(seen) == "012345678901"
    assert await text_of(lagging) == "901"  # and the event with the finish reason
    assert lagging.dropped == 9
    assert (await stream.result()).text == "012345678901"


async def test_fail_raises_in_slow_branch_after_buffered_events(server: FriendliServer, client: AsyncFriendli) -> None:
    stream, reading, seen, lagging = await start_tee(server, client, 12, "fail")
    await with_timeout(reading)
    assert "".join(seen) == "012345678901"
    late: list[str] = []
    with pytest.raises(BranchOverrunError, match="4 events") as caught:
        await texts_into(late, lagging)
    assert late == ["0", "1", "2", "3"]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), BranchOverrunError)
    assert caught.value.meta is not None
    assert caught.value.meta.status == 200
    assert caught.value.partial is not None
    assert caught.value.partial.text == "012345678901"
    with pytest.raises(BranchOverrunError):
        await events_of(lagging)
    assert stream.outcome == "done"


@pytest.mark.parametrize("block", [False, True], ids=["bare", "async with"])
async def test_second_loop_over_a_branch_whose_stop_condition_failed_is_no_empty_answer(
    server: FriendliServer, client: AsyncFriendli, block: bool
) -> None:
    def fail(_: str) -> bool:
        raise ZeroDivisionError

    async def loop(branch: Branch[Any]) -> None:
        async with branch if block else contextlib.nullcontext():
            await events_of(branch)

    server.enqueue(script(chunk("a"), stall()))
    first, second = open_stream(client).stop_when(fail).tee(2)
    with pytest.raises(ZeroDivisionError):
        await loop(first)
    for branch in (first, second) * 2:
        with pytest.raises(StreamInterruptedError, match="ZeroDivisionError"):
            await loop(branch)
    await first.aclose()
    with pytest.raises(StreamInterruptedError):
        await loop(first)


@pytest.mark.parametrize("is_read", [False, True], ids=["not read", "read"])
@pytest.mark.parametrize("ends", [["aclose"], ["block"], ["block", "aclose"]], ids="-".join)
@pytest.mark.parametrize(
    ("end", "buffer", "error"),
    [(done(), 2, BranchOverrunError), (cut(), 50, StreamInterruptedError)],
    ids=["overrun", "cut"],
)
async def test_closed_branch_that_had_failed_raises_that_in_another_loop(
    server: FriendliServer,
    client: AsyncFriendli,
    end: Any,
    buffer: int,
    error: type[FriendliError],
    ends: list[str],
    is_read: bool,
) -> None:
    server.enqueue(script(*map(chunk, "abcdef"), end))
    fast, lagging = open_stream(client).tee(2, buffer=buffer, slow="fail")
    with contextlib.suppress(StreamInterruptedError):
        await events_of(fast)
    if is_read:
        with pytest.raises(error):
            await events_of(lagging)
    for each in ends:
        if each == "block":
            async with lagging:
                pass
        else:
            await lagging.aclose()
        with pytest.raises(error):
            await events_of(lagging)
        with pytest.raises(error):
            async with lagging:
                await events_of(lagging.text())


@pytest.mark.parametrize("close", [True, False], ids=["aclose", "block"])
async def test_branch_that_was_closed_before_its_stream_failed_just_ends(
    server: FriendliServer, client: AsyncFriendli, close: bool
) -> None:
    server.enqueue(script(*map(chunk, "abc"), cut()))
    first, second = open_stream(client).tee(2)
    assert (await anext(second)).text == "a"
    if close:
        await second.aclose()
    else:
        async with second:
            pass
    with pytest.raises(StreamInterruptedError):
        await events_of(first)
    assert await events_of(second) == []


async def test_branch_that_lagged_too_far_behind_an_open_stream_raises_that(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*map(chunk, "abc"), stall()))
    fast, lagging = open_stream(client).tee(2, buffer=1, slow="fail")
    for _ in range(3):
        await with_timeout(anext(fast))
    assert (await anext(lagging)).text == "a"
    for _ in range(2):
        with pytest.raises(BranchOverrunError):
            await anext(lagging)


async def test_stream_does_not_stay_open_for_a_branch_that_has_failed(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*[chunk("a")] * 9, stall()))
    stream = open_stream(client)
    reader, _lagging = stream.tee(2, buffer=4, slow="fail")
    for _ in range(9):
        await with_timeout(anext(reader))
    await reader.aclose()
    assert stream.outcome == "cancelled"


@pytest.mark.parametrize("slow", ["drop", "fail"])
async def test_branch_that_yields_to_loop_keeps_up_with_burst(
    server: FriendliServer, client: AsyncFriendli, slow: Slow
) -> None:
    server.enqueue(script(raw(b"".join([delta("a")] * 500)), *text_steps()))
    fast, second = open_stream(client).tee(2, buffer=4, slow=slow)

    async def count_events() -> int:
        count = 0
        async for _ in second:
            await asyncio.sleep(0)
            count += 1
        return count

    read, count = await with_timeout(asyncio.gather(text_of(fast), count_events()))
    assert (read, count) == ("a" * 500, 501)


async def test_timeout_is_raised_in_blocked_branches_after_all_that_was_read(
    server: FriendliServer, clock: Clock
) -> None:
    server.enqueue(script(raw(delta("a") * 8), stall()))
    async with client_of(server.url, timeout=Timeouts(total=5)) as client:
        fast, lagging = open_stream(client).tee(2, buffer=2)
        seen: list[str] = []
        reading = asyncio.ensure_future(texts_into(seen, fast))
        await wait_until(lambda: len(seen) == 2)
        await run_loop_iterations(30)
        clock.advance(6)
        with pytest.raises(APITimeoutError) as caught:
            await with_timeout(reading)
        assert caught.value.limit == "total"
        late: list[str] = []
        with pytest.raises(APITimeoutError):
            await texts_into(late, lagging)
        assert seen == late == ["a"] * 8
        await assert_no_leaks(client, server)


# --- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "outcome"),
    [
        ([cut()], StreamInterruptedError, "truncated"),
        ([event({"error": "m"}), stall()], APIStatusError, "failed"),
        ([raw(b"data: {nope\n\n"), stall()], FriendliError, "failed"),
    ],
    ids=["cut", "error", "not JSON"],
)
@SLOW
async def test_each_branch_raises_the_error_after_its_last_event(
    server: FriendliServer, client: AsyncFriendli, bad: list[Any], error: type[FriendliError], outcome: str, slow: Slow
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), *bad))
    stream = open_stream(client)
    branches = stream.tee(3, slow=slow)
    seen: list[list[str]] = [[], [], []]
    results = await with_timeout(
        asyncio.gather(
            *(texts_into(texts, branch) for texts, branch in zip(seen, branches, strict=True)), return_exceptions=True
        )
    )
    assert seen == [["a", "b"]] * 3
    assert stream.outcome == outcome
    assert len({id(result) for result in results}) == 3
    for result in results:
        assert isinstance(result, error)
        assert result.partial is not None
        assert result.partial.text == "ab"
        assert result.meta == stream.meta
    for branch in branches:
        with pytest.raises(error):  # another loop must not look like an empty answer
            await events_of(branch)
    with pytest.raises(error):
        await stream.result()
    await assert_no_leaks(client, server)


async def test_open_error_is_raised_in_every_branch(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(401))
    branches = open_stream(client).tee(3)
    results = await with_timeout(asyncio.gather(*map(events_of, branches), return_exceptions=True))
    assert [type(result) for result in results] == [AuthenticationError] * 3
    assert len(server.requests) == 1


async def test_token_callable_exception_is_raised_in_one_branch_and_ends_the_rest(server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no vault")

    async with client_of(server.url) as client:
        stream = client.with_options(token=token).serverless.chat.stream(model="m", messages=[])
        results = await with_timeout(asyncio.gather(*map(events_of, stream.tee(2)), return_exceptions=True))
    assert sorted(type(result).__name__ for result in results) == ["LookupError", "StreamInterruptedError"]
    assert "LookupError" in str(results)


async def test_token_callable_exception_is_raised_with_eager_tasks(server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no vault")

    begin_tasks_eagerly()
    async with client_of(server.url) as client:
        [branch] = client.with_options(token=token).serverless.chat.stream(model="m", messages=[]).tee(1)
        with pytest.raises(LookupError, match="no vault"):
            await with_timeout(events_of(branch))


@pytest.mark.parametrize("dropped", ["before", "after"])
async def test_token_callable_exception_is_not_kept_for_dropped_branches(server: FriendliServer, dropped: str) -> None:
    vault = asyncio.Event()

    async def token() -> str:
        await vault.wait()
        raise LookupError("no vault")

    async with client_of(server.url) as client:
        stream = client.with_options(token=token).serverless.chat.stream(model="m", messages=[])
        gone = weakref.ref(stream)
        branches = list(stream.tee(2))
        del stream
        reader = asyncio.create_task(events_of(branches[0]))
        await run_loop_iterations()
        if dropped == "before":
            branches.clear()
        gc.disable()
        try:
            vault.set()
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            del reader
            await run_loop_iterations()
            branches.clear()
            assert gone() is None
        finally:
            gc.enable()


async def test_stopping_stream_ends_every_branch_and_discards_buffers(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    stream = open_stream(client)
    guard, waiting, lagging = stream.tee(3)
    seen: list[str] = []
    reading = asyncio.ensure_future(texts_into(seen, waiting))
    assert [(await anext(guard)).text, (await anext(guard)).text] == ["a", "b"]
    await wait_until(lambda: len(seen) == 2)
    await run_loop_iterations(5)
    await stream.stop()
    await with_timeout(reading)
    assert [await events_of(guard), await events_of(lagging)] == [[], []]
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "ab"
    await assert_no_leaks(client, server)


async def test_closing_stream_raises_in_every_branch(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with open_stream(client) as stream:
        first, second, idle = stream.tee(3)
        await anext(first)
        waiting = [asyncio.ensure_future(texts_into([], branch)) for branch in (first, second)]
        await run_loop_iterations(10)
    for task in waiting:
        with pytest.raises(StreamInterruptedError):
            await with_timeout(task)
    for branch in (first, second, idle, idle):
        with pytest.raises(StreamInterruptedError):
            await anext(branch)
    assert stream.outcome == "cancelled"
    await assert_no_leaks(client, server)


async def test_closing_client_raises_in_every_branch(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url) as client:
        branches = open_stream(client).tee(2)
        tasks = [asyncio.ensure_future(events_of(branch)) for branch in branches]
        await server.wait_for_requests(1)
        await run_loop_iterations(20)
    results = await with_timeout(asyncio.gather(*tasks, return_exceptions=True))
    assert [isinstance(result, FriendliError) for result in results] == [True, True]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_stream_is_cancelled_once_every_branch_is_closed(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    stream = open_stream(client)
    first, second = stream.tee(2)
    async with first:
        assert (await anext(first)).text == "a"
    assert await events_of(first) == []
    assert [(await anext(second)).text, (await anext(second)).text] == ["a", "b"]
    at_first = stream.outcome
    await second.aclose()
    assert (at_first, stream.outcome) == ("open", "cancelled")
    assert slots_in_use(client) == 0
    await assert_no_leaks(client, server)


@pytest.mark.parametrize("reader", [0, 1], ids=["reading branch", "waiting branch"])
@pytest.mark.parametrize("how", ["cancelled", "closed"])
@pytest.mark.parametrize("compressed", [False, True])
async def test_another_branch_takes_over_reading(reader: int, how: str, compressed: bool) -> None:
    go = asyncio.Event()
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") if compressed else STREAM_HEAD
    encode = _compress if compressed else list
    first, rest = encode([delta("a"), delta("b") + FINISH + DONE])
    async with serve_bytes(head + chunked(first), hang=True) as server, client_of(server.url) as client:
        server._talk = _send_rest_after(go, head + chunked(first), chunked(rest))
        stream = open_stream(client)
        branches = stream.tee(2)
        for branch in branches:
            assert (await with_timeout(anext(branch))).text == "a"
        tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
        await run_loop_iterations(10)
        if how == "cancelled":
            tasks[reader].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[reader]
            with pytest.raises(StreamInterruptedError, match="cancelled") as caught:
                await anext(branches[reader])
            assert caught.value.partial is not None
            assert caught.value.partial.text == "a"
        else:
            await branches[reader].aclose()
            with pytest.raises(StreamInterruptedError, match="closed"):
                await with_timeout(tasks[reader])
            assert await events_of(branches[reader]) == []
        at_first = stream.outcome
        go.set()
        assert await with_timeout(tasks[1 - reader]) == "b"
        assert (at_first, stream.outcome) == ("open", "done")


def _compress(pieces: list[bytes]) -> list[bytes]:
    import zlib

    compressor = zlib.compressobj(wbits=31)
    compressed = [compressor.compress(piece) + compressor.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*compressed[:-1], compressed[-1] + compressor.flush()]


def _send_rest_after(go: asyncio.Event, first: bytes, rest: bytes) -> Any:
    async def talk(conversation: Any) -> None:
        await conversation.request()
        await conversation.send(first)
        await go.wait()
        await conversation.send(rest)
        await conversation.wait_disconnected()

    return talk


async def test_cancelling_a_reader_during_open_keeps_the_others(server: FriendliServer, client: AsyncFriendli) -> None:
    go = asyncio.Event()
    server.enqueue(script(gate(go), *text_steps("a")))
    branches = open_stream(client).tee(2)
    tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
    await server.wait_for_requests(1)
    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    go.set()
    assert await with_timeout(tasks[1]) == "a"
    assert len(server.requests) == 1


def test_opening_that_ends_with_its_loop_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    async def token() -> str:
        return str(await asyncio.get_running_loop().create_future())

    async def main() -> asyncio.Task[Any]:
        branch, _other = open_stream(client_of("http://nowhere").with_options(token=token)).tee(2)
        reader = asyncio.create_task(events_of(branch))
        await run_loop_iterations()
        return reader

    assert asyncio.run(main()).cancelled()
    assert caplog.records == []


@pytest.mark.parametrize("opened", [False, True])
async def test_cancelling_all_readers_cancels_stream(
    server: FriendliServer, client: AsyncFriendli, opened: bool, gc_disabled: None
) -> None:
    server.enqueue(script(*([chunk("a")] if opened else []), stall()))
    stream = open_stream(client)
    branches = stream.tee(3)
    tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
    await server.wait_for_requests(1)
    await run_loop_iterations(20)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert stream.outcome == "cancelled"
    await assert_no_leaks(client, server)


@pytest.mark.parametrize("parent", ["kept", "dropped"])
@pytest.mark.parametrize(
    ("opened", "read"),
    [(True, 0), (True, 1), (True, 2), (False, 1)],
    ids=["not read", "one read", "both read", "one waits for the opening"],
)
async def test_dropping_last_branch_cancels_stream(
    server: FriendliServer, client: AsyncFriendli, opened: bool, read: int, parent: str, gc_disabled: None
) -> None:
    server.enqueue(script(*([chunk("a")] if opened else []), stall()))
    stream: ChatStream | None = open_stream(client)
    assert stream is not None
    if opened:
        await stream
    branches = list(stream.tee(2))
    if parent == "dropped":
        stream = None
    for branch in branches[:read]:
        if opened:
            await anext(branch)
        waiting = asyncio.ensure_future(branch.__anext__())
        await run_loop_iterations(3)
        waiting.cancel()  # while it waits for an event
        await asyncio.wait({waiting})
        del waiting, branch
    branches.clear()
    await assert_no_leaks(client, server)
    if stream is not None:
        assert stream.outcome == "cancelled"
        with pytest.raises(StreamInterruptedError, match="all branches of the stream were closed"):
            await stream.result()


@pytest.mark.parametrize("closed", [True, False])
async def test_dropping_one_unread_branch_of_an_open_stream_leaves_it_to_the_other(
    server: FriendliServer, client: AsyncFriendli, gc_disabled: None, closed: bool
) -> None:
    server.enqueue(script(*text_steps("a", "b")))
    branches = list((await open_stream(client)).tee(2))
    if closed:
        await branches[1].aclose()
    del branches[1]
    assert await text_of(branches[0]) == "ab"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_a_branch_is_no_cancellation_of_its_waiting_reader_nor_prevents_one(
    server: FriendliServer, client: AsyncFriendli, times: int, cancelled: bool
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    branch, _other = open_stream(client).tee(2)
    assert (await anext(branch)).text == "a"
    waiting = asyncio.ensure_future(anext(branch))
    await run_loop_iterations()
    for _ in range(times):
        await branch.aclose()
    if cancelled:
        waiting.cancel()
    with pytest.raises(asyncio.CancelledError if cancelled else StreamInterruptedError):
        await waiting
    assert waiting.cancelling() == int(cancelled)


async def test_branch_that_is_closed_after_a_cancelled_read_just_ends(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    branch, _other = open_stream(client).tee(2)
    assert (await anext(branch)).text == "a"
    waiting = asyncio.ensure_future(anext(branch))
    await run_loop_iterations()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await branch.aclose()
    assert await events_of(branch) == []


# One iteration is the turn that a slow branch gets; with "wait", the other one waits for it without end.
@pytest.mark.parametrize(("slow", "iterations"), [("drop", 1), ("fail", 1), ("wait", 10)])
async def test_stream_that_is_stopped_while_a_slow_branch_holds_up_another_ends_it(
    server: FriendliServer, client: AsyncFriendli, slow: Slow, iterations: int
) -> None:
    server.enqueue(script(raw(b"".join(map(delta, "abcd"))), stall()))
    stream = open_stream(client)
    fast, _lagging = stream.tee(2, buffer=1, slow=slow)
    assert (await anext(fast)).text == "a"
    waiting = asyncio.ensure_future(anext(fast, None))
    await run_loop_iterations(iterations)
    await stream.stop()
    assert await with_timeout(waiting) is None


async def test_use_of_a_branch_in_another_loop_is_rejected(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    left, right = open_stream(client).tee(2)
    assert (await anext(left)).text == "a"
    reader = asyncio.create_task(events_of(right))
    await run_loop_iterations()
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, right.aclose())
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, with_timeout(anext(left)))
    assert not reader.done()
    await left.aclose()
    await right.aclose()
    with pytest.raises(StreamInterruptedError):
        await with_timeout(reader)


async def test_ending_the_stream_in_another_loop_is_rejected_and_loses_nothing(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)
    left, right = stream.tee(2)
    assert (await anext(left)).text == "a"
    for end in (stream.stop, stream.aclose):
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, end())
    assert (await with_timeout(anext(right))).text == "a"
    assert stream.outcome == "open"
    await left.aclose()
    await right.aclose()


async def test_dropping_last_branch_in_another_thread_cancels_stream(
    server: FriendliServer, client: AsyncFriendli, gc_disabled: None
) -> None:
    for read in (False, True):
        server.enqueue(script(chunk("a"), stall()))
        branches = list((await open_stream(client)).tee(2))
        if read:
            await anext(branches[0])
        thread = threading.Thread(target=branches.clear)
        thread.start()
        thread.join()
        await server.wait_for_connections(0)
        await wait_until(lambda: slots_in_use(client) == 0)
        assert await server.requests[-1].disconnected()


async def _count_events(branch: Branch[ChatChunk]) -> int:
    return len([event async for event in branch])


async def test_tee_leaves_no_reference_cycles(server: FriendliServer, client: AsyncFriendli, gc_disabled: None) -> None:
    server.enqueue(script(*text_steps("a", "b")), script(chunk("a"), cut()))
    for _ in range(2):
        stream = open_stream(client)
        branches = stream.tee(2)
        # Not `events_of`: asyncio's timeout references the task, and the task's exception the frame with the timeout.
        await with_timeout(asyncio.gather(*map(_count_events, branches), return_exceptions=True))
        alive: list[weakref.ref[Any]] = [weakref.ref(stream), *map(weakref.ref, branches)]
        del stream, branches
        await run_loop_iterations(2)
        assert [ref() for ref in alive] == [None] * 3


async def test_branches_cannot_be_copied(client: AsyncFriendli) -> None:
    (branch,) = open_stream(client).tee(1)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            way(branch)
    assert isinstance(branch, Branch)
    assert await text_of(branch)


async def test_randomly_cancelled_and_closed_readers_do_not_affect_others(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    import random

    rng = random.Random(7)
    for _ in range(30):
        pieces = [delta(str(number % 10)) for number in range(40)]
        server.enqueue(script(*map(raw, pieces), *text_steps()))
        branches = open_stream(client).tee(5, buffer=3)
        tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
        await server.wait_for_requests(1)
        for victim in rng.sample(range(5), 3):
            await run_loop_iterations(rng.randrange(40))
            if rng.random() < 0.5:
                tasks[victim].cancel()
            else:
                await branches[victim].aclose()
        results = await with_timeout(asyncio.gather(*tasks, return_exceptions=True))
        whole = "".join(str(number % 10) for number in range(40))
        survivors = [result for result in results if isinstance(result, str) and result == whole]
        assert len(survivors) >= 2
        assert all(isinstance(result, str | StreamInterruptedError | asyncio.CancelledError) for result in results)
    await server.idle(timeout=30)
    assert slots_in_use(client) == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_result_leaves_the_branches_the_events_of_a_stream_that_its_client_has_ended(begun: bool) -> None:
    async with serve_bytes(STREAM_HEAD + chunked(b"".join(map(delta, "abc")) + FINISH), hang=True) as server:
        async with client_of(server.url) as client:
            stream = await with_timeout(open_stream(client))
            branches = stream.tee(2, buffer=1 if begun else 4)
            seen = [[(await anext(branch)).text] if begun else [] for branch in branches]
        assert (stream.outcome, (await stream.result()).text) == ("done", "abc")
        for branch, texts in zip(branches, seen, strict=True):
            texts += [event.text for event in await events_of(branch)]
            assert texts == ["a", "b", "c", ""]
