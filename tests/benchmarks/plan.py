"""How thoroughly to measure, and the runs in turn that every section is made of."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from .clients import CLIENTS, FLOOR, OURS, installed
from .processes import Worker
from .table import Results, say


@dataclass(frozen=True)
class Plan:
    """One run of the benchmarks."""

    origin: str
    """The server."""
    peers: bool = True
    repeats: int = 5
    """Of the floor and ours; peers are measured less often."""
    peer_repeats: int = 2
    scale: float = 1.0
    """Of how much is done in one repeat."""
    seconds: float = 2.0
    """How long a crowd of streams is watched."""
    tries: int = 2
    """Where something else than the client may have made a crowd late."""
    spare: Iterator[int] = field(default_factory=lambda: iter(range(20)))
    """One is taken for each try beyond the first: a busy machine must not take the whole day."""
    crowds: tuple[int, ...] = (40, 100, 200, 400, 600, 1_000)
    precision: float = 1.05
    """Where the search for the capacity stops."""
    thorough: bool = True
    """Whether the peers, too, read replies without measure, which takes some of them a minute."""
    loops: tuple[str, ...] = ("asyncio", "uvloop")

    def clients(self) -> list[str]:
        """Return the clients that are measured."""
        return [name for name in CLIENTS if installed(name) and (self.peers or name in (FLOOR, OURS))]

    def usable_loops(self) -> list[str]:
        """Return the kinds of event loop that are measured."""
        return [loop for loop in self.loops if find_spec(loop) is not None]

    @contextmanager
    def workers(self, loop: str = "asyncio") -> Iterator[dict[str, Worker]]:
        """Run a worker for each client."""
        with ExitStack() as stack:
            yield {name: stack.enter_context(Worker(name, self.origin, loop)) for name in self.clients()}

    def in_turn(self, job: Callable[[str, Worker], dict[str, Any]]) -> Results:
        """Run one job with every client, repeat by repeat."""
        results: Results = {}
        with self.workers() as workers:
            for repeat in range(self.repeats):
                for name, worker in workers.items():
                    if repeat < self.peer_repeats or name in (FLOOR, OURS):
                        results.setdefault(name, []).append(told(name, job(name, worker)))
        return results


def told(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return the result, having said so if it is none."""
    if "failed" in result:
        say(f"  {name}: {result['failed']}")
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
