"""State that the calls of a client share for pacing: rate-limit holds and the retry budget."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Final, NamedTuple, TypeGuard

from friendli_async.errors import APIStatusError, status_class
from friendli_async.options import Pacing, RetryPolicy
from friendli_async.replies import Meta

_OVERLOAD_STATUSES: Final = frozenset({429, 503})
"""Statuses of a server that has too much to do."""
_RETRY_COST: Final = 10  # a success gives 1 back
_LONG_HOLD: Final = 5.0
"""Seconds from which on a hold is logged as a warning: people who wait for an answer notice it."""
_SWEEP_SECONDS: Final = 1.0
"""Between two removals of the holds that are over."""

on_rejection: Final[ContextVar[Callable[[APIStatusError, float | None], float | None] | None]] = ContextVar(
    "friendli_async_on_rejection", default=None
)
"""Called at each rejection by load of a call in this context, with the seconds until the next attempt, or None if there
is none; returns the same, or more seconds, or None. So a bulk run learns of rejections before the retries are over."""


def is_rejected_by_load(error: BaseException | None) -> TypeGuard[APIStatusError]:
    """Whether an error is a rejection by a server that has too much to do."""
    return isinstance(error, APIStatusError) and error.status_code in _OVERLOAD_STATUSES


def report_rejection(error: APIStatusError, wait: float | None) -> float | None:
    """Reports a rejection by load to ``on_rejection``; returns the seconds until the next attempt, or None."""
    report = on_rejection.get()
    return wait if report is None else report(error, wait)


class LimitScope(NamedTuple):
    """What a rate limit applies to. Each team and each token has limits of its own."""

    base: str
    """Base URL of the deployment."""
    model: str | None
    """The model, if the call names one."""
    account: Hashable = None
    """Whom the call is billed to: see ``protocol.RequestBuilder.account``."""


class Hold(NamedTuple):
    """A rate-limit hold: pauses new calls of a scope, or fails them if they cannot wait for so long."""

    until: float
    """Loop time of its end. Loops of asyncio share one clock, the system's monotonic clock."""
    seconds: float
    """Its whole length, which bounds ``remaining`` should a loop have another clock."""
    retry_after: float
    """The server's ``Retry-After``: longer than ``seconds`` if ``max_retry_after`` ends the hold earlier."""
    status: int
    message: str

    def remaining(self, now: float) -> float:
        """Returns the seconds left; 0 once it is over."""
        return max(0.0, min(self.until - now, self.seconds))

    def delay(self, now: float) -> float:
        """Returns what is left of the ``Retry-After``, which may be more than what is left of the hold.

        A call that waits, waits for all of it. The hold only ends earlier for calls that begin then.
        """
        return self.remaining(now) + (self.retry_after - self.seconds)  # without parentheses, rounding might make it 0

    def to_error(self, wait: float, waited: float, limit: str, meta: Meta) -> APIStatusError:
        """Returns the error of a call that cannot wait for so long, with the server's message to the earlier call.

        Args:
            wait: The seconds that the call would have to wait.
            waited: The seconds that earlier holds have made it wait.
            limit: The name of the limit that is exceeded.
            meta: The metadata of the call.
        """
        after = f", after {waited:.1f} s of waiting" if waited else ""
        error = status_class(self.status)(
            f"not sent: a rate limit asks to wait for {wait:.1f} s more{after}, longer than {limit} allows "
            f"(response to an earlier call: {self.message})",
            status_code=self.status,
            retry_after=wait,
        )
        error.meta = meta
        return error


def exceeded_limit(wait: float, waited: float, policy: RetryPolicy, time_left: float | None) -> str | None:
    """Returns the limit that a call would exceed by waiting for a hold, or None.

    Before it is sent, a call waits for no longer than one that is sent and rejected in each of its attempts.

    Args:
        wait: The seconds that the call would have to wait.
        waited: The seconds that earlier holds have made it wait.
        policy: The policy of the call.
        time_left: The seconds until its total timeout, or None.
    """
    if wait > policy.max_retry_after:
        return "max_retry_after"
    if wait + waited > policy.max_attempts * policy.max_retry_after:
        return "max_attempts times max_retry_after"
    return "total" if time_left is not None and wait >= time_left else None


class Pace:
    """Holds and retry budget of a client, shared by its event loops.

    Each update is a single operation on a dict or a number. An update lost to a race between threads costs, or saves,
    one request.

    Attributes:
        holds: Rate-limit holds; empty until a server sends a Retry-After.
        spent: Tenths of a retry that were taken out of the budget and not given back by successes.
    """

    def __init__(self) -> None:
        self.holds: dict[LimitScope, Hold] = {}
        self.spent: int = 0
        self._swept = -math.inf  # the loop time when those that were over were last removed

    def start_hold(self, scope: LimitScope, error: APIStatusError, policy: RetryPolicy, now: float) -> bool:
        """Starts a hold after a rejection by load, if it has a Retry-After; returns whether it is a new and long one.

        The ``max_retry_after`` of the policy bounds the hold, so that the server is asked again after a longer wait.

        Args:
            scope: The scope of the call.
            error: The rejection.
            policy: The policy of the call.
            now: The time of the call's loop.
        """
        retry_after = error.retry_after
        if not retry_after:
            return False
        if abs(now - self._swept) >= _SWEEP_SECONDS:  # not each time: each user of a service may have a hold
            self._swept = now
            for other, hold in list(self.holds.items()):
                if hold.until <= now:
                    self.holds.pop(other, None)
        seconds = min(retry_after, policy.max_retry_after)
        present = self.holds.get(scope)
        if present is None or present.until < now + seconds:
            self.holds[scope] = Hold(now + seconds, seconds, retry_after, error.status_code, error.message)
        return seconds >= _LONG_HOLD and (present is None or not present.remaining(now))

    def active_hold(self, scope: LimitScope, now: float) -> Hold | None:
        """Returns the hold that pauses new calls of a scope, or None."""
        hold = self.holds.get(scope)
        return hold if hold is not None and hold.remaining(now) else None

    def take_retry(self, pacing: Pacing) -> bool:
        """Takes a retry out of the budget; returns False if none is left."""
        if pacing.obey is None or pacing.retry_budget is None:
            return True
        if self.spent + _RETRY_COST > pacing.retry_budget * _RETRY_COST:
            return False
        self.spent += _RETRY_COST
        return True

    def record_success(self) -> None:
        """Returns a tenth of a retry to the budget."""
        self.spent = max(0, self.spent - 1)


def jitter(policy: RetryPolicy) -> float:
    """Returns a random delay to add to a Retry-After, so that the calls that wait for it do not all resume at once.

    The ``initial`` and the ``max_wait`` of the policy bound it.
    """
    return random.uniform(0.0, min(policy.max_wait, policy.initial))
