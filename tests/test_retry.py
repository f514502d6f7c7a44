"""What is repeated, and when."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import msgspec
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
from friendli_async._core.retry import delay, may_repeat, repeat
from friendli_async.errors import status_class
from friendli_async.options import RETRYABLE_STATUSES


def operation(*, repeatable: bool, billed: bool) -> Operation[Any]:
    return Operation(method="POST", path="/x", reply=msgspec.json.Decoder(), repeatable=repeatable, billed=billed)


def answered(status: int) -> APIStatusError:
    return status_class(status)("no", status_code=status)


# --- what may be repeated --------------------------------------------------------------------------------------------

# always: whatever the operation. repeatable: if it is marked so. unbilled: and costs nothing. never: whatever.
DECISIONS: dict[str, tuple[BaseException, str]] = {
    "never sent": (APIConnectionError("refused", sent=False), "always"),
    "connect timeout": (APITimeoutError("slow", limit="connect", seconds=5), "always"),
    "lost while waiting": (APIConnectionError("reset", sent=True), "repeatable"),
    "ended before the first event": (StreamInterruptedError("cut"), "repeatable"),
    "read timeout": (APITimeoutError("slow", limit="first_event", seconds=600, sent=True), "unbilled"),
    "pool timeout": (APITimeoutError("full", limit="pool", seconds=30), "never"),
    "idle timeout": (APITimeoutError("stalled", limit="idle", seconds=60, sent=True), "never"),
    "total timeout": (APITimeoutError("late", limit="total", seconds=60, sent=True), "never"),
    "total timeout before sending": (APITimeoutError("late", limit="total", seconds=60, sent=False), "never"),
    **{str(status): (answered(status), "always") for status in (408, 429, 503)},
    **{str(status): (answered(status), "repeatable") for status in (500, 502, 504)},
    **{
        str(status): (answered(status), "never")
        for status in (200, 302, 400, 401, 402, 403, 404, 405, 409, 410, 422, 425, 499, 501, 505, 520, 529, 599)
    },
    "undecodable": (ResponseDecodeError("not JSON"), "never"),
    "configuration": (ConfigurationError("no token"), "never"),
    "the root": (FriendliError("?"), "never"),
    "a bug": (ValueError("?"), "never"),
    "cancellation": (asyncio.CancelledError(), "never"),
    "a timeout of somebody else's": (TimeoutError(), "never"),
    "the user": (KeyboardInterrupt(), "never"),
}


@pytest.mark.parametrize("billed", [False, True])
@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("name", DECISIONS)
def test_whether_a_failure_may_be_repeated(name: str, repeatable: bool, billed: bool) -> None:
    error, rule = DECISIONS[name]
    allowed = {"always": True, "repeatable": repeatable, "unbilled": repeatable and not billed, "never": False}[rule]
    assert may_repeat(error, operation(repeatable=repeatable, billed=billed), RetryPolicy()) is allowed


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
def test_statuses_only_narrow_what_may_be_repeated(status: int, repeatable: bool) -> None:
    each = operation(repeatable=repeatable, billed=True)
    allowed = status in {408, 429, 503} or repeatable
    assert may_repeat(answered(status), each, RetryPolicy(statuses={status})) is allowed
    assert may_repeat(answered(status), each, RetryPolicy(statuses=RETRYABLE_STATUSES - {status})) is False
    assert may_repeat(answered(status), each, RetryPolicy(statuses=())) is False


def test_without_any_statuses_what_was_never_sent_is_still_repeated() -> None:
    policy = RetryPolicy(statuses=())
    assert may_repeat(APIConnectionError("refused"), operation(repeatable=False, billed=True), policy) is True


# --- how long is waited ----------------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1e6, allow_nan=False)
POLICIES = st.builds(
    RetryPolicy,
    initial=SECONDS,
    multiplier=st.floats(1, 1e6) | st.integers(1, 10),
    max_wait=SECONDS,
    max_retry_after=SECONDS,
)
FAILURES = st.integers(1, 40) | st.integers(1, 3000)
RANDOM = st.floats(0, 1, exclude_max=True)


def upper(policy: RetryPolicy, failures: int) -> float:
    """The upper end of the wait, computed exactly."""
    grown = Fraction(policy.initial) * Fraction(policy.multiplier) ** (failures - 1)
    return float(min(Fraction(policy.max_wait), grown))


@given(POLICIES, FAILURES, RANDOM)
@deterministic
def test_a_wait_is_uniform_between_zero_and_the_grown_bound(policy: RetryPolicy, failures: int, drawn: float) -> None:
    waited = delay(policy, failures, None, lambda: drawn)
    assert math.isclose(waited, upper(policy, failures) * drawn, rel_tol=1e-6, abs_tol=1e-300)
    assert 0 <= waited <= policy.max_wait


@given(POLICIES, FAILURES, SECONDS, RANDOM)
@deterministic
def test_what_the_server_asks_for_is_never_undercut_nor_much_exceeded(
    policy: RetryPolicy, failures: int, asked: float, drawn: float
) -> None:
    waited = delay(policy, failures, asked, lambda: drawn)
    assert asked <= waited <= asked + min(policy.initial, policy.max_wait)


def test_no_wait_at_all_stays_none_however_often_it_failed() -> None:
    assert {delay(RetryPolicy(initial=0), failures, None, lambda: 0.9) for failures in (1, 2, 1100, 100_000)} == {0}


def test_a_bound_beyond_what_a_float_holds_is_the_largest_wait() -> None:
    assert delay(RetryPolicy(multiplier=10), 100_000, None, lambda: 0.5) == 15
    assert delay(RetryPolicy(initial=1e-300, multiplier=1e300, max_wait=7), 4, None, lambda: 1.0) == 7


def test_the_default_bounds_double_up_to_the_largest() -> None:
    bounds = [delay(RetryPolicy(), failures, None, lambda: 1.0) for failures in range(1, 10)]
    assert bounds == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_the_jitter_is_random_by_default() -> None:
    assert len({delay(RetryPolicy(), 3, None) for _ in range(20)}) > 1


# --- the loop --------------------------------------------------------------------------------------------------------


class Call:
    """A call that fails as told, and what the loop did about it."""

    def __init__(self, *outcomes: BaseException | str) -> None:
        self.slept: list[float] = []
        self.told: list[tuple[str, float]] = []
        self.made = 0
        self.left: float | None = None
        self.going = True
        self._outcomes = list(outcomes)

    async def attempt(self) -> str:
        self.made += 1
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, str):
            return outcome
        raise outcome

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def run(self, failed: FriendliError, policy: RetryPolicy | None = None, *, repeatable: bool = True) -> str:
        return await repeat(
            failed,
            self.attempt,
            policy=policy or RetryPolicy(),
            operation=operation(repeatable=repeatable, billed=False),
            may_go_on=lambda: self.going,
            time_left=lambda: self.left,
            before_sleep=lambda error, seconds: self.told.append((str(error), seconds)),
            sleep=self.sleep,
        )


async def test_the_first_success_after_failures_is_the_result() -> None:
    call = Call(answered(503), "fine")
    assert await call.run(answered(500)) == "fine"
    assert call.made == 2
    assert [error for error, _ in call.told] == ["500 no", "503 no"]
    assert [seconds for _, seconds in call.told] == call.slept
    assert all(0 <= seconds <= bound for seconds, bound in zip(call.slept, (0.5, 1.0), strict=True))


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
async def test_there_are_as_many_attempts_as_the_policy_says_and_the_last_error_is_raised(attempts: int) -> None:
    errors = [answered(503) for _ in range(10)]
    call = Call(*errors)
    with pytest.raises(APIStatusError) as caught:
        await call.run(answered(500), RetryPolicy(max_attempts=attempts))
    assert call.made == attempts - 1
    assert len(call.slept) == attempts - 1
    assert attempts == 1 or caught.value is errors[attempts - 2]


async def test_an_error_that_may_not_be_repeated_ends_it_at_once_as_itself() -> None:
    last = answered(400)
    call = Call(last, "never")
    with pytest.raises(APIStatusError) as caught:
        await call.run(answered(503))
    assert caught.value is last
    assert call.made == 1


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("bug"), KeyboardInterrupt()])
async def test_what_is_no_error_of_ours_passes_through(error: BaseException) -> None:
    call = Call(error)
    with pytest.raises(type(error)) as caught:
        await call.run(answered(503))
    assert caught.value is error


async def test_a_retry_after_is_waited_for() -> None:
    call = Call("fine")
    assert await call.run(RateLimitError("slow", status_code=429, retry_after=7)) == "fine"
    assert len(call.slept) == 1
    assert 7 <= call.slept[0] <= 7.5


async def test_a_retry_after_of_exactly_the_longest_is_waited_for() -> None:
    call = Call("fine")
    assert await call.run(RateLimitError("slow", status_code=429, retry_after=60)) == "fine"


async def test_a_retry_after_beyond_the_longest_raises_at_once_and_is_on_the_error() -> None:
    call = Call("never")
    with pytest.raises(RateLimitError) as caught:
        await call.run(RateLimitError("slow", status_code=429, retry_after=60.5))
    assert (caught.value.retry_after, call.made, call.slept) == (60.5, 0, [])


@pytest.mark.parametrize(("asked", "left"), [(7.0, 7.0), (7.0, 1.0), (0.0, 0.0), (0.0, -1.0)])
async def test_a_wait_that_does_not_fit_into_the_time_left_is_not_begun(asked: float, left: float) -> None:
    call = Call("never")
    call.left = left
    with pytest.raises(RateLimitError):
        await call.run(RateLimitError("slow", status_code=429, retry_after=asked), RetryPolicy(initial=0))
    assert (call.made, call.slept) == (0, [])


async def test_a_wait_that_fits_into_the_time_left_is_begun() -> None:
    call = Call("fine")
    call.left = 8
    assert await call.run(RateLimitError("slow", status_code=429, retry_after=7)) == "fine"


async def test_a_call_that_was_closed_is_not_repeated() -> None:
    call = Call("never")
    call.going = False
    with pytest.raises(APIStatusError):
        await call.run(answered(503))
    assert (call.made, call.slept) == (0, [])


async def test_calls_at_the_same_time_do_not_mix_up_their_attempts() -> None:
    turns = itertools.count()

    class Yielding(Call):
        async def sleep(self, seconds: float) -> None:
            next(turns)
            await asyncio.sleep(0)
            await super().sleep(seconds)

    calls = [Yielding(*[answered(503)] * failures, f"call {failures}") for failures in (0, 1, 2, 3)]
    policy = RetryPolicy(max_attempts=5)
    results = await asyncio.gather(*(call.run(answered(500), policy) for call in calls))
    assert results == ["call 0", "call 1", "call 2", "call 3"]
    assert [call.made for call in calls] == [1, 2, 3, 4]
    assert next(turns) == 10


async def test_the_policy_of_one_operation_says_no_where_that_of_another_says_yes() -> None:
    outcomes: list[Callable[[], APIStatusError]] = [lambda: answered(500), lambda: answered(502), lambda: answered(504)]
    for outcome in outcomes:
        call = Call("never")
        with pytest.raises(APIStatusError):
            await call.run(outcome(), repeatable=False)
        assert call.made == 0
