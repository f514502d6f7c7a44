"""Cursor-based pagination: pages are fetched lazily, as they are iterated."""

# An iterator is a part of its list:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, as_mapping, encode_query, path_parameters
from friendli_async._core.protocol import Operation
from friendli_async._lazy import LazyModule
from friendli_async.errors import ArgumentError, ResponseDecodeError
from friendli_async.replies import Reply

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
else:
    engine_module = LazyModule("friendli_async._core.engine")

__all__ = ["ItemIterator", "Listing", "PageFormat", "PageIterator", "Pages"]

T = TypeVar("T")
P = TypeVar("P", bound=Reply)


class PageFormat(msgspec.Struct, frozen=True, eq=False):
    """How the pages of an API are requested and read."""

    cursor: str
    """Name of the query parameter with the cursor of a page."""
    items: Callable[[Any], Iterable[Any]]
    """Returns the items of a page."""
    following: Callable[[Any], str | None]
    """Returns the cursor of the next page; None after the last one, "" if the cursor of another is missing."""


class Listing(msgspec.Struct, Generic[T, P], frozen=True, eq=False):
    """Declares a paginated list of the API: its operation, its keywords, and the format of its pages."""

    operation: Operation[P]
    """Returns one page."""
    parameters: Parameters
    """The method's keywords; those whose value is None are not sent."""
    format: PageFormat

    def of(
        self,
        engine: engine_module.Engine,
        required: Mapping[str, object],
        options: Mapping[str, object],
        **path: str,
    ) -> Pages[T, P]:
        """Validates a method's arguments (see ``Parameters.encode``), and returns its list.

        ``path`` has the parameters of the operation's path.
        The values of ``extra_query`` are sent without validation.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A value of the wrong type, with its name.
        """
        given = self.parameters.checked(self.operation.name.rpartition(".")[2], required, options)
        given.update(as_mapping(given.pop("extra_query", None)))
        start = given.pop(self.format.cursor, None)
        if start is not None and not isinstance(start, str):  # from extra_query, which is not validated above
            raise ArgumentError(f"Expected `str`, got `{type(start).__name__}`", f"extra_query[{self.format.cursor!r}]")
        encode_query({self.format.cursor: start}, "{}")  # raises now what would fail at the first page
        return Pages(engine, self, Arguments(query=encode_query(given, "{}"), path=path_parameters(**path)), start)


class Pages(Generic[T, P]):
    """A paginated list. Each page is requested only when it is needed.

    ``async for item in pages`` iterates over the items of all pages, ``async for page in pages.pages()`` over the pages
    themselves, and ``await pages`` returns the first page. Each of these starts from the beginning. After an error, the
    same iterator resumes at the page that failed. If the next page cannot be requested, because its cursor is missing
    or that of an earlier page, the iteration raises ``ResponseDecodeError`` after the items received so far. If two
    tasks wait for the same iterator at the same time, one gets a ``RuntimeError``.
    """

    def __init__(
        self, engine: engine_module.Engine, listing: Listing[T, P], arguments: Arguments, start: str | None
    ) -> None:
        self._engine = engine
        self._listing = listing
        self._arguments = arguments
        self._start = start

    def __aiter__(self) -> ItemIterator[T]:
        return ItemIterator(self)

    def pages(self) -> PageIterator[P]:
        """Returns an iterator over the pages, each with its ``meta``."""
        return PageIterator(self)

    def __await__(self) -> Generator[Any, None, P]:
        return self._fetch(self._start).__await__()

    async def _fetch(self, cursor: str | None) -> P:
        fixed = self._arguments.query
        query = "&".join(part for part in (fixed, encode_query({self._listing.format.cursor: cursor})) if part)
        arguments = msgspec.structs.replace(self._arguments, query=query)
        return await self._engine.call(self._listing.operation, arguments)


class PageIterator(Generic[P]):
    """Iterates over the pages of a list."""

    def __init__(self, pages: Pages[Any, P]) -> None:
        self._pages = pages
        self._next = pages._start
        self._seen: set[str | None] = set()
        self._last: P | None = None
        self._waiting = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> P:
        if self._last is not None:
            if self._next is None:
                raise StopAsyncIteration
            if not self._next or self._next in self._seen:  # a repeated cursor would loop forever
                problem = "repeats the cursor of an earlier page" if self._next else "has no cursor"
                reason = f"the list is not complete, but its next page {problem}"
                raise ResponseDecodeError(reason, meta=self._last.meta)
        if self._waiting:
            raise RuntimeError("another task is already waiting for the next page of this list")
        self._waiting = True
        try:
            page = await self._pages._fetch(self._next)
        finally:
            self._waiting = False
        self._seen.add(self._next)
        self._last, self._next = page, self._pages._listing.format.following(page)
        return page


class ItemIterator(Generic[T]):
    """Iterates over the items of all pages of a list."""

    def __init__(self, pages: Pages[T, Any]) -> None:
        self._pages = pages.pages()
        self._items = pages._listing.format.items
        self._current: Iterator[T] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._current:
                return item
            self._current = iter(self._items(await self._pages.__anext__()))
