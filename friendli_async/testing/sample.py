"""Makes a value that fits a JSON Schema: the arguments of a function, a document in a response format."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast

__all__ = ["sample"]

_parser: Any = importlib.import_module("re._parser")  # there is no public one
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
    """Make a value that fits a schema, the same one every time.

    It knows `type`, `properties`, `items`, `prefixItems`, `enum`, `const`, `anyOf`, `oneOf`, `allOf` of one,
    references into the schema itself, bounds of numbers, lengths of text and of lists, patterns, and the formats of
    dates, times, durations and UUIDs. What contains itself ends after eight levels: with null or an empty list where
    the schema allows that, with null where it does not.

    Args:
        schema: The JSON Schema.
        text: What strings get, cut at 200 characters.

    Returns:
        The value.
    """
    return _sample(schema, text[:_MAX_TEXT], schema, 0)


def _sample(schema: object, text: str, root: Mapping[str, Any], depth: int) -> object:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH + _MAX_DEPTH:
        return None
    known = cast("dict[str, object]", schema)
    if "const" in known:
        return known["const"]
    if "enum" in known:
        return _first(known["enum"])
    if isinstance(reference := known.get("$ref"), str):
        return _sample(_follow(root, reference), text, root, depth + 1)
    for alternatives in ("anyOf", "oneOf", "allOf"):
        if alternatives in known:
            if depth > _MAX_DEPTH and {"type": "null"} in cast("list[object]", known[alternatives]):
                return None
            return _sample(_first(known[alternatives]), text, root, depth + 1)
    kind = known.get("type", "object" if "properties" in known else None)
    kind = kind if isinstance(kind, str) else _first(kind)
    if kind == "object":
        properties = known.get("properties")
        inner = cast("dict[str, object]", properties if isinstance(properties, dict) else {})
        return {name: _sample(value, text, root, depth + 1) for name, value in inner.items()}
    if kind == "array":
        return [_sample(item, text, root, depth + 1) for item in _items(known, depth)]
    if kind == "string":
        return _text(known, text)
    if kind in {"integer", "number"}:
        return _number(known, 1 if kind == "integer" else 1.5)
    return True if kind == "boolean" else None


def _items(schema: Mapping[str, Any], depth: int) -> list[object]:
    """The schemas of the elements that a list gets: as few as may be, but one if that may be."""
    if "prefixItems" in schema:
        return list(schema["prefixItems"])
    least = int(schema.get("minItems", 0))
    usual = 1 if schema.get("items") and depth <= _MAX_DEPTH else 0
    return [schema.get("items", {})] * max(least, min(usual, int(schema.get("maxItems", usual))))


def _text(schema: Mapping[str, Any], text: str) -> str:
    if "pattern" in schema:
        return _matching(_parser.parse(schema["pattern"]))
    text = _FORMATS.get(str(schema.get("format")), text)
    return text.ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _matching(pattern: Iterable[tuple[Any, Any]]) -> str:
    """The first and shortest text that a parsed pattern matches."""
    text = ""
    for operation, argument in pattern:
        match str(operation):
            case "LITERAL":
                text += chr(argument)
            case "IN":
                text += _one_of(argument)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, _, inner = argument
                text += _matching(inner) * least
            case "SUBPATTERN":
                text += _matching(argument[-1])
            case "BRANCH":
                text += _matching(argument[1][0])
            case "ANY":
                text += "."
            case _:  # a place, which takes no text
                pass
    return text


def _one_of(members: Sequence[tuple[Any, Any]]) -> str:
    """A character of a set."""
    operation, argument = members[0]
    match str(operation):
        case "LITERAL":
            return chr(argument)
        case "RANGE":
            return chr(argument[0])
        case "NEGATE":
            excluded = re.compile("[" + "".join(re.escape(_one_of([member])) for member in members[1:]) + "]")
            return next(character for character in "a0 -" if not excluded.match(character))
        case _:
            return {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " "}.get(str(argument), "a")


def _number(schema: Mapping[str, Any], usual: float) -> float:
    least: float = schema.get("minimum", schema.get("exclusiveMinimum", usual - 1) + 1)
    most: float = schema.get("maximum", schema.get("exclusiveMaximum", usual + 1) - 1)
    return min(max(least, usual), most)


def _first(values: object) -> object:
    return cast("list[object]", values)[0] if isinstance(values, list) and values else None


def _follow(root: object, reference: str) -> object:
    for name in reference.removeprefix("#").strip("/").split("/"):
        if name:
            root = cast("dict[str, Any]", root).get(name) if isinstance(root, dict) else None
    return root
