"""How the events of a message stream become its blocks: servers that reuse, omit or repeat indexes and starts."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from support.messages import (
    CALL,
    JSON,
    STOP,
    TEXT,
    block_delta,
    block_start,
    block_stop,
    json_delta,
    message_delta,
    start,
    text_delta,
)

from friendli_async import StreamInterruptedError
from friendli_async._core.events.reader import EventReader
from friendli_async.messages import MessageUsage
from friendli_async.messages.collector import MessagesCollector, words_of
from friendli_async.replies import ReplyHead, UnknownEvent

SAID: Final[JSON] = {"type": "text", "text": "a"}
THOUGHT: Final[JSON] = {"type": "thinking", "thinking": "a"}
SEALED: Final[JSON] = {"type": "thinking", "thinking": "a", "signature": "s"}
CALLED: Final[JSON] = {**CALL, "input": {"city": "Paris"}}
OTHER: Final[JSON] = {"type": "hologram", "data": "d"}
BARE: Final[JSON] = {"type": "hologram"}
NAMELESS: Final[JSON] = {"type": "tool_use", "name": ""}


def thinking_delta(text: str) -> JSON:
    return block_delta({"type": "thinking_delta", "thinking": text})


def at(index: object, each: JSON) -> JSON:
    return {**each, "index": index}


def without_index(*events: JSON) -> list[JSON]:
    return [{name: value for name, value in each.items() if name != "index"} for each in events]


# The events of the blocks, and the blocks that they encode.
CASES: Final[dict[str, tuple[list[JSON], list[JSON]]]] = {
    "different blocks with one index": ([block_start(SAID), block_start(CALLED)], [SAID, CALLED]),
    "equal texts, the first with an end": ([block_start(SAID), block_stop(), block_start(SAID)], [SAID, SAID]),
    "end of a block that has not begun": ([block_stop(3), block_start(SAID)], [SAID]),
    "no types": ([block_start({"text": "a"}), block_delta({"text": "b"})], [{**SAID, "text": "ab"}]),
    "different texts with one index": (
        [block_start(SAID), block_start({**SAID, "text": "b"})],
        [SAID, {**SAID, "text": "b"}],
    ),
    "equal texts, the first with a delta": (
        [block_start(SAID), text_delta("b"), block_start(SAID)],
        [{**SAID, "text": "ab"}, SAID],
    ),
    "equal thoughts, the first with a delta": (
        [block_start(THOUGHT), thinking_delta("b"), block_start(THOUGHT)],
        [{**THOUGHT, "thinking": "ab"}, THOUGHT],
    ),
    "equal thoughts, the first with a signature": (
        [block_start(THOUGHT), block_delta({"type": "signature_delta", "signature": "s"}), block_start(THOUGHT)],
        [SEALED, THOUGHT],
    ),
    "equal calls, the first with arguments": (
        [block_start(CALL), json_delta('{"city": "Paris"}'), block_start(CALL)],
        [CALLED, CALL],
    ),
    "equal blocks of an unknown type, the first with a delta": (
        [block_start(OTHER), block_delta({"type": "hologram_delta", "data": "e"}), block_start(OTHER)],
        [{**OTHER, "data": "de"}, OTHER],
    ),
    "delta of an unknown type, no start": (
        [block_delta({"type": "hologram_delta", "data": "e"}), text_delta("a")],
        [SAID],
    ),
    "delta of an unknown type, in a text": (
        [text_delta("a"), block_delta({"type": "hologram_delta", "data": "e"})],
        [SAID],
    ),
    "no index, two blocks": (
        without_index(block_start(SAID), text_delta("b"), block_start(CALL), json_delta('{"city": "Paris"}')),
        [{**SAID, "text": "ab"}, CALLED],
    ),
    "no index, no start": (without_index(text_delta("a"), text_delta("b")), [{**SAID, "text": "ab"}]),
    "no start, two indexes": ([text_delta("a"), text_delta("b", 1)], [SAID, {**SAID, "text": "b"}]),
    "an empty signature, and an empty list of sources": (
        [
            *(block_start({"type": "thinking", "thinking": "", "signature": ""}), thinking_delta("a")),
            *(block_start({**TEXT, "citations": []}, 1), text_delta("a", 1)),
        ],
        [{**THOUGHT, "signature": ""}, {**SAID, "citations": ()}],
    ),
    "no start, arguments of a call": (
        [json_delta('{"city": "Paris"}')],
        [{"type": "tool_use", "name": "", "input": {"city": "Paris"}}],
    ),
    "text in a block of an unknown type": ([block_start(OTHER), text_delta("a")], [OTHER, SAID]),
    "text in a block that has only an unknown type": ([block_start(BARE), text_delta("a")], [BARE, SAID]),
    "arguments in a block that has only an unknown type": (
        [block_start(BARE), json_delta('{"q": 1}')],
        [{**BARE, "input": {"q": 1}}],
    ),
    "text and arguments in a block that has only an unknown type": (
        [block_start(BARE), text_delta("a"), json_delta('{"q": 1}')],
        [BARE, SAID, {**NAMELESS, "input": {"q": 1}}],
    ),
    "text in a call": ([block_start(CALLED), text_delta("a")], [CALLED, SAID]),
    "thinking in a block that has only an unknown type": ([block_start(BARE), thinking_delta("a")], [BARE, THOUGHT]),
    "no index, a block of an unknown type": (
        without_index(block_start(OTHER), block_delta({"type": "hologram_delta", "data": "e"})),
        [{**OTHER, "data": "de"}],
    ),
    "index that is text": (
        [
            *(at("0", each) for each in (block_start(SAID), text_delta("b"))),
            *(at("1", each) for each in (block_start(CALL), json_delta('{"city": "Paris"}'))),
        ],
        [{**SAID, "text": "ab"}, CALLED],
    ),
    "block that has only an unknown type": ([block_start(BARE)], [BARE]),
    "deltas that are no texts, or do not continue one": (
        [block_start({**OTHER, "size": 3}), block_delta({"type": "hologram_delta", "data": 4, "size": "e"})],
        [{**OTHER, "size": 3}],
    ),
    "no start, thinking": ([thinking_delta("a")], [THOUGHT]),
    "no start, thinking and text": ([thinking_delta("a"), text_delta("a")], [THOUGHT, SAID]),
    "no start, only a signature": (
        [block_delta({"type": "signature_delta", "signature": "s"})],
        [{"type": "thinking", "thinking": "", "signature": "s"}],
    ),
    "arguments of a call that its start has, too": (
        [block_start({**CALL, "input": {"city": "Rome"}}), json_delta('{"city": "Paris"}')],
        [CALLED],
    ),
    "start of the message with a block and an odd count": (
        [start(content=[SAID], usage={"input_tokens": "5"})],
        [SAID],
    ),
    "start of the message with an empty block": ([start(content=[TEXT]), block_start(SAID)], [SAID]),
    "a call in a text": (
        [block_start(SAID), json_delta('{"city": "Paris"}'), text_delta("b")],
        [SAID, {**NAMELESS, "input": {"city": "Paris"}}, {**SAID, "text": "b"}],
    ),
    "thinking in a text": (
        [block_start(SAID), thinking_delta("a"), block_delta({"type": "signature_delta", "signature": "s"})],
        [SAID, SEALED],
    ),
    "thinking, then text, in an empty text": (
        [block_start(TEXT), thinking_delta("a"), text_delta("a")],
        [THOUGHT, SAID],
    ),
}


def feed(events: list[JSON], collector: MessagesCollector) -> EventReader[Any]:
    reader = EventReader(collector, 1 << 20, ReplyHead(200))
    reader.feed(b"".join(b"data: %b\n\n" % json.dumps(each).encode() for each in events))
    return reader


@pytest.mark.parametrize("case", CASES)
def test_events_become_these_blocks(case: str) -> None:
    events, expected = CASES[case]
    collector = MessagesCollector()
    reader = feed([*events, STOP], collector)
    assert reader.failure is None
    message = collector.result()
    assert [without_none(block) for block in message.content] == expected
    assert "".join(map(words_of, reader.ready)) == message.text
    assert "".join(words_of(event, "thinking") for event in reader.ready) == message.reasoning


@pytest.mark.parametrize("case", CASES)
def test_interrupted_message_has_the_tool_calls_of_these_blocks(case: str) -> None:
    events, expected = CASES[case]
    collector = MessagesCollector()
    feed(events, collector)
    partial = collector.partial()
    calls = [(call.function.name, json.loads(call.function.arguments or "{}")) for call in partial.tool_calls]
    assert calls == [(block["name"], block["input"]) for block in expected if block["type"] == "tool_use"]
    assert partial.text == collector.result().text


def test_interrupted_call_has_only_arguments_that_arrived() -> None:
    collector = MessagesCollector()
    feed([block_start(CALL)], collector)
    assert [call.function.arguments for call in collector.partial().tool_calls] == [""]


def test_interrupted_message_has_its_citations() -> None:
    collector = MessagesCollector()
    cited = [block_delta({"type": "citations_delta", "citation": {"url": url}}) for url in "pq"]
    feed([block_start(SAID), *cited, block_start({**SAID, "citations": [{"url": "r"}]}, 1)], collector)
    assert collector.partial().annotations == ({"url": "p"}, {"url": "q"}, {"url": "r"})


def without_none(block: object) -> JSON:
    fields: JSON = msgspec.to_builtins(block)
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    "events",
    [
        [start(), {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}],
        [start(stop_reason="end_turn")],
        [start(), text_delta("a")],
        [start(), block_start({"type": "text", "text": ""}), thinking_delta("a")],
        [start(), block_start({"type": "text", "text": ""}), block_start(SAID, 1)],
    ],
    ids=["stop reason", "stop reason in the start", "text", "thinking in an empty text", "second block"],
)
def test_sentinel_may_end_a_message_that_has_begun(events: list[JSON]) -> None:
    reader = feed(events, MessagesCollector())
    reader.feed(b"data: [DONE]\n\n")
    assert (reader.has_ended, reader.failure) == (True, None)


@pytest.mark.parametrize("events", [[start()], [start(), block_start({"type": "text", "text": ""})]])
def test_sentinel_does_not_end_a_message_that_has_not_begun(events: list[JSON]) -> None:
    reader = feed(events, MessagesCollector())
    reader.feed(b"data: [DONE]\n\n")
    assert isinstance(reader.failure, StreamInterruptedError)


def test_events_after_the_last_one_are_ignored() -> None:
    collector = MessagesCollector()
    reader = feed([start(), text_delta("a"), STOP, text_delta("b"), block_start(CALLED, 1)], collector)
    assert len(reader.ready) == 3
    assert [without_none(block) for block in collector.result().content] == [SAID]


def test_second_start_without_a_usage_keeps_that_of_the_first() -> None:
    collector = MessagesCollector()
    feed([start(), start(usage=None)], collector)
    assert collector.usage == MessageUsage(5, 0, 2)


def test_text_after_the_last_event_is_not_the_first_text() -> None:
    collector = MessagesCollector()
    feed([start(), thinking_delta("a"), STOP, text_delta("b")], collector)
    assert not collector.has_text


def test_event_of_an_unknown_type_keeps_its_message_as_it_is() -> None:
    event = {"type": "hologram", "message": {"data": "d"}}
    reader = feed([start(), event], MessagesCollector())
    assert [each.data for each in reader.ready if isinstance(each, UnknownEvent)] == [event]


def test_stop_reason_and_sequence_are_the_latest() -> None:
    collector = MessagesCollector()
    feed([start(stop_reason="stop_sequence", stop_sequence="X")], collector)
    assert (collector.result().stop_reason, collector.result().stop_sequence) == ("stop_sequence", "X")
    for delta in ({"stop_reason": "max_tokens", "stop_sequence": "Y"}, {}):
        feed([{"type": "message_delta", "delta": delta}], collector)
        assert (collector.result().stop_reason, collector.result().stop_sequence) == ("max_tokens", "Y")


def test_usage_is_known_without_the_start_of_the_message() -> None:
    collector = MessagesCollector()
    feed([text_delta("a"), message_delta(output_tokens=7)], collector)
    assert collector.usage == MessageUsage(output_tokens=7)


def test_usage_that_no_event_has_is_unknown() -> None:
    collector = MessagesCollector()
    feed([text_delta("a"), {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}], collector)
    assert collector.usage is None
