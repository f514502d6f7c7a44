"""Cost and usage: query parameters, pagination, and decoding of pages."""

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final, NoReturn
from zoneinfo import ZoneInfo

import msgspec
import pytest
from support.sockets import client_of, reply, serve_bytes

from friendli_async import (
    AsyncFriendli,
    ResponseDecodeError,
)
from friendli_async.billing import CostPage
from friendli_async.testing import FriendliServer, json_body, status


class Timestamp(datetime):
    """Mimics the classes of pandas and pendulum."""


class NotATime(datetime):
    """Mimics the class of pandas' NaT."""

    def timetz(self) -> NoReturn:
        raise ValueError("NaTType does not support timetz")


START: Final = datetime(2026, 1, 1, tzinfo=UTC)
END: Final = datetime(2026, 1, 3, tzinfo=UTC)
COSTS: Final[dict[str, Any]] = {
    "data": [
        {
            "start_time": "2026-01-01T00:00:00Z",
            "end_time": "2026-01-02T00:00:00Z",
            "results": [
                {"total": "12.340", "quantity": "3", "unit_price": "4.11333", "line_item": "input tokens"},
                {"total": "0.1"},
            ],
        },
        {"start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-03T00:00:00Z"},
    ],
    "has_more": False,
    "next_page": None,
}
RESULT: Final[dict[str, Any]] = {
    "product_type": "dedicated_endpoints",
    "model": "m",
    "user_id": "u",
    "num_model_requests": 5,
    "input_tokens": 100,
    "input_cached_tokens": 10,
    "output_tokens": 50,
    "gpu_usage": {"H100": 3600},
    "reserved_gpu_usage": {},
    "processed_audio_length_ms": 1500,
}
USAGE: Final[dict[str, Any]] = {
    "data": [{"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T01:00:00Z", "results": [RESULT, {}]}],
    "has_more": False,
}


async def test_costs_are_decoded_with_exact_amounts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(COSTS))
    page = await client.cost.get(start_time=START, end_time=END)
    first, second = page.data
    assert (first.start_time, first.end_time) == (START, START + timedelta(days=1))
    assert first.results[0].line_item == "input tokens"
    assert sum(Decimal(result.total) for result in first.results) == Decimal("12.440")
    assert first.results[1].unit_price is None
    assert second.results == ()
    assert page.meta.status == 200


async def test_usage_is_decoded_into_buckets_of_counts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(USAGE))
    [bucket] = [bucket async for bucket in client.usage.get(start_time=START, end_time=END)]
    counted, empty = bucket.results
    assert {name: getattr(counted, name) for name in RESULT} == RESULT
    assert all(getattr(empty, name) is None for name in RESULT)


@pytest.mark.parametrize("reply", [{}, {"data": [{}]}, {"data": "x"}, []], ids=str)
async def test_malformed_page_raises_decode_error(client: AsyncFriendli, server: FriendliServer, reply: object) -> None:
    server.always(json_body(reply))
    for listed in (client.cost, client.usage):
        with pytest.raises(ResponseDecodeError):
            await listed.get(start_time=START, end_time=END)


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        (datetime(2026, 1, 1, 2, 3, 4, 500, tzinfo=UTC), "2026-01-01T02:03:04.000500Z"),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=9))), "2026-01-01T00:00:00+09:00"),
        (datetime(2026, 1, 1), "2026-01-01T00:00:00"),  # noqa: DTZ001  # naive on purpose
        (Timestamp(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        (Timestamp(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Paris"), fold=1), "2026-10-25T02:30:00+01:00"),
    ],
    ids=["UTC", "microseconds", "offset", "naive", "subclass", "subclass in a zone"],
)
async def test_times_are_sent_in_iso_format_with_z_for_utc(
    client: AsyncFriendli, server: FriendliServer, moment: datetime, sent: str
) -> None:
    server.always(json_body({"data": []}))
    await client.cost.get(start_time=moment, end_time=moment)
    assert server.requests[0].query["start_time"] == server.requests[0].query["end_time"] == [sent]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": None}, "end_time"),
        ({"start_time": date(2026, 1, 1)}, "start_time"),
        ({"start_time": NotATime(2026, 1, 1)}, "start_time"),
        ({"models": "m"}, "models"),
        ({"group_by": ["model", 3]}, "group_by[1]"),
        ({"bucket_width": 5}, "bucket_width"),
    ],
    ids=str,
)
async def test_invalid_value_is_rejected_with_its_path(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], path: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: "):
        client.usage.get(**{"start_time": START, "end_time": END, **options})
    assert server.requests == []


@pytest.mark.parametrize(
    "moment",
    [1767225600, 1767225600.0, "2026-01-01"],
    ids=repr,
)
async def test_times_in_other_forms_are_decoded(client: AsyncFriendli, server: FriendliServer, moment: object) -> None:
    bucket = {"start_time": moment, "end_time": moment, "results": [{"total": "1"}]}
    server.always(json_body({"data": [bucket]}))
    [decoded] = (await client.cost.get(start_time=START, end_time=END)).data
    assert decoded.start_time.replace(tzinfo=UTC) == START


@pytest.mark.parametrize("moment", ["1712121212121", 1712121212121, "1712121212", "soon", None], ids=repr)
async def test_other_values_are_not_taken_for_a_time(
    client: AsyncFriendli, server: FriendliServer, moment: object
) -> None:
    server.always(json_body({"data": [{"start_time": moment, "end_time": moment, "results": [{"total": "1"}]}]}))
    with pytest.raises(ResponseDecodeError, match="start_time"):
        await client.cost.get(start_time=START, end_time=END)


async def test_server_error_is_retried(server: FriendliServer) -> None:
    server.enqueue(status(500, headers={"retry-after-ms": "0"}), json_body(COSTS))
    async with AsyncFriendli("test-token", server_url=server.url) as client:
        page = await client.cost.get(start_time=START, end_time=END)
    assert [attempt.status for attempt in page.meta.attempts] == [500, 200]


# --- embedded server -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("12.340", "12.340"),
        (12.34, "12.34"),
        (3, "3"),
        (0.0, "0.0"),
        (1e-7, "1e-07"),
        ("1e-7", "1e-7"),
        ("1,234.50", "1,234.50"),
        (123456789012345678901234567890, "123456789012345678901234567890"),
    ],
    ids=str,
)
def test_amounts_are_strings_regardless_of_wire_type(written: object, amount: str) -> None:
    bucket = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-02T00:00:00Z"}
    results = [{"total": written, "quantity": written, "unit_price": written}]
    page = msgspec.convert({"data": [{**bucket, "results": results}]}, CostPage)
    (result,) = page.data[0].results
    assert (result.total, result.quantity, result.unit_price) == (amount, amount, amount)


def cost_page(result: str, **more: str) -> bytes:
    bucket = f'{{"start_time":"2026-01-01T00:00:00Z","end_time":"2026-01-02T00:00:00Z","results":[{result}]}}'
    rest = "".join(f',"{name}":{value}' for name, value in more.items())
    return f'{{"data":[{bucket}]{rest}}}'.encode()


@pytest.mark.parametrize("total", ["null", "{}", '{"amount":"1.50"}', "NaN", "1e400"])
async def test_invalid_total_raises_instead_of_dropping_the_row(total: str) -> None:
    page = cost_page(f'{{"total":"1"}},{{"total":{total},"quantity":"2"}}')
    async with serve_bytes(reply(page)) as server, client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError, match=r"total|amount|malformed"):
            await client.cost.get(start_time=START, end_time=END)


@pytest.mark.parametrize(("written", "expected"), [('"true"', True), ('"false"', False), ("1", True), ("0", False)])
async def test_has_more_accepts_strings_and_integers(written: str, expected: bool) -> None:
    page = cost_page('{"total":1}', has_more=written, next_page='"p2"')
    async with serve_bytes(reply(page)) as server, client_of(server.url) as client:
        found = await client.cost.get(start_time=START, end_time=END)
    assert (found.has_more, found.next_page) == (expected, "p2")


async def test_fractional_gpu_usage_is_kept() -> None:
    usage = '{"gpu_usage":{"H100":1.5},"reserved_gpu_usage":{"H100":2}}'
    async with serve_bytes(reply(cost_page(usage))) as server, client_of(server.url) as client:
        found = await client.usage.get(start_time=START, end_time=END)
    result: Any = found.data[0].results[0]
    assert (result.gpu_usage, result.reserved_gpu_usage) == ({"H100": 1.5}, {"H100": 2})
