"""The measured process: one client, one job a line on stdin, one result a line on stdout.

Every job builds a client, warms it up and measures after that. CPU is `time.process_time` of this process alone.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from .clients import CLIENTS, Client

Result: TypeAlias = dict[str, Any]

_JOB_SECONDS = 60.0


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        """Collect garbage first, so that no job pays for the one before."""
        gc.collect()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def per(self, count: int) -> Result:
        """Return the seconds so far, per unit of `count`, and the count."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu": cpu / count, "wall": wall / count, "count": count}


def _memory(field: str) -> int | None:
    """Return `VmRSS` or `VmHWM` (its peak) of this process in bytes; None where the platform has no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _forget_peak() -> None:
    """Let `VmHWM` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


async def _warm_up(client: Client, base: str) -> None:
    """Read one stream of another base with a client of the same kind."""
    other = type(client)(base)
    await other.drain()
    await other.aclose()


def _checked(client: Client, count: int, streams: int) -> int:
    """Return the count, if it is what the server sent: nobody is fast by losing events."""
    expected = streams * int(client.base.rpartition("-")[2])
    if count != expected:
        raise ValueError(f"{count} events of {expected}")
    return count


async def one_by_one(client: Client, streams: int) -> Result:
    """Read `streams` streams, one after another."""
    await client.drain()
    clock = Clock()
    count = 0
    for _ in range(streams):
        count += await client.drain()
    result = clock.per(_checked(client, count, streams)) | {"rss": _memory("VmRSS")}
    if hasattr(client, "reads"):
        result["reads"] = client.reads * streams / count
    return result


async def together(client: Client, streams: int) -> Result:
    """Read `streams` streams, all at the same time, over connections that are there already."""
    await asyncio.gather(*(client.drain() for _ in range(streams)))
    clock = Clock()
    counts = await asyncio.gather(*(client.drain() for _ in range(streams)))
    return clock.per(_checked(client, sum(counts), streams)) | {"complete": len(counts)}


async def lockstep(client: Client, streams: int) -> Result:
    """Hold `streams` streams open together; each gets its next event when all have got the one before.

    The memory is taken when every stream has had its first event; the CPU time starts there.
    """
    url = urlsplit(client.base)
    await _warm_up(client, f"http://{url.netloc}/bulk-100")
    _, control = await asyncio.open_connection(url.hostname, url.port)
    memory, count, rounds = _memory("VmRSS") or 0, 0, 0
    clock: Clock | None = None

    def tick() -> None:
        nonlocal count, rounds, memory, clock
        count += 1
        if count % streams == 0:
            rounds += 1
            if rounds == 1:
                memory = (_memory("VmRSS") or 0) - memory
                clock = Clock()
            control.write(b"GET /next/ HTTP/1.1\r\n\r\n")

    async def read() -> None:
        async for _ in client.events():
            tick()

    await asyncio.gather(*(read() for _ in range(streams)))
    assert clock is not None
    result = clock.per(_checked(client, count, streams) - streams)
    control.close()
    await control.wait_closed()
    return result | {"complete": streams, "memory": memory / streams}


async def first_to_last(client: Client, streams: int) -> Result:
    """Read `streams` streams one after another, as `lockstep` counts: from the first event of each to its end."""
    await client.drain()
    cpu, count = 0.0, 0
    for _ in range(streams):
        started = None
        async for _event in client.events():
            if started is None:
                started = time.process_time()
            else:
                count += 1
        assert started is not None
        cpu += time.process_time() - started
    return {"cpu": cpu / count}


async def calls(client: Client, count: int) -> Result:
    """Make `count` plain calls, one after another."""
    for _ in range(20):
        await client.plain()
    clock = Clock()
    for _ in range(count):
        await client.plain()
    return clock.per(count)


async def _peak(call: Callable[[], Awaitable[object]]) -> Result:
    gc.collect()
    before = _memory("VmRSS")
    if before is not None:
        _forget_peak()
    ended = "passed"
    clock = Clock()
    try:
        await call()
    except Exception as error:  # whatever the client raises is the result
        ended = type(error).__name__
    peak = _memory("VmHWM")
    return clock.per(1) | {"ended": ended, "peak": peak - before if peak and before else None}


async def stream_peak(client: Client, _: int) -> Result:
    """Read one stream and tell how it ended and what memory it took at its peak."""
    return await _peak(client.drain)


async def plain_peak(client: Client, _: int) -> Result:
    """Make one plain call and tell how it ended and what memory it took at its peak."""
    return await _peak(client.plain)


JOBS: dict[str, Callable[[Client, int], Awaitable[Result]]] = {
    job.__name__: job for job in (one_by_one, together, lockstep, first_to_last, calls, stream_peak, plain_peak)
}


async def _run(name: str, job: str, base: str, amount: int) -> Result:
    client = CLIENTS[name](base)
    try:
        async with asyncio.timeout(_JOB_SECONDS):
            return await JOBS[job](client, amount)
    finally:
        await client.aclose()


def main() -> None:
    """Answer jobs until stdin ends."""
    # glibc maps blocks over 128 KiB one by one until the first such block is freed. asyncio reads into 256 KiB, so
    # whether an import happened to free one decides on 20 us a read: begin with it freed, for everybody.
    bytes(1024 * 1024)
    for line in sys.stdin:
        try:
            result = asyncio.run(_run(sys.argv[1], *json.loads(line)))
        except Exception as error:  # a client that cannot do a job is a row of the table
            result = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
