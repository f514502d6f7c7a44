"""Replies in a checkpoint: how they are encoded, and restored with their type.

A line has the JSON of a reply and the name of its type. The name alone restores replies of this library. A value of the
user's own type, also inside a parsed reply, needs the type itself: from ``reply_type``, or from the return annotation
of ``call``. A name in a file is never imported.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from types import SimpleNamespace, UnionType
from typing import Any, Final, Generic, TypeGuard, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
import msgspec.inspect
from msgspec import UNSET

from friendli_async._hints import shortened
from friendli_async._json import decode_json, encode_json, prepared
from friendli_async._pydantic import dump_model
from friendli_async._pydantic_types import pydantic_adapter
from friendli_async.bulk.errors import CheckpointError
from friendli_async.chat.output import output_of
from friendli_async.replies import HasValue, Reply

R = TypeVar("R")

_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_LISTS: Final = (list, set, frozenset)
_CHANGED: Final = "; if the type has changed since, use another file"
_Decode = Callable[[bytes], Any]
_encoder: Final = msgspec.json.Encoder(enc_hook=functools.partial(dump_model, by_alias=True, round_trip=True))


class ReplyCodec(Generic[R]):
    """Encodes replies and restores them.

    Args:
        reply_type: The type that replies are restored to. None: JSON values and replies of this library have their own
            type, and others that of the return annotation of ``call``.
        call: The function that returns the replies.

    Raises:
        TypeError: ``reply_type`` cannot be decoded from JSON.
    """

    def __init__(self, reply_type: Any = None, call: object = None) -> None:
        self._is_declared = reply_type is not None
        self._undecodable: dict[str | None, str] = {}
        self._given: list[tuple[str, _Decode]] = []
        kind = reply_type if self._is_declared else _return_type(call)
        try:
            if self._is_declared or kind is not Any:
                self._given.append((_spelled(kind), _decoder(kind)))
        except TypeError as error:
            if self._is_declared:
                raise
            self._undecodable[_spelled(kind)] = f": `call` is annotated with it, but it cannot be restored: {error}"
        self._decoders: dict[str | None, list[tuple[str, _Decode]]] = {None: [("JSON value", _decoder(Any))]}
        self._restored: set[str | None] = set()

    def encode(self, key: str | int, reply: object) -> tuple[str | None, bytes]:
        """Returns the name of a reply's type, None for JSON values, and its JSON.

        Raises:
            CheckpointError: The reply has no JSON form.
        """
        try:
            return _type_name(reply), encode_json(reply, _encoder)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            kind = type(reply)
            if _is_parsed(kind):  # its value is restored from the model's answer
                fields: dict[str, object] = msgspec.structs.asdict(cast("Reply", reply))
                del fields[kind.value_field]
                return _type_name(reply), encode_json({**fields, "value": None}, _encoder)
            raise CheckpointError(
                f"the reply of row {shortened(key)} cannot be written: {error}. Let `call` return JSON, a reply of "
                "this library, or a struct, dataclass or pydantic model of JSON values"
            ) from error

    def decode(self, key: str | int, name: str | None, data: bytes) -> R:
        """Restores a reply.

        Raises:
            CheckpointError: Its type is not known, or its JSON does not match the type.
        """
        failures: dict[str, Exception] = {}
        for kind, decode in self._candidates(name):
            try:
                reply = decode(data)
                if self._is_declared or _type_name(reply) == name:
                    return cast("R", reply)
            except (ValueError, RecursionError) as failure:
                failures.setdefault(kind, failure)
        if not failures:
            advice = self._undecodable.get(name, _hint(name))
            raise CheckpointError(f"the type of the stored reply of row {shortened(key)} is not known{advice}")
        kind = name if name in failures else next(iter(failures))
        error = failures[kind]
        hint = "" if name is None else _CHANGED if name == kind else _hint(name)
        raise CheckpointError(
            f"the stored reply of row {shortened(key)} is not a valid {kind}: {error}{hint}"
        ) from error

    def _candidates(self, name: str | None) -> list[tuple[str, _Decode]]:
        """Returns the types that a name may stand for, and their decoders."""
        if self._is_declared:
            return self._given
        if name is not None and name not in self._decoders:  # the user's type comes first: it may be named like ours
            library = _library_decoder(name)
            self._decoders[name] = self._given if library is None else [*self._given, (name, library)]
        return self._decoders[name]

    def check(self, reply: object, name: str | None, restore: Callable[[], object]) -> None:
        """Checks, for the first reply of each type, that a written reply can be restored; ``name`` is from ``encode``.

        Raises:
            CheckpointError: It cannot; see ``decode``.
        """
        if name not in self._restored:
            if type(restore()) is not type(reply) and name is not None and not self._is_declared:
                raise CheckpointError(f"another type is named {name}, too{_hint(name)}")
            self._restored.add(name)


# --- encoding --------------------------------------------------------------------------------------------------------


def _type_name(reply: object) -> str | None:
    """Returns a reply's type as it is written in code; None if its JSON is restored as it is."""
    kind: Any = type(reply)
    name: str = kind.__name__
    if not _is_named_by_content(kind):
        return name
    if _is_json(reply):
        return None
    items: Any = reply
    if _is_parsed(kind):
        value = getattr(items, kind.value_field)
        inner = None if value is UNSET else _type_name(value)
        return name if inner is None else f"{name}[{inner}]"
    if issubclass(kind, dict) and items:
        return f"{name}[{_union(items)}, {_union(items.values())}]"
    if issubclass(kind, _LISTS) and items:
        return f"{name}[{_union(items)}]"
    if kind is tuple and items:
        return f"tuple[{', '.join(_type_name(item) or type(item).__name__ for item in items)}]"
    return name


@functools.lru_cache
def _is_named_by_content(kind: type[Any]) -> bool:
    """Whether the values of a type may have different names."""
    return kind in _SCALARS or issubclass(kind, (dict, tuple, *_LISTS)) or _is_parsed(kind)


def _union(values: Collection[object]) -> str:
    names = {_type_name(value) or type(value).__name__ for value in values}
    ordered = sorted(names, key=str.lower)  # a restored set has another order
    return " | ".join("None" if name == "NoneType" else name for name in ordered)


def _is_json(value: object) -> bool:
    """Whether a value has the types that its JSON is decoded to."""
    kind = type(value)
    if kind is dict:
        items = cast("dict[object, object]", value)
        if not {*map(type, items)} <= {str}:
            return False
        inner: Collection[object] = items.values()
    elif kind is list:
        inner = cast("list[object]", value)
    else:
        return kind in _SCALARS
    return {*map(type, inner)} <= _SCALARS or all(map(_is_json, inner))


# --- decoding --------------------------------------------------------------------------------------------------------


def _decoder(kind: Any) -> _Decode:
    """Returns the decoder of a type.

    Raises:
        TypeError: The type cannot be decoded from JSON.
    """
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for member in members:
        if _is_parsed(get_origin(member)):
            return _parsed_decoder(member)
    adapter = pydantic_adapter(kind)
    if adapter is not None:
        return cast("_Decode", adapter.validate_json)
    if isinstance(msgspec.inspect.type_info(prepared(kind)), msgspec.inspect.CustomType):
        raise TypeError(f"reply_type must be a type that msgspec or pydantic decodes, not {kind!r}")
    return _json_decoder(kind)


def _json_decoder(kind: Any) -> _Decode:
    """Returns the decoder of a prepared type."""
    return functools.partial(decode_json, decoder=msgspec.json.Decoder(kind))


def _parsed_decoder(kind: Any) -> _Decode:
    """Returns the decoder of a parsed reply or a run's result, whose value is parsed again from the model's answer.

    What the value was written as may be another one: pydantic masks secrets, and validates a second time.
    """
    from friendli_async.chat.answer_tool import restore_answer  # loaded, unless no run has ended with a value
    from friendli_async.chat.run import ParsedRunResult

    origin: Any = get_origin(kind)
    [value_type] = get_args(kind)
    decode = _decoder(origin)
    output = None if value_type is Any or isinstance(value_type, TypeVar) else output_of(value_type)
    field: str = origin.value_field

    def decode_parsed(data: bytes) -> Any:
        if data == b"null":
            return None
        reply = decode(data)
        if output is None or getattr(reply, field) is UNSET:
            return reply
        is_run = origin is ParsedRunResult
        value = restore_answer(output, reply.reply) if is_run else output.decode(reply.text)
        return msgspec.structs.replace(reply, **{field: value})

    return decode_parsed


def _library_decoder(name: str) -> _Decode | None:
    """Returns the decoder of a reply type of this library; None if its name is another's, or has a type argument."""
    kinds: dict[str, Any] = {kind.__name__: kind for kind in _library_reply_types(Reply)}
    if name == "RunResult" or name.startswith("Parsed"):  # loaded on first use, maybe not yet in this process
        from friendli_async.chat.run import ParsedRunResult, RunResult
        from friendli_async.chat.structured import ParsedCompletion
        from friendli_async.responses.structured import ParsedResponse

        kinds |= {each.__name__: each for each in (RunResult, ParsedRunResult, ParsedCompletion, ParsedResponse)}
    return _json_decoder(prepared(kinds[name])) if name in kinds else None


def _library_reply_types(kind: type[Reply]) -> Iterator[type[Reply]]:
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("friendli_async."):
            yield inner
        yield from _library_reply_types(inner)


def _is_parsed(kind: object) -> TypeGuard[type[HasValue]]:
    """Whether a type is a parsed reply or the result of a parsed run, without a type argument."""
    return isinstance(kind, type) and issubclass(kind, HasValue) and bool(getattr(kind, "__parameters__", ()))


def _spelled(kind: Any) -> str:
    """Returns a type as it is written in code."""
    if isinstance(kind, type):
        return kind.__name__
    return re.sub(r"[\w.<>]+\.(?=\w)", "", repr(kind))


def _hint(name: str | None) -> str:
    return f": pass reply_type={name}, or annotate `call` with this return type"


# --- annotations -----------------------------------------------------------------------------------------------------


def _return_type(call: object) -> Any:
    """Returns the type that a coroutine function is annotated to return, or Any if it is not known."""
    while isinstance(call, functools.partial):
        call = cast("functools.partial[object]", call).func
    try:
        function: Any = call if inspect.isroutine(call) else type(cast("Any", call)).__call__
        function = inspect.unwrap(getattr(function, "__func__", function))
        annotations: Mapping[str, object] = {"return": function.__annotations__["return"]}
        names = inspect.getclosurevars(function).nonlocals
        hints = get_type_hints(SimpleNamespace(__annotations__=annotations), function.__globals__, names)
    except Exception:  # no annotation, or one with a name that exists for type checkers only
        return Any
    kind = hints["return"]
    if not inspect.iscoroutinefunction(function) and get_origin(kind) in (Awaitable, Coroutine):
        kind = get_args(kind)[-1]
    return kind
