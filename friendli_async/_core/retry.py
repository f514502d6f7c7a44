"""Which attempts are retried, and when: applies the RetryPolicy. The only module that imports tenacity."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from tenacity import DoSleep as _Sleep
from tenacity import RetryCallState, Retrying

from friendli_async._core.pacing import jitter
from friendli_async._core.protocol import Operation
from friendli_async.errors import APIConnectionError, APIStatusError, APITimeoutError, FriendliError
from friendli_async.options import RetryPolicy

__all__ = ["UNPROCESSED_STATUSES", "Retries", "delay", "is_retryable"]

UNPROCESSED_STATUSES: Final = frozenset({408, 429, 503})
"""Statuses of requests that were rejected before processing: retrying them cannot do the work twice."""


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


def delay(
    policy: RetryPolicy, failures: int, retry_after: float | None, rand: Callable[[], float] = random.random
) -> float:
    """Returns the seconds to wait after a failure: backoff with full jitter, or ``Retry-After`` plus jitter.

    Args:
        policy: The policy.
        failures: Attempts that failed so far, at least 1.
        retry_after: The server's Retry-After in seconds, or None.
        rand: Returns a random number in [0, 1).
    """
    if retry_after is not None:
        return retry_after + jitter(policy, rand)
    try:
        upper = min(policy.max_wait, policy.initial * policy.multiplier ** (failures - 1))
    except OverflowError:
        upper = policy.max_wait if policy.initial else 0.0
    return upper * rand()


class Retries:
    """Decides after each failed attempt of a call whether to retry, and when.

    Created at the first failure, so that a call without failures does not pay for tenacity.

    Args:
        policy: The policy.
        time_left: Returns the seconds until the total timeout, or None; a wait that does not fit is not started.
    """

    def __init__(self, policy: RetryPolicy, time_left: Callable[[], float | None]) -> None:
        self._policy = policy
        self._time_left = time_left
        self._failures = 0

    def wait_after(self, error: FriendliError) -> float | None:
        """Returns the seconds to wait before the next attempt, or None if there is none."""
        policy, left = self._policy, self._time_left()
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        self._failures += 1

        def wait(state: RetryCallState) -> float:
            return delay(policy, state.attempt_number, retry_after)

        def stop(state: RetryCallState) -> bool:
            too_long = retry_after is not None and retry_after > policy.max_retry_after
            too_late = left is not None and state.upcoming_sleep >= left
            return state.attempt_number >= policy.max_attempts or too_long or too_late

        # Without the callback, tenacity would raise its own RetryError after the last failure.
        controller = Retrying(wait=wait, stop=stop, retry_error_callback=lambda state: None)
        controller.begin()
        state = RetryCallState(controller, None, (), {})
        state.attempt_number = self._failures
        # A placeholder: tenacity would keep the actual error, whose traceback frames keep the stream alive.
        state.set_exception((FriendliError, FriendliError(), None))
        decided = controller.iter(state)
        controller.iter_state.reset()  # its actions are bound methods of the controller: a reference cycle
        return float(decided) if isinstance(decided, _Sleep) else None
