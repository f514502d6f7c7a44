"""Structured output: requests an answer as a value of a type, and validates it. ``output_stream`` streams it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import msgspec

from friendli_async._core.body.arguments import Parameters, check_keywords
from friendli_async._core.protocol import Operation
from friendli_async._json import is_object
from friendli_async.chat.faults import Faults, describe_faults, faults_of
from friendli_async.chat.incremental_json import JSONError, read_json
from friendli_async.chat.inputs import extra_body_of
from friendli_async.chat.schema import description_of, plain_strict, schema_and_adapter, schema_name
from friendli_async.errors import ArgumentError, FriendliError, OutputCutOffError, OutputError, OutputInvalidError
from friendli_async.options import is_count
from friendli_async.replies import Meta, Partial, Reply, add_usage, as_chat_usage, convert_reply, partial_of

if TYPE_CHECKING:
    from friendli_async._core.engine import Engine, StreamOpening

R = TypeVar("R", bound=Reply)
T = TypeVar("T")
E = TypeVar("E", bound=OutputError)

_ROOT: Final = "value"
"""Key of the wrapper object. Servers with a strict form require an object at the root, so other values are wrapped."""


class MismatchError(ValueError):
    """A text does not match a type."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        return describe_faults(self.faults)


class _Wrapper(msgspec.Struct):
    value: msgspec.Raw


_wrapper_decoder: Final = msgspec.json.Decoder(_Wrapper)


class Answer(msgspec.Struct, frozen=True):
    """A reply, and what its API says about the answer in it."""

    reply: Any
    cut: str
    """Why the answer was truncated; "" if nothing indicates that it was."""
    refusal: str | None

    @property
    def instead(self) -> str:
        """What the model did instead of answering, or "". Tool calls may be what a truncation left of an answer."""
        if self.refusal:
            return f"the model refused to answer: {self.refusal}"
        if not self.cut and (names := ", ".join(call.function.name for call in self.reply.tool_calls)):
            return f"the model called tools instead of answering: {names}"
        return ""


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

    def __init__(self, kind: Any, strict: bool) -> None:
        self.name: str = schema_name(kind)
        self.description: str | None = description_of(kind)
        schema, self._adapter = schema_and_adapter(kind, strict)
        self.is_wrapped: bool = bool(schema) and schema.get("type") != "object"
        self.schema: dict[str, Any] | None = (_wrap_schema(schema) if self.is_wrapped else schema) or None
        self._kind = kind
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
        text: str = answer.reply.text
        try:
            value = self.decode(text)
        except MismatchError as mismatch:
            faults = mismatch.faults
        else:
            # A truncated number still looks complete.
            if not (answer.cut and text[-1:].isdigit()):
                return value
            faults = [("", "")]
        if instead := answer.instead:
            raise _error(OutputInvalidError, instead, answer, text, faults)
        if answer.cut:
            raise _error(OutputCutOffError, f"the answer was truncated: {answer.cut}", answer, text, faults)
        if not text.strip():
            raise _error(OutputInvalidError, "the model returned an empty answer", answer, text, faults)
        raise self.mismatch(answer, text, faults)

    def mismatch(self, answer: Answer, text: str, faults: Faults) -> OutputInvalidError:
        """Returns the error for a text that does not match the type, from the reply that has it."""
        message = self.describe(faults)
        return _error(OutputInvalidError, message, answer, text, faults, self.feedback(message))

    def describe(self, faults: Faults) -> str:
        """Returns what is wrong with a text that does not match the type."""
        return f"the answer is not a valid {self.name}: {describe_faults(faults)}"

    def feedback(self, message: str) -> str:
        """Returns the message that asks the model for another answer after an error."""
        shape = f': {{"{_ROOT}": ...}}' if self.is_wrapped else ""
        return f"This cannot be used: {message}. Answer again, with nothing but JSON that fits the schema{shape}."

    def decode(self, text: str) -> T:
        """Returns the value of a text. A value without its wrapper is accepted: not every server enforces the schema.

        Raises:
            MismatchError: The text does not match the type.
        """
        with suppress(ValueError, RecursionError):
            return self._decode(bytes(_wrapper_decoder.decode(text).value) if self.is_wrapped else text)
        try:
            # The incremental parser gives a more precise error, and reads a lone surrogate, which msgspec rejects.
            value = read_json(text)
        except JSONError as error:
            raise MismatchError([(f"invalid JSON: {error}", "")]) from None
        # An object with further keys may be a value that has a key of that name.
        has_wrapper = self.is_wrapped and is_object(value) and value.keys() == {_ROOT}
        return self.convert(value[_ROOT] if has_wrapper else value)

    def unwrap(self, value: Any) -> Any:
        """Returns the value inside parsed JSON, with or without its wrapper, or UNSET if there is none yet."""
        if not self.is_wrapped or not isinstance(value, dict):
            return value
        fields = cast("dict[str, Any]", value)
        first_key = next(iter(fields), _ROOT)  # what begins with another key is the value itself
        return fields.get(_ROOT, msgspec.UNSET) if first_key == _ROOT else fields

    def convert(self, value: Any) -> T:
        """Converts parsed JSON to a value of the type.

        Raises:
            MismatchError: The JSON does not match the type.
        """
        try:
            if self._adapter is None:
                return cast("T", msgspec.convert(value, self._kind, str_keys=True))
            return cast("T", self._adapter.validate_json(msgspec.json.encode(value)))
        except (ValueError, RecursionError) as error:
            faults = faults_of(error, self._kind) or [(str(error), "")]
        raise MismatchError(faults)

    def check_path(self, path: str) -> None:
        """Checks that a path can lead to a list.

        Raises:
            ArgumentError: It cannot, whatever the answer is; or it is no text.
        """
        if not isinstance(cast("object", path), str):
            raise ArgumentError(f"Expected `str`, got {path!r}", "items")
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


def _error(kind: type[E], message: str, answer: Answer, text: str, faults: Faults, feedback: str = "") -> E:
    return kind(
        message,
        reply=answer.reply,
        path=faults[0][1],
        text=text,
        refusal=answer.refusal or "",
        feedback=feedback,
        meta=cast("Meta | None", answer.reply.__dict__.get("_meta")),
        partial=partial_of(answer.reply),
    )


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


def _resolve_ref(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    return definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def output_of(kind: Any, strict: bool = True) -> Output[Any]:
    """Returns the output of a type, cached if the type is hashable.

    Raises:
        TypeError: The type has no JSON form, or is missing.
        ArgumentError: ``strict`` is not a bool.
    """
    if kind is ...:
        raise TypeError("the type of the answer is missing; pass it first, by position")
    strict = plain_strict(strict)  # the cache would take 1 for True
    try:
        hash(kind)
    except TypeError:
        return Output(kind, strict)
    return _cached_output(kind, strict)


@lru_cache(maxsize=256)
def _cached_output(kind: Any, strict: bool) -> Output[Any]:
    return Output(kind, strict)


# --- requests --------------------------------------------------------------------------------------------------------


class OutputAPI(Generic[R]):
    """An API with structured output. Its subclasses say what the APIs differ in."""

    operation: Operation[Any]
    parameters: Parameters
    options: type
    """A TypedDict of the optional keywords of a call without structured output."""
    parsed: type[R]
    """The class of a reply with a value."""
    collector: type[Any]
    """The class that collects the events of a stream."""
    option: str
    """The option for the format of the answer."""

    def format_of(self, declared: dict[str, object] | None) -> object:
        """Returns the value of that option for a type as ``Output.declared`` declares it."""
        raise NotImplementedError

    def answer_of(self, reply: Any, cut: str) -> Answer:
        """Extracts the answer from a reply. ``cut`` is the reason of a truncation that it does not show, or ""."""
        raise NotImplementedError

    def next_request(self, required: Mapping[str, Any], reply: Any, feedback: str) -> Mapping[str, object]:
        """Returns the parameters that ask again, from the last ones, their reply, and a message about its error."""
        raise NotImplementedError

    def stream_fields(self, sent: Mapping[str, object]) -> dict[str, object]:
        """Returns the fields that a stream adds to a body with these options."""
        return {"stream": True}

    def check(self, method: str, sent: Mapping[str, object]) -> None:
        """Checks what only this API does not support with structured output. Raises ArgumentError."""

    def prepare(
        self,
        method: str,
        kind: Any,
        required: Collection[str],
        options: Mapping[str, object],
        own: Collection[str] = ("strict",),
    ) -> tuple[Output[Any], dict[str, Any]]:
        """Returns the output of a type, and the options that are sent for it.

        Args:
            method: The method's name.
            kind: The type.
            required: The names of the parameters in the method's signature.
            options: The given keywords.
            own: Those that only methods of structured output have; they are not sent.

        Raises:
            TypeError: The type has no JSON form, or the option for the format of the answer is given, as a keyword or
                in ``extra_body``: it would override the type's schema.
            ArgumentError: ``strict`` is not a bool.
        """
        check_keywords(options, {*self.options.__annotations__, *own}, method, required)
        output = output_of(kind, cast("bool", options.get("strict", True)))
        if self.option in options or self.option in extra_body_of(options):
            raise TypeError(f"{method}() does not accept {self.option!r}: it is derived from the type")
        sent = {name: value for name, value in options.items() if name not in own}
        self.check(method, sent)
        return output, {**sent, self.option: self.format_of(output.declared())}

    def opening(
        self, engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
    ) -> tuple[StreamOpening[Any, Any, Any], Output[Any]]:
        """Returns the opening of the stream of an answer, and its type."""
        output, sent = self.prepare("parse_stream", kind, required, options)
        arguments = self.parameters.encode("parse_stream", required, sent, self.stream_fields(sent))
        return engine.opening(self.operation, arguments, self.collector), output

    async def parse(
        self, engine: Engine, kind: Any, required: Mapping[str, object], options: Mapping[str, object]
    ) -> R:
        """Calls the model until its answer is a value of the type, or the option ``reask`` is exhausted.

        Raises:
            ArgumentError: ``reask`` is not a non-negative integer.
            OutputError: The last answer is invalid.
        """
        output, sent = self.prepare("parse", kind, required, options, ("strict", "reask"))
        reask = options.get("reask", 0)
        if not is_count(reask, 0):
            raise ArgumentError(f"Expected a non-negative integer, got {reask!r}", "reask")
        billed: Any = None
        asked = 1
        with engine.runtime.as_one_call():
            while True:
                try:
                    reply: Reply = await engine.call(self.operation, self.parameters.encode("parse", required, sent))
                except FriendliError as error:
                    if billed is not None:
                        partial = error.partial or Partial()
                        usage = add_usage(as_chat_usage(billed), partial.usage)
                        error.partial = msgspec.structs.replace(partial, usage=usage)
                    raise
                billed = add_usage(billed, getattr(reply, "usage", None))
                answer = self.answer_of(convert_reply(type(reply), reply, usage=billed), "")
                try:
                    return convert_reply(self.parsed, answer.reply, value=output.read(answer), asked=asked)
                except OutputError as error:
                    error.asked = asked
                    if asked > reask or not error.feedback:
                        raise
                    feedback = error.feedback
                required = self.next_request(required, reply, feedback)
                asked += 1
