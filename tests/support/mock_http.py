"""aioresponses, patched for aiohttp 3.14: https://github.com/pnuckowski/aioresponses/issues/289.

It replaces `ClientSession._request`, so tests of lower layers (timeouts, pool, connections) need the embedded server.
"""

import asyncio
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aioresponses import aioresponses, core

_NEEDS_STREAM_WRITER = "stream_writer" in inspect.signature(aiohttp.ClientResponse.__init__).parameters
_original_reader: Callable[..., aiohttp.StreamReader] = vars(core)["stream_reader_factory"]


class _Response(aiohttp.ClientResponse):
    """Supplies `stream_writer`, which aiohttp 3.14 requires and aioresponses does not pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _NEEDS_STREAM_WRITER:
            kwargs.setdefault("stream_writer", types.SimpleNamespace(output_size=0))
        super().__init__(*args, **kwargs)


def _reader(loop: asyncio.AbstractEventLoop | None = None) -> aiohttp.StreamReader:
    """Returns a reader that never pauses its transport: it has none, which aiohttp 3.14 asserts beyond 128 KiB."""
    reader = _original_reader(loop)
    reader._low_water = reader._high_water = 1 << 40
    return reader


@contextmanager
def mocked_http(**options: Any) -> Iterator[aioresponses]:
    """`aioresponses(**options)`, working with the installed aiohttp."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "ClientResponse", _Response)
        patch.setattr(core, "stream_reader_factory", _reader)
        with aioresponses(**options) as mock:
            yield mock
