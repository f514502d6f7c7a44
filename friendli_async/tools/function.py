"""Functions as tools: what a model is told of a function, and a call of it by what the model wrote."""

from __future__ import annotations

import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Final, Generic, ParamSpec, Protocol, TypeVar, cast, get_type_hints, overload

import msgspec

from friendli_async.errors import ToolError
from friendli_async.tools.docstring import described_by

__all__ = ["FunctionTool", "LocalTool", "ToolDefinitionError", "tool"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
R = TypeVar("R")

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class LocalTool(Protocol):
    """What ``chat.run`` can run: a function made into one by ``tool``, a tool of an MCP server, a class of your own."""

    @property
    def name(self) -> str:
        """What the model calls it: letters, digits, ``_`` and ``-``, at most 64."""
        ...

    @property
    def description(self) -> str | None:
        """What the model is told of its use."""
        ...

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON schema of its arguments, an object."""
        ...

    async def run(self, arguments: str) -> str:
        """Calls it.

        Args:
            arguments: What the model wrote: JSON text, not necessarily valid; "" where it wrote none.

        Returns:
            What the model gets.

        Raises:
            ToolError: Its words are what the model gets. Of any other exception it gets class and message.
        """
        ...


class ToolDefinitionError(TypeError):
    """A function cannot be a tool as it is; the message says why. It is raised before anything is sent."""


class _Parameters(msgspec.Struct, frozen=True):
    """What a function takes."""

    schema: dict[str, Any]
    decoder: msgspec.json.Decoder[Any]
    lax: msgspec.json.Decoder[Any]
    """For what is right but for its JSON type: "5" for 5."""


class FunctionTool(Generic[P, R_co]):
    """A function that is a tool as well. Called, it is the function; ``chat.run`` calls it by ``run``.

    As a method decorator it gives a tool bound to the instance, as a function gives a bound method.

    Attributes:
        name: What the model calls it.
        description: What the model is told of its use.
    """

    __wrapped__: Callable[P, R_co]

    def __init__(self, fn: Callable[P, R_co], name: str | None = None, description: str | None = None) -> None:
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._is_async = _is_async(fn)
        self._made: list[_Parameters] = []  # none, or one
        self._made_of_bound: list[_Parameters] = []  # the same of a method, for all its instances
        self.name: str = _checked_name(name, fn)
        is_partial = isinstance(cast("object", fn), functools.partial)  # its docstring is about partials
        text, self._words = described_by(None if is_partial else inspect.getdoc(fn))
        self.description: str | None = text or None if description is None else description
        _check_kinds(self.name, fn, skip_first=_is_in_a_class(fn))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Calls the function, as if it were no tool."""
        return self._fn(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> FunctionTool[P, R_co]: ...
    @overload
    def __get__(
        self: FunctionTool[Concatenate[S, Q], R], instance: S, owner: type[Any] | None = None, /
    ) -> FunctionTool[Q, R]: ...
    def __get__(self, instance: Any, owner: type[Any] | None = None, /) -> FunctionTool[..., Any]:
        """As a method: a tool that is bound to the instance."""
        bind: Any = getattr(type(self._fn), "__get__", None)
        if instance is None or bind is None:
            return self
        bound: FunctionTool[..., Any] = FunctionTool(bind(self._fn, instance, owner), self.name, self.description)
        bound._made = self._made_of_bound
        return bound

    def __repr__(self) -> str:
        try:
            return f"<tool {self.name}{inspect.signature(self._fn)}>"
        except ValueError:
            return f"<tool {self.name}>"

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON schema of the arguments, from annotations, defaults and docstring.

        Raises:
            ToolDefinitionError: There is none: a parameter without a type, or of a type that JSON has no form for.
        """
        return self._parameters.schema

    async def run(self, arguments: str) -> str:
        """Calls the function by what a model wrote; a plain function in a worker thread.

        A thread cannot be cancelled: where the call is, the function runs on to its end, and what it gives is dropped.

        Args:
            arguments: A JSON object as text; "" is an empty one.

        Returns:
            The result: text as it is, anything else as JSON.

        Raises:
            ToolError: The arguments do not fit (``kind`` is "arguments"), or the result is not JSON ("result").
            Exception: What the function raises.
        """
        keywords = self._keywords(arguments)
        call: Callable[[], Any] = functools.partial(cast("Callable[..., Any]", self._fn), **keywords)
        if self._is_async:
            result = await call()
        else:
            from anyio import to_thread

            result = await to_thread.run_sync(call, abandon_on_cancel=True)
            if inspect.isawaitable(result):  # a plain function that gives a coroutine
                result = await result
        return _encoded(result)

    def _keywords(self, arguments: str) -> dict[str, Any]:
        text = arguments.strip() or "{}"
        try:
            try:
                decoded = self._parameters.decoder.decode(text)
            except msgspec.ValidationError as error:
                words = str(error)
                try:
                    decoded = self._parameters.lax.decode(text)
                except msgspec.ValidationError:
                    raise ToolError(f"the arguments do not fit: {words}", kind="arguments") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ToolError(f"the arguments are not JSON: {error}", kind="arguments") from None
        given = ((name, getattr(decoded, name)) for name in decoded.__struct_fields__)
        return {name: value for name, value in given if value is not msgspec.UNSET}

    @property
    def _parameters(self) -> _Parameters:
        """Made on first use: types may be defined after the function."""
        if not self._made:
            self._made.append(_parameters_of(self.name, self._fn, self._words))
        return self._made[0]


@overload
def tool(fn: Callable[P, R], /, *, name: str | None = None, description: str | None = None) -> FunctionTool[P, R]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(fn: Callable[..., Any] | None = None, /, *, name: str | None = None, description: str | None = None) -> Any:
    """Makes a function a tool, as decorator (``@tool``, ``@tool(name=...)``) or as function (``tool(fn)``).

    The model is told the docstring up to its first section, the parameters' types, the words that a Google-style
    ``Args:`` section or ``Annotated[..., msgspec.Meta(description=...)]`` has for them, and the defaults. What the
    model writes is decoded into the annotated types before the function is called.

    Takes plain and async functions, bound methods, ``functools.partial`` (what it binds by keyword is no parameter any
    more), and objects with ``__call__``. A class or static method is wrapped from outside: ``tool(Desk.count)``.

    Args:
        fn: The function. Each parameter needs a type (``Any`` takes any JSON) and a name to be passed by.
        name: What the model calls it; the function's name by default.
        description: What the model is told of it; the docstring's by default.

    Returns:
        The tool, which can still be called as the function.

    Raises:
        ToolDefinitionError: It cannot be a tool: ``*args``, ``**kwargs``, positional-only parameters, a generator, a
            name that the API does not take.
    """
    if fn is None:
        return functools.partial(FunctionTool[..., Any], name=name, description=description)
    return FunctionTool(fn, name, description)


# --- looking at a function -------------------------------------------------------------------------------------------


def _innermost(fn: Callable[..., Any]) -> Any:
    """The function under partials, bound methods and wrappers; of an object with ``__call__``, that."""
    inner: Any = fn
    while True:
        if isinstance(inner, functools.partial):
            inner = inner.func
        elif isinstance(inner, types.MethodType):
            inner = inner.__func__
        elif hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        elif not hasattr(inner, "__code__") and isinstance(call := _call_of(inner), types.FunctionType):
            inner = call
        else:
            return inner


def _is_async(fn: Callable[..., Any]) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, FunctionTool):
        return fn._is_async  # pyright: ignore[reportPrivateUsage]  # a tool made of a tool, under another name
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(_call_of(fn))


def _call_of(callable_object: object) -> object:
    """The function behind an object with ``__call__``."""
    return inspect.getattr_static(type(callable_object), "__call__", None)


def _checked_name(name: str | None, fn: Callable[..., Any]) -> str:
    if isinstance(fn, classmethod | staticmethod):
        raise ToolDefinitionError("a class or static method is wrapped from outside the class: tool(Desk.count)")
    if not callable(fn):
        raise ToolDefinitionError(f"{type(fn).__name__} cannot be a tool: it cannot be called")
    inner = fn.func if isinstance(fn, functools.partial) else fn
    found = name if name is not None else getattr(inner, "__name__", type(inner).__name__)
    if not isinstance(found, str) or _NAME.fullmatch(found) is None:
        raise ToolDefinitionError(f"{found!r} cannot be a tool's name (letters, digits, _ and -, 1 to 64): pass name=")
    return found


def _is_in_a_class(fn: Callable[..., Any]) -> bool:
    """Whether it is a method that is not bound yet: its first parameter is the instance."""
    if not isinstance(fn, types.FunctionType):
        return False
    above = fn.__qualname__.rpartition(".")[0]
    return bool(above) and not above.endswith("<locals>")


def _check_kinds(name: str, fn: Callable[..., Any], *, skip_first: bool = False) -> list[inspect.Parameter]:
    """The parameters that a model may give.

    Raises:
        ToolDefinitionError: One that cannot be passed by its name, or a function without one result.
    """
    inner = _innermost(fn)
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise ToolDefinitionError(f"{name}() cannot be a tool: it is a generator, so it has no one result")
    try:
        parameters = list(inspect.signature(fn).parameters.values())[skip_first:]
    except (ValueError, TypeError):
        raise ToolDefinitionError(f"{name}() cannot be a tool: it does not say what it takes") from None
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ToolDefinitionError(
                f"{name}() cannot be a tool: its parameter {str(parameter).partition(':')[0]!r} is "
                f"{parameter.kind.description}, and a model gives arguments by name"
            )
    bound = fn.keywords if isinstance(fn, functools.partial) else {}
    return [parameter for parameter in parameters if parameter.name not in bound]


def _parameters_of(name: str, fn: Callable[..., Any], words: Mapping[str, str]) -> _Parameters:
    parameters = _check_kinds(name, fn)
    hints = _hints(name, fn, parameters)
    fields: list[Any] = []
    for parameter in parameters:
        kind: Any = hints[parameter.name]
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
        else:  # left out, the function's own default stands
            fields.append((parameter.name, kind | msgspec.UnsetType, msgspec.UNSET))
    try:
        arguments = msgspec.defstruct("Arguments", fields, forbid_unknown_fields=True, kw_only=True)
        schema = _schema(arguments, parameters, words)
        decoder = msgspec.json.Decoder(arguments, dec_hook=_decoded)
        lax = msgspec.json.Decoder(arguments, dec_hook=_decoded, strict=False)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ToolDefinitionError(f"{name}() cannot be a tool: {error}") from error
    return _Parameters(schema, decoder, lax)


def _hints(name: str, fn: Callable[..., Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    """The parameters' types, those written as strings looked up; the result's does not matter."""
    for parameter in parameters:
        if parameter.annotation is parameter.empty:
            raise ToolDefinitionError(
                f"{name}() cannot be a tool: its parameter {parameter.name!r} has no type (Any takes any JSON)"
            )
    inner = _innermost(fn)
    annotated = types.SimpleNamespace(__annotations__={each.name: each.annotation for each in parameters})
    names = {variable.__name__: variable for variable in getattr(inner, "__type_params__", ())}
    try:
        return get_type_hints(annotated, getattr(inner, "__globals__", {}), names, include_extras=True)
    except NameError as error:
        raise ToolDefinitionError(
            f"{name}() cannot be a tool: {error}; the types of its parameters must be there at run time, at the top "
            "level of its module"
        ) from None


def _schema(arguments: type[Any], parameters: list[inspect.Parameter], words: Mapping[str, str]) -> dict[str, Any]:
    """The schema of the arguments: one object, with the parameters' words and defaults."""
    (root,), definitions = msgspec.json.schema_components(
        [arguments], schema_hook=_schema_of_a_model, ref_template="#/$defs/{name}"
    )
    schema: dict[str, Any] = definitions.pop(root["$ref"].rpartition("/")[2])
    inner: dict[str, Any] = {}
    for place in (schema, *definitions.values()):
        _make_portable(place, inner)
    del schema["title"]
    for parameter in parameters:
        described: dict[str, Any] = schema["properties"][parameter.name]
        if text := words.get(parameter.name):
            described.setdefault("description", text)
        if parameter.default is not parameter.empty and "$ref" not in described:
            try:
                shown = msgspec.json.encode(parameter.default, enc_hook=_encoded_model)
                described["default"] = msgspec.json.decode(shown)
            except (TypeError, ValueError, NotImplementedError):
                continue  # what JSON has no form for is not shown
    if definitions or inner:
        schema["$defs"] = {**definitions, **inner}
    return schema


def _make_portable(schema: Any, definitions: dict[str, Any]) -> None:
    """Drops ``items: false`` of tuples, which llama.cpp refuses, and moves definitions of pydantic's to the root."""
    if isinstance(schema, dict):
        known = cast("dict[str, Any]", schema)
        if known.get("items") is False:
            del known["items"]
        definitions |= known.pop("$defs", {})
        for value in known.values():
            _make_portable(value, definitions)
    elif isinstance(schema, list):
        for item in cast("Sequence[Any]", schema):
            _make_portable(item, definitions)


# --- models of pydantic, which is not imported -----------------------------------------------------------------------


def _schema_of_a_model(kind: Any) -> dict[str, Any]:
    if hasattr(kind, "model_json_schema"):
        return cast("dict[str, Any]", kind.model_json_schema())
    raise TypeError(f"JSON has no form for {getattr(kind, '__name__', kind)}")


def _decoded(kind: Any, value: object) -> Any:
    if hasattr(kind, "model_validate"):
        return kind.model_validate(value)  # its ValidationError is a ValueError, which msgspec passes on as its own
    raise NotImplementedError(f"JSON has no form for {getattr(kind, '__name__', kind)}")


def _encoded_model(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise NotImplementedError(f"{type(value).__name__} is not JSON")


# --- results ---------------------------------------------------------------------------------------------------------


def _encoded(result: object) -> str:
    if isinstance(result, str):
        return str.__str__(result)
    try:
        try:
            return msgspec.json.encode(result, enc_hook=_encoded_model).decode()
        except UnicodeEncodeError:  # a lone surrogate, which UTF-8 has no form for, goes out escaped
            return json.dumps(msgspec.to_builtins(result, enc_hook=_encoded_model), separators=(",", ":"))
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise ToolError(f"the tool's result is not JSON: {error}", kind="result") from None
