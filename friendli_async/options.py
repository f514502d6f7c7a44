"""The settings that are values of their own: time limits, size limits, the retry policy. All frozen, all checked."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from friendli_async._help import described
from friendli_async._hints import field_hint
from friendli_async.errors import ConfigurationError
from friendli_async.replies import Attempt

__all__ = ["Limits", "Pacing", "RetryPolicy", "Timeouts"]

_LARGEST: Final = sys.float_info.max
_RETRYABLE_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504})


def _number(owner: object, name: str, *, minimum: float = 0.0, above: bool = False) -> None:
    """Checks that a field is a finite number, not below ``minimum`` (or, with ``above``, greater than it)."""
    value = getattr(owner, name)
    # bool is an int, and `connect=True` is never meant as one second.
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
    if not is_number or value < minimum or (above and value == minimum):
        bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
        raise ConfigurationError(f"{type(owner).__name__}.{name} must be a number {bound}, not {value!r}")


def check_count(name: str, value: object) -> None:
    """Checks that a setting is a whole number, at least 1.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a whole number, at least 1, not {value!r}")


class _Hinting(msgspec.StructMeta):
    """Tells of a field that there is not what it is called here."""

    if not TYPE_CHECKING:  # to type checkers the fields are the parameters

        def __call__(cls, *args: object, **fields: object) -> object:  # noqa: N805  # it is a metaclass
            try:
                return super().__call__(*args, **fields)
            except TypeError:
                if not (unknown := [name for name in fields if name not in cls.__struct_fields__]):
                    raise
            hint = field_hint(unknown[0], cls.__struct_fields__)
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument {unknown[0]!r}{hint}")


class _Value(msgspec.Struct, frozen=True, kw_only=True, metaclass=_Hinting):
    """Base of the values that users make."""


@described
class Timeouts(_Value, frozen=True, kw_only=True):
    """Time limits in seconds; None switches one off. The error of an expired one says which it was."""

    connect: float | None = 5.0
    """To resolve the name and open a connection, TLS included."""
    pool: float | None = None
    """To wait for a free place among ``max_connections``. Never retried. Default: no limit, since waiting in one's
    own line is nobody's fault; ``total`` bounds it."""
    first_event: float | None = 600.0
    """Per attempt, from the end of connecting to the first event of a stream, or to the whole reply of a plain call.

    While a form with files is being sent, it starts anew with every piece."""
    idle: float | None = 60.0
    """Between events that carry data, while somebody waits for the next; comments and pings do not count."""
    total: float | None = None
    """Wall time over everything: attempts, sleeps between them, and the reading of a stream."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) is not None:
                _number(self, name, above=True)

    @classmethod
    def of(cls, value: Timeouts | float | None) -> Timeouts:
        """A number is the total; None is no limit at all."""
        if isinstance(value, Timeouts):
            return value
        if value is None:
            return cls(connect=None, pool=None, first_event=None, idle=None)
        return cls(total=value)


@described
class Limits(_Value, frozen=True, kw_only=True):
    """Size limits in decompressed bytes. Beyond one: ``ResponseDecodeError`` (an error body is cut instead)."""

    event: int = 32 * 1024 * 1024
    """One event of a stream."""
    reply: int = 64 * 1024 * 1024
    """The reply of a plain call."""
    error: int = 64 * 1024
    """The body of an error."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            check_count(f"Limits.{name}", getattr(self, name))


@described
class RetryPolicy(_Value, frozen=True, kw_only=True):
    """When and how a failed attempt is repeated: exponential back-off with full jitter.

    What may be repeated at all is the operation's to say: what was never sent, 408, 429 and 503 always; what may have
    been accepted only where repeating does no harm. ``Retry-After`` of the server is obeyed and never undercut.
    """

    max_attempts: int = 3
    """Attempts in all, the first included; 1 is no retry."""
    initial: float = 0.5
    """Upper end of the first wait, seconds; the wait itself is uniform between 0 and that."""
    multiplier: float = 2.0
    """What each further upper end is multiplied by."""
    max_wait: float = 30.0
    """The largest upper end, seconds."""
    max_retry_after: float = 60.0
    """The longest ``Retry-After`` that is waited for, seconds; a longer one raises at once (``retry_after``)."""
    statuses: AbstractSet[int] = _RETRYABLE_STATUSES
    """Statuses that are retried: any subset of the default."""
    on_retry: Callable[[Attempt], object] | None = None
    """Called with the failed attempt before the sleep (its ``wait``). What it raises is logged and changes nothing."""

    def __post_init__(self) -> None:
        check_count("RetryPolicy.max_attempts", self.max_attempts)
        for name in ("initial", "max_wait", "max_retry_after"):
            _number(self, name)
        _number(self, "multiplier", minimum=1.0)
        try:
            unknown = [status for status in self.statuses if status not in _RETRYABLE_STATUSES]
        except TypeError:
            raise ConfigurationError(f"RetryPolicy.statuses must be a set of statuses, not {self.statuses!r}") from None
        if unknown:
            raise ConfigurationError(
                f"RetryPolicy.statuses can only narrow {sorted(_RETRYABLE_STATUSES)}; not retryable: {unknown}"
            )
        on_retry: object = self.on_retry
        if on_retry is not None and (not callable(on_retry) or iscoroutinefunction(on_retry)):
            raise ConfigurationError("RetryPolicy.on_retry must be a plain callable, not a coroutine function")
        msgspec.structs.force_setattr(self, "statuses", frozenset(self.statuses))


@described
class Pacing(msgspec.Struct, frozen=True):
    """What the calls of one client, its copies included, learn from each other. ``Pacing(None)`` is nothing at all.

    A call that is held back waits inside its ``total``, and its ``timing.queued`` counts the wait. One whose wait does
    not fit into ``total``, or is longer than its ``RetryPolicy.max_retry_after``, raises at once what the server said
    to the others: ``RateLimitError`` (or ``InternalServerError``), with what is left in ``retry_after``.
    """

    obey: Literal["retry-after"] | None = "retry-after"
    """What holds new calls back: a ``Retry-After`` (or its like) of a 429 or 503 holds back all to the same deployment
    and model, for the same team and token, until then. None switches pacing off, the retry budget with it."""
    retry_budget: int | None = 100
    """Retries that may be made in a row: each takes 1, each call that succeeds gives 0.1 back. When nothing is left,
    errors are raised at once (``attempts[-1].cause`` says so). None is no budget."""

    def __post_init__(self) -> None:
        if self.obey not in ("retry-after", None):
            raise ConfigurationError(f"Pacing.obey must be 'retry-after' or None, not {self.obey!r}")
        if self.retry_budget is not None:
            check_count("Pacing.retry_budget", self.retry_budget)
