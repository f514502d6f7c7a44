"""Cost and usage: what is asked for, and what the answers are made into."""

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Final

import msgspec
import pytest
from support.sockets import client_of, reply, saying

from friendli_async import (
    AsyncFriendli,
    ConfigurationError,
    PermissionDeniedError,
    ResponseDecodeError,
    UnprocessableEntityError,
)
from friendli_async.billing import CostPage, UsagePage
from friendli_async.testing import FriendliServer, json_body, status

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


async def test_costs_are_buckets_of_exact_amounts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(COSTS))
    page = await client.cost.get(start_time=START, end_time=END)
    first, second = page.data
    assert (first.start_time, first.end_time) == (START, START + timedelta(days=1))
    assert first.results[0].line_item == "input tokens"
    assert sum(Decimal(result.total) for result in first.results) == Decimal("12.440")
    assert first.results[1].unit_price is None
    assert second.results == ()
    assert page.meta.status == 200


async def test_usage_is_buckets_of_counts(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(json_body(USAGE))
    [bucket] = [bucket async for bucket in client.usage.get(start_time=START, end_time=END)]
    counted, empty = bucket.results
    assert {name: getattr(counted, name) for name in RESULT} == RESULT
    assert all(getattr(empty, name) is None for name in RESULT)


@pytest.mark.parametrize(("page", "sample"), [(CostPage, COSTS), (UsagePage, USAGE)], ids=["cost", "usage"])
def test_a_page_says_the_same_when_it_is_encoded_again(page: type[CostPage | UsagePage], sample: Any) -> None:
    decoded = msgspec.convert(sample, page)
    again = msgspec.json.decode(msgspec.json.encode(decoded), type=page)
    assert again == decoded
    assert set(msgspec.to_builtins(again)) >= {"data", "has_more"}


async def test_new_fields_and_new_kinds_break_nothing(client: AsyncFriendli, server: FriendliServer) -> None:
    bucket = {**USAGE["data"][0], "results": [{"product_type": "agents", "robots": 3}], "new": {}}
    server.enqueue(json_body({"data": [bucket], "has_more": False, "new": 1}))
    page = await client.usage.get(start_time=START, end_time=END)
    assert page.data[0].results[0].product_type == "agents"


@pytest.mark.parametrize("reply", [{}, {"data": [{}]}, {"data": "x"}, []], ids=str)
async def test_what_is_no_page_is_a_decode_error(client: AsyncFriendli, server: FriendliServer, reply: object) -> None:
    server.always(json_body(reply))
    for listed in (client.cost, client.usage):
        with pytest.raises(ResponseDecodeError):
            await listed.get(start_time=START, end_time=END)


async def test_a_refusal_is_the_error_of_its_status(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(status(403, message="not for you"))
    with pytest.raises(PermissionDeniedError, match="not for you"):
        await client.cost.get(start_time=START, end_time=END)


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        (datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T00:00:00Z"),
        (datetime(2026, 1, 1, 2, 3, 4, 500, tzinfo=UTC), "2026-01-01T02:03:04.000500Z"),
        (datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=9))), "2026-01-01T00:00:00+09:00"),
        (datetime(2026, 1, 1), "2026-01-01T00:00:00"),  # noqa: DTZ001  # what is tested
    ],
    ids=["UTC", "microseconds", "offset", "naive"],
)
async def test_times_are_sent_as_they_are_with_utc_as_z(
    client: AsyncFriendli, server: FriendliServer, moment: datetime, sent: str
) -> None:
    server.always(json_body({"data": []}))
    await client.cost.get(start_time=moment, end_time=moment)
    assert server.requests[0].query["start_time"] == server.requests[0].query["end_time"] == [sent]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"start_time": "yesterday"}, "start_time"),
        ({"end_time": None}, "end_time"),
        ({"start_time": date(2026, 1, 1)}, "start_time"),
        ({"models": "m"}, "models"),
        ({"group_by": ["model", 3]}, "group_by[1]"),
        ({"bucket_width": 5}, "bucket_width"),
    ],
    ids=str,
)
async def test_a_bad_value_is_refused_with_its_place(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], place: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(place)}: "):
        client.usage.get(**{"start_time": START, "end_time": END, **options})
    assert server.requests == []


async def test_cost_and_usage_stand_at_the_root_with_token_and_team(server: FriendliServer) -> None:
    server.always(json_body({"data": []}))
    async with AsyncFriendli("test-token", team="team_1", server_url=f"{server.url}/prefix") as client:
        await client.cost.get(start_time=START, end_time=END)
        await client.with_options(team="team_2").usage.get(start_time=START, end_time=END)
    assert [request.path for request in server.requests] == ["/prefix/v1/team/cost", "/prefix/v1/team/usage"]
    assert [request.headers["x-friendli-team"] for request in server.requests] == ["team_1", "team_2"]
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer test-token"}


async def test_without_a_token_nothing_is_sent(server: FriendliServer) -> None:
    async with AsyncFriendli(server_url=server.url) as client:
        with pytest.raises(ConfigurationError, match="token"):
            await client.cost.get(start_time=START, end_time=END)
    assert server.requests == []


async def test_a_lost_reply_is_asked_for_again(server: FriendliServer) -> None:
    server.enqueue(status(500, retry_after_ms=0), json_body(COSTS))
    async with AsyncFriendli("test-token", server_url=server.url) as client:
        page = await client.cost.get(start_time=START, end_time=END)
    assert [attempt.status for attempt in page.meta.attempts] == [500, 200]


# --- at the embedded server ------------------------------------------------------------------------------------------


async def test_all_days_are_there_once_over_all_pages(client: AsyncFriendli, server: FriendliServer) -> None:
    end = START + timedelta(days=20)
    buckets = [
        bucket async for bucket in client.cost.get(start_time=START, end_time=end, group_by="line_item", limit=7)
    ]
    assert [bucket.start_time for bucket in buckets] == [START + timedelta(days=day) for day in range(20)]
    assert all(result.line_item for bucket in buckets for result in bucket.results)
    assert len(server.requests) == 3


async def test_usage_is_split_by_what_was_asked_for(client: AsyncFriendli) -> None:
    hours = client.usage.get(
        start_time=START,
        end_time=START + timedelta(hours=10),
        bucket_width="1h",
        limit=4,
        group_by=["model"],
        models=["friendli-testing"],
    )
    buckets = [bucket async for bucket in hours]
    assert len(buckets) == 10
    assert {result.model for bucket in buckets for result in bucket.results} == {"friendli-testing"}


async def test_a_page_longer_than_there_are_is_refused_by_the_server(client: AsyncFriendli) -> None:
    with pytest.raises(UnprocessableEntityError, match="limit"):
        await client.cost.get(start_time=START, end_time=END, limit=36)


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        ("12.340", "12.340"),
        (12.34, "12.34"),
        (3, "3"),
        (0.0, "0.0"),
        (1e-7, "0.0000001"),
        (2.5e20, "250000000000000000000"),
        ("1e-7", "0.0000001"),
        ("1.5E+3", "1500"),
        ("1e999999999", "1e999999999"),
        ("never", "never"),
        ("1,234.50", "1,234.50"),
        ({"amount": "1.50", "currency": "USD"}, "1.50"),
        ({"value": 1e-5}, "0.00001"),
        (123456789012345678901234567890, "123456789012345678901234567890"),
    ],
    ids=str,
)
def test_amounts_are_text_whatever_the_server_writes(written: object, amount: str) -> None:
    bucket = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-02T00:00:00Z"}
    results = [{"total": written, "quantity": written, "unit_price": None}]
    page = msgspec.convert({"data": [{**bucket, "results": results}]}, CostPage)
    (result,) = page.data[0].results
    assert (result.total, result.quantity, result.unit_price) == (amount, amount, None)


def cost_page(result: str, **more: str) -> bytes:
    bucket = f'{{"start_time":"2026-01-01T00:00:00Z","end_time":"2026-01-02T00:00:00Z","results":[{result}]}}'
    rest = "".join(f',"{name}":{value}' for name, value in more.items())
    return f'{{"data":[{bucket}]{rest}}}'.encode()


@pytest.mark.parametrize("total", ["null", "1e400", "{}", '{"currency":"USD"}', '{"amount":null}'])
async def test_an_amount_that_is_none_is_an_error_and_no_row_is_dropped(total: str) -> None:
    page = cost_page(f'{{"total":"1"}},{{"total":{total},"quantity":"2"}}')
    async with saying(reply(page)) as server, client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError, match=r"total|amount|range"):
            await client.cost.get(start_time=START, end_time=END)


async def test_a_row_without_its_total_is_an_error() -> None:
    async with saying(reply(cost_page('{"quantity":"2"}'))) as server, client_of(server.url) as client:
        with pytest.raises(ResponseDecodeError, match="total"):
            await client.cost.get(start_time=START, end_time=END)


@pytest.mark.parametrize(("told", "more"), [('"true"', True), ('"false"', False), ("1", True), ("0", False)])
async def test_whether_there_is_more_is_read_however_it_is_written(told: str, more: bool) -> None:
    page = cost_page('{"total":1}', has_more=told, next_page='"p2"')
    async with saying(reply(page)) as server, client_of(server.url) as client:
        found = await client.cost.get(start_time=START, end_time=END)
    assert (found.has_more, found.next_page) == (more, "p2")


@pytest.mark.parametrize("written", ["1767225600", "1767225600000", '"2026-01-01T00:00:00Z"', "1767225600.0"])
async def test_times_are_read_however_they_are_written(written: str) -> None:
    page = cost_page('{"total":1}').replace(b'"2026-01-01T00:00:00Z"', written.encode())
    async with saying(reply(page)) as server, client_of(server.url) as client:
        found = await client.cost.get(start_time=START, end_time=END)
    assert found.data[0].start_time == datetime(2026, 1, 1, tzinfo=UTC)


async def test_parts_of_a_gpus_time_are_kept() -> None:
    usage = '{"gpu_usage":{"H100":1.5},"reserved_gpu_usage":{"H100":2}}'
    async with saying(reply(cost_page(usage))) as server, client_of(server.url) as client:
        found = await client.usage.get(start_time=START, end_time=END)
    result: Any = found.data[0].results[0]
    assert (result.gpu_usage, result.reserved_gpu_usage) == ({"H100": 1.5}, {"H100": 2})
