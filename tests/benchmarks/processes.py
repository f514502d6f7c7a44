"""The processes of a run: one server, and a worker for each client."""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

# Proxies of the environment are for the world outside; every byte here stays on loopback.
# No proxies on the way to loopback; and bytecode caches, as installed packages have them.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.lower().endswith("_proxy") and name != "PYTHONDONTWRITEBYTECODE"
}

_ANSWER_SECONDS = 90
_FILES = 16_384


def allow_files() -> None:
    """Let this process and its children have enough sockets: the server has two files for each of its streams."""
    with suppress(ImportError):  # not a Unix
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


class Process:
    """A child Python process that is spoken to by lines; it ends with its `with` block."""

    def __init__(self, cpu: int, module: str, *arguments: str) -> None:
        """Start `python -m module`, on one CPU (counted from 0) where the platform can keep it there.

        The server has one and the measured process another: how the kernel moves them about is not the clients' doing.
        """
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=ENVIRONMENT,
        )
        if hasattr(os, "sched_setaffinity"):
            usable = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(self._child.pid, {usable[cpu % len(usable)]})

    def ask(self, line: str | None = None) -> str:
        """Send a line, if there is one, and return the next line of the process; empty if none came in time."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        if line is not None:
            self._child.stdin.write(line + "\n")
            self._child.stdin.flush()
        ready, _, _ = select.select([self._child.stdout], [], [], _ANSWER_SECONDS)
        return self._child.stdout.readline() if ready else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._child.kill()
        self._child.communicate()


class Worker(Process):
    """A process that runs benchmark jobs with one client."""

    def __init__(self, client: str, origin: str, loop: str = "asyncio") -> None:
        """Start the worker of a client on a kind of event loop; `origin` is the benchmark server."""
        super().__init__(1, "tests.benchmarks.worker", client, loop)
        self._origin = origin

    def run(self, job: str, segment: str, **options: object) -> dict[str, Any]:
        """Run one job against one of the server's replies."""
        answer = self.ask(json.dumps([job, f"{self._origin}/{segment}", options]))
        return json.loads(answer) if answer else {"failed": "no answer in time"}
