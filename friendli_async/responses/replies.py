"""What the Responses API answers: responses, and the errors of those that failed."""

from __future__ import annotations

import json
from typing import ClassVar, Final, Literal, cast

import msgspec

from friendli_async._core.status_errors import error_of_payload
from friendli_async._core.text import joined
from friendli_async.errors import APIStatusError
from friendli_async.replies import FunctionCall, Headers, Reply, ToolCall, Value, always, partial_of

__all__: list[str] = ["AnyItem", "ContentPart", "InputTokensDetails", "ItemStatus", "OutputItem", "OutputTokensDetails"]
__all__ += ["IncompleteDetails", "Response", "ResponseError", "ResponseStatus", "ResponseUsage"]

ItemStatus = Literal["in_progress", "completed", "incomplete"] | str  # open
ResponseStatus = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"] | str  # open


class ContentPart(Value, frozen=True):
    """A piece of a message or of reasoning."""

    type: Literal["output_text", "reasoning_text", "summary_text", "refusal"] | str = always("output_text")  # open
    text: str = always("")
    refusal: str | None = None
    """Why the model would not answer, where ``type`` is "refusal"."""


class AnyItem(msgspec.Struct, frozen=True):
    """What every item of an input is: by it type checkers take a list of several kinds for an input."""


_REQUIRED: Final = {
    "function_call": ("call_id", "name", "arguments"),
    "custom_tool_call": ("call_id", "name", "input"),
}
"""What a request must say of an item, by its type."""


class OutputItem(Value, AnyItem, frozen=True, kw_only=True):
    """One thing that the model made. It can be put into the next call's ``input`` as it is.

    ``type`` says what it is, and so which fields it has: a "message" has ``role`` and ``content``; "reasoning" has
    ``summary`` and ``content``; a "function_call" has ``call_id``, ``name`` and ``arguments``; a "custom_tool_call" has
    ``input`` in their place.
    """

    type: Literal["message", "reasoning", "function_call", "custom_tool_call"] | str = always("message")  # open
    id: str | None = None
    status: ItemStatus | None = None
    role: Literal["assistant"] | str | None = None  # open
    content: tuple[ContentPart, ...] | None = None
    summary: tuple[ContentPart, ...] | None = None
    call_id: str | None = None
    """What the output of the call has to refer to."""
    name: str | None = None
    arguments: str | None = None
    """JSON text as the model wrote it: not necessarily valid."""
    input: str | None = None
    """What a custom tool is to be given: free text."""

    @property
    def text(self) -> str:
        """The text of a message; "" for everything else."""
        return joined(part.text for part in self.content or () if part.type in {"output_text", "text"})

    @property
    def reasoning(self) -> str:
        """The text of a reasoning item, or where it has none its summary; "" for everything else."""
        text = joined(part.text for part in self.content or () if part.type == "reasoning_text")
        return text or joined(part.text for part in self.summary or ())

    @property
    def tool_call(self) -> ToolCall | None:
        """The call that the model wants made, where it is one; its ``id`` is the ``call_id``."""
        if self.type == "function_call" or (self.type == "message" and self.arguments is not None):
            return ToolCall(self.call_id or "", "function", FunctionCall(self.name or "", self.arguments or ""))
        if self.type == "custom_tool_call":
            return ToolCall(self.call_id or "", "custom", FunctionCall(self.name or "", self.input or ""))
        return None

    def as_input(self) -> dict[str, object]:
        """The item as the API takes it: what a reply may leave out and a request may not is filled in."""
        item = cast("dict[str, object]", msgspec.to_builtins(self))
        if self.type == "message":
            return {"type": "message", "role": self.role or "assistant", "content": item.get("content") or []}
        if self.type == "reasoning":
            return {**item, "id": self.id or "", "summary": item.get("summary") or []}
        return {**item, **{name: item.get(name) or "" for name in _REQUIRED.get(self.type, ())}}


class InputTokensDetails(Value, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int | None = None


class OutputTokensDetails(Value, frozen=True):
    """What the generated tokens were spent on."""

    reasoning_tokens: int | None = None


class ResponseUsage(Value, frozen=True):
    """Tokens that a response was billed for."""

    input_tokens: int = always(0)
    output_tokens: int = always(0)
    total_tokens: int = always(0)
    input_tokens_details: InputTokensDetails | None = None
    output_tokens_details: OutputTokensDetails | None = None


class IncompleteDetails(Value, frozen=True):
    """Why a response was cut short."""

    reason: Literal["max_output_tokens"] | str | None = None  # open


class ResponseError(Value, frozen=True):
    """Why a response failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"] | str | None = None  # open
    message: str | None = None


class Response(Reply, frozen=True, kw_only=True):
    """A whole response, of ``create`` or put together from a stream."""

    answered_by: ClassVar[tuple[str, ...]] = ("output", "status", "error")

    id: str = always("")
    output: tuple[OutputItem, ...]
    """What the model made, in order: ready for the next call's ``input``."""
    object: str = always("response")
    created_at: int | float | None = None
    """Unix time in seconds."""
    model: str | None = None
    status: ResponseStatus | None = None
    """"completed", or "incomplete" where it was cut short."""
    incomplete_details: IncompleteDetails | None = None
    error: ResponseError | None = None
    usage: ResponseUsage | None = None

    @property
    def text(self) -> str:
        """The text of its messages; "" where it has none."""
        return "".join(item.text for item in self.output)

    @property
    def reasoning(self) -> str:
        """The text of its reasoning; "" where it has none."""
        return "".join(item.reasoning for item in self.output)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the model wants made; what they give goes back under their ``id``, as ``call_id``."""
        return tuple(call for item in self.output if (call := item.tool_call) is not None)


_OF_THE_REQUEST: Final = frozenset(
    {
        *("invalid_prompt", "invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url"),
        *("image_too_large", "image_too_small", "image_parse_error", "image_content_policy_violation"),
        *("invalid_image_mode", "image_file_too_large", "unsupported_image_media_type", "empty_image_file"),
        *("failed_to_download_image", "image_file_not_found"),
    }
)
"""Codes of errors that the request is to blame for; the others are the server's own."""


def response_failure(response: Response, status: int, headers: Headers) -> APIStatusError:
    """The error of a response that failed.

    Args:
        response: The response.
        status: The HTTP status that it came with: the error's own, where its code names none.
        headers: The reply's headers.
    """
    error = response.error or ResponseError()
    body = {"code": error.code, "message": error.message or "the response failed"}
    said = {"error": body}
    if error.code in _OF_THE_REQUEST:
        status = 400
    elif error.code == "vector_store_timeout":
        status = 504
    return error_of_payload(said, json.dumps(said).encode(), status, headers)


def raise_if_failed(response: Response) -> None:
    """Raises the error of a response that failed, as it came: with a good status."""
    if response.status != "failed":
        return
    meta = response.meta
    error = response_failure(response, meta.status or 200, meta.headers)
    error.meta, error.partial = meta, partial_of(response)
    raise error
