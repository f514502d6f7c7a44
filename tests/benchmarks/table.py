"""The printed table: one row per figure or budget, one column per client."""

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypeAlias

from .clients import CLIENTS, FLOOR

Results: TypeAlias = dict[str, list[dict[str, Any]]]
"""The results of each repeat of a job, by client."""


@dataclass(frozen=True)
class Row:
    """One row of the table: the clients' figures, or a measured value with its budget, or both."""

    what: str
    cells: dict[str, str] = field(default_factory=dict)
    measured: str = ""
    budget: str = ""
    met: bool | None = None
    """None if there is no budget, or nothing was measured."""


def at_most(what: str, value: float | None, limit: float, form: str = "{:.2f} x", **more: dict[str, str]) -> Row:
    """Judge a figure that must not exceed `limit`."""
    met = None if value is None else value <= limit
    return Row(what, measured=number(value, 1, form), budget="<= " + form.format(limit), met=met, **more)


def at_least(what: str, value: float | None, limit: float, form: str = "{:.2f} x", **more: dict[str, str]) -> Row:
    """Judge a figure that must reach `limit`."""
    met = None if value is None else value >= limit
    return Row(what, measured=number(value, 1, form), budget=">= " + form.format(limit), met=met, **more)


def median(results: Results, name: str, figure: str) -> float | None:
    """Return the median of one figure over the repeats of a client; None if it was not measured."""
    values = [result[figure] for result in results.get(name, ()) if result.get(figure) is not None]
    return statistics.median(values) if values else None


def paired(results: Results, name: str, baseline: str = FLOOR) -> float | None:
    """Return the median ratio of two clients' CPU times within the same repeat.

    Repeats are interleaved, so that a temporary slowdown of the machine affects both.
    """
    pairs = zip(results.get(name, ()), results.get(baseline, ()), strict=False)
    ratios = [one["cpu"] / other["cpu"] for one, other in pairs if one.get("cpu") and other.get("cpu")]
    return statistics.median(ratios) if ratios else None


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Return the ratio if both are known and not 0."""
    return numerator / denominator if numerator and denominator else None


def number(value: float | None, scale: float, form: str) -> str:
    """Format a figure for a cell."""
    return "-" if value is None else form.format(value * scale)


def cells(results: Results, figure: str, scale: float, form: str) -> dict[str, str]:
    """Return the formatted median of each client, or "failed"."""
    return {
        name: "failed" if all("failed" in result for result in repeats) else number(value, scale, form)
        for name, repeats in results.items()
        for value in [median(results, name, figure)]
    }


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    lines = [["", *CLIENTS, "measured", "budget", ""]]
    for row in rows:
        verdict = "" if not row.budget else {True: "met", False: "MISSED", None: "-"}[row.met]
        lines.append([row.what, *(row.cells.get(name, "") for name in CLIENTS), row.measured, row.budget, verdict])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        rest = (cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *rest, line[-1]]).rstrip())


def log(line: str) -> None:
    """Log progress on stderr; stdout is for the table."""
    print(line, file=sys.stderr, flush=True)


_PACKAGES: Final = ("friendli-async", "aiohttp", "msgspec", "uvloop", "openai", "friendli")


def show_machine() -> None:
    """Print the machine, the versions, and a legend."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = (line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line)
        processor = next(models, processor)
    print(f"{processor}, {platform.system()} {platform.release()}")
    print(f"{platform.python_implementation()} {platform.python_version()}", end="")
    for name in _PACKAGES:
        try:
            print(f", {name} {version(name)}", end="")
        except PackageNotFoundError:
            print(f", {name} {'from the tree' if name == 'friendli-async' else 'not installed'}", end="")
    print("\nCPU is that of the client's own process, warmed up; medians of interleaved repeats; one server process.")
    print("A ratio is the median of the ratios within a repeat, so it is not quite that of the columns.")
    print("void: the server was late. ~: other processes had the client's CPU for more than 10 % of the time.\n")
