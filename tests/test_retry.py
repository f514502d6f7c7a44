"""Retries: which failures are retried, and after how long."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import weakref
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FriendliError,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    StreamInterruptedError,
)
from friendli_async._core.protocol import Operation
from friendli_async._core.retry import is_retryable, wait_after
from friendli_async.errors import status_class

pytestmark = pytest.mark.compatibility


def operation(*, repeatable: bool, billed: bool) -> Operation[Any]:
    return Operation(name="x", method="POST", path="/x", reply=Any, repeatable=repeatable, billed=billed)


def status_error(status: int) -> APIStatusError:
    return status_class(status)("no", status_code=status)


# --- which failures are retryable ------------------------------------------------------------------------------------

# always: for any operation; repeatable: for repeatable operations; unbilled: for repeatable ones that are not billed.
DECISIONS: dict[str, tuple[BaseException, str]] = {
    "never sent": (APIConnectionError("refused", sent=False), "always"),
    "connect timeout": (APITimeoutError("slow", limit="connect", seconds=5, sent=False), "always"),
    "lost while waiting": (APIConnectionError("reset", sent=True), "repeatable"),
    "ended before the first event": (StreamInterruptedError("cut"), "repeatable"),
    "read timeout": (APITimeoutError("slow", limit="first_event", seconds=600, sent=True), "unbilled"),
    "pool timeout": (APITimeoutError("full", limit="pool", seconds=30), "never"),
    "idle timeout": (APITimeoutError("stalled", limit="idle", seconds=60, sent=True), "never"),
    "total timeout": (APITimeoutError("late", limit="total", seconds=60, sent=True), "never"),
    "total timeout before sending": (APITimeoutError("late", limit="total", seconds=60, sent=False), "never"),
    **{str(status): (status_error(status), "always") for status in (408, 429, 503)},
    **{str(status): (status_error(status), "repeatable") for status in (500, 502, 504)},
    **{
        str(status): (status_error(status), "never")
        for status in (200, 302, 400, 401, 402, 403, 404, 405, 409, 410, 422, 425, 499, 501, 505, 520, 529, 599)
    },
    "undecodable": (ResponseDecodeError("not JSON"), "never"),
    "configuration": (ConfigurationError("no token"), "never"),
    "base class": (FriendliError("?"), "never"),
    "bug": (ValueError("?"), "never"),
    "cancellation": (asyncio.CancelledError(), "never"),
    "foreign timeout": (TimeoutError(), "never"),
    "keyboard interrupt": (KeyboardInterrupt(), "never"),
}


@pytest.mark.parametrize("billed", [False, True])
@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("name", DECISIONS)
def test_is_retryable_depends_on_failure_and_operation(name: str, repeatable: bool, billed: bool) -> None:
    error, rule = DECISIONS[name]
    allowed = {"always": True, "repeatable": repeatable, "unbilled": repeatable and not billed, "never": False}[rule]
    assert is_retryable(error, operation(repeatable=repeatable, billed=billed), RetryPolicy()) is allowed


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("status", [*sorted(RetryPolicy().statuses), 501, 520, 524, 529, 599])
def test_statuses_option_decides_within_what_is_safe_to_repeat(status: int, repeatable: bool) -> None:
    each = operation(repeatable=repeatable, billed=True)
    allowed = status in {408, 429, 503} or repeatable
    assert is_retryable(status_error(status), each, RetryPolicy(statuses={status})) is allowed
    assert is_retryable(status_error(status), each, RetryPolicy(statuses=RetryPolicy().statuses - {status})) is False
    assert is_retryable(status_error(status), each, RetryPolicy(statuses=frozenset())) is False


def test_unsent_request_is_retryable_with_empty_statuses() -> None:
    policy = RetryPolicy(statuses=frozenset())
    assert is_retryable(DECISIONS["never sent"][0], operation(repeatable=False, billed=True), policy) is True


# --- backoff ---------------------------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e6, allow_nan=False)
POLICIES = st.builds(
    RetryPolicy,
    initial=SECONDS,
    multiplier=st.floats(1, 1e6) | st.integers(1, 10),
    max_wait=SECONDS,
    max_retry_after=SECONDS,
    max_attempts=st.just(1_000_000),
)
FAILURES = st.integers(1, 40) | st.integers(1, 3000)
RANDOM = st.floats(0, 1, exclude_max=True)


def upper_bound(policy: RetryPolicy, failures: int) -> float:
    """Returns the upper bound of the wait, computed exactly."""
    grown = Fraction(policy.initial) * Fraction(policy.multiplier) ** (failures - 1)
    return float(min(Fraction(policy.max_wait), grown))


def wait(
    policy: RetryPolicy,
    failures: int,
    *,
    drawn: float = 1.0,
    retry_after: float | None = None,
    time_left: float | None = None,
) -> float | None:
    """Returns the wait after some failures if this random number in [0, 1] is drawn."""
    error = APIStatusError("no", status_code=429, retry_after=retry_after)
    with patch.object(random, "uniform", lambda low, high: low + (high - low) * drawn):
        return wait_after(error, policy, failures, time_left)


@given(POLICIES, FAILURES, RANDOM)
@deterministic
def test_wait_is_uniform_between_zero_and_the_exponential_bound(
    policy: RetryPolicy, failures: int, drawn: float
) -> None:
    waited = wait(policy, failures, drawn=drawn)
    assert waited is not None
    assert math.isclose(waited, upper_bound(policy, failures) * drawn, rel_tol=1e-6, abs_tol=1e-300)
    assert 0 <= waited <= policy.max_wait


@given(POLICIES, FAILURES, SECONDS, RANDOM)
@deterministic
def test_wait_is_at_least_retry_after_plus_bounded_jitter(
    policy: RetryPolicy, failures: int, retry_after: float, drawn: float
) -> None:
    waited = wait(policy, failures, drawn=drawn, retry_after=retry_after)
    if retry_after > policy.max_retry_after:
        assert waited is None
    else:
        assert waited is not None
        assert retry_after <= waited <= retry_after + min(policy.initial, policy.max_wait)


def test_initial_wait_of_zero_never_grows() -> None:
    policy = RetryPolicy(initial=0, max_attempts=1_000_000)
    assert {wait(policy, failures, drawn=0.9) for failures in (1, 2, 1100, 100_000)} == {0}


def test_bound_beyond_float_range_is_capped_at_max_wait() -> None:
    assert wait(RetryPolicy(multiplier=10, max_attempts=1_000_000), 100_000, drawn=0.5) == 15
    assert wait(RetryPolicy(initial=1e-300, multiplier=1e300, max_wait=7, max_attempts=9), 4) == 7


def test_default_bounds_double_up_to_max_wait() -> None:
    bounds = [wait(RetryPolicy(max_attempts=10), failures) for failures in range(1, 10)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_jitter_is_random() -> None:
    assert len({wait_after(status_error(503), RetryPolicy(max_attempts=4), 3, None) for _ in range(20)}) > 1
    assert len({wait_after(rate_limited(5), RetryPolicy(), 1, None) for _ in range(20)}) > 1


# --- the waits of a call ---------------------------------------------------------------------------------------------


def waits(
    *errors: FriendliError, policy: RetryPolicy | None = None, remaining: float | None = None
) -> list[float | None]:
    """Returns what one call waits after each of these failures."""
    policy = policy or RetryPolicy()
    return [wait_after(error, policy, failures, remaining) for failures, error in enumerate(errors, 1)]


def rate_limited(retry_after: float) -> RateLimitError:
    return RateLimitError("slow", status_code=429, retry_after=retry_after)


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
def test_no_wait_after_the_last_attempt(attempts: int) -> None:
    reported = waits(*[status_error(503)] * attempts, policy=RetryPolicy(max_attempts=attempts))
    assert [wait is None for wait in reported] == [False] * (attempts - 1) + [True]


def test_retry_after_is_honored_up_to_and_including_max_retry_after() -> None:
    [exact] = waits(rate_limited(60))
    assert exact is not None
    assert 60 <= exact <= 60.5
    assert waits(rate_limited(60.5)) == [None]


@pytest.mark.parametrize(("retry_after", "remaining"), [(7.0, 7.0), (7.0, 1.0), (0.0, 0.0), (0.0, -1.0)])
def test_no_wait_if_it_exceeds_the_remaining_time(retry_after: float, remaining: float) -> None:
    assert waits(rate_limited(retry_after), policy=RetryPolicy(initial=0), remaining=remaining) == [None]


def test_wait_if_it_fits_into_the_remaining_time() -> None:
    assert waits(rate_limited(7), remaining=8)[0] is not None


def test_wait_after_keeps_no_reference_to_the_error() -> None:
    error = status_error(503)
    gone = weakref.ref(error)
    gc.disable()
    try:
        wait_after(error, RetryPolicy(), 1, None)
        del error
        assert gone() is None
    finally:
        gc.enable()
