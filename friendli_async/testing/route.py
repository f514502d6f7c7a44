"""The routes of the embedded server: path, schemas and handler of each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TypeVar

from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.schema import Error
from friendli_async.testing.script import Script, json_body, status

T = TypeVar("T")


def _refuse(errors: Sequence[Error]) -> Script:
    """Reply 422 with the errors that `validate` found, in the format of most operations."""
    return json_body({"detail": list(errors)}, status=422)


class InvalidRequestError(Exception):
    """A value in a request is invalid: the reply is a 422.

    Args:
        where: `body` or `query`.
        name: Name of the field.
        message: What is wrong with it.
        kind: Type of the error.
    """

    def __init__(self, where: str, name: str, message: str, kind: str = "value_error") -> None:
        super().__init__(message)
        self.error: Error = {"loc": [where, name], "msg": message, "type": kind}


@dataclass(frozen=True)
class Route:
    """One method of one path. Schemas are given by name.

    Args:
        method: HTTP method.
        path: Path; `{name}` matches one segment, which becomes one of the `path_parameters` of the request.
        answer: Returns the reply to a validated request.
        body: Schema of the request body, if any.
        reply: Schema of the JSON reply, if any.
        events: Schema of the events of a streamed reply, if it can stream.
        query: Schema of the query, if any.
        form: Whether the body is a form instead of JSON.
        needs_token: Whether the request must carry the token.
        refuse: Returns the 422 reply to a request that does not match its schemas.
    """

    method: str
    path: str
    answer: Callable[[ReceivedRequest], Script]
    body: str = ""
    reply: str = ""
    events: str = ""
    _: KW_ONLY
    query: str = ""
    form: bool = False
    needs_token: bool = True
    refuse: Callable[[Sequence[Error]], Script] = _refuse


def stored(
    kind: str, items: Mapping[str, T], answer: Callable[[T, ReceivedRequest], Script]
) -> Callable[[ReceivedRequest], Script]:
    """Make the handler of an operation on one of the items, whose ID `{kind_id}` is in the path; 404 if there is none.

    The handler returns the answer to the item and the request.
    """

    def find(request: ReceivedRequest) -> Script:
        name = request.path_parameters[f"{kind}_id"]
        return answer(items[name], request) if name in items else status(404, message=f"there is no {kind} {name}")

    return find


def page_of(query: Mapping[str, object], cursor: str, count: int, *, usual: int, most: int) -> tuple[range, str | None]:
    """Return the positions of the items on the requested page, and the cursor of the next page, if there is one.

    Args:
        query: The query, with `limit` and a cursor, both optional.
        cursor: Name of the cursor.
        count: How many items there are.
        usual: The default of `limit`.
        most: The largest accepted `limit`.

    Raises:
        InvalidRequestError: The limit is invalid.
        ValueError: The cursor is not one that a page had.
    """
    limit, first = query.get("limit", usual), str(query.get(cursor, "page-0")).removeprefix("page-")
    if not isinstance(limit, int) or not 1 <= limit <= most:
        raise InvalidRequestError("query", "limit", f"Input should be between 1 and {most}")
    shown = range(count)[int(first) : int(first) + limit]
    return shown, f"page-{shown.stop}" if shown and shown.stop < count else None
