"""Errors of a run as a whole; the error of a single row is its outcome's ``error``."""

from __future__ import annotations

from typing import Final, TypeGuard

from friendli_async._core.pacing import is_rejected_by_load
from friendli_async.errors import APIConnectionError, APIStatusError, ConfigurationError, FriendliError, UsageLimitError

__all__ = ["CheckpointError", "CheckpointInUseError", "DuplicateKeyError", "RejectedError", "RowsError"]


class CheckpointError(FriendliError):
    """The checkpoint cannot be written or read, or is not a checkpoint. Lines written before stay in the file."""


class CheckpointInUseError(CheckpointError):
    """Another run, of this process or another, is writing to the checkpoint."""


class RowsError(FriendliError, ValueError):
    """A row cannot be used: for example, its line is not JSON, or its key is neither a str nor an int."""


class DuplicateKeyError(RowsError):
    """Two rows have the same key, so a checkpoint cannot distinguish them."""


class RejectedError(FriendliError):
    """Several calls in a row failed for a reason that no row can change, such as an invalid token or an outage.

    ``__cause__`` is the error of the last of them. See ``max_rejections`` of ``run_all``.
    """


REJECTION_STATUSES: Final = frozenset({401, 402, 403, 404, 407})
"""Statuses caused by the token, the account, the endpoint, the model or a proxy."""

_NON_FINAL_STATUSES: Final = REJECTION_STATUSES | {408, 409, 423, 425, 429}
"""4xx statuses that the same request may not get again: with another token, later, or once the endpoint is up."""


def is_final_status(status: int) -> bool:
    """Whether the same request would always be rejected, because the row itself is invalid."""
    return 400 <= status < 500 and status not in _NON_FINAL_STATUSES


def is_final(error: BaseException) -> bool:
    """Whether the same row would always fail in the same way."""
    return isinstance(error, APIStatusError) and is_final_status(error.status_code)


def is_overload(error: BaseException | None) -> TypeGuard[APIStatusError]:
    """Whether a call was rejected because of the server's load, before any content."""
    return is_rejected_by_load(error) and error.partial is None


def is_rejection(error: BaseException | None) -> bool:
    """Whether a call failed for a reason unrelated to its row that lasts until somebody removes it.

    An overload is not such a reason, although ``max_rejections`` counts both: it passes by itself.
    """
    if isinstance(error, APIStatusError):
        return error.status_code in REJECTION_STATUSES
    return isinstance(error, ConfigurationError | UsageLimitError) or is_unsent(error)


def is_unsent(error: BaseException | None) -> TypeGuard[APIConnectionError]:
    """Whether a call found no connection to the server, and this is not because its client is drained or closed."""
    return isinstance(error, APIConnectionError) and not error.sent and not error.draining
