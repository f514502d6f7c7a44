"""Lists that come page by page: fetched from cursor to cursor, only as far as they are read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, encode_query
from friendli_async._core.protocol import Operation

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = ["ItemIterator", "Listing", "PageIterator", "Pages"]

T = TypeVar("T")
P = TypeVar("P")


class Listing(Generic[T, P]):
    """One list of the API: the operation, its keywords, and how its pages are read.

    Args:
        operation: Gives one page.
        options: A TypedDict of the optional keywords; None as a value leaves one out.
        required: Types of those that the method spells out.
        cursor: The query parameter that says where a page begins.
        items: The items of a page.
        following: The cursor of the page after it; None where there is none.
    """

    def __init__(
        self,
        operation: Operation[P],
        options: type,
        required: Mapping[str, Any] = {},
        *,
        cursor: str,
        items: Callable[[P], Iterable[T]],
        following: Callable[[P], str | None],
    ) -> None:
        self.operation: Final = operation
        self.cursor: Final = cursor
        self.items: Final = items
        self.following: Final = following
        self._parameters = Parameters(options, required, {})

    def of(
        self,
        engine: Engine,
        required: Mapping[str, object],
        options: Mapping[str, object],
        path: Mapping[str, str] = {},
    ) -> Pages[T, P]:
        """Checks what a method was given, and makes the list of it.

        Args:
            engine: Fetches the pages.
            required: The method's spelt-out parameters.
            options: Its other keywords; ``extra_query`` among them passes anything through.
            path: Path parameters.

        Raises:
            TypeError: A keyword that the method does not have.
            ValueError: A value of the wrong type, with its name.
        """
        given = self._parameters.checked(self.operation.name.rpartition(".")[2], required, options)
        given.update(cast("Mapping[str, object] | None", given.pop("extra_query", None)) or {})
        begin = given.pop(self.cursor, None)
        if begin is not None and not isinstance(begin, str):  # from extra_query, which is nobody's to check
            raise ValueError(f"extra_query[{self.cursor!r}]: Expected `str`, got `{type(begin).__name__}`")
        encode_query({self.cursor: begin}, "{}")  # for its error
        return Pages(engine, self, Arguments(query=encode_query(given, "{}"), path=path), begin)


class Pages(Generic[T, P]):
    """A list that the server gives page by page. Nothing is sent until it is used, and no page before it is needed.

    ``async for item in pages`` goes through the items of all pages, ``async for page in pages.pages()`` through the
    pages themselves, and ``await pages`` gives the first one. Each of these begins anew. A cursor that comes a second
    time ends the list, whatever the server says. After an error the same iterator goes on with the page that failed.
    """

    def __init__(self, engine: Engine, listing: Listing[T, P], arguments: Arguments, begin: str | None) -> None:
        self._engine = engine
        self._listing = listing
        self._arguments = arguments
        self._begin = begin

    def __aiter__(self) -> ItemIterator[T]:
        return ItemIterator(self.pages(), self._listing.items)

    def pages(self) -> PageIterator[P]:
        """The pages, one by one, each with its ``meta``."""
        return PageIterator(self._fetch, self._begin, self._listing.following)

    def __await__(self) -> Generator[Any, None, P]:
        return self._fetch(self._begin).__await__()

    async def _fetch(self, cursor: str | None) -> P:
        fixed = self._arguments.query
        query = "&".join(part for part in (fixed, encode_query({self._listing.cursor: cursor})) if part)
        arguments = msgspec.structs.replace(self._arguments, query=query)
        return await self._engine.call(self._listing.operation, arguments)


class PageIterator(Generic[P]):
    """The pages of a list, one after the other."""

    def __init__(
        self,
        fetch: Callable[[str | None], Awaitable[P]],
        begin: str | None,
        following: Callable[[P], str | None],
    ) -> None:
        self._fetch = fetch
        self._following = following
        self._next = begin
        self._seen = {begin}
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> P:
        if self._over:
            raise StopAsyncIteration
        page = await self._fetch(self._next)
        self._next = self._following(page)
        # "" is how some servers write null; and a cursor that comes again would go round for ever.
        self._over = not self._next or self._next in self._seen
        self._seen.add(self._next)
        return page


class ItemIterator(Generic[T]):
    """The items of a list, one after the other, whatever pages they come in."""

    def __init__(self, pages: PageIterator[Any], items: Callable[[Any], Iterable[T]]) -> None:
        self._pages = pages
        self._items = items
        self._current: Iterator[T] = iter(())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            for item in self._current:
                return item
            self._current = iter(self._items(await self._pages.__anext__()))
