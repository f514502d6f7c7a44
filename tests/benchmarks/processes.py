"""The processes of a run: one server, and one worker per client."""

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

# No proxies, because all traffic is on loopback; and bytecode caches, as for installed packages.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.lower().endswith("_proxy") and name != "PYTHONDONTWRITEBYTECODE"
}

_ANSWER_SECONDS = 90
_FILES = 16_384


def allow_files() -> None:
    """Raise the limit of open files for this process and its children: the server has two files per stream."""
    with suppress(ImportError):  # not a Unix
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = _FILES if most == resource.RLIM_INFINITY else min(_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


class Process:
    """A child Python process with a line-based protocol on its pipes; killed at the end of its `with` block."""

    def __init__(self, cpu: int, module: str, *arguments: str) -> None:
        """Start `python -m module`, pinned to one CPU (counted from 0) if the platform supports it.

        Server and measured process have different ones, so that scheduling does not affect the result.
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
        """Send a line, if given, and return the next line of output; empty on timeout."""
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
        """Start the worker of a client on the given event loop; `origin` is the URL of the server."""
        super().__init__(1, "tests.benchmarks.worker", client, loop)
        self._origin = origin

    def run(self, job: str, segment: str, **options: object) -> dict[str, Any]:
        """Run one job against one of the server's endpoints."""
        answer = self.ask(json.dumps([job, f"{self._origin}/{segment}", options]))
        return json.loads(answer) if answer else {"failed": "no answer in time"}
