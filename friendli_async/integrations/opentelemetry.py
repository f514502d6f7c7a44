"""OpenTelemetry: one span per call, per run and per tool, metrics, and, on request, message content.

    client = AsyncFriendli(observers=[Telemetry()])

Names follow the first separate release of the semantic conventions for generative AI, v0.1.0 (status: development,
https://github.com/open-telemetry/semantic-conventions-genai). They are spelled out here, because the package with the
earlier names as constants has deprecated them as moved. ``names="old"`` selects the earlier metric names, which most
dashboards still use.

Extra: ``pip install 'friendli_async[otel]'``. It installs only the API; exporting is configured by the service.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from friendli_async._core.observers import (
    AttemptEnded,
    CallContent,
    CallEnded,
    CallHeld,
    CallStarted,
    ObservedRunEvent,
    Observer,
    RunEnded,
    RunStarted,
    ToolCallContent,
    ToolCallEnded,
    ToolCallStarted,
)
from friendli_async._json import decode_json, encode_json, replace_surrogates
from friendli_async._version import __version__
from friendli_async.integrations._genai_messages import input_messages, output_messages, system_instructions
from friendli_async.options import check_choice
from friendli_async.replies import Usage, token_details

try:
    from opentelemetry import _logs, context, metrics, trace
except ImportError as _missing:
    raise ImportError("telemetry needs OpenTelemetry's API: pip install 'friendli_async[otel]'") from _missing

__all__ = ["Telemetry"]

_Attributes = dict[str, str | bool | int | float | tuple[str, ...]]
_RecordTokens = Callable[[Mapping[str, int], _Attributes], None]

_SCHEMA: Final = "https://opentelemetry.io/schemas/gen-ai/0.1.0"
_CONTENT_SWITCH: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_SECONDS: Final = [0.01 * 2**power for power in range(14)]
_RUN_SECONDS: Final = [0.1 * 2**power for power in range(13)]
_COUNTS: Final = [float(2**power) for power in range(8)]
_TOKENS: Final = [float(4**power) for power in range(14)]

# Users of a service and servers may send any name, number and count. What cannot be encoded makes an exporter discard
# all spans or metrics of the program, and metrics keep each combination of labels in memory: OpenTelemetry's SDK bounds
# their number itself only from 1.45.2 on.
_MAX_TEXT: Final = 1000
_MAX_ITEMS: Final = 128
_MAX_MODELS: Final = 1000
_MAX_TOKENS: Final = 1 << 31
_INTEGERS: Final = range(-(1 << 63), 1 << 63)

# Operation names of the conventions, which do not cover other operations (endpoints, files, lists).
_OPERATIONS: Final = {
    "chat": "chat",
    "tool_assisted_chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "audio": "generate_content",
    "image": "generate_content",
}
# The attributes of parameters, and the types that the conventions require.
_PARAMETERS: Final[dict[str, tuple[str, type]]] = {
    "max_tokens": ("gen_ai.request.max_tokens", int),
    "max_output_tokens": ("gen_ai.request.max_tokens", int),
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
    "stop": ("gen_ai.request.stop_sequences", tuple),
    "stop_sequences": ("gen_ai.request.stop_sequences", tuple),
    "reasoning_effort": ("gen_ai.request.reasoning.level", str),
    "encoding_format": ("gen_ai.request.encoding_formats", tuple),
    "dimensions": ("gen_ai.embeddings.dimension.count", int),
}


@dataclass(slots=True)
class _Call:
    """A call in flight."""

    span: trace.Span
    attributes: _Attributes
    streamed: bool
    choices: int
    is_inference: bool
    content: _Attributes = field(default_factory=_Attributes)


class Telemetry(Observer):
    """Records one span per call, from its start, through all attempts, to the end of its stream.

    The span is a child of the caller's. Its status is an error if the call failed or its stream was truncated; leaving,
    stopping and cancelling are up to the caller, and show only in ``friendli.outcome``. Metrics are recorded at the end
    of a call: duration, time to the first chunk, mean time between chunks, and tokens.

    A run (``chat.run``) is a span, too, the parent of those of its calls and of one span per tool call. The spans that
    a tool makes, in its own task or in a worker thread, are children of the latter.

    Args:
        tracer_provider: Where spans go; None is the global one.
        meter_provider: Where metrics go; None is the global one.
        content: Whether spans include message content (``gen_ai.input.messages``, ...). If False,
            ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` decides: ``true`` or ``span_only`` for spans,
            ``event_only`` for an event, ``span_and_event`` for both; by default neither.
        names: Metric names: "v0.1.0", or "old" for the earlier ones.
        logger_provider: Where the event with the content goes; None is the global one.

    Raises:
        TypeError: ``content`` is not a bool.
        ValueError: Unknown ``names``.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        content: bool = False,
        names: Literal["v0.1.0", "old"] = "v0.1.0",
        logger_provider: _logs.LoggerProvider | None = None,
    ) -> None:
        # First what the repr needs: a debugger shows it if the rest fails.
        switch = os.environ.get(_CONTENT_SWITCH, "").lower()
        self._on_spans = content or switch in {"true", "span_only", "span_and_event"}
        self._as_events = switch in {"event_only", "span_and_event"}
        check_choice("names", names, ("v0.1.0", "old"))
        if not isinstance(cast("object", content), bool):  # such as "false", from the environment, which is true
            raise TypeError(f"content is True or False, not {content!r}")
        self._tracer = trace.get_tracer("friendli_async", __version__, tracer_provider, schema_url=_SCHEMA)
        meter = metrics.get_meter("friendli_async", __version__, meter_provider, schema_url=_SCHEMA)
        self._meters = _Meters(meter, names)
        self._logger = _logs.get_logger("friendli_async", __version__, logger_provider, schema_url=_SCHEMA)
        if self._on_spans or self._as_events:
            # Observers without this method are not passed any content.
            self.call_content: Callable[[CallContent], None] = self._keep_content
        if self._on_spans:  # there is no event for it; the next call's event has it in its input messages
            self.tool_call_content: Callable[[ToolCallContent], None] = self._keep_tool_content
        self._calls: dict[int, _Call] = {}
        self._runs: dict[int, trace.Span] = {}
        self._tools: dict[tuple[int, str], trace.Span] = {}

    def __repr__(self) -> str:
        return f"Telemetry(content={self._on_spans or self._as_events})"

    # --- events of calls -----------------------------------------------------------------------------------------

    def call_started(self, event: CallStarted) -> None:
        """Starts the span of a call, in the caller's context, or below the run that it is a turn of."""
        group, _, method = event.operation.rpartition(".")
        operation = _OPERATIONS.get(group)
        attributes = _caller_attributes(event)
        attributes["server.address"] = event.server_address
        if event.server_port is not None:
            attributes["server.port"] = event.server_port
        if operation is not None:
            attributes["gen_ai.operation.name"] = operation
        requested = attributes | _request_attributes(event)
        if streamed := method == "stream":
            requested["gen_ai.request.stream"] = True
        model = attributes.get("gen_ai.request.model")
        name = event.operation if operation is None else f"{operation} {model}" if model else operation
        where = self._context_of(event.run_id)
        span = self._tracer.start_span(name, where, kind=trace.SpanKind.CLIENT, attributes=requested)
        choices = event.parameters.get("n", 1)
        count = min(choices, _MAX_ITEMS) if type(choices) is int else 1
        self._calls[event.call_id] = _Call(span, attributes, streamed, count, operation is not None)

    def call_held(self, event: CallHeld) -> None:
        """Adds an event to the span of a call that a rate-limit hold pauses."""
        call = self._calls.get(event.call_id)
        if call is not None:
            held: _Attributes = {"http.response.status_code": event.status, "friendli.wait": event.seconds}
            call.span.add_event("friendli.hold", held)

    def attempt_ended(self, event: AttemptEnded) -> None:
        """Adds an event to the span if the attempt will be retried."""
        call = self._calls.get(event.call_id)
        if call is not None and event.wait is not None:
            retried: _Attributes = {"error.type": event.error or "", "friendli.attempt": event.attempt}
            if event.status is not None:
                retried["http.response.status_code"] = event.status
            if event.reason is not None:
                retried["friendli.reason"] = event.reason
            call.span.add_event("friendli.retry", {**retried, "friendli.wait": event.wait})

    def call_ended(self, event: CallEnded) -> None:
        """Ends the span of a call, and records its metrics."""
        call = self._calls.pop(event.call_id, None)
        if call is None:
            return
        failure = _failure(event)
        attributes = _ending_attributes(event, _finish_reasons(event, call))
        attributes["http.request.resend_count"] = max(event.attempt - 1, 0)
        if event.status is not None and event.attempt:  # else it is that of the response to another call
            attributes["http.response.status_code"] = event.status
        if call.streamed and event.timing.first_event is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = event.timing.first_event
        if event.request_id is not None:
            attributes["friendli.request_id"] = event.request_id
        if event.response_id is not None:
            attributes["gen_ai.response.id"] = _text(event.response_id)
        if event.response_model is not None:
            attributes["gen_ai.response.model"] = _text(event.response_model)
        # The span first, because a provider of metrics or logs may raise.
        error = event.error if event.reason is None else f"{event.error}: {event.reason}"
        _end(call.span, {**attributes, **(call.content if self._on_spans else {})}, failure, error)
        if call.is_inference:
            self._meters.record_call(event, call.streamed, _labels(call, event, failure))
            if self._as_events and call.content:
                self._emit_content(call, attributes | _error(failure))

    def _keep_content(self, event: CallContent) -> None:
        call = self._calls.get(event.call_id)
        if call is None or not call.is_inference or event.request is None:
            return
        if not (self._as_events or call.span.is_recording()):
            return  # the call is not sampled
        body: dict[str, Any] = decode_json(event.request)
        content = {
            "gen_ai.system_instructions": system_instructions(body),
            "gen_ai.input.messages": input_messages(body),
            "gen_ai.tool.definitions": body.get("tools"),
            "gen_ai.output.messages": output_messages(event.reply, event.finish_reasons),
        }
        call.content = {name: encode_json(value).decode() for name, value in content.items() if value}

    def _emit_content(self, call: _Call, attributes: _Attributes) -> None:
        """Emits the content as an event of the call's span, which is not the current span here."""
        self._logger.emit(
            _logs.LogRecord(
                context=trace.set_span_in_context(call.span),
                severity_number=_logs.SeverityNumber.INFO,
                event_name="gen_ai.client.inference.operation.details",
                attributes={**call.attributes, **attributes, **call.content},
            )
        )

    # --- events of runs ------------------------------------------------------------------------------------------

    def run_started(self, event: RunStarted) -> None:
        """Starts the span of a run, in the context of the caller that uses it first."""
        attributes = {"gen_ai.operation.name": "invoke_agent", **_caller_attributes(event)}
        self._runs[event.run_id] = self._tracer.start_span("invoke_agent", attributes=attributes)

    def run_ended(self, event: RunEnded) -> None:
        """Ends the span of a run, and records its metrics."""
        span = self._runs.pop(event.run_id, None)
        if span is None:
            return
        attributes = {**_ending_attributes(event, event.finish_reasons), "friendli.turns": event.turns}
        failure = _failure(event)
        _end(span, attributes, failure, event.error)
        self._meters.record_run(event, _caller_attributes(event) | _error(failure))

    def tool_call_started(self, event: ToolCallStarted) -> None:
        """Starts the span of a tool, and makes it the current span of the tool's task."""
        attributes: _Attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.call.id": _text(event.tool_call_id),
            **_tool_attributes(event.name),
        }
        if event.description is not None:
            attributes["gen_ai.tool.description"] = event.description
        span = self._tracer.start_span(
            f"execute_tool {attributes['gen_ai.tool.name']}", self._context_of(event.run_id), attributes=attributes
        )
        self._tools[event.run_id, event.tool_call_id] = span
        context.attach(trace.set_span_in_context(span))  # never detached: the task ends with the tool

    def tool_call_ended(self, event: ToolCallEnded) -> None:
        """Ends the span of a tool, and records its duration."""
        span = self._tools.pop((event.run_id, event.tool_call_id), None)
        if span is None:
            return
        failure = None
        if event.outcome == "failed" and event.problem != "refused":
            failure = event.error if event.problem in (None, "failed") else event.problem
        if event.problem == "unknown":
            span.update_name("execute_tool")  # names that models invent are unbounded in number
        outcome = "refused" if event.problem == "refused" else event.outcome
        _end(span, {"friendli.outcome": outcome}, failure, event.error)
        if event.problem not in ("unknown", "refused"):
            self._meters.tool.record(event.seconds, _tool_attributes(event.name) | _error(failure))

    def _keep_tool_content(self, event: ToolCallContent) -> None:
        span = self._tools.get((event.run_id, event.tool_call_id))
        if span is not None:
            span.set_attribute("gen_ai.tool.call.arguments", replace_surrogates(event.arguments))
            if event.result is not None:
                span.set_attribute("gen_ai.tool.call.result", replace_surrogates(event.result))

    def _context_of(self, run_id: int | None) -> context.Context | None:
        """Returns the context for a span of a run; None, which is the current one, if there is no run."""
        span = None if run_id is None else self._runs.get(run_id)
        return None if span is None else trace.set_span_in_context(span)


# --- attributes ------------------------------------------------------------------------------------------------------


def _end(span: trace.Span, attributes: _Attributes, failure: str | None, error: str | None) -> None:
    if failure is not None:
        span.set_status(trace.StatusCode.ERROR, error)
    span.set_attributes(attributes | _error(failure))
    span.end()


def _text(text: str) -> str:
    """Returns a text as it can be exported."""
    return replace_surrogates(text[:_MAX_TEXT])


def _error(failure: str | None) -> _Attributes:
    return {} if failure is None else {"error.type": failure}


def _caller_attributes(event: CallStarted | ObservedRunEvent) -> _Attributes:
    """Returns what describes the model and who uses it, of a call or a run."""
    attributes: _Attributes = {"gen_ai.provider.name": "friendli"}
    if event.model is not None:
        attributes["gen_ai.request.model"] = _text(event.model)
    if event.team is not None:
        attributes["friendli.team"] = event.team
    return attributes


def _ending_attributes(event: CallEnded | RunEnded, finish_reasons: tuple[str, ...]) -> _Attributes:
    """Returns what describes the end of a call or a run."""
    attributes: _Attributes = {"friendli.outcome": event.outcome, "friendli.deployment": event.deployment}
    if finish_reasons:
        attributes["gen_ai.response.finish_reasons"] = tuple(map(_text, finish_reasons[:_MAX_ITEMS]))
    if event.usage is not None:
        attributes.update(_usage(event.usage))
    return attributes


def _tool_attributes(name: str) -> _Attributes:
    return {"gen_ai.tool.name": replace_surrogates(name), "gen_ai.tool.type": "function"}


def _request_attributes(event: CallStarted) -> _Attributes:
    """Returns the parameters of a call, in the types required by the conventions."""
    found: _Attributes = {}
    for name, value in event.parameters.items():
        if name not in _PARAMETERS or (name == "n" and value == 1):
            continue
        attribute, kind = _PARAMETERS[name]
        if kind is tuple:
            values = value[:_MAX_ITEMS] if isinstance(value, tuple) else (str(value),)
            found[attribute] = tuple(map(_text, values))
        elif kind is str:
            found[attribute] = _text(str(value))
        elif value in _INTEGERS if type(value) is int else type(value) is kind:  # neither bool nor text
            found[attribute] = kind(value)
    return found


def _finish_reasons(event: CallEnded, call: _Call) -> tuple[str, ...]:
    """Returns one per choice: "stopped" or "error" for a choice that was still incomplete when its stream ended."""
    if not call.is_inference or event.outcome == "done" or event.timing.first_event is None:
        return event.finish_reasons
    missing = "stopped" if event.outcome == "stopped" else "error"
    return event.finish_reasons + (missing,) * (call.choices - len(event.finish_reasons))


def _failure(event: CallEnded | RunEnded) -> str | None:
    """Returns the error type: a status code or a class name. None after a success, or if the caller ended it."""
    if event.outcome not in {"failed", "truncated"}:
        return None
    if event.status is not None and event.status >= 400:
        return str(event.status)
    return event.error or "_OTHER"


def _usage(usage: Usage) -> dict[str, int]:
    """Returns the counts of tokens, none of which can make a sum overflow."""
    found = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    cached, reasoning = token_details(usage)
    if cached is not None:
        found["gen_ai.usage.cache_read.input_tokens"] = cached
    if reasoning is not None:
        found["gen_ai.usage.reasoning.output_tokens"] = reasoning
    return {name: max(0, min(count, _MAX_TOKENS)) for name, count in found.items()}


def _labels(call: _Call, event: CallEnded, failure: str | None) -> _Attributes:
    """Returns the attributes of a measurement, all of low cardinality but the names of models."""
    labels = dict(call.attributes)
    if event.response_model is not None:
        labels["gen_ai.response.model"] = _text(event.response_model)
    return labels | _error(failure)


# --- metrics ---------------------------------------------------------------------------------------------------------


class _Meters:
    """The metrics of calls, and those of runs and tools, which have the same names in all versions of the conventions.

    Args:
        meter: Creates the instruments.
        names: See ``Telemetry``.
    """

    def __init__(self, meter: metrics.Meter, names: str) -> None:
        def histogram(name: str, unit: str, bounds: list[float], description: str) -> metrics.Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)

        is_new = names == "v0.1.0"
        call, run = f"gen_ai.client.{'inference' if is_new else 'operation'}", "gen_ai.invoke_agent"
        self._duration = histogram(
            f"{call}.duration", "s", _SECONDS, "How long calls took, retries and the reading of streams included"
        )
        self._first_chunk = histogram(
            f"{call}.time_to_first_chunk", "s", _SECONDS, "From the call to a stream's first chunk"
        )
        self._per_chunk = histogram(
            f"{call}.time_per_output_chunk", "s", _SECONDS, "Mean time between the chunks of a stream"
        )
        self._models: set[object] = set()
        self._record_tokens = _token_counters(meter) if is_new else _token_histogram(meter)
        self._run = histogram(f"{run}.duration", "s", _RUN_SECONDS, "How long runs took")
        self._turns = histogram(f"{run}.inference_calls", "{inference_call}", _COUNTS, "Calls of the model in a run")
        self._tool_calls = histogram(f"{run}.tool_calls", "{tool_call}", _COUNTS, "Tool calls in a run")
        self.tool: metrics.Histogram = histogram("gen_ai.execute_tool.duration", "s", _SECONDS, "How long tools took")

    def record_call(self, event: CallEnded, streamed: bool, labels: _Attributes) -> None:
        """Records a call."""
        labels, timing = self._with_known_models(labels), event.timing
        self._duration.record(timing.total, labels)
        if streamed and timing.first_event is not None:
            self._first_chunk.record(timing.first_event, labels)
            if timing.last_event is not None and timing.events > 1:
                self._per_chunk.record((timing.last_event - timing.first_event) / (timing.events - 1), labels)
        if event.usage is not None:
            self._record_tokens(_usage(event.usage), labels)

    def _with_known_models(self, labels: _Attributes) -> _Attributes:
        """Returns the labels with ``_OTHER`` for the names of models after the first thousand."""
        known = dict(labels)
        for name in ("gen_ai.request.model", "gen_ai.response.model"):
            if name in known and known[name] not in self._models:
                if len(self._models) < _MAX_MODELS:
                    self._models.add(known[name])
                else:
                    known[name] = "_OTHER"
        return known

    def record_run(self, event: RunEnded, labels: _Attributes) -> None:
        """Records a run."""
        labels = self._with_known_models(labels)
        self._run.record(event.seconds, labels)
        self._turns.record(event.turns, labels)
        self._tool_calls.record(event.tool_calls, labels)


def _token_counters(meter: metrics.Meter) -> _RecordTokens:
    """Returns what records a usage in v0.1.0."""
    counters = {
        f"gen_ai.usage.{kind}": meter.create_counter(f"gen_ai.client.inference.usage.{kind}", "{token}")
        for kind in ("input_tokens", "output_tokens", "cache_read.input_tokens", "reasoning.output_tokens")
    }

    def record(usage: Mapping[str, int], labels: _Attributes) -> None:
        for name, count in usage.items():
            counters[name].add(count, labels)

    return record


def _token_histogram(meter: metrics.Meter) -> _RecordTokens:
    """Returns what records a usage in the conventions before v0.1.0."""
    tokens = meter.create_histogram("gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=_TOKENS)

    def record(usage: Mapping[str, int], labels: _Attributes) -> None:
        for kind in ("input", "output"):
            tokens.record(usage[f"gen_ai.usage.{kind}_tokens"], {**labels, "gen_ai.token.type": kind})

    return record
