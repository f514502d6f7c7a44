"""Structured output: parse and parse_stream, of chat and of responses, against the embedded server."""

import asyncio
import copy
import gc
import itertools
import json
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from anyio import to_thread
from support.clock import run_loop_iterations
from support.sockets import completion, with_timeout

from friendli_async import (
    AsyncFriendli,
    InternalServerError,
    OutputCutOffError,
    OutputError,
    OutputInvalidError,
    StreamInterruptedError,
    Usage,
)
from friendli_async.chat import ChatChunk, ChatMessage, ChatStream, ParsedCompletion, json_schema
from friendli_async.responses import ResponseStream
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
    event,
    finish,
    gate,
    json_body,
    raw,
    script,
    stall,
    status,
    text,
    tool_calls,
    usage,
)

pytestmark = pytest.mark.compatibility

ASK: Any = [{"role": "user", "content": "Hi there"}]


class Line(msgspec.Struct):
    sku: str
    quantity: int


class Invoice(msgspec.Struct):
    """An invoice."""

    number: str
    lines: list[Line]
    total: float


class Model(pydantic.BaseModel):
    name: str
    sizes: list[int]


@dataclass
class Plain:
    name: str
    size: int = 3


class Typed(TypedDict):
    name: str


class Pair(NamedTuple):
    one: int
    other: str


class Reading(msgspec.Struct):
    value: float
    unit: str


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str]


INVOICE = '{"number": "7", "lines": [{"sku": "a", "quantity": 1}, {"sku": "b", "quantity": 2}], "total": 3.5}'
VALUE = Invoice("7", [Line("a", 1), Line("b", 2)], 3.5)


def scripted(whole: str, size: int = 3, **more: Any) -> Any:
    """Returns a script that streams a text in chunks of `size` characters."""
    pieces = [chunk(whole[at : at + size]) for at in range(0, len(whole), size)]
    return script(*pieces, finish(more.get("reason", "stop")), usage(5, 7), done())


def chat_of(client: AsyncFriendli, deployment: str) -> Any:
    return getattr(client, deployment).chat


def last_body(server: FriendliServer) -> Any:
    return server.requests[-1].json_object


# --- parse -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deployment", ["serverless", "dedicated", "container"])
async def test_parse_sends_schema_and_returns_value(
    client: AsyncFriendli, server: FriendliServer, deployment: str
) -> None:
    server.enqueue(text(INVOICE))
    model = {} if deployment == "container" else {"model": "m"}
    reply = await chat_of(client, deployment).parse(Invoice, **model, messages=ASK, max_tokens=50)
    assert isinstance(reply, ParsedCompletion)
    assert reply.value == VALUE
    assert (reply.text, reply.asked, reply.meta.status) == (INVOICE, 1, 200)
    assert reply.usage is not None
    assert reply.raw["choices"][0]["message"]["content"] == INVOICE
    body = last_body(server)
    assert (body.get("model"), body["max_tokens"]) == (model.get("model"), 50)
    response_format = body["response_format"]
    assert response_format["type"] == "json_schema"
    assert response_format["json_schema"]["name"] == "Invoice"
    assert response_format["json_schema"]["description"] == "An invoice."
    assert response_format["json_schema"]["schema"]["required"] == ["number", "lines", "total"]
    assert pickle.loads(pickle.dumps(reply)).value == VALUE


@pytest.mark.parametrize(
    "kind",
    [
        Invoice, Model, Plain, Typed, Pair, Cat | Dog, list[Line], dict[str, int], tuple[int, str], int, str | None,
        Annotated[list[Cat | Dog], msgspec.Meta(min_length=2)], list[Model],
        Annotated[str, msgspec.Meta(pattern=r"^\d+$")], Decimal, timedelta, bytes,
        Annotated[datetime, msgspec.Meta(tz=False)],
    ],
    ids=str,
)  # fmt: skip
async def test_embedded_server_answers_match_the_type(client: AsyncFriendli, kind: Any) -> None:
    reply = await client.serverless.chat.parse(kind, model="m", messages=ASK)
    async with client.serverless.responses.parse_stream(kind, model="m", input="Hi there") as stream:
        streamed = await stream.result()
    assert reply.value == streamed.value
    assert msgspec.convert(reply.value, Any) is not None


async def test_non_object_root_is_wrapped_on_the_wire_and_unwrapped(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text('{"value": [{"sku": "a", "quantity": 1}]}'))
    reply = await client.serverless.chat.parse(list[Line], model="m", messages=ASK)
    assert reply.value == [Line("a", 1)]
    declared = last_body(server)["response_format"]["json_schema"]
    assert set(declared) == {"name", "schema"}  # not the docstring of list
    schema = declared["schema"]
    assert (schema["type"], schema["required"], schema["additionalProperties"]) == ("object", ["value"], False)
    assert "Line" in schema["$defs"]
    assert set(schema["properties"]["value"]) == {"type", "items"}


async def test_any_accepts_any_json(client: AsyncFriendli, server: FriendliServer) -> None:
    reply = await client.serverless.chat.parse(Any, model="m", messages=ASK)
    assert reply.value == {"answer": "You said: Hi there"}
    assert last_body(server)["response_format"] == {"type": "json_object"}


async def test_lone_surrogate_that_msgspec_rejects_is_parsed(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text('{"name": "a\\ud83d"}'))
    assert (await client.serverless.chat.parse(Typed, model="m", messages=ASK)).value == {"name": "a\ud83d"}


async def test_only_field_of_a_type_may_have_the_name_of_the_wrapper(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    class Word(msgspec.Struct):
        value: str

    server.enqueue(text('{"value": "a\\ud83d"}'))  # which msgspec rejects
    assert (await client.serverless.chat.parse(Word, model="m", messages=ASK)).value == Word("a\ud83d")


async def test_type_without_a_docstring_is_sent_without_a_description(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text('{"sku": "a", "quantity": 1}'))
    await client.serverless.chat.parse(Line, model="m", messages=ASK)
    assert set(last_body(server)["response_format"]["json_schema"]) == {"name", "schema"}


async def test_tool_call_in_a_truncated_answer_is_reported_as_truncated(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    call = {"index": 0, "id": "1", "function": {"name": "look", "arguments": '{"pl'}}
    server.enqueue(
        script(event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}), finish("length"), done())
    )
    with pytest.raises(OutputCutOffError, match="the answer was truncated"):
        await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()


# --- answers that do not match the type ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "message", "path"),
    [
        ("nope", "the answer is not a valid Invoice: invalid JSON: invalid literal 'nope' at character 0", ""),
        ("", "the model returned an empty answer", ""),
        (f"```json\n{INVOICE}\n```", "invalid JSON: expected a value, found '`' at character 0", ""),
        (f"{INVOICE} So.", "expected the end of input, found 'S' at character", ""),
        ('{"number": "1"', "unexpected end of input at character 14", ""),
        ('{"number": 1, "lines": [], "total": 1}', "Expected `str`, got `int`", "number"),
        ('{"number": "1", "lines": [{"sku": "", "quantity": "x"}], "total": 1}', "Expected `int`", "lines[0].quantity"),
        ('{"number": "1", "lines": []}', "missing required field `total`", ""),
        ('{"number": "1", "lines": [], "total": 1e999}', "number too large", ""),
    ],
)
async def test_invalid_answer_error_has_path_and_reason(
    client: AsyncFriendli, server: FriendliServer, answer: str, message: str, path: str
) -> None:
    server.enqueue(text(answer), scripted(answer))
    with pytest.raises(OutputInvalidError) as caught:
        await client.serverless.chat.parse(Invoice, model="m", messages=ASK)
    with pytest.raises(OutputInvalidError) as streamed:
        await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()
    for error_ in (caught.value, streamed.value):
        assert message in str(error_)
        assert (error_.path, error_.text, error_.excerpt) == (path, answer, answer[:200])
        assert error_.reply is not None
        assert error_.reply.usage is not None  # type: ignore[attr-defined]  # a ChatCompletion
        assert error_.meta is not None
        for same in (pickle.loads(pickle.dumps(error_)), copy.deepcopy(error_)):
            assert (str(same), same.text, same.path, same.reply) == (str(error_), answer, path, error_.reply)


@pytest.mark.parametrize("answer", ["[" * 100_000, '{"a":' * 100_000])
async def test_excessive_nesting_raises_output_error(
    client: AsyncFriendli, server: FriendliServer, answer: str
) -> None:
    server.enqueue(scripted(answer, 50_000), scripted(answer, 50_000))
    chat = client.serverless.chat
    with pytest.raises(OutputInvalidError, match="nested more than 256 levels deep"):
        async for _ in chat.parse_stream(Any, model="m", messages=ASK).snapshots():
            pass
    with pytest.raises(OutputInvalidError, match="nested more than 256 levels deep"):
        await chat.parse_stream(Any, model="m", messages=ASK).result()


async def test_pydantic_models_are_validated_by_pydantic(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(text('{"name": "x", "sizes": [1, "y"]}'), text('{"name"'), text('{"name": "x", "sizes": ["2"]}'))
    with pytest.raises(OutputInvalidError, match="valid integer") as caught:
        await client.serverless.chat.parse(Model, model="m", messages=ASK)
    assert caught.value.path == "sizes[1]"
    with pytest.raises(OutputInvalidError, match="unexpected end of input at character 7"):
        await client.serverless.chat.parse(Model, model="m", messages=ASK)
    assert (await client.serverless.chat.parse(Model, model="m", messages=ASK)).value == Model(name="x", sizes=[2])


@dataclass
class Holder:
    model: Model


async def test_dataclass_with_a_pydantic_model_is_validated_by_pydantic(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text('{"model": {"name": "x", "sizes": ["y"]}}'), text('{"model": {"name": "x", "sizes": ["2"]}}'))
    with pytest.raises(OutputInvalidError, match="valid integer") as caught:
        await client.serverless.chat.parse(Holder, model="m", messages=ASK)
    assert caught.value.path == "model.sizes[0]"
    value = (await client.serverless.chat.parse(Holder, model="m", messages=ASK)).value
    assert value == Holder(Model(name="x", sizes=[2]))


@dataclass
class Sized:
    sizes: Annotated[list[Annotated[int, pydantic.Field(le=3)]], pydantic.Field(min_length=1)]


async def test_constraints_of_pydantic_are_validated_without_a_model(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text('{"sizes": [1, 4]}'), text('{"sizes": [3]}'), text('{"value": [1, 0]}'))
    with pytest.raises(OutputInvalidError, match="less than or equal to 3") as caught:
        await client.serverless.chat.parse(Sized, model="m", messages=ASK)
    assert caught.value.path == "sizes[1]"
    assert (await client.serverless.chat.parse(Sized, model="m", messages=ASK)).value == Sized([3])
    with pytest.raises(OutputInvalidError, match="greater than 0") as caught:
        await client.serverless.chat.parse(list[pydantic.PositiveInt], model="m", messages=ASK)
    assert caught.value.path == "[1]"


async def test_token_limit_raises_cut_off_error(client: AsyncFriendli, server: FriendliServer) -> None:
    for _ in range(2):
        with pytest.raises(OutputCutOffError, match="token limit") as caught:
            await client.serverless.chat.parse(Invoice, model="m", messages=ASK, max_tokens=2, reask=3)
        assert caught.value.text == '{"number": "You '
    assert len(server.requests) == 2  # not re-asked: the answer would only be cut off again
    with pytest.raises(OutputCutOffError, match="token limit"):
        await client.serverless.responses.parse(Invoice, model="m", input="Hi", max_output_tokens=2)


@pytest.mark.parametrize(
    ("reason", "message"), [("content_filter", "content filter"), ("abort", "'abort'"), ("error", "'error'")]
)
async def test_answer_that_the_server_stopped_is_cut_off_and_not_asked_for_again(
    client: AsyncFriendli, server: FriendliServer, reason: str, message: str
) -> None:
    server.enqueue(text('{"number": "a', finish_reason=reason), scripted('{"number": "a', reason=reason))
    with pytest.raises(OutputCutOffError, match=message):
        await client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=3)
    with pytest.raises(OutputCutOffError, match=message):
        await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()
    server.enqueue(json_body({"status": "incomplete", "incomplete_details": {"reason": reason}, "output": []}))
    with pytest.raises(OutputCutOffError, match=rf"incomplete \({reason}\)"):
        await client.serverless.responses.parse(Invoice, model="m", input="Hi", reask=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize("reason", ["", "null", "None", None, "STOP", "COMPLETE", "end_turn", "eos"])
async def test_answer_without_a_usual_finish_reason_is_not_cut_off(
    client: AsyncFriendli, server: FriendliServer, reason: str | None
) -> None:
    for content in ("12", "12", "twelve", "12"):
        choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
        server.enqueue(json_body({"choices": [choice]}))
    assert (await client.serverless.chat.parse(int, model="m", messages=ASK)).value == 12
    assert (await client.serverless.chat.parse(int, model="m", messages=ASK, reask=1)).value == 12
    assert (await client.serverless.chat.parse(int, model="m", messages=ASK, reask=1)).asked == 2


@pytest.mark.parametrize("status", ["", "done", "succeeded", "COMPLETED"])
async def test_response_with_an_unknown_status_is_not_cut_off(
    client: AsyncFriendli, server: FriendliServer, status: str
) -> None:
    content = [{"type": "output_text", "text": "12"}]
    server.enqueue(json_body({"status": status, "output": [{"type": "message", "content": content}]}))
    assert (await client.serverless.responses.parse(int, model="m", input="Hi")).value == 12


@pytest.mark.parametrize("status", ["cancelled", "in_progress", "queued"])
async def test_number_of_a_response_that_is_not_completed_may_be_truncated(
    client: AsyncFriendli, server: FriendliServer, status: str
) -> None:
    content = [{"type": "output_text", "text": "12"}]
    server.enqueue(json_body({"status": status, "output": [{"type": "message", "content": content}]}))
    with pytest.raises(OutputCutOffError, match=f"'{status}'"):
        await client.serverless.responses.parse(int, model="m", input="Hi")


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (Any, "12"),
        (int, "-1"),
        (float, "1.5"),
        (float, "1e5"),
        (Decimal, "4"),
        (int | str, " 7"),
        (Literal[1, 12], "1"),
    ],
    ids=str,
)
async def test_number_at_the_end_of_a_truncated_answer_is_not_accepted(
    client: AsyncFriendli, server: FriendliServer, kind: Any, answer: str
) -> None:
    server.enqueue(text(answer, finish_reason="length"), scripted(answer, reason="length"))
    with pytest.raises(OutputCutOffError, match="token limit"):
        await client.serverless.chat.parse(kind, model="m", messages=ASK)
    with pytest.raises(OutputCutOffError, match="token limit"):
        await client.serverless.chat.parse_stream(kind, model="m", messages=ASK).result()


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        (int, '{"value": 42}', 42),
        (int, "42\n", 42),
        (Decimal, '"4.2"', Decimal("4.2")),
        (bool, "true", True),
        (Invoice, INVOICE, VALUE),
    ],
    ids=str,
)
async def test_complete_value_in_a_truncated_answer_is_accepted(
    client: AsyncFriendli, server: FriendliServer, kind: Any, answer: str, value: object
) -> None:
    server.enqueue(text(answer, finish_reason="length"), scripted(answer, reason="length"))
    assert (await client.serverless.chat.parse(kind, model="m", messages=ASK)).value == value
    assert (await client.serverless.chat.parse_stream(kind, model="m", messages=ASK).result()).value == value


async def test_tool_call_or_refusal_instead_of_answer_is_reported(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    server.enqueue(tool_calls(("look", {})))
    with pytest.raises(OutputInvalidError, match="called tools instead of answering: look") as caught:
        await client.serverless.chat.parse(
            Invoice, model="m", messages=ASK, tools=[tool], tool_choice="required", reask=2
        )
    assert len(server.requests) == 1
    assert caught.value.reply is not None
    assert caught.value.refusal == ""
    assert caught.value.partial is not None
    assert [call.function.name for call in caught.value.partial.tool_calls] == ["look"]
    content = [{"type": "refusal", "refusal": "I will not"}]
    message = {"type": "message", "id": "1", "role": "assistant", "status": "completed", "content": content}
    server.enqueue(json_body({"id": "r", "object": "response", "status": "completed", "output": [message]}))
    with pytest.raises(OutputInvalidError, match="refused to answer: I will not") as caught:
        await client.serverless.responses.parse(Invoice, model="m", input="Hi")
    assert caught.value.refusal == "I will not"


# --- re-asking -------------------------------------------------------------------------------------------------------


async def test_invalid_answer_is_sent_back_once(client: AsyncFriendli, server: FriendliServer) -> None:
    bad = '{"number": "1", "lines": [], "total": "much"}'
    server.enqueue(text(bad), text(INVOICE))
    reply = await client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1)
    assert (reply.value, reply.asked) == (VALUE, 2)
    first, second = (request.json_object for request in server.requests)
    assert first["response_format"] == second["response_format"]
    assert second["messages"][0] == ASK[0]
    assert second["messages"][1] == {"role": "assistant", "content": bad}
    assert "Expected `float`, got `str` (at total)" in second["messages"][2]["content"]
    whole = await client.serverless.chat.parse(Invoice, model="m", messages=ASK)
    assert reply.usage is not None
    assert whole.usage is not None
    assert reply.usage.total_tokens == 2 * (reply.usage.prompt_tokens // 2 + reply.usage.completion_tokens // 2)


async def test_exhausted_reasks_report_total_usage(client: AsyncFriendli, server: FriendliServer) -> None:
    def completion(content: str) -> Any:
        message = {"role": "assistant", "content": content}
        usage: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}
        return json_body({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

    server.enqueue(completion("no"), completion("no, no"), completion("never"))
    with pytest.raises(OutputInvalidError, match="never") as caught:
        await client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=2)
    failed_reply: Any = caught.value.reply
    assert (failed_reply.usage.total_tokens, failed_reply.usage.prompt_tokens_details.cached_tokens) == (39, 12)
    assert caught.value.asked == 3
    assert caught.value.partial is not None
    assert caught.value.partial.usage == failed_reply.usage
    assert pickle.loads(pickle.dumps(caught.value)).asked == 3
    server.enqueue(completion("no"), status(500))
    impatient = client.with_options(retry=None)
    with pytest.raises(InternalServerError) as failed:
        await impatient.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1)
    assert failed.value.partial is not None
    assert failed.value.partial.usage is not None
    assert failed.value.partial.usage.total_tokens == 13
    server.enqueue(status(500))
    with pytest.raises(InternalServerError) as failed:
        await impatient.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1)
    assert failed.value.partial is None


async def test_drain_lets_an_invalid_answer_be_sent_back(client: AsyncFriendli, server: FriendliServer) -> None:
    released = asyncio.Event()
    headers = {"Content-Type": "application/json"}
    server.enqueue(script(gate(released), raw(completion("no")), headers=headers), text(INVOICE))
    parsing = asyncio.ensure_future(client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1))
    await server.wait_for_requests()
    drain = asyncio.ensure_future(client.drain())
    await run_loop_iterations()
    released.set()
    assert (await with_timeout(parsing)).asked == 2
    assert await with_timeout(drain) == 0


async def test_responses_are_reasked(client: AsyncFriendli, server: FriendliServer) -> None:
    def response(content: str) -> Any:
        part = {"type": "output_text", "text": content}
        message = {"type": "message", "id": "1", "role": "assistant", "status": "completed", "content": [part]}
        counts = {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13}
        return json_body({"id": "r", "object": "response", "status": "completed", "output": [message], "usage": counts})

    server.enqueue(response("no"), response(INVOICE))
    reply = await client.container.responses.parse(Invoice, input="Hi", reask=1)
    assert (reply.value, reply.asked) == (VALUE, 2)
    assert reply.usage is not None
    assert reply.usage.total_tokens == 26
    assert [item.get("role") for item in last_body(server)["input"]] == ["user", "assistant", "user"]
    assert last_body(server)["text"]["format"]["name"] == "Invoice"


async def test_usage_of_answers_before_a_failure_is_added_to_that_of_its_partial_reply(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    counts = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    message = {"role": "assistant", "content": "no"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    failed = {"choices": [choice], "usage": counts, "error": {"message": "out of memory", "code": 500}}
    server.enqueue(json_body({"choices": [choice], "usage": counts}), json_body(failed))
    with pytest.raises(InternalServerError) as caught:
        await client.with_options(retry=None).serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1)
    assert caught.value.partial is not None
    assert (caught.value.partial.text, caught.value.partial.usage) == ("no", Usage(20, 6, 26))


class Form(pydantic.BaseModel):
    name: str
    age: int
    sizes: list[int]


async def test_all_faults_that_pydantic_finds_are_sent_back(client: AsyncFriendli, server: FriendliServer) -> None:
    right = '{"name": "x", "age": 1, "sizes": []}'
    server.enqueue(text('{"age": "old", "sizes": [1, "y"]}'), text(right))
    reply = await client.serverless.chat.parse(Form, model="m", messages=ASK, reask=1)
    assert (reply.asked, reply.value.name) == (2, "x")
    feedback = last_body(server)["messages"][-1]["content"]
    for path, reason in (("name", "Field required"), ("age", "valid integer"), ("sizes[1]", "valid integer")):
        assert f"(at {path})" in feedback
        assert reason in feedback
    server.enqueue(text('{"name": "x", "age": 1, "sizes": ["y"' + ', "y"' * 29 + "]}"))
    with pytest.raises(OutputInvalidError, match=r"\(at sizes\[9\]\); and 20 more$") as caught:
        await client.serverless.chat.parse(Form, model="m", messages=ASK)
    assert caught.value.path == "sizes[0]"


class Quoting(pydantic.BaseModel):
    lines: list[pydantic.Json[int]]


async def test_invalid_json_inside_a_string_is_reported_with_its_path(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(text('{"lines": ["1", "one"]}'))
    with pytest.raises(OutputInvalidError, match=r"not a valid Quoting: Invalid JSON: .* \(at lines\[1\]\)$"):
        await client.serverless.chat.parse(Quoting, model="m", messages=ASK)


@pytest.mark.parametrize(
    ("kind", "answer", "value"),
    [
        (int, "42", 42),
        (str, '"a"', "a"),
        (str | None, "null", None),
        (list[Line], '[{"sku": "a", "quantity": 1}]', [Line("a", 1)]),
        (list[Model], '[{"name": "a", "sizes": [1]}]', [Model(name="a", sizes=[1])]),
        (list[str], '["\\ud83d"]', ["\ud83d"]),
        (Cat | Dog, '{"type": "cat", "lives": 9}', Cat(9)),
        (Invoice | None, INVOICE, msgspec.json.decode(INVOICE, type=Invoice)),
    ],
    ids=str,
)
async def test_value_without_its_wrapper_is_accepted(
    client: AsyncFriendli, server: FriendliServer, kind: Any, answer: str, value: Any
) -> None:
    server.enqueue(text(answer), scripted(answer, 1))
    chat = client.serverless.chat
    assert (await chat.parse(kind, model="m", messages=ASK)).value == value
    stream = chat.parse_stream(kind, model="m", messages=ASK)
    snapshots = [copy.deepcopy(snapshot) async for snapshot in stream.snapshots()]
    assert (await stream.result()).value == value
    assert snapshots[-1] == json.loads(answer)


async def test_wrapper_with_an_invalid_value_is_not_accepted_as_the_value(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    answer = '{"value": "oops"}'  # as a value without its wrapper, it would match the type
    server.enqueue(text(answer), scripted(answer))
    kind: Any = int | dict[str, str]
    with pytest.raises(OutputInvalidError, match=r"not a valid .*: Expected `int \| object`, got `str`"):
        await client.serverless.chat.parse(kind, model="m", messages=ASK)
    with pytest.raises(OutputInvalidError, match=r"Expected `int \| object`, got `str`"):
        await client.serverless.chat.parse_stream(kind, model="m", messages=ASK).result()


async def test_value_with_a_field_named_like_the_wrapper_is_accepted(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    for answer in ('{"value": 21.5, "unit": "C"}', '{"value": {"value": 21.5, "unit": "C"}}'):
        server.enqueue(text(answer))
        reply = await client.serverless.chat.parse(Reading | None, model="m", messages=ASK)
        assert reply.value == Reading(21.5, "C")


@pytest.mark.parametrize("answer", ['"many"', "[1]", "true", '{"value": "many"}', '{"count": 1}', "many"])
async def test_error_and_feedback_describe_the_wrapper(
    client: AsyncFriendli, server: FriendliServer, answer: str
) -> None:
    server.enqueue(text(answer), text('{"value": 3}'))
    reply = await client.serverless.chat.parse(int, model="m", messages=ASK, reask=1)
    assert (reply.asked, reply.value) == (2, 3)
    feedback = last_body(server)["messages"][-1]["content"]
    assert feedback.endswith('Answer again, with nothing but JSON that fits the schema: {"value": ...}.')


async def test_items_of_a_list_without_its_wrapper_are_yielded(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(scripted('[{"sku": "a", "quantity": 1}, {"sku": "b", "quantity": 2}]', 2))
    stream = client.serverless.chat.parse_stream(list[Line], model="m", messages=ASK)
    assert [item async for item in stream.items("", of=Line)] == [Line("a", 1), Line("b", 2)]
    server.enqueue(scripted(INVOICE, 2))
    invoice = client.serverless.chat.parse_stream(Invoice | None, model="m", messages=ASK)
    assert len([item async for item in invoice.items("lines", of=Line)]) == len(json.loads(INVOICE)["lines"])


async def test_field_with_the_name_of_the_wrapper_is_not_taken_for_the_value(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    class Series(msgspec.Struct):
        unit: str
        value: float
        points: list[int]

    answer = '{"unit": "kg", "value": 1.5, "points": [1, 2]}'
    server.enqueue(scripted(answer, 2), scripted(answer, 2))
    chat: Any = client.serverless.chat  # a union is no type[T]
    stream = chat.parse_stream(Series | None, model="m", messages=ASK)
    snapshots = [copy.deepcopy(snapshot) async for snapshot in stream.snapshots()]
    assert snapshots[-1] == json.loads(answer)
    assert 1.5 not in snapshots
    assert (await stream.result()).value == Series("kg", 1.5, [1, 2])
    stream = chat.parse_stream(Series | None, model="m", messages=ASK)
    assert [item async for item in stream.items("points")] == [1, 2]
    assert last_body(server)["response_format"]["json_schema"]["name"] == "Output"


@pytest.mark.parametrize("bad", ["nope", '{"number": 1, "lines": [], "total": 1}'])
async def test_feedback_of_a_stream_error_is_what_parse_would_send(
    client: AsyncFriendli, server: FriendliServer, bad: str
) -> None:
    server.enqueue(scripted(bad), text(bad), text(INVOICE))
    with pytest.raises(OutputInvalidError) as caught:
        await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()
    await client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=1)
    by_hand = [{"role": "assistant", "content": caught.value.text}, {"role": "user", "content": caught.value.feedback}]
    assert last_body(server)["messages"][1:] == by_hand


async def test_chat_refusal_is_reported_and_not_reasked(client: AsyncFriendli, server: FriendliServer) -> None:
    for text_content in (None, "", "Sorry."):
        message = {"role": "assistant", "content": text_content, "refusal": "I will not"}
        server.enqueue(json_body({"choices": [{"message": message, "finish_reason": "stop"}]}))
        with pytest.raises(OutputInvalidError, match="refused to answer: I will not") as caught:
            await client.serverless.chat.parse(Invoice, model="m", messages=ASK, reask=2)
        reply: Any = caught.value.reply
        assert reply.message.refusal == caught.value.refusal == "I will not"
    assert len(server.requests) == 3
    pieces = [event({"choices": [{"delta": {"refusal": piece}}]}) for piece in ("I ", "will not")]
    for reason in ("stop", "length"):  # a truncated refusal is one, too
        server.enqueue(script(*pieces, finish(reason), done()))
        with pytest.raises(OutputInvalidError, match="refused to answer: I will not") as caught:
            await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()
        assert caught.value.refusal == "I will not"
    server.enqueue(script(*pieces, cut()))
    with pytest.raises(OutputCutOffError) as interrupted:
        await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK).result()
    assert interrupted.value.refusal == "I will not"


async def test_refusal_is_part_of_message_and_is_sent_back_as_content(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(event({"choices": [{"delta": {"refusal": "I will not"}}]}), finish("stop"), done()))
    reply = await client.serverless.chat.stream(model="m", messages=ASK).result()
    assert (reply.text, reply.message.refusal, reply.message.content) == ("", "I will not", None)
    assert reply.message.as_input() == {"role": "assistant", "content": "I will not"}
    for content, sent in ((None, "No"), ("", "No"), ("Sorry.", "Sorry.\n\nNo")):
        assert ChatMessage(content=content, refusal="No").as_input()["content"] == sent


# --- invalid arguments are rejected before a request is sent ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"response_format": {"type": "text"}},
            TypeError,
            "does not accept 'response_format': it is derived from the type",
        ),
        ({"extra_body": {"response_format": None}}, TypeError, "does not accept 'response_format'"),
        ({"n": 2}, ValueError, "supports only one choice"),
        ({"extra_body": {"n": 2}}, ValueError, "supports only one choice"),
        ({"temprature": 1}, TypeError, "temperature"),
        (
            {"schema": {"type": "object"}},
            TypeError,
            "the type of the answer, the first argument, determines its format",
        ),
        ({"max_tokens": "x"}, ValueError, "max_tokens: Expected `int"),
    ],
)
async def test_options_that_conflict_with_parse_are_rejected(
    client: AsyncFriendli, server: FriendliServer, options: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        await client.serverless.chat.parse(Invoice, model="m", messages=ASK, **options)
    with pytest.raises(kind, match=message):
        client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK, **options)
    assert server.requests == []


async def test_invalid_types_paths_and_counts_are_rejected(client: AsyncFriendli, server: FriendliServer) -> None:
    chat: Any = client.serverless.chat
    for kind in (complex, list[complex], Line | Invoice, 1):
        with pytest.raises(TypeError, match="cannot be decoded from JSON"):
            await chat.parse(kind, model="m", messages=ASK)
    for count in (-1, True, "1", 1.0):
        with pytest.raises(ValueError, match="reask"):
            await chat.parse(Invoice, model="m", messages=ASK, reask=count)
    parsings: list[tuple[Any, dict[str, Any]]] = [
        (chat, {"messages": ASK}),
        (client.serverless.responses, {"input": "x"}),
    ]
    not_bools: list[Any] = ["no", 1, None, []]
    for strict in not_bools:
        for parsing, asked in parsings:
            with pytest.raises(ValueError, match="strict: Expected `bool`"):
                await parsing.parse(Invoice, model="m", strict=strict, **asked)
            with pytest.raises(ValueError, match="strict: Expected `bool`"):
                parsing.parse_stream(Invoice, model="m", strict=strict, **asked)
        with pytest.raises(ValueError, match="strict: Expected `bool`"):
            json_schema(Invoice, strict)
    with pytest.raises(TypeError, match="reask"):
        chat.parse_stream(Invoice, model="m", messages=ASK, reask=1)
    with pytest.raises(TypeError, match="does not accept 'text'"):
        await client.serverless.responses.parse(Invoice, model="m", input="x", text={})  # type: ignore[call-overload]  # invalid
    stream = chat.parse_stream(Invoice, model="m", messages=ASK)
    for path in ("line", "total", "lines.sku", "", "number.x", "lines.", ".lines", "..lines"):
        with pytest.raises(ValueError, match=r"no field|not a list"):
            stream.items(path)
    for no_path in (None, 3, ["lines"]):
        with pytest.raises(ValueError, match="items: Expected `str`"):
            stream.items(no_path)
    with pytest.raises(TypeError, match="complex"):
        stream.items("lines", of=complex)
    assert server.requests == []


# --- streams ---------------------------------------------------------------------------------------------------------


async def test_parsed_stream_has_what_plain_streams_have(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(tool_calls(("look", {"at": 1})))
    stream = client.serverless.chat.parse_stream(str, model="m", messages=ASK)
    assert isinstance(stream, ChatStream)
    assert [call.function.name async for call in stream.tool_calls()] == ["look"]
    assert [call.function.name for call in stream.partial.tool_calls] == ["look"]
    response = client.serverless.responses.parse_stream(Invoice, model="m", input="Hi")
    assert isinstance(response, ResponseStream)
    await response.aclose()


async def test_snapshots_grow_with_each_chunk(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(scripted('{"number": "abcd", "lines": [], "total": 12.5}', 4))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        shown = [json.dumps(snapshot) async for snapshot in stream.snapshots()]
    assert shown[:3] == ["{}", '{"number": ""}', '{"number": "abcd"}']
    assert shown[-1] == '{"number": "abcd", "lines": [], "total": 12.5}'
    assert len(shown) == len(set(shown)) == 5  # chunks that add nothing to the value yield no snapshot
    assert (await stream.result()).value == Invoice("abcd", [], 12.5)
    assert stream.outcome == "done"
    assert stream.usage is not None


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        (Any, ' {"a" : [1, {"b": "x\\u00e9"}, [], null], "c": "", "d": {} } '),
        (str, '{"value": "ab" } '),
        (Any, '{"long": "' + "x" * 20_000 + '"}'),
    ],
    ids=["containers", "wrapper", "long string"],
)
async def test_snapshot_differs_from_the_one_before(
    client: AsyncFriendli, server: FriendliServer, kind: Any, answer: str
) -> None:
    server.enqueue(scripted(answer, 1))
    async with client.serverless.chat.parse_stream(kind, model="m", messages=ASK) as stream:
        shown = [json.dumps(snapshot) async for snapshot in stream.snapshots()]
    assert all(new != old for old, new in itertools.pairwise(shown))
    assert json.loads(shown[-1]) == (await stream.result()).value


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_items_are_yielded_once_complete(client: AsyncFriendli, server: FriendliServer, size: int) -> None:
    server.enqueue(scripted(INVOICE, size))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        seen = [(line, len(stream.partial.text)) async for line in stream.items("lines", of=Line)]
    assert [line for line, _ in seen] == VALUE.lines
    assert (await stream.result()).value == VALUE


async def test_first_item_is_yielded_before_rest_arrives(client: AsyncFriendli, server: FriendliServer) -> None:
    release = asyncio.Event()
    server.enqueue(script(chunk(INVOICE[:55]), gate(release), chunk(INVOICE[55:]), finish("stop"), done()))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        items = stream.items("lines", of=Line)
        assert await items.__anext__() == Line("a", 1)
        release.set()
        assert [line async for line in items] == [Line("b", 2)]


async def test_switching_between_views_loses_nothing(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(scripted(INVOICE))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        event_ = await stream.__anext__()
        assert isinstance(event_, ChatChunk)
        await stream.text().__anext__()
        async for line in stream.items("lines"):
            assert line == {"sku": "a", "quantity": 1}
            break
        async for snapshot in stream.snapshots():
            assert snapshot["lines"][0]["sku"] == "a"
            break
        assert [line async for line in stream.items("lines", of=Line)] == VALUE.lines
    assert (await stream.result()).value == VALUE


@pytest.mark.parametrize("first", ["snapshots", "items", "text", "events"])
async def test_views_deliver_what_result_has_read(client: AsyncFriendli, server: FriendliServer, first: str) -> None:
    server.enqueue(scripted(INVOICE))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        items = stream.items("lines", of=Line)
        views: dict[str, Any] = {
            "snapshots": stream.snapshots(),
            "items": items,
            "text": stream.text(),
            "events": stream,
        }
        begun = await anext(views[first])
        assert (await stream.result()).value == VALUE
        assert [item async for item in items] == VALUE.lines[begun == VALUE.lines[0] :]
        assert [item async for item in stream.items("lines", of=Line)] == VALUE.lines
        assert (await stream.result()).value == VALUE


async def test_answer_of_a_stopped_stream_is_cut_off(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk('{"number":'), stall()))
    stream = await client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    await stream.stop()
    with pytest.raises(OutputCutOffError, match="the stream was stopped"):
        await stream.result()


async def test_parsed_stream_can_be_relayed_and_then_validated(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(scripted(INVOICE))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    assert b"[DONE]" in b"".join([piece async for piece in stream.raw()])
    assert (await stream.result()).value == VALUE


async def test_items_of_nested_lists_root_lists_and_pydantic_models(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    class Outer(msgspec.Struct):
        inner: Invoice

    server.enqueue(
        scripted(f'{{"inner": {INVOICE}}}'), scripted('{"value": [1, 2, 3]}'), scripted('{"sizes":[1],"name":""}')
    )
    server.enqueue(scripted('{"a": [4]}'))
    chat = client.serverless.chat
    stream = chat.parse_stream(Outer, model="m", messages=ASK)
    assert [line async for line in stream.items("inner.lines", of=Line)] == VALUE.lines
    assert [n async for n in chat.parse_stream(list[int], model="m", messages=ASK).items("", of=int)] == [1, 2, 3]
    sizes = chat.parse_stream(Model, model="m", messages=ASK).items("sizes", of=int)
    assert [size async for size in sizes] == [1]
    by_name = chat.parse_stream(dict[str, list[int]], model="m", messages=ASK)
    assert [n async for n in by_name.items("a", of=int)] == [4]


class Price(msgspec.Struct):
    amount: Decimal


async def test_amounts_in_items_are_the_decimals_of_the_answer(client: AsyncFriendli, server: FriendliServer) -> None:
    amounts = ["1.10", "0.1", "1234567890123.45", "5", "-2e-30"]
    prices = ", ".join(f'{{"amount": {amount}}}' for amount in amounts)
    server.enqueue(scripted(f'{{"prices": [{prices}]}}', 5))
    stream = client.serverless.chat.parse_stream(Any, model="m", messages=ASK)
    items = [item async for item in stream.items("prices", of=Price)]
    assert [item.amount for item in items] == [Decimal(amount) for amount in amounts]


async def test_items_of_a_list_whose_key_is_repeated_are_those_of_the_last_once_it_begins(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(*[scripted('{"a": [1, 2], "a": [3]}', size) for size in (1, 10_000)])
    streams = [client.serverless.chat.parse_stream(Any, model="m", messages=ASK) for _ in range(2)]
    assert [[item async for item in stream.items("a", of=int)] for stream in streams] == [[1, 2, 3], [3]]


async def test_invalid_item_raises_immediately(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(scripted('{"number": "", "lines": [{"sku": "a", "quantity": 1}, {"sku": 3}], "total": 1}'))
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        items = stream.items("lines", of=Line)
        assert await items.__anext__() == Line("a", 1)
        with pytest.raises(OutputInvalidError, match="Expected `str`") as caught:
            await items.__anext__()
    assert caught.value.path == "lines[1].sku"
    assert caught.value.partial is not None
    assert caught.value.partial.text == caught.value.text


async def test_snapshots_include_what_another_view_has_read(client: AsyncFriendli, server: FriendliServer) -> None:
    answer = {"number": "a", "lines": [{"sku": "b", "quantity": 1}], "total": 1}
    server.enqueue(scripted(json.dumps(answer)))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    assert [item async for item in stream.items("lines", of=Line)] == [Line("b", 1)]
    for _ in range(2):
        assert [snapshot async for snapshot in stream.snapshots()] == [answer]


@pytest.mark.parametrize("view", ["snapshots", "items"])
async def test_view_raises_error_of_invalid_answer(client: AsyncFriendli, server: FriendliServer, view: str) -> None:
    chat = client.serverless.chat

    async def read() -> None:
        stream = chat.parse_stream(Invoice, model="m", messages=ASK)
        async for _ in stream.snapshots() if view == "snapshots" else stream.items("lines"):
            pass

    server.enqueue(
        scripted('{"number": 1, "lines": [], "total": 1}'),
        scripted('{"number": "a', reason="length"),
        scripted('{"a" 1}'),
    )
    with pytest.raises(OutputInvalidError, match="Expected `str`"):
        await read()
    with pytest.raises(OutputCutOffError, match="token limit"):
        await read()
    with pytest.raises(OutputInvalidError, match="not valid JSON: expected a colon, found '1'") as caught:
        await read()
    assert caught.value.partial is not None


@pytest.mark.parametrize("view", ["snapshots", "items"])
async def test_view_closes_stream_of_an_answer_that_is_not_json(
    client: AsyncFriendli, server: FriendliServer, view: str
) -> None:
    server.enqueue(script(chunk("{"), chunk("sorry"), stall()))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    with pytest.raises(OutputInvalidError, match="not valid JSON") as caught:
        async for _ in stream.snapshots() if view == "snapshots" else stream.items("lines"):
            pass
    assert stream.outcome == "failed"
    await server.wait_for_connections(0, timeout=30)
    assert client.gauges().open_streams == 0
    assert caught.value.text == "{sorry"
    assert caught.value.meta is not None
    assert caught.value.partial is not None
    with pytest.raises(OutputInvalidError) as again:
        await stream.result()
    assert str(again.value) == str(caught.value)
    for read in (stream, stream.snapshots(), stream.items("lines")):  # another loop must not look complete
        with pytest.raises(OutputInvalidError):
            _ = [event async for event in read]


async def test_views_of_a_failed_stream_deliver_what_was_read_in_async_with_too(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(script(chunk('{"number": "1", "lines": ['), cut()))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    with pytest.raises(StreamInterruptedError):
        async for _ in stream.text():
            pass
    for _ in range(2):
        async with stream.snapshots() as snapshots:
            assert await anext(snapshots) == {"number": "1", "lines": []}
            with pytest.raises(OutputCutOffError):
                await anext(snapshots)


async def test_invalid_text_of_a_closed_stream_leaves_its_error(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk("sorry"), stall()))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    await anext(stream)
    await stream.aclose()
    with pytest.raises(OutputInvalidError) as caught:
        await anext(stream.snapshots())
    assert caught.value.meta is not None
    assert stream.outcome == "cancelled"
    with pytest.raises(StreamInterruptedError, match="closed"):
        await stream.result()


@pytest.mark.parametrize("way", ["snapshots", "items", "result"])
async def test_interrupted_stream_raises_cut_off_error_with_partial_text(
    client: AsyncFriendli, server: FriendliServer, way: str
) -> None:
    server.enqueue(script(chunk('{"number": "1", "lines": ['), cut()))
    stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
    ways: dict[str, Callable[[], Any]] = {"snapshots": stream.snapshots, "items": lambda: stream.items("lines")}

    async def read() -> None:
        if way == "result":
            await stream.result()
        else:
            async for _ in ways[way]():
                pass

    with pytest.raises(OutputCutOffError) as caught:
        await read()
    assert stream.outcome == "truncated"
    assert caught.value.text == '{"number": "1", "lines": ['
    assert caught.value.partial is not None
    assert caught.value.reply is not None
    assert caught.value.reply.meta.status == 200
    assert caught.value.__context__ is None


@pytest.mark.parametrize("way", ["snapshots", "items", "result"])
async def test_stream_that_ends_before_any_content_raises_cut_off_error(
    client: AsyncFriendli, server: FriendliServer, way: str
) -> None:
    server.enqueue(script(done()))
    chat = client.with_options(retry=None).serverless.chat
    stream = chat.parse_stream(Invoice, model="m", messages=ASK)
    assert stream.partial.text == ""
    ways: dict[str, Callable[[], Any]] = {
        "snapshots": lambda: anext(stream.snapshots()),
        "items": lambda: anext(stream.items("lines")),
        "result": stream.result,
    }
    with pytest.raises(OutputCutOffError) as caught:
        await ways[way]()
    assert (caught.value.reply, caught.value.text) == (None, "")


async def test_closing_view_cancels_stream(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(*(script(chunk('{"number": "'), *(chunk("a") for _ in range(50)), cut()) for _ in range(3)))
    chat = client.serverless.chat
    stream = chat.parse_stream(Invoice, model="m", messages=ASK)
    async with stream.snapshots() as view:
        async for _ in view:
            break
    assert stream.outcome == "cancelled"
    with pytest.raises(StreamInterruptedError):
        await stream.result()
    stream = chat.parse_stream(Invoice, model="m", messages=ASK)
    items = stream.items("lines")
    async for _ in stream.snapshots():
        break
    await items.aclose()
    assert stream.outcome == "cancelled"
    assert [item async for item in items] == []


async def test_dropped_view_closes_stream_without_gc(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(script(chunk('{"number": "1", "lines": [{"sku": 1}, '), chunk("1"), cut()))
    gc.disable()
    try:
        stream = client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK)
        gone = weakref.ref(stream)
        try:
            async for _ in stream.items("lines", of=Line):
                pass
        except OutputError:
            pass
        del stream
        assert gone() is None
        assert client.gauges().open_streams == 0
    finally:
        gc.enable()


async def test_responses_stream_yields_snapshots_and_items(client: AsyncFriendli, server: FriendliServer) -> None:
    def delta(piece: str) -> Any:
        return event({"type": "response.output_text.delta", "delta": piece})

    message = {"type": "message", "id": "1", "role": "assistant", "content": [{"type": "output_text", "text": INVOICE}]}
    last = {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": [message]}}
    server.enqueue(*(script(delta(INVOICE[:40]), delta(INVOICE[40:]), event(last)) for _ in range(2)))
    responses = client.serverless.responses
    async with responses.parse_stream(Invoice, model="m", input="Hi") as stream:
        assert [len(snapshot) async for snapshot in stream.snapshots()] == [2, 3]
    result = await stream.result()
    assert result.value == VALUE
    assert result.meta.status == 200
    items = responses.parse_stream(Invoice, model="m", input="Hi").items("lines", of=Line)
    assert [line.sku async for line in items] == ["a", "b"]


# --- lazy loading ----------------------------------------------------------------------------------------------------


UNUSED = """
import json, sys
import friendli_async
from friendli_async import AsyncFriendli
AsyncFriendli("t")
import friendli_async.chat, friendli_async.responses
print(json.dumps([name for name in sys.modules if name.startswith("friendli_async") and "pars" not in name
    and any(word in name for word in ("structured", "incremental", "schema", "output"))]))
assert friendli_async.chat.json_schema(int) == {"type": "integer"}
assert "pydantic" not in sys.modules
"""


async def test_structured_output_modules_are_loaded_lazily() -> None:
    run = await to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", UNUSED], capture_output=True, text=True, timeout=60, check=False)
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "[]\n")
