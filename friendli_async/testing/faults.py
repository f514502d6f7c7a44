"""Faults as text, for `FriendliServer(faults=...)` and `friendli-async serve --fault`.

    status=429;retry_after=1,then=ok        the first request gets a 429, all others are answered
    ok;times=9,cut=3,then=repeat            every tenth stream is cut after three events
    delay=0.5;path=/dedicated/v1/chat/completions,then=repeat

Items are separated by commas. Each applies to one request, in order; `then=` comes last and says what follows them.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from friendli_async._hints import shortened
from friendli_async.testing.received import ReceivedRequest
from friendli_async.testing.script import EVENT_STREAM, Script, status
from friendli_async.testing.steps import Payload, Step, cut, delay, reset, stall

HELP: Final = """\
faults, as in --fault 'status=429;retry_after=1,then=ok':
  Items are separated by commas; each applies to one request, in order. An item consists of settings, separated by
  semicolons:
    ok                answer as the API would
    status=CODE       answer with this status, 400 to 599
    retry_after=TEXT  ... and this Retry-After: seconds, or an invalid value
    message=TEXT      ... and this error message
    cut=N             close the connection after N events of a stream, or in the middle of another reply;
                      0 closes it without a reply
    reset=N           the same with a TCP reset
    stall=N           the same, but stop sending
    delay=SECONDS     wait before the reply
    times=N           apply to N requests
    path=/PATH        apply only to requests to this path
  The last item may be then=ok (the default) or then=repeat: what follows the items.
"""


class _FaultError(ValueError, ArgumentTypeError):
    """Text of faults, or of another option, that cannot be parsed. argparse shows the message."""


@dataclass(frozen=True)
class _Fault:
    """A fault of one request, or of several in a row. Created by `parse`."""

    status: int | None = None
    """The status of the reply, instead of that of the API."""
    retry_after: str | None = None
    message: str | None = None
    breaks: Callable[[], Step] | None = None
    """The step that breaks the reply."""
    after: int = 0
    """Events of a stream sent before that."""
    delay: float = 0.0
    """Seconds before the reply."""
    times: int = 1
    """How many requests it applies to."""
    path: str | None = None
    """The path of the requests that it applies to; None for all."""

    def befall(self, answer: Callable[[], Script]) -> Script:
        """Apply the fault to the reply that `answer` returns."""
        if self.status is not None:
            script = status(self.status, retry_after=self.retry_after, message=self.message)
        else:
            script = answer()
        if self.breaks is not None:
            script = replace(script, steps=(*self._steps_before(script), self.breaks()))
        return replace(script, steps=(delay(self.delay), *script.steps)) if self.delay else script

    def _steps_before(self, script: Script) -> Iterator[Step]:
        if not self.after:
            return
        if ("Content-Type", EVENT_STREAM) not in script.headers:
            for step in script.steps:
                yield _FirstHalf(step) if isinstance(step, Payload) else step
            return
        left = self.after
        for step in script.steps:
            if not left:
                return
            left -= isinstance(step, Payload)
            yield step


@dataclass(frozen=True)
class _FirstHalf(Payload):
    payload: Payload

    def encode(self, identity: Any) -> bytes:
        data = self.payload.encode(identity)
        return data[: len(data) // 2]


@dataclass
class Faults:
    """Faults for the requests of a server, in order. Created by `parse`.

    Args:
        items: The faults.
        repeat: Whether they start over after the last one.
    """

    items: Sequence[_Fault]
    repeat: bool = False
    _remaining: list[_Fault] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._remaining = self._expand()

    def answer(self, request: ReceivedRequest, answer: Callable[[], Script]) -> Script:
        """Return the reply to a request, given what returns that of the API."""
        if self.repeat and not self._remaining:
            self._remaining = self._expand()
        for position, fault in enumerate(self._remaining):
            if fault.path is None or fault.path == request.path:
                del self._remaining[position]
                return fault.befall(answer)
        return answer()

    def _expand(self) -> list[_Fault]:
        return [fault for fault in self.items for _ in range(fault.times)]


# --- parsing ---------------------------------------------------------------------------------------------------------

_MAX_COUNT: Final = 100_000
_BREAKS: Final[dict[str, Callable[[], Step]]] = {"cut": cut, "reset": reset, "stall": stall}
_THEN: Final = ("ok", "repeat")


def parse(text: str) -> Faults:
    """Parse faults.

    Args:
        text: The faults, in the format that `HELP` describes.

    Raises:
        ValueError: The text cannot be parsed; the message says where and why.
    """
    items = text.split(",")
    then = "ok"
    name, _, value = (part.strip() for part in items[-1].partition("="))
    if name == "then":
        then = value
        del items[-1]
    if then not in _THEN:
        raise _FaultError(f"then= must be ok or repeat, not {then!r}")
    if not items:
        raise _FaultError("no fault before then=")
    return Faults([_parse_item(item.strip()) for item in items], then == "repeat")


def _parse_item(item: str) -> _Fault:
    try:
        given: dict[str, Any] = dict(_parse_setting(setting.strip()) for setting in item.split(";"))
        if "status" not in given and given.keys() & {"retry_after", "message"}:
            raise ValueError("retry_after and message need a status")
    except ValueError as error:
        raise _FaultError(f"{shortened(item)}: {error}") from None
    given.pop("ok", None)
    for name, step in _BREAKS.items():
        if name in given:
            given["after"] = given.pop(name)
            given["breaks"] = step
    return _Fault(**given)


def _parse_setting(setting: str) -> tuple[str, object]:
    if setting == "ok":
        return "ok", None
    name, _, value = (part.strip() for part in setting.partition("="))
    if name == "then":
        raise ValueError("then= must be the last item")
    if name not in _SETTINGS:
        raise ValueError(f"expected ok, {', '.join(_SETTINGS)}, not {shortened(setting)}")
    try:
        return name, _SETTINGS[name](value)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


def integer(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers. Its error says what is accepted."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text[:9]) <= most or len(text) > 9:
            raise _FaultError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < 1e6:
        raise ValueError("must be a number of seconds")
    return seconds


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be a path that starts with /")
    return text


_SETTINGS: Final[dict[str, Callable[[str], object]]] = {
    "status": integer(400, 599),
    "retry_after": str,
    "message": str,
    **dict.fromkeys(_BREAKS, integer(0, _MAX_COUNT)),
    "delay": _seconds,
    "times": integer(1, _MAX_COUNT),
    "path": _path,
}


def parse_pace(text: str) -> float:
    """Parse the pause before each event of a stream: `0.02` (seconds), `20ms`, or `50/s` (events per second).

    Args:
        text: The text.

    Returns:
        Seconds.

    Raises:
        ValueError: The text has another format.
    """
    stripped = text.strip()
    try:
        if stripped.endswith("/s"):
            return _seconds(repr(1.0 / _seconds(stripped[:-2])))
        if stripped.endswith("ms"):
            return _seconds(stripped[:-2]) / 1000
        return _seconds(stripped.removesuffix("s"))
    except (ValueError, ZeroDivisionError):
        raise _FaultError(f"expected a pace such as 0.02 (seconds), 20ms or 50/s, not {text!r}") from None
