"""Events that cannot be read end a stream, unless what cannot be read holds no content."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from support import messages, responses

from friendli_async import APIStatusError, ResponseDecodeError
from friendli_async._core.events.reader import Collector, EventReader
from friendli_async.audio import _TranscriptCollector
from friendli_async.chat.collector import ChatCollector
from friendli_async.messages.collector import MessagesCollector
from friendli_async.replies import ReplyHead, UnknownEvent
from friendli_async.responses.collector import ResponseCollector

JSON = dict[str, Any]
ABSENT: Final = object()
NOTHING: Final[list[Any]] = [None, ABSENT, "", [], [[]], [None], True]
"""What may stand in place of an object, and holds no content."""
NO_OBJECT: Final[list[Any]] = [*NOTHING, "text", ["text"], 5]
"""What may stand in place of an object."""


def read(collector: Collector[Any, Any, Any], events: list[JSON]) -> tuple[EventReader[Any], list[Any]]:
    """Reads events one by one; returns the reader, and the events that it has delivered."""
    reader = EventReader[Any](collector, 1 << 20, ReplyHead(200))
    delivered: list[Any] = []
    for event in events:
        reader.feed(b"data: " + json.dumps(event).encode() + b"\n\n")
        delivered += reader.ready
        reader.ready.clear()
    return reader, delivered


def chunk(delta: object, **fields: object) -> JSON:
    return {"choices": [{"index": 0, "delta": delta, **fields}]}


SAID: Final = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0}
# Of each API: its collector, events before, and events after with the text "you".
STREAMS: Final[dict[str, tuple[Callable[[], Collector[Any, Any, Any]], list[JSON], list[JSON]]]] = {
    "responses": (
        ResponseCollector,
        [{"type": "response.created", "response": responses.BEGUN}, {**SAID, "delta": "Hi "}],
        [{**SAID, "delta": "you"}, responses.BARE],
    ),
    "messages": (
        MessagesCollector,
        [messages.start(), messages.block_start(messages.TEXT), messages.text_delta("Hi ")],
        [messages.text_delta("you"), messages.message_delta(), messages.STOP],
    ),
    "chat": (
        ChatCollector,
        [chunk({"role": "assistant", "content": "Hi "})],
        [chunk({"content": "you"}), chunk({}, finish_reason="stop"), {"choices": [], "usage": {"prompt_tokens": 1}}],
    ),
}
EMPTY: Final[list[tuple[str, str, str, list[Any]]]] = [
    *(("responses", f"response.{kind}", "response", [None, ABSENT, "", []]) for kind in ("created", "in_progress")),
    ("responses", "response.output_text.delta", "delta", [None, ABSENT, "", [], {}]),
    ("messages", "message_delta", "delta", NO_OBJECT),
    ("chat", "", "choices", [None, ABSENT, "", []]),
    ("chat", "", "choices", [[{"index": 0, "delta": None}], [{"index": 0, "delta": ""}], [{"index": 0, "delta": []}]]),
]


@pytest.mark.parametrize(
    ("api", "kind", "field", "value"),
    [(api, kind, field, value) for api, kind, field, values in EMPTY for value in values],
)
def test_event_without_content_ends_no_stream(api: str, kind: str, field: str, value: object) -> None:
    begin, before, after = STREAMS[api]
    collector = begin()
    event: JSON = {"type": kind, "index": 0} if kind else {"id": "c"}
    sent = event if value is ABSENT else {**event, field: value}
    reader, delivered = read(collector, [*before, sent, *after])
    assert reader.failure is None
    assert collector.partial().text == "Hi you"
    assert collector.usage is not None or api == "responses"
    assert not any(isinstance(each, UnknownEvent) for each in delivered)


@pytest.mark.parametrize("fields", [{}, {"item": None}], ids=["absent", "null"])
@pytest.mark.parametrize("stage", ["added", "done"])
def test_event_without_its_item_is_delivered_as_one_of_an_unknown_kind(stage: str, fields: JSON) -> None:
    begin, before, after = STREAMS["responses"]
    collector = begin()
    event: JSON = {"type": f"response.output_item.{stage}", "output_index": 0, **fields}
    reader, delivered = read(collector, [*before, event, *after])
    assert reader.failure is None
    assert collector.partial().text == "Hi you"
    assert UnknownEvent(event["type"], event) in delivered


UNREADABLE: Final[list[tuple[str, str, str, list[Any]]]] = [
    ("chat", "", "choices", [[None], [chunk({})["choices"][0], None], *([{"delta": each}] for each in ("a", ["a"]))]),
    ("chat", "", "choices", [[{"delta": {"tool_calls": [None, {"id": "t", "function": {"name": "f"}}]}}]]),
    ("responses", "response.output_item.added", "item", ["text"]),
    ("responses", "response.content_part.done", "part", [None, ABSENT, "text"]),
    ("responses", "response.in_progress", "response", ["text", 5]),
    ("messages", "message_start", "message", [None, ABSENT, "text"]),
    ("messages", "content_block_start", "content_block", [None, ABSENT, {"type": 5}, "text"]),
    ("messages", "content_block_delta", "delta", [None, ABSENT, {"type": 5}, "text_delta"]),
]


@pytest.mark.parametrize(
    ("api", "kind", "field", "value"),
    [(api, kind, field, value) for api, kind, field, values in UNREADABLE for value in values],
)
def test_event_of_a_known_kind_that_cannot_be_read_ends_its_stream(
    api: str, kind: str, field: str, value: object
) -> None:
    begin, before, _ = STREAMS[api]
    collector = begin()
    event: JSON = {"type": kind, "index": 0}
    reader, _ = read(collector, [*before, event if value is ABSENT else {**event, field: value}])
    assert isinstance(reader.failure, ResponseDecodeError)
    assert collector.partial().text == "Hi "


@pytest.mark.parametrize(
    ("api", "event", "text"),
    [
        ("chat", chunk({"text": "new "}), "Hi new you"),
        ("chat", chunk({"text": "new "}, finish_reason="stop"), "Hi new you"),
        ("chat", chunk({"text": "new ", "reasoning_content": "Hmm"}), "Hi new you"),
        ("chat", chunk({"text": 5, "content": None}), "Hi you"),
        ("chat", chunk({"role": "assistant", "content": "", "text": [{"text": "new "}]}), "Hi new you"),
        ("responses", {**SAID, "delta": {"text": "new "}}, "Hi new you"),
        ("responses", {**SAID, "delta": [{"text": "ne"}, "w "]}, "Hi new you"),
    ],
)
def test_text_in_another_place_or_shape_is_read(api: str, event: JSON, text: str) -> None:
    begin, before, after = STREAMS[api]
    collector = begin()
    reader, _ = read(collector, [*before, event, *after])
    assert (reader.failure, collector.partial().text) == (None, text)


@pytest.mark.parametrize("output", [[None], [[]], True, [{"type": "message", "content": [None]}]], ids=str)
@pytest.mark.parametrize("kind", ["completed", "incomplete", "failed"])
def test_unreadable_end_of_a_response_ends_its_stream(kind: str, output: object) -> None:
    collector = ResponseCollector()
    end = {"type": f"response.{kind}", "response": {"id": "resp_1", "output": output}}
    reader, _ = read(collector, [*STREAMS["responses"][1], end])
    assert isinstance(reader.failure, ResponseDecodeError)
    assert collector.partial().text == "Hi "


@pytest.mark.parametrize(("kind", "field"), [("thinking", "thinking"), ("of_tomorrow", "signature")])
def test_block_that_begins_with_no_text_keeps_that_of_its_deltas(kind: str, field: str) -> None:
    collector = MessagesCollector()
    block, delta = {"type": kind, field: True}, {"type": f"{field}_delta", field: "Hi"}
    reader, _ = read(
        collector,
        [
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": delta},
        ],
    )
    assert reader.failure is None
    assert "Hi" in str(collector.result().content)


def test_unreadable_end_of_a_transcript_ends_its_stream() -> None:
    collector = _TranscriptCollector()
    events: list[JSON] = [
        {"type": "transcript.text.delta", "delta": "Hi "},
        {"type": "transcript.text.done", "text": True},
    ]
    reader, _ = read(collector, events)
    assert isinstance(reader.failure, ResponseDecodeError)
    assert collector.partial().text == "Hi "


@pytest.mark.parametrize("error", [{"error": {"message": "no slots"}}, {"error": "no slots"}])
def test_error_in_place_of_the_choices_is_raised(error: JSON) -> None:
    collector = ChatCollector()
    reader, _ = read(collector, [*STREAMS["chat"][1], {"choices": error}])
    assert isinstance(reader.failure, APIStatusError)
    assert reader.failure.message == "no slots"
    assert collector.partial().text == "Hi "
