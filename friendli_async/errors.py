"""What can go wrong, one class each.

    FriendliError                     root; ``.meta`` (None before any attempt), ``.partial`` (of an open stream)
    ├── ConfigurationError            also a ValueError: nothing was sent
    ├── APIConnectionError            no usable reply; ``.sent``: whether the request can have been accepted
    │   ├── APITimeoutError           also a TimeoutError; ``.limit`` says which limit, ``.seconds`` how long it was
    │   └── StreamInterruptedError    the stream ended early
    ├── APIStatusError                the server said no: 4XX, 5XX, or an error inside a stream
    │   ├── BadRequestError 400 · AuthenticationError 401 · PermissionDeniedError 403 · NotFoundError 404
    │   ├── ConflictError 409 · UnprocessableEntityError 422 · RateLimitError 429
    │   └── InternalServerError >= 500
    ├── ResponseDecodeError           not what the API promises, or beyond a size limit
    │   └── OutputError               an answer is no value of the type that was asked for; ``.text``, ``.path``
    │       ├── OutputCutOffError     it ended before it was complete
    │       └── OutputInvalidError    no JSON, or it does not fit; or a refusal, or a tool call, instead
    ├── ToolError                     a tool that runs here did not do what the model asked for
    └── TurnLimitError                a run with tools was not over after ``max_turns``

Errors hold plain data only: they can be pickled and copied, and never hold the token or a request header. A bad
argument is a ``TypeError`` (unknown keyword) or an ``ArgumentError`` (bad value, a ``ValueError``), not in this tree:
it is a bug in the call, or in what the call was made of.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from friendli_async.replies import Meta, Partial, Reply, ToolCall, Usage

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "ArgumentError"]
__all__ += ["AuthenticationError", "BadRequestError"]
__all__ += ["ConfigurationError", "ConflictError", "FriendliError", "InternalServerError", "NotFoundError"]
__all__ += ["OutputCutOffError", "OutputError", "OutputInvalidError"]
__all__ += ["PermissionDeniedError", "RateLimitError", "ResponseDecodeError", "SDKError", "StreamInterruptedError"]
__all__ += ["TimeoutLimit", "ToolError", "ToolProblem", "TurnLimitError", "UnprocessableEntityError"]

TimeoutLimit = Literal["connect", "pool", "first_event", "idle", "total"]
"""Names of the time limits, as in ``Timeouts``."""

ToolProblem = Literal["unknown", "arguments", "refused", "timeout", "failed", "result"]
"""What was wrong with a tool call: there is no such tool; the arguments do not fit; ``before_tool`` said no; it took
longer than ``tool_timeout``; it raised an exception; its result is not JSON."""


class ArgumentError(ValueError):
    """A value in the arguments of a call that the API would not take, with its path. Nothing was sent."""


class FriendliError(Exception):
    """Root of everything that this library raises about a call.

    Attributes:
        meta: Status, headers, request id and attempts of the call; None where no attempt had begun.
        partial: What an open stream had received before it failed; None for everything else.
    """

    # Attributes beyond the message are set after construction or by keyword, each with a default: so the default
    # pickling of exceptions, which calls the class with its message and then restores __dict__, just works.
    meta: Meta | None = None
    partial: Partial | None = None

    def __init__(self, message: str = "", *, meta: Meta | None = None, partial: Partial | None = None) -> None:
        super().__init__(message)
        self.meta = meta
        self.partial = partial


class ConfigurationError(FriendliError, ValueError):
    """The client cannot be used as it is set up: no token, a bad URL, a closed client. Nothing was sent."""


class APIConnectionError(FriendliError):
    """There was no usable reply.

    Attributes:
        sent: Whether the request can have been accepted (and billed). False: it never left.
        hopeless: Whether another try would only bring it again (a refused certificate, versions of TLS that do not
            meet, a proxy that says no): then there is none.
    """

    sent: bool = False
    hopeless: bool = False

    def __init__(
        self, message: str = "", *, sent: bool = False, meta: Meta | None = None, partial: Partial | None = None
    ) -> None:
        super().__init__(message, meta=meta, partial=partial)
        self.sent = sent


class APITimeoutError(APIConnectionError, TimeoutError):
    """A time limit was reached.

    Attributes:
        limit: Which one, by its name in ``Timeouts``.
        seconds: How long it was.
    """

    limit: TimeoutLimit = "total"
    seconds: float = 0.0

    def __init__(
        self,
        message: str = "",
        *,
        limit: TimeoutLimit = "total",
        seconds: float = 0.0,
        sent: bool = False,
        meta: Meta | None = None,
        partial: Partial | None = None,
    ) -> None:
        super().__init__(message, sent=sent, meta=meta, partial=partial)
        self.limit = limit
        self.seconds = seconds


class StreamInterruptedError(APIConnectionError):
    """A stream ended before it was complete; ``partial`` holds what had arrived."""

    def __init__(
        self, message: str = "", *, sent: bool = True, meta: Meta | None = None, partial: Partial | None = None
    ) -> None:
        super().__init__(message, sent=sent, meta=meta, partial=partial)


class APIStatusError(FriendliError):
    """The server answered with an error.

    Attributes:
        status_code: The status that the error stands for. Of an error inside a stream it is the one that the error's
            code or type names (``meta.status`` stays 200).
        code: The server's error code, if it gave one.
        type: The server's error type, if it gave one.
        message: The server's own words, at most 2,000 characters of them; ``HTTP 502 Bad Gateway`` where it had none.
        body: The error body as text, cut at ``Limits.error``.
        request_id: The server's ``x-request-id``.
        retry_after: Seconds that the server asked to wait before another try, or None. Of a 429 without
            ``Retry-After``: until what is used up of its limits is there again.
    """

    status_code: int = 0
    code: str | None = None
    type: str | None = None
    message: str = ""
    body: str = ""
    request_id: str | None = None
    retry_after: float | None = None

    def __init__(
        self,
        message: str = "",
        *,
        status_code: int = 0,
        code: str | None = None,
        type: str | None = None,
        body: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
        meta: Meta | None = None,
        partial: Partial | None = None,
    ) -> None:
        super().__init__(message, meta=meta, partial=partial)
        self.status_code = status_code
        self.code = code
        self.type = type
        self.message = message
        self.body = body
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        is_named = not self.status_code or self.message.startswith(f"HTTP {self.status_code}")
        named = self.message if is_named else f"{self.status_code} {self.message}"
        return f"{named} (request id {self.request_id})" if self.request_id else named


class BadRequestError(APIStatusError):
    """400: the request is wrong."""


class AuthenticationError(APIStatusError):
    """401: the token is missing, wrong or expired."""


class PermissionDeniedError(APIStatusError):
    """403: the token may not do this."""


class NotFoundError(APIStatusError):
    """404: no such model, endpoint or file."""


class ConflictError(APIStatusError):
    """409: at odds with the present state."""


class UnprocessableEntityError(APIStatusError):
    """422: well-formed, but the server refuses a value."""


class RateLimitError(APIStatusError):
    """429: too many requests, or too long in a dedicated endpoint's queue; ``retry_after``: when to come back."""


class InternalServerError(APIStatusError):
    """500 and above: the server failed, or is overloaded."""


class ResponseDecodeError(FriendliError):
    """The reply is not what the API promises, or is larger than a size limit.

    Attributes:
        excerpt: The beginning of the bytes in question, as text, bounded.
    """

    excerpt: str = ""

    def __init__(
        self, message: str = "", *, excerpt: str = "", meta: Meta | None = None, partial: Partial | None = None
    ) -> None:
        super().__init__(message, meta=meta, partial=partial)
        self.excerpt = excerpt


class ToolError(FriendliError):
    """A tool did not do what the model asked for.

    A tool raises it to tell the model so in its own words. A run raises it where ``on_tool_error`` is "raise"; its
    ``__cause__`` is then what the tool raised.

    Attributes:
        kind: What was wrong.
        call: The call, of an error that a run raises; None of one that a tool raises.
        messages: The conversation up to the turn of that call, ready for another call.
        usage: What the turns up to then were billed for, as far as the server has told.
    """

    kind: ToolProblem = "failed"
    call: ToolCall | None = None
    messages: list[Any]
    usage: Usage | None = None

    def __init__(
        self,
        message: str = "",
        *,
        kind: ToolProblem = "failed",
        call: ToolCall | None = None,
        messages: list[Any] | None = None,
        usage: Usage | None = None,
        meta: Meta | None = None,
        partial: Partial | None = None,
    ) -> None:
        super().__init__(message, meta=meta, partial=partial)
        self.kind = kind
        self.call = call
        self.messages = messages or []
        self.usage = usage


class TurnLimitError(FriendliError):
    """A run with tools was not over after ``max_turns``.

    Attributes:
        messages: The whole conversation, results of the last turn's tools included: another run can go on from there.
        usage: What all turns were billed for, as far as the server has told.
        turns: How many there were.
    """

    messages: list[Any]
    usage: Usage | None = None
    turns: int = 0

    def __init__(
        self,
        message: str = "",
        *,
        messages: list[Any] | None = None,
        usage: Usage | None = None,
        turns: int = 0,
        meta: Meta | None = None,
        partial: Partial | None = None,
    ) -> None:
        super().__init__(message, meta=meta, partial=partial)
        self.messages = messages or []
        self.usage = usage
        self.turns = turns


class OutputError(ResponseDecodeError):
    """An answer is no value of the type that was asked for.

    Attributes:
        reply: The reply that has the answer, with its ``usage``: what several answers were billed for, where it was
            asked for again. None where a stream turned out to be no JSON while it went on.
        path: Where in the answer the fault is, as ``lines[0].total``; "" for the whole.
        text: The answer's text.
    """

    reply: Reply | None = None
    path: str = ""
    text: str = ""

    def __init__(
        self,
        message: str = "",
        *,
        reply: Reply | None = None,
        path: str = "",
        text: str = "",
        excerpt: str = "",
        meta: Meta | None = None,
        partial: Partial | None = None,
    ) -> None:
        super().__init__(message, excerpt=excerpt or text[:200], meta=meta, partial=partial)
        self.reply = reply
        self.path = path
        self.text = text


class OutputCutOffError(OutputError):
    """The answer ended before it was complete: at its limit of tokens, or because the stream was cut."""


class OutputInvalidError(OutputError):
    """The answer is no JSON, or does not fit the type; or the model refused, or called a tool, instead."""


SDKError = APIStatusError
"""The name that the official SDK gives to its 4XX and 5XX error."""

_STATUS_CLASSES: Final[dict[int, type[APIStatusError]]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    422: UnprocessableEntityError,
    429: RateLimitError,
}
"""The class of each status that has its own; from 500 on it is InternalServerError, else APIStatusError."""


def status_class(status: int) -> type[APIStatusError]:
    """The error class of an HTTP status."""
    if status >= 500:
        return InternalServerError
    return _STATUS_CLASSES.get(status, APIStatusError)
