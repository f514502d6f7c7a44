"""Call timing: the stopwatch's figures, and where they are reported."""

import asyncio
import math
import pickle
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import (
    FAST_RETRY,
    client_of,
    complete,
    completion,
    open_stream,
    read,
    unresponsive_port,
    with_timeout,
)

from friendli_async import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    BadRequestError,
    InternalServerError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async._core.timing import Stopwatch
from friendli_async.testing import (
    FriendliServer,
    body,
    chunk,
    cut,
    done,
    finish,
    gate,
    head,
    raw,
    script,
    stall,
    status,
    text,
    usage,
)

pytestmark = pytest.mark.compatibility


class ManualClock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- the stopwatch ---------------------------------------------------------------------------------------------------


def nearest_rank(gaps: list[float], share: float) -> float:
    """Returns the nearest-rank percentile: the smallest gap that at least this share of all gaps does not exceed."""
    return sorted(gaps)[max(1, math.ceil(share * len(gaps))) - 1]


@deterministic
@given(st.lists(st.floats(2e-6, 1e4), min_size=1, max_size=60))
def test_gap_percentiles_are_within_two_percent(steps: list[float]) -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    moments = list(accumulate([clock.now + 5, *steps]))
    for moment in moments:
        clock.now = moment
        watch.record_read(10, 1)
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    timing = watch.timing(None)
    assert timing.gap_max == max(gaps)
    for percentile, share in ((timing.gap_p50, 0.5), (timing.gap_p95, 0.95)):
        assert percentile is not None
        if nearest_rank(gaps, share) > 2e-6:  # smaller gaps are lost to the rounding of the clock's floats
            assert percentile == pytest.approx(nearest_rank(gaps, share), rel=0.0201)
        assert percentile <= timing.gap_max


def test_stopwatch_memory_is_bounded_and_counts_every_gap() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    for number in range(5000):
        clock.now += 0.5 if number % 10 else 2.0
        watch.record_read(10, 1)
    assert len(watch._read_times) < 600
    timing = watch.timing(None)
    assert (timing.events, timing.bytes, timing.gap_max) == (5000, 50_000, 2.0)
    assert timing.gap_p50 == pytest.approx(0.5, rel=0.0201)
    assert timing.gap_p95 == pytest.approx(2.0, rel=0.0201)
    assert watch.timing(None).gap_p50 == timing.gap_p50


@deterministic
@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10_000), st.integers(0, 50)), max_size=30),
    st.none() | st.integers(0, 10_000),
)
def test_counts_and_event_times(reads: list[tuple[float, int, int]], tokens: int | None) -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    moments: list[float] = []
    for seconds, size, events in reads:
        clock.now += seconds
        watch.record_read(size, events)
        if events:
            moments.append(clock.now - 1000.0)
    timing = watch.timing(tokens)
    assert timing.bytes == sum(size for _, size, _ in reads)
    assert timing.events == sum(events for _, _, events in reads)
    assert timing.first_event == (moments[0] if moments else None)
    assert timing.last_event == (moments[-1] if moments else None)
    assert timing.total == clock.now - 1000.0
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    assert timing.gap_max == (pytest.approx(max(gaps)) if gaps else None)
    assert (timing.gap_p50 is None) is (timing.gap_p95 is None) is (not gaps)
    if tokens and moments and moments[-1] > moments[0]:
        assert timing.tokens_per_second == pytest.approx(tokens / (moments[-1] - moments[0]))
    else:
        assert timing.tokens_per_second is None


def test_zero_length_gaps_are_counted() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    for _ in range(3):
        watch.record_read(1, 1)
    timing = watch.timing(5)
    assert (timing.gap_p50, timing.gap_p95, timing.gap_max) == (0.0, 0.0, 0.0)
    assert timing.tokens_per_second is None


def test_total_grows_until_first_stop() -> None:
    clock = ManualClock()
    watch = Stopwatch(clock)
    clock.now += 1
    assert watch.timing(None).total == 1
    clock.now += 1
    watch.stop()
    clock.now += 1
    watch.stop()
    assert watch.timing(None).total == 2


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_stream_timing_updates_while_open_and_is_final_afterwards(
    client: AsyncFriendli, server: FriendliServer, clock: Clock
) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    server.enqueue(
        script(
            *(head(), gate(gates[0]), chunk(role="assistant"), gate(gates[1]), chunk("a")),
            *(gate(gates[2]), chunk("b"), finish(), usage(3, 8), done()),
        )
    )
    stream = open_stream(client)
    opening = asyncio.ensure_future(with_timeout(stream))
    await server.wait_for_requests()
    await run_loop_iterations(50)
    clock.advance(1.0)
    gates[0].set()
    await opening
    opened = stream.timing
    assert (opened.first_event, opened.first_text, opened.last_event, opened.total) == (1.0, None, 1.0, 1.0)
    assert (opened.events, opened.gap_p50, opened.gap_max) == (1, None, None)
    assert opened.bytes > 0
    assert stream.meta.timing.first_event == 1.0
    await anext(stream)
    clock.advance(2.0)
    assert stream.timing.total == 3.0
    gates[1].set()
    await with_timeout(anext(stream))
    middle = stream.timing
    assert (middle.first_event, middle.first_text, middle.last_event, middle.total) == (1.0, 3.0, 3.0, 3.0)
    assert stream.meta.timing.total == 1.0, "that of the opening while it is open"
    assert (middle.events, middle.gap_max, middle.tokens_per_second) == (2, 2.0, None)
    assert middle.gap_p50 == pytest.approx(2.0, rel=0.02)
    assert middle.bytes > opened.bytes
    clock.advance(4.0)
    gates[2].set()
    result = await with_timeout(stream.result())
    final = stream.timing
    assert (final.first_text, final.last_event, final.total, final.gap_max) == (3.0, 7.0, 7.0, 4.0)
    assert final.events >= 4
    assert final.tokens_per_second == pytest.approx(8 / 6.0)
    clock.advance(100.0)
    assert stream.timing == final
    assert stream.meta.timing == final
    assert result.meta == stream.meta
    assert stream.meta.elapsed == 1.0  # up to the first event


async def test_first_text_equals_first_event_if_they_coincide(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), finish(), done()))
    async with open_stream(client) as stream:
        assert stream.timing.first_text == stream.timing.first_event
        assert stream.timing.first_text is not None
    assert stream.timing.first_text == stream.timing.first_event


async def test_stream_without_text_has_no_first_text(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk(role="assistant"), finish(), done()))
    stream = open_stream(client)
    await stream.result()
    assert stream.timing.first_text is None


async def test_bytes_is_the_body_size(client: AsyncFriendli, server: FriendliServer) -> None:
    payload = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    server.enqueue(body(payload, content_type="text/event-stream"))
    stream = open_stream(client)
    assert await read(stream) == "a"
    assert stream.timing.bytes == len(payload)
    assert stream.timing.events == 1


async def test_timing_of_unopened_stream_raises(client: AsyncFriendli, server: FriendliServer) -> None:
    stream = open_stream(client)
    with pytest.raises(RuntimeError, match="not open"):
        _ = stream.timing
    server.enqueue(status(400))
    with pytest.raises(BadRequestError) as raised:
        await stream
    assert raised.value.meta is not None
    assert stream.timing == raised.value.meta.timing


# --- plain calls -----------------------------------------------------------------------------------------------------


async def test_timing_of_plain_reply(server: FriendliServer, clock: Clock) -> None:
    released = asyncio.Event()
    payload = completion("hello")
    gated = script(
        raw(payload[:10]), gate(released), raw(payload[10:]), status=200, headers={"Content-Type": "application/json"}
    )
    server.enqueue(status(503), gated)
    policy = RetryPolicy(initial=0.0, max_wait=0.0)
    async with client_of(server.url, retry=policy) as client:
        task = asyncio.ensure_future(complete(client))
        await server.wait_for_requests(2)
        await run_loop_iterations(50)
        clock.advance(2.0)
        released.set()
        reply = await with_timeout(task)
        clock.advance(5.0)
    timing = reply.meta.timing
    assert (timing.first_event, timing.last_event, timing.total) == (2.0, 2.0, 2.0)
    assert (timing.events, timing.bytes) == (1, len(payload))
    assert (timing.first_text, timing.gap_max, timing.tokens_per_second) == (None, None, None)
    assert reply.meta.elapsed == 2.0


async def test_wait_for_connection_slot_is_reported_as_queued(server: FriendliServer, clock: Clock) -> None:
    opened = asyncio.Event()
    server.enqueue(script(chunk("a"), gate(opened), finish(), done()), text("hello"))
    async with client_of(server.url, max_connections=1) as client:
        stream = await open_stream(client)
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: client.gauges().waiting == 1)
        clock.advance(3.0)
        opened.set()
        assert await read(stream) == "a"
        reply = await with_timeout(task)
    assert reply.meta.timing.queued == 3.0
    assert reply.meta.timing.connecting == 0.0  # the connection was reused
    assert stream.timing.queued == 0.0


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_pool_timeout_error_has_queued_time(server: FriendliServer, clock: Clock) -> None:
    server.enqueue(script(chunk("a"), stall()))
    async with client_of(server.url, max_connections=1, timeout=Timeouts(pool=3)) as client, open_stream(client):
        task = asyncio.ensure_future(complete(client))
        await wait_until(lambda: client.gauges().waiting == 1)
        clock.advance(3.0)
        with pytest.raises(APITimeoutError) as raised:
            await with_timeout(task)
    assert raised.value.limit == "pool"
    assert raised.value.meta is not None
    assert raised.value.meta.timing.queued == 3.0
    assert raised.value.meta.timing.total == 3.0


async def test_connect_timeout_error_has_connecting_time(clock: Clock) -> None:
    with unresponsive_port() as port:
        async with client_of(f"http://127.0.0.1:{port}", timeout=Timeouts(connect=4)) as client:
            task = asyncio.ensure_future(complete(client))
            await wait_until(lambda: client.gauges().in_use == 1)
            await run_loop_iterations(50)
            clock.advance(4.0)
            with pytest.raises(APITimeoutError) as raised:
                await with_timeout(task)
    assert raised.value.limit == "connect"
    assert raised.value.meta is not None
    assert raised.value.meta.timing.connecting == 4.0


async def test_error_response_has_total_time(client: AsyncFriendli, server: FriendliServer, clock: Clock) -> None:
    server.enqueue(status(503))
    task = asyncio.ensure_future(complete(client))
    with pytest.raises(InternalServerError) as raised:
        await with_timeout(task)
    meta = raised.value.meta
    assert meta is not None
    assert (meta.timing.first_event, meta.timing.events) == (None, 0)
    assert meta.timing.total == meta.elapsed == meta.attempts[0].elapsed


async def test_interrupted_stream_error_has_timing(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), cut()))
    stream = open_stream(client)
    with pytest.raises(StreamInterruptedError) as raised:
        await read(stream)
    assert raised.value.meta is not None
    assert raised.value.meta.timing == stream.timing
    assert raised.value.meta.timing.events == 2
    assert pickle.loads(pickle.dumps(raised.value)).meta.timing == stream.timing


# --- attempts --------------------------------------------------------------------------------------------------------


async def test_attempts_are_numbered_and_name_their_errors(server: FriendliServer) -> None:
    server.enqueue(status(503), status(429), text("hello"))
    async with client_of(server.url, retry=FAST_RETRY) as client:
        reply = await complete(client)
    assert [(attempt.number, attempt.status, attempt.error) for attempt in reply.meta.attempts] == [
        *((1, 503, "InternalServerError"), (2, 429, "RateLimitError"), (3, 200, None)),
    ]
    assert reply.meta.attempts[2].cause is None


async def test_failed_connection_attempt_names_its_error(refused_port: int) -> None:
    async with client_of(f"http://127.0.0.1:{refused_port}") as client:
        with pytest.raises(APIConnectionError) as raised:
            await complete(client)
    assert raised.value.meta is not None
    (attempt,) = raised.value.meta.attempts
    assert (attempt.number, attempt.status, attempt.error) == (1, None, "APIConnectionError")
    assert attempt.cause is not None
    assert attempt.cause.startswith("APIConnectionError: could not connect")


@pytest.mark.parametrize("streamed", [True, False])
async def test_attempt_cause_has_no_request_id(server: FriendliServer, streamed: bool) -> None:
    retried: list[Attempt] = []
    server.enqueue(*(status(503, message="busy", headers={"x-request-id": f"req-{n}"}) for n in range(4)))
    policy = RetryPolicy(initial=0.0, max_wait=0.0, max_attempts=4, on_retry=retried.append)
    async with client_of(server.url, retry=policy) as client:
        with pytest.raises(APIStatusError) as raised:
            await (open_stream(client).result() if streamed else complete(client))
    assert raised.value.request_id == "req-3"
    assert "req-3" in str(raised.value)
    assert raised.value.meta is not None
    causes = {attempt.cause for attempt in (*retried, *raised.value.meta.attempts)}
    assert causes == {"InternalServerError: 503 busy"}
