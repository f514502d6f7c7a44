"""The embedded server's validation of request bodies, and the samples that it generates for a JSON Schema."""

import json
from typing import Any

import pytest
from support.embedded_server import BUILT_IN, function, user

from friendli_async.testing.sample import sample
from friendli_async.testing.schema import validate

# --- validation of bodies --------------------------------------------------------------------------------------------


def errors(schema: str = "ServerlessChatCompletionBody", **body: object) -> list[tuple[str, object]]:
    found = validate(schema, {"model": "m", "messages": [user("x")], **body})
    return [(".".join(str(name) for name in error["loc"]), error["type"]) for error in found]  # type: ignore[attr-defined]  # a list


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"temperature": 1, "top_p": 0.5, "max_tokens": 3.0, "seed": [1, 2], "stop": [], "tool_choice": "auto"},
        {"temperature": None, "tools": None, "stream": False, "logit_bias": {"1": -1}, "unknown": object},
        {"messages": [user([{"type": "text", "text": "x"}, {"type": "video_url", "video_url": {"url": "u"}}])]},
        {"messages": [{"role": "assistant", "content": None, "x": 1}, {"role": "system", "content": ""}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"any": 1}}}},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": [function()]},
    ],
)
def test_valid_body_has_no_errors(body: dict[str, Any]) -> None:
    assert errors(**body) == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"model": None}, ("body.model", "string_type")),
        ({"model": 1}, ("body.model", "string_type")),
        ({"messages": {}}, ("body.messages", "list_type")),
        ({"messages": ["x"]}, ("body.messages.0", "dict_type")),
        ({"messages": [{"content": "x"}]}, ("body.messages.0.role", "missing")),
        ({"messages": [{"role": "robot"}]}, ("body.messages.0.role", "union_tag_invalid")),
        ({"messages": [{"role": ["user"]}]}, ("body.messages.0.role", "union_tag_invalid")),
        ({"messages": [user(1)]}, ("body.messages.0.content", "string_type")),
        ({"messages": [user([{"type": "text"}])]}, ("body.messages.0.content.0.text", "missing")),
        ({"stream": 1}, ("body.stream", "bool_type")),
        ({"stream": None}, ("body.stream", "bool_type")),
        ({"n": True}, ("body.n", "int_type")),
        ({"n": 1.5}, ("body.n", "int_type")),
        ({"temperature": "1"}, ("body.temperature", "float_type")),
        ({"temperature": False}, ("body.temperature", "float_type")),
        ({"reasoning_effort": "huge"}, ("body.reasoning_effort", "literal_error")),
        ({"seed": ["x"]}, ("body.seed.0", "int_type")),
        ({"tool_choice": {"type": "function"}}, ("body.tool_choice.function", "missing")),
        ({"logit_bias": []}, ("body.logit_bias", "dict_type")),
        ({"tools": [{"type": "math:calculator"}]}, ("body.tools.0.function", "missing")),
    ],
)
def test_invalid_body_has_error_with_location(body: dict[str, Any], expected: tuple[str, str]) -> None:
    assert errors(**body)[0] == expected


def test_schemas_differ_by_deployment() -> None:
    assert errors("ContainerChatCompletionBody", model=None) == []
    assert validate("ContainerChatCompletionBody", {"messages": []}) == []
    assert errors("ServerlessToolAssistedChatCompletionBody", tools=BUILT_IN) == []
    assert errors("ServerlessToolAssistedChatCompletionBody", tools=[{"type": "file:text"}]) == [
        ("body.tools.0.files", "missing")
    ]
    assert errors("ServerlessToolAssistedChatCompletionBody", tools=[{"type": "x"}])[0][1] == "union_tag_invalid"
    assert validate("ServerlessChatCompletionBody", [])[0]["type"] == "dict_type"


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "text"),
        ({"type": "number"}, 1.5),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "minimum": -3}, 1),
        ({"type": "integer", "maximum": 0}, 0),
        ({"type": "integer", "minimum": 3, "maximum": 10}, 3),
        ({"type": "integer", "exclusiveMinimum": 5}, 6),
        ({"type": "integer", "exclusiveMaximum": 0}, -1),
        ({"type": "integer", "exclusiveMinimum": 2, "maximum": 3}, 3),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": 1}, 3),
        ({"type": "number", "exclusiveMinimum": 2}, 3.0),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, 0.5),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 0.5}, 0.25),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["integer", "null"]}, 1),
        ({}, None),
        ({"const": 3}, 3),
        ({"enum": ["a", "b"]}, "a"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 1),
        ({"oneOf": [{"const": 2}]}, 2),
        ({"type": "array", "items": {"type": "integer"}}, [1]),
        ({"type": "array"}, []),
        ({"type": "object"}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"const": 4}}}, 4),
        ({"properties": {"a": True}}, {"a": None}),
        ({"type": "string", "pattern": "^te"}, "text"),
        ({"type": "string", "pattern": r"^\d+$"}, "0"),
        ({"type": "string", "pattern": "^never$"}, "text"),
    ],
)
def test_sample_matches_schema(schema: dict[str, Any], value: object) -> None:
    assert sample(schema, "text") == value


def test_recursive_schema_gives_finite_sample() -> None:
    assert '"a": null' in json.dumps(sample({"properties": {"a": {"$ref": "#"}}}, ""))
