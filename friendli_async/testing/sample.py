"""Builds a value that matches a JSON Schema: the arguments of a function, a document in a response format."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from itertools import chain
from math import ceil, floor, inf
from typing import Any, Final, cast

__all__ = ["sample"]

_parser: Any = importlib.import_module("re._parser")  # there is no public parser
_compiler: Any = importlib.import_module("re._compiler")
_MAX_DEPTH: Final = 8
_MAX_TEXT: Final = 200
_FORMATS: Final = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "duration": "PT1H",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample(schema: Mapping[str, Any], text: str) -> object:
    """Build a value that matches a JSON Schema; the result is deterministic.

    It supports `type`, `properties`, `items`, `prefixItems`, `enum`, `const`, `anyOf`, `oneOf`, `allOf` of one schema,
    references into the schema itself, bounds of numbers, lengths of strings and lists, patterns, and the formats of
    dates, times, durations and UUIDs. Recursive schemas end after eight levels, with null or an empty list if that is
    allowed, or else with null after sixteen.

    `text` is the value of strings, truncated to 200 characters.
    """
    return _sample(schema, text[:_MAX_TEXT], schema, 0)


def _sample(schema: object, text: str, root: Mapping[str, Any], depth: int) -> object:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH + _MAX_DEPTH:
        return None
    fields = cast("dict[str, object]", schema)
    if "const" in fields:
        return fields["const"]
    if "enum" in fields:
        return _first(fields["enum"])
    if isinstance(reference := fields.get("$ref"), str):
        return _sample(_resolve(root, reference), text, root, depth + 1)
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if alternatives in fields:
            if depth > _MAX_DEPTH and {"type": "null"} in cast("list[object]", fields[alternatives]):
                return None
            return _sample(_first(fields[alternatives]), text, root, depth + 1)
    kind = fields.get("type", "object" if "properties" in fields else None)
    kind = kind if isinstance(kind, str) else _first(kind)
    if kind == "object":
        properties = fields.get("properties")
        inner = cast("dict[str, object]", properties if isinstance(properties, dict) else {})
        return {name: _sample(value, text, root, depth + 1) for name, value in inner.items()}
    if kind == "array":
        return [_sample(item, text, root, depth + 1) for item in _items(fields, depth)]
    if kind == "string":
        return _text(fields, text)
    if kind in {"integer", "number"}:
        return _number(fields, 1 if kind == "integer" else 1.5)
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
        return _match_of(_parser.parse(schema["pattern"]))
    text = _FORMATS.get(str(schema.get("format")), text)
    return text.ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _match_of(pattern: Any) -> str:
    """Return a short text of the first alternatives that a parsed pattern matches."""
    text = ""
    for operation, argument in pattern:
        match str(operation):
            case "LITERAL":
                text += chr(argument)
            case "IN" | "NOT_LITERAL" | "ANY":
                text += _character_of(_parser.SubPattern(pattern.state, [(operation, argument)]))
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, _, inner = argument
                text += _match_of(inner) * least
            case "ATOMIC_GROUP":
                text += _match_of(argument)
            case "SUBPATTERN":
                text += _match_of(argument[-1])
            case "BRANCH":
                text += _match_of(argument[1][0])
            case _:  # an anchor or an assertion, which match no text; back references are not supported
                pass
    return text


def _character_of(pattern: Any) -> str:
    """Return the first character that a parsed pattern of one character matches, if possible a common one."""
    compiled: re.Pattern[str] = _compiler.compile(pattern)
    return next(filter(compiled.match, chain("a0 -", map(chr, range(sys.maxunicode + 1)))), "")


def _number(schema: Mapping[str, Any], usual: float) -> float:
    least: float = schema.get("minimum", -inf)
    most: float = schema.get("maximum", inf)
    above: float = schema.get("exclusiveMinimum", -inf)
    below: float = schema.get("exclusiveMaximum", inf)
    distance = min(most, below) - max(least, above)
    step = 1 if isinstance(usual, int) else min(1.0, distance / 2)
    number = min(max(usual, least, above + step), most, below - step)
    if isinstance(usual, int) and number % 1:  # the bounds of an integer may be fractions
        return ceil(number) if ceil(number) <= most and ceil(number) < below else floor(number)
    return number


def _first(values: object) -> object:
    return cast("list[object]", values)[0] if isinstance(values, list) and values else None


def _resolve(root: object, reference: str) -> object:
    for name in reference.removeprefix("#").strip("/").split("/"):
        if name:
            root = cast("dict[str, Any]", root).get(name) if isinstance(root, dict) else None
    return root
