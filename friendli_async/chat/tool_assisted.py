"""Tool-assisted chat: the model may use Friendli's built-in tools, and the server runs them.

Wire: ``POST /serverless/tools/v1/chat/completions``; ``stream: true`` selects server-sent events. Token events have no
name and are chat chunks; ``event: tool_status`` tells what a tool is doing; ``data: [DONE]`` ends the stream. The body
is that of Friendli's SDK 0.14.0, the last release that had the operation. The SDK has withdrawn it since (from 0.14.2
on none has it), so whether the service still answers is Friendli's to say.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Union, Unpack, get_args

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, encode_json
from friendli_async._core.protocol import Operation, decode
from friendli_async.chat.collector import ChatCollector
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.resource import (
    CHECKS,
    REQUIRED,
    CompletionStream,
    GenerationOptions,
    Messages,
    Tool,
    choices_wanted,
    sendable,
    stream_fields,
)
from friendli_async.replies import Partial, Usage

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__ = [
    "BuiltInToolName",
    "ToolAssistedCall",
    "ToolAssistedChat",
    "ToolAssistedChatOptions",
    "ToolAssistedEvent",
    "ToolAssistedStream",
    "ToolStatus",
    "ToolStatusError",
    "ToolStatusFile",
    "ToolStatusParameter",
]

BuiltInToolName = Literal[
    "math:calculator",
    "math:statistics",
    "math:calendar",
    "web:search",
    "web:url",
    "code:python-interpreter",
    "linkup:search",
    "file:text",
]


class _FileTool(msgspec.Struct, tag_field="type", tag="file:text"):
    files: list[str]


_BUILT_IN: Final = [
    msgspec.defstruct("BuiltInTool", [], tag_field="type", tag=name)
    for name in get_args(BuiltInToolName)
    if name != "file:text"
]
# What a tool may be, by its type; those that need no settings differ in nothing else.
_TOOL: Final[Any] = Union[(Tool, _FileTool, *_BUILT_IN)]  # made from a list


class ToolStatusParameter(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """One argument that the tool was called with."""

    name: str = ""
    value: str | None = None


class ToolStatusFile(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """A file that the tool made."""

    name: str = ""
    url: str | None = None


class ToolStatusError(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, repr_omit_defaults=True):
    """Why the tool failed."""

    type: str | None = None
    msg: str | None = None


class ToolStatus(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, repr_omit_defaults=True):
    """What a built-in tool is doing."""

    tool_call_id: str
    name: BuiltInToolName | str  # open: a new tool must not break old clients
    status: Literal["STARTED", "UPDATING", "ENDED", "ERRORED"] | str  # open
    parameters: tuple[ToolStatusParameter, ...] = ()
    timestamp: float | None = None
    """Unix time in seconds."""
    result: str | None = None
    """As the server writes it: JSON inside the string at the end, the word "None" at the start."""
    files: tuple[ToolStatusFile, ...] | None = None
    message: str | None = None
    error: ToolStatusError | None = None
    usage: Usage | None = None


ToolAssistedEvent = ChatChunk | ToolStatus


class ToolAssistedChatOptions(GenerationOptions, total=False):
    """Optional parameters of a tool-assisted chat. What is left out is left to the server; None is sent as null."""

    resume_generation: bool
    """Whether to go on generating after a tool failed. (Friendli documents that it gives up after 8 failures.)"""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Built-in tools, as ``{"type": "math:calculator"}`` (see ``BuiltInToolName``) or ``{"type": "file:text", "files":
    [file_id]}``, and functions."""


_PARAMETERS: Final = Parameters(ToolAssistedChatOptions, REQUIRED, {**CHECKS, "tools": list[_TOOL] | None})
_COMPLETE: Final = Operation(
    method="POST",
    path="/tools/v1/chat/completions",
    reply=msgspec.json.Decoder(ChatCompletion),
    repeatable=True,
    billed=True,
)
_status_decoder: Final = msgspec.json.Decoder(ToolStatus)


class ToolAssistedCollector:
    """Decodes the two kinds of events and puts the chunks together.

    Args:
        n: Choices that were asked for.
    """

    ended = False  # as in chat

    def __init__(self, n: int = 1) -> None:
        self.chat = ChatCollector(n)
        self.decode = self.chat.decode
        self.complete = self.chat.complete
        self.result = self.chat.result

    @property
    def usage(self) -> Usage | None:
        """The usage, once the server has told it."""
        return self.chat.usage

    def decode_each(self, payloads: list[bytes]) -> Sequence[ToolAssistedEvent] | None:
        """Decodes chunks; None if one of them is not an ordinary one."""
        return self.chat.decode_each(payloads)

    def decode_named(self, name: str, data: bytes) -> ToolAssistedEvent | None:
        """``tool_status``; else as in chat."""
        return decode(data, _status_decoder) if name == "tool_status" else self.chat.decode_named(name, data)

    def extend(self, events: Iterable[ToolAssistedEvent]) -> None:
        """Adds events, in order: a tool that starts after a finish reason means that the turn is not over."""
        for event in events:
            if isinstance(event, ToolStatus):
                self.chat.reopen()
            else:
                self.chat.extend((event,))

    def partial(self) -> Partial:
        """Choice 0 so far."""
        return self.chat.partial()


class ToolAssistedStream(CompletionStream[ToolAssistedEvent]):
    """The stream of a tool-assisted chat: ``ChatChunk`` and ``ToolStatus`` events. ``text()`` passes the latter by."""


class ToolAssistedChat:
    """Chat with built-in tools: ``client.serverless.tool_assisted_chat``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def complete(
        self, *, model: str, messages: Messages, **options: Unpack[ToolAssistedChatOptions]
    ) -> ChatCompletion:
        """Generates an answer, with tools where the model wants them, and returns it whole.

        Args:
            model: Catalogue code, as ``meta-llama-3.1-8b-instruct``.
            messages: The conversation so far.
            options: See ``ToolAssistedChatOptions``; ``tools`` are what the model may use.

        Returns:
            The completion.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path. Nothing was sent.
            FriendliError: What went wrong with the call; see ``friendli_async.errors``.
        """
        arguments = _arguments("complete", model, messages, options, {})
        return await self._engine.call(_COMPLETE, arguments)

    def stream(
        self, *, model: str, messages: Messages, **options: Unpack[ToolAssistedChatOptions]
    ) -> ToolAssistedStream:
        """Generates an answer and streams it: tokens, and what the tools are doing.

        Args:
            model: Catalogue code.
            messages: The conversation so far.
            options: See ``ToolAssistedChatOptions``.

        Returns:
            The stream of ``ChatChunk`` and ``ToolStatus``.

        Raises:
            TypeError: An unknown keyword.
            ValueError: A bad value, with its path.
        """
        arguments = _arguments("stream", model, messages, options, stream_fields(options))
        return _opened_by(self._engine, arguments, choices_wanted(options))


def _arguments(
    method: str, model: str, messages: Messages, options: Mapping[str, object], fixed: Mapping[str, object]
) -> Arguments:
    return _PARAMETERS.encode(method, {"model": model, "messages": sendable(messages)}, options, fixed)


def _opened_by(engine: Engine, arguments: Arguments, n: int) -> ToolAssistedStream:
    return ToolAssistedStream(engine.opening(_COMPLETE, arguments, lambda: ToolAssistedCollector(n)))


_BODY: Final = "tool_assisted_completion_request_body"


class ToolAssistedCall:
    """The operation by its first form: one body, answered whole or as a stream.

    ``async for`` and ``async with`` give the events. Awaiting it opens it, and gives the stream; or, where the body
    says ``stream: False``, the ``ChatCompletion``.
    """

    def __init__(self, engine: Engine, body: Mapping[str, object]) -> None:
        if not isinstance(body, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  # user input
            raise ValueError(f"{_BODY}: Expected `object`, got `{type(body).__name__}`")
        for name in REQUIRED:
            if name not in body:
                raise ValueError(f"{_BODY}: Object missing required field `{name}`")
        streams = body.get("stream", True)
        if streams is not None and not isinstance(streams, bool):
            raise ValueError(f"{_BODY}.stream: Expected `bool | null`, got `{type(streams).__name__}`")
        sent = {**body, "messages": sendable(body["messages"])}
        # Its first form took null for these, where the last one leaves them out.
        _PARAMETERS.check({key: value for key, value in sent.items() if value is not None}, _BODY)
        self._engine = engine
        self._awaited = False
        self._stream: ToolAssistedStream | None = None
        if streams is False:
            self._arguments = Arguments(encode_json(sent))
        else:
            self._arguments = Arguments(encode_json({**sent, **stream_fields(body)}))
            self._stream = _opened_by(engine, self._arguments, choices_wanted(body))

    def __await__(self) -> Generator[Any, None, ToolAssistedStream | ChatCompletion]:
        if self._stream is not None:
            return self._stream.__await__()
        if self._awaited:
            raise RuntimeError("this call has been awaited already: another one would be another request")
        self._awaited = True
        return self._engine.call(_COMPLETE, self._arguments).__await__()

    def __aiter__(self) -> ToolAssistedStream:
        return self._streaming()

    async def __aenter__(self) -> ToolAssistedStream:
        return await self._streaming().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._streaming().__aexit__(kind, error, traceback)

    def _streaming(self) -> ToolAssistedStream:
        if self._stream is None:
            raise TypeError("the body says stream: False, so there are no events: await the call")
        return self._stream
