"""Discovery of this library's operations, and of the resources that use them."""

import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from friendli_async import AsyncFriendli
from friendli_async._core.pages import Listing
from friendli_async._core.protocol import Operation


@dataclass(frozen=True)
class Served:
    """An operation of this library in one deployment."""

    group: str
    """Path of the resource in the client, as `serverless.chat`."""
    operation: Operation[Any] = field(repr=False)
    prefix: str
    resource: Any = field(repr=False)

    @property
    def path(self) -> str:
        return self.prefix + self.operation.path

    @property
    def key(self) -> tuple[str, str]:
        """Method and path."""
        return self.operation.method, self.path

    def __str__(self) -> str:
        return f"{self.group}-{self.operation.method}-{self.path}"


def served_operations() -> tuple[Served, ...]:
    """Returns every operation used by a resource of the client."""
    client = AsyncFriendli("token")
    found = [
        Served(group, operation, resource._engine.deployment.prefix, resource)
        for group, resource in _resources(client)
        for operation in _operations(type(resource))
        if operation.path.startswith("/")  # otherwise its URL comes from a reply: not an operation of the API
    ]
    assert found, "the tests of each operation would pass without any"
    return tuple(sorted(found, key=str))


def _resources(client: AsyncFriendli) -> Iterator[tuple[str, Any]]:
    for name in AsyncFriendli.__slots__:
        value = getattr(client, name)
        if hasattr(value, "_engine"):
            yield name, value
        # Serverless has an engine of its own, next to its resources.
        yield from ((f"{name}.{key}", inner) for key, inner in vars(value).items() if hasattr(inner, "_engine"))


def _operations(resource: type) -> list[Operation[Any]]:
    """Returns the operations referenced by a class's methods, without overridden ones."""
    found: dict[str, Operation[Any]] = {}
    for name in dir(resource):
        method = getattr(resource, name)
        if isinstance(method, types.FunctionType):
            for used in _names(method.__code__):
                value = method.__globals__.get(used)
                value = value.operation if isinstance(value, Listing) else value
                if isinstance(value, Operation):
                    found[used] = value
    return list(found.values())


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
