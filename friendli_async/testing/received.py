"""The requests that the embedded server received, for assertions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

from friendli_async._json import reject_constant
from friendli_async.testing.forms import FormPart, parse_form
from friendli_async.testing.frames import Identity
from friendli_async.testing.waiting import Signal

__all__ = ["ReceivedRequest"]

Outcome = Literal["open", "completed", "disconnected", "broken"]


@dataclass(eq=False)
class ReceivedRequest:
    """A received request, and the outcome of its reply."""

    method: str
    path: str
    """The path without the query, percent-decoded."""
    raw_path: str
    """The path without the query, as received."""
    query: Mapping[str, Sequence[str]]
    """The values of each query parameter."""
    headers: Mapping[str, str]
    """The headers; names are case-insensitive."""
    body: bytes
    connection: int
    """Number of the TCP connection, from 1: equal numbers mean that it was reused."""
    peer: tuple[str, int]
    """The client's address and port."""
    number: int
    """Number of the request, from 1."""
    started_at: float
    """When the head of the request arrived, in seconds on the clock of the event loop."""
    created: int
    """When it arrived, as Unix time in seconds."""
    path_parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    """The parameters in the path of the operation, percent-decoded."""
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The query of the operation, or its form, with the types of its schema."""
    status: int | None = None
    """The status of the reply, once it is known."""
    outcome: Outcome = "open"
    """`open` while the reply is being sent, then `completed`, `disconnected` (by the client) or `broken` (by the script
    or by closing the server)."""
    _signal: Signal = field(default_factory=Signal, repr=False)

    @property
    def completed(self) -> bool:
        """Whether the reply was sent completely.

        The client may have read its end a moment before the server knows: await `disconnected()` first.
        """
        return self.outcome == "completed"

    @property
    def request_id(self) -> str:
        """The `x-request-id` of the reply."""
        return f"req-{self.number:06d}"

    @property
    def origin(self) -> str:
        """The origin of the URLs in a reply, from the `Host` header."""
        return f"http://{self.headers.get('Host', 'localhost')}"

    @cached_property
    def json(self) -> Any:
        """The body as JSON, or `None` if it is invalid. NaN and Infinity are not JSON."""
        try:
            return parse_json(self.body)
        except ValueError:
            return None

    @cached_property
    def form(self) -> tuple[FormPart, ...]:
        """The parts of the body.

        Raises:
            ValueError: The body is not `multipart/form-data`, or malformed.
        """
        return parse_form(self.headers.get("Content-Type", ""), self.body)

    @property
    def json_object(self) -> Mapping[str, Any]:
        """The body as a JSON object; empty if the body is anything else."""
        value: object = self.json
        return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}

    @property
    def identity(self) -> Identity:
        """The fields that the chunks of the reply share: ID, requested model, time."""
        model = self.json_object.get("model")
        return Identity(
            f"chatcmpl-{self.number:06d}", model if isinstance(model, str) else "friendli-testing", self.created
        )

    def settle(self, outcome: Outcome) -> None:
        """Record the outcome of the reply. Called by the server."""
        self.outcome = outcome
        self._signal.notify()

    async def disconnected(self, timeout: float = 30.0) -> bool:
        """Wait until the reply is over.

        Args:
            timeout: Maximum time to wait, in seconds.

        Returns:
            True if the client disconnected before the reply was complete, False if the reply was completed, or broken
            by the script.

        Raises:
            TimeoutError: The reply is still in progress.
        """
        state = f"the reply to request {self.number}, {self.method} {self.path}, is still in progress"
        await self._signal.until(lambda: self.outcome != "open", timeout, lambda: state)
        return self.outcome == "disconnected"


def section(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object inside a body; empty if it is missing or null."""
    return cast("Mapping[str, Any]", body.get(name) or {})


def parse_json(data: bytes) -> object:
    """Decode JSON strictly.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        return json.loads(data, parse_constant=reject_constant)
    except RecursionError as error:
        raise ValueError(str(error)) from None
