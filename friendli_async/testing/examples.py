"""Builds values that match the schemas of the API: replies and events for scripts and for tests of clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from friendli_async.testing.schema import Schema, resolve

_MAX_DEPTH: Final = 12
_DATE: Final = "2026-01-02T03:04:05Z"


def example(
    name: str,
    variant: int = 0,
    *,
    sparse: bool = False,
    nulls: bool = False,
    extra: bool = False,
    novel: bool = False,
) -> Any:
    """Build a value that matches a schema of the API; the result is deterministic.

    A list of a union contains one item of each kind, any other list two items.

    Args:
        name: Name of the schema.
        variant: Index of the alternative to use in unions and enums, from 0, modulo their number.
        sparse: Omit all optional fields.
        nulls: Use null wherever it is allowed.
        extra: Add fields that are not in the schema, as a later release of the API may.
        novel: Use values that are not in an enum, likewise, and members of kinds that are not in a union.

    Returns:
        The value, which can be encoded as JSON.
    """
    return _Example(variant, sparse=sparse, nulls=nulls, extra=extra, novel=novel).of({"$ref": name}, name, 0)


def fill(name: str, /, **known: object) -> dict[str, Any]:
    """Build an object that matches a schema, given by name; the fields that are not known are made up."""
    return {**example(name), **known}


@dataclass(frozen=True)
class _Example:
    variant: int
    sparse: bool
    nulls: bool
    extra: bool
    novel: bool

    def of(self, schema: Schema, name: str, depth: int) -> object:
        if depth > _MAX_DEPTH or (self.nulls and schema.get("nullable")):
            return None
        schema = resolve(schema)
        if "discriminator" in schema:
            return self._tagged(schema["discriminator"], depth)
        if "oneOf" in schema:
            union: list[Schema] = schema["oneOf"]
            return self.of(union[self.variant % len(union)], name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            if self.novel:
                return f"a new {name}"
            return schema["enum"][self.variant % len(schema["enum"])]
        return self._plain(schema, name, depth)

    def _plain(self, schema: Schema, name: str, depth: int) -> object:
        match schema["type"]:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(resolve(schema["items"]), name, depth)
            case "string":
                return _DATE if schema.get("format") == "date-time" else f"{name} {self.variant}"
            case "integer":
                return 3 + self.variant
            case "number":
                return 0.25 + self.variant
            case _:
                return self.variant % 2 == 0

    def _object(self, schema: Schema, depth: int) -> dict[str, object]:
        properties: Mapping[str, Schema] = schema.get("properties", {})
        required = set(cast("list[str]", schema.get("required", [])))
        built = {
            key: self.of(inner, key, depth + 1)
            for key, inner in properties.items()
            if key in required or not self.sparse
        }
        others: object = schema.get("additional_properties")
        if properties and self.extra:
            built |= {"new_text": "text", "new_object": {"new": [1, None]}, "new_null": None}
        if not properties and others and not self.sparse:
            inner = cast("Schema", others) if isinstance(others, dict) else {"type": "integer"}
            built |= {key: self.of(inner, key, depth + 1) for key in ("first", "second")}
        return built

    def _array(self, items: Schema, name: str, depth: int) -> list[object]:
        if "discriminator" not in items:
            return [self.of(items, name, depth + 1) for _ in range(2)]
        discriminator = items["discriminator"]
        named = [self._tagged_as(discriminator, tag, depth) for tag in discriminator["mapping"]]
        if self.novel:
            named.append({discriminator["property"]: f"a new {name}"})
        first = self.variant % len(named)
        return named[first:] + named[:first]

    def _tagged(self, discriminator: Mapping[str, Any], depth: int) -> object:
        if self.novel:
            return {discriminator["property"]: "a new kind"}
        tags = list(discriminator["mapping"])
        return self._tagged_as(discriminator, tags[self.variant % len(tags)], depth)

    def _tagged_as(self, discriminator: Mapping[str, Any], tag: str, depth: int) -> object:
        key, name = discriminator["property"], discriminator["mapping"][tag]
        built = self.of({"$ref": name}, name, depth + 1)
        return {**cast("dict[str, object]", built), key: tag} if isinstance(built, dict) else built
