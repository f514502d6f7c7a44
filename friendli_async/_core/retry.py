"""What is repeated, and when: the RetryPolicy put to work. The only module that knows tenacity."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from tenacity import DoSleep as _Sleep
from tenacity import RetryCallState, Retrying

from friendli_async._core.protocol import Operation
from friendli_async.errors import APIConnectionError, APIStatusError, APITimeoutError, FriendliError
from friendli_async.options import RetryPolicy

__all__ = ["REFUSED", "Retries", "delay", "may_repeat"]

REFUSED: Final = frozenset({408, 429, 503})
"""The server refused before it did anything, so another try cannot do the work twice."""


def may_repeat(error: BaseException, operation: Operation[Any], policy: RetryPolicy) -> bool:
    """Whether another attempt is allowed after this error: can it have been accepted, and does doing it twice harm?"""
    if isinstance(error, APIStatusError):
        status = error.status_code
        return status in policy.statuses and (status in REFUSED or operation.repeatable)
    if isinstance(error, APITimeoutError):
        if error.limit == "connect":
            return True
        return error.limit == "first_event" and operation.repeatable and not operation.billed
    if isinstance(error, APIConnectionError):
        return not error.hopeless and (not error.sent or operation.repeatable)
    return False


def delay(policy: RetryPolicy, failures: int, asked: float | None, rand: Callable[[], float] = random.random) -> float:
    """Seconds to wait after the given number of failures: full jitter, on top of what the server asked for.

    Args:
        policy: The policy.
        failures: Attempts that failed so far, at least 1.
        asked: The server's Retry-After in seconds, or None.
        rand: Uniform in [0, 1).
    """
    if asked is not None:  # all who were told "1 second" would come back at once; later is allowed, earlier is not
        return asked + min(policy.max_wait, policy.initial) * rand()
    try:
        upper = min(policy.max_wait, policy.initial * policy.multiplier ** (failures - 1))
    except OverflowError:
        upper = policy.max_wait if policy.initial else 0.0
    return upper * rand()


class Retries:
    """Decides, after each failed attempt of one call, whether there is another, and when.

    It is made at the first failure: a call that succeeds at once does not pay for tenacity.

    Args:
        policy: The policy.
        time_left: Seconds until the total limit, or None; a wait that does not fit is not begun.
    """

    def __init__(self, policy: RetryPolicy, time_left: Callable[[], float | None]) -> None:
        self._policy = policy
        self._time_left = time_left
        self._failures = 0

    def wait_after(self, error: FriendliError) -> float | None:
        """Seconds to wait before the next attempt; None: there is none."""
        policy, left = self._policy, self._time_left()
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        self._failures += 1

        def wait(state: RetryCallState) -> float:
            return delay(policy, state.attempt_number, asked)

        def stop(state: RetryCallState) -> bool:
            too_long = asked is not None and asked > policy.max_retry_after
            too_late = left is not None and state.upcoming_sleep >= left
            return state.attempt_number >= policy.max_attempts or too_long or too_late

        # The callback is for the last failure: without it, tenacity raises an error of its own there.
        controller = Retrying(wait=wait, stop=stop, retry_error_callback=lambda state: None)
        controller.begin()
        state = RetryCallState(controller, None, (), {})
        state.attempt_number = self._failures
        # tenacity is told that it failed, not with what: it would keep the error, and the error's frames the stream.
        state.set_exception((FriendliError, FriendliError(), None))
        decided = controller.iter(state)
        controller.iter_state.reset()  # its steps are methods of the controller: a reference cycle
        return float(decided) if isinstance(decided, _Sleep) else None
