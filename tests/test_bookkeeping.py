"""Bookkeeping of any other JSON type, anywhere in any reply: what was paid for is there all the same."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest
from support.whole_replies import DROPPED, STREAMED, WHOLE, Path, Streamed, Whole, bookkeeping, changed

from friendli_async import ResponseDecodeError
from friendli_async._core.events.decoding import decode_reply
from friendli_async._core.events.reader import EventReader
from friendli_async.replies import Headers

ODD: Final[list[Any]] = [
    *(None, True, False, 0, -1, 5, 1.5, 1e30, 10**30, float("nan"), "", "x", "5", "1.5", "null", "true", "2026-13-99"),
    *([], [1], ["x"], [None], [{}], [[]], [{"text": "q"}], {}, {"x": 1}, {"text": "x"}, DROPPED),
]


def read_whole(whole: Whole, value: object) -> object:
    reply = decode_reply(json.dumps(value).encode(), msgspec.json.Decoder(whole.kind), 200, Headers())
    assert repr(reply)
    return whole.content(reply)


@pytest.mark.parametrize("kind", WHOLE)
def test_no_field_of_a_reply_costs_what_was_paid_for(kind: str) -> None:
    whole = WHOLE[kind]
    wanted = read_whole(whole, whole.value)
    walked = bookkeeping(whole.value, whole.paid)
    assert walked or len(whole.value) == len(whole.paid)
    for path in walked:
        for odd in ODD:
            if _means_something_else(path, odd):
                continue
            assert read_whole(whole, changed(whole.value, path, odd)) == wanted, (path, odd)


def _means_something_else(path: Path, odd: object) -> bool:
    """Whether a value in a place is of another kind of block, item or part: it is delivered, as what it is."""
    return path[-1] == "type" and (isinstance(odd, str) or (odd is DROPPED and path[0] == "output"))


@pytest.mark.parametrize("kind", WHOLE)
def test_what_was_paid_for_is_never_made_of_nothing(kind: str) -> None:
    whole = WHOLE[kind]
    for place in {path[0] for path in whole.paid}:
        for absent in (None, DROPPED):
            if kind == "endpoints" and place == "data":
                continue  # a team without endpoints
            if absent is None and kind in {"spec", "file"}:
                continue  # names, which are kept as ""
            with pytest.raises(ResponseDecodeError):
                read_whole(whole, changed(whole.value, (place,), absent))


def read_streamed(stream: Streamed, changes: dict[int, Any]) -> object:
    collector = stream.collector()
    reader = EventReader(collector, 1 << 20, 200, Headers())
    for place, (name, value, _) in enumerate(stream.events):
        head = "" if name is None else f"event: {name}\n"
        reader.feed(f"{head}data: {json.dumps(changes.get(place, value))}\n\n".encode())
    if not reader.is_last:
        reader.feed(b"data: [DONE]\n\n")
    assert reader.failure is None
    assert all(map(repr, reader.ready))
    return stream.content(collector.result())


@pytest.mark.parametrize("kind", STREAMED)
def test_no_field_of_an_event_costs_what_was_paid_for(kind: str) -> None:
    stream = STREAMED[kind]
    wanted = read_streamed(stream, {})
    for place, (_, value, paid) in enumerate(stream.events):
        for path in bookkeeping(value, paid):
            for odd in ODD:
                if _tells_something(path, odd):
                    continue
                assert read_streamed(stream, {place: changed(value, path, odd)}) == wanted, (place, path, odd)


def _tells_something(path: Path, odd: object) -> bool:
    """Whether a value in a place says something else, rather than nothing."""
    if path[-1] == "type" and len(path) > 1:
        return isinstance(odd, str)  # another kind of block or piece
    if path == ("index",):  # another block
        return odd is DROPPED or (isinstance(odd, str | int | float) and str(odd).isdecimal())
    return path == ("response", "output", 0, "content", 0, "type")


@pytest.mark.parametrize("kind", ["chat", "tool-assisted", "completions"])
@pytest.mark.parametrize("odd", [None, "abc", "", [], {}, [1], {"x": 1}, True, float("nan")])
def test_an_index_that_says_nothing_is_the_place(kind: str, odd: Any) -> None:
    stream = STREAMED[kind]
    wanted = read_streamed(stream, {})
    for place, (_, value, paid) in enumerate(stream.events):
        for path in (each for each in paid if each[-1] == "index"):
            assert read_streamed(stream, {place: changed(value, path, odd)}) == wanted, (place, path)
    everywhere: dict[int, Any] = {}
    for place, (_, value, paid) in enumerate(stream.events):
        for path in (each for each in paid if each[-1] == "index"):
            everywhere[place] = changed(everywhere.get(place, value), path, odd)
    assert read_streamed(stream, everywhere) == wanted


@pytest.mark.parametrize("odd", [None, "abc", [], {}, {"x": 1}])
def test_answers_of_one_reply_whose_indexes_say_nothing_keep_their_order(odd: Any) -> None:
    whole = WHOLE["chat"]
    choices = [{"index": odd, "message": {"content": text}} for text in ("a", "b", "c")]
    body = json.dumps({**whole.value, "choices": choices}).encode()
    reply: Any = decode_reply(body, msgspec.json.Decoder(whole.kind), 200, Headers())
    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(0, "a"), (1, "b"), (2, "c")]
    vectors = [{"index": odd, "embedding": [float(place)]} for place in range(3)]
    decoder = msgspec.json.Decoder(WHOLE["embeddings"].kind)
    made: Any = decode_reply(json.dumps({"data": vectors}).encode(), decoder, 200, Headers())
    assert [(each.index, each.embedding) for each in made.data] == [(0, (0.0,)), (1, (1.0,)), (2, (2.0,))]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (["pa", "id"], "paid"),
        ([{"type": "text", "text": "pa"}, "id", None], "paid"),
        ({"type": "text", "text": "paid"}, "paid"),
        ([{"text": "paid"}], "paid"),
        ([{"type": "text", "content": "paid"}], "paid"),
    ],
)
def test_text_in_parts_is_the_text(content: Any, text: str) -> None:
    for kind, path in (
        ("chat", ("choices", 0, "message", "content")),
        ("completion", ("choices", 0, "text")),
        ("transcription", ("text",)),
    ):
        whole = WHOLE[kind]
        reply: Any = decode_reply(
            json.dumps(changed(whole.value, path, content)).encode(), msgspec.json.Decoder(whole.kind), 200, Headers()
        )
        assert reply.text == text, kind
