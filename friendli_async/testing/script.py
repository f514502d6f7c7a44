"""Scripted replies, step by step, faults included.

A `Script` answers one request. It is immutable: a status, headers and steps. The status line and the headers are sent
just before the first step that writes, so the steps before it run before any byte of the reply: `script(stall())` never
answers, `script(head(), stall())` sends headers and then nothing more. After its last step the body ends properly.

Every write is followed by two iterations of the event loop: a client in the same loop reads each piece separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from multidict import CIMultiDict

from friendli_async._callables import is_async
from friendli_async._hints import shortened
from friendli_async._json import encode_json
from friendli_async.testing.arguments import check_type, describe
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.reply import ReplyWriter
from friendli_async.testing.steps import Step, delay, raw

__all__ = ["Answer", "Script", "body", "json_body", "pace", "script", "status"]

EVENT_STREAM: Final = "text/event-stream"
_JSON: Final = "application/json"


@dataclass(frozen=True)
class Script:
    """The reply to one request. Created by `script`, `status`, `body` or `json_body`.

    Args:
        steps: The steps, in order.
        status: HTTP status.
        headers: Headers of the reply, including `Content-Type`.

    Raises:
        TypeError: A step is not a step, or the status is not an int.
    """

    steps: tuple[Step, ...] = ()
    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", EVENT_STREAM),)

    def __post_init__(self) -> None:
        for step in self.steps:
            check_type(step, Step, "a step of a script", 'made by a function such as chunk("Hello"), cut() or done()')
        check_type(self.status, int, "the status of a script", "an int")

    async def play(self, reply: ReplyWriter) -> None:
        """Play all steps, then end the body if none of them did.

        Args:
            reply: The reply to write to.
        """
        for step in self.steps:
            await step.play(reply)
        await reply.end()


if TYPE_CHECKING:
    Answer: TypeAlias = Script | Step | Callable[[ReceivedRequest], "Answer"]
else:  # a name in it would be looked up in the module of whoever resolves the annotation
    Answer = Script | Step | Callable[[ReceivedRequest], Any]
"""An answer to a request: a script, a single step (a script of one), or a function from the request to an answer
(``text`` returns one)."""


def resolve(answer: Answer, request: ReceivedRequest) -> Script:
    """Resolve an answer to the script for one request.

    Raises:
        TypeError: The function returned something that is not an answer.
        Exception: Whatever the function raised.
    """
    if isinstance(answer, Script):
        return answer
    if isinstance(answer, Step):
        return script(answer)
    returned: object = answer(request)
    check_answer(returned, "the return value of a reply function")
    return resolve(cast("Answer", returned), request)


_ACCEPTED: Final = 'a reply such as text("Hello") or status(503), a step such as cut(), or a function of the request'


def check_answer(answer: object, name: str) -> None:
    """Check that a value is an answer, as far as that can be known before a request arrives.

    Args:
        answer: The value.
        name: What it is, for the error message.

    Raises:
        TypeError: It is not; the message says what is accepted.
    """
    if isinstance(answer, Script | Step):
        return
    if not callable(answer):
        raise TypeError(f"{name} must be {_ACCEPTED}, not {describe(answer)}")
    if is_async(answer):
        raise TypeError(f"{name} must not be a coroutine function, as {shortened(answer)} is; delay() and gate() wait")


def pace(answer: Script, seconds: float) -> Script:
    """Slow down a streamed script.

    Args:
        answer: The script; returned unchanged if it is not an event stream.
        seconds: Pause before each step.

    Returns:
        The slower script.
    """
    if not seconds or ("Content-Type", EVENT_STREAM) not in answer.headers:
        return answer
    return replace(answer, steps=tuple(paced for step in answer.steps for paced in (delay(seconds), step)))


# --- complete replies ------------------------------------------------------------------------------------------------


def script(
    *steps: Step, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = EVENT_STREAM
) -> Script:
    """Compose a reply from steps. Its body is chunked unless the headers have a `Content-Length`.

    Args:
        steps: The steps, in order.
        status: HTTP status.
        headers: Additional headers; they override `content_type` and the request ID.
        content_type: The `Content-Type`.

    Returns:
        The script.
    """
    return Script(steps, status, tuple(_headers(headers, {"Content-Type": content_type}).items()))


def _headers(given: Mapping[str, str] | None, defaults: Mapping[str, str]) -> CIMultiDict[str]:
    merged = CIMultiDict(defaults)
    merged.update(given or {})
    return merged


def body(
    data: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = "text/html"
) -> Script:
    """Reply with bytes and their `Content-Length`: an HTML page of a proxy, a truncated JSON document...

    Args:
        data: The complete body.
        status: HTTP status.
        headers: Additional headers.
        content_type: The `Content-Type`.

    Returns:
        The script.
    """
    check_type(data, bytes, "the data of body()", "bytes")
    merged = _headers(headers, {"Content-Length": str(len(data))})
    return script(raw(data), status=status, headers=merged, content_type=content_type)


def json_body(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Script:
    """Reply with a JSON document.

    Args:
        value: The value to encode.
        status: HTTP status.
        headers: Additional headers.

    Returns:
        The script.
    """
    if isinstance(value, Script | Step) or callable(value):
        raise TypeError(f"the value of json_body() must be a JSON value, not {describe(value)}")
    return body(encode_json(value), status=status, headers=headers, content_type=_JSON)


def status(
    code: int,
    *,
    retry_after: float | str | None = None,
    message: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Reply with a status, and a JSON error body from 400 on.

    Args:
        code: HTTP status.
        retry_after: The `Retry-After` header: seconds, or any text, e.g. a date.
        message: The message of the error body; by default one that names the status.
        headers: Additional headers, for example `Location`.

    Returns:
        The script.
    """
    extra = _headers(headers, {})
    if retry_after is not None:
        extra["Retry-After"] = str(retry_after)
    if code < 400:
        return body(b"", status=code, headers=extra, content_type="text/plain")
    kind = "server_error" if code >= 500 else "api_error"
    error = {"message": message or f"scripted status {code}", "type": kind, "code": None}
    return json_body({"error": error}, status=code, headers=extra)


def interleaved(choices: Iterable[Iterable[Step]]) -> list[Step]:
    """Return the steps of several choices in the order in which a server sends them: it generates them in parallel."""
    return [step for row in zip_longest(*choices) for step in row if step is not None]


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Return whether a request, given its JSON object, wants the usage at the end of its stream."""
    options: object = body.get("stream_options")
    return isinstance(options, dict) and bool(cast("Mapping[str, object]", options).get("include_usage"))
