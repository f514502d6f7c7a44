"""Which status and which body a browser gets for an error.

Upstream's message is passed on only where the status says that it is about the request. Others may name the service's
account, endpoint or limits, or answer the call of another browser: see ``pacing.Hold``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from math import ceil
from typing import Any, Final
from urllib.parse import quote

from friendli_async._core.reporting import OUT_OF_BUDGET, log_fields
from friendli_async._json import replace_surrogates
from friendli_async.errors import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    ConfigurationError,
    FriendliError,
    OutputCutOffError,
    OutputError,
    ResponseDecodeError,
    StreamInterruptedError,
    ToolError,
    TurnLimitError,
    UsageLimitError,
)
from friendli_async.replies import Meta

__all__ = ["error_body", "error_status"]

_logger: Final = logging.getLogger("friendli_async")
_MAX_MODEL: Final = 100
_ABOUT_THE_REQUEST: Final = frozenset({400, 413, 422})
"""Statuses that mean the same to the browser as to this service, whose message is passed on."""
_FIXED: Final = {
    404: ("the model was not found", "invalid_request_error"),
    409: ("the model is in a state that does not allow this request", "invalid_request_error"),
    429: ("the rate limit of the model is reached; try again later", "rate_limit_error"),
    503: ("the model is overloaded or unavailable; try again later", "service_unavailable"),
}
"""The messages and types for the other such statuses."""
_NOT_REPEATED: Final = (ConfigurationError, OutputError, ToolError, TurnLimitError, UsageLimitError)
"""Errors for which a repetition is of no use: it would fail again, or pay again for the same work."""


def error_status(error: FriendliError) -> int:
    """Returns the HTTP status to send to a browser for an error.

    Args:
        error: The error that the call raised.

    Returns:
        Upstream's status if it is 400, 404, 409, 413, 422, 429 or 503; 504 for a timeout and for upstream's 408 and
        504; 503 if the client was drained or closed; 502 for any other status, including a token that upstream rejected
        (401, 403), for a connection that failed or broke, and for an invalid reply. 500 for what is not upstream's
        fault: the client is misconfigured, a tool failed, a limit on turns or usage is reached, a checkpoint cannot be
        written.
    """
    return _answer_to(error)[0]


def error_body(error: FriendliError) -> dict[str, Any]:
    """Returns the JSON body to send to a browser for an error, in the format of OpenAI's API.

    Upstream's message is passed on with a 400, 413 or 422, which are about the request. Other messages may name the
    service's account, endpoint or limits, so the browser gets a fixed text.

    Args:
        error: The error that the call raised.

    Returns:
        A dict with the key ``error``, of a dict with ``message``, ``type``, ``param`` (None) and ``code``.
    """
    _, message, kind, code = _answer_to(error)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _answer_to(error: FriendliError) -> tuple[int, str, str, str | None]:
    """Returns the status, message, type and code for a browser."""
    match error:
        case ConfigurationError(draining=True) | APIConnectionError(draining=True):
            return 503, "the service is shutting down; try again", "service_unavailable", "shutting_down"
        case APIStatusError(status_code=status) if status in _ABOUT_THE_REQUEST:
            return status, error.message, error.type or "invalid_request_error", error.code
        case APIStatusError(status_code=status) if status in _FIXED:
            message, kind = _FIXED[status]
            return status, message, error.type or kind, error.code
        case APIStatusError(status_code=401 | 403):
            return 502, "this service is not authorized to use the model", "upstream_error", None
        case APIStatusError(status_code=status):
            return 504 if status in {408, 504} else 502, "the model's server failed", "upstream_error", None
        case APITimeoutError(limit=limit):
            return 504, "the model did not answer in time", "timeout_error", f"{limit}_timeout"
        case StreamInterruptedError():
            return 502, "the answer was interrupted before it was complete", "upstream_error", "stream_interrupted"
        case APIConnectionError() if error.meta is not None and error.meta.status is not None:
            return 502, "the reply broke off before it was complete", "upstream_error", "reply_interrupted"
        case APIConnectionError():
            return 502, "the model's server could not be reached", "upstream_error", "connection_error"
        case UsageLimitError():
            return 500, "the usage limit of the service is reached", "server_error", "usage_limit"
        case OutputCutOffError():
            return 502, "the model's answer was cut off", "upstream_error", "output_cut_off"
        case OutputError():
            return 502, "the model's answer does not have the required form", "upstream_error", "output_invalid"
        case ResponseDecodeError():
            return 502, "the model's server sent an invalid response", "upstream_error", None
        case _:  # the configuration, a tool, the turn limit, a checkpoint, a class of the user's own
            return 500, "the service failed", "server_error", None


def retry_headers(error: FriendliError) -> dict[str, str]:
    """Returns the headers that say whether, and when, to repeat the request.

    These are ``Retry-After`` for a 429 or 503 if upstream sent one, rounded up to whole seconds; and
    ``x-should-retry: false``, which the packages of OpenAI and Anthropic obey, if a repetition is of no use.
    """
    status, wait = error_status(error), getattr(error, "retry_after", None)
    if status in {429, 503}:
        return {} if wait is None else {"Retry-After": str(ceil(wait))}
    # Upstream's rejections of this service, such as a 402: `_answer_to` makes them a 502, which clients repeat.
    is_rejected = status == 502 and isinstance(error, APIStatusError) and 400 <= error.status_code < 500
    return {"x-should-retry": "false"} if is_rejected or isinstance(error, _NOT_REPEATED) else {}


def logged_path(scope: Mapping[str, Any]) -> str:
    """Returns the path of a request for the log, quoted: the browser has chosen it."""
    return quote(str(scope.get("path", "")), errors="replace")


def log_error(level: int, scope: Mapping[str, Any], answer: str, error: Exception) -> None:
    """Logs an error with its call, and how the request was answered.

    The message is logged as text, since log handlers keep their arguments, and the error's traceback holds the stream.
    A server may have chosen it, and a browser the model: it is put in one line, so that it cannot forge others.
    """
    text, meta = str(error), error.meta if isinstance(error, FriendliError) else None
    if meta is not None and meta.operation:
        text += _about(meta, text)
    message = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", replace_surrogates(text))
    extra = None if meta is None else log_fields(meta)
    _logger.log(level, "%s: %s, %s: %s", logged_path(scope), answer, type(error).__name__, message, extra=extra)


def _about(meta: Meta, text: str) -> str:
    """Returns which call failed, for a line of the log that has no traceback."""
    model = meta.model and f"of {meta.model[:_MAX_MODEL]}"
    server = "" if meta.server in text else f"at {meta.server}"
    parts = [" ".join(filter(None, (meta.deployment, meta.operation, model, server)))]
    if number := len(meta.attempts):
        parts.append(f"{number} attempt{'s' * (number > 1)} in {meta.timing.total:.2f} s")
    if meta.attempts and (meta.attempts[-1].cause or "").endswith(OUT_OF_BUDGET):
        parts.append(OUT_OF_BUDGET)
    if meta.request_id is not None and meta.request_id not in text:
        parts.append(f"request id {meta.request_id}")
    return f" [{', '.join((*parts, f'call {meta.call_id}'))}]"
