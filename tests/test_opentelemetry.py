"""OpenTelemetry: one span per call for every outcome, metrics, and opt-in content."""

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

import msgspec
import pytest
import support.messages
import support.responses
from support.sockets import FAST_RETRY, MESSAGES, client_of, complete, open_stream, read, with_timeout

from friendli_async import AsyncFriendli, ChatStream, FriendliError, RateLimitError, Timeouts
from friendli_async.embeddings import Embedding, EmbeddingList
from friendli_async.images import ContainerImage, GeneratedImage, GeneratedImages
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

pytest.importorskip("opentelemetry.sdk", reason="the OpenTelemetry SDK is not installed")
pytest.importorskip("pytest_genai_semconv", reason="pytest-genai-semconv is not installed")

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


class InMemoryTelemetry:
    """Telemetry whose spans, metrics and logs are kept in memory."""

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
def allow_friendli_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conventions allow unlisted providers, but the checks accept only listed ones."""
    monkeypatch.setitem(spec.ENUM_ATTRIBUTES, "gen_ai.provider.name", spec.PROVIDER_NAMES | {"friendli"})


@pytest.fixture
def seen() -> Iterator[InMemoryTelemetry]:
    collected = InMemoryTelemetry()
    yield collected
    collected.tracers.shutdown()
    collected.meters.shutdown()
    collected.loggers.shutdown()


@pytest.fixture
def client_options(seen: InMemoryTelemetry) -> dict[str, Any]:
    return {"observers": [seen.telemetry], "retry": FAST_RETRY}


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# --- one span per call -----------------------------------------------------------------------------------------------


async def test_non_streamed_call_is_one_span_following_the_conventions(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
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
        "friendli.request_id": reply.meta.request_id,
    }


async def test_team_is_an_attribute_of_the_span_and_of_the_metrics(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    await complete(client.with_options(team="acme"))
    assert attributes(seen.span)["friendli.team"] == "acme"
    recorded = seen.metrics()
    for name in ("gen_ai.client.inference.duration", "gen_ai.client.inference.usage.input_tokens"):
        assert [point.attributes["friendli.team"] for point in recorded[name]] == ["acme"]


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
    # server script, user action, client options; expected outcome, span status, error.type, finish reasons
    "done": (text("a", "b"), read, {}, ("done", "UNSET", None, ("stop",))),
    "truncated": (script(chunk("a"), cut()), read, {}, ("truncated", "ERROR", "StreamInterruptedError", ("error",))),
    "failed after the first event": (
        script(chunk("a"), error_data({"message": "overloaded", "code": 503})),
        read,
        {},
        ("failed", "ERROR", "503", ("error",)),
    ),
    "failed before the first event": (status(401), read, {}, ("failed", "ERROR", "401", None)),
    "idle timeout": (
        script(chunk("a"), stall()),
        read,
        {"timeout": Timeouts(idle=0.05)},
        ("failed", "ERROR", "APITimeoutError", ("error",)),
    ),
    "left early": (script(chunk("a"), chunk("b"), stall()), leave, {}, ("cancelled", "UNSET", None, ("error",))),
    "dropped": (script(chunk("a"), stall()), drop, {}, ("cancelled", "UNSET", None, ("error",))),
    "cancelled": (script(chunk("a"), stall()), cancel, {}, ("cancelled", "UNSET", None, ("error",))),
}


@pytest.mark.parametrize("name", ENDS)
async def test_stream_is_one_span_for_every_outcome(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, name: str
) -> None:
    answer, use, options, expected = ENDS[name]
    server.enqueue(answer)
    with suppress(FriendliError):
        await with_timeout(use(open_stream(client.with_options(**options))))
    gc.collect()
    assert_chat_span(seen.span, request_model="m")
    recorded = attributes(seen.span)
    assert recorded["gen_ai.request.stream"] is True
    reasons = recorded.get("gen_ai.response.finish_reasons")
    status_name = seen.span.status.status_code.name
    assert (recorded["friendli.outcome"], status_name, recorded.get("error.type"), reasons) == expected
    assert ("gen_ai.response.time_to_first_chunk" in recorded) is (name != "failed before the first event")
    assert seen.telemetry._calls == {}


async def test_hold_is_a_span_event(client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry) -> None:
    server.enqueue(status(429, retry_after=0.2), text("a"))
    with pytest.raises(RateLimitError):
        await complete(client.with_options(retry=None, observers=[]))
    await complete(client)
    (hold,) = seen.span.events
    recorded = dict(hold.attributes or {})
    assert (hold.name, recorded["http.response.status_code"]) == ("friendli.hold", 429)
    assert 0 < recorded["friendli.wait"] <= 0.7
    assert set(recorded) == {"http.response.status_code", "friendli.wait"}


async def test_retries_are_span_events(client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry) -> None:
    server.enqueue(status(503), status(429), text("a"))
    await complete(client)
    retries = [(event.name, dict(event.attributes or {})) for event in seen.span.events]
    assert [(name, event["http.response.status_code"], event["error.type"]) for name, event in retries] == [
        ("friendli.retry", 503, "InternalServerError"),
        ("friendli.retry", 429, "RateLimitError"),
    ]
    assert attributes(seen.span)["http.request.resend_count"] == 2


async def test_span_ends_even_if_metrics_fail(
    client: AsyncFriendli, seen: InMemoryTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen.telemetry, "_meters", object())  # has none of the instruments
    assert (await client.serverless.chat.complete(model="m", messages=MESSAGES)).text
    assert seen.span.name == "chat m"


async def test_call_that_never_connects_is_one_span(seen: InMemoryTelemetry) -> None:
    async with client_of("http://127.0.0.1:1", observers=[seen.telemetry], retry=None) as client:
        with pytest.raises(FriendliError):
            await complete(client)
    assert attributes(seen.span)["error.type"] == "APIConnectionError"
    assert "http.response.status_code" not in attributes(seen.span)


async def test_unfinished_choices_have_finish_reason_error(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(script(chunk("a", index=0), chunk("b", index=1), finish("stop", index=0), cut()))
    with pytest.raises(FriendliError):
        await read(client.serverless.chat.stream(model="m", messages=MESSAGES, n=2))
    assert attributes(seen.span)["gen_ai.response.finish_reasons"] == ("stop", "error")
    assert attributes(seen.span)["gen_ai.request.choice.count"] == 2


# --- parent spans ----------------------------------------------------------------------------------------------------


async def test_concurrent_calls_have_separate_parent_spans(client: AsyncFriendli, seen: InMemoryTelemetry) -> None:
    tracer = seen.tracers.get_tracer("test")

    async def one(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            if number % 2:
                await complete(client)
            else:
                await read(open_stream(client))

    await asyncio.gather(*(one(number) for number in range(20)))
    callers = {span.context.span_id: span for span in seen.spans if span.name.startswith("caller")}
    calls = [span for span in seen.spans if span.name == "chat m"]
    assert len(callers) == len(calls) == 20
    assert {span.parent.span_id for span in calls if span.parent} == set(callers)


async def test_call_in_another_thread_has_that_threads_span_as_parent(
    server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    tracer = seen.tracers.get_tracer("test")

    async def call() -> None:
        with tracer.start_as_current_span("thread"):
            async with client_of(server.url, observers=[seen.telemetry]) as client:
                await complete(client)

    thread = threading.Thread(target=lambda: asyncio.run(call()))
    thread.start()
    await asyncio.to_thread(thread.join)
    [thread_span] = [span for span in seen.spans if span.name == "thread"]
    [call_span] = [span for span in seen.spans if span.name == "chat m"]
    assert call_span.parent is not None
    assert call_span.parent.span_id == thread_span.context.span_id


async def test_reading_a_stream_does_not_make_its_span_current(client: AsyncFriendli, seen: InMemoryTelemetry) -> None:
    tracer = seen.tracers.get_tracer("test")
    async with open_stream(client) as stream:
        async for _ in stream:
            with tracer.start_as_current_span("between"):
                pass
    assert {span.parent for span in seen.spans if span.name == "between"} == {None}


# --- other operations ------------------------------------------------------------------------------------------------


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
async def test_operation_name_of_each_api(
    client: AsyncFriendli, seen: InMemoryTelemetry, call: Callable[[AsyncFriendli], Awaitable[Any]], operation: str
) -> None:
    await call(client)
    assert_genai_span_compliant(seen.span)
    recorded = attributes(seen.span)
    assert (seen.span.name, recorded["gen_ai.operation.name"]) == (f"{operation} m", operation)
    if operation == "chat":
        assert recorded["gen_ai.response.id"]
        assert recorded["gen_ai.response.finish_reasons"]
        assert recorded["gen_ai.usage.output_tokens"] >= 1


async def test_management_call_is_a_span_without_model_attributes(
    client: AsyncFriendli, seen: InMemoryTelemetry
) -> None:
    await client.usage.get(start_time=datetime(2026, 1, 1, tzinfo=UTC), end_time=datetime(2026, 2, 1, tzinfo=UTC))
    assert seen.span.name == "usage.get"
    assert not [name for name in attributes(seen.span) if name.startswith("gen_ai.") and "provider" not in name]
    assert "gen_ai.client.inference.duration" not in seen.metrics()


# --- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_follow_the_conventions(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(script(chunk("a"), chunk("b"), finish("stop"), usage(11, 2)), status(400))
    await read(open_stream(client))
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
    [input_tokens] = metrics["gen_ai.client.inference.usage.input_tokens"]
    [output_tokens] = metrics["gen_ai.client.inference.usage.output_tokens"]
    assert (input_tokens.value, output_tokens.value) == (11, 2)
    assert CHAT.items() <= dict(input_tokens.attributes).items()
    assert "gen_ai.response.id" not in input_tokens.attributes


async def test_metrics_use_old_names_on_request(server: FriendliServer) -> None:
    seen = InMemoryTelemetry(names="old")
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await read(open_stream(client))
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


def test_unknown_names_version_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'v0\.1\.0' or 'old'"):
        Telemetry(names="v2")  # type: ignore[arg-type]  # deliberately invalid


# --- content ---------------------------------------------------------------------------------------------------------

SECRET: Final = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "my secret"}]
TOOL: Final[dict[str, Any]] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_content_is_not_recorded_by_default(client: AsyncFriendli, seen: InMemoryTelemetry) -> None:
    await client.serverless.chat.complete(model="m", messages=SECRET)
    assert "secret" not in repr(attributes(seen.span))
    assert seen.log_exporter.get_finished_logs() == ()


@pytest.mark.parametrize("streamed", [True, False])
async def test_content_is_recorded_on_the_span_on_request(server: FriendliServer, streamed: bool) -> None:
    seen = InMemoryTelemetry(content=True)
    server.enqueue(text("Fi", "ne", reasoning=["Hm"]))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        chat = client.serverless.chat
        if streamed:
            await chat.stream(model="m", messages=SECRET, tools=[TOOL]).result()
        else:
            await chat.complete(model="m", messages=SECRET, tools=[TOOL])
    recorded = attributes(seen.span)
    assert json.loads(recorded["gen_ai.input.messages"]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "my secret"}]},
    ]
    assert json.loads(recorded["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "reasoning", "content": "Hm"}, {"type": "text", "content": "Fine"}],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(recorded["gen_ai.tool.definitions"]) == [TOOL]


async def test_content_with_a_lone_surrogate_can_be_exported(server: FriendliServer) -> None:
    seen = InMemoryTelemetry(content=True)
    server.enqueue(text("é \ud83d"))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await client.serverless.chat.complete(model="m", messages=[{"role": "user", "content": "é"}])
    recorded = attributes(seen.span)
    assert "é" in recorded["gen_ai.input.messages"]
    assert recorded["gen_ai.output.messages"].isascii()
    [message] = json.loads(recorded["gen_ai.output.messages"])
    assert message["parts"] == [{"type": "text", "content": "é \ud83d"}]


async def test_truncated_stream_records_partial_content(server: FriendliServer) -> None:
    seen = InMemoryTelemetry(content=True)
    server.enqueue(script(chunk("Fi"), cut()))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        with pytest.raises(FriendliError):
            await read(open_stream(client))
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
async def test_content_of_each_api_follows_the_conventions(server: FriendliServer, api: str) -> None:
    call, reply, expected = REPLIES[api]
    seen = InMemoryTelemetry(content=True)
    server.enqueue(json_body(reply))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await call(client)
    recorded = attributes(seen.span)
    assert json.loads(recorded["gen_ai.system_instructions"]) == [{"type": "text", "content": "Be brief."}]
    assert json.loads(recorded["gen_ai.output.messages"]) == [expected]


@pytest.mark.parametrize("group", ["image", "embeddings"])
async def test_reply_without_messages_has_no_output_messages(server: FriendliServer, group: str) -> None:
    seen = InMemoryTelemetry(content=True)
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


def test_vectors_and_images_are_not_converted_to_json_for_telemetry() -> None:
    from friendli_async.integrations._genai_messages import output_messages

    unconvertible: Any = object()
    with pytest.raises(TypeError):
        msgspec.to_builtins(Embedding(embedding=unconvertible))
    for reply in (
        EmbeddingList(data=(Embedding(embedding=unconvertible),)),
        GeneratedImages(data=(GeneratedImage(b64_json=unconvertible),)),
        ContainerImage(image=unconvertible),
    ):
        assert output_messages(reply, ()) == []


async def test_truncated_stream_records_reasoning_and_tool_calls(server: FriendliServer) -> None:
    seen = InMemoryTelemetry(content=True)
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
    server.enqueue(script(chunk(reasoning="Hm"), chunk(tool_calls=[call]), cut()))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        with pytest.raises(FriendliError):
            await read(open_stream(client))
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
async def test_environment_variable_enables_content(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, switch: str, on_span: bool, as_event: bool
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", switch)
    seen = InMemoryTelemetry()
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
        "tools and media",
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
    ("prompt", {"prompt": "Once"}, [{"role": "user", "parts": [{"type": "text", "content": "Once"}]}]),
    ("input", {"input": "Hi"}, [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}]),
    (
        "response items",
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
        "response reasoning",
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}, {"type": "other"}]}]},
        [{"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm"}]}],
    ),
    (
        "message blocks",
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
    ("empty body", {}, []),
    (
        "unknown types",
        {"messages": [7, None]},
        [{"role": "user", "parts": [{"type": "text", "content": "7"}]}, {"role": "user", "parts": []}],
    ),
]


@pytest.mark.parametrize(("body", "expected"), [case[1:] for case in CONTENT], ids=[case[0] for case in CONTENT])
def test_input_messages_follow_the_conventions(body: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    from friendli_async.integrations._genai_messages import input_messages

    assert input_messages(body) == expected


async def test_token_is_never_exported(server: FriendliServer) -> None:
    seen = InMemoryTelemetry(content=True)
    async with AsyncFriendli("flp_very_secret", server_url=server.url, observers=[seen.telemetry]) as client:
        server.enqueue(status(401), text("a"))
        with pytest.raises(FriendliError):
            await complete(client)
        await complete(client)
    assert len(seen.spans) == 2
    assert "flp_very_secret" not in "".join(span.to_json() for span in seen.spans)
    assert "flp_very_secret" not in repr(seen.telemetry)


# --- missing extra and OTLP export -----------------------------------------------------------------------------------


def test_missing_extra_error_names_the_install_command() -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "try: import friendli_async.integrations.opentelemetry\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'friendli_async[otel]'" in done.stdout


class OTLPCollector:
    """A minimal OTLP/HTTP collector: stores request bodies and responds with 200."""

    def __init__(self) -> None:
        self.bodies: list[tuple[str, bytes]] = []
        received = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Logs nothing to stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


async def test_spans_are_exported_over_otlp(server: FriendliServer) -> None:
    exporters = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    with OTLPCollector() as collector:
        tracers = TracerProvider()
        tracers.add_span_processor(BatchSpanProcessor(exporters.OTLPSpanExporter(f"{collector.url}/v1/traces")))
        async with client_of(server.url, observers=[Telemetry(tracers)]) as client:
            await read(open_stream(client))
        await asyncio.to_thread(tracers.shutdown)
    [(path, body)] = collector.bodies
    [resource] = ExportTraceServiceRequest.FromString(body).resource_spans
    [scope] = resource.scope_spans
    assert path == "/v1/traces"
    assert scope.scope.name == "friendli_async"
    assert scope.schema_url == "https://opentelemetry.io/schemas/gen-ai/0.1.0"
    assert [span.name for span in scope.spans] == ["chat m"]
