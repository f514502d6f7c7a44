"""Numbers of other libraries as settings."""

import fractions
from typing import Any

import numpy as np
import pytest

from friendli_async import AsyncFriendli, ConfigurationError, Limits, Pacing, RetryPolicy, Timeouts

NUMPY: list[Any] = [np.int64(2), np.uint8(2), np.float64(2.0), np.float32(2.0), fractions.Fraction(2)]


@pytest.mark.parametrize("value", NUMPY, ids=type)
def test_numbers_of_other_libraries_are_plain_numbers(value: Any) -> None:
    assert Timeouts(total=value) == Timeouts(total=2) == AsyncFriendli("t", timeout=value)._settings.timeout
    assert RetryPolicy(initial=value, multiplier=value) == RetryPolicy(initial=2, multiplier=2)
    assert isinstance(Timeouts(total=value).total, int | float)


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2)], ids=type)
def test_whole_numbers_of_other_libraries_are_counts(value: Any) -> None:
    policy, limits, pacing = RetryPolicy(max_attempts=value), Limits(event=value), Pacing(retry_budget=value)
    most = AsyncFriendli("t", max_connections=value).gauges().max_connections
    assert [type(each) for each in (policy.max_attempts, limits.event, pacing.retry_budget, most)] == [int] * 4


@pytest.mark.parametrize("value", [np.bool_(True), np.float64("nan"), np.int64(-1), np.array([1, 2]), np.str_("2")])
def test_other_numpy_values_are_no_numbers(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Timeouts\.total "):
        Timeouts(total=value)
