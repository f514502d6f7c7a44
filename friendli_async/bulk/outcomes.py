"""What a run gives: the outcome of each row, and how far it has come."""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar, cast

import msgspec

from friendli_async._help import described

__all__ = ["Outcome", "Progress"]

Row = TypeVar("Row")
R = TypeVar("R")


@described
class Outcome(msgspec.Struct, Generic[Row, R], frozen=True, kw_only=True):
    """What became of one row."""

    key: str | int
    """What ``key`` gave for the row; without one, the row's place, counted from 0."""
    row: Row
    """The row itself."""
    reply: R | None = None
    """What ``call`` returned; None where it raised."""
    error: Exception | None = None
    """What ``call`` raised; None where it returned."""
    attempts: int = 1
    """Requests that it took, by the reply's (or the error's) ``meta``; 1 where that is not known."""
    resumed: bool = False
    """Whether it was in the checkpoint already, so that nothing was sent."""

    def result(self) -> R:
        """The reply; raises the row's error where there is none."""
        if self.error is not None:
            raise self.error
        return cast("R", self.reply)


@described
class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run has come."""

    done: int = 0
    """Rows with an outcome, good or bad, resumed ones included."""
    failed: int = 0
    """Those whose outcome is an error."""
    resumed: int = 0
    """Those that were in the checkpoint already."""
    in_flight: int = 0
    """Calls under way."""
    refused: int = 0
    """Attempts that the server refused for its load: 429 and 503, those that a retry has made good included."""
    tokens: int = 0
    """Completion tokens of this run, by the usages."""
    seconds: float = 0.0
    """Since the run began."""
    limit: int = 0
    """Calls that may be under way at the same time, now."""

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens over the whole of the run so far."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


class Ledger(Protocol[Row, R]):
    """Where a run remembers what is done. ``open`` and ``close`` are called in a thread, the others in the loop."""

    def open(self) -> None:
        """Reads what is done already."""

    def find(self, key: str | int, row: Row) -> Outcome[Row, R] | None:
        """The outcome of a row that is done; None for one that is to be sent.

        Raises:
            FriendliError: The run cannot go on.
        """

    def keep(self, outcome: Outcome[Row, R]) -> None:
        """Remembers an outcome: it is written when this returns.

        Raises:
            CheckpointError: It is not.
        """

    def close(self) -> None:
        """Makes what is written durable. Waits for ``open``, if that is still going on."""
