"""Rate limits of the embedded server: headers that tell of them, and requests that are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

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
    """Give the headers that tell of a limit, for `status`, `json_body` and `script`.

    Args:
        limit: How many are allowed in a window.
        remaining: How many are left.
        reset: When there are all again: seconds, or any text.
        kind: What is limited: `requests`, `tokens` or `steps`.
    """
    values = {
        "limit": limit,
        "remaining": remaining,
        "reset": f"{reset:g}s" if isinstance(reset, float | int) else reset,
    }
    return {f"x-ratelimit-{name}-{kind}": str(value) for name, value in values.items() if value is not None}


class Limiter:
    """Allows so many requests a minute, counted from the first of each minute's.

    Args:
        requests: How many.
    """

    def __init__(self, requests: int) -> None:
        if requests < 1:
            raise ValueError(f"rate_limit must be at least 1, not {requests}")
        self._requests = requests
        self._left = 0
        self._resets_at = -math.inf

    def admit(self, now: float) -> Script | None:
        """Count a request; give the refusal where there are too many.

        Args:
            now: Seconds on a clock that never goes back.
        """
        if now >= self._resets_at:
            self._left, self._resets_at = self._requests, now + _WINDOW
        if not self._left:
            wait = math.ceil(self._resets_at - now)
            return self.telling(status(429, retry_after=wait, message="too many requests a minute"), now)
        self._left -= 1
        return None

    def telling(self, script: Script, now: float) -> Script:
        """Give the same reply with the headers that tell of the limit."""
        reset = round(self._resets_at - now, 3)
        headers = rate_limit_headers(limit=self._requests, remaining=self._left, reset=reset)
        return replace(script, headers=(*script.headers, *headers.items()))
