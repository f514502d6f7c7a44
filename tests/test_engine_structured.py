"""Structured output of many types from a real server: llama.cpp's, with a tiny random model constrained by grammars."""

import datetime as dt
import decimal
import enum
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from friendli_async import AsyncFriendli, OutputCutOffError, OutputError
from friendli_async.demo.engine import LocalEngine

pytestmark = pytest.mark.engine

ASK: Final[Any] = [{"role": "user", "content": "go"}]
# Random weights rarely end a string or a list by themselves.
ENDING: Final[Any] = {"logit_bias": [['"', 14], ["}", 9], ["]", 9], [",", 6], ["\\", -50]]}
Short = Annotated[str, msgspec.Meta(max_length=8)]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct):
    """A nested struct."""

    x: int
    y: float | None = None


class Basic(msgspec.Struct):
    name: Short
    ok: bool
    colour: Colour
    inner: Inner
    kind: Literal["p", "q"] = "p"


class Tree(msgspec.Struct):
    leaf: bool
    kids: Annotated[list["Tree"], msgspec.Meta(max_length=2)] = []


class Cat(msgspec.Struct, tag="cat"):
    lives: Annotated[int, msgspec.Meta(ge=0, le=9)]


class Dog(msgspec.Struct, tag="dog"):
    name: Short


class Holder(msgspec.Struct):
    pet: Cat | Dog


class Times(msgspec.Struct):
    day: dt.date
    at: dt.datetime
    naive: Annotated[dt.datetime, msgspec.Meta(tz=False)]
    clock: dt.time
    lasted: dt.timedelta


class Exact(msgspec.Struct):
    amount: decimal.Decimal
    id: uuid.UUID


class Tuples(msgspec.Struct):
    pair: tuple[int, bool]
    many: Annotated[tuple[bool, ...], msgspec.Meta(max_length=3)]


@dataclass
class Plain:
    name: Short
    ok: bool = True


class Typed(TypedDict):
    name: Short
    ok: bool


class Pair(NamedTuple):
    one: bool
    other: Literal["a", "b"]


@attrs.define
class Attrs:
    ok: bool
    kind: Literal["a", "b"] = "a"


class PartModel(pydantic.BaseModel):
    ok: bool


class WholeModel(pydantic.BaseModel):
    kind: Literal["a", "b"]
    day: dt.date
    pair: tuple[bool, bool]
    part: PartModel = pydantic.Field(description="a part")
    rest: Annotated[list[PartModel], pydantic.Field(max_length=2)] = []


KINDS: Final[dict[str, Any]] = {
    "struct": Basic,
    "recursion": Tree,
    "union": Holder,
    "root_union": Cat | Dog,
    "times": Times,
    "decimal_uuid": Exact,
    "tuples": Tuples,
    "dataclass": Plain,
    "typed_dict": Typed,
    "named_tuple": Pair,
    "attrs": Attrs,
    "pydantic": WholeModel,
    "list": Annotated[list[Inner], msgspec.Meta(max_length=2)],
    "enum": Colour,
    "optional": bool | None,
}


@pytest.fixture
async def client(engine: LocalEngine) -> AsyncIterator[AsyncFriendli]:
    async with AsyncFriendli(container_url=engine.url) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "plain"])
async def test_schema_is_accepted_and_values_are_valid(client: AsyncFriendli, kind: Any, strict: bool) -> None:
    chat, values = client.container.chat, list[Any]()
    for seed in range(3):
        options: Any = {"messages": ASK, "max_tokens": 400, "seed": seed, "extra_body": ENDING, "strict": strict}
        try:
            values.append((await chat.parse(kind, **options)).value)
            async with chat.parse_stream(kind, **options) as stream:
                snapshots = [str(snapshot) async for snapshot in stream.snapshots()]
            result = await stream.result()
        except OutputCutOffError:
            continue
        assert snapshots
        values.append(result.value)
    assert values
    assert {type(value) for value in values} <= _classes(kind)


def _classes(kind: Any) -> set[type]:
    """The classes that decoded values of a type can have."""
    if kind is Typed:
        return {dict}
    if isinstance(kind, type):
        return {kind}
    return {list} if "list" in str(kind) else set(getattr(kind, "__args__", ()))


async def test_streamed_items_match_final_value(client: AsyncFriendli) -> None:
    kind: Any = Annotated[list[Inner], msgspec.Meta(min_length=2, max_length=3)]
    for seed in range(5):
        stream = client.container.chat.parse_stream(kind, messages=ASK, max_tokens=400, seed=seed, extra_body=ENDING)
        try:
            items = [item async for item in stream.items("", of=Inner)]
        except OutputCutOffError:
            continue
        assert 2 <= len(items) <= 3
        assert (await stream.result()).value == items
        return
    pytest.fail("every answer was cut off")


async def test_unterminated_string_raises_cut_off_error(client: AsyncFriendli) -> None:
    class Endless(msgspec.Struct):
        text: str

    never: Any = {"logit_bias": [['"', -100]]}
    with pytest.raises(OutputCutOffError, match="token limit") as caught:
        await client.container.chat.parse(Endless, messages=ASK, max_tokens=30, seed=1, extra_body=never)
    assert caught.value.text.startswith("{")


async def test_server_ignoring_the_schema_raises_output_error(client: AsyncFriendli) -> None:
    # llama.cpp's Responses API ignores `text.format`.
    with pytest.raises(OutputError) as caught:
        await client.container.responses.parse(Pair, input="go", max_output_tokens=20)
    assert caught.value.text
    with pytest.raises(OutputError):
        await client.container.responses.parse_stream(Pair, input="go", max_output_tokens=20).result()
