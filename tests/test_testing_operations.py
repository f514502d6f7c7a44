"""The embedded server's other operations: default replies and request validation."""

import base64
import json
import struct
from typing import Any, Final

import aiohttp
import pytest
from support.api_client import Client
from support.embedded_server import user

from friendli_async.testing import FriendliServer
from friendli_async.testing.examples import example, fill
from friendli_async.testing.route import Route
from friendli_async.testing.routes import Router
from friendli_async.testing.schema import from_text, validate

ROUTES: Final = {f"{route.method} {route.path}": route for route in Router().routes}
WEATHER: Final = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.fixture
def client(session: aiohttp.ClientSession) -> Client:
    return Client(session)


def route_id(route: Route) -> str:
    return f"{route.method}-{route.path}"


# --- every operation -------------------------------------------------------------------------------------------------


def request_body(schema: str) -> dict[str, Any]:
    """Returns a body that the schema allows; embeddings and classification also require one of two optional fields."""
    return (
        {**example(schema, sparse=True), "input": "Hi"}
        if schema.endswith(("InputsBody", "ClassificationBody")) or ("Embeddings" in schema)
        else example(schema, sparse=True)
    )


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES.values() if route.body and not route.form and "{" not in route.path],
    ids=route_id,
)
async def test_every_operation_replies_according_to_its_schema(client: Client, route: Route) -> None:
    assert route.body
    assert route.reply
    body = request_body(route.body)
    if route.path == "/beta/file":
        body["digest"] = "sha256:" + "0" * 64
    assert validate(route.reply, await client.call_ok(route.method, route.path, body)) == []
    if route.events:
        for name, data in await client.events(route.path, body):
            if data != "[DONE]":
                assert validate(route.events, {"data": data} | ({"event": name} if name else {})) == []


@pytest.mark.parametrize("route", ROUTES.values(), ids=route_id)
async def test_token_is_required_except_by_containers_and_stores(server: FriendliServer, route: Route) -> None:
    free = ("/v1/", "/classify", "/images/", "/uploads/", "/downloads/")
    async with (
        aiohttp.ClientSession(server.url) as session,
        session.request(route.method, route.path.replace("{", "x").replace("}", "")) as response,
    ):
        if route.path.startswith(free) and not route.path.startswith("/v1/team"):
            assert response.status != 401
        else:
            assert response.status == 401


@pytest.mark.parametrize("route", [route for route in ROUTES.values() if route.body and not route.form], ids=route_id)
async def test_body_of_wrong_type_is_rejected(client: Client, route: Route) -> None:
    status, reply = await client.call(route.method, route.path, [])
    assert status == 422
    named = reply["type"] == "error" if route.path.endswith("/messages") else reply["detail"][0]["loc"][0] == "body"
    assert named


# --- tokens, rendering, embeddings, classes, models ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["/serverless", "/dedicated", ""])
async def test_tokenize_and_detokenize_round_trip(client: Client, prefix: str) -> None:
    text = "Héllo\n 🙂 \x00 wörld"
    tokens = (await client.call_ok("POST", f"{prefix}/v1/tokenize", {"model": "m", "prompt": text}))["tokens"]
    assert len(tokens) == len(text)
    assert await client.call_ok("POST", f"{prefix}/v1/detokenize", {"model": "m", "tokens": tokens}) == {"text": text}


async def test_rendered_chat_has_roles_text_and_tools(client: Client) -> None:
    body = {"model": "m", "messages": [user("Hi")], "tools": [{"type": "function", "function": WEATHER}]}
    rendered = (await client.call_ok("POST", "/dedicated/v1/chat/render", body))["text"]
    assert rendered == "<|tool|>\nweather\n<|user|>\nHi\n<|assistant|>\n"


async def test_embeddings_depend_only_on_the_text(client: Client) -> None:
    async def vectors(**body: object) -> list[Any]:
        reply = await client.call_ok("POST", "/dedicated/v1/embeddings", {"model": "m", **body})
        return [item["embedding"] for item in reply["data"]]

    first, second, again = await vectors(input=["a", "b", "a"])
    assert first == again != second
    assert sum(value * value for value in first) == pytest.approx(1, abs=1e-4)
    assert await vectors(input="a") == await vectors(tokens=[ord("a")]) == [first]
    [packed] = await vectors(input="a", encoding_format="base64")
    assert struct.unpack("<16f", base64.b64decode(packed)) == pytest.approx(first)


async def test_class_probabilities_sum_to_one(client: Client) -> None:
    reply = await client.call_ok("POST", "/classify", {"input": ["good", "bad"]})
    assert [item["index"] for item in reply["data"]] == [0, 1]
    for item in reply["data"]:
        assert sum(item["probs"]) == pytest.approx(1, abs=1e-4)
        assert item["num_classes"] == len(item["probs"]) == 3
    assert (await client.call_ok("POST", "/classify", {"tokens": [103, 111, 111, 100]}))["data"][0] == reply["data"][0]


@pytest.mark.parametrize("path", ["/classify", "/dedicated/v1/embeddings"])
async def test_missing_input_and_tokens_is_rejected(client: Client, path: str) -> None:
    status, reply = await client.call("POST", path, {"model": "m"})
    assert (status, reply["detail"][0]["loc"]) == (422, ["body", "input"])


async def test_model_list_has_models(client: Client) -> None:
    reply = await client.call_ok("GET", "/serverless/v1/models")
    assert validate("ServerlessModelListSuccess", reply) == []
    assert [model["reasoning"] for model in reply["data"]] == [False, True]


# --- completions -----------------------------------------------------------------------------------------------------


async def test_completion_echoes_each_prompt_n_times(client: Client) -> None:
    body = {"prompt": ["one two", "three"], "n": 2, "logprobs": 2, "max_tokens": 1}
    reply = await client.call_ok("POST", "/v1/completions", body)
    choices = reply["choices"]
    assert [choice["text"] for choice in choices] == ["one ", "(2) ", "three", "(2) "]
    assert [choice["finish_reason"] for choice in choices] == ["length", "length", "stop", "length"]
    assert choices[2]["tokens"] == list(map(ord, "three"))
    assert choices[0]["logprobs"]["top_logprobs"] == [{"one ": -0.125, "one 1": -1.125}]
    assert reply["usage"]["completion_tokens"] == 4


async def test_streamed_completion_matches_plain_one(client: Client) -> None:
    body = {"prompt": "one two ", "seed": 3, "logprobs": 1}
    whole = await client.call_ok("POST", "/v1/completions", body)
    *chunks, (_, last) = await client.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert last == "[DONE]"
    choices = [choice for _, chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"] == "one two "
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    assert choices[1]["logprobs"]["text_offset"] == [4]
    assert chunks[-1][1]["usage"] == whole["usage"]


async def test_completion_takes_either_prompt_or_tokens(client: Client) -> None:
    reply = await client.call_ok("POST", "/v1/completions", {"tokens": list(map(ord, "hi"))})
    assert reply["choices"][0]["text"] == "hi"
    assert (await client.call("POST", "/v1/completions", {"tokens": [1], "prompt": "x"}))[0] == 422
    assert (await client.call("POST", "/v1/completions", {}))[0] == 422


# --- messages --------------------------------------------------------------------------------------------------------


def message_body(**options: object) -> dict[str, Any]:
    return {"model": "m", "messages": [user("one two three")], "max_tokens": 100, **options}


@pytest.mark.parametrize("thinking", [{"type": "enabled", "budget_tokens": 9}, {"type": "adaptive"}])
async def test_streamed_messages_send_six_event_types_in_order(client: Client, thinking: dict[str, Any]) -> None:
    tools = [{"name": "f", "input_schema": WEATHER["parameters"]}, {"name": "g"}]
    body = message_body(thinking=thinking, tools=tools, tool_choice={"type": "any"})
    whole = await client.call_ok("POST", "/v1/messages", body)
    assert [block["type"] for block in whole["content"]] == ["thinking", "tool_use", "tool_use"]
    events = await client.events("/v1/messages", body)
    assert all(name == data["type"] for name, data in events)
    kinds = list(dict.fromkeys(name for name, _ in events))
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    deltas = [data for name, data in events if name == "content_block_delta"]
    thought = "".join(each["delta"].get("thinking", "") for each in deltas)
    assert thought == whole["content"][0]["thinking"]
    arguments = "".join(each["delta"]["partial_json"] for each in deltas if each["index"] == 1)
    assert json.loads(arguments) == whole["content"][1]["input"] == {"city": "one two three"}
    assert events[-2][1]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("options", "text", "stop"),
    [
        ({}, "You said: one two three", "end_turn"),
        ({"max_tokens": 2}, "You said: ", "max_tokens"),
        ({"max_tokens": None}, "You said: one two three", "end_turn"),
        ({"messages": []}, "Hello! How can I help?", "end_turn"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "auto"}}, "You said: one two three", "end_turn"),
        ({"messages": [user([{"type": "text", "text": "a"}])]}, "You said: a", "end_turn"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"const": 1}}}}, "1", "end_turn"),
    ],
)
async def test_messages_answer_the_last_user_message(
    client: Client, options: dict[str, Any], text: str, stop: str
) -> None:
    whole = await client.call_ok("POST", "/v1/messages", message_body(**options))
    assert (whole["content"][0]["text"], whole["stop_reason"]) == (text, stop)
    streamed = await client.events("/v1/messages", message_body(**options))
    assert "".join(data["delta"].get("text", "") for _, data in streamed if "delta" in data) == text


async def test_messages_call_the_named_tool_and_echo_its_result(client: Client) -> None:
    tools = {"tools": [{"name": "f"}, {"name": "g"}]}
    named = await client.call_ok(
        "POST", "/v1/messages", message_body(**tools, tool_choice={"type": "tool", "name": "g"})
    )
    assert [block["name"] for block in named["content"]] == ["g"]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    first = await client.call_ok("POST", "/v1/messages", message_body(**tools, tool_choice=choice))
    assert [block["name"] for block in first["content"]] == ["f"]
    result = user([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]}])
    second = await client.call_ok("POST", "/v1/messages", message_body(messages=[result], **tools))
    assert second["content"] == [{"type": "text", "text": "The tool says: 42"}]
    form = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    typed = await client.call_ok("POST", "/v1/messages", message_body(messages=[result], **tools, output_config=form))
    assert [block["type"] for block in typed["content"]] == ["text"]


async def test_messages_errors_have_the_messages_format(client: Client) -> None:
    status, reply = await client.call("POST", "/serverless/v1/messages", {"messages": [{"role": "robot"}]})
    assert status == 422
    assert validate("MessagesErrorResponseData", reply) == []
    assert "body.model: Field required" in reply["error"]["message"]


# --- responses -------------------------------------------------------------------------------------------------------


async def test_streamed_responses_are_numbered_and_cover_every_item(client: Client) -> None:
    body = {
        "input": [{"role": "user", "content": "Oslo"}],
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", **WEATHER}, {"type": "custom", "name": "c"}],
        "tool_choice": {"type": "function", "name": "weather"},
    }
    whole = await client.call_ok("POST", "/v1/responses", body)
    assert [item["type"] for item in whole["output"]] == ["reasoning", "function_call"]
    assert json.loads(whole["output"][1]["arguments"]) == {"city": "Oslo"}
    events = await client.events("/v1/responses", body)
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert all(name == data["type"] for name, data in events)
    assert list(dict.fromkeys(str(name) for name, _ in events)) == [
        f"response.{kind}"
        for kind in (
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "completed",
        )
    ]
    arguments = "".join(data["delta"] for name, data in events if str(name).endswith("arguments.delta"))
    assert arguments == whole["output"][1]["arguments"]
    assert events[-1][1]["response"]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "You said: one two"),
        ({"input": []}, "Hello! How can I help?"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "Hello! How can I help?"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, "You said: a"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "42"}]}, "The tool says: 42"),
        ({"text": {"format": {"type": "json_object"}}}, '{"answer": "You said: one two"}'),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": 1}}}}, "1"),
        ({"tools": [{"type": "function", **WEATHER}], "tool_choice": "auto"}, "You said: one two"),
    ],
)
async def test_responses_answer_the_last_user_message(client: Client, options: dict[str, Any], text: str) -> None:
    body = {"input": "one two", **options}
    whole = await client.call_ok("POST", "/v1/responses", body)
    assert whole["output"][0]["content"] == [{"type": "output_text", "text": text}]
    assert (whole["status"], whole["incomplete_details"]) == ("completed", None)
    deltas = [data["delta"] for name, data in await client.events("/v1/responses", body) if "delta" in str(name)]
    assert "".join(deltas) == text


async def test_truncated_response_is_incomplete(client: Client) -> None:
    body = {"input": "one two", "max_output_tokens": 2}
    whole = await client.call_ok("POST", "/v1/responses", body)
    assert (whole["status"], whole["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    *_, (name, data) = await client.events("/v1/responses", body)
    assert (name, data["response"]["output"][0]["status"]) == ("response.incomplete", "incomplete")


@pytest.mark.parametrize(("parallel", "count"), [(True, 2), (False, 1)])
async def test_several_functions_are_called_only_if_parallel(client: Client, parallel: bool, count: int) -> None:
    tools = [{"type": "function", **WEATHER}, {"type": "function", **WEATHER}]
    body = {"input": "x", "tools": tools, "tool_choice": "required", "parallel_tool_calls": parallel}
    assert len((await client.call_ok("POST", "/v1/responses", body))["output"]) == count
    after = {**body, "input": [{"type": "function_call_output", "call_id": "c", "output": "42"}] * 2}
    assert (await client.call_ok("POST", "/v1/responses", after))["output"][0]["type"] == "function_call"


async def test_required_functions_are_called_one_after_another(client: Client) -> None:
    tools = [{"type": "function", **WEATHER, "name": name} for name in ("a", "b", "c")]
    items: list[dict[str, Any]] = [user("x")]
    for name in ("a", "b", "c"):
        body = {"input": items, "tools": tools, "tool_choice": "required"}
        [call] = (await client.call_ok("POST", "/v1/responses", body))["output"]
        assert call["name"] == name
        items += [call, {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}]


async def test_required_tools_of_messages_are_called_one_after_another(client: Client) -> None:
    tools = [{"name": name} for name in ("a", "b", "c")]
    messages: list[dict[str, Any]] = [user("x")]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    for name in ("a", "b", "c"):
        body = {"messages": messages, "max_tokens": 50, "tools": tools, "tool_choice": choice}
        [call] = (await client.call_ok("POST", "/v1/messages", {"model": "m", **body}))["content"]
        assert call["name"] == name
        result = {"type": "tool_result", "tool_use_id": call["id"], "content": "42"}
        messages += [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]


@pytest.mark.parametrize(
    ("path", "body", "tool"),
    [
        ("/v1/messages", {"messages": [user("The weather, please")], "max_tokens": 50}, {"name": "weather"}),
        ("/v1/responses", {"input": "The weather, please"}, {"type": "function", **WEATHER}),
    ],
)
async def test_tool_that_the_last_message_mentions_is_used(
    client: Client, path: str, body: dict[str, Any], tool: dict[str, Any]
) -> None:
    async def kinds(**options: object) -> list[str]:
        reply = await client.call_ok("POST", path, {"model": "m", **body, **options})
        return [item["type"] for item in reply.get("content") or reply["output"]]

    [used] = await kinds(tools=[tool, {**tool, "name": "clock"}])
    assert used in {"tool_use", "function_call"}
    off: object = {"type": "none"} if "messages" in body else "none"
    [answered] = await kinds(tools=[tool], tool_choice=off)
    assert answered in {"text", "message"}


# --- schemas and examples --------------------------------------------------------------------------------------------


def test_strings_are_coerced_to_schema_types() -> None:
    query = {"limit": ["3"], "group_by": ["model", "user_id"], "page": ["7"], "other": ["x"], "models": []}
    assert from_text("UsageQuery", query) == {
        "limit": 3,
        "group_by": ["model", "user_id"],
        "page": "7",
        "other": "x",
        "models": [],
    }
    form = {"stream": ["maybe"], "temperature": ["1e-3"], "language": ["en", "ko"]}
    assert from_text("ServerlessAudioTranscriptionBody", form) == {
        "stream": "maybe",
        "temperature": 0.001,
        "language": "ko",
    }


def test_error_refers_to_closest_union_member() -> None:
    errors = validate("ContainerResponsesBody", {"input": [{"type": "function_call_output", "output": "x"}]})
    assert errors == [{"loc": ["body", "input", 0, "call_id"], "msg": "Field required", "type": "missing"}]


def test_map_values_are_validated() -> None:
    errors = validate("DedicatedEndpointListResponse", {"data": {"e": {"status": "RUNNING"}}})
    assert errors[0]["loc"] == ["body", "data", "e", "createdAt"]


def test_examples_cover_optional_null_extra_and_unknown_values() -> None:
    full = example("DedicatedEndpointStatus", 1)
    assert (full["status"], full["phase"]) == ("INITIALIZING", "DOWNLOADING_MODEL")
    assert set(example("DedicatedEndpointStatus", sparse=True)) == {"status", "createdAt"}
    assert example("DedicatedEndpointStatus", nulls=True)["phase"] is None
    assert set(example("DedicatedEndpointStatus", extra=True)) - set(full) == {"new_text", "new_object", "new_null"}
    assert example("DedicatedEndpointStatus", novel=True)["status"] == "a new status"
    assert example("MessagesStreamContentBlockStart", novel=True)["content_block"] == {"type": "a new kind"}
    assert fill("PricingModel", input="1")["input"] == "1"
