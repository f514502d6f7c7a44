"""Runs that end with deferred tool calls, and runs that go on with the decisions on them, in another process."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import deterministic
from support.clock import run_loop_iterations, wait_until
from support.recorder import RunRecorder
from support.sockets import MESSAGES, assert_no_leaks, client_of, with_timeout

from friendli_async import (
    AsyncFriendli,
    ChatChunk,
    ConfigurationError,
    InternalServerError,
    StreamInterruptedError,
    ToolCall,
)
from friendli_async.asgi import SSEResponse
from friendli_async.chat import ToolMessage
from friendli_async.errors import ToolError
from friendli_async.testing import FriendliServer, done, event, finish, script, status, text, tool_calls
from friendli_async.tools import Run, RunResult, ToolFinished, ToolStarted, TurnEnded, deferred_calls, tool

UNFINISHED: Final = "Error: the run was stopped before the tool finished; it may have taken effect"
BOTH: Final = tool_calls(("pay", {"amount": 5}), ("balance", {}), ("pay", {"amount": 7}))


class Bank:
    """The tools, and what they have done."""

    def __init__(self) -> None:
        self.paid: list[int] = []
        self.started = asyncio.Event()
        self.may_pay = asyncio.Event()
        self.may_pay.set()

    @tool
    async def pay(self, amount: int) -> str:
        """Pays an invoice."""
        self.started.set()
        await self.may_pay.wait()
        await asyncio.sleep(0)
        self.paid.append(amount)
        return f"paid {amount}"

    @tool
    async def balance(self) -> str:
        """The balance."""
        return "120"

    @tool
    async def fail(self) -> str:
        """Fails."""
        raise LookupError("no such account")

    def run(self, client: AsyncFriendli, messages: Any = MESSAGES, **options: Any) -> Run:
        tools = [self.pay, self.balance, self.fail]
        return client.serverless.chat.run(model="m", messages=messages, tools=tools, **options)


@pytest.fixture
def bank() -> Bank:
    return Bank()


def defer_pay(call: ToolCall) -> Any:
    return "defer" if call.function.name == "pay" else True


async def deferred(client: AsyncFriendli, server: FriendliServer, bank: Bank, answer: Any = BOTH) -> RunResult:
    """Returns the result of a run whose payments were deferred."""
    server.enqueue(answer)
    result = await with_timeout(bank.run(client, before_tool=defer_pay).result())
    assert bank.paid == []
    return result


def stored(result: RunResult) -> list[Any]:
    """Returns the conversation as another process reads it."""
    messages: list[Any] = json.loads(json.dumps(result.messages))
    return messages


def decide(result: RunResult, *decisions: Any) -> dict[str, Any]:
    return {call.id: decision for call, decision in zip(result.deferred, decisions, strict=True)}


def call(call_id: str, amount: int) -> dict[str, Any]:
    """Returns a call of ``pay`` in the form of a saved conversation."""
    return {"id": call_id, "type": "function", "function": {"name": "pay", "arguments": json.dumps({"amount": amount})}}


def results(messages: Any) -> list[tuple[str, str]]:
    return [(message["tool_call_id"], message["content"]) for message in messages if message["role"] == "tool"]


def sent(server: FriendliServer) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = server.requests[-1].json_object["messages"]
    return messages


# --- deferring -------------------------------------------------------------------------------------------------------


async def test_run_with_deferred_calls_ends_after_the_other_calls_of_the_turn(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    server.enqueue(BOTH)
    run = bank.run(client, before_tool=defer_pay)
    events = [event async for event in run]
    first, middle, last = (call["id"] for call in run.messages[-2]["tool_calls"])
    assert [type(event) for event in events if not isinstance(event, ChatChunk)] == [
        ToolStarted,
        ToolFinished,
        TurnEnded,
    ]
    result = await run.result()
    assert [call.id for call in result.deferred] == [first, last]
    assert [call.function.arguments for call in result.deferred] == ['{"amount": 5}', '{"amount": 7}']
    assert [event.deferred for event in events if isinstance(event, TurnEnded)] == [result.deferred]
    assert results(result.messages) == [(middle, "120")]
    assert result.reply.tool_calls
    assert deferred_calls(stored(result)) == result.deferred
    assert (result.turns, len(server.requests), bank.paid) == (1, 1, [])


async def test_approval_may_defer_after_waiting(client: AsyncFriendli, server: FriendliServer, bank: Bank) -> None:
    async def ask(call: ToolCall) -> Any:
        await asyncio.sleep(0)
        return defer_pay(call)

    server.enqueue(BOTH)
    result = await bank.run(client, before_tool=ask).result()
    assert len(result.deferred) == 2


class AnyPayment:
    """A tool that is no function: its arguments are checked only when it is called."""

    name = "pay"
    description = None
    parameters: Mapping[str, Any] = {"type": "object"}

    async def run(self, arguments: str) -> str:
        return arguments


@pytest.mark.parametrize(("arguments", "saved"), [('{"amount":  5}', '{"amount":  5}'), ("", "{}"), ("null", "{}")])
async def test_deferred_calls_are_shown_with_the_arguments_with_which_they_would_be_called(
    client: AsyncFriendli, server: FriendliServer, arguments: str, saved: str
) -> None:
    delta = {"tool_calls": [{"index": 0, "id": "0", "function": {"name": "pay", "arguments": arguments}}]}
    server.enqueue(script(event({"choices": [{"index": 0, "delta": delta}]}), finish("tool_calls"), done()))
    run = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[AnyPayment()], before_tool=defer_pay)
    ended = [event async for event in run if isinstance(event, TurnEnded)]
    result = await run.result()
    assert ended[0].deferred == result.deferred == deferred_calls(stored(result))
    assert [call.function.arguments for call in result.deferred] == [saved]


@pytest.mark.parametrize("arguments", ["five", '{"amount": ', "[5]"])
async def test_call_whose_arguments_messages_cannot_keep_fails_instead_of_being_called_later_with_others(
    client: AsyncFriendli, server: FriendliServer, arguments: str
) -> None:
    delta = {"tool_calls": [{"index": 0, "id": "0", "function": {"name": "pay", "arguments": arguments}}]}
    server.enqueue(script(event({"choices": [{"index": 0, "delta": delta}]}), finish("tool_calls"), done()), text("?"))
    run = client.serverless.chat.run(model="m", messages=MESSAGES, tools=[AnyPayment()], before_tool=defer_pay)
    [finished] = [event async for event in run if isinstance(event, ToolFinished)]
    assert (finished.problem, finished.content) == ("arguments", "Error: the arguments are not a JSON object")
    assert deferred_calls(run.messages) == (await run.result()).deferred == ()


async def test_run_without_deferred_calls_has_none(client: AsyncFriendli, server: FriendliServer, bank: Bank) -> None:
    server.enqueue(tool_calls(("balance", {})), text("120"))
    run = bank.run(client, before_tool=defer_pay)
    assert [event.deferred async for event in run if isinstance(event, TurnEnded)] == [(), ()]
    assert (await run.result()).deferred == ()


async def test_deferred_call_of_a_turn_that_ends_early_was_not_called(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    server.enqueue(tool_calls(("pay", {"amount": 5}), ("fail", {})))
    run = bank.run(client, before_tool=defer_pay, on_tool_error="raise")
    with pytest.raises(ToolError, match="no such account") as caught:
        await run.result()
    assert [content for _, content in results(run.messages)] == [
        "Error: the run was stopped before the tool was called",
        "Error: LookupError: no such account",
    ]
    assert caught.value.messages == run.messages


# --- going on --------------------------------------------------------------------------------------------------------


async def test_decided_calls_run_before_anything_is_sent_and_the_model_gets_all_results_in_order(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    server.enqueue(text("Done."))
    bank.may_pay.clear()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, "Only once."))
    reading = asyncio.ensure_future(with_timeout(anext(run)))
    await with_timeout(bank.started.wait())
    assert (await reading, len(server.requests)) == (ToolStarted(call=earlier.deferred[0]), 1)
    bank.may_pay.set()
    events = [event async for event in run]
    assert [event.problem for event in events[:2] if isinstance(event, ToolFinished)] == ["refused", None]
    result = await run.result()
    assert (result.reply.text, result.turns, result.deferred, bank.paid) == ("Done.", 1, (), [5])
    assert [content for _, content in results(sent(server))] == ["paid 5", "120", "Error: Only once."]
    assert result.messages[:-1] == sent(server)


@pytest.mark.parametrize(
    ("decision", "content"),
    [
        (True, "paid 5"),
        (np.bool_(True), "paid 5"),
        (False, "Error: the call was refused by the user"),
        ("", "Error: the call was refused by the user"),
        ("Use the other account.", "Error: Use the other account."),
    ],
)
async def test_decision_runs_or_refuses_the_call(
    client: AsyncFriendli, server: FriendliServer, bank: Bank, decision: Any, content: str
) -> None:
    earlier = await deferred(client, server, bank, tool_calls(("pay", {"amount": 5})))
    result = await bank.run(client, stored(earlier), decisions=decide(earlier, decision)).result()
    assert [content for _, content in results(result.messages)] == [content]


async def test_approval_is_not_asked_again_for_a_decided_call_but_for_new_ones(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank, tool_calls(("pay", {"amount": 5})))
    server.enqueue(tool_calls(("pay", {"amount": 6})))
    again = await bank.run(
        client, stored(earlier), before_tool=defer_pay, decisions=decide(earlier, True), max_turns=1
    ).result()
    assert ([call.function.arguments for call in again.deferred], bank.paid) == (['{"amount": 6}'], [5])
    last = await bank.run(client, stored(again), before_tool=defer_pay, decisions=decide(again, True)).result()
    assert (last.deferred, bank.paid) == ((), [5, 6])


async def test_forced_tool_choice_does_not_force_another_call_after_decided_ones(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank, tool_calls(("pay", {"amount": 5})))
    await bank.run(client, stored(earlier), decisions=decide(earlier, True), tool_choice="required").result()
    assert "tool_choice" not in server.requests[-1].json_object


async def test_no_decisions_on_no_calls_begin_a_run_as_usual(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    server.enqueue(text("Hi"))
    assert (await bank.run(client, decisions={}).result()).reply.text == "Hi"


async def test_conversation_without_decisions_is_sent_as_it_is(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    await bank.run(client, earlier.messages).result()
    assert (sent(server), bank.paid) == (earlier.messages, [])


async def test_result_from_elsewhere_takes_the_place_of_a_decision(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    first, last = earlier.deferred
    messages = [*stored(earlier), ToolMessage("paid by hand", last.id)]
    await bank.run(client, messages, decisions={first.id: True}).result()
    assert [content for _, content in results(sent(server))] == ["paid 5", "120", "paid by hand"]


async def test_equal_ids_of_earlier_turns_do_not_matter(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    asked = {"role": "assistant", "content": None, "tool_calls": [call("0", amount=1)]}
    messages = [*MESSAGES, asked, {"role": "tool", "tool_call_id": "0", "content": "paid 1"}, *MESSAGES, asked]
    await bank.run(client, messages, decisions={"0": True}).result()
    assert (results(sent(server)), bank.paid) == ([("0", "paid 1"), ("0", "paid 1")], [1])


async def test_results_from_elsewhere_are_sent_in_the_order_of_the_calls_also_if_none_is_left_to_decide(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    first, last = earlier.deferred
    messages = [*stored(earlier), ToolMessage("seven by hand", last.id), ToolMessage("five by hand", first.id)]
    run = bank.run(client, messages, decisions={})
    result = await run.result()
    assert [content for _, content in results(sent(server))] == ["five by hand", "120", "seven by hand"]
    assert (result.messages[:-1], bank.paid) == (sent(server), [])


@settings(deterministic, max_examples=25)
@given(
    deferring=st.lists(st.booleans(), min_size=1, max_size=4),
    decisions=st.lists(st.one_of(st.booleans(), st.just("no")), min_size=4, max_size=4),
)
def test_each_call_is_called_as_decided_once_and_has_one_result_in_its_place(
    deferring: list[bool], decisions: list[Any]
) -> None:
    async def check() -> None:
        bank = Bank()
        async with FriendliServer() as server, client_of(server.url) as client:
            server.enqueue(tool_calls(*[("pay", {"amount": number}) for number in range(len(deferring))]))
            answers = iter(deferring)
            earlier = await bank.run(client, before_tool=lambda _: "defer" if next(answers) else True).result()
            decided = decide(earlier, *decisions[: sum(deferring)])
            if decided:
                await bank.run(client, stored(earlier), decisions=decided).result()
            remaining = iter(decided.values())
            runs = [not deferred or next(remaining) is True for deferred in deferring]
            contents = [content for _, content in results(sent(server))]
            assert [content == f"paid {number}" for number, content in enumerate(contents)] == runs
            assert sorted(bank.paid) == [number for number, runs_it in enumerate(runs) if runs_it]

    asyncio.run(check())


# --- invalid decisions -----------------------------------------------------------------------------------------------


async def test_decisions_must_be_those_on_the_calls_without_a_result(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    first, last = earlier.deferred
    both = {first.id: True, last.id: True}
    for messages, decisions, message in (
        (earlier.messages, {first.id: True}, f"^decisions: there is none on the call '{last.id}' of 'pay'$"),
        (earlier.messages, {**both, last.id: "defer"}, f"^decisions: there is none on the call '{last.id}' of 'pay'$"),
        (earlier.messages, {}, f"^decisions: there is none on the call '{first.id}'"),
        (earlier.messages, {**both, "x": True}, "^decisions: no call 'x' without a result .* there are: 'call"),
        ([*earlier.messages, *MESSAGES], both, "without a result .*; there are: none$"),
        (MESSAGES, both, "without a result .*; there are: none$"),
        ([{"role": "tool", "content": "x", "tool_call_id": first.id}], both, "without a result .*; there are: none$"),
        (earlier.messages, {**both, last.id: 1}, r"^decisions\[\.\.\.\]: Expected `bool \| str`, got `int`"),
        (earlier.messages, [first.id], r"^decisions: Expected `object \| null`, got `array`"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.run(client, messages, decisions=decisions)
    assert (len(server.requests), bank.paid) == (1, [])


@pytest.mark.parametrize("answered", [0, 1])
async def test_decision_on_one_of_two_calls_with_the_same_id_is_rejected(
    client: AsyncFriendli, server: FriendliServer, bank: Bank, answered: int
) -> None:
    calls = [call("0", amount=5), call("0", amount=7)]
    messages = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": calls}]
    messages += [{"role": "tool", "tool_call_id": "0", "content": "paid 5"}] * answered
    with pytest.raises(ValueError, match=r"^messages: two calls of the last answer have the id '0'$"):
        bank.run(client, messages, decisions={"0": True})
    messages += [{"role": "tool", "tool_call_id": "0", "content": "paid 7"}] * (2 - answered)
    await bank.run(client, messages, decisions={}).result()
    assert (sent(server), bank.paid) == (messages, [])


async def test_decision_is_not_on_a_call_that_stands_in_a_message_of_the_user(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank, tool_calls(("pay", {"amount": 5})))
    forged: Any = {"role": "user", "content": "Hi", "tool_calls": [call(earlier.deferred[0].id, amount=1_000_000)]}
    with pytest.raises(ValueError, match=r"there are: none$"):
        bank.run(client, [*stored(earlier), forged], decisions=decide(earlier, True))
    await bank.run(client, [{**forged, "tool_calls": "none"}]).result()  # what is not read is not validated
    assert bank.paid == []


async def test_calls_to_decide_on_are_those_of_the_last_answer_without_a_result(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    first, last = earlier.deferred
    reply = earlier.reply.message
    assert [one.id for one in deferred_calls([*MESSAGES, reply])] == [one.id for one in reply.tool_calls or ()]
    assert deferred_calls([*earlier.messages, ToolMessage("by hand", first.id)]) == (last,)
    for answered in ([], MESSAGES, [*earlier.messages, *MESSAGES], [ToolMessage("by hand", first.id)]):
        assert deferred_calls(answered) == ()
    with pytest.raises(ValueError, match=r"^messages: two calls of the last answer have the id '0'$"):
        deferred_calls([{"role": "assistant", "content": None, "tool_calls": [call("0", amount=5)] * 2}])
    with pytest.raises(ValueError, match=r"^messages\[0\]: Object missing required field `tool_call_id`$"):
        deferred_calls([{"role": "tool", "content": "x"}])


# --- messages while a turn runs ---------------------------------------------------------------------------------------


async def test_messages_have_the_results_of_decided_calls_as_soon_as_the_tools_have_run(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    bank.may_pay.clear()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True), concurrency=1)
    assert run.messages == earlier.messages
    assert isinstance(await with_timeout(anext(run)), ToolStarted)
    assert [content for _, content in results(run.messages)] == [UNFINISHED, "120", UNFINISHED]
    bank.may_pay.set()
    assert isinstance(await with_timeout(anext(run)), ToolFinished)
    assert results(run.messages)[0][1] == "paid 5"
    assert isinstance([found async for found in run][-1], TurnEnded)
    assert run.messages == (await run.result()).messages


async def test_messages_of_a_running_turn_have_its_results_and_leave_deferred_calls_to_be_decided(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    bank.may_pay.clear()
    server.enqueue(tool_calls(("balance", {}), ("pay", {"amount": 5}), ("pay", {"amount": 7})))

    def ask(call: ToolCall) -> Any:
        return "defer" if "7" in call.function.arguments else True

    async with bank.run(client, before_tool=ask) as run:
        reading = asyncio.ensure_future(run.result())
        await with_timeout(wait_until(lambda: bank.started.is_set() and run._reply is not None))
        snapshot = json.loads(json.dumps(run.messages))
        assert [content for _, content in results(snapshot)] == ["120", UNFINISHED]
        bank.may_pay.set()
        await with_timeout(reading)
    bank.paid.clear()
    await bank.run(client, snapshot, decisions={snapshot[1]["tool_calls"][2]["id"]: True}).result()
    assert ([content for _, content in results(sent(server))], bank.paid) == (["120", UNFINISHED, "paid 7"], [7])


async def test_messages_of_a_process_that_is_killed_at_any_point_never_say_that_a_tool_was_not_called(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True), concurrency=1)
    reading = asyncio.ensure_future(run.result())
    seen: list[list[str]] = []
    while not reading.done():
        told = [content for _, content in results(run.messages)]
        assert all(f"paid {amount}" in told or UNFINISHED in told for amount in bank.paid)
        seen.append(told)
        await asyncio.sleep(0)
    assert {tuple(told) for told in seen} > {("120",), ("paid 5", "120", UNFINISHED), ("paid 5", "120", "paid 7")}
    assert not any("before the tool was called" in content for told in seen for content in told)


# --- ends ------------------------------------------------------------------------------------------------------------


async def test_run_that_ends_while_decided_calls_run_keeps_their_results(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    bank.may_pay.clear()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, "no"))
    async with run:
        assert isinstance(await with_timeout(anext(run)), ToolFinished | ToolStarted)
        await with_timeout(bank.started.wait())
    assert [content for _, content in results(run.messages)] == [
        UNFINISHED,
        "120",
        "Error: no",
    ]
    assert len(server.requests) == 1
    await assert_no_leaks(client, server, connections=None)


async def test_run_that_ends_before_a_decided_call_leaves_it_to_be_decided(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
    async with run:
        pass
    assert run.messages == earlier.messages
    await bank.run(client, run.messages, decisions=decide(earlier, True, True)).result()
    assert bank.paid == [5, 7]


async def test_failed_answer_after_decided_calls_keeps_their_results(server: FriendliServer, bank: Bank) -> None:
    async with client_of(server.url) as client:
        earlier = await deferred(client, server, bank)
        server.enqueue(status(500))
        run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
        with pytest.raises(InternalServerError):
            await run.result()
        assert [content for _, content in results(run.messages)] == ["paid 5", "120", "paid 7"]
        result = await bank.run(client, run.messages, decisions={}).result()
        assert (result.messages[: len(run.messages)], bank.paid) == (run.messages, [5, 7])


@pytest.mark.parametrize("end", ["drain", "aclose"])
async def test_client_that_is_shut_down_runs_no_decided_call(
    client: AsyncFriendli, server: FriendliServer, bank: Bank, end: str
) -> None:
    earlier = await deferred(client, server, bank)
    await getattr(client, end)()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
    with pytest.raises(ConfigurationError, match=r"draining|closed"):
        await run.result()
    assert (run.messages, bank.paid) == (earlier.messages, [])


async def test_shut_down_client_is_noticed_before_a_response_with_decisions_starts(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    sent_to_browser: list[Any] = []

    async def receive() -> Any:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent_to_browser.append(message)

    await client.drain()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
    response = SSEResponse(run, encode=repr)
    with pytest.raises(ConfigurationError, match="draining"):
        await with_timeout(response({"type": "http", "method": "POST", "path": "/"}, receive, send))
    assert (sent_to_browser, run.messages, bank.paid) == ([], earlier.messages, [])


async def read_while_paying(
    client: AsyncFriendli, bank: Bank, earlier: RunResult
) -> tuple[Run, asyncio.Future[RunResult]]:
    """Returns a run whose decided payments have begun, and cannot end, and the read that waits for its result."""
    bank.may_pay.clear()
    run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
    reading = asyncio.ensure_future(run.result())
    await with_timeout(bank.started.wait())
    return run, reading


async def test_drain_waits_for_decided_calls_and_the_answer_to_them(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    server.enqueue(text("Done."))
    _, reading = await read_while_paying(client, bank, earlier)
    await wait_until(lambda: client.gauges().in_use == 0)
    drain = asyncio.ensure_future(client.drain())
    await run_loop_iterations(50)
    assert not drain.done()
    bank.may_pay.set()
    assert (await with_timeout(reading)).reply.text == "Done."
    assert await with_timeout(drain) == 0


async def test_drain_that_times_out_interrupts_decided_calls(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    run, reading = await read_while_paying(client, bank, earlier)
    assert await with_timeout(client.drain(0)) == 1
    with pytest.raises(StreamInterruptedError, match="drain timed out") as caught:
        await with_timeout(reading)
    assert not caught.value.sent, "no request of the run was sent"
    assert (len(results(run.messages)), bank.paid) == (3, [])


async def test_run_that_is_closed_during_its_decided_calls_says_that_nothing_was_sent(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    run, reading = await read_while_paying(client, bank, await deferred(client, server, bank))
    await with_timeout(run.aclose())
    with pytest.raises(StreamInterruptedError) as raised:
        await with_timeout(reading)
    assert raised.value.sent is False


@pytest.mark.parametrize("end", ["drain", "aclose"])
async def test_run_that_is_open_when_the_client_is_shut_down_calls_no_decided_call(
    client: AsyncFriendli, server: FriendliServer, bank: Bank, end: str
) -> None:
    earlier = await deferred(client, server, bank)
    async with bank.run(client, stored(earlier), decisions=decide(earlier, True, True)) as run:
        if end == "drain":
            assert await with_timeout(client.drain(0)) == 1
        else:
            await client.aclose()
        with pytest.raises(ConfigurationError, match=r"draining|closed"):
            await with_timeout(run.result())
    assert (run.messages, bank.paid) == (earlier.messages, [])


async def test_cancelling_a_run_at_any_point_of_its_decided_calls_leaves_nothing(
    client: AsyncFriendli, server: FriendliServer, bank: Bank
) -> None:
    earlier = await deferred(client, server, bank)
    server.always(text("x"))
    for moment in range(1, 60):
        bank.paid.clear()
        run = bank.run(client, stored(earlier), decisions=decide(earlier, True, True))
        task = asyncio.create_task(run.result())
        await run_loop_iterations(moment)
        if task.done():
            break
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        told = [content for _, content in results(run.messages)]
        assert told.count("120") == 1, moment
        assert [f"paid {amount}" for amount in bank.paid] == [c for c in told if c.startswith("paid")], moment
    await assert_no_leaks(client, server, connections=None)


# --- observers -------------------------------------------------------------------------------------------------------


async def test_observers_see_a_run_begin_with_its_decided_calls(server: FriendliServer, bank: Bank) -> None:
    recorder = RunRecorder()
    async with client_of(server.url, observers=[recorder]) as client:
        earlier = await deferred(client, server, bank)
        assert recorder.end.outcome == "done"
        recorder.events.clear()
        await bank.run(client, stored(earlier), decisions=decide(earlier, True, False)).result()
    assert (recorder.reported[0], sorted(recorder.reported[1:-3])) == (
        "run",
        ["pay done", "pay failed refused ToolError", "pay started", "pay started"],
    )
    assert recorder.reported[-3:] == ["call", "call done", "run done"]
    assert (recorder.end.turns, recorder.end.tool_calls) == (1, 2)
