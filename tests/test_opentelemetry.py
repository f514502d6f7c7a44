"""Telemetry: one span per call, however it ends; metrics; content on request only."""

import asyncio
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

import pytest
import support.messages
import support.responses
from support.sockets import MESSAGES, QUICK, ask, client_of, complete, read, within

from friendli_async import AsyncFriendli, ChatStream, FriendliError, Timeouts
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    error_data,
    finish,
    json_body,
    script,
    stall,
    status,
    text,
    usage,
)

pytest.importorskip("opentelemetry.sdk", reason="the SDK of OpenTelemetry is not installed")
pytest.importorskip("pytest_genai_semconv", reason="the checks of the conventions are not installed")

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from pytest_genai_semconv import assert_chat_span, assert_genai_span_compliant, spec

from friendli_async.integrations.opentelemetry import Telemetry

Call = Callable[[AsyncFriendli], Awaitable[object]]

CHAT: Final = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "friendli",
    "gen_ai.request.model": "m",
}


class Collected:
    """What the SDK was given, in memory."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.log_exporter = InMemoryLogRecordExporter()
        self.loggers = LoggerProvider()
        self.loggers.add_log_record_processor(SimpleLogRecordProcessor(self.log_exporter))
        self.telemetry = Telemetry(self.tracers, self.meters, logger_provider=self.loggers, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def span(self) -> ReadableSpan:
        [span] = self.spans
        return span

    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        scopes = [scope for resource in data.resource_metrics for scope in resource.scope_metrics] if data else []
        return {metric.name: list(metric.data.data_points) for scope in scopes for metric in scope.metrics}


@pytest.fixture(autouse=True)
def custom_provider_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conventions allow providers that they do not list; the checks know the listed ones."""
    monkeypatch.setitem(spec.ENUM_ATTRIBUTES, "gen_ai.provider.name", spec.PROVIDER_NAMES | {"friendli"})


@pytest.fixture
def seen() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    collected.tracers.shutdown()
    collected.meters.shutdown()
    collected.loggers.shutdown()


@pytest.fixture
def client_options(seen: Collected) -> dict[str, Any]:
    return {"observers": [seen.telemetry], "retry": QUICK}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- one span, however it ends ---------------------------------------------------------------------------------------


async def test_a_plain_call_is_one_span_by_the_conventions(
    client: AsyncFriendli, server: FriendliServer, seen: Collected
) -> None:
    server.enqueue(text("Hel", "lo"))
    reply = await client.serverless.chat.complete(
        model="m", messages=MESSAGES, temperature=0, max_tokens=7, stop=["."], seed=3, n=1
    )
    assert_chat_span(seen.span, request_model="m")
    assert (seen.span.name, seen.span.kind, seen.span.status.status_code) == (
        "chat m",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert attributes(seen.span) == {
        **CHAT,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 7,
        "gen_ai.request.stop_sequences": (".",),
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": reply.id,
        "gen_ai.response.model": reply.model,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "http.response.status_code": 200,
        "http.request.resend_count": 0,
        "friendli.outcome": "done",
        "friendli.deployment": "serverless",
    }


async def leave(stream: ChatStream) -> None:
    async with stream:
        async for _ in stream:
            return


async def drop(stream: ChatStream) -> None:
    await anext(stream)


async def cancel(stream: ChatStream) -> None:
    await anext(stream)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(anext(stream), 0)


ENDS: Final[dict[str, tuple[Any, Callable[[ChatStream], Awaitable[object]], dict[str, Any], tuple[Any, ...]]]] = {
    # name: what the server does, what the user does, settings; outcome, status of the span, error.type, finish reasons
    "done": (text("a", "b"), read, {}, ("done", "UNSET", None, ("stop",))),
    "cut": (script(chunk("a"), cut()), read, {}, ("truncated", "ERROR", "StreamInterruptedError", ("error",))),
    "failed after the first event": (
        script(chunk("a"), error_data({"message": "overloaded", "code": 503})),
        read,
        {},
        ("failed", "ERROR", "503", ("error",)),
    ),
    "failed before it": (status(401), read, {}, ("failed", "ERROR", "401", None)),
    "idle": (
        script(chunk("a"), stall()),
        read,
        {"timeout": Timeouts(idle=0.05)},
        ("failed", "ERROR", "APITimeoutError", ("error",)),
    ),
    "left": (script(chunk("a"), chunk("b"), stall()), leave, {}, ("cancelled", "UNSET", None, ("error",))),
    "dropped": (script(chunk("a"), stall()), drop, {}, ("cancelled", "UNSET", None, ("error",))),
    "cancelled": (script(chunk("a"), stall()), cancel, {}, ("cancelled", "UNSET", None, ("error",))),
}


@pytest.mark.parametrize("name", ENDS)
async def test_a_stream_is_one_span_however_it_ends(
    client: AsyncFriendli, server: FriendliServer, seen: Collected, name: str
) -> None:
    answer, use, options, expected = ENDS[name]
    server.enqueue(answer)
    with suppress(FriendliError):
        await within(use(ask(client.with_options(**options))))
    gc.collect()
    assert_chat_span(seen.span, request_model="m")
    told = attributes(seen.span)
    assert told["gen_ai.request.stream"] is True
    reasons = told.get("gen_ai.response.finish_reasons")
    assert (told["friendli.outcome"], seen.span.status.status_code.name, told.get("error.type"), reasons) == expected
    assert ("gen_ai.response.time_to_first_chunk" in told) is (name != "failed before it")
    assert seen.telemetry._calls == {}


async def test_retries_are_events_of_the_one_span(
    client: AsyncFriendli, server: FriendliServer, seen: Collected
) -> None:
    server.enqueue(status(503), status(429), text("a"))
    await complete(client)
    retries = [(event.name, dict(event.attributes or {})) for event in seen.span.events]
    assert [(name, told["http.response.status_code"], told["error.type"]) for name, told in retries] == [
        ("friendli.retry", 503, "InternalServerError"),
        ("friendli.retry", 429, "RateLimitError"),
    ]
    assert attributes(seen.span)["http.request.resend_count"] == 2


async def test_the_span_ends_though_the_metrics_cannot_be_recorded(
    client: AsyncFriendli, seen: Collected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen.telemetry, "_meters", object())  # it has no method
    assert (await client.serverless.chat.complete(model="m", messages=MESSAGES)).text
    assert seen.span.name == "chat m"


async def test_a_call_that_never_connects_is_one_span(seen: Collected) -> None:
    async with client_of("http://127.0.0.1:1", observers=[seen.telemetry], retry=None) as client:
        with pytest.raises(FriendliError):
            await complete(client)
    assert attributes(seen.span)["error.type"] == "APIConnectionError"
    assert "http.response.status_code" not in attributes(seen.span)


async def test_choices_that_never_finished_are_told_each(
    client: AsyncFriendli, server: FriendliServer, seen: Collected
) -> None:
    server.enqueue(script(chunk("a", index=0), chunk("b", index=1), finish("stop", index=0), cut()))
    with pytest.raises(FriendliError):
        await read(client.serverless.chat.stream(model="m", messages=MESSAGES, n=2))
    assert attributes(seen.span)["gen_ai.response.finish_reasons"] == ("stop", "error")
    assert attributes(seen.span)["gen_ai.request.choice.count"] == 2


# --- parents ---------------------------------------------------------------------------------------------------------


async def test_each_of_many_concurrent_calls_has_its_own_parent(client: AsyncFriendli, seen: Collected) -> None:
    tracer = seen.tracers.get_tracer("test")

    async def one(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            if number % 2:
                await complete(client)
            else:
                await read(ask(client))

    await asyncio.gather(*(one(number) for number in range(20)))
    callers = {span.context.span_id: span for span in seen.spans if span.name.startswith("caller")}
    calls = [span for span in seen.spans if span.name == "chat m"]
    assert len(callers) == len(calls) == 20
    assert {span.parent.span_id for span in calls if span.parent} == set(callers)


async def test_a_call_of_another_thread_belongs_to_that_threads_span(server: FriendliServer, seen: Collected) -> None:
    tracer = seen.tracers.get_tracer("test")

    async def call() -> None:
        with tracer.start_as_current_span("thread"):
            async with client_of(server.url, observers=[seen.telemetry]) as client:
                await complete(client)

    thread = threading.Thread(target=lambda: asyncio.run(call()))
    thread.start()
    await asyncio.to_thread(thread.join)
    [caller] = [span for span in seen.spans if span.name == "thread"]
    [made] = [span for span in seen.spans if span.name == "chat m"]
    assert made.parent is not None
    assert made.parent.span_id == caller.context.span_id


async def test_reading_a_stream_does_not_make_its_span_current(client: AsyncFriendli, seen: Collected) -> None:
    tracer = seen.tracers.get_tracer("test")
    async with ask(client) as stream:
        async for _ in stream:
            with tracer.start_as_current_span("between"):
                pass
    assert {span.parent for span in seen.spans if span.name == "between"} == {None}


# --- the other operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (lambda client: client.serverless.messages.create(model="m", max_tokens=5, messages=MESSAGES), "chat"),
        (lambda client: client.serverless.responses.create(model="m", input="Hi"), "chat"),
        (lambda client: client.serverless.completions.complete(model="m", prompt="Hi"), "text_completion"),
        (lambda client: client.dedicated.embeddings.create(model="m", input="Hi"), "embeddings"),
        (lambda client: client.serverless.messages.stream(model="m", max_tokens=5, messages=MESSAGES).result(), "chat"),
        (lambda client: client.serverless.responses.stream(model="m", input="Hi").result(), "chat"),
    ],
)
async def test_each_api_has_its_operation(
    client: AsyncFriendli, seen: Collected, call: Callable[[AsyncFriendli], Awaitable[Any]], operation: str
) -> None:
    await call(client)
    assert_genai_span_compliant(seen.span)
    told = attributes(seen.span)
    assert (seen.span.name, told["gen_ai.operation.name"]) == (f"{operation} m", operation)
    if operation == "chat":
        assert told["gen_ai.response.id"]
        assert told["gen_ai.response.finish_reasons"]
        assert told["gen_ai.usage.output_tokens"] >= 1


async def test_what_is_no_inference_is_a_span_without_the_names_of_models(
    client: AsyncFriendli, seen: Collected
) -> None:
    await client.usage.get(start_time=datetime(2026, 1, 1, tzinfo=UTC), end_time=datetime(2026, 2, 1, tzinfo=UTC))
    assert seen.span.name == "usage.get"
    assert not [name for name in attributes(seen.span) if name.startswith("gen_ai.") and "provider" not in name]
    assert "gen_ai.client.inference.duration" not in seen.metrics()


# --- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_have_the_names_of_the_conventions(
    client: AsyncFriendli, server: FriendliServer, seen: Collected
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), finish("stop"), usage(11, 2)), status(400))
    await read(ask(client))
    with pytest.raises(FriendliError):
        await complete(client)
    metrics = seen.metrics()
    assert sorted(metrics) == [
        "gen_ai.client.inference.duration",
        "gen_ai.client.inference.time_per_output_chunk",
        "gen_ai.client.inference.time_to_first_chunk",
        "gen_ai.client.inference.usage.cache_read.input_tokens",
        "gen_ai.client.inference.usage.input_tokens",
        "gen_ai.client.inference.usage.output_tokens",
    ]
    durations = {point.attributes.get("error.type"): point for point in metrics["gen_ai.client.inference.duration"]}
    assert {kind: point.count for kind, point in durations.items()} == {None: 1, "400": 1}
    assert list(durations[None].explicit_bounds) == [0.01 * 2**power for power in range(14)]
    [taken] = metrics["gen_ai.client.inference.usage.input_tokens"]
    [given] = metrics["gen_ai.client.inference.usage.output_tokens"]
    assert (taken.value, given.value) == (11, 2)
    assert CHAT.items() <= dict(taken.attributes).items()
    assert "gen_ai.response.id" not in taken.attributes


async def test_metrics_have_the_old_names_on_request(server: FriendliServer) -> None:
    seen = Collected(names="old")
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await read(ask(client))
    metrics = seen.metrics()
    assert sorted(metrics) == [
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_per_output_chunk",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.client.token.usage",
    ]
    assert {point.attributes["gen_ai.token.type"] for point in metrics["gen_ai.client.token.usage"]} == {
        "input",
        "output",
    }


def test_names_of_an_unknown_version_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'v0\.1\.0' or 'old'"):
        Telemetry(names="v2")  # type: ignore[arg-type]  # what is tested


# --- content ---------------------------------------------------------------------------------------------------------

SECRET: Final = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "my secret"}]
TOOL: Final[dict[str, Any]] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_no_content_unless_it_is_asked_for(client: AsyncFriendli, seen: Collected) -> None:
    await client.serverless.chat.complete(model="m", messages=SECRET)
    assert "secret" not in repr(attributes(seen.span))
    assert seen.log_exporter.get_finished_logs() == ()


@pytest.mark.parametrize("streamed", [True, False])
async def test_content_is_on_the_span_on_request(server: FriendliServer, streamed: bool) -> None:
    seen = Collected(content=True)
    server.enqueue(text("Fi", "ne", reasoning=["Hm"]))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        chat = client.serverless.chat
        if streamed:
            await chat.stream(model="m", messages=SECRET, tools=[TOOL]).result()
        else:
            await chat.complete(model="m", messages=SECRET, tools=[TOOL])
    told = attributes(seen.span)
    assert json.loads(told["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "my secret"}]},
    ]
    assert json.loads(told["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "reasoning", "content": "Hm"}, {"type": "text", "content": "Fine"}],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(told["gen_ai.tool.definitions"]) == [TOOL]


async def test_content_of_a_stream_that_broke_is_what_had_come(server: FriendliServer) -> None:
    seen = Collected(content=True)
    server.enqueue(script(chunk("Fi"), cut()))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        with pytest.raises(FriendliError):
            await read(ask(client))
    [message] = json.loads(attributes(seen.span)["gen_ai.output.messages"])
    assert message == {"role": "assistant", "parts": [{"type": "text", "content": "Fi"}], "finish_reason": "error"}


REPLIES: Final[dict[str, tuple[Call, dict[str, Any], dict[str, Any]]]] = {
    "messages": (
        lambda client: client.serverless.messages.create(
            model="m", max_tokens=9, system="Be brief.", messages=[{"role": "user", "content": "Hi"}]
        ),
        support.messages.WHOLE,
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "Hmm"},
                {"type": "text", "content": "Let me see."},
                {"type": "tool_call", "id": "tu_1", "name": "weather", "arguments": {"city": "Paris"}},
            ],
            "finish_reason": "tool_use",
        },
    ),
    "responses": (
        lambda client: client.serverless.responses.create(model="m", instructions="Be brief.", input="Hi"),
        support.responses.WHOLE,
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "think harder"},
                {"type": "text", "content": "Hello there"},
                {"type": "text", "content": "!"},
                {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'},
            ],
            "finish_reason": "completed",
        },
    ),
}


@pytest.mark.parametrize("api", REPLIES)
async def test_content_of_every_api_has_the_form_of_the_conventions(server: FriendliServer, api: str) -> None:
    call, reply, expected = REPLIES[api]
    seen = Collected(content=True)
    server.enqueue(json_body(reply))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await call(client)
    recorded = attributes(seen.span)
    assert json.loads(recorded["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(recorded["gen_ai.output.messages"]) == [expected]


@pytest.mark.parametrize("group", ["image", "embeddings"])
async def test_a_reply_without_messages_is_no_output(server: FriendliServer, group: str) -> None:
    seen = Collected(content=True)
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        if group == "image":
            await client.dedicated.image.generate(model="m", prompt="a cat")
        else:
            await client.dedicated.embeddings.create(model="m", input="a cat")
    recorded = attributes(seen.span)
    assert json.loads(recorded["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "a cat"}]}
    ]
    assert "gen_ai.output.messages" not in recorded


async def test_content_of_a_broken_stream_has_its_reasoning_and_calls(server: FriendliServer) -> None:
    seen = Collected(content=True)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    server.enqueue(script(chunk(reasoning="Hm"), chunk(tool_calls=[call]), cut()))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        with pytest.raises(FriendliError):
            await read(ask(client))
    [message] = json.loads(attributes(seen.span)["gen_ai.output.messages"])
    assert message["parts"] == [
        {"type": "reasoning", "content": "Hm"},
        {"type": "tool_call", "id": "c", "name": "f", "arguments": '{"a"'},
    ]


@pytest.mark.parametrize(
    ("switch", "on_span", "as_event"),
    [
        ("true", True, False),
        ("SPAN_ONLY", True, False),
        ("EVENT_ONLY", False, True),
        ("span_and_event", True, True),
        ("no_content", False, False),
        ("", False, False),
    ],
)
async def test_the_environment_asks_for_content(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, switch: str, on_span: bool, as_event: bool
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", switch)
    seen = Collected()
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await client.serverless.chat.complete(model="m", messages=SECRET)
    assert ("gen_ai.input.messages" in attributes(seen.span)) is on_span
    events = seen.log_exporter.get_finished_logs()
    assert [event.log_record.event_name for event in events] == ["gen_ai.client.inference.operation.details"] * as_event
    for event in events:
        assert event.log_record.trace_id == seen.span.context.trace_id
        assert event.log_record.span_id == seen.span.context.span_id
        assert "my secret" in str(dict(event.log_record.attributes or {})["gen_ai.input.messages"])


CONTENT: Final[list[tuple[str, dict[str, Any], list[dict[str, Any]]]]] = [
    (
        "tools and pictures",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}},
                        {"type": "audio_url", "audio_url": {"url": "data:;base64,BBBB"}},
                    ],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "12"},
            ]
        },
        [
            {
                "role": "user",
                "parts": [
                    {"type": "text", "content": "What is it?"},
                    {"type": "uri", "modality": "image", "uri": "https://x/y.png"},
                    {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
                    {"type": "uri", "modality": "video", "uri": "https://x/y.mp4"},
                    {"type": "blob", "modality": "audio", "mime_type": None, "content": "BBBB"},
                ],
            },
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "12"}]},
        ],
    ),
    ("a prompt", {"prompt": "Once"}, [{"role": "user", "parts": [{"type": "text", "content": "Once"}]}]),
    ("an input", {"input": "Hi"}, [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]),
    (
        "items of a response",
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "12"},
            ]
        },
        [
            {"role": "user", "parts": [{"type": "text", "content": "Hi"}]},
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": "{}"}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": "12"}]},
        ],
    ),
    (
        "reasoning of a response",
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}, {"type": "other"}]}]},
        [{"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm"}]}],
    ),
    (
        "blocks of messages",
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm", "signature": "s"},
                        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": "12"},
                        {"type": "document", "title": "t"},
                        "plain",
                    ],
                },
            ]
        },
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "Hm"},
                    {"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": 1}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"type": "tool_call_response", "id": "c", "response": "12"},
                    {"type": "document", "title": "t"},
                    {"type": "text", "content": "plain"},
                ],
            },
        ],
    ),
    ("nothing", {}, []),
    (
        "what is of no known kind",
        {"messages": [7, None]},
        [{"role": "user", "parts": [{"type": "text", "content": "7"}]}, {"role": "user", "parts": []}],
    ),
]


@pytest.mark.parametrize(("body", "expected"), [case[1:] for case in CONTENT], ids=[case[0] for case in CONTENT])
def test_messages_have_the_form_of_the_conventions(body: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    from friendli_async.integrations._genai_messages import input_messages

    assert input_messages(body) == expected


async def test_no_token_is_in_anything_that_is_told(server: FriendliServer) -> None:
    seen = Collected(content=True)
    async with AsyncFriendli("flp_very_secret", server_url=server.url, observers=[seen.telemetry]) as client:
        server.enqueue(status(401), text("a"))
        with pytest.raises(FriendliError):
            await complete(client)
        await complete(client)
    assert len(seen.spans) == 2
    assert "flp_very_secret" not in "".join(span.to_json() for span in seen.spans)
    assert "flp_very_secret" not in repr(seen.telemetry)


# --- absent, and on the wire -----------------------------------------------------------------------------------------


def test_a_missing_package_is_said_with_what_to_install() -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try: import friendli_async.integrations.opentelemetry\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'friendli_async[otel]'" in done.stdout


class Receiver:
    """A collector, as far as OTLP over HTTP asks for one: it takes what is posted and says 200."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        posted = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


async def test_spans_reach_a_collector(server: FriendliServer) -> None:
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    with Receiver() as receiver:
        tracers = TracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(exporters.OTLPSpanExporter(f"{receiver.url}/v1/traces")))
        async with client_of(server.url, observers=[Telemetry(tracers)]) as client:
            await read(ask(client))
        await asyncio.to_thread(tracers.shutdown)
    [(path, body)] = receiver.bodies
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    [scope] = resource.scope_spans
    assert path == "/v1/traces"
    assert scope.scope.name == "friendli_async"
    assert scope.schema_url == "https://opentelemetry.io/schemas/gen-ai/0.1.0"
    assert [span.name for span in scope.spans] == ["chat m"]
