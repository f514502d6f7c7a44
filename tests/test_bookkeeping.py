"""Metadata of a wrong JSON type, anywhere in any reply, never loses the content that was paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest
from support.whole_replies import JSON, MISSING, REPLIES, STREAMS, Path, Streamed, Whole, metadata_paths, with_value

from friendli_async import ResponseDecodeError
from friendli_async._core.events.plain_reply import decode_reply
from friendli_async._core.events.reader import EventReader
from friendli_async.chat import ChatCompletion
from friendli_async.replies import ReplyHead

WRONG_VALUES: Final[list[Any]] = [
    *(None, True, False, 0, -1, 5, 1.5, 1e30, 10**30, float("nan"), "", "x", "5", "1.5", "null", "true", "2026-13-99"),
    *([], [1], ["x"], [None], [{}], [[]], [{"text": "q"}], {}, {"x": 1}, {"text": "x"}, MISSING),
]


def read_whole(whole: Whole, value: object) -> object:
    return read_body(whole, json.dumps(value).encode())


def read_body(whole: Whole, data: bytes) -> object:
    reply: Any = decode_reply(data, msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert repr(reply)
    return whole.content(reply)


@pytest.mark.parametrize("kind", REPLIES)
def test_wrong_type_in_reply_metadata_does_not_lose_content(kind: str) -> None:
    whole = REPLIES[kind]
    expected = read_whole(whole, whole.value)
    paths = metadata_paths(whole.value, whole.content_paths)
    assert paths or len(whole.value) == len(whole.content_paths)
    for path in paths:
        for wrong in WRONG_VALUES:
            if _is_another_kind(path, wrong):
                continue
            assert read_whole(whole, with_value(whole.value, path, wrong)) == expected, (path, wrong)


def _is_another_kind(path: Path, wrong: object) -> bool:
    """Whether the value names another kind of block, item or part, which is delivered as that kind."""
    return path[-1] == "type" and (isinstance(wrong, str) or (wrong is MISSING and path[0] == "output"))


@pytest.mark.parametrize("kind", REPLIES)
def test_missing_content_raises_decode_error(kind: str) -> None:
    whole = REPLIES[kind]
    for field in {path[0] for path in whole.content_paths}:
        for absent in (None, MISSING):
            if kind == "endpoints" and field == "data":
                continue  # a team without endpoints
            if absent is None and kind in {"spec", "file"}:
                continue  # null names are decoded as ""
            with pytest.raises(ResponseDecodeError):
                read_whole(whole, with_value(whole.value, (field,), absent))


def read_streamed(stream: Streamed, changes: dict[int, Any]) -> object:
    """Returns the content of a stream with some events replaced, by a value or by data that is sent as it is."""
    collector = stream.collector()
    reader = EventReader(collector, 1 << 20, ReplyHead(200))
    for position, (name, value, _) in enumerate(stream.events):
        head = b"" if name is None else b"event: %s\n" % name.encode()
        sent = changes.get(position, value)
        reader.feed(b"%sdata: %s\n\n" % (head, sent if isinstance(sent, bytes) else json.dumps(sent).encode()))
    if not reader.has_ended:
        reader.feed(b"data: [DONE]\n\n")
    assert reader.failure is None
    assert all(map(repr, reader.ready))
    return stream.content(collector.result())


def value_at(value: Any, path: Path) -> Any:
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("kind", STREAMS)
def test_wrong_type_in_event_metadata_does_not_lose_content(kind: str) -> None:
    stream = STREAMS[kind]
    expected = read_streamed(stream, {})
    for position, (_, value, paid) in enumerate(stream.events):
        for path in metadata_paths(value, paid):
            for wrong in WRONG_VALUES:
                if _has_another_meaning(path, wrong):
                    continue
                result = read_streamed(stream, {position: with_value(value, path, wrong)})
                assert result == expected, (position, path, wrong)


def _has_another_meaning(path: Path, wrong: object) -> bool:
    """Whether the value is valid at this path, with another meaning."""
    if path[-1] == "type" and len(path) > 1:
        return isinstance(wrong, str)  # another kind of block or delta
    if path == ("index",):  # another block
        return wrong is MISSING or (isinstance(wrong, str | int | float) and str(wrong).isdecimal())
    return path == ("response", "output", 0, "content", 0, "type")


def texts(value: JSON, content: tuple[Path, ...]) -> Iterator[tuple[JSON, bytes]]:
    """Yields a value with U+FFFD after one of its texts, and the same as JSON with an invalid byte in its place."""
    for path in content:
        text = value_at(value, path)
        if isinstance(text, str) and path[-1] != "type":
            replaced = with_value(value, path, f"{text}\ufffd")
            yield replaced, json.dumps(replaced, ensure_ascii=False).encode().replace("\ufffd".encode(), b"\xe2\x82")


@pytest.mark.parametrize("kind", REPLIES)
def test_invalid_utf8_in_reply_costs_only_its_character(kind: str) -> None:
    whole = REPLIES[kind]
    for replaced, data in texts(whole.value, whole.content_paths):
        assert read_body(whole, data) == read_whole(whole, replaced)


@pytest.mark.parametrize("kind", STREAMS)
def test_invalid_utf8_in_event_costs_only_its_character(kind: str) -> None:
    stream = STREAMS[kind]
    for position, (_, value, content) in enumerate(stream.events):
        for replaced, data in texts(value, content):
            assert read_streamed(stream, {position: data}) == read_streamed(stream, {position: replaced})


@pytest.mark.parametrize("kind", ["chat", "tool-assisted", "completions"])
@pytest.mark.parametrize("wrong", [None, "abc", "", [], {}, [1], {"x": 1}, True, float("nan")])
def test_invalid_index_of_the_only_choice_costs_nothing(kind: str, wrong: Any) -> None:
    stream = STREAMS[kind]
    expected = read_streamed(stream, {})
    for position, (_, value, paid) in enumerate(stream.events):
        for path in (each for each in paid if each[-1] == "index"):
            assert read_streamed(stream, {position: with_value(value, path, wrong)}) == expected, (position, path)
    changes: dict[int, Any] = {}
    for position, (_, value, paid) in enumerate(stream.events):
        for path in (each for each in paid if each[-1] == "index"):
            changes[position] = with_value(changes.get(position, value), path, wrong)
    assert read_streamed(stream, changes) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["pa", "id"], "paid"),
        ([{"type": "text", "text": "pa"}, "id", None], "paid"),
        ({"type": "text", "text": "paid"}, "paid"),
        ([{"text": "paid"}], "paid"),
        ([{"type": "text", "content": "paid"}], "paid"),
        (["paid ", 5], "paid 5"),
        ([{"type": "text", "text": "paid"}, {"type": "text", "text": None}], "paid"),
        ([{"type": "text", "text": "paid "}, {"type": "text", "text": True}], "paid true"),
        ([{"type": "text", "text": {"value": "paid", "annotations": []}}], "paid"),  # of OpenAI's assistants
        ({"answer": "né"}, '{"answer":"né"}'),  # what the model wrote as JSON
        ([], ""),
    ],
)
def test_text_in_parts_is_joined(content: Any, text: str) -> None:
    for kind, path in (
        ("chat", ("choices", 0, "message", "content")),
        ("completion", ("choices", 0, "text")),
        ("transcription", ("text",)),
    ):
        whole = REPLIES[kind]
        reply: Any = decode_reply(
            json.dumps(with_value(whole.value, path, content)).encode(),
            msgspec.json.Decoder(whole.kind),
            ReplyHead(200),
        )
        assert reply.text == text, kind


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    "thinking",
    [
        {"type": "thinking", "thinking": [{"type": "text", "text": "because"}]},  # of Mistral
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "because"}]},
        {"type": "message", "content": [{"type": "reasoning_text", "text": "because"}]},
        {"type": "reasoning.text", "text": "because"},
    ],
)
def test_thinking_in_parts_of_parts_is_the_reasoning(thinking: JSON, field: str) -> None:
    message = {"content": [{"type": "text", "text": "paid"}]}
    message[field] = [thinking, *message.get(field, [])]
    body = json.dumps({"choices": [{"message": message}]}).encode()
    reply = decode_reply(body, msgspec.json.Decoder(ChatCompletion), ReplyHead(200))
    assert (reply.text, reply.reasoning) == ("paid", "because")


@pytest.mark.parametrize("part", [{"type": "text", "text": "paid"}, {"type": "thinking", "thinking": "twice"}])
def test_reasoning_beside_content_in_parts_is_kept(part: JSON) -> None:
    whole = REPLIES["chat"]
    message = {"role": "assistant", "reasoning_content": "because", "content": [part]}
    body = json.dumps({**whole.value, "choices": [{"index": 0, "message": message}]}).encode()
    reply: Any = decode_reply(body, msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert reply.reasoning == "because"


@pytest.mark.parametrize("number", [0, 0.0, 5, 1.5])
@pytest.mark.parametrize("kind", ["chat", "completion", "message", "response", "transcription", "embeddings"])
def test_number_in_place_of_a_text_raises_decode_error_even_if_it_is_zero(kind: str, number: float) -> None:
    whole = REPLIES[kind]
    for path in (each for each in whole.content_paths if each[-1] in {"content", "text", "embedding"}):
        if isinstance(value_at(whole.value, path), str) or path[-1] == "embedding":
            with pytest.raises(ResponseDecodeError):
                read_whole(whole, with_value(whole.value, path, number))


@pytest.mark.parametrize("number", [0, 0.0, 5, 1.5])
@pytest.mark.parametrize("kind", STREAMS)
def test_number_in_place_of_a_streamed_text_raises_decode_error_even_if_it_is_zero(kind: str, number: float) -> None:
    stream = STREAMS[kind]
    changed = 0
    for name, value, paid in stream.events:
        for path in paid:
            if path[-1] in {"content", "text", "delta"} and isinstance(value_at(value, path), str):
                reader = EventReader(stream.collector(), 1 << 20, ReplyHead(200))
                head = b"" if name is None else b"event: %s\n" % name.encode()
                reader.feed(head + b"data: %s\n\n" % json.dumps(with_value(value, path, number)).encode())
                assert isinstance(reader.failure, ResponseDecodeError), path
                changed += 1
    assert changed


@pytest.mark.parametrize(
    ("reason", "read"),
    [({"type": "length", "n": 3}, "length"), ({"n": 3}, "stop"), ({}, None), (["length"], None), (7, None)],
    ids=str,
)
def test_finish_reason_that_is_an_object_is_the_word_in_it(reason: object, read: str | None) -> None:
    whole = REPLIES["chat"]
    value = with_value(whole.value, ("choices", 0, "finish_reason"), reason)
    reply: Any = decode_reply(json.dumps(value).encode(), msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert reply.choices[0].finish_reason == read


@pytest.mark.parametrize("count", [None, "unknown", []], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in REPLIES if "usage" in REPLIES[kind].value])
def test_usage_without_any_readable_count_is_none_rather_than_zeros(kind: str, count: object) -> None:
    whole = REPLIES[kind]
    value = {**whole.value, "usage": dict.fromkeys(whole.value["usage"], count)}
    reply: Any = decode_reply(json.dumps(value).encode(), msgspec.json.Decoder(whole.kind), ReplyHead(200))
    assert reply.usage is None
    known = next(name for name, each in whole.value["usage"].items() if type(each) is int)
    reply = decode_reply(
        json.dumps(with_value(value, ("usage", known), 3)).encode(), msgspec.json.Decoder(whole.kind), ReplyHead(200)
    )
    assert getattr(reply.usage, known) == 3
