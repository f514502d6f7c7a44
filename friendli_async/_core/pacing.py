"""What the calls of one client learn from each other: when to come back, and whether to repeat at all."""

from __future__ import annotations

from collections.abc import Hashable
from random import random
from typing import Final, NamedTuple

from friendli_async.errors import APIStatusError, status_class
from friendli_async.options import Pacing, RetryPolicy

__all__ = ["Hold", "LimitScope", "Pace", "jitter"]

_BUSY: Final = frozenset({429, 503})
_A_RETRY: Final = 10  # successes give it back


class LimitScope(NamedTuple):
    """What a server limits, and whose limits they are: another team, or another token, has a budget of its own."""

    base: str
    """The base URL of a deployment."""
    model: str | None
    """The model, where the call names one."""
    account: Hashable = None
    """Who is billed: see ``protocol.Sender.account``."""


class Hold(NamedTuple):
    """What keeps new calls from a place."""

    until: float
    """On the clock of the loop whose call was refused. Loops of asyncio share one, the system's monotonic clock."""
    seconds: float
    """How long it was when it began: it is never longer, whatever the clock of another loop says."""
    status: int
    said: str

    def rest(self, now: float) -> float:
        """Seconds that are left of it; 0 where it is over."""
        return max(0.0, min(self.until - now, self.seconds))

    def refusal(self, rest: float, bound: str) -> APIStatusError:
        """The error of a call that cannot wait for so long: what the server said to another one."""
        return status_class(self.status)(
            f"not sent: the server told an earlier call to wait ({self.said}), for {rest:.3g} s more: beyond {bound}",
            status_code=self.status,
            retry_after=rest,
        )


class Pace:
    """The memory of a client, for all its loops.

    Each change is one operation on a dict or a number: one that gets lost between two threads costs one more request,
    or saves one.

    Attributes:
        holds: What keeps new calls from a place: empty until a server asks to wait.
        spent: What the retries have taken out of the budget and no success has given back, in tenths of a retry.
    """

    __slots__ = ("holds", "spent")

    def __init__(self) -> None:
        self.holds: dict[LimitScope, Hold] = {}
        self.spent: int = 0

    def refused(self, place: LimitScope, error: APIStatusError, policy: RetryPolicy, now: float) -> None:
        """A server has refused a call: if it said for how long, nothing new goes there before that.

        Args:
            place: Where the call went.
            error: What the server said.
            policy: Bounds the time.
            now: The time of the call's loop.
        """
        if error.status_code not in _BUSY or not error.retry_after:
            return
        for other, hold in tuple(self.holds.items()):
            if hold.until <= now:
                self.holds.pop(other, None)
        seconds = min(error.retry_after, policy.max_retry_after)
        present = self.holds.get(place)
        if present is None or present.until < now + seconds:
            self.holds[place] = Hold(now + seconds, seconds, error.status_code, error.message)

    def hold(self, place: LimitScope, now: float) -> Hold | None:
        """What keeps new calls from there; None where nothing does."""
        hold = self.holds.get(place)
        return hold if hold is not None and hold.rest(now) else None

    def may_retry(self, pacing: Pacing) -> bool:
        """Takes a retry out of the budget; False where none is left."""
        if pacing.obey is None or pacing.retry_budget is None:
            return True
        if self.spent + _A_RETRY > pacing.retry_budget * _A_RETRY:
            return False
        self.spent += _A_RETRY
        return True

    def succeeded(self) -> None:
        """Gives a part of a retry back."""
        self.spent = max(0, self.spent - 1)


def jitter(policy: RetryPolicy) -> float:
    """A bit of time, so that those who were held back do not all come in the same instant: the policy's jitter."""
    return policy.initial * random()
