"""The adaptive limit at simulated servers that limit requests per minute, in virtual time."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final, Protocol

import pytest

from friendli_async.bulk import Adaptive

MINUTE: Final = 60.0
SECONDS: Final = 1800.0
LEARNING: Final = 300.0
"""The first minutes are not judged: the limit has to be found by being rejected."""
ROUND_TRIP: Final = 0.05
"""Seconds after which a rejection arrives."""


class Server(Protocol):
    def admit(self, now: float) -> float | None:
        """Returns None if a request is accepted, or the seconds after which another one will be."""


@dataclass
class FixedWindow:
    per_minute: int
    window: int = -1
    used: int = 0

    def admit(self, now: float) -> float | None:
        window = int((now + 17.0) // MINUTE)  # the minutes of the server are not those of the run
        if window != self.window:
            self.window, self.used = window, 0
        if self.used == self.per_minute:
            return (window + 1) * MINUTE - 17.0 - now + 0.01
        self.used += 1
        return None


@dataclass
class SlidingWindow:
    per_minute: int
    accepted: deque[float] = field(default_factory=deque[float])

    def admit(self, now: float) -> float | None:
        while self.accepted and self.accepted[0] <= now - MINUTE:
            self.accepted.popleft()
        if len(self.accepted) == self.per_minute:
            return self.accepted[0] + MINUTE - now + 0.01
        self.accepted.append(now)
        return None


@dataclass
class TokenBucket:
    per_minute: int
    tokens: float = 10.0
    filled_at: float = 0.0

    def admit(self, now: float) -> float | None:
        rate = self.per_minute / MINUTE
        self.tokens = min(10.0, self.tokens + (now - self.filled_at) * rate)
        self.filled_at = now
        if self.tokens < 1.0:
            return (1.0 - self.tokens) / rate + 0.01
        self.tokens -= 1.0
        return None


@dataclass
class AtRandom:
    """A server that rejects some requests whatever their number, as one does that others use, too."""

    share: float
    seed: int
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def admit(self, now: float) -> float | None:
        return 1.0 if self.rng.random() < self.share else None


@dataclass
class FromLater:
    """A server that limits requests only after some minutes, as one does whose limit was lowered."""

    server: Server

    def admit(self, now: float) -> float | None:
        return self.server.admit(now) if now > 200.0 else None


@dataclass
class Counts:
    done: int = 0
    rejected: int = 0


def simulate(server: Server, seconds: float, *, retry_after: bool) -> Counts:
    """Simulates a run under constant load; returns what happened after the learning phase.

    A rejected call is repeated, with its permit, as long as ``retry_delay`` allows it.

    Args:
        server: The server.
        seconds: The mean duration of a call.
        retry_after: Whether rejections say how long to wait.
    """
    rng = random.Random(0)
    adaptive = Adaptive()
    counts = Counts()
    events: list[tuple[float, int, str, float, float | None]] = []  # time, number, kind, sent, wait
    number, now = 0, 0.0

    def add(at: float, kind: str, sent: float, wait: float | None = None) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, kind, sent, wait))

    def send() -> None:
        wait = server.admit(now)
        if wait is None:
            add(now + seconds * rng.lognormvariate(-0.125, 0.5), "done", now)
        else:
            add(now + ROUND_TRIP, "rejected", now, wait)

    while now < SECONDS:
        while adaptive.acquire(now):
            send()
        pause = adaptive.pause(now)
        until = min(now + pause if pause else math.inf, events[0][0] if events else math.inf)
        now = max(now, until)
        while events and events[0][0] <= now:
            _, _, kind, sent, wait = heapq.heappop(events)
            if kind == "again":
                send()
                continue
            if kind == "done":
                adaptive.succeeded(200, now - sent, now)
                counts.done += now > LEARNING
            else:
                adaptive.refused(wait if retry_after else None, now, sent)
                counts.rejected += now > LEARNING
                if (delay := adaptive.retry_delay(now)) is not None:
                    add(now + delay, "again", now)
                    continue
            adaptive.release()
    return counts


@pytest.mark.parametrize("retry_after", [False, True], ids=["without Retry-After", "with Retry-After"])
@pytest.mark.parametrize("seconds", [0.3, 4.0], ids=["short calls", "long calls"])
@pytest.mark.parametrize("per_minute", [60, 120, 600])
@pytest.mark.parametrize("server", [FixedWindow, SlidingWindow, TokenBucket])
def test_calls_are_started_at_the_rate_that_the_server_accepts(
    server: type[FixedWindow | SlidingWindow | TokenBucket], per_minute: int, seconds: float, retry_after: bool
) -> None:
    counts = simulate(server(per_minute), seconds, retry_after=retry_after)
    assert counts.done >= 0.75 * per_minute * (SECONDS - LEARNING) / MINUTE
    assert counts.rejected < 0.016 * (counts.done + counts.rejected)


def test_limit_that_is_taken_for_an_outage_is_recognized_by_its_next_rejections() -> None:
    counts = simulate(FromLater(SlidingWindow(60)), 4.0, retry_after=False)
    assert counts.done >= 0.75 * (SECONDS - LEARNING)
    # The next ones may be part of the same block, as those of an outage are; so only the ones after it decide.
    assert counts.rejected < 0.025 * (counts.done + counts.rejected)


@pytest.mark.parametrize("retry_after", [False, True], ids=["without Retry-After", "with Retry-After"])
@pytest.mark.parametrize(("share", "at_least"), [(0.02, 2.0), (0.1, 0.25)])
def test_rate_is_not_lowered_without_end_if_calls_are_rejected_at_random(
    share: float, at_least: float, retry_after: bool
) -> None:
    runs = [simulate(AtRandom(share, seed), 0.3, retry_after=retry_after) for seed in range(5)]
    assert min(counts.done for counts in runs) >= at_least * (SECONDS - LEARNING)


@pytest.mark.parametrize("retry_after", [False, True], ids=["without Retry-After", "with Retry-After"])
@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.25])
def test_rate_is_lowered_if_every_second_call_is_rejected_for_ever(seconds: float, retry_after: bool) -> None:
    counts = simulate(TokenBucket(60), seconds, retry_after=retry_after)
    assert counts.done >= 0.95 * (SECONDS - LEARNING)
    assert counts.rejected < 0.01 * counts.done


# --- single decisions ------------------------------------------------------------------------------------------------


def rejected_at_few(adaptive: Adaptive, *, is_rate_limit: bool = True) -> float:
    """Lets 60 single calls succeed in 60 seconds, then one be rejected and the next succeed; returns when that was."""
    now = 0.0
    for _ in range(60):
        assert adaptive.acquire(now)
        adaptive.succeeded(None, 0.5, now + 0.5)
        adaptive.release()
        now += 1.0
    assert adaptive.acquire(now)
    adaptive.refused(None, now + 0.01, now, is_rate_limit=is_rate_limit)
    adaptive.release()
    now += 1.0
    for _ in range(8):  # a round
        if adaptive.acquire(now):
            adaptive.succeeded(None, 0.1, now + 0.1)
            adaptive.release()
        now += 0.2
    return now


def starts_within(adaptive: Adaptive, now: float, seconds: float) -> int:
    """Returns how many calls of no duration can be started."""
    starts = 0
    for _ in range(round(seconds / 0.01)):
        now += 0.01
        if adaptive.acquire(now):
            starts += 1
            adaptive.release()
    return starts


def test_calls_are_spaced_after_a_rejection_of_fewer_than_were_accepted_before() -> None:
    adaptive = Adaptive()
    now = rejected_at_few(adaptive)
    assert 7 <= starts_within(adaptive, now, 10.0) <= 11


def test_rejection_of_calls_that_a_pause_has_slowed_down_does_not_lower_the_rate_again() -> None:
    adaptive = Adaptive()
    now = rejected_at_few(adaptive)
    for _ in range(4):  # a call in 30 seconds, although one may start every second
        now += 30.0
        assert adaptive.acquire(now)
        adaptive.refused(None, now + 0.01, now)
        adaptive.release()
        now += 30.0
        for _ in range(8):
            assert adaptive.acquire(now)
            adaptive.succeeded(None, 0.1, now + 0.1)
            adaptive.release()
            now += 1.5
    assert 7 <= starts_within(adaptive, now, 10.0) <= 14


def test_unavailable_server_does_not_space_the_calls_after_it_is_back() -> None:
    adaptive = Adaptive()
    now = rejected_at_few(adaptive, is_rate_limit=False)
    assert starts_within(adaptive, now, 1.0) == 100


def test_pause_doubles_while_calls_are_rejected() -> None:
    adaptive, now = Adaptive(), 0.0
    pauses: list[float] = []
    for _ in range(9):
        assert adaptive.acquire(now)
        adaptive.refused(None, now + 0.01, now)
        adaptive.release()
        pauses.append(round(adaptive.pause(now + 0.01), 3))
        now += 100.0
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_retry_after_replaces_the_pause() -> None:
    adaptive = Adaptive()
    for now, retry_after, pause in [(0.0, 0.0, 0.0), (100.0, 0.1, 0.1), (200.0, 60.0, 60.0)]:
        assert adaptive.acquire(now)
        adaptive.refused(retry_after, now + 0.01, now)
        adaptive.release()
        assert adaptive.pause(now + 0.01) == pytest.approx(pause)


def test_rejected_call_may_be_sent_again_after_a_short_pause_and_gives_its_permit_back_before_a_long_one() -> None:
    adaptive = Adaptive()
    assert adaptive.acquire(0.0)
    assert adaptive.acquire(0.0)
    adaptive.refused(None, 0.1, 0.0)
    first = adaptive.retry_delay(0.1)
    assert first == pytest.approx(0.25)
    adaptive.refused(30.0, 0.5, 0.4)
    assert adaptive.retry_delay(0.5) is None
