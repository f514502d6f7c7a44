"""`tee()`: one stream, several independent readers."""

import asyncio
import copy
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import AsyncIterable, Iterator
from typing import Any

import pytest
from support.clock import Clock, turns, until
from support.sockets import (
    DONE,
    STREAM_HEAD,
    ask,
    chunked,
    client_of,
    delta,
    nothing_left,
    places_in_use,
    saying,
    within,
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
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    error_data,
    gate,
    raw,
    script,
    stall,
    status,
)

pytestmark = pytest.mark.compatibility

FINISH = delta(finish="stop")
SLOW = pytest.mark.parametrize("slow", ["wait", "drop", "fail"])


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of stream in turn."""
    found: Kind = request.param
    return found


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def events_of(branch: AsyncIterable[Any]) -> list[Any]:
    async with asyncio.timeout(30):
        return [event async for event in branch]


async def texts_into(seen: list[str], branch: AsyncIterable[ChatChunk]) -> None:
    """Keeps what comes before an error, too."""
    async with asyncio.timeout(30):
        async for event in branch:
            seen.append(event.text)  # noqa: PERF401  # a list would be lost


async def text_of(branch: AsyncIterable[ChatChunk]) -> str:
    return "".join([event.text for event in await events_of(branch)])


def words(*texts: str) -> list[Any]:
    return [*(raw(delta(text)) for text in texts), raw(FINISH + DONE)]


# --- use -------------------------------------------------------------------------------------------------------------


async def test_every_kind_of_stream_gives_each_branch_all_events(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    pieces = [raw(piece) for piece in (*kind.begun, *kind.rest)]
    server.enqueue(script(*pieces), script(*pieces))
    plain, teed = kind.open(client), kind.open(client)
    whole = await events_of(plain)
    assert await within(asyncio.gather(*map(events_of, teed.tee(3)))) == [whole] * 3
    assert teed.outcome == "done"
    assert await teed.result() == await plain.result()
    assert teed.usage == plain.usage
    assert len(server.requests) == 2
    await nothing_left(client, server, connections=len({request.connection for request in server.requests}))


@pytest.mark.parametrize("n", [1, 2, 8])
@pytest.mark.parametrize("together", [False, True], ids=["reads", "one read"])
@SLOW
async def test_a_tee_of_any_number_gives_all_events(
    server: FriendliServer, client: AsyncFriendli, n: int, together: bool, slow: Slow
) -> None:
    pieces = [delta(str(number)) for number in range(600)]
    server.enqueue(script(*([raw(b"".join(pieces))] if together else map(raw, pieces[:100])), *words()))
    branches = ask(client).tee(n, buffer=16, slow=slow)
    got = await within(asyncio.gather(*map(text_of, branches)))
    assert got == ["".join(str(number) for number in range(600 if together else 100))] * n
    assert {branch.dropped for branch in branches} == {0}


async def test_a_branch_has_its_text(server: FriendliServer, client: AsyncFriendli) -> None:
    halves = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half for half in (b"a\\ud83d", b"\\ude00b")
    )
    server.enqueue(script(raw(halves), *words("c")))
    one, other = ask(client).tee(2)
    got = await within(asyncio.gather(events_of(one.text()), text_of(other)))
    assert "".join(got[0]) == "a😀bc"


async def test_a_transcription_that_comes_whole_is_the_text_of_a_branch(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(raw(b'data: {"type": "transcript.text.done", "text": "Hi"}\n\n'), done()))
    one, other = client.container.audio.stream(file=b"RIFF").tee(2)
    assert await within(asyncio.gather(events_of(one.text()), events_of(other.text()))) == [["Hi"], ["Hi"]]


async def test_branches_are_read_one_after_the_other_within_the_buffer(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*words(*"abcdef")))
    one, other = ask(client).tee(2, buffer=20)
    assert await text_of(one) == await text_of(other) == "abcdef"


async def test_a_stream_that_is_open_is_teed_from_its_first_event(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(*words("a", "b")))
    async with ask(client) as stream:
        assert await within(asyncio.gather(*map(text_of, stream.tee(2)))) == ["ab", "ab"]
    assert stream.outcome == "done"


async def test_events_are_read_in_one_way_only(client: AsyncFriendli) -> None:
    stream = ask(client)
    (branch,) = stream.tee(1)
    for other in (stream.raw, lambda: stream.tee(1)):
        with pytest.raises(RuntimeError, match="tee"):
            other()
    for other in (anext(stream), stream.result()):
        with pytest.raises(RuntimeError, match="tee"):
            await other
    assert await text_of(branch)
    assert (await stream.result()).text
    begun = ask(client)
    await anext(begun)
    with pytest.raises(RuntimeError, match="have been taken"):
        begun.tee(2)
    await begun.aclose()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"n": 0}, "n: "),
        ({"n": True}, "n: "),
        ({"n": 1.5}, "n: "),
        ({"n": 1, "buffer": 0}, "buffer: "),
        ({"n": 1, "buffer": None}, "buffer: "),
        ({"n": 1, "slow": "block"}, "slow: "),
    ],
)
async def test_bad_arguments_are_named_and_leave_the_stream_as_it_was(
    client: AsyncFriendli, arguments: dict[str, Any], words: str
) -> None:
    stream = ask(client)
    with pytest.raises(ValueError, match=f"^{words}"):
        stream.tee(**arguments)
    assert [event async for event in stream]


async def test_two_tasks_cannot_wait_for_one_branch(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(stall()))
    (branch,) = ask(client).tee(1)
    waiting = asyncio.ensure_future(branch.__anext__())
    await turns(3)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(branch)
    await branch.aclose()
    with pytest.raises(StreamInterruptedError):
        await within(waiting)


# --- a slow branch ---------------------------------------------------------------------------------------------------


async def started(server: FriendliServer, client: AsyncFriendli, count: int, slow: Slow, buffer: int = 4) -> Any:
    """A fast branch that has read all that it can, and a slow one that has read nothing."""
    server.enqueue(script(*words(*(str(number % 10) for number in range(count)))))
    stream = ask(client)
    fast, behind = stream.tee(2, buffer=buffer, slow=slow)
    seen: list[str] = []
    return stream, asyncio.ensure_future(texts_into(seen, fast)), seen, behind


async def test_wait_holds_the_others_back_and_then_nothing_is_missing(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    _, reading, seen, behind = await started(server, client, 12, "wait")
    await until(lambda: len(seen) == 4)
    await turns(50)
    assert len(seen) == 4
    assert (await anext(behind)).text == "0"
    await until(lambda: len(seen) == 5)
    await turns(20)
    assert len(seen) == 5
    assert await text_of(behind) == "12345678901"
    await within(reading)
    assert "".join(seen) == "012345678901"
    assert behind.dropped == 0


async def test_a_slow_branch_that_is_closed_or_dropped_holds_nobody_back(
    server: FriendliServer, client: AsyncFriendli, no_collector: None
) -> None:
    for close in (True, False):
        _, reading, seen, behind = await started(server, client, 12, "wait")
        await until(lambda seen=seen: len(seen) == 4)
        if close:
            await behind.aclose()
        del behind
        await within(reading)
        assert "".join(seen) == "012345678901"


async def test_drop_passes_the_oldest_events_over_and_counts_them(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    stream, reading, seen, behind = await started(server, client, 12, "drop")
    await within(reading)
    assert "".join(seen) == "012345678901"
    assert await text_of(behind) == "901"  # and the event with the finish reason
    assert behind.dropped == 9
    assert (await stream.result()).text == "012345678901"


async def test_fail_ends_the_slow_branch_after_what_it_has(server: FriendliServer, client: AsyncFriendli) -> None:
    stream, reading, seen, behind = await started(server, client, 12, "fail")
    await within(reading)
    assert "".join(seen) == "012345678901"
    late: list[str] = []
    with pytest.raises(BranchOverrunError, match="4 events") as caught:
        await texts_into(late, behind)
    assert late == ["0", "1", "2", "3"]
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), BranchOverrunError)
    assert await events_of(behind) == []
    assert stream.outcome == "done"


@pytest.mark.parametrize("slow", ["drop", "fail"])
async def test_a_branch_that_yields_at_each_event_is_not_too_slow_for_a_burst(
    server: FriendliServer, client: AsyncFriendli, slow: Slow
) -> None:
    server.enqueue(script(raw(b"".join([delta("a")] * 500)), *words()))
    fast, other = ask(client).tee(2, buffer=4, slow=slow)

    async def sending() -> int:
        count = 0
        async for _ in other:
            await asyncio.sleep(0)
            count += 1
        return count

    assert await within(asyncio.gather(text_of(fast), sending())) == ["a" * 500, 501]


async def test_a_time_limit_reaches_who_is_held_back(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(*map(raw, [delta("a")] * 8), stall()))
    async with client_of(server.url, timeout=Timeouts(total=5)) as client:
        fast, behind = ask(client).tee(2, buffer=2)
        seen: list[str] = []
        reading = asyncio.ensure_future(texts_into(seen, fast))
        await until(lambda: len(seen) == 2)
        await turns(30)
        clock.leap(6)
        with pytest.raises(APITimeoutError) as caught:
            await within(reading)
        assert caught.value.limit == "total"
        late: list[str] = []
        with pytest.raises(APITimeoutError):
            await texts_into(late, behind)
        assert seen == late
        await nothing_left(client, server)


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "error", "outcome"),
    [
        ([cut()], StreamInterruptedError, "truncated"),
        ([error_data("m"), stall()], APIStatusError, "failed"),
        ([raw(b"data: {nope\n\n"), stall()], FriendliError, "failed"),
    ],
    ids=["cut", "error", "no JSON"],
)
@SLOW
async def test_each_branch_raises_the_error_after_its_last_event(
    server: FriendliServer, client: AsyncFriendli, bad: list[Any], error: type[FriendliError], outcome: str, slow: Slow
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), *bad))
    stream = ask(client)
    branches = stream.tee(3, slow=slow)
    seen: list[list[str]] = [[], [], []]
    ends = await within(
        asyncio.gather(
            *(texts_into(texts, branch) for texts, branch in zip(seen, branches, strict=True)), return_exceptions=True
        )
    )
    assert seen == [["a", "b"]] * 3
    assert stream.outcome == outcome
    assert len({id(end) for end in ends}) == 3
    for end in ends:
        assert isinstance(end, error)
        assert end.partial is not None
        assert end.partial.text == "ab"
        assert end.meta == stream.meta
    assert [await events_of(branch) for branch in branches] == [[]] * 3
    with pytest.raises(error):
        await stream.result()
    await nothing_left(client, server)


async def test_errors_of_opening_raise_from_every_branch(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(401))
    branches = ask(client).tee(3)
    ends = await within(asyncio.gather(*map(events_of, branches), return_exceptions=True))
    assert [type(end) for end in ends] == [AuthenticationError] * 3
    assert len(server.requests) == 1


async def test_what_a_token_callable_raises_is_raised_once_and_ends_the_others(server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no vault")

    async with client_of(server.url) as client:
        stream = client.with_options(token=token).serverless.chat.stream(model="m", messages=[])
        ends = await within(asyncio.gather(*map(events_of, stream.tee(2)), return_exceptions=True))
    assert sorted(type(end).__name__ for end in ends) == ["LookupError", "StreamInterruptedError"]
    assert "LookupError" in str(ends)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
async def test_it_is_raised_though_the_task_that_opens_runs_at_once(server: FriendliServer) -> None:
    def token() -> str:
        raise LookupError("no vault")

    loop = asyncio.get_running_loop()
    if type(loop).__module__ == "uvloop":
        pytest.skip("uvloop 0.23 cannot make eager tasks on Python 3.13")
    loop.set_task_factory(asyncio.eager_task_factory)
    async with client_of(server.url) as client:
        [branch] = client.with_options(token=token).serverless.chat.stream(model="m", messages=[]).tee(1)
        with pytest.raises(LookupError, match="no vault"):
            await within(events_of(branch))


async def test_what_a_token_callable_raises_is_not_kept_for_branches_that_have_gone(server: FriendliServer) -> None:
    vault = asyncio.Event()

    async def token() -> str:
        await vault.wait()
        raise LookupError("no vault")

    async with client_of(server.url) as client:
        stream = client.with_options(token=token).serverless.chat.stream(model="m", messages=[])
        gone = weakref.ref(stream)
        branches = stream.tee(2)
        del stream
        reader = asyncio.create_task(events_of(branches[0]))
        await turns()
        del branches
        gc.disable()
        try:
            vault.set()
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            del reader
            await turns()
            assert gone() is None
        finally:
            gc.enable()


async def test_stopping_the_stream_ends_every_branch_and_nothing_more_is_given_out(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    stream = ask(client)
    guard, waiting, behind = stream.tee(3)
    seen: list[str] = []
    reading = asyncio.ensure_future(texts_into(seen, waiting))
    assert [(await anext(guard)).text, (await anext(guard)).text] == ["a", "b"]
    await until(lambda: len(seen) == 2)
    await turns(5)
    await stream.stop()
    await within(reading)
    assert [await events_of(guard), await events_of(behind)] == [[], []]
    assert stream.outcome == "stopped"
    assert (await stream.result()).text == "ab"
    await nothing_left(client, server)


async def test_closing_the_stream_raises_in_every_branch_once(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with ask(client) as stream:
        one, other, idle = stream.tee(3)
        await anext(one)
        waiting = [asyncio.ensure_future(texts_into([], branch)) for branch in (one, other)]
        await turns(10)
    for task in waiting:
        with pytest.raises(StreamInterruptedError):
            await within(task)
    with pytest.raises(StreamInterruptedError):
        await anext(idle)
    assert [await events_of(branch) for branch in (one, other, idle)] == [[]] * 3
    assert stream.outcome == "cancelled"
    await nothing_left(client, server)


async def test_closing_the_client_raises_in_every_branch(server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url) as client:
        branches = ask(client).tee(2)
        tasks = [asyncio.ensure_future(events_of(branch)) for branch in branches]
        await server.wait_for_requests(1)
        await turns(20)
    ends = await within(asyncio.gather(*tasks, return_exceptions=True))
    assert [isinstance(end, FriendliError) for end in ends] == [True, True]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_closing_one_branch_leaves_the_others_and_closing_all_stops_the_model(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), stall()))
    stream = ask(client)
    one, other = stream.tee(2)
    async with one:
        assert (await anext(one)).text == "a"
    assert await events_of(one) == []
    assert [(await anext(other)).text, (await anext(other)).text] == ["a", "b"]
    assert stream.outcome == "open"
    await other.aclose()
    assert stream.outcome == "cancelled"
    assert places_in_use(client) == 0
    await nothing_left(client, server)


@pytest.mark.parametrize("reader", [0, 1], ids=["who reads for all", "who waits for it"])
@pytest.mark.parametrize("how", ["cancelled", "closed"])
@pytest.mark.parametrize("compressed", [False, True])
async def test_when_a_waiting_branch_goes_another_reads_on(reader: int, how: str, compressed: bool) -> None:
    go = asyncio.Event()
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") if compressed else STREAM_HEAD
    body = _compressed if compressed else list
    first, rest = body([delta("a"), delta("b") + FINISH + DONE])
    async with saying(head + chunked(first), hang=True) as server, client_of(server.url) as client:
        server._talk = _after(go, head + chunked(first), chunked(rest))  # type: ignore[assignment]  # for this test alone
        stream = ask(client)
        branches = stream.tee(2)
        for branch in branches:
            assert (await within(anext(branch))).text == "a"
        tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
        await turns(10)
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
                await within(tasks[reader])
        assert await events_of(branches[reader]) == []
        assert stream.outcome == "open"
        go.set()
        assert await within(tasks[1 - reader]) == "b"
        assert stream.outcome == "done"


def _compressed(pieces: list[bytes]) -> list[bytes]:
    import zlib

    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*packed[:-1], packed[-1] + packer.flush()]


def _after(go: asyncio.Event, first: bytes, rest: bytes) -> Any:
    async def talk(conversation: Any) -> None:
        await conversation.request()
        await conversation.send(first)
        await go.wait()
        await conversation.send(rest)
        await conversation.gone()

    return talk


async def test_cancelling_a_reader_while_the_stream_is_opened_leaves_the_others(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    go = asyncio.Event()
    server.enqueue(script(gate(go), *words("a")))
    branches = ask(client).tee(2)
    tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
    await server.wait_for_requests(1)
    tasks[0].cancel()
    await asyncio.wait({tasks[0]})
    go.set()
    assert await within(tasks[1]) == "a"
    assert len(server.requests) == 1


@pytest.mark.parametrize("opened", [False, True])
async def test_cancelling_all_readers_stops_the_model(
    server: FriendliServer, client: AsyncFriendli, opened: bool, no_collector: None
) -> None:
    server.enqueue(script(*([chunk("a")] if opened else []), stall()))
    stream = ask(client)
    branches = stream.tee(3)
    tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
    await server.wait_for_requests(1)
    await turns(20)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert stream.outcome == "cancelled"
    await nothing_left(client, server)


@pytest.mark.parametrize("parent", ["kept", "dropped"])
@pytest.mark.parametrize("read", [0, 1, 2], ids=["not read", "one read", "both read"])
async def test_dropping_the_last_branch_stops_the_model(
    server: FriendliServer, client: AsyncFriendli, read: int, parent: str, no_collector: None
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream: ChatStream | None = await ask(client)
    assert stream is not None
    branches = list(stream.tee(2))
    if parent == "dropped":
        stream = None
    for branch in branches[:read]:
        await anext(branch)
        waiting = asyncio.ensure_future(branch.__anext__())
        await turns(3)
        waiting.cancel()  # dropped in mid-wait
        await asyncio.wait({waiting})
        del waiting
    branch = None
    branches.clear()
    await nothing_left(client, server)
    if stream is not None:
        assert stream.outcome == "cancelled"


async def test_closing_a_branch_in_another_loop_is_refused(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    left, right = ask(client).tee(2)
    assert (await anext(left)).text == "a"
    reader = asyncio.create_task(events_of(right))
    await turns()
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, right.aclose())
    assert not reader.done()
    await left.aclose()
    await right.aclose()
    with pytest.raises(StreamInterruptedError):
        await within(reader)


async def test_dropping_the_last_branch_in_another_thread_stops_the_model(
    server: FriendliServer, client: AsyncFriendli, no_collector: None
) -> None:
    for read in (False, True):
        server.enqueue(script(chunk("a"), stall()))
        branches = list((await ask(client)).tee(2))
        if read:
            await anext(branches[0])
        thread = threading.Thread(target=branches.clear)
        thread.start()
        thread.join()
        await server.wait_for_connections(0)
        await until(lambda: places_in_use(client) == 0)
        assert await server.requests[-1].disconnected()


async def _bare(branch: Branch[ChatChunk]) -> int:
    return len([event async for event in branch])


async def test_nothing_of_a_tee_is_left_in_a_circle(
    server: FriendliServer, client: AsyncFriendli, no_collector: None
) -> None:
    server.enqueue(script(*words("a", "b")), script(chunk("a"), cut()))
    for _ in range(2):
        stream = ask(client)
        branches = stream.tee(2)
        # Without the helper above: asyncio's timeout knows the task, and the task's error the frame with the timeout.
        await within(asyncio.gather(*map(_bare, branches), return_exceptions=True))
        alive = [weakref.ref(stream), *map(weakref.ref, branches)]
        del stream, branches
        await turns(2)
        assert [ref() for ref in alive] == [None] * 3


async def test_branches_cannot_be_copied(client: AsyncFriendli) -> None:
    (branch,) = ask(client).tee(1)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            way(branch)
    assert isinstance(branch, Branch)
    assert await text_of(branch)


async def test_readers_that_come_and_go_at_random_lose_nothing(server: FriendliServer, client: AsyncFriendli) -> None:
    import random

    dice = random.Random(7)
    for _ in range(30):
        pieces = [delta(str(number % 10)) for number in range(40)]
        server.enqueue(script(*map(raw, pieces), *words()))
        branches = ask(client).tee(5, buffer=3)
        tasks = [asyncio.ensure_future(text_of(branch)) for branch in branches]
        await server.wait_for_requests(1)
        for victim in dice.sample(range(5), 3):
            await turns(dice.randrange(40))
            if dice.random() < 0.5:
                tasks[victim].cancel()
            else:
                await branches[victim].aclose()
        ends = await within(asyncio.gather(*tasks, return_exceptions=True))
        whole = "".join(str(number % 10) for number in range(40))
        survivors = [end for end in ends if isinstance(end, str) and end == whole]
        assert len(survivors) >= 2
        assert all(isinstance(end, str | StreamInterruptedError | asyncio.CancelledError) for end in ends)
    await server.idle(timeout=30)
    assert places_in_use(client) == 0
