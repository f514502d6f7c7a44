"""JSON schemas generated from types for structured output."""

import dataclasses
import datetime as dt
import decimal
import enum
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    Optional,
    Required,
    TypedDict,
    TypeVar,
)

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
import typing_extensions

from friendli_async.chat import ParsedCompletion, json_schema
from friendli_async.chat.output import output_of
from friendli_async.chat.schema import schema_name

pytestmark = pytest.mark.compatibility

OLD_MSGSPEC = msgspec.__version__.startswith("0.21.")


class Inner(msgspec.Struct):
    """A nested struct."""

    x: int
    y: float | None = None


class Tree(msgspec.Struct):
    value: int
    kids: list["Tree"] = []


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str] = []


class Colour(enum.Enum):
    """Colours."""

    RED = "red"
    BLUE = "blue"


class Pair(NamedTuple):
    one: int
    other: str = "x"


class Typed(TypedDict):
    name: str
    size: NotRequired[int]


class Row(msgspec.Struct, array_like=True):
    number: int
    word: str


@dataclasses.dataclass
class Plain:
    name: str
    sizes: list[int] = dataclasses.field(default_factory=list)


@attrs.define
class Attrs:
    name: str = "x"


def object_schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


TEXT = {"type": "string"}
INT = {"type": "integer"}
INNER = {"description": "A nested struct.", **object_schema(x=INT, y={"anyOf": [{"type": "number"}, {"type": "null"}]})}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Inner, INNER),
        (Typed, object_schema(name=TEXT, size=INT)),
        (Plain, object_schema(name=TEXT, sizes={"type": "array", "items": INT})),
        (Attrs, object_schema(name=TEXT)),
        (Pair, {"type": "array", "prefixItems": [INT, TEXT], "minItems": 2, "maxItems": 2}),
        (Colour, {"description": "Colours.", "type": "string", "enum": ["red", "blue"]}),
        (enum.Enum("Size", ["SMALL", "LARGE"]), {"type": "integer", "enum": [1, 2]}),
        pytest.param(
            Literal["b", 1] | None,
            {"anyOf": [{"enum": [1, "b"]}, {"type": "null"}]},
            marks=pytest.mark.skipif(OLD_MSGSPEC, reason="msgspec 0.21 does not describe literals of several types"),
        ),
        (list[int], {"type": "array", "items": INT}),
        (set[int], {"type": "array", "items": INT}),
        (dict[str, int], {"type": "object", "additionalProperties": INT}),
        (dict[str, Any], {"type": "object", "additionalProperties": True}),
        (tuple[int, str], {"type": "array", "prefixItems": [INT, TEXT], "minItems": 2, "maxItems": 2}),
        (tuple[int, ...], {"type": "array", "items": INT}),
        (tuple[()], {"type": "array", "minItems": 0, "maxItems": 0}),
        (int | str | None, {"anyOf": [INT, TEXT, {"type": "null"}]}),
        (Any, {}),
        (dt.date, {"type": "string", "format": "date"}),
        (dt.datetime, {"type": "string", "format": "date-time"}),
        (dt.time, {"type": "string", "format": "time"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (Row, {"type": "array", "prefixItems": [INT, TEXT], "minItems": 2, "maxItems": 2}),
        (Annotated[Inner, msgspec.Meta(description="Here.", title="no")], {**INNER, "description": "Here."}),
        (Annotated[int, msgspec.Meta(multiple_of=5)], {"type": "integer", "multipleOf": 5}),
        (Annotated[int, msgspec.Meta(extra={"unit": "m"})], INT),
        (Annotated[int, msgspec.Meta(ge=1, lt=5)], {"type": "integer", "minimum": 1, "exclusiveMaximum": 5}),
        (
            Annotated[str, msgspec.Meta(min_length=1, max_length=3, title="no", description="yes", examples=["no"])],
            {"type": "string", "minLength": 1, "maxLength": 3, "description": "yes"},
        ),
    ],
    ids=str,
)  # fmt: skip
def test_schema_of_type(kind: Any, schema: dict[str, Any]) -> None:
    assert json_schema(kind) == schema


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Inner, "Inner"),
        (list[Inner], "list"),
        (Annotated[Inner, msgspec.Meta(title="no")], "Inner"),
        (Inner | None, "Output"),
        (Optional[Inner], "Output"),  # noqa: UP045  # has another name in some versions of Python
    ],
)
def test_name_of_a_schema_is_that_of_the_type_unless_it_is_a_union(kind: Any, name: str) -> None:
    assert schema_name(kind) == name


def test_recursive_type_has_inlined_root_and_references() -> None:
    node = object_schema(value=INT, kids={"type": "array", "items": {"$ref": "#/$defs/Tree"}})
    assert json_schema(Tree) == {**node, "$defs": {"Tree": node}}
    described = json_schema(Annotated[Tree, msgspec.Meta(description="All.")])
    assert described == {**node, "description": "All.", "$defs": {"Tree": node}}


def test_tagged_union_is_any_of_objects_with_a_tag() -> None:
    schema = json_schema(list[Cat | Dog])
    assert schema["items"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    assert schema["$defs"]["Cat"] == object_schema(type={"type": "string", "enum": ["cat"]}, lives=INT)


def test_description_beside_a_reference_inlines_the_referenced_schema() -> None:
    class Holder(msgspec.Struct):
        first: Annotated[Inner, msgspec.Meta(description="the first")]
        second: Inner
        third: Annotated[Inner, msgspec.Meta(description="the third")]

    properties = json_schema(Holder)["properties"]
    assert properties["first"] == {**INNER, "description": "the first"}
    assert properties["third"] == {**INNER, "description": "the third"}
    assert properties["second"] == {"$ref": "#/$defs/Inner"}


class Recursive(msgspec.Struct):
    kids: list[Annotated["Recursive", msgspec.Meta(description="a kid")]]


class RecursiveModel(pydantic.BaseModel):
    kids: list[Annotated["RecursiveModel", pydantic.Field(description="a kid")]]


@pytest.mark.parametrize("kind", [Recursive, RecursiveModel])
def test_description_beside_a_recursive_reference_terminates(kind: Any) -> None:
    schema = json_schema(kind)
    assert schema["$defs"][kind.__name__]["required"] == ["kids"]


def test_properties_may_be_named_like_schema_keywords() -> None:
    class Struct(msgspec.Struct):
        title: str
        default: int
        discriminator: str = "x"

    class Model(pydantic.BaseModel):
        title: str
        default: int
        discriminator: str = "x"

    for kind in (Struct, Model):
        assert json_schema(kind)["required"] == ["title", "default", "discriminator"]


def test_types_with_equal_names_get_distinct_definitions() -> None:
    def define(kind: Any) -> Any:
        return msgspec.defstruct("Same", [("x", kind)])

    side_by_side = json_schema(msgspec.defstruct("Both", [("a", define(int)), ("b", define(str))]))
    assert side_by_side["$defs"] == {"Same": object_schema(x=INT), "Same_": object_schema(x=TEXT)}
    nested = json_schema(msgspec.defstruct("Both", [("a", define(define(int)))]))
    assert nested["$defs"] == {"Same": object_schema(x={"$ref": "#/$defs/Same_"}), "Same_": object_schema(x=INT)}


def test_non_strict_schema_allows_what_the_type_allows() -> None:
    schema = json_schema(Inner, strict=False)
    assert schema["required"] == ["x"]
    assert "additionalProperties" not in schema
    assert json_schema(set[int], strict=False)["uniqueItems"] is True
    assert json_schema(Pair, strict=False)["minItems"] == 1


class Answered(pydantic.BaseModel):
    reply: ParsedCompletion[tuple[int, str]]


def test_tuple_in_a_reply_in_a_model_has_no_items_that_are_false() -> None:
    reply = json_schema(Answered)["properties"]["reply"]
    assert reply["properties"]["value"] == {"type": "array", "prefixItems": [INT, TEXT], "minItems": 2, "maxItems": 2}


class PartA(pydantic.BaseModel):
    kind: Literal["a"]


class PartB(pydantic.BaseModel):
    kind: Literal["b"]


class Model(pydantic.BaseModel):
    """A model."""

    part: PartA | PartB = pydantic.Field(discriminator="kind")
    pair: tuple[int, str]
    first: PartA = pydantic.Field(description="the first")
    other: int | None = None
    kids: list["Model"] = []


class Element(pydantic.BaseModel):
    x: int


def test_pydantic_model_is_rewritten() -> None:
    schema = json_schema(Model)
    assert schema["description"] == "A model."
    assert schema["required"] == ["part", "pair", "first", "other", "kids"]
    assert schema["properties"]["part"] == {"anyOf": [{"$ref": "#/$defs/PartA"}, {"$ref": "#/$defs/PartB"}]}
    assert schema["properties"]["first"]["description"] == "the first"
    assert schema["properties"]["first"]["required"] == ["kind"]
    assert schema["$defs"]["Model"]["properties"]["kids"]["items"] == {"$ref": "#/$defs/Model"}
    assert keywords_of(schema) & {"title", "default", "discriminator", "oneOf", "const"} == set()
    assert "items" not in schema["properties"]["pair"]
    assert json_schema(list[Model])["items"] == {"$ref": "#/$defs/Model"}
    assert json_schema(Model, strict=False)["required"] == ["part", "pair", "first"]


class Uncommon(pydantic.BaseModel):
    by_pattern: dict[Annotated[str, pydantic.Field(pattern="^a")], PartA]
    by_enum: dict[Colour, PartB]
    text: pydantic.Json[list[Element]] = pydantic.Field(deprecated=True)
    wait: dt.timedelta = pydantic.Field(description="how long")
    site: pydantic.AnyUrl
    password: pydantic.SecretStr
    when: dt.date


def references_in(schema: Any) -> set[str]:
    if isinstance(schema, Mapping):
        found = {schema["$ref"]} if isinstance(schema.get("$ref"), str) else set[str]()
        return found.union(*map(references_in, schema.values()))
    if isinstance(schema, list):
        return set[str]().union(*map(references_in, schema))
    return set()


@pytest.mark.parametrize("strict", [True, False])
def test_every_reference_of_a_pydantic_schema_has_a_definition(strict: bool) -> None:
    schema = json_schema(Uncommon, strict=strict)
    names = {"PartA", "PartB"} if strict else {"PartA", "PartB", "Colour", "Element"}
    assert references_in(schema) == {f"#/$defs/{name}" for name in names}
    assert set(schema["$defs"]) == names


def test_strict_schema_of_pydantic_has_only_what_strict_servers_know() -> None:
    schema = json_schema(Uncommon)
    properties = schema["properties"]
    assert properties["by_pattern"] == {"type": "object", "additionalProperties": {"$ref": "#/$defs/PartA"}}
    assert properties["wait"].pop("pattern").startswith("^-?P")
    assert properties["wait"] == {"type": "string", "description": "how long"}
    assert properties["text"] == properties["password"] == TEXT
    assert properties["when"] == {"type": "string", "format": "date"}
    assert "format" not in properties["site"]
    lax = json_schema(Uncommon, strict=False)["properties"]
    assert (lax["site"]["format"], lax["password"]["writeOnly"]) == ("uri", True)


def test_strict_schema_of_msgspec_has_only_what_strict_servers_know() -> None:
    sized = Annotated[int, msgspec.Meta(extra_json_schema={"format": "int32", "readOnly": True, "multipleOf": 2})]
    assert json_schema(sized) == {"type": "integer", "multipleOf": 2}
    assert json_schema(sized, strict=False) == {"type": "integer", "format": "int32", "readOnly": True, "multipleOf": 2}


def keywords_of(schema: Any) -> set[str]:
    """The keywords used in a schema, without the names of properties."""
    if isinstance(schema, Mapping):
        inner = [schema[key].values() if key in {"properties", "$defs"} else [schema[key]] for key in schema]
        return set(schema).union(*(keywords_of(value) for values in inner for value in values))
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        return set[str]().union(*map(keywords_of, schema))
    return set()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (decimal.Decimal, ["0", "-12.50", "9" * 28]),
        (dt.timedelta, ["P3D", "PT30S", "P1DT2S", "-PT0.5S"]),
        (Annotated[dt.datetime, msgspec.Meta(tz=False)], ["2026-01-28T23:59:59", "1999-12-01T00:00:00"]),
        (Annotated[dt.time, msgspec.Meta(tz=False)], ["23:59:59"]),
        (bytes, ["", "YQ==", "YWI=", "YWJj"]),
    ],
    ids=str,
)
def test_patterns_match_what_the_types_accept(kind: Any, values: list[str]) -> None:
    import re

    pattern = json_schema(kind)["pattern"]
    for value in values:
        assert re.search(pattern, value)
        assert msgspec.convert(value, kind) is not None
    for invalid in ("x", "1e5", "YQ=", "2026-02-30T00:00:00", "24:00:00", "P", " 1"):
        assert not re.search(pattern, invalid)


class Unknown(msgspec.Struct):
    what: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # unresolvable on purpose


class Mixed(msgspec.Struct):
    model: PartA


@dataclasses.dataclass
class WithModel:
    part: PartA
    next: "WithModel | None" = None


class WithModelTuple(NamedTuple):
    part: PartA


class WithModelDict(typing_extensions.TypedDict):
    part: NotRequired[PartA]


@dataclasses.dataclass
class WithModelAndStruct:
    part: PartA
    inner: Inner


@pytest.mark.parametrize("kind", [WithModel, list[WithModel], WithModelTuple, WithModelDict])
def test_class_with_a_pydantic_model_in_a_field_has_the_schema_of_pydantic(kind: Any) -> None:
    assert json_schema(kind)["$defs"]["PartA"] == json_schema(PartA)


@dataclasses.dataclass
class Sized:
    size: Annotated[int, pydantic.Field(ge=1, description="How big.")]


@pydantic.dataclasses.dataclass
class SizedByPydantic:
    size: int = pydantic.Field(ge=1, description="How big.")


POSITIVE = {"type": "integer", "exclusiveMinimum": 0}


@dataclasses.dataclass
class SizedByDefault:
    size: int = pydantic.Field(default=3, ge=1, description="How big.")


SIZE = {"type": "integer", "minimum": 1, "description": "How big."}


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (Sized, object_schema(size=SIZE)),
        (SizedByPydantic, object_schema(size=SIZE)),
        (SizedByDefault, object_schema(size=SIZE)),
        (Annotated[int, pydantic.Field(ge=1, description="How big.")], SIZE),
        (list[pydantic.PositiveInt], {"type": "array", "items": POSITIVE}),
        (Annotated[str, annotated_types.Len(1, 3)], {"type": "string", "minLength": 1, "maxLength": 3}),
        (pydantic.NaiveDatetime, {"type": "string", "format": "date-time"}),
        (pydantic.UUID4, {"type": "string", "format": "uuid"}),
        (pydantic.IPvAnyAddress, {"type": "string"}),
        (typing_extensions.TypeAliasType("Alias", list[pydantic.PositiveInt]), {"type": "array", "items": POSITIVE}),
    ],
    ids=str,
)
def test_constraints_and_types_of_pydantic_are_in_the_schema_of_any_type(kind: Any, schema: dict[str, Any]) -> None:
    assert json_schema(kind) == schema


class Unsupported:
    pass


class SizedStruct(msgspec.Struct):
    size: Annotated[int, pydantic.Field(ge=1)]


@attrs.define
class SizedAttrs:
    sizes: list[pydantic.PositiveInt]


class SizedStructByDefault(msgspec.Struct):
    size: int = pydantic.Field(default=3, ge=1)


@dataclasses.dataclass
class SizedByBoth:
    size: Annotated[int, pydantic.Field(ge=1)]
    weight: Annotated[int, msgspec.Meta(ge=1)]


@dataclasses.dataclass
class ModelAndMeta:
    part: PartA
    weight: Annotated[int, msgspec.Meta(ge=1)]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SizedStruct, "pydantic has no effect on a msgspec Struct or attrs class, and in its fields; use msgspec.Meta"),
        (SizedStructByDefault, "pydantic has no effect on a msgspec Struct or attrs class"),
        (list[SizedAttrs], "pydantic has no effect on a msgspec Struct or attrs class"),
        (SizedByBoth, "pydantic validates it, where msgspec.Meta has no effect; use pydantic.Field"),
        (ModelAndMeta, "pydantic validates it, where msgspec.Meta has no effect; use pydantic.Field"),
        (
            list[Annotated[Inner, pydantic.Field(description="x")]],
            "pydantic has no effect on a msgspec Struct or attrs",
        ),
        (list[Inner | pydantic.HttpUrl], "pydantic has no effect on a msgspec Struct or attrs class"),
        (
            dict[str, pydantic.PositiveInt | Unsupported],
            "contains types of pydantic, and pydantic rejects it",
        ),
    ],
    ids=str,
)
def test_constraint_that_would_have_no_effect_is_a_type_error(kind: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        json_schema(kind)


def test_class_variables_are_no_fields_whatever_their_types() -> None:
    class Named(msgspec.Struct):
        limit: ClassVar[Annotated[int, pydantic.Field(ge=1)]] = 1  # which would have no effect on a field
        bare: ClassVar = 2
        name: str

    assert json_schema(Named)["properties"] == {"name": {"type": "string"}}


def test_constraint_of_annotated_types_without_pydantic_is_a_type_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(TypeError, match="constraints of annotated_types need pydantic, which is not installed"):
        json_schema(Annotated[int, annotated_types.Ge(1)])


class WithFunction(pydantic.BaseModel):
    call: Callable[[int], int]


@dataclasses.dataclass
class PlainA:
    kind: Literal["a"]
    number: int


@dataclasses.dataclass
class PlainB:
    kind: Literal["b"]
    text: str


class DictA(TypedDict):
    number: int


class DictB(TypedDict):
    text: str


KEYS: dict[Any, str] = {
    str: "a",
    int: "1",
    float: "1.5",
    decimal.Decimal: "1.5",
    bytes: "YQ==",
    uuid.UUID: "00000000-0000-0000-0000-000000000001",
    dt.datetime: "2020-01-01T00:00:00Z",
    dt.date: "2020-01-01",
    dt.time: "00:00:00",
    dt.timedelta: "PT1S",
    Literal["a"]: "a",
    Any: "a",
    int | None: "1",
    Annotated[str, msgspec.Meta(max_length=1)]: "a",
    Annotated[str, msgspec.Meta(description="its name")]: "a",
}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_dict_with_keys_that_text_can_hold_is_accepted(key: Any) -> None:
    assert json_schema(dict[key, int]) == {"type": "object", "additionalProperties": {"type": "integer"}}
    assert list(msgspec.json.decode(f'{{"{KEYS[key]}":1}}', type=dict[key, int]).values()) == [1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (complex, "complex cannot be decoded from JSON"),
        (dict[str, list[complex]], "complex has no JSON representation"),
        (dict[complex, int], "complex has no JSON representation"),
        (object, "object"),
        (Inner | Tree, "must be tagged"),
        (PlainA | PlainB, "use structs with a tag (tag=True), or Annotated[A | B, pydantic.Field(discriminator=...)]"),
        (DictA | DictB, "use structs with a tag"),
        (list[PlainA | DictA], "use structs with a tag"),
        (Unknown, "Unknown cannot be decoded from JSON: NameError: name 'Nowhere' is not defined; the types"),
        (Mixed, "Mixed cannot be decoded from JSON: PartA is a pydantic model, which can be in another model, a data"),
        (WithModelAndStruct, "WithModelAndStruct cannot be decoded from JSON: it contains a pydantic model, and"),
        (WithFunction, "WithFunction cannot be decoded from JSON: it contains a pydantic model, and pydantic rejects"),
        (1, "1 cannot be decoded from JSON"),
        ({"type": "object"}, "a JSON schema is not a type: pass it to complete() or stream(), in response_format"),
        ("Inner", "'Inner'"),
        (RecursiveModel(kids=[]), "RecursiveModel(...) is a value, not a type: pass the class RecursiveModel"),
        (Tree(1), "Tree(...) is a value, not a type: pass the class Tree"),
        (Plain("a"), "Plain(...) is a value, not a type: pass the class Plain"),
    ],
    ids=str,
)
def test_unsupported_type_is_a_type_error_that_names_it(kind: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        json_schema(kind)
    assert message in str(caught.value)


# --- round trips -----------------------------------------------------------------------------------------------------

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    item: T
    rest: list["Page[T]"] = []


class Renamed(msgspec.Struct, rename="camel"):
    some_thing: int
    other_thing: str = msgspec.field(name="OTHER", default="")


class Listed(msgspec.Struct, array_like=True):
    number: int
    text: str = "x"


@dataclasses.dataclass(kw_only=True)
class Keyword:
    number: int
    kids: list["Keyword"] = dataclasses.field(default_factory=list)


class Partial(TypedDict, total=False):
    name: Required[str]
    size: int


class Scalars(msgspec.Struct):
    moment: dt.datetime
    day: dt.date
    clock: dt.time
    duration: dt.timedelta
    id: uuid.UUID
    amount: decimal.Decimal
    data: bytes
    colour: Colour
    level: Literal[1, 2]
    text: Annotated[str, msgspec.Meta(max_length=9, description="a text")]
    anything: Any
    unset: int | msgspec.UnsetType = msgspec.UNSET


class Aliased(pydantic.BaseModel):
    one: int = pydantic.Field(alias="One")
    other: str = pydantic.Field(validation_alias="zwei", serialization_alias="zwei")

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def twice(self) -> int:
        return 2 * self.one


class PydanticPage(pydantic.BaseModel, Generic[T]):
    item: T
    parts: list[Annotated[PartA | PartB, pydantic.Field(discriminator="kind")]]


_SCALARS: list[Any] = [
    *(dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), dt.date(2026, 1, 2), dt.time(3, 4, 5, tzinfo=dt.UTC)),
    *(dt.timedelta(days=1, seconds=2.5), uuid.UUID(int=7), decimal.Decimal("-1.50"), b"\x00\xff", Colour.RED, 1),
    *("text", {"any": [1, None]}, 3),
]
SCALARS = Scalars(*_SCALARS)
VALUES: list[tuple[Any, Any]] = [
    (Inner, Inner(1)),
    (Tree, Tree(1, [Tree(2)])),
    (Cat | Dog, Dog(["sit"])),
    (list[Cat | Dog], [Cat(9), Dog()]),
    (Page[int], Page(1, [Page(2)])),
    (Page[Inner], Page(Inner(1))),
    (Renamed, Renamed(1, "x")),
    (Listed, Listed(1, "y")),
    (Keyword, Keyword(number=1, kids=[Keyword(number=2)])),
    (Partial, {"name": "x", "size": 1}),
    (Pair, Pair(1, "y")),
    (Attrs, Attrs("y")),
    (Colour, Colour.BLUE),
    (Literal["a", "b"], "b"),
    (Inner | None, None),
    (Annotated[Inner, msgspec.Meta(description="one")], Inner(1)),
    (tuple[int, str], (1, "x")),
    (tuple[()], ()),
    (set[int], {1, 2}),
    (float, 1.5),
    (Scalars, SCALARS),
    (PartA, PartA(kind="a")),
    (PartA | PartB, PartB(kind="b")),
    (list[PartA], [PartA(kind="a")]),
    (pydantic.RootModel[list[int]], pydantic.RootModel[list[int]]([1])),
    (Aliased, Aliased.model_validate({"One": 1, "zwei": "x"})),
    (PydanticPage[int], PydanticPage[int](item=1, parts=[PartB(kind="b")])),
    (WithModel, WithModel(PartA(kind="a"), WithModel(PartA(kind="a")))),
    (Annotated[PlainA | PlainB, pydantic.Field(discriminator="kind")], PlainB("b", "x")),
]


def objects_in(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the schemas of objects."""
    if isinstance(schema, Mapping):
        if schema.get("type") == "object":
            yield schema
        for inner in schema.values():
            yield from objects_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects_in(inner)


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=[str(kind) for kind, _ in VALUES])
def test_strict_schema_is_closed_and_values_round_trip(kind: Any, value: Any) -> None:
    output = output_of(kind)
    assert output.schema is not None
    assert output.schema["type"] == "object"
    for found in objects_in(output.schema):
        assert found["additionalProperties"] is False
        assert found["required"] == list(found["properties"])
    assert references_in(output.schema) <= {f"#/$defs/{name}" for name in output.schema.get("$defs", {})}
    adapter = output._adapter
    text = msgspec.json.encode(value) if adapter is None else adapter.dump_json(value, by_alias=True)
    assert output.decode(f'{{"value": {text.decode()}}}' if output.is_wrapped else text.decode()) == value
