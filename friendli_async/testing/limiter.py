"""Rate limits of the embedded server: headers and 429 replies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from friendli_async.options import check_choice
from friendli_async.testing.script import Script, status

__all__ = ["Limiter", "rate_limit_headers"]

_WINDOW: Final = 60.0


def rate_limit_headers(
    *,
    limit: int | None = None,
    remaining: int | None = None,
    reset: float | str | None = None,
    kind: str = "requests",
) -> dict[str, str]:
    """Return the headers of a rate limit, for `status`, `json_body` and `script`.

    Args:
        limit: How many are allowed per window.
        remaining: How many remain.
        reset: When the limit resets: seconds, or any text.
        kind: The limited resource: `requests`, `tokens` or `steps`.
    """
    check_choice("kind", kind, ("requests", "tokens", "steps"))
    values = {
        "limit": limit,
        "remaining": remaining,
        "reset": f"{reset:g}s" if isinstance(reset, float | int) else reset,
    }
    return {f"x-ratelimit-{name}-{kind}": str(value) for name, value in values.items() if value is not None}


class Limiter:
    """Limits the requests per minute, in windows that start with a request."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._remaining = 0
        self._resets_at = -math.inf

    def answer(self, answer: Callable[[], Script], now: float) -> Script:
        """Count a request, and return its reply, with the headers of the limit: an error if it exceeds the limit.

        `answer` returns the reply of the API; `now` is in seconds on a monotonic clock.
        """
        if now >= self._resets_at:
            self._remaining, self._resets_at = self._requests, now + _WINDOW
        seconds = self._resets_at - now
        if self._remaining:
            self._remaining -= 1
            script = answer()
        else:
            script = status(429, retry_after=math.ceil(seconds), message="too many requests a minute")
        headers = rate_limit_headers(limit=self._requests, remaining=self._remaining, reset=round(seconds, 3))
        return replace(script, headers=(*script.headers, *headers.items()))
