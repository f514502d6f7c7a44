"""An answer as a value of a type: what is asked for, how the text is read, and what is seen of it while it arrives."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast, overload

import msgspec

from friendli_async._core.held import Held
from friendli_async.chat.incremental_json import JSONError, JSONReader, read_json
from friendli_async.chat.schema import description_of, json_schema, pydantic_adapter, schema_name
from friendli_async.errors import (
    ArgumentError,
    FriendliError,
    OutputCutOffError,
    OutputError,
    OutputInvalidError,
    StreamInterruptedError,
)
from friendli_async.replies import Meta, Partial, Reply, added, as_chat_usage, attach_meta, remade
from friendli_async.streams.stream import AssembledStream
from friendli_async.streams.views import View

if TYPE_CHECKING:
    from friendli_async._core.events.stream import Opening

__all__ = ["ItemView", "OutputStream", "SnapshotView"]

E = TypeVar("E")
R = TypeVar("R", bound=Reply)
U = TypeVar("U")
V = TypeVar("V")
T = TypeVar("T")

_ROOT: Final = "value"
"""Servers with a strict form want an object at the root: what is none is put into one, under this name."""


class _MisfitError(ValueError):
    """A text is no value of a type. Its two ``args`` are what is wrong, and where."""


class _Wrapped(msgspec.Struct):
    value: msgspec.Raw


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What of a reply matters for its value."""

    reply: Reply
    text: str
    cut: str = ""
    """Why it ended before it was complete, in words; "" where nothing says that it did."""
    instead: str = ""
    """What the model did instead of answering, in words; "" where it did nothing else."""


class Output(Generic[T]):
    """A type that an answer is to be of.

    Args:
        kind: The type.
        strict: See ``json_schema``.

    Attributes:
        name: Its name, for the server.
        description: Its docstring, for the server.
        schema: Its schema, for the server: of an object, always. None where any JSON will do.
        is_wrapped: Whether the value is in an object of ours.

    Raises:
        TypeError: There is no JSON for it.
    """

    def __init__(self, kind: Any, strict: bool = True) -> None:
        self.name: str = schema_name(kind)
        self.description: str | None = description_of(kind)
        schema = json_schema(kind, strict)
        self.is_wrapped: bool = bool(schema) and schema.get("type") != "object"
        self.schema: dict[str, Any] | None = (_wrapped(schema) if self.is_wrapped else schema) or None
        self._kind = kind
        self._adapter = pydantic_adapter(kind)
        self._decode: Callable[[bytes | str], T] = (
            msgspec.json.Decoder(kind).decode if self._adapter is None else self._adapter.validate_json
        )

    def declared(self) -> dict[str, object] | None:
        """What the server is told of the type; None where any JSON will do."""
        if self.schema is None:
            return None
        told: dict[str, object] = {"name": self.name, "schema": self.schema}
        return told if self.description is None else {**told, "description": self.description}

    def read(self, answer: Answer) -> T:
        """The value of an answer.

        Raises:
            OutputCutOffError: It was cut off.
            OutputInvalidError: It is no value of the type.
        """
        try:
            value = self.value_of(answer.text)
        except _MisfitError as misfit:
            reason, path = misfit.args
        else:
            # A number looks complete wherever it is cut.
            if not answer.cut or isinstance(value, bool) or not isinstance(value, int | float):
                return value
            reason = path = ""
        kind: type[OutputError] = OutputInvalidError
        if answer.instead:
            words = answer.instead
        elif answer.cut:
            kind, words = OutputCutOffError, f"the answer is cut off: {answer.cut}"
        elif not answer.text.strip():
            words = "the model answered nothing"
        else:
            words = f"the answer is no {self.name}: {reason}" + (f" (at {path})" if path else "")
        meta = cast("Meta | None", answer.reply.__dict__.get("_meta"))
        raise kind(words, reply=answer.reply, path=path, text=answer.text, meta=meta)

    def value_of(self, text: str) -> T:
        """The value of a text.

        Raises:
            _MisfitError: It is none.
        """
        try:
            if not self.is_wrapped:
                return self._decode(text)
            return self._decode(bytes(msgspec.json.decode(text, type=_Wrapped).value))
        except (ValueError, RecursionError) as error:
            fault = _fault_of(error)
        if fault is not None:
            raise _MisfitError(*fault)
        # What is no JSON, said more precisely; or what is, and only msgspec does not read: a lone surrogate.
        try:
            value = read_json(text)
        except JSONError as error:
            fault = f"it is not JSON, {error}", ""
        else:
            return self.convert(value[_ROOT] if self.is_wrapped else value)
        raise _MisfitError(*fault)

    def convert(self, value: Any) -> T:
        """The value that JSON stands for, once that has been read.

        Raises:
            _MisfitError: It is none.
        """
        try:
            if self._adapter is None:
                return cast("T", msgspec.convert(value, self._kind, str_keys=True))
            return cast("T", self._adapter.validate_json(msgspec.json.encode(value)))
        except (ValueError, RecursionError) as error:
            fault = _fault_of(error) or (str(error), "")
        raise _MisfitError(*fault)

    def check_path(self, path: str) -> None:
        """Refuses a path that leads to no list.

        Raises:
            ArgumentError: It does, whatever the answer will be.
        """
        if self.schema is None:
            return
        definitions = self.schema.get("$defs", {})
        node = self.schema["properties"][_ROOT] if self.is_wrapped else self.schema
        for name in filter(None, path.split(".")):
            node = _followed(node, definitions)
            if "anyOf" in node or node.get("additionalProperties", False):
                return  # that depends on the answer
            if name not in node.get("properties", {}):
                there = ", ".join(map(repr, node.get("properties", {}))) or "none"
                raise ArgumentError(
                    f"items({path!r}): there is no {name!r} in {self.name}; its fields there are {there}"
                )
            node = node["properties"][name]
        if _followed(node, definitions).get("type", "array") != "array":
            raise ArgumentError(f"items({path!r}): that is no list in {self.name}")


def _wrapped(schema: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in schema.items() if name != "$defs"}
    kept = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {
        "type": "object",
        "properties": {_ROOT: inner},
        "required": [_ROOT],
        "additionalProperties": False,
        **kept,
    }


def _followed(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


_PLACE: Final = re.compile(r"(?s)(.*) - at (?:`key` in )?`\$([^`]*)`")


def _fault_of(error: Exception) -> tuple[str, str] | None:
    """What a validator says, and of which place; None where it was not the validator that said it."""
    if isinstance(error, msgspec.ValidationError):
        found = _PLACE.fullmatch(str(error))
        return (str(error), "") if found is None else (found[1], found[2].lstrip("."))
    faults = getattr(error, "errors", None)  # pydantic's
    if not callable(faults):
        return None
    fault = cast("list[dict[str, Any]]", faults(include_url=False, include_input=False))[0]
    if fault["type"] == "json_invalid":
        return None
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"])
    return fault["msg"], path.lstrip(".")


def output_of(kind: Any, strict: bool = True) -> Output[Any]:
    """The output of a type; made once for each.

    Raises:
        TypeError: There is no JSON for it.
    """
    try:
        hash(kind)
    except TypeError:
        return Output(kind, strict)
    return _remembered(kind, strict)


@lru_cache(maxsize=256)
def _remembered(kind: Any, strict: bool) -> Output[Any]:
    return Output(kind, strict)


# --- asking ----------------------------------------------------------------------------------------------------------


def refuse_own_format(method: str, name: str, options: Mapping[str, object]) -> None:
    """Refuses what would take the place of the type's schema.

    Raises:
        TypeError: It is among the options, or in ``extra_body``.
    """
    if name in options or name in cast("Mapping[str, object]", options.get("extra_body") or {}):
        raise TypeError(f"{method}() takes no {name!r}: it is made from the type")


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
    """Asks until the answer fits, or has been asked for often enough.

    Args:
        output: What the answer is to be.
        required: The parameters of the first call.
        reask: How often to ask again.
        call: Makes a call.
        answer_of: What of its reply matters.
        again: The parameters of the next call: of those of the last one, its reply, and what is wrong with that.
        parsed: The class of a reply with its value.

    Raises:
        ArgumentError: ``reask`` is no number of times.
        OutputError: The answer did not fit.
    """
    if not isinstance(reask, int) or isinstance(reask, bool) or reask < 0:
        raise ArgumentError(f"reask: {reask!r} is no number of times")
    billed: Any = None
    asked = 1
    while True:
        try:
            reply = await call(required)
        except FriendliError as error:
            error.partial = error.partial or (None if billed is None else Partial(usage=as_chat_usage(billed)))
            raise
        billed = added(billed, getattr(reply, "usage", None))
        answer = answer_of(remade(type(reply), reply, usage=billed))
        try:
            return remade(parsed, answer.reply, value=output.read(answer), asked=asked)
        except OutputInvalidError as error:
            if asked > reask or not answer.text.strip() or answer.instead:
                raise
            words = f"This cannot be used: {error}. Answer again, with nothing but JSON that fits the schema."
        required = again(required, reply, words)
        asked += 1


# --- streams ---------------------------------------------------------------------------------------------------------


class OutputStream(AssembledStream[E, R, U], Generic[E, R, U, V]):
    """A stream whose text is a value in the making.

    Its events, ``text()``, ``snapshots()`` and ``items()`` are ways of reading one and the same stream: one may follow
    another, and none misses what came before.

    Raises:
        OutputCutOffError: From ``snapshots()``, ``items()`` and ``result()``: the answer ended before it was complete,
            at its limit of tokens or because the stream was cut.
        OutputInvalidError: From the same: it is no JSON, or does not fit the type.
    """

    __slots__ = ("_output", "_pick", "_pieces", "_reader")

    _parsed: ClassVar[type[Any]]
    """The class of a reply with its value."""

    def __init__(self, opening: Opening[E, R, U], output: Output[V]) -> None:
        super().__init__(opening)
        self._output = output
        self._pick = self._wording()
        self._reader = JSONReader()
        self._pieces: deque[str] = deque()  # of text, delivered and not yet read

    async def __anext__(self) -> E:
        event = await super().__anext__()
        piece = self._pick(event)
        if piece:
            self._pieces.append(piece)
        return event

    def snapshots(self) -> SnapshotView:
        """The value so far, again after each piece of text that changes it: a dict, mostly, as ``json`` would give it.

        It is one object, which grows; so a look at it costs the same, however long it is. Copy it (``copy.deepcopy``)
        to keep a state of it, and do not change it. Its last string may be unfinished; one of thousands of characters
        is up to a hundredth behind. It has not been validated: only ``result()`` has.
        """
        return SnapshotView(self, self._advance, self._so_far)

    @overload
    def items(self, path: str, *, of: type[T]) -> ItemView[T]: ...

    @overload
    def items(self, path: str, *, of: Any = ...) -> ItemView[Any]: ...

    def items(self, path: str, *, of: Any = Any) -> ItemView[Any]:
        """The elements of a list in the value, each as soon as it is complete.

        Args:
            path: Where the list is: names of fields with dots between them; "" where the value itself is the list.
            of: The type of an element; each is checked. By default any JSON.

        Raises:
            TypeError: There is no JSON for ``of``.
            ArgumentError: There is no list at that path.
        """
        self._output.check_path(path)
        return ItemView(self, self._advance, self._so_far, self._reader.closed_items, output_of(of), path)

    @property
    def text_so_far(self) -> str:
        """The text that has arrived."""
        return "" if self._open is None else self._open.collector.partial().text

    @staticmethod
    def _answer_of(reply: Any, cut: str = "") -> Answer:
        """What of a reply matters; ``cut`` is why it is cut where nothing in it says so."""
        raise NotImplementedError

    def _so_far(self) -> Any:
        """The value; UNSET before it has begun."""
        value = self._reader.value
        if self._output.is_wrapped:
            return cast("dict[str, Any]", value).get(_ROOT, msgspec.UNSET) if isinstance(value, dict) else msgspec.UNSET
        return value if self._reader.begun else msgspec.UNSET

    async def _advance(self) -> bool:
        """Reads on until the value has changed; False once the stream has ended, and its value has been found good."""
        reader, pieces = self._reader, self._pieces
        before = reader.changes
        while True:
            while pieces:
                self._feed(pieces.popleft())
                if reader.changes != before:
                    return True
            try:
                await self.__anext__()
                continue
            except StopAsyncIteration:
                break
            except StreamInterruptedError as error:
                problem = Held(self._cut_off(error))
            raise problem.take()
        if self.outcome == "done":
            await self.result()
        return False

    def _feed(self, piece: str) -> None:
        try:
            self._reader.feed(piece)
            return
        except JSONError as error:
            words = f"the answer is not JSON, {error}"
        assert self._open is not None
        partial = self._open.collector.partial()
        raise OutputInvalidError(words, text=partial.text, meta=self.meta, partial=partial)

    def _cut_off(self, error: FriendliError) -> FriendliError:
        """What an interruption means for the answer: that it is cut off, where the stream was not closed on purpose."""
        if self.outcome != "truncated":
            return error
        partial = error.partial or Partial()
        reply = None if self._open is None else self._open.collector.result()
        if reply is not None and error.meta is not None:
            attach_meta(reply, error.meta)
        words = f"the answer is cut off: {error}"
        return OutputCutOffError(words, reply=reply, text=partial.text, meta=error.meta, partial=partial)

    async def result(self) -> R:
        """Reads what is left and returns the whole reply, with its ``value`` and ``meta``.

        Raises:
            OutputCutOffError: The answer ended before it was complete.
            OutputInvalidError: It is no value of the type.
            FriendliError: The stream did not end well, or was closed early.
        """
        try:
            reply = await super().result()
            stopped = "the stream was stopped" if self.outcome == "stopped" else ""
            whole: R = remade(self._parsed, reply, value=self._output.read(self._answer_of(reply, stopped)))
            return whole
        except StreamInterruptedError as error:
            problem = Held(self._cut_off(error))
        raise problem.take()


class _View(View[V]):
    """A way of reading a stream, that advances with what has come of the answer."""

    def __init__(
        self,
        stream: OutputStream[Any, Any, Any, Any],
        advance: Callable[[], Awaitable[bool]],
        so_far: Callable[[], Any],
    ) -> None:
        super().__init__(stream)
        self._answer = stream
        self._advance = advance
        self._so_far = so_far


class SnapshotView(_View[Any]):
    """The value of a stream so far, again and again."""

    async def __anext__(self) -> Any:
        while await self._advance():
            value = self._so_far()
            if value is not msgspec.UNSET:
                return value
        raise StopAsyncIteration


class ItemView(_View[V]):
    """The elements of a list in a stream's value, one after the other."""

    def __init__(
        self,
        stream: OutputStream[Any, Any, Any, Any],
        advance: Callable[[], Awaitable[bool]],
        so_far: Callable[[], Any],
        closed: Callable[[list[Any]], int],
        output: Output[V],
        path: str,
    ) -> None:
        super().__init__(stream, advance, so_far)
        self._closed = closed
        self._output = output
        self._path = path
        self._names = path.split(".") if path else []
        self._list: list[Any] | None = None
        self._given = 0

    async def __anext__(self) -> V:
        while True:
            items = self._found()
            if items is not None and self._given < self._closed(items):
                self._given += 1
                return self._element(items, self._given - 1)
            if not await self._advance():
                raise StopAsyncIteration

    def _found(self) -> list[Any] | None:
        """The list, once there is something of it."""
        value = self._so_far()
        for name in self._names:
            if not isinstance(value, dict):
                return None
            value = cast("dict[str, Any]", value).get(name)
        if not isinstance(value, list):
            return None
        if value is not self._list:  # the first, or that of a key that came twice: the last counts
            self._list, self._given = value, 0
        return self._list

    def _element(self, items: list[Any], index: int) -> V:
        try:
            return self._output.convert(items[index])
        except _MisfitError as misfit:
            reason, within = misfit.args
        path = f"{self._path}[{index}]" + (f".{within}" if within else "")
        words = f"the answer does not fit: {reason} (at {path})"
        raise OutputInvalidError(words, path=path, text=self._answer.text_so_far, meta=self._answer.meta)
