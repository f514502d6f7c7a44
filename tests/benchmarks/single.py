"""A single stream, a single call, a thousand open streams, an observer, unbounded replies."""

from typing import Any, Final

from .clients import FLOOR, OURS
from .plan import Plan, log_failure
from .processes import Worker
from .table import Results, Row, at_least, at_most, cells, log, median, number, paired, ratio

_MIB: Final = 1024 * 1024

# Numbers of events per stream and of calls, chosen so that each client takes some tenths of a second.
_BULK_EVENTS: Final = {"openai": 3_000, "friendli": 800}
_CALLS: Final = {"openai": 120, "friendli": 40}
_STREAMS: Final = 1_000
_PEER_STREAMS: Final = 200
"""Peers take half a minute to open 1,000, and need the same memory per stream."""


def events(plan: Plan) -> list[Row]:
    """Measure the CPU time per chat event of one stream, in large reads and with one event per read."""
    log("events")
    bulk = plan.interleave(
        lambda name, worker: worker.run("one_by_one", f"bulk-{_BULK_EVENTS.get(name, 40_000)}", streams=2)
    )
    paced_events = int(1_000 * plan.scale)
    paced = plan.interleave(lambda _, worker: worker.run("one_by_one", f"paced-{paced_events}", streams=1))
    read = cells(paced, "cpu", 1e6, "{:.0f}")
    return [
        at_most("one stream, an event a read: CPU us an event", paired(paced, OURS), 1.05, cells=read),
        at_most(
            "one stream, large reads: CPU us an event",
            paired(bulk, OURS),
            1.2,
            cells=cells(bulk, "cpu", 1e6, "{:.2f}"),
        ),
        at_least("  openai's beside ours", paired(bulk, "openai", OURS), 70, "{:.0f} x"),
        at_least("  friendli's beside ours", paired(bulk, "friendli", OURS), 250, "{:.0f} x"),
    ]


def calls(plan: Plan) -> list[Row]:
    """Measure the CPU time of opening a stream and of a plain call."""
    log("calls")

    def count(name: str) -> int:
        return int(_CALLS.get(name, 1_000) * plan.scale)

    opened = plan.interleave(lambda name, worker: worker.run("openings", "bulk-3", count=count(name)))
    plain = plan.interleave(lambda name, worker: worker.run("calls", "plain", count=count(name)))
    form = "{:.0f}"
    return [
        at_most("opening a stream: CPU us", paired(opened, OURS), 1.25, cells=cells(opened, "cpu", 1e6, form)),
        at_most("plain call: CPU us", paired(plain, OURS), 1.25, cells=cells(plain, "cpu", 1e6, form)),
    ]


def held(plan: Plan) -> list[Row]:
    """Hold 1,000 streams open; check that all complete, and measure the memory per stream."""
    log("held")
    results: Results = {}
    for repeat in range(min(3, plan.repeats)):
        for name in plan.clients():
            if repeat == 0 or name in (FLOOR, OURS):
                streams = _STREAMS if name in (FLOOR, OURS) else _PEER_STREAMS
                with Worker(name, plan.origin) as worker:  # a new one each time: freed memory is not returned to the OS
                    result = worker.run("lockstep", "step-3", streams=streams)
                    results.setdefault(name, []).append(log_failure(name, result))
    kib, memory = cells(results, "memory", 1 / 1024, "{:.1f}"), median(results, OURS, "memory")
    return [
        at_least("1,000 streams at once: complete", median(results, OURS, "complete"), _STREAMS, "{:.0f}"),
        at_most("  KiB of memory each", memory and memory / 1024, 24, "{:.1f}", cells=kib),
    ]


def observer(plan: Plan) -> list[Row]:
    """Measure what observers add to a call; to a read they add nothing (tests/test_observers.py)."""
    log("observer")
    with Worker(OURS, plan.origin) as worker:
        added = log_failure(OURS, worker.run("observed", "bulk-3", pairs=int(100 * plan.scale)))
    us = {name: seconds * 1e6 for name, seconds in added.items() if name != "failed"}
    return [
        Row("an observer attached: CPU us a call more", {OURS: number(us.get("observer"), 1, "{:.0f}")}),
        Row("OpenTelemetry attached, without its SDK", {OURS: number(us.get("telemetry"), 1, "{:.0f}")}),
        at_most("  with its SDK", us.get("telemetry, SDK"), 60, "{:.0f}"),
    ]


def ways(plan: Plan) -> list[Row]:
    """Measure relaying, re-encoding and tees against plain iteration; the budgets are those of large reads."""
    log("ways")
    rows: list[Row] = []
    with Worker(OURS, plan.origin) as worker:
        for what, segment, repeats in (("large reads", "bulk-20000", 8), ("an event a read", "paced-300", 8)):
            costs = log_failure(OURS, worker.run("ways", segment, repeats=max(2, int(repeats * plan.scale))))
            iterate, encode = costs.get("iterate"), costs.get("encode")
            us = {name: {OURS: number(costs.get(name), 1e6, "{:.2f}")} for name in costs}
            rows += [
                Row(f"{what}: CPU us an event, iterating", us.get("iterate", {})),
                at_most("  relayed as it came, beside iterating", ratio(costs.get("relay"), iterate), 1.1),
                at_most("  relayed, beside iterating and encoding", ratio(costs.get("relay"), encode), 0.5),
            ]
            for name in ("tee 1", "tee 2", "tee 8"):
                beside = number(ratio(costs.get(name), iterate), 1, "{:.2f} x")
                rows.append(Row(f"  {name}, beside iterating", us.get(name, {}), beside))
    return rows


_CASES: Final = (
    # segment, job, our limit in bytes, how ours must end
    ("event-8388608", "stream_peak", 32 * _MIB, "passed"),
    ("endless-event", "stream_peak", 32 * _MIB, "ResponseDecodeError"),
    ("endless-error", "plain_peak", 64 * 1024, "InternalServerError"),
    ("bomb", "plain_peak", 64 * _MIB, "ResponseDecodeError"),
)


def memory(plan: Plan) -> list[Row]:
    """Measure the peak memory of unbounded replies (the server stops at 128 MiB)."""
    rows: list[Row] = []
    for segment, job, limit, ending in _CASES:
        log(f"memory: {segment}")
        results: dict[str, dict[str, Any]] = {}
        for name in plan.clients():
            if name == OURS or (plan.thorough and name != FLOOR):  # the floor has no limits, and quadratic buffering
                with Worker(name, plan.origin) as worker:
                    results[name] = log_failure(name, worker.run(job, segment))
        peaks = {name: number(result.get("peak"), 1 / _MIB, "{:.0f}") for name, result in results.items()}
        # A reply exists as chunks, joined, and as msgspec's decoded string: three copies.
        allowed, ours = 3 * limit + 2 * _MIB, results[OURS]
        ended, peak = ours.get("ended", "failed"), ours.get("peak")
        met = None if peak is None else ended == ending and peak <= allowed
        budget = f"{ending}, <= {allowed / _MIB:.0f}"
        rows.append(Row(f"{segment}: MiB at the peak", peaks, ended, budget, met))
    return rows
