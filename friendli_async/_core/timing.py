"""Time measurement of calls."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import pairwise
from math import log
from typing import Final

from friendli_async.replies import Timing

# Histogram of gaps: logarithmic bins, 2 % wide, from a microsecond up. Sparse, as a stream fills only a few bins.
_BINS_PER_LOG: Final = 1 / log(1.02)
_SHORTEST_GAP: Final = 1e-6
# Read times to collect before they are moved to the histogram, which bounds the memory of long streams.
_MAX_READ_TIMES: Final = 512


class Stopwatch:
    """Measures one call by its loop's clock.

    Attributes:
        now: The clock.
        queued: Seconds that its attempts waited for a connection slot, or were paused by a rate-limit hold.
        connecting: Seconds that its attempts took to get connections.
        first_text_at: Loop time of the first text; None until then.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.queued: float = 0.0
        self.connecting: float = 0.0
        self._began = now()
        self._first_event: float | None = None
        self.first_text_at: float | None = None
        self._ended: float | None = None
        self._events = 0
        self._bytes = 0
        self._longest = 0.0
        self._gaps: dict[int, int] = {}
        self._read_times = array("d")  # of the latest reads with events

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.now() - self._began

    def record_first_text(self) -> None:
        """Records that the latest event brought the first text."""
        if self._read_times:
            self.first_text_at = self._read_times[-1]

    def record_read(self, size: int, events: int) -> None:
        """Records a read: its size in bytes, and the number of events that it completed."""
        self._bytes += size
        if events:
            self._events += events
            self._read_times.append(self.now())
            if len(self._read_times) >= _MAX_READ_TIMES:
                self._count_gaps()

    def stop(self) -> None:
        """Records the end of the call; only the first call of this method counts."""
        if self._ended is None:
            self._ended = self.now()

    def timing(self, completion_tokens: int | None) -> Timing:
        """Returns the measurements so far; ``completion_tokens`` are those of the usage, None if unknown."""
        self._count_gaps()
        began, first, text = self._began, self._first_event, self.first_text_at
        last = self._read_times[-1] if self._read_times else None
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
        """Moves the gaps between reads to the histogram, and keeps the last read time."""
        times = self._read_times
        if self._first_event is None and times:
            self._first_event = times[0]
        gaps = self._gaps
        for earlier, later in pairwise(times):
            gap = later - earlier
            self._longest = max(self._longest, gap)
            bin_number = int(log(gap / _SHORTEST_GAP) * _BINS_PER_LOG) if gap > _SHORTEST_GAP else 0
            gaps[bin_number] = gaps.get(bin_number, 0) + 1
        del times[:-1]

    def _percentile(self, share: float) -> float:
        gaps = self._gaps
        wanted = share * sum(gaps.values())
        seen = bin_number = 0
        for bin_number in sorted(gaps):
            seen += gaps[bin_number]
            if seen >= wanted:
                break
        middle: float = _SHORTEST_GAP * 1.02 ** (bin_number + 0.5)
        return min(middle, self._longest)
