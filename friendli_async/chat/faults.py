"""What is wrong with a value that does not match its type, from the errors of msgspec and pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from friendli_async._core.body.validation_errors import choices_hint, split_message

_MAX_FAULTS: Final = 10
_MAX_REASON: Final = 300  # characters

Faults = Sequence[tuple[str, str]]
"""Reasons and paths, at least one."""


def faults_of(error: Exception, kind: Any) -> Faults:
    """Returns the faults that a validation error of a type reports: msgspec's one, or all of pydantic's; else none."""
    if isinstance(error, msgspec.ValidationError):
        message = str(error)
        reason, _, path = split_message(message)
        return [(reason + choices_hint(kind, message), path.lstrip("."))]
    errors = getattr(error, "errors", None)  # pydantic's
    if not callable(errors):
        return []
    faults = cast("list[dict[str, Any]]", errors(include_url=False, include_input=False))
    if faults[0]["type"] == "json_invalid" and not faults[0]["loc"]:  # else a string inside is (pydantic.Json)
        return []
    return [(fault["msg"], _path_of(fault["loc"])) for fault in faults]


def describe_faults(faults: Faults) -> str:
    """Returns what is wrong, with paths, in one line of limited length."""
    lines = [reason[:_MAX_REASON] + (f" (at {path})" if path else "") for reason, path in faults[:_MAX_FAULTS]]
    if (more := len(faults) - _MAX_FAULTS) > 0:
        lines.append(f"and {more} more")
    return "; ".join(lines)


def _path_of(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
