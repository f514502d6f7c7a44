"""What is printed: a table for each question, and the budgets with their verdicts at the end."""

import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from .clients import CLIENTS, installed

OURS: Final = "friendli_async"
FLOOR: Final = "floor"

Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Verdict:
    """One line of the budget: what was measured beside what is allowed."""

    what: str
    measured: str
    budget: str
    met: bool | None
    """None where it could not be measured."""


def at_most(what: str, measured: float | None, limit: float, form: str = "{:.2f} x") -> Verdict:
    """Judge a figure that must not exceed `limit`."""
    return _verdict(what, measured, "<= " + form.format(limit), form, met=measured is not None and measured <= limit)


def at_least(what: str, measured: float | None, limit: float, form: str = "{:.0f} x") -> Verdict:
    """Judge a figure that must reach `limit`."""
    return _verdict(what, measured, ">= " + form.format(limit), form, met=measured is not None and measured >= limit)


def _verdict(what: str, measured: float | None, budget: str, form: str, *, met: bool) -> Verdict:
    if measured is None:
        return Verdict(what, "not measured", budget, None)
    return Verdict(what, form.format(measured), budget, met)


def median(results: Results, name: str, field: str) -> float | None:
    """Return the median of one figure over the repeats of a client; None where it was not measured."""
    values = [result[field] for result in results.get(name, ()) if result.get(field) is not None]
    return statistics.median(values) if values else None


def paired(results: Results, name: str, field: str = "cpu", beside: str = FLOOR) -> float | None:
    """Return the median over the repeats of one client's figure divided by its neighbour's of the same repeat.

    Repeats are interleaved: what slows the machine down for a while slows both.
    """
    pairs = zip(results.get(name, ()), results.get(beside, ()), strict=False)
    ratios = [one[field] / other[field] for one, other in pairs if one.get(field) and other.get(field)]
    return statistics.median(ratios) if ratios else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Divide, where both are known."""
    return numerator / denominator if numerator and denominator else None


def number(value: float | None, scale: float = 1e6, form: str = "{:.2f}") -> str:
    """Format a figure for a cell, seconds as microseconds unless told otherwise."""
    return "-" if value is None else form.format(value * scale)


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; the first column is the name of a client or a case."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    print(f"\n{title}")
    for row in (head, ["-" * width for width in widths], *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]), flush=True)


def show_clients(title: str, results: Results, columns: dict[str, tuple[str, float, str]]) -> None:
    """Print one row a client: each column is a field, its scale and its format; then CPU beside floor and ours."""
    rows: list[list[str]] = []
    ours, floor = median(results, OURS, "cpu"), median(results, FLOOR, "cpu")
    for name in CLIENTS:
        if not installed(name):
            rows.append([name, *["not installed"] * len(columns), "", ""])
            continue
        cpu = median(results, name, "cpu")
        beside = [number(ratio(cpu, floor), 1), number(ratio(cpu, ours), 1)]
        failed = next((result["failed"] for result in results.get(name, ()) if "failed" in result), None)
        if cpu is None and failed:
            rows.append([name, *["failed"] * len(columns), "", failed[:60]])
        else:
            cells = [number(median(results, name, field), scale, form) for field, scale, form in columns.values()]
            rows.append([name, *cells, *beside])
    show(title, ["client", *columns, "x floor", "x ours"], rows)


def show_machine() -> None:
    """Print what the figures were measured on."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        processor = next(models, processor)
    print(f"{processor}, {platform.system()} {platform.release()}")
    print(f"{platform.python_implementation()} {platform.python_version()}", end="")
    for name in ("friendli-async", "aiohttp", "msgspec", "tenacity", "anyio", "httpx-sse", "openai", "friendli"):
        try:
            print(f", {name} {version(name)}", end="")
        except PackageNotFoundError:
            print(f", {name} {'from the tree' if name == 'friendli-async' else 'not installed'}", end="")
    print("\nCPU is that of the client's own process, warmed up; medians of interleaved repeats; one server process.")
    print("A budget's ratio is the median of the ratios within a repeat, so it is not quite that of the columns.")


def show_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print every budget with what was measured."""
    words = {True: "met", False: "NOT MET", None: "-"}
    rows = [[verdict.what, verdict.measured, verdict.budget, words[verdict.met]] for verdict in verdicts]
    show("Budgets", ["what", "measured", "budget", "verdict"], rows)
