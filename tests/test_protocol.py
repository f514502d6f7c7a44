"""Request encoding and validation without a network: headers, bodies, values, keywords and queries."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import json
import math
import re
import types
import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import JSON, deterministic, fewer

from friendli_async import AsyncFriendli, ConfigurationError
from friendli_async._core.body.arguments import Arguments, Parameters, check_keywords, check_values, encode_query
from friendli_async._core.body.json_values import encode_body, struct_to_dict
from friendli_async._core.settings import check_token
from friendli_async.chat.inputs import COMPLETE

# --- headers ---------------------------------------------------------------------------------------------------------


def test_requests_of_a_client_share_their_headers_and_mask_the_token() -> None:
    builder = AsyncFriendli("a-secret-token").serverless.chat._engine.request_builder
    first, second = (
        builder.build(COMPLETE, Arguments(body), "json", builder.authorization).headers for body in (b"1", b"2")
    )
    assert first is second
    assert "Authorization: Bearer a-secret-token\r\n" in first.lines
    assert "a-secret-token" not in repr(first) + repr(vars(first))


def test_shared_headers_are_complete_before_another_thread_can_use_them() -> None:
    class Templates(dict[Any, Any]):
        def __setitem__(self, key: object, headers: Any) -> None:
            stored.append(dict(headers))
            super().__setitem__(key, headers)

    stored: list[dict[str, str]] = []
    builder = AsyncFriendli("a-secret-token").serverless.chat._engine.request_builder
    builder._templates = Templates()
    headers = builder.build(COMPLETE, Arguments(b"{}"), "json", builder.authorization).headers
    assert stored == [headers]
    assert headers["Authorization"] == "Bearer a-secret-token"


def test_token_of_a_callable_is_sent_with_one_request_only() -> None:
    builder = AsyncFriendli(lambda: "unused-here").serverless.chat._engine.request_builder
    for token in ("first-token", "second-token"):
        headers = builder.build(COMPLETE, Arguments(b"{}"), "json", check_token(token)).headers
        assert headers["Authorization"] == f"Bearer {token}"
        assert f"Authorization: Bearer {token}\r\n" in headers.lines
        assert "-token" not in repr(headers) + repr(vars(headers)) + repr(vars(builder))


# --- encode_body -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), JSON, max_size=4))
@fewer
def test_encode_body_round_trips(body: dict[str, Any]) -> None:
    assert json.loads(encode_body(body)) == body


class _Renamed(msgspec.Struct, rename="camel", tag_field="type", tag="part"):
    image_url: str
    missing: msgspec.UnsetType | None = msgspec.UNSET


def test_struct_becomes_a_dict_with_its_names_on_the_wire() -> None:
    part = _Renamed("https://a.example")
    assert struct_to_dict(part) == msgspec.to_builtins(part)


@given(st.dictionaries(st.text(), st.text(st.characters()), min_size=1, max_size=4))
@deterministic
def test_lone_surrogates_are_encoded_losslessly_as_valid_utf8(body: dict[str, str]) -> None:
    def units(texts: dict[str, str]) -> dict[str, bytes]:
        return {key: text.encode("utf-16-le", "surrogatepass") for key, text in texts.items()}

    assert units(json.loads(encode_body(body).decode("utf-8"))) == units(body)


def test_body_is_compact_utf8() -> None:
    assert encode_body({"a": ["é漢😀", 1.5], "b": None}) == '{"a":["é漢😀",1.5],"b":null}'.encode()


def test_lone_surrogates_are_escaped_and_the_body_stays_compact() -> None:
    assert encode_body({"a": ["\ud83d", "é"]}) == b'{"a":["\\ud83d","\\u00e9"]}'


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


Pair = collections.namedtuple("Pair", "a b")  # noqa: PYI024  # untyped, as in old code

EQUIVALENTS: list[tuple[object, object]] = [
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    ((1, (2,)), [1, [2]]),
    (Pair(1, 2), [1, 2]),
    (range(3), [0, 1, 2]),
    (collections.deque([1]), [1]),
    (collections.UserList(["a"]), ["a"]),
    (array("i", [1, 2]), [1, 2]),
    (types.MappingProxyType({"a": 1}), {"a": 1}),
    (collections.UserDict(a=collections.UserDict(b=1)), {"a": {"b": 1}}),
    (collections.OrderedDict(a=1), {"a": 1}),
    (collections.defaultdict(int, a=1), {"a": 1}),
    (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
    (2**64, 2**64),
    (-(2**70), -(2**70)),
]


@pytest.mark.parametrize(("value", "expected"), EQUIVALENTS, ids=[type(value).__name__ for value, _ in EQUIVALENTS])
@pytest.mark.parametrize("sibling", ["x", "\ud800"])
def test_mappings_sequences_enums_and_numbers_of_all_types_are_encoded(
    value: object, expected: object, sibling: str
) -> None:
    assert json.loads(encode_body({"v": value, "beside": sibling})) == {"v": expected, "beside": sibling}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Text("abc"), "abc"), (Text("\ud800"), "\ud800"), (np.str_("abc"), "abc"), (np.float64(0.5), 0.5), (Whole(5), 5)],
)
def test_str_and_number_subclasses_are_encoded_unchanged_or_rejected(value: object, expected: object) -> None:
    message, sent = "", b""
    try:
        sent = encode_body({"v": value})
    except ValueError as error:
        message = str(error)
    assert message.startswith("v: ") or json.loads(sent) == {"v": expected}


NOT_JSON: list[object] = [
    math.nan,
    math.inf,
    -math.inf,
    b"x",
    bytearray(b"x"),
    memoryview(b"x"),
    {1},
    frozenset({1}),
    object(),
    dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    decimal.Decimal(1),
    uuid.UUID(int=1),
    1j,
    len,
    int,
    (number for number in (1,)),
    msgspec.UNSET,
    msgspec.Raw(b"{}"),
    np.array([1]),
    collections.UserString("abc"),
]


@pytest.mark.parametrize("value", NOT_JSON, ids=[type(value).__name__ for value in NOT_JSON])
@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda value: {"a": value}, "a"),
        (lambda value: {"a": [0, {"b": value}]}, "a[1].b"),
        (lambda value: {"a": types.MappingProxyType({"b": (value,)})}, "a.b[0]"),
    ],
)
def test_non_json_value_is_rejected_with_its_path(wrap: Callable[[object], Any], path: str, value: object) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the path is checked below
        encode_body(wrap(value))
    assert str(caught.value).startswith(f"{path}: ")
    assert not isinstance(caught.value, ConfigurationError)


@pytest.mark.parametrize("key", [1, None, 1.5, True, b"a", ("a",)])
def test_non_string_key_is_rejected_with_its_path(key: object) -> None:
    with pytest.raises(ValueError, match=r"^a\[0\]: the key .* is not a string"):
        encode_body({"a": [{key: 1}]})


def test_circular_reference_is_rejected_with_its_path() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = [loop]
    with pytest.raises(ValueError, match=r"^v\.again\[0\]: contains a circular reference"):
        encode_body({"v": loop})
    row: list[object] = []
    row.append(row)
    with pytest.raises(ValueError, match=r"^v\[0\]: contains a circular reference"):
        encode_body({"v": row})


def test_object_used_twice_is_not_a_circular_reference() -> None:
    shared = {"x": [1]}
    assert json.loads(encode_body({"a": shared, "b": [shared, shared]})) == {"a": shared, "b": [shared, shared]}


def nested(depth: int, leaf: object) -> dict[str, object]:
    value = leaf
    for _ in range(depth):
        value = [value]
    return {"v": value}


@pytest.mark.parametrize("leaf", ["x", "\ud800"])
def test_deeply_nested_body_is_encoded_or_raises_value_error(leaf: str) -> None:
    outcomes: set[str] = set()
    for depth in (10, 100, *range(900, 1000, 3), 5_000, 100_000):
        try:
            outcomes.add("sent" if encode_body(nested(depth, leaf)).count(b"[") == depth else "changed")
        except ValueError as error:
            outcomes.add(str(error))
    assert len(outcomes) == 2
    assert "sent" in outcomes
    assert "nested too deeply" in str(outcomes)


# --- check_values, keywords, Parameters ------------------------------------------------------------------------------


class Cat(msgspec.Struct, tag_field="kind", tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag_field="kind", tag="dog"):
    name: str


class Options(TypedDict, total=False):
    temperature: float | None
    max_tokens: int
    stop: Sequence[str]
    extra_body: Mapping[str, object]
    extra_query: Mapping[str, object]


PARAMETERS = Parameters(Options, {"model": str, "pets": list[Cat | Dog]})


def encoded(**options: Any) -> Any:
    required = {"model": options.pop("model", "m"), "pets": options.pop("pets", [])}
    body = PARAMETERS.encode("complete", required, options, {"stream": False}).body
    assert isinstance(body, bytes)
    return json.loads(body)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": None}, "model: "),
        ({"model": 5}, "model: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"max_tokens": True}, "max_tokens: "),
        ({"max_tokens": 1.5}, "max_tokens: "),
        ({"stop": "END"}, "stop: "),
        ({"stop": ["a", 5]}, "stop[1]: "),
        ({"pets": {"kind": "cat"}}, "pets: "),
        ({"pets": [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": 5}]}, "pets[1].name: "),
        ({"pets": [{"kind": "cat", "lives": 9}, {"kind": "cow"}]}, "pets[1].kind: "),
        ({"pets": [{"kind": "cat"}]}, "pets[0]: "),
        ({"pets": [None]}, "pets[0]: "),
        ({"pets": [{"kind": "x - at `$.y`"}]}, "pets[0].kind: "),
        ({"temperature": math.nan}, "temperature: "),
        ({"pets": [{"kind": "cat", "lives": 9, "more": [math.inf]}]}, "pets[0].more[0]: "),
        ({"extra_body": [1]}, "extra_body: "),
        ({"extra_body": {"stream": True}}, "extra_body.stream: "),
        ({"extra_query": "a=b"}, "extra_query: "),
    ],
)
def test_invalid_value_error_starts_with_its_path(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the path is checked below
        encoded(**options)
    assert str(caught.value).startswith(message)


def test_check_values_prepends_the_prefix_to_the_path() -> None:
    class Expected(msgspec.Struct):
        pets: list[Cat | Dog]

    with pytest.raises(ValueError, match=r"^body\.pets\[0\]\.lives: "):
        check_values({"pets": [{"kind": "cat", "lives": "9"}]}, Expected, "body")
    check_values({"pets": [], "unknown": object()}, Expected)


class Paint(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(TypedDict):
    axis: Literal["x", "y"]


class Choices(msgspec.Struct, kw_only=True):
    colour: Annotated[Paint, msgspec.Meta(description="A colour.")] | int | None = None
    points: list[Point] = []
    by_name: dict[str, Literal["q"]] = {}
    pair: tuple[Literal["a"], Literal["b"]] = ("a", "b")
    many: Literal[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13] = 0
    pets: list[Cat | Dog] = []
    keys: dict[Literal["k"], int] = {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"colour": "green"}, "colour: Invalid enum value 'green'; must be one of 'red', 'blue'"),
        ({"points": [{"axis": "x"}, {"axis": "z"}]}, "points[1].axis: Invalid enum value 'z'; must be one of 'x', 'y'"),
        ({"by_name": {"n": "p"}}, "by_name[...]: Invalid enum value 'p'; must be 'q'"),
        ({"many": 99}, "many: Invalid enum value 99; must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..."),
        ({"pets": [{"kind": "cow"}]}, "pets[0].kind: Invalid value 'cow'; must be one of 'cat', 'dog'"),
        ({"keys": {"x": 1}}, "keys: invalid key: Invalid enum value 'x'"),
        ({"colour": 1.5}, "colour: Expected `int | str | null`, got `float`"),
    ],
)
def test_invalid_choice_error_lists_the_choices(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_values(value, Choices)


@pytest.mark.parametrize("stop", [["a"], ("a",), collections.UserList(["a"]), collections.deque(["a"])])
def test_any_sequence_type_is_accepted(stop: Sequence[str]) -> None:
    assert encoded(stop=stop)["stop"] == ["a"]


def test_any_mapping_type_is_accepted() -> None:
    pet = types.MappingProxyType({"kind": "cat", "lives": 9})
    assert encoded(pets=[pet], extra_body=collections.UserDict(x=pet))["x"] == dict(pet)


@pytest.mark.parametrize("model", [Text("m"), np.str_("m")])
def test_str_subclass_is_never_sent_as_another_value(model: str) -> None:
    try:
        body = encoded(model=model, stop=[model])
    except ValueError:
        return  # rejecting it is fine
    assert (body["model"], body["stop"]) == ("m", ["m"])


def test_unknown_keys_are_sent_unchanged() -> None:
    pet = {"kind": "cat", "lives": 9, "new": {"a": None}}
    body = encoded(pets=[pet], temperature=None, extra_body={"model": "other", "top": 1})
    assert body == {"model": "other", "pets": [pet], "temperature": None, "stream": False, "top": 1}


@pytest.mark.parametrize(("extra", "model"), [({}, "m"), ({"model": "other"}, "other"), ({"model": 5}, None)])
def test_model_of_the_call_is_the_one_that_is_sent(extra: dict[str, Any], model: str | None) -> None:
    assert PARAMETERS.encode("complete", {"model": "m", "pets": []}, {"extra_body": extra}).model == model


def test_later_changes_to_arguments_have_no_effect() -> None:
    pet, query = {"kind": "cat", "lives": 9}, {"a": "1"}
    options: dict[str, Any] = {"extra_query": query}
    arguments = PARAMETERS.encode("complete", {"model": "m", "pets": [pet]}, options, {})
    pet["lives"] = 1
    query["a"] = "2"
    assert isinstance(arguments.body, bytes)
    assert b'"lives":9' in arguments.body
    assert arguments.query == "a=1"
    assert options == {"extra_query": {"a": "2"}}
    assert "lives" not in repr(arguments)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("max_completion_tokens", {"max_tokens", "min_tokens"}, "use 'max_tokens'"),
        ("max_completion_tokens", {"max_output_tokens"}, "use 'max_output_tokens'"),
        ("max_tokens", {"max_output_tokens", "top_p"}, "use 'max_output_tokens'"),
        ("functions", {"tools"}, "use 'tools'"),
        ("stop", {"stop_sequences", "top_p"}, "use 'stop_sequences'"),
        ("max_retries", {"max_tokens"}, "use client.with_options(retry=RetryPolicy(max_attempts=...))"),
        ("retries", {"max_tokens"}, "use client.with_options(retry=RetryPolicy(...))"),
        ("extra_headers", {"extra_query", "extra_body"}, "use client.with_options(headers={...})"),
        ("http_headers", {"extra_query"}, "use client.with_options(headers={...})"),
        ("x_friendli_team", {"extra_body"}, "use client.with_options(team=...)"),
        ("timeout_ms", {"extra_body"}, "use client.with_options(timeout=seconds)"),
    ],
)
def test_keyword_of_another_client_error_names_the_equivalent(name: str, known: set[str], hint: str) -> None:
    with pytest.raises(TypeError) as caught:
        check_keywords({name: 1}, frozenset(known), "complete", ())
    assert str(caught.value).endswith(hint)


# --- queries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"a": ["x", "y"], "b": (1, True)}, "a=x&a=y&b=1&b=true"),
        ({"a": None, "b": [None, 2.5], "c": False}, "b=2.5&c=false"),
        ({"a b": "c&d=é\r\n"}, "a+b=c%26d%3D%C3%A9%0D%0A"),
        ({}, ""),
    ],
)
def test_query_repeats_keys_lowercases_booleans_and_escapes(query: dict[str, object], expected: str) -> None:
    assert encode_query(query) == expected


@pytest.mark.parametrize("value", [math.nan, b"x", {"a": 1}, object(), [[1]], math.inf, "\ud800"])
def test_invalid_query_value_error_names_the_parameter(value: object) -> None:
    with pytest.raises(ValueError, match=r"^extra_query\['a'\]: "):
        encode_query({"a": value})
