"""Reads msgspec's ValidationError: the path, and the allowed values of an enum, a literal or a tag, which it omits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from msgspec import inspect

# "Expected `int`, got `str` - at `$.messages[2].role`", or "... - at `key` in `$.logit_bias`"
_MESSAGE: Final = r"(?s)(.*) - at (`key` in )?`\$([^`]*)`"
_STEP: Final = r"\.(\w+)|\[(?:\.\.\.|\d+)\]"
_MAX_CHOICES: Final = 12


def split_message(message: str) -> tuple[str, bool, str]:
    """Returns the reason of an error, whether a key is invalid, and the path, such as ``.messages[2].role``."""
    found = re.fullmatch(_MESSAGE, message)
    return (message, False, "") if found is None else (found[1], found[2] is not None, found[3])


def choices_hint(expected: Any, message: str) -> str:
    """Returns the values that a type allows, as the end of an error message; "" if the error is not about a choice."""
    reason, is_of_key, path = split_message(message)
    if not reason.startswith(("Invalid enum value", "Invalid value")) or is_of_key:
        return ""
    choices = list(dict.fromkeys(map(repr, _choices_at(expected, path))))
    if not choices:
        return ""
    more = ", ..." if len(choices) > _MAX_CHOICES else ""
    one_of = "one of " if len(choices) > 1 else ""
    return f"; must be {one_of}{', '.join(choices[:_MAX_CHOICES])}{more}"


def _choices_at(expected: Any, path: str) -> Iterator[object]:
    owners: list[inspect.Type] = []
    kinds = list(_alternatives([inspect.type_info(expected)]))
    name = ""
    for step in re.finditer(_STEP, path):
        name = step[1] or ""
        owners, kinds = kinds, [inner for kind in kinds for inner in _alternatives(_inside(kind, name))]
    for owner in owners:
        if isinstance(owner, inspect.StructType) and owner.tag_field == name and owner.tag != "":
            yield owner.tag
    for kind in kinds:
        if isinstance(kind, inspect.LiteralType):
            yield from kind.values
        elif isinstance(kind, inspect.EnumType):
            yield from (member.value for member in kind.cls)


def _alternatives(kinds: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """Yields types, with unions split into their members."""
    for kind in kinds:
        if isinstance(kind, inspect.UnionType):
            yield from _alternatives(kind.types)
        elif isinstance(kind, inspect.Metadata):
            yield from _alternatives([kind.type])
        else:
            yield kind


def _inside(kind: inspect.Type, name: str) -> Iterator[inspect.Type]:
    """Yields the possible types of a field, or of the items of a container if ``name`` is ""."""
    if isinstance(kind, inspect.DictType):
        yield kind.value_type
    elif isinstance(kind, inspect.CollectionType):
        yield kind.item_type
    elif isinstance(kind, inspect.TupleType):
        yield from kind.item_types
    elif isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.TypedDictType | inspect.NamedTupleType):
        yield from (field.type for field in kind.fields if field.encode_name == name)
