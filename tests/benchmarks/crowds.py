"""Many concurrent streams of 20 events/s each: cost per event, latency, and capacity."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from .clients import FLOOR, OURS
from .plan import Plan, log_failure
from .processes import Worker
from .table import Results, Row, at_least, at_most, cells, log, median, number, paired, ratio

_LATE: Final = 0.050
"""Seconds: a client keeps up while the 99th percentile of its latency is below this."""
_SERVER_LATE: Final = 0.010
"""Seconds: above this at the same percentile, the server itself was too late for a valid measurement."""
_LOST: Final = 0.10
"""Share of time that other processes used the client's CPU, above which its latency is not its own fault."""
_BUDGET: Final = {200: 1.05, 400: 1.05, 600: 1.05}
_SURVIVES: Final = {"openai": 100, "friendli": 40}
"""Maximum streams for the peers: with more, they need minutes to read the events of a few seconds."""
_FIRST_TRY: Final = {"openai": 64, "friendli": 16}
_MOST: Final = 4_096
_PROBES: Final = 14
"""Maximum steps of a search; one that needs more runs on a busy machine."""


def _watch(plan: Plan, worker: Worker, streams: int) -> dict[str, Any]:
    """Measure one crowd; repeat if something other than the client may have delayed it.

    A measurement with a late server is void, unless both server and client still kept up.
    """
    result: dict[str, Any] = {}
    for _ in range(plan.tries):
        result = worker.run("crowd", "many", streams=streams, seconds=plan.seconds)
        if "failed" in result or max(result["p99"], result["server_p99"]) < _LATE:
            return result
        if result["server_p99"] > _SERVER_LATE:
            late = f"the server was {result['server_p99'] * 1e3:.0f} ms late"
            result = {"failed": f"{streams} streams: {late}", "void": True}
        elif result["queued"] < _LOST:
            return result
        if next(plan.spare, None) is None:
            break
    return result


def _undisturbed(results: Results) -> Results:
    """Return the repeats in which floor and ours had the CPU to themselves, or all if there are none."""
    pairs = zip(results[FLOOR], results[OURS], strict=True)
    good = [pair for pair in pairs if all(result.get("queued", 1) < _LOST for result in pair)]
    return results | {FLOOR: [floor for floor, _ in good], OURS: [ours for _, ours in good]} if good else results


def paced(plan: Plan) -> Iterator[Row]:
    """Measure cost and latency per event, at several numbers of streams."""
    with plan.workers() as workers:
        for streams in plan.crowds:
            log(f"paced: {streams} streams")
            results: Results = {}
            for repeat in range(plan.repeats if streams in _BUDGET else 1):
                for name, worker in workers.items():
                    if streams <= _SURVIVES.get(name, _MOST) and (repeat == 0 or name in (FLOOR, OURS)):
                        results.setdefault(name, []).append(log_failure(name, _watch(plan, worker, streams)))
            yield from _paced_rows(streams, results)


def _paced_rows(streams: int, results: Results) -> list[Row]:
    results = _undisturbed(results)
    disturbed = (median(results, OURS, "queued") or 0) > _LOST
    what = f"{streams:,} streams x 20/s: CPU us an event"
    figures, relative = cells(results, "cpu", 1e6, "{:.0f}"), paired(results, OURS)
    if streams in _BUDGET:
        cost = at_most(what, relative, _BUDGET[streams], cells=figures)
    else:
        cost = Row(what, figures, number(relative, 1, "{:.2f} x"))
    cost = replace(cost, measured="~" * disturbed + cost.measured)
    p50, p99 = (cells(results, figure, 1e3, "{:.1f}") for figure in ("p50", "p99"))
    return [cost, Row("  ms late, p50 / p99", {name: f"{p50[name]} / {p99[name]}" for name in results})]


class Search:
    """Search for the most streams that a client keeps up with, by doubling, then bisection.

    If the failure at the final number may have another cause, that number is tried again; if it now succeeds, the
    search continues from there, so that a single disturbance does not decide.
    """

    def __init__(self, first: int, precision: float) -> None:
        """Start with `first` streams; stop when success and failure are within a factor of `precision`."""
        self.streams = first
        self.most = 0
        self.mark = ""
        self._least_failed: int | None = None
        self._precision = precision
        self._retries = 2
        self._probes_left = _PROBES

    @property
    def over(self) -> bool:
        """Whether the search has ended."""
        found = self._converged and self.streams != self._least_failed
        return found or self._probes_left == 0 or not 1 <= self.streams <= _MOST

    @property
    def _converged(self) -> bool:
        return self._least_failed is not None and self._least_failed <= max(self.most * self._precision, self.most + 1)

    def record(self, result: dict[str, Any]) -> None:
        """Record the result for `streams`, and choose the next number."""
        self._probes_left -= 1
        if result.get("p99", _LATE) < _LATE:
            self.most = self.streams
            if self.streams == self._least_failed:
                self._least_failed = None
        else:
            self._least_failed = self.streams
            self.mark = "void, >= " if "void" in result else "~" * (result.get("queued", 0) > _LOST)
        if self._least_failed is None:
            self.streams = 2 * self.most
        elif self._converged and self.mark and self._retries:
            self._retries -= 1
            self.streams = self._least_failed
        else:
            self.streams = (self.most + self._least_failed) // 2


def capacity(plan: Plan) -> Iterator[Row]:
    """Search for the most streams that each client keeps up with, on each event loop."""
    for loop in plan.usable_loops():
        searches = {name: Search(_FIRST_TRY.get(name, 512), plan.precision) for name in plan.clients()}
        with plan.workers(loop) as workers:
            while tried := [name for name, search in searches.items() if not search.over]:
                for name in tried:
                    search = searches[name]
                    result = log_failure(name, _watch(plan, workers[name], search.streams))
                    late = number(result.get("p99"), 1e3, "{:.1f} ms")
                    log(f"capacity, {loop}: {name}, {search.streams} streams: p99 {late}")
                    search.record(result)
        yield from _capacity_rows(loop, searches)


def _capacity_rows(loop: str, searches: dict[str, Search]) -> list[Row]:
    most = {
        name: None if search.mark else search.most for name, search in searches.items()
    }  # no verdict on an uncertain result
    what = f"capacity on {loop}: streams x 20/s, p99 late < 50 ms"
    figures = {name: f"{search.mark}{search.most:,}" for name, search in searches.items()}
    return [
        at_least(what, ratio(most[OURS], most[FLOOR]), 1, cells=figures),
        at_least("  beside openai's", ratio(most[OURS], most.get("openai")), 6, "{:.1f} x"),
        at_least("  beside friendli's", ratio(most[OURS], most.get("friendli")), 15, "{:.1f} x"),
    ]
