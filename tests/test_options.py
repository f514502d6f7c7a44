"""Timeouts, Limits and RetryPolicy: defaults, accepted and rejected values."""

from __future__ import annotations

import copy
import decimal
import math
import pickle
from collections.abc import Callable
from typing import Any, cast

import msgspec
import pytest

from friendli_async import Attempt, ConfigurationError, Limits, Pacing, RetryPolicy, Timeouts

Options = Timeouts | Limits | RetryPolicy

# --- defaults --------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert msgspec.structs.asdict(Timeouts()) == {
        "connect": 5,
        "pool": None,
        "first_event": 600,
        "idle": 60,
        "total": None,
    }
    assert msgspec.structs.asdict(Limits()) == {"event": 32 << 20, "reply": 64 << 20, "error": 64 << 10}
    assert msgspec.structs.asdict(RetryPolicy()) == {
        "max_attempts": 3,
        "initial": 0.5,
        "multiplier": 2.0,
        "max_wait": 30,
        "max_retry_after": 60,
        "statuses": {408, 429, 500, 502, 503, 504},
        "on_retry": None,
    }


# --- rejected values -------------------------------------------------------------------------------------------------

NOT_NUMBERS: list[Any] = [
    "5",
    b"5",
    True,
    False,
    [],
    {},
    (),
    object(),
    1j,
    decimal.Decimal(1),
    math.nan,
    math.inf,
    -math.inf,
]
HUGE = pytest.param(10**400, id="10**400")  # too large for a float
NOT_COUNTS: list[Any] = [*NOT_NUMBERS, None, 0, -1, 1.0, 0.5]


def ids(value: object) -> str:
    return f"{type(value).__name__}-{value!r:.12}"


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0, 0.0, -0.0, -1, -0.001, HUGE], ids=ids)
@pytest.mark.parametrize("name", ["connect", "pool", "first_event", "idle", "total"])
def test_invalid_timeout_is_rejected_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Timeouts\.{name} "):
        Timeouts(**{name: value})


@pytest.mark.parametrize("value", NOT_COUNTS, ids=ids)
@pytest.mark.parametrize("name", ["event", "reply", "error"])
def test_invalid_size_limit_is_rejected_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Limits\.{name} "):
        Limits(**{name: value})


@pytest.mark.parametrize("value", NOT_COUNTS, ids=ids)
def test_invalid_max_attempts_is_rejected(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"RetryPolicy\.max_attempts "):
        RetryPolicy(max_attempts=value)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, None, -1, -0.001, HUGE], ids=ids)
@pytest.mark.parametrize("name", ["initial", "multiplier", "max_wait", "max_retry_after"])
def test_invalid_wait_is_rejected_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"RetryPolicy\.{name} "):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("value", [0, 0.5, 0.999])
def test_multiplier_below_one_is_rejected(value: float) -> None:
    with pytest.raises(ConfigurationError, match=r"RetryPolicy\.multiplier "):
        RetryPolicy(multiplier=value)


@pytest.mark.parametrize(
    "statuses",
    [
        {400},
        {429, 409},
        {600},
        {200},
        {"429"},
        {"429", 418},
        {429, None},
        [[429]],
        "429",
        429,
        None,
        {True},
        [b"x", 1.5],
    ],
    ids=range(13),  # the repr of a set differs between processes
)
def test_statuses_outside_the_retryable_set_are_rejected(statuses: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"RetryPolicy\.statuses "):
        RetryPolicy(statuses=statuses)


@pytest.mark.parametrize("value", [5, "f", [], {}])
def test_non_callable_on_retry_is_rejected(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"RetryPolicy\.on_retry "):
        RetryPolicy(on_retry=value)


@pytest.mark.parametrize("kind", [Timeouts, Limits, RetryPolicy])
def test_unknown_and_positional_arguments_raise_type_error(kind: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="'retries'"):
        kind(retries=3)
    with pytest.raises(TypeError):
        kind(5)


# --- accepted values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["connect", "pool", "first_event", "idle", "total"])
@pytest.mark.parametrize("value", [None, 1, 0.001, 1e9, 5e-324])
def test_timeout_accepts_positive_number_or_none(name: str, value: float | None) -> None:
    assert getattr(Timeouts(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["initial", "max_wait", "max_retry_after"])
def test_wait_may_be_zero(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    assert getattr(RetryPolicy(**options), name) == 0


@pytest.mark.parametrize(
    "statuses", [set(), {429}, [429, 503], (429,), frozenset({500}), {520, 599}, range(502, 505), {429: "x"}]
)
def test_statuses_are_stored_as_frozenset(statuses: Any) -> None:
    stored = RetryPolicy(statuses=statuses).statuses
    assert type(stored) is frozenset
    assert stored == set(statuses)
    hash(RetryPolicy(statuses=statuses))


def test_statuses_of_an_iterator_are_kept() -> None:
    statuses: Any = iter([429, 503])
    assert RetryPolicy(statuses=statuses).statuses == {429, 503}


def test_statuses_are_copied() -> None:
    allowed = {429}
    policy = RetryPolicy(statuses=allowed)
    allowed.add(500)
    assert policy.statuses == {429}


def test_on_retry_is_stored() -> None:
    seen: list[Attempt] = []
    policy = RetryPolicy(on_retry=seen.append)
    assert policy.on_retry is not None
    policy.on_retry(Attempt(status=503))
    assert seen == [Attempt(status=503)]


def test_number_means_total_timeout_and_none_disables_all_timeouts() -> None:
    assert Timeouts.of(2.5) == Timeouts(total=2.5)
    assert Timeouts.of(3) == Timeouts(total=3)
    assert Timeouts.of(None) == Timeouts(connect=None, pool=None, first_event=None, idle=None, total=None)
    timeouts = Timeouts(idle=1)
    assert Timeouts.of(timeouts) is timeouts


@pytest.mark.parametrize("value", ["5", True, 0, -1, math.nan, math.inf, [5], {"total": 5}], ids=ids)
def test_invalid_timeout_value_is_rejected(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"Timeouts\.total "):
        Timeouts.of(value)


# --- value semantics -------------------------------------------------------------------------------------------------

SAMPLES: list[Options] = [Timeouts(idle=1), Limits(event=5), RetryPolicy(max_attempts=2, statuses={429})]


@pytest.mark.compatibility
@pytest.mark.parametrize("value", SAMPLES, ids=ids)
def test_options_are_frozen_comparable_picklable_and_copyable(value: Options) -> None:
    for name in value.__struct_fields__:
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
    for duplicate in (
        pickle.loads(pickle.dumps(value)),
        copy.copy(value),
        copy.deepcopy(value),
        msgspec.structs.replace(value),
    ):
        assert duplicate == value
        assert hash(duplicate) == hash(value)
    assert value != type(value)()


def test_replace_validates_the_field() -> None:
    with pytest.raises(ConfigurationError):
        msgspec.structs.replace(Timeouts(), idle=-1)


def test_configuration_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="not -1"):
        Limits(event=-1)


@pytest.mark.parametrize(("kind", "known"), [(Timeouts, "connect"), (Limits, "event"), (Pacing, "obey")])
def test_unknown_keyword_of_a_setting_lists_the_valid_ones(kind: Any, known: str) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: .*'read'; its keywords are {known}, "):
        kind(read=3)


def test_error_of_a_subclass_of_a_setting_is_raised_as_it_is() -> None:
    class Checked(Timeouts, frozen=True):
        def __post_init__(self) -> None:
            raise TypeError("not today")

    with pytest.raises(TypeError, match=r"^not today$"):
        Checked()


def test_number_in_place_of_the_keywords_of_a_retry_policy_lists_them() -> None:
    with pytest.raises(TypeError, match="its keywords are max_attempts, initial, "):
        cast("Any", RetryPolicy)(3)
