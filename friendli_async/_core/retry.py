"""What is repeated, and when: the RetryPolicy put to work. The only module that knows tenacity."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from friendli_async._core.protocol import Operation
from friendli_async.errors import APIConnectionError, APIStatusError, APITimeoutError, FriendliError
from friendli_async.options import RetryPolicy

T = TypeVar("T")

# The server refused before it did anything, so another try cannot do the work twice.
REFUSED: Final = frozenset({408, 429, 503})


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
        return not error.sent or operation.repeatable
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


async def repeat(
    failed: FriendliError,
    attempt: Callable[[], Awaitable[T]],
    *,
    policy: RetryPolicy,
    operation: Operation[Any],
    may_go_on: Callable[[], bool],
    time_left: Callable[[], float | None],
    before_sleep: Callable[[FriendliError, float], None],
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Goes on after a failed first attempt; that runs outside, since entering tenacity costs as much as 50 µs.

    Args:
        failed: The first attempt's error; the caller has found that it may be repeated.
        attempt: Makes another one.
        policy: The policy.
        operation: Says what may be repeated.
        may_go_on: False once the client or the stream was closed.
        time_left: Seconds until the total limit, or None; a wait that does not fit is not begun.
        before_sleep: Told the error and the seconds before each sleep.
        sleep: Sleeps that many seconds.

    Returns:
        What the first successful attempt returned.

    Raises:
        FriendliError: The last attempt's error.
    """
    waiting: list[FriendliError] = [failed]

    async def replayed() -> T:
        if waiting:
            raise waiting.pop()
        return await attempt()

    def wait(state: RetryCallState) -> float:
        return delay(policy, state.attempt_number, _asked(state))

    def stop(state: RetryCallState) -> bool:
        asked, left = _asked(state), time_left()
        too_long = (asked is not None and asked > policy.max_retry_after) or (
            left is not None and state.upcoming_sleep >= left
        )
        return state.attempt_number >= policy.max_attempts or too_long

    controller = AsyncRetrying(  # one per call: a shared one mixes up concurrent calls
        retry=retry_if_exception(lambda error: may_go_on() and may_repeat(error, operation, policy)),
        wait=wait,
        stop=stop,
        sleep=sleep,
        before_sleep=lambda state: before_sleep(_error_of(state), state.upcoming_sleep),
        reraise=True,
    )
    return await controller(replayed)


def _asked(state: RetryCallState) -> float | None:
    error = _error_of(state)
    return error.retry_after if isinstance(error, APIStatusError) else None


def _error_of(state: RetryCallState) -> FriendliError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, FriendliError)  # may_repeat let nothing else through
    return error
