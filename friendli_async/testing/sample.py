"""Builds a value that matches a JSON Schema: the arguments of a function, a document in a response format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
from typing import Any, Final, cast

_MAX_DEPTH: Final = 8
_MAX_TEXT: Final = 200
_FORMATS: Final = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_TEXTS: Final = ("0", "a", "A", *_FORMATS.values(), "2026-01-02T03:04:05", "03:04:05", "PT1S", "a@example.com", "")
"""What is tried for a pattern; those of the types that `chat.json_schema` describes by one are among them."""


def sample(schema: Mapping[str, Any], text: str) -> object:
    """Build a value that matches a JSON Schema; the result is deterministic.

    It supports `type`, `properties`, `items`, `prefixItems`, `enum`, `const`, `anyOf`, `oneOf`, `allOf` of one schema,
    references into the schema itself, bounds of numbers, lengths of strings and lists, the formats of dates, times,
    durations and UUIDs, and patterns that a usual text matches. Recursive schemas end after eight levels, with null or
    an empty list if that is allowed, or else with null after sixteen.

    `text` is the value of strings, truncated to 200 characters.
    """
    return _sample(schema, text[:_MAX_TEXT], schema, 0)


def _sample(schema: Any, text: str, root: Mapping[str, Any], depth: int) -> object:
    if schema is True or depth > _MAX_DEPTH + _MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "$ref" in schema:
        return _sample(_resolve(root, schema["$ref"]), text, root, depth + 1)
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if alternatives in schema:
            if depth > _MAX_DEPTH and {"type": "null"} in schema[alternatives]:
                return None
            return _sample(schema[alternatives][0], text, root, depth + 1)
    kind: Any = schema.get("type", "object" if "properties" in schema else None)
    kind = cast("list[str]", kind)[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties: dict[str, object] = schema.get("properties", {})
        return {name: _sample(value, text, root, depth + 1) for name, value in properties.items()}
    if kind == "array":
        return [_sample(item, text, root, depth + 1) for item in _items(schema, depth)]
    if kind == "string":
        return _text(schema, text)
    if kind in {"integer", "number"}:
        return _number(schema, 1 if kind == "integer" else 1.5)
    return True if kind == "boolean" else None


def _items(schema: Mapping[str, Any], depth: int) -> list[object]:
    """Return the schemas of the items of a list: as few as allowed, but one if allowed."""
    if "prefixItems" in schema:
        return list(schema["prefixItems"])
    least = int(schema.get("minItems", 0))
    usual = 1 if schema.get("items") and depth <= _MAX_DEPTH else 0
    return [schema.get("items", {})] * max(least, min(usual, int(schema.get("maxItems", usual))))


def _text(schema: Mapping[str, Any], text: str) -> str:
    if "pattern" in schema:
        return next((each for each in (text, *_TEXTS) if re.search(schema["pattern"], each)), text)
    text = _FORMATS.get(str(schema.get("format")), text)
    return text.ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _number(schema: Mapping[str, Any], usual: float) -> float:
    least: float = schema.get("minimum", -inf)
    most: float = schema.get("maximum", inf)
    above: float = schema.get("exclusiveMinimum", -inf)
    below: float = schema.get("exclusiveMaximum", inf)
    distance = min(most, below) - max(least, above)
    step = 1 if isinstance(usual, int) else min(1.0, distance / 2)
    return min(max(usual, least, above + step), most, below - step)


def _resolve(root: Any, reference: str) -> Any:
    for name in reference.removeprefix("#").strip("/").split("/"):
        root = root[name] if name else root
    return root
