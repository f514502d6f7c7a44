"""Tool-assisted chat: the model may use Friendli's built-in tools, and the server runs them.

Wire: ``POST /serverless/tools/v1/chat/completions``; ``stream: true`` selects server-sent events. Token events have no
name and are chat chunks; ``event: tool_status`` tells what a tool is doing; ``data: [DONE]`` ends the stream. The body
is that of Friendli's SDK 0.14.0, the last release that had the operation. The SDK has withdrawn it since (from 0.14.2
on none has it), so whether the service still answers is Friendli's to say.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast, get_args

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, encode_json, model_of
from friendli_async._core.events.decoding import ChunkDialect, Dialect
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.chat.collector import CHUNK_CONTENT, ChatCollector, are_ordinary
from friendli_async.chat.inputs import (
    CHECKS,
    REQUIRED,
    Function,
    GenerationOptions,
    Messages,
    Tool,
    choices_wanted,
    sendable,
    stream_fields,
)
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.resource import CompletionStream
from friendli_async.errors import ArgumentError
from friendli_async.replies import Partial, Usage, Value, always

if TYPE_CHECKING:
    from friendli_async._core.call import Engine

__all__: list[str] = ["BuiltInToolName", "ToolStatus", "ToolStatusError", "ToolStatusFile", "ToolStatusParameter"]
__all__ += ["ToolAssistedChat", "ToolAssistedChatOptions", "ToolAssistedEvent", "ToolAssistedStream"]
__all__ += ["ToolAssistedCall", "ToolAssistedCollector"]

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


class _AnyTool(msgspec.Struct):
    """A tool, by its type: a function, or one of the server's. There may be new ones, which the server can judge."""

    type: str
    function: Function | msgspec.UnsetType = msgspec.UNSET
    files: list[str] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        needed = {"function": "function", "file:text": "files"}.get(self.type)
        if needed is not None and getattr(self, needed) is msgspec.UNSET:
            raise ArgumentError(f"Object missing required field `{needed}`")
        if needed is None and self.type not in _BUILT_IN:
            import logging

            logger = logging.getLogger("friendli_async")
            logger.debug("a tool of a type that is not known here is sent as it is: %s", self.type)


_BUILT_IN: Final = frozenset(get_args(BuiltInToolName))


class ToolStatusParameter(Value, frozen=True):
    """One argument that the tool was called with."""

    name: str = ""
    value: str | None = None


class ToolStatusFile(Value, frozen=True):
    """A file that the tool made."""

    name: str = ""
    url: str | None = None


class ToolStatusError(Value, frozen=True):
    """Why the tool failed."""

    type: str | None = None
    msg: str | None = None


class ToolStatus(Value, frozen=True, kw_only=True):
    """What a built-in tool is doing."""

    tool_call_id: str = always("")
    name: BuiltInToolName | str = always("")  # open: a new tool must not break old clients
    status: Literal["STARTED", "UPDATING", "ENDED", "ERRORED"] | str = always("")  # open
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


@described
class ToolAssistedChatOptions(GenerationOptions, total=False):
    """Optional parameters of a tool-assisted chat. What is left out is left to the server; None is sent as null."""

    resume_generation: bool
    """Whether to go on generating after a tool failed. (Friendli documents that it gives up after 8 failures.)"""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Built-in tools, as ``{"type": "math:calculator"}`` (see ``BuiltInToolName``) or ``{"type": "file:text", "files":
    [file_id]}``, and functions."""


_PARAMETERS: Final = Parameters(ToolAssistedChatOptions, REQUIRED, {**CHECKS, "tools": list[_AnyTool] | None})
_COMPLETE: Final = operation(
    "tool_assisted_chat.complete", "POST /tools/v1/chat/completions", ChatCompletion, repeatable=True, billed=True
)


class ToolAssistedCollector:
    """Puts the chunks together; what the tools are doing is passed on.

    Args:
        n: Choices that were asked for.
    """

    dialect: Dialect[ToolAssistedEvent] = ChunkDialect(
        ChatChunk,
        content=CHUNK_CONTENT,
        named={"tool_status": ToolStatus},
        shape=frozenset({"name", "status"}),
        ordinary=are_ordinary,
    )
    is_last: bool = False  # as in chat

    def __init__(self, n: int = 1) -> None:
        self._chat = ChatCollector(n)

    @property
    def begun(self) -> bool:
        """Whether a choice has come."""
        return self._chat.begun

    @property
    def has_text(self) -> bool:
        """Whether any text has come."""
        return self._chat.has_text

    @property
    def may_end(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._chat.may_end

    @property
    def head(self) -> ChatChunk | None:
        """What has the reply's ``id`` and ``model``."""
        return self._chat.head

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """Why the choices that have finished did so."""
        return self._chat.finish_reasons

    @property
    def usage(self) -> Usage | None:
        """The usage, once the server has told it."""
        return self._chat.usage

    def partial(self) -> Partial:
        """Choice 0 so far."""
        return self._chat.partial()

    def result(self) -> ChatCompletion:
        """The whole completion."""
        return self._chat.result()

    def extend(self, events: Iterable[ToolAssistedEvent]) -> None:
        """Adds events, in order: a tool that starts after a finish reason means that the turn is not over."""
        for event in events:
            if isinstance(event, ToolStatus):
                self._chat.reopen()
            else:
                self._chat.extend((event,))


class ToolAssistedStream(CompletionStream[ToolAssistedEvent]):
    """The stream of a tool-assisted chat: ``ChatChunk`` and ``ToolStatus`` events. ``text()`` passes the latter by."""


class ToolAssistedChat(Resource):
    """Chat with built-in tools: ``client.serverless.tool_assisted_chat``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: A bad value, with its path. Nothing was sent.
        FriendliError: What went wrong with the call (of a stream, once it is used); see ``friendli_async.errors``.
    """

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
        """
        arguments = _arguments("complete", model, messages, options)
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
        """
        arguments = _arguments("stream", model, messages, options, stream_fields(options))
        return _opened_by(self._engine, arguments, choices_wanted(options))


def _arguments(
    method: str, model: str, messages: Messages, options: Mapping[str, object], fixed: Mapping[str, object] = {}
) -> Arguments:
    required = {"model": model, "messages": sendable(messages)}
    return _PARAMETERS.encode(method, required, _with_plain_tools(options), fixed)


def _with_plain_tools(options: Mapping[str, object]) -> Mapping[str, object]:
    """The options with tools that are structs made into what they go out as; the check takes one form."""
    tools = options.get("tools")
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        return options
    plain = [msgspec.to_builtins(tool) if isinstance(tool, Tool) else tool for tool in cast("Sequence[object]", tools)]
    return {**options, "tools": plain}


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
            raise ArgumentError(f"{_BODY}: Expected `object`, got `{type(body).__name__}`")
        for name in REQUIRED:
            if name not in body:
                raise ArgumentError(f"{_BODY}: Object missing required field `{name}`")
        streams = body.get("stream", True)
        if streams is not None and not isinstance(streams, bool):
            raise ArgumentError(f"{_BODY}.stream: Expected `bool | null`, got `{type(streams).__name__}`")
        sent = {**_with_plain_tools(body), "messages": sendable(body["messages"])}
        # Its first form took null for these, where the last one leaves them out.
        _PARAMETERS.check({key: value for key, value in sent.items() if value is not None}, _BODY)
        self._engine = engine
        self._awaited = False
        self._stream: ToolAssistedStream | None = None
        if streams is False:
            self._arguments = Arguments(encode_json(sent), model=model_of(sent))
        else:
            self._arguments = Arguments(encode_json({**sent, **stream_fields(body)}), model=model_of(sent))
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
