"""Functions as tools: describes a function to a model, and calls it with the arguments that the model wrote."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Self,
    SupportsIndex,
    TypeVar,
    cast,
    get_type_hints,
    overload,
)

import msgspec

from friendli_async._callables import is_async
from friendli_async._core.body.json_values import json_hook
from friendli_async._core.body.validation_errors import choices_hint
from friendli_async._json import arguments_json, decode_json, encode_json, type_lock
from friendli_async._pydantic import stand_in
from friendli_async._pydantic_types import pydantic_adapter
from friendli_async.chat.faults import describe_faults, faults_of
from friendli_async.chat.inputs import LocalTool, check_timeout
from friendli_async.chat.schema import SchemaBuilder, reason_of, schema_name
from friendli_async.errors import ToolError
from friendli_async.tools.docstring import parse_docstring

if TYPE_CHECKING:
    from anyio import CapacityLimiter
    from anyio.lowlevel import RunVar

__all__ = ["FunctionTool", "LocalTool", "ToolDefinitionError", "tool"]

P = ParamSpec("P")
# The type of the function. With a ParamSpec instead, mypy would infer list[object] for a list of different tools.
F_co = TypeVar("F_co", covariant=True)
S = TypeVar("S")
R = TypeVar("R")

_OUTSIDE: Final = "a class or static method must be wrapped outside the class, such as tool(Desk.count)"
_UNBOUND: Final = {"cls": _OUTSIDE, "self": "it is a method: take it from an instance, such as Desk().note"}
_MAX_THREADS: Final = 40  # in an event loop; anyio's own limit
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class ToolDefinitionError(TypeError):
    """A function cannot be used as a tool; the message gives the reason. Raised before anything is sent."""


def _unusable(name: str, reason: str) -> ToolDefinitionError:
    return ToolDefinitionError(f"{name}() cannot be a tool: {reason}")


class _Parameters(msgspec.Struct, frozen=True):
    """The parameters of a function, as a schema and as decoders."""

    schema: dict[str, Any]
    decoder: msgspec.json.Decoder[Any]
    lax: msgspec.json.Decoder[Any]
    """Accepts values of another JSON type: "5" for 5."""


class FunctionTool(Generic[F_co]):
    """A tool that wraps a function. Calling it calls the function; ``chat.run`` calls ``run``.

    It may decorate a method: attribute access on an instance then returns a tool that is bound to the instance. It is
    pickled by its name, like a function. Only cloudpickle (as in Ray) can pickle one of the main program, as a whole.

    Attributes:
        name: The name that the model sees.
        description: The description that the model sees.
        timeout: Seconds that a call may take; None is no limit, and UNSET the ``tool_timeout`` of the run.
    """

    __wrapped__: F_co
    _fn: Callable[..., Any]

    def __init__(
        self: FunctionTool[Callable[P, R]],
        fn: Callable[P, R],
        name: str | None = None,
        description: str | None = None,
        timeout: float | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> None:
        inner: Any = fn
        if isinstance(inner, FunctionTool):
            name = inner.name if name is None else name
            description = inner.description if description is None else description
            timeout = inner.timeout if timeout is msgspec.UNSET else timeout
        given: dict[str, Any] = getattr(fn, "__dict__", {})
        own = ("__wrapped__", "__signature__")  # those of a function are not those of its bound method
        vars(self).update({k: value for k, value in given.items() if k not in own and not hasattr(FunctionTool, k)})
        functools.update_wrapper(self, fn, updated=())
        self._fn = fn
        self._is_async = _is_async(fn)
        self._cached: list[_Parameters] = []  # empty, or one item
        self._cached_of_bound: list[_Parameters] = []  # the same for the bound method, shared by all instances
        self.name: str = _tool_name(name, fn)
        self.timeout: float | msgspec.UnsetType | None = check_timeout(timeout, "timeout")
        text, self._descriptions = parse_docstring(_docstring(fn))
        self.description: str | None = _tool_description(description, text)
        _keyword_parameters(self.name, fn)

    def __call__(self: FunctionTool[Callable[P, R]], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls the function directly."""
        result: R = self._fn(*args, **kwargs)
        return result

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> Self: ...
    @overload
    def __get__(
        self: FunctionTool[Callable[Concatenate[S, P], R]], instance: S, owner: type[Any] | None = None, /
    ) -> FunctionTool[Callable[P, R]]: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None, /) -> FunctionTool[Any]:
        """Returns a tool that is bound to the instance."""
        bind: Any = getattr(type(self._fn), "__get__", None)
        if instance is None or bind is None:
            return self
        if instance is owner:  # a class method of Python before 3.13; later ones create this method themselves
            return cast("FunctionTool[Any]", types.MethodType(cast("Callable[..., Any]", self), instance))
        bound: FunctionTool[Any] = FunctionTool(
            bind(self._fn, instance, owner), self.name, self.description, self.timeout
        )
        bound._cached = self._cached_of_bound
        return bound

    def __repr__(self) -> str:
        return f"<tool {self.name}{inspect.signature(self._fn)}>"

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> str | tuple[Any, ...]:
        """Pickles a tool that has replaced its function by its name, since pickle cannot find the function any more.

        Not in the main program, which is another one in a worker of Ray: cloudpickle takes a function there as a whole.
        """
        name: str = getattr(self, "__qualname__", "")
        found: Any = None if self.__module__ == "__main__" else sys.modules.get(self.__module__)
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else super().__reduce_ex__(protocol)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_cached": [], "_cached_of_bound": []}  # decoders cannot be pickled

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(self.__getstate__())
        return copied

    @property
    def parameters(self) -> dict[str, Any]:
        """The JSON schema of the arguments, from annotations, defaults and docstring.

        Raises:
            ToolDefinitionError: A parameter has no type, or a type that JSON cannot represent.
        """
        return self._parameters.schema

    async def run(self, arguments: str) -> str:
        """Calls the function with the arguments that a model wrote; runs a plain function in a worker thread.

        A thread cannot be cancelled: if the call is, the function still runs to its end, and its result is discarded.

        Args:
            arguments: A JSON object as text; "" means an empty one.

        Returns:
            The result, a str unchanged, anything else as JSON.

        Raises:
            ToolError: The arguments are invalid (``kind`` is "arguments"), or the result is not JSON ("result").
            Exception: What the function raises.
        """
        keywords = self._decode_arguments(arguments)
        call: Callable[[], Any] = functools.partial(self._fn, **keywords)
        if self._is_async:
            result = await call()
        else:
            from anyio import to_thread

            result = await to_thread.run_sync(call, abandon_on_cancel=True, limiter=_thread_limiter())
            if inspect.isawaitable(result):  # a plain function that returns a coroutine
                result = await result
        return _encode_result(result)

    def _decode_arguments(self, arguments: str) -> dict[str, Any]:
        text = arguments_json(arguments)
        try:
            try:
                decoded = decode_json(text, self._parameters.decoder)
            except msgspec.ValidationError as error:
                message = f"{error}{choices_hint(self._parameters.decoder.type, str(error))}"
                try:
                    decoded = decode_json(text, self._parameters.lax)
                except msgspec.ValidationError:
                    raise ToolError(f"invalid arguments: {message}", kind="arguments") from None
        except (ValueError, RecursionError) as error:
            raise ToolError(f"the arguments are not valid JSON: {error}", kind="arguments") from None
        values = ((name, getattr(decoded, name)) for name in decoded.__struct_fields__)
        return {name: value for name, value in values if value is not msgspec.UNSET}

    @property
    def _parameters(self) -> _Parameters:
        """The parameters, built on first use: types may be defined after the function."""
        if not self._cached:
            self._cached.append(_build_parameters(self.name, self._fn, self._descriptions))
        return self._cached[0]


@functools.cache
def _thread_limiters() -> RunVar[CapacityLimiter]:
    from anyio.lowlevel import RunVar

    return RunVar("friendli_async_tool_threads")


def _thread_limiter() -> CapacityLimiter:
    """Returns the limiter of the worker threads for tools in the running event loop.

    With anyio's default one, tools that hang would stop every route of a FastAPI app that has a plain dependency.
    """
    from anyio import CapacityLimiter

    limiter = _thread_limiters().get(None)
    if limiter is None:
        _thread_limiters().set(limiter := CapacityLimiter(_MAX_THREADS))
    return limiter


@overload
def tool(
    fn: Callable[P, R],
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | msgspec.UnsetType | None = msgspec.UNSET,
) -> FunctionTool[Callable[P, R]]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | msgspec.UnsetType | None = msgspec.UNSET,
) -> Callable[[Callable[P, R]], FunctionTool[Callable[P, R]]]: ...
def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | msgspec.UnsetType | None = msgspec.UNSET,
) -> Any:
    """Makes a function a tool, as a decorator (``@tool``, ``@tool(name=...)``) or as a call (``tool(fn)``).

    The model sees the docstring up to its first section, and the parameters with their types, their defaults and their
    descriptions from a Google-style ``Args:`` section or ``Annotated[..., msgspec.Meta(description=...)]``, pydantic's
    ``Field``, or a string. The model's arguments are decoded into the annotated types before the function is called.

    Supports plain and async functions, bound methods, ``functools.partial`` (arguments that it binds by keyword are no
    parameters), and objects with ``__call__``. Wrap a class or static method outside its class: ``tool(Desk.count)``.

    Args:
        fn: The function. Each parameter needs a type (``Any`` accepts any JSON) and must accept its name as keyword.
        name: The name that the model sees; the function's name by default.
        description: The description that the model sees; the docstring's by default.
        timeout: Seconds that a call may take; by default, the ``tool_timeout`` of the run. None is no limit.

    Returns:
        The tool, which can still be called like the function.

    Raises:
        ToolDefinitionError: The function cannot be a tool: it has ``*args``, ``**kwargs``, positional-only parameters,
            a ``Field`` of pydantic as a default, a name that the API does not accept, or a description that is not
            text, or it is a generator.
        ValueError: ``timeout`` is not a number above 0.
    """
    if fn is None:
        return functools.partial(FunctionTool[Any], name=name, description=description, timeout=timeout)
    return FunctionTool(fn, name, description, timeout)


# --- inspecting a function -------------------------------------------------------------------------------------------


def _unwrap(fn: Callable[..., Any]) -> Any:
    """Returns the function or bound method inside partials and wrappers, or the ``__call__`` of an object."""
    inner: Any = fn
    while True:
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        elif isinstance(call := _dunder_call(inner), types.FunctionType):
            inner = call
        else:
            return inner


def _is_async(fn: Callable[..., Any]) -> bool:
    if isinstance(fn, FunctionTool):
        return fn._is_async  # pyright: ignore[reportPrivateUsage]  # a tool that wraps another tool
    return is_async(fn)


def _dunder_call(callable_object: object) -> object:
    """Returns the ``__call__`` that an object's class defines."""
    return inspect.getattr_static(type(callable_object), "__call__", None)


def _tool_name(name: str | None, fn: Callable[..., Any]) -> str:
    if isinstance(fn, classmethod | staticmethod):
        raise ToolDefinitionError(_OUTSIDE)
    if not callable(fn):
        raise ToolDefinitionError(f"{type(fn).__name__} cannot be a tool: it is not callable")
    inner = fn.func if isinstance(fn, functools.partial) else fn
    found = name if name is not None else getattr(inner, "__name__", type(inner).__name__)
    if not isinstance(found, str) or _NAME.fullmatch(found) is None:
        raise ToolDefinitionError(f"{found!r} cannot be a tool's name (letters, digits, _ and -, 1 to 64): pass name=")
    return found


def _tool_description(description: object, docstring: str) -> str | None:
    if description is None:
        return docstring or None
    if not isinstance(description, str):
        raise ToolDefinitionError(f"{description!r} cannot be a tool's description: it is not text")
    return description


def _docstring(fn: Callable[..., Any]) -> str | None:
    if isinstance(fn, functools.partial):  # its docstring is that of functools.partial
        return None
    text = fn.__doc__  # not inspect.getdoc, which looks for a docstring in the class, and so creates the tool again
    return inspect.cleandoc(text) if isinstance(text, str) else None


def _keyword_parameters(name: str, fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters that a model may pass.

    Raises:
        ToolDefinitionError: A parameter cannot be passed by keyword; the function is a generator or has no signature.
    """
    inner = _unwrap(fn)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise _unusable(name, "it is a generator, and a tool returns one result")
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (ValueError, TypeError):
        raise _unusable(name, "its signature cannot be determined") from None
    for parameter in parameters:
        if parameter.name in _UNBOUND and parameter.annotation is parameter.empty:
            continue  # a method that is not bound yet may take it by position: see ``_resolve_types``
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            shown, kind = str(parameter).partition(":")[0], parameter.kind.description
            raise _unusable(name, f"its parameter {shown!r} is {kind}, but a model passes arguments by name")
        if hasattr(parameter.default, "json_schema_extra"):  # pydantic's FieldInfo, or FastAPI's Query
            default = "a Field, which a call without the argument would receive; use Annotated[..., Field(...)]"
            raise _unusable(name, f"the default of its parameter {parameter.name!r} is {default}")
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    return [parameter for parameter in parameters if parameter.name not in bound]


def _build_parameters(name: str, fn: Callable[..., Any], descriptions: Mapping[str, str]) -> _Parameters:
    parameters = _keyword_parameters(name, fn)
    hints = _resolve_types(name, fn, parameters)
    fields: list[Any] = []
    try:
        for parameter in parameters:
            kind: Any = _decodable(hints[parameter.name])
            if parameter.default is parameter.empty:
                fields.append((parameter.name, kind))
            else:  # if the model omits it, the function's own default applies
                fields.append((parameter.name, kind | msgspec.UnsetType, msgspec.UNSET))
        arguments = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        with type_lock:
            decoder = msgspec.json.Decoder(arguments, dec_hook=_decode_pydantic)
        schema = _build_schema(arguments, parameters, hints, descriptions)
        lax = msgspec.json.Decoder(arguments, dec_hook=_decode_pydantic, strict=False)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _unusable(name, reason_of(error)) from error
    return _Parameters(schema, decoder, lax)


def _resolve_types(name: str, fn: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """Returns the types of the parameters, with strings resolved; the return type does not matter."""
    for parameter in parameters:
        if parameter.annotation is parameter.empty:
            if parameter.name in _UNBOUND:
                raise _unusable(name, _UNBOUND[parameter.name])
            raise _unusable(name, f"its parameter {parameter.name!r} has no type annotation (Any accepts any JSON)")
    inner = _unwrap(fn)
    annotated = types.SimpleNamespace(__annotations__={each.name: each.annotation for each in parameters})
    names = {variable.__name__: variable for variable in getattr(inner, "__type_params__", ())}
    try:
        return get_type_hints(annotated, getattr(inner, "__globals__", {}), names, include_extras=True)
    except NameError as error:
        where = "at run time, at the top level of its module"
        raise _unusable(name, f"{error}; the types of its parameters must be available {where}") from None


def _build_schema(
    arguments: type[Any],
    parameters: list[inspect.Parameter],
    hints: Mapping[str, Any],
    descriptions: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the schema of the arguments: an object, with the descriptions and defaults of the parameters."""
    schema = SchemaBuilder(strict=False, with_pydantic=True).build(msgspec.inspect.type_info(arguments))
    for parameter in parameters:
        property_schema: dict[str, Any] = schema["properties"][parameter.name]
        metadata: tuple[object, ...] = getattr(hints[parameter.name], "__metadata__", ())
        described = any(getattr(item, "description", None) is not None for item in metadata)
        words = next((item for item in metadata if isinstance(item, str)), None)
        if not described and (text := words or descriptions.get(parameter.name)):
            property_schema["description"] = text  # instead of the docstring of its type
        if parameter.default is not parameter.empty:
            with suppress(*_NOT_JSON):  # a default that JSON cannot represent is omitted
                property_schema["default"] = json.loads(_encode(parameter.default))
    return schema


# --- types of pydantic -----------------------------------------------------------------------------------------------


def _decodable(kind: Any) -> Any:
    """Returns the type that msgspec decodes for a parameter: a stand-in if it has constraints of pydantic.

    Raises:
        TypeError: A constraint in the type would be ignored.
    """
    adapter = pydantic_adapter(kind, models=False)
    return kind if adapter is None else stand_in(schema_name(kind), adapter)


def _decode_pydantic(kind: Any, value: object) -> Any:
    try:
        return kind.model_validate_json(encode_json(value))  # of Python's values, strict models would reject dates
    except ValueError as error:
        faults = faults_of(error, kind) or [("pydantic cannot read it: it has a lone surrogate, or is too deep", "")]
        raise ValueError(describe_faults(faults)) from None


# --- results ---------------------------------------------------------------------------------------------------------


def _encode_result(result: object) -> str:
    if isinstance(result, str):
        return str.__str__(result)
    try:
        return _encode(result)
    except _NOT_JSON as error:
        raise ToolError(f"the tool's result cannot be serialized: {error}", kind="result") from None


def _encode(value: object) -> str:
    """Encodes a value as JSON. Raises one of ``_NOT_JSON`` if it has no JSON form."""
    encoded = encode_json(value, _encoder).decode()
    if "null" in encoded:
        _require_finite(value)
    return encoded


def _require_finite(value: object) -> None:
    """Raises ValueError if a value contains NaN or infinity, which msgspec encodes as null."""

    def convert(inner: object) -> Any:
        return None if isinstance(inner, msgspec.Raw) else json_hook(inner)

    json.dumps(msgspec.to_builtins(value, enc_hook=convert, str_keys=True), allow_nan=False)


_encoder: Final = msgspec.json.Encoder(enc_hook=json_hook)
_NOT_JSON: Final = (TypeError, ValueError, NotImplementedError, RecursionError)
