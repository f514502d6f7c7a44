"""A limit on what several calls may use together."""

from __future__ import annotations

import logging
import os
from threading import RLock
from typing import Final, NoReturn

from friendli_async.errors import ConfigurationError, UsageLimitError
from friendli_async.options import check_count, plain_number
from friendli_async.replies import Usage, add_usage

__all__ = ["UsageLimit"]

_logger: Final = logging.getLogger("friendli_async")
_lock: Final = RLock()
"""Held by all limits while they count. It is reentrant, and one for all, because the garbage collector may run while it
is held, and close a stream, which counts in its own limit."""
if hasattr(os, "register_at_fork"):  # the child would inherit a lock that nobody releases
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class UsageLimit:
    """Limits what the calls of a client use together: ``client.with_options(usage_limit=UsageLimit(...))``.

    It counts the calls that run a model, of any API, and their usage, which a server reports at the end of an answer.
    Once a maximum is reached, a new call raises ``UsageLimitError``, and nothing is sent. Calls in flight go on. So the
    usage can end above the maximum, by the answers that were in flight when it was reached.

    One limit may be shared by any number of clients, event loops and threads, but not by processes: a forked one counts
    on its own. A new one starts from zero; pass what has been used before, by another process, to ``add``.

    Args:
        within: Another limit, in which the same calls count, too: that of a tenant, for the limit of one request.
        max_calls: Maximum number of calls. A retry is not another call, but each turn of a run is one.
        max_total_tokens: Maximum number of tokens of prompts and answers.
        max_completion_tokens: Maximum number of tokens of answers, reasoning included.

    Attributes:
        calls: Number of calls so far, including those in flight.
        usage: The usage so far, as far as the server has reported it.
        unreported: Number of answers without a reported usage, which is missing in ``usage``: of streams that were left
            early, and of servers that report none. The first of a complete answer is logged as a WARNING.

    Raises:
        ConfigurationError: A maximum is not a whole number above 0, or ``within`` is not a limit.
    """

    def __init__(
        self,
        *,
        within: UsageLimit | None = None,
        max_calls: int | None = None,
        max_total_tokens: int | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        given = {
            "max_calls": max_calls,
            "max_total_tokens": max_total_tokens,
            "max_completion_tokens": max_completion_tokens,
        }
        if within is not None and not isinstance(within, UsageLimit):
            raise ConfigurationError(f"UsageLimit.within must be a UsageLimit or None, not {within!r}")
        self._within = within
        self._maxima: dict[str, int] = {}
        for name, maximum in given.items():
            if maximum is not None:
                self._maxima[name] = plain_number(maximum)
                check_count(f"UsageLimit.{name}", self._maxima[name])
        self.calls: int = 0
        self.usage: Usage = Usage()
        self.unreported: int = 0
        self._has_warned = False

    def __repr__(self) -> str:
        maxima = "".join(f", {name}={maximum}" for name, maximum in self._maxima.items())
        return f"<UsageLimit calls={self.calls}, total_tokens={self.usage.total_tokens}{maxima}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a UsageLimit cannot be copied or pickled: the copy would not count the same calls")

    def begin_call(self) -> None:
        """Counts a call that starts now. The client does this itself.

        Raises:
            UsageLimitError: A maximum is reached.
        """
        with _lock:
            for name, maximum in self._maxima.items():
                measure = name.removeprefix("max_")
                used: int = self.calls if measure == "calls" else getattr(self.usage, measure)
                if used >= maximum:
                    message = f"the usage limit is reached: {used:,} {measure.replace('_', ' ')} of {maximum:,}"
                    raise UsageLimitError(message, usage=self.usage)
            if self._within is not None:
                self._within.begin_call()
            self.calls += 1

    def add(self, usage: Usage | None, *, is_complete: bool = True) -> None:
        """Counts the usage of an answer. The client does this itself for its calls.

        Args:
            usage: The usage; None if the server has not reported it.
            is_complete: Whether the answer was read to its end, where servers report it.
        """
        with _lock:
            if usage is None:
                self.unreported += 1
            else:
                before, total = None, self.usage
                while self.usage is not before:  # the garbage collector has closed a stream meanwhile, which counts
                    before = self.usage
                    total = add_usage(before, usage)
                self.usage = total
        if self._within is not None:
            self._within.add(usage, is_complete=is_complete)  # it warns: there may be many limits within it
        elif usage is None and is_complete and not self._has_warned:
            self._has_warned = True
            _logger.warning("the server reports no usage of an answer, so it does not count towards the usage limit")
