"""Bulk calls: jobs of millions of rows that adapt to the server's capacity and can be resumed after a crash.

    from friendli_async.bulk import run_all

    async with run_all(rows, call, checkpoint="done.jsonl", key=lambda row: row["id"]) as outcomes:
        async for outcome in outcomes:
            ...

``Adaptive`` finds out how many concurrent calls a server accepts.
"""

from friendli_async.bulk.adaptive import Adaptive
from friendli_async.bulk.errors import (
    CheckpointError,
    CheckpointInUseError,
    DuplicateKeyError,
    RejectedError,
    RowsError,
)
from friendli_async.bulk.outcomes import Outcome, Progress
from friendli_async.bulk.run import Run, run_all

__all__ = ["Adaptive", "CheckpointError", "CheckpointInUseError", "DuplicateKeyError", "Outcome", "Progress"]
__all__ += ["RejectedError", "RowsError", "Run", "run_all"]
