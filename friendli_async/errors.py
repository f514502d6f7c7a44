"""The exception hierarchy.

    FriendliError                     root; ``.meta`` (the attempts), ``.partial`` (what had arrived); may be None
    ├── ConfigurationError            also a ValueError: the server processed nothing
    ├── APIConnectionError            no usable reply; ``.sent``: whether the request can have been accepted
    │   ├── APITimeoutError           also a TimeoutError; ``.limit`` names the limit, ``.seconds`` is its length
    │   └── StreamInterruptedError    the stream ended early
    ├── APIStatusError                an error response: 4XX, 5XX, or an error inside a stream
    │   ├── BadRequestError 400 · AuthenticationError 401 · PermissionDeniedError 403 · NotFoundError 404
    │   ├── ConflictError 409 · UnprocessableEntityError 422 · RateLimitError 429
    │   └── InternalServerError >= 500
    ├── ResponseDecodeError           a malformed reply, or one beyond a size limit
    │   └── OutputError               a structured output does not match the requested type; ``.text``, ``.path``
    │       ├── OutputCutOffError     it was truncated
    │       └── OutputInvalidError    it is not JSON or does not match; or is a refusal, or a tool call
    ├── ToolError                     a local tool failed
    ├── TurnLimitError                a run with tools was not finished after ``max_turns``
    └── UsageLimitError               the calls that share a ``UsageLimit`` have reached it; nothing was sent

Errors hold plain data only: they can be pickled and copied, and never hold the token or a request header. Invalid
arguments raise ``UnknownArgumentError`` (a ``TypeError``) or ``ArgumentError`` (an invalid value, a ``ValueError``),
which are not in this tree: they are bugs in the calling code, or in its data.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal, TypedDict, Unpack

from friendli_async._hints import Explained
from friendli_async.replies import Meta, Partial, Reply, ToolCall, Usage

__all__ = ["APIConnectionError", "APIStatusError", "APITimeoutError", "ArgumentError"]
__all__ += ["AuthenticationError", "BadRequestError"]
__all__ += ["ConfigurationError", "ConflictError", "FriendliError", "InternalServerError", "NotFoundError"]
__all__ += ["OutputCutOffError", "OutputError", "OutputInvalidError"]
__all__ += ["PermissionDeniedError", "RateLimitError", "ResponseDecodeError", "SDKError", "StreamInterruptedError"]
__all__ += ["TimeoutLimit", "ToolError", "ToolProblem", "TurnLimitError", "UnknownArgumentError"]
__all__ += ["UnprocessableEntityError", "UsageLimitError"]

TimeoutLimit = Literal["connect", "pool", "first_event", "idle", "total"]
"""Names of the timeouts, as in ``Timeouts``."""

ToolProblem = Literal["unknown", "arguments", "refused", "timeout", "failed", "result"]
"""Why a tool call failed: the tool does not exist; the arguments are invalid; ``before_tool`` rejected it; it took
longer than its timeout; it raised an exception; its result cannot be serialized to JSON, or is longer than
``max_tool_result``."""


class ArgumentError(ValueError):
    """An invalid value in the arguments of a call, with its path. Nothing was sent.

    Attributes:
        path: Where the value is, such as ``messages[2].role``; "" if unknown. The message starts with it.
    """

    path: str = ""

    def __init__(self, reason: str = "", path: str = "") -> None:
        super().__init__(reason, path)
        self.path = path

    def __str__(self) -> str:
        reason = str(self.args[0])
        return f"{self.path}: {reason}" if self.path else reason


class UnknownArgumentError(TypeError):
    """A keyword that the called method does not have. Nothing was sent.

    Attributes:
        name: The keyword.
    """

    name: str = ""

    def __init__(self, message: str = "", name: str = "") -> None:
        super().__init__(message, name)
        self.name = name

    def __str__(self) -> str:
        return str(self.args[0])


class _Context(TypedDict, total=False):
    """What every error of a call may be given besides its message."""

    meta: Meta | None
    partial: Partial | None


class _ConnectionContext(_Context, total=False):
    """What an ``APIConnectionError`` may be given, too."""

    sent: bool
    draining: bool


class FriendliError(Explained, Exception):
    """Root of the errors that this library raises for a call.

    Attributes:
        meta: Status, headers, request id and attempts of the call; None if it failed before it could wait or send.
            Its ``attempts`` are empty if a rate-limit hold rejected the call.
        partial: What a stream had received. Of a plain reply, what it holds besides the error, or what it holds if a
            stream was asked for. Otherwise None.
    """

    # All attributes except the message have defaults, and are set after construction or by keyword. The default
    # pickling of exceptions, which calls the class with its message and then restores __dict__, thus works.
    meta: Meta | None = None
    partial: Partial | None = None

    def __init__(self, message: str = "", *, meta: Meta | None = None, partial: Partial | None = None) -> None:
        super().__init__(message)
        self.meta = meta
        self.partial = partial


class ConfigurationError(FriendliError, ValueError):
    """The client cannot be used: no token, an invalid setting, a closed client. The server processed nothing.

    Attributes:
        draining: Whether the call was rejected because its client was being drained, or had been closed.
    """

    draining: bool = False

    def __init__(self, message: str = "", *, draining: bool = False, **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.draining = draining


class APIConnectionError(FriendliError):
    """There was no usable response.

    ``str()`` adds the server to the message, and the proxy if there is one, as ``meta.server`` and ``meta.proxy`` have
    them: either may have broken the connection.

    Attributes:
        sent: Whether the request may have been accepted (and billed). False if it was never sent. True by default, as
            in an error that a task queue has rebuilt from its message.
        draining: Whether the call was interrupted because its client was drained or closed.
        permanent: Whether a retry would fail in the same way (an invalid certificate, no common TLS version, a request
            rejected by the proxy, an unusable token), and is therefore not made.
    """

    sent: bool = True
    draining: bool = False
    permanent: bool = False

    def __init__(
        self, message: str = "", *, sent: bool = True, draining: bool = False, **context: Unpack[_Context]
    ) -> None:
        super().__init__(message, **context)
        self.sent = sent
        self.draining = draining

    def __str__(self) -> str:
        message = super().__str__()
        if self.meta is None:
            return message
        server, proxy = self.meta.server, self.meta.proxy
        peers = (("server", server), ("through the proxy", proxy))
        added = ", ".join(f"{label} {peer}" for label, peer in peers if peer not in message)
        return f"{message} ({added})" if added else message


class APITimeoutError(APIConnectionError, TimeoutError):
    """A timeout expired.

    Attributes:
        limit: Its name in ``Timeouts``.
        seconds: Its length in seconds.
    """

    limit: TimeoutLimit = "total"
    seconds: float = 0.0

    def __init__(
        self,
        message: str = "",
        *,
        limit: TimeoutLimit = "total",
        seconds: float = 0.0,
        **context: Unpack[_ConnectionContext],
    ) -> None:
        super().__init__(message, **context)
        self.limit = limit
        self.seconds = seconds


class StreamInterruptedError(APIConnectionError):
    """A stream ended before it was complete; ``partial`` holds what had been received.

    Attributes:
        excerpt: The text that the server sent in place of the rest, truncated; the message contains it. "" if none.
    """

    excerpt: str = ""

    def __init__(self, message: str = "", *, excerpt: str = "", **context: Unpack[_ConnectionContext]) -> None:
        super().__init__(message, **context)
        self.excerpt = excerpt


class APIStatusError(FriendliError):
    """The server returned an error.

    Attributes:
        status_code: The HTTP status. For an error inside a stream, the status that its code or type stands for
            (``meta.status`` remains 200).
        code: The server's error code, if any.
        type: The server's error type, if any.
        message: The server's error message, truncated to 2,000 characters; ``HTTP 502 Bad Gateway`` if it has none.
        body: The error body as text, truncated to ``Limits.error``. For an error inside a stream or a 2XX reply, the
            first 200 bytes of that event or reply; "" if a rate-limit hold rejected the call.
        request_id: The server's ``x-request-id``, or else its ``request-id``, or else the one in the body.
        retry_after: Seconds that the server asks to wait before a retry, or None. For a 429 without ``Retry-After``,
            the time until its exhausted limits are reset.
    """

    status_code: int = 0
    code: str | None = None
    type: str | None = None
    message: str = ""
    body: str = ""
    request_id: str | None = None
    retry_after: float | None = None
    _before: str = ""
    _after: str = ""
    """What ``str()`` adds to the message, such as an address. Browsers get ``message`` alone."""

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
        **context: Unpack[_Context],
    ) -> None:
        super().__init__(message, **context)
        self.status_code = status_code or self.status_code  # that of the class, if it stands for one status
        self.code = code
        self.type = type
        self.message = message
        self.body = body
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        # An error in a good reply has no status of its own: "200 model overloaded" would read like a success. Servers
        # send "500 Internal Server Error" as a message; "400 tokens are too many" does not name the status.
        code, message = self.status_code, f"{self._before}{self.message}{self._after}"
        is_named = code < 300 or re.match(rf"HTTP {code}|{code}(?=: | [A-Z]|$)", message)
        named = message if is_named else f"{code} {message}"
        return f"{named} (request id {self.request_id})" if self.request_id else named


class BadRequestError(APIStatusError):
    """400: the request is invalid."""

    status_code = 400


class AuthenticationError(APIStatusError):
    """401: the token is missing, invalid or expired."""

    status_code = 401


class PermissionDeniedError(APIStatusError):
    """403: the token lacks the permission."""

    status_code = 403


class NotFoundError(APIStatusError):
    """404: the model, endpoint or file does not exist."""

    status_code = 404


class ConflictError(APIStatusError):
    """409: the request conflicts with the current state."""

    status_code = 409


class UnprocessableEntityError(APIStatusError):
    """422: the request is well-formed, but the server rejects a value."""

    status_code = 422


class RateLimitError(APIStatusError):
    """429: too many requests, or too long in a dedicated endpoint's queue; ``retry_after`` is the time to wait."""

    status_code = 429


class InternalServerError(APIStatusError):
    """500 and above: the server failed, or is overloaded."""


class ResponseDecodeError(FriendliError):
    """The reply does not match the API, or exceeds a size limit.

    Attributes:
        excerpt: The start of the offending bytes as text, truncated.
    """

    excerpt: str = ""

    def __init__(self, message: str = "", *, excerpt: str = "", **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.excerpt = excerpt


class ToolError(FriendliError):
    """A tool call failed.

    A tool raises it to send the model its own error message. A run raises it if ``on_tool_error`` is "raise", with the
    tool's exception as ``__cause__``.

    Attributes:
        kind: Why it failed.
        call: The tool call, if raised by a run; None if raised by a tool.
        messages: The conversation, ready for another call: as ``Run.messages``.
        usage: The usage of all answers so far, as far as the server has reported it.
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
        **context: Unpack[_Context],
    ) -> None:
        super().__init__(message, **context)
        self.kind = kind
        self.call = call
        self.messages = messages or []
        self.usage = usage


class TurnLimitError(FriendliError):
    """A run with tools was not finished after ``max_turns``.

    Attributes:
        messages: The whole conversation, including the last turn's tool results: another run can continue it.
        usage: The usage of all turns, as far as the server has reported it.
        turns: The number of turns.
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
        **context: Unpack[_Context],
    ) -> None:
        super().__init__(message, **context)
        self.messages = messages or []
        self.usage = usage
        self.turns = turns


class UsageLimitError(FriendliError):
    """The calls that share a ``UsageLimit`` have reached it. Nothing was sent, or nothing again: see ``meta.attempts``.

    In a run with tools, the run itself has ``messages`` and ``usage``, and another run can continue it.

    Attributes:
        usage: What those calls have used, as far as the server has reported it.
    """

    usage: Usage | None = None

    def __init__(self, message: str = "", *, usage: Usage | None = None, **context: Unpack[_Context]) -> None:
        super().__init__(message, **context)
        self.usage = usage


class OutputError(ResponseDecodeError):
    """A structured output does not match the requested type.

    Attributes:
        reply: The reply with the output; its ``usage`` is the sum over all answers if ``parse`` has asked again. None
            if a stream was found not to be JSON before its end.
        path: Path of the invalid value, such as ``lines[0].total``; "" for the whole output.
        text: The output's text.
        refusal: What the model said in refusing to answer, if the server reports it apart from the text; otherwise "".
        asked: Number of answers, more than one if ``parse`` has asked again; ``partial.usage`` is their sum. After
            ``parse_run``, both are those of the last turn: the run's own ``usage`` is the sum.
        feedback: The message that ``parse`` would send to ask for another answer, after ``text`` as the assistant's
            message. "" if asking again is no use: the output was truncated or empty, a refusal or a tool call.
    """

    reply: Reply | None = None
    path: str = ""
    text: str = ""
    refusal: str = ""
    asked: int = 1
    feedback: str = ""

    def __init__(
        self,
        message: str = "",
        *,
        reply: Reply | None = None,
        path: str = "",
        text: str = "",
        refusal: str = "",
        feedback: str = "",
        excerpt: str = "",
        **context: Unpack[_Context],
    ) -> None:
        super().__init__(message, excerpt=excerpt or text[:200], **context)
        self.reply = reply
        self.path = path
        self.text = text
        self.refusal = refusal
        self.feedback = feedback


class OutputCutOffError(OutputError):
    """The output was truncated: by the token limit or a content filter, or because the stream was interrupted."""


class OutputInvalidError(OutputError):
    """The output is not JSON, or does not match the type; or the model refused, or called a tool instead."""


SDKError = APIStatusError
"""The official SDK's name for its 4XX and 5XX error."""

_STATUS_CLASSES: Final = {each.status_code: each for each in APIStatusError.__subclasses__() if each.status_code}
"""The classes of one status; other statuses are InternalServerError from 500 on, else APIStatusError."""


def status_class(status: int) -> type[APIStatusError]:
    """Returns the error class of an HTTP status."""
    if status >= 500:
        return InternalServerError
    return _STATUS_CLASSES.get(status, APIStatusError)
