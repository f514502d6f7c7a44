"""The checkpoint of a run: what is stored, what is sent again, and how it survives kills and full disks."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import enum
import errno
import functools
import gc
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field, field_serializer, field_validator
from support.clock import run_loop_iterations
from support.sockets import client_of, complete

from friendli_async import (
    APIConnectionError,
    AsyncFriendli,
    BadRequestError,
    ChatCompletion,
    ConfigurationError,
    InternalServerError,
    Partial,
    RateLimitError,
    ResponseDecodeError,
    UnprocessableEntityError,
)
from friendli_async.bulk import (
    CheckpointError,
    CheckpointInUseError,
    DuplicateKeyError,
    Outcome,
    RowsError,
    journal,
    run_all,
    sending,
)
from friendli_async.bulk import job as bulk_job
from friendli_async.bulk.checkpoint import row_hash
from friendli_async.chat import ParsedCompletion
from friendli_async.responses import ParsedResponse
from friendli_async.testing import (
    FriendliServer,
    ReceivedRequest,
    json_body,
    script,
    stall,
    status,
    text,
    tool_calls,
)
from friendli_async.tools import RunResult, tool

ROWS: Final = [{"id": f"row {number}", "text": "x" * number} for number in range(8)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "done.jsonl"


class Caller:
    """A call that records its rows, and returns or raises a scripted reply."""

    def __init__(self, reply: Callable[[Any], Any] = lambda row: {"of": row}) -> None:
        self.rows: list[Any] = []
        self._reply = reply

    async def __call__(self, row: Any) -> Any:
        self.rows.append(row)
        await asyncio.sleep(0)
        reply = self._reply(row)
        if isinstance(reply, BaseException):
            raise reply
        return reply


async def run(
    rows: Any, call: Any, path: Path, seen: list[Outcome[Any, Any]] | None = None, **options: Any
) -> list[Outcome[Any, Any]]:
    """Runs to the end; `seen` also receives the outcomes that precede an error."""
    options = {"concurrency": 3, "key": lambda row: row["id"], "ordered": True, **options}
    seen = [] if seen is None else seen
    async with asyncio.timeout(30), run_all(rows, call, checkpoint=path, **options) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)  # a comprehension would lose its list on an error
    return seen


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- resuming --------------------------------------------------------------------------------------------------------


async def test_completed_rows_are_resumed_from_the_file(path: Path) -> None:
    first = await run(ROWS[:5], Caller(), path)
    caller = Caller()
    second = await run(ROWS, caller, path)
    assert caller.rows == ROWS[5:]
    assert [outcome.resumed for outcome in second] == [True] * 5 + [False] * 3
    assert [outcome.reply for outcome in second[:5]] == [outcome.reply for outcome in first]
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_outcome_is_written_before_it_is_yielded(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1, key=lambda row: str(row["id"])) as outcomes:
        async for outcome in outcomes:
            assert outcome.key in {line["key"] for line in lines(path)}


async def test_reply_of_this_library_is_restored(path: Path, server: FriendliServer, client: AsyncFriendli) -> None:
    async def call(row: Any) -> ChatCompletion:
        return await complete(client)

    [first] = await run(ROWS[:1], call, path)
    [again] = await run(ROWS[:1], call, path)
    assert type(again.reply) is ChatCompletion
    assert again.reply == first.reply
    assert len(server.requests) == 1
    with pytest.raises(AttributeError, match=r"has no meta, because it was .*decoded"):
        _ = again.reply.meta


@pytest.mark.parametrize("reply", [None, True, 7, 1.5, "text", ["a", 1], {"a": [None]}, "half a pair: \ud83d"])
async def test_json_reply_is_restored(path: Path, reply: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: reply), path)
        assert (outcome.reply, type(outcome.reply), outcome.resumed) == (reply, type(reply), resumed)


class Invoice(msgspec.Struct):
    number: str
    total: float = 0.0


async def test_custom_type_is_restored_with_reply_type(path: Path) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: Invoice(row["id"], 2.5)), path, reply_type=Invoice)
        assert (outcome.reply, outcome.resumed) == (Invoice("row 0", 2.5), resumed)


async def test_reply_of_unknown_type_is_kept_and_ends_the_run(path: Path) -> None:
    seen: list[Outcome[Any, Any]] = []
    caller = Caller(lambda row: Invoice("1"))
    for _ in range(2):  # in the second run the stored reply is reached before anything is sent
        with pytest.raises(CheckpointError, match="pass reply_type=Invoice, or annotate"):
            await run(ROWS, caller, path, concurrency=1, seen=seen)
        assert [outcome.reply for outcome in seen] == [Invoice("1")]
        assert caller.rows == ROWS[:1]
    again = await run(ROWS, caller, path, reply_type=Invoice)
    assert [outcome.resumed for outcome in again] == [True] + [False] * 7
    assert again[0].reply == Invoice("1")


def test_undecodable_reply_type_is_rejected(path: Path) -> None:
    with pytest.raises(TypeError):
        run_all(ROWS, Caller(), checkpoint=path, reply_type=AsyncFriendli)
    assert not path.exists()


class City(msgspec.Struct):
    name: str


class ModelOfCity(BaseModel):
    model_config = ConfigDict(title="City")
    name: str = Field(alias="cityName")
    secret: str = Field(default="kept", exclude=True)

    @field_validator("name")
    @classmethod
    def exclaim(cls, name: str) -> str:
        return f"{name}!"  # not idempotent


@dataclasses.dataclass
class Place:
    city: str


PARSED: Final[list[tuple[Any, str]]] = [
    (City, '{"name": "Rome"}'),
    (ModelOfCity, '{"cityName": "Rome", "secret": "s"}'),
    (Place, '{"city": "Rome"}'),
    (list[City], '{"value": [{"name": "Rome"}, {"name": "Oslo"}]}'),
    (list[ModelOfCity], '{"value": [{"cityName": "Rome"}]}'),
    (dict[str, City], '{"a": {"name": "Rome"}}'),
    (City | None, '{"value": {"name": "Rome"}}'),
    (frozenset[str], '{"value": ["Rome"]}'),
    (dict[str, int], '{"Rome": 1}'),
    (str, '{"value": "Rome"}'),
    (Any, '{"a": 1}'),
]


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("known_by", ["annotation", "reply_type"])
@pytest.mark.parametrize(("kind", "answer"), PARSED, ids=[str(kind) for kind, _ in PARSED])
async def test_parsed_reply_is_restored_with_its_type(
    path: Path,
    server: FriendliServer,
    client: AsyncFriendli,
    kind: Any,
    answer: str,
    known_by: str,
    api: str,
) -> None:
    content = {"type": "output_text", "text": answer, "annotations": []}
    message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [content]}
    response = {"id": "r", "object": "response", "status": "completed", "output": [message]}
    server.always(text(answer) if api == "chat" else json_body(response))

    async def call(row: Any) -> Any:
        if api == "chat":
            return await client.serverless.chat.parse(kind, model="m", messages=[{"role": "user", "content": "Hi"}])
        return await client.serverless.responses.parse(kind, model="m", input="Hi")

    reply_type = ParsedCompletion[kind] if api == "chat" else ParsedResponse[kind]
    call.__annotations__["return"] = reply_type if known_by == "annotation" else Any
    options: dict[str, Any] = {"reply_type": reply_type} if known_by == "reply_type" else {}
    first = await run(ROWS[:2], call, path, **options)
    again = await run(ROWS[:2], call, path, **options)
    assert len(server.requests) == 2
    assert [outcome.resumed for outcome in again] == [True, True]
    for before, after in zip(first, again, strict=True):
        assert type(after.reply) is type(before.reply)
        assert type(after.result().value) is type(before.result().value)
        assert after.result().value == before.result().value
        assert after.reply == before.reply


@pytest.mark.parametrize("annotation", [Any, ChatCompletion])
@pytest.mark.parametrize("kind", [City, ModelOfCity, list[City], list[ModelOfCity]], ids=str)
async def test_parsed_reply_of_unknown_type_is_kept_and_the_error_names_the_type(
    path: Path, server: FriendliServer, client: AsyncFriendli, kind: Any, annotation: Any
) -> None:
    server.always(text(dict(PARSED_BY_NAME)[str(kind)]))

    async def call(row: Any) -> Any:
        return await client.serverless.chat.parse(kind, model="m", messages=[{"role": "user", "content": "Hi"}])

    call.__annotations__["return"] = annotation
    seen: list[Outcome[Any, Any]] = []
    name = re.sub(r"tests\.test_checkpoint\.|<class '|'>", "", str(kind))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=re.escape(f"pass reply_type=ParsedCompletion[{name}], or")):
            await run(ROWS, call, path, seen=seen, concurrency=1)
    assert (len(seen), len(server.requests), len(lines(path))) == (1, 1, 1)
    again = await run(ROWS, call, path, reply_type=ParsedCompletion[kind])
    assert sum(outcome.resumed for outcome in again) == 1
    assert again[0].result().value == seen[0].result().value


PARSED_BY_NAME: Final = [(str(kind), answer) for kind, answer in PARSED]


async def test_value_that_cannot_be_written_is_restored_from_the_text(
    path: Path, server: FriendliServer, client: AsyncFriendli
) -> None:
    class Unwritable(BaseModel):
        name: str

        @field_serializer("name")
        def fail(self, name: str) -> str:
            raise ValueError("not serializable")

    server.always(text('{"name": "Rome"}'))

    async def call(row: Any) -> ParsedCompletion[Unwritable] | None:
        return await client.serverless.chat.parse(Unwritable, model="m", messages=[{"role": "user", "content": "Hi"}])

    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], call, path)
        assert (outcome.result().value, outcome.resumed) == (Unwritable(name="Rome"), resumed)


@pytest.mark.parametrize(
    ("reply_type", "of"),
    [
        (ParsedCompletion[City] | None, lambda reply: None),
        (list[ParsedCompletion[City]], lambda reply: [reply]),
        (tuple[str, ParsedCompletion[City]], lambda reply: ("a", reply)),
        (dict[str, ParsedCompletion[City]], lambda reply: {"a": reply}),
    ],
    ids=["None", "list", "tuple", "dict"],
)
async def test_parsed_replies_are_restored_inside_of_other_types(
    path: Path, server: FriendliServer, client: AsyncFriendli, reply_type: Any, of: Callable[[Any], Any]
) -> None:
    server.always(text('{"name": "Rome"}'))

    async def call(row: Any) -> Any:
        return of(await client.serverless.chat.parse(City, model="m", messages=[{"role": "user", "content": "Hi"}]))

    [first] = await run(ROWS[:1], call, path, reply_type=reply_type)
    [again] = await run(ROWS[:1], call, path, reply_type=reply_type)
    assert (again.resumed, again.reply) == (True, first.reply)


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = Field(alias="answer")
    at: dt.date = dt.date(2026, 1, 2)

    @computed_field
    def length(self) -> int:
        return len(self.text)


ANNOTATED: Final[list[tuple[Any, Any]]] = [
    (Invoice, Invoice("7")),
    ("Invoice", Invoice("7")),
    (Invoice | None, None),
    (Invoice | None, Invoice("7")),
    (Answer, Answer(answer="a")),
    (dict[str, Answer], {"a": Answer(answer="a")}),
    (tuple[str, Invoice], ("a", Invoice("7"))),
    (dict[int, str], {1: "a"}),
    (Place, Place("Rome")),
    (set[str], {"a", "b"}),
    (set[str], set()),
    (set[str | int | None], {"a", "b", 1, 2, None}),
    (float, float("inf")),
]


@pytest.mark.parametrize(("kind", "reply"), ANNOTATED)
async def test_reply_of_the_annotated_type_is_restored(path: Path, kind: Any, reply: Any) -> None:
    async def call(row: Any) -> Any:
        return reply

    def returns_awaitable(row: Any) -> Any:
        return call(row)

    call.__annotations__["return"] = kind
    returns_awaitable.__annotations__["return"] = Awaitable[kind]
    for function in (call, functools.partial(call), returns_awaitable):
        [outcome] = await run(ROWS[:1], function, path)
        expected = None if outcome.resumed and isinstance(reply, float) else reply
        assert (outcome.reply, type(outcome.reply)) == (expected, type(expected))


@pytest.mark.parametrize("annotation", [Any, RunResult, tuple[RunResult, int]], ids=str)
async def test_result_of_a_run_is_restored(
    path: Path, server: FriendliServer, client: AsyncFriendli, annotation: Any
) -> None:
    @tool
    async def weather(city: str) -> str:
        return "sunny"

    server.enqueue(tool_calls(("weather", {"city": "Oslo"})), text("Sun."))

    async def call(row: Any) -> Any:
        messages = [{"role": "user", "content": "Hi"}]
        result = await client.serverless.chat.run(model="m", messages=messages, tools=[weather]).result()
        return result if annotation in (Any, RunResult) else (result, 7)

    call.__annotations__["return"] = annotation
    [first] = await run(ROWS[:1], call, path)
    [again] = await run(ROWS[:1], call, path)
    assert again.resumed
    assert again.reply == first.reply
    assert type(again.reply) is type(first.reply)


async def test_annotation_that_cannot_be_decoded_is_named_in_the_error(path: Path) -> None:
    kind = msgspec.defstruct("Choice", [("a", Invoice | Place)])

    async def call(row: Any) -> Any:
        return kind(Invoice("7"))

    call.__annotations__["return"] = kind
    with pytest.raises(CheckpointError, match="annotated with it, but it cannot be restored: Type unions may"):
        await run(ROWS[:1], call, path)


@pytest.mark.parametrize("name", ["Response", "Transcription"])
async def test_annotated_type_with_the_name_of_a_reply_type_of_this_library_is_restored(path: Path, name: str) -> None:
    kind = msgspec.defstruct(name, [("text", str)])

    async def call(row: Any) -> Any:
        return kind("mine")

    with pytest.raises(CheckpointError, match=f"pass reply_type={name}" if name == "Transcription" else "not a valid"):
        await run(ROWS[:2], call, path, concurrency=1)
    call.__annotations__["return"] = kind
    outcomes = await run(ROWS[:2], call, path)
    assert [outcome.resumed for outcome in outcomes] == [True, False]
    assert [outcome.reply for outcome in outcomes] == [kind("mine")] * 2


async def test_annotation_of_a_method_and_of_local_types_is_read(path: Path) -> None:
    class Local(msgspec.Struct):
        a: int

    class Asker:
        async def __call__(self, row: Any) -> "Local":
            return Local(1)

        async def ask(self, row: Any) -> "Local":
            return Local(1)

    for call, resumed in ((Asker(), False), (Asker().ask, True)):
        [outcome] = await run(ROWS[:1], call, path)
        assert (outcome.reply, outcome.resumed) == (Local(1), resumed)


@pytest.mark.parametrize("annotation", [dict, Any, object, ChatCompletion, "Missing", list[City], AsyncFriendli])
async def test_wrong_or_vague_annotation_is_ignored_for_json_and_rejected_otherwise(
    path: Path, annotation: Any
) -> None:
    async def call(row: Any) -> Any:
        return {"a": 1} if row["id"] == "row 0" else Invoice("7")

    call.__annotations__["return"] = annotation
    for _ in range(2):
        [outcome] = await run(ROWS[:1], call, path)
        assert outcome.reply == {"a": 1}
    with pytest.raises(CheckpointError, match="pass reply_type=Invoice"):
        await run(ROWS[:2], call, path)


async def test_reply_type_that_does_not_fit_is_reported_at_the_first_reply(path: Path) -> None:
    caller = Caller(lambda row: {"other": 1})
    with pytest.raises(CheckpointError, match=r"is not a valid Invoice: .*`number`"):
        await run(ROWS, caller, path, reply_type=Invoice, concurrency=1)
    assert (len(caller.rows), len(lines(path))) == (1, 1)


async def test_reply_whose_type_has_changed_since_is_reported_with_what_to_do(path: Path) -> None:
    await run(ROWS[:1], Caller(lambda row: City("Rome")), path, reply_type=City)
    changed = msgspec.defstruct("City", ["name", "country"])
    with pytest.raises(CheckpointError, match=r"is not a valid City: .*`country`.*has changed since, use another file"):
        await run(ROWS[:1], Caller(), path, reply_type=changed)


async def test_any_as_reply_type_restores_json(path: Path) -> None:
    for resumed in (False, True):
        [outcome] = await run(ROWS[:1], Caller(lambda row: [Invoice("7")]), path, reply_type=Any)
        assert outcome.reply == ([{"number": "7", "total": 0.0}] if resumed else [Invoice("7")])


async def test_json_with_typed_parts_is_not_restored_as_plain_json(path: Path) -> None:
    call = Caller(lambda row: {"of": [1, Invoice("7")]})
    with pytest.raises(CheckpointError, match=re.escape("reply_type=dict[str, list[int | Invoice]]")):
        await run(ROWS, call, path, concurrency=1)
    for _ in range(2):
        [outcome] = await run(ROWS[:1], call, path, reply_type=dict[str, list[int | Invoice]])
        assert outcome.reply == {"of": [1, Invoice("7")]}
    assert len(call.rows) == 1


@pytest.mark.parametrize(
    ("annotation", "reply", "name"),
    [
        (tuple, ("7", Invoice("7")), "tuple[str, Invoice]"),
        (tuple[str, Any], ("7", Invoice("7")), "tuple[str, Invoice]"),
        (dict[int, Any], {7: Invoice("7")}, "dict[int, Invoice]"),
        (set, {dt.date(2026, 1, 2)}, "set[date]"),
    ],
    ids=str,
)
async def test_typed_items_are_not_restored_as_json_by_an_annotation_that_does_not_name_them(
    path: Path, annotation: Any, reply: Any, name: str
) -> None:
    async def call(row: Any) -> Any:
        return reply

    call.__annotations__["return"] = annotation
    for _ in range(2):
        with pytest.raises(CheckpointError, match=re.escape(f"pass reply_type={name}, or")):
            await run(ROWS, call, path)


@pytest.mark.parametrize("annotation", [Any, list[Any], Caller], ids=str)
async def test_unwritable_reply_ends_the_run_at_the_first_one(path: Path, annotation: Any) -> None:
    caller, seen = Caller(lambda row: object()), list[Outcome[Any, Any]]()

    async def call(row: Any) -> Any:
        return await caller(row)

    call.__annotations__["return"] = annotation
    with pytest.raises(CheckpointError, match=r"cannot be written: .*Let `call` return JSON"):
        await run(ROWS, call, path, seen=seen, concurrency=1)
    assert (len(caller.rows), len(seen)) == (1, 1)


async def test_first_of_several_failures_is_raised(path: Path) -> None:
    async def call(row: Any) -> Invoice:
        return cast("Invoice", object())

    with pytest.raises(CheckpointError, match="'row 0' cannot be written"):
        await run(ROWS, call, path)


async def test_outcome_is_delivered_whatever_its_reply_raises_when_it_is_written(path: Path) -> None:
    class Reply:
        def model_dump(self, **options: Any) -> Any:
            raise LookupError("no such field")

    seen: list[Outcome[Any, Any]] = []
    with pytest.raises(LookupError, match="no such field"):
        await run(ROWS, Caller(lambda row: Reply()), path, seen, concurrency=1)
    assert [type(outcome.reply) for outcome in seen] == [Reply]


async def test_parsed_json_is_restored_in_a_process_that_has_not_parsed(
    path: Path, server: FriendliServer, client: AsyncFriendli
) -> None:
    server.always(text('{"a": 1}'))

    async def call(row: Any) -> Any:
        return await client.serverless.chat.parse(dict, model="m", messages=[{"role": "user", "content": "Hi"}])

    await run(["a"], call, path, key=None)
    script = """if True:
        import asyncio, sys
        from friendli_async.bulk import run_all
        async def call(row): raise AssertionError
        async def main():
            async for outcome in run_all(["a"], call, checkpoint=sys.argv[1]):
                print(type(outcome.result()).__name__, outcome.result().value)
        asyncio.run(main())"""
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, path, stdout=subprocess.PIPE)
    assert (await other.communicate())[0].split(None, 1) == [b"ParsedCompletion", b"{'a': 1}\n"]


# --- rows sent again -------------------------------------------------------------------------------------------------

TRANSIENT: Final = [
    RateLimitError("slow down", status_code=429, partial=Partial(text="half")),  # others are sent again
    InternalServerError("oops", status_code=500),
    APIConnectionError("gone"),
    ResponseDecodeError("no JSON"),
    ConfigurationError("no token"),
    KeyError("a bug"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
async def test_row_that_failed_transiently_is_sent_again(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_FIRST_BACKOFF", 0.0)
    [failed] = await run(ROWS[:1], Caller(lambda row: error), path)
    assert failed.error is error
    [again] = await run(ROWS[:1], Caller(), path)
    assert (again.error, again.resumed) == (None, False)
    [done] = await run(ROWS[:1], Caller(), path)
    assert (done.error, done.resumed) == (None, True)
    assert lines(path)[0]["error"]["type"] == type(error).__name__


async def test_permanently_rejected_row_is_not_sent_again(path: Path, server: FriendliServer) -> None:
    server.enqueue(status(422, message="no such parameter"))
    async with client_of(server.url) as client:

        async def call(row: Any) -> ChatCompletion:
            return await complete(client)

        [failed] = await run(ROWS[:1], call, path)
        [again] = await run(ROWS[:1], call, path)
    assert isinstance(failed.error, UnprocessableEntityError)
    assert isinstance(again.error, UnprocessableEntityError)
    assert again.resumed
    assert str(again.error) == str(failed.error)
    assert (again.error.body, again.error.type) == (failed.error.body, failed.error.type)
    assert len(server.requests) == 1


async def test_changed_row_is_logged_and_sent_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await run(ROWS[:3], Caller(), path)
    caller = Caller()
    changed = [ROWS[0], {**ROWS[1], "text": "another"}, dict(reversed(ROWS[2].items()))]
    with caplog.at_level(logging.WARNING, "friendli_async"):
        outcomes = await run(changed, caller, path)
    assert [outcome.resumed for outcome in outcomes] == [True, False, True]
    assert caller.rows == [changed[1]]
    assert "'row 1' has changed" in caplog.text
    assert [outcome.resumed for outcome in await run(changed, Caller(), path)] == [True, True, True]


async def test_row_without_key_is_identified_by_index_and_content(path: Path) -> None:
    await run(["a", "b", "c"], Caller(), path, key=None)
    caller = Caller()
    outcomes = await run(["a", "new", "b", "c"], caller, path, key=None)
    assert [outcome.key for outcome in outcomes] == [0, 1, 2, 3]
    assert caller.rows == ["new", "b", "c"]


@dataclasses.dataclass
class Question:
    id: str
    tags: tuple[str, ...] = ()


class Model(BaseModel):
    id: str
    size: int = 1


@pytest.mark.parametrize(
    "row",
    [
        Question("a", ("x",)),
        Model(id="a"),
        Invoice("a"),
        ("a", 1),
        {"id": "\ud83d"},
        {1: {dt.date(2026, 1, 2): "a"}},
        deque([range(2)]),
    ],
    ids=lambda row: type(row).__name__,
)
async def test_rows_of_many_types_are_resumed(path: Path, row: Any) -> None:
    for resumed in (False, True):
        [outcome] = await run([row], Caller(lambda row: "done"), path, key=None)
        assert outcome.resumed is resumed


# --- rejected input --------------------------------------------------------------------------------------------------


async def test_duplicate_key_is_rejected(path: Path) -> None:
    caller = Caller()
    with pytest.raises(DuplicateKeyError, match="'row 1'"):
        await run([*ROWS[:3], ROWS[1]], caller, path)
    assert caller.rows == ROWS[:3]
    assert len(lines(path)) == 3
    with pytest.raises(DuplicateKeyError, match="'row 0'"):  # also among resumed rows
        await run([ROWS[0], ROWS[0]], caller, path)
    assert len(caller.rows) == 3


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("key", "plain"),
    [(np.int64(3), 3), (np.uint8(3), 3), (np.str_("a"), "a"), (Colour.RED, "red"), (Level.HIGH, 3)],
    ids=["int64", "uint8", "str_", "str enum", "int enum"],
)
async def test_key_of_another_type_is_a_plain_one(path: Path, key: Any, plain: str | int) -> None:
    for resumed in (False, True):  # as a DataFrame's cell, and as what the file contains
        [outcome] = await run(ROWS[:1], Caller(), path, key=lambda row: key)
        assert (outcome.key, type(outcome.key), outcome.resumed) == (plain, type(plain), resumed)


@pytest.mark.parametrize(
    "key", [1.5, np.float64(1), True, np.True_, None, b"a", ("a",), 1 << 64, -(1 << 63) - 1, {"prompt": "Hi" * 1000}]
)
async def test_invalid_key_is_rejected_before_sending(path: Path, key: Any) -> None:
    caller = Caller()
    with pytest.raises(RowsError, match="key") as caught:
        await run(ROWS, caller, path, key=lambda row: key)
    assert caller.rows == []
    assert len(str(caught.value)) < 150, "it repeats a whole row"


@pytest.mark.parametrize(
    "key", [lambda row: row["id"], lambda row: row.get("id"), lambda row: 7], ids=["raises", "invalid", "duplicate"]
)
async def test_error_of_a_key_says_which_row_it_is(path: Path, key: Any) -> None:
    with pytest.raises((KeyError, RowsError)) as caught:
        await run([{"id": 1}, {}], Caller(len), path, key=key)
    assert caught.value.__notes__ == ["run_all: at row 1, counted from 0"]


async def test_string_and_integer_keys_are_distinct(path: Path) -> None:
    for resumed in (False, True):
        outcomes = await run([1, "1", -1], Caller(repr), path, key=lambda row: row)
        assert [(outcome.reply, outcome.resumed) for outcome in outcomes] == [
            ("1", resumed),
            ("'1'", resumed),
            ("-1", resumed),
        ]


async def test_key_and_error_with_a_lone_surrogate_are_restored(path: Path) -> None:
    def refuse(row: Any) -> None:
        raise BadRequestError("no \ud83d", status_code=400, body="\ude00", request_id="\udcff")

    for resumed in (False, True):
        [outcome] = await run(["a\ud83d"], Caller(refuse), path, key=lambda row: row)
        assert (outcome.key, outcome.resumed) == ("a\ud83d", resumed)
        assert isinstance(outcome.error, BadRequestError)
        assert (outcome.error.message, outcome.error.body, outcome.error.request_id) == (
            "no \ud83d",
            "\ude00",
            "\udcff",
        )


async def test_order_of_keys_that_are_no_text_does_not_change_a_row(path: Path) -> None:
    [first] = await run([{"a": {1: "x", 2: "y"}}], Caller(lambda row: "done"), path, key=None)
    [again] = await run([{"a": {2: "y", 1: "x"}}], Caller(lambda row: "done"), path, key=None)
    assert (first.resumed, again.resumed) == (False, True)


@pytest.mark.parametrize("key", [1, "a"])
def test_digest_of_a_row_does_not_depend_on_the_order_of_its_sets(key: object) -> None:
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)  # they collide in the set's table; texts would differ between processes only
    assert row_hash("k", {key: one}) == row_hash("k", {key: other})


@pytest.mark.parametrize(
    ("row", "digest"),
    [
        ({"text": "\u00e9", "n": [1, 2.5, None, True]}, "fe6aab5317650016fd75dfc743954b2b"),
        ({1: set("abcdefgh")}, "7e56bd44c721fe34e386fb935d396382"),  # each process has these texts in another order
    ],
    ids=["JSON", "set"],
)
def test_digest_of_a_row_stays_that_of_earlier_checkpoints(row: object, digest: str) -> None:
    assert row_hash("k", row) == digest  # another one would send all rows again


async def test_unserializable_row_is_rejected_before_sending(path: Path) -> None:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    caller = Caller()
    for row, reason in ((object(), "object is not JSON"), (cyclic, "(?:recursion|Stack overflow)")):
        with pytest.raises(RowsError, match=f"row 1 cannot be compared .* {reason}.* Rows are JSON values"):
            await run(["fine", row], caller, path, key=None)
    assert caller.rows == ["fine"]


@pytest.mark.parametrize("content", [b"a novel\n", b"a novel", b'{"id": 1}\n', b"\n", b'{"key":"a"}\n', b"\xff\xfe\n"])
async def test_file_that_is_not_a_checkpoint_is_rejected_and_unchanged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    caller = Caller()
    with pytest.raises(CheckpointError, match="nothing was changed"):
        await run(ROWS, caller, path)
    assert path.read_bytes() == content
    assert caller.rows == []


async def test_path_that_cannot_be_a_file_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for bad in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "done.jsonl"):
        with pytest.raises(CheckpointError, match=bad.name):
            await run(ROWS, Caller(), bad)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_checkpoint_of_a_run_that_was_left_in_a_closed_loop_is_released(path: Path, loop_errors: list[str]) -> None:
    async def leave() -> None:
        async for _ in run_all(ROWS, Caller(), checkpoint=path, concurrency=1):
            break

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()  # not as asyncio.run does, which closes the run first
    gc.collect()
    assert len(asyncio.run(run(ROWS, Caller(), path))) == len(ROWS)
    assert {message.partition("\n")[0] for message in loop_errors} == {"Task was destroyed but it is pending!"}
    loop_errors.clear()


async def test_checkpoint_is_locked_by_its_run(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=1) as outcomes:
        await anext(outcomes)
        for _ in range(2):
            with pytest.raises(CheckpointInUseError, match=r"another run\nA run .* `await run.aclose\(\)`"):
                await run(ROWS, Caller(), path)
        script = """if True:
            import sys; from pathlib import Path; from friendli_async.bulk.journal import Journal
            Journal(Path(sys.argv[1]), b"").open(None)"""
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", script, path, stderr=subprocess.PIPE)
        _, stderr = await other.communicate()
        assert b"CheckpointInUseError" in stderr
    assert len(await run(ROWS, Caller(), path, key=None)) == len(ROWS)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP])
async def test_file_system_without_locks_is_used_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert len(await run(ROWS, Caller(), path)) == len(ROWS)
    assert "file system without file locks" in caplog.text


async def test_error_of_the_lock_is_not_blamed_on_another_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(CheckpointError, match=r"done\.jsonl cannot be used: Input/output error"):
        await run(ROWS, Caller(), path)


async def test_run_leaves_no_file_open(path: Path) -> None:
    await run(ROWS[:1], Caller(), path)
    opened = os.listdir("/dev/fd")
    await run(ROWS, Caller(), path)
    path.write_text("a novel\n")
    with pytest.raises(CheckpointError, match="not in the expected format"):
        await run(ROWS, Caller(), path)
    assert os.listdir("/dev/fd") == opened


async def test_checkpoint_is_released_if_the_cleanup_of_the_rows_fails(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Source:
        async def __aiter__(self) -> AsyncIterator[Any]:
            try:
                for row in ROWS:
                    yield row
            finally:
                raise LookupError("the cursor has gone")

    with pytest.raises(LookupError, match="the cursor has gone"):
        async with run_all(Source(), Caller(), checkpoint=path, key=lambda row: str(row["id"])) as outcomes:
            await anext(outcomes)
    del outcomes
    assert len(await run(ROWS, Caller(), path)) == len(ROWS)
    assert caplog.messages == []  # the error is raised once


async def test_dropped_run_releases_its_checkpoint_to_the_next_one(path: Path) -> None:
    cancelled: list[Any] = []

    async def call(row: Any) -> Any:
        if row["id"] != "row 0":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # takes its time
                cancelled.append(row["id"])
                raise
        return row

    async def leave_at_once() -> None:
        async for _ in run_all(ROWS, call, checkpoint=path, key=lambda row: str(row["id"]), reply_type=dict):
            raise ValueError("mine")

    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(ValueError, match="mine"):
                await leave_at_once()
        first, *_ = await run(ROWS, Caller(), path)
    finally:
        gc.enable()
    assert first.resumed
    assert cancelled


async def test_run_closed_by_another_task_releases_its_checkpoint_to_the_next_one(path: Path) -> None:
    started = asyncio.Event()

    async def call(row: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    outcomes = run_all(ROWS, call, checkpoint=path, key=lambda row: str(row["id"]))
    reading = asyncio.ensure_future(anext(outcomes))
    await started.wait()
    closing = asyncio.create_task(outcomes.aclose())
    await asyncio.sleep(0)
    assert len(await run(ROWS, Caller(), path)) == len(ROWS)
    await closing
    with pytest.raises(StopAsyncIteration):
        await reading


async def test_run_does_not_wait_forever_for_an_abandoned_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = asyncio.Event()

    async def call(row: Any) -> Any:
        if row["id"] == "row 0":
            return row
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()

    with contextlib.suppress(ValueError):
        async for _ in run_all(ROWS, call, checkpoint=path, key=lambda row: str(row["id"]), reply_type=dict):
            raise ValueError
    with monkeypatch.context() as patch:
        patch.setattr(bulk_job, "_REOPEN_SECONDS", 0.0)
        with pytest.raises(CheckpointInUseError):
            await run(ROWS, Caller(), path)
    may_end.set()
    assert len(await run(ROWS, Caller(), path)) == len(ROWS)


async def test_checkpoint_is_released_although_all_tasks_are_cancelled_before_its_run_begins_to_close(
    path: Path,
) -> None:
    outcomes = run_all(ROWS, Caller(), checkpoint=path, concurrency=1, key=lambda row: str(row["id"]))
    await anext(outcomes)
    closing = asyncio.ensure_future(outcomes.aclose())
    await run_loop_iterations(1)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:  # as `asyncio.run` does at its end
        task.cancel()
    await asyncio.wait(tasks)
    assert closing.cancelled()
    first, *_ = await run(ROWS, Caller(), path)
    assert first.resumed


async def test_checkpoint_is_released_although_all_tasks_are_cancelled_before_it_is_closed(path: Path) -> None:
    loop, busy = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    outcomes = run_all(ROWS, Caller(), checkpoint=path, concurrency=1, key=lambda row: str(row["id"]))
    await anext(outcomes)
    blocked = loop.run_in_executor(None, busy.wait)
    closing = asyncio.ensure_future(outcomes.aclose())
    await run_loop_iterations(10)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as `asyncio.run` does at its end
        task.cancel()
    await asyncio.wait([closing])
    busy.set()
    await blocked
    first, *_ = await run(ROWS, Caller(), path)
    assert first.resumed


# --- damaged files and disk errors -----------------------------------------------------------------------------------


async def test_file_truncated_anywhere_loses_only_the_partial_line(path: Path) -> None:
    await run(ROWS[:3], Caller(), path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        caller = Caller()
        outcomes = await run(ROWS[:3], caller, path)
        kept = sum(is_json(line) for line in whole[:length].split(b"\n"))
        assert [outcome.resumed for outcome in outcomes] == [True] * kept + [False] * (3 - kept)
        assert caller.rows == ROWS[kept:3]
        assert path.read_bytes() == whole


async def test_unwritten_blocks_at_the_end_are_removed(path: Path) -> None:
    await run(ROWS[:2], Caller(), path)
    whole = path.read_bytes()
    for rest in (b"\0" * 4096, whole[:20] + b"\0" * 100):
        path.write_bytes(whole + rest)
        assert all(outcome.resumed for outcome in await run(ROWS[:2], Caller(), path))
        assert path.read_bytes() == whole


class Disk:
    """Replaces `os.write`: accepts `space` bytes, at most `at_once` per call, and is then full."""

    def __init__(self, space: int, at_once: int = 1 << 20) -> None:
        self.space = space
        self._at_once = at_once
        self._write = os.write

    def __call__(self, file: int, data: Any) -> int:
        size = min(len(data), self.space, self._at_once)
        if not size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.space -= size
        return self._write(file, bytes(data[:size]))


async def test_short_write_is_completed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("friendli_async.bulk.journal.os.write", Disk(1 << 30, at_once=7))
    await run(ROWS, Caller(), path)
    monkeypatch.undo()
    assert [line["key"] for line in lines(path)] == [row["id"] for row in ROWS]


async def test_error_of_a_full_disk_is_raised_once_and_keeps_its_cause(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def job() -> None:
        async with run_all(ROWS, Caller(), checkpoint=path, key=lambda row: str(row["id"])) as outcomes:
            async for _ in outcomes:
                pass

    monkeypatch.setattr("friendli_async.bulk.journal.os.write", Disk(250))
    with pytest.raises(CheckpointError) as caught:
        await job()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__context__ is caught.value.__cause__, "the release of the checkpoint raised it again"


async def test_full_disk_ends_run_after_yielding_every_paid_outcome(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("friendli_async.bulk.journal.os.write", Disk(250))
    seen: list[Outcome[Any, Any]] = []
    caller = Caller()
    with pytest.raises(CheckpointError, match=r"done\.jsonl cannot be written: No space left on device"):
        await run(ROWS, caller, path, seen)
    monkeypatch.undo()
    assert sorted(outcome.key for outcome in seen) == sorted(row["id"] for row in caller.rows)
    assert len(caller.rows) < len(ROWS)
    written = len(lines(path))  # fails on a partial line
    assert 0 < written < len(caller.rows)
    assert sum(outcome.resumed for outcome in await run(ROWS, Caller(), path)) == written


def test_no_line_follows_one_that_was_not_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = journal.Journal(path, b"{")
    file.open(lambda offset, line: True)
    disk = Disk(20)
    monkeypatch.setattr("friendli_async.bulk.journal.os.write", disk)
    file.append(b'{"a":1}\n')
    for line in (b'{"b":1, "c":2, "d":3}\n', b"{}\n"):
        with pytest.raises(CheckpointError, match="No space left on device"):
            file.append(line)
        disk.space = 1 << 20
    with pytest.raises(CheckpointError, match="No space left on device"):
        file.close()
    assert path.read_bytes() == b'{"a":1}\n'


def test_file_that_was_closed_is_not_opened(path: Path) -> None:
    file = journal.Journal(path, b"{")
    file.close()  # before the thread that opens it has begun
    file.open(lambda offset, line: True)
    assert not path.exists()


def test_line_after_the_close_is_refused(path: Path) -> None:
    file = journal.Journal(path, b"{")
    file.open(lambda offset, line: True)
    file.close()
    with pytest.raises(CheckpointError, match="is closed"):
        file.append(b"{}\n")


SMALL_FILES: Final = """
import asyncio, resource, signal, sys
from friendli_async.bulk import CheckpointError, run_all
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
async def call(row):
    return "x" * 100
async def main():
    async for outcome in run_all(range(100), call, checkpoint=sys.argv[1], concurrency=1):
        pass
try:
    asyncio.run(main())
except CheckpointError as error:
    print(error)
"""


def test_write_limited_by_the_kernel_leaves_no_partial_line(path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SMALL_FILES, str(path)]
    # Coverage could not write its data under that limit, either.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be written: File too large" in done.stdout
    assert path.read_bytes().endswith(b"}\n")
    assert 3 < len(lines(path)) < 10


@pytest.mark.parametrize("change", ["removed", "replaced"])
async def test_file_removed_or_replaced_during_run_is_detected(path: Path, change: str) -> None:
    def remove_file(row: Any) -> str:
        if row is ROWS[2]:
            path.unlink()
            if change == "replaced":
                path.touch()
        return "done"

    with pytest.raises(CheckpointError, match=change):
        await run(ROWS, Caller(remove_file), path)


async def test_file_is_synced_periodically_and_on_close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    first_sync = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        loop.call_soon_threadsafe(first_sync.set)

    monkeypatch.setattr(journal, "_sync", sync)
    monkeypatch.setattr(journal, "_SYNC_SECONDS", 0.001)
    async with asyncio.timeout(30):
        async for outcome in run_all(ROWS, Caller(), checkpoint=path, concurrency=1):
            if outcome.key == 2:
                await first_sync.wait()
    assert synced[-1] == path.stat().st_size
    assert len(synced) >= 2


async def test_relative_path_is_not_affected_by_a_change_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def reply(row: Any) -> str:
        os.chdir(tmp_path / "other")
        return "good"

    assert len(await run(ROWS, Caller(reply), Path("done.jsonl"))) == len(ROWS)
    assert len(lines(tmp_path / "done.jsonl")) == len(ROWS)
    assert [*(tmp_path / "other").iterdir()] == []


async def test_sync_failure_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(journal, "_sync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        await run(ROWS, Caller(), path)


async def test_leaving_a_run_keeps_completed_rows_in_the_file(path: Path) -> None:
    async with run_all(ROWS, Caller(), checkpoint=path, concurrency=2, key=lambda row: str(row["id"])) as outcomes:
        await anext(outcomes)
    done = len(lines(path))
    assert done >= 1
    again = await run(ROWS, Caller(), path)
    assert sum(outcome.resumed for outcome in again) == done


# --- kill -9 ---------------------------------------------------------------------------------------------------------

FORK_SERVER: Final = """
import asyncio, os, sys
from friendli_async import AsyncFriendli
from friendli_async.bulk import run_all

async def job(url, path, rows, concurrency):
    async with AsyncFriendli("test-token", server_url=url) as client:
        async def call(row):
            messages = [{"role": "user", "content": f"{row}"}]
            return await client.serverless.chat.complete(model="m", messages=messages)
        seen = set()
        async for outcome in run_all(range(rows), call, concurrency=concurrency, checkpoint=path, key=str):
            assert outcome.result().text == f"You said: {outcome.row}"
            assert outcome.key not in seen
            seen.add(outcome.key)
        assert len(seen) == rows

AsyncFriendli("test-token")  # imports the core before forking
for line in sys.stdin:  # one process per line, forked to skip the imports
    pid = os.fork()
    if not pid:
        asyncio.run(job(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
KILLS: Final = 50
CONCURRENCY: Final = 8


async def test_fifty_kills_complete_each_row_once_and_resend_only_rows_in_flight(
    path: Path, remote: FriendliServer
) -> None:
    def answer(request: ReceivedRequest) -> Any:
        if len(remote.requests) > before + most and len(endings) < KILLS:
            return script(stall())
        return text(f"You said: {request.json_object['messages'][0]['content']}")

    rng, most = random.Random(10), 40
    rows = KILLS * most + 400  # some remain for the last process, however late the others are killed
    remote.always(answer)
    fork_server = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", FORK_SERVER, remote.url, str(path), str(rows), str(CONCURRENCY),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert fork_server.stdin is not None
    assert fork_server.stdout is not None
    before, endings = 0, list[int]()
    try:
        async with asyncio.timeout(300):
            for kill in range(KILLS + 1):
                before = len(remote.requests)
                fork_server.stdin.write(b"\n")
                pid = int(await fork_server.stdout.readline())
                if kill < KILLS:
                    await remote.wait_for_requests(before + rng.randrange(1, 25))
                    await asyncio.sleep(rng.random() * 0.003)  # at a random point of its work
                    os.kill(pid, signal.SIGKILL)
                endings.append(int(await fork_server.stdout.readline()))
    finally:
        fork_server.kill()
        await fork_server.wait()
    assert endings == [-signal.SIGKILL] * KILLS + [0]
    assert sorted(int(line["key"]) for line in lines(path)) == list(range(rows))
    sent = Counter(request.json_object["messages"][0]["content"] for request in remote.requests)
    assert set(sent) == {str(row) for row in range(rows)}
    assert sent.total() - rows <= KILLS * CONCURRENCY
