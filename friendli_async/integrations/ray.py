"""A stage of a Ray Data pipeline that completes prompts: ``pip install 'friendli_async[ray]'``.

    dataset = dataset.map_batches(
        CompleteStage,
        fn_constructor_kwargs={"model": "meta-llama-3.1-8b-instruct", "checkpoint": "/shared/job-17"},
        compute=ray.data.ActorPoolStrategy(size=2),
        batch_size=256,
    )

Each Ray actor has its own client and calls in flight. This module records each finished row, in one file per actor. Ray
Data's own checkpoints do not suffice: they record files and blocks, so a killed job started from scratch. Ray itself is
not imported.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast, get_args

import msgspec

from friendli_async._json import replace_surrogates
from friendli_async.bulk.checkpoint import Lines, plain_key, row_hash
from friendli_async.bulk.errors import CheckpointError, RowsError
from friendli_async.bulk.job import Job
from friendli_async.bulk.journal import Journal
from friendli_async.bulk.outcomes import Outcome
from friendli_async.bulk.run import Run
from friendli_async.chat.inputs import PARAMETERS
from friendli_async.client import AsyncFriendli, DeploymentName
from friendli_async.errors import ArgumentError
from friendli_async.options import check_choice, check_count
from friendli_async.replies import usage_of

__all__ = ["CompleteStage"]

_BLOCK_ROWS: Final = 64
_BLOCK_SECONDS: Final = 1.0
"""Rows are yielded in blocks of this size or age: one Ray block per row would cost more than the row itself."""

_COLUMNS: Final = ("finish_reason", "prompt_tokens", "completion_tokens", "error")
"""The columns that the stage adds, besides that of the text."""

_Answer = dict[str, Any]


class _Request(msgspec.Struct, frozen=True):
    """The request for a row. Its hash, with the row's key, identifies a finished row."""

    messages: Any
    model: str | None
    options: dict[str, Any]


class _Row(NamedTuple):
    key: str | int
    request: _Request
    position: int
    """Its index in the batch."""


class CompleteStage:
    """Completes a column of prompts: a class for ``ray.data.Dataset.map_batches`` with ``batch_format="numpy"``.

    Rows are returned in the order in which they finish, with additional columns: ``text`` (see ``output``),
    ``finish_reason``, ``prompt_tokens``, ``completion_tokens``, and ``error``: the row's error message, or None. The
    token is read from ``FRIENDLI_TOKEN`` of the actors (``runtime_env``), unless it is in ``client``.

    Args:
        model: Model name or endpoint id; None for a container with a single model.
        deployment: Where the model runs.
        prompt: Column with the prompts: text, or a list of messages.
        output: Column for the text of the answers. Rows must not have the columns that the stage adds.
        concurrency: Maximum number of calls in flight per actor.
        checkpoint: Directory shared by all actors, on a shared file system if there are several machines. Rows that are
            finished in it, by any actor, are not sent again, except those with retryable errors.
        key: Column with the unique key of a row in the checkpoint: text or integers.
        options: Further parameters of every call (``max_tokens``, ...); see ``ChatOptions``.
        client: Keyword arguments of ``AsyncFriendli``.

    Raises:
        TypeError: ``options`` has an unknown parameter.
        ValueError: An invalid argument, or ``output`` is the name of another additional column.
        CheckpointError: The directory cannot be used.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        deployment: DeploymentName = "serverless",
        prompt: str = "prompt",
        output: str = "text",
        concurrency: int = 64,
        checkpoint: str | Path | None = None,
        key: str = "id",
        options: Mapping[str, Any] | None = None,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        if output in _COLUMNS:
            raise ArgumentError(f"the stage adds another column {output!r}", "output")
        check_choice("deployment", deployment, get_args(DeploymentName))
        check_count("concurrency", concurrency)
        self._options = dict(options or {})
        required = {} if model is None and deployment == "container" else {"model": model}
        PARAMETERS.checked("complete", required, self._options)  # here: each row would report it as an error of its own
        settings: dict[str, Any] = dict(client or {})
        self._client = AsyncFriendli(**settings)
        self._chat: Any = getattr(self._client, deployment).chat
        self._model = model
        self._prompt = prompt
        self._output = output
        self._key = key
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)  # shared by the batches that Ray runs concurrently in an actor
        self._checkpoint = _Checkpoint(Path(checkpoint)) if checkpoint is not None else None

    async def __call__(self, batch: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Completes a batch, and yields its rows in blocks as they finish.

        Raises:
            RowsError: A column is missing, or would be overwritten, or a key is invalid. Nothing was sent.
        """
        columns = {name: batch[name] for name in batch}
        for name in (self._prompt, *((self._key,) if self._checkpoint is not None else ())):
            if name not in columns:
                raise RowsError(f"no column {name!r}; available: {', '.join(map(repr, columns))}")
        for name in (self._output, *_COLUMNS):
            if name in columns:
                advice = "rename it, or choose another output=" if name == self._output else "rename it"
                raise RowsError(f"the stage would overwrite the column {name!r}: {advice}")
        requests = [self._request(prompt) for prompt in columns[self._prompt]]
        keys: list[str | int] = list(range(len(requests)))
        if self._checkpoint is not None:
            # All of them before the first request: no row of the batch is yielded after an invalid one.
            keys = [plain_key(key) for key in columns[self._key]]
        rows = [_Row(*parts) for parts in zip(keys, requests, range(len(requests)), strict=True)]
        ready: list[tuple[int, _Answer]] = []
        since = time.monotonic()
        job = Job(rows, self._complete, self._concurrency, self._checkpoint, key=lambda row: row.key)
        async with Run(job) as outcomes:
            async for outcome in outcomes:
                ready.append((outcome.row.position, self._answer(outcome)))
                if len(ready) >= _BLOCK_ROWS or time.monotonic() - since >= _BLOCK_SECONDS:
                    yield _block(columns, ready)
                    ready, since = [], time.monotonic()
        if ready:
            yield _block(columns, ready)

    def _request(self, prompt: object) -> _Request:
        prompt = _plain(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return _Request(messages, self._model, self._options)

    async def _complete(self, row: _Row) -> _Answer:
        request = row.request
        async with self._slots:
            reply = await self._chat.complete(model=request.model, messages=request.messages, **request.options)
        usage = usage_of(reply)
        return {
            self._output: replace_surrogates(reply.text),  # a column of Arrow is UTF-8
            "finish_reason": reply.choices[0].finish_reason,
            "prompt_tokens": usage.prompt_tokens if usage is not None else None,
            "completion_tokens": usage.completion_tokens if usage is not None else None,
        }

    def _answer(self, outcome: Outcome[_Row, _Answer]) -> _Answer:
        empty = dict.fromkeys((self._output, *_COLUMNS))
        error = outcome.error
        message = None if error is None else replace_surrogates(f"{type(error).__name__}: {error}")
        return {**empty, **(outcome.reply or {}), "error": message}


def _block(columns: Mapping[str, Any], ready: Sequence[tuple[int, _Answer]]) -> dict[str, Any]:
    """Returns rows of a batch with their answers, in Ray's format."""
    indices = [index for index, _ in ready]
    block: dict[str, Any] = {
        name: [column[index] for index in indices] if isinstance(column, list) else column[indices]  # of numpy
        for name, column in columns.items()
    }
    for name in ready[0][1]:
        block[name] = [answer[name] for _, answer in ready]
    return block


def _plain(value: Any) -> Any:
    """Converts numpy values to plain Python: arrays to lists, scalars to Python's own types."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    to_list = getattr(value, "tolist", None)
    return _plain(to_list()) if callable(to_list) else value


# --- checkpoint ------------------------------------------------------------------------------------------------------


class _Checkpoint:
    """A checkpoint directory: writes one file, and reads those of the other actors as they grow.

    It is the ledger of each batch's run.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be used: {error.strerror or error}") from error
        self.lines = Lines[_Row, _Answer]()
        self._folder = folder = folder.absolute()  # the working directory may change between batches
        # A unique name: an actor that Ray restarts must not depend on the state of its predecessor.
        self._path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._journal = Journal(self._path, Lines.start)
        self._journal.open(lambda offset, line: False)
        self._read: dict[Path, int] = {}
        self._done: dict[str, tuple[Path, int]] = {}  # digest of key and request -> file and offset
        self.open()

    def open(self) -> None:
        """Reads the lines appended since the last call."""
        for path in self._folder.glob("*.jsonl"):
            offset = self._read.get(path, 0)
            if path.stat().st_size <= offset:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # still being written, or torn: not finished
                    head = self.lines.head(line)
                    if head is None:
                        raise CheckpointError(f"{path}: the line at byte {offset} is not in the checkpoint format")
                    if not head.is_retryable:
                        self._done[head.hash] = (path, offset)
                    offset += len(line)
            self._read[path] = offset

    def find(self, key: str | int, row: _Row) -> Outcome[_Row, _Answer] | None:
        """Returns the outcome of a finished row, from any of the files, or None."""
        digest = _digest(row)
        if digest not in self._done:
            return None
        path, offset = self._done[digest]
        with path.open("rb") as file:
            file.seek(offset)
            return self.lines.outcome(file.readline(), row, digest)

    def keep(self, outcome: Outcome[_Row, _Answer]) -> None:
        """Appends an outcome."""
        line, _ = self.lines.write(outcome, _digest(outcome.row))
        self._journal.append(line)

    def close(self) -> None:
        """Does nothing: the file stays open for the next batch."""


def _digest(row: _Row) -> str:
    return row_hash(row.key, [row.key, row.request])
