"""The tool by which the model gives the answer of a run as a value of a type."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from friendli_async.chat.faults import Faults
from friendli_async.chat.incremental_json import JSONError, JSONReader
from friendli_async.chat.output import MismatchError, Output, output_of
from friendli_async.chat.replies import ChatCompletion
from friendli_async.chat.structured import OUTPUT
from friendli_async.errors import ToolError

T = TypeVar("T")

_NAME: Final = "final_answer"
_DESCRIPTION: Final = "Gives the final answer. Call it once, when everything that it takes is known."


class AnswerTool:
    """A ``LocalTool`` whose arguments are the answer.

    Friendli's API accepts no ``response_format`` beside tools, so the schema of the answer is that of a tool.

    Args:
        kind: The type of the answer.
        strict: See ``json_schema``.

    Attributes:
        value: The answer; UNSET as long as there is none.

    Raises:
        TypeError: The type has no JSON form, or is missing.
        ArgumentError: ``strict`` is not a bool.
    """

    def __init__(self, kind: Any, strict: bool) -> None:
        self._output = output = output_of(kind, strict)
        self.name: str = _NAME
        self.description: str | None = f"{_DESCRIPTION} {output.description or ''}".rstrip()
        self.parameters: dict[str, Any] = output.schema or {"type": "object"}
        self.value: Any = msgspec.UNSET
        self._accepted: list[str] = []  # the text of the value, in pieces
        self._mismatch: tuple[str, Faults] | None = None  # of the last call: its arguments, and what is wrong with them
        self._pieces: list[str] = []  # of the arguments that ``snapshot`` reads
        self._parsed = 0
        self._reader = JSONReader()

    async def run(self, arguments: str) -> str:
        """Takes the answer.

        Raises:
            ToolError: It does not match the type, or there is one already.
        """
        if self.value is not msgspec.UNSET:
            raise ToolError("there is a final answer already", kind="refused")
        try:
            self.value = _decode(self._output, arguments)
        except MismatchError as mismatch:
            self._mismatch = arguments, mismatch.faults
            raise ToolError(self._output.describe(mismatch.faults), kind="arguments") from None
        self._accepted = [arguments]
        return "The answer was accepted."

    def snapshot(self, pieces: list[str]) -> Any:
        """Returns the answer so far, as plain JSON types; None if it has not begun. An accepted answer stays.

        Args:
            pieces: The arguments so far. While the list is the same and grows, each piece is parsed once.
        """
        pieces = self._accepted or pieces
        if pieces is not self._pieces:
            self._pieces, self._parsed, self._reader = pieces, 0, JSONReader()
        new, self._parsed = pieces[self._parsed :], len(pieces)
        with suppress(JSONError):  # it stays as it was: the call will fail
            self._reader.feed("".join(new))
        value = self._output.unwrap(self._reader.value)
        return None if value is msgspec.UNSET else value

    def end_turn(self, reply: ChatCompletion, called: Collection[str], *, is_last: bool) -> None:
        """Takes the answer from the text of a reply that calls no tool: not every server enforces a call.

        Args:
            reply: The reply, whose calls have finished.
            called: The names of the tools that it has called.
            is_last: Whether the model cannot try again.

        Raises:
            OutputError: The text is no answer; or a call of this tool was truncated, or was invalid in the last turn.
        """
        answer = OUTPUT.answer_of(reply, "")
        if self.value is msgspec.UNSET and (not called or (answer.cut and self.name in called)):
            self.value = self._output.read(answer)
            self._accepted = [reply.text, "\n"]  # which ends a number
        if self.value is msgspec.UNSET and is_last and self.name in called and self._mismatch is not None:
            raise self._output.mismatch(answer, *self._mismatch)


def restore_answer(output: Output[T], reply: ChatCompletion) -> T:
    """Returns the answer of a run again, from its last reply.

    Raises:
        MismatchError: The reply has no answer of this type.
    """
    given = [call.function.arguments for call in reply.tool_calls if call.function.name == _NAME]
    for arguments in given:
        with suppress(MismatchError):  # as the model was told then
            return _decode(output, arguments)
    return _decode(output, given[-1]) if given else output.decode(reply.text)  # the error is about what was given


def _decode(output: Output[T], arguments: str) -> T:
    if arguments[-1:].isdigit():  # it may be truncated: a part of a number looks complete
        raise MismatchError([("a number instead of an object", "")])
    return output.decode(arguments)
