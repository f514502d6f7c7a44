"""Arguments of calls: rejected ones and their error messages, and the bodies sent for accepted ones."""

import collections
import dataclasses
import decimal
import enum
import json
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pydantic
import pytest
from support.sockets import MESSAGES, open_stream

import friendli_async as f
from friendli_async.chat import (
    AssistantMessage,
    ChatChoice,
    ChatMessage,
    Function,
    ImageContent,
    Media,
    SystemMessage,
    TextContent,
    Tool,
    ToolMessage,
    UserMessage,
    json_schema,
)
from friendli_async.testing import FriendliServer, json_body, status, text
from friendli_async.tools import tool

SEED: Final = "tool_assisted_completion_request_body"
CHAT_APIS: Final = ["serverless.chat", "dedicated.chat", "container.chat", "serverless.tool_assisted_chat"]


@pytest.fixture
def client_options() -> dict[str, Any]:
    return {"retry": f.RetryPolicy()}


def resource(client: f.AsyncFriendli, api: str) -> Any:
    deployment, group = api.split(".")
    return getattr(getattr(client, deployment), group)


async def send(client: f.AsyncFriendli, **options: Any) -> f.ChatCompletion:
    return await client.serverless.chat.complete(**{"model": "m", "messages": MESSAGES, **options})


def sent(server: FriendliServer) -> Any:
    return server.requests[-1].json


# --- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", CHAT_APIS)
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("temprature", "'temperature'"),
        ("max_token", "'max_tokens'"),
        ("topp", "'top_p'"),
        ("quite_unlike_anything", "extra_body"),
    ],
)
async def test_unknown_keyword_is_a_type_error_with_a_suggestion(
    client: f.AsyncFriendli, server: FriendliServer, api: str, keyword: str, hint: str
) -> None:
    chat = resource(client, api)
    with pytest.raises(TypeError, match=keyword) as raised:
        await chat.complete(model="m", messages=MESSAGES, **{keyword: 1})
    assert hint in str(raised.value)
    with pytest.raises(TypeError, match=keyword) as raised:  # at the call, not at the first use
        chat.stream(model="m", messages=MESSAGES, **{keyword: 1})
    assert hint in str(raised.value)
    assert server.requests == []


async def test_required_parameters_are_keyword_only(client: f.AsyncFriendli, server: FriendliServer) -> None:
    chat: Any = client.serverless.chat
    for arguments, keywords in ((("m", MESSAGES), {}), ((), {"model": "m"}), ((), {"messages": MESSAGES})):
        with pytest.raises(TypeError):
            chat.stream(*arguments, **keywords)
        with pytest.raises(TypeError):
            await chat.complete(*arguments, **keywords)
    assert server.requests == []


# --- values ----------------------------------------------------------------------------------------------------------

CYCLE: Final[list[object]] = []
CYCLE.append(CYCLE)

BAD: Final[list[tuple[dict[str, object], str]]] = [
    ({"model": None}, "model"),
    ({"model": 3}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": b"Hi"}, "messages"),
    ({"messages": {"role": "user", "content": "Hi"}}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [*MESSAGES, {"content": "no role"}]}, "messages[1]"),
    ({"messages": [*MESSAGES, *MESSAGES, {"role": "usr", "content": "x"}]}, "messages[2].role"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "Hi", 5: "key"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}]},
        "messages[0].content[0].image_url.url",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {}}]}]},
        "messages[0].tool_calls[0].function",
    ),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"n": "2"}, "n"),
    ({"logprobs": 1}, "logprobs"),
    ({"stop": 5}, "stop"),
    ({"stop": ["a", 1]}, "stop[1]"),
    ({"seed": "x"}, "seed"),
    ({"seed": [1, "x"]}, "seed[1]"),
    ({"eos_token": [1, None]}, "eos_token[1]"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"logit_bias": {5: 1.0}}, "logit_bias"),
    ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    ({"tool_choice": {"type": "function"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "function": {"name": "f"}}}, "tool_choice.type"),
    ({"tools": {"type": "function"}}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0]"),
    ({"tools": [{"type": "web:search"}]}, "tools[0].type"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0]"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "regex"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"type": "object"}}}, "response_format.json_schema"),
    ({"response_format": "json_object"}, "response_format"),
    ({"reasoning_effort": 3}, "reasoning_effort"),
    ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
    ({"extra_body": [1]}, "extra_body"),
    ({"extra_body": "x"}, "extra_body"),
    ({"extra_body": 5}, "extra_body"),
    ({"extra_body": {"stream": True}}, "extra_body.stream"),
    ({"extra_query": [1]}, "extra_query"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"extra_body": {"deep": [0, {"x": float("nan")}]}}, "deep[1].x"),
    ({"extra_body": {"x": object()}}, "x"),
    ({"extra_body": {"x": b"bytes"}}, "x"),
    ({"extra_body": {"x": memoryview(b"bytes")}}, "x"),
    ({"extra_body": {"x": {1, 2}}}, "x"),
    ({"extra_body": {"x": 1j}}, "x"),
    ({"extra_body": {"x": {3: "key"}}}, "x"),
    ({"extra_body": {"x": CYCLE}}, "x"),
    ({"messages": [{"role": "user", "content": "Hi", "more": float("-inf")}]}, "messages[0].more"),
    ({"messages": [{"role": "user", "content": "Hi", "more": CYCLE}]}, "messages[0].more"),
    ({"chat_template_kwargs": {"now": object()}}, "chat_template_kwargs.now"),
]


@pytest.mark.parametrize(("options", "path"), BAD, ids=[f"{path}-{number}" for number, (_, path) in enumerate(BAD)])
async def test_invalid_value_is_a_value_error_with_its_path(
    client: f.AsyncFriendli, server: FriendliServer, options: dict[str, object], path: str
) -> None:
    chat: Any = client.serverless.chat
    keywords = {"model": "m", "messages": MESSAGES, **options}
    with pytest.raises(ValueError, match=r".") as raised:
        await chat.complete(**keywords)
    assert str(raised.value).startswith((f"{path}:", f"{path}["))
    with pytest.raises(ValueError, match=r".") as streamed:  # at the call, not at the first use
        chat.stream(**keywords)
    assert str(streamed.value) == str(raised.value)
    assert not isinstance(raised.value, f.FriendliError)
    assert server.requests == []


@pytest.mark.parametrize("extra_body", [5, "x", [1]])
async def test_invalid_extra_body_is_a_value_error_of_every_method_that_looks_into_it(
    client: f.AsyncFriendli, extra_body: Any
) -> None:
    group: Any = client.serverless
    chat: Any = {"model": "m", "messages": MESSAGES, "extra_body": extra_body}
    text: Any = {"model": "m", "extra_body": extra_body}
    calls: list[Callable[[], object]] = [
        lambda: group.chat.parse_stream(int, **chat),
        lambda: group.chat.run(tools=[], **chat),
        lambda: group.tool_assisted_chat.stream(**chat),
        lambda: group.completions.stream(prompt="x", **text),
        lambda: group.responses.parse_stream(int, input="x", **text),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^extra_body: Expected"):
            call()


@pytest.mark.parametrize(
    "value", [object(), b"x", float("nan"), {"a": 1}, "\ud83d"], ids=["object", "bytes", "nan", "mapping", "surrogate"]
)
async def test_invalid_query_value_is_named(client: f.AsyncFriendli, server: FriendliServer, value: object) -> None:
    with pytest.raises(ValueError, match=r"extra_query.*part"):
        await send(client, extra_query={"part": value})
    with pytest.raises(ValueError, match=r"extra_query.*part"):  # at the call, not at the first use
        client.serverless.chat.stream(model="m", messages=MESSAGES, extra_query={"part": value})
    assert server.requests == []


SEED_BAD: Final[list[tuple[object, str]]] = [
    (None, SEED),
    ("text", SEED),
    ([1], SEED),
    ({"messages": MESSAGES}, "model"),
    ({"model": "m"}, "messages"),
    ({"model": 1, "messages": MESSAGES}, f"{SEED}.model"),
    ({"model": "m", "messages": MESSAGES, "stream": "no"}, f"{SEED}.stream"),
    ({"model": "m", "messages": MESSAGES, "stream": 0}, f"{SEED}.stream"),
    ({"model": "m", "messages": [{"role": "usr"}]}, f"{SEED}.messages[0].role"),
    ({"model": "m", "messages": MESSAGES, "tools": [{"type": 5}]}, f"{SEED}.tools[0].type"),
    ({"model": "m", "messages": MESSAGES, "tools": [{"type": "function"}]}, f"{SEED}.tools[0]"),
    ({"model": "m", "messages": MESSAGES, "tools": [{"type": "file:text"}]}, f"{SEED}.tools[0]"),
    ({"model": "m", "messages": MESSAGES, "top_p": float("nan")}, "top_p"),
]


@pytest.mark.parametrize(
    ("body", "path"), SEED_BAD, ids=[f"{path}-{number}" for number, (_, path) in enumerate(SEED_BAD)]
)
async def test_seed_operation_rejects_invalid_body_with_its_path(
    client: f.AsyncFriendli, server: FriendliServer, body: Any, path: str
) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    assert path in str(raised.value)
    assert server.requests == []


async def test_seed_operation_rejects_invalid_settings(client: f.AsyncFriendli, server: FriendliServer) -> None:
    seed: Any = client.serverless.tool_assisted_chat_completion
    body = {"model": "m", "messages": MESSAGES}
    for settings in (
        {"x_friendli_team": "a\r\nX-Evil: 1"},
        {"x_friendli_team": ""},
        {"x_friendli_team": " "},
        {"x_friendli_team": 5},
        {"retries": 3},
        {"server_url": "nowhere"},
        {"server_url": "http://u:p@host"},
    ):
        with pytest.raises(f.ConfigurationError):
            seed(tool_assisted_completion_request_body=body, **settings)
    with pytest.raises(TypeError):
        seed(body)
    assert server.requests == []


async def test_seed_operation_without_stream_cannot_be_iterated(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    body = {"model": "m", "messages": MESSAGES, "stream": False}
    call = client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    with pytest.raises(TypeError, match="stream"):
        aiter(call)
    with pytest.raises(TypeError, match="stream"):
        await call.__aenter__()
    assert isinstance(await call, f.ChatCompletion)
    assert len(server.requests) == 1


async def test_unknown_tool_type_is_sent_to_the_server(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    tools: list[Any] = [{"type": "math:abacus", "beads": 10}, Tool(Function("now")), {"type": "web:search"}]
    body = {"model": "m", "messages": MESSAGES, "tools": tools, "stream": False}
    await client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    await client.serverless.tool_assisted_chat.complete(model="m", messages=MESSAGES, tools=tools)
    expected = [tools[0], {"type": "function", "function": {"name": "now"}}, tools[2]]
    assert [request.json["tools"] for request in server.requests] == [expected, expected]


# --- accepted arguments ----------------------------------------------------------------------------------------------

TWO_BLOCKS: Final = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": "u"}}]
DICTS: Final[list[Mapping[str, object]]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": TWO_BLOCKS},
    {"role": "assistant", "content": "I see.", "name": "a"},
    {"role": "tool", "content": "4", "tool_call_id": "c1"},
]
STRUCTS: Final = [
    SystemMessage("Be brief."),
    UserMessage([TextContent("See"), ImageContent(Media("u"))]),
    AssistantMessage("I see.", name="a"),
    ToolMessage("4", "c1"),
]


@pytest.mark.parametrize(
    "messages",
    [
        DICTS,
        tuple(DICTS),
        STRUCTS,
        tuple(STRUCTS),
        [DICTS[0], STRUCTS[1], DICTS[2], STRUCTS[3]],
        [types.MappingProxyType(message) for message in DICTS],
        [collections.OrderedDict(message) for message in DICTS],
        [collections.ChainMap(dict(message)) for message in DICTS],
        collections.deque(DICTS),
        collections.UserList(DICTS),
        [DICTS[0], {**DICTS[1], "content": collections.deque(TWO_BLOCKS)}, *DICTS[2:]],
    ],
    ids=[
        "dicts",
        "tuple",
        "structs",
        "tuple of structs",
        "mixed",
        "proxies",
        "ordered",
        "chain maps",
        "deque",
        "UserList",
        "deque of blocks",
    ],
)
async def test_messages_accept_any_sequence_of_mappings_and_structs(
    client: f.AsyncFriendli, server: FriendliServer, messages: Any
) -> None:
    await send(client, messages=messages)
    assert sent(server)["messages"] == DICTS


@pytest.mark.parametrize("option", ["logit_bias", "extra_body", "extra_query"])
@pytest.mark.parametrize("value", [collections.UserList(), collections.deque([1]), np.array([1])], ids=type)
async def test_sequence_in_place_of_a_mapping_is_rejected(
    client: f.AsyncFriendli, server: FriendliServer, option: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"{option}: |arguments: ndarray is not JSON serializable$"):
        await send(client, **{option: value})
    assert server.requests == []


class _More(msgspec.Struct):
    model: str = "m"
    messages: Any = ()
    limit: int = 5


async def test_struct_in_place_of_a_mapping_is_sent(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    await send(client, extra_body=_More(messages=[{"role": "user", "content": "x"}]), extra_query=_More(messages=[1]))
    assert (sent(server)["limit"], server.requests[-1].query["limit"]) == (5, ["5"])
    body: Any = _More(messages=MESSAGES)
    await client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    assert (sent(server)["limit"], sent(server)["messages"]) == (5, MESSAGES)
    query: Any = _More(messages=[1])
    server.enqueue(json_body({"data": {}}))
    await client.dedicated.endpoint.list(extra_query=query)
    assert server.requests[-1].query["limit"] == ["5"]


async def test_single_stop_string_is_sent_as_a_list(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    await send(client, stop="END")
    await client.serverless.chat.stream(model="m", messages=MESSAGES, stop="END").result()
    await client.serverless.tool_assisted_chat.complete(model="m", messages=MESSAGES, stop="END")
    server.always(None)
    await client.serverless.completions.complete(model="m", prompt="Hi", stop="END")
    assert [request.json_object["stop"] for request in server.requests] == [["END"]] * 4


async def test_options_accept_any_mapping_or_sequence(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    proxy = types.MappingProxyType
    function = {"name": "f", "parameters": {"type": "object"}}
    await send(
        client,
        stop=("a", "b"),
        seed=(1, 2),
        logit_bias=proxy({"5": 1.0}),
        chat_template_kwargs=proxy({"deep": proxy({"x": (1, 2)})}),
        tools=(proxy({"type": "function", "function": proxy(function)}), Tool(Function("g"))),
        tool_choice=proxy({"type": "function", "function": proxy({"name": "f"})}),
        extra_body=proxy({"more": proxy({"y": collections.deque([1])})}),
        extra_query=proxy({"q": ("a", 1, True, 0.5, None)}),
    )
    assert sent(server) == {
        "model": "m",
        "messages": MESSAGES,
        "stop": ["a", "b"],
        "seed": [1, 2],
        "logit_bias": {"5": 1.0},
        "chat_template_kwargs": {"deep": {"x": [1, 2]}},
        "tools": [{"type": "function", "function": function}, {"type": "function", "function": {"name": "g"}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "more": {"y": [1]},
    }
    assert server.requests[-1].query == {"q": ["a", "1", "true", "0.5"]}


class StrSubclass(str):
    """A string type as in template engines and ORMs."""


class IntSubclass(int):
    pass


class FloatSubclass(float):
    """A float type like numpy.float64."""


async def test_str_subclass_is_sent_as_string(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    await send(client, model=StrSubclass("model"), messages=[{"role": "user", "content": StrSubclass("text")}])
    assert sent(server) == {"model": "model", "messages": [{"role": "user", "content": "text"}]}


@pytest.mark.parametrize(
    "value", [StrSubclass("text"), IntSubclass(5), FloatSubclass(0.5)], ids=["str", "int", "float"]
)
async def test_builtin_subclass_in_extra_body_is_sent_as_its_value(
    client: f.AsyncFriendli, server: FriendliServer, value: object
) -> None:
    await send(client, extra_body={"x": value})
    assert sent(server)["x"] == value


async def test_unknown_nested_keys_are_kept(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    message = {"role": "user", "content": [{"type": "text", "text": "x", "cache": {"ttl": 5}}], "vendor": [1, None]}
    tool = {"type": "function", "function": {"name": "f", "strict": True}, "vendor": 1}
    await send(client, messages=[message], tools=[tool], stream_options={"include_usage": True, "vendor": 1})
    assert sent(server)["messages"] == [message]
    assert sent(server)["tools"] == [tool]
    assert sent(server)["stream_options"] == {"include_usage": True, "vendor": 1}


async def test_none_is_sent_as_null_and_omitted_parameters_are_not_sent(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    await send(client, temperature=None, stop=None)
    assert server.requests[-1].body == (
        b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"temperature":null,"stop":null}'
    )
    await client.container.chat.complete(model=None, messages=MESSAGES)
    assert sent(server) == {"messages": MESSAGES}


async def test_extra_body_overrides_parameters(client: f.AsyncFriendli, server: FriendliServer) -> None:
    await send(client, temperature=0.5, extra_body={"temperature": 1, "guided": {"grammar": None}})
    assert sent(server) == {"model": "m", "messages": MESSAGES, "temperature": 1, "guided": {"grammar": None}}


async def test_body_is_compact_utf8_and_lone_surrogates_are_escaped(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    server.always(text("ok"))
    await send(client, messages=[{"role": "user", "content": "é漢😀\u2028"}])
    assert server.requests[-1].body == ('{"model":"m","messages":[{"role":"user","content":"é漢😀\u2028"}]}'.encode())
    await send(client, messages=[{"role": "user", "content": "half \ud83d"}])
    assert b'"half \\ud83d"' in server.requests[-1].body
    assert sent(server)["messages"][0]["content"] == "half \ud83d"


async def test_lone_surrogates_in_names_are_escaped(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    message = {"role": "user", "content": "a", "na\ud800me": {"\udc00": "\ud83d"}}
    await send(client, messages=[message], extra_body={"\ud800": 1})
    assert (sent(server)["messages"], sent(server)["\ud800"]) == ([message], 1)


async def test_value_with_a_lone_surrogate_where_the_api_has_names_is_rejected_with_its_path(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    with pytest.raises(f.ArgumentError, match="Invalid value 'us\ufffd'") as caught:
        await send(client, messages=[{"role": "us\ud800", "content": "a"}])
    assert caught.value.path == "messages[0].role"
    for refused in (
        lambda: client.dedicated.endpoint.get_spec("a\ud800"),
        lambda: send(client, extra_query={"a\ud800": "1"}),
    ):
        with pytest.raises(f.ArgumentError):
            await refused()
    assert server.requests == []


async def test_subclasses_of_str_may_be_names(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    names = {Role.USER: 1, np.str_("b"): {Role.USER: 2}}
    messages = [{np.str_("role"): "user", np.str_("content"): "a", **names}]
    await send(client, messages=messages, extra_body=names)
    plain = {"user": 1, "b": {"user": 2}}
    assert sent(server)["messages"] == [{"role": "user", "content": "a", **plain}]
    assert {name: sent(server)[name] for name in plain} == plain


async def test_arguments_are_captured_at_the_call(client: f.AsyncFriendli, server: FriendliServer) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "before"}]
    query = {"q": "before"}
    stream = client.serverless.chat.stream(model="m", messages=messages, extra_query=query)
    messages[0]["content"] = "after"
    messages.append({"role": "user", "content": "later"})
    query["q"] = "after"
    await stream.result()
    assert sent(server)["messages"] == [{"role": "user", "content": "before"}]
    assert server.requests[-1].query == {"q": ["before"]}


async def test_arguments_are_not_mutated(client: f.AsyncFriendli) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": [{"type": "math:calculator"}]}
    before = json.dumps(body)
    await client.serverless.tool_assisted_chat_completion(tool_assisted_completion_request_body=body)
    messages = body["messages"]
    assert isinstance(messages, list)
    await client.serverless.chat.stream(model="m", messages=messages).result()
    assert json.dumps(body) == before


TOOL_CALLS: Final = [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    {"id": "c2", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
]


async def test_reply_message_with_tool_calls_can_be_sent_back(client: f.AsyncFriendli, server: FriendliServer) -> None:
    function = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    choice = {"type": "function", "function": {"name": "add"}}
    for streamed in (False, True):
        chat = client.serverless.chat
        if streamed:
            reply = await chat.stream(model="m", messages=MESSAGES, tools=[function], tool_choice=choice).result()
        else:
            reply = await chat.complete(model="m", messages=MESSAGES, tools=[function], tool_choice=choice)
        assert reply.message.tool_calls
        [call] = reply.message.tool_calls
        assert call.id
        answer = ToolMessage("5", call.id)
        following = await chat.complete(model="m", messages=[*MESSAGES, reply.choices[0].message, answer])
        assert following.text
        [_, assistant, result] = sent(server)["messages"]
        assert assistant["role"] == "assistant"
        assert assistant["content"] is None
        assert assistant["tool_calls"] == [
            {"id": call.id, "type": "function", "function": {"name": "add", "arguments": call.function.arguments}}
        ]
        assert result == {"role": "tool", "content": "5", "tool_call_id": call.id}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "text"},
        {"role": "assistant", "content": None, "tool_calls": TOOL_CALLS},
        {"role": "assistant", "content": "text", "reasoning_content": "because", "tool_calls": TOOL_CALLS},
        {"role": "assistant", "content": "text", "reasoning": "because"},
    ],
)
async def test_reply_message_round_trips_unchanged(
    client: f.AsyncFriendli, server: FriendliServer, message: dict[str, object]
) -> None:
    server.enqueue(json_body({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}))
    reply = await send(client)
    await send(client, messages=[*MESSAGES, reply.message])
    assert sent(server)["messages"] == [*MESSAGES, message]


async def test_sparse_reply_message_is_completed_when_sent_back(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    sparse = {"tool_calls": [{"function": {"name": "add"}}]}
    server.enqueue(json_body({"choices": [{"message": sparse}]}))
    reply = await send(client)
    server.enqueue(text("ok"))
    await send(client, messages=[*MESSAGES, reply.message])
    back = sent(server)["messages"][1]
    assert back["role"] == "assistant"
    assert back["tool_calls"][0]["type"] == "function"
    assert back["tool_calls"][0]["function"] == {"name": "add", "arguments": ""}


async def test_reply_round_trips_through_msgspec(client: f.AsyncFriendli) -> None:
    reply = await send(client)
    assert msgspec.json.decode(msgspec.json.encode(reply), type=f.ChatCompletion) == reply


class Role(str, enum.Enum):  # noqa: UP042  # StrEnum is another case
    """A string enum as written before StrEnum."""

    USER = "user"


async def test_builtin_subclasses_are_sent_as_their_values(client: f.AsyncFriendli, server: FriendliServer) -> None:
    server.always(text("ok"))
    messages = [{"role": Role.USER, "content": [{"type": "text", "text": Role.USER}]}]
    await client.serverless.chat.complete(
        model=Role.USER,
        messages=messages,
        temperature=FloatSubclass(0.5),
        stop=[Role.USER],
        logit_bias={"1": FloatSubclass(2.0)},
    )
    body = sent(server)
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "user"}]}]
    assert (body["model"], body["temperature"], body["stop"], body["logit_bias"]) == ("user", 0.5, ["user"], {"1": 2.0})
    with pytest.raises(ValueError, match=r"^messages\[0\].role: Invalid value 'usr'"):
        await client.serverless.chat.complete(model=Role.USER, messages=[{"role": "usr", "content": ""}])


async def test_none_is_sent_as_null_if_nullable_and_extras_may_be_none(
    client: f.AsyncFriendli, server: FriendliServer
) -> None:
    server.always(text("ok"))
    await client.serverless.chat.complete(
        model="m", messages=MESSAGES, tool_choice=None, tools=None, extra_body=None, extra_query=None
    )
    assert sent(server) == {"model": "m", "messages": MESSAGES, "tool_choice": None, "tools": None}


SCALARS: Final[list[tuple[dict[str, Any], dict[str, object]]]] = [
    ({"n": np.int64(2)}, {"n": 2}),
    ({"max_tokens": np.uint8(9)}, {"max_tokens": 9}),
    ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
    ({"temperature": np.float16(0.5), "top_p": np.float64(0.25)}, {"temperature": 0.5, "top_p": 0.25}),
    ({"temperature": np.int64(1)}, {"temperature": 1}),
    ({"logprobs": np.bool_(True)}, {"logprobs": True}),
    ({"seed": [np.int64(1), np.int32(2)]}, {"seed": [1, 2]}),
    ({"stop": [np.str_("a")]}, {"stop": ["a"]}),
    ({"logit_bias": {"5": np.float32(1.5)}}, {"logit_bias": {"5": 1.5}}),
    ({"extra_body": {"x": {"deep": [np.int64(1), np.bool_(False)]}}}, {"x": {"deep": [1, False]}}),
    ({"chat_template_kwargs": {"x": np.float32(0.25)}}, {"chat_template_kwargs": {"x": 0.25}}),
]


@pytest.mark.parametrize(("options", "expected"), SCALARS)
async def test_numpy_scalars_are_sent_as_plain_values(
    client: f.AsyncFriendli, server: FriendliServer, options: dict[str, Any], expected: dict[str, object]
) -> None:
    server.always(text("ok"))
    await send(client, **options)
    assert {name: sent(server)[name] for name in expected} == expected


class Setting(str, enum.Enum):  # noqa: UP042  # its str() is its name
    """A string enum for client settings."""

    VALUE = "value"


async def test_string_enum_is_sent_by_its_value_everywhere(server: FriendliServer) -> None:
    server.enqueue(text("ok"), status(404))
    token: Any = Setting.VALUE
    async with f.AsyncFriendli(
        token, server_url=server.url, team=Setting.VALUE, headers={"X-Setting": Setting.VALUE}
    ) as client:
        query = {"a": Setting.VALUE, "b": [Setting.VALUE], "n": np.int64(3), "t": np.bool_(True)}
        await send(client, extra_query=query)
        with pytest.raises(f.NotFoundError):
            await client.dedicated.endpoint.get_status(Setting.VALUE)
    first, second = server.requests
    assert first.query == {"a": ["value"], "b": ["value"], "n": ["3"], "t": ["true"]}
    for name, value in (("Authorization", "Bearer value"), ("X-Friendli-Team", "value"), ("X-Setting", "value")):
        assert first.headers[name] == second.headers[name] == value
    assert second.path.endswith("/endpoint/value/status")


class Pydantic(pydantic.BaseModel):
    role: str = "user"
    content: str = "Hi"


@dataclasses.dataclass
class Plain:
    role: str = "user"
    content: str = "Hi"


class Named(NamedTuple):
    role: str = "user"
    content: str = "Hi"


class NotGiven:
    """As in openai and anthropic."""


class Omit:
    """As in openai and anthropic."""


class Unset(pydantic.BaseModel):
    """As in mistralai and Friendli's SDK."""


REPLY: Final = f.ChatCompletion(choices=(ChatChoice(message=ChatMessage(content="Hi")),))

NOT_JSON: Final[list[tuple[dict[str, Any], str]]] = [
    ({"messages": [Pydantic()]}, r"messages\[0\]: "),
    ({"messages": [Plain()]}, r"messages\[0\]: "),
    ({"messages": [Named()]}, r"messages\[0\]: "),
    ({"messages": [REPLY]}, r"messages\[0\]: .*ChatCompletion`; pass its message$"),
    ({"messages": [REPLY.choices[0]]}, r"messages\[0\]: "),
    ({"messages": [open_stream(f.AsyncFriendli("token"))]}, r"messages\[0\]: "),
    (
        {"messages": [{"role": "system", "content": [{"type": "text", "text": "x"}]}]},
        r"messages\[0\].content: ",
    ),
    ({"messages": [{"role": "user", "content": REPLY}]}, r"messages\[0\].content: .*ChatCompletion`$"),
    ({"messages": REPLY}, r"messages: Expected `array`, got `ChatCompletion`$"),
    ({"messages": MESSAGES, "stop": REPLY}, r"stop: .*, got `ChatCompletion`$"),
    ({"messages": (message for message in MESSAGES)}, r"messages: .*generator`$"),
    ({"messages": map(dict, MESSAGES)}, r"messages: .*map`$"),
    ({"messages": {"a": MESSAGES[0]}.values()}, r"messages: .*dict_values`$"),
    ({"stop": {"a"}}, r"stop: set is not JSON serializable$"),
    ({"seed": np.array([1, 2])}, r"seed: .*ndarray`$"),
    ({"extra_body": {"x": Pydantic()}}, r"x: Pydantic is not JSON serializable$"),
    ({"extra_body": {"x": Plain()}}, r"x: Plain is not JSON serializable$"),
    ({"temperature": NotGiven()}, "temperature: Expected `float | null`, got `NotGiven`$"),
    ({"tools": Omit()}, "tools: Expected `array | null`, got `Omit`$"),
    ({"seed": Unset()}, "seed: .*`Unset`$"),
    ({"stop": msgspec.UNSET}, "stop: .*UnsetType.*$"),
    ({"extra_body": {"x": NotGiven()}}, "x: NotGiven is not JSON serializable$"),
    ({"extra_body": {"x": decimal.Decimal("0.1")}}, "x: Decimal is not JSON serializable$"),
    ({"extra_body": {"x": np.longdouble(1)}}, "x: longdouble is not JSON serializable$"),
    ({"extra_body": {"x": np.datetime64("2026-01-01")}}, "x: datetime64 is not JSON serializable$"),
    ({"extra_body": {"x": np.datetime64("2026-01-01", "ns")}}, "x: datetime64 is not JSON serializable$"),
    ({"extra_body": {"x": np.timedelta64(1, "ns")}}, "x: timedelta64 is not JSON serializable$"),
    ({"extra_body": {"x": np.float32("nan")}}, "x: nan is not valid JSON$"),
    ({"model": pathlib.Path("m")}, "model: Expected `str`, got `PosixPath`$"),
    ({"temperature": decimal.Decimal("0.5")}, "temperature: Decimal is not JSON serializable$"),
    ({"response_format": Pydantic}, "response_format: Expected `object | null`, got `ModelMetaclass`$"),
]


@pytest.mark.parametrize(("options", "message"), NOT_JSON)
async def test_value_without_json_form_is_rejected_with_its_path(
    client: f.AsyncFriendli, server: FriendliServer, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        await send(client, **options)
    assert server.requests == []


@tool
def now() -> str:
    return "12:00"


class Answer(msgspec.Struct):
    name: str


@pytest.mark.parametrize(
    ("path", "call"),
    [
        ("strict", lambda client: json_schema(int, strict=1)),  # type: ignore[arg-type]  # invalid
        ("items('x')", lambda client: parse_stream(client).items("x")),
        ("items('name')", lambda client: parse_stream(client).items("name")),
        ("tools", lambda client: run(client, {})),
        ("tools[1]", lambda client: run(client, [now, now])),
        ("before_tool", lambda client: run(client, [now], before_tool=True)),
        ("n", lambda client: run(client, [now], n=2)),
        ("n", lambda client: stream(client).tee(0)),
        ("slow", lambda client: stream(client).tee(1, slow="block")),
        ("extra_query['cursor']", lambda client: client.dedicated.endpoint.list(extra_query={"cursor": 1})),
    ],
)
async def test_argument_error_has_the_path_with_which_its_message_starts(
    client: f.AsyncFriendli, path: str, call: Callable[[f.AsyncFriendli], object]
) -> None:
    with pytest.raises(f.ArgumentError) as raised:
        call(client)
    assert raised.value.path == path
    assert str(raised.value).startswith(f"{path}: ")


def stream(client: f.AsyncFriendli) -> Any:
    return client.serverless.chat.stream(model="m", messages=MESSAGES)


def parse_stream(client: f.AsyncFriendli) -> Any:
    return client.serverless.chat.parse_stream(Answer, model="m", messages=MESSAGES)


def run(client: f.AsyncFriendli, tools: Any, **options: Any) -> Any:
    return client.serverless.chat.run(model="m", messages=MESSAGES, tools=tools, **options)
