"""What is repeated, and when."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    ConfigurationError,
    FriendliError,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    StreamInterruptedError,
)
from friendli_async._core.body.arguments import Arguments
from friendli_async._core.call import Call
from friendli_async._core.protocol import Operation
from friendli_async._core.retry import Retries, delay, is_retryable
from friendli_async.errors import status_class
from friendli_async.options import _RETRYABLE_STATUSES as RETRYABLE_STATUSES
from friendli_async.replies import Headers

pytestmark = pytest.mark.compatibility


def operation(*, repeatable: bool, billed: bool) -> Operation[Any]:
    return Operation(name="x", method="POST", path="/x", reply=Any, repeatable=repeatable, billed=billed)


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
    assert is_retryable(error, operation(repeatable=repeatable, billed=billed), RetryPolicy()) is allowed


@pytest.mark.parametrize("repeatable", [False, True])
@pytest.mark.parametrize("status", sorted(RETRYABLE_STATUSES))
def test_statuses_only_narrow_what_may_be_repeated(status: int, repeatable: bool) -> None:
    each = operation(repeatable=repeatable, billed=True)
    allowed = status in {408, 429, 503} or repeatable
    assert is_retryable(answered(status), each, RetryPolicy(statuses={status})) is allowed
    assert is_retryable(answered(status), each, RetryPolicy(statuses=RETRYABLE_STATUSES - {status})) is False
    assert is_retryable(answered(status), each, RetryPolicy(statuses=())) is False


def test_without_any_statuses_what_was_never_sent_is_still_repeated() -> None:
    policy = RetryPolicy(statuses=())
    assert is_retryable(APIConnectionError("refused"), operation(repeatable=False, billed=True), policy) is True


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


# --- whether there is another attempt, and when -----------------------------------------------------------------------


def waits(
    *errors: FriendliError, policy: RetryPolicy | None = None, left: Callable[[], float | None] = lambda: None
) -> list[float | None]:
    """What one call waits after each of these failures."""
    retries = Retries(policy or RetryPolicy(), left)
    return [retries.wait_after(error) for error in errors]


def slow(retry_after: float) -> RateLimitError:
    return RateLimitError("slow", status_code=429, retry_after=retry_after)


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
def test_there_is_a_wait_between_as_many_attempts_as_the_policy_says(attempts: int) -> None:
    told = waits(*[answered(503)] * attempts, policy=RetryPolicy(max_attempts=attempts))
    assert [wait is None for wait in told] == [False] * (attempts - 1) + [True]


def test_the_waits_of_one_call_grow_by_its_own_failures() -> None:
    bounds = (0.5, 1.0, 2.0, 4.0)
    for _ in range(20):
        told = waits(*[answered(500)] * 4, policy=RetryPolicy(max_attempts=5))
        assert all(wait is not None and 0 <= wait <= bound for wait, bound in zip(told, bounds, strict=True))


def test_calls_at_the_same_time_do_not_count_each_others_failures() -> None:
    calls = [Retries(RetryPolicy(max_attempts=3), lambda: None) for _ in range(3)]
    told = [[call.wait_after(answered(503)) is None for call in calls] for _ in range(3)]
    assert told == [[False] * 3, [False] * 3, [True] * 3]


def test_a_retry_after_is_waited_for_and_forgotten_with_the_next_failure() -> None:
    first, second = waits(slow(7), answered(503))
    assert first is not None
    assert 7 <= first <= 7.5
    assert second is not None
    assert second <= 1


def test_a_retry_after_of_exactly_the_longest_is_waited_for_and_one_beyond_is_not() -> None:
    [exact] = waits(slow(60))
    assert exact is not None
    assert 60 <= exact <= 60.5
    assert waits(slow(60.5)) == [None]


@pytest.mark.parametrize(("asked", "left"), [(7.0, 7.0), (7.0, 1.0), (0.0, 0.0), (0.0, -1.0)])
def test_a_wait_that_does_not_fit_into_the_time_left_is_not_begun(asked: float, left: float) -> None:
    assert waits(slow(asked), policy=RetryPolicy(initial=0), left=lambda: left) == [None]


def test_a_wait_that_fits_into_the_time_left_is_begun() -> None:
    assert waits(slow(7), left=lambda: 8)[0] is not None


def test_deciding_keeps_no_hold_of_the_error() -> None:
    retries = Retries(RetryPolicy(), lambda: None)
    error = answered(503)
    gone = weakref.ref(error)
    gc.disable()
    try:
        retries.wait_after(error)
        del error
        assert gone() is None
    finally:
        gc.enable()


# --- the loop --------------------------------------------------------------------------------------------------------


class Attempts:
    """Stands in for the network: the attempts of one call fail as told, and the clock is not waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | str) -> None:
        self.made = 0
        self.slept: list[float] = []
        self.told: list[tuple[int | None, float]] = []
        self.client = AsyncFriendli("token")
        self.repeatable = True
        self.close_after: int | None = None
        self._outcomes = list(outcomes)
        monkeypatch.setattr(self.client.serverless.chat._engine.runtime.transport, "send", self._send)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    async def _send(self, request: object, dial: object) -> Any:
        self.made += 1
        if self.made == self.close_after:
            await self.client.aclose()
        outcome = self._outcomes[self.made - 1]
        if isinstance(outcome, str):
            return SimpleNamespace(status=200, headers=Headers(), said=outcome)
        raise outcome

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def _retried(self, attempt: Attempt) -> None:
        assert attempt.wait is not None
        self.told.append((attempt.number, attempt.wait))

    async def run(self, **policy: Any) -> str:
        engine = self.client.serverless.chat._engine.replace(retry=RetryPolicy(on_retry=self._retried, **policy))
        call = Call(engine, operation(repeatable=self.repeatable, billed=False), Arguments(), "json")

        async def read(exchange: Any) -> str:
            said: str = exchange.said
            return said

        return await call.run(read)


async def test_the_first_success_after_failures_is_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, answered(500), answered(503), "fine")
    assert await attempts.run() == "fine"
    assert attempts.made == 3
    assert attempts.told == list(enumerate(attempts.slept, 1))
    assert all(0 <= seconds <= bound for seconds, bound in zip(attempts.slept, (0.5, 1.0), strict=True))


@pytest.mark.parametrize("most", [1, 2, 3, 7])
async def test_there_are_as_many_attempts_as_the_policy_says_and_the_last_error_is_raised(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    errors = [answered(503) for _ in range(10)]
    attempts = Attempts(monkeypatch, *errors)
    with pytest.raises(APIStatusError) as caught:
        await attempts.run(max_attempts=most)
    assert (attempts.made, len(attempts.slept)) == (most, most - 1)
    assert caught.value is errors[most - 1]


async def test_an_error_that_may_not_be_repeated_ends_it_at_once_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    last = answered(400)
    attempts = Attempts(monkeypatch, answered(503), last, "never")
    with pytest.raises(APIStatusError) as caught:
        await attempts.run()
    assert caught.value is last
    assert attempts.made == 2


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ValueError("bug"), KeyboardInterrupt()])
async def test_what_is_no_error_of_ours_passes_through(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    attempts = Attempts(monkeypatch, answered(503), error)
    with pytest.raises(type(error)) as caught:
        await attempts.run()
    assert caught.value is error


async def test_a_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, slow(7), "fine")
    assert await attempts.run() == "fine"
    assert len(attempts.slept) == 1
    assert 7 <= attempts.slept[0] <= 7.5


async def test_a_retry_after_beyond_the_longest_raises_at_once_and_is_on_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = Attempts(monkeypatch, slow(60.5), "never")
    with pytest.raises(RateLimitError) as caught:
        await attempts.run()
    assert (caught.value.retry_after, attempts.made, attempts.slept) == (60.5, 1, [])


async def test_a_call_whose_client_was_closed_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts(monkeypatch, answered(503), "never")
    attempts.close_after = 1
    with pytest.raises(FriendliError):
        await attempts.run()
    assert (attempts.made, attempts.slept) == (1, [])


async def test_calls_at_the_same_time_do_not_mix_up_their_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = asyncio.sleep

    class Yielding(Attempts):
        async def _sleep(self, seconds: float) -> None:
            await turn(0)

    calls = [Yielding(monkeypatch, *[answered(503)] * failures, f"call {failures}") for failures in (1, 2, 3, 4)]
    results = await asyncio.gather(*(call.run(max_attempts=5) for call in calls))
    assert results == ["call 1", "call 2", "call 3", "call 4"]
    assert [call.made for call in calls] == [2, 3, 4, 5]
    assert [len(call.told) for call in calls] == [1, 2, 3, 4]


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_the_policy_of_one_operation_says_no_where_that_of_another_says_yes(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    attempts = Attempts(monkeypatch, answered(status), "never")
    attempts.repeatable = False
    with pytest.raises(APIStatusError):
        await attempts.run()
    assert attempts.made == 1
