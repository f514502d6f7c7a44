# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Static types of structured output. Checked in strict mode; never run.

A `type: ignore` marks a call that the checkers must reject; if they accept it, they report the comment as unused.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict, assert_type

import msgspec

from friendli_async import AsyncFriendli, Meta, OutputCutOffError, OutputError, Usage
from friendli_async.chat import ChatChunk, ItemView, ParsedChatStream, ParsedCompletion, json_schema
from friendli_async.replies import Reply
from friendli_async.responses import ParsedResponse, ParsedResponseStream, ResponseEvent


class Line(msgspec.Struct):
    sku: str


class Invoice(msgspec.Struct):
    lines: list[Line]


@dataclass
class Plain:
    name: str


class Typed(TypedDict):
    name: str


Document = Annotated[Plain | Invoice | None, "any alias of a type"]
ASK = [{"role": "user", "content": "Hi"}]


async def parses(client: AsyncFriendli) -> None:
    chat = client.serverless.chat
    reply = await chat.parse(Invoice, model="m", messages=ASK, reask=1, max_tokens=5)
    assert_type(reply, ParsedCompletion[Invoice])
    assert_type(reply.value, Invoice)
    assert_type(reply.value.lines, list[Line])
    assert_type(reply.text, str)
    assert_type(reply.usage, Usage | None)
    assert_type(reply.meta, Meta)
    assert_type(reply.asked, int)
    assert_type((await chat.parse(list[Line], model="m", messages=ASK)).value, list[Line])
    assert_type((await chat.parse(Plain, model="m", messages=ASK)).value, Plain)
    assert_type((await chat.parse(Typed, model="m", messages=ASK)).value, Typed)
    assert_type((await client.container.chat.parse(Invoice, messages=ASK)).value, Invoice)
    assert_type((await client.dedicated.chat.parse(Invoice, model="m", messages=ASK)).value, Invoice)
    anything: ParsedCompletion[Any] = await chat.parse(Any, model="m", messages=ASK)
    print(anything.value)
    either = await chat.parse(Plain | Invoice, model="m", messages=ASK)
    assert_type(either.value, Plain | Invoice)
    assert_type((await chat.parse(Document, model="m", messages=ASK)).value, Plain | Invoice | None)
    assert_type((await chat.parse(Literal["yes", "no"], model="m", messages=ASK)).value, Literal["yes", "no"])
    assert_type((await client.container.chat.parse(Plain | None, messages=ASK)).value, Plain | None)
    await chat.parse(Invoice, messages=ASK)  # type: ignore[call-overload]  # rejected
    await chat.parse(Invoice, model="m", messages=ASK, response_format=None)  # type: ignore[call-overload]  # rejected


async def streams(client: AsyncFriendli) -> None:
    async with client.serverless.chat.parse_stream(Invoice, model="m", messages=ASK) as stream:
        assert_type(stream, ParsedChatStream[Invoice])
        async for line in stream.items("lines", of=Line):
            assert_type(line, Line)
        assert_type(stream.items("lines", of=Line), ItemView[Line])
        async for snapshot in stream.snapshots():
            print(snapshot["lines"])
        async for event in stream:
            assert_type(event, ChatChunk)
        async for text in stream.text():
            assert_type(text, str)
        assert_type(stream.items("lines", of=Line | None), ItemView[Line | None])
    result = await stream.result()
    assert_type(result, ParsedCompletion[Invoice])
    assert_type(result.value, Invoice)
    assert_type(client.container.chat.parse_stream(Plain, messages=ASK), ParsedChatStream[Plain])
    either = client.serverless.chat.parse_stream(Plain | Invoice, model="m", messages=ASK)
    assert_type(either, ParsedChatStream[Plain | Invoice])


async def responds(client: AsyncFriendli) -> None:
    reply = await client.serverless.responses.parse(Invoice, model="m", input="Hi")
    assert_type(reply, ParsedResponse[Invoice])
    assert_type(reply.value, Invoice)
    either = await client.serverless.responses.parse(Plain | Invoice, model="m", input="Hi")
    assert_type(either, ParsedResponse[Plain | Invoice])
    stream = client.container.responses.parse_stream(Invoice, input="Hi")
    assert_type(stream, ParsedResponseStream[Invoice])
    async for event in stream:
        assert_type(event, ResponseEvent)
    async for line in stream.items("lines", of=Line):
        assert_type(line, Line)
    assert_type((await stream.result()).value, Invoice)


def errors(error: OutputError) -> None:
    assert_type(error.reply, Reply | None)
    assert_type(error.path, str)
    assert_type(error.text, str)
    if isinstance(error, OutputCutOffError):
        print(error.partial)
    assert_type(json_schema(Invoice, strict=False), dict[str, Any])
