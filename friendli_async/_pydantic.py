"""Support for pydantic: replies, inputs and options as its fields, and so in the routes of FastAPI; its models as JSON.

This module does not import pydantic: it is loaded by whatever has a model, or asks for a schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args, get_origin

import msgspec

from friendli_async._json import as_object, prepared, without_surrogates
from friendli_async._lazy import LazyModule
from friendli_async._pydantic_types import MSGSPEC_MARKS, parts_of, pydantic_adapter

if TYPE_CHECKING:
    import pydantic
    import pydantic_core
else:
    pydantic, pydantic_core = LazyModule("pydantic"), LazyModule("pydantic_core")


class PydanticField:
    """Lets pydantic validate a struct, from an instance or from JSON values, by the struct's own schema."""

    __slots__ = ()

    if TYPE_CHECKING:
        __struct_config__: ClassVar[Any]
        __struct_fields__: ClassVar[tuple[str, ...]]

    _json_types: ClassVar[Mapping[str, Any]] = {}
    """The types of fields that are ``Any`` to msgspec because the struct converts them itself, for the schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: object) -> pydantic_core.CoreSchema:
        from pydantic_core import core_schema

        kind = _prepared(source)  # with its arguments, if it is generic

        def validate(value: object) -> object:
            if cls._is_valid(value):
                return value
            cls._check_tag(value)
            return msgspec.convert(value, kind, dec_hook=_load, str_keys=True)

        validate.__name__ = cls.__name__  # pydantic names the members of a union by it in its errors
        serialization, metadata = _serialization(), {"kind": kind}
        return core_schema.no_info_plain_validator_function(validate, serialization=serialization, metadata=metadata)

    @classmethod
    def _is_valid(cls, value: object) -> bool:
        """Whether a value is valid as it is, without conversion."""
        return isinstance(value, cls)

    @classmethod
    def _check_tag(cls, value: object) -> None:
        """Checks that a value is tagged as its schema requires. msgspec requires a tag only of members of a union.

        In a union of pydantic, each member is tried by itself: without the check, a message without a role would become
        the first kind of message, that of the system.

        Raises:
            ValidationError: It has no tag, or the class has neither a tag nor fields: an instance of a subclass is
                required, because anything else would be converted to nothing.
        """
        field = cls.__struct_config__.tag_field
        if field is None and not cls.__struct_fields__:
            raise msgspec.ValidationError(f"Expected `{cls.__name__}`, got `{type(value).__name__}`")
        if field is not None and isinstance(value, Mapping) and field not in value:
            raise msgspec.ValidationError(f"Object missing required field `{field}`")

    @property
    def __pydantic_serializer__(self) -> pydantic_core.SchemaSerializer:
        """Used by pydantic for a value whose type is not annotated, as in ``-> dict[str, Any]``."""
        return _serializer()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        from pydantic.errors import PydanticInvalidForJsonSchema

        def schema_of(kind: object) -> dict[str, Any]:
            try:
                schema: dict[str, Any] = _adapter(kind).json_schema(ref_template="{model}", mode=handler.mode)
            except PydanticInvalidForJsonSchema:
                return {"not": {}}  # a callback: no JSON value is one
            inlined: dict[str, Any] = _inline_refs(schema, schema.pop("$defs", {}), ())
            return inlined

        kind: Any = core.get("metadata", {}).get("kind", cls)
        owners = [part for part in parts_of(kind, MSGSPEC_MARKS, set()) if getattr(part, "_json_types", None)]
        fields = [(owner, name, each) for owner in owners for name, each in owner._json_types.items()]
        kinds = [kind, *(owner for owner, _, _ in fields), *(each for _, _, each in fields)]
        schemas, components = msgspec.json.schema_components(kinds, schema_hook=schema_of, ref_template="{name}")
        references, types = schemas[1 : 1 + len(fields)], schemas[1 + len(fields) :]
        for (_, name, _), reference, each in zip(fields, references, types, strict=True):
            components[reference["$ref"]]["properties"][name] |= _inline_refs(each, components, ())
        inlined: dict[str, Any] = _inline_refs(schemas[0], components, ())
        return inlined


class _StandIn(type):
    """Metaclass of stand-ins: msgspec checks the class of what a hook returns."""

    adapter: pydantic.TypeAdapter[Any]

    def __instancecheck__(cls, instance: object) -> bool:
        return True


def stand_in(name: str, adapter: pydantic.TypeAdapter[Any]) -> Any:
    """Returns a class that stands for a type that pydantic has to validate, with the methods of a model.

    msgspec ignores the type's constraints, or rejects it, such as a union of models. To msgspec, the class is an
    unknown one, whose values its hooks convert.
    """
    methods = {"model_json_schema": adapter.json_schema, "model_validate_json": adapter.validate_json}
    return _StandIn(name, (), {"adapter": adapter, **methods})


def _prepared(source: Any) -> Any:
    """Returns a struct that msgspec knows, with a stand-in for its argument if pydantic has to validate that."""
    with suppress(TypeError):  # pydantic cannot: a model inside of a struct
        for argument in get_args(source):
            adapter = pydantic_adapter(argument)
            if adapter is not None:
                return prepared(get_origin(source)[stand_in("Value", adapter)])
    return prepared(source)


def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return kind.adapter if isinstance(kind, _StandIn) else TypeAdapter(kind)


def _serialization() -> pydantic_core.core_schema.PlainSerializerFunctionSerSchema:
    from pydantic_core import core_schema

    return core_schema.plain_serializer_function_ser_schema(as_json)


@cache
def _serializer() -> pydantic_core.SchemaSerializer:
    from pydantic_core import SchemaSerializer, core_schema

    return SchemaSerializer(core_schema.any_schema(serialization=_serialization()))


def as_json(value: object) -> Any:
    """Returns the struct as JSON values; `meta` is not a field, so it is not included."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_dump))
    except UnicodeEncodeError:
        return without_surrogates(msgspec.to_builtins(value, str_keys=True, enc_hook=_dump))


def dump_model(value: Any, **options: bool) -> object:
    """Converts a pydantic model, as a hook of an encoder.

    Raises:
        TypeError: The value is not a pydantic model.
    """
    dump: Any = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json", **options)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _dump(value: object) -> object:
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, by_alias=True)  # as FastAPI does


def _load(kind: object, value: object) -> object:
    return _adapter(kind).validate_json(msgspec.json.encode(value, enc_hook=_dump))


def _inline_refs(schema: object, components: Mapping[str, object], inside: tuple[str, ...]) -> Any:
    """Inlines all references of a schema: the definitions of the enclosing document belong to the user."""
    if isinstance(schema, list):
        return [_inline_refs(each, components, inside) for each in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast("dict[str, object]", schema)
    name = fields.get("$ref")
    if isinstance(name, str):
        return {} if name in inside else _inline_refs(components[name], components, (*inside, name))
    fields = {key: value for key, value in fields.items() if not (key == "discriminator" and _is_discriminator(value))}
    if fields.get("type") == "object" and "properties" in fields:
        # Without the fields that serve to decode, such as ``ToolCall.custom``: they are never in the JSON.
        properties, required = as_object(fields["properties"]), cast("list[str]", fields.get("required", []))
        hidden = {key for key, each in properties.items() if as_object(each).get("type") == "null"} - {*required}
        fields["properties"] = {key: each for key, each in properties.items() if key not in hidden}
    return {key: _inline_refs(value, components, inside) for key, value in fields.items()}


def _is_discriminator(value: object) -> bool:
    """Whether it is that keyword, whose references cannot be inlined, and not the schema of a field of this name."""
    return isinstance(value, dict) and isinstance(cast("dict[str, object]", value).get("propertyName"), str)
