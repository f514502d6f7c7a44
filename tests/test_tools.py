"""Functions as tools: the definitions that the model sees, argument decoding, calling and results."""

import asyncio
import collections
import contextvars
import copy
import dataclasses
import enum
import functools
import inspect
import json
import math
import pickle
import pydoc
import threading
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, TypedDict, cast

import anyio.to_thread
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from friendli_async import ToolCall, Usage
from friendli_async.errors import ToolError, TurnLimitError
from friendli_async.replies import FunctionCall
from friendli_async.tools import FunctionTool, ToolDefinitionError, tool
from friendli_async.tools.docstring import parse_docstring

pytestmark = pytest.mark.compatibility

OLD_MSGSPEC = msgspec.__version__.startswith("0.21.")


class Weather(msgspec.Struct):
    city: str
    degrees: float


@dataclasses.dataclass
class Place:
    """Where something is."""

    name: str
    floor: int = 0


HERE = Place("here")


class Filter(TypedDict, total=False):
    word: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Person(pydantic.BaseModel):
    name: str
    home: "Home"


class Home(pydantic.BaseModel):
    street: str = pydantic.Field(min_length=2)


@tool
async def weather(city: str, unit: Literal["C", "F"] = "C") -> Weather:
    """Weather of a city.

    As it is now.

    Args:
        city: Its name, as
            people say it.
        unit (Literal["C", "F"]): Of the degrees.

    Returns:
        What the sky does.
    """
    return Weather(city, 21.5 if unit == "C" else 70.7)


@tool
def now() -> str:
    """The time."""
    return "12:00"


def properties(tool_: Any) -> dict[str, Any]:
    schema = tool_.parameters
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is False
    found: dict[str, Any] = schema["properties"]
    return found


async def run_error(tool_: Any, arguments: str) -> ToolError:
    with pytest.raises(ToolError) as caught:
        await tool_.run(arguments)
    return caught.value


# --- definitions -----------------------------------------------------------------------------------------------------


def test_schema_comes_from_annotations_defaults_and_docstring() -> None:
    assert (weather.name, weather.description) == ("weather", "Weather of a city.\n\nAs it is now.")
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, as people say it."},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C", "description": "Of the degrees."},
        },
        "required": ["city"],
        "additionalProperties": False,
    }


def test_function_without_parameters_has_empty_object_schema() -> None:
    assert now.parameters == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}


def test_function_without_docstring_has_no_description() -> None:
    async def silent() -> None: ...

    assert tool(silent).description is None


def test_constraint_without_a_description_leaves_that_of_the_docstring() -> None:
    def buy(number: Annotated[int, msgspec.Meta(ge=1)]) -> None:
        """Buys.

        Args:
            number: How many.
        """

    assert properties(tool(buy))["number"] == {"type": "integer", "minimum": 1, "description": "How many."}


def name_of(place: "Place", suffix: str = "") -> str:
    return place.name + suffix


class Namer:
    def __call__(self, place: "Place") -> str:
        return place.name

    def method(self, place: "Place") -> str:
        return place.name

    def without_self(this, place: "Place") -> None: ...  # noqa: N805  # under test


@pytest.mark.parametrize(
    "fn",
    [
        functools.partial(name_of, suffix=""),
        functools.lru_cache(name_of),
        functools.partial(functools.lru_cache(name_of), suffix=""),
        Namer().method,
        Namer(),
    ],
    ids=["partial", "wrapper", "partial of a wrapper", "bound method", "object"],
)
def test_annotations_written_as_text_are_resolved_where_the_function_inside_is_defined(fn: Any) -> None:
    assert properties(tool(fn))["place"] == {"$ref": "#/$defs/Place"}


def test_name_and_description_can_be_given() -> None:
    tool_ = tool(len_of, name="length", description="How long.")
    assert (tool_.name, tool_.description) == ("length", "How long.")
    decorated = tool(name="other")(len_of)
    assert (decorated.name, decorated.description) == ("other", "Length of a text.")
    assert tool(len_of, description="").description == ""


def len_of(text: str) -> int:
    """Length of a text."""
    return len(text)


def test_annotation_description_overrides_docstring() -> None:
    @tool
    def find(limit: Annotated[int, msgspec.Meta(ge=1, description="At most so many.")] = 3, word: str = "") -> None:
        """Finds.

        Args:
            limit: Something else.
            word: What to find.
        """

    assert properties(find) == {
        "limit": {"type": "integer", "minimum": 1, "description": "At most so many.", "default": 3},
        "word": {"type": "string", "description": "What to find.", "default": ""},
    }


def test_all_supported_types_have_a_schema_with_shared_definitions() -> None:
    @tool
    def take(
        place: Place, filters: list[Filter], colour: Colour | None, pair: tuple[int, str], at: datetime, rest: Any
    ) -> None:
        pass

    assert set(take.parameters["$defs"]) == {"Place", "Filter"}
    assert take.parameters["$defs"]["Place"] == {
        "type": "object",
        "description": "Where something is.",
        "properties": {"name": {"type": "string"}, "floor": {"type": "integer"}},
        "required": ["name"],
    }
    found = properties(take)
    assert found["place"] == {"$ref": "#/$defs/Place"}
    assert found["colour"] == {"anyOf": [{"type": "string", "enum": ["red", "blue"]}, {"type": "null"}]}
    assert found["at"] == {"type": "string", "format": "date-time"}
    assert found["rest"] == {}
    assert "items" not in found["pair"]  # llama.cpp rejects `items: false`
    assert found["pair"]["maxItems"] == 2
    assert json.loads(json.dumps(take.parameters)) == take.parameters


def test_definitions_of_pydantic_models_are_shared_at_the_root() -> None:
    @tool
    def visit(person: Person, guests: list[Person] | None = None) -> None:
        pass

    home = {"$ref": "#/$defs/Home"}
    person = {"type": "object", "properties": {"name": {"type": "string"}, "home": home}, "required": ["name", "home"]}
    assert properties(visit)["person"] == person
    assert properties(visit)["guests"]["anyOf"][0] == {"type": "array", "items": person}
    street = {"type": "string", "minLength": 2}
    assert visit.parameters["$defs"] == {
        "Home": {"type": "object", "properties": {"street": street}, "required": ["street"]}
    }


def test_types_with_the_same_name_have_a_definition_each() -> None:
    home = msgspec.defstruct("Home", [("rooms", int)])
    others: Any = pydantic.create_model("Home", garden=(bool, ...))
    owner = pydantic.create_model("Owner", home=(others, ...), spare=(list[others], ...))

    def move(old: Any, person: Person, owner: Any, again: Any) -> None:
        pass

    move.__annotations__ |= {"old": home, "owner": owner, "again": owner}
    schema = tool(move).parameters
    used = {
        "old": schema["properties"]["old"],
        "person": schema["properties"]["person"]["properties"]["home"],
        "owner": schema["properties"]["owner"]["properties"]["home"],
        "again": schema["properties"]["again"]["properties"]["spare"]["items"],
    }
    fields = {name: list(schema["$defs"][ref["$ref"].rpartition("/")[2]]["properties"]) for name, ref in used.items()}
    assert fields == {"old": ["rooms"], "person": ["street"], "owner": ["garden"], "again": ["garden"]}
    assert len(schema["$defs"]) == 3


def test_parameter_description_overrides_docstring_of_its_type() -> None:
    class Shade(enum.Enum):
        """A shade."""

        DARK = "dark"

    def paint(shade: Any, place: Place, other: Any) -> None:
        """Paints.

        Args:
            shade: Which shade.
            place: Which place.
            other: Which other one.
        """

    annotated = Annotated[Shade, msgspec.Meta(description="As annotated.")]
    paint.__annotations__ |= {"shade": Shade, "other": annotated}
    found = properties(tool(paint))
    assert [found[name]["description"] for name in ("shade", "place", "other")] == [
        "Which shade.",
        "Which place.",
        "As annotated.",
    ]


def test_defaults_that_are_not_json_are_omitted_from_schema_but_used() -> None:
    marker = object()

    @tool
    def keep(
        value: Any = marker,
        place: Place | None = HERE,
        home: Place = HERE,
        many: tuple[int, ...] = (1, 2),
        limit: float = math.inf,
    ) -> bool:
        return value is marker and place is home is HERE and many == (1, 2) and limit == math.inf

    assert "default" not in properties(keep)["value"]
    assert "default" not in properties(keep)["limit"]
    assert properties(keep)["many"]["default"] == [1, 2]
    assert properties(keep)["place"]["default"] == properties(keep)["home"]["default"] == {"name": "here", "floor": 0}
    assert asyncio.run(keep.run("{}")) == "true"


def test_keywords_bound_by_partial_are_hidden_and_rejected() -> None:
    def search(word: str, *, key: str, limit: int = 3) -> str:
        """Searches."""
        return f"{word} {key} {limit}"

    tool_ = tool(functools.partial(search, key="secret"))
    assert tool_.name == "search"
    assert set(properties(tool_)) == {"word", "limit"}
    assert "secret" not in json.dumps(tool_.parameters)
    assert asyncio.run(tool_.run('{"word":"a"}')) == "a secret 3"
    assert asyncio.run(run_error(tool_, '{"word":"a","key":"mine"}')).kind == "arguments"


@pytest.mark.parametrize(
    ("docstring", "text", "parameters"),
    [
        (None, "", {}),
        ("Does.", "Does.", {}),
        ("Does.\n\n    More.\n\n    Args:\n        a: One.\n        b (int): Two,\n            three.\n",
         "Does.\n\nMore.", {"a": "One.", "b": "Two, three."}),
        ("Does.\n\nArguments:\n  a (dict[str, int], optional): One: two.\n  *rest: No.\n\nRaises:\n  b: No.\n", "Does.",
         {"a": "One: two.", "rest": "No."}),
        ("\nArgs:\n    a: One.\n\n    b:\n        Two.\n\n        Three.\n    not an entry\n        c: No.", "",
         {"a": "One.", "b": "Two. Three."}),
        ("Does.\n\nNote:\n    x: No.\n\nArgs:\n    a: One.\nplain text again\n    b: No.", "Does.", {"a": "One."}),
        ("Does args: a thing.", "Does args: a thing.", {}),
        ("\nArgs:\n", "", {}),
    ],
)  # fmt: skip
def test_docstring_is_parsed(docstring: str | None, text: str, parameters: dict[str, str]) -> None:
    assert parse_docstring(docstring) == (text, parameters)


@given(st.text(alphabet="abA rgs:\n \t()*", max_size=60))
def test_any_docstring_can_be_parsed(docstring: str) -> None:
    text, parameters = parse_docstring(docstring)
    assert isinstance(text, str)
    assert all(parameters.values())


# --- invalid definitions ---------------------------------------------------------------------------------------------


def var_positional(*words: str) -> None: ...
def var_keyword(**words: str) -> None: ...
def positional(word: str, /) -> None: ...
def unannotated(word) -> None: ...  # type: ignore[no-untyped-def]  # under test
def undefined_annotation(word: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821  # under test
def unsupported_type(word: threading.Thread) -> None: ...
def ambiguous_type(words: dict[str, int] | Place) -> None: ...
def sync_generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (var_positional, "'*words' is variadic positional"),
        (var_keyword, "'**words' is variadic keyword"),
        (positional, "'word' is positional-only"),
        (sync_generator, "generator"),
        (async_generator, "generator"),
        (lambda: 1, "'<lambda>' cannot be a tool's name"),
        (classmethod(cast("Any", len_of)), "outside the class"),
        (staticmethod(len_of), "outside the class"),
        ("weather", "is not callable"),
        (dict, "its signature cannot be determined"),
    ],
)
def test_invalid_function_is_rejected_when_decorated(fn: Any, reason: str) -> None:
    with pytest.raises(ToolDefinitionError, match=reason.replace("*", r"\*")):
        tool(fn)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (unannotated, "'word' has no type annotation"),
        (Namer.without_self, "'this' has no type annotation"),
        (undefined_annotation, "'Nowhere' is not defined"),
        (unsupported_type, "Thread has no JSON representation"),
        (ambiguous_type, "more than one dict-like type .* use structs with a tag"),
    ],
)
def test_invalid_parameter_type_is_rejected_when_schema_is_built(fn: Any, reason: str) -> None:
    tool_ = tool(fn)
    with pytest.raises(ToolDefinitionError, match=reason):
        _ = tool_.parameters


async def local_time() -> str:
    return "14:05"


@pytest.mark.parametrize("timeout", [0, -1, math.nan, True, "30"])
def test_timeout_of_a_tool_must_be_a_positive_number(timeout: Any) -> None:
    with pytest.raises(ValueError, match="timeout: Expected a number of seconds above 0, or None, got"):
        tool(local_time, timeout=timeout)


def test_tool_of_a_tool_differs_only_in_what_is_given() -> None:
    inner = tool(local_time, name="a", description="b", timeout=3)
    outer = [tool(inner), tool(inner, name="c"), tool(inner, description="d"), tool(inner, timeout=None)]
    assert [(made.name, made.description, made.timeout) for made in outer] == [
        ("a", "b", 3),
        ("c", "b", 3),
        ("a", "d", 3),
        ("a", "b", None),
    ]


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 65, "a.b"])
def test_invalid_tool_name_is_rejected(name: str) -> None:
    with pytest.raises(ToolDefinitionError, match="cannot be a tool's name"):
        tool(len_of, name=name)


def test_description_that_is_not_text_is_rejected() -> None:
    with pytest.raises(ToolDefinitionError, match="5 cannot be a tool's description: it is not text"):
        tool(local_time, description=cast("Any", 5))


def test_return_annotation_is_not_resolved() -> None:
    def find() -> "Nowhere":  # type: ignore[name-defined]  # noqa: F821  # like a name imported under TYPE_CHECKING
        return 1

    assert asyncio.run(tool(find).run("")) == "1"


@pytest.mark.parametrize("arguments", ["", " ", "null", " null\n"])
def test_tool_is_called_without_arguments_if_the_model_sends_none(arguments: str) -> None:
    def find(place: str = "here") -> str:
        return place

    assert asyncio.run(tool(find).run(arguments)) == "here"


# --- arguments -------------------------------------------------------------------------------------------------------


async def test_arguments_are_decoded_into_annotated_types() -> None:
    seen: list[Any] = []

    @tool
    async def take(
        place: Place,
        filters: list[Filter],
        colour: Colour | None,
        pair: tuple[int, str],
        at: datetime,
        price: Decimal,
        person: Person,
        *,
        rest: Any = None,
    ) -> None:
        seen.extend([place, filters, colour, pair, at, price, person, rest])

    arguments = {
        "place": {"name": "here"}, "filters": [{"word": "a"}], "colour": "red", "pair": [1, "x"],
        "at": "2026-01-02T03:04:05Z", "price": "1.50", "person": {"name": "Ann", "home": {"street": "Main"}},
    }  # fmt: skip
    assert await take.run(json.dumps(arguments)) == "null"
    assert seen[:4] == [Place("here"), [{"word": "a"}], Colour.RED, (1, "x")]
    assert seen[4] == datetime.fromisoformat("2026-01-02T03:04:05Z")
    assert seen[5:] == [Decimal("1.50"), Person(name="Ann", home=Home(street="Main")), None]


@pytest.mark.parametrize("arguments", ["", "  ", "{}"])
async def test_empty_arguments_are_an_empty_object(arguments: str) -> None:
    assert await now.run(arguments) == "12:00"


async def test_strings_are_coerced_to_annotated_types() -> None:
    @tool
    async def add(a: int, b: float, exact: bool, either: int | str = 0) -> list[Any]:
        return [a, b, exact, either]

    assert await add.run('{"a":"5","b":"1.5","exact":"true"}') == "[5,1.5,true,0]"
    assert await add.run('{"a":5,"b":2,"exact":true,"either":"7"}') == '[5,2.0,true,"7"]'


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"city":', "not valid JSON"),
        ("Paris", "not valid JSON"),
        ('{"city":"Paris"} and more', "not valid JSON"),
        ('["Paris"]', "Expected `object`"),
        ("{}", "missing required field `city`"),
        ('{"city":1}', "Expected `str`, got `int`"),
        ('{"city":"Paris","unit":"K"}', "Invalid enum value 'K'"),
        ('{"city":"Paris","country":"France"}', "unknown field `country`"),
        ('{"city":' + "[" * 100_000, "Expected `str`, got `array`"),
    ],
)
async def test_invalid_arguments_are_reported_with_reason(arguments: str, reason: str) -> None:
    error = await run_error(weather, arguments)
    assert error.kind == "arguments"
    assert reason in str(error)


async def test_pydantic_validation_error_is_an_arguments_error() -> None:
    @tool
    async def visit(person: Person) -> None:
        pass

    error = await run_error(visit, '{"person":{"name":"Ann","home":{"street":"x"}}}')
    assert error.kind == "arguments"
    assert "at least 2 characters" in str(error)


class Slot(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    start: datetime
    seats: int = pydantic.Field(ge=1)


@pydantic.dataclasses.dataclass
class Guest:
    age: int = pydantic.Field(ge=18)


@tool
def book(
    nights: Annotated[int, pydantic.Field(ge=1, le=14, description="How many nights.")],
    guests: list[Guest],
    slot: Slot | None = None,
    rooms: pydantic.PositiveInt | None = 1,
    city: Annotated[str, "The city, in English."] = "Oslo",
    notes: Annotated[list[Annotated[str, pydantic.Field(min_length=2)]], "Notes."] = [],  # noqa: B006  # never changed
) -> str:
    """Books.

    Args:
        nights: Not this.
        city: Not this.
        rooms: How many rooms.
    """
    return repr((nights, guests, slot, rooms, city, notes))


def test_constraints_and_descriptions_of_annotations_are_in_the_schema() -> None:
    found = properties(book)
    assert found["nights"] == {"type": "integer", "minimum": 1, "maximum": 14, "description": "How many nights."}
    assert found["guests"]["items"] == {"$ref": "#/$defs/Guest"}
    age = {"type": "integer", "minimum": 18}
    assert book.parameters["$defs"]["Guest"] == {"type": "object", "properties": {"age": age}, "required": ["age"]}
    assert found["rooms"]["anyOf"][0] == {"type": "integer", "exclusiveMinimum": 0}
    assert (found["rooms"]["description"], found["rooms"]["default"]) == ("How many rooms.", 1)
    assert found["city"] == {"type": "string", "description": "The city, in English.", "default": "Oslo"}
    assert found["notes"]["items"] == {"type": "string", "minLength": 2}
    assert found["notes"]["description"] == "Notes."


TOO_FEW = "Input should be greater than or equal to"


async def test_constraints_of_pydantic_are_validated() -> None:
    assert await book.run('{"nights":1,"guests":[]}') == "(1, [], None, 1, 'Oslo', [])"
    slot = '{"start":"2026-01-02T03:04:05","seats":2}'
    given = f'{{"nights":"2","guests":[{{"age":18}}],"slot":{slot},"rooms":null,"city":"Rome","notes":["ab"]}}'
    at = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001  # the model wrote no zone
    expected = (2, [Guest(age=18)], Slot(start=at, seats=2), None, "Rome", ["ab"])
    assert await book.run(given) == repr(expected)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('"nights":15', "Input should be less than or equal to 14 - at `$.nights`"),
        ('"guests":[{"age":3}]', f"{TOO_FEW} 18 (at [0].age) - at `$.guests`"),
        (
            '"slot":{"start":"2026-01-02T03:04:05","seats":"2"}',
            "Input should be a valid integer (at seats) - at `$.slot`",
        ),
        ('"rooms":0', "Input should be greater than 0 - at `$.rooms`"),
        (r'"notes":["\ud800"]', "pydantic cannot read it: it has a lone surrogate, or is too deep - at `$.notes`"),
        ('"notes":["a"]', "String should have at least 2 characters (at [0]) - at `$.notes`"),
    ],
)
async def test_violated_constraint_of_pydantic_is_described_in_one_line(changed: str, message: str) -> None:
    error = await run_error(book, f'{{"nights":1,"guests":[],{changed}}}')
    assert (error.kind, str(error)) == ("arguments", f"invalid arguments: {message}")


def test_field_as_a_default_is_a_definition_error() -> None:
    def book(nights: int = pydantic.Field(3, ge=1)) -> None:
        pass

    with pytest.raises(ToolDefinitionError, match="the default of its parameter 'nights' is a Field"):
        tool(book)


def test_constraint_that_would_have_no_effect_is_a_definition_error() -> None:
    struct = msgspec.defstruct("Booking", [("nights", Annotated[int, pydantic.Field(ge=1)])])

    def book(booking: Any) -> None:
        pass

    book.__annotations__["booking"] = struct
    with pytest.raises(ToolDefinitionError, match="has no effect on a msgspec Struct or attrs class"):
        _ = tool(book).parameters


# --- calling ---------------------------------------------------------------------------------------------------------


async def test_sync_function_runs_in_thread_with_caller_context() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    who.set("somebody")
    threads: list[threading.Thread] = []

    @tool
    def look() -> str:
        threads.append(threading.current_thread())
        return who.get()

    assert await look.run("") == "somebody"
    assert threads != [threading.current_thread()]


class Async:
    async def __call__(self, x: int = 1) -> str:
        return f"{x}"

    async def method(self, x: int = 1) -> str:
        return f"{x}"

    @tool
    async def decorated(self, /, x: int = 1) -> str:
        return f"{x}"


@pytest.mark.parametrize(
    "made",
    [
        tool(Async().method),
        tool(functools.partial(Async().method, x=1)),
        tool(Async(), name="f"),
        tool(tool(Async().method)),
        Async().decorated,
    ],
    ids=["method", "partial", "object", "tool", "bound tool"],
)
async def test_async_function_takes_no_thread(made: FunctionTool[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyio.to_thread, "run_sync", None)
    assert await made.run("") == "1"


async def test_tools_that_hang_leave_the_threads_of_the_program_free() -> None:
    may_finish = threading.Event()
    running = threading.Semaphore(0)

    @tool
    def hang() -> str:
        running.release()
        may_finish.wait(30)
        return "late"

    calls = [asyncio.ensure_future(hang.run("")) for _ in range(41)]
    try:
        for _ in range(40):  # in threads that FastAPI uses for plain dependencies, such as client_of
            assert await anyio.to_thread.run_sync(running.acquire, True, 30)
        assert not running.acquire(blocking=False)  # the last call waits for a thread
    finally:
        may_finish.set()
        assert await asyncio.gather(*calls) == ["late"] * 41


async def test_function_that_returns_coroutine_is_awaited() -> None:
    def wrapped(fn: Callable[..., Awaitable[str]]) -> Callable[..., Awaitable[str]]:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Awaitable[str]:
            return fn(*args, **kwargs)

        return call

    @tool
    @wrapped
    async def shout(text: str) -> str:
        return text.upper()

    assert await shout.run('{"text":"hi"}') == "HI"


def test_tool_has_the_attributes_of_its_function_that_do_not_hide_its_own() -> None:
    def search(query: str) -> str:
        return query

    search.__dict__.update(permission="admin", run="an attribute that every tool has, too")
    found = tool(search)
    assert vars(found)["permission"] == "admin"
    assert callable(found.run)


@pytest.mark.parametrize("has_signature", [False, True])
def test_tool_of_a_decorated_method_wraps_the_decorated_one(has_signature: bool) -> None:
    def guarded(fn: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> str:
            return "guarded: " + fn(*args, **kwargs)

        if has_signature:  # as some libraries for decorators set it
            call.__dict__["__signature__"] = inspect.signature(fn)
        return call

    class Desk:
        @tool
        @guarded
        def count(self, text: str) -> str:
            return text

    bound = Desk().count
    assert list(inspect.signature(bound).parameters) == ["text"]
    assert bound.__wrapped__("a") == bound("a") == "guarded: a"
    assert tool(bound, name="other").parameters == bound.parameters


async def test_callable_object_can_be_a_tool() -> None:
    class Adder:
        """Adds to what it has."""

        def __init__(self) -> None:
            self.sum = 0
            self.run = "an attribute that every tool has, too"

        async def __call__(self, number: int) -> int:
            self.sum += number
            return self.sum

    tool_ = tool(Adder(), name="add")
    assert [await tool_.run('{"number":2}') for _ in range(2)] == ["2", "4"]
    assert tool_.description == "Adds to what it has."


async def test_tool_of_a_tool_only_changes_its_name() -> None:
    tool_ = tool(weather, name="sky")
    assert tool_.parameters == weather.parameters
    assert await tool_.run('{"city":"Rome"}') == '{"city":"Rome","degrees":21.5}'


class Desk:
    def __init__(self, owner: str) -> None:
        self.owner = owner

    @tool
    async def note(self, text: str, times: int = 1) -> str:
        """Writes a note.

        Args:
            text: What to write.
        """
        return f"{self.owner}: {text * times}"

    def plain(self, text: str) -> str:
        """Says it."""
        return f"{self.owner} says {text}"

    @classmethod
    def count(cls, up_to: int) -> str:
        return f"{cls.__name__} {up_to}"

    @staticmethod
    @tool
    def free(word: str) -> str:
        return word


async def test_class_method_over_tool_is_rejected_with_the_way_to_wrap_it() -> None:
    class Counter:
        @classmethod
        @tool
        async def undocumented(cls, up_to: int) -> int:
            return up_to

        @classmethod
        @tool
        async def documented(cls, up_to: int) -> int:
            """Counts."""
            return up_to

    counter: Any = Counter
    for method in (counter.undocumented, counter().undocumented, counter.documented, counter().documented):
        assert await method(3) == 3
        with pytest.raises(ToolDefinitionError, match=r"outside the class, such as tool\(Desk.count\)"):
            method.parameters  # noqa: B018  # reading it raises
        with pytest.raises(ToolDefinitionError, match="outside the class"):
            await method.run('{"up_to":3}')


async def test_decorated_method_is_bound_to_its_instance() -> None:
    ann, bob = Desk("Ann"), Desk("Bob")
    assert await ann.note.run('{"text":"a","times":2}') == "Ann: aa"
    assert await bob.note("b") == "Bob: b"
    assert ann.note.name == "note"
    assert properties(ann.note)["text"]["description"] == "What to write."
    assert ann.note.parameters is bob.note.parameters
    assert isinstance(Desk.note, FunctionTool)
    assert Desk.note is vars(Desk)["note"]
    assert await Desk.note(ann, "c") == "Ann: c"


async def test_tool_of_an_object_is_not_bound_to_the_instance_that_has_it() -> None:
    class Holder:
        name = tool(Namer(), name="name")

    holder: Any = Holder()  # a type checker takes the tool for one of a method
    assert holder.name is Holder.name
    assert await holder.name.run('{"place":{"name":"here"}}') == "here"


@pytest.mark.parametrize("method", [Desk.note, tool(Desk.plain)])
async def test_method_without_its_instance_is_rejected_with_the_way_to_take_it(method: Any) -> None:
    with pytest.raises(ToolDefinitionError, match=r"it is a method: take it from an instance, such as Desk\(\).note"):
        _ = method.parameters
    with pytest.raises(ToolDefinitionError, match="take it from an instance"):
        await method.run('{"text":"a"}')


async def test_bound_class_and_static_methods_can_be_tools() -> None:
    assert await tool(Desk("Ann").plain).run('{"text":"a"}') == "Ann says a"
    assert await tool(Desk.count).run('{"up_to":3}') == "Desk 3"
    assert await Desk.free.run('{"word":"x"}') == "x"


async def test_tool_can_be_called_as_the_function() -> None:
    assert await weather("Paris", unit="F") == Weather("Paris", 70.7)
    assert now() == "12:00"
    assert list(inspect.signature(weather).parameters) == ["city", "unit"]
    assert vars(weather)["__name__"] == "weather"
    assert (inspect.getdoc(weather) or "").startswith("Weather of a city.\n\nAs it is now.\n\nArgs:")
    assert repr(now) == "<tool now() -> str>"
    shown = pydoc.plain(pydoc.render_doc(weather))
    assert "weather(city: str, unit: Literal['C', 'F'] = 'C')" in shown
    assert "Its name, as" in shown


# --- results ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("as it is", "as it is"),
        (None, "null"),
        ([1, {"a": None}], '[1,{"a":null}]'),
        (Weather("Paris", 1.5), '{"city":"Paris","degrees":1.5}'),
        (Place("here"), '{"name":"here","floor":0}'),
        (Home(street="Main"), '{"street":"Main"}'),
        pytest.param(
            {Colour.RED: datetime.fromisoformat("2026-01-02T03:04:05+00:00")},
            '{"red":"2026-01-02T03:04:05Z"}',
            marks=pytest.mark.skipif(OLD_MSGSPEC, reason="msgspec 0.21 does not support enum keys"),
        ),
        (["\ud83d"], '["\\ud83d"]'),
        (collections.deque([1, range(2)]), "[1,[0,1]]"),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
    ],
)
async def test_result_is_text_or_json(result: object, text: str) -> None:
    async def give() -> Any:
        return result

    assert await tool(give).run("") == text


async def test_numpy_numbers_in_a_result_are_numbers() -> None:
    np = pytest.importorskip("numpy")

    def measure(degrees: float) -> Any:
        return {"degrees": np.float64(degrees), "days": [np.int64(3)], "dry": np.bool_(True)}

    assert await tool(measure).run('{"degrees": 1.5}') == '{"degrees":1.5,"days":[3],"dry":true}'
    with pytest.raises(ToolError, match="Out of range float values"):
        await tool(functools.partial(measure, degrees=np.float64(math.nan))).run("")


@pytest.mark.parametrize("arguments", [r'{"text":"half \ud83d"}', '{"text":"half \ud83d"}'])
async def test_lone_surrogate_in_arguments_reaches_the_function(arguments: str) -> None:
    @tool
    def echo(text: str, end: str = "\ude00") -> str:
        return text + end

    assert await echo.run(arguments) == "half \ud83d\ude00"
    assert properties(echo)["end"]["default"] == "\ude00"


async def test_result_that_is_not_json_is_an_error() -> None:
    recursive: list[object] = []
    recursive.append(recursive)
    for result in (object(), {1: threading.Lock()}, {"a": {object(): 1}}, recursive):

        async def give(result: object = result) -> Any:
            return result

        error = await run_error(tool(functools.partial(give, result=result)), "")
        assert error.kind == "result"
        assert "cannot be serialized" in str(error)


class Measurement(msgspec.Struct):
    value: float | None
    note: msgspec.Raw = msgspec.Raw(b"null")


class MeasurementModel(pydantic.BaseModel):
    value: float


@pytest.mark.parametrize(
    "result",
    [
        math.nan,
        -math.inf,
        [1.5, math.nan],
        {"a": Measurement(math.inf)},
        [MeasurementModel(value=math.nan)],
        ["\ud800", math.nan],
    ],
)
async def test_result_with_nan_or_infinity_is_an_error(result: object) -> None:
    def give() -> object:
        return result

    error = await run_error(tool(give), "")
    assert error.kind == "result"
    assert "the tool's result cannot be serialized: Out of range float values" in str(error)


async def test_result_with_null_is_json() -> None:
    def give() -> list[object]:
        return [None, Measurement(None), 1.5]

    assert await tool(give).run("") == '[null,{"value":null,"note":null},1.5]'


def test_errors_can_be_pickled_and_copied() -> None:
    call = ToolCall("a", "function", FunctionCall("weather", "{}"))
    for error in (
        ToolError("no", kind="timeout", call=call, messages=[{"role": "user", "content": "Hi"}], usage=Usage(1, 2, 3)),
        TurnLimitError("too long", messages=[{"role": "user", "content": "Hi"}], usage=Usage(1, 2, 3), turns=8),
    ):
        for duplicate in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(duplicate), str(duplicate), vars(duplicate)) == (type(error), str(error), vars(error))


# --- pickling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool_", "is_same"),
    [
        (weather, True),
        (Desk.note, True),
        (Desk.free, True),
        (Desk("Ann").note, False),
        (tool(Desk("Ann").plain), False),
        (tool(properties, name="sky"), False),
        (tool(weather, name="sky"), False),
    ],
)
def test_tool_can_be_pickled_where_its_function_could(tool_: FunctionTool[Any], is_same: bool) -> None:
    if tool_ is not Desk.note:
        assert tool_.parameters  # makes decoders, which cannot be pickled
    duplicate = pickle.loads(pickle.dumps(tool_))
    assert (duplicate is tool_) == is_same
    assert (duplicate.name, duplicate.description, repr(duplicate)) == (tool_.name, tool_.description, repr(tool_))


async def test_copy_of_a_tool_has_attributes_of_its_own() -> None:
    duplicate = copy.copy(weather)
    duplicate.description = "Forecast."
    assert weather.description != "Forecast."
    assert await duplicate.run('{"city": "Oslo"}') == await weather.run('{"city": "Oslo"}')
