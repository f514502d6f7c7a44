"""Tool-assisted chat: the model may call Friendli's built-in tools, which run on the server.

Wire: ``POST /serverless/tools/v1/chat/completions``; ``stream: true`` selects server-sent events. Token events have no
name and are chat chunks; ``event: tool_status`` reports a tool's progress; ``data: [DONE]`` ends the stream. The body
is that of Friendli's SDK 0.14.0, the last release with the operation (it is absent from 0.14.2 on). A changelog calls
it deprecated since 2026-07-06, in favour of tool calling (see ``chat.run``), so the service may no longer answer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, cast

import msgspec

from friendli_async._core.body.arguments import Arguments, Parameters, as_mapping, check_values, model_of
from friendli_async._core.body.json_values import encode_body, to_builtins
from friendli_async._core.error_json import is_blank
from friendli_async._core.events.decoding import Dialect
from friendli_async._core.resource import Resource, inference
from friendli_async._help import document_fields
from friendli_async._json import encode_json, is_object, prepared
from friendli_async._lazy import LazyModule
from friendli_async.chat.collector import ChatCollector, CompletionStream
from friendli_async.chat.dialect import ChoicesDialect
from friendli_async.chat.inputs import (
    CHECKS,
    CONVERTERS,
    REQUIRED,
    Function,
    GenerationOptions,
    LocalTool,
    Messages,
    Tool,
    requested_choices,
    stream_fields,
)
from friendli_async.chat.replies import ChatChunk, ChatCompletion
from friendli_async.errors import ArgumentError
from friendli_async.replies import Usage, Value, always_encoded

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
else:
    engine_module = LazyModule("friendli_async._core.engine")

__all__: list[str] = ["BuiltInToolName", "ToolStatus", "ToolStatusError", "ToolStatusFile", "ToolStatusParameter"]
__all__ += ["ToolAssistedChat", "ToolAssistedChatOptions", "ToolAssistedEvent", "ToolAssistedStream"]
__all__ += ["ToolAssistedCall"]

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
    """A tool: a function or a built-in tool. Unknown types are allowed and left to the server to validate."""

    type: str
    function: Function | msgspec.UnsetType = msgspec.UNSET
    files: list[str] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        needed = {"function": "function", "file:text": "files"}.get(self.type)
        if needed is not None and getattr(self, needed) is msgspec.UNSET:
            raise ArgumentError(f"Object missing required field `{needed}`")


_STATUS_FIELDS: Final = frozenset({"name", "status"})
"""Those by which a status is told from a chunk."""


class ToolStatusParameter(Value, frozen=True):
    """An argument of the tool call."""

    name: str = ""
    value: str | None = None


class ToolStatusFile(Value, frozen=True):
    """A file created by the tool."""

    name: str = ""
    url: str | None = None


class ToolStatusError(Value, frozen=True):
    """Why the tool failed."""

    type: str | None = None
    msg: str | None = None


class ToolStatus(Value, frozen=True, kw_only=True):
    """A progress event of a built-in tool."""

    tool_call_id: str = always_encoded("")
    name: BuiltInToolName | str = always_encoded("")  # open: a new tool must not break old clients
    status: Literal["STARTED", "UPDATING", "ENDED", "ERRORED"] | str = always_encoded("")  # open
    parameters: tuple[ToolStatusParameter, ...] = ()
    timestamp: float | None = None
    """Unix time in seconds."""
    result: str | None = None
    """The server's string, unparsed: JSON when the tool has ended, "None" when it starts."""
    files: tuple[ToolStatusFile, ...] | None = None
    message: str | None = None
    error: ToolStatusError | None = None
    usage: Usage | None = None

    @classmethod
    def _check_tag(cls, value: object) -> None:
        if isinstance(value, Mapping) and not cast("Mapping[str, object]", value).keys() >= _STATUS_FIELDS:
            raise msgspec.ValidationError("Object missing required fields `name` and `status`")


# Pydantic takes the first that is valid, and a chunk has no required field.
ToolAssistedEvent = ToolStatus | ChatChunk


@document_fields
class ToolAssistedChatOptions(GenerationOptions, total=False):
    """Optional parameters of a tool-assisted chat. Omitted ones are left to the server; None is sent as null."""

    resume_generation: bool | None
    """Whether to continue generating after a tool failed. Friendli documents that it gives up after 8 failures."""
    tools: Sequence[Tool | Mapping[str, object] | LocalTool] | None
    """Built-in tools, as ``{"type": "math:calculator"}`` (see ``BuiltInToolName``) or ``{"type": "file:text", "files":
    [file_id]}``, and functions: definitions, or local tools, whose calls are yours to run."""


_PARAMETERS: Final = Parameters(
    ToolAssistedChatOptions, REQUIRED, {**CHECKS, "tools": list[_AnyTool] | None}, CONVERTERS
)
_COMPLETE: Final = inference("tool_assisted_chat.complete", "POST /tools/v1/chat/completions", ChatCompletion)


def _normalize_status(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Normalizes the fields of a tool status, so that a malformed status does not fail the stream."""
    if name != "tool_status" and not fields.keys() >= _STATUS_FIELDS:
        return fields
    error, parameters, message = fields.get("error"), fields.get("parameters"), fields.get("message")
    if is_blank(error):
        fields.pop("error", None)
    elif is_object(error):
        if not error.get("msg"):
            text = error.get("message") or _to_json(error)
            fields["error"] = {"type": error.get("type") or error.get("code"), "msg": text}
    else:
        fields["error"] = {"msg": error if isinstance(error, str) else _to_json(error)}
    if is_object(parameters):
        fields["parameters"] = [{"name": key, "value": value} for key, value in parameters.items()]
    if message is not None and not isinstance(message, str | dict | list):
        fields["message"] = _to_json(message)
    return fields


def _to_json(value: object) -> str:
    return encode_json(value).decode()


class _ToolAssistedCollector(ChatCollector):
    """Assembles the chunks into a ChatCompletion; tool status events are not part of it."""

    dialect: Dialect[Any] = ChoicesDialect(
        ChatChunk,
        further=ToolStatus,
        further_name="tool_status",
        shape=_STATUS_FIELDS,
        rewrite=_normalize_status,
    )

    def extend(self, events: Sequence[ToolAssistedEvent]) -> int:
        """Adds events in order; returns how many. A tool status after a finish reason means that the turn continues."""
        for event in events:
            if isinstance(event, ToolStatus):
                for parts in self.choices.values():
                    parts.may_end = False
            else:
                super().extend((event,))
        return len(events)


class ToolAssistedStream(CompletionStream[ToolAssistedEvent]):
    """The stream of a tool-assisted chat: ``ChatChunk`` and ``ToolStatus`` events; ``text()`` skips the latter."""

    __slots__ = ()


class ToolAssistedChat(Resource):
    """Chat with built-in tools: ``client.serverless.tool_assisted_chat``.

    Friendli lists the API as deprecated since 2026-07-06; for tools that run in your process see ``chat.run``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def complete(
        self, *, model: str, messages: Messages, **options: Unpack[ToolAssistedChatOptions]
    ) -> ChatCompletion:
        """Generates an answer, calling built-in tools if the model wants to, and returns it in full.

        Args:
            model: Catalogue code, such as ``meta-llama-3.1-8b-instruct``.
            messages: The conversation so far.
            options: See ``ToolAssistedChatOptions``; ``tools`` lists the tools that the model may call.

        Returns:
            The completion.
        """
        arguments = _PARAMETERS.encode("complete", {"model": model, "messages": messages}, options)
        return await self._engine.call(_COMPLETE, arguments)

    def stream(
        self, *, model: str, messages: Messages, **options: Unpack[ToolAssistedChatOptions]
    ) -> ToolAssistedStream:
        """Generates an answer and streams tokens and tool status events.

        Args:
            model: Catalogue code.
            messages: The conversation so far.
            options: See ``ToolAssistedChatOptions``.

        Returns:
            The stream of ``ChatChunk`` and ``ToolStatus``.
        """
        required = {"model": model, "messages": messages}
        arguments = _PARAMETERS.encode("stream", required, options, stream_fields(options))
        return _create_stream(self._engine, arguments, requested_choices(options))


def _create_stream(engine: engine_module.Engine, arguments: Arguments, n: int) -> ToolAssistedStream:
    return ToolAssistedStream(engine.opening(_COMPLETE, arguments, lambda: _ToolAssistedCollector(n)))


_BODY: Final = "tool_assisted_completion_request_body"


@prepared
class _Body(msgspec.Struct):
    """What the body must have, and what selects streaming."""

    model: Any
    messages: Any
    stream: bool | None = None


class ToolAssistedCall:
    """A call in the operation's original form: a single request body that selects streaming.

    ``async for`` and ``async with`` give the events. Awaiting the call opens and returns the stream or, with
    ``stream: False`` in the body, returns the ``ChatCompletion``.
    """

    def __init__(self, engine: engine_module.Engine, body: Mapping[str, object]) -> None:
        check_values(body, _Body, _BODY)
        body = as_mapping(body)
        streams = to_builtins(body.get("stream")) is not False
        sent = _PARAMETERS.converted(body)
        # The original form accepted null for these; the latest one omits them.
        _PARAMETERS.check({key: value for key, value in sent.items() if value is not None}, _BODY)
        self._engine = engine
        self._awaited = False
        fixed = stream_fields(body) if streams else {}
        self._arguments = Arguments(encode_body({**sent, **fixed}), model=model_of(sent))
        self._stream = _create_stream(engine, self._arguments, requested_choices(body)) if streams else None

    def __await__(self) -> Generator[Any, None, ToolAssistedStream | ChatCompletion]:
        if self._stream is not None:
            return self._stream.__await__()
        if self._awaited:
            raise RuntimeError("this call has already been awaited; make a new call to send another request")
        self._awaited = True
        return self._engine.call(_COMPLETE, self._arguments).__await__()

    def __aiter__(self) -> ToolAssistedStream:
        return self._require_stream()

    async def __aenter__(self) -> ToolAssistedStream:
        return await self._require_stream().__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._require_stream().__aexit__(*exc_info)

    def _require_stream(self) -> ToolAssistedStream:
        if self._stream is None:
            raise TypeError("the body has stream: False, so there are no events; await the call")
        return self._stream
