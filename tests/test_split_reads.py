# mypy: disable-error-code="var-annotated"
# The variables of a comprehension over values of many types cannot be annotated.
"""However the bytes of a stream are split into reads, its events, its end and its result are the same, in every API."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import cut, cuttings, fewer

from friendli_async._core.events.reader import Collector, EventReader
from friendli_async._core.text import join_text
from friendli_async.audio import _TranscriptCollector
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.tool_assisted import _ToolAssistedCollector
from friendli_async.completions import _TextCompletionCollector
from friendli_async.errors import ResponseDecodeError
from friendli_async.messages.collector import MessagesCollector, words_of
from friendli_async.replies import ReplyHead
from friendli_async.responses.collector import ResponseCollector
from friendli_async.responses.collector import _Wording as ResponseWording

Event = tuple[str | None, object]
"""The name of an event, and its data: a text, or a value that is sent as JSON."""

COLLECTORS: Final[dict[str, Callable[[], Collector[Any, Any, Any]]]] = {
    "chat": ChatCollector,
    "completions": _TextCompletionCollector,
    "tool-assisted": _ToolAssistedCollector,
    "messages": MessagesCollector,
    "responses": ResponseCollector,
    "audio": _TranscriptCollector,
}
USAGES: Final[list[Any]] = [None, {}, {"prompt_tokens": 1}, {"input_tokens": "1"}, {"output_tokens": 0}, [], "x"]

# Events that any server or proxy may send.
ANY: Final[list[Event]] = [
    *[(None, data) for data in ("null", "[DONE]", "[done]", "", ": comment", "ping", "quota exceeded", '{"x":', "[1]")],
    *[("ping", {}), ("done", ""), ("error", "it broke"), ("error", {"message": "no"}), ("x", "12:30"), ("x", {"a": 1})],
    *[(None, {}), (None, {"type": "ping"}), (None, {"error": {"message": "no"}}), (None, {"error": ""})],
    *[(None, {"detail": "quota exceeded"}), (None, {"x": "y z"}), (None, {"usage": {}}), ("message", {"id": "c"})],
]


def choices(*entries: object, **fields: object) -> Event:
    return None, {"choices": list(entries), **fields}


def of_type(kind: str, **fields: object) -> list[Event]:
    """An event in each of the ways to name its type."""
    return [(kind, {"type": kind, **fields}), (None, {"type": kind, **fields}), (kind, fields)]


DELTAS: Final[list[dict[str, Any]]] = [
    *[{"content": text} for text in ("a", "é", "\ud83d", "\ude00", None, "", [{"type": "text", "text": "a"}], {}, 5)],
    *[{"role": "assistant"}, {"reasoning_content": "r"}, {"reasoning": "r"}, {"refusal": "no"}, {"error": "no"}],
    {"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}]},
    {"tool_calls": [{"index": "0", "function": {"arguments": "}"}}]},
]
CHAT: Final[list[Event]] = [
    *[choices({"index": 0, "delta": delta}) for delta in DELTAS],
    *[choices({"index": 0, "message": delta}) for delta in DELTAS],
    *[choices({"index": 0, "delta": {"content": "a"}}, usage=usage) for usage in USAGES],
    *[choices({"index": 0, "delta": {}, "finish_reason": reason}) for reason in ("stop", "null", "error", {})],
    *[choices({"index": 1, "delta": {"content": "b"}}), choices({"index": -1, "delta": {"content": "b"}})],
    *[choices({"delta": {"content": "a"}}, {"delta": {"content": "b"}}), choices(), choices(usage={"total_tokens": 1})],
    *[choices({"index": 0, "delta": {"content": "a"}}, error="no"), choices({"index": 0, "text": "a"})],
]
STATUS: Final = {"tool_call_id": "t", "name": "web:url", "status": "STARTED"}
PART: Final[dict[str, Any]] = {"item_id": "i", "output_index": 0, "content_index": 0}
WORDS: Final = {"type": "output_text", "text": "ab"}
ITEM: Final[dict[str, Any]] = {"type": "message", "id": "i", "content": [WORDS]}
SAMPLES: Final[dict[str, list[Event]]] = {
    "chat": CHAT,
    "completions": [
        *[choices({"index": 0, "text": text}) for text in ("a", "b", None, {})],
        *[choices({"index": 0, "text": "a"}, usage=usage) for usage in USAGES],
        *[choices({"index": 0, "text": "", "finish_reason": "stop"}), choices({"index": 0, "delta": {"content": "a"}})],
        (None, {"event": "x", "choices": [{"index": 0, "text": "ab"}], "usage": {}}),
    ],
    "tool-assisted": [
        *CHAT,
        ("tool_status", STATUS),
        (None, STATUS),
        ("tool_status", {**STATUS, "error": {"msg": "no"}}),
    ],
    "messages": [
        *[each for usage in USAGES for each in of_type("message_start", message={"id": "m", "usage": usage})],
        *of_type("message_start", message={"content": [{"type": "text", "text": "a"}]}),
        *of_type("message_start", message={"id": "m", "content": [], "usage": {}}),
        *of_type("content_block_start", index=0, content_block={"type": "text", "text": "a"}),
        *of_type("content_block_start", index=1, content_block={"type": "tool_use", "id": "t", "name": "f"}),
        *of_type("content_block_start", index=1, content_block={"type": "x", "text": "a"}),
        *of_type("content_block_delta", index=0, delta={"type": "text_delta", "text": "b"}),
        *of_type("content_block_delta", index="0", delta={"text": "b"}),
        *of_type("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": "{}"}),
        *of_type("content_block_stop", index=0),
        *of_type("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
        *of_type("message_stop"),
    ],
    "responses": [
        *of_type("response.created", response={"id": "r"}),
        *of_type("response.output_item.added", item={**ITEM, "content": []}, output_index=0),
        *of_type("response.output_text.delta", delta="a", **PART),
        *of_type("response.output_text.delta", delta="b"),
        *of_type("response.output_text.done", text="ab", **PART),
        *of_type("response.refusal.delta", delta="no", **PART),
        *of_type("response.output_item.done", item=ITEM, output_index=0),
        *of_type("response.completed", response={"id": "r", "output": [ITEM], "usage": {}}),
        *of_type("response.failed", response={"id": "r", "error": {"code": "server_error", "message": "no"}}),
        *of_type("response.failed", response={"id": "r", "status": "failed", "output": []}),
        *of_type("response.completed", response={"id": "r", "output": [], "usage": {}}),
    ],
    "audio": [
        *of_type("transcript.text.delta", delta="a"),
        *of_type("transcript.text.done", text="ab", usage={}),
        *of_type("transcript.text.done", text=None, usage={"total_tokens": 1}),
    ],
}


@st.composite
def streams(draw: st.DrawFn, api: str) -> bytes:
    """The bytes of a stream of these events, with line ends, comments and other fields of all kinds."""
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    lines: list[str] = []
    for name, data in draw(st.lists(st.sampled_from(SAMPLES[api]) | st.sampled_from(ANY), max_size=8)):
        lines += draw(st.sampled_from([[], [], [], [": comment"], ["id: 1"], ["x: 1"], ["quota exceeded"]]))
        lines += [] if name is None else [f"event: {name}"]
        text = data if isinstance(data, str) else json.dumps(data, indent=draw(st.sampled_from([None, None, 1])))
        lines += [f"data: {line}" for line in text.split("\n")]
        lines.append("")
    lines += draw(st.sampled_from([[], ["data: [DONE]", ""], ["data: [DONE]"], ["data: [DONE]", "data: x", ""]]))
    return end.join([*lines, ""]).encode()


def read(
    api: str, pieces: Sequence[bytes], stop_conditions: Sequence[Callable[[Any], object]] = ()
) -> tuple[Collector[Any, Any, Any], EventReader[Any], list[Any]]:
    """Returns what has read a stream in these pieces, and its events."""
    collector = COLLECTORS[api]()
    reader = EventReader[Any](collector, 1 << 20, ReplyHead(200), stop_conditions)
    events: list[Any] = []
    for piece in (*filter(None, pieces), b""):
        if not reader.has_ended:
            reader.feed(piece)
            events += reader.ready
            reader.ready.clear()
    assert reader.has_ended
    return collector, reader, events


def outcome_of(
    api: str, pieces: Sequence[bytes], stop_conditions: Sequence[Callable[[Any], object]] = ()
) -> dict[str, object]:
    collector, reader, events = read(api, pieces, stop_conditions)
    failure = reader.failure
    return {
        "events": list(map(repr, events)),
        "failure": None if failure is None else (repr(failure), vars(failure)),
        "result": collector.result(),
        "partial": collector.partial(),
        "usage": collector.usage,
        "reasons": collector.finish_reasons,
        "has_text": bool(collector.has_text),
    }


@pytest.mark.parametrize("api", COLLECTORS)
@given(st.data())
@fewer
def test_splits_into_reads_do_not_affect_the_outcome(api: str, data: st.DataObject) -> None:
    stream = data.draw(streams(api))
    expected = outcome_of(api, [stream])
    assert outcome_of(api, [stream[at : at + 1] for at in range(len(stream))]) == expected
    assert outcome_of(api, cut(stream, data.draw(cuttings(len(stream))))) == expected


def encoded(event: Event) -> bytes:
    name, data = event
    text = data if isinstance(data, str) else json.dumps(data)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode()


DELTA_EVENTS: Final = {
    **{api: SAMPLES[api][0] for api in ("chat", "completions", "tool-assisted", "audio")},
    "messages": of_type("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})[0],
    "responses": of_type("response.output_text.delta", delta="a", **PART)[0],
}


@pytest.mark.parametrize("api", COLLECTORS)
def test_event_that_arrives_together_with_a_delta_is_decoded_as_if_it_came_alone(api: str) -> None:
    delta = encoded(DELTA_EVENTS[api])
    for event in map(encoded, (*SAMPLES[api], *ANY)):
        for pieces in ((delta, event), (event, delta)):
            assert outcome_of(api, [b"".join(pieces)]) == outcome_of(api, pieces), event


@pytest.mark.parametrize("api", COLLECTORS)
@given(st.data())
@fewer
def test_stop_condition_that_is_never_true_does_not_affect_the_outcome(api: str, data: st.DataObject) -> None:
    stream = data.draw(streams(api))
    pieces = cut(stream, data.draw(cuttings(len(stream))))
    assert outcome_of(api, pieces, [lambda _: False]) == outcome_of(api, pieces)


TEXTS: Final[dict[str, Callable[[], Callable[[Any], str]]]] = {
    "chat": lambda: lambda event: event.text,
    "completions": lambda: lambda event: event.text,
    "tool-assisted": lambda: lambda event: getattr(event, "text", ""),
    "messages": lambda: words_of,
}


@pytest.mark.parametrize("api", TEXTS)
@given(st.data())
@fewer
def test_text_of_the_events_is_the_text_of_the_result(api: str, data: st.DataObject) -> None:
    collector, _, events = read(api, [data.draw(streams(api))])
    assert join_text(map(TEXTS[api](), events)) == collector.partial().text


def test_reasoning_of_the_events_is_the_reasoning_of_the_result() -> None:
    pieces = [b'data: {"type":"response.reasoning_text.delta","delta":"%s"}\n\n' % text for text in (b"a", b"b")]
    collector, _, events = read("responses", pieces)
    assert "".join(map(ResponseWording("reasoning_text").of, events)) == collector.result().reasoning == "ab"
    block = b'{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"%s"}}'
    collector, _, events = read("messages", [b"data: %b\n\n" % (block % text) for text in (b"a", b"b")])
    assert "".join(words_of(event, "thinking") for event in events) == collector.result().reasoning == "ab"


def test_usage_of_an_event_that_fails_is_not_that_of_the_reply() -> None:
    good = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n'
    number = b"1" * 5000  # which Python's json does not decode
    bad = b'data: {"choices": [{"index": 0, "x": %b, "delta": {}}], "usage": {"completion_tokens": 1}}\n\n' % number
    for pieces in ([good + bad], [good, bad]):
        collector, reader, _ = read("chat", pieces)
        assert (type(reader.failure), collector.usage) == (ResponseDecodeError, None)
