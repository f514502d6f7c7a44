"""Folding the chunks of a chat stream into a completion, including malformed ones."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import Entry, chats, chunk, chunkings, fewer
from support.events import decoded

from friendli_async import APIStatusError, ChatChunk, ChatCompletion, Partial, ResponseDecodeError
from friendli_async._core.events.reader import EventReader
from friendli_async.chat.collector import ChatCollector
from friendli_async.replies import ReplyHead


def collected(*chunks: bytes, n: int = 1) -> ChatCollector:
    """Returns a collector that was fed these chunks one by one, without those that decode to no event."""
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
    """Returns a tool-call delta with the given keys."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    entry = {"index": index, "id": id, "type": "function" if id else None, "function": function or None}
    return {key: value for key, value in entry.items() if value is not None}


def calls_of(*deltas: list[Entry]) -> list[tuple[str | None, str | None, str | None]]:
    """Returns id, name and arguments of the calls that these tool-call deltas encode, one list per chunk."""
    collector = collected(*(delta(tool_calls=entries) for entries in deltas))
    found = collector.result().choices[0].message.tool_calls or ()
    assert collector.partial().tool_calls == found
    assert all(each.type == "function" for each in found)
    return [(each.id, each.function.name, each.function.arguments) for each in found]


# --- properties ------------------------------------------------------------------------------------------------------


def contents(reply: ChatCompletion) -> list[dict[str, Any]]:
    """Returns the contents of a completion's choices, in the form that ``strategies.chats`` generates."""
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


def with_normalized_reasoning(choice: dict[str, Any]) -> dict[str, Any]:
    reasoning = choice.get("reasoning_content", choice.get("reasoning", ""))
    return {**{key: value for key, value in choice.items() if key != "reasoning_content"}, "reasoning": reasoning}


@given(st.data())
@fewer
def test_chunks_fold_into_the_same_completion_for_any_chunking(data: st.DataObject) -> None:
    expected, entries = data.draw(chats())
    collector = collected(*data.draw(chunkings(entries)), n=len(expected))
    reply = collector.result()
    assert contents(reply) == [with_normalized_reasoning(each) for each in expected]
    assert [choice.index for choice in reply.choices] == list(range(len(expected)))
    assert all(choice.message.role == "assistant" for choice in reply.choices)
    assert (reply.id, reply.object, reply.created, reply.model) == ("c1", "chat.completion", 1700000000, "m")
    assert collector.may_end


@given(st.data())
@fewer
def test_results_are_equal_for_any_chunking_and_batching(data: st.DataObject) -> None:
    expected, entries = data.draw(chats())
    chunks = data.draw(chunkings(entries))
    one = collected(*(chunk([entry]) for entry in entries), n=len(expected))
    other = collected(*chunks, n=len(expected))
    bulk = ChatCollector(len(expected))
    bulk.extend([event for each in chunks if (event := decoded(each)) is not None])
    assert one.result() == other.result() == bulk.result()
    assert one.partial() == other.partial() == bulk.partial()


def feed(collector: ChatCollector, events: list[ChatChunk]) -> int:
    """Feeds events as the reader does, and returns how many took the fast path; `extend` handles the others."""
    fast = position = 0
    while position < len(events):
        added = collector.add_texts(events[position:])
        fast, position = fast + added, position + added
        collector.extend(events[position : position + 1])
        position += 1
    return fast


@given(st.data())
@fewer
def test_fast_path_and_slow_path_give_equal_results(data: st.DataObject) -> None:
    expected, entries = data.draw(chats())
    slow, fast = ChatCollector(len(expected)), ChatCollector(len(expected))
    for each in data.draw(chunkings(entries)):
        # Decoded twice, because folding modifies some events.
        events = [event for event in (decoded(each), decoded(each)) if event is not None]
        for event in events[:1]:
            slow.extend([event])
        feed(fast, events[1:])
        assert (fast.may_end, fast.has_text, fast.partial()) == (slow.may_end, slow.has_text, slow.partial())
    assert fast.result() == slow.result()


@pytest.mark.parametrize("spelling", ["reasoning_content", "reasoning"])
def test_text_and_reasoning_deltas_take_the_fast_path(spelling: str) -> None:
    reasoning: list[Entry] = [{spelling: "a"}, {spelling: "b"}]
    pieces = [*(delta(**fields) for fields in reasoning), delta(content="c"), delta(content="d")]
    collector = ChatCollector()
    events = [
        event for data in [delta(role="assistant"), *pieces, delta(finish_reason="stop")] if (event := decoded(data))
    ]
    assert feed(collector, events) == 4, "all except the role and the finish reason"
    assert collector.partial() == Partial(text="cd", reasoning="ab")
    assert collector.may_end


def test_text_delta_with_usage_takes_the_fast_path() -> None:
    collector = collected(delta(content="a"))
    choices = [{"index": 0, "delta": {"content": "b"}, "finish_reason": None}]
    events = [
        event for count in (1, 2) if (event := decoded(chunk(choices, usage={**USAGE, "completion_tokens": count})))
    ]
    assert collector.add_texts(events) == 2
    assert collector.usage is not None
    assert (collector.partial().text, collector.usage.completion_tokens) == ("abb", 2)


@pytest.mark.parametrize(
    "extra",
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
                {"delta": {"reasoning_content": "b", "reasoning": "c"}},
                {"delta": {"content": "b", "reasoning_details": [{"text": "c"}]}},
                {"delta": {"content": "b", "refusal": "c"}},
                {"delta": {"content": "b", "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}},
                {"delta": {"content": "b", "role": "assistant"}},
            )
        ),
    ],
    ids=str,
)
def test_event_with_more_than_a_text_delta_leaves_the_fast_path(extra: dict[str, Any]) -> None:
    collector = collected(delta(content="a"))
    fields: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": "b"}}]}
    event = msgspec.json.decode(json.dumps(fields | extra), type=ChatChunk)
    plain = msgspec.json.decode(json.dumps(fields), type=ChatChunk)
    assert collector.add_texts([plain, event, plain]) == 1
    assert collector.partial().text == "ab"


@pytest.mark.parametrize("piece", [{"index": None, "text": "a"}, {"index": None, "type": None, "signature": "s"}])
def test_only_piece_of_reasoning_details_is_kept(piece: dict[str, Any]) -> None:
    collector = collected(delta(reasoning_details=[piece]), delta(finish_reason="stop"))
    assert collector.result().choices[0].message.reasoning_details == (piece,)


@given(st.data())
@fewer
def test_chat_is_complete_exactly_after_its_last_finish_reason(data: st.DataObject) -> None:
    expected, entries = data.draw(chats())
    collector = ChatCollector(len(expected))
    finished: set[int] = set()
    for entry in entries:
        assert not collector.may_end
        event = decoded(chunk([entry]))
        assert event is not None
        collector.extend([event])
        if entry.get("finish_reason"):
            finished.add(entry["index"])
        assert collector.may_end == (len(finished) == len(expected))


@given(st.data())
@fewer
def test_partial_always_holds_the_text_of_choice_0(data: st.DataObject) -> None:
    _, entries = data.draw(chats())
    collector = ChatCollector(n=2)  # of one requested choice, the first that arrives is choice 0
    pieces: list[str] = []
    for entry in entries:
        event = decoded(chunk([entry]))
        assert event is not None
        collector.extend([event])
        if entry["index"] == 0:
            pieces.append(entry["delta"].get("content") or "")
        text = "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        assert collector.partial().text == text


# --- surrogate pairs split between chunks ----------------------------------------------------------------------------

SURROGATES = ("\ud83d", "\ude00")  # of 😀


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_split_surrogate_pair_is_joined(field: str) -> None:
    halves: list[Entry] = [{field: "a" + SURROGATES[0]}, {field: SURROGATES[1] + "b"}]
    collector = collected(*(delta(**fields) for fields in halves))
    message = collector.result().choices[0].message
    assert getattr(message, field) == "a😀b"
    partial = collector.partial()
    assert (partial.text or partial.reasoning) == "a😀b"


def test_split_surrogate_pair_is_joined_in_tool_call_arguments() -> None:
    found = calls_of([call(0, "a", "f", '{"x":"' + SURROGATES[0])], [call(0, arguments=SURROGATES[1] + '"}')])
    assert found == [("a", "f", '{"x":"😀"}')]


def test_lone_surrogate_is_kept() -> None:
    assert collected(delta(content="a" + SURROGATES[0]), delta(content="é")).result().text == "a\ud83dé"


# --- finish reasons --------------------------------------------------------------------------------------------------


def test_empty_stream_is_not_complete() -> None:
    assert not collected().may_end
    assert not collected(n=0).may_end
    assert collected().partial() == Partial()


# --- usage -----------------------------------------------------------------------------------------------------------

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_last_of_cumulative_usages_wins() -> None:
    growing = [
        chunk([{"index": 0, "delta": {"content": "a"}}], usage={**USAGE, "total_tokens": total}) for total in (4, 5)
    ]
    usage = collected(*growing, chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)).usage
    assert usage is not None
    assert usage.total_tokens == 5


def test_usage_alone_adds_no_text_and_does_not_complete() -> None:
    collector = collected(chunk([], usage=USAGE))
    assert not collector.may_end
    assert collector.partial().text == ""
    assert collector.result().choices == ()
    assert collector.result().text == ""


# --- roles, reasoning, logprobs, metadata ----------------------------------------------------------------------------


def test_logprobs_accumulate_even_from_chunks_without_text() -> None:
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


@pytest.mark.parametrize("created", [1700000000, 1700000000.5, 1700000000123456789, None])
def test_created_accepts_any_number(created: object) -> None:
    event = decoded(json.dumps({"created": created, "choices": [{"index": 0}]}).encode())
    assert event is not None
    assert event.created == created


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
        b'{"choices":[["a"]]}',
        b'{"choices":[{"delta":5}]}',
    ],
)
def test_malformed_chunk_raises_decode_error(data: bytes) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        decoded(data)
    assert caught.value.excerpt == data.decode()


WRONG_TYPES: dict[str, tuple[Entry, Entry]] = {
    "index as text": ({"index": "1"}, {}),
    "index as a float": ({"index": 1.0}, {}),
    "created as text": ({}, {"created": "1700000000"}),
    "created unparsable": ({}, {"created": "today"}),
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


@pytest.mark.parametrize("case", WRONG_TYPES)
def test_metadata_of_wrong_type_does_not_lose_the_text(case: str) -> None:
    choice_fields, chunk_fields = WRONG_TYPES[case]
    event = decoded(chunk([{"index": 0, "delta": {"content": "a"}, **choice_fields}], **chunk_fields))
    assert event is not None
    [choice] = event.choices
    assert choice.delta.content == "a"
    assert choice.index == (1 if "index" in choice_fields else 0)
    assert choice.finish_reason == ("stop" if "finish_reason" in choice_fields else None)
    if chunk_fields.get("usage"):
        assert event.usage is not None
        assert (event.usage.prompt_tokens, event.usage.total_tokens) == (3, 5)


# --- errors in the stream --------------------------------------------------------------------------------------------


def read(*events: bytes) -> EventReader[ChatChunk]:
    reader = EventReader[ChatChunk](ChatCollector(), 1 << 20, ReplyHead(200))
    reader.feed(b"".join(b"data: " + data + b"\n\n" for data in events))
    return reader


ERROR = {"message": "provider gone", "code": 502}
ERROR_WITH_CHOICES = chunk([{"index": 0, "delta": {"content": "b"}, "finish_reason": "error"}], error=ERROR)


@pytest.mark.parametrize(
    ("data", "delivered"),
    [(json.dumps({"error": ERROR}).encode(), ["a"]), (ERROR_WITH_CHOICES, ["a", "b"])],
    ids=["alone", "with choices"],
)
def test_error_event_is_reported_after_preceding_chunks(data: bytes, delivered: list[str]) -> None:
    reader = read(delta(content="a"), data, delta(content="never"))
    assert [event.text for event in itertools.islice(reader.ready, 1)] == ["a"]
    assert reader.has_ended
    assert isinstance(reader.failure, APIStatusError)
    assert (reader.failure.status_code, reader.failure.message) == (502, "provider gone")
    assert [event.text for event in reader.ready] == delivered


def test_message_that_is_not_utf8_beside_an_empty_chunk_is_the_error_of_an_unfinished_stream() -> None:
    reader = read(delta(content="a"), b'{"choices":[],"detail":"refus\xe9"}')
    reader.feed(b"")
    assert isinstance(reader.failure, APIStatusError)
    assert reader.failure.message == "refus\ufffd"


@pytest.mark.parametrize(
    ("message", "error"),
    [("no", "no"), ("ok", None), (None, None), ("", None)],
    ids=["error", "success", "null", "empty"],
)
def test_message_beside_a_text_is_the_error_of_an_unfinished_stream(message: str | None, error: str | None) -> None:
    reader = read(delta(content="a"), chunk([{"index": 0, "delta": {"content": "b"}}], message=message))
    assert not reader.has_ended
    reader.feed(b"data: [DONE]\n\n")
    assert [event.text for event in reader.ready] == ["a", "b"]
    assert (None if reader.failure is None else str(reader.failure)) == error


def test_unknown_event_between_texts_is_delivered_with_its_fields() -> None:
    unknown = {"id": "c1", "tokens_left": 5}
    reader = read(delta(content="a"), json.dumps(unknown).encode(), delta(content="b"))
    assert [event.message for event in reader.ready] == [None, unknown, None]


def test_text_of_a_chunk_has_all_its_deltas_of_choice_0() -> None:
    entries = [
        {"index": at, "delta": {"content": piece, "reasoning": piece}} for at, piece in ((0, "a"), (1, "x"), (0, "b"))
    ]
    event = decoded(chunk(entries))
    assert event is not None
    assert (event.text, event.reasoning) == ("ab", "ab")
    assert collected(chunk(entries), n=2).partial() == Partial(text="ab", reasoning="ab", texts=("ab", "x"))
