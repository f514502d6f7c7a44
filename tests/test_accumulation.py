"""How the chunks of a chat stream add up to a completion, also where servers are careless."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Entry, chats, chunk, chunkings, fewer
from support.events import decode_event, decoded

from friendli_async import APIStatusError, ChatChunk, ChatCompletion, Partial, ResponseDecodeError
from friendli_async._core.events.reader import EventReader
from friendli_async.chat import ChatCollector
from friendli_async.replies import Headers


def collected(*chunks: bytes, n: int = 1) -> ChatCollector:
    """A collector that has taken these chunks in, one by one; those that say nothing are dropped."""
    collector = ChatCollector(n)
    for data in chunks:
        event = decoded(data)
        if event is not None:
            collector.extend([event])
    return collector


def delta(index: int = 0, *, finish_reason: str | None = None, **fields: Any) -> bytes:
    return chunk([{"index": index, "delta": fields, "finish_reason": finish_reason}])


def call(
    index: int | None = None, id: str | None = None, name: str | None = None, arguments: str | None = None
) -> Entry:
    """A tool call's delta with the keys that are given."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    given_ = {"index": index, "id": id, "type": "function" if id else None, "function": function or None}
    return {key: value for key, value in given_.items() if value is not None}


def calls_of(*deltas: list[Entry]) -> list[tuple[str | None, str | None, str | None]]:
    """Id, name and arguments of the calls that these lists of tool-call deltas make, a chunk each."""
    collector = collected(*(delta(tool_calls=entries) for entries in deltas))
    found = collector.result().choices[0].message.tool_calls or ()
    assert collector.partial().tool_calls == found
    assert all(each.type == "function" for each in found if each.type is not None)
    return [(each.id, each.function.name, each.function.arguments) for each in found]


# --- properties ------------------------------------------------------------------------------------------------------


def told(reply: ChatCompletion) -> list[dict[str, Any]]:
    """What the choices of a completion say, in the terms of ``strategies.chats``."""
    return [
        {
            "text": choice.message.content or "",
            "reasoning": choice.message.reasoning_content or choice.message.reasoning or "",
            "calls": [
                {"id": each.id, "name": each.function.name, "arguments": each.function.arguments}
                for each in choice.message.tool_calls or ()
            ],
            "tokens": [token.token for token in choice.logprobs.content or ()] if choice.logprobs else [],
            "finish_reason": choice.finish_reason,
        }
        for choice in reply.choices
    ]


def in_one_spelling(said: dict[str, Any]) -> dict[str, Any]:
    reasoning = said.get("reasoning_content", said.get("reasoning", ""))
    return {**{key: value for key, value in said.items() if key != "reasoning_content"}, "reasoning": reasoning}


@given(st.data())
@fewer
def test_a_chat_adds_up_to_what_was_said_however_it_is_chunked(data: st.DataObject) -> None:
    said, entries = data.draw(chats())
    collector = collected(*data.draw(chunkings(entries)), n=len(said))
    reply = collector.result()
    assert told(reply) == [in_one_spelling(each) for each in said]
    assert [choice.index for choice in reply.choices] == list(range(len(said)))
    assert all(choice.message.role == "assistant" for choice in reply.choices)
    assert (reply.id, reply.object, reply.created, reply.model) == ("c1", "chat.completion", 1700000000, "m")
    assert collector.may_end


@given(st.data())
@fewer
def test_any_two_ways_to_chunk_a_chat_and_to_take_it_in_give_equal_results(data: st.DataObject) -> None:
    said, entries = data.draw(chats())
    chunks = data.draw(chunkings(entries))
    one = collected(*(chunk([entry]) for entry in entries), n=len(said))
    other = collected(*chunks, n=len(said))
    bulk = ChatCollector(len(said))
    bulk.extend([event for each in chunks if (event := decoded(each)) is not None])
    assert one.result() == other.result() == bulk.result()
    assert one.partial() == other.partial() == bulk.partial()


def taken_in(collector: ChatCollector, events: list[ChatChunk]) -> int:
    """Takes events in as a reader does: their texts in the short way, what is more than that by itself."""
    texts = place = 0
    while place < len(events):
        fresh = collector.add_texts(events[place:])
        texts, place = texts + fresh, place + fresh
        collector.extend(events[place : place + 1])
        place += 1
    return texts


@given(st.data())
@fewer
def test_the_short_way_for_texts_gives_what_the_whole_way_gives(data: st.DataObject) -> None:
    said, entries = data.draw(chats())
    whole, short = ChatCollector(len(said)), ChatCollector(len(said))
    for each in data.draw(chunkings(entries)):
        events = [event for event in (decoded(each), decoded(each)) if event is not None]  # twice: `add` changes some
        for event in events[:1]:
            whole.extend([event])
        taken_in(short, events[1:])
        assert (short.may_end, short.has_text, short.partial()) == (whole.may_end, whole.has_text, whole.partial())
    assert short.result() == whole.result()


def test_pieces_of_text_and_reasoning_go_the_short_way() -> None:
    pieces = [delta(reasoning_content="a"), delta(reasoning_content="b"), delta(content="c"), delta(content="d")]
    collector = ChatCollector()
    events = [
        event for data in [delta(role="assistant"), *pieces, delta(finish_reason="stop")] if (event := decoded(data))
    ]
    assert taken_in(collector, events) == 4, "all but the role and the end"
    assert collector.partial() == Partial(text="cd", reasoning="ab")
    assert collector.may_end


def test_usage_beside_every_piece_of_text_goes_the_short_way() -> None:
    collector = collected(delta(content="a"))
    choices = [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]
    events = [event for count in (1, 2) if (event := decoded(chunk(choices, usage={"completion_tokens": count})))]
    assert collector.add_texts(events) == 2
    assert collector.usage is not None
    assert (collector.partial().text, collector.usage.completion_tokens) == ("abb", 2)


@pytest.mark.parametrize(
    "beside",
    [
        {"error": {"message": "no"}},
        {"error": ""},
        {"message": "no"},
        {"choices": []},
        {"choices": [{"index": 0, "delta": {"content": "b"}}, {"index": 1, "delta": {"content": "c"}}]},
        {"choices": [{"index": 1, "delta": {"content": "b"}}]},
        *(
            {"choices": [{"index": 0, "delta": {"content": "b"}, **more}]}
            for more in (
                {"finish_reason": "stop"},
                {"message": {"content": "b"}},
                {"delta": {"reasoning_content": "c"}, "text": "b"},
                {"logprobs": {"content": [{"token": "b"}]}},
                {"delta": {"content": ""}},
                {"delta": {"content": "b", "reasoning_content": "c"}},
                {"delta": {"content": "b", "reasoning": "c"}},
                {"delta": {"content": "b", "reasoning_details": [{"text": "c"}]}},
                {"delta": {"content": "b", "refusal": "c"}},
                {"delta": {"content": "b", "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}},
                {"delta": {"content": "b", "role": "assistant"}},
            )
        ),
    ],
    ids=str,
)
def test_what_is_more_than_a_piece_of_text_is_left_to_be_looked_at(beside: dict[str, Any]) -> None:
    collector = collected(delta(content="a"))
    fields: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "b"}}]}
    event = msgspec.json.decode(json.dumps(fields | beside), type=ChatChunk)
    plain = msgspec.json.decode(json.dumps(fields), type=ChatChunk)
    assert collector.add_texts([plain, event, plain]) == 1
    assert collector.partial().text == "ab"


@given(st.data())
@fewer
def test_a_chat_is_complete_when_its_last_finish_reason_has_come_and_not_before(data: st.DataObject) -> None:
    said, entries = data.draw(chats())
    collector = ChatCollector(len(said))
    finished: set[int] = set()
    for entry in entries:
        assert not collector.may_end
        event = decoded(chunk([entry]))
        assert event is not None
        collector.extend([event])
        if entry.get("finish_reason"):
            finished.add(entry["index"])
        assert collector.may_end == (len(finished) == len(said))


@given(st.data())
@fewer
def test_the_partial_is_at_every_moment_what_choice_0_has_said(data: st.DataObject) -> None:
    _, entries = data.draw(chats())
    collector = ChatCollector()
    pieces: list[str] = []
    for entry in entries:
        event = decoded(chunk([entry]))
        assert event is not None
        collector.extend([event])
        if entry["index"] == 0:
            pieces.append(entry["delta"].get("content") or "")
        text = "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        assert collector.partial().text == text


# --- tool calls ------------------------------------------------------------------------------------------------------

Calls = list[tuple[str | None, str | None, str | None]]

# What servers have been seen to send, a list of deltas per chunk, and the calls that it means.
CORPUS: dict[str, tuple[list[list[Entry]], Calls]] = {
    "as documented": (
        [[call(0, "a", "f", "")], [call(0, arguments='{"x"')], [call(0, arguments=":1}")], [call(1, "b", "g", "{}")]],
        [("a", "f", '{"x":1}'), ("b", "g", "{}")],
    ),
    "two calls in turns": (
        [
            [call(0, "a", "f")],
            [call(1, "b", "g")],
            [call(0, arguments="1")],
            [call(1, arguments="2")],
            [call(0, arguments="3")],
        ],
        [("a", "f", "13"), ("b", "g", "2")],
    ),
    "several entries of an index in one chunk": (
        [[call(0, "a", "f"), call(0, arguments="{"), call(1, "b", "g", "[]"), call(0, arguments="}")]],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "an index that begins at one": ([[call(1, "a", "f", "{")], [call(1, arguments="}")]], [("a", "f", "{}")]),
    "identity repeated in every chunk": (
        [[call(0, "a", "f", "{")], [call(0, "a", "f", '"x"')], [call(0, "a", "f", ":1}")]],
        [("a", "f", '{"x":1}')],
    ),
    "empty id and name in the continuation": (
        [
            [call(0, "a", "f", "{")],
            [{"index": 0, "id": "", "type": "", "function": {"name": "", "arguments": "}"}}],
        ],
        [("a", "f", "{}")],
    ),
    "null id and name in the continuation": (
        [
            [call(0, "a", "f", "{")],
            [{"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": "}"}}],
        ],
        [("a", "f", "{}")],
    ),
    "another id in every piece": (
        [[call(0, "a", "f", "{")], [call(0, "b", arguments="x")], [call(0, "c", arguments="}")]],
        [("a", "f", "{x}")],
    ),
    "an index that is used again": (
        [[call(0, "a", "f", "{}")], [call(0, "b", "g", "[")], [call(0, arguments="]")]],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "the id after the name": ([[call(0, name="f")], [call(0, "a", arguments="{}")]], [("a", "f", "{}")]),
    "no index, one call": ([[call(id="a", name="f", arguments="{")], [call(arguments="}")]], [("a", "f", "{}")]),
    "no index, two calls": (
        [
            [call(id="a", name="f", arguments="{}")],
            [call(id="b", name="g")],
            [call(arguments="[")],
            [call(arguments="]")],
        ],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "no index, two whole calls in one chunk": (
        [[call(id="a", name="f", arguments="{}"), call(id="b", name="g", arguments="[]")]],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "no index, id repeated": (
        [
            [call(id="a", name="f", arguments="{")],
            [call(id="a", arguments="}")],
            [call(id="b", name="g", arguments="[]")],
        ],
        [("a", "f", "{}"), ("b", "g", "[]")],
    ),
    "no index, two calls in turns": (
        [
            [call(id="a", name="f", arguments="{")],
            [call(id="b", name="g", arguments="[")],
            [call(id="a", arguments="}")],
        ],
        [("a", "f", "{}"), ("b", "g", "[")],
    ),
    "null index": ([[{"index": None, **call(id="a", name="f", arguments="{}")}]], [("a", "f", "{}")]),
    "null function": ([[call(0, "a", "f", "{}")], [{"index": 0, "function": None}]], [("a", "f", "{}")]),
    "no function": ([[call(0, "a")], [call(0, name="f", arguments="{}")]], [("a", "f", "{}")]),
    "null tool calls": ([[call(0, "a", "f", "{}")], []], [("a", "f", "{}")]),
    "unknown fields": ([[{**call(0, "a", "f", "{}"), "new": {"x": [None]}}]], [("a", "f", "{}")]),
    "no arguments at all": ([[call(0, "a", "f")]], [("a", "f", "")]),
}


@pytest.mark.parametrize("case", CORPUS)
def test_tool_calls_are_put_together_from_what_servers_send(case: str) -> None:
    deltas, expected = CORPUS[case]
    assert calls_of(*deltas) == expected


def test_tool_calls_of_several_choices_do_not_mix() -> None:
    entries = [
        {"index": index, "delta": {"tool_calls": [call(0, f"id-{index}", name, arguments)]}}
        for name, arguments in (("f", "{"), (None, "}"))
        for index in (0, 1)
    ]
    reply = collected(*(chunk([entry]) for entry in entries), n=2).result()
    found = [choice.message.tool_calls or () for choice in reply.choices]
    assert [[(each.id, each.function.arguments) for each in calls] for calls in found] == [
        [("id-0", "{}")],
        [("id-1", "{}")],
    ]


def test_a_message_of_tool_calls_only_has_no_content() -> None:
    message = collected(delta(tool_calls=[call(0, "a", "f", "{}")])).result().choices[0].message
    assert message.content is None
    assert collected(delta(role="assistant")).result().choices[0].message.content == ""


# --- characters that two tokens share --------------------------------------------------------------------------------

HALVES = ("\ud83d", "\ude00")  # of 😀


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_halves_of_a_character_become_one(field: str) -> None:
    collector = collected(delta(**{field: "a" + HALVES[0]}), delta(**{field: HALVES[1] + "b"}))
    message = collector.result().choices[0].message
    assert getattr(message, field) == "a😀b"
    partial = collector.partial()
    assert (partial.text or partial.reasoning) == "a😀b"


def test_halves_of_a_character_become_one_in_the_arguments_of_a_tool_call() -> None:
    found = calls_of([call(0, "a", "f", '{"x":"' + HALVES[0])], [call(0, arguments=HALVES[1] + '"}')])
    assert found == [("a", "f", '{"x":"😀"}')]


def test_a_half_that_never_finds_its_other_half_is_kept() -> None:
    assert collected(delta(content="a" + HALVES[0]), delta(content="é")).result().text == "a\ud83dé"


# --- finish reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "content_filter", "brand-new"])
def test_any_finish_reason_completes(reason: str) -> None:
    collector = collected(delta(content="a"), delta(finish_reason=reason))
    assert collector.may_end
    assert collector.result().choices[0].finish_reason == reason


@pytest.mark.parametrize("reason", ["null", None, ""])
def test_what_names_no_reason_does_not_complete(reason: str | None) -> None:
    collector = collected(delta(content="a", finish_reason=reason), delta(finish_reason=reason))
    assert not collector.may_end
    assert collector.result().choices[0].finish_reason is None


def test_a_chunk_without_the_key_does_not_complete() -> None:
    collector = collected(chunk([{"index": 0, "delta": {"content": "a"}}]))
    assert not collector.may_end


def test_a_finish_reason_with_the_last_text_counts_both() -> None:
    collector = collected(delta(content="a"), delta(content="b", finish_reason="stop"))
    assert (collector.result().text, collector.may_end) == ("ab", True)


def test_nothing_is_not_complete() -> None:
    assert not collected().may_end
    assert collected().partial() == Partial()


def test_of_two_choices_both_must_finish() -> None:
    collector = collected(delta(0, content="a", finish_reason="stop"), n=2)
    assert not collector.may_end
    collector.extend([event for data in (delta(1, content="b"),) if (event := decoded(data)) is not None])
    assert not collector.may_end
    collector.extend([event for data in (delta(1, finish_reason="stop"),) if (event := decoded(data)) is not None])
    assert collector.may_end


def test_choices_that_come_out_of_order_are_sorted() -> None:
    reply = collected(delta(2, content="c"), delta(0, content="a"), delta(1, content="b"), n=3).result()
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(0, "a"), (1, "b"), (2, "c")]
    assert reply.text == "a"


def test_more_choices_than_asked_for_are_all_kept_and_must_all_finish() -> None:
    collector = collected(delta(0, finish_reason="stop"), delta(1, content="b"))
    assert not collector.may_end
    assert len(collector.result().choices) == 2


# --- usage -----------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
LAST: dict[str, bytes] = {
    "in a chunk with no choices": chunk([], usage=USAGE),
    "in a chunk without the key": json.dumps({"id": "c1", "usage": USAGE}).encode(),
    "in a chunk with null choices": json.dumps({"id": "c1", "choices": None, "usage": USAGE}).encode(),
    "in a choice without delta": chunk([{"index": 0}], usage=USAGE),
    "in a choice with an empty delta": chunk([{"index": 0, "delta": {}}], usage=USAGE),
    "in a choice with a null delta": chunk([{"index": 0, "delta": None}], usage=USAGE),
    "with fields that are null": chunk([], usage={**USAGE, "prompt_tokens_details": None, "cost": None}),
}


@pytest.mark.parametrize("place", LAST)
def test_usage_after_the_finish_reason_is_found_and_changes_nothing_else(place: str) -> None:
    collector = collected(delta(content="a"), delta(finish_reason="stop"), LAST[place])
    reply = collector.result()
    assert collector.may_end
    assert reply.usage is not None
    assert reply.usage == collector.usage == collector.partial().usage
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (3, 2, 5)
    assert (reply.text, reply.id, reply.model, reply.choices[0].finish_reason) == ("a", "c1", "m", "stop")


def test_usage_in_the_finish_chunk_and_usage_that_is_null_in_all_others() -> None:
    finish = chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=USAGE)
    collector = collected(chunk([{"index": 0, "delta": {"content": "a"}}], usage=None), finish)
    assert collector.usage is not None
    assert collector.usage.total_tokens == 5
    assert collector.may_end


def test_of_usages_that_grow_with_every_chunk_the_last_one_counts() -> None:
    growing = [
        chunk([{"index": 0, "delta": {"content": "a"}}], usage={**USAGE, "total_tokens": total}) for total in (4, 5)
    ]
    usage = collected(*growing, chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)).usage
    assert usage is not None
    assert usage.total_tokens == 5


def test_usage_alone_is_no_text_and_no_completion() -> None:
    collector = collected(chunk([], usage=USAGE))
    assert not collector.may_end
    assert collector.partial().text == ""
    assert collector.result().choices == ()
    assert collector.result().text == ""


# --- roles, reasoning, logprobs, heads -------------------------------------------------------------------------------


def test_a_role_is_set_once_and_null_is_none() -> None:
    roles = [None, "assistant", "", "assistant", "user", None]
    assert collected(*(delta(role=role, content="a") for role in roles)).result().choices[0].message.role == "assistant"
    assert collected(delta(content="a")).result().choices[0].message.role == "assistant"
    assert collected(delta(role="narrator", content="a")).result().choices[0].message.role == "narrator"


@pytest.mark.parametrize("spelling", ["reasoning_content", "reasoning"])
def test_reasoning_is_kept_in_its_spelling_and_found_under_both(spelling: str) -> None:
    collector = collected(
        delta(role="assistant", content=None, **{spelling: "be"}),
        delta(content=None, **{spelling: "cause"}),
        delta(content="Hi", **{spelling: None}),
    )
    reply = collector.result()
    assert (reply.text, reply.reasoning, collector.partial().reasoning) == ("Hi", "because", "because")
    assert getattr(reply.choices[0].message, spelling) == "because"


def test_reasoning_in_one_chunk_with_text_loses_neither() -> None:
    event = decoded(delta(content="Hi", reasoning="because"))
    assert event is not None
    assert (event.text, event.reasoning) == ("Hi", "because")
    reply = collected(delta(content="Hi", reasoning="because")).result()
    assert (reply.text, reply.reasoning) == ("Hi", "because")


def test_logprobs_add_up_also_in_chunks_with_nothing_else() -> None:
    def chunk_of(token: str | None, **fields: Any) -> bytes:
        top = [{"token": token, "logprob": -0.1, "bytes": [104]}, {"token": "?", "logprob": None, "bytes": None}]
        content = [{"token": token, "logprob": -0.1, "bytes": [104], "top_logprobs": top}] if token else None
        return chunk([{"index": 0, "delta": fields, "logprobs": {"content": content, "refusal": None}}])

    reply = collected(
        chunk_of("H", content="H"), chunk_of(None, content="i"), chunk_of("i"), delta(finish_reason="stop")
    ).result()
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert [token.token for token in logprobs.content or ()] == ["H", "i"]
    assert [top.token for top in (logprobs.content or ())[0].top_logprobs or ()] == ["H", "?"]
    assert reply.text == "Hi"
    assert collected(delta(content="a")).result().choices[0].logprobs is None


def test_the_head_is_that_of_the_first_chunk_with_choices() -> None:
    first = json.dumps({"id": "", "model": "", "choices": [], "prompt_filter_results": []}).encode()
    odd = json.dumps(
        {"id": "c1", "created": 1700000000123456789, "model": "m", "choices": [{"delta": {"content": "a"}}]}
    )
    reply = collected(first, odd.encode(), delta(content="b")).result()
    assert (reply.id, reply.created, reply.model, reply.text) == ("c1", 1700000000123456789, "m", "ab")


@pytest.mark.parametrize("created", [1700000000, 1700000000.5, 1700000000123456789, None])
def test_any_number_serves_as_the_time_of_creation(created: object) -> None:
    event = decoded(json.dumps({"created": created, "choices": [{"index": 0}]}).encode())
    assert event is not None
    assert event.created == created


def test_the_text_of_a_chunk_is_that_of_choice_0_wherever_it_stands() -> None:
    event = decoded(
        chunk([{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a", "reasoning": "r"}}])
    )
    assert event is not None
    assert (event.text, event.reasoning) == ("a", "r")
    assert (ChatChunk().text, ChatChunk().reasoning) == ("", "")


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"5",
        b"true",
        b"[5]",
        b'{"choices":5}',
        b'{"choices":[5]}',
        b'{"choices":"a"}',
        b'{"choices":[[]]}',
        b'{"choices":[{"delta":"a"}]}',
    ],
)
def test_what_is_no_chunk_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        decoded(data)
    assert caught.value.excerpt == data.decode()


@pytest.mark.parametrize(
    "data", [b"", b" ", b"null", b"{}", b"[]", b'""', b" {} ", b": comment", b":", b"ping", b"keep-alive"]
)
def test_what_says_nothing_is_a_heartbeat(data: bytes) -> None:
    assert decode_event(data) == (None, None, False)


@pytest.mark.parametrize("data", [b"[DONE]", b"[DONE] ", b" [DONE]", b"\t[DONE]\r", b'"[DONE]"'])
def test_the_sentinel_is_the_end_whatever_is_around_it(data: bytes) -> None:
    assert decode_event(data) == (None, None, True)


ODDITIES: dict[str, tuple[Entry, Entry]] = {
    "index as text": ({"index": "1"}, {}),
    "index as a float": ({"index": 1.0}, {}),
    "created as text": ({}, {"created": "1700000000"}),
    "created as nonsense": ({}, {"created": "today"}),
    "id as a number": ({}, {"id": 5}),
    "model as a number": ({}, {"model": 5}),
    "object as a number": ({}, {"object": 5}),
    "empty usage": ({}, {"usage": ""}),
    "usage as a list": ({}, {"usage": []}),
    "counts as text": ({}, {"usage": {"prompt_tokens": "3", "total_tokens": "5"}}),
    "counts as floats": ({}, {"usage": {"prompt_tokens": 3.0, "total_tokens": 5.0}}),
    "details as a list": ({}, {"usage": {"prompt_tokens": 3, "total_tokens": 5, "prompt_tokens_details": []}}),
    "logprobs as a list": ({"logprobs": []}, {}),
    "logprobs of the legacy shape": ({"logprobs": {"tokens": ["a"], "token_logprobs": [-0.5]}}, {}),
    "finish reason as an object": ({"finish_reason": {"type": "stop"}}, {}),
}


@pytest.mark.parametrize("case", ODDITIES)
def test_bookkeeping_of_another_type_does_not_cost_the_text(case: str) -> None:
    of_choice, of_chunk = ODDITIES[case]
    event = decoded(chunk([{"index": 0, "delta": {"content": "a"}, **of_choice}], **of_chunk))
    assert event is not None
    [choice] = event.choices
    assert choice.delta.content == "a"
    assert choice.index == (1 if "index" in of_choice else 0)
    assert choice.finish_reason == ("stop" if "finish_reason" in of_choice else None)
    if of_chunk.get("usage"):
        assert event.usage is not None
        assert (event.usage.prompt_tokens, event.usage.total_tokens) == (3, 5)


# --- errors among the chunks -----------------------------------------------------------------------------------------


def read(*events: bytes) -> EventReader[ChatChunk]:
    reader = EventReader[ChatChunk](ChatCollector(), 1 << 20, 200, Headers())
    reader.feed(b"".join(b"data: " + data + b"\n\n" for data in events))
    return reader


ERROR = {"message": "provider gone", "code": 502}
BESIDE = chunk([{"index": 0, "delta": {"content": "b"}, "finish_reason": "error"}], error=ERROR)


@pytest.mark.parametrize(
    ("data", "delivered"),
    [(json.dumps({"error": ERROR}).encode(), ["a"]), (BESIDE, ["a", "b"])],
    ids=["alone", "beside choices"],
)
def test_an_error_among_the_chunks_is_raised_after_the_good_ones(data: bytes, delivered: list[str]) -> None:
    reader = read(delta(content="a"), data, delta(content="never"))
    assert [event.text for event in itertools.islice(reader.ready, 1)] == ["a"]
    assert reader.is_last
    assert isinstance(reader.failure, APIStatusError)
    assert (reader.failure.status_code, reader.failure.message) == (502, "provider gone")
    assert [event.text for event in reader.ready] == delivered


@pytest.mark.parametrize("error", ["", {}, [], False, None, 0])
def test_an_empty_error_beside_the_text_is_none(error: object) -> None:
    reader = read(chunk([{"index": 0, "delta": {"content": "a"}}], error=error), delta(content="b"))
    assert reader.failure is None
    assert [event.text for event in reader.ready] == ["a", "b"]


@pytest.mark.parametrize(
    "data",
    [b'{"message":"no"}', b'{"detail":"no"}', b'{"code":7,"msg":"no"}', b'"no"', b'[{"error":{"message":"no"}}]'],
)
def test_words_without_a_chunk_around_them_are_an_error(data: bytes) -> None:
    reader = read(delta(content="a"), data, delta(content="never"))
    assert [event.text for event in reader.ready] == ["a"]
    assert isinstance(reader.failure, APIStatusError)
    assert reader.failure.message == "no"


@pytest.mark.parametrize(("name", "data"), [(None, b'{"id":"c1","tokens_left":5}'), ("citations", b'{"urls":["u"]}')])
def test_an_event_of_an_unknown_kind_is_a_chunk_without_choices(name: str | None, data: bytes) -> None:
    payload, error, is_end = decode_event(data, name)
    assert isinstance(payload, ChatChunk)
    assert (payload.choices, error, is_end) == ((), None, False)


def test_the_word_error_in_the_text_is_no_error() -> None:
    reader = read(
        delta(content='{"error": {"message": "quoted"}}'), chunk([{"index": 0, "delta": {"content": "b"}}], error=None)
    )
    assert reader.failure is None
    assert [event.text for event in reader.ready] == ['{"error": {"message": "quoted"}}', "b"]
