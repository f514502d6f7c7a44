"""Replies, errors inside them, and Retry-After: decoded, tolerantly, or refused by name."""

from __future__ import annotations

import math
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic

from friendli_async import (
    ChatCompletion,
    ResponseDecodeError,
)
from friendli_async._core.error_bodies import retry_after
from friendli_async._core.lenient import decode
from friendli_async.replies import Headers

# --- decode ----------------------------------------------------------------------------------------------------------

COMPLETION = msgspec.json.Decoder(ChatCompletion)


def test_decoding_tolerates_unknown_fields_nulls_nan_and_lone_surrogates() -> None:
    body = b'{"x":NaN,"id":null,"choices":[{"index":null,"message":{"content":"\\ud83d","new":1},"y":[null]}]}'
    reply = decode(body, COMPLETION)
    assert reply.text == "\ud83d"
    assert reply.choices[0].index == 0


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
]
BROKEN += [b"[" * 100_000]


def test_nesting_that_is_too_deep_for_this_python_is_a_decode_error_and_else_unknown_fields_pass() -> None:
    body = b'{"choices":[],"x":' + b"[" * 5000 + b"]" * 5000 + b"}"
    try:
        COMPLETION.decode(body)
    except RecursionError:
        with pytest.raises(ResponseDecodeError, match="RecursionError"):
            decode(body, COMPLETION)
    else:
        assert decode(body, COMPLETION).choices == ()


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_what_is_not_the_promised_json_is_a_decode_error_with_a_bounded_excerpt(body: bytes) -> None:
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
        *(
            ({"retry-after": text}, None)
            for text in ("", "-5", "nan", "inf", "-inf", "1e999", "soon", "5s", "0x5", ",", "soon, later", "-1, nan")
        ),
        *(
            ({"retry-after": text}, None)
            for text in ("Sun, 99 Foo 1994 08:49:40 GMT", "Sun, 06 Nov 99999 08:49:40 GMT")
        ),
    ],
)
def test_retry_after_is_read_in_every_spelling_and_nonsense_is_ignored(
    fields: dict[str, str], expected: float | None
) -> None:
    assert retry_after(Headers(fields.items()), now=lambda: NOW) == expected


@pytest.mark.parametrize("zone", ["UTC0", "EST5", "KST-9"])
def test_a_date_in_retry_after_means_the_same_in_every_time_zone(monkeypatch: pytest.MonkeyPatch, zone: str) -> None:
    dates = ("Sun, 06 Nov 1994 08:49:40 GMT", "Sun, 06 Nov 1994 08:49:40 -0000", "Sun Nov  6 08:49:40 1994")
    try:
        with monkeypatch.context() as patch:
            patch.setenv("TZ", zone)
            time.tzset()
            found = [retry_after(Headers([("retry-after", date)]), now=lambda: NOW) for date in dates]
    finally:
        time.tzset()
    assert found == [3.0, 3.0, 3.0]


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, ?\d+ \w{3} \d+ [\d:]+ [-+\w]*", fullmatch=True))
@deterministic
def test_retry_after_of_any_text_is_nothing_or_a_finite_number_of_seconds(text: str) -> None:
    found = retry_after(Headers([("retry-after", text), ("retry-after-ms", text)]), now=lambda: NOW)
    assert found is None or (found >= 0 and math.isfinite(found))
