"""Checks and encodes a call's arguments before anything is sent. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict, cast, get_type_hints

import msgspec

from friendli_async._core.body.forms import Form
from friendli_async._core.body.json_values import (
    CALLABLE_HINTS,
    Unchecked,
    callable_hint,
    check_json,
    encode_body,
    is_list,
    normalize,
    struct_to_dict,
    to_builtins,
)
from friendli_async._core.body.validation_errors import choices_hint, split_message
from friendli_async._core.secret import masked
from friendli_async._help import document_fields
from friendli_async._hints import parameter_hint, setting_hint
from friendli_async._json import prepared
from friendli_async._locks import cached_property
from friendli_async.errors import ArgumentError, UnknownArgumentError


class Arguments(msgspec.Struct, frozen=True):
    """A call's arguments, checked and encoded: later changes to the caller's objects do not affect them."""

    body: bytes | Form | None = None
    query: str = ""
    """URL-encoded, without the question mark."""
    path: Mapping[str, str] = {}
    """Path parameters, percent-encoded."""
    model: str | None = None
    """The requested model, if the body names one: for reports of the call."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class ForeignArguments(Arguments, frozen=True):
    """Arguments of a request to a third-party server, which gets nothing else of ours, least of all the token."""

    url: str = ""
    """The absolute URL, instead of the operation's path."""


def model_of(given: Mapping[str, object]) -> str | None:
    """Returns the model that a call names, or None."""
    model = given.get("model")
    return str.__str__(model) if isinstance(model, str) else None  # an enum's str() is its name


def path_parameters(**parameters: str) -> dict[str, str]:
    """Percent-encodes path parameters.

    Raises:
        ValueError: One is empty or has a dot segment, and would address something else, or has a lone surrogate.
    """
    for name, value in parameters.items():
        if not isinstance(value, str):
            raise ArgumentError(f"Expected `str`, got `{type(value).__name__}`", name)
        # Also between slashes: some gateways decode these, and resolve the segments then.
        if not value or not {".", ".."}.isdisjoint(re.split(r"[/\\]", value)) or _has_surrogates(value):
            raise ArgumentError(f"{value!r} is not a valid identifier", name)
    from urllib.parse import quote

    return {name: quote(value, safe="") for name, value in parameters.items()}


def encode_query(query: Mapping[str, object], label: str = "extra_query[{!r}]") -> str:
    """Encodes query parameters: sequences repeat the key, booleans are lower-case, times are ISO 8601, None is omitted.

    ``label`` is how errors name a parameter; ``{}`` in it stands for its name.

    Raises:
        ValueError: A value cannot be sent in a query.
    """
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        values = cast("Sequence[object]", value) if isinstance(value, list | tuple) else [value]
        if _has_surrogates(name):
            raise ArgumentError("the name cannot be sent in a query string", label.format(name))
        pairs.extend((name, _query_value(label.format(name), item)) for item in values if item is not None)
    from urllib.parse import urlencode

    return urlencode(pairs)


def _query_value(name: str, value: object) -> str:
    plain = normalize(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, int) or (isinstance(plain, float) and math.isfinite(plain)):
        return str(plain)
    if isinstance(plain, datetime):
        return plain.isoformat().replace("+00:00", "Z")
    if isinstance(plain, str) and not _has_surrogates(plain):
        return plain
    raise ArgumentError(f"{value!r} cannot be sent in a query string", name)


def _has_surrogates(text: str) -> bool:
    """Whether a text has lone surrogates, which only JSON can carry."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def as_mapping(value: Any) -> Mapping[str, object]:
    """Returns a checked mapping: a struct passes the check, too, and None stands for an empty one."""
    if value is None:
        return {}
    return struct_to_dict(value) if isinstance(value, msgspec.Struct) else value


def without_none(**parameters: object) -> dict[str, object]:
    """Returns the parameters that are not None. Engines that serve one model want ``model`` omitted, not null."""
    return {name: value for name, value in parameters.items() if value is not None}


@document_fields
class ExtraQuery(TypedDict, total=False):
    """Keywords that every method accepts besides its own parameters."""

    extra_query: Mapping[str, object] | None
    """Extra query parameters, sent as they are; they override the others."""


@document_fields
class ExtraOptions(ExtraQuery, total=False):
    """Keywords that every method that sends JSON accepts besides its own parameters."""

    extra_body: Mapping[str, object] | None
    """Extra keys of the body, sent as they are; they override the parameters."""


def map_items(make: Callable[[object], object]) -> Callable[[object], object]:
    """Returns a function that applies ``make`` to each item of a list and leaves other values to the type check."""

    def made(given: Any) -> object:
        return [make(item) for item in given] if is_list(given) else given

    return made


def tagged_structs(kinds: str) -> list[Any]:
    """Returns structs for the JSON objects of these types, of which nothing else is checked, for a union."""
    return [*(msgspec.defstruct("Tagged", [], tag_field="type", tag=kind) for kind in kinds.split()), Unchecked]


class Parameters:
    """The keywords of a method that sends JSON, and the types of their values.

    Args:
        options: A TypedDict of the optional keywords.
        required: Types of the parameters in the method's signature.
        checks: Types to check against where the annotation is wider than the wire format: annotations serve type
            checkers and accept any mapping, while a check requires a tagged struct.
        sent: Conversions of some values to what is sent, applied before the check, such as ``map_items`` of a function.
    """

    def __init__(
        self,
        options: type,
        required: Mapping[str, Any] = {},
        checks: Mapping[str, Any] = {},
        sent: Mapping[str, Callable[[object], object]] = {},
    ) -> None:
        self._options = options
        self._sent = sent
        self._types = {**required, **checks}

    @cached_property
    def _struct(self) -> type[Any]:
        """The struct to check against. Built on first use: this costs 1 ms, and a service uses few of the methods."""
        types = {**get_type_hints(self._options), **self._types}
        fields = [(name, kind | msgspec.UnsetType, msgspec.UNSET) for name, kind in types.items()]
        return prepared(msgspec.defstruct("Arguments", fields))

    def converted(self, given: Mapping[str, object]) -> dict[str, object]:
        """Returns the given values, converted to what is sent."""
        sent = {**given}
        for name, convert in self._sent.items():
            if name in sent:
                sent[name] = convert(sent[name])
        return sent

    def check(self, values: Mapping[str, object], prefix: str = "") -> None:
        """Checks values by name. Unknown keys are ignored.

        Raises:
            ValueError: With the path of the bad value, such as ``messages[2].role``.
        """
        check_values(values, self._struct, prefix)

    def checked(self, method: str, required: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
        """Checks a method's arguments; see ``encode``. Returns them converted to what is sent."""
        check_keywords(options, self._options.__annotations__, method, required)
        given = self.converted({**required, **options})
        self.check(given)
        return given

    def encode(
        self,
        method: str,
        required: Mapping[str, object],
        options: Mapping[str, object],
        fixed: Mapping[str, object] = {},
    ) -> Arguments:
        """Checks a method's arguments and encodes them as a JSON body.

        Args:
            method: The method's name, for errors.
            required: The parameters in its signature.
            options: Its other keywords; ``extra_body`` and ``extra_query`` among them pass anything through.
            fixed: Values that the method itself adds.

        Raises:
            TypeError: The method has no such keyword.
            ValueError: A value has the wrong type or is not JSON; the message has its path.
        """
        given, extra, query = self.checked_parts(method, required, options)
        body = {**given, **fixed, **extra}
        return Arguments(encode_body(body), query, model=model_of(body))

    def checked_parts(
        self, method: str, required: Mapping[str, object], options: Mapping[str, object]
    ) -> tuple[dict[str, object], Mapping[str, object], str]:
        """Checks a method's arguments as ``encode`` does, but does not encode the body.

        Returns:
            The given parameters, the contents of ``extra_body``, and the encoded query.
        """
        given = self.checked(method, required, options)
        query, extra = as_mapping(given.pop("extra_query", None)), as_mapping(given.pop("extra_body", None))
        if "stream" in extra:
            raise ArgumentError("cannot be set here; call stream() to stream a reply", "extra_body.stream")
        return given, extra, encode_query(query) if query else ""


_NO_BODY: Final = Parameters(ExtraQuery)


def path_arguments(method: str, options: Mapping[str, object], **path: str) -> Arguments:
    """Checks and encodes the arguments of a method that sends no more than the parameters of its path.

    Raises:
        TypeError: The method has no such keyword.
        ValueError: An invalid path parameter or ``extra_query``.
    """
    _, _, query = _NO_BODY.checked_parts(method, path, options)
    return Arguments(query=query, path=path_parameters(**path))


def check_keywords(given: Mapping[str, object], known: Collection[str], method: str, required: Collection[str]) -> None:
    """Rejects keywords that a method does not have; ``required`` are the parameters in its signature.

    Raises:
        UnknownArgumentError: Names the unknown keyword, and what it is called here or where such a setting belongs.
    """
    for name in given:
        if name in known:
            continue
        _mask_in_tracebacks(given, name)
        if name == "stream":
            advice = "leave it out, the reply is always streamed"
            if method not in _STREAMING:
                advice = f"call {'parse_stream' if method == 'parse' else 'stream'}() instead"
            raise UnknownArgumentError(f"{method}() does not accept 'stream': {advice}", name)
        if (setting := setting_hint(name)) is not None:
            raise UnknownArgumentError(f"{method}() does not accept {name!r}: {setting}", name)
        hint = parameter_hint(name, {*known, *required})
        if callable(given[name]):
            hint += next((advice for each, advice in CALLABLE_HINTS.items() if hint.endswith(f"use {each!r}")), "")
        raise UnknownArgumentError(f"{method}() got an unexpected keyword argument {name!r}{hint}", name)


def _mask_in_tracebacks(given: Mapping[str, object], name: str) -> None:
    """Masks an unknown keyword: it may be a setting of the client, such as the token, and the frames hold ``given``."""
    if isinstance(given, dict):  # the keywords of one call, which nobody else has
        given[name] = masked(given[name])


def check_values(values: object, expected: type[Any], prefix: str = "") -> None:
    """Checks values against a type. Unknown keys are ignored.

    Raises:
        ValueError: With the path of the bad value, such as ``messages[2].role``.
    """
    try:
        try:
            msgspec.convert(values, expected)
        except Exception:
            # Slow path for look-alikes of built-in types: a str enum, a deque, a numpy float. Any exception may come
            # from an object that has items but is neither list nor mapping: msgspec asks it for its keys. It cannot
            # compare texts with lone surrogates, which JSON carries as escapes.
            msgspec.convert(to_builtins(values, checked=True), expected)
    except msgspec.ValidationError as error:
        reason, of_key, path = split_message(str(error))
        where = (prefix + path).lstrip(".") or "arguments"
        advice = callable_hint(where) if reason.startswith("Expected ") else ""
        if reason == "Expected `object`, got `ChatCompletion`":  # likely in a conversation that goes on
            advice = "; pass its message"
        advice += choices_hint(expected, str(error))
        raise ArgumentError(f"{'invalid key: ' if of_key else ''}{reason}{advice}", where) from None
    except RecursionError:
        raise ArgumentError("the arguments are nested too deeply, or contain a circular reference") from None
    except Exception:  # of such an object
        check_json(values, prefix)
        raise


# Methods whose answer is always streamed.
_STREAMING: Final = frozenset({"stream", "parse_stream", "run"})
