"""Sends a file of requests, as many at a time as the server accepts, and writes a file of answers.

IN has one request per line: a line of OpenAI's batch format, or a prompt, as a JSON string or
{"prompt": "..."}. OUT gets a line for each answer as it arrives, and doubles as the checkpoint: after
any interruption, the same command resumes. Requests that have changed since are sent again, as are
those rejected because of the token, account, model or endpoint, and those that could not be sent.
Ten of these in a row end the run, as do ten that the server was too busy for (429, 503).

Ctrl-C lets requests in flight finish; a second Ctrl-C cancels them.

Exit status: 0 all rows succeeded, 1 some failed, 2 bad input (nothing was sent), 3 OUT cannot be
written, or another run is writing to it, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Final

from friendli_async.bulk import CheckpointError, Outcome, Progress, RejectedError, RowsError, Run
from friendli_async.bulk.batch_files import BatchInput, BatchOutput, BatchRow, FailedBeforeError
from friendli_async.bulk.errors import is_rejection
from friendli_async.bulk.job import Job
from friendli_async.cli import BAD_INPUT, FAILED, INTERRUPTED, connection
from friendli_async.client import AsyncFriendli
from friendli_async.errors import ConfigurationError
from friendli_async.replies import Reply

_BAD_OUTPUT: Final = 3
_CONNECTIONS: Final = 1000
_LARGE_FILE: Final = 1 << 25
"""Bytes; checking a file of this size takes a second."""
_MAX_REJECTIONS: Final = 10
_MAX_NAMED: Final = 10
"""Rows listed by name, for each kind of message."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("input", metavar="IN.jsonl", type=Path, help="file of requests (read twice, so not a pipe)")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT.jsonl",
        type=_output,
        required=True,
        help="the answers, and the checkpoint to resume from",
    )
    parser.add_argument(
        "-m", "--model", type=connection.model_name, help="model of every request; overrides the line's own"
    )
    connection.add_deployment(parser)
    parser.add_argument(
        "--concurrency",
        type=_concurrency,
        default="auto",
        metavar="auto|N",
        help="maximum requests in flight (%(default)s)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="maximum tokens of every answer")
    parser.add_argument("--temperature", type=float, metavar="T", help="sampling temperature of every request")
    parser.add_argument("-s", "--system", metavar="TEXT", help="system message for lines that are prompts")
    parser.add_argument(
        "--retry-failed", action="store_true", help="send failed rows again, except those with a permanent error"
    )
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help=f"continue after {_MAX_REJECTIONS} rejections in a row (401, 402, 403, 404, 407; or repeatedly 429, 503 "
        "or no connection), instead of stopping",
    )


def _output(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("the answers cannot go to stdout: OUT is read to resume (a file '-' is ./-)")
    return Path(text)


def _concurrency(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a whole number above 0")


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    reporter = _Reporter()
    try:
        return _checked(arguments, reporter)
    except (RowsError, ConfigurationError, CheckpointError, OSError) as error:
        reporter.write_line(f"friendli-async batch: {error}")
        return _BAD_OUTPUT if isinstance(error, CheckpointError) else BAD_INPUT
    except KeyboardInterrupt:
        reporter.write_line("interrupted")
        return INTERRUPTED


def _checked(arguments: argparse.Namespace, reporter: _Reporter) -> int:
    source: Path = arguments.input
    target: Path = arguments.output
    if source.exists() and not source.is_file():
        raise RowsError(
            f"{source} is not a regular file: it is read twice, so that it is checked before anything is sent"
        )
    if _is_same_file(source, target):
        raise RowsError(f"{source} cannot be both the input and the output")
    given = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    rows = BatchInput(
        source,
        deployment=arguments.deployment,
        model=arguments.model,
        options={name: value for name, value in given.items() if value is not None},
        system=None if arguments.system is None else connection.utf8(arguments.system),
    )
    connection.check_token(arguments.deployment)  # once, rather than as the outcome of each row
    if source.stat().st_size > _LARGE_FILE:
        reporter.write_line(f"checking {source}")
    reporter.total = rows.check()
    concurrency: int | None = arguments.concurrency
    client = AsyncFriendli(max_connections=max(concurrency or 0, _CONNECTIONS))
    output = BatchOutput(target, retry_failed=arguments.retry_failed, changed=reporter.report_changed)
    max_rejections = None if arguments.keep_going else _MAX_REJECTIONS

    async def call(row: BatchRow) -> Reply:
        return await row.send(client, arguments.deployment)

    job = Job(rows, call, concurrency, output, key=lambda row: row.custom_id, max_rejections=max_rejections)
    return asyncio.run(_send(job, client, output, reporter))


def _is_same_file(source: Path, target: Path) -> bool:
    try:
        return target.samefile(source)
    except OSError:  # one is missing or out of reach: opening it says more
        return False


async def _send(job: Job[BatchRow, Reply], client: AsyncFriendli, output: BatchOutput, reporter: _Reporter) -> int:
    outcomes = Run(job)
    has_changed = False
    async with client, outcomes:
        with _interruptible(outcomes, reporter) as interrupted, reporter.showing_progress(outcomes):
            try:
                async for outcome in outcomes:
                    reporter.report_failed(outcome)
            except asyncio.CancelledError:
                if not interrupted:
                    raise
            except RejectedError as error:
                reporter.write_line(
                    f"stopped after {_MAX_REJECTIONS} rejections in a row ({type(error.__cause__).__name__}); "
                    "to continue regardless, pass --keep-going"
                )
            except (RowsError, OSError) as error:
                has_changed = True
                reporter.write_line(f"friendli-async batch: the input has changed since it was checked: {error}")
            except CheckpointError:
                if output.unwritten:
                    reporter.write_line(
                        f"{output.unwritten:,} answers could not be written: their rows will be sent again"
                    )
                raise
    progress = outcomes.progress
    reporter.summary(progress)
    if interrupted and progress.done < reporter.total:
        return 128 + interrupted[0]
    return FAILED if progress.failed or has_changed else 0


@contextlib.contextmanager
def _interruptible(outcomes: Run[BatchRow, Reply], reporter: _Reporter) -> Generator[list[int]]:
    """Stops the run gracefully on the first signal, and cancels it on the next. Yields the signals received."""
    received: list[int] = []
    task = asyncio.current_task()
    assert task is not None

    def stop(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            outcomes.stop()
            reporter.write_line(
                f"stopping: {outcomes.progress.in_flight} requests in flight may finish; interrupt again to abort them"
            )
        else:
            task.cancel()

    with connection.on_signals(stop, signal.SIGINT, signal.SIGTERM):
        yield received


class _Reporter:
    """Writes to stderr: messages, and below them, on a terminal, a progress line updated in place."""

    def __init__(self) -> None:
        self.total = 0
        self._rejected = 0
        self._stream = sys.stderr
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = deque([Progress()], maxlen=30)
        """What the last progress lines showed: rates are those since the first of them."""
        self._counts: dict[str, int] = {}

    # --- messages ---

    def write_line(self, line: str) -> None:
        """Writes a line, replacing the progress line."""
        self._write(line + "\n")

    def report_changed(self, custom_id: str) -> None:
        """Reports a finished row whose request has changed."""
        self._report_row("changed", f"{custom_id}: has changed since it completed; sending it again")

    def report_failed(self, outcome: Outcome[BatchRow, Reply]) -> None:
        """Reports a row if it has failed in this run."""
        error = outcome.error
        if error is None:
            return
        self._rejected += is_rejection(error)
        if not isinstance(error, FailedBeforeError):
            self._report_row("failed", f"{outcome.key}: {type(error).__name__}: {error}")

    def _report_row(self, kind: str, line: str) -> None:
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count <= _MAX_NAMED:  # sanitized: a server's message may contain terminal escape sequences
            self.write_line("".join(char if char.isprintable() else " " for char in line[:500]))
        elif count == _MAX_NAMED + 1:
            self.write_line(f"... further rows that have {kind} are not listed")

    def summary(self, progress: Progress) -> None:
        """Writes the result of the run."""
        total = self._total_of(progress)
        parts = [f"{progress.done - progress.failed:,} of {total:,} rows succeeded"]
        if progress.failed:
            parts.append(f"{progress.failed:,} failed")
        if progress.done < total:
            parts.append(f"{total - progress.done:,} remaining")
        if progress.resumed:
            parts.append(f"{progress.resumed:,} from an earlier run")
        self.write_line(f"{', '.join(parts)}; {progress.tokens:,} completion tokens in {_time(progress.seconds)}")
        if progress.done < total:
            self.write_line("the same command continues with the remaining rows")
        if self._rejected:
            self.write_line(
                f"the same command sends the {_rows(self._rejected)} again: rejected because of the token, account, "
                "model or endpoint (401, 402, 403, 404, 407), or not sent for lack of a connection"
            )
        if progress.failed > self._rejected:
            self.write_line(
                "to send failed rows again, except those rejected as invalid (400, 413, 422, ...), run the same "
                "command with --retry-failed"
            )

    def _total_of(self, progress: Progress) -> int:
        """Returns the number of rows, of which more may have been appended to the file since it was checked."""
        return max(self.total, progress.done)

    # --- progress ---

    @contextlib.contextmanager
    def showing_progress(self, outcomes: Run[BatchRow, Reply]) -> Generator[None]:
        """Shows the progress of a run while the context is open."""
        task = asyncio.create_task(self._show(outcomes))
        try:
            yield
        finally:
            task.cancel()

    async def _show(self, outcomes: Run[BatchRow, Reply]) -> None:
        while True:
            await asyncio.sleep(0.5 if self._live else 10.0)
            line = self._progress_line(outcomes.progress)
            if self._live:
                self._write(line[: shutil.get_terminal_size().columns - 1])
            else:
                self.write_line(line)

    def _progress_line(self, progress: Progress) -> str:
        first = self._shown[0]
        self._shown.append(progress)
        seconds = progress.seconds - first.seconds or 1.0
        sent = progress.done - progress.resumed - (first.done - first.resumed)
        tokens = progress.tokens - first.tokens
        total = self._total_of(progress)
        left = _time((total - progress.done) * seconds / sent) if sent > 0 else "?"
        paused = [f"paused for {_time(progress.paused)}"] if progress.paused >= 1.0 else []
        parts = [f"{progress.done:,}/{total:,} rows", f"{tokens / seconds:,.0f} tokens/s"]
        if progress.failed:
            parts.append(f"{progress.failed:,} failed")
        parts += [f"{progress.refused:,} refused", f"limit {progress.limit:,}", *paused, f"{left} left"]
        return " | ".join(parts)

    def _write(self, text: str) -> None:
        if self._live:
            text = f"\r\x1b[K{text}"
        with contextlib.suppress(OSError, ValueError):  # the reader has closed stderr: the job goes on
            self._stream.write(text)
            self._stream.flush()


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
