"""What the embedded server keeps of a request, for assertions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NoReturn, cast

from friendli_async.testing.forms import FormPart, parse_form
from friendli_async.testing.frames import Identity
from friendli_async.testing.waiting import Signal

__all__ = ["Outcome", "ReceivedRequest", "parse_json", "section"]

Outcome = Literal["open", "completed", "disconnected", "broken"]


@dataclass(eq=False)
class ReceivedRequest:
    """A request as it came in, and what became of its reply."""

    method: str
    path: str
    """The path without the query, percent-decoded."""
    raw_path: str
    """The path without the query, as it came."""
    query: Mapping[str, Sequence[str]]
    """The values of each query parameter."""
    headers: Mapping[str, str]
    """The headers; names in any case."""
    body: bytes
    connection: int
    """Number of the TCP connection, counted from 1: equal numbers mean that a connection was used again."""
    peer: tuple[str, int]
    """The client's address and port."""
    number: int
    """Number of the request, counted from 1."""
    started_at: float
    """When the head of the request had arrived, on the clock of the event loop, in seconds."""
    created: int
    """When it arrived, as Unix time in seconds."""
    path_parameters: Mapping[str, str] = field(default_factory=dict[str, str])
    """What stands in the path of an operation that takes ids there, percent-decoded."""
    status: int | None = None
    """The status of the reply, as soon as it was chosen."""
    outcome: Outcome = "open"
    """`open` while the reply goes out, then `completed`, `disconnected` (by the client) or `broken` (by the script or
    by closing the server)."""
    _signal: Signal = field(default_factory=Signal, repr=False)

    @property
    def completed(self) -> bool:
        """Whether the reply was sent to its end."""
        return self.outcome == "completed"

    @property
    def request_id(self) -> str:
        """The `x-request-id` of the reply."""
        return f"req-{self.number:06d}"

    @property
    def origin(self) -> str:
        """Where the client found this server: what the URLs in a reply begin with."""
        return f"http://{self.headers.get('Host', 'localhost')}"

    @cached_property
    def json(self) -> object:
        """The body as JSON, `None` if it is none. NaN and Infinity are no JSON."""
        return parse_json(self.body, invalid=lambda _: None)

    @cached_property
    def form(self) -> tuple[FormPart, ...]:
        """The parts of the body.

        Raises:
            ValueError: It is no `multipart/form-data`, or a broken one.
        """
        return parse_form(self.headers.get("Content-Type", ""), self.body)

    @property
    def json_object(self) -> Mapping[str, Any]:
        """The body's JSON object, an empty one if the body is anything else."""
        value: object = self.json
        return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}

    @property
    def identity(self) -> Identity:
        """What the chunks of the reply share: an id, the model asked for, the time."""
        model = self.json_object.get("model")
        return Identity(
            f"chatcmpl-{self.number:06d}", model if isinstance(model, str) else "friendli-testing", self.created
        )

    def settle(self, outcome: Outcome) -> None:
        """Say what became of the reply. The server calls it.

        Args:
            outcome: How the reply ended.
        """
        self.outcome = outcome
        self._signal.notify()

    async def disconnected(self, timeout: float = 30.0) -> bool:
        """Wait until the reply is over.

        Args:
            timeout: How long to wait at most, in seconds.

        Returns:
            True if the client went away before the reply was complete, False if the reply was completed, or broken by
            the script.

        Raises:
            TimeoutError: The reply is still going on.
        """
        await self._signal.until(lambda: self.outcome != "open", timeout)
        return self.outcome == "disconnected"


def section(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Give an object inside a body.

    Args:
        body: A JSON object.
        name: The key that it stands under.

    Returns:
        The object; an empty one where there is none, or null.
    """
    return cast("Mapping[str, Any]", body.get(name) or {})


def parse_json(data: bytes, *, invalid: Callable[[str], object]) -> object:
    """Decode JSON as a careful server does.

    Args:
        data: The bytes.
        invalid: Gives the result for bytes that are no JSON, from a message that says why.

    Returns:
        The value.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return invalid(str(error))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
