"""Closing and cancelling streams takes effect immediately, from any context, and leaks nothing."""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from support.clock import run_loop_iterations
from support.sockets import (
    DONE,
    assert_no_leaks,
    complete,
    delta,
    open_stream,
    read,
    slots_in_use,
    with_timeout,
)
from support.steps import endless
from support.streams import KINDS, Kind

from friendli_async import (
    AsyncFriendli,
    FriendliError,
    Partial,
    StreamInterruptedError,
)
from friendli_async.testing import FriendliServer, chunk, raw, script, stall, text

pytestmark = [pytest.mark.compatibility, pytest.mark.usefixtures("collect_garbage")]


@pytest.fixture
def client_options() -> dict[str, Any]:
    """A single connection slot, to check that a stopped stream releases it."""
    return {"max_connections": 1}


# --- stopping after the first event ----------------------------------------------------------------------------------


class _UserError(Exception):
    pass


async def _break_in_block(client: AsyncFriendli) -> None:
    async with open_stream(client) as stream:
        async for _ in stream:
            break
    assert stream.outcome == "cancelled"


async def _leave_block_at_once(client: AsyncFriendli) -> None:
    async with open_stream(client) as stream:
        pass
    assert stream.outcome == "cancelled"


async def _exception_in_block(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    with contextlib.suppress(_UserError):
        async with stream:
            await anext(stream)
            raise _UserError
    assert stream.outcome == "cancelled"


async def _break_in_bare_loop(client: AsyncFriendli) -> None:
    async for _ in open_stream(client):
        break


async def _exception_in_bare_loop(client: AsyncFriendli) -> None:
    async def loop() -> None:
        async for _ in open_stream(client):
            raise _UserError

    with contextlib.suppress(_UserError):
        await loop()


async def _break_in_view(client: AsyncFriendli) -> None:
    async for _ in open_stream(client).text():
        break


async def _leave_view(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    async with stream.text() as view:
        async for _ in view:
            break
    assert stream.outcome == "cancelled"


async def _close_view(client: AsyncFriendli) -> None:
    stream = open_stream(client)
    view = stream.text()
    await anext(view)
    await view.aclose()
    assert stream.outcome == "cancelled"


async def _drop_opened(client: AsyncFriendli) -> None:
    await open_stream(client)


async def _close_here(client: AsyncFriendli) -> None:
    stream = await open_stream(client)
    await stream.aclose()
    assert stream.outcome == "cancelled"
    await stream.aclose()
    assert stream.outcome == "cancelled"


async def _close_from_another_task(client: AsyncFriendli) -> None:
    stream = await open_stream(client)
    await asyncio.create_task(stream.aclose())
    assert stream.outcome == "cancelled"


async def _cancel_the_reader(client: AsyncFriendli) -> None:
    reading = asyncio.Event()

    async def consume() -> None:
        async for _ in stream:
            reading.set()

    stream = open_stream(client)
    task = asyncio.create_task(consume())
    await with_timeout(reading.wait())
    await run_loop_iterations(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.outcome == "cancelled"


async def _time_out_the_reader(client: AsyncFriendli) -> None:
    stream = await open_stream(client)
    with pytest.raises(TimeoutError):
        await with_timeout(read(stream), 0.05)
    assert stream.outcome == "cancelled"


async def _anyio_scope(client: AsyncFriendli) -> None:
    with anyio.CancelScope() as scope:
        async with open_stream(client) as stream:
            async for _ in stream:
                scope.deadline = anyio.current_time()
    assert scope.cancelled_caught


async def _cancel_result(client: AsyncFriendli) -> None:
    stream = await open_stream(client)
    task = asyncio.create_task(stream.result())
    await run_loop_iterations(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stream.outcome == "cancelled"


async def _user_generator(client: AsyncFriendli) -> None:
    async def relay() -> AsyncIterator[str]:
        async with open_stream(client) as stream:
            async for event in stream:
                yield event.text

    generator = relay()
    await anext(generator)
    await generator.aclose()  # type: ignore[attr-defined]  # it is an async generator


STOPPERS = [
    _break_in_block, _leave_block_at_once, _exception_in_block, _break_in_bare_loop, _exception_in_bare_loop,
    _break_in_view, _leave_view, _close_view, _drop_opened, _close_here, _close_from_another_task, _cancel_the_reader,
    _time_out_the_reader, _anyio_scope, _cancel_result, _user_generator,
]  # fmt: skip
Stopper = Callable[[AsyncFriendli], Awaitable[None]]


@pytest.mark.parametrize("stop", STOPPERS)
async def test_stopping_disconnects_and_releases_the_connection_slot(
    server: FriendliServer, client: AsyncFriendli, stop: Stopper
) -> None:
    server.enqueue(script(chunk("a"), stall()), text("next"))
    await stop(client)
    assert slots_in_use(client) == 0
    assert await server.requests[0].disconnected()
    await assert_no_leaks(client, server)
    assert (await with_timeout(complete(client))).text == "next"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_leaving_a_stream_of_any_kind_leaves_a_partial_result(
    server: FriendliServer, client: AsyncFriendli, kind: Kind
) -> None:
    server.enqueue(script(*map(raw, kind.first_events), stall()))
    stream = kind.open(client)
    assert stream.partial == Partial()
    async with stream:
        for _ in kind.first_events:
            await with_timeout(anext(stream))
        assert stream.partial.text == "Hello "
    assert stream.outcome == "cancelled"
    await assert_no_leaks(client, server)
    with pytest.raises(StreamInterruptedError) as caught:
        await stream.result()
    assert caught.value.partial == stream.partial
    assert stream.partial.text == "Hello "


@pytest.mark.parametrize("stop", STOPPERS)
async def test_stopping_works_while_the_server_sends_endlessly(
    server: FriendliServer, client: AsyncFriendli, stop: Stopper
) -> None:
    if stop in (_cancel_result, _time_out_the_reader, _anyio_scope, _cancel_the_reader):
        server.enqueue(script(chunk("a"), endless(b": noise\n\n" * 1000)))
    else:
        server.enqueue(script(endless(delta("a") * 500)))
    await stop(client)
    assert await server.requests[0].disconnected()
    await assert_no_leaks(client, server)


async def test_aclose_releases_the_connection_slot_without_suspending(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = await open_stream(client)
    with pytest.raises(StopIteration):
        stream.aclose().send(None)
    assert slots_in_use(client) == 0
    assert stream.outcome == "cancelled"


async def test_last_reference_may_be_dropped_in_another_thread(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), stall()), text("next"))
    held = [await open_stream(client)]
    gone = weakref.ref(held[0])
    thread = threading.Thread(target=held.clear)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert gone() is None
    assert await server.requests[0].disconnected()
    await assert_no_leaks(client, server)
    assert (await with_timeout(complete(client))).text == "next"


async def test_failed_stream_is_not_kept_alive_by_its_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(chunk("a"), raw(b"data: {nope\n\n"), stall()))
    stream = open_stream(client)
    with pytest.raises(FriendliError):
        await read(stream)
    gone = weakref.ref(stream)
    assert slots_in_use(client) == 0
    del stream
    gc.collect()
    assert gone() is None
    await assert_no_leaks(client, server)


async def test_unused_stream_leaks_nothing(server: FriendliServer, client: AsyncFriendli) -> None:
    stream = open_stream(client)
    gone = weakref.ref(stream)
    del stream
    assert gone() is None
    assert server.connections == 0


async def test_dropping_a_view_keeps_a_stream_with_another_owner_open(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    server.enqueue(text("a", "b"))
    async with open_stream(client) as stream:
        async for _ in stream.text():
            break
        assert stream.outcome in {"open", "done"}
        assert (await with_timeout(stream.result())).text == "ab"


# --- closing while a reader waits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closes", ["stream", "client"])
async def test_closing_interrupts_a_waiting_reader(server: FriendliServer, client: AsyncFriendli, closes: str) -> None:
    server.enqueue(script(chunk("a"), stall()))
    stream = await open_stream(client)
    assert (await anext(stream)).text == "a"
    waiting = asyncio.ensure_future(anext(stream))
    await run_loop_iterations(3)
    await (stream if closes == "stream" else client).aclose()
    with pytest.raises(StreamInterruptedError) as caught:
        await with_timeout(waiting)
    assert caught.value.partial is not None
    assert caught.value.partial.text == "a"
    assert caught.value.meta == stream.meta
    assert stream.outcome == "cancelled"
    with pytest.raises(StopAsyncIteration if closes == "stream" else StreamInterruptedError):
        await anext(stream)
    with pytest.raises(StreamInterruptedError) as again:
        await stream.result()
    assert again.value.partial is not None
    assert again.value.partial.text == "a"
    await assert_no_leaks(client, server)


async def test_buffered_events_are_discarded_on_close(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(script(raw(delta("a") + delta("b") + delta("c")), stall()))
    async with open_stream(client) as stream:
        assert (await anext(stream)).text == "a"
        await stream.aclose()
        assert [event async for event in stream] == []


@pytest.mark.parametrize("reads", ["in one read", "in many"])
async def test_breaking_out_is_a_cancellation_regardless_of_buffered_events(
    server: FriendliServer, client: AsyncFriendli, reads: str
) -> None:
    pieces = [delta("a"), delta("b"), delta(finish="stop"), DONE]
    steps = [raw(b"".join(pieces))] if reads == "in one read" else [raw(piece) for piece in pieces]
    server.enqueue(script(*steps))
    async with open_stream(client) as stream:
        async for _ in stream:
            break
    assert stream.outcome == "cancelled"
