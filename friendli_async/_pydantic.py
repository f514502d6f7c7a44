"""Replies as pydantic fields, and so as the return types of FastAPI's routes.

pydantic is not imported here: it is what calls these methods, so it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

__all__ = ["PydanticField"]


class PydanticField:
    """Lets pydantic take a struct: an instance as it is, or JSON's objects; its schema is the struct's."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: object) -> CoreSchema:
        from pydantic_core import core_schema

        def validated(value: object) -> object:
            return value if isinstance(value, cls) else msgspec.convert(value, cls)

        written = core_schema.plain_serializer_function_ser_schema(_as_json)
        return core_schema.no_info_plain_validator_function(validated, serialization=written)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        [root], components = msgspec.json.schema_components([cls], ref_template="{name}")
        schema: dict[str, Any] = _inlined(root, components, ())
        return schema


def _as_json(value: object) -> Any:
    """What the struct's own encoding gives; `meta` is no field, so it stays out."""
    return msgspec.json.decode(msgspec.json.encode(value))


def _inlined(schema: object, components: Mapping[str, object], inside: tuple[str, ...]) -> Any:
    """The schema with no references: the places that they would point to are the user's own."""
    if isinstance(schema, list):
        return [_inlined(each, components, inside) for each in cast("list[object]", schema)]
    if not isinstance(schema, dict):
        return schema
    fields = cast("dict[str, object]", schema)
    name = fields.get("$ref")
    if isinstance(name, str):
        return {} if name in inside else _inlined(components[name], components, (*inside, name))
    return {key: _inlined(value, components, inside) for key, value in fields.items() if key != "discriminator"}
