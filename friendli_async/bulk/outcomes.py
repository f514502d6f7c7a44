"""The results of a run: the outcome of each row, and the progress."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Protocol, TypeVar, cast

import msgspec

from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField

__all__ = ["Outcome", "Progress"]

Row = TypeVar("Row")
R = TypeVar("R")


@document_fields
class Outcome(msgspec.Struct, Generic[Row, R], frozen=True, kw_only=True):
    """The outcome of one row."""

    key: str | int
    """The key that ``key`` returned for the row; without ``key``, the index of the row, counted from 0."""
    row: Row
    """The row itself."""
    reply: R | None = None
    """What ``call`` returned; None if it raised."""
    error: Exception | None = None
    """What ``call`` raised; None if it returned."""
    attempts: int = 1
    """The number of requests, from the ``meta`` of the reply or error; 1 if unknown."""
    resumed: bool = False
    """Whether the outcome is from the checkpoint, so that nothing was sent."""

    def result(self) -> R:
        """Returns the reply, or raises the row's error."""
        if self.error is not None:
            raise self.error
        return cast("R", self.reply)


@document_fields
class Progress(PydanticField, msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a run."""

    done: int = 0
    """Rows with an outcome, successful or failed, including resumed ones."""
    failed: int = 0
    """Rows whose outcome is an error."""
    resumed: int = 0
    """Rows that were in the checkpoint already."""
    in_flight: int = 0
    """Calls in flight."""
    refused: int = 0
    """Attempts that the server rejected because of its load (429, 503), including those resolved by a retry."""
    tokens: int = 0
    """Completion tokens of this run, from the usage of its replies."""
    seconds: float = 0.0
    """Seconds since the run started."""
    limit: int = 0
    """The current maximum number of calls in flight."""
    paused: float = 0.0
    """Seconds until the next call may start, after rejections: up to an hour, if the server asks for it."""

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second over the whole run so far."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Ledger(Protocol[Row, R]):
    """The record of finished rows: ``Checkpoint``, ``BatchOutput`` of batch files, or that of Ray's workers.

    ``open`` and ``close`` are called in a thread, the others in the event loop.
    """

    def open(self) -> None:
        """Reads which rows are finished."""

    def find(self, key: str | int, row: Row) -> Outcome[Row, R] | None:
        """Returns the outcome of a finished row, or None if the row is to be sent.

        Raises:
            FriendliError: The run cannot continue.
        """

    def keep(self, outcome: Outcome[Row, R]) -> None:
        """Records an outcome: it is written when this returns.

        Raises:
            CheckpointError: It could not be written, or is written but could not be restored.
        """

    def close(self) -> None:
        """Makes written outcomes durable. Waits for ``open`` if it is still running. May be called twice."""


async def close_in_thread(ledger: Ledger[Any, Any]) -> None:
    """Closes a ledger, also if this is cancelled."""
    try:
        await asyncio.to_thread(ledger.close)
    except asyncio.CancelledError:  # by code that cancels all tasks, as `asyncio.run` does; maybe before it began
        ledger.close()
        raise
