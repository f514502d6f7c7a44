"""A limit on what several calls may use together."""

from __future__ import annotations

import logging
from threading import Lock

from friendli_async.errors import UsageLimitError
from friendli_async.options import check_count, plain_number
from friendli_async.replies import Usage, add_usage

__all__ = ["UsageLimit"]

_logger = logging.getLogger("friendli_async")


class UsageLimit:
    """Limits what the calls of a client use together: ``client.with_options(usage_limit=UsageLimit(...))``.

    It counts the calls that run a model, of any API, and their usage, which a server reports at the end of an answer.
    Once a maximum is reached, a new call raises ``UsageLimitError``, and nothing is sent. Calls in flight go on. So the
    usage can end above the maximum, by the answers that were in flight when it was reached.

    One limit may be shared by any number of clients, event loops and threads. A new one starts from zero.

    Args:
        max_calls: Maximum number of calls. A retry is not another call, but each turn of a run is one.
        max_total_tokens: Maximum number of tokens of prompts and answers.
        max_completion_tokens: Maximum number of tokens of answers, reasoning included.

    Attributes:
        calls: Number of calls so far, including those in flight.
        usage: The usage so far, as far as the server has reported it.
        unreported: Number of answers without a reported usage, which is missing in ``usage``: of streams that were left
            early, and of servers that report none. The first of a complete answer is logged as a WARNING.

    Raises:
        ConfigurationError: A maximum is not a whole number above 0.
    """

    def __init__(
        self,
        *,
        max_calls: int | None = None,
        max_total_tokens: int | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        given = {
            "max_calls": max_calls,
            "max_total_tokens": max_total_tokens,
            "max_completion_tokens": max_completion_tokens,
        }
        self._maxima: dict[str, int] = {}
        for name, maximum in given.items():
            if maximum is not None:
                self._maxima[name] = plain_number(maximum)
                check_count(f"UsageLimit.{name}", self._maxima[name])
        self.calls: int = 0
        self.usage: Usage = Usage()
        self.unreported: int = 0
        self._lock = Lock()
        self._has_warned = False

    def __repr__(self) -> str:
        maxima = "".join(f", {name}={maximum}" for name, maximum in self._maxima.items())
        return f"<UsageLimit calls={self.calls}, total_tokens={self.usage.total_tokens}{maxima}>"

    def begin_call(self) -> None:
        """Counts a call that starts now. The client does this itself, and ``end_answer``, too.

        Both are public for calls by other means, such as another library.

        Raises:
            UsageLimitError: A maximum is reached.
        """
        with self._lock:
            for name, maximum in self._maxima.items():
                measure = name.removeprefix("max_")
                used: int = self.calls if measure == "calls" else getattr(self.usage, measure)
                if used >= maximum:
                    message = f"the usage limit is reached: {used:,} {measure.replace('_', ' ')} of {maximum:,}"
                    raise UsageLimitError(message, usage=self.usage)
            self.calls += 1

    def end_answer(self, usage: Usage | None, *, is_complete: bool) -> None:
        """Counts the usage of an answer; None if the server has not reported it.

        ``is_complete`` is whether the answer was read to its end, where servers report it.
        """
        with self._lock:
            if usage is not None:
                self.usage = add_usage(self.usage, usage)
                return
            self.unreported += 1
            if self._has_warned or not is_complete:
                return
            self._has_warned = True
        _logger.warning("the server reports no usage of an answer, so it does not count towards the usage limit")
