"""Pydantic AI: Friendli's models as a model of an agent.

    from pydantic_ai import Agent
    from friendli_async.integrations.pydantic_ai import FriendliModel

    agent = Agent(FriendliModel("meta-llama-3.1-8b-instruct", client=client), output_type=City)
    city = (await agent.run("Where is the Louvre?")).output

Extra: ``pip install 'friendli_async[pydantic-ai]'``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, cast, get_args

from friendli_async import AsyncFriendli
from friendli_async._core.events.decoding import is_finish_reason
from friendli_async._json import json_or_none
from friendli_async.asgi import error_body
from friendli_async.chat import Chat, ChatChunk, ChatStream, FunctionCallDelta
from friendli_async.chat.replies import REASONING_EXTRAS
from friendli_async.client import DeploymentName
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ResponseDecodeError,
    StreamInterruptedError,
    UsageLimitError,
)
from friendli_async.integrations._chat_of import chat_of
from friendli_async.options import check_choice
from friendli_async.replies import CALL_EXTRAS

try:
    from pydantic_ai import RunContext
    from pydantic_ai import exceptions as theirs
    from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse, check_allow_model_requests
    from pydantic_ai.profiles import ModelProfile, ModelProfileSpec
    from pydantic_ai.profiles.openai import OpenAIJsonSchemaTransformer
    from pydantic_ai.settings import ModelSettingName, ModelSettings, ToolOrOutput
except ImportError as _missing:
    raise ImportError("this needs Pydantic AI: pip install 'friendli_async[pydantic-ai]'") from _missing

from friendli_async.integrations._pydantic_ai_messages import (
    FINISH_REASONS,
    PROVIDER,
    details_of,
    ending_of,
    parts_of,
    request_usage,
    wire_messages,
)

__all__ = ["FriendliModel"]

_SETTINGS: Final = (
    *("max_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "logit_bias"),
    *("parallel_tool_calls", "stop_sequences", "extra_body"),
)
"""Pydantic AI's settings that the chat API supports."""
_RENAMED: Final = {"stop_sequences": "stop"}

_CATEGORIES: Final[dict[int, Any]] = {
    400: theirs.ModelRequestRejectedError,
    401: theirs.ModelAuthenticationError,
    402: theirs.ModelQuotaExceededError,
    403: theirs.ModelAuthenticationError,
    404: theirs.ModelNotFoundError,
    422: theirs.ModelRequestRejectedError,
    429: theirs.ModelRateLimitError,
    503: theirs.ModelUnavailableError,
}

_PHASES: Final[dict[str, Literal["pool", "connect", "read"]]] = {
    "pool": "pool",
    "connect": "connect",
    "first_event": "read",
    "idle": "read",
}


@dataclass(init=False, eq=False, repr=False)  # for the fields that the methods of ``Model`` compare and show
class FriendliModel(Model[AsyncFriendli]):
    """A Pydantic AI model over the ``chat`` API of a deployment.

    Supports text, thinking, tools, typed output by tools, JSON schema (``NativeOutput``) and prompt, and images, audio
    and video in prompts. Leaving a streamed run stops the model.

    Pydantic AI's settings keep their meaning. ``timeout`` covers the whole call including retries, and ``max_retries``
    counts attempts after the first; the client's other timeouts and the rest of its retry policy stay.
    ``thinking=False`` is sent as ``reasoning_budget=0``, and an effort as ``reasoning_effort``. Any other parameter of
    the API goes into ``extra_body``.

    Args:
        model: Model name, or endpoint id of a dedicated deployment.
        client: The client to use; the caller closes it. By default the model creates its own from the environment, and
            closes it when the model is collected.
        deployment: Where the model runs.
        profile: Capabilities of the model; overrides what is known of the API.
        settings: Default settings.

    Raises:
        pydantic_ai.ModelHTTPError: An error status, as the subclass of its category (``ModelRateLimitError``, ...).
        pydantic_ai.exceptions.ModelConnectionError: No response, or a truncated one; ``ModelTimeoutError`` on timeout.
        pydantic_ai.UnexpectedModelBehavior: A malformed response.
        pydantic_ai.UsageLimitExceeded: The ``usage_limit`` of the client is reached. For this and the errors above,
            ``__cause__`` is this library's error.
        ConfigurationError: No token, or another configuration error. This one, and errors in arguments, are not
            wrapped.
        TypeError: ``model`` is not text, or ``client`` is of another library.
        ArgumentError: Unknown ``deployment``.
    """

    _unsupported_file_inputs = frozenset({"document"})
    _relocates_tool_files = True  # the API accepts only text from tools: files go into a user message after it
    unsupported_settings: ClassVar[frozenset[ModelSettingName]] = frozenset({"service_tier"})

    _name: str = field(repr=False)
    _deployment: DeploymentName
    _client: AsyncFriendli = field(repr=False)

    def __init__(
        self,
        model: str,
        *,
        client: AsyncFriendli | None = None,
        deployment: DeploymentName = "serverless",
        profile: ModelProfileSpec | None = None,
        settings: ModelSettings | None = None,
    ) -> None:
        if not isinstance(cast("object", model), str):
            raise TypeError(f"model must be text, not {type(model).__name__}")
        if client is not None and not isinstance(cast("object", client), AsyncFriendli):
            raise TypeError(f"client must be an AsyncFriendli, not {type(client).__name__}")
        check_choice("deployment", deployment, get_args(DeploymentName))
        super().__init__(settings=settings, profile=profile)
        self._name = model
        self._deployment = deployment
        self._client = AsyncFriendli() if client is None else client

    @property
    def model_name(self) -> str:
        """The model name."""
        return self._name

    @property
    def system(self) -> str:
        """The provider name."""
        return PROVIDER

    def _provider_model_profile(self) -> ModelProfile:
        return ModelProfile(
            supports_json_schema_output=True,
            supports_json_object_output=True,
            supports_thinking=True,
            json_schema_transformer=OpenAIJsonSchemaTransformer,
        )

    # --- calls -------------------------------------------------------------------------------------------------------

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Makes a request; called by the agent."""
        check_allow_model_requests()
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        arguments = await self._arguments(messages, settings or {}, parameters)
        with _their_errors(self._name):
            reply = await self._chat(settings or {}).complete(**arguments)
        finish_reason, details = ending_of(reply.choices[0])
        return ModelResponse(
            parts=parts_of(reply.message),
            usage=request_usage(reply.usage),
            model_name=reply.model or self._name,
            provider_name=PROVIDER,
            provider_response_id=reply.id,
            provider_details=details,
            finish_reason=finish_reason,
        )

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Makes a request and streams the answer; called by the agent. Leaving stops the model."""
        check_allow_model_requests()
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        arguments = await self._arguments(messages, settings or {}, parameters)
        stream = self._chat(settings or {}).stream(**arguments)
        try:
            with _their_errors(self._name):
                await stream
            yield _StreamedAnswer(model_request_parameters=parameters, _name=self._name, _stream=stream)
        finally:
            await stream.aclose()

    def _chat(self, settings: ModelSettings) -> Chat:
        timeout = settings.get("timeout")
        if not isinstance(timeout, int | float | None):
            raise theirs.UserError(
                "timeout: must be a number of seconds; for finer limits, pass timeout=Timeouts(...) to the client"
            )
        changes: dict[str, Any] = {"headers": settings["extra_headers"]} if "extra_headers" in settings else {}
        return chat_of(
            self._client, self._deployment, changes, timeout=timeout, max_retries=settings.get("max_retries")
        )

    async def _arguments(
        self, messages: list[ModelMessage], settings: ModelSettings, parameters: ModelRequestParameters
    ) -> dict[str, Any]:
        instructions = self._get_instruction_parts(messages, parameters) or ()
        arguments: dict[str, Any] = {
            "model": self._name,
            "messages": await wire_messages(messages, [part.content for part in instructions]),
        }
        given = cast("Mapping[str, object]", settings)
        arguments |= {_RENAMED.get(name, name): given[name] for name in _SETTINGS if given.get(name) is not None}
        if parameters.thinking is False:
            arguments["reasoning_budget"] = 0
        elif isinstance(parameters.thinking, str):
            arguments["reasoning_effort"] = parameters.thinking
        arguments |= _tools(settings, parameters)
        if (form := _response_format(parameters, with_tools="tools" in arguments)) is not None:
            arguments["response_format"] = form
        return arguments


def _response_format(parameters: ModelRequestParameters, *, with_tools: bool) -> dict[str, Any] | None:
    output = parameters.output_object
    if parameters.output_mode == "native" and output is not None:
        schema: dict[str, Any] = {"name": output.name or "output", "schema": output.json_schema}
        optional = {"description": output.description or None, "strict": output.strict}
        schema |= {name: value for name, value in optional.items() if value is not None}
        return {"type": "json_schema", "json_schema": schema}
    if parameters.output_mode == "prompted" and not with_tools:
        return {"type": "json_object"}
    return None


def _tools(settings: ModelSettings, parameters: ModelRequestParameters) -> dict[str, Any]:
    """Returns the tools and the tool choice of a request."""
    names, choice = _allowed(settings, parameters)
    offered = [tool for name, tool in parameters.declared_tool_defs.items() if name in names or not names]
    if not offered:
        return {}
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.parameters_json_schema,
            },
        }
        for tool in offered
    ]
    if names and choice == "required" and len(offered) == 1:
        return {"tools": tools, "tool_choice": {"type": "function", "function": {"name": offered[0].name}}}
    return {"tools": tools, "tool_choice": choice}


def _allowed(settings: ModelSettings, parameters: ModelRequestParameters) -> tuple[set[str], str]:
    """Returns the names of the tools to offer (all if there are none), and the mode of the tool choice."""
    wanted = settings.get("tool_choice")
    default = "auto" if parameters.allow_text_output or parameters.allow_image_output else "required"
    if wanted is None or wanted == "auto":
        return set(), default
    if wanted == "required":
        wanted = [tool.name for tool in parameters.function_tools]
    elif wanted == "none" or not wanted:
        wanted = ToolOrOutput([])
    names = {*(wanted.function_tools if isinstance(wanted, ToolOrOutput) else wanted)}
    if names and not names & parameters.declared_tool_defs.keys():
        raise theirs.UserError(f"tool_choice: unknown tool {', '.join(sorted(names))}")
    if isinstance(wanted, ToolOrOutput):
        names |= {tool.name for tool in parameters.output_tools}
        return names, default if names else "none"
    return names, "required"


@dataclass
class _StreamedAnswer(StreamedResponse):
    """Converts a streamed answer to Pydantic AI's events."""

    _name: str
    _stream: ChatStream
    _timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))
    _usage_received: bool | None = field(default=False, init=False)  # not None: a server may report no usage

    @property
    def model_name(self) -> str:
        return self._name

    @property
    def provider_name(self) -> str:
        return PROVIDER

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self._timestamp

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        return (StreamInterruptedError,)

    async def close_stream(self) -> None:
        await self._stream.aclose()

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        with _their_errors(self._name):
            async for chunk in self._stream:
                for event in self._events(chunk):
                    yield event
            if self._stream.outcome == "done":
                reply = await self._stream.result()
                message = reply.message
                if message.refusal:
                    self.finish_reason, self.provider_details = ending_of(reply.choices[0])
                if (details := details_of(message, REASONING_EXTRAS)) is not None:  # whole, rather than in pieces
                    for event in self._parts_manager.handle_thinking_delta(
                        vendor_part_id=None, provider_name=PROVIDER, provider_details=details
                    ):
                        yield event

    def _events(self, chunk: ChatChunk) -> Iterator[ModelResponseStreamEvent]:
        if chunk.usage is not None:
            self._add_usage(request_usage(chunk.usage), reported=True, cumulative=True)
        if chunk.id:
            self.provider_response_id = chunk.id
        if chunk.model:
            self._name = chunk.model
        for choice in chunk.choices:
            if choice.index != 0:
                continue
            if is_finish_reason(choice.finish_reason):
                self.finish_reason = FINISH_REASONS.get(choice.finish_reason)
                self.provider_details = {"finish_reason": choice.finish_reason}
            parts = self._parts_manager
            if chunk.reasoning:
                yield from parts.handle_thinking_delta(
                    vendor_part_id=None, content=chunk.reasoning, provider_name=PROVIDER
                )
            if chunk.text:
                yield from parts.handle_text_delta(vendor_part_id=None, content=chunk.text)
            for delta in choice.delta.tool_calls or ():
                function = delta.function or FunctionCallDelta()
                details = details_of(delta, CALL_EXTRAS)
                yield from parts.handle_tool_call_delta_events(
                    vendor_part_id=delta.index,
                    tool_name=function.name,
                    args=function.arguments,
                    tool_call_id=delta.id,
                    provider_name=None if details is None else PROVIDER,
                    provider_details=details,
                )


# --- errors ----------------------------------------------------------------------------------------------------------


@contextmanager
def _their_errors(model: str) -> Generator[None]:
    """Converts this library's errors to Pydantic AI's, so that its fallbacks and retries recognize them."""
    try:
        yield
    except APIStatusError as error:
        raise _status_error(error, model) from error
    except APITimeoutError as error:
        raise theirs.ModelTimeoutError(model, _message(error), phase=_PHASES.get(error.limit)) from error
    except APIConnectionError as error:
        raise theirs.ModelConnectionError(model, _message(error), phase="read" if error.sent else "connect") from error
    except ResponseDecodeError as error:
        raise theirs.UnexpectedModelBehavior(str(error), error.excerpt) from error
    except UsageLimitError as error:
        raise theirs.UsageLimitExceeded(str(error)) from error


def _message(error: APIConnectionError) -> str:
    """Returns a message that names no server or proxy: Pydantic AI's UI adapters send it to browsers."""
    message: str = error_body(error)["error"]["message"]
    return message


def _status_error(error: APIStatusError, model: str) -> theirs.ModelAPIError:
    in_stream = error.meta is not None and error.meta.status == 200
    details: dict[str, Any] = {
        "body": _body(error),
        "provider_error_code": error.code,
        "provider_error_type": error.type,
        "retry_after": error.retry_after,
        "in_stream": in_stream,
    }
    if error.status_code < 300:  # an error event in a stream, without a status
        return theirs.ModelAPIError(model, str(error), **details)
    category = _CATEGORIES.get(error.status_code)
    if category is None and error.status_code >= 500:
        category = theirs.ModelServerError
    headers = None if error.meta is None else error.meta.headers
    return theirs.ModelHTTPError.for_category(
        category, status_code=error.status_code, model_name=model, headers=headers, **details
    )


def _body(error: APIStatusError) -> object:
    body = json_or_none(error.body)
    return error.body or error.message if body is None else body
