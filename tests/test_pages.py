"""Paginated lists: what is requested, when, and where iteration ends."""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli, NotFoundError, RateLimitError, ResponseDecodeError
from friendli_async.testing import FriendliServer, json_body, status

TIMES: Final[dict[str, Any]] = {
    "start_time": datetime(2026, 1, 1, tzinfo=UTC),
    "end_time": datetime(2026, 1, 9, tzinfo=UTC),
}


def endpoints(*ids: str, cursor: object = None) -> Any:
    """A page of endpoints."""
    return json_body({"data": {each: {"status": "RUNNING"} for each in ids}, "nextCursor": cursor})


def costs(*totals: str, more: bool, page: str | None) -> Any:
    """A page of costs, one bucket each."""
    moment = "2026-01-01T00:00:00Z"
    data = [{"start_time": moment, "end_time": moment, "results": [{"total": total}]} for total in totals]
    return json_body({"data": data, "has_more": more, "next_page": page})


def queries(server: FriendliServer) -> list[dict[str, list[str]]]:
    return [{name: list(values) for name, values in request.query.items()} for request in server.requests]


async def test_items_of_all_pages_are_yielded_in_order(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("a", "b", cursor="2"), endpoints(cursor="3"), endpoints("c"))
    listed = client.dedicated.endpoint.list(project_id="p", limit=2)
    assert [endpoint.id async for endpoint in listed] == ["a", "b", "c"]
    fixed = {"project_id": ["p"], "limit": ["2"]}
    assert queries(server) == [fixed, fixed | {"cursor": ["2"]}, fixed | {"cursor": ["3"]}]


async def test_pages_yields_each_page_with_its_meta(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("a", cursor="2"), endpoints("b"))
    pages = [page async for page in client.dedicated.endpoint.list().pages()]
    assert [list(page.data) for page in pages] == [["a"], ["b"]]
    assert [page.meta.request_id for page in pages] == [request.request_id for request in server.requests]


async def test_awaiting_a_list_returns_only_the_first_page(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("a", cursor="2"))
    page = await client.dedicated.endpoint.list()
    assert (list(page.data), page.next_cursor) == (["a"], "2")
    assert len(server.requests) == 1


async def test_list_starts_at_the_given_cursor(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("c", cursor="4"), endpoints("d"), endpoints("c"))
    listed = client.dedicated.endpoint.list(cursor="3")
    assert [endpoint.id async for endpoint in listed] == ["c", "d"]
    await client.dedicated.endpoint.list(extra_query={"cursor": "=&?"})
    assert [query["cursor"] for query in queries(server)] == [["3"], ["4"], ["=&?"]]


async def test_pages_are_requested_lazily(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("a", "b", cursor="2"), endpoints("c"))
    listed = client.dedicated.endpoint.list()
    items = aiter(listed)
    assert server.requests == []
    assert [(await anext(items)).id, (await anext(items)).id] == ["a", "b"]
    assert len(server.requests) == 1
    assert (await anext(items)).id == "c"
    assert len(server.requests) == 2


async def test_each_use_of_a_list_starts_over(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(endpoints("a"))
    listed = client.dedicated.endpoint.list()
    assert [endpoint.id async for endpoint in listed] == [endpoint.id async for endpoint in listed] == ["a"]
    assert list((await listed).data) == list((await listed).data) == ["a"]
    assert len(server.requests) == 4


@pytest.mark.parametrize("last", [None, ""], ids=["null", "empty"])
async def test_page_without_a_cursor_is_the_last(
    client: AsyncFriendli, server: FriendliServer, last: str | None
) -> None:
    server.enqueue(endpoints("a", cursor=last))
    items = aiter(client.dedicated.endpoint.list())
    assert [endpoint.id async for endpoint in items] == ["a"]
    with pytest.raises(StopAsyncIteration):
        await anext(items)
    assert len(server.requests) == 1


@pytest.mark.parametrize(("start", "cursors"), [(None, ["2", "2"]), ("2", ["2"]), (None, ["2", "3", "2"])])
async def test_repeated_cursor_raises_after_the_items_so_far(
    client: AsyncFriendli, server: FriendliServer, start: str | None, cursors: list[str]
) -> None:
    server.enqueue(*(endpoints(str(index), cursor=cursor) for index, cursor in enumerate(cursors)))
    items = aiter(client.dedicated.endpoint.list(cursor=start))
    assert [(await anext(items)).id for _ in cursors] == [str(index) for index in range(len(cursors))]
    for _ in range(2):
        with pytest.raises(ResponseDecodeError, match="repeats the cursor") as caught:
            await anext(items)
        assert caught.value.meta is not None
        assert caught.value.meta.request_id == server.requests[-1].request_id
    assert len(server.requests) == len(cursors)


async def test_iterator_resumes_with_the_failed_page_after_an_error(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    server.enqueue(endpoints("a", cursor="2"), status(429), endpoints("b"))
    items = aiter(client.dedicated.endpoint.list())
    assert (await anext(items)).id == "a"
    with pytest.raises(RateLimitError):
        await anext(items)
    assert (await anext(items)).id == "b"
    assert [query.get("cursor") for query in queries(server)] == [None, ["2"], ["2"]]


@pytest.mark.parametrize("by_page", [False, True])
async def test_tasks_that_share_an_iterator_get_no_item_twice(
    client: AsyncFriendli, server: FriendliServer, by_page: bool
) -> None:
    server.enqueue(endpoints("a", "b", cursor="2"), endpoints("c"))
    listed = client.dedicated.endpoint.list()
    iterator: Any = listed.pages() if by_page else aiter(listed)
    first: Any
    second: Any
    first, second = await asyncio.gather(anext(iterator), anext(iterator), return_exceptions=True)
    assert (str(second), type(second)) == (
        "another task is already waiting for the next page of this list",
        RuntimeError,
    )
    rest = [each async for each in iterator]
    if by_page:
        assert [list(page.data) for page in (first, *rest)] == [["a", "b"], ["c"]]
    else:
        assert [endpoint.id for endpoint in (first, *rest)] == ["a", "b", "c"]
    assert len(server.requests) == 2


async def test_error_response_to_a_page_is_raised(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(status(404, message="no such endpoint"))
    history = client.dedicated.endpoint.get_version_history("ep_1")
    with pytest.raises(NotFoundError, match="no such endpoint"):
        await history
    with pytest.raises(NotFoundError, match="no such endpoint"):
        [version async for version in history]


async def test_costs_are_paginated_while_has_more_is_true(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(costs("1", more=True, page="p2"), costs("2", "3", more=False, page="p3"))
    totals = [bucket.results[0].total async for bucket in client.cost.get(**TIMES)]
    assert totals == ["1", "2", "3"]
    assert [query.get("page") for query in queries(server)] == [None, ["p2"]]


@pytest.mark.parametrize("page", [None, "", "p2"], ids=["null", "empty", "repeated"])
async def test_has_more_without_a_new_cursor_raises_after_the_items_so_far(
    client: AsyncFriendli, server: FriendliServer, page: str | None
) -> None:
    server.enqueue(costs("1", more=True, page="p2"), costs("2", more=True, page=page))
    buckets = aiter(client.cost.get(**TIMES))
    assert [(await anext(buckets)).results[0].total for _ in range(2)] == ["1", "2"]
    with pytest.raises(ResponseDecodeError, match="the list is not complete"):
        await anext(buckets)
    assert len(server.requests) == 2


NO_FLAG: Final[list[Any]] = [None, "yes", {}]
BUCKET: Final = {"start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-02T00:00:00Z", "results": []}


@pytest.mark.parametrize(
    ("fields", "cursor"),
    [
        *(({"next_page": page}, f"{page}") for page in ("p2", 2, 0)),
        *(({"has_more": flag, "next_page": "p2"}, "p2") for flag in (*NO_FLAG, True, 1, "true")),
        *(({"has_more": flag, "next_page": "p2"}, None) for flag in (False, 0, "false")),
        *(({"next_page": page}, None) for page in (None, "")),
        ({}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("group", ["cost", "usage"])
async def test_cursor_says_that_a_page_follows_where_the_server_does_not(
    client: AsyncFriendli, server: FriendliServer, group: str, fields: dict[str, Any], cursor: str | None
) -> None:
    server.enqueue(json_body({"data": [BUCKET], **fields}), json_body({"data": [BUCKET], "has_more": False}))
    pages: list[Any] = [page async for page in getattr(client, group).get(**TIMES).pages()]
    assert [page.has_more for page in pages] == ([False] if cursor is None else [True, False])
    assert [query["page"] for query in queries(server)[1:]] == ([] if cursor is None else [[cursor]])


async def test_blank_text_is_no_cursor(client: AsyncFriendli, server: FriendliServer) -> None:
    server.enqueue(endpoints("a", cursor=""))
    assert [endpoint.id async for endpoint in client.dedicated.endpoint.list()] == ["a"]
    assert len(server.requests) == 1


async def test_list_arguments_are_copied(client: AsyncFriendli, server: FriendliServer) -> None:
    empty = {"data": [], "has_more": True, "next_page": "p2"}
    server.enqueue(json_body(empty), json_body({"data": []}))
    models = ["m1"]
    pages = aiter(client.usage.get(**TIMES, models=models).pages())
    await anext(pages)
    models.append("m2")
    await anext(pages)
    assert [query["models"] for query in queries(server)] == [["m1"], ["m1"]]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"limit": "20"}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"cursor": b"abc"}, "cursor"),
        ({"cursor": "\ud83d"}, "cursor"),
        ({"project_id": 3}, "project_id"),
        ({"extra_query": {"cursor": 3}}, "cursor"),
        ({"extra_query": {"a": {}}}, "a"),
        ({"extra_query": [1]}, "extra_query"),
    ],
    ids=str,
)
async def test_invalid_value_is_rejected_at_the_call(
    client: AsyncFriendli, server: FriendliServer, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        client.dedicated.endpoint.list(**options)
    assert server.requests == []


async def test_unknown_keyword_is_rejected_at_the_call_with_a_suggestion(
    client: AsyncFriendli, server: FriendliServer
) -> None:
    with pytest.raises(TypeError, match="'limit'"):
        client.dedicated.endpoint.list(limitt=3)  # type: ignore[call-arg]  # the mistake under test
    with pytest.raises(TypeError, match=r"with_options\(timeout="):
        client.usage.get(**TIMES, timeout=3)  # type: ignore[call-arg]  # the mistake under test
    assert server.requests == []


async def test_none_and_omitted_arguments_are_not_sent(client: AsyncFriendli, server: FriendliServer) -> None:
    server.always(endpoints())
    await client.dedicated.endpoint.list()
    await client.dedicated.endpoint.list(project_id=None, limit=None, cursor=None)
    assert queries(server) == [{}, {}]
