"""Billing: what a team has spent, and what it has used, in buckets of time.

Wire: ``GET /v1/team/cost`` and ``GET /v1/team/usage``, page by page. They stand at the API's root, below no deployment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import ExtraQuery
from friendli_async._core.pages import Listing, Pages
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.replies import Reply, Value, always

__all__ = ["CostBucket", "CostPage", "CostResult", "ProductType", "UsageBucket", "UsagePage", "UsageResult"]
__all__ += ["CostOptions", "TeamCost", "TeamUsage", "UsageOptions"]

ProductType = Literal["model_apis", "dedicated_endpoints"] | str  # open: a new product must not break old clients

# --- what comes back -------------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    _Amount = str
    _Count = int
else:  # servers have written numbers, too; and a part of a count is not dropped
    _Amount = str | int | float | dict[str, Any]
    _Count = int | float

_LONGEST: Final = 40  # digits: of what is longer an exponent is left as it is


def _plain(amount: object) -> str:
    """An amount as decimal digits. Raises ValueError where it is none."""
    if isinstance(amount, dict):  # {"amount": "1.50", "currency": "USD"}
        inside = cast("dict[str, object]", amount)
        found = (inside[name] for name in ("amount", "value", "total") if name in inside)
        amount = next(found, None)
    if isinstance(amount, float) and not math.isfinite(amount):
        raise ValueError("an amount must be finite")
    if not isinstance(amount, str | int | float) or isinstance(amount, bool):
        raise ValueError("an amount must be a number")
    text = str(amount)
    if "e" not in text.lower():
        return text
    from decimal import Decimal, InvalidOperation  # only where there is an exponent

    try:
        number = Decimal(text)
    except InvalidOperation:
        return text
    return f"{number:f}" if abs(number.adjusted()) < _LONGEST else text


class CostResult(Value, frozen=True, kw_only=True):
    """One sum of a bucket. Amounts are decimal numbers as text, whether the server wrote text or numbers."""

    total: _Amount
    """What it cost."""
    quantity: _Amount | None = None
    unit_price: _Amount | None = None
    line_item: str | None = None
    """What was paid for, where the costs are grouped by it."""

    def __post_init__(self) -> None:
        for name in ("total", "quantity", "unit_price"):
            if (value := getattr(self, name)) is not None and value != (text := _plain(value)):
                msgspec.structs.force_setattr(self, name, text)


class CostBucket(Value, frozen=True, kw_only=True):
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


class UsageResult(Value, frozen=True, kw_only=True):
    """What was used in a bucket, by one of the groups that were asked for."""

    product_type: ProductType | None = None
    model: str | None = None
    user_id: str | None = None
    num_model_requests: int | None = None
    input_tokens: int | None = None
    input_cached_tokens: int | None = None
    output_tokens: int | None = None
    gpu_usage: dict[str, _Count] | None = None
    """By type of GPU."""
    reserved_gpu_usage: dict[str, _Count] | None = None
    """By type of GPU."""
    processed_audio_length_ms: int | None = None
    """In milliseconds."""


class UsageBucket(Value, frozen=True, kw_only=True):
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


@described
class CostOptions(ExtraQuery, total=False):
    """Optional parameters of a query for costs. What is left out, or None, is left to the server."""

    bucket_width: Literal["1d"] | str | None  # open
    """How much time a bucket covers."""
    limit: int | None
    """The most buckets of a page, 1 to 35."""
    page: str | None
    """The page to begin at: a ``next_page`` of before."""
    group_by: Literal["line_item"] | str | None  # open
    """What to split the costs of a bucket by."""


@described
class UsageOptions(ExtraQuery, total=False):
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


_TIMES: Final = {"start_time": datetime, "end_time": datetime}
_COST: Final = Listing(
    operation("cost.get", "GET /v1/team/cost", CostPage, repeatable=True),
    CostOptions,
    _TIMES,
    cursor="page",
    items=lambda page: page.data,
    following=lambda page: page.next_page if page.has_more else None,
)
_USAGE: Final = Listing(
    operation("usage.get", "GET /v1/team/usage", UsagePage, repeatable=True),
    UsageOptions,
    _TIMES,
    cursor="page",
    items=lambda page: page.data,
    following=lambda page: page.next_page if page.has_more else None,
)

# --- the resources ---------------------------------------------------------------------------------------------------


class TeamCost(Resource):
    """What the team has spent: ``client.cost``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its name. Nothing was sent.
        FriendliError: What went wrong with a call, once the list is used; see ``friendli_async.errors``.
    """

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
        """
        return _COST.of(self._engine, {"start_time": start_time, "end_time": end_time}, options)


class TeamUsage(Resource):
    """What the team has used: ``client.usage``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its name. Nothing was sent.
        FriendliError: What went wrong with a call, once the list is used; see ``friendli_async.errors``.
    """

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
        """
        return _USAGE.of(self._engine, {"start_time": start_time, "end_time": end_time}, options)
