"""Which attempts are retried, and when: applies the RetryPolicy. The only module that imports tenacity."""

from __future__ import annotations

from typing import Any, Final

from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_random_exponential

from friendli_async._core.pacing import exceeded_limit, jitter
from friendli_async._core.protocol import Operation
from friendli_async.errors import APIConnectionError, APIStatusError, APITimeoutError, FriendliError
from friendli_async.options import RetryPolicy

UNPROCESSED_STATUSES: Final = frozenset({408, 429, 503})
"""Statuses of requests that were rejected before processing: retrying them cannot do the work twice."""

_CONTROLLER: Final = Retrying()  # a state must have one; the strategies do not look at it


def is_retryable(error: BaseException, operation: Operation[Any], policy: RetryPolicy) -> bool:
    """Whether a retry is allowed: the request cannot have been accepted, or repeating it does no harm."""
    if isinstance(error, APIStatusError):
        status = error.status_code
        return status in policy.statuses and (status in UNPROCESSED_STATUSES or operation.repeatable)
    if isinstance(error, APITimeoutError):
        if error.limit == "connect":
            return True
        return error.limit == "first_event" and operation.repeatable and not operation.billed
    if isinstance(error, APIConnectionError):
        return not error.permanent and (not error.sent or operation.repeatable)
    return False


def wait_after(error: FriendliError, policy: RetryPolicy, failures: int, time_left: float | None) -> float | None:
    """Returns the seconds to wait before the next attempt, or None if there is none.

    The wait is a backoff with full jitter, or the error's Retry-After plus jitter. One that does not fit into
    ``time_left``, the seconds until the total timeout, is not started. ``failures`` counts the attempts so far. If the
    Retry-After is too long, the error says so.
    """
    # Only tenacity's strategies: its controller would keep the error, whose traceback frames keep the stream alive.
    state = RetryCallState(_CONTROLLER, None, (), {})
    state.attempt_number = failures
    if stop_after_attempt(policy.max_attempts)(state):
        return None
    if not isinstance(error, APIStatusError) or (retry_after := error.retry_after) is None:
        # After very many attempts the power overflows. Then tenacity returns the maximum, even if ``initial`` is 0.
        maximum = policy.max_wait if policy.initial else 0.0
        wait = wait_random_exponential(policy.initial, maximum, policy.multiplier)(state)
    elif (limit := exceeded_limit(retry_after, 0.0, policy, time_left)) is not None:
        added = f"; not retried: the server asks to wait for {retry_after:.1f} s, longer than {limit} allows"
        error._after += added  # pyright: ignore[reportPrivateUsage]  # our own addition
        return None
    else:
        wait = retry_after + jitter(policy)
    return None if time_left is not None and wait >= time_left else wait
