"""Option values: timeouts, size limits, retry policy, pacing. All are immutable and validated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final, Literal, TypeGuard

import msgspec

from friendli_async._callables import is_async
from friendli_async._help import document_fields
from friendli_async._pydantic import PydanticField
from friendli_async.errors import ArgumentError, ConfigurationError
from friendli_async.replies import Attempt

__all__ = ["Limits", "Pacing", "RetryPolicy", "Timeouts"]

_LARGEST: Final = sys.float_info.max
_RETRYABLE_STATUSES: Final = frozenset({408, 429, *range(500, 600)})


def _check_number(owner: object, name: str, *, minimum: float = 0.0, above: bool = False) -> None:
    """Checks that a field is a finite number, at least ``minimum``, or with ``above`` greater than it."""
    value: object = getattr(owner, name)
    if not is_finite(value) or value < minimum or (above and value == minimum):
        bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
        raise ConfigurationError(f"{type(owner).__name__}.{name} must be a number {bound}, not {value!r}")


def check_seconds(name: str, value: object) -> float | None:
    """Checks that a setting is a number of seconds, at least 0, or None, and returns it.

    Raises:
        ConfigurationError: It is not.
    """
    if value is None or (is_number(value) and value >= 0):
        return value
    raise ConfigurationError(f"{name} must be a number of seconds, at least 0, or None, not {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float. True is not: ``connect=True`` does not mean one second."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a value is a number within the range of floats. True, NaN and infinity are not."""
    return is_number(value) and abs(value) <= _LARGEST


def is_count(value: object, least: int = 1) -> TypeGuard[int]:
    """Whether a value is an integer, at least ``least``. True is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(name: str, value: object, least: int = 1) -> None:
    """Checks that a setting is an integer, at least ``least``.

    Raises:
        ConfigurationError: It is not.
    """
    if not is_count(value, least):
        raise ConfigurationError(f"{name} must be a whole number, at least {least}, not {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Checks that an argument is one of a few texts.

    Raises:
        ArgumentError: It is not.
    """
    if value not in choices:
        raise ArgumentError(f"Expected {', '.join(map(repr, choices))}, got {value!r}", name)


class _Meta(msgspec.StructMeta):
    if not TYPE_CHECKING:  # a call with any arguments would hide the fields from type checkers

        def __call__(cls, *args, **kwargs):  # noqa: N805  # the instances of a metaclass are classes
            try:
                return super().__call__(*args, **kwargs)
            except TypeError as error:  # "Unexpected keyword argument 'read'"
                if error.__traceback__.tb_next is not None:  # raised by `__post_init__` of a subclass
                    raise
                raise TypeError(
                    f"{cls.__name__}: {error}; its keywords are {', '.join(cls.__struct_fields__)}"
                ) from None


class _Value(PydanticField, msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=_Meta):
    """Base of the option values that users create."""


@document_fields
class Timeouts(_Value, frozen=True, kw_only=True):
    """Timeouts in seconds; None disables one. ``APITimeoutError.limit`` names the one that expired."""

    connect: float | None = 5.0
    """To resolve the name and open a connection, TLS included."""
    pool: float | None = None
    """To wait for one of the ``max_connections`` slots. Never retried. Default: no limit but ``total``, as waiting in
    the client's own queue is not a failure."""
    first_event: float | None = 600.0
    """Per attempt, from the end of connecting to the first event of a stream, or to the whole reply of a plain call.

    While a form with files is being sent, it restarts with every chunk."""
    idle: float | None = 60.0
    """Between events that carry data, while a reader waits for the next; comments and pings do not count."""
    total: float | None = None
    """Wall time of the whole call: attempts, waits between them, and reading the stream."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) is not None:
                _check_number(self, name, above=True)

    @classmethod
    def of(cls, value: Timeouts | float | None) -> Timeouts:
        """Returns timeouts unchanged; converts a number to ``total``, and None to no limits."""
        if isinstance(value, Timeouts):
            return value
        if value is None:
            return cls(connect=None, pool=None, first_event=None, idle=None)
        return cls(total=value)


@document_fields
class Limits(_Value, frozen=True, kw_only=True):
    """Size limits in decompressed bytes. Exceeding one raises ``ResponseDecodeError``; error bodies are truncated."""

    event: int = 32 * 1024 * 1024
    """One event of a stream."""
    reply: int = 64 * 1024 * 1024
    """The reply of a plain call."""
    error: int = 64 * 1024
    """The body of an error response."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            check_count(f"Limits.{name}", getattr(self, name))


@document_fields
class RetryPolicy(_Value, frozen=True, kw_only=True):
    """When and how failed attempts are retried: exponential backoff with full jitter.

    The operation decides what is safe to retry: requests that were never sent, and statuses 408, 429 and 503, always;
    requests that may have been accepted, only if repeating them does no harm. A ``Retry-After`` is never undercut.
    """

    max_attempts: int = 3
    """Maximum number of attempts, including the first; 1 disables retries."""
    initial: float = 0.5
    """Upper bound of the first wait in seconds; the wait is uniformly distributed between 0 and the bound."""
    multiplier: float = 2.0
    """Factor by which the bound grows with each retry."""
    max_wait: float = 30.0
    """Maximum of the bound in seconds."""
    max_retry_after: float = 60.0
    """Longest ``Retry-After`` to wait for, in seconds; a longer one raises at once (see ``retry_after``)."""
    statuses: AbstractSet[int] = frozenset({408, 429, 500, 502, 503, 504})
    """Statuses to retry: any of 408, 429, and 500 to 599, such as the 520 to 524 of some proxies."""
    on_retry: Callable[[Attempt], object] | None = None
    """Called with the failed attempt before its ``wait``. Exceptions that it raises are logged and ignored."""

    def __post_init__(self) -> None:
        check_count("RetryPolicy.max_attempts", self.max_attempts)
        for name in ("initial", "max_wait", "max_retry_after"):
            _check_number(self, name)
        _check_number(self, "multiplier", minimum=1.0)
        try:
            statuses = frozenset(self.statuses)  # once: it may be an iterator
            unknown = statuses - _RETRYABLE_STATUSES
        except TypeError:
            raise ConfigurationError(f"RetryPolicy.statuses must be a set of statuses, not {self.statuses!r}") from None
        if unknown:
            others = sorted(unknown, key=str)
            raise ConfigurationError(f"RetryPolicy.statuses may have 408, 429, and 500 to 599, but not {others}")
        on_retry: object = self.on_retry
        if on_retry is not None and (not callable(on_retry) or is_async(on_retry)):
            raise ConfigurationError("RetryPolicy.on_retry must be a plain callable, not a coroutine function")
        msgspec.structs.force_setattr(self, "statuses", statuses)


@document_fields
class Pacing(PydanticField, msgspec.Struct, frozen=True, forbid_unknown_fields=True, metaclass=_Meta):
    """Rate-limit holds and retry budget, shared by the calls of a client and its copies; ``Pacing(None)`` has neither.

    A call paused by a hold waits within its ``total``, and its ``timing.queued`` includes the wait. If the wait exceeds
    ``total`` or the call's ``RetryPolicy.max_retry_after``, or several waits together exceed ``max_attempts`` times
    that, the call raises at once the error of the call that caused the hold: ``RateLimitError`` (or
    ``InternalServerError``), with the remaining time in ``retry_after``. A hold ends after ``max_retry_after``, even if
    the server named a longer time: the next call then asks the server again.
    """

    obey: Literal["retry-after"] | None = "retry-after"
    """What starts a hold: a ``Retry-After`` (or equivalent) of a 429 or 503 pauses new calls to the same deployment and
    model, for the same team and token, until then. None disables pacing, including the retry budget."""
    retry_budget: int | None = 100
    """Number of retries in a row: each takes 1, each successful call gives 0.1 back. Once it is used up, errors are
    raised without a retry (``attempts[-1].cause`` says so). None is unlimited."""

    def __post_init__(self) -> None:
        if self.obey not in ("retry-after", None):
            raise ConfigurationError(f"Pacing.obey must be 'retry-after' or None, not {self.obey!r}")
        if self.retry_budget is not None:
            check_count("Pacing.retry_budget", self.retry_budget)
