"""Rate limits of the embedded server: headers and 429 replies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from friendli_async.testing.arguments import check_integer
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
    values = {
        "limit": limit,
        "remaining": remaining,
        "reset": f"{reset:g}s" if isinstance(reset, float | int) else reset,
    }
    return {f"x-ratelimit-{name}-{kind}": str(value) for name, value in values.items() if value is not None}


class Limiter:
    """Limits the requests per minute, in windows that start with a request.

    Args:
        requests: The limit.
    """

    def __init__(self, requests: int) -> None:
        check_integer("rate_limit", requests, least=1)
        self._requests = requests
        self._remaining = 0
        self._resets_at = -math.inf

    def admit(self, now: float) -> Script | None:
        """Count a request; return the error reply if it exceeds the limit.

        Args:
            now: Seconds on a monotonic clock.
        """
        if now >= self._resets_at:
            self._remaining, self._resets_at = self._requests, now + _WINDOW
        if not self._remaining:
            delay = math.ceil(self._resets_at - now)
            return self.telling(status(429, retry_after=delay, message="too many requests a minute"), now)
        self._remaining -= 1
        return None

    def telling(self, script: Script, now: float) -> Script:
        """Return the reply with the headers of the limit added."""
        reset = round(self._resets_at - now, 3)
        headers = rate_limit_headers(limit=self._requests, remaining=self._remaining, reset=reset)
        return replace(script, headers=(*script.headers, *headers.items()))
