"""How long things took: one stopwatch a call."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Final

from friendli_async.replies import Timing

__all__ = ["Stopwatch"]

# The gaps' histogram: bins 2 % wide from a microsecond on. Sparse, since a stream's gaps fill few of them.
_BINS: Final = 1 / log(1.02)
_SHORTEST: Final = 1e-6


class Stopwatch:
    """Measures one call, on its loop's clock.

    Attributes:
        queued: Seconds that its attempts waited for a place.
        connecting: Seconds that its attempts took to get connections.
        first_event: When its first event came, or its whole reply; None before.
        text_missing: Whether no text has come yet.
    """

    __slots__ = (
        "_began",
        "_bytes",
        "_ended",
        "_events",
        "_first_text",
        "_gaps",
        "_last_event",
        "_longest",
        "connecting",
        "first_event",
        "now",
        "queued",
        "text_missing",
    )

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.queued = 0.0
        self.connecting = 0.0
        self.first_event: float | None = None
        self._began = now()
        self._first_text: float | None = None
        self.text_missing = True
        self._last_event: float | None = None
        self._ended: float | None = None
        self._events = 0
        self._bytes = 0
        self._longest = 0.0
        self._gaps: dict[int, int] | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.now() - self._began

    def text_came(self) -> None:
        """The first text has come, with the latest event."""
        self._first_text = self._last_event
        self.text_missing = self._first_text is None

    def read(self, size: int, events: int) -> None:
        """Bytes have come, and the events that they complete."""
        self._bytes += size
        if not events:
            return
        self._events += events
        now = self.now()
        last, self._last_event = self._last_event, now
        if last is None:
            self.first_event = now
            return
        gap = now - last
        if gap > self._longest:
            self._longest = gap
        if self._gaps is None:
            self._gaps = {}
        place = int(log(gap / _SHORTEST) * _BINS) if gap > _SHORTEST else 0
        self._gaps[place] = self._gaps.get(place, 0) + 1

    def stop(self) -> None:
        """The call has ended; the first end counts."""
        if self._ended is None:
            self._ended = self.now()

    def timing(self, completion_tokens: int | None) -> Timing:
        """The figures so far.

        Args:
            completion_tokens: What the model has written, by the usage; None where that is not known.
        """
        first, last = self.first_event, self._last_event
        speed = None
        if completion_tokens and first is not None and last is not None and last > first:
            speed = completion_tokens / (last - first)
        return Timing(
            queued=self.queued,
            connecting=self.connecting,
            first_event=self._since(first),
            first_text=self._since(self._first_text),
            last_event=self._since(last),
            total=(self._ended if self._ended is not None else self.now()) - self._began,
            events=self._events,
            bytes=self._bytes,
            gap_p50=self._percentile(0.5),
            gap_p95=self._percentile(0.95),
            gap_max=self._longest if self._gaps else None,
            tokens_per_second=speed,
        )

    def _since(self, moment: float | None) -> float | None:
        return None if moment is None else moment - self._began

    def _percentile(self, share: float) -> float | None:
        gaps = self._gaps
        if not gaps:
            return None
        wanted = share * sum(gaps.values())
        seen = place = 0
        for place in sorted(gaps):
            seen += gaps[place]
            if seen >= wanted:
                break
        middle: float = _SHORTEST * 1.02 ** (place + 0.5)
        return min(middle, self._longest)
