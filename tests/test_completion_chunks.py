"""How the chunks of a completion stream become its choices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from friendli_async._core.events.reader import EventReader
from friendli_async.completions import TextCompletion, TextCompletionChunk, _TextCompletionCollector
from friendli_async.replies import ReplyHead, Usage

JSON = dict[str, Any]

USAGE: JSON = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def read(
    *chunks: JSON, n: int = 1, at_once: bool = True
) -> tuple[_TextCompletionCollector, list[TextCompletionChunk], bool]:
    """Returns a collector that has read these chunks, the events, and whether the stream has ended."""
    collector = _TextCompletionCollector(n)
    reader = EventReader[TextCompletionChunk](collector, 1 << 20, ReplyHead(200))
    data = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks]
    for each in [b"".join(data)] if at_once else data:
        if not reader.has_ended:
            reader.feed(each)
    assert reader.failure is None
    return collector, list(reader.ready), collector.is_last


def chunk(index: int = 0, **fields: object) -> JSON:
    return {"choices": [{"index": index, **fields}]}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("chunks", "begun", "may_end", "has_text"),
    [
        ([chunk(text="")], False, False, False),
        ([chunk(text="a")], True, False, True),
        ([chunk(text="", token=1)], True, False, False),
        ([chunk(text="", tokens=[1, 2])], True, False, False),
        ([chunk(text="", finish_reason="length")], True, True, False),
        ([chunk(text="a"), chunk(text="", finish_reason=None)], True, False, True),
    ],
)
def test_completion_has_begun_with_its_first_text_token_or_finish_reason(
    chunks: list[JSON], begun: bool, may_end: bool, has_text: bool, at_once: bool
) -> None:
    collector, _, _ = read(*chunks, at_once=at_once)
    assert (collector.begun, collector.may_end, collector.has_text) == (begun, may_end, has_text)


def test_chunk_with_an_event_key_keeps_its_usage() -> None:
    collector, _, is_last = read(chunk(text="a"), {"event": "usage", "choices": [], "usage": USAGE})
    assert not is_last
    assert collector.usage == Usage(1, 2, 3)


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"delta": {"content": "a"}}, "a"),
        ({"message": {"content": "a"}}, "a"),
        ({"text": "", "delta": {"content": "a"}}, "a"),
        ({"text": "a", "delta": {"content": "b"}}, "a"),
        ({"text": "a", "delta": {"role": "assistant"}}, "a"),
    ],
)
def test_content_of_a_chat_style_choice_is_its_text(choice: JSON, text: str) -> None:
    collector, events, _ = read(chunk(**choice))
    assert collector.result().text == events[0].text == text


@pytest.mark.parametrize(
    ("indexes", "text"), [([], ""), ([0], "a"), ([1], ""), ([0, 1], "a"), ([1, 0], "b"), ([0, 1, 0], "ac")]
)
def test_text_of_a_chunk_is_that_of_choice_0(indexes: list[int], text: str) -> None:
    choices = [{"index": index, "text": each} for index, each in zip(indexes, "abc", strict=False)]
    _, events, _ = read({"choices": choices, "usage": USAGE}, n=2)
    assert events[0].text == text


def test_text_of_a_completion_without_choices_is_empty() -> None:
    assert TextCompletion(choices=()).text == ""


def test_choice_has_what_stopped_it() -> None:
    collector, _, _ = read(chunk(text="a"), chunk(text="", finish_reason="stop", stop_reason=7))
    [choice] = collector.result().choices
    assert (choice.finish_reason, choice.stop_reason) == ("stop", 7)
