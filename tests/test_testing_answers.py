"""The embedded server's default replies: chat, tool-assisted chat, its built-in tools."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from support.embedded_server import AUTH, BUILT_IN, CHAT, TOOLS, function, post, user

from friendli_async.testing import FriendliServer
from friendli_async.testing.turns import tokenize


class Api:
    """Sends chat requests."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def ask(self, content: object = "one two", *, path: str = CHAT, **options: Any) -> dict[str, Any]:
        """Returns the JSON reply."""
        async with self._session.post(path, json={"model": "m", "messages": [user(content)], **options}) as response:
            assert response.status == 200, await response.text()
            reply: dict[str, Any] = await response.json()
            return reply

    async def text(self, content: object = "one two", **options: Any) -> str:
        """Returns the text of the JSON reply."""
        text: str = (await self.ask(content, **options))["choices"][0]["message"]["content"]
        return text

    async def stream(
        self, content: object = "one two", *, path: str = CHAT, **options: Any
    ) -> list[tuple[str | None, dict[str, Any]]]:
        """Returns the name and data of each event before the sentinel."""
        body = {"model": "m", "messages": [user(content)], "stream": True, **options}
        async with self._session.post(path, json=body) as response:
            assert response.content_type == "text/event-stream"
            *blocks, sentinel, rest = (await response.text()).split("\n\n")
        assert (sentinel, rest) == ("data: [DONE]", "")
        events: list[tuple[str | None, dict[str, Any]]] = []
        for block in blocks:
            head, _, data = block.rpartition("data: ")
            events.append((head.removeprefix("event: ").strip() or None, json.loads(data)))
        return events


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with FriendliServer() as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        yield Api(session)


# --- chat ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/dedicated/v1/chat/completions", "/v1/chat/completions", TOOLS])
async def test_plain_reply_echoes_last_user_message_with_usage(api: Api, path: str) -> None:
    messages = [{"role": "system", "content": "a b"}, user("first"), user("one two"), {"role": "assistant"}]
    reply = await api.ask(path=path, messages=messages)
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "m"
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "You said: one two"},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert [reply["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")] == [5, 4, 9]


async def test_container_does_not_require_model(api: Api) -> None:
    reply = await api.ask(path="/v1/chat/completions", model=None)
    assert reply["model"] == "friendli-testing"


@pytest.mark.parametrize(("count", "usages"), [({}, []), ({"stream_options": {"include_usage": True}}, [[]])])
async def test_stream_has_role_tokens_finish_reason_and_requested_usage(
    api: Api, count: dict[str, Any], usages: list[Any]
) -> None:
    events = await api.stream(**count)
    chunks = [data for name, data in events if name is None]
    assert len(chunks) == len(events)
    assert {(data["id"], data["model"], data["object"]) for data in chunks} == {
        ("chatcmpl-000001", "m", "chat.completion.chunk")
    }
    choices = [data["choices"][0] for data in chunks if data["choices"]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        *({"content": token} for token in ("You ", "said: ", "one ", "two")),
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
    assert [data["choices"] for data in chunks if data["usage"]] == usages


async def test_n_choices_are_interleaved_and_numbered(api: Api) -> None:
    events = await api.stream(n=3)
    assert [data["choices"][0]["index"] for _, data in events[:9]] == [0, 1, 2] * 3
    texts = ["", "", ""]
    for _, data in events:
        choice = data["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["You said: one two", "(2) You said: one two", "(3) You said: one two"]
    whole = await api.ask(n=3)
    assert [choice["message"]["content"] for choice in whole["choices"]] == texts


@pytest.mark.parametrize(
    ("limit", "text", "reason"),
    [
        (2, "You said: ", "length"),
        (0, "", "length"),
        (4, "You said: one two", "stop"),
        (None, "You said: one two", "stop"),
    ],
)
async def test_max_tokens_truncates_text(api: Api, limit: int | None, text: str, reason: str) -> None:
    choice = (await api.ask(max_tokens=limit))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)
    assert (await api.stream(max_tokens=limit))[-1][1]["choices"][0]["finish_reason"] == reason


async def test_echo_of_huge_message_is_truncated(api: Api) -> None:
    reply = await api.ask("x " * 100_000)
    assert reply["usage"]["completion_tokens"] == 4096
    assert reply["choices"][0]["finish_reason"] == "length"


async def test_requested_logprobs_cover_every_token(api: Api) -> None:
    whole = (await api.ask(logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in whole] == ["You ", "said: ", "one ", "two"]
    for entry in whole:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["top_logprobs"][0] == {name: entry[name] for name in ("token", "logprob", "bytes")}
        assert entry["top_logprobs"][1]["logprob"] < entry["logprob"] < 0
    streamed = [data["choices"][0]["logprobs"] for _, data in await api.stream(logprobs=True)]
    assert streamed[0] is streamed[-1] is None
    assert [piece["content"][0]["token"] for piece in streamed[1:-1]] == ["You ", "said: ", "one ", "two"]
    assert streamed[1]["content"][0]["top_logprobs"] == []


async def test_reasoning_comes_first_if_parsed_and_included(api: Api) -> None:
    message = (await api.ask(parse_reasoning=True, include_reasoning=True))["choices"][0]["message"]
    assert message["reasoning_content"] == "The last message has 2 words. I repeat it."
    assert message["content"] == "You said: one two"
    deltas = [data["choices"][0]["delta"] for _, data in await api.stream(parse_reasoning=True, include_reasoning=True)]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert ["reasoning_content" in delta for delta in deltas[1:-1]] == [True] * 9 + [False] * 4
    assert "reasoning_content" not in (await api.ask(parse_reasoning=True))["choices"][0]["message"]


async def test_text_parts_are_joined_and_images_ignored(api: Api) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert await api.text([{"type": "text", "text": "a"}, picture, {"type": "text", "text": "b"}]) == "You said: a b"


async def test_reply_without_user_text_is_a_greeting(api: Api) -> None:
    assert await api.text(messages=[]) == "Hello! How can I help?"
    assert await api.text("") == "Hello! How can I help?"


async def test_lone_surrogate_is_echoed_as_escape(api: Api) -> None:
    assert await api.text("\ud83d", logprobs=True) == "You said: \ud83d"


@pytest.mark.parametrize(
    ("response_format", "value"),
    [
        ({"type": "json_object"}, {"answer": "You said: one two"}),
        (
            {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"type": "integer"}}}}},
            {"a": 1},
        ),
    ],
)
async def test_response_format_is_honored(api: Api, response_format: dict[str, Any], value: object) -> None:
    assert json.loads(await api.text(response_format=response_format)) == value


# --- functions -------------------------------------------------------------------------------------------------------


async def test_named_function_is_called_with_schema_conforming_arguments(api: Api) -> None:
    tools = [function("a"), function("b", city={"type": "string"}, days={"type": "integer"})]
    choice = {"type": "function", "function": {"name": "b"}}
    reply = (await api.ask(tools=tools, tool_choice=choice))["choices"][0]
    (call,) = reply["message"]["tool_calls"]
    assert (reply["finish_reason"], reply["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]["name"]) == ("function", "b")
    assert json.loads(call["function"]["arguments"]) == {"city": "one two", "days": 1}


async def test_streamed_call_has_name_first_then_argument_fragments(api: Api) -> None:
    tools = [function("a", x={"type": "string"}), function("b")]
    events = await api.stream(tools=tools, tool_choice="required", parallel_tool_calls=True)
    deltas = [data["choices"][0]["delta"] for _, data in events]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    starts = [call for call in calls if "id" in call]
    assert [(call["index"], call["function"]) for call in starts] == [
        (0, {"name": "a", "arguments": ""}),
        (1, {"name": "b", "arguments": ""}),
    ]
    assert len({call["id"] for call in starts}) == 2
    arguments = ["".join(call["function"]["arguments"] for call in calls if call["index"] == index) for index in (0, 1)]
    assert [json.loads(text) for text in arguments] == [{"x": "one two"}, {}]
    assert len(calls) > 4
    assert events[-1][1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_required_calls_the_first_function_only(api: Api) -> None:
    reply = await api.ask(tools=[function("a"), function("b")], tool_choice="required")
    assert [call["function"]["name"] for call in reply["choices"][0]["message"]["tool_calls"]] == ["a"]


@pytest.mark.parametrize("choice", ["auto", "none", {"type": "function", "function": {"name": "unknown"}}])
async def test_functions_are_called_only_on_request(api: Api, choice: object) -> None:
    assert await api.text(tools=[function()], tool_choice=choice) == "You said: one two"


async def test_format_beside_tools_is_rejected_unless_it_is_text() -> None:
    async with FriendliServer() as server, aiohttp.ClientSession(server.url, headers=AUTH) as session:
        status, _ = await post(session, tools=[function()], response_format={"type": "text"})
        assert status == 200
        status, body = await post(session, tools=[function()], response_format={"type": "json_object"})
        assert (status, b"response_format and tools cannot be used together" in body) == (400, True)


async def test_tool_result_is_answered_with_text(api: Api) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        user("x"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    assert await api.text(messages=messages, tools=[function()]) == "The tool says: 42"
    messages[0] = user("Call the weather")
    assert await api.text(messages=messages, tools=[function("weather")]) == "The tool says: 42"


# --- tool-assisted chat ----------------------------------------------------------------------------------------------


def statuses(events: list[tuple[str | None, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [data for name, data in events if name == "tool_status"]


def content(events: list[tuple[str | None, dict[str, Any]]]) -> str:
    return "".join(data["choices"][0]["delta"].get("content", "") for name, data in events if name is None)


async def test_calculator_runs_mid_stream(api: Api) -> None:
    events = await api.stream("What is 2 * (3 + 4)?", path=TOOLS, tools=BUILT_IN[:1])
    started, ended = statuses(events)
    assert started == {
        "tool_call_id": "call_000001_0",
        "name": "math:calculator",
        "status": "STARTED",
        "parameters": [{"name": "expression", "value": "2 * (3 + 4)"}],
        "result": "None",
        "files": None,
        "message": None,
        "error": None,
        "usage": None,
        "timestamp": events[0][1]["created"],
    }
    assert {**ended, "result": "None", "status": "STARTED"} == started
    assert json.loads(json.loads(ended["result"])) == {"result": "2 * (3 + 4)=14"}
    names = [name for name, _ in events]
    assert names == [None] + ["tool_status"] * 2 + [None] * 11
    text = "The result of 2 * (3 + 4) is 14."
    assert content(events) == text == await api.text("What is 2 * (3 + 4)?", path=TOOLS, tools=BUILT_IN[:1])


async def test_every_built_in_tool_is_used_in_order(api: Api) -> None:
    events = await api.stream("See: 1 + 2?", path=TOOLS, tools=BUILT_IN)
    reports = statuses(events)
    names = [tool["type"] for tool in BUILT_IN]
    for status in ("STARTED", "ENDED"):
        assert [report["name"] for report in reports if report["status"] == status] == names
    assert [report["name"] for report in reports if report["status"] == "UPDATING" and report["message"]] == names[1:]
    for report in reports:
        assert all(isinstance(parameter["value"], str) for parameter in report["parameters"])
        assert report["status"] != "ENDED" or isinstance(json.loads(json.loads(report["result"])), dict)


async def test_calculator_needs_an_expression_and_tool_choice_none_disables_tools(api: Api) -> None:
    assert await api.text("Hello!", path=TOOLS, tools=[BUILT_IN[0], function()]) == "You said: Hello!"
    assert statuses(await api.stream("1+1", path=TOOLS, tools=BUILT_IN, tool_choice="none")) == []


@pytest.mark.parametrize(
    ("question", "kind", "message"),
    [("What is 1/0?", "ZeroDivisionError", "division by zero"), ("2 +* 3", "SyntaxError", "the expression is invalid")],
)
async def test_failed_calculation_is_reported_and_ends_the_turn(
    api: Api, question: str, kind: str, message: str
) -> None:
    events = await api.stream(question, path=TOOLS, tools=BUILT_IN)
    assert [report["status"] for report in statuses(events)] == ["STARTED", "ERRORED"]
    assert statuses(events)[-1]["error"] == {"type": kind, "msg": message}
    assert statuses(events)[-1]["result"] is None
    assert "could not compute" in content(events)


async def test_resume_generation_continues_after_tool_failure(api: Api) -> None:
    events = await api.stream("1/0", path=TOOLS, tools=BUILT_IN[:3], resume_generation=True)
    assert [report["status"] for report in statuses(events)] == [
        *("STARTED", "ERRORED"),
        *["STARTED", "UPDATING", "ENDED"] * 2,
    ]


async def test_built_in_tools_and_functions_can_be_combined(api: Api) -> None:
    tools = [BUILT_IN[2], function()]
    events = await api.stream(path=TOOLS, tools=tools, tool_choice="required")
    assert len(statuses(events)) == 3
    assert events[-1][1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_tool_statuses_ignore_max_tokens_and_are_sent_for_first_choice_only(api: Api) -> None:
    events = await api.stream("1+1", path=TOOLS, tools=BUILT_IN[:1], max_tokens=1, n=2)
    assert [report["status"] for report in statuses(events)] == ["STARTED", "ENDED"]


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " ", "a", " a", "a  b\n c ", "Grüße 🎉\u2028x"])
def test_joined_tokens_equal_the_text(text: str) -> None:
    assert "".join(tokenize(text)) == text
