"""Sends a file of requests, as many at a time as the server takes, and writes a file of answers.

IN has one request a line: OpenAI's batch lines, or prompts, as JSON strings or {"prompt": "..."}.
OUT gets a line for each as soon as it is answered, and says what is done: after an interruption of
any kind, the same command goes on where it ended. Requests that have changed since are sent again.

Ctrl-C lets what is under way finish; twice, and it is cut.

Exit status: 0 all rows are good, 1 some have failed, 2 bad input (nothing was sent), 3 OUT cannot be
written, or another run is writing to it, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from friendli_async.bulk import CheckpointError, Outcome, Progress, RowsError, Run
from friendli_async.bulk.batch_files import BatchInput, BatchOutput, BatchRow, FailedBeforeError
from friendli_async.bulk.run import Job
from friendli_async.cli import connection
from friendli_async.client import AsyncFriendli, DeploymentName
from friendli_async.errors import ConfigurationError
from friendli_async.replies import Reply

__all__ = ["add_arguments", "run"]

_BAD_OUTPUT: Final = 3
_CONNECTIONS: Final = 1000
_LARGE: Final = 1 << 25
"""Bytes of a file that take a second to check."""
_NAMED: Final = 10
"""So many rows of a kind are named; the rest is counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="the requests (read twice, so a file)")
    parser.add_argument(
        "-o", "--output", metavar="OUT.jsonl", type=Path, required=True, help="the answers, and what to go on from"
    )
    parser.add_argument("-m", "--model", help="model of every request, whatever its line says")
    connection.add_deployment(parser)
    parser.add_argument(
        "--concurrency", type=_concurrency, default="auto", metavar="auto|N", help="requests at a time (%(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="the most tokens of every answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature of every request")
    parser.add_argument("-s", "--system", metavar="TEXT", help="system message for lines that are prompts")
    parser.add_argument(
        "--retry-failed", action="store_true", help="send failed rows again, but for those that were refused for good"
    )


def _concurrency(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a whole number above 0")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; gives its exit status."""
    page = _Page()
    try:
        return _checked(arguments, page)
    except (RowsError, ConfigurationError, OSError) as error:
        page.say(f"friendli-async batch: {error}")
        return connection.BAD_INPUT
    except CheckpointError as error:
        page.say(f"friendli-async batch: {error}")
        return _BAD_OUTPUT
    except KeyboardInterrupt:
        page.say("interrupted")
        return connection.INTERRUPTED


def _checked(arguments: argparse.Namespace, page: _Page) -> int:
    source: Path = arguments.input
    target: Path = arguments.output
    if source.exists() and not source.is_file():
        raise RowsError(f"{source} is no regular file: it is read twice, to check it before anything is sent")
    if target.exists() and target.samefile(source):
        raise RowsError(f"{source} cannot be both the input and the output")
    given = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    rows = BatchInput(
        source,
        deployment=arguments.deployment,
        model=arguments.model,
        options={name: value for name, value in given.items() if value is not None},
        system=arguments.system,
    )
    if arguments.deployment != "container" and not os.environ.get("FRIENDLI_TOKEN"):
        raise ConfigurationError("no token: set FRIENDLI_TOKEN")  # here, and not as the outcome of each row
    if source.stat().st_size > _LARGE:
        page.say(f"checking {source}")
    total = rows.check()
    concurrency: int | None = arguments.concurrency
    client = AsyncFriendli(max_connections=max(concurrency or 0, _CONNECTIONS))
    output = BatchOutput(target, retry_failed=arguments.retry_failed, changed=page.changed)
    page.total = total
    return asyncio.run(_send(rows, client, arguments.deployment, concurrency, output, page))


async def _send(
    rows: BatchInput,
    client: AsyncFriendli,
    deployment: DeploymentName,
    concurrency: int | None,
    output: BatchOutput,
    page: _Page,
) -> int:
    async def call(row: BatchRow) -> Reply:
        return await row.send(client, deployment)

    outcomes = Run(Job(rows, call, concurrency, output, key=lambda row: row.custom_id))
    async with client, outcomes:
        with _interruptible(outcomes, page) as interrupted, page.showing(outcomes):
            try:
                async for outcome in outcomes:
                    page.failed(outcome)
            except asyncio.CancelledError:
                if not interrupted:
                    raise
            except CheckpointError:
                if output.unwritten:
                    page.say(f"{output.unwritten:,} answers could not be written: their rows will be sent again")
                raise
    progress = outcomes.progress
    page.summary(progress)
    if interrupted and progress.done < page.total:
        return 128 + interrupted[0]
    return connection.FAILED if progress.failed else 0


@contextlib.contextmanager
def _interruptible(outcomes: Run[BatchRow, Reply], page: _Page) -> Generator[list[int]]:
    """Lets the first signal end the run in good order, and the next one at once. Gives the signals that came."""
    came: list[int] = []
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        came.append(number)
        if len(came) == 1:
            outcomes.stop()
            page.say(f"stopping: {outcomes.progress.in_flight} requests under way may finish; again to cut them")
        else:
            task.cancel()

    caught: list[int] = []
    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        # A job that was started in the background ignores Ctrl-C, which is meant for another.
        if signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(NotImplementedError):  # Windows: there the first Ctrl-C cuts
                loop.add_signal_handler(number, stop, number)
                caught.append(number)
    try:
        yield came
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


class _Sample(NamedTuple):
    moment: float
    sent: int
    tokens: int


class _Page:
    """What is told on stderr: lines, and below them, on a terminal, one that changes."""

    def __init__(self) -> None:
        self.total = 0
        self._stream: TextIO | None = sys.stderr  # None where the shell has closed it
        self._live = self._stream is not None and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = False
        self._samples: deque[_Sample] = deque(maxlen=30)
        self._counts: dict[str, int] = {}

    # --- lines ---

    def say(self, line: str) -> None:
        """Tells something that stays."""
        self._write(("\r\x1b[K" if self._shown else "") + line + "\n")
        self._shown = False

    def changed(self, custom_id: str) -> None:
        """Names a row that is done, but asks for something else now."""
        self._name("changed", f"{custom_id}: has changed since it was done, and is sent again")

    def failed(self, outcome: Outcome[BatchRow, Reply]) -> None:
        """Names a row that failed."""
        if outcome.error is not None and not isinstance(outcome.error, FailedBeforeError):
            self._name("failed", f"{outcome.key}: {type(outcome.error).__name__}: {outcome.error}")

    def _name(self, kind: str, line: str) -> None:
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= _NAMED:  # what a server says may hold anything, for a terminal to obey
            self.say("".join(letter if letter.isprintable() else " " for letter in line[:500]))
        elif count == _NAMED + 1:
            self.say(f"... further rows that have {kind} are not named here")

    def summary(self, progress: Progress) -> None:
        """Tells how it ended."""
        good = progress.done - progress.failed
        parts = [f"{good:,} of {self.total:,} rows are good"]
        if progress.failed:
            parts.append(f"{progress.failed:,} failed")
        if progress.done < self.total:
            parts.append(f"{self.total - progress.done:,} are left")
        if progress.resumed:
            parts.append(f"{progress.resumed:,} were done before")
        self.say(f"{', '.join(parts)}; {progress.tokens:,} tokens in {_time(progress.seconds)}")
        if progress.failed:
            self.say("To send failed rows again: the same command with --retry-failed")

    # --- the line that changes ---

    @contextlib.contextmanager
    def showing(self, outcomes: Run[BatchRow, Reply]) -> Generator[None]:
        """Shows how far a run is, until it ends."""
        task = asyncio.create_task(self._show(outcomes))
        try:
            yield
        finally:
            task.cancel()

    async def _show(self, outcomes: Run[BatchRow, Reply]) -> None:
        while True:
            await asyncio.sleep(0.5 if self._live else 10.0)
            line = self._line(outcomes.progress)
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                self._write(f"\r\x1b[K{line[:width]}")
                self._shown = True
            else:
                self.say(line)

    def _line(self, progress: Progress) -> str:
        now = _Sample(time.monotonic(), progress.done - progress.resumed, progress.tokens)
        self._samples.append(now)
        first = self._samples[0]
        seconds = now.moment - first.moment
        if seconds <= 0:  # the first look: since the beginning
            first, seconds = _Sample(0.0, 0, 0), progress.seconds or 1.0
        rate = (now.sent - first.sent) / seconds
        left = _time((self.total - progress.done) / rate) if rate > 0 else "?"
        parts = [f"{progress.done:,}/{self.total:,} rows", f"{(now.tokens - first.tokens) / seconds:,.0f} tokens/s"]
        if progress.failed:
            parts.append(f"{progress.failed:,} failed")
        parts += [f"{progress.refused:,} refused", f"limit {progress.limit:,}", f"{left} left"]
        return " | ".join(parts)

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):  # whoever looked has gone: the job is not for them
            self._stream.write(text)
            self._stream.flush()


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
