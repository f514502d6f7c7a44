"""Building blocks of the operation groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import structs

from friendli_async._core.protocol import Operation
from friendli_async._hints import Hinted
from friendli_async._lazy import LazyModule, TypeForm

if TYPE_CHECKING:
    from collections.abc import Callable

    from friendli_async._core import engine as engine_module
    from friendli_async.errors import APIStatusError
    from friendli_async.replies import ReplyHead
else:
    engine_module = LazyModule("friendli_async._core.engine")

T = TypeVar("T")

ANYTHING: Final[TypeForm[Any]] = Any
"""Reply type of an operation with an unspecified response: any JSON, or an empty body."""


class Resource(Hinted):
    """A group of operations of one deployment."""

    def __init__(self, engine: engine_module.Engine) -> None:
        self._engine = engine


def operation(
    name: str, request: str, reply: TypeForm[T], *, repeatable: bool = False, team: bool = True
) -> Operation[T]:
    """Declares an operation that runs no model (see ``Operation``), such as ``POST /v1/tokenize``.

    ``request`` is its method and path. GET, PUT and DELETE are always repeatable.
    """
    method, _, path = request.partition(" ")
    repeatable = repeatable or method in {"GET", "PUT", "DELETE"}
    return Operation(name=name, method=method, path=path, reply=reply, repeatable=repeatable, team=team)


def inference(
    name: str,
    request: str,
    reply: TypeForm[T],
    failure_of: Callable[[T, ReplyHead], APIStatusError | None] | None = None,
) -> Operation[T]:
    """Declares an operation that runs a model: repeatable and billed. See ``operation`` and ``Operation``."""
    return structs.replace(operation(name, request, reply, repeatable=True), billed=True, failure_of=failure_of)
