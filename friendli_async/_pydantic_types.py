"""Which types pydantic has to validate, because msgspec does not know them or ignores their constraints.

This module imports pydantic only for such a type.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final, get_args, get_origin, get_type_hints

import msgspec

PYDANTIC_MARKS: Final = ("__dataclass_fields__", "__total__", "_field_defaults")
"""Attributes of the classes that pydantic supports: dataclasses, TypedDicts and NamedTuples."""
MSGSPEC_MARKS: Final = ("__struct_fields__", "__attrs_attrs__")


def pydantic_adapter(kind: Any, *, models: bool = True) -> Any:
    """Returns the TypeAdapter of a type that pydantic has to validate, or None if msgspec can do it.

    msgspec does not know the types of pydantic, and ignores its constraints (``Annotated[int, Field(ge=1)]``) and those
    of ``annotated_types``. With ``models``, a type in which only models are pydantic's has an adapter, too.

    Raises:
        TypeError: pydantic does not support the type, or a constraint in it would be ignored.
    """
    parts = list(parts_of(kind, PYDANTIC_MARKS, set()))
    has_model = any(hasattr(part, "model_json_schema") for part in parts)
    if _has_ignored_constraint(kind, parts):
        where = "on a msgspec Struct or attrs class, and in its fields; use msgspec.Meta, or a dataclass"
        raise undecodable(kind, f"a type or constraint of pydantic has no effect {where}")
    if not any(map(_is_of_pydantic, parts)) and not (models and has_model):
        return None
    if any(isinstance(part, msgspec.Meta) for part in parts_of(kind, (*PYDANTIC_MARKS, "model_fields"), set())):
        raise undecodable(kind, "pydantic validates it, where msgspec.Meta has no effect; use pydantic.Field")
    return _create_adapter(kind, "a pydantic model" if has_model else "types of pydantic")


def _create_adapter(kind: Any, contents: str) -> Any:
    try:
        import pydantic  # has been imported already, unless the constraints are of annotated_types
    except ImportError:
        raise undecodable(
            kind, "constraints of annotated_types need pydantic, which is not installed; use msgspec.Meta"
        ) from None
    try:
        adapter: Any = pydantic.TypeAdapter(kind)
        adapter.json_schema()
    except (pydantic.errors.PydanticUserError, NameError) as error:
        reason = f"it contains {contents}, and pydantic rejects it: " + str(error).partition("\n")[0]
    else:
        return adapter
    raise undecodable(kind, reason)


def undecodable(kind: Any, reason: str) -> TypeError:
    """Returns the error for a type that JSON cannot be decoded to."""
    return TypeError(f"{type_name(kind)} cannot be decoded from JSON: {reason}")


def _is_of_pydantic(part: object) -> bool:
    """Whether a part of a type means something only to pydantic; not for models, which msgspec rejects by itself."""
    hooks = ("__get_pydantic_core_schema__", "__pydantic_core_schema__")  # the latter is what its dataclasses have
    if isinstance(part, type):
        found = {name for name in (*hooks, "__struct_fields__", "model_json_schema") if hasattr(part, name)}
        return bool(found) and found <= {*hooks}
    metadata = type(part)
    return metadata.__module__.partition(".")[0] in {"pydantic", "annotated_types"} or hasattr(metadata, hooks[0])


def _has_ignored_constraint(kind: Any, parts: Sequence[Any]) -> bool:
    """Whether something of pydantic is on a class that only msgspec supports, or in its fields."""
    if any(map(_is_of_pydantic, parts)):
        marked = [part for part in parts if any(hasattr(part, mark) for mark in MSGSPEC_MARKS)]
        return not all(hasattr(part, "__get_pydantic_core_schema__") for part in marked)
    return any(map(_is_of_pydantic, parts_of(kind, (*PYDANTIC_MARKS, *MSGSPEC_MARKS), set())))


def parts_of(kind: Any, marks: Sequence[str], seen: set[Any]) -> Iterator[Any]:
    """Yields a type, its arguments and metadata, the types of its fields, and theirs.

    The fields are those of classes with one of the attributes ``marks``. Classes and type aliases that are ``seen`` are
    not inspected again.
    """
    yield kind
    origin = get_origin(kind)
    inner = [*get_args(kind), *_field_types(kind, marks, seen)]
    if origin is not None:
        inner.append(origin)
    if hasattr(kind, "__value__") and hasattr(kind, "__type_params__") and kind not in seen:  # of a type statement
        seen.add(kind)
        inner.append(kind.__value__)
    for each in inner:
        yield from parts_of(each, marks, seen)


def _field_types(cls: Any, marks: Sequence[str], seen: set[Any]) -> list[Any]:
    """Returns the types of the fields of a class, and pydantic's ``Field(...)`` where it is a field's default."""
    if not isinstance(cls, type) or cls in seen or not any(hasattr(cls, mark) for mark in marks):
        return []
    seen.add(cls)
    try:
        hints = get_type_hints(cls, include_extras=True)
    except (NameError, AttributeError, SyntaxError, TypeError):  # to be reported by msgspec
        return []
    fields = [*getattr(cls, "__dataclass_fields__", {}).values(), *getattr(cls, "__attrs_attrs__", ())]
    defaults = [*(field.default for field in fields), *getattr(cls, "__struct_defaults__", ())]
    return [
        *(hint for hint in hints.values() if get_origin(hint) is not ClassVar),
        *(default for default in defaults if type(default).__module__ == "pydantic.fields"),
    ]


def type_name(kind: Any) -> str:
    """Returns the name of a type for messages."""
    return kind.__qualname__ if isinstance(kind, type) else repr(kind)
