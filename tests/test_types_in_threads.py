"""Types that several threads use: msgspec crashes if two of them use one for the first time at once."""

import os
import signal
import threading
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


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_child_of_a_fork_can_use_types_while_a_thread_of_its_parent_sees_one() -> None:
    is_held, may_release, forks = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with type_lock:
            is_held.set()
            may_release.wait(30)

    def fork() -> int:
        is_held.wait(30)
        forks.set()
        child = os.fork()
        if child == 0:
            os._exit(0 if type_lock.acquire(timeout=30) else 1)
        may_release.set()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with ThreadPoolExecutor(2) as threads:
        threads.submit(hold)
        child = threads.submit(fork)
        forks.wait(30)
        may_release.set()
        assert child.result(60) == 0


is_evaluating, may_go_on = threading.Event(), threading.Event()


def evaluate_slowly() -> type[int]:
    """The annotation of a keyword, which is evaluated at the first call of its method."""
    is_evaluating.set()
    may_go_on.wait(30)
    return int


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_child_of_a_fork_can_call_a_method_while_a_thread_of_its_parent_calls_another_for_the_first_time() -> None:
    slow: Any = type(
        "Slow", (), {"__annotations__": {"other": f"{evaluate_slowly.__name__}()"}, "__module__": __name__}
    )
    with ThreadPoolExecutor(1) as threads:
        checking = threads.submit(Parameters(slow).check, {"other": 1})
        is_evaluating.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(10)  # ends the child if it waits for that thread, which it does not have
            try:
                Parameters(_Options, {"given": int}).check({"given": 1})
                os._exit(0)
            finally:
                os._exit(1)
        may_go_on.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        checking.result()
