"""How streams are opened and read, and the single outcome that each stream has."""

import asyncio
import contextlib
import pickle
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final

import aiohttp
import pytest
from support.clock import run_loop_iterations
from support.sockets import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    chunked,
    client_of,
    delta,
    open_stream,
    read,
    read_into,
    serve_bytes,
    slots_in_use,
    with_timeout,
)
from support.steps import garbage

from friendli_async import (
    APIStatusError,
    AsyncFriendli,
    AuthenticationError,
    BadRequestError,
    ChatStream,
    FriendliError,
    Limits,
    ResponseDecodeError,
    StreamInterruptedError,
)
from friendli_async.testing import (
    FriendliServer,
    Script,
    Step,
    chunk,
    comment,
    cut,
    done,
    event,
    finish,
    gate,
    head,
    raw,
    reset,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)

pytestmark = pytest.mark.compatibility


# --- use -------------------------------------------------------------------------------------------------------------


async def _read_in_async_with(stream: ChatStream) -> str:
    async with stream as entered:
        assert entered is stream
        return await read(entered)


async def _read_directly(stream: ChatStream) -> str:
    return await read(stream)


async def _read_after_await(stream: ChatStream) -> str:
    assert await stream is stream
    return await read(stream)


USES = pytest.mark.parametrize("use", [_read_in_async_with, _read_directly, _read_after_await])
Use = Callable[[ChatStream], Awaitable[str]]


@USES
async def test_every_way_of_opening_yields_all_events(server: FriendliServer, client: AsyncFriendli, use: Use) -> None:
    server.enqueue(text("Hel", "lo"))
    stream = open_stream(client)
    at_first = stream.outcome
    assert await use(stream) == "Hello"
    assert (at_first, stream.outcome) == ("open", "done")
    assert len(server.requests) == 1


@USES
async def test_every_way_of_opening_raises_the_open_error(
    server: FriendliServer, client: AsyncFriendli, use: Use
) -> None:
    server.enqueue(status(401))
    stream = open_stream(client)
    with pytest.raises(AuthenticationError) as caught:
        await use(stream)
    assert stream.outcome == "failed"
    assert caught.value.meta is not None
    assert caught.value.meta.status == stream.meta.status == 401


async def test_nothing_is_sent_before_first_use(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = open_stream(client)
    with pytest.raises(RuntimeError, match="not open yet"):
        _ = stream.timing
    await stream.aclose()
    with pytest.raises(RuntimeError, match="never opened"):
        _ = stream.meta
    assert server.requests == []
    assert stream.outcome == "cancelled"


async def test_opening_waits_for_first_event(server: FriendliServer, client: AsyncFriendli) -> None:
    go = asyncio.Event()
    server.enqueue(script(head(), comment(), gate(go), chunk("a"), stall()))
    opening = asyncio.ensure_future(open_stream(client).__aenter__())
    await server.wait_for_requests(1)
    assert not opening.done()
    go.set()
    stream = await with_timeout(opening)
    assert stream.meta.status == 200
    assert stream.meta.request_id == server.requests[0].request_id
    assert len(stream.meta.attempts) == 1
    assert (await with_timeout(anext(stream))).text == "a"
    await stream.aclose()


async def test_reentering_open_stream_sends_no_request(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = await open_stream(client)
    async with stream:
        assert await read(stream)
    assert await stream is stream
    assert len(server.requests) == 1


async def test_stream_that_failed_to_open_is_not_reopened(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(400))
    stream = open_stream(client)
    for _ in range(2):
        with pytest.raises(BadRequestError):
            await stream
    with pytest.raises(BadRequestError):
        await stream.result()
    assert len(server.requests) == 1


async def test_result_is_complete(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("Hel", "lo", reasoning=["hm"], finish_reason="length"))
    stream = open_stream(client)
    usage_at_first = stream.usage
    result = await with_timeout(stream.result())
    assert (result.text, result.reasoning, result.choices[0].finish_reason) == ("Hello", "hm", "length")
    assert result.usage is not None
    assert (usage_at_first, stream.usage) == (None, result.usage)
    assert result.usage.completion_tokens == 3
    assert result.meta == stream.meta
    assert await stream.result() is result


async def test_result_after_partial_iteration_is_complete(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(text("a", "b", "c"))
    async with open_stream(client) as stream:
        first = [(await anext(stream)).text for _ in range(2)]
        result = await with_timeout(stream.result())
    assert first == ["", "a"]
    assert result.text == "abc"
    assert [event async for event in stream] == []


async def test_result_after_context_exit_is_complete(client: AsyncFriendli) -> None:
    async with open_stream(client) as stream:
        streamed = await read(stream)
    assert (await stream.result()).text == streamed


@pytest.mark.parametrize(("view", "pieces"), [("text", ["Hel", "lo"]), ("reasoning", ["h", "m"])])
async def test_view_yields_only_its_nonempty_pieces(
    server: FriendliServer, client: AsyncFriendli, view: str, pieces: list[str]
) -> None:
    server.enqueue(text("Hel", "lo", reasoning=["h", "m"]))
    stream = open_stream(client)
    assert [piece async for piece in getattr(stream, view)()] == pieces
    assert stream.outcome == "done"


async def test_view_of_several_choices_yields_choice_0(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(
        script(chunk("b", index=1), chunk("a"), chunk("B", index=1), chunk("A"), finish(), finish(index=1), done())
    )
    stream = open_stream(client, n=2)
    assert [piece async for piece in stream.text()] == ["a", "A"]
    result = await stream.result()
    assert [choice.message.content for choice in result.choices] == ["aA", "bB"]


async def test_view_raises_stream_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), cut()))
    seen: list[str] = []
    with pytest.raises(StreamInterruptedError) as caught:
        await read_into(seen, open_stream(client).text())
    assert seen == ["a"]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"


async def test_surrogate_pair_split_over_two_chunks_is_joined_and_a_half_at_the_end_is_delivered(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    pieces = b"".join(
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % piece
        for piece in (b"a\\ud83d", b"\\ude00b", b"\\ud83d", b"\\ude00", b"c\\ud83d")
    )
    server.enqueue(script(raw(pieces), finish(), done()))
    stream = open_stream(client)
    assert [piece async for piece in stream.text()] == ["a", "😀b", "😀", "c", "\ud83d"]
    assert (await stream.result()).text == "a😀b😀c\ud83d"


async def test_second_task_cannot_read_stream_concurrently(server: FriendliServer, client: AsyncFriendli) -> None:
    go = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(go), chunk("b"), finish(), done()))
    async with open_stream(client) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await anext(stream)
        with pytest.raises(RuntimeError):
            await stream.result()
        go.set()
        assert (await with_timeout(waiting)).text == "b"
        assert await read(stream) == ""
    assert stream.outcome == "done"


async def test_second_task_cannot_open_stream_concurrently(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(stall())
    stream = open_stream(client)
    opening = asyncio.ensure_future(stream.__aenter__())
    await server.wait_for_requests(1)
    with pytest.raises(RuntimeError):
        await anext(stream)
    await stream.aclose()
    with pytest.raises(StreamInterruptedError):
        await with_timeout(opening)


async def test_refused_read_does_not_decide_how_the_stream_is_read(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    go = asyncio.Event()
    server.enqueue(script(gate(go), chunk("a"), finish(), done()))
    stream = open_stream(client)
    opening = asyncio.ensure_future(stream.__aenter__())
    await server.wait_for_requests(1)
    with pytest.raises(RuntimeError, match="another task"):
        await anext(stream)
    go.set()
    await with_timeout(opening)
    assert b"".join([data async for data in stream.raw()]).endswith(b"data: [DONE]\n\n")
    assert stream.outcome == "done"


# --- outcomes --------------------------------------------------------------------------------------------------------

A = chunk("a")
ENDINGS: dict[str, tuple[list[Step], str, type[Exception] | None]] = {
    "sentinel": ([A, finish(), done()], "done", None),
    "sentinel without a finish reason": ([A, done()], "done", None),
    "finish reason, then end of body": ([A, finish()], "done", None),
    "finish reason, usage, then end of body": ([A, finish(), usage(1, 1)], "done", None),
    "finish reason, then a cut": ([A, finish(), cut()], "done", None),
    "finish reason, then a reset": ([A, finish(), reset()], "done", None),
    "end of body without a terminal event": ([A], "truncated", StreamInterruptedError),
    "the string null as finish reason": ([A, finish("null")], "truncated", StreamInterruptedError),
    "one of two choices finished": ([A, chunk("b", index=1), finish()], "truncated", StreamInterruptedError),
    "cut": ([A, cut()], "truncated", StreamInterruptedError),
    "cut inside an event": ([A, raw(b'data: {"choices"'), cut()], "truncated", StreamInterruptedError),
    "reset": ([A, reset()], "truncated", StreamInterruptedError),
    "malformed framing": ([A, garbage()], "truncated", StreamInterruptedError),
    "error data": ([A, event({"error": "m"})], "failed", APIStatusError),
    "error event": ([A, event({"error": {"message": "m"}}, name="error")], "failed", APIStatusError),
    "not JSON": ([A, event("{nope")], "failed", ResponseDecodeError),
    "not a chunk": ([A, event({"choices": 3})], "failed", ResponseDecodeError),
    "oversized event": ([A, chunk("x" * 9000)], "failed", ResponseDecodeError),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_stream_has_exactly_one_outcome(server: FriendliServer, name: str) -> None:
    steps, outcome, error = ENDINGS[name]
    server.enqueue(script(*steps))
    async with client_of(server.url, limits=Limits(event=8192)) as client:
        stream = open_stream(client)
        seen: list[str] = []
        try:
            await read_into(seen, stream)
        except FriendliError as caught:
            failure: FriendliError | None = caught
        else:
            failure = None
        assert "".join(seen) == "a"
        assert stream.outcome == outcome
        assert isinstance(failure, error or type(None))
        if failure is not None:
            assert failure.partial is not None
            assert failure.partial.text == "a"
            assert failure.meta == stream.meta
            assert stream.meta.status == 200
        await stream.aclose()
        assert stream.outcome == outcome
        with pytest.raises(error) if error else contextlib.nullcontext():  # a failure remains one
            assert [event async for event in stream] == []
        assert stream.outcome == outcome


WAYS: Final[dict[str, Callable[[ChatStream], AsyncIterable[object]]]] = {
    "events": lambda stream: stream,
    "text": ChatStream.text,
    "bytes": ChatStream.raw,
    "tool calls": ChatStream.tool_calls,
}


@pytest.mark.parametrize("block", [False, True], ids=["bare", "async with"])
@pytest.mark.parametrize("read", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("answer", "error"),
    [(script(chunk("a"), cut()), StreamInterruptedError), (status(500), APIStatusError)],
    ids=["truncated", "not opened"],
)
async def test_second_loop_over_a_failed_stream_is_no_empty_answer(
    server: FriendliServer,
    answer: Script,
    error: type[FriendliError],
    read: Callable[[ChatStream], AsyncIterable[object]],
    block: bool,
) -> None:
    server.enqueue(answer)
    async with client_of(server.url, retry=None) as client:
        stream = open_stream(client)

        async def loop() -> None:
            async with stream if block else contextlib.nullcontext():
                async for _ in view:
                    pass

        view = read(stream)
        for _ in range(3):
            with pytest.raises(error):
                await loop()
    assert len(server.requests) == 1


@pytest.mark.parametrize("read", WAYS.values(), ids=WAYS)
async def test_second_block_after_a_cancelled_read_is_no_empty_answer(
    server: FriendliServer, client: AsyncFriendli, read: Callable[[ChatStream], AsyncIterable[object]]
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)

    async def loop() -> None:
        async with stream:
            async for _ in view:
                pass

    view = read(stream)
    await stream
    reading = asyncio.ensure_future(loop())
    await run_loop_iterations(3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    for _ in range(2):  # leaving the block, as the cancellation did, is no intended end
        with pytest.raises(StreamInterruptedError, match="cancelled"):
            await loop()
    await stream.aclose()
    await loop()


async def test_read_that_is_cancelled_after_its_stream_was_closed_leaves_it_closed(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)
    await anext(stream)
    reading = asyncio.ensure_future(anext(stream))
    await run_loop_iterations(3)
    await stream.aclose()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert [event async for event in stream] == []


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(cut(), "the server closed the connection"), (reset(), "Connection reset by peer")],
    ids=["cut", "reset"],
)
@pytest.mark.parametrize("of_user", [False, True], ids=["own session", "session of the user"])
async def test_error_of_a_broken_stream_tells_a_close_from_a_reset(
    server: FriendliServer, broken: Any, reason: str, of_user: bool
) -> None:
    read_first = asyncio.Event()
    server.enqueue(script(A, gate(read_first), broken))
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession()) if of_user else None
        stream = await open_stream(await stack.enter_async_context(client_of(server.url, session=session)))
        read_first.set()
        with pytest.raises(StreamInterruptedError) as caught:
            await stream.result()
    where = server.url.removeprefix("http://")
    why = f"while the reply was being read: {reason} before the end of the body (server {where})"
    assert str(caught.value).endswith(why)


async def test_every_requested_choice_must_finish(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), finish()))
    stream = open_stream(client, n=2)
    with pytest.raises(StreamInterruptedError):
        await read(stream)
    assert stream.outcome == "truncated"


@pytest.mark.parametrize("bad", [event("{nope"), event({"error": "m"}), raw(b'data: {"choices": 1}\n\n')])
async def test_events_before_a_bad_one_in_the_same_read_are_delivered(
    client: AsyncFriendli, server: FriendliServer, bad: Any
) -> None:
    identity = (await _send_request(server, client)).identity
    good = [chunk("a"), chunk("b")]
    server.enqueue(script(raw(b"".join(step.encode(identity) for step in [*good, bad, chunk("never")])), stall()))
    stream = open_stream(client)
    seen: list[str] = []
    with pytest.raises(FriendliError) as caught:
        await read_into(seen, stream)
    assert seen == ["a", "b"]
    assert caught.value.partial is not None
    assert caught.value.partial.text == "ab"
    assert stream.outcome == "failed"


async def _send_request(server: FriendliServer, client: AsyncFriendli) -> Any:
    await read(open_stream(client))
    return server.requests[-1]


async def test_events_before_an_oversized_one_in_the_same_read_are_delivered(server: FriendliServer) -> None:
    server.enqueue(script(raw(delta("a") + delta("x" * 3000)), stall()))
    async with client_of(server.url, limits=Limits(event=2000)) as client:
        seen: list[str] = []
        with pytest.raises(ResponseDecodeError):
            await read_into(seen, open_stream(client))
        assert seen == ["a"]


async def test_partial_has_text_reasoning_tool_calls_and_usage(server: FriendliServer, client: AsyncFriendli) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x'}}
    more = {"index": 0, "function": {"arguments": '":1'}}
    server.enqueue(
        script(
            chunk(reasoning="hm"), chunk("a"), chunk(tool_calls=[call]), chunk(tool_calls=[more]), usage(3, 4), cut()
        )
    )
    with pytest.raises(StreamInterruptedError) as caught:
        await with_timeout(open_stream(client).result())
    partial = pickle.loads(pickle.dumps(caught.value)).partial
    assert (partial.text, partial.reasoning) == ("a", "hm")
    assert [(call.id, call.function.name, call.function.arguments) for call in partial.tool_calls] == [
        ("c1", "f", '{"x":1')
    ]
    assert partial.usage.total_tokens == 7


@pytest.mark.parametrize("steps", [[A, cut()], [A, event({"error": "m"})], [A]])
async def test_result_reraises_stream_error(server: FriendliServer, client: AsyncFriendli, steps: list[Step]) -> None:
    server.enqueue(script(*steps))
    stream = open_stream(client)
    with pytest.raises(FriendliError) as first:
        await read(stream)
    for _ in range(2):
        with pytest.raises(type(first.value)) as again:
            await stream.result()
        assert str(again.value) == str(first.value)
        assert again.value.partial == first.value.partial


# --- reading after result() ------------------------------------------------------------------------------------------

READINGS: dict[str, Callable[[ChatStream], AsyncIterator[Any]]] = {
    "events": aiter,
    "text": lambda stream: aiter(stream.text()),
    "reasoning": lambda stream: aiter(stream.reasoning()),
    "raw": lambda stream: aiter(stream.raw()),
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("opened", [False, True])
async def test_iterating_after_result_has_read_all_events_raises(
    server: FriendliServer, client: AsyncFriendli, reading: Callable[[ChatStream], AsyncIterator[Any]], opened: bool
) -> None:
    stream = open_stream(client)
    iterator = reading(stream)
    if opened:
        await stream
    reply = await with_timeout(stream.result())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"result\(\) has already read all events"):
            await anext(iterator)
    assert await stream.result() is reply
    assert stream.outcome == "done"


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
async def test_iterating_after_result_of_a_stream_that_its_client_has_ended_raises(
    reading: Callable[[ChatStream], AsyncIterator[Any]],
) -> None:
    async with serve_bytes(STREAM_HEAD + chunked(delta("a") + delta(finish="stop")), hang=True) as server:
        async with client_of(server.url) as client:
            stream = open_stream(client)
            iterator = reading(stream)
            await with_timeout(stream)
        assert stream.outcome == "done"
        assert (await stream.result()).text == "a"
        with pytest.raises(RuntimeError, match=r"result\(\) has already read all events"):
            await anext(iterator)


async def test_iterating_after_result_of_a_stream_stopped_by_condition_raises(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    stream = open_stream(client).stop_when(bool)
    await with_timeout(stream.result())
    assert stream.outcome == "stopped"
    with pytest.raises(RuntimeError, match="result"):
        await anext(stream)


@pytest.mark.parametrize("ended", [False, True])
async def test_loop_in_progress_ends_after_result(server: FriendliServer, client: AsyncFriendli, ended: bool) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta(finish="stop")), *([stall()] if ended else [])))
    stream = open_stream(client)
    seen: list[str] = []
    async for each in stream:
        seen.append(each.text)
        if ended:
            await client.aclose()
        await with_timeout(stream.result())
    assert len(seen) == 1
    assert len((await stream.result()).text) > len(seen[0])
    assert [chunk async for chunk in stream] == []
    assert [piece async for piece in stream.text()] == []


async def test_second_iteration_of_an_exhausted_stream_ends_at_once(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    stream = open_stream(client)
    assert (await with_timeout(read(stream))) == (await stream.result()).text != ""
    assert [piece async for piece in stream.text()] == []
    assert [chunk async for chunk in stream] == []


@pytest.mark.parametrize("stop", ["stop", "aclose"])
@pytest.mark.parametrize("opened", [False, True])
async def test_iteration_after_result_of_a_stream_that_was_ended_before_just_ends(
    server: FriendliServer, client: AsyncFriendli, stop: str, opened: bool
) -> None:
    stream = open_stream(client)
    if opened:
        await stream
    await getattr(stream, stop)()
    if opened and stop == "stop":
        await stream.result()
    else:
        with pytest.raises(StreamInterruptedError):
            await stream.result()
    assert [chunk async for chunk in stream] == []


async def test_cancelled_result_is_reported_by_later_reads(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = open_stream(client)
    await stream
    task = asyncio.create_task(stream.result())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(2):
        with pytest.raises(StreamInterruptedError, match="cancelled"):
            await anext(stream)


@pytest.mark.parametrize("opened", [True, False])
async def test_stream_that_is_closed_after_a_cancelled_read_just_ends(
    server: FriendliServer, client: AsyncFriendli, opened: bool
) -> None:
    server.enqueue(script(chunk("a"), stall()) if opened else script(stall()))
    stream = open_stream(client)
    if opened:
        await anext(stream)
    task = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    assert [chunk async for chunk in stream] == []


async def test_stream_that_has_arrived_whole_frees_its_connection_before_it_is_read() -> None:
    whole = STREAM_HEAD + chunked(delta("a", "stop") + DONE) + LAST_CHUNK
    async with serve_bytes(whole, hang=True) as server, client_of(server.url) as client:
        stream = open_stream(client)
        await with_timeout(stream)
        assert slots_in_use(client) == 0
        assert await read(stream) == "a"


async def test_tool_calls_are_available_after_result(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(tool_calls(("f", {})))
    stream = open_stream(client)
    await with_timeout(stream.result())
    assert [call.function.name async for call in stream.tool_calls()] == ["f"]
