"""Tool-assisted chat: the model may use Friendli's built-in tools, and the server runs them.

Wire: ``POST /serverless/tools/v1/chat/completions``; ``stream: true`` selects server-sent events. Token events have no
name and are chat chunks; ``event: tool_status`` tells what a tool is doing; ``data: [DONE]`` ends the stream. The body
is that of Friendli's SDK 0.14.0, the last release that had the operation. The SDK has withdrawn it since (from 0.14.2
on none has it), and a changelog calls it deprecated since 2026-07-06, in favour of tool calling (``chat.run`` does it):
whether the service still answers is Friendli's to say.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast, get_args

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, each, encode_json, model_of
from friendli_async._core.events.decoding import ChunkDialect, Dialect
from friendli_async._core.resource import Resource, operation
from friendli_async._help import described
from friendli_async.chat.collector import CHUNK_CONTENT, ChatCollector, are_ordinary
from friendli_async.chat.inputs import (
    CHECKS,
    REQUIRED,
    SENT,
    Function,
    GenerationOptions,
    Messages,
    Tool,
    choices_wanted,
    stream_fields,
)
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.chat.resource import CompletionStream
from friendli_async.errors import ArgumentError
from friendli_async.replies import Usage, Value, always

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

    resume_generation: bool | None
    """Whether to go on generating after a tool failed. (Friendli documents that it gives up after 8 failures.)"""
    tools: Sequence[Tool | Mapping[str, object]] | None
    """Built-in tools, as ``{"type": "math:calculator"}`` (see ``BuiltInToolName``) or ``{"type": "file:text", "files":
    [file_id]}``, and functions."""


_PARAMETERS: Final = Parameters(
    ToolAssistedChatOptions,
    REQUIRED,
    {**CHECKS, "tools": list[_AnyTool] | None},
    # The check takes one form of tools.
    {**SENT, "tools": each(lambda tool: msgspec.to_builtins(tool) if isinstance(tool, Tool) else tool)},
)
_COMPLETE: Final = operation(
    "tool_assisted_chat.complete", "POST /tools/v1/chat/completions", ChatCompletion, repeatable=True, billed=True
)


_SHAPE: Final = frozenset({"name", "status"})


def _with_its_parts(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """A tool's status with its parts where they belong, however they came: what it is doing never costs the answer."""
    if name != "tool_status" and not fields.keys() >= _SHAPE:
        return fields
    error, parameters, message = fields.get("error"), fields.get("parameters"), fields.get("message")
    if isinstance(error, dict):
        told = cast("dict[str, object]", error)
        if told and not told.get("msg"):
            words = told.get("message") or _json(told)
            fields["error"] = {"type": told.get("type") or told.get("code"), "msg": words}
    elif error:
        fields["error"] = {"msg": error if isinstance(error, str) else _json(error)}
    if isinstance(parameters, dict):
        listed = cast("dict[str, object]", parameters)
        fields["parameters"] = [{"name": key, "value": value} for key, value in listed.items()]
    if message is not None and not isinstance(message, str | dict | list):
        fields["message"] = _json(message)
    return fields


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


class ToolAssistedCollector(ChatCollector):
    """Puts the chunks together; what the tools are doing is passed on.

    Args:
        n: Choices that were asked for.
    """

    dialect: Dialect[Any] = ChunkDialect(
        ChatChunk,
        content=CHUNK_CONTENT,
        named={"tool_status": ToolStatus},
        shape=_SHAPE,
        ordinary=are_ordinary,
        rewrite=_with_its_parts,
    )

    def extend(self, events: Iterable[ToolAssistedEvent]) -> None:
        """Adds events, in order: a tool that starts after a finish reason means that the turn is not over."""
        for event in events:
            if isinstance(event, ToolStatus):
                self.reopen()
            else:
                super().extend((event,))


class ToolAssistedStream(CompletionStream[ToolAssistedEvent]):
    """The stream of a tool-assisted chat: ``ChatChunk`` and ``ToolStatus`` events. ``text()`` passes the latter by."""


class ToolAssistedChat(Resource):
    """Chat with built-in tools: ``client.serverless.tool_assisted_chat``.

    Friendli calls the API deprecated since 2026-07-06; for tools that run on your side see ``chat.run``.

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
        arguments = _PARAMETERS.encode("complete", {"model": model, "messages": messages}, options)
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
        required = {"model": model, "messages": messages}
        arguments = _PARAMETERS.encode("stream", required, options, stream_fields(options))
        return _opened_by(self._engine, arguments, choices_wanted(options))


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
        sent = _PARAMETERS.prepared(body)
        # Its first form took null for these, where the last one leaves them out.
        _PARAMETERS.check({key: value for key, value in sent.items() if value is not None}, _BODY)
        self._engine = engine
        self._awaited = False
        fixed = {} if streams is False else stream_fields(body)
        self._arguments = Arguments(encode_json({**sent, **fixed}), model=model_of(sent))
        self._stream = None if streams is False else _opened_by(engine, self._arguments, choices_wanted(body))

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

    async def __aexit__(self, *exc_info: object) -> None:
        await self._streaming().__aexit__(*exc_info)

    def _streaming(self) -> ToolAssistedStream:
        if self._stream is None:
            raise TypeError("the body says stream: False, so there are no events: await the call")
        return self._stream
