"""How the chunks of a chat stream become its choices: servers that number, repeat or move what they send."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from friendli_async import ResponseDecodeError
from friendli_async._core.events.reader import EventReader
from friendli_async.chat import ChatChunk, ChatMessage
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.tool_assisted import _ToolAssistedCollector
from friendli_async.chat.tool_calls import CompleteToolCalls
from friendli_async.replies import PromptTokensDetails, ReplyHead, Usage

JSON = dict[str, Any]


def read(*chunks: JSON, n: int = 1, at_once: bool = True) -> tuple[ChatCollector, list[ChatChunk]]:
    """Returns a collector that has read these chunks, in one read or each in one of its own, and the events."""
    collector = ChatCollector(n)
    reader = EventReader[ChatChunk](collector, 1 << 20, ReplyHead(200))
    data = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    for each in [b"".join(data)] if at_once else data:
        reader.feed(each)
    assert reader.failure is None
    return collector, list(reader.ready)


def chunk(*choices: JSON, **fields: object) -> JSON:
    return {"choices": list(choices), **fields}


def delta(index: int = 0, **fields: object) -> JSON:
    return chunk({"index": index, "delta": fields})


def message(**fields: object) -> JSON:
    return chunk({"index": 0, "message": fields})


def finish(index: int = 0, reason: str | None = "stop") -> JSON:
    return chunk({"index": index, "delta": {}, "finish_reason": reason})


def call(name: str | None = None, arguments: str | None = None, **fields: object) -> JSON:
    """Returns a delta of a tool call."""
    return {**fields, "function": {"name": name, "arguments": arguments}}


def calls(*deltas: JSON) -> JSON:
    return delta(tool_calls=list(deltas))


# --- tool calls ------------------------------------------------------------------------------------------------------

INTERLEAVED: Final = [(0, "f", "{"), (1, "g", "["), (0, None, "}"), (1, None, "]")]
"""The index, name and arguments of each delta of two calls."""
# The chunks, and the name and the arguments of each call that they encode.
CALLS: Final[dict[str, tuple[list[JSON], list[tuple[str, str]]]]] = {
    "name after the arguments have begun": (
        [calls(call(None, "", index=0, id="a")), calls(call("f", "{}", index=0))],
        [("f", "{}")],
    ),
    "one index, two ids": (
        [calls(call("f", "{", index=0, id="a")), calls(call("f", "{}", index=0, id="b"))],
        [("f", "{"), ("f", "{}")],
    ),
    "id after the whole arguments": (
        [calls(call("f", "{}", index=0)), calls(call("f", "", index=0, id="b"))],
        [("f", "{}")],
    ),
    "no index, two calls in a chunk": ([calls(call("f", "{"), call("f", "}"))], [("f", "{"), ("f", "}")]),
    "one index, two deltas in a chunk": ([calls(call("f", "{", index=0), call("f", "}", index=0))], [("f", "{}")]),
    "one index, two names, no arguments": (
        [calls(call("f", "", index=0)), calls(call("g", "", index=0))],
        [("f", ""), ("g", "")],
    ),
    "name twice, no arguments": ([calls(call("f", "", index=0)), calls(call("f", "{}", index=0))], [("f", "{}")]),
    "name after the whole arguments": ([calls(call("f", "{}", index=0)), calls(call("f", index=0))], [("f", "{}")]),
    "space after the whole arguments": (
        [calls(call("f", "{}", index=0)), calls(call("f", " ", index=0))],
        [("f", "{} ")],
    ),
    "one index, equal calls": (
        [calls(call("f", "{} ", index=0)), calls(call("f", "{}", index=0))],
        [("f", "{} "), ("f", "{}")],
    ),
    "one index, another call after a space": (
        [calls(call("f", "{}", index=0)), calls(call("f", " ", index=0)), calls(call("g", "{}", index=0))],
        [("f", "{} "), ("g", "{}")],
    ),
    "name in each delta": (
        [calls(call("f", '{"a":{}', index=0)), calls(call("f", "}", index=0))],
        [("f", '{"a":{}}')],
    ),
    "name that grows": ([calls(call("get", index=0)), calls(call("get_x", "{}", index=0))], [("get_x", "{}")]),
    "name in pieces": ([calls(call("get", index=0)), calls(call("_x", "{}", index=0))], [("get_x", "{}")]),
    "name in pieces with empty arguments": (
        [calls(call("get", "", index=0, id="a")), calls(call("_x", "", index=0)), calls(call(None, "{}", index=0))],
        [("get_x", "{}")],
    ),
    "name in pieces with empty arguments, without indexes": (
        [calls(call("get", "", id="a")), calls(call("_x", "")), calls(call(None, "{}"))],
        [("get_x", "{}")],
    ),
    "name in pieces with empty arguments, and the id in each": (
        [calls(call("get", "", index=0, id="a")), calls(call("_x", "{}", index=0, id="a"))],
        [("get_x", "{}")],
    ),
    "name that grows, with empty arguments": (
        [
            calls(call("get", "", index=0, id="a")),
            calls(call("get_x", "", index=0)),
            calls(call("get_x", "{}", index=0)),
        ],
        [("get_x", "{}")],
    ),
    "name twice, with empty arguments": (
        [calls(call("f", "", index=0, id="a")), calls(call("f", "", index=0)), calls(call("f", "{}", index=0))],
        [("f", "{}")],
    ),
    "one index, two ids, no arguments": (
        [calls(call("f", "", index=0, id="a")), calls(call("g", "", index=0, id="b"))],
        [("f", ""), ("g", "")],
    ),
    "name twice": ([calls(call("f", index=0)), calls(call("f", "{}", index=0))], [("f", "{}")]),
    "other name in the middle": ([calls(call("f", "{", index=0)), calls(call("fo", "}", index=0))], [("f", "{}")]),
    "index only from the second delta on": ([calls(call("f", "{")), calls(call(None, "}", index=0))], [("f", "{}")]),
    "index and id of another call": (
        [calls(call("f", "{")), calls(call("g", "{}", index=1, id="b"))],
        [("f", "{"), ("g", "{}")],
    ),
    "call without a name after one with an index": (
        [calls(call("f", "{}", index=0)), calls(call(None, "")), calls(call(None, "{}", index=1))],
        [("f", "{}"), ("", "{}")],
    ),
    "empty ids": (
        [calls(call("f", "{}", id="")), calls(call("g", "{", id="b")), calls(call(None, "}", id=""))],
        [("f", "{}"), ("g", "{}")],
    ),
    "new id in each delta": (
        [calls(call("f", "{", id="a")), calls(call(None, "}", id="b"))],
        [("f", "{}")],
    ),
    "delta without a function": ([calls({"index": 0, "id": "a"}), calls(call("f", "{}", index=0))], [("f", "{}")]),
    "interleaved, with indexes": (
        [calls(call(name, piece, index=at)) for at, name, piece in INTERLEAVED],
        [("f", "{}"), ("g", "[]")],
    ),
    "interleaved, with ids only": (
        [calls(call(name, piece, id=str(at))) for at, name, piece in INTERLEAVED[:3]],
        [("f", "{}"), ("g", "[")],
    ),
    "first index is 1": ([calls(call("f", "{", index=1)), calls(call(None, "}", index=1))], [("f", "{}")]),
    "one name, two calls announced before their arguments": (
        [*(calls(call("f", "", index=at)) for at in (0, 1)), *(calls(call(None, "{}", index=at)) for at in (0, 1))],
        [("f", "{}"), ("f", "{}")],
    ),
    "no index or id, two names": (
        [calls(call("f", "{}")), calls(call("g", "")), calls(call(None, "[]"))],
        [("f", "{}"), ("g", "[]")],
    ),
    "no index, new id and name after new ids": (
        [calls(call("f", "{", id="a")), calls(call(None, "}", id="b")), calls(call("g", id="c"))],
        [("f", "{}"), ("g", "")],
    ),
}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("case", CALLS)
def test_deltas_become_these_tool_calls(case: str, at_once: bool) -> None:
    chunks, expected = CALLS[case]
    collector, _ = read(*chunks, at_once=at_once)
    assert [(each.function.name, each.function.arguments) for each in collector.result().tool_calls] == expected


def test_first_id_and_type_of_a_call_are_kept() -> None:
    collector, _ = read(calls(call("f", index=0, id="a", type="custom")), calls(call(None, "x", index=0)))
    [result] = collector.result().tool_calls
    assert (result.id, result.type, result.function.arguments) == ("a", "custom", "x")


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (['{"a":', "1", "}", " ", "x"], [False, False, True, True, False]),
        (["", "{", "}"], [False, False, True]),
        (["{}", "{}"], [True, False]),
        (["[", "]"], [False, False]),
        (["x", "{}", ""], [False, False, False]),
    ],
)
def test_call_is_whole_while_its_arguments_are_an_object(pieces: list[str], whole: list[bool]) -> None:
    for asked in range(len(pieces)):  # however late it is asked for the first time
        collector, found = ChatCollector(), []
        for position, piece in enumerate(pieces):
            [event] = read(calls(call("f" if position == 0 else None, piece, index=0)))[1]
            collector.extend((event,))
            if position >= asked:
                found.append(bool(list(collector.whole_calls(0, with_last=True))))
        assert found == whole[asked:]


@pytest.mark.parametrize(
    ("arguments", "first", "with_last", "expected"),
    [
        (["{}", "{}"], 0, True, [0, 1]),
        (["{}", "{}"], 0, False, [0]),
        (["{}", "{}"], 1, True, [1]),
        (["{}", "{}"], 1, False, []),
        (["x", "{}"], 0, True, []),
        (["{}", "x"], 0, True, [0]),
    ],
)
def test_calls_are_whole_up_to_the_first_that_is_not(
    arguments: list[str], first: int, with_last: bool, expected: list[int]
) -> None:
    collector, _ = read(*(calls(call(str(index), each, index=index)) for index, each in enumerate(arguments)), n=2)
    whole = collector.whole_calls(first, with_last=with_last)
    assert [int(each.function.name) for each in whole] == expected


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([calls(call("f", "{}", index=0)), finish()], [[], ["f"]]),
        ([calls(call("f", "{}", index=0)), finish(1), finish(0)], [[], [], ["f"]]),
        ([calls(call("f", "{}", index=0)), calls({"index": 1}), calls(call("g", index=1))], [[], [], ["f"]]),
        ([calls(call("f", "{}", index=0), call("g", "{}", index=1)), finish()], [["f"], ["g"]]),
        ([calls(call("f", "x", index=0)), calls(call("g", "{}", index=1)), finish()], [[], [], []]),
    ],
)
def test_call_is_complete_when_the_next_has_a_name_or_its_choice_has_ended(
    chunks: list[JSON], expected: list[list[str]]
) -> None:
    collector, complete, found = ChatCollector(2), CompleteToolCalls(), []
    for each in chunks:
        [event] = read(each, n=2)[1]
        collector.extend((event,))
        found.append([whole.function.name for whole in complete.after(event, collector)])
    assert found == expected


# --- messages in place of deltas -------------------------------------------------------------------------------------

DETAIL: Final = {"type": "reasoning.text", "text": "hm"}
MESSAGE: Final[JSON] = {
    "role": "assistant",
    "content": "a",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}] * 2,
    "reasoning_content": "b",
    "reasoning": "c",
    "reasoning_details": [DETAIL],
    "refusal": "d",
    "images": [{"type": "image_url", "image_url": {"url": "data:,"}}],
    "audio": {"id": "e", "data": "AAAA", "transcript": "f"},
}


@pytest.mark.parametrize("chunks", [[message(**MESSAGE)], [delta(**MESSAGE), message(**MESSAGE)]])
def test_message_is_in_the_result_once(chunks: list[JSON]) -> None:
    if len(chunks) > 1:
        numbered = [{**each, "index": index} for index, each in enumerate(MESSAGE["tool_calls"])]
        chunks = [delta(**{**MESSAGE, "tool_calls": numbered}), *chunks[1:]]
    collector, _ = read(*chunks)
    assert json.loads(msgspec.json.encode(collector.result().message)) == MESSAGE


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([message(content="a"), message(content="b")], "ab"),
        ([message(content="a"), message(content="ab")], "ab"),
        ([message(content="ab"), message(content="a")], "aba"),
        ([message(content="a"), message(content="b"), message(content="b")], "abb"),
        ([message(content="a"), message(content=None)], "a"),
        ([delta(content="a"), message(content="b")], "a"),
        ([delta(content="a"), message(content="ab")], "ab"),
        ([delta(content="a"), chunk({"index": 0, "text": "b"})], "ab"),
        ([chunk({"index": 0, "delta": {"content": "a"}, "message": {"content": "a"}})], "a"),
        ([chunk({"index": 0, "delta": {"content": "a"}, "message": {"role": "assistant"}})], "a"),
    ],
)
def test_message_adds_what_has_not_been_streamed(chunks: list[JSON], text: str) -> None:
    collector, events = read(*chunks)
    assert collector.result().text == "".join(event.text for event in events) == text
    assert {(choice.message, choice.text) for event in events for choice in event.choices} == {(None, None)}


F, G = call("f", '{"a": 1}', id="x"), call("g", "{}", id="y")


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([message(tool_calls=[F]), message(tool_calls=[G])], ["f", "g"]),
        ([message(tool_calls=[F]), message(tool_calls=[F, G])], ["f", "g"]),
        ([calls({**F, "index": 0}), message(tool_calls=[F, G])], ["f", "g"]),
        ([calls({**F, "index": 0}), message(tool_calls=[G, F])], ["f", "g"]),
        ([calls({**F, "index": 1}), message(tool_calls=[F])], ["f"]),
        ([calls({**F, "index": 0}), message(tool_calls=[{**F, "id": "z"}])], ["f"]),
        ([calls({**F, "index": 0}), message(tool_calls=[call("f", '{"a":1}')])], ["f"]),
        ([calls({**F, "index": 0}), message(tool_calls=[F, {**F, "id": "z"}])], ["f", "f"]),
        ([calls({**F, "index": 0}), message(tool_calls=[call("f", '{"a": 2}', id="z")])], ["f", "f"]),
    ],
)
def test_calls_of_a_message_that_were_not_streamed_are_in_the_result(chunks: list[JSON], expected: list[str]) -> None:
    collector, events = read(*chunks)
    assert [each.function.name for each in collector.result().tool_calls] == expected
    deltas = [each for event in events for each in event.choices[0].delta.tool_calls or ()]
    assert [each.index for each in deltas] == list(range(len(expected)))


def test_message_is_in_the_event_as_a_delta() -> None:
    collector, [event] = read(message(**{**MESSAGE, "role": "model"}))
    event_delta = event.choices[0].delta
    assert [each.index for each in event_delta.tool_calls or ()] == [0, 1]
    assert (event_delta.role, event_delta.content, event_delta.refusal) == ("model", "a", "d")
    assert collector.result().message.role == "model"


def test_fields_that_no_chunk_has_are_none() -> None:
    collector, _ = read(delta(content="a"), delta(role="assistant"), delta(role="tool"))
    [choice] = collector.result().choices
    assert choice.message == ChatMessage(role="assistant", content="a")
    assert choice.logprobs is None


@pytest.mark.parametrize(
    ("fields", "content"),
    [({"refusal": "no"}, None), ({"tool_calls": [call("f", "{}", index=0)]}, None), ({"reasoning": "hm"}, "")],
)
def test_content_is_none_only_beside_a_call_or_a_refusal(fields: JSON, content: str | None) -> None:
    assert read(delta(**fields))[0].result().message.content == content
    assert read(delta(content="a"), delta(**fields))[0].result().message.content == "a"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([{"index": 0, "text": "a"}, {"index": 0, "text": "b"}], [{"index": 0, "text": "ab"}]),
        (
            [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}],
            [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}],
        ),
        ([{"text": "a"}, {"text": "b"}], [{"text": "a"}, {"text": "b"}]),
        (
            [{"index": 0, "type": "x", "summary": "a"}, {"index": 0, "type": "y", "summary": "b"}],
            [{"index": 0, "type": "x", "summary": "a"}, {"index": 0, "type": "y", "summary": "b"}],
        ),
        (
            [{"index": 0, "data": "a", "id": "i"}, {"index": 0, "data": "b", "id": None, "format": "f"}],
            [{"index": 0, "data": "ab", "id": "i", "format": "f"}],
        ),
        ([{"index": 0, "text": "a"}, {"index": 0, "text": None}], [{"index": 0, "text": "a"}]),
        ([{"index": 0, "text": None}, {"index": 0, "signature": "s"}], [{"index": 0, "text": None, "signature": "s"}]),
    ],
)
def test_pieces_of_reasoning_details_are_merged(pieces: list[JSON], expected: list[JSON]) -> None:
    collector, _ = read(*(delta(reasoning_details=[piece]) for piece in pieces))
    assert list(collector.result().message.reasoning_details or ()) == expected


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("text", [None, "", "a"])
def test_images_beside_any_text_are_in_the_result(text: str | None, at_once: bool) -> None:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in ("data:,a", "data:,b")]
    chunks = [delta(content="x"), *(delta(content=text, images=[each]) for each in images), finish()]
    collector, _ = read(*chunks, at_once=at_once)
    assert list(collector.result().message.images or ()) == images
    assert collector.result().text == "x" + 2 * (text or "")


@pytest.mark.parametrize(
    ("pieces", "data"),
    [(["YQ==", "Yg==", "Y2Q="], "YWJjZA=="), (["YWJj", "ZA=="], "YWJjZA=="), (["YWJ", "jZA=", "="], "YWJjZA==")],
    ids=["each padded", "cut between groups", "cut anywhere"],
)
def test_pieces_of_speech_are_merged(pieces: list[str], data: str) -> None:
    deltas: list[JSON] = [{"id": "i"}, *({"data": piece, "transcript": "t"} for piece in pieces), {"expires_at": 5}]
    collector, events = read(*(delta(audio=each) for each in deltas), finish())
    expected = {"id": "i", "data": data, "transcript": "t" * len(pieces), "expires_at": 5}
    assert collector.result().message.audio == expected
    assert [event.choices[0].delta.audio for event in events[:-1]] == deltas


@pytest.mark.parametrize("fields", [{"images": [{"type": "image_url"}]}, {"audio": {"transcript": "a"}}])
def test_answer_of_an_image_or_of_speech_has_begun(fields: JSON) -> None:
    assert read(delta(**fields))[0].begun


@pytest.mark.parametrize("reason", [7, "END", {"id": 7}])
def test_choice_has_what_stopped_it(reason: object) -> None:
    last = chunk({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": reason})
    [choice] = read(delta(content="a"), last)[0].result().choices
    assert (choice.finish_reason, choice.stop_reason) == ("stop", None if isinstance(reason, dict) else reason)


def test_sources_of_an_answer_that_is_cut_off_are_in_its_partial() -> None:
    collector, _ = read(delta(content="a"), delta(annotations=[{"url": "p"}]), delta(annotations=[{"url": "q"}]))
    assert collector.partial().annotations == ({"url": "p"}, {"url": "q"})
    assert read(delta(content="a"))[0].partial().annotations == ()


# --- the state of a stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("chunks", "begun", "may_end", "has_text"),
    [
        ([delta(role="assistant")], False, False, False),
        ([delta(content="a")], True, False, True),
        ([delta(reasoning_content="a")], True, False, False),
        ([delta(reasoning="a")], True, False, False),
        ([delta(reasoning_details=[DETAIL])], True, False, False),
        ([delta(refusal="a")], True, False, False),
        ([calls(call("f", index=0))], True, False, False),
        ([finish()], True, True, False),
        ([delta(content="a"), finish()], True, True, True),
        ([delta(content="a"), finish(reason=None)], True, False, True),
        ([delta(content="a"), finish(), delta(role="assistant")], True, True, True),
        ([finish(), delta(content="a")], True, False, True),
        ([finish(), delta(reasoning="a")], True, False, False),
        ([finish(), delta(reasoning_content="a")], True, False, False),
        ([finish(), calls(call("f", index=0))], True, False, False),
        ([finish(), chunk({"index": 0, "delta": {"role": "assistant", "content": "a"}})], True, False, True),
    ],
)
def test_stream_may_end_while_each_begun_choice_has_its_finish_reason(
    chunks: list[JSON], begun: bool, may_end: bool, has_text: bool, at_once: bool
) -> None:
    collector, _ = read(*chunks, at_once=at_once)
    assert (collector.begun, collector.may_end, collector.has_text) == (begun, may_end, has_text)


def test_text_of_any_choice_is_the_first_text() -> None:
    assert read(delta(0, reasoning="hm"), delta(1, content="a"), n=2)[0].has_text


@pytest.mark.parametrize(
    ("chunks", "reasons"),
    [
        ([finish(1, "length"), finish(0, "stop")], ("stop", "length")),
        ([delta(0, content="a"), finish(1, "length")], ("length",)),
    ],
)
def test_finish_reasons_are_in_the_order_of_the_choices(chunks: list[JSON], reasons: tuple[str, ...]) -> None:
    assert read(*chunks, n=2)[0].finish_reasons == reasons


def test_partial_answer_is_that_of_choice_0() -> None:
    collector, _ = read(delta(1, content="b"), n=2)
    assert collector.partial().text == ""
    collector, _ = read(delta(1, content="b"), delta(0, content="a"), n=2)
    assert collector.partial().text == "a"


def test_partial_answer_of_very_many_requested_choices_is_limited() -> None:
    collector, _ = read(delta(1, content="b"), n=1_000_000)
    assert collector.partial().texts == ("", "b", *[""] * 9_998)


def test_partial_answer_has_the_texts_of_several_choices() -> None:
    collector, _ = read(delta(1, content="b"), delta(1, content="c"), n=3)
    assert collector.partial().texts == ("", "bc", "")
    collector, _ = read(delta(1, content="b"), delta(0, content="a"), finish(0), n=2)
    assert (collector.partial().text, collector.partial().texts) == ("a", ("a", "b"))
    collector, _ = read(delta(0, content="a"))
    assert collector.partial().texts == ()


def test_head_is_that_of_the_first_chunk_with_a_choice() -> None:
    chunks = [{**chunk(), "id": "x"}, {**delta(1, content="b"), "id": "a"}, {**delta(0, content="a"), "id": "b"}]
    assert read(*chunks, n=2)[0].result().id == "a"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([[1]], [0]),
        ([[5], [5]], [0]),
        ([[-1], [-1]], [0]),
        ([[2], [5]], [0, 5]),
        ([[2], [0]], [0, 2]),
        ([[0], [3]], [0, 3]),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_first_choice_is_choice_0_if_one_was_requested(
    sent: list[list[int]], expected: list[int], at_once: bool
) -> None:
    chunks = [chunk(*({"index": index, "delta": {"content": "a"}} for index in indexes)) for indexes in sent]
    collector, events = read(*chunks, at_once=at_once)
    assert [choice.index for choice in collector.result().choices] == expected
    assert {choice.index for event in events for choice in event.choices} == set(expected)


def test_choices_by_a_number_of_thousands_of_digits_are_read() -> None:
    huge = {"9" * 5000: {"index": 1, "delta": {"content": "b"}}, "10": {"index": 0, "delta": {"content": "a"}}}
    _, events = read({"choices": huge}, n=2)
    assert [(choice.index, choice.delta.content) for choice in events[0].choices] == [(0, "a"), (1, "b")]


A, B = delta(content="a"), delta(1, content="b")


@pytest.mark.parametrize(
    ("chunks", "n", "is_split"),
    [
        ([A, A, finish()], 2, False),
        ([A, A, finish(), finish()], 2, False),
        ([A, B, finish(1)], 2, False),
        ([A, B, finish(2)], 1, True),
        ([B, delta(2, content="c"), finish(3)], 1, True),
        ([delta(role="assistant"), B, finish(1)], 1, True),
        ([A, A, finish(1)], 1, False),
        ([B, B, finish(0)], 1, False),
        ([A, B, finish(), finish(1)], 1, False),
        ([A, B, finish()], 1, False),
        ([A, finish(), finish()], 1, False),
        ([A, B], 1, False),
    ],
)
def test_only_answer_that_is_split_into_choices_is_an_error(chunks: list[JSON], n: int, is_split: bool) -> None:
    reader = EventReader[ChatChunk](ChatCollector(n), 1 << 20, ReplyHead(200))
    for each in chunks:
        reader.feed(b"data: %b\n\n" % json.dumps(each).encode())
    assert reader.failure is None
    reader.feed(b"data: [DONE]\n\n")
    assert isinstance(reader.failure, ResponseDecodeError) is is_split


def test_finish_reason_before_a_built_in_tool_is_no_other_choice_of_a_server_that_ignores_n() -> None:
    reader = EventReader[Any](_ToolAssistedCollector(2), 1 << 20, ReplyHead(200))
    for each in (A, finish(reason="tool_calls"), None, A, finish()):
        data = b'{"tool_call_id": "t", "name": "math:calculator", "status": "ENDED"}'
        name = b"event: tool_status\n" if each is None else b""
        reader.feed(b"%bdata: %b\n\n" % (name, data if each is None else json.dumps(each).encode()))
    reader.feed(b"data: [DONE]\n\n")
    assert reader.failure is None
    assert len(reader.ready) == 5


def test_indexes_are_kept_if_several_choices_were_requested() -> None:
    collector, _ = read(delta(1, content="a"), n=2)
    assert [choice.index for choice in collector.result().choices] == [1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([(0, 0)], Usage(0, 0, 0)), ([(2, 3), (0, 0)], Usage(2, 3, 5)), ([(0, 0), (2, 3)], Usage(2, 3, 5))],
)
def test_counts_of_zero_do_not_replace_others(counts: list[tuple[int, int]], expected: Usage) -> None:
    usages = [{"prompt_tokens": new, "completion_tokens": out, "total_tokens": new + out} for new, out in counts]
    collector, _ = read(delta(content="a"), *(chunk(usage=usage) for usage in usages))
    assert collector.usage == expected


DETAILED: Final = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
COUNTED: Final = {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 20}
MORE_CACHED: Final = Usage(6, 7, 20, PromptTokensDetails(5))
DETAILED_ONLY: Final = Usage(5, 0, 5, PromptTokensDetails(4))
LESS: Final = Usage(6, 7, 9, PromptTokensDetails(4))


@pytest.mark.parametrize("text", ["b", ""], ids=["beside a text", "beside no text"])
@pytest.mark.parametrize(
    ("usages", "expected"),
    [
        ([{"prompt_tokens": 5}, {"completion_tokens": 7}], Usage(5, 7, 12)),
        ([{"prompt_tokens": 5}, {"completion_tokens": 6}, {"completion_tokens": 7}], Usage(5, 7, 12)),
        ([{"completion_tokens": 7}, {"prompt_tokens": 5}], Usage(5, 7, 12)),
        ([{"prompt_tokens": 5}, {"completion_tokens": 7, "total_tokens": 13}], Usage(5, 7, 13)),
        ([DETAILED, {"completion_tokens": 7}], Usage(5, 7, 12, PromptTokensDetails(4))),
        ([DETAILED, {"prompt_tokens": 6, "completion_tokens": 7}], Usage(6, 7, 13, PromptTokensDetails(4))),
        ([DETAILED, COUNTED, COUNTED], Usage(6, 7, 20, PromptTokensDetails(4))),
        ([DETAILED, {"prompt_tokens": 6, "prompt_tokens_details": {"cached_tokens": 5}}, COUNTED], MORE_CACHED),
        ([COUNTED, {"prompt_tokens": 0, "completion_tokens": 0}], Usage(6, 7, 20)),
        ([COUNTED, {"prompt_tokens": 6, "completion_tokens": 0}], Usage(6, 7, 20)),
        ([COUNTED, {"completion_tokens": 8}], Usage(6, 8, 20)),
        ([DETAILED, {**DETAILED, "prompt_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}], DETAILED_ONLY),
        ([DETAILED, {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 9}], LESS),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_usage_that_comes_in_parts_is_that_of_all(
    usages: list[JSON], expected: Usage, text: str, at_once: bool
) -> None:
    pieces = ({**delta(content=text), "usage": each} for each in usages[:-1])
    collector, _ = read(delta(content="a"), *pieces, {**chunk(), "usage": usages[-1]}, at_once=at_once)
    assert collector.usage == expected


@pytest.mark.parametrize("at_once", [True, False])
def test_usage_beside_a_text_is_kept_after_a_text_without_one(at_once: bool) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    chunks = [delta(content="a"), {**delta(content="b"), "usage": usage}, delta(content="c")]
    collector, _ = read(*chunks, at_once=at_once)
    assert (collector.result().text, collector.usage) == ("abc", Usage(2, 3, 5))
