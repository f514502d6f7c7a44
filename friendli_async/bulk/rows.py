"""Where rows come from."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from anyio import to_thread

from friendli_async.bulk.errors import RowsError

__all__: list[str] = []

Row = TypeVar("Row")

_READ: Final = 1 << 18
"""Bytes of a file that are read at once, in a thread: some hundred rows."""


def rows_of(rows: Iterable[Row] | AsyncIterable[Row] | Path) -> AsyncIterator[Any]:
    """The rows, one at a time, when they are asked for.

    Raises:
        TypeError: They are none of these; a str is refused, since its characters are hardly meant.
    """
    if isinstance(rows, Path):
        return _read(rows)
    if isinstance(rows, AsyncIterable):
        return aiter(rows)
    given: object = rows
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"rows must be an iterable, an async iterable or a Path, not {type(rows).__name__}")
    return _each(rows)


async def _each(rows: Iterable[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row


async def _read(path: Path) -> AsyncIterator[Any]:
    async for number, line in read_lines(path):
        yield decoded(line, path, number)


async def read_lines(path: Path) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers, counted from 1."""
    file = await to_thread.run_sync(path.open, "rb")
    try:
        number = 0
        while lines := await to_thread.run_sync(file.readlines, _READ):
            for line in lines:
                number += 1
                if not line.isspace():
                    yield number, line
    finally:
        file.close()


def decoded(line: bytes, path: Path, number: int) -> Any:
    """The JSON of one line.

    Raises:
        RowsError: It is none.
    """
    try:
        return msgspec.json.decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RowsError(f"{path} line {number} is not JSON: {error}") from None
