"""Types that several threads use: msgspec crashes if two of them use one for the first time at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import msgspec
import pytest
from pydantic import TypeAdapter

from friendli_async._core.body.arguments import Parameters
from friendli_async._core.events.decoding import TaggedDialect
from friendli_async._core.lenient import convert
from friendli_async._core.resource import inference
from friendli_async._json import type_lock
from friendli_async._pydantic import PydanticField
from friendli_async.bulk.reply_codec import ReplyCodec
from friendli_async.chat import json_schema
from friendli_async.chat.output import output_of
from friendli_async.tools import tool

held: list[bool] = []
"""Whether the lock was held, at each evaluation of the annotation of a watched type."""


def note_lock() -> type[int]:
    """The annotation of a watched type: msgspec evaluates it while it builds what it needs of the type."""

    def acquire() -> bool:
        acquired = type_lock.acquire(blocking=False)
        if acquired:
            type_lock.release()
        return acquired

    with ThreadPoolExecutor(1) as other:
        held.append(not other.submit(acquire).result())
    return int


class _Options(TypedDict, total=False):
    pass


def _call_with(kind: Any) -> None:
    def call(given: object) -> str:
        return str(given)

    call.__annotations__["given"] = kind
    assert tool(call).parameters["required"] == ["given"]


FIRST_USES: dict[str, Callable[[Any], object]] = {
    "arguments": lambda kind: Parameters(_Options, {"given": kind}).check({"given": {"value": 1}}),
    "replies": lambda kind: inference("rerank.create", "POST /v1/rerank", kind).decoder,
    "events": lambda kind: TaggedDialect(kind, reporting=frozenset()).decode_payload,
    "unusual JSON": lambda kind: convert({"value": 1}, kind),
    "schema": json_schema,
    "structured output": output_of,
    "tool": _call_with,
    "checkpoint": ReplyCodec,
    "pydantic": TypeAdapter,
}


@pytest.mark.parametrize("use", FIRST_USES.values(), ids=FIRST_USES)
def test_type_is_used_for_the_first_time_by_one_thread_at_a_time(use: Callable[[Any], object]) -> None:
    held.clear()
    fields: list[Any] = [("value", f"{note_lock.__name__}()")]
    kind = msgspec.defstruct("Watched", fields, bases=(PydanticField, msgspec.Struct), module=__name__)
    use(kind)
    assert any(held)
