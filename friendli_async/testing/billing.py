"""The embedded server's cost and usage: made-up figures for each time bucket, in pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from friendli_async.testing.frames import timestamp
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.route import InvalidRequestError, page_of
from friendli_async.testing.script import Script, json_body

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}
_LIMIT: Final = 7
_MAX_LIMIT: Final = {"cost": 35, "usage": 288}
_MODELS: Final = ("meta-llama-3.1-8b-instruct", "friendli-testing")
_LINE_ITEMS: Final = ("input_tokens", "output_tokens")
_GROUPS: Final = {"model": _MODELS, "product_type": ("model_apis", "dedicated_endpoints"), "user_id": ("user-1",)}


def cost(request: ReceivedRequest) -> Script:
    """Answer a cost request."""

    def results(day: int) -> list[dict[str, object]]:
        if request.values.get("group_by") != "line_item":
            return [{"total": f"{day + 1}.50", "quantity": None, "unit_price": None, "line_item": None}]
        return [
            {"total": f"{day + 1}.25", "quantity": str(day + 1), "unit_price": "1.25", "line_item": item}
            for item in _LINE_ITEMS
        ]

    return _page("cost", request.values, results)


def usage(request: ReceivedRequest) -> Script:
    """Answer a usage request."""
    query = request.values
    wanted: dict[str, Any] = {key: query.get(f"{key}s") for key in _GROUPS}
    groups: list[dict[str, Any]] = [dict.fromkeys(_GROUPS)]
    for key in cast("list[str]", query.get("group_by", [])):
        names = [name for name in _GROUPS[key] if wanted[key] is None or name in wanted[key]]
        groups = [{**group, key: name} for group in groups for name in names]

    def results(number: int) -> list[dict[str, object]]:
        return [
            {
                **group,
                "num_model_requests": number + 1,
                "input_tokens": 100 * (number + 1),
                "input_cached_tokens": 10,
                "output_tokens": 50 * (number + 1),
                "gpu_usage": {"NVIDIA H100": 60 * (number + 1)},
                "reserved_gpu_usage": {},
                "processed_audio_length_ms": 0,
            }
            for group in groups
        ]

    return _page("usage", query, results)


def _page(kind: str, query: Mapping[str, Any], results: Callable[[int], list[dict[str, object]]]) -> Script:
    start, end = (_parse_time(query[name]) for name in ("start_time", "end_time"))
    given: str = query.get("bucket_width") or "1d"
    width = timedelta(**{_UNITS[given[-1]]: int(given[:-1])})
    if end < start:
        raise InvalidRequestError("query", "end_time", "Input precedes start_time")
    shown, following = page_of(query, "page", -(-(end - start) // width), usual=_LIMIT, most=_MAX_LIMIT[kind])
    data = [
        {
            "start_time": timestamp(start + number * width),
            "end_time": timestamp(start + min((number + 1) * width, end - start)),
            "results": results(number),
        }
        for number in shown
    ]
    return json_body({"data": data, "has_more": following is not None, "next_page": following})


def _parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
