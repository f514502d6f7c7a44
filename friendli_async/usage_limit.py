"""A limit on what several calls may use together."""

from __future__ import annotations

import logging
from typing import Final, NoReturn, cast

from friendli_async._hints import shortened
from friendli_async._locks import lock_over_forks
from friendli_async.errors import ArgumentError, ConfigurationError, UsageLimitError
from friendli_async.options import check_count
from friendli_async.replies import AnyUsage, Usage, add_usage, as_chat_usage

__all__ = ["UsageLimit"]

_logger: Final = logging.getLogger("friendli_async")
_lock: Final = lock_over_forks()
"""Held by all limits while they count. It is reentrant, and one for all, because the garbage collector may run while it
is held, and close a stream, which counts in its own limit."""


class UsageLimit:
    """Limits what the calls of a client use together: ``client.with_options(usage_limit=UsageLimit(...))``.

    It counts the calls that run a model, of any API, and their usage, which a server reports at the end of an answer.
    Once a maximum is reached, nothing more is sent: a new call raises ``UsageLimitError``, and so does one that waits
    for a connection, a rate limit or its retry, if the maximum is one of tokens. Answers in flight are not cut. So the
    usage can end above the maximum, by the answers that were in flight when it was reached.

    One limit may be shared by any number of clients, event loops and threads, but not by processes: a forked one counts
    on its own. A new one starts from zero; pass what has been used before, by another process, to ``add``.

    Args:
        within: Another limit, in which the same calls count, too: that of a tenant, for the limit of one request.
        max_calls: Maximum number of calls. A retry is not another call, but each turn of a run is one, and each
            answer that ``parse`` asks for.
        max_total_tokens: Maximum number of tokens of prompts and answers.
        max_prompt_tokens: Maximum number of tokens of prompts, cached ones included.
        max_completion_tokens: Maximum number of tokens of answers, reasoning included.

    Attributes:
        calls: Number of calls so far, including those in flight and those that failed, but not those that never began
            their first attempt: a limit refused them, or they ended while they waited for a rate limit.
        usage: The usage so far, as far as the server has reported it.
        unreported: Number of answers whose usage is missing in ``usage``, all or part of it: of streams that were left
            early or broke, and of servers that report none. The first of a complete answer is logged as a WARNING. A
            call that timed out or was cancelled before its answer began is not among them, but a server may bill it.

    Raises:
        ConfigurationError: A maximum is not a whole number, or is negative, or ``within`` is not a limit.
    """

    def __init__(
        self,
        *,
        within: UsageLimit | None = None,
        max_calls: int | None = None,
        max_total_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        # First what the repr needs: a debugger shows it if the rest fails.
        self.calls: int = 0
        self.usage: Usage = Usage()
        self.unreported: int = 0
        self._maxima: dict[str, int] = {}
        self._has_warned = False
        if within is not None and not isinstance(within, UsageLimit):
            raise ConfigurationError(f"UsageLimit.within must be a UsageLimit or None, not {within!r}")
        self._chain: tuple[UsageLimit, ...] = (self,) if within is None else (self, *within._chain)
        given = {
            "calls": max_calls,
            "total_tokens": max_total_tokens,
            "prompt_tokens": max_prompt_tokens,
            "completion_tokens": max_completion_tokens,
        }
        for measure, maximum in given.items():
            if maximum is not None:
                self._maxima[measure] = maximum
                check_count(f"UsageLimit.max_{measure}", maximum, least=0)

    def __repr__(self) -> str:
        maxima = "".join(f", max_{measure}={maximum}" for measure, maximum in self._maxima.items())
        return f"<UsageLimit calls={self.calls}, total_tokens={self.usage.total_tokens}{maxima}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a UsageLimit cannot be copied or pickled: the copy would not count the same calls")

    def _begin_call(self) -> None:
        """Counts a call that starts now.

        Raises:
            UsageLimitError: A maximum is reached.
        """
        with _lock:
            self._check_usage()
            for limit in self._chain:
                self._check(limit, "calls", limit.calls)
            for limit in self._chain:
                limit.calls += 1

    def _take_call_back(self) -> None:
        """Does not count a call any more, of which nothing was sent."""
        with _lock:
            for limit in self._chain:
                limit.calls -= 1

    def _check_usage(self) -> None:
        """Checks the maxima of tokens: before anything is sent, as calls may wait.

        Raises:
            UsageLimitError: One of them is reached.
        """
        for limit in self._chain:
            usage = limit.usage
            self._check(limit, "total_tokens", usage.total_tokens)
            self._check(limit, "prompt_tokens", usage.prompt_tokens)
            self._check(limit, "completion_tokens", usage.completion_tokens)

    def _check(self, limit: UsageLimit, measure: str, used: int) -> None:
        """Checks one maximum of this limit, or of one that it is within."""
        maximum = limit._maxima.get(measure)
        if maximum is not None and used >= maximum:
            message = f"the usage limit is reached: {used:,} {measure.replace('_', ' ')} of {maximum:,}"
            if limit is not self:
                message += f" (of its {'.'.join(['within'] * self._chain.index(limit))})"
            raise UsageLimitError(message, usage=limit.usage)

    def add(self, usage: AnyUsage | None) -> None:
        """Counts a usage that the client does not count itself, such as that of another process.

        Args:
            usage: The ``usage`` of a reply of any API; None if the server has not reported it.

        Raises:
            ArgumentError: It is no usage.
        """
        self._add_answer(usage)

    def _add_answer(self, usage: AnyUsage | None, *, is_complete: bool = True) -> None:
        """Counts the usage of an answer, read to its end or not: before that, servers report none, or a part of it."""
        if usage is not None and not isinstance(cast("object", usage), AnyUsage):
            raise ArgumentError(f"Expected a usage, got {shortened(usage)}", "usage")
        used = as_chat_usage(usage)
        with _lock:
            for limit in self._chain:
                limit._add(used, is_complete)
            outermost = self._chain[-1]  # it warns once, while many short-lived limits may be within it
            is_to_warn = used is None and is_complete and not outermost._has_warned
            outermost._has_warned |= is_to_warn
        if is_to_warn:
            _logger.warning(
                "an answer has no usage: its tokens do not count towards the usage limit "
                "(a stream has it only with stream_options.include_usage, which the client sends by default)"
            )

    def _add(self, usage: Usage | None, is_complete: bool) -> None:
        if usage is None or not is_complete:
            self.unreported += 1
        before, total = None, self.usage
        while self.usage is not before:  # the garbage collector has closed a stream meanwhile, which counts
            before = self.usage
            total = add_usage(before, usage)
        self.usage = total
