"""Relaying, teeing and stopping many streams leaves no objects, tasks or file descriptors and does not grow memory."""

import asyncio
import gc
import os
import tracemalloc
from collections.abc import AsyncIterable
from operator import itemgetter

from support.clock import wait_until
from support.live_objects import live_objects
from support.sockets import delta, library_tasks, open_stream, slots_in_use

from friendli_async import AsyncFriendli, FriendliError
from friendli_async.testing import FriendliServer, cut, raw, script, stall

_ROUNDS = 30
GOOD = [raw(delta("a")), raw(delta("b") + delta(finish="stop") + b"data: [DONE]\n\n")]
ENDLESS = [raw(delta("a")), raw(delta("b")), stall()]
BROKEN = [raw(delta("a")), cut()]


async def count(source: AsyncIterable[object]) -> int:
    return len([each async for each in source])


async def relay_streams(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(*GOOD), script(*ENDLESS), script(*BROKEN))
    await count(open_stream(client).raw())
    async for _ in open_stream(client).raw():
        break
    await asyncio.gather(count(open_stream(client).raw()), return_exceptions=True)


async def stop_streams(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(*[script(*ENDLESS)] * 3)
    stream = open_stream(client)
    await anext(stream)
    await stream.stop()
    assert (await stream.result()).text in {"a", "ab"}  # "b" may have arrived with "a"
    assert (await open_stream(client).stop_when(lambda text: "b" in text).result()).text == "ab"
    waited_for = open_stream(client)
    reading = asyncio.ensure_future(count(waited_for))
    await wait_until(lambda: waited_for._open is not None)
    await waited_for.stop()
    await reading


async def tee_streams(client: AsyncFriendli, server: FriendliServer) -> None:
    # The broken one comes first: asyncio keeps the exceptions of the last gather alive for a while.
    server.enqueue(script(*BROKEN), script(*GOOD), script(*ENDLESS), script(*ENDLESS))
    ends = await asyncio.gather(*map(count, open_stream(client).tee(2)), return_exceptions=True)
    assert all(isinstance(end, FriendliError) for end in ends)
    del ends
    await asyncio.gather(*map(count, open_stream(client).tee(3)))
    one, other = open_stream(client).tee(2)
    await anext(one)
    waiting = [asyncio.ensure_future(count(branch)) for branch in (one, other)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.wait(waiting[:1])
    waiting[1].cancel()
    await asyncio.wait(waiting)
    for branch in open_stream(client).tee(2):
        await anext(branch)
    del branch, one, other


async def test_many_streams_leave_no_objects_and_no_memory_growth(
    server: FriendliServer, client: AsyncFriendli
) -> None:
    async def run_rounds(number: int) -> tuple[int, int]:
        for _ in range(number):
            for kind in (relay_streams, stop_streams, tee_streams):
                await kind(client, server)
            server.requests.clear()
        await server.idle(timeout=30)
        await wait_until(lambda: slots_in_use(client) == 0)
        gc.collect()
        return len(os.listdir("/proc/self/fd")), tracemalloc.get_traced_memory()[0]

    gc.collect()
    others = live_objects()  # left by other tests
    tracemalloc.start()
    try:
        await run_rounds(_ROUNDS)
        # The minimum of three samples, because objects of the last round may not have been freed yet.
        files, before = min([await run_rounds(1) for _ in range(3)], key=itemgetter(1))
        await run_rounds(_ROUNDS)
        files_after, after = min([await run_rounds(1) for _ in range(3)], key=itemgetter(1))
    finally:
        tracemalloc.stop()
    assert library_tasks() == []
    assert live_objects() - others == {}
    assert files_after <= files + 8  # the number of pooled connections varies slightly
    assert after - before < 10 * _ROUNDS * 100  # 100 bytes per stream: less than any object of one
