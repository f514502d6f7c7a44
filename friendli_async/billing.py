"""Billing: what a team has spent, and what it has used, in buckets of time.

Wire: ``GET /v1/team/cost`` and ``GET /v1/team/usage``, page by page. They stand at the API's root, below no deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, TypedDict, Unpack

import msgspec

from friendli_async._core.body.arguments import Arguments
from friendli_async._core.pages import PageQuery, Pages
from friendli_async._core.protocol import Operation
from friendli_async.replies import Reply, always

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "CostBucket",
    "CostOptions",
    "CostPage",
    "CostResult",
    "ProductType",
    "TeamCost",
    "TeamUsage",
    "UsageBucket",
    "UsageOptions",
    "UsagePage",
    "UsageResult",
]

ProductType = Literal["model_apis", "dedicated_endpoints"] | str  # open: a new product must not break old clients

# --- what comes back -------------------------------------------------------------------------------------------------


class CostResult(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """One sum of a bucket. Amounts are decimal numbers as text, exact as the server wrote them."""

    total: str
    """What it cost."""
    quantity: str | None = None
    unit_price: str | None = None
    line_item: str | None = None
    """What was paid for, where the costs are grouped by it."""


class CostBucket(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """What a stretch of time cost."""

    start_time: datetime
    end_time: datetime
    results: tuple[CostResult, ...] = always(())


class CostPage(Reply, frozen=True, kw_only=True):
    """One page of costs."""

    data: tuple[CostBucket, ...]
    has_more: bool = always(False)
    next_page: str | None = None
    """The ``page`` that goes on from here."""


class UsageResult(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """What was used in a bucket, by one of the groups that were asked for."""

    product_type: ProductType | None = None
    model: str | None = None
    user_id: str | None = None
    num_model_requests: int | None = None
    input_tokens: int | None = None
    input_cached_tokens: int | None = None
    output_tokens: int | None = None
    gpu_usage: dict[str, int] | None = None
    """By type of GPU."""
    reserved_gpu_usage: dict[str, int] | None = None
    """By type of GPU."""
    processed_audio_length_ms: int | None = None
    """In milliseconds."""


class UsageBucket(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """What was used in a stretch of time."""

    start_time: datetime
    end_time: datetime
    results: tuple[UsageResult, ...] = always(())


class UsagePage(Reply, frozen=True, kw_only=True):
    """One page of usage."""

    data: tuple[UsageBucket, ...]
    has_more: bool = always(False)
    next_page: str | None = None
    """The ``page`` that goes on from here."""


# --- what goes in ----------------------------------------------------------------------------------------------------


class CostOptions(TypedDict, total=False):
    """Optional parameters of a query for costs. What is left out, or None, is left to the server."""

    bucket_width: Literal["1d"] | str | None  # open
    """How much time a bucket covers."""
    limit: int | None
    """The most buckets of a page, 1 to 35."""
    page: str | None
    """The page to begin at: a ``next_page`` of before."""
    group_by: Literal["line_item"] | str | None  # open
    """What to split the costs of a bucket by."""
    extra_query: Mapping[str, object]
    """Further query parameters; they win over the others."""


class UsageOptions(TypedDict, total=False):
    """Optional parameters of a query for usage. What is left out, or None, is left to the server."""

    bucket_width: Literal["5m", "15m", "30m", "45m", "1h", "6h", "12h", "1d"] | str | None  # open
    """How much time a bucket covers."""
    limit: int | None
    """The most buckets of a page; how many there can be depends on their width."""
    page: str | None
    """The page to begin at: a ``next_page`` of before."""
    group_by: Sequence[Literal["model", "product_type", "user_id"] | str] | None  # open
    """What to split the usage of a bucket by."""
    models: Sequence[str] | None
    """Only these models."""
    user_ids: Sequence[str] | None
    """Only these users."""
    product_types: Sequence[ProductType] | None
    """Only these products."""
    gpu_types: Sequence[str] | None
    """Only these types of GPU."""
    capacity_types: Sequence[Literal["reservation"] | str] | None  # open
    """Only these kinds of capacity."""
    extra_query: Mapping[str, object]
    """Further query parameters; they win over the others."""


_TIMES: Final = {"start_time": datetime, "end_time": datetime}
_COST_QUERY: Final = PageQuery(CostOptions, _TIMES, cursor="page")
_USAGE_QUERY: Final = PageQuery(UsageOptions, _TIMES, cursor="page")
_COST: Final = Operation(method="GET", path="/v1/team/cost", reply=msgspec.json.Decoder(CostPage), repeatable=True)
_USAGE: Final = Operation(method="GET", path="/v1/team/usage", reply=msgspec.json.Decoder(UsagePage), repeatable=True)

# --- the resources ---------------------------------------------------------------------------------------------------


class TeamCost:
    """What the team has spent: ``client.cost``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(
        self, *, start_time: datetime, end_time: datetime, **options: Unpack[CostOptions]
    ) -> Pages[CostBucket, CostPage]:
        """The costs between two times, in buckets.

        Args:
            start_time: Where to begin. A time without a zone is sent without one.
            end_time: Where to end.
            options: See ``CostOptions``.

        Returns:
            The buckets: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its name.
            FriendliError: Once it is used: what went wrong with a call; see ``friendli_async.errors``.
        """
        query, begin = _COST_QUERY.encode("get", {"start_time": start_time, "end_time": end_time}, options)
        return Pages(
            self._engine,
            _COST,
            Arguments(query=query),
            cursor=_COST_QUERY.cursor,
            begin=begin,
            items=lambda page: page.data,
            following=_following,
        )


class TeamUsage:
    """What the team has used: ``client.usage``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(
        self, *, start_time: datetime, end_time: datetime, **options: Unpack[UsageOptions]
    ) -> Pages[UsageBucket, UsagePage]:
        """The usage between two times, in buckets.

        Args:
            start_time: Where to begin. A time without a zone is sent without one.
            end_time: Where to end.
            options: See ``UsageOptions``.

        Returns:
            The buckets: ``async for`` goes through them all, ``pages()`` through the pages, ``await`` gives one page.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its name.
            FriendliError: Once it is used: what went wrong with a call; see ``friendli_async.errors``.
        """
        query, begin = _USAGE_QUERY.encode("get", {"start_time": start_time, "end_time": end_time}, options)
        return Pages(
            self._engine,
            _USAGE,
            Arguments(query=query),
            cursor=_USAGE_QUERY.cursor,
            begin=begin,
            items=lambda page: page.data,
            following=_following,
        )


def _following(page: CostPage | UsagePage) -> str | None:
    return page.next_page if page.has_more else None
