"""Sources of rows."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from friendli_async._core.body.sources import in_thread, open_in_thread
from friendli_async._json import decode_json
from friendli_async.bulk.errors import RowsError

Row = TypeVar("Row")

_READ_SIZE: Final = 1 << 18
"""Bytes to read from a file at once, in a thread: some hundred rows."""


def rows_of(rows: Iterable[Row] | AsyncIterable[Row] | Path) -> AsyncIterator[Any]:
    """Returns a lazy iterator over the rows.

    Raises:
        TypeError: ``rows`` is of another type, or a str or DataFrame, of which one would get the characters or columns.
    """
    if isinstance(rows, Path):
        return _read_rows(rows)
    if isinstance(rows, AsyncIterable):
        return aiter(rows)
    given: object = rows
    if hasattr(given, "iterrows") or hasattr(given, "to_dicts"):  # pandas, polars
        raise TypeError('rows of a DataFrame are df.to_dict("records"), or df.to_dicts() of polars')
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise TypeError(f"rows must be an iterable, an async iterable or a Path, not {type(rows).__name__}")
    return _iterate(rows)


async def _iterate(rows: Iterable[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row


async def _read_rows(path: Path) -> AsyncIterator[Any]:
    async for number, line in read_lines(path):
        yield decode_row(line, path, number)


async def read_lines(path: Path) -> AsyncIterator[tuple[int, bytes]]:
    """Yields the non-blank lines of a file, with their line numbers, counted from 1.

    Raises:
        RowsError: It is not a regular file. Reading a pipe may block, and a run could then not be closed.
        OSError: The file cannot be read.
    """
    file = await open_in_thread(partial(_open, path), lambda file: file.close())
    try:
        number = 0
        while lines := await in_thread(file.readlines, _READ_SIZE):
            for line in lines:
                number += 1
                if not line.isspace():
                    yield number, line
    finally:
        file.close()


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise RowsError(f"{path} is not a regular file: pass an iterable of its rows instead")
    return path.open("rb")


def decode_row(line: bytes, path: Path, number: int) -> Any:
    """Decodes the JSON of one line.

    Raises:
        RowsError: The line is not JSON.
    """
    try:
        return decode_json(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    except (ValueError, RecursionError) as error:
        raise RowsError(f"{path} line {number} is not JSON: {error}") from None
