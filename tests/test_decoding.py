"""Lenient decoding of replies, and parsing of Retry-After."""

from __future__ import annotations

import json
import math
import time
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import (
    ChatCompletion,
    ResponseDecodeError,
    rate_limits,
)
from friendli_async._core import lenient
from friendli_async._core.lenient import decode
from friendli_async.chat import Logprobs, TokenLogprob
from friendli_async.chat.replies import ChatMessage, ChunkDelta, ToolCallDelta
from friendli_async.completions import TextCompletionChoice
from friendli_async.embeddings import Embedding, EmbeddingList
from friendli_async.messages.replies import ThinkingBlock
from friendli_async.models import ModelFunctionality
from friendli_async.rate_limits import retry_delay_of
from friendli_async.replies import Headers
from friendli_async.responses.replies import ContentPart, OutputItem

# --- decode ----------------------------------------------------------------------------------------------------------

COMPLETION = msgspec.json.Decoder(ChatCompletion)


def test_decoding_tolerates_unknown_fields_nulls_nan_and_lone_surrogates() -> None:
    body = b'{"x":NaN,"id":null,"choices":[{"index":null,"message":{"content":"\\ud83d","new":1},"y":[null]}]}'
    reply = decode(body, COMPLETION)
    assert reply.text == "\ud83d"
    assert reply.choices[0].index == 0


def test_half_a_character_in_place_of_a_number_is_repaired() -> None:
    reply = decode(b'{"created":"\\ud83d","choices":[{"index":"\\ud83d","message":{"content":"t"}}]}', COMPLETION)
    assert (reply.text, reply.choices[0].index, reply.created) == ("t", 0, None)


BROKEN = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"{",
    b'{"choices":5}',
    b'{"choices":[5]}',
    b"{}",
    b'"\xff"',
    b"\xff\xfe",
    b"1" * 5000,
    b"[" * 100_000,
]

FAULTS: Final[list[dict[str, Any]]] = [
    {"logprobs": []},
    {"logprobs": {"content": [{"bytes": ["x"]}]}},
    {"finish_reason": {"type": "stop"}},
    {"message": {"role": 5, "tool_calls": {"id": 7, "function": {"name": "f", "arguments": {"a": 1}}}}},
    {"message": {"content": [{"type": "text", "text": "t"}, {"type": "thinking", "thinking": "r"}]}},
    {"message": {"content": "t", "reasoning_details": "r"}},
]


def test_lenient_decoding_is_linear_in_the_number_of_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted: list[object] = []
    convert = msgspec.convert

    def counted(value: object, kind: object) -> object:
        converted.append(value)
        return convert(value, kind)

    monkeypatch.setattr(f"{lenient.__name__}.msgspec.convert", counted)
    count = 4096
    choices: list[dict[str, Any]] = [
        {"message": {"content": "x" * 8192}, **FAULTS[n % len(FAULTS)], "index": str(n)} for n in range(count)
    ]
    for choice in choices[4::6] + choices[3::6] + choices[5::6]:
        choice["padding"] = "x" * 8192
    body = json.dumps({"choices": choices, "created": "now", "usage": {"prompt_tokens": "3"}}).encode()
    assert len(body) > 32 * 1024 * 1024
    reply = decode(body, COMPLETION)
    assert len(reply.choices) == count
    assert [choice.index for choice in reply.choices] == list(range(count))
    assert (reply.created, reply.usage and reply.usage.prompt_tokens) == (None, 3)
    texts = {(choice.message.content or "")[:2] for choice in reply.choices}
    assert texts == {"xx", "t", ""}
    # The whole reply is converted twice, and each part once per enclosing level.
    assert sum(1 for value in converted if isinstance(value, dict) and "usage" in value) == 2
    assert sum(1 for value in converted if isinstance(value, list) and len(value) == count) == 1
    assert len(converted) < 20 * count


def test_fault_deep_in_metadata_loses_the_metadata_only() -> None:
    for faulty in (
        {"logprobs": {"content": "x"}},
        {"logprobs": {"content": [5]}},
        {"seed": [1]},
    ):
        reply = decode(json.dumps({"choices": [{"message": {"content": "hi"}, **faulty}]}).encode(), COMPLETION)
        assert (reply.text, reply.choices[0].logprobs) == ("hi", None), faulty
    token = {"token": "hi", "bytes": [{}]}
    body = json.dumps({"choices": [{"message": {"content": "hi"}, "logprobs": {"content": [token]}}]}).encode()
    assert decode(body, COMPLETION).choices[0].logprobs == Logprobs((TokenLogprob("hi"),))


@pytest.mark.parametrize(
    ("details", "text"),
    [
        ("because", "because"),
        ({"text": "because"}, "because"),
        ([{"text": "because"}], "because"),
        (["be", "cause"], "because"),
        ([None, {"text": "be"}, 5, [], "cause"], "because"),
        (5, ""),
        ([5, None], ""),
    ],
)
def test_reasoning_details_of_another_shape_keep_their_text(details: object, text: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": "hi", "reasoning_details": details}}]}).encode()
    reply = decode(body, COMPLETION)
    assert (reply.text, reply.reasoning) == ("hi", text)
    if isinstance(details, str) or details == ["be", "cause"]:
        pieces = [details] if isinstance(details, str) else details
        expected = [{"type": "reasoning.text", "text": piece} for piece in pieces]
        assert reply.choices[0].message.reasoning_details == tuple(expected)


SUMMARY: Final = ContentPart("summary_text", "why")
SUMMARIES: Final[list[Any]] = ["why", {"type": "summary_text", "text": "why"}]


@pytest.mark.parametrize(
    ("kind", "sent", "read"),
    [
        (ThinkingBlock, {"type": "thinking", "thinking": 5}, ThinkingBlock()),  # a number is no text
        (ChatMessage, {"reasoning": [{"type": "text", "text": "why"}]}, ChatMessage(reasoning="why")),
        (ChunkDelta, {"tool_calls": [{"index": "a", "id": "1"}]}, ChunkDelta(tool_calls=(ToolCallDelta(id="1"),))),
        (EmbeddingList, {"data": {"embedding": [1.0]}}, EmbeddingList(data=(Embedding(embedding=(1.0,)),))),
        (ModelFunctionality, {"tool_call": "False"}, ModelFunctionality(tool_call=False)),
        # Beyond the integers that a float has exactly, JSON made from protocol buffers has texts.
        (TextCompletionChoice, {"seed": "9223372036854775807"}, TextCompletionChoice(seed=9223372036854775807)),
        (TextCompletionChoice, {"seed": "7.0"}, TextCompletionChoice(seed=7)),
        (OutputItem, {"id": 5, "custom": {"name": "f"}}, OutputItem(id="5")),
        *((OutputItem, {"summary": sent}, OutputItem(summary=(SUMMARY,))) for sent in SUMMARIES),
    ],
)
def test_field_of_another_type_is_converted_if_it_can_be(kind: Any, sent: dict[str, object], read: object) -> None:
    assert lenient.convert(sent, kind) == read


def test_lists_as_objects_of_items_by_index_are_decoded() -> None:
    calls = {"10": {"id": "c", "function": {"name": "h"}}, "1": {"id": "b", "function": {"name": "g"}}}
    calls["0"] = {"id": "a", "function": {"name": "f"}}
    choices = {"0": {"message": {"content": "hi", "tool_calls": calls}}, "1": {"message": {"content": "ho"}}}
    reply = decode(json.dumps({"choices": choices}).encode(), COMPLETION)
    assert [choice.message.content for choice in reply.choices] == ["hi", "ho"]
    assert [call.function.name for call in reply.tool_calls] == ["f", "g", "h"]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content", "tool_calls"])
@pytest.mark.parametrize("value", [True, False, 5, 1.5, 0])
def test_scalar_in_optional_field_does_not_lose_the_answer(name: str, value: object) -> None:
    reply = decode(json.dumps({"choices": [{"message": {"content": "hi", name: value}}]}).encode(), COMPLETION)
    assert (reply.text, reply.reasoning, reply.message.tool_calls) == ("hi", "", None)


@pytest.mark.parametrize("value", ["call f", ["call f"], '[{"id": "1", "function": {"name": "f"}}]'])
def test_texts_in_place_of_tool_calls_are_undecodable_content(value: object) -> None:
    body = {"choices": [{"message": {"content": "hi", "tool_calls": value}}]}
    with pytest.raises(ResponseDecodeError):
        decode(json.dumps(body).encode(), COMPLETION)


def test_too_deep_nesting_raises_decode_error_where_the_decoder_limits_it() -> None:
    body = b'{"choices":[],"x":' + b"[" * 5000 + b"]" * 5000 + b"}"
    try:
        COMPLETION.decode(body)
    except RecursionError:
        with pytest.raises(ResponseDecodeError, match="RecursionError"):
            decode(body, COMPLETION)
    else:
        assert decode(body, COMPLETION).choices == ()


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_invalid_reply_raises_decode_error_with_bounded_excerpt(body: bytes) -> None:
    with pytest.raises(ResponseDecodeError) as caught:
        decode(body, COMPLETION)
    assert len(caught.value.excerpt) <= 200
    assert caught.value.excerpt == body[:200].decode("utf-8", "replace")
    assert caught.value.__cause__ is None
    assert len(str(caught.value)) < 1000


# --- retry_after -----------------------------------------------------------------------------------------------------

NOW = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"retry-after": "5"}, 5.0),
        ({"RETRY-AFTER": "0"}, 0.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:40 GMT"}, 3.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:40 GMT"}, 3.0),
        ({"retry-after": "Sun Nov  6 08:49:40 1994"}, 3.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:40:00 GMT"}, 0.0),
        ({"retry-after": "5, 5"}, 5.0),
        ({"retry-after": "3, 7"}, 7.0),
        ({"retry-after": "7,3"}, 7.0),
        ({"retry-after": "soon, 3"}, 3.0),
        ({"retry-after": "-1, 3, inf"}, 3.0),
        ({"retry-after-ms": "1500, 250", "retry-after": "9"}, 1.5),
        ({"retry-after": "99999999999"}, 99999999999.0),
        ({"retry-after": "5s"}, 5.0),
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "120ms"}, 0.12),
        ({"retry-after": '"5"'}, 5.0),
        ({"retry-after": "5;reason=busy"}, 5.0),
        ({"retry-after": "-0"}, 0.0),
        ({"retry-after": "1800000000"}, 1800000000 - NOW),
        ({"retry-after": "1800000000000"}, 1800000000 - NOW),
        ({"retry-after": "1994-11-06T08:49:40Z"}, 3.0),
        ({"retry-after": "1994-11-06T09:49:40+01:00"}, 3.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:40 GMT, Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:40 GMT,2"}, 3.0),
        ({"retry-after": "2, Sun, 06 Nov 1994 08:49:40 GMT"}, 3.0),
        ({"retry-after": "5s, 1m"}, 60.0),
        ({"retry-after": "Sun, 06 Nov 1994 09:00:05 GMT", "date": "Sun, 06 Nov 1994 09:00:00 GMT"}, 5.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:40 GMT", "date": "soon"}, 3.0),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"x-retry-after": "4"}, 4.0),
        ({"x-ratelimit-retry-after": "4"}, 4.0),
        *(
            ({"retry-after": text}, None)
            for text in (
                "",
                "-5",
                "nan",
                "inf",
                "-inf",
                "1e999",
                "-" + "9" * 21,
                "soon",
                "0x5",
                "1_000",
                "\u0663",
                ",",
                "soon, later",
                "-1, nan",
            )
        ),
        *(
            ({"retry-after": text}, None)
            for text in ("Sun, 99 Foo 1994 08:49:40 GMT", "Sun, 06 Nov 99999 08:49:40 GMT")
        ),
    ],
)
def test_retry_after_is_parsed_in_many_formats_and_invalid_values_ignored(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], expected: float | None
) -> None:
    monkeypatch.setattr(rate_limits, "time", lambda: NOW)
    assert retry_delay_of(503, Headers(fields.items())) == expected


@pytest.mark.parametrize("zone", ["UTC0", "EST5", "KST-9"])
def test_retry_after_date_does_not_depend_on_the_local_time_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    dates = ("Sun, 06 Nov 1994 08:49:40 GMT", "Sun, 06 Nov 1994 08:49:40 -0000", "Sun Nov  6 08:49:40 1994")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            patch.setattr(rate_limits, "time", lambda: NOW)
            time.tzset()
            found = [retry_delay_of(503, Headers([("retry-after", date)])) for date in dates]
    finally:
        time.tzset()
    assert found == [3.0, 3.0, 3.0]


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, ?\d+ \w{3} \d+ [\d:]+ [-+\w]*", fullmatch=True))
@deterministic
def test_retry_after_of_any_text_is_none_or_finite(text: str) -> None:
    found = retry_delay_of(503, Headers([("retry-after", text), ("retry-after-ms", text)]))
    assert found is None or (found >= 0 and math.isfinite(found))
