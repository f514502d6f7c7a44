"""Support for pydantic: replies as its fields, and thus as return types of FastAPI routes; its models as JSON.

This module does not import pydantic: it is loaded by whatever has a model, or asks for a schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from friendli_async._json import prepared, without_surrogates

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema, SchemaSerializer
    from pydantic_core.core_schema import PlainSerializerFunctionSerSchema

__all__ = ["PydanticField", "as_json", "dump_model"]


class PydanticField:
    """Lets pydantic validate a struct, from an instance or from JSON values, by the struct's own schema."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        def validate(value: object) -> object:
            return value if isinstance(value, cls) else msgspec.convert(value, cls)

        prepared(cls)
        return core_schema.no_info_plain_validator_function(validate, serialization=_serialization())

    @property
    def __pydantic_serializer__(self) -> SchemaSerializer:
        """Used by pydantic for a value whose type is not annotated, as in ``-> dict[str, Any]``."""
        return _serializer()

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        [root], components = msgspec.json.schema_components([prepared(cls)], ref_template="{name}")
        schema: dict[str, Any] = _inline_refs(root, components, ())
        return schema


def _serialization() -> PlainSerializerFunctionSerSchema:
    from pydantic_core import core_schema

    return core_schema.plain_serializer_function_ser_schema(as_json)


@cache
def _serializer() -> SchemaSerializer:
    from pydantic_core import SchemaSerializer, core_schema

    return SchemaSerializer(core_schema.any_schema(serialization=_serialization()))


def as_json(value: object) -> Any:
    """Returns the struct as JSON values; `meta` is not a field, so it is not included."""
    try:
        return msgspec.json.decode(msgspec.json.encode(value))
    except UnicodeEncodeError:
        return without_surrogates(msgspec.to_builtins(value, str_keys=True))


def dump_model(value: Any, **options: bool) -> object:
    """Converts a pydantic model, as a hook of an encoder.

    Raises:
        TypeError: The value is not a pydantic model.
    """
    dump: Any = getattr(value, "model_dump", None)
    if callable(dump):
        return dump(mode="json", **options)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


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
    return {key: _inline_refs(value, components, inside) for key, value in fields.items() if key != "discriminator"}
