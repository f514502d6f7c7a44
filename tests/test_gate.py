"""The line before a limit: who waits, who is let in, and that nobody who leaves takes a permit along."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.virtual import now, virtually

from friendli_async import ConfigurationError
from friendli_async.bulk import Adaptive
from friendli_async.bulk.gate import Gate


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        virtually(test(*args, **kwargs))

    return run


async def call(gate: Gate, seconds: float, began: list[float] | None = None) -> None:
    await gate.acquire()
    try:
        if began is not None:
            began.append(now())
        await asyncio.sleep(seconds)
    finally:
        gate.release()


@in_virtual_time
async def test_so_many_are_let_in_and_the_others_in_their_order() -> None:
    gate, began = Gate(2), list[float]()
    await asyncio.gather(*(call(gate, 1.0, began) for _ in range(5)))
    assert began == [0.0, 0.0, 1.0, 1.0, 2.0]


@in_virtual_time
async def test_a_newcomer_does_not_pass_those_who_wait() -> None:
    gate, order = Gate(1), list[str]()

    async def named(name: str) -> None:
        await gate.acquire()
        order.append(name)
        gate.release()

    await gate.acquire()
    first = asyncio.create_task(named("first"))
    await asyncio.sleep(0)
    gate.release()
    second = asyncio.create_task(named("second"))
    await asyncio.gather(first, second)
    assert order == ["first", "second"]


@in_virtual_time
async def test_a_cancelled_waiter_leaves_the_line() -> None:
    gate = Gate(1)
    await gate.acquire()
    waiters = [asyncio.create_task(gate.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    gate.release()  # in the same turn: the cancelled one is still in the line
    await waiters[1]
    assert waiters[0].cancelled()
    assert gate.waiting == 1
    gate.release()
    await waiters[2]
    gate.release()
    await gate.acquire()


@in_virtual_time
async def test_a_permit_given_to_one_who_is_cancelled_in_that_turn_goes_to_the_next() -> None:
    gate = Gate(1)
    await gate.acquire()
    first, second = asyncio.create_task(gate.acquire()), asyncio.create_task(gate.acquire())
    await asyncio.sleep(0)
    gate.release()
    first.cancel()
    await second
    assert first.cancelled()
    assert gate.waiting == 0


@pytest.mark.parametrize("limit", [3, Adaptive(start=3)], ids=["fixed", "adaptive"])
@in_virtual_time
async def test_a_retry_after_pauses_everybody(limit: int | Adaptive) -> None:
    gate, began = Gate(limit), list[float]()
    await gate.acquire()
    gate.refused(5.0)
    gate.release()
    await asyncio.gather(*(call(gate, 0.0, began) for _ in range(6)))
    assert len(began) == 6
    assert began == [5.0] * 6


@in_virtual_time
async def test_those_who_wait_for_the_end_of_a_pause_can_leave() -> None:
    gate = Gate(1)
    gate.refused(5.0)
    waiter = asyncio.create_task(gate.acquire())
    await asyncio.sleep(1.0)
    waiter.cancel()
    await asyncio.wait([waiter])
    await gate.acquire()
    assert now() == 5.0


@in_virtual_time
async def test_a_fixed_limit_neither_grows_nor_shrinks() -> None:
    gate = Gate(7)
    for _ in range(50):
        gate.succeeded(100, 1.0)
        gate.refused(None)
    assert gate.limit == 7


@in_virtual_time
async def test_a_limit_that_has_grown_lets_waiters_in_at_once() -> None:
    gate, began = Gate(Adaptive(start=1)), list[float]()
    await gate.acquire()
    waiting = asyncio.create_task(call(gate, 0.0, began))
    await asyncio.sleep(1.0)
    gate.succeeded(100, 1.0)
    await waiting
    assert began == [1.0]


@in_virtual_time
async def test_a_limit_that_another_gate_holds_is_an_error_and_no_hang() -> None:
    adaptive = Adaptive(start=1)
    await Gate(adaptive).acquire()
    with pytest.raises(ConfigurationError, match="in use by another run"):
        await Gate(adaptive).acquire()


@given(st.integers(1, 5), st.integers(0, 2**32), st.booleans())
def test_no_permit_is_lost_or_doubled_whoever_is_cancelled_when(limit: int, seed: int, adaptive: bool) -> None:
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
            gate.succeeded(rng.choice([None, 50]), rng.random())
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
        for _ in range(gate.limit):  # all permits are there, and no more
            await asyncio.wait_for(gate.acquire(), 0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gate.acquire(), 0.1)

    virtually(main())
    assert inside == 0
