"""What can go wrong with a run as a whole; what goes wrong with one row is its outcome's ``error``."""

from __future__ import annotations

from typing import Final

from friendli_async.errors import APIStatusError, FriendliError

__all__ = ["CheckpointError", "CheckpointInUseError", "DuplicateKeyError", "RowsError"]


class CheckpointError(FriendliError):
    """The checkpoint cannot be written or read, or is no checkpoint. What was written before is in the file."""


class CheckpointInUseError(CheckpointError):
    """Another run, of this process or another, is writing to the checkpoint."""


class RowsError(FriendliError, ValueError):
    """A row that cannot be used: a line that is not JSON, a key that is neither text nor a whole number."""


class DuplicateKeyError(RowsError):
    """Two rows have the same key, so a checkpoint cannot tell them apart."""


_NOT_ABOUT_THE_ROW: Final = frozenset({401, 402, 403, 404, 407, 408, 409, 423, 425, 429})
"""Statuses below 500 that the same request need not get again: another token, another hour, an endpoint that is up."""


def is_final_status(status: int) -> bool:
    """Whether the same request would be refused for good: what is wrong is in the row itself."""
    return 400 <= status < 500 and status not in _NOT_ABOUT_THE_ROW


def is_final(error: BaseException) -> bool:
    """Whether the same row would fail in the same way for good."""
    return isinstance(error, APIStatusError) and is_final_status(error.status_code)
