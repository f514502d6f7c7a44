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
from unittest.mock import Mock

import msgspec
import pytest
import support.messages
import support.responses
from support.clock import Clock, run_loop_iterations, wait_until
from support.sockets import FAST_RETRY, MESSAGES, client_of, complete, open_stream, read, start_run, with_timeout
from support.tools import fail, never_ends, weather

from friendli_async import AsyncFriendli, CallStarted, ChatStream, FriendliError, RateLimitError, Timeouts
from friendli_async.embeddings import Embedding, EmbeddingList
from friendli_async.images import ContainerImage, GeneratedImage, GeneratedImages
from friendli_async.messages import Message
from friendli_async.responses import Response
from friendli_async.testing import (
    FriendliServer,
    chunk,
    cut,
    done,
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
from friendli_async.testing import (
    event as sse_event,
)
from friendli_async.tools import Run, ToolFinished, ToolStarted, tool

pytest.importorskip("opentelemetry.sdk", reason="the OpenTelemetry SDK is not installed")
pytest.importorskip("pytest_genai_semconv", reason="pytest-genai-semconv is not installed")

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from pytest_genai_semconv import (
    assert_chat_span,
    assert_execute_tool_span,
    assert_genai_span_compliant,
    assert_invoke_agent_span,
    spec,
)

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
        exporter: Any = InMemoryLogRecordExporter  # not annotated
        self.log_exporter = exporter()
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
        model="m", messages=MESSAGES, temperature=0, top_p=0.5, max_tokens=7, stop=["."], seed=3, n=1
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
        "gen_ai.request.top_p": 0.5,
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


async def test_parameters_have_the_types_of_the_conventions_or_are_left_out(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(text("a"))
    extra = {"stop": ".", "temperature": "hot", "seed": True}
    await client.serverless.chat.complete(model="m", messages=MESSAGES, reasoning_effort="low", extra_body=extra)
    found = {name: value for name, value in attributes(seen.span).items() if name.startswith("gen_ai.request.")}
    assert found == {
        "gen_ai.request.model": "m",
        "gen_ai.request.stop_sequences": (".",),
        "gen_ai.request.reasoning.level": "low",
    }


async def test_team_is_an_attribute_of_the_span_and_of_the_metrics(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    await complete(client.with_options(team="acme"))
    assert attributes(seen.span)["friendli.team"] == "acme"
    recorded = seen.metrics()
    for name in ("gen_ai.client.inference.duration", "gen_ai.client.inference.usage.input_tokens"):
        assert [point.attributes["friendli.team"] for point in recorded[name]] == ["acme"]
    assert "gen_ai.client.inference.time_to_first_chunk" not in recorded  # no stream


async def cancel(stream: ChatStream) -> None:
    await anext(stream)
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(anext(stream), 0)


ENDS: Final[dict[str, tuple[Any, Callable[[ChatStream], Awaitable[object]], dict[str, Any], tuple[Any, ...]]]] = {
    # server script, user action, client options; expected outcome, span status, error.type, finish reasons
    "done": (text("a", "b"), read, {}, ("done", "UNSET", None, ("stop",))),
    "truncated": (script(chunk("a"), cut()), read, {}, ("truncated", "ERROR", "StreamInterruptedError", ("error",))),
    "failed after the first event": (
        script(chunk("a"), sse_event({"error": {"message": "overloaded", "code": 503}})),
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
    await asyncio.sleep(0)
    assert_chat_span(seen.span, request_model="m")
    recorded = attributes(seen.span)
    assert recorded["gen_ai.request.stream"] is True
    reasons = recorded.get("gen_ai.response.finish_reasons")
    status_name = seen.span.status.status_code.name
    assert (recorded["friendli.outcome"], status_name, recorded.get("error.type"), reasons) == expected
    assert ("gen_ai.response.time_to_first_chunk" in recorded) is (name != "failed before the first event")
    assert seen.telemetry._calls == {}


async def test_hold_is_a_span_event(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, clock: Clock
) -> None:
    server.enqueue(status(429, retry_after=20), text("a"))
    with pytest.raises(RateLimitError):
        await complete(client.with_options(retry=None, observers=[]))
    held = asyncio.ensure_future(complete(client))
    await run_loop_iterations()
    clock.advance(25)
    await with_timeout(held)
    (hold,) = seen.span.events
    recorded: dict[str, Any] = dict(hold.attributes or {})
    assert (hold.name, recorded["http.response.status_code"]) == ("friendli.hold", 429)
    assert 20 <= recorded["friendli.wait"] <= 20.5
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


async def test_event_of_a_retry_says_why_the_connection_failed(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(cut(), status(503, message="private words"), text("a"))
    await complete(client)
    reasons = [dict(event.attributes or {}).get("friendli.reason") for event in seen.span.events]
    assert reasons == ["no reply: the server closed the connection", None]


async def test_subclass_can_leave_out_calls(
    server: FriendliServer, seen: InMemoryTelemetry, caplog: pytest.LogCaptureFixture
) -> None:
    class OnlyStreams(Telemetry):
        def call_started(self, event: CallStarted) -> None:
            if event.operation.endswith(".stream"):
                super().call_started(event)

    telemetry = OnlyStreams(seen.tracers, seen.meters)
    server.enqueue(status(503), text("a"), status(503), text("b"))
    async with client_of(server.url, observers=[telemetry], retry=FAST_RETRY) as client:
        await complete(client)
        await open_stream(client).result()
    assert seen.span.name == "chat m"
    assert [event.name for event in seen.span.events] == ["friendli.retry"]
    assert caplog.records == []


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
    assert seen.span.status.description == "APIConnectionError: could not connect: 127.0.0.1:1 [Connection refused]"


@pytest.mark.parametrize(
    ("answer", "description"),
    [
        (script(stall()), "APITimeoutError: no reply within 0.05 s (first_event)"),
        (status(400, message="private words"), "BadRequestError"),
        (
            script(raw(b"private words"), cut()),
            (
                "StreamInterruptedError: the connection broke while the reply was being read: "
                "the server closed the connection before the end of the body"
            ),
        ),
        (script(raw(b"<p>private: words</p>")), "StreamInterruptedError: the stream ended before any content came"),
        (script(chunk("a"), raw(b"data: {private words\n\n")), "ResponseDecodeError"),
    ],
    ids=["timeout", "status", "cut", "text", "undecodable"],
)
async def test_description_has_the_messages_that_cannot_quote_the_server(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, answer: Any, description: str
) -> None:
    server.enqueue(answer)
    with pytest.raises(FriendliError):
        await read(open_stream(client.with_options(timeout=Timeouts(first_event=0.05), retry=None)))
    assert seen.span.status.description == description


async def test_span_of_a_call_that_was_not_sent_has_no_status_of_a_response(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(status(429, retry_after=3600))
    for _ in range(2):
        with pytest.raises(RateLimitError):
            await complete(client)
    sent, unsent = map(attributes, seen.spans)
    assert (sent["error.type"], sent["http.response.status_code"]) == ("429", 429)
    assert unsent["error.type"] == "429"
    assert "http.response.status_code" not in unsent


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


# --- runs and tools --------------------------------------------------------------------------------------------------


def tree(seen: InMemoryTelemetry) -> dict[str, str | None]:
    """Returns the name of each span's parent, by the span's name."""
    names = {span.context.span_id: span.name for span in seen.spans}
    return {span.name: names[span.parent.span_id] if span.parent else None for span in seen.spans}


async def test_run_is_a_span_above_its_calls_and_tools(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(tool_calls(("weather", {"city": "Paris"})), text("Sunny", prompt_tokens=7))
    with seen.tracers.get_tracer("test").start_as_current_span("caller"):
        result = await start_run(client.with_options(team="acme"), weather).result()
    assert tree(seen) == {
        "caller": None,
        "invoke_agent": "caller",
        "chat m": "invoke_agent",
        "execute_tool weather": "invoke_agent",
    }
    assert len(seen.spans) == 5
    assert len({span.context.trace_id for span in seen.spans}) == 1
    [run] = [span for span in seen.spans if span.name == "invoke_agent"]
    [ran] = [span for span in seen.spans if span.name == "execute_tool weather"]
    assert_invoke_agent_span(run)
    assert_execute_tool_span(ran, tool_name="weather")
    assert run.kind is ran.kind is SpanKind.INTERNAL
    assert run.status.status_code is ran.status.status_code is StatusCode.UNSET
    assert result.usage is not None
    assert attributes(run) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "friendli",
        "gen_ai.request.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": result.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": result.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "friendli.outcome": "done",
        "friendli.deployment": "serverless",
        "friendli.team": "acme",
        "friendli.turns": 2,
    }
    assert attributes(ran) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "weather",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.description": "Weather of a city.",
        "gen_ai.tool.call.id": result.messages[1]["tool_calls"][0]["id"],
        "friendli.outcome": "done",
    }
    for span in seen.spans:
        if span.parent and span.name != "invoke_agent":
            assert run.start_time <= span.start_time <= span.end_time <= run.end_time  # type: ignore[operator]  # set at the end
    assert (seen.telemetry._calls, seen.telemetry._runs, seen.telemetry._tools) == ({}, {}, {})


async def test_spans_of_concurrent_tools_are_below_their_own_tool_while_the_stream_goes_on(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    tracer = seen.tracers.get_tracer("test")
    both = asyncio.Barrier(2)
    read_on = asyncio.Event()
    entered = threading.Barrier(2)

    @tool
    async def in_loop(name: str) -> None:
        """Runs in the loop."""
        async with both:
            with tracer.start_as_current_span(f"loop {name}"):
                await read_on.wait()
                with tracer.start_as_current_span(f"loop {name}, inner"):
                    await asyncio.create_task(asyncio.sleep(0))

    @tool
    def in_thread(name: str) -> None:
        """Runs in a thread."""
        entered.wait(30)
        with tracer.start_as_current_span(f"thread {name}"):
            pass

    @tool
    async def asks() -> str:
        """Asks another model, and lets it use a tool."""
        await complete(client)
        return (await start_run(client, weather).result()).reply.text

    calls = [("in_loop", "a"), ("in_loop", "b"), ("in_thread", "a"), ("in_thread", "b")]
    deltas = [
        chunk(
            tool_calls=[
                {
                    "index": number,
                    "id": f"{name} {which}",
                    "function": {"name": name, "arguments": f'{{"name": "{which}"}}'},
                }
            ]
        )
        for number, (name, which) in enumerate(calls)
    ]
    server.enqueue(
        script(*deltas, finish("tool_calls"), gate(read_on), usage(1, 1), done()),
        tool_calls(("asks", {})),
        text("inner"),
        tool_calls(("weather", {})),
        text("inner run"),
        text("outer"),
    )
    async with asyncio.timeout(30):
        async for event in start_run(client, in_loop, in_thread, asks):
            tracer.start_span("between").end()
            if isinstance(event, ToolFinished) and event.call.function.name == "in_thread":
                read_on.set()  # the tools in the loop still run, and the stream is not at its end
    assert {span.parent for span in seen.spans if span.name == "between"} == {None}
    by_id = {span.context.span_id: span for span in seen.spans}

    def path(span: ReadableSpan) -> list[str]:
        parent = by_id[span.parent.span_id] if span.parent else None
        name = (
            attributes(span).get("gen_ai.tool.call.id")
            if span.name in ("execute_tool in_loop", "execute_tool in_thread")
            else span.name
        )
        return [*(path(parent) if parent else []), str(name)]

    paths = sorted(path(span) for span in seen.spans if span.name not in ("between", "chat m"))
    asked = ["invoke_agent", "execute_tool asks"]
    assert paths == sorted(
        [
            ["invoke_agent"],
            *(["invoke_agent", f"{name} {which}"] for name, which in calls),
            *(["invoke_agent", f"in_loop {which}", f"loop {which}"] for which in "ab"),
            *(["invoke_agent", f"in_loop {which}", f"loop {which}", f"loop {which}, inner"] for which in "ab"),
            *(["invoke_agent", f"in_thread {which}", f"thread {which}"] for which in "ab"),
            asked,
            [*asked, "invoke_agent"],
            [*asked, "invoke_agent", "execute_tool weather"],
        ]
    )
    chats = sorted(path(span) for span in seen.spans if span.name == "chat m")
    assert chats == sorted(
        [*[["invoke_agent", "chat m"]] * 3, [*asked, "chat m"], *[[*asked, "invoke_agent", "chat m"]] * 2]
    )


async def test_concurrent_runs_have_separate_spans(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    called = tool_calls(("weather", {}))
    server.always(lambda request: (called if len(request.json_object["messages"]) == 1 else text("x"))(request))
    tracer = seen.tracers.get_tracer("test")

    async def one(number: int) -> None:
        with tracer.start_as_current_span(f"caller {number}"):
            await start_run(client, weather).result()

    await asyncio.gather(*(one(number) for number in range(10)))
    children: dict[int, list[str]] = {}
    for span in seen.spans:
        if span.parent:
            children.setdefault(span.parent.span_id, []).append(span.name)
    for span in seen.spans:
        if span.name.startswith("caller"):
            assert children[span.context.span_id] == ["invoke_agent"]
        elif span.name == "invoke_agent":
            assert sorted(children[span.context.span_id]) == ["chat m", "chat m", "execute_tool weather"]


@tool
async def wrong_argument(number: int) -> str:
    """Takes a number."""
    return str(number)


TOOL_ENDS: Final[dict[str, tuple[Any, dict[str, Any], tuple[str, str, str | None]]]] = {
    "raises": (fail, {}, ("failed", "ERROR", "LookupError")),
    "arguments": (wrong_argument, {}, ("failed", "ERROR", "arguments")),
    "timeout": (never_ends, {"tool_timeout": 0.01}, ("failed", "ERROR", "timeout")),
    "refused": (weather, {"before_tool": lambda call: False}, ("refused", "UNSET", None)),
}


@pytest.mark.parametrize("name", TOOL_ENDS)
async def test_failed_tool_is_a_span_with_its_error_type(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, name: str
) -> None:
    used, options, expected = TOOL_ENDS[name]
    server.enqueue(tool_calls((used.name, {})), text("x"))
    await start_run(client, used, **options).result()
    [span] = [span for span in seen.spans if span.name == f"execute_tool {used.name}"]
    assert_execute_tool_span(span, tool_name=used.name)
    recorded = attributes(span)
    assert (recorded["friendli.outcome"], span.status.status_code.name, recorded.get("error.type")) == expected
    points = seen.metrics().get("gen_ai.execute_tool.duration", [])
    assert [point.attributes.get("error.type") for point in points] == ([] if name == "refused" else [expected[2]])


async def test_tool_that_does_not_exist_is_a_span_without_its_name_and_no_measurement(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(tool_calls(("nonsense \ud83d", {})), text("x"))
    await start_run(client, weather).result()
    [span] = [span for span in seen.spans if span.name == "execute_tool"]
    recorded = attributes(span)
    assert (recorded["error.type"], recorded["gen_ai.tool.name"]) == ("unknown", "nonsense \ufffd")
    assert span.status.status_code is StatusCode.ERROR
    assert "gen_ai.execute_tool.duration" not in seen.metrics()


async def leave_run(run: Run) -> None:
    async with run:
        async for event in run:
            if isinstance(event, ToolStarted):
                return


async def drop_run(run: Run) -> None:
    async for event in run:
        if isinstance(event, ToolStarted):
            return


async def cancel_run(run: Run) -> None:
    async for event in run:
        if isinstance(event, ToolStarted):
            break
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(anext(run), 0.01)


async def exhaust(run: Run) -> None:
    await run.result()


CALLED: Final = chunk(tool_calls=[{"index": 0, "id": "c", "function": {"name": "never_ends", "arguments": "{}"}}])
NEXT: Final = chunk(tool_calls=[{"index": 1, "id": "d", "function": {"name": "weather", "arguments": ""}}])
RUN_ENDS: Final[dict[str, tuple[Any, Callable[[Run], Awaitable[object]], tuple[str, str, str | None]]]] = {
    "left": (script(CALLED, finish("tool_calls"), done()), leave_run, ("cancelled", "UNSET", None)),
    "dropped": (script(CALLED, NEXT, stall()), drop_run, ("cancelled", "UNSET", None)),
    "cancelled": (script(CALLED, NEXT, stall()), cancel_run, ("cancelled", "UNSET", None)),
    "truncated": (script(CALLED, NEXT, cut()), exhaust, ("truncated", "ERROR", "StreamInterruptedError")),
    "failed": (
        script(CALLED, NEXT, sse_event({"error": {"message": "overloaded", "code": 503}})),
        exhaust,
        ("failed", "ERROR", "503"),
    ),
    "rejected": (status(401), exhaust, ("failed", "ERROR", "401")),
    "turn limit": (tool_calls(("weather", {})), exhaust, ("failed", "ERROR", "TurnLimitError")),
}


@pytest.mark.parametrize("name", RUN_ENDS)
async def test_run_is_one_span_for_every_outcome(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, name: str
) -> None:
    answer, use, expected = RUN_ENDS[name]
    server.enqueue(answer)
    run = start_run(client, never_ends, weather, max_turns=1)
    using = asyncio.ensure_future(use(run))
    del run
    with suppress(FriendliError):
        await with_timeout(using)
    del using
    gc.collect()
    await wait_until(lambda: not seen.telemetry._runs)
    assert (seen.telemetry._calls, seen.telemetry._tools) == ({}, {})
    [span] = [span for span in seen.spans if span.name == "invoke_agent"]
    assert_invoke_agent_span(span)
    assert span is seen.spans[-1]
    recorded = attributes(span)
    assert (recorded["friendli.outcome"], span.status.status_code.name, recorded.get("error.type")) == expected
    assert set(tree(seen).values()) <= {None, "invoke_agent"}
    for each in seen.spans:
        if each.name == "execute_tool never_ends":
            assert attributes(each)["friendli.outcome"] == "cancelled"
            assert each.status.status_code is StatusCode.UNSET


async def test_metrics_of_runs_and_tools_follow_the_conventions(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(tool_calls(("weather", {}), ("fail", {})), text("x"), status(401))
    await start_run(client, weather, fail).result()
    with pytest.raises(FriendliError):
        await start_run(client, weather, fail).result()
    recorded = seen.metrics()
    runs = {point.attributes.get("error.type"): point for point in recorded["gen_ai.invoke_agent.duration"]}
    assert {kind: point.count for kind, point in runs.items()} == {None: 1, "401": 1}
    assert list(runs[None].explicit_bounds) == pytest.approx([0.1 * 2**power for power in range(13)])
    for name, total in (("inference_calls", 2), ("tool_calls", 2)):
        points = {point.attributes.get("error.type"): point for point in recorded[f"gen_ai.invoke_agent.{name}"]}
        assert points[None].sum == total
        assert list(points[None].explicit_bounds) == [1, 2, 4, 8, 16, 32, 64, 128]
    tools = {
        (point.attributes["gen_ai.tool.name"], point.attributes.get("error.type")): point.count
        for point in recorded["gen_ai.execute_tool.duration"]
    }
    assert tools == {("weather", None): 1, ("fail", "LookupError"): 1}


@pytest.mark.parametrize("content", [True, False])
async def test_arguments_and_results_of_tools_are_recorded_on_request(server: FriendliServer, content: bool) -> None:
    seen = InMemoryTelemetry(content=content)
    server.enqueue(tool_calls(("weather", '{"city": "Oslo \ud83d"}')), tool_calls(("fail", {})), text("x"))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await start_run(client, weather, fail).result()
    found = {span.name: attributes(span) for span in seen.spans if span.name.startswith("execute_tool")}
    if not content:
        assert not [name for recorded in found.values() for name in recorded if "arguments" in name or "result" in name]
        assert "Oslo" not in repr(found)
        return
    first, second = found["execute_tool weather"], found["execute_tool fail"]
    assert json.loads(first["gen_ai.tool.call.arguments"])["city"].startswith("Oslo ")
    assert first["gen_ai.tool.call.result"] == "sunny in Oslo \ufffd"
    assert second["gen_ai.tool.call.result"] == "Error: LookupError: no such city"
    for recorded in found.values():
        "".join(str(value) for value in recorded.values()).encode()  # raises if it cannot be exported


async def test_run_that_is_not_sampled_passes_that_on(server: FriendliServer) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

    exporter = InMemorySpanExporter()
    tracers = TracerProvider(sampler=ParentBased(ALWAYS_OFF))
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    sampled: list[bool] = []

    @tool
    async def look() -> None:
        """Looks at the current span."""
        sampled.append(get_current_span().get_span_context().trace_flags.sampled)
        assert get_current_span().get_span_context().is_valid

    server.enqueue(tool_calls(("look", {})), text("x"))
    async with client_of(server.url, observers=[Telemetry(tracers)]) as client:
        await start_run(client, look).result()
    assert sampled == [False]
    assert exporter.get_finished_spans() == ()


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


ANSWER: Final[dict[str, Any]] = {"choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("names", ["v0.1.0", "old"])
@pytest.mark.parametrize(
    ("answer", "given"),
    [
        pytest.param({}, {"model": "\ud800"}, id="model"),
        pytest.param({}, {"stop": ["\ud800"]}, id="stop"),
        pytest.param({}, {"extra_body": {"reasoning_effort": "\ud800", "encoding_format": "\ud800"}}, id="effort"),
        pytest.param({}, {"extra_body": {"seed": 10**30, "top_k": -(10**30)}}, id="numbers"),
        pytest.param({"model": "\ud800", "id": "\ud800"}, {}, id="model of the reply"),
        pytest.param({"choices": [{**ANSWER["choices"][0], "finish_reason": "\ud800"}]}, {}, id="finish reason"),
        pytest.param({"usage": {"prompt_tokens": 10**30, "completion_tokens": -1}}, {}, id="usage"),
    ],
)
async def test_what_users_and_servers_send_does_not_break_the_export(
    server: FriendliServer, caplog: pytest.LogCaptureFixture, answer: dict[str, Any], given: dict[str, Any], names: str
) -> None:
    seen = InMemoryTelemetry(names=names)
    server.enqueue(json_body({**ANSWER, **answer}))
    async with client_of(server.url, observers=[seen.telemetry]) as client:
        await client.serverless.chat.complete(**{"model": "m", "messages": MESSAGES, **given})
    encode_spans(seen.spans)
    data = seen.reader.get_metrics_data()
    assert data is not None
    encode_metrics(data)
    assert caplog.records == []  # an attribute that cannot be encoded is left out with an error


async def test_number_of_texts_and_their_length_are_limited(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry
) -> None:
    server.enqueue(script(chunk("a"), cut()))
    with pytest.raises(FriendliError):
        await client.serverless.chat.stream(model="m" * 2000, messages=MESSAGES, n=10**6, stop=["a"] * 10**4).result()
    assert len(attributes(seen.span)["gen_ai.response.finish_reasons"]) == 128
    assert len(attributes(seen.span)["gen_ai.request.stop_sequences"]) == 128
    assert len(attributes(seen.span)["gen_ai.request.model"]) == 1000


async def test_metrics_name_a_limited_number_of_models(
    client: AsyncFriendli, server: FriendliServer, seen: InMemoryTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("friendli_async.integrations.opentelemetry._MAX_MODELS", 2)
    server.always(json_body(ANSWER))
    for model in ("a", "b", "c", "d", "a"):
        await client.serverless.chat.complete(model=model, messages=MESSAGES)
    points = seen.metrics()["gen_ai.client.inference.duration"]
    counts = {point.attributes["gen_ai.request.model"]: point.count for point in points}
    assert counts == {"a": 2, "b": 1, "_OTHER": 2}


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


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["false", "no_content", 0, None])
def test_content_that_is_not_a_bool_is_rejected(content: Any) -> None:
    with pytest.raises(TypeError, match="content is True or False"):
        Telemetry(content=content)


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


@pytest.mark.parametrize("switch", ["span_only", "span_and_event"])
async def test_content_of_a_call_that_is_not_sampled_is_collected_only_for_its_event(
    server: FriendliServer, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", switch)
    collect = Mock(return_value=[])
    monkeypatch.setattr("friendli_async.integrations.opentelemetry.input_messages", collect)
    telemetry = Telemetry(TracerProvider(ALWAYS_OFF), MeterProvider(), logger_provider=LoggerProvider())
    async with client_of(server.url, observers=[telemetry]) as client:
        await complete(client)
    assert collect.called is (switch == "span_and_event")


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


def test_parts_of_other_types_are_recorded_once_without_what_nobody_can_read() -> None:
    from friendli_async.integrations._genai_messages import input_messages, output_messages

    search: dict[str, Any] = {"type": "web_search_call", "id": "w", "action": {"query": "q"}}
    unreadable: list[dict[str, Any]] = [
        {"type": "image_generation_call", "result": "AAAA"},
        {"type": "compaction", "encrypted_content": "AAAA"},
        {"type": "redacted_thinking", "data": "AAAA"},
    ]
    shown = [search, *({"type": item["type"]} for item in unreadable)]
    items = msgspec.convert({"output": [search, *unreadable]}, Response).output
    for reply in (Response(output=items), msgspec.convert({"content": [search, *unreadable]}, Message)):
        assert output_messages(reply, ())[0]["parts"] == shown
    assert [message["parts"] for message in input_messages({"input": [item.as_input() for item in items]})] == [
        [part] for part in shown
    ]


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
        "custom tools",
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "f", "input": "ls"}}],
                }
            ]
        },
        [{"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": "ls"}]}],
    ),
    (
        "response items of custom tools",
        {
            "input": [
                {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "ls"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "12"},
            ]
        },
        [
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": "ls"}]},
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
