"""Decodes example replies and events, generated from every schema of the API, into the types of this library.

They must decode, round-trip, keep every field that the schema lists, and tolerate what a later release of the API may
change: added fields, new enum values, missing fields, null.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import pytest
from support.losses import losses
from support.operations import Served, served_operations

from friendli_async._core.body.arguments import Arguments
from friendli_async._core.events.reader import EventReader
from friendli_async._core.events.stream import StreamState
from friendli_async._core.lenient import decode
from friendli_async._core.protocol import Operation
from friendli_async._json import encode_json
from friendli_async.errors import APIStatusError
from friendli_async.replies import ReplyHead
from friendli_async.testing.examples import example
from friendli_async.testing.frames import sse_event
from friendli_async.testing.route import Route
from friendli_async.testing.routes import Router
from friendli_async.testing.schema import Schema, resolve, schemas, validate

ROUTES: Final = {(route.method, route.path): route for route in Router().routes}
SERVED: Final = served_operations()


@dataclass(frozen=True)
class Shape:
    """A variant of an example value: the alternatives to use, and changes that an API release may make."""

    label: str
    variant: int = 0
    sparse: bool = False
    nulls: bool = False
    extra: bool = False
    novel: bool = False

    def of(self, schema: str) -> Any:
        return example(schema, self.variant, sparse=self.sparse, nulls=self.nulls, extra=self.extra, novel=self.novel)


def alternatives(schema: Schema, above: frozenset[str] = frozenset()) -> int:
    """Returns how many variants of its example cover every alternative of every union and enum of a schema."""
    if "$ref" in schema:
        name: str = schema["$ref"]
        return 1 if name in above else alternatives(resolve(schema), above | {name})
    inner: list[Schema] = [*schema.get("properties", {}).values(), *schema.get("oneOf", [])]
    if isinstance(schema.get("additional_properties"), dict):
        inner.append(schema["additional_properties"])
    if "items" in schema:
        inner.append(schema["items"])
    count = max(len(schema.get("oneOf", [])), len(schema.get("enum", [])), 1)
    if "discriminator" in schema:
        tags = schema["discriminator"]["mapping"]
        count = len(tags)
        inner += [{"$ref": name} for name in tags.values()]
    return max([count, *(alternatives(each, above) for each in inner)])


def shapes(schema: str) -> Iterator[Shape]:
    for variant in range(alternatives({"$ref": schema})):
        yield Shape(f"variant{variant}", variant)
        yield Shape(f"variant{variant}-sparse", variant, sparse=True)
        yield Shape(f"variant{variant}-nulls", variant, nulls=True)
        yield Shape(f"variant{variant}-extra", variant, extra=True)
        yield Shape(f"variant{variant}-novel", variant, novel=True)


def test_shapes_cover_every_alternative() -> None:
    assert alternatives({"$ref": "DedicatedEndpointStatus"}) == 14  # the values of its longest enum


NOTHING: Final[tuple[object, ...]] = (None, [])
"""Values of fields that a reply may omit: it has them as defaults."""

# --- replies ---------------------------------------------------------------------------------------------------------

REPLIES: Final = [
    pytest.param(served, ROUTES[served.key], id=str(served))
    for served in SERVED
    if served.key in ROUTES and ROUTES[served.key].reply
]


@pytest.mark.parametrize(("served", "route"), REPLIES)
def test_replies_decode_completely_and_round_trip(served: Served, route: Route) -> None:
    decoder = served.operation.decoder
    assert route.reply
    for shape in shapes(route.reply):
        value = shape.of(route.reply)
        assert shape.novel or validate(route.reply, value) == [], shape
        reply = decode(encode_json(value), decoder)
        encoded = msgspec.json.encode(reply)
        assert decoder.decode(encoded) == reply, shape
        if not shape.extra:
            assert list(losses(value, msgspec.json.decode(encoded), omitted=NOTHING)) == [], shape


@pytest.mark.parametrize(("served", "route"), REPLIES)
def test_unknown_reply_fields_are_ignored(served: Served, route: Route) -> None:
    decoder = served.operation.decoder
    assert route.reply
    for variant in range(alternatives({"$ref": route.reply})):
        plain, later = example(route.reply, variant), example(route.reply, variant, extra=True)
        assert plain != later
        assert decode(encode_json(later), decoder) == decode(encode_json(plain), decoder)


# --- events ----------------------------------------------------------------------------------------------------------


class Recorder:
    """Fakes the engine: records the collector of the stream that a resource opens."""

    def __init__(self) -> None:
        self.collector: Any = None

    def opening(self, operation: Operation[Any], arguments: Arguments, collector: Any, run: object = None) -> object:
        self.collector = collector
        return SimpleNamespace(state=StreamState())


REQUIRED: Final[Mapping[str, Mapping[str, Any]]] = {
    "chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "tool_assisted_chat": {"messages": [{"role": "user", "content": "Hi"}]},
    "completions": {"prompt": "Once"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    "responses": {"input": "Hi"},
    "audio": {"file": b"RIFF"},
}

STREAMS: Final = [
    pytest.param(served, ROUTES[served.key], id=str(served))
    for served in SERVED
    if served.key in ROUTES and ROUTES[served.key].events
]


FAILURES: Final = ("error", "response.failed")
"""Events that report a failed stream; they become its error."""
ENDS: Final = ("response.completed", "response.incomplete")
"""Events that end a response, which has failed if it names an error."""


def strip_foreign_fields(data: dict[str, Any]) -> dict[str, Any]:
    """Removes fields of the other kind: both kinds of transcript events share one schema."""
    others = {"transcript.text.delta": ("text", "usage"), "transcript.text.done": ("delta",)}
    return {name: value for name, value in data.items() if name not in others.get(data.get("type", ""), ())}


def with_one_choice_and_call(data: dict[str, Any]) -> dict[str, Any]:
    """Keeps one choice and one call of each list, which samples repeat, with the index from the collectors."""
    choices = [{**choice, "index": 0} for choice in (data.get("choices") or ())[:1]]
    for choice in choices:
        delta = choice.get("delta") or {}
        if calls := delta.get("tool_calls"):
            choice["delta"] = {**delta, "tool_calls": [{**calls[0], "index": 0}]}
    return {**data, "choices": choices} if choices else data


def read(served: Served, name: str | None, data: bytes) -> EventReader[Any]:
    """Reads one event as a new stream of the operation would."""
    recorder = Recorder()
    type(served.resource)(recorder).stream(model="m", **REQUIRED[served.group.rpartition(".")[2]])
    reader: EventReader[Any] = EventReader(recorder.collector(), 1 << 20, ReplyHead(200))
    reader.feed(sse_event(data, name))
    return reader


def event_schemas(name: str) -> Iterator[tuple[str, str | None]]:
    """Yields the data schema and the event name of each kind of event."""
    schema = resolve({"$ref": name})
    kinds: list[Schema] = (
        [{"$ref": kind} for kind in schema["discriminator"]["mapping"].values()]
        if ("discriminator" in schema)
        else schema.get("oneOf", [{"$ref": name}])
    )
    for kind in kinds:
        properties = resolve(kind)["properties"]
        yield properties["data"]["$ref"], properties.get("event", {}).get("const")


@pytest.mark.parametrize(("served", "route"), STREAMS)
def test_events_decode_completely_and_round_trip(served: Served, route: Route) -> None:
    assert route.events
    for schema, name in event_schemas(route.events):
        for shape in shapes(schema):
            value = with_one_choice_and_call(strip_foreign_fields(shape.of(schema)))
            reader = read(served, name, encode_json(value))
            if name in FAILURES or (name in ENDS and value["response"].get("error")):
                assert isinstance(reader.failure, APIStatusError), shape
                continue
            assert reader.failure is None, (shape, reader.failure)
            [event] = reader.ready
            if shape.novel and type(event).__name__ == "UnknownEvent":
                assert event.data == value  # a new kind, or a known one with a new kind inside
                continue
            encoded = msgspec.json.encode(event)
            assert list(read(served, name, encoded).ready) == [event], shape
            if not shape.extra:
                assert list(losses(value, msgspec.json.decode(encoded), omitted=NOTHING)) == [], shape


@pytest.mark.parametrize(("served", "route"), STREAMS)
def test_events_without_an_event_line_are_identified_by_their_data(served: Served, route: Route) -> None:
    assert route.events
    for schema, name in event_schemas(route.events):
        if name and "type" not in resolve({"$ref": schema})["properties"]:
            continue  # only the event line identifies a tool's status
        data = encode_json(strip_foreign_fields(example(schema)))
        with_name, without = read(served, name, data), read(served, None, data)
        assert list(with_name.ready) == list(without.ready)
        assert type(with_name.failure) is type(without.failure)


def test_losses_are_reported() -> None:
    given = {"a": [{"b": 1, "c": None, "d": []}], "e": "x"}
    assert list(losses(given, {"a": [{"b": 1.0}], "e": "x", "f": 1}, omitted=NOTHING)) == []
    assert list(losses(given, {"a": [{}], "e": "x"}, omitted=NOTHING)) == [".a[0].b: 1 became None"]
    assert list(losses(given, {"a": [], "e": "y"}, omitted=NOTHING)) == [
        ".a: [{'b': 1, 'c': None, 'd': []}] became []",
        ".e: 'x' became 'y'",
    ]


# --- coverage --------------------------------------------------------------------------------------------------------


def test_every_reply_and_event_schema_is_covered() -> None:
    routes = [route for route in ROUTES.values() if route.reply or route.events]
    covered = {served.key for served in SERVED}
    assert {(route.method, route.path) for route in routes} <= covered


@pytest.mark.parametrize("name", sorted(schemas()))
def test_examples_are_valid_for_their_schema(name: str) -> None:
    for shape in shapes(name):
        if not shape.novel:
            assert validate(name, shape.of(name)) == [], shape
