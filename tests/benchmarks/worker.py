"""The measured process: one client, one job per line on stdin, one result per line on stdout.

Every job constructs a client, warms it up, then measures. CPU time is `time.process_time` of this process alone.
"""

import asyncio
import cProfile
import gc
import io
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from .clients import CLIENTS, Client, Each, Ours

Result: TypeAlias = dict[str, Any]

_JOB_SECONDS = 45.0
_SETTLE_SECONDS = 0.5


def _nothing() -> Each:
    """Return a callback with negligible cost."""
    return deque[object](maxlen=0).append


class Clock:
    """CPU and wall time since its creation, in seconds."""

    def __init__(self) -> None:
        """Start the clock."""
        self._queued = _queued()
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def per(self, count: int) -> Result:
        """Return the elapsed seconds per unit, and the share of time spent waiting for the CPU."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return {"cpu": cpu / count, "wall": wall / count, "count": count, "queued": (_queued() - self._queued) / wall}


def _queued() -> float:
    """Return the seconds that this process was runnable but not running; 0 if the platform does not report it."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def _memory(field: str) -> int | None:
    """Return `VmRSS` or `VmHWM` (its peak) of this process in bytes; None if there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _reset_peak() -> None:
    """Reset `VmHWM`."""
    Path("/proc/self/clear_refs").write_text("5")


async def _warm_up(client: Client, segment: str) -> None:
    """Read one stream of another segment with a client of the same kind."""
    other = type(client)(client.base.rpartition("/")[0] + "/" + segment)
    await other.read(_nothing())
    await other.aclose()


def _sent(client: Client) -> int:
    return int(client.base.rpartition("-")[2])


async def _check(client: Client) -> None:
    """Verify that a stream delivers every event that the server sends; also warms up the client."""
    events: list[object] = []
    await client.read(events.append)
    if len(events) != _sent(client):
        raise ValueError(f"{len(events)} events of {_sent(client)}")


async def _control(client: Client) -> asyncio.StreamWriter:
    """Open a control connection to the server."""
    url = urlsplit(client.base)
    _, writer = await asyncio.open_connection(url.hostname, url.port)
    return writer


async def one_by_one(client: Client, streams: int) -> Result:
    """Read `streams` streams, one after another; results are per event."""
    await _check(client)
    each = _nothing()
    gc.collect()
    clock = Clock()
    for _ in range(streams):
        await client.read(each)
    return clock.per(streams * _sent(client))


async def openings(client: Client, count: int) -> Result:
    """Read `count` streams that end immediately; results are per stream."""
    for _ in range(20):
        await _check(client)
    each = _nothing()
    gc.collect()
    clock = Clock()
    for _ in range(count):
        await client.read(each)
    return clock.per(count)


async def calls(client: Client, count: int) -> Result:
    """Make `count` plain calls, one after another."""
    for _ in range(20):
        await client.plain()
    gc.collect()
    clock = Clock()
    for _ in range(count):
        await client.plain()
    return clock.per(count)


async def gathered(client: Client, count: int, at_once: int) -> Result:
    """Make `count` plain calls, `at_once` at a time, with a semaphore and `gather`."""
    slots = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with slots:
            await client.plain()

    await asyncio.gather(*(one() for _ in range(at_once)))
    gc.collect()
    clock = Clock()
    await asyncio.gather(*(one() for _ in range(count)))
    return clock.per(count)


async def mapped(client: Client, count: int, at_once: int, checkpoint: bool = False) -> Result:
    """Make the same calls with `run_all`."""
    from friendli_async.bulk import run_all

    assert isinstance(client, Ours)

    async def one(row: int) -> Any:
        return await client.reply()

    async def run(rows: int, name: str) -> None:
        path = Path(folder) / name if checkpoint else None
        async for outcome in run_all(range(rows), one, concurrency=at_once, checkpoint=path):
            outcome.result()

    with tempfile.TemporaryDirectory() as folder:
        await run(at_once, "warm")
        gc.collect()
        clock = Clock()
        await run(count, "measured")
        return clock.per(count)


class Lateness:
    """Records when timed events reach the loop body; evaluated after the measurement."""

    def __init__(self) -> None:
        """Start without events."""
        self.times: list[float] = []
        self.texts: list[str] = []

    def take(self, chunk: Any) -> None:
        """Record an event; the loop body."""
        self.times.append(time.monotonic())
        self.texts.append(chunk.choices[0].delta.content)

    def clear(self) -> None:
        """Discard the events so far."""
        self.times.clear()
        self.texts.clear()

    def figures(self) -> Result:
        """Return percentiles of the client's latency (written to taken) and of the server's (due to written)."""
        pairs = [text.split() for text in self.texts]
        late = sorted(taken - float(written) for taken, (written, _) in zip(self.times, pairs, strict=True))
        server = sorted(float(written) - float(due) for written, due in pairs)
        at = len(late) * 99 // 100
        return {"p50": late[len(late) // 2], "p99": late[at], "server_p99": server[at]}


async def crowd(client: Client, streams: int, seconds: float, *, profile: bool = False) -> Result:
    """Hold `streams` streams open, each with 20 events/s; measure while all of them run."""
    await _warm_up(client, "bulk-100")
    control = await _control(client)
    late = Lateness()
    readers = [asyncio.create_task(client.read(late.take)) for _ in range(streams)]
    try:
        while len(late.times) < streams and not any(reader.done() for reader in readers):  # noqa: ASYNC110  # an Event would be set in the loop body, which is what is measured
            await asyncio.sleep(0.01)
        gc.collect()  # here, while no events are due
        control.write(b"GET /go/ HTTP/1.1\r\n\r\n")
        await asyncio.sleep(_SETTLE_SECONDS)
        with cProfile.Profile() if profile else nullcontext() as profiler:
            late.clear()
            clock = Clock()
            await asyncio.sleep(seconds)
            result = clock.per(len(late.times) or 1)
        result |= late.figures() | {"profile": _hottest(profiler) if profiler else None}
        if ended := next((reader for reader in readers if reader.done()), None):
            ended.result()
            raise ValueError("a stream ended early")
        return result
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        control.close()


def _hottest(profiler: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(40)
    return text.getvalue()


async def lockstep(client: Client, streams: int) -> Result:
    """Hold `streams` streams open; each gets its next event when all have received the previous one.

    Memory is measured when every stream has received its first event.
    """
    await _warm_up(client, "bulk-100")
    control = await _control(client)
    before, count, held = _memory("VmRSS") or 0, 0, 0

    def tick(_: object) -> None:
        nonlocal count, held
        count += 1
        if count % streams == 0:
            held = held or (_memory("VmRSS") or 0) - before
            control.write(b"GET /next/ HTTP/1.1\r\n\r\n")

    await asyncio.gather(*(client.read(tick) for _ in range(streams)))
    control.close()
    complete = streams if count == streams * _sent(client) else count // _sent(client)
    return {"complete": complete, "memory": held / streams}


class Quiet:
    """An observer that implements all methods as no-ops."""

    def _ignore(self, event: object) -> None:
        pass

    call_started = attempt_started = connected = attempt_ended = first_event = call_ended = _ignore


async def observed(client: Client, pairs: int) -> Result:
    """Read short streams without and with observers, alternating; return the CPU time per call that each adds.

    The median of the paired differences is returned: the noise of one is as large as the cost of an observer.
    """
    watched: dict[str, Client] = {"observer": Ours(client.base, observers=[Quiet()])}
    if find_spec("opentelemetry") is not None:
        watched |= {name: Ours(client.base, observers=[each]) for name, each in _telemetry().items()}
    added: dict[str, list[float]] = {name: [] for name in watched}
    for one in (client, *watched.values()):
        await openings(one, 20)
    for _ in range(pairs):
        plain = (await openings(client, 20))["cpu"]
        for name, one in watched.items():
            added[name].append((await openings(one, 20))["cpu"] - plain)
    for one in watched.values():
        await one.aclose()
    return {name: statistics.median(each) for name, each in added.items()}


def _telemetry() -> dict[str, object]:
    """Return OpenTelemetry's observer, with the API alone and with the SDK, which exports nothing.

    The reader is what makes the SDK aggregate the measurements: without one, it discards them.
    """
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import NoOpTracerProvider

    from friendli_async.integrations.opentelemetry import Telemetry

    return {
        "telemetry": Telemetry(NoOpTracerProvider(), NoOpMeterProvider()),
        "telemetry, SDK": Telemetry(TracerProvider(), MeterProvider([InMemoryMetricReader()])),
    }


async def ways(client: Client, repeats: int) -> Result:
    """Read a stream in every way, alternating; return the median CPU time per event of each.

    Not the minimum: on a busy machine several paced events arrive in one read, which is cheaper per event.
    """
    assert isinstance(client, Ours)
    each = _nothing()
    reads: dict[str, Callable[[Each], Awaitable[None]]] = {
        "iterate": client.read,
        "relay": client.relay,
        "encode": client.encode,
        **{f"tee {n}": partial(client.tee, n) for n in (1, 2, 8)},
    }
    costs: dict[str, list[float]] = {name: [] for name in reads}
    for repeat in range(repeats + 1):
        for name, read in reads.items():
            gc.collect()
            clock = Clock()
            await read(each)
            if repeat:  # the first one warms up
                costs[name].append(clock.per(_sent(client))["cpu"])
    return {name: statistics.median(each) for name, each in costs.items()}


async def _peak(call: Awaitable[object]) -> Result:
    gc.collect()
    before = _memory("VmRSS")
    if before is not None:
        _reset_peak()
    ended = "passed"
    clock = Clock()
    try:
        await call
    except Exception as error:  # any error of the client is a result
        ended = type(error).__name__
    peak = _memory("VmHWM")
    return clock.per(1) | {"ended": ended, "peak": peak - before if peak and before else None}


async def stream_peak(client: Client) -> Result:
    """Read one stream; return its outcome and the peak memory."""
    await _warm_up(client, "bulk-100")
    return await _peak(client.read(_nothing()))


async def plain_peak(client: Client) -> Result:
    """Make one plain call; return its outcome and the peak memory."""
    await _warm_up(client, "bulk-100")
    return await _peak(client.plain())


JOBS: dict[str, Callable[..., Awaitable[Result]]] = {
    job.__name__: job
    for job in (one_by_one, openings, calls, gathered, mapped, crowd, lockstep, observed, ways, stream_peak, plain_peak)
}


async def _run(name: str, job: str, base: str, options: dict[str, Any]) -> Result:
    client = CLIENTS[name](base)
    try:
        async with asyncio.timeout(_JOB_SECONDS):
            return await JOBS[job](client, **options)
    finally:
        await client.aclose()


def _loop(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    import uvloop

    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


def main(name: str, loop: str) -> None:
    """Run jobs until stdin is closed."""
    # glibc uses mmap for blocks over 128 KiB until the first such block is freed. asyncio reads into 256 KiB, so that
    # an import that happens to free one saves 20 us per read. Free one here, to give all clients the same start.
    bytes(1024 * 1024)
    for line in sys.stdin:
        try:
            with asyncio.Runner(loop_factory=_loop(loop)) as runner:
                result = runner.run(_run(name, *json.loads(line)))
        except Exception as error:  # a client that fails a job still gets a row in the table
            result = {"failed": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
