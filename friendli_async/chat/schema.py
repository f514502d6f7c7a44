"""JSON schemas of Python types in a form that servers accept, with names and descriptions.

Supported are the types of msgspec (structs, dataclasses, TypedDicts, NamedTuples, attrs classes, enums, and lists,
tuples, dicts, unions, literals and annotated forms of them), and pydantic models, whose schema pydantic generates.
Server limits: llama.cpp rejects ``items: false``, and ignores other keywords next to a ``pattern``. Friendli's servers
forbid additional properties, whatever the schema says. Both support only the formats of dates, times and UUIDs;
Friendli says that other keywords may be an error. OpenAI's strict form requires every property and forbids additional
ones. Source: https://friendli.ai/docs/guides/structured-outputs ("Supported JSON schemas").
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Final, Union, cast, get_origin

import msgspec

from friendli_async._core.body.json_values import to_builtins
from friendli_async._json import prepared
from friendli_async._pydantic_types import MSGSPEC_MARKS, PYDANTIC_MARKS, pydantic_adapter, type_name, undecodable
from friendli_async.errors import ArgumentError

__all__ = ["json_schema"]

_Schema = dict[str, Any]

_DECIMAL: Final = r"^-?[0-9]{1,28}(\.[0-9]{1,28})?$"
_SECONDS: Final = r"T[0-9]{1,9}(\.[0-9]{1,6})?S"
_DURATION: Final = f"^-?P([0-9]{{1,6}}D|[0-9]{{1,6}}D{_SECONDS}|{_SECONDS})$"
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
_ANNOTATIONS: Final = ("default", "discriminator", "example", "examples", "title", "$comment")
_NOT_STRICT: Final = (
    *("uniqueItems", "propertyNames", "minProperties", "maxProperties"),
    *("deprecated", "readOnly", "writeOnly", "contentMediaType", "contentSchema"),
)
"""Keywords that the strict form does not support; the client validates them anyway."""
_AMBIGUOUS: Final = re.compile("may not contain more than one (dataclass|dict-like|TypedDict)")
_FORMATS: Final = ("date", "date-time", "time", "uuid")


def plain_strict(strict: object) -> bool:
    """Returns ``strict`` as a plain bool. Raises ArgumentError if it is not a bool."""
    plain = to_builtins(strict)
    if not isinstance(plain, bool):
        raise ArgumentError(f"Expected `bool`, got {strict!r}", "strict")
    return plain


def json_schema(type: Any, strict: bool = True) -> dict[str, Any]:
    """Returns the JSON schema of a type, as ``chat.parse`` sends it.

    Descriptions come from docstrings and from ``Annotated[..., msgspec.Meta(description=...)]``, or pydantic's
    ``Field``.

    Args:
        type: The type.
        strict: Whether to use the strict form that some servers require: every property is required, even one with a
            default, and additional properties are forbidden. Otherwise the schema allows what the type allows.

    Returns:
        The schema. Nested and recursive types are defined under ``$defs``.

    Raises:
        TypeError: Not a type, or a type without a JSON form; the message names it.
        ArgumentError: ``strict`` is not a bool.
    """
    return schema_and_adapter(type, plain_strict(strict))[0]


def schema_and_adapter(kind: Any, strict: bool) -> tuple[_Schema, Any]:
    """Returns what ``json_schema`` and ``pydantic_adapter`` do, and raises the same TypeErrors."""
    if isinstance(kind, Mapping):
        raise TypeError("a JSON schema is not a type: pass it to complete() or stream(), in response_format")
    cls = type(cast("object", kind))
    marks = ("model_json_schema", *PYDANTIC_MARKS, *MSGSPEC_MARKS)
    if not isinstance(kind, type) and any(hasattr(cls, mark) for mark in marks):
        raise TypeError(f"{cls.__qualname__}(...) is a value, not a type: pass the class {cls.__qualname__}")
    adapter = pydantic_adapter(kind)
    if adapter is not None:
        return _Rewriter(adapter.json_schema(), strict=strict).rewrite(), adapter
    try:
        return SchemaBuilder(strict=strict).build(msgspec.inspect.type_info(prepared(kind))), None
    except NameError as error:  # with ``from __future__ import annotations``, also of a type in the same function
        reason = f"NameError: {error}; the types of its fields must be defined at the top level of its module"
    except (TypeError, ValueError, RecursionError) as error:
        reason = reason_of(error)
    raise undecodable(kind, reason)


def reason_of(error: Exception) -> str:
    """Returns why msgspec rejects a type, and of a union of several objects, what to use instead."""
    advice = "use structs with a tag (tag=True), or Annotated[A | B, pydantic.Field(discriminator=...)]"
    return f"{error}; {advice}" if _AMBIGUOUS.search(str(error)) else str(error)


def schema_name(kind: Any) -> str:
    """Returns a type's name as a valid schema name: letters, digits, ``_`` and ``-``, at most 64 characters."""
    is_union = get_origin(kind) in (Union, UnionType)  # from Python 3.14 on, it has a name
    name = "" if is_union else getattr(getattr(kind, "__origin__", kind), "__name__", "")
    return re.sub(r"[^A-Za-z0-9_-]", "_", name or "Output")[:64]


def description_of(kind: Any) -> str | None:
    """Returns a class's own docstring, or None if it has none or only a generated one."""
    kind = getattr(kind, "__origin__", kind)
    docstring = vars(kind).get("__doc__") if isinstance(kind, type) else None
    if not isinstance(docstring, str) or kind.__module__ in {"builtins", "typing"}:
        return None
    is_generated = docstring.startswith(f"{kind.__name__}(") or docstring == "An enumeration."
    return None if is_generated else inspect.cleandoc(docstring) or None


class SchemaBuilder:
    """Builds a schema from msgspec's description of a type.

    Args:
        strict: See ``json_schema``.
        with_pydantic: Whether the type may contain pydantic models, which msgspec decodes only with a hook.
    """

    def __init__(self, *, strict: bool, with_pydantic: bool = False) -> None:
        self._strict = strict
        self._with_pydantic = with_pydantic
        self._defs: _Schema = {}
        self._names: dict[Any, str] = {}

    def build(self, info: msgspec.inspect.Type) -> _Schema:
        """Returns the schema of a type, with the definitions that it refers to.

        Raises:
            TypeError: A type without a JSON form, which the message names.
        """
        root = self._schema(info)
        removed = _ANNOTATIONS if self._strict else ()
        return _Rewriter({**root, "$defs": self._defs}, strict=self._strict, removed=removed).rewrite()

    def _schema(self, info: Any) -> _Schema:
        match info:
            case msgspec.inspect.Metadata():
                return {**self._schema(info.type), **(cast("Any", info).extra_json_schema or {})}
            case msgspec.inspect.UnionType():
                return {"anyOf": [self._schema(member) for member in info.types]}
            case msgspec.inspect.LiteralType():
                return _choices(info.values)
            case msgspec.inspect.EnumType():
                text = description_of(info.cls)
                return {**({"description": text} if text else {}), **_choices(member.value for member in info.cls)}
            case msgspec.inspect.CustomType() if self._with_pydantic and hasattr(info.cls, "model_json_schema"):
                return self._pydantic(info.cls)
            case msgspec.inspect.CustomType() if hasattr(info.cls, "model_json_schema"):
                raise TypeError(
                    f"{type_name(info.cls)} is a pydantic model, which can be in another model, a dataclass, a "
                    "TypedDict or a NamedTuple, but not in a msgspec Struct or attrs class"
                )
            case msgspec.inspect.CustomType() | msgspec.inspect.ExtType():
                raise TypeError(f"{type_name(getattr(info, 'cls', msgspec.msgpack.Ext))} has no JSON representation")
            case msgspec.inspect.CollectionType():
                return self._list(info)
            case msgspec.inspect.TupleType():
                return _tuple([self._schema(item) for item in info.item_types], len(info.item_types))
            case _ if hasattr(info, "value_type"):  # a dict, or msgspec 0.22's frozendict
                return self._dict(info)
            case _ if hasattr(info, "fields"):
                return self._reference(info)
            case _:
                return _scalar(info)

    def _list(self, info: msgspec.inspect.CollectionType) -> _Schema:
        schema: _Schema = {"type": "array", "items": self._schema(info.item_type)}
        if isinstance(info, msgspec.inspect.SetType | msgspec.inspect.FrozenSetType):
            schema["uniqueItems"] = True
        return {**schema, **_lengths(info, "minItems", "maxItems")}

    def _dict(self, info: Any) -> _Schema:
        self._schema(info.key_type)  # rejects a key without a JSON form
        values = self._schema(info.value_type) or True
        return {"type": "object", "additionalProperties": values, **_lengths(info, "minProperties", "maxProperties")}

    def _reference(self, info: Any) -> _Schema:
        name = self._names.get(info.cls)
        if name is None:
            name = schema_name(info.cls)
            while name in self._defs:
                name += "_"
            self._names[info.cls] = name
            self._defs[name] = {}  # reserves the name: a class in a field may have the same
            self._defs[name] = self._fields(info)
        return {"$ref": f"#/$defs/{name}"}

    def _pydantic(self, model: Any) -> _Schema:
        """Returns the schema of a pydantic model. Its definitions get a suffix if others have the same names."""
        suffix = ""
        while True:
            schema = _Rewriter(model.model_json_schema(), strict=self._strict, suffix=suffix).rewrite()
            definitions: _Schema = schema.pop("$defs", {})
            if all(self._defs.get(name, definition) == definition for name, definition in definitions.items()):
                self._defs |= definitions
                return schema
            suffix += "_"

    def _fields(self, info: Any) -> _Schema:
        description = description_of(info.cls)
        properties: _Schema = {}
        if getattr(info, "tag_field", None) is not None:
            properties[info.tag_field] = _choices([info.tag])
        required = [*properties, *(field.encode_name for field in info.fields if field.required)]
        properties |= {field.encode_name: self._schema(field.type) for field in info.fields}
        head = {"description": description} if description else {}
        if getattr(info, "array_like", False) or isinstance(info, msgspec.inspect.NamedTupleType):
            return {**head, **_tuple(list(properties.values()), len(required))}
        schema: _Schema = {**head, "type": "object", "properties": properties, "required": required}
        if getattr(info, "forbid_unknown_fields", False):
            schema["additionalProperties"] = False
        return schema


def _tuple(items: list[_Schema], least: int) -> _Schema:
    prefix = {"prefixItems": items} if items else {}
    return {"type": "array", **prefix, "minItems": least, "maxItems": len(items)}


def _scalar(info: Any) -> _Schema:
    match info:
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            bounds = {key: getattr(info, name) for name, key in _BOUNDS.items() if getattr(info, name) is not None}
            multiple = {} if info.multiple_of is None else {"multipleOf": info.multiple_of}
            return {"type": "integer" if isinstance(info, msgspec.inspect.IntType) else "number", **bounds, **multiple}
        case msgspec.inspect.StrType():
            pattern = {} if info.pattern is None else {"pattern": info.pattern}
            return {"type": "string", **pattern, **_lengths(info, "minLength", "maxLength")}
        case msgspec.inspect.DateTimeType():
            return {"type": "string", **({"pattern": _NAIVE_DATETIME} if info.tz is False else {"format": "date-time"})}
        case msgspec.inspect.TimeType():
            return {"type": "string", **({"pattern": _NAIVE_TIME} if info.tz is False else {"format": "time"})}
        case _:  # Any and Raw have no constraints
            kind: Any = info.__class__
            return dict(_SCALARS.get(kind, {}))


def _lengths(info: Any, least: str, most: str) -> _Schema:
    bounds = {least: info.min_length, most: info.max_length}
    return {key: bound for key, bound in bounds.items() if bound is not None}


def _choices(values: Any) -> _Schema:
    choices: list[Any] = sorted(values, key=lambda value: (value is None, isinstance(value, str)))
    for kind, name in ((str, "string"), (int, "integer")):
        if all(type(choice) is kind for choice in choices):
            return {"type": name, "enum": choices}
    return {"enum": choices}


class _Rewriter:
    """Rewrites a schema into a form that servers accept.

    Args:
        schema: The schema: pydantic's, or that of what a type of msgspec allows.
        strict: See ``json_schema``.
        suffix: Appended to the names of all definitions.
        removed: Keywords that are removed. Pydantic generates titles and defaults.
    """

    def __init__(
        self, schema: _Schema, *, strict: bool, suffix: str = "", removed: Sequence[str] = _ANNOTATIONS
    ) -> None:
        self._root = schema
        self._strict = strict
        self._suffix = suffix
        self._removed = (*removed, *_NOT_STRICT) if strict else removed
        self._defs: _Schema = schema.get("$defs", {})
        self._ancestors: list[str] = []
        self._used: dict[str, _Schema] = {}

    def rewrite(self) -> _Schema:
        """Returns the schema, with the definitions that it refers to."""
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
        for keyword in self._removed:
            schema.pop(keyword, None)
        if "$ref" in schema:
            return self._ref(schema)
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
        if "prefixItems" in schema and schema.get("items") is False:  # of a reply in a model; llama.cpp rejects it
            del schema["items"]
        if schema.get("format") == "duration":
            del schema["format"]
            schema["pattern"] = _DURATION
        if self._strict and "format" in schema:
            schema["format"] = str(schema["format"]).rstrip("0123456789")  # pydantic has uuid1 to uuid8
            if schema["format"] not in _FORMATS:
                del schema["format"]
        if "patternProperties" in schema:  # of a dict whose keys match a pattern; the client validates them
            values = [*schema.pop("patternProperties").values()]
            schema["additionalProperties"] = values[0] if len(values) == 1 else {"anyOf": values}
        if "const" in schema:
            schema["enum"] = [schema.pop("const")]
        if self._strict and "prefixItems" in schema:
            schema["minItems"] = len(schema["prefixItems"])
        for keyword in ("anyOf", "allOf", "prefixItems"):
            if keyword in schema:
                schema[keyword] = [self._schema(inner) for inner in schema[keyword]]
        for keyword in ("items", "additionalProperties", "propertyNames", "contentSchema"):
            if keyword in schema:
                schema[keyword] = self._schema(schema[keyword])
        if "properties" in schema:
            schema["properties"] = {name: self._schema(inner) for name, inner in schema["properties"].items()}
            if self._strict:
                schema["required"] = list(schema["properties"])
                schema["additionalProperties"] = False
        return schema

    def _ref(self, schema: _Schema) -> _Schema:
        reference: str = schema.pop("$ref")
        name = reference.rpartition("/")[2] + self._suffix
        target = self._target(reference)
        if schema and name not in self._ancestors:  # keywords next to a `$ref` would be ignored
            self._ancestors.append(name)
            inlined: _Schema = self._schema({**target, **schema})
            self._ancestors.pop()
            return inlined
        if name not in self._used:
            self._used[name] = {}
            self._used[name] = self._schema(target)
        return {"$ref": f"#/$defs/{name}"}
