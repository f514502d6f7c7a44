"""Many streams at the same time, each with 20 events/s: what an event costs, how late it is, how many streams go."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from .clients import FLOOR, OURS
from .plan import Plan, told
from .processes import Worker
from .table import Results, Row, at_least, at_most, cells, median, number, paired, ratio, say

_LATE: Final = 0.050
"""Seconds: a client keeps up while 99 of 100 events are less late than this."""
_SERVER_LATE: Final = 0.010
"""Seconds: beyond this at the same percentile, the server was not the steady source that it should be."""
_LOST: Final = 0.10
"""Part of the time that other processes had the client's CPU, beyond which it cannot be blamed for being late."""
_BUDGET: Final = {200: 1.05, 400: 1.05, 600: 1.05}
_SURVIVES: Final = {"openai": 100, "friendli": 40}
"""A peer is not given more streams than these: it would read for minutes what came in seconds."""
_FIRST_TRY: Final = {"openai": 64, "friendli": 16}
_MOST: Final = 4_096
_PROBES: Final = 14
"""A search that has not ended by then is on a machine that others use."""


def _watch(plan: Plan, worker: Worker, streams: int) -> dict[str, Any]:
    """Watch one crowd; once more, and again, where something else than the client may have made it late.

    A server that was late is void, unless it kept up as a whole and the client bore its bursts.
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
    """Return the repeats in which floor and ours had the CPU for themselves, and the server was in time."""
    pairs = zip(results[FLOOR], results[OURS], strict=True)
    good = [pair for pair in pairs if all(result.get("queued", 1) < _LOST for result in pair)]
    return results | {FLOOR: [floor for floor, _ in good], OURS: [ours for _, ours in good]} if good else results


def paced(plan: Plan) -> Iterator[Row]:
    """Measure what an event costs and how late it reaches the loop body, at some numbers of streams."""
    with plan.workers() as workers:
        for streams in plan.crowds:
            say(f"paced: {streams} streams")
            results: Results = {}
            for repeat in range(plan.repeats if streams in _BUDGET else 1):
                for name, worker in workers.items():
                    if streams <= _SURVIVES.get(name, _MOST) and (repeat == 0 or name in (FLOOR, OURS)):
                        results.setdefault(name, []).append(told(name, _watch(plan, worker, streams)))
            yield from _paced_rows(streams, results)


def _paced_rows(streams: int, results: Results) -> list[Row]:
    results = _undisturbed(results)
    disturbed = (median(results, OURS, "queued") or 0) > _LOST
    what = f"{streams:,} streams x 20/s: CPU us an event"
    figures, beside = cells(results, "cpu", 1e6, "{:.0f}"), paired(results, OURS)
    if streams in _BUDGET:
        cost = at_most(what, beside, _BUDGET[streams], cells=figures)
    else:
        cost = Row(what, figures, number(beside, 1, "{:.2f} x"))
    cost = replace(cost, measured="~" * disturbed + cost.measured)
    p50, p99 = (cells(results, figure, 1e3, "{:.1f}") for figure in ("p50", "p99"))
    return [cost, Row("  ms late, p50 / p99", {name: f"{p50[name]} / {p99[name]}" for name in results})]


class Search:
    """Doubling, then bisection, for the most streams that a client keeps up with.

    The number that it ends at is tried again where something else may have been at fault, and then, if it goes after
    all, the search goes on from there: one bad moment of the machine does not decide.
    """

    def __init__(self, first: int, precision: float) -> None:
        """Begin with `first` streams; stop when what went and what did not are closer than `precision`."""
        self.streams = first
        self.most = 0
        self.mark = ""
        self._least_bad: int | None = None
        self._precision = precision
        self._again = 2
        self._left = _PROBES

    @property
    def over(self) -> bool:
        """Whether there is nothing more to try."""
        found = self._closed and self.streams != self._least_bad
        return found or self._left == 0 or not 1 <= self.streams <= _MOST

    @property
    def _closed(self) -> bool:
        return self._least_bad is not None and self._least_bad <= max(self.most * self._precision, self.most + 1)

    def tell(self, result: dict[str, Any]) -> None:
        """Take in how `streams` went, and choose the next number."""
        self._left -= 1
        if result.get("p99", _LATE) < _LATE:
            self.most = self.streams
            if self.streams == self._least_bad:
                self._least_bad = None
        else:
            self._least_bad = self.streams
            self.mark = "void, >= " if "void" in result else "~" * (result.get("queued", 0) > _LOST)
        if self._least_bad is None:
            self.streams = 2 * self.most
        elif self._closed and self.mark and self._again:
            self._again -= 1
            self.streams = self._least_bad
        else:
            self.streams = (self.most + self._least_bad) // 2


def capacity(plan: Plan) -> Iterator[Row]:
    """Search the most streams whose events are not late, on each kind of event loop."""
    for loop in plan.usable_loops():
        searches = {name: Search(_FIRST_TRY.get(name, 512), plan.precision) for name in plan.clients()}
        with plan.workers(loop) as workers:
            while tried := [name for name, search in searches.items() if not search.over]:
                for name in tried:
                    search = searches[name]
                    result = told(name, _watch(plan, workers[name], search.streams))
                    late = number(result.get("p99"), 1e3, "{:.1f} ms")
                    say(f"capacity, {loop}: {name}, {search.streams} streams: p99 {late}")
                    search.tell(result)
        yield from _capacity_rows(loop, searches)


def _capacity_rows(loop: str, searches: dict[str, Search]) -> list[Row]:
    most = {name: None if search.mark else search.most for name, search in searches.items()}  # no verdict on a guess
    what = f"capacity on {loop}: streams x 20/s, p99 late < 50 ms"
    figures = {name: f"{search.mark}{search.most:,}" for name, search in searches.items()}
    return [
        at_least(what, ratio(most[OURS], most[FLOOR]), 1, cells=figures),
        at_least("  beside openai's", ratio(most[OURS], most.get("openai")), 6, "{:.1f} x"),
        at_least("  beside friendli's", ratio(most[OURS], most.get("friendli")), 15, "{:.1f} x"),
    ]
