"""Measure the budgets against a minimal baseline and other clients, and print one table. Nothing is asserted.

The floor is a bare loop over aiohttp's `iter_any`, `split(b"\\n\\n")` and one msgspec decode into the same structs.
"""

import argparse
import signal
import time
from collections.abc import Callable, Iterable

from . import bulk, crowds, imports, single, structured
from .clients import CLIENTS, OURS
from .plan import QUICK, Plan
from .processes import Process, Worker, allow_files
from .table import Row, log, show, show_machine

SECTIONS: dict[str, Callable[[Plan], Iterable[Row]]] = {
    "capacity": crowds.capacity,
    "paced": crowds.paced,
    "events": single.events,
    "calls": single.calls,
    "bulk": bulk.bulk,
    "held": single.held,
    "observer": single.observer,
    "ways": single.ways,
    "imports": imports.measure,
    "structured": structured.measure,
    "memory": single.memory,
}
_PROFILED_STREAMS = 100


def _sections(names: str) -> list[str]:
    chosen = names.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in chosen]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="a minute instead of eight, as a smoke test")
    parser.add_argument("--no-peers", action="store_true", help="only the floor and friendli_async")
    parser.add_argument("--profile", nargs="?", const=OURS, choices=CLIENTS, help="profile the reading of events")
    return parser.parse_args()


def _profile(client: str, origin: str) -> None:
    with Worker(client, origin) as worker:
        result = worker.run("crowd", "many", streams=_PROFILED_STREAMS, seconds=5, profile=True)
    print(result.get("profile") or result)


def _measure(plan: Plan, names: list[str]) -> None:
    show_machine()
    started = time.monotonic()
    rows: list[Row] = []
    try:
        for name in names:
            rows += SECTIONS[name](plan)
            log(f"{name}: done after {time.monotonic() - started:.0f} s")
    except KeyboardInterrupt:
        log("interrupted: showing the measurements so far")
    show(rows)


def main() -> None:
    """Run the chosen sections, all of them by default."""
    arguments = _arguments()
    allow_files()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # as for Ctrl-C: ends the children, and shows the measurements so far
    with Process(0, "tests.benchmarks.server") as server:
        origin = f"http://127.0.0.1:{int(server.ask())}"
        if arguments.profile:
            _profile(arguments.profile, origin)
        else:
            settings = QUICK if arguments.quick else {}
            _measure(Plan(origin, peers=not arguments.no_peers, **settings), arguments.only)


if __name__ == "__main__":
    main()
