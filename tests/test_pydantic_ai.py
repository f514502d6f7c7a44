"""Pydantic AI agents on Friendli models, plain and streamed."""

import asyncio
import base64
import gc
import json
import subprocess
import sys
from typing import Any, Final

import pytest

pytest.importorskip("pydantic_ai", reason="the extra `pydantic-ai` is not installed")

from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, RunContext, ToolOutput, UsageLimits, exceptions
from pydantic_ai.direct import model_request
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    CachePoint,
    DocumentUrl,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,  # pyright: ignore[reportDeprecated]  # the subject of the test
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
    VideoUrl,
)
from pydantic_ai.models import ModelRequestParameters, override_allow_model_requests
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.settings import ModelSettings, ToolOrOutput
from pydantic_ai.tools import ToolDefinition
from support.signatures import REFUSAL, SIGNED_ANSWER, refused_answer, signed_answer
from support.sockets import client_of, unresponsive_port

from friendli_async import (
    APITimeoutError,
    AsyncFriendli,
    Attempt,
    FriendliError,
    RateLimitError,
    RetryPolicy,
    StreamInterruptedError,
    Timeouts,
    UsageLimit,
    UsageLimitError,
)
from friendli_async.integrations.pydantic_ai import FriendliModel
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
    text,
    tool_calls,
)

PIXEL: Final = base64.b64encode(b"\x89PNG\r\n").decode()
BOTH: Final = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@pytest.fixture
def model(client: AsyncFriendli) -> FriendliModel:
    return FriendliModel("m", client=client)


class RunResult(BaseModel):
    """The result of a plain or a streamed run."""

    output: Any
    usage: Any
    messages: list[Any]


async def run(agent: Agent[Any, Any], prompt: Any, streamed: bool, **options: Any) -> RunResult:
    if not streamed:
        result = await agent.run(prompt, **options)
        return RunResult(output=result.output, usage=result.usage, messages=result.all_messages())
    async with agent.run_stream(prompt, **options) as answer:
        output = await answer.get_output()
        return RunResult(output=output, usage=answer.usage, messages=answer.all_messages())


def now() -> str:
    """The time."""
    return "noon"


class City(BaseModel):
    """A city."""

    name: str
    people: int


# --- text and typed output -------------------------------------------------------------------------------------------


@BOTH
async def test_text_and_usage(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    result = await run(Agent(model), "Hi there", streamed)
    assert result.output == "You said: Hi there"
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.requests) == (2, 4, 1)
    answer = result.messages[-1]
    fields = (answer.model_name, answer.provider_name, answer.provider_response_id, answer.finish_reason)
    assert fields == ("m", "friendli", "chatcmpl-000001", "stop")
    assert answer.provider_details == {"finish_reason": "stop"}
    assert server.requests[0].json_object.get("stream", False) is streamed


async def test_text_is_streamed_in_deltas(server: FriendliServer, model: FriendliModel) -> None:
    async with Agent(model).run_stream("one two") as answer:
        deltas = [delta async for delta in answer.stream_text(delta=True, debounce_by=None)]
    assert deltas == ["You ", "said: ", "one ", "two"]


@BOTH
@pytest.mark.parametrize(
    ("kind", "sent"),
    [(City, "tools"), (ToolOutput(City), "tools"), (NativeOutput(City), "json_schema"), (PromptedOutput(City), "json")],
    ids=["typed", "tool", "native", "prompted"],
)
async def test_typed_output(server: FriendliServer, model: FriendliModel, streamed: bool, kind: Any, sent: str) -> None:
    if sent == "json":  # the server does not read the schema in the prompt
        server.enqueue(
            text('{"name": "Paris", ', '"people": 2}') if streamed else plain_reply('{"name": "Paris", "people": 2}')
        )
    result = await run(Agent(model, output_type=kind), "Paris", streamed)
    assert isinstance(result.output, City)
    body = server.requests[0].json_object
    if sent == "tools":
        assert body["tool_choice"] == "required"
        assert body["tools"][0]["function"]["parameters"]["required"] == ["name", "people"]
    elif sent == "json":
        assert body["response_format"] == {"type": "json_object"}
    else:
        assert body["response_format"]["json_schema"]["name"] == "City"
        assert body["response_format"]["json_schema"]["schema"]["additionalProperties"] is False


def plain_reply(content: str) -> Any:
    choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
    return json_body({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}})


async def test_prompted_output_with_tools_restricts_no_format(server: FriendliServer, model: FriendliModel) -> None:
    def look() -> str:
        return "nothing"

    server.always(text('{"name": "Rome", "people": 3}'))
    result = await Agent(model, output_type=PromptedOutput(City), tools=[look]).run("Hi")
    assert result.output == City(name="Rome", people=3)
    assert "response_format" not in server.requests[0].json_object


@BOTH
async def test_invalid_output_is_retried(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    server.enqueue(
        tool_calls(("final_result", {"name": "Paris", "people": "many"})),
        tool_calls(("final_result", {"name": "Paris", "people": 2})),
    )
    agent = Agent(model, output_type=City, retries=1)
    # `run_stream` does not retry, so the streamed case is `run` with an event handler.
    result = await agent.run("Paris", event_stream_handler=ignore_events if streamed else None)
    assert server.requests[1].json_object.get("stream", False) is streamed
    assert result.output == City(name="Paris", people=2)
    assert "people" in str(server.requests[1].json_object["messages"][-1]["content"])


@BOTH
async def test_reasoning_becomes_a_thinking_part_and_is_sent_back(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    agent = Agent(model, model_settings={"extra_body": {"parse_reasoning": True, "include_reasoning": True}})
    result = await run(agent, "Hi there", streamed)
    reasoning = "The last message has 2 words. I repeat it."
    assert [type(part) for part in result.messages[-1].parts] == [ThinkingPart, TextPart]
    assert result.messages[-1].parts[0].content == reasoning
    await run(agent, "Go on", streamed, message_history=result.messages)
    assert server.requests[-1].json_object["messages"][1] == {
        "role": "assistant",
        "content": "You said: Hi there",
        "reasoning_content": reasoning,
    }


@BOTH
async def test_signatures_are_sent_back_to_their_provider(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    agent = Agent(model, tools=[now])
    server.enqueue(signed_answer(streamed=streamed))
    history = (await run(agent, "Hi", streamed)).messages
    sent = {name: value for name, value in SIGNED_ANSWER.items() if name != "annotations"}
    assert server.requests[1].json_object["messages"][1] == {**sent, "role": "assistant", "content": None}
    for part in history[1].parts:
        part.provider_name = "another"
    await run(agent, "Hi", streamed, message_history=history)
    plain = [{key: value for key, value in SIGNED_ANSWER["tool_calls"][0].items() if key in {"id", "type", "function"}}]
    assert server.requests[-1].json_object["messages"][1] == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm, so",
        "tool_calls": plain,
    }


@BOTH
async def test_refusal_is_the_error_of_a_content_filter(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    server.enqueue(refused_answer(streamed=streamed))
    with pytest.raises(exceptions.ContentFilterError, match=REFUSAL):
        await run(Agent(model), "Hi", streamed)
    assert len(server.requests) == 1


@BOTH
async def test_usage_details(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 6}, "completion_tokens_details": {"reasoning_tokens": 2}}
    counts = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14, **details}
    if streamed:
        server.enqueue(script(chunk("Hi"), finish(), event({"choices": [], "usage": counts}), done()))
    else:
        choices = [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]
        server.enqueue(json_body({"choices": choices, "usage": counts}))
    usage = (await run(Agent(model), "Hi", streamed)).usage
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (9, 6, 5)
    assert usage.details == {"reasoning_tokens": 2}


async def test_streamed_answer_is_the_first_choice_of_the_model_that_the_server_names(
    server: FriendliServer, model: FriendliModel
) -> None:
    other = event({"model": "m-2", "choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "length"}]})
    server.enqueue(script(chunk("Hi"), finish(), other, done()))
    answer = (await run(Agent(model), "Hi", streamed=True)).messages[-1]
    assert (answer.text, answer.model_name, answer.finish_reason) == ("Hi", "m-2", "stop")


@BOTH
async def test_missing_usage_counts_as_unmeasured(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    choices = [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]
    server.enqueue(script(chunk("Hi"), finish(), done()) if streamed else json_body({"choices": choices}))
    assert (await run(Agent(model), "Hi", streamed)).usage.unmeasured_requests == 1


async def ignore_events(_: RunContext[object], events: Any) -> None:
    async for _event in events:
        pass


# --- tools -----------------------------------------------------------------------------------------------------------


@BOTH
async def test_tools_are_called_and_their_results_sent_back(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    agent = Agent(model)

    @agent.tool_plain
    def weather(city: str) -> str:
        """Weather of a city."""
        return f"sun in {city}"

    server.enqueue(tool_calls(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})))
    result = await run(agent, "How is it?", streamed)
    assert result.output == "The tool says: sun in Paris, sun in Rome"
    first, second = (request.json_object for request in server.requests)
    assert first["tools"][0]["function"]["name"] == "weather"
    assert first["tool_choice"] == "auto"
    calls = second["messages"][1]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]
    results = [(message["tool_call_id"], message["content"]) for message in second["messages"][2:]]
    assert results == [(calls[0]["id"], "sun in Paris"), (calls[1]["id"], "sun in Rome")]


@BOTH
async def test_tool_may_request_a_retry(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    agent = Agent(model)

    @agent.tool
    def count(ctx: RunContext[object], word: str) -> int:
        """Letters of a word."""
        if " " in word:
            raise ModelRetry("one word only")
        return len(word)

    server.enqueue(tool_calls(("count", {"word": "a b"})), tool_calls(("count", {"word": "abc"})))
    result = await run(agent, "Letters?", streamed)
    assert result.output.endswith(" 3")
    assert "one word only" in server.requests[1].json_object["messages"][-1]["content"]


@BOTH
@pytest.mark.parametrize("arguments", ['{"word": ', '{"word": 1}', "{}"], ids=["truncated", "wrong type", "missing"])
async def test_invalid_arguments_are_reported_to_the_model(
    server: FriendliServer, model: FriendliModel, streamed: bool, arguments: str
) -> None:
    agent = Agent(model)

    @agent.tool_plain
    def count(word: str) -> int:
        """Letters of a word."""
        return len(word)

    server.enqueue(tool_calls(("count", arguments)), tool_calls(("count", {"word": "abc"})))
    assert (await run(agent, "Letters?", streamed)).output.endswith(" 3")
    messages = server.requests[1].json_object["messages"]
    assert messages[-1]["role"] == "tool"


@BOTH
async def test_file_returned_by_a_tool_is_sent_in_a_user_message(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    agent = Agent(model)

    @agent.tool_plain
    def photo() -> BinaryContent:
        """A photo."""
        return BinaryContent(b"\x89PNG\r\n", media_type="image/png")

    server.enqueue(tool_calls(("photo", {})), text("Nice.") if streamed else plain_reply("Nice."))
    await run(agent, "Show me", streamed)
    *_, tool, user = server.requests[1].json_object["messages"]
    assert (tool["role"], user["role"]) == ("tool", "user")
    assert {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}} in user["content"]


def function_choice(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "output", "names", "sent"),
    [
        (None, str, ["a", "b"], "auto"),
        ("auto", City, ["a", "b", "final_result"], "required"),
        ("none", str, ["a", "b"], "none"),
        ("none", City, ["final_result"], function_choice("final_result")),
        (["a", "final_result"], City, ["a", "final_result"], "required"),
        (["final_result"], City, ["final_result"], function_choice("final_result")),
        (ToolOrOutput(["b"]), str, ["b"], "auto"),
        (ToolOrOutput([]), str, ["a", "b"], "none"),
        (ToolOrOutput(["b"]), City, ["b", "final_result"], "required"),
        (ToolOrOutput([]), City, ["final_result"], function_choice("final_result")),
    ],
)
async def test_tool_choice(
    server: FriendliServer, model: FriendliModel, choice: Any, output: Any, names: list[str], sent: Any
) -> None:
    agent = Agent(model, output_type=output, tools=[a, b])
    if output is City:
        server.enqueue(tool_calls(("final_result", {"name": "Paris", "people": 2})))
    settings = ModelSettings() if choice is None else ModelSettings(tool_choice=choice)
    await agent.run("Hi", model_settings=settings)
    body = server.requests[0].json_object
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert body["tool_choice"] == sent


def a() -> str:
    """One."""
    return "a"


def b() -> str:
    """Another."""
    return "b"


async def test_required_tool_choice_is_that_of_a_function(model: FriendliModel, server: FriendliServer) -> None:
    # An agent rejects this setting, which would never let it end.
    function, output = ToolDefinition(name="a"), ToolDefinition(name="final_result", kind="output")
    parameters = ModelRequestParameters(function_tools=[function], output_tools=[output], allow_text_output=False)
    await model.request([ModelRequest.user_text_prompt("Hi")], {"tool_choice": "required"}, parameters)
    body = server.requests[0].json_object
    assert [tool["function"]["name"] for tool in body["tools"]] == ["a"]
    assert body["tool_choice"] == function_choice("a")


async def test_tool_choice_of_an_unknown_tool_is_rejected(server: FriendliServer, model: FriendliModel) -> None:
    agent = Agent(model, output_type=City, tools=[a])
    with pytest.raises(exceptions.UserError, match="nope"):
        await agent.run("Hi", model_settings={"tool_choice": ToolOrOutput(["nope"])})
    assert server.requests == []


# --- inputs ----------------------------------------------------------------------------------------------------------


@BOTH
async def test_media_of_all_types_are_sent(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    prompt = [
        "What?",
        ImageUrl("https://example.com/a.png"),
        AudioUrl("https://example.com/a.wav"),
        VideoUrl("https://example.com/a.mp4"),
        CachePoint(),
        BinaryContent(b"\x89PNG\r\n", media_type="image/png"),
        BinaryContent(b"\x89PNG\r\n", media_type="audio/wav"),
        BinaryContent(b"\x89PNG\r\n", media_type="video/mp4"),
    ]
    await run(Agent(model), prompt, streamed)
    sent = [(part["type"], part.get(part["type"])) for part in server.requests[0].json_object["messages"][0]["content"]]
    assert sent == [
        ("text", "What?"),
        ("image_url", {"url": "https://example.com/a.png"}),
        ("audio_url", {"url": "https://example.com/a.wav"}),
        ("video_url", {"url": "https://example.com/a.mp4"}),
        ("image_url", {"url": f"data:image/png;base64,{PIXEL}"}),
        ("audio_url", {"url": f"data:audio/wav;base64,{PIXEL}"}),
        ("video_url", {"url": f"data:video/mp4;base64,{PIXEL}"}),
    ]


@BOTH
@pytest.mark.parametrize(
    "item", [DocumentUrl("https://example.com/a.pdf"), BinaryContent(b"%PDF", media_type="application/pdf")]
)
async def test_documents_are_rejected(server: FriendliServer, model: FriendliModel, streamed: bool, item: Any) -> None:
    with pytest.raises(exceptions.UserError, match="pdf"):
        await run(Agent(model), ["What?", item], streamed)
    assert server.requests == []


async def test_retry_prompts_in_the_history_are_sent(server: FriendliServer, model: FriendliModel) -> None:
    with pytest.warns(Warning, match="`RetryPromptPart` is deprecated"):
        prompts = [RetryPromptPart("shorter"), RetryPromptPart("no such city", tool_name="f", tool_call_id="c")]  # pyright: ignore[reportDeprecated]  # the subject of the test
    call = ModelResponse([ToolCallPart("f", "{}", tool_call_id="c")])
    history: list[ModelMessage] = [ModelRequest([prompts[0]]), call, ModelRequest([prompts[1]])]
    await model.request(history, None, ModelRequestParameters())
    user, _, result = server.requests[-1].json_object["messages"]
    assert user["role"] == "user"
    assert user["content"].startswith("Validation feedback:\nshorter")
    assert (result["role"], result["tool_call_id"]) == ("tool", "c")
    assert result["content"].startswith("no such city")


async def test_instructions_follow_the_system_prompts(server: FriendliServer, model: FriendliModel) -> None:
    await Agent(model, system_prompt="One.", instructions="Two.").run("Hi")
    sent = [(message["role"], message["content"]) for message in server.requests[0].json_object["messages"]]
    assert sent == [("system", "One."), ("system", "Two."), ("user", "Hi")]


async def test_retries_and_timeout_of_the_settings_keep_the_rest_of_the_clients_policy(server: FriendliServer) -> None:
    retried: list[Attempt] = []
    policy = RetryPolicy(statuses={429}, initial=0, on_retry=retried.append)
    async with client_of(server.url, retry=policy) as client:
        server.enqueue(status(429), status(429), status(503))
        with pytest.raises(exceptions.ModelHTTPError):  # a status that the client's policy does not retry
            await Agent(FriendliModel("m", client=client)).run("Hi", model_settings={"max_retries": 3})
        assert [attempt.status for attempt in retried] == [429, 429]
        server.enqueue(script(stall()))
        impatient = client.with_options(timeout=Timeouts(first_event=0.05))
        with pytest.raises(exceptions.ModelTimeoutError) as caught:
            await Agent(FriendliModel("m", client=impatient)).run("Hi", model_settings={"timeout": 60})
        assert isinstance(caught.value.__cause__, APITimeoutError)
        assert caught.value.__cause__.limit == "first_event"
        settings: Any = {"timeout": Timeouts(total=60)}
        with pytest.raises(exceptions.UserError, match="must be a number of seconds"):
            await Agent(FriendliModel("m", client=client)).run("Hi", model_settings=settings)


async def test_settings_map_to_api_parameters(server: FriendliServer, model: FriendliModel) -> None:
    settings = ModelSettings(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        seed=1,
        stop_sequences=["x"],
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": 1},
        parallel_tool_calls=False,
        thinking=False,
        extra_body={"min_p": 0.1},
        extra_headers={"X-Mine": "yes"},
        timeout=60,
        max_retries=1,
    )
    server.enqueue(status(503))
    await Agent(model, tools=[a]).run("Hi", model_settings=settings)
    request = server.requests[-1]
    body = {name: value for name, value in request.json_object.items() if name not in ("model", "messages", "tools")}
    assert body == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 3,
        "seed": 1,
        "stop": ["x"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": 1},
        "parallel_tool_calls": False,
        "reasoning_budget": 0,
        "min_p": 0.1,
        "tool_choice": "auto",
    }
    assert request.headers["X-Mine"] == "yes"
    assert len(server.requests) == 2
    await Agent(model).run("Hi", model_settings={"thinking": "high"})
    assert server.requests[-1].json_object["reasoning_effort"] == "high"


@pytest.mark.parametrize("deployment", ["serverless", "dedicated", "container"])
async def test_each_deployment_has_its_path(server: FriendliServer, deployment: Any) -> None:
    async with AsyncFriendli("test-token", server_url=server.url, container_url=server.url) as client:
        await Agent(FriendliModel("m", client=client, deployment=deployment)).run("Hi")
    prefix = "" if deployment == "container" else f"/{deployment}"
    assert server.requests[-1].path == f"{prefix}/v1/chat/completions"


async def test_history_of_another_provider_is_sent(server: FriendliServer, model: FriendliModel) -> None:
    history: list[ModelMessage] = [
        ModelRequest([UserPromptPart("Hi")]),
        ModelResponse([ThinkingPart("Hm."), TextPart("So"), ToolCallPart("f", {"x": "ü"}, tool_call_id="1")]),
        ModelRequest([ToolReturnPart("f", {"y": 1}, tool_call_id="1")]),
        ModelResponse([ThinkingPart("")]),
        ModelResponse([ThinkingPart("Only.")]),
        ModelRequest([UserPromptPart("Go on")]),
    ]
    answer = await model_request(model, history)
    assert isinstance(answer.parts[0], TextPart)
    assistant, tool, thought, _ = server.requests[0].json_object["messages"][1:]
    assert (assistant["content"], assistant["reasoning_content"]) == ("So", "Hm.")
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":"ü"}'}
    assert tool == {"role": "tool", "tool_call_id": "1", "content": '{"y":1}'}
    assert (thought["content"], thought["reasoning_content"]) == (None, "Only.")


# --- cancellation ----------------------------------------------------------------------------------------------------


async def test_leaving_a_run_closes_the_stream(
    server: FriendliServer, client: AsyncFriendli, model: FriendliModel
) -> None:
    server.always(script(chunk("Hi "), chunk("there"), stall()))
    async with Agent(model).run_stream("Hi") as answer:
        async for delta in answer.stream_text(delta=True, debounce_by=None):
            assert delta == "Hi "
            break
    assert client.gauges().open_streams == 0
    await server.wait_until(lambda: server.active_requests == 0)


async def test_cancelling_the_response_closes_the_stream(server: FriendliServer, model: FriendliModel) -> None:
    server.always(script(chunk("Hi "), stall()))
    async with model.request_stream([ModelRequest([UserPromptPart("Hi")])], None, ModelRequestParameters()) as answer:
        reading = asyncio.ensure_future(collect(answer))
        await server.wait_for_requests()
        await answer.cancel()
        await reading
        assert answer.get().state == "interrupted"
    await server.wait_until(lambda: server.active_requests == 0)


async def collect(events: Any) -> list[Any]:
    return [event async for event in events]


@BOTH
async def test_cancelling_a_run_aborts_the_request(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    server.always(script(stall()))
    task = asyncio.ensure_future(run(Agent(model), "Hi", streamed))
    await server.wait_for_requests()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.wait_until(lambda: server.active_requests == 0)


# --- errors ----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, exceptions.ModelRequestRejectedError),
        (401, exceptions.ModelAuthenticationError),
        (404, exceptions.ModelNotFoundError),
        (409, exceptions.ModelHTTPError),
        (422, exceptions.ModelRequestRejectedError),
        (429, exceptions.ModelRateLimitError),
        (500, exceptions.ModelServerError),
        (503, exceptions.ModelUnavailableError),
    ],
)
async def test_error_status_is_mapped_to_the_matching_exception(
    server: FriendliServer, model: FriendliModel, streamed: bool, code: int, kind: type[Exception]
) -> None:
    server.always(status(code, headers={"Retry-After": "7"}))
    with pytest.raises(exceptions.ModelHTTPError) as caught:
        await run(Agent(model), "Hi", streamed)
    error = caught.value
    assert isinstance(error, kind)
    assert isinstance(error, exceptions.ModelServerError) is (code == 500)
    assert (error.status_code, error.model_name, error.retry_after, error.in_stream) == (code, "m", 7, False)
    assert isinstance(error.__cause__, FriendliError)


async def test_error_event_is_mapped_to_the_same_exception(server: FriendliServer, model: FriendliModel) -> None:
    server.always(script(chunk("Hi"), event({"error": {"message": "slow down", "code": "rate_limit_exceeded"}})))
    with pytest.raises(exceptions.ModelRateLimitError) as caught:
        await run(Agent(model), "Hi", streamed=True)
    assert isinstance(caught.value, exceptions.ModelHTTPError)
    assert (caught.value.status_code, caught.value.in_stream) == (429, True)
    assert isinstance(caught.value.__cause__, RateLimitError)


async def test_error_event_without_a_status_is_mapped_to_none(server: FriendliServer, model: FriendliModel) -> None:
    server.always(script(chunk("Hi"), event({"error": {"message": "broken"}})))
    with pytest.raises(exceptions.ModelAPIError, match=r"^broken") as caught:
        await run(Agent(model), "Hi", streamed=True)
    assert not isinstance(caught.value, exceptions.ModelHTTPError)
    assert caught.value.in_stream


async def test_truncated_stream_raises_connection_error_with_partial(
    server: FriendliServer, model: FriendliModel
) -> None:
    server.always(script(chunk("Hel"), reset()))
    with pytest.raises(exceptions.ModelConnectionError) as caught:
        await run(Agent(model), "Hi", streamed=True)
    cause = caught.value.__cause__
    assert isinstance(cause, StreamInterruptedError)
    assert cause.partial is not None
    assert cause.partial.text == "Hel"


@BOTH
async def test_timeout_raises_timeout_error(server: FriendliServer, client: AsyncFriendli, streamed: bool) -> None:
    server.always(script(stall()))
    model = FriendliModel("m", client=client.with_options(timeout=Timeouts(first_event=0.05)))
    with pytest.raises(exceptions.ModelTimeoutError) as caught:
        await run(Agent(model), "Hi", streamed)
    assert caught.value.phase == "read"


@BOTH
async def test_failed_connection_raises_connection_error(streamed: bool) -> None:
    async with AsyncFriendli("test-token", server_url="http://127.0.0.1:1", retry=None) as client:
        with pytest.raises(exceptions.ModelConnectionError) as caught:
            await run(Agent(FriendliModel("m", client=client)), "Hi", streamed)
    assert caught.value.phase == "connect"


@pytest.mark.parametrize("failure", ["refused", "connect timeout", "reset"])
async def test_message_of_a_connection_error_names_no_server(server: FriendliServer, failure: str) -> None:
    server.always(script(chunk("Hel"), reset()))
    with unresponsive_port() as port:
        silent, refusing = f"127.0.0.1:{port}", "127.0.0.1:1"
        address = {"refused": refusing, "connect timeout": silent}.get(failure, server.url.removeprefix("http://"))
        url = f"https://{address}" if failure == "connect timeout" else f"http://{address}"
        async with client_of(url, timeout=Timeouts(connect=0.05)) as client:
            with pytest.raises(exceptions.ModelAPIError) as caught:
                await run(Agent(FriendliModel("m", client=client)), "Hi", streamed=True)
    assert address in str(caught.value.__cause__)
    assert address not in str(caught.value)  # UI adapters send it to browsers


async def test_invalid_reply_raises_unexpected_model_behavior(server: FriendliServer, model: FriendliModel) -> None:
    server.always(json_body({"hello": 1}))
    with pytest.raises(exceptions.UnexpectedModelBehavior):
        await run(Agent(model), "Hi", streamed=False)


def raises_user_error() -> pytest.RaisesExc[RateLimitError]:
    return pytest.raises(RateLimitError, match="of the user's")


async def test_error_of_user_code_is_not_mapped(server: FriendliServer, model: FriendliModel) -> None:
    with raises_user_error():
        async with Agent(model).run_stream("Hi"):
            raise RateLimitError("of the user's", status_code=429)
    await server.wait_until(lambda: server.active_requests == 0)
    assert len(server.requests) == 1


@BOTH
async def test_fallback_model_answers_after_a_failure(
    server: FriendliServer, client: AsyncFriendli, streamed: bool
) -> None:
    server.enqueue(status(429))
    both = FallbackModel(FriendliModel("one", client=client), FriendliModel("other", client=client))
    result = await run(Agent(both), "Hi", streamed)
    assert result.messages[-1].model_name == "other"


@BOTH
async def test_nothing_is_sent_if_requests_to_models_are_not_allowed(
    server: FriendliServer, model: FriendliModel, streamed: bool
) -> None:
    with override_allow_model_requests(False), pytest.raises(RuntimeError, match="not allowed"):
        await run(Agent(model), "Hi", streamed)
    assert server.requests == []


@BOTH
async def test_usage_limits_are_enforced(server: FriendliServer, model: FriendliModel, streamed: bool) -> None:
    with pytest.raises(exceptions.UsageLimitExceeded):
        await run(Agent(model), "one two three", streamed, usage_limits=UsageLimits(output_tokens_limit=2))


@BOTH
async def test_usage_limit_of_the_client_is_that_of_all_agents(client: AsyncFriendli, streamed: bool) -> None:
    model = FriendliModel("m", client=client.with_options(usage_limit=UsageLimit(max_calls=1)))
    await run(Agent(model), "Hi", streamed)
    with pytest.raises(exceptions.UsageLimitExceeded, match="1 calls of 1") as caught:
        await run(Agent(model), "Hi", streamed)
    assert isinstance(caught.value.__cause__, UsageLimitError)


# --- model objects ---------------------------------------------------------------------------------------------------


def test_model_has_names_and_does_not_show_the_token(server: FriendliServer) -> None:
    model = FriendliModel("m", client=AsyncFriendli("flp_secret", server_url=server.url))
    assert (model.model_name, model.system, model.model_id) == ("m", "friendli", "friendli:m")
    assert "flp_secret" not in repr(model)
    assert model != FriendliModel("other", client=model._client)


async def test_model_creates_and_releases_its_own_client(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRIENDLI_TOKEN", "test-token")
    monkeypatch.setenv("FRIENDLI_SERVER_URL", server.url)

    cycle: list[Any] = [FriendliModel("m")]  # no agent: Pydantic AI keeps an agent's last model alive for a while
    assert (await model_request(cycle[0], [ModelRequest.user_text_prompt("Hi")])).text == "You said: Hi"
    cycle.append(cycle)
    del cycle
    gc.collect()  # must not emit a warning
    await server.wait_for_connections(0, timeout=10)  # shorter than the pool's keep-alive timeout
    assert server.open_connections == 0


def test_missing_extra_error_names_the_install_command() -> None:
    code = "import sys; sys.modules['pydantic_ai'] = None; import friendli_async.integrations.pydantic_ai"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'friendli_async[pydantic-ai]'" in completed.stderr
