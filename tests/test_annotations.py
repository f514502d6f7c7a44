"""Annotations of the public names, as tools evaluate them at run time."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FunctionType
from typing import Any, Final, get_overloads, get_type_hints
from unittest.mock import create_autospec

import aiohttp
import pytest

import friendli_async
from friendli_async import AsyncFriendli
from friendli_async._core.engine import Engine
from friendli_async.chat import Chat, ParsedCompletion

ENTRY_POINTS: Final = ("__main__", "engine_process")


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(friendli_async.__path__, "friendli_async.")]
    parts = {name: name.split(".") for name in ["friendli_async", *found]}
    return [name for name in parts if not any(part.startswith("_") or part in ENTRY_POINTS for part in parts[name])]


def functions(owner: object) -> Iterator[Callable[..., Any]]:
    """Yields a function and its overloads, or those of a class and of its bases in the package."""
    if isinstance(owner, FunctionType):
        yield owner
        yield from get_overloads(owner)
    elif isinstance(owner, type):
        for base in owner.__mro__:
            if base.__module__.startswith("friendli_async"):
                members = [member for name, member in vars(base).items() if not re.match("_[^_]", name)]
                yield from [function for member in members for function in functions(inner(member))]


def inner(member: object) -> object:
    """Returns the function of a property, a class method or a static method; anything else as it is."""
    if isinstance(member, property):
        return member.fget
    return getattr(member, "__func__", getattr(member, "func", member))


def resolve(function: Callable[..., Any]) -> object:
    return get_type_hints(function, include_extras=True), inspect.signature(function, eval_str=True)


def failure(evaluate: Callable[[Any], object], name: Any) -> str:
    try:
        evaluate(name)
    except Exception as error:
        return f"{name.__qualname__}: {error!r}"
    return ""


@pytest.mark.parametrize("module", modules())
def test_annotations_of_public_names_can_be_evaluated(module: str) -> None:
    loaded = import_module(module)
    names = [getattr(loaded, name) for name in getattr(loaded, "__all__", ())]
    failures = {failure(resolve, function) for name in names for function in functions(name)}
    for cls in (name for name in names if isinstance(name, type)):
        failures |= {failure(get_type_hints, cls), failure(create_autospec, cls)}
    assert failures - {""} == set()


def test_names_whose_modules_are_loaded_on_use_are_the_classes_themselves() -> None:
    hints = get_type_hints(AsyncFriendli.__init__)
    assert hints["session"] == aiohttp.ClientSession | None
    assert get_type_hints(Chat.__init__)["engine"] is Engine
    assert get_type_hints(Chat.parse)["return"] == ParsedCompletion[Any]
