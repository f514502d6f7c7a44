"""``usage_limit`` of a client: what the calls that share it may use together."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.clock import run_loop_iterations
from support.recorder import Recorder
from support.sockets import MESSAGES, client_of, complete, open_stream, slots_in_use, start_run

from friendli_async import (
    ArgumentError,
    AsyncFriendli,
    Attempt,
    CallEnded,
    ChatMessage,
    ConfigurationError,
    Connected,
    Observer,
    OutputInvalidError,
    Pacing,
    RateLimitError,
    ResponseDecodeError,
    RetryPolicy,
    ToolError,
    Usage,
    UsageLimit,
    UsageLimitError,
    usage_limit,
)
from friendli_async.bulk import RejectedError, run_all
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    event,
    finish,
    json_body,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)
from friendli_async.tools import tool


@tool
def now() -> str:
    """The time."""
    return "12:00"


def calling_tool(total: int, name: str = "now") -> Any:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return script(chunk(tool_calls=[call]), finish("tool_calls"), usage(total - 1, 1), done())


def answer(total: int) -> Any:
    return script(chunk("It is noon."), finish(), usage(total - 1, 1), done())


async def test_run_sends_nothing_more_once_the_limit_is_reached_and_keeps_what_was_paid_for(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit(max_total_tokens=100)
    server.enqueue(calling_tool(60), calling_tool(60), answer(60))
    run = start_run(client.with_options(usage_limit=limit), now)
    with pytest.raises(UsageLimitError, match="the usage limit is reached: 120 total tokens of 100") as caught:
        await run.result()
    assert len(server.requests) == 2
    assert (limit.calls, limit.usage.total_tokens, limit.unreported) == (2, 120, 0)
    assert caught.value.usage == run.usage == limit.usage
    assert [message["role"] for message in run.messages] == ["user", "assistant", "tool", "assistant", "tool"]
    result = await client.serverless.chat.run(model="m", messages=run.messages, tools=[now]).result()
    assert result.reply.text == "It is noon."


async def test_answer_that_reaches_the_limit_is_delivered_and_the_next_call_is_not_sent(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_total_tokens=100))
    server.enqueue(answer(250))
    assert (await start_run(limited, now).result()).reply.text == "It is noon."
    with pytest.raises(UsageLimitError):
        await complete(limited)
    assert len(server.requests) == 1


async def test_agent_in_a_tool_shares_the_limit_of_the_run_that_calls_it(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_total_tokens=100))

    @tool
    async def ask() -> str:
        """Asks another agent."""
        return (await start_run(limited, now).result()).reply.text

    server.enqueue(calling_tool(30, "ask"), calling_tool(80))
    run = start_run(limited, ask)
    with pytest.raises(UsageLimitError, match="110 total tokens of 100"):
        await run.result()
    assert len(server.requests) == 2
    assert "UsageLimitError: the usage limit is reached" in run.messages[-1]["content"]
    assert run.usage is not None
    assert run.usage.total_tokens == 30
    messages = [(record.getMessage(), record.exc_info) for record in caplog.records]
    assert messages == [("the tool 'ask' failed: the usage limit is reached: 110 total tokens of 100", None)]


async def test_limit_in_a_tool_ends_the_run_if_errors_of_tools_do(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_calls=1))

    @tool
    async def ask() -> str:
        """Asks the model."""
        return (await complete(limited)).text

    server.enqueue(tool_calls(("ask", {})))
    with pytest.raises(ToolError) as caught:
        await start_run(limited, ask, on_tool_error="raise").result()
    assert isinstance(caught.value.__cause__, UsageLimitError)


async def test_runs_that_follow_each_other_share_the_limit(client: AsyncFriendli, server: FriendliServer) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_total_tokens=100))
    server.enqueue(answer(99), calling_tool(1), answer(1))
    await start_run(limited, now).result()
    run = start_run(limited, now)
    with pytest.raises(UsageLimitError):
        await run.result()
    assert run.turns == 1


async def test_answer_that_does_not_match_is_not_asked_for_again_beyond_the_limit(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_calls=1))
    server.enqueue(text("nothing"))
    with pytest.raises(UsageLimitError) as caught:
        await limited.serverless.chat.parse(dict[str, int], model="m", messages=MESSAGES, reask=1)
    assert caught.value.partial is not None
    assert caught.value.partial.usage == caught.value.usage
    server.enqueue(text("nothing"))
    with pytest.raises(OutputInvalidError):
        await client.serverless.chat.parse(dict[str, int], model="m", messages=MESSAGES)


CALLS: dict[str, Callable[[AsyncFriendli], Any]] = {
    "chat": complete,
    "chat stream": lambda client: open_stream(client).result(),
    "tool-assisted": lambda client: client.serverless.tool_assisted_chat.complete(
        model="m", messages=MESSAGES, tools=[{"type": "math:calculator"}]
    ),
    "completions": lambda client: client.serverless.completions.complete(model="m", prompt="Hi"),
    "messages": lambda client: client.serverless.messages.create(model="m", messages=MESSAGES, max_tokens=9),
    "messages stream": lambda client: client.serverless.messages.stream(
        model="m", messages=MESSAGES, max_tokens=9
    ).result(),
    "responses": lambda client: client.serverless.responses.create(model="m", input="Hi"),
    "responses stream": lambda client: client.serverless.responses.stream(model="m", input="Hi").result(),
    "classification": lambda client: client.container.text_classification.classify(input="Hi"),
    "transcription": lambda client: client.serverless.audio.transcribe(model="m", file=b"RIFF"),
    "embeddings": lambda client: client.dedicated.embeddings.create(model="m", input="Hi"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_calls_of_each_api_count(client: AsyncFriendli, server: FriendliServer, call: Any) -> None:
    limit = UsageLimit(max_total_tokens=1)
    limited = client.with_options(usage_limit=limit)
    await call(limited)
    assert limit.calls == 1
    assert limit.usage.total_tokens >= 1
    assert limit.usage.total_tokens == limit.usage.prompt_tokens + limit.usage.completion_tokens
    with pytest.raises(UsageLimitError):
        await call(limited)
    assert len(server.requests) == 1


async def test_calls_that_run_no_model_are_neither_counted_nor_refused(client: AsyncFriendli) -> None:
    limit = UsageLimit(max_calls=1)
    limited = client.with_options(usage_limit=limit)
    await complete(limited)
    await limited.serverless.model.list()
    await limited.dedicated.endpoint.list()
    assert (limit.calls, limit.unreported) == (1, 0)


async def test_calls_side_by_side_are_counted_when_they_start(client: AsyncFriendli, server: FriendliServer) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_calls=3))
    outcomes = await asyncio.gather(*(complete(limited) for _ in range(5)), return_exceptions=True)
    assert [isinstance(outcome, UsageLimitError) for outcome in outcomes].count(True) == 2
    assert len(server.requests) == 3


async def test_call_that_a_rate_limit_of_another_one_refuses_does_not_count(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit(max_calls=2)
    limited = client.with_options(usage_limit=limit)
    server.enqueue(status(429, retry_after=3600))
    for _ in range(3):
        with pytest.raises(RateLimitError):
            await complete(limited)
    assert (limit.calls, len(server.requests)) == (1, 1)


@pytest.mark.parametrize("limit", [UsageLimit(max_calls=1), UsageLimit(max_total_tokens=1)], ids=["calls", "tokens"])
async def test_reached_limit_refuses_a_call_before_it_waits_for_a_rate_limit(
    client: AsyncFriendli, server: FriendliServer, limit: UsageLimit
) -> None:
    observer = Recorder()
    limited = client.with_options(usage_limit=limit, observers=[observer])
    await complete(limited)
    server.enqueue(status(429, retry_after=20))
    with pytest.raises(RateLimitError):
        await complete(client.with_options(retry=None))
    with pytest.raises(UsageLimitError) as caught:
        await complete(limited)
    assert "call_held" not in observer.methods
    assert (caught.value.meta, limit.calls) == (None, 1)


async def test_call_that_is_cancelled_while_it_waits_for_a_rate_limit_does_not_count(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    tenant = UsageLimit()
    limited = client.with_options(usage_limit=UsageLimit(max_calls=1, within=tenant))
    server.enqueue(status(429, retry_after=20))
    with pytest.raises(RateLimitError):
        await complete(client.with_options(retry=None))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(complete(limited), 0.05)
    assert tenant.calls == 0
    await complete(limited.with_options(pacing=Pacing(None)))
    assert (tenant.calls, len(server.requests)) == (1, 2)


async def test_each_maximum_limits_its_own_measure(client: AsyncFriendli, server: FriendliServer) -> None:
    limit = UsageLimit(max_completion_tokens=10, max_total_tokens=1000)
    limited = client.with_options(usage_limit=limit)
    server.enqueue(
        script(chunk("a"), finish(), usage(500, 9), done()), script(chunk("a"), finish(), usage(5, 1), done())
    )
    await open_stream(limited).result()
    await open_stream(limited).result()
    with pytest.raises(UsageLimitError, match="reached: 10 completion tokens of 10"):
        await open_stream(limited)
    assert repr(limit) == "<UsageLimit calls=2, total_tokens=515, max_total_tokens=1000, max_completion_tokens=10>"
    prompts = UsageLimit(max_prompt_tokens=505)
    prompts.add(limit.usage)
    with pytest.raises(UsageLimitError, match="reached: 505 prompt tokens of 505"):
        await complete(client.with_options(usage_limit=prompts))


async def test_call_that_waits_for_a_connection_is_not_sent_once_the_tokens_are_used(server: FriendliServer) -> None:
    limit = UsageLimit(max_total_tokens=1)
    async with client_of(server.url, max_connections=1, usage_limit=limit) as client:
        outcomes = await asyncio.gather(*(complete(client) for _ in range(5)), return_exceptions=True)
        assert slots_in_use(client) == 0
    assert len(server.requests) == 1
    refused = [outcome for outcome in outcomes if isinstance(outcome, UsageLimitError)]
    assert len(refused) == 4
    for error in refused:
        assert error.meta is not None  # it has waited
        assert (error.meta.attempts, error.meta.timing.queued > 0) == ((), True)


async def test_call_whose_connection_is_being_opened_is_not_sent_once_the_tokens_are_used(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit(max_total_tokens=1)
    limited = client.with_options(usage_limit=limit)
    task = asyncio.create_task(complete(limited))
    await asyncio.sleep(0)
    assert slots_in_use(client) == 1
    limit.add(Usage(total_tokens=1))
    with pytest.raises(UsageLimitError) as caught:
        await task
    assert (caught.value.meta, server.requests, slots_in_use(client)) == (None, [], 0)
    assert client.gauges().idle == 1  # the connection is left to other calls


async def test_call_in_a_session_of_the_user_is_not_sent_once_the_tokens_are_used(server: FriendliServer) -> None:
    limit = UsageLimit(max_total_tokens=1)
    async with (
        aiohttp.ClientSession() as session,
        client_of(server.url, session=session, max_connections=1, usage_limit=limit) as client,
    ):
        outcomes = await asyncio.gather(*(complete(client) for _ in range(3)), return_exceptions=True)
        assert [isinstance(outcome, UsageLimitError) for outcome in outcomes] == [False, True, True]
        assert (len(server.requests), slots_in_use(client)) == (1, 0)


async def test_call_whose_connection_died_is_not_sent_again_once_the_tokens_are_used(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit(max_total_tokens=9)

    class UseUp(Observer):
        def connected(self, event: Connected) -> None:
            limit.add(Usage(total_tokens=9))

    await complete(client)
    server.enqueue(cut())
    with pytest.raises(UsageLimitError) as caught:
        await complete(client.with_options(usage_limit=limit, observers=[UseUp()]))
    assert len(server.requests) == 2
    assert caught.value.meta is not None  # the server may have begun to answer
    assert [attempt.error for attempt in caught.value.meta.attempts] == ["UsageLimitError"]


async def test_call_is_not_retried_once_the_tokens_are_used(client: AsyncFriendli, server: FriendliServer) -> None:
    limit = UsageLimit(max_total_tokens=9)

    def use_up(attempt: Attempt) -> None:
        limit.add(Usage(total_tokens=9))

    server.enqueue(status(503))
    retry = RetryPolicy(initial=0.0, on_retry=use_up)
    with pytest.raises(UsageLimitError) as caught:
        await complete(client.with_options(usage_limit=limit, retry=retry))
    assert len(server.requests) == 1
    assert caught.value.meta is not None
    assert [attempt.status for attempt in caught.value.meta.attempts] == [503]


async def test_last_call_that_is_allowed_may_be_retried(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(503), text("Hi"))
    limited = client.with_options(usage_limit=UsageLimit(max_calls=1), retry=RetryPolicy(initial=0.0))
    assert (await complete(limited)).text == "Hi"


async def test_retry_is_not_another_call(client: AsyncFriendli, server: FriendliServer) -> None:
    limit = UsageLimit(max_calls=2)
    limited = client.with_options(usage_limit=limit, retry=RetryPolicy(initial=0.0))
    server.enqueue(status(503), text("Hi"))
    await complete(limited)
    assert (len(server.requests), limit.calls, limit.unreported) == (2, 1, 0)


async def test_rejected_call_counts_but_has_no_usage_to_report(client: AsyncFriendli, server: FriendliServer) -> None:
    limit = UsageLimit(max_calls=2)
    server.enqueue(status(429))
    with pytest.raises(RateLimitError):
        await complete(client.with_options(usage_limit=limit, retry=None))
    assert (limit.calls, limit.unreported, limit.usage) == (1, 0, Usage())


async def test_answer_without_usage_is_counted_as_such_and_logged_once(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    limit = UsageLimit(max_total_tokens=10)
    limited = client.with_options(usage_limit=limit)
    async with open_stream(limited) as stream:
        await anext(stream)
    assert not caplog.records
    for _ in range(2):
        server.enqueue(script(chunk("a"), finish(), done()))
        await open_stream(limited).result()
    assert (limit.calls, limit.unreported, limit.usage) == (3, 3, Usage())
    [record] = caplog.records
    assert record.getMessage() == (
        "an answer has no usage: its tokens do not count towards the usage limit "
        "(a stream has it only with stream_options.include_usage, which the client sends by default)"
    )


def begun_message(*more: Any) -> Any:
    envelope = {"id": "m", "content": [], "usage": {"input_tokens": 7, "output_tokens": 1}}
    events = ({"type": "message_start", "message": envelope}, *more)
    return script(*(event(each, name=each["type"]) for each in events), stall())


async def test_answer_that_breaks_before_its_usage_is_not_logged_as_that_of_a_server_without(
    client: AsyncFriendli, server: FriendliServer, caplog: pytest.LogCaptureFixture
) -> None:
    limit = UsageLimit()
    server.enqueue(script(chunk("a"), finish(), cut()), json_body({"choices": 1}))
    limited = client.with_options(usage_limit=limit)
    assert (await open_stream(limited).result()).text == "a"
    with pytest.raises(ResponseDecodeError):
        await complete(limited)
    assert (limit.unreported, caplog.records) == (2, [])


async def test_message_that_is_left_early_counts_as_not_fully_reported(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit()
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}
    server.enqueue(begun_message(), begun_message(ended))
    messages = client.with_options(usage_limit=limit).serverless.messages
    for events, completion_tokens in ((1, 1), (2, 6)):
        async with messages.stream(model="m", messages=MESSAGES, max_tokens=9) as stream:
            for _ in range(events):
                await anext(stream)
        assert (limit.unreported, limit.usage.completion_tokens) == (1, completion_tokens)


async def test_whole_answer_in_place_of_a_stream_counts_as_reported(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    limit = UsageLimit()
    message = {"role": "assistant", "content": "Hi"}
    counts = {"prompt_tokens": 5, "completion_tokens": 1}
    server.enqueue(json_body({"choices": [{"finish_reason": "stop", "message": message}], "usage": counts}))
    with pytest.raises(ResponseDecodeError):
        await open_stream(client.with_options(usage_limit=limit))
    assert (limit.usage.total_tokens, limit.unreported) == (6, 0)


async def test_refused_call_is_reported_to_observers_as_failed(client: AsyncFriendli) -> None:
    ended: list[CallEnded] = []

    class Seen(Observer):
        def call_ended(self, event: CallEnded) -> None:
            ended.append(event)

    limited = client.with_options(usage_limit=UsageLimit(max_calls=1), observers=[Seen()])
    await complete(limited)
    with suppress(UsageLimitError):
        await complete(limited)
    assert [(event.outcome, event.error) for event in ended] == [("done", None), ("failed", "UsageLimitError")]


async def test_copies_share_the_limit_until_it_is_replaced(client: AsyncFriendli) -> None:
    limited = client.with_options(usage_limit=UsageLimit(max_calls=1))
    await complete(limited)
    with pytest.raises(UsageLimitError):
        await complete(limited.with_options(team="other"))
    await complete(limited.with_options(usage_limit=None))


async def test_limit_of_a_request_counts_within_that_of_a_tenant(client: AsyncFriendli, server: FriendliServer) -> None:
    tenant = UsageLimit(max_total_tokens=100)
    first = UsageLimit(max_calls=1, within=tenant)
    second = UsageLimit(max_calls=5, within=tenant)
    server.enqueue(answer(60), answer(60))
    await open_stream(client.with_options(usage_limit=first)).result()
    with pytest.raises(UsageLimitError, match=r"1 calls of 1$"):
        await complete(client.with_options(usage_limit=first))
    await open_stream(client.with_options(usage_limit=second)).result()
    with pytest.raises(UsageLimitError, match=r"120 total tokens of 100 \(of its within\)$") as caught:
        await complete(client.with_options(usage_limit=second))
    assert caught.value.usage == tenant.usage
    with pytest.raises(UsageLimitError, match=r"\(of its within\.within\)$"):
        await complete(client.with_options(usage_limit=UsageLimit(within=UsageLimit(within=tenant))))
    counts = [(limit.calls, limit.usage.total_tokens) for limit in (tenant, first, second)]
    assert counts == [(2, 120), (1, 60), (1, 60)]  # a call that one of the limits refuses counts in none


def test_answers_without_usage_are_logged_once_for_the_limits_within_another(caplog: pytest.LogCaptureFixture) -> None:
    tenant = UsageLimit(max_total_tokens=100)
    for _ in range(3):
        UsageLimit(max_total_tokens=10, within=tenant).add(None)
    assert tenant.unreported == 3
    assert len(caplog.records) == 1


async def test_negative_counts_of_a_server_give_nothing_back(client: AsyncFriendli, server: FriendliServer) -> None:
    counts = {"prompt_tokens": -100, "completion_tokens": -100, "total_tokens": -200}
    server.enqueue(json_body({"choices": [{"index": 0, "message": {"content": "a"}}], "usage": counts}))
    limit = UsageLimit(max_total_tokens=100)
    limit.add(Usage(prompt_tokens=90, completion_tokens=9, total_tokens=99))
    await complete(client.with_options(usage_limit=limit))
    assert limit.usage == Usage(prompt_tokens=90, completion_tokens=9, total_tokens=99)


def test_usage_of_an_earlier_process_counts() -> None:
    limit = UsageLimit(max_total_tokens=100)
    limit.add(Usage(prompt_tokens=90, completion_tokens=10, total_tokens=100))
    with pytest.raises(UsageLimitError, match="100 total tokens of 100"):
        limit._begin_call()


async def test_stream_that_the_garbage_collector_closes_while_a_limit_counts_is_counted_too(
    client: AsyncFriendli, server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = UsageLimit(max_total_tokens=100)
    server.enqueue(script(chunk("a"), usage(1, 1), stall()))
    stream = open_stream(client.with_options(usage_limit=limit))
    while stream.usage is None:
        await anext(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle

    def add_slowly(one: Usage, other: Usage) -> Usage:
        total = one + other
        gc.collect()
        return total

    monkeypatch.setattr(usage_limit, "add_usage", add_slowly)
    limit.add(Usage(prompt_tokens=20))
    await run_loop_iterations(1)
    assert limit.usage.total_tokens == 22


async def test_usage_of_a_reply_of_any_api_can_be_added(client: AsyncFriendli) -> None:
    limit = UsageLimit()
    message = await client.serverless.messages.create(model="m", messages=MESSAGES, max_tokens=9)
    response = await client.serverless.responses.create(model="m", input="Hi")
    assert message.usage is not None
    assert response.usage is not None
    limit.add(message.usage)
    assert limit.usage.prompt_tokens == message.usage.input_tokens
    limit.add(response.usage)
    assert limit.usage.completion_tokens == message.usage.output_tokens + response.usage.output_tokens
    assert limit.unreported == 0


@pytest.mark.parametrize("given", [{"total_tokens": 9}, ChatMessage(content="Hi" * 1000)])
def test_anything_but_a_usage_is_not_added(given: Any) -> None:
    with pytest.raises(ArgumentError, match="usage: Expected a usage, got") as caught:
        UsageLimit().add(given)
    assert len(str(caught.value)) < 150


def test_limit_is_not_copied() -> None:
    limit = UsageLimit(max_calls=1)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="a UsageLimit cannot be copied or pickled"):
            duplicate(limit)


async def test_job_ends_once_the_limit_is_reached_and_resumes_with_another(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path
) -> None:
    path = tmp_path / "done.jsonl"
    rows = [str(number) for number in range(30)]

    async def job(used: AsyncFriendli) -> list[str]:
        async def call(row: str) -> Any:
            return await used.serverless.chat.complete(model="m", messages=[{"role": "user", "content": row}])

        done = []
        async for outcome in run_all(rows, call, key=str, checkpoint=path, concurrency=2):
            done.extend([outcome.row] if outcome.error is None else [])
        return done

    with pytest.raises(RejectedError) as caught:
        await job(client.with_options(usage_limit=UsageLimit(max_calls=10)))
    assert isinstance(caught.value.__cause__, UsageLimitError)
    assert len(server.requests) == 10
    assert sorted(await job(client)) == sorted(rows)
    assert len(server.requests) == 30


@pytest.mark.parametrize("name", ["calls", "total_tokens", "prompt_tokens", "completion_tokens"])
async def test_maximum_of_zero_allows_no_call(server: FriendliServer, client: AsyncFriendli, name: str) -> None:
    rest: Any = {f"max_{name}": 0}  # of a quota that is used up
    limited = client.with_options(usage_limit=UsageLimit(**rest))
    with pytest.raises(UsageLimitError, match=f"0 {name.replace('_', ' ')} of 0"):
        await complete(limited)
    assert server.requests == []


@pytest.mark.parametrize("maximum", [-1, 1.5, True, "9"])
@pytest.mark.parametrize("name", ["max_calls", "max_total_tokens", "max_prompt_tokens", "max_completion_tokens"])
def test_invalid_maximum_is_rejected(name: str, maximum: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"UsageLimit.{name} must be a whole number, at least 0"):
        UsageLimit(**{name: maximum})


def test_anything_but_a_limit_is_rejected(client: AsyncFriendli) -> None:
    given: Any = 10_000
    with pytest.raises(ConfigurationError, match="usage_limit must be a UsageLimit or None, not 10000"):
        client.with_options(usage_limit=given)


def test_limit_is_within_another_limit_only() -> None:
    given: Any = 10_000
    with pytest.raises(ConfigurationError, match=r"UsageLimit\.within must be a UsageLimit or None, not 10000"):
        UsageLimit(within=given)
