"""A long batch job that survives five interruptions: `python -m tests.benchmarks.survival [ROWS]`.

`friendli-async batch` sends rows to the embedded server in a separate process, and is killed three times (`kill -9`)
and interrupted twice (SIGINT) at random moments. Then it runs to completion. The output is verified, and time and
memory are printed.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .processes import ENVIRONMENT

_SERVER = """
import asyncio, sys
from collections import Counter
from friendli_async.testing import FriendliServer

with FriendliServer() as server:
    print(server.url, flush=True)
    sys.stdin.readline()
    sent = Counter(request.body for request in server.requests)
    print(len(server.requests), len(sent), max(sent.values()), flush=True)
"""
_CONCURRENCY = 64
_LINE = 470
"""Approximate bytes per line of the output."""


def _lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(1 << 20), b""))


def _job(source: Path, target: Path, url: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "friendli_async.cli.__main__", "batch", str(source), "-o", str(target), "-m", "m"]
    environment = {**ENVIRONMENT, "FRIENDLI_TOKEN": "test-token", "FRIENDLI_SERVER_URL": url}
    return subprocess.Popen([*command, "--concurrency", str(_CONCURRENCY)], env=environment)


def _interrupt(job: subprocess.Popen[bytes], number: int, target: Path, lines: int) -> None:
    """Send a signal when the output has about this many lines, and wait for the process to exit."""
    while not target.exists() or target.stat().st_size < lines * _LINE:
        if job.poll() is not None:
            raise SystemExit(f"the job ended by itself: {job.returncode}")
        time.sleep(0.01)
    os.kill(job.pid, number)
    print(f"{signal.Signals(number).name} at {_lines(target):,} rows: exit status {job.wait()}", flush=True)


def main(rows: int) -> None:
    """Run the job."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and children inherit that
    chance = random.Random(rows)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with source.open("w") as file:
            for number in range(rows):
                file.write(json.dumps({"custom_id": f"row-{number}", "prompt": f"What is {number} in words?"}) + "\n")
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        began = time.monotonic()
        moments = sorted(chance.sample(range(rows // 20, rows * 19 // 20), 5))
        signals = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGINT, signal.SIGKILL]
        for number, lines in zip(signals, moments, strict=True):
            _interrupt(_job(source, target, url), number, target, lines)
        status = _job(source, target, url).wait()
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        requests, different, most = map(int, server.communicate("\n")[0].split())
        with target.open("rb") as file:
            answers = [json.loads(line) for line in file]
        done = {answer["custom_id"] for answer in answers if answer["response"]["status_code"] == 200}
        print(f"exit status {status}; {len(answers):,} lines for {len(done):,} of {rows:,} rows")
        print(f"{seconds:.0f} s, {rows / seconds:,.0f} rows/s; peak memory of the job {peak:.0f} MiB")
        print(f"{requests:,} requests: {requests - different} sent again, none more than {most} times")
        if status or len(answers) != rows or len(done) != rows or requests - rows > 5 * _CONCURRENCY:
            raise SystemExit("rows were lost, finished twice, or sent again without need")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
