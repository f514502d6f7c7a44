"""The concurrency gate: queueing, fairness, pauses, and no permit lost when waiters are cancelled."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual import VirtualLoop, in_virtual_time, now, run_in_virtual_time

from friendli_async import ConfigurationError
from friendli_async.bulk import Adaptive
from friendli_async.bulk.gate import Gate


async def call(gate: Gate, seconds: float, started: list[float] | None = None) -> None:
    await gate.acquire()
    try:
        if started is not None:
            started.append(now())
        await asyncio.sleep(seconds)
    finally:
        gate.release()


async def pass_through(gate: Gate, name: str, order: list[str]) -> None:
    await gate.acquire()
    order.append(name)
    gate.release()


@in_virtual_time
async def test_waiters_are_admitted_in_order() -> None:
    gate, started = Gate(2), list[float]()
    await asyncio.gather(*(call(gate, 1.0, started) for _ in range(5)))
    assert started == [0.0, 0.0, 1.0, 1.0, 2.0]


@in_virtual_time
async def test_new_caller_does_not_overtake_waiters() -> None:
    gate, order = Gate(1), list[str]()
    await gate.acquire()
    first = asyncio.create_task(pass_through(gate, "first", order))
    await asyncio.sleep(0)
    gate.release()
    second = asyncio.create_task(pass_through(gate, "second", order))
    await asyncio.gather(first, second)
    assert order == ["first", "second"]


@in_virtual_time
async def test_new_caller_after_a_pause_that_ended_while_the_loop_was_blocked_does_not_overtake_waiters() -> None:
    gate, started = Gate(1), list[str]()
    gate.hold(5.0)
    early = asyncio.create_task(pass_through(gate, "early", started))
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.now = 6.0
    await pass_through(gate, "late", started)
    await early
    assert started == ["early", "late"]


@in_virtual_time
async def test_cancelled_waiter_leaves_the_queue() -> None:
    gate = Gate(1)
    await gate.acquire()
    waiters = [asyncio.create_task(gate.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    gate.release()  # in the same loop iteration: the cancelled waiter is still queued
    await waiters[1]
    assert waiters[0].cancelled()
    assert not waiters[2].done()
    gate.release()
    await waiters[2]
    gate.release()
    await gate.acquire()


@in_virtual_time
async def test_permit_of_a_waiter_cancelled_at_release_goes_to_the_next() -> None:
    gate = Gate(1)
    await gate.acquire()
    first, second = asyncio.create_task(gate.acquire()), asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    gate.release()
    first.cancel()
    await second
    assert first.cancelled()


@pytest.mark.parametrize("is_rate_limit", [True, False])
@in_virtual_time
async def test_adaptive_limit_learns_whether_a_rate_limit_may_be_the_cause(
    monkeypatch: pytest.MonkeyPatch, is_rate_limit: bool
) -> None:
    adaptive, reported = Adaptive(), list[bool]()
    monkeypatch.setattr(adaptive, "refused", lambda *_, is_rate_limit: reported.append(is_rate_limit))
    gate = Gate(adaptive)
    await gate.acquire()
    gate.refused(1.0, is_rate_limit=is_rate_limit)
    assert reported == [is_rate_limit]


@pytest.mark.parametrize("limit", [3, Adaptive(start=3)], ids=["fixed", "adaptive"])
@in_virtual_time
async def test_retry_after_pauses_all_callers(limit: int | Adaptive) -> None:
    gate, started = Gate(limit), list[float]()
    await gate.acquire()
    gate.refused(5.0)
    gate.release()
    await asyncio.gather(*(call(gate, 0.0, started) for _ in range(6)))
    assert len(started) == 6
    assert started == [5.0] * 6


@in_virtual_time
async def test_waiter_that_is_cancelled_during_a_pause_leaves_no_timer() -> None:
    gate = Gate(1)
    gate.refused(5.0)
    waiter = asyncio.create_task(gate.acquire())
    await asyncio.sleep(1.0)
    timer = gate._timer
    assert timer is not None
    waiter.cancel()
    await asyncio.wait([waiter])
    assert gate._timer is None
    await gate.acquire()
    assert now() == 5.0


@in_virtual_time
async def test_fixed_limit_neither_changes_nor_pauses_without_a_retry_after() -> None:
    gate = Gate(7)
    for _ in range(50):
        gate.succeeded(100, 1.0)
        gate.refused(None)
    assert (gate.limit, gate.pause(now())) == (7, 0.0)


@in_virtual_time
async def test_rejected_call_gives_up_its_permit_for_a_long_pause_of_an_adaptive_limit_only() -> None:
    delays = []
    for gate in (Gate(2), Gate(Adaptive(start=2))):
        await gate.acquire()
        gate.refused(5.0)
        delays.append(gate.retry_delay())
    assert delays == [0.0, None]


@in_virtual_time
async def test_raised_limit_admits_waiters_at_once() -> None:
    gate, started = Gate(Adaptive(start=1)), list[float]()
    await gate.acquire()
    waiting = asyncio.create_task(call(gate, 0.0, started))
    await asyncio.sleep(1.0)
    gate.succeeded(100, 1.0)
    await waiting
    assert started == [1.0]


@in_virtual_time
async def test_adaptive_limit_of_another_gate_is_an_error() -> None:
    adaptive = Adaptive(start=1)
    await Gate(adaptive).acquire()
    with pytest.raises(ConfigurationError, match="in use by another run"):
        await Gate(adaptive).acquire()
    assert adaptive.in_flight == 1


@in_virtual_time
async def test_adaptive_limit_of_another_gate_is_an_error_for_all_that_were_not_cancelled() -> None:
    adaptive = Adaptive(start=1)
    await Gate(adaptive).acquire()
    gate = Gate(adaptive)
    gate.hold(5.0)
    waiters = [asyncio.create_task(gate.acquire()) for _ in range(3)]
    await asyncio.sleep(1.0)
    waiters[1].cancel()
    refused = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(each) for each in refused] == [ConfigurationError, asyncio.CancelledError, ConfigurationError]


@in_virtual_time
async def test_caller_that_is_refused_a_permit_and_cancelled_in_the_same_turn_gives_none_back() -> None:
    adaptive = Adaptive(start=1)
    await Gate(adaptive).acquire()
    gate, loop = Gate(adaptive), asyncio.get_running_loop()
    waiting: asyncio.Task[None]
    loop.call_at(5.0, lambda: loop.call_soon(waiting.cancel))  # before the end of the pause, which is refused then
    gate.hold(5.0)
    waiting = asyncio.create_task(gate.acquire())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (adaptive.in_flight, now()) == (1, 5.0)


@given(st.integers(1, 5), st.integers(0, 2**32), st.booleans())
def test_no_permit_is_lost_or_duplicated_by_cancellation(limit: int, seed: int, adaptive: bool) -> None:
    rng = random.Random(seed)
    gate = Gate(Adaptive(start=limit, max=8) if adaptive else limit)
    inside = 0

    async def user() -> None:
        nonlocal inside
        await gate.acquire()
        inside += 1
        assert inside <= 8
        try:
            if not rng.randrange(4):
                gate.refused(rng.choice([None, 0.5]))
            await asyncio.sleep(rng.choice([0, 0, 0.1, 1]))
            gate.succeeded(rng.choice([0, 50]), rng.random())
        finally:
            inside -= 1
            gate.release()

    async def main() -> None:
        tasks = [asyncio.create_task(user()) for _ in range(20)]
        for _ in tasks:
            await asyncio.sleep(rng.choice([0, 0, 0.05]))
            if rng.randrange(2):
                rng.choice(tasks).cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        await asyncio.sleep(1.0)
        for _ in range(gate.limit):  # all permits are available, and no more; perhaps not at once, after rejections
            await asyncio.wait_for(gate.acquire(), 1000.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.acquire(), 1000.0)

    run_in_virtual_time(main())
    assert inside == 0
