"""Structured output while it streams: its partial values, and the items of its lists."""

# A view is a part of its stream:
# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, overload

import msgspec

from friendli_async._core.held import Held
from friendli_async._json import is_object
from friendli_async._lazy import LazyModule, TypeForm
from friendli_async.chat.faults import describe_faults
from friendli_async.chat.incremental_json import JSONError, JSONReader
from friendli_async.chat.output import MismatchError, Output, OutputAPI, output_of
from friendli_async.errors import FriendliError, OutputCutOffError, OutputInvalidError, StreamInterruptedError
from friendli_async.replies import Partial, Reply, attach_meta, convert_reply
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import ValueView

if TYPE_CHECKING:
    from friendli_async._core import engine as engine_module
else:
    engine_module = LazyModule("friendli_async._core.engine")

__all__ = ["ItemView", "SnapshotView"]

E = TypeVar("E")
R = TypeVar("R", bound=Reply)
U = TypeVar("U")
V = TypeVar("V")
T = TypeVar("T")


class OutputStream(AssembledStream[E, R, U], Generic[E, R, U, V]):
    """A stream whose text is parsed incrementally into a value.

    Its events, ``text()``, ``snapshots()`` and ``items()`` all read the same stream. They can be used one after
    another; snapshots and items include what was read before, also by a ``result()`` after the first of them.

    Raises:
        OutputCutOffError: From ``snapshots()``, ``items()`` and ``result()``: the answer was truncated at its token
            limit or because the stream was interrupted.
        OutputInvalidError: From the same: the answer is not JSON or does not match the type. Text that cannot become
            valid JSON any more closes the stream, with the outcome ``failed``.
    """

    __slots__ = ("_output", "_parsed_pieces", "_pick", "_pieces", "_reader")

    _api: ClassVar[OutputAPI[Any]]

    def __init__(self, opening: engine_module.StreamOpening[E, R, U], output: Output[V]) -> None:
        super().__init__(opening)
        self._output = output
        self._pick = self._text_extractor()
        self._reader = JSONReader()
        self._pieces: list[str] = []  # of text, from the events that were delivered
        self._parsed_pieces = 0

    async def __anext__(self) -> E:
        event = await super().__anext__()
        piece = self._pick(event)
        if piece:
            self._pieces.append(piece)
        return event

    def snapshots(self) -> SnapshotView:
        """Returns a view that yields the partial value after each piece of text that changes it.

        The value has plain JSON types, as from ``json``, and is usually a dict. It is the same object each time and
        grows in place, so a snapshot costs the same however large it is. Do not modify it; to keep it, copy it
        (``copy.deepcopy``). Its last string may be unfinished, and may lag by up to a hundredth once it has thousands
        of characters. It is not validated: only ``result()`` validates.
        """
        return SnapshotView(self)

    @overload
    def items(self, path: str, *, of: TypeForm[T]) -> ItemView[T]: ...

    @overload
    def items(self, path: str, *, of: Any = ...) -> ItemView[Any]: ...

    def items(self, path: str, *, of: Any = Any) -> ItemView[Any]:
        """Returns a view that yields the elements of a list in the value, each as soon as it is complete.

        A number with a fraction has the digits of a float here, also as a Decimal; ``result()`` has all of them.

        Args:
            path: Path of the list: field names separated by dots, or "" if the value itself is the list.
            of: The type of an element, against which each is validated. By default any JSON.

        Raises:
            TypeError: ``of`` has no JSON form.
            ArgumentError: There is no list at that path.
        """
        self._output.check_path(path)
        return ItemView(self, path, output_of(of))

    def _invalid(self, message: str, path: str = "") -> FriendliError:
        """Returns the error for an answer that is invalid, whatever follows."""
        text, feedback = self.partial.text, self._output.feedback(message)
        return self._with_received(OutputInvalidError(message, path=path, text=text, feedback=feedback))

    def _current_value(self) -> Any:
        """Returns the value so far, None before it has begun, or UNSET if only its wrapper has."""
        return self._output.unwrap(self._reader.value)

    async def _advance(self) -> bool:
        """Reads and parses the next piece of text.

        Returns False once the stream has ended, and its value is validated.
        """
        while self._parsed_pieces == len(self._pieces):
            try:
                await self.__anext__()
                continue
            except StopAsyncIteration:
                break
            except StreamInterruptedError as error:
                problem = Held(self._as_cut_off(error))
            raise problem.take()
        else:
            self._parse_next()
            return True
        if self.outcome == "done":
            await self.result()
            self._reader.close()  # only the end completes a number that is the whole value
        return False

    def _parse_next(self) -> None:
        piece = self._pieces[self._parsed_pieces]
        self._parsed_pieces += 1
        try:
            self._reader.feed(piece)
            return
        except JSONError as error:
            problem = Held(self._invalid(f"the answer is not valid JSON: {error}"))
        assert self._open is not None, "it has received text"
        self._open.stop(problem.error, "failed")
        raise problem.take()

    def _as_cut_off(self, error: FriendliError) -> FriendliError:
        """Returns an interruption as an OutputCutOffError, or unchanged if the stream was not truncated."""
        if self.outcome != "truncated":
            return error
        partial = error.partial or Partial()
        reply = None if self._open is None else self._open.collector.result()
        refusal = None if reply is None else self._api.answer_of(reply, "").refusal
        if error.meta is not None:
            attach_meta(reply, error.meta)
        message, text = f"the answer was truncated: {error}", partial.text
        return OutputCutOffError(
            message, reply=reply, text=text, refusal=refusal or "", meta=error.meta, partial=partial
        )

    async def result(self) -> R:
        """Reads the rest of the stream and returns the reply, with ``value`` and ``meta``.

        Raises:
            OutputCutOffError: The answer was truncated.
            OutputInvalidError: The answer does not match the type.
            FriendliError: The stream failed or was closed early.
        """
        try:
            if self._read_mode == "events":
                async for _ in self:  # keeps the text, which the views have not delivered yet
                    pass
            reply = await super().result()
            stopped = "the stream was stopped" if self.outcome == "stopped" else ""
            value = self._output.read(self._api.answer_of(reply, stopped))
            return cast("R", convert_reply(self._api.parsed, reply, value=value))
        except StreamInterruptedError as error:
            problem = Held(self._as_cut_off(error))
        raise problem.take()


class SnapshotView(ValueView[Any]):
    """Yields the partial value of a stream whenever it changes."""

    _stream: OutputStream[Any, Any, Any, Any]

    def __init__(self, stream: OutputStream[Any, Any, Any, Any]) -> None:
        super().__init__(stream)
        self._changes = 0  # of the value that this view has seen: another view may have read more

    async def __anext__(self) -> Any:
        reader, is_ended = self._stream._reader, False
        while True:
            if reader.changes != self._changes:
                self._changes = reader.changes
                value = self._stream._current_value()
                if value is not msgspec.UNSET:
                    return value
            elif is_ended:
                raise StopAsyncIteration
            else:
                is_ended = not await self._stream._advance()


class ItemView(ValueView[V]):
    """Yields the elements of a list in a stream's value, one by one."""

    _stream: OutputStream[Any, Any, Any, Any]

    def __init__(self, stream: OutputStream[Any, Any, Any, Any], path: str, output: Output[V]) -> None:
        super().__init__(stream)
        self._output = output
        self._path = path
        self._names = path.split(".") if path else []
        self._list: list[Any] | None = None
        self._yielded = 0

    async def __anext__(self) -> V:
        while True:
            items = self._find_list()
            if items is not None and self._yielded < self._stream._reader.closed_items(items):
                self._yielded += 1
                return self._element(items, self._yielded - 1)
            if not await self._stream._advance():
                raise StopAsyncIteration

    def _find_list(self) -> list[Any] | None:
        """Returns the list, or None if it has not begun."""
        value = self._stream._current_value()
        for name in self._names:
            value = value.get(name) if is_object(value) else None
        if not isinstance(value, list):
            return None
        if value is not self._list:  # the first list, or that of a duplicate key, where the last wins
            self._list, self._yielded = value, 0
        return self._list

    def _element(self, items: list[Any], index: int) -> V:
        try:
            return self._output.convert(items[index])
        except MismatchError as mismatch:
            item = f"{self._path}[{index}]"
            faults = [
                (reason, f"{item}.{path}" if path and not path.startswith("[") else item + path)
                for reason, path in mismatch.faults
            ]
        raise self._stream._invalid(f"an item of the answer is invalid: {describe_faults(faults)}", faults[0][1])
