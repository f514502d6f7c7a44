"""The settings of a benchmark run, and the interleaved execution of jobs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from .clients import CLIENTS, FLOOR, OURS, installed
from .processes import Worker
from .table import Results, log


@dataclass(frozen=True)
class Plan:
    """One run of the benchmarks."""

    origin: str
    """URL of the server."""
    peers: bool = True
    repeats: int = 5
    """Repeats for the floor and ours; the peers have fewer."""
    peer_repeats: int = 2
    scale: float = 1.0
    """Factor for the amount of work of one repeat."""
    seconds: float = 2.0
    """Duration of the measurement of a crowd of streams."""
    tries: int = 2
    """Attempts, if something other than the client may have delayed a crowd."""
    spare: Iterator[int] = field(default_factory=lambda: iter(range(20)))
    """Budget of attempts beyond the first, for the whole run: bounds its duration on a busy machine."""
    crowds: tuple[int, ...] = (40, 100, 200, 400, 600, 1_000)
    precision: float = 1.05
    """Factor at which the search for the capacity stops."""
    thorough: bool = True
    """Whether the peers read unbounded replies, too, which takes some of them a minute."""
    loops: tuple[str, ...] = ("asyncio", "uvloop")

    def clients(self) -> list[str]:
        """Return the names of the clients to measure."""
        return [name for name in CLIENTS if installed(name) and (self.peers or name in (FLOOR, OURS))]

    def usable_loops(self) -> list[str]:
        """Return the event loops that are installed."""
        return [loop for loop in self.loops if find_spec(loop) is not None]

    @contextmanager
    def workers(self, loop: str = "asyncio") -> Iterator[dict[str, Worker]]:
        """Run a worker for each client."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(Worker(name, self.origin, loop)) for name in self.clients()}

    def interleave(self, job: Callable[[str, Worker], dict[str, Any]]) -> Results:
        """Run a job with every client, interleaved repeat by repeat."""
        results: Results = {}
        with self.workers() as workers:
            for repeat in range(self.repeats):
                for name, worker in workers.items():
                    if repeat < self.peer_repeats or name in (FLOOR, OURS):
                        results.setdefault(name, []).append(log_failure(name, job(name, worker)))
        return results


def log_failure(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result; log it if it is a failure."""
    if "failed" in result:
        log(f"  {name}: {result['failed']}")
    return result


QUICK: Final[dict[str, Any]] = {
    "repeats": 2,
    "peer_repeats": 1,
    "scale": 0.3,
    "seconds": 1.0,
    "tries": 1,
    "crowds": (40, 200),
    "precision": 1.3,
    "thorough": False,
    "loops": ("asyncio",),
}
