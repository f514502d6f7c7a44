"""The adaptive concurrency limit: simulated servers, single decisions, and arbitrary sequences of events."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from friendli_async import ConfigurationError
from friendli_async.bulk import Adaptive

# --- simulated servers -----------------------------------------------------------------------------------------------

SECONDS: Final = 600.0
TOKENS: Final = 200.0  # mean tokens per reply, log-normal
PREFILL: Final = 10.0  # cost of the prompt, in tokens
FASTEST: Final = 50.0  # tokens per second of a single reply


@dataclass(frozen=True)
class Server:
    """Shares its throughput among replies in flight; rejects above a concurrency or a rate of requests per minute."""

    speed: Callable[[float], float] = lambda at: 2000.0
    max_in_flight: Callable[[float], float] = lambda at: math.inf
    per_minute: float | None = None
    tokens: float = TOKENS


@dataclass
class Simulation:
    tokens: int = 0
    sent: int = 0
    rejected: int = 0
    by_second: list[float] = field(default_factory=lambda: [0.0] * (int(SECONDS) + 1))
    limits: list[int] = field(default_factory=list)

    @property
    def rejected_share(self) -> float:
        return self.rejected / self.sent

    def rate(self, begin: float = 0.0, end: float = SECONDS) -> float:
        return sum(self.by_second[int(begin) : int(end)]) / (end - begin)


def simulate(server: Server, limit: Adaptive | int, seed: int = 0) -> Simulation:
    """Simulates ten minutes under constant load. Work is in tokens per reply: all replies progress at the same rate."""
    rng = random.Random(seed)
    adaptive = limit if isinstance(limit, Adaptive) else Adaptive(limit, limit, guard=None)
    now = worked = paused = 0.0
    in_flight: list[tuple[float, int, float, int]] = []  # work at completion, number, start time, tokens
    bucket = (server.per_minute or 0.0) / 12  # five seconds' worth of requests
    result = Simulation()
    while now < SECONDS:
        while now >= paused and adaptive.acquire(now):
            result.sent += 1
            if len(in_flight) >= server.max_in_flight(now) or (server.per_minute and bucket < 1):
                result.rejected += 1
                if isinstance(limit, Adaptive):
                    adaptive.refused(None, now)  # sent just now, by default
                else:
                    paused = now + 0.05 + 0.5 * rng.random()
                adaptive.release()
                continue
            bucket -= 1
            tokens = max(5, int(rng.lognormvariate(math.log(server.tokens) - 0.5, 1.0)))
            heapq.heappush(in_flight, (worked + tokens + PREFILL, result.sent, now, tokens))
        rate = min(FASTEST, server.speed(now) / max(1, len(in_flight)))
        step = min(0.25, (in_flight[0][0] - worked) / rate if in_flight else 0.25)
        now, worked = now + step, worked + step * rate
        if server.per_minute:
            bucket = min(server.per_minute / 12, bucket + step * server.per_minute / 60)
        while in_flight and in_flight[0][0] <= worked + 1e-9:
            _, _, since, tokens = heapq.heappop(in_flight)
            result.tokens += tokens
            result.by_second[min(int(now), int(SECONDS))] += tokens
            if isinstance(limit, Adaptive):
                adaptive.succeeded(tokens, now - since, now)
            adaptive.release()
        if len(result.limits) <= int(now):
            result.limits.append(adaptive.limit)
    return result


def dip(high: float, low: float) -> Callable[[float], float]:
    """Returns a capacity that is low for the middle third of the time."""
    return lambda at: low if 200 <= at < 400 else high


FIXED: Final = (8, 16, 24, 32, 40, 48, 64, 128)
SEEDS: Final = (0, 1, 2)
SERVERS: Final = {
    "rejects above 64": Server(speed=lambda at: 3200.0, max_in_flight=lambda at: 64),
    "rejects above 64, then 16, then 64": Server(speed=lambda at: 3200.0, max_in_flight=dip(64, 16)),
    "never rejects, 2000 tokens per second": Server(),
    "300 requests per minute": Server(speed=lambda at: 1e6, per_minute=300),
}


@pytest.mark.parametrize("server", SERVERS.values(), ids=SERVERS)
def test_throughput_is_near_best_fixed_limit_with_few_rejections(server: Server) -> None:
    best = max(simulate(server, fixed).rate() for fixed in FIXED)  # regardless of how many requests were rejected
    for seed in SEEDS:
        found = simulate(server, Adaptive(), seed)
        assert found.rate() >= 0.8 * best
        assert found.rejected_share < 0.01


@pytest.mark.parametrize("tokens", [8.0, TOKENS], ids=["short calls", "long calls"])
@pytest.mark.parametrize("most", [1, 2, 8, 32])
def test_few_calls_are_rejected_by_a_hard_limit_of_any_size(most: int, tokens: float) -> None:
    server = Server(speed=lambda at: 3200.0, max_in_flight=lambda at: most, tokens=tokens)
    best = simulate(server, most).rate()
    for seed in SEEDS:
        found = simulate(server, Adaptive(), seed)
        assert found.rate() >= 0.9 * best
        assert found.rejected < 3 + 0.01 * found.sent  # the first ones find the limit


@pytest.mark.parametrize(
    ("server", "full"),
    [
        (SERVERS["rejects above 64, then 16, then 64"], 2700.0),
        (Server(speed=dip(2000.0, 500.0)), 1850.0),
    ],
    ids=["rejection threshold", "throughput"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_limit_recovers_within_a_minute_of_a_capacity_change(server: Server, full: float, seed: int) -> None:
    found = simulate(server, Adaptive(), seed)
    assert found.rate(150, 200) > 0.8 * full
    assert found.rate(300, 400) < 0.4 * full
    assert found.rate(460, 520) > 0.8 * full


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("seconds", [3.0, 30.0, 120.0])
def test_run_is_as_fast_as_before_a_minute_after_an_outage_in_which_all_calls_are_rejected(
    seconds: float, seed: int
) -> None:
    def capacity(at: float) -> float:
        return 0 if 250 <= at < 250 + seconds else 64

    found = simulate(Server(speed=lambda at: 3200.0, max_in_flight=capacity, tokens=40.0), Adaptive(), seed)
    assert found.rate(int(310 + seconds), int(360 + seconds)) > 0.8 * found.rate(200, 250)


@pytest.mark.parametrize(
    ("server", "least"),
    [
        (Server(speed=lambda at: 3200.0, max_in_flight=lambda at: 0 if at % 120 > 100 else 64, tokens=40.0), 1050.0),
        (Server(speed=lambda at: 3200.0, max_in_flight=dip(32, 4), tokens=40.0, per_minute=1200), 485.0),
    ],
    ids=["outages every two minutes", "limits of requests and of calls in flight"],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_rate_recovers_from_rejections_that_it_did_not_cause(server: Server, least: float, seed: int) -> None:
    assert simulate(server, Adaptive(), seed).rate() > least


@pytest.mark.parametrize(("seed", "began"), [(0, 208.5), (1, 172.5), (2, 174.0)])
def test_outage_that_begins_a_moment_after_a_rejection_is_not_taken_for_a_rate_limit(seed: int, began: float) -> None:
    def capacity(at: float) -> float:
        return 0 if began <= at < began + 60 else 64

    found = simulate(Server(speed=lambda at: 3200.0, max_in_flight=capacity, tokens=40.0), Adaptive(), seed)
    assert found.rate(int(began + 120), int(began + 170)) > 0.8 * found.rate(100, 150)


def test_guard_bounds_the_limit_if_server_never_rejects() -> None:
    unguarded = simulate(Server(), Adaptive(max=10_000, guard=None))
    guarded = simulate(Server(), Adaptive(max=10_000))
    assert max(unguarded.limits) > 500
    assert max(guarded.limits[60:]) < 150
    assert guarded.rate() >= unguarded.rate()


# --- single decisions ------------------------------------------------------------------------------------------------


def exhaust(adaptive: Adaptive, now: float = 0.0) -> Adaptive:
    """Acquires all permits."""
    while adaptive.acquire(now):
        pass
    return adaptive


def test_limit_grows_by_one_per_success_before_first_rejection() -> None:
    adaptive = exhaust(Adaptive(start=4))
    for expected in (5, 6, 7):
        adaptive.succeeded(None, 1.0, 1.0)
        assert adaptive.limit == expected


def test_limit_does_not_grow_while_less_than_half_is_used() -> None:
    adaptive = Adaptive(start=8)
    assert adaptive.acquire(0.0)
    adaptive.succeeded(None, 1.0, 1.0)
    assert adaptive.limit == 8


def test_rejections_within_one_round_trip_reduce_the_limit_once() -> None:
    adaptive = exhaust(Adaptive(start=100))
    for _ in range(50):
        adaptive.refused(None, 10.0, sent=9.0)
    assert adaptive.limit == 70
    adaptive.refused(None, 12.0, sent=11.0)
    assert adaptive.limit == 49


def test_late_rejections_without_send_time_reduce_the_limit_once() -> None:
    adaptive = exhaust(Adaptive(start=100))
    adaptive.succeeded(None, 5.0, 9.0)
    for late in range(20):
        adaptive.refused(None, 10.0 + late / 10)
    assert adaptive.limit == 70


def test_retry_after_pauses_all_acquires() -> None:
    adaptive = Adaptive(start=4)
    assert adaptive.acquire(0.0)
    adaptive.refused(7.0, 1.0)
    adaptive.release()
    assert not adaptive.acquire(7.9)
    assert adaptive.pause(7.0) == pytest.approx(1.0)
    assert adaptive.acquire(8.0)


def test_shorter_retry_after_does_not_shorten_pause() -> None:
    adaptive = Adaptive()
    adaptive.refused(7.0, 0.0)
    adaptive.refused(1.0, 1.0)
    assert not adaptive.acquire(6.9)


INVALID: Final[list[dict[str, Any]]] = [
    {"start": 0},
    {"start": True},
    {"start": 1.5},
    {"start": 5, "max": 4},
    {"max": 0},
    {"shrink": 0},
    {"shrink": 1},
    {"shrink": math.nan},
    {"shrink": "0.7"},
    {"guard": 1},
    {"guard": math.inf},
    {"guard": 10**400},
    {"guard": False},
]


@pytest.mark.parametrize("bad", INVALID, ids=str)
def test_invalid_argument_is_rejected_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="|".join(bad)):
        Adaptive(**bad)


def test_release_without_acquire_raises() -> None:
    with pytest.raises(RuntimeError, match="without a permit"):
        Adaptive().release()


# --- any order of events ---------------------------------------------------------------------------------------------

STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("acquire")),
        st.tuples(st.just("release")),
        st.tuples(st.just("succeeded"), st.none() | st.integers(0, 5000), st.floats(0, 1e3)),
        st.tuples(st.just("refused"), st.none() | st.floats(-1, 100), st.none() | st.floats(0, 100)),
        st.tuples(st.just("later"), st.floats(0, 100)),
    ),
    max_size=200,
)


@given(STEPS, st.integers(1, 20), st.integers(0, 50), st.floats(0.01, 0.99), st.none() | st.floats(1.01, 10))
def test_limit_stays_in_bounds_and_permits_balance(
    steps: list[tuple[Any, ...]], start: int, more: int, shrink: float, guard: float | None
) -> None:
    adaptive = Adaptive(start, start + more, shrink, guard)
    now, out = 0.0, 0
    for name, *values in steps:
        match name:
            case "acquire":
                free = out < adaptive.limit and not adaptive.pause(now)
                assert adaptive.acquire(now) is free
                out += free
            case "release" if out:
                adaptive.release()
                out -= 1
            case "succeeded":
                adaptive.succeeded(values[0], values[1], now)
            case "refused":
                adaptive.refused(values[0], now, None if values[1] is None else now - values[1])
            case "later":
                now += values[0]
        assert adaptive.in_flight == out
        assert 1 <= adaptive.limit <= start + more
    while out:  # the limiter is still usable after any sequence
        adaptive.release()
        out -= 1
    assert adaptive.acquire(now + 101)
