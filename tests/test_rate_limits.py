"""Rate-limit headers in all known spellings."""

from __future__ import annotations

import math
import pickle
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from friendli_async import RateLimit
from friendli_async._core.status_errors import error_of_payload, status_error
from friendli_async.rate_limits import retry_delay_of
from friendli_async.replies import Headers, Meta, ReplyHead

DATE: Final = {"Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
NEW_YEAR: Final = 1767225600


def parse(**headers: str) -> RateLimit | None:
    return Meta(headers=Headers((name.replace("_", "-"), value) for name, value in headers.items())).rate_limit


def non_null_fields(limit: RateLimit | None) -> dict[str, Any]:
    assert limit is not None
    return {name: value for name, value in msgspec.structs.asdict(limit).items() if value is not None}


SPELLINGS: Final[dict[str, tuple[dict[str, str], dict[str, float]]]] = {
    "OpenAI": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        {
            "limit_requests": 60,
            "remaining_requests": 59,
            "reset_requests": 1.0,
            "limit_tokens": 150000,
            "remaining_tokens": 149984,
            "reset_tokens": 360.0,
        },
    ),
    "Friendli": (
        {
            "X-RateLimit-Limit-Steps": "100",
            "X-RateLimit-Remaining-Steps": "0",
            "X-RateLimit-Reset-Steps": "120ms",
        },
        {"limit_steps": 100, "remaining_steps": 0, "reset_steps": 0.12},
    ),
    "Anthropic": (
        {
            **DATE,
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:30Z",
            "anthropic-ratelimit-tokens-reset": "2026-01-01T01:00:00+01:00",
        },
        {"limit_requests": 50, "remaining_requests": 49, "reset_requests": 30.0, "reset_tokens": 0.0},
    ),
    "GitHub": (
        {
            **DATE,
            "x-ratelimit-limit": "5000",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": str(NEW_YEAR + 90),
        },
        {"limit_requests": 5000, "remaining_requests": 0, "reset_requests": 90.0},
    ),
    "epoch in milliseconds": ({**DATE, "x-ratelimit-reset": f"{NEW_YEAR}500"}, {"reset_requests": 0.5}),
    "HTTP date": ({**DATE, "x-ratelimit-reset": "Thu, 01 Jan 2026 00:00:10 GMT"}, {"reset_requests": 10.0}),
    "milliseconds": (
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset-ms": "1500"},
        {"remaining_requests": 0, "reset_requests": 1.5},
    ),
    "milliseconds since the epoch": (
        {**DATE, "x-ratelimit-reset-ms": f"{NEW_YEAR}500"},
        {"reset_requests": 0.5},
    ),
    "milliseconds with another unit": ({"x-ratelimit-reset-ms": "5s"}, {"reset_requests": 5.0}),
    "quoted with a parameter": ({"x-ratelimit-reset": '"5";w=60'}, {"reset_requests": 5.0}),
    "two dates": (
        {**DATE, "x-ratelimit-reset": "Thu, 01 Jan 2026 00:00:10 GMT, Thu, 01 Jan 2026 00:00:20 GMT"},
        {"reset_requests": 20.0},
    ),
    "duplicate Date header": (
        {"Date": f"{DATE['Date']}, {DATE['Date']}", "x-ratelimit-reset": "2026-01-01T00:00:09"},
        {"reset_requests": 9.0},
    ),
    "reset-after": (
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset-after": "1.5"},
        {"remaining_requests": 0, "reset_requests": 1.5},
    ),
    "draft 02": (
        {"ratelimit-limit": "100, 10;w=1, 100;w=60", "ratelimit-remaining": "50", "ratelimit-reset": "5"},
        {"limit_requests": 100, "remaining_requests": 50, "reset_requests": 5.0},
    ),
    "draft 06": (
        {"ratelimit": "limit=100, remaining=50, reset=5"},
        {"limit_requests": 100, "remaining_requests": 50, "reset_requests": 5.0},
    ),
    "draft 08, with two policies": (
        {"ratelimit": '"Day";r=3;t=3600, "Minute";r=50;t=30', "ratelimit-policy": '"day";q=9, "minute";q=100'},
        {"limit_requests": 9, "remaining_requests": 3, "reset_requests": 3600.0},
    ),
    "draft 08, of tokens": ({"ratelimit": '"tokens";r=5'}, {"remaining_tokens": 5}),
    "draft 08": (
        {"ratelimit": '"default";r=50;t=30', "ratelimit-policy": '"default";q=100;w=60'},
        {"limit_requests": 100, "remaining_requests": 50, "reset_requests": 30.0},
    ),
    "two windows": (
        {
            "x-ratelimit-limit-requests-minute": "10",
            "x-ratelimit-remaining-requests-minute": "9",
            "x-ratelimit-limit-requests-day": "1000",
            "x-ratelimit-remaining-requests-day": "20",  # a smaller share
            "x-ratelimit-limit-tokens-minute": "7",
        },
        {"limit_requests": 1000, "remaining_requests": 20, "limit_tokens": 7},
    ),
    "input and output tokens": (
        {
            "anthropic-ratelimit-input-tokens-limit": "100",
            "anthropic-ratelimit-input-tokens-remaining": "90",
            "anthropic-ratelimit-output-tokens-limit": "100",
            "anthropic-ratelimit-output-tokens-remaining": "10",
        },
        {"limit_tokens": 100, "remaining_tokens": 10},
    ),
    "duplicate headers": (
        {"x-ratelimit-remaining": "5, 3", "x-ratelimit-reset": "3, 7"},
        {"remaining_requests": 3, "reset_requests": 7.0},
    ),
    "partly invalid": (
        {"x-ratelimit-limit": "many", "x-ratelimit-remaining": "nan", "x-ratelimit-reset": "2s"},
        {"reset_requests": 2.0},
    ),
}


@pytest.mark.parametrize(("headers", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_is_parsed(headers: dict[str, str], expected: dict[str, float]) -> None:
    assert non_null_fields(parse(**headers)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("120ms", 0.12),
        ("1h2m3.5s", 3723.5),
        ("1m 30s", 90.0),
        ("500µs", 0.0005),
        ("20ns", 2e-8),
        ("3s, 8s", 8.0),
        ("2d", 172800.0),
        ("0", 0.0),
        ("59.7", 59.7),
        ("-3", 0.0),
        ("1e3", 1000.0),
        (".5", 0.5),
    ],
)
def test_reset_is_converted_to_seconds(text: str, seconds: float) -> None:
    assert non_null_fields(parse(x_ratelimit_reset=text)) == {"reset_requests": pytest.approx(seconds)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "9" * 400 + "s",
        f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT",
        "nan",
        "inf",
        "1e999",
        "9" * 5000,
        "1s2",
        "s",
        "2026-99-99",
        "٣",
        "0x10",
        "1_000",
        "--1",
        "8 seconds",
        "PT8S",
        "1 s 2",
    ],
)
def test_invalid_values_are_ignored(text: str) -> None:
    assert parse(x_ratelimit_reset=text, x_ratelimit_limit=text, x_ratelimit_remaining=text) is None


def test_unrelated_headers_are_ignored() -> None:
    assert parse() is None
    assert (
        parse(**{"content-type": "text/plain", "x-limit": "5", "x-ratelimit": "5", "ratelimit-policy": "w=60"}) is None
    )


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "ratelimit",
                "ratelimit-policy",
                "x-ratelimit-reset",
                "x-ratelimit-remaining-tokens",
                "date",
                "x-ratelimit-",
            ]
        )
        | st.from_regex(r"(x-|anthropic-)?rate-?limit-[a-z_-]*", fullmatch=True),
        st.text() | st.from_regex(r"[-0-9.,;=a-z\" :TZ]{0,40}", fullmatch=True),
    )
)
def test_arbitrary_headers_never_raise_and_numbers_are_finite(headers: dict[str, str]) -> None:
    for value in non_null_fields(limit).values() if (limit := parse(**headers)) is not None else ():
        assert math.isfinite(value)
        assert value >= 0
    wait = retry_delay_of(429, Headers(headers.items()))
    assert wait is None or (math.isfinite(wait) and wait >= 0)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-ratelimit-reset": "5"}, 5.0),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "5"}, 5.0),
        ({"x-ratelimit-remaining": "1", "x-ratelimit-reset": "5"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "5", "x-ratelimit-reset-tokens": "9"}, 5.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "5",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "9",
            },
            9.0,
        ),
        ({"x-ratelimit-remaining": "0"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_429_waits_only_for_exhausted_limits(headers: dict[str, str], wait: float | None) -> None:
    received = Headers(headers.items())
    error = status_error(ReplyHead(429, received), b"")
    assert error.retry_after == wait
    assert status_error(ReplyHead(503, received), b"").retry_after is None
    in_stream = error_of_payload({"error": {"code": "rate_limit_exceeded"}}, b"", ReplyHead(200, received))
    assert in_stream.retry_after == wait


def test_retry_after_takes_precedence_over_reset() -> None:
    headers = Headers([("retry-after", "1"), ("x-ratelimit-reset", "9")])
    assert status_error(ReplyHead(429, headers), b"").retry_after == 1.0


def test_rate_limit_is_picklable() -> None:
    limit = parse(x_ratelimit_limit="5")
    assert pickle.loads(pickle.dumps(limit)) == limit
