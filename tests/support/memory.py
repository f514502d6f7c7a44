"""The memory that a block of a test takes."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

MIB = 1024 * 1024


@contextmanager
def assert_peak_memory_below(limit: int) -> Iterator[None]:
    """Checks that what the block has allocated stays below `limit` bytes at each moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit
