"""Measure the budgets beside the bare floor and the peers, and print the tables. Nothing is asserted.

    python -m tests.benchmarks [--no-peers] [events | calls | streams | imports | memory]...

The floor is a bare loop of aiohttp's `iter_any`, `split(b"\\n\\n")` and one msgspec decode into the same structs.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from . import imports
from .clients import CLIENTS, installed
from .processes import Process, Worker
from .table import (
    FLOOR,
    OURS,
    Results,
    Verdict,
    at_least,
    at_most,
    median,
    number,
    paired,
    ratio,
    show,
    show_clients,
    show_machine,
    show_verdicts,
)

_REPEATS = 7
_PEER_REPEATS = 3

# Events of one stream, so that each client takes some tenths of a second.
_BULK_EVENTS = {"floor": 40_000, "friendli_async": 40_000, "httpx-sse": 4_000, "openai": 3_000, "friendli": 1_000}
_PACED_EVENTS = {"floor": 1_000, "friendli_async": 1_000, "httpx-sse": 500, "openai": 500, "friendli": 500}
_CALLS = {"floor": 1_500, "friendli_async": 1_500, "httpx-sse": 200, "openai": 200, "friendli": 100}
_STREAMS = 1_000
_STREAM_EVENTS = 20
_MIB = 1024 * 1024

_TIME_COLUMNS = {"CPU us": ("cpu", 1e6, "{:.2f}"), "wall us": ("wall", 1e6, "{:.2f}")}


def _interleave(origin: str, job: str, segment: Callable[[str], str], amount: Callable[[str], int]) -> Results:
    """Run one job with every installed client: the floor and ours `_REPEATS` times in turn, the peers now and then."""
    results: Results = {}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, origin)) for name in CLIENTS if installed(name)}
        for repeat in range(_REPEATS):
            for name, worker in workers.items():
                if repeat < _PEER_REPEATS or name in (FLOOR, OURS):
                    results.setdefault(name, []).append(worker.run(job, segment(name), amount(name)))
    return results


def events(origin: str) -> list[Verdict]:
    """Measure the CPU time per chat event, in large reads and one event a read."""
    bulk = _interleave(origin, "one_by_one", lambda name: f"bulk-{_BULK_EVENTS[name]}", lambda _: 2)
    columns = _TIME_COLUMNS | {"RSS MiB": ("rss", 1 / _MIB, "{:.0f}")}
    show_clients("Chat event, stream in large reads (ours accumulates, nobody else does)", bulk, columns)
    paced = _interleave(origin, "one_by_one", lambda name: f"paced-{_PACED_EVENTS[name]}", lambda _: 1)
    columns = _TIME_COLUMNS | {"reads/event": ("reads", 1, "{:.2f}")}
    show_clients("Chat event, one event a read (1 ms apart)", paced, columns)
    return [
        at_most("CPU per chat event, large reads, beside the floor", paired(bulk, OURS), 1.5),
        at_most("CPU per chat event, one event a read, beside the floor", paired(paced, OURS), 1.3),
        at_least("official friendli, CPU per event beside ours", paired(bulk, "friendli", beside=OURS), 200),
        at_least("openai, CPU per event beside ours", paired(bulk, "openai", beside=OURS), 60),
    ]


def calls(origin: str) -> list[Verdict]:
    """Measure the CPU time of a plain call."""
    results = _interleave(origin, "calls", lambda _: "plain", lambda name: _CALLS[name])
    show_clients("Plain call", results, _TIME_COLUMNS)
    return [at_most("CPU per plain call, beside the floor", paired(results, OURS), 1.3)]


def streams(origin: str) -> list[Verdict]:
    """Measure 1,000 streams at the same time: memory of each, and what an event costs beside one stream's."""
    held: Results = {}
    for repeat in range(_PEER_REPEATS):
        for name in filter(installed, CLIENTS):
            if repeat == 0 or name in (FLOOR, OURS):
                with Worker(name, origin) as worker:  # a new process each time: memory once used is not given back
                    result = worker.run("lockstep", f"step-{_STREAM_EVENTS}", _STREAMS)
                    held.setdefault(name, []).append(result)
                    if name in (FLOOR, OURS):
                        alone = worker.run("first_to_last", f"paced-{_STREAM_EVENTS}", 20)
                        result |= {"alone": alone.get("cpu")}
                        apart = worker.run("one_by_one", "bulk-200", 500)
                        result |= {"bulk_apart": apart.get("cpu")}
                        result |= {"bulk_together": worker.run("together", "bulk-200", _STREAMS).get("cpu")}
    columns = {
        "complete": ("complete", 1.0, "{:.0f}"),
        "KiB/stream": ("memory", 1 / 1024, "{:.1f}"),
        "CPU us/event": ("cpu", 1e6, "{:.2f}"),
        "one stream's": ("alone", 1e6, "{:.2f}"),
        "large reads": ("bulk_together", 1e6, "{:.2f}"),
        "one by one": ("bulk_apart", 1e6, "{:.2f}"),
    }
    show_clients(f"{_STREAMS} streams at the same time, each one event a read, in lockstep", held, columns)
    memory = median(held, OURS, "memory")
    return [
        at_least(f"{_STREAMS} concurrent streams: complete", median(held, OURS, "complete"), _STREAMS, "{:.0f}"),
        at_most("memory of an open stream", memory / 1024 if memory else None, 40, "{:.1f} KiB"),
        at_most("CPU per event of 1,000, one event a read, beside one stream's", _own(held, "cpu", "alone"), 1.3),
        at_most(
            "CPU per event of 1,000, large reads, beside one by one", _own(held, "bulk_together", "bulk_apart"), 1.3
        ),
    ]


def _own(results: Results, field: str, beside: str) -> float | None:
    return ratio(median(results, OURS, field), median(results, OURS, beside))


_CASES = (
    # segment, job, our limit in bytes, how ours must end
    ("event-8388608", "stream_peak", 32 * _MIB, "passed"),
    ("endless-event", "stream_peak", 32 * _MIB, "ResponseDecodeError"),
    ("endless-error", "plain_peak", 64 * 1024, "InternalServerError"),
    ("bomb", "plain_peak", 64 * _MIB, "ResponseDecodeError"),
)


def memory(origin: str) -> list[Verdict]:
    """Measure the peak memory of replies without measure (the server itself stops at 128 MiB)."""
    rows: list[list[str]] = []
    verdicts: list[Verdict] = []
    for segment, job, limit, ending in _CASES:
        for name in CLIENTS:
            if name == FLOOR or not installed(name):  # the floor has no limits, and a quadratic buffer
                continue
            with Worker(name, origin) as worker:
                worker.run("one_by_one", "bulk-100", 1)
                result = worker.run(job, segment)
            ended = str(result.get("ended", result.get("failed", "")))[:40]
            peak = result.get("peak")
            rows.append([segment, name, ended, number(peak, 1 / _MIB, "{:.1f}"), number(result.get("wall"), 1)])
            if name == OURS:
                # A reply is held in pieces and once more in one piece, and msgspec's text of it is a third.
                met = None if peak is None else ended == ending and peak <= 3 * limit + 2 * _MIB
                measured = f"{ended}, {number(peak, 1 / _MIB, '{:.1f}')} MiB"
                budget = f"{ending}, <= {3 * limit / _MIB + 2:.0f} MiB"
                verdicts.append(Verdict(f"{segment}: peak memory (3 x its limit, + 2 MiB)", measured, budget, met))
    show("Replies without measure", ["reply", "client", "ended", "peak MiB", "wall s"], rows)
    return verdicts


SECTIONS: dict[str, Callable[[str], list[Verdict]]] = {
    "events": events,
    "calls": calls,
    "streams": streams,
    "imports": imports.measure,
    "memory": memory,
}


def main(arguments: list[str]) -> None:
    """Run the chosen sections, all of them by default."""
    if "--no-peers" in arguments:
        for name in set(CLIENTS) - {FLOOR, OURS}:
            del CLIENTS[name]
    chosen = [name for name in arguments if name != "--no-peers"] or list(SECTIONS)
    show_machine()
    started = time.monotonic()
    verdicts: list[Verdict] = []
    with Process(0, "tests.benchmarks.server") as server:
        origin = f"http://127.0.0.1:{int(server.ask())}"
        for name in chosen:
            verdicts += SECTIONS[name](origin)
    show_verdicts(verdicts)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
