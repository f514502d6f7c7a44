"""How long things took: one stopwatch a call."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise
from math import log
from typing import Final

from friendli_async.replies import Timing

__all__ = ["Stopwatch"]

# The gaps' histogram: bins 2 % wide from a microsecond on. Sparse, since a stream's gaps fill few of them.
_BINS: Final = 1 / log(1.02)
_SHORTEST: Final = 1e-6
# Moments that are kept before they are put into the histogram: a stream of any length takes the same memory.
_MOMENTS: Final = 512


class Stopwatch:
    """Measures one call, on its loop's clock.

    Attributes:
        queued: Seconds that its attempts waited for a place.
        connecting: Seconds that its attempts took to get connections.
        text_missing: Whether no text has come yet.
    """

    __slots__ = (
        "_began",
        "_bytes",
        "_ended",
        "_events",
        "_first_event",
        "_first_text",
        "_gaps",
        "_longest",
        "_moments",
        "connecting",
        "now",
        "queued",
        "text_missing",
    )

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.queued = 0.0
        self.connecting = 0.0
        self._began = now()
        self._first_event: float | None = None
        self._first_text: float | None = None
        self.text_missing = True
        self._ended: float | None = None
        self._events = 0
        self._bytes = 0
        self._longest = 0.0
        self._gaps: dict[int, int] | None = None
        self._moments = array("d")  # of the latest reads with events

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.now() - self._began

    def text_came(self) -> None:
        """The first text has come, with the latest event."""
        if self._moments:
            self._first_text = self._moments[-1]
            self.text_missing = False

    def read(self, size: int, events: int) -> None:
        """Bytes have come, and the events that they complete."""
        self._bytes += size
        if events:
            self._events += events
            self._moments.append(self.now())
            if len(self._moments) >= _MOMENTS:
                self._count_gaps()

    def stop(self) -> None:
        """The call has ended; the first end counts."""
        if self._ended is None:
            self._ended = self.now()

    def timing(self, completion_tokens: int | None) -> Timing:
        """The figures so far.

        Args:
            completion_tokens: What the model has written, by the usage; None where that is not known.
        """
        self._count_gaps()
        began, first, text = self._began, self._first_event, self._first_text
        last = self._moments[-1] if self._moments else None
        speed = None
        if completion_tokens and first is not None and last is not None and last > first:
            speed = completion_tokens / (last - first)
        return Timing(
            queued=self.queued,
            connecting=self.connecting,
            first_event=None if first is None else first - began,
            first_text=None if text is None else text - began,
            last_event=None if last is None else last - began,
            total=(self._ended if self._ended is not None else self.now()) - began,
            events=self._events,
            bytes=self._bytes,
            gap_p50=self._percentile(0.5) if self._gaps else None,
            gap_p95=self._percentile(0.95) if self._gaps else None,
            gap_max=self._longest if self._gaps else None,
            tokens_per_second=speed,
        )

    def _count_gaps(self) -> None:
        """Puts the gaps between the moments into the histogram, and keeps the last moment."""
        moments = self._moments
        if self._first_event is None and moments:
            self._first_event = moments[0]
        gaps = self._gaps
        for earlier, later in pairwise(moments):
            gap = later - earlier
            self._longest = max(self._longest, gap)
            place = int(log(gap / _SHORTEST) * _BINS) if gap > _SHORTEST else 0
            if gaps is None:
                gaps = self._gaps = {}
            gaps[place] = gaps.get(place, 0) + 1
        del moments[:-1]

    def _percentile(self, share: float) -> float:
        gaps = self._gaps or {}
        wanted = share * sum(gaps.values())
        seen = place = 0
        for place in sorted(gaps):
            seen += gaps[place]
            if seen >= wanted:
                break
        middle: float = _SHORTEST * 1.02 ** (place + 0.5)
        return min(middle, self._longest)
