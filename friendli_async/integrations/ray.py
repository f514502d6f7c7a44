"""A stage of a Ray Data pipeline that completes prompts: ``pip install 'friendli_async[ray]'``.

    dataset = dataset.map_batches(
        CompleteStage,
        fn_constructor_kwargs={"model": "meta-llama-3.1-8b-instruct", "checkpoint": "/shared/job-17"},
        concurrency=2,
        batch_size=256,
    )

Each of Ray's actors has a client and its calls in flight. What is done is remembered here, row by row, in a file for
each actor: Ray Data's own checkpoint knows files and blocks, and a job that was killed began anew. Nothing of Ray is
imported.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from friendli_async.bulk.checkpoint import Lines, check_key, row_hash
from friendli_async.bulk.errors import CheckpointError, RowsError
from friendli_async.bulk.journal import Journal
from friendli_async.bulk.outcomes import Outcome
from friendli_async.bulk.run import Job, Run
from friendli_async.client import AsyncFriendli, DeploymentName
from friendli_async.replies import usage_of

__all__ = ["CompleteStage"]

_TOGETHER: Final = 64
_SECONDS: Final = 1.0
"""Rows are handed on when there are so many, or after so long: a block of Ray's for each would cost more than they."""

_Answer = dict[str, Any]


class _Question(msgspec.Struct, frozen=True):
    """What is asked, and for which row of a batch. Not the place, but all else, says whether it is done."""

    messages: Any
    model: str | None
    options: dict[str, Any]


class CompleteStage:
    """Completes a column of prompts: a class for ``ray.data.Dataset.map_batches``, batches of the format ``numpy``.

    Rows come out as they went in, in the order in which they are done, with these columns more: ``text`` (see
    ``output``), ``finish_reason``, ``prompt_tokens``, ``completion_tokens``, and ``error``, which is None or says what
    went wrong with the row. The token comes from ``FRIENDLI_TOKEN`` of the actors (``runtime_env``), unless ``client``
    has it.

    Args:
        model: Model or endpoint; None where a container has its own.
        deployment: Where to.
        prompt: The column with what to ask: text, or a list of messages.
        output: The column for the answers' text.
        concurrency: The most calls in flight, in each actor.
        checkpoint: A folder that all actors see, on a shared file system where there are several machines. What is in
            it is not asked again, whichever actor it came from; errors worth another try apart.
        key: The column that names a row in the checkpoint, by text or whole numbers; each row has its own.
        options: Further parameters of every call (``max_tokens``, ...); see ``ChatOptions``.
        client: Settings of ``AsyncFriendli``.

    Raises:
        CheckpointError: The folder cannot be used.
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
        settings: dict[str, Any] = dict(client or {})
        self._client = AsyncFriendli(**settings)
        self._chat: Any = getattr(self._client, deployment).chat
        self._model = model
        self._prompt = prompt
        self._output = output
        self._key = key
        self._options = dict(options or {})
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)  # of all batches: Ray gives an actor several at once
        self._files = _Files(Path(checkpoint)) if checkpoint is not None else None

    async def __call__(self, batch: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Completes a batch, and gives its rows as they are done."""
        columns = {name: batch[name] for name in batch}
        for name in (self._prompt, *((self._key,) if self._files is not None else ())):
            if name not in columns:
                raise RowsError(f"there is no column {name!r}; there are {', '.join(map(repr, columns))}")
        questions = [self._question(prompt) for prompt in columns[self._prompt]]
        keys = [_plain(key) for key in columns[self._key]] if self._files is not None else list(range(len(questions)))
        for key in keys:
            check_key(key)
        rows = list(zip(keys, questions, range(len(questions)), strict=True))
        ready: list[tuple[int, _Answer]] = []
        since = time.monotonic()
        job = Job(rows, self._ask, self._concurrency, self._files, key=lambda row: row[0])
        async with Run(job) as outcomes:
            async for outcome in outcomes:
                ready.append((outcome.row[2], self._answer(outcome)))
                if len(ready) >= _TOGETHER or time.monotonic() - since >= _SECONDS:
                    yield _block(columns, ready)
                    ready, since = [], time.monotonic()
        if ready:
            yield _block(columns, ready)

    def _question(self, prompt: object) -> _Question:
        prompt = _plain(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return _Question(messages, self._model, self._options)

    async def _ask(self, row: _Row) -> _Answer:
        question = row[1]
        async with self._places:
            model = {} if question.model is None else {"model": question.model}
            reply = await self._chat.complete(**model, messages=question.messages, **question.options)
        usage = usage_of(reply)
        return {
            self._output: reply.text,
            "finish_reason": reply.choices[0].finish_reason if reply.choices else None,
            "prompt_tokens": usage.prompt_tokens if usage is not None else None,
            "completion_tokens": usage.completion_tokens if usage is not None else None,
        }

    def _answer(self, outcome: Outcome[_Row, _Answer]) -> _Answer:
        nothing = dict.fromkeys((self._output, "finish_reason", "prompt_tokens", "completion_tokens"))
        error = outcome.error
        said = None if error is None else f"{type(error).__name__}: {error}"
        return {**nothing, **(outcome.reply or {}), "error": said}


_Row = tuple[str | int, _Question, int]


def _block(columns: Mapping[str, Any], ready: Sequence[tuple[int, _Answer]]) -> dict[str, Any]:
    """Rows of a batch, with their answers, as Ray takes them."""
    places = [place for place, _ in ready]
    block: dict[str, Any] = {name: _at(column, places) for name, column in columns.items()}
    for name in ready[0][1]:
        block[name] = [answer[name] for _, answer in ready]
    return block


def _at(column: Any, places: list[int]) -> Any:
    return [column[place] for place in places] if isinstance(column, list) else column[places]


def _plain(value: Any) -> Any:
    """What numpy has made of a value, as it was: arrays as lists, scalars as Python's own."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in cast("Sequence[Any]", value)]
    to_list = getattr(value, "tolist", None)
    return _plain(to_list()) if callable(to_list) else value


# --- what is done ----------------------------------------------------------------------------------------------------


class _Files:
    """The files of a checkpoint: one is written here, those of the other actors are read as they grow.

    The ledger of each batch's run.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be used: {error.strerror or error}") from error
        self.lines = Lines[_Row, _Answer]()
        self._folder = folder
        # A name of its own: an actor that Ray starts anew does not ask what has become of the one before.
        self._path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._journal = Journal(self._path, Lines.start)
        self._journal.open(lambda offset, line: False)
        self._read: dict[Path, int] = {}
        self._done: dict[str, tuple[Path, int]] = {}  # by the digest of key and question
        self.open()

    def open(self) -> None:
        """Reads what has been written since the last look."""
        for path in self._folder.glob("*.jsonl"):
            offset = self._read.get(path, 0)
            if path.stat().st_size <= offset:
                continue
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written, or torn: not done
                    head = self.lines.head(line)
                    if head is None:
                        raise CheckpointError(f"{path} has a line at byte {offset} that is none of a checkpoint")
                    if not head.may_pass:
                        self._done[head.hash] = (path, offset)
                    offset += len(line)
            self._read[path] = offset

    def find(self, key: str | int, row: _Row) -> Outcome[_Row, _Answer] | None:
        """The outcome of a row that is done, in whichever file."""
        digest = _digest(row)
        if digest not in self._done:
            return None
        path, offset = self._done[digest]
        with path.open("rb") as file:
            file.seek(offset)
            return self.lines.outcome(file.readline(), row, digest)

    def keep(self, outcome: Outcome[_Row, _Answer]) -> None:
        """Writes an outcome."""
        self._journal.append(self.lines.write(outcome, _digest(outcome.row)))

    def close(self) -> None:
        """Leaves the files open, for the next batch."""


def _digest(row: _Row) -> str:
    return row_hash(row[0], [row[0], row[1]])
