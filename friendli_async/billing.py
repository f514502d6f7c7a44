"""Billing: the costs and the usage of a team, in time buckets.

Wire: ``GET /v1/team/cost`` and ``GET /v1/team/usage``, paginated, at the root of the API (no deployment prefix).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import ExtraQuery, Parameters
from friendli_async._core.pages import Listing, PageFormat, Pages
from friendli_async._core.resource import Resource, operation
from friendli_async._help import document_fields
from friendli_async.replies import Reply, Value, always_encoded

__all__ = ["CostBucket", "CostPage", "CostResult", "ProductType", "UsageBucket", "UsagePage", "UsageResult"]
__all__ += ["CostOptions", "TeamCost", "TeamUsage", "UsageOptions"]

ProductType = Literal["model_apis", "dedicated_endpoints"] | str  # open: a new product must not break old clients

# --- replies ---------------------------------------------------------------------------------------------------------


if TYPE_CHECKING:
    _Amount = str
    _Count = int
    _Flag = bool
else:  # servers have also sent amounts as numbers; fractional counts are kept as they are; a flag may be absent
    _Amount = str | int | float | dict[str, Any]  # the last to be rejected below, or the lenient decoding drops the row
    _Count = int | float
    _Flag = bool | None


class CostResult(Value, frozen=True, kw_only=True):
    """One cost of a bucket. Amounts are decimal text, whether the server sent text or numbers."""

    total: _Amount
    """Total cost."""
    quantity: _Amount | None = None
    unit_price: _Amount | None = None
    line_item: str | None = None
    """The line item, if the costs are grouped by it."""

    def __post_init__(self) -> None:
        for name in ("total", "quantity", "unit_price"):
            value: object = getattr(self, name)
            if isinstance(value, dict) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError("an amount must be a number")
            if isinstance(value, int | float):
                msgspec.structs.force_setattr(self, name, str(value))


class CostBucket(Value, frozen=True, kw_only=True):
    """The costs of a time span."""

    start_time: datetime
    end_time: datetime
    results: tuple[CostResult, ...] = always_encoded(())


class _Page(Reply, frozen=True, kw_only=True):
    """Base of the pages."""

    data: tuple[Any, ...]
    has_more: _Flag = always_encoded(cast("_Flag", None))
    """Whether another page follows. If the server does not say so, ``next_page`` does."""
    next_page: str | None = None
    """The ``page`` to request next."""

    def __post_init__(self) -> None:
        if cast("object", self.has_more) is None:
            msgspec.structs.force_setattr(self, "has_more", bool(self.next_page))


class CostPage(_Page, frozen=True, kw_only=True):
    """One page of costs."""

    data: tuple[CostBucket, ...]


class UsageResult(Value, frozen=True, kw_only=True):
    """The usage in a bucket, for one of the requested groups."""

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
    """The usage in a time span."""

    start_time: datetime
    end_time: datetime
    results: tuple[UsageResult, ...] = always_encoded(())


class UsagePage(_Page, frozen=True, kw_only=True):
    """One page of usage."""

    data: tuple[UsageBucket, ...]


# --- parameters ------------------------------------------------------------------------------------------------------


@document_fields
class CostOptions(ExtraQuery, total=False):
    """Optional parameters of a cost query. Omitted ones and None are left to the server."""

    bucket_width: Literal["1d"] | str | None  # open
    """Time span of a bucket."""
    limit: int | None
    """Maximum number of buckets per page, 1 to 35."""
    page: str | None
    """Where to start: the ``next_page`` of an earlier page."""
    group_by: Literal["line_item"] | str | None  # open
    """How to group the costs of a bucket."""


@document_fields
class UsageOptions(ExtraQuery, total=False):
    """Optional parameters of a usage query. Omitted ones and None are left to the server."""

    bucket_width: Literal["5m", "15m", "30m", "45m", "1h", "6h", "12h", "1d"] | str | None  # open
    """Time span of a bucket."""
    limit: int | None
    """Maximum number of buckets per page; the allowed maximum depends on their width."""
    page: str | None
    """Where to start: the ``next_page`` of an earlier page."""
    group_by: Sequence[Literal["model", "product_type", "user_id"] | str] | None  # open
    """How to group the usage of a bucket."""
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


_RANGE: Final = {"start_time": datetime, "end_time": datetime}
_PAGES: Final = PageFormat(
    cursor="page",
    items=lambda page: page.data,
    following=lambda page: page.next_page or "" if page.has_more else None,
)
_COST: Final[Listing[CostBucket, CostPage]] = Listing(
    operation("cost.get", "GET /v1/team/cost", CostPage), Parameters(CostOptions, _RANGE), _PAGES
)
_USAGE: Final[Listing[UsageBucket, UsagePage]] = Listing(
    operation("usage.get", "GET /v1/team/usage", UsagePage), Parameters(UsageOptions, _RANGE), _PAGES
)

# --- the resources ---------------------------------------------------------------------------------------------------


class TeamCost(Resource):
    """Costs of the team: ``client.cost``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its name. Nothing was sent.
        FriendliError: A call failed; raised when the list is used. See ``friendli_async.errors``.
    """

    def get(
        self, *, start_time: datetime, end_time: datetime, **options: Unpack[CostOptions]
    ) -> Pages[CostBucket, CostPage]:
        """Returns the costs between two times, in buckets.

        Args:
            start_time: Start of the range. A datetime without a time zone is sent without one.
            end_time: End of the range.
            options: See ``CostOptions``.

        Returns:
            The buckets. ``async for`` iterates over all of them, ``pages()`` over pages; ``await`` gives one page.
        """
        return _COST.of(self._engine, {"start_time": start_time, "end_time": end_time}, options)


class TeamUsage(Resource):
    """Usage of the team: ``client.usage``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its name. Nothing was sent.
        FriendliError: A call failed; raised when the list is used. See ``friendli_async.errors``.
    """

    def get(
        self, *, start_time: datetime, end_time: datetime, **options: Unpack[UsageOptions]
    ) -> Pages[UsageBucket, UsagePage]:
        """Returns the usage between two times, in buckets.

        Args:
            start_time: Start of the range. A datetime without a time zone is sent without one.
            end_time: End of the range.
            options: See ``UsageOptions``.

        Returns:
            The buckets. ``async for`` iterates over all of them, ``pages()`` over pages; ``await`` gives one page.
        """
        return _USAGE.of(self._engine, {"start_time": start_time, "end_time": end_time}, options)
