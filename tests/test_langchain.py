"""LangChain: its standard test suites for chat models against the embedded server, and further tests."""

# ruff: noqa: E402  # imported only where the extra is installed

import asyncio
import base64
import gc
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, Final

import pytest

pytest.importorskip("langchain_core", reason="the extra `langchain` is not installed")
suites = pytest.importorskip("langchain_tests.integration_tests.chat_models", reason="langchain-tests is not installed")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.runnables import Runnable
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from pydantic import BaseModel, SecretStr, ValidationError
from support.programs import WARNINGS_ARE_ERRORS
from support.signatures import REFUSAL, SIGNED_ANSWER, refused_answer, signed_answer
from support.sockets import client_of

from friendli_async import (
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    AuthenticationError,
    InternalServerError,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
)
from friendli_async.blocking import run
from friendli_async.errors import ArgumentError
from friendli_async.integrations.langchain import ChatFriendli
from friendli_async.testing import (
    FriendliServer,
    chunk,
    done,
    event,
    finish,
    json_body,
    reset,
    script,
    stall,
    status,
    tool_calls,
)
from friendli_async.testing.chat import answer_chat, speak
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import Script
from friendli_async.testing.turns import Turn, tokenize

PIXEL: Final = base64.b64encode(b"\x89PNG\r\n").decode()

ARGUMENTS: Final[dict[str, Any]] = {
    "magic_function": {"input": 3},
    "get_weather": {"location": "San Francisco, CA"},
    "magic_function_no_args": {},
    "my_adder_tool": {"a": 1, "b": 2},
}


def suite_answers(request: ReceivedRequest) -> Script:
    """Returns the answers that the suites expect from a capable model."""
    body = request.json_object
    names = [tool["function"]["name"] for tool in body.get("tools") or ()]
    may_call_tool = body["messages"][-1]["role"] == "user" and not isinstance(body.get("tool_choice"), dict)
    if names and may_call_tool and names[0] in ARGUMENTS:
        return tool_calls((names[0], ARGUMENTS[names[0]]))(request)
    if (body.get("response_format") or {}).get("type") == "json_object":
        return speak(request, Turn(tokenize(json.dumps({"setup": "Why?", "punchline": "Because."}))))
    return answer_chat(request)


# --- LangChain's suites ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite_server() -> Iterator[FriendliServer]:
    with FriendliServer() as server:
        server.always(suite_answers)
        yield server


class _Suite:
    """Configuration of the suites, with everything enabled that the API supports."""

    server: FriendliServer
    url: str

    @pytest.fixture(autouse=True)
    def served(self, suite_server: FriendliServer, monkeypatch: pytest.MonkeyPatch) -> None:
        type(self).server, type(self).url = suite_server, suite_server.url
        # No network: the images and audio that the suites would download are replaced.
        monkeypatch.setattr(suites, "_get_base64_from_url", lambda url: PIXEL)
        monkeypatch.setattr(suites.httpx, "get", lambda url, **options: SimpleNamespace(content=b"\x89PNG\r\n"))

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatFriendli

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"model": "m", "api_key": "test-token", "base_url": self.url}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_image_urls(self) -> bool:
        return True

    @property
    def supports_audio_inputs(self) -> bool:
        return True

    @property
    def supports_video_inputs(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:  # of names, which the suites list
        return {"invoke": ["cache_read_input", "reasoning_output"], "stream": ["cache_read_input", "reasoning_output"]}


@pytest.fixture
def benchmark() -> Callable[[Callable[[], object]], object]:
    """Replaces the plugin's fixture: runs the measured function once."""
    return lambda work: work()


@pytest.fixture
def vcr() -> None:
    """Replaces the plugin's fixture: the embedded server responds instead of recordings."""


@pytest.fixture
def snapshot() -> None:
    """Replaces the plugin's fixture: the model is not serializable."""


class TestLangChainUnit(_Suite, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        return {"FRIENDLI_TOKEN": "from-env"}, {"model": "m"}, {"api_key": "from-env"}


class TestLangChainIntegration(_Suite, ChatModelIntegrationTests):
    @property
    def model_override_value(self) -> str:
        return "another-model"

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        return self._invoke_with_usage_details(stream)

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        return self._invoke_with_usage_details(stream)

    def _invoke_with_usage_details(self, stream: bool) -> AIMessage:
        """Invokes the model with a scripted response whose usage has both details."""
        details = {"prompt_tokens_details": {"cached_tokens": 6}, "completion_tokens_details": {"reasoning_tokens": 2}}
        counts = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, **details}
        message = {"role": "assistant", "content": "Hi"}
        if stream:
            self.server.enqueue(script(chunk("Hi"), finish(), event({"choices": [], "usage": counts}), done()))
        else:
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.server.enqueue(json_body({"choices": choices, "usage": counts}))
        model = ChatFriendli(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        whole = AIMessageChunk(content="")
        for piece in model.stream("Hello"):
            whole += piece
        return whole


# --- messages and responses ------------------------------------------------------------------------------------------


@pytest.fixture
def model(client: AsyncFriendli) -> ChatFriendli:
    return ChatFriendli(model="m", client=client)


async def sent_body(server: FriendliServer, model: Runnable[Any, Any], *messages: Any) -> Mapping[str, Any]:
    await model.ainvoke(list(messages))
    return server.requests[-1].json_object


async def test_bound_parameters_override_those_of_the_model(server: FriendliServer, client: AsyncFriendli) -> None:
    model = ChatFriendli(
        model="m", client=client, temperature=0.5, max_tokens=9, stop=["a"], model_kwargs={"top_k": 3, "seed": 1}
    )
    body = await sent_body(server, model.bind(seed=2, stop=["b"]), HumanMessage("Hi"))
    assert {name: body[name] for name in ("temperature", "max_tokens", "stop", "top_k", "seed")} == {
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["b"],
        "top_k": 3,
        "seed": 2,
    }


async def test_content_parts_are_converted_to_the_api_format(server: FriendliServer, model: ChatFriendli) -> None:
    parts: list[str | dict[Any, Any]] = [
        "plain",
        {"type": "text", "text": "text"},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {"type": "image", "base64": PIXEL, "mime_type": "image/png"},
        {"type": "audio", "base64": PIXEL, "mime_type": "audio/wav"},
        {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "mp3"}},
        {"type": "audio", "url": "https://example.com/a.wav"},
        {"type": "video", "base64": PIXEL, "mime_type": "video/mp4"},
        {"type": "video", "url": "https://example.com/a.mp4"},
        {"type": "video_url", "video_url": {"url": "https://example.com/b.mp4"}},
    ]
    body = await sent_body(server, model, HumanMessage(parts))
    kinds = [(part["type"], part.get(part["type"])) for part in body["messages"][0]["content"]]
    assert kinds == [
        ("text", "plain"),
        ("text", "text"),
        ("image_url", {"url": "https://example.com/a.png"}),
        ("image_url", {"url": f"data:image/png;base64,{PIXEL}"}),
        ("audio_url", {"url": f"data:audio/wav;base64,{PIXEL}"}),
        ("audio_url", {"url": f"data:audio/mp3;base64,{PIXEL}"}),
        ("audio_url", {"url": "https://example.com/a.wav"}),
        ("video_url", {"url": f"data:video/mp4;base64,{PIXEL}"}),
        ("video_url", {"url": "https://example.com/a.mp4"}),
        ("video_url", {"url": "https://example.com/b.mp4"}),
    ]


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (HumanMessage([{"type": "file", "base64": PIXEL, "mime_type": "application/pdf"}]), "messages[0].content[0]"),
        (AIMessage([{"type": "image_url", "image_url": {"url": "https://a/b"}}]), "messages[0].content"),
        (
            ToolMessage([{"type": "image_url", "image_url": {"url": "https://a/b"}}], tool_call_id="1"),
            "messages[0].content[0]",
        ),
        (SystemMessage([{"type": "image_url", "image_url": {"url": "https://a/b"}}]), "messages[0].content[0]"),
    ],
    ids=["pdf", "assistant-image", "tool-image", "system-image"],
)
@pytest.mark.filterwarnings("ignore:OpenAI may require a filename")
async def test_unsupported_content_part_is_rejected_with_its_path(
    server: FriendliServer, model: ChatFriendli, message: Any, path: str
) -> None:
    with pytest.raises(ArgumentError, match="a part of type") as caught:
        await model.ainvoke([message])
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path}: ")
    assert server.requests == []


@pytest.mark.parametrize(
    "message",
    [HumanMessage([{"type": "text-plain", "text": "Hi", "mime_type": "text/plain"}]), RemoveMessage(id="1")],
    ids=["block", "message"],
)
async def test_what_langchain_cannot_convert_is_rejected_with_its_path(
    server: FriendliServer, model: ChatFriendli, message: Any
) -> None:
    with pytest.raises(ArgumentError) as caught:
        await model.ainvoke([HumanMessage("Hi"), message])
    assert caught.value.path == "messages[1]"
    assert server.requests == []


async def test_ai_message_is_sent_back_completely(server: FriendliServer, model: ChatFriendli) -> None:
    assistant = AIMessage(
        [{"type": "thinking", "thinking": "Hm. "}, {"type": "text", "text": "So"}],
        tool_calls=[{"name": "f", "args": {"x": "ü"}, "id": "1"}],
        invalid_tool_calls=[{"name": "g", "args": "{oops", "id": "2", "error": "no JSON"}],
    )
    tool_result = ToolMessage([{"type": "text", "text": "3"}], tool_call_id="1")
    failure, plain = ToolMessage("bad", tool_call_id="2"), AIMessage("Good")
    developer = SystemMessage("Go on", additional_kwargs={"__openai_role__": "developer"})
    body = await sent_body(server, model, HumanMessage("Hi"), assistant, tool_result, failure, plain, developer)
    assert body["messages"][1] == {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "Hm. ",
        "tool_calls": [
            {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"x": "ü"}'}},
            {"type": "function", "id": "2", "function": {"name": "g", "arguments": "{oops"}},
        ],
    }
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "1", "content": "3"}
    assert body["messages"][4:] == [
        {"role": "assistant", "content": "Good"},
        {"role": "system", "content": "Go on"},
    ]


@pytest.mark.parametrize(
    ("block", "reasoning"),
    [
        ({"type": "reasoning", "id": "rs_1", "summary": []}, None),
        ({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]}, "Hm."),
        ({"type": "reasoning", "id": "rs_1"}, None),
    ],
    ids=["no-summary", "summary", "standard-block"],
)
async def test_reasoning_of_another_provider_may_have_no_text(
    server: FriendliServer, model: ChatFriendli, block: dict[str, Any], reasoning: str | None
) -> None:
    body = await sent_body(server, model, HumanMessage("Hi"), AIMessage([block, {"type": "text", "text": "So"}]))
    assert body["messages"][1].get("reasoning_content") == reasoning


async def stream_message(model: Runnable[Any, Any], question: str = "Hi there") -> AIMessageChunk:
    whole: AIMessageChunk | None = None
    async for piece in model.astream(question):
        whole = piece if whole is None else whole + piece
    assert whole is not None
    return whole


@pytest.mark.parametrize("streamed", [False, True])
async def test_reasoning_becomes_a_block_and_is_sent_back(
    server: FriendliServer, client: AsyncFriendli, streamed: bool
) -> None:
    options = {"parse_reasoning": True, "include_reasoning": True}
    model = ChatFriendli(model="m", client=client, model_kwargs=options)
    answer = await stream_message(model) if streamed else await model.ainvoke("Hi there")
    reasoning = "The last message has 2 words. I repeat it."
    assert answer.additional_kwargs == {"reasoning_content": reasoning}
    assert [block["type"] for block in answer.content_blocks] == ["reasoning", "text"]
    body = await sent_body(server, model, HumanMessage("Hi there"), answer, HumanMessage("Go on"))
    assert body["messages"][1]["reasoning_content"] == reasoning


@pytest.mark.parametrize("streamed", [False, True])
async def test_signatures_are_kept_and_sent_back(server: FriendliServer, model: ChatFriendli, streamed: bool) -> None:
    server.enqueue(signed_answer(streamed=streamed))
    answer = await (stream_message(model) if streamed else model.ainvoke("Hi"))
    assert answer.additional_kwargs["annotations"] == SIGNED_ANSWER["annotations"]
    body = await sent_body(server, model, HumanMessage("Hi"), answer, ToolMessage("noon", tool_call_id="call_1"))
    sent = {name: value for name, value in SIGNED_ANSWER.items() if name != "annotations"}
    assert body["messages"][1] == {**sent, "role": "assistant", "content": None}


@pytest.mark.parametrize("streamed", [False, True])
async def test_refusal_is_kept_and_sent_back(server: FriendliServer, model: ChatFriendli, streamed: bool) -> None:
    server.enqueue(refused_answer(streamed=streamed))
    answer = await (stream_message(model) if streamed else model.ainvoke("Hi"))
    assert (answer.content, answer.additional_kwargs["refusal"]) == ("", REFUSAL)
    body = await sent_body(server, model, HumanMessage("Hi"), answer, HumanMessage("Why?"))
    assert body["messages"][1] == {"role": "assistant", "content": REFUSAL}


async def test_signatures_are_those_of_their_calls_whatever_the_ids_of_these_are(
    server: FriendliServer, model: ChatFriendli
) -> None:
    given = [("", "{}", None), ("", "{}", "a"), ("b", "{}", "b"), ("b", "{}", "c"), ("d", "{", "d")]
    calls = [
        {"id": name, "type": "function", "function": {"name": "now", "arguments": text}, "extra_content": {"s": sign}}
        for name, text, sign in given
    ]
    del calls[0]["extra_content"]
    server.enqueue(json_body({"choices": [{"index": 0, "message": {"tool_calls": calls}}]}))
    body = await sent_body(server, model, HumanMessage("Hi"), await model.ainvoke("Hi"), HumanMessage("Go on"))
    assert body["messages"][1]["tool_calls"] == calls


@pytest.mark.parametrize("streamed", [False, True])
async def test_response_metadata_is_not_duplicated(server: FriendliServer, model: ChatFriendli, streamed: bool) -> None:
    bound = model.bind(logprobs=True)
    answer = await stream_message(bound) if streamed else await bound.ainvoke("Hi there")
    metadata = answer.response_metadata
    assert {name: metadata[name] for name in ("finish_reason", "model_name", "model_provider", "request_id")} == {
        "finish_reason": "stop",
        "model_name": "m",
        "model_provider": "friendli",
        "request_id": "req-000001",
    }
    assert [token["token"] for token in metadata["logprobs"]["content"]] == ["You ", "said: ", "Hi ", "there"]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == 6


async def test_calls_return_every_choice_and_streams_reject_more_than_one(
    server: FriendliServer, model: ChatFriendli
) -> None:
    result = await model.agenerate([[HumanMessage("Hi")]], n=3)
    assert [generation.text for generation in result.generations[0]] == [
        "You said: Hi",
        "(2) You said: Hi",
        "(3) You said: Hi",
    ]
    with pytest.raises(ArgumentError, match="only one choice"):
        await stream_message(model.bind(n=2))


@pytest.mark.parametrize("streamed", [False, True])
async def test_invalid_json_arguments_become_an_invalid_tool_call(
    server: FriendliServer, model: ChatFriendli, streamed: bool
) -> None:
    server.enqueue(tool_calls(("f", '{"x": 1}'), ("g", '["no object"]')))
    bound = model.bind_tools([{"name": "f", "parameters": {}}, {"name": "g", "parameters": {}}])
    answer = await stream_message(bound) if streamed else await bound.ainvoke("Hi")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("f", {"x": 1})]
    assert [(call["name"], call["args"]) for call in answer.invalid_tool_calls] == [("g", '["no object"]')]


async def test_arguments_with_a_lone_surrogate_are_valid(server: FriendliServer, model: ChatFriendli) -> None:
    server.enqueue(tool_calls(("f", r'{"x": "half \ud83d"}')))
    answer = await model.bind_tools([{"name": "f", "parameters": {}}]).ainvoke("Hi")
    assert [call["args"] for call in answer.tool_calls] == [{"x": "half \ud83d"}]


async def test_call_without_arguments_is_valid(server: FriendliServer, model: ChatFriendli) -> None:
    server.enqueue(tool_calls(("f", ""), ("g", "null")))
    answer = await model.bind_tools([{"name": name, "parameters": {}} for name in "fg"]).ainvoke("Hi")
    assert [call["args"] for call in answer.tool_calls] == [{}, {}]


# --- structured output -----------------------------------------------------------------------------------------------


class Node(BaseModel):
    """A tree."""

    name: str
    children: list["Node"] = []


@pytest.mark.parametrize("streamed", [False, True])
async def test_structured_output_of_a_recursive_model(
    server: FriendliServer, model: ChatFriendli, streamed: bool
) -> None:
    server.always(
        lambda request: speak(request, Turn(tokenize('{"name": "a", "children": [{"name": "b", "children": []}]}')))
    )
    structured = model.with_structured_output(Node)
    if streamed:
        [*_, answer] = [piece async for piece in structured.astream("Hi")]
    else:
        answer = await structured.ainvoke("Hi")
    assert answer == Node(name="a", children=[Node(name="b")])
    schema = server.requests[-1].json_object["response_format"]["json_schema"]["schema"]
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name", "children"]


LOOK: Final = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
NAMED: Final = {"type": "function", "function": {"name": "look"}}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [("any", "required"), (True, "required"), ("none", "none"), ("look", NAMED), (NAMED, NAMED), (None, None)],
)
async def test_tool_choice_is_sent_in_the_format_of_the_api(
    server: FriendliServer, model: ChatFriendli, choice: Any, sent: Any
) -> None:
    body = await sent_body(server, model.bind_tools([LOOK], tool_choice=choice), HumanMessage("Hi"))
    assert body.get("tool_choice") == sent


async def test_function_calling_makes_the_model_call_the_function(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(tool_calls(("Node", {"name": "a"})))
    structured = model.with_structured_output(Node, method="function_calling", strict=True)
    assert await structured.ainvoke("Hi") == Node(name="a")
    body = server.requests[-1].json_object
    assert body["tool_choice"] == {"type": "function", "function": {"name": "Node"}}
    assert body["tools"][0]["function"]["strict"] is True


async def test_function_calling_with_a_json_schema_gives_a_dict(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(tool_calls(("node", {"name": "a"})))
    schema = {"title": "node", "description": "A tree.", "type": "object", "properties": {"name": {"type": "string"}}}
    structured = model.with_structured_output(schema, method="function_calling")
    assert await structured.ainvoke("Hi") == {"name": "a"}


async def test_strict_is_sent_and_decides_on_the_schema(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(lambda request: speak(request, Turn(tokenize('{"name": "a"}'))))
    assert await model.with_structured_output(Node, strict=False).ainvoke("Hi") == Node(name="a")
    form = server.requests[-1].json_object["response_format"]["json_schema"]
    assert (form["strict"], "additionalProperties" in form["schema"]) == (False, False)


async def test_json_mode_needs_no_schema(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(lambda request: speak(request, Turn(tokenize('{"a": 1}'))))
    assert await model.with_structured_output(method="json_mode").ainvoke("Hi") == {"a": 1}


async def test_include_raw_returns_message_and_parsing_error(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(lambda request: speak(request, Turn(tokenize('{"name": 1}'))))
    output = await model.with_structured_output(Node, include_raw=True).ainvoke("Hi")
    assert (output["raw"].content, output["parsed"]) == ('{"name": 1}', None)
    assert output["parsing_error"] is not None


def test_structured_output_rejects_missing_schema_and_unknown_method(model: ChatFriendli) -> None:
    with pytest.raises(ArgumentError, match="schema"):
        model.with_structured_output()
    with pytest.raises(ArgumentError, match="must be 'json_schema'"):
        model.with_structured_output(Node, method="yaml")  # type: ignore[arg-type]  # the tested mistake


# --- cancellation, errors, closing -----------------------------------------------------------------------------------


ENDLESS: Final = script(chunk("Hi "), chunk("there"), stall())


async def test_break_stops_generation(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(ENDLESS)
    gc.disable()  # closing must not depend on the garbage collector
    try:
        async for piece in model.astream("Hi"):
            assert piece.content == "Hi "
            break
        del piece
        await server.wait_until(lambda: server.active_requests == 0)
    finally:
        gc.enable()
    assert model.client is not None
    assert model.client.gauges().open_streams == 0


async def test_aclose_stops_generation_at_once(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(ENDLESS)
    async with aclosing(model.astream("Hi")) as pieces:  # type: ignore[type-var]  # it is a generator, declared an iterator
        await anext(pieces)
    assert model.client is not None
    assert model.client.gauges().open_streams == 0
    await server.wait_until(lambda: server.active_requests == 0)


@pytest.mark.parametrize("call", ["ainvoke", "astream"])
async def test_cancellation_stops_generation(server: FriendliServer, model: ChatFriendli, call: str) -> None:
    server.always(script(stall()))
    task = asyncio.ensure_future(stream_message(model) if call == "astream" else model.ainvoke("Hi"))
    await server.wait_for_requests()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.wait_until(lambda: server.active_requests == 0)


@pytest.mark.parametrize("how", ["break", "close"])
def test_leaving_a_blocking_stream_stops_generation(remote: FriendliServer, how: str) -> None:
    remote.always(ENDLESS)
    model = ChatFriendli(model="m", api_key=SecretStr("test-token"), base_url=remote.url)
    pieces = model.stream("Hi")
    if how == "close":
        assert next(pieces).content == "Hi "
        pieces.close()  # type: ignore[attr-defined]  # it is a generator, declared an iterator
    else:
        for piece in pieces:
            assert piece.content == "Hi "
            break
        del pieces
    assert model._own is not None
    assert model._own.gauges().open_streams == 0
    assert wait_until_idle(remote)
    model.close()


def wait_until_idle(server: FriendliServer) -> bool:
    """Waits until no request is in flight at a server with its own event loop."""
    run(server.wait_until(lambda: server.active_requests == 0))
    return True


def test_blocking_stream_dropped_in_the_background_loop_is_closed(remote: FriendliServer) -> None:
    remote.always(ENDLESS)
    model = ChatFriendli(model="m", api_key=SecretStr("test-token"), base_url=remote.url)
    held = [model.stream("Hi")]
    next(held[0])

    async def drop() -> None:
        held.clear()

    run(drop())
    assert wait_until_idle(remote)
    model.close()
    assert model._own is None


def test_blocking_call_in_the_background_loop_is_an_error(remote: FriendliServer) -> None:
    model = ChatFriendli(model="m", api_key=SecretStr("test-token"), base_url=remote.url)

    async def blocking() -> None:
        model.invoke("Hi")

    with pytest.raises(RuntimeError, match="await the async method"):
        run(blocking())


async def test_client_serves_blocking_and_async_calls(server: FriendliServer, model: ChatFriendli) -> None:
    blocking = await asyncio.to_thread(model.invoke, "Hi")
    awaited = await model.ainvoke("Hi")
    assert blocking.content == awaited.content == "You said: Hi"
    threads = [thread for thread in threading.enumerate() if thread.name == "friendli-async"]
    assert len(threads) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_errors_of_the_library_are_raised(server: FriendliServer, model: ChatFriendli, streamed: bool) -> None:
    server.always(status(429, headers={"Retry-After": "7"}))
    with pytest.raises(RateLimitError) as caught:
        await (stream_message(model) if streamed else model.ainvoke("Hi"))
    assert caught.value.retry_after == 7


async def test_interrupted_stream_raises_with_partial(server: FriendliServer, model: ChatFriendli) -> None:
    server.always(script(chunk("Hel"), reset()))
    with pytest.raises(StreamInterruptedError) as caught:
        await stream_message(model)
    assert caught.value.partial is not None
    assert caught.value.partial.text == "Hel"


async def test_fallback_model_answers_after_an_error(server: FriendliServer, client: AsyncFriendli) -> None:
    server.enqueue(status(429))
    one, other = (ChatFriendli(model=name, client=client) for name in ("one", "other"))
    answer = await one.with_fallbacks([other], exceptions_to_handle=(RateLimitError,)).ainvoke("Hi")
    assert answer.response_metadata["model_name"] == "other"


async def test_unknown_parameters_are_named(model: ChatFriendli) -> None:
    with pytest.raises(TypeError, match="temperature"):
        await model.ainvoke("Hi", temprature=1)
    with pytest.raises(ValidationError, match="temprature"):
        ChatFriendli(model="m", temprature=1)  # type: ignore[call-arg]  # the mistake under test


async def test_api_key_is_never_shown(server: FriendliServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "flp_very-secret"
    model = ChatFriendli(model="m", api_key=SecretStr(secret), base_url=server.url, max_retries=0)
    server.always(status(401))
    with pytest.raises(AuthenticationError) as caught:
        await model.ainvoke("Hi")
    with pytest.raises(ValidationError) as misspelled:
        ChatFriendli(model="m", apikey=secret)  # type: ignore[call-arg]  # the mistake under test
    shown = [repr(model), str(model), model.to_json(), model.asdict(), model.model_dump(), caught.value.args]
    shown += [str(misspelled.value), caplog.text, model._get_llm_string()]
    assert secret not in repr(shown)
    assert server.requests[-1].headers["Authorization"] == f"Bearer {secret}"
    assert not ChatFriendli.is_lc_serializable()


async def test_given_client_stays_open_and_own_client_is_closed(server: FriendliServer, client: AsyncFriendli) -> None:
    given = ChatFriendli(model="m", client=client)
    await given.ainvoke("Hi")
    await given.aclose()
    assert (await given.ainvoke("Hi")).content == "You said: Hi"
    own = ChatFriendli(model="m", api_key=SecretStr("test-token"), base_url=server.url)
    await own.ainvoke("Hi")
    await own.ainvoke("Hi")
    assert server.connections == 2  # of the given client, and of the own one
    own_client = own._own
    await own.aclose()
    assert "closed" in repr(own_client)
    assert own._own is None


async def test_model_dropped_in_a_reference_cycle_closes_its_connections(server: FriendliServer) -> None:
    model = ChatFriendli(model="m", api_key=SecretStr("test-token"), base_url=server.url)
    await model.ainvoke("Hi")
    cycle: list[Any] = [model]
    cycle.append(cycle)
    del model, cycle
    gc.collect()  # without a warning
    await server.wait_for_connections(0)
    assert server.open_connections == 0


async def test_model_settings_override_those_of_a_given_client(
    server: FriendliServer, client: AsyncFriendli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", "of-the-environment")
    await ChatFriendli(model="m", client=client).ainvoke("Hi")
    with pytest.raises(AuthenticationError):
        await ChatFriendli(model="m", client=client, api_key=SecretStr("another")).ainvoke("Hi")
    tokens = [request.headers["Authorization"] for request in server.requests]
    assert tokens == ["Bearer test-token", "Bearer another"]
    server.enqueue(status(503), status(503))
    await ChatFriendli(model="m", client=client, max_retries=2, timeout=60).ainvoke("Hi")
    assert len(server.requests) == 5


async def test_retries_and_timeout_of_the_model_keep_the_rest_of_the_clients_policy(server: FriendliServer) -> None:
    retried: list[Attempt] = []
    policy = RetryPolicy(statuses={429}, initial=0, on_retry=retried.append)
    async with client_of(server.url, retry=policy) as client:
        model = ChatFriendli(model="m", client=client, max_retries=3)
        server.enqueue(status(429), status(429), status(503))
        with pytest.raises(InternalServerError):  # a status that the client's policy does not retry
            await model.ainvoke("Hi")
        assert [attempt.status for attempt in retried] == [429, 429]
        server.enqueue(script(stall()))
        impatient = client.with_options(timeout=Timeouts(first_event=0.05))
        with pytest.raises(APITimeoutError) as caught:
            await anext(ChatFriendli(model="m", client=impatient, timeout=60).astream("Hi"))
        assert caught.value.limit == "first_event"


@pytest.mark.parametrize("deployment", ["serverless", "dedicated", "container"])
async def test_deployment_selects_the_path(server: FriendliServer, deployment: Any) -> None:
    key: Any = {} if deployment == "container" else {"api_key": "test-token"}
    model = ChatFriendli(model="m", base_url=server.url, deployment=deployment, **key)
    await model.ainvoke("Hi")
    prefix = "" if deployment == "container" else f"/{deployment}"
    assert server.requests[-1].path == f"{prefix}/v1/chat/completions"
    await model.aclose()


def test_program_without_close_exits_without_warnings(remote: FriendliServer) -> None:
    remote.always(ENDLESS)
    code = (
        "import sys; from friendli_async.integrations.langchain import ChatFriendli\n"
        f"model = ChatFriendli(model='m', api_key='test-token', base_url='{remote.url}')\n"
        "pieces = model.stream('Hi'); print(next(pieces).content)"
    )
    completed = subprocess.run(
        [sys.executable, "-X", "dev", *WARNINGS_ARE_ERRORS, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        completed.returncode,
        completed.stdout,
        [line for line in completed.stderr.splitlines() if " took " not in line],
    ) == (
        0,
        "Hi \n",
        [],
    )


def test_missing_extra_names_the_package_to_install() -> None:
    code = "import sys; sys.modules['langchain_core'] = None; import friendli_async.integrations.langchain"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'friendli_async[langchain]'" in completed.stderr


def test_package_import_loads_no_extra() -> None:
    code = (
        "import sys, friendli_async; friendli_async.AsyncFriendli('t')\n"
        "assert not {'langchain_core', 'pydantic', 'pydantic_ai'} & set(sys.modules)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (0, "")
