"""Wrong arguments of constructors and helpers are rejected where they are passed, with a message that names them."""

from collections.abc import Callable
from importlib import import_module
from inspect import isawaitable
from typing import Any, Final

import pytest

from friendli_async import AsyncFriendli, media
from friendli_async.asgi import SSEResponse, drain_on_shutdown
from friendli_async.integrations.mcp import mcp_tools
from friendli_async.integrations.ray import CompleteStage


def integration(module: str, name: str, extra: str) -> Any:
    """Returns a public class of an integration, if its extra is installed."""
    pytest.importorskip(extra)
    return getattr(import_module(f"friendli_async.integrations.{module}"), name)


def telemetry(**arguments: Any) -> object:
    return integration("opentelemetry", "Telemetry", "opentelemetry")(**arguments)


def friendli_model(**arguments: Any) -> object:
    kind = integration("pydantic_ai", "FriendliModel", "pydantic_ai")
    return kind(**{"model": "m", "client": AsyncFriendli("t"), **arguments})


def chat_friendli(**arguments: Any) -> object:
    return integration("langchain", "ChatFriendli", "langchain_core")(model="m", **arguments)


def stage(**arguments: Any) -> object:
    usual: dict[str, Any] = {"model": "m", "client": {"token": "t"}}
    return CompleteStage(**usual | arguments)


def stream() -> Any:
    return AsyncFriendli("t").serverless.chat.stream(model="m", messages=[])


async def drain(client: Any) -> None:
    async with drain_on_shutdown(client):
        pass


WRONG: Final[list[tuple[str, Callable[[Any], Any], list[Any]]]] = [
    # Texts out of a few: each failed late, with an error about something else, or never.
    ("names", lambda value: telemetry(names=value), [[], "new"]),
    ("until", lambda value: AsyncFriendli("t").dedicated.endpoint.wait("ep", until=value), ["running", None, []]),
    ("deployment", lambda value: stage(deployment=value), ["server", "gauges", None, []]),
    ("deployment", lambda value: friendli_model(deployment=value), ["server", "gauges", None, []]),
    ("slow", lambda value: stream().tee(2, slow=value), ["wat", None, []]),
    # Other types: each was accepted, and failed in the first call, in each row, at the shutdown, or never.
    ("prefix", lambda value: mcp_tools(stream(), prefix=value), [None, 5, b"a"]),
    ("model", lambda value: friendli_model(model=value), [None, 5]),
    ("client", lambda value: friendli_model(client=value), ["t", AsyncFriendli]),
    ("concurrency", lambda value: stage(concurrency=value), [0, -1, None, True, float("nan")]),
    ("model", lambda value: stage(model=value), [None, 5]),
    ("max_token", lambda value: stage(options={"max_token": value}), [5]),
    ("max_tokens", lambda value: stage(options={"max_tokens": value}), ["5"]),
    ("timeout", lambda value: chat_friendli(timeout=value), [0, -1, float("nan")]),
    ("client", drain, [None, "client"]),
    ("content_type", lambda value: media.image(b"a", content_type=value), [5, "png", "a/b\r\nc"]),
    ("headers", lambda value: SSEResponse(stream(), headers=value), [[("a", "b")], "a", {"a": 5}, {"a": None}]),
    ("headers", lambda value: SSEResponse(stream(), headers=value), [{5: "a"}, {"a": "b\r\nc: d"}, {"a b": "c"}]),
]


@pytest.mark.parametrize(
    ("name", "make", "value"), [(name, make, each) for name, make, values in WRONG for each in values]
)
async def test_wrong_argument_is_rejected_where_it_is_passed(
    name: str, make: Callable[[Any], Any], value: object
) -> None:
    async def pass_it() -> None:
        made = make(value)
        if isawaitable(made):
            await made

    with pytest.raises((TypeError, ValueError), match=rf"(^|'|\s){name}\b"):
        await pass_it()


def test_header_that_the_http_layer_sets_in_requests_is_allowed_in_a_response() -> None:
    assert SSEResponse(stream(), headers={"Connection": "keep-alive"}).raw_headers == [(b"connection", b"keep-alive")]
