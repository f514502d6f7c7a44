"""Error messages that suggest this library's name for a mistyped name or one of another client."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any
from unittest import mock

import msgspec
import pytest
from support.sockets import client_of

from friendli_async import (
    APIConnectionError,
    ArgumentError,
    AsyncFriendli,
    ChatCompletion,
    ChatMessage,
    ConfigurationError,
    FriendliError,
    NotFoundError,
    RateLimitError,
    ToolCall,
    Usage,
)
from friendli_async._core.settings import ClientOptions
from friendli_async.embeddings import EmbeddingList
from friendli_async.testing import FriendliServer, status
from friendli_async.tools import RunResult

CLIENT = client_of("http://nowhere")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESULT = RunResult(reply=ChatCompletion(choices=()), messages=[], usage=None, turns=1)


def get_attribute(path: str) -> Any:
    value: Any = CLIENT
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("chat", "use serverless.chat or dedicated.chat or container.chat"),
        ("completions", "use serverless.completions or dedicated.completions or container.completions"),
        ("responses", "use serverless.responses or dedicated.responses or container.responses"),
        ("models", "use serverless.model"),
        ("images", "use dedicated.image or container.image"),
        ("embeddings", "use dedicated.embeddings"),
        ("endpoints", "use dedicated.endpoint"),
        ("beta", "use serverless.chat or dedicated.chat or container.chat"),
        ("files", "use file"),
        ("close", "use aclose"),
        ("fim", "use serverless.completions or dedicated.completions or container.completions"),
        ("servrless", "did you mean 'serverless'?"),
        ("zzz", "it has aclose, "),
        ("serverless.models", "use model"),
        ("serverless.tokens", "use token"),
        ("serverless.embeddings", "use dedicated.embeddings"),
        ("serverless.chat.embeddings", "use dedicated.embeddings"),
        ("serverless.chat.base_url", "it has complete, "),
        ("serverless.chat.completions", "use complete or stream"),
        ("serverless.chat.create", "use complete or stream"),
        ("serverless.chat.completee", "did you mean 'complete'?"),
        ("serverless.completions.create", "use complete or stream"),
        ("serverless.audio.transcriptions", "use transcribe or stream"),
        ("dedicated.image.generations", "use generate"),
        ("dedicated.endpoint.retrieve", "use get_spec"),
        ("container.endpoint", "use dedicated.endpoint"),
        ("container.embeddings", "use dedicated.embeddings"),
        ("container.models", "use serverless.model"),
        ("serverless.images", "use dedicated.image or container.image"),
        ("dedicated.models", "use serverless.model"),
        ("serverless.batches", "use friendli_async.bulk.run_all"),
        ("dedicated.endpoint.get", "use get_spec or list"),
        ("file.create", "use upload"),
        ("file.content", "use download"),
        ("file.list", "it has "),
        ("serverless.chat.astream", "use stream"),
        ("serverless.chat.stream_async", "use stream"),
        ("serverless.chat.acomplete", "did you mean 'complete'?"),
        ("serverless.messages.count_tokens", "use serverless.token.tokenize"),
        ("serverless.completions.generate", "use complete"),
        ("Serverless", "use serverless"),
        ("acompletion", "use serverless.chat.complete (or dedicated, container)"),
        ("complete", "use serverless.chat.complete (or dedicated, container)"),
        ("api_key", "of the settings, only timeout and retry can be read; with_options(...) returns a copy"),
        ("max_retries", "use retry"),
        ("copy", "use with_options"),
        ("with_streaming_response", "every stream has it: stream.meta.status, stream.meta.headers, stream.raw()"),
        ("serverless.chat.with_streaming_response", "every stream has it: stream.meta.status, "),
        ("with_raw_response", "every reply has it: reply.meta.status, reply.meta.headers, reply.raw"),
        ("serverless.chat.with_raw_response", "every reply has it: reply.meta.status, "),
        ("batches", "use friendli_async.bulk.run_all"),
        ("serverless.chat.batch", "use friendli_async.bulk.run_all"),
        ("serverless.token.tokenizer", "use tokenize"),
        ("tokenizer", "use serverless.token.tokenize"),
        ("dedicated.tokenizer", "did you mean 'token'?"),
        ("organization", "of the settings, only timeout and retry can be read; "),
        ("container_url", "of the settings, only timeout and retry can be read; "),
        ("datasets", "datasets are not supported"),
        ("billing", "use cost or usage"),
        ("moderations", "it has aclose, "),
    ],
)
def test_unknown_attribute_error_suggests_a_name(path: str, hint: str) -> None:
    with pytest.raises(AttributeError) as raised:
        get_attribute(path)
    assert f"has no attribute {path.rpartition('.')[2]!r}; {hint}" in str(raised.value)


def test_suggested_deployments_have_the_group() -> None:
    groups = {
        group for deployment in DEPLOYMENTS for group in dir(get_attribute(deployment)) if not group.startswith("_")
    }
    for group in groups:
        supporting = [deployment for deployment in DEPLOYMENTS if hasattr(get_attribute(deployment), group)]
        for deployment in set(DEPLOYMENTS) - set(supporting):
            with pytest.raises(AttributeError) as raised:
                get_attribute(f"{deployment}.{group}")
            suggested = " or ".join(f"{other}.{group}" for other in supporting)
            assert str(raised.value).endswith(f"; use {suggested}")


PARAMETERS = {
    **dict.fromkeys(("max_completion_tokens", "num_predict", "maxOutputTokens", "max_new_tokens"), "'max_tokens'"),
    **dict.fromkeys(("max_tokens_to_sample", "maxTokens", "max_length"), "'max_tokens'"),
    **dict.fromkeys(
        ("json_schema", "guided_json", "response_model", "output_format", "text_format"), "'response_format'"
    ),
    **dict.fromkeys(("system", "system_prompt", "instructions"), "a message with the role 'system'"),
    **dict.fromkeys(("thinking", "thinking_budget", "budget_tokens"), "'reasoning_budget'"),
    **dict.fromkeys(("model_id", "endpoint_id", "engine"), "'model'"),
    "reasoning": "'reasoning_effort'",
    "random_seed": "'seed'",
    "topP": "'top_p'",
    "stopSequences": "'stop'",
    "repeat_penalty": "'repetition_penalty'",
    "include_usage": "'stream_options'",
    "functions": "'tools'",
    "function_call": "'tool_choice'",
    "best_of": "'n'",
}


@pytest.mark.parametrize(("name", "suggestion"), PARAMETERS.items())
async def test_parameter_of_other_clients_error_suggests_a_name(name: str, suggestion: str) -> None:
    for method in ("complete", "stream"):
        with pytest.raises(TypeError) as raised:
            await getattr(CLIENT.serverless.chat, method)(model="m", messages=[], **{name: "x"})
        assert str(raised.value).endswith(f"unexpected keyword argument {name!r}; use {suggestion}")


OTHER_APIS: list[tuple[str, dict[str, Any], str, str]] = [
    ("serverless.chat.complete", {"model": "m", "messages": []}, "prompt", "'messages'"),
    ("serverless.chat.stream", {"model": "m", "messages": []}, "input", "'messages'"),
    ("serverless.chat_render.render", {"model": "m", "messages": []}, "enable_thinking", "'chat_template_kwargs'"),
    ("serverless.messages.create", {"model": "m", "max_tokens": 1, "messages": []}, "contents", "'messages'"),
    ("serverless.responses.create", {"model": "m", "input": "x"}, "messages", "'input'"),
    ("serverless.completions.complete", {"model": "m", "prompt": "x"}, "inputs", "'prompt'"),
    ("serverless.token.tokenize", {"model": "m", "prompt": "x"}, "text", "'prompt'"),
    ("serverless.token.detokenize", {"model": "m", "tokens": [1]}, "input_ids", "'tokens'"),
    ("dedicated.embeddings.create", {"model": "m"}, "texts", "'input'"),
    ("dedicated.text_classification.classify", {"model": "m"}, "prompt", "'input'"),
]


@pytest.mark.parametrize(("path", "required", "name", "suggestion"), OTHER_APIS)
async def test_name_of_the_same_parameter_in_another_api_suggests_ours(
    path: str, required: dict[str, Any], name: str, suggestion: str
) -> None:
    call: Any = operator.attrgetter(path)(CLIENT)
    with pytest.raises(TypeError) as raised:
        await call(**required, **{name: "x"})
    assert str(raised.value).endswith(f"unexpected keyword argument {name!r}; use {suggestion}")


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("chat.complete", "call stream() instead"),
        ("chat.parse", "call parse_stream() instead"),
        ("chat.parse_stream", "leave it out, the reply is always streamed"),
        ("chat.run", "leave it out, the reply is always streamed"),
    ],
)
async def test_stream_as_a_keyword_names_the_method_that_streams(path: str, advice: str) -> None:
    call: Any = operator.attrgetter(path)(CLIENT.serverless)
    kind = [int] if "parse" in path else []
    options: dict[str, Any] = {"tools": []} if path == "chat.run" else {}
    with pytest.raises(TypeError, match=re.escape(advice)):
        await call(*kind, model="m", messages=[], stream=True, **options)


@pytest.mark.parametrize("name", ["response_model", "output_type", "text_format"])
async def test_type_as_an_unknown_parameter_suggests_parse(name: str) -> None:
    chat: Any = CLIENT.serverless.chat
    responses: Any = CLIENT.serverless.responses
    with pytest.raises(TypeError, match=r"use 'response_format'; for an answer of a type, use chat.parse\(T, ...\)$"):
        await chat.complete(model="m", messages=[], **{name: dict})
    with pytest.raises(TypeError, match=r"use 'text'; for an answer of a type, use responses.parse\(T, ...\)$"):
        await responses.create(model="m", input="x", **{name: dict})


@pytest.mark.parametrize("name", ["output_type", "response_model", "json_schema", "response_format"])
def test_type_as_an_unknown_parameter_of_a_run_suggests_parse_run(name: str) -> None:
    chat: Any = CLIENT.serverless.chat
    hint = r"a run answers with text: use chat\.parse_run\(T, \.\.\.\)$"
    with pytest.raises(TypeError, match=rf"{name}'; {hint}"):
        chat.run(model="m", messages=[], tools=[], **{name: dict})


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("instructions", "a message with the role 'system'"),
        ("prompt", "'messages'"),
        ("engine", "'model'"),
    ],
)
@pytest.mark.parametrize("method", ["parse", "parse_stream", "run", "parse_run"])
async def test_suggestion_is_the_same_in_every_method_of_chat(method: str, name: str, suggestion: str) -> None:
    call = getattr(CLIENT.serverless.chat, method)
    call = partial(call, tools=[]) if method.endswith("run") else call
    call = call if method == "run" else partial(call, dict)
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; use {suggestion}$"):
        await call(model="m", messages=[], **{name: "x"})


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("reask", "use 'max_turns'"),
        ("output_retries", "use 'max_turns'"),
        ("message_history", "use 'messages'"),
        ("user_prompt", "use 'messages'"),
        ("result_type", "the type of the answer, the first argument, determines its format"),
    ],
)
def test_suggestion_is_a_parameter_of_the_run(name: str, suggestion: str) -> None:
    chat: Any = CLIENT.serverless.chat
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'; {suggestion}$"):
        chat.parse_run(dict, model="m", messages=[], tools=[], **{name: "x"})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        *(
            (name, "; if the server knows it, pass it in extra_body={...}")
            for name in ("context", "handoffs", "memory")
        ),
        ("session", ": it is a client setting; use AsyncFriendli(session=... (an aiohttp session))"),
    ],
)
def test_keyword_of_a_framework_for_agents_is_not_taken_for_what_it_is_not(name: str, hint: str) -> None:
    chat: Any = CLIENT.serverless.chat
    with pytest.raises(TypeError, match=re.escape(f"'{name}'{hint}") + "$"):
        chat.run(model="m", messages=[], tools=[], **{name: "x"})


@pytest.mark.parametrize("name", [*ClientOptions.__annotations__, "usage_limits", "max_retries"])
@pytest.mark.parametrize("method", ["complete", "run"])
async def test_client_setting_as_a_keyword_of_a_method_suggests_with_options(method: str, name: str) -> None:
    call: Any = getattr(CLIENT.serverless.chat, method)
    call = partial(call, tools=[]) if method == "run" else call
    with pytest.raises(TypeError, match=rf"'{name}': it is a client setting; use client\.with_options\("):
        await call(model="m", messages=[], **{name: "x"})


PATH_ONLY: Any = [
    *(f"dedicated.endpoint.{name}" for name in ("delete", "get_spec", "get_status", "restart", "sleep", "terminate")),
    *("dedicated.endpoint.wake", "file.complete_upload", "file.get_info", "file.get_download_url"),
]


@pytest.mark.parametrize("path", PATH_ONLY)
async def test_method_without_a_body_accepts_an_extra_query_and_suggests_where_a_setting_belongs(
    path: str, server: FriendliServer, client: AsyncFriendli
) -> None:
    call = operator.attrgetter(path)(client)
    with pytest.raises(TypeError, match=r"'x_friendli_team': it is a client setting; use client\.with_options\(team="):
        await call("id", x_friendli_team="t")
    with pytest.raises(TypeError, match=r"'endpoint_ids'|'file_ids'"):
        await call("id", **{"endpoint_ids" if "endpoint" in path else "file_ids": []})
    server.enqueue(status(404))
    with pytest.raises(NotFoundError):
        await call("id", extra_query={"q": 1})
    assert [request.query for request in server.requests] == [{"q": ["1"]}]


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("model_dump", r"; use msgspec\.to_builtins\(reply\)"),
        ("to_json", r"; use msgspec\.json\.encode\(reply\)"),
        ("content", r"; the text of an answer is reply\.text"),
        ("parsed", r"; the value that parse\(\) returns is reply\.value"),
        ("_request_id", r"; use reply\.meta\.request_id"),
        ("nothing", ""),
    ],
)
def test_attribute_of_another_clients_reply_is_explained(name: str, suggestion: str) -> None:
    reply = ChatCompletion(choices=())
    with pytest.raises(
        AttributeError, match=f"'ChatCompletion' object has no attribute '{name}'{suggestion}$"
    ) as raised:
        getattr(reply, name)
    assert (raised.value.name, raised.value.obj) == (name, reply)
    assert not hasattr(reply, name)


@pytest.mark.parametrize(
    ("value", "name", "hint"),
    [
        (ChatMessage(), "parsed", "the value that parse() returns is reply.value"),
        (ChatMessage(), "model_dump", "use msgspec.to_builtins(reply)"),
        (ToolCall(), "model_dump", "use msgspec.to_builtins(reply)"),
        (Usage(), "model_dump", "use msgspec.to_builtins(reply)"),
        (RESULT, "request_id", "use reply.meta.request_id"),
        (RESULT, "text", "the text of the last answer is result.reply.text"),
        (RESULT, "message", "the last answer is result.reply"),
        (RESULT, "value", "only that of parse_run() has a value"),
        (RESULT, "model_dump_json", "use msgspec.json.encode(reply)"),
    ],
)
def test_attribute_of_another_clients_value_or_run_is_explained(value: object, name: str, hint: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(value, name)
    assert str(raised.value) == f"{type(value).__name__!r} object has no attribute {name!r}; {hint}"


def test_reply_without_a_text_is_not_said_to_have_one() -> None:
    with pytest.raises(AttributeError) as raised:
        operator.attrgetter("text")(EmbeddingList(data=()))
    assert str(raised.value) == "'EmbeddingList' object has no attribute 'text'"


async def test_suggestion_for_parsed_responses_is_a_parameter_of_the_signature() -> None:
    responses: Any = CLIENT.serverless.responses
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'prompt'; use 'input'$"):
        await responses.parse(dict, model="m", input="x", prompt="y")


async def test_suggestion_is_a_parameter_of_the_method() -> None:
    serverless: Any = CLIENT.serverless
    message = partial(serverless.messages.create, model="m", max_tokens=1, messages=[])
    response = partial(serverless.responses.create, model="m", input="x")
    for call, name, hint in (
        (message, "stop", "stop_sequences"),
        (message, "instructions", "system"),
        (message, "reasoning_effort", "thinking"),
        (response, "max_tokens", "max_output_tokens"),
        (response, "system", "instructions"),
        (response, "response_format", "text"),
    ):
        with pytest.raises(TypeError, match=f"{name}'; use '{hint}'"):
            await call(**{name: "x"})
    with pytest.raises(TypeError, match="system'; if the server knows it, pass it in extra_body="):
        await serverless.completions.complete(model="m", prompt="x", system="x")


DEPLOYMENTS = ("serverless", "dedicated", "container")
GROUPS = ("serverless", "dedicated", "container", "serverless.chat", "dedicated.endpoint", "file", "cost", "usage")


@pytest.mark.parametrize("path", GROUPS)
def test_introspection_of_missing_attributes_works(path: str) -> None:
    group = get_attribute(path)
    assert not hasattr(group, "nothing")
    assert getattr(group, "nothing", 5) == 5
    assert not hasattr(group, "__wrapped__")
    assert "nothing" not in dir(group)
    assert inspect.getmembers(group)
    assert inspect.getdoc(group) == inspect.getdoc(type(group))
    assert repr(group).startswith("<")
    spec = mock.create_autospec(group)
    with pytest.raises(AttributeError):
        _ = spec.nothing
    assert type(copy.copy(group)) is type(group)
    with pytest.raises(AttributeError) as raised:
        _ = group._nothing
    assert str(raised.value) == f"{type(group).__name__!r} object has no attribute '_nothing'"


def test_mock_of_the_class_has_the_deployments_and_nothing_else() -> None:
    for client in (mock.MagicMock(spec=AsyncFriendli), mock.create_autospec(AsyncFriendli, instance=True)):
        for name in ("serverless", "dedicated", "container", "file", "cost", "usage"):
            assert isinstance(getattr(client, name).anything, mock.MagicMock)
        with pytest.raises(AttributeError):
            _ = client.chat


def test_client_cannot_be_pickled_or_copied_and_bare_one_has_no_attributes() -> None:
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            action(CLIENT)
    bare = AsyncFriendli.__new__(AsyncFriendli)
    assert not hasattr(bare, "serverless")
    assert not hasattr(bare, "_settings")
    for name in ("serverless", "chat"):  # where a group is looked for
        with pytest.raises(AttributeError, match=r"has no attribute 'serverless'; it is not set yet$"):
            getattr(bare, name)


@pytest.mark.parametrize(
    ("error", "name", "hint"),
    [
        (RateLimitError("busy"), "response", "; use status_code, body (a text) and meta.headers"),
        (RateLimitError("busy"), "headers", "; use meta.headers"),
        (RateLimitError("busy"), "param", "; use json.loads(error.body)"),
        (
            APIConnectionError("broke"),
            "message",
            "; use str(error); only an APIStatusError has a message of the server",
        ),
        (APIConnectionError("broke"), "status_code", "; only an APIStatusError has it"),
        (APIConnectionError("broke"), "request_id", "; use meta.request_id"),
        (APIConnectionError("broke"), "zzz", ""),
    ],
)
def test_unknown_attribute_of_an_error_suggests_a_name(error: FriendliError, name: str, hint: str) -> None:
    with pytest.raises(AttributeError) as raised:
        getattr(error, name)
    assert str(raised.value) == f"{type(error).__name__!r} object has no attribute {name!r}{hint}"
    assert (raised.value.name, raised.value.obj) == (name, error)
    assert not hasattr(copy.deepcopy(pickle.loads(pickle.dumps(error))), name)


class UserError(FriendliError):
    @property
    def reason(self) -> str:
        return self.resaon  # type: ignore[attr-defined, no-any-return]  # a mistake


def test_error_in_a_property_of_an_error_is_not_taken_for_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'resaon'"):
        _ = UserError("broke").reason


def test_existing_attributes_are_not_looked_up_in_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("friendli_async._hints._attribute_hint", lambda *_: pytest.fail("looked up"))
    assert callable(CLIENT.serverless.chat.complete)
    assert callable(CLIENT.gauges)
    assert not hasattr(CLIENT.serverless, "_repr_html_")


@pytest.mark.parametrize("name", ["timeout", "retry", "limits", "wake"])
def test_invalid_setting_that_is_not_secret_is_quoted(name: str) -> None:
    options: dict[str, Any] = {name: "10"}
    with pytest.raises(ConfigurationError, match="not '10'"):
        CLIENT.with_options(**options)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("reask", r"only parse\(\) can ask again; after a stream, send OutputError.feedback yourself"),
        ("max_turns", r"it is a parameter of chat.run\(\)"),
        ("accept_header_override", r"the method decides: stream\(\) accepts an event stream, all others JSON"),
        ("type", r"pass it first, by position, to parse\(\), parse_stream\(\) or parse_run\(\)"),
    ],
)
async def test_parameter_of_another_method_is_not_suggested_for_extra_body(name: str, hint: str) -> None:
    serverless: Any = CLIENT.serverless
    calls = [
        partial(serverless.chat.complete, model="m", messages=[]),
        partial(serverless.chat.parse_stream, int, model="m", messages=[]),
        partial(serverless.responses.parse_stream, int, model="m", input="x"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'; {hint}$"):
            await call(**{name: 1})


@pytest.mark.parametrize(
    "name",
    [
        *("store", "metadata", "user", "service_tier", "prompt_cache_key", "prompt_cache_retention", "mcp_servers"),
        *("betas", "safe_prompt", "prompt_mode", "fallbacks", "caching", "suffix", "echo", "tags"),
    ],
)
async def test_unsupported_openai_parameter_error_suggests_extra_body(name: str) -> None:
    for method in ("complete", "stream"):
        with pytest.raises(TypeError, match=f"{name}'; if the server knows it, pass it in extra_body=") as raised:
            await getattr(CLIENT.serverless.chat, method)(model="m", messages=[], **{name: "x"})
        assert "did you mean" not in str(raised.value)


# --- arguments -------------------------------------------------------------------------------------------------------


class City(msgspec.Struct):
    name: str


def find(city: str) -> str:
    return city


class Unreadable:
    """Neither a list nor a mapping, but it has items, which cannot be read."""

    def __getitem__(self, name: object) -> object:
        raise OSError(name)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"response_format": Unreadable()}, "response_format"),
        ({"tool_choice": Unreadable()}, "tool_choice"),
        ({"logit_bias": Unreadable()}, "logit_bias"),
        ({"messages": [{"role": "user", "content": [Unreadable()]}]}, r"messages\[0\].content\[0\]"),
    ],
)
async def test_object_with_unreadable_items_is_an_invalid_value(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{path}: "):
        await CLIENT.serverless.chat.complete(**{"model": "m", "messages": [], **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": City}, "response_format: .*; for an answer of a type, use chat.parse"),
        ({"response_format": dict[str, int]}, "response_format: .*; for an answer of a type, use chat.parse"),
        ({"tools": [find]}, r"tools\[0\]: .*; make a tool of a function with friendli_async.tools.tool"),
        ({"stop": find}, "stop: Expected `str | array | null`, got `function`$"),
    ],
)
async def test_type_or_function_as_an_option_suggests_what_takes_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        await CLIENT.serverless.chat.complete(model="m", messages=[], **options)


async def test_parse_without_a_type_says_that_it_comes_first() -> None:
    chat: Any = CLIENT.serverless.chat
    with pytest.raises(TypeError, match="pass it first"):
        await chat.parse(model="m", messages=[], response_format=City)
    with pytest.raises(TypeError, match="pass it first"):
        chat.parse_stream(model="m", messages=[], response_format=City)
    responses: Any = CLIENT.container.responses
    with pytest.raises(TypeError, match="pass it first"):
        await responses.parse(input="Hi")
