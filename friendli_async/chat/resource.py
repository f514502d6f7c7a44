"""Chat completions, in full or as a stream of tokens.

Wire: ``POST {deployment}/v1/chat/completions``, the same for serverless, dedicated endpoints and containers; ``stream:
true`` selects server-sent events, which end with ``data: [DONE]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from friendli_async._core.body.arguments import without_none
from friendli_async._core.resource import Resource
from friendli_async._lazy import LazyModule, TypeForm
from friendli_async.chat.collector import ChatCollector, ChatStream
from friendli_async.chat.inputs import (
    COMPLETE,
    PARAMETERS,
    ChatOptions,
    LocalTool,
    Messages,
    ParseOptions,
    ParseRunOptions,
    ParseStreamOptions,
    RunOptions,
    requested_choices,
    stream_fields,
)
from friendli_async.chat.replies import ChatCompletion

if TYPE_CHECKING:
    from friendli_async.chat import run as run_module
    from friendli_async.chat import run_arguments, structured
else:  # not needed by plain calls
    run_module, structured = LazyModule("friendli_async.chat.run"), LazyModule("friendli_async.chat.structured")
    run_arguments = LazyModule("friendli_async.chat.run_arguments")

__all__ = ["Chat", "ContainerChat"]

T = TypeVar("T")


class Chat(Resource):
    """Chat with a model: ``client.serverless.chat``, ``client.dedicated.chat``.

    Raises:
        TypeError: An unknown keyword.
        ValueError: An invalid value, with its path. Nothing was sent.
        FriendliError: The call failed (a stream raises on use); see ``friendli_async.errors``.
    """

    async def complete(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatCompletion:
        """Generates an answer and returns it in full.

        Args:
            model: Catalogue code (serverless), or endpoint id, ``ENDPOINT_ID:ADAPTER_ROUTE`` (dedicated).
            messages: The conversation so far.
            options: See ``ChatOptions``.

        Returns:
            The completion, with ``text``, ``reasoning``, ``choices``, ``usage``, ``meta``.
        """
        arguments = PARAMETERS.encode("complete", {"model": model, "messages": messages}, options)
        return await self._engine.call(COMPLETE, arguments)

    def stream(self, *, model: str, messages: Messages, **options: Unpack[ChatOptions]) -> ChatStream:
        """Generates an answer and streams it, token by token. The request is sent when the stream is first used.

        Args:
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ChatOptions``.

        Returns:
            The stream. Use it with ``async with`` or ``async for``, or await its ``result()``.
        """
        return self._stream({"model": model, "messages": messages}, options)

    @overload
    async def parse(
        self, type: TypeForm[T], /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[Any]: ...

    async def parse(
        self, type: Any = ..., /, *, model: str, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[Any]:
        """Generates an answer, parses it as a value of a type, and returns the completion.

        The type's schema is sent to the server, and the answer is validated against the type here, whether or not the
        server enforced the schema. Only whitespace may surround the JSON: no text, no Markdown.

        Args:
            type: Type of the value; ``Any`` accepts any JSON. See ``json_schema``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseOptions``, including ``reask`` and ``strict``.

        Returns:
            The completion with its ``value``. ``asked`` is the number of answers, and ``usage`` covers all of them.

        Raises:
            TypeError: The type has no JSON form. Nothing was sent.
            ValueError: As for all methods, or more than one choice was requested. Nothing was sent.
            OutputCutOffError: The answer was truncated.
            OutputInvalidError: The answer does not match the type, or the model called a tool instead.
        """
        return await structured.OUTPUT.parse(self._engine, type, {"model": model, "messages": messages}, options)

    @overload
    def parse_stream(
        self, type: TypeForm[T], /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedChatStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedChatStream[Any]: ...

    def parse_stream(
        self, type: Any = ..., /, *, model: str, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedChatStream[Any]:
        """Generates an answer that is a value of a type, and streams it. The request is sent on first use.

        Args:
            type: As for ``parse``.
            model: As for ``complete``.
            messages: The conversation so far.
            options: See ``ParseStreamOptions``. There is no ``reask``: streamed output cannot be taken back.

        Returns:
            The stream, with ``snapshots()``, ``items(...)``, ``text()``, its events, ``result()`` with the ``value``.

        Raises:
            TypeError, ValueError: As for ``parse``.
        """
        opening = structured.OUTPUT.opening(self._engine, type, {"model": model, "messages": messages}, options)
        return structured.ParsedChatStream(*opening)

    def run(
        self, *, model: str, messages: Messages, tools: Sequence[LocalTool], **options: Unpack[RunOptions]
    ) -> run_module.Run:
        """Lets the model call tools that run in this process, and continue from their results until it is done.

        Args:
            model: As for ``complete``.
            messages: The conversation so far.
            tools: Functions decorated with ``friendli_async.tools.tool``, tools of an MCP server
                (``friendli_async.integrations.mcp``), or any other ``LocalTool``. A ``tool_choice`` that forces a call
                applies to the first turn only.
            options: See ``RunOptions``.

        Returns:
            The run. Use it with ``async with`` or ``async for``, or await its ``result()``. Nothing is sent before.

        Raises:
            TypeError: An item of ``tools`` is not a tool, or a ``ToolDefinitionError``.
        """
        required = {"model": model, "messages": messages}
        return run_arguments.create_run(self._engine, "run", required, tools, options)

    @overload
    def parse_run(
        self,
        type: TypeForm[T],
        /,
        *,
        model: str,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[T]: ...

    @overload
    def parse_run(
        self,
        type: Any,
        /,
        *,
        model: str,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[Any]: ...

    def parse_run(
        self,
        type: Any = ...,
        /,
        *,
        model: str,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[Any]:
        """Lets the model call tools as ``run`` does, until it gives its answer as a value of a type.

        The model answers by calling one more tool, ``final_answer``, whose arguments have the type's schema. By
        default, ``tool_choice`` is "required" in each turn, so that it cannot answer otherwise.

        Args:
            type: Type of the value; see ``json_schema``.
            model: As for ``complete``.
            messages: The conversation so far.
            tools: As for ``run``; none of them may be called ``final_answer``.
            options: See ``ParseRunOptions``. ``before_tool`` is not called for the answer.

        Returns:
            The run, whose result has the ``value``.

        Raises:
            TypeError: The type has no JSON form, or as for ``run``.
        """
        required = {"model": model, "messages": messages}
        run = run_arguments.create_run(self._engine, "parse_run", required, tools, options, type)
        return cast("run_module.ParsedRun[Any]", run)

    def _stream(self, required: Mapping[str, object], options: Mapping[str, object]) -> ChatStream:
        arguments = PARAMETERS.encode("stream", required, options, stream_fields(options))
        n = requested_choices(options)
        return ChatStream(self._engine.opening(COMPLETE, arguments, lambda: ChatCollector(n)))


class ContainerChat(Chat):
    """Chat with a self-hosted engine, which serves one model: ``client.container.chat``."""

    async def complete(
        self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]
    ) -> ChatCompletion:
        """Generates an answer; see ``Chat.complete``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        return await self._engine.call(COMPLETE, PARAMETERS.encode("complete", required, options))

    def stream(self, *, model: str | None = None, messages: Messages, **options: Unpack[ChatOptions]) -> ChatStream:
        """Streams an answer; see ``Chat.stream``. ``model`` selects an adapter route."""
        return self._stream({**without_none(model=model), "messages": messages}, options)

    @overload
    async def parse(
        self, type: TypeForm[T], /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[T]: ...

    @overload
    async def parse(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[Any]: ...

    async def parse(
        self, type: Any = ..., /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseOptions]
    ) -> structured.ParsedCompletion[Any]:
        """Generates and parses an answer; see ``Chat.parse``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        return await structured.OUTPUT.parse(self._engine, type, required, options)

    @overload
    def parse_stream(
        self,
        type: TypeForm[T],
        /,
        *,
        model: str | None = None,
        messages: Messages,
        **options: Unpack[ParseStreamOptions],
    ) -> structured.ParsedChatStream[T]: ...

    @overload
    def parse_stream(
        self, type: Any, /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedChatStream[Any]: ...

    def parse_stream(
        self, type: Any = ..., /, *, model: str | None = None, messages: Messages, **options: Unpack[ParseStreamOptions]
    ) -> structured.ParsedChatStream[Any]:
        """Streams a structured answer; see ``Chat.parse_stream``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        return structured.ParsedChatStream(*structured.OUTPUT.opening(self._engine, type, required, options))

    def run(
        self, *, model: str | None = None, messages: Messages, tools: Sequence[LocalTool], **options: Unpack[RunOptions]
    ) -> run_module.Run:
        """Runs a chat with local tools; see ``Chat.run``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        return run_arguments.create_run(self._engine, "run", required, tools, options)

    @overload
    def parse_run(
        self,
        type: TypeForm[T],
        /,
        *,
        model: str | None = None,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[T]: ...

    @overload
    def parse_run(
        self,
        type: Any,
        /,
        *,
        model: str | None = None,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[Any]: ...

    def parse_run(
        self,
        type: Any = ...,
        /,
        *,
        model: str | None = None,
        messages: Messages,
        tools: Sequence[LocalTool],
        **options: Unpack[ParseRunOptions],
    ) -> run_module.ParsedRun[Any]:
        """Runs a chat with local tools for a value; see ``Chat.parse_run``. ``model`` selects an adapter route."""
        required = {**without_none(model=model), "messages": messages}
        run = run_arguments.create_run(self._engine, "parse_run", required, tools, options, type)
        return cast("run_module.ParsedRun[Any]", run)
