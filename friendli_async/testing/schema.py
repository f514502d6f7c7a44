"""Validates values against the schemas of the API, with errors in the format of its 422 replies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Any, Final, cast

import msgspec

from friendli_async._hints import shortened
from friendli_async.options import is_number

Schema = Mapping[str, Any]
_Location = tuple[str | int, ...]
Error = dict[str, object]


def validate(name: str, value: object, where: str = "body") -> list[Error]:
    """Validate a value against a schema, given by name; return the errors, none if it is valid.

    Each has `loc`, which starts with `where`, `msg` and `type`. Unknown keys are allowed. Whole floats count as
    integers, booleans do not count as numbers.
    """
    return list(_check({"$ref": name}, value, (where,)))


def resolve(schema: Schema) -> Schema:
    """Resolve the references of a schema. The nullability of a reference is lost."""
    while "$ref" in schema:
        schema = schemas()[schema["$ref"]]
    return schema


def from_text(name: str, fields: Mapping[str, Sequence[str]]) -> dict[str, object]:
    """Convert the texts of each field (a query, the parts of a form) to the types of a schema, given by name.

    A field that is no array uses its last text. Text that cannot be converted is kept, so that `validate` reports it.
    """
    properties: Mapping[str, Schema] = resolve({"$ref": name})["properties"]
    values: dict[str, object] = {}
    for key, texts in fields.items():
        schema: Schema = resolve(properties[key]) if key in properties else {"type": "string"}
        if schema.get("type") == "array":
            values[key] = [_from_text(resolve(schema["items"]), text) for text in texts]
        else:
            values[key] = _from_text(schema, texts[-1])
    return values


def _from_text(schema: Schema, text: str) -> object:
    kind = {"boolean": bool, "integer": int, "number": float}.get(schema.get("type", ""), str)
    try:
        return msgspec.convert(text, kind, strict=False)
    except ValueError:
        return text


@cache
def schemas() -> Mapping[str, Schema]:
    """Return the schemas of the requests, queries, replies and events of every operation, by name.

    A reference contains the name of its target; a `discriminator` maps the tags of a union to its schemas.
    """
    # Names omit the release: the schemas of files are of 0.15.0, those of tool-assisted chat of 0.14.0, the last ones.
    return cast(
        "Mapping[str, Schema]", json.loads(files("friendli_async.testing").joinpath("schemas.json").read_bytes())
    )


def _check(schema: Schema, value: object, loc: _Location) -> Iterator[Error]:
    if value is None and schema.get("nullable"):
        return
    if "$ref" in schema:
        yield from _check(schemas()[schema["$ref"]], value, loc)
    elif "discriminator" in schema:
        yield from _check_tagged(schema, value, loc)
    elif "oneOf" in schema:
        yield from _check_alternatives(schema["oneOf"], value, loc)
    else:
        yield from _check_plain(schema, value, loc)


def _check_plain(schema: Schema, value: object, loc: _Location) -> Iterator[Error]:
    is_valid, name, code = _TYPES[schema["type"]]
    if not is_valid(value):
        yield _error(loc, f"Input should be a valid {name}", f"{code}_type")
        return
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        yield _error(loc, f"Input should be one of: {choices}; not {_shown(value)}", "literal_error")
    elif schema.get("format") == "date-time" and not _is_datetime(cast("str", value)):
        yield _error(loc, f"Input should be a valid datetime, not {_shown(value)}", "datetime_parsing")
    elif isinstance(value, list) and "items" in schema:
        for position, item in enumerate(cast("list[object]", value)):
            yield from _check(schema["items"], item, (*loc, position))
    elif isinstance(value, dict):
        yield from _check_properties(schema, cast("dict[str, object]", value), loc)


def _check_properties(schema: Schema, value: Mapping[str, object], loc: _Location) -> Iterator[Error]:
    for name in schema.get("required", ()):
        if name not in value:
            yield _error((*loc, name), "Field required", "missing")
    for name, inner in schema.get("properties", {}).items():
        if name in value:
            yield from _check(inner, value[name], (*loc, name))
    others: object = schema.get("additional_properties")
    if isinstance(others, dict):
        for name in value.keys() - schema.get("properties", {}).keys():
            yield from _check(cast("Schema", others), value[name], (*loc, name))


def _check_tagged(schema: Schema, value: object, loc: _Location) -> Iterator[Error]:
    name: str = schema["discriminator"]["property"]
    mapping: Mapping[str, str] = schema["discriminator"]["mapping"]
    if not isinstance(value, dict):
        yield _error(loc, "Input should be a valid object", "dict_type")
        return
    tagged = cast("dict[str, object]", value)
    tag = tagged.get(name)
    if name not in tagged:
        yield _error((*loc, name), "Field required", "missing")
    elif not isinstance(tag, str) or tag not in mapping:
        choices = ", ".join(repr(choice) for choice in mapping)
        yield _error((*loc, name), f"Input should be one of: {choices}; not {_shown(tag)}", "union_tag_invalid")
    else:
        yield from _check({"$ref": mapping[tag]}, tagged, loc)


def _check_alternatives(alternatives: list[Schema], value: object, loc: _Location) -> Iterator[Error]:
    attempts = [list(_check(alternative, value, loc)) for alternative in alternatives]
    if all(attempts):
        # The errors of an alternative of the right JSON type are nested; of several, that with the fewest is closest.
        yield from max(attempts, key=lambda errors: (len(cast("list[object]", errors[0]["loc"])), -len(errors)))


def _error(loc: _Location, message: str, kind: str) -> Error:
    return {"loc": list(loc), "msg": message, "type": kind}


def _shown(value: object) -> str:
    return shortened(value) if isinstance(value, str | int | float) else type(value).__name__


def _is_datetime(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


# By type: its check, its name in messages, and its name in the kind of error.
_TYPES: Final[Mapping[str, tuple[Callable[[object], bool], str, str]]] = {
    "object": (lambda value: isinstance(value, dict), "object", "dict"),
    "array": (lambda value: isinstance(value, list), "list", "list"),
    "string": (lambda value: isinstance(value, str), "string", "string"),
    "boolean": (lambda value: isinstance(value, bool), "boolean", "bool"),
    "integer": (lambda value: is_number(value) and value % 1 == 0, "integer", "int"),
    "number": (is_number, "number", "float"),
}
