"""The JSON schema of a Python type, in the form that servers accept, and its name and description.

The types are those of msgspec: structs, dataclasses, TypedDicts, NamedTuples, attrs classes, enums, and lists, tuples,
dicts, unions, literals and annotated forms of them; and pydantic models, whose schema pydantic makes. Facts about
servers: llama.cpp refuses ``items: false``, knows no formats but those of dates, times and UUIDs, and looks at nothing
else beside a ``pattern``; OpenAI's strict form wants every property required and no other ones.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast, get_args

import msgspec

__all__ = ["json_schema"]

_Schema = dict[str, Any]

_DECIMAL: Final = r"^-?[0-9]{1,28}(\.[0-9]{1,28})?$"
_DURATION: Final = r"^P([0-9]{1,6}D|[0-9]{1,6}DT[0-9]{1,9}S|T[0-9]{1,9}S)$"
_BASE64: Final = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_CLOCK: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_NAIVE_TIME: Final = f"^{_CLOCK}$"
_NAIVE_DATETIME: Final = rf"^[0-9]{{4}}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T{_CLOCK}$"
_BYTES: Final = {"type": "string", "pattern": _BASE64}
_SCALARS: Final[dict[type[msgspec.inspect.Type], _Schema]] = {
    msgspec.inspect.NoneType: {"type": "null"},
    msgspec.inspect.BoolType: {"type": "boolean"},
    msgspec.inspect.DateType: {"type": "string", "format": "date"},
    msgspec.inspect.UUIDType: {"type": "string", "format": "uuid"},
    msgspec.inspect.TimeDeltaType: {"type": "string", "pattern": _DURATION},
    msgspec.inspect.DecimalType: {"type": "string", "pattern": _DECIMAL},
    msgspec.inspect.BytesType: _BYTES,
    msgspec.inspect.ByteArrayType: _BYTES,
    msgspec.inspect.MemoryViewType: _BYTES,
}
_BOUNDS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_NOTES: Final = ("default", "discriminator", "example", "examples", "title", "$comment")
_UNSAID: Final = ("uniqueItems", "propertyNames", "minProperties", "maxProperties")
"""What the strict form has no room for; the value is checked here all the same."""


def json_schema(type: Any, strict: bool = True) -> dict[str, Any]:
    """Makes the JSON schema of a type, as ``chat.parse`` sends it.

    Descriptions come from docstrings and from ``Annotated[..., msgspec.Meta(description=...)]``, or pydantic's
    ``Field``.

    Args:
        type: The type.
        strict: Whether it is made as servers with a strict form want it: every property is required, also one that has
            a default, and no other is allowed. Otherwise it allows what the type allows.

    Returns:
        The schema; types that contain themselves stand under ``$defs``.

    Raises:
        TypeError: It is no type, or there is no JSON for it; the words name it.
    """
    adapter = pydantic_adapter(type)
    if adapter is not None:
        return _Rewriting(adapter.json_schema(), strict=strict).whole()
    _check_type(type)
    return _Making(strict=strict).whole(msgspec.inspect.type_info(type))


def _check_type(kind: Any) -> None:
    """Refuses what there is no JSON for.

    Raises:
        TypeError: With the name of what it cannot be made from.
    """
    try:
        infos = msgspec.inspect.type_info(kind)
        msgspec.json.Decoder(kind)
    except (TypeError, NameError, ValueError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, NameError) else str(error)
        raise TypeError(f"{_type_name(kind)} cannot be read from JSON: {reason}") from None
    for custom in _customs(infos, set()):
        raise TypeError(
            f"{_type_name(kind)} cannot be read from JSON: {_type_name(custom)} is no type that JSON has a form for"
        )


def _customs(info: object, seen: set[int]) -> Iterator[Any]:
    """The types, somewhere in a type, that msgspec leaves to its user."""
    if isinstance(info, msgspec.inspect.CustomType | msgspec.inspect.ExtType):
        yield getattr(info, "cls", msgspec.msgpack.Ext)
    if isinstance(info, tuple):
        for inner in cast("tuple[object, ...]", info):
            yield from _customs(inner, seen)
    elif isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field) and id(info) not in seen:
        seen.add(id(info))
        for name in info.__struct_fields__:
            if name not in {"default", "default_factory", "cls"}:
                yield from _customs(getattr(info, name), seen)


def pydantic_adapter(kind: Any) -> Any:
    """The TypeAdapter of a type that has a pydantic model somewhere; None for every other type, without an import.

    Raises:
        TypeError: pydantic cannot make anything of it.
    """
    pydantic = sys.modules.get("pydantic")  # where a model is, it has been imported
    if pydantic is None or not _has_pydantic(kind):
        return None
    try:
        adapter = pydantic.TypeAdapter(kind)
        adapter.json_schema()
    except (pydantic.errors.PydanticUserError, NameError) as error:
        reason = str(error).partition("\n")[0]
    else:
        return adapter
    raise TypeError(f"{_type_name(kind)} cannot be read from JSON: {reason}")


def _has_pydantic(kind: Any) -> bool:
    is_one = isinstance(kind, type) and hasattr(kind, "__pydantic_core_schema__")
    return is_one or any(map(_has_pydantic, get_args(kind)))


def _type_name(kind: Any) -> str:
    """What a type is called, in words."""
    return kind.__qualname__ if isinstance(kind, type) and not get_args(kind) else repr(kind)


def schema_name(kind: Any) -> str:
    """A type's name as a schema may have it: letters, digits, ``_`` and ``-``, at most 64."""
    name = getattr(getattr(kind, "__origin__", kind), "__name__", "") or "Output"
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]


def description_of(kind: Any) -> str | None:
    """A class's own docstring; None where it has none, or only the one that Python writes."""
    kind = getattr(kind, "__origin__", kind)
    words = vars(kind).get("__doc__") if isinstance(kind, type) else None
    if not isinstance(words, str) or not kind.__module__ or kind.__module__ in {"builtins", "typing"}:
        return None
    if words.startswith(f"{kind.__name__}(") or words in {"An enumeration.", enum.Enum.__doc__}:
        return None
    return inspect.cleandoc(words) or None


class _Making:
    """Makes a schema of what msgspec says about a type."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._defs: _Schema = {}
        self._names: dict[Any, str] = {}
        self._above: list[Any] = []

    def whole(self, info: msgspec.inspect.Type) -> _Schema:
        """The schema of a type, with what it refers to."""
        while isinstance(info, msgspec.inspect.Metadata) and hasattr(info.type, "fields"):
            info = info.type
        root = self._fields(info) if hasattr(info, "fields") else self._schema(info)
        return {**root, "$defs": self._defs} if self._defs else root

    def _schema(self, info: Any) -> _Schema:
        match info:
            case msgspec.inspect.Metadata():
                return self._described(info)
            case msgspec.inspect.UnionType():
                return {"anyOf": [self._schema(member) for member in info.types]}
            case msgspec.inspect.LiteralType():
                return _choices(info.values)
            case msgspec.inspect.EnumType():
                words = description_of(info.cls)
                return {**({"description": words} if words else {}), **_choices(member.value for member in info.cls)}
            case msgspec.inspect.CollectionType():
                return self._list(info)
            case msgspec.inspect.TupleType():
                return self._tuple([self._schema(item) for item in info.item_types])
            case _ if hasattr(info, "value_type"):  # a dict, or msgspec 0.22's frozendict
                return self._dict(info)
            case _ if hasattr(info, "fields"):
                return self._reference(info)
            case _:
                return _scalar(info)

    def _described(self, info: msgspec.inspect.Metadata) -> _Schema:
        """A type with further words about it: beside a reference they would not count, so its schema is copied."""
        extra: _Schema = dict(cast("Any", info).extra_json_schema or {})
        if self._strict:
            extra = {name: value for name, value in extra.items() if name not in _NOTES}
        inner: Any = info.type
        if extra and hasattr(inner, "fields") and inner.cls not in self._above:
            return {**self._fields(inner), **extra}
        schema = self._schema(inner)
        return schema if "$ref" in schema else {**schema, **extra}

    def _list(self, info: msgspec.inspect.CollectionType) -> _Schema:
        schema: _Schema = {"type": "array", "items": self._schema(info.item_type)}
        if isinstance(info, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType) and not self._strict:
            schema["uniqueItems"] = True
        return {**schema, **_lengths(info, "minItems", "maxItems")}

    def _tuple(self, items: list[_Schema], least: int | None = None) -> _Schema:
        return {
            "type": "array",
            "prefixItems": items,
            "minItems": len(items) if least is None or self._strict else least,
            "maxItems": len(items),
        }

    def _dict(self, info: Any) -> _Schema:
        schema: _Schema = {"type": "object", "additionalProperties": self._schema(info.value_type) or True}
        return schema if self._strict else {**schema, **_lengths(info, "minProperties", "maxProperties")}

    def _reference(self, info: Any) -> _Schema:
        name = self._names.get(info.cls)
        if name is None:
            name = schema_name(info.cls)
            while name in self._names.values():
                name += "_"
            self._names[info.cls] = name
            self._defs[name] = {}  # its place, in the order of the fields
            self._defs[name] = self._fields(info)
        return {"$ref": f"#/$defs/{name}"}

    def _fields(self, info: Any) -> _Schema:
        self._above.append(info.cls)
        words = description_of(info.cls)
        properties: _Schema = {}
        if getattr(info, "tag_field", None) is not None:
            properties[info.tag_field] = _choices([info.tag])
        required = [*properties, *(field.encode_name for field in info.fields if field.required or self._strict)]
        properties |= {field.encode_name: self._schema(field.type) for field in info.fields}
        self._above.pop()
        head = {"description": words} if words else {}
        if getattr(info, "array_like", False) or isinstance(info, msgspec.inspect.NamedTupleType):
            return {**head, **self._tuple(list(properties.values()), len(required))}
        schema: _Schema = {**head, "type": "object", "properties": properties, "required": required}
        if self._strict or getattr(info, "forbid_unknown_fields", False):
            schema["additionalProperties"] = False
        return schema


def _scalar(info: Any) -> _Schema:
    match info:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            bounds = {word: getattr(info, name) for name, word in _BOUNDS.items() if getattr(info, name) is not None}
            multiple = {} if info.multiple_of is None else {"multipleOf": info.multiple_of}
            return {"type": "integer" if isinstance(info, msgspec.inspect.IntType) else "number", **bounds, **multiple}
        case msgspec.inspect.StrType():
            pattern = {} if info.pattern is None else {"pattern": info.pattern}
            return {"type": "string", **pattern, **_lengths(info, "minLength", "maxLength")}
        case msgspec.inspect.DateTimeType():
            return {"type": "string", **({"pattern": _NAIVE_DATETIME} if info.tz is False else {"format": "date-time"})}
        case msgspec.inspect.TimeType():
            return {"type": "string", **({"pattern": _NAIVE_TIME} if info.tz is False else {"format": "time"})}
        case _:  # nothing is said of Any, and of bytes of JSON that are kept as they are
            kind: Any = info.__class__
            return dict(_SCALARS.get(kind, {}))


def _lengths(info: Any, least: str, most: str) -> _Schema:
    bounds = {least: info.min_length, most: info.max_length}
    return {word: bound for word, bound in bounds.items() if bound is not None}


def _choices(values: Any) -> _Schema:
    choices: list[Any] = sorted(values, key=lambda value: (value is None, isinstance(value, str)))
    for kind, name in ((str, "string"), (int, "integer")):
        if all(type(choice) is kind for choice in choices):
            return {"type": name, "enum": choices}
    return {"enum": choices}


class _Rewriting:
    """Makes a schema of pydantic's into one that servers accept."""

    def __init__(self, schema: _Schema, *, strict: bool) -> None:
        self._root = schema
        self._strict = strict
        self._defs: _Schema = schema.get("$defs", {})
        self._above: list[str] = []
        self._used: dict[str, _Schema] = {}

    def whole(self) -> _Schema:
        """The schema, with what it refers to."""
        root = {name: value for name, value in self._root.items() if name != "$defs"}
        if "$ref" in root:
            root = {**self._target(root["$ref"]), **{name: value for name, value in root.items() if name != "$ref"}}
        schema = self._schema(root)
        return {**schema, "$defs": self._used} if self._used else schema

    def _target(self, reference: str) -> _Schema:
        target: _Schema = self._defs[reference.rpartition("/")[2]]
        return target

    def _schema(self, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        schema: _Schema = dict(cast("Mapping[str, Any]", given))
        for word in (*_NOTES, *(_UNSAID if self._strict else ())):
            schema.pop(word, None)
        if "$ref" in schema:
            return self._referring(schema)
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
        if "prefixItems" in schema and schema.get("items") is False:
            del schema["items"]
        if schema.get("format") == "duration":
            schema = {"type": "string", "pattern": _DURATION}
        if "const" in schema:
            schema["enum"] = [schema.pop("const")]
        for word in ("anyOf", "allOf", "prefixItems"):
            if word in schema:
                schema[word] = [self._schema(inner) for inner in schema[word]]
        for word in ("items", "additionalProperties"):
            if word in schema:
                schema[word] = self._schema(schema[word])
        if "properties" in schema:
            schema["properties"] = {name: self._schema(inner) for name, inner in schema["properties"].items()}
            if self._strict:
                schema["required"] = list(schema["properties"])
                schema["additionalProperties"] = False
        return schema

    def _referring(self, schema: _Schema) -> _Schema:
        reference: str = schema.pop("$ref")
        name = reference.rpartition("/")[2]
        target = self._target(reference)
        if schema and name not in self._above:  # words beside a reference would not count
            self._above.append(name)
            inlined: _Schema = self._schema({**target, **schema})
            self._above.pop()
            return inlined
        if name not in self._used:
            self._used[name] = {}
            self._used[name] = self._schema(target)
        return {"$ref": f"#/$defs/{name}"}
