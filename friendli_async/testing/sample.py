"""Makes a value that fits a JSON Schema: the arguments of a function, a document in a response format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

__all__ = ["sample"]

_MAX_DEPTH: Final = 8
_MAX_TEXT: Final = 200


def sample(schema: Mapping[str, Any], text: str) -> object:
    """Make a value that fits a schema, the same one every time.

    It knows `type`, `properties`, `items`, `enum`, `const`, `anyOf`, `oneOf` and references into the schema itself;
    what lies deeper than eight levels becomes null.

    Args:
        schema: The JSON Schema.
        text: What strings get, cut at 200 characters.

    Returns:
        The value.
    """
    return _sample(schema, text[:_MAX_TEXT], schema, 0)


def _sample(schema: object, text: str, root: Mapping[str, Any], depth: int) -> object:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    known = cast("dict[str, object]", schema)
    if "const" in known:
        return known["const"]
    if "enum" in known:
        return _first(known["enum"])
    if isinstance(reference := known.get("$ref"), str):
        return _sample(_follow(root, reference), text, root, depth + 1)
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in known:
            return _sample(_first(known[alternatives]), text, root, depth + 1)
    kind = known.get("type", "object" if "properties" in known else None)
    kind = kind if isinstance(kind, str) else _first(kind)
    if kind == "object":
        properties = known.get("properties")
        inner = cast("dict[str, object]", properties if isinstance(properties, dict) else {})
        return {name: _sample(value, text, root, depth + 1) for name, value in inner.items()}
    if kind == "array":
        return [_sample(known["items"], text, root, depth + 1)] if "items" in known else []
    scalars = {"string": text, "integer": 1, "number": 1.5, "boolean": True}
    return scalars.get(kind) if isinstance(kind, str) else None


def _first(values: object) -> object:
    return cast("list[object]", values)[0] if isinstance(values, list) and values else None


def _follow(root: object, reference: str) -> object:
    for name in reference.removeprefix("#").strip("/").split("/"):
        if name:
            root = cast("dict[str, Any]", root).get(name) if isinstance(root, dict) else None
    return root
