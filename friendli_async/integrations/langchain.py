"""LangChain: Friendli's models as a chat model.

    from friendli_async.integrations.langchain import ChatFriendli

    model = ChatFriendli(model="meta-llama-3.1-8b-instruct")
    async for piece in model.astream("Hello!"):
        print(piece.text, end="")

Extra: ``pip install 'friendli_async[langchain]'``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Literal, cast

import msgspec

from friendli_async import AsyncFriendli
from friendli_async.blocking import iterate, run
from friendli_async.chat import Chat, json_schema
from friendli_async.client import DeploymentName
from friendli_async.errors import ArgumentError
from friendli_async.integrations._chat_of import chat_of

try:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.language_models.base import LangSmithParams
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
    from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
    from langchain_core.outputs import ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
    from langchain_core.tools import BaseTool
    from langchain_core.utils import secret_from_env
    from langchain_core.utils.function_calling import convert_to_openai_tool
    from langchain_core.utils.pydantic import is_basemodel_subclass
    from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr
except ImportError as _missing:
    raise ImportError("this needs langchain-core: pip install 'friendli_async[langchain]'") from _missing

from friendli_async.integrations._langchain_messages import PROVIDER, answers_of, last_chunk, read_chunk, wire_messages

__all__ = ["ChatFriendli"]

_Schema = Mapping[str, Any] | type


class ChatFriendli(BaseChatModel):
    """A LangChain chat model over the ``chat`` API of a deployment.

    Supports tools, structured output (by JSON schema unless ``method`` is given), token usage of plain and streamed
    answers, and images, audio and video in messages. Reasoning is in ``additional_kwargs["reasoning_content"]``, and
    therefore among ``content_blocks``. Further parameters of ``ChatOptions`` go into ``model_kwargs``, ``bind``, or a
    single call.

    Leaving a stream stops the model: at once with ``aclosing`` or ``close``; after a plain ``break`` as soon as Python
    collects the stream. Blocking methods run in one background loop, with the same client.

    The caller closes a ``client`` that is passed in. Otherwise the model creates its own on first use, and closes it
    when the model is collected, or in ``aclose`` and ``close``.

    Raises:
        FriendliError: A call failed. Errors are raised unwrapped, so that
            ``with_fallbacks(..., exceptions_to_handle=(APIStatusError,))`` and ``except RateLimitError`` work.
        ValueError: Input that the API cannot represent; nothing was sent.
        TypeError: An unknown parameter.
    """

    # Validation errors must not show inputs: one of them may be the key, under a misspelt name.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", hide_input_in_errors=True)

    model: str
    """Model name, or endpoint id of a dedicated deployment."""
    deployment: DeploymentName = "serverless"
    """Where the model runs."""
    api_key: SecretStr | None = Field(default_factory=secret_from_env("FRIENDLI_TOKEN", default=None))
    """Friendli token; by default ``FRIENDLI_TOKEN``, or the client's."""
    base_url: str | None = None
    """URL of the server or container; by default the environment's, or the client's."""
    client: AsyncFriendli | None = Field(default=None, exclude=True)
    """The client to use. Other fields set on this model override its settings."""
    temperature: float | None = None
    """Sampling temperature."""
    max_tokens: int | None = None
    """Maximum number of tokens to generate."""
    stop: list[str] | None = None
    """Sequences that end the generation."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds for a whole call including retries; by default the client's. The client's other timeouts stay."""
    max_retries: int | None = Field(default=None, ge=0)
    """Attempts after the first one; by default the client's. The rest of the client's retry policy stays."""
    streaming: bool = False
    """Whether ``invoke`` streams, so that callbacks get each token."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Further parameters of ``ChatOptions`` for every call."""

    _own: AsyncFriendli | None = PrivateAttr(default=None)

    # --- hooks of BaseChatModel --------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "friendli-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The parameters that answers depend on: the key of LangChain's caches."""
        names = ("model", "deployment", "base_url", "temperature", "max_tokens", "stop", "model_kwargs")
        return {name: getattr(self, name) for name in names}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        return params

    # --- calls -------------------------------------------------------------------------------------------------------

    def _chat(self) -> Chat:
        client = self.client
        if client is None:
            if self._own is None:
                self._own = AsyncFriendli()
            client = self._own
        changes: dict[str, Any] = {}
        # The key from the environment does not override the token of a client that was passed in.
        if self.api_key is not None and (self.client is None or "api_key" in self.model_fields_set):
            changes["token"] = self.api_key.get_secret_value()
        if self.base_url is not None:
            changes["container_url" if self.deployment == "container" else "server_url"] = self.base_url
        return chat_of(client, self.deployment, changes, timeout=self.timeout, max_retries=self.max_retries)

    def _arguments(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "stop": stop or self.stop,
        }
        arguments = {name: value for name, value in fields.items() if value is not None}
        arguments |= {"model": self.model, **self.model_kwargs, **kwargs}
        arguments.pop("stream", None)  # LangChain's own flag
        return {**arguments, "messages": wire_messages(messages)}

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = await self._chat().complete(**self._arguments(messages, stop, kwargs))
        output: dict[str, Any] = {"model_name": reply.model or self.model, "model_provider": PROVIDER}
        if reply.usage is not None:
            output["token_usage"] = msgspec.to_builtins(reply.usage)
        return ChatResult(generations=answers_of(reply, self.model), llm_output=output)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        arguments = self._arguments(messages, stop, kwargs)
        if arguments.get("n") not in (None, 1):
            raise ArgumentError("a LangChain stream supports only one choice; use generate() without streaming", "n")
        async with self._chat().stream(**arguments) as stream:
            async for event in stream:
                if (chunk := read_chunk(event)) is not None:
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
            yield last_chunk(await stream.result(), self.model)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return run(self._agenerate(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in iterate(self._astream(messages, stop, **kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    # --- tools and structured output ---------------------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Binds tools to the model.

        Args:
            tools: Functions, LangChain tools, pydantic models, or JSON schemas.
            tool_choice: "auto", "none", "required" (also "any" or True), the name of a tool, or the API's own format.
            strict: Whether arguments must match the schema, for servers that support it.
            kwargs: Further parameters of the calls.

        Returns:
            The model with its tools.
        """
        offered = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        names = [tool.get("function", {}).get("name") for tool in offered]
        if tool_choice is True or tool_choice == "any":
            tool_choice = "required"
        elif isinstance(tool_choice, str) and tool_choice in names:
            tool_choice = {"type": "function", "function": {"name": tool_choice}}
        if tool_choice:
            kwargs["tool_choice"] = tool_choice
        return self.bind(tools=offered, **kwargs)

    def with_structured_output(
        self,
        schema: _Schema | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Makes the model answer with a value that matches a schema.

        Args:
            schema: A pydantic model, a TypedDict, or a JSON schema with a title. Optional with "json_mode".
            method: "json_schema" constrains the answer to the schema, "function_calling" makes the model call a
                function with those parameters, "json_mode" asks for any JSON, whose shape the prompt has to describe.
            include_raw: Return ``raw``, ``parsed`` and ``parsing_error`` instead of raising.
            strict: Whether all properties are required and no others allowed; with "json_schema", the default for
                pydantic models.
            kwargs: Further parameters of the calls.

        Returns:
            The model followed by a parser.

        Raises:
            ValueError: The schema is missing, or ``method`` is unknown.
        """
        model: Runnable[LanguageModelInput, AIMessage]
        asked: dict[str, Any] = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        bound: dict[str, Any] = {"ls_structured_output_format": asked, **kwargs}
        if schema is None and method != "json_mode":
            raise ArgumentError(f"required for method {method!r}", "schema")
        if method == "json_mode":
            model = self.bind(response_format={"type": "json_object"}, **bound)
            parser = _parser(schema)
        elif method == "json_schema":
            form = _response_format(cast("_Schema", schema), strict)
            asked["schema"] = convert_to_openai_tool(cast("Any", schema))
            model = self.bind(response_format=form, **bound)
            parser = _parser(schema)
        elif method == "function_calling":
            asked["schema"] = tool = convert_to_openai_tool(cast("Any", schema), strict=strict)
            name: str = tool["function"]["name"]
            model = self.bind_tools([cast("Any", schema)], tool_choice=name, strict=strict, **bound)
            parser = _call_parser(cast("_Schema", schema), name)
        else:
            raise ArgumentError(f"must be 'json_schema', 'function_calling' or 'json_mode', not {method!r}", "method")
        return _with_raw(model, parser) if include_raw else model | parser

    # --- closing -----------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Closes the client that the model has created; one that was passed in stays open."""
        own, self._own = self._own, None
        if own is not None:
            await own.aclose()

    def close(self) -> None:
        """Does the same as ``aclose``, blocking."""
        if self._own is not None:
            run(self.aclose())


def _response_format(schema: _Schema, strict: bool | None) -> dict[str, Any]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):  # pydantic v2 only
        form: dict[str, Any] = {"name": schema.__name__, "schema": json_schema(schema, strict=strict is not False)}
    else:
        function = convert_to_openai_tool(cast("Any", schema), strict=strict)["function"]
        form = {"name": function["name"], "schema": function["parameters"]}
    if strict is not None:
        form["strict"] = strict
    return {"type": "json_schema", "json_schema": form}


def _parser(schema: _Schema | None) -> BaseOutputParser[Any]:
    if is_basemodel_subclass(cast("Any", schema)):
        return PydanticOutputParser[Any](pydantic_object=cast("type[BaseModel]", schema))
    return JsonOutputParser()


def _call_parser(schema: _Schema, name: str) -> BaseOutputParser[Any]:
    if is_basemodel_subclass(cast("Any", schema)):
        return PydanticToolsParser(tools=[cast("type[BaseModel]", schema)], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)


def _with_raw(model: Runnable[Any, Any], parser: BaseOutputParser[Any]) -> Runnable[Any, Any]:
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
