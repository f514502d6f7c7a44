"""Runs that end with a value: the model calls tools, and gives its answer as a value of a type."""

import copy
import dataclasses
import gc
import json
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import numpy as np
import pydantic
import pytest
from support.sockets import MESSAGES, assert_no_leaks, with_timeout

from friendli_async import (
    AsyncFriendli,
    ChatCompletion,
    OutputCutOffError,
    OutputInvalidError,
    ToolCall,
    UnknownArgumentError,
)
from friendli_async.bulk import CheckpointError, run_all
from friendli_async.chat import Conversation
from friendli_async.errors import ToolError, TurnLimitError
from friendli_async.testing import FriendliServer, chunk, done, event, finish, script, text, tool_calls, usage
from friendli_async.tools import ParsedRun, ParsedRunResult, ToolFinished, ToolStarted, TurnEnded, tool

RAIN: Final = {"city": "Oslo", "take_umbrella": True}
INVALID: Final = {"city": "Oslo", "take_umbrella": "perhaps"}


class Trip(msgspec.Struct):
    """A trip to a city."""

    city: str
    take_umbrella: bool


class PaidTrip(pydantic.BaseModel):
    city: Annotated[str, pydantic.StringConstraints(min_length=2)]
    price: float = pydantic.Field(gt=0)


@tool
async def weather(city: str) -> str:
    """Weather of a city."""
    return f"rain in {city}"


def start_run(client: AsyncFriendli, kind: Any = Trip, **options: Any) -> ParsedRun[Any]:
    return client.serverless.chat.parse_run(kind, model="m", messages=MESSAGES, tools=[weather], **options)


async def result_of(run: ParsedRun[Any]) -> ParsedRunResult[Any]:
    return await with_timeout(run.result())


def answer(arguments: Any) -> Any:
    return tool_calls(("final_answer", arguments))


async def read_into(seen: list[Any], run: ParsedRun[Any]) -> None:
    async for found in run:
        seen.append(found)  # noqa: PERF401  # a comprehension would lose the items before an error


def sent(server: FriendliServer, name: str) -> list[Any]:
    """Returns a field of each request."""
    return [request.json_object.get(name) for request in server.requests]


def told(server: FriendliServer) -> Mapping[str, Any]:
    """Returns the last message of the last request."""
    message: Mapping[str, Any] = server.requests[-1].json_object["messages"][-1]
    return message


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_run_ends_with_a_value_after_the_tools(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), answer(RAIN))
    run = start_run(client)
    events = [event async for event in run]
    result = await result_of(run)
    assert result.value == result.answer == Trip("Oslo", True)
    assert (result.turns, result.deferred) == (2, ())
    assert result.usage is not None
    assert result.usage.completion_tokens == 2
    started = [event.call.function.name for event in events if isinstance(event, ToolStarted)]
    assert started == ["weather", "final_answer"]
    assert isinstance(events[-1], TurnEnded)
    assert events[-1].reply == result.reply
    assert [message["role"] for message in result.messages[1:]] == ["assistant", "tool", "assistant", "tool"]
    assert result.messages == run.messages
    assert json.loads(json.dumps(result.messages)) == result.messages


async def test_answer_is_declared_as_one_more_tool_and_a_call_is_required_in_each_turn(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), answer(RAIN))
    await result_of(start_run(client))
    [first, second] = sent(server, "tools")
    assert first == second
    assert [each["function"]["name"] for each in first] == ["weather", "final_answer"]
    assert first[1]["function"]["parameters"] == {
        "type": "object",
        "description": "A trip to a city.",
        "properties": {"city": {"type": "string"}, "take_umbrella": {"type": "boolean"}},
        "required": ["city", "take_umbrella"],
        "additionalProperties": False,
    }
    assert first[1]["function"]["description"].endswith(" A trip to a city.")
    assert sent(server, "tool_choice") == ["required", "required"]


@pytest.mark.parametrize(
    ("given", "first", "later"),
    [
        ({"tool_choice": "auto"}, "auto", "auto"),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, None, "required"),
        ({"extra_body": {"tool_choice": "auto"}}, "auto", "auto"),
        ({"extra_body": {"tool_choice": "any"}}, "any", "required"),
    ],
)
async def test_given_tool_choice_applies_as_in_other_runs(
    client: AsyncFriendli, server: FriendliServer, given: Any, first: str | None, later: str
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), answer(RAIN))
    await result_of(start_run(client, **given))
    assert sent(server, "tool_choice") == [first or given["tool_choice"], later]


@pytest.mark.parametrize(
    ("kind", "arguments", "value"),
    [
        (list[int], {"value": [1, 2]}, [1, 2]),
        (list[int], [1, 2], [1, 2]),
        (Literal["yes", "no"], {"value": "no"}, "no"),
        (Trip | None, {"value": None}, None),
        (Any, {"anything": [1]}, {"anything": [1]}),
        (PaidTrip, {"city": "Oslo", "price": 3}, PaidTrip(city="Oslo", price=3.0)),
        (dict[str, int], {"a": 1}, {"a": 1}),
    ],
    ids=str,
)
async def test_any_type_of_parse_can_be_the_answer(
    client: AsyncFriendli, server: FriendliServer, kind: Any, arguments: Any, value: Any
) -> None:
    server.enqueue(answer(arguments if isinstance(arguments, dict) else json.dumps(arguments)))
    result = await result_of(start_run(client, kind))
    assert result.value == value
    assert type(result.value) is type(value)


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_embedded_server_calls_required_functions_in_turn(client: AsyncFriendli, count: int) -> None:
    tools = [tool(lambda: "done", name=f"step{number}", description="A step.") for number in range(count)]
    run = client.serverless.chat.parse_run(Trip, model="m", messages=MESSAGES, tools=tools)
    result = await run.result()
    names = [call["function"]["name"] for message in result.messages for call in _calls(message)]
    assert names == [*(each.name for each in tools), "final_answer"]
    assert isinstance(result.value, Trip)


async def test_embedded_server_repeats_an_answer_that_was_refused(client: AsyncFriendli) -> None:
    def refuse(city: str) -> str:
        raise ValueError(f"not {city}")

    kind = Annotated[str, pydantic.AfterValidator(refuse)]
    run = client.serverless.chat.parse_run(kind, model="m", messages=MESSAGES, tools=[weather], max_turns=5)
    with pytest.raises(OutputInvalidError, match="not "):
        await run.result()
    names = [call["function"]["name"] for message in run.messages for call in _calls(message)]
    assert names == ["weather", *["final_answer"] * 4]


def _calls(message: Any) -> list[Any]:
    calls: list[Any] = message.get("tool_calls") or []
    return calls


async def test_container_needs_no_model(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(answer(RAIN))
    run = client.container.chat.parse_run(Trip, messages=MESSAGES, tools=[weather])
    assert (await result_of(run)).value.city == "Oslo"
    assert sent(server, "model") == [None]


async def test_text_that_is_the_value_is_an_answer(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text(json.dumps(RAIN)))
    result = await result_of(start_run(client))
    assert (result.value, result.turns) == (Trip("Oslo", True), 1)


async def test_other_calls_of_the_last_turn_are_carried_out(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("final_answer", RAIN), ("weather", {"city": "Rome"})))
    result = await result_of(start_run(client))
    assert result.value == Trip("Oslo", True)
    assert [message.get("content") for message in result.messages[2:]] == ["The answer was accepted.", "rain in Rome"]


async def test_first_of_two_answers_counts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("final_answer", RAIN), ("final_answer", {**RAIN, "city": "Rome"})))
    run = start_run(client, on_tool_error="raise")
    finished = [event for event in [each async for each in run] if isinstance(event, ToolFinished)]
    assert [event.problem for event in finished] == [None, "refused"]
    assert (await result_of(run)).value.city == "Oslo"


async def test_limit_of_tool_results_does_not_apply_to_the_answer(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(answer(RAIN))
    run = start_run(client, max_tool_result=1, on_tool_error="raise")
    assert (await result_of(run)).value.city == "Oslo"
    assert repr(run) == "<ParsedRun done, 1 turns>"


# --- snapshots -------------------------------------------------------------------------------------------------------


def answer_in_pieces(*pieces: str) -> Any:
    start = {"index": 0, "id": "a", "type": "function", "function": {"name": "final_answer", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    return script(*(chunk(tool_calls=[call]) for call in (start, *more)), finish("tool_calls"), done())


async def snapshots_of(run: ParsedRun[Any]) -> list[Any]:
    """Returns the different snapshots after the events of a run."""
    seen: list[Any] = [run.snapshot]
    async for _ in run:
        if run.snapshot != seen[-1]:
            seen.append(copy.deepcopy(run.snapshot))
    return seen


async def test_snapshot_grows_with_the_answer(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(
        tool_calls(("weather", {"city": "Rome"})), answer_in_pieces('{"city":"Os', 'lo","take_umbrella":tr', "ue}")
    )
    run = start_run(client)
    assert await snapshots_of(run) == [None, {"city": "Os"}, {"city": "Oslo"}, RAIN]
    assert (await result_of(run)).value == Trip("Oslo", True)
    assert run.snapshot == RAIN


async def test_snapshot_begins_again_with_the_next_attempt(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(answer_in_pieces('{"city":1', "}"), answer(RAIN))
    assert (await snapshots_of(start_run(client)))[:4] == [None, {}, {"city": 1}, None]


async def test_snapshot_is_of_the_value_without_its_wrapper(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(answer_in_pieces('{"', 'value":', "[1,", "2]}"))
    run = start_run(client, list[int])
    assert await snapshots_of(run) == [None, [1], [1, 2]]
    assert (await result_of(run)).value == [1, 2]


async def test_snapshot_of_arguments_that_are_no_json_stays_as_it_was(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(answer_in_pieces('{"city":"Oslo"', ",]", ',"x":1}'), answer(RAIN))
    run = start_run(client)
    assert (await snapshots_of(run))[:3] == [None, {"city": "Oslo"}, None]


@pytest.mark.parametrize(
    ("kind", "reply", "last"),
    [
        (Trip, text('{"city":"Os', 'lo","take_umbrella":true}'), RAIN),
        (int, text("4", "2"), 42),
        (Trip, tool_calls(("final_answer", {"city": 1}), ("final_answer", RAIN)), RAIN),
    ],
    ids=["text", "number", "second call"],
)
async def test_snapshot_ends_with_the_accepted_answer(
    client: AsyncFriendli, server: FriendliServer, kind: Any, reply: Any, last: Any
) -> None:
    server.enqueue(reply)
    assert (await snapshots_of(start_run(client, kind)))[-1] == last


async def test_snapshot_is_none_while_calls_of_an_earlier_run_are_pending(client: AsyncFriendli) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    messages: Conversation = [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]
    run = client.serverless.chat.parse_run(Trip, model="m", messages=messages, tools=[weather], decisions={"a": True})
    assert run.snapshot is None


# --- no answer -------------------------------------------------------------------------------------------------------


async def test_model_is_told_what_is_wrong_with_its_answer(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(answer(INVALID), answer(RAIN))
    result = await result_of(start_run(client))
    assert (result.value, result.turns) == (Trip("Oslo", True), 2)
    assert told(server)["role"] == "tool"
    assert told(server)["content"] == (
        "Error: the answer is not a valid Trip: Expected `bool`, got `str` (at take_umbrella)"
    )


async def test_model_that_answers_with_text_is_asked_again(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text("Take an umbrella."), answer(RAIN))
    result = await result_of(start_run(client))
    assert (result.value, result.turns) == (Trip("Oslo", True), 2)
    assert told(server)["role"] == "user"
    assert told(server)["content"].startswith("This cannot be used: the answer is not a valid Trip: invalid JSON: ")
    assert told(server)["content"].endswith("Give the answer by calling final_answer.")


async def test_text_in_the_last_turn_is_an_error_that_loses_nothing(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text("Take"), text("an umbrella."))
    run = start_run(client, max_turns=2)
    seen: list[Any] = []
    with pytest.raises(OutputInvalidError, match=r"^the answer is not a valid Trip: invalid JSON: ") as caught:
        await read_into(seen, run)
    assert [event.number for event in seen if isinstance(event, TurnEnded)] == [1, 2]
    assert isinstance(caught.value.reply, ChatCompletion)
    assert (caught.value.text, caught.value.reply.text) == ("an umbrella.", "an umbrella.")
    assert run.messages[-1] == {"role": "assistant", "content": "an umbrella."}
    assert run.usage is not None
    assert run.usage.completion_tokens == 2
    with pytest.raises(OutputInvalidError):
        await run.result()
    await assert_no_leaks(client, server)


async def test_model_that_never_gives_a_valid_answer_reaches_the_limit_of_turns(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(answer(INVALID), answer({**INVALID, "city": "Rome"}))
    run = start_run(client, max_turns=2)
    with pytest.raises(OutputInvalidError) as caught:
        await result_of(run)
    assert str(caught.value) == "the answer is not a valid Trip: Expected `bool`, got `str` (at take_umbrella)"
    assert caught.value.path == "take_umbrella"
    assert json.loads(caught.value.text) == {**INVALID, "city": "Rome"}
    assert (run.turns, len(run.messages)) == (2, 5)


async def test_model_that_calls_other_tools_in_the_last_turn_reaches_the_limit(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(answer(INVALID), tool_calls(("weather", {"city": "Oslo"})))
    with pytest.raises(TurnLimitError) as caught:
        await result_of(start_run(client, max_turns=2))
    assert caught.value.turns == 2
    assert caught.value.messages is not None
    assert len(caught.value.messages) == 5


@pytest.mark.parametrize(
    "steps",
    [
        [chunk(tool_calls=[{"index": 0, "id": "1", "function": {"name": "final_answer", "arguments": '{"city": "O'}}])],
        [chunk("Take an")],
        [],
    ],
    ids=["call", "text", "nothing"],
)
async def test_truncated_answer_is_not_asked_for_again(
    client: AsyncFriendli, server: FriendliServer, steps: Any
) -> None:
    server.enqueue(script(*steps, finish("length"), usage(1, 5), done()))
    run = start_run(client)
    with pytest.raises(OutputCutOffError, match="the token limit was reached"):
        await result_of(run)
    assert run.turns == len(server.requests) == 1


@pytest.mark.parametrize("number", ["12", "-12"])
async def test_truncated_number_is_no_answer(client: AsyncFriendli, server: FriendliServer, number: str) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "final_answer", "arguments": number}}
    server.enqueue(script(chunk(tool_calls=[call]), finish("length"), usage(1, 5), done()))
    with pytest.raises(OutputCutOffError, match="the token limit was reached"):
        await result_of(start_run(client, int))


@pytest.mark.parametrize("steps", [[chunk("12")], [chunk(json.dumps(RAIN))]], ids=["number", "object"])
async def test_answer_that_broke_off_is_cut_off(client: AsyncFriendli, server: FriendliServer, steps: Any) -> None:
    server.enqueue(script(*steps, finish("error"), done()))
    with pytest.raises(OutputCutOffError, match="'error'") as caught:
        await result_of(start_run(client, Any))
    assert isinstance(caught.value.reply, ChatCompletion)
    assert caught.value.text == caught.value.reply.text


async def test_truncated_call_of_another_tool_is_reported_to_the_model(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "weather", "arguments": '{"city": "O'}}
    server.enqueue(script(chunk(tool_calls=[call]), finish("length"), usage(1, 5), done()), answer(RAIN))
    assert (await result_of(start_run(client))).turns == 2


async def test_refusal_is_an_error(client: AsyncFriendli, server: FriendliServer) -> None:
    refusal = {"choices": [{"index": 0, "delta": {"refusal": "I will not."}}]}
    server.enqueue(script(event(refusal), finish("stop"), done()))
    with pytest.raises(OutputInvalidError, match="the model refused to answer: I will not") as caught:
        await result_of(start_run(client))
    assert caught.value.refusal == "I will not."


@pytest.mark.parametrize("thought", [None, "I think."])
async def test_empty_answer_is_not_asked_for_again(
    client: AsyncFriendli, server: FriendliServer, thought: str | None
) -> None:
    delta = event({"choices": [{"index": 0, "delta": {"reasoning_content": thought}}]})
    server.enqueue(script(delta, finish("stop"), usage(1, 5), done()))
    run = start_run(client)
    with pytest.raises(OutputInvalidError, match="the model returned an empty answer"):
        await result_of(run)
    assert run.turns == len(server.requests) == 1


async def test_invalid_answer_can_raise(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(answer(INVALID))
    with pytest.raises(ToolError, match="the tool 'final_answer' failed: the answer is not a valid Trip") as caught:
        await result_of(start_run(client, on_tool_error="raise"))
    assert caught.value.kind == "arguments"


# --- approval --------------------------------------------------------------------------------------------------------


async def test_answer_needs_no_approval(client: AsyncFriendli, server: FriendliServer) -> None:
    asked: list[str] = []

    def allow(call: ToolCall) -> bool:
        asked.append(call.function.name)
        return False

    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), answer(RAIN))
    assert (await result_of(start_run(client, before_tool=allow))).value.city == "Oslo"
    assert asked == ["weather"]


async def test_run_with_deferred_calls_has_no_value_before_the_run_with_the_decisions(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Oslo"})))
    result = await result_of(start_run(client, before_tool=lambda call: "defer"))
    assert (len(result.deferred), result.answer) == (1, msgspec.UNSET)
    with pytest.raises(RuntimeError, match="there is no value yet: the run has ended with deferred calls"):
        _ = result.value

    server.enqueue(answer(RAIN))
    decisions = {call.id: True for call in result.deferred}
    chat = client.serverless.chat
    run = chat.parse_run(Trip, model="m", messages=result.messages, tools=[weather], decisions=decisions)
    assert (await result_of(run)).value == Trip("Oslo", True)
    assert sent(server, "tool_choice") == ["required", "required"]


async def test_answer_beside_a_deferred_call_is_kept(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("final_answer", RAIN), ("weather", {"city": "Rome"})))
    result = await result_of(start_run(client, before_tool=lambda call: "defer"))
    assert result.value == Trip("Oslo", True)
    assert [call.function.name for call in result.deferred] == ["weather"]


# --- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": ...}, TypeError, "the type of the answer is missing"),
        ({"kind": {"type": "object"}}, TypeError, "a JSON schema is not a type"),
        ({"kind": object}, TypeError, "object has no JSON representation"),
        ({"strict": 1}, ValueError, "strict"),
        ({"response_format": {"type": "json_object"}}, UnknownArgumentError, r"^parse_run\(\) .*'response_format'"),
        ({"extra_body": {"response_format": None}}, TypeError, r"^parse_run\(\) does not accept 'response_format'"),
        ({"max_turn": 3}, UnknownArgumentError, "did you mean 'max_turns'"),
        ({"n": 2}, ValueError, "only one choice"),
        ({"tool_choice": np.array(["auto", "none"])}, ValueError, "^tool_choice: "),  # which has no truth value
    ],
)
def test_invalid_arguments_are_rejected_at_once(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        start_run(AsyncFriendli("t"), **options)


def test_tool_with_the_name_of_the_answer_is_rejected() -> None:
    other = tool(weather, name="final_answer")
    with pytest.raises(ValueError, match=r"^tools: duplicate tool name 'final_answer': the answer is given by a tool"):
        AsyncFriendli("t").serverless.chat.parse_run(Trip, model="m", messages=MESSAGES, tools=[other])


def test_run_with_an_output_type_is_referred_to_parse_run() -> None:
    chat: Any = AsyncFriendli("t").serverless.chat
    with pytest.raises(TypeError, match=r"use chat\.parse_run\(T, \.\.\.\)"):
        chat.run(model="m", messages=MESSAGES, tools=[weather], output_type=Trip)


async def test_failed_run_is_in_no_reference_cycle(client: AsyncFriendli, server: FriendliServer) -> None:
    async def fail() -> weakref.ref[Any]:
        run = start_run(client, max_turns=2)
        try:
            await run.result()
        except OutputInvalidError:
            return weakref.ref(run)
        raise AssertionError("the answer was accepted")

    server.enqueue(text("Take"), text("an umbrella."))
    gc.disable()
    try:
        assert (await with_timeout(fail()))() is None
    finally:
        gc.enable()


async def test_run_dropped_before_its_error_was_raised_ends(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text("Take an umbrella."))
    gc.disable()
    try:
        async for found in start_run(client, max_turns=1):
            if isinstance(found, TurnEnded):
                break
        assert await with_timeout(client.drain()) == 0
    finally:
        gc.enable()


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "annotation", [ParsedRunResult[Trip], ParsedRunResult[PaidTrip], ParsedRunResult[PaidTrip | None]]
)
@pytest.mark.parametrize("deferred", [False, True])
async def test_result_is_restored_from_a_checkpoint(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path, annotation: Any, deferred: bool
) -> None:
    [kind] = get_args(annotation)

    async def call(row: str) -> Any:
        return await start_run(client, kind, before_tool=lambda call: "defer" if deferred else True).result()

    call.__annotations__["return"] = annotation
    arguments = RAIN if kind is Trip else {"city": "Oslo", "price": 3}
    given = arguments if isinstance(kind, type) else {"value": arguments}
    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), answer(given))
    [first] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    [again] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    assert again.resumed
    assert again.reply == first.reply
    assert again.reply is not None
    assert type(again.reply.answer) is (msgspec.UnsetType if deferred else Trip if kind is Trip else PaidTrip)


class Doubled(pydantic.BaseModel):
    secret: pydantic.SecretStr
    price: Annotated[int, pydantic.AfterValidator(lambda price: 2 * price)]


@dataclasses.dataclass
class Link:
    url: pydantic.HttpUrl


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(Doubled, {"secret": "s", "price": 2}), (Link, {"url": "http://a/"})],
    ids=["changed by validation", "without a JSON form"],
)
@pytest.mark.parametrize("as_text", [False, True])
async def test_value_is_restored_from_what_the_model_has_answered(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path, kind: Any, arguments: Any, as_text: bool
) -> None:
    async def call(row: str) -> Any:
        return await start_run(client, kind).result()

    call.__annotations__["return"] = ParsedRunResult[kind]
    invalid: tuple[str, dict[str, Any]] = ("final_answer", {"secret": []})
    given = tool_calls(invalid, ("final_answer", arguments), ("final_answer", {**arguments, "price": 3}))
    server.enqueue(text(json.dumps(arguments)) if as_text else given)
    [first] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    [again] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    assert again.resumed
    assert again.reply == first.reply
    assert again.result().value == pydantic.TypeAdapter(kind).validate_python(arguments)


async def test_error_about_an_answer_that_no_longer_matches_says_what_is_wrong_with_it(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path
) -> None:
    async def call(row: str) -> Any:
        return await start_run(client, Trip).result()

    server.enqueue(tool_calls(("final_answer", {}), ("final_answer", RAIN)))
    call.__annotations__["return"] = ParsedRunResult[Trip]
    [_] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    call.__annotations__["return"] = ParsedRunResult[PaidTrip]
    with pytest.raises(CheckpointError, match=r"Result\[PaidTrip\]: Field required \(at price\): pass"):
        [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]


async def test_result_without_a_value_is_restored_without_its_type(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path
) -> None:
    async def call(row: str) -> Any:
        return await start_run(client, before_tool=lambda call: "defer").result()

    server.enqueue(tool_calls(("weather", {"city": "Oslo"})))
    [first] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    [again] = [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
    assert again.resumed
    assert type(again.reply) is ParsedRunResult
    assert again.reply == first.reply


@pytest.mark.parametrize("annotation", [Any, ParsedRunResult])
async def test_checkpoint_needs_the_type_of_the_value(
    client: AsyncFriendli, server: FriendliServer, tmp_path: Path, annotation: Any
) -> None:
    async def call(row: str) -> Any:
        return await start_run(client).result()

    call.__annotations__["return"] = annotation
    server.enqueue(answer(RAIN))
    with pytest.raises(CheckpointError, match=r"reply_type=ParsedRunResult\[Trip\]"):
        [each async for each in run_all(["a"], call, checkpoint=tmp_path / "done.jsonl", key=str)]
