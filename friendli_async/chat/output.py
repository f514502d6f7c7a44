"""Structured output: requests an answer as a value of a type, parses it, and exposes it while it streams."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast, overload

import msgspec

from friendli_async._core.body.choices import choices_hint
from friendli_async._core.held import Held
from friendli_async.chat.incremental_json import JSONError, JSONReader, read_json
from friendli_async.chat.schema import check_strict, description_of, json_schema, pydantic_adapter, schema_name
from friendli_async.errors import (
    ArgumentError,
    FriendliError,
    OutputCutOffError,
    OutputError,
    OutputInvalidError,
    StreamInterruptedError,
)
from friendli_async.replies import (
    Meta,
    Partial,
    Reply,
    add_usage,
    as_chat_usage,
    attach_meta,
    convert_reply,
    partial_of,
)
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async._core.call import StreamOpening

__all__ = ["ItemView", "OutputStream", "SnapshotView"]

E = TypeVar("E")
R = TypeVar("R", bound=Reply)
U = TypeVar("U")
V = TypeVar("V")
T = TypeVar("T")

_ROOT: Final = "value"
"""Key of the wrapper object. Servers with a strict form require an object at the root, so other values are wrapped."""


_MAX_FAULTS: Final = 10
_MAX_REASON: Final = 300  # characters

_Faults = Sequence[tuple[str, str]]
"""What is wrong with an answer: reasons and paths, at least one."""


class _MismatchError(ValueError):
    """A text does not match a type."""

    def __init__(self, faults: _Faults) -> None:
        super().__init__(faults)
        self.faults = faults


class _Wrapper(msgspec.Struct):
    value: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a reply that are needed to parse its value."""

    reply: Reply
    text: str
    cut: str = ""
    """Why the answer was truncated; "" if nothing indicates that it was."""
    instead: str = ""
    """What the model did instead of answering, or ""."""


def answer_from(reply: Any, cut: str, refusal: str | None) -> Answer:
    """Returns the answer of a reply. Tool calls may be what a truncation left of one, a refusal is final."""
    instead = ""
    if refusal:
        instead = f"the model refused to answer: {refusal}"
    elif not cut and (names := ", ".join(call.function.name for call in reply.tool_calls)):
        instead = f"the model called tools instead of answering: {names}"
    return Answer(reply=reply, text=reply.text, cut=cut, instead=instead)


class Output(Generic[T]):
    """The output type of an answer.

    Args:
        kind: The type.
        strict: See ``json_schema``.

    Attributes:
        name: The type's name, sent to the server.
        description: The type's docstring, sent to the server.
        schema: The schema sent to the server, always that of an object. None if any JSON is allowed.
        is_wrapped: Whether the value is wrapped in an object.

    Raises:
        TypeError: The type has no JSON form.
    """

    def __init__(self, kind: Any, strict: bool = True) -> None:
        self.name: str = schema_name(kind)
        self.description: str | None = description_of(kind)
        schema = json_schema(kind, strict)
        self.is_wrapped: bool = bool(schema) and schema.get("type") != "object"
        self.schema: dict[str, Any] | None = (_wrap_schema(schema) if self.is_wrapped else schema) or None
        self._kind = kind
        self._adapter = pydantic_adapter(kind)
        self._decode: Callable[[bytes | str], T] = (
            msgspec.json.Decoder(kind).decode if self._adapter is None else self._adapter.validate_json
        )

    def declared(self) -> dict[str, object] | None:
        """Returns the declaration of the type that is sent to the server, or None if any JSON is allowed."""
        if self.schema is None:
            return None
        declaration: dict[str, object] = {"name": self.name, "schema": self.schema}
        return declaration if self.description is None else {**declaration, "description": self.description}

    def read(self, answer: Answer) -> T:
        """Returns the value of an answer.

        Raises:
            OutputCutOffError: The answer was truncated.
            OutputInvalidError: The answer does not match the type.
        """
        try:
            value = self.decode(answer.text)
        except _MismatchError as mismatch:
            faults = mismatch.faults
        else:
            # A truncated number still looks complete.
            if not (answer.cut and answer.text[-1:].isdigit()):
                return value
            faults = [("", "")]
        kind: type[OutputError] = OutputInvalidError
        feedback = ""
        if answer.instead:
            message = answer.instead
        elif answer.cut:
            kind, message = OutputCutOffError, f"the answer was truncated: {answer.cut}"
        elif not answer.text.strip():
            message = "the model returned an empty answer"
        else:
            message = f"the answer is not a valid {self.name}: {_describe(faults)}"
            feedback = self.feedback(message)
        raise kind(
            message,
            reply=answer.reply,
            path=faults[0][1],
            text=answer.text,
            feedback=feedback,
            meta=cast("Meta | None", answer.reply.__dict__.get("_meta")),
            partial=partial_of(answer.reply),
        )

    def feedback(self, message: str) -> str:
        """Returns the message that asks the model for another answer after an error."""
        shape = f': {{"{_ROOT}": ...}}' if self.is_wrapped else ""
        return f"This cannot be used: {message}. Answer again, with nothing but JSON that fits the schema{shape}."

    def decode(self, text: str) -> T:
        """Returns the value of a text. A value without its wrapper is accepted: not every server enforces the schema.

        Raises:
            _MismatchError: The text does not match the type.
        """
        try:
            return self._decode(bytes(msgspec.json.decode(text, type=_Wrapper).value) if self.is_wrapped else text)
        except (ValueError, RecursionError) as error:
            faults = self._faults(error)
        if faults and self.is_wrapped and not _is_wrapper(text):
            with suppress(ValueError):
                return self.convert(read_json(text))
            reason, path = faults[0]
            if not path:
                faults = [(reason.replace("`object`", f'`{{"{_ROOT}": ...}}`'), "")]
        if faults:
            raise _MismatchError(faults)
        # The incremental parser gives a more precise error, or reads a lone surrogate, which msgspec rejects.
        try:
            value = read_json(text)
        except JSONError as error:
            faults = [(f"invalid JSON: {error}", "")]
        else:
            return self.convert(self.unwrap(value, value))
        raise _MismatchError(faults)

    def unwrap(self, value: Any, default: Any) -> Any:
        """Returns the value inside parsed JSON, with or without its wrapper, or ``default`` if there is none yet."""
        if not self.is_wrapped or not isinstance(value, dict):
            return value
        return cast("dict[str, Any]", value).get(_ROOT, default)

    def convert(self, value: Any) -> T:
        """Converts parsed JSON to a value of the type.

        Raises:
            _MismatchError: The JSON does not match the type.
        """
        try:
            if self._adapter is None:
                return cast("T", msgspec.convert(value, self._kind, str_keys=True))
            return cast("T", self._adapter.validate_json(msgspec.json.encode(value)))
        except (ValueError, RecursionError) as error:
            faults = self._faults(error) or [(str(error), "")]
        raise _MismatchError(faults)

    def _faults(self, error: Exception) -> _Faults:
        """Returns the faults that a validation error reports: msgspec's one, or all of pydantic's; else none."""
        if isinstance(error, msgspec.ValidationError):
            message = str(error)
            found = _ERROR_PATH.fullmatch(message)
            reason, path = (message, "") if found is None else (found[1], found[2].lstrip("."))
            return [(reason + choices_hint(self._kind, message), path)]
        errors = getattr(error, "errors", None)  # pydantic's
        if not callable(errors):
            return []
        faults = cast("list[dict[str, Any]]", errors(include_url=False, include_input=False))
        if faults[0]["type"] == "json_invalid":
            return []
        return [(fault["msg"], _path_of(fault["loc"])) for fault in faults]

    def check_path(self, path: str) -> None:
        """Checks that a path can lead to a list.

        Raises:
            ArgumentError: It cannot, whatever the answer is.
        """
        if self.schema is None:
            return
        definitions = self.schema.get("$defs", {})
        node = self.schema["properties"][_ROOT] if self.is_wrapped else self.schema
        for name in path.split(".") if path else ():
            node = _resolve_ref(node, definitions)
            if "anyOf" in node or node.get("additionalProperties", False):
                return  # depends on the answer
            if name not in node.get("properties", {}):
                names = ", ".join(map(repr, node.get("properties", {}))) or "none"
                raise ArgumentError(
                    f"no field {name!r} in {self.name}; the fields at this level: {names}", f"items({path!r})"
                )
            node = node["properties"][name]
        if _resolve_ref(node, definitions).get("type", "array") != "array":
            raise ArgumentError(f"not a list in {self.name}", f"items({path!r})")


def _wrap_schema(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in schema.items() if name != "$defs"}
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {
        "type": "object",
        "properties": {_ROOT: inner},
        "required": [_ROOT],
        "additionalProperties": False,
        **definitions,
    }


def _is_wrapper(text: str) -> bool:
    """Whether a text is the wrapper object. An object with further keys may be a value that has a key of that name."""
    try:
        parsed = read_json(text)
    except JSONError:
        return False
    return isinstance(parsed, dict) and cast("dict[str, Any]", parsed).keys() == {_ROOT}


def _resolve_ref(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


_ERROR_PATH: Final = re.compile(r"(?s)(.*) - at (?:`key` in )?`\$([^`]*)`")


def _path_of(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def _describe(faults: _Faults) -> str:
    """Returns what is wrong, with paths, in one line of limited length."""
    lines = [reason[:_MAX_REASON] + (f" (at {path})" if path else "") for reason, path in faults[:_MAX_FAULTS]]
    if (more := len(faults) - _MAX_FAULTS) > 0:
        lines.append(f"and {more} more")
    return "; ".join(lines)


def output_of(kind: Any, strict: bool = True) -> Output[Any]:
    """Returns the output of a type, cached if the type is hashable.

    Raises:
        TypeError: The type has no JSON form.
        ArgumentError: ``strict`` is not a bool.
    """
    check_strict(strict)  # the cache would take 1 for True
    try:
        hash(kind)
    except TypeError:
        return Output(kind, strict)
    return _cached_output(kind, strict)


@lru_cache(maxsize=256)
def _cached_output(kind: Any, strict: bool) -> Output[Any]:
    return Output(kind, strict)


# --- requests --------------------------------------------------------------------------------------------------------


def reject_format_option(method: str, name: str, options: Mapping[str, object]) -> None:
    """Rejects an option that would override the type's schema.

    Raises:
        TypeError: The option is given, as a keyword or in ``extra_body``.
    """
    if name in options or name in cast("Mapping[str, object]", options.get("extra_body") or {}):
        raise TypeError(f"{method}() does not accept {name!r}: it is derived from the type")


async def ask(
    output: Output[Any],
    required: Mapping[str, object],
    reask: object,
    *,
    call: Callable[[Mapping[str, object]], Awaitable[Reply]],
    answer_of: Callable[[Any], Answer],
    again: Callable[[Mapping[str, object], Any, str], Mapping[str, object]],
    parsed: type[R],
) -> R:
    """Calls the model until the answer is valid or ``reask`` is exhausted.

    Args:
        output: The output type.
        required: The parameters of the first call.
        reask: Number of times to ask again.
        call: Makes a call.
        answer_of: Extracts the answer from a reply.
        again: Builds the parameters of the next call from the last ones, the reply, and a message about its error.
        parsed: The class of the reply with a value.

    Raises:
        ArgumentError: ``reask`` is not a non-negative integer.
        OutputError: The last answer is invalid.
    """
    if not isinstance(reask, int) or isinstance(reask, bool) or reask < 0:
        raise ArgumentError(f"Expected a non-negative integer, got {reask!r}", "reask")
    billed: Any = None
    asked = 1
    while True:
        try:
            reply = await call(required)
        except FriendliError as error:
            if billed is not None:
                partial = error.partial or Partial()
                usage = add_usage(as_chat_usage(billed), partial.usage)
                error.partial = msgspec.structs.replace(partial, usage=usage)
            raise
        billed = add_usage(billed, getattr(reply, "usage", None))
        answer = answer_of(convert_reply(type(reply), reply, usage=billed))
        try:
            return convert_reply(parsed, answer.reply, value=output.read(answer), asked=asked)
        except OutputError as error:
            error.asked = asked
            if asked > reask or not error.feedback:
                raise
            feedback = error.feedback
        required = again(required, reply, feedback)
        asked += 1


# --- streams ---------------------------------------------------------------------------------------------------------


class OutputStream(AssembledStream[E, R, U], Generic[E, R, U, V]):
    """A stream whose text is parsed incrementally into a value.

    Its events, ``text()``, ``snapshots()`` and ``items()`` all read the same stream. They can be used one after
    another; snapshots and items include what was read before.

    Raises:
        OutputCutOffError: From ``snapshots()``, ``items()`` and ``result()``: the answer was truncated at its token
            limit or because the stream was interrupted.
        OutputInvalidError: From the same: the answer is not JSON or does not match the type. Text that cannot become
            valid JSON any more closes the stream, with the outcome ``failed``.
    """

    __slots__ = ("_output", "_pick", "_pieces", "_reader")

    _parsed: ClassVar[type[Any]]
    """The class of the reply with a value."""

    def __init__(self, opening: StreamOpening[E, R, U], output: Output[V]) -> None:
        super().__init__(opening)
        self._output = output
        self._pick = self._text_extractor()
        self._reader = JSONReader()
        self._pieces: deque[str] = deque()  # of text, delivered but not yet parsed

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
        return SnapshotView(self, partial(self._advance, until_changed=True), self._current_value)

    @overload
    def items(self, path: str, *, of: type[T]) -> ItemView[T]: ...

    @overload
    def items(self, path: str, *, of: Any = ...) -> ItemView[Any]: ...

    def items(self, path: str, *, of: Any = Any) -> ItemView[Any]:
        """Returns a view that yields the elements of a list in the value, each as soon as it is complete.

        Args:
            path: Path of the list: field names separated by dots, or "" if the value itself is the list.
            of: The type of an element, against which each is validated. By default any JSON.

        Raises:
            TypeError: ``of`` has no JSON form.
            ArgumentError: There is no list at that path.
        """
        self._output.check_path(path)
        closed_items, invalid_item = self._reader.closed_items, self._invalid_item
        return ItemView(self, self._advance, self._current_value, closed_items, output_of(of), invalid_item, path)

    def _invalid_item(self, message: str, path: str) -> FriendliError:
        text, feedback = self.text_so_far, self._output.feedback(message)
        return self._with_received(OutputInvalidError(message, path=path, text=text, feedback=feedback))

    @property
    def text_so_far(self) -> str:
        """The text received so far."""
        return "" if self._open is None else self._open.collector.partial().text

    @staticmethod
    def _answer_of(reply: Any, cut: str = "") -> Answer:
        """Extracts the answer; ``cut`` is the reason of a truncation that the reply itself does not show."""
        raise NotImplementedError

    def _current_value(self) -> Any:
        """Returns the value so far, or UNSET before it has begun."""
        return self._output.unwrap(self._reader.value, msgspec.UNSET) if self._reader.begun else msgspec.UNSET

    async def _advance(self, *, until_changed: bool = False) -> bool:
        """Reads the next piece of text, or all up to the next change of the value.

        Returns False once the stream has ended and its value is validated.
        """
        reader, pieces = self._reader, self._pieces
        before = reader.changes
        while True:
            while pieces:
                self._feed(pieces.popleft())
                if not until_changed or reader.changes != before:
                    return True
            try:
                await self.__anext__()
                continue
            except StopAsyncIteration:
                break
            except StreamInterruptedError as error:
                problem = Held(self._as_cut_off(error))
            raise problem.take()
        if self.outcome == "done":
            await self.result()
        return False

    def _feed(self, piece: str) -> None:
        try:
            self._reader.feed(piece)
            return
        except JSONError as error:
            message = f"the answer is not valid JSON: {error}"
        opened = self._open
        assert opened is not None
        text, feedback = opened.collector.partial().text, self._output.feedback(message)
        problem = Held(OutputInvalidError(message, text=text, feedback=feedback))
        opened.reject(problem.error)
        raise problem.take()

    def _as_cut_off(self, error: FriendliError) -> FriendliError:
        """Returns an interruption as an OutputCutOffError, or unchanged if the stream was not truncated."""
        if self.outcome != "truncated":
            return error
        partial = error.partial or Partial()
        reply = None if self._open is None else self._open.collector.result()
        if reply is not None and error.meta is not None:
            attach_meta(reply, error.meta)
        message = f"the answer was truncated: {error}"
        return OutputCutOffError(message, reply=reply, text=partial.text, meta=error.meta, partial=partial)

    async def result(self) -> R:
        """Reads the rest of the stream and returns the reply, with ``value`` and ``meta``.

        Raises:
            OutputCutOffError: The answer was truncated.
            OutputInvalidError: The answer does not match the type.
            FriendliError: The stream failed or was closed early.
        """
        try:
            reply = await super().result()
            stopped = "the stream was stopped" if self.outcome == "stopped" else ""
            parsed: R = convert_reply(self._parsed, reply, value=self._output.read(self._answer_of(reply, stopped)))
            return parsed
        except StreamInterruptedError as error:
            problem = Held(self._as_cut_off(error))
        raise problem.take()


class _AnswerView(View[V]):
    """A view of the partial value of a stream."""

    def __init__(
        self,
        stream: OutputStream[Any, Any, Any, Any],
        advance: Callable[[], Awaitable[bool]],
        current_value: Callable[[], Any],
    ) -> None:
        super().__init__(stream)
        self._answer = stream
        self._advance = advance
        self._current_value = current_value


class SnapshotView(_AnswerView[Any]):
    """Yields the partial value of a stream whenever it changes."""

    async def __anext__(self) -> Any:
        while await self._advance():
            value = self._current_value()
            if value is not msgspec.UNSET:
                return value
        raise StopAsyncIteration


class ItemView(_AnswerView[V]):
    """Yields the elements of a list in a stream's value, one by one."""

    def __init__(
        self,
        stream: OutputStream[Any, Any, Any, Any],
        advance: Callable[[], Awaitable[bool]],
        current_value: Callable[[], Any],
        closed_items: Callable[[list[Any]], int],
        output: Output[V],
        invalid_item: Callable[[str, str], FriendliError],
        path: str,
    ) -> None:
        super().__init__(stream, advance, current_value)
        self._closed_items = closed_items
        self._output = output
        self._invalid_item = invalid_item
        self._path = path
        self._names = path.split(".") if path else []
        self._list: list[Any] | None = None
        self._yielded = 0

    async def __anext__(self) -> V:
        while True:
            items = self._find_list()
            if items is not None and self._yielded < self._closed_items(items):
                self._yielded += 1
                return self._element(items, self._yielded - 1)
            if not await self._advance():
                raise StopAsyncIteration

    def _find_list(self) -> list[Any] | None:
        """Returns the list, or None if it has not begun."""
        value = self._current_value()
        for name in self._names:
            if not isinstance(value, dict):
                return None
            value = cast("dict[str, Any]", value).get(name)
        if not isinstance(value, list):
            return None
        if value is not self._list:  # the first list, or that of a duplicate key, where the last wins
            self._list, self._yielded = value, 0
        return self._list

    def _element(self, items: list[Any], index: int) -> V:
        try:
            return self._output.convert(items[index])
        except _MismatchError as mismatch:
            item = f"{self._path}[{index}]"
            faults = [
                (reason, f"{item}.{path}" if path and not path.startswith("[") else item + path)
                for reason, path in mismatch.faults
            ]
        raise self._invalid_item(f"an item of the answer is invalid: {_describe(faults)}", faults[0][1])
