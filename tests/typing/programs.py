# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""What programs build around the client: decorators, helpers, fakes, stored streams. Never run.

A `type: ignore` marks a call that the checkers must reject; if they accept it, they report the comment as unused.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, assert_never, assert_type

import openai.types.chat as of_openai

from friendli_async import (
    AsyncFriendli,
    ChatChunk,
    ChatCompletion,
    ChatStream,
    EventStream,
    ToolAssistedStream,
    ToolStatus,
    UnknownEvent,
    messages,
)
from friendli_async.chat import Chat, ChatOptions, Messages
from friendli_async.tools import LocalTool, RunEvent, ToolFinished, ToolStarted, TurnEnded

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
ASK = [{"role": "user", "content": "Hi"}]


# --- events ----------------------------------------------------------------------------------------------------------


def of_run(event: RunEvent) -> str:
    match event:
        case ChatChunk():
            return event.text
        case ToolStarted(call=call) | ToolFinished(call=call):
            return call.function.name
        case TurnEnded(reply=reply):
            return reply.text
        case _:
            assert_never(event)


async def of_tool_assisted_chat(stream: ToolAssistedStream) -> None:
    async for event in stream:
        match event:
            case ChatChunk() | ToolStatus():
                pass
            case _:
                assert_never(event)


def of_messages(event: messages.MessageEvent) -> str | None:
    match event:
        case messages.MessageStart() | messages.MessageDelta() | messages.MessageStop() | messages.ContentBlockStop():
            return None
        case messages.ContentBlockStart(content_block=block):
            match block:
                case messages.TextBlock() | messages.ThinkingBlock() | messages.ToolUseBlock():
                    return block.type
                case _:
                    assert_never(block)
        case messages.ContentBlockDelta(delta=delta):
            return delta.text if isinstance(delta, messages.TextDelta) else None
        case UnknownEvent():
            return event.type
        case _:
            assert_never(event)


# --- functions around methods ----------------------------------------------------------------------------------------


def logged(call: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return await call(*args, **kwargs)

    return wrapper


async def decorated(client: AsyncFriendli) -> None:
    complete = logged(client.serverless.chat.complete)
    assert_type(await complete(model="m", messages=ASK, temperature=1), ChatCompletion)
    await complete(model="m", messages=ASK, temperatur=1)  # type: ignore[call-arg]  # rejected
    bound = partial(client.serverless.chat.complete, model="m")
    assert_type(await bound(messages=ASK, temperature=1), ChatCompletion)


async def ask(chat: Chat, text: str, **options: Unpack[ChatOptions]) -> str:
    options["max_tokens"] = min(options.get("max_tokens") or 100, 100)
    return (await chat.complete(model="m", messages=[{"role": "user", "content": text}], **options)).text


async def together(client: AsyncFriendli) -> None:
    await ask(client.serverless.chat, "Hi", temperature=0.5)
    await ask(client.serverless.chat, "Hi", temperatur=0.5)  # type: ignore[call-arg]  # rejected
    reply, models = await asyncio.gather(
        client.serverless.chat.complete(model="m", messages=ASK), client.serverless.model.list()
    )
    assert_type(reply, ChatCompletion)
    print([model.id for model in models.data])
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(client.serverless.chat.stream(model="m", messages=ASK))
        assert_type(stream, ChatStream)


# --- classes around the client ---------------------------------------------------------------------------------------


class Completes(Protocol):
    async def complete(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatCompletion: ...


class FakeChat:
    async def complete(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatCompletion:
        return ChatCompletion(choices=())


@dataclass
class Summarizer(Generic[T]):
    chat: Completes
    parse: Callable[[str], T]
    stream: ChatStream | None = None
    open: dict[str, EventStream[ChatChunk]] = field(default_factory=dict[str, EventStream[ChatChunk]])

    async def __call__(self, text: str) -> T:
        return self.parse((await self.chat.complete(model="m", messages=[{"role": "user", "content": text}])).text)


async def fakes(client: AsyncFriendli) -> None:
    for chat in (client.serverless.chat, client.dedicated.chat, client.container.chat, FakeChat()):
        assert_type(await Summarizer(chat, len)("Hi"), int)
    summarizer = Summarizer(FakeChat(), str.upper, client.serverless.chat.stream(model="m", messages=ASK))
    if summarizer.stream is not None:
        summarizer.open["a"] = summarizer.stream


class Tagged(AsyncFriendli):
    tag = "a"


async def subclasses() -> None:
    async with Tagged().with_options(timeout=3) as client:
        assert_type(client, Tagged)


# --- values of others ------------------------------------------------------------------------------------------------


async def types_of_openai(chat: Chat, own: Sequence[LocalTool]) -> None:
    conversation: list[of_openai.ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]
    tools: list[of_openai.ChatCompletionToolParam] = [{"type": "function", "function": {"name": "f"}}]
    await chat.complete(model="m", messages=conversation, tools=[*tools, *own], tool_choice="auto")


def runnable(tools: Sequence[Any]) -> list[LocalTool]:
    return [each for each in tools if isinstance(each, LocalTool)]
