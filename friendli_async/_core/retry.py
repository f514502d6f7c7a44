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
    try:
        upper = min(policy.max_wait, policy.initial * policy.multiplier ** (failures - 1))
    except OverflowError:
        upper = policy.max_wait if policy.initial else 0.0
    if asked is None:
        return upper * rand()
    # Everybody who was told "1 second" would come back in the same instant; a little later is allowed, earlier is not.
    return asked + min(upper, policy.initial) * rand()


class Retries:
    """Decides, after each failed attempt of one call, whether there is another, and when.

    It is made at the first failure: a call that succeeds at once does not pay for tenacity.

    Args:
        policy: The policy.
        time_left: Seconds until the total limit, or None; a wait that does not fit is not begun.
    """

    def __init__(self, policy: RetryPolicy, time_left: Callable[[], float | None]) -> None:
        self._bounds = _Bounds(policy, time_left)
        # One per call: a shared controller mixes up concurrent calls. The callback is for the last failure: without it,
        # tenacity raises an error of its own there.
        self._controller = Retrying(
            wait=self._bounds.wait, stop=self._bounds.stop, retry_error_callback=lambda state: None
        )
        self._state = RetryCallState(self._controller, None, (), {})
        self._state.attempt_number = 0
        self._controller.begin()

    def wait_after(self, error: FriendliError) -> float | None:
        """Seconds to wait before the next attempt; None: there is none."""
        self._bounds.asked = error.retry_after if isinstance(error, APIStatusError) else None
        self._state.attempt_number += 1
        # tenacity is told that it failed, not with what: it would keep the error, and the error's frames the stream.
        self._state.set_exception((FriendliError, FriendliError(), None))
        decided = self._controller.iter(self._state)
        self._controller.iter_state.reset()  # its steps are methods of the controller: a reference cycle
        return float(decided) if isinstance(decided, _Sleep) else None


class _Bounds:
    """The policy as tenacity asks for it. It does not know who asks: a cycle would outlive the call."""

    def __init__(self, policy: RetryPolicy, time_left: Callable[[], float | None]) -> None:
        self.asked: float | None = None
        self._policy = policy
        self._time_left = time_left

    def wait(self, state: RetryCallState) -> float:
        return delay(self._policy, state.attempt_number, self.asked)

    def stop(self, state: RetryCallState) -> bool:
        left = self._time_left()
        too_long = self.asked is not None and self.asked > self._policy.max_retry_after
        too_late = left is not None and state.upcoming_sleep >= left
        return state.attempt_number >= self._policy.max_attempts or too_long or too_late
