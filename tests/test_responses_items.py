"""Assembly of output items: each text once, in text() and in the result, whatever events an engine sends or omits."""

from __future__ import annotations

from itertools import count
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic
from support.responses import BARE, DATA, read

from friendli_async.replies import UnknownEvent
from friendli_async.responses.collector import _Wording

OBJECTS: Final = {"item", "part", "response"}
"""The fields of an object that an event must have."""

Fields = dict[str, Any]

KINDS: Final = {"message": "output_text", "reasoning": "reasoning_text"}


class Engine:
    """Draws the events of a response: an engine that sends ids, indexes and repetitions in its own way."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._numbers = iter(range(1000))
        ids = ["all", "none", "items", "parts", "two of each", "another in each event"]
        self.ids, self.indexes = draw(
            st.tuples(st.sampled_from(ids), st.just("all"))
            | st.tuples(st.just("all"), st.sampled_from(["none", "items", "parts"]))
        )
        announced = ["before", "never", *(["after", "twice"] if self.ids == "all" else [])]
        self.announced: str = draw(st.sampled_from(announced))
        self.has_content_index, self.sends_done, self.sends_part_done = draw(st.tuples(*[st.booleans()] * 3))
        self.item_done: str = draw(st.sampled_from(["full", "empty", "none"]))
        self.final: str = draw(st.sampled_from(["full", "none"]))
        is_whole = "full" in {self.item_done, self.final}  # else only the deltas are in the views
        self.sends_deltas: bool = draw(st.booleans()) or not is_whole

    def item(self, index: int, kind: str, texts: list[str]) -> Fields:
        fields: Fields = {"type": kind}
        if self.ids in {"all", "items", "two of each"}:
            fields["id"] = f"item-{index}"
        elif self.ids == "another in each event":
            fields["id"] = f"random-{next(self._numbers)}"
        if kind == "function_call":
            return {**fields, "name": "f", "call_id": f"c{index}", "arguments": "".join(texts)}
        return {**fields, "content": [{"type": KINDS[kind], "text": text} for text in texts]}

    def of_item(self, kind: str, index: int, item: Fields) -> Fields:
        where = {"output_index": index} if self.indexes in {"all", "items"} else {}
        return {"type": f"response.output_item.{kind}", "item": item, **where}

    def of_part(self, index: int, content_index: int | None, kind: str, **fields: object) -> Fields:
        where: Fields = {"type": f"response.{kind}", **fields}
        names = {"all": "item", "parts": "item", "two of each": "part"}
        if self.ids in names:
            where["item_id"] = f"{names[self.ids]}-{index}"
        elif self.ids == "another in each event":
            where["item_id"] = f"random-{next(self._numbers)}"
        if self.indexes in {"all", "parts"}:
            where["output_index"] = index
        if self.has_content_index and content_index is not None:
            where["content_index"] = content_index
        return where

    def parts(self, index: int, kind: str, texts: list[str]) -> list[Fields]:
        events: list[Fields] = []
        for at, text in enumerate(texts):
            cut: int = self._draw(st.integers(0, len(text)))
            name, done, position = "function_call_arguments", {"arguments": text}, None
            if kind != "function_call":
                name, done, position = KINDS[kind], {"text": text}, at
            pieces = (text[:cut], text[cut:])
            if self.sends_deltas:
                events += [self.of_part(index, position, f"{name}.delta", delta=piece) for piece in pieces]
            if self.sends_done:
                events.append(self.of_part(index, position, f"{name}.done", **done))
            if self.sends_part_done and position is not None:
                events.append(self.of_part(index, at, "content_part.done", part={"type": name, "text": text}))
        return events

    def events(self, index: int, kind: str, texts: list[str]) -> list[Fields]:
        events = self.parts(index, kind, texts)
        added = self.of_item("added", index, self.item(index, kind, []))
        if self.announced in {"after", "twice"}:
            events.insert(self._draw(st.integers(min(1, len(events)), len(events))), added)
        if self.announced in {"before", "twice"}:
            events.insert(0, added)
        if self.item_done != "none":
            item = self.item(index, kind, texts if self.item_done == "full" else [])
            events.append(self.of_item("done", index, item))
        return events


TEXTS = st.text(alphabet="ab ", min_size=1, max_size=5)
ITEMS = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), st.lists(TEXTS, min_size=1, max_size=2))
    | st.tuples(st.just("function_call"), st.tuples(st.just('{"a":1}')).map(list)),
    min_size=1,
    max_size=3,
)


@given(st.data())
@deterministic
def test_each_text_arrives_once_in_the_views_and_the_result(data: st.DataObject) -> None:
    engine = data.draw(st.composite(Engine)())
    items = [
        (kind, texts if engine.has_content_index else ["".join(texts)]) for kind, texts in data.draw(ITEMS)
    ]  # who omits the index of a part sends one
    payloads = [each for index, (kind, texts) in enumerate(items) for each in engine.events(index, kind, texts)]
    output = [engine.item(index, kind, texts) for index, (kind, texts) in enumerate(items)]
    final = {"id": "r", "status": "completed", "output": [] if engine.final == "none" else output}
    collector, events = read([*payloads, {"type": "response.completed", "response": final}])

    text, reasoning, arguments = (
        ["".join(texts) for kind, texts in items if kind == wanted]
        for wanted in ("message", "reasoning", "function_call")
    )
    text_of, reasoning_of = _Wording("output_text").of, _Wording("reasoning_text").of
    result = collector.result()
    assert "".join(map(text_of, events)) == result.text == collector.partial().text == "".join(text)
    assert "".join(map(reasoning_of, events)) == result.reasoning == "".join(reasoning)
    assert [call.function.arguments for call in result.tool_calls] == arguments
    assert [item.type for item in result.output] == [kind for kind, _ in items]


DELTA: Final = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0}


@pytest.mark.parametrize("has_ids", [True, False])
def test_items_with_the_same_index_are_kept_apart_also_without_ids_in_deltas(has_ids: bool) -> None:
    payloads: list[Fields] = []
    for name in ("a", "b"):
        item = {"type": "message", "id": name, "content": [{"type": "output_text", "text": name}]}
        item_id = {"item_id": name} if has_ids else {}
        payloads.append({"type": DELTA["type"], "output_index": 0, "delta": name, **item_id})
        payloads.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    collector, events = read([*payloads, BARE])
    assert collector.result().text == "".join(map(_Wording("output_text").of, events)) == "ab"


def test_calls_that_come_whole_before_they_are_announced_are_kept_apart() -> None:
    payloads: list[Fields] = []
    for name in ("a", "b"):
        payloads.append({"type": "response.function_call_arguments.done", "item_id": name, "arguments": "{}"})
        call = {"type": "function_call", "id": name, "call_id": name, "name": "f", "arguments": ""}
        payloads.append({"type": "response.output_item.added", "item": call})
    collector, _ = read([*payloads, BARE])
    assert [(call.id, call.function.arguments) for call in collector.result().tool_calls] == [("a", "{}"), ("b", "{}")]


@pytest.mark.parametrize("count", [1, 3, 20])
def test_refusals_and_texts_with_the_same_indexes_are_all_in_the_result(count: int) -> None:
    payloads: list[Fields] = []
    for index in range(count):
        payloads.append({**DELTA, "content_index": index, "delta": f"{index} "})
        payloads.append({**DELTA, "type": "response.refusal.delta", "content_index": index, "delta": f"no {index}"})
    collector, _ = read([*payloads, BARE])
    [item] = collector.result().output
    parts = item.content or ()
    assert [part.text for part in parts if part.type == "output_text"] == [f"{index} " for index in range(count)]
    assert [part.refusal for part in parts if part.type == "refusal"] == [f"no {index}" for index in range(count)]


@pytest.mark.parametrize("order", [("refusal", "output_text"), ("output_text", "refusal")])
@pytest.mark.parametrize("indexes", [[0, 1], [None, None]])
def test_refusal_beside_a_text_is_in_the_result_once(order: tuple[str, str], indexes: list[int | None]) -> None:
    fields = {"refusal": "refusal", "output_text": "text"}
    payloads = [
        {**DELTA, "type": f"response.{kind}.delta", "delta": kind} | ({} if index is None else {"content_index": index})
        for kind, index in zip(order, indexes, strict=True)
    ]
    item = {"type": "message", "id": "i", "content": [{"type": kind, fields[kind]: kind} for kind in order]}
    done = {"type": "response.output_item.done", "output_index": 0, "item": item}
    collector, events = read([*payloads, done, BARE])
    [result] = collector.result().output
    assert [(part.type, part.text or part.refusal) for part in result.content or ()] == [(kind, kind) for kind in order]
    assert "".join(map(_Wording("output_text").of, events)) == "output_text"


Pieces = list[tuple[str, int | None, str]]
"""What is streamed of an item: each delta's type of part, index and text."""
Parts = list[tuple[str, str]]
"""The type of each part, and its text or refusal."""


def deltas_of(pieces: Pieces) -> list[Fields]:
    names = {"summary_text": "reasoning_summary_text"}
    return [
        {"type": f"response.{names.get(kind, kind)}.delta", "item_id": "i", "content_index": index, "delta": text}
        for kind, index, text in pieces
    ]


def done_with(field: str, parts: Parts) -> Fields:
    content = [{"type": kind, "refusal" if kind == "refusal" else "text": text} for kind, text in parts]
    kind = "message" if field == "content" else "reasoning"
    return {"type": "response.output_item.done", "item": {"type": kind, "id": "i", field: content}}


@pytest.mark.parametrize(
    ("pieces", "complete", "expected"),
    [
        ([("output_text", None, "a")], [("output_text", "")], [("output_text", "a")]),
        ([("refusal", None, "no")], [("refusal", "")], [("refusal", "no")]),
        ([("output_text", None, "a")], [("output_text", "A")], [("output_text", "A")]),
        ([("refusal", None, "no")], [("refusal", "No")], [("refusal", "No")]),
        ([("output_text", 1, "b"), ("output_text", 0, "a")], [], [("output_text", "a"), ("output_text", "b")]),
        ([("output_text", 0, "a")], [("note", "of another type")], [("note", "of another type")]),
        ([("output_text", 0, "")], [], []),
    ],
)
def test_complete_item_without_text_has_the_streamed_text(pieces: Pieces, complete: Parts, expected: Parts) -> None:
    collector, _ = read([*deltas_of(pieces), done_with("content", complete), BARE])
    [item] = collector.result().output
    assert [(part.type, part.refusal or part.text) for part in item.content or ()] == expected


@pytest.mark.parametrize("index", [None, 0, 1])
@pytest.mark.parametrize("part", [{}, {"type": "text"}])
@pytest.mark.parametrize(("field", "kind"), [("content", "reasoning_text"), ("summary", "summary_text")])
def test_reasoning_whose_complete_parts_have_another_type_is_in_the_result_once(
    field: str, kind: str, part: Fields, index: int | None
) -> None:
    item = {"type": "reasoning", "id": "i", field: [{**part, "text": "a"}, {**part, "text": "b"}]}
    deltas = deltas_of([(kind, index, text) for text in "ab"])
    collector, _ = read([*deltas, {"type": "response.output_item.done", "item": item}, BARE])
    assert collector.result().reasoning == "ab"


def test_parts_of_a_summary_are_in_the_result_by_their_indexes() -> None:
    delta = {"type": "response.reasoning_summary_text.delta", "item_id": "i"}
    payloads = [{**delta, "summary_index": index, "delta": text} for index, text in [(1, "c"), (0, "a"), (0, "b")]]
    collector, _ = read([*payloads, BARE])
    [item] = collector.result().output
    assert [part.text for part in item.summary or ()] == ["ab", "c"]
    assert item.content is None


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({"type": "response.output_text.done", "text": "a"}, "content"),
        ({"type": "response.reasoning_text.done", "text": "a"}, "content"),
        ({"type": "response.content_part.done", "part": {"type": "text", "text": "a"}}, "content"),
        ({"type": "response.refusal.done", "refusal": "a"}, "content"),
        ({"type": "response.reasoning_summary_text.done", "text": "a"}, "summary"),
        ({"type": "response.custom_tool_call_input.done", "input": "a"}, "input"),
    ],
)
def test_text_that_comes_only_in_one_event_is_in_the_result_of_its_item(event: Fields, field: str) -> None:
    payloads = [{**event, "item_id": name, "output_index": index} for index, name in enumerate("xy")]
    collector, _ = read([*payloads, BARE])
    output = collector.result().output
    assert [item.id for item in output] == ["x", "y"]
    for item in output:
        content = getattr(item, field)
        assert content == "a" if field == "input" else [part.refusal or part.text for part in content] == ["a"]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.refusal.delta", "delta": None},
        {"type": "response.other.delta", "delta": "a"},
        {"type": "response.content_part.added", "part": {"type": "refusal"}},
        {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        {"type": "response.content_part.done", "part": {"type": "of a future API", "text": "a"}},
    ],
)
def test_events_without_text_of_a_known_type_add_nothing(event: Fields) -> None:
    collector, events = read([event, BARE])
    assert collector.result().output == ()
    assert [_Wording("output_text").of(each) for each in events] == ["", ""]


@pytest.mark.parametrize(
    ("announced", "streamed", "complete", "expected"),
    [
        ('{"a":0}', '{"a":1}', None, '{"a":1}'),
        ('{"a":0}', '{"a":1}', "", '{"a":1}'),
        ('{"a":0}', '{"a":1}', '{"a":2}', '{"a":2}'),
        ('{"a":0}', "", None, '{"a":0}'),
        ('{"a":0}', "", '{"a":2}', '{"a":2}'),
    ],
)
@pytest.mark.parametrize(
    ("kind", "field", "delta"),
    [
        ("function_call", "arguments", "function_call_arguments"),
        ("custom_tool_call", "input", "custom_tool_call_input"),
    ],
)
def test_complete_input_of_a_tool_prevails_over_streamed_and_that_over_announced(
    kind: str, field: str, delta: str, announced: str, streamed: str, complete: str | None, expected: str
) -> None:
    item = {"type": kind, "id": "i", "call_id": "c", "name": "f"}
    payloads: list[Fields] = [{"type": "response.output_item.added", "item": {**item, field: announced}}]
    payloads += [{"type": f"response.{delta}.delta", "item_id": "i", "delta": piece} for piece in streamed]
    if complete is not None:
        payloads.append({"type": "response.output_item.done", "item": {**item, field: complete}})
    collector, _ = read([*payloads, BARE])
    assert [getattr(item, field) for item in collector.result().output] == [expected]


def test_streamed_text_prevails_over_that_of_the_announcement() -> None:
    content = [{"type": "output_text", "text": "a"}]
    added = {"type": "response.output_item.added", "item": {"type": "message", "id": "i", "content": content}}
    collector, _ = read([added, *deltas_of([("output_text", 0, "b")]), BARE])
    assert collector.result().text == "b"


def test_arguments_that_end_with_an_empty_event_are_those_of_the_deltas() -> None:
    name = "response.function_call_arguments"
    payloads: list[Fields] = [{"type": f"{name}.delta", "item_id": "i", "delta": piece} for piece in ("{", "}")]
    collector, _ = read([*payloads, {"type": f"{name}.done", "item_id": "i", "arguments": "", "name": "f"}, BARE])
    assert [(call.function.name, call.function.arguments) for call in collector.result().tool_calls] == [("f", "{}")]


def test_call_that_comes_only_in_its_whole_arguments_is_in_the_result() -> None:
    done = {"type": "response.function_call_arguments.done", "arguments": "{}", "name": "f"}
    collector, _ = read([done, BARE])
    assert [(call.function.name, call.function.arguments) for call in collector.result().tool_calls] == [("f", "{}")]


def test_whole_texts_with_indexes_complete_their_own_parts() -> None:
    deltas = deltas_of([("output_text", 0, "a"), ("output_text", 1, "b")])
    whole = {"type": "response.output_text.done", "item_id": "i"}
    texts = [{**whole, "content_index": index, "text": text} for index, text in enumerate(["aA", "bB"])]
    collector, _ = read([*deltas, *texts, BARE])
    [item] = collector.result().output
    assert [part.text for part in item.content or ()] == ["aA", "bB"]


def test_equal_announcements_of_calls_without_ids_begin_calls_of_their_own() -> None:
    item = {"type": "function_call", "name": "f", "call_id": "", "arguments": ""}
    added = {"type": "response.output_item.added", "item": item}
    delta = {"type": "response.function_call_arguments.delta", "delta": "{}"}
    collector, _ = read([added, delta, added, delta, BARE])
    assert [call.function.arguments for call in collector.result().tool_calls] == ["{}", "{}"]


def test_equal_announcements_without_ids_begin_items_of_their_own() -> None:
    added = {"type": "response.output_item.added", "item": {"type": "message", "content": []}}
    deltas = [{"type": DELTA["type"], "content_index": index, "delta": str(index)} for index in (0, 1)]
    collector, _ = read([added, *deltas, added, *deltas, BARE])
    assert [item.text for item in collector.result().output] == ["01", "01"]


@pytest.mark.parametrize("number", [number for number, data in enumerate(DATA) if OBJECTS & {*data}])
def test_empty_object_costs_no_content(number: int) -> None:
    data = DATA[number]
    [name] = OBJECTS & {*data}
    collector, events = read([*DATA[:number], {**data, name: {}}, *DATA[number + 1 :]])
    assert [event.type for event in events] == [data["type"] for data in DATA], "the event is delivered"
    assert collector.is_last
    response = collector.result()
    assert response.text == "Hello there!"
    assert response.reasoning == "think harder"
    assert [call.function.name for call in response.tool_calls] == ["weather"]
    assert {call.id for call in response.tool_calls} == {"call_1"}


@pytest.mark.parametrize("nothing", [None, {}])
@pytest.mark.parametrize("number", range(len(DATA)))
def test_object_that_an_event_is_not_about_may_be_nothing(number: int, nothing: object) -> None:
    data = DATA[number]
    beside = {"item": nothing, "part": nothing, **data, "sequence_number": "5"}  # as a text: not on the fast path
    plain, _ = read(DATA)
    collector, events = read([*DATA[:number], beside, *DATA[number + 1 :]])
    assert not any(isinstance(event, UnknownEvent) for event in events)
    assert collector.result() == plain.result()


@pytest.mark.parametrize("response", [None, {"id": "resp_1"}])
def test_event_of_an_unknown_kind_is_delivered_as_it_was_sent(response: object) -> None:
    queued = {"type": "response.queued", "response": response}
    _, events = read([queued, BARE])
    assert events[0] == UnknownEvent("response.queued", queued)


@pytest.mark.parametrize("sequence_number", [5, "5"], ids=["on the fast path", "beside it"])
@pytest.mark.parametrize(("kind", "name"), [("output_item.added", "item"), ("content_part.done", "part")])
def test_empty_object_of_an_event_is_decoded(kind: str, name: str, sequence_number: object) -> None:
    _, events = read([{"type": f"response.{kind}", name: {}, "sequence_number": sequence_number}, BARE])
    assert not isinstance(events[0], UnknownEvent)
    assert events[0].sequence_number == 5


def message(*texts: str, id: str | None = None) -> Fields:
    content = [{"type": "output_text", "text": text} for text in texts]
    return {"type": "message", "content": content} | ({} if id is None else {"id": id})


def reasoning(*texts: str, **fields: object) -> Fields:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text} for text in texts], **fields}


def search(id: str) -> Fields:
    return {"type": "web_search_call", "id": id, "status": "completed"}


def function_call(id: str, arguments: str) -> Fields:
    return {"type": "function_call", "id": id, "call_id": id, "name": "f", "arguments": arguments}


def streamed(*items: Fields) -> list[Fields]:
    """Returns the deltas of items, and the last event of those that have no words."""
    events: list[Fields] = []
    for index, item in enumerate(items):
        where = {"output_index": index} | ({"item_id": item["id"]} if "id" in item else {})
        added = {"type": "response.output_item.added", "output_index": index, "item": {**item, "content": []}}
        events.append(added)
        for at, part in enumerate(item.get("content", ())):
            kind = f"response.{part['type']}.delta"
            events.append({"type": kind, **where, "content_index": at, "delta": part["text"]})
    return events


def ended(*output: Fields) -> Fields:
    return {"type": "response.completed", "response": {"id": "r", "status": "completed", "output": list(output)}}


@pytest.mark.parametrize(
    ("items", "output", "expected"),
    [
        ([message("a"), message("b")], [message("b")], ["a", "b"]),
        ([message("a"), message("b")], [message("a")], ["a", "b"]),
        ([message("a", id="x"), message("b", id="y")], [message("b", id="y")], ["a", "b"]),
        ([message("a", id="x"), message("b", id="y")], [message("b", id="z")], ["a", "b"]),
        ([message(each) for each in "abcd"], [message("b"), message("d")], ["a", "b", "c", "d"]),
        ([message(each) for each in "abcd"], [message("d"), message("b")], ["a", "d", "b", "c"]),
        ([message("banana"), message("a")], [message("banana")], ["banana", "a"]),
        ([message("a"), message("a")], [message("a")], ["a", "a"]),
        ([message("a", "b")], [message("a")], ["ab"]),
        ([message("a", "b", id="x")], [message("b", id="x")], ["ba"]),
        ([message("a", "b"), message("c")], [message("a"), message("c")], ["ab", "c"]),
        ([message("a")], [message("", id="x")], ["a"]),
        ([message("a", "b")], [message("ab")], ["ab"]),
        ([message("a"), message("b")], [message("ab")], ["ab"]),
        ([message("ab")], [message("a"), message("b")], ["a", "b"]),
        ([message(" a\n"), message("b ")], [message("a"), message("b")], ["a", "b"]),
        ([message("a")], [message("A")], ["A"]),
        ([message("a"), message("b")], [message("A"), message("b")], ["A", "b"]),
        ([message("a"), message("b")], [message("b"), message("A")], ["b", "A"]),
        ([message("a"), message("b")], [message("A b")], ["a", "A b"]),
        ([message("a")], [message("a"), message("b")], ["a", "b"]),
        ([reasoning("a"), message("b")], [message("b")], ["a", "b"]),
        ([reasoning("a"), message("b")], [reasoning(encrypted_content="e"), message("b")], ["a", "b"]),
        ([reasoning("a"), reasoning("b"), message("c")], [reasoning("b"), message("c")], ["a", "b", "c"]),
        ([message("a"), function_call("x", "{}"), message("b")], [message("a"), message("b")], ["a", "f{}", "b"]),
        ([function_call("x", "{}"), function_call("y", "{}")], [function_call("y", "{}")], ["f{}", "f{}"]),
        ([function_call("x", "{}")], [function_call("x", "{ }")], ["f{ }"]),
        ([search("x"), message("a"), search("y")], [message("a")], ["x", "a", "y"]),
        ([search("x"), message("a")], [search("z"), message("a")], ["z", "a"]),
        ([message(), message("a")], [message("a")], ["a"]),
    ],
)
def test_last_event_that_lacks_what_was_streamed_loses_none_of_it(
    items: list[Fields], output: list[Fields], expected: list[str]
) -> None:
    collector, events = read([*streamed(*items), ended(*output)])
    found = [
        item.text or item.reasoning or (f"{item.name}{item.arguments}" if item.name else item.id)
        for item in collector.result().output
    ]
    assert found == expected
    given = [each["delta"] for each in streamed(*items) if each["type"] == DELTA["type"]]
    assert "".join(map(_Wording("output_text").of, events)).startswith("".join(given))


@pytest.mark.parametrize("item", [message("ab"), reasoning("ab"), function_call("", "{}"), search("")])
def test_item_whose_events_have_no_index_and_another_id_each_is_in_the_result_once(item: Fields) -> None:
    ids = (f"id{number}" for number in count())
    begun = {**item, "content": []} | ({"arguments": ""} if "arguments" in item else {})
    events: list[Fields] = [{"type": "response.output_item.added", "item": {**begun, "id": next(ids)}}]
    for part in item.get("content", ()):
        delta = {"type": f"response.{part['type']}.delta"}
        events += [{**delta, "item_id": next(ids), "delta": piece} for piece in part["text"]]
        events.append({"type": f"response.{part['type']}.done", "item_id": next(ids), "text": part["text"]})
    events.append({"type": "response.output_item.done", "item": {**item, "id": next(ids)}})
    collector, _ = read([*events, ended({**item, "id": next(ids)})])
    [result] = collector.result().output
    assert result == collector.envelope.output[0]
    # Beside what the last event lacks.
    lost = message("c") if item["type"] != "message" else search("")
    added = {"type": "response.output_item.done", "item": {**lost, "id": next(ids)}}
    collector, _ = read([*events, added, ended({**item, "id": next(ids)})])
    assert [each.type for each in collector.result().output] == [item["type"], lost["type"]]


@pytest.mark.parametrize("is_final", [True, False])
def test_complete_item_that_lacks_a_streamed_part_has_it_beside_its_own(is_final: bool) -> None:
    whole = {**message("a", id="x"), "status": "completed", "phase": "final_answer"}
    whole["content"][0]["annotations"] = [{"url": "u"}]
    ends = [ended(whole)] if is_final else [{"type": "response.output_item.done", "output_index": 0, "item": whole}]
    collector, _ = read([*streamed(message("a", "b", id="x")), *ends])
    [item] = collector.result().output
    assert [(part.text, part.annotations) for part in item.content or ()] == [("a", ({"url": "u"},)), ("b", None)]
    assert (item.status, item.phase) == ("completed", "final_answer")


def test_sources_of_a_response_that_is_cut_off_are_in_its_result_and_partial() -> None:
    added = {"type": "response.output_text.annotation.added", "item_id": "x", "output_index": 0}
    sources = [
        {**added, "content_index": index, "annotation_index": 0, "annotation": {"url": url}}
        for index, url in [(0, "p"), (0, "q"), (1, "r")]
    ]
    collector, _ = read([*streamed(message("a", "b", "c", id="x")), *sources, {**added, "annotation": "none"}])
    [item] = collector.result().output
    assert [part.annotations for part in item.content or ()] == [({"url": "p"}, {"url": "q"}), ({"url": "r"},), None]
    assert collector.partial().annotations == ({"url": "p"}, {"url": "q"}, {"url": "r"})
